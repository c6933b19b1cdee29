//! DeleteBackupRequest: a backup goes with its snapshots, its files and its restores (velero-compat §9.3, its faults mended).
//!
//! Each step can be repeated, and a request is worked on until it is done or cannot be: a crash in the middle costs nothing. The files
//! in the bucket go only when every snapshot was forgotten, so that nothing which names a snapshot is lost before the snapshot is.

mod request;
mod snapshots;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt;
use jackline_crds::{
    names::{FIELD_MANAGER, annotation, label, label_value},
    velero::{
        Backup, BackupPhase, BackupStorageLocation, DeleteBackupRequest, DeleteBackupRequestStatus,
        DeletePhase, Restore,
    },
};
use jackline_policy::elsewhere::Elsewhere;
use jackline_runtime::{
    Class, Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions,
    status::{Guard, StatusAt, write_status},
};
use jackline_storage::{
    ObjectMeta, ObjectStore,
    layout::{BackupFile, backup_directory, backup_object, restore_directory},
};
use jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use prometheus::{IntCounterVec, Opts};
use serde_json::json;

use crate::{context::Context, elsewhere, fence, location, maintenance, remove::remove, sync, uri};

pub use request::{asked, is_requested, request};
use snapshots::{Consequence, Snapshots, Tags};

/// A request that is done with errors is kept this long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How soon a step that others hold up is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Velero's metrics of deletions.
#[derive(Debug, Clone)]
struct Families {
    attempts: IntCounterVec,
    successes: IntCounterVec,
    failures: IntCounterVec,
}

impl Families {
    fn register(context: &Context) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), &["schedule"])?;
            // The series of backups by hand exists from the start.
            family.with_label_values(&[""]);
            jackline_runtime::metrics::add(context.metrics.registry(), family)
        };
        Ok(Self {
            attempts: counter(
                "velero_backup_deletion_attempt_total",
                "Deletions of backups begun.",
            )?,
            successes: counter(
                "velero_backup_deletion_success_total",
                "Deletions of backups done.",
            )?,
            failures: counter(
                "velero_backup_deletion_failure_total",
                "Deletions of backups failed.",
            )?,
        })
    }
}

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> Result<(), prometheus::Error> {
    let families = Families::register(context)?;
    let queue = Queue::new("deletions");
    context
        .stores
        .deletions
        .enqueue(&queue, |change| vec![change.key.clone()]);
    let context = context.clone();
    let options = RunOptions::new()
        .concurrency(4)
        .pass_deadline(Duration::from_secs(3600));
    kit.run_leading(&queue, options, lease, move |key, token| {
        let (context, families) = (context.clone(), families.clone());
        async move {
            context.alone().await?;
            Deletion {
                context: &context,
                families: &families,
                token: &token,
            }
            .pass(&key)
            .await
        }
    });
    Ok(())
}

/// How a deletion can stop.
enum Stop {
    /// It cannot be done: the request says why and ends.
    Refused(Vec<String>),
    /// It can be done later.
    Later(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Later(failure)
    }
}

impl From<kube::Error> for Stop {
    fn from(error: kube::Error) -> Self {
        Self::Later(error.into())
    }
}

struct Deletion<'a> {
    context: &'a Context,
    families: &'a Families,
    token: &'a LeaderToken,
}

