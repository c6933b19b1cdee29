//! The volumes of a backup: hooks before, PodVolumeBackups, waiting for the agents, hooks after.
//!
//! Every pod goes its own way, so a slow one holds up nobody but those that were wished for behind it. Nothing is polled: the agents'
//! progress comes by watch.

mod block;
mod create;
mod successor;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use jackline_crds::{
    names::{annotation, label},
    velero::{
        Backup, BackupPhase, BackupRepository, HookStatus, PodVolumeBackup, PodVolumePhase,
        VOLUME_EMPTY,
    },
};
use jackline_policy::backup::{
    absence,
    object::ObjectRef,
    volume_policy::VolumePolicies,
    volumes::{ClaimFacts, Level, Mode, Note, PodVolumes, Selected, Wanted, select},
};
use jackline_runtime::{Failure, Store};
use kube::{ResourceExt, api::ListParams};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    holds::Held,
    hooks,
    job::{Job, JobError, timeout},
    log::BackupLog,
    newest,
    outcome::{self, Outcome},
};
use crate::{
    agents::{self, AgentPod},
    collect::{Facts, PodFacts},
    context::Context,
    repository,
    stall::{Absence, Stall},
};
use block::Member;
use successor::Successor;

const PODS: &str = "pods";
/// Requests about volumes that are under way at once.
const PARALLEL: usize = 16;
/// How long the policy half may take to say what a policy governs.
const GOVERNED_PATIENCE: Duration = Duration::from_secs(60);
/// Why volumes are given up when the time that the user has set is over, in Velero's words.
const LATE: &str = "timed out waiting for all PodVolumeBackups to complete";
/// How often it is looked (in memory) whether the agent of an unfinished volume is still there.
const AGENT_CHECK: Duration = Duration::from_secs(15);
/// How often the API server is asked for a volume of which the watch does not tell.
const UNSEEN: Duration = Duration::from_secs(120);

/// A volume to move, and what is known of its claim.
type Chosen = (Selected, Option<ClaimFacts>);

/// What is to be done about volumes.
#[derive(Debug)]
pub(super) struct Plan {
    pods: Vec<Arc<PodFacts>>,
    chosen: BTreeMap<usize, Vec<Chosen>>,
    notes: Vec<Note>,
    /// Objects, pods among them, that `orderedResources` names.
    in_order: Vec<ObjectRef>,
}

/// How the volumes of a backup are chosen.
pub(super) async fn mode(context: &Context, backup: &Backup) -> Mode {
    let policy = backup.annotations().get(annotation::POLICY);
    if let (Some(policy), Some(governed)) = (policy, context.governed.get()) {
        let asked = tokio::time::timeout(GOVERNED_PATIENCE, governed.volumes(policy)).await;
        if let Ok(Some(volumes)) = asked {
            let wanted = volumes.into_iter().map(|volume| Wanted {
                namespace: volume.namespace,
                pod: volume.pod,
                volume: volume.volume,
                claim: volume.claim,
            });
            return Mode::Governed(wanted.collect());
        }
        // The policy is gone: what it annotated is what it wanted.
    }
    match backup.spec.default_volumes_to_fs_backup {
        Some(true) => Mode::OptOut,
        _ => Mode::OptIn,
    }
}

impl Plan {
    /// Chooses volumes and their carriers.
    pub(super) fn new(
        agents: &Store<AgentPod>,
        facts: &Facts,
        mode: &Mode,
        policies: &VolumePolicies,
        claims_stored: bool,
        in_order: Vec<ObjectRef>,
    ) -> Self {
        let mut facts_of: Vec<Arc<PodFacts>> = facts.pods.values().cloned().collect();
        facts_of.sort_by_cached_key(|pod| {
            let volumes = &pod.volumes;
            (volumes.namespace.clone(), volumes.name.clone())
        });
        let pods: Vec<&PodVolumes> = facts_of.iter().map(|pod| &pod.volumes).collect();
        let agents: BTreeSet<String> = agents::nodes(agents);
        let selection = select(
            &pods,
            mode,
            policies,
            claims_stored,
            &|namespace, claim| facts.claim(namespace, claim),
            &|node| agents.contains(node),
        );
        let mut chosen: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for volume in selection.volumes {
            let namespace = pods
                .get(volume.pod)
                .map(|pod| pod.namespace.as_str())
                .unwrap_or_default();
            let claim = volume
                .claim
                .as_deref()
                .and_then(|claim| facts.claim(namespace, claim));
            chosen.entry(volume.pod).or_default().push((volume, claim));
        }
        Self {
            pods: facts_of,
            chosen,
            notes: selection.notes,
            in_order,
        }
    }

