//! The annotator on a real API server: one pod per shared claim, a person's value untouched, a move when the carrier goes, a release when
//! the policy goes; and policies that cannot be.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::{
    BackupCoverage, BackupPolicy, ClusterBackupPolicy, PolicyStatus, Verdict,
};
use jackline_crds::names::{COVERAGE, annotation::BACKUP_VOLUMES};
use jackline_e2e::{until, wait_for};
use jackline_test_cluster::{Cluster, Options, Programs};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &Path, cluster: &Cluster) -> Result<Controller> {
    let log = std::fs::File::create(cluster.dir().join("controller.log"))?;
    let child = Command::new(program)
        // No data is moved here.
        .args(["--engine", "velero", "--metrics-address", "127.0.0.1:0"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Controller(child))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_annotated_as_policies_say() -> Result<()> {
    let programs = Programs::build()?;
    let mut options = Options::named("annotations").control_plane();
    options.audit_log = true;
    let cluster = Cluster::up(options).await?;
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/yaml");
    cluster.kubectl(["apply", "--server-side", "-k", crds])?;
    cluster.kubectl([
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;
    for namespace in ["velero", "team-a", "team-b"] {
        cluster.kubectl(["create", "namespace", namespace])?;
    }
    cluster.apply(&location().to_string())?;
    for namespace in ["team-a", "team-b"] {
        cluster.apply(&claim(namespace, "logs").to_string())?;
        for pod in ["p1", "p2", "p3"] {
            running(&cluster, namespace, pod, "logs", None).await?;
        }
    }
    let _controller = start(&programs.controller, &cluster)?;

    exactly_one_carries(&cluster).await?;
    the_carrier_goes_and_another_takes_over(&cluster).await?;
    a_persons_value_stays(&cluster).await?;
    the_same_name_in_two_namespaces(&cluster).await?;
    what_cannot_be_is_refused(&cluster).await?;
    a_quiet_cluster_sees_no_writes(&cluster).await?;
    with_the_policy_the_annotations_go(&cluster).await?;
    cluster.down()
}

fn location() -> Value {
    json!({
        "apiVersion": "velero.io/v1", "kind": "BackupStorageLocation", "metadata": {"name": "default", "namespace": "velero"},
        "spec": {"provider": "aws", "objectStorage": {"bucket": "none"}}, "status": {"phase": "Available"},
    })
}

fn claim(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "shared", "volumeName": format!("{namespace}-{name}"),
            "resources": {"requests": {"storage": "1Gi"}},
        },
    })
}

/// Makes a pod that mounts the claim beside a cache, and says that it runs.
async fn running(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    claim: &str,
    annotation: Option<&str>,
) -> Result<()> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": "node-1", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "none", "volumeMounts": [
                {"name": "data", "mountPath": "/data"}, {"name": "cache", "mountPath": "/cache"},
            ]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}, {"name": "cache", "emptyDir": {}}],
        },
    });
    if let Some(value) = annotation {
        pod["metadata"]["annotations"] = json!({BACKUP_VOLUMES: value});
    }
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
    });
    cluster.apply(&account.to_string())?;
    let api = pods(cluster, namespace);
    api.create(&Default::default(), &serde_json::from_value(pod)?)
        .await?;
    phase(cluster, namespace, name, "Running").await
}

