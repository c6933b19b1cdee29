//! A lock that we hold: kept fresh, seen again, given back when nothing relies on it any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StoredLock;
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;

pub(super) const REFRESH: Duration = Duration::from_secs(60);
const REFRESH_RETRY: Duration = Duration::from_secs(10);
/// Without a refresh for so long, we are not a holder any more.
pub(super) const EXPIRY: Duration = Duration::from_secs(180);
/// No write takes longer, so that none takes effect long after the lock that it was made under.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// What the store cannot take now is offered again for so long, while the lock holds, as restic does: a moment without the store must
/// not cost all that was read.
pub(super) const STORE_FOR: Duration = Duration::from_secs(15 * 60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A lock that was seen so lately need not be looked for again: a request may take as long.
const FRESH: Duration = Duration::from_millis(200);
/// Who was cancelled waits no longer than this for the lock to go; it goes beside them.
const PATIENCE: Duration = Duration::from_millis(200);

/// What takes and keeps this process's locks, beside the operations.
pub(super) static BESIDE: LazyLock<TaskTracker> = LazyLock::new(|| {
    let tasks = TaskTracker::new();
    tasks.close();
    tasks
});

/// A point in time by both clocks: one stands still while the machine sleeps, the other may be set.
pub(super) type Moment = (Instant, SystemTime);

pub(super) fn since((instant, wall): Moment) -> Duration {
    instant.elapsed().max(wall.elapsed().unwrap_or_default())
}

/// Waits until this process holds no lock any more. An operation that was cancelled returns while its lock is still being
/// given back: a process that ends without waiting for this leaves a lock that others have to heal.
pub async fn locks_given_back() {
    BESIDE.wait().await;
}

/// A lock that we hold. Dropped, it is given back by a task of its own.
#[derive(Debug)]
pub(crate) struct LockGuard {
    state: Arc<State>,
    keeper: Option<JoinHandle<()>>,
    healed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    files: Files,
    id: Mutex<Id>,
    /// When the last refresh was begun that the store confirmed.
    refreshed: Mutex<Moment>,
    /// When the second look saw it.
    seen: Mutex<Option<Instant>>,
    /// Why it was not ours from the beginning.
    refused: Mutex<Option<Refusal>>,
    /// Cancelled when it is known whether anybody came at the same moment.
    settled: CancellationToken,
    /// Whether nobody can remove anything without having seen it.
    seen_by_all: bool,
    /// Takes the index files that were read before that.
    reading: Mutex<Option<oneshot::Sender<Vec<Id>>>>,
    lost: CancellationToken,
    given_back: CancellationToken,
    /// Writes that others rely on. The lock stays until they have ended.
    writes: TaskTracker,
}

/// What the second look found.
#[derive(Debug)]
enum Refusal {
    Conflict {
        holder: String,
        exclusive: bool,
        age: Duration,
    },
    /// It could not be had.
    Blind(String),
}

impl From<&Refusal> for Error {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Conflict {
                holder,
                exclusive,
                age,
            } => Error::Locked {
                holder: holder.clone(),
                exclusive: *exclusive,
                age: *age,
            },
            Refusal::Blind(reason) => Error::LockLost {
                reason: reason.clone(),
            },
        }
    }
}

impl LockGuard {
    /// `begun`: when the lock file `id` was written. `healed`: whether shared locks of the dead were removed on the way.
    /// `look`: the second look at the others, after which the lock is settled; it tells when it saw the own one. `reading`
    /// tells it of [`LockGuard::rely_on`]; there is none where nobody can have begun to remove anything without seeing the lock.
    pub(super) fn hold(
        files: Files,
        lock: StoredLock,
        id: Id,
        begun: Moment,
        healed: Arc<AtomicBool>,
        look: impl Future<Output = Result<Option<Instant>>> + Send + 'static,
        reading: Option<oneshot::Sender<Vec<Id>>>,
    ) -> Self {
        let state = Arc::new(State {
            files,
            id: Mutex::new(id),
            refreshed: Mutex::new(begun),
            seen: Mutex::new(None),
            refused: Mutex::new(None),
            settled: CancellationToken::new(),
            seen_by_all: reading.is_none(),
            reading: Mutex::new(reading),
            lost: CancellationToken::new(),
            given_back: CancellationToken::new(),
            writes: TaskTracker::new(),
        });
        BESIDE.spawn(settle(Arc::clone(&state), look));
        let keeper = Some(BESIDE.spawn(keep(Arc::clone(&state), lock)));
        Self {
            state,
            keeper,
            healed,
        }
    }

    /// Cancelled when the lock is lost.
    pub(crate) fn lost(&self) -> &CancellationToken {
        &self.state.lost
    }

    /// Whether a holder died before us who may have added something that no index lists yet. Those who remove are not
    /// meant: what no index lists any more is what they were about to delete.
    pub(crate) fn healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Says which index files were read before the lock was settled: where it took long to take, it cannot be settled without.
    pub(crate) fn rely_on(&self, index: Vec<Id>) {
        if let Some(reading) = self.state.reading.lock().take() {
            // Nobody listens any more where the lock was refused.
            let _ = reading.send(index);
        }
    }

