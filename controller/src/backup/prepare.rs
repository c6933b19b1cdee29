//! The beginning: defaults, validation, the first status.

use std::{borrow::Borrow, time::Duration};

use jackline_crds::{
    GoDuration,
    names::{FIELD_MANAGER, annotation, finalizer as held, label, label_value},
    velero::{
        Backup, BackupPhase, BackupSpec, BackupStatus, BackupStorageLocation,
        TypedLocalObjectReference,
    },
};
use jackline_policy::{
    backup::{filter::RawFilter, volume_policy::VolumePolicies},
    labels::Selector,
};
use jackline_runtime::{Failure, LeaderToken};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::now;
use crate::{
    context::Context,
    fence, finalizer, location,
    rules::{self, Unusable},
};

/// What the layout in the bucket calls itself.
const FORMAT_VERSION: &str = "1.1.0";
/// How long a backup waits for a location that nobody has looked at yet.
const LOCATION_PATIENCE: i64 = 60;

/// How a backup began.
pub(super) enum Begun {
    /// Look again after this time.
    Wait(Duration),
    /// It cannot be: the object says why.
    Refused(Box<Backup>),
    /// It is in progress.
    Started(Box<Backup>, Box<BackupStorageLocation>),
}

/// The location of a backup that is in progress.
pub(super) async fn location(
    context: &Context,
    backup: &Backup,
) -> Result<Option<BackupStorageLocation>, kube::Error> {
    match &backup.spec.storage_location {
        Some(name) => context.fetch(name).await,
        None => Ok(None),
    }
}

/// The name of the location that a backup means.
fn location_name(context: &Context, spec: &BackupSpec) -> String {
    if let Some(name) = &spec.storage_location {
        return name.clone();
    }
    default_of(context.stores.locations.list()).map_or_else(
        || context.args.default_backup_storage_location.clone(),
        |location| location.name_any(),
    )
}

/// The location that is marked as default. Several may be while the location controller puts that right: the newest counts.
fn default_of<L: Borrow<BackupStorageLocation>>(all: Vec<L>) -> Option<L> {
    let marked = all.into_iter().filter(|it| it.borrow().spec.default);
    marked.max_by_key(|location| {
        let location = location.borrow();
        let created = location.creation_timestamp().map(|time| time.0);
        (created, location.name_any())
    })
}

/// Validates a new backup and writes its first status.
pub(super) async fn begin(
    context: &Context,
    token: &LeaderToken,
    backup: &Backup,
) -> Result<Begun, Failure> {
    let mut spec = backup.spec.clone();
    let mut name = location_name(context, &spec);
    let mut location: Option<BackupStorageLocation> = context.fetch(&name).await?;
    if location.is_none() && spec.storage_location.is_none() {
        // The default may be one that the watch has not told of.
        let all: Vec<BackupStorageLocation> = context.fetch_all(&ListParams::default()).await?;
        if let Some(default) = default_of(all) {
            name = default.name_any();
            location = Some(default);
        }
    }
    let age = backup
        .creation_timestamp()
        .map_or(0, |time| now().as_second() - time.0.as_second());
    let unseen = location.as_ref().is_some_and(|location| {
        location
            .status
            .as_ref()
            .is_none_or(|status| status.phase.is_none())
    });
    if unseen && age < LOCATION_PATIENCE {
        return Ok(Begun::Wait(Duration::from_millis(500)));
    }
    defaults(context, &mut spec, &name);
    let mut errors = problems(&spec);
    match &location {
        None => errors.push(missing(backup.spec.storage_location.is_some(), &name)),
        Some(location) => {
            if let Err(why) = location::usable(location, true) {
                errors.push(format!("backup can't be created because {why}"));
            }
        }
    }
    errors.extend(volume_policies(context, &spec).await?.err());
    errors.extend(context.args.volume_timeout(backup.annotations()).err());

    let started = now();
    let ttl = spec.ttl.unwrap_or_default();
    let expiration = started
        .checked_add(jiff::SignedDuration::from(ttl))
        .unwrap_or(jiff::Timestamp::MAX);
    let refused = !errors.is_empty();
    let status = BackupStatus {
        version: 1,
        format_version: Some(FORMAT_VERSION.to_owned()),
        expiration: Some(Time(expiration)),
        phase: Some(if refused {
            BackupPhase::FailedValidation
        } else {
            BackupPhase::InProgress
        }),
        start_timestamp: (!refused).then_some(Time(started)),
        validation_errors: errors,
        ..BackupStatus::default()
    };
    let mut metadata = metadata(context, backup, &name).await?;
    if !refused {
        metadata["finalizers"] = json!(finalizer::list(backup, held::BACKUP, true));
    }
    fence::check(backup, token)?;
    fence::sign(&mut metadata, token);
    let patch = json!({ "metadata": metadata, "spec": spec, "status": status });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = context.api::<Backup>();
    let backup = api
        .patch(&backup.name_any(), &params, &Patch::Merge(patch))
        .await?;
    Ok(match location {
        Some(location) if !refused => Begun::Started(Box::new(backup), Box::new(location)),
        _ => Begun::Refused(Box::new(backup)),
    })
}

