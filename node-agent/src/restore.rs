//! PodVolumeRestores whose pod is on this node: one snapshot into a volume.
//!
//! Begins when the pod's init container `restore-wait` runs (then the volumes are mounted and nothing else of the pod runs), ends with
//! the done-file and `Completed`. A restore that an ended agent left is begun again from the start: every file is written anew, so the
//! result is the same.
//!
//! After completion the done-file is looked after until the object goes: written again for a pod whose `restore-wait` runs again (a node
//! that restarted), removed when the controller says that every waiter has gone on; through another pod of the claim where the one that
//! was restored into is gone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jackline_crds::{
    names::{annotation, label},
    velero::{PodVolumePhase, PodVolumeRestore, PodVolumeRestoreStatus, UploaderType},
};
use jackline_repository::{Repository, RestoreOptions, RestoreSummary, SnapshotId};
use jackline_runtime::{Failure, Key, Next};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    context::{Context, PodHere, ask},
    marker,
    metrics::Operation,
    paths::Found,
    pods,
    progress::{self, Meter},
    record::Record,
    stop::{Patience, Stop, persist},
};

const ORDERLY: Duration = Duration::from_secs(20);
/// Uploader setting of Velero: leave holes.
const SPARSE: &str = "WriteSparseFiles";
/// Removes what is in the volume and not in the snapshot.
const DELETE: &str = "DeleteExtraFiles";

#[derive(Debug)]
pub(crate) struct Restores {
    context: Arc<Context>,
    patience: Patience,
    /// Volumes whose data is complete and whose status does not say so yet, with the UID of the object. From the done-file on they are
    /// their pods', whatever the API server and the watches know.
    complete: Mutex<HashMap<Key, (Option<String>, Complete)>>,
    /// UIDs of completed restores whose done-file was removed.
    settled: Mutex<HashSet<String>>,
}

/// A volume that has its data.
#[derive(Debug, Clone, Copy)]
struct Complete {
    bytes: u64,
    at: Timestamp,
}

impl Complete {
    fn now(bytes: u64) -> Self {
        let at = Timestamp::now();
        Self { bytes, at }
    }

    /// Restored by an agent that ended before it said so: what is known of it.
    fn earlier(object: &PodVolumeRestore, record: &Record<PodVolumeRestore>) -> Self {
        let shown = record.status().progress.map_or(0, |p| p.total_bytes);
        let bytes = shown.max(object.spec.snapshot_size);
        Self::now(u64::try_from(bytes).unwrap_or_default())
    }
}

/// UID of the Restore that an object belongs to: the name of the done-file.
pub(crate) fn restore_uid(object: &PodVolumeRestore) -> String {
    let owner = object
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "Restore");
    owner
        .map(|owner| owner.uid.clone())
        .or_else(|| object.labels().get(label::RESTORE_UID).cloned())
        .unwrap_or_default()
}

/// The node that has begun it. Definitions of Velero before 1.17 know no `status.node`.
fn node(object: &PodVolumeRestore) -> Option<&str> {
    let status = object.status.as_ref();
    let said = status.and_then(|status| status.node.as_deref());
    said.or_else(|| Some(object.annotations().get(annotation::NODE)?))
}

impl Restores {
    pub fn new(context: Arc<Context>) -> Self {
        let patience = Patience::new(context.give_up_after);
        Self {
            context,
            patience,
            complete: Mutex::default(),
            settled: Mutex::default(),
        }
    }

