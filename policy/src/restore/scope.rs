//! Which objects of a backup a restore's filters admit (velero-compat §7.1, §7.3).

use std::collections::{BTreeMap, BTreeSet};

use super::skip::never;
use crate::labels::{Labels, Selector};
use crate::pattern::Globs;

/// A restore's filters, resource names already in the form `plural[.group]`.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    pub included_namespaces: Vec<String>,
    pub excluded_namespaces: Vec<String>,
    pub included_resources: Vec<String>,
    pub excluded_resources: Vec<String>,
    pub include_cluster_resources: Option<bool>,
    /// One of these has to match; none = everything matches.
    pub selectors: Vec<Selector>,
    /// Namespace of the backup → namespace in the cluster.
    pub namespace_mapping: BTreeMap<String, String>,
}

/// Valid filters.
#[derive(Debug, Clone)]
pub struct Scope {
    included_namespaces: Globs,
    excluded_namespaces: Globs,
    included_resources: Globs,
    excluded_resources: Globs,
    filters: Filters,
}

impl Scope {
    /// Checks the filters; the error lists everything that is wrong with them, in the words of Velero's `validationErrors`.
    pub fn new(mut filters: Filters) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        // As Velero does: what is left of `--include-resources ""`.
        for list in [
            &mut filters.included_resources,
            &mut filters.excluded_resources,
        ] {
            list.retain(|name| !name.is_empty());
        }
        pair_errors(
            "namespace",
            &filters.included_namespaces,
            &filters.excluded_namespaces,
            &mut errors,
        );
        pair_errors(
            "resource",
            &filters.included_resources,
            &filters.excluded_resources,
            &mut errors,
        );
        for never in never() {
            if filters
                .included_resources
                .iter()
                .any(|included| included == never)
            {
                errors.push(format!("{never} are non-restorable resources"));
            }
        }
        let mut globs = |field: &str, patterns: &[String]| {
            Globs::new(field, patterns)
                .map_err(|error| errors.push(error.to_string()))
                .ok()
        };
        let included = globs("spec.includedNamespaces", &filters.included_namespaces);
        let excluded = globs("spec.excludedNamespaces", &filters.excluded_namespaces);
        let resources = globs("spec.includedResources", &filters.included_resources);
        let left_out = globs("spec.excludedResources", &filters.excluded_resources);
        match (included, excluded, resources, left_out) {
            (
                Some(included_namespaces),
                Some(excluded_namespaces),
                Some(included_resources),
                Some(excluded_resources),
            ) if errors.is_empty() => Ok(Self {
                included_namespaces,
                excluded_namespaces,
                included_resources,
                excluded_resources,
                filters,
            }),
            _ => Err(errors),
        }
    }

    /// Whether the kind is restored at all.
    pub fn admits_resource(&self, resource: &str) -> bool {
        (includes_all(&self.filters.included_resources)
            || self.included_resources.matches(resource))
            && never().all(|never| never != resource)
            && !self.excluded_resources.matches(resource)
    }

    /// Whether objects of this namespace (of the backup) are restored.
    pub fn admits_namespace(&self, namespace: &str) -> bool {
        (includes_all(&self.filters.included_namespaces)
            || self.included_namespaces.matches(namespace))
            && !self.excluded_namespaces.matches(namespace)
    }

    /// Whether an object may be restored, as far as its place tells.
    pub fn admits_place(&self, resource: &str, namespace: Option<&str>, name: &str) -> bool {
        match (resource, namespace) {
            (_, Some(namespace)) => self.admits_namespace(namespace),
            ("namespaces", None) => self.admits_namespace(name),
            // They may come along with what needs them.
            ("persistentvolumes" | "priorityclasses.scheduling.k8s.io", None) => {
                self.admits_needed() || self.admits_cluster_scoped()
            }
            _ => self.admits_cluster_scoped(),
        }
    }

    /// The namespaces in the cluster into which several of these namespaces of the backup are restored, with those, in order.
    pub fn contested<'a>(
        &self,
        namespaces: impl IntoIterator<Item = &'a str>,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut targets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for namespace in namespaces {
            if self.admits_namespace(namespace) {
                let sources = targets
                    .entry(self.target(namespace).to_owned())
                    .or_default();
                sources.insert(namespace.to_owned());
            }
        }
        targets.retain(|_, sources| sources.len() > 1);
        targets
    }

    /// Whether cluster-scoped objects are restored: as asked, else only where all namespaces are.
    pub fn admits_cluster_scoped(&self) -> bool {
        let everywhere = includes_all(&self.filters.included_namespaces)
            && self.filters.excluded_namespaces.is_empty();
        self.filters.include_cluster_resources.unwrap_or(everywhere)
    }

    /// Whether cluster-scoped objects come along that others need: unless the restore says that none may.
    pub fn admits_needed(&self) -> bool {
        self.filters.include_cluster_resources != Some(false)
    }

    /// Whether an object's labels match.
    pub fn admits_labels(&self, labels: &Labels) -> bool {
        self.filters.selectors.is_empty()
            || self
                .filters
                .selectors
                .iter()
                .any(|selector| selector.matches(labels))
    }

    /// Whether one object is restored.
    pub fn admits(&self, resource: &str, namespace: Option<&str>, labels: &Labels) -> bool {
        let placed = match namespace {
            Some(namespace) => self.admits_namespace(namespace),
            None if resource == "namespaces" => true,
            None => self.admits_cluster_scoped(),
        };
        placed && self.admits_resource(resource) && self.admits_labels(labels)
    }

    /// The namespace an object of `namespace` is restored into.
    pub fn target<'a>(&'a self, namespace: &'a str) -> &'a str {
        self.filters
            .namespace_mapping
            .get(namespace)
            .map_or(namespace, String::as_str)
    }

    /// Namespace of the backup → namespace in the cluster, where they differ.
    pub fn mapping(&self) -> &BTreeMap<String, String> {
        &self.filters.namespace_mapping
    }
}

