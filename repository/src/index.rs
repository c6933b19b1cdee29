//! The index: which blob lies where. A table of fixed-size entries, because a volume can have millions of blobs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::pack::{BlobKind, PackedBlob};
use crate::repository::off_runtime;

/// An index file is written when this many blobs are waiting for one (as in restic).
pub(crate) const FULL: usize = 50_000;
/// Index files read at once.
const CONCURRENCY: usize = 4;
/// Their stored bytes; one that is larger is read alone. In memory each becomes about seven times as large for a moment.
const READING: u32 = 8 << 20;
/// At most so many bytes of JSON for a blob.
const BLOB_JSON: usize = 170;
const TREE: u32 = 1 << 31;
const NONE: u32 = u32::MAX;

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the pack in [`Index::packs`].
    pub(crate) pack: u32,
    pub(crate) blob: PackedBlob,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: Id,
    pack: u32,
    offset: u32,
    length: u32,
    /// Plain length where compressed; the top bit says tree.
    uncompressed: u32,
    /// The next entry of the same blob: a blob may be in several packs.
    next: u32,
}

impl Entry {
    fn kind(&self) -> BlobKind {
        if self.uncompressed & TREE == 0 {
            BlobKind::Data
        } else {
            BlobKind::Tree
        }
    }

    fn location(&self) -> Location {
        let blob = PackedBlob {
            kind: self.kind(),
            id: self.id,
            offset: self.offset,
            length: self.length,
            uncompressed: self.uncompressed & !TREE,
        };
        Location {
            pack: self.pack,
            blob,
        }
    }
}

/// All blobs of a repository.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: Vec<Entry>,
    /// Open addressing over `entries`; the length is a power of two, at most 2/3 full.
    slots: Vec<u32>,
    distinct: usize,
    packs: Vec<Id>,
    numbers: HashMap<Id, u32>,
}

impl Index {
    /// Reads all index files. Returns their names too, for those who replace them.
    pub(crate) async fn load(files: &Files) -> Result<(Self, Vec<Id>)> {
        let listed = files.list(FileKind::Index).await?;
        let names = listed.iter().map(|(id, _)| *id).collect();
        let mut index = Self::default();
        let mut superseded = Vec::new();
        let room = Arc::new(Semaphore::new(READING as usize));
        let mut parsed = futures::stream::iter(listed)
            .map(|(id, meta)| load_file(files, id, meta.size, Arc::clone(&room)))
            .buffer_unordered(CONCURRENCY);
        while let Some(file) = parsed.try_next().await? {
            let Some((file, _held)) = file else { continue };
            superseded.extend(file.supersedes);
            for (pack, blobs) in file.packs {
                index.add_pack(pack, &blobs);
            }
        }
        if !superseded.is_empty() {
            tracing::debug!(files = superseded.len(), "superseded index files");
        }
        Ok((index, names))
    }

