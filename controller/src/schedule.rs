//! velero.io Schedules (velero-compat §8, its faults mended): a run is named by the time it was due, so that a crash makes no second one;
//! every phase of work counts as running; a pause leaves nothing to be made good.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jackline_crds::names::{FIELD_MANAGER, label, label_value};
use jackline_crds::velero::{Backup, BackupPhase, Schedule, SchedulePhase, ScheduleStatus};
use jackline_policy::cron::Cron;
use jackline_policy::naming;
use jackline_runtime::status::{Guard, StatusAt, write_status};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::context::Context;
use crate::policies::metrics::PolicyMetrics;

/// Starts the controller.
pub fn register(context: &Arc<Context>, metrics: &Arc<PolicyMetrics>, kit: &Kit, lease: &Lease) {
    let queue: Queue<Key> = Queue::new("schedules");
    context
        .stores
        .schedules
        .enqueue(&queue, |change| vec![change.key.clone()]);
    // A run that ended lets the next one start.
    let known = context.stores.schedules.clone();
    context.stores.backups.enqueue(&queue, move |change| {
        let label = change
            .either()
            .and_then(|backup| backup.labels().get(label::SCHEDULE_NAME).cloned());
        let of = |label: String| {
            let schedule = known.find(|schedule| label_value(&schedule.name_any()) == label);
            let name = schedule.map_or(label, |schedule| schedule.name_any());
            Key::namespaced(change.key.ns(), name)
        };
        label.map(of).into_iter().collect()
    });
    let schedules = Arc::new(Schedules {
        context: context.clone(),
        metrics: metrics.clone(),
    });
    kit.run_leading(&queue, RunOptions::new(), lease, move |key, token| {
        let schedules = schedules.clone();
        async move { schedules.pass(&key, &token).await }
    });
}

#[derive(Debug)]
struct Schedules {
    context: Arc<Context>,
    metrics: Arc<PolicyMetrics>,
}

impl Schedules {
    async fn pass(&self, key: &Key, token: &LeaderToken) -> Result<Next, Failure> {
        self.context.stores.ready().await;
        self.context.alone().await?;
        let label = label_value(&key.name);
        let Some(schedule) = self.context.stores.schedules.get(key) else {
            // The name may be that of a policy's backups, whose series is its own.
            let is_policys = |backup: &Backup| {
                backup.labels().get(label::SCHEDULE_NAME) == Some(&label)
                    && crate::policies::policy_of(backup).is_some()
            };
            if self.context.stores.backups.find(is_policys).is_none() {
                self.metrics.interval(&label, None);
            }
            return Ok(Next::Done);
        };
        let now = Timestamp::now();
        let mut status = schedule.status.clone().unwrap_or_default();
        let cron = match validate(&schedule, now) {
            Ok(cron) => cron,
            Err(errors) => {
                status.phase = Some(SchedulePhase::FailedValidation);
                status.validation_errors = errors;
                self.metrics.interval(&label, None);
                self.write(&schedule, &status, token).await?;
                return Ok(Next::OnChange);
            }
        };
        self.metrics.interval(
            &label,
            cron.longest_interval()
                .map(|interval| interval.as_secs_f64()),
        );
        status.phase = Some(SchedulePhase::Enabled);
        status.validation_errors.clear();
        let skip = schedule.spec.skip_immediately;
        if skip.unwrap_or(self.context.args.schedule_skip_immediately) {
            // Asked for once, as by `velero schedule unpause --skip-immediately`: the wish is taken back as it is fulfilled.
            status.last_skipped = Some(Time(now));
            self.consume_skip(&schedule, &status, token).await?;
            return Ok(Next::After(Duration::from_millis(100)));
        }
        if schedule.spec.paused {
            self.write(&schedule, &status, token).await?;
            return Ok(Next::OnChange);
        }
        let Some((tick, after)) = due(&cron, base(&schedule), now) else {
            self.write(&schedule, &status, token).await?;
            return Ok(Next::OnChange);
        };
        let Some(tick) = tick else {
            self.write(&schedule, &status, token).await?;
            return Ok(Next::At(after));
        };
        let active = |backup: &Backup| {
            backup.labels().get(label::SCHEDULE_NAME) == Some(&label)
                && !backup.phase().is_terminal()
                && backup.phase() != BackupPhase::Deleting
        };
        if self.context.stores.backups.find(active).is_some() {
            self.write(&schedule, &status, token).await?;
            return Ok(Next::OnChange);
        }
        self.run(&schedule, tick, token).await?;
        status.last_backup = Some(Time(now));
        self.write(&schedule, &status, token).await?;
        Ok(Next::At(after))
    }

