//! What can go wrong, in the caller's terms.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of a repository operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a repository failed. Every variant names the object it is about; none holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no repository (neither config nor key) at the location.
    #[error("no repository at {location}")]
    NotFound {
        /// Where it was looked for.
        location: String,
    },
    /// The location holds a repository, or parts of one: it is never initialised again.
    #[error("{location} already holds a repository ({found} exists)")]
    AlreadyExists {
        /// Where the repository was to be made.
        location: String,
        /// The object that is in the way.
        found: String,
    },
    /// No key of the repository opens with this password.
    #[error("wrong password for the repository at {location}")]
    WrongPassword {
        /// The repository.
        location: String,
    },
    /// The repository's format version is not 1 or 2.
    #[error(
        "the repository at {location} has format version {version}; versions 1 and 2 are supported"
    )]
    UnsupportedVersion {
        /// The repository.
        location: String,
        /// The version its config names.
        version: u32,
    },
    /// Somebody else holds a lock that conflicts with ours, and did not leave within `lock_wait`.
    #[error("the repository is locked {} by {holder} since {}s", if *exclusive { "exclusively" } else { "for use" }, age.as_secs())]
    Locked {
        /// Who holds it: host, pid and, where known, the process instance.
        holder: String,
        /// Whether that lock is exclusive.
        exclusive: bool,
        /// How long ago the holder last confirmed it.
        age: Duration,
    },
    /// Our own lock was removed by others or could not be confirmed for three minutes; nothing more was written.
    #[error("the lock on the repository was lost: {reason}")]
    LockLost {
        /// What was seen.
        reason: String,
    },
    /// An object of the repository is not what it must be.
    #[error("{object} is damaged: {reason}")]
    Corrupt {
        /// The object: `config`, `keys/…`, `index/…`, `data/…`, `snapshots/…`, `locks/…` or `tree …`.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No snapshot has this id.
    #[error("no snapshot {id}")]
    SnapshotNotFound {
        /// What was asked for.
        id: String,
    },
    /// Several snapshots start with this short id.
    #[error("{id} is short for several snapshots")]
    AmbiguousId {
        /// What was asked for.
        id: String,
    },
    /// The object store failed.
    #[error(transparent)]
    Storage(#[from] jackline_storage::Error),
    /// The root of a backup cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Source {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target of a restore cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Target {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operation was cancelled by its token.
    #[error("cancelled")]
    Cancelled,
    /// A request that cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// A worker of the operation ended without a result. This is a defect of the program.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn corrupt(object: impl Into<String>, reason: impl ToString) -> Self {
        Self::Corrupt {
            object: object.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn source(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Source {
            path: path.into(),
            source: source.into(),
        }
    }

    pub(crate) fn target(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Target {
            path: path.into(),
            source: source.into(),
        }
    }

    /// Whether trying again later can help without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::LockLost { .. } => true,
            Self::Storage(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// A short CamelCase reason for conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "RepositoryNotFound",
            Self::AlreadyExists { .. } => "RepositoryExists",
            Self::WrongPassword { .. } => "WrongPassword",
            Self::UnsupportedVersion { .. } => "UnsupportedVersion",
            Self::Locked { .. } => "RepositoryLocked",
            Self::LockLost { .. } => "LockLost",
            Self::Corrupt { .. } => "RepositoryDamaged",
            Self::SnapshotNotFound { .. } => "SnapshotNotFound",
            Self::AmbiguousId { .. } => "AmbiguousSnapshot",
            Self::Storage(error) => error.reason(),
            Self::Source { .. } => "SourceUnreadable",
            Self::Target { .. } => "TargetNotWritable",
            Self::Cancelled => "Cancelled",
            Self::Invalid(_) => "InvalidRequest",
            Self::Internal(_) => "Internal",
        }
    }
}
