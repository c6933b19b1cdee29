//! Which entries of a snapshot are restored: restic's patterns over the paths in it.
//!
//! A pattern that begins with `/` is matched from the root of what is restored, any other at every depth. `*`, `?`, `[…]`
//! and `\` mean what they mean to a shell and never match a slash; `**` is any number of directories, none included. What
//! lies below a match is matched too. Of several patterns the last that matches decides, and one that begins with `!`
//! takes back what others matched.

use std::path::Path;

use crate::error::{Error, Result};
use crate::report::Only;

/// Whether an entry is restored, and whether anything below it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) this: bool,
    pub(super) below: bool,
}

const ALL: Choice = Choice {
    this: true,
    below: true,
};

/// The patterns of a restore.
#[derive(Debug)]
pub(super) struct Selection {
    rules: Vec<Rule>,
    /// What is matched is restored; else what is not.
    include: bool,
}

#[derive(Debug)]
struct Rule {
    negated: bool,
    rooted: bool,
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Directories,
    Name(Vec<Token>),
}

#[derive(Debug, PartialEq)]
enum Token {
    One(u32),
    AnyOne,
    Any,
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
}

impl Selection {
    /// `Error::Invalid` for a pattern that means nothing.
    pub(super) fn new(only: &Only) -> Result<Self> {
        let (patterns, include) = match only {
            Only::Everything => (&[][..], false),
            Only::Included(patterns) if patterns.is_empty() => (&[][..], false),
            Only::Included(patterns) => (&patterns[..], true),
            Only::Excluded(patterns) => (&patterns[..], false),
        };
        let rules = patterns.iter().map(|pattern| Rule::parse(pattern));
        Ok(Self {
            rules: rules.collect::<Result<_>>()?,
            include,
        })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.rules.is_empty()
    }

    /// What becomes of the entry `name` of the directory `dir`.
    pub(super) fn choose(&self, dir: &Path, name: &[u8]) -> Choice {
        if self.is_everything() {
            return ALL;
        }
        let parts = dir.iter().map(|part| runes(part.as_encoded_bytes()));
        let path: Vec<Vec<u32>> = parts.chain([runes(name)]).collect();
        let (mut matched, mut below) = (false, false);
        for rule in &self.rules {
            let hit = rule.matches(&path);
            if rule.negated {
                matched &= !hit;
                below &= !hit;
            } else {
                matched |= hit;
                below |= rule.may_match_below(&path);
            }
        }
        match self.include {
            true => Choice {
                this: matched,
                below,
            },
            false => Choice {
                this: !matched,
                below: !matched,
            },
        }
    }
}

impl Rule {
    fn parse(pattern: &str) -> Result<Self> {
        let invalid = || Error::Invalid(format!("{pattern:?} is no pattern"));
        let (negated, text) = match pattern.strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, pattern),
        };
        if text.is_empty() {
            return Err(invalid());
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                "**" if parts.last() == Some(&Part::Directories) => {}
                "**" => parts.push(Part::Directories),
                part => parts.push(Part::Name(tokens(part).ok_or_else(invalid)?)),
            }
        }
        Ok(Self {
            negated,
            rooted: text.starts_with('/'),
            parts,
        })
    }

    fn matches(&self, path: &[Vec<u32>]) -> bool {
        match self.rooted {
            true => starts(&self.parts, path),
            false => (0..path.len()).any(|from| starts(&self.parts, &path[from..])),
        }
    }

    fn may_match_below(&self, path: &[Vec<u32>]) -> bool {
        !self.rooted
            || self
                .parts
                .iter()
                .take_while(|part| **part != Part::Directories)
                .zip(path)
                .all(|(part, name)| matches!(part, Part::Name(tokens) if glob(tokens, name)))
    }
}

/// Whether the first names of a path are what the parts say.
fn starts(parts: &[Part], path: &[Vec<u32>]) -> bool {
    match (parts.split_first(), path.split_first()) {
        (None, _) => true,
        (Some((Part::Directories, rest)), _) => {
            (0..=path.len()).any(|from| starts(rest, &path[from..]))
        }
        (Some((Part::Name(tokens), rest)), Some((name, below))) => {
            glob(tokens, name) && starts(rest, below)
        }
        (Some((Part::Name(_), _)), None) => false,
    }
}

/// Characters, and bytes that are none as something else that no pattern names.
fn runes(name: &[u8]) -> Vec<u32> {
    let mut runes = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        runes.extend(chunk.valid().chars().map(u32::from));
        runes.extend(
            chunk
                .invalid()
                .iter()
                .map(|byte| NO_CHAR + u32::from(*byte)),
        );
    }
    runes
}

const NO_CHAR: u32 = 0x11_0000;

/// The tokens of one part; `None` where a bracket or a backslash is left open.
fn tokens(part: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = part.chars();
    while let Some(char) = rest.next() {
        tokens.push(match char {
            '*' if tokens.last() == Some(&Token::Any) => continue,
            '*' => Token::Any,
            '?' => Token::AnyOne,
            '\\' => Token::One(rest.next()?.into()),
            '[' => class(&mut rest)?,
            char => Token::One(char.into()),
        });
    }
    Some(tokens)
}

