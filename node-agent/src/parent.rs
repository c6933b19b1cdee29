//! Which snapshot a volume is compared with, so that unchanged files are not read again (design §5).
//!
//! By the claim's identity, never by host and path: a pod that was replaced or moved mounts the same data under another path. First the
//! newest completed PodVolumeBackup of the claim in the same location, then the newest snapshot in the repository that carries the
//! claim's UID (objects may have been deleted). A restored claim carries the UID of the claim that its data came from. A volume without
//! a claim is compared with earlier snapshots of the same volume of the same pod.

use jackline_crds::{
    names::label,
    velero::{Backup, PodVolumeBackup, PodVolumePhase},
};
use jackline_repository::{Repository, SnapshotId, SnapshotInfo};
use jackline_runtime::Failure;
use kube::{Resource, api::ListParams};

use crate::context::Context;

/// What identifies a volume's data over time: the claims' UIDs in the order they are asked for, or the pod's UID and the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    Claims(Vec<String>),
    PodVolume { pod_uid: String, volume: String },
}

impl Identity {
    pub fn of(backup: &PodVolumeBackup) -> Self {
        let labels = backup.metadata.labels.as_ref();
        let annotations = backup.metadata.annotations.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned();
        let own = label(label::PVC_UID).or_else(|| backup.spec.tags.get("pvc-uid").cloned());
        let ancestor = label(label::ANCESTOR_CLAIM_UID).or_else(|| {
            annotations
                .and_then(|a| a.get(label::ANCESTOR_CLAIM_UID))
                .cloned()
        });
        let claims: Vec<String> = [own, ancestor]
            .into_iter()
            .flatten()
            .filter(|uid| !uid.is_empty())
            .collect();
        if claims.is_empty() {
            Self::PodVolume {
                pod_uid: backup.spec.pod.uid.clone().unwrap_or_default(),
                volume: backup.spec.volume.clone(),
            }
        } else {
            Self::Claims(claims)
        }
    }

    /// Whether a snapshot holds earlier data of the volume, and of which rank (0 = the claim itself).
    fn rank(&self, info: &SnapshotInfo) -> Option<usize> {
        match self {
            Self::Claims(uids) => {
                let tag = info.snapshot.tag("pvc-uid")?;
                uids.iter().position(|uid| uid == tag)
            }
            Self::PodVolume { pod_uid, volume } => {
                let same = info.snapshot.tag("pod-uid") == Some(pod_uid)
                    && info.snapshot.tag("volume") == Some(volume);
                same.then_some(0)
            }
        }
    }
}

/// The newest snapshot of best rank.
pub(crate) fn newest(identity: &Identity, snapshots: &[SnapshotInfo]) -> Option<SnapshotId> {
    let ranked = snapshots
        .iter()
        .filter_map(|info| Some((identity.rank(info)?, info)));
    let best = ranked.min_by_key(|(rank, info)| (*rank, std::cmp::Reverse(info.snapshot.time)));
    best.map(|(_, info)| info.id)
}

/// The UIDs of the Backups that an object says to belong to.
fn named(backup: &PodVolumeBackup) -> impl Iterator<Item = &str> {
    let metadata = &backup.metadata;
    let owners = metadata.owner_references.iter().flatten();
    let owners = owners.filter(|owner| owner.kind == Backup::kind(&()));
    let labels = metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(label::BACKUP_UID));
    owners
        .map(|owner| owner.uid.as_str())
        .chain(label.map(String::as_str))
}

fn backup_uid(backup: &PodVolumeBackup) -> Option<&str> {
    let uid = backup.spec.tags.get("backup-uid").map(String::as_str);
    uid.filter(|uid| !uid.is_empty())
}

/// Why an object is not to be worked on: its Backup and its tags speak of different backups. So is what was taken over from a bucket,
/// where anybody may have written it, for the Backup has another UID here. What names no Backup was made by hand.
pub(crate) fn taken_over(backup: &PodVolumeBackup) -> Option<String> {
    let tag = backup_uid(backup);
    let other = named(backup).find(|uid| Some(*uid) != tag)?;
    let tag = tag.unwrap_or_default();
    Some(format!(
        "it belongs to the Backup of UID {other:?}, and its tag backup-uid is {tag:?}: only what a backup of this cluster asks for is \
         backed up"
    ))
}

