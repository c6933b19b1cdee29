//! Where files are cut: content-defined, and bit for bit as restic cuts.
//!
//! With F the Rabin fingerprint of the 64 bytes before a position, the next cut after a start s is the first position
//! in [s + 512 KiB, s + 8 MiB] with F ≡ 0 (mod 2²⁰), else s + 8 MiB, else the end. F depends on those 64 bytes only, so
//! a range can be searched in several lanes at once: the chain of table look-ups per byte is what the search waits for.
//! Four lanes run everywhere; where the processor can, 32 or 64 do.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;

use crate::polynomial::Polynomial;

pub(crate) const MIN: usize = 512 << 10;
pub(crate) const MAX: usize = 8 << 20;
const WINDOW: usize = 64;
const MASK: u64 = (1 << 20) - 1;
/// Bytes searched at once: long enough for the lanes to pay, short enough not to search far behind a cut. Lanes of 32 or 64
/// parts of it lie in different sets of the processor's first cache; of a power of two they would all lie in one.
pub(crate) const PIECE: usize = 260 << 10;
const LANES: usize = 4;

/// The first candidate of each of some streams, which lie one behind the other in the data.
struct Hits<const STREAMS: usize> {
    first: [usize; STREAMS],
    /// The streams that have one.
    seen: u64,
}

impl<const STREAMS: usize> Hits<STREAMS> {
    fn new() -> Self {
        Self {
            first: [usize::MAX; STREAMS],
            seen: 0,
        }
    }

    /// Adds what was found in some streams at once; `place` is where. Returns what nothing can be before any more.
    fn add(&mut self, found: u64, place: impl Fn(usize) -> usize) -> Option<usize> {
        let mut new = found & !self.seen;
        self.seen |= new;
        while new != 0 {
            let stream = new.trailing_zeros() as usize;
            self.first[stream] = place(stream);
            new &= new - 1;
        }
        (self.seen & 1 != 0).then(|| self.first[0])
    }

    fn smallest(&self) -> Option<usize> {
        (self.seen != 0).then(|| self.first[self.seen.trailing_zeros() as usize])
    }
}

/// The look-up tables of one repository's polynomial.
pub(crate) struct Chunker {
    /// The fingerprint of a byte that has moved to the far end of the window.
    out: [u64; 256],
    /// What cancels the eight bits that a shift moves above the degree.
    reduce: [u64; 256],
    shift: u32,
    wide: Option<Wide>,
}

/// What the processor can do beyond the four lanes.
enum Wide {
    #[cfg(target_arch = "x86_64")]
    Avx2(Box<Avx2>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Wide {
    #[cfg(target_arch = "x86_64")]
    fn new(polynomial: Polynomial) -> Option<Self> {
        let best = Avx512::new(polynomial).map(Self::Avx512);
        best.or_else(|| Some(Self::Avx2(Box::new(Avx2::new(polynomial)?))))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(_: Polynomial) -> Option<Self> {
        None
    }

    fn streams(&self) -> usize {
        match *self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::STREAMS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => avx512::STREAMS,
        }
    }

    /// The smallest candidate in (from, from + streams · lane]; `lane` is a multiple of a window.
    fn first_candidate(&self, data: &[u8], from: usize, lane: usize) -> Option<usize> {
        match *self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(ref wide) => wide.first_candidate(data, from, lane),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(ref wide) => wide.first_candidate(data, from, lane),
        }
    }
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chunker")
    }
}

impl Chunker {
    pub(crate) fn new(polynomial: Polynomial) -> Self {
        let degree = polynomial.degree();
        let mut tables = Self {
            out: [0; 256],
            reduce: [0; 256],
            shift: degree - 8,
            wide: Wide::new(polynomial),
        };
        let bytes = (0_u64..).zip(tables.out.iter_mut().zip(&mut tables.reduce));
        for (byte, (out, reduce)) in bytes {
            *out = polynomial.shifted(byte, 8 * (WINDOW as u32 - 1));
            *reduce = polynomial.shifted(byte, degree) | byte << degree;
        }
        tables
    }

