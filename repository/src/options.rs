//! How a caller opens a repository.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::lock::{LockHolder, LockJudge, RestRule};

/// A repository password. Wiped from memory when dropped, never shown by `Debug`.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes the password as it is. Callers strip the line end of a password file, as restic does.
    pub fn new(password: impl Into<String>) -> Self {
        Self(Zeroizing::new(password.into()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What it costs to guess the password of a new key, and so to open the repository with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyCost {
    /// For passwords that people chose: about half a second of one processor, as restic calibrates it.
    #[default]
    Calibrated,
    /// For generated passwords of 256 bits, which nobody guesses: N=2^15, r=8, p=1, about 60 ms.
    Generated,
}

impl KeyCost {
    /// The cost that suits a password: [`KeyCost::Generated`] for 64 and more hexadecimal digits, which nobody chooses.
    pub fn for_password(password: &Password) -> Self {
        let bytes = password.as_bytes();
        match bytes.len() >= 64 && bytes.iter().all(u8::is_ascii_hexdigit) {
            true => Self::Generated,
            false => Self::Calibrated,
        }
    }
}

/// Who opens a repository, and how patient they are.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The password of any of the repository's keys.
    pub password: Password,
    /// Written into every lock we hold.
    pub holder: LockHolder,
    /// Decides whether the holder of somebody else's lock is dead.
    pub judge: Arc<dyn LockJudge>,
    /// What it costs to guess the passwords of keys that are made.
    pub key_cost: KeyCost,
    /// How long an operation waits for a conflicting lock to go away before it fails with `Error::Locked`.
    pub lock_wait: Duration,
}

impl OpenOptions {
    /// This process as the holder, restic's own rule for dead locks, the key cost that suits the password, and no waiting.
    pub fn new(password: Password) -> Self {
        Self {
            key_cost: KeyCost::for_password(&password),
            password,
            holder: LockHolder::this_process(),
            judge: Arc::new(RestRule),
            lock_wait: Duration::ZERO,
        }
    }

    /// The same with another cost of new keys.
    #[must_use]
    pub fn with_key_cost(mut self, cost: KeyCost) -> Self {
        self.key_cost = cost;
        self
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }
}

/// The version of the repository format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Without compression: every restic reads it.
    V1,
    /// With zstd compression: restic 0.14 and newer.
    #[default]
    V2,
}

impl Version {
    /// The number in the repository's config.
    pub fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}
