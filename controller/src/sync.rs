//! Backups in the bucket appear in the cluster, and go from it with the bucket (velero-compat §9.2).
//!
//! Input: the directories of `backups/`, `velero-backup.json` and the stored PodVolumeBackups. Output: Backup and PodVolumeBackup
//! objects. Nothing is written while bucket and cluster agree.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jackline_crds::{
    names::{FIELD_MANAGER, annotation, label, label_value},
    velero::{
        Backup, BackupPhase, BackupStorageLocation, LocationPhase, PodVolumeBackup,
        PodVolumeBackupStatus, PodVolumePhase, Schedule,
    },
};
use jackline_runtime::{
    Class, Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions,
    status::{Guard, StatusAt, write_status},
};
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_names, backup_object},
};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use kube::{
    Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, PartialObjectMeta, PostParams, Preconditions},
};
use parking_lot::Mutex;

use crate::{context::Context, location};

mod read;
mod room;
mod split;

pub use read::{List, ReadFileError, read_backup, read_list};
use room::Room;

/// How often a bucket is listed when its location does not say.
const PERIOD: Duration = Duration::from_secs(60);

/// Starts the controller.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) {
    let queue = Queue::new("backup-sync");
    context.stores.locations.enqueue(&queue, |change| {
        // Status writes of the location itself are no reason to list the bucket.
        let same = match (&change.before, &change.after) {
            (Some(before), Some(after)) => {
                let phase = |location: &BackupStorageLocation| {
                    location.status.as_ref().and_then(|status| status.phase)
                };
                before.spec == after.spec && phase(before) == phase(after)
            }
            _ => false,
        };
        if same {
            Vec::new()
        } else {
            vec![change.key.clone()]
        }
    });
    let context = context.clone();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let options = RunOptions::new()
        .concurrency(2)
        .pass_deadline(Duration::from_secs(1800));
    kit.run_leading(&queue, options, lease, move |key, token| {
        let (context, seen) = (context.clone(), seen.clone());
        async move {
            context.alone().await?;
            pass(&context, &seen, &key, &token).await
        }
    });
}

/// What this process has seen to.
#[derive(Debug, Default)]
struct Seen {
    /// UIDs of the locations whose backups were all looked at once.
    verified: BTreeSet<String>,
    /// Location's UID and name of the backups that could not be taken over, of which was told.
    told: BTreeSet<(String, String)>,
}

async fn pass(
    context: &Context,
    seen: &Mutex<Seen>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(location) = context.stores.locations.get(key) else {
        return Ok(Next::Done);
    };
    let period = match location.spec.backup_sync_period {
        Some(period) if period.is_zero() => return Ok(Next::OnChange),
        Some(period) => period.to_std(),
        None => PERIOD,
    };
    let phase = location.status.as_ref().and_then(|status| status.phase);
    if phase != Some(LocationPhase::Available) {
        return Ok(Next::OnChange);
    }
    context.stores.backups.ready().await;
    context.stores.pod_volume_backups.ready().await;
    let uid = location.metadata.uid.clone().unwrap_or_default();
    let first = seen.lock().verified.insert(uid.clone());
    let result = sync(context, &location, seen, first, token).await;
    if !matches!(result, Ok(Synced { whole: true, .. })) {
        seen.lock().verified.remove(&uid);
    }
    let changed = result?.changed;
    let never = location
        .status
        .as_ref()
        .is_none_or(|status| status.last_synced_time.is_none());
    if changed > 0 || never {
        token.check()?;
        // The newest state: another controller writes this status too.
        if let Some(location) = context.stores.locations.get(key) {
            let mut status = location.status.clone().unwrap_or_default();
            status.last_synced_time = Some(Time(jiff::Timestamp::now()));
            let api = context.api::<BackupStorageLocation>();
            write_status(
                &api,
                &location,
                &status,
                StatusAt::Main,
                Guard::SameVersion,
                FIELD_MANAGER,
            )
            .await?;
        }
    }
    Ok(Next::After(period))
}

/// What came of looking at a bucket.
struct Synced {
    /// Objects that were written.
    changed: usize,
    /// Nothing that may pass by itself was in the way.
    whole: bool,
}

