//! Deleting backups: whatever interrupts it, it goes on by itself; what cannot be deleted stays whole and says why.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, BackupSpec, BackupStorageLocation, DeleteBackupRequest,
    DeletePhase, PodVolumeBackup, PodVolumePhase,
};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{BUCKET, Env, Restic, until, wait_for, wait_gone};
use jackline_faults::{Proxy, When};
use jackline_test_cluster::Options;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
/// The location whose requests go through the proxy.
const HELD: &str = "held";
/// The UID of another cluster's Backup.
const THEIRS: &str = "11111111-2222-4333-8444-555555555555";

/// Files in the bucket, by their keys.
type Files = BTreeMap<String, Vec<u8>>;

#[tokio::test(flavor = "multi_thread")]
async fn deletions_go_on_and_refusals_keep_everything() -> Result<()> {
    let settings = Settings {
        controller_args: vec!["--lease-duration=9s".to_owned()],
        ..Settings::default()
    };
    let env = Env::up_with(Options::named("deletion"), &settings).await?;
    env.cluster.apply(include_str!("deletion.yaml"))?;
    let proxy = env.proxied_location(HELD).await?;
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods("shop", "app=db").await?.len() == 1).then_some(()))
    })
    .await?;
    for (name, step) in [
        ("forgotten", "/restic/shop/snapshots/"),
        ("unlisted", "/backups/unlisted/velero-backup.json"),
        ("emptied", "/backups/emptied/emptied.tar.gz"),
    ] {
        killed_at(&env, &proxy, name, step).await?;
    }
    change_location(&env, json!({"backupSyncPeriod": "2s"})).await?;
    another_cluster_takes_the_name(&env, &proxy, "retaken", false).await?;
    another_cluster_takes_the_name(&env, &proxy, "retaken-too", true).await?;
    what_cannot_be_forgotten_keeps_its_list(&env).await?;
    a_read_only_location_keeps_its_backups(&env).await?;
    what_is_not_meant_or_would_be_lost_stays(&env).await?;
    a_backup_deleted_by_hand_comes_back(&env).await?;
    a_repository_without_an_object_is_pruned(&env).await?;
    restic(&env).await?.check()?;
    env.cluster.down()
}

/// On the repository of the only namespace.
async fn restic(env: &Env) -> Result<Restic> {
    let password = env.repository_password().await?;
    let prefix = format!("{BUCKET}/{HELD}");
    Ok(Restic::new(env.cluster.s3(), &prefix, "shop", &password))
}

