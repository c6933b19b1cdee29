//! `Schedule`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kind::velero_kind;
use crate::lenient::{is_default, null_default};
use crate::tolerant::tolerant_enum;

use super::backup::BackupSpec;

tolerant_enum! {
    /// Whether a schedule runs.
    pub enum SchedulePhase {
        /// Not looked at yet.
        New,
        /// Backups are made.
        Enabled,
        /// Refused: `validationErrors` says why.
        FailedValidation,
    }
}

/// When backups are made, and what of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// The backup to make.
    pub template: BackupSpec,
    /// Cron expression: five fields, a descriptor such as @daily, or @every with a duration.
    pub schedule: String,
    /// Whether backups are owned by the schedule and go with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_owner_references_in_backup: Option<bool>,
    /// Whether no backups are made for now.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "bool")]
    pub paused: bool,
    /// Whether the run that would be due at once is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_immediately: Option<bool>,
}

/// What the schedule did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Whether the schedule runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<SchedulePhase>,
    /// When the last backup was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<Time>,
    /// When a run was last left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_skipped: Option<Time>,
    /// Why the schedule was refused.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<String>")]
    pub validation_errors: Vec<String>,
}

velero_kind! {
    /// Makes backups again and again.
    Schedule, plural: "schedules", short: ["sched"], phase: SchedulePhase,
    spec: ScheduleSpec, status: ScheduleStatus,
    columns: [
        ("Status", "string", ".status.phase"),
        ("Schedule", "string", ".spec.schedule"),
        ("LastBackup", "date", ".status.lastBackup"),
        ("Age", "date", ".metadata.creationTimestamp"),
        ("Paused", "boolean", ".spec.paused"),
    ]
}
