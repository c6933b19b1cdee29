//! Trees: the directories of a snapshot, as JSON that is byte for byte what restic writes.

mod node;
mod printable;
mod quote;
mod stream;
pub(crate) mod time;

pub(crate) use node::{Node, NodeKind, mode_from_unix, permissions};
pub(crate) use stream::each_node;

use crate::error::{Error, Result};
use crate::id::Id;

/// How a tree begins.
pub(crate) const HEAD: &[u8] = b"{\"nodes\":[";
/// How it ends.
pub(crate) const FOOT: &[u8] = b"]}\n";
/// The tree of an empty directory.
#[cfg(test)]
pub(crate) const EMPTY: &[u8] = b"{\"nodes\":[]}\n";

/// The nodes of a tree. Names are checked: none is empty, `.`, `..` or holds a slash or NUL, so that no reader can be led out
/// of its directory. Neither their order is promised nor that each is there once: whoever relies on it has to look.
pub(crate) fn parse(id: &Id, json: &[u8]) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    each_node(json, |node: node::RawNode<'_>| {
        let node = node.into_node()?;
        if !is_plain_name(&node.name) {
            let name = String::from_utf8_lossy(&node.name);
            return Err(format!("it holds the name {name:?}"));
        }
        nodes.push(node);
        Ok(())
    })
    .map_err(|reason| Error::corrupt(format!("tree {id}"), reason))?;
    Ok(nodes)
}

/// Whether this can be the name of a directory's entry.
pub(crate) fn is_plain_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn id() -> Id {
        Id::of(b"")
    }

    fn node() -> impl Strategy<Value = Node> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
        let name = bytes().prop_filter("a name", |name| is_plain_name(name));
        let when =
            (0_i64..4_000_000_000, 0_i64..1_000_000_000).prop_map(|(s, n)| time::from_unix(s, n));
        let ids = proptest::option::of(proptest::collection::vec(
            any::<[u8; 32]>().prop_map(Id),
            0..3,
        ));
        let xattrs =
            proptest::collection::vec(("[a-z.<]{1,9}".prop_map(String::into_bytes), bytes()), 0..3);
        (
            name,
            (when.clone(), when),
            any::<(u32, u32, u64, u64, u64)>(),
            bytes(),
            xattrs,
            ids,
            "[a-zä&]{0,5}",
        )
            .prop_map(
                |(
                    name,
                    (mtime, ctime),
                    (mode, uid, inode, size, links),
                    link_target,
                    xattrs,
                    content,
                    user,
                )| Node {
                    name,
                    kind: NodeKind::File,
                    mode,
                    mtime,
                    atime: mtime,
                    ctime,
                    uid,
                    gid: uid ^ 1,
                    user,
                    group: String::new(),
                    inode,
                    device_id: 7,
                    size,
                    links,
                    link_target,
                    xattrs,
                    device: 0,
                    subtree: content.as_ref().map(|_| Id::of(b"x")),
                    content,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(nodes in proptest::collection::vec(node(), 0..4)) {
            let mut json = HEAD.to_vec();
            for (at, node) in nodes.iter().enumerate() {
                if at > 0 {
                    json.push(b',');
                }
                node.write(&mut json, &TimeZone::UTC);
            }
            json.extend_from_slice(FOOT);
            prop_assert_eq!(parse(&id(), &json).unwrap(), nodes);
        }

        #[test]
        fn hostile_trees_are_errors(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&id(), &json);
        }
    }

    #[test]
    fn as_restic_writes_it() {
        let node = Node {
            name: b"a".to_vec(),
            kind: NodeKind::Fifo,
            mode: mode_from_unix(libc::S_IFIFO | 0o4644).unwrap().1,
            mtime: time::from_unix(1, 0),
            atime: time::from_unix(1, 0),
            ctime: time::from_unix(2, 500_000_000),
            uid: 0,
            gid: 5,
            user: "root".into(),
            group: String::new(),
            inode: 3,
            device_id: 4,
            size: 0,
            links: 0,
            link_target: Vec::new(),
            xattrs: vec![(b"user.x".to_vec(), Vec::new())],
            device: 0,
            content: None,
            subtree: None,
        };
        let mut json = Vec::new();
        node.write(&mut json, &TimeZone::UTC);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            concat!(
                r#"{"name":"a","type":"fifo","mode":41943460,"mtime":"1970-01-01T00:00:01Z","#,
                r#""atime":"1970-01-01T00:00:01Z","ctime":"1970-01-01T00:00:02.5Z","uid":0,"gid":5,"user":"root","#,
                r#""inode":3,"device_id":4,"extended_attributes":[{"name":"user.x","value":""}],"content":null}"#
            )
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let tree = |name: &str| {
            format!(
                r#"{{"nodes":[{{"name":"{name}","type":"file","mtime":"2020-01-01T00:00:00Z","atime":"2020-01-01T00:00:00Z","ctime":"2020-01-01T00:00:00Z"}}]}}"#
            )
        };
        assert_eq!(parse(&id(), tree("ok").as_bytes()).unwrap()[0].name, b"ok");
        for name in ["", ".", "..", "a/b", r"a\\x2fb", r"\\x00", r"\\x2e\\x2e"] {
            let error = parse(&id(), tree(name).as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error}");
        }
        assert_eq!(parse(&id(), EMPTY).unwrap(), vec![]);
    }
}
