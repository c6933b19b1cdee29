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

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
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
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (files, options) = (files.clone(), options.clone());
    let mut acquiring = guard::BESIDE.spawn(acquire_unless(files, options, mode, stop));
    tokio::select! {
        result = &mut acquiring => {
            result.map_err(|error| Error::Internal(error.to_string()))?
        }
        () = cancel.cancelled() => Err(Error::Cancelled),
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

async fn acquire_unless(
    files: Files,
    options: OpenOptions,
    mode: Mode,
    stop: CancellationToken,
) -> Result<LockGuard> {
    let deadline = Instant::now() + options.lock_wait;
    let mut pause = SETTLE;
    loop {
        match try_acquire(&files, &options, mode, &stop).await {
            Err(Error::Locked { .. }) if Instant::now() + pause < deadline => {
                // Half fixed, half random: two that met do not meet again.
                let random = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                let slept = stop.run_until_cancelled(tokio::time::sleep(random)).await;
                slept.ok_or(Error::Cancelled)?;
                pause = (pause * 2).min(POLL_MAX);
            }
            result => return result,
        }
    }
}

async fn try_acquire(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    stop: &CancellationToken,
) -> Result<LockGuard> {
    // `restic unlock` probes a process on its own host with this signal. Once handled, it never ends this process again.
    let _ = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let healed = unless(stop, refuse_conflict(files, options, mode, None)).await?;
    let lock = StoredLock::new(&options.holder, mode == Mode::Exclusive);
    let begun = (Instant::now(), SystemTime::now());
    let id = guard::put(files, &lock).await?;
    let guard = LockGuard::hold(files.clone(), lock, id, begun, healed);
    let settled = async {
        tokio::time::sleep(SETTLE).await;
        refuse_conflict(files, options, mode, Some(&id)).await
    };
    match unless(stop, settled).await {
        Ok(_) => Ok(guard),
        Err(error) => {
            guard.release(stop).await;
            Err(error)
        }
    }
}

async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    stop.run_until_cancelled(work)
        .await
        .unwrap_or(Err(Error::Cancelled))
}

/// Fails if somebody living holds a lock that conflicts. Removes the locks of the dead and says how many.
async fn refuse_conflict(
    files: &Files,
    options: &OpenOptions,
    mode: Mode,
    own: Option<&Id>,
) -> Result<u64> {
    let (living, removed) = living(files, options, own).await?;
    for (id, lock, age) in living {
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
    Ok(removed)
}

/// A lock, by whom, and how long ago it was refreshed.
type Living = (Id, StoredLock, Duration);

/// All locks but those of the dead, which are removed and counted.
async fn living(
    files: &Files,
    options: &OpenOptions,
    own: Option<&Id>,
) -> Result<(Vec<Living>, u64)> {
    let now = Timestamp::now();
    let mut living = Vec::new();
    let mut removed = 0;
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
        if dead && own != Some(&id) {
            tracing::info!(lock = %id, "removing the lock of a dead holder");
            delete(files, FileKind::Lock, &id).await?;
            removed += 1;
            continue;
        }
        let lock = lock?;
        let age = age(now, lock.time);
        living.push((id, lock, age));
    }
    Ok((living, removed))
}

/// Removes the locks of dead holders and says how many.
pub(crate) async fn remove_dead(files: &Files, options: &OpenOptions) -> Result<u64> {
    Ok(living(files, options, None).await?.1)
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
