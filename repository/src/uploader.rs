//! Storing finished packs, then the index that makes them known: never the other way round.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index;
use crate::lock::LockGuard;
use crate::pack::PackedBlob;
use crate::packer::FinishedPack;

/// Packs on their way to the store at the same time.
pub(crate) const IN_FLIGHT: usize = 2;
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// A pack as an index file lists it.
type Listed = (Id, Vec<PackedBlob>);

/// Stores packs and index files for one operation.
pub(crate) struct Uploader<'a> {
    files: &'a Files,
    guard: &'a LockGuard,
    uploads: JoinSet<Result<Listed>>,
    /// Stored packs that no index file lists yet.
    unlisted: Vec<Listed>,
    /// Index files written.
    pub(crate) written: Vec<Id>,
    /// Bytes written in all.
    pub(crate) bytes: u64,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(files: &'a Files, guard: &'a LockGuard) -> Self {
        Self {
            files,
            guard,
            uploads: JoinSet::new(),
            unlisted: Vec::new(),
            written: Vec::new(),
            bytes: 0,
        }
    }

    /// Handles what comes next: a finished pack or a finished upload. `false` when there is nothing more to come.
    /// Cancel-safe: nothing is lost when the future is dropped between two events.
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
        self.bytes += pack.bytes.len() as u64;
        let store = self.files.store.clone();
        self.uploads.spawn(async move {
            store
                .put(&FileKind::Pack.path(&pack.id), pack.bytes)
                .await?;
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
        let (id, size) = write(self.files, self.guard, FileKind::Index, &json).await?;
        self.unlisted.clear();
        self.written.push(id);
        self.bytes += size;
        Ok(())
    }
}

/// Writes a file that others will rely on, if the lock is still ours.
pub(crate) async fn write(
    files: &Files,
    guard: &LockGuard,
    kind: FileKind,
    json: &[u8],
) -> Result<(Id, u64)> {
    guard.confirm().await?;
    match tokio::time::timeout(WRITE_DEADLINE, files.save(kind, json)).await {
        Ok(saved) => saved,
        Err(_) => Err(Error::Storage(jackline_storage::Error::Timeout {
            location: files.store.location(),
            key: kind.prefix().to_owned(),
            after: WRITE_DEADLINE,
        })),
    }
}
