//! One suite over every store: what the rest of Jackline relies on.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use jackline_storage::fs::LocalStore;
use jackline_storage::memory::MemoryStore;
use jackline_storage::metrics::Metered;
use jackline_storage::s3::S3Store;
use jackline_storage::{ObjectStore, Scoped};
use support::Minio;

type Store = Arc<dyn ObjectStore>;

async fn keys(store: &Store, prefix: &str) -> Vec<String> {
    let objects: Vec<_> = store.list(prefix).try_collect().await.unwrap();
    objects.into_iter().map(|object| object.key).collect()
}

/// Every promise of the trait, on an empty store.
async fn conforms(store: Store) {
    what_was_put_is_read_back(&store).await;
    a_missing_object_is_not_found(&store).await;
    ranges_are_exact_or_an_error(&store).await;
    what_lies_here_reads_as_its_ranges_do(&store).await;
    only_one_of_many_creates_an_object(&store).await;
    listings_are_in_byte_order_and_by_string_prefix(&store).await;
    a_level_shows_directories_once(&store).await;
    deleting_is_idempotent_and_stays_in_its_directory(&store).await;
    files_of_every_size_come_back(&store).await;
    keys_that_leave_the_root_are_refused(&store).await;
    concurrent_writers_never_mix_their_bytes(&store).await;
}

async fn what_was_put_is_read_back(store: &Store) {
    for (key, body) in [
        ("config", &b"hello"[..]),
        ("data/00/empty", b""),
        ("ü/ñ +&=%20?#", b"x"),
    ] {
        store.put(key, Bytes::copy_from_slice(body)).await.unwrap();
        assert_eq!(store.get(key).await.unwrap(), body, "{key}");
        let meta = store.head(key).await.unwrap().unwrap();
        assert_eq!((meta.key.as_str(), meta.size), (key, body.len() as u64));
        let age = jiff::Timestamp::now().duration_since(meta.modified.unwrap());
        assert!(age.abs() < jiff::SignedDuration::from_mins(5), "{age}");
    }
    store
        .put("config", Bytes::from_static(b"replaced"))
        .await
        .unwrap();
    assert_eq!(store.get("config").await.unwrap(), "replaced");
    for key in ["config", "data/00/empty", "ü/ñ +&=%20?#"] {
        assert!(keys(store, "").await.contains(&key.to_owned()), "{key}");
        store.delete(key).await.unwrap();
    }
}

async fn a_missing_object_is_not_found(store: &Store) {
    let target = tempfile::NamedTempFile::new().unwrap();
    let error = store.get("no/such").await.unwrap_err();
    assert!(error.is_not_found() && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("no/such"), "{error}");
    assert!(
        store
            .get_range("no/such", 0..1)
            .await
            .unwrap_err()
            .is_not_found()
    );
    assert!(
        store
            .download("no/such", target.path())
            .await
            .unwrap_err()
            .is_not_found()
    );
    assert_eq!(store.head("no/such").await.unwrap(), None);
    assert_eq!(keys(store, "no/").await, Vec::<String>::new());
    assert_eq!(store.list_level("no").await.unwrap(), Default::default());
}