/// Snapshots that an interrupted run of this very PodVolumeBackup left behind. None are of what was made by hand: its tags may say
/// anything.
pub(crate) fn leftovers(backup: &PodVolumeBackup, snapshots: &[SnapshotInfo]) -> Vec<SnapshotId> {
    let pod_uid = backup.spec.pod.uid.as_deref();
    let (Some(uid), Some(pod_uid)) = (backup_uid(backup), pod_uid) else {
        return Vec::new();
    };
    if named(backup).next().is_none() || taken_over(backup).is_some() {
        return Vec::new();
    }
    snapshots
        .iter()
        .filter(|info| {
            info.snapshot.tag("backup-uid") == Some(uid)
                && info.snapshot.tag("pod-uid") == Some(pod_uid)
                && info.snapshot.tag("volume") == Some(backup.spec.volume.as_str())
        })
        .map(|info| info.id)
        .collect()
}

/// The parent of a volume's backup.
pub(crate) async fn find(
    context: &Context,
    repository: &Repository,
    backup: &PodVolumeBackup,
    snapshots: &[SnapshotInfo],
) -> Result<Option<SnapshotId>, Failure> {
    if let Some(wish) = backup
        .spec
        .parent_snapshot
        .as_deref()
        .filter(|wish| *wish != "auto")
    {
        if wish == "none" {
            return Ok(None);
        }
        return Ok(repository.resolve(wish).await.ok());
    }
    let identity = Identity::of(backup);
    if let Identity::Claims(uids) = &identity {
        for uid in uids {
            let params = ListParams::default().labels(&format!("{}={uid}", label::PVC_UID));
            let earlier = context.api::<PodVolumeBackup>().list(&params).await?.items;
            for id in candidates(backup, earlier) {
                // A snapshot that was forgotten meanwhile is passed over.
                if let Some(info) = snapshots
                    .iter()
                    .find(|info| info.id.to_hex().starts_with(&id))
                {
                    return Ok(Some(info.id));
                }
            }
        }
    }
    Ok(newest(&identity, snapshots))
}

