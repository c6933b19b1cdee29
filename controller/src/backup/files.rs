//! The small files of a backup.

use std::{
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use jackline_crds::{
    names::annotation,
    velero::{Backup, PodVolumeBackup, PodVolumePhase, UploaderType},
};
use jackline_policy::backup::volumes::Note;
use jackline_storage::layout::BackupFile;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{log::Results, volumes::Volumes};
use crate::collect::{self, Collection, Facts};

/// The Backup as it lies in the bucket: indented JSON, without what holds it in this cluster.
pub(super) fn backup_json(backup: &Backup) -> io::Result<Bytes> {
    let mut backup = backup.clone();
    backup.metadata.finalizers = None;
    let mut json = serde_json::to_vec_pretty(&backup)?;
    json.push(b'\n');
    Ok(json.into())
}

/// Every compressed file besides log and tarball.
pub(super) fn build(
    collection: &Collection,
    stored: &[usize],
    volumes: &Volumes,
    results: &Results,
) -> io::Result<Vec<(BackupFile, Bytes)>> {
    let none = &Value::Null;
    Ok(vec![
        (
            BackupFile::PodVolumeBackups,
            pod_volume_backups(&volumes.objects)?,
        ),
        (
            BackupFile::ResourceList,
            packed(&collect::resource_list(collection, stored))?,
        ),
        (BackupFile::Results, packed(results)?),
        (
            BackupFile::VolumeInfo,
            packed(&volume_info(
                &volumes.objects,
                &volumes.skipped,
                &collection.facts,
            ))?,
        ),
        (
            BackupFile::ItemOperations,
            packed(&Value::Array(Vec::new()))?,
        ),
        // Velero's readers ask for these, and take null for "none".
        (BackupFile::VolumeSnapshots, packed(none)?),
        (BackupFile::CsiVolumeSnapshots, packed(none)?),
        (BackupFile::CsiVolumeSnapshotContents, packed(none)?),
        (BackupFile::CsiVolumeSnapshotClasses, packed(none)?),
    ])
}

/// The list of a backup's volumes.
pub(super) fn pod_volume_backups(volumes: &[Arc<PodVolumeBackup>]) -> io::Result<Bytes> {
    let objects: io::Result<Vec<Value>> = volumes.iter().map(|volume| bare(volume)).collect();
    packed(&objects?)
}

fn packed<T: Serialize + ?Sized>(value: &T) -> io::Result<Bytes> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut gzip, value)?;
    gzip.write_all(b"\n")?;
    Ok(gzip.finish()?.into())
}

/// A PodVolumeBackup as Velero's lists hold it: without kind and version.
fn bare(volume: &PodVolumeBackup) -> io::Result<Value> {
    let mut value = serde_json::to_value(volume)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    Ok(value)
}

/// How each volume was backed up, or why it was not.
fn volume_info<'a>(
    objects: impl IntoIterator<Item = &'a std::sync::Arc<PodVolumeBackup>>,
    skipped: &[Note],
    facts: &Facts,
) -> Vec<Value> {
    let moved = objects.into_iter().map(|volume| info_of(volume, facts));
    let left = skipped.iter().filter_map(|note| {
        let claim = note.claim.as_deref()?;
        let mut info = base(&note.namespace, Some(claim), facts);
        info.insert("skipped".to_owned(), json!(true));
        info.insert("skippedReason".to_owned(), json!(note.message));
        Some(Value::Object(info))
    });
    moved.chain(left).collect()
}

fn base(namespace: &str, claim: Option<&str>, facts: &Facts) -> Map<String, Value> {
    let mut info = Map::new();
    if let Some(claim) = claim {
        info.insert("pvcName".to_owned(), json!(claim));
        info.insert("pvcNamespace".to_owned(), json!(namespace));
        if let Some(volume) = facts.claim(namespace, claim).and_then(|claim| claim.volume) {
            if let Some(known) = facts.volumes.get(&volume) {
                let pv = json!({"reclaimPolicy": known.reclaim_policy, "labels": known.labels});
                info.insert("pvInfo".to_owned(), pv);
            }
            info.insert("pvName".to_owned(), json!(volume));
        }
    }
    info.insert("snapshotDataMoved".to_owned(), json!(false));
    info.insert("preserveLocalSnapshot".to_owned(), json!(false));
    info.insert("skipped".to_owned(), json!(false));
    info
}

