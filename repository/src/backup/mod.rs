//! Backup: one thread walks the source, the others read and save files, trees are written as they become complete.

mod buffer;
mod dirs;
mod file;
mod large;
mod source;
mod vanished;
mod walk;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::adopt;
use crate::blobs::BlobReader;
use crate::chunker::Chunker;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::id::{Id, SnapshotId};
use crate::lock::{self, Adding, LockGuard};
use crate::names::Names;
use crate::packer::Packer;
use crate::progress::Progress;
use crate::report::{BackupRequest, BackupSummary, FileProblem, Parent, Source};
use crate::repository::Repository;
use crate::snapshot::{Snapshot, SnapshotSummary};
use crate::trail::Trail;
use crate::tree::time;

/// So many problems are named; the rest are counted.
const NAMED: usize = 100;
/// Files waiting for a thread.
const QUEUE: usize = 64;

/// Everything the threads of one backup share.
pub(crate) struct Engine {
    packer: Arc<Packer>,
    reader: BlobReader,
    runtime: Handle,
    chunker: Chunker,
    names: Names,
    zone: TimeZone,
    stop: CancellationToken,
    counters: Arc<Counters>,
    figures: Figures,
    errors: Mutex<Problems>,
    warnings: Mutex<Problems>,
    root: dirs::Root,
    /// Directories that are kept open for [`vanished`].
    looking: AtomicUsize,
}

#[derive(Debug, Default)]
struct Figures {
    files_new: AtomicU64,
    files_changed: AtomicU64,
    files_unmodified: AtomicU64,
    dirs: AtomicU64,
    dirs_known: AtomicU64,
    sockets: AtomicU64,
    vanished: AtomicU64,
    bytes_read: AtomicU64,
    bytes_processed: AtomicU64,
}

#[derive(Debug, Default)]
struct Problems {
    count: u64,
    first: Vec<FileProblem>,
}

impl Problems {
    fn add(&mut self, dir: &Trail, name: &[u8], message: String) {
        self.count += 1;
        if self.first.len() < NAMED {
            let path = dir.show(name);
            tracing::warn!(path, message, "source");
            self.first.push(FileProblem { path, message });
        }
    }
}

impl Engine {
    /// Counts what the system said about an entry of a directory, which is open as `fd`: one that has gone is a warning, the rest are
    /// errors.
    fn problem(&self, dir: &dirs::OpenDir, fd: &Arc<OwnedFd>, name: &CStr, errno: Errno) {
        if errno == Errno::NOENT {
            vanished::note(self, dir, fd, name);
        } else {
            let error = std::io::Error::from(errno);
            self.error(&dir.path, name.to_bytes(), &error.to_string());
        }
    }

    fn error(&self, dir: &Trail, name: &[u8], message: &str) {
        self.errors.lock().add(dir, name, message.to_owned());
    }

    fn warning(&self, dir: &Trail, name: &[u8], message: &str) {
        self.warnings.lock().add(dir, name, message.to_owned());
    }

