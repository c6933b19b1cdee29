//! `Restore`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::go_duration::GoDuration;
use crate::kind::velero_kind;
use crate::lenient::{is_default, non_empty, null_default};
use crate::tolerant::tolerant_enum;

use super::backup::TypedLocalObjectReference;
use super::hooks::{HookStatus, RestoreHooks};

tolerant_enum! {
    /// Where a restore is in its life.
    pub enum RestorePhase {
        /// Not looked at yet.
        New,
        /// Refused: `validationErrors` says why.
        FailedValidation,
        /// Objects and volumes are being written.
        InProgress,
        /// Waits for plugins that work in the background.
        WaitingForPluginOperations,
        /// The same, after errors.
        WaitingForPluginOperationsPartiallyFailed,
        /// Everything asked for is back.
        Completed,
        /// Something is back, with errors.
        PartiallyFailed,
        /// Nothing usable is back.
        Failed,
        /// Last steps.
        Finalizing,
        /// Last steps, after errors.
        FinalizingPartiallyFailed,
    }
}

impl RestorePhase {
    /// Whether the restore will not change by itself any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::FailedValidation | Self::Completed | Self::PartiallyFailed | Self::Failed
        )
    }

    /// The phase in which a restore ends that a Velero left in its last steps: objects and data are back.
    #[must_use]
    pub fn finished(self) -> Option<Self> {
        match self {
            Self::WaitingForPluginOperations | Self::Finalizing => Some(Self::Completed),
            Self::WaitingForPluginOperationsPartiallyFailed | Self::FinalizingPartiallyFailed => {
                Some(Self::PartiallyFailed)
            }
            _ => None,
        }
    }
}

/// Which objects get their status back too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatusSpec {
    /// Resources whose status is restored.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub included_resources: Vec<String>,
    /// Resources whose status is not restored.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub excluded_resources: Vec<String>,
}

/// How volume data is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploaderConfigForRestore {
    /// Whether long runs of zeros become holes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_sparse_files: Option<bool>,
    /// How many files are written at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_files_download: Option<i32>,
}

/// What to bring back, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// The backup to restore from. This or scheduleName.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub backup_name: Option<String>,
    /// Restore from the newest good backup of this schedule.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub schedule_name: Option<String>,
    /// Namespaces to restore. Empty means all.
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
    /// Resources to restore. Empty means all.
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
    /// Namespace in the backup to namespace to restore into.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(with = "BTreeMap<String, String>")]
    pub namespace_mapping: BTreeMap<String, String>,
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
    /// Whether volumes are restored from native snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_p_vs: Option<bool>,
    /// Which objects get their status back too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_status: Option<RestoreStatusSpec>,
    /// Whether services keep their node ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preserve_node_ports: Option<bool>,
    /// Whether cluster-scoped resources are restored. Absent: those that restored objects need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_cluster_resources: Option<bool>,
    /// What runs in restored pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<RestoreHooks>,
    /// What happens to objects that exist: none or update.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub existing_resource_policy: Option<String>,
    /// How long to wait for plugins that work in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_operation_timeout: Option<GoDuration>,
    /// A ConfigMap with changes to make to restored objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_modifier: Option<TypedLocalObjectReference>,
    /// How volume data is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploader_config: Option<UploaderConfigForRestore>,
    /// A ConfigMap with rules about volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_policy: Option<TypedLocalObjectReference>,
    /// Whether the installation's own resource modifier is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_default_resource_modifier: Option<bool>,
}

/// How many objects are done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    /// How many objects there are.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub total_items: i32,
    /// How many objects have been looked at.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub items_restored: i32,
}

/// What became of a restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// Where the restore is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RestorePhase>,
    /// Why the restore was refused.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Option<Vec<String>>")]
    pub validation_errors: Vec<String>,
    /// Number of warnings; they are in the restore's results.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub warnings: i32,
    /// Number of errors; they are in the restore's results.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub errors: i32,
    /// Why the whole restore failed.
    #[serde(
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub failure_reason: Option<String>,
    /// When work began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timestamp: Option<Time>,
    /// When work ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_timestamp: Option<Time>,
    /// How many objects are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<RestoreProgress>,
    /// Background operations begun.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub restore_item_operations_attempted: i32,
    /// Background operations done.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub restore_item_operations_completed: i32,
    /// Background operations failed.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "i32")]
    pub restore_item_operations_failed: i32,
    /// How many hooks ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_status: Option<HookStatus>,
}

velero_kind! {
    /// Brings objects and volume data of a backup back into the cluster.
    Restore, plural: "restores", short: ["rst"], phase: RestorePhase,
    spec: RestoreSpec, status: RestoreStatus,
    columns: [
        ("Backup", "string", ".spec.backupName"),
        ("Status", "string", ".status.phase"),
        ("Errors", "integer", ".status.errors"),
        ("Warnings", "integer", ".status.warnings"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
}
