//! What a restore asks for, made valid, or the reasons why it cannot be (velero-compat §7.1).

use std::time::Duration;

use jackline_crds::{
    names::{finalizer, label, label_value},
    velero::{Backup, BackupPhase, BackupStorageLocation, Restore, RestorePhase, RestoreSpec},
};
use jackline_policy::{
    labels::Selector,
    restore::{
        conflict::ExistingPolicy,
        hook::SpecHooks,
        scope::{Filters, Scope},
    },
};
use jackline_runtime::Failure;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{ResourceExt, api::ListParams};

use super::{
    adapt::{self, Adaptation},
    hooks,
    served::Served,
};
use crate::{context::Context, location};

/// A restore that can be carried out.
#[derive(Debug)]
pub struct Valid {
    /// The backup to restore from.
    pub backup: Backup,
    /// Where it lies.
    pub location: BackupStorageLocation,
    /// Which objects.
    pub scope: Scope,
    /// What happens to objects that exist.
    pub existing: ExistingPolicy,
    /// Hooks for pods that name none themselves.
    pub hooks: Vec<SpecHooks>,
    /// What is changed on each object.
    pub adaptation: Adaptation,
    /// How long the volumes may take.
    pub volume_timeout: Option<Duration>,
}

/// The backup that a restore means: the one it names, or the newest completed one of its schedule. Both are there when that was found.
///
/// # Errors
/// When the API server does not answer; within, why there is none.
pub async fn backup_name(
    context: &Context,
    restore: &Restore,
) -> Result<Result<String, String>, Failure> {
    let schedule = match source(restore) {
        Ok(Source::Backup(name)) => return Ok(Ok(name.to_owned())),
        Ok(Source::Schedule(schedule)) => label_value(schedule),
        Err(why) => return Ok(Err(why)),
    };
    // Not from the watch: its user may have seen the newest end a moment ago.
    let none = || Ok(Err("No completed backups found for schedule".to_owned()));
    // What is no label value is no schedule either, and the API server takes no such condition.
    let edge = |c: char| c.is_ascii_alphanumeric();
    let plain = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
    let edges = schedule.starts_with(edge) && schedule.ends_with(edge);
    if !edges || !schedule.chars().all(plain) {
        return none();
    }
    let of_schedule = ListParams::default().labels(&format!("{}={schedule}", label::SCHEDULE_NAME));
    let backups = context.fetch_all::<Backup>(&of_schedule).await?;
    let of_schedule = backups.into_iter().filter(|backup| {
        // A comma would make two conditions of one.
        backup.labels().get(label::SCHEDULE_NAME) == Some(&schedule)
    });
    let newest = of_schedule
        .filter(|backup| backup.phase() == BackupPhase::Completed)
        .max_by_key(|backup| {
            let started = backup.status.as_ref()?.start_timestamp.as_ref();
            started.map(|time| time.0)
        });
    match newest {
        Some(backup) => Ok(Ok(backup.name_any())),
        None => none(),
    }
}

/// What a restore names.
#[derive(Debug, PartialEq)]
enum Source<'a> {
    Backup(&'a str),
    Schedule(&'a str),
}

fn source(restore: &Restore) -> Result<Source<'_>, String> {
    let spec = &restore.spec;
    match (&spec.backup_name, &spec.schedule_name) {
        (Some(_), Some(_)) if !is_taken(restore) => Err(ONE_SOURCE.to_owned()),
        (Some(name), _) => Ok(Source::Backup(name)),
        (None, Some(schedule)) => Ok(Source::Schedule(schedule)),
        (None, None) => Err(ONE_SOURCE.to_owned()),
    }
}

const ONE_SOURCE: &str =
    "Either a backup or schedule must be specified as a source for the restore, but not both";

/// Whether a server has taken the restore up: from then on it names the backup beside its schedule.
fn is_taken(restore: &Restore) -> bool {
    let ours = |entry: &String| entry == finalizer::RESTORE;
    restore.phase() != RestorePhase::New || restore.finalizers().iter().any(ours)
}

/// Whether a restore names one source.
pub fn has_source(restore: &Restore) -> bool {
    source(restore).is_ok()
}

