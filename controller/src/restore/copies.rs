//! Which copies of volumes a backup has.

use jackline_crds::{
    names::{annotation, label},
    velero::{Backup, PodVolumeBackup, PodVolumePhase, UploaderType},
};
use jackline_policy::{
    elsewhere::{Elsewhere, Method},
    restore::volume::Copy,
};
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use kube::ResourceExt;

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
/// When the bucket cannot be read, or its list is damaged and the cluster has none.
pub async fn of_backup(
    context: &Context,
    backup: &Backup,
    store: &dyn ObjectStore,
) -> Result<Copies, Failure> {
    let in_cluster = sync::pod_volumes(context, backup);
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
        copies.add((*volume).clone());
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
    use super::*;
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
}
