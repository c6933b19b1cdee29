//! Backups of real workloads: complete, comparable with what came before, and never lost to a killed controller.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{self, label};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupSpec, PodVolumeBackup, PodVolumePhase, Restore, RestoreSpec,
};
use jackline_e2e::{BUCKET, Env, Tree, until, wait_for, wait_gone};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

const MINUTE: Duration = Duration::from_secs(60);
const WORKLOADS: &str = include_str!("../demo/workloads.yaml");
const SHOP: &str = "nginx-example";
/// The volume's own directory: its time changes when the mark of the finished restore is taken away.
const ROOT: &[&str] = &[""];

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_complete_and_survive_kills() -> Result<()> {
    let env = Env::up("backup").await?;
    workloads(&env).await?;
    what_cannot_be_is_refused(&env).await?;
    complete_and_in_velero_s_layout(&env).await?;
    hooks_run_around_the_volumes(&env).await?;
    pods_that_share_a_claim_are_frozen_together(&env).await?;
    what_hooks_lead_to(&env).await?;
    a_name_is_taken_for_ever(&env).await?;
    the_leader_dies_in_the_middle(&env).await?;
    the_other_replica_takes_over(&env).await?;
    everything_comes_back(&env).await?;
    a_raw_block_device_is_named(&env).await?;
    env.cluster.down()
}

async fn create(env: &Env, name: &str, spec: Value) -> Result<Backup> {
    let spec: BackupSpec = serde_json::from_value(spec)?;
    Ok(env
        .api::<Backup>()
        .create(&PostParams::default(), &Backup::new(name, spec))
        .await?)
}

fn spec() -> Value {
    json!({"includedNamespaces": [SHOP]})
}

/// The demo's workloads, with the metadata that gets lost most easily in their volumes.
async fn workloads(env: &Env) -> Result<()> {
    env.cluster.apply(WORKLOADS)?;
    let [first, second] = nginx(env).await?;
    until("db runs", 2 * MINUTE, async || {
        Ok((env.ready_pods(SHOP, "app=db").await?.len() == 1).then_some(()))
    })
    .await?;
    for pod in [&first, &second] {
        annotate(env, pod, "backup.velero.io/backup-volumes=nginx-logs")?;
    }
    annotate(
        env,
        "db-0",
        "backup.velero.io/backup-volumes= data , no-such-volume",
    )?;
    let logs = env.volume_dir(SHOP, &first, "nginx-logs").await?;
    fill(&logs)?;
    let data = env.volume_dir(SHOP, "db-0", "data").await?;
    fill(&data)
}

async fn nginx(env: &Env) -> Result<[String; 2]> {
    until("two nginx pods run", 2 * MINUTE, async || {
        let mut pods = env.ready_pods(SHOP, "app=nginx").await?;
        pods.sort();
        Ok(<[String; 2]>::try_from(pods).ok())
    })
    .await
}

fn annotate(env: &Env, pod: &str, annotation: &str) -> Result<()> {
    env.cluster.kubectl([
        "-n",
        SHOP,
        "annotate",
        "--overwrite",
        "pod",
        pod,
        annotation,
    ])?;
    Ok(())
}

fn fill(root: &Path) -> Result<()> {
    let dir = root.join("kept/deep");
    fs::create_dir_all(&dir)?;
    for (name, size) in [("empty", 0), ("small", 11), ("large", 3 << 20)] {
        let content: Vec<u8> = (0..size).map(|at: usize| (at * 31 % 251) as u8).collect();
        fs::write(dir.join(name), content)?;
    }
    fs::set_permissions(dir.join("small"), fs::Permissions::from_mode(0o640))?;
    chown(dir.join("small"), Some(1001), Some(1002))?;
    symlink("small", dir.join("link"))?;
    Ok(())
}

async fn what_cannot_be_is_refused(env: &Env) -> Result<()> {
    let table = [
        (
            "no-location",
            json!({"storageLocation": "nowhere"}),
            "\"nowhere\" not found",
        ),
        (
            "both-lists",
            json!({"includedNamespaces": ["a"], "excludedNamespaces": ["a"]}),
            "in the includes list: a",
        ),
        (
            "both-styles",
            json!({"includedResources": ["pods"], "includedClusterScopedResources": ["*"]}),
            "old filter parameters",
        ),
    ];
    for (name, spec, expected) in table {
        create(env, name, spec).await?;
        let backup = env.backup_ended(name, MINUTE).await?;
        let status = backup.status.clone().unwrap_or_default();
        ensure!(
            status.phase == Some(BackupPhase::FailedValidation),
            "{name}: {status:?}"
        );
        ensure!(
            status
                .validation_errors
                .iter()
                .any(|why| why.contains(expected)),
            "{name}: {status:?}"
        );
    }
    Ok(())
}

