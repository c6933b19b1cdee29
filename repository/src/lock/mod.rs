//! Locks on a repository, by restic's protocol.
//!
//! Look, create, wait, look again; on a conflict delete the own one. A lock is confirmed every minute by a new file;
//! who could not confirm for three minutes, or finds the own file gone, writes nothing more. Nobody waits while holding
//! a lock. Locks of dead holders are removed on the way.

mod holder;
mod stored;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use holder::{FOREIGN_STALE, Instance, LockHolder, LockJudge, RestRule, rest_rule};
pub(crate) use stored::StoredLock;

use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::options::OpenOptions;

/// How long others that looked at the same moment get to show themselves.
const SETTLE: Duration = Duration::from_millis(200);
const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_RETRY: Duration = Duration::from_secs(10);
/// Without confirmation for so long, we are not a holder any more.
const EXPIRY: Duration = Duration::from_secs(180);
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
const POLL_MAX: Duration = Duration::from_secs(2);

/// What a lock is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Read, or add.
    Shared,
    /// Remove.
    Exclusive,
}

/// Takes a lock, waiting as long as the options say.
pub(crate) async fn acquire(files: &Files, options: &OpenOptions, mode: Mode) -> Result<LockGuard> {
    let deadline = Instant::now() + options.lock_wait;
    let mut pause = SETTLE;
    loop {
        match try_acquire(files, options, mode).await {
            Err(Error::Locked { .. }) if Instant::now() + pause < deadline => {
                // Half fixed, half random: two that met do not meet again.
                let random = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                tokio::time::sleep(random).await;
                pause = (pause * 2).min(POLL_MAX);
            }
            result => return result,
        }
    }
}

async fn try_acquire(files: &Files, options: &OpenOptions, mode: Mode) -> Result<LockGuard> {
    // `restic unlock` probes a process on its own host with this signal.
    let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    refuse_conflict(files, options, mode, None).await?;
    let lock = StoredLock::new(&options.holder, mode == Mode::Exclusive);
    let begun = (Instant::now(), SystemTime::now());
    let id = write(files, &lock).await?;
    let guard = LockGuard::hold(files.clone(), lock, id, begun);
    tokio::time::sleep(SETTLE).await;
    match refuse_conflict(files, options, mode, Some(&id)).await {
        Ok(()) => Ok(guard),
        Err(error) => {
            guard.release().await;
            Err(error)
        }
    }
}

/// Fails if somebody living holds a lock that conflicts. Removes the locks of the dead.
async fn refuse_conflict(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    own: Option<&Id>,
) -> Result<()> {
    for (id, lock, age) in living(files, options).await? {
        let conflicts = mode == Mode::Exclusive || lock.exclusive;
        if own != Some(&id) && conflicts {
            let holder = lock.holder();
            return Err(Error::Locked {
                holder: holder.to_string(),
                exclusive: lock.exclusive,
                age,
            });
        }
    }
    Ok(())
}

/// All locks but those of the dead, which are removed.
async fn living(files: &Files, options: &OpenOptions) -> Result<Vec<(Id, StoredLock, Duration)>> {
    let now = Timestamp::now();
    let mut living = Vec::new();
    for (id, meta) in files.list(FileKind::Lock).await? {
        let lock = match files.load(FileKind::Lock, &id).await {
            Ok(json) => StoredLock::parse(&FileKind::Lock.path(&id), &json),
            // Given back since it was listed.
            Err(Error::Storage(error)) if error.is_not_found() => continue,
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
            files.delete(FileKind::Lock, &id).await?;
            continue;
        }
        let lock = lock?;
        let age = age(now, lock.time);
        living.push((id, lock, age));
    }
    Ok(living)
}

