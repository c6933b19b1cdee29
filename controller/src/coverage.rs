//! One `BackupCoverage` per namespace: a verdict for every volume, written when it changes.

use std::collections::HashSet;
use std::sync::Arc;

use jackline_crds::jackline::{
    BackupCoverage, CoverageCounts, CoverageStatus, Verdict, VolumeVerdict,
};
use jackline_crds::names::{COVERAGE, FIELD_MANAGER};
use jackline_policy::condition::{ConditionType, Reason, Wanted};
use jackline_policy::coverage::{self, Counts};
use jackline_policy::spec::PolicyKind;
use jackline_policy::{Policy, PolicyId};
use jackline_runtime::status::{Guard, StatusAt, write_status};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, RunOptions, Store, WatchSpec};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::context::Context;
use crate::policies::conditions;
use crate::policies::metrics::PolicyMetrics;
use crate::world::World;
use crate::world::points::Point;
use crate::world::view::Situation;

/// A volume with its verdict.
#[derive(Debug, Clone)]
pub struct Judged {
    pub situation: Situation,
    pub verdict: coverage::Verdict,
    pub reason: coverage::Reason,
    pub last_good: Option<Point>,
}

impl Judged {
    /// When time alone changes the verdict.
    pub fn turns(&self) -> Option<Timestamp> {
        let rpo = self.policy()?.spec.rpo();
        let protected = self.verdict == coverage::Verdict::Protected;
        let last_good = self.last_good.as_ref().filter(|_| protected)?;
        coverage::turns_stale(last_good.time, rpo)
    }

    /// The governing policy.
    pub fn policy(&self) -> Option<&Policy> {
        self.situation
            .governor
            .as_ref()
            .map(|governor| &*governor.policy)
    }
}

/// `name` of a ClusterBackupPolicy, `namespace/name` of a BackupPolicy.
pub fn short_name(policy: &PolicyId) -> String {
    match policy.kind {
        PolicyKind::ClusterBackupPolicy => policy.name.clone(),
        PolicyKind::BackupPolicy => format!("{}/{}", policy.namespace, policy.name),
    }
}

/// The verdicts of a namespace. `usable`: backups that can be restored from.
pub fn judge(
    world: &World,
    namespace: &str,
    usable: &HashSet<String>,
    now: Timestamp,
) -> Vec<Judged> {
    let situations = world.read(|state| state.situations(namespace));
    situations
        .into_iter()
        .map(|situation| {
            let location = situation
                .governor
                .as_ref()
                .map(|governor| governor.location.to_string());
            let last_good = world.newest_point(&situation.lineage, location.as_deref(), usable);
            let time = last_good.as_ref().map(|point| point.time);
            let (verdict, reason) = coverage::judge(situation.intent, situation.carrier, time, now);
            Judged {
                situation,
                verdict,
                reason,
                last_good,
            }
        })
        .collect()
}

/// Starts the controller.
pub fn register(
    context: &Arc<Context>,
    world: &Arc<World>,
    metrics: &Arc<PolicyMetrics>,
    kit: &Kit,
    lease: &Lease,
) {
    let coverages: Store<BackupCoverage> = kit.watch_guarded(WatchSpec::new("backupcoverages"));
    // Written by others or left behind: put right.
    coverages.enqueue(&world.coverage_queue, |change| {
        vec![change.key.ns().to_owned()]
    });
    let writer = Arc::new(Writer {
        context: context.clone(),
        world: world.clone(),
        metrics: metrics.clone(),
        coverages,
    });
    kit.run_leading(
        &world.coverage_queue,
        RunOptions::new().resync(None),
        lease,
        move |namespace, token| {
            let writer = writer.clone();
            async move { writer.pass(&namespace, &token).await }
        },
    );
}

#[derive(Debug)]
struct Writer {
    context: Arc<Context>,
    world: Arc<World>,
    metrics: Arc<PolicyMetrics>,
    coverages: Store<BackupCoverage>,
}

