//! A policy's status.

use std::sync::Arc;

use jackline_crds::jackline::{PolicyStatus, UncoveredVolume};
use jackline_crds::velero::{Backup, BackupPhase};
use jackline_policy::condition::{self, ConditionType, Reason, Status, Wanted};
use jackline_policy::coverage::{self, Counts};
use jackline_policy::spec::Mode;
use jackline_policy::{Policy, schedule};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;

use super::conditions;
use super::metrics::Shown;
use crate::args::Engine;
use crate::coverage::{Judged, covered, judge, summary, verdict};
use crate::world::World;

/// Volumes named in a policy's own status.
const UNCOVERED: usize = 20;

/// What a status is made from.
pub(super) struct Report<'a> {
    pub world: &'a World,
    pub policy: &'a Policy,
    pub backups: &'a [Arc<Backup>],
    pub refusal: Option<(Reason, &'a str)>,
    pub next: Option<Timestamp>,
    pub made: Option<String>,
    pub held: Option<&'a str>,
    /// Who else uses the location.
    pub shared: Option<&'a str>,
    pub engine: Engine,
}

/// The status of a policy that cannot be: what it said before stays, but for why.
pub(super) fn refused(
    previous: &PolicyStatus,
    metadata: &ObjectMeta,
    reason: Reason,
    message: &str,
    now: Timestamp,
) -> PolicyStatus {
    let wanted = condition::kstatus(Status::False, true, reason, message);
    PolicyStatus {
        observed_generation: metadata.generation,
        conditions: conditions::settle(wanted, &previous.conditions, metadata.generation, now),
        next_schedule_time: None,
        ..previous.clone()
    }
}

impl Report<'_> {
    /// The status, what metrics show, and when time alone changes it.
    pub(super) fn status(
        &self,
        previous: &PolicyStatus,
        metadata: &ObjectMeta,
        now: Timestamp,
    ) -> (PolicyStatus, Shown, Option<Timestamp>) {
        let judged = self.judged(now);
        let counts: Counts = judged.iter().map(|(_, judged)| judged.verdict).collect();
        let (ready, reason, message) = super::ready(self.policy, self.refusal, self.engine);
        let mut wanted: Vec<Wanted> =
            condition::kstatus(ready, ready == Status::False, reason, &message).into();
        if let Some(held) = self.held {
            wanted.push(Wanted::new(
                ConditionType::Stalled,
                true,
                Reason::DeletionHeld,
                held,
            ));
        }
        wanted.push(covered(counts));
        wanted.push(self.compliant(&judged, counts));
        if self.policy.spec.verification.is_some() {
            let message = "no sample has been restored yet";
            wanted.push(Wanted::new(
                ConditionType::Verified,
                Status::Unknown,
                Reason::NotVerified,
                message,
            ));
        }
        if let Some(shared) = self.shared {
            wanted.push(Wanted::new(
                ConditionType::LocationShared,
                true,
                Reason::OtherCluster,
                shared,
            ));
        }
        let newest = self
            .backups
            .iter()
            .max_by_key(|backup| started(backup))
            .map(|backup| backup.name_any());
        let last_success = self
            .backups
            .iter()
            .filter(|backup| backup.phase() == BackupPhase::Completed)
            .filter_map(|backup| started(backup))
            .max();
        let schedule = self.policy.spec.schedule.as_ref();
        let status = PolicyStatus {
            observed_generation: metadata.generation,
            conditions: conditions::settle(wanted, &previous.conditions, metadata.generation, now),
            effective_schedule: schedule.map(|spec| schedule::effective(spec, &self.policy.id)),
            last_backup: self.made.clone().or(newest),
            last_successful_time: last_success.map(Time),
            next_schedule_time: self.next.map(Time),
            coverage: Some(summary(counts)),
            uncovered: judged
                .iter()
                .filter_map(|(namespace, judged)| uncovered(namespace, judged))
                .take(UNCOVERED)
                .collect(),
        };
        let shown = Shown {
            counts,
            ready: ready == Status::True,
            suspended: self.policy.spec.suspend,
            last_success,
            next_run: self.next,
            rpo: self.policy.spec.rpo().map(|rpo| rpo.as_secs_f64()),
            oldest_point: judged
                .iter()
                .filter_map(|(_, judged)| Some(judged.last_good.as_ref()?.time))
                .min(),
            held: self.held.is_some(),
            interval: schedule.map(|spec| spec.interval.as_secs_f64()),
        };
        let turns = judged.iter().filter_map(|(_, judged)| judged.turns()).min();
        (status, shown, turns)
    }

    /// The volumes that count for this policy: those it governs; those it would, in Preview; those it would if they were not exempt.
    fn judged(&self, now: Timestamp) -> Vec<(String, Judged)> {
        let usable = self.world.usable_backups();
        let id = &self.policy.id;
        let counts = |judged: &Judged| match judged.policy() {
            _ if judged.verdict == coverage::Verdict::Exempt => {
                judged.situation.wanted_by.contains(id)
                    || judged.reason == coverage::Reason::SkippedByRule
            }
            Some(governing) => governing.id == *id,
            None => {
                self.policy.spec.mode == Mode::Preview && judged.situation.wanted_by.contains(id)
            }
        };
        let namespaces = self
            .world
            .read(|state| state.namespaces_of(id))
            .unwrap_or_default();
        namespaces
            .into_iter()
            .flat_map(|namespace| {
                let judged = judge(self.world, &namespace, &usable, now);
                judged
                    .into_iter()
                    .map(move |judged| (namespace.clone(), judged))
            })
            .filter(|(_, judged)| counts(judged))
            .collect()
    }

    fn compliant(&self, judged: &[(String, Judged)], counts: Counts) -> Wanted {
        let kind = ConditionType::Compliant;
        if self.policy.spec.rpo().is_none() {
            return Wanted::new(
                kind,
                Status::Unknown,
                Reason::NoObjective,
                "neither a schedule nor an rpo is given",
            );
        }
        let with_point = judged.iter().any(|(_, judged)| judged.last_good.is_some());
        if counts.selected == counts.protected {
            return Wanted::new(kind, Status::True, Reason::WithinObjective, "");
        }
        match with_point {
            true => Wanted::new(
                kind,
                Status::False,
                Reason::ObjectiveMissed,
                "volumes have no backup that is young enough",
            ),
            false => Wanted::new(
                kind,
                Status::Unknown,
                Reason::NoBackupYet,
                "no volume has been backed up yet",
            ),
        }
    }
}

fn started(backup: &Backup) -> Option<Timestamp> {
    let started = backup
        .status
        .as_ref()
        .and_then(|status| status.start_timestamp.as_ref());
    started
        .or(backup.metadata.creation_timestamp.as_ref())
        .map(|time| time.0)
}

fn uncovered(namespace: &str, judged: &Judged) -> Option<UncoveredVolume> {
    if matches!(
        judged.verdict,
        coverage::Verdict::Protected | coverage::Verdict::Exempt
    ) {
        return None;
    }
    let situation = &judged.situation;
    let in_pod = || {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        format!("{}/{}", text(&situation.pod), text(&situation.volume))
    };
    Some(UncoveredVolume {
        namespace: namespace.to_owned(),
        name: situation.claim.clone().unwrap_or_else(in_pod),
        verdict: verdict(judged.verdict),
        reason: judged.reason.to_string(),
    })
}
