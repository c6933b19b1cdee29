//! The valid form of `ClusterBackupPolicy` and `BackupPolicy`. `crds` makes it from the raw specs through the constructors here,
//! which take plain data and the path of the field they come from; a value of these types needs no further checks.

mod retention;
mod template;
mod timing;
mod volumes;

use std::time::Duration;

use jiff::Timestamp;
use strum::{Display, EnumString, IntoStaticStr, VariantNames};

pub use retention::{Repository, Retention, RetentionParts, Verification};
pub use template::Template;
pub use timing::{Blackout, ScheduleParts, ScheduleSpec};
pub use volumes::{
    Action, Default as VolumeDefault, Match, MatchParts, NamespaceRule, PodRule, VolumeRule,
    Volumes,
};

use crate::Invalid;

/// Which of the two kinds a policy is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, IntoStaticStr, EnumString,
)]
pub enum PolicyKind {
    ClusterBackupPolicy,
    BackupPolicy,
}

/// A policy's identity. The order is stable and used wherever a tie has to be broken or a list sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    pub kind: PolicyKind,
    /// Empty for a `ClusterBackupPolicy`.
    pub namespace: String,
    pub name: String,
}

impl PolicyId {
    pub fn cluster(name: impl Into<String>) -> Self {
        Self {
            kind: PolicyKind::ClusterBackupPolicy,
            namespace: String::new(),
            name: name.into(),
        }
    }

    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind: PolicyKind::BackupPolicy,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `ClusterBackupPolicy/everything`, `BackupPolicy/team-a/db`.
impl std::fmt::Display for PolicyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            PolicyKind::ClusterBackupPolicy => write!(f, "{}/{}", self.kind, self.name),
            PolicyKind::BackupPolicy => write!(f, "{}/{}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// A valid policy with what its object's metadata says.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub id: PolicyId,
    pub uid: String,
    /// `metadata.creationTimestamp`: of policies that are equal otherwise the older one governs.
    pub created: Timestamp,
    pub spec: PolicySpec,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Display, EnumString, IntoStaticStr, VariantNames,
)]
pub enum Mode {
    #[default]
    Enforce,
    /// Computes everything, writes only its own status.
    Preview,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Display, EnumString, IntoStaticStr, VariantNames,
)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    /// The policy's backups go with it (never below a volume's last good points).
    Delete,
}

/// What a policy says, valid as a whole; made by [`PolicyParts::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySpec {
    pub mode: Mode,
    pub priority: i32,
    pub suspend: bool,
    /// Always the default (own namespace only, decided by [`PolicyId`]) for a `BackupPolicy`.
    pub namespaces: NamespaceRule,
    pub pods: PodRule,
    pub volumes: Volumes,
    /// Without one, the policy annotates and reports, but makes no backups.
    pub schedule: Option<ScheduleSpec>,
    /// Name of a BackupStorageLocation; `None` = the default location.
    pub storage_location: Option<String>,
    pub template: Template,
    /// Without one, Velero's `ttl` decides.
    pub retention: Option<Retention>,
    pub repository: Repository,
    pub verification: Option<Verification>,
    /// As written; [`PolicySpec::rpo`] knows the default.
    pub explicit_rpo: Option<Duration>,
    pub deletion_policy: DeletionPolicy,
}

/// Input of [`PolicyParts::check`]: the parts, each valid by itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyParts {
    pub mode: Mode,
    pub priority: i32,
    pub suspend: bool,
    pub namespaces: NamespaceRule,
    pub pods: PodRule,
    pub volumes: Volumes,
    pub schedule: Option<ScheduleSpec>,
    pub storage_location: Option<String>,
    pub template: Template,
    pub retention: Option<Retention>,
    pub repository: Repository,
    pub verification: Option<Verification>,
    pub rpo: Option<Duration>,
    pub deletion_policy: DeletionPolicy,
}

impl PolicyParts {
    /// Checks what no part can see alone.
    ///
    /// # Errors
    /// `ttl` with `retention`; a `BackupPolicy` whose template holds more than labels; `rpo` of zero; an empty location name.
    pub fn check(self, kind: PolicyKind) -> Result<PolicySpec, Invalid> {
        if self.retention.is_some() && self.template.has_ttl() {
            return Err(Invalid::raw(
                "spec.template.ttl",
                "ttl beside retention",
                "one of spec.template.ttl and spec.retention",
            ));
        }
        if kind == PolicyKind::BackupPolicy {
            self.template.labels_only()?;
        }
        if self.rpo == Some(Duration::ZERO) {
            return Err(Invalid::new(
                "spec.rpo",
                "0s",
                "a duration longer than zero",
            ));
        }
        if self.storage_location.as_deref() == Some("") {
            return Err(Invalid::new(
                "spec.storageLocation",
                "",
                "the name of a BackupStorageLocation",
            ));
        }
        Ok(PolicySpec {
            mode: self.mode,
            priority: self.priority,
            suspend: self.suspend,
            namespaces: self.namespaces,
            pods: self.pods,
            volumes: self.volumes,
            schedule: self.schedule,
            storage_location: self.storage_location,
            template: self.template,
            retention: self.retention,
            repository: self.repository,
            verification: self.verification,
            explicit_rpo: self.rpo,
            deletion_policy: self.deletion_policy,
        })
    }
}

impl PolicySpec {
    /// The objective: as written, else the schedule's longest usual interval + jitter + 1 h. `None` without either.
    pub fn rpo(&self) -> Option<Duration> {
        const GRACE: Duration = Duration::from_secs(3600);
        self.explicit_rpo.or_else(|| {
            let schedule = self.schedule.as_ref()?;
            Some(schedule.interval + schedule.jitter + GRACE)
        })
    }

    /// The fields that are set and that only Jackline's own repository engine follows.
    pub fn engine_fields(&self) -> Vec<&'static str> {
        let retention = self.retention.as_ref();
        let vanished = retention.is_some_and(|retention| retention.vanished_volumes.is_some());
        [
            ("spec.repository", self.repository != Repository::default()),
            ("spec.retention.vanishedVolumes", vanished),
        ]
        .into_iter()
        .filter_map(|(field, is_set)| is_set.then_some(field))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_are_set_are_named_as_the_engine_s() {
        let fields = |parts: PolicyParts| {
            let spec = parts.check(PolicyKind::ClusterBackupPolicy).unwrap();
            spec.engine_fields()
        };
        let retention = |vanished_volumes| {
            let parts = RetentionParts {
                keep_last: Some(2),
                vanished_volumes,
                ..RetentionParts::default()
            };
            Some(Retention::new("spec.retention", parts).unwrap())
        };
        let repository = Repository::new("spec.repository", Some("@daily"), None, None).unwrap();
        assert!(fields(PolicyParts::default()).is_empty());
        let kept = PolicyParts {
            retention: retention(None),
            ..PolicyParts::default()
        };
        assert!(fields(kept).is_empty());
        let both = PolicyParts {
            retention: retention(Some("1h")),
            repository,
            ..PolicyParts::default()
        };
        assert_eq!(
            fields(both),
            ["spec.repository", "spec.retention.vanishedVolumes"]
        );
    }
}
