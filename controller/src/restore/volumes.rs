//! The data of the volumes: one PodVolumeRestore per claim or private volume, and the workloads that wait for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jackline_crds::{
    names::{FIELD_MANAGER, RESTORE_WAIT, label},
    velero::{PodVolumePhase, PodVolumeRestore, PodVolumeRestoreStatus},
};
use jackline_policy::{backup::absence, restore::volume::Restoration};
use jackline_runtime::{
    EventKind, Failure,
    status::{Guard, StatusAt, StatusError, write_status},
};
use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::{
    cluster::patiently,
    pods::RestoredPod,
    report::{Done, Place},
    run::{CATCH_UP, Held, Part, Run},
    say,
};
use crate::{
    agents,
    context::Context,
    stall::{Absence, Stall},
};

/// On a PodVolumeRestore: the claim that it fills.
pub const CLAIM: &str = jackline_crds::names::annotation::PVC_NAME;
/// How often time limits are looked at; changes are seen at once.
const TICK: Duration = Duration::from_secs(5);

/// Since when volumes have been held up, by the names of their PodVolumeRestores.
#[derive(Debug, Default)]
struct Delays {
    /// No agent is ready on the node.
    agentless: BTreeMap<String, Absence>,
    /// The agent has it in hand, and no data moves.
    stalls: BTreeMap<String, Stall>,
    /// The pod is on a node, and its waiter does not run.
    unstarted: Since,
    /// Pods that the watch was behind with, and when the API server was asked for them.
    asked: BTreeMap<String, (Instant, Option<Arc<RestoredPod>>)>,
    /// When another pod was last looked for that could carry the data.
    heirs: BTreeMap<String, Instant>,
}

/// Since when something stands, by name.
type Since = BTreeMap<String, tokio::time::Instant>;

/// For how long it has stood, if it stands now.
fn stood(since: &mut Since, name: String, stands: bool) -> Duration {
    if !stands {
        since.remove(&name);
        return Duration::ZERO;
    }
    let now = tokio::time::Instant::now;
    since.entry(name).or_insert_with(now).elapsed()
}

impl Delays {
    /// For how long the waiter of a volume's pod has not run. While it does, the volume waits for its turn at the agent, or is in hand.
    fn unstarted_for(&mut self, volume: &PodVolumeRestore, pod: &RestoredPod) -> Duration {
        let runs = volume.phase() == PodVolumePhase::InProgress || pod.is_waiting();
        stood(&mut self.unstarted, volume.name_any(), !runs)
    }

    /// Whether it is time again to ask the API server for another pod that could carry the data.
    fn may_list(&mut self, volume: &PodVolumeRestore) -> bool {
        let name = volume.name_any();
        let last = self.heirs.get(&name);
        let is_due = last.is_none_or(|last| last.elapsed() >= TICK);
        if is_due {
            self.heirs.insert(name, Instant::now());
        }
        is_due
    }
}

/// How the data of one volume is doing.
pub(super) enum Progress {
    Going,
    Back,
    Lost(String),
}