    /// What an earlier pass has begun goes on as it was: a claim is not read once more because another pod would be elected now. Gives what
    /// is to be waited for without its pod, which has gone.
    fn resume(&mut self, known: &[Arc<PodVolumeBackup>]) -> Vec<(PodFacts, Chosen)> {
        let claim_of = |volume: &PodVolumeBackup| volume.labels().get(label::PVC_UID).cloned();
        let begun: BTreeMap<String, &Arc<PodVolumeBackup>> = known
            .iter()
            .filter_map(|volume| Some((claim_of(volume)?, volume)))
            .collect();
        let mut claims: BTreeMap<String, ClaimFacts> = BTreeMap::new();
        for (index, chosen) in &mut self.chosen {
            let uid = self.pods.get(*index).map(|pod| &pod.volumes.uid);
            chosen.retain(|(selected, claim)| {
                let other = claim.as_ref().and_then(|claim| begun.get(&claim.uid));
                let same = other.is_none_or(|volume| {
                    volume.spec.pod.uid.as_ref() == uid && volume.spec.volume == selected.volume
                });
                if let (false, Some(claim)) = (same, claim) {
                    claims.insert(claim.uid.clone(), claim.clone());
                }
                same
            });
        }
        let mut gone = Vec::new();
        for volume in known {
            let uid = volume.spec.pod.uid.as_deref().unwrap_or_default();
            let index = self.pods.iter().position(|pod| pod.volumes.uid == uid);
            let chosen = index.and_then(|index| self.chosen.get(&index));
            let mut chosen = chosen.into_iter().flatten();
            if chosen.any(|(selected, _)| selected.volume == volume.spec.volume) {
                continue;
            }
            let claim = claim_of(volume).map(|uid| {
                let ancestor = volume.annotations().get(annotation::ANCESTOR_CLAIM_UID);
                claims.remove(&uid).unwrap_or_else(|| ClaimFacts {
                    uid,
                    ancestor: ancestor.cloned(),
                    ..ClaimFacts::default()
                })
            });
            let selected = Selected {
                pod: index.unwrap_or_default(),
                volume: volume.spec.volume.clone(),
                claim: volume.annotations().get(annotation::PVC_NAME).cloned(),
            };
            match index {
                Some(index) => {
                    let chosen = self.chosen.entry(index).or_default();
                    chosen.push((selected, claim));
                }
                None => gone.push((PodFacts::gone(volume), (selected, claim))),
            }
        }
        gone
    }

    /// The pod's place among those that go one after the other.
    fn turn(&self, pod: &PodFacts) -> Option<usize> {
        let pod = pod_ref(pod);
        self.in_order.iter().position(|wanted| *wanted == pod)
    }
}

fn pod_ref(pod: &PodFacts) -> ObjectRef {
    ObjectRef {
        resource: PODS.to_owned(),
        namespace: Some(pod.volumes.namespace.clone()),
        name: pod.volumes.name.clone(),
    }
}

/// What became of the volumes.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// Their objects, by namespace, pod and volume.
    pub(super) objects: Vec<Arc<PodVolumeBackup>>,
    /// Those that were wanted and are not moved.
    pub(super) skipped: Vec<Note>,
    /// How many hooks ran.
    pub(super) hooks: HookStatus,
    /// UIDs of the pods that they ran in.
    pub(super) hooked: Vec<String>,
}

impl Volumes {
    /// How many were moved.
    pub(super) fn completed(&self) -> usize {
        self.objects
            .iter()
            .filter(|volume| volume.phase() == PodVolumePhase::Completed)
            .count()
    }
}

/// A PodVolumeBackup. The watch may still know another of its name: that of an earlier backup of the same name and pods.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    name: String,
    uid: String,
}

impl Identity {
    fn of(volume: &PodVolumeBackup) -> Self {
        Self {
            name: volume.name_any(),
            uid: volume.uid().unwrap_or_default(),
        }
    }

    fn is(&self, volume: &PodVolumeBackup) -> bool {
        volume.metadata.uid.as_deref() == Some(&self.uid)
    }

    /// As the watch knows it.
    fn seen(&self, context: &Context) -> Option<Arc<PodVolumeBackup>> {
        let volumes = &context.stores.pod_volume_backups;
        let found = volumes.get(&context.key(&*self.name));
        found.filter(|found| self.is(found))
    }
}

