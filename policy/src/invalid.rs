//! The one error that a raw value gets when it cannot become a valid type.

use std::fmt::{self, Display};

/// A value that cannot be: which field, what was found there and what is allowed.
///
/// `field` is the path as a user writes it, relative to the object (`spec.schedule.cron`). Constructors of parts take the path of
/// the part as their first argument, so that the message names the field that has to be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: found {found}; allowed: {allowed}")]
pub struct Invalid {
    /// Path of the field, for example `spec.volumes.rules[2].match.claimRegex`.
    pub field: String,
    /// What was found, quoted where it is text.
    pub found: String,
    /// What would have been accepted.
    pub allowed: String,
}

impl Invalid {
    /// `found` is quoted; use [`Invalid::raw`] for what is not text.
    pub fn new(field: impl Into<String>, found: impl Display, allowed: impl Into<String>) -> Self {
        Self::raw(field, Quoted(&found), allowed)
    }

    /// Like [`Invalid::new`] without quotes around `found`.
    pub fn raw(field: impl Into<String>, found: impl Display, allowed: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            found: shorten(found.to_string()),
            allowed: allowed.into(),
        }
    }
}

struct Quoted<'a, T>(&'a T);

impl<T: Display> Display for Quoted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.to_string())
    }
}

/// A message goes into a status; a found value of any length does not.
fn shorten(mut text: String) -> String {
    const LONGEST: usize = 200;
    if text.len() > LONGEST {
        let cut = text.floor_char_boundary(LONGEST);
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_field_what_was_found_and_what_is_allowed() {
        let error = Invalid::new("spec.mode", "Enforced", "Enforce, Preview");
        assert_eq!(
            error.to_string(),
            r#"spec.mode: found "Enforced"; allowed: Enforce, Preview"#
        );
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let error = Invalid::raw("f", "ä".repeat(300), "less");
        assert!(error.found.len() < 210 && error.found.ends_with('…'));
    }
}
