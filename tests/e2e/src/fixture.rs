//! The bucket that a real Velero 1.14 wrote, put into a cluster's S3.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use jackline_crds::velero::{Backup, BackupStorageLocation, LocationPhase};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{BUCKET, Env, wait_for};

/// Where the fixture lies.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/velero-1.14")
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
    env.cluster
        .s3()
        .upload_tree(BUCKET, &directory().join("bucket"))
        .await?;
    let patch = json!({"spec": {"backupSyncPeriod": "2s"}});
    locations
        .patch("default", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    for name in ["first", "second"] {
        wait_for(&env.api::<Backup>(), name, limit, |_| true).await?;
    }
    Ok(())
}
