//! Entry points for `make fuzz`: each gives a parser what anybody may have put into a repository. A parser may refuse it;
//! it may not panic, use memory out of proportion, or read differently what it wrote itself.

use jiff::tz::TimeZone;

use crate::config::Config;
use crate::crypto::Key;
use crate::id::Id;
use crate::index;
use crate::key::KeyFile;
use crate::lock::StoredLock;
use crate::mark;
use crate::pack;
use crate::snapshot::Snapshot;
use crate::tree;

const NAME: &str = "fuzzed";

/// A pack's header, authentic and not.
pub fn pack_header(data: &[u8]) {
    let key = Key::from_bytes(&[9; 64]);
    let size = data.len() as u64;
    if let Ok(length) = pack::sealed_header_len(NAME, data, size) {
        let end = data.len().saturating_sub(pack::LENGTH);
        if let Some(sealed) = data.get(end.saturating_sub(length)..end) {
            let _ = pack::parse_header(NAME, &mut sealed.to_vec(), size, &key);
        }
    }
    // Up to 2^39 bytes, so that what the header lists may fit.
    let (first, header) = data.split_first().unwrap_or((&0, &[]));
    let size = 1_u64 << (first % 40);
    if let Ok(mut sealed) = key.seal_slice(header)
        && let Ok(blobs) = pack::parse_header(NAME, &mut sealed, size, &key)
    {
        let held: u64 = blobs.iter().map(|blob| u64::from(blob.length)).sum();
        assert!(held <= size, "a header lists more than the pack holds");
    }
}

/// An index file.
pub fn index(data: &[u8]) {
    let Ok(parsed) = index::parse(NAME, data) else {
        return;
    };
    let written = index::to_json(&parsed.packs).and_then(|json| index::parse(NAME, &json));
    assert_eq!(written.map(|file| file.packs).ok(), Some(parsed.packs));
}

/// A tree, by both of its readers.
pub fn tree(data: &[u8]) {
    let id = Id::default();
    let references = mark::references(&id, data);
    let Ok(nodes) = tree::parse(&id, data) else {
        return;
    };
    let mut json = tree::HEAD.to_vec();
    for (at, node) in nodes.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        node.write(&mut json, &TimeZone::UTC);
    }
    json.extend_from_slice(tree::FOOT);
    assert_eq!(tree::parse(&id, &json).ok(), Some(nodes.clone()));
    if let Ok(references) = references {
        let trees: Vec<Id> = nodes.iter().filter_map(|node| node.subtree).collect();
        let data = nodes.iter().flat_map(|node| node.content.iter().flatten());
        assert_eq!(references.trees, trees);
        assert!(references.data.iter().eq(data));
    }
}

/// A snapshot.
pub fn snapshot(data: &[u8]) {
    if let Ok(snapshot) = serde_json::from_slice::<Snapshot>(data) {
        let written = serde_json::to_vec(&snapshot).ok();
        let back = written.and_then(|json| serde_json::from_slice::<Snapshot>(&json).ok());
        assert_eq!(back, Some(snapshot));
    }
}

/// A lock.
pub fn lock(data: &[u8]) {
    if let Ok(lock) = StoredLock::parse(NAME, data) {
        let written = lock
            .to_json()
            .and_then(|json| StoredLock::parse(NAME, &json));
        assert_eq!(written.map(|back| back.holder()).ok(), Some(lock.holder()));
    }
}

/// A key file, without the work of opening it.
pub fn key(data: &[u8]) {
    let _ = KeyFile::parse(NAME, data);
}

/// A config.
pub fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(data, NAME) {
        let written = config.to_json().and_then(|json| Config::parse(&json, NAME));
        let polynomial = written.map(|back| back.polynomial);
        assert_eq!(polynomial.ok(), Some(config.polynomial));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 7] = [
        ("pack_header", pack_header),
        ("index", index),
        ("tree", tree),
        ("snapshot", snapshot),
        ("lock", lock),
        ("key", key),
        ("config", config),
    ];

    fn fuzz() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"))
    }

    #[test]
    fn every_parser_is_fuzzed() {
        let names = |dir: &str| -> BTreeSet<String> {
            fs::read_dir(fuzz().join(dir))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect()
        };
        let known: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("targets"), known);
        assert_eq!(names("seeds"), known);
    }

    /// A sample of what the fuzzer does, on every seed: cut off anywhere, each byte replaced by those that mean something.
    #[test]
    fn seeds_and_what_is_close_to_them_are_read_or_refused() {
        for (name, target) in TARGETS {
            for seed in fs::read_dir(fuzz().join("seeds").join(name)).unwrap() {
                let seed = fs::read(seed.unwrap().path()).unwrap();
                target(&seed);
                for at in 0..seed.len() {
                    target(&seed[..at]);
                    target(&seed[at..]);
                    let mut changed = seed.clone();
                    for byte in [0, b'"', b'\\', b'[', b'{', b'9', b'-', 0xff, seed[at] ^ 1] {
                        changed[at] = byte;
                        target(&changed);
                    }
                }
            }
        }
    }

    #[test]
    fn deep_and_endless_nesting_is_refused() {
        const DEPTH: usize = 1 << 20;
        for (name, target) in TARGETS {
            let seed = fs::read_dir(fuzz().join("seeds").join(name))
                .unwrap()
                .next();
            let seed = fs::read(seed.unwrap().unwrap().path()).unwrap();
            for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"nodes\":", "}]")] {
                let deep = open.repeat(DEPTH);
                let closed = format!("{deep}0{}", close.repeat(DEPTH));
                for nested in [&deep, &closed] {
                    target(nested.as_bytes());
                    for field in ["nodes", "packs", "unknown"] {
                        target(format!("{{\"{field}\":{nested}}}").as_bytes());
                        // Within what is sound otherwise.
                        if let Some(rest) = seed.strip_prefix(b"{") {
                            let text = format!("{{\"{field}\":{nested},");
                            target(&[text.as_bytes(), rest].concat());
                        }
                    }
                }
            }
        }
    }
}
