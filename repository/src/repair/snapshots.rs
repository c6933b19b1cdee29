//! Snapshots, made anew from what can be read. Packs, index and new snapshot are stored before the damaged one goes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::tz::TimeZone;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{RepairOptions, SnapshotRepair, SnapshotsRepair};
use crate::blobs::BlobReader;
use crate::check;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::{Id, SnapshotId};
use crate::index::Index;
use crate::lock::{self, LockGuard};
use crate::pack::{BlobKind, header_len};
use crate::packer::Packer;
use crate::progress::Progress;
use crate::report::FileProblem;
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::trail::{MAX_DEPTH, shown};
use crate::tree::{FOOT, HEAD, Node, NodeKind};

const NAMED: usize = 100;
const TAG: &str = "repaired";

pub(super) async fn salvage(
    repository: &Repository,
    wanted: &[SnapshotId],
    options: RepairOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<SnapshotsRepair> {
    let files = &repository.files;
    let Loaded {
        wanted: mut snapshots,
        mut unreadable,
        made,
        mut report,
    } = load(repository, wanted).await?;
    let index = Arc::new(present(files).await?);
    let reader = BlobReader {
        files: files.clone(),
        index: Arc::clone(&index),
    };
    let runtime = Handle::current();
    let counters = Arc::new(Counters::default());
    counters.expect(0, snapshots.len() as u64);
    let mut pump = Pump::new(progress, Arc::clone(&counters));
    let roots: Vec<Id> = snapshots
        .iter()
        .map(|(_, snapshot)| snapshot.tree)
        .collect();
    let work = move |packer: Option<&Packer>, stop: &CancellationToken| {
        let mut rewrite = Rewrite {
            reader,
            runtime,
            stop,
            packer,
            zone: TimeZone::system(),
            done: HashMap::new(),
            report: SnapshotsRepair::default(),
        };
        let trees = roots.iter().map(|root| {
            let tree = rewrite.root(root);
            counters.advance(0, 1);
            tree
        });
        let trees = trees.collect::<Result<Vec<_>>>()?;
        Ok((trees, rewrite.report))
    };
    let (trees, found) = if options.dry_run {
        let work = move |stop: CancellationToken| work(None, &stop);
        drive::blocking(Some(guard), cancel, &mut pump, work).await?
    } else {
        let work = move |packer: &Arc<Packer>, stop: &CancellationToken| work(Some(packer), stop);
        drive::packing(files, guard, index, 0, cancel, &mut pump, work)
            .await?
            .0
    };
    report.files_shortened = found.files_shortened;
    report.dirs_emptied = found.dirs_emptied;
    report.problems = found.problems;
    for ((old, snapshot), tree) in snapshots.drain(..).zip(trees) {
        match tree {
            Ok(tree) if tree == snapshot.tree => {}
            Ok(tree) => {
                let new = match options.dry_run {
                    true => None,
                    false => {
                        Some(replace(files, guard, (old, snapshot), (tree, &made), options).await?)
                    }
                };
                report.repaired.push(SnapshotRepair { old, new });
            }
            Err(message) => {
                let path = FileKind::Snapshot.path(&old);
                report.lost.push(FileProblem { path, message });
                unreadable.push(old);
            }
        }
    }
    if options.forget && !options.dry_run {
        lock::delete_all(files, guard, FileKind::Snapshot, &unreadable).await?;
    }
    Ok(report)
}

/// What was made of which snapshot: the tree that was left of it, and where that is.
type Made = HashMap<(SnapshotId, Id), SnapshotId>;

#[derive(Default)]
struct Loaded {
    /// Those that can be read.
    wanted: Vec<(SnapshotId, Snapshot)>,
    /// The other wanted ones, which the report names.
    unreadable: Vec<SnapshotId>,
    /// By repairs before, which may have been interrupted.
    made: Made,
    report: SnapshotsRepair,
}

async fn load(repository: &Repository, wanted: &[SnapshotId]) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let listed = repository.files.list(FileKind::Snapshot).await?;
    for (id, _) in listed {
        let is_wanted = wanted.is_empty() || wanted.contains(&id);
        loaded.report.snapshots += u64::from(is_wanted);
        match repository.snapshot(&id).await {
            Ok(snapshot) => {
                if let Some(original) = snapshot.original {
                    loaded.made.insert((original, snapshot.tree), id);
                }
                if is_wanted {
                    loaded.wanted.push((id, snapshot));
                }
            }
            Err(Error::Corrupt { .. }) if !is_wanted => {}
            Err(error @ Error::Corrupt { .. }) => {
                loaded.report.lost.push(FileProblem {
                    path: FileKind::Snapshot.path(&id),
                    message: error.to_string(),
                });
                loaded.unreadable.push(id);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// An index of the packs that are there: what the others held is lost, whatever the index files say.
async fn present(files: &Files) -> Result<Index> {
    let (known, _) = check::load_index(files).await?;
    let listed = files.list(FileKind::Pack).await?;
    let sizes: HashMap<Id, u64> = listed.iter().map(|(id, meta)| (*id, meta.size)).collect();
    let mut index = Index::default();
    for (id, blobs) in check::by_pack(&known) {
        let held = blobs.iter().map(|blob| u64::from(blob.length)).sum::<u64>();
        if sizes.get(&id) == Some(&(held + header_len(blobs.iter()))) {
            index.add_pack(id, &blobs);
        }
    }
    Ok(index)
}

/// Stores what is left of a snapshot, unless that was done before, and removes the damaged one if that is wanted.
async fn replace(
    files: &Files,
    guard: &LockGuard,
    (old, snapshot): (SnapshotId, Snapshot),
    (tree, made): (Id, &Made),
    options: RepairOptions,
) -> Result<SnapshotId> {
    let original = snapshot.original.unwrap_or(old);
    let mut snapshot = Snapshot {
        tree,
        original: Some(original),
        // They count what is not there any more.
        summary: None,
        ..snapshot
    };
    if !options.forget && !snapshot.tags.iter().any(|tag| tag == TAG) {
        snapshot.tags.push(TAG.to_owned());
    }
    let new = match made.get(&(original, tree)) {
        Some(made) => *made,
        None => {
            let json = serde_json::to_vec(&snapshot)
                .map_err(|error| Error::Internal(error.to_string()))?;
            lock::write(files, guard, FileKind::Snapshot, &json)
                .await?
                .0
        }
    };
    if options.forget {
        lock::delete_all(files, guard, FileKind::Snapshot, &[old]).await?;
    }
    Ok(new)
}

/// A tree of which the nodes before `at` are what is left of them.
struct Open {
    id: Id,
    nodes: Vec<Node>,
    at: usize,
    changed: bool,
}

/// Trees on their way from what they were to what is left of them.
struct Rewrite<'a> {
    reader: BlobReader,
    runtime: Handle,
    stop: &'a CancellationToken,
    /// `None`: nothing is stored.
    packer: Option<&'a Packer>,
    zone: TimeZone,
    /// What became of each tree: most snapshots share most of theirs.
    done: HashMap<Id, Id>,
    report: SnapshotsRepair,
}

impl Rewrite<'_> {
    /// What is left of a snapshot's root, or why nothing is.
    fn root(&mut self, id: &Id) -> Result<Result<Id, String>> {
        match self.load(id) {
            Ok(_) => self.tree(id).map(Ok),
            Err(Error::Corrupt { object, reason }) => {
                Ok(Err(Error::corrupt(object, reason).to_string()))
            }
            Err(error) => Err(error),
        }
    }

    fn load(&self, id: &Id) -> Result<Vec<Node>> {
        drive::wait(&self.runtime, self.stop, self.reader.tree(id))
    }

    /// What is left of a tree and of those below it.
    fn tree(&mut self, id: &Id) -> Result<Id> {
        let mut path = PathBuf::from("/");
        let mut open = Vec::new();
        let mut known = self.begin(id, &path, &mut open)?;
        loop {
            let Some(last) = open.last_mut() else {
                return known.ok_or_else(|| Error::Internal("a repair left no tree".into()));
            };
            if let Some(new) = known.take() {
                path.pop();
                if let Some(node) = last.nodes.get_mut(last.at) {
                    last.changed |= node.subtree != Some(new);
                    node.subtree = Some(new);
                }
                last.at += 1;
            }
            while let Some(node) = last.nodes.get_mut(last.at)
                && node.kind != NodeKind::Dir
            {
                last.changed |= self.file(node, &path);
                last.at += 1;
            }
            known = match last.nodes.get(last.at) {
                Some(node) => {
                    path.push(OsStr::from_bytes(&node.name));
                    match node.subtree {
                        Some(subtree) => self.begin(&subtree, &path, &mut open)?,
                        None => {
                            self.emptied(&path, "the snapshot lacks its tree");
                            Some(self.save(&[])?)
                        }
                    }
                }
                None => {
                    let new = match last.changed {
                        true => self.save(&last.nodes)?,
                        false => last.id,
                    };
                    self.done.insert(last.id, new);
                    open.pop();
                    Some(new)
                }
            };
        }
    }

    /// What is left of a tree, if that is known at once; else it is one of the open ones now.
    fn begin(&mut self, id: &Id, path: &Path, open: &mut Vec<Open>) -> Result<Option<Id>> {
        if let Some(new) = self.done.get(id) {
            return Ok(Some(*new));
        }
        if open.len() > MAX_DEPTH {
            let message =
                format!("it lies in more than {MAX_DEPTH} directories and is left as it is");
            self.problem(path, message);
            return Ok(Some(*id));
        }
        match self.load(id) {
            Ok(nodes) => {
                open.push(Open {
                    id: *id,
                    nodes,
                    at: 0,
                    changed: false,
                });
                Ok(None)
            }
            Err(error @ Error::Corrupt { .. }) => {
                self.emptied(path, &error.to_string());
                let new = self.save(&[])?;
                self.done.insert(*id, new);
                Ok(Some(new))
            }
            Err(error) => Err(error),
        }
    }

    /// Leaves a file what is there of its content. Whether it lost something.
    fn file(&mut self, node: &mut Node, path: &Path) -> bool {
        let Some(content) = &mut node.content else {
            return false;
        };
        let (before, mut size) = (content.len(), 0);
        let index = &self.reader.index;
        content.retain(|id| {
            let place = index.find(BlobKind::Data, id).next();
            size += place.map_or(0, |place| u64::from(place.blob.plain_len()));
            place.is_some()
        });
        let lost = before - content.len();
        if lost == 0 && size == node.size {
            return false;
        }
        let was = std::mem::replace(&mut node.size, size);
        self.report.files_shortened += 1;
        let path = path.join(OsStr::from_bytes(&node.name));
        self.problem(
            &path,
            format!("{lost} of {before} parts are lost, {size} of {was} bytes are left"),
        );
        true
    }

    fn emptied(&mut self, path: &Path, message: &str) {
        self.report.dirs_emptied += 1;
        self.problem(path, message.to_owned());
    }

    fn problem(&mut self, path: &Path, message: String) {
        if self.report.problems.len() < NAMED {
            let path = shown(path);
            self.report.problems.push(FileProblem { path, message });
        }
    }

    fn save(&self, nodes: &[Node]) -> Result<Id> {
        let mut json = HEAD.to_vec();
        for (at, node) in nodes.iter().enumerate() {
            if at > 0 {
                json.push(b',');
            }
            node.write(&mut json, &self.zone);
        }
        json.extend_from_slice(FOOT);
        match self.packer {
            Some(packer) => Ok(packer.save(BlobKind::Tree, &json)?.id),
            None => Ok(Id::of(&json)),
        }
    }
}