/// What an agent has made of a volume: what is to be known of one that is complete, or why it is not.
fn end_of(volume: &PodVolumeBackup) -> Result<Option<String>, String> {
    let message = volume
        .status
        .as_ref()
        .and_then(|status| status.message.clone());
    match volume.phase() {
        PodVolumePhase::Completed => Ok(message.filter(|message| message != VOLUME_EMPTY)),
        phase => Err(message.unwrap_or_else(|| format!("phase {phase}"))),
    }
}

type Ready = Shared<BoxFuture<'static, Result<Arc<BackupRepository>, Arc<str>>>>;

/// Shared by the ways of all pods.
struct Work<'a> {
    job: &'a Job<'a>,
    log: &'a BackupLog,
    uid: String,
    known: Vec<Arc<PodVolumeBackup>>,
    repositories: HashMap<String, Ready>,
    requests: Semaphore,
    /// When the time that the user has set is over.
    deadline: Option<Instant>,
    late: AtomicBool,
    /// Objects of other backups that were being read when this began, by the UID of the claim: nobody may hold it for them yet.
    foreign: HashMap<String, Vec<Identity>>,
    /// What became of hooks, by the UID of the pod.
    outcomes: Mutex<BTreeMap<String, Outcome>>,
    /// Pods through which a claim could not be read, by the claim's namespace and name.
    tried: Mutex<BTreeMap<(String, String), BTreeSet<String>>>,
}

/// Does everything about the volumes. `leave_out` is told the pods whose hooks forbid to store them.
pub(super) async fn run(
    job: &Job<'_>,
    planned: oneshot::Receiver<Plan>,
    leave_out: oneshot::Sender<Vec<ObjectRef>>,
) -> Result<Volumes, JobError> {
    let log = job.log;
    // Without a plan nothing was collected, and whoever failed at that says so.
    let Ok(mut plan) = planned.await else {
        return Ok(Volumes::default());
    };
    for note in &plan.notes {
        let fields = [
            ("resource", PODS),
            ("namespace", note.namespace.as_str()),
            ("name", note.pod.as_str()),
        ];
        match note.level {
            Level::Info => log.info(&note.message, &fields),
            Level::Warning => log.warning(&note.message, &fields),
            Level::Error => log.error(&note.message, &fields),
        }
    }
    let uid = job.backup.uid().unwrap_or_default();
    // What an earlier leader made just before it went, the watch may not have told of.
    let known = made_for(job.context, &uid).await?;
    let gone = plan.resume(&known);
    let mut chosen = std::mem::take(&mut plan.chosen);
    let mut namespaces: BTreeSet<String> = chosen
        .keys()
        .filter_map(|&pod| plan.pods.get(pod))
        .map(|pod| pod.volumes.namespace.clone())
        .collect();
    let namespace = |volume: &Arc<PodVolumeBackup>| volume.spec.pod.namespace.clone();
    namespaces.extend(known.iter().filter_map(namespace));
    job.touched.lock().extend(namespaces.iter().cloned());
    let work = Work {
        job,
        log,
        repositories: namespaces
            .into_iter()
            .map(|name| (name.clone(), ready(job, name)))
            .collect(),
        uid: uid.clone(),
        known,
        requests: Semaphore::new(PARALLEL),
        deadline: deadline(job),
        late: AtomicBool::new(false),
        foreign: foreign(job.context, &uid),
        outcomes: Mutex::default(),
        tried: Mutex::default(),
    };
    let (verdict, mut verdicts) = mpsc::unbounded_channel();
    let mut ways = FuturesUnordered::new();
    let mut in_turn = Vec::new();
    let mut members = Vec::new();
    for (index, pod) in plan.pods.iter().enumerate() {
        let chosen = chosen.remove(&index).unwrap_or_default();
        let hooks = hooks::of(pod, job.backup.spec.hooks.as_ref());
        if !chosen.is_empty() || !hooks.is_empty() {
            members.push(Member { pod, hooks, chosen });
        }
    }
    let hooked = members.iter().filter(|one| !one.hooks.is_empty()).count();
    for mut members in block::together(members) {
        // In the order that is wished for, then by name.
        members.sort_by_key(|member| plan.turn(member.pod).unwrap_or(usize::MAX));
        let turns = members.iter().filter_map(|member| plan.turn(member.pod));
        let turn = turns.min();
        let way = work.block(members, verdict.clone()).boxed();
        match turn {
            Some(turn) => in_turn.push((turn, way)),
            None => ways.push(way),
        }
    }
    drop(verdict);
    for (pod, chosen) in &gone {
        ways.push(async { work.all(pod, &[chosen]).await }.boxed());
    }
    in_turn.sort_by_key(|(turn, _)| *turn);
    let one_by_one = async {
        for (_, way) in in_turn {
            way.await;
        }
    };
    ways.push(one_by_one.boxed());
    let tell = async {
        let mut forbidden = Vec::new();
        for _ in 0..hooked {
            match verdicts.recv().await {
                Some(pod) => forbidden.extend(pod),
                None => break,
            }
        }
        // The other side has gone when the backup is being given up.
        let _ = leave_out.send(forbidden);
    };
    let all = async { while ways.next().await.is_some() {} };
    tokio::join!(tell, all);
    drop(ways);
    let outcomes = work.outcomes.into_inner();
    let mut hooks = HookStatus::default();
    for outcome in outcomes.values() {
        hooks.hooks_attempted += outcome.attempted;
        hooks.hooks_failed += i32::try_from(outcome.errors.len()).unwrap_or(i32::MAX);
    }
    Ok(Volumes {
        objects: of_backup(job.context, &uid),
        skipped: plan.notes,
        hooks,
        hooked: outcomes.into_keys().collect(),
    })
}