async fn complete_and_in_velero_s_layout(env: &Env) -> Result<()> {
    let started = Instant::now();
    create(env, "first", spec()).await?;
    let backup = env.backup_completed("first", 3 * MINUTE).await?;
    println!(
        "backup of two volumes: {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let status = backup.status.clone().unwrap_or_default();
    ensure!(
        status.warnings == 1,
        "the unknown volume name is a warning: {status:?}"
    );
    ensure!(status.format_version.as_deref() == Some("1.1.0"));
    let volumes = env.volumes_of("first").await?;
    ensure!(
        volumes.len() == 2,
        "one per claim, however many pods share it: {volumes:?}"
    );
    for volume in &volumes {
        ensure!(volume.phase() == PodVolumePhase::Completed);
        ensure!(volume.owner_references()[0].uid == backup.uid().context("uid")?);
    }
    let keys = env.cluster.s3().list(BUCKET, "backups/first/").await?;
    let mut names: Vec<&str> = keys
        .iter()
        .filter_map(|object| object.key.strip_prefix("backups/first/"))
        .collect();
    names.sort_unstable();
    ensure!(
        names
            == [
                "first-csi-volumesnapshotclasses.json.gz",
                "first-csi-volumesnapshotcontents.json.gz",
                "first-csi-volumesnapshots.json.gz",
                "first-itemoperations.json.gz",
                "first-logs.gz",
                "first-podvolumebackups.json.gz",
                "first-resource-list.json.gz",
                "first-results.gz",
                "first-volumeinfo.json.gz",
                "first-volumesnapshots.json.gz",
                "first.tar.gz",
                "velero-backup.json",
            ],
        "{names:?}"
    );
    let stored: Backup = serde_json::from_slice(
        &env.cluster
            .s3()
            .get(BUCKET, "backups/first/velero-backup.json")
            .await?,
    )?;
    ensure!(stored.phase() == BackupPhase::Completed && stored.uid() == backup.uid());
    env.restic(SHOP).await?.check()
}

async fn hooks_run_around_the_volumes(env: &Env) -> Result<()> {
    annotate(
        env,
        "db-0",
        r#"pre.hook.backup.velero.io/command=["/bin/sh","-c","echo frozen > /data/hook"]"#,
    )?;
    annotate(
        env,
        "db-0",
        r#"post.hook.backup.velero.io/command=["/bin/sh","-c","echo thawed > /data/hook"]"#,
    )?;
    create(env, "hooked", spec()).await?;
    let backup = env.backup_completed("hooked", 3 * MINUTE).await?;
    let hooks = backup
        .status
        .and_then(|status| status.hook_status)
        .unwrap_or_default();
    ensure!(
        (hooks.hooks_attempted, hooks.hooks_failed) == (2, 0),
        "{hooks:?}"
    );
    let data = env.volume_dir(SHOP, "db-0", "data").await?;
    ensure!(fs::read_to_string(data.join("hook"))?.trim() == "thawed");
    annotate(env, "db-0", "pre.hook.backup.velero.io/command-")?;
    annotate(env, "db-0", "post.hook.backup.velero.io/command-")
}

/// A pod of a suite with its namespace's name, and a volume that it asks to have read.
fn hooked(
    namespace: &str,
    name: &str,
    role: &str,
    mut annotations: Value,
    volume: Option<Value>,
) -> Value {
    let (mut mounts, mut volumes) = (json!([]), json!([]));
    if let Some(mut volume) = volume {
        volume["name"] = json!("data");
        volumes = json!([volume]);
        mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let asked = annotations.as_object_mut();
        asked.map(|asked| {
            asked
                .entry("backup.velero.io/backup-volumes")
                .or_insert(json!("data"))
        });
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"suite": namespace, "hooks": role}, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "volumes": volumes,
            "containers": [{"name": "main", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                "command": ["sleep", "100000"], "volumeMounts": mounts}]}})
}