impl Run<'_> {
    /// Whether a volume restore is for this part of the plan.
    pub fn is_of(&self, volume: &PodVolumeRestore, restoration: &Restoration) -> bool {
        let target = self.target(&restoration.namespace);
        match &restoration.claim {
            Some(claim) => self.is_for(volume, target, claim),
            None => {
                let (pod, name) = &restoration.carrier;
                let of = &volume.spec.pod;
                of.namespace.as_deref() == Some(target)
                    && of.name.as_deref() == Some(pod)
                    && volume.spec.volume == *name
            }
        }
    }

    /// Waits for the data of a part, and makes each workload that waited as soon as its claims are filled. `false`: the restore was
    /// deleted.
    pub async fn volumes(&self, part: Part<'_>) -> Result<bool, Failure> {
        let deadline = self.deadline();
        let (mut waiting, mut others) = (Vec::<&Restoration>::new(), Vec::<&Restoration>::new());
        let begun = self.begun_or_known().await?;
        let plan = self.plan();
        let planned = plan.restorations.iter();
        let mut lost: BTreeSet<(String, String)> = self.state.lock().blocked.clone();
        for restoration in planned.filter(|planned| part.has(Some(&planned.namespace))) {
            if begun.iter().any(|volume| self.is_of(volume, restoration)) {
                waiting.push(restoration);
                continue;
            }
            let what = self.volume_of(restoration);
            let place = Place::Namespace(self.target(&restoration.namespace));
            // What was left to others: also when those have ended since.
            if self.why_left(restoration).is_some()
                || self.has_company()
                    && matches!(self.in_other_hands(restoration).await?, Progress::Going)
            {
                let why = format!("others have {what} in hand: its workloads wait for that");
                self.report.info(&why);
                // The log is there only when the restore is over.
                let normal = EventKind::Normal;
                say(self.context, self.restore, normal, "WaitsForAnother", why);
                others.push(restoration);
                continue;
            }
            // Pods that this restore made wait in vain. Why none was made has been said.
            if self.has_waiters(restoration) {
                self.report.error(
                    place,
                    &format!("the data of {what} was not restored: it has no PodVolumeRestore"),
                );
            }
            // Its workloads would find the claim empty, or without what was to come into it.
            if let Some(claim) = &restoration.claim {
                lost.insert((restoration.namespace.clone(), claim.clone()));
            }
        }
        let mut delays = Delays::default();
        // Volumes that another restore is to fill and has not begun with.
        let mut idle = Since::new();
        let limit = self.context.args.volume_progress_timeout.to_std();
        loop {
            let news = self.context.stores.pod_volume_restores.next_change();
            let pods = self.restored_pods.next_change();
            self.token.check()?;
            if self.is_deleted() {
                return Ok(false);
            }
            let (mut still, mut back) = (Vec::new(), Vec::new());
            for restoration in waiting {
                let progress = self.look(restoration, deadline, &mut delays).await?;
                if !matches!(progress, Progress::Going) {
                    self.let_go(restoration);
                }
                match progress {
                    Progress::Going => still.push(restoration),
                    Progress::Back => back.push(restoration),
                    Progress::Lost(why) => {
                        let place = Place::Namespace(self.target(&restoration.namespace));
                        self.report.error(place, &why);
                        if let Some(claim) = &restoration.claim {
                            lost.insert((restoration.namespace.clone(), claim.clone()));
                        }
                    }
                }
            }
            waiting = still;
            let mut still = Vec::new();
            for restoration in others {
                let what = self.volume_of(restoration);
                let stands = !self.is_being_filled(restoration);
                let late = deadline.is_some_and(|deadline| Instant::now() > deadline)
                    || stood(&mut idle, what.clone(), stands) > limit;
                match self.in_other_hands(restoration).await? {
                    Progress::Going if !late => still.push(restoration),
                    Progress::Going => {
                        let why = format!("timed out waiting for another restore to fill {what}");
                        self.settle_other(restoration, Progress::Lost(why), &mut lost);
                    }
                    progress => self.settle_other(restoration, progress, &mut lost),
                }
            }
            others = still;
            // Before our own workloads make pods.
            self.name_early_pods(&back).await?;
            let open = [waiting.as_slice(), others.as_slice()].concat();
            self.release(part, &open, &lost).await?;
            if open.is_empty() {
                break;
            }
            tokio::select! {
                () = news => {}
                () = pods => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        Ok(true)
    }

    /// Another restore has ended with a claim of this one.
    fn settle_other(
        &self,
        restoration: &Restoration,
        progress: Progress,
        lost: &mut BTreeSet<(String, String)>,
    ) {
        let place = Place::Namespace(self.target(&restoration.namespace));
        if let Progress::Lost(why) = progress {
            self.report.error(place, &why);
            if let Some(claim) = &restoration.claim {
                lost.insert((restoration.namespace.clone(), claim.clone()));
            }
        } else if self.has_waiters(restoration) {
            // The pods of the other run now: nothing may be put under them.
            let what = self.volume_of(restoration);
            let why = format!(
                "another restore filled {what} meanwhile: pods of it that this restore made wait in vain; delete and restore them again"
            );
            self.report.error(place, &why);
        }
    }

    /// The claims of a namespace that are not made.
    pub fn blocked_claims(&self, namespace: &str) -> Vec<String> {
        let state = self.state.lock();
        let blocked = state.blocked.iter();
        blocked
            .filter(|(of, _)| of == namespace)
            .map(|(_, claim)| claim.clone())
            .collect()
    }

    /// The volume of a part of the plan, for messages.
    pub fn volume_of(&self, restoration: &Restoration) -> String {
        let (pod, volume) = &restoration.carrier;
        let namespace = self.target(&restoration.namespace);
        format!("volume {volume} of pod {namespace}/{pod}")
    }

    /// What was begun, once the watch has caught up with what was just made.
    async fn begun_or_known(&self) -> Result<Vec<Arc<PodVolumeRestore>>, Failure> {
        let mut made = self.state.lock().begun.clone();
        loop {
            let all = self.context.stores.pod_volume_restores.wait_for(|store| {
                let seen = |name: &String| store.get(&self.context.key(name)).is_some();
                made.iter().all(seen).then_some(())
            });
            if tokio::time::timeout(CATCH_UP, all).await.is_ok() {
                return Ok(self.begun());
            }
            self.token.check()?;
            // One that was deleted at once never comes.
            let there = volumes_of(self.context, &self.uid).await?;
            made.retain(|name| there.iter().any(|volume| volume.name_any() == *name));
        }
    }

    pub(super) fn has_waiters(&self, restoration: &Restoration) -> bool {
        let state = self.state.lock();
        restoration.waiters.iter().any(|(pod, _)| {
            state
                .pods
                .contains_key(&(restoration.namespace.clone(), pod.clone()))
        })
    }

    /// Until when volumes and hooks may take, if that is limited.
    pub fn deadline(&self) -> Option<Instant> {
        let whole = self.valid.volume_timeout?;
        let gone = jiff::Timestamp::now()
            .duration_since(self.started)
            .unsigned_abs();
        Some(Instant::now() + whole.saturating_sub(gone))
    }

    async fn look(
        &self,
        restoration: &Restoration,
        deadline: Option<Instant>,
        delays: &mut Delays,
    ) -> Result<Progress, Failure> {
        let what = self.volume_of(restoration);
        let Some(volume) = self
            .begun()
            .into_iter()
            .find(|volume| self.is_of(volume, restoration))
        else {
            return Ok(Progress::Lost(format!(
                "the PodVolumeRestore of {what} was deleted"
            )));
        };
        let message = volume
            .status
            .as_ref()
            .and_then(|status| status.message.clone());
        let phase = volume.phase();
        if phase != PodVolumePhase::Completed
            && self.is_orphaned(restoration, &volume, delays).await?
            && self
                .hand_over(
                    restoration,
                    &volume,
                    phase.is_terminal() || delays.may_list(&volume),
                )
                .await?
        {
            return Ok(Progress::Going);
        }
        match phase {
            PodVolumePhase::Completed => return Ok(Progress::Back),
            // The agent may not have seen what it had done before it went.
            PodVolumePhase::Failed | PodVolumePhase::Canceled if self.is_back(restoration) => {
                return Ok(Progress::Back);
            }
            PodVolumePhase::Failed | PodVolumePhase::Canceled => {
                let why = message.unwrap_or_else(|| "no reason given".to_owned());
                return Ok(Progress::Lost(format!(
                    "pod volume restore failed: {what}: {why}"
                )));
            }
            _ => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            let why = "timed out waiting for all PodVolumeRestores to complete".to_owned();
            return self.lose(&volume, &why, format!("{why}: {what}")).await;
        }
        let status = volume.status.as_ref();
        let progress = status.and_then(|status| status.progress.as_ref());
        let limit = self.context.args.volume_progress_timeout.to_std();
        let stall = delays.stalls.entry(volume.name_any()).or_default();
        let obstacle = match stall.look(volume.phase(), progress, limit) {
            Some(why) => Some(why),
            None => self.obstacle(&volume, delays).await?,
        };
        match obstacle {
            Some(_) if self.is_back(restoration) => Ok(Progress::Back),
            Some(why) => {
                let text = format!("pod volume restore failed: {what}: {why}");
                self.lose(&volume, &why, text).await
            }
            None => Ok(Progress::Going),
        }
    }

    /// Gives a volume up; one that has ended by itself meanwhile is seen at the next look.
    async fn lose(
        &self,
        volume: &PodVolumeRestore,
        why: &str,
        text: String,
    ) -> Result<Progress, Failure> {
        self.token.check()?;
        Ok(match give_up(self.context, volume, why).await? {
            true => Progress::Lost(text),
            false => Progress::Going,
        })
    }

    /// Whether the pod that is to carry the data is gone, or over: evicted, or deleted. Where a pod has gone on with the data that is there,
    /// however the volume's object stands: nothing may be put under it.
    async fn is_orphaned(
        &self,
        restoration: &Restoration,
        volume: &PodVolumeRestore,
        delays: &mut Delays,
    ) -> Result<bool, Failure> {
        let of = &volume.spec.pod;
        let is = |pod: &RestoredPod| {
            pod.metadata.uid == of.uid && !pod.has_left() && !volume.phase().is_terminal()
        };
        if self.restored_pods.find(is).is_some() || self.is_back(restoration) {
            return Ok(false);
        }
        // The watch may be behind what was just made, or what an agent saw.
        let found = self.carrying_now(volume, delays).await?;
        Ok(!found.is_some_and(|pod| pod.may_wait() || self.has_data(&pod, restoration)))
    }

    /// The pod that is to carry the data as the API server has it, asked for only now and then.
    async fn carrying_now(
        &self,
        volume: &PodVolumeRestore,
        delays: &mut Delays,
    ) -> Result<Option<Arc<RestoredPod>>, Failure> {
        let asked = delays.asked.get(&volume.name_any());
        if let Some((_, pod)) = asked.filter(|(at, _)| at.elapsed() < TICK) {
            return Ok(pod.clone());
        }
        let of = &volume.spec.pod;
        let (Some(namespace), Some(name), Some(uid)) = (&of.namespace, &of.name, &of.uid) else {
            return Ok(None);
        };
        let found = self.pod_of(namespace, name, uid).await?;
        let now = (Instant::now(), found.clone());
        delays.asked.insert(volume.name_any(), now);
        Ok(found)
    }

    /// Whether the data of a volume has been seen by a pod of this restore, whatever became of that.
    fn is_back(&self, restoration: &Restoration) -> bool {
        let has_data = |pod: &RestoredPod| self.has_data(pod, restoration);
        self.restored_pods.find(has_data).is_some()
    }

    /// Whether a pod of this restore has seen the data of a volume, and gone on.
    pub fn has_data(&self, pod: &RestoredPod, restoration: &Restoration) -> bool {
        let waited = |(name, volume): &(String, String)| {
            *name == pod.name_any() && pod.awaited().any(|awaited| awaited == volume)
        };
        pod.namespace().as_deref() == Some(self.target(&restoration.namespace))
            && pod.waits_for() == Some(&self.uid)
            && pod.has_data()
            && restoration.waiters.iter().any(waited)
    }

    /// What keeps a volume from ever being filled.
    async fn obstacle(
        &self,
        volume: &PodVolumeRestore,
        delays: &mut Delays,
    ) -> Result<Option<String>, Failure> {
        let pod = self
            .restored_pods
            .find(|pod| pod.metadata.uid == volume.spec.pod.uid);
        let age = volume
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Duration::ZERO, |time| {
                jiff::Timestamp::now().duration_since(time.0).unsigned_abs()
            });
        let back = pod.as_ref().is_some_and(|pod| pod.has_data());
        let hinders = match pod {
            Some(pod) => self.hindrance(volume, &pod, age, delays).await?.is_some(),
            // The watch of pods may be behind what was just made.
            None => age > Duration::from_secs(30),
        };
        if !hinders {
            return Ok(None);
        }
        // Or further behind than that.
        match self.carrying_now(volume, delays).await? {
            // It has gone on, which the watch is about to see.
            Some(pod) if pod.has_data() && !back => Ok(None),
            Some(pod) => self.hindrance(volume, &pod, age, delays).await,
            None => Ok(Some("its pod is gone".to_owned())),
        }
    }

    /// What keeps a volume from ever being filled whose pod is there.
    async fn hindrance(
        &self,
        volume: &PodVolumeRestore,
        pod: &RestoredPod,
        age: Duration,
        delays: &mut Delays,
    ) -> Result<Option<String>, Failure> {
        let Some(node) = pod.spec.node_name.as_deref() else {
            let patience = self.context.args.resource_timeout.to_std();
            return Ok((age > patience).then(|| {
                let why = pod.unscheduled().unwrap_or("no reason given");
                format!("its pod was not scheduled in time: {why}")
            }));
        };
        let agent = agents::of_node(&self.context.stores.agents, node);
        let absence = delays.agentless.entry(volume.name_any()).or_default();
        let Some(away) = absence.look(agent) else {
            return Ok(self.unstarted(volume, pod, node, delays).await);
        };
        if !absence::is_late(agent, away) {
            return Ok(None);
        }
        let state = agents::node_state(&self.context.clients.call, node).await;
        let patience = absence::Patience {
            absent: absence::NODE_PATIENCE,
            unready: self.context.args.volume_progress_timeout.to_std(),
        };
        let give_up = |agent| absence::give_up(node, agent, state, away, patience);
        if give_up(agent).is_none() {
            return Ok(None);
        }
        // The watch may be behind.
        let agent = match agents::now_on(self.context, node).await {
            Ok(agents) => agents::of_node(&agents, node),
            Err(error) => {
                tracing::debug!(%error, node, "node agents cannot be listed");
                return Ok(None);
            }
        };
        if agent == absence::Agent::Ready {
            *absence = Absence::default();
        }
        Ok(give_up(agent))
    }

    /// A waiter that does not come up.
    async fn unstarted(
        &self,
        volume: &PodVolumeRestore,
        pod: &RestoredPod,
        node: &str,
        delays: &mut Delays,
    ) -> Option<String> {
        let limit = self.context.args.volume_progress_timeout.to_std();
        if delays.unstarted_for(volume, pod) < limit {
            return None;
        }
        let why = match pod.waiter_is_held() {
            Some(why) => why,
            None => self.last_warning(pod).await.unwrap_or_else(|| {
                "the kubelet gives no reason, the pod's events may tell".to_owned()
            }),
        };
        let limit = humantime::format_duration(limit);
        Some(format!(
            "init container {RESTORE_WAIT} of its pod has not started on node {node} for {limit}: {why}; restore the pod again when that \
             is mended, or set --volume-progress-timeout higher"
        ))
    }

    /// What the kubelet complained of last: volumes that cannot be mounted are in no status.
    async fn last_warning(&self, pod: &RestoredPod) -> Option<String> {
        let uid = pod.metadata.uid.as_deref()?;
        let client = self.context.clients.call.clone();
        let events: Api<Event> = Api::namespaced(client, &pod.namespace()?);
        let of_pod = format!("involvedObject.uid={uid},type=Warning");
        let found = events.list(&ListParams::default().fields(&of_pod)).await;
        // A courtesy: who may not list events has the pod's.
        let last = found.ok()?.items.into_iter().max_by_key(|event| {
            let last = event.last_timestamp.as_ref().map(|time| time.0);
            last.or_else(|| Some(event.event_time.as_ref()?.0))
        })?;
        let (reason, message) = (last.reason?, last.message?);
        Some(format!("{reason}: {message}"))
    }

    /// Makes the workloads of a part whose claims are all filled; names those that will not be made.
    async fn release(
        &self,
        part: Part<'_>,
        waiting: &[&Restoration],
        lost: &BTreeSet<(String, String)>,
    ) -> Result<(), Failure> {
        let open: BTreeSet<(&str, &str)> = waiting
            .iter()
            .filter_map(|restoration| {
                Some((
                    restoration.namespace.as_str(),
                    restoration.claim.as_deref()?,
                ))
            })
            .collect();
        let mut ready = Vec::new();
        {
            let mut state = self.state.lock();
            let held = std::mem::take(&mut state.held);
            for workload in held {
                let namespace = workload.item.namespace.clone().unwrap_or_default();
                let waits = workload
                    .claims
                    .iter()
                    .any(|claim| open.contains(&(namespace.as_str(), claim)));
                if waits || !part.has(Some(&namespace)) {
                    state.held.push(workload);
                } else {
                    ready.push(workload);
                }
            }
        }
        let order = &self.context.args.restore_resource_priorities;
        ready.sort_by(|a, b| {
            order
                .rank(&a.kind)
                .cmp(&order.rank(&b.kind))
                .then(a.kind.cmp(&b.kind))
        });
        if ready.is_empty() {
            return Ok(());
        }
        let made =
            |workload: &Held| Some((workload.kind.clone(), workload.item.namespace.clone()?));
        let made: BTreeSet<(String, String)> = ready.iter().filter_map(made).collect();
        let before = self.report.counts().1;
        for workload in ready {
            self.make(workload, lost).await?;
        }
        let failed = self.report.counts().1 != before;
        {
            let mut state = self.state.lock();
            for (kind, namespace) in made {
                match failed {
                    true => drop(state.failed.insert((kind, Some(namespace)))),
                    false => state.end_in(&kind, &namespace),
                }
            }
        }
        self.note_progress().await
    }

    async fn make(&self, workload: Held, lost: &BTreeSet<(String, String)>) -> Result<(), Failure> {
        let served = self.served.read().clone();
        let Some(resource) = served.get(&workload.kind) else {
            return Ok(());
        };
        let namespace = workload.item.namespace.clone().unwrap_or_default();
        let missing: Vec<&String> = workload
            .claims
            .iter()
            .filter(|claim| lost.contains(&(namespace.clone(), (*claim).clone())))
            .collect();
        let target = self.target(&namespace);
        if !missing.is_empty() {
            let (kind, name) = (&resource.api.kind, &workload.item.name);
            self.report.error(
                Place::Namespace(target),
                &format!(
                    "{kind} {name} was not restored: the data of its claims {missing:?} was not"
                ),
            );
            self.done(
                &resource.api.api_version,
                kind,
                Some(target),
                name,
                Done::Failed,
            );
            return Ok(());
        }
        // Whoever waits for one that is going has no memory in hand.
        self.namespace(&namespace).await?;
        match self.catalog.open(&workload.item).await {
            Ok((_room, object)) => {
                self.put(&workload.kind, resource, &workload.item, object)
                    .await
            }
            Err(why) => {
                self.report.error(Place::Namespace(target), &why);
                Ok(())
            }
        }
    }

    /// The entries of the volume info file (velero-compat §3.5).
    pub fn volume_info(&self) -> Vec<Value> {
        let begun = self.begun();
        let mut entries = Vec::new();
        let plan = self.plan();
        for restoration in &plan.restorations {
            let Some(volume) = begun.iter().find(|volume| self.is_of(volume, restoration)) else {
                continue;
            };
            let progress = volume
                .status
                .as_ref()
                .and_then(|status| status.progress.clone());
            let mut entry = json!({
                "restoreMethod": "PodVolumeRestore",
                "snapshotDataMoved": false,
                "pvrInfo": {
                    "snapshotHandle": volume.spec.snapshot_id,
                    "size": progress.map_or(0, |progress| progress.total_bytes),
                    "uploaderType": "restic",
                    "volumeName": volume.spec.volume,
                    "podName": volume.spec.pod.name,
                    "podNamespace": volume.spec.pod.namespace,
                    "Phase": volume.phase().to_string(),
                }
            });
            if let Some(claim) = &restoration.claim {
                let stored = self.catalog.find(
                    "persistentvolumeclaims",
                    Some(&restoration.namespace),
                    claim,
                );
                entry["pvcName"] = json!(claim);
                entry["pvcNamespace"] = json!(volume.spec.pod.namespace);
                entry["pvName"] =
                    stored.map_or(Value::Null, |stored| stored["spec"]["volumeName"].clone());
            }
            entries.push(entry);
        }
        entries
    }
}

