//! PodVolumeBackups of this node: one volume's data into a snapshot.
//!
//! Phases as Velero's: New → InProgress → Completed | Failed | Canceled. An agent takes over every unfinished one of its node, its
//! own or its predecessor's; doing it again is cheap, because what was uploaded is known. `Completed` means: every file of the volume
//! that the pod mounted from beginning to end is in the snapshot. A volume with unreadable files is `Failed`, and its snapshot is
//! forgotten at once, so that nobody restores an incomplete one and nothing is left that no object names.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jackline_crds::{
    names::SNAPSHOT_HOST,
    velero::{PodVolumeBackup, PodVolumeBackupStatus, PodVolumePhase, UploaderType, VOLUME_EMPTY},
};
use jackline_repository::{BackupRequest, BackupSummary, Repository, SnapshotId};
use jackline_runtime::{Failure, Key, Next};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::Api;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    context::{Context, PodHere, ask},
    metrics::Operation,
    parent,
    paths::Found,
    pods,
    progress::{self, Meter},
    record::Record,
    stop::{Patience, Stop, persist},
};

/// Time that an operation has to end in order after it was cancelled (it gives its lock back).
const ORDERLY: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Backups {
    context: Arc<Context>,
    patience: Patience,
}

/// What a volume's backup has come to.
struct Done {
    snapshot_id: String,
    summary: BackupSummary,
}

impl Backups {
    pub fn new(context: Arc<Context>) -> Self {
        let patience = Patience::new(context.give_up_after);
        Self { context, patience }
    }

    pub async fn pass(&self, key: &Key) -> Result<Next, Failure> {
        let context = &self.context;
        context.pods.ready().await;
        if context.backups.get(key).is_none() {
            // Ended, or gone.
            context.metrics.dequeue(key);
            self.patience.forget(key);
            return Ok(Next::Done);
        }
        let _slot = context
            .slots
            .acquire()
            .await
            .map_err(|closed| Failure::terminal("Closed", closed))?;
        // The store may be behind our own last write: what has ended must never begin again.
        let api = context.api::<PodVolumeBackup>();
        let Some(object) = api
            .get_opt(&key.name)
            .await?
            .filter(|o| !o.phase().is_terminal())
        else {
            return Ok(Next::Done);
        };
        context.alone(&object, &object.spec.pod).await?;
        let record = Record::new(api, object.clone());
        let running = context.metrics.begin(Operation::Backup);
        let (meter, begun) = (Meter::default(), Instant::now());
        let result = self.attempt(&object, &record, &meter).await;
        drop(running);
        self.patience
            .tried(key, begun.elapsed(), meter.has_stored());
        let mut status = record.status();
        status.completion_timestamp = Some(Time(Timestamp::now()));
        let well = match result {
            Ok(done) => {
                finish(&mut status, &done);
                count(context, &done.summary);
                true
            }
            Err(Stop::Shutdown) => return Ok(Next::After(Duration::from_secs(1))),
            Err(Stop::Gone) => return Ok(Next::Done),
            Err(Stop::Canceled) => {
                status.phase = Some(PodVolumePhase::Canceled);
                // Whoever asked may have said why.
                let now = context.backups.get(key).unwrap_or_default();
                let why = now.status.as_ref().and_then(|now| now.message.clone());
                status.message = why.or_else(|| Some("canceled on request".to_owned()));
                false
            }
            Err(Stop::Retry(failure)) if self.patience.lasts(key) => return Err(failure),
            Err(Stop::Retry(failure)) => {
                fail(
                    &mut status,
                    &format!("given up: {}", jackline_runtime::logging::chain(&failure)),
                );
                false
            }
            Err(Stop::Failed(message)) => {
                fail(&mut status, &message);
                false
            }
        };
        persist(|| record.write(&status), &context.shutdown).await?;
        self.patience.forget(key);
        context.metrics.ended(Operation::Backup, well);
        self.say(&object, &status);
        Ok(Next::Done)
    }

    fn say(&self, object: &PodVolumeBackup, status: &PodVolumeBackupStatus) {
        let pod = &object.spec.pod;
        let what = format!(
            "volume {} of pod {}/{}",
            object.spec.volume,
            pod.namespace.as_deref().unwrap_or_default(),
            pod.name.as_deref().unwrap_or_default(),
        );
        let message = status.message.as_deref().unwrap_or_default();
        match status.phase {
            Some(PodVolumePhase::Failed) => {
                tracing::warn!(what, message, "backup failed");
                let note = format!("backup of {what} failed: {message}");
                self.context.warn(object, pod, "VolumeBackupFailed", note);
            }
            phase => {
                let phase = phase.map(PodVolumePhase::as_str);
                let snapshot = status.snapshot_id.as_deref();
                let bytes = status.progress.as_ref().map(|p| p.total_bytes);
                tracing::info!(
                    what,
                    phase,
                    snapshot,
                    bytes,
                    added = status.incremental_bytes,
                    "backup ended"
                );
            }
        }
    }

