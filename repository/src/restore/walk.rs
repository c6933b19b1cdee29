//! The walk through a snapshot's trees: makes directories, links and the like, and gathers files for the batches.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::mem::Discriminant;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::batch::Batch;
use super::target::{Made, Verdict};
use crate::drive;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::tree::{Node, NodeKind};

/// Where an entry is: its directory below the target, and its name.
type Place = (Arc<PathBuf>, CString);

/// A directory on the way down. One that is not selected itself is made when something in it is.
struct Level<'a> {
    path: Arc<PathBuf>,
    above: Option<(&'a Level<'a>, &'a Node)>,
    state: Cell<State>,
    /// Names in the target that the snapshot does not have.
    extras: RefCell<Vec<CString>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unmade,
    Made,
    /// It was said why.
    Failed,
}

/// A directory whose entries are all made or in the batch.
struct Finished {
    path: Arc<PathBuf>,
    /// `None` for the target itself, which keeps its metadata.
    node: Option<Node>,
    extras: Vec<CString>,
}

pub(super) struct Walk<'a> {
    engine: &'a Engine,
    total_known: bool,
    batch: Batch,
    /// The first name of each file that has several, by device, inode and type in the source.
    first_names: HashMap<(u64, u64, Discriminant<NodeKind>), Place>,
    /// Second names, to be made when the first have their content.
    links: Vec<(Place, Place)>,
    finished: Vec<Finished>,
    pub(super) dirs: u64,
    pub(super) others: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(engine: &'a Engine, total_known: bool) -> Self {
        Self {
            engine,
            total_known,
            batch: Batch::default(),
            first_names: HashMap::new(),
            links: Vec::new(),
            finished: Vec::new(),
            dirs: 0,
            others: 0,
        }
    }

    /// Restores a tree into the target.
    pub(super) fn run(&mut self, tree: &Id) -> Result<()> {
        let root = Level {
            path: Arc::default(),
            above: None,
            state: Cell::new(State::Made),
            extras: RefCell::default(),
        };
        self.tree(&root, tree)?;
        self.finish(root, None);
        self.flush()
    }

    fn tree(&mut self, level: &Level<'_>, id: &Id) -> Result<()> {
        let engine = self.engine;
        let nodes = match drive::wait(&engine.runtime, &engine.stop, engine.reader.tree(id)) {
            Ok(nodes) => nodes,
            // What else the snapshot holds is worth having.
            Err(error @ Error::Corrupt { .. }) if level.above.is_some() => {
                engine.problem(&level.path, b"", &error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if engine.options.delete {
            self.look_for_extras(level, &nodes);
        }
        let mut below = Vec::new();
        let mut opened = None;
        // Trees are sorted; only where one is not, all names have to be remembered.
        let sorted = nodes.is_sorted_by(|one, next| one.name < next.name);
        let mut seen = (!sorted).then(HashSet::new);
        for node in nodes {
            if engine.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if seen
                .as_mut()
                .is_some_and(|seen| !seen.insert(node.name.clone()))
            {
                engine.problem(&level.path, &node.name, "the snapshot has two of this name");
                continue;
            }
            let choice = engine.selection.choose(&level.path, &node.name);
            let is_dir = node.kind == NodeKind::Dir;
            if !choice.this {
                if is_dir && choice.below {
                    below.push((node, State::Unmade));
                }
                continue;
            }
            let Some(dir) = self.enter(level, &mut opened) else {
                return Ok(());
            };
            // The tree's parser lets no other name through.
            let Ok(name) = CString::new(&*node.name) else {
                continue;
            };
            if !is_dir {
                self.leaf(&level.path, dir, name, node)?;
                continue;
            }
            match engine.target.make_dir(dir, &name, &node) {
                Ok(()) => below.push((node, State::Made)),
                Err(errno) => engine.problem(&level.path, &node.name, &message(errno)),
            }
        }
        // One directory is open at a time, however deep they are nested.
        drop(opened);
        drop(seen);
        for (mut node, state) in below {
            let subtree = node.subtree.take();
            let inner = Level {
                path: Arc::new(level.path.join(OsStr::from_bytes(&node.name))),
                above: Some((level, &node)),
                state: Cell::new(state),
                extras: RefCell::default(),
            };
            match subtree {
                Some(subtree) => self.tree(&inner, &subtree)?,
                None => engine.problem(&inner.path, b"", "the snapshot lacks its tree"),
            }
            if inner.state.get() == State::Made {
                self.dirs += 1;
                let Level { path, extras, .. } = inner;
                let extras = extras.into_inner();
                self.finished.push(Finished {
                    path,
                    node: Some(node),
                    extras,
                });
            }
        }
        Ok(())
    }

    fn finish(&mut self, level: Level<'_>, node: Option<Node>) {
        self.finished.push(Finished {
            path: level.path,
            node,
            extras: level.extras.into_inner(),
        });
    }

    /// The open directory, made if it has to be. `None`: it cannot be, and that was said.
    fn enter<'d>(
        &self,
        level: &Level<'_>,
        opened: &'d mut Option<OwnedFd>,
    ) -> Option<BorrowedFd<'d>> {
        if opened.is_none() {
            if !self.make(level) {
                return None;
            }
            match self.engine.target.dir(&level.path) {
                Ok(dir) => *opened = Some(dir),
                Err(errno) => {
                    self.engine.problem(&level.path, b"", &message(errno));
                    level.state.set(State::Failed);
                }
            }
        }
        opened.as_ref().map(AsFd::as_fd)
    }

    /// Makes a directory and those above it that were not selected themselves.
    fn make(&self, level: &Level<'_>) -> bool {
        if level.state.get() != State::Unmade {
            return level.state.get() == State::Made;
        }
        let Some((above, node)) = level.above else {
            return true;
        };
        let target = &self.engine.target;
        let made = self.make(above)
            && match target.dir(&above.path).and_then(|dir| {
                let name = CString::new(&*node.name).map_err(|_| rustix::io::Errno::INVAL)?;
                target.make_dir(dir, &name, node)
            }) {
                Ok(()) => true,
                Err(errno) => {
                    self.engine.problem(&level.path, b"", &message(errno));
                    false
                }
            };
        level
            .state
            .set(if made { State::Made } else { State::Failed });
        made
    }

    /// What the target has in this directory and the snapshot has not. Removed when the rest is done.
    fn look_for_extras(&self, level: &Level<'_>, nodes: &[Node]) {
        let engine = self.engine;
        let found = match engine.target.names(&level.path) {
            Ok(found) => found,
            Err(errno) => return engine.problem(&level.path, b"", &message(errno)),
        };
        if found.is_empty() {
            return;
        }
        let expected: HashSet<&[u8]> = nodes.iter().map(|node| &*node.name).collect();
        level
            .extras
            .borrow_mut()
            .extend(found.into_iter().filter(|name| {
                let name = name.to_bytes();
                !expected.contains(name) && engine.selection.choose(&level.path, name).this
            }));
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
        let done = |bytes| engine.counters.advance(bytes, is_file.into());
        let size = if is_file { node.size } else { 0 };
        let mut verdict = Verdict::Keep;
        if supported {
            verdict = engine.target.verdict(dir, &name, &node);
        }
        if verdict == Verdict::Keep {
            engine.skipped.fetch_add(1, Ordering::Relaxed);
            done(size);
            return Ok(());
        }
        if node.links > 1 {
            let here = (Arc::clone(path), name.clone());
            let key = (
                node.device_id,
                node.inode,
                std::mem::discriminant(&node.kind),
            );
            if let Some(first) = self.first_names.get(&key) {
                self.links.push((first.clone(), here));
                done(size);
                return Ok(());
            }
            self.first_names.insert(key, here);
        }
        if !is_file {
            match engine.target.make_other(dir, &name, &node) {
                Ok(Made::Yes) => self.others += 1,
                Ok(Made::Kept) => {
                    engine.skipped.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => engine.problem(path, name.to_bytes(), &error.to_string()),
            }
            return Ok(());
        }
        let mut there = false;
        if verdict == Verdict::Dress {
            match engine.target.dress_unchanged(dir, &name, &node) {
                Ok(dressed) => there = dressed,
                Err(error) => {
                    engine.problem(path, name.to_bytes(), &error.to_string());
                    there = true;
                }
            }
        }
        if there {
            engine.unchanged.fetch_add(1, Ordering::Relaxed);
            done(size);
            if !engine.options.verify {
                return Ok(());
            }
        }
        let shown = name.clone();
        if let Err(message) = self.batch.add(engine, path, name, node, there) {
            engine.problem(path, shown.to_bytes(), &message);
        }
        if self.batch.is_full() {
            return self.flush();
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
        for finished in std::mem::take(&mut self.finished) {
            let Finished { path, node, extras } = finished;
            let dir = match engine.target.dir(&path) {
                Ok(dir) => dir,
                Err(errno) => {
                    engine.problem(&path, b"", &message(errno));
                    continue;
                }
            };
            for name in extras {
                if engine.stop.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                match engine.target.remove_all(dir.as_fd(), &name) {
                    Ok(count) => {
                        engine.deleted.fetch_add(count, Ordering::Relaxed);
                    }
                    Err(errno) => {
                        let message = format!("it cannot be removed: {}", message(errno));
                        engine.problem(&path, name.to_bytes(), &message);
                    }
                }
            }
            if let Some(node) = node
                && let Err(error) = engine.target.dress(dir, &node)
            {
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

fn message(errno: rustix::io::Errno) -> String {
    std::io::Error::from(errno).to_string()
}
