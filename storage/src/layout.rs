//! Names of the objects that Velero keeps in a bucket, relative to the location's prefix.

use strum::{Display, EnumIter, EnumString};

use crate::{Error, Listing, ObjectStore, Result};

/// The only first-level directories that Velero accepts; anything else makes it refuse the bucket.
pub const TOP_LEVEL: [&str; 6] = [
    "backups", "restores", "restic", "kopia", "metadata", "plugins",
];

/// A file of a backup. Text form: the target kinds of a DownloadRequest, and two of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumString, EnumIter)]
pub enum BackupFile {
    /// The Backup object; its presence means that the backup exists. Not compressed.
    Metadata,
    /// The tarball of resources.
    #[strum(serialize = "BackupContents")]
    Contents,
    /// The log.
    #[strum(serialize = "BackupLog")]
    Log,
    /// The PodVolumeBackup objects.
    PodVolumeBackups,
    /// Native snapshots.
    #[strum(serialize = "BackupVolumeSnapshots")]
    VolumeSnapshots,
    /// Asynchronous operations of plugins.
    #[strum(serialize = "BackupItemOperations")]
    ItemOperations,
    /// Kinds and names of what was backed up.
    #[strum(serialize = "BackupResourceList")]
    ResourceList,
    /// Warnings and errors.
    #[strum(serialize = "BackupResults")]
    Results,
    /// How each volume was backed up.
    #[strum(serialize = "BackupVolumeInfos")]
    VolumeInfo,
    /// CSI VolumeSnapshots.
    #[strum(serialize = "CSIBackupVolumeSnapshots")]
    CsiVolumeSnapshots,
    /// CSI VolumeSnapshotContents.
    #[strum(serialize = "CSIBackupVolumeSnapshotContents")]
    CsiVolumeSnapshotContents,
    /// CSI VolumeSnapshotClasses.
    #[strum(serialize = "CSIBackupVolumeSnapshotClasses")]
    CsiVolumeSnapshotClasses,
}

/// A file of a restore. Text form: the target kinds of a DownloadRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, EnumString, EnumIter)]
pub enum RestoreFile {
    /// The log.
    #[strum(serialize = "RestoreLog")]
    Log,
    /// Warnings and errors.
    #[strum(serialize = "RestoreResults")]
    Results,
    /// Kinds and names of what was created, updated, skipped, failed.
    #[strum(serialize = "RestoreResourceList")]
    ResourceList,
    /// Asynchronous operations of plugins.
    #[strum(serialize = "RestoreItemOperations")]
    ItemOperations,
    /// How each volume was restored.
    #[strum(serialize = "RestoreVolumeInfo")]
    VolumeInfo,
}

/// The directory of all files of a backup.
pub fn backup_directory(backup: &str) -> String {
    format!("backups/{backup}")
}

/// The key of one file of a backup.
pub fn backup_object(backup: &str, file: BackupFile) -> String {
    let directory = backup_directory(backup);
    let suffix = match file {
        BackupFile::Metadata => return format!("{directory}/velero-backup.json"),
        BackupFile::Contents => ".tar.gz",
        BackupFile::Log => "-logs.gz",
        BackupFile::PodVolumeBackups => "-podvolumebackups.json.gz",
        BackupFile::VolumeSnapshots => "-volumesnapshots.json.gz",
        BackupFile::ItemOperations => "-itemoperations.json.gz",
        BackupFile::ResourceList => "-resource-list.json.gz",
        BackupFile::Results => "-results.gz",
        BackupFile::VolumeInfo => "-volumeinfo.json.gz",
        BackupFile::CsiVolumeSnapshots => "-csi-volumesnapshots.json.gz",
        BackupFile::CsiVolumeSnapshotContents => "-csi-volumesnapshotcontents.json.gz",
        BackupFile::CsiVolumeSnapshotClasses => "-csi-volumesnapshotclasses.json.gz",
    };
    format!("{directory}/{backup}{suffix}")
}

/// The directory of all files of a restore.
pub fn restore_directory(restore: &str) -> String {
    format!("restores/{restore}")
}

