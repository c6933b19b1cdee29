//! Gauges of policies. Series come with the policy and go with it.

use std::collections::HashMap;

use jackline_policy::coverage::Counts;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};

#[derive(Debug)]
pub struct PolicyMetrics {
    volumes: IntGaugeVec,
    ready: IntGaugeVec,
    suspended: IntGaugeVec,
    last_success: GaugeVec,
    next_run: GaugeVec,
    rpo: GaugeVec,
    oldest_point: GaugeVec,
    held: IntGaugeVec,
    expected_interval: GaugeVec,
    /// Volumes that no policy governs, by namespace.
    ungoverned: Mutex<HashMap<String, Counts>>,
}

/// What is shown of one policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    pub counts: Counts,
    pub ready: bool,
    pub suspended: bool,
    pub last_success: Option<Timestamp>,
    pub next_run: Option<Timestamp>,
    pub rpo: Option<f64>,
    pub oldest_point: Option<Timestamp>,
    pub held: bool,
    pub interval: Option<f64>,
}

impl PolicyMetrics {
    /// # Errors
    /// A family of the same name in the registry.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let whole = |name: &str, help: &str, labels: &[&str]| {
            jackline_runtime::metrics::add(
                registry,
                IntGaugeVec::new(Opts::new(name, help), labels)?,
            )
        };
        let real = |name: &str, help: &str, label: &str| {
            jackline_runtime::metrics::add(
                registry,
                GaugeVec::new(Opts::new(name, help), &[label])?,
            )
        };
        let policy = "policy";
        Ok(Self {
            volumes: whole(
                "jackline_volumes",
                "Volumes by verdict.",
                &[policy, "verdict"],
            )?,
            ready: whole(
                "jackline_policy_ready",
                "Whether the policy is in force.",
                &[policy],
            )?,
            suspended: whole(
                "jackline_policy_suspended",
                "Whether the policy is suspended.",
                &[policy],
            )?,
            last_success: real(
                "jackline_policy_last_success_timestamp_seconds",
                "Start of the newest Completed backup.",
                policy,
            )?,
            next_run: real(
                "jackline_policy_next_run_timestamp_seconds",
                "When the next backup is due.",
                policy,
            )?,
            rpo: real("jackline_policy_rpo_seconds", "The objective.", policy)?,
            oldest_point: real(
                "jackline_policy_oldest_recovery_point_timestamp_seconds",
                "Of the newest recovery points of the policy's volumes the oldest.",
                policy,
            )?,
            held: whole(
                "jackline_retention_held",
                "Whether deletions wait for a confirmation.",
                &[policy],
            )?,
            expected_interval: real(
                "velero_schedule_expected_interval_seconds",
                "Longest time between two runs of a schedule.",
                "schedule",
            )?,
            ungoverned: Mutex::default(),
        })
    }

    /// Shows a policy; `schedule` is the schedule name of its backups.
    pub fn show(&self, policy: &str, schedule: &str, shown: Shown) {
        let label = [policy];
        self.verdicts(policy, shown.counts);
        self.ready.with_label_values(&label).set(shown.ready.into());
        self.suspended
            .with_label_values(&label)
            .set(shown.suspended.into());
        self.held.with_label_values(&label).set(shown.held.into());
        let seconds = |at: Timestamp| at.as_second() as f64;
        set(&self.last_success, policy, shown.last_success.map(seconds));
        set(&self.next_run, policy, shown.next_run.map(seconds));
        set(&self.rpo, policy, shown.rpo);
        set(&self.oldest_point, policy, shown.oldest_point.map(seconds));
        self.interval(schedule, shown.interval);
    }

    /// The expected interval of a schedule or policy.
    pub fn interval(&self, schedule: &str, seconds: Option<f64>) {
        set(&self.expected_interval, schedule, seconds);
    }

    /// The policy is gone.
    pub fn forget(&self, policy: &str, schedule: &str) {
        for verdict in VERDICTS {
            let _ = self.volumes.remove_label_values(&[policy, verdict]);
        }
        for family in [&self.ready, &self.suspended, &self.held] {
            let _ = family.remove_label_values(&[policy]);
        }
        for family in [
            &self.last_success,
            &self.next_run,
            &self.rpo,
            &self.oldest_point,
        ] {
            set(family, policy, None);
        }
        self.interval(schedule, None);
    }

    /// Volumes of a namespace that no policy governs.
    pub fn ungoverned(&self, namespace: &str, counts: Counts) {
        let mut all = self.ungoverned.lock();
        match counts == Counts::default() {
            true => all.remove(namespace),
            false => all.insert(namespace.to_owned(), counts),
        };
        let sum = all.values().fold(Counts::default(), |sum, of| Counts {
            selected: sum.selected + of.selected,
            protected: sum.protected + of.protected,
            stale: sum.stale + of.stale,
            unprotected: sum.unprotected + of.unprotected,
            exempt: sum.exempt + of.exempt,
            conflict: sum.conflict + of.conflict,
            cannot_back_up: sum.cannot_back_up + of.cannot_back_up,
        });
        self.verdicts("", sum);
    }

    fn verdicts(&self, policy: &str, counts: Counts) {
        let values = [
            counts.protected,
            counts.stale,
            counts.unprotected,
            counts.exempt,
            counts.conflict,
            counts.cannot_back_up,
        ];
        for (verdict, value) in VERDICTS.into_iter().zip(values) {
            self.volumes
                .with_label_values(&[policy, verdict])
                .set(value.into());
        }
    }
}

const VERDICTS: [&str; 6] = [
    "Protected",
    "Stale",
    "Unprotected",
    "Exempt",
    "Conflict",
    "CannotBackUp",
];

/// A series that is there only while it has a value.
fn set(family: &GaugeVec, label: &str, value: Option<f64>) {
    match value {
        Some(value) => family.with_label_values(&[label]).set(value),
        None => {
            let _ = family.remove_label_values(&[label]);
        }
    }
}
