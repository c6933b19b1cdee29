//! The walk over the source: what is unchanged is taken from the parent, what must be read goes to the other threads.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;
use rustix::io::Errno;

use super::buffer::Buffer;
use super::dirs::{OpenDir, complete, done};
use super::file::{self, FileJob};
use super::large::{LARGE, LargeFile};
use super::{Engine, QUEUE, source};
use crate::drive::threads;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::BlobKind;
use crate::report::Source;
use crate::tree::{Node, NodeKind};

/// Walks the source and returns its root tree, and whether that is empty.
pub(super) fn run(engine: &Engine, source: &Source, parent: Option<Id>) -> Result<(Id, bool)> {
    let (jobs, queue) = crossbeam_channel::bounded(QUEUE);
    let failure = parking_lot::Mutex::new(None);
    let fail = |error: Error| {
        engine.stop.cancel();
        // The first failure is the cause, the others follow from the stop.
        let mut failure = failure.lock();
        if failure.is_none() || matches!(*failure, Some(Error::Cancelled)) {
            *failure = Some(error);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            let (queue, fail) = (queue.clone(), &fail);
            scope.spawn(move || {
                let mut buffer = Buffer::default();
                for job in queue {
                    // Once stopped, jobs are only taken away, so that the walk does not wait for room.
                    if engine.stop.is_cancelled() {
                        continue;
                    }
                    let result = match job {
                        Job::One(job) => file::run(engine, &job, &mut buffer),
                        Job::Shared(file) => file.run(engine, &mut buffer),
                    };
                    if let Err(error) = result {
                        fail(error);
                    }
                }
            });
        }
        drop(queue);
        let walker = Walker { engine, jobs };
        let walked = match source {
            Source::Contents(path) => walker.contents(path, parent),
            Source::Paths(paths) => walker.paths(paths, parent),
        };
        if let Err(error) = walked {
            fail(error);
        }
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    let root = engine.root.lock().take();
    match root {
        Some(root) => Ok(root),
        None if engine.stop.is_cancelled() => Err(Error::Cancelled),
        None => Err(Error::Internal("the walk left no root".into())),
    }
}

/// A file to be read, by one thread or by all of them.
#[derive(Debug)]
enum Job {
    One(FileJob),
    Shared(Arc<LargeFile>),
}

struct Walker<'a> {
    engine: &'a Engine,
    jobs: Sender<Job>,
}

/// The entries of the parent's directory, in the order of their names, read beside the directory itself.
struct Before(std::iter::Peekable<std::vec::IntoIter<Node>>);

impl Before {
    fn none() -> Self {
        Self(Vec::new().into_iter().peekable())
    }

    /// The parent's entry of this name. Names are asked for in order.
    fn take(&mut self, name: &[u8]) -> Option<Node> {
        while self.0.next_if(|node| *node.name < *name).is_some() {}
        self.0.next_if(|node| node.name == name)
    }
}