/// Checks a restore.
///
/// # Errors
/// When the API server does not answer; within, everything that is wrong with the restore, for `validationErrors`.
pub async fn validate(
    context: &Context,
    served: &Served,
    restore: &Restore,
) -> Result<Result<Valid, Vec<String>>, Failure> {
    let mut errors = Vec::new();
    let adaptation = adapt::read(context, &restore.spec, &mut errors).await?;
    let begun = restore.phase() == RestorePhase::InProgress;
    let backup = match backup_name(context, restore).await? {
        Ok(name) => usable_backup(&name, context.fetch(&name).await?, begun),
        Err(why) => Err(why),
    };
    let backup = backup.map_err(|why| errors.push(why)).ok();
    let location = match &backup {
        Some(backup) => {
            let name = backup.spec.storage_location.clone().unwrap_or_default();
            let location = usable_location(&name, context.fetch(&name).await?);
            location.map_err(|why| errors.push(why)).ok()
        }
        None => None,
    };
    let source = backup.zip(location);
    Ok(check(context, served, restore, source, adaptation, errors))
}

fn check(
    context: &Context,
    served: &Served,
    restore: &Restore,
    source: Option<(Backup, BackupStorageLocation)>,
    adaptation: Adaptation,
    mut errors: Vec<String>,
) -> Result<Valid, Vec<String>> {
    let spec = &restore.spec;
    let mut note = |error: String| errors.push(error);
    let existing = ExistingPolicy::parse(spec.existing_resource_policy.as_deref());
    let existing = existing.map_err(&mut note).unwrap_or_default();
    let hooks = hooks::of_spec(spec).map_err(&mut note).unwrap_or_default();
    let timeout = context.args.volume_timeout(restore.annotations());
    let timeout = timeout.map_err(&mut note).ok();
    let selectors = selectors(spec).map_err(&mut note).unwrap_or_default();
    let scope = Scope::new(Filters {
        included_namespaces: spec.included_namespaces.clone(),
        excluded_namespaces: spec.excluded_namespaces.clone(),
        included_resources: spec
            .included_resources
            .iter()
            .map(|name| served.resolve(name))
            .collect(),
        excluded_resources: spec
            .excluded_resources
            .iter()
            .map(|name| served.resolve(name))
            .collect(),
        include_cluster_resources: spec.include_cluster_resources,
        selectors,
        namespace_mapping: spec.namespace_mapping.clone(),
    });
    match (source, scope, timeout) {
        (Some((backup, location)), Ok(scope), Some(volume_timeout)) if errors.is_empty() => {
            Ok(Valid {
                backup,
                location,
                scope,
                existing,
                hooks,
                adaptation,
                volume_timeout,
            })
        }
        (_, scope, _) => {
            errors.extend(scope.err().into_iter().flatten());
            Err(errors)
        }
    }
}

/// `begun`: a deletion waits for it.
fn usable_backup(name: &str, backup: Option<Backup>, begun: bool) -> Result<Backup, String> {
    let Some(backup) = backup else {
        return Err(format!(
            "Error retrieving backup: backup.velero.io {name:?} not found"
        ));
    };
    match backup.phase() {
        BackupPhase::Completed | BackupPhase::PartiallyFailed => Ok(backup),
        BackupPhase::Deleting if begun => Ok(backup),
        other => Err(format!(
            "backup {name} is {other}: only a completed backup can be restored"
        )),
    }
}

fn usable_location(
    name: &str,
    location: Option<BackupStorageLocation>,
) -> Result<BackupStorageLocation, String> {
    let absent = || format!("Error retrieving backup storage location: {name} not found");
    let location = location.ok_or_else(absent)?;
    location::usable(&location, false)?;
    Ok(location)
}

fn selectors(spec: &RestoreSpec) -> Result<Vec<Selector>, String> {
    if spec.label_selector.is_some() && !spec.or_label_selectors.is_empty() {
        return Err(
            "encountered labelSelector as well as orLabelSelectors in restore spec, only one can be specified"
                .to_owned(),
        );
    }
    let one = spec
        .label_selector
        .iter()
        .map(|selector| ("spec.labelSelector".to_owned(), selector));
    let many = spec.or_label_selectors.iter().enumerate();
    let many = many.map(|(at, selector)| (format!("spec.orLabelSelectors[{at}]"), selector));
    one.chain(many)
        .map(|(field, selector)| parse(&field, selector))
        .collect()
}

