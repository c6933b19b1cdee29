//! SHA-256 in pieces, and of two messages beside each other: the processor's instructions wait for their own results
//! half of the time, so the second message costs little where the first is hashed anyway.

use sha2::block_api::compress256;

use crate::id::Id;

type Block = [u8; BLOCK];
const BLOCK: usize = 64;

/// A message that is hashed as it comes.
#[derive(Debug, Clone)]
pub(crate) struct Hash {
    state: [u32; 8],
    /// What is no whole block yet: `length` says how much of it is used.
    rest: Block,
    length: u64,
}

impl Default for Hash {
    fn default() -> Self {
        Self {
            state: [
                0x6a09_e667,
                0xbb67_ae85,
                0x3c6e_f372,
                0xa54f_f53a,
                0x510e_527f,
                0x9b05_688c,
                0x1f83_d9ab,
                0x5be0_cd19,
            ],
            rest: [0; BLOCK],
            length: 0,
        }
    }
}

impl Hash {
    pub(crate) fn update(&mut self, data: &[u8]) {
        let blocks = self.blocks(data);
        compress256(&mut self.state, blocks);
    }

    /// Adds to two messages.
    pub(crate) fn update_both(&mut self, data: &[u8], other: &mut Hash, others: &[u8]) {
        let (ours, theirs) = (self.blocks(data), other.blocks(others));
        let together = ours.len().min(theirs.len());
        let ((ours, left), (theirs, right)) = (ours.split_at(together), theirs.split_at(together));
        compress_both([&mut self.state, &mut other.state], [ours, theirs]);
        compress256(&mut self.state, left);
        compress256(&mut other.state, right);
    }

    /// Completes the block that was begun, keeps the bytes that are no whole block, and returns the blocks between.
    fn blocks<'a>(&mut self, mut data: &'a [u8]) -> &'a [Block] {
        let used = (self.length % BLOCK as u64) as usize;
        self.length += data.len() as u64;
        if used > 0 {
            let (head, tail) = data.split_at(data.len().min(BLOCK - used));
            self.rest[used..used + head.len()].copy_from_slice(head);
            if used + head.len() < BLOCK {
                return &[];
            }
            compress256(&mut self.state, std::slice::from_ref(&self.rest));
            data = tail;
        }
        let (blocks, tail) = data.as_chunks();
        self.rest[..tail.len()].copy_from_slice(tail);
        blocks
    }

    pub(crate) fn finish(mut self) -> Id {
        let bits = self.length * 8;
        let used = (self.length % BLOCK as u64) as usize;
        // One bit, zeros, and the length at the end of a block.
        let zeros = (2 * BLOCK - 9 - used) % BLOCK;
        let mut end = [0; 2 * BLOCK];
        end[0] = 0x80;
        end[zeros + 1..zeros + 9].copy_from_slice(&bits.to_be_bytes());
        self.update(&end[..zeros + 9]);
        let mut id = Id::default();
        for (bytes, word) in id.0.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        id
    }
}

