//! Labels and label selectors (the semantics of `metav1.LabelSelector`).

use crate::Invalid;

/// Labels or annotations of an object, sorted by key; small enough to keep for every pod of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .binary_search_by(|(k, _)| (**k).cmp(key))
            .ok()
            .and_then(|at| self.0.get(at))
            .map(|(_, v)| &**v)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut list: Vec<(Box<str>, Box<str>)> = pairs
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        list.sort();
        list.dedup_by(|a, b| a.0 == b.0);
        Self(list.into_boxed_slice())
    }
}

/// One line of a selector's `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels
                .get(key)
                .is_some_and(|found| values.iter().any(|v| v == found)),
            // As in Kubernetes, an absent key is "not in".
            Self::NotIn(key, values) => labels
                .get(key)
                .is_none_or(|found| values.iter().all(|v| v != found)),
            Self::Exists(key) => labels.get(key).is_some(),
            Self::DoesNotExist(key) => labels.get(key).is_none(),
        }
    }
}

/// A valid label selector. The empty one (also [`Default`]) matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// `expressions` are `(key, operator, values)` as the API has them.
    pub fn new<'a>(
        field: &str,
        match_labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        expressions: impl IntoIterator<Item = (&'a str, &'a str, &'a [String])>,
    ) -> Result<Self, Invalid> {
        let mut all: Vec<Requirement> = match_labels
            .into_iter()
            .map(|(key, value)| Requirement::In(key.to_owned(), vec![value.to_owned()]))
            .collect();
        for (at, (key, operator, values)) in expressions.into_iter().enumerate() {
            let path = format!("{field}.matchExpressions[{at}]");
            if key.is_empty() {
                return Err(Invalid::new(format!("{path}.key"), key, "a label key"));
            }
            let listed = || match values {
                [] => Err(Invalid::raw(
                    format!("{path}.values"),
                    "no value",
                    format!("at least one value with operator {operator}"),
                )),
                some => Ok(some.to_vec()),
            };
            let none = |requirement| match values {
                [] => Ok(requirement),
                [first, ..] => Err(Invalid::new(
                    format!("{path}.values"),
                    first,
                    format!("no value with operator {operator}"),
                )),
            };
            let key = key.to_owned();
            all.push(match operator {
                "In" => Requirement::In(key, listed()?),
                "NotIn" => Requirement::NotIn(key, listed()?),
                "Exists" => none(Requirement::Exists(key))?,
                "DoesNotExist" => none(Requirement::DoesNotExist(key))?,
                other => {
                    return Err(Invalid::new(
                        format!("{path}.operator"),
                        other,
                        "In, NotIn, Exists, DoesNotExist",
                    ));
                }
            });
        }
        Ok(Self(all))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether the selector matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    #[test]
    fn operators_behave_as_in_kubernetes() {
        let values = ["a".to_owned(), "b".to_owned()];
        type Case<'a> = (&'a str, &'a [String], &'a [(&'a str, &'a str)], bool);
        let cases: &[Case<'_>] = &[
            ("In", &values, &[("k", "a")], true),
            ("In", &values, &[("k", "c")], false),
            ("In", &values, &[], false),
            ("NotIn", &values, &[("k", "c")], true),
            ("NotIn", &values, &[("k", "b")], false),
            ("NotIn", &values, &[], true),
            ("Exists", &[], &[("k", "")], true),
            ("Exists", &[], &[("x", "")], false),
            ("DoesNotExist", &[], &[("x", "")], true),
            ("DoesNotExist", &[], &[("k", "")], false),
        ];
        for (operator, values, found, expected) in cases {
            let selector = Selector::new("s", [], [("k", *operator, *values)]).unwrap();
            assert_eq!(
                selector.matches(&labels(found)),
                *expected,
                "{operator} {found:?}"
            );
        }
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(Selector::default().matches(&labels(&[])));
        assert!(Selector::default().matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn bad_expressions_name_their_field() {
        let error = Selector::new("spec.pods.selector", [], [("k", "Is", &[][..])]).unwrap_err();
        assert_eq!(
            error.field,
            "spec.pods.selector.matchExpressions[0].operator"
        );
        assert!(Selector::new("s", [], [("k", "In", &[][..])]).is_err());
        assert!(Selector::new("s", [], [("k", "Exists", &["v".to_owned()][..])]).is_err());
        assert!(Selector::new("s", [], [("", "Exists", &[][..])]).is_err());
    }
}
