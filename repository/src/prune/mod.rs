//! Prune: give back the space of blobs that no snapshot uses. In two phases, so that nobody is kept out for long:
//!
//! 1. Under a shared lock, beside running backups: mark what is used, copy it out of packs that waste too much, and add
//!    index files for the copies. Two copies of one blob are legal.
//! 2. Under an exclusive lock: load index and snapshots anew and mark again, for a backup may have come between; write an
//!    index without the packs that nothing needs any more; delete the old index files; delete these packs.
//!
//! Interrupted anywhere, every index file that is left lists only packs that are there. The next run uses the copies that
//! the last one made.

mod copy;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::adopt;
use crate::blobs::BlobReader;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::{Id, SnapshotId};
use crate::index::Index;
use crate::lock::{self, Adding, LockGuard, Mode};
use crate::mark::{self, Marks};
use crate::pack::{BlobKind, PackedBlob};
use crate::packer::Packer;
use crate::progress::Progress;
use crate::report::{PruneOptions, PruneSummary};
use crate::repository::Repository;
use plan::{Facts, Plan};

/// Snapshot files read at once.
const CONCURRENCY: usize = 8;

/// See [`Repository::prune`].
pub(crate) async fn run(
    repository: &Repository,
    options: PruneOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<PruneSummary> {
    if !(0.0..=1e6).contains(&options.max_unused_percent) {
        return Err(Error::Invalid(
            "max_unused_percent must be 0 or more".into(),
        ));
    }
    let begun = Instant::now();
    let copied = copy_phase(repository, options, progress, cancel).await?;
    let mut summary = if copied.leaves_work {
        delete_phase(repository, &copied, cancel).await?
    } else {
        PruneSummary {
            bytes_after: copied.bytes_before,
            bytes_unused: copied.bytes_unused,
            ..PruneSummary::default()
        }
    };
    summary.snapshots = copied.snapshots.len() as u64;
    summary.bytes_before = copied.bytes_before;
    summary.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

/// What the first phase found and did.
#[derive(Debug)]
struct Copied {
    snapshots: HashSet<SnapshotId>,
    /// What they use. A blob's name stands for its content, so nobody has to read the same trees again.
    used: Vec<(BlobKind, Id)>,
    /// Packs whose used blobs were copied.
    emptied: HashSet<Id>,
    bytes_before: u64,
    bytes_unused: u64,
    /// Whether there is something to delete.
    leaves_work: bool,
}

async fn copy_phase(
    repository: &Repository,
    options: PruneOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Copied> {
    let mut attempts = Adding::new(&repository.files, &repository.options, cancel);
    loop {
        let guard = attempts.begin().await?;
        let work = copy_locked(repository, options, &guard, progress, cancel);
        let result = drive::unless_cancelled(cancel, work).await;
        if let Some(result) = attempts.end(guard, result).await {
            return result;
        }
    }
}

async fn copy_locked(
    repository: &Repository,
    options: PruneOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Copied> {
    let files = &repository.files;
    // Snapshots before the index: what a snapshot names was in the index before it. Backups end meanwhile.
    let snapshots = repository.snapshots().await?;
    let reader = reader(files, adopt::index(files, guard).await?);
    let index = Arc::clone(&reader.index);
    let mut marks = Marks::new(index.len());
    let roots = snapshots.iter().map(|info| info.snapshot.tree);
    mark::mark(&reader, roots, &mut marks, cancel, &mut Err).await?;

    let nothing = HashSet::new();
    let facts = Facts {
        version: files.version,
        index: &index,
        marks: &marks,
        listed: &files.list(FileKind::Pack).await?,
        emptied: &nothing,
    };
    let plan = Plan::make(&facts, Some(options.max_unused_percent))?;
    if !plan.copies.is_empty() {
        let counters = Arc::new(Counters::default());
        let sizes = plan.copies.iter().map(|copy| u64::from(copy.blob.length));
        counters.expect(sizes.sum(), 0);
        let mut pump = Pump::new(progress, Arc::clone(&counters));
        let (runtime, copies) = (Handle::current(), plan.copies);
        let work = move |packer: &Arc<Packer>, stop: &CancellationToken| {
            copy::copy(&reader, &runtime, packer, stop, &counters, &copies)
        };
        // An empty index: what is copied counts as new.
        drive::packing(files, guard, Arc::default(), 0, cancel, &mut pump, work).await?;
    }
    let used = index
        .iter()
        .map(|place| (place.blob.kind, place.blob.id))
        .filter(|(kind, id)| {
            let number = index.number(*kind, id);
            number.is_some_and(|number| marks.contains(number))
        })
        .collect();
    Ok(Copied {
        snapshots: snapshots.iter().map(|info| info.id).collect(),
        used,
        leaves_work: !(plan.gone.is_empty()
            && plan.unreferenced.is_empty()
            && plan.wasteful.is_empty()),
        emptied: plan.wasteful,
        bytes_before: plan.bytes,
        bytes_unused: plan.bytes_unused,
    })
}

async fn delete_phase(
    repository: &Repository,
    copied: &Copied,
    cancel: &CancellationToken,
) -> Result<PruneSummary> {
    let (files, options) = (&repository.files, &repository.options);
    let guard = lock::acquire(files, options, Mode::Exclusive, cancel).await?;
    let work = delete_locked(repository, copied, &guard, cancel);
    let result = drive::unless_cancelled(cancel, work).await;
    guard.release(cancel).await;
    result
}

async fn delete_locked(
    repository: &Repository,
    copied: &Copied,
    guard: &LockGuard,
    cancel: &CancellationToken,
) -> Result<PruneSummary> {
    let files = &repository.files;
    let (index, old_names) = Index::load(files).await?;
    let reader = reader(files, index);
    let index = Arc::clone(&reader.index);
    let snapshots = snapshots(repository).await?;
    let mut marks = Marks::new(index.len());
    // What the same snapshots use is known. Where one is gone, another prune may have been here since.
    if copied.snapshots.iter().all(|id| snapshots.contains_key(id)) {
        for (kind, id) in &copied.used {
            let number = index.number(*kind, id).ok_or_else(|| {
                Error::corrupt(format!("{} {id}", kind.name()), "no index lists it")
            })?;
            marks.insert(number);
        }
    }
    let roots = snapshots.values().copied();
    mark::mark(&reader, roots, &mut marks, cancel, &mut Err).await?;

    let facts = Facts {
        version: files.version,
        index: &index,
        marks: &marks,
        listed: &files.list(FileKind::Pack).await?,
        emptied: &copied.emptied,
    };
    let plan = Plan::make(&facts, None)?;
    if !plan.gone.is_empty() {
        let mut kept: Vec<(Id, Vec<PackedBlob>)> =
            index.packs().iter().map(|id| (*id, Vec::new())).collect();
        let places = index.iter();
        for place in places.filter(|place| !plan.gone.contains(&place.pack)) {
            kept[place.pack as usize].1.push(place.blob);
        }
        kept.retain(|(_, blobs)| !blobs.is_empty());
        let written = adopt::write_index(files, guard, &kept).await?;
        drop(kept);
        let old: Vec<Id> = old_names
            .into_iter()
            .filter(|name| !written.contains(name))
            .collect();
        lock::delete_all(files, guard, FileKind::Index, &old).await?;
    }
    let present: HashSet<Id> = facts.listed.iter().map(|(id, _)| *id).collect();
    let (mut deleted, mut repacked) = (0, 0);
    let mut gone = Vec::new();
    for id in plan.gone.iter().map(|pack| index.pack_id(*pack)) {
        if copied.emptied.contains(&id) {
            repacked += 1;
        } else if present.contains(&id) {
            deleted += 1;
        }
        gone.push(id);
    }
    gone.extend(&plan.unreferenced);
    lock::delete_all(files, guard, FileKind::Pack, &gone).await?;
    Ok(PruneSummary {
        bytes_after: plan.bytes_kept,
        bytes_unused: plan.bytes_unused,
        packs_deleted: deleted,
        packs_repacked: repacked,
        packs_unreferenced: plan.unreferenced.len() as u64,
        ..PruneSummary::default()
    })
}

fn reader(files: &Files, index: Index) -> BlobReader {
    BlobReader {
        files: files.clone(),
        index: Arc::new(index),
    }
}

/// All snapshots and their trees. Under an exclusive lock nobody forgets one meanwhile: one that is missing is damage.
async fn snapshots(repository: &Repository) -> Result<std::collections::HashMap<SnapshotId, Id>> {
    let listed = repository.files.list(FileKind::Snapshot).await?;
    futures::stream::iter(listed)
        .map(|(id, _)| async move { Ok((id, repository.snapshot(&id).await?.tree)) })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}
