//! The Backup of one tick of a policy.

use std::collections::BTreeMap;

use jackline_crds::GoDuration;
use jackline_crds::names::{annotation, label, label_value};
use jackline_crds::velero::{Backup, BackupSpec};
use jackline_policy::naming;
use jackline_policy::spec::PolicyKind;
use jackline_policy::{Policy, PolicyId};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::coverage::short_name;

/// The ttl of backups whose retention we decide: long enough never to be what deletes them.
const TEN_YEARS: GoDuration = GoDuration::from_hours(10 * 365 * 24);

/// What a Backup is made of besides the policy.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Jackline's namespace.
    pub namespace: &'a str,
    pub location: &'a str,
    pub cluster_uid: &'a str,
    pub included_namespaces: &'a [String],
    pub tick: Timestamp,
}

/// The policy that made a backup.
pub fn policy_of(backup: &Backup) -> Option<PolicyId> {
    let name = backup.annotations().get(annotation::POLICY)?;
    Some(match name.split_once('/') {
        Some((namespace, name)) => PolicyId::namespaced(namespace, name),
        None => PolicyId::cluster(name),
    })
}

/// The object to create. Its name is a function of policy and tick, so a second attempt finds the first one's.
///
/// # Errors
/// A template that is no BackupSpec; the CRD's schema does not let one in.
pub fn build(policy: &Policy, run: Run<'_>) -> Result<Backup, serde_json::Error> {
    let template = serde_json::Value::Object(policy.spec.template.fields().clone());
    let mut spec: BackupSpec = serde_json::from_value(template)?;
    let given = spec.metadata.take().unwrap_or_default();
    spec.included_namespaces = run.included_namespaces.to_vec();
    spec.storage_location = Some(run.location.to_owned());
    if policy.spec.retention.is_some() {
        spec.ttl = Some(TEN_YEARS);
    }
    let schedule = naming::schedule_name(&policy.id);
    let mut labels = given.labels;
    let mut set = |key: &str, value: String| labels.insert(key.to_owned(), value);
    set(label::SCHEDULE_NAME, schedule.clone());
    set(label::STORAGE_LOCATION, label_value(run.location));
    set(label::POLICY, label_value(&policy.id.name));
    if policy.id.kind == PolicyKind::BackupPolicy {
        set(label::POLICY_NAMESPACE, policy.id.namespace.clone());
    }
    set(label::POLICY_UID, policy.uid.clone());
    set(label::CLUSTER_UID, run.cluster_uid.to_owned());
    let mut annotations = given.annotations;
    annotations.extend(BTreeMap::from([
        (annotation::POLICY.to_owned(), short_name(&policy.id)),
        (annotation::TICK.to_owned(), run.tick.to_string()),
        (
            annotation::CLUSTER_UID.to_owned(),
            run.cluster_uid.to_owned(),
        ),
    ]));
    Ok(Backup {
        metadata: ObjectMeta {
            name: Some(naming::backup_name(&schedule, run.tick)),
            namespace: Some(run.namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use jackline_policy::spec::{PolicyParts, Retention, RetentionParts, Template};
    use serde_json::json;

    use super::*;

    fn policy(id: PolicyId) -> Policy {
        let keep = RetentionParts {
            keep_last: Some(2),
            ..RetentionParts::default()
        };
        let parts = PolicyParts {
            template: Template::new("t", json!({"metadata": {"labels": {"team": "a"}}})).unwrap(),
            retention: Some(Retention::new("r", keep).unwrap()),
            ..PolicyParts::default()
        };
        Policy {
            uid: "u".into(),
            created: Timestamp::UNIX_EPOCH,
            spec: parts.check(id.kind).unwrap(),
            id,
        }
    }

    #[test]
    fn a_backup_says_whose_it_is() {
        let run = Run {
            namespace: "velero",
            location: "default",
            cluster_uid: "kube",
            included_namespaces: &["a".to_owned()],
            tick: "2026-11-23T02:00:00Z".parse().unwrap(),
        };
        let id = PolicyId::namespaced("team-a", "db");
        let backup = build(&policy(id.clone()), run).unwrap();
        assert_eq!(backup.name_any(), "team-a-db-20261123020000");
        assert_eq!(policy_of(&backup), Some(id));
        let labels = backup.labels();
        assert_eq!(labels[label::SCHEDULE_NAME], "team-a-db");
        assert_eq!(labels[label::CLUSTER_UID], "kube");
        assert_eq!(labels["team"], "a");
        assert_eq!(backup.spec.ttl, Some(TEN_YEARS));
        assert_eq!(backup.spec.included_namespaces, ["a"]);
        assert_eq!(backup.spec.metadata, None);
        let cluster = build(&policy(PolicyId::cluster("all")), run).unwrap();
        assert_eq!(policy_of(&cluster), Some(PolicyId::cluster("all")));
        assert!(!cluster.labels().contains_key(label::POLICY_NAMESPACE));
    }
}
