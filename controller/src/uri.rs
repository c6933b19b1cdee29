//! Names of objects in the URIs of requests.

/// A name as a part of a URI. A few kinds take nearly any name (a Role `a?b`), and the client leaves it as it is.
pub fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// The same of a name that anybody may have written; `None` for what names nothing: the API server refuses it as a path, or drops a slash.
pub fn name(name: &str) -> Option<String> {
    let none = matches!(name, "" | "." | "..") || name.contains(['/', '%']);
    (!none).then(|| encoded(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_uri() {
        assert_eq!(encoded("system:node-1.example"), "system:node-1.example");
        assert_eq!(
            encoded("victim?x#y/z%2f ä"),
            "victim%3Fx%23y%2Fz%252f%20%C3%A4"
        );
        assert_eq!(name("a?b").as_deref(), Some("a%3Fb"));
        for nothing in ["", ".", "..", "b/", "../b", "50%"] {
            assert_eq!(name(nothing), None, "{nothing}");
        }
    }
}