    pub async fn pass(&self, key: &Key) -> Result<Next, Failure> {
        let context = &self.context;
        context.pods.ready().await;
        let Some(object) = context.restores.get(key) else {
            self.forget(key);
            return Ok(Next::Done);
        };
        if object.phase().is_terminal() {
            self.forget(key);
            return match object.phase() {
                PodVolumePhase::Completed => self.look_after(&object).await,
                _ => Ok(Next::Done),
            };
        }
        if let Some(complete) = self.complete_already(key, &object) {
            let Some((object, record)) = self.fresh(&object).await? else {
                return Ok(Next::Done);
            };
            return self.end(key, &object, &record, Ok(complete)).await;
        }
        let uid = restore_uid(&object);
        let pod = match context.pod(&object.spec.pod) {
            // A short one may be over before its agent is back.
            PodHere::Yes(pod) if !pods::is_over(&pod) || pods::has_waited(&pod, &uid) => pod,
            _ if self.was_ours(&object) => {
                let Some((object, record)) = self.fresh(&object).await? else {
                    return Ok(Next::Done);
                };
                let message = "the pod is gone from this node; its volume was not restored";
                return self
                    .end(key, &object, &record, Err(Stop::Failed(message.to_owned())))
                    .await;
            }
            // Another node's, or not scheduled yet.
            _ => return Ok(Next::OnChange),
        };
        if object.phase() == PodVolumePhase::InProgress && pods::has_waited(&pod, &uid) {
            return self.end_of_earlier(key, &object).await;
        }
        context.alone(&*object, &object.spec.pod).await?;
        if pods::waits_since(&pod, &uid).is_none() {
            return Ok(Next::OnChange);
        }
        let _slot = context
            .slots
            .acquire()
            .await
            .map_err(|closed| Failure::terminal("Closed", closed))?;
        // The watch may be behind: a pod that has gone on meanwhile works on its data.
        let namespace = pod.namespace().unwrap_or_default();
        let api = Api::<Pod>::namespaced(context.client.0.clone(), &namespace);
        let now = api.get_opt(&pod.name_any()).await?;
        let Some(pod) = now.filter(|now| now.metadata.uid == pod.metadata.uid) else {
            return Ok(Next::OnChange);
        };
        let Some((object, record)) = self.fresh(&object).await? else {
            return Ok(Next::Done);
        };
        if pods::waits_since(&pod, &uid).is_none() {
            if object.phase() == PodVolumePhase::InProgress && pods::has_waited(&pod, &uid) {
                return self.end_of_earlier(key, &object).await;
            }
            return Ok(Next::OnChange);
        }
        let running = context.metrics.begin(Operation::Restore);
        let (meter, begun) = (Meter::default(), Instant::now());
        let result = self.attempt(&object, &record, &pod, &meter).await;
        drop(running);
        // Every attempt begins anew.
        let further = self.patience.got_further(key, meter.now().bytes_done);
        self.patience.tried(key, begun.elapsed(), further);
        self.end(key, &object, &record, result).await
    }

    /// Says that a volume is complete whose agent was killed between the done-file and the status: now it is the pod's.
    async fn end_of_earlier(&self, key: &Key, object: &PodVolumeRestore) -> Result<Next, Failure> {
        let Some((object, record)) = self.fresh(object).await? else {
            return Ok(Next::Done);
        };
        let complete = Complete::earlier(&object, &record);
        self.end(key, &object, &record, Ok(complete)).await
    }

    fn complete_already(&self, key: &Key, object: &PodVolumeRestore) -> Option<Complete> {
        let complete = self.complete.lock();
        let (uid, complete) = complete.get(key)?;
        (*uid == object.uid()).then_some(*complete)
    }

    fn forget(&self, key: &Key) {
        self.patience.forget(key);
        self.complete.lock().remove(key);
    }

    /// The object as the API server has it, unless it has ended or is another of that name. The store may be behind our own last write,
    /// and a volume whose pod runs must never be restored again.
    async fn fresh(
        &self,
        seen: &PodVolumeRestore,
    ) -> Result<Option<(PodVolumeRestore, Record<PodVolumeRestore>)>, Failure> {
        let api = self.context.api::<PodVolumeRestore>();
        let object = api.get_opt(&seen.name_any()).await?;
        let object = object.filter(|now| now.uid() == seen.uid() && !now.phase().is_terminal());
        Ok(object.map(|object| {
            let record = Record::new(api, object.clone());
            (object, record)
        }))
    }

