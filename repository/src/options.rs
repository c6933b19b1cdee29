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

/// Who opens a repository, and how patient they are.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The password of any of the repository's keys.
    pub password: Password,
    /// Written into every lock we hold.
    pub holder: LockHolder,
    /// Decides whether the holder of somebody else's lock is dead.
    pub judge: Arc<dyn LockJudge>,
    /// How long an operation waits for a conflicting lock to go away before it fails with `Error::Locked`.
    pub lock_wait: Duration,
}

impl OpenOptions {
    /// This process as the holder, restic's own rule for dead locks, and no waiting.
    pub fn new(password: Password) -> Self {
        Self {
            password,
            holder: LockHolder::this_process(),
            judge: Arc::new(RestRule),
            lock_wait: Duration::ZERO,
        }
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
