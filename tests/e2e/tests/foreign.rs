//! A Velero in the same namespace: nothing is dispatched while it runs, which is said, and everything goes on when it is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::ClusterBackupPolicy;
use jackline_crds::names::{RESTORE_WAIT, annotation, label};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, BackupSpec, DeleteBackupRequest, DeletePhase,
    DownloadPhase, DownloadRequest, PodVolumeBackup, PodVolumePhase, PodVolumeRestore, Restore,
    RestorePhase, RestoreSpec, Schedule,
};
use jackline_e2e::{Env, Jackline, NAMESPACE, until, wait_for, wait_gone};
use jackline_test_cluster::ImageSpec;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
/// The policy that is deleted.
const LEAVING: &str = "leaving";
/// The policy that has a schedule.
const PUNCTUAL: &str = "punctual";
/// A pod that waits for its volume, and that volume.
const AWAITED: &str = "awaited";

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_work_on_the_same_objects() -> Result<()> {
    let env = Env::up("foreign").await?;
    let image = ImageSpec::new("docker.io/local/velero:1")
        .file("/bin/busybox", "/bin/busybox", 0o755)
        .link("/bin/sh", "busybox")
        .bytes("/velero", "#!/bin/sh\nexec busybox sleep 1000000\n", 0o755);
    env.cluster.load_image(&image)?;
    env.cluster.apply(include_str!("foreign.yaml"))?;
    until("the pod runs", MINUTE, async || {
        Ok((env.ready_pods("team", "app=worker").await?.len() == 1).then_some(()))
    })
    .await?;
    let doctor = Doctor(Jackline::new(&env)?);
    until("all is well", MINUTE, async || {
        Ok(doctor.asked(&[])?.0.then_some(()))
    })
    .await?;
    alone(&env).await?;
    beside_a_server(&env, &doctor).await?;
    beside_an_agent(&env, &doctor).await?;
    env.cluster.down()
}

/// `jackline doctor`, as a person asks it.
struct Doctor(Jackline);

