//! Prunes repositories: a Job with the agent's image, so that heavy work never shares the leader's memory.
//!
//! When: at `maintenanceFrequency` after the last time, once snapshots were forgotten (the annotation `forgotten-at` says when last);
//! without anything forgotten once a week; and when a check is due, which comes with it. One Job per repository at a time, and none
//! while volumes of its namespace are being backed up. Job names follow from the due time, so that a pass which runs twice makes one Job.

mod job;

use std::{sync::Arc, time::Duration};

use jackline_crds::{
    GoDuration,
    names::{FIELD_MANAGER, annotation, label},
    velero::{
        BackupRepository, BackupStorageLocation, MaintenanceResult, MaintenanceStatus,
        RepositoryPhase, UploaderType,
    },
};
use jackline_runtime::{
    Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store, WatchSpec,
    status::{Guard, write_status_and_metadata},
};
use jiff::Timestamp;
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

use crate::{
    context::Context,
    location,
    repository::{self, MAINTENANCE, RepositoryError},
};
use job::{MaintenanceJob, Outcome, repository_label};

/// How soon a failed one is tried again, at the latest.
const RETRY: Duration = Duration::from_secs(3600);
/// How soon to look again at a repository that is in use.
const BUSY: Duration = Duration::from_secs(5);
/// How long a repository in use can put maintenance off.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How many outcomes and finished Jobs are kept.
const KEPT: usize = 3;

/// Velero's metrics of maintenance.
#[derive(Debug, Clone)]
struct Families {
    succeeded: IntCounterVec,
    failed: IntCounterVec,
    seconds: HistogramVec,
}

impl Families {
    fn register(context: &Context) -> Result<Self, prometheus::Error> {
        let registry = context.metrics.registry();
        let labels = &["repository_name"];
        let counter = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), labels)
                .and_then(|counter| jackline_runtime::metrics::add(registry, counter))
        };
        let buckets = [1., 5., 10., 15., 30., 60., 120., 180., 240.].map(|minutes| minutes * 60.);
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "velero_repo_maintenance_duration_seconds",
                "Time that a maintenance of a repository took.",
            )
            .buckets(buckets.to_vec()),
            labels,
        )?;
        Ok(Self {
            succeeded: counter(
                "velero_repo_maintenance_success_total",
                "Maintenances of a repository that succeeded.",
            )?,
            failed: counter(
                "velero_repo_maintenance_failure_total",
                "Maintenances of a repository that failed.",
            )?,
            seconds: jackline_runtime::metrics::add(registry, seconds)?,
        })
    }

    fn observe(&self, repository: &str, outcome: &Outcome) {
        match outcome.result {
            MaintenanceResult::Succeeded => self.succeeded.with_label_values(&[repository]).inc(),
            _ => self.failed.with_label_values(&[repository]).inc(),
        }
        let took = outcome.end.duration_since(outcome.start).as_secs_f64();
        self.seconds
            .with_label_values(&[repository])
            .observe(took.max(0.0));
    }
}

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> Result<(), prometheus::Error> {
    let families = Families::register(context)?;
    let queue = Queue::new("maintenance");
    let jobs: Store<MaintenanceJob> = kit.watch(
        WatchSpec::new("maintenance-jobs")
            .namespace(&context.namespace)
            .labels(label::REPOSITORY_NAME),
    );
    context
        .stores
        .repositories
        .enqueue(&queue, |change| vec![change.key.clone()]);
    {
        let (repositories, queue) = (context.stores.repositories.clone(), queue.clone());
        jobs.on_change(move |change| {
            let Some(job) = change.either() else { return };
            let Some(label) = job.labels().get(label::REPOSITORY_NAME) else {
                return;
            };
            for key in repositories.keys() {
                if repository_label(&key.name) == *label {
                    queue.add(key);
                }
            }
        });
    }
    let context = context.clone();
    kit.run_leading(&queue, RunOptions::new(), lease, move |key, token| {
        let (context, jobs, families) = (context.clone(), jobs.clone(), families.clone());
        async move {
            context.alone().await?;
            pass(&context, &jobs, &families, &key, &token).await
        }
    });
    Ok(())
}

/// Notes that snapshots of a namespace's repository were forgotten: its data waits for a prune. Its object is made where it is missing,
/// as after a sync into a new cluster: without one nobody would ever prune.
///
/// # Errors
/// When the API server does not take it.
pub async fn request(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
) -> Result<(), RepositoryError> {
    let mut name = repository::ask(context, location, namespace).await?;
    let mut noted = note(context, &name).await;
    if matches!(&noted, Err(kube::Error::Api(status)) if status.code == 404) {
        // The watch has not told yet that it is gone.
        name = repository::create(context, location, namespace).await?;
        noted = note(context, &name).await;
    }
    noted.map_err(|source| RepositoryError::Api { name, source })
}