/// Snapshot ids of the claim's completed backups in the same location, newest first.
fn candidates(backup: &PodVolumeBackup, earlier: Vec<PodVolumeBackup>) -> Vec<String> {
    let mut completed: Vec<_> = earlier
        .into_iter()
        .filter(|other| {
            other.phase() == PodVolumePhase::Completed
                && other.spec.backup_storage_location == backup.spec.backup_storage_location
                && other.spec.pod.namespace == backup.spec.pod.namespace
        })
        .filter_map(|other| {
            let status = other.status?;
            let started = status.start_timestamp.map(|time| time.0);
            Some((started, status.snapshot_id.filter(|id| !id.is_empty())?))
        })
        .collect();
    completed.sort_by_key(|(started, _)| std::cmp::Reverse(*started));
    completed.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn snapshot(id: u8, time: &str, tags: &[&str]) -> SnapshotInfo {
        serde_json::from_value::<jackline_repository::Snapshot>(json!({
            "time": time, "tree": "00".repeat(32), "paths": ["/p"], "tags": tags,
        }))
        .map(|snapshot| SnapshotInfo {
            id: serde_json::from_value(json!(format!("{id:02x}").repeat(32))).unwrap(),
            snapshot,
        })
        .unwrap()
    }

    fn backup(labels: serde_json::Value, tags: serde_json::Value) -> PodVolumeBackup {
        serde_json::from_value(json!({
            "apiVersion": "velero.io/v1", "kind": "PodVolumeBackup",
            "metadata": {"name": "b-1", "labels": labels},
            "spec": {
                "node": "n1", "pod": {"namespace": "ns", "name": "web", "uid": "pod1"}, "volume": "data",
                "backupStorageLocation": "default", "repoIdentifier": "", "tags": tags,
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_claim_itself_comes_before_its_ancestor_and_the_newest_first() {
        let identity = Identity::of(&backup(
            json!({"velero.io/pvc-uid": "c2", "jackline.dev/ancestor-claim-uid": "c1"}),
            json!({}),
        ));
        let old = snapshot(1, "2026-01-01T00:00:00Z", &["pvc-uid=c2"]);
        let new = snapshot(2, "2026-01-02T00:00:00Z", &["pvc-uid=c2"]);
        let ancestor = snapshot(3, "2026-01-03T00:00:00Z", &["pvc-uid=c1"]);
        let other = snapshot(4, "2026-01-04T00:00:00Z", &["pvc-uid=c9"]);
        let all = [old.clone(), new.clone(), ancestor.clone(), other];
        assert_eq!(newest(&identity, &all), Some(new.id));
        assert_eq!(newest(&identity, &all[2..]), Some(ancestor.id));
        assert_eq!(newest(&identity, &all[3..]), None);
    }

    #[test]
    fn without_a_claim_the_same_volume_of_the_same_pod_counts() {
        let identity = Identity::of(&backup(json!({}), json!({})));
        let same = snapshot(1, "2026-01-01T00:00:00Z", &["pod-uid=pod1", "volume=data"]);
        let sibling = snapshot(2, "2026-01-02T00:00:00Z", &["pod-uid=pod1", "volume=cache"]);
        assert_eq!(newest(&identity, &[same.clone(), sibling]), Some(same.id));
    }

    #[test]
    fn leftovers_are_only_of_this_very_backup() {
        let label = json!({"velero.io/backup-uid": "b1"});
        let backup = backup(label, json!({"backup-uid": "b1"}));
        let own = snapshot(
            1,
            "2026-01-01T00:00:00Z",
            &["backup-uid=b1", "pod-uid=pod1", "volume=data"],
        );
        let others = [
            snapshot(
                2,
                "2026-01-01T00:00:00Z",
                &["backup-uid=b0", "pod-uid=pod1", "volume=data"],
            ),
            snapshot(
                3,
                "2026-01-01T00:00:00Z",
                &["backup-uid=b1", "pod-uid=pod2", "volume=data"],
            ),
            snapshot(
                4,
                "2026-01-01T00:00:00Z",
                &["backup-uid=b1", "pod-uid=pod1", "volume=cache"],
            ),
        ];
        let mut all = others.to_vec();
        all.push(own.clone());
        assert_eq!(leftovers(&backup, &all), [own.id]);
        let untagged = self::backup(json!({}), json!({}));
        assert!(leftovers(&untagged, &all).is_empty());
    }

    /// Labels and tags that speak of these backups.
    fn of(label: Option<&str>, tag: Option<&str>) -> PodVolumeBackup {
        let entry = |key: &str, uid: Option<&str>| uid.map_or(json!({}), |uid| json!({key: uid}));
        backup(
            entry("velero.io/backup-uid", label),
            entry("backup-uid", tag),
        )
    }

    fn owned(mut backup: PodVolumeBackup, kind: &str, uid: &str) -> PodVolumeBackup {
        backup.metadata.owner_references = serde_json::from_value(json!([
            {"apiVersion": "velero.io/v1", "kind": kind, "name": "b", "uid": uid}
        ]))
        .unwrap();
        backup
    }

    #[test]
    fn what_was_taken_over_from_a_bucket_is_not_begun() {
        let ours = of(Some("b1"), Some("b1"));
        assert_eq!(taken_over(&owned(ours.clone(), "Backup", "b1")), None);
        assert_eq!(taken_over(&ours), None);
        // By hand.
        assert_eq!(taken_over(&of(None, Some("anything"))), None);
        assert_eq!(taken_over(&owned(of(None, Some("b1")), "Pod", "p1")), None);
        for foreign in [
            of(Some("here"), Some("b1")),
            of(Some("here"), None),
            of(Some("here"), Some("")),
            owned(of(None, Some("b1")), "Backup", "here"),
            owned(ours, "Backup", "here"),
        ] {
            let why = taken_over(&foreign).unwrap();
            assert!(why.contains("the Backup of UID \"here\""), "{why}");
        }
    }

    #[test]
    fn tags_alone_make_no_snapshot_a_leftover() {
        let tags = ["backup-uid=b1", "pod-uid=pod1", "volume=data"];
        let all = [snapshot(1, "2026-01-01T00:00:00Z", &tags)];
        assert_eq!(leftovers(&of(Some("b1"), Some("b1")), &all).len(), 1);
        assert_eq!(leftovers(&of(None, Some("b1")), &all), []);
        assert_eq!(leftovers(&of(Some("here"), Some("b1")), &all), []);
    }

    #[test]
    fn candidates_are_completed_ones_of_the_same_place_newest_first() {
        let mine = backup(json!({}), json!({}));
        let make = |phase: &str, location: &str, id: &str, start: &str| -> PodVolumeBackup {
            let mut other = mine.clone();
            other.spec.backup_storage_location = location.to_owned();
            other.status = serde_json::from_value(
                json!({"phase": phase, "snapshotID": id, "startTimestamp": start}),
            )
            .unwrap();
            other
        };
        let earlier = vec![
            make("Completed", "default", "aa", "2026-01-01T00:00:00Z"),
            make("Completed", "default", "bb", "2026-01-03T00:00:00Z"),
            make("Failed", "default", "cc", "2026-01-04T00:00:00Z"),
            make("Completed", "other", "dd", "2026-01-05T00:00:00Z"),
            make("Completed", "default", "", "2026-01-06T00:00:00Z"),
        ];
        assert_eq!(candidates(&mine, earlier), ["bb", "aa"]);
    }
}
