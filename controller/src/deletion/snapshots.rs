//! The snapshots of a backup, from every list of them that is left: PodVolumeBackups in the cluster, those in the bucket, and the
//! tags of the snapshots themselves (which also find what failed or lost runs left behind).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jackline_crds::velero::{Backup, BackupStorageLocation, PodVolumeBackup, UploaderType};
use jackline_policy::naming::is_dns_label;
use jackline_repository::{Error, SnapshotInfo};
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use kube::ResourceExt;

use crate::{
    context::Context,
    location,
    repository::{self, RepositoryError},
    sync,
};

/// Hex digits of a short id.
const SHORTEST_ID: usize = 8;

/// What to forget.
#[derive(Debug)]
pub struct Snapshots {
    /// Namespace of the repository → ids, short or full. A namespace without ids is searched by tags alone.
    pub by_namespace: BTreeMap<String, BTreeSet<String>>,
    /// Namespaces that no list names, and that are searched by tags because the lists may not be all.
    pub unnamed: BTreeSet<String>,
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

    /// Whether an id may name a snapshot with these tags: anybody can write a list into the bucket that names another backup's.
    fn admit(&self, tags: &[String]) -> bool {
        tags.contains(&self.backup) || !tags.iter().any(|tag| tag.starts_with("backup="))
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
    let in_cluster = sync::pod_volumes(context, backup);
    of_lists(&backup.name_any(), backup.uid(), &in_cluster, store).await
}

async fn of_lists(
    name: &str,
    uid: Option<String>,
    in_cluster: &[Arc<PodVolumeBackup>],
    store: &dyn ObjectStore,
) -> Result<Snapshots, Failure> {
    let mut uids: BTreeSet<String> = uid.into_iter().collect();
    uids.extend(stored_uid(store, name).await?);
    let (in_bucket, whole) = stored_list(store, name).await?;
    let in_cluster = in_cluster.iter().map(AsRef::as_ref);
    let volumes = in_cluster.chain(&in_bucket);
    let by_namespace = ids_by_namespace(volumes, &mut uids);
    let mut unnamed = BTreeSet::new();
    // A whole list that is empty says that there is nothing.
    if !whole {
        // What the cluster has may not be all: every repository of the location is searched.
        let found = location::repositories(store)
            .await
            .map_err(|error| Failure::transient("LocationClosed", error))?;
        unnamed.extend(found);
        unnamed.retain(|namespace| !by_namespace.contains_key(namespace));
    }
    Ok(Snapshots {
        by_namespace,
        unnamed,
        tags: Tags::new(name, uids),
    })
}

/// What follows from an error of a repository.
#[derive(Debug, PartialEq, Eq)]
pub enum Consequence {
    /// It is tried again.
    Retried,
    /// Snapshots of the backup stay for sure: so does what names them.
    Refused,
    /// No list names the repository, and it says no for good to whoever asks, as one with another password does: it must not keep
    /// backups from being deleted for ever. That it was not searched is said.
    Unsearched,
}

/// What follows from an error of a repository; `named`: a list says that it holds snapshots of the backup.
pub fn consequence(error: &RepositoryError, named: bool) -> Consequence {
    use RepositoryError::Repository;
    match error {
        error if error.is_retryable() => Consequence::Retried,
        Repository(
            Error::WrongPassword { .. } | Error::Corrupt { .. } | Error::UnsupportedVersion { .. },
        ) if !named => Consequence::Unsearched,
        _ => Consequence::Refused,
    }
}

/// The list in the bucket, and whether it is whole: one that is absent or damaged must not keep a backup from being deleted.
///
/// # Errors
/// When the bucket cannot be read.
pub async fn stored_list(
    store: &dyn ObjectStore,
    name: &str,
) -> Result<(Vec<PodVolumeBackup>, bool), Failure> {
    let (volumes, why) = match sync::stored_pod_volumes(store, name).await {
        Ok(None) => return Ok((Vec::new(), false)),
        Ok(Some(stored)) => {
            let doubt = stored.doubt();
            (stored.volumes, doubt)
        }
        Err(error) if error.is_damage() => (Vec::new(), Some(location::chain(&error))),
        Err(error) => return Err(error.into()),
    };
    if let Some(why) = &why {
        tracing::warn!(
            backup = name,
            why,
            "snapshots are searched by their tags too"
        );
    }
    Ok((volumes, why.is_none()))
}

/// The snapshots that lists name. Their backup's UIDs are added to `uids`.
fn ids_by_namespace<'a>(
    volumes: impl Iterator<Item = &'a PodVolumeBackup>,
    uids: &mut BTreeSet<String>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut by_namespace: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let ours = |volume: &PodVolumeBackup| volume.spec.uploader_type != UploaderType::Kopia;
    for volume in volumes.filter(|volume| ours(volume)) {
        let namespace = volume.spec.pod.namespace.clone();
        // Anybody can have written the list.
        let Some(namespace) = namespace.filter(|name| is_dns_label(name)) else {
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
    by_namespace
}

/// The UID of the backup that the bucket holds under a name.
///
/// # Errors
/// When the bucket cannot be read.
pub async fn stored_uid(store: &dyn ObjectStore, name: &str) -> Result<Option<String>, Failure> {
    match sync::read_backup(store, name).await {
        Ok(stored) => Ok(stored.and_then(|stored| stored.metadata.uid)),
        // Damage here must not keep a backup from being deleted.
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error.into()),
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
    // Its object first: were there none after a crash, nobody would prune, as nothing is left to be forgotten by then.
    repository::ask(context, location, namespace).await?;
    repository.forget(&wanted).await?;
    Ok(wanted.len())
}

/// The snapshots that an id names, unless they are another backup's, or that carry the tags. A short id that several snapshots start
/// with names none of them: their tags decide.
fn select<'a>(
    snapshots: &'a [SnapshotInfo],
    ids: &BTreeSet<String>,
    tags: &Tags,
) -> Vec<&'a SnapshotInfo> {
    let named = |info: &SnapshotInfo, id: &str| info.id.to_hex().starts_with(id);
    let unique: Vec<&String> = ids
        .iter()
        .filter(|id| {
            let count = snapshots.iter().filter(|info| named(info, id)).count();
            id.len() >= SHORTEST_ID && count == 1
        })
        .collect();
    snapshots
        .iter()
        .filter(|info| {
            let own = &info.snapshot.tags;
            let by_id = tags.admit(own) && unique.iter().any(|id| named(info, id));
            by_id || tags.matches(own)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use jackline_storage::{
        layout::{BackupFile, backup_object},
        memory::MemoryStore,
    };
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn repositories_that_no_list_names_are_searched_only_in_doubt() {
        let store = MemoryStore::new();
        for namespace in ["other", "shop"] {
            let config = format!("restic/{namespace}/config");
            store.put(&config, "x".into()).await.unwrap();
        }
        let volume = |uploader: &str| -> PodVolumeBackup {
            serde_json::from_value(json!({
                "metadata": {"name": "b-1"},
                "spec": {"node": "n", "pod": {"namespace": "shop", "name": "db"}, "volume": "data", "backupStorageLocation": "d",
                    "repoIdentifier": "r", "uploaderType": uploader},
                "status": {"phase": "Completed", "snapshotID": "aaaaaaaa"}
            }))
            .unwrap()
        };
        let found = async |here: &[Arc<PodVolumeBackup>]| {
            let found = of_lists("b", None, here, &store).await.unwrap();
            let named: Vec<_> = found.by_namespace.into_keys().collect();
            (named, Vec::from_iter(found.unnamed))
        };
        let names = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let (none, all) = (names(&[]), names(&["other", "shop"]));
        let key = backup_object("b", BackupFile::PodVolumeBackups);
        // No list.
        assert_eq!(found(&[]).await, (none.clone(), all.clone()));
        store.put(&key, "nonsense".into()).await.unwrap();
        assert_eq!(found(&[]).await, (none.clone(), all));
        let here = [Arc::new(volume("restic"))];
        let want = (names(&["shop"]), names(&["other"]));
        assert_eq!(found(&here).await, want);
        let write = async |list: serde_json::Value| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(list.to_string().as_bytes()).unwrap();
            let list = encoder.finish().unwrap();
            store.put(&key, list.into()).await.unwrap();
        };
        write(json!([])).await;
        assert_eq!(found(&[]).await, (none.clone(), none.clone()));
        // Another program's repository holds it.
        write(json!([volume("kopia")])).await;
        assert_eq!(found(&[]).await, (none.clone(), none.clone()));
        write(json!([volume("restic")])).await;
        assert_eq!(found(&[]).await, (names(&["shop"]), none));
    }

    #[test]
    fn a_foreign_repository_that_cannot_be_opened_keeps_no_backup() {
        let text = |text: &str| text.to_owned();
        let wrong: RepositoryError = Error::WrongPassword {
            location: text("restic/shop"),
        }
        .into();
        let damaged: RepositoryError = Error::Corrupt {
            object: text("config"),
            reason: text("it is cut off"),
        }
        .into();
        let busy: RepositoryError = Error::LockLost {
            reason: text("it is gone"),
        }
        .into();
        // The password itself is missing: nobody can say what the repositories hold.
        let blind = RepositoryError::Location(location::LocationError::BadAuthority);
        for (error, unnamed, named) in [
            (&wrong, Consequence::Unsearched, Consequence::Refused),
            (&damaged, Consequence::Unsearched, Consequence::Refused),
            (&busy, Consequence::Retried, Consequence::Retried),
            (&blind, Consequence::Refused, Consequence::Refused),
        ] {
            assert_eq!(consequence(error, false), unnamed, "{error}");
            assert_eq!(consequence(error, true), named, "{error}");
        }
    }

    fn snapshot(id: &str, tags: &[&str]) -> SnapshotInfo {
        let zero = "0".repeat(64);
        SnapshotInfo {
            id: format!("{id:0<64}").parse().unwrap(),
            snapshot: serde_json::from_value(
                json!({"time": "2026-01-01T00:00:00Z", "tree": zero, "tags": tags}),
            )
            .unwrap(),
        }
    }

    #[test]
    fn only_the_backups_own_snapshots_are_forgotten() {
        let snapshots = [
            snapshot("aaaaaaaa1", &["backup=mine", "backup-uid=elsewhere"]),
            snapshot("bbbbbbbb1", &["backup=other", "backup-uid=u2"]),
            snapshot("cccccccc1", &["volume=data"]),
            snapshot("dddddddd1", &["backup=mine", "backup-uid=u1"]),
            // Another cluster's backup of the same name.
            snapshot("eeeeeeee1", &["backup=mine", "backup-uid=u3"]),
            snapshot("ffffffff1", &[]),
            snapshot("ffffffff2", &[]),
        ];
        let tags = Tags {
            backup: "backup=mine".to_owned(),
            uids: ["backup-uid=u1".to_owned()].into(),
        };
        let select = |ids: &[&str]| -> Vec<String> {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            let found = select(&snapshots, &ids, &tags);
            let short = |info: &&SnapshotInfo| info.id.to_hex()[..8].to_owned();
            found.iter().map(short).collect()
        };
        assert_eq!(select(&[]), ["dddddddd"]);
        assert_eq!(
            select(&["aaaaaaaa", "bbbbbbbb", "cccccccc"]),
            ["aaaaaaaa", "cccccccc", "dddddddd"]
        );
        // Too short, ambiguous, unknown.
        assert_eq!(
            select(&["aaaaaaa", "", "ffffffff", "12345678"]),
            ["dddddddd"]
        );
        assert_eq!(select(&["ffffffff2"]), ["dddddddd", "ffffffff"]);
    }
}
