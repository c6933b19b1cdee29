//! One backup from InProgress to its end.

use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    fs::File,
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jackline_crds::{
    GoDuration,
    names::annotation,
    velero::{
        Backup, BackupPhase, BackupProgress, BackupStatus, BackupStorageLocation, PodVolumeBackup,
    },
};
use jackline_policy::backup::{Filter, object::ObjectRef};
use jackline_runtime::{Failure, LeaderToken};
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    end, files,
    holds::Holds,
    is_begun,
    log::BackupLog,
    newest, now, outcome, prepare,
    upload::{self, Existing, UploadError},
    volumes::{self, Plan, Volumes},
};
use crate::{
    agents,
    collect::{self, CollectError, Collection, Known, collect, discover},
    context::Context,
    fence, location,
    tarball::{Limits, TarballWriter},
};

/// Why a backup did not end.
#[derive(Debug)]
pub(super) enum JobError {
    /// It never will.
    Fatal(String),
    /// It may next time.
    Again(Failure),
}

impl<E: Into<Failure>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Again(error.into())
    }
}

fn spool(error: io::Error) -> JobError {
    JobError::Again(Failure::transient("NoTemporarySpace", error))
}

/// A backup that has ended.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// With its last status.
    pub(super) backup: Backup,
    /// Volumes that were moved.
    pub(super) volumes: usize,
    /// Its volumes' objects.
    pub(super) pod_volume_backups: Vec<Arc<PodVolumeBackup>>,
    /// Size of the tarball in bytes.
    pub(super) tarball: u64,
    /// The last error.
    pub(super) last_error: Option<String>,
}

/// What a backup needs to run.
pub(super) struct Job<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) token: &'a LeaderToken,
    pub(super) backup: &'a Backup,
    pub(super) location: &'a BackupStorageLocation,
    pub(super) log: &'a BackupLog,
    pub(super) collecting: &'a tokio::sync::Semaphore,
    pub(super) holds: &'a Holds,
    /// Namespaces in whose repositories it may have snapshots.
    pub(super) touched: &'a Mutex<BTreeSet<String>>,
}

/// How many objects there are, and how many have been written.
#[derive(Debug, Default)]
struct Counter {
    total: AtomicUsize,
    written: AtomicUsize,
}

impl Counter {
    fn progress(&self) -> BackupProgress {
        let count =
            |value: &AtomicUsize| i32::try_from(value.load(Ordering::Relaxed)).unwrap_or(i32::MAX);
        BackupProgress {
            total_items: count(&self.total),
            items_backed_up: count(&self.written),
        }
    }
}

/// The objects of a backup in a file.
struct Archive {
    collection: Collection,
    stored: Vec<usize>,
    file: File,
    size: u64,
}

/// How long the volumes of a backup may take, if that is limited.
pub(super) fn timeout(context: &Context, backup: &Backup) -> Option<Duration> {
    let limit = context.args.volume_timeout(backup.annotations());
    // It was sound when the backup began.
    limit.unwrap_or(context.args.fs_backup_timeout.map(GoDuration::to_std))
}

