//! How an operation on a volume ends when it does not end well, and how long failures are borne.

use std::{collections::HashMap, time::Duration};

use jackline_runtime::{CancellationToken, Class, Failure, Key, logging::chain};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{paths::PathError, pods::VolumeError, repos::OpenError};

/// Longest time that a result that is not written yet is held in memory before the work is done again.
const PERSIST: Duration = Duration::from_secs(300);

/// Why an operation did not complete.
#[derive(Debug)]
pub(crate) enum Stop {
    /// For good; the message goes into the status.
    Failed(String),
    /// May work later.
    Retry(Failure),
    /// Wished for.
    Canceled,
    /// The object has gone, or another has ended it: nothing is written any more.
    Gone,
    /// This process ends; its successor takes over.
    Shutdown,
}

impl Stop {
    /// A volume's directory cannot be used.
    pub fn volume(volume: &str, error: VolumeError) -> Self {
        match error {
            VolumeError::Api(error) => Self::Retry(error.into()),
            VolumeError::Path(PathError::Block { .. }) => Self::Failed(error.to_string()),
            error => Self::Failed(format!("volume {volume}: {}", chain(&error))),
        }
    }

    pub fn repository(error: jackline_repository::Error) -> Self {
        if matches!(error, jackline_repository::Error::Cancelled) {
            return Self::Shutdown;
        }
        if error.is_retryable() {
            return Self::Retry(Failure::transient(error.reason(), error));
        }
        let hint = if keeps_root_out(&error) {
            ". This agent is root: the file server keeps root out (root squash). Export the volume with no_root_squash to the nodes"
        } else {
            ""
        };
        Self::Failed(format!(
            "data path failed: {} ({}){hint}",
            chain(&error),
            error.reason()
        ))
    }
}

/// Whether a volume as a whole is refused to root.
fn keeps_root_out(error: &jackline_repository::Error) -> bool {
    use jackline_repository::Error::{Source, Target};
    matches!(error, Source { source, .. } | Target { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
}

impl From<OpenError> for Stop {
    fn from(error: OpenError) -> Self {
        let (class, reason) = error.classify();
        if class == Class::Terminal {
            return Self::Failed(format!("{} ({reason})", chain(&error)));
        }
        Self::Retry(error.into())
    }
}

/// Bears the failures of a key for a limited time, counted from the first one this process saw since data moved.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    borne: Mutex<HashMap<Key, Borne>>,
}

#[derive(Debug, Default)]
struct Borne {
    /// The first failure that counts.
    since: Option<Instant>,
    /// The most bytes of an attempt.
    most: i64,
    /// Attempts that took long and came to nothing more.
    long: u32,
}

/// How many attempts that took long and came to nothing more are borne.
const LONG: u32 = 10;

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            borne: Mutex::default(),
        }
    }

    /// Whether one more failure of the key is borne.
    pub fn lasts(&self, key: &Key) -> bool {
        let now = Instant::now();
        let mut borne = self.borne.lock();
        let since = borne
            .entry(key.clone())
            .or_default()
            .since
            .get_or_insert(now);
        now.duration_since(*since) < self.limit
    }

    /// Whether an attempt moved more bytes than any before.
    pub fn got_further(&self, key: &Key, bytes: i64) -> bool {
        let mut borne = self.borne.lock();
        let borne = borne.entry(key.clone()).or_default();
        let further = bytes > borne.most;
        borne.most = borne.most.max(bytes);
        further
    }

    /// An attempt is over. Counts anew where it got on, or, some times, where it tried for longer than failures are borne: with a store that
    /// is away every now and then, a large volume needs many.
    pub fn tried(&self, key: &Key, took: Duration, got_on: bool) {
        let mut borne = self.borne.lock();
        let borne = borne.entry(key.clone()).or_default();
        if got_on {
            (borne.since, borne.long) = (None, 0);
        } else if took >= self.limit && borne.long < LONG {
            borne.since = None;
            borne.long += 1;
        }
    }

    pub fn forget(&self, key: &Key) {
        self.borne.lock().remove(key);
    }
}

/// Writes a result until it is written: doing the work again because the API server was away for a moment would be a waste.
pub(crate) async fn persist<W>(
    mut write: impl FnMut() -> W,
    shutdown: &CancellationToken,
) -> Result<(), Failure>
where
    W: Future<Output = Result<(), Failure>>,
{
    let started = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        let failure = match write().await {
            Ok(()) => return Ok(()),
            // Gone: nobody is interested any more.
            Err(failure) if failure.reason == "Gone" => return Ok(()),
            Err(failure) => failure,
        };
        let hopeless = failure.class == Class::Terminal || started.elapsed() > PERSIST;
        if hopeless || shutdown.is_cancelled() {
            return Err(failure);
        }
        tracing::warn!(error = chain(&failure), "result not written yet");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
        pause = (pause * 2).min(Duration::from_secs(15));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_is_renewed_by_success() {
        let patience = Patience::new(Duration::from_secs(60));
        let key = Key::cluster("a");
        assert!(patience.lasts(&key));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(!patience.lasts(&key));
        patience.forget(&key);
        assert!(patience.lasts(&key));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_begins_anew_when_data_has_moved() {
        let limit = Duration::from_secs(60);
        let patience = Patience::new(limit);
        let key = Key::cluster("a");
        for (took, moved, lasts) in [
            (Duration::ZERO, false, true),
            (Duration::ZERO, true, true),
            (limit, false, true),
            (Duration::ZERO, false, false),
        ] {
            tokio::time::advance(limit).await;
            patience.tried(&key, took, moved);
            assert_eq!(patience.lasts(&key), lasts, "{took:?} {moved}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_gets_no_further_is_given_up() {
        let limit = Duration::from_secs(60);
        let patience = Patience::new(limit);
        let key = Key::cluster("a");
        let further = [5, 5, 6, 4].map(|bytes| patience.got_further(&key, bytes));
        assert_eq!(further, [true, false, true, false]);
        let mut rounds = 0;
        while patience.lasts(&key) {
            tokio::time::advance(limit).await;
            patience.tried(&key, limit, false);
            rounds += 1;
        }
        assert_eq!(rounds, LONG + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_is_written_when_the_api_server_is_back() {
        let mut left = 3;
        let write = || {
            left -= 1;
            let result = if left > 0 {
                Err(Failure::transient("Away", "away"))
            } else {
                Ok(())
            };
            async { result }
        };
        persist(write, &CancellationToken::new()).await.unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn damage_is_final_and_names_the_object() {
        let error = jackline_repository::Error::Corrupt {
            object: "data/ab".to_owned(),
            reason: "hash differs".to_owned(),
        };
        let Stop::Failed(message) = Stop::repository(error) else {
            panic!("must be final")
        };
        assert!(message.contains("data/ab"), "{message}");
        let locked = jackline_repository::Error::Locked {
            holder: "x".to_owned(),
            exclusive: true,
            age: Duration::ZERO,
        };
        assert!(matches!(Stop::repository(locked), Stop::Retry(_)));
    }
}