async fn note(context: &Context, repository: &str) -> Result<(), kube::Error> {
    // Anew each time: a Job that runs now may have looked before, and takes only what is older than itself off.
    let patch = serde_json::json!({"metadata": {
        "annotations": {(annotation::FORGOTTEN_AT): Timestamp::now().to_string()},
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = context.api::<BackupRepository>();
    api.patch(repository, &params, &Patch::Merge(patch))
        .await
        .map(|_| ())
}

/// What decides when a repository is maintained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    created: Timestamp,
    last: Option<Timestamp>,
    /// End of the last one, where it failed.
    failed: Option<Timestamp>,
    forgotten: Option<Timestamp>,
    every: Duration,
}

/// The check that a repository's annotations ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Check {
    due: Timestamp,
    /// Percent of the data that is read.
    read_data: f64,
}

fn check(repository: &BackupRepository, facts: Facts) -> Option<Check> {
    let annotations = repository.annotations();
    let every: GoDuration = annotations
        .get(annotation::CHECK_FREQUENCY)?
        .parse()
        .ok()
        .filter(|every: &GoDuration| !every.is_zero())?;
    let last = annotations
        .get(annotation::CHECKED_AT)
        .and_then(|text| text.parse().ok())
        .unwrap_or(facts.created);
    let share = annotations.get(annotation::CHECK_READ_DATA);
    let regular = after(last, every.to_std());
    Some(Check {
        due: match facts.failed {
            Some(failed) => regular.max(after(failed, every.to_std().min(RETRY))),
            None => regular,
        },
        read_data: share
            .and_then(|text| text.parse().ok())
            .filter(|share: &f64| share.is_finite())
            .unwrap_or_default()
            .clamp(0.0, 100.0),
    })
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// When the next maintenance is due.
fn due(facts: Facts) -> Timestamp {
    let weekly = MAINTENANCE.to_std();
    let base = facts.last.unwrap_or(facts.created);
    let regular = match facts.forgotten {
        Some(forgotten) => after(base, facts.every).max(forgotten),
        None => after(base, facts.every.max(weekly)),
    };
    match facts.failed {
        Some(failed) => regular.max(after(failed, facts.every.min(RETRY))),
        None => regular,
    }
}

/// `last`: how the youngest finished Job ended, if there is one. Definitions of Velero before 1.16 keep no `recentMaintenance`.
fn facts(repository: &BackupRepository, last: Option<&Outcome>) -> Facts {
    let status = repository.status.clone().unwrap_or_default();
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
    let last_attempt = match status.recent_maintenance.last() {
        Some(kept) => Some((kept.result, time(&kept.complete_timestamp))),
        None => last.map(|last| (Some(last.result), Some(last.end))),
    };
    let failed = last_attempt.filter(|(result, _)| *result != Some(MaintenanceResult::Succeeded));
    let every = repository.spec.maintenance_frequency;
    Facts {
        created: time(&repository.metadata.creation_timestamp).unwrap_or(Timestamp::UNIX_EPOCH),
        last: time(&status.last_maintenance_time),
        failed: failed.and_then(|(_, end)| end),
        forgotten: repository
            .annotations()
            .get(annotation::FORGOTTEN_AT)
            .map(|text| text.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
        every: if every.is_zero() {
            MAINTENANCE.to_std()
        } else {
            every.to_std()
        },
    }
}

async fn pass(
    context: &Context,
    jobs: &Store<MaintenanceJob>,
    families: &Families,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    jobs.ready().await;
    let Some(repository) = context.stores.repositories.get(key) else {
        return Ok(Next::Done);
    };
    if repository.spec.repository_type == UploaderType::Kopia {
        return Ok(Next::OnChange);
    }
    // Counters begin at zero, or the first failure is no increase.
    families.failed.with_label_values(&[key.name.as_str()]);
    families.succeeded.with_label_values(&[key.name.as_str()]);
    let label = repository_label(&key.name);
    let mut mine = jobs.filter(|job| job.labels().get(label::REPOSITORY_NAME) == Some(&label));
    mine.sort_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut running = false;
    let mut finished = Vec::new();
    for job in &mine {
        match job.outcome() {
            None => running = true,
            Some(outcome) => finished.push((job, outcome)),
        }
    }
    for (job, outcome) in &finished {
        if record(context, &repository, job, outcome, token).await? {
            families.observe(&key.name, outcome);
            // The write wakes this key with the new status.
            return Ok(Next::OnChange);
        }
    }
    if running {
        return Ok(Next::OnChange);
    }
    let superfluous = finished.len().saturating_sub(KEPT);
    for (job, _) in finished.iter().take(superfluous) {
        token.check()?;
        let result = context
            .api::<Job>()
            .delete(&job.name_any(), &DeleteParams::background())
            .await;
        match result {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    let last = finished.last().map(|(_, outcome)| outcome);
    start(context, &repository, last, token).await
}

/// Makes the Job if it is due.
async fn start(
    context: &Context,
    repository: &BackupRepository,
    last: Option<&Outcome>,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let spec = &repository.spec;
    context.stores.locations.ready().await;
    let location = context
        .stores
        .locations
        .get(&context.key(&spec.backup_storage_location));
    let usable = location
        .as_ref()
        .is_some_and(|location| location::usable(location, true).is_ok());
    if repository.phase() != RepositoryPhase::Ready || !usable {
        return Ok(Next::After(Duration::from_secs(60)));
    }
    let facts = facts(repository, last);
    let check = check(repository, facts);
    let pruning = due(facts);
    let due = check.map_or(pruning, |check| check.due.min(pruning));
    let now = Timestamp::now();
    if due > now {
        return Ok(Next::At(due));
    }
    context.stores.pod_volume_backups.ready().await;
    let busy = context.stores.pod_volume_backups.find(|volume| {
        !volume.phase().is_terminal()
            && volume.spec.backup_storage_location == spec.backup_storage_location
            && volume.spec.pod.namespace.as_deref() == Some(&spec.volume_namespace)
    });
    let late = now.duration_since(due).unsigned_abs() >= PATIENCE;
    if busy.is_some() && !late {
        return Ok(Next::After(BUSY));
    }
    let read_data = check.filter(|check| check.due <= now).map(|c| c.read_data);
    let job = job::desired(context, repository, due, read_data).await?;
    token.check()?;
    match context
        .api::<Job>()
        .create(&PostParams::default(), &job)
        .await
    {
        Ok(job) => tracing::info!(
            repository = repository.name_any(),
            job = job.name_any(),
            "maintenance of the repository begins"
        ),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Next::OnChange)
}

/// Whether a finished Job's outcome was written down, or that of a later one.
fn is_recorded(repository: &BackupRepository, outcome: &Outcome) -> bool {
    let status = repository.status.iter();
    let recent = status.flat_map(|status| &status.recent_maintenance);
    let kept = recent.filter_map(|one| one.start_timestamp.as_ref().map(|time| time.0));
    // Definitions of Velero before 1.16 drop the list.
    let noted = repository.annotations().get(annotation::MAINTAINED_AT);
    let noted = noted.and_then(|text| text.parse().ok());
    kept.chain(noted).max() >= Some(outcome.start)
}

/// Writes a finished Job's outcome into the repository's status. Whether it was news.
async fn record(
    context: &Context,
    repository: &BackupRepository,
    job: &MaintenanceJob,
    outcome: &Outcome,
    token: &LeaderToken,
) -> Result<bool, Failure> {
    if is_recorded(repository, outcome) {
        return Ok(false);
    }
    let mut status = repository.status.clone().unwrap_or_default();
    let succeeded = outcome.result == MaintenanceResult::Succeeded;
    let message = if succeeded {
        None
    } else {
        Some(job::message(context, job, outcome).await)
    };
    match &message {
        None => tracing::info!(repository = repository.name_any(), "maintenance succeeded"),
        Some(why) => tracing::warn!(
            repository = repository.name_any(),
            why,
            "maintenance failed"
        ),
    }
    status.recent_maintenance.push(MaintenanceStatus {
        result: Some(outcome.result),
        start_timestamp: Some(Time(outcome.start)),
        complete_timestamp: Some(Time(outcome.end)),
        message,
    });
    let surplus = status.recent_maintenance.len().saturating_sub(KEPT);
    status.recent_maintenance.drain(..surplus);
    let began = outcome.start.to_string();
    let mut metadata = serde_json::json!({"annotations": {(annotation::MAINTAINED_AT): began}});
    if succeeded {
        status.last_maintenance_time = Some(Time(outcome.end));
        // What was forgotten while the Job ran waits for the next one.
        let forgotten = facts(repository, None).forgotten;
        if forgotten.is_some_and(|forgotten| forgotten <= outcome.start) {
            metadata["annotations"][annotation::FORGOTTEN_AT] = serde_json::Value::Null;
        }
        if job.annotations().contains_key(annotation::CHECKED_AT) {
            metadata["annotations"][annotation::CHECKED_AT] = began.into();
        }
    }
    token.check()?;
    let api = context.api::<BackupRepository>();
    write_status_and_metadata(
        &api,
        repository,
        &status,
        &metadata,
        Guard::SameVersion,
        FIELD_MANAGER,
    )
    .await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + minutes * 60).unwrap()
    }

    #[test]
    fn an_outcome_is_recorded_once_whatever_the_definitions_keep() {
        let repository = |annotation: Option<i64>, recent: &[i64]| -> BackupRepository {
            let annotations = annotation.map(
                |time| serde_json::json!({"jackline.dev/maintained-at": at(time).to_string()}),
            );
            let recent: Vec<_> = recent
                .iter()
                .map(|time| serde_json::json!({"result": "Succeeded", "startTimestamp": at(*time).to_string()}))
                .collect();
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "r", "annotations": annotations},
                "spec": {"volumeNamespace": "n", "backupStorageLocation": "default", "maintenanceFrequency": "168h0m0s"},
                "status": {"recentMaintenance": recent},
            }))
            .unwrap()
        };
        let job = Outcome {
            result: MaintenanceResult::Failed,
            start: at(10),
            end: at(11),
            message: None,
        };
        for (why, annotation, recent, want) in [
            ("nothing was recorded", None, &[][..], false),
            ("only the annotation is kept", Some(10), &[], true),
            ("Velero's own server recorded it", None, &[5, 10], true),
            ("an earlier one was recorded", Some(5), &[5], false),
            ("a later one was recorded", Some(20), &[], true),
        ] {
            assert_eq!(
                is_recorded(&repository(annotation, recent), &job),
                want,
                "{why}"
            );
        }
        // When the last one failed has to be known, or it would be due at once again.
        let dropped = repository(Some(10), &[]);
        assert_eq!(facts(&dropped, Some(&job)).failed, Some(at(11)));
        assert_eq!(facts(&repository(None, &[10]), Some(&job)).failed, None);
    }

    #[test]
    fn a_check_is_due_after_the_last_good_one() {
        let repository = |annotations: serde_json::Value| -> BackupRepository {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "r", "annotations": annotations},
                "spec": {"volumeNamespace": "n", "backupStorageLocation": "default", "maintenanceFrequency": "168h0m0s"},
            }))
            .unwrap()
        };
        let facts = Facts {
            created: at(0),
            last: None,
            failed: None,
            forgotten: None,
            every: Duration::from_secs(60),
        };
        assert_eq!(check(&repository(serde_json::json!({})), facts), None);
        let daily = repository(serde_json::json!({
            "jackline.dev/check-frequency": "24h0m0s", "jackline.dev/check-read-data": "250",
        }));
        let due = |minutes, read_data| {
            Some(Check {
                due: at(minutes),
                read_data,
            })
        };
        assert_eq!(check(&daily, facts), due(24 * 60, 100.0));
        let done = repository(serde_json::json!({
            "jackline.dev/check-frequency": "1m0s", "jackline.dev/checked-at": at(10).to_string(),
        }));
        assert_eq!(check(&done, facts), due(11, 0.0));
        let failed = Facts {
            failed: Some(at(30)),
            ..facts
        };
        assert_eq!(check(&done, failed), due(31, 0.0));
        let broken = repository(serde_json::json!({"jackline.dev/check-frequency": "often"}));
        assert_eq!(check(&broken, facts), None);
    }

    #[test]
    fn when_maintenance_is_due() {
        let quiet = Facts {
            created: at(0),
            last: None,
            failed: None,
            forgotten: None,
            every: Duration::from_secs(60),
        };
        let week = 7 * 24 * 60;
        let cases = [
            (
                "nothing forgotten: weekly, however often is allowed",
                quiet,
                at(week),
            ),
            (
                "rarer than weekly stays rarer",
                Facts {
                    every: MAINTENANCE.to_std() * 2,
                    ..quiet
                },
                at(2 * week),
            ),
            (
                "forgotten: after the interval",
                Facts {
                    forgotten: Some(at(0)),
                    ..quiet
                },
                at(1),
            ),
            (
                "forgotten long after the last: at once",
                Facts {
                    forgotten: Some(at(30)),
                    ..quiet
                },
                at(30),
            ),
            (
                "forgotten just after the last: the interval holds",
                Facts {
                    last: Some(at(30)),
                    forgotten: Some(at(30)),
                    ..quiet
                },
                at(31),
            ),
            (
                "a failure is not repeated at once",
                Facts {
                    forgotten: Some(at(1)),
                    failed: Some(at(10)),
                    ..quiet
                },
                at(11),
            ),
            (
                "but within the hour",
                Facts {
                    forgotten: Some(at(1)),
                    failed: Some(at(week)),
                    every: MAINTENANCE.to_std(),
                    ..quiet
                },
                at(week + 60),
            ),
        ];
        for (why, facts, want) in cases {
            assert_eq!(due(facts), want, "{why}");
        }
    }
}
