//! Velero's metrics about backups, told truthfully: what can be read off the objects is, so a restart changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jackline_crds::{
    names::label_value,
    velero::{Backup, BackupPhase},
};
use jackline_runtime::{Lease, Store, metrics::add};
use kube::ResourceExt;
use parking_lot::Mutex;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{job::Done, schedule};
use crate::context::Context;

/// Velero's buckets, in seconds.
const BUCKETS: [f64; 9] = [
    60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 10800.0, 14400.0,
];
const SCHEDULE: &[&str] = &["schedule"];

/// The families that events fill.
#[derive(Debug, Clone)]
pub(super) struct BackupMetrics {
    attempts: IntCounterVec,
    successes: IntCounterVec,
    partial: IntCounterVec,
    failures: IntCounterVec,
    refusals: IntCounterVec,
    warnings: IntCounterVec,
    duration: HistogramVec,
    tarball: GaugeVec,
    items: GaugeVec,
    errors: GaugeVec,
    bytes: IntCounterVec,
}

impl BackupMetrics {
    pub(super) fn register(context: &Context) -> Result<Self, prometheus::Error> {
        let registry = context.metrics.registry();
        let counter = |name: &str, help: &str| {
            add(
                registry,
                IntCounterVec::new(Opts::new(name, help), SCHEDULE)?,
            )
        };
        let gauge =
            |name: &str, help: &str| add(registry, GaugeVec::new(Opts::new(name, help), SCHEDULE)?);
        let duration = HistogramOpts::new(
            "velero_backup_duration_seconds",
            "Time taken to complete backup, in seconds",
        )
        .buckets(BUCKETS.to_vec());
        let bytes = Opts::new(
            "jackline_volume_backup_bytes_total",
            "Bytes of volumes that backups read (processed) and that were new in the repository (added)",
        );
        let this = Self {
            attempts: counter(
                "velero_backup_attempt_total",
                "Total number of attempted backups",
            )?,
            successes: counter(
                "velero_backup_success_total",
                "Total number of successful backups",
            )?,
            partial: counter(
                "velero_backup_partial_failure_total",
                "Total number of partially failed backups",
            )?,
            failures: counter(
                "velero_backup_failure_total",
                "Total number of failed backups",
            )?,
            refusals: counter(
                "velero_backup_validation_failure_total",
                "Total number of validation failed backups",
            )?,
            warnings: counter(
                "velero_backup_warning_total",
                "Total number of warned backups",
            )?,
            duration: add(registry, HistogramVec::new(duration, SCHEDULE)?)?,
            tarball: gauge(
                "velero_backup_tarball_size_bytes",
                "Size, in bytes, of a backup",
            )?,
            items: gauge(
                "velero_backup_items_total",
                "Total number of items backed up",
            )?,
            errors: gauge(
                "velero_backup_items_errors",
                "Total number of errors encountered during backup",
            )?,
            bytes: add(registry, IntCounterVec::new(bytes, &["kind"])?)?,
        };
        for kind in ["processed", "added"] {
            this.bytes.with_label_values(&[kind]);
        }
        Ok(this)
    }

    /// Keeps what is read off the objects up to date.
    pub(super) fn follow(&self, context: &Arc<Context>, lease: &Lease) {
        let facts = ObjectFacts::new(context, lease, self.clone());
        let registered = facts.map(|facts| context.metrics.registry().register(Box::new(facts)));
        if let Ok(Err(error)) | Err(error) = registered {
            tracing::error!(%error, "metrics about Backup objects are not registered");
        }
    }

    fn counters(&self) -> [&IntCounterVec; 6] {
        [
            &self.attempts,
            &self.successes,
            &self.partial,
            &self.failures,
            &self.refusals,
            &self.warnings,
        ]
    }

    /// Series exist as soon as their schedule is seen, and go with it.
    fn appear(&self, schedule: &str) {
        self.counters().iter().for_each(|family| {
            family.with_label_values(&[schedule]);
        });
    }

