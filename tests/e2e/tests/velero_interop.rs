//! From a real Velero to Jackline and back, by the commands of the how-to: each restores what the other backed up, byte for byte, and
//! adds its own backups to the other's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, PodVolumeBackup};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{
    Env, NAMESPACE, Tree, Velero, guide, until, velero_server, wait_for, wait_gone,
};
use jackline_test_cluster::Options;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::DeleteParams;

const MINUTE: Duration = Duration::from_secs(60);
const GUIDE: &str = include_str!("../../../docs/how-to/velero.md");
/// The volume's own directory: its time changes when the mark of the finished restore is taken away.
const ROOT: &[&str] = &[""];

#[tokio::test(flavor = "multi_thread")]
async fn each_restores_what_the_other_backed_up() -> Result<()> {
    let env = Env::without_jackline(Options::named("velero-interop")).await?;
    let velero = velero_server::install(&env, "restic").await?;
    let settings = Settings {
        keep_storage: true,
        ..Settings::default()
    };
    deploy::prepare(&env.cluster, &settings)?;
    definitions_can_be_kept(&env)?;
    env.cluster.apply(include_str!("velero_interop.yaml"))?;
    let by_velero = change(&env, "first", 4_000_000).await?;
    let first = backed_up(&env, &velero, "velero-1").await?;

    guide::follow(&env, &velero, GUIDE, "Stop Velero")?;
    let said = guide::follow(&env, &velero, GUIDE, "Install Jackline")?;
    ensure!(said.contains("velero-1"), "{said}");
    change(&env, "second", 100_000).await?;
    let second = backed_up(&env, &velero, "jackline-1").await?;
    adds(&env, &first, &second).await?;
    back(&env, &velero, "velero-1", &by_velero).await?;
    let by_jackline = change(&env, "third", 3_000_000).await?;
    let third = backed_up(&env, &velero, "jackline-2").await?;

    guide::follow(&env, &velero, GUIDE, "Back")?;
    change(&env, "fourth", 200_000).await?;
    let fourth = backed_up(&env, &velero, "velero-2").await?;
    adds(&env, &third, &fourth).await?;
    back(&env, &velero, "jackline-2", &by_jackline).await?;
    its_own(&env, &velero, &second).await?;
    env.restic("team").await?.check()?;
    env.cluster.down()
}

/// The overlay of the how-to leaves Velero's definitions out and all else in.
fn definitions_can_be_kept(env: &Env) -> Result<()> {
    let overlay = guide::blocks(GUIDE, "Keep Velero's definitions", "yaml")?;
    let directory = env.cluster.dir().join("keep");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("kustomization.yaml"), overlay)?;
    let whole = env.cluster.dir().join("deploy");
    let definitions = |directory: &std::path::Path, group: &str| {
        let objects = env
            .cluster
            .kubectl(["kustomize".as_ref(), directory.as_os_str()])?;
        let of_group = format!("  group: {group}");
        let count = |line: &str| objects.lines().filter(|found| *found == line).count();
        anyhow::Ok((
            count(&of_group),
            count("kind: Deployment") + count("kind: DaemonSet"),
        ))
    };
    ensure!(definitions(&whole, "velero.io")?.0 > 10);
    ensure!(definitions(&directory, "velero.io")? == (0, 2));
    ensure!(definitions(&directory, "jackline.dev")? == definitions(&whole, "jackline.dev")?);
    Ok(())
}

/// Adds what gets lost most easily to the volume, and returns all that it holds.
async fn change(env: &Env, name: &str, size: usize) -> Result<Tree> {
    runs(env).await?;
    let volume = env.volume_dir("team", "db-0", "data").await?;
    let dir = volume.join(name).join("deep é\u{2028}");
    fs::create_dir_all(&dir)?;
    let content: Vec<u8> = (0..size).map(|at| (at * at / 7 % 251) as u8).collect();
    fs::write(dir.join("large"), &content)?;
    fs::write(dir.join("empty"), "")?;
    fs::write(dir.join("private"), name)?;
    fs::set_permissions(dir.join("private"), fs::Permissions::from_mode(0o4640))?;
    chown(dir.join("private"), Some(1001), Some(1002))?;
    fs::set_permissions(dir.join("private"), fs::Permissions::from_mode(0o4640))?;
    fs::hard_link(dir.join("large"), dir.join("the same"))?;
    symlink("no/such/file", dir.join("link"))?;
    xattr::set(dir.join("empty"), "user.note", b"kept")?;
    Ok(Tree::read(&volume)?.without(ROOT))
}

