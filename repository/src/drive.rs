//! Running an operation's threads beside the uploads, the progress and whatever may end it early.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::files::Files;
use crate::index::Index;
use crate::lock::LockGuard;
use crate::packer::{Packer, Room};
use crate::progress::Progress;
use crate::uploader::{IN_FLIGHT, Uploader};

const TICK: Duration = Duration::from_millis(250);
/// How long a cancelled operation may take to end in order.
const GRACE: Duration = Duration::from_millis(400);
/// More threads would only need more memory: two already fill a fast link.
const MAX_THREADS: usize = 4;

/// Threads for work that needs a processor.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .clamp(1, MAX_THREADS)
}

/// What the threads count and the caller's progress shows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) files: AtomicU64,
    pub(crate) total_bytes: AtomicU64,
    pub(crate) total_files: AtomicU64,
    /// What is known of the totals before they are counted: those of the parent.
    pub(crate) at_least: [AtomicU64; 2],
    /// Bytes of packs that the store has taken.
    pub(crate) stored: AtomicU64,
}

impl Counters {
    pub(crate) fn advance(&self, bytes: u64, files: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.files.fetch_add(files, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, bytes: u64, files: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.total_files.fetch_add(files, Ordering::Relaxed);
    }
}

/// Passes counters on to the caller's progress.
pub(crate) struct Pump<'a> {
    progress: &'a dyn Progress,
    counters: Arc<Counters>,
    told: [u64; 5],
}

impl<'a> Pump<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, counters: Arc<Counters>) -> Self {
        Self {
            progress,
            counters,
            told: [0; 5],
        }
    }

    pub(crate) fn tell(&mut self) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let done = [read(&counters.bytes), read(&counters.files)];
        let seen = [read(&counters.total_bytes), read(&counters.total_files)];
        let total = [0, 1].map(|at| seen[at].max(done[at]).max(read(&counters.at_least[at])));
        if total != [self.told[2], self.told[3]] {
            self.progress.total(total[0], total[1]);
        }
        if done != [self.told[0], self.told[1]] {
            self.progress
                .advance(done[0] - self.told[0], done[1] - self.told[1]);
        }
        let stored = read(&counters.stored);
        if stored != self.told[4] {
            self.progress.stored(stored - self.told[4]);
        }
        self.told = [done[0], done[1], total[0], total[1], stored];
    }
}

/// Runs an operation. Cancelled, it may end in order for a moment; then it is dropped where it stands.
pub(crate) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    operation: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        result = operation => result,
        () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => {
            Err(Error::Cancelled)
        }
    }
}

/// Waits, on a thread of its own, for something of the store, but not after `stop`.
pub(crate) fn wait<T>(
    runtime: &Handle,
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let stopped = || Err(Error::Cancelled);
    runtime.block_on(async { stop.run_until_cancelled(work).await.unwrap_or_else(stopped) })
}

/// Runs `work` on a thread of its own while `pump` tells of it.
pub(crate) async fn blocking<T: Send + 'static>(
    guard: Option<&LockGuard>,
    cancel: &CancellationToken,
    pump: &mut Pump<'_>,
    work: impl FnOnce(CancellationToken) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let lost = guard.map_or_else(CancellationToken::new, |guard| guard.lost().clone());
    let inner = stop.clone();
    let mut handle = tokio::task::spawn_blocking(move || work(inner));
    let mut tick = tokio::time::interval(TICK);
    let mut lock_lost = false;
    let result = loop {
        tokio::select! {
            result = &mut handle => break result,
            _ = tick.tick() => pump.tell(),
            () = lost.cancelled(), if !lock_lost => {
                lock_lost = true;
                stop.cancel();
            }
        }
    };
    pump.tell();
    if let (true, Some(guard)) = (lock_lost, guard) {
        guard.ensure()?;
    }
    result.map_err(|error| Error::Internal(error.to_string()))?
}

/// Full packs that may wait to be hashed beside blobs, where blobs are hashed: one for each thread, while the memory for
/// that is small.
pub(crate) fn waiting_packs() -> usize {
    Some(threads()).filter(|threads| *threads <= 2).unwrap_or(0)
}

/// Runs `work` with a packer, stores what it packs, and writes the index for it. `waiting`: see [`Room`].
/// Returns the names of the index files written, and the bytes stored.
pub(crate) async fn packing<T: Send + 'static>(
    files: &Files,
    guard: &LockGuard,
    index: Arc<Index>,
    waiting: usize,
    cancel: &CancellationToken,
    pump: &mut Pump<'_>,
    work: impl FnOnce(&Arc<Packer>, &CancellationToken) -> Result<T> + Send + 'static,
) -> Result<(T, Vec<crate::id::Id>, u64)> {
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (sender, mut packs) = mpsc::channel(1);
    // An open pack for each thread, and what is under way. Of the packs of one kind no more are open than there are threads, so
    // those of the other kind always find a buffer.
    let buffers = threads() + IN_FLIGHT.max(waiting + 1);
    let room = Room { buffers, waiting };
    let packer = Packer::new(
        files.key.clone(),
        files.version,
        index,
        room,
        sender,
        stop.clone(),
    );
    let inner = stop.clone();
    let handle = tokio::task::spawn_blocking(move || {
        let packer = Arc::new(packer);
        let result = work(&packer, &inner)?;
        packer.flush()?;
        Ok(result)
    });

    let mut uploader = Uploader::new(files, guard, Arc::clone(&pump.counters));
    let mut tick = tokio::time::interval(TICK);
    // One future to the end: what is being written must not begin anew with every tick.
    let uploading = async {
        while uploader.step(&mut packs).await? {}
        Ok(())
    };
    let telling = async {
        loop {
            tick.tick().await;
            pump.tell();
        }
    };
    let stored = tokio::select! {
        stored = uploading => stored,
        () = telling => Ok(()),
        () = cancel.cancelled() => Err(Error::Cancelled),
        () = guard.lost().cancelled() => {
            guard.ensure().and(Err(Error::Internal("a lost lock holds".into())))
        }
    };
    if stored.is_err() {
        stop.cancel();
        packs.close();
        drop(packs);
    }
    let result: Result<T> = handle
        .await
        .map_err(|error| Error::Internal(error.to_string()))?;
    pump.tell();
    stored?;
    let result = result?;
    uploader.write_index().await?;
    Ok((result, uploader.written, uploader.bytes))
}