impl Deletion<'_> {
    async fn pass(&self, key: &Key) -> Result<Next, Failure> {
        self.context.stores.ready().await;
        let Some(request) = self.context.stores.deletions.get(key) else {
            return Ok(Next::Done);
        };
        // Whoever asked may have taken it back.
        let name = request.name_any();
        let Some(request) = self.context.fetch::<DeleteBackupRequest>(&name).await? else {
            return Ok(Next::Done);
        };
        if request.phase() == DeletePhase::Processed {
            return self.forget_old(&request).await;
        }
        let name = request.spec.backup_name.as_str();
        if name.is_empty() {
            return self
                .refuse(
                    &request,
                    None,
                    vec!["spec.backupName is required".to_owned()],
                )
                .await;
        }
        let backups = self.context.api::<Backup>();
        let backup = match uri::name(name) {
            Some(name) => backups.get_opt(&name).await?,
            None => None,
        };
        let Some(backup) = backup else {
            if request.phase() == DeletePhase::InProgress {
                // Everything but the request itself was done before a crash.
                self.remove_requests(name).await?;
                return Ok(Next::Done);
            }
            return self
                .refuse(&request, None, vec![format!("backup {name} not found")])
                .await;
        };
        match self.delete(&request, &backup).await {
            Ok(()) => {
                self.families
                    .successes
                    .with_label_values(&[schedule(&backup)])
                    .inc();
                tracing::info!(backup = name, "backup is deleted");
                Ok(Next::Done)
            }
            Err(Stop::Refused(errors)) => self.refuse(&request, Some(&backup), errors).await,
            Err(Stop::Later(failure)) => {
                // The request stays, with what holds it up, and is taken up again.
                self.say(&request, DeletePhase::InProgress, vec![failure.to_string()])
                    .await?;
                Err(failure)
            }
        }
    }

    async fn delete(&self, request: &DeleteBackupRequest, backup: &Backup) -> Result<(), Stop> {
        let name = backup.name_any();
        let uid = backup.uid().unwrap_or_default();
        if let Some(meant) = request::other_backup(request, backup) {
            return Err(Stop::Refused(vec![format!(
                "the request is for {meant}, the backup {name} that is here has UID {uid}: to delete this one, make a new request"
            )]));
        }
        self.label(request, backup).await?;
        for other in self.requests(&name) {
            if other.metadata.uid != request.metadata.uid && older(request, &other) {
                self.remove_request(&other).await?;
            }
        }
        let location = self.check(backup).await?;
        let store = location::open(
            &self.context.clients.call,
            &self.context.namespace,
            &location,
        )
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
        is_read(&self.restores(&name).await?)?;
        self.keep_what_is_elsewhere(backup, &*store).await?;
        if request.phase() != DeletePhase::InProgress {
            self.families
                .attempts
                .with_label_values(&[schedule(backup)])
                .inc();
            self.say(request, DeletePhase::InProgress, Vec::new())
                .await?;
        }
        let there = snapshots::stored_uid(&*store, &name).await?;
        // A later pass may find what another cluster has put under the name meanwhile.
        let noted = backup.annotations().get(annotation::DELETED_UID).cloned();
        let meant = noted.unwrap_or_else(|| there.clone().unwrap_or_default());
        let is_meant = |there: Option<String>| there.is_none_or(|there| there == meant);
        self.mark(backup, &meant).await?;
        // From now on no restore of it begins, but one may have begun meanwhile.
        let restores = self.restores(&name).await?;
        is_read(&restores)?;
        if is_meant(there) {
            let wanted = snapshots::of_backup(self.context, backup, &*store).await?;
            let unsearched = forget(self.context, &name, &location, &wanted, self.token).await?;
            say_left(self.context, backup, &unsearched);
        }
        // That may have taken long, and another leader may have been here: a new backup may have the name by now.
        self.still(backup).await?;
        if is_meant(snapshots::stored_uid(&*store, &name).await?) {
            remove_files(&*store, &name, self.token).await?;
        }
        for restore in restores {
            // Its finalizer finds them through the backup, which may be gone by then.
            self.token.check().map_err(Failure::from)?;
            store
                .delete_prefix(&restore_directory(&restore.name_any()))
                .await
                .map_err(|error| Failure::transient(error.reason(), error))?;
            self.remove_restore(&restore).await?;
        }
        self.remove_backup(backup).await?;
        self.remove_requests(&name).await?;
        Ok(())
    }

    /// The location, if the backup may be deleted now.
    async fn check(&self, backup: &Backup) -> Result<BackupStorageLocation, Stop> {
        let refuse = |why: String| Err(Stop::Refused(vec![why]));
        let phase = backup.phase();
        let done = phase.is_terminal() || phase == BackupPhase::Deleting;
        if !done && phase != BackupPhase::New {
            return refuse("backup is still in progress".to_owned());
        }
        let name = backup.spec.storage_location.clone().unwrap_or_default();
        let location = self.context.fetch::<BackupStorageLocation>(&name).await?;
        let Some(location) = location else {
            return refuse(format!("backup storage location {name} not found"));
        };
        if location::is_new(&location) {
            let why = format!("location {name} has not been looked at yet");
            return Err(Failure::waiting(RETRY, "LocationIsNew", why).into());
        }
        if location::read_only(&location) {
            return refuse(format!(
                "cannot delete backup because backup storage location {name} is currently in read-only mode"
            ));
        }
        match location::usable(&location, true) {
            Ok(()) => Ok(location),
            Err(why) => refuse(format!("cannot delete backup because {why}")),
        }
    }

    /// A backup that is the only record of snapshots which only a Velero can delete stays until somebody says that they may.
    async fn keep_what_is_elsewhere(
        &self,
        backup: &Backup,
        store: &dyn ObjectStore,
    ) -> Result<(), Stop> {
        if elsewhere::may_stay(backup) {
            return Ok(());
        }
        let name = backup.name_any();
        let in_cluster = sync::pod_volumes(self.context, backup);
        let here = in_cluster.iter().map(AsRef::as_ref);
        let mut found: BTreeSet<Elsewhere> = elsewhere::in_list(here).collect();
        // The cluster may not have taken the whole list.
        let (stored, _) = snapshots::stored_list(store, &name).await?;
        found.extend(elsewhere::in_list(&stored));
        let unnamed = match elsewhere::in_bucket(store, &name).await {
            Ok(Some(stored)) => {
                found.extend(stored.into_iter().filter(|copy| !copy.failed));
                0
            }
            // Nothing names them, but the Backup may count them.
            Ok(None) => elsewhere::counted(backup),
            Err(error) if error.is_damage() => elsewhere::counted(backup),
            Err(error) => return Err(Failure::from(error).into()),
        };
        match lost(&found, unnamed) {
            Some(what) => Err(Stop::Refused(vec![format!(
                "the backup is the only record of {what}, which Jackline cannot delete: delete it through a Velero, or let them stay \
                 where they are (annotation {}: \"true\" of the Backup) and ask again",
                annotation::LEAVE_SNAPSHOTS
            )])),
            None => Ok(()),
        }
    }

    /// As the API server has them: one that was asked for first comes first.
    async fn restores(&self, backup: &str) -> Result<Vec<Restore>, kube::Error> {
        let mut restores = self
            .context
            .fetch_all::<Restore>(&ListParams::default())
            .await?;
        restores.retain(|restore| {
            restore.spec.backup_name.as_deref() == Some(backup)
                && restore.metadata.deletion_timestamp.is_none()
        });
        Ok(restores)
    }

    fn requests(&self, backup: &str) -> Vec<Arc<DeleteBackupRequest>> {
        self.context
            .stores
            .deletions
            .filter(|request| request.spec.backup_name == backup)
    }

    /// Adds Velero's labels where whoever made the request left them out.
    async fn label(
        &self,
        request: &DeleteBackupRequest,
        backup: &Backup,
    ) -> Result<(), kube::Error> {
        let uid = backup.metadata.uid.clone().unwrap_or_default();
        let wanted = [
            (label::BACKUP_NAME, label_value(&backup.name_any())),
            (label::BACKUP_UID, uid),
        ];
        if wanted
            .iter()
            .all(|(key, value)| request.labels().get(*key) == Some(value))
        {
            return Ok(());
        }
        let labels: serde_json::Map<_, _> = wanted
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let patch = json!({"metadata": {"uid": request.metadata.uid, "labels": labels}});
        self.context
            .api::<DeleteBackupRequest>()
            .patch(&request.name_any(), &patch_params(), &Patch::Merge(patch))
            .await
            .map(|_| ())
    }

    /// Says that the backup is being deleted, and by which leader.
    async fn mark(&self, backup: &Backup, meant: &str) -> Result<(), Failure> {
        let mut status = backup.status.clone().unwrap_or_default();
        status.phase = Some(BackupPhase::Deleting);
        let api = self.context.api::<Backup>();
        let note = json!({"annotations": {(annotation::DELETED_UID): meant}});
        fence::write(&api, backup, &status, note, self.token).await?;
        Ok(())
    }

    /// Whether the backup is still there, and this leader the one that deletes it.
    async fn still(&self, backup: &Backup) -> Result<(), Failure> {
        let now = self
            .context
            .api::<Backup>()
            .get_opt(&backup.name_any())
            .await?;
        match now.filter(|now| now.uid() == backup.uid()) {
            Some(now) => Ok(fence::check(&now, self.token)?),
            None => Err(Failure::new(
                Class::Conflict,
                "Gone",
                "another has deleted the backup",
            )),
        }
    }

    async fn say(
        &self,
        request: &DeleteBackupRequest,
        phase: DeletePhase,
        errors: Vec<String>,
    ) -> Result<(), Failure> {
        self.token.check()?;
        let status = DeleteBackupRequestStatus {
            phase: Some(phase),
            errors,
        };
        let api = self.context.api::<DeleteBackupRequest>();
        write_status(
            &api,
            request,
            &status,
            StatusAt::Main,
            Guard::SameObject,
            FIELD_MANAGER,
        )
        .await?;
        Ok(())
    }

    /// Ends a request that cannot be carried out.
    async fn refuse(
        &self,
        request: &DeleteBackupRequest,
        backup: Option<&Backup>,
        errors: Vec<String>,
    ) -> Result<Next, Failure> {
        let why = errors.join("; ");
        tracing::warn!(
            backup = request.spec.backup_name,
            why,
            "backup is not deleted"
        );
        self.say(request, DeletePhase::Processed, errors).await?;
        if let Some(backup) = backup {
            self.families
                .failures
                .with_label_values(&[schedule(backup)])
                .inc();
            self.context.events.publish(Event {
                regarding: backup.object_ref(&()),
                related: Some(request.object_ref(&())),
                kind: EventKind::Warning,
                reason: "BackupNotDeleted",
                action: "Delete",
                note: why,
            });
        }
        Ok(Next::After(KEPT))
    }

    /// A request that ended with errors is forgotten after a day.
    async fn forget_old(&self, request: &DeleteBackupRequest) -> Result<Next, Failure> {
        let created = request
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let until = created.and_then(|created| created.checked_add(KEPT).ok());
        match until {
            Some(until) if until > Timestamp::now() => Ok(Next::At(until)),
            _ => {
                self.remove_request(request).await?;
                Ok(Next::Done)
            }
        }
    }

    async fn remove_restore(&self, restore: &Restore) -> Result<(), Failure> {
        remove(&self.context.api::<Restore>(), restore, self.token).await
    }

    /// The PodVolumeBackups too: without a garbage collector nobody else removes them.
    async fn remove_backup(&self, backup: &Backup) -> Result<(), Failure> {
        use jackline_crds::velero::PodVolumeBackup;
        for volume in sync::pod_volumes(self.context, backup) {
            let api = self.context.api::<PodVolumeBackup>();
            remove(&api, &*volume, self.token).await?;
        }
        remove(&self.context.api::<Backup>(), backup, self.token).await
    }

    async fn remove_requests(&self, backup: &str) -> Result<(), Failure> {
        for request in self.requests(backup) {
            self.remove_request(&request).await?;
        }
        Ok(())
    }

    async fn remove_request(&self, request: &DeleteBackupRequest) -> Result<(), Failure> {
        remove(
            &self.context.api::<DeleteBackupRequest>(),
            request,
            self.token,
        )
        .await
    }
}

