//! The search for cuts on processors with AVX-512 and GFNI: 64 places of the data at once.
//!
//! Everything that the fingerprint needs is linear over GF(2), and one instruction applies an 8 × 8 matrix over GF(2)
//! to 64 bytes. So the fingerprints of 64 streams are kept byte by byte: plane j holds byte j of each. A shift by
//! eight bits is then a change of names, and the table look-ups, which are what a search waits for, become matrices.

use std::arch::x86_64::*;

use super::{Hits, WINDOW};
use crate::polynomial::Polynomial;

/// Streams searched beside each other.
pub(super) const STREAMS: usize = 64;
/// Steps between two transpositions of the data, and a window's length.
const BLOCK: usize = WINDOW;
/// Bytes of a fingerprint.
const PLANES: usize = 7;
/// The only degree that is shifted like this: bit 52 becomes the highest of seven bytes.
const DEGREE: u32 = 53;
const SHIFT: u32 = 8 * PLANES as u32 - DEGREE;

/// One repository's polynomial as matrices.
pub(super) struct Avx512 {
    /// What a byte that has left the window takes with it.
    out: [u64; PLANES],
    /// What cancels the byte that a shift moves above the degree.
    reduce: [u64; PLANES],
    /// Where a new byte comes in.
    new: [u64; 2],
}

/// What a stream's 64 bytes are for: rows of one step each.
type Rows = [__m512i; BLOCK];

impl Avx512 {
    /// `None` where the processor or the polynomial is another.
    pub(super) fn new(polynomial: Polynomial) -> Option<Self> {
        let able = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("gfni");
        if !able || polynomial.degree() != DEGREE {
            return None;
        }
        let planes = |f: &dyn Fn(u64) -> u64| {
            std::array::from_fn(|plane| matrix(|byte| (f(byte) << SHIFT >> (8 * plane)) as u8))
        };
        let new: [u64; PLANES] = planes(&|byte| byte);
        Some(Self {
            out: planes(&|byte| polynomial.shifted(byte, 8 * (WINDOW as u32 - 1))),
            reduce: planes(&|byte| polynomial.shifted(byte, DEGREE)),
            new: [new[0], new[1]],
        })
    }