async fn back_up(env: &Env, name: &str) -> Result<Backup> {
    let spec: BackupSpec =
        serde_json::from_value(json!({"includedNamespaces": ["shop"], "storageLocation": HELD}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new(name, spec))
        .await?;
    let backup = env.backup_completed(name, 2 * MINUTE).await?;
    let volumes = env.volumes_of(name).await?;
    ensure!(volumes.len() == 1 && volumes[0].phase() == PodVolumePhase::Completed);
    Ok(backup)
}

async fn request(env: &Env, name: &str) -> Result<()> {
    let spec = serde_json::from_value(json!({"backupName": name}))?;
    env.api::<DeleteBackupRequest>()
        .create(
            &PostParams::default(),
            &DeleteBackupRequest::new(name, spec),
        )
        .await?;
    Ok(())
}

/// Names of what lies below a directory of the location.
async fn stored(env: &Env, directory: &str) -> Result<Vec<String>> {
    let all = env
        .cluster
        .s3()
        .list(BUCKET, &format!("{HELD}/{directory}/"))
        .await?;
    Ok(all.into_iter().map(|object| object.key).collect())
}

/// The one that deletes is killed when the server has done this step, and before it knows.
async fn killed_at(env: &Env, proxy: &Proxy, name: &str, step: &str) -> Result<()> {
    let snapshots = stored(env, "restic/shop/snapshots").await?;
    back_up(env, name).await?;
    let hold = proxy.hold_one(&["DELETE", step], When::After);
    request(env, name).await?;
    hold.arrived().await;
    env.kill_leader().await?;
    drop(hold);
    gone(env, name).await?;
    ensure!(stored(env, "restic/shop/snapshots").await? == snapshots);
    Ok(())
}

async fn gone(env: &Env, name: &str) -> Result<()> {
    wait_gone(&env.api::<Backup>(), name, 2 * MINUTE).await?;
    wait_gone(&env.api::<DeleteBackupRequest>(), name, MINUTE).await?;
    ensure!(env.volumes_of(name).await?.is_empty());
    ensure!(stored(env, &format!("backups/{name}")).await?.is_empty());
    Ok(())
}

/// Whose files lie in the bucket when the deletion comes to them is not the one that was meant, also for a leader who comes later: it
/// stays whole, and appears.
async fn another_cluster_takes_the_name(
    env: &Env,
    proxy: &Proxy,
    name: &str,
    killed: bool,
) -> Result<()> {
    let snapshots = stored(env, "restic/shop/snapshots").await?;
    let ours = back_up(env, name).await?;
    let snapshot = snapshot_of_theirs(env, name).await?;
    let hold = proxy.hold_one(&["DELETE", "/restic/shop/snapshots/"], When::After);
    request(env, name).await?;
    hold.arrived().await;
    let written = write_theirs(env, &ours, &snapshot).await?;
    if killed {
        env.kill_leader().await?;
    }
    drop(hold);
    let synced = until("theirs is here", 2 * MINUTE, async || {
        let now = env.api::<Backup>().get_opt(name).await?;
        Ok(now.filter(|now| now.uid() != ours.uid()))
    })
    .await?;
    wait_gone(&env.api::<DeleteBackupRequest>(), name, MINUTE).await?;
    let named = async || {
        let volumes = env.volumes_of(name).await?;
        anyhow::Ok(
            volumes
                .iter()
                .map(|it| snapshot_of(it).map(str::to_owned))
                .collect::<Vec<_>>(),
        )
    };
    let theirs = [Some(snapshot.clone())];
    until("its volume is here", MINUTE, async || {
        Ok((named().await? == theirs).then_some(()))
    })
    .await?;
    // The bucket is looked at twice in that time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = env.api::<Backup>().get(name).await?;
    ensure!(now.uid() == synced.uid() && now.phase() == BackupPhase::Completed);
    ensure!(named().await? == theirs);
    ensure!(files(env, name).await? == written);
    let left = stored(env, "restic/shop/snapshots").await?;
    ensure!(left.len() == snapshots.len() + 1 && left.iter().any(|key| key.contains(&snapshot)));
    request(env, name).await?;
    gone(env, name).await?;
    ensure!(stored(env, "restic/shop/snapshots").await? == snapshots);
    Ok(())
}

fn snapshot_of(volume: &PodVolumeBackup) -> Option<&str> {
    volume.status.as_ref()?.snapshot_id.as_deref()
}

/// Makes a snapshot of another cluster's backup, and gives its short id.
async fn snapshot_of_theirs(env: &Env, backup: &str) -> Result<String> {
    let restic = restic(env).await?;
    let source = tempfile::tempdir()?;
    std::fs::write(source.path().join("file"), "theirs")?;
    let source = source.path().to_str().context("a path in UTF-8")?;
    let (backup, uid) = (format!("backup={backup}"), format!("backup-uid={THEIRS}"));
    let tags = ["--tag", &backup, "--tag", &uid];
    let call = ["backup", "--host", "velero", source];
    // Maintenance may be at work.
    until("it is not locked", MINUTE, async || {
        restic.run(&[&call[..], &tags[..]].concat()).map(Some)
    })
    .await?;
    let all = restic.snapshots()?;
    let tagged = |snapshot: &&serde_json::Value| {
        let tags = snapshot["tags"].as_array();
        tags.is_some_and(|tags| tags.contains(&json!(backup)) && tags.contains(&json!(uid)))
    };
    let found = all.iter().find(tagged).context("a snapshot")?;
    let id = found["short_id"].as_str().context("its short id")?;
    Ok(id.to_owned())
}

/// Writes the files of a backup that differs from this one in its UID and its snapshot.
async fn write_theirs(env: &Env, ours: &Backup, snapshot: &str) -> Result<Files> {
    let (name, uid) = (ours.name_any(), ours.uid().context("a UID")?);
    let volume = env.volumes_of(&name).await?.pop().context("a volume")?;
    let known = snapshot_of(&volume).context("its snapshot")?;
    let change = |text: &str| text.replace(&uid, THEIRS).replace(known, snapshot);
    for (key, bytes) in files(env, &name).await? {
        let bytes = if key.ends_with("velero-backup.json") {
            change(&String::from_utf8(bytes)?).into_bytes()
        } else if key.ends_with("podvolumebackups.json.gz") {
            let mut text = String::new();
            GzDecoder::new(&*bytes).read_to_string(&mut text)?;
            ensure!(text.contains(known), "{text}");
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(change(&text).as_bytes())?;
            gzip.finish()?
        } else {
            bytes
        };
        env.cluster.s3().put(BUCKET, &key, bytes).await?;
    }
    files(env, &name).await
}

/// What lies under the name.
async fn files(env: &Env, backup: &str) -> Result<Files> {
    let mut files = Files::new();
    for key in stored(env, &format!("backups/{backup}")).await? {
        let bytes = env.cluster.s3().get(BUCKET, &key).await?;
        files.insert(key, bytes);
    }
    Ok(files)
}

/// The deletion was refused for this reason, and nothing of the backup is gone.
async fn refused(env: &Env, name: &str, why: &str, before: &[String]) -> Result<()> {
    let requests = env.api::<DeleteBackupRequest>();
    let request = wait_for(&requests, name, MINUTE, |request: &DeleteBackupRequest| {
        request.phase() == DeletePhase::Processed
    })
    .await?;
    let errors = request.status.map(|status| status.errors);
    let errors = errors.unwrap_or_default();
    ensure!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
    ensure!(stored(env, &format!("backups/{name}")).await? == before);
    ensure!(env.volumes_of(name).await?.len() == 1);
    requests.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Its snapshots would be found no more without it.
async fn what_cannot_be_forgotten_keeps_its_list(env: &Env) -> Result<()> {
    let s3 = env.cluster.s3();
    back_up(env, "listed").await?;
    let files = stored(env, "backups/listed").await?;
    let snapshots = stored(env, "restic/shop/snapshots").await?;
    let config = format!("{HELD}/restic/shop/config");
    let sound = s3.get(BUCKET, &config).await?;
    s3.put(BUCKET, &config, vec![7; sound.len()]).await?;
    request(env, "listed").await?;
    refused(env, "listed", "repository of namespace shop", &files).await?;
    s3.put(BUCKET, &config, sound).await?;
    ensure!(stored(env, "restic/shop/snapshots").await? == snapshots);
    request(env, "listed").await?;
    gone(env, "listed").await?;
    ensure!(stored(env, "restic/shop/snapshots").await?.len() + 1 == snapshots.len());
    Ok(())
}

async fn a_read_only_location_keeps_its_backups(env: &Env) -> Result<()> {
    back_up(env, "kept").await?;
    let files = stored(env, "backups/kept").await?;
    change_location(env, json!({"accessMode": "ReadOnly"})).await?;
    request(env, "kept").await?;
    let why =
        "cannot delete backup because backup storage location held is currently in read-only mode";
    refused(env, "kept", why, &files).await?;
    change_location(env, json!({"accessMode": "ReadWrite"})).await
}

/// A request for an earlier backup of the name, as one that came with a restore, deletes nothing; nor does one that would drop the only
/// record of a snapshot, until a person says so.
async fn what_is_not_meant_or_would_be_lost_stays(env: &Env) -> Result<()> {
    let name = "recorded";
    back_up(env, name).await?;
    let files = stored(env, "backups/recorded").await?;
    let spec = serde_json::from_value(json!({"backupName": name}))?;
    let mut old = DeleteBackupRequest::new(name, spec);
    let uid = ("velero.io/backup-uid".to_owned(), "another".to_owned());
    old.metadata.labels = Some([uid].into());
    env.api::<DeleteBackupRequest>()
        .create(&PostParams::default(), &old)
        .await?;
    refused(env, name, "with UID another", &files).await?;

    let infos = json!([{"backupMethod": "CSISnapshot", "pvcNamespace": "shop", "pvcName": "disk",
        "snapshotDataMoved": false, "skipped": false}]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    serde_json::to_writer(&mut gzip, &infos)?;
    let key = format!("{HELD}/backups/recorded/recorded-volumeinfo.json.gz");
    env.cluster.s3().put(BUCKET, &key, gzip.finish()?).await?;
    request(env, name).await?;
    refused(env, name, "CSI snapshot of claim shop/disk", &files).await?;
    let patch = json!({"metadata": {"annotations": {"jackline.dev/leave-snapshots": "true"}}});
    env.api::<Backup>()
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    request(env, name).await?;
    gone(env, name).await
}

async fn change_location(env: &Env, spec: serde_json::Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    env.api::<BackupStorageLocation>()
        .patch(HELD, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// Deleting the object deletes no data, as with Velero; and it can then be deleted for good.
async fn a_backup_deleted_by_hand_comes_back(env: &Env) -> Result<()> {
    let backups = env.api::<Backup>();
    let before = backups.get("kept").await?;
    let volume = env.volumes_of("kept").await?.pop().context("a volume")?;
    backups.delete("kept", &DeleteParams::default()).await?;
    let again = until("the backup is there again", MINUTE, async || {
        let now = backups.get_opt("kept").await?;
        Ok(now.filter(|now| now.uid() != before.uid()))
    })
    .await?;
    ensure!(again.phase() == BackupPhase::Completed);
    ensure!(again.status == before.status, "{again:?}");
    let back = until("its volume is there again", MINUTE, async || {
        let mut volumes = env.volumes_of("kept").await?;
        volumes.retain(|one| one.uid() != volume.uid());
        Ok(volumes.pop())
    })
    .await?;
    ensure!(back.status == volume.status, "{back:?}");
    request(env, "kept").await?;
    gone(env, "kept").await?;
    let left = env.api::<DeleteBackupRequest>();
    ensure!(left.list(&ListParams::default()).await?.items.is_empty());
    ensure!(stored(env, "restic/shop/snapshots").await?.is_empty());
    Ok(())
}

/// As in a new cluster, which has the backups from the bucket and no objects of repositories.
async fn a_repository_without_an_object_is_pruned(env: &Env) -> Result<()> {
    let name = "shop-held-restic";
    back_up(env, "orphaned").await?;
    let repositories = env.api::<BackupRepository>();
    repositories.delete(name, &DeleteParams::default()).await?;
    wait_gone(&repositories, name, MINUTE).await?;
    request(env, "orphaned").await?;
    gone(env, "orphaned").await?;
    let noted = |repository: &BackupRepository| {
        repository
            .annotations()
            .contains_key("jackline.dev/forgotten-at")
    };
    wait_for(&repositories, name, MINUTE, noted).await?;
    let often = Patch::Merge(json!({"spec": {"maintenanceFrequency": "1s"}}));
    repositories
        .patch(name, &PatchParams::default(), &often)
        .await?;
    until("its data is gone", 2 * MINUTE, async || {
        Ok(stored(env, "restic/shop/data")
            .await?
            .is_empty()
            .then_some(()))
    })
    .await
}