impl Writer {
    async fn pass(&self, namespace: &str, token: &LeaderToken) -> Result<Next, Failure> {
        self.world.ready().await;
        self.coverages.ready().await;
        let now = Timestamp::now();
        let api: Api<BackupCoverage> =
            Api::namespaced(self.context.clients.call.clone(), namespace);
        let existing = self.coverages.get(&Key::namespaced(namespace, COVERAGE));
        let going = self.world.read(|state| state.is_going(namespace));
        let judged = judge(&self.world, namespace, &self.world.usable_backups(), now);
        let ungoverned = judged
            .iter()
            .filter(|judged| judged.policy().is_none() && !going);
        self.metrics
            .ungoverned(namespace, ungoverned.map(|judged| judged.verdict).collect());
        if judged.is_empty() || going {
            // With the namespace its objects go by themselves.
            if existing.is_some() && !going {
                token.check()?;
                match api.delete(COVERAGE, &DeleteParams::default()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(Next::Done);
        }
        let observed = match existing {
            Some(existing) => (*existing).clone(),
            None => {
                token.check()?;
                let new = BackupCoverage::new(namespace, None);
                let params = PostParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PostParams::default()
                };
                match api.create(&params, &new).await {
                    Ok(made) => made,
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {
                        api.get(COVERAGE).await?
                    }
                    // The namespace went meanwhile.
                    Err(kube::Error::Api(status))
                        if [403, 404].contains(&status.code) && self.gone(namespace) =>
                    {
                        return Ok(Next::Done);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let desired = status(&judged, &observed, now);
        token.check()?;
        write_status(
            &api,
            &observed,
            &desired,
            StatusAt::Subresource,
            Guard::SameObject,
            FIELD_MANAGER,
        )
        .await?;
        Ok(judged
            .iter()
            .filter_map(Judged::turns)
            .min()
            .map_or(Next::Done, Next::At))
    }

    fn gone(&self, namespace: &str) -> bool {
        self.world.read(|state| state.is_going(namespace))
    }
}

fn status(judged: &[Judged], observed: &BackupCoverage, now: Timestamp) -> CoverageStatus {
    let counts: Counts = judged.iter().map(|judged| judged.verdict).collect();
    let previous = observed
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    CoverageStatus {
        summary: summary(counts),
        conditions: conditions::settle([covered(counts)], previous, None, now),
        volumes: judged.iter().map(line).collect(),
    }
}

/// The condition Covered of a namespace or a policy.
pub fn covered(counts: Counts) -> Wanted {
    let (status, reason, message) = match counts {
        Counts { selected: 0, .. } => (
            true,
            Reason::SelectsNothing,
            "there is nothing to protect".to_owned(),
        ),
        Counts {
            selected,
            protected,
            ..
        } if selected == protected => (
            true,
            Reason::AllProtected,
            format!("all {selected} volumes are protected"),
        ),
        Counts {
            selected,
            protected,
            ..
        } => (
            false,
            Reason::Unprotected,
            format!("{protected} of {selected} volumes are protected"),
        ),
    };
    Wanted::new(ConditionType::Covered, status, reason, message)
}

/// Counts as the API has them.
pub fn summary(counts: Counts) -> CoverageCounts {
    CoverageCounts {
        selected: counts.selected.into(),
        protected: counts.protected.into(),
        stale: counts.stale.into(),
        unprotected: counts.unprotected.into(),
        exempt: counts.exempt.into(),
        conflict: counts.conflict.into(),
        cannot_back_up: counts.cannot_back_up.into(),
    }
}

/// The verdict as the API has it.
pub fn verdict(verdict: coverage::Verdict) -> Verdict {
    match verdict {
        coverage::Verdict::Protected => Verdict::Protected,
        coverage::Verdict::Stale => Verdict::Stale,
        coverage::Verdict::Unprotected => Verdict::Unprotected,
        coverage::Verdict::Exempt => Verdict::Exempt,
        coverage::Verdict::Conflict => Verdict::Conflict,
        coverage::Verdict::CannotBackUp => Verdict::CannotBackUp,
    }
}

fn line(judged: &Judged) -> VolumeVerdict {
    let situation = &judged.situation;
    VolumeVerdict {
        claim: situation.claim.clone(),
        pod: situation.pod.clone(),
        volume: situation.volume.clone(),
        verdict: verdict(judged.verdict),
        reason: Some(judged.reason.to_string()),
        message: situation.detail.clone(),
        policy: judged.policy().map(|policy| short_name(&policy.id)),
        storage_location: situation
            .governor
            .as_ref()
            .map(|governor| governor.location.to_string()),
        last_good_backup: judged.last_good.as_ref().map(|point| point.backup.clone()),
        last_good_time: judged.last_good.as_ref().map(|point| Time(point.time)),
        bytes: judged.last_good.as_ref().map(|point| point.bytes),
    }
}
