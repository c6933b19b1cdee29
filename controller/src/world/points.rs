//! Recovery points by volume, from PodVolumeBackups.

use std::collections::{BTreeSet, HashMap};

use jackline_crds::names::{annotation, label};
use jackline_crds::velero::{PodVolumeBackup, PodVolumePhase};
use jackline_runtime::{Change, Key};
use jiff::Timestamp;

use super::view::pod_lineage;

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Name of the PodVolumeBackup.
    pub name: String,
    pub lineage: String,
    pub backup: String,
    pub location: String,
    pub time: Timestamp,
    pub bytes: i64,
    /// When the volume was first missed, as recorded on the PodVolumeBackup.
    pub gone_since: Option<Timestamp>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Points {
    by_name: HashMap<Key, Point>,
    by_lineage: HashMap<String, BTreeSet<(Timestamp, Key)>>,
    by_backup: HashMap<String, BTreeSet<Key>>,
}

/// Under which a PodVolumeBackup's volume is known: the claim that its claim descends from, its claim, else pod and volume.
fn lineage(object: &PodVolumeBackup) -> String {
    let metadata = &object.metadata;
    let get = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
        map.as_ref()
            .and_then(|map| map.get(key))
            .filter(|value| !value.is_empty())
            .cloned()
    };
    get(&metadata.labels, label::ANCESTOR_CLAIM_UID)
        .or_else(|| get(&metadata.annotations, annotation::ANCESTOR_CLAIM_UID))
        .or_else(|| get(&metadata.labels, label::PVC_UID))
        .unwrap_or_else(|| {
            let pod = &object.spec.pod;
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            pod_lineage(&text(&pod.namespace), &text(&pod.name), &object.spec.volume)
        })
}

fn point(object: &PodVolumeBackup) -> Option<Point> {
    let status = object.status.as_ref()?;
    let has_snapshot = status
        .snapshot_id
        .as_deref()
        .is_some_and(|id| !id.is_empty());
    if object.phase() != PodVolumePhase::Completed || !has_snapshot {
        return None;
    }
    let metadata = &object.metadata;
    let created = metadata.creation_timestamp.as_ref();
    Some(Point {
        name: metadata.name.clone()?,
        lineage: lineage(object),
        backup: metadata.labels.as_ref()?.get(label::BACKUP_NAME)?.clone(),
        location: object.spec.backup_storage_location.clone(),
        time: status.start_timestamp.as_ref().or(created)?.0,
        bytes: status
            .progress
            .as_ref()
            .map_or(0, |progress| progress.total_bytes),
        gone_since: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(annotation::VOLUME_GONE_SINCE))
            .and_then(|since| since.parse().ok()),
    })
}

impl Points {
    /// Takes a change of a PodVolumeBackup in.
    pub fn change(&mut self, change: &Change<PodVolumeBackup>) {
        if let Some(old) = self.by_name.remove(&change.key) {
            if let Some(points) = self.by_lineage.get_mut(&old.lineage) {
                points.remove(&(old.time, change.key.clone()));
                if points.is_empty() {
                    self.by_lineage.remove(&old.lineage);
                }
            }
            if let Some(points) = self.by_backup.get_mut(&old.backup) {
                points.remove(&change.key);
                if points.is_empty() {
                    self.by_backup.remove(&old.backup);
                }
            }
        }
        if let Some(new) = change.after.as_deref().and_then(point) {
            self.by_lineage
                .entry(new.lineage.clone())
                .or_default()
                .insert((new.time, change.key.clone()));
            self.by_backup
                .entry(new.backup.clone())
                .or_default()
                .insert(change.key.clone());
            self.by_name.insert(change.key.clone(), new);
        }
    }

    /// The newest point of a volume at a location whose backup is `usable`.
    pub fn newest(
        &self,
        lineage: &str,
        location: Option<&str>,
        usable: impl Fn(&str) -> bool,
    ) -> Option<Point> {
        let points = self.by_lineage.get(lineage)?.iter().rev();
        points
            .filter_map(|(_, key)| self.by_name.get(key))
            .find(|point| {
                location.is_none_or(|location| location == point.location) && usable(&point.backup)
            })
            .cloned()
    }

    /// The points of a backup; its name as in the label, shortened where it is long.
    pub fn of_backup(&self, label_value: &str) -> impl Iterator<Item = &Point> {
        let keys = self.by_backup.get(label_value).into_iter().flatten();
        keys.filter_map(|key| self.by_name.get(key))
    }
}