    fn read(&self, file: &OwnedFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        let got = loop {
            match rustix::io::pread(file, &mut *buffer, at) {
                Err(Errno::INTR) => {}
                got => break got?,
            }
        };
        self.figures
            .bytes_read
            .fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// See [`Repository::backup`].
pub(crate) async fn run(
    repository: &Repository,
    request: BackupRequest,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<BackupSummary> {
    let mut attempts = Adding::new(&repository.files, &repository.options, cancel);
    loop {
        let guard = attempts.begin().await?;
        let work = locked(repository, request.clone(), &guard, progress, cancel);
        let result = drive::unless_cancelled(cancel, work).await;
        if let Some(result) = attempts.end(guard, result).await {
            return result;
        }
    }
}

async fn locked(
    repository: &Repository,
    request: BackupRequest,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<BackupSummary> {
    let begun = Instant::now();
    let start = request.time.unwrap_or_else(Timestamp::now);
    let files = &repository.files;
    let paths = shown_paths(&request)?;
    let (index, parent) = tokio::try_join!(
        adopt::index(files, guard),
        find_parent(repository, &request, &paths)
    )?;
    let index = Arc::new(index);

    let counters = Arc::new(Counters::default());
    if let Some(before) = parent
        .as_ref()
        .and_then(|(_, snapshot)| snapshot.summary.as_ref())
    {
        counters.at_least[0].store(before.total_bytes_processed, Ordering::Relaxed);
        counters.at_least[1].store(before.total_files_processed, Ordering::Relaxed);
    }
    let mut pump = Pump::new(progress, Arc::clone(&counters));
    let reader = BlobReader {
        files: files.clone(),
        index: Arc::clone(&index),
    };
    let runtime = Handle::current();
    let polynomial = repository.config.polynomial;
    let parent_tree = parent.as_ref().map(|(_, snapshot)| snapshot.tree);
    let source = request.source.clone();
    let work = move |packer: &Arc<Packer>, stop: &CancellationToken| {
        let engine = Engine {
            packer: Arc::clone(packer),
            reader,
            runtime,
            chunker: Chunker::new(polynomial),
            names: Names::default(),
            zone: TimeZone::system(),
            stop: stop.clone(),
            counters,
            figures: Figures::default(),
            errors: Mutex::default(),
            warnings: Mutex::default(),
            root: Mutex::default(),
            looking: AtomicUsize::default(),
        };
        let result = walk::run(&engine, &source, parent_tree);
        result.map(|tree| (tree, summary(&engine)))
    };
    let (((tree, empty), mut summary), _, stored) = drive::packing(
        files,
        guard,
        index,
        drive::waiting_packs(),
        cancel,
        &mut pump,
        work,
    )
    .await?;

    summary.tree = Some(tree);
    summary.empty = empty;
    summary.parent = parent.as_ref().map(|(id, _)| *id);
    let snapshot = snapshot(repository, request, paths, start, (tree, &summary));
    let json = serde_json::to_vec(&snapshot).map_err(|error| Error::Internal(error.to_string()))?;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let (id, size) = lock::write(files, guard, FileKind::Snapshot, &json).await?;
    summary.snapshot = Some(id);
    summary.bytes_stored = stored + size;
    summary.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

/// The paths that the snapshot shows.
fn shown_paths(request: &BackupRequest) -> Result<Vec<String>> {
    if !request.snapshot_paths.is_empty() {
        return Ok(request.snapshot_paths.clone());
    }
    let sources = match &request.source {
        Source::Contents(path) => std::slice::from_ref(path),
        Source::Paths(paths) => paths,
    };
    let absolute = |path: &PathBuf| {
        std::path::absolute(path)
            .map(|path| path.display().to_string())
            .map_err(|error| Error::source(path, error))
    };
    sources.iter().map(absolute).collect()
}

/// The parent, if there is one. Without one everything is read: slower, never wrong.
async fn find_parent(
    repository: &Repository,
    request: &BackupRequest,
    paths: &[String],
) -> Result<Option<(SnapshotId, Snapshot)>> {
    let found = match request.parent {
        Parent::None => Ok(None),
        Parent::Snapshot(id) => repository
            .snapshot(&id)
            .await
            .map(|found| Some((id, found))),
        Parent::Newest => newest(repository, &request.host, paths).await,
    };
    match found {
        Err(Error::SnapshotNotFound { .. }) => Ok(None),
        Err(error @ Error::Corrupt { .. }) => {
            tracing::warn!(%error, "the parent cannot be used");
            Ok(None)
        }
        found => found,
    }
}

/// The newest snapshot of this host and these paths, in whatever order they were given.
async fn newest(
    repository: &Repository,
    host: &str,
    paths: &[String],
) -> Result<Option<(SnapshotId, Snapshot)>> {
    let wanted: BTreeSet<&String> = paths.iter().collect();
    let all = repository.snapshots().await?.into_iter();
    let same = all.filter(|info| {
        info.snapshot.hostname == host
            && info.snapshot.paths.iter().collect::<BTreeSet<_>>() == wanted
    });
    let newest = same.max_by_key(|info| info.snapshot.time);
    Ok(newest.map(|info| (info.id, info.snapshot)))
}

fn summary(engine: &Engine) -> BackupSummary {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (figures, added) = (&engine.figures, &engine.packer.added);
    let errors = std::mem::take(&mut *engine.errors.lock());
    let warnings = std::mem::take(&mut *engine.warnings.lock());
    BackupSummary {
        files_new: read(&figures.files_new),
        files_changed: read(&figures.files_changed),
        files_unmodified: read(&figures.files_unmodified),
        dirs: read(&figures.dirs),
        dirs_known: read(&figures.dirs_known),
        sockets_skipped: read(&figures.sockets),
        vanished: read(&figures.vanished),
        bytes_read: read(&figures.bytes_read),
        bytes_processed: read(&figures.bytes_processed),
        bytes_added: read(&added.bytes),
        bytes_packed: read(&added.packed),
        data_blobs: read(&added.data_blobs),
        tree_blobs: read(&added.tree_blobs),
        error_count: errors.count,
        errors: errors.first,
        warning_count: warnings.count,
        warnings: warnings.first,
        ..BackupSummary::default()
    }
}

fn snapshot(
    repository: &Repository,
    request: BackupRequest,
    paths: Vec<String>,
    start: Timestamp,
    (tree, summary): (Id, &BackupSummary),
) -> Snapshot {
    let zone = TimeZone::system();
    let text = |when: Timestamp| {
        let mut out = Vec::new();
        time::write(&mut out, when, &zone);
        String::from_utf8_lossy(&out).into_owned()
    };
    let holder = &repository.options.holder;
    Snapshot {
        time: start,
        parent: summary.parent,
        tree,
        paths,
        hostname: request.host,
        username: holder.username.clone(),
        uid: holder.uid,
        gid: holder.gid,
        excludes: Vec::new(),
        tags: request.tags,
        original: None,
        program_version: concat!("jackline ", env!("CARGO_PKG_VERSION")).into(),
        summary: Some(SnapshotSummary {
            backup_start: text(start),
            backup_end: text(Timestamp::now()),
            files_new: summary.files_new,
            files_changed: summary.files_changed,
            files_unmodified: summary.files_unmodified,
            dirs_new: summary.dirs - summary.dirs_known,
            dirs_changed: summary.dirs_known,
            dirs_unmodified: 0,
            data_blobs: summary.data_blobs,
            tree_blobs: summary.tree_blobs,
            data_added: summary.bytes_added,
            data_added_packed: summary.bytes_packed,
            total_files_processed: summary.files_new
                + summary.files_changed
                + summary.files_unmodified,
            total_bytes_processed: summary.bytes_processed,
        }),
    }
}