    /// Adds a pack and its blobs. The same pack may be in several index files; its blobs count once.
    pub(crate) fn add_pack(&mut self, pack: Id, blobs: &[PackedBlob]) {
        let number = match self.numbers.get(&pack) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.packs.len()).unwrap_or(NONE);
                self.packs.push(pack);
                self.numbers.insert(pack, number);
                number
            }
        };
        for blob in blobs {
            self.add(number, blob);
        }
    }

    fn add(&mut self, pack: u32, blob: &PackedBlob) {
        if (self.distinct + 1) * 3 > self.slots.len() * 2 {
            self.grow();
        }
        let tree = if blob.kind == BlobKind::Tree { TREE } else { 0 };
        let mut entry = Entry {
            id: blob.id,
            pack,
            offset: blob.offset,
            length: blob.length,
            uncompressed: blob.uncompressed | tree,
            next: NONE,
        };
        let number = u32::try_from(self.entries.len()).unwrap_or(NONE);
        let slot = self.slot(blob.kind, &blob.id);
        match self.slots[slot] {
            NONE => self.distinct += 1,
            first => {
                let same = |entry: &Entry| entry.pack == pack && entry.offset == blob.offset;
                if self.chain(first).any(same) {
                    return;
                }
                entry.next = first;
            }
        }
        self.slots[slot] = number;
        self.entries.push(entry);
    }

    fn chain(&self, first: u32) -> impl Iterator<Item = &Entry> {
        let at = |number: u32| self.entries.get(number as usize);
        std::iter::successors(at(first), move |entry| at(entry.next))
    }

    /// The slot of a blob: taken by it, or free.
    fn slot(&self, kind: BlobKind, id: &Id) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = id.bucket() as usize & mask;
        loop {
            match self.entries.get(self.slots[slot] as usize) {
                Some(entry) if entry.id != *id || entry.kind() != kind => slot = (slot + 1) & mask,
                _ => return slot,
            }
        }
    }

    fn grow(&mut self) {
        let length = (self.slots.len() * 2).max(1024);
        let old = std::mem::replace(&mut self.slots, vec![NONE; length]);
        for number in old.into_iter().filter(|number| *number != NONE) {
            let entry = self.entries[number as usize];
            let slot = self.slot(entry.kind(), &entry.id);
            self.slots[slot] = number;
        }
    }

    /// Every place where the blob lies, any of which will do.
    pub(crate) fn find(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = Location> {
        let first = if self.slots.is_empty() {
            NONE
        } else {
            self.slots[self.slot(kind, id)]
        };
        self.chain(first).map(Entry::location)
    }

    pub(crate) fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.find(kind, id).next().is_some()
    }

    /// The number of a blob among all entries, for tables beside the index: the same for all places of one blob.
    pub(crate) fn number(&self, kind: BlobKind, id: &Id) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        match self.slots[self.slot(kind, id)] {
            NONE => None,
            number => Some(number as usize),
        }
    }

    /// How many entries there are: one more than the largest [`Index::number`].
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All entries, also several of one blob.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Location> {
        self.entries.iter().map(Entry::location)
    }

    pub(crate) fn packs(&self) -> &[Id] {
        &self.packs
    }

    pub(crate) fn pack_id(&self, number: u32) -> Id {
        self.packs.get(number as usize).copied().unwrap_or_default()
    }

    pub(crate) fn has_pack(&self, id: &Id) -> bool {
        self.numbers.contains_key(id)
    }
}

/// One index file, and the room that it takes until it is in the table. `None`: another process merged it into a newer one
/// meanwhile; that one is listed or comes next time.
async fn load_file(
    files: &Files,
    id: Id,
    size: u64,
    room: Arc<Semaphore>,
) -> Result<Option<(IndexFile, OwnedSemaphorePermit)>> {
    let size = u32::try_from(size).unwrap_or(READING).min(READING);
    let held = room.acquire_many_owned(size).await;
    let held = held.map_err(|error| Error::Internal(error.to_string()))?;
    let json = match files.load(FileKind::Index, &id).await {
        Err(Error::Storage(error)) if error.is_not_found() => return Ok(None),
        json => json?,
    };
    let name = FileKind::Index.path(&id);
    let parsed = off_runtime(move || parse(&name, &json)).await?;
    Ok(Some((parsed, held)))
}

/// An index file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexFile {
    /// Files that this one replaced; they may be there still, and say nothing wrong then.
    pub(crate) supersedes: Vec<Id>,
    pub(crate) packs: Vec<(Id, Vec<PackedBlob>)>,
}

/// Parses an index file. `name` is for the error.
pub(crate) fn parse(name: &str, json: &[u8]) -> Result<IndexFile> {
    #[derive(Deserialize)]
    struct RawIndex<'a> {
        #[serde(default)]
        supersedes: Option<Vec<Id>>,
        #[serde(borrow)]
        packs: Option<Vec<RawPack<'a>>>,
    }
    #[derive(Deserialize)]
    struct RawPack<'a> {
        id: Id,
        #[serde(borrow)]
        blobs: Option<Vec<RawBlob<'a>>>,
    }
    #[derive(Deserialize)]
    struct RawBlob<'a> {
        id: Id,
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        offset: u32,
        length: u32,
        #[serde(default)]
        uncompressed_length: u32,
    }

    let corrupt = |reason: &str| Error::corrupt(name, reason);
    let raw: RawIndex<'_> =
        serde_json::from_slice(json).map_err(|error| Error::corrupt(name, error))?;
    let mut packs = Vec::new();
    for pack in raw.packs.into_iter().flatten() {
        let mut blobs = Vec::new();
        for blob in pack.blobs.into_iter().flatten() {
            let kind = match &*blob.kind {
                "data" => BlobKind::Data,
                "tree" => BlobKind::Tree,
                _ => return Err(corrupt("it lists a blob of an unknown type")),
            };
            if blob.uncompressed_length & TREE != 0
                || blob.offset.checked_add(blob.length).is_none()
            {
                return Err(corrupt("it lists a blob of impossible size"));
            }
            blobs.push(PackedBlob {
                kind,
                id: blob.id,
                offset: blob.offset,
                length: blob.length,
                uncompressed: blob.uncompressed_length,
            });
        }
        packs.push((pack.id, blobs));
    }
    Ok(IndexFile {
        supersedes: raw.supersedes.unwrap_or_default(),
        packs,
    })
}

