//! Damage as it really happens, its repair, and restic's verdict on what is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use jackline_repository::{
    BackupRequest, CheckOptions, Error, Id, IndexRepair, NoProgress, PacksRepair, ReadData,
    RepairOptions, Repository, RestoreOptions, SnapshotId, SnapshotsRepair,
};
use support::{Restic, assert_same_tree, count, init, noise, open, scratch};
use tokio_util::sync::CancellationToken;

struct Place {
    dir: tempfile::TempDir,
    repository: Repository,
    snapshot: SnapshotId,
}

impl Place {
    /// A snapshot of many files in several packs of data.
    async fn new() -> Self {
        let dir = scratch();
        let source = dir.path().join("source");
        for sub in ["one", "two"] {
            fs::create_dir_all(source.join(sub)).unwrap();
            for file in 0..10 {
                let seed = file + sub.len() as u64 * u64::from(sub.as_bytes()[0]);
                fs::write(
                    source.join(sub).join(file.to_string()),
                    noise(seed, 3_000_000),
                )
                .unwrap();
            }
        }
        let repository = init(&dir.path().join("repo")).await;
        let request = BackupRequest::contents(&source, "h");
        let never = CancellationToken::new();
        let made = repository.backup(request, &NoProgress, &never).await;
        let snapshot = made.unwrap().snapshot.unwrap();
        Self {
            dir,
            repository,
            snapshot,
        }
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// The files of a kind, the largest first.
    fn files(&self, kind: &str) -> Vec<PathBuf> {
        fn visit(dir: &Path, found: &mut Vec<(u64, PathBuf)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => visit(&path, found),
                    false => found.push((fs::metadata(&path).unwrap().len(), path)),
                }
            }
        }
        let mut found = Vec::new();
        visit(&self.repo().join(kind), &mut found);
        found.sort();
        found.into_iter().rev().map(|(_, path)| path).collect()
    }

    async fn index(&self, dry_run: bool) -> IndexRepair {
        let options = RepairOptions {
            dry_run,
            ..RepairOptions::default()
        };
        let never = CancellationToken::new();
        self.repository
            .repair_index(options, &NoProgress, &never)
            .await
            .unwrap()
    }

    async fn snapshots(&self, dry_run: bool, forget: bool) -> SnapshotsRepair {
        let options = RepairOptions {
            dry_run,
            forget,
            ..RepairOptions::default()
        };
        let never = CancellationToken::new();
        self.repository
            .repair_snapshots(&[], options, &NoProgress, &never)
            .await
            .unwrap()
    }

    async fn packs(&self, ids: &[Id], dry_run: bool) -> Result<PacksRepair, Error> {
        let options = RepairOptions {
            dry_run,
            ..RepairOptions::default()
        };
        let never = CancellationToken::new();
        self.repository
            .repair_packs(ids, options, &NoProgress, &never)
            .await
    }

    async fn is_sound(&self) -> bool {
        let options = CheckOptions {
            read_data: ReadData::Everything,
            no_lock: false,
        };
        let never = CancellationToken::new();
        let repository = open(&self.repo()).await;
        let report = repository.check(options, &NoProgress, &never).await;
        report.unwrap().is_ok()
    }

    /// Where a snapshot was restored whole.
    async fn restored(&self, id: &str) -> PathBuf {
        let repository = open(&self.repo()).await;
        let id = repository.resolve(id).await.unwrap();
        let (target, never) = (self.dir.path().join("target"), CancellationToken::new());
        let options = RestoreOptions::default();
        let summary = repository
            .restore(&id, &target, options, &NoProgress, &never)
            .await
            .unwrap();
        assert!(summary.is_complete(), "{summary:?}");
        target
    }

    /// How many files of the source are whole in a snapshot.
    async fn whole(&self, id: &str) -> usize {
        let target = self.restored(id).await;
        let mut whole = 0;
        for sub in ["one", "two"] {
            for file in 0..10 {
                let path = Path::new(sub).join(file.to_string());
                let was = fs::read(self.dir.path().join("source").join(&path)).unwrap();
                whole += usize::from(fs::read(target.join(&path)).is_ok_and(|now| now == was));
            }
        }
        whole
    }

    fn restic(&self) -> Restic {
        Restic::new(&self.repo())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_repository_is_left_alone() {
    let place = Place::new().await;
    let before = [place.files("index"), place.files("snapshots")];
    assert!(!place.index(false).await.changed);
    let packs = place.packs(&[], false).await.unwrap();
    assert_eq!(packs.packs, count(&place.repo(), "data") as u64);
    assert!(packs.damaged.is_empty() && packs.lost.is_empty());
    let report = place.snapshots(false, true).await;
    assert_eq!((report.snapshots, report.repaired.len()), (1, 0));
    assert!(report.lost.is_empty() && report.problems.is_empty());
    assert_eq!(before, [place.files("index"), place.files("snapshots")]);
    assert_eq!(count(&place.repo(), "locks"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_gone_or_broken_comes_back_whole() {
    for damage in ["deleted", "flipped"] {
        let place = Place::new().await;
        for file in place.files("index") {
            let mut bytes = fs::read(&file).unwrap();
            bytes[20] ^= 1;
            match damage {
                "deleted" => fs::remove_file(file).unwrap(),
                _ => fs::write(file, bytes).unwrap(),
            }
        }
        let packs = count(&place.repo(), "data") as u64;
        let dry = place.index(true).await;
        assert!(dry.changed && dry.packs_read == packs, "{dry:?}");
        assert!(!place.is_sound().await, "a dry run changes nothing");
        let report = place.index(false).await;
        assert_eq!((report.packs, report.packs_read), (packs, packs));
        assert!(report.unreadable.is_empty() && report.missing.is_empty());
        assert!(place.is_sound().await);
        place.restic().check();
        assert_eq!(place.whole("latest").await, 20);
        assert!(!place.index(false).await.changed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_pack_held_is_given_up_and_the_rest_comes_back() {
    for damage in ["deleted", "truncated", "flipped header"] {
        for forget in [false, true] {
            let place = Place::new().await;
            let pack = place.files("data").remove(0);
            let mut bytes = fs::read(&pack).unwrap();
            match damage {
                "deleted" => fs::remove_file(&pack).unwrap(),
                "truncated" => fs::write(&pack, &bytes[..bytes.len() / 2]).unwrap(),
                _ => {
                    // The size differs too, as after a broken upload: else only reading the data shows it.
                    let at = bytes.len() - 20;
                    bytes[at] ^= 1;
                    bytes.push(0);
                    fs::write(&pack, bytes).unwrap();
                }
            }
            assert!(!place.is_sound().await);
            let index = place.index(false).await;
            let named = index.missing.len() + index.unreadable.len();
            assert!(index.changed && named == 1, "{damage} {index:?}");

            let dry = place.snapshots(true, forget).await;
            assert_eq!((dry.repaired.len(), dry.repaired[0].new), (1, None));
            assert_eq!(count(&place.repo(), "snapshots"), 1);
            let report = place.snapshots(false, forget).await;
            assert_eq!(report.files_shortened, dry.files_shortened);
            assert!((1..=20).contains(&report.files_shortened), "{report:?}");
            assert_eq!(report.problems.len() as u64, report.files_shortened);
            assert_eq!(report.repaired[0].old, place.snapshot);
            let id = report.repaired[0].new.unwrap();
            let new = place.repository.snapshot(&id).await.unwrap();
            assert_eq!(new.original, Some(place.snapshot));
            assert_eq!(
                new.tags,
                if forget {
                    vec![]
                } else {
                    vec!["repaired".to_owned()]
                }
            );

            assert_eq!(
                place.whole(&id.to_hex()).await,
                20 - report.files_shortened as usize
            );
            if forget {
                assert_eq!(count(&place.repo(), "snapshots"), 1);
                assert!(place.is_sound().await);
                place.restic().check();
                let again = place.snapshots(false, true).await;
                assert!(again.repaired.is_empty(), "{again:?}");
            } else {
                assert_eq!(count(&place.repo(), "snapshots"), 2);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_lost_becomes_empty_and_a_snapshot_without_root_goes() {
    let place = Place::new().await;
    // A second snapshot shares nothing but data with the first: its trees lie in a pack of their own.
    let trees = place.files("data").pop().unwrap();
    fs::write(place.dir.path().join("source/one/new"), b"new").unwrap();
    let request = BackupRequest::contents(place.dir.path().join("source"), "h");
    let never = CancellationToken::new();
    let second = place.repository.backup(request, &NoProgress, &never).await;
    let second = second.unwrap().snapshot.unwrap();
    fs::remove_file(trees).unwrap();
    place.index(false).await;

    let report = place.snapshots(false, true).await;
    // The first has no root any more; of the second the directory `two`, which it shares with the first, is empty.
    assert_eq!(
        (report.lost.len(), report.repaired.len()),
        (1, 1),
        "{report:?}"
    );
    assert_eq!(report.repaired[0].old, second);
    assert_eq!(
        (report.dirs_emptied, &*report.problems[0].path),
        (1, "/two")
    );
    assert_eq!(count(&place.repo(), "snapshots"), 1);
    assert!(place.is_sound().await);
    place.restic().check();
    let target = place.restored("latest").await;
    assert_same_tree(&place.dir.path().join("source/one"), &target.join("one"));
    assert_eq!(fs::read_dir(target.join("two")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_file_that_cannot_be_read_is_named_and_goes_when_asked() {
    let place = Place::new().await;
    let file = place.files("snapshots").remove(0);
    let mut bytes = fs::read(&file).unwrap();
    bytes[30] ^= 1;
    fs::write(&file, bytes).unwrap();
    let report = place.snapshots(false, false).await;
    assert_eq!(
        (report.lost.len(), count(&place.repo(), "snapshots")),
        (1, 1)
    );
    place.snapshots(true, true).await;
    assert_eq!(count(&place.repo(), "snapshots"), 1);
    place.snapshots(false, true).await;
    assert_eq!(count(&place.repo(), "snapshots"), 0);
    place.restic().check();
}

fn id_of(file: &Path) -> Id {
    Id::parse(file.file_name().unwrap().to_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sound_in_a_damaged_pack_is_kept_and_only_the_rest_is_given_up() {
    for damage in ["flipped blob", "flipped header", "truncated"] {
        for named in [false, true] {
            let place = Place::new().await;
            let pack = place.files("data").remove(0);
            let mut bytes = fs::read(&pack).unwrap();
            let end = bytes.len() - 20;
            match damage {
                "flipped blob" => bytes[1000] ^= 1,
                "flipped header" => bytes[end] ^= 1,
                _ => bytes.truncate(bytes.len() / 2),
            }
            fs::write(&pack, &bytes).unwrap();
            assert!(!place.is_sound().await);
            let ids: Vec<Id> = named.then(|| id_of(&pack)).into_iter().collect();

            let dry = place.packs(&ids, true).await.unwrap();
            assert_eq!(fs::read(&pack).unwrap(), bytes, "a dry run changes nothing");
            let report = place.packs(&ids, false).await.unwrap();
            assert_eq!((&dry.damaged, &dry.lost), (&report.damaged, &report.lost));
            assert_eq!(dry.blobs_saved, report.blobs_saved);
            assert_eq!(report.damaged.len(), 1, "{report:?}");
            assert!(report.blobs_saved > 0, "{damage}: {report:?}");
            match damage {
                "flipped blob" => assert_eq!(report.lost.len(), 1),
                "flipped header" => assert!(report.lost.is_empty()),
                _ => assert!(report.lost.len() > 1),
            }
            assert!(!pack.exists());
            assert_eq!(count(&place.repo(), "locks"), 0);

            let snapshots = place.snapshots(false, true).await;
            let shortened = snapshots.files_shortened as usize;
            assert!(shortened <= report.lost.len() && shortened > 0 || report.lost.is_empty());
            assert!(place.is_sound().await);
            place.restic().check();
            assert_eq!(place.whole("latest").await, 20 - shortened);
            let again = place.packs(&[], false).await.unwrap();
            assert!(again.damaged.is_empty() && again.lost.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_does_not_exist_is_no_pack_to_repair() {
    let place = Place::new().await;
    let error = place.packs(&[Id::of(b"x")], false).await.unwrap_err();
    assert!(error.to_string().contains("there is no data/"), "{error}");
    for file in place.files("index") {
        fs::remove_file(file).unwrap();
    }
    let id = id_of(&place.files("data")[0]);
    let error = place.packs(&[id], false).await.unwrap_err();
    assert!(
        error.to_string().contains("repair the index first"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_snapshots_that_are_named_are_repaired() {
    let place = Place::new().await;
    let request = BackupRequest::contents(place.dir.path().join("source"), "h");
    let never = CancellationToken::new();
    let second = place.repository.backup(request, &NoProgress, &never).await;
    let second = second.unwrap().snapshot.unwrap();
    fs::remove_file(place.files("data").remove(0)).unwrap();
    place.index(false).await;
    let only = [second];
    let options = RepairOptions::default();
    let report = place
        .repository
        .repair_snapshots(&only, options, &NoProgress, &never)
        .await
        .unwrap();
    assert_eq!((report.snapshots, report.repaired.len()), (1, 1));
    assert_eq!(report.repaired[0].old, second);
    assert_eq!(count(&place.repo(), "snapshots"), 3);
}
