//! Volumes that come back on other storage than they were on, on storage that a person made, and one that cannot be read.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{BackupPhase, PodVolumePhase};
use jackline_e2e::{Env, Velero, until, wait_for, wait_gone};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const CLAIMS: [&str; 3] = ["rwo", "rwx", "rox"];
const PODS: [&str; 4] = ["rwo", "rwx-a", "rwx-b", "rox"];

#[tokio::test(flavor = "multi_thread")]
async fn volumes_move_between_storage_providers() -> Result<()> {
    let env = Env::up("providers").await?;
    let velero = Velero::new(&env).await?;
    let by_hand = env.cluster.dir().join("volumes/csi/by-hand");
    std::fs::create_dir_all(&by_hand)?;
    std::fs::write(by_hand.join("kept"), "by hand")?;
    let squashed = Squashed::new(&env)?;
    let manifests = include_str!("providers.yaml");
    let path = squashed.0.to_str().context("a path in UTF-8")?;
    env.cluster.apply(&manifests.replace("SQUASHED", path))?;
    running(&env, "move", &PODS).await?;
    fill(&env).await?;
    choose(&env).await?;

    to_another_provisioner(&env, &velero).await?;
    to_another_class(&env, &velero).await?;
    back_onto_a_volume_made_by_hand(&env, &velero, &by_hand).await?;
    root_may_not_read(&env, &velero).await?;
    drop(squashed);
    env.cluster.down()
}

/// A directory whose files root may not read.
struct Squashed(PathBuf);

impl Squashed {
    fn new(env: &Env) -> Result<Self> {
        let path = env.cluster.dir().join("squashed");
        std::fs::create_dir_all(&path)?;
        std::fs::write(path.join("secret"), "not for root")?;
        chown(&path, Some(2000), Some(2000))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
        let path = path.canonicalize()?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/squash.pl");
        let made = Command::new("perl").arg(script).arg(&path).status()?;
        ensure!(made.success(), "{made}");
        ensure!(std::fs::read_dir(&path).is_err(), "root can read it");
        Ok(Self(path))
    }
}

