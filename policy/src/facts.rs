//! What the decisions look at: slim pictures of pods, claims and namespaces, as the controller's watches make them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use strum::{Display, IntoStaticStr};

use crate::Invalid;
use crate::labels::Labels;

/// A pod volume's own key (`persistentVolumeClaim`, `emptyDir`, …).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VolumeType {
    PersistentVolumeClaim,
    EmptyDir,
    Ephemeral,
    Nfs,
    Csi,
    /// `hostPath`, `secret`, `configMap`, `projected`, `downwardAPI`, and `image`: never the workload's data.
    Never(&'static str),
    /// Other sources that Kubernetes has or had (`iscsi`, `cephfs`, `flexVolume`, …).
    Other(Arc<str>),
}

impl VolumeType {
    const NEVER: [&'static str; 6] = [
        "hostPath",
        "secret",
        "configMap",
        "projected",
        "downwardAPI",
        "image",
    ];

    /// The type of a volume whose definition has this key.
    pub fn of(key: &str) -> Self {
        match key {
            "persistentVolumeClaim" => Self::PersistentVolumeClaim,
            "emptyDir" => Self::EmptyDir,
            "ephemeral" => Self::Ephemeral,
            "nfs" => Self::Nfs,
            "csi" => Self::Csi,
            key => match Self::NEVER.iter().find(|never| **never == key) {
                Some(never) => Self::Never(never),
                None => Self::Other(key.into()),
            },
        }
    }

    /// A type that a rule may select.
    ///
    /// # Errors
    /// A type that is never backed up, or no key of a pod volume.
    pub fn selectable(field: &str, key: &str) -> Result<Self, Invalid> {
        let is_key = !key.is_empty()
            && key.starts_with(|c: char| c.is_ascii_lowercase())
            && key.chars().all(|c| c.is_ascii_alphanumeric());
        match Self::of(key) {
            Self::Never(_) => Err(Invalid::new(
                field,
                key,
                format!(
                    "types that can be backed up, not {}",
                    Self::NEVER.join(", ")
                ),
            )),
            Self::Other(_) if !is_key => Err(Invalid::new(
                field,
                key,
                "persistentVolumeClaim, emptyDir, ephemeral, nfs, csi or another key of a pod volume",
            )),
            found => Ok(found),
        }
    }
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PersistentVolumeClaim => "persistentVolumeClaim",
            Self::EmptyDir => "emptyDir",
            Self::Ephemeral => "ephemeral",
            Self::Nfs => "nfs",
            Self::Csi => "csi",
            Self::Never(key) => key,
            Self::Other(key) => key,
        })
    }
}

/// What exempts an object from backup, by the object's own metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exempt {
    /// `jackline.dev/exempt: "true"`, with the text of `jackline.dev/exempt-reason`.
    Asked { reason: Option<Box<str>> },
    /// The label `velero.io/exclude-from-backup=true`.
    ExcludeFromBackup,
}

impl Exempt {
    /// Finds the exemption in an object's labels and annotations (both of ours may be either).
    pub fn find<'a>(
        get_label: impl Fn(&str) -> Option<&'a str>,
        get_annotation: impl Fn(&str) -> Option<&'a str>,
    ) -> Option<Self> {
        let either = |key| get_annotation(key).or_else(|| get_label(key));
        if either("jackline.dev/exempt") == Some("true") {
            let reason = either("jackline.dev/exempt-reason").map(Into::into);
            return Some(Self::Asked { reason });
        }
        (get_label("velero.io/exclude-from-backup") == Some("true"))
            .then_some(Self::ExcludeFromBackup)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceFacts {
    pub name: Arc<str>,
    pub labels: Labels,
    pub exempt: Option<Exempt>,
    pub terminating: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, IntoStaticStr, Default)]
pub enum PodPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl PodPhase {
    /// The phase by its API name; anything unknown is `Unknown`.
    pub fn of(name: &str) -> Self {
        match name {
            "" | "Pending" => Self::Pending,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: Arc<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub created: Timestamp,
    pub phase: PodPhase,
    pub terminating: bool,
    /// Empty until it is scheduled.
    pub node: Arc<str>,
    pub labels: Labels,
    /// Name of the owning Job.
    pub job: Option<Box<str>>,
    pub exempt: Option<Exempt>,
    /// All but those of [`VolumeType::Never`] and the service account's token.
    pub volumes: Box<[PodVolume]>,
    pub backup_volumes: Annotation,
    pub backup_volumes_excludes: Annotation,
}

impl PodFacts {
    /// Only a running pod can be backed up from.
    pub fn is_running(&self) -> bool {
        self.phase == PodPhase::Running && !self.terminating
    }

    pub fn volume(&self, name: &str) -> Option<&PodVolume> {
        self.volumes.iter().find(|volume| &*volume.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodVolume {
    pub name: Box<str>,
    pub kind: VolumeType,
    /// The claim in the pod's namespace: as named, or `<pod>-<volume>` of a generic ephemeral volume.
    pub claim: Option<Box<str>>,
    /// Driver of an inline `csi` volume.
    pub csi_driver: Option<Box<str>>,
    /// Mounted by a regular container (init containers do not count).
    pub mounted: bool,
    /// Given to a container as a raw device.
    pub device: bool,
}

impl PodVolume {
    /// Whether Velero never considers a volume of this name and type.
    pub fn never(name: &str, kind: &VolumeType) -> bool {
        matches!(kind, VolumeType::Never(_)) || name.starts_with("default-token")
    }
}

/// One of the two pod annotations: its value, and who holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotation {
    pub value: Option<Box<str>>,
    /// Our field manager owns the key.
    pub ours: bool,
    /// Another field manager owns it (as well).
    pub others: bool,
}

impl Annotation {
    /// Volume names as Velero reads them: split at commas, nothing trimmed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.value
            .as_deref()
            .filter(|value| !value.is_empty())
            .into_iter()
            .flat_map(|value| value.split(','))
    }

    pub fn lists(&self, name: &str) -> bool {
        self.names().any(|listed| listed == name)
    }

    /// A person or another program set it.
    pub fn is_users(&self) -> bool {
        self.value.is_some() && (self.others || !self.ours)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFacts {
    pub namespace: Arc<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// UID under which its recovery points are known: that of the claim it was restored from, else its own.
    pub lineage: Box<str>,
    pub created: Timestamp,
    pub labels: Labels,
    pub exempt: Option<Exempt>,
    pub storage_class: Arc<str>,
    pub access_modes: Arc<[Box<str>]>,
    /// Bytes: the bound capacity, else what was asked for.
    pub capacity: Option<u64>,
    pub block: bool,
    pub terminating: bool,
    /// Name of the PersistentVolume; empty while it is unbound.
    pub volume: Box<str>,
}

/// What a claim's PersistentVolume says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PersistentVolumeFacts {
    pub host_path: bool,
    pub csi_driver: Option<Arc<str>>,
}

/// A claim with its PersistentVolume, where it has one.
#[derive(Debug, Clone, Copy)]
pub struct ClaimView<'a> {
    pub claim: &'a ClaimFacts,
    pub volume: Option<&'a PersistentVolumeFacts>,
}
