//! Watched kinds reduced to the fields in use, and how they become facts. Fields that are not named here are skipped while reading,
//! so that no full Pod is ever in memory.

use std::fmt;
use std::sync::Arc;

use jackline_crds::names::{FIELD_MANAGER, annotation};
use jackline_policy::facts::{
    Annotation, ClaimFacts, Exempt, NamespaceFacts, PersistentVolumeFacts, PodFacts, PodPhase,
    PodVolume, VolumeType,
};
use jackline_policy::labels::Labels;
use jackline_policy::quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A pod's volumes and where they are mounted.
#[derive(Debug, Clone, Default, Deserialize, kube::Resource)]
#[resource(inherit = Pod)]
pub struct LeanPod {
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    volumes: Option<Vec<Volume>>,
    #[serde(default)]
    containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PodStatus {
    #[serde(default)]
    phase: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    volume_mounts: Option<Vec<Named>>,
    #[serde(default)]
    volume_devices: Option<Vec<Named>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    name: String,
}

/// A volume with the key that says what it is.
#[derive(Debug, Clone, Default, PartialEq)]
struct Volume {
    name: String,
    key: String,
    claim: Option<String>,
    driver: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSource {
    claim_name: String,
}

#[derive(Deserialize)]
struct CsiSource {
    driver: String,
}

impl<'de> Deserialize<'de> for Volume {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Volume;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pod volume")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Volume, A::Error> {
                let mut volume = Volume::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "name" => {
                            volume.name = map.next_value()?;
                            continue;
                        }
                        "persistentVolumeClaim" => {
                            volume.claim = Some(map.next_value::<ClaimSource>()?.claim_name);
                        }
                        "csi" => volume.driver = Some(map.next_value::<CsiSource>()?.driver),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    volume.key = key;
                }
                Ok(volume)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl LeanPod {
    /// The facts, or `None` for a pod that has nothing to do with volumes: none that could be backed up, no annotation of ours.
    pub fn facts(&self) -> Option<PodFacts> {
        let metadata = &self.metadata;
        let name = metadata.name.as_deref()?;
        let backup_volumes = annotated(metadata, annotation::BACKUP_VOLUMES);
        let backup_volumes_excludes = annotated(metadata, annotation::BACKUP_VOLUMES_EXCLUDES);
        let phase = PodPhase::of(self.status.phase.as_deref().unwrap_or_default());
        let ended = matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
        // An ended pod holds no volume any more; only what we wrote on it is of interest.
        let volumes = if ended {
            Box::default()
        } else {
            self.volumes(name)
        };
        if volumes.is_empty() && !backup_volumes.ours && !backup_volumes_excludes.ours {
            return None;
        }
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        Some(PodFacts {
            namespace: metadata.namespace.as_deref()?.into(),
            name: name.into(),
            uid: metadata.uid.as_deref()?.into(),
            created: created(metadata),
            phase,
            terminating: metadata.deletion_timestamp.is_some(),
            node: self.spec.node_name.as_deref().unwrap_or_default().into(),
            labels: labels(metadata),
            job: owners
                .iter()
                .find(|owner| owner.kind == "Job")
                .map(|owner| owner.name.as_str().into()),
            exempt: exempt(metadata),
            volumes,
            backup_volumes,
            backup_volumes_excludes,
        })
    }

    fn volumes(&self, pod: &str) -> Box<[PodVolume]> {
        let containers = self.spec.containers.as_deref().unwrap_or_default();
        let used = |list: fn(&Container) -> &Option<Vec<Named>>, name: &str| {
            containers
                .iter()
                .any(|c| list(c).iter().flatten().any(|used| used.name == name))
        };
        let volumes = self.spec.volumes.as_deref().unwrap_or_default();
        volumes
            .iter()
            .map(|volume| (volume, VolumeType::of(&volume.key)))
            .filter(|(volume, kind)| !PodVolume::never(&volume.name, kind))
            .map(|(volume, kind)| PodVolume {
                claim: match kind {
                    VolumeType::Ephemeral => Some(format!("{pod}-{}", volume.name).into()),
                    _ => volume.claim.as_deref().map(Into::into),
                },
                kind,
                csi_driver: volume.driver.as_deref().map(Into::into),
                mounted: used(|c| &c.volume_mounts, &volume.name),
                device: used(|c| &c.volume_devices, &volume.name),
                name: volume.name.as_str().into(),
            })
            .collect()
    }
}

/// A claim.
#[derive(Debug, Clone, Default, Deserialize, kube::Resource)]
#[resource(inherit = PersistentVolumeClaim)]
pub struct LeanClaim {
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: ClaimSpec,
    #[serde(default)]
    status: ClaimStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSpec {
    #[serde(default)]
    storage_class_name: Option<String>,
    #[serde(default)]
    access_modes: Option<Vec<String>>,
    #[serde(default)]
    volume_mode: Option<String>,
    #[serde(default)]
    volume_name: Option<String>,
    #[serde(default)]
    resources: Requested,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Requested {
    #[serde(default)]
    requests: Option<Capacity>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Capacity {
    #[serde(default)]
    storage: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct ClaimStatus {
    #[serde(default)]
    capacity: Option<Capacity>,
}

impl LeanClaim {
    /// The facts; `None` for what the API server cannot have sent.
    pub fn facts(&self) -> Option<ClaimFacts> {
        let metadata = &self.metadata;
        let uid = metadata.uid.as_deref()?;
        let ancestor = metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(annotation::ANCESTOR_CLAIM_UID));
        let capacity = |from: &Option<Capacity>| {
            from.as_ref()
                .and_then(|c| c.storage.as_deref())
                .and_then(quantity::parse)
        };
        let modes = self.spec.access_modes.as_deref().unwrap_or_default();
        Some(ClaimFacts {
            namespace: metadata.namespace.as_deref()?.into(),
            name: metadata.name.as_deref()?.into(),
            uid: uid.into(),
            lineage: ancestor.map_or(uid, String::as_str).into(),
            created: created(metadata),
            labels: labels(metadata),
            exempt: exempt(metadata),
            storage_class: self
                .spec
                .storage_class_name
                .as_deref()
                .unwrap_or_default()
                .into(),
            access_modes: modes.iter().map(|mode| mode.as_str().into()).collect(),
            capacity: capacity(&self.status.capacity)
                .or_else(|| capacity(&self.spec.resources.requests)),
            block: self.spec.volume_mode.as_deref() == Some("Block"),
            terminating: metadata.deletion_timestamp.is_some(),
            volume: self.spec.volume_name.as_deref().unwrap_or_default().into(),
        })
    }
}

/// A PersistentVolume.
#[derive(Debug, Clone, Default, Deserialize, kube::Resource)]
#[resource(inherit = PersistentVolume)]
pub struct LeanVolume {
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: VolumeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    #[serde(default)]
    host_path: Option<IgnoredObject>,
    #[serde(default)]
    csi: Option<Driver>,
}

#[derive(Debug, Clone, Deserialize)]
struct IgnoredObject {}

#[derive(Debug, Clone, Deserialize)]
struct Driver {
    #[serde(default)]
    driver: String,
}

impl LeanVolume {
    pub fn facts(&self) -> PersistentVolumeFacts {
        PersistentVolumeFacts {
            host_path: self.spec.host_path.is_some(),
            csi_driver: self.spec.csi.as_ref().map(|csi| csi.driver.as_str().into()),
        }
    }
}

/// A namespace.
#[derive(Debug, Clone, Default, Deserialize, kube::Resource)]
#[resource(inherit = Namespace)]
pub struct LeanNamespace {
    pub metadata: ObjectMeta,
}

impl LeanNamespace {
    pub fn facts(&self) -> NamespaceFacts {
        NamespaceFacts {
            name: Arc::from(self.metadata.name.as_deref().unwrap_or_default()),
            labels: labels(&self.metadata),
            exempt: exempt(&self.metadata),
            terminating: self.metadata.deletion_timestamp.is_some(),
        }
    }
}

fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn labels(metadata: &ObjectMeta) -> Labels {
    metadata
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

fn exempt(metadata: &ObjectMeta) -> Option<Exempt> {
    let get = |from: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
        from.as_ref().and_then(|map| map.get(key)).cloned()
    };
    // Most objects carry none of them.
    let (labels, annotations) = (&metadata.labels, &metadata.annotations);
    let label = |key: &str| get(labels, key);
    let noted = |key: &str| get(annotations, key);
    let found: Vec<(&str, Option<String>, Option<String>)> = [
        annotation::EXEMPT,
        annotation::EXEMPT_REASON,
        jackline_crds::names::label::EXCLUDE_FROM_BACKUP,
    ]
    .into_iter()
    .map(|key| (key, label(key), noted(key)))
    .collect();
    let of_label = |key: &str| {
        found
            .iter()
            .find(|f| f.0 == key)
            .and_then(|f| f.1.as_deref())
    };
    let of_annotation = |key: &str| {
        found
            .iter()
            .find(|f| f.0 == key)
            .and_then(|f| f.2.as_deref())
    };
    Exempt::find(of_label, of_annotation)
}

/// Value and owners of an annotation. Ours is what our field manager applied.
fn annotated(metadata: &ObjectMeta, key: &str) -> Annotation {
    let value = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(key));
    let Some(value) = value else {
        return Annotation::default();
    };
    let mut found = Annotation {
        value: Some(value.as_str().into()),
        ours: false,
        others: false,
    };
    let path = format!("f:{key}");
    for entry in metadata.managed_fields.iter().flatten() {
        let owns = entry
            .fields_v1
            .as_ref()
            .and_then(|fields| fields.0.get("f:metadata")?.get("f:annotations")?.get(&path))
            .is_some();
        if owns {
            let is_us = entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.operation.as_deref() == Some("Apply");
            found.ours |= is_us;
            found.others |= !is_us;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(patch: serde_json::Value) -> LeanPod {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "load-1", "uid": "j"}]},
            "spec": {
                "nodeName": "n1",
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                    {"name": "inline", "csi": {"driver": "d", "readOnly": true}},
                    {"name": "conf", "configMap": {"name": "x"}},
                    {"name": "default-token-x", "emptyDir": {}},
                ],
                "initContainers": [{"name": "i", "volumeMounts": [{"name": "tmp", "mountPath": "/t"}]}],
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}],
                    "volumeDevices": [{"name": "inline", "devicePath": "/dev/x"}]}],
            },
            "status": {"phase": "Running", "podIP": "1.2.3.4"},
        });
        merge(&mut pod, patch);
        serde_json::from_value(pod).unwrap()
    }

    fn merge(into: &mut serde_json::Value, patch: serde_json::Value) {
        match (into, patch) {
            (serde_json::Value::Object(into), serde_json::Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    #[test]
    fn a_pod_becomes_its_volumes() {
        let facts = pod(json!({})).facts().unwrap();
        let names: Vec<&str> = facts.volumes.iter().map(|v| &*v.name).collect();
        assert_eq!(names, ["data", "tmp", "scratch", "inline"]);
        assert_eq!(facts.volumes[0].claim.as_deref(), Some("c"));
        assert!(
            facts.volumes[0].mounted && !facts.volumes[1].mounted,
            "init containers do not count"
        );
        assert_eq!(facts.volumes[2].claim.as_deref(), Some("p-scratch"));
        assert!(facts.volumes[3].device);
        assert_eq!(facts.job.as_deref(), Some("load-1"));
        assert!(facts.is_running());
    }

    #[test]
    fn pods_without_volumes_are_not_kept() {
        assert_eq!(pod(json!({"spec": {"volumes": null}})).facts(), None);
        assert_eq!(pod(json!({"status": {"phase": "Succeeded"}})).facts(), None);
    }

    #[test]
    fn an_annotation_knows_its_owners() {
        let with = |manager: &str, operation: &str| {
            let fields =
                json!({"f:metadata": {"f:annotations": {"f:backup.velero.io/backup-volumes": {}}}});
            let entry = json!({"manager": manager, "operation": operation, "fieldsV1": fields, "fieldsType": "FieldsV1"});
            let metadata = json!({"annotations": {"backup.velero.io/backup-volumes": "data"}, "managedFields": [entry]});
            pod(json!({"metadata": metadata}))
                .facts()
                .unwrap()
                .backup_volumes
        };
        let ours = with("jackline", "Apply");
        assert!(ours.ours && !ours.others && !ours.is_users());
        assert!(with("kubectl", "Update").is_users());
        assert!(
            with("jackline", "Update").is_users(),
            "only what was applied can be released"
        );
    }

    #[test]
    fn an_ended_pod_is_kept_for_its_annotation() {
        let fields =
            json!({"f:metadata": {"f:annotations": {"f:backup.velero.io/backup-volumes": {}}}});
        let entry = json!({"manager": "jackline", "operation": "Apply", "fieldsV1": fields});
        let metadata = json!({"annotations": {"backup.velero.io/backup-volumes": "data"}, "managedFields": [entry]});
        let facts = pod(json!({"metadata": metadata, "status": {"phase": "Failed"}}))
            .facts()
            .unwrap();
        assert!(facts.volumes.is_empty() && facts.backup_volumes.ours);
    }

    #[test]
    fn claims_volumes_and_namespaces() {
        let claim: LeanClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": {"jackline.dev/ancestor-claim-uid": "a"}},
            "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"], "volumeName": "pv",
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"capacity": {"storage": "2Gi"}, "phase": "Bound"},
        }))
        .unwrap();
        let facts = claim.facts().unwrap();
        assert_eq!(
            (facts.capacity, &*facts.lineage, &*facts.volume),
            (Some(2 << 30), "a", "pv")
        );
        let volume: LeanVolume = serde_json::from_value(
            json!({"metadata": {"name": "pv"}, "spec": {"hostPath": {"path": "/x"}}}),
        )
        .unwrap();
        assert!(volume.facts().host_path);
        let namespace: LeanNamespace = serde_json::from_value(json!({
            "metadata": {"name": "n", "annotations": {"jackline.dev/exempt": "true", "jackline.dev/exempt-reason": "r"}},
        }))
        .unwrap();
        assert_eq!(
            namespace.facts().exempt,
            Some(Exempt::Asked {
                reason: Some("r".into())
            })
        );
    }
}
