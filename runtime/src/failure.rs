//! What a pass over one object returns: when it wants to run again, or how it failed.

use std::time::Duration;

use jiff::Timestamp;

use crate::secrets::ReadError;

/// When a successful pass wants to run again. An earlier change of the object runs it earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At a wall-clock time (a schedule). Held in steps, so that a clock that jumps is noticed within a minute.
    At(Timestamp),
    /// After a time.
    After(Duration),
    /// Only on a change, or at the safety resync (events can be missed).
    OnChange,
    /// Nothing left to do and nothing to watch: the object is gone. No resync.
    Done,
}

/// How a failed pass is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Worth repeating: 1 s·2ⁿ up to 5 min.
    Transient,
    /// Somebody else wrote first: again within a second, not counted as an error.
    Conflict,
    /// The server asked for patience.
    Throttled(Option<Duration>),
    /// Something that others provide is not there yet; look again after this time. Not an error.
    Waiting(Duration),
    /// Repeating does not help until the object changes; looked at again at the safety resync.
    Terminal,
}

impl Class {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Conflict => "conflict",
            Self::Throttled(_) => "throttled",
            Self::Waiting(_) => "waiting",
            Self::Terminal => "terminal",
        }
    }
}

/// A pass that did not reach its end.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {source}")]
pub struct Failure {
    /// How to retry.
    pub class: Class,
    /// A word for metrics, logs and conditions, `CamelCase`.
    pub reason: &'static str,
    /// What happened.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Failure {
    /// A failure of the given class.
    pub fn new(
        class: Class,
        reason: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            class,
            reason,
            source: source.into(),
        }
    }

    /// Worth repeating.
    pub fn transient(
        reason: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(Class::Transient, reason, source)
    }

    /// Not worth repeating before something changes.
    pub fn terminal(
        reason: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(Class::Terminal, reason, source)
    }

    /// Something is not there yet.
    pub fn waiting(
        after: Duration,
        reason: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::new(Class::Waiting(after), reason, source)
    }
}

/// The class and reason of an error of the API server.
pub fn classify(error: &kube::Error) -> (Class, &'static str) {
    match error {
        kube::Error::Api(status) => match status.code {
            409 if status.is_already_exists() => (Class::Conflict, "AlreadyExists"),
            409 => (Class::Conflict, "Conflict"),
            429 => {
                let after = status
                    .details
                    .as_ref()
                    .map(|d| d.retry_after_seconds)
                    .unwrap_or(0);
                let after = (after > 0).then(|| Duration::from_secs(u64::from(after)));
                (Class::Throttled(after), "Throttled")
            }
            404 => (Class::Transient, "NotFound"),
            403 => (Class::Transient, "Forbidden"),
            401 => (Class::Transient, "Unauthorized"),
            400 | 413 | 422 => (Class::Terminal, "Refused"),
            _ => (Class::Transient, "ApiServerError"),
        },
        kube::Error::SerdeError(_) => (Class::Terminal, "Undecodable"),
        // A name that forms no URL.
        kube::Error::BuildRequest(_) => (Class::Terminal, "Unaskable"),
        _ => (Class::Transient, "ApiServerUnreachable"),
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let (class, reason) = classify(&error);
        Self::new(class, reason, error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let (class, reason) = match &error {
            ReadError::Api { source, .. } => classify(source),
            ReadError::Missing { .. } | ReadError::NoKey { .. } => {
                (Class::Transient, "ReferenceMissing")
            }
        };
        Self::new(class, reason, error)
    }
}

impl From<crate::lease::NotLeader> for Failure {
    fn from(error: crate::lease::NotLeader) -> Self {
        Self::new(Class::Transient, "NotLeader", error)
    }
}