/// Waits for restores that read the backup.
fn is_read(restores: &[Restore]) -> Result<(), Failure> {
    let running = restores
        .iter()
        .find(|restore| !restore.phase().is_terminal());
    let Some(running) = running else {
        return Ok(());
    };
    let why = format!(
        "restore {} of this backup is in progress",
        running.name_any()
    );
    Err(Failure::waiting(RETRY, "RestoreInProgress", why))
}

/// What would be lost with a backup, in words; `unnamed`: snapshots that are only counted.
fn lost(found: &BTreeSet<Elsewhere>, unnamed: i32) -> Option<String> {
    const NAMED: usize = 5;
    if found.is_empty() {
        return (unnamed > 0).then(|| format!("{unnamed} snapshots of volumes"));
    }
    let mut what: Vec<String> = found.iter().take(NAMED).map(Elsewhere::what).collect();
    if found.len() > NAMED {
        what.push(format!("{} more", found.len() - NAMED));
    }
    Some(what.join(", "))
}

/// Forgets the snapshots. Returns which repositories could not be searched, where no list says that they hold any.
async fn forget(
    context: &Context,
    backup: &str,
    location: &BackupStorageLocation,
    wanted: &Snapshots,
    token: &LeaderToken,
) -> Result<Vec<String>, Stop> {
    let (mut errors, mut unsearched) = (Vec::new(), Vec::new());
    let none = BTreeSet::new();
    let named = wanted
        .by_namespace
        .iter()
        .map(|(name, ids)| (name, ids, true));
    let unnamed = wanted.unnamed.iter().map(|name| (name, &none, false));
    for (namespace, ids, is_named) in named.chain(unnamed) {
        token.check().map_err(Failure::from)?;
        let error = match snapshots::forget(context, location, namespace, ids, &wanted.tags).await {
            Ok(0) => continue,
            Ok(count) => {
                tracing::info!(backup, namespace, count, "snapshots are forgotten");
                maintenance::request(context, location, namespace)
                    .await
                    .map_err(|error| Failure::transient("NotNoted", error))?;
                continue;
            }
            Err(error) => error,
        };
        let why = format!(
            "repository of namespace {namespace}: {}",
            location::chain(&error)
        );
        match snapshots::consequence(&error, is_named) {
            Consequence::Retried => {
                return Err(Failure::transient("RepositoryBusy", error).into());
            }
            Consequence::Refused => errors.push(why),
            Consequence::Unsearched => unsearched.push(why),
        }
    }
    if errors.is_empty() {
        Ok(unsearched)
    } else {
        Err(Stop::Refused(errors))
    }
}

