//! `DataUpload` and `DataDownload` (velero.io/v2alpha1). Nothing here works on them: clients expect the kinds to exist.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::go_duration::GoDuration;
use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};

use super::pod_volume::{DataProgress, PodVolumePhase};

/// A CSI snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CSISnapshotSpec {
    /// The snapshot.
    pub volume_snapshot: String,
    /// Storage class of the claim.
    pub storage_class: String,
    /// Class of the snapshot.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub snapshot_class: Option<String>,
    /// Driver of the snapshot.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub driver: Option<String>,
}

/// Which snapshot to upload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataUploadSpec {
    /// Kind of snapshot.
    pub snapshot_type: String,
    /// The CSI snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csi_snapshot: Option<CSISnapshotSpec>,
    /// The claim.
    #[serde(rename = "sourcePVC")]
    pub source_pvc: String,
    /// The data mover.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub datamover: Option<String>,
    /// Where to.
    pub backup_storage_location: String,
    /// Namespace of the claim.
    pub source_namespace: String,
    /// Settings of the data mover.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub data_mover_config: BTreeMap<String, String>,
    /// Whether to stop.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub cancel: bool,
    /// How long it may take.
    pub operation_timeout: GoDuration,
}

/// What became of an upload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataUploadStatus {
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PodVolumePhase>,
    /// Path of the volume.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub path: Option<String>,
    /// The snapshot in the repository.
    #[serde(
        rename = "snapshotID",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub snapshot_id: Option<String>,
    /// Result of the data mover.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub data_mover_result: BTreeMap<String, String>,
    /// Why it failed.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// When a node took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_timestamp: Option<Time>,
    /// The node that took it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub accepted_by_node: Option<String>,
    /// How much data has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<DataProgress>,
    /// Bytes that were new.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub incremental_bytes: i64,
    /// The node that does it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub node: Option<String>,
    /// Operating system of the node.
    #[serde(
        rename = "nodeOS",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub node_os: Option<String>,
}

velero_kind! {
    /// The upload of one snapshot.
    DataUpload, version: "v2alpha1", plural: "datauploads", short: ["du"], phase: PodVolumePhase,
    spec: DataUploadSpec, status: DataUploadStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Started", "date", ".status.startTimestamp"),
        ("Storage Location", "string", ".spec.backupStorageLocation"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Node", "string", ".status.node"),
    ]
}

/// Where data goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetVolumeSpec {
    /// The claim.
    pub pvc: String,
    /// The volume.
    pub pv: String,
    /// Namespace of the claim.
    pub namespace: String,
}

/// Which snapshot to download.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataDownloadSpec {
    /// Where to.
    pub target_volume: TargetVolumeSpec,
    /// Where from.
    pub backup_storage_location: String,
    /// The data mover.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub datamover: Option<String>,
    /// The snapshot in the repository.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Namespace at backup time.
    pub source_namespace: String,
    /// Settings of the data mover.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub data_mover_config: BTreeMap<String, String>,
    /// Whether to stop.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub cancel: bool,
    /// How long it may take.
    pub operation_timeout: GoDuration,
    /// Operating system of the node.
    #[serde(
        rename = "nodeOS",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub node_os: Option<String>,
    /// Bytes in the snapshot.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i64")]
    pub snapshot_size: i64,
}

/// What became of a download.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataDownloadStatus {
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PodVolumePhase>,
    /// Why it failed.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// When a node took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_timestamp: Option<Time>,
    /// The node that took it.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub accepted_by_node: Option<String>,
    /// How much data has moved.
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
    /// The download of one snapshot.
    DataDownload, version: "v2alpha1", plural: "datadownloads", short: ["dd"], phase: PodVolumePhase,
    spec: DataDownloadSpec, status: DataDownloadStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Started", "date", ".status.startTimestamp"),
        ("Storage Location", "string", ".spec.backupStorageLocation"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Node", "string", ".status.node"),
    ]
}
