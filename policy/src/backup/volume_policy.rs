//! Volume policies: what a ConfigMap says about volumes before anybody's annotations count (velero-compat §5.8).
//!
//! The first policy whose conditions all match a volume decides about it.

mod parse;

use std::collections::BTreeMap;

use serde_json::Value;
use strum::{Display, EnumString, VariantNames};

use crate::{
    labels::{Labels, Selector},
    quantity,
};

/// What a policy does with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Action {
    /// It is not read.
    Skip,
    /// It is read through a pod.
    FsBackup,
    /// It is left to snapshots of the storage.
    Snapshot,
}

/// Keys of volumes, in a pod or in a PersistentVolume, that `volumeTypes` can name.
const TYPES: [&str; 28] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "vsphereVolume",
];

/// What a volume is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing that policies know: in a pod, a claim.
    #[default]
    Unknown,
    /// A directory of a server.
    Nfs {
        /// Its name or address.
        server: String,
        /// The export.
        path: String,
    },
    /// A volume of a driver.
    Csi {
        /// The driver's name.
        driver: String,
        /// What the driver knows it by.
        attributes: BTreeMap<String, String>,
    },
    /// Another type, by its key.
    Other(&'static str),
}

impl Source {
    /// Reads a volume of a pod, or the spec of a PersistentVolume.
    pub fn of(volume: &Value) -> Self {
        let Some((key, source)) = TYPES
            .iter()
            .find_map(|key| Some((*key, volume.get(key).filter(|source| !source.is_null())?)))
        else {
            return Self::Unknown;
        };
        let text = |key: &str| {
            let text = source.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        match key {
            "nfs" => Self::Nfs {
                server: text("server"),
                path: text("path"),
            },
            "csi" => {
                let attributes = source.get("volumeAttributes").and_then(Value::as_object);
                let attributes = attributes.into_iter().flatten();
                Self::Csi {
                    driver: text("driver"),
                    attributes: attributes
                        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                        .collect(),
                }
            }
            key => Self::Other(key),
        }
    }

    fn key(&self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Nfs { .. } => "nfs",
            Self::Csi { .. } => "csi",
            Self::Other(key) => key,
        }
    }
}

/// A volume as policies see it. Only what is in a PersistentVolume has a capacity and a class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// In bytes.
    pub capacity: u64,
    /// `storageClassName`.
    pub storage_class: String,
    /// What it is made of.
    pub source: Source,
}

impl Volume {
    /// Reads a PersistentVolume.
    pub fn of(volume: &Value) -> Self {
        let text = |pointer: &str| volume.pointer(pointer).and_then(Value::as_str);
        let capacity = text("/spec/capacity/storage").and_then(quantity::parse);
        Self {
            capacity: capacity.unwrap_or_default(),
            storage_class: text("/spec/storageClassName")
                .unwrap_or_default()
                .to_owned(),
            source: volume.get("spec").map(Source::of).unwrap_or_default(),
        }
    }
}

/// Valid policies. Without any ([`Default`]), nothing is decided.
#[derive(Debug, Clone, Default)]
pub struct VolumePolicies {
    policies: Vec<VolumePolicy>,
    /// What is allowed, but cannot be meant.
    pub doubts: Vec<String>,
}

#[derive(Debug, Clone)]
struct VolumePolicy {
    conditions: Conditions,
    action: Action,
}

/// All have to hold; an empty one holds for every volume.
#[derive(Debug, Clone)]
struct Conditions {
    /// From, and to: 0 is no bound.
    capacity: (u64, u64),
    storage_classes: Vec<String>,
    /// Server and path, each of which may be empty.
    nfs: Option<(String, String)>,
    /// Driver, which may be empty, and its attributes.
    csi: Option<(String, BTreeMap<String, String>)>,
    types: Vec<String>,
    labels: Selector,
}

impl VolumePolicies {
    /// What is to be done with a volume, and the number of the policy that says so. `labels` are those of its claim.
    pub fn action(&self, volume: &Volume, labels: &Labels) -> Option<(usize, Action)> {
        let mut policies = self.policies.iter().enumerate();
        let (at, policy) = policies.find(|(_, policy)| policy.conditions.hold(volume, labels))?;
        Some((at, policy.action))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

impl Conditions {
    fn hold(&self, volume: &Volume, labels: &Labels) -> bool {
        let (from, to) = self.capacity;
        let capacity = volume.capacity;
        let listed = |list: &[String], found: &str| {
            list.is_empty() || !found.is_empty() && list.iter().any(|listed| listed == found)
        };
        capacity >= from
            && (to == 0 || capacity <= to)
            && listed(&self.storage_classes, &volume.storage_class)
            && listed(&self.types, volume.source.key())
            && self.nfs_holds(&volume.source)
            && self.csi_holds(&volume.source)
            && self.labels.matches(labels)
    }

    fn nfs_holds(&self, source: &Source) -> bool {
        let Some((wanted_server, wanted_path)) = &self.nfs else {
            return true;
        };
        let Source::Nfs { server, path } = source else {
            return false;
        };
        let same = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        same(wanted_server, server) && same(wanted_path, path)
    }

    fn csi_holds(&self, source: &Source) -> bool {
        let Some((wanted, wanted_attributes)) = &self.csi else {
            return true;
        };
        let Source::Csi { driver, attributes } = source else {
            return false;
        };
        wanted.is_empty()
            || wanted == driver
                && wanted_attributes
                    .iter()
                    .all(|(key, value)| attributes.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests;
