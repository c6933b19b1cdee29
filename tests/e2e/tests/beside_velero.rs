//! Beside a real Velero: policies annotate, ask for backups and for their deletion, and see what is covered; Velero does the rest, and
//! nothing of Velero's is written but what asks it to do something.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::{BackupCoverage, Verdict, VolumeVerdict};
use jackline_crds::names::{self, annotation, label};
use jackline_crds::velero::{Backup, BackupPhase, PodVolumeBackup, PodVolumePhase, UploaderType};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{BUCKET, Env, Jackline, NAMESPACE, guide, until, velero_server, wait_gone};
use jackline_test_cluster::{Options, Programs};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
/// What only the Velero that came later has backed up.
const LATER: &str = "later";

#[tokio::test(flavor = "multi_thread")]
async fn velero_moves_the_data_and_policies_say_when() -> Result<()> {
    let mut options = Options::named("beside-velero");
    options.audit_log = true;
    let env = Env::without_jackline(options).await?;
    let velero = velero_server::install(&env, "restic").await?;
    let settings = Settings {
        beside_velero: true,
        ..Settings::default()
    };
    deploy::prepare(&env.cluster, &settings)?;
    let guide = include_str!("../../../docs/how-to/velero.md");
    let said = guide::follow(&env, &velero, guide, "Beside it first")?;
    ensure!(said.contains("a Velero moves the data"), "{said}");
    for namespace in ["team", "short-lived"] {
        workload(&env, namespace).await?;
    }
    env.cluster.apply(&policy().to_string())?;

    one_carrier(&env, "team").await?;
    let first = backed_up(&env, UploaderType::Restic).await?;
    covered(&env, "team", UploaderType::Restic).await?;
    shown(&env).await?;
    doctor_is_content(&env)?;
    let refused = Jackline::new(&env)?.refused("restore volume data -n team --from-backup any")?;
    ensure!(refused.contains("velero restore create"), "{refused}");
    what_has_no_effect_is_named(&env)?;
    what_nothing_keeps_goes(&env, &first).await?;
    a_volume_goes(&env).await?;
    // The same server moves data with kopia, if its command line says so.
    let uploader = json!([{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--uploader-type=kopia"}]);
    let patch = ["-n", NAMESPACE, "patch", "deployment/velero", "--type=json"];
    let uploader = uploader.to_string();
    env.cluster
        .kubectl(patch.into_iter().chain(["-p", &*uploader]))?;
    velero_server::ready(&env)?;
    backed_up(&env, UploaderType::Kopia).await?;
    covered(&env, "team", UploaderType::Kopia).await?;
    shown(&env).await?;
    what_a_later_velero_writes_counts(&env).await?;

    velero_s_objects_are_velero_s(&env)?;
    env.cluster.down()
}

fn policy() -> Value {
    json!({
        "apiVersion": "jackline.dev/v1alpha1",
        "kind": "ClusterBackupPolicy",
        "metadata": {"name": "everything"},
        "spec": {
            "namespaces": {"include": ["team", "short-lived", LATER]},
            "schedule": {"cron": "@every 15s"},
            "storageLocation": "default",
            "retention": {"keepLast": 2, "minimumGood": 1, "vanishedVolumes": "1h"},
            "repository": {"prune": "@every 1h", "check": "@daily"},
        },
    })
}

/// Two pods with a shared claim, with data.
async fn workload(env: &Env, namespace: &str) -> Result<()> {
    env.cluster
        .apply(&include_str!("policies.yaml").replace("NAMESPACE", namespace))?;
    let status = ["-n", namespace, "rollout", "status", "deployment/web"];
    env.cluster
        .kubectl(status.into_iter().chain(["--timeout=120s"]))?;
    let pods = env.ready_pods(namespace, "app=web").await?;
    let pod = pods.first().context("a pod")?;
    env.cluster
        .exec(namespace, pod, &["sh", "-c", "seq 10000 > /data/numbers"])?;
    Ok(())
}

async fn one_carrier(env: &Env, namespace: &str) -> Result<()> {
    let pods: Api<Pod> = env.api_in(namespace);
    until("one pod carries the claim", MINUTE, async || {
        let pods = pods.list(&ListParams::default()).await?;
        let value = |pod: &Pod| pod.annotations().get(annotation::BACKUP_VOLUMES).cloned();
        let carried: Vec<String> = pods.items.iter().filter_map(value).collect();
        Ok((carried == ["data"]).then_some(()))
    })
    .await
}

fn by(volume: &PodVolumeBackup, uploader: UploaderType) -> bool {
    let snapshot = volume
        .status
        .as_ref()
        .and_then(|s| s.snapshot_id.as_deref());
    volume.phase() == PodVolumePhase::Completed
        && volume.spec.uploader_type == uploader
        && snapshot.is_some_and(|id| !id.is_empty())
}

/// A backup of the policy that Velero completed with this uploader.
async fn backed_up(env: &Env, uploader: UploaderType) -> Result<String> {
    let what = format!("a backup with {uploader:?}");
    until(&what, 3 * MINUTE, async || {
        let backups = env.api::<Backup>().list(&ListParams::default()).await?;
        for backup in backups.items {
            let name = backup.name_any();
            if !name.starts_with("everything-") || backup.phase() != BackupPhase::Completed {
                continue;
            }
            let volumes = env.volumes_of(&name).await?;
            let of_team = |v: &&PodVolumeBackup| v.spec.pod.namespace.as_deref() == Some("team");
            if volumes.iter().filter(of_team).any(|v| by(v, uploader)) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    })
    .await
}

fn what_has_no_effect_is_named(env: &Env) -> Result<()> {
    let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].message}";
    let policy = ["get", "clusterbackuppolicy", "everything", "-o", ready];
    let message = env.cluster.kubectl(policy)?;
    for field in ["spec.repository", "spec.retention.vanishedVolumes"] {
        ensure!(message.contains(field), "{message}");
    }
    Ok(())
}

/// The namespace's volume is protected by a backup that this uploader made.
async fn covered(env: &Env, namespace: &str, uploader: UploaderType) -> Result<()> {
    until("the volume is protected", MINUTE, async || {
        let coverage = env.api_in::<BackupCoverage>(namespace);
        let status = coverage.get(names::COVERAGE).await?.status;
        let volumes = status.context("a status")?.volumes;
        let is_protected = |volume: &&VolumeVerdict| volume.verdict == Verdict::Protected;
        let found = volumes.iter().find(is_protected).context("protected")?;
        let backup = found.last_good_backup.clone().context("a backup")?;
        let held = env.volumes_of(&backup).await?;
        Ok(held.iter().any(|v| by(v, uploader)).then_some(()))
    })
    .await
}

/// What the policy's series say, and Velero's own of its backups.
async fn shown(env: &Env) -> Result<()> {
    until("the metrics show the policy", MINUTE, async || {
        let ours = series(env, "app.kubernetes.io/name=jackline-controller").await?;
        let velero = series(env, "deploy=velero").await?;
        let has = |text: &str, start: &str, above: f64| {
            text.lines().any(|line| {
                let value = line.strip_prefix(start).and_then(|v| v.trim().parse().ok());
                value.is_some_and(|value: f64| value > above)
            })
        };
        let policy = "{policy=\"everything\"}";
        let all = has(&ours, &format!("jackline_policy_ready{policy}"), 0.0)
            && has(
                &ours,
                "jackline_volumes{policy=\"everything\",verdict=\"Protected\"}",
                0.0,
            )
            && has(
                &ours,
                &format!("jackline_policy_last_success_timestamp_seconds{policy}"),
                1e9,
            )
            && has(
                &ours,
                &format!("jackline_policy_oldest_recovery_point_timestamp_seconds{policy}"),
                1e9,
            )
            && has(
                &velero,
                "velero_backup_success_total{schedule=\"everything\"}",
                0.0,
            );
        ensure!(all, "{ours}\n{velero}");
        Ok(Some(()))
    })
    .await
}

/// What the pods with a label serve.
async fn series(env: &Env, labels: &str) -> Result<String> {
    let mut all = String::new();
    for pod in env.ready_pods(NAMESPACE, labels).await? {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8085/proxy/metrics");
        all += &env.cluster.kubectl(["get", "--raw", &path])?;
    }
    Ok(all)
}

fn doctor_is_content(env: &Env) -> Result<()> {
    let output = Command::new(Programs::build()?.controller.with_file_name("jackline"))
        .arg("doctor")
        .env("KUBECONFIG", env.cluster.kubeconfig())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("a Velero moves the data"), "{said}");
    Ok(())
}

/// Asked for by a DeleteBackupRequest; Velero takes it out of the cluster and the bucket.
async fn what_nothing_keeps_goes(env: &Env, backup: &str) -> Result<()> {
    wait_gone(&env.api::<Backup>(), backup, 3 * MINUTE).await?;
    let prefix = format!("backups/{backup}/");
    until("its files are gone", MINUTE, async || {
        let files = env.cluster.s3().list(BUCKET, &prefix).await?;
        Ok(files.is_empty().then_some(()))
    })
    .await?;
    // They go after the backup that owns them.
    until("its volumes are gone", MINUTE, async || {
        Ok(env.volumes_of(backup).await?.is_empty().then_some(()))
    })
    .await?;
    // restic is content with what is left, once nobody writes while it reads.
    let restic = env.restic("team").await?;
    until("restic finds no damage", MINUTE, async || {
        restic.check().map(Some)
    })
    .await
}

/// The last points of what is gone are kept, and nobody writes on them since when.
async fn a_volume_goes(env: &Env) -> Result<()> {
    let held = env.api::<PodVolumeBackup>();
    let of_it = |volume: &PodVolumeBackup| {
        volume.spec.pod.namespace.as_deref() == Some("short-lived")
            && volume.phase() == PodVolumePhase::Completed
    };
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces
        .delete("short-lived", &DeleteParams::default())
        .await?;
    wait_gone(&namespaces, "short-lived", 2 * MINUTE).await?;
    let backups = env.api::<Backup>();
    let before: BTreeSet<String> = backups
        .list(&ListParams::default())
        .await?
        .items
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    until("two more backups", 3 * MINUTE, async || {
        let all = backups.list(&ListParams::default()).await?.items;
        let new = all.iter().filter(|backup| {
            backup.phase() == BackupPhase::Completed && !before.contains(&backup.name_any())
        });
        Ok((new.count() >= 2).then_some(()))
    })
    .await?;
    let left = held.list(&ListParams::default()).await?;
    ensure!(
        left.items.iter().any(of_it),
        "the last point of a volume that is gone went with it"
    );
    Ok(())
}

/// By the definitions and with the fields of 1.17, in whose phases a volume that is not done, or not whole, is no copy.
async fn what_a_later_velero_writes_counts(env: &Env) -> Result<()> {
    let server = [
        "-n",
        NAMESPACE,
        "scale",
        "deployment/velero",
        "--replicas=0",
    ];
    env.cluster.kubectl(server)?;
    let gone = ["wait", "--for=delete", "--timeout=60s", "pod", "-l"];
    env.cluster
        .kubectl([&["-n", NAMESPACE], &gone[..], &["deploy=velero"]].concat())?;
    let definition = jackline_test_cluster::velero_source("v1.17.2")?
        .join("config/crd/v1/bases/velero.io_podvolumebackups.yaml");
    env.cluster
        .kubectl(["replace".as_ref(), "-f".as_ref(), definition.as_os_str()])?;
    workload(env, LATER).await?;
    one_carrier(env, LATER).await?;
    let without = until("its volume is not protected", MINUTE, async || {
        let found = verdict(env).await?;
        ensure!(found.verdict == Verdict::Unprotected, "{found:?}");
        ensure!(counted(env, "Unprotected").await? > 0.0);
        Ok(Some(counted(env, "Protected").await?))
    })
    .await?;

    let volume = Volume::carried(env).await?;
    let just_now = Timestamp::from_second(Timestamp::now().as_second())?;
    let sooner = just_now - SignedDuration::from_mins(5);
    for (backup, started, life) in [
        // The newest, if they counted.
        ("accepted", just_now, &["Accepted"][..]),
        ("prepared", just_now, &["Accepted", "Prepared"]),
        ("canceling", just_now, &["InProgress", "Canceling"]),
        ("canceled", just_now, &["Canceling", "Canceled"]),
        (
            "whole",
            sooner,
            &["Accepted", "Prepared", "InProgress", "Completed"],
        ),
    ] {
        volume.backed_up(env, backup, started, life).await?;
    }
    until("its volume is protected", MINUTE, async || {
        let found = verdict(env).await?;
        ensure!(found.verdict == Verdict::Protected, "{found:?}");
        ensure!(
            found.last_good_backup.as_deref() == Some("whole"),
            "{found:?}"
        );
        let since = found.last_good_time.as_ref().map(|time| time.0.as_second());
        ensure!(since == Some(sooner.as_second()), "{found:?}");
        ensure!(found.bytes == Some(BYTES), "{found:?}");
        ensure!(counted(env, "Protected").await? > without);
        Ok(Some(()))
    })
    .await
}

/// Of the claim in the namespace.
async fn verdict(env: &Env) -> Result<VolumeVerdict> {
    let coverage = env.api_in::<BackupCoverage>(LATER);
    let status = coverage.get(names::COVERAGE).await?.status;
    let mut volumes = status.context("a status")?.volumes.into_iter();
    let of_claim = volumes.find(|volume| volume.claim.as_deref() == Some("data"));
    of_claim.context("the claim")
}

/// How many volumes of the policy have a verdict, by the metrics.
async fn counted(env: &Env, verdict: &str) -> Result<f64> {
    let ours = series(env, "app.kubernetes.io/name=jackline-controller").await?;
    let start = format!("jackline_volumes{{policy=\"everything\",verdict=\"{verdict}\"}}");
    let values = ours.lines().filter_map(|line| line.strip_prefix(&*start));
    values
        .map(|value| value.trim().parse::<f64>().context("a number"))
        .sum()
}

/// Bytes in its snapshot.
const BYTES: i64 = 48_894;

/// The volume that a pod carries.
struct Volume {
    pod: Pod,
    claim: PersistentVolumeClaim,
}

impl Volume {
    async fn carried(env: &Env) -> Result<Self> {
        let pods = env.api_in::<Pod>(LATER);
        let mut pods = pods.list(&ListParams::default()).await?.items.into_iter();
        let carries = |pod: &Pod| pod.annotations().contains_key(annotation::BACKUP_VOLUMES);
        Ok(Self {
            pod: pods.find(carries).context("a pod")?,
            claim: env.api_in(LATER).get("data").await?,
        })
    }

    /// A backup of it by Velero 1.17 with kopia, whose PodVolumeBackup goes through phases. It is done when that is.
    async fn backed_up(
        &self,
        env: &Env,
        backup: &str,
        started: Timestamp,
        life: &[&str],
    ) -> Result<()> {
        let mut object = json!({"apiVersion": "velero.io/v1", "kind": "Backup",
            "metadata": {"name": backup, "namespace": NAMESPACE, "labels": {"velero.io/storage-location": "default"}},
            "spec": {"includedNamespaces": [LATER], "storageLocation": "default"},
            "status": {"phase": "InProgress", "version": 1, "formatVersion": "1.1.0", "startTimestamp": started.to_string()}});
        env.cluster.apply(&object.to_string())?;
        let owner = env.api::<Backup>().get(backup).await?;
        for phase in life {
            let volume = self.in_phase(&owner, started, phase);
            // A definition that has just come may not be served yet.
            until("the volume is written", MINUTE, async || {
                env.cluster.apply(&volume.to_string()).map(Some)
            })
            .await?;
            let kept = env.cluster.kubectl([
                "-n",
                NAMESPACE,
                "get",
                "podvolumebackup",
                backup,
                "-o",
                "json",
            ])?;
            let kept: Value = serde_json::from_str(&kept)?;
            for field in ["spec", "status"] {
                ensure!(kept[field] == volume[field], "{kept}");
            }
        }
        let whole = life.ends_with(&["Completed"]);
        let phase = if whole {
            "Completed"
        } else {
            "PartiallyFailed"
        };
        object["status"]["phase"] = json!(phase);
        env.cluster.apply(&object.to_string())?;
        Ok(())
    }

    fn in_phase(&self, backup: &Backup, started: Timestamp, phase: &str) -> Value {
        let (name, uid) = (backup.name_any(), backup.uid());
        let (pod, of_pod) = (self.pod.name_any(), self.pod.uid());
        let node = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone());
        let owner = json!({"apiVersion": "velero.io/v1", "kind": "Backup", "name": name, "uid": uid, "controller": true});
        let mut volume = json!({"apiVersion": "velero.io/v1", "kind": "PodVolumeBackup",
            "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": [owner],
                "finalizers": ["velero.io/pod-volume-finalizer"],
                "labels": {(label::BACKUP_NAME): name, (label::BACKUP_UID): uid, (label::PVC_UID): self.claim.uid()},
                "annotations": {(annotation::PVC_NAME): "data"}},
            "spec": {"node": node, "volume": "data", "backupStorageLocation": "default",
                "repoIdentifier": "", "uploaderType": "kopia", "uploaderSettings": {"ParallelFilesUpload": "10"},
                "pod": {"kind": "Pod", "namespace": LATER, "name": pod, "uid": of_pod},
                "tags": {"backup": name, "backup-uid": uid, "ns": LATER, "pod": pod, "pod-uid": of_pod,
                    "pvc-uid": self.claim.uid(), "volume": "data"}},
            "status": {"phase": phase, "acceptedTimestamp": started.to_string(), "startTimestamp": started.to_string(),
                "path": format!("/{name}"), "snapshotID": "8e1b9d1fdcdb0a2c5ec4b5b8ff5c6a0f",
                "progress": {"totalBytes": BYTES, "bytesDone": BYTES}}});
        if phase == "Accepted" {
            volume["metadata"]["labels"]["velero.io/expose-on-going"] = json!("true");
        }
        if phase.starts_with("Cancel") {
            volume["spec"]["cancel"] = json!(true);
        }
        if matches!(phase, "Canceled" | "Completed") {
            volume["status"]["completionTimestamp"] = json!(started.to_string());
        }
        volume
    }
}

/// Nothing but what asks Velero to do something, from the first request to the last.
fn velero_s_objects_are_velero_s(env: &Env) -> Result<()> {
    let mut written = BTreeSet::new();
    for event in env.cluster.audit_events()? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = text(&event["user"]["username"]);
        let verb = text(&event["verb"]);
        let of = &event["objectRef"];
        if user.starts_with("system:serviceaccount:velero:jackline")
            && !["get", "list", "watch"].contains(&&*verb)
        {
            written.insert((verb, text(&of["apiGroup"]), text(&of["resource"])));
        }
    }
    let of_velero: Vec<_> = written
        .iter()
        .filter(|(_, group, _)| group == "velero.io")
        .map(|(verb, _, kind)| (verb.as_str(), kind.as_str()))
        .collect();
    let asked = [("create", "backups"), ("create", "deletebackuprequests")];
    ensure!(of_velero == asked, "{written:?}");
    let annotated = ("patch".to_owned(), String::new(), "pods".to_owned());
    ensure!(written.contains(&annotated), "{written:?}");
    Ok(())
}
