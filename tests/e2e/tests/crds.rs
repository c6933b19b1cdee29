//! The CustomResourceDefinitions on a real API server: all are accepted, and a policy that cannot be is refused by name of the field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result};
use jackline_crds::names::VELERO_GROUP;
use jackline_crds::yaml::definitions;
use jackline_test_cluster::{Cluster, Options};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

/// The spec of design and reference, with every field.
fn full() -> Value {
    json!({
        "mode": "Preview",
        "priority": 7,
        "suspend": false,
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
        "template": {"labelSelector": {"matchLabels": {"a": "b"}}, "hooks": {"resources": []}},
        "retention": {"keepLast": 3, "keepHourly": 0, "keepDaily": 7, "keepWeekly": 4, "keepMonthly": 12,
                      "keepYearly": 2, "keepWithin": "48h", "minimumGood": 2, "vanishedVolumes": "90days"},
        "repository": {"prune": "@weekly", "check": "@weekly", "checkReadData": "5%"},
        "verification": {"schedule": "@weekly", "volumes": 2, "maxBytes": "20Gi"},
        "rpo": "26h",
        "deletionPolicy": "Retain"
    })
}

fn rules(rules: Value) -> Value {
    json!({"volumes": {"rules": rules}})
}

fn matching(what: Value) -> Value {
    rules(json!([{"name": "a", "action": "Skip", "match": what}]))
}

fn daily(more: Value) -> Value {
    let mut schedule = json!({"cron": "@daily"});
    for (key, value) in more.as_object().into_iter().flatten() {
        schedule[key] = value.clone();
    }
    json!({"schedule": schedule})
}

/// Specs that the schema can refuse, with the field that the answer has to name.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("spec.mode", json!({"mode": "Enforced"})),
        ("spec.deletionPolicy", json!({"deletionPolicy": "Orphan"})),
        ("spec.priority", json!({"priority": "high"})),
        (
            "spec.namespaces.exclude",
            json!({"namespaces": {"include": ["a", "b"], "exclude": ["b"]}}),
        ),
        (
            "spec.namespaces.include[0]",
            json!({"namespaces": {"include": [""]}}),
        ),
        (
            "spec.namespaces.regex",
            json!({"namespaces": {"regex": "("}}),
        ),
        (
            "spec.volumes.rules[0].match.claimRegex",
            matching(json!({"claimRegex": "["})),
        ),
        (
            "spec.volumes.rules[0].name",
            rules(json!([{"action": "Skip"}])),
        ),
        (
            "spec.volumes.rules[0].name",
            rules(json!([{"name": " ", "action": "Skip"}])),
        ),
        (
            "spec.volumes.rules",
            rules(json!([{"name": "a", "action": "Skip"}, {"name": "a", "action": "Backup"}])),
        ),
        (
            "spec.volumes.rules[0].action",
            rules(json!([{"name": "a", "action": "Drop"}])),
        ),
        (
            "spec.volumes.rules[0].match.types[0]",
            matching(json!({"types": ["PVC"]})),
        ),
        (
            "spec.volumes.rules[0].match.accessModes[0]",
            matching(json!({"accessModes": ["RWX"]})),
        ),
        (
            "spec.volumes.rules[0].match.capacity.min",
            matching(json!({"capacity": {"min": "2Gi", "max": "1Gi"}})),
        ),
        (
            "spec.volumes.rules[0].match.capacity.min",
            matching(json!({"capacity": {"min": 5, "max": "1"}})),
        ),
        (
            "spec.volumes.rules[0].match.capacity.max",
            matching(json!({"capacity": {"max": "big"}})),
        ),
        (
            "spec.volumes.rules[0].match.capacity.max",
            matching(json!({"capacity": {"max": -1}})),
        ),
        (
            "spec.volumes.default",
            json!({"volumes": {"default": "Some"}}),
        ),
        ("spec.schedule.cron", json!({"schedule": {}})),
        (
            "spec.schedule.cron",
            json!({"schedule": {"cron": "whenever"}}),
        ),
        (
            "spec.schedule.cron",
            json!({"schedule": {"cron": "* * * *"}}),
        ),
        (
            "spec.schedule.timeZone",
            json!({"schedule": {"cron": "TZ=UTC 0 2 * * *", "timeZone": "UTC"}}),
        ),
        (
            "spec.schedule.timeZone",
            daily(json!({"timeZone": "no such zone"})),
        ),
        ("spec.schedule.jitter", daily(json!({"jitter": "soon"}))),
        (
            "spec.schedule.startingDeadline",
            daily(json!({"startingDeadline": "-1h"})),
        ),
        (
            "spec.schedule.blackoutWindows[0].start",
            daily(json!({"blackoutWindows": [{"start": "8am", "end": "9:00"}]})),
        ),
        (
            "spec.schedule.blackoutWindows[0].end",
            daily(json!({"blackoutWindows": [{"start": "9:00", "end": "9:00"}]})),
        ),
        (
            "spec.schedule.blackoutWindows[0].days[0]",
            daily(
                json!({"blackoutWindows": [{"days": ["Monday"], "start": "8:00", "end": "9:00"}]}),
            ),
        ),
        ("spec.retention", json!({"retention": {}})),
        ("spec.retention", json!({"retention": {"keepLast": 0}})),
        (
            "spec.retention.keepLast",
            json!({"retention": {"keepLast": -1}}),
        ),
        (
            "spec.retention.keepDaily",
            json!({"retention": {"keepDaily": -7}}),
        ),
        (
            "spec.retention.keepWithin",
            json!({"retention": {"keepWithin": "2 fortnights"}}),
        ),
        (
            "spec.retention.minimumGood",
            json!({"retention": {"keepLast": 1, "minimumGood": 0}}),
        ),
        (
            "spec.template.ttl",
            json!({"retention": {"keepLast": 1}, "template": {"ttl": "72h"}}),
        ),
        ("spec.template.ttl", json!({"template": {"ttl": "30d"}})),
        (
            "spec.template.includedNamespaces",
            json!({"template": {"includedNamespaces": ["a"]}}),
        ),
        (
            "spec.repository.prune",
            json!({"repository": {"prune": "sometimes"}}),
        ),
        (
            "spec.repository.checkReadData",
            json!({"repository": {"checkReadData": "120%"}}),
        ),
        (
            "spec.verification.volumes",
            json!({"verification": {"schedule": "@daily", "volumes": 0}}),
        ),
        ("spec.rpo", json!({"rpo": "a day"})),
        ("spec.keepLast", json!({"keepLast": 3})),
    ]
}

