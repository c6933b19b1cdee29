//! Restore: brings the objects and the data of a backup back (velero-compat §7).
//!
//! Input: the Restore, its backup in the bucket, the cluster. Output: objects, PodVolumeRestores, files in `restores/<name>/`, the
//! status. Invariants: a restore that was cut off is continued by whoever leads next, never marked Failed for that; no pod of a claim
//! and no workload that would make one starts before the claim's data is back.

mod adapt;
mod begin;
mod catalog;
mod cluster;
mod copies;
mod details;
mod files;
mod hooks;
mod items;
mod namespaces;
mod over;
mod plan;
mod pods;
mod report;
mod run;
mod served;
mod used;
mod validate;
mod volumes;
mod waiters;

use std::{sync::Arc, time::Duration};

use jackline_crds::{
    names::{FIELD_MANAGER, annotation, finalizer, label},
    velero::{Backup, Restore, RestorePhase, RestoreProgress, RestoreStatus},
};
use jackline_policy::restore::skip::NOT_RESTORABLE;
use jackline_runtime::{
    Class, Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store,
    WatchSpec,
};
use jackline_storage::layout::restore_directory;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use prometheus::{IntCounterVec, IntGauge, Opts};
use serde_json::{Map, Value, json};

pub use pods::RestoredPod;

use crate::{context::Context, fence, location};
use report::{Place, Report};
use run::{Ending, Finished};
use served::Served;
use validate::Valid;

/// Restores that run at once.
const CONCURRENCY: usize = 4;
/// How long a restore that is being deleted waits for a location that does not answer.
const CLEAN_UP: Duration = Duration::from_secs(45);

/// Velero's metrics of restores.
#[derive(Debug, Clone)]
struct Families {
    total: IntGauge,
    running: IntGauge,
    attempts: IntCounterVec,
    successes: IntCounterVec,
    partial: IntCounterVec,
    failed: IntCounterVec,
    invalid: IntCounterVec,
}

impl Families {
    fn register(context: &Context) -> Result<Self, prometheus::Error> {
        let registry = context.metrics.registry();
        let counter = |what: &str, help: &str| {
            let family = IntCounterVec::new(
                Opts::new(format!("velero_restore_{what}_total"), help),
                &["schedule"],
            )?;
            // The series of restores by hand exists from the start.
            family.with_label_values(&[""]);
            jackline_runtime::metrics::add(registry, family)
        };
        let gauge = |name: &str, help: &str| {
            IntGauge::new(name, help).and_then(|g| jackline_runtime::metrics::add(registry, g))
        };
        Ok(Self {
            total: gauge("velero_restore_total", "Restore objects.")?,
            running: gauge("jackline_restores_in_progress", "Restores in progress.")?,
            attempts: counter("attempt", "Restores begun.")?,
            successes: counter("success", "Restores completed.")?,
            partial: counter("partial_failure", "Restores that ended with errors.")?,
            failed: counter("failed", "Restores that failed.")?,
            invalid: counter("validation_failed", "Restores that were refused.")?,
        })
    }

    fn ended(&self, phase: RestorePhase, schedule: &str) {
        let family = match phase {
            RestorePhase::Completed => &self.successes,
            RestorePhase::PartiallyFailed => &self.partial,
            RestorePhase::FailedValidation => &self.invalid,
            _ => &self.failed,
        };
        family.with_label_values(&[schedule]).inc();
    }
}

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> Result<(), prometheus::Error> {
    let families = Families::register(context)?;
    let pods: Store<RestoredPod> =
        kit.watch(WatchSpec::new("restored-pods").labels(label::RESTORE_NAME));
    waiters::register(context, kit, lease, &pods);
    let queue = Queue::new("restores");
    {
        let (restores, families) = (context.stores.restores.clone(), families.clone());
        context.stores.restores.on_change(move |_| {
            let running = restores.filter(|restore| restore.phase() == RestorePhase::InProgress);
            families
                .running
                .set(i64::try_from(running.len()).unwrap_or(i64::MAX));
            families
                .total
                .set(i64::try_from(restores.len()).unwrap_or(i64::MAX));
        });
    }
    context
        .stores
        .restores
        .enqueue(&queue, |change| vec![change.key.clone()]);
    let context = context.clone();
    let options = RunOptions::new()
        .concurrency(CONCURRENCY)
        .pass_deadline(None);
    kit.run_leading(&queue, options, lease, move |key, token| {
        let (context, pods, families) = (context.clone(), pods.clone(), families.clone());
        async move {
            let controller = Controller {
                context: &context,
                pods: &pods,
                families: &families,
                token: &token,
            };
            controller.pass(&key).await
        }
    });
    Ok(())
}

