//! Locks on a repository, by restic's protocol.
//!
//! Look, create, wait, look again; on a conflict delete the own one. A lock is refreshed every minute by a new file;
//! who could not refresh it for three minutes, or finds the own file gone, writes nothing more. Nobody waits while holding
//! a lock. Locks of dead holders are removed on the way.

mod guard;
mod holder;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use guard::locks_given_back;
pub(crate) use guard::{LockGuard, delete, delete_all, store, write};
pub use holder::{FOREIGN_STALE, Instance, LockHolder, LockJudge, RestRule, rest_rule};
pub(crate) use stored::StoredLock;

use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::options::OpenOptions;

/// How long others that looked at the same moment get to show themselves.
const SETTLE: Duration = Duration::from_millis(200);
const POLL_MAX: Duration = Duration::from_secs(2);

/// What a lock is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Read, or add.
    Shared,
    /// Remove.
    Exclusive,
}

/// Takes a lock, waiting as long as the options say. Whoever stops waiting for this leaves no lock behind: what was begun
/// is taken back beside them.
pub(crate) async fn acquire(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    cancel: &CancellationToken,
) -> Result<LockGuard> {
    let mut patience = Patience::new(options);
    loop {
        let guard = begin(files, options, mode, &mut patience, cancel).await?;
        guard.rely_on(Vec::new());
        match unless(cancel, guard.settled()).await {
            Ok(()) => return Ok(guard),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => {
                guard.release(cancel).await;
                patience.bear(error, cancel).await?;
            }
        }
    }
}

/// Attempts to read, and to add, under a shared lock. Reading begins at once; what others may rely on waits until
/// they had time to show themselves, and until it is certain that the index is still the one that was read, which has to be
/// named by [`LockGuard::rely_on`]. Where somebody came at the same moment, no more than packs was written, and all begins anew.
pub(crate) struct Adding<'a> {
    files: &'a Files,
    options: &'a OpenOptions,
    cancel: &'a CancellationToken,
    patience: Patience,
}

impl<'a> Adding<'a> {
    pub(crate) fn new(
        files: &'a Files,
        options: &'a OpenOptions,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self {
            files,
            options,
            cancel,
            patience: Patience::new(options),
        }
    }

    pub(crate) async fn begin(&mut self) -> Result<LockGuard> {
        let (files, options) = (self.files, self.options);
        begin(
            files,
            options,
            Mode::Shared,
            &mut self.patience,
            self.cancel,
        )
        .await
    }

    /// Gives the lock back. `None`: try again.
    pub(crate) async fn end<T>(
        &mut self,
        guard: LockGuard,
        mut result: Result<T>,
    ) -> Option<Result<T>> {
        if result.is_err() && !self.cancel.is_cancelled() {
            // It may have failed only because somebody removed what it read.
            guard.rely_on(Vec::new());
            if let Err(refused) = unless(self.cancel, guard.settled()).await {
                result = Err(refused);
            }
        }
        guard.release(self.cancel).await;
        match result {
            Err(error @ Error::Locked { .. }) => {
                self.patience.bear(error, self.cancel).await.err().map(Err)
            }
            result => Some(result),
        }
    }
}

/// Writes a lock that is not settled yet.
async fn begin(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    patience: &mut Patience,
    cancel: &CancellationToken,
) -> Result<LockGuard> {
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    loop {
        let (files, options, stop) = (files.clone(), options.clone(), stop.clone());
        let healed = Arc::clone(&patience.healed);
        let mut beginning = guard::BESIDE.spawn(try_begin(files, options, mode, stop, healed));
        let begun = tokio::select! {
            begun = &mut beginning => {
                begun.map_err(|error| Error::Internal(error.to_string()))?
            }
            () = cancel.cancelled() => Err(Error::Cancelled),
        };
        match begun {
            Ok(guard) => return Ok(guard),
            Err(error) => patience.bear(error, cancel).await?,
        }
    }
}

/// What somebody takes along from one attempt to the next.
#[derive(Debug)]
struct Patience {
    /// How long they still wait for a conflicting lock to go away.
    deadline: Instant,
    pause: Duration,
    /// Whether they removed a shared lock of the dead, see [`LockGuard::healed`].
    healed: Arc<AtomicBool>,
}

impl Patience {
    fn new(options: &OpenOptions) -> Self {
        Self {
            deadline: Instant::now() + options.lock_wait,
            pause: SETTLE,
            healed: Arc::default(),
        }
    }

    /// Waits a while after a conflict. Fails with `error` where it is none, or where it has taken too long.
    async fn bear(&mut self, error: Error, cancel: &CancellationToken) -> Result<()> {
        let conflict = matches!(error, Error::Locked { .. });
        if !conflict || Instant::now() + self.pause >= self.deadline {
            return Err(error);
        }
        // Half fixed, half random: two that met do not meet again.
        let random = self.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        let slept = cancel.run_until_cancelled(tokio::time::sleep(random)).await;
        self.pause = (self.pause * 2).min(POLL_MAX);
        slept.ok_or(Error::Cancelled)
    }
}

/// Does something short, which nobody cancels, while holding a lock.
pub(crate) async fn holding<T>(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    work: impl AsyncFnOnce(&LockGuard) -> Result<T>,
) -> Result<T> {
    let never = CancellationToken::new();
    let guard = acquire(files, options, mode, &never).await?;
    let result = work(&guard).await;
    guard.release(&never).await;
    result
}

