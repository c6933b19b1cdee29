//! SHA-256 in pieces, and of several messages beside each other: the processor's instructions wait for their own results
//! most of the time, so a second, third and fourth message cost little where the first is hashed anyway.

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

/// So many messages are worth hashing beside each other.
pub(crate) const BESIDE: usize = 4;

/// Adds to at most [`BESIDE`] messages.
pub(crate) fn update_all<'a>(messages: impl Iterator<Item = (&'a mut Hash, &'a [u8])>) {
    let (mut states, mut blocks) = ([const { None }; BESIDE], [&[][..]; BESIDE]);
    let mut count = 0;
    for (hash, data) in messages.take(BESIDE) {
        blocks[count] = hash.blocks(data);
        states[count] = Some(&mut hash.state);
        count += 1;
    }
    loop {
        // Those that are done make room for the last.
        while let Some(done) = blocks[..count].iter().position(|blocks| blocks.is_empty()) {
            count -= 1;
            blocks.swap(done, count);
            states.swap(done, count);
        }
        let together = blocks[..count].iter().map(|blocks| blocks.len()).min();
        let now = blocks.map(|blocks| &blocks[..together.unwrap_or(0).min(blocks.len())]);
        let [a, b, c, d] = now;
        match &mut states[..count] {
            [Some(one)] => compress256(one, a),
            [Some(one), Some(two)] => compress([one, two], [a, b]),
            [Some(one), Some(two), Some(three)] => compress([one, two, three], [a, b, c]),
            [Some(one), Some(two), Some(three), Some(four)] => {
                compress([one, two, three, four], [a, b, c, d]);
            }
            _ => return,
        }
        for (blocks, now) in blocks.iter_mut().zip(now) {
            *blocks = &blocks[now.len()..];
        }
    }
}

/// The same number of blocks of each.
#[allow(unsafe_code)]
fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[Block]; N]) {
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

    /// What all streams hold: a vector each.
    type Set<const N: usize> = [__m128i; N];

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
    pub(super) fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[Block]; N]) {
        let zero = _mm_setzero_si128();
        let (mut abef, mut cdgh): (Set<N>, Set<N>) = ([zero; N], [zero; N]);
        for at in 0..N {
            let [a, b, c, d, e, f, g, h] = *states[at];
            abef[at] = words(f, e, b, a);
            cdgh[at] = words(h, g, d, c);
        }
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
        for block in 0..count {
            let before = (abef, cdgh);
            // The last 16 words of each message.
            let mut w = [[zero; N]; 4];
            for (quarter, w) in w.iter_mut().enumerate() {
                for (w, blocks) in w.iter_mut().zip(blocks) {
                    *w = load(&blocks[block], quarter);
                }
                rounds(quarter, &mut abef, &mut cdgh, *w);
            }
            for quarter in 4..16 {
                let at = quarter % 4;
                let (next, after, last) = (w[(at + 1) % 4], w[(at + 2) % 4], w[(at + 3) % 4]);
                for s in 0..N {
                    let sum = _mm_add_epi32(
                        _mm_sha256msg1_epu32(w[at][s], next[s]),
                        _mm_alignr_epi8::<4>(last[s], after[s]),
                    );
                    w[at][s] = _mm_sha256msg2_epu32(sum, last[s]);
                }
                rounds(quarter, &mut abef, &mut cdgh, w[at]);
            }
            for s in 0..N {
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

    /// Four rounds of all.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds<const N: usize>(quarter: usize, abef: &mut Set<N>, cdgh: &mut Set<N>, mut w: Set<N>) {
        let [a, b, c, d] = ROUND[quarter];
        let constants = words(a, b, c, d);
        for w in &mut w {
            *w = _mm_add_epi32(*w, constants);
        }
        for s in 0..N {
            cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], w[s]);
        }
        for s in 0..N {
            let second = _mm_shuffle_epi32::<0x0e>(w[s]);
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
        fn messages_in_pieces_beside_each_other_hash_as_a_whole(
            messages in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..1000), any::<proptest::sample::Index>()),
                1..=BESIDE,
            ),
        ) {
            let mut hashes = vec![Hash::default(); messages.len()];
            for second in [false, true] {
                update_all(hashes.iter_mut().zip(&messages).map(|(hash, (message, cut))| {
                    let (head, tail) = message.split_at(cut.index(message.len() + 1));
                    (hash, if second { tail } else { head })
                }));
            }
            for (hash, (message, cut)) in hashes.into_iter().zip(&messages) {
                prop_assert_eq!(hash.finish(), Id::of(message));
                let (head, tail) = message.split_at(cut.index(message.len() + 1));
                let mut alone = Hash::default();
                alone.update(head);
                alone.update(tail);
                prop_assert_eq!(alone.finish(), Id::of(message));
            }
        }
    }
}
