//! Post hooks that are owed. A pod is marked before its pre hooks run, and the mark goes when its post hooks have run. A backup that is
//! given up, or whose leader has gone, leaves the mark; whoever leads then runs what is owed, so that no database stays frozen.
//!
//! A post hook may so run twice: when its leader went between the command and the mark.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jackline_crds::{
    GoDuration,
    names::{FIELD_MANAGER, annotation, label},
    velero::{Backup, BackupPhase, PodVolumeBackup},
};
use jackline_policy::backup::hook::Hook;
use jackline_runtime::{
    Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store,
    WatchSpec,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    holds::{Held, Holds},
    is_deleted,
    outcome::{self, Outcome},
    volumes::{is_of, made_for},
};
use crate::{
    collect::PodFacts,
    context::Context,
    exec::{ExecError, Output, exec},
};

/// Value of the label.
const OWED: &str = "owed";
/// How soon a pod that is still read, or marked, is looked at again.
pub(super) const AGAIN: Duration = Duration::from_secs(2);
/// How soon a pod is looked at again that is read though no watch tells of it.
const BEHIND: Duration = Duration::from_secs(10);
/// Backups whose volumes are listed at once.
static LISTS: Semaphore = Semaphore::const_new(2);
/// How often a command is tried that cannot be begun, or fails.
const TRIES: u32 = 3;
/// Pods that are paid at once.
const PARALLEL: usize = 64;
/// The same, in one namespace: whoever may label its pods keeps nobody else's from being paid.
const OF_NAMESPACE: usize = 4;
/// Longest time that a command has, whatever the pod says: anybody may have written it.
const LONGEST: Duration = Duration::from_secs(3600);
/// Most commands that are run in one pod: far more than any has hooks.
const MOST: usize = 256;

/// What is owed to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Debt {
    backup: String,
    uid: String,
    hooks: Vec<Command>,
    /// UIDs of the pods whose volumes are read meanwhile.
    #[serde(default)]
    reading: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Command {
    container: String,
    command: Vec<String>,
    timeout: GoDuration,
}

impl Debt {
    /// `reading`: UIDs of the pods whose volumes are read before the hooks run.
    pub(super) fn new(backup: &Backup, hooks: &[Hook], reading: &[String]) -> Self {
        Self {
            backup: backup.name_any(),
            uid: backup.uid().unwrap_or_default(),
            hooks: hooks
                .iter()
                .map(|hook| Command {
                    container: hook.container.clone(),
                    command: hook.command.clone(),
                    timeout: hook.timeout.into(),
                })
                .collect(),
            reading: reading.to_vec(),
        }
    }

    /// Whether it is owed for this backup, and that goes on.
    fn is_of(&self, backup: &Backup) -> bool {
        backup.uid().as_ref() == Some(&self.uid)
            && backup.phase() == BackupPhase::InProgress
            && !is_deleted(backup)
    }

    /// Whether the pod is frozen for the sake of this volume, and it is not read to its end.
    fn waits_for(&self, volume: &PodVolumeBackup, pod: &str) -> bool {
        let through = volume.spec.pod.uid.as_deref();
        let mut reading = self.reading.iter().map(String::as_str);
        is_of(volume, &self.uid)
            && (through == Some(pod) || reading.any(|reading| through == Some(reading)))
            && !volume.phase().is_terminal()
    }
}

/// What a pod's annotation says; anybody may have written it.
fn debt(pod: &Pod) -> Option<Debt> {
    let mut debt: Debt =
        serde_json::from_str(pod.annotations().get(annotation::POST_HOOKS)?).ok()?;
    debt.hooks.truncate(MOST);
    Some(debt)
}

/// Whether it is marked is what its label says: who pays finds it by that.
fn is_marked(pod: &Pod) -> bool {
    pod.labels().contains_key(label::POST_HOOKS)
}

fn pods(context: &Context, namespace: &str) -> Api<Pod> {
    Api::namespaced(context.clients.call.clone(), namespace)
}

/// What became of an attempt to mark a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Its hooks may run.
    Done,
    /// It is marked for another backup. Who waits must not hold the pod meanwhile: whoever pays what is owed needs it.
    Busy,
    /// There is no such pod any more.
    Gone,
}