impl Doctor {
    /// Whether it is content, and what it says.
    fn asked(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.0.output(&[&["doctor"], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(!said.is_empty(), "{complaint}");
        Ok((output.status.success(), said))
    }

    /// The findings of one check: verdict and detail.
    fn findings(&self, check: &str) -> Result<Vec<(String, String)>> {
        let said: Value = serde_json::from_str(&self.asked(&["-o", "json"])?.1)?;
        let all = said["findings"].as_array().context("findings")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = all.iter().filter(|finding| finding["check"] == check);
        Ok(of
            .map(|finding| (text(&finding["verdict"]), text(&finding["detail"])))
            .collect())
    }
}

async fn alone(env: &Env) -> Result<()> {
    back_up(env, "before").await?;
    env.backup_completed("before", MINUTE).await?;
    ready(env, true, "Accepted").await?;
    // Two without volumes, to be deleted: one by name, one with its policy.
    for (name, policy) in [("doomed", "none"), ("taken-along", LEAVING)] {
        let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": ["default"]}))?;
        let mut backup = Backup::new(name, spec);
        let annotations = backup.annotations_mut();
        annotations.insert(annotation::POLICY.to_owned(), policy.to_owned());
        let labels = backup.labels_mut();
        labels.insert(label::POLICY.to_owned(), policy.to_owned());
        env.api::<Backup>()
            .create(&PostParams::default(), &backup)
            .await?;
        env.backup_completed(name, MINUTE).await?;
    }
    Ok(())
}

async fn back_up(env: &Env, name: &str) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": ["team"]}))?;
    let backup = Backup::new(name, spec);
    env.api::<Backup>()
        .create(&PostParams::default(), &backup)
        .await?;
    Ok(())
}

/// A volume to be backed up that no backup of ours has asked for.
async fn by_hand(env: &Env, name: &str) -> Result<()> {
    let done = env.volumes_of("before").await?;
    let mut spec = done.first().context("a volume")?.spec.clone();
    for tag in ["backup", "backup-uid"] {
        spec.tags.insert(tag.to_owned(), name.to_owned());
    }
    let volumes = env.api::<PodVolumeBackup>();
    let volume = PodVolumeBackup::new(name, spec);
    volumes.create(&PostParams::default(), &volume).await?;
    Ok(())
}

async fn volume_completed(env: &Env, name: &str) -> Result<()> {
    let completed = |volume: &PodVolumeBackup| volume.phase() == PodVolumePhase::Completed;
    wait_for(&env.api::<PodVolumeBackup>(), name, MINUTE, completed).await?;
    Ok(())
}

/// One of each of what else waits: a schedule and a policy that are due every few seconds, a repository that is, a request to delete a
/// backup and one to download it, a volume for a pod that waits, and a policy that goes with its backup.
async fn more_to_do(env: &Env) -> Result<()> {
    let params = PostParams::default();
    let policy = json!({"apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy", "metadata": {"name": PUNCTUAL},
        "spec": {"namespaces": {"include": ["default"]}, "storageLocation": "default", "schedule": {"cron": "@every 10s"}}});
    env.cluster.apply(&policy.to_string())?;
    maintained(env, "1s", Some("2020-01-01T00:00:00Z")).await?;
    let target = json!({"target": {"kind": "BackupLog", "name": "before"}});
    let download = DownloadRequest::new("log", serde_json::from_value(target)?);
    let downloads = env.api::<DownloadRequest>();
    downloads.create(&params, &download).await?;
    awaited_volume(env).await?;
    let spec = serde_json::from_value(
        json!({"schedule": "@every 3s", "template": {"includedNamespaces": ["default"]}}),
    )?;
    let schedule = Schedule::new("ticking", spec);
    env.api::<Schedule>().create(&params, &schedule).await?;
    let spec = serde_json::from_value(json!({"backupName": "doomed"}))?;
    let request = DeleteBackupRequest::new("doomed", spec);
    let requests = env.api::<DeleteBackupRequest>();
    requests.create(&params, &request).await?;
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    policies.delete(LEAVING, &DeleteParams::default()).await?;
    Ok(())
}

/// Has the repository maintained this often, with something to prune or without.
async fn maintained(env: &Env, often: &str, forgotten: Option<&str>) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {(annotation::FORGOTTEN_AT): forgotten}},
        "spec": {"maintenanceFrequency": often}});
    let repositories = env.api::<BackupRepository>();
    repositories
        .patch(
            "team-default-restic",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    Ok(())
}