/// The key of one file of a restore. The volume info alone lacks the `restore-` in its name.
pub fn restore_object(restore: &str, file: RestoreFile) -> String {
    let directory = restore_directory(restore);
    match file {
        RestoreFile::Log => format!("{directory}/restore-{restore}-logs.gz"),
        RestoreFile::Results => format!("{directory}/restore-{restore}-results.gz"),
        RestoreFile::ResourceList => format!("{directory}/restore-{restore}-resource-list.json.gz"),
        RestoreFile::ItemOperations => {
            format!("{directory}/restore-{restore}-itemoperations.json.gz")
        }
        RestoreFile::VolumeInfo => format!("{directory}/{restore}-volumeinfo.json.gz"),
    }
}

/// The restic repository of a namespace (the namespace at backup time, also for mapped restores).
pub fn restic_directory(namespace: &str) -> String {
    format!("restic/{namespace}")
}

/// Names of the directories in `backups/`, sorted. A name counts as a backup only when its
/// [`BackupFile::Metadata`] exists.
pub async fn backup_names(store: &dyn ObjectStore) -> Result<Vec<String>> {
    let listing = store.list_level("backups").await?;
    let names = listing.prefixes.iter().filter_map(|prefix| {
        let name = prefix.strip_prefix("backups/")?.strip_suffix('/')?;
        (!name.is_empty()).then(|| name.to_owned())
    });
    Ok(names.collect())
}

/// Lists the root, as Velero does to validate a location: proves access, and refuses a bucket that
/// holds directories of somebody else, in Velero's words.
pub async fn validate(store: &dyn ObjectStore) -> Result<()> {
    match foreign_directories(&store.list_level("").await?) {
        None => Ok(()),
        Some(found) => {
            let message = format!("Backup store contains invalid top-level directories: {found}");
            Err(Error::config(store.location(), message))
        }
    }
}

/// The first three directories that do not belong here, as `[a b c ...]`.
fn foreign_directories(root: &Listing) -> Option<String> {
    let names = root
        .prefixes
        .iter()
        .map(|prefix| prefix.trim_end_matches('/'));
    let mut foreign: Vec<&str> = names.filter(|name| !TOP_LEVEL.contains(name)).collect();
    if foreign.len() > 3 {
        foreign.truncate(3);
        foreign.push("...");
    }
    (!foreign.is_empty()).then(|| format!("[{}]", foreign.join(" ")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::memory::MemoryStore;

    #[test]
    fn names_are_those_that_velero_writes() {
        let b = |file| backup_object("b", file);
        assert_eq!(b(BackupFile::Metadata), "backups/b/velero-backup.json");
        assert_eq!(b(BackupFile::Contents), "backups/b/b.tar.gz");
        assert_eq!(b(BackupFile::Log), "backups/b/b-logs.gz");
        assert_eq!(b(BackupFile::Results), "backups/b/b-results.gz");
        assert_eq!(b(BackupFile::VolumeInfo), "backups/b/b-volumeinfo.json.gz");
        let r = |file| restore_object("r", file);
        assert_eq!(r(RestoreFile::Log), "restores/r/restore-r-logs.gz");
        assert_eq!(
            r(RestoreFile::VolumeInfo),
            "restores/r/r-volumeinfo.json.gz"
        );
        assert_eq!("BackupLog".parse(), Ok(BackupFile::Log));
        assert_eq!(
            "CSIBackupVolumeSnapshots".parse(),
            Ok(BackupFile::CsiVolumeSnapshots)
        );
    }

    #[tokio::test]
    async fn a_bucket_with_directories_of_others_is_refused_in_veleros_words() {
        let store = MemoryStore::new();
        for key in [
            "backups/a/velero-backup.json",
            "restic/ns/config",
            "README",
            "metadata/revision",
        ] {
            store.put(key, Bytes::new()).await.unwrap();
        }
        validate(&store).await.unwrap();
        for name in ["w", "x", "y", "z"] {
            store.put(&format!("{name}/1"), Bytes::new()).await.unwrap();
        }
        let message = validate(&store).await.unwrap_err().to_string();
        assert!(
            message.ends_with("invalid top-level directories: [w x y ...]"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn backups_are_the_directories_below_backups() {
        let store = MemoryStore::new();
        for key in [
            "backups/b/velero-backup.json",
            "backups/a/a-logs.gz",
            "backups/plain",
        ] {
            store.put(key, Bytes::new()).await.unwrap();
        }
        assert_eq!(backup_names(&store).await.unwrap(), ["a", "b"]);
    }
}