    /// Looks for the end of the chunk that starts at `data[0]`. Everything before `searched` is known to hold no cut.
    /// `Err(n)`: none in `data`, which is searched up to n now; read more or, at the end of the file, take it all.
    pub(crate) fn next_cut(&self, data: &[u8], searched: usize) -> Result<usize, usize> {
        let end = data.len().min(MAX);
        let mut from = searched.max(MIN - 1);
        while from < end {
            let to = end.min(from + PIECE);
            if let Some(cut) = self.first_candidate(data, from, to) {
                return Ok(cut);
            }
            from = to;
        }
        if data.len() >= MAX {
            Ok(MAX)
        } else {
            Err(searched.max(data.len()))
        }
    }

    /// The smallest candidate in (from, to]. `from` is at least a window away from the start of `data`.
    fn first_candidate(&self, data: &[u8], from: usize, to: usize) -> Option<usize> {
        if let Some(wide) = &self.wide {
            let lane = (to - from) / wide.streams() / WINDOW * WINDOW;
            let rest = from + lane * wide.streams();
            return wide
                .first_candidate(data, from, lane)
                .or_else(|| self.in_lanes(data, rest, to));
        }
        self.in_lanes(data, from, to)
    }

    /// The same, on any processor.
    fn in_lanes(&self, data: &[u8], from: usize, to: usize) -> Option<usize> {
        let lane = (to - from) / LANES;
        if lane == 0 {
            return self.search(data, from, to);
        }
        let start: [usize; LANES] = std::array::from_fn(|at| from + at * lane);
        let mut digest = start.map(|start| self.window(data, start));
        let slices = start.map(|start| {
            (
                &data[start..start + lane],
                &data[start - WINDOW..start - WINDOW + lane],
            )
        });
        // Only the first lane's first hit is final; in the others it is the first that counts.
        let mut hits = [usize::MAX; LANES];
        for at in 0..lane {
            for which in 0..LANES {
                let (new, old) = (slices[which].0[at], slices[which].1[at]);
                digest[which] = self.slide(digest[which], old, new);
            }
            if digest.iter().any(|digest| digest & MASK == 0) {
                if digest[0] & MASK == 0 {
                    return Some(start[0] + at + 1);
                }
                for which in 1..LANES {
                    if digest[which] & MASK == 0 {
                        hits[which] = hits[which].min(start[which] + at + 1);
                    }
                }
            }
        }
        let first = hits.into_iter().find(|hit| *hit != usize::MAX);
        first.or_else(|| self.search(data, from + LANES * lane, to))
    }

    fn search(&self, data: &[u8], from: usize, to: usize) -> Option<usize> {
        let mut digest = self.window(data, from);
        (from..to).find_map(|at| {
            digest = self.slide(digest, data[at - WINDOW], data[at]);
            (digest & MASK == 0).then_some(at + 1)
        })
    }

    /// The fingerprint of the window before `at`.
    fn window(&self, data: &[u8], at: usize) -> u64 {
        data[at - WINDOW..at]
            .iter()
            .fold(0, |digest, byte| self.append(digest, *byte))
    }

    #[inline(always)]
    fn slide(&self, digest: u64, old: u8, new: u8) -> u64 {
        self.append(digest ^ self.out[usize::from(old)], new)
    }