    /// Waits until it is known whether anybody came at the same moment; fails where somebody has. To be awaited before
    /// anything that others may see.
    pub(crate) fn settled(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let state = Arc::clone(&self.state);
        async move { state.settled().await }
    }

    /// Waits until nobody can remove what is stored now: where the lock came to sight at once, that is so from the beginning, for
    /// whoever is about to remove something looks a second time 200 ms after they came. To be awaited before packs, on which
    /// nobody relies yet: where somebody came at the same moment, they are left over.
    pub(crate) fn shielded(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let state = Arc::clone(&self.state);
        async move {
            match state.seen_by_all {
                true => state.ensure(),
                false => state.settled().await,
            }
        }
    }

    /// Fails unless the lock was refreshed lately. Call before each write.
    pub(crate) fn ensure(&self) -> Result<()> {
        self.state.ensure()
    }

    /// Looks at the lock file itself. Call before each write that makes others rely on something.
    pub(crate) async fn confirm(&self) -> Result<()> {
        self.state.confirm().await
    }

    /// Stores a pack once it is shielded.
    pub(crate) fn store_pack(
        &self,
        id: Id,
        bytes: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let (shielded, state) = (self.shielded(), Arc::clone(&self.state));
        async move {
            shielded.await?;
            state.store(FileKind::Pack, &id, bytes).await
        }
    }

    /// Gives the lock back. Failing to do so only leaves a lock that others heal.
    pub(crate) async fn release(mut self, cancel: &CancellationToken) {
        self.state.given_back.cancel();
        let Some(keeper) = self.keeper.take() else {
            return;
        };
        let impatient = async {
            cancel.cancelled().await;
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            _ = keeper => {}
            () = impatient => {}
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.state.given_back.cancel();
    }
}

impl State {
    async fn settled(&self) -> Result<()> {
        self.settled.cancelled().await;
        self.ensure()
    }

    fn ensure(&self) -> Result<()> {
        if let Some(refusal) = &*self.refused.lock() {
            return Err(refusal.into());
        }
        let age = since(*self.refreshed.lock());
        if self.lost.is_cancelled() || age > EXPIRY {
            self.lost.cancel();
            let reason = format!("last refreshed {}s ago", age.as_secs());
            return Err(Error::LockLost { reason });
        }
        Ok(())
    }

    async fn confirm(&self) -> Result<()> {
        self.settled().await?;
        let seen = *self.seen.lock();
        if seen.is_none_or(|at| at.elapsed() >= FRESH) {
            self.see().await?;
        }
        // The look may have taken long.
        self.ensure()
    }

