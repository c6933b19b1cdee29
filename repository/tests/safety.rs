//! What must never happen: a second init, a wrong file, a write outside the target, a lock ignored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jackline_repository::{
    BackupRequest, Error, NoProgress, OpenOptions, Overwrite, Password, PruneOptions, Repository,
    RestoreOptions,
};
use jackline_storage::memory::MemoryStore;
use support::{Restic, assert_same_tree, init, noise, open, options, sample_tree, scratch, store};
use tokio_util::sync::CancellationToken;

fn never() -> CancellationToken {
    CancellationToken::new()
}

async fn backup(repository: &Repository, root: &Path) -> jackline_repository::SnapshotId {
    let request = BackupRequest::contents(root, "h");
    let summary = repository
        .backup(request, &NoProgress, &never())
        .await
        .unwrap();
    assert!(summary.is_complete(), "{:?}", summary.errors);
    summary.snapshot.unwrap()
}

#[tokio::test]
async fn a_repository_is_made_once() {
    let memory = Arc::new(MemoryStore::new());
    assert!(matches!(
        Repository::open(memory.clone(), &options()).await,
        Err(Error::NotFound { .. })
    ));
    let first = Repository::init(memory.clone(), &options()).await.unwrap();
    let again = Repository::init(memory.clone(), &options()).await;
    assert!(
        matches!(again, Err(Error::AlreadyExists { .. })),
        "{again:?}"
    );
    let wrong = OpenOptions::new(Password::new("another"));
    assert!(matches!(
        Repository::init(memory.clone(), &wrong).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert!(matches!(
        Repository::open(memory.clone(), &wrong).await,
        Err(Error::WrongPassword { .. })
    ));
    let opened = Repository::open(memory.clone(), &options()).await.unwrap();
    assert_eq!(opened.id(), first.id());

    // Without its config it is damaged, not absent.
    jackline_storage::ObjectStore::delete(&*memory, "config")
        .await
        .unwrap();
    assert!(matches!(
        Repository::open(memory.clone(), &options()).await,
        Err(Error::Corrupt { .. })
    ));
    assert!(matches!(
        Repository::init(memory, &options()).await,
        Err(Error::AlreadyExists { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_outside_the_target() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("dir/file"), b"from the snapshot").unwrap();
    fs::write(source.join("file"), b"from the snapshot").unwrap();
    let repository = init(&repo).await;
    let id = backup(&repository, &source).await;

    // The target's own links lead outside.
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"precious").unwrap();
    symlink(&outside, target.join("dir")).unwrap();
    symlink(outside.join("file"), target.join("file")).unwrap();
    let restore = async |overwrite| {
        let options = RestoreOptions {
            overwrite,
            ..RestoreOptions::default()
        };
        repository
            .restore(&id, &target, options, &NoProgress, &never())
            .await
            .unwrap()
    };
    let kept = restore(Overwrite::Never).await;
    assert_eq!((kept.error_count, kept.skipped), (1, 1), "{kept:?}");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");

    let replaced = restore(Overwrite::Always).await;
    assert!(replaced.is_complete(), "{replaced:?}");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_same_tree(&source, &target);

    // A hard link to something outside is not written through either.
    fs::remove_file(target.join("file")).unwrap();
    fs::hard_link(outside.join("file"), target.join("file")).unwrap();
    assert!(restore(Overwrite::Always).await.is_complete());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"precious");
    assert_same_tree(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_respected_both_ways() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    sample_tree(&source);
    let repository = init(&repo).await;
    let id = backup(&repository, &source).await;
    let restic = Restic::new(&repo);

    // A living restic: its lock is one of this host and of a process that runs.
    let mut sleeper = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let mut holder = options();
    holder.holder.pid = sleeper.id();
    let sealed = exclusive_lock(&repo, &holder).await;
    let prune = repository
        .prune(PruneOptions::default(), &NoProgress, &never())
        .await;
    assert!(
        matches!(
            prune,
            Err(Error::Locked {
                exclusive: true,
                ..
            })
        ),
        "{prune:?}"
    );
    let forget = repository.forget(&[id]).await;
    assert!(matches!(forget, Err(Error::Locked { .. })), "{forget:?}");
    assert!(
        !restic.output(&["prune"]).status.success(),
        "restic sees the lock too"
    );

    // Whoever waits gets it when it is given back.
    let patient = Repository::open(
        store(&repo),
        &options().with_lock_wait(Duration::from_secs(30)),
    )
    .await
    .unwrap();
    let waiting = tokio::spawn(async move {
        patient
            .prune(PruneOptions::default(), &NoProgress, &never())
            .await
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!waiting.is_finished());
    fs::remove_file(&sealed).unwrap();
    waiting.await.unwrap().unwrap();

    // A dead one is healed by the next run.
    let sealed = exclusive_lock(&repo, &holder).await;
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(sealed.exists());
    backup(&repository, &source).await;
    assert_eq!(support::count(&repo, "locks"), 0);
    restic.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_began_at_the_same_moment_as_a_prune_begins_anew() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    sample_tree(&source);
    let repository = init(&repo).await;
    let id = backup(&repository, &source).await;
    let mut sleeper = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let mut holder = options();
    holder.holder.pid = sleeper.id();
    let sealed = exclusive_lock(&repo, &holder).await;
    let (aside, locks) = (dir.path().join("aside"), repo.join("locks"));
    fs::rename(&sealed, &aside).unwrap();

    for wait in [Duration::ZERO, Duration::from_secs(30)] {
        let patient = options().with_lock_wait(wait);
        let patient = Repository::open(store(&repo), &patient).await.unwrap();
        let target = dir.path().join(format!("target-{}", wait.as_secs()));
        let into = target.clone();
        let restore = tokio::spawn(async move {
            let options = RestoreOptions::default();
            patient
                .restore(&id, &into, options, &NoProgress, &never())
                .await
        });
        // Its own lock is there, and it has not looked for the second time.
        let own = |entry: fs::DirEntry| entry.file_name().len() == 64;
        while !fs::read_dir(&locks).unwrap().flatten().any(own) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fs::copy(&aside, &sealed).unwrap();
        if wait.is_zero() {
            let refused = restore.await.unwrap();
            assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
            fs::remove_file(&sealed).unwrap();
            continue;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!restore.is_finished());
        fs::remove_file(&sealed).unwrap();
        let summary = restore.await.unwrap().unwrap();
        assert!(summary.is_complete(), "{:?}", summary.errors);
        assert_same_tree(&source, &target);
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// Leaves an exclusive lock of another holder: that of a prune which has something to delete, kept while it is given back.
async fn exclusive_lock(repo: &Path, holder: &OpenOptions) -> PathBuf {
    let unlisted = repo.join("data/00").join("0".repeat(64));
    fs::create_dir_all(unlisted.parent().unwrap()).unwrap();
    fs::write(&unlisted, b"no index lists this").unwrap();
    let other = Repository::open(store(repo), holder).await.unwrap();
    let watch = repo.join("locks");
    let hidden = repo.parent().unwrap().join("hidden");
    let running = tokio::spawn(async move {
        other
            .prune(PruneOptions::default(), &NoProgress, &never())
            .await
            .map(drop)
    });
    // The last one is exclusive, and stays long enough to be seen.
    let mut seen = None;
    while !running.is_finished() {
        let entries = fs::read_dir(&watch).into_iter().flatten();
        for path in entries.map(|entry| entry.unwrap().path()) {
            let new = path.file_name().unwrap().len() == 64 && seen.as_ref() != Some(&path);
            // A shared one may be gone already.
            if new && fs::copy(&path, &hidden).is_ok() {
                seen = Some(path);
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.await.unwrap().unwrap();
    let seen = seen.unwrap();
    fs::copy(&hidden, &seen).unwrap();
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lock_ends_the_operation() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(4, 1_000_000)).unwrap();
    init(&repo).await;
    let watch = repo.join("locks");
    let robber = std::thread::spawn(move || {
        loop {
            // A lock that is still being written has another name.
            let finished = |entry: &fs::DirEntry| entry.file_name().len() == 64;
            let Some(entry) = fs::read_dir(&watch)
                .ok()
                .and_then(|entries| entries.flatten().find(finished))
            else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            // Before the index is written.
            std::thread::sleep(Duration::from_millis(100));
            fs::remove_file(entry.path()).unwrap();
            return;
        }
    });
    let repository = open(&repo).await;
    let request = BackupRequest::contents(&source, "h");
    let result = repository.backup(request, &NoProgress, &never()).await;
    robber.join().unwrap();
    assert!(matches!(result, Err(Error::LockLost { .. })), "{result:?}");
    assert_eq!(support::count(&repo, "snapshots"), 0);
    assert_eq!(support::count(&repo, "index"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_means_now_and_nothing_broken() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    for file in 0..8 {
        fs::write(source.join(file.to_string()), noise(file, 40_000_000)).unwrap();
    }
    let repository = init(&repo).await;
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        trigger.cancel();
    });
    let started = std::time::Instant::now();
    let request = BackupRequest::contents(&source, "h");
    let result = repository.backup(request, &NoProgress, &cancel).await;
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(
        started.elapsed() < Duration::from_millis(1300),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(support::count(&repo, "locks"), 0);
    Restic::new(&repo).check();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_counted_and_named() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("good"), b"good").unwrap();
    // Reading this as a file is an error, for root too. Mounts need root, as all of these tests do.
    let bad = source.join("bad");
    fs::write(&bad, b"").unwrap();
    let mount = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program)
            .args(args)
            .arg(&bad)
            .status()
            .unwrap();
        assert!(status.success(), "{program} {args:?}");
    };
    mount("mount", &["--bind", "/proc/self/mem"]);
    let repository = init(&repo).await;
    let request = BackupRequest::contents(&source, "h");
    let result = repository.backup(request, &NoProgress, &never()).await;
    mount("umount", &[]);
    let summary = result.unwrap();
    assert_eq!(summary.error_count, 1, "{summary:?}");
    assert_eq!(summary.errors[0].path, "bad");
    assert_eq!(summary.files_new, 1);
    assert!(!summary.is_complete());
    assert!(summary.snapshot.is_some());
    Restic::new(&repo).check();
}
