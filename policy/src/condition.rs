//! Conditions of our own kinds: kstatus' Ready, Reconciling and Stalled, and what a backup is about. Fixed order; the transition time
//! moves only with the status, so that a settled object is written once and then left alone.

use jiff::Timestamp;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// The order is that in `status.conditions`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
pub enum ConditionType {
    Ready,
    Reconciling,
    Stalled,
    /// Every volume that the policy governs is protected.
    Covered,
    /// Every one has a good backup not older than the objective.
    Compliant,
    /// A sample restore was compared.
    Verified,
    /// Another cluster uses the location too.
    LocationShared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr)]
pub enum Status {
    True,
    False,
    Unknown,
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Every reason that a condition of ours can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr)]
pub enum Reason {
    Accepted,
    InvalidSpec,
    /// A Schedule or another policy gives its backups the same names.
    NameTaken,
    /// A Velero is at work in the same namespace.
    ForeignVelero,
    UnknownLocation,
    LocationUnavailable,
    Suspended,
    Preview,
    Settled,
    Progressing,
    /// The next deletions are so many that they wait for a person.
    DeletionHeld,
    AllProtected,
    Unprotected,
    SelectsNothing,
    WithinObjective,
    ObjectiveMissed,
    NoObjective,
    NoBackupYet,
    NotVerified,
    /// It is alive and writes to the same bucket and prefix.
    OtherCluster,
}

/// A condition as it should be now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub kind: ConditionType,
    pub status: Status,
    pub reason: Reason,
    pub message: String,
}

impl Wanted {
    pub fn new(
        kind: ConditionType,
        status: impl Into<Status>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status: status.into(),
            reason,
            message: message.into(),
        }
    }
}

/// A condition as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: ConditionType,
    pub status: Status,
    pub reason: Reason,
    pub message: String,
    /// Whole seconds.
    pub last_transition: Timestamp,
}

/// Puts conditions in order, each type once (the last one wanted), with the transition time of the `previous` one where the status is
/// the same.
pub fn settle(
    wanted: impl IntoIterator<Item = Wanted>,
    previous: impl Fn(ConditionType) -> Option<(Status, Timestamp)>,
    now: Timestamp,
) -> Vec<Condition> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let wanted: Vec<Wanted> = wanted.into_iter().collect();
    ConditionType::VARIANTS
        .iter()
        .filter_map(|kind| wanted.iter().rfind(|wanted| wanted.kind == *kind))
        .map(|wanted| Condition {
            kind: wanted.kind,
            status: wanted.status,
            reason: wanted.reason,
            message: wanted.message.clone(),
            last_transition: match previous(wanted.kind) {
                Some((status, since)) if status == wanted.status => since,
                _ => now,
            },
        })
        .collect()
}

/// kstatus' three: what is `ready`, what still moves, and what will not get better by itself.
pub fn kstatus(ready: Status, stalled: bool, reason: Reason, message: &str) -> [Wanted; 3] {
    let moving = ready == Status::Unknown && !stalled;
    let settled = |holds: bool, other| {
        if holds {
            (reason, message)
        } else {
            (other, "")
        }
    };
    let (moving_reason, moving_message) = settled(moving, Reason::Settled);
    let (stalled_reason, stalled_message) = settled(stalled, Reason::Settled);
    [
        Wanted::new(ConditionType::Ready, ready, reason, message),
        Wanted::new(
            ConditionType::Reconciling,
            moving,
            moving_reason,
            moving_message,
        ),
        Wanted::new(
            ConditionType::Stalled,
            stalled,
            stalled_reason,
            stalled_message,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_with_the_status_alone() {
        let wanted =
            |status: bool, reason| [Wanted::new(ConditionType::Ready, status, reason, "m")];
        let previous = |_| Some((Status::True, at(5)));
        let same = settle(wanted(true, Reason::Suspended), previous, at(9));
        assert_eq!(
            (same[0].last_transition, same[0].reason),
            (at(5), Reason::Suspended)
        );
        let turned = settle(wanted(false, Reason::InvalidSpec), previous, at(9));
        assert_eq!(turned[0].last_transition, at(9));
        let new = settle(wanted(true, Reason::Accepted), |_| None, at(9));
        assert_eq!(new[0].last_transition, at(9));
    }

    #[test]
    fn the_order_is_fixed_and_each_type_appears_once() {
        let wanted = [
            Wanted::new(ConditionType::Covered, true, Reason::AllProtected, ""),
            Wanted::new(ConditionType::Ready, false, Reason::InvalidSpec, "first"),
            Wanted::new(ConditionType::Ready, true, Reason::Accepted, "second"),
        ];
        let found = settle(wanted, |_| None, at(1));
        let kinds: Vec<_> = found.iter().map(|c| c.kind).collect();
        assert_eq!(kinds, [ConditionType::Ready, ConditionType::Covered]);
        assert_eq!(found[0].message, "second");
    }

    #[test]
    fn what_is_stalled_does_not_reconcile() {
        let [_, reconciling, stalled] = kstatus(Status::False, true, Reason::InvalidSpec, "why");
        assert_eq!(
            (reconciling.status, stalled.status),
            (Status::False, Status::True)
        );
        assert_eq!(stalled.message, "why");
    }
}
