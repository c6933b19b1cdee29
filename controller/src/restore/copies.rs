//! Which copies of volumes a backup has.

use std::sync::Arc;

use jackline_crds::{
    names::{annotation, label, label_value},
    velero::{Backup, PodVolumeBackup, PodVolumePhase, UploaderType},
};
use jackline_policy::{
    elsewhere::{Elsewhere, Method},
    restore::volume::Copy,
};
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use kube::{ResourceExt, api::ListParams};

use crate::{context::Context, elsewhere, location::chain, sync};

/// The copies of a backup.
#[derive(Debug, Default)]
pub struct Copies {
    /// Those that can be restored.
    pub good: Vec<Copy>,
    /// Size in bytes by snapshot id, as far as it is known.
    pub sizes: std::collections::BTreeMap<String, i64>,
    /// What cannot be restored: namespace, and why.
    pub refused: Vec<(String, String)>,
    /// Snapshots of volumes that only a Velero can restore.
    pub elsewhere: Vec<Elsewhere>,
    /// Why it is not known which there are.
    pub unknown: Option<String>,
    /// Why the bucket's list, or a part of it, could not be read.
    pub unreadable: Option<String>,
    /// There is no list at all: every backup that is whole has one.
    pub absent: bool,
}

/// Finds the copies: the PodVolumeBackups in the cluster, and those that only the bucket's list has (a sync that was cut off, one
/// deleted by hand): a claim whose copy is overlooked would come back empty.
///
/// # Errors
/// When the API server does not answer, the bucket cannot be read, or its list is damaged and the cluster has none.
pub async fn of_backup(
    context: &Context,
    backup: &Backup,
    store: &dyn ObjectStore,
) -> Result<Copies, Failure> {
    // Not from the watch: it may have a volume unfinished that the bucket has whole.
    let label = label_value(&backup.name_any());
    let of_backup = ListParams::default().labels(&format!("{}={label}", label::BACKUP_NAME));
    let mut in_cluster: Vec<PodVolumeBackup> = context.fetch_all(&of_backup).await?;
    in_cluster.retain(|volume| !sync::is_of_old(&volume.metadata, backup));
    let in_cluster: Vec<Arc<PodVolumeBackup>> = in_cluster.into_iter().map(Arc::new).collect();
    let mut copies = Copies::default();
    let stored = match sync::stored_pod_volumes(store, &backup.name_any()).await {
        Ok(stored) => {
            copies.absent = stored.is_none();
            let stored = stored.unwrap_or_default();
            copies.unreadable = stored.doubt();
            stored.volumes
        }
        Err(error) if error.is_damage() && !in_cluster.is_empty() => {
            copies.unreadable = Some(chain(&error));
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    for volume in sync::missing(&in_cluster, stored) {
        copies.add(volume);
    }
    for volume in in_cluster {
        copies.add(Arc::unwrap_or_clone(volume));
    }
    match elsewhere::in_bucket(store, &backup.name_any()).await {
        Ok(found) => copies.elsewhere = found.unwrap_or_default(),
        Err(error) if error.is_damage() => copies.unknown = Some(chain(&error)),
        Err(error) => return Err(error.into()),
    }
    // Of kopia's the PodVolumeBackups tell.
    copies.elsewhere.retain(|copy| copy.method != Method::Kopia);
    Ok(copies)
}

impl Copies {
    fn add(&mut self, volume: PodVolumeBackup) {
        let status = volume.status.clone().unwrap_or_default();
        let namespace = volume.spec.pod.namespace.clone().unwrap_or_default();
        let pod = volume.spec.pod.name.clone().unwrap_or_default();
        let what = format!("volume {} of pod {namespace}/{pod}", volume.spec.volume);
        let id = status.snapshot_id.clone().filter(|id| !id.is_empty());
        let completed = volume.phase() == PodVolumePhase::Completed;
        let Some(snapshot) = id else {
            if !completed {
                let why = status
                    .message
                    .unwrap_or_else(|| "it was not finished".to_owned());
                self.refused
                    .push((namespace, format!("{what} has no backup: {why}")));
            }
            return;
        };
        if !completed {
            self.refused.push((
                namespace,
                format!(
                    "the backup of {what} is incomplete and is not restored (snapshot {snapshot})"
                ),
            ));
            return;
        }
        if volume.spec.uploader_type == UploaderType::Kopia {
            self.refused.push((
                namespace,
                format!(
                    "{what} was backed up with kopia, which is not supported: it is not restored"
                ),
            ));
            return;
        }
        if let Some(progress) = &status.progress {
            self.sizes.insert(snapshot.clone(), progress.total_bytes);
        }
        self.good.push(Copy {
            namespace,
            pod,
            claim: volume.annotations().get(annotation::PVC_NAME).cloned(),
            claim_uid: volume.labels().get(label::PVC_UID).cloned(),
            volume: volume.spec.volume,
            snapshot,
            finished: status
                .completion_timestamp
                .map(|time| time.0.to_string())
                .unwrap_or_default(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::context::unwatched;
    use flate2::{Compression, write::GzEncoder};
    use jackline_runtime::Store;
    use jackline_storage::{
        layout::{BackupFile, backup_object},
        memory::MemoryStore,
    };
    use serde_json::json;

    fn volume(status: serde_json::Value, uploader: &str) -> PodVolumeBackup {
        serde_json::from_value(json!({
            "metadata": {"name": "b-1", "labels": {"velero.io/pvc-uid": "u"}, "annotations": {"velero.io/pvc-name": "c"}},
            "spec": {"node": "n", "pod": {"namespace": "shop", "name": "db-0"}, "volume": "data", "backupStorageLocation": "d",
                "repoIdentifier": "r", "uploaderType": uploader},
            "status": status
        }))
        .unwrap()
    }

    #[test]
    fn only_whole_restic_copies_are_good() {
        let mut copies = Copies::default();
        let good = json!({"phase": "Completed", "snapshotID": "ab12", "progress": {"totalBytes": 7, "bytesDone": 7}});
        copies.add(volume(good.clone(), "restic"));
        copies.add(volume(
            json!({"phase": "Completed", "message": "volume was empty"}),
            "restic",
        ));
        copies.add(volume(
            json!({"phase": "Failed", "snapshotID": "cd34"}),
            "restic",
        ));
        copies.add(volume(
            json!({"phase": "Failed", "message": "disk on fire"}),
            "restic",
        ));
        copies.add(volume(good, "kopia"));
        assert_eq!(copies.good.len(), 1);
        assert_eq!(copies.good[0].claim.as_deref(), Some("c"));
        assert_eq!(copies.good[0].claim_uid.as_deref(), Some("u"));
        assert_eq!(copies.sizes["ab12"], 7);
        let reasons: Vec<&str> = copies.refused.iter().map(|(_, why)| why.as_str()).collect();
        assert_eq!(reasons.len(), 3);
        assert!(
            reasons[0].contains("incomplete")
                && reasons[1].contains("disk on fire")
                && reasons[2].contains("kopia")
        );
    }

    #[tokio::test]
    async fn what_the_watch_has_unfinished_is_as_the_api_server_and_the_bucket_have_it() {
        let named = |name: &str, pod: &str, phase: &str, owner: &str| {
            let status = json!({"phase": phase, "snapshotID": phase});
            let mut volume = volume(status, "restic");
            volume.metadata.name = Some(name.to_owned());
            volume.metadata.namespace = Some("velero".to_owned());
            volume.metadata.labels =
                Some([("velero.io/backup-name".to_owned(), "b".to_owned())].into());
            volume.spec.pod.name = Some(pod.to_owned());
            let owner = json!([{"apiVersion": "velero.io/v1", "kind": "Backup", "name": "b", "uid": owner}]);
            volume.metadata.owner_references = serde_json::from_value(owner).unwrap();
            volume
        };
        let value = |volume: PodVolumeBackup| serde_json::to_value(volume).unwrap();
        let here = [
            value(named("b-1", "db-0", "Completed", "new")),
            // The garbage collector has not come yet.
            value(named("b-2", "db-1", "InProgress", "old")),
            json!({"metadata": {"name": "b-3"}, "spec": 7}),
        ];
        let all = unwatched::all("podvolumebackups");
        let objects = [(&*all, unwatched::list(&here))];
        let mut context = unwatched::context(&objects);
        let stores = &mut Arc::get_mut(&mut context).unwrap().stores;
        stores.pod_volume_backups = Store::fixed([named("b-1", "db-0", "InProgress", "new")]);
        let store = MemoryStore::new();
        let key = backup_object("b", BackupFile::PodVolumeBackups);
        let stored = json!([value(named("b-2", "db-1", "Completed", "new"))]);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(stored.to_string().as_bytes()).unwrap();
        store
            .put(&key, encoder.finish().unwrap().into())
            .await
            .unwrap();
        let mut backup = Backup::new("b", Default::default());
        backup.metadata.uid = Some("new".to_owned());
        let copies = of_backup(&context, &backup, &store).await.unwrap();
        assert_eq!(copies.refused, []);
        let mut pods: Vec<_> = copies.good.iter().map(|copy| copy.pod.as_str()).collect();
        pods.sort_unstable();
        assert_eq!(pods, ["db-0", "db-1"]);
    }
}
