//! `BackupCoverage`: one verdict for each volume of a namespace.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use schemars::JsonSchema;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::status::CoverageCounts;
use crate::kind::{self, Definition, Nothing, resource};
use crate::lenient::null_default;
use crate::names::JACKLINE_GROUP;
use crate::tolerant::tolerant_enum;

tolerant_enum! {
    /// Whether a volume could be brought back.
    pub enum Verdict {
        /// No recovery point, though there should be one.
        Unprotected,
        /// A recovery point that is young enough.
        Protected,
        /// A recovery point that is older than the objective.
        Stale,
        /// Left out on purpose.
        Exempt,
        /// Somebody else's annotation says otherwise.
        Conflict,
        /// Of a kind, or in a place, that cannot be backed up.
        CannotBackUp,
    }
}

/// The verdict on one volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeVerdict {
    /// The claim; absent for volumes without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// The pod that carries the volume, or one that mounts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The volume's name in that pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The governing policy: `name` of a ClusterBackupPolicy, `namespace/name` of a BackupPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The BackupStorageLocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_location: Option<String>,
    /// The newest backup with a good recovery point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good_backup: Option<String>,
    /// When that point was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good_time: Option<Time>,
    /// Bytes in that point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// The verdicts of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoverageStatus {
    /// Volumes by verdict.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(with = "Option<CoverageCounts>")]
    pub summary: CoverageCounts,
    /// Covered.
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
    /// One verdict for each volume, in order of claim, then pod and volume.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<VolumeVerdict>", length(max = 4096))]
    pub volumes: Vec<VolumeVerdict>,
}

/// Which volumes of the namespace are protected, and why the others are not. Written by the controller.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct BackupCoverage {
    /// Standard object metadata; the name is always [`crate::names::COVERAGE`].
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The verdicts.
    #[serde(default)]
    pub status: Option<CoverageStatus>,
}

impl BackupCoverage {
    /// The one object of a namespace.
    #[must_use]
    pub fn new(namespace: &str, status: Option<CoverageStatus>) -> Self {
        let metadata = ObjectMeta {
            name: Some(crate::names::COVERAGE.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        Self { metadata, status }
    }
}

impl Serialize for BackupCoverage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer
            .serialize_struct("BackupCoverage", 3 + usize::from(self.status.is_some()))?;
        object.serialize_field("apiVersion", &<Self as kube::Resource>::api_version(&()))?;
        object.serialize_field("kind", "BackupCoverage")?;
        object.serialize_field("metadata", &self.metadata)?;
        if let Some(status) = &self.status {
            object.serialize_field("status", status)?;
        }
        object.end()
    }
}

impl kube::core::object::HasStatus for BackupCoverage {
    type Status = CoverageStatus;
    fn status(&self) -> Option<&CoverageStatus> {
        self.status.as_ref()
    }
    fn status_mut(&mut self) -> &mut Option<CoverageStatus> {
        &mut self.status
    }
}

const DEFINITION: Definition = Definition {
    group: JACKLINE_GROUP,
    version: super::VERSION,
    kind: "BackupCoverage",
    plural: "backupcoverages",
    crd_name: "backupcoverages.jackline.dev",
    short_names: &["bcov"],
    namespaced: true,
    status_subresource: true,
    columns: &[
        ("Protected", "integer", ".status.summary.protected", 0),
        ("Selected", "integer", ".status.summary.selected", 0),
        ("Stale", "integer", ".status.summary.stale", 0),
        ("Unprotected", "integer", ".status.summary.unprotected", 0),
        ("Exempt", "integer", ".status.summary.exempt", 0),
        ("Conflict", "integer", ".status.summary.conflict", 0),
        (
            "Cannot Back Up",
            "integer",
            ".status.summary.cannotBackUp",
            0,
        ),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    ],
    labels: &[],
};

resource! { BackupCoverage, scope: NamespaceResourceScope, definition: DEFINITION, schema: schema() }

fn schema() -> serde_json::Value {
    let mut schema = kind::schema::<Nothing, CoverageStatus>(
        "Which volumes of the namespace are protected, and why the others are not. Written by the controller.",
    );
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.remove("spec");
    }
    schema
}
