//! How long volumes may take: as long as their data moves, each for itself; and no longer than a limit, where there is one.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{CONTROLLER, annotation};
use jackline_crds::velero::{
    Backup, BackupPhase, PodVolumeBackup, PodVolumePhase, PodVolumeRestore, Restore, RestorePhase,
};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{Env, NAMESPACE, until, wait_gone};
use jackline_faults::{Proxy, When};
use jackline_test_cluster::Options;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
/// The location whose requests go through the proxy.
const SLOW: &str = "slow";
/// After which a volume that stands still is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// What may be read and not yet stored, about 100 MiB, has to be under way for a shorter time than that.
const BYTES_PER_SECOND: u32 = 8 << 20;
/// One minute of data.
const MEBIBYTES: u32 = 480;

#[tokio::test(flavor = "multi_thread")]
async fn volumes_have_as_long_as_their_data_moves() -> Result<()> {
    let settings = Settings {
        controller_args: vec![format!("--volume-progress-timeout={}s", PATIENCE.as_secs())],
        ..Settings::default()
    };
    let env = Env::up_with(Options::named("progress"), &settings).await?;
    env.cluster.apply(include_str!("progress.yaml"))?;
    let proxy = env.proxied_location(SLOW).await?;
    proxy.slow(&["/restic/long/data/"], BYTES_PER_SECOND);
    for namespace in ["long", "still", "quick"] {
        running(&env, namespace).await?;
        fill(
            &env,
            namespace,
            if namespace == "long" { MEBIBYTES } else { 1 },
        )?;
    }
    a_backup_goes_on_while_data_moves(&env, &proxy).await?;
    pods_go_in_the_order_that_is_wished_for(&env, &proxy).await?;
    a_restore_goes_on_while_data_moves(&env, &proxy).await?;
    a_limit_is_no_nonsense(&env).await?;
    // More than can move in both of the limits below, which a small volume has to keep on a busy machine too.
    fill(&env, "long", 3 * MEBIBYTES / 2)?;
    an_annotation_limits_the_whole(&env, &proxy).await?;
    the_flag_limits_the_whole(&env, &proxy).await?;
    env.cluster.down()
}

async fn running(env: &Env, namespace: &str) -> Result<()> {
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods(namespace, "app=box").await?.len() == 1).then_some(()))
    })
    .await
}

fn in_box(env: &Env, namespace: &str, command: &str) -> Result<String> {
    env.cluster.exec(namespace, "box", &["sh", "-c", command])
}

fn fill(env: &Env, namespace: &str, mebibytes: u32) -> Result<()> {
    let noise = format!("dd if=/dev/urandom of=/data/blob bs=1M count={mebibytes} 2> /dev/null");
    in_box(env, namespace, &noise).map(drop)
}

async fn back_up(env: &Env, name: &str, namespaces: &[&str], limit: Option<&str>) -> Result<()> {
    let spec = json!({"includedNamespaces": namespaces, "storageLocation": SLOW});
    create(env, Backup::new(name, serde_json::from_value(spec)?), limit).await
}

async fn restore(env: &Env, name: &str, spec: Value, limit: Option<&str>) -> Result<()> {
    create(
        env,
        Restore::new(name, serde_json::from_value(spec)?),
        limit,
    )
    .await
}

async fn create<K>(env: &Env, mut object: K, limit: Option<&str>) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let limit = limit.map(|limit| (annotation::POD_VOLUME_TIMEOUT.to_owned(), limit.to_owned()));
    object.annotations_mut().extend(limit);
    let api = env.api::<K>();
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// The volume of a backup that lies in a namespace.
async fn volume_of(env: &Env, backup: &str, namespace: &str) -> Result<PodVolumeBackup> {
    let volumes = env.volumes_of(backup).await?;
    let mut volumes = volumes.into_iter();
    volumes
        .find(|volume| volume.spec.pod.namespace.as_deref() == Some(namespace))
        .with_context(|| format!("{backup} has no volume of {namespace}"))
}