struct Controller<'a> {
    context: &'a Context,
    pods: &'a Store<RestoredPod>,
    families: &'a Families,
    token: &'a LeaderToken,
}

impl Controller<'_> {
    async fn pass(&self, key: &Key) -> Result<Next, Failure> {
        self.context.stores.ready().await;
        // Not from the watch: what was just written must not be begun again.
        let Some(restore) = self.context.api::<Restore>().get_opt(&key.name).await? else {
            return Ok(Next::Done);
        };
        let tell = |why: &Failure| {
            let warning = EventKind::Warning;
            self.say(&restore, warning, why.reason, why.source.to_string());
        };
        let ended = restore.phase().is_terminal() && restore.metadata.deletion_timestamp.is_none();
        if !ended {
            self.context.alone().await.inspect_err(tell)?;
        }
        if restore.metadata.deletion_timestamp.is_some() {
            return self.clean_up(&restore).await;
        }
        match restore.phase() {
            RestorePhase::New => self.begin(restore).await,
            RestorePhase::InProgress => self.carry_on(&restore).await,
            phase => match phase.finished() {
                Some(last) => self.close(&restore, last).await,
                None => Ok(Next::OnChange),
            },
        }
    }

    /// Ends what a Velero had nearly ended.
    async fn close(&self, restore: &Restore, last: RestorePhase) -> Result<Next, Failure> {
        let mut status = restore.status.clone().unwrap_or_default();
        status.phase = Some(last);
        status.completion_timestamp = Some(Time(Timestamp::now()));
        self.write(restore, status).await?;
        let note = "another server restored everything and went before its last steps; labels and reclaim policies of volumes may \
                    differ from those in the backup";
        self.say(
            restore,
            EventKind::Warning,
            "RestoreFinished",
            note.to_owned(),
        );
        Ok(Next::OnChange)
    }

    /// Validates a new restore.
    async fn begin(&self, restore: Restore) -> Result<Next, Failure> {
        let backup = validate::backup_name(self.context, &restore).await?;
        if let Ok(backup) = &backup
            && location::of_backup(self.context, backup)
                .await?
                .is_ok_and(|location| location::is_new(&location))
        {
            let why = "the location of the backup has not been looked at yet";
            return Err(Failure::waiting(
                Duration::from_secs(2),
                "LocationIsNew",
                why,
            ));
        }
        // One that names two sources stays as it is: claimed, the backup would seem to be the schedule's.
        let restore = match validate::has_source(&restore) {
            true => self.claim(restore, backup.ok()).await?,
            false => restore,
        };
        let served = Served::discover(&self.context.clients.call).await?;
        let checked = validate::validate(self.context, &served, &restore).await?;
        let mut status = restore.status.clone().unwrap_or_default();
        status.start_timestamp = Some(Time(Timestamp::now()));
        match checked {
            Ok(valid) => {
                let schedule = schedule(&valid).to_owned();
                self.families.attempts.with_label_values(&[&schedule]).inc();
                status.phase = Some(RestorePhase::InProgress);
                let restore = self.write(&restore, status).await?;
                tracing::info!(
                    restore = restore.name_any(),
                    backup = valid.backup.name_any(),
                    "restore begins"
                );
                self.say(
                    &restore,
                    EventKind::Normal,
                    "RestoreStarted",
                    "the restore has begun".to_owned(),
                );
                self.run(&restore, valid, served).await
            }
            Err(errors) => {
                self.families.ended(RestorePhase::FailedValidation, "");
                status.phase = Some(RestorePhase::FailedValidation);
                status.validation_errors.clone_from(&errors);
                self.write(&restore, status).await?;
                self.say(
                    &restore,
                    EventKind::Warning,
                    "RestoreInvalid",
                    errors.join("; "),
                );
                Ok(Next::OnChange)
            }
        }
    }

    /// Adds the finalizer, and to the spec what Velero adds: the name of the backup beside that of the schedule, the kinds that are
    /// not restorable, its default of a time limit that nothing here takes.
    async fn claim(&self, restore: Restore, backup: Option<String>) -> Result<Restore, Failure> {
        let spec = completed(&restore, backup);
        let mut finalizers = restore.finalizers().to_vec();
        let kept = finalizers.iter().any(|entry| entry == finalizer::RESTORE);
        if kept && spec.is_empty() {
            return Ok(restore);
        }
        fence::check(&restore, self.token)?;
        let mut patch = json!({"spec": spec, "metadata": {
            "uid": restore.metadata.uid,
            "resourceVersion": restore.metadata.resource_version,
        }});
        if !kept {
            finalizers.push(finalizer::RESTORE.to_owned());
            patch["metadata"]["finalizers"] = json!(finalizers);
        }
        let api = self.context.api::<Restore>();
        Ok(api
            .patch(&restore.name_any(), &params(), &Patch::Merge(patch))
            .await?)
    }

    /// Takes up a restore that another run began; whoever had it before writes it no more.
    async fn carry_on(&self, restore: &Restore) -> Result<Next, Failure> {
        let restore = &self
            .write(restore, restore.status.clone().unwrap_or_default())
            .await?;
        let served = Served::discover(&self.context.clients.call).await?;
        match validate::validate(self.context, &served, restore).await? {
            Ok(valid) => self.run(restore, valid, served).await,
            Err(errors) => {
                let why = errors.join("; ");
                if !self.is_location_away(restore).await? {
                    let report = self.report(restore);
                    return self.fail(restore, "", &report, why).await;
                }
                let reason = "NotRestorableNow";
                self.say(restore, EventKind::Warning, reason, why.clone());
                Err(Failure::transient(reason, why))
            }
        }
    }

    /// Whether the restore was valid and only its location is not there for the moment.
    async fn is_location_away(&self, restore: &Restore) -> Result<bool, Failure> {
        let name = restore.spec.backup_name.as_deref().unwrap_or_default();
        let Some(backup) = self.context.fetch::<Backup>(name).await? else {
            return Ok(false);
        };
        let name = backup.spec.storage_location.unwrap_or_default();
        let location = self.context.fetch(&name).await?;
        Ok(location.is_none_or(|location| location::usable(&location, false).is_err()))
    }

    fn report(&self, restore: &Restore) -> Arc<Report> {
        let name = format!("{}/{}", self.context.namespace, restore.name_any());
        Arc::new(Report::new(name))
    }

    async fn run(&self, restore: &Restore, valid: Valid, served: Served) -> Result<Next, Failure> {
        let schedule = schedule(&valid).to_owned();
        let report = self.report(restore);
        let ended = run::execute(
            self.context,
            self.pods,
            self.token,
            restore,
            &valid,
            served,
            report.clone(),
        )
        .await;
        let ending = match ended {
            // Nobody would look at it again.
            Err(failure) if failure.class == Class::Terminal => {
                let why = location::chain(&*failure.source);
                return self.fail(restore, &schedule, &report, why).await;
            }
            Err(failure) => {
                if failure.class == Class::Transient && self.token.check().is_ok() {
                    let why = location::chain(&*failure.source);
                    self.say(restore, EventKind::Warning, failure.reason, why);
                }
                return Err(failure);
            }
            Ok(Ending::Failed(why)) => return self.fail(restore, &schedule, &report, why).await,
            Ok(ending) => ending,
        };
        self.end(restore, &schedule, ending).await
    }

    /// Ends a restore that failed as a whole. Where its location can be written to, it leaves its log there like any other.
    async fn fail(
        &self,
        restore: &Restore,
        schedule: &str,
        report: &Report,
        why: String,
    ) -> Result<Next, Failure> {
        report.error(Place::Velero, &why);
        let left = async {
            let backup = restore.spec.backup_name.as_deref().unwrap_or_default();
            let location = location::of_backup(self.context, backup).await;
            let location = location.map_err(|error| location::chain(&error))??;
            let (client, namespace) = (&self.context.clients.call, &self.context.namespace);
            let store = location::open(client, namespace, &location).await;
            let store = store.map_err(|error| location::chain(&error))?;
            self.token.check().map_err(|error| error.to_string())?;
            let files = files::upload(&*store, &restore.name_any(), report, &[]).await;
            files.map_err(|error| location::chain(&error))
        };
        if let Err(error) = left.await {
            tracing::warn!(
                restore = restore.name_any(),
                error,
                "a failed restore leaves no log"
            );
        }
        self.end(restore, schedule, Ending::Failed(why)).await
    }

    async fn end(
        &self,
        restore: &Restore,
        schedule: &str,
        ending: Ending,
    ) -> Result<Next, Failure> {
        // The newest state: progress was written meanwhile.
        let Some(newest) = self
            .context
            .api::<Restore>()
            .get_opt(&restore.name_any())
            .await?
            .filter(|newest| newest.uid() == restore.uid())
        else {
            return Ok(Next::Done);
        };
        fence::check(&newest, self.token)?;
        let mut status = newest.status.clone().unwrap_or_default();
        let (phase, note) = match ending {
            // The watch was behind: it had none, or one of its name that is gone.
            Ending::Deleted if newest.metadata.deletion_timestamp.is_none() => {
                let why = "the watch of restores had it as deleted";
                return Err(Failure::waiting(run::LOOK_AGAIN, "RestoresBehind", why));
            }
            Ending::Deleted => return self.clean_up(&newest).await,
            Ending::Failed(why) => {
                status.failure_reason = Some(why.clone());
                (RestorePhase::Failed, why)
            }
            Ending::Done(finished) => {
                let lost = self.finish(&newest, &finished, &mut status).await?;
                let mut text = format!("{} warnings, {} errors", status.warnings, status.errors);
                if let Some(why) = lost {
                    text = format!("{text}: {why}");
                    status.failure_reason = Some(why);
                }
                let whole = status.errors == 0;
                (
                    if whole {
                        RestorePhase::Completed
                    } else {
                        RestorePhase::PartiallyFailed
                    },
                    text,
                )
            }
        };
        over::tell(self.context, self.token, &newest, &note).await?;
        status.phase = Some(phase);
        status.completion_timestamp = Some(Time(Timestamp::now()));
        // Of no use to anybody after this.
        let forget = json!({"annotations": {(annotation::RESTORED_KINDS): null}});
        let api = self.context.api::<Restore>();
        let written = fence::write(&api, &newest, &status, forget, self.token).await?;
        self.families.ended(phase, schedule);
        tracing::info!(restore = written.name_any(), %phase, note, "restore has ended");
        let good = phase == RestorePhase::Completed;
        let kind = if good {
            EventKind::Normal
        } else {
            EventKind::Warning
        };
        let reason = match phase {
            RestorePhase::Completed => "RestoreCompleted",
            RestorePhase::PartiallyFailed => "RestorePartiallyFailed",
            _ => "RestoreFailed",
        };
        self.say(&written, kind, reason, note);
        Ok(Next::OnChange)
    }

    /// Leaves the restore's files in the bucket. Where the bucket does not take them, the restore ends all the same, with that as an
    /// error: the reason is returned.
    async fn finish(
        &self,
        restore: &Restore,
        finished: &Finished,
        status: &mut RestoreStatus,
    ) -> Result<Option<String>, Failure> {
        let (name, report) = (restore.name_any(), &finished.report);
        let files = files::deliver(&*finished.store, &name, report, &finished.volumes, || {
            self.token.check()
        });
        let lost = files.await?.err();
        if let Some(why) = &lost {
            report.error(Place::Velero, why);
        }
        let (warnings, errors) = report.counts();
        status.warnings = warnings;
        status.errors = errors;
        status.hook_status = Some(finished.hooks.clone());
        status.progress = Some(RestoreProgress {
            total_items: report.items(),
            items_restored: report.items(),
        });
        Ok(lost)
    }

    /// A restore goes with its files; objects stay, and of its pods none waits any more.
    async fn clean_up(&self, restore: &Restore) -> Result<Next, Failure> {
        let finalizers = restore.finalizers();
        if !finalizers.iter().any(|entry| entry == finalizer::RESTORE) {
            return Ok(Next::Done);
        }
        let left = async {
            over::tell(self.context, self.token, restore, "the restore was deleted").await?;
            self.remove_files(restore).await
        };
        if let Err(failure) = left.await {
            let since = restore
                .metadata
                .deletion_timestamp
                .as_ref()
                .map(|time| time.0);
            let age = since.map_or(Duration::MAX, |since| {
                Timestamp::now().duration_since(since).unsigned_abs()
            });
            if age < CLEAN_UP {
                return Err(failure);
            }
            // A namespace or a person waits; files without their restore do no harm.
            tracing::warn!(restore = restore.name_any(), error = %failure, "the restore goes without being cleaned up after");
        }
        let api = self.context.api::<Restore>();
        crate::finalizer::set(&api, restore, finalizer::RESTORE, false, self.token).await?;
        Ok(Next::Done)
    }

    async fn remove_files(&self, restore: &Restore) -> Result<(), Failure> {
        let backup = restore.spec.backup_name.as_deref().unwrap_or_default();
        // Without its backup nobody knows where the files are.
        let Ok(location) = location::of_backup(self.context, backup).await? else {
            return Ok(());
        };
        if location::read_only(&location) {
            return Ok(());
        }
        self.token.check()?;
        let store = location::open(
            &self.context.clients.call,
            &self.context.namespace,
            &location,
        )
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
        let directory = restore_directory(&restore.name_any());
        store
            .delete_prefix(&directory)
            .await
            .map_err(|error| Failure::transient(error.reason(), error))?;
        Ok(())
    }

    async fn write(&self, restore: &Restore, status: RestoreStatus) -> Result<Restore, Failure> {
        let api = self.context.api::<Restore>();
        fence::write(&api, restore, &status, json!({}), self.token).await
    }

    fn say(&self, restore: &Restore, kind: EventKind, reason: &'static str, note: String) {
        say(self.context, restore, kind, reason, note);
    }
}

