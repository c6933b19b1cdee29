//! The bucket that a real Velero 1.14 wrote, put into a cluster's S3.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use jackline_crds::velero::{Backup, BackupStorageLocation, LocationPhase};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{BUCKET, Env, wait_for};

/// Its backups.
const BACKUPS: [&str; 2] = ["first", "second"];
/// When they expire, in place of the day that Velero gave them: that one comes, or has come, and then they are deleted.
const EXPIRATION: &str = "2126-11-22T14:16:10Z";

/// Where the fixture lies.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/velero-1.14")
}

/// Puts it into a bucket, with backups that do not expire. They never lie there otherwise: a sync may look at any moment.
///
/// # Errors
/// When it cannot be copied or uploaded.
pub async fn upload(env: &Env, bucket: &str) -> Result<()> {
    let copy = tempfile::tempdir()?;
    let copied = Command::new("cp")
        .arg("--recursive")
        .arg(directory().join("bucket/."))
        .arg(copy.path())
        .status()?;
    ensure!(copied.success(), "the fixture cannot be copied");
    for name in BACKUPS {
        let file = copy
            .path()
            .join(format!("backups/{name}/velero-backup.json"));
        let mut backup: Value = serde_json::from_slice(&fs::read(&file)?)?;
        backup["status"]["expiration"] = json!(EXPIRATION);
        fs::write(&file, serde_json::to_vec(&backup)?)?;
    }
    env.cluster.s3().upload_tree(bucket, copy.path()).await
}

/// Gives Jackline the bucket and its repositories' password, and waits until both backups appear.
///
/// # Errors
/// When the location does not become Available or a backup does not appear within a minute.
pub async fn adopt(env: &Env) -> Result<()> {
    let limit = Duration::from_secs(60);
    let locations = env.api::<BackupStorageLocation>();
    wait_for(&locations, "default", limit, |location| {
        let status = location.status.as_ref();
        status.is_some_and(|status| status.phase == Some(LocationPhase::Available))
    })
    .await?;
    let password = json!({"stringData": {"repository-password": "static-passw0rd"}}).to_string();
    let secret = "velero-repo-credentials";
    env.cluster
        .kubectl(["-n", "velero", "patch", "secret", secret, "-p", &password])?;
    upload(env, BUCKET).await?;
    let patch = json!({"spec": {"backupSyncPeriod": "2s"}});
    locations
        .patch("default", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    for name in BACKUPS {
        wait_for(&env.api::<Backup>(), name, limit, |_| true).await?;
    }
    Ok(())
}