/// What is said of a location that is not there, in Velero's words: those for a name in the Backup speak of a default too.
fn missing(named: bool, name: &str) -> String {
    let which = match named {
        true => format!("default {name} was not found"),
        false => format!("server default {name} does not exist"),
    };
    format!(
        "an existing backup storage location was not specified at backup creation time and the {which}. \
         Please address this issue (see `velero backup-location -h` for options) and create a new backup. \
         Error: BackupStorageLocation.velero.io {name:?} not found"
    )
}

fn defaults(context: &Context, spec: &mut BackupSpec, location: &str) {
    spec.storage_location = Some(location.to_owned());
    if spec.ttl.unwrap_or_default().is_zero() {
        spec.ttl = Some(context.args.default_backup_ttl);
    }
    let or = |value: Option<GoDuration>, seconds| {
        Some(
            value
                .filter(|value| !value.is_zero())
                .unwrap_or(GoDuration::from_secs(seconds)),
        )
    };
    spec.csi_snapshot_timeout = or(spec.csi_snapshot_timeout, 600);
    spec.item_operation_timeout = or(spec.item_operation_timeout, 4 * 3600);
    spec.snapshot_move_data.get_or_insert(false);
    if spec.default_volumes_to_restic == Some(true) {
        spec.default_volumes_to_fs_backup = Some(true);
    }
    spec.default_volumes_to_fs_backup
        .get_or_insert(context.args.default_volumes_to_fs_backup);
}

/// Everything that is wrong with a specification by itself.
pub(super) fn problems(spec: &BackupSpec) -> Vec<String> {
    let mut errors = raw_filter(spec).problems();
    if spec.label_selector.is_some() && !spec.or_label_selectors.is_empty() {
        errors.push("encountered labelSelector as well as orLabelSelectors in backup spec, only one can be specified".to_owned());
    }
    if let Err(error) = selectors(spec) {
        errors.push(error);
    }
    if let Some(policy) = &spec.resource_policy
        && !is_config_map(policy)
    {
        errors.push(format!(
            "resource policies: resourcePolicy kind {:?} is not supported, only configmap is",
            policy.kind
        ));
    }
    errors
}

fn is_config_map(reference: &TypedLocalObjectReference) -> bool {
    reference.kind.eq_ignore_ascii_case("configmap")
}

/// The filters of a specification.
pub(super) fn raw_filter(spec: &BackupSpec) -> RawFilter {
    RawFilter {
        included_namespaces: spec.included_namespaces.clone(),
        excluded_namespaces: spec.excluded_namespaces.clone(),
        included_resources: spec.included_resources.clone(),
        excluded_resources: spec.excluded_resources.clone(),
        include_cluster_resources: spec.include_cluster_resources,
        included_cluster: spec.included_cluster_scoped_resources.clone(),
        excluded_cluster: spec.excluded_cluster_scoped_resources.clone(),
        included_namespaced: spec.included_namespace_scoped_resources.clone(),
        excluded_namespaced: spec.excluded_namespace_scoped_resources.clone(),
    }
}

/// The label selectors, as text for the API server and compiled. None where everything is selected.
pub(super) fn selectors(spec: &BackupSpec) -> Result<Vec<(String, Selector)>, String> {
    let all = spec.label_selector.iter().chain(&spec.or_label_selectors);
    let compiled: Result<Vec<_>, String> = all.map(selector).collect();
    let compiled = compiled?;
    // One that selects everything makes the others pointless.
    if compiled.iter().any(|(text, _)| text.is_empty()) {
        Ok(Vec::new())
    } else {
        Ok(compiled)
    }
}

/// One label selector, both ways.
pub(super) fn selector(raw: &LabelSelector) -> Result<(String, Selector), String> {
    let labels = raw
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let empty = Vec::new();
    let expressions = raw.match_expressions.iter().flatten().map(|expression| {
        (
            expression.key.as_str(),
            expression.operator.as_str(),
            expression.values.as_ref().unwrap_or(&empty).as_slice(),
        )
    });
    let compiled =
        Selector::new("labelSelector", labels, expressions).map_err(|error| error.to_string())?;
    let text = kube::core::Selector::try_from(raw.clone()).map_err(|error| error.to_string())?;
    Ok((text.to_string(), compiled))
}