    /// Whether this node has begun it.
    fn was_ours(&self, object: &PodVolumeRestore) -> bool {
        object.phase() == PodVolumePhase::InProgress && node(object) == Some(&self.context.node)
    }

    async fn end(
        &self,
        key: &Key,
        object: &PodVolumeRestore,
        record: &Record<PodVolumeRestore>,
        result: Result<Complete, Stop>,
    ) -> Result<Next, Failure> {
        let context = &self.context;
        let mut status = record.status();
        status.completion_timestamp = Some(Time(Timestamp::now()));
        let mut fail = |message: String| {
            status.phase = Some(PodVolumePhase::Failed);
            status.message = Some(message);
        };
        let mut written = None;
        match result {
            Ok(complete) => {
                written = Some(complete.bytes);
                let known = (object.uid(), complete);
                self.complete.lock().insert(key.clone(), known);
                status.phase = Some(PodVolumePhase::Completed);
                status.completion_timestamp = Some(Time(complete.at));
                status.progress = Some(progress::complete(complete.bytes));
                status.message = None;
            }
            Err(Stop::Shutdown) => return Ok(Next::After(Duration::from_secs(1))),
            Err(Stop::Gone) => return Ok(Next::Done),
            Err(Stop::Canceled) => {
                status.phase = Some(PodVolumePhase::Canceled);
                status.message = Some("canceled on request".to_owned());
            }
            Err(Stop::Retry(failure)) if self.patience.lasts(key) => return Err(failure),
            Err(Stop::Retry(failure)) => {
                fail(format!(
                    "given up: {}",
                    jackline_runtime::logging::chain(&failure)
                ));
            }
            Err(Stop::Failed(message)) => fail(message),
        }
        let told = persist(|| record.write(&status), &context.shutdown).await;
        told.map_err(|failure| match written {
            // However it was refused: the pod goes on, and this must be said some time.
            Some(_) => Failure::transient(failure.reason, failure.source),
            None => failure,
        })?;
        self.forget(key);
        let bytes = written.unwrap_or_default();
        context.metrics.bytes(Operation::Restore, "written", bytes);
        context.metrics.ended(Operation::Restore, written.is_some());
        self.say(object, &status);
        Ok(Next::OnChange)
    }

    fn say(&self, object: &PodVolumeRestore, status: &PodVolumeRestoreStatus) {
        let pod = &object.spec.pod;
        let what = format!(
            "volume {} of pod {}/{}",
            object.spec.volume,
            pod.namespace.as_deref().unwrap_or_default(),
            pod.name.as_deref().unwrap_or_default(),
        );
        let message = status.message.as_deref().unwrap_or_default();
        if status.phase == Some(PodVolumePhase::Failed) {
            tracing::warn!(what, message, "restore failed");
            let note = format!("restore of {what} failed: {message}");
            self.context.warn(object, pod, "VolumeRestoreFailed", note);
        } else {
            let bytes = status.progress.as_ref().map(|p| p.total_bytes);
            tracing::info!(
                what,
                phase = status.phase.map(PodVolumePhase::as_str),
                bytes,
                "restore ended"
            );
        }
    }