/// Removes the locks of dead holders and says how many.
pub(crate) async fn remove_dead(files: &Files, options: &OpenOptions) -> Result<u64> {
    let before = files.list(FileKind::Lock).await?.len();
    let after = living(files, options).await?.len();
    Ok(before.saturating_sub(after) as u64)
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

async fn write(files: &Files, lock: &StoredLock) -> Result<Id> {
    let json = lock.to_json()?;
    match tokio::time::timeout(WRITE_DEADLINE, files.save(FileKind::Lock, &json)).await {
        Ok(saved) => Ok(saved?.0),
        Err(_) => Err(Error::LockLost {
            reason: "the store did not take it in time".into(),
        }),
    }
}

/// A lock that we hold.
#[derive(Debug)]
pub(crate) struct LockGuard {
    state: Arc<State>,
    refresher: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct State {
    files: Files,
    id: Mutex<Id>,
    /// Start of the last request that confirmed it, by both clocks: one stands still while the machine sleeps.
    confirmed: Mutex<(Instant, SystemTime)>,
    lost: CancellationToken,
    released: std::sync::atomic::AtomicBool,
}

impl LockGuard {
    fn hold(files: Files, lock: StoredLock, id: Id, begun: (Instant, SystemTime)) -> Self {
        let state = Arc::new(State {
            files,
            id: Mutex::new(id),
            confirmed: Mutex::new(begun),
            lost: CancellationToken::new(),
            released: false.into(),
        });
        let refresher = tokio::spawn(refresh(Arc::clone(&state), lock));
        Self {
            state,
            refresher: Some(AbortOnDropHandle::new(refresher)),
        }
    }

    /// Cancelled when the lock is lost.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.state.lost
    }

    /// Fails unless the lock was confirmed lately. Call before each write.
    pub(crate) fn ensure(&self) -> Result<()> {
        self.state.ensure()
    }

    /// Looks at the lock file itself. Call before each write that makes others rely on something.
    pub(crate) async fn confirm(&self) -> Result<()> {
        self.state.ensure()?;
        self.state.see().await
    }

    /// Gives the lock back. Failing to do so only leaves a lock that dies of age.
    pub(crate) async fn release(mut self) {
        self.refresher = None;
        self.state
            .released
            .store(true, std::sync::atomic::Ordering::Release);
        let id = *self.state.id.lock();
        if let Err(error) = self.state.files.delete(FileKind::Lock, &id).await {
            tracing::warn!(%error, "cannot remove the own lock");
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self
            .state
            .released
            .load(std::sync::atomic::Ordering::Acquire)
        {
            return;
        }
        self.refresher = None;
        // The operation's future was dropped: clean up beside it, where a runtime is left to do so.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let state = Arc::clone(&self.state);
            runtime.spawn(async move {
                let id = *state.id.lock();
                let _ = state.files.delete(FileKind::Lock, &id).await;
            });
        }
    }
}

impl State {
    fn ensure(&self) -> Result<()> {
        let (instant, wall) = *self.confirmed.lock();
        let age = instant.elapsed().max(wall.elapsed().unwrap_or_default());
        if self.lost.is_cancelled() || age > EXPIRY {
            self.lost.cancel();
            let reason = format!("last confirmed {}s ago", age.as_secs());
            return Err(Error::LockLost { reason });
        }
        Ok(())
    }

    async fn see(&self) -> Result<()> {
        let begun = (Instant::now(), SystemTime::now());
        let id = *self.id.lock();
        if self
            .files
            .store
            .head(&FileKind::Lock.path(&id))
            .await?
            .is_some()
            || *self.id.lock() != id
        {
            *self.confirmed.lock() = begun;
            return Ok(());
        }
        self.lost.cancel();
        Err(Error::LockLost {
            reason: "somebody removed it".into(),
        })
    }
}

/// Confirms the lock until it is given back or lost: a new file, then the old one away.
async fn refresh(state: Arc<State>, mut lock: StoredLock) {
    let mut pause = REFRESH;
    while !state.lost.is_cancelled() {
        tokio::time::sleep(pause).await;
        pause = match renew(&state, &mut lock).await {
            Ok(()) => REFRESH,
            Err(error) => {
                tracing::warn!(%error, "cannot confirm the lock");
                let _ = state.ensure();
                REFRESH_RETRY
            }
        };
    }
}

async fn renew(state: &State, lock: &mut StoredLock) -> Result<()> {
    state.see().await?;
    lock.time = Timestamp::now();
    let begun = (Instant::now(), SystemTime::now());
    let new = write(&state.files, lock).await?;
    let old = std::mem::replace(&mut *state.id.lock(), new);
    *state.confirmed.lock() = begun;
    state.files.delete(FileKind::Lock, &old).await
}

/// Deletes files, several at once, and stops at the first error. The lock is looked at before each round.
pub(crate) async fn delete_all(
    files: &Files,
    guard: &LockGuard,
    kind: FileKind,
    ids: &[Id],
) -> Result<()> {
    for round in ids.chunks(64) {
        guard.confirm().await?;
        let mut deletions = futures::stream::iter(round.to_vec())
            .map(|id| async move { files.delete(kind, &id).await })
            .buffer_unordered(8);
        while let Some(result) = deletions.next().await {
            result?;
        }
    }
    Ok(())
}
