//! Sealing: AES-256 in counter mode, authenticated by Poly1305-AES, as restic does it.
//!
//! A sealed message is `nonce (16) ‖ ciphertext ‖ tag (16)`.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::error::Unspecified;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Error, Result};

pub(crate) const NONCE: usize = 16;
pub(crate) const TAG: usize = 16;
/// What sealing adds to a message.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

/// What goes through cipher and authenticator at once, while it is in the processor's first cache.
pub(crate) const SLICE: usize = 8 << 10;

/// Poly1305 ignores these bits of r; restic stores keys with the bits cleared.
const R_MASK: [u8; 16] = [
    0xff, 0xff, 0xff, 0x0f, 0xfc, 0xff, 0xff, 0x0f, 0xfc, 0xff, 0xff, 0x0f, 0xfc, 0xff, 0xff, 0x0f,
];

/// The message is too short, or somebody changed it, or the key is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub(crate) struct Unauthentic;

/// A key that seals: the repository's master key, or the one derived from a password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Key {
    encrypt: [u8; 32],
    mac_k: [u8; 16],
    mac_r: [u8; 16],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A new key from the operating system's random numbers.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; 64]);
        random(bytes.as_mut_slice())?;
        Ok(Self::from_bytes(&bytes))
    }

    /// From 64 derived bytes: encryption key, then k and r of the authenticator.
    pub(crate) fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut key = Self {
            encrypt: [0; 32],
            mac_k: [0; 16],
            mac_r: [0; 16],
        };
        key.encrypt.copy_from_slice(&bytes[..32]);
        key.mac_k.copy_from_slice(&bytes[32..48]);
        key.mac_r.copy_from_slice(&bytes[48..]);
        for (byte, mask) in key.mac_r.iter_mut().zip(R_MASK) {
            *byte &= mask;
        }
        key
    }

    /// Appends `plain`, sealed.
    pub(crate) fn seal(&self, plain: &[u8], to: &mut Vec<u8>) -> Result<()> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        to.reserve(plain.len() + OVERHEAD);
        to.extend_from_slice(&nonce);
        let sealed = self.pass(&nonce).and_then(|mut pass| {
            for slice in plain.chunks(SLICE) {
                let start = to.len();
                to.extend_from_slice(slice);
                let text = &mut to[start..];
                pass.cipher.apply(text)?;
                pass.authenticate(text);
            }
            to.extend_from_slice(&pass.tag());
            Ok(())
        });
        sealed.map_err(|Unspecified| Error::Internal("the cipher cannot be used".into()))
    }

    /// Seals a short message.
    pub(crate) fn seal_slice(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = Vec::new();
        self.seal(plain, &mut sealed)?;
        Ok(sealed)
    }

    /// Opens in place and returns the plain text.
    pub(crate) fn open<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8], Unauthentic> {
        let (nonce, rest) = sealed.split_first_chunk_mut().ok_or(Unauthentic)?;
        let (text, tag) = rest.split_last_chunk_mut().ok_or(Unauthentic)?;
        let mut opening = self.opening(nonce, Proof::Tag)?;
        for slice in text.chunks_mut(SLICE) {
            opening.slice(slice);
        }
        opening.finish(tag)?;
        Ok(text)
    }

    /// Begins to open a message.
    pub(crate) fn opening(
        &self,
        nonce: &[u8; NONCE],
        proof: Proof,
    ) -> Result<Opening, Unauthentic> {
        if *nonce == [0; NONCE] {
            return Err(Unauthentic);
        }
        Ok(Opening {
            pass: self.pass(nonce).map_err(|Unspecified| Unauthentic)?,
            proof,
            deciphered: true,
        })
    }

    fn pass(&self, nonce: &[u8; NONCE]) -> Result<Pass, Unspecified> {
        let mut one_time = Zeroizing::new([0; 32]);
        one_time[..16].copy_from_slice(&self.mac_r);
        // The first block of the key stream is the nonce, encrypted.
        Counter::new(&AES_128, &self.mac_k, nonce)?.apply(&mut one_time[16..])?;
        Ok(Pass {
            cipher: Counter::new(&AES_256, &self.encrypt, nonce)?,
            mac: Poly1305::new((&*one_time).into()),
            end: Vec::new(),
        })
    }

    fn is_valid(&self) -> bool {
        [&self.encrypt[..], &self.mac_k, &self.mac_r]
            .iter()
            .all(|part| part.iter().any(|b| *b != 0))
    }

    /// The key as restic stores it, sealed by the password's key.
    pub(crate) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>> {
        let stored = StoredKey {
            mac: StoredMac {
                k: BASE64.encode(self.mac_k),
                r: BASE64.encode(self.mac_r),
            },
            encrypt: BASE64.encode(self.encrypt),
        };
        serde_json::to_vec(&stored)
            .map(Zeroizing::new)
            .map_err(|error| Error::Internal(error.to_string()))
    }

    /// The inverse of [`Key::to_json`]; `None` where it is no key.
    pub(crate) fn from_json(json: &[u8]) -> Option<Self> {
        let stored: StoredKey = serde_json::from_slice(json).ok()?;
        let mut bytes = Zeroizing::new([0; 64]);
        for (part, text) in [
            (0..32, &stored.encrypt),
            (32..48, &stored.mac.k),
            (48..64, &stored.mac.r),
        ] {
            let decoded = Zeroizing::new(BASE64.decode(text).ok()?);
            if decoded.len() != part.len() {
                return None;
            }
            bytes[part].copy_from_slice(&decoded);
        }
        Some(Self::from_bytes(&bytes)).filter(Self::is_valid)
    }
}

