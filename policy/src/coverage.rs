//! One verdict per volume: is its data safe, and if not, why.

use std::time::Duration;

use jiff::Timestamp;
use strum::{Display, EnumString, IntoStaticStr};

use crate::select::Ineligible;

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, IntoStaticStr,
)]
pub enum Verdict {
    Protected,
    /// It has a good backup, older than the objective.
    Stale,
    Unprotected,
    Exempt,
    /// A person's annotation leaves it out although a policy wants it.
    Conflict,
    CannotBackUp,
}

/// Why the verdict is what it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, IntoStaticStr,
)]
pub enum Reason {
    /// A good backup within the objective.
    BackedUp,
    /// It is annotated, and no schedule or objective says more.
    Annotated,
    BackupTooOld,
    NoBackupYet,
    /// No policy selects it.
    NotSelected,
    /// Only policies in Preview want it.
    PreviewOnly,
    /// Asked for on the claim, the pod or the namespace.
    ExemptByMetadata,
    /// `velero.io/exclude-from-backup`.
    ExcludeFromBackup,
    /// `backup.velero.io/backup-volumes-excludes`, set by a person.
    PodExcludes,
    /// A policy's rule says Skip.
    SkippedByRule,
    AnnotationOwnedElsewhere,
    NotMounted,
    NoRunningPod,
    BlockDevice,
    HostPathVolume,
    ClaimNotBound,
    VolumeType,
}

impl From<Ineligible> for Reason {
    fn from(why: Ineligible) -> Self {
        match why {
            Ineligible::VolumeType => Self::VolumeType,
            Ineligible::BlockDevice => Self::BlockDevice,
            Ineligible::NotMounted => Self::NotMounted,
            Ineligible::HostPathVolume => Self::HostPathVolume,
            Ineligible::ClaimMissing => Self::ClaimNotBound,
        }
    }
}

/// What is wanted for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// A policy that enforces governs it.
    Wanted {
        rpo: Option<Duration>,
    },
    /// Only a policy in Preview does.
    Previewed,
    /// With [`Reason::ExemptByMetadata`], [`Reason::ExcludeFromBackup`], [`Reason::PodExcludes`] or [`Reason::SkippedByRule`].
    Exempt(Reason),
    Unselected,
}

/// What can be done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A running pod is elected and its annotation says so.
    Elected,
    /// A running pod is elected, but a person's annotation leaves the volume out.
    Refused,
    /// No pod can carry it now.
    None(Reason),
}

/// The verdict. `last_good`: when the newest good backup of the volume was made.
pub fn judge(
    intent: Intent,
    carrier: Carrier,
    last_good: Option<Timestamp>,
    now: Timestamp,
) -> (Verdict, Reason) {
    let rpo = match intent {
        Intent::Exempt(reason) => return (Verdict::Exempt, reason),
        Intent::Unselected => return (Verdict::Unprotected, Reason::NotSelected),
        Intent::Previewed => return (Verdict::Unprotected, Reason::PreviewOnly),
        Intent::Wanted { rpo } => rpo,
    };
    if carrier == Carrier::Refused {
        return (Verdict::Conflict, Reason::AnnotationOwnedElsewhere);
    }
    let in_time =
        |at: Timestamp| rpo.is_none_or(|rpo| at.checked_add(rpo).is_ok_and(|until| until >= now));
    match (last_good, carrier) {
        (Some(at), _) if in_time(at) => (Verdict::Protected, Reason::BackedUp),
        (Some(_), _) => (Verdict::Stale, Reason::BackupTooOld),
        (None, Carrier::None(why)) => (Verdict::CannotBackUp, why),
        (None, _) if rpo.is_none() => (Verdict::Protected, Reason::Annotated),
        (None, _) => (Verdict::Unprotected, Reason::NoBackupYet),
    }
}

