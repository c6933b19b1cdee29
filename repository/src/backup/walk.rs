//! The walk over the source: what is unchanged is taken from the parent, what must be read goes to the other threads.
//!
//! Directories are shared out too. Only the thread that began the walk waits for room in the queue; the others do what
//! finds none themselves, so the queue always moves. Whoever walks a directory keeps those above it in a list, however
//! many they are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex};
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
use crate::trail::{MAX_DEPTH, Trail, above};
use crate::tree::{Node, NodeKind};

/// So many of the directories above it a walking thread keeps open; the others it opens anew on the way back.
const KEPT_OPEN: usize = 64;

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
    let waiting = Waiting::default();
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            let walker = Walker {
                engine,
                jobs: jobs.clone(),
                waiting: &waiting,
                buffer: Some(RefCell::default()),
            };
            let (queue, fail) = (queue.clone(), &fail);
            scope.spawn(move || walker.work(&queue, fail));
        }
        let walker = Walker {
            engine,
            jobs,
            waiting: &waiting,
            buffer: None,
        };
        let walked = match source {
            Source::Contents(path) => walker.contents(path, parent),
            Source::Paths(paths) => walker.paths(paths, parent),
        };
        if let Err(error) = walked {
            fail(error);
        }
        walker.finish();
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

/// Work that any thread can do.
#[derive(Debug)]
enum Job {
    One(FileJob),
    /// A file that all threads read.
    Shared(Arc<LargeFile>),
    Dir(Box<DirJob>),
    /// There is nothing more to do.
    End,
}

/// A directory that is to be opened, and what the directory above knows of it.
#[derive(Debug)]
struct DirJob {
    above: Arc<OpenDir>,
    place: usize,
    fd: Arc<OwnedFd>,
    name: CString,
    node: Node,
    was: Option<Node>,
}

/// A directory that a thread walks.
struct Entered {
    dir: Arc<OpenDir>,
    /// `None` while a directory far below is walked, and where there was no way back.
    fd: Option<Arc<OwnedFd>>,
    names: std::vec::IntoIter<CString>,
    before: Before,
}

impl Entered {
    fn new(dir: Arc<OpenDir>, fd: OwnedFd, names: Vec<CString>, before: Before) -> Self {
        Self {
            dir,
            fd: Some(Arc::new(fd)),
            names: names.into_iter(),
            before,
        }
    }
}

/// How many jobs are queued or being done.
#[derive(Debug, Default)]
struct Waiting {
    jobs: Mutex<usize>,
    none: Condvar,
}

/// One job less, also where it panicked: nobody may wait for it.
struct Done<'a>(&'a Waiting);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut jobs = self.0.jobs.lock();
        *jobs -= 1;
        if *jobs == 0 {
            self.0.none.notify_all();
        }
    }
}

struct Walker<'a> {
    engine: &'a Engine,
    jobs: Sender<Job>,
    waiting: &'a Waiting,
    /// A worker's; the thread that began the walk reads no files.
    buffer: Option<RefCell<Buffer>>,
}