/// AES in counter mode.
struct Counter {
    key: EncryptingKey,
    next: u128,
}

impl Counter {
    fn new(
        algorithm: &'static Algorithm,
        key: &[u8],
        nonce: &[u8; NONCE],
    ) -> Result<Self, Unspecified> {
        Ok(Self {
            key: EncryptingKey::ctr(UnboundCipherKey::new(algorithm, key)?)?,
            next: u128::from_be_bytes(*nonce),
        })
    }

    /// Encrypts or decrypts whole blocks, and at the end what is left.
    fn apply(&mut self, text: &mut [u8]) -> Result<(), Unspecified> {
        let blocks = text.len().div_ceil(NONCE) as u128;
        let context = EncryptionContext::Iv128((&self.next.to_be_bytes()).into());
        self.key.less_safe_encrypt(text, context)?;
        self.next = self.next.wrapping_add(blocks);
        Ok(())
    }
}

/// A message on its way through cipher and authenticator, in slices of [`SLICE`] and a shorter last one.
struct Pass {
    cipher: Counter,
    mac: Poly1305,
    /// Bytes at the message's end that are no whole block of the authenticator.
    end: Vec<u8>,
}

impl Pass {
    /// Adds cipher text.
    fn authenticate(&mut self, text: &[u8]) {
        let (blocks, end) = poly1305::Block::slice_as_chunks(text);
        self.mac.update(blocks);
        self.end.extend_from_slice(end);
    }

    fn tag(self) -> [u8; TAG] {
        self.mac.compute_unpadded(&self.end).into()
    }
}

/// What shows that a message is what was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Its tag.
    Tag,
    /// The SHA-256 of its plain bytes, which the caller knows from something authentic and compares before they are used.
    /// That says all that the tag would, but not whether the tag itself is sound.
    Hash,
}

/// A message that is being opened. Its plain bytes are to be hashed or thrown away until [`Opening::finish`] vouches for them.
pub(crate) struct Opening {
    pass: Pass,
    proof: Proof,
    deciphered: bool,
}

impl Opening {
    /// The next [`SLICE`] of cipher text, or the last of it, becomes plain text.
    pub(crate) fn slice(&mut self, text: &mut [u8]) {
        if self.proof == Proof::Tag {
            self.pass.authenticate(text);
        }
        self.deciphered &= self.pass.cipher.apply(text).is_ok();
    }

