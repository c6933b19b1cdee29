//! A process is killed in the middle. Whatever it left, restic finds the repository sound, and the next run heals it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jackline_repository::{BackupRequest, NoProgress, PruneOptions};
use support::{Restic, assert_same_tree, init, noise, open, scratch};
use tokio_util::sync::CancellationToken;

/// Tells the child what to do; without it the child's test does nothing.
const OPERATION: &str = "JACKLINE_CRASH_OPERATION";
const PLACE: &str = "JACKLINE_CRASH_PLACE";

/// Not a test of its own: what the other tests start as a process, to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(operation), Ok(place)) = (std::env::var(OPERATION), std::env::var(PLACE)) else {
        return;
    };
    let place = Path::new(&place);
    let repository = open(&place.join("repo")).await;
    let cancel = CancellationToken::new();
    fs::write(place.join("started"), b"").unwrap();
    match &*operation {
        "backup" => {
            let request = BackupRequest::contents(place.join("source"), "h");
            repository
                .backup(request, &NoProgress, &cancel)
                .await
                .unwrap();
        }
        _ => {
            let options = PruneOptions {
                max_unused_percent: 0.0,
            };
            repository
                .prune(options, &NoProgress, &cancel)
                .await
                .unwrap();
        }
    }
    fs::write(place.join("finished"), b"").unwrap();
}

fn start(operation: &str, place: &Path) -> Child {
    for name in ["started", "finished"] {
        let _ = fs::remove_file(place.join(name));
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(OPERATION, operation)
        .env(PLACE, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !place.join("started").exists() {
        assert!(Instant::now() < deadline, "the child does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Kills the child after `delay`. Returns whether it was still at work.
fn kill(mut child: Child, place: &Path, delay: Duration) -> bool {
    std::thread::sleep(delay);
    let _ = child.kill();
    child.wait().unwrap();
    !place.join("finished").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_backup() {
    let dir = scratch();
    let place = dir.path();
    let (source, repo) = (place.join("source"), place.join("repo"));
    fs::create_dir(&source).unwrap();
    for file in 0..12 {
        fs::write(
            source.join(format!("large-{file}")),
            noise(file, 12_000_000),
        )
        .unwrap();
    }
    for file in 0..300 {
        fs::write(
            source.join(format!("small-{file}")),
            noise(1000 + file, 5000),
        )
        .unwrap();
    }
    init(&repo).await;
    let restic = Restic::new(&repo);
    let mut killed = 0;
    // From before the lock is settled to the snapshot.
    for delay in [20, 150, 260, 400, 700, 1100, 1600] {
        let child = start("backup", place);
        killed += u32::from(kill(child, place, Duration::from_millis(delay)));
        restic.check_without_lock();
    }
    assert!(killed >= 3, "{killed}");

    let repository = open(&repo).await;
    let request = BackupRequest::contents(&source, "h");
    let summary = repository
        .backup(request, &NoProgress, &CancellationToken::new())
        .await
        .unwrap();
    assert!(summary.is_complete());
    assert_eq!(
        support::count(&repo, "locks"),
        0,
        "the dead one's lock is gone"
    );
    restic.check();
    let target = place.join("target");
    restic.run(&["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_same_tree(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_prune() {
    let dir = scratch();
    let place = dir.path();
    let (source, repo) = (place.join("source"), place.join("repo"));
    fs::create_dir(&source).unwrap();
    let repository = init(&repo).await;
    let restic = Restic::new(&repo);
    let cancel = CancellationToken::new();
    let mut killed = 0;
    let mut kept: Option<jackline_repository::SnapshotId> = None;
    for (round, delay) in [210, 240, 280, 330, 400, 500].into_iter().enumerate() {
        let round = round as u64;
        for step in 0..2 {
            for file in 0..30 {
                if round == 0 || file % 3 == step {
                    let seed = 10_000 * round + 100 * step + file;
                    fs::write(source.join(file.to_string()), noise(seed, 1_500_000)).unwrap();
                }
            }
            let request = BackupRequest::contents(&source, "h");
            let summary = repository
                .backup(request, &NoProgress, &cancel)
                .await
                .unwrap();
            if let Some(id) = kept.replace(summary.snapshot.unwrap()) {
                repository.forget(&[id]).await.unwrap();
            }
        }
        let child = start("prune", place);
        killed += u32::from(kill(child, place, Duration::from_millis(delay)));
        restic.check_without_lock();
    }
    assert!(killed >= 1, "{killed}");

    let options = PruneOptions {
        max_unused_percent: 0.0,
    };
    let pruned = repository
        .prune(options, &NoProgress, &cancel)
        .await
        .unwrap();
    assert!(pruned.bytes_after < 50_000_000, "{pruned:?}");
    assert_eq!(support::count(&repo, "locks"), 0);
    restic.check();
    let target = place.join("target");
    restic.run(&["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_same_tree(&source, &target);
}