async fn run(env: &Env, namespace: &str, pods: &[Value]) -> Result<()> {
    for pod in pods {
        env.cluster.apply(&pod.to_string())?;
    }
    until("the pods run", 2 * MINUTE, async || {
        let ready = env
            .ready_pods(namespace, &format!("suite={namespace}"))
            .await?;
        Ok((ready.len() == pods.len()).then_some(()))
    })
    .await
}

/// Names of the files of a backup's tarball under a directory.
async fn stored_under(env: &Env, backup: &str, directory: &str) -> Result<Vec<String>> {
    let key = format!("backups/{backup}/{backup}.tar.gz");
    let tarball = NamedTempFile::new()?;
    fs::write(tarball.path(), env.cluster.s3().get(BUCKET, &key).await?)?;
    let listed = Command::new("tar")
        .arg("-tzf")
        .arg(tarball.path())
        .output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let mut stored: Vec<String> = listed
        .lines()
        .filter_map(|line| line.strip_prefix(directory).map(str::to_owned))
        .collect();
    stored.sort_unstable();
    Ok(stored)
}

/// One claim, read through a pod without hooks: those of the others that mount it run around it.
async fn pods_that_share_a_claim_are_frozen_together(env: &Env) -> Result<()> {
    let volume = || Some(json!({"persistentVolumeClaim": {"claimName": "data"}}));
    let hooks = |name: &str, then: &str| {
        json!({"backup.velero.io/backup-volumes": "",
            "pre.hook.backup.velero.io/command": format!(r#"["sh", "-c", "touch /data/{name} && {then}"]"#),
            "pre.hook.backup.velero.io/on-error": "Fail",
            "post.hook.backup.velero.io/command": format!(r#"["rm", "/data/{name}"]"#)})
    };
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shared"}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "shared"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "csi", "resources": {"requests": {"storage": "10Mi"}}}}),
    ] {
        env.cluster.apply(&object.to_string())?;
    }
    let pods = [
        hooked("shared", "reader", "none", json!({}), volume()),
        hooked("shared", "one", "own", hooks("one", "true"), volume()),
        hooked("shared", "other", "own", hooks("other", "true"), volume()),
        hooked(
            "shared",
            "unable",
            "own",
            hooks("unable", "false"),
            volume(),
        ),
    ];
    run(env, "shared", &pods).await?;
    create(env, "shared", json!({"includedNamespaces": ["shared"]})).await?;
    let backup = env.backup_ended("shared", 2 * MINUTE).await?;
    let status = backup.status.unwrap_or_default();
    let hooks = status.hook_status.unwrap_or_default();
    ensure!(
        status.phase == Some(BackupPhase::PartiallyFailed)
            && status.errors == 1
            && (hooks.hooks_attempted, hooks.hooks_failed) == (6, 1),
        "{:?}, {} errors, {hooks:?}",
        status.phase,
        status.errors
    );
    let volumes = env.volumes_of("shared").await?;
    ensure!(
        volumes.len() == 1 && volumes[0].spec.pod.name.as_deref() == Some("reader"),
        "{volumes:?}"
    );
    let read = env
        .restic("shared")
        .await?
        .run(&["ls", "latest", "--no-lock"])?;
    let frozen: Vec<&str> = read
        .lines()
        .filter_map(|line| line.strip_prefix('/'))
        .collect();
    ensure!(
        frozen == ["one", "other", "unable"],
        "all were frozen when it was read: {read}"
    );
    let data = env.volume_dir("shared", "reader", "data").await?;
    ensure!(
        fs::read_dir(&data)?.next().is_none(),
        "and are thawed, also the one whose freezing failed half-way"
    );
    let stored = stored_under(env, "shared", "resources/pods/namespaces/shared/").await?;
    ensure!(
        stored == ["one.json", "other.json", "reader.json"],
        "{stored:?}"
    );
    Ok(())
}

/// Pods whose hooks fail in every way, pods whose hooks are the Backup's, and one of those that two selectors match.
async fn what_hooks_lead_to(env: &Env) -> Result<()> {
    let pod = |name: &str, role: &str, hook: Value, volume: bool| {
        hooked(
            "hooks",
            name,
            role,
            hook,
            volume.then(|| json!({"emptyDir": {}})),
        )
    };
    let pre = |command: &str, on_error: &str| {
        json!({"pre.hook.backup.velero.io/command": command, "pre.hook.backup.velero.io/on-error": on_error,
            "pre.hook.backup.velero.io/timeout": "2s"})
    };
    let none = || json!({});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hooks"}});
    env.cluster.apply(&namespace.to_string())?;
    let pods = [
        pod("forbids", "own", pre("false", "Fail"), true),
        pod("goes-on", "own", pre("false", "Continue"), true),
        pod("late", "own", pre(r#"["sleep", "60"]"#, "Continue"), true),
        pod("chosen", "spec", none(), true),
        pod("bare", "spec", none(), false),
    ];
    run(env, "hooks", &pods).await?;
    let command =
        |file: &str| json!([{"exec": {"command": ["sh", "-c", format!("echo >> {file}")]}}]);
    let spec = json!({"includedNamespaces": ["hooks"],
        "orLabelSelectors": [{"matchLabels": {"suite": "hooks"}}, {"matchLabels": {"hooks": "spec"}}],
        "hooks": {"resources": [{"name": "some", "includedNamespaces": ["hooks"],
            "labelSelector": {"matchLabels": {"hooks": "spec"}}, "pre": command("/before"), "post": command("/after")}]}});
    create(env, "outcomes", spec).await?;
    let backup = env.backup_ended("outcomes", 2 * MINUTE).await?;
    let status = backup.status.clone().unwrap_or_default();
    let hooks = status.hook_status.clone().unwrap_or_default();
    ensure!(
        status.phase == Some(BackupPhase::PartiallyFailed) && status.errors == 3,
        "{status:?}"
    );
    ensure!(
        (hooks.hooks_attempted, hooks.hooks_failed) == (7, 3),
        "{hooks:?}"
    );
    for pod in ["chosen", "bare"] {
        let lines = ["wc", "-l", "/before", "/after"];
        let lines = env.cluster.exec("hooks", pod, &lines)?;
        ensure!(lines.contains("2 total"), "once each: {lines}");
    }
    let mut read = Vec::new();
    for volume in env.volumes_of("outcomes").await? {
        ensure!(volume.phase() == PodVolumePhase::Completed, "{volume:?}");
        read.push(volume.spec.pod.name.unwrap_or_default());
    }
    read.sort();
    ensure!(read == ["chosen", "goes-on", "late"], "{read:?}");
    let stored = stored_under(env, "outcomes", "resources/pods/namespaces/hooks/").await?;
    ensure!(
        stored == ["bare.json", "chosen.json", "goes-on.json", "late.json"],
        "{stored:?}"
    );
    for pod in env.api_in::<Pod>("hooks").list(&Default::default()).await? {
        ensure!(!pod.labels().contains_key(label::POST_HOOKS), "{pod:?}");
    }
    Ok(())
}

/// A Backup whose name another one has used fails, and the other one's files stay as they are.
async fn a_name_is_taken_for_ever(env: &Env) -> Result<()> {
    let stored = env
        .cluster
        .s3()
        .get(BUCKET, "backups/first/first.tar.gz")
        .await?;
    let backups = env.api::<Backup>();
    backups.delete("first", &DeleteParams::default()).await?;
    wait_gone(&backups, "first", MINUTE).await?;
    // The synchronisation may bring the old one back first; that is its right.
    if create(env, "first", json!({})).await.is_ok() {
        let backup = env.backup_ended("first", MINUTE).await?;
        let status = backup.status.unwrap_or_default();
        ensure!(status.phase == Some(BackupPhase::Failed), "{status:?}");
        ensure!(
            status.failure_reason.as_deref() == Some("backup already exists in object storage"),
            "{status:?}"
        );
    }
    ensure!(
        env.cluster
            .s3()
            .get(BUCKET, "backups/first/first.tar.gz")
            .await?
            == stored
    );
    Ok(())
}

async fn the_leader_dies_in_the_middle(env: &Env) -> Result<()> {
    // Enough that the kill comes in the middle.
    let data = env.volume_dir(SHOP, "db-0", "data").await?;
    let noise: Vec<u8> = (0..96 << 20)
        .map(|at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect();
    fs::write(data.join("noise"), noise)?;
    create(env, "killed", spec()).await?;
    until("a volume is under way", MINUTE, async || {
        Ok((!env.volumes_of("killed").await?.is_empty()).then_some(()))
    })
    .await?;
    env.kill_leader().await?;
    let phase = env.api::<Backup>().get("killed").await?.phase();
    ensure!(
        phase == BackupPhase::InProgress,
        "the kill came too late: {phase}"
    );
    let before: Vec<String> = env
        .volumes_of("killed")
        .await?
        .iter()
        .filter_map(ResourceExt::uid)
        .collect();
    env.backup_completed("killed", 3 * MINUTE).await?;
    let after = env.volumes_of("killed").await?;
    ensure!(after.len() == 2, "{after:?}");
    let kept = |uid: &String| {
        after
            .iter()
            .any(|volume| volume.uid().as_ref() == Some(uid))
    };
    ensure!(
        before.iter().all(kept),
        "what had begun goes on, and is not begun again"
    );
    env.restic(SHOP).await?.check()
}

async fn the_other_replica_takes_over(env: &Env) -> Result<()> {
    env.kill_leader().await?;
    let killed = Instant::now();
    create(env, "after-kill", spec()).await?;
    let begun = |backup: &Backup| backup.phase() != BackupPhase::New;
    wait_for(&env.api::<Backup>(), "after-kill", MINUTE, begun).await?;
    let passed = killed.elapsed();
    println!(
        "first write after the leader's death: {:.1} s",
        passed.as_secs_f64()
    );
    env.backup_completed("after-kill", 3 * MINUTE).await?;
    env.restic(SHOP).await?.check()
}

async fn everything_comes_back(env: &Env) -> Result<()> {
    let [first, _] = nginx(env).await?;
    let logs = Tree::read(
        &env.volume_dir(SHOP, &first, "nginx-logs")
            .await?
            .join("kept"),
    )?;
    let data = Tree::read(&env.volume_dir(SHOP, "db-0", "data").await?)?;
    create(env, "last", spec()).await?;
    env.backup_completed("last", 3 * MINUTE).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(SHOP, &DeleteParams::default()).await?;
    wait_gone(&namespaces, SHOP, 2 * MINUTE).await?;
    let restore = RestoreSpec {
        backup_name: Some("last".to_owned()),
        ..RestoreSpec::default()
    };
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("back", restore))
        .await?;
    env.restore_completed("back", 3 * MINUTE).await?;
    let [first, _] = nginx(env).await?;
    let again = Tree::read(
        &env.volume_dir(SHOP, &first, "nginx-logs")
            .await?
            .join("kept"),
    )?;
    logs.same_as(&again)?;
    let volume = env.volume_dir(SHOP, "db-0", "data").await?;
    // It goes after the pod has gone on.
    let done = volume.join(names::RESTORE_DONE_DIR);
    until("the done-file goes", MINUTE, async || {
        Ok((!done.exists()).then_some(()))
    })
    .await?;
    data.without(ROOT)
        .same_as(&Tree::read(&volume)?.without(ROOT))?;
    let volumes: Vec<PodVolumeBackup> = env.volumes_of("last").await?;
    ensure!(
        volumes
            .iter()
            .all(|volume| volume.phase() == PodVolumePhase::Completed)
    );
    Ok(())
}

/// A file that is a device until this is dropped.
struct Device(String);

impl Device {
    fn new(file: &Path) -> Result<Self> {
        fs::File::create(file)?.set_len(8 << 20)?;
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()?;
        ensure!(made.status.success(), "losetup: {made:?}");
        Ok(Self(String::from_utf8(made.stdout)?.trim().to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// There are no files in it: a warning says so, and the other volume of its pod is read.
async fn a_raw_block_device_is_named(env: &Env) -> Result<()> {
    let device = Device::new(&env.cluster.dir().join("device"))?;
    let manifest = include_str!("backup.yaml").replace("DEVICE", &device.0);
    env.cluster
        .apply(&manifest.replace("NODE", env.cluster.node()))?;
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods("raw", "app=raw").await?.len() == 1).then_some(()))
    })
    .await?;
    create(env, "raw", json!({"includedNamespaces": ["raw"]})).await?;
    let backup = env.backup_completed("raw", MINUTE).await?;
    ensure!(backup.status.is_some_and(|status| status.warnings == 1));
    let volumes = env.volumes_of("raw").await?;
    ensure!(volumes.len() == 1 && volumes[0].spec.volume == "data");
    let results = env.packed("backups/raw/raw-results.gz").await?.to_string();
    let named = "Volume disk is used as a raw block device, which is not supported";
    ensure!(results.contains(named), "{results}");
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("raw", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "raw", 2 * MINUTE).await
}
