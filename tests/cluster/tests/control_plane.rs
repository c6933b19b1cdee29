//! A control plane alone: quick, with an audit log, and replaced when an earlier run crashed.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, too"
)]

use std::collections::BTreeMap;

use jackline_test_cluster::{Cluster, Options};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_counted_and_a_crashed_run_is_replaced() {
    let mut options = Options::named("control-plane").control_plane();
    options.audit_log = true;
    options.keep = true;
    let crashed = Cluster::up(options.clone()).await.unwrap();
    make(&crashed, "old").await;
    let written = std::fs::read_to_string(crashed.log("audit.jsonl")).unwrap();
    let creates = written
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let creates =
        creates.filter(|event| event["verb"] == "create" && event["objectRef"]["name"] == "old");
    assert_eq!(creates.count(), 1);

    // Left behind, as by a program that was killed: its processes run on, and a second owner finds them.
    let left = crashed.processes();
    assert!(left.len() >= 3, "etcd, API server and forwarder: {left:?}");
    drop(crashed);
    options.keep = false;
    let fresh = Cluster::up(options).await.unwrap();
    assert!(
        left.iter().all(|pid| !fresh.processes().contains(pid)),
        "old processes run on"
    );
    let maps = Api::<ConfigMap>::namespaced(fresh.client(), "default");
    assert!(
        maps.get_opt("old").await.unwrap().is_none(),
        "the old cluster's objects are there"
    );
    fresh.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_owner() {
    let options = Options::named("one-owner").control_plane();
    let first = Cluster::up(options.clone()).await.unwrap();
    let error = Cluster::up(options.clone()).await.unwrap_err();
    assert!(
        format!("{error:#}").contains("another program uses"),
        "{error:#}"
    );
    let attached = Cluster::attach(&options.dir).await.unwrap();
    make(&attached, "seen").await;
    drop(attached);
    make(&first, "still-up").await;
    drop(first);
    assert!(!options.dir.exists());
}

#[tokio::test]
async fn a_directory_of_other_things_is_left_alone() {
    let dir = std::env::temp_dir().join("jackline-test-not-a-cluster");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("precious"), "x").unwrap();
    let refused = [
        Cluster::up(Options::new(&dir).control_plane())
            .await
            .map(drop),
        Cluster::down_at(&dir),
    ];
    for result in refused {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("not a test cluster's"), "{error}");
    }
    assert!(dir.join("precious").exists());
    std::fs::remove_dir_all(&dir).unwrap();
}

async fn make(cluster: &Cluster, name: &str) {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("key".to_owned(), "value".to_owned())])),
        ..ConfigMap::default()
    };
    let maps = Api::namespaced(cluster.client(), "default");
    maps.create(&PostParams::default(), &map).await.unwrap();
}
