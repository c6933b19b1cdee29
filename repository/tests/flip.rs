//! One flipped bit, in every kind of object: check or open names the object, and no restore ever yields a wrong file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jackline_repository::{
    BackupRequest, CheckOptions, Error, NoProgress, ReadData, Repository, RestoreOptions,
    SnapshotId,
};
use jackline_storage::ObjectStore;
use jackline_storage::memory::MemoryStore;
use support::{cheap_repository, noise, options, scratch};
use tokio_util::sync::CancellationToken;

type Objects = BTreeMap<String, Bytes>;

fn never() -> CancellationToken {
    CancellationToken::new()
}

fn check(no_lock: bool) -> CheckOptions {
    CheckOptions {
        read_data: ReadData::Everything,
        no_lock,
    }
}

async fn objects(store: &MemoryStore) -> Objects {
    let keys: Vec<String> = store
        .list("")
        .map_ok(|meta| meta.key)
        .try_collect()
        .await
        .unwrap();
    let mut found = Objects::new();
    for key in keys {
        if let Ok(body) = store.get(&key).await {
            found.insert(key, body);
        }
    }
    found
}

/// The objects with one bit of one of them flipped.
async fn flipped(sound: &Objects, name: &str, bit: usize) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    for (key, body) in sound {
        let mut body = body.to_vec();
        if key == name {
            body[bit / 8] ^= 1 << (bit % 8);
        }
        store.put(key, Bytes::from(body)).await.unwrap();
    }
    store
}

/// Bits of an object: the first and the last, those of the length that ends a pack, of the header before it, and some
/// from all over it.
fn bits(name: &str, body: &Bytes) -> Vec<usize> {
    let bytes = body.len();
    let seed = name.bytes().map(u64::from).sum();
    let mut bits = vec![
        0,
        bytes * 8 - 1,
        (bytes - 4) * 8,
        (bytes - 20) * 8 + 3,
        (bytes - 40) * 8,
    ];
    for random in noise(seed, 24).chunks(3) {
        let random = u32::from_le_bytes([random[0], random[1], random[2], 0]);
        bits.push(((u64::from(random) * (bytes as u64 * 8)) >> 24) as usize);
    }
    bits
}

/// Everything that is said about the damage. Fails on a wrong file.
async fn said(store: Arc<MemoryStore>, id: &SnapshotId, source: &Path) -> String {
    let repository = match Repository::open(store, &options()).await {
        Ok(repository) => repository,
        Err(error) => return error.to_string(),
    };
    let report = repository.check(check(true), &NoProgress, &never()).await;
    let mut said = report.unwrap().errors.join("\n");
    let dir = scratch();
    let target = dir.path().join("target");
    let all = RestoreOptions::default();
    let restored = repository
        .restore(id, &target, all, &NoProgress, &never())
        .await;
    let complete = match restored {
        Ok(summary) => {
            for problem in &summary.errors {
                assert!(problem.message.contains("damaged"), "{problem:?}");
            }
            summary.is_complete()
        }
        Err(error @ Error::Corrupt { .. }) => {
            said += &error.to_string();
            false
        }
        Err(error) => panic!("{error}"),
    };
    for name in ["large", "sub/small"] {
        match fs::read(target.join(name)) {
            Ok(found) => assert!(
                found == fs::read(source.join(name)).unwrap(),
                "{name} is wrong: {said}"
            ),
            Err(_) => assert!(!complete, "{name} is missing: {said}"),
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_is_an_error_that_names_the_object() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("large"), noise(3, 9_000_000)).unwrap();
    fs::write(source.join("sub/small"), noise(4, 2000)).unwrap();
    let store = Arc::new(MemoryStore::new());
    cheap_repository(&*store).await;
    let repository = Repository::open(store.clone(), &options()).await.unwrap();
    let request = BackupRequest::contents(&source, "h");
    let made = repository.backup(request, &NoProgress, &never()).await;
    let id = made.unwrap().snapshot.unwrap();
    let sound = objects(&store).await;
    assert_eq!(said(store, &id, &source).await, "");

    let kinds: Vec<_> = sound.keys().map(|key| key.split('/').next()).collect();
    for kind in ["config", "data", "index", "keys", "snapshots"] {
        assert!(kinds.contains(&Some(kind)), "{kind}");
    }
    let mut points = Vec::new();
    for (name, body) in &sound {
        for bit in bits(name, body) {
            points.push((name, bit));
        }
    }
    futures::stream::iter(points)
        .map(async |(name, bit)| {
            let store = flipped(&sound, name, bit).await;
            let said = said(store, &id, &source).await;
            assert!(said.contains(name.as_str()), "{name}, bit {bit}: {said}");
        })
        .buffer_unordered(8)
        .collect::<Vec<()>>()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_in_a_lock_is_an_error_that_names_it() {
    let store = Arc::new(MemoryStore::new());
    cheap_repository(&*store).await;
    let repository = Repository::open(store.clone(), &options()).await.unwrap();
    let running = {
        let repository = repository.clone();
        tokio::spawn(async move { repository.check(check(false), &NoProgress, &never()).await })
    };
    let (name, body) = loop {
        let found = objects(&store).await;
        if let Some(lock) = found.into_iter().find(|(key, _)| key.starts_with("locks/")) {
            break lock;
        }
        tokio::task::yield_now().await;
    };
    assert!(running.await.unwrap().unwrap().is_ok());
    let mut sound = objects(&store).await;
    sound.insert(name.clone(), body.clone());
    for bit in bits(&name, &body) {
        let store = flipped(&sound, &name, bit).await;
        let repository = Repository::open(store, &options()).await.unwrap();
        match repository.check(check(false), &NoProgress, &never()).await {
            Err(Error::Corrupt { object, .. }) => assert_eq!(object, name),
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}
