//! What a real Velero wrote is read, and nothing of spec and status is lost when it is written again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use jackline_crds::velero::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> Vec<u8> {
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/velero-1.14/bucket");
    std::fs::read(root.join(name)).expect(name)
}

/// Removes what means the same when it is absent: null, "", false, 0, empty lists and objects.
fn normal(value: Value) -> Value {
    let empty = |v: &Value| {
        matches!(v, Value::Null | Value::Bool(false))
            || *v == json!("")
            || *v == json!(0)
            || *v == json!([])
            || *v == json!({})
    };
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(k, v)| (k, normal(v)))
            .filter(|(_, v)| !empty(v))
            .collect(),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        other => other,
    }
}

fn same<T: serde::Serialize + serde::de::DeserializeOwned>(raw: &Value) -> T {
    let typed: T = serde_json::from_value(raw.clone()).expect("readable");
    let again = serde_json::to_value(&typed).unwrap();
    for part in ["spec", "status"] {
        assert_eq!(
            normal(again[part].clone()),
            normal(raw[part].clone()),
            "{part}"
        );
    }
    for part in ["name", "uid", "labels", "annotations", "ownerReferences"] {
        assert_eq!(
            again["metadata"][part], raw["metadata"][part],
            "metadata.{part}"
        );
    }
    typed
}

#[test]
fn backups() {
    for name in ["first", "second"] {
        let raw = serde_json::from_slice(&fixture(&format!("backups/{name}/velero-backup.json")))
            .unwrap();
        let backup: Backup = same(&raw);
        assert_eq!(backup.phase(), BackupPhase::Completed);
        assert_eq!(
            backup
                .status
                .as_ref()
                .unwrap()
                .progress
                .as_ref()
                .unwrap()
                .items_backed_up,
            49
        );
        let ttl = backup.spec.ttl.unwrap().to_string();
        assert_eq!(
            ttl,
            if name == "first" {
                "720h0m0s"
            } else {
                "72h0m0s"
            }
        );
        assert_eq!(serde_json::to_value(&backup).unwrap()["kind"], "Backup");
    }
}

#[test]
fn pod_volume_backups() {
    let packed = fixture("backups/first/first-podvolumebackups.json.gz");
    let raw: Vec<Value> =
        serde_json::from_reader(flate2::read::GzDecoder::new(&packed[..])).expect("a list");
    assert_eq!(raw.len(), 3);
    for raw in raw {
        let volume: PodVolumeBackup = same(&raw);
        assert_eq!(volume.phase(), PodVolumePhase::Completed);
        assert_eq!(volume.spec.uploader_type, UploaderType::Restic);
        assert_eq!(volume.spec.pod.kind.as_deref(), Some("Pod"));
        assert_eq!(volume.spec.tags["backup"], "first");
        let status = volume.status.unwrap();
        assert_eq!(status.snapshot_id.unwrap().len(), 8);
        assert!(status.start_timestamp.unwrap() < status.completion_timestamp.unwrap());
    }
}

#[test]
fn what_later_versions_add_hides_nothing() {
    let backup: Backup = serde_json::from_value(json!({
        "apiVersion": "velero.io/v1", "kind": "Backup",
        "metadata": {"name": "b", "somethingNew": 1},
        "spec": {"includedNamespaces": null, "hooks": {"resources": null}, "storageLocation": "", "novel": {"a": 1}},
        "status": {"phase": "Levitating", "validationErrors": null, "progress": null,
                   "startTimestamp": "2026-11-22T15:16:10.123456+01:00"}
    }))
    .unwrap();
    assert_eq!(backup.phase(), BackupPhase::Unknown);
    assert_eq!(backup.spec.storage_location, None);
    assert_eq!(
        backup
            .status
            .unwrap()
            .start_timestamp
            .unwrap()
            .0
            .to_string(),
        "2026-11-22T14:16:10.123456Z"
    );
    let bare: ServerStatusRequest =
        serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
    assert_eq!(bare.phase(), ServerStatusPhase::New);
    let volume: PodVolumeBackup = serde_json::from_value(json!({
        "metadata": {},
        "spec": {"node": "n", "pod": {}, "volume": "v", "backupStorageLocation": "default",
                 "repoIdentifier": "", "uploaderType": ""}
    }))
    .unwrap();
    assert_eq!(volume.spec.uploader_type, UploaderType::Unset);
}

#[test]
fn a_partial_status_holds_only_what_was_set() {
    let status = BackupStatus {
        progress: Some(BackupProgress {
            total_items: 3,
            items_backed_up: 1,
        }),
        ..BackupStatus::default()
    };
    assert_eq!(
        serde_json::to_value(status).unwrap(),
        json!({"progress": {"totalItems": 3, "itemsBackedUp": 1}})
    );
}
