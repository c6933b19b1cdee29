//! From YAML to a valid policy, or to a message that names the field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use jackline_crds::jackline::{BackupPolicy, ClusterBackupPolicy};
use serde_json::{Value, json};

fn cluster(spec: Value) -> Result<jackline_policy::Policy, jackline_policy::Invalid> {
    let object = json!({"metadata": {"name": "everything", "uid": "u"}, "spec": spec});
    serde_json::from_value::<ClusterBackupPolicy>(object)
        .expect("readable")
        .policy()
}

fn full() -> Value {
    json!({
        "mode": "Preview",
        "priority": 7,
        "namespaces": {"include": ["team-*"], "exclude": ["kube-*"], "regex": "^(team|app)-",
                       "selector": {"matchLabels": {"backup": "yes"}}},
        "pods": {"selector": {}, "excludeJobs": ["*"]},
        "volumes": {
            "rules": [{
                "name": "no-scratch",
                "match": {"types": ["emptyDir"], "storageClasses": ["scratch"], "accessModes": ["ReadWriteMany"],
                          "claimSelector": {}, "claimRegex": "^cache-", "capacity": {"min": 0, "max": "500Gi"},
                          "csiDrivers": []},
                "action": "Skip"
            }],
            "default": "Claims"
        },
        "schedule": {"cron": "0 2 * * *", "timeZone": "Europe/Berlin", "jitter": "30m", "startingDeadline": "1h",
                     "blackoutWindows": [{"days": ["Mon", "Tue"], "start": "08:00", "end": "18:00"}]},
        "storageLocation": "default",
        "template": {},
        "retention": {"keepLast": 3, "keepHourly": 0, "keepDaily": 7, "keepWeekly": 4, "keepMonthly": 12,
                      "keepYearly": 2, "keepWithin": "48h", "minimumGood": 2, "vanishedVolumes": "90days"},
        "repository": {"prune": "@weekly", "check": "@weekly", "checkReadData": "5%"},
        "verification": {"schedule": "@weekly", "volumes": 2, "maxBytes": "20Gi"},
        "rpo": "26h",
        "deletionPolicy": "Retain"
    })
}

#[test]
fn everything_at_once() {
    let policy = cluster(full()).unwrap();
    assert_eq!(policy.id.to_string(), "ClusterBackupPolicy/everything");
    assert_eq!(policy.spec.priority, 7);
    let retention = policy.spec.retention.unwrap();
    assert_eq!(
        (retention.last, retention.monthly, retention.minimum_good),
        (3, 12, 2)
    );
    assert_eq!(
        policy.spec.explicit_rpo,
        Some(std::time::Duration::from_secs(26 * 3600))
    );
}

#[test]
fn nothing_at_all() {
    let policy = cluster(json!({})).unwrap();
    assert!(policy.spec.schedule.is_none() && policy.spec.retention.is_none());
    cluster(json!({"namespaces": null, "volumes": null})).unwrap();
}

#[test]
fn what_cannot_be_is_named() {
    for (change, field) in [
        (json!({"mode": "Enforced"}), "spec.mode"),
        (json!({"deletionPolicy": "Orphan"}), "spec.deletionPolicy"),
        (
            json!({"namespaces": {"include": ["a"], "exclude": ["a"]}}),
            "spec.namespaces.exclude",
        ),
        (
            json!({"namespaces": {"regex": "("}}),
            "spec.namespaces.regex",
        ),
        (
            json!({"pods": {"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}}),
            "spec.pods.selector.matchExpressions[0].operator",
        ),
        (
            json!({"volumes": {"default": "Some"}}),
            "spec.volumes.default",
        ),
        (
            json!({"volumes": {"rules": [{"name": "", "action": "Skip"}]}}),
            "spec.volumes.rules[0].name",
        ),
        (
            json!({"volumes": {"rules": [{"name": "a", "action": "Drop"}]}}),
            "spec.volumes.rules[0].action",
        ),
        (
            json!({"volumes": {"rules": [{"name": "a", "action": "Skip", "match": {"claimRegex": "["}}]}}),
            "spec.volumes.rules[0].match.claimRegex",
        ),
        (
            json!({"volumes": {"rules": [{"name": "a", "action": "Skip", "match": {"capacity": {"min": 2, "max": "1"}}}]}}),
            "spec.volumes.rules[0].match.capacity.min",
        ),
        (
            json!({"schedule": {"cron": "61 * * * *"}}),
            "spec.schedule.cron",
        ),
        (
            json!({"schedule": {"cron": "@daily", "timeZone": "Mars/Olympus"}}),
            "spec.schedule.timeZone",
        ),
        (
            json!({"schedule": {"cron": "@daily", "jitter": "soon"}}),
            "spec.schedule.jitter",
        ),
        (
            json!({"schedule": {"cron": "@daily", "blackoutWindows": [{"start": "8", "end": "9:00"}]}}),
            "spec.schedule.blackoutWindows[0].start",
        ),
        (
            json!({"retention": {"keepLast": -1}}),
            "spec.retention.keepLast",
        ),
        (
            json!({"retention": {"keepLast": 1}, "template": {"ttl": "72h"}}),
            "spec.template.ttl",
        ),
        (
            json!({"template": {"includedNamespaces": ["a"]}}),
            "spec.template.includedNamespaces",
        ),
        (
            json!({"repository": {"prune": "sometimes"}}),
            "spec.repository.prune",
        ),
        (
            json!({"repository": {"checkReadData": "half"}}),
            "spec.repository.checkReadData",
        ),
        (
            json!({"verification": {"schedule": "@daily", "volumes": 0}}),
            "spec.verification.volumes",
        ),
        (
            json!({"verification": {"schedule": "@daily", "volumes": 1, "maxBytes": "big"}}),
            "spec.verification.maxBytes",
        ),
        (json!({"rpo": "1 fortnight"}), "spec.rpo"),
    ] {
        let error = cluster(change.clone()).expect_err(&change.to_string());
        assert_eq!(error.field, field, "{change}: {error}");
        assert!(
            !error.found.is_empty() && !error.allowed.is_empty(),
            "{error}"
        );
    }
}

#[test]
fn a_tenant_stays_at_home() {
    let tenant = |spec: Value| {
        let object = json!({"metadata": {"name": "db", "namespace": "team-a"}, "spec": spec});
        serde_json::from_value::<BackupPolicy>(object)
            .unwrap()
            .policy()
    };
    let policy = tenant(json!({"template": {"metadata": {"labels": {"tier": "gold"}}}})).unwrap();
    assert_eq!(policy.id.to_string(), "BackupPolicy/team-a/db");
    let namespaces = tenant(json!({"namespaces": {"include": ["*"]}})).unwrap_err();
    assert_eq!(namespaces.field, "spec.namespaces");
    let hooks = tenant(json!({"template": {"hooks": {"resources": [{"name": "x"}]}}})).unwrap_err();
    assert_eq!(hooks.field, "spec.template.hooks");
}