    fn vanish(&self, schedule: &str) {
        // An error says that there was no such series, which is what is wanted.
        for family in self.counters() {
            let _ = family.remove_label_values(&[schedule]);
        }
        for family in [&self.tarball, &self.items, &self.errors] {
            let _ = family.remove_label_values(&[schedule]);
        }
        let _ = self.duration.remove_label_values(&[schedule]);
    }

    pub(super) fn attempted(&self, backup: &Backup) {
        self.attempts.with_label_values(&[schedule(backup)]).inc();
    }

    pub(super) fn refused(&self, backup: &Backup) {
        self.refusals.with_label_values(&[schedule(backup)]).inc();
    }

    pub(super) fn ended(&self, done: &Done) {
        let label = [schedule(&done.backup)];
        let Some(status) = &done.backup.status else {
            return;
        };
        match status.phase {
            Some(BackupPhase::Completed) => self.successes.with_label_values(&label).inc(),
            Some(BackupPhase::PartiallyFailed) => self.partial.with_label_values(&label).inc(),
            _ => self.failures.with_label_values(&label).inc(),
        }
        if status.warnings > 0 {
            self.warnings.with_label_values(&label).inc();
        }
        if let (Some(start), Some(end)) = (&status.start_timestamp, &status.completion_timestamp) {
            self.duration
                .with_label_values(&label)
                .observe(end.0.duration_since(start.0).as_secs_f64());
        }
        let items = status.progress.clone().unwrap_or_default().items_backed_up;
        self.items.with_label_values(&label).set(f64::from(items));
        self.errors
            .with_label_values(&label)
            .set(f64::from(status.errors));
        self.tarball
            .with_label_values(&label)
            .set(done.tarball as f64);
        for volume in done
            .pod_volume_backups
            .iter()
            .filter_map(|volume| volume.status.as_ref())
        {
            let total = volume
                .progress
                .as_ref()
                .map_or(0, |progress| progress.total_bytes);
            let count = |kind: &str, bytes: i64| {
                self.bytes
                    .with_label_values(&[kind])
                    .inc_by(u64::try_from(bytes).unwrap_or(0));
            };
            count("processed", total);
            count("added", volume.incremental_bytes);
        }
    }
}

/// What a scrape reads off the Backup objects.
struct ObjectFacts {
    backups: Store<Backup>,
    schedules: Store<jackline_crds::velero::Schedule>,
    lease: Lease,
    metrics: BackupMetrics,
    known: Mutex<BTreeSet<String>>,
    total: GaugeVec,
    running: GaugeVec,
    last_success: GaugeVec,
    last_status: GaugeVec,
}

impl ObjectFacts {
    fn new(
        context: &Context,
        lease: &Lease,
        metrics: BackupMetrics,
    ) -> Result<Self, prometheus::Error> {
        let gauge =
            |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        Ok(Self {
            backups: context.stores.backups.clone(),
            schedules: context.stores.schedules.clone(),
            lease: lease.clone(),
            metrics,
            known: Mutex::default(),
            total: gauge(
                "velero_backup_total",
                "Current number of existent backups",
                &[],
            )?,
            running: gauge(
                "jackline_backups_in_progress",
                "Backups that this process is working on",
                &[],
            )?,
            last_success: gauge(
                "velero_backup_last_successful_timestamp",
                "Last time a backup ran successfully, Unix timestamp in seconds",
                SCHEDULE,
            )?,
            last_status: gauge(
                "velero_backup_last_status",
                "Last status of the backup. A value of 1 is success, 0 is failure",
                SCHEDULE,
            )?,
        })
    }

    fn families(&self) -> [&GaugeVec; 4] {
        [
            &self.total,
            &self.running,
            &self.last_success,
            &self.last_status,
        ]
    }
}

/// The newest facts about the backups of one schedule.
#[derive(Debug, Default, PartialEq)]
struct Last {
    success: Option<i64>,
    ended: Option<(i64, bool)>,
}

