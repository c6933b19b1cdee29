//! Packs: blobs one after another, then a sealed header that lists them, then the header's length.

use crate::crypto::{Key, OVERHEAD};
use crate::error::{Error, Result};
use crate::id::Id;

/// A pack is closed when it reaches this size (restic's default). One blob more may follow: at most 24 MiB in all.
pub(crate) const TARGET: usize = 16 << 20;
/// The header's length, little endian, ends the file.
pub(crate) const LENGTH: usize = 4;
/// type, stored length, id.
const PLAIN_ENTRY: usize = 1 + 4 + 32;
/// type, stored length, plain length, id.
const COMPRESSED_ENTRY: usize = PLAIN_ENTRY + 4;
/// restic refuses longer headers.
const MAX_HEADER: usize = 16 << 20;
/// A pack holds no more blobs than this: whoever reads its header, or the index file that lists it, holds it in memory.
pub(crate) const MAX_BLOBS: usize = 50_000;

/// What a blob holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum BlobKind {
    /// A piece of a file.
    Data,
    /// A directory.
    Tree,
}

impl BlobKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Tree => "tree",
        }
    }
}

/// A blob in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedBlob {
    pub(crate) kind: BlobKind,
    pub(crate) id: Id,
    /// Where its sealed bytes begin.
    pub(crate) offset: u32,
    /// Length of its sealed bytes.
    pub(crate) length: u32,
    /// Length of the plain bytes where they are compressed, else 0.
    pub(crate) uncompressed: u32,
}

impl PackedBlob {
    /// Length of the blob's plain bytes.
    pub(crate) fn plain_len(&self) -> u32 {
        match self.uncompressed {
            0 => self.length.saturating_sub(OVERHEAD as u32),
            length => length,
        }
    }

    fn entry_len(&self) -> usize {
        if self.uncompressed == 0 {
            PLAIN_ENTRY
        } else {
            COMPRESSED_ENTRY
        }
    }
}

/// Bytes that the header of a pack with these blobs takes at the end of the file.
pub(crate) fn header_len<'a>(blobs: impl Iterator<Item = &'a PackedBlob>) -> u64 {
    let entries: usize = blobs.map(PackedBlob::entry_len).sum();
    (entries + OVERHEAD + LENGTH) as u64
}

