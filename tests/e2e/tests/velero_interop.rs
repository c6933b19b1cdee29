//! From a real Velero to Jackline and back, by the commands of the how-to: each restores what the other backed up, byte for byte, and
//! adds its own backups to the other's. Schedules go on both ways.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{FIELD_MANAGER, label};
use jackline_crds::velero::{
    Backup, BackupPhase, PodVolumeBackup, Schedule, SchedulePhase, ScheduleSpec,
};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{
    Env, NAMESPACE, Tree, Velero, guide, until, velero_server, wait_for, wait_gone,
};
use jackline_test_cluster::Options;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
/// A Schedule that is due every minute.
const MINUTELY: &str = "minutely";
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
    let schedule = schedules_are_made(&env, &velero).await?;
    env.cluster.apply(include_str!("velero_interop.yaml"))?;
    let by_velero = change(&env, "first", 4_000_000).await?;
    let first = backed_up(&env, &velero, "velero-1").await?;

    goes_on(&env, &schedule, &BTreeSet::new()).await?;
    between_runs(&env).await?;
    guide::follow(&env, &velero, GUIDE, "Stop Velero")?;
    long_ago(&env).await?;
    let by_velero_alone = names(&runs_of(&env, MINUTELY).await?);
    let said = guide::follow(&env, &velero, GUIDE, "Install Jackline")?;
    ensure!(said.contains("velero-1"), "{said}");
    change(&env, "second", 100_000).await?;
    let second = backed_up(&env, &velero, "jackline-1").await?;
    adds(&env, &first, &second).await?;
    back(&env, &velero, "velero-1", &by_velero).await?;
    let by_jackline = change(&env, "third", 3_000_000).await?;
    let third = backed_up(&env, &velero, "jackline-2").await?;

    for run in goes_on(&env, &schedule, &by_velero_alone).await? {
        ensure!(is_of_jackline(&run), "{run:?}");
    }
    between_runs(&env).await?;
    let by_both = names(&runs_of(&env, MINUTELY).await?);
    guide::follow(&env, &velero, GUIDE, "Back")?;
    change(&env, "fourth", 200_000).await?;
    let fourth = backed_up(&env, &velero, "velero-2").await?;
    adds(&env, &third, &fourth).await?;
    back(&env, &velero, "jackline-2", &by_jackline).await?;
    its_own(&env, &velero, &second).await?;
    for run in goes_on(&env, &schedule, &by_both).await? {
        ensure!(!is_of_jackline(&run), "{run:?}");
    }
    velero.says(
        &format!("schedule describe {MINUTELY}"),
        &["Phase: Enabled", "Paused: false", "Schedule: * * * * *"],
    )?;
    env.restic("team").await?.check()?;
    env.cluster.down()
}

/// By Velero's client, while its server runs: one that is always due soon, one that is not due while the test runs, and one that rests.
async fn schedules_are_made(env: &Env, velero: &Velero) -> Result<ScheduleSpec> {
    for (name, cron, paused) in [
        (MINUTELY, "* * * * *", "--paused=false"),
        ("yearly", "@yearly", "--paused=false"),
        ("resting", "* * * * *", "--paused=true"),
    ] {
        let create = ["schedule", "create", name, "--schedule", cron, paused];
        let what = ["--include-namespaces", "default", "--ttl", "24h"];
        velero.call(&[&create[..], &what].concat())?;
    }
    let enabled = |schedule: &Schedule| schedule.phase() == SchedulePhase::Enabled;
    let schedules = env.api::<Schedule>();
    Ok(wait_for(&schedules, MINUTELY, MINUTE, enabled).await?.spec)
}

/// The backups of a Schedule.
async fn runs_of(env: &Env, schedule: &str) -> Result<Vec<Backup>> {
    let label = format!("{}={schedule}", label::SCHEDULE_NAME);
    let backups = env.api::<Backup>();
    let params = ListParams::default().labels(&label);
    Ok(backups.list(&params).await?.items)
}