struct Server {
    cluster: Cluster,
}

impl Server {
    /// What the API server says to an object of ours with this spec.
    async fn answer(
        &self,
        kind: &str,
        namespace: Option<&str>,
        spec: &Value,
    ) -> Result<(), String> {
        let gvk = GroupVersionKind::gvk("jackline.dev", "v1alpha1", kind);
        let plural = if kind == "BackupPolicy" {
            "backuppolicies"
        } else {
            "clusterbackuppolicies"
        };
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.cluster.client(), namespace, &resource),
            None => Api::all_with(self.cluster.client(), &resource),
        };
        let object = json!({
            "apiVersion": "jackline.dev/v1alpha1", "kind": kind, "metadata": {"name": "t"}, "spec": spec
        });
        let params = PatchParams::apply("test").dry_run().validation_strict();
        match api.patch("t", &params, &Patch::Apply(&object)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_served_and_bad_policies_are_refused_by_name_of_the_field() -> Result<()> {
    let cluster = Cluster::up(Options::named("crds").control_plane()).await?;
    let yaml = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/yaml");
    cluster.kubectl(["apply", "--server-side", "-k", yaml])?;
    cluster.kubectl([
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
        "--all",
    ])?;

    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client());
    for definition in definitions() {
        let name = definition.metadata.name.context("a name")?;
        let found = crds.get(&name).await.with_context(|| name.clone())?;
        for condition in found.status.and_then(|s| s.conditions).unwrap_or_default() {
            let bad = condition.type_ == "NonStructuralSchema" && condition.status == "True";
            assert!(!bad, "{name}: {:?}", condition.message);
            let bad = condition.type_ == "NamesAccepted" && condition.status != "True";
            assert!(!bad, "{name}: {:?}", condition.message);
        }
    }
    // Short names as Velero's users and ours type them.
    for short in [
        "cbp", "bp", "bcov", "bak", "rst", "sched", "bsl", "vsl", "pvb", "pvr", "repo", "dbr",
        "dreq", "ssr",
    ] {
        cluster
            .kubectl(["get", short, "--all-namespaces"])
            .with_context(|| short.to_owned())?;
    }

    let server = Server { cluster };
    for (at, spec) in [
        full(),
        json!({}),
        daily(json!({})),
        json!({"schedule": {"cron": "CRON_TZ=Europe/Berlin 0 2 * * MON-FRI"}}),
    ]
    .iter()
    .enumerate()
    {
        let answer = server.answer("ClusterBackupPolicy", None, spec).await;
        assert_eq!(answer, Ok(()), "good spec {at}");
    }
    for (field, spec) in refused() {
        let error = server
            .answer("ClusterBackupPolicy", None, &spec)
            .await
            .expect_err(&spec.to_string());
        assert!(
            error.contains(field),
            "{spec} is refused, but {field} is not named: {error}"
        );
    }

    let tenant = |spec: Value| {
        let server = &server;
        async move { server.answer("BackupPolicy", Some("default"), &spec).await }
    };
    assert_eq!(
        tenant(json!({"template": {"metadata": {"labels": {"tier": "gold"}}}})).await,
        Ok(())
    );
    for (field, spec) in [
        ("spec.namespaces", json!({"namespaces": {"include": ["*"]}})),
        (
            "spec.template.hooks",
            json!({"template": {"hooks": {"resources": []}}}),
        ),
        (
            "spec.template.metadata.annotations",
            json!({"template": {"metadata": {"annotations": {"a": "b"}}}}),
        ),
        (
            "spec.retention.keepLast",
            json!({"retention": {"keepLast": -1}}),
        ),
    ] {
        let error = tenant(spec.clone()).await.expect_err(&spec.to_string());
        assert!(
            error.contains(field),
            "{spec} is refused, but {field} is not named: {error}"
        );
    }
    velero_objects(&server.cluster)?;
    let table = server.cluster.kubectl(["-n", "velero", "get", "backups"])?;
    assert!(
        table.contains("STATUS") && table.contains("Completed"),
        "{table}"
    );
    velero_s_definitions(&server.cluster).await?;
    server.cluster.down()
}

