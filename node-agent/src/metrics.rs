//! The node agent's metric families.

use std::{collections::HashSet, sync::Arc};

use jackline_runtime::{Key, metrics::add};
use parking_lot::Mutex;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};

/// What is done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Backup,
    Restore,
}

impl Operation {
    fn label(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    enqueued: IntCounter,
    dequeued: IntCounter,
    operations: IntCounterVec,
    in_progress: IntGaugeVec,
    seconds: HistogramVec,
    bytes: IntCounterVec,
    /// PodVolumeBackups that were counted as enqueued and have not ended.
    seen: Arc<Mutex<HashSet<Key>>>,
}

impl Metrics {
    pub fn new(registry: &Registry, node: &str) -> Result<Self, prometheus::Error> {
        let by_node = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let family = IntCounterVec::new(Opts::new(name, help), &["node"])?;
            let family = add(registry, family)?;
            Ok(family.with_label_values(&[node]))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let metrics = Self {
            enqueued: by_node(
                "podVolume_pod_volume_backup_enqueue_count",
                "PodVolumeBackups of this node that this process has seen.",
            )?,
            dequeued: by_node(
                "podVolume_pod_volume_backup_dequeue_count",
                "PodVolumeBackups of this node that have ended, well or not.",
            )?,
            operations: counter(
                "jackline_volume_operations_total",
                "Volumes backed up or restored, by result.",
                &["operation", "result"],
            )?,
            in_progress: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "jackline_volume_operations_in_progress",
                        "Volumes whose data moves now.",
                    ),
                    &["operation"],
                )?,
            )?,
            seconds: add(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "jackline_volume_operation_duration_seconds",
                        "Time that a volume took.",
                    )
                    .buckets(vec![
                        0.5, 2.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0,
                    ]),
                    &["operation"],
                )?,
            )?,
            bytes: counter(
                "jackline_volume_bytes_total",
                "Bytes of volumes: processed, read, added to the repository, written.",
                &["operation", "kind"],
            )?,
            seen: Arc::default(),
        };
        for operation in [Operation::Backup, Operation::Restore] {
            for result in ["success", "failure"] {
                metrics
                    .operations
                    .with_label_values(&[operation.label(), result]);
            }
            metrics
                .in_progress
                .with_label_values(&[operation.label()])
                .set(0);
            metrics.seconds.with_label_values(&[operation.label()]);
        }
        for kind in ["processed", "read", "added"] {
            metrics.bytes.with_label_values(&["backup", kind]);
        }
        metrics.bytes.with_label_values(&["restore", "written"]);
        Ok(metrics)
    }

    pub fn enqueue(&self, key: &Key) {
        if self.seen.lock().insert(key.clone()) {
            self.enqueued.inc();
        }
    }

    pub fn dequeue(&self, key: &Key) {
        if self.seen.lock().remove(key) {
            self.dequeued.inc();
        }
    }

    /// Data begins to move; until the guard is dropped.
    pub fn begin(&self, operation: Operation) -> Running {
        let gauge = self.in_progress.with_label_values(&[operation.label()]);
        gauge.inc();
        Running {
            gauge,
            metrics: self.clone(),
            operation,
            started: std::time::Instant::now(),
        }
    }

    /// An operation has come to its end for good.
    pub fn ended(&self, operation: Operation, well: bool) {
        let result = if well { "success" } else { "failure" };
        self.operations
            .with_label_values(&[operation.label(), result])
            .inc();
    }

    pub fn bytes(&self, operation: Operation, kind: &'static str, bytes: u64) {
        self.bytes
            .with_label_values(&[operation.label(), kind])
            .inc_by(bytes);
    }
}

/// An operation in progress.
#[derive(Debug)]
pub(crate) struct Running {
    gauge: prometheus::IntGauge,
    metrics: Metrics,
    operation: Operation,
    started: std::time::Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge.dec();
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics
            .seconds
            .with_label_values(&[self.operation.label()])
            .observe(seconds);
    }
}
