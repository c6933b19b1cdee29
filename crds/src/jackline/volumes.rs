//! Which namespaces, pods and volumes a policy selects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RawQuantity;
use crate::lenient::null_default;
use crate::tolerant::tolerant_enum;

/// Namespaces, by name and label; what is not said does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.include) || !has(self.exclude) || !self.include.exists(i, i in self.exclude)",
    "message": "include and exclude must not hold the same entry",
    "fieldPath": ".exclude"
}]))]
pub struct NamespaceSelection {
    /// Globs (*, ?, [a-z]) of which a namespace has to match one.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Glob>", length(max = 100))]
    pub include: Vec<String>,
    /// Globs of which a namespace must match none.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Glob>", length(max = 100))]
    pub exclude: Vec<String>,
    /// A regular expression that the name has to match too (not anchored).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Regex>")]
    pub regex: Option<String>,
    /// Labels that the namespace has to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Pods whose volumes are looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSelection {
    /// Labels that the pod has to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Globs on the name of the Job that owns a pod: pods of these Jobs are not looked at.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Glob>", length(max = 100))]
    pub exclude_jobs: Vec<String>,
}

tolerant_enum! {
    /// What a rule says about the volumes it matches.
    pub enum RuleAction {
        /// Back them up.
        Backup,
        /// Leave them out.
        Skip,
    }
}

tolerant_enum! {
    /// What happens to volumes that no rule matches.
    pub enum VolumeDefault {
        /// Every persistentVolumeClaim is backed up.
        Claims,
        /// Everything that can be is backed up.
        All,
        /// Nothing is backed up.
        None,
    }
}

/// The volumes to back up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSelection {
    /// Rules in order: the first that matches a volume decides.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<VolumeRule>", length(max = 64), extend("x-kubernetes-validations" = [{
        "rule": "self.all(r, self.exists_one(s, s.name == r.name))",
        "message": "rules must have different names"
    }]))]
    pub rules: Vec<VolumeRule>,
    /// What happens to volumes that no rule matches. Absent: Claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<VolumeDefault>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRule {
    /// Name of the rule: verdicts name the rule that decided.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"\S"))]
    pub name: String,
    /// Which volumes. Everything that is said has to hold; nothing said matches every volume.
    #[serde(rename = "match", default, deserialize_with = "null_default")]
    #[schemars(with = "Option<VolumeMatch>")]
    pub matches: VolumeMatch,
    /// What to do with them.
    pub action: RuleAction,
}

/// What a volume has to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMatch {
    /// The pod volume's own key: persistentVolumeClaim, emptyDir, ephemeral, nfs, csi …
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<VolumeTypeKey>", length(max = 16))]
    pub types: Vec<String>,
    /// Storage classes of the claim.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Name>", length(max = 64))]
    pub storage_classes: Vec<String>,
    /// Access modes of the claim; one of them is enough.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<ClaimAccessMode>", length(max = 4))]
    pub access_modes: Vec<String>,
    /// Labels that the claim has to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_selector: Option<LabelSelector>,
    /// A regular expression that the claim's name has to match (not anchored).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Regex>")]
    pub claim_regex: Option<String>,
    /// Capacity of the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityRange>,
    /// CSI drivers of the volume.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Name>", length(max = 64))]
    pub csi_drivers: Vec<String>,
}

/// A range of sizes; both ends are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.min) || !has(self.max) || quantity(string(self.min)).compareTo(quantity(string(self.max))) <= 0",
    "message": "min must not be above max",
    "fieldPath": ".min"
}]))]
pub struct CapacityRange {
    /// The smallest size, a quantity such as 1Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<RawQuantity>,
    /// The largest size, a quantity such as 500Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<RawQuantity>,
}

/// Schemas of strings that the fields above hold.
macro_rules! text_schema {
    ($($name:ident = $schema:tt;)*) => {$(
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    )*};
}
pub(super) use text_schema;

text_schema! {
    Glob = {"type": "string", "minLength": 1, "maxLength": 253};
    Name = {"type": "string", "minLength": 1, "maxLength": 253};
    VolumeTypeKey = {"type": "string", "maxLength": 63, "pattern": "^[a-z][A-Za-z0-9]*$"};
    ClaimAccessMode = {
        "type": "string",
        "enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
    };
    // `matches` fails on an expression that does not compile; the comparison keeps that failure.
    Regex = {
        "type": "string",
        "maxLength": 256,
        "x-kubernetes-validations": [{
            "rule": "''.matches(self) in [true, false]",
            "message": "must be a regular expression"
        }]
    };
}
