//! `BackupRepository`, and its ancestor `ResticRepository`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::go_duration::GoDuration;
use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};
use crate::tolerant::tolerant_enum;

use super::pod_volume::UploaderType;

tolerant_enum! {
    /// Whether a repository can be used.
    pub enum RepositoryPhase {
        /// Not opened yet.
        New,
        /// Opened with the password at hand.
        Ready,
        /// Could not be opened: `message` says why.
        NotReady,
    }
}

tolerant_enum! {
    /// How a maintenance run ended.
    pub enum MaintenanceResult {
        /// Well.
        Succeeded,
        /// Not well.
        Failed,
    }
}

/// Which repository, and how it is looked after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRepositorySpec {
    /// The namespace whose volumes are in it.
    pub volume_namespace: String,
    /// The BackupStorageLocation it lies in.
    pub backup_storage_location: String,
    /// The format.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "UploaderType")]
    pub repository_type: UploaderType,
    /// The repository, as restic names it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub restic_identifier: Option<String>,
    /// How often it is pruned.
    pub maintenance_frequency: GoDuration,
    /// Settings of the format.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub repository_config: BTreeMap<String, String>,
}

/// One maintenance run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceStatus {
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<MaintenanceResult>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_timestamp: Option<Time>,
    /// Why it failed.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
}

/// State of a repository.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRepositoryStatus {
    /// Whether it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RepositoryPhase>,
    /// Why it cannot be used.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When it was last pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_maintenance_time: Option<Time>,
    /// The last maintenance runs, newest last.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<MaintenanceStatus>")]
    pub recent_maintenance: Vec<MaintenanceStatus>,
}

velero_kind! {
    /// The repository that holds the volume data of one namespace in one location.
    BackupRepository, plural: "backuprepositories", short: ["repo"], phase: RepositoryPhase,
    spec: BackupRepositorySpec, status: BackupRepositoryStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Last Maintenance", "date", ".status.lastMaintenanceTime"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Repository Type", "string", ".spec.repositoryType"),
    ]
}

/// Which repository, and how it is looked after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResticRepositorySpec {
    /// The namespace whose volumes are in it.
    pub volume_namespace: String,
    /// The BackupStorageLocation it lies in.
    pub backup_storage_location: String,
    /// The repository, as restic names it.
    pub restic_identifier: String,
    /// How often it is pruned.
    pub maintenance_frequency: GoDuration,
}

/// State of a repository.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResticRepositoryStatus {
    /// Whether it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RepositoryPhase>,
    /// Why it cannot be used.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When it was last pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_maintenance_time: Option<Time>,
}

velero_kind! {
    /// What Velero up to 1.9 had instead of BackupRepository; read, never written.
    ResticRepository, plural: "resticrepositories", short: [], phase: RepositoryPhase,
    spec: ResticRepositorySpec, status: ResticRepositoryStatus,
    columns: [("Age", "date", ".metadata.creationTimestamp")]
}