    async fn attempt(
        &self,
        object: &PodVolumeBackup,
        record: &Record<PodVolumeBackup>,
        meter: &Meter,
    ) -> Result<Done, Stop> {
        let context = &self.context;
        let spec = &object.spec;
        if spec.cancel {
            return Err(Stop::Canceled);
        }
        if spec.uploader_type == UploaderType::Kopia {
            return Err(Stop::Failed(
                "uploader type kopia is not supported; supported: restic".to_owned(),
            ));
        }
        if let Some(why) = parent::taken_over(object) {
            return Err(Stop::Failed(why));
        }
        let pod = self.pod(object).await?;
        let found = context
            .resolve(&pod, &spec.volume)
            .await
            .map_err(|e| Stop::volume(&spec.volume, e))?;

        let mut status = record.status();
        status.phase = Some(PodVolumePhase::InProgress);
        status
            .start_timestamp
            .get_or_insert_with(|| Time(Timestamp::now()));
        status.path = Some(found.path.display().to_string());
        status.message = None;
        let begun = record.begin(&status, &json!({})).await;
        begun.map_err(Stop::Retry)?;

        let repository = self.repository(object).await?;
        let snapshots = repository.snapshots().await.map_err(Stop::repository)?;
        let leftovers = parent::leftovers(object, &snapshots);
        let parent = match leftovers.last() {
            Some(newest) => Some(*newest),
            None => parent::find(context, &repository, object, &snapshots)
                .await
                .map_err(Stop::Retry)?,
        };
        let summary = self
            .read(object, record, (&repository, parent), &found, meter)
            .await?;
        let Some(snapshot) = summary.snapshot else {
            return Err(Stop::Failed(
                "data path backup failed: the repository made no snapshot".to_owned(),
            ));
        };
        if let Err(stop) = self.verify(object, &found, &summary).await {
            forget(&repository, &[snapshot]).await;
            return Err(stop);
        }
        if record.is_over(|now| now.phase().is_terminal()).await {
            forget(&repository, &[snapshot]).await;
            return Err(Stop::Gone);
        }
        let leftovers: Vec<_> = leftovers.into_iter().filter(|id| *id != snapshot).collect();
        forget(&repository, &leftovers).await;
        Ok(Done {
            snapshot_id: short_id(&repository, &snapshot).await,
            summary,
        })
    }

    /// The repository to write to. Where the location was changed since the volume was asked for, it may be about to be made.
    async fn repository(&self, object: &PodVolumeBackup) -> Result<Repository, Stop> {
        let (repositories, spec) = (&self.context.repositories, &object.spec);
        let (location, identifier) = (&spec.backup_storage_location, &spec.repo_identifier);
        let namespace = spec.pod.namespace.as_deref().unwrap_or_default();
        match repositories.get(location, namespace, true).await {
            Err(error) if error.is_not_found() => {
                let moved = repositories.has_moved(location, namespace, identifier);
                match moved.await {
                    Ok(true) => Err(Stop::Retry(Failure::transient("RepositoryMoved", error))),
                    Ok(false) => Err(error.into()),
                    Err(error) => Err(Stop::Retry(error.into())),
                }
            }
            opened => Ok(opened?),
        }
    }

