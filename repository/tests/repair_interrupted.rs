//! A repair whose process dies at a request, before or after that takes effect: the next repairs end where they would have
//! ended without it.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use faulty::{Fate, Faulty};
use futures::{StreamExt, TryStreamExt};
use jackline_repository::{
    BackupRequest, CheckOptions, Error, NoProgress, ReadData, RepairOptions, Repository,
};
use jackline_storage::ObjectStore;
use jackline_storage::memory::MemoryStore;
use support::{cheap_repository, noise, options, scratch};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const STEPS: [Step; 3] = [Step::Index, Step::Packs, Step::Snapshots];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Index,
    Packs,
    Snapshots,
}

impl Step {
    async fn run(self, repository: &Repository) -> Result<(), Error> {
        let never = CancellationToken::new();
        let how = RepairOptions {
            forget: self == Self::Snapshots,
            ..RepairOptions::default()
        };
        match self {
            Self::Index => {
                let repaired = repository.repair_index(how, &NoProgress, &never);
                repaired.await.map(drop)
            }
            Self::Packs => {
                let repaired = repository.repair_packs(&[], how, &NoProgress, &never);
                repaired.await.map(drop)
            }
            Self::Snapshots => {
                let repaired = repository.repair_snapshots(&[], how, &NoProgress, &never);
                repaired.await.map(drop)
            }
        }
    }
}

async fn copy(from: &MemoryStore) -> Arc<MemoryStore> {
    let to = MemoryStore::new();
    for key in keys(from, "").await {
        to.put(&key, from.get(&key).await.unwrap()).await.unwrap();
    }
    Arc::new(to)
}

async fn keys(store: &MemoryStore, prefix: &str) -> Vec<String> {
    let listed: Vec<_> = store.list(prefix).try_collect().await.unwrap();
    listed.into_iter().map(|meta| meta.key).collect()
}

async fn open(store: Arc<dyn ObjectStore>) -> Repository {
    Repository::open(store, &options()).await.unwrap()
}

/// Three snapshots. A pack of data is gone, another has a flipped bit, and so has one index file.
async fn damaged() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    cheap_repository(&*store).await;
    let dir = scratch();
    let repository = open(store.clone()).await;
    let mut large = Vec::new();
    for round in 0..3 {
        let known = keys(&store, "").await;
        for file in 0..3 {
            let name = format!("{round}-{file}");
            fs::write(dir.path().join(name), noise(10 * round + file, 50_000)).unwrap();
        }
        let request = BackupRequest::contents(dir.path(), "h");
        let never = CancellationToken::new();
        let made = repository.backup(request, &NoProgress, &never).await;
        made.unwrap();
        let mut sized = Vec::new();
        for key in keys(&store, "").await {
            if !known.contains(&key) {
                sized.push((store.get(&key).await.unwrap().len(), key));
            }
        }
        large.push(sized.into_iter().max().unwrap().1);
    }
    store.delete(&large[1]).await.unwrap();
    let index = keys(&store, "index/").await;
    for key in [&large[2], &index[0]] {
        let mut bytes = Vec::from(store.get(key).await.unwrap());
        bytes[100] ^= 1;
        store.put(key, bytes.into()).await.unwrap();
    }
    store
}

/// What the snapshots hold, after a check of every byte.
async fn sound(store: &Arc<MemoryStore>, when: &str) -> Vec<String> {
    let repository = open(store.clone()).await;
    let options = CheckOptions {
        read_data: ReadData::Everything,
        no_lock: true,
    };
    let never = CancellationToken::new();
    let report = repository.check(options, &NoProgress, &never).await;
    let report = report.unwrap();
    assert!(report.is_ok(), "{when}: {report:?}");
    assert_eq!(keys(store, "locks/").await, Vec::<String>::new(), "{when}");
    let snapshots = repository.snapshots().await.unwrap();
    let mut trees: Vec<_> = snapshots
        .iter()
        .map(|info| info.snapshot.tree.to_hex())
        .collect();
    trees.sort();
    trees
}

/// Runs a step on a copy until request `at`, for which `fate` is meant. The process that ends there is none of this host
/// any more. `None`: it had ended before.
async fn interrupted(
    store: &MemoryStore,
    step: Step,
    at: usize,
    fate: Fate,
    dead: u32,
) -> Option<Arc<MemoryStore>> {
    let memory = copy(store).await;
    let faulty = Faulty::new(memory.clone());
    let mut mine = options();
    mine.holder.pid = dead;
    let repository = Repository::open(faulty.clone(), &mine).await.unwrap();
    let (asked, died) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let dies = Arc::clone(&died);
    faulty.on(move |_| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        if number >= at {
            dies.notify_one();
        }
        match number.cmp(&at) {
            std::cmp::Ordering::Less => Fate::Pass,
            std::cmp::Ordering::Equal => fate,
            std::cmp::Ordering::Greater => Fate::Never,
        }
    });
    let ended = tokio::select! {
        result = step.run(&repository) => { result.unwrap(); true }
        () = died.notified() => false,
    };
    if ended {
        return None;
    }
    // What is at the server takes effect all the same.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Some(memory)
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_at_any_request_a_repair_is_continued_by_the_next() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();

    let mut store = damaged().await;
    let end = copy(&store).await;
    for step in STEPS {
        step.run(&open(end.clone()).await).await.unwrap();
    }
    let want = sound(&end, "uninterrupted").await;
    assert!(!want.is_empty());

    for step in STEPS {
        let faulty = Faulty::new(copy(&store).await);
        let repository = open(faulty.clone()).await;
        faulty.asked("");
        step.run(&repository).await.unwrap();
        let requests = faulty.asked("");
        let points = requests.iter().enumerate().flat_map(|(at, request)| {
            let writes = request.starts_with("put") || request.starts_with("delete");
            let after = writes.then_some((at, Fate::Silence));
            [Some((at, Fate::Never)), after].into_iter().flatten()
        });
        let died = futures::stream::iter(points.collect::<Vec<_>>())
            .map(|(at, fate)| {
                let (store, want, requests) = (&store, &want, &requests);
                async move {
                    let when = format!("{step:?}, request {at} ({}), {fate:?}", requests[at]);
                    let Some(left) = interrupted(store, step, at, fate, dead).await else {
                        return 0;
                    };
                    let repository = open(left.clone()).await;
                    for step in STEPS {
                        let repaired = step.run(&repository).await;
                        repaired.unwrap_or_else(|error| panic!("{when}: then {step:?}: {error}"));
                    }
                    assert_eq!(&sound(&left, &when).await, want, "{when}");
                    1
                }
            })
            .buffer_unordered(16)
            .collect::<Vec<usize>>()
            .await;
        let died: usize = died.iter().sum();
        assert!(
            died + 3 > requests.len(),
            "{step:?}: {died} of {}",
            requests.len()
        );
        let next = copy(&store).await;
        step.run(&open(next.clone()).await).await.unwrap();
        store = next;
    }
}
