//! Requests: `DeleteBackupRequest`, `DownloadRequest`, `ServerStatusRequest`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kind::velero_kind;
use crate::lenient::{non_empty, null_default};
use crate::tolerant::tolerant_enum;

tolerant_enum! {
    /// Where a deletion is in its life.
    pub enum DeletePhase {
        /// Not begun.
        New,
        /// Being done.
        InProgress,
        /// Done; `errors` says what could not be done.
        Processed,
    }
}

/// Which backup to delete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteBackupRequestSpec {
    /// The backup.
    pub backup_name: String,
}

/// What became of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteBackupRequestStatus {
    /// Where the deletion is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<DeletePhase>,
    /// What could not be done.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub errors: Vec<String>,
}

velero_kind! {
    /// Asks for a backup, its files and its snapshots to be deleted.
    DeleteBackupRequest, plural: "deletebackuprequests", short: ["dbr"], phase: DeletePhase,
    spec: DeleteBackupRequestSpec, status: DeleteBackupRequestStatus,
    columns: [
        ("BackupName", "string", ".spec.backupName"),
        ("Status", "string", ".status.phase"),
    ]
}

tolerant_enum! {
    /// What can be downloaded.
    pub enum DownloadTargetKind {
        /// Log of a backup.
        BackupLog,
        /// Tarball of a backup.
        BackupContents,
        /// Native snapshots of a backup.
        BackupVolumeSnapshots,
        /// Background operations of a backup.
        BackupItemOperations,
        /// Objects in a backup.
        BackupResourceList,
        /// Warnings and errors of a backup.
        BackupResults,
        /// Volumes of a backup.
        BackupVolumeInfos,
        /// CSI snapshots of a backup.
        CSIBackupVolumeSnapshots,
        /// Contents of CSI snapshots of a backup.
        CSIBackupVolumeSnapshotContents,
        /// Log of a restore.
        RestoreLog,
        /// Warnings and errors of a restore.
        RestoreResults,
        /// Objects that a restore made.
        RestoreResourceList,
        /// Background operations of a restore.
        RestoreItemOperations,
        /// Volumes of a restore.
        RestoreVolumeInfo,
    }
}

tolerant_enum! {
    /// Where a download is in its life.
    pub enum DownloadPhase {
        /// Not looked at yet.
        New,
        /// `downloadURL` can be used.
        Processed,
        /// Cannot be downloaded: `message` says why.
        Failed,
    }
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownloadTarget {
    /// What file.
    pub kind: DownloadTargetKind,
    /// The backup or restore it belongs to.
    pub name: String,
}

/// What to download.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownloadRequestSpec {
    /// The file.
    pub target: DownloadTarget,
}

/// Where to download it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownloadRequestStatus {
    /// Where the download is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<DownloadPhase>,
    /// A URL that gives the file to whoever has it.
    #[serde(
        rename = "downloadURL",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub download_url: Option<String>,
    /// When the URL stops working and the request is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Time>,
    /// Why it cannot be downloaded.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
}

velero_kind! {
    /// Asks for a URL from which a file of a backup or restore can be downloaded.
    DownloadRequest, plural: "downloadrequests", short: ["dreq"], phase: DownloadPhase,
    spec: DownloadRequestSpec, status: DownloadRequestStatus,
    columns: [
        ("Target", "string", ".spec.target.name"),
        ("Status", "string", ".status.phase"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
}

tolerant_enum! {
    /// Where a status request is in its life.
    pub enum ServerStatusPhase {
        /// Not looked at yet.
        New,
        /// Answered.
        Processed,
    }
}

/// Nothing to say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatusRequestSpec {}

/// A plugin of the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatusRequestStatus {
    /// Where the request is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ServerStatusPhase>,
    /// When it was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_timestamp: Option<Time>,
    /// Version of the server.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub server_version: Option<String>,
    /// Plugins of the server.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<PluginInfo>>")]
    pub plugins: Vec<PluginInfo>,
}

velero_kind! {
    /// Asks the server for its version.
    ServerStatusRequest, plural: "serverstatusrequests", short: ["ssr"], phase: ServerStatusPhase,
    spec: ServerStatusRequestSpec, status: ServerStatusRequestStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Version", "string", ".status.serverVersion"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
}
