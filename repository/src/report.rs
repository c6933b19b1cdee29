//! What operations are asked and what they answer. Sizes are bytes.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::id::{Id, SnapshotId};

/// What is backed up, and how the snapshot shows it.
#[derive(Debug, Clone)]
pub enum Source {
    /// One directory; its entries are the snapshot's root (restic's `backup .`).
    Contents(PathBuf),
    /// Files and directories; the snapshot holds their absolute paths from `/` (restic's `backup /a /b`).
    Paths(Vec<PathBuf>),
}

/// The snapshot that a backup compares the source with: what did not change since is not read again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parent {
    /// Read everything.
    #[default]
    None,
    /// This one. One that does not exist any more is the same as none.
    Snapshot(SnapshotId),
    /// The newest one of the same host and paths, as restic chooses.
    Newest,
}

impl From<Option<SnapshotId>> for Parent {
    fn from(id: Option<SnapshotId>) -> Self {
        id.map_or(Self::None, Self::Snapshot)
    }
}

/// A backup to be made.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// What to read.
    pub source: Source,
    /// `paths` of the snapshot; empty = the absolute paths of the source.
    pub snapshot_paths: Vec<String>,
    /// `hostname` of the snapshot. Velero's is `velero`.
    pub host: String,
    /// `tags` of the snapshot, in this order.
    pub tags: Vec<String>,
    /// The snapshot to compare with.
    pub parent: Parent,
    /// `time` of the snapshot; `None` = now.
    pub time: Option<Timestamp>,
}

impl BackupRequest {
    /// The contents of one directory, as Velero's node agent backs up a volume.
    pub fn contents(root: impl Into<PathBuf>, host: impl Into<String>) -> Self {
        Self::new(Source::Contents(root.into()), host)
    }

    /// Files and directories by their absolute paths, as `restic backup` does.
    pub fn paths(paths: Vec<PathBuf>, host: impl Into<String>) -> Self {
        Self::new(Source::Paths(paths), host)
    }

    fn new(source: Source, host: impl Into<String>) -> Self {
        Self {
            source,
            snapshot_paths: Vec::new(),
            host: host.into(),
            tags: Vec::new(),
            parent: Parent::None,
            time: None,
        }
    }
}

/// A source file that is not, or not as it was found, in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileProblem {
    /// Path below the source's root, shown lossily where it is not UTF-8.
    pub path: String,
    /// What happened.
    pub message: String,
}

/// What a backup did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackupSummary {
    /// The snapshot. There is always one when the operation returns `Ok`.
    pub snapshot: Option<SnapshotId>,
    /// Root tree of the snapshot.
    pub tree: Option<Id>,
    /// The parent that was really used.
    pub parent: Option<SnapshotId>,
    /// Files that the parent does not have.
    pub files_new: u64,
    /// Files that differ from the parent's.
    pub files_changed: u64,
    /// Files that are as in the parent, and were not read.
    pub files_unmodified: u64,
    /// Directories.
    pub dirs: u64,
    /// Those of them that the parent has too.
    pub dirs_known: u64,
    /// Sockets: not stored, as in restic.
    pub sockets_skipped: u64,
    /// Bytes of file content that were read from the source.
    pub bytes_read: u64,
    /// Size of all files in the snapshot.
    pub bytes_processed: u64,
    /// Bytes of new blobs before compression.
    pub bytes_added: u64,
    /// The same as they are stored.
    pub bytes_packed: u64,
    /// Bytes written to the repository as packs, index and snapshot.
    pub bytes_stored: u64,
    /// New data blobs.
    pub data_blobs: u64,
    /// New tree blobs.
    pub tree_blobs: u64,
    /// The volume held nothing at all, or did not exist: the snapshot's tree is empty, and restores as such.
    pub empty: bool,
    /// How many files could not be read. More than none means: the snapshot is incomplete.
    pub error_count: u64,
    /// The first of them (at most 100).
    pub errors: Vec<FileProblem>,
    /// How many files vanished between listing and reading.
    pub vanished: u64,
    /// How many files vanished or changed while they were read.
    pub warning_count: u64,
    /// The first of them (at most 100).
    pub warnings: Vec<FileProblem>,
    /// Wall time.
    pub duration_ms: u64,
}

impl BackupSummary {
    /// Whether every file that was there is in the snapshot.
    pub fn is_complete(&self) -> bool {
        self.error_count == 0
    }
}

/// How a snapshot is restored.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Leave holes where the content is zero.
    pub sparse: bool,
    /// Create block and character devices (needs CAP_MKNOD). Otherwise they are skipped and counted.
    pub devices: bool,
    /// Set the owners. `None` = only when running as root, as restic does.
    pub owners: Option<bool>,
    /// What to do with what is in the target already.
    pub overwrite: Overwrite,
    /// Remove what is in a restored directory of the target and not in the snapshot, as far as `only` selects it.
    /// Other file systems that are mounted there are left alone. Also lets a file take the place of a full directory.
    pub delete: bool,
    /// Which entries are restored.
    pub only: Only,
    /// Restore what is in this directory of the snapshot instead of its root: names below the root, separated by `/`.
    pub subfolder: Option<PathBuf>,
    /// Read every file back from the disk and compare it with the snapshot.
    pub verify: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            sparse: true,
            devices: false,
            owners: None,
            overwrite: Overwrite::Always,
            delete: false,
            only: Only::Everything,
            subfolder: None,
            verify: false,
        }
    }
}