    /// The smallest candidate in (from, from + 64 · lane]; `lane` is a multiple of 64, and `from` at least a window.
    #[allow(unsafe_code)]
    pub(super) fn first_candidate(&self, data: &[u8], from: usize, lane: usize) -> Option<usize> {
        // SAFETY: `new` makes a value only where the processor has all of these features.
        unsafe { self.search(data, from, lane) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn search(&self, data: &[u8], from: usize, lane: usize) -> Option<usize> {
        let mut planes = [_mm512_setzero_si512(); PLANES];
        let zero = [_mm512_setzero_si512(); BLOCK];
        let mut old = rows(&data[from - BLOCK..], lane);
        for row in old {
            planes = self.step(planes, zero[0], row);
        }
        let mut hits = Hits::<STREAMS>::new();
        for start in (0..lane).step_by(BLOCK) {
            let new = rows(&data[from + start..], lane);
            for at in 0..BLOCK {
                planes = self.step(planes, old[at], new[at]);
                // Bits 0 to 19 of the fingerprint lie in the first three planes.
                let last = _mm512_and_si512(planes[2], _mm512_set1_epi8(0x7f));
                let bits = _mm512_or_si512(_mm512_or_si512(planes[0], planes[1]), last);
                let found = _mm512_testn_epi8_mask(bits, bits);
                let place = |stream: usize| from + stream * lane + start + at + 1;
                if found != 0
                    && let Some(hit) = hits.add(found, place)
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
    fn step(&self, planes: [__m512i; PLANES], old: __m512i, new: __m512i) -> [__m512i; PLANES] {
        let out = |plane: usize| {
            let gone = apply(self.out[plane], old);
            _mm512_xor_si512(planes[plane], gone)
        };
        let top = out(PLANES - 1);
        let mut next = [_mm512_setzero_si512(); PLANES];
        for (plane, next) in next.iter_mut().enumerate() {
            let reduced = apply(self.reduce[plane], top);
            *next = if plane == 0 {
                reduced
            } else {
                _mm512_xor_si512(reduced, out(plane - 1))
            };
        }
        next[0] = _mm512_xor_si512(next[0], apply(self.new[0], new));
        next[1] = _mm512_xor_si512(next[1], apply(self.new[1], new));
        next
    }
}

/// The matrix of a linear function of a byte, as the instruction wants it: the row of the highest bit comes first.
fn matrix(f: impl Fn(u64) -> u8) -> u64 {
    let row = |bit: u32| (0..8).fold(0_u8, |row, from| row | (f(1 << from) >> bit & 1) << from);
    u64::from_le_bytes(std::array::from_fn(|at| row(7 - at as u32)))
}

#[inline]
#[target_feature(enable = "avx512f,gfni")]
fn apply(matrix: u64, bytes: __m512i) -> __m512i {
    _mm512_gf2p8affine_epi64_epi8::<0>(bytes, _mm512_set1_epi64(matrix as i64))
}

/// 64 bytes of each stream, turned: row t holds byte t of all streams in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn rows(data: &[u8], lane: usize) -> Rows {
    let zero = _mm512_setzero_si512();
    // Byte b of stream i of a group of eight comes from byte i · 8 + b.
    let turn: [u8; 64] = std::array::from_fn(|at| ((at % 8) * 8 + at / 8) as u8);
    let turn = load(&turn);
    let mut groups = [[zero; 8]; 8];
    for group in 0..8 {
        let mut words = [zero; 8];
        for (at, words) in words.iter_mut().enumerate() {
            *words = load(&data[(group * 8 + at) * lane..]);
        }
        let words = turn_words(&words);
        for at in 0..8 {
            groups[at][group] = _mm512_permutexvar_epi8(turn, words[at]);
        }
    }
    let mut rows = [zero; BLOCK];
    for (at, group) in groups.iter().enumerate() {
        rows[at * 8..at * 8 + 8].copy_from_slice(&turn_words(group));
    }
    rows
}

/// An 8 × 8 matrix of 64-bit words, transposed.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn_words(rows: &[__m512i; 8]) -> [__m512i; 8] {
    let mut turned = [_mm512_setzero_si512(); 8];
    for odd in 0..2 {
        let mut pairs = [_mm512_setzero_si512(); 4];
        for (at, pair) in pairs.iter_mut().enumerate() {
            let (first, second) = (rows[at * 2], rows[at * 2 + 1]);
            *pair = if odd == 0 {
                _mm512_unpacklo_epi64(first, second)
            } else {
                _mm512_unpackhi_epi64(first, second)
            };
        }
        // Of the 128-bit quarters, 0x88 takes the even ones of both, 0xdd the odd ones.
        let even = (
            _mm512_shuffle_i64x2::<0x88>(pairs[0], pairs[1]),
            _mm512_shuffle_i64x2::<0x88>(pairs[2], pairs[3]),
        );
        let uneven = (
            _mm512_shuffle_i64x2::<0xdd>(pairs[0], pairs[1]),
            _mm512_shuffle_i64x2::<0xdd>(pairs[2], pairs[3]),
        );
        turned[odd] = _mm512_shuffle_i64x2::<0x88>(even.0, even.1);
        turned[odd + 2] = _mm512_shuffle_i64x2::<0x88>(uneven.0, uneven.1);
        turned[odd + 4] = _mm512_shuffle_i64x2::<0xdd>(even.0, even.1);
        turned[odd + 6] = _mm512_shuffle_i64x2::<0xdd>(uneven.0, uneven.1);
    }
    turned
}

/// The first 64 bytes: one load for the compiler.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8]) -> __m512i {
    let (words, _) = bytes[..64].as_chunks::<8>();
    let word = |at: usize| i64::from_le_bytes(words[at]);
    _mm512_set_epi64(
        word(7),
        word(6),
        word(5),
        word(4),
        word(3),
        word(2),
        word(1),
        word(0),
    )
}
