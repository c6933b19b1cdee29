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
