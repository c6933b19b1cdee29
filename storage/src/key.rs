//! Which keys are allowed: relative paths of plain names, the same in every store.

use crate::{Error, Result};

/// S3 allows 1024 bytes for a key.
const LONGEST: usize = 1024;

/// Refuses a key that could leave the store's root or that some store cannot hold.
pub fn check(location: &str, key: &str) -> Result<()> {
    let message = if key.is_empty() {
        "it is empty"
    } else if key.len() > LONGEST {
        "it is longer than 1024 bytes"
    } else if key.starts_with('/') {
        "it is absolute"
    } else if key.contains(|c: char| c.is_control()) {
        "it holds a control character"
    } else if key.split('/').any(str::is_empty) {
        "a part of it is empty"
    } else if key.split('/').any(|part| part == "." || part == "..") {
        "it holds '.' or '..'"
    } else {
        return Ok(());
    };
    Err(Error::InvalidKey {
        location: location.to_owned(),
        key: key.to_owned(),
        message,
    })
}

/// Like [`check`], for a prefix: empty and a trailing slash are fine.
pub fn check_prefix(location: &str, prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(()),
        trimmed => check(location, trimmed),
    }
}

/// The prefix of everything inside directory `name`: with exactly one trailing slash, or empty.
pub fn directory(name: &str) -> String {
    match name.trim_end_matches('/') {
        "" => String::new(),
        name => format!("{name}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_could_leave_the_root_is_refused() {
        for key in [
            "", "/a", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a\0b", "a\nb",
        ] {
            assert!(check("x", key).is_err(), "{key:?}");
        }
        for key in [
            "config",
            "data/00/ab",
            "backups/b/b.tar.gz",
            "..a",
            "a..b",
            "ü/ñ",
        ] {
            assert!(check("x", key).is_ok(), "{key:?}");
        }
        assert!(check("x", &"a".repeat(1025)).is_err());
    }

    #[test]
    fn a_prefix_may_be_empty_or_end_in_a_slash() {
        for prefix in ["", "a", "a/", "a/b/"] {
            assert!(check_prefix("x", prefix).is_ok(), "{prefix:?}");
        }
        for prefix in ["/", "a//", "../", "/a"] {
            assert!(check_prefix("x", prefix).is_err(), "{prefix:?}");
        }
        assert_eq!(directory("a/b//"), "a/b/");
        assert_eq!(directory("/"), "");
    }
}