/// The PodVolumeRestores of a restore as the API server has them.
///
/// # Errors
/// When it does not answer.
pub async fn volumes_of(
    context: &Context,
    restore: &str,
) -> Result<Vec<PodVolumeRestore>, kube::Error> {
    let of = ListParams::default().labels(&format!("{}={restore}", label::RESTORE_UID));
    patiently(|| context.fetch_all(&of)).await
}

/// Ends a volume restore that nobody will carry out, or that takes too long. `false`: it has ended by itself, or is gone. The agent
/// writes too, so it may take several looks.
///
/// # Errors
/// When the API server does not take it.
pub async fn give_up(
    context: &Context,
    volume: &PodVolumeRestore,
    why: &str,
) -> Result<bool, Failure> {
    let api = context.api::<PodVolumeRestore>();
    loop {
        let now = api.get_opt(&volume.name_any()).await?;
        let open = |now: &PodVolumeRestore| now.uid() == volume.uid() && !now.phase().is_terminal();
        let Some(now) = now.filter(open) else {
            return Ok(false);
        };
        let status = PodVolumeRestoreStatus {
            phase: Some(PodVolumePhase::Failed),
            message: Some(why.to_owned()),
            completion_timestamp: Some(Time(jiff::Timestamp::now())),
            ..now.status.clone().unwrap_or_default()
        };
        let (at, guard) = (StatusAt::Main, Guard::SameVersion);
        match write_status(&api, &now, &status, at, guard, FIELD_MANAGER).await {
            Err(StatusError::Api {
                source: kube::Error::Api(refusal),
                ..
            }) if refusal.is_conflict() => {}
            Err(StatusError::Gone(_)) => return Ok(false),
            written => return Ok(written.map(|_| true)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use jackline_runtime::Store;

    use super::*;
    use crate::{context::unwatched, restore::run::idle::Idle};

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_does_not_start_is_timed_until_it_runs() {
        let second = Duration::from_secs(1);
        let mut delays = Delays::default();
        let held = json!({"waiting": {"reason": "ErrImagePull", "message": "no"}});
        let again = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no"}});
        let runs = json!({"running": {}});
        for (phase, state, expected) in [
            ("New", &json!({}), 0),
            ("New", &held, 1),
            // The kubelet tries again and again: that is no progress.
            ("New", &again, 2),
            ("New", &held, 3),
            // Waits for its turn.
            ("New", &runs, 0),
            ("New", &held, 0),
            ("New", &held, 1),
            ("InProgress", &held, 0),
        ] {
            let volume: PodVolumeRestore = serde_json::from_value(json!({
                "metadata": {"name": "v"},
                "spec": {"pod": {}, "volume": "v", "backupStorageLocation": "d", "repoIdentifier": "", "snapshotID": "s",
                    "sourceNamespace": "n"},
                "status": {"phase": phase}
            }))
            .unwrap();
            let pod: RestoredPod = serde_json::from_value(json!({
                "metadata": {"name": "a"},
                "status": {"initContainerStatuses": [{"name": "restore-wait", "state": state}]}
            }))
            .unwrap();
            let stood = delays.unstarted_for(&volume, &pod);
            assert_eq!(stood, second * expected, "{phase} {state}");
            tokio::time::advance(second).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_given_up_for_what_the_api_server_says() {
        let pod = |spec: Value| json!({"metadata": {"name": "a", "namespace": "n", "uid": "a"}, "spec": spec});
        let known = |spec: Value| vec![serde_json::from_value::<RestoredPod>(pod(spec)).unwrap()];
        let (unscheduled, scheduled) = (json!({}), json!({"nodeName": "n1"}));
        let volume: PodVolumeRestore = serde_json::from_value(json!({
            "metadata": {"name": "v", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"pod": {"namespace": "n", "name": "a", "uid": "a"}, "volume": "v", "backupStorageLocation": "d",
                "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n"}
        }))
        .unwrap();
        let metadata =
            json!({"name": "agent", "namespace": "velero", "labels": {"name": "node-agent"}});
        let agent = json!({"metadata": metadata, "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let node = "node gone: node n1 is no longer in the cluster";
        let gone = "its pod is gone";
        let late = "its pod was not scheduled in time: no reason given";
        for (known, now, agents, expected) in [
            (vec![], Some(&scheduled), vec![agent.clone()], None),
            (vec![], None, vec![], Some(gone)),
            (
                known(unscheduled.clone()),
                Some(&scheduled),
                vec![agent.clone()],
                None,
            ),
            (
                known(unscheduled.clone()),
                Some(&unscheduled),
                vec![],
                Some(late),
            ),
            (known(unscheduled.clone()), None, vec![], Some(gone)),
            (
                known(scheduled.clone()),
                Some(&scheduled),
                vec![],
                Some(node),
            ),
            (
                known(scheduled.clone()),
                Some(&scheduled),
                vec![agent],
                None,
            ),
        ] {
            let agents = unwatched::list(&agents);
            let mut objects = vec![("/api/v1/namespaces/velero/pods", agents)];
            let now = now.map(|spec| pod(spec.clone()));
            objects.extend(now.map(|now| ("/api/v1/namespaces/n/pods/a", now)));
            let mut idle = Idle::new(&objects);
            idle.pods = Store::fixed(known);
            let (run, mut delays) = (idle.run(), Delays::default());
            let mut last = None;
            for _ in 0..2 {
                last = run.obstacle(&volume, &mut delays).await.unwrap();
                tokio::time::advance(absence::NODE_PATIENCE).await;
            }
            assert_eq!(last.as_deref(), expected);
        }
    }
}
