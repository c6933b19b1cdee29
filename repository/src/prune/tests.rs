//! What may come between the phases of a prune, and into them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use jackline_storage::ObjectStore;
use jackline_storage::memory::MemoryStore;
use rand::Rng;

use super::*;
use crate::faulty::{Fate, Faulty};
use crate::options::{OpenOptions, Password};
use crate::progress::NoProgress;
use crate::report::{BackupRequest, CheckOptions, ReadData, RestoreOptions};

const ALL: PruneOptions = PruneOptions {
    max_unused_percent: 0.0,
};

/// A repository that has something to prune: one snapshot with the files 1 and 2, and half a pack that was forgotten.
struct Place {
    dir: tempfile::TempDir,
    memory: Arc<MemoryStore>,
    store: Arc<Faulty>,
    repository: Repository,
    never: CancellationToken,
    snapshot: SnapshotId,
    /// The content of the file that was forgotten.
    forgotten: Vec<u8>,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let mut content = vec![0; 300_000];
        for name in ["0", "1", "2"] {
            rand::rng().fill_bytes(&mut content);
            fs::write(source.join(name), &content).unwrap();
        }
        let forgotten = fs::read(source.join("0")).unwrap();
        let memory = Arc::new(MemoryStore::new());
        let store = Faulty::new(memory.clone());
        let options = OpenOptions::new(Password::new("x"));
        let repository = Repository::init(store.clone(), &options).await.unwrap();
        let mut place = Self {
            dir,
            memory,
            store,
            repository,
            never: CancellationToken::new(),
            snapshot: Id::default(),
            forgotten,
        };
        let all = place.backup().await;
        fs::remove_file(source.join("0")).unwrap();
        place.snapshot = place.backup().await;
        place.repository.forget(&[all]).await.unwrap();
        place
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    async fn backup(&self) -> SnapshotId {
        let request = BackupRequest::contents(self.source(), "h");
        let made = self.repository.backup(request, &NoProgress, &self.never);
        made.await.unwrap().snapshot.unwrap()
    }

    async fn copy(&self) -> Copied {
        copy_phase(&self.repository, ALL, &NoProgress, &self.never)
            .await
            .unwrap()
    }

    async fn delete(&self, copied: &Copied) -> Result<PruneSummary> {
        delete_phase(&self.repository, copied, &self.never).await
    }

    async fn prune(&self) -> Result<PruneSummary> {
        self.repository.prune(ALL, &NoProgress, &self.never).await
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.memory.list(prefix);
        listed.map_ok(|meta| meta.key).try_collect().await.unwrap()
    }

    async fn assert_sound(&self) {
        assert_sound(&self.repository).await;
    }

    async fn assert_restores(&self, id: &SnapshotId) {
        let target = self.dir.path().join(id.short());
        let options = RestoreOptions::default();
        let restored = self
            .repository
            .restore(id, &target, options, &NoProgress, &self.never);
        assert!(restored.await.unwrap().is_complete());
        for entry in fs::read_dir(self.source()).unwrap() {
            let entry = entry.unwrap();
            let found = fs::read(target.join(entry.file_name())).unwrap();
            assert!(found == fs::read(entry.path()).unwrap(), "{entry:?}");
        }
    }

    /// Deletes behind everybody's back.
    async fn lose(&self, prefix: &str) {
        for key in self.keys(prefix).await {
            self.memory.delete(&key).await.unwrap();
        }
    }
}