/// Appends the sealed header and its length to a pack's blobs.
pub(crate) fn finish(pack: &mut Vec<u8>, blobs: &[PackedBlob], key: &Key) -> Result<()> {
    let mut header = Vec::with_capacity(blobs.len() * COMPRESSED_ENTRY);
    for blob in blobs {
        let tag = match (blob.kind, blob.uncompressed) {
            (BlobKind::Data, 0) => 0,
            (BlobKind::Tree, 0) => 1,
            (BlobKind::Data, _) => 2,
            (BlobKind::Tree, _) => 3,
        };
        header.push(tag);
        header.extend_from_slice(&blob.length.to_le_bytes());
        if blob.uncompressed != 0 {
            header.extend_from_slice(&blob.uncompressed.to_le_bytes());
        }
        header.extend_from_slice(&blob.id.0);
    }
    let start = pack.len();
    key.seal(&header, pack)?;
    let length = u32::try_from(pack.len() - start)
        .map_err(|_| Error::Internal("a pack header is too long".into()))?;
    pack.extend_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Length of the sealed header, from the last bytes of a pack of `size` bytes.
pub(crate) fn sealed_header_len(name: &str, tail: &[u8], size: u64) -> Result<usize> {
    let corrupt = |reason: &str| Error::corrupt(name, reason);
    let last: [u8; LENGTH] = tail
        .last_chunk()
        .copied()
        .ok_or_else(|| corrupt("it is too short for a pack"))?;
    let length = u32::from_le_bytes(last) as usize;
    if !(OVERHEAD + PLAIN_ENTRY..=MAX_HEADER).contains(&length) || (length + LENGTH) as u64 > size {
        return Err(corrupt("its header has an impossible length"));
    }
    Ok(length)
}

/// Opens and parses a pack's sealed header; `size` is the whole file's.
pub(crate) fn parse_header(
    name: &str,
    sealed: &mut [u8],
    size: u64,
    key: &Key,
) -> Result<Vec<PackedBlob>> {
    let corrupt = |reason: &str| Error::corrupt(name, reason);
    let end = size.saturating_sub((sealed.len() + LENGTH) as u64);
    let mut rest: &[u8] = key
        .open(sealed)
        .map_err(|_| corrupt("its header cannot be authenticated"))?;
    let mut blobs = Vec::with_capacity(rest.len() / PLAIN_ENTRY);
    let mut offset = 0_u64;
    while let [tag, tail @ ..] = rest {
        let kind = match tag {
            0 | 2 => BlobKind::Data,
            1 | 3 => BlobKind::Tree,
            _ => return Err(corrupt("its header has an entry of an unknown type")),
        };
        let number = |at: usize| {
            tail.get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_le_bytes)
                .ok_or_else(|| corrupt("its header ends within an entry"))
        };
        let length = number(0)?;
        let (uncompressed, id_at) = if *tag >= 2 { (number(4)?, 8) } else { (0, 4) };
        let id: [u8; 32] = tail
            .get(id_at..id_at + 32)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| corrupt("its header ends within an entry"))?;
        if offset + u64::from(length) > end {
            return Err(corrupt("its header lists more than it holds"));
        }
        let start = u32::try_from(offset).map_err(|_| corrupt("it is larger than 4 GiB"))?;
        blobs.push(PackedBlob {
            kind,
            id: Id(id),
            offset: start,
            length,
            uncompressed,
        });
        offset += u64::from(length);
        rest = &tail[id_at + 32..];
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::from_bytes(&[9; 64])
    }

    fn read(pack: &[u8]) -> Result<Vec<PackedBlob>> {
        let length = sealed_header_len("data/x", pack, pack.len() as u64)?;
        let start = pack.len() - LENGTH - length;
        parse_header(
            "data/x",
            &mut pack[start..pack.len() - LENGTH].to_vec(),
            pack.len() as u64,
            &key(),
        )
    }

    proptest! {
        #[test]
        fn round_trip(parts in proptest::collection::vec((any::<bool>(), 0..200u32, 0..300u32, any::<[u8; 32]>()), 1..50)) {
            let mut pack = Vec::new();
            let mut blobs = Vec::new();
            for (tree, length, uncompressed, id) in parts {
                let kind = if tree { BlobKind::Tree } else { BlobKind::Data };
                let offset = u32::try_from(pack.len()).unwrap();
                blobs.push(PackedBlob { kind, id: Id(id), offset, length, uncompressed });
                pack.resize(pack.len() + length as usize, 1);
            }
            let content = pack.len() as u64;
            finish(&mut pack, &blobs, &key()).unwrap();
            prop_assert_eq!(pack.len() as u64, content + header_len(blobs.iter()));
            prop_assert_eq!(read(&pack).unwrap(), blobs);
        }

        #[test]
        fn hostile_headers_are_errors(header in proptest::collection::vec(any::<u8>(), 0..300), tail in any::<u32>()) {
            let mut pack = key().seal_slice(&header).unwrap();
            let length = u32::try_from(pack.len()).unwrap();
            pack.extend_from_slice(&length.to_le_bytes());
            let _ = read(&pack);
            let at = pack.len() - LENGTH;
            pack[at..].copy_from_slice(&tail.to_le_bytes());
            let _ = read(&pack);
            let _ = read(&pack[..at.min(3)]);
        }
    }

    #[test]
    fn no_more_is_read_than_a_header_can_have() {
        let size = 100 << 20;
        let length = |length: u32| sealed_header_len("data/x", &length.to_le_bytes(), size).ok();
        let (least, most) = ((OVERHEAD + PLAIN_ENTRY) as u32, MAX_HEADER as u32);
        for sound in [least, least + 1, most] {
            assert_eq!(length(sound), Some(sound as usize));
        }
        for wrong in [
            0,
            1,
            4,
            least - 1,
            most + 1,
            size as u32,
            i32::MAX as u32,
            u32::MAX,
        ] {
            assert_eq!(length(wrong), None, "{wrong}");
        }
        let whole = least.to_le_bytes();
        let small = u64::from(least) + LENGTH as u64;
        assert!(sealed_header_len("data/x", &whole, small).is_ok());
        assert!(sealed_header_len("data/x", &whole, small - 1).is_err());
        for size in 0..LENGTH {
            assert!(sealed_header_len("data/x", &whole[..size], size as u64).is_err());
        }
    }

    #[test]
    fn a_flipped_header_is_named() {
        let mut pack = vec![0; 40];
        let blob = PackedBlob {
            kind: BlobKind::Data,
            id: Id::of(b"x"),
            offset: 0,
            length: 40,
            uncompressed: 0,
        };
        finish(&mut pack, &[blob], &key()).unwrap();
        pack[45] ^= 1;
        let error = read(&pack).unwrap_err();
        assert_eq!(
            error.to_string(),
            "data/x is damaged: its header cannot be authenticated"
        );
    }
}