/// Says which repositories may still hold snapshots of a backup that goes, and why.
fn say_left(context: &Context, backup: &Backup, repositories: &[String]) {
    if repositories.is_empty() {
        return;
    }
    let why = repositories.join("; ");
    tracing::warn!(
        backup = backup.name_any(),
        why,
        "snapshots of a deleted backup may be left behind"
    );
    context.events.publish(Event {
        regarding: backup.object_ref(&()),
        related: None,
        kind: EventKind::Warning,
        reason: "SnapshotsLeft",
        action: "Delete",
        note: format!("snapshots of the backup may be left behind: {why}"),
    });
}

/// Removes what a Backup that was deleted before its end has left behind: files, and snapshots in the repositories of `namespaces`, or of
/// any where it is not known which. A backup that is whole in the bucket stays.
///
/// # Errors
/// What may be better next time.
pub async fn clear_up(
    context: &Context,
    backup: &Backup,
    location: &BackupStorageLocation,
    namespaces: Option<BTreeSet<String>>,
    token: &LeaderToken,
) -> Result<(), Failure> {
    let (name, uid) = (backup.name_any(), backup.uid());
    let store = location::open(&context.clients.call, &context.namespace, location)
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
    if snapshots::stored_uid(&*store, &name).await? == uid {
        return Ok(());
    }
    let mut left = Snapshots {
        by_namespace: BTreeMap::new(),
        unnamed: BTreeSet::new(),
        tags: Tags::new(&name, uid),
    };
    match namespaces {
        Some(namespaces) => {
            let namespaces = namespaces.into_iter();
            left.by_namespace = namespaces.map(|name| (name, BTreeSet::new())).collect();
        }
        None => {
            let found = location::repositories(&*store)
                .await
                .map_err(|error| Failure::transient("LocationClosed", error))?;
            left.unnamed.extend(found);
        }
    }
    match forget(context, &name, location, &left, token).await {
        Ok(why) | Err(Stop::Refused(why)) => say_left(context, backup, &why),
        Err(Stop::Later(failure)) => return Err(failure),
    }
    if snapshots::stored_uid(&*store, &name).await?.is_none() {
        remove_files(&*store, &name, token).await?;
    }
    tracing::info!(
        backup = name,
        "what the deleted Backup left behind is removed"
    );
    Ok(())
}