async fn runs(env: &Env) -> Result<()> {
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods("team", "app=db").await?.len() == 1).then_some(()))
    })
    .await
}

/// By whoever serves the client; the snapshot's id.
async fn backed_up(env: &Env, velero: &Velero, name: &str) -> Result<String> {
    velero.run(&format!(
        "backup create {name} --include-namespaces team --wait"
    ))?;
    env.backup_completed(name, MINUTE).await?;
    let volumes = env.volumes_of(name).await?;
    ensure!(volumes.len() == 1, "{volumes:?}");
    snapshot(&volumes[0])
}

fn snapshot(volume: &PodVolumeBackup) -> Result<String> {
    let status = volume.status.as_ref();
    let id = status.and_then(|status| status.snapshot_id.clone());
    id.context("a snapshot")
}

/// The later snapshot has the earlier one for its parent.
async fn adds(env: &Env, earlier: &str, later: &str) -> Result<()> {
    let snapshots = env.restic("team").await?.snapshots()?;
    let of = |id: &str| {
        let is = |snapshot: &&serde_json::Value| {
            let long = snapshot["id"].as_str();
            long.is_some_and(|long| long.starts_with(id))
        };
        snapshots.iter().find(is).with_context(|| id.to_owned())
    };
    ensure!(of(later)?["parent"] == of(earlier)?["id"], "{snapshots:?}");
    Ok(())
}

/// The namespace is lost, and restored by whoever serves the client.
async fn back(env: &Env, velero: &Velero, backup: &str, wanted: &Tree) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("team", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "team", 2 * MINUTE).await?;
    let name = format!("from-{backup}");
    velero.run(&format!(
        "restore create {name} --from-backup {backup} --wait"
    ))?;
    env.restore_completed(&name, MINUTE).await?;
    runs(env).await?;
    let volume = env.volume_dir("team", "db-0", "data").await?;
    // Velero leaves the directory of its mark behind.
    let found = Tree::read(&volume)?.without(&["", ".velero"]);
    wanted.same_as(&found)
}

/// A backup of Jackline's is found in the bucket by Velero, shown, and deleted with its snapshot.
async fn its_own(env: &Env, velero: &Velero, snapshot: &str) -> Result<()> {
    let backups = env.api::<Backup>();
    let patch = r#"{"spec": {"backupSyncPeriod": "5s"}}"#;
    let location = ["-n", NAMESPACE, "patch", "backupstoragelocation/default"];
    env.cluster
        .kubectl(location.into_iter().chain(["--type=merge", "-p", patch]))?;
    backups
        .delete("jackline-1", &DeleteParams::default())
        .await?;
    wait_gone(&backups, "jackline-1", MINUTE).await?;
    wait_for(&backups, "jackline-1", 3 * MINUTE, |_| true).await?;
    until("its volume is known again", MINUTE, async || {
        Ok((env.volumes_of("jackline-1").await?.len() == 1).then_some(()))
    })
    .await?;
    velero.says(
        "backup describe jackline-1 --details",
        &["Phase: Completed", "team/db-0: data"],
    )?;
    velero.run("backup delete jackline-1 --confirm")?;
    wait_gone(&backups, "jackline-1", 2 * MINUTE).await?;
    let left = env.restic("team").await?.snapshots()?;
    let is_left = left.iter().any(|left| {
        let id = left["id"].as_str();
        id.is_some_and(|id| id.starts_with(snapshot))
    });
    ensure!(!is_left && left.len() == 3, "{left:?}");
    Ok(())
}