    /// Whether all slices are what was sealed with this tag.
    pub(crate) fn finish(self, tag: &[u8; TAG]) -> Result<(), Unauthentic> {
        let sound = match self.proof {
            Proof::Tag => {
                let expected = self.pass.tag();
                let pairs = expected.iter().zip(tag);
                pairs.fold(0, |sum, (expected, found)| sum | (expected ^ found)) == 0
            }
            Proof::Hash => true,
        };
        match self.deciphered && sound {
            true => Ok(()),
            false => Err(Unauthentic),
        }
    }
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct StoredKey {
    mac: StoredMac,
    encrypt: String,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct StoredMac {
    k: String,
    r: String,
}

/// Fills `bytes` from the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| Error::Internal(format!("no random numbers: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Test vectors of the Poly1305-AES paper (Appendix B): k, r, nonce, message, tag.
    #[test]
    fn poly1305_aes_vectors() {
        let vectors = [
            (
                "ec074c835580741701425b623235add6",
                "851fc40c3467ac0be05cc20404f3f700",
                "fb447350c4e868c52ac3275cf9d4327e",
                "f3f6",
                "f4c633c3044fc145f84f335cb81953de",
            ),
            (
                "75deaa25c09f208e1dc4ce6b5cad3fbf",
                "a0f3080000f46400d0c7e9076c834403",
                "61ee09218d29b0aaed7e154a2c5509cc",
                "",
                "dd3fab2251f11ac759f0887129cc2ee7",
            ),
        ];
        for (k, r, nonce, message, tag) in vectors {
            let array = |text: &str| <[u8; 16]>::try_from(hex::decode(text).unwrap()).unwrap();
            let key = Key {
                encrypt: [1; 32],
                mac_k: array(k),
                mac_r: array(r),
            };
            let mut pass = key.pass(&array(nonce)).unwrap();
            pass.authenticate(&hex::decode(message).unwrap());
            assert_eq!(pass.tag(), array(tag));
        }
    }

    #[test]
    fn key_json_is_restics() {
        let key = Key::from_bytes(&[0xff; 64]);
        let json = key.to_json().unwrap();
        let text = std::str::from_utf8(&json).unwrap();
        assert!(
            text.starts_with(
                r#"{"mac":{"k":"/////////////////////w==","r":"////D/z//w/8//8P/P//Dw=="},"#
            ),
            "{text}"
        );
        assert_eq!(Key::from_json(&json).unwrap().mac_r, key.mac_r);
        assert!(Key::from_json(b"{}").is_none());
        assert!(Key::from_json(br#"{"mac":{"k":"AA==","r":"AA=="},"encrypt":"AA=="}"#).is_none());
        assert_eq!(format!("{key:?}"), "Key(…)");
    }

    proptest! {
        #[test]
        fn seals_and_opens(plain in proptest::collection::vec(any::<u8>(), 0..3 * SLICE), flip in any::<proptest::sample::Index>(), bit in 0..8u8) {
            let key = Key::from_bytes(&[7; 64]);
            let sealed = key.seal_slice(&plain).unwrap();
            prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            let opens = |key: &Key, sealed: &[u8]| {
                key.open(&mut sealed.to_vec()).map(|plain| plain.to_vec())
            };
            prop_assert_eq!(opens(&key, &sealed), Ok(plain));

            let mut damaged = sealed.clone();
            let at = flip.index(damaged.len());
            damaged[at] ^= 1 << bit;
            prop_assert_eq!(opens(&key, &damaged), Err(Unauthentic));
            prop_assert_eq!(opens(&key, &sealed[..sealed.len() - 1]), Err(Unauthentic));
            prop_assert_eq!(opens(&Key::from_bytes(&[8; 64]), &sealed), Err(Unauthentic));
        }
    }
}
