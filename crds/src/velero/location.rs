//! `BackupStorageLocation` and `VolumeSnapshotLocation`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::go_duration::GoDuration;
use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};
use crate::tolerant::tolerant_enum;

tolerant_enum! {
    /// Whether a location can be used.
    pub enum LocationPhase {
        /// It answered and holds what it should.
        Available,
        /// It cannot be used: `message` says why.
        Unavailable,
    }
}

tolerant_enum! {
    /// What may be done with a location.
    pub enum AccessMode {
        /// Backups are written, read and deleted.
        ReadWrite,
        /// Backups are only read.
        ReadOnly,
    }
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeySelector {
    /// The Secret.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "String")]
    pub name: String,
    /// Its key.
    pub key: String,
    /// Whether the Secret or the key may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// Where in the object store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStorageLocation {
    /// The bucket.
    pub bucket: String,
    /// The directory in the bucket.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub prefix: Option<String>,
    /// Certificate authorities (PEM, base64) to trust. Deprecated: use caCertRef.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<Base64>,
    /// A Secret with certificate authorities (PEM) to trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert_ref: Option<SecretKeySelector>,
}

/// An object store and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorageLocationSpec {
    /// What kind of object store, such as aws.
    pub provider: String,
    /// Settings of the provider, such as region and s3Url.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub config: BTreeMap<String, String>,
    /// The credentials. Absent: those of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<SecretKeySelector>,
    /// Where in the object store.
    pub object_storage: ObjectStorageLocation,
    /// Whether backups that name no location go here.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub default: bool,
    /// What may be done. Absent: ReadWrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
    /// How often backups in the bucket are brought into the cluster; zero means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_sync_period: Option<GoDuration>,
    /// How often the location is tried; zero means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_frequency: Option<GoDuration>,
}

/// State of a location.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorageLocationStatus {
    /// Whether it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<LocationPhase>,
    /// When backups were last brought into the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_synced_time: Option<Time>,
    /// When the location was last tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_validation_time: Option<Time>,
    /// Why it cannot be used.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub message: Option<String>,
    /// Deprecated.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub last_synced_revision: Option<String>,
    /// Deprecated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_mode: Option<AccessMode>,
}

velero_kind! {
    /// A place in an object store where backups are kept.
    BackupStorageLocation, plural: "backupstoragelocations", short: ["bsl"],
    spec: BackupStorageLocationSpec, status: BackupStorageLocationStatus,
    columns: [
        ("Phase", "string", ".status.phase"),
        ("Last Validated", "date", ".status.lastValidationTime"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Default", "boolean", ".spec.default"),
    ]
}

/// Where native snapshots are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotLocationSpec {
    /// The provider.
    pub provider: String,
    /// Settings of the provider.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub config: BTreeMap<String, String>,
    /// The credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<SecretKeySelector>,
}

/// State of a snapshot location.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotLocationStatus {
    /// Whether it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<LocationPhase>,
}

velero_kind! {
    /// A place for native volume snapshots; accepted, not used.
    VolumeSnapshotLocation, plural: "volumesnapshotlocations", short: ["vsl"],
    spec: VolumeSnapshotLocationSpec, status: VolumeSnapshotLocationStatus,
    columns: [
        ("Provider", "string", ".spec.provider"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
}

/// Bytes as base64 text, as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Base64(pub String);

impl JsonSchema for Base64 {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Base64".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "byte"})
    }
}