async fn try_begin(
    files: Files,
    options: OpenOptions,
    mode: Mode,
    stop: CancellationToken,
    healed: Arc<AtomicBool>,
) -> Result<LockGuard> {
    // `restic unlock` probes a process on its own host with this signal. Once handled, it never ends this process again.
    let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let first_look = (Instant::now(), SystemTime::now());
    unless(
        &stop,
        refuse_conflict(&files, &options, mode, None, &healed),
    )
    .await?;
    let lock = StoredLock::new(&options.holder, mode == Mode::Exclusive);
    let begun = (Instant::now(), SystemTime::now());
    let id = guard::put(&files, &lock).await?;
    // Whoever came after the first look looks again when ours is long there.
    let seen_by_all = guard::since(first_look) < SETTLE / 2;
    let (reading, read) = (!seen_by_all).then(oneshot::channel).unzip();
    let look = {
        let (files, healed) = (files.clone(), Arc::clone(&healed));
        async move {
            tokio::time::sleep(SETTLE).await;
            let looked = Instant::now();
            let seen = refuse_conflict(&files, &options, mode, Some(&id), &healed).await?;
            if let Some(read) = read {
                refuse_changes(&files, read).await?;
            }
            Ok(seen.then_some(looked))
        }
    };
    Ok(LockGuard::hold(
        files, lock, id, begun, healed, look, reading,
    ))
}

/// Fails if index files are gone that were read before the second look. A prune that looked before our lock came to sight,
/// because that took long, and ended before the second look, is seen by nothing else. From here on nobody can prune.
async fn refuse_changes(files: &Files, read: oneshot::Receiver<Vec<Id>>) -> Result<()> {
    let read = read.await.unwrap_or_default();
    if read.is_empty() {
        return Ok(());
    }
    let listed = files.list(FileKind::Index).await?;
    let present: HashSet<Id> = listed.into_iter().map(|(id, _)| id).collect();
    match read.iter().all(|id| present.contains(id)) {
        true => Ok(()),
        false => Err(Error::Locked {
            holder: "somebody who pruned a moment ago".into(),
            exclusive: true,
            age: Duration::ZERO,
        }),
    }
}

async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    stop.run_until_cancelled(work)
        .await
        .unwrap_or(Err(Error::Cancelled))
}

/// Fails if somebody living holds a lock that conflicts. Removes the locks of the dead. Returns whether the own one is there.
async fn refuse_conflict(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    own: Option<&Id>,
    healed: &AtomicBool,
) -> Result<bool> {
    let found = living(files, options, own, healed).await?;
    for (lock, age) in found.others {
        let conflicts = mode == Mode::Exclusive || lock.exclusive;
        if conflicts {
            let holder = lock.holder();
            return Err(Error::Locked {
                holder: holder.to_string(),
                exclusive: lock.exclusive,
                age,
            });
        }
    }
    Ok(found.own)
}

/// The locks of the living.
#[derive(Debug, Default)]
struct Living {
    /// Whether the own one is among them.
    own: bool,
    /// The others, and how long ago each was refreshed.
    others: Vec<(StoredLock, Duration)>,
    /// How many locks of the dead were removed.
    removed: u64,
}

/// Looks at all locks and removes those of the dead; `healed` becomes true where a shared one is among them.
async fn living(
    files: &Files,
    options: &OpenOptions,
    own: Option<&Id>,
    healed: &AtomicBool,
) -> Result<Living> {
    let now = Timestamp::now();
    let mut found = Living::default();
    let mut listed = files.list(FileKind::Lock).await?;
    let mut seen = HashSet::new();
    while let Some((id, meta)) = listed.pop() {
        if own == Some(&id) {
            found.own = true;
            continue;
        }
        if !seen.insert(id) {
            continue;
        }
        let lock = match files.load(FileKind::Lock, &id).await {
            Ok(json) => StoredLock::parse(&FileKind::Lock.path(&id), &json),
            // Given back since it was listed, or refreshed: then it has another name now.
            Err(Error::Storage(error)) if error.is_not_found() => {
                listed = files.list(FileKind::Lock).await?;
                continue;
            }
            Err(error) => Err(error),
        };
        let dead = match &lock {
            Ok(lock) => {
                options
                    .judge
                    .is_dead(&lock.holder(), age(now, lock.time))
                    .await
            }
            // Nobody confirms a lock that cannot be read. Until it is old it may be somebody's.
            Err(Error::Corrupt { .. }) => {
                meta.modified.is_some_and(|at| age(now, at) > FOREIGN_STALE)
            }
            Err(_) => false,
        };
        if dead {
            tracing::info!(lock = %id, "removing the lock of a dead holder");
            if lock.is_ok_and(|lock| !lock.exclusive) {
                healed.store(true, Ordering::Relaxed);
            }
            delete(files, FileKind::Lock, &id).await?;
            found.removed += 1;
            continue;
        }
        let lock = lock?;
        let age = age(now, lock.time);
        found.others.push((lock, age));
    }
    Ok(found)
}

/// Removes the locks of dead holders and says how many.
pub(crate) async fn remove_dead(files: &Files, options: &OpenOptions) -> Result<u64> {
    let healed = AtomicBool::default();
    Ok(living(files, options, None, &healed).await?.removed)
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
