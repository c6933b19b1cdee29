//! Claims that others have: pods that use them have no waiter, and would see files come while they run; another restore may be filling
//! them, and a claim is filled by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use jackline_crds::{
    names::{LABEL_MAX, label},
    velero::{PodVolumePhase, PodVolumeRestore, Restore, RestorePhase},
};
use jackline_policy::restore::volume::Restoration;
use jackline_runtime::Failure;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt, api::ListParams};

use super::{
    cluster::patiently,
    pods::{RestoredPod, Use},
    report::Place,
    run::{Part, Run},
    volumes::Progress,
};
use crate::holds::Holds;

/// How often pods that are being deleted are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The claims that restores fill, by namespace and name in the cluster: all restores run in one process.
static CLAIMS: LazyLock<Holds> = LazyLock::new(Holds::default);

/// How another restore stands to a claim that pods of it wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has ended, or filled the claim: its pods run, or may at any moment.
    Over,
    Fills,
    /// It has not begun yet.
    Intends,
    /// Its data does not come.
    Lost,
}

/// `volumes`: those of the restore that are for the claim.
fn standing(runs: bool, volumes: &[PodVolumePhase]) -> Standing {
    let open = volumes.iter().any(|phase| !phase.is_terminal());
    if !runs || !open && volumes.contains(&PodVolumePhase::Completed) {
        Standing::Over
    } else if open {
        Standing::Fills
    } else if volumes.is_empty() {
        Standing::Intends
    } else {
        Standing::Lost
    }
}

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
            self.meet(&pods).await?;
            for claim in &claims {
                if let Some(user) = self.user(&pods, target, claim) {
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

    /// A pod of others that uses a claim.
    fn user<'p>(
        &self,
        pods: &'p [RestoredPod],
        target: &str,
        claim: &str,
    ) -> Option<&'p RestoredPod> {
        user(pods, claim, &self.uid, |other| {
            self.standing(other, target, claim)
        })
    }

    /// Asks for the restores that the pods wait for, as far as the watch does not know them: it may be behind.
    pub(super) async fn meet(&self, pods: &[RestoredPod]) -> Result<(), Failure> {
        let waiting = pods.iter().filter(|pod| !pod.has_left());
        let others: BTreeMap<&str, &String> = waiting
            .filter_map(|pod| Some((pod.waits_for()?, pod.labels().get(label::RESTORE_NAME)?)))
            .collect();
        for (uid, name) in others {
            let known = self.other(uid);
            if uid == self.uid || known.is_some_and(|known| known.phase() != RestorePhase::New) {
                continue;
            }
            let is = |found: &Restore| found.uid().as_deref() == Some(uid);
            let mut found = self.context.fetch::<Restore>(name).await?.filter(is);
            if found.is_none() && name.len() == LABEL_MAX {
                // It may stand for a longer name.
                let all = self.context.fetch_all(&ListParams::default()).await?;
                found = all.into_iter().find(is);
            }
            if let Some(found) = found {
                let mut state = self.state.lock();
                state.met.insert(uid.to_owned(), Arc::new(found));
            }
        }
        Ok(())
    }

    fn standing(&self, other: &str, target: &str, claim: &str) -> Standing {
        let of =
            |volume: &PodVolumeRestore| is_by(volume, other) && self.is_for(volume, target, claim);
        let volumes = self.context.stores.pod_volume_restores.filter(of);
        let phases: Vec<PodVolumePhase> = volumes.iter().map(|volume| volume.phase()).collect();
        standing(self.running(other).is_some(), &phases)
    }

    /// Takes a claim for as long as it is filled. `false`: another restore has it. What this one has begun with it goes on with.
    pub(super) fn take(&self, restoration: &Restoration) -> bool {
        let Some((key, name)) = self.claim_of(restoration) else {
            return true;
        };
        if let Some(held) = CLAIMS.try_hold(&name) {
            self.state.lock().filling.insert(key, held);
            return true;
        }
        let begun = self.is_begun(restoration);
        if !begun {
            self.leave_to_others(restoration);
        }
        begun
    }

    /// Gives back what [`Run::take`] took: the volume has ended, or is not begun with.
    pub(super) fn let_go(&self, restoration: &Restoration) {
        if let Some((key, _)) = self.claim_of(restoration) {
            self.state.lock().filling.remove(&key);
        }
    }

    /// Whether this restore may begin with a claim that it has taken. `pods`: those of the namespace, as they have been since.
    pub(super) async fn may_fill(
        &self,
        restoration: &Restoration,
        pods: &[RestoredPod],
    ) -> Result<bool, Failure> {
        let Some(claim) = &restoration.claim else {
            return Ok(true);
        };
        let target = self.target(&restoration.namespace);
        if let Some(user) = self.user(pods, target, claim) {
            let why = format!("pod {} is using claim {claim}", user.name_any());
            self.leave(restoration, why);
            return Ok(false);
        }
        let mut filled = self.is_filled_by_another(target, claim);
        let waited = pods
            .iter()
            .filter_map(|pod| match pod.use_of(claim, &self.uid) {
                Use::Waits(other) => Some(other),
                _ => None,
            });
        // The watch may be behind what a run that was cut off has made; what is filled has pods that wait.
        for other in waited.collect::<BTreeSet<_>>() {
            let of = ListParams::default().labels(&format!("{}={other}", label::RESTORE_UID));
            let volumes = self.context.api::<PodVolumeRestore>().list(&of).await?;
            let lost = [PodVolumePhase::Failed, PodVolumePhase::Canceled];
            filled |= volumes.items.iter().any(|volume| {
                self.is_for(volume, target, claim) && !lost.contains(&volume.phase())
            });
        }
        if filled {
            self.leave_to_others(restoration);
        }
        Ok(!filled)
    }

    pub(super) fn leave_to_others(&self, restoration: &Restoration) {
        let why = "another restore had its claim in hand, and did not fill it";
        self.leave(restoration, why.to_owned());
    }

    /// Does not begin with a claim. `why`: unless another restore fills it.
    fn leave(&self, restoration: &Restoration, why: String) {
        if let Some((key, _)) = self.claim_of(restoration) {
            self.state.lock().left.insert(key, why);
        }
    }

    /// Why this restore has left a claim to others, if it has.
    pub(super) fn why_left(&self, restoration: &Restoration) -> Option<String> {
        let (key, _) = self.claim_of(restoration)?;
        self.state.lock().left.get(&key).cloned()
    }

    /// The claim of a part of the plan: in the backup, and by one name in the cluster.
    fn claim_of(&self, restoration: &Restoration) -> Option<((String, String), String)> {
        let claim = restoration.claim.as_ref()?;
        let target = self.target(&restoration.namespace);
        let key = (restoration.namespace.clone(), claim.clone());
        Some((key, format!("{target}/{claim}")))
    }

    fn leave_claim(&self, namespace: &str, claim: &str) {
        Arc::make_mut(&mut self.plan.write()).leave_claim(namespace, claim);
    }

    /// A restore as the watch has it, or as it was met while the watch was behind.
    fn other(&self, uid: &str) -> Option<Arc<Restore>> {
        let is = |other: &Restore| other.uid().as_deref() == Some(uid);
        let known = self.context.stores.restores.find(is);
        match known {
            Some(known) if known.phase() != RestorePhase::New => Some(known),
            known => self.state.lock().met.get(uid).cloned().or(known),
        }
    }

    /// Another restore, while it is under way.
    fn running(&self, uid: &str) -> Option<Arc<Restore>> {
        let runs = |other: &Arc<Restore>| other.phase() == RestorePhase::InProgress;
        self.other(uid).filter(runs).filter(|_| uid != self.uid)
    }

    /// Whether another restore has been under way since this one began: what others did before is not what this one was to do.
    fn was_met(&self, uid: &str) -> bool {
        self.other(uid)
            .is_some_and(|other| meets(&other, self.started))
    }

    /// Whether other restores are under way.
    pub(super) fn has_company(&self) -> bool {
        let restores = &self.context.stores.restores;
        let is = |other: &Restore| {
            other.phase() == RestorePhase::InProgress && other.uid().as_ref() != Some(&self.uid)
        };
        let met: Vec<String> = self.state.lock().met.keys().cloned().collect();
        restores.find(is).is_some() || met.iter().any(|uid| self.running(uid).is_some())
    }

    /// Whether another restore fills the claim of this one, or is going to, as far as the watches have seen.
    pub(super) fn is_in_other_hands(&self, restoration: &Restoration) -> bool {
        let Some(claim) = &restoration.claim else {
            return false;
        };
        if self.is_taken_by_another(restoration) {
            return true;
        }
        if !self.has_company() {
            return false;
        }
        let target = self.target(&restoration.namespace);
        let has_waiters = self.has_waiters(restoration);
        let waits = |pod: &RestoredPod| {
            pod.namespace().as_deref() == Some(target)
                && self.waits_for_another(pod, target, claim, has_waiters)
        };
        self.is_filled_by_another(target, claim) || self.restored_pods.find(waits).is_some()
    }

    /// Whether another restore is at it now, and its own limits hold.
    pub(super) fn is_being_filled(&self, restoration: &Restoration) -> bool {
        let target = self.target(&restoration.namespace);
        let claim = restoration.claim.as_deref();
        claim.is_some_and(|claim| self.is_filled_by_another(target, claim))
    }

    fn is_taken_by_another(&self, restoration: &Restoration) -> bool {
        self.claim_of(restoration).is_some_and(|(key, name)| {
            CLAIMS.is_held(&name) && !self.state.lock().filling.contains_key(&key)
        })
    }

    fn is_filled_by_another(&self, target: &str, claim: &str) -> bool {
        let fills = |volume: &PodVolumeRestore| {
            let of = volume.labels().get(label::RESTORE_UID);
            self.is_for(volume, target, claim)
                && !volume.phase().is_terminal()
                && of.is_some_and(|of| self.running(of).is_some())
        };
        let volumes = &self.context.stores.pod_volume_restores;
        volumes.find(fills).is_some()
    }

    /// Whether the pod waits for another restore to fill the claim. Where both have pods that wait and neither has begun, the older one
    /// fills it.
    fn waits_for_another(
        &self,
        pod: &RestoredPod,
        target: &str,
        claim: &str,
        has_waiters: bool,
    ) -> bool {
        let Use::Waits(other) = pod.use_of(claim, &self.uid) else {
            return false;
        };
        match self.standing(other, target, claim) {
            Standing::Fills => true,
            Standing::Intends => self
                .running(other)
                .is_some_and(|other| !has_waiters || is_older(&other, self.restore)),
            Standing::Over | Standing::Lost => false,
        }
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
        let nobody = || {
            let why = self.why_left(restoration);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Progress::Lost(format!("the data of {what} was not restored{why}"))
        };
        let Some(claim) = &restoration.claim else {
            return Ok(nobody());
        };
        let target = self.target(&restoration.namespace);
        let has_waiters = self.has_waiters(restoration);
        let waits = |pod: &RestoredPod| self.waits_for_another(pod, target, claim, has_waiters);
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
            let by = volume.labels().get(label::RESTORE_UID);
            volume.labels().get(label::PVC_UID) == Some(&uid)
                && by.is_some_and(|by| *by != self.uid && self.was_met(by))
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

    /// A pod as the API server has it.
    pub(super) async fn pod_of(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Arc<RestoredPod>>, kube::Error> {
        let pods: Api<RestoredPod> = Api::namespaced(self.context.clients.call.clone(), namespace);
        let found = patiently(|| pods.get_opt(name)).await?;
        let found = found.filter(|found| found.metadata.uid.as_deref() == Some(uid));
        Ok(found.map(Arc::new))
    }

    pub(super) async fn pods_of(&self, namespace: &str) -> Result<Vec<RestoredPod>, kube::Error> {
        let pods: Api<RestoredPod> = Api::namespaced(self.context.clients.call.clone(), namespace);
        let all = ListParams::default();
        Ok(patiently(|| pods.list(&all)).await?.items)
    }
}

/// A pod that writes into a claim that `restore` is to fill, or may at any moment.
fn user<'p>(
    pods: &'p [RestoredPod],
    claim: &str,
    restore: &str,
    standing: impl Fn(&str) -> Standing,
) -> Option<&'p RestoredPod> {
    pods.iter().find(|pod| match pod.use_of(claim, restore) {
        Use::No => false,
        Use::Waits(other) => standing(other) == Standing::Over,
        Use::Leaving | Use::Writes => true,
    })
}