/// The volume of a restore that comes into a namespace.
async fn volume_restored(env: &Env, restore: &str, namespace: &str) -> Result<PodVolumeRestore> {
    let of_it = ListParams::default().labels(&format!("velero.io/restore-name={restore}"));
    let volumes = env.api::<PodVolumeRestore>().list(&of_it).await?;
    let mut volumes = volumes.into_iter();
    volumes
        .find(|volume| volume.spec.pod.namespace.as_deref() == Some(namespace))
        .with_context(|| format!("{restore} has no volume in {namespace}"))
}

fn took(start: Option<&Time>, end: Option<&Time>) -> Result<Duration> {
    let (start, end) = (start.context("a start")?, end.context("an end")?);
    Ok(end.0.duration_since(start.0).unsigned_abs())
}

fn gave_up(phase: PodVolumePhase, message: Option<String>) -> Result<()> {
    let message = message.unwrap_or_default();
    ensure!(phase == PodVolumePhase::Failed || phase == PodVolumePhase::Canceled);
    ensure!(
        message.starts_with("no data has moved for 20s"),
        "{message}"
    );
    Ok(())
}

async fn a_backup_goes_on_while_data_moves(env: &Env, proxy: &Proxy) -> Result<()> {
    let hold = proxy.hold(&["PUT", "/restic/still/data/"], When::Before);
    back_up(env, "first", &["long", "still", "quick"], None).await?;
    let backup = env.backup_ended("first", 4 * MINUTE).await?;
    drop(hold);
    ensure!(backup.phase() == BackupPhase::PartiallyFailed, "{backup:?}");
    let still = volume_of(env, "first", "still").await?;
    gave_up(still.phase(), still.status.unwrap_or_default().message)?;
    let quick = volume_of(env, "first", "quick").await?;
    ensure!(quick.phase() == PodVolumePhase::Completed, "{quick:?}");
    let long = volume_of(env, "first", "long").await?;
    ensure!(long.phase() == PodVolumePhase::Completed, "{long:?}");
    let status = long.status.unwrap_or_default();
    let time = took(
        status.start_timestamp.as_ref(),
        status.completion_timestamp.as_ref(),
    )?;
    ensure!(time >= 2 * PATIENCE, "that was no test: {time:?}");
    Ok(())
}

async fn pods_go_in_the_order_that_is_wished_for(env: &Env, proxy: &Proxy) -> Result<()> {
    let hold = proxy.hold(&["PUT", "/restic/still/data/"], When::Before);
    let spec = json!({"includedNamespaces": ["long", "still", "quick"], "storageLocation": SLOW,
        "orderedResources": {"pods": "still/box, quick/box"}});
    create(env, Backup::new("all", serde_json::from_value(spec)?), None).await?;
    hold.arrived().await;
    volume_of(env, "all", "long").await?;
    ensure!(volume_of(env, "all", "quick").await.is_err());
    drop(hold);
    env.backup_completed("all", 2 * MINUTE).await?;
    ensure!(env.volumes_of("all").await?.len() == 3);
    Ok(())
}

async fn a_restore_goes_on_while_data_moves(env: &Env, proxy: &Proxy) -> Result<()> {
    let sums = |namespace: &str| in_box(env, namespace, "md5sum /data/blob");
    let (long, quick) = (sums("long")?, sums("quick")?);
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    for namespace in ["long", "still", "quick"] {
        let params = DeleteParams::default();
        namespaces.delete(namespace, &params).await?;
    }
    for namespace in ["long", "still", "quick"] {
        wait_gone(&namespaces, namespace, 2 * MINUTE).await?;
    }
    let hold = proxy.hold(&["GET", "/restic/still/data/"], When::Before);
    restore(env, "back", json!({"backupName": "all"}), None).await?;
    let back = env.restore_ended("back", 4 * MINUTE).await?;
    drop(hold);
    ensure!(back.phase() == RestorePhase::PartiallyFailed, "{back:?}");
    let still = volume_restored(env, "back", "still").await?;
    gave_up(still.phase(), still.status.unwrap_or_default().message)?;
    for (namespace, sum) in [("long", long), ("quick", quick)] {
        let volume = volume_restored(env, "back", namespace).await?;
        ensure!(volume.phase() == PodVolumePhase::Completed, "{volume:?}");
        running(env, namespace).await?;
        ensure!(sums(namespace)? == sum);
    }
    let long = volume_restored(env, "back", "long").await?;
    let status = long.status.unwrap_or_default();
    let time = took(
        status.start_timestamp.as_ref(),
        status.completion_timestamp.as_ref(),
    )?;
    ensure!(time >= 2 * PATIENCE, "that was no test: {time:?}");
    Ok(())
}