/// What a release of Velero takes, its definitions and ours take: ours know every field of theirs, and want no more.
async fn velero_s_definitions(cluster: &Cluster) -> Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(cluster.client());
    let schema = |crd: &CustomResourceDefinition| -> Result<Value> {
        let version = crd.spec.versions.first().context("a version")?;
        Ok(serde_json::to_value(&version.schema)?["openAPIV3Schema"].take())
    };
    for release in ["v1.14.1", "v1.15.2", "v1.16.2", "v1.18.0"] {
        let source = jackline_test_cluster::velero_source(release)?.join("config/crd");
        for version in ["v1/bases", "v2alpha1/bases"] {
            let files = source.join(version);
            cluster.kubectl(["replace".as_ref(), "-f".as_ref(), files.as_os_str()])?;
        }
        let mut kinds = 0;
        for ours in definitions() {
            // Gone from Velero since 1.10.
            let gone = ours.spec.names.kind == "ResticRepository";
            if ours.spec.group != VELERO_GROUP || gone {
                continue;
            }
            kinds += 1;
            let name = ours.metadata.name.as_deref().context("a name")?;
            let theirs = schema(&crds.get(name).await?)?;
            let mut wrong = Vec::new();
            for part in ["spec", "status"] {
                let theirs = &theirs["properties"][part];
                compare(
                    theirs,
                    &schema(&ours)?["properties"][part],
                    part,
                    &mut wrong,
                );
            }
            assert!(wrong.is_empty(), "{release}, {name}: {wrong:#?}");
        }
        assert_eq!(kinds, 13, "{release}");
        velero_objects(cluster)?;
    }
    Ok(())
}

/// Where our schema takes less than theirs.
fn compare(theirs: &Value, ours: &Value, path: &str, wrong: &mut Vec<String>) {
    for (name, field) in theirs["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match ours["properties"].get(name) {
            Some(known) => compare(field, known, &path, wrong),
            None => wrong.push(format!("{path} is not known")),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if theirs[inner].is_object() {
            compare(&theirs[inner], &ours[inner], &format!("{path}[]"), wrong);
        }
    }
    let list = |schema: &Value, key: &str| schema[key].as_array().cloned().unwrap_or_default();
    for name in list(ours, "required") {
        if !list(theirs, "required").contains(&name) {
            wrong.push(format!("{path}.{name} is required"));
        }
    }
    for value in list(theirs, "enum") {
        if ours["enum"].is_array() && !list(ours, "enum").contains(&value) {
            wrong.push(format!("{path} does not take {value}"));
        }
    }
    if ours["enum"].is_array() && theirs["enum"].is_null() {
        wrong.push(format!("{path} takes less than any value"));
    }
    if theirs["type"] != ours["type"] {
        wrong.push(format!(
            "{path} is {}, theirs {}",
            ours["type"], theirs["type"]
        ));
    }
}

/// Velero's clients make objects with a status, and patch status on the object itself.
fn velero_objects(cluster: &Cluster) -> Result<()> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "velero"}});
    cluster.apply(&namespace.to_string())?;
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../fixtures/velero-1.14/bucket/backups/first/velero-backup.json"
    );
    let mut backup: Value = serde_json::from_slice(&std::fs::read(fixture)?)?;
    let metadata = backup["metadata"].as_object_mut().context("metadata")?;
    metadata
        .retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    cluster.apply(&backup.to_string())?;
    cluster.kubectl([
        "-n",
        "velero",
        "patch",
        "backup",
        "first",
        "--type=merge",
        "-p",
        r#"{"status":{"warnings":3,"validationErrors":null}}"#,
    ])?;
    let found: Value = serde_json::from_str(
        &cluster.kubectl(["-n", "velero", "get", "backup", "first", "-o", "json"])?,
    )?;
    assert_eq!(found["spec"], backup["spec"]);
    assert_eq!(found["status"]["phase"], "Completed");
    assert_eq!(found["status"]["warnings"], 3);
    assert_eq!(found["status"]["progress"], backup["status"]["progress"]);
    Ok(())
}