fn is_by(volume: &PodVolumeRestore, restore: &str) -> bool {
    let by = volume.labels().get(label::RESTORE_UID);
    by.is_some_and(|by| by == restore)
}

/// Whether a restore was under way at a time, or later. Times are whole seconds.
fn meets(restore: &Restore, time: Timestamp) -> bool {
    let status = restore.status.as_ref();
    let ended = status.and_then(|status| status.completion_timestamp.as_ref());
    restore.phase() == RestorePhase::InProgress || ended.is_some_and(|ended| ended.0 >= time)
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
    use crate::{context::unwatched::path, restore::run::idle::Idle};
    use serde_json::json;

    #[test]
    fn where_another_restore_stands_with_a_claim() {
        use PodVolumePhase::{Canceled, Completed, Failed, InProgress, New};
        for (runs, volumes, expected) in [
            (true, [].as_slice(), Standing::Intends),
            (true, &[New], Standing::Fills),
            // Handed over to another pod.
            (true, &[Failed, InProgress], Standing::Fills),
            (true, &[Completed, New], Standing::Fills),
            (true, &[Failed], Standing::Lost),
            (true, &[Failed, Canceled], Standing::Lost),
            // Its pods go on at any moment.
            (true, &[Completed], Standing::Over),
            (true, &[Failed, Completed], Standing::Over),
            (false, &[], Standing::Over),
            (false, &[New], Standing::Over),
            (false, &[Failed], Standing::Over),
        ] {
            assert_eq!(standing(runs, volumes), expected, "{runs} {volumes:?}");
        }
    }

    #[test]
    fn a_claim_is_not_filled_under_the_pods_of_another_restore() {
        let pod = |name: &str, restore: &str, exit: Option<i32>| -> RestoredPod {
            let state = exit.map_or(
                json!({"running": {}}),
                |exit| json!({"terminated": {"exitCode": exit}}),
            );
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"initContainers": [{"name": "restore-wait", "args": [restore]}],
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
                "status": {"phase": "Pending", "initContainerStatuses": [{"name": "restore-wait", "state": state}]}
            }))
            .unwrap()
        };
        let own = || pod("own", "r2", Some(0));
        for (other, stands, expected) in [
            (pod("waits", "r1", None), Standing::Intends, None),
            (pod("waits", "r1", None), Standing::Fills, None),
            (pod("waits", "r1", None), Standing::Lost, None),
            (pod("starts", "r1", None), Standing::Over, Some("starts")),
            (pod("runs", "r1", Some(0)), Standing::Over, Some("runs")),
            (pod("runs", "r1", Some(0)), Standing::Fills, Some("runs")),
        ] {
            let pods = [own(), other];
            let found = user(&pods, "c", "r2", |_| stands);
            assert_eq!(
                found.map(|pod| pod.name_any()).as_deref(),
                expected,
                "{stands:?}"
            );
            assert!(user(&pods, "d", "r2", |_| stands).is_none());
        }
    }

    #[test]
    fn only_restores_that_met_this_one_filled_its_claims() {
        let restore = |status: serde_json::Value| -> Restore {
            let object = json!({"metadata": {"name": "r"}, "spec": {}, "status": status});
            serde_json::from_value(object).unwrap()
        };
        let began = "2026-01-01T00:00:10Z".parse().unwrap();
        let ended = |second: &str| json!({"phase": "Completed", "completionTimestamp": format!("2026-01-01T00:00:{second}Z")});
        for (status, expected) in [
            (json!({"phase": "InProgress"}), true),
            (ended("09"), false),
            (ended("10"), true),
            (ended("11"), true),
            (json!({"phase": "New"}), false),
        ] {
            assert_eq!(meets(&restore(status.clone()), began), expected, "{status}");
        }
    }

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

    #[tokio::test]
    async fn a_restore_that_the_watch_does_not_know_yet_is_met() {
        let restore = |phase: &str| json!({"metadata": {"name": "other", "uid": "o"}, "spec": {}, "status": {"phase": phase}});
        let pod: RestoredPod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"velero.io/restore-name": "other"}},
            "spec": {"initContainers": [{"name": "restore-wait", "args": ["o"]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
        }))
        .unwrap();
        let pods = [pod];
        for (phase, expected) in [
            ("InProgress", Standing::Intends),
            ("Completed", Standing::Over),
        ] {
            let at = path("restores", "other");
            let idle = Idle::new(&[(&at, restore(phase))]);
            let run = idle.run();
            assert_eq!(run.standing("o", "n", "c"), Standing::Over);
            run.meet(&pods).await.unwrap();
            assert_eq!(run.standing("o", "n", "c"), expected);
            let free = expected == Standing::Intends;
            assert_eq!(run.user(&pods, "n", "c").is_none(), free, "{phase}");
            assert_eq!(run.has_company(), free, "{phase}");
        }
        let idle = Idle::new(&[]);
        let run = idle.run();
        run.meet(&pods).await.unwrap();
        assert_eq!(run.standing("o", "n", "c"), Standing::Over);
    }
}
