//! Reading a tree node by node: of a large directory, or of a hostile one, only what is wanted is kept.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Hands over each node of the tree in `json`, in order, and stops at the first error. The error says what is wrong.
pub(crate) fn each_node<'de, T: Deserialize<'de>>(
    json: &'de [u8],
    each: impl FnMut(T) -> Result<(), String>,
) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let nodes = Nodes {
        each,
        seen: false,
        of: PhantomData,
    };
    Tree(nodes)
        .deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| error.to_string())
}

/// `{"nodes": …}` and whatever else a newer program may add.
struct Tree<F, T>(Nodes<F, T>);

/// The list of nodes, `null` where Go had none.
struct Nodes<F, T> {
    each: F,
    seen: bool,
    of: PhantomData<T>,
}

impl<'de, F, T> DeserializeSeed<'de> for Tree<F, T>
where
    F: FnMut(T) -> Result<(), String>,
    T: Deserialize<'de>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F, T> Visitor<'de> for Tree<F, T>
where
    F: FnMut(T) -> Result<(), String>,
    T: Deserialize<'de>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tree")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key != "nodes" {
                map.next_value::<IgnoredAny>()?;
            } else if std::mem::replace(&mut self.0.seen, true) {
                return Err(A::Error::duplicate_field("nodes"));
            } else {
                map.next_value_seed(&mut self.0)?;
            }
        }
        Ok(())
    }
}

impl<'de, F, T> DeserializeSeed<'de> for &mut Nodes<F, T>
where
    F: FnMut(T) -> Result<(), String>,
    T: Deserialize<'de>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F, T> Visitor<'de> for &mut Nodes<F, T>
where
    F: FnMut(T) -> Result<(), String>,
    T: Deserialize<'de>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut nodes: A) -> Result<(), A::Error> {
        while let Some(node) = nodes.next_element()? {
            (self.each)(node).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(json: &str) -> Result<Vec<u32>, String> {
        let mut found = Vec::new();
        each_node(json.as_bytes(), |number: u32| {
            found.push(number);
            match number {
                99 => Err("99 is enough".to_owned()),
                _ => Ok(()),
            }
        })?;
        Ok(found)
    }

    #[test]
    fn hands_over_every_node() {
        assert_eq!(numbers(r#"{"nodes":[1,2,3]}"#), Ok(vec![1, 2, 3]));
        assert_eq!(numbers(r#"{"a":[{}],"nodes":[4],"b":null} "#), Ok(vec![4]));
        for none in [r#"{"nodes":null}"#, "{}", r#"{"nodes":[]}"#] {
            assert_eq!(numbers(none), Ok(vec![]), "{none}");
        }
    }

    #[test]
    fn refuses_what_is_no_tree() {
        for json in [
            "",
            "[]",
            "null",
            "[[1]]",
            r#"{"nodes":1}"#,
            r#"{"nodes":{}}"#,
            r#"{"nodes":[1]"#,
            r#"{"nodes":[1]}x"#,
            r#"{"nodes":[1],"nodes":[2]}"#,
        ] {
            assert!(numbers(json).is_err(), "{json}");
        }
        let stopped = numbers(r#"{"nodes":[99,"no number"]}"#).unwrap_err();
        assert!(stopped.starts_with("99 is enough"), "{stopped}");
    }
}
