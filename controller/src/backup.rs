//! Backup: from a user's wish to objects in the bucket.
//!
//! A pass takes one Backup from where it is to its end. It may be dropped at any point (lost leadership, SIGKILL): the next leader does
//! it again, finds the PodVolumeBackups that exist, and ends it. So a restart costs time, never a backup.

mod files;
mod hooks;
mod job;
pub mod log;
mod metrics;
mod outcome;
mod owed;
mod prepare;
mod turn;
mod upload;
mod volumes;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use jackline_crds::{
    names::{finalizer as name, label},
    velero::{Backup, BackupPhase, BackupStatus, BackupStorageLocation, PodVolumeBackup},
};
use jackline_runtime::{
    Class, Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions,
};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    context::Context, deletion, fence, finalizer, holds, holds::Holds, location, remove::remove,
};
use log::BackupLog;
use metrics::BackupMetrics;
use turn::Turns;

/// Time that running backups have to end cleanly at a shutdown; they are resumable, so it is short.
const GRACE: Duration = Duration::from_secs(2);
/// For how long a backup is tried again that fails each time.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// For how long one that fails each time keeps its place before those that have not begun: where one location does not answer, the others
/// go on.
const PRECEDENCE: Duration = Duration::from_secs(1800);
/// Passes besides those of backups that run: deleted ones are cleared up after, and who has to wait finds out, however long data moves.
const BESIDES: usize = 16;
/// How long it may take until deleted objects are seen to be gone.
const PATIENCE_WITH_API: Duration = Duration::from_secs(30);
/// For how long a deleted Backup waits until what it left behind can be removed.
const CLEAN_UP: Duration = Duration::from_secs(600);
/// How long the log of a backup that fails has to be stored.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// A pass that got on for this long before it failed is none of those.
const GOT_ON: Duration = Duration::from_secs(600);

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> anyhow::Result<()> {
    let metrics = BackupMetrics::register(context)?;
    metrics.follow(context, lease);
    let holds = Holds::default();
    owed::register(context, kit, lease, &holds);
    let queue = Queue::new("backups");
    let turns = Turns::new(context.args.concurrent_backups, &queue);
    let waking = turns.clone();
    context
        .stores
        .backups
        .enqueue(&queue, move |change| match &change.after {
            Some(backup) if is_open(backup.phase()) && !is_deleted(backup) => {
                vec![change.key.clone()]
            }
            after => {
                // It has a place no more.
                waking.wake();
                let over = after.as_ref().is_some_and(|backup| !is_deleted(backup));
                (!over).then(|| change.key.clone()).into_iter().collect()
            }
        });
    let options = RunOptions::new()
        .concurrency(context.args.concurrent_backups.saturating_add(BESIDES))
        .pass_deadline(None)
        .grace(GRACE);
    let controller = Arc::new(Controller {
        context: context.clone(),
        metrics,
        // Collecting is what costs memory and requests; waiting for volumes costs nothing.
        collecting: tokio::sync::Semaphore::new(2),
        turns,
        holds,
        failing: Mutex::default(),
        begun: Mutex::default(),
    });
    kit.run_leading(&queue, options, lease, move |key, token| {
        let controller = controller.clone();
        async move { controller.pass(&key, token).await }
    });
    Ok(())
}

/// Whether a backup still has to be done.
fn is_open(phase: BackupPhase) -> bool {
    use BackupPhase::{New, Queued, ReadyToStart};
    matches!(phase, New | Queued | ReadyToStart) || is_begun(phase)
}

/// Whether a backup has begun and not ended.
fn is_begun(phase: BackupPhase) -> bool {
    phase == BackupPhase::InProgress || phase.is_finishing()
}

/// Whether a backup is on its way out.
fn is_deleted(backup: &Backup) -> bool {
    backup.metadata.deletion_timestamp.is_some()
}

/// Whether it may not go before what it left behind is removed.
fn is_held(backup: &Backup) -> bool {
    backup.finalizers().iter().any(|it| it == name::BACKUP)
}