async fn assert_sound(repository: &Repository) {
    let check = CheckOptions {
        read_data: ReadData::Everything,
        no_lock: true,
    };
    let never = CancellationToken::new();
    let report = repository.check(check, &NoProgress, &never).await.unwrap();
    assert!(report.is_ok(), "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unused_goes_and_the_rest_comes_back() {
    let place = Place::new().await;
    let summary = place.prune().await.unwrap();
    assert!(summary.bytes_before > 900_000, "{summary:?}");
    assert!(summary.bytes_after < 620_000, "{summary:?}");
    assert_eq!(summary.packs_repacked, 1, "{summary:?}");
    assert_eq!(summary.bytes_unused, 0, "{summary:?}");
    place.assert_sound().await;
    place.assert_restores(&place.snapshot).await;
    // With nothing to do nobody is locked out.
    place.store.asked("");
    let again = place.prune().await.unwrap();
    assert_eq!(again.bytes_after, summary.bytes_after);
    assert_eq!(place.store.asked("put ").len(), 1, "one shared lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_between_the_phases_the_next_run_uses_the_copies() {
    let place = Place::new().await;
    let before = place.keys("").await;
    let copied = place.copy().await;
    assert_eq!(copied.emptied.len(), 1);
    let after = place.keys("").await;
    assert!(
        before.iter().all(|key| after.contains(key)),
        "nothing is deleted"
    );
    place.assert_sound().await;
    place.store.asked("");
    let summary = place.prune().await.unwrap();
    assert!(
        place.store.asked("put data/").is_empty(),
        "nothing is copied again"
    );
    assert!(summary.bytes_after < 620_000, "{summary:?}");
    place.assert_sound().await;
    place.assert_restores(&place.snapshot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_between_the_phases_keeps_what_it_uses_again() {
    let place = Place::new().await;
    let copied = place.copy().await;
    fs::write(place.source().join("again"), &place.forgotten).unwrap();
    place.store.asked("");
    let again = place.backup().await;
    assert_eq!(
        place.store.asked("put data/").len(),
        1,
        "a tree, and no data"
    );
    let summary = place.delete(&copied).await.unwrap();
    assert_eq!(summary.packs_repacked, 0, "{summary:?}");
    place.assert_sound().await;
    place.assert_restores(&again).await;
    // Two copies of the rest are one too many.
    let summary = place.prune().await.unwrap();
    assert!(summary.bytes_after < 920_000, "{summary:?}");
    place.assert_sound().await;
    place.assert_restores(&again).await;
}

/// Nobody keeps it out: it is a shared lock that the first phase holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_backup_while_the_first_phase_looks_around_is_no_damage() {
    for moment in ["list snapshots", "list index"] {
        let place = Place::new().await;
        fs::write(place.source().join("new"), b"new").unwrap();
        let store = Faulty::new(place.memory.clone());
        let mut pruning = place.repository.clone();
        pruning.files.store = store.clone();
        let made = Arc::new(parking_lot::Mutex::new(None));
        let (repository, source, never) = (
            place.repository.clone(),
            place.source(),
            place.never.clone(),
        );
        let (count, making) = (AtomicUsize::new(0), Arc::clone(&made));
        store.on(move |request| {
            if request.starts_with(moment) && count.fetch_add(1, Ordering::Relaxed) == 0 {
                let request = BackupRequest::contents(&source, "h");
                let backup = repository.backup(request, &NoProgress, &never);
                let summary = tokio::task::block_in_place(|| Handle::current().block_on(backup));
                *making.lock() = summary.unwrap().snapshot;
            }
            Fate::Pass
        });
        let copied = copy_phase(&pruning, ALL, &NoProgress, &place.never).await;
        let copied = copied.unwrap_or_else(|error| panic!("{moment}: {error}"));
        place.delete(&copied).await.unwrap();
        place.assert_sound().await;
        let made = made.lock().take().unwrap();
        place.assert_restores(&made).await;
    }
}

/// Its lock takes so long to come to sight that a prune sees none, and the prune ends before the backup looks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_read_the_index_before_a_prune_it_could_not_see_begins_anew() {
    let place = Place::new().await;
    let copied = place.copy().await;
    fs::write(place.source().join("again"), &place.forgotten).unwrap();
    let store = Faulty::new(place.memory.clone());
    let mut repository = place.repository.clone();
    repository.files.store = store.clone();
    repository.options.lock_wait = Duration::from_secs(60);
    let (puts, looks) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let first = |count: &AtomicUsize| count.fetch_add(1, Ordering::Relaxed);
    store.on(move |request| {
        let slow = request.starts_with("put locks/") && first(&puts) == 0
            || request.starts_with("list locks") && first(&looks) == 1;
        match slow {
            true => Fate::Delay(Duration::from_secs(1)),
            false => Fate::Pass,
        }
    });
    let index_deletions = AtomicUsize::new(0);
    place.store.on(move |request| match request {
        request if request.starts_with("delete index/") && first(&index_deletions) == 0 => {
            Fate::Delay(Duration::from_millis(1200))
        }
        _ => Fate::Pass,
    });
    let request = BackupRequest::contents(place.source(), "h");
    let (begun, begins) = tokio::sync::oneshot::channel::<()>();
    let pruning = async {
        begins.await.unwrap();
        place.delete(&copied).await.unwrap()
    };
    let waiting = async {
        while store.asked("put locks/").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.send(()).unwrap();
    };
    let backup = repository.backup(request, &NoProgress, &place.never);
    let (made, pruned, ()) = tokio::join!(backup, pruning, waiting);
    assert_eq!(pruned.packs_repacked, 1, "{pruned:?}");
    let loaded = store.asked("put locks/");
    assert_eq!(loaded.len(), 1, "it began anew");
    place.assert_sound().await;
    place
        .assert_restores(&made.unwrap().snapshot.unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_prune_and_a_forget_between_the_phases_change_nothing() {
    let place = Place::new().await;
    let copied = place.copy().await;
    fs::remove_file(place.source().join("1")).unwrap();
    let last = place.backup().await;
    place.repository.forget(&[place.snapshot]).await.unwrap();
    place.prune().await.unwrap();
    place.delete(&copied).await.unwrap();
    place.assert_sound().await;
    place.assert_restores(&last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_anything_missing_nothing_is_deleted() {
    for lost in ["a pack", "an index file", "a tree", "a snapshot"] {
        let place = Place::new().await;
        let copied = place.copy().await;
        match lost {
            "a pack" => place.lose("data/").await,
            "an index file" => place.lose("index/").await,
            "a tree" => {
                let mut snapshot = place.repository.snapshot(&place.snapshot).await.unwrap();
                snapshot.tree = Id::of(b"nowhere");
                let json = serde_json::to_vec(&snapshot).unwrap();
                let (id, sealed) = place.repository.files.seal(&json).unwrap();
                let key = FileKind::Snapshot.path(&id);
                place.memory.put(&key, sealed).await.unwrap();
            }
            _ => place.store.on(|request| match request {
                request if request.starts_with("get snapshots/") => Fate::Fail,
                _ => Fate::Pass,
            }),
        }
        place.store.asked("");
        assert!(place.delete(&copied).await.is_err(), "{lost}");
        let deleted = place.store.asked("delete ");
        assert!(
            deleted.iter().all(|key| key.starts_with("delete locks/")),
            "{lost}: {deleted:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_an_old_index_file_spares_the_packs() {
    let place = Place::new().await;
    place.store.on(|request| match request {
        request if request.starts_with("delete index/") => Fate::Fail,
        _ => Fate::Pass,
    });
    assert!(place.prune().await.is_err());
    assert!(place.store.asked("delete data/").is_empty());
    place.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_from_the_exclusive_lock_it_goes_on_next_time() {
    let place = Place::new().await;
    let repository = &place.repository;
    let reading = lock::acquire(
        &repository.files,
        &repository.options,
        Mode::Shared,
        &place.never,
    )
    .await
    .unwrap();
    assert!(matches!(place.prune().await, Err(Error::Locked { .. })));
    assert!(place.store.asked("delete data/").is_empty());
    reading.release(&place.never).await;
    place.store.asked("");
    place.prune().await.unwrap();
    assert!(place.store.asked("put data/").is_empty());
    place.assert_restores(&place.snapshot).await;
}

// What the store does not take is offered again for minutes.
#[tokio::test(start_paused = true)]
async fn with_the_store_gone_at_any_request_nothing_is_lost_and_the_next_run_ends_it() {
    let place = Place::new().await;
    for after in 0.. {
        let memory = Arc::new(MemoryStore::new());
        for key in place.keys("").await {
            let body = place.memory.get(&key).await.unwrap();
            memory.put(&key, body).await.unwrap();
        }
        let store = Faulty::new(memory.clone());
        let mut repository = place.repository.clone();
        repository.files.store = store.clone();
        let asked = AtomicUsize::new(0);
        store.on(move |_| {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            if number < after {
                Fate::Pass
            } else {
                Fate::Fail
            }
        });
        let result = repository.prune(ALL, &NoProgress, &place.never).await;
        store.on(|_| Fate::Pass);
        assert_sound(&repository).await;
        // Whoever comes next heals the lock of the dead; this process lives.
        memory.delete_prefix("locks").await.unwrap();
        let next = repository.prune(ALL, &NoProgress, &place.never).await;
        let next = next.unwrap();
        assert!(next.bytes_after < 620_000, "{after}: {next:?}");
        assert_sound(&repository).await;
        if result.is_ok() {
            assert!(after > 20, "{after}");
            return;
        }
    }
}
