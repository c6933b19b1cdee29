//! Globs and regular expressions of a policy.

use globset::{Glob, GlobSet, GlobSetBuilder};
use regex::Regex;

use crate::Invalid;

/// A list of globs (`*`, `?`, `[a-z]`); matches what any of them matches.
#[derive(Debug, Clone, Default)]
pub struct Globs {
    source: Vec<String>,
    set: GlobSet,
}

impl Globs {
    pub fn new(field: &str, patterns: &[String]) -> Result<Self, Invalid> {
        let mut set = GlobSetBuilder::new();
        for (at, pattern) in patterns.iter().enumerate() {
            let bad = |allowed: String| Invalid::new(format!("{field}[{at}]"), pattern, allowed);
            if pattern.is_empty() {
                return Err(bad("a name or a glob (*, ?, [a-z])".to_owned()));
            }
            set.add(Glob::new(pattern).map_err(|error| bad(format!("a glob ({})", error.kind())))?);
        }
        let set = set.build().map_err(|error| {
            Invalid::new(
                field,
                patterns.join(","),
                format!("globs ({})", error.kind()),
            )
        })?;
        Ok(Self {
            source: patterns.to_vec(),
            set,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.source.is_empty()
    }

    pub fn matches(&self, name: &str) -> bool {
        self.set.is_match(name)
    }

    /// The patterns as they were written.
    pub fn patterns(&self) -> &[String] {
        &self.source
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Globs {}

/// A regular expression, unanchored as in every other place where Kubernetes users write one.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn new(field: &str, source: &str) -> Result<Self, Invalid> {
        let allowed = |why: String| format!("a regular expression ({})", last_line(&why));
        Regex::new(source)
            .map(Self)
            .map_err(|error| Invalid::new(field, source, allowed(error.to_string())))
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

fn last_line(text: &str) -> &str {
    text.lines()
        .last()
        .unwrap_or(text)
        .trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_names() {
        let globs = Globs::new(
            "f",
            &["team-*".to_owned(), "db?".to_owned(), "[xy]1".to_owned()],
        );
        let globs = globs.unwrap();
        for (name, expected) in [
            ("team-a", true),
            ("a-team-a", false),
            ("db1", true),
            ("db", false),
            ("y1", true),
        ] {
            assert_eq!(globs.matches(name), expected, "{name}");
        }
    }

    #[test]
    fn bad_patterns_say_where_and_why() {
        let error = Globs::new("spec.namespaces.include", &["a".into(), "[".into()]).unwrap_err();
        assert_eq!(error.field, "spec.namespaces.include[1]");
        let error = Pattern::new("spec.namespaces.regex", "(a").unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"spec.namespaces.regex: found "(a"; allowed: a regular expression (unclosed group)"#
        );
    }
}
