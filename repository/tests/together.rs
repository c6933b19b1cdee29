//! Others at the same time: programs that change the volume, and restic in the same repository.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jackline_repository::{BackupRequest, NoProgress, Repository};
use support::ours::{backup, check, prune, restore};
use support::{Restic, assert_same_tree, init, noise, options, scratch, store};
use tokio_util::sync::CancellationToken;

/// Longer than it ever takes: restic 0.14 tries for most of a minute to load a lock that was given back since it was listed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Writes, appends to and removes files until it is told to stop. Each holds the beginning of `pattern` at any time.
fn disturb(dir: &Path, pattern: &[u8], stop: &AtomicBool) {
    let name = |n: usize| dir.join(n.to_string());
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        for n in 0..300 {
            let length = 1 + (n * 7919 + round * 104_729) % 60_000;
            fs::write(name(n), &pattern[..length]).unwrap();
        }
        let mut grows = fs::File::create(dir.join("grows")).unwrap();
        for part in pattern.chunks(256 << 10) {
            grows.write_all(part).unwrap();
        }
        for n in (0..300).rev() {
            fs::remove_file(name(n)).unwrap();
        }
        round += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_changes_meanwhile_is_saved_and_what_changed_is_named() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    let (calm, busy) = (source.join("calm"), source.join("busy"));
    fs::create_dir_all(&calm).unwrap();
    fs::create_dir_all(&busy).unwrap();
    for n in 0..50 {
        fs::write(calm.join(n.to_string()), noise(n, 100_000)).unwrap();
    }
    let repository = init(&repo).await;
    let (pattern, stop) = (noise(99, 24 << 20), Arc::new(AtomicBool::new(false)));
    let disturber = std::thread::spawn({
        let (busy, pattern, stop) = (busy.clone(), pattern.clone(), Arc::clone(&stop));
        move || disturb(&busy, &pattern, &stop)
    });

    let (mut changed, mut vanished) = (0, 0);
    let begun = Instant::now();
    let mut rounds = 0;
    while changed == 0 || vanished == 0 || rounds < 5 {
        assert!(
            begun.elapsed() < PATIENCE,
            "{changed} changed, {vanished} vanished"
        );
        rounds += 1;
        let summary = backup(&repository, &source).await;
        let named = summary.warnings.len() as u64;
        assert_eq!(named, summary.warning_count.min(100), "{summary:?}");
        for warning in &summary.warnings {
            assert!(warning.path.starts_with("busy"), "{warning:?}");
            match &*warning.message {
                "changed while it was read" => changed += 1,
                "vanished before it was read" => vanished += 1,
                other => panic!("{other}"),
            }
        }
        let target = dir.path().join("target");
        let id = summary.snapshot.unwrap().to_hex();
        restore(&repository, &id, &target).await;
        assert_same_tree(&calm, &target.join("calm"));
        for entry in fs::read_dir(target.join("busy")).unwrap() {
            let path = entry.unwrap().path();
            assert!(pattern.starts_with(&fs::read(&path).unwrap()), "{path:?}");
        }
        fs::remove_dir_all(target).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    disturber.join().unwrap();
    check(&repository).await;
    Restic::new(&repo).check();
}

/// A volume that is another one in each round, but has much in common with the round before.
fn volume(dir: &Path, seed: u64, round: u64) {
    for n in 0..20 {
        let content = noise(seed + n + (round % (n + 1)) * 1000, 200_000);
        fs::write(dir.join(n.to_string()), content).unwrap();
    }
}

/// Runs restic until nobody else has the lock that it needs.
fn patiently(restic: &Restic, dir: &Path, args: &[&str]) {
    let begun = Instant::now();
    loop {
        let output = restic
            .command()
            .current_dir(dir)
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return;
        }
        assert!(said.contains("locked"), "restic {args:?}: {said}");
        assert!(begun.elapsed() < PATIENCE, "restic {args:?}: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const ROUNDS: u64 = 8;

async fn we(repository: Repository, source: &Path) {
    let mut last = None;
    for round in 0..ROUNDS {
        volume(source, 1, round);
        let request = BackupRequest::contents(source, "ours");
        let never = CancellationToken::new();
        let made = repository.backup(request, &NoProgress, &never).await;
        let made = made.unwrap().snapshot.unwrap();
        if let Some(before) = last.replace(made) {
            repository.forget(&[before]).await.unwrap();
        }
        prune(&repository, 0.0).await;
        // Else restic, which does not wait for a lock, would hardly come to its turn.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn they(restic: &Restic, source: &Path) {
    for round in 0..ROUNDS {
        volume(source, 11, round);
        patiently(restic, source, &["backup", ".", "--host=theirs"]);
        let forget = [
            "forget",
            "--host=theirs",
            "--keep-last=1",
            "--prune",
            "--max-unused=0",
        ];
        patiently(restic, source, &forget);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_and_we_back_up_forget_and_prune_in_one_repository_at_once() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    fs::create_dir(&ours).unwrap();
    fs::create_dir(&theirs).unwrap();
    init(&repo).await;
    let patient = options().with_lock_wait(PATIENCE);
    let repository = Repository::open(store(&repo), &patient).await.unwrap();
    let restic = Arc::new(Restic::new(&repo));
    let restics = tokio::task::spawn_blocking({
        let (restic, theirs) = (Arc::clone(&restic), theirs.clone());
        move || they(&restic, &theirs)
    });
    we(repository, &ours).await;
    restics.await.unwrap();

    let repository = support::open(&repo).await;
    check(&repository).await;
    restic.check();
    assert_eq!(support::count(&repo, "locks"), 0);
    let left = repository.snapshots().await.unwrap();
    assert_eq!(left.len(), 2);
    for info in left {
        let target = dir.path().join(&info.snapshot.hostname);
        let source = target.clone();
        let target = target.with_extension("restored");
        restore(&repository, &info.id.to_hex(), &target).await;
        assert_same_tree(&source, &target);
    }
}
