//! The snapshots of a backup, from every list of them that is left: PodVolumeBackups in the cluster, those in the bucket, and the
//! tags of the snapshots themselves (which also find what failed or lost runs left behind).

use std::collections::{BTreeMap, BTreeSet};

use jackline_crds::velero::{Backup, BackupStorageLocation, PodVolumeBackup, UploaderType};
use jackline_repository::{Error, SnapshotInfo};
use jackline_runtime::Failure;
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use kube::ResourceExt;

use crate::{
    context::Context,
    location,
    repository::{self, RepositoryError},
    sync,
};

/// What to forget.
#[derive(Debug)]
pub struct Snapshots {
    /// Namespace of the repository → ids, short or full. A namespace without ids is searched by tags alone.
    pub by_namespace: BTreeMap<String, BTreeSet<String>>,
    /// Tags that snapshots of the backup carry.
    pub tags: Tags,
}

/// The tags of a backup's snapshots.
#[derive(Debug)]
pub struct Tags {
    /// `backup=<name>`.
    backup: String,
    /// `backup-uid=<uid>` for every UID that the backup has had; a synced backup has another here than where it was made.
    uids: BTreeSet<String>,
}

impl Tags {
    /// The tags of a backup that has had these UIDs.
    pub fn new(backup: &str, uids: impl IntoIterator<Item = String>) -> Self {
        let uids = uids.into_iter().map(|uid| format!("backup-uid={uid}"));
        Self {
            backup: format!("backup={backup}"),
            uids: uids.collect(),
        }
    }

    fn matches(&self, tags: &[String]) -> bool {
        tags.contains(&self.backup) && tags.iter().any(|tag| self.uids.contains(tag))
    }
}

/// Finds the snapshots of a backup.
///
/// # Errors
/// When the bucket cannot be read.
pub async fn of_backup(
    context: &Context,
    backup: &Backup,
    store: &dyn ObjectStore,
) -> Result<Snapshots, Failure> {
    let name = backup.name_any();
    let mut uids: BTreeSet<String> = backup.metadata.uid.clone().into_iter().collect();
    uids.extend(stored_uid(store, &name).await?);
    let mut by_namespace: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let in_cluster = sync::pod_volumes(context, backup);
    let in_bucket = sync::stored_pod_volumes(store, &name).await?;
    let ours = |volume: &PodVolumeBackup| volume.spec.uploader_type != UploaderType::Kopia;
    for volume in in_cluster
        .iter()
        .map(AsRef::as_ref)
        .chain(&in_bucket)
        .filter(|v| ours(v))
    {
        let Some(namespace) = volume.spec.pod.namespace.clone() else {
            continue;
        };
        let ids = by_namespace.entry(namespace).or_default();
        let status = volume.status.as_ref();
        ids.extend(
            status
                .and_then(|status| status.snapshot_id.clone())
                .filter(|id| !id.is_empty()),
        );
        uids.extend(volume.spec.tags.get("backup-uid").cloned());
    }
    if by_namespace.is_empty() {
        // No list is left: every repository of the location is searched.
        let found = location::repositories(store)
            .await
            .map_err(|error| Failure::transient("LocationClosed", error))?;
        by_namespace.extend(
            found
                .into_iter()
                .map(|namespace| (namespace, BTreeSet::new())),
        );
    }
    Ok(Snapshots {
        by_namespace,
        tags: Tags::new(&name, uids),
    })
}

/// The UID of the backup that the bucket holds under a name.
///
/// # Errors
/// When the bucket cannot be read.
pub async fn stored_uid(store: &dyn ObjectStore, name: &str) -> Result<Option<String>, Failure> {
    match store.get(&backup_object(name, BackupFile::Metadata)).await {
        // Damage here must not keep a backup from being deleted.
        Ok(body) => Ok(serde_json::from_slice(&body)
            .ok()
            .and_then(|stored: Backup| stored.metadata.uid)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(Failure::transient(error.reason(), error)),
    }
}

/// Forgets the snapshots of one repository; returns how many there were. What is gone already is success, also the repository.
///
/// # Errors
/// When the repository cannot be opened, or is locked for too long.
pub async fn forget(
    context: &Context,
    location: &BackupStorageLocation,
    namespace: &str,
    ids: &BTreeSet<String>,
    tags: &Tags,
) -> Result<usize, RepositoryError> {
    let repository = match repository::open(context, location, namespace).await {
        Ok(repository) => repository,
        Err(RepositoryError::Repository(Error::NotFound { .. })) => return Ok(0),
        Err(error) => return Err(error),
    };
    let snapshots = repository.snapshots().await?;
    let wanted: Vec<_> = select(&snapshots, ids, tags)
        .iter()
        .map(|info| info.id)
        .collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    repository.forget(&wanted).await?;
    Ok(wanted.len())
}

/// The snapshots that an id names or that carry the tags. A short id that several snapshots start with names none of them: their tags
/// decide.
fn select<'a>(
    snapshots: &'a [SnapshotInfo],
    ids: &BTreeSet<String>,
    tags: &Tags,
) -> Vec<&'a SnapshotInfo> {
    let unique: Vec<&String> = ids
        .iter()
        .filter(|id| {
            snapshots
                .iter()
                .filter(|info| info.id.to_hex().starts_with(*id))
                .count()
                == 1
        })
        .collect();
    snapshots
        .iter()
        .filter(|info| {
            let hex = info.id.to_hex();
            unique.iter().any(|id| hex.starts_with(*id)) || tags.matches(&info.snapshot.tags)
        })
        .collect()
}