async fn phase(cluster: &Cluster, namespace: &str, name: &str, phase: &str) -> Result<()> {
    let status = json!({"status": {"phase": phase}});
    pods(cluster, namespace)
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

fn pods(cluster: &Cluster, namespace: &str) -> Api<Pod> {
    Api::namespaced(cluster.client(), namespace)
}

/// Names and values of the annotated pods of a namespace.
async fn annotated(cluster: &Cluster, namespace: &str) -> Result<Vec<(String, String)>> {
    let list = pods(cluster, namespace)
        .list(&ListParams::default())
        .await?;
    let value = |pod: &Pod| pod.annotations().get(BACKUP_VOLUMES).cloned();
    Ok(list
        .items
        .iter()
        .filter_map(|pod| Some((pod.name_any(), value(pod)?)))
        .collect())
}

/// Waits until exactly one pod of the namespace carries `data`, and says which.
async fn carrier(cluster: &Cluster, namespace: &str, not: &str) -> Result<String> {
    let mut found = String::new();
    let began = std::time::Instant::now();
    while began.elapsed() < MINUTE {
        let list = annotated(cluster, namespace).await?;
        if let [(pod, value)] = &list[..]
            && value == "data"
            && pod != not
        {
            return Ok(pod.clone());
        }
        found = format!("{list:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{namespace}: not exactly one carrier (other than {not:?}): {found}")
}

fn everything() -> Value {
    json!({
        "apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy", "metadata": {"name": "everything"},
        "spec": {"namespaces": {"include": ["team-*"]}},
    })
}

async fn exactly_one_carries(cluster: &Cluster) -> Result<()> {
    cluster.apply(&everything().to_string())?;
    for namespace in ["team-a", "team-b"] {
        carrier(cluster, namespace, "").await?;
    }
    let policies: Api<ClusterBackupPolicy> = Api::all(cluster.client());
    let good = |policy: &ClusterBackupPolicy| {
        is_ready(policy.status.as_ref()) == Some("True")
            && policy
                .status
                .as_ref()
                .and_then(|status| status.coverage)
                .is_some_and(|c| c.selected == 2 && c.protected == 2)
    };
    wait_for(&policies, "everything", MINUTE, good).await?;
    Ok(())
}

fn is_ready(status: Option<&PolicyStatus>) -> Option<&str> {
    Some(
        &status?
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")?
            .status,
    )
}

async fn the_carrier_goes_and_another_takes_over(cluster: &Cluster) -> Result<()> {
    let first = carrier(cluster, "team-a", "").await?;
    // A finished pod gives its annotation back.
    phase(cluster, "team-a", &first, "Succeeded").await?;
    let second = carrier(cluster, "team-a", &first).await?;
    // A deleted one is replaced; one that comes takes nothing from the one that carries.
    pods(cluster, "team-a")
        .delete(&second, &DeleteParams::default().grace_period(0))
        .await?;
    let third = carrier(cluster, "team-a", &second).await?;
    running(cluster, "team-a", "p4", "logs", None).await?;
    phase(cluster, "team-a", &first, "Running").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(
        carrier(cluster, "team-a", "").await? == third,
        "the claim moved without need"
    );
    Ok(())
}

async fn a_persons_value_stays(cluster: &Cluster) -> Result<()> {
    // It lists what is wanted: protected. It leaves it out: a conflict, and never overwritten.
    cluster.apply(&claim("team-b", "own").to_string())?;
    running(cluster, "team-b", "own", "own", Some("cache")).await?;
    let coverages: Api<BackupCoverage> = Api::namespaced(cluster.client(), "team-b");
    let verdict = |wanted: Verdict| {
        move |coverage: &BackupCoverage| {
            let volumes = coverage.status.iter().flat_map(|status| &status.volumes);
            volumes
                .filter(|volume| volume.claim.as_deref() == Some("own"))
                .any(|volume| volume.verdict == wanted)
        }
    };
    wait_for(&coverages, COVERAGE, MINUTE, verdict(Verdict::Conflict)).await?;
    let value = |pod: &Pod| pod.annotations().get(BACKUP_VOLUMES).cloned();
    let pod = pods(cluster, "team-b").get("own").await?;
    ensure!(
        value(&pod).as_deref() == Some("cache"),
        "a person's value was changed to {:?}",
        value(&pod)
    );
    cluster.kubectl([
        "annotate",
        "--overwrite",
        "-n",
        "team-b",
        "pod",
        "own",
        "backup.velero.io/backup-volumes=cache,data",
    ])?;
    wait_for(&coverages, COVERAGE, MINUTE, verdict(Verdict::Protected)).await?;
    pods(cluster, "team-b")
        .delete("own", &DeleteParams::default().grace_period(0))
        .await?;
    Ok(())
}

async fn the_same_name_in_two_namespaces(cluster: &Cluster) -> Result<()> {
    for namespace in ["team-a", "team-b"] {
        let policy = json!({
            "apiVersion": "jackline.dev/v1alpha1", "kind": "BackupPolicy", "metadata": {"name": "own", "namespace": namespace},
            "spec": {},
        });
        cluster.apply(&policy.to_string())?;
    }
    for namespace in ["team-a", "team-b"] {
        // The nearer policy governs now, and nothing moves for it.
        let api: Api<BackupPolicy> = Api::namespaced(cluster.client(), namespace);
        let governs = |policy: &BackupPolicy| {
            is_ready(policy.status.as_ref()) == Some("True")
                && policy
                    .status
                    .as_ref()
                    .and_then(|status| status.coverage)
                    .is_some_and(|c| c.selected >= 1)
        };
        wait_for(&api, "own", MINUTE, governs).await?;
        carrier(cluster, namespace, "").await?;
        api.delete("own", &DeleteParams::default()).await?;
    }
    Ok(())
}

async fn what_cannot_be_is_refused(cluster: &Cluster) -> Result<()> {
    // What the schema cannot say gets a condition that names the field; other policies are unaffected.
    let bad = json!({
        "apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy", "metadata": {"name": "bad"},
        "spec": {"schedule": {"cron": "@daily", "timeZone": "Mars/Olympus"}},
    });
    cluster.apply(&bad.to_string())?;
    let policies: Api<ClusterBackupPolicy> = Api::all(cluster.client());
    let refused = |policy: &ClusterBackupPolicy| is_ready(policy.status.as_ref()) == Some("False");
    let policy = wait_for(&policies, "bad", MINUTE, refused).await?;
    let status = policy.status.context("a status")?;
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .context("Ready")?;
    ensure!(ready.reason == "InvalidSpec", "{ready:?}");
    ensure!(
        ready.message.contains("spec.schedule.timeZone"),
        "{ready:?}"
    );
    policies.delete("bad", &DeleteParams::default()).await?;
    carrier(cluster, "team-a", "").await?;
    Ok(())
}

async fn a_quiet_cluster_sees_no_writes(cluster: &Cluster) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(10)).await;
    let writes = || -> Result<usize> {
        let events = cluster.audit_events()?;
        let is_write = |event: &Value| {
            let verb = event["verb"].as_str().unwrap_or_default();
            ["create", "update", "patch", "delete"].contains(&verb)
                && event["objectRef"]["resource"] != "leases"
                && event["user"]["username"] != "system:apiserver"
        };
        Ok(events.iter().filter(|event| is_write(event)).count())
    };
    let before = writes()?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let after = writes()?;
    ensure!(
        after == before,
        "{} writes while nothing happened",
        after - before
    );
    Ok(())
}

async fn with_the_policy_the_annotations_go(cluster: &Cluster) -> Result<()> {
    let policies: Api<ClusterBackupPolicy> = Api::all(cluster.client());
    policies
        .delete("everything", &DeleteParams::default())
        .await?;
    until("no pod is annotated any more", MINUTE, || async {
        let both = (
            annotated(cluster, "team-a").await?,
            annotated(cluster, "team-b").await?,
        );
        Ok((both.0.is_empty() && both.1.is_empty()).then_some(()))
    })
    .await
}
