//! `PodVolumeBackup` and `PodVolumeRestore`: one volume of one pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};
use crate::tolerant::tolerant_enum;

/// The message of a Completed PodVolumeBackup whose volume held nothing.
pub const VOLUME_EMPTY: &str = "volume was empty";

tolerant_enum! {
    /// Where a volume's backup or restore is in its life.
    pub enum PodVolumePhase {
        /// Not begun.
        New,
        /// Taken by a node (Velero 1.17 and later).
        Accepted,
        /// About to begin (Velero 1.17 and later).
        Prepared,
        /// Data is moving.
        InProgress,
        /// Asked to stop.
        Canceling,
        /// Stopped on request.
        Canceled,
        /// Everything was moved.
        Completed,
        /// Something was not moved: `message` says what.
        Failed,
    }
}

impl PodVolumePhase {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Canceled | Self::Completed | Self::Failed)
    }
}

tolerant_enum! {
    /// The format that volume data is written in.
    pub enum UploaderType {
        /// Not said: restic in everything up to Velero 1.18.
        Unset = "",
        /// restic's repository format.
        Restic = "restic",
        /// kopia's repository format.
        Kopia = "kopia",
    }
}

/// How much data has moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataProgress {
    /// Bytes there are.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub total_bytes: i64,
    /// Bytes done.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub bytes_done: i64,
}

/// Which volume to back up, and where to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolumeBackupSpec {
    /// The node that the pod runs on.
    pub node: String,
    /// The pod that mounts the volume.
    pub pod: ObjectReference,
    /// The volume's name in the pod.
    pub volume: String,
    /// The BackupStorageLocation to write to.
    pub backup_storage_location: String,
    /// The repository, as restic names it.
    pub repo_identifier: String,
    /// The format to write.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "UploaderType")]
    pub uploader_type: UploaderType,
    /// Tags of the snapshot.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub tags: BTreeMap<String, String>,
    /// Settings of the uploader.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub uploader_settings: BTreeMap<String, String>,
    /// Whether to stop.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub cancel: bool,
    /// The snapshot to compare with: empty or auto, none, or an id.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub parent_snapshot: Option<String>,
}

/// What became of a volume's backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolumeBackupStatus {
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PodVolumePhase>,
    /// The volume's directory as the node agent sees it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub path: Option<String>,
    /// The snapshot in the repository. None for an empty volume of older Velero versions.
    #[serde(
        rename = "snapshotID",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub snapshot_id: Option<String>,
    /// Why it failed, or something to know.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When data began to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// When a node took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_timestamp: Option<Time>,
    /// How much data was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<DataProgress>,
    /// Bytes that were new to the repository.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub incremental_bytes: i64,
}

velero_kind! {
    /// The backup of one volume of one pod.
    PodVolumeBackup, plural: "podvolumebackups", short: ["pvb"], phase: PodVolumePhase,
    spec: PodVolumeBackupSpec, status: PodVolumeBackupStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Started", "date", ".status.startTimestamp"),
        ("Bytes Done", "integer", ".status.progress.bytesDone"),
        ("Total Bytes", "integer", ".status.progress.totalBytes"),
        ("Incremental Bytes", "integer", ".status.incrementalBytes", 10),
        ("Storage Location", "string", ".spec.backupStorageLocation"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Node", "string", ".spec.node"),
        ("Uploader", "string", ".spec.uploaderType"),
    ]
}

/// Which volume to restore, and where from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolumeRestoreSpec {
    /// The pod that mounts the volume.
    pub pod: ObjectReference,
    /// The volume's name in the pod.
    pub volume: String,
    /// The BackupStorageLocation to read from.
    pub backup_storage_location: String,
    /// The repository, as restic names it.
    pub repo_identifier: String,
    /// The format to read.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "UploaderType")]
    pub uploader_type: UploaderType,
    /// The snapshot, by its id or the beginning of it.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// The namespace of the pod at backup time.
    pub source_namespace: String,
    /// Settings of the uploader.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub uploader_settings: BTreeMap<String, String>,
    /// Whether to stop.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub cancel: bool,
    /// Bytes in the snapshot.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub snapshot_size: i64,
}

/// What became of a volume's restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodVolumeRestoreStatus {
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PodVolumePhase>,
    /// Why it failed, or something to know.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When data began to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// When a node took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_timestamp: Option<Time>,
    /// How much data was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<DataProgress>,
    /// The node that does it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub node: Option<String>,
}

velero_kind! {
    /// The restore of one volume of one pod.
    PodVolumeRestore, plural: "podvolumerestores", short: ["pvr"], phase: PodVolumePhase,
    spec: PodVolumeRestoreSpec, status: PodVolumeRestoreStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Started", "date", ".status.startTimestamp"),
        ("Bytes Done", "integer", ".status.progress.bytesDone"),
        ("Total Bytes", "integer", ".status.progress.totalBytes"),
        ("Storage Location", "string", ".spec.backupStorageLocation"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Node", "string", ".status.node"),
        ("Uploader Type", "string", ".spec.uploaderType"),
    ]
}
