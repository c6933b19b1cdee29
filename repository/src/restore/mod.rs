//! Restore: one thread walks the trees and makes directories, links and the like; contents are written in batches, each
//! pack read once; directories get their metadata when everything in them is there.

mod batch;
mod target;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blobs::BlobReader;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::id::{Id, SnapshotId};
use crate::index::Index;
use crate::lock::{self, LockGuard, Mode};
use crate::progress::Progress;
use crate::report::{FileProblem, RestoreOptions, RestoreSummary};
use crate::repository::Repository;
use crate::tree::{Node, NodeKind};
use batch::Batch;
use target::{Made, Target};

const NAMED: usize = 100;
/// Threads that read packs and write files: more than processors, because some wait for the store.
const THREADS: usize = 4;

/// Everything the threads of one restore share.
pub(crate) struct Engine {
    reader: BlobReader,
    runtime: Handle,
    target: Target,
    options: RestoreOptions,
    threads: usize,
    stop: CancellationToken,
    counters: Arc<Counters>,
    files_done: AtomicU64,
    skipped: AtomicU64,
    errors: Mutex<(u64, Vec<FileProblem>)>,
}

impl Engine {
    fn problem(&self, dir: &Path, name: &[u8], message: &str) {
        let mut errors = self.errors.lock();
        errors.0 += 1;
        if errors.1.len() < NAMED {
            let path = dir
                .join(String::from_utf8_lossy(name).as_ref())
                .display()
                .to_string();
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
    let guard = lock::acquire(&repository.files, &repository.options, Mode::Shared, cancel).await?;
    let work = locked(repository, id, target, options, &guard, progress, cancel);
    let result = drive::unless_cancelled(cancel, work).await;
    guard.release(cancel).await;
    result
}

async fn locked(
    repository: &Repository,
    id: &SnapshotId,
    target: &Path,
    options: RestoreOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<RestoreSummary> {
    let begun = Instant::now();
    let snapshot = repository.snapshot(id).await?;
    let index = Arc::new(Index::load(&repository.files).await?.0);
    let reader = BlobReader {
        files: repository.files.clone(),
        index,
    };
    let counters = Arc::new(Counters::default());
    if let Some(summary) = &snapshot.summary {
        counters.expect(summary.total_bytes_processed, summary.total_files_processed);
    }
    let known = snapshot.summary.is_some();
    let mut pump = Pump::new(progress, Arc::clone(&counters));
    let (path, runtime) = (target.to_owned(), Handle::current());
    let work = move |stop| {
        let target = Target::open(&path, options.owners, options.overwrite)
            .map_err(|error| Error::target(&path, error))?;
        let engine = Engine {
            reader,
            runtime,
            target,
            options,
            threads: drive::threads().max(THREADS),
            stop,
            counters,
            files_done: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            errors: Mutex::default(),
        };
        restore(&engine, &path, snapshot.tree, known)
    };
    let mut summary = drive::blocking(Some(guard), cancel, &mut pump, work).await?;
    summary.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

fn restore(engine: &Engine, path: &Path, tree: Id, total_known: bool) -> Result<RestoreSummary> {
    let mut walk = Walk {
        engine,
        total_known,
        batch: Batch::default(),
        first_names: HashMap::new(),
        links: Vec::new(),
        finished: Vec::new(),
        dirs: 0,
        others: 0,
    };
    walk.tree(&Arc::new(PathBuf::new()), &tree)?;
    walk.flush()?;
    engine
        .target
        .sync()
        .map_err(|error| Error::target(path, error))?;
    let (error_count, errors) = std::mem::take(&mut *engine.errors.lock());
    Ok(RestoreSummary {
        files: engine.files_done.load(Ordering::Relaxed),
        dirs: walk.dirs,
        others: walk.others,
        bytes: engine.counters.bytes.load(Ordering::Relaxed),
        skipped: engine.skipped.load(Ordering::Relaxed),
        error_count,
        errors,
        duration_ms: 0,
    })
}

/// Where an entry is: its directory below the target, and its name.
type Place = (Arc<PathBuf>, CString);

struct Walk<'a> {
    engine: &'a Engine,
    total_known: bool,
    batch: Batch,
    /// The first name of each file that has several, by device and inode of the source.
    first_names: HashMap<(u64, u64), Place>,
    /// Second names, to be made when the first have their content.
    links: Vec<(Place, Place)>,
    /// Directories whose entries are all made or in the batch.
    finished: Vec<(PathBuf, Node)>,
    dirs: u64,
    others: u64,
}

impl Walk<'_> {
    /// Restores the entries of a tree into the directory `path`.
    fn tree(&mut self, path: &Arc<PathBuf>, id: &Id) -> Result<()> {
        let engine = self.engine;
        let nodes = engine.runtime.block_on(engine.reader.tree(id))?;
        let dir = match engine.target.dir(path) {
            Ok(dir) => dir,
            Err(errno) => {
                engine.problem(path, b"", &std::io::Error::from(errno).to_string());
                return Ok(());
            }
        };
        let mut below = Vec::new();
        for node in nodes {
            if engine.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let Ok(name) = CString::new(&*node.name) else {
                continue;
            };
            if node.kind == NodeKind::Dir {
                match engine.target.make_dir(&dir, &name) {
                    Ok(()) => below.push(node),
                    Err(errno) => {
                        let message = std::io::Error::from(errno).to_string();
                        engine.problem(path, name.to_bytes(), &message);
                    }
                }
            } else {
                self.leaf(path, dir.as_fd(), name, node)?;
            }
        }
        // One directory is open at a time, however deep they are nested.
        drop(dir);
        for mut node in below {
            let inner = path.join(OsStr::from_bytes(&node.name));
            self.dirs += 1;
            if let Some(subtree) = node.subtree.take() {
                self.tree(&Arc::new(inner.clone()), &subtree)?;
            }
            self.finished.push((inner, node));
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        path: &Arc<PathBuf>,
        dir: BorrowedFd<'_>,
        name: CString,
        node: Node,
    ) -> Result<()> {
        let engine = self.engine;
        let is_file = node.kind == NodeKind::File;
        if is_file && !self.total_known {
            engine.counters.expect(node.size, 1);
        }
        let supported = match node.kind {
            NodeKind::File | NodeKind::Symlink | NodeKind::Fifo => true,
            NodeKind::Dev | NodeKind::CharDev => engine.options.devices,
            _ => false,
        };
        if !supported {
            engine.skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if node.links > 1 {
            let here = (Arc::clone(path), name.clone());
            let key = (node.device_id, node.inode);
            if let Some(first) = self.first_names.get(&key) {
                self.links.push((first.clone(), here));
                engine
                    .counters
                    .advance(if is_file { node.size } else { 0 }, is_file.into());
                return Ok(());
            }
            self.first_names.insert(key, here);
        }
        if is_file {
            let shown = name.clone();
            if let Err(message) = self.batch.add(engine, path, name, node) {
                engine.problem(path, shown.to_bytes(), &message);
            }
            return if self.batch.is_full() {
                self.flush()
            } else {
                Ok(())
            };
        }
        match engine.target.make_other(dir, &name, &node) {
            Ok(Made::Yes) => self.others += 1,
            Ok(Made::Kept) => {
                engine.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => engine.problem(path, name.to_bytes(), &error.to_string()),
        }
        Ok(())
    }

    /// Writes the batch, then what had to wait for it.
    fn flush(&mut self) -> Result<()> {
        let engine = self.engine;
        self.batch.write(engine)?;
        for (first, second) in std::mem::take(&mut self.links) {
            match self.link(&first, &second) {
                Ok(Made::Yes) => {
                    engine.files_done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Made::Kept) => {
                    engine.skipped.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => engine.problem(&second.0, second.1.to_bytes(), &error.to_string()),
            }
        }
        for (path, node) in std::mem::take(&mut self.finished) {
            let dressed = engine.target.dir(&path).map_err(std::io::Error::from);
            if let Err(error) = dressed.and_then(|dir| engine.target.dress(dir, &node)) {
                engine.problem(&path, b"", &error.to_string());
            }
        }
        Ok(())
    }

    fn link(&self, first: &Place, second: &Place) -> std::io::Result<Made> {
        let target = &self.engine.target;
        let (old, new) = (target.dir(&first.0)?, target.dir(&second.0)?);
        Ok(target.link((old.as_fd(), &first.1), (new.as_fd(), &second.1))?)
    }
}