/// When a verdict of [`Verdict::Protected`] turns by the passing of time alone.
pub fn turns_stale(last_good: Timestamp, rpo: Option<Duration>) -> Option<Timestamp> {
    last_good
        .checked_add(rpo?)
        .ok()?
        .checked_add(Duration::from_secs(1))
        .ok()
}

/// Volumes by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub selected: u32,
    pub protected: u32,
    pub stale: u32,
    pub unprotected: u32,
    pub exempt: u32,
    pub conflict: u32,
    pub cannot_back_up: u32,
}

impl Counts {
    /// Adds a volume. Every one that is not exempt counts as selected.
    pub fn add(&mut self, verdict: Verdict) {
        let slot = match verdict {
            Verdict::Protected => &mut self.protected,
            Verdict::Stale => &mut self.stale,
            Verdict::Unprotected => &mut self.unprotected,
            Verdict::Exempt => &mut self.exempt,
            Verdict::Conflict => &mut self.conflict,
            Verdict::CannotBackUp => &mut self.cannot_back_up,
        };
        *slot += 1;
        if verdict != Verdict::Exempt {
            self.selected += 1;
        }
    }
}

impl FromIterator<Verdict> for Counts {
    fn from_iter<I: IntoIterator<Item = Verdict>>(verdicts: I) -> Self {
        let mut counts = Self::default();
        verdicts.into_iter().for_each(|verdict| counts.add(verdict));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let ago = |hours: i64| Some(Timestamp::from_second(1_000_000 - hours * 3600).unwrap());
        let rpo = Some(Duration::from_secs(26 * 3600));
        let wanted = Intent::Wanted { rpo };
        let free = Intent::Wanted { rpo: None };
        let unmounted = Carrier::None(Reason::NotMounted);
        for (intent, carrier, last_good, expected) in [
            (
                wanted,
                Carrier::Elected,
                ago(2),
                (Verdict::Protected, Reason::BackedUp),
            ),
            (
                wanted,
                Carrier::Elected,
                ago(26),
                (Verdict::Protected, Reason::BackedUp),
            ),
            (
                wanted,
                Carrier::Elected,
                ago(27),
                (Verdict::Stale, Reason::BackupTooOld),
            ),
            (
                wanted,
                Carrier::Elected,
                None,
                (Verdict::Unprotected, Reason::NoBackupYet),
            ),
            (
                free,
                Carrier::Elected,
                None,
                (Verdict::Protected, Reason::Annotated),
            ),
            (
                free,
                Carrier::Elected,
                ago(9999),
                (Verdict::Protected, Reason::BackedUp),
            ),
            (
                wanted,
                Carrier::Refused,
                ago(1),
                (Verdict::Conflict, Reason::AnnotationOwnedElsewhere),
            ),
            (
                wanted,
                unmounted,
                ago(1),
                (Verdict::Protected, Reason::BackedUp),
            ),
            (
                wanted,
                unmounted,
                ago(99),
                (Verdict::Stale, Reason::BackupTooOld),
            ),
            (
                wanted,
                unmounted,
                None,
                (Verdict::CannotBackUp, Reason::NotMounted),
            ),
            (
                Intent::Unselected,
                Carrier::Elected,
                ago(1),
                (Verdict::Unprotected, Reason::NotSelected),
            ),
            (
                Intent::Previewed,
                Carrier::Elected,
                None,
                (Verdict::Unprotected, Reason::PreviewOnly),
            ),
            (
                Intent::Exempt(Reason::PodExcludes),
                unmounted,
                None,
                (Verdict::Exempt, Reason::PodExcludes),
            ),
        ] {
            assert_eq!(
                judge(intent, carrier, last_good, now),
                expected,
                "{intent:?} {carrier:?} {last_good:?}"
            );
        }
    }

    #[test]
    fn exempt_volumes_are_not_selected() {
        let counts: Counts = [Verdict::Protected, Verdict::Exempt, Verdict::Conflict]
            .into_iter()
            .collect();
        assert_eq!((counts.selected, counts.exempt, counts.conflict), (2, 1, 1));
    }
}