/// Makes cluster and bucket agree. What is wrong with one backup holds up no other.
async fn sync(
    context: &Context,
    location: &BackupStorageLocation,
    seen: &Mutex<Seen>,
    first: bool,
    token: &LeaderToken,
) -> Result<Synced, Failure> {
    let name = location.name_any();
    let store = location::open(&context.clients.call, &context.namespace, location)
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
    // What is complete before the listing has to be in it; what completes later may not be.
    let label = label_value(&name);
    let known: Vec<Arc<Backup>> = context.stores.backups.filter(|backup| {
        backup.labels().get(label::STORAGE_LOCATION) == Some(&label)
            && matches!(
                backup.phase(),
                BackupPhase::Completed | BackupPhase::PartiallyFailed
            )
    });
    let listed: BTreeSet<String> = backup_names(&*store)
        .await
        .map_err(|error| Failure::transient(error.reason(), error))?
        .into_iter()
        .collect();
    let (mut changed, mut whole) = (0, true);
    let mut room = Room::default();
    for backup in &listed {
        token.check()?;
        let here = context
            .stores
            .backups
            .get(&Key::namespaced(&context.namespace, backup));
        let result = match here {
            None => adopt(context, &*store, &name, backup, &mut room).await,
            Some(here) if first => complete(context, &*store, &name, &here, &mut room).await,
            Some(_) => Ok(0),
        };
        match result {
            Ok(count) => changed += count,
            Err(failure) if is_of_location(&failure) => return Err(failure),
            Err(failure) => {
                whole &= failure.class == Class::Terminal;
                warn(context, location, seen, backup, &failure);
            }
        }
    }
    let gone: Vec<_> = known
        .into_iter()
        .filter(|backup| !listed.contains(&backup.name_any()))
        .collect();
    if !gone.is_empty() {
        let now = context.fetch::<BackupStorageLocation>(&name).await?;
        let same =
            |now: &BackupStorageLocation| now.uid() == location.uid() && now.spec == location.spec;
        if !now.as_ref().is_some_and(same) {
            let why = "the location has changed while its bucket was listed";
            return Err(Failure::transient("LocationChanged", why));
        }
    }
    for backup in gone {
        token.check()?;
        tracing::info!(
            backup = backup.name_any(),
            location = name,
            "backup is gone from the bucket"
        );
        remove(context, &backup).await?;
        changed += 1;
    }
    Ok(Synced { changed, whole })
}

/// Whether the bucket itself does not answer: the next backup would fare no better.
fn is_of_location(failure: &Failure) -> bool {
    use jackline_storage::Error::{Busy, Timeout, Unreachable};
    matches!(
        failure.source.downcast_ref(),
        Some(Unreachable { .. } | Timeout { .. } | Busy { .. })
    )
}

/// Says once why a backup of the bucket is not, or not wholly, in the cluster.
fn warn(
    context: &Context,
    location: &BackupStorageLocation,
    seen: &Mutex<Seen>,
    backup: &str,
    failure: &Failure,
) {
    let uid = location.metadata.uid.clone().unwrap_or_default();
    if !seen.lock().told.insert((uid, backup.to_owned())) {
        return;
    }
    let why = location::chain(&*failure.source);
    tracing::warn!(
        backup,
        location = location.name_any(),
        why,
        "backup of the bucket is not taken over whole"
    );
    context.events.publish(Event {
        regarding: location.object_ref(&()),
        related: None,
        kind: EventKind::Warning,
        reason: "BackupNotSynced",
        action: "Sync",
        note: format!("backup {backup} of the bucket is not taken over whole: {why}"),
    });
}

/// Brings one backup of the bucket into the cluster.
async fn adopt(
    context: &Context,
    store: &dyn ObjectStore,
    location: &str,
    name: &str,
    room: &mut Room,
) -> Result<usize, Failure> {
    let Some(stored) = read_backup(store, name).await? else {
        // Leftovers of a backup that failed or is being deleted.
        return Ok(0);
    };
    let done = [
        BackupPhase::Completed,
        BackupPhase::PartiallyFailed,
        BackupPhase::Failed,
    ];
    if stored.name_any() != name {
        let why = format!("it says that it is backup {:?}", stored.name_any());
        return Err(Failure::terminal("NameDiffers", why));
    }
    if !done.contains(&stored.phase()) {
        return Ok(0);
    }
    let backup = desired(context, stored, location);
    let api = context.api::<Backup>();
    let made = match api.create(&PostParams::default(), &backup).await {
        Ok(made) => made,
        Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(0),
        Err(error) if is_refusal(&error) => return Err(Failure::terminal("Refused", error)),
        Err(error) => return Err(error.into()),
    };
    tracing::info!(
        backup = name,
        location,
        "backup of the bucket is in the cluster now"
    );
    Ok(1 + volumes_of(context, store, &[], location, &made, room).await?)
}