/// Whether it has been on its way out for too long.
fn is_overdue(backup: &Backup) -> bool {
    let since = backup.metadata.deletion_timestamp.as_ref();
    since.is_some_and(|since| now().duration_since(since.0).unsigned_abs() > CLEAN_UP)
}

/// A backup as it is now, if it goes on and this is its leader.
async fn newest(
    context: &Context,
    backup: &Backup,
    token: &LeaderToken,
) -> Result<Backup, Failure> {
    let now = context
        .api::<Backup>()
        .get_opt(&backup.name_any())
        .await?
        .filter(|now| now.uid() == backup.uid() && is_begun(now.phase()) && !is_deleted(now));
    let Some(now) = now else {
        let why = "it was deleted, or another has ended it";
        return Err(Failure::new(Class::Conflict, "Superseded", why));
    };
    fence::check(&now, token)?;
    Ok(now)
}

/// Writes the last status of a backup, which may go from then on, whatever else is written onto it meanwhile.
async fn end(
    context: &Context,
    backup: &Backup,
    status: impl Fn(&Backup) -> BackupStatus,
    mut metadata: Value,
    token: &LeaderToken,
) -> Result<Backup, Failure> {
    let api = context.api::<Backup>();
    loop {
        let now = newest(context, backup, token).await?;
        metadata["finalizers"] = json!(finalizer::list(&now, name::BACKUP, false));
        match fence::write(&api, &now, &status(&now), metadata.clone(), token).await {
            Err(failure) if failure.class == Class::Conflict => {}
            written => return written,
        }
    }
}

/// Passes of a backup that fail one after the other.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    last: Instant,
}

/// What passes share.
#[derive(Debug)]
struct Controller {
    context: Arc<Context>,
    metrics: BackupMetrics,
    collecting: tokio::sync::Semaphore,
    turns: Arc<Turns>,
    holds: Holds,
    /// Since when backups fail, by UID.
    failing: Mutex<HashMap<String, Failing>>,
    /// Backups that were begun here and have not ended.
    begun: Mutex<HashMap<Key, Arc<Begun>>>,
}

/// What has to be known of a backup to clear up after it, should it be deleted before its end.
#[derive(Debug)]
struct Begun {
    backup: Backup,
    /// Namespaces in whose repositories it may have snapshots.
    touched: Mutex<BTreeSet<String>>,
}

impl Controller {
    /// However a pass fails: a backup that never gets on must not keep others back.
    async fn pass(&self, key: &Key, token: LeaderToken) -> Result<Next, Failure> {
        let began = Instant::now();
        let ended = self.carry_out(key, token).await;
        let backup = self.context.stores.backups.get(key);
        if let (Err(_), Some(backup)) = (&ended, backup.filter(|it| is_begun(it.phase()))) {
            let now = Failing {
                since: self.failing_since(&backup, began),
                last: Instant::now(),
            };
            let uid = backup.uid().unwrap_or_default();
            self.failing.lock().insert(uid, now);
        }
        ended
    }