/// A label selector of a field.
pub fn parse(field: &str, selector: &LabelSelector) -> Result<Selector, String> {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions: Vec<_> = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|line| {
            let values = line.values.clone().unwrap_or_default();
            (line.key.as_str(), line.operator.as_str(), values)
        })
        .collect();
    let expressions = expressions
        .iter()
        .map(|(key, op, values)| (*key, *op, values.as_slice()));
    Selector::new(field, labels, expressions).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::unwatched::{all, completed, context, list, location, path};
    use serde_json::json;

    #[tokio::test]
    async fn a_backup_that_ended_a_moment_ago_can_be_restored() {
        let (old, new) = (completed("old", 1), completed("new", 2));
        let backups = list(&[new.clone(), json!({"spec": 7}), old]);
        let (of_schedule, by_name) = (all("backups"), path("backups", "new"));
        let at = path("backupstoragelocations", "here");
        let maps = "/api/v1/namespaces/velero/configmaps";
        let none = list(&[]);
        let objects = [
            (&*of_schedule, backups),
            (&by_name, new),
            (&at, location("here")),
            (maps, none.clone()),
            ("/api/v1/nodes", none),
        ];
        let context = context(&objects);
        for spec in [
            json!({"backupName": "new"}),
            json!({"scheduleName": "nightly"}),
        ] {
            let restore = json!({"metadata": {"name": "r"}, "spec": spec});
            let restore = serde_json::from_value(restore).unwrap();
            let valid = validate(&context, &Served::default(), &restore)
                .await
                .unwrap();
            let valid = valid.unwrap();
            assert_eq!(valid.backup.name_any(), "new");
            assert_eq!(valid.location.name_any(), "here");
        }
        for bad in ["a b", "nightly,x", "x/y", "-", "other"] {
            let restore = json!({"metadata": {"name": "r"}, "spec": {"scheduleName": bad}});
            let restore = serde_json::from_value(restore).unwrap();
            let none = backup_name(&context, &restore).await.unwrap();
            assert!(none.unwrap_err().starts_with("No completed"), "{bad}");
        }
        for bad in ["b?x", "../backups/new", "new/", "50%", "..", "other"] {
            let restore = json!({"metadata": {"name": "r"}, "spec": {"backupName": bad}});
            let restore = serde_json::from_value(restore).unwrap();
            let refused = validate(&context, &Served::default(), &restore)
                .await
                .unwrap();
            let why = refused.unwrap_err().join("; ");
            assert!(
                why.ends_with(&format!("backup.velero.io {bad:?} not found")),
                "{why}"
            );
        }
    }

    #[test]
    fn a_restore_that_was_taken_up_names_its_backup_beside_its_schedule() {
        let restore = |spec: serde_json::Value, phase: &str, finalizers: &[&str]| -> Restore {
            serde_json::from_value(json!({"metadata": {"name": "r", "finalizers": finalizers},
                "spec": spec, "status": {"phase": phase}}))
            .unwrap()
        };
        let (backup, schedule) = (json!({"backupName": "b"}), json!({"scheduleName": "s"}));
        let both = json!({"backupName": "b", "scheduleName": "s"});
        let (one, other) = (Ok(Source::Backup("b")), Ok(Source::Schedule("s")));
        let none = || Err(ONE_SOURCE.to_owned());
        for (spec, phase, finalizers, want) in [
            (&backup, "New", &[][..], one),
            (&schedule, "New", &[], other),
            (&both, "New", &[], none()),
            (&json!({}), "New", &[], none()),
            (&both, "New", &[finalizer::RESTORE], Ok(Source::Backup("b"))),
            (&both, "InProgress", &[], Ok(Source::Backup("b"))),
        ] {
            let restore = restore(spec.clone(), phase, finalizers);
            assert_eq!(source(&restore), want, "{spec} {phase} {finalizers:?}");
        }
    }
}
