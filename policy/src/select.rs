//! Which volumes a policy wants. Ordered rules, the first match decides; what can never be backed up is told apart from what is
//! not wanted, so that coverage can say why.

use strum::{Display, IntoStaticStr};

use crate::facts::{ClaimView, Exempt, NamespaceFacts, PodFacts, PodVolume, VolumeType};
use crate::spec::{Action, Match, NamespaceRule, Policy, PolicyKind, VolumeDefault};

/// Whether the policy's namespaces hold this one. A BackupPolicy governs its own.
pub fn selects_namespace(policy: &Policy, namespace: &NamespaceFacts) -> bool {
    match policy.id.kind {
        PolicyKind::BackupPolicy => *policy.id.namespace == *namespace.name,
        PolicyKind::ClusterBackupPolicy => matches_namespace(&policy.spec.namespaces, namespace),
    }
}

fn matches_namespace(rule: &NamespaceRule, namespace: &NamespaceFacts) -> bool {
    (rule.include.is_empty() || rule.include.matches(&namespace.name))
        && !rule.exclude.matches(&namespace.name)
        && rule
            .regex
            .as_ref()
            .is_none_or(|regex| regex.matches(&namespace.name))
        && rule.selector.matches(&namespace.labels)
}

/// Whether the policy looks at this pod's volumes (its namespace is judged apart).
pub fn selects_pod(policy: &Policy, pod: &PodFacts) -> bool {
    policy.spec.pods.selector.matches(&pod.labels)
        && !pod
            .job
            .as_ref()
            .is_some_and(|job| policy.spec.pods.exclude_jobs.matches(job))
}

/// Why a volume cannot be backed up from a pod, whatever a policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Display, IntoStaticStr)]
pub enum Ineligible {
    /// Secrets, host paths and the like.
    VolumeType,
    /// A raw block device.
    BlockDevice,
    /// No regular container of the pod mounts it.
    NotMounted,
    /// The claim's PersistentVolume is a path of the node.
    HostPathVolume,
    /// The claim is not known (yet). An unbound one needs no check: its pods do not run.
    ClaimMissing,
}

/// Velero's checks before a PodVolumeBackup, as far as they do not depend on the moment.
pub fn eligible(volume: &PodVolume, claim: Option<ClaimView<'_>>) -> Result<(), Ineligible> {
    if PodVolume::never(&volume.name, &volume.kind) {
        return Err(Ineligible::VolumeType);
    }
    if volume.device || claim.is_some_and(|view| view.claim.block) {
        return Err(Ineligible::BlockDevice);
    }
    if volume.claim.is_some() && claim.is_none() {
        return Err(Ineligible::ClaimMissing);
    }
    if claim
        .and_then(|view| view.volume)
        .is_some_and(|volume| volume.host_path)
    {
        return Err(Ineligible::HostPathVolume);
    }
    if !volume.mounted {
        return Err(Ineligible::NotMounted);
    }
    Ok(())
}

/// Which object exempts a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exemption {
    Namespace(Exempt),
    Pod(Exempt),
    Claim(Exempt),
    /// A person's `backup.velero.io/backup-volumes-excludes` lists it.
    PodExcludes,
}

/// The exemption of a volume, nearest object first.
pub fn exemption(
    namespace: &NamespaceFacts,
    pod: &PodFacts,
    volume: &PodVolume,
    claim: Option<ClaimView<'_>>,
) -> Option<Exemption> {
    if let Some(exempt) = claim.and_then(|view| view.claim.exempt.as_ref()) {
        return Some(Exemption::Claim(exempt.clone()));
    }
    let excludes = &pod.backup_volumes_excludes;
    if excludes.is_users() && excludes.lists(&volume.name) {
        return Some(Exemption::PodExcludes);
    }
    if let Some(exempt) = &pod.exempt {
        return Some(Exemption::Pod(exempt.clone()));
    }
    namespace.exempt.clone().map(Exemption::Namespace)
}

/// What a policy's own rules say about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// By the rule of this name, or by the default.
    Backup(Option<&'a str>),
    Skip(Option<&'a str>),
}

impl Choice<'_> {
    pub fn is_backup(self) -> bool {
        matches!(self, Self::Backup(_))
    }
}

/// The first matching rule, else the default.
pub fn choose<'p>(
    policy: &'p Policy,
    volume: &PodVolume,
    claim: Option<ClaimView<'_>>,
) -> Choice<'p> {
    let volumes = &policy.spec.volumes;
    if let Some(rule) = volumes
        .rules
        .iter()
        .find(|rule| matches(&rule.matches, volume, claim))
    {
        return match rule.action {
            Action::Backup => Choice::Backup(Some(&rule.name)),
            Action::Skip => Choice::Skip(Some(&rule.name)),
        };
    }
    let backup = match volumes.default {
        VolumeDefault::Claims => volume.kind == VolumeType::PersistentVolumeClaim,
        VolumeDefault::All => true,
        VolumeDefault::None => false,
    };
    if backup {
        Choice::Backup(None)
    } else {
        Choice::Skip(None)
    }
}

fn matches(rule: &Match, volume: &PodVolume, claim: Option<ClaimView<'_>>) -> bool {
    // `then` is not evaluated for a condition that was not given.
    let unless = |absent: bool, then: &dyn Fn() -> bool| absent || then();
    let of_claim = |test: &dyn Fn(ClaimView<'_>) -> bool| claim.is_some_and(test);

    unless(rule.types.is_empty(), &|| rule.types.contains(&volume.kind))
        && unless(rule.storage_classes.is_empty(), &|| {
            of_claim(&|view| {
                rule.storage_classes
                    .iter()
                    .any(|class| **class == *view.claim.storage_class)
            })
        })
        && unless(rule.access_modes.is_empty(), &|| {
            of_claim(&|view| {
                view.claim
                    .access_modes
                    .iter()
                    .any(|mode| rule.access_modes.iter().any(|m| **m == **mode))
            })
        })
        && unless(rule.claim_selector.is_empty(), &|| {
            of_claim(&|view| rule.claim_selector.matches(&view.claim.labels))
        })
        && rule.claim_regex.as_ref().is_none_or(|regex| {
            volume
                .claim
                .as_ref()
                .is_some_and(|name| regex.matches(name))
        })
        && unless(
            rule.min_capacity.is_none() && rule.max_capacity.is_none(),
            &|| {
                of_claim(&|view| {
                    view.claim.capacity.is_some_and(|bytes| {
                        rule.min_capacity.is_none_or(|min| bytes >= min)
                            && rule.max_capacity.is_none_or(|max| bytes <= max)
                    })
                })
            },
        )
        && unless(rule.csi_drivers.is_empty(), &|| {
            let driver = volume.csi_driver.as_deref().or_else(|| {
                claim
                    .and_then(|view| view.volume)
                    .and_then(|volume| volume.csi_driver.as_deref())
            });
            driver.is_some_and(|driver| rule.csi_drivers.iter().any(|wanted| wanted == driver))
        })
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