    async fn carry_out(&self, key: &Key, token: LeaderToken) -> Result<Next, Failure> {
        let context = &self.context;
        context.stores.ready().await;
        self.bury(key, &token).await?;
        let waits = |backup: &Backup| is_open(backup.phase()) && !is_deleted(backup);
        if !context.stores.backups.get(key).is_some_and(|it| waits(&it)) {
            return Ok(Next::Done);
        }
        let begun = || turn::begun(&context.stores.backups, |backup| self.is_stuck(backup));
        let Some(turn) = self.turns.take(key, begun) else {
            tracing::info!(backup = %key, "waits for its turn");
            return Ok(Next::OnChange);
        };
        // The watch may be behind our own last write: a finished backup must not be done again.
        let backup = context.api::<Backup>().get_opt(&key.name).await?;
        let Some(backup) = backup.filter(waits) else {
            return Ok(Next::Done);
        };
        let tell = |why: &Failure| self.event(&backup, why.reason, why.source.to_string());
        context.alone().await.inspect_err(tell)?;
        let (backup, location) = match backup.phase() {
            phase if is_begun(phase) => {
                let Some(location) = prepare::location(context, &backup).await? else {
                    let why = "its backup storage location is gone";
                    self.fail(&backup, None, why, &token).await?;
                    return Ok(Next::Done);
                };
                // Whoever had it before writes it no more.
                let api = context.api::<Backup>();
                let held = json!({"finalizers": finalizer::list(&backup, name::BACKUP, true)});
                let backup = fence::write(&api, &backup, &backup.status, held, &token).await?;
                tracing::info!(backup = %key, "resumed");
                (backup, location)
            }
            phase if is_open(phase) => match prepare::begin(context, &token, &backup).await? {
                prepare::Begun::Wait(after) => return Ok(Next::After(after)),
                prepare::Begun::Refused(backup) => {
                    self.metrics.refused(&backup);
                    let status = backup.status.clone().unwrap_or_default();
                    self.event(
                        &backup,
                        "FailedValidation",
                        status.validation_errors.join("; "),
                    );
                    return Ok(Next::Done);
                }
                prepare::Begun::Started(backup, location) => {
                    self.metrics.attempted(&backup);
                    self.event(
                        &backup,
                        "Started",
                        format!("to location {}", location.name_any()),
                    );
                    (*backup, *location)
                }
            },
            _ => return Ok(Next::Done),
        };
        let begun = self
            .begun
            .lock()
            .entry(key.clone())
            .or_insert_with(|| {
                let touched = Mutex::default();
                let backup = backup.clone();
                Arc::new(Begun { backup, touched })
            })
            .clone();
        let began = Instant::now();
        let log = match BackupLog::new(key.to_string(), &context.args.scratch()) {
            Ok(log) => log,
            Err(error) => {
                let failure = Failure::transient("NoTemporarySpace", error);
                if !self.is_hopeless(&backup, began) {
                    return Err(failure);
                }
                self.fail(&backup, None, &failure.to_string(), &token)
                    .await?;
                return Ok(Next::Done);
            }
        };
        let job = job::Job {
            context,
            token: &token,
            backup: &backup,
            location: &location,
            log: &log,
            collecting: &self.collecting,
            holds: &self.holds,
            touched: &begun.touched,
        };
        let uid = backup.uid();
        let gone = context.stores.backups.wait_for(|store| {
            let now = store.get(key);
            let same = now.is_some_and(|now| {
                now.uid() == uid && now.phase() != BackupPhase::Deleting && !is_deleted(&now)
            });
            (!same).then_some(())
        });
        let outcome = tokio::select! {
            outcome = job.run().boxed() => outcome,
            () = gone => {
                tracing::info!(backup = %key, "given up: the Backup was deleted");
                drop(turn);
                return self.bury(key, &token).await;
            }
        };
        let words = Some((&location, &log));
        match outcome {
            Ok(done) => {
                self.begun.lock().remove(key);
                self.metrics.ended(&done);
                self.tell(&done);
                Ok(Next::Done)
            }
            Err(job::JobError::Fatal(why)) => {
                self.fail(&backup, words, &why, &token).await?;
                Ok(Next::Done)
            }
            Err(job::JobError::Again(failure)) if self.is_hopeless(&backup, began) => {
                let why = failure.to_string();
                self.fail(&backup, words, &why, &token).await?;
                Ok(Next::Done)
            }
            Err(job::JobError::Again(failure)) => Err(failure),
        }
    }