    #[inline(always)]
    fn append(&self, digest: u64, byte: u8) -> u64 {
        // The digest is below 2^degree, so this is one byte.
        let top = (digest >> self.shift) as u8;
        (digest << 8 | u64::from(byte)) ^ self.reduce[usize::from(top)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn polynomial() -> Polynomial {
        Polynomial::parse("3da3358b4dc173").unwrap()
    }

    /// The rule as it is written down, one bit at a time.
    fn slow_cut(data: &[u8]) -> usize {
        let polynomial = polynomial();
        let fingerprint = |window: &[u8]| {
            window
                .iter()
                .fold(0, |sum, byte| polynomial.shifted(sum, 8) ^ u64::from(*byte))
        };
        (MIN..=data.len().min(MAX))
            .find(|at| fingerprint(&data[at - WINDOW..*at]) & MASK == 0)
            .unwrap_or(data.len().min(MAX))
    }

    fn fast_cuts(data: &[u8], step: usize) -> Vec<usize> {
        cuts_by(&Chunker::new(polynomial()), data, step)
    }

    fn cuts_by(chunker: &Chunker, data: &[u8], step: usize) -> Vec<usize> {
        let (mut start, mut filled, mut searched) = (0, 0, 0);
        let mut cuts = Vec::new();
        while start < data.len() {
            filled = (filled + step).min(data.len()).max(start);
            match chunker.next_cut(&data[start..filled], searched) {
                Ok(cut) => {
                    start += cut;
                    searched = 0;
                    cuts.push(cut);
                    filled = filled.max(start);
                }
                Err(_) if filled == data.len() => {
                    cuts.push(filled - start);
                    break;
                }
                Err(up_to) => searched = up_to,
            }
        }
        cuts
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut data = vec![0; len];
        for byte in &mut data {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
        data
    }

    /// What the chunker of restic itself finds for these bytes.
    #[test]
    fn zeros_and_short_data() {
        assert_eq!(fast_cuts(&vec![0; 3 << 20], 1 << 20), vec![MIN; 6]);
        assert_eq!(fast_cuts(&[1; 100], 7), vec![100]);
        assert_eq!(fast_cuts(&[], 7), Vec::<usize>::new());
        let exact = noise(5, MIN);
        assert_eq!(fast_cuts(&exact, MIN), vec![MIN]);
    }

    impl Chunker {
        /// As on a processor with nothing but this.
        fn with(wide: Option<Wide>) -> Self {
            let polynomial = polynomial();
            Self {
                wide,
                ..Self::new(polynomial)
            }
        }

        /// As on every kind of processor that this one can pass for; first one that has nothing special.
        fn everywhere() -> Vec<Self> {
            let mut kinds = vec![Self::with(None)];
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = Avx2::new(polynomial()).map(Box::new).map(Wide::Avx2);
                let avx512 = Avx512::new(polynomial()).map(Wide::Avx512);
                let wide = [avx2, avx512].into_iter().flatten();
                kinds.extend(wide.map(|wide| Self::with(Some(wide))));
            }
            kinds
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]
        #[test]
        fn as_the_slow_rule(seed in any::<u64>(), len in MIN..MIN + (256 << 10), step in 1000..700_000_usize, zeros in 0..len_zeros()) {
            let mut data = noise(seed, len);
            let at = data.len() - zeros.min(data.len());
            data[at..].fill(0);
            let cuts = fast_cuts(&data, step);
            prop_assert_eq!(cuts[0], slow_cut(&data));
            prop_assert_eq!(cuts.iter().sum::<usize>(), data.len());
        }

        #[test]
        fn the_step_does_not_matter(seed in any::<u64>(), step in 1..3_000_000_usize) {
            let data = noise(seed, 12 << 20);
            prop_assert_eq!(fast_cuts(&data, step.max(10_000)), fast_cuts(&data, data.len()));
        }

        /// Noise, runs of one byte, and repetitions of every length, in one piece of data.
        #[test]
        fn every_processor_cuts_alike(parts in proptest::collection::vec((any::<u64>(), 1..3_000_000_usize, 0..5_usize, any::<u8>()), 1..8)) {
            let mut data = Vec::new();
            for (seed, len, kind, byte) in parts {
                match kind {
                    0 => data.resize(data.len() + len, byte),
                    1 => data.resize(data.len() + len, 0),
                    2 => {
                        let period = noise(seed, seed as usize % 5000 + 1);
                        data.extend(period.iter().cycle().take(len));
                    }
                    _ => data.extend(noise(seed, len)),
                }
            }
            let kinds = Chunker::everywhere();
            let expected = cuts_by(&kinds[0], &data, 256 << 10);
            for kind in &kinds[1..] {
                prop_assert_eq!(&cuts_by(kind, &data, 700_001), &expected);
            }
        }

        #[test]
        fn every_candidate_is_found_by_every_processor(seed in any::<u64>(), len in 1_000_000..8_000_000_usize, from in 64..70_000_usize) {
            let data = noise(seed, len);
            let kinds = Chunker::everywhere();
            let all = |chunker: &Chunker| {
                let mut from = from;
                std::iter::from_fn(|| {
                    from = chunker.first_candidate(&data, from, data.len())?;
                    Some(from)
                }).collect::<Vec<_>>()
            };
            let expected = all(&kinds[0]);
            for kind in &kinds[1..] {
                prop_assert_eq!(&all(kind), &expected);
            }
        }
    }

    fn len_zeros() -> usize {
        300 << 10
    }
}