async fn a_limit_is_no_nonsense(env: &Env) -> Result<()> {
    back_up(env, "soon", &["quick"], Some("soon")).await?;
    restore(env, "soon", json!({"backupName": "all"}), Some("soon")).await?;
    let backup = env.backup_ended("soon", MINUTE).await?;
    let restore = env.restore_ended("soon", MINUTE).await?;
    ensure!(backup.phase() == BackupPhase::FailedValidation);
    ensure!(restore.phase() == RestorePhase::FailedValidation);
    let backup = backup.status.unwrap_or_default().validation_errors;
    let restore = restore.status.unwrap_or_default().validation_errors;
    for errors in [backup, restore] {
        ensure!(
            errors.len() == 1
                && errors[0].contains(annotation::POD_VOLUME_TIMEOUT)
                && errors[0].contains("\"soon\""),
            "{errors:?}"
        );
    }
    Ok(())
}

/// What is done by then is kept; what is not fails, though its data moves.
async fn the_whole_is_limited(
    env: &Env,
    proxy: &Proxy,
    name: &str,
    limit: Option<&str>,
) -> Result<()> {
    back_up(env, name, &["long", "quick"], limit).await?;
    let copies = json!({"long": format!("long-{name}"), "quick": format!("quick-{name}")});
    let copy = json!({"backupName": "all", "includedNamespaces": ["long", "quick"], "namespaceMapping": copies});
    restore(env, name, copy, limit).await?;

    let backup = env.backup_ended(name, 2 * MINUTE).await?;
    ensure!(backup.phase() == BackupPhase::PartiallyFailed, "{backup:?}");
    let key = format!("{SLOW}/backups/{name}/{name}-results.gz");
    let results = env.packed(&key).await?.to_string();
    let late = "timed out waiting for all PodVolumeBackups to complete";
    ensure!(results.contains(late), "{results}");
    let quick = volume_of(env, name, "quick").await?;
    ensure!(quick.phase() == PodVolumePhase::Completed, "{quick:?}");
    let long = volume_of(env, name, "long").await?;
    ensure!(long.phase() != PodVolumePhase::Completed, "{long:?}");

    let restore = env.restore_ended(name, 2 * MINUTE).await?;
    ensure!(restore.phase() == RestorePhase::PartiallyFailed);
    let key = format!("{SLOW}/restores/{name}/restore-{name}-results.gz");
    let results = env.packed(&key).await?.to_string();
    let late = "timed out waiting for all PodVolumeRestores to complete";
    ensure!(results.contains(late), "{results}");
    let quick = volume_restored(env, name, &format!("quick-{name}")).await?;
    ensure!(quick.phase() == PodVolumePhase::Completed, "{quick:?}");
    running(env, &format!("quick-{name}")).await?;
    let long = volume_restored(env, name, &format!("long-{name}")).await?;
    ensure!(long.phase() == PodVolumePhase::Failed, "{long:?}");
    // Whoever went on with it would keep the next ones from their turn.
    let moved = || {
        let requests = proxy.requests().into_iter();
        requests
            .filter(|request| request.contains("/restic/long/data/"))
            .count()
    };
    until("its data stands still", MINUTE, async || {
        let before = moved();
        tokio::time::sleep(Duration::from_secs(8)).await;
        ensure!(moved() == before, "{before} requests, now {}", moved());
        Ok(Some(()))
    })
    .await
}

async fn an_annotation_limits_the_whole(env: &Env, proxy: &Proxy) -> Result<()> {
    the_whole_is_limited(env, proxy, "annotated", Some("40s")).await
}

async fn the_flag_limits_the_whole(env: &Env, proxy: &Proxy) -> Result<()> {
    let deployment = format!("deployment/{CONTROLLER}");
    let limit = "JACKLINE_FS_BACKUP_TIMEOUT=40s";
    env.cluster
        .kubectl(["-n", NAMESPACE, "set", "env", &deployment, limit])?;
    deploy::rolled_out(&env.cluster, &deployment)?;
    the_whole_is_limited(env, proxy, "flagged", None).await
}
