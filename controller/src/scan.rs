//! JSON that anybody may have written, looked at before it is parsed: what is small as text may fill the memory as values.

/// Tells structure from what stands in strings, byte by byte.
#[derive(Debug, Default)]
pub struct Scan {
    string: bool,
    escaped: bool,
    depth: u64,
}

impl Scan {
    /// Takes the next byte; whether it is outside of strings.
    pub fn step(&mut self, byte: u8) -> bool {
        if self.string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else {
                self.string = byte != b'"';
            }
            return false;
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        true
    }

    /// Whether no list, object or string is open.
    pub fn is_between(&self) -> bool {
        !self.string && self.depth == 0
    }
}

/// How much memory a text takes at most when it is parsed, about. An object of one field takes a node with room for eleven, a list of
/// one value has room for four.
pub fn weight(text: &[u8]) -> u64 {
    let mut scan = Scan::default();
    let parts = text.iter().map(|&byte| match (scan.step(byte), byte) {
        (true, b'{') => 640,
        (true, b'[') => 128,
        (true, b',') => 100,
        // What the allocator adds to a string.
        (true, b'"') => 32,
        _ => 0,
    });
    text.len() as u64 + parts.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_weigh_what_they_are_long() {
        let text = br#""[{,\"[[[{{{,,,""#;
        assert_eq!(weight(text), text.len() as u64 + 32);
        // The backslash before the last quote is itself escaped.
        assert_eq!(weight(br#"["\\",{}]"#), 9 + 128 + 32 + 100 + 640);
    }

    #[test]
    fn many_small_values_weigh_what_they_take() {
        let objects = format!("[{}]", vec![r#"{"":0}"#; 1000].join(","));
        // A node of a map, and its place in the list.
        assert!(weight(objects.as_bytes()) > 1000 * (632 + 32));
        let numbers = format!("[{}]", vec!["0"; 1000].join(","));
        assert!(weight(numbers.as_bytes()) > 1000 * 2 * 32);
    }

    #[test]
    fn a_value_ends_where_nothing_is_open() {
        let mut scan = Scan::default();
        let ends: Vec<bool> = br#"{"a":["}"]}"#
            .iter()
            .map(|&byte| {
                scan.step(byte);
                scan.is_between()
            })
            .collect();
        assert_eq!(ends.iter().position(|end| *end), Some(ends.len() - 1));
    }
}
