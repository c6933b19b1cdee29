//! From what users wrote to what can be: the one door through which specs go into `jackline_policy`.

use crate::selector::selector;
use jackline_policy::spec::{
    self, Blackout, Match, MatchParts, NamespaceRule, PodRule, PolicyId, PolicyParts, Repository,
    Retention, RetentionParts, ScheduleParts, ScheduleSpec, Template, Verification, Volumes,
};
use jackline_policy::{Invalid, Policy};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    BackupPolicy, ClusterBackupPolicy, NamespaceSelection, PolicySchedule, PolicySpec, VolumeRule,
};

impl ClusterBackupPolicy {
    /// The valid form of this policy.
    ///
    /// # Errors
    /// The first field that cannot be, with what was found and what is allowed.
    pub fn policy(&self) -> Result<Policy, Invalid> {
        let name = self.metadata.name.clone().unwrap_or_default();
        policy(PolicyId::cluster(name), &self.metadata, &self.spec)
    }
}

impl BackupPolicy {
    /// The valid form of this policy.
    ///
    /// # Errors
    /// The first field that cannot be, with what was found and what is allowed.
    pub fn policy(&self) -> Result<Policy, Invalid> {
        if self.spec.namespaces != NamespaceSelection::default() {
            return Err(Invalid::raw(
                "spec.namespaces",
                "a selection of namespaces",
                "nothing: a BackupPolicy governs its own namespace",
            ));
        }
        let namespace = self.metadata.namespace.clone().unwrap_or_default();
        let name = self.metadata.name.clone().unwrap_or_default();
        policy(
            PolicyId::namespaced(namespace, name),
            &self.metadata,
            &self.spec,
        )
    }
}

fn policy(id: PolicyId, metadata: &ObjectMeta, spec: &PolicySpec) -> Result<Policy, Invalid> {
    Ok(Policy {
        uid: metadata.uid.clone().unwrap_or_default(),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        spec: parts(spec)?.check(id.kind)?,
        id,
    })
}

/// Every part of a spec, each valid by itself.
fn parts(raw: &PolicySpec) -> Result<PolicyParts, Invalid> {
    let namespaces = &raw.namespaces;
    Ok(PolicyParts {
        mode: known(
            "spec.mode",
            raw.mode.map(|m| m.as_str()),
            &["Enforce", "Preview"],
        )?,
        priority: raw.priority,
        suspend: raw.suspend,
        namespaces: NamespaceRule::new(
            "spec.namespaces",
            &namespaces.include,
            &namespaces.exclude,
            namespaces.regex.as_deref(),
            selector("spec.namespaces.selector", namespaces.selector.as_ref())?,
        )?,
        pods: PodRule::new(
            "spec.pods",
            selector("spec.pods.selector", raw.pods.selector.as_ref())?,
            &raw.pods.exclude_jobs,
        )?,
        volumes: Volumes::new(
            "spec.volumes",
            raw.volumes
                .rules
                .iter()
                .enumerate()
                .map(rule)
                .collect::<Result<_, _>>()?,
            known(
                "spec.volumes.default",
                raw.volumes.default.map(|d| d.as_str()),
                &["Claims", "All", "None"],
            )?,
        )?,
        schedule: raw.schedule.as_ref().map(schedule).transpose()?,
        storage_location: raw.storage_location.clone(),
        template: match &raw.template {
            None => Template::default(),
            Some(template) => Template::new(
                "spec.template",
                serde_json::to_value(template)
                    .map_err(|error| Invalid::raw("spec.template", error, "a BackupSpec"))?,
            )?,
        },
        retention: raw.retention.as_ref().map(retention).transpose()?,
        repository: match &raw.repository {
            None => Repository::default(),
            Some(raw) => Repository::new(
                "spec.repository",
                raw.prune.as_deref(),
                raw.check.as_deref(),
                raw.check_read_data.as_deref(),
            )?,
        },
        verification: raw
            .verification
            .as_ref()
            .map(|raw| {
                let max = raw.max_bytes.as_ref().map(|q| q.0.as_str());
                Verification::new("spec.verification", &raw.schedule, raw.volumes, max)
            })
            .transpose()?,
        rpo: raw
            .rpo
            .as_deref()
            .map(|text| jackline_policy::quantity::duration("spec.rpo", text))
            .transpose()?,
        deletion_policy: known(
            "spec.deletionPolicy",
            raw.deletion_policy.map(|d| d.as_str()),
            &["Retain", "Delete"],
        )?,
    })
}

/// One of a few words; absent means the type's default.
fn known<T: std::str::FromStr + Default>(
    field: &str,
    word: Option<&str>,
    allowed: &[&str],
) -> Result<T, Invalid> {
    match word {
        None => Ok(T::default()),
        Some(word) => word
            .parse()
            .map_err(|_| Invalid::new(field, word, allowed.join(", "))),
    }
}

fn rule((at, raw): (usize, &VolumeRule)) -> Result<spec::VolumeRule, Invalid> {
    let field = format!("spec.volumes.rules[{at}]");
    let matches = &raw.matches;
    let bound = |end: fn(&super::CapacityRange) -> &Option<super::RawQuantity>| {
        matches
            .capacity
            .as_ref()
            .and_then(|range| end(range).as_ref())
            .map(|q| q.0.as_str())
    };
    let at = format!("{field}.match");
    let parts = MatchParts {
        types: &matches.types,
        storage_classes: &matches.storage_classes,
        access_modes: &matches.access_modes,
        claim_regex: matches.claim_regex.as_deref(),
        min_capacity: bound(|range| &range.min),
        max_capacity: bound(|range| &range.max),
        csi_drivers: &matches.csi_drivers,
    };
    let claims = selector(
        &format!("{at}.claimSelector"),
        matches.claim_selector.as_ref(),
    )?;
    let action = raw.action.as_str();
    spec::VolumeRule::new(
        &field,
        &raw.name,
        Match::new(&at, parts, claims)?,
        action
            .parse()
            .map_err(|_| Invalid::new(format!("{field}.action"), action, "Backup, Skip"))?,
    )
}

fn schedule(raw: &PolicySchedule) -> Result<ScheduleSpec, Invalid> {
    let blackouts = raw.blackout_windows.iter().enumerate().map(|(at, window)| {
        let field = format!("spec.schedule.blackoutWindows[{at}]");
        Blackout::new(&field, &window.days, &window.start, &window.end)
    });
    ScheduleSpec::new(
        "spec.schedule",
        ScheduleParts {
            cron: &raw.cron,
            time_zone: raw.time_zone.as_deref(),
            jitter: raw.jitter.as_deref(),
            starting_deadline: raw.starting_deadline.as_deref(),
        },
        blackouts.collect::<Result<_, _>>()?,
    )
}

fn retention(raw: &super::PolicyRetention) -> Result<Retention, Invalid> {
    Retention::new(
        "spec.retention",
        RetentionParts {
            keep_last: raw.keep_last,
            keep_hourly: raw.keep_hourly,
            keep_daily: raw.keep_daily,
            keep_weekly: raw.keep_weekly,
            keep_monthly: raw.keep_monthly,
            keep_yearly: raw.keep_yearly,
            keep_within: raw.keep_within.as_deref(),
            minimum_good: raw.minimum_good,
            vanished_volumes: raw.vanished_volumes.as_deref(),
        },
    )
}