    /// Stores a file, several times where the store cannot take it now. Each time the lock is made sure of first, so nothing is begun
    /// after its end.
    async fn store(&self, kind: FileKind, id: &Id, bytes: Bytes) -> Result<()> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = async {
                match kind {
                    // Nobody relies on it yet.
                    FileKind::Pack => self.ensure()?,
                    _ => self.confirm().await?,
                }
                if self.given_back.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                store(&self.files, kind, id, bytes.clone()).await
            };
            match attempt.await {
                Err(Error::Storage(error))
                    if error.is_retryable() && begun.elapsed() + pause < STORE_FOR =>
                {
                    tracing::warn!(%error, "not stored yet");
                }
                done => return done,
            }
            let random = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = tokio::time::sleep(random) => {}
                () = self.lost.cancelled() => {}
                () = self.given_back.cancelled() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn see(&self) -> Result<()> {
        let id = *self.id.lock();
        let path = FileKind::Lock.path(&id);
        let seen = within_deadline(&self.files, &path, async {
            Ok(self.files.store.head(&path).await?)
        });
        // A refresh meanwhile took the file away that was looked for, after it wrote another.
        if seen.await?.is_some() || *self.id.lock() != id {
            return Ok(());
        }
        self.lost.cancel();
        Err(Error::LockLost {
            reason: "somebody removed it".into(),
        })
    }
}

/// Ends the time in which others that looked at the same moment could show themselves.
async fn settle(state: Arc<State>, look: impl Future<Output = Result<Option<Instant>>>) {
    let refusal = match state.given_back.run_until_cancelled(look).await {
        Some(Ok(seen)) => {
            *state.seen.lock() = seen;
            None
        }
        Some(Err(Error::Locked {
            holder,
            exclusive,
            age,
        })) => Some(Refusal::Conflict {
            holder,
            exclusive,
            age,
        }),
        Some(Err(error)) => {
            let reason = format!("the second look at the locks failed: {error}");
            Some(Refusal::Blind(reason))
        }
        // Whoever still waits to write comes too late.
        None => Some(Refusal::Blind("it was given back".into())),
    };
    if refusal.is_some() {
        *state.refused.lock() = refusal;
        state.lost.cancel();
    }
    state.settled.cancel();
}

/// Refreshes the lock until it is given back or lost, and takes it away in the end.
async fn keep(state: Arc<State>, mut lock: StoredLock) {
    // More than one only while it is unknown what became of a deletion.
    let mut own = vec![*state.id.lock()];
    let mut pause = REFRESH;
    loop {
        tokio::select! {
            () = state.given_back.cancelled() => break,
            () = tokio::time::sleep(pause), if !state.lost.is_cancelled() => {}
        }
        pause = match refresh(&state, &mut lock, &mut own).await {
            Ok(()) => REFRESH,
            Err(error) => {
                tracing::warn!(%error, "cannot refresh the lock");
                let _ = state.ensure();
                REFRESH_RETRY
            }
        };
    }
    state.writes.close();
    state.writes.wait().await;
    for id in own {
        if let Err(error) = delete(&state.files, FileKind::Lock, &id).await {
            tracing::warn!(%error, "cannot remove the own lock");
        }
    }
}

/// A new file, then the old one away.
async fn refresh(state: &State, lock: &mut StoredLock, own: &mut Vec<Id>) -> Result<()> {
    state.see().await?;
    lock.time = Timestamp::now();
    let begun = (Instant::now(), SystemTime::now());
    let new = put(&state.files, lock).await?;
    own.push(new);
    // Who took the old one away before the new one came to sight believes that nobody is here.
    state.see().await?;
    *state.id.lock() = new;
    *state.refreshed.lock() = begun;
    while own.len() > 1 {
        delete(&state.files, FileKind::Lock, &own[0]).await?;
        own.remove(0);
    }
    Ok(())
}

/// Writes a lock file. Where the store does not confirm it, it is taken back as far as that goes.
pub(super) async fn put(files: &Files, lock: &StoredLock) -> Result<Id> {
    let (id, sealed) = files.seal(&lock.to_json()?)?;
    if let Err(error) = store(files, FileKind::Lock, &id, sealed).await {
        let _ = delete(files, FileKind::Lock, &id).await;
        return Err(error);
    }
    Ok(id)
}

/// Stores a file within the deadline for writes.
pub(crate) async fn store(files: &Files, kind: FileKind, id: &Id, bytes: Bytes) -> Result<()> {
    let path = kind.path(id);
    let stored = async { Ok(files.store.put(&path, bytes).await?) };
    within_deadline(files, &path, stored).await
}

/// Removes a file within the deadline for writes. One that is gone is fine.
pub(crate) async fn delete(files: &Files, kind: FileKind, id: &Id) -> Result<()> {
    within_deadline(files, &kind.path(id), files.delete(kind, id)).await
}

async fn within_deadline<T>(
    files: &Files,
    path: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let done = tokio::time::timeout(WRITE_DEADLINE, work).await;
    done.unwrap_or_else(|_| {
        Err(Error::Storage(jackline_storage::Error::Timeout {
            location: files.store.location(),
            key: path.to_owned(),
            after: WRITE_DEADLINE,
        }))
    })
}

/// Writes a file that others will rely on, while the lock is ours. Returns its name and size. A snapshot whose writer
/// failed, or was cancelled and waits no longer, is taken back before the lock goes.
pub(crate) async fn write(
    files: &Files,
    guard: &LockGuard,
    kind: FileKind,
    json: &[u8],
) -> Result<(Id, u64)> {
    let (id, sealed) = files.seal(json)?;
    let size = sealed.len() as u64;
    let (tell, told) = oneshot::channel();
    let (take, taken) = oneshot::channel();
    let (files, state) = (files.clone(), Arc::clone(&guard.state));
    guard.state.writes.spawn(async move {
        let stored = state.store(kind, &id, sealed).await;
        let failed = stored.is_err();
        let abandoned = tell.send(stored).is_err() || taken.await.is_err();
        if (failed || abandoned) && kind == FileKind::Snapshot {
            let _ = delete(&files, kind, &id).await;
        }
    });
    let stored = told.await;
    let _ = take.send(());
    stored.map_err(|_| Error::Internal("a write ended without a word".into()))??;
    Ok((id, size))
}

/// Deletes files, several at once. After an error, or when nobody waits any more, no other deletion begins; the lock stays
/// until those under way have ended, for the server may know of them. The lock is looked at before each round.
pub(crate) async fn delete_all(
    files: &Files,
    guard: &LockGuard,
    kind: FileKind,
    ids: &[Id],
) -> Result<()> {
    for round in ids.chunks(64) {
        guard.confirm().await?;
        let mut deletions = futures::stream::iter(round.to_vec())
            .map(|id| async move {
                // A deletion may have waited for those before it.
                guard.ensure()?;
                let files = files.clone();
                let deletion = async move { delete(&files, kind, &id).await };
                let deleted = guard.state.writes.spawn(deletion).await;
                deleted.map_err(|error| Error::Internal(error.to_string()))?
            })
            .buffer_unordered(8);
        while let Some(result) = deletions.next().await {
            result?;
        }
    }
    Ok(())
}
