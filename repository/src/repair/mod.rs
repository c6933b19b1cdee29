//! Repair: what a damaged repository still holds becomes whole again, and what is lost is named.

mod index;
mod packs;
mod snapshots;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::drive;
use crate::error::Result;
use crate::id::{Id, SnapshotId};
use crate::lock::{self, LockGuard, Mode};
use crate::progress::Progress;
use crate::report::FileProblem;
use crate::repository::Repository;

/// How a repair goes about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepairOptions {
    /// Change nothing, only say what would be done.
    pub dry_run: bool,
    /// Of the index: read the header of every pack, also of those whose size is what the index says.
    pub read_all_packs: bool,
    /// Of snapshots: remove the damaged ones once what is left of them is stored, and those that nothing is left of.
    pub forget: bool,
}

/// What a repair of the index found, and unless it was a dry run did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct IndexRepair {
    /// Whether the index had to be written anew.
    pub changed: bool,
    /// Packs that the index lists afterwards.
    pub packs: u64,
    /// Packs whose header was read, because the index did not know them or not as they are.
    pub packs_read: u64,
    /// Packs that the index listed and that are gone.
    pub missing: Vec<String>,
    /// Packs whose header cannot be read, and why: what they hold is lost to the snapshots.
    pub unreadable: Vec<String>,
    /// Index files that could not be read, and why.
    pub damaged: Vec<String>,
}

/// What a repair of the packs found, and unless it was a dry run did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PacksRepair {
    /// Packs read.
    pub packs: u64,
    /// Those that are damaged, and how: they go.
    pub damaged: Vec<String>,
    /// Blobs in these that are sound, or sound elsewhere: they are stored anew.
    pub blobs_saved: u64,
    /// Blobs that are lost to the snapshots.
    pub lost: Vec<String>,
}

/// What a repair of the snapshots found, and unless it was a dry run did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SnapshotsRepair {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Those that are damaged.
    pub repaired: Vec<SnapshotRepair>,
    /// Snapshots that nothing is left of: their file or their root cannot be read, and why.
    pub lost: Vec<FileProblem>,
    /// Files that lost a part of their content.
    pub files_shortened: u64,
    /// Directories that lost all they held.
    pub dirs_emptied: u64,
    /// The first of both (at most 100). Where several snapshots share a directory, it is named once.
    pub problems: Vec<FileProblem>,
}

/// A damaged snapshot and what took its place.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotRepair {
    /// The damaged one.
    pub old: SnapshotId,
    /// What is left of it; `None` in a dry run. Tagged `repaired` unless it replaces the old one.
    pub new: Option<SnapshotId>,
}

/// Does something under a lock: an exclusive one, unless nothing is to be changed.
async fn locked<T>(
    repository: &Repository,
    options: RepairOptions,
    cancel: &CancellationToken,
    work: impl AsyncFnOnce(&LockGuard) -> Result<T>,
) -> Result<T> {
    let mode = match options.dry_run {
        true => Mode::Shared,
        false => Mode::Exclusive,
    };
    let guard = lock::acquire(&repository.files, &repository.options, mode, cancel).await?;
    let result = drive::unless_cancelled(cancel, work(&guard)).await;
    guard.release(cancel).await;
    result
}

/// See [`Repository::repair_index`].
pub(crate) async fn index(
    repository: &Repository,
    options: RepairOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<IndexRepair> {
    let files = &repository.files;
    locked(repository, options, cancel, async |guard| {
        index::rebuild(files, options, guard, progress, cancel).await
    })
    .await
}

/// See [`Repository::repair_packs`].
pub(crate) async fn packs(
    repository: &Repository,
    ids: &[Id],
    options: RepairOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<PacksRepair> {
    let files = &repository.files;
    locked(repository, options, cancel, async |guard| {
        packs::salvage(files, ids, options, guard, progress, cancel).await
    })
    .await
}

/// See [`Repository::repair_snapshots`].
pub(crate) async fn snapshots(
    repository: &Repository,
    ids: &[SnapshotId],
    options: RepairOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<SnapshotsRepair> {
    locked(repository, options, cancel, async |guard| {
        snapshots::salvage(repository, ids, options, guard, progress, cancel).await
    })
    .await
}