    async fn attempt(
        &self,
        object: &PodVolumeRestore,
        record: &Record<PodVolumeRestore>,
        pod: &Pod,
        meter: &Meter,
    ) -> Result<Complete, Stop> {
        let context = &self.context;
        let spec = &object.spec;
        if spec.cancel {
            return Err(Stop::Canceled);
        }
        if spec.uploader_type == UploaderType::Kopia {
            return Err(Stop::Failed(
                "the volume was saved by kopia, which is not supported; supported: restic"
                    .to_owned(),
            ));
        }
        let found = context
            .resolve(pod, &spec.volume)
            .await
            .map_err(|e| Stop::volume(&spec.volume, e))?;
        let (path, uid) = (found.path.clone(), restore_uid(object));
        let is_marked = ask(&found.path, move || marker::exists(&path, &uid)).await;
        if is_marked.map_err(|error| Stop::volume(&spec.volume, error.into()))? {
            return Ok(Complete::earlier(object, record));
        }

        let mut status = record.status();
        status.phase = Some(PodVolumePhase::InProgress);
        status
            .start_timestamp
            .get_or_insert_with(|| Time(Timestamp::now()));
        status.node = Some(context.node.clone());
        status.message = None;
        let node = json!({"annotations": {(annotation::NODE): context.node}});
        let begun = record.begin(&status, &node).await;
        begun.map_err(Stop::Retry)?;

        let repository = context
            .repositories
            .get(&spec.backup_storage_location, &spec.source_namespace, false)
            .await?;
        let snapshot = repository
            .resolve(&spec.snapshot_id)
            .await
            .map_err(Stop::repository)?;
        let summary = self
            .write(object, record, (&repository, &snapshot), &found, meter)
            .await?;
        if !summary.is_complete() {
            return Err(Stop::Failed(incomplete(&summary)));
        }
        if record.is_over(|now| now.phase().is_terminal()).await {
            return Err(Stop::Gone);
        }
        self.mark(object, &found).await?;
        Ok(Complete::now(summary.bytes))
    }

    async fn write(
        &self,
        object: &PodVolumeRestore,
        record: &Record<PodVolumeRestore>,
        (repository, snapshot): (&Repository, &SnapshotId),
        found: &Found,
        meter: &Meter,
    ) -> Result<RestoreSummary, Stop> {
        let context = &self.context;
        let settings = &object.spec.uploader_settings;
        let is_set = |key: &str| settings.get(key).is_some_and(|value| value == "true");
        let options = RestoreOptions {
            sparse: is_set(SPARSE),
            delete: is_set(DELETE),
            ..RestoreOptions::default()
        };
        let cancel = context.shutdown.child_token();
        let work = progress::reporting(
            meter,
            repository.restore(snapshot, &found.path, options, meter, &cancel),
            |progress| record.show(|status| status.progress = Some(progress)),
        );
        let key = Key::of(object);
        let canceled = context
            .restores
            .wait_for(|restores| match restores.get(&key) {
                // Whoever ended it has told the pod, and the next volume waits for its turn.
                Some(now) if now.phase().is_terminal() => Some(Stop::Gone),
                Some(now) => now.spec.cancel.then_some(Stop::Canceled),
                None => Some(Stop::Gone),
            });
        let interrupted = async {
            tokio::select! {
                () = context.pod_gone(&object.spec.pod) => {
                    Stop::Failed("the pod went away while its volume was being restored".to_owned())
                }
                stop = canceled => stop,
            }
        };
        tokio::pin!(work, interrupted);
        tokio::select! {
            biased;
            result = &mut work => result.map_err(Stop::repository),
            stop = &mut interrupted => {
                cancel.cancel();
                let _ = tokio::time::timeout(ORDERLY, &mut work).await;
                Err(stop)
            }
        }
    }