/// Marks a pod as one to which hooks are owed, if there are any.
///
/// # Errors
/// Why the pod is not marked: its hooks must not run.
pub(super) async fn mark(
    context: &Context,
    token: &LeaderToken,
    pod: &PodFacts,
    debt: &Debt,
) -> Result<Mark, String> {
    let (namespace, name, uid) = (&pod.volumes.namespace, &pod.volumes.name, &pod.volumes.uid);
    let api = pods(context, namespace);
    let text = serde_json::to_string(debt).map_err(|error| error.to_string())?;
    loop {
        let now = api.get_opt(name).await.map_err(|error| error.to_string())?;
        let Some(now) = now.filter(|now| now.uid().as_ref() == Some(uid)) else {
            return Ok(Mark::Gone);
        };
        if debt.hooks.is_empty() {
            return Ok(Mark::Done);
        }
        if is_marked(&now) {
            return Ok(Mark::Busy);
        }
        token.check().map_err(|error| error.to_string())?;
        let patch = json!({"metadata": {
            "uid": uid,
            "resourceVersion": now.resource_version(),
            "labels": {(label::POST_HOOKS): OWED},
            "annotations": {(annotation::POST_HOOKS): text},
        }});
        match patch_pod(&api, name, patch).await {
            Ok(()) => return Ok(Mark::Done),
            // It has changed, or gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Whether anything is owed to a pod. One that cannot be looked at is found out about when it is marked.
pub(super) async fn is_owed(context: &Context, pod: &PodFacts) -> bool {
    let now = look(context, pod).await.ok().flatten();
    now.is_some_and(|now| is_marked(&now))
}

/// Takes the mark away: nothing is owed any more. A pod that has gone has none. `backup`: another backup's mark stays.
pub(super) async fn clear(
    context: &Context,
    token: &LeaderToken,
    (namespace, name): (&str, &str),
    uid: &str,
    backup: Option<&str>,
) -> Result<(), Failure> {
    let api = pods(context, namespace);
    let gone: BTreeMap<&str, Option<&str>> = BTreeMap::from([(label::POST_HOOKS, None)]);
    loop {
        let now = api.get_opt(name).await?;
        let Some(now) = now.filter(|now| now.uid().as_deref() == Some(uid) && is_marked(now))
        else {
            return Ok(());
        };
        let other = |debt: Debt| backup.is_some_and(|backup| backup != debt.uid);
        if debt(&now).is_some_and(other) {
            return Ok(());
        }
        token.check()?;
        let patch = json!({"metadata": {
            "uid": uid,
            "resourceVersion": now.resource_version(),
            "labels": gone,
            "annotations": gone,
        }});
        match patch_pod(&api, name, patch).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            result => return Ok(result?),
        }
    }
}

/// Whether the pod is still there.
pub(super) async fn is_there(context: &Context, pod: &PodFacts) -> Result<bool, kube::Error> {
    Ok(look(context, pod).await?.is_some())
}

/// The pod as it is now, if it is still there.
async fn look(context: &Context, pod: &PodFacts) -> Result<Option<Pod>, kube::Error> {
    let volumes = &pod.volumes;
    let now = pods(context, &volumes.namespace)
        .get_opt(&volumes.name)
        .await?;
    Ok(now.filter(|now| now.uid().as_ref() == Some(&volumes.uid)))
}

/// Waits until nothing is owed to a pod for a backup.
pub(super) async fn paid(context: &Context, pod: &PodFacts, backup: &Backup) {
    loop {
        match look(context, pod).await {
            Ok(now) => {
                let marked = now.filter(is_marked);
                let debt = marked.as_ref().and_then(debt);
                if debt.is_none_or(|debt| Some(debt.uid) != backup.uid()) {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, pod = pod.volumes.name, "a pod cannot be looked at");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn patch_pod(
    api: &Api<Pod>,
    name: &str,
    patch: serde_json::Value,
) -> Result<(), kube::Error> {
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_metadata(name, &params, &Patch::Merge(patch))
        .await
        .map(drop)
}

/// Starts the controller that pays what others owe.
pub(super) fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease, holds: &Holds) {
    let marked: Store<Pod> = kit.watch(WatchSpec::new("owed-hooks").labels(label::POST_HOOKS));
    let queue = Queue::new("owed-hooks");
    marked.enqueue(&queue, |change| match change.after {
        Some(_) => vec![change.key.clone()],
        None => Vec::new(),
    });
    // A command has its own limit.
    let options = RunOptions::new().concurrency(PARALLEL).pass_deadline(None);
    let payer = Arc::new(Payer {
        context: context.clone(),
        holds: holds.clone(),
        places: Holds::default(),
        marked,
    });
    kit.run_leading(&queue, options, lease, move |key, token| {
        let payer = payer.clone();
        async move { payer.pass(&key, &token).await }
    });
}

/// What passes share.
struct Payer {
    context: Arc<Context>,
    holds: Holds,
    /// Of each namespace, as many as it may have.
    places: Holds,
    marked: Store<Pod>,
}

/// A place of a namespace, if one is free.
fn place(places: &Holds, namespace: &str) -> Option<Held> {
    (0..OF_NAMESPACE).find_map(|place| places.try_hold(&format!("{namespace}/{place}")))
}

impl Payer {
    async fn pass(&self, key: &Key, token: &LeaderToken) -> Result<Next, Failure> {
        let context = &self.context;
        context.stores.ready().await;
        let Some(seen) = self.marked.get(key) else {
            return Ok(Next::Done);
        };
        let uid = seen.uid().unwrap_or_default();
        // A backup of this process is at it, and pays itself.
        let Some(_held) = self.holds.try_hold(&uid) else {
            return Ok(Next::After(AGAIN));
        };
        let namespace = key.ns();
        let Some(_place) = place(&self.places, namespace) else {
            return Ok(Next::After(AGAIN));
        };
        let now = pods(context, namespace).get_opt(&key.name).await?;
        let Some(pod) = now.filter(|pod| pod.uid() == seen.uid() && is_marked(pod)) else {
            return Ok(Next::Done);
        };
        let target = (namespace, key.name.as_str());
        let debt = debt(&pod);
        if let Some(debt) = &debt {
            if seems_read(context, debt, &uid) {
                return Ok(Next::After(AGAIN));
            }
            if is_read(context, debt, &uid).await? {
                return Ok(Next::After(BEHIND));
            }
            token.check()?;
            let outcome = pay(context, target, debt).await;
            tell(context, &pod, debt, &outcome);
            token.check()?;
            // That nothing stays frozen comes first.
            if let Err(error) = keep(context, debt, &uid, outcome).await {
                tracing::warn!(%error, backup = debt.backup, "it is not known to the backup how its post hooks ended");
            }
        }
        let backup = debt.as_ref().map(|debt| debt.uid.as_str());
        clear(context, token, target, &uid, backup).await?;
        Ok(Next::OnChange)
    }
}

/// Whether volumes for which the pod is frozen are still being read, for a backup that goes on, as far as the watches know.
fn seems_read(context: &Context, debt: &Debt, pod: &str) -> bool {
    let backup = context.stores.backups.get(&context.key(&debt.backup));
    let goes_on = backup.is_some_and(|backup| debt.is_of(&backup));
    let volumes = &context.stores.pod_volume_backups;
    goes_on && volumes.find(|volume| debt.waits_for(volume, pod)).is_some()
}

/// The same as the API server knows it: what an earlier leader made just before it went, the watches may not have told of.
async fn is_read(context: &Context, debt: &Debt, pod: &str) -> Result<bool, kube::Error> {
    let backup = context.fetch::<Backup>(&debt.backup).await?;
    if !backup.is_some_and(|backup| debt.is_of(&backup)) {
        return Ok(false);
    }
    // Lists of thousands of volumes, for many pods at a time. Never closed, so never an error.
    let _turn = LISTS.acquire().await;
    let volumes = made_for(context, &debt.uid).await?;
    Ok(volumes.iter().any(|volume| debt.waits_for(volume, pod)))
}

/// How long a command that is owed may take.
fn limit(command: &Command) -> Duration {
    command.timeout.to_std().min(LONGEST)
}

async fn pay(context: &Context, target: (&str, &str), debt: &Debt) -> Outcome {
    let mut outcome = Outcome {
        over: true,
        ..Outcome::default()
    };
    for hook in &debt.hooks {
        let mut tries = 1;
        let result = loop {
            let limit = limit(hook);
            match exec(context, target, &hook.container, &hook.command, limit).await {
                Err(ExecError::NotBegun(_) | ExecError::Failed(_)) if tries < TRIES => {
                    tokio::time::sleep(AGAIN).await;
                    tries += 1;
                }
                result => break result,
            }
        };
        outcome.attempted += 1;
        let (namespace, pod) = target;
        for line in result.iter().flat_map(Output::lines) {
            tracing::info!(
                backup = debt.backup,
                namespace,
                pod,
                container = hook.container,
                "{line}"
            );
        }
        if let Err(why) = result {
            let why = format!("container {}: {why}", hook.container);
            outcome.errors.push(why);
        }
    }
    outcome
}

/// A backup that goes on is told how its hooks ended; where it did not even get as far as its volumes, it begins again.
async fn keep(
    context: &Context,
    debt: &Debt,
    pod: &str,
    outcome: Outcome,
) -> Result<(), kube::Error> {
    let backup = context.api::<Backup>().get_opt(&debt.backup).await?;
    if let Some(backup) = backup.filter(|backup| debt.is_of(backup))
        && let Some(mut whole) = outcome::of(&backup, pod)
    {
        whole.add(outcome);
        outcome::keep(context, &backup, pod, &whole).await?;
    }
    Ok(())
}

fn tell(context: &Context, pod: &Pod, debt: &Debt, outcome: &Outcome) {
    let whose = format!(
        "the post hooks of backup {}, which was interrupted",
        debt.backup
    );
    let (kind, note) = if outcome.errors.is_empty() {
        (EventKind::Normal, format!("ran {whose}"))
    } else {
        let why = outcome.errors.join("; ");
        (
            EventKind::Warning,
            format!(
                "ran {whose}: {why}. Look whether the workload is still as its pre hook left it"
            ),
        )
    };
    tracing::info!(namespace = pod.namespace(), pod = pod.name_any(), "{note}");
    context.events.publish(Event {
        regarding: pod.object_ref(&()),
        related: None,
        kind,
        reason: "OwedPostHooks",
        action: "Backup",
        note,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::unwatched;

    #[test]
    fn what_is_owed_survives_its_annotation() {
        let mut backup = Backup::new("nightly", Default::default());
        backup.metadata.uid = Some("u".to_owned());
        let hook = Hook {
            container: "db".to_owned(),
            command: vec!["thaw".to_owned(), "-a b".to_owned()],
            required: true,
            timeout: Duration::from_secs(90),
        };
        let owed = Debt::new(&backup, &[hook], &["other".to_owned()]);
        let mut pod = Pod::default();
        let text = serde_json::to_string(&owed).unwrap();
        pod.annotations_mut()
            .insert(annotation::POST_HOOKS.to_owned(), text);
        assert_eq!(debt(&pod), Some(owed));
        assert!(!is_marked(&pod), "nobody would find it");
        pod.labels_mut()
            .insert(label::POST_HOOKS.to_owned(), OWED.to_owned());
        assert!(is_marked(&pod));
        pod.annotations_mut()
            .insert(annotation::POST_HOOKS.to_owned(), "{".to_owned());
        assert_eq!(debt(&pod), None);
    }

    #[tokio::test]
    async fn a_pod_is_read_also_when_the_watches_of_a_new_leader_do_not_know_it_yet() {
        let debt = Debt {
            backup: "b".to_owned(),
            uid: "u".to_owned(),
            hooks: Vec::new(),
            reading: vec!["other".to_owned()],
        };
        for (backup, volume, through, phase, read) in [
            ("u", "u", "pod", "InProgress", true),
            ("u", "u", "other", "New", true),
            ("u", "u", "pod", "Completed", false),
            ("u", "u", "third", "InProgress", false),
            ("u", "v", "pod", "InProgress", false),
            // The Backup was made anew.
            ("v", "u", "pod", "InProgress", false),
        ] {
            let backup = json!({"metadata": {"name": "b", "uid": backup}, "spec": {}, "status": {"phase": "InProgress"}});
            let volume = json!({"metadata": {"name": "b-1", "labels": {(label::BACKUP_UID): volume}},
                "spec": {"node": "n", "pod": {"uid": through}, "volume": "data", "backupStorageLocation": "l", "repoIdentifier": "r"},
                "status": {"phase": phase}});
            let context = unwatched::context(&[
                (&unwatched::path("backups", "b"), backup),
                (
                    &unwatched::all("podvolumebackups"),
                    unwatched::list(&[volume]),
                ),
            ]);
            assert!(!seems_read(&context, &debt, "pod"));
            let found = is_read(&context, &debt, "pod").await.unwrap();
            assert_eq!(found, read, "{through} {phase}");
        }
    }

    #[test]
    fn a_command_that_is_owed_has_its_own_time_and_no_more_than_an_hour() {
        for (timeout, expected) in [("90s", 90), ("1h", 3600), ("100000h", 3600)] {
            let command = Command {
                container: "db".to_owned(),
                command: vec!["thaw".to_owned()],
                timeout: timeout.parse().unwrap(),
            };
            assert_eq!(limit(&command).as_secs(), expected, "{timeout}");
        }
    }

    #[test]
    fn a_namespace_has_its_places_and_no_more() {
        let places = Holds::default();
        let mut loud: Vec<Held> = (0..PARALLEL)
            .filter_map(|_| place(&places, "loud"))
            .collect();
        assert_eq!(loud.len(), OF_NAMESPACE);
        assert!(place(&places, "quiet").is_some());
        loud.pop();
        assert!(place(&places, "loud").is_some());
    }
}
