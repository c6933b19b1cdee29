//! Cancelled at any moment over a slow store, every operation ends within a second, and leaves nothing that anybody relies on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

#[path = "support/faulty.rs"]
mod faulty;
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty::{Fate, Faulty};
use futures::{StreamExt, TryStreamExt};
use jackline_repository::{
    BackupRequest, CheckOptions, Error, NoProgress, PruneOptions, ReadData, Repository,
    RestoreOptions, SnapshotId,
};
use jackline_storage::ObjectStore;
use jackline_storage::memory::MemoryStore;
use support::{cheap_repository, noise, options, scratch};
use tokio_util::sync::CancellationToken;

const MOMENTS: u64 = 24;
const ALL: PruneOptions = PruneOptions {
    max_unused_percent: 0.0,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Backup,
    Restore,
    Prune,
    Check,
}

/// A repository with something to do for each operation.
struct Place {
    store: Arc<Faulty>,
    memory: Arc<MemoryStore>,
    repository: Repository,
    snapshot: SnapshotId,
    dir: tempfile::TempDir,
}

impl Place {
    async fn new(source: &Path) -> Self {
        let memory = Arc::new(MemoryStore::new());
        cheap_repository(&*memory).await;
        let store = Faulty::new(memory.clone());
        let repository = Repository::open(store.clone(), &options()).await.unwrap();
        let dir = scratch();
        let small = dir.path().join("small");
        fs::create_dir(&small).unwrap();
        let mut snapshots = Vec::new();
        let never = CancellationToken::new();
        for round in 0..4 {
            fs::write(small.join("changing"), noise(round, 100_000)).unwrap();
            fs::write(small.join(round.to_string()), noise(9 + round, 1000)).unwrap();
            let from = if round == 3 { source } else { &small };
            let request = BackupRequest::contents(from, "h");
            let made = repository.backup(request, &NoProgress, &never).await;
            snapshots.push(made.unwrap().snapshot.unwrap());
        }
        repository.forget(&snapshots[..2]).await.unwrap();
        Self {
            store,
            memory,
            repository,
            snapshot: snapshots[3],
            dir,
        }
    }

    async fn run(&self, operation: Operation, cancel: &CancellationToken) -> Result<(), Error> {
        let repository = &self.repository;
        match operation {
            Operation::Backup => {
                let source = self.dir.path().join("new");
                fs::create_dir_all(&source).unwrap();
                fs::write(source.join("file"), noise(77, 3_000_000)).unwrap();
                let request = BackupRequest::contents(&source, "h");
                let made = repository.backup(request, &NoProgress, cancel).await;
                made.map(drop)
            }
            Operation::Restore => {
                let (target, all) = (self.dir.path().join("target"), RestoreOptions::default());
                let restored =
                    repository.restore(&self.snapshot, &target, all, &NoProgress, cancel);
                restored.await.map(drop)
            }
            Operation::Prune => repository.prune(ALL, &NoProgress, cancel).await.map(drop),
            Operation::Check => {
                let options = CheckOptions {
                    read_data: ReadData::Everything,
                    no_lock: false,
                };
                repository
                    .check(options, &NoProgress, cancel)
                    .await
                    .map(drop)
            }
        }
    }

    async fn assert_unlocked(&self, when: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.count("locks/").await > 0 {
            assert!(Instant::now() < deadline, "{when}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn assert_sound(&self, when: &str) {
        let never = CancellationToken::new();
        let sound = CheckOptions {
            read_data: ReadData::Everything,
            no_lock: true,
        };
        let report = self.repository.check(sound, &NoProgress, &never).await;
        let report = report.unwrap();
        assert!(report.is_ok(), "{when}: {report:?}");
    }

    async fn count(&self, prefix: &str) -> usize {
        let listed: Vec<_> = self.memory.list(prefix).try_collect().await.unwrap();
        listed.len()
    }
}

/// Cancels after `moment`. Returns whether that was in time.
async fn cancelled_at(operation: Operation, moment: Duration, source: &Path) -> bool {
    let place = Place::new(source).await;
    let snapshots = place.count("snapshots/").await;
    // So slow that a single request outlives the second that a cancelled operation has.
    place.store.on(|request| match request.split(' ').next() {
        Some("put" | "delete") => Fate::Delay(Duration::from_millis(1500)),
        _ => Fate::Delay(Duration::from_millis(40)),
    });
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(moment).await;
        trigger.cancel();
    });
    let began = Instant::now();
    let result = place.run(operation, &cancel).await;
    let late = began.elapsed().saturating_sub(moment);
    assert!(
        late < Duration::from_secs(1),
        "{operation:?} at {moment:?} ends {late:?} later: {result:?}"
    );
    match result {
        Err(Error::Cancelled) => {}
        Ok(()) => return false,
        Err(error) => panic!("{operation:?} at {moment:?}: {error}"),
    }
    place.store.on(|_| Fate::Pass);
    let when = format!("{operation:?} at {moment:?}");
    // The lock goes beside the caller.
    place.assert_unlocked(&when).await;
    assert_eq!(place.count("snapshots/").await, snapshots, "{when}");
    place.assert_sound(&when).await;
    let never = CancellationToken::new();
    place.run(operation, &never).await.unwrap();
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_any_moment_it_ends_within_a_second_and_leaves_nothing_wrong() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for file in 0..4 {
        fs::write(source.join(file.to_string()), noise(100 + file, 1_000_000)).unwrap();
    }
    for operation in [
        Operation::Backup,
        Operation::Restore,
        Operation::Prune,
        Operation::Check,
    ] {
        // From the first look at the locks to the middle of the last deletion; a little off the beat of the store.
        let moments = (0..MOMENTS).map(|at| Duration::from_millis(7 + at * at * 11));
        let in_time = futures::stream::iter(moments)
            .map(|moment| cancelled_at(operation, moment, &source))
            .buffer_unordered(8)
            .filter(|in_time| std::future::ready(*in_time))
            .count()
            .await;
        assert!(in_time > 12, "{operation:?}: {in_time}");
    }
}

