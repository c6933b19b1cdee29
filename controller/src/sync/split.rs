//! Takes a list of JSON apart without holding it: one entry at a time, and none that is too long.

use std::io::{self, BufRead};

use crate::scan::Scan;

/// Why a list could not be taken apart.
#[derive(Debug)]
pub enum SplitError {
    /// The source failed.
    Read(io::Error),
    /// There is more than is read.
    TooLarge,
    /// It is no list.
    Json(&'static str),
}

/// How much is read.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of the whole.
    pub total: u64,
    /// Bytes of an entry.
    pub entry: usize,
}

enum At {
    Start,
    /// In what begins like `null`, as Go writes an empty list.
    Null,
    Entries,
    End,
}

/// Hands the text of every entry to `each`, with its place, counted from one; `None` for one that is too long.
///
/// # Errors
/// When it is no list, or too large, or when `each` fails. What was handed out before must not be used then.
pub fn split<E: From<SplitError>>(
    mut source: impl BufRead,
    bounds: Bounds,
    mut each: impl FnMut(usize, Option<&[u8]>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut at, mut scan) = (At::Start, Scan::default());
    let (mut total, mut place, mut length) = (0_u64, 0_usize, 0_usize);
    let mut entry = Vec::new();
    loop {
        let chunk = source.fill_buf().map_err(SplitError::Read)?;
        if chunk.is_empty() {
            break;
        }
        total += chunk.len() as u64;
        if total > bounds.total {
            return Err(SplitError::TooLarge.into());
        }
        for &byte in chunk {
            let blank = byte.is_ascii_whitespace();
            match at {
                At::Start | At::End if blank => {}
                At::End => return Err(SplitError::Json("something follows the list").into()),
                At::Start if byte == b'[' => at = At::Entries,
                At::Start | At::Null => {
                    at = At::Null;
                    if !blank && entry.len() <= b"null".len() {
                        entry.push(byte);
                    }
                }
                At::Entries if blank && length == 0 => {}
                At::Entries if scan.is_between() && matches!(byte, b',' | b']') => {
                    let over = byte == b']';
                    let empty = over && place == 0 && length == 0;
                    if !empty {
                        place += 1;
                        each(place, (length <= bounds.entry).then_some(&entry))?;
                    }
                    entry.clear();
                    length = 0;
                    if over {
                        at = At::End;
                    }
                }
                At::Entries => {
                    scan.step(byte);
                    length += 1;
                    if length <= bounds.entry {
                        entry.push(byte);
                    }
                }
            }
        }
        let read = chunk.len();
        source.consume(read);
    }
    match at {
        At::End => Ok(()),
        At::Null if entry == b"null" => Ok(()),
        At::Null => Err(SplitError::Json("it is no list").into()),
        At::Start | At::Entries => Err(SplitError::Json("it is cut off").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, bounds: Bounds) -> Result<Vec<(usize, Option<String>)>, SplitError> {
        let mut found = Vec::new();
        // The shortest chunks there are.
        let source = io::BufReader::with_capacity(1, text.as_bytes());
        split(source, bounds, |place, entry| {
            let text = entry.map(|entry| String::from_utf8_lossy(entry).into_owned());
            found.push((place, text));
            Ok::<_, SplitError>(())
        })?;
        Ok(found)
    }

    const WIDE: Bounds = Bounds {
        total: 1000,
        entry: 100,
    };

    #[test]
    fn entries_come_one_at_a_time() {
        let list = r#" [ {"a,]\"": [1, 2]} , 7,"x,y"
            ] "#;
        let texts: Vec<_> = all(list, WIDE)
            .unwrap()
            .into_iter()
            .map(|(_, t)| t)
            .collect();
        let texts: Vec<_> = texts.iter().flatten().map(|text| text.trim()).collect();
        assert_eq!(texts, [r#"{"a,]\"": [1, 2]}"#, "7", r#""x,y""#]);
        for empty in ["[]", " [ ] ", "null", "null\n"] {
            assert_eq!(all(empty, WIDE).unwrap(), [], "{empty}");
        }
        // Whoever parses an empty entry finds that it is none.
        assert_eq!(all("[1,]", WIDE).unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_list_is_said() {
        for (text, want) in [
            ("", "it is cut off"),
            ("[1, 2", "it is cut off"),
            (r#"["]"#, "it is cut off"),
            ("{}", "it is no list"),
            ("nul", "it is no list"),
            ("nulll", "it is no list"),
            ("[] 1", "something follows the list"),
        ] {
            let error = all(text, WIDE).unwrap_err();
            assert!(
                matches!(error, SplitError::Json(why) if why == want),
                "{text}: {error:?}"
            );
        }
    }

    #[test]
    fn what_is_too_long_is_not_held() {
        let bounds = Bounds {
            total: 20,
            entry: 5,
        };
        let found = all(r#"["abc", "abcd", 1]"#, bounds).unwrap();
        let whole: Vec<_> = found
            .iter()
            .map(|(place, text)| (*place, text.is_some()))
            .collect();
        assert_eq!(whole, [(1, true), (2, false), (3, true)]);
        let long = format!("[{}1]", " ".repeat(20));
        assert!(matches!(all(&long, bounds), Err(SplitError::TooLarge)));
    }
}