impl Drop for Squashed {
    fn drop(&mut self) {
        // The pods' mounts of it go with the cluster.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn running(env: &Env, namespace: &str, pods: &[&str]) -> Result<()> {
    for pod in pods {
        until("a pod runs", 2 * MINUTE, async || {
            let ready = env.ready_pods(namespace, &format!("app={pod}")).await?;
            Ok((ready.len() == 1).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn volume(env: &Env, namespace: &str, claim: &str) -> Result<PersistentVolume> {
    let claims: Api<PersistentVolumeClaim> = env.api_in(namespace);
    let spec = claims.get(claim).await?.spec.context("a spec")?;
    let volumes: Api<PersistentVolume> = Api::all(env.cluster.client());
    let name = spec.volume_name.context("the claim is bound")?;
    Ok(volumes.get(&name).await?)
}

/// What each claim is to hold.
async fn fill(env: &Env) -> Result<()> {
    for claim in CLAIMS {
        // From outside: one pod has its claim read-only.
        let spec = volume(env, "move", claim).await?.spec.unwrap_or_default();
        let path = spec.local.context("a local volume")?.path;
        std::fs::write(Path::new(&path).join("file"), claim.repeat(1000))?;
    }
    Ok(())
}

/// What a person wants of a volume comes back with each that is provisioned in its place.
async fn choose(env: &Env) -> Result<()> {
    let volumes: Api<PersistentVolume> = Api::all(env.cluster.client());
    let name = volume(env, "move", "rwo").await?.name_any();
    let patch = json!({"metadata": {"labels": {"tier": "gold", "topology.kubernetes.io/zone": "elsewhere"}},
        "spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    volumes
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

async fn moved(env: &Env, is_as_wanted: impl Fn(&PersistentVolumeSpec) -> bool) -> Result<()> {
    running(env, "move", &PODS).await?;
    for pod in PODS {
        let file = env.cluster.exec("move", pod, &["cat", "/data/file"])?;
        let claim = pod.split('-').next().unwrap_or_default();
        ensure!(file == claim.repeat(1000), "{pod}: {file}");
    }
    for claim in CLAIMS {
        let spec = volume(env, "move", claim).await?.spec.unwrap_or_default();
        ensure!(is_as_wanted(&spec), "{claim}: {spec:?}");
    }
    let chosen = volume(env, "move", "rwo").await?;
    let policy = chosen.spec.as_ref();
    let policy = policy.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    ensure!(policy == Some("Retain"), "{policy:?}");
    let labels = chosen.labels();
    ensure!(labels.get("tier").is_some_and(|tier| tier == "gold"));
    ensure!(!labels.contains_key("topology.kubernetes.io/zone"));
    let policy = volume(env, "move", "rwx").await?.spec.unwrap_or_default();
    ensure!(policy.persistent_volume_reclaim_policy.as_deref() == Some("Delete"));
    let writes = env.cluster.exec("move", "rox", &["touch", "/data/new"]);
    ensure!(writes.is_err(), "what was read-only can be written");
    Ok(())
}

async fn back_up(velero: &Velero, name: &str, namespace: &str) -> Result<()> {
    let said = velero.run(&format!(
        "backup create {name} --include-namespaces {namespace} --wait"
    ))?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    Ok(())
}

async fn lost_and_restored(
    env: &Env,
    velero: &Velero,
    backup: &str,
    namespace: &str,
) -> Result<()> {
    lost(env, namespace).await?;
    restored(velero, backup)
}

async fn lost(env: &Env, namespace: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    let params = DeleteParams::default();
    namespaces.delete(namespace, &params).await?;
    wait_gone(&namespaces, namespace, 2 * MINUTE).await
}

fn restored(velero: &Velero, backup: &str) -> Result<()> {
    let said = velero.run(&format!(
        "restore create {backup} --from-backup {backup} --wait"
    ))?;
    if !said.contains("completed with status: Completed") {
        let details = velero.run(&format!("restore describe {backup} --details"))?;
        anyhow::bail!("{said}{details}");
    }
    Ok(())
}

/// A storage class with the provisioner of another.
async fn class(env: &Env, name: &str, like: &str) -> Result<()> {
    let classes: Api<StorageClass> = Api::all(env.cluster.client());
    let mut class = classes.get(like).await?;
    if classes.get_opt(name).await?.is_some() {
        classes.delete(name, &DeleteParams::default()).await?;
        wait_gone(&classes, name, MINUTE).await?;
    }
    class.metadata = kube::api::ObjectMeta {
        name: Some(name.to_owned()),
        ..kube::api::ObjectMeta::default()
    };
    classes.create(&PostParams::default(), &class).await?;
    Ok(())
}

/// The class has the same name, and other storage is behind it.
async fn to_another_provisioner(env: &Env, velero: &Velero) -> Result<()> {
    back_up(velero, "local", "move").await?;
    class(env, "disk", "local").await?;
    class(env, "local", "csi").await?;
    lost_and_restored(env, velero, "local", "move").await?;
    moved(env, |spec| {
        spec.csi.is_some() && spec.storage_class_name.as_deref() == Some("local")
    })
    .await
}

/// From the CSI driver to local volumes again, in a class of another name.
async fn to_another_class(env: &Env, velero: &Velero) -> Result<()> {
    back_up(velero, "csi", "move").await?;
    let mapping = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "classes", "namespace": "velero", "labels": {
            "velero.io/plugin-config": "", "velero.io/change-storage-class": "RestoreItemAction"}},
        "data": {"local": "disk"}});
    env.cluster.apply(&mapping.to_string())?;
    lost_and_restored(env, velero, "csi", "move").await?;
    moved(env, |spec| {
        spec.local.is_some() && spec.storage_class_name.as_deref() == Some("disk")
    })
    .await
}

async fn back_onto_a_volume_made_by_hand(env: &Env, velero: &Velero, path: &Path) -> Result<()> {
    running(env, "by-hand", &["bare"]).await?;
    back_up(velero, "by-hand", "by-hand").await?;
    std::fs::write(path.join("kept"), "changed since")?;
    let before = volume(env, "by-hand", "data").await?;
    lost(env, "by-hand").await?;
    // It remembers the claim that has gone, and takes no other until somebody says so.
    let volumes: Api<PersistentVolume> = Api::all(env.cluster.client());
    wait_for(&volumes, "by-hand", MINUTE, |volume| {
        let status = volume.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some("Released")
    })
    .await?;
    restored(velero, "by-hand")?;
    running(env, "by-hand", &["bare"]).await?;
    let kept = env
        .cluster
        .exec("by-hand", "bare", &["cat", "/data/kept"])?;
    ensure!(kept == "by hand", "{kept}");
    let after = volume(env, "by-hand", "data").await?;
    ensure!(after.uid() == before.uid() && after.name_any() == "by-hand");
    let phase = after.status.and_then(|status| status.phase);
    ensure!(phase.as_deref() == Some("Bound"), "{phase:?}");
    Ok(())
}

/// The cause is named, and the rest of the backup is there.
async fn root_may_not_read(env: &Env, velero: &Velero) -> Result<()> {
    running(env, "squashed", &["guest"]).await?;
    velero.run("backup create squashed --include-namespaces squashed,by-hand --wait")?;
    let backup = env.backup_ended("squashed", MINUTE).await?;
    ensure!(backup.phase() == BackupPhase::PartiallyFailed, "{backup:?}");
    let volumes = env.volumes_of("squashed").await?;
    ensure!(volumes.len() == 2, "{volumes:?}");
    for volume in volumes {
        let status = volume.status.clone().unwrap_or_default();
        if volume.spec.pod.namespace.as_deref() == Some("by-hand") {
            ensure!(volume.phase() == PodVolumePhase::Completed, "{status:?}");
            continue;
        }
        let message = status.message.unwrap_or_default();
        ensure!(volume.phase() == PodVolumePhase::Failed, "{message}");
        ensure!(
            message.contains("Permission denied") && message.contains("root squash"),
            "{message}"
        );
    }
    let log = velero.run("backup logs squashed")?;
    ensure!(log.contains("root squash"), "{log}");
    Ok(())
}