/// What takes no token is dropped: a forget that waits for its lock, takes it, or deletes.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_at_any_moment_a_forget_gives_its_lock_back() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for moment in [5, 100, 400, 800, 1100, 1500, 1900].map(Duration::from_millis) {
        let place = Place::new(&source).await;
        place.store.on(|request| match request.split(' ').next() {
            Some("put" | "delete") => Fate::Delay(Duration::from_millis(600)),
            _ => Fate::Delay(Duration::from_millis(40)),
        });
        let ids = [place.snapshot];
        let forgotten = tokio::time::timeout(moment, place.repository.forget(&ids)).await;
        assert!(forgotten.is_err(), "{moment:?}: {forgotten:?}");
        place.store.on(|_| Fate::Pass);
        let when = format!("dropped after {moment:?}");
        // A lock that was being written may come to sight yet.
        tokio::time::sleep(Duration::from_millis(700)).await;
        place.assert_unlocked(&when).await;
        place.assert_sound(&when).await;
        place.repository.forget(&ids).await.unwrap();
    }
}

/// A write that takes longer than progress is told must not begin anew each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_gets_every_index_file_once() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    for n in 0..50_100 {
        fs::write(source.join(n.to_string()), n.to_string()).unwrap();
    }
    let faulty = Faulty::new(support::store(&repo));
    let repository = Repository::init(faulty.clone(), &options()).await.unwrap();
    faulty.on(|request| match request.starts_with("put index/") {
        true => Fate::Delay(Duration::from_millis(1500)),
        false => Fate::Pass,
    });
    let request = BackupRequest::contents(&source, "h");
    let never = CancellationToken::new();
    let made = repository.backup(request, &NoProgress, &never).await;
    assert_eq!(made.unwrap().files_new, 50_100);
    // One, or two where the first pack was stored before the last was full.
    let written = faulty.asked("put index/").len();
    assert!((1..=2).contains(&written), "{written}");
}

/// What was read is not read again because the store was away for some seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_some_seconds_does_not_end_a_backup() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), noise(1, 40_000_000)).unwrap();
    let faulty = Faulty::new(support::store(&repo));
    let repository = Repository::init(faulty.clone(), &options()).await.unwrap();
    for kind in ["put data/", "put index/", "put snapshots/"] {
        let away = parking_lot::Mutex::new(None);
        faulty.on(move |request| {
            if !request.starts_with(kind) {
                return Fate::Pass;
            }
            let since = *away.lock().get_or_insert_with(Instant::now);
            match since.elapsed() < Duration::from_secs(2) {
                true => Fate::Fail,
                false => Fate::Pass,
            }
        });
        let request = BackupRequest::contents(&source, "h");
        let never = CancellationToken::new();
        let made = repository.backup(request, &NoProgress, &never).await;
        assert!(made.unwrap().is_complete(), "{kind}");
        fs::write(source.join(kind.len().to_string()), kind).unwrap();
    }
    let everything = CheckOptions {
        read_data: ReadData::Everything,
        no_lock: false,
    };
    let never = CancellationToken::new();
    let checked = repository.check(everything, &NoProgress, &never).await;
    assert!(checked.unwrap().is_ok());
    assert_eq!(repository.snapshots().await.unwrap().len(), 3);
}