/// Whether the API server does not want the object; to one that is too large for etcd it says 500.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422 | 500))
}

/// The Backup object as this cluster holds it.
fn desired(context: &Context, stored: Backup, location: &str) -> Backup {
    let metadata = stored.metadata;
    let mut labels = metadata.labels.unwrap_or_default();
    labels.insert(label::STORAGE_LOCATION.to_owned(), label_value(location));
    let owners: Vec<OwnerReference> = metadata
        .owner_references
        .unwrap_or_default()
        .into_iter()
        .filter(|owner| {
            let schedule = context
                .stores
                .schedules
                .get(&Key::namespaced(&context.namespace, &owner.name));
            schedule.is_some_and(|schedule: Arc<Schedule>| {
                owner.kind == "Schedule" && schedule.metadata.uid.as_deref() == Some(&owner.uid)
            })
        })
        .collect();
    let mut backup = Backup {
        metadata: ObjectMeta {
            name: metadata.name,
            namespace: Some(context.namespace.clone()),
            labels: Some(labels),
            annotations: metadata.annotations,
            owner_references: (!owners.is_empty()).then_some(owners),
            ..ObjectMeta::default()
        },
        spec: stored.spec,
        status: stored.status,
    };
    backup.spec.storage_location = Some(location.to_owned());
    backup
}

/// A backup whose PodVolumeBackups did not all get here before a crash gets the rest.
async fn complete(
    context: &Context,
    store: &dyn ObjectStore,
    location: &str,
    backup: &Backup,
    room: &mut Room,
) -> Result<usize, Failure> {
    let done = [
        BackupPhase::Completed,
        BackupPhase::PartiallyFailed,
        BackupPhase::Failed,
    ];
    let ours = backup.spec.storage_location.as_deref() == Some(location);
    let mut here = pod_volumes(context, backup);
    // Those of a Backup of the same name that was deleted go with it.
    here.retain(|volume| !is_of_old(&volume.metadata, backup));
    if !ours || !done.contains(&backup.phase()) || is_whole(backup, &here) {
        return Ok(0);
    }
    volumes_of(context, store, &here, location, backup, room).await
}

/// Makes the PodVolumeBackups of the bucket's list that are not here, if there is room for them: without, the bucket alone has them.
async fn volumes_of(
    context: &Context,
    store: &dyn ObjectStore,
    here: &[Arc<PodVolumeBackup>],
    location: &str,
    backup: &Backup,
    room: &mut Room,
) -> Result<usize, Failure> {
    let stored = stored_pod_volumes(store, &backup.name_any())
        .await?
        .unwrap_or_default();
    let doubt = stored.doubt();
    let missing = missing(here, stored.volumes);
    let known = &context.stores.pod_volume_backups;
    let of_it = |volume: &PodVolumeBackup| volume.spec.backup_storage_location == location;
    room.take(&missing, || known.filter(of_it))
        .map_err(|why| Failure::terminal("NoRoom", why))?;
    let made = volumes(context, missing, location, backup).await?;
    match doubt {
        None => Ok(made),
        Some(why) => Err(Failure::terminal("EntriesRefused", why)),
    }
}

/// Whether the backup itself says that its list in the cluster is whole: then the bucket need not be asked.
fn is_whole(backup: &Backup, here: &[Arc<PodVolumeBackup>]) -> bool {
    let recorded = backup.annotations().get(annotation::POD_VOLUME_BACKUPS);
    let recorded = recorded.and_then(|count| count.parse::<usize>().ok());
    let snapshot = |volume: &PodVolumeBackup| {
        let id = volume.status.as_ref()?.snapshot_id.as_ref()?;
        (!id.is_empty()).then_some(())
    };
    let found = here.iter().filter_map(|volume| snapshot(volume)).count();
    recorded.is_some_and(|recorded| found >= recorded)
}

/// What of the bucket's list the cluster's lacks. One volume of one pod is one entry, whatever its object is called: a hostile list may
/// have taken the name.
pub fn missing(
    here: &[Arc<PodVolumeBackup>],
    stored: Vec<PodVolumeBackup>,
) -> Vec<PodVolumeBackup> {
    fn place(volume: &PodVolumeBackup) -> (Option<&str>, Option<&str>, &str) {
        let pod = &volume.spec.pod;
        let (namespace, name) = (pod.namespace.as_deref(), pod.name.as_deref());
        (namespace, name, &volume.spec.volume)
    }
    let known: BTreeSet<_> = here.iter().map(|volume| place(volume)).collect();
    let unknown = |volume: &PodVolumeBackup| !known.contains(&place(volume));
    stored.into_iter().filter(unknown).collect()
}