impl Walker<'_> {
    /// Does jobs until there are no more.
    fn work(&self, queue: &Receiver<Job>, fail: &impl Fn(Error)) {
        for job in queue {
            if matches!(job, Job::End) {
                return;
            }
            let _done = Done(self.waiting);
            // Once stopped, jobs are only taken away, so that the walk does not wait for room.
            if !self.engine.stop.is_cancelled()
                && let Err(error) = self.job(job)
            {
                fail(error);
            }
        }
    }

    fn job(&self, job: Job) -> Result<()> {
        match (job, &self.buffer) {
            (Job::One(job), Some(buffer)) => file::run(self.engine, &job, &mut buffer.borrow_mut()),
            (Job::Shared(file), Some(buffer)) => file.run(self.engine, &mut buffer.borrow_mut()),
            (Job::Dir(job), _) => match self.enter(*job)? {
                Some(entered) => self.walk(entered),
                None => Ok(()),
            },
            (Job::End, _) => Ok(()),
            (Job::One(_) | Job::Shared(_), None) => {
                Err(Error::Internal("a file came to who reads none".into()))
            }
        }
    }

    /// Leaves a job to whoever is free, and gives it back where nobody is.
    fn offer(&self, job: Job) -> Option<Job> {
        *self.waiting.jobs.lock() += 1;
        match self.jobs.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                // The walk itself ends only after this, so nobody has to be told.
                *self.waiting.jobs.lock() -= 1;
                Some(job)
            }
        }
    }

    /// Leaves a file to whoever is free. Where nobody is, waits for that, if this thread may, or reads it.
    fn hand_out(&self, job: Job) -> Result<()> {
        let Some(job) = self.offer(job) else {
            return Ok(());
        };
        if self.buffer.is_some() {
            return self.job(job);
        }
        *self.waiting.jobs.lock() += 1;
        self.jobs.send(job).map_err(|_| Error::Cancelled)
    }

    /// Waits until every job is done, and sends the workers home.
    fn finish(&self) {
        let mut jobs = self.waiting.jobs.lock();
        while *jobs > 0 {
            self.waiting.none.wait(&mut jobs);
        }
        drop(jobs);
        for _ in 0..threads() {
            let _ = self.jobs.send(Job::End);
        }
    }
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
            Ok(fd) => Some(fd),
            // A volume whose directory is not there holds nothing.
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(Error::source(path, errno)),
        };
        let root = OpenDir::new(None, None, Trail::root(""));
        let Some(fd) = fd else {
            return done(self.engine, &root);
        };
        let names = source::names(&fd).map_err(|errno| Error::source(path, errno))?;
        self.walk(Entered::new(root, fd, names, self.before(parent)))
    }

    /// The root holds the absolute paths.
    fn paths(&self, paths: &[PathBuf], parent: Option<Id>) -> Result<()> {
        let mut top = Level::default();
        for path in paths {
            top.insert(path)?;
        }
        let root = OpenDir::new(None, None, Trail::root("/"));
        self.level(root, Path::new("/"), &top, self.before(parent))
    }

    /// A directory of which only some entries are backed up. As deep as the paths that the caller of the backup gave.
    fn level(
        &self,
        dir: Arc<OpenDir>,
        path: &Path,
        level: &Level,
        mut before: Before,
    ) -> Result<()> {
        let engine = self.engine;
        let unreadable = |errno: Errno| Error::source(path, errno);
        let fd = source::open_root(path).map_err(unreadable)?;
        if level.whole {
            let names = source::names(&fd).map_err(unreadable)?;
            return self.walk(Entered::new(dir, fd, names, before));
        }
        let fd = Arc::new(fd);
        for (name, below) in &level.below {
            let was = before.take(name.to_bytes());
            let here = path.join(OsStr::from_bytes(name.to_bytes()));
            if below.whole {
                source::stat(&*fd, name).map_err(|errno| Error::source(&here, errno))?;
                if let Some(job) = self.entry(&dir, &fd, name.clone(), was)?
                    && let Some(entered) = self.enter(job)?
                {
                    self.walk(entered)?;
                }
                continue;
            }
            // Above the paths links are followed: the node describes what they lead to.
            let stat = rustix::fs::stat(&here).map_err(|errno| Error::source(&here, errno))?;
            let node = source::node(name.to_bytes(), &stat, &engine.names)
                .filter(|node| node.kind == NodeKind::Dir)
                .ok_or_else(|| Error::source(&here, Errno::NOTDIR))?;
            let (node, subtree) = self.dir_node(&dir, node, was, source::open_root(&here));
            let place = dir.reserve();
            let trail = dir.path.below(name.to_bytes());
            let open = OpenDir::new(Some((Arc::clone(&dir), place)), Some(node), trail);
            self.level(open, &here, below, self.before(subtree))?;
        }
        done(engine, &dir)
    }

    /// Walks a directory and what nobody else is free for below it.
    fn walk(&self, first: Entered) -> Result<()> {
        let mut entered = vec![first];
        while let Some(last) = entered.last_mut() {
            if self.engine.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let (Some(name), Some(fd)) = (last.names.next(), &last.fd) {
                let was = last.before.take(name.to_bytes());
                if let Some(job) = self.entry(&last.dir, fd, name, was)?
                    && let Some(inner) = self.enter(job)?
                {
                    if entered.len() > KEPT_OPEN
                        && let Some(last) = entered.last_mut()
                    {
                        last.fd = None;
                    }
                    entered.push(inner);
                }
            } else if let Some(Entered { dir, fd, .. }) = entered.pop() {
                if let Some(last) = entered.last_mut().filter(|last| last.fd.is_none()) {
                    self.reopen(last, fd);
                }
                done(self.engine, &dir)?;
            }
        }
        Ok(())
    }

    /// Opens a directory again from one in it. Where that fails, what is left of it is an error.
    fn reopen(&self, entered: &mut Entered, below: Option<Arc<OwnedFd>>) {
        let known = entered.dir.node.lock().as_ref().map(identity_of);
        let opened = match (below, known) {
            (Some(below), Some(known)) => above(&*below, known),
            _ => Err(Errno::STALE),
        };
        match opened {
            Ok(fd) => entered.fd = Some(Arc::new(fd)),
            Err(_) if entered.names.len() == 0 => {}
            Err(errno) => {
                let error = std::io::Error::from(errno);
                let message = format!("the rest of it is left out: {error}");
                self.engine.error(&entered.dir.path, b"", &message);
            }
        }
    }

    /// Stores an entry, or leaves it to whoever is free. A directory comes back where nobody is.
    fn entry(
        &self,
        dir: &Arc<OpenDir>,
        fd: &Arc<OwnedFd>,
        name: CString,
        was: Option<Node>,
    ) -> Result<Option<DirJob>> {
        let engine = self.engine;
        let stat = match source::stat(&**fd, &name) {
            Ok(stat) => stat,
            Err(errno) => {
                engine.problem(dir, fd, &name, errno);
                return Ok(None);
            }
        };
        let Some(mut node) = source::node(name.to_bytes(), &stat, &engine.names) else {
            engine.error(&dir.path, name.to_bytes(), "it has an unknown type");
            return Ok(None);
        };
        match node.kind {
            NodeKind::File => self.file(dir, fd, name, node, was)?,
            NodeKind::Dir => {
                let job = DirJob {
                    above: Arc::clone(dir),
                    place: dir.reserve(),
                    fd: Arc::clone(fd),
                    name,
                    node,
                    was,
                };
                if let Some(Job::Dir(job)) = self.offer(Job::Dir(Box::new(job))) {
                    return Ok(Some(*job));
                }
            }
            NodeKind::Socket => {
                engine.figures.sockets.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                if node.kind == NodeKind::Symlink {
                    match source::link_target(&**fd, &name) {
                        Ok(target) => node.link_target = target,
                        Err(errno) => {
                            engine.problem(dir, fd, &name, errno);
                            return Ok(None);
                        }
                    }
                }
                match source::xattrs_at(&**fd, &name) {
                    Ok(xattrs) => node.xattrs = xattrs,
                    Err(error) => engine.error(&dir.path, name.to_bytes(), &error.to_string()),
                }
                dir.add(engine, &node);
            }
        }
        Ok(None)
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
            return self.hand_out(Job::One(job));
        }
        let file = Arc::new(LargeFile::new(job, &content, index));
        for _ in 0..threads() {
            self.hand_out(Job::Shared(Arc::clone(&file)))?;
        }
        Ok(())
    }

    /// Opens a directory, or fills its place with nothing and counts why.
    fn enter(&self, job: DirJob) -> Result<Option<Entered>> {
        let DirJob {
            above,
            place,
            fd,
            name,
            node,
            was,
        } = job;
        let engine = self.engine;
        if above.path.depth() >= MAX_DEPTH {
            let message = format!("it lies in more than {MAX_DEPTH} directories and is left out");
            engine.error(&above.path, name.to_bytes(), &message);
            complete(engine, &above, place, None)?;
            return Ok(None);
        }
        let opened =
            source::open_dir(&*fd, &name).and_then(|inner| Ok((source::names(&inner)?, inner)));
        let (names, inner) = match opened {
            Ok(opened) => opened,
            Err(errno) => {
                engine.problem(&above, &fd, &name, errno);
                complete(engine, &above, place, None)?;
                return Ok(None);
            }
        };
        // What lies in it does not need the one above.
        drop(fd);
        let (node, subtree) = self.dir_node(&above, node, was, Ok(&inner));
        let trail = above.path.below(name.to_bytes());
        let open = OpenDir::new(Some((above, place)), Some(node), trail);
        Ok(Some(Entered::new(open, inner, names, self.before(subtree))))
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

fn identity_of(node: &Node) -> (u64, u64) {
    (node.device_id, node.inode)
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