/// The volume policies that a backup is under, or what is wrong with them.
pub(super) async fn volume_policies(
    context: &Context,
    spec: &BackupSpec,
) -> Result<Result<VolumePolicies, String>, Failure> {
    // Another kind is refused by the specification alone.
    let Some(wanted) = spec.resource_policy.as_ref().filter(|it| is_config_map(it)) else {
        return Ok(Ok(VolumePolicies::default()));
    };
    let place = format!("{}/{}", context.namespace, wanted.name);
    let read = rules::read(context, &wanted.name, VolumePolicies::parse).await?;
    Ok(read.map_err(|unusable| match unusable {
        Unusable::Missing => {
            format!("fail to get ResourcePolicies {place} ConfigMap with error: it does not exist")
        }
        Unusable::Wrong(why) => {
            format!("fail to read the ResourcePolicies from ConfigMap {place} with error: {why}")
        }
    }))
}

/// Labels and annotations that every backup gets.
async fn metadata(context: &Context, backup: &Backup, location: &str) -> Result<Value, Failure> {
    let version = context.clients.call.apiserver_version().await?;
    let mut labels = json!({ (label::STORAGE_LOCATION): label_value(location) });
    let mut annotations = json!({
        (annotation::SOURCE_CLUSTER_VERSION): version.git_version,
        (annotation::SOURCE_CLUSTER_MAJOR): version.major,
        (annotation::SOURCE_CLUSTER_MINOR): version.minor,
        (annotation::RESOURCE_TIMEOUT): context.args.resource_timeout.to_string(),
    });
    // Which cluster's it is decides who may delete it. A policy may have said so already.
    if !backup.labels().contains_key(label::CLUSTER_UID) {
        labels[label::CLUSTER_UID] = json!(context.cluster_uid);
        annotations[annotation::CLUSTER_UID] = json!(context.cluster_uid);
    }
    Ok(json!({
        "uid": backup.uid(),
        "resourceVersion": backup.resource_version(),
        "labels": labels,
        "annotations": annotations,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::context::unwatched::{self, context, path};

    fn labelled(key: &str, value: &str) -> LabelSelector {
        LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..LabelSelector::default()
        }
    }

    #[test]
    fn specifications_that_cannot_be_are_refused() {
        assert!(problems(&BackupSpec::default()).is_empty());
        let both = BackupSpec {
            label_selector: Some(labelled("a", "b")),
            or_label_selectors: vec![labelled("c", "d")],
            ..BackupSpec::default()
        };
        assert!(problems(&both)[0].contains("only one can be specified"));
        let twice = BackupSpec {
            included_namespaces: vec!["a".to_owned()],
            excluded_namespaces: vec!["a".to_owned()],
            ..BackupSpec::default()
        };
        assert!(problems(&twice)[0].contains("Invalid included/excluded namespace lists"));
        let secret = BackupSpec {
            resource_policy: Some(TypedLocalObjectReference {
                kind: "Secret".to_owned(),
                name: "x".to_owned(),
                api_group: None,
            }),
            ..BackupSpec::default()
        };
        assert!(problems(&secret)[0].contains("only configmap"));
    }

    #[tokio::test]
    async fn a_location_that_was_just_made_usable_is_used() {
        let mut backup = Backup::new("b", BackupSpec::default());
        backup.spec.storage_location = Some("here".to_owned());
        let (at, of_backup) = (path("backupstoragelocations", "here"), path("backups", "b"));
        let version = json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        let mut objects = vec![
            ("/version", version),
            (&of_backup, serde_json::to_value(&backup).unwrap()),
        ];
        let (token, _held) = LeaderToken::for_tests();
        let begun = begin(&context(&objects), &token, &backup).await.unwrap();
        assert!(matches!(begun, Begun::Refused(_)));
        let mut here = unwatched::location("here");
        here["spec"]["default"] = json!(true);
        let all = unwatched::all("backupstoragelocations");
        let listed = unwatched::list(std::slice::from_ref(&here));
        objects.extend([(&*at, here), (&*all, listed)]);
        let begun = begin(&context(&objects), &token, &backup).await.unwrap();
        assert!(matches!(begun, Begun::Started(..)));
        // The default that no watch has told of.
        backup.spec.storage_location = None;
        let begun = begin(&context(&objects), &token, &backup).await.unwrap();
        assert!(matches!(begun, Begun::Started(_, location) if location.name_any() == "here"));
    }

    #[test]
    fn a_missing_location_is_the_server_s_default_only_where_none_is_named() {
        let (named, unnamed) = (missing(true, "far"), missing(false, "far"));
        assert!(
            named.contains("and the default far was not found. Please"),
            "{named}"
        );
        assert!(
            unnamed.contains("and the server default far does not exist. Please"),
            "{unnamed}"
        );
        assert!(
            named.ends_with(r#"BackupStorageLocation.velero.io "far" not found"#),
            "{named}"
        );
    }

    #[test]
    fn selectors_are_text_and_predicate() {
        let spec = BackupSpec {
            label_selector: Some(labelled("app", "db")),
            ..BackupSpec::default()
        };
        let selectors = selectors(&spec).unwrap();
        assert_eq!(selectors[0].0, "app=db");
        assert!(
            selectors[0]
                .1
                .matches(&[("app", "db")].into_iter().collect())
        );
    }
}
