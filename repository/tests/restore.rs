//! What a restore can be told: what to replace, what to delete, which part to bring back, to look again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jackline_repository::{
    BackupRequest, Error, NoProgress, Only, Overwrite, Repository, RestoreOptions, RestoreSummary,
    SnapshotId,
};
use support::{Restic, assert_same_tree, init, listing, sample_tree, scratch};
use tokio_util::sync::CancellationToken;

struct Place {
    dir: tempfile::TempDir,
    repository: Repository,
    snapshot: SnapshotId,
}

impl Place {
    /// A snapshot of what `fill` puts into the source.
    async fn new(fill: impl FnOnce(&Path)) -> Self {
        let dir = scratch();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fill(&source);
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

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    async fn try_restore(&self, options: RestoreOptions) -> Result<RestoreSummary, Error> {
        let (target, never) = (self.target(), CancellationToken::new());
        self.repository
            .restore(&self.snapshot, &target, options, &NoProgress, &never)
            .await
    }

    async fn restore(&self, options: RestoreOptions) -> RestoreSummary {
        let summary = self.try_restore(options).await.unwrap();
        assert!(summary.is_complete(), "{summary:?}");
        summary
    }

    /// The paths in the target.
    fn found(&self) -> Vec<String> {
        let paths = listing(&self.target()).into_keys();
        paths.map(|path| path.display().to_string()).collect()
    }
}

fn options() -> RestoreOptions {
    RestoreOptions::default()
}

fn three_files(root: &Path) {
    for name in ["a", "b", "c"] {
        fs::write(root.join(name), b"from the snapshot").unwrap();
        set_time(&root.join(name), 1_000_000);
    }
}

fn set_time(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    file.set_modified(time).unwrap();
}

/// Tampers with the target: `a` of the same size and time, `b` older, `c` newer.
fn tamper(target: &Path) {
    for (name, content, time) in [
        ("a", &b"of the same size!"[..], 1_000_000),
        ("b", b"older", 999_999),
        ("c", b"newer", 1_000_001),
    ] {
        fs::write(target.join(name), content).unwrap();
        set_time(&target.join(name), time);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_overwrite_replaces_what_it_says() {
    let place = Place::new(three_files).await;
    for (overwrite, replaced, unchanged, skipped) in [
        (Overwrite::Always, &["a", "b", "c"][..], 0, 0),
        (Overwrite::IfChanged, &["b", "c"], 1, 0),
        (Overwrite::IfNewer, &["b"], 0, 2),
        (Overwrite::Never, &[], 0, 3),
    ] {
        place.restore(options()).await;
        tamper(&place.target());
        let summary = place
            .restore(RestoreOptions {
                overwrite,
                ..options()
            })
            .await;
        let counted = (summary.files, summary.unchanged, summary.skipped);
        assert_eq!(
            counted,
            (replaced.len() as u64, unchanged, skipped),
            "{overwrite:?}"
        );
        assert_eq!(summary.bytes, summary.files * 17);
        for name in ["a", "b", "c"] {
            let content = fs::read(place.target().join(name)).unwrap();
            let restored = content == b"from the snapshot";
            assert_eq!(restored, replaced.contains(&name), "{overwrite:?} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_tree_is_not_written_again() {
    let place = Place::new(sample_tree).await;
    place.restore(options()).await;
    let inodes = |names: &[&str]| -> Vec<u64> {
        let meta = names
            .iter()
            .map(|name| fs::symlink_metadata(place.target().join(name)));
        meta.map(|meta| meta.unwrap().ino()).collect()
    };
    let names = ["small", "empty", "compressible", "dir/deep/er/file"];
    let before = inodes(&names);
    // Metadata that was changed comes back all the same.
    xattr::remove(place.target().join("small"), "user.note").unwrap();
    let again = RestoreOptions {
        overwrite: Overwrite::IfChanged,
        verify: true,
        ..options()
    };
    let summary = place.restore(again).await;
    assert_eq!(before, inodes(&names));
    assert_same_tree_without_socket(&place);
    // Only the three names of one file are made anew: one of them may be somewhere else.
    assert_eq!(summary.files, 3, "{summary:?}");
    assert_eq!(summary.verified, summary.unchanged + 1);
}

fn assert_same_tree_without_socket(place: &Place) {
    let _ = fs::remove_file(place.source().join("socket"));
    let dir = fs::metadata(place.target()).unwrap();
    assert!(dir.is_dir());
    assert_same_tree(&place.source(), &place.target());
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_reads_every_file_back() {
    let place = Place::new(sample_tree).await;
    let summary = place
        .restore(RestoreOptions {
            verify: true,
            ..options()
        })
        .await;
    // The second and third name of one file are that file.
    assert_eq!(summary.verified, summary.files - 2);
    assert_eq!(summary.mismatches, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_makes_the_target_what_the_snapshot_is() {
    let place = Place::new(sample_tree).await;
    place.restore(options()).await;
    let target = place.target();
    fs::create_dir_all(target.join("dir/deep/extra/more")).unwrap();
    fs::write(target.join("dir/deep/extra/more/file"), b"x").unwrap();
    fs::write(target.join("extra"), b"x").unwrap();
    fs::remove_file(target.join("small")).unwrap();
    fs::create_dir_all(target.join("small/is/now/a/directory")).unwrap();
    fs::remove_dir_all(target.join("dir/nothing")).unwrap();
    fs::write(target.join("dir/nothing"), b"is now a file").unwrap();

    let kept = place.try_restore(options()).await.unwrap();
    assert_eq!((kept.error_count, kept.deleted), (1, 0), "{kept:?}");
    assert!(target.join("extra").exists() && target.join("dir/deep/extra").exists());

    let summary = place
        .restore(RestoreOptions {
            delete: true,
            ..options()
        })
        .await;
    assert_eq!(summary.deleted, 4);
    assert_same_tree_without_socket(&place);
}

fn branches(root: &Path) {
    for dir in ["one/deep", "two/deep", "empty"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for name in ["top.txt", "one/a.txt", "one/deep/b.log", "two/deep/c.txt"] {
        fs::write(root.join(name), name).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_comes_back_alone_as_with_restic() {
    let place = Place::new(branches).await;
    let included = |patterns: &[&str]| Only::Included(patterns.iter().map(|&p| p.into()).collect());
    let excluded = |patterns: &[&str]| Only::Excluded(patterns.iter().map(|&p| p.into()).collect());
    for (only, subfolder, files) in [
        (
            included(&["/one"]),
            None,
            &["one/a.txt", "one/deep/b.log"][..],
        ),
        (
            included(&["*.log", "/two/deep/c.txt"]),
            None,
            &["one/deep/b.log", "two/deep/c.txt"],
        ),
        (included(&["/t*/deep"]), None, &["two/deep/c.txt"]),
        (included(&["nothing"]), None, &[]),
        (excluded(&["deep"]), None, &["one/a.txt", "top.txt"]),
        (excluded(&["*.txt", "/two"]), None, &["one/deep/b.log"]),
        (Only::Everything, Some("/one"), &["a.txt", "deep/b.log"]),
        (included(&["/deep"]), Some("one"), &["deep/b.log"]),
    ] {
        let _ = fs::remove_dir_all(place.target());
        place
            .restore(RestoreOptions {
                only: only.clone(),
                subfolder: subfolder.map(PathBuf::from),
                ..options()
            })
            .await;
        let found = place.found();
        let is_file = |path: &&String| place.target().join(path).is_file();
        let found_files: Vec<_> = found.iter().filter(is_file).collect();
        assert_eq!(found_files, files, "{only:?} {subfolder:?}");
        if subfolder.is_some() {
            // restic 0.14 knows no folders of snapshots.
            continue;
        }
        let theirs = place.dir.path().join("theirs");
        let _ = fs::remove_dir_all(&theirs);
        fs::create_dir(&theirs).unwrap();
        let restic = Restic::new(&place.dir.path().join("repo"));
        let mut args = vec!["restore", "latest", "--target", theirs.to_str().unwrap()];
        let (flag, patterns) = match &only {
            Only::Included(patterns) => ("--include", patterns),
            Only::Excluded(patterns) => ("--exclude", patterns),
            Only::Everything => panic!("only patterns"),
        };
        for pattern in patterns {
            args.extend([flag, pattern]);
        }
        restic.run(&args);
        let theirs_files: Vec<_> = listing(&theirs)
            .into_keys()
            .filter(|path| theirs.join(path).is_file())
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(theirs_files, files, "{only:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_on_the_way_to_a_part_get_their_metadata_and_the_others_are_not_made() {
    let place = Place::new(branches).await;
    let only = Only::Included(vec!["/one/deep/b.log".into()]);
    place.restore(RestoreOptions { only, ..options() }).await;
    assert_eq!(place.found(), ["one", "one/deep", "one/deep/b.log"]);
    let (source, target) = (listing(&place.source()), listing(&place.target()));
    for (path, line) in target {
        assert_eq!(Some(&line), source.get(&path), "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_stays_within_the_part() {
    let place = Place::new(branches).await;
    place.restore(options()).await;
    for extra in ["extra", "one/extra.txt", "one/extra.log", "two/extra.log"] {
        fs::write(place.target().join(extra), b"x").unwrap();
    }
    let only = Only::Included(vec!["/one/*.log".into(), "/one/deep".into()]);
    let summary = place
        .restore(RestoreOptions {
            only,
            delete: true,
            ..options()
        })
        .await;
    assert_eq!(summary.deleted, 1);
    let found = place.found();
    for kept in ["extra", "one/extra.txt", "two/extra.log"] {
        assert!(found.iter().any(|path| path == kept), "{kept}");
    }
    assert!(!found.iter().any(|path| path == "one/extra.log"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused_before_anything_is_touched() {
    let place = Place::new(branches).await;
    let bad = |only, subfolder: Option<&str>| RestoreOptions {
        only,
        subfolder: subfolder.map(PathBuf::from),
        ..options()
    };
    for options in [
        bad(Only::Included(vec!["[".into()]), None),
        bad(Only::Everything, Some("three")),
        bad(Only::Everything, Some("top.txt")),
        bad(Only::Everything, Some("one/..")),
    ] {
        let refused = place.try_restore(options).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
    assert!(!place.target().exists());
    let never = CancellationToken::new();
    let emptied = RestoreOptions {
        delete: true,
        ..options()
    };
    let refused = place
        .repository
        .restore(
            &place.snapshot,
            Path::new("/"),
            emptied,
            &NoProgress,
            &never,
        )
        .await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}