/// Which entries of a snapshot are restored.
///
/// Patterns are restic's: one that begins with `/` is matched from the root, any other at every depth; `*`, `?` and
/// `[…]` stay within a name, `**` is any number of directories; what lies below a match is matched too; `!` before a
/// pattern takes back what those before it matched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Only {
    /// All of them.
    #[default]
    Everything,
    /// What one of the patterns matches, and the directories on the way to it. No pattern: everything.
    Included(Vec<String>),
    /// What none of the patterns matches.
    Excluded(Vec<String>),
}

/// What to do with an entry that is in the target already. Directories are always entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overwrite {
    /// Replace it.
    #[default]
    Always,
    /// Replace it unless it is a file of the same size and modification time; such a file only gets its metadata.
    IfChanged,
    /// Replace it if the snapshot's has the later modification time.
    IfNewer,
    /// Leave it as it is.
    Never,
}

/// What a restore did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RestoreSummary {
    /// Regular files written or linked.
    pub files: u64,
    /// Directories made or found.
    pub dirs: u64,
    /// Symbolic links, fifos and devices made.
    pub others: u64,
    /// Bytes of file content written.
    pub bytes: u64,
    /// Entries skipped: sockets, devices not asked for, entries that [`Overwrite`] told to keep.
    pub skipped: u64,
    /// Regular files that [`Overwrite::IfChanged`] found to be there already.
    pub unchanged: u64,
    /// Entries removed because the snapshot does not have them.
    pub deleted: u64,
    /// Files read back and compared.
    pub verified: u64,
    /// Files that were read back and are not what the snapshot holds; they are among the errors.
    pub mismatches: u64,
    /// How many entries could not be restored, or not with all their metadata. More than none means: incomplete.
    pub error_count: u64,
    /// The first of them (at most 100).
    pub errors: Vec<FileProblem>,
    /// Wall time.
    pub duration_ms: u64,
}

impl RestoreSummary {
    /// Whether everything came back.
    pub fn is_complete(&self) -> bool {
        self.error_count == 0
    }
}

/// What was forgotten.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ForgetSummary {
    /// Snapshots that were removed.
    pub removed: Vec<SnapshotId>,
    /// Snapshots that were not there any more.
    pub absent: Vec<SnapshotId>,
}

/// How much prune tidies up.
#[derive(Debug, Clone, Copy)]
pub struct PruneOptions {
    /// Share of unused bytes that may stay in the repository, in percent of what is used. restic's default is 5.
    pub max_unused_percent: f64,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            max_unused_percent: 5.0,
        }
    }
}

/// What a prune did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PruneSummary {
    /// Snapshots in the repository.
    pub snapshots: u64,
    /// Bytes in packs before.
    pub bytes_before: u64,
    /// Bytes in packs after.
    pub bytes_after: u64,
    /// Packs deleted.
    pub packs_deleted: u64,
    /// Packs whose used blobs moved into new packs.
    pub packs_repacked: u64,
    /// Packs that no index knew, deleted.
    pub packs_unreferenced: u64,
    /// Bytes of unused blobs that stay.
    pub bytes_unused: u64,
    /// Wall time.
    pub duration_ms: u64,
}

/// How much check reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Packs whose bytes are read and verified, beside the structure.
    pub read_data: ReadData,
    /// Take no lock: for a repository whose last user was just killed, or that is read-only.
    pub no_lock: bool,
}

/// A share of the packs. A percentage or a number of bytes that is more than nothing is at least one pack.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ReadData {
    /// None: structure only.
    #[default]
    Nothing,
    /// Every pack.
    Everything,
    /// So many percent of the packs, from 0 to 100, drawn anew each time.
    Percent(f64),
    /// The `part`-th of `of` parts, each the same from run to run and of the packs that restic takes for it: all parts,
    /// one after another, are everything; of few packs a part may be none. `1 <= part <= of <= 256`.
    Part {
        /// Which one, from 1.
        part: u32,
        /// Of how many.
        of: u32,
    },
    /// Packs drawn anew each time, until they hold so many bytes.
    Bytes(u64),
}

/// What check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Snapshots checked.
    pub snapshots: u64,
    /// Trees checked.
    pub trees: u64,
    /// Packs known to the index.
    pub packs: u64,
    /// Packs whose bytes were verified.
    pub packs_read: u64,
    /// What is wrong. Empty = the repository is sound.
    pub errors: Vec<String>,
    /// What is untidy and harms nothing, such as packs that no index knows.
    pub hints: Vec<String>,
    /// Wall time.
    pub duration_ms: u64,
}

impl CheckReport {
    /// Whether the repository is sound.
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }
}