fn includes_all(included: &[String]) -> bool {
    included.is_empty() || included.iter().any(|name| name == "*")
}

fn pair_errors(what: &str, included: &[String], excluded: &[String], errors: &mut Vec<String>) {
    if included.len() > 1 && included.iter().any(|name| name == "*") {
        errors.push(format!(
            "Invalid included/excluded {what} lists: includes list must either contain '*' only, or a non-empty list of items"
        ));
    }
    for name in excluded {
        if name == "*" {
            errors.push(format!(
                "Invalid included/excluded {what} lists: excludes list cannot contain '*'"
            ));
        } else if included.contains(name) {
            errors.push(format!(
                "Invalid included/excluded {what} lists: excludes list cannot contain an item in the includes list: {name}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn none() -> Labels {
        Labels::default()
    }

    #[test]
    fn without_filters_everything_but_the_never_restored_is_admitted() {
        let scope = Scope::new(Filters::default()).unwrap();
        assert!(scope.admits("pods", Some("a"), &none()));
        assert!(scope.admits("clusterroles.rbac.authorization.k8s.io", None, &none()));
        for never in never() {
            assert!(!scope.admits(never, Some("a"), &none()), "{never}");
            assert!(!scope.admits(never, None, &none()), "{never}");
        }
    }

    #[test]
    fn namespaces_that_are_mapped_onto_one_are_told_apart() {
        let map = |pairs: &[(&str, &str)]| {
            let pair = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
            Scope::new(Filters {
                excluded_namespaces: names(&["x"]),
                namespace_mapping: pairs.iter().map(pair).collect(),
                ..Filters::default()
            })
            .unwrap()
        };
        let contested = |pairs: &[(&str, &str)]| map(pairs).contested(["a", "b", "c", "x", "b"]);
        assert!(contested(&[]).is_empty());
        assert!(contested(&[("a", "new"), ("x", "b")]).is_empty());
        assert!(contested(&[("a", "b"), ("b", "a")]).is_empty());
        let onto = |target: &str, sources: &[&str]| {
            let sources = sources.iter().map(|name| (*name).to_owned()).collect();
            BTreeMap::from([(target.to_owned(), sources)])
        };
        assert_eq!(contested(&[("b", "a")]), onto("a", &["a", "b"]));
        let three = contested(&[("a", "new"), ("b", "new"), ("c", "new")]);
        assert_eq!(three, onto("new", &["a", "b", "c"]));
    }

    #[test]
    fn naming_namespaces_leaves_cluster_scoped_objects_out_unless_asked_for() {
        let restrict = |cluster| Filters {
            included_namespaces: names(&["team-*"]),
            excluded_namespaces: names(&["team-b"]),
            include_cluster_resources: cluster,
            ..Filters::default()
        };
        let cases = [(None, false), (Some(false), false), (Some(true), true)];
        for (asked, want) in cases {
            let scope = Scope::new(restrict(asked)).unwrap();
            assert!(scope.admits("pods", Some("team-a"), &none()));
            assert!(!scope.admits("pods", Some("team-b"), &none()));
            assert!(!scope.admits("pods", Some("other"), &none()));
            assert_eq!(
                scope.admits("storageclasses.storage.k8s.io", None, &none()),
                want,
                "{asked:?}"
            );
            for (resource, namespace, name, want) in [
                ("pods", Some("team-a"), "a", true),
                ("pods", Some("other"), "a", false),
                ("namespaces", None, "team-a", true),
                ("namespaces", None, "team-b", false),
                ("storageclasses.storage.k8s.io", None, "team-a", want),
                ("persistentvolumes", None, "pv", asked != Some(false)),
            ] {
                let found = scope.admits_place(resource, namespace, name);
                assert_eq!(found, want, "{asked:?} {resource} {namespace:?} {name}");
            }
        }
        let all = Filters {
            include_cluster_resources: Some(false),
            ..Filters::default()
        };
        assert!(!Scope::new(all).unwrap().admits_cluster_scoped());
        for (asked, needed) in [(None, true), (Some(false), false), (Some(true), true)] {
            let scope = Scope::new(restrict(asked)).unwrap();
            assert_eq!(scope.admits_needed(), needed, "{asked:?}");
        }
    }

    #[test]
    fn resources_are_named_or_matched() {
        const VOLUMES: &str = "volumes.longhorn.io";
        const CLASSES: &str = "storageclasses.storage.k8s.io";
        let table: [(&[&str], &[&str], &str); 7] = [
            (&[], &[], "pods CLASSES VOLUMES"),
            (&[], &["*.longhorn.io"], "pods CLASSES"),
            (&["*.longhorn.io"], &[], "VOLUMES"),
            (&["*s.*.io", "p?ds"], &["storage*"], "pods VOLUMES"),
            (&["*"], &["pod[a-z]"], "CLASSES VOLUMES"),
            (&[""], &["", "pods"], "CLASSES VOLUMES"),
            // What is never restored is not restored by a glob either.
            (&["event*"], &[], ""),
        ];
        for (included, excluded, expected) in table {
            let scope = Scope::new(Filters {
                included_resources: names(included),
                excluded_resources: names(excluded),
                ..Filters::default()
            })
            .unwrap();
            let all = [
                ("pods", "pods"),
                ("CLASSES", CLASSES),
                ("VOLUMES", VOLUMES),
                ("events", "events"),
            ];
            for (short, resource) in all {
                let expected = expected.split(' ').any(|name| name == short);
                assert_eq!(
                    scope.admits_resource(resource),
                    expected,
                    "{included:?} {excluded:?} {resource}"
                );
            }
        }
        let errors = Scope::new(Filters {
            excluded_resources: names(&["pods", "["]),
            ..Filters::default()
        })
        .unwrap_err();
        assert!(
            errors[0].starts_with("spec.excludedResources[1]: found \"[\""),
            "{errors:?}"
        );
    }

    #[test]
    fn resources_and_labels_restrict() {
        let gold = Selector::new("s", [("tier", "gold")], []).unwrap();
        let silver = Selector::new("s", [("tier", "silver")], []).unwrap();
        let scope = Scope::new(Filters {
            included_resources: names(&["pods", "secrets"]),
            excluded_resources: names(&["services"]),
            selectors: vec![gold, silver],
            ..Filters::default()
        })
        .unwrap();
        let tier = |value: &str| [("tier", value)].into_iter().collect::<Labels>();
        assert!(scope.admits("pods", Some("a"), &tier("gold")));
        assert!(scope.admits("pods", Some("a"), &tier("silver")));
        assert!(!scope.admits("pods", Some("a"), &tier("lead")));
        assert!(!scope.admits("services", Some("a"), &tier("gold")));
        assert!(!scope.admits("configmaps", Some("a"), &tier("gold")));
    }

    #[test]
    fn contradictions_are_named() {
        let errors = Scope::new(Filters {
            included_namespaces: names(&["*", "a"]),
            excluded_namespaces: names(&["*"]),
            included_resources: names(&["pods", "nodes"]),
            excluded_resources: names(&["pods"]),
            ..Filters::default()
        })
        .unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert!(
            errors
                .iter()
                .any(|error| error == "nodes are non-restorable resources")
        );
        assert!(
            errors
                .iter()
                .any(|error| error.ends_with("includes list: pods"))
        );
    }

    #[test]
    fn namespaces_are_mapped() {
        let scope = Scope::new(Filters {
            namespace_mapping: [("a".to_owned(), "b".to_owned())].into(),
            ..Filters::default()
        })
        .unwrap();
        assert_eq!(scope.target("a"), "b");
        assert_eq!(scope.target("c"), "c");
    }
}
