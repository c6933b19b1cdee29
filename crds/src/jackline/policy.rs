//! `ClusterBackupPolicy` and `BackupPolicy`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::retention::{
    DeletionPolicy, PolicyRepository, PolicyRetention, PolicySchedule, PolicyVerification,
};
use super::schema;
use super::status::PolicyStatus;
use super::volumes::{NamespaceSelection, PodSelection, VolumeSelection};
use crate::kind::{Column, Definition, resource, root};
use crate::lenient::{is_default, non_empty, null_default};
use crate::names::JACKLINE_GROUP;
use crate::tolerant::tolerant_enum;
use crate::velero::BackupSpec;

tolerant_enum! {
    /// Whether a policy acts.
    pub enum PolicyMode {
        /// It annotates, backs up and deletes.
        Enforce,
        /// It computes everything and writes only its own status.
        Preview,
    }
}

/// What is protected, when, and for how long it is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Whether the policy acts (Enforce) or only shows what it would do (Preview). Absent: Enforce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<PolicyMode>,
    /// Where two policies want the same volume the higher one governs it.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub priority: i32,
    /// Whether no backups are made for now.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub suspend: bool,
    /// The namespaces it governs. Absent: all.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "NamespaceSelection")]
    pub namespaces: NamespaceSelection,
    /// The pods it looks at. Absent: all.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "PodSelection")]
    pub pods: PodSelection,
    /// The volumes it backs up. Absent: every persistentVolumeClaim.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "VolumeSelection")]
    pub volumes: VolumeSelection,
    /// When backups run. Absent: pods are annotated and coverage is reported, but no backups are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PolicySchedule>,
    /// The BackupStorageLocation to write to. Absent: the default one.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>", length(max = 253))]
    pub storage_location: Option<String>,
    /// More of the backups that are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<BackupSpec>,
    /// How long recovery points are kept. Absent: the ttl of the backups decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<PolicyRetention>,
    /// How the repositories are looked after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<PolicyRepository>,
    /// Restores of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<PolicyVerification>,
    /// How old the newest recovery point of a volume may be. Absent: interval of the schedule + jitter + 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::retention::DurationText>")]
    pub rpo: Option<String>,
    /// What becomes of the backups when the policy goes. Absent: Retain. Delete: they go with it, all but the last `minimumGood` points of each
    /// volume that still exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// What `kubectl get` shows of a policy.
const COLUMNS: &[Column] = &[
    (
        "Ready",
        "string",
        ".status.conditions[?(@.type==\"Ready\")].status",
        0,
    ),
    ("Schedule", "string", ".status.effectiveSchedule", 0),
    ("Last Success", "date", ".status.lastSuccessfulTime", 0),
    // As text: kubectl shows a date as an age, and this one lies ahead.
    ("Next", "string", ".status.nextScheduleTime", 0),
    ("Protected", "integer", ".status.coverage.protected", 0),
    ("Selected", "integer", ".status.coverage.selected", 0),
    ("Location", "string", ".spec.storageLocation", 1),
    ("Suspended", "boolean", ".spec.suspend", 1),
    (
        "Reason",
        "string",
        ".status.conditions[?(@.type==\"Ready\")].message",
        1,
    ),
    ("Age", "date", ".metadata.creationTimestamp", 0),
];

const CLUSTER: Definition = Definition {
    group: JACKLINE_GROUP,
    version: super::VERSION,
    kind: "ClusterBackupPolicy",
    plural: "clusterbackuppolicies",
    crd_name: "clusterbackuppolicies.jackline.dev",
    short_names: &["cbp"],
    namespaced: false,
    status_subresource: true,
    columns: COLUMNS,
    labels: &[],
};

const NAMESPACED: Definition = Definition {
    kind: "BackupPolicy",
    plural: "backuppolicies",
    crd_name: "backuppolicies.jackline.dev",
    short_names: &["bp"],
    namespaced: true,
    ..CLUSTER
};

root! {
    /// What is protected in the whole cluster, when, and for how long it is kept.
    ClusterBackupPolicy, spec: PolicySpec, status: PolicyStatus
}
resource! { ClusterBackupPolicy, scope: ClusterResourceScope, definition: CLUSTER, schema: schema::cluster() }

root! {
    /// What is protected in one namespace, when, and for how long it is kept.
    BackupPolicy, spec: PolicySpec, status: PolicyStatus
}
resource! { BackupPolicy, scope: NamespaceResourceScope, definition: NAMESPACED, schema: schema::namespaced() }
