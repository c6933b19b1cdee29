//! `Backup` and the specification that `Schedule` templates share with it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::go_duration::GoDuration;
use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};
use crate::tolerant::tolerant_enum;

use super::hooks::{BackupHooks, HookStatus};

tolerant_enum! {
    /// Where a backup is in its life.
    pub enum BackupPhase {
        /// Not looked at yet.
        New,
        /// Waits for its turn (Velero 1.18 and later).
        Queued,
        /// Its turn has come (Velero 1.18 and later).
        ReadyToStart,
        /// Refused: `validationErrors` says why.
        FailedValidation,
        /// Resources and volumes are being read.
        InProgress,
        /// Waits for plugins that work in the background.
        WaitingForPluginOperations,
        /// The same, after errors.
        WaitingForPluginOperationsPartiallyFailed,
        /// Last steps.
        Finalizing,
        /// Last steps, after errors.
        FinalizingPartiallyFailed,
        /// Everything asked for is in the bucket.
        Completed,
        /// In the bucket, but with errors.
        PartiallyFailed,
        /// Nothing usable is in the bucket.
        Failed,
        /// Being deleted.
        Deleting,
    }
}

impl BackupPhase {
    /// Whether the backup will not change by itself any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::FailedValidation | Self::Completed | Self::PartiallyFailed | Self::Failed
        )
    }

    /// Whether everything has been read and only last steps are left, as a Velero leaves backups behind.
    #[must_use]
    pub fn is_finishing(self) -> bool {
        matches!(
            self,
            Self::WaitingForPluginOperations
                | Self::WaitingForPluginOperationsPartiallyFailed
                | Self::Finalizing
                | Self::FinalizingPartiallyFailed
        )
    }
}

tolerant_enum! {
    /// Whether volumes are read against their previous backup (accepted; restic's format is always incremental).
    pub enum BackupType {
        /// Read everything again.
        Full,
        /// Read what changed.
        Incremental,
    }
}

/// Metadata that a backup made from a template gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Labels of the backup.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the backup.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub annotations: BTreeMap<String, String>,
}

/// A reference to an object in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypedLocalObjectReference {
    /// API group of the referent; absent means the core group.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub api_group: Option<String>,
    /// Kind of the referent.
    pub kind: String,
    /// Name of the referent.
    pub name: String,
}

/// How volume data is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploaderConfigForBackup {
    /// How many files are read at once (used by kopia only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_files_upload: Option<i32>,
}

/// What to back up, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    /// Metadata of the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// Namespaces to back up. Empty means all.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub included_namespaces: Vec<String>,
    /// Namespaces to leave out.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub excluded_namespaces: Vec<String>,
    /// Resources to back up. Empty means all.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub included_resources: Vec<String>,
    /// Resources to leave out.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub excluded_resources: Vec<String>,
    /// Cluster-scoped resources to back up. Not together with the older resource filters.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub included_cluster_scoped_resources: Vec<String>,
    /// Cluster-scoped resources to leave out. Not together with the older resource filters.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub excluded_cluster_scoped_resources: Vec<String>,
    /// Namespaced resources to back up. Not together with the older resource filters.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub included_namespace_scoped_resources: Vec<String>,
    /// Namespaced resources to leave out. Not together with the older resource filters.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub excluded_namespace_scoped_resources: Vec<String>,
    /// Only objects with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
    /// Objects that any of these selects. Not together with labelSelector.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<LabelSelector>>")]
    pub or_label_selectors: Vec<LabelSelector>,
    /// Whether to take native volume snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_volumes: Option<bool>,
    /// How long the backup is kept, as a Go duration such as 720h0m0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GoDuration>,
    /// Whether cluster-scoped resources are backed up. Absent: those that included objects need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_cluster_resources: Option<bool>,
    /// Commands that run in pods before and after their volumes are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<BackupHooks>,
    /// The BackupStorageLocation to write to.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub storage_location: Option<String>,
    /// The VolumeSnapshotLocations to use.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<String>")]
    pub volume_snapshot_locations: Vec<String>,
    /// Old name of defaultVolumesToFsBackup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_volumes_to_restic: Option<bool>,
    /// Whether all volumes of pods are backed up unless they are excluded by annotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_volumes_to_fs_backup: Option<bool>,
    /// Resources to back up first: plural resource to a comma separated list of namespace/name or name.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub ordered_resources: BTreeMap<String, String>,
    /// How long to wait for a CSI snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csi_snapshot_timeout: Option<GoDuration>,
    /// How long to wait for plugins that work in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_operation_timeout: Option<GoDuration>,
    /// A ConfigMap with rules about volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_policy: Option<TypedLocalObjectReference>,
    /// Whether snapshot data is moved to the storage location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_move_data: Option<bool>,
    /// The data mover to use.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub datamover: Option<String>,
    /// How volume data is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploader_config: Option<UploaderConfigForBackup>,
    /// The label that groups claims for group snapshots.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub volume_group_snapshot_label_key: Option<String>,
    /// Full or Incremental.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_type: Option<BackupType>,
}

/// How many objects are done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupProgress {
    /// How many objects there are, as far as known; may grow.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub total_items: i32,
    /// How many objects have been written.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub items_backed_up: i32,
}

/// What became of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// Deprecated: 1.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub version: i32,
    /// Version of the backup's layout in the bucket.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub format_version: Option<String>,
    /// When the backup may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Time>,
    /// Where the backup is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<BackupPhase>,
    /// Place in the queue, counted from 1.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub queue_position: i32,
    /// Why the backup was refused.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub validation_errors: Vec<String>,
    /// When work began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When work ended, also for backups that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// Native snapshots tried.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub volume_snapshots_attempted: i32,
    /// Native snapshots taken.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub volume_snapshots_completed: i32,
    /// Why the whole backup failed.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub failure_reason: Option<String>,
    /// Number of warnings; they are in the backup's log.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub warnings: i32,
    /// Number of errors; they are in the backup's log.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub errors: i32,
    /// How many objects are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<BackupProgress>,
    /// CSI snapshots tried.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub csi_volume_snapshots_attempted: i32,
    /// CSI snapshots taken.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub csi_volume_snapshots_completed: i32,
    /// Background operations begun.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub backup_item_operations_attempted: i32,
    /// Background operations done.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub backup_item_operations_completed: i32,
    /// Background operations failed.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub backup_item_operations_failed: i32,
    /// How many hooks ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_status: Option<HookStatus>,
}

velero_kind! {
    /// A backup of Kubernetes objects and volume data.
    Backup, plural: "backups", short: ["bak"], phase: BackupPhase,
    spec: BackupSpec, status: BackupStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Errors", "integer", ".status.errors"),
        ("Warnings", "integer", ".status.warnings"),
        ("Started", "date", ".status.startTimestamp"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
}