/// The JSON of an index file.
pub(crate) fn to_json(packs: &[(Id, Vec<PackedBlob>)]) -> Result<Vec<u8>> {
    let blobs: usize = packs.iter().map(|(_, blobs)| blobs.len()).sum();
    // Growing step by step it would take twice the memory.
    let mut json = String::with_capacity((blobs + packs.len() + 1) * BLOB_JSON);
    json.push_str("{\"packs\":[");
    for (at, (id, blobs)) in packs.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(json, "{comma}{{\"id\":\"{id}\",\"blobs\":[");
        for (at, blob) in blobs.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(
                json,
                "{comma}{{\"id\":\"{}\",\"type\":\"{}\",\"offset\":{},\"length\":{}",
                blob.id,
                blob.kind.name(),
                blob.offset,
                blob.length
            );
            if blob.uncompressed != 0 {
                let _ = write!(json, ",\"uncompressed_length\":{}", blob.uncompressed);
            }
            json.push('}');
        }
        json.push_str("]}");
    }
    json.push_str("]}");
    Ok(json.into_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob() -> impl Strategy<Value = PackedBlob> {
        (
            any::<bool>(),
            any::<[u8; 32]>(),
            0..1_000_000u32,
            0..1_000_000u32,
            0..3_000_000u32,
        )
            .prop_map(|(tree, id, offset, length, uncompressed)| PackedBlob {
                kind: if tree { BlobKind::Tree } else { BlobKind::Data },
                id: Id(id),
                offset,
                length,
                uncompressed,
            })
    }

    proptest! {
        #[test]
        fn round_trip(packs in proptest::collection::vec((any::<[u8; 32]>().prop_map(Id), proptest::collection::vec(blob(), 0..5)), 0..5)) {
            let json = to_json(&packs).unwrap();
            prop_assert_eq!(parse("index/x", &json).unwrap(), IndexFile { supersedes: vec![], packs });
        }

        #[test]
        fn hostile_files_are_errors(json in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse("index/x", &json);
        }

        #[test]
        fn finds_what_was_added(blobs in proptest::collection::vec(blob(), 0..3000)) {
            let mut index = Index::default();
            let (first, second) = (Id::of(b"1"), Id::of(b"2"));
            index.add_pack(first, &blobs);
            index.add_pack(first, &blobs);
            for blob in &blobs {
                prop_assert!(index.find(blob.kind, &blob.id).any(|found| found.blob == *blob));
                let other = if blob.kind == BlobKind::Tree { BlobKind::Data } else { BlobKind::Tree };
                prop_assert!(!index.contains(other, &blob.id));
            }
            prop_assert_eq!(index.len(), blobs.len());
            index.add_pack(second, &blobs);
            prop_assert_eq!(index.len(), blobs.len() * 2);
            if let Some(blob) = blobs.first() {
                let packs: Vec<_> = index.find(blob.kind, &blob.id).map(|l| index.pack_id(l.pack)).collect();
                prop_assert_eq!(packs, vec![second, first]);
            }
        }
    }

    #[test]
    fn an_empty_index_finds_nothing() {
        assert!(!Index::default().contains(BlobKind::Data, &Id::default()));
        let error = parse("index/x", br#"{"packs":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","blobs":[{"id":"0000000000000000000000000000000000000000000000000000000000000000","type":"data","offset":4294967295,"length":2}]}]}"#);
        assert!(error.unwrap_err().to_string().contains("impossible size"));
    }
}
