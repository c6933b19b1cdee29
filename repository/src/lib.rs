//! The restic repository format: backup, restore, forget, prune and check, without a restic binary or library.
//!
//! A repository lies in a [`jackline_storage::ObjectStore`] and is readable and writable by restic 0.14 and newer,
//! and by this crate, also at the same time: both obey the same lock protocol.
//!
//! ```text
//! source ─ walk ─ chunk ─ hash ─ known? ─ compress ─ encrypt ─ pack ─▶ data/…   then index/…   then snapshots/…
//! ```
//!
//! - Write order is packs, index, snapshot; delete order is snapshot, index, packs. A process that is killed leaves
//!   unreferenced packs or a lock, never a reference to something that is not there.
//! - Memory is bounded: no file and no set of packs is ever held as a whole.
//! - An operation that takes a token ends within a second of its cancellation. The others are dropped instead. Dropped at
//!   any moment, an operation gives its lock back beside its caller; [`locks_given_back`] waits for that.
//! - Nothing here talks to Kubernetes: an [`Instance`] only says in a lock where its holder runs. Sizes are bytes.

#![warn(missing_docs)]

mod adopt;
mod backup;
mod blobs;
mod check;
mod chunker;
mod compress;
mod config;
mod crypto;
mod drive;
mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod id;
mod index;
mod key;
mod keys;
mod lock;
mod mark;
mod names;
mod options;
mod pack;
mod packer;
mod polynomial;
mod progress;
mod prune;
mod repair;
mod report;
mod repository;
mod restore;
mod snapshot;
mod trail;
mod tree;
mod uploader;

#[cfg(test)]
#[path = "../tests/support/faulty.rs"]
mod faulty;

pub use error::{Error, Result};
pub use id::{Id, InvalidId, SnapshotId};
pub use keys::KeyInfo;
pub use lock::{
    FOREIGN_STALE, Instance, LockHolder, LockJudge, RestRule, locks_given_back, rest_rule,
};
pub use options::{KeyCost, OpenOptions, Password, Version};
pub use progress::{NoProgress, Progress};
pub use repair::{IndexRepair, PacksRepair, RepairOptions, SnapshotRepair, SnapshotsRepair};
pub use report::{
    BackupRequest, BackupSummary, CheckOptions, CheckReport, FileProblem, ForgetSummary, Only,
    Overwrite, Parent, PruneOptions, PruneSummary, ReadData, RestoreOptions, RestoreSummary,
    Source,
};
pub use repository::Repository;
pub use snapshot::{Snapshot, SnapshotInfo, SnapshotSummary};
