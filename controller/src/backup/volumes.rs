//! The volumes of a backup: hooks before, PodVolumeBackups, waiting for the agents, hooks after.
//!
//! Every pod goes its own way, so a slow one holds up nobody. Nothing is polled: the agents' progress comes by watch.

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
    velero::{Backup, BackupRepository, HookStatus, PodVolumeBackup, PodVolumePhase},
};
use jackline_policy::backup::{
    absence::{self, Agent},
    object::ObjectRef,
    volume_policy::VolumePolicies,
    volumes::{ClaimFacts, Level, Mode, Note, PodVolumes, Selected, Wanted, select},
};
use kube::ResourceExt;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    holds::Held,
    hooks::{self, PodHooks},
    job::{Job, JobError, timeout},
    log::BackupLog,
    owed,
};
use crate::{
    agents,
    collect::{Facts, PodFacts},
    context::Context,
    exec::HookCount,
    repository,
    stall::{self, Stall},
};

/// Requests about volumes that are under way at once.
const PARALLEL: usize = 16;
/// How long the policy half may take to say what a policy governs.
const GOVERNED_PATIENCE: Duration = Duration::from_secs(60);
/// Why volumes are given up when the time that the user has set is over, in Velero's words.
const LATE: &str = "timed out waiting for all PodVolumeBackups to complete";
/// How often it is looked (in memory) whether the agent of an unfinished volume is still there.
const AGENT_CHECK: Duration = Duration::from_secs(15);

/// What is to be done about volumes.
#[derive(Debug)]
pub(super) struct Plan {
    pods: Vec<PodFacts>,
    chosen: BTreeMap<usize, Vec<(Selected, Option<ClaimFacts>)>>,
    notes: Vec<Note>,
}

/// How the volumes of a backup are chosen.
pub(super) async fn mode(context: &Context, backup: &Backup) -> Mode {
    let policy = backup.annotations().get(annotation::POLICY);
    if let (Some(policy), Some(governed)) = (policy, context.governed.get()) {
        let location = backup.spec.storage_location.as_deref().unwrap_or_default();
        let asked =
            tokio::time::timeout(GOVERNED_PATIENCE, governed.volumes(policy, location)).await;
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
        context: &Context,
        facts: &Facts,
        mode: &Mode,
        policies: &VolumePolicies,
        claims_stored: bool,
    ) -> Self {
        let facts_of: Vec<PodFacts> = facts.pods.values().cloned().collect();
        let pods: Vec<PodVolumes> = facts_of.iter().map(|pod| pod.volumes.clone()).collect();
        let agents: BTreeSet<String> = agents::nodes(&context.stores.agents);
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
        }
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
    hooks: HookCount,
}