    /// The pod, which must be here, be the one that was meant, and not have ended.
    async fn pod(&self, object: &PodVolumeBackup) -> Result<Pod, Stop> {
        let reference = &object.spec.pod;
        let name = format!(
            "{}/{}",
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default()
        );
        // The watch may be behind, with what came as with what went; one that went before the start may have a successor.
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.context.client.0.clone(), namespace);
        let found = api
            .get_opt(reference.name.as_deref().unwrap_or_default())
            .await;
        let found = found.map_err(|error| Stop::Retry(error.into()))?;
        let pod = meant(found, reference, &self.context.node)
            .map_err(|why| Stop::Failed(format!("pod {name} {why}")))?;
        if matches!(self.context.pod(reference), PodHere::Yes(_)) {
            return Ok(pod);
        }
        let failure = format!("pod {name} is not known to this agent yet");
        let wait = Duration::from_secs(1);
        let failure = Failure::waiting(wait, "PodUnknown", failure);
        Err(Stop::Retry(failure))
    }

    /// Over when the pod goes or the backup is no longer wanted.
    async fn interrupted(&self, object: &PodVolumeBackup) -> Stop {
        let context = &self.context;
        let key = Key::of(object);
        let canceled = context.backups.wait_for(|backups| match backups.get(&key) {
            // Whoever ended it counts on that, even if this agent merely stood still for too long.
            Some(now) if now.phase().is_terminal() => Some(Stop::Gone),
            Some(now) => now.spec.cancel.then_some(Stop::Canceled),
            None => Some(Stop::Gone),
        });
        tokio::select! {
            () = context.pod_gone(&object.spec.pod) => Stop::Failed(
                "the pod was deleted, replaced or ended while its volume was read".to_owned(),
            ),
            stop = canceled => stop,
        }
    }

    /// Moves the data; stops when the pod goes, when that is wished, or when the process ends.
    async fn read(
        &self,
        object: &PodVolumeBackup,
        record: &Record<PodVolumeBackup>,
        (repository, parent): (&Repository, Option<SnapshotId>),
        found: &Found,
        meter: &Meter,
    ) -> Result<BackupSummary, Stop> {
        let context = &self.context;
        let path = found.path.display().to_string();
        let mut request = BackupRequest::contents(found.path.clone(), SNAPSHOT_HOST);
        request.snapshot_paths = vec![path];
        request.tags = tags(object);
        request.parent = parent.into();

        let cancel = context.shutdown.child_token();
        let work = progress::reporting(
            meter,
            repository.backup(request, meter, &cancel),
            |progress| record.show(|status| status.progress = Some(progress)),
        );
        let interrupted = self.interrupted(object);
        tokio::pin!(work, interrupted);
        tokio::select! {
            biased;
            result = &mut work => result.map_err(Stop::repository),
            stop = &mut interrupted => {
                cancel.cancel();
                // In order, so that the lock is given back. A snapshot that was just saved is not lost sight of.
                if let Ok(Ok(summary)) = tokio::time::timeout(ORDERLY, &mut work).await
                    && let Some(snapshot) = summary.snapshot
                {
                    forget(repository, &[snapshot]).await;
                }
                Err(stop)
            }
        }
    }

    /// Whether what was read is the whole volume.
    async fn verify(
        &self,
        object: &PodVolumeBackup,
        found: &Found,
        summary: &BackupSummary,
    ) -> Result<(), Stop> {
        if !summary.is_complete() {
            return Err(Stop::Failed(incomplete(summary)));
        }
        let look = found.clone();
        // The server of a network volume may have died after the last byte.
        let still = tokio::select! {
            still = ask(&found.path, move || look.still_there()) => {
                still.map_err(|error| Stop::volume(&object.spec.volume, error.into()))?
            }
            stop = self.interrupted(object) => return Err(stop),
        };
        let pod =
            matches!(self.context.pod(&object.spec.pod), PodHere::Yes(pod) if !pods::is_over(&pod));
        if still && pod {
            return Ok(());
        }
        Err(Stop::Failed(format!(
            "{} was unmounted or replaced while it was read",
            found.path.display()
        )))
    }
}

/// The pod that was meant, if it is on the node and has not ended; else why not.
fn meant(found: Option<Pod>, reference: &ObjectReference, node: &str) -> Result<Pod, String> {
    let gone = || format!("is gone from node {node}");
    let pod = found.ok_or_else(gone)?;
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if pod.metadata.uid != reference.uid {
        Err("was replaced by another pod of the same name".to_owned())
    } else if on != Some(node) {
        Err(gone())
    } else if pods::is_over(&pod) {
        Err("has ended; its volumes are not mounted any more".to_owned())
    } else {
        Ok(pod)
    }
}

fn finish(status: &mut PodVolumeBackupStatus, done: &Done) {
    status.phase = Some(PodVolumePhase::Completed);
    status.snapshot_id = Some(done.snapshot_id.clone());
    status.progress = Some(progress::complete(done.summary.bytes_processed));
    status.incremental_bytes = progress::clamp(done.summary.bytes_added);
    status.message = remark(&done.summary);
}

/// What is to be known of a volume that was read whole.
fn remark(summary: &BackupSummary) -> Option<String> {
    match summary.vanished {
        0 => summary.empty.then(|| VOLUME_EMPTY.to_owned()),
        1 => Some("1 file vanished while the volume was read".to_owned()),
        files => Some(format!("{files} files vanished while the volume was read")),
    }
}

fn fail(status: &mut PodVolumeBackupStatus, message: &str) {
    status.phase = Some(PodVolumePhase::Failed);
    status.snapshot_id = None;
    status.message = Some(message.to_owned());
}

fn incomplete(summary: &BackupSummary) -> String {
    let mut text = format!(
        "data path backup failed: {} files could not be read; the incomplete snapshot was discarded",
        summary.error_count
    );
    for problem in summary.errors.iter().take(3) {
        text.push_str(&format!("; {}: {}", problem.path, problem.message));
    }
    text
}

