//! The repositories that a real Velero with restic wrote: restored byte for byte, and continued.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use jackline_repository::{
    BackupRequest, CheckOptions, Id, NoProgress, OpenOptions, Parent, Password, ReadData,
    Repository, RestoreOptions,
};
use serde_json::Value;
use support::{Restic, scratch, store};
use tokio_util::sync::CancellationToken;

const PASSWORD: &str = "static-passw0rd";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/velero-1.14")
}

/// A copy, because every operation writes locks.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

async fn open(path: &Path) -> Repository {
    let options = OpenOptions::new(Password::new(PASSWORD));
    Repository::open(store(path), &options).await.unwrap()
}

/// Compares a restored volume with the listing of what it held.
fn compare(target: &Path, listing: &Value, volume: &str) {
    let mut expected = BTreeMap::new();
    for entry in listing.as_array().unwrap() {
        let path = entry["path"].as_str().unwrap();
        if let Some(below) = path.strip_prefix(&format!("{volume}/")) {
            expected.insert(PathBuf::from(below), entry.clone());
        }
    }
    assert!(!expected.is_empty());
    let found: Vec<PathBuf> = support::listing(target).into_keys().collect();
    assert_eq!(found, expected.keys().cloned().collect::<Vec<_>>());
    for (path, entry) in expected {
        let full = target.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        assert_eq!(
            format!("0o{:o}", meta.mode()),
            entry["mode"].as_str().unwrap(),
            "{path:?}"
        );
        assert_eq!(
            u64::from(meta.uid()),
            entry["uid"].as_u64().unwrap(),
            "{path:?}"
        );
        assert_eq!(
            u64::from(meta.gid()),
            entry["gid"].as_u64().unwrap(),
            "{path:?}"
        );
        let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        assert_eq!(mtime, entry["mtime_ns"].as_i64().unwrap(), "{path:?}");
        if let Some(hash) = entry["sha256"].as_str() {
            let content = fs::read(&full).unwrap();
            assert_eq!(Id::of(&content).to_hex(), hash, "{path:?}");
            assert_eq!(meta.nlink(), entry["nlink"].as_u64().unwrap(), "{path:?}");
        }
        if let Some(link) = entry["target"].as_str() {
            assert_eq!(fs::read_link(&full).unwrap(), Path::new(link));
        }
        if let Some(xattrs) = entry["xattr_hex"].as_object() {
            for (name, value) in xattrs {
                let found = xattr::get(&full, name).unwrap().unwrap();
                assert_eq!(hex::encode(found), value.as_str().unwrap());
            }
        }
        assert_eq!(
            meta.file_type().is_fifo(),
            entry["mode"].as_str().unwrap().starts_with("0o10")
                && !entry["mode"].as_str().unwrap().starts_with("0o100")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_comes_back_as_it_was() {
    let dir = scratch();
    for (namespace, volume) in [("nginx-example", "logs"), ("shop", "db")] {
        let repo = dir.path().join(namespace);
        copy(&fixture().join("bucket/restic").join(namespace), &repo);
        let repository = open(&repo).await;
        let mut restored = 0;
        for info in repository.snapshots().await.unwrap() {
            let snapshot = &info.snapshot;
            assert_eq!(snapshot.hostname, "velero");
            let (Some(backup), Some(name)) = (snapshot.tag("backup"), snapshot.tag("volume"))
            else {
                panic!("{:?}", snapshot.tags);
            };
            let target = dir.path().join(format!("{namespace}-{backup}-{name}"));
            let summary = repository
                .restore(
                    &info.id,
                    &target,
                    RestoreOptions::default(),
                    &NoProgress,
                    &CancellationToken::new(),
                )
                .await
                .unwrap();
            assert_eq!(summary.errors, vec![]);
            if snapshot.tag("pvc-uid").is_none() {
                continue;
            }
            let listing = fs::read(fixture().join(format!("{backup}.json"))).unwrap();
            let listing: Value = serde_json::from_slice(&listing).unwrap();
            compare(&target, &listing, volume);
            restored += 1;
        }
        assert_eq!(restored, 2, "{volume}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_on_top_is_incremental() {
    let dir = scratch();
    let repo = dir.path().join("shop");
    copy(&fixture().join("bucket/restic/shop"), &repo);
    let repository = open(&repo).await;
    let snapshots = repository.snapshots().await.unwrap();
    let last = snapshots
        .iter()
        .rfind(|info| info.snapshot.tag("pvc-uid").is_some())
        .unwrap();
    let target = dir.path().join("volume");
    let cancel = CancellationToken::new();
    repository
        .restore(
            &last.id,
            &target,
            RestoreOptions::default(),
            &NoProgress,
            &cancel,
        )
        .await
        .unwrap();
    fs::write(target.join("new"), b"one more line\n").unwrap();

    let mut request = BackupRequest::contents(&target, "velero");
    request.parent = Parent::Snapshot(last.id);
    request.tags = last.snapshot.tags.clone();
    let summary = repository
        .backup(request, &NoProgress, &cancel)
        .await
        .unwrap();
    assert!(summary.is_complete());
    assert_eq!(
        summary.data_blobs, 1,
        "what the repository holds is not stored again"
    );

    let check = CheckOptions {
        read_data: ReadData::Everything,
        no_lock: false,
    };
    let report = repository.check(check, &NoProgress, &cancel).await.unwrap();
    assert!(report.is_ok(), "{:?}", report.errors);
    Restic::with_password(&repo, PASSWORD).check();
}

#[tokio::test(flavor = "multi_thread")]
async fn short_ids_resolve() {
    let dir = scratch();
    let repo = dir.path().join("shop");
    copy(&fixture().join("bucket/restic/shop"), &repo);
    let repository = open(&repo).await;
    let ids: Vec<Id> = repository
        .snapshots()
        .await
        .unwrap()
        .iter()
        .map(|info| info.id)
        .collect();
    assert_eq!(ids.len(), 4);
    for id in &ids {
        assert_eq!(repository.resolve(&id.short()).await.unwrap(), *id);
    }
    assert_eq!(repository.resolve("latest").await.unwrap(), ids[3]);
    assert!(repository.resolve("").await.is_err());
    assert!(repository.resolve("ffffffff").await.is_err());
}
