//! Snapshots: the roots of everything that is kept.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Id, SnapshotId};
use crate::tree::time;

/// A snapshot as it is stored. Field order and omissions are restic's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the backup began.
    #[serde(with = "time")]
    pub time: Timestamp,
    /// The snapshot it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// Root tree.
    pub tree: Id,
    /// Where the data was.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub paths: Vec<String>,
    /// The host it was read on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The user who read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// That user's id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// That user's group id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Exclude patterns of the backup.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub excludes: Vec<String>,
    /// Tags, in order.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tags: Vec<String>,
    /// The snapshot that this one is a rewritten copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<SnapshotId>,
    /// What wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program_version: String,
    /// Figures of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<SnapshotSummary>,
}

impl Snapshot {
    /// The value of the first tag `key=value`.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags
            .iter()
            .find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Figures of a backup as restic 0.17 and newer store and show them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotSummary {
    /// When the backup began, RFC 3339.
    pub backup_start: String,
    /// When it ended, RFC 3339.
    pub backup_end: String,
    /// Files the parent does not have.
    pub files_new: u64,
    /// Files that differ from the parent's.
    pub files_changed: u64,
    /// Files as in the parent.
    pub files_unmodified: u64,
    /// Directories the parent does not have.
    pub dirs_new: u64,
    /// Directories that differ.
    pub dirs_changed: u64,
    /// Directories as in the parent.
    pub dirs_unmodified: u64,
    /// New data blobs.
    pub data_blobs: u64,
    /// New tree blobs.
    pub tree_blobs: u64,
    /// Bytes of new blobs before compression.
    pub data_added: u64,
    /// The same as stored.
    pub data_added_packed: u64,
    /// Files in the snapshot.
    pub total_files_processed: u64,
    /// Their size.
    pub total_bytes_processed: u64,
}

/// A snapshot and its name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotInfo {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// What it says.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Go writes an absent list as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
