//! The process's one metrics registry and the runtime's own families.
//!
//! Label values are closed sets or names given in the code (`watch`, `queue`): never an object's name, never an error's text.

use std::sync::Arc;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

/// The registry and the families that every Jackline process has. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    pub(crate) families: Arc<Families>,
}

#[derive(Debug)]
pub(crate) struct Families {
    pub watch_last_event: GaugeVec,
    pub watch_resyncs: IntCounterVec,
    pub watch_errors: IntCounterVec,
    pub watch_objects: IntGaugeVec,
    pub watch_invalid: IntGaugeVec,
    pub queue_depth: IntGaugeVec,
    pub queue_oldest: GaugeVec,
    pub passes: IntCounterVec,
    pub pass_failures: IntCounterVec,
    pub pass_seconds: HistogramVec,
    pub passes_running: IntGaugeVec,
    pub leader: IntGauge,
    pub leader_transitions: IntCounterVec,
    pub status_writes: IntCounterVec,
    pub events_published: IntCounter,
    pub events_lost: IntCounter,
}

impl Metrics {
    /// Registers the runtime's families (and the process's own: CPU, memory, open files) in `registry`.
    ///
    /// # Errors
    /// When the registry already holds a family of the same name.
    pub fn new(registry: Registry, component: &str) -> Result<Self, prometheus::Error> {
        let r = &registry;
        let build = IntGaugeVec::new(
            Opts::new(
                "jackline_build_info",
                "Always 1; the version and the component are labels.",
            ),
            &["version", "component"],
        )?;
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), component])
            .set(1);
        r.register(Box::new(build))?;
        let pass_seconds = HistogramVec::new(
            HistogramOpts::new(
                "jackline_reconcile_duration_seconds",
                "Time that one pass took.",
            )
            .buckets(vec![0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0]),
            &["controller"],
        )?;
        r.register(Box::new(pass_seconds.clone()))?;
        let families = Families {
            watch_last_event: add(
                r,
                GaugeVec::new(
                    Opts::new(
                        "jackline_watch_last_event_timestamp_seconds",
                        "When the API server last said anything on this watch, bookmarks included.",
                    ),
                    &["resource"],
                )?,
            )?,
            watch_resyncs: add(
                r,
                counter(
                    "jackline_watch_resyncs_total",
                    "Full lists taken.",
                    &["resource"],
                )?,
            )?,
            watch_errors: add(
                r,
                counter(
                    "jackline_watch_errors_total",
                    "Errors of watches, by class.",
                    &["resource", "class"],
                )?,
            )?,
            watch_objects: add(
                r,
                gauge(
                    "jackline_watch_objects",
                    "Objects held in memory.",
                    &["resource"],
                )?,
            )?,
            watch_invalid: add(
                r,
                gauge(
                    "jackline_watch_invalid_objects",
                    "Objects that do not have the shape of their kind and are left out.",
                    &["resource"],
                )?,
            )?,
            queue_depth: add(
                r,
                gauge(
                    "jackline_queue_depth",
                    "Keys that are due and wait for a worker.",
                    &["queue"],
                )?,
            )?,
            queue_oldest: add(
                r,
                GaugeVec::new(
                    Opts::new(
                        "jackline_queue_oldest_seconds",
                        "How long the longest waiting due key has waited.",
                    ),
                    &["queue"],
                )?,
            )?,
            passes: add(
                r,
                counter(
                    "jackline_reconcile_total",
                    "Passes, by outcome: ok or error. Waiting for others and losing a race are ok.",
                    &["controller", "outcome"],
                )?,
            )?,
            pass_failures: add(
                r,
                counter(
                    "jackline_reconcile_failures_total",
                    "Passes that failed, by class: transient, throttled, terminal, panicked, timeout, aborted.",
                    &["controller", "class"],
                )?,
            )?,
            pass_seconds,
            passes_running: add(
                r,
                gauge(
                    "jackline_reconcile_running",
                    "Passes in progress.",
                    &["controller"],
                )?,
            )?,
            leader: add(
                r,
                IntGauge::new("jackline_leader", "1 while this process holds the lease.")?,
            )?,
            leader_transitions: add(
                r,
                counter(
                    "jackline_leader_transitions_total",
                    "Times that this process won or lost the lease.",
                    &["change"],
                )?,
            )?,
            status_writes: add(
                r,
                counter(
                    "jackline_status_writes_total",
                    "Status writes, by result: written, unchanged, failed.",
                    &["result"],
                )?,
            )?,
            events_published: add(
                r,
                IntCounter::new(
                    "jackline_events_published_total",
                    "Kubernetes Events written.",
                )?,
            )?,
            events_lost: add(
                r,
                IntCounter::new(
                    "jackline_events_lost_total",
                    "Kubernetes Events that could not be written.",
                )?,
            )?,
        };
        #[cfg(target_os = "linux")]
        r.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(Self {
            registry,
            families: Arc::new(families),
        })
    }

    /// Where other rooms register their families.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts one status write by its result.
    pub fn status_write(&self, result: &'static str) {
        self.families
            .status_writes
            .with_label_values(&[result])
            .inc();
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut buffer = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut buffer) {
            tracing::warn!(%error, "a metric family cannot be rendered");
        }
        String::from_utf8_lossy(&buffer).into_owned()
    }
}

/// Registers a family and gives it back.
///
/// # Errors
/// When the registry already holds a family of the same name.
pub fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

#[cfg(test)]
pub(crate) fn for_tests() -> Metrics {
    Metrics::new(Registry::new(), "test").expect("a fresh registry takes every family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_the_prefix_a_help_text_and_no_object_labels() {
        let metrics = for_tests();
        metrics
            .families
            .watch_objects
            .with_label_values(&["pods"])
            .set(3);
        metrics
            .families
            .passes
            .with_label_values(&["backups", "ok"])
            .inc();
        for family in metrics.registry().gather() {
            let name = family.name();
            assert!(
                name.starts_with("jackline_") || name.starts_with("process_"),
                "{name}"
            );
            assert!(!family.help().is_empty(), "{name}");
            for label in family.get_metric().iter().flat_map(|m| m.get_label()) {
                assert!(
                    [
                        "resource",
                        "queue",
                        "controller",
                        "class",
                        "outcome",
                        "result",
                        "change",
                        "version",
                        "component"
                    ]
                    .contains(&label.name()),
                    "{name}: {}",
                    label.name()
                );
            }
        }
        let text = metrics.render();
        assert!(
            text.contains("jackline_watch_objects{resource=\"pods\"} 3"),
            "{text}"
        );
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