fn info_of(volume: &PodVolumeBackup, facts: &Facts) -> Value {
    let pod = &volume.spec.pod;
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    let claim = volume
        .annotations()
        .get(annotation::PVC_NAME)
        .map(String::as_str);
    let status = volume.status.clone().unwrap_or_default();
    let mut info = base(namespace, claim, facts);
    info.insert("backupMethod".to_owned(), json!("PodVolumeBackup"));
    let mut time = |key: &str, time: &Option<Time>| {
        if let Some(time) = time {
            info.insert(key.to_owned(), json!(time));
        }
    };
    time("startTimestamp", &status.start_timestamp);
    time("completionTimestamp", &status.completion_timestamp);
    let phase = status.phase.unwrap_or_default();
    let result = if phase == PodVolumePhase::Completed {
        "succeeded"
    } else {
        "failed"
    };
    info.insert("result".to_owned(), json!(result));
    let uploader = match volume.spec.uploader_type {
        UploaderType::Kopia => "kopia",
        _ => "restic",
    };
    let mut moved = json!({
        "size": status.progress.unwrap_or_default().total_bytes,
        "uploaderType": uploader,
        "volumeName": volume.spec.volume,
        "podName": pod.name,
        "podNamespace": namespace,
        "nodeName": volume.spec.node,
        "Phase": phase.as_str(),
    });
    if let Some(snapshot) = &status.snapshot_id {
        moved["snapshotHandle"] = json!(snapshot);
    }
    if status.incremental_bytes > 0 {
        moved["incrementalSize"] = json!(status.incremental_bytes);
    }
    info.insert("pvbInfo".to_owned(), moved);
    Value::Object(info)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, sync::Arc};

    use super::*;

    fn fixture(name: &str) -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/velero-1.14/bucket/backups/first/"
        );
        let file = std::fs::File::open(format!("{path}first-{name}.json.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_holds_a_backup_here_is_not_in_the_bucket() {
        let mut backup = Backup::new("b", Default::default());
        backup.metadata.finalizers = Some(vec!["jackline.dev/backup".to_owned()]);
        let stored: Backup = serde_json::from_slice(&backup_json(&backup).unwrap()).unwrap();
        assert_eq!(stored.metadata.finalizers, None);
        assert_eq!(stored.metadata.name, backup.metadata.name);
    }

    /// What Velero's objects become here is what Velero itself made of them (it has had `result` and `Phase` since 1.15).
    #[test]
    fn volume_info_says_what_velero_s_says() {
        let objects: Vec<Arc<PodVolumeBackup>> =
            serde_json::from_value::<Vec<PodVolumeBackup>>(fixture("podvolumebackups"))
                .unwrap()
                .into_iter()
                .map(Arc::new)
                .collect();
        let mut facts = Facts::default();
        for (claim, namespace, volume) in [
            ("nginx-logs", "nginx-example", "pv-logs"),
            ("data-db-0", "shop", "pv-db"),
        ] {
            let known = jackline_policy::backup::volumes::ClaimFacts {
                volume: Some(volume.to_owned()),
                ..Default::default()
            };
            facts
                .claims
                .insert((namespace.to_owned(), claim.to_owned()), known);
            let known = collect::VolumeFacts {
                reclaim_policy: "Retain".to_owned(),
                ..Default::default()
            };
            facts.volumes.insert(volume.to_owned(), known);
        }
        let mut ours = Value::Array(volume_info(&objects, &[], &facts));
        for info in ours.as_array_mut().unwrap() {
            assert_eq!(
                info.as_object_mut().unwrap().remove("result"),
                Some(json!("succeeded"))
            );
            assert_eq!(
                info["pvbInfo"].as_object_mut().unwrap().remove("Phase"),
                Some(json!("Completed"))
            );
        }
        let mut velero = fixture("volumeinfo");
        // Velero took the time of the watch event for one of them.
        for infos in [&mut ours, &mut velero] {
            for info in infos.as_array_mut().unwrap() {
                info.as_object_mut().unwrap().remove("startTimestamp");
            }
        }
        assert_eq!(ours, velero);
    }

    #[test]
    fn pod_volume_backups_keep_their_fields() {
        let velero = fixture("podvolumebackups");
        let objects: Vec<PodVolumeBackup> = serde_json::from_value(velero.clone()).unwrap();
        let ours: Vec<Value> = objects.iter().map(|object| bare(object).unwrap()).collect();
        assert_eq!(Value::Array(ours), velero);
    }

    #[test]
    fn a_skipped_claim_is_listed_with_its_reason() {
        let note = Note {
            level: jackline_policy::backup::volumes::Level::Warning,
            namespace: "shop".to_owned(),
            pod: "db-0".to_owned(),
            volume: "data".to_owned(),
            claim: Some("data-db-0".to_owned()),
            message: "no running pod".to_owned(),
        };
        let infos = volume_info(&[], &[note], &Facts::default());
        assert_eq!(infos[0]["skipped"], json!(true));
        assert_eq!(infos[0]["skippedReason"], json!("no running pod"));
    }
}
