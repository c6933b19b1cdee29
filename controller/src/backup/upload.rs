//! Putting a backup into the bucket, in Velero's order, and seeing what is there already.

use std::{
    fs::File,
    io::{self, Seek, Write},
    path::Path,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use jackline_crds::velero::Backup;
use jackline_runtime::{LeaderToken, NotLeader};
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use kube::ResourceExt;

use crate::sync::{self, ReadFileError};

/// Why something is not in the bucket.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The bucket says no.
    #[error(transparent)]
    Storage(#[from] jackline_storage::Error),
    /// Temporary files cannot be read.
    #[error("temporary files cannot be read")]
    Local(#[from] io::Error),
    /// Another leads now.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

/// What the bucket knows of a name.
pub(super) enum Existing {
    /// Nothing.
    None,
    /// This very backup, whole.
    Ours(Box<Backup>),
    /// Another backup.
    Foreign,
}

/// Looks whether a backup of this name is in the bucket.
pub(super) async fn existing(
    store: &dyn ObjectStore,
    name: &str,
    uid: &str,
) -> Result<Existing, UploadError> {
    match sync::read_backup(store, name).await {
        Ok(None) => Ok(Existing::None),
        Ok(Some(stored)) if stored.uid().as_deref() == Some(uid) => {
            Ok(Existing::Ours(Box::new(stored)))
        }
        Err(ReadFileError::Storage(error)) => Err(error.into()),
        // What is no Backup, or larger than one can be, has the name too.
        Ok(Some(_)) | Err(_) => Ok(Existing::Foreign),
    }
}

/// Whether a file of a backup is in the bucket.
pub(super) async fn has(
    store: &dyn ObjectStore,
    name: &str,
    file: BackupFile,
) -> Result<bool, UploadError> {
    let key = backup_object(name, file);
    Ok(store.head(&key).await?.is_some_and(|meta| meta.size > 0))
}

/// Puts the log of a backup there that has failed, unless a backup of this name is there: the log is that one's.
pub(super) async fn log_alone(
    store: &dyn ObjectStore,
    name: &str,
    uid: &str,
    log: File,
    scratch: &Path,
) -> Result<(), UploadError> {
    match existing(store, name, uid).await? {
        Existing::None => file(store, name, BackupFile::Log, log, scratch).await,
        Existing::Ours(_) | Existing::Foreign => Ok(()),
    }
}

/// Puts everything there but the Backup itself: the log first (it may be all that is left to explain a failure), then the tarball and
/// the rest.
pub(super) async fn all(
    store: &dyn ObjectStore,
    token: &LeaderToken,
    name: &str,
    scratch: &Path,
    log: File,
    tarball: File,
    small: Vec<(BackupFile, Bytes)>,
) -> Result<(), UploadError> {
    token.check()?;
    if let Err(error) = file(store, name, BackupFile::Log, log, scratch).await {
        tracing::warn!(%error, backup = name, "the log is not stored");
    }
    token.check()?;
    file(store, name, BackupFile::Contents, tarball, scratch).await?;
    token.check()?;
    let puts: Vec<BoxFuture<'_, _>> = small
        .into_iter()
        .map(|(file, content)| {
            async move { store.put(&backup_object(name, file), content).await }.boxed()
        })
        .collect();
    futures::future::try_join_all(puts).await?;
    Ok(())
}

/// Puts the Backup itself there, which makes it exist: once, at its end, and only where none is. So a leader that was stopped and
/// wakes up changes nothing, and a bucket with object lock keeps one version. `false`: there is one.
pub(super) async fn commit(
    store: &dyn ObjectStore,
    name: &str,
    backup: Bytes,
) -> Result<bool, UploadError> {
    let key = backup_object(name, BackupFile::Metadata);
    Ok(store.put_if_absent(&key, backup).await?)
}

/// Files up to this size are sent as they are.
const SMALL: u64 = 4 << 20;

async fn file(
    store: &dyn ObjectStore,
    name: &str,
    which: BackupFile,
    mut content: File,
    scratch: &Path,
) -> Result<(), UploadError> {
    let key = backup_object(name, which);
    content.rewind()?;
    if content.metadata()?.len() <= SMALL {
        let bytes = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut content, &mut bytes).map(|_| bytes)
        });
        let bytes = bytes.await.map_err(io::Error::other)??;
        return Ok(store.put(&key, bytes.into()).await?);
    }
    // A stream needs a name.
    let directory = scratch.to_owned();
    let named = tokio::task::spawn_blocking(move || {
        let mut named = tempfile::NamedTempFile::new_in(directory)?;
        io::copy(&mut content, named.as_file_mut())?;
        named.as_file_mut().flush()?;
        Ok::<_, io::Error>(named)
    });
    let named = named.await.map_err(io::Error::other)??;
    store.upload(&key, named.path()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jackline_crds::velero::BackupPhase;
    use jackline_storage::memory::MemoryStore;

    fn backup(uid: &str, phase: BackupPhase) -> Bytes {
        let mut backup = Backup::new("b", Default::default());
        backup.metadata.uid = Some(uid.to_owned());
        backup.status = Some(jackline_crds::velero::BackupStatus {
            phase: Some(phase),
            ..Default::default()
        });
        serde_json::to_vec(&backup).unwrap().into()
    }

    #[tokio::test]
    async fn a_name_belongs_to_one_backup_and_what_was_committed_stays() {
        let store = MemoryStore::new();
        assert!(matches!(
            existing(&store, "b", "u1").await.unwrap(),
            Existing::None
        ));
        let committed = async |backup| commit(&store, "b", backup).await.unwrap();
        assert!(committed(backup("u1", BackupPhase::Completed)).await);
        assert!(!committed(backup("u1", BackupPhase::PartiallyFailed)).await);
        assert!(!committed(backup("u2", BackupPhase::Completed)).await);
        match existing(&store, "b", "u1").await.unwrap() {
            Existing::Ours(stored) => assert_eq!(stored.phase(), BackupPhase::Completed),
            _ => panic!("it is there"),
        }
        assert!(matches!(
            existing(&store, "b", "u2").await.unwrap(),
            Existing::Foreign
        ));
        // No JSON, and what begins like ours and does not end.
        let mut long = backup("u1", BackupPhase::Completed).to_vec();
        long.resize(5 << 20, b' ');
        for taken in [Bytes::from_static(b"{"), Bytes::from(long)] {
            let key = "backups/b/velero-backup.json";
            store.put(key, taken).await.unwrap();
            assert!(matches!(
                existing(&store, "b", "u1").await.unwrap(),
                Existing::Foreign
            ));
        }
    }

    #[tokio::test]
    async fn a_failed_backup_leaves_its_log_and_none_where_another_is() {
        let (store, scratch) = (MemoryStore::new(), std::env::temp_dir());
        let log = || {
            let mut log = tempfile::tempfile().unwrap();
            log.write_all(b"why").unwrap();
            log
        };
        let leave = async || {
            log_alone(&store, "b", "u1", log(), &scratch).await.unwrap();
            store.get("backups/b/b-logs.gz").await.ok()
        };
        assert!(
            commit(&store, "b", backup("u2", BackupPhase::Completed))
                .await
                .unwrap()
        );
        assert_eq!(leave().await, None);
        store.delete("backups/b/velero-backup.json").await.unwrap();
        assert_eq!(leave().await.as_deref(), Some(&b"why"[..]));
    }

    #[tokio::test]
    async fn a_backup_without_its_tarball_is_told_from_a_whole_one() {
        let store = MemoryStore::new();
        for (content, expected) in [(None, false), (Some(""), false), (Some("x"), true)] {
            if let Some(content) = content {
                let content = Bytes::from_static(content.as_bytes());
                store.put("backups/b/b.tar.gz", content).await.unwrap();
            }
            assert_eq!(
                has(&store, "b", BackupFile::Contents).await.unwrap(),
                expected
            );
        }
    }

    #[tokio::test]
    async fn large_and_small_files_arrive_whole() {
        let store = MemoryStore::new();
        let scratch = std::env::temp_dir();
        for size in [10_usize, 5 << 20] {
            let mut content = tempfile::tempfile().unwrap();
            content.write_all(&vec![7; size]).unwrap();
            file(&store, "b", BackupFile::Contents, content, &scratch)
                .await
                .unwrap();
            let stored = store.get("backups/b/b.tar.gz").await.unwrap();
            assert_eq!(stored.len(), size);
        }
    }
}
