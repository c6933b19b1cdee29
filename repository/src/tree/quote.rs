//! Strings as Go writes them: names quoted as in Go source, then everything escaped as `encoding/json` does.

use super::printable::is_printable;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `name` as the inside of a Go string literal, escaped for JSON; without quotation marks around it.
pub(crate) fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    if name
        .iter()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' | b'_' | b' '))
    {
        out.extend_from_slice(name);
        return;
    }
    let mut literal = Vec::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            write_go_char(&mut literal, c);
        }
        for byte in chunk.invalid() {
            literal.extend_from_slice(b"\\x");
            push_hex(&mut literal, u32::from(*byte), 2);
        }
    }
    write_json(out, &literal);
}

fn write_go_char(out: &mut Vec<u8>, c: char) {
    let escape = match c {
        '"' => b'"',
        '\\' => b'\\',
        '\x07' => b'a',
        '\x08' => b'b',
        '\x0c' => b'f',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\x0b' => b'v',
        c if is_printable(c) => {
            push_char(out, c);
            return;
        }
        c => {
            let code = u32::from(c);
            let (letter, width) = match code {
                0..0x20 | 0x7f => (b'x', 2),
                0..0x10000 => (b'u', 4),
                _ => (b'U', 8),
            };
            out.extend_from_slice(&[b'\\', letter]);
            push_hex(out, code, width);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', escape]);
}

/// Appends `text` escaped for JSON with Go's HTML escapes; without quotation marks. What is not UTF-8 is replaced.
pub(crate) fn write_json(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\x08' => out.extend_from_slice(b"\\b"),
                '\x0c' => out.extend_from_slice(b"\\f"),
                '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.extend_from_slice(b"\\u");
                    push_hex(out, u32::from(c), 4);
                }
                c => push_char(out, c),
            }
        }
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// The bytes of a name that was written as a Go string literal; `None` where it is none.
pub(crate) fn unquote(literal: &str) -> Option<Vec<u8>> {
    if !literal.bytes().any(|b| matches!(b, b'\\' | b'"' | b'\n')) {
        return Some(literal.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(literal.len());
    let mut rest = literal.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'"' | b'\n' => return None,
            b'\\' => rest = unescape(&mut out, rest)?,
            byte => out.push(*byte),
        }
    }
    Some(out)
}

fn unescape<'a>(out: &mut Vec<u8>, rest: &'a [u8]) -> Option<&'a [u8]> {
    let (kind, rest) = rest.split_first()?;
    let simple = match kind {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'\\' | b'"' => *kind,
        b'x' => {
            out.push(u8::try_from(number(rest.get(..2)?, 16)?).ok()?);
            return rest.get(2..);
        }
        b'u' | b'U' => {
            let width = if *kind == b'u' { 4 } else { 8 };
            push_char(out, char::from_u32(number(rest.get(..width)?, 16)?)?);
            return rest.get(width..);
        }
        b'0'..=b'7' => {
            let value = u32::from(kind - b'0') * 64 + number(rest.get(..2)?, 8)?;
            out.push(u8::try_from(value).ok()?);
            return rest.get(2..);
        }
        _ => return None,
    };
    out.push(simple);
    Some(rest)
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    digits.iter().try_fold(0_u32, |sum, b| {
        sum.checked_mul(radix)?
            .checked_add(char::from(*b).to_digit(radix)?)
    })
}

fn push_char(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn push_hex(out: &mut Vec<u8>, value: u32, width: usize) {
    for at in (0..width).rev() {
        out.push(HEX[(value >> (4 * at)) as usize & 15]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write_name(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    fn json(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write_json(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_as_go_quotes_them() {
        assert_eq!(name("näme".as_bytes()), "näme");
        assert_eq!(name(b"a\"b\\c"), r#"a\\\"b\\\\c"#);
        assert_eq!(name(b"\x01\x7f\xff\n"), r"\\x01\\x7f\\xff\\n");
        assert_eq!(name("\u{a0}\u{e0001}".as_bytes()), r"\\u00a0\\U000e0001");
        assert_eq!(name(b"<&>"), r"\u003c\u0026\u003e");
        assert_eq!(name("\u{fffd}".as_bytes()), "\u{fffd}");
    }

    /// What the standard library of Go 1.26 makes of them. restic 0.14 was built with one that knows Unicode 13 only.
    #[test]
    fn names_as_newer_go_quotes_them() {
        assert_eq!(name("\u{61d}\u{1fae8}".as_bytes()), "\u{61d}\u{1fae8}");
        assert_eq!(name("\u{1c89}\u{2ffc}".as_bytes()), r"\\u1c89\\u2ffc");
        assert_eq!(
            name("\u{1fae9}\u{16100}".as_bytes()),
            r"\\U0001fae9\\U00016100"
        );
        assert_eq!(
            name(b"\xef\xbf\xbd\xff\xed\xa0\x80"),
            "\u{fffd}\\\\xff\\\\xed\\\\xa0\\\\x80"
        );
        assert_eq!(name(b"a\x08\x0c\x0b\x7fz"), r"a\\b\\f\\v\\x7fz");
    }

    #[test]
    fn link_targets_as_go_escapes_them() {
        assert_eq!(
            json(b"/a\xff\x08\x0c\x01<\xe2\x82"),
            r"/a\ufffd\b\f\u0001\u003c\ufffd\ufffd"
        );
        assert_eq!(json(b"/a\xff\x01\x08\x7f"), "/a\\ufffd\\u0001\\b\x7f");
        assert_eq!(json("\u{2028}".as_bytes()), r"\u2028");
    }

    #[test]
    fn refuses_what_is_no_literal() {
        for text in [
            "\"",
            "\\",
            "\\x",
            "\\x1",
            "\\q",
            "\\ud800",
            "\\U00110000",
            "\\777",
            "\\'",
            "\\u+123",
        ] {
            assert_eq!(unquote(text), None, "{text}");
        }
        assert_eq!(unquote(r"\101\x00"), Some(b"A\0".to_vec()));
    }

    proptest! {
        #[test]
        fn names_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text: String = serde_json::from_str(&format!("\"{}\"", name(&bytes))).unwrap();
            prop_assert_eq!(unquote(&text), Some(bytes));
        }

        #[test]
        fn unicode_names_round_trip(text in ".{0,20}") {
            let back: String = serde_json::from_str(&format!("\"{}\"", name(text.as_bytes()))).unwrap();
            prop_assert_eq!(unquote(&back), Some(text.clone().into_bytes()));
            let back: String = serde_json::from_str(&format!("\"{}\"", json(text.as_bytes()))).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
