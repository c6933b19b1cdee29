//! What is said about a policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::coverage::Verdict;
use crate::lenient::{is_default, null_default};

/// State of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled; Covered, Compliant, Verified; LocationShared where another cluster uses the location too.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Condition>", length(max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
    /// The schedule with its time zone, as it is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_schedule: Option<String>,
    /// The newest backup, finished or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_backup: Option<String>,
    /// When the newest backup that Completed was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// When the next backup is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Time>,
    /// Volumes by verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageCounts>,
    /// The first volumes that are selected and not protected, at most 20; BackupCoverage has them all.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<UncoveredVolume>", length(max = 20))]
    pub uncovered: Vec<UncoveredVolume>,
}

/// Volumes by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoverageCounts {
    /// All that should be protected: everything but the exempt.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub selected: i64,
    /// With a recovery point that is young enough.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub protected: i64,
    /// With a recovery point that is too old.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub stale: i64,
    /// Without any recovery point.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub unprotected: i64,
    /// Left out on purpose.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub exempt: i64,
    /// Where somebody else's annotation says otherwise.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub conflict: i64,
    /// Of a kind, or in a place, that cannot be backed up.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub cannot_back_up: i64,
}

/// A volume that is selected and not protected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UncoveredVolume {
    /// Its namespace.
    pub namespace: String,
    /// The claim, or `pod/volume` where there is none.
    pub name: String,
    /// What is wrong.
    pub verdict: Verdict,
    /// Why.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "is_default"
    )]
    #[schemars(with = "Option<String>")]
    pub reason: String,
}