/// The same number of blocks of each.
#[allow(unsafe_code)]
fn compress_both(states: [&mut [u32; 8]; 2], blocks: [&[Block]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
        // SAFETY: the processor has both features; ssse3 comes with sse4.1.
        return unsafe { beside::compress(states, blocks) };
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod beside {
    use std::arch::x86_64::*;

    use super::Block;

    /// What both streams hold: a vector each.
    type Pair = [__m128i; 2];

    #[rustfmt::skip]
    const ROUND: [[u32; 4]; 16] = [
        [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5], [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
        [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3], [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
        [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc], [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
        [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7], [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
        [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13], [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
        [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3], [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
        [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5], [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
        [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208], [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
    ];

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[Block]; 2]) {
        let zero = _mm_setzero_si128();
        let (mut abef, mut cdgh): (Pair, Pair) = ([zero; 2], [zero; 2]);
        for at in 0..2 {
            let [a, b, c, d, e, f, g, h] = *states[at];
            abef[at] = words(f, e, b, a);
            cdgh[at] = words(h, g, d, c);
        }
        for (first, second) in blocks[0].iter().zip(blocks[1]) {
            let before = (abef, cdgh);
            // The last 16 words of each message.
            let mut w = [[zero; 2]; 4];
            for (quarter, w) in w.iter_mut().enumerate() {
                *w = [load(first, quarter), load(second, quarter)];
                rounds(quarter, &mut abef, &mut cdgh, *w);
            }
            for quarter in 4..16 {
                let at = quarter % 4;
                let (next, after, last) = (w[(at + 1) % 4], w[(at + 2) % 4], w[(at + 3) % 4]);
                for s in 0..2 {
                    let sum = _mm_add_epi32(
                        _mm_sha256msg1_epu32(w[at][s], next[s]),
                        _mm_alignr_epi8::<4>(last[s], after[s]),
                    );
                    w[at][s] = _mm_sha256msg2_epu32(sum, last[s]);
                }
                rounds(quarter, &mut abef, &mut cdgh, w[at]);
            }
            for s in 0..2 {
                abef[s] = _mm_add_epi32(abef[s], before.0[s]);
                cdgh[s] = _mm_add_epi32(cdgh[s], before.1[s]);
            }
        }
        for (at, state) in states.into_iter().enumerate() {
            let [f, e, b, a] = split(abef[at]);
            let [h, g, d, c] = split(cdgh[at]);
            *state = [a, b, c, d, e, f, g, h];
        }
    }

    /// Four rounds of both.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds(quarter: usize, abef: &mut Pair, cdgh: &mut Pair, w: Pair) {
        let [a, b, c, d] = ROUND[quarter];
        let constants = words(a, b, c, d);
        let first = [
            _mm_add_epi32(w[0], constants),
            _mm_add_epi32(w[1], constants),
        ];
        for s in 0..2 {
            cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], first[s]);
        }
        for s in 0..2 {
            let second = _mm_shuffle_epi32::<0x0e>(first[s]);
            abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], second);
        }
    }

    /// Four words of a block, which holds them with the highest byte first.
    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    fn load(block: &Block, quarter: usize) -> __m128i {
        let (halves, _) = block[quarter * 16..quarter * 16 + 16].as_chunks();
        let (low, high) = (i64::from_le_bytes(halves[0]), i64::from_le_bytes(halves[1]));
        let turn = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        _mm_shuffle_epi8(_mm_set_epi64x(high, low), turn)
    }

    /// The lowest word comes first.
    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn words(a: u32, b: u32, c: u32, d: u32) -> __m128i {
        _mm_set_epi32(d as i32, c as i32, b as i32, a as i32)
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn split(words: __m128i) -> [u32; 4] {
        [
            _mm_extract_epi32::<0>(words) as u32,
            _mm_extract_epi32::<1>(words) as u32,
            _mm_extract_epi32::<2>(words) as u32,
            _mm_extract_epi32::<3>(words) as u32,
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_and_pairs_hash_as_a_whole(
            first in proptest::collection::vec(any::<u8>(), 0..1000),
            second in proptest::collection::vec(any::<u8>(), 0..1000),
            cut in any::<proptest::sample::Index>(),
        ) {
            let (mut a, mut b) = (Hash::default(), Hash::default());
            let cuts = [cut.index(first.len() + 1), cut.index(second.len() + 1)];
            a.update_both(&first[..cuts[0]], &mut b, &second[..cuts[1]]);
            a.update_both(&first[cuts[0]..], &mut b, &second[cuts[1]..]);
            prop_assert_eq!(a.finish(), Id::of(&first));
            prop_assert_eq!(b.finish(), Id::of(&second));
            let mut alone = Hash::default();
            alone.update(&first[..cuts[0]]);
            alone.update(&first[cuts[0]..]);
            prop_assert_eq!(alone.finish(), Id::of(&first));
        }
    }
}
