//! What can go wrong with an object store, in classes that callers act on.

use std::time::Duration;

/// Result of a storage operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed storage operation. Every variant that concerns an object names location and key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The object does not exist.
    #[error("{location}: {key}: no such object")]
    NotFound {
        /// The store, as [`crate::ObjectStore::location`] prints it.
        location: String,
        /// The object's key in that store.
        key: String,
    },
    /// The bucket (or the root directory) does not exist.
    #[error("{location}: no such bucket")]
    NoBucket {
        /// The store.
        location: String,
    },
    /// The object exists and must not.
    #[error("{location}: {key}: exists already")]
    AlreadyExists {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
    },
    /// The server or the file system refuses: credentials, permissions, object lock.
    #[error("{location}: {key}: access denied: {message}")]
    Denied {
        /// The store.
        location: String,
        /// The object's key, or the prefix that was listed.
        key: String,
        /// The other side's words.
        message: String,
    },
    /// A setting that cannot be; names the field.
    #[error("{field}: {message}")]
    InvalidConfig {
        /// The setting, as the user writes it.
        field: String,
        /// What was found and what is allowed.
        message: String,
    },
    /// A key that no object may have (empty, absolute, `..`, control characters).
    #[error("{location}: {key:?} is no valid key: {message}")]
    InvalidKey {
        /// The store.
        location: String,
        /// The key as it was given.
        key: String,
        /// Which rule it breaks.
        message: &'static str,
    },
    /// No connection: name does not resolve, connection refused or lost, TLS refused.
    #[error("{location}: {key}: unreachable: {message}")]
    Unreachable {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// Cause.
        message: String,
    },
    /// The deadline of the operation passed.
    #[error("{location}: {key}: no answer within {after:?}")]
    Timeout {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// How long was waited for an answer.
        after: Duration,
    },
    /// The server is overloaded or failing (HTTP 429, 5xx), also after retries.
    #[error("{location}: {key}: the server cannot answer now: {message}")]
    Busy {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// The other side's words.
        message: String,
    },
    /// Fewer bytes came than the object or the asked range has.
    #[error("{location}: {key}: {got} bytes came where {expected} were asked for")]
    ShortRead {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// Bytes asked for.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// A local file (source of an upload, target of a download, or the store's own) failed.
    #[error("{location}: {key}: {message}")]
    Io {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// The operating system's words, with the path where it is not the key's own.
        message: String,
    },
    /// Anything else.
    #[error("{location}: {key}: {message}")]
    Other {
        /// The store.
        location: String,
        /// The object's key.
        key: String,
        /// Cause.
        message: String,
    },
}

impl Error {
    /// The object is not there (a missing bucket is something else).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// The same call may succeed later without anybody changing a setting.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. }
                | Error::Timeout { .. }
                | Error::Busy { .. }
                | Error::ShortRead { .. }
        )
    }

    /// One CamelCase word for conditions, events and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::NotFound { .. } => "NotFound",
            Error::NoBucket { .. } => "NoSuchBucket",
            Error::AlreadyExists { .. } => "AlreadyExists",
            Error::Denied { .. } => "AccessDenied",
            Error::InvalidConfig { .. } => "InvalidConfig",
            Error::InvalidKey { .. } => "InvalidKey",
            Error::Unreachable { .. } => "Unreachable",
            Error::Timeout { .. } => "Timeout",
            Error::Busy { .. } => "ServerBusy",
            Error::ShortRead { .. } => "ShortRead",
            Error::Io { .. } => "FileError",
            Error::Other { .. } => "Failed",
        }
    }

    /// A setting that is refused.
    pub fn config(field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::InvalidConfig {
            field: field.into(),
            message: message.into(),
        }
    }

    /// An operating system error on the object itself.
    pub(crate) fn io(location: &str, key: &str, error: &std::io::Error) -> Error {
        use std::io::ErrorKind;
        let (location, key) = (location.to_owned(), key.to_owned());
        match error.kind() {
            ErrorKind::NotFound => Error::NotFound { location, key },
            ErrorKind::PermissionDenied => Error::Denied {
                location,
                key,
                message: error.to_string(),
            },
            _ => Error::Io {
                location,
                key,
                message: error.to_string(),
            },
        }
    }

    /// An operating system error on a local path that is not the object (source or target).
    pub(crate) fn local(
        location: &str,
        key: &str,
        path: &std::path::Path,
        error: &std::io::Error,
    ) -> Error {
        Error::Io {
            location: location.to_owned(),
            key: key.to_owned(),
            message: format!("{}: {error}", path.display()),
        }
    }
}