    /// Whether a backup, whose pass from `began` on has failed, has failed for so long that it is not tried again: longer than its
    /// volumes may take and an hour on top, or where that is not limited, for hours without any pass that got on.
    fn is_hopeless(&self, backup: &Backup, began: Instant) -> bool {
        if let Some(limit) = job::timeout(&self.context, backup) {
            let started = backup
                .status
                .as_ref()
                .and_then(|status| status.start_timestamp.clone());
            let limit = jiff::SignedDuration::try_from(limit + Duration::from_secs(3600))
                .unwrap_or(jiff::SignedDuration::MAX);
            return started
                .is_some_and(|started| jiff::Timestamp::now().duration_since(started.0) > limit);
        }
        self.failing_since(backup, began).elapsed() > PATIENCE
    }

    /// Since when a backup has failed, whose pass from `began` on has, without any pass that got on.
    fn failing_since(&self, backup: &Backup, began: Instant) -> Instant {
        if began.elapsed() > GOT_ON {
            return Instant::now();
        }
        let mut failing = self.failing.lock();
        // What another leader did meanwhile is not known.
        failing.retain(|_, of| of.last.elapsed() < PATIENCE + GOT_ON);
        let of = backup.uid().and_then(|uid| failing.get(&uid));
        of.map_or(began, |of| of.since)
    }

    /// Whether a backup has failed for so long that others go before it.
    fn is_stuck(&self, backup: &Backup) -> bool {
        let failing = self.failing.lock();
        let of = backup.uid().and_then(|uid| failing.get(&uid).copied());
        of.is_some_and(|of| of.since.elapsed() > PRECEDENCE)
    }

    /// Removes what a backup of this name has left behind that was deleted before its end, and before there is another.
    async fn bury(&self, key: &Key, token: &LeaderToken) -> Result<Next, Failure> {
        let context = &self.context;
        let now = context.stores.backups.get(key);
        let goes = now.clone().filter(|now| is_deleted(now) && is_held(now));
        let begun = self.begun.lock().get(key).cloned().filter(|begun| {
            let same = |now: Arc<Backup>| now.uid() == begun.backup.uid() && !is_deleted(&now);
            !now.is_some_and(same)
        });
        let (backup, touched) = match (&begun, &goes) {
            (Some(begun), _) => (&begun.backup, Some(begun.touched.lock().clone())),
            // Another leader had begun it.
            (None, Some(goes)) => (&**goes, None),
            (None, None) => return Ok(Next::Done),
        };
        context.alone().await?;
        match self.clear_up(backup, touched, token).await {
            Err(failure) if goes.as_ref().is_none_or(|it| !is_overdue(it)) => return Err(failure),
            // A namespace or a person waits.
            Err(error) => {
                tracing::warn!(backup = %key, %error, "the Backup goes, and what it left behind stays")
            }
            Ok(()) => {}
        }
        if let Some(goes) = &goes
            && goes.uid() == backup.uid()
        {
            finalizer::set(
                &context.api::<Backup>(),
                &**goes,
                name::BACKUP,
                false,
                token,
            )
            .await?;
        }
        self.begun.lock().remove(key);
        Ok(Next::Done)
    }

    /// Removes what a backup left behind that was deleted before its end. `touched`: namespaces in whose repositories it may have snapshots,
    /// where that is known.
    async fn clear_up(
        &self,
        backup: &Backup,
        mut touched: Option<BTreeSet<String>>,
        token: &LeaderToken,
    ) -> Result<(), Failure> {
        let context = &self.context;
        let uid = backup.uid().unwrap_or_default();
        let api = context.api::<PodVolumeBackup>();
        for volume in volumes::of_backup(context, &uid) {
            if let Some(touched) = &mut touched {
                touched.extend(volume.spec.pod.namespace.clone());
            }
            remove(&api, &*volume, token).await?;
        }
        // An agent that makes a snapshot of a volume whose object is gone forgets it by itself.
        let volumes = &context.stores.pod_volume_backups;
        let of_it = |volume: &PodVolumeBackup| volume.labels().get(label::BACKUP_UID) == Some(&uid);
        let gone = volumes.wait_for(|volumes| volumes.find(of_it).is_none().then_some(()));
        if tokio::time::timeout(PATIENCE_WITH_API, gone).await.is_err() {
            let why = "PodVolumeBackups of the deleted backup are still there";
            return Err(Failure::transient("VolumesRemain", why));
        }
        let location = prepare::location(context, backup).await?;
        match location.filter(|location| !location::read_only(location)) {
            Some(location) => deletion::clear_up(context, backup, &location, touched, token).await,
            None => {
                tracing::warn!(
                    backup = backup.name_any(),
                    "what the deleted Backup left behind stays: its location is gone or read-only"
                );
                Ok(())
            }
        }
    }