    /// Says in the volume that its data is complete.
    async fn mark(&self, object: &PodVolumeRestore, found: &Found) -> Result<(), Stop> {
        let (look, uid) = (found.clone(), restore_uid(object));
        let marked = tokio::task::spawn_blocking(move || {
            // The file must not end up in the directory underneath.
            if !look.still_there() {
                return Err(std::io::Error::other(
                    "the volume was unmounted while it was being restored",
                ));
            }
            marker::write(&look.path, &uid)
        });
        let failed = |error: &dyn std::fmt::Display| {
            Stop::Failed(format!(
                "the done-file in {} cannot be written: {error}",
                found.path.display()
            ))
        };
        match marked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(&error)),
            Err(panic) => Err(failed(&panic)),
        }
    }

    /// The done-file of a completed restore.
    async fn look_after(&self, object: &PodVolumeRestore) -> Result<Next, Failure> {
        let context = &self.context;
        let Some((pod, volume)) = self.reach(object) else {
            return Ok(Next::Done);
        };
        let uid = object.uid().unwrap_or_default();
        let waits = self.waits_again(object, &pod, &volume);
        let left = object.annotations().contains_key(annotation::WAITERS_LEFT);
        if !waits && (!left || self.settled.lock().contains(&uid)) {
            return Ok(Next::Done);
        }
        let found = match context.resolve(&pod, &volume).await {
            Ok(found) => found,
            // It would wait for ever.
            Err(error) if waits => return Err(Failure::transient("VolumeOutOfReach", error)),
            Err(error) => {
                // The pod is being taken down, most likely. Nothing can be done in a volume that is not there.
                tracing::debug!(
                    error = jackline_runtime::logging::chain(&error),
                    "done-file out of reach"
                );
                return Ok(Next::Done);
            }
        };
        let restore = restore_uid(object);
        let done = tokio::task::spawn_blocking(move || match waits {
            true if marker::exists(&found.path, &restore) => Ok(()),
            true => marker::write(&found.path, &restore),
            false => marker::remove(&found.path, &restore),
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure::transient("DoneFile", error)),
            Err(panic) => return Err(Failure::transient("DoneFile", panic)),
        }
        if waits {
            self.settled.lock().remove(&uid);
        } else {
            self.settled.lock().insert(uid);
        }
        Ok(Next::Done)
    }

    /// A pod of this node in which the volume is, and its name there: the one that was restored into or, when that is gone, any other
    /// that mounts the claim.
    fn reach(&self, object: &PodVolumeRestore) -> Option<(Arc<Pod>, String)> {
        let of = &object.spec.pod;
        if let PodHere::Yes(pod) = self.context.pod(of)
            && !pods::is_over(&pod)
        {
            return Some((pod, object.spec.volume.clone()));
        }
        let claim = object.annotations().get(annotation::PVC_NAME)?;
        let volume = |pod: &Pod| {
            let mut volumes = pod
                .spec
                .iter()
                .flat_map(|spec| spec.volumes.iter().flatten());
            let found = volumes.find(|volume| pods::claim(pod, volume).as_ref() == Some(claim));
            found.map(|volume| volume.name.clone())
        };
        let has_it = |pod: &Pod| {
            pod.metadata.namespace == of.namespace && !pods::is_over(pod) && volume(pod).is_some()
        };
        let pod = self.context.pods.find(has_it)?;
        let volume = volume(&pod)?;
        Some((pod, volume))
    }

    /// Whether a pod of this node that shares the volume has begun to wait after the restore was complete.
    fn waits_again(&self, object: &PodVolumeRestore, carrier: &Pod, volume: &str) -> bool {
        let Some(completed) = object
            .status
            .as_ref()
            .and_then(|s| s.completion_timestamp.as_ref())
        else {
            return false;
        };
        let restore = restore_uid(object);
        let claim = pods::volume(carrier, volume).and_then(|v| pods::claim(carrier, v));
        let shares = |pod: &Pod| match &claim {
            Some(claim) => pod
                .spec
                .as_ref()
                .and_then(|spec| spec.volumes.as_ref())
                .is_some_and(|volumes| {
                    volumes
                        .iter()
                        .any(|volume| pods::claim(pod, volume).as_ref() == Some(claim))
                }),
            None => pod.metadata.uid == carrier.metadata.uid,
        };
        self.context
            .pods
            .find(|pod| {
                pod.metadata.namespace == carrier.metadata.namespace
                    && shares(pod)
                    // One that waits for another volume in vain runs again and again.
                    && !pod.annotations().contains_key(annotation::RESTORE_OVER)
                    // Both are whole seconds.
                    && pods::runs_since(pod, &restore).is_some_and(|since| since >= completed.0)
            })
            .is_some()
    }
}

fn incomplete(summary: &RestoreSummary) -> String {
    let mut text = format!(
        "pod volume restore failed: {} entries were not restored completely",
        summary.error_count
    );
    for problem in summary.errors.iter().take(3) {
        text.push_str(&format!("; {}: {}", problem.path, problem.message));
    }
    text
}

#[cfg(test)]
mod tests;
