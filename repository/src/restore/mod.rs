//! Restore: one thread walks the trees and makes directories, links and the like; contents are written in batches, each
//! pack read once; directories get their metadata when everything in them is there.

mod batch;
mod select;
mod target;
#[cfg(test)]
mod tests;
mod verify;
mod walk;

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobReader;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::CONFIG;
use crate::id::{Id, SnapshotId};
use crate::index::Index;
use crate::lock::{Adding, LockGuard};
use crate::progress::Progress;
use crate::report::{FileProblem, Overwrite, RestoreOptions, RestoreSummary};
use crate::repository::Repository;
use crate::trail::Trail;
use crate::tree::NodeKind;
use select::Selection;
use target::Target;
use walk::Walk;

const NAMED: usize = 100;
/// Threads that read packs and write files: more than processors, because some wait for the store.
const THREADS: usize = 4;

/// Everything the threads of one restore share.
pub(crate) struct Engine {
    reader: BlobReader,
    runtime: Handle,
    /// Where the target is, for messages.
    path: PathBuf,
    target: Target,
    options: RestoreOptions,
    selection: Selection,
    threads: usize,
    stop: CancellationToken,
    counters: Arc<Counters>,
    files_done: AtomicU64,
    /// Bytes of content that were written.
    written: AtomicU64,
    skipped: AtomicU64,
    unchanged: AtomicU64,
    deleted: AtomicU64,
    verified: AtomicU64,
    mismatches: AtomicU64,
    errors: Mutex<(u64, Vec<FileProblem>)>,
}

impl Engine {
    fn problem(&self, dir: &Trail, name: &[u8], message: &str) {
        let mut errors = self.errors.lock();
        errors.0 += 1;
        if errors.1.len() < NAMED {
            let path = dir.show(name);
            tracing::warn!(path, message, "restore");
            errors.1.push(FileProblem {
                path,
                message: message.to_owned(),
            });
        }
    }
}

/// See [`Repository::restore`].
pub(crate) async fn run(
    repository: &Repository,
    id: &SnapshotId,
    target: &Path,
    options: RestoreOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<RestoreSummary> {
    // As restic: a slip of the hand must not empty a machine.
    let selection = Selection::new(&options.only)?;
    if options.delete && selection.is_everything() && target == Path::new("/") {
        let message =
            "what is not in the snapshot is deleted in / only with patterns that say where";
        return Err(Error::Invalid(message.into()));
    }
    let mut attempts = Adding::new(&repository.files, &repository.options, cancel);
    loop {
        let guard = attempts.begin().await?;
        let how = (options.clone(), Selection::new(&options.only)?);
        let work = locked(repository, id, target, how, &guard, progress, cancel);
        let result = drive::unless_cancelled(cancel, work).await;
        if let Some(result) = attempts.end(guard, result).await {
            return result;
        }
    }
}

async fn locked(
    repository: &Repository,
    id: &SnapshotId,
    target: &Path,
    (options, selection): (RestoreOptions, Selection),
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<RestoreSummary> {
    let begun = Instant::now();
    let snapshot = repository.snapshot(id).await?;
    let (index, names) = Index::load(&repository.files).await?;
    guard.rely_on(names);
    if options.overwrite != Overwrite::Always || options.delete {
        // Begun anew, it would keep what it had begun, or had deleted what nobody brings back.
        guard.settled().await?;
    }
    let index = Arc::new(index);
    let reader = BlobReader {
        files: repository.files.clone(),
        index,
    };
    let tree = match &options.subfolder {
        Some(path) => descend(&reader, snapshot.tree, path).await?,
        None => snapshot.tree,
    };
    let counters = Arc::new(Counters::default());
    let whole = selection.is_everything() && options.subfolder.is_none();
    let total = snapshot.summary.as_ref().filter(|_| whole);
    if let Some(total) = total {
        counters.expect(total.total_bytes_processed, total.total_files_processed);
    }
    let known = total.is_some();
    let mut pump = Pump::new(progress, Arc::clone(&counters));
    let (path, runtime) = (target.to_owned(), Handle::current());
    let threads = match repository.files.store.local(CONFIG) {
        Some(_) => drive::threads(),
        None => drive::threads().max(THREADS),
    };
    let work = move |stop| {
        let target = Target::open(&path, &options).map_err(|error| Error::target(&path, error))?;
        let engine = Engine {
            reader,
            runtime,
            path,
            target,
            options,
            selection,
            threads,
            stop,
            counters,
            files_done: AtomicU64::default(),
            written: AtomicU64::default(),
            skipped: AtomicU64::default(),
            unchanged: AtomicU64::default(),
            deleted: AtomicU64::default(),
            verified: AtomicU64::default(),
            mismatches: AtomicU64::default(),
            errors: Mutex::default(),
        };
        restore(&engine, &tree, known)
    };
    let mut summary = drive::blocking(Some(guard), cancel, &mut pump, work).await?;
    // What was read under a lock that did not hold is worth nothing.
    guard.settled().await?;
    summary.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

fn restore(engine: &Engine, tree: &Id, total_known: bool) -> Result<RestoreSummary> {
    let mut walk = Walk::new(engine, total_known);
    walk.run(tree)?;
    engine
        .target
        .sync()
        .map_err(|error| Error::target(&engine.path, error))?;
    let (error_count, errors) = std::mem::take(&mut *engine.errors.lock());
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(RestoreSummary {
        files: read(&engine.files_done),
        dirs: walk.dirs,
        others: walk.others,
        bytes: read(&engine.written),
        skipped: read(&engine.skipped),
        unchanged: read(&engine.unchanged),
        deleted: read(&engine.deleted),
        verified: read(&engine.verified),
        mismatches: read(&engine.mismatches),
        error_count,
        errors,
        duration_ms: 0,
    })
}

/// The tree of a directory in the snapshot.
async fn descend(reader: &BlobReader, root: Id, path: &Path) -> Result<Id> {
    let mut tree = root;
    for part in path.components() {
        let name = match part {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name.as_bytes(),
            Component::ParentDir | Component::Prefix(_) => b"..",
        };
        let mut nodes = reader.tree(&tree).await?.into_iter();
        let found = nodes.find(|node| node.name == name && node.kind == NodeKind::Dir);
        tree = found.and_then(|node| node.subtree).ok_or_else(|| {
            Error::Invalid(format!("the snapshot has no directory {}", path.display()))
        })?;
    }
    Ok(tree)
}
