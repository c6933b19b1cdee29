//! zstd, with contexts that are reused: making one costs more than a small blob.

use std::cell::RefCell;
use std::io::Read;
use std::thread::LocalKey;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::error::{Error, Result};

/// What restic's default is close to.
const LEVEL: i32 = 3;
/// Enough to see whether there is anything to gain.
const LOOK_LEVEL: i32 = 1;

/// Data of at least this length is looked at before it is compressed.
const LOOK_FROM: usize = 128 << 10;
/// The look: so many samples of this length, from all over the data.
const SAMPLES: usize = 16;
const SAMPLE: usize = 4 << 10;

thread_local! {
    static LOOK: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
    static LOOKER: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static PACK: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACK: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Appends the compressed `plain` to `out`.
pub(crate) fn pack_into(out: &mut Vec<u8>, plain: &[u8]) -> Result<()> {
    pack_with(&PACK, LEVEL, out, plain)
}

fn pack_with(
    context: &'static LocalKey<RefCell<Option<Compressor<'static>>>>,
    level: i32,
    out: &mut Vec<u8>,
    plain: &[u8],
) -> Result<()> {
    let start = out.len();
    out.resize(start + zstd_safe::compress_bound(plain.len()), 0);
    let packed = context.with_borrow_mut(|context| -> std::io::Result<usize> {
        let context = match context {
            Some(context) => context,
            None => context.insert(Compressor::new(level)?),
        };
        context.compress_to_buffer(plain, &mut out[start..])
    });
    match packed {
        Ok(length) => {
            out.truncate(start + length);
            Ok(())
        }
        Err(error) => Err(Error::Internal(format!("zstd: {error}"))),
    }
}

/// Whether compressing is worth a try: what is compressed, encrypted or noise would only cost its time. Short data is
/// always tried.
pub(crate) fn is_promising(plain: &[u8]) -> Result<bool> {
    if plain.len() < LOOK_FROM {
        return Ok(true);
    }
    LOOK.with_borrow_mut(|(samples, packed)| {
        samples.clear();
        packed.clear();
        let step = (plain.len() - SAMPLE) / (SAMPLES - 1);
        for at in 0..SAMPLES {
            samples.extend_from_slice(&plain[at * step..at * step + SAMPLE]);
        }
        pack_with(&LOOKER, LOOK_LEVEL, packed, samples)?;
        // One half-empty sample is enough of a promise.
        Ok(packed.len() < samples.len() - samples.len() / 64)
    })
}

/// zstd makes at most 128 KiB of four bytes: a repeated byte.
const MOST: usize = (128 << 10) / 4;

/// Decompresses into exactly `length` bytes; `None` where it is anything else.
pub(crate) fn unpack(packed: &[u8], length: usize, out: &mut Vec<u8>) -> Option<()> {
    out.clear();
    // Before memory is taken for what cannot be.
    if length > packed.len().saturating_mul(MOST) {
        return None;
    }
    out.resize(length, 0);
    let unpacked = UNPACK.with_borrow_mut(|context| -> std::io::Result<usize> {
        let context = match context {
            Some(context) => context,
            None => context.insert(Decompressor::new()?),
        };
        context.decompress_to_buffer(packed, &mut out[..])
    });
    (unpacked.ok()? == length).then_some(())
}

/// Decompresses what does not say how long it is, up to `limit` bytes.
pub(crate) fn unpack_unknown(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
    let mut out = Vec::new();
    decoder
        .by_ref()
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .ok()?;
    (out.len() <= limit).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_promises_nothing_and_a_part_of_text_does() {
        let mut state = 1_u64;
        let mut data: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .take(1 << 20)
        .collect();
        assert!(!is_promising(&data).unwrap());
        assert!(is_promising(&data[..1000]).unwrap(), "short data is tried");
        data[400 << 10..500 << 10].fill(b'a');
        assert!(is_promising(&data).unwrap());
    }

    #[test]
    fn round_trip() {
        let plain = b"abc".repeat(1000);
        let mut packed = b"head".to_vec();
        pack_into(&mut packed, &plain).unwrap();
        assert!(packed.len() < 100 && packed.starts_with(b"head"));
        let mut out = Vec::new();
        unpack(&packed[4..], plain.len(), &mut out).unwrap();
        assert_eq!(out, plain);
        assert_eq!(unpack_unknown(&packed[4..], 3000), Some(plain.clone()));
        assert_eq!(unpack_unknown(&packed[4..], 2999), None);
        assert!(unpack(&packed[4..], plain.len() - 1, &mut out).is_none());
        assert!(unpack(&packed[4..], plain.len() + 1, &mut out).is_none());
        assert!(unpack(b"nothing", 5, &mut out).is_none());
    }

    #[test]
    fn takes_no_memory_for_impossible_lengths() {
        let plain = vec![0; 8 << 20];
        let mut packed = Vec::new();
        pack_into(&mut packed, &plain).unwrap();
        let mut out = Vec::new();
        assert!(unpack(&packed, 1 << 31, &mut out).is_none());
        assert_eq!(out.capacity(), 0);
        unpack(&packed, plain.len(), &mut out).unwrap();
        assert_eq!(out, plain);
    }
}