    async fn run(
        &self,
        schedule: &Schedule,
        tick: Timestamp,
        token: &LeaderToken,
    ) -> Result<(), Failure> {
        let backup = backup(schedule, tick);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        token.check()?;
        match self.context.api::<Backup>().create(&params, &backup).await {
            Ok(_) => tracing::info!(
                schedule = schedule.name_any(),
                backup = backup.name_any(),
                "backup is due"
            ),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn write(
        &self,
        schedule: &Schedule,
        status: &ScheduleStatus,
        token: &LeaderToken,
    ) -> Result<(), Failure> {
        token.check()?;
        let api = self.context.api::<Schedule>();
        write_status(
            &api,
            schedule,
            status,
            StatusAt::Main,
            Guard::SameObject,
            FIELD_MANAGER,
        )
        .await?;
        Ok(())
    }

    async fn consume_skip(
        &self,
        schedule: &Schedule,
        status: &ScheduleStatus,
        token: &LeaderToken,
    ) -> Result<(), Failure> {
        token.check()?;
        let patch = json!({
            "metadata": {"uid": schedule.uid(), "resourceVersion": schedule.resource_version()},
            "spec": {"skipImmediately": false},
            "status": status,
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.context
            .api::<Schedule>()
            .patch(&schedule.name_any(), &params, &Patch::Merge(patch))
            .await?;
        Ok(())
    }
}

/// The times of the runs, or all that is wrong with the Schedule.
fn validate(schedule: &Schedule, now: Timestamp) -> Result<Cron, Vec<String>> {
    let name = schedule.name_any();
    let backup = naming::backup_name(&name, now);
    let excess = backup.len().saturating_sub(naming::LONGEST_NAME);
    let too_long = (excess > 0).then(|| {
        format!(
            "metadata.name has {} characters, of which {excess} are too many: a backup is named <name>-<time>, in at most {} characters",
            name.len(),
            naming::LONGEST_NAME
        )
    });
    match (Cron::parse(&schedule.spec.schedule), too_long) {
        (Ok(cron), None) => Ok(cron),
        (Ok(_), Some(why)) => Err(vec![why]),
        (Err(error), why) => {
            let error = format!("invalid schedule: {error}");
            Err([error].into_iter().chain(why).collect())
        }
    }
}

/// From when the next run is counted: the last one (or creation), or the last one that was left out.
fn base(schedule: &Schedule) -> Timestamp {
    let created = schedule.metadata.creation_timestamp.as_ref();
    let status = schedule.status.as_ref();
    let last = status
        .and_then(|status| status.last_backup.as_ref())
        .or(created);
    let skipped = status.and_then(|status| status.last_skipped.as_ref());
    [last, skipped]
        .into_iter()
        .flatten()
        .map(|time| time.0)
        .max()
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The latest tick that is due (earlier ones are made good by it), and when to look again. `None` when the schedule never runs.
fn due(cron: &Cron, base: Timestamp, now: Timestamp) -> Option<(Option<Timestamp>, Timestamp)> {
    let mut tick = None;
    let mut next = cron.next(base, &TimeZone::UTC)?;
    let mut steps = 0u32;
    while next <= now {
        tick = Some(next);
        steps += 1;
        // Years of minutes are not walked through.
        let from = match cron.longest_interval() {
            Some(interval) if steps == 1000 => now.checked_sub(interval).unwrap_or(next).max(next),
            _ => next,
        };
        next = cron.next(from, &TimeZone::UTC)?;
    }
    Some((tick, next))
}

fn backup(schedule: &Schedule, tick: Timestamp) -> Backup {
    let name = schedule.name_any();
    let mut spec = schedule.spec.template.clone();
    let given = spec.metadata.take().unwrap_or_default();
    let mut labels = if given.labels.is_empty() {
        schedule.labels().clone()
    } else {
        given.labels
    };
    labels.insert(label::SCHEDULE_NAME.to_owned(), label_value(&name));
    let mut annotations: BTreeMap<String, String> = if given.annotations.is_empty() {
        schedule.annotations().clone()
    } else {
        given.annotations
    };
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let owned = schedule.spec.use_owner_references_in_backup == Some(true);
    Backup {
        metadata: ObjectMeta {
            name: Some(naming::backup_name(&name, tick)),
            namespace: schedule.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: owned
                .then(|| schedule.controller_owner_ref(&()).into_iter().collect()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn one_run_makes_good_for_all_that_were_missed() {
        let cron = Cron::parse("0 2 * * *").unwrap();
        let found = due(
            &cron,
            at("2026-11-20T10:00:00Z"),
            at("2026-11-23T09:00:00Z"),
        );
        assert_eq!(
            found,
            Some((Some(at("2026-11-23T02:00:00Z")), at("2026-11-24T02:00:00Z")))
        );
        let early = due(
            &cron,
            at("2026-11-23T02:00:00Z"),
            at("2026-11-23T09:00:00Z"),
        );
        assert_eq!(early, Some((None, at("2026-11-24T02:00:00Z"))));
        let minutes = Cron::parse("* * * * *").unwrap();
        let long = due(
            &minutes,
            at("2016-01-01T00:00:00Z"),
            at("2026-01-01T00:00:30Z"),
        );
        assert_eq!(
            long,
            Some((Some(at("2026-01-01T00:00:00Z")), at("2026-01-01T00:01:00Z")))
        );
        assert_eq!(
            due(
                &Cron::parse("0 0 31 2 *").unwrap(),
                at("2016-01-01T00:00:00Z"),
                at("2026-01-01T00:00:00Z")
            ),
            None
        );
    }

    #[test]
    fn labels_are_the_templates_or_the_schedules() {
        let mut schedule = Schedule::default();
        schedule.metadata.name = Some("daily".to_owned());
        schedule.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "a".to_owned())]));
        schedule.metadata.annotations = Some(BTreeMap::from([(
            "kubectl.kubernetes.io/last-applied-configuration".to_owned(),
            "{}".to_owned(),
        )]));
        let tick = at("2026-11-23T02:00:00Z");
        let made = backup(&schedule, tick);
        assert_eq!(made.name_any(), "daily-20261123020000");
        assert_eq!(made.labels()["team"], "a");
        assert_eq!(made.labels()[label::SCHEDULE_NAME], "daily");
        assert!(made.annotations().is_empty() && made.owner_references().is_empty());
        let own = jackline_crds::velero::Metadata {
            labels: BTreeMap::from([("x".to_owned(), "y".to_owned())]),
            ..Default::default()
        };
        schedule.spec.template.metadata = Some(own);
        let made = backup(&schedule, tick);
        assert!(!made.labels().contains_key("team") && made.labels()["x"] == "y");
    }

    #[test]
    fn a_long_name_is_shortened_in_the_label_and_refused_where_no_backup_can_have_it() {
        let at = at("2026-11-23T02:00:00Z");
        let named = |length: usize, cron: &str| {
            let mut schedule = Schedule::default();
            schedule.metadata.name = Some("n".repeat(length));
            schedule.spec.schedule = cron.to_owned();
            schedule
        };
        let made = backup(&named(64, "@daily"), at);
        assert_eq!(made.labels()[label::SCHEDULE_NAME].len(), 63);
        assert!(made.name_any().starts_with(&"n".repeat(64)));
        assert!(validate(&named(238, "@daily"), at).is_ok());
        let errors = validate(&named(240, "never"), at).unwrap_err();
        assert!(errors[0].starts_with("invalid schedule"), "{errors:?}");
        let expected = "metadata.name has 240 characters, of which 2 are too many";
        assert!(errors[1].starts_with(expected), "{errors:?}");
    }

    #[test]
    fn what_was_left_out_counts_as_run() {
        let mut schedule = Schedule::default();
        schedule.metadata.creation_timestamp = Some(Time(at("2026-11-01T00:00:00Z")));
        assert_eq!(base(&schedule), at("2026-11-01T00:00:00Z"));
        let mut status = ScheduleStatus {
            last_backup: Some(Time(at("2026-11-05T00:00:00Z"))),
            ..Default::default()
        };
        status.last_skipped = Some(Time(at("2026-11-07T00:00:00Z")));
        schedule.status = Some(status);
        assert_eq!(base(&schedule), at("2026-11-07T00:00:00Z"));
    }
}
