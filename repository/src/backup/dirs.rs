//! Directories under way: a tree is written when the last of its entries is known, by whoever completes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Engine;
use super::vanished::{self, Vanished};
use crate::error::Result;
use crate::id::Id;
use crate::pack::BlobKind;
use crate::trail::Trail;
use crate::tree::{FOOT, HEAD, Node};

/// A directory whose entries are being read.
#[derive(Debug)]
pub(super) struct OpenDir {
    /// The directory above, and the place that is kept there for this one. `None` for the root.
    pub(super) above: Option<(Arc<OpenDir>, usize)>,
    /// Its node, until the tree's id is known.
    pub(super) node: Mutex<Option<Node>>,
    pub(super) path: Arc<Trail>,
    /// Entries that are not known yet, and one more until all are listed.
    waiting: AtomicUsize,
    entries: Mutex<Entries>,
    /// Entries that were not found.
    pub(super) vanished: Mutex<Option<Vanished>>,
}

/// JSON of the known entries in the order they became known, and where each begins and ends in the order of names.
#[derive(Debug, Default)]
struct Entries {
    json: Vec<u8>,
    ranges: Vec<(usize, usize)>,
}

impl OpenDir {
    pub(super) fn new(
        above: Option<(Arc<OpenDir>, usize)>,
        node: Option<Node>,
        path: Arc<Trail>,
    ) -> Arc<Self> {
        Arc::new(Self {
            above,
            node: Mutex::new(node),
            path,
            waiting: AtomicUsize::new(1),
            entries: Mutex::default(),
            vanished: Mutex::default(),
        })
    }

    /// Keeps the next place for an entry that will be known later. To be called in the order of names.
    pub(super) fn reserve(&self) -> usize {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.entries.lock();
        entries.ranges.push((0, 0));
        entries.ranges.len() - 1
    }

    /// Adds an entry that is known at once. To be called in the order of names.
    pub(super) fn add(&self, engine: &Engine, node: &Node) {
        let mut entries = self.entries.lock();
        let Entries { json, ranges } = &mut *entries;
        let start = json.len();
        node.write(json, &engine.zone);
        ranges.push((start, json.len()));
    }

    /// Fills a place that was kept, or leaves it empty.
    fn fill(&self, engine: &Engine, place: usize, node: Option<&Node>) {
        let Some(node) = node else { return };
        let mut entries = self.entries.lock();
        let Entries { json, ranges } = &mut *entries;
        let start = json.len();
        node.write(json, &engine.zone);
        ranges[place] = (start, json.len());
    }

    fn tree(&self) -> (Vec<u8>, bool) {
        let Entries { json, ranges } = std::mem::take(&mut *self.entries.lock());
        let mut tree = Vec::with_capacity(json.len() + ranges.len() + HEAD.len() + FOOT.len());
        tree.extend_from_slice(HEAD);
        for (start, end) in ranges.into_iter().filter(|(start, end)| start < end) {
            if tree.len() > HEAD.len() {
                tree.push(b',');
            }
            tree.extend_from_slice(&json[start..end]);
        }
        let empty = tree.len() == HEAD.len();
        tree.extend_from_slice(FOOT);
        (tree, empty)
    }
}

/// One after the other: left to itself each would drop the one above from within its own drop.
impl Drop for OpenDir {
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some((dir, _)) = above {
            above = Arc::into_inner(dir).and_then(|mut dir| dir.above.take());
        }
    }
}

/// Fills a place in `dir` and writes every tree that is complete by that, upwards.
pub(super) fn complete(
    engine: &Engine,
    dir: &Arc<OpenDir>,
    place: usize,
    node: Option<&Node>,
) -> Result<()> {
    dir.fill(engine, place, node);
    done(engine, dir)
}

/// One entry less to wait for; with the last the directory is written, and with it perhaps those above.
pub(super) fn done(engine: &Engine, dir: &Arc<OpenDir>) -> Result<()> {
    let mut dir = Arc::clone(dir);
    while dir.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
        vanished::end(engine, &dir);
        let (tree, empty) = dir.tree();
        let saved = engine.packer.save(BlobKind::Tree, &tree)?;
        let Some((above, place)) = &dir.above else {
            *engine.root.lock() = Some((saved.id, empty));
            return Ok(());
        };
        let node = dir.node.lock().take().map(|node| Node {
            subtree: Some(saved.id),
            ..node
        });
        above.fill(engine, *place, node.as_ref());
        let above = Arc::clone(above);
        dir = above;
    }
    Ok(())
}

/// What the root became: its tree, and whether it is empty.
pub(super) type Root = Mutex<Option<(Id, bool)>>;