/// Whether an object belongs to the backup of this UID.
pub(super) fn is_of(volume: &PodVolumeBackup, uid: &str) -> bool {
    let owner = volume.labels().get(label::BACKUP_UID);
    owner.is_some_and(|owner| owner == uid)
}

/// The objects of a backup that the watch knows, by namespace, pod and volume.
pub(super) fn of_backup(context: &Context, uid: &str) -> Vec<Arc<PodVolumeBackup>> {
    let volumes = &context.stores.pod_volume_backups;
    in_order(volumes.filter(|volume| is_of(volume, uid)))
}

/// The same as the API server has them now. `uid` is that of a Backup that was read, not what somebody has written.
pub(super) async fn made_for(
    context: &Context,
    uid: &str,
) -> Result<Vec<Arc<PodVolumeBackup>>, kube::Error> {
    let which = ListParams::default().labels(&format!("{}={uid}", label::BACKUP_UID));
    let found = context.fetch_all::<PodVolumeBackup>(&which).await?;
    let found = found.into_iter().filter(|volume| is_of(volume, uid));
    Ok(in_order(found.map(Arc::new).collect()))
}

fn in_order(mut found: Vec<Arc<PodVolumeBackup>>) -> Vec<Arc<PodVolumeBackup>> {
    found.sort_by_cached_key(|volume| {
        let pod = &volume.spec.pod;
        (
            pod.namespace.clone(),
            pod.name.clone(),
            volume.spec.volume.clone(),
            volume.name_any(),
        )
    });
    found
}

/// The objects of other backups that go on and have not read their claims to the end, by the UID of the claim.
fn foreign(context: &Context, uid: &str) -> HashMap<String, Vec<Identity>> {
    let going = context.stores.backups.filter(|backup| {
        backup.phase() == BackupPhase::InProgress && backup.uid().is_some_and(|it| it != uid)
    });
    let going: BTreeSet<String> = going.iter().filter_map(|backup| backup.uid()).collect();
    let read = context.stores.pod_volume_backups.filter(|volume| {
        let owner = volume.labels().get(label::BACKUP_UID);
        !volume.phase().is_terminal() && owner.is_some_and(|owner| going.contains(owner))
    });
    let mut found: HashMap<String, Vec<Identity>> = HashMap::new();
    for volume in read {
        if let Some(claim) = volume.labels().get(label::PVC_UID) {
            let volumes = found.entry(claim.clone()).or_default();
            volumes.push(Identity::of(&volume));
        }
    }
    found
}

/// The repository of a namespace, asked for once and awaited by many.
fn ready(job: &Job<'_>, namespace: String) -> Ready {
    let (context, location) = (job.context.clone(), job.location.clone());
    let ensure = async move {
        let ready = repository::ensure(&context, &location, &namespace).await;
        ready.map_err(|error| Arc::from(error.to_string()))
    };
    ensure.boxed().shared()
}