/// Says something at a Restore.
fn say(context: &Context, restore: &Restore, kind: EventKind, reason: &'static str, note: String) {
    context.events.publish(Event {
        regarding: restore.object_ref(&()),
        related: None,
        kind,
        reason,
        action: "Restore",
        note,
    });
}

/// The fields of a spec that Velero fills in.
fn completed(restore: &Restore, backup: Option<String>) -> Map<String, Value> {
    let spec = &restore.spec;
    let mut fields = Map::new();
    if let (Some(name), true) = (backup, spec.backup_name.is_none()) {
        fields.insert("backupName".to_owned(), json!(name));
    }
    if spec
        .item_operation_timeout
        .is_none_or(|limit| limit.is_zero())
    {
        fields.insert("itemOperationTimeout".to_owned(), json!("4h0m0s"));
    }
    let mut excluded = spec.excluded_resources.clone();
    let missing = |kind: &&str| !spec.excluded_resources.iter().any(|known| known == kind);
    let missing = NOT_RESTORABLE.into_iter().filter(missing);
    excluded.extend(missing.map(str::to_owned));
    if excluded != spec.excluded_resources {
        fields.insert("excludedResources".to_owned(), json!(excluded));
    }
    fields
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn schedule(valid: &Valid) -> &str {
    valid
        .backup
        .labels()
        .get(label::SCHEDULE_NAME)
        .map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::unwatched::{context, path};

    #[test]
    fn a_spec_is_completed_as_by_velero_and_only_once() {
        let mut restore: Restore = serde_json::from_value(json!({
            "metadata": {"name": "r"},
            "spec": {"scheduleName": "s", "excludedResources": ["secrets", "nodes"]}
        }))
        .unwrap();
        let fields = completed(&restore, Some("b".to_owned()));
        assert_eq!(fields["backupName"], "b");
        assert_eq!(fields["itemOperationTimeout"], "4h0m0s");
        let excluded: Vec<String> =
            serde_json::from_value(fields["excludedResources"].clone()).unwrap();
        assert_eq!(
            excluded[..4],
            ["secrets", "nodes", "events", "events.events.k8s.io"]
        );
        assert_eq!(excluded.len(), 10);

        let mut spec = serde_json::to_value(&restore.spec).unwrap();
        for (field, value) in fields {
            spec[field] = value;
        }
        restore.spec = serde_json::from_value(spec).unwrap();
        assert_eq!(restore.spec.schedule_name.as_deref(), Some("s"));
        assert_eq!(completed(&restore, Some("b".to_owned())), Map::new());
    }

    #[tokio::test]
    async fn a_restore_that_only_the_watch_has_as_deleted_keeps_its_finalizer() {
        let object = |metadata: Value| json!({"metadata": metadata, "spec": {"backupName": "b"}});
        let metadata = json!({"name": "r", "namespace": "velero", "uid": "new", "finalizers": [finalizer::RESTORE]});
        let at = path("restores", "r");
        let context = context(&[(&at, object(metadata.clone()))]);
        let (token, _held) = LeaderToken::for_tests();
        let controller = Controller {
            context: &context,
            pods: &Store::fixed([]),
            families: &Families::register(&context).unwrap(),
            token: &token,
        };
        let restore = serde_json::from_value(object(metadata)).unwrap();
        let ended = controller.end(&restore, "", Ending::Deleted).await;
        assert_eq!(ended.unwrap_err().reason, "RestoresBehind");
    }
}