/// The first of several requests does the work.
fn older(one: &DeleteBackupRequest, other: &DeleteBackupRequest) -> bool {
    let age = |request: &DeleteBackupRequest| {
        (
            request
                .metadata
                .creation_timestamp
                .clone()
                .map(|time| time.0),
            request.name_any(),
        )
    };
    age(one) < age(other)
}

fn schedule(backup: &Backup) -> &str {
    backup
        .labels()
        .get(label::SCHEDULE_NAME)
        .map_or("", String::as_str)
}

/// What says that the backup exists goes first: whoever looks in the middle sees no backup instead of half of one. Where a new one
/// appears under the name meanwhile, nothing more is removed.
async fn remove_files(
    store: &dyn ObjectStore,
    backup: &str,
    token: &LeaderToken,
) -> Result<(), Failure> {
    let failed = |error: jackline_storage::Error| Failure::transient(error.reason(), error);
    token.check()?;
    let metadata = backup_object(backup, BackupFile::Metadata);
    store.delete(&metadata).await.map_err(failed)?;
    let directory = format!("{}/", backup_directory(backup));
    let files: Vec<ObjectMeta> = store.list(&directory).try_collect().await.map_err(failed)?;
    for file in files {
        token.check()?;
        if store.head(&metadata).await.map_err(failed)?.is_some() {
            tracing::warn!(metadata, "written anew: the other files are left there");
            return Ok(());
        }
        store.delete(&file.key).await.map_err(failed)?;
    }
    Ok(())
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

#[cfg(test)]
mod tests {
    use jackline_policy::elsewhere::Method;
    use jackline_storage::memory::MemoryStore;

    use super::*;
    use crate::context::unwatched::{completed, context, location, path};

    #[tokio::test]
    async fn files_go_only_while_this_leader_leads() {
        let store = MemoryStore::new();
        for key in ["backups/b/b-logs.gz", "backups/bb/bb-logs.gz"] {
            store.put(key, "x".into()).await.unwrap();
        }
        let (token, held) = LeaderToken::for_tests();
        remove_files(&store, "b", &token).await.unwrap();
        let left = async || store.list_level("backups").await.unwrap().prefixes;
        assert_eq!(left().await, ["backups/bb/"]);
        drop(held);
        assert!(remove_files(&store, "bb", &token).await.is_err());
        assert_eq!(left().await, ["backups/bb/"]);
    }

    #[tokio::test]
    async fn a_location_that_was_just_made_writable_is_written_to() {
        let backup = serde_json::from_value(completed("b", 1)).unwrap();
        let (token, _held) = LeaderToken::for_tests();
        let at = path("backupstoragelocations", "here");
        let mut here = location("here");
        for (mode, refused) in [("ReadOnly", true), ("ReadWrite", false)] {
            here["spec"]["accessMode"] = json!(mode);
            let context = context(&[(&at, here.clone())]);
            let deletion = Deletion {
                context: &context,
                families: &Families::register(&context).unwrap(),
                token: &token,
            };
            let checked = deletion.check(&backup).await;
            assert_eq!(matches!(checked, Err(Stop::Refused(_))), refused, "{mode}");
            assert_eq!(checked.is_ok(), !refused, "{mode}");
        }
    }

    #[test]
    fn what_would_be_lost_is_named() {
        assert_eq!(lost(&BTreeSet::new(), 0), None);
        let counted = lost(&BTreeSet::new(), 2);
        assert_eq!(counted.as_deref(), Some("2 snapshots of volumes"));
        let of = |claim: i32| Elsewhere {
            namespace: "shop".to_owned(),
            claim: Some(format!("c{claim}")),
            volume: String::new(),
            method: Method::Csi,
            failed: false,
        };
        let found = (0..7).map(of).collect();
        let what = lost(&found, 0).unwrap();
        assert!(
            what.starts_with("CSI snapshot of claim shop/c0, "),
            "{what}"
        );
        assert!(what.ends_with("shop/c4, 2 more"), "{what}");
    }
}