/// What the backups say, by schedule.
fn last(backups: &[Arc<Backup>]) -> BTreeMap<String, Last> {
    let mut all: BTreeMap<String, Last> = BTreeMap::new();
    for backup in backups {
        let last = all.entry(schedule(backup).to_owned()).or_default();
        let Some(status) = &backup.status else {
            continue;
        };
        let good = match backup.phase() {
            BackupPhase::Completed => true,
            BackupPhase::PartiallyFailed | BackupPhase::Failed | BackupPhase::FailedValidation => {
                false
            }
            _ => continue,
        };
        let time = status
            .completion_timestamp
            .as_ref()
            .or(status.start_timestamp.as_ref());
        let time = time
            .map(|time| time.0)
            .or_else(|| backup.creation_timestamp().map(|time| time.0));
        let time = time.map_or(0, jiff::Timestamp::as_second);
        if good {
            last.success = last.success.max(Some(time));
        }
        // Of two in the same second the worse one counts.
        last.ended = match last.ended {
            Some((newest, _)) if newest > time => last.ended,
            Some((newest, known)) if newest == time => Some((newest, known && good)),
            _ => Some((time, good)),
        };
    }
    all
}

impl Collector for ObjectFacts {
    fn desc(&self) -> Vec<&Desc> {
        self.families()
            .iter()
            .flat_map(|family| family.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let backups = self.backups.list();
        let last = last(&backups);
        let mut seen: BTreeSet<String> = last.keys().cloned().collect();
        seen.extend(
            self.schedules
                .list()
                .iter()
                .map(|schedule| label_value(&schedule.name_any())),
        );
        seen.insert(String::new());
        {
            let mut known = self.known.lock();
            known
                .difference(&seen)
                .for_each(|schedule| self.metrics.vanish(schedule));
            seen.iter()
                .for_each(|schedule| self.metrics.appear(schedule));
            *known = seen;
        }
        self.families().iter().for_each(|family| family.reset());
        self.total
            .with_label_values(&[] as &[&str])
            .set(backups.len() as f64);
        let running = backups
            .iter()
            .filter(|backup| backup.phase() == BackupPhase::InProgress)
            .count();
        let running = if self.lease.token().is_some() {
            running
        } else {
            0
        };
        self.running
            .with_label_values(&[] as &[&str])
            .set(running as f64);
        for (schedule, last) in last {
            let label = [schedule.as_str()];
            if let Some(time) = last.success {
                self.last_success.with_label_values(&label).set(time as f64);
            }
            if let Some((_, good)) = last.ended {
                self.last_status
                    .with_label_values(&label)
                    .set(f64::from(u8::from(good)));
            }
        }
        self.families()
            .iter()
            .flat_map(|family| family.collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jackline_crds::{names::label, velero::BackupStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn backup(schedule: &str, phase: BackupPhase, second: i64) -> Arc<Backup> {
        let mut backup = Backup::new(&format!("b{second}"), Default::default());
        backup
            .labels_mut()
            .insert(label::SCHEDULE_NAME.to_owned(), schedule.to_owned());
        backup.status = Some(BackupStatus {
            phase: Some(phase),
            completion_timestamp: Some(Time(jiff::Timestamp::from_second(second).unwrap())),
            ..BackupStatus::default()
        });
        Arc::new(backup)
    }

    #[test]
    fn the_last_status_is_that_of_the_last_backup() {
        use BackupPhase::{Completed, InProgress, PartiallyFailed};
        let last = last(&[
            backup("a", Completed, 10),
            backup("a", PartiallyFailed, 20),
            backup("a", InProgress, 30),
            backup("b", PartiallyFailed, 5),
            backup("b", Completed, 6),
            backup("c", InProgress, 1),
        ]);
        assert_eq!(
            last["a"],
            Last {
                success: Some(10),
                ended: Some((20, false))
            }
        );
        assert_eq!(
            last["b"],
            Last {
                success: Some(6),
                ended: Some((6, true))
            }
        );
        assert_eq!(last["c"], Last::default());
    }
}