impl Job<'_> {
    pub(super) async fn run(&self) -> Result<Done, JobError> {
        let context = self.context;
        let store = location::open(&context.clients.call, &context.namespace, self.location).await;
        let store = store.map_err(|error| {
            if error.is_retryable() {
                JobError::Again(Failure::transient("LocationNotOpened", error))
            } else {
                JobError::Fatal(format!(
                    "the backup storage location cannot be opened: {error}"
                ))
            }
        })?;
        // Everything was there when the last leader went; only the object in the cluster does not know yet.
        if let Some(stored) = self.stored(&*store).await? {
            return self.adopt(&*store, stored).await;
        }
        self.notes();

        let counter = Arc::new(Counter::default());
        let (plan, planned) = oneshot::channel();
        let (leave_out, left_out) = oneshot::channel();
        let volumes = volumes::run(self, planned, leave_out);
        let objects = self.objects(counter.clone(), plan, left_out);
        let (volumes, archive) = tokio::select! {
            both = async { tokio::try_join!(volumes, objects) } => both?,
            never = self.show_progress(&counter) => match never {},
        };
        self.token.check()?;
        self.end(&*store, &counter, archive, volumes).await
    }

    /// This backup as it is in the bucket.
    async fn stored(&self, store: &dyn ObjectStore) -> Result<Option<Backup>, JobError> {
        let uid = self.backup.uid().unwrap_or_default();
        let existing = upload::existing(store, &self.backup.name_any(), &uid).await;
        match existing.map_err(refused)? {
            Existing::None => Ok(None),
            Existing::Ours(stored) => Ok(Some(*stored)),
            Existing::Foreign => Err(JobError::Fatal(
                "backup already exists in object storage".to_owned(),
            )),
        }
    }

    /// What can be said before anything is read.
    fn notes(&self) {
        let log = self.log;
        let spec = &self.backup.spec;
        let join = |list: &[String], none: &str| {
            if list.is_empty() {
                none.to_owned()
            } else {
                list.join(", ")
            }
        };
        log.info(
            &format!(
                "Including namespaces: {}",
                join(&spec.included_namespaces, "*")
            ),
            &[],
        );
        log.info(
            &format!(
                "Excluding namespaces: {}",
                join(&spec.excluded_namespaces, "<none>")
            ),
            &[],
        );
        let all = spec.default_volumes_to_fs_backup.unwrap_or_default();
        log.info(
            &format!("Backing up all volumes using pod volume backup: {all}"),
            &[],
        );
        if spec.snapshot_move_data == Some(true) {
            log.error(
                "snapshotMoveData is not supported: volumes are only read through pods",
                &[],
            );
        }
        if spec.snapshot_volumes == Some(true) {
            log.warning(
                "Native volume snapshots are not taken: volumes are only read through pods",
                &[],
            );
        }
    }

    /// Gathers the objects and writes them into a tarball. Pods and claims are handed on as soon as they are known.
    async fn objects(
        &self,
        counter: Arc<Counter>,
        plan: oneshot::Sender<Plan>,
        left_out: oneshot::Receiver<Vec<ObjectRef>>,
    ) -> Result<Archive, JobError> {
        let log = self.log;
        let permit = self.collecting.acquire().await;
        let collection = self.collect(plan).await?;
        drop(permit);
        counter
            .total
            .store(collection.items().len(), Ordering::Relaxed);
        // The other side has gone when there are no volumes to speak of.
        let left_out: HashSet<usize> = left_out
            .await
            .unwrap_or_default()
            .iter()
            .filter_map(|pod| collection.find(pod))
            .collect();
        let first = &self.backup.spec.ordered_resources;
        let (order, unknown) = collect::order(&collection, first, &left_out);
        for name in unknown {
            log.warning("Item of orderedResources was not found", &[("name", &name)]);
        }
        counter.total.store(order.len(), Ordering::Relaxed);
        let scratch = self.context.args.scratch();
        let written = counter.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let (file, size) = write(&collection, &order, &scratch, &written.written)?;
            Ok::<_, io::Error>(Archive {
                collection,
                stored: order,
                file,
                size,
            })
        });
        let archive = writer
            .await
            .map_err(|error| JobError::Again(Failure::transient("TarballNotWritten", error)))?;
        let archive = archive.map_err(spool)?;
        let items = archive.collection.items();
        let names = archive.stored.iter().filter_map(|&index| {
            let item = items.get(index)?;
            Some((&*item.name, item.namespace.as_deref()))
        });
        if let Some(why) = Limits::default().refusal_of(names) {
            let text = format!("No restore will take this backup: {why}. Split it by namespaces");
            log.error(&text, &[]);
        }
        log.info(
            &format!("Backed up a total of {} items", archive.stored.len()),
            &[],
        );
        Ok(archive)
    }

    async fn collect(&self, plan: oneshot::Sender<Plan>) -> Result<Collection, JobError> {
        let (context, log) = (self.context, self.log);
        let client = &context.clients.call;
        let spec = &self.backup.spec;
        let (discovered, mode, policies, agents) = tokio::join!(
            discover(client),
            volumes::mode(context, self.backup),
            prepare::volume_policies(context, spec),
            agents::now(context)
        );
        let (discovered, agents) = (discovered?, agents?);
        // A resumed backup reads them again, and they may have been changed since it was accepted.
        let policies = policies?.map_err(JobError::Fatal)?;
        for doubt in &policies.doubts {
            log.warning(doubt, &[]);
        }
        for stale in &discovered.stale {
            log.warning(
                "API group does not answer: its resources may be missing",
                &[("resource", stale)],
            );
        }
        let (filter, unknown) = Filter::new(&prepare::raw_filter(spec), &discovered.catalogue)
            .map_err(|errors| JobError::Fatal(errors.join("; ")))?;
        for name in unknown {
            log.warning(
                "Resource is not served by this cluster",
                &[("resource", &name)],
            );
        }
        let selectors = prepare::selectors(spec).map_err(JobError::Fatal)?;
        let claims = discovered.catalogue.find("persistentvolumeclaims");
        let claims_stored = claims.is_some_and(|claims| filter.collects(claims));
        let scratch = context.args.scratch();
        let request = collect::Request {
            filter: &filter,
            selectors: &selectors,
            page: context.args.client_page_size,
            scratch: &scratch,
            claims: match (claims_stored, policies.is_empty()) {
                (false, true) => Known::None,
                (true, true) => Known::Mounted,
                (_, false) => Known::All,
            },
        };
        let mut plan = Some(plan);
        let early = |collection: &Collection| {
            if let Some(plan) = plan.take() {
                // Nobody listens any more: the backup is being given up.
                let facts = &collection.facts;
                let in_order = collect::in_order(&collection.catalogue, &spec.ordered_resources);
                let in_order = in_order.into_iter().map(|(wanted, _)| wanted).collect();
                let _ = plan.send(Plan::new(
                    &agents,
                    facts,
                    &mode,
                    &policies,
                    claims_stored,
                    in_order,
                ));
            }
        };
        collect(client, discovered, &request, log, early)
            .await
            .map_err(|error| match error {
                CollectError::Spool(error) => spool(error),
                error => JobError::Again(Failure::transient("NotCollected", error)),
            })
    }

    /// Patches the progress at most once a second, when there is any.
    async fn show_progress(&self, counter: &Counter) -> Infallible {
        let mut shown = BackupProgress::default();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let progress = counter.progress();
            let now = self.context.key(self.backup.name_any());
            let now = self.context.stores.backups.get(&now);
            let now = now.filter(|now| now.uid() == self.backup.uid() && is_begun(now.phase()));
            let Some(now) = now.filter(|_| progress != shown) else {
                continue;
            };
            let status = BackupStatus {
                progress: Some(progress.clone()),
                ..now.status.clone().unwrap_or_default()
            };
            let api = self.context.api::<Backup>();
            match fence::write(&api, &*now, &status, json!({}), self.token).await {
                Ok(_) => shown = progress,
                // The next second is another chance; nothing depends on it.
                Err(error) => tracing::debug!(%error, "progress is not shown"),
            }
        }
    }

    /// Puts everything into the bucket and the last status onto the object.
    async fn end(
        &self,
        store: &dyn ObjectStore,
        counter: &Counter,
        archive: Archive,
        volumes: Volumes,
    ) -> Result<Done, JobError> {
        let name = self.backup.name_any();
        let mut backup = newest(self.context, self.backup, self.token).await?;
        let (warnings, errors) = self.log.counts();
        let (results, last_error) = (self.log.results(), self.log.last_error());
        let finished = if errors == 0 {
            BackupPhase::Completed
        } else {
            BackupPhase::PartiallyFailed
        };
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let status = BackupStatus {
            phase: Some(finished),
            completion_timestamp: Some(Time(now())),
            warnings: count(warnings),
            errors: count(errors),
            progress: Some(counter.progress()),
            hook_status: Some(volumes.hooks.clone()),
            ..backup.status.clone().unwrap_or_default()
        };
        let with_snapshot = volumes.objects.iter().filter(|volume| {
            volume
                .status
                .as_ref()
                .is_some_and(|status| status.snapshot_id.is_some())
        });
        let with_snapshot = with_snapshot.count().to_string();
        backup
            .annotations_mut()
            .insert(annotation::POD_VOLUME_BACKUPS.to_owned(), with_snapshot);
        let over = outcome::forget(&mut backup, &volumes.hooked);

        let small = files::build(&archive.collection, &archive.stored, &volumes, &results);
        let small = small.map_err(spool)?;
        // Others may have been quicker while this was read: theirs is not overwritten.
        if let Some(stored) = self.stored(store).await? {
            return self.adopt(store, stored).await;
        }
        let log = self.log.finish().map_err(spool)?;
        let scratch = self.context.args.scratch();
        upload::all(store, self.token, &name, &scratch, log, archive.file, small)
            .await
            .map_err(refused)?;

        let status = BackupStatus {
            completion_timestamp: Some(Time(now())),
            ..status
        };
        backup.status = Some(status);
        newest(self.context, self.backup, self.token).await?;
        let json = files::backup_json(&backup).map_err(spool)?;
        if !upload::commit(store, &name, json).await.map_err(refused)? {
            let why = "another wrote this backup into the bucket at the same time";
            return Err(JobError::Again(Failure::transient("AlreadyStored", why)));
        }
        let backup = self.publish(&backup, &over).await?;
        Ok(Done {
            backup,
            volumes: volumes.completed(),
            pod_volume_backups: volumes.objects,
            tarball: archive.size,
            last_error,
        })
    }

    /// Takes over the status of a backup that ended just before its last leader did. Where that was a Velero, it may have left the
    /// last phase to be written, and the tarball and the list of its volumes to be sent: it sends the Backup first.
    async fn adopt(&self, store: &dyn ObjectStore, mut stored: Backup) -> Result<Done, JobError> {
        let name = self.backup.name_any();
        if !stored.phase().is_terminal() {
            let has = async |file| upload::has(store, &name, file).await.map_err(refused);
            let put = async |file, body| {
                let put = store.put(&backup_object(&name, file), body).await;
                put.map_err(|error| refused(error.into()))
            };
            let whole = has(BackupFile::Contents).await?;
            let listed = has(BackupFile::PodVolumeBackups).await?;
            let mut status = stored.status.clone().unwrap_or_default();
            let phase = last_phase(&status, whole);
            status.phase = Some(phase);
            status.failure_reason = (phase == BackupPhase::Failed).then(|| NO_CONTENTS.to_owned());
            status.completion_timestamp = Some(Time(now()));
            stored.status = Some(status);
            newest(self.context, self.backup, self.token).await?;
            if whole && !listed {
                // It sends that after the tarball; the objects that it is made of are here.
                let uid = stored.uid().unwrap_or_default();
                let volumes = volumes::made_for(self.context, &uid).await?;
                let list = files::pod_volume_backups(&volumes).map_err(spool)?;
                put(BackupFile::PodVolumeBackups, list).await?;
            }
            let json = files::backup_json(&stored).map_err(spool)?;
            put(BackupFile::Metadata, json).await?;
        }
        if stored.phase() == BackupPhase::Failed {
            let why = stored.status.and_then(|status| status.failure_reason);
            let why = why.unwrap_or_else(|| "it is in the bucket as one that failed".to_owned());
            return Err(JobError::Fatal(why));
        }
        let backup = self.publish(&stored, &[]).await?;
        Ok(Done {
            backup,
            ..Done::default()
        })
    }

    /// Writes onto the object how the backup in the bucket has ended, and takes the annotations off that are over.
    async fn publish(&self, stored: &Backup, over: &[String]) -> Result<Backup, Failure> {
        let count = stored.annotations().get(annotation::POD_VOLUME_BACKUPS);
        let mut metadata = match count {
            Some(count) => json!({"annotations": {(annotation::POD_VOLUME_BACKUPS): count}}),
            None => json!({}),
        };
        for key in over {
            metadata["annotations"][key] = Value::Null;
        }
        let status = |_: &Backup| stored.status.clone().unwrap_or_default();
        end(self.context, self.backup, status, metadata, self.token).await
    }
}