/// When the volumes' time is over, if it is limited; it began with the backup.
fn deadline(job: &Job<'_>) -> Option<Instant> {
    let whole = timeout(job.context, job.backup)?;
    let started = job
        .backup
        .status
        .as_ref()
        .and_then(|status| status.start_timestamp.clone());
    let passed = started.map_or(Duration::ZERO, |started| {
        Duration::try_from(jiff::Timestamp::now().duration_since(started.0)).unwrap_or_default()
    });
    Some(Instant::now() + whole.saturating_sub(passed).max(Duration::from_secs(1)))
}

/// At the deadline, if there is one.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Work<'_> {
    /// A claim for this backup alone, when what others had begun before a restart has been read.
    async fn claim(&self, uid: &str) -> Held {
        let held = self.job.holds.hold(uid).await;
        for volume in self.foreign.get(uid).into_iter().flatten() {
            if volume.seen(self.job.context).is_some() {
                // Its own backup says how it ended.
                let _ = self.ended(volume).await;
            }
        }
        held
    }

    /// Takes note of what became of hooks of a pod, also for a pass that begins anew.
    async fn keep(&self, pod: &PodFacts, later: Outcome) {
        let uid = &pod.volumes.uid;
        let whole = {
            let mut outcomes = self.outcomes.lock();
            let whole = outcomes.entry(uid.clone()).or_default();
            whole.add(later);
            whole.clone()
        };
        let job = self.job;
        let keep = async {
            newest(job.context, job.backup, job.token).await?;
            Ok::<_, Failure>(outcome::keep(job.context, job.backup, uid, &whole).await?)
        };
        if let Err(error) = keep.await {
            tracing::warn!(%error, pod = pod.volumes.name, "what became of its hooks is not kept");
        }
    }

    /// Takes note of what an earlier pass found.
    fn recall(&self, pod: &PodFacts, kept: Outcome) {
        for why in &kept.errors {
            hooks::failed(pod, why, self.log);
        }
        self.outcomes.lock().insert(pod.volumes.uid.clone(), kept);
    }

    /// The same, with what others have found since.
    async fn recall_now(&self, pod: &PodFacts) {
        let (job, uid) = (self.job, &pod.volumes.uid);
        let kept = match outcome::now(job.context, job.backup, uid).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "a Backup cannot be looked at");
                outcome::of(job.backup, uid)
            }
        };
        if let Some(kept) = kept {
            self.recall(pod, kept);
        }
    }

    /// Moves volumes of a pod at once; each claim is taken first, and one whose pod has gone is read through another.
    async fn all(&self, pod: &PodFacts, chosen: &[&Chosen]) {
        let moves = chosen.iter().map(|(selected, claim)| {
            let one = async move {
                if let Some(gone) = self.volume(pod, selected, claim.as_ref(), true).await {
                    self.succeed(pod, gone).await;
                }
            };
            one.boxed()
        });
        futures::future::join_all(moves).await;
    }

    /// The object of a volume that was there when the backup was resumed.
    fn known(&self, pod: &PodFacts, selected: &Selected) -> Option<&Arc<PodVolumeBackup>> {
        self.known.iter().find(|volume| {
            volume.spec.pod.uid.as_deref() == Some(pod.volumes.uid.as_str())
                && volume.spec.volume == selected.volume
        })
    }

    /// Moves one volume, and says what went wrong; gives it back where its pod may have gone. `hold`: its claim has to be taken first.
    async fn volume<'a>(
        &self,
        pod: &PodFacts,
        selected: &'a Selected,
        claim: Option<&'a ClaimFacts>,
        hold: bool,
    ) -> Option<Gone<'a>> {
        let fields = fields(pod, selected);
        match self.moved(pod, selected, claim, hold).await {
            Ok(()) => {}
            Err(Problem::NeverBegan { volume, why }) => {
                return Some(Gone {
                    selected,
                    claim,
                    volume,
                    why,
                });
            }
            Err(Problem::Failed(why)) => self.log.error(&failed(&why), &fields),
            Err(Problem::NotBegun(why)) => self.log.error(&why, &fields),
            Err(Problem::Late) if self.late.swap(true, Ordering::Relaxed) => {
                self.log.info("not completed in time", &fields);
            }
            Err(Problem::Late) => self.log.error(LATE, &fields),
        }
        None
    }

    /// A volume that was not begun because of its pod is read through another that mounts its claim, with that pod's hooks.
    fn succeed<'a>(&'a self, pod: &'a PodFacts, gone: Gone<'a>) -> BoxFuture<'a, ()> {
        let next = async move {
            let Gone {
                selected,
                claim,
                volume: unread,
                why,
            } = gone;
            let fields = fields(pod, selected);
            let context = self.job.context;
            let claim_name = selected.claim.clone().unwrap_or_default();
            let tried = {
                let key = (pod.volumes.namespace.clone(), claim_name.clone());
                let mut tried = self.tried.lock();
                let tried = tried.entry(key).or_default();
                tried.insert(pod.volumes.uid.clone());
                tried.clone()
            };
            let found = tokio::select! {
                found = successor::of(context, pod, selected.claim.as_deref(), &tried, &self.requests) => found,
                () = at(self.deadline) => Successor::Unable(LATE.to_owned()),
            };
            match found {
                Successor::Pod(next, volume, others) => {
                    let through = &next.volumes.name;
                    let message =
                        format!("{why}; claim {claim_name} is read through pod {through} instead");
                    self.log.warning(&message, &fields);
                    successor::forget(self.job, &unread).await;
                    let chosen = (volume, claim.cloned());
                    self.instead(&next, &others, chosen).await;
                }
                Successor::Nobody => {
                    let nobody = match &selected.claim {
                        Some(claim) => format!(", and no other mounts claim {claim}"),
                        None => String::new(),
                    };
                    let message = format!(
                        "{why}: the pod has gone or ended before volume {} was begun{nobody}; it is not in this backup",
                        selected.volume
                    );
                    self.log.warning(&message, &fields);
                }
                Successor::Late(next) => {
                    let message = format!(
                        "{why}; pod {next}, which mounts claim {claim_name}, did not run in time; the claim is not in this backup"
                    );
                    self.log.warning(&message, &fields);
                }
                Successor::Same => self.log.error(&failed(&why), &fields),
                Successor::Unable(more) => {
                    self.log.error(&failed(&format!("{why}; {more}")), &fields);
                }
            }
        };
        next.boxed()
    }

    /// Moves volumes of a pod at once, whose claims are held; gives those whose pod may have gone.
    async fn each<'a>(&self, pod: &PodFacts, chosen: &[&'a Chosen]) -> Vec<Gone<'a>> {
        let moves = chosen
            .iter()
            .map(|(selected, claim)| self.volume(pod, selected, claim.as_ref(), false).boxed());
        let gone = futures::future::join_all(moves).await;
        gone.into_iter().flatten().collect()
    }

    async fn moved(
        &self,
        pod: &PodFacts,
        selected: &Selected,
        claim: Option<&ClaimFacts>,
        hold: bool,
    ) -> Result<(), Problem> {
        let known = self.known(pod, selected);
        let _held = match (claim, known) {
            (Some(claim), Some(_)) => self.job.holds.try_hold(&claim.uid),
            (Some(claim), None) if hold => tokio::select! {
                held = self.claim(&claim.uid) => Some(held),
                () = at(self.deadline) => return Err(Problem::Late),
            },
            _ => None,
        };
        let volume = match known {
            Some(known) => Identity::of(known),
            None => {
                let ready = self.repositories.get(&pod.volumes.namespace).cloned();
                let ready = ready.ok_or_else(|| Problem::NotBegun("no repository".to_owned()))?;
                let repository = ready
                    .await
                    .map_err(|why| Problem::NotBegun(why.to_string()))?;
                let _permit = self.requests.acquire().await;
                self.job
                    .token
                    .check()
                    .map_err(|error| Problem::NotBegun(error.to_string()))?;
                create::create(self.job, &self.uid, &repository, pod, selected, claim)
                    .await
                    .map_err(|error| {
                        Problem::NotBegun(format!("PodVolumeBackup cannot be made: {error}"))
                    })?
            }
        };
        tokio::select! {
            result = self.ended(&volume) => result.map(|remark| {
                if let Some(remark) = remark {
                    self.log.warning(&remark, &fields(pod, selected));
                }
            }).map_err(|why| {
                let seen = volume.seen(self.job.context);
                let status = seen.and_then(|seen| seen.status.clone());
                let began = status.is_none_or(|status| status.start_timestamp.is_some());
                match began {
                    true => Problem::Failed(why),
                    false => Problem::NeverBegan { volume: volume.clone(), why },
                }
            }),
            () = at(self.deadline) => {
                self.stop(&volume, LATE).await;
                Err(Problem::Late)
            }
        }
    }

    /// Waits until the agent has ended a volume. Gives what is to be known of one that is complete.
    async fn ended(&self, wanted: &Identity) -> Result<Option<String>, String> {
        let context = self.job.context;
        let store = &context.stores.pod_volume_backups;
        let deleted = || format!("PodVolumeBackup {} was deleted", wanted.name);
        let mut seen = false;
        let mut asked = Instant::now();
        let mut absence = Absence::default();
        let mut stall = Stall::default();
        let limit = context.args.volume_progress_timeout.to_std();
        loop {
            let end = store.wait_for(|_| match wanted.seen(context) {
                Some(volume) => {
                    seen = true;
                    volume.phase().is_terminal().then_some(Some(volume))
                }
                // The watch may not have told of it yet.
                None => seen.then_some(None),
            });
            match tokio::time::timeout(AGENT_CHECK.min(limit / 2), end).await {
                Ok(Some(volume)) => return end_of(&volume),
                Ok(None) => return Err(deleted()),
                Err(_) => {}
            }
            let volume = match wanted.seen(context) {
                Some(volume) => volume,
                None if asked.elapsed() < UNSEEN => continue,
                None => {
                    asked = Instant::now();
                    let _permit = self.requests.acquire().await;
                    match context.fetch::<PodVolumeBackup>(&wanted.name).await {
                        Ok(Some(now)) if wanted.is(&now) => Arc::new(now),
                        Ok(_) => return Err(deleted()),
                        Err(_) => continue,
                    }
                }
            };
            if volume.phase().is_terminal() {
                return end_of(&volume);
            }
            let status = volume.status.as_ref();
            let progress = status.and_then(|status| status.progress.as_ref());
            if let Some(why) = stall.look(volume.phase(), progress, limit) {
                self.stop(wanted, &why).await;
                return Err(why);
            }
            let node = volume.spec.node.clone();
            let agent = agents::of_node(&context.stores.agents, &node);
            let Some(away) = absence.look(agent) else {
                continue;
            };
            if !absence::is_late(agent, away) {
                continue;
            }
            let state = agents::node_state(&context.clients.call, &node).await;
            let patience = absence::Patience {
                absent: context.args.resource_timeout.to_std(),
                unready: limit,
            };
            let give_up = |agent| absence::give_up(&node, agent, state, away, patience);
            if give_up(agent).is_none() {
                continue;
            }
            // One that is there may be what the watch has not told of.
            let agent = match agents::now_on(context, &node).await {
                Ok(agents) => agents::of_node(&agents, &node),
                Err(error) => {
                    tracing::debug!(%error, node, "node agents cannot be listed");
                    continue;
                }
            };
            if let Some(why) = give_up(agent) {
                create::give_up(self.job, wanted, &why).await;
                self.is_over(wanted).await;
                return Err(why);
            }
        }
    }

    /// Asks the agent to stop. One that hangs is not waited for, nor one that cannot know: definitions of Velero up to 1.16 have no
    /// `cancel`.
    async fn stop(&self, volume: &Identity, why: &str) {
        create::cancel(self.job, volume, why).await;
        if !self.is_over(volume).await {
            create::give_up(self.job, volume, why).await;
            self.is_over(volume).await;
        }
    }

    /// Waits a moment for a volume to end, as the watch sees it.
    async fn is_over(&self, volume: &Identity) -> bool {
        let key = self.job.context.key(&*volume.name);
        let volumes = &self.job.context.stores.pod_volume_backups;
        let has_ended = |now: Arc<PodVolumeBackup>| volume.is(&now) && now.phase().is_terminal();
        let over = volumes.wait_for(|volumes| {
            let now = volumes.get(&key);
            now.is_none_or(has_ended).then_some(())
        });
        tokio::time::timeout(AGENT_CHECK, over).await.is_ok()
    }
}

