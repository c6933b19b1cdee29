//! Key files: the master key, sealed by a key derived from a password. In plain JSON, named by their hash.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{Key, OVERHEAD, random};
use crate::error::{Error, Result};
use crate::lock::LockHolder;
use crate::options::{KeyCost, Password};
use crate::tree::time;

/// Memory cost of the keys we make: what restic's calibration arrives at.
const N: u32 = 1 << 15;
const R: u32 = 8;
/// What one guess costs one processor when the lanes are calibrated, as in restic.
const CALIBRATED: Duration = Duration::from_millis(500);
const SALT: usize = 64;

/// The most memory a lane of a foreign key file may make us use: 128·N·r bytes. restic's calibration stays below 60 MB.
const MAX_MEMORY: u64 = 1 << 28;
/// The most work, as a multiple of N·r: restic's calibration stays far below.
const MAX_LANES: u32 = 1024;

/// A key file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyFile {
    #[serde(with = "time")]
    pub(crate) created: Timestamp,
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default)]
    pub(crate) hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u32,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

impl KeyFile {
    /// Seals `master` for `password` and returns the file's content.
    /// Costs the key's work: call it off the runtime.
    pub(crate) fn make(
        master: &Key,
        password: &Password,
        cost: KeyCost,
        holder: &LockHolder,
    ) -> Result<Vec<u8>> {
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let lanes = match cost {
            KeyCost::Calibrated => calibrated_lanes()?,
            KeyCost::Generated => 1,
        };
        let user = derive(password, &salt, N, R, lanes).map_err(Error::Internal)?;
        let file = Self {
            created: Timestamp::now(),
            username: holder.username.clone(),
            hostname: holder.hostname.clone(),
            kdf: "scrypt".into(),
            n: N,
            r: R,
            p: lanes,
            salt: BASE64.encode(salt),
            data: BASE64.encode(user.seal_slice(&master.to_json()?)?),
        };
        serde_json::to_vec(&file).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Parses a key file. `name` is for the error.
    pub(crate) fn parse(name: &str, content: &[u8]) -> Result<Self> {
        serde_json::from_slice(content).map_err(|error| Error::corrupt(name, error))
    }

    /// The master key; `None` where the password is another key's. Costs the key's work: call it off the runtime.
    pub(crate) fn open(&self, name: &str, password: &Password) -> Result<Option<Key>> {
        let corrupt = |reason: &str| Error::corrupt(name, reason);
        if self.kdf != "scrypt" {
            return Err(corrupt("its key derivation is not scrypt"));
        }
        let salt = BASE64
            .decode(&self.salt)
            .map_err(|_| corrupt("its salt is not base64"))?;
        let data = BASE64
            .decode(&self.data)
            .map_err(|_| corrupt("its data is not base64"))?;
        let mut data = Zeroizing::new(data);
        if data.len() < OVERHEAD {
            return Err(corrupt("its data is too short"));
        }
        let user =
            derive(password, &salt, self.n, self.r, self.p).map_err(|reason| corrupt(&reason))?;
        match user.open(&mut data) {
            Err(_) => Ok(None),
            Ok(json) => Key::from_json(json)
                .map(Some)
                .ok_or_else(|| corrupt("it holds no master key")),
        }
    }
}

/// So many lanes that a guess takes [`CALIBRATED`]. The fastest of three measurements counts, by the time that the processor was ours: a
/// busy machine must not make weak keys.
fn calibrated_lanes() -> Result<u32> {
    let password = Password::new("calibration");
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let begun = processor_time();
        derive(&password, b"salt", N, R, 1).map_err(Error::Internal)?;
        fastest = fastest.min(processor_time().saturating_sub(begun));
    }
    let lanes = CALIBRATED.as_micros().div_ceil(fastest.as_micros().max(1));
    Ok(u32::try_from(lanes)
        .unwrap_or(MAX_LANES)
        .clamp(1, MAX_LANES))
}

/// How long this thread has run.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// scrypt with limits, because its parameters come from a file that anybody may have written.
fn derive(password: &Password, salt: &[u8], n: u32, r: u32, p: u32) -> Result<Key, String> {
    let memory = u64::from(n) * u64::from(r) * 128;
    if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 || memory > MAX_MEMORY || p > MAX_LANES {
        return Err(format!(
            "its parameters N={n}, r={r}, p={p} are out of range"
        ));
    }
    let log_n = u8::try_from(n.trailing_zeros()).unwrap_or(u8::MAX);
    let params = scrypt::Params::new(log_n, r, p)
        .map_err(|_| format!("its parameters N={n}, r={r}, p={p} are out of range"))?;
    let mut bytes = Zeroizing::new([0; 64]);
    scrypt::scrypt(password.as_bytes(), salt, &params, bytes.as_mut_slice())
        .map_err(|error| error.to_string())?;
    Ok(Key::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_its_password_only() {
        let master = Key::random().unwrap();
        let password = Password::new("secret");
        let holder = LockHolder::this_process();
        let content = KeyFile::make(&master, &password, KeyCost::Generated, &holder).unwrap();
        let file = KeyFile::parse("keys/x", &content).unwrap();
        assert!(file.n >= 1 << 15 && file.r >= 8 && file.p >= 1);
        let opened = file.open("keys/x", &password).unwrap().unwrap();
        assert_eq!(*opened.to_json().unwrap(), *master.to_json().unwrap());
        assert!(
            file.open("keys/x", &Password::new("Secret"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn refuses_absurd_parameters() {
        let password = Password::new("x");
        for (n, r, p) in [
            (0, 8, 1),
            (3, 8, 1),
            (1, 8, 1),
            (1 << 31, 8, 1),
            (2, 0, 1),
            (2, 8, 0),
            (2, 8, u32::MAX),
        ] {
            assert!(derive(&password, b"salt", n, r, p).is_err(), "{n} {r} {p}");
        }
    }

    #[test]
    fn names_what_is_damaged() {
        for content in [&b""[..], b"{}", b"[]", b"\xff"] {
            let error = KeyFile::parse("keys/abc", content).unwrap_err();
            assert!(
                error.to_string().starts_with("keys/abc is damaged"),
                "{error}"
            );
        }
    }
}
