//! Polynomials over GF(2), as far as the chunker's fingerprint needs them. Bit i is the coefficient of xⁱ.

use crate::crypto::random;
use crate::error::Result;

/// The degree that restic chooses.
const DEGREE: u32 = 53;
/// Below this degree the 20 bits that decide about a cut would not be independent.
const MIN_DEGREE: u32 = 24;

/// An irreducible polynomial that every cut in a repository depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Polynomial(u64);

impl Polynomial {
    /// A random irreducible polynomial of degree 53.
    pub(crate) fn random() -> Result<Self> {
        loop {
            let mut bytes = [0; 8];
            random(&mut bytes)?;
            let bits = u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1);
            // Without a constant term x would be a factor.
            if let Some(polynomial) = Self::new(bits | 1 << DEGREE | 1) {
                return Ok(polynomial);
            }
        }
    }

    /// `None` unless it is irreducible and of a degree that the chunker can work with.
    pub(crate) fn new(bits: u64) -> Option<Self> {
        let usable = bits != 0 && (MIN_DEGREE..=DEGREE).contains(&degree(bits));
        (usable && is_irreducible(bits)).then_some(Self(bits))
    }

    /// Parses the hexadecimal digits of a config.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::new(u64::from_str_radix(text, 16).ok()?)
    }

    /// The digits of a config.
    pub(crate) fn to_hex(self) -> String {
        format!("{:x}", self.0)
    }

    pub(crate) fn degree(self) -> u32 {
        degree(self.0)
    }

    /// `value · x^shift` modulo this polynomial.
    pub(crate) fn shifted(self, value: u64, shift: u32) -> u64 {
        (0..shift).fold(reduce(value, self.0), |value, _| times_x(value, self.0))
    }
}

fn degree(bits: u64) -> u32 {
    63 - bits.leading_zeros()
}

fn reduce(mut value: u64, modulus: u64) -> u64 {
    while value != 0 && degree(value) >= degree(modulus) {
        value ^= modulus << (degree(value) - degree(modulus));
    }
    value
}

fn times_x(value: u64, modulus: u64) -> u64 {
    let doubled = value << 1;
    if doubled >> degree(modulus) & 1 == 1 {
        doubled ^ modulus
    } else {
        doubled
    }
}

fn multiply(a: u64, b: u64, modulus: u64) -> u64 {
    let mut sum = 0;
    let mut term = a;
    for bit in 0..u64::BITS - b.leading_zeros() {
        if b >> bit & 1 == 1 {
            sum ^= term;
        }
        term = times_x(term, modulus);
    }
    sum
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, reduce(a, b)) }
}

/// Ben-Or: f is irreducible if it shares no factor with x^(2^i) − x for every i up to half its degree.
fn is_irreducible(f: u64) -> bool {
    let mut power = 2;
    (1..=degree(f) / 2).all(|_| {
        power = multiply(power, power, f);
        gcd(f, power ^ 2) == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_irreducible_ones() {
        // From repositories that restic made.
        for text in ["3DA3358B4DC173", "25b468838dcb75", "38f1f8a90e3a4d"] {
            let bits = u64::from_str_radix(text, 16).unwrap();
            let product = (0..bits.trailing_zeros()).count();
            assert_eq!(product, 0, "no factor x in {text}");
        }
        assert!(Polynomial::parse("3da3358b4dc173").is_some());
        let random = Polynomial::random().unwrap();
        assert_eq!(Polynomial::parse(&random.to_hex()), Some(random));
        assert_eq!(random.degree(), 53);
    }

    #[test]
    fn refuses_the_rest() {
        // (x+1)·something: an even number of terms has the root 1.
        for text in [
            "0",
            "1",
            "2",
            "",
            "zz",
            "30000000000003",
            "ffffffffffffffff",
            "7",
        ] {
            assert_eq!(Polynomial::parse(text), None, "{text}");
        }
    }

    #[test]
    fn small_ones_by_trial_division() {
        for f in 2_u64..512 {
            let divisible = (2..f).any(|d| degree(d) < degree(f) && reduce(f, d) == 0);
            assert_eq!(is_irreducible(f), !divisible, "{f:b}");
        }
    }
}