fn names(runs: &[Backup]) -> BTreeSet<String> {
    runs.iter().map(ResourceExt::name_any).collect()
}

fn made_at(run: &Backup) -> Timestamp {
    let created = run.metadata.creation_timestamp.as_ref();
    created.map_or(Timestamp::UNIX_EPOCH, |created| created.0)
}

/// Whoever runs now makes backups of the Schedule that was made, one a minute, and does not touch it otherwise. Returns those that were
/// not there `before`.
async fn goes_on(env: &Env, spec: &ScheduleSpec, before: &BTreeSet<String>) -> Result<Vec<Backup>> {
    let new = until("the schedule goes on", 3 * MINUTE, async || {
        let mut runs = runs_of(env, MINUTELY).await?;
        runs.retain(|run| !before.contains(&run.name_any()));
        let done = runs.iter().any(|run| run.phase() == BackupPhase::Completed);
        Ok(done.then_some(runs))
    })
    .await?;
    let is_well =
        |run: &Backup| !run.phase().is_terminal() || run.phase() == BackupPhase::Completed;
    ensure!(new.iter().all(is_well), "{new:?}");
    // The name ends with the second in which it was made.
    let minute = |run: &Backup| {
        let mut name = run.name_any();
        name.truncate(name.len() - 2);
        name
    };
    let minutes: BTreeSet<String> = new.iter().map(minute).collect();
    ensure!(
        minutes.len() == new.len(),
        "more than one a minute: {new:?}"
    );
    let newest = new.iter().map(made_at).max().context("a run")?;
    let noted = |schedule: &Schedule| {
        let last = schedule.status.as_ref().and_then(|s| s.last_backup.clone());
        // Whole seconds, of two clocks.
        let close = |last: Timestamp| last.as_second() + 1 >= newest.as_second();
        schedule.phase() == SchedulePhase::Enabled && last.is_some_and(|last| close(last.0))
    };
    let schedules = env.api::<Schedule>();
    let schedule = wait_for(&schedules, MINUTELY, MINUTE, noted).await?;
    ensure!(schedule.spec == *spec, "{schedule:?}");
    for name in ["yearly", "resting"] {
        ensure!(runs_of(env, name).await?.is_empty(), "{name} was not due");
    }
    Ok(new)
}

/// No run has just begun, and none will within seconds.
async fn between_runs(env: &Env) -> Result<()> {
    until("the schedule rests", 3 * MINUTE, async || {
        let runs = runs_of(env, MINUTELY).await?;
        let newest = runs.iter().map(made_at).max().context("a run")?;
        let age = Timestamp::now().duration_since(newest).as_secs();
        let ended = runs.iter().all(|run| run.phase().is_terminal());
        Ok((ended && age < 15).then_some(()))
    })
    .await
}

/// Once no server runs: as if that were so for ten minutes.
async fn long_ago(env: &Env) -> Result<()> {
    let gone = ["wait", "--for=delete", "--timeout=60s", "pod", "-l"];
    env.cluster
        .kubectl([&["-n", NAMESPACE], &gone[..], &["deploy=velero"]].concat())?;
    let past = Timestamp::now() - SignedDuration::from_mins(10);
    let patch = json!({"status": {"lastBackup": Time(past)}});
    env.api::<Schedule>()
        .patch(MINUTELY, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Whether Jackline has worked on it.
fn is_of_jackline(run: &Backup) -> bool {
    let mut managers = run
        .managed_fields()
        .iter()
        .filter_map(|of| of.manager.as_deref());
    managers.any(|manager| manager == FIELD_MANAGER)
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
    // Velero leaves its mark behind, Jackline takes it away in its time.
    let mut found = Tree::read(&volume)?.without(&[""]);
    found.0.retain(|name, _| !name.starts_with(b".velero"));
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
