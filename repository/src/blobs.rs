//! Reading blobs.

use std::sync::Arc;

use crate::compress;
use crate::crypto::Key;
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::hash::Hash;
use crate::id::Id;
use crate::index::Index;
use crate::pack::{BlobKind, PackedBlob};

/// A blob's plain length beyond which nothing is believed: chunks end at 8 MiB, trees of millions of entries below 2 GiB.
const MAX_PLAIN: u32 = 1 << 31;

/// A sealed blob, and room for its plain bytes where they are compressed.
pub(crate) type Sealed<'a> = (&'a PackedBlob, &'a mut [u8], &'a mut Vec<u8>);

/// Opens a sealed blob in place and returns its verified plain bytes, in `sealed` or, decompressed, in `scratch`.
pub(crate) fn open<'a>(
    key: &Key,
    blob: &PackedBlob,
    sealed: &'a mut [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], &'static str> {
    let plain = decrypt(key, blob, sealed, scratch)?;
    named(Id::of(plain), blob, plain)
}

/// Opens two blobs, which costs less than one after the other: they are hashed beside each other.
pub(crate) fn open_both<'a>(
    key: &Key,
    one: Sealed<'a>,
    other: Sealed<'a>,
) -> [Result<&'a [u8], &'static str>; 2] {
    let blobs = [one.0, other.0];
    let plain = [one, other].map(|(blob, sealed, scratch)| decrypt(key, blob, sealed, scratch));
    let [Ok(one), Ok(other)] = plain else {
        let [one, other] = plain;
        let check = |plain: Result<&'a [u8], _>, blob| {
            plain.and_then(|plain| named(Id::of(plain), blob, plain))
        };
        return [check(one, blobs[0]), check(other, blobs[1])];
    };
    let mut hashes = [Hash::default(), Hash::default()];
    let [first, second] = &mut hashes;
    first.update_both(one, second, other);
    let [first, second] = hashes.map(Hash::finish);
    [named(first, blobs[0], one), named(second, blobs[1], other)]
}

fn named<'a>(id: Id, blob: &PackedBlob, plain: &'a [u8]) -> Result<&'a [u8], &'static str> {
    match id == blob.id {
        true => Ok(plain),
        false => Err("its content does not match its name"),
    }
}

fn decrypt<'a>(
    key: &Key,
    blob: &PackedBlob,
    sealed: &'a mut [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], &'static str> {
    let plain = key.open(sealed).map_err(|_| "it cannot be authenticated")?;
    let plain: &[u8] = if blob.uncompressed == 0 {
        plain
    } else {
        if blob.uncompressed >= MAX_PLAIN {
            return Err("its size is impossible");
        }
        compress::unpack(plain, blob.uncompressed as usize, scratch)
            .ok_or("it cannot be decompressed")?;
        scratch
    };
    Ok(plain)
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