fn class(rest: &mut std::str::Chars<'_>) -> Option<Token> {
    let mut next = rest.next()?;
    let negated = next == '^';
    if negated {
        next = rest.next()?;
    }
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    while next != ']' || ranges.is_empty() {
        // Go takes neither of these as a member.
        if matches!(next, ']' | '-') {
            return None;
        }
        let from = if next == '\\' { rest.next()? } else { next };
        let mut to = from;
        next = rest.next()?;
        if next == '-' {
            to = rest.next()?;
            match to {
                ']' | '-' => return None,
                '\\' => to = rest.next()?,
                _ => {}
            }
            next = rest.next()?;
        }
        ranges.push((from.into(), to.into()));
    }
    Some(Token::Class { negated, ranges })
}

fn glob(tokens: &[Token], name: &[u32]) -> bool {
    let (mut token, mut at) = (0, 0);
    // Where to go on when the last `*` has to take one more.
    let mut retry = None;
    loop {
        let fits = match (tokens.get(token), name.get(at)) {
            (None, None) => return true,
            (Some(Token::Any), _) => {
                retry = Some((token, at));
                token += 1;
                continue;
            }
            (Some(Token::One(wanted)), Some(rune)) => wanted == rune,
            (Some(Token::AnyOne), Some(_)) => true,
            (Some(Token::Class { negated, ranges }), Some(rune)) => {
                ranges.iter().any(|(from, to)| (from..=to).contains(&rune)) != *negated
            }
            _ => false,
        };
        if fits {
            token += 1;
            at += 1;
        } else {
            match retry {
                Some((star, from)) if from < name.len() => {
                    retry = Some((star, from + 1));
                    (token, at) = (star + 1, from + 1);
                }
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(only: &Only, path: &str) -> (bool, bool) {
        let path = Path::new(path);
        let dir = path.parent().unwrap();
        let name = path.file_name().unwrap().as_encoded_bytes();
        let choice = Selection::new(only).unwrap().choose(dir, name);
        (choice.this, choice.below)
    }

    fn included(pattern: &str, path: &str) -> (bool, bool) {
        choose(&Only::Included(vec![pattern.into()]), path)
    }

    #[test]
    fn patterns_mean_what_they_mean_to_restic() {
        for (pattern, path, this) in [
            ("foo", "foo", true),
            ("foo", "a/foo", true),
            ("foo", "a/foo/below", true),
            ("foo", "food", false),
            ("/foo", "a/foo", false),
            ("/foo", "foo/below", true),
            ("/foo/", "foo/below", true),
            ("/", "anything", true),
            ("a/b", "x/a/b/c", true),
            ("a/b", "a/x/b", false),
            ("*.go", "a/b.go", true),
            ("*.go", "a/b.go.x", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("/a/**/c", "a/c", true),
            ("/a/**/c", "a/b/b/c", true),
            ("/a/**/c", "b/a/c", false),
            ("/a/**", "a", true),
            ("x?z", "xyz", true),
            ("x?z", "xüz", true),
            ("x?z", "xz", false),
            ("[a-c]1", "b1", true),
            ("[^a-c]1", "b1", false),
            ("[a\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
        ] {
            assert_eq!(included(pattern, path).0, this, "{pattern} {path}");
        }
    }

    #[test]
    fn a_directory_is_entered_where_something_below_can_match() {
        assert_eq!(included("/a/b/c", "a"), (false, true));
        assert_eq!(included("/a/b/c", "b"), (false, false));
        assert_eq!(included("/a/b/c", "a/b"), (false, true));
        assert_eq!(included("/a/**/c", "a/x/y"), (false, true));
        assert_eq!(included("c", "anything"), (false, true));
        let excluded = Only::Excluded(vec!["/a/b".into()]);
        assert_eq!(choose(&excluded, "a"), (true, true));
        assert_eq!(choose(&excluded, "a/b"), (false, false));
        assert_eq!(choose(&Only::Everything, "a"), (true, true));
    }

    #[test]
    fn a_negated_pattern_takes_back() {
        let only = Only::Excluded(vec!["*.log".into(), "!keep.log".into()]);
        assert_eq!(choose(&only, "a/x.log"), (false, false));
        assert_eq!(choose(&only, "a/keep.log"), (true, true));
        let only = Only::Included(vec!["/a".into(), "!/a/b".into()]);
        assert_eq!(choose(&only, "a/b/c"), (false, false));
        assert!(choose(&only, "a/x").0);
    }

    #[test]
    fn names_that_are_no_text_are_matched_by_their_bytes() {
        let only = Only::Included(vec!["x?y".into()]);
        let selection = Selection::new(&only).unwrap();
        assert!(selection.choose(Path::new(""), b"x\xffy").this);
        assert!(!selection.choose(Path::new(""), b"x\xff\xfey").this);
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for pattern in ["", "!", "[", "[a", "[]", "a\\", "[a-]", "[-a]"] {
            let only = Only::Included(vec![pattern.into()]);
            assert!(
                matches!(Selection::new(&only), Err(Error::Invalid(_))),
                "{pattern}"
            );
        }
    }
}
