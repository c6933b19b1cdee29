//! Sealing: AES-256 in counter mode, authenticated by Poly1305-AES, as restic does it.
//!
//! A sealed message is `nonce (16) ‖ ciphertext ‖ tag (16)`.

use aes::cipher::{BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher};
use aes::{Aes128, Aes256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ctr::Ctr128BE;
use poly1305::Poly1305;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Error, Result};

pub(crate) const NONCE: usize = 16;
pub(crate) const TAG: usize = 16;
/// What sealing adds to a message.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

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

    /// Seals in place: `buffer[start + NONCE..]` holds the plain text, with [`NONCE`] bytes of room before it. The tag
    /// is appended.
    pub(crate) fn seal(&self, buffer: &mut Vec<u8>, start: usize) -> Result<()> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        buffer[start..start + NONCE].copy_from_slice(&nonce);
        let text = &mut buffer[start + NONCE..];
        self.stream(&nonce, text);
        let tag = self.tag(&nonce, text);
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// Seals a short message.
    pub(crate) fn seal_slice(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(plain.len() + OVERHEAD);
        buffer.resize(NONCE, 0);
        buffer.extend_from_slice(plain);
        self.seal(&mut buffer, 0)?;
        Ok(buffer)
    }

    /// Opens in place and returns the plain text.
    pub(crate) fn open<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8], Unauthentic> {
        if sealed.len() < OVERHEAD {
            return Err(Unauthentic);
        }
        let (nonce, rest) = sealed.split_at_mut(NONCE);
        let nonce: [u8; NONCE] = (&*nonce).try_into().map_err(|_| Unauthentic)?;
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        let expected = self.tag(&nonce, text);
        let difference = expected
            .iter()
            .zip(&*tag)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        if difference != 0 || nonce == [0; NONCE] {
            return Err(Unauthentic);
        }
        self.stream(&nonce, text);
        Ok(text)
    }

    fn stream(&self, nonce: &[u8; NONCE], text: &mut [u8]) {
        Ctr128BE::<Aes256>::new((&self.encrypt).into(), nonce.into()).apply_keystream(text);
    }

    fn tag(&self, nonce: &[u8; NONCE], text: &[u8]) -> [u8; TAG] {
        let mut pad = (*nonce).into();
        Aes128::new((&self.mac_k).into()).encrypt_block(&mut pad);
        let mut one_time = Zeroizing::new([0; 32]);
        one_time[..16].copy_from_slice(&self.mac_r);
        one_time[16..].copy_from_slice(&pad);
        Poly1305::new((&*one_time).into())
            .compute_unpadded(text)
            .into()
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
            assert_eq!(
                key.tag(&array(nonce), &hex::decode(message).unwrap()),
                array(tag)
            );
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
        fn seals_and_opens(plain in proptest::collection::vec(any::<u8>(), 0..5000), flip in any::<proptest::sample::Index>(), bit in 0..8u8) {
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