/// A volume of a pod that waits for it as restored pods do, and no Restore.
async fn awaited_volume(env: &Env) -> Result<()> {
    let done = format!("/data/.velero/{AWAITED}");
    let labels = json!({"velero.io/restore-name": AWAITED});
    let pod = json!({"metadata": {"name": AWAITED, "namespace": "team", "labels": labels}, "spec": {
        "terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": RESTORE_WAIT, "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
            "command": ["sh", "-c", format!("until [ -e {done} ]; do sleep 1; done"), "sh"], "args": [AWAITED],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [{"name": "box", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
            "command": ["sh", "-c", "[ $(cat /data/file) = kept ] && exec sleep 100000"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    let pods = env.api_in::<Pod>("team");
    let pod = pods
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let done = env.volumes_of("before").await?;
    let done = done.first().context("a volume")?;
    let status = done.status.clone().context("a status")?;
    let volume = json!({"metadata": {"name": AWAITED, "labels": {(label::RESTORE_UID): AWAITED}}, "spec": {
        "pod": {"kind": "Pod", "namespace": "team", "name": AWAITED, "uid": pod.uid()}, "volume": "data",
        "backupStorageLocation": "default", "repoIdentifier": done.spec.repo_identifier,
        "uploaderType": "restic", "snapshotID": status.snapshot_id, "sourceNamespace": "team"}});
    let volumes = env.api::<PodVolumeRestore>();
    volumes
        .create(&PostParams::default(), &serde_json::from_value(volume)?)
        .await?;
    Ok(())
}

async fn maintenance_jobs(env: &Env) -> Result<usize> {
    let labels = ListParams::default().labels(label::REPOSITORY_NAME);
    Ok(env
        .api_in::<Job>(NAMESPACE)
        .list(&labels)
        .await?
        .items
        .len())
}

async fn of_the_policy(env: &Env) -> Result<bool> {
    let labels = ListParams::default().labels(&format!("{}={PUNCTUAL}", label::POLICY));
    Ok(!env.api::<Backup>().list(&labels).await?.items.is_empty())
}

async fn nothing_is_done(env: &Env) -> Result<()> {
    // Longer than between two looks, and than the shortest interval of a policy.
    tokio::time::sleep(Duration::from_secs(12)).await;
    ensure!(scheduled(env).await?.is_empty() && !of_the_policy(env).await?);
    ensure!(maintenance_jobs(env).await? == 0);
    let download = env.api::<DownloadRequest>().get("log").await?;
    ensure!(download.phase() == DownloadPhase::New, "{download:?}");
    let volume = env.api::<PodVolumeRestore>().get(AWAITED).await?;
    ensure!(volume.phase() == PodVolumePhase::New, "{volume:?}");
    let requests = env.api::<DeleteBackupRequest>();
    let requests = requests.list(&ListParams::default()).await?.items;
    ensure!(requests.len() == 1, "{requests:?}");
    ensure!(requests[0].phase() == DeletePhase::New, "{requests:?}");
    for name in ["doomed", "taken-along"] {
        ensure!(env.api::<Backup>().get(name).await?.phase() == BackupPhase::Completed);
    }
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    ensure!(policies.get_opt(LEAVING).await?.is_some());
    Ok(())
}

async fn everything_is_done(env: &Env) -> Result<()> {
    until("the schedule makes a backup", MINUTE, async || {
        Ok((!scheduled(env).await?.is_empty()).then_some(()))
    })
    .await?;
    let params = DeleteParams::default();
    env.api::<Schedule>().delete("ticking", &params).await?;
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    until("the policy makes a backup", MINUTE, async || {
        Ok(of_the_policy(env).await?.then_some(()))
    })
    .await?;
    policies.delete(PUNCTUAL, &params).await?;
    until("the repository is maintained", MINUTE, async || {
        Ok((maintenance_jobs(env).await? > 0).then_some(()))
    })
    .await?;
    maintained(env, "168h", None).await?;
    let processed = |it: &DownloadRequest| it.phase() == DownloadPhase::Processed;
    wait_for(&env.api::<DownloadRequest>(), "log", MINUTE, processed).await?;
    let completed = |it: &PodVolumeRestore| it.phase() == PodVolumePhase::Completed;
    wait_for(&env.api::<PodVolumeRestore>(), AWAITED, MINUTE, completed).await?;
    let waited = |pod: &Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Running")
    };
    wait_for(&env.api_in::<Pod>("team"), AWAITED, MINUTE, waited).await?;
    for name in ["doomed", "taken-along"] {
        wait_gone(&env.api::<Backup>(), name, MINUTE).await?;
    }
    wait_gone(&policies, LEAVING, MINUTE).await
}

async fn scheduled(env: &Env) -> Result<Vec<Backup>> {
    let labels = format!("{}=ticking", label::SCHEDULE_NAME);
    let backups = env.api::<Backup>();
    Ok(backups
        .list(&ListParams::default().labels(&labels))
        .await?
        .items)
}

async fn ready(env: &Env, ready: bool, reason: &str) -> Result<()> {
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    let wanted = if ready { "True" } else { "False" };
    wait_for(&policies, "team", MINUTE, |policy| {
        let status = policy.status.iter();
        let mut conditions = status.flat_map(|status| &status.conditions);
        conditions.any(|condition| {
            condition.type_ == "Ready" && condition.status == wanted && condition.reason == reason
        })
    })
    .await?;
    Ok(())
}

async fn warned(env: &Env, kind: &str, name: &str, of: &str) -> Result<()> {
    until("an event says why", MINUTE, async || {
        let events: Api<Event> = env.api_in(NAMESPACE);
        let fields =
            format!("involvedObject.kind={kind},involvedObject.name={name},reason=ForeignVelero");
        let events = events.list(&ListParams::default().fields(&fields)).await?;
        let note = |event: &Event| event.message.clone().unwrap_or_default();
        let said = events.items.iter().any(|event| {
            let note = note(event);
            note.contains(of) && note.contains("scale the Deployment velero to zero")
        });
        Ok(said.then_some(()))
    })
    .await
}

async fn beside_a_server(env: &Env, doctor: &Doctor) -> Result<()> {
    let scale = |replicas: u8| {
        let replicas = format!("--replicas={replicas}");
        let scale = ["-n", NAMESPACE, "scale", "deployment/velero", &replicas];
        env.cluster.kubectl(scale)
    };
    scale(1)?;
    until("the server runs", MINUTE, async || {
        Ok((env.ready_pods(NAMESPACE, "deploy=velero").await?.len() == 1).then_some(()))
    })
    .await?;
    ready(env, false, "ForeignVelero").await?;
    back_up(env, "beside").await?;
    let spec: RestoreSpec = serde_json::from_value(
        json!({"backupName": "before", "namespaceMapping": {"team": "copy"}}),
    )?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new("beside", spec))
        .await?;
    by_hand(env, "beside-server").await?;
    more_to_do(env).await?;
    for (kind, name) in [
        ("Backup", "beside"),
        ("Restore", "beside"),
        ("PodVolumeBackup", "beside-server"),
        ("PodVolumeRestore", AWAITED),
    ] {
        warned(env, kind, name, "server of Velero").await?;
    }
    let findings = doctor.findings("no other server")?;
    ensure!(
        findings.len() == 1 && findings[0].0 == "problem",
        "{findings:?}"
    );
    ensure!(findings[0].1.contains("--engine velero"), "{findings:?}");
    let (content, said) = doctor.asked(&[])?;
    ensure!(!content && said.contains("PROBLEM"), "{said}");
    let refused = doctor
        .0
        .refused("restore volume data -n team --from-backup before")?;
    ensure!(refused.contains("server of Velero"), "{refused}");
    ensure!(env.api::<Backup>().get("beside").await?.phase() == BackupPhase::New);
    ensure!(restores.get("beside").await?.phase() == RestorePhase::New);
    nothing_is_done(env).await?;
    let volume = env.api::<PodVolumeBackup>().get("beside-server").await?;
    ensure!(volume.phase() == PodVolumePhase::New, "{volume:?}");

    scale(0)?;
    env.backup_completed("beside", MINUTE).await?;
    env.restore_completed("beside", MINUTE).await?;
    volume_completed(env, "beside-server").await?;
    everything_is_done(env).await?;
    ready(env, true, "Accepted").await?;
    let (content, said) = doctor.asked(&[])?;
    ensure!(content, "{said}");
    Ok(())
}

async fn beside_an_agent(env: &Env, doctor: &Doctor) -> Result<()> {
    let pods: Api<Pod> = env.api_in(NAMESPACE);
    let agent = serde_json::from_value(json!({
        "metadata": {"name": "old-agent"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "node-agent", "image": "docker.io/local/velero:1",
            "imagePullPolicy": "Never", "command": ["/velero"], "args": ["node-agent", "server"]}]}
    }))?;
    pods.create(&PostParams::default(), &agent).await?;
    let running = |pod: &Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Running")
    };
    wait_for(&pods, "old-agent", MINUTE, running).await?;
    let findings = doctor.findings("no other server")?;
    ensure!(
        findings.len() == 1 && findings[0].1.contains("node agent of Velero"),
        "{findings:?}"
    );

    by_hand(env, "beside-agent").await?;
    back_up(env, "beside-agent").await?;
    for kind in ["Backup", "PodVolumeBackup"] {
        warned(env, kind, "beside-agent", "node agent of Velero").await?;
    }
    let (backups, volumes) = (env.api::<Backup>(), env.api::<PodVolumeBackup>());
    ensure!(backups.get("beside-agent").await?.phase() == BackupPhase::New);
    ensure!(volumes.get("beside-agent").await?.phase() == PodVolumePhase::New);

    pods.delete("old-agent", &DeleteParams::default()).await?;
    wait_gone(&pods, "old-agent", MINUTE).await?;
    volume_completed(env, "beside-agent").await?;
    env.backup_completed("beside-agent", MINUTE).await?;
    Ok(())
}