async fn ranges_are_exact_or_an_error(store: &Store) {
    store
        .put("range", Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    assert_eq!(store.get_range("range", 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range("range", 3..5).await.unwrap(), "34");
    assert_eq!(store.get_range("range", 9..10).await.unwrap(), "9");
    assert_eq!(store.get_range("range", 4..4).await.unwrap(), "");
    for range in [5..11, 10..12, 20..30] {
        let error = store.get_range("range", range.clone()).await.unwrap_err();
        assert_eq!(error.reason(), "ShortRead", "{range:?}: {error}");
    }
    store.delete("range").await.unwrap();
}

async fn what_lies_here_reads_as_its_ranges_do(store: &Store) {
    let body = Bytes::from_static(b"0123456789");
    store.put("here", body).await.unwrap();
    if let Some(object) = store.local("here") {
        let (object, mut two) = (object.unwrap(), [0; 2]);
        object.read_at(3, &mut two).unwrap();
        assert_eq!(&two, b"34");
        object.read_at(10, &mut []).unwrap();
        for at in [9, 10, 20] {
            let error = object.read_at(at, &mut two).unwrap_err();
            assert_eq!(error.reason(), "ShortRead", "{at}: {error}");
        }
        let missing = store.local("no/such").unwrap().unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        let outside = store.local("../here").unwrap().unwrap_err();
        assert_eq!(outside.reason(), "InvalidKey", "{outside}");
    }
    store.delete("here").await.unwrap();
}

async fn only_one_of_many_creates_an_object(store: &Store) {
    let tries = (0..8).map(|index| {
        let store = store.clone();
        async move {
            let body = Bytes::from(format!("writer {index}"));
            store
                .put_if_absent("once", body.clone())
                .await
                .unwrap()
                .then_some(body)
        }
    });
    let winners: Vec<Bytes> = futures::future::join_all(tries)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(store.get("once").await.unwrap(), winners[0]);
    assert!(!store.put_if_absent("once", Bytes::new()).await.unwrap());
    assert_eq!(store.get("once").await.unwrap(), winners[0]);
    store.delete("once").await.unwrap();
}

async fn listings_are_in_byte_order_and_by_string_prefix(store: &Store) {
    let all = ["l/a-b", "l/a/b", "l/a/c/d", "l/a0", "l/b", "lx"];
    for key in all {
        store.put(key, Bytes::from_static(b"1")).await.unwrap();
    }
    assert_eq!(keys(store, "l").await, all);
    assert_eq!(keys(store, "l/").await, all[..5]);
    assert_eq!(keys(store, "l/a").await, all[..4]);
    assert_eq!(keys(store, "l/a/").await, ["l/a/b", "l/a/c/d"]);
    assert_eq!(keys(store, "l/a/c/d").await, ["l/a/c/d"]);
    assert_eq!(keys(store, "l/a/c/d/").await, Vec::<String>::new());
    store.delete("lx").await.unwrap();
    assert_eq!(store.delete_prefix("l").await.unwrap(), 5);
}

async fn a_level_shows_directories_once(store: &Store) {
    for key in [
        "d/one",
        "d/two",
        "d/sub/1",
        "d/sub/2",
        "d/zub/x/y",
        "other/1",
    ] {
        store.put(key, Bytes::from_static(b"12")).await.unwrap();
    }
    for directory in ["d", "d/"] {
        let level = store.list_level(directory).await.unwrap();
        assert_eq!(level.prefixes, ["d/sub/", "d/zub/"]);
        let names: Vec<_> = level
            .objects
            .iter()
            .map(|o| (o.key.as_str(), o.size))
            .collect();
        assert_eq!(names, [("d/one", 2), ("d/two", 2)]);
    }
    assert_eq!(
        store.list_level("").await.unwrap().prefixes,
        ["d/", "other/"]
    );
    assert_eq!(store.list_level("d/on").await.unwrap(), Default::default());
    store.delete_prefix("d").await.unwrap();
    store.delete_prefix("other/").await.unwrap();
}

async fn deleting_is_idempotent_and_stays_in_its_directory(store: &Store) {
    for key in ["backups/a/1", "backups/a/sub/2", "backups/ab/1"] {
        store.put(key, Bytes::from_static(b"1")).await.unwrap();
    }
    store.delete("backups/a/1").await.unwrap();
    store.delete("backups/a/1").await.unwrap();
    store.delete("never/was").await.unwrap();
    assert_eq!(store.delete_prefix("backups/a").await.unwrap(), 1);
    assert_eq!(store.delete_prefix("backups/a").await.unwrap(), 0);
    assert_eq!(keys(store, "backups/").await, ["backups/ab/1"]);
    for everything in ["", "/"] {
        assert_eq!(
            store.delete_prefix(everything).await.unwrap_err().reason(),
            "InvalidKey"
        );
    }
    store.delete_prefix("backups").await.unwrap();
}

async fn files_of_every_size_come_back(store: &Store) {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    for size in [0, 1, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 25 << 20] {
        let content = support::noise(size);
        std::fs::write(&from, &content).unwrap();
        assert_eq!(store.upload("file", &from).await.unwrap(), size as u64);
        std::fs::write(&to, "something longer that was there before").unwrap();
        assert_eq!(store.download("file", &to).await.unwrap(), size as u64);
        assert!(std::fs::read(&to).unwrap() == content, "{size} bytes");
        assert!(store.get("file").await.unwrap() == content, "{size} bytes");
    }
    let error = store
        .upload("file", &directory.path().join("absent"))
        .await
        .unwrap_err();
    assert_eq!(
        error.reason(),
        "FileError",
        "a missing local file is no missing object"
    );
    assert!(error.to_string().contains("absent"), "{error}");
    store.delete("file").await.unwrap();
}

async fn keys_that_leave_the_root_are_refused(store: &Store) {
    let target = tempfile::NamedTempFile::new().unwrap();
    for key in [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "a/./b",
        "nul\0",
    ] {
        let refusals = [
            store.get(key).await.err(),
            store.get_range(key, 0..1).await.err(),
            store.put(key, Bytes::new()).await.err(),
            store.put_if_absent(key, Bytes::new()).await.err(),
            store.head(key).await.err(),
            store.delete(key).await.err(),
            store.download(key, target.path()).await.err(),
            store.upload(key, target.path()).await.err(),
            store.presign_get(key, Duration::from_secs(1)).await.err(),
        ];
        for (call, refusal) in refusals.into_iter().enumerate() {
            let reason = refusal.map(|error| error.reason());
            assert_eq!(reason, Some("InvalidKey"), "{key:?} in call {call}");
        }
    }
    for prefix in ["/", "../", "a//"] {
        let listed: Result<Vec<_>, _> = store.list(prefix).try_collect().await;
        assert_eq!(listed.unwrap_err().reason(), "InvalidKey", "{prefix:?}");
        assert_eq!(
            store.list_level(prefix).await.unwrap_err().reason(),
            "InvalidKey"
        );
    }
}

async fn concurrent_writers_never_mix_their_bytes(store: &Store) {
    let writers = (0_u8..4).map(|byte| {
        let store = store.clone();
        async move {
            store
                .put("shared", vec![byte; 300_000].into())
                .await
                .unwrap()
        }
    });
    let readers = (0..8).map(|_| {
        let store = store.clone();
        async move {
            match store.get("shared").await {
                Err(error) => assert!(error.is_not_found(), "{error}"),
                Ok(body) => {
                    assert_eq!(body.len(), 300_000);
                    assert!(body.iter().all(|byte| *byte == body[0]));
                }
            }
        }
    });
    futures::join!(
        futures::future::join_all(writers),
        futures::future::join_all(readers)
    );
    store.delete("shared").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conforms(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_conforms() {
    let root = tempfile::tempdir().unwrap();
    conforms(Arc::new(LocalStore::new(
        root.path().join("made/by/the/first/write"),
    )))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let minio = Minio::start().await;
    let store = S3Store::connect(minio.config("conformance").await)
        .await
        .unwrap();
    conforms(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_bucket_and_a_part_of_that_conform() {
    let minio = Minio::start().await;
    let mut config = minio.config("scoped").await;
    config.prefix = "deep/er".into();
    let outer: Store = Arc::new(S3Store::connect(config).await.unwrap());
    outer
        .put("restic/other/config", Bytes::from_static(b"not ours"))
        .await
        .unwrap();
    let inner = Scoped::new(Arc::new(Metered::new(outer.clone())), "/restic/ns/");
    assert!(
        inner.location().ends_with("/scoped/deep/er/restic/ns"),
        "{}",
        inner.location()
    );
    conforms(Arc::new(inner)).await;
    assert_eq!(outer.get("restic/other/config").await.unwrap(), "not ours");
}

#[tokio::test]
async fn memory_in_a_scope_conforms() {
    conforms(Arc::new(Scoped::new(Arc::new(MemoryStore::new()), "a/b"))).await;
}
