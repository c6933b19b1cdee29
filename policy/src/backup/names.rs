//! Lists of names to include and to exclude.

use crate::pattern::Globs;

/// Names or globs to include and to exclude. An empty include list includes everything; exclusion wins.
#[derive(Debug, Clone, Default)]
pub struct Names {
    include: Globs,
    exclude: Globs,
    everything: bool,
    nothing: bool,
}

/// How the two lists may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Star {
    /// `*` may stand in the include list only (namespaces, resources).
    IncludeOnly,
    /// `*` may stand in either, alone (the newer resource filters).
    Either,
}

impl Names {
    /// Compiles two lists.
    ///
    /// # Errors
    /// Everything that is wrong with them, in Velero's words.
    pub fn new(include: &[String], exclude: &[String], star: Star) -> Result<Self, Vec<String>> {
        Self::compiled(include, exclude, problems(include, exclude, star))
    }

    /// The lists of a hook, which may contradict each other: what is excluded is not included.
    ///
    /// # Errors
    /// A name or glob that cannot be.
    pub fn of_hook(include: &[String], exclude: &[String]) -> Result<Self, Vec<String>> {
        Self::compiled(include, exclude, Vec::new())
    }

    fn compiled(
        include: &[String],
        exclude: &[String],
        mut errors: Vec<String>,
    ) -> Result<Self, Vec<String>> {
        let mut compile = |list: &[String]| {
            let list: Vec<String> = list.iter().filter(|name| *name != "*").cloned().collect();
            Globs::new("", &list).unwrap_or_else(|_| {
                errors.push(format!("invalid name or glob in {}", list.join(", ")));
                Globs::default()
            })
        };
        let (included, excluded) = (compile(include), compile(exclude));
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            everything: include.is_empty() || include.iter().any(|name| name == "*"),
            nothing: exclude.iter().any(|name| name == "*"),
            include: included,
            exclude: excluded,
        })
    }

    /// Whether a name is included.
    pub fn includes(&self, name: &str) -> bool {
        !self.excludes(name) && (self.everything || self.include.matches(name))
    }

    /// Whether a name is excluded by name.
    pub fn excludes(&self, name: &str) -> bool {
        self.nothing || self.exclude.matches(name)
    }

    /// Whether every name is included and none excluded.
    pub fn is_everything(&self) -> bool {
        self.everything && !self.nothing && self.exclude.is_empty()
    }

    /// The plain names of the include list; its globs have to be compared with what there is.
    pub fn listed(&self) -> impl Iterator<Item = &str> {
        let patterns = self.include.patterns().iter();
        patterns
            .map(String::as_str)
            .filter(|name| !name.contains(['*', '?', '[']))
    }

    /// Whether a name is in the include list as it is written.
    pub fn names(&self, name: &str) -> bool {
        self.include.patterns().iter().any(|listed| listed == name)
    }
}

fn problems(include: &[String], exclude: &[String], star: Star) -> Vec<String> {
    let has_star = |list: &[String]| list.iter().any(|name| name == "*");
    let mut errors = Vec::new();
    if include.len() > 1 && has_star(include) {
        errors.push(
            "includes list must either contain '*' only, or a non-empty list of items".to_owned(),
        );
    }
    match star {
        Star::IncludeOnly if has_star(exclude) => {
            errors.push("excludes list cannot contain '*'".to_owned());
        }
        Star::Either if exclude.len() > 1 && has_star(exclude) => errors.push(
            "excludes list must either contain '*' only, or a non-empty list of items".to_owned(),
        ),
        Star::Either if !include.is_empty() && has_star(exclude) => {
            errors.push("when exclude is '*', include cannot have values".to_owned())
        }
        _ => {}
    }
    for name in exclude
        .iter()
        .filter(|name| *name != "*" && include.contains(name))
    {
        errors.push(format!(
            "excludes list cannot contain an item in the includes list: {name}"
        ));
    }
    for name in include.iter().chain(exclude) {
        if name.contains("**") || name.contains(['|', '(', ')', '!', '{', '}', ',']) {
            errors.push(format!(
                "wildcard pattern {name:?} contains unsupported characters"
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn inclusion() {
        let table = [
            ("", "", "a", true),
            ("*", "", "a", true),
            ("*", "a", "a", false),
            ("a b", "", "a", true),
            ("a b", "", "c", false),
            ("team-*", "team-x", "team-a", true),
            ("team-*", "team-x", "team-x", false),
            ("", "kube-*", "kube-system", false),
        ];
        for (include, exclude, name, expected) in table {
            let names = Names::new(&list(include), &list(exclude), Star::IncludeOnly).unwrap();
            assert_eq!(names.includes(name), expected, "{include}|{exclude}|{name}");
        }
    }

    #[test]
    fn plain_names_are_known_beside_globs() {
        let table = [
            ("", ""),
            ("*", ""),
            ("a b", "a b"),
            ("team-* gone", "gone"),
            ("tea? [ab] team-*", ""),
        ];
        for (include, expected) in table {
            let names = Names::new(&list(include), &[], Star::IncludeOnly).unwrap();
            assert_eq!(names.listed().collect::<Vec<_>>(), list(expected));
        }
    }

    #[test]
    fn a_hook_s_lists_may_contradict_each_other() {
        let table = [
            ("a", "a", "a", false),
            ("a b", "a", "b", true),
            ("* a", "", "c", true),
            ("", "*", "a", false),
        ];
        for (include, exclude, name, expected) in table {
            let names = Names::of_hook(&list(include), &list(exclude)).unwrap();
            assert_eq!(names.includes(name), expected, "{include}|{exclude}|{name}");
        }
        assert!(Names::of_hook(&list("["), &[]).is_err());
    }

    #[test]
    fn refusals() {
        let table = [
            (
                "* a",
                "",
                Star::IncludeOnly,
                "includes list must either contain '*' only",
            ),
            (
                "",
                "*",
                Star::IncludeOnly,
                "excludes list cannot contain '*'",
            ),
            (
                "a",
                "a",
                Star::IncludeOnly,
                "cannot contain an item in the includes list: a",
            ),
            ("a", "*", Star::Either, "when exclude is '*'"),
            ("a|b", "", Star::IncludeOnly, "unsupported"),
            ("[", "", Star::IncludeOnly, "invalid name or glob"),
        ];
        for (include, exclude, star, expected) in table {
            let errors = Names::new(&list(include), &list(exclude), star).unwrap_err();
            assert!(errors[0].contains(expected), "{errors:?}");
        }
        assert!(Names::new(&[], &list("*"), Star::Either).is_ok());
    }
}