    /// Ends a backup of which nothing usable is in the bucket but, where there is one, its log.
    async fn fail(
        &self,
        backup: &Backup,
        log: Option<(&BackupStorageLocation, &BackupLog)>,
        why: &str,
        token: &LeaderToken,
    ) -> Result<(), Failure> {
        if let Some((location, log)) = log {
            log.error(why, &[]);
            token.check()?;
            let left = tokio::time::timeout(LAST_WORDS, self.leave_log(backup, location, log));
            let failed = match left.await {
                Ok(left) => left.err(),
                Err(late) => Some(late.into()),
            };
            if let Some(error) = failed {
                let why = location::chain(&*error);
                tracing::warn!(backup = backup.name_any(), why, "the log is not stored");
            }
        }
        let ended = now();
        let status = |backup: &Backup| BackupStatus {
            phase: Some(BackupPhase::Failed),
            failure_reason: Some(why.to_owned()),
            completion_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(ended)),
            ..backup.status.clone().unwrap_or_default()
        };
        self.begun
            .lock()
            .remove(&self.context.key(backup.name_any()));
        let backup = end(&self.context, backup, status, json!({}), token).await?;
        self.begun
            .lock()
            .remove(&self.context.key(backup.name_any()));
        self.metrics.ended(&job::Done {
            backup: backup.clone(),
            ..job::Done::default()
        });
        self.event(&backup, "Failed", why.to_owned());
        Ok(())
    }

    async fn leave_log(
        &self,
        backup: &Backup,
        location: &BackupStorageLocation,
        log: &BackupLog,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let context = &self.context;
        let store = location::open(&context.clients.call, &context.namespace, location).await?;
        let (name, uid) = (backup.name_any(), backup.uid().unwrap_or_default());
        let scratch = context.args.scratch();
        upload::log_alone(&*store, &name, &uid, log.finish()?, &scratch).await?;
        Ok(())
    }

    fn tell(&self, done: &job::Done) {
        let status = done.backup.status.clone().unwrap_or_default();
        let items = status.progress.unwrap_or_default().items_backed_up;
        let mut note = format!("{items} objects and {} volumes", done.volumes);
        if let Some(error) = &done.last_error {
            note = format!("{note}; {} errors, the last: {error}", status.errors);
        } else if status.warnings > 0 {
            note = format!("{note}; {} warnings", status.warnings);
        }
        let reason = match status.phase {
            Some(BackupPhase::Completed) => "Completed",
            _ => "PartiallyFailed",
        };
        self.event(&done.backup, reason, note);
    }

    fn event(&self, backup: &Backup, reason: &'static str, note: String) {
        let kind = match reason {
            "Started" | "Completed" => EventKind::Normal,
            _ => EventKind::Warning,
        };
        tracing::info!(
            backup = backup.name_any(),
            schedule = schedule(backup),
            "{reason}: {note}"
        );
        self.context.events.publish(Event {
            regarding: backup.object_ref(&()),
            related: None,
            kind,
            reason,
            action: "Backup",
            note,
        });
    }
}

/// The Schedule or policy that a backup belongs to; empty when somebody made it by hand.
fn schedule(backup: &Backup) -> &str {
    backup
        .labels()
        .get(label::SCHEDULE_NAME)
        .map_or("", String::as_str)
}

/// Now, in whole seconds as the API has them.
fn now() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}