/// Why a backup has failed that is in the bucket without its objects.
const NO_CONTENTS: &str = "the controller that ran it went before it had stored the objects: its tarball is not in the backup storage location";

/// How a backup ends that a Velero left in the bucket before its last phase was written. `whole`: its objects are there.
fn last_phase(status: &BackupStatus, whole: bool) -> BackupPhase {
    match status.phase.unwrap_or_default() {
        _ if !whole => BackupPhase::Failed,
        BackupPhase::WaitingForPluginOperations | BackupPhase::Finalizing if status.errors == 0 => {
            BackupPhase::Completed
        }
        _ => BackupPhase::PartiallyFailed,
    }
}

/// An error of the object store: worth another try, or the end.
fn refused(error: UploadError) -> JobError {
    match error {
        UploadError::Local(error) => spool(error),
        UploadError::NotLeader(error) => error.into(),
        UploadError::Storage(error) if error.is_retryable() => {
            JobError::Again(Failure::transient("StorageUnavailable", error))
        }
        error => JobError::Fatal(format!("the backup cannot be stored: {error}")),
    }
}

/// Writes the objects into a file without a name; gives its size.
fn write(
    collection: &Collection,
    order: &[usize],
    scratch: &std::path::Path,
    written: &AtomicUsize,
) -> io::Result<(File, u64)> {
    let time = u64::try_from(now().as_second()).unwrap_or_default();
    let file = BufWriter::with_capacity(256 << 10, tempfile::tempfile_in(scratch)?);
    let mut tarball = TarballWriter::new(file, time)?;
    for item in order
        .iter()
        .filter_map(|&index| collection.items().get(index))
    {
        let Some(resource) = collection.catalogue.resources().get(item.resource) else {
            continue;
        };
        let json = collection.read(item)?;
        tarball.object(
            &resource.group_resource(),
            &resource.version,
            item.namespace.as_deref(),
            &item.name,
            &json,
        )?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    let mut file = tarball.finish()?;
    file.flush()?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_velero_has_left_ends_as_velero_would_have_ended_it() {
        use BackupPhase::{
            Completed, Failed, Finalizing, FinalizingPartiallyFailed, InProgress, PartiallyFailed,
            WaitingForPluginOperations,
        };
        for (phase, errors, whole, expected) in [
            (Finalizing, 0, true, Completed),
            (WaitingForPluginOperations, 0, true, Completed),
            (Finalizing, 1, true, PartiallyFailed),
            (FinalizingPartiallyFailed, 1, true, PartiallyFailed),
            (InProgress, 0, true, PartiallyFailed),
            (Finalizing, 0, false, Failed),
            (FinalizingPartiallyFailed, 1, false, Failed),
        ] {
            let status = BackupStatus {
                phase: Some(phase),
                errors,
                ..BackupStatus::default()
            };
            assert_eq!(
                last_phase(&status, whole),
                expected,
                "{phase} {errors} {whole}"
            );
        }
    }
}