impl Walker<'_> {
    /// A directory's entries are the root.
    fn contents(&self, path: &Path, parent: Option<Id>) -> Result<()> {
        let fd = match source::open_root(path) {
            Ok(fd) => Some(Arc::new(fd)),
            // A volume whose directory is not there holds nothing.
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(Error::source(path, errno)),
        };
        let root = OpenDir::new(None, None, PathBuf::new());
        let mut before = self.before(parent);
        if let Some(fd) = &fd {
            let names = source::names(&**fd).map_err(|errno| Error::source(path, errno))?;
            self.entries(&root, fd, names, &mut before)?;
        }
        done(self.engine, &root)
    }

    /// The root holds the absolute paths.
    fn paths(&self, paths: &[PathBuf], parent: Option<Id>) -> Result<()> {
        let mut top = Level::default();
        for path in paths {
            top.insert(path)?;
        }
        let root = OpenDir::new(None, None, PathBuf::from("/"));
        let mut before = self.before(parent);
        self.level(&root, Path::new("/"), &top, &mut before)?;
        done(self.engine, &root)
    }

    /// A directory of which only some entries are backed up.
    fn level(
        &self,
        dir: &Arc<OpenDir>,
        path: &Path,
        level: &Level,
        before: &mut Before,
    ) -> Result<()> {
        let engine = self.engine;
        let unreadable = |errno: Errno| Error::source(path, errno);
        let fd = Arc::new(source::open_root(path).map_err(unreadable)?);
        if level.whole {
            let names = source::names(&*fd).map_err(unreadable)?;
            return self.entries(dir, &fd, names, before);
        }
        for (name, below) in &level.below {
            let was = before.take(name.to_bytes());
            let here = path.join(OsStr::from_bytes(name.to_bytes()));
            if below.whole {
                source::stat(&*fd, name).map_err(|errno| Error::source(&here, errno))?;
                self.entry(dir, &fd, name.clone(), was)?;
                continue;
            }
            // Above the paths links are followed: the node describes what they lead to.
            let stat = rustix::fs::stat(&here).map_err(|errno| Error::source(&here, errno))?;
            let node = source::node(name.to_bytes(), &stat, &engine.names)
                .filter(|node| node.kind == NodeKind::Dir)
                .ok_or_else(|| Error::source(&here, Errno::NOTDIR))?;
            let (node, subtree) = self.dir_node(dir, node, was, source::open_root(&here));
            let place = dir.reserve();
            let open = OpenDir::new(Some((Arc::clone(dir), place)), Some(node), here.clone());
            self.level(&open, &here, below, &mut self.before(subtree))?;
            done(engine, &open)?;
        }
        Ok(())
    }

    fn entries(
        &self,
        dir: &Arc<OpenDir>,
        fd: &Arc<OwnedFd>,
        names: Vec<CString>,
        before: &mut Before,
    ) -> Result<()> {
        for name in names {
            if self.engine.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let was = before.take(name.to_bytes());
            self.entry(dir, fd, name, was)?;
        }
        Ok(())
    }

    fn entry(
        &self,
        dir: &Arc<OpenDir>,
        fd: &Arc<OwnedFd>,
        name: CString,
        was: Option<Node>,
    ) -> Result<()> {
        let engine = self.engine;
        let stat = match source::stat(&**fd, &name) {
            Ok(stat) => stat,
            Err(errno) => {
                engine.problem(&dir.path, name.to_bytes(), errno);
                return Ok(());
            }
        };
        let Some(mut node) = source::node(name.to_bytes(), &stat, &engine.names) else {
            engine.error(&dir.path, name.to_bytes(), "it has an unknown type");
            return Ok(());
        };
        match node.kind {
            NodeKind::File => self.file(dir, fd, name, node, was),
            NodeKind::Dir => self.dir(dir, fd, &name, node, was),
            NodeKind::Socket => {
                engine.figures.sockets.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => {
                if node.kind == NodeKind::Symlink {
                    match source::link_target(&**fd, &name) {
                        Ok(target) => node.link_target = target,
                        Err(errno) => {
                            engine.problem(&dir.path, name.to_bytes(), errno);
                            return Ok(());
                        }
                    }
                }
                match source::xattrs_at(&**fd, &name) {
                    Ok(xattrs) => node.xattrs = xattrs,
                    Err(error) => engine.error(&dir.path, name.to_bytes(), &error.to_string()),
                }
                dir.add(engine, &node);
                Ok(())
            }
        }
    }

    fn file(
        &self,
        dir: &Arc<OpenDir>,
        fd: &Arc<OwnedFd>,
        name: CString,
        mut node: Node,
        was: Option<Node>,
    ) -> Result<()> {
        let engine = self.engine;
        engine.counters.expect(node.size, 1);
        let index = &engine.reader.index;
        let mut was = was.filter(|was| was.kind == NodeKind::File);
        let changed = was.is_some();
        let content = was.as_mut().and_then(|was| was.content.take());
        let content = content.unwrap_or_default();
        if let Some(was) = was.filter(|was| unchanged(&node, was)) {
            if content.iter().all(|id| index.contains(BlobKind::Data, id)) {
                // The same change time says that the extended attributes are the same too.
                node.xattrs = was.xattrs;
                node.content = Some(content);
                engine
                    .figures
                    .files_unmodified
                    .fetch_add(1, Ordering::Relaxed);
                engine
                    .figures
                    .bytes_processed
                    .fetch_add(node.size, Ordering::Relaxed);
                engine.counters.advance(node.size, 1);
                dir.add(engine, &node);
                return Ok(());
            }
            let message = "unchanged, but parts of it are missing in the repository; read again";
            engine.warning(&dir.path, name.to_bytes(), message);
        }
        let place = dir.reserve();
        let job = FileJob {
            dir: Arc::clone(dir),
            place,
            fd: Arc::clone(fd),
            name,
            changed,
        };
        if node.size < LARGE {
            return self.send(Job::One(job));
        }
        let file = Arc::new(LargeFile::new(job, &content, index));
        for _ in 0..threads() {
            self.send(Job::Shared(Arc::clone(&file)))?;
        }
        Ok(())
    }

    fn send(&self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| Error::Cancelled)
    }

    fn dir(
        &self,
        dir: &Arc<OpenDir>,
        fd: &Arc<OwnedFd>,
        name: &CString,
        node: Node,
        was: Option<Node>,
    ) -> Result<()> {
        let engine = self.engine;
        let opened = source::open_dir(&**fd, name);
        let (node, subtree) = match &opened {
            Ok(inner) => self.dir_node(dir, node, was, Ok(inner)),
            Err(errno) => {
                engine.problem(&dir.path, name.to_bytes(), *errno);
                return Ok(());
            }
        };
        let Ok(inner) = opened else { return Ok(()) };
        let names = match source::names(&inner) {
            Ok(names) => names,
            Err(errno) => {
                engine.problem(&dir.path, name.to_bytes(), errno);
                return Ok(());
            }
        };
        let inner = Arc::new(inner);
        let path = dir.path.join(OsStr::from_bytes(name.to_bytes()));
        let place = dir.reserve();
        let open = OpenDir::new(Some((Arc::clone(dir), place)), Some(node), path);
        let mut before = self.before(subtree);
        match self.entries(&open, &inner, names, &mut before) {
            Ok(()) => done(engine, &open),
            // The place above must not be waited for.
            Err(error) => complete(engine, dir, place, None).and(Err(error)),
        }
    }

    /// Counts a directory, adds its extended attributes, and names the tree it had in the parent.
    fn dir_node<F: std::os::fd::AsFd>(
        &self,
        above: &OpenDir,
        mut node: Node,
        was: Option<Node>,
        fd: Result<F, Errno>,
    ) -> (Node, Option<Id>) {
        let engine = self.engine;
        let was = was.filter(|was| was.kind == NodeKind::Dir);
        engine.figures.dirs.fetch_add(1, Ordering::Relaxed);
        if was.is_some() {
            engine.figures.dirs_known.fetch_add(1, Ordering::Relaxed);
        }
        match fd.map_err(std::io::Error::from).and_then(source::xattrs_of) {
            Ok(xattrs) => node.xattrs = xattrs,
            Err(error) => engine.error(&above.path, &node.name, &error.to_string()),
        }
        (node, was.and_then(|was| was.subtree))
    }

    /// The parent's entries. A parent that cannot be read is the same as none.
    fn before(&self, tree: Option<Id>) -> Before {
        let Some(id) = tree else {
            return Before::none();
        };
        match self.engine.runtime.block_on(self.engine.reader.tree(&id)) {
            Ok(nodes) => Before(nodes.into_iter().peekable()),
            Err(error) => {
                tracing::warn!(%error, "a directory of the parent cannot be used");
                Before::none()
            }
        }
    }
}

/// restic's rule: size, modification and change time, and inode are the same.
fn unchanged(now: &Node, was: &Node) -> bool {
    now.size == was.size
        && now.mtime == was.mtime
        && now.ctime == was.ctime
        && now.inode == was.inode
}

/// What is backed up below a directory: all of it, or some entries.
#[derive(Debug, Default)]
struct Level {
    whole: bool,
    below: BTreeMap<CString, Level>,
}

impl Level {
    fn insert(&mut self, path: &Path) -> Result<()> {
        let absolute = std::path::absolute(path).map_err(|error| Error::source(path, error))?;
        let mut level = self;
        for component in absolute.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let name = CString::new(name.as_bytes())
                        .map_err(|error| Error::source(path, std::io::Error::from(error)))?;
                    level = level.below.entry(name).or_default();
                }
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::Invalid(format!("{} holds ..", path.display())));
                }
            }
        }
        level.whole = true;
        Ok(())
    }
}
