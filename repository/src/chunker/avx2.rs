//! The search for cuts on processors with AVX2: 32 places of the data at once.
//!
//! As with AVX-512 the fingerprints are kept byte by byte, plane j holding byte j of each, and a shift by eight bits is a
//! change of names. What is linear over GF(2) in a byte is the sum of what it is in the byte's two halves, and one
//! instruction looks up 32 halves in a table of 16.

use std::arch::x86_64::*;

use super::{Hits, WINDOW};
use crate::polynomial::Polynomial;

/// Streams searched beside each other.
pub(super) const STREAMS: usize = 32;
/// Steps between two transpositions of the data, and a window's length.
const BLOCK: usize = WINDOW;
/// Bytes of a fingerprint.
const PLANES: usize = 7;
/// Bits of the planes. What a shift moves above them is reduced; the few below that the degree leaves only when looked at,
/// so a new byte comes in where it is.
const BITS: u32 = 8 * PLANES as u32;
/// The only degree that leaves fewer bits than a half.
const DEGREE: u32 = 53;
/// Planes that bits 0 to 19 of a fingerprint lie in.
const LOOKED_AT: usize = 3;

/// A linear function of a byte: a byte of its value for each value of the lower and of the higher half.
type Halves = [[u8; 16]; 2];

/// One repository's polynomial as tables.
pub(super) struct Avx2 {
    /// What a byte that has left the window takes with it.
    out: [Halves; PLANES],
    /// What cancels the byte that a shift moves above the planes.
    reduce: [Halves; PLANES],
    /// What cancels the bits between the degree and the end of the planes, for each value of the last four.
    rest: [[u8; 16]; LOOKED_AT],
}

/// What a stream's 64 bytes are for: rows of one step each.
type Rows = [__m256i; BLOCK];

impl Avx2 {
    /// `None` where the processor or the polynomial is another.
    pub(super) fn new(polynomial: Polynomial) -> Option<Self> {
        if !is_x86_feature_detected!("avx2") || polynomial.degree() != DEGREE {
            return None;
        }
        let planes = |shift: u32| {
            std::array::from_fn(|plane| {
                [0, 4].map(|half| {
                    let byte = |value: usize| polynomial.shifted((value as u64) << half, shift);
                    std::array::from_fn(|value| (byte(value) >> (8 * plane)) as u8)
                })
            })
        };
        let above =
            |value: usize| polynomial.shifted((value as u64) >> (4 - (BITS - DEGREE)), DEGREE);
        Some(Self {
            out: planes(8 * WINDOW as u32),
            reduce: planes(BITS),
            rest: std::array::from_fn(|plane| {
                std::array::from_fn(|value| (above(value) >> (8 * plane)) as u8)
            }),
        })
    }

    /// The smallest candidate in (from, from + 32 · lane]; `lane` is a multiple of 64, and `from` at least a window.
    #[allow(unsafe_code)]
    pub(super) fn first_candidate(&self, data: &[u8], from: usize, lane: usize) -> Option<usize> {
        // SAFETY: `new` makes a value only where the processor has this feature.
        unsafe { self.search(data, from, lane) }
    }

    #[target_feature(enable = "avx2")]
    fn search(&self, data: &[u8], from: usize, lane: usize) -> Option<usize> {
        let zero = _mm256_setzero_si256();
        let mut planes = [zero; PLANES];
        let mut old = rows(&data[from - BLOCK..], lane);
        for row in old {
            planes = self.step(planes, zero, row);
        }
        let mut hits = Hits::<STREAMS>::new();
        for start in (0..lane).step_by(BLOCK) {
            let new = rows(&data[from + start..], lane);
            for at in 0..BLOCK {
                planes = self.step(planes, old[at], new[at]);
                let found = self.candidates(&planes);
                let place = |stream: usize| from + stream * lane + start + at + 1;
                if found != 0
                    && let Some(hit) = hits.add(found.into(), place)
                {
                    return Some(hit);
                }
            }
            old = new;
        }
        hits.smallest()
    }

    /// Moves all windows on by one byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn step(&self, planes: [__m256i; PLANES], old: __m256i, new: __m256i) -> [__m256i; PLANES] {
        let (top, old) = (halves(planes[PLANES - 1]), halves(old));
        let mut next = [_mm256_setzero_si256(); PLANES];
        for (plane, next) in next.iter_mut().enumerate() {
            let moved = if plane == 0 { new } else { planes[plane - 1] };
            let gone = _mm256_xor_si256(
                apply(&self.reduce[plane], top),
                apply(&self.out[plane], old),
            );
            *next = _mm256_xor_si256(moved, gone);
        }
        next
    }

    /// The streams whose fingerprint ends in 20 zeros.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn candidates(&self, planes: &[__m256i; PLANES]) -> u32 {
        let [_, top] = halves(planes[PLANES - 1]);
        let bits = |plane: usize| {
            let rest = _mm256_shuffle_epi8(table(&self.rest[plane]), top);
            _mm256_xor_si256(planes[plane], rest)
        };
        let last = _mm256_and_si256(bits(2), _mm256_set1_epi8(0x0f));
        let all = _mm256_or_si256(_mm256_or_si256(bits(0), bits(1)), last);
        let zeros = _mm256_cmpeq_epi8(all, _mm256_setzero_si256());
        _mm256_movemask_epi8(zeros) as u32
    }
}

/// The lower and the higher half of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(bytes: __m256i) -> [__m256i; 2] {
    let half = _mm256_set1_epi8(0x0f);
    let high = _mm256_srli_epi16::<4>(bytes);
    [_mm256_and_si256(bytes, half), _mm256_and_si256(high, half)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn apply(tables: &Halves, [low, high]: [__m256i; 2]) -> __m256i {
    _mm256_xor_si256(
        _mm256_shuffle_epi8(table(&tables[0]), low),
        _mm256_shuffle_epi8(table(&tables[1]), high),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(values: &[u8; 16]) -> __m256i {
    _mm256_broadcastsi128_si256(load(values))
}

/// 64 bytes of each stream, turned: row t holds byte t of all streams in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn rows(data: &[u8], lane: usize) -> Rows {
    let mut rows = [_mm256_setzero_si256(); BLOCK];
    let streams: [&[[u8; 16]]; STREAMS] = std::array::from_fn(|stream| {
        let (parts, _) = data[stream * lane..][..BLOCK].as_chunks();
        parts
    });
    for (part, rows) in rows.chunks_exact_mut(16).enumerate() {
        // Half of the streams in each half of the registers: the instructions below work on halves.
        let mut now: [__m256i; 16] = std::array::from_fn(|stream| {
            let (low, high) = (&streams[stream][part], &streams[stream + 16][part]);
            _mm256_set_m128i(load(high), load(low))
        });
        // A byte's row and column are eight bits, and each pass turns them by one: after four they have changed places.
        for _ in 0..4 {
            let mut next = now;
            for at in 0..8 {
                next[2 * at] = _mm256_unpacklo_epi8(now[at], now[at + 8]);
                next[2 * at + 1] = _mm256_unpackhi_epi8(now[at], now[at + 8]);
            }
            now = next;
        }
        rows.copy_from_slice(&now);
    }
    rows
}

#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: so many bytes are there, and the instruction wants them at no certain place.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