fn count(context: &Context, summary: &BackupSummary) {
    let count = |kind, bytes| context.metrics.bytes(Operation::Backup, kind, bytes);
    count("processed", summary.bytes_processed);
    count("read", summary.bytes_read);
    count("added", summary.bytes_stored);
}

/// Tags as Velero writes them; those that the controller left out are filled in.
fn tags(object: &PodVolumeBackup) -> Vec<String> {
    let pod = &object.spec.pod;
    let mut tags: HashMap<&str, &str> = object
        .spec
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    for (key, value) in [
        ("ns", pod.namespace.as_deref()),
        ("pod", pod.name.as_deref()),
        ("pod-uid", pod.uid.as_deref()),
        ("volume", Some(object.spec.volume.as_str())),
    ] {
        tags.entry(key).or_insert_with(|| value.unwrap_or_default());
    }
    let mut tags: Vec<String> = tags
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    tags.sort();
    tags
}

/// The eight digits that Velero writes, or all where these are short for several snapshots.
async fn short_id(repository: &Repository, id: &SnapshotId) -> String {
    let short = id.short();
    match repository.resolve(&short).await {
        Ok(found) if found == *id => short,
        _ => id.to_hex(),
    }
}

/// Best effort: what stays is found by its tags when the backup is deleted.
async fn forget(repository: &Repository, ids: &[SnapshotId]) {
    if ids.is_empty() {
        return;
    }
    let started = Instant::now();
    if let Err(error) = repository.forget(ids).await {
        let seconds = started.elapsed().as_secs();
        tracing::warn!(%error, seconds, snapshots = ids.len(), "snapshots of an interrupted backup stay for now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_those_of_the_object_completed() {
        let object: PodVolumeBackup = serde_json::from_value(json!({
            "apiVersion": "velero.io/v1", "kind": "PodVolumeBackup", "metadata": {"name": "b-1"},
            "spec": {
                "node": "n1", "pod": {"namespace": "ns", "name": "web", "uid": "u1"}, "volume": "data",
                "backupStorageLocation": "default", "repoIdentifier": "",
                "tags": {"backup": "b", "backup-uid": "bu", "pvc-uid": "c1", "pod": "web"},
            },
        }))
        .unwrap();
        assert_eq!(
            tags(&object),
            [
                "backup-uid=bu",
                "backup=b",
                "ns=ns",
                "pod-uid=u1",
                "pod=web",
                "pvc-uid=c1",
                "volume=data"
            ]
        );
    }

    #[test]
    fn which_pod_was_meant_is_what_the_api_server_says() {
        let reference = ObjectReference {
            uid: Some("new".to_owned()),
            ..ObjectReference::default()
        };
        for (uid, node, phase, said) in [
            ("new", "n", "Running", ""),
            ("new", "n", "Succeeded", "has ended"),
            ("new", "m", "Running", "is gone from node n"),
            ("newer", "n", "Running", "was replaced"),
            ("newer", "m", "Running", "was replaced"),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"uid": uid}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
            }))
            .unwrap();
            let why = meant(Some(pod), &reference, "n").err().unwrap_or_default();
            assert!(
                why.starts_with(said) && why.is_empty() == said.is_empty(),
                "{why}"
            );
        }
        assert!(meant(None, &reference, "n").is_err());
    }

    #[test]
    fn what_vanished_is_said_of_a_volume_that_is_complete() {
        for (vanished, empty, said) in [
            (0, false, None),
            (0, true, Some(VOLUME_EMPTY)),
            (1, true, Some("1 file vanished while the volume was read")),
            (7, false, Some("7 files vanished while the volume was read")),
        ] {
            let summary = BackupSummary {
                vanished,
                empty,
                ..BackupSummary::default()
            };
            assert_eq!(remark(&summary).as_deref(), said);
        }
    }

    #[test]
    fn an_incomplete_snapshot_is_never_named_by_a_failed_status() {
        let mut status = PodVolumeBackupStatus {
            snapshot_id: Some("abc".to_owned()),
            ..Default::default()
        };
        let summary = BackupSummary {
            error_count: 2,
            errors: vec![jackline_repository::FileProblem {
                path: "a/b".to_owned(),
                message: "permission denied".to_owned(),
            }],
            ..BackupSummary::default()
        };
        fail(&mut status, &incomplete(&summary));
        assert_eq!(status.phase, Some(PodVolumePhase::Failed));
        assert_eq!(status.snapshot_id, None);
        let message = status.message.unwrap();
        assert!(
            message.contains("2 files") && message.contains("a/b: permission denied"),
            "{message}"
        );
    }
}
