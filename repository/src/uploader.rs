//! Storing finished packs, then the index that makes them known: never the other way round.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::drive::Counters;
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index;
use crate::lock::{self, LockGuard};
use crate::pack::PackedBlob;
use crate::packer::FinishedPack;

/// Packs on their way to the store at the same time.
pub(crate) const IN_FLIGHT: usize = 2;
/// What a process that dies has stored for longer than this is known to the next one.
const LIST_EVERY: Duration = Duration::from_secs(300);

/// A pack as an index file lists it.
type Listed = (Id, Vec<PackedBlob>);

/// Stores packs and index files for one operation.
pub(crate) struct Uploader<'a> {
    files: &'a Files,
    guard: &'a LockGuard,
    counters: Arc<Counters>,
    uploads: JoinSet<Result<Listed>>,
    /// Stored packs that no index file lists yet.
    unlisted: Vec<Listed>,
    /// When the last index file was written.
    listed: Instant,
    /// Index files written.
    pub(crate) written: Vec<Id>,
    /// Bytes written in all.
    pub(crate) bytes: u64,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(files: &'a Files, guard: &'a LockGuard, counters: Arc<Counters>) -> Self {
        Self {
            files,
            guard,
            counters,
            uploads: JoinSet::new(),
            unlisted: Vec::new(),
            listed: Instant::now(),
            written: Vec::new(),
            bytes: 0,
        }
    }

    /// Handles what comes next: a finished pack or a finished upload. `false` when there is nothing more to come.
    /// To be run to its end: dropped while it writes an index file, it would write that again.
    pub(crate) async fn step(&mut self, packs: &mut mpsc::Receiver<FinishedPack>) -> Result<bool> {
        let room = self.uploads.len() < IN_FLIGHT;
        tokio::select! {
            pack = packs.recv(), if room => match pack {
                Some(pack) => self.start(pack)?,
                None if self.uploads.is_empty() => return Ok(false),
                None => self.finish_one().await?,
            },
            done = self.uploads.join_next(), if !self.uploads.is_empty() => self.done(done)?,
        }
        if self
            .unlisted
            .iter()
            .map(|(_, blobs)| blobs.len())
            .sum::<usize>()
            >= index::FULL
            || self.listed.elapsed() >= LIST_EVERY
        {
            self.write_index().await?;
        }
        Ok(true)
    }

    async fn finish_one(&mut self) -> Result<()> {
        let done = self.uploads.join_next().await;
        self.done(done)
    }

    fn start(&mut self, pack: FinishedPack) -> Result<()> {
        self.guard.ensure()?;
        let size = pack.bytes.len() as u64;
        self.bytes += size;
        let storing = self.guard.store_pack(pack.id, pack.bytes);
        let counters = Arc::clone(&self.counters);
        self.uploads.spawn(async move {
            storing.await?;
            counters.stored.fetch_add(size, Ordering::Relaxed);
            Ok((pack.id, pack.blobs))
        });
        Ok(())
    }

    fn done(&mut self, done: Option<Result<Result<Listed>, tokio::task::JoinError>>) -> Result<()> {
        match done {
            Some(Ok(stored)) => self.unlisted.push(stored?),
            Some(Err(error)) => return Err(Error::Internal(error.to_string())),
            None => {}
        }
        Ok(())
    }

    /// Makes the stored packs known.
    pub(crate) async fn write_index(&mut self) -> Result<()> {
        if self.unlisted.is_empty() {
            return Ok(());
        }
        let json = index::to_json(&self.unlisted)?;
        let (id, size) = lock::write(self.files, self.guard, FileKind::Index, &json).await?;
        self.unlisted.clear();
        self.listed = Instant::now();
        self.written.push(id);
        self.bytes += size;
        Ok(())
    }
}
