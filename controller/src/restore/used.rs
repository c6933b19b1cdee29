//! Claims that pods of others use: such a pod has no waiter, and sees files come while it runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jackline_crds::{
    names::label,
    velero::{PodVolumePhase, PodVolumeRestore, Restore, RestorePhase},
};
use jackline_policy::restore::volume::Restoration;
use jackline_runtime::Failure;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};

use super::{
    pods::{RestoredPod, Use},
    report::Place,
    run::{Part, Run},
    volumes::Progress,
};

/// How often pods that are being deleted are looked at.
const TICK: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Whether pods that are being deleted still use claims that are to be filled.
    pub(super) async fn is_being_left(&self, namespace: &str) -> Result<bool, Failure> {
        let claims = self.unbegun_claims(namespace);
        if claims.is_empty() {
            return Ok(false);
        }
        let pods = self.pods_of(self.target(namespace)).await?;
        Ok(self.leaving(&pods, &claims).is_some())
    }

    /// The claims of a part that pods of others use are not restored into: they would write while they are filled. Pods that are being
    /// deleted are waited for.
    pub(super) async fn leave_used_claims(&self, part: Part<'_>) -> Result<(), Failure> {
        let plan = self.plan();
        for namespace in plan.namespaces_of_claims() {
            if !part.has(Some(namespace)) {
                continue;
            }
            // One that is going takes its pods along.
            if matches!(part, Part::Late(_)) && !self.namespace(namespace).await? {
                continue;
            }
            let target = self.target(namespace);
            let claims = self.unbegun_claims(namespace);
            let pods = self.pods_that_stay(target, &claims).await?;
            for claim in &claims {
                let uses = |pod: &&RestoredPod| match pod.use_of(claim, &self.uid) {
                    Use::No => false,
                    // Then it is known what became of the data.
                    Use::Waits(other) => self.running(other).is_none(),
                    Use::Leaving | Use::Writes => true,
                };
                if let Some(user) = pods.iter().find(uses) {
                    self.leave_claim(namespace, claim);
                    self.refuse_claim(namespace, target, claim, &user.name_any())
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// The claims of a namespace that are to be filled, but for those that an earlier run has begun with.
    fn unbegun_claims(&self, namespace: &str) -> BTreeSet<String> {
        let (plan, begun) = (self.plan(), self.begun());
        let target = self.target(namespace);
        let is_begun = |claim: &str| {
            begun
                .iter()
                .any(|volume| self.is_for(volume, target, claim))
        };
        let claims = plan.claims(namespace).into_iter();
        claims
            .filter(|claim| !is_begun(claim))
            .map(str::to_owned)
            .collect()
    }

    fn leaving<'p>(
        &self,
        pods: &'p [RestoredPod],
        claims: &BTreeSet<String>,
    ) -> Option<&'p RestoredPod> {
        pods.iter().find(|pod| {
            let mut claims = claims.iter();
            claims.any(|claim| pod.use_of(claim, &self.uid) == Use::Leaving)
        })
    }

    /// The pods of a namespace, once those that use the claims and are being deleted have gone, if they do.
    async fn pods_that_stay(
        &self,
        target: &str,
        claims: &BTreeSet<String>,
    ) -> Result<Vec<RestoredPod>, Failure> {
        let deadline = Instant::now() + self.context.args.resource_timeout.to_std();
        let mut told = false;
        loop {
            let pods = self.pods_of(target).await?;
            let Some(leaving) = self.leaving(&pods, claims) else {
                return Ok(pods);
            };
            if Instant::now() > deadline || self.is_deleted() {
                return Ok(pods);
            }
            if !told {
                let pod = leaving.name_any();
                let why = format!("pod {target}/{pod} is being deleted: its claims wait for that");
                self.report.info(&why);
                told = true;
            }
            self.token.check()?;
            tokio::time::sleep(TICK).await;
        }
    }

    fn leave_claim(&self, namespace: &str, claim: &str) {
        Arc::make_mut(&mut self.plan.write()).leave_claim(namespace, claim);
    }

    /// Another restore, while it is under way.
    fn running(&self, uid: &str) -> Option<Arc<Restore>> {
        let restores = &self.context.stores.restores;
        let is = |other: &Restore| {
            other.phase() == RestorePhase::InProgress && other.uid().as_deref() == Some(uid)
        };
        restores.find(is).filter(|_| uid != self.uid)
    }

    /// Whether other restores are under way.
    pub(super) fn has_company(&self) -> bool {
        let restores = &self.context.stores.restores;
        let is = |other: &Restore| {
            other.phase() == RestorePhase::InProgress && other.uid().as_ref() != Some(&self.uid)
        };
        restores.find(is).is_some()
    }

    /// Whether another restore fills the claim of this one, or is going to, as far as the watches have seen.
    pub(super) fn is_in_other_hands(&self, restoration: &Restoration) -> bool {
        let Some(claim) = restoration.claim.as_ref().filter(|_| self.has_company()) else {
            return false;
        };
        let target = self.target(&restoration.namespace);
        let volumes = &self.context.stores.pod_volume_restores;
        let fills = |volume: &PodVolumeRestore| {
            let of = volume.labels().get(label::RESTORE_UID);
            self.is_for(volume, target, claim)
                && !volume.phase().is_terminal()
                && of.is_some_and(|of| self.running(of).is_some())
        };
        let has_waiters = self.has_waiters(restoration);
        let waits = |pod: &RestoredPod| {
            pod.namespace().as_deref() == Some(target)
                && self.waits_for_another(pod, claim, has_waiters)
        };
        volumes.find(fills).is_some() || self.restored_pods.find(waits).is_some()
    }

    /// Whether the pod waits for another restore to fill the claim. Where both have pods that wait, the older one fills it.
    fn waits_for_another(&self, pod: &RestoredPod, claim: &str, has_waiters: bool) -> bool {
        let Use::Waits(other) = pod.use_of(claim, &self.uid) else {
            return false;
        };
        self.running(other)
            .is_some_and(|other| !has_waiters || is_older(&other, self.restore))
    }

    /// How a claim is doing that this restore has not begun with, for pods that another restore made wait for it.
    pub(super) async fn in_other_hands(
        &self,
        restoration: &Restoration,
    ) -> Result<Progress, Failure> {
        if self.is_in_other_hands(restoration) {
            return Ok(Progress::Going);
        }
        let what = self.volume_of(restoration);
        let nobody = || Progress::Lost(format!("the data of {what} was not restored"));
        let Some(claim) = &restoration.claim else {
            return Ok(nobody());
        };
        let target = self.target(&restoration.namespace);
        let has_waiters = self.has_waiters(restoration);
        let waits = |pod: &RestoredPod| self.waits_for_another(pod, claim, has_waiters);
        // The watch may be behind what was just made.
        if self.has_company() && self.pods_of(target).await?.iter().any(waits) {
            return Ok(Progress::Going);
        }
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.clients.call.clone(), target);
        let now = claims.get_metadata_opt(claim).await?;
        let Some(uid) = now.and_then(|now| now.uid()) else {
            return Ok(nobody());
        };
        let of_claim = |volume: &PodVolumeRestore| {
            volume.labels().get(label::PVC_UID) == Some(&uid)
                && volume.labels().get(label::RESTORE_UID) != Some(&self.uid)
        };
        let volumes = self.context.stores.pod_volume_restores.filter(of_claim);
        let last = volumes
            .into_iter()
            .max_by_key(|volume| volume.metadata.creation_timestamp.as_ref().map(|t| t.0));
        Ok(match last {
            Some(last) if last.phase() == PodVolumePhase::Completed => Progress::Back,
            Some(last) => Progress::Lost(format!(
                "the data of {what} was not restored: PodVolumeRestore {} of another restore is {}",
                last.name_any(),
                last.phase()
            )),
            None => nobody(),
        })
    }

    async fn refuse_claim(
        &self,
        namespace: &str,
        target: &str,
        claim: &str,
        user: &str,
    ) -> Result<(), Failure> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.clients.call.clone(), target);
        let place = target.to_owned();
        match claims.get_metadata_opt(claim).await? {
            Some(_) => self.report.warning(
                Place::Namespace(&place),
                &format!(
                    "the data of claim {claim} was not restored: pod {user} is using the claim"
                ),
            ),
            None => {
                self.state
                    .lock()
                    .blocked
                    .insert((namespace.to_owned(), claim.to_owned()));
                self.report.error(
                    Place::Namespace(&place),
                    &format!(
                        "claim {claim} was not restored: pod {user}, which this restore did not make, waits for it and would \
                         write into it before the data is back; scale its workload down and restore again"
                    ),
                );
            }
        }
        Ok(())
    }

    /// Names the pods that others made meanwhile (a workload scaled up, or put back by its own tools) and that ran before the data of
    /// their claims was back.
    pub(super) async fn name_early_pods(&self, back: &[&Restoration]) -> Result<(), Failure> {
        let begun = self.begun();
        let mut claims: BTreeMap<&str, Vec<(&str, Timestamp)>> = BTreeMap::new();
        for restoration in back {
            let volume = begun.iter().find(|volume| self.is_of(volume, restoration));
            let filled =
                volume.and_then(|volume| volume.status.as_ref()?.completion_timestamp.as_ref());
            if let (Some(claim), Some(filled)) = (&restoration.claim, filled) {
                let target = self.target(&restoration.namespace);
                claims.entry(target).or_default().push((claim, filled.0));
            }
        }
        for (target, claims) in claims {
            let pods = self.pods_of(target).await?;
            for (claim, filled) in claims {
                let used = |pod: &RestoredPod| pod.use_of(claim, &self.uid) != Use::No;
                for pod in pods
                    .iter()
                    .filter(|pod| used(pod) && pod.ran_before(filled))
                {
                    let pod = pod.name_any();
                    self.report.warning(
                        Place::Namespace(target),
                        &format!(
                            "pod {pod}, which this restore did not make, ran before the data of claim {claim} was back: restart it"
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    async fn pods_of(&self, namespace: &str) -> Result<Vec<RestoredPod>, kube::Error> {
        let pods: Api<RestoredPod> = Api::namespaced(self.context.clients.call.clone(), namespace);
        Ok(pods.list(&ListParams::default()).await?.items)
    }
}

/// Whether one restore was asked for before another.
fn is_older(one: &Restore, other: &Restore) -> bool {
    let age = |restore: &Restore| {
        let made = restore.metadata.creation_timestamp.as_ref();
        (made.map(|made| made.0), restore.metadata.uid.clone())
    };
    age(one) < age(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_two_restores_one_is_the_older() {
        let restore = |second: &str, uid: &str| -> Restore {
            serde_json::from_value(json!({
                "metadata": {"name": uid, "uid": uid, "creationTimestamp": format!("2026-01-01T00:00:{second}Z")},
                "spec": {}
            }))
            .unwrap()
        };
        let (a, b, c) = (restore("10", "b"), restore("10", "c"), restore("11", "a"));
        assert!(is_older(&a, &b) && is_older(&b, &c) && is_older(&a, &c));
        assert!(!is_older(&b, &a) && !is_older(&c, &b) && !is_older(&a, &a));
    }
}
