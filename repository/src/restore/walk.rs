//! The walk through a snapshot's trees: makes directories, links and the like, and gathers files for the batches.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::mem::Discriminant;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Engine;
use super::batch::Batch;
use super::target::{Made, Verdict};
use crate::drive;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::trail::{MAX_DEPTH, Trail};
use crate::tree::{Node, NodeKind};

/// So many directories wait for their metadata before it is set.
const MAX_FINISHED: usize = 5_000;

/// Where an entry is: its directory below the target, and its name.
type Place = (Arc<Trail>, CString);

/// A directory on the way down. One that is not selected itself is made when something in it is.
struct Level {
    path: Arc<Trail>,
    /// `None` for the target itself, which keeps its metadata.
    node: Option<Node>,
    state: State,
    /// Names in the target that the snapshot does not have.
    extras: Vec<CString>,
    /// The directories in it that are still to be entered.
    below: std::vec::IntoIter<(Node, State)>,
}

impl Level {
    fn new(path: Arc<Trail>, node: Option<Node>, state: State) -> Self {
        Self {
            path,
            node,
            state,
            extras: Vec::new(),
            below: Vec::new().into_iter(),
        }
    }
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
    path: Arc<Trail>,
    node: Option<Node>,
    extras: Vec<CString>,
}

pub(super) struct Walk<'a> {
    engine: &'a Engine,
    total_known: bool,
    /// The directories above the one that is looked at, from the target on.
    open: Vec<Level>,
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
            open: Vec::new(),
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
        let mut root = Level::new(Arc::default(), None, State::Made);
        self.tree(&mut root, tree)?;
        self.open.push(root);
        while let Some(last) = self.open.last_mut() {
            if let Some((node, state)) = last.below.next() {
                let path = last.path.below(&node.name);
                self.descend(path, node, state)?;
            } else if let Some(level) = self.open.pop() {
                self.finish(level)?;
            }
        }
        self.flush()
    }

    fn descend(&mut self, path: Arc<Trail>, mut node: Node, state: State) -> Result<()> {
        let subtree = node.subtree.take();
        let mut level = Level::new(path, Some(node), state);
        match subtree {
            _ if level.path.depth() > MAX_DEPTH => {
                let message = format!("what it holds lies in more than {MAX_DEPTH} directories");
                self.engine.problem(&level.path, b"", &message);
            }
            Some(subtree) => self.tree(&mut level, &subtree)?,
            None => self
                .engine
                .problem(&level.path, b"", "the snapshot lacks its tree"),
        }
        self.open.push(level);
        Ok(())
    }

    /// Makes what is in a directory, and notes which directories in it are to be entered.
    fn tree(&mut self, level: &mut Level, id: &Id) -> Result<()> {
        let engine = self.engine;
        let nodes = match drive::wait(&engine.runtime, &engine.stop, engine.reader.tree(id)) {
            Ok(nodes) => nodes,
            // What else the snapshot holds is worth having.
            Err(error @ Error::Corrupt { .. }) if level.node.is_some() => {
                engine.problem(&level.path, b"", &error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let path = level.path.path();
        if engine.options.delete {
            self.look_for_extras(level, &nodes);
        }
        let mut below = Vec::new();
        // One directory is open at a time, however deep they are nested.
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
            let choice = engine.selection.choose(&path, &node.name);
            let is_dir = node.kind == NodeKind::Dir;
            if !choice.this {
                if is_dir && choice.below {
                    below.push((node, State::Unmade));
                }
                continue;
            }
            if opened.is_none() {
                opened = self.enter(level);
            }
            let Some(dir) = &opened else {
                return Ok(());
            };
            // The tree's parser lets no other name through.
            let Ok(name) = CString::new(&*node.name) else {
                continue;
            };
            if !is_dir {
                self.leaf(&level.path, dir.as_fd(), name, node)?;
                continue;
            }
            match engine.target.make_dir(dir, &name, &node) {
                Ok(()) => below.push((node, State::Made)),
                Err(errno) => engine.problem(&level.path, &node.name, &message(errno)),
            }
        }
        level.below = below.into_iter();
        Ok(())
    }

    fn finish(&mut self, level: Level) -> Result<()> {
        if level.state != State::Made {
            return Ok(());
        }
        self.dirs += u64::from(level.node.is_some());
        let Level {
            path, node, extras, ..
        } = level;
        self.finished.push(Finished { path, node, extras });
        match self.finished.len() < MAX_FINISHED {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// The open directory, made if it has to be. `None`: it cannot be, and that was said.
    fn enter(&mut self, level: &mut Level) -> Option<OwnedFd> {
        if !self.make(level) {
            return None;
        }
        let opened = self.engine.target.dir(&level.path);
        opened
            .map_err(|errno| {
                self.engine.problem(&level.path, b"", &message(errno));
                level.state = State::Failed;
            })
            .ok()
    }

    /// Makes a directory and those above it that were not selected themselves.
    fn make(&mut self, level: &mut Level) -> bool {
        if level.state == State::Unmade {
            let mut above: Option<&Level> = None;
            for level in self.open.iter_mut().chain([&mut *level]) {
                if level.state == State::Unmade {
                    level.state = make_in(self.engine, above, level);
                }
                above = Some(level);
            }
        }
        level.state == State::Made
    }

    /// What the target has in this directory and the snapshot has not. Removed when the rest is done.
    fn look_for_extras(&self, level: &mut Level, nodes: &[Node]) {
        let engine = self.engine;
        let path = level.path.path();
        let found = match engine.target.names(&level.path) {
            Ok(found) => found,
            Err(errno) => return engine.problem(&level.path, b"", &message(errno)),
        };
        if found.is_empty() {
            return;
        }
        let expected: HashSet<&[u8]> = nodes.iter().map(|node| &*node.name).collect();
        level.extras.extend(found.into_iter().filter(|name| {
            let name = name.to_bytes();
            !expected.contains(name) && engine.selection.choose(&path, name).this
        }));
    }

    fn leaf(
        &mut self,
        path: &Arc<Trail>,
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

fn make_in(engine: &Engine, above: Option<&Level>, level: &Level) -> State {
    let (Some(above), Some(node)) = (above, &level.node) else {
        return level.state;
    };
    if above.state != State::Made {
        return State::Failed;
    }
    let made = engine.target.dir(&above.path).and_then(|dir| {
        let name = CString::new(&*node.name).map_err(|_| Errno::INVAL)?;
        engine.target.make_dir(dir, &name, node)
    });
    match made {
        Ok(()) => State::Made,
        Err(errno) => {
            engine.problem(&level.path, b"", &message(errno));
            State::Failed
        }
    }
}

fn message(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}
