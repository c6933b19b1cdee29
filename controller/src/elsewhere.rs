//! Which copies of volumes a backup has that only a Velero can restore or delete.

use jackline_crds::{
    names::annotation,
    velero::{Backup, PodVolumeBackup, UploaderType},
};
use jackline_policy::elsewhere::{CsiSnapshot, Elsewhere, Method, NativeSnapshot, VolumeInfo};
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use kube::ResourceExt;

use crate::{
    context::Context,
    sync::{self, ReadFileError, read_list},
};

/// Whether the cluster itself says that a backup has such copies, and nobody that they may stay behind: its deletion would be refused.
/// No bucket is asked.
pub fn keeps(context: &Context, backup: &Backup) -> bool {
    let is_known = || {
        counted(backup) > 0
            || sync::pod_volumes(context, backup)
                .iter()
                .any(|volume| is_of_kopia(volume))
    };
    !may_stay(backup) && is_known()
}

/// Whether somebody has said that they may stay behind when the backup goes.
pub fn may_stay(backup: &Backup) -> bool {
    let said = backup.annotations().get(annotation::LEAVE_SNAPSHOTS);
    said.is_some_and(|said| said == "true")
}

/// How many snapshots the Backup's own status counts. The data mover's are operations.
pub fn counted(backup: &Backup) -> i32 {
    let status = backup.status.as_ref();
    status.map_or(0, |status| {
        status.volume_snapshots_completed
            + status.csi_volume_snapshots_completed
            + status.backup_item_operations_completed
    })
}

/// The copies that a list of PodVolumeBackups names.
pub fn in_list<'a>(
    volumes: impl IntoIterator<Item = &'a PodVolumeBackup>,
) -> impl Iterator<Item = Elsewhere> {
    let copies = volumes.into_iter().filter(|volume| is_of_kopia(volume));
    copies.map(|volume| Elsewhere {
        namespace: volume.spec.pod.namespace.clone().unwrap_or_default(),
        claim: volume.annotations().get(annotation::PVC_NAME).cloned(),
        volume: volume.spec.volume.clone(),
        method: Method::Kopia,
        failed: false,
    })
}

fn is_of_kopia(volume: &PodVolumeBackup) -> bool {
    let id = volume.status.as_ref().and_then(|s| s.snapshot_id.as_ref());
    volume.spec.uploader_type == UploaderType::Kopia && id.is_some_and(|id| !id.is_empty())
}

/// The copies that the backup's files tell of; `None` where no file does. A Velero before 1.13 wrote no volume info.
///
/// # Errors
/// When a file cannot be read or is not what it should be.
pub async fn in_bucket(
    store: &dyn ObjectStore,
    backup: &str,
) -> Result<Option<Vec<Elsewhere>>, ReadFileError> {
    let key = |file| backup_object(backup, file);
    let infos = read_list::<VolumeInfo>(store, &key(BackupFile::VolumeInfo)).await?;
    if let Some(infos) = infos {
        let found = infos.into_iter().filter_map(VolumeInfo::elsewhere);
        return Ok(Some(found.collect()));
    }
    let native = read_list::<NativeSnapshot>(store, &key(BackupFile::VolumeSnapshots)).await?;
    let csi = read_list::<CsiSnapshot>(store, &key(BackupFile::CsiVolumeSnapshots)).await?;
    if native.is_none() && csi.is_none() {
        return Ok(None);
    }
    let native = native.into_iter().flatten().map(NativeSnapshot::elsewhere);
    let csi = csi.into_iter().flatten().map(CsiSnapshot::elsewhere);
    Ok(Some(native.chain(csi).collect()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use jackline_storage::memory::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn an_older_list_counts_where_there_is_no_volume_info() {
        let store = MemoryStore::new();
        let write = async |file, text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            let packed = encoder.finish().unwrap();
            store
                .put(&backup_object("b", file), packed.into())
                .await
                .unwrap();
        };
        let found = async || -> Option<Vec<String>> {
            let found = in_bucket(&store, "b").await.unwrap()?;
            Some(found.iter().map(Elsewhere::what).collect())
        };
        assert_eq!(found().await, None);
        write(BackupFile::CsiVolumeSnapshots, "null").await;
        assert_eq!(found().await, Some(Vec::new()));
        let native =
            r#"[{"spec": {"persistentVolumeName": "pv-1"}, "status": {"phase": "Completed"}}]"#;
        write(BackupFile::VolumeSnapshots, native).await;
        assert_eq!(
            found().await,
            Some(vec!["native snapshot of volume pv-1".to_owned()])
        );
        let info = r#"[{"backupMethod": "CSISnapshot", "pvcName": "c", "pvcNamespace": "shop", "pvName": "pv-1"}]"#;
        write(BackupFile::VolumeInfo, info).await;
        assert_eq!(
            found().await,
            Some(vec!["CSI snapshot of claim shop/c".to_owned()])
        );
    }
}