/// Does everything about the volumes. `leave_out` is told the pods whose hooks forbid to store them.
pub(super) async fn run(
    job: &Job<'_>,
    log: &BackupLog,
    planned: oneshot::Receiver<Plan>,
    leave_out: oneshot::Sender<Vec<ObjectRef>>,
) -> Result<Volumes, JobError> {
    // Without a plan nothing was collected, and whoever failed at that says so.
    let Ok(mut plan) = planned.await else {
        return Ok(Volumes::default());
    };
    for note in &plan.notes {
        let fields = [
            ("resource", "pods"),
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
    let known = of_backup(job.context, &uid);
    let namespaces: BTreeSet<String> = plan
        .chosen
        .keys()
        .filter_map(|&pod| plan.pods.get(pod))
        .map(|pod| pod.volumes.namespace.clone())
        .collect();
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
        hooks: HookCount::default(),
    };
    let (verdict, mut verdicts) = mpsc::unbounded_channel();
    let mut ways = FuturesUnordered::new();
    let mut hooked = 0;
    for (index, pod) in plan.pods.iter().enumerate() {
        let chosen = plan.chosen.remove(&index).unwrap_or_default();
        let hooks = hooks::of(pod, job.backup.spec.hooks.as_ref());
        if chosen.is_empty() && hooks.is_empty() {
            continue;
        }
        hooked += usize::from(!hooks.is_empty());
        ways.push(work.pod(pod, hooks, chosen, verdict.clone()).boxed());
    }
    drop(verdict);
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
    let hooks = work.hooks.status();
    Ok(Volumes {
        objects: of_backup(job.context, &uid),
        skipped: plan.notes,
        hooks,
    })
}

/// The objects of a backup that the watch knows, by namespace, pod and volume.
fn of_backup(context: &Context, uid: &str) -> Vec<Arc<PodVolumeBackup>> {
    let mut found = context.stores.pod_volume_backups.filter(|volume| {
        volume
            .labels()
            .get(label::BACKUP_UID)
            .is_some_and(|owner| owner == uid)
    });
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
    /// The way of one pod.
    async fn pod(
        &self,
        pod: &PodFacts,
        hooks: PodHooks,
        chosen: Vec<(Selected, Option<ClaimFacts>)>,
        verdict: mpsc::UnboundedSender<Option<ObjectRef>>,
    ) {
        let volumes = &pod.volumes;
        let fields = [
            ("resource", "pods"),
            ("namespace", volumes.namespace.as_str()),
            ("name", volumes.name.as_str()),
        ];
        for warning in &pod.hook_warnings {
            self.log.warning(warning, &fields);
        }
        let tell = |forbidden: bool| {
            if !hooks.is_empty() {
                let pod = ObjectRef {
                    resource: "pods".to_owned(),
                    namespace: Some(volumes.namespace.clone()),
                    name: volumes.name.clone(),
                };
                // The receiver counts to the number of pods with hooks and no further.
                let _ = verdict.send(forbidden.then_some(pod));
            }
        };
        // What was begun before a restart is only waited for; whoever leads pays what is owed for it.
        let (begun, fresh): (Vec<_>, Vec<_>) = chosen
            .iter()
            .partition(|(selected, _)| self.known(pod, selected).is_some());
        let resumed = fresh.is_empty() && !begun.is_empty();
        let fresh = async {
            if resumed {
                tell(false);
            } else if hooks.is_empty() {
                self.all(pod, &fresh, true).await;
            } else {
                self.hooked(pod, &hooks, &fresh, tell).await;
            }
        };
        tokio::join!(self.all(pod, &begun, true), fresh);
    }

    /// Hooks, volumes, hooks. `tell` learns whether the pod must not be stored, before the volumes are waited for.
    async fn hooked(
        &self,
        pod: &PodFacts,
        hooks: &PodHooks,
        chosen: &[&(Selected, Option<ClaimFacts>)],
        tell: impl FnOnce(bool),
    ) {
        let (context, count, log) = (self.job.context, &self.hooks, self.log);
        let frozen = !hooks.pre.is_empty() && !hooks.post.is_empty();
        let begin = async {
            let held = self.hold(pod, chosen).await;
            if frozen {
                owed::mark(context, self.job.token, pod, self.job.backup, &hooks.post).await?;
            }
            Ok::<_, String>(held)
        };
        let begun = tokio::select! {
            begun = begin => begun,
            () = at(self.deadline) => Err("its pod is in use by another backup".to_owned()),
        };
        let _held = match begun {
            Ok(held) => held,
            Err(why) => {
                let number = i32::try_from(hooks.pre.len()).unwrap_or(i32::MAX);
                count.add(number, number);
                let fields = [
                    ("resource", "pods"),
                    ("namespace", pod.volumes.namespace.as_str()),
                    ("name", pod.volumes.name.as_str()),
                    ("error", why.as_str()),
                ];
                log.error(
                    "Hooks are not run: the pod cannot be marked as one whose post hooks are owed",
                    &fields,
                );
                let forbidden = hooks.pre.iter().any(|hook| hook.required);
                tell(forbidden);
                if !forbidden {
                    self.all(pod, chosen, true).await;
                }
                return;
            }
        };
        let before = hooks::run(context, pod, &hooks.pre, count, log).await;
        tell(before.forbidden);
        if !before.forbidden {
            self.all(pod, chosen, false).await;
        }
        if !before.forbidden || before.effect {
            hooks::run(context, pod, &hooks.post, count, log).await;
        }
        if frozen {
            let target = (pod.volumes.namespace.as_str(), pod.volumes.name.as_str());
            if let Err(error) = owed::clear(context, target, &pod.volumes.uid).await {
                // The mark is found by who looks for marks, and the commands run once more.
                tracing::warn!(%error, pod = ?target, "the mark of owed post hooks stays");
            }
        }
    }

    /// A pod and its claims for this backup alone. Claims in the order of their UIDs: nobody waits in a circle.
    async fn hold(&self, pod: &PodFacts, chosen: &[&(Selected, Option<ClaimFacts>)]) -> Vec<Held> {
        let mut held = vec![self.job.holds.hold(&pod.volumes.uid).await];
        let claims: BTreeSet<&str> = chosen
            .iter()
            .filter_map(|(_, claim)| Some(claim.as_ref()?.uid.as_str()))
            .collect();
        for uid in claims {
            held.push(self.job.holds.hold(uid).await);
        }
        held
    }

    /// Moves volumes of a pod at once; `hold`: each claim has to be taken first.
    async fn all(&self, pod: &PodFacts, chosen: &[&(Selected, Option<ClaimFacts>)], hold: bool) {
        let moves: Vec<BoxFuture<'_, ()>> = chosen
            .iter()
            .map(|(selected, claim)| self.volume(pod, selected, claim.as_ref(), hold).boxed())
            .collect();
        futures::future::join_all(moves).await;
    }

    /// The object of a volume that was there when the backup was resumed.
    fn known(&self, pod: &PodFacts, selected: &Selected) -> Option<&Arc<PodVolumeBackup>> {
        self.known.iter().find(|volume| {
            volume.spec.pod.uid.as_deref() == Some(pod.volumes.uid.as_str())
                && volume.spec.volume == selected.volume
        })
    }

    /// Moves one volume, and says what went wrong.
    async fn volume(
        &self,
        pod: &PodFacts,
        selected: &Selected,
        claim: Option<&ClaimFacts>,
        hold: bool,
    ) {
        let fields = [
            ("resource", "pods"),
            ("namespace", pod.volumes.namespace.as_str()),
            ("name", pod.volumes.name.as_str()),
            ("volume", selected.volume.as_str()),
        ];
        let mut result = self.moved(pod, selected, claim, hold).await;
        if let (Err(Problem::NeverBegan { name, why }), Some(claim_name)) =
            (&result, &selected.claim)
            && let Some((next, selected)) = successor::of(self.job.context, pod, claim_name).await
        {
            let name_of = &next.volumes.name;
            let message =
                format!("{why}; claim {claim_name} is read through pod {name_of} instead");
            self.log.warning(&message, &fields);
            successor::forget(self.job.context, name).await;
            result = self.moved(&next, &selected, claim, hold).await;
        }
        if let Err(why) = result {
            match why {
                Problem::Failed(why) | Problem::NeverBegan { why, .. } => self
                    .log
                    .error(&format!("pod volume backup failed: {why}"), &fields),
                Problem::NotBegun(why) => self.log.error(&why, &fields),
                Problem::Late if self.late.swap(true, Ordering::Relaxed) => {
                    self.log.info("not completed in time", &fields);
                }
                Problem::Late => {
                    self.log.error(LATE, &fields);
                }
            }
        }
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
                held = self.job.holds.hold(&claim.uid) => Some(held),
                () = at(self.deadline) => return Err(Problem::Late),
            },
            _ => None,
        };
        let repository = match self.repositories.get(&pod.volumes.namespace) {
            Some(ready) => ready
                .clone()
                .await
                .map_err(|why| Problem::NotBegun(why.to_string()))?,
            None => return Err(Problem::NotBegun("no repository".to_owned())),
        };
        let name = match known {
            Some(known) => known.name_any(),
            None => {
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
            result = self.ended(&name) => result.map_err(|why| {
                let volume = self.job.context.stores.pod_volume_backups.get(&self.job.context.key(&*name));
                let status = volume.and_then(|volume| volume.status.clone());
                let began = status.is_none_or(|status| status.start_timestamp.is_some());
                // A pod with hooks would have to be frozen first.
                match hold && !began {
                    true => Problem::NeverBegan { name, why },
                    false => Problem::Failed(why),
                }
            }),
            () = at(self.deadline) => {
                create::cancel(self.job.context, &name, LATE).await;
                Err(Problem::Late)
            }
        }
    }

    /// Waits until the agent has ended a volume.
    async fn ended(&self, name: &str) -> Result<(), String> {
        let context = self.job.context;
        let key = context.key(name);
        let store = &context.stores.pod_volume_backups;
        let mut seen = false;
        let mut away: Option<Instant> = None;
        let mut stall = Stall::default();
        let limit = context.args.volume_progress_timeout.to_std();
        loop {
            let end = store.wait_for(|store| match store.get(&key) {
                Some(volume) => {
                    seen = true;
                    volume.phase().is_terminal().then_some(Some(volume))
                }
                // The watch may not have told of it yet.
                None => seen.then_some(None),
            });
            match tokio::time::timeout(AGENT_CHECK.min(limit / 2), end).await {
                Ok(Some(volume)) if volume.phase() == PodVolumePhase::Completed => return Ok(()),
                Ok(Some(volume)) => {
                    let message = volume
                        .status
                        .as_ref()
                        .and_then(|status| status.message.clone());
                    return Err(message.unwrap_or_else(|| format!("phase {}", volume.phase())));
                }
                Ok(None) => return Err(format!("PodVolumeBackup {name} was deleted")),
                Err(_) => {}
            }
            let volume = store.get(&key);
            if let Some(volume) = &volume {
                let status = volume.status.as_ref();
                let progress = status.and_then(|status| status.progress.as_ref());
                if stall.look(volume.phase(), progress) >= limit {
                    let why = stall::message(limit);
                    create::cancel(context, name, &why).await;
                    let stopped = store.wait_for(|store| {
                        let volume = store.get(&key);
                        volume
                            .is_none_or(|volume| volume.phase().is_terminal())
                            .then_some(())
                    });
                    // An agent that hangs for good is not waited for.
                    if tokio::time::timeout(AGENT_CHECK, stopped).await.is_err() {
                        create::give_up(context, name, &why).await;
                    }
                    return Err(why);
                }
            }
            let node = volume
                .map(|volume| volume.spec.node.clone())
                .unwrap_or_default();
            let agent = agents::of_node(&context.stores.agents, &node);
            if agent == Agent::Ready {
                away = None;
                continue;
            }
            let away = away.get_or_insert_with(Instant::now).elapsed();
            if !absence::is_late(agent, away) {
                continue;
            }
            let state = agents::node_state(&context.clients.call, &node).await;
            let patience = context.args.resource_timeout.to_std();
            if let Some(why) = absence::give_up(&node, agent, state, away, patience) {
                create::give_up(context, name, &why).await;
                return Err(why);
            }
        }
    }
}

/// Why a volume is not moved.
enum Problem {
    /// There is no PodVolumeBackup.
    NotBegun(String),
    /// The agent failed.
    Failed(String),
    /// The agent did not even begin: the pod had gone.
    NeverBegan { name: String, why: String },
    /// Time is over.
    Late,
}
