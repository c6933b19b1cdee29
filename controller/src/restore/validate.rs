//! What a restore asks for, made valid, or the reasons why it cannot be (velero-compat §7.1).

use std::{sync::Arc, time::Duration};

use jackline_crds::{
    names::label,
    velero::{Backup, BackupPhase, BackupStorageLocation, Restore, RestoreSpec},
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
use kube::ResourceExt;

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
    pub backup: Arc<Backup>,
    /// Where it lies.
    pub location: Arc<BackupStorageLocation>,
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

/// The backup that a restore means: the one it names, or the newest completed one of its schedule.
pub fn backup_name(context: &Context, spec: &RestoreSpec) -> Result<String, String> {
    match (&spec.backup_name, &spec.schedule_name) {
        (Some(_), Some(_)) | (None, None) => Err(
            "Either a backup or schedule must be specified as a source for the restore, but not both"
                .to_owned(),
        ),
        (Some(name), None) => Ok(name.clone()),
        (None, Some(schedule)) => {
            let mut backups = context.stores.backups.filter(|backup| {
                backup.phase() == BackupPhase::Completed
                    && backup.labels().get(label::SCHEDULE_NAME) == Some(schedule)
            });
            backups.sort_by_key(|backup| {
                backup.status.as_ref()?.start_timestamp.as_ref().map(|time| time.0)
            });
            let newest = backups.pop().map(|backup| backup.name_any());
            newest.ok_or_else(|| "No completed backups found for schedule".to_owned())
        }
    }
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
    Ok(check(context, served, restore, adaptation, errors))
}

fn check(
    context: &Context,
    served: &Served,
    restore: &Restore,
    adaptation: Adaptation,
    mut errors: Vec<String>,
) -> Result<Valid, Vec<String>> {
    let spec = &restore.spec;
    let mut note = |error: String| errors.push(error);
    let backup = backup_name(context, spec).and_then(|name| usable_backup(context, &name));
    let backup = backup.map_err(&mut note).ok();
    let location = backup.as_ref().and_then(|backup| {
        let name = backup.spec.storage_location.clone().unwrap_or_default();
        let Some(location) = context.stores.locations.get(&context.key(&name)) else {
            note(format!(
                "Error retrieving backup storage location: {name} not found"
            ));
            return None;
        };
        location::usable(&location, false)
            .map_err(&mut note)
            .ok()
            .map(|()| location)
    });
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
    match (backup, location, scope, timeout) {
        (Some(backup), Some(location), Ok(scope), Some(volume_timeout)) if errors.is_empty() => {
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
        (_, _, scope, _) => {
            errors.extend(scope.err().into_iter().flatten());
            Err(errors)
        }
    }
}

fn usable_backup(context: &Context, name: &str) -> Result<Arc<Backup>, String> {
    let backup = context.stores.backups.get(&context.key(name));
    let Some(backup) = backup else {
        return Err(format!(
            "Error retrieving backup: backup.velero.io {name:?} not found"
        ));
    };
    match backup.phase() {
        BackupPhase::Completed | BackupPhase::PartiallyFailed => Ok(backup),
        other => Err(format!(
            "backup {name} is {other}: only a completed backup can be restored"
        )),
    }
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