fn fields<'a>(pod: &'a PodFacts, selected: &'a Selected) -> [(&'a str, &'a str); 4] {
    [
        ("resource", PODS),
        ("namespace", &pod.volumes.namespace),
        ("name", &pod.volumes.name),
        ("volume", &selected.volume),
    ]
}

fn failed(why: &str) -> String {
    format!("pod volume backup failed: {why}")
}

/// A volume that was not begun.
struct Gone<'a> {
    selected: &'a Selected,
    claim: Option<&'a ClaimFacts>,
    /// Its PodVolumeBackup.
    volume: Identity,
    why: String,
}

/// Why a volume is not moved.
enum Problem {
    /// There is no PodVolumeBackup.
    NotBegun(String),
    /// The agent failed.
    Failed(String),
    /// The agent did not even begin: the pod may have gone.
    NeverBegan { volume: Identity, why: String },
    /// Time is over.
    Late,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::unwatched;
    use jackline_runtime::LeaderToken;
    use serde_json::{Value, json};

    const VOLUMES: &str = "podvolumebackups";

    fn volume(uid: &str, backup: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "b-1", "namespace": "velero", "uid": uid, "labels": {(label::BACKUP_UID): backup}},
            "spec": {"node": "n", "pod": {"uid": "p"}, "volume": "data", "backupStorageLocation": "here", "repoIdentifier": ""},
            "status": {"phase": phase, "message": phase}})
    }

    fn agent(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "velero", "labels": {"name": "node-agent"}}, "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    /// What becomes of the volume with UID `new` where the watch knows the object `seen`, and the API server these; nothing within hours is
    /// `None`.
    async fn ended(
        seen: &Value,
        there: &[(&str, Value)],
    ) -> Option<Result<Option<String>, String>> {
        let mut context = unwatched::context(there);
        let seen: PodVolumeBackup = serde_json::from_value(seen.clone()).unwrap();
        let stores = &mut Arc::get_mut(&mut context).unwrap().stores;
        stores.pod_volume_backups = Store::fixed([seen]);
        let location = serde_json::from_value(unwatched::location("here")).unwrap();
        let log = BackupLog::new("velero/b".to_owned(), &std::env::temp_dir()).unwrap();
        let (token, _held) = LeaderToken::for_tests();
        let backup = Backup::new("b", Default::default());
        let (collecting, holds) = (Semaphore::new(1), Default::default());
        let job = Job {
            context: &context,
            token: &token,
            backup: &backup,
            location: &location,
            log: &log,
            collecting: &collecting,
            holds: &holds,
            touched: &Mutex::default(),
        };
        let work = Work {
            job: &job,
            log: &log,
            uid: "u".to_owned(),
            known: Vec::new(),
            repositories: HashMap::new(),
            requests: Semaphore::new(1),
            deadline: None,
            late: AtomicBool::new(false),
            foreign: HashMap::new(),
            outcomes: Mutex::default(),
            tried: Mutex::default(),
        };
        let wanted = Identity {
            name: "b-1".to_owned(),
            uid: "new".to_owned(),
        };
        let hours = Duration::from_secs(3 * 3600);
        tokio::time::timeout(hours, work.ended(&wanted)).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_of_an_earlier_backup_of_the_same_name_is_not_taken_for_this_one() {
        let path = unwatched::path(VOLUMES, "b-1");
        let (old, new) = (volume("old", "v", "Completed"), volume("new", "u", "New"));
        assert_eq!(ended(&old, &[(&path, new)]).await, None);
        let ended_since = volume("new", "u", "Failed");
        let failed = Some(Err("Failed".to_owned()));
        assert_eq!(ended(&old, &[(&path, ended_since)]).await, failed);
        let gone = Some(Err("PodVolumeBackup b-1 was deleted".to_owned()));
        assert_eq!(ended(&old, &[]).await, gone);
        let done = volume("new", "u", "Completed");
        let remark = Some(Ok(Some("Completed".to_owned())));
        assert_eq!(ended(&done, &[]).await, remark);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_the_watch_does_not_know_is_looked_for_before_its_volume_is_given_up() {
        let new = volume("new", "u", "New");
        let pods = "/api/v1/namespaces/velero/pods";
        let ready = json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let node = ("/api/v1/nodes/n", ready);
        let found = (pods, unwatched::list(&[agent("a")]));
        assert_eq!(ended(&new, &[node.clone(), found]).await, None);
        let nobody = (pods, unwatched::list(&[]));
        let why = "no node agent has been running on node n for 10 minutes";
        let given_up = Some(Err(why.to_owned()));
        assert_eq!(ended(&new, &[node, nobody]).await, given_up);
    }

    #[tokio::test]
    async fn a_resumed_backup_finds_volumes_that_the_watch_does_not_know() {
        let volumes = [
            volume("1", "u", "New"),
            volume("2", "v", "New"),
            json!({"metadata": {"name": "x"}, "spec": 1}),
        ];
        let path = unwatched::all(VOLUMES);
        let context = unwatched::context(&[(&path, unwatched::list(&volumes))]);
        let found = made_for(&context, "u").await.unwrap();
        let found: Vec<_> = found.iter().filter_map(|volume| volume.uid()).collect();
        assert_eq!(found, ["1"]);
    }
}
