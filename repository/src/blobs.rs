//! Reading blobs.

use std::sync::Arc;

use crate::compress;
use crate::crypto::{Key, Opening, SLICE};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::hash::Hash;
use crate::id::Id;
use crate::index::Index;
use crate::pack::{BlobKind, PackedBlob};

/// A blob's plain length beyond which nothing is believed: chunks end at 8 MiB, trees of millions of entries below 2 GiB.
const MAX_PLAIN: u32 = 1 << 31;
const UNAUTHENTIC: &str = "it cannot be authenticated";

/// Opens a sealed blob in place and returns its verified plain bytes, in `sealed` or, decompressed, in `scratch`.
fn open<'a>(
    key: &Key,
    blob: &'a PackedBlob,
    sealed: &'a mut [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], &'static str> {
    let mut lane = Lane::begin(key, blob, sealed, scratch)?;
    while !lane.is_done(scratch) {
        let (hash, plain) = lane.step(scratch);
        hash.update(plain);
    }
    lane.finish(scratch)
}

/// Opens blobs of a pack in `bytes`, which begin at `start` of it, and hands over each with its verified plain bytes or the
/// reason why there are none. The blobs have to be sorted by offset and lie apart; an error of `done` ends it.
///
/// Two are under way at once, slice by slice: what is deciphered is hashed while it is in the processor's first cache, and
/// two hashes beside each other cost little more than one.
pub(crate) fn open_each<'a, T, E>(
    key: &Key,
    bytes: &'a mut [u8],
    start: u64,
    blobs: impl Iterator<Item = (T, &'a PackedBlob)>,
    scratch: &mut [Vec<u8>; 2],
    mut done: impl FnMut(T, Result<&[u8], &'static str>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut rest, mut at) = (bytes, start);
    let mut blobs = blobs.map(|(user, blob)| {
        let end = u64::from(blob.offset) + u64::from(blob.length);
        let skip = u64::from(blob.offset).checked_sub(at);
        let sealed = skip.and_then(|skip| {
            let (_, from) = std::mem::take(&mut rest).split_at_mut_checked(skip as usize)?;
            let (sealed, after) = from.split_at_mut_checked(blob.length as usize)?;
            (rest, at) = (after, end);
            Some(sealed)
        });
        (user, blob, sealed)
    });
    let mut lanes = [None, None];
    loop {
        for (lane, scratch) in lanes.iter_mut().zip(scratch.iter_mut()) {
            while lane.is_none()
                && let Some((user, blob, sealed)) = blobs.next()
            {
                let begun = sealed
                    .ok_or("the pack is missing or too short")
                    .and_then(|sealed| Lane::begin(key, blob, sealed, scratch));
                match begun {
                    Ok(begun) => *lane = Some((user, begun)),
                    Err(reason) => done(user, Err(reason))?,
                }
            }
        }
        let steps = lanes.iter_mut().zip(scratch.iter());
        let mut steps = steps.filter_map(|(lane, scratch)| Some(lane.as_mut()?.1.step(scratch)));
        match (steps.next(), steps.next()) {
            (Some((one, plain)), Some((other, others))) => one.update_both(plain, other, others),
            (Some((one, plain)), None) => one.update(plain),
            (None, _) => return Ok(()),
        }
        for (lane, scratch) in lanes.iter_mut().zip(scratch.iter()) {
            if let Some((user, lane)) = lane.take_if(|(_, lane)| lane.is_done(scratch)) {
                done(user, lane.finish(scratch))?;
            }
        }
    }
}

/// A blob that is being opened.
struct Lane<'a> {
    blob: &'a PackedBlob,
    hash: Hash,
    content: Content<'a>,
}

enum Content<'a> {
    Stored(Box<Opening<'a>>),
    /// Decompressed, in the scratch that belongs to the lane; so many bytes are hashed.
    Compressed {
        hashed: usize,
    },
}

impl<'a> Lane<'a> {
    fn begin(
        key: &Key,
        blob: &'a PackedBlob,
        sealed: &'a mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Self, &'static str> {
        let opening = key.opening(sealed).map_err(|_| UNAUTHENTIC)?;
        let content = if blob.uncompressed == 0 {
            Content::Stored(Box::new(opening))
        } else {
            if blob.uncompressed >= MAX_PLAIN {
                return Err("its size is impossible");
            }
            let packed = opening.all().map_err(|_| UNAUTHENTIC)?;
            compress::unpack(packed, blob.uncompressed as usize, scratch)
                .ok_or("it cannot be decompressed")?;
            Content::Compressed { hashed: 0 }
        };
        Ok(Self {
            blob,
            hash: Hash::default(),
            content,
        })
    }

    /// What to hash next.
    fn step<'b>(&'b mut self, scratch: &'b [u8]) -> (&'b mut Hash, &'b [u8]) {
        let plain = match &mut self.content {
            Content::Stored(opening) => opening.step(),
            Content::Compressed { hashed } => {
                let rest = &scratch[*hashed..];
                let slice = &rest[..rest.len().min(SLICE)];
                *hashed += slice.len();
                slice
            }
        };
        (&mut self.hash, plain)
    }

    fn is_done(&self, scratch: &[u8]) -> bool {
        match &self.content {
            Content::Stored(opening) => opening.is_done(),
            Content::Compressed { hashed } => *hashed == scratch.len(),
        }
    }

    fn finish<'b>(self, scratch: &'b [u8]) -> Result<&'b [u8], &'static str>
    where
        'a: 'b,
    {
        let plain = match self.content {
            Content::Stored(opening) => opening.finish().map_err(|_| UNAUTHENTIC)?,
            Content::Compressed { .. } => scratch,
        };
        match self.hash.finish() == self.blob.id {
            true => Ok(plain),
            false => Err("its content does not match its name"),
        }
    }
}

/// Reads single blobs by their ids.
#[derive(Debug, Clone)]
pub(crate) struct BlobReader {
    pub(crate) files: Files,
    pub(crate) index: Arc<Index>,
}

impl BlobReader {
    /// The blob's plain bytes. Where it is in several packs, one sound copy is enough.
    pub(crate) async fn load(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        let name = || format!("{} {id}", kind.name());
        let mut failure = Error::corrupt(name(), "no index lists it");
        for place in self.index.find(kind, id) {
            let pack = FileKind::Pack.path(&self.index.pack_id(place.pack));
            let (start, length) = (u64::from(place.blob.offset), u64::from(place.blob.length));
            failure = match self
                .files
                .store
                .get_range(&pack, start..start + length)
                .await
            {
                Ok(bytes) => {
                    let mut sealed = Vec::from(bytes);
                    let mut scratch = Vec::new();
                    match open(&self.files.key, &place.blob, &mut sealed, &mut scratch) {
                        Ok(_) if place.blob.uncompressed != 0 => return Ok(scratch),
                        Ok(plain) => return Ok(plain.to_vec()),
                        Err(reason) => Error::corrupt(pack, format!("{}: {reason}", name())),
                    }
                }
                Err(
                    error @ (jackline_storage::Error::NotFound { .. }
                    | jackline_storage::Error::ShortRead { .. }),
                ) => Error::corrupt(pack, format!("{}: {error}", name())),
                Err(error) => Error::Storage(error),
            };
        }
        Err(failure)
    }

    /// The nodes of a tree.
    pub(crate) async fn tree(&self, id: &Id) -> Result<Vec<crate::tree::Node>> {
        crate::tree::parse(id, &self.load(BlobKind::Tree, id).await?)
    }
}