/// The PodVolumeBackups of a backup that are in the cluster.
pub fn pod_volumes(context: &Context, backup: &Backup) -> Vec<Arc<PodVolumeBackup>> {
    let label = label_value(&backup.name_any());
    context
        .stores
        .pod_volume_backups
        .filter(|volume| volume.labels().get(label::BACKUP_NAME) == Some(&label))
}

/// The PodVolumeBackups of a backup that its directory in the bucket holds; `None` where there is no list.
///
/// # Errors
/// When the object cannot be read or is not what it should be.
pub async fn stored_pod_volumes(
    store: &dyn ObjectStore,
    backup: &str,
) -> Result<Option<List>, ReadFileError> {
    let key = backup_object(backup, BackupFile::PodVolumeBackups);
    read::read_volumes(store, &key).await
}

async fn volumes(
    context: &Context,
    stored: Vec<PodVolumeBackup>,
    location: &str,
    backup: &Backup,
) -> Result<usize, Failure> {
    let api = context.api::<PodVolumeBackup>();
    let (mut made, mut in_the_way) = (0, None);
    for stored in stored {
        let volume = desired_volume(context, stored, location, backup);
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => made += 1,
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = api.get_metadata_opt(&volume.name_any()).await?;
                let is_old = |there: &PartialObjectMeta<_>| is_of_old(&there.metadata, backup);
                if there.as_ref().is_none_or(is_old) {
                    in_the_way = Some(volume.name_any());
                    continue;
                }
                let of = there.and_then(|there| there.labels().get(label::BACKUP_UID).cloned());
                if of != backup.metadata.uid {
                    tracing::warn!(
                        backup = backup.name_any(),
                        volume = volume.name_any(),
                        "another backup has a PodVolumeBackup of this name: restores and deletions read the bucket's list"
                    );
                }
            }
            Err(error) if is_refusal(&error) => {
                tracing::warn!(
                    backup = backup.name_any(),
                    volume = volume.name_any(),
                    %error,
                    "PodVolumeBackup of the bucket is refused"
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    match in_the_way {
        Some(name) => {
            let why =
                format!("PodVolumeBackup {name} of the Backup that was deleted is still there");
            Err(Failure::transient("VolumeOfOld", why))
        }
        None => Ok(made),
    }
}

/// Whether the garbage collector is about to remove a PodVolumeBackup: its owner was a Backup of the same name.
pub fn is_of_old(volume: &ObjectMeta, backup: &Backup) -> bool {
    let owners = volume.owner_references.iter().flatten();
    let mut backups = owners.filter(|owner| owner.kind == "Backup");
    let name = backup.name_any();
    backups.any(|owner| owner.name == name && Some(&owner.uid) != backup.metadata.uid.as_ref())
}

/// A stored PodVolumeBackup as this cluster holds it: same name, labels, spec and how it ended; owner and location are ours.
fn desired_volume(
    context: &Context,
    stored: PodVolumeBackup,
    location: &str,
    backup: &Backup,
) -> PodVolumeBackup {
    let uid = backup.metadata.uid.clone().unwrap_or_default();
    let mut labels = stored.metadata.labels.unwrap_or_default();
    labels.insert(
        label::BACKUP_NAME.to_owned(),
        label_value(&backup.name_any()),
    );
    labels.insert(label::BACKUP_UID.to_owned(), uid.clone());
    let owner = OwnerReference {
        api_version: "velero.io/v1".to_owned(),
        kind: "Backup".to_owned(),
        name: backup.name_any(),
        uid,
        controller: Some(true),
        block_owner_deletion: None,
    };
    let mut spec = stored.spec;
    spec.backup_storage_location = location.to_owned();
    spec.pod = ObjectReference {
        kind: Some("Pod".to_owned()),
        ..spec.pod
    };
    PodVolumeBackup {
        metadata: ObjectMeta {
            name: stored.metadata.name,
            namespace: Some(context.namespace.clone()),
            labels: Some(labels),
            annotations: stored.metadata.annotations,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec,
        status: Some(ended(stored.status)),
    }
}

/// How a stored PodVolumeBackup ended. One that has not ends here: an agent would begin it, and forget what its tags name.
fn ended(status: Option<PodVolumeBackupStatus>) -> PodVolumeBackupStatus {
    let status = status.unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    if phase.is_terminal() {
        return status;
    }
    PodVolumeBackupStatus {
        phase: Some(PodVolumePhase::Failed),
        message: Some(format!(
            "the list in the bucket has it unfinished, as {}: nobody goes on with it",
            phase.as_str()
        )),
        ..status
    }
}

/// Removes a Backup object (not its data) and its PodVolumeBackups, if it is still the one that was looked at.
async fn remove(context: &Context, backup: &Backup) -> Result<(), Failure> {
    let api = context.api::<Backup>();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: backup.metadata.uid.clone(),
            resource_version: backup.metadata.resource_version.clone(),
        }),
        ..DeleteParams::background()
    };
    match api.delete(&backup.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume_in(status: serde_json::Value) -> PodVolumeBackup {
        let mut volume = volume("b-1", "one", "");
        volume.status = serde_json::from_value(status).unwrap();
        volume
    }

    fn volume(name: &str, pod: &str, snapshot: &str) -> PodVolumeBackup {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"node": "n", "pod": {"namespace": "shop", "name": pod}, "volume": "data", "backupStorageLocation": "d",
                "repoIdentifier": "r", "uploaderType": "restic"},
            "status": {"phase": "Completed", "snapshotID": snapshot}
        }))
        .unwrap()
    }

    #[test]
    fn the_bucket_completes_the_list_of_the_cluster() {
        let here = [Arc::new(volume("b-1", "one", "aa"))];
        let stored = vec![
            volume("b-1", "one", "aa"),
            // The name that another's list has taken counts for nothing.
            volume("b-1", "two", "bb"),
            volume("b-3", "three", "cc"),
        ];
        let names = |volumes: &[PodVolumeBackup]| -> Vec<String> {
            let pods = volumes.iter().map(|volume| volume.spec.pod.name.clone());
            pods.flatten().collect()
        };
        assert_eq!(names(&missing(&here, stored.clone())), ["two", "three"]);
        assert_eq!(missing(&[], stored).len(), 3);
        assert!(missing(&here, Vec::new()).is_empty());
    }

    #[test]
    fn no_volume_of_the_bucket_s_list_is_there_to_be_begun() {
        let stored = |phase: &str| volume_in(json!({"phase": phase, "snapshotID": "aa"}));
        for phase in ["Completed", "Failed", "Canceled"] {
            let stored = stored(phase).status;
            assert_eq!(Some(ended(stored.clone())), stored);
        }
        for phase in ["New", "InProgress", "Accepted", "Canceling", "", "Ours"] {
            let status = ended(stored(phase).status);
            assert_eq!(status.phase, Some(PodVolumePhase::Failed), "{phase}");
            // A deletion has to find it.
            assert_eq!(status.snapshot_id.as_deref(), Some("aa"));
        }
        let status = ended(volume_in(json!(null)).status);
        assert_eq!(status.phase, Some(PodVolumePhase::Failed));
        let why = "the list in the bucket has it unfinished, as New: nobody goes on with it";
        assert_eq!(status.message.as_deref(), Some(why));
    }

    #[test]
    fn what_a_deleted_backup_of_the_name_owns_is_about_to_go() {
        let mut backup = Backup::new("b", Default::default());
        backup.metadata.uid = Some("new".to_owned());
        for (name, uid, old) in [("b", "old", true), ("b", "new", false), ("c", "old", false)] {
            let owner =
                json!({"apiVersion": "velero.io/v1", "kind": "Backup", "name": name, "uid": uid});
            let volume: ObjectMeta =
                serde_json::from_value(json!({"name": "b-1", "ownerReferences": [owner]})).unwrap();
            assert_eq!(is_of_old(&volume, &backup), old, "{name} {uid}");
        }
        assert!(!is_of_old(&ObjectMeta::default(), &backup));
    }

    #[test]
    fn a_backup_says_how_many_volumes_it_has() {
        let mut backup = Backup::new("b", Default::default());
        let here = [
            Arc::new(volume("b-1", "one", "aa")),
            Arc::new(volume("b-2", "empty", "")),
        ];
        assert!(!is_whole(&backup, &here));
        let mut says = |count: &str| {
            let annotation = (annotation::POD_VOLUME_BACKUPS.to_owned(), count.to_owned());
            backup.metadata.annotations = Some([annotation].into());
            is_whole(&backup, &here)
        };
        assert!(says("1") && says("0"));
        assert!(!says("2") && !says("x"));
    }
}
