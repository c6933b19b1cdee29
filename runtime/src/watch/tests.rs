//! A scripted API server for ConfigMaps: lists in pages and watches that a test can feed, cut and silence.

use std::{collections::VecDeque, sync::Arc};

use http::{Request as HttpRequest, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_test::mock;

use super::*;
use crate::{Health, Kit, metrics::for_tests};

/// What the server does with the next request.
enum Step {
    /// A page: items and continue token.
    Page(Vec<Value>, Option<&'static str>),
    /// A watch that sends these lines and ends.
    Lines(Vec<Value>),
    /// An error answer.
    Error(u16, &'static str),
    /// No answer at all.
    Hang,
}

#[derive(Clone, Default)]
struct Server {
    steps: Arc<Mutex<VecDeque<Step>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn then(&self, step: Step) -> &Self {
        self.steps.lock().push_back(step);
        self
    }

    fn client(&self) -> Client {
        let (service, mut handle) = mock::pair::<HttpRequest<Body>, Response<Body>>();
        let server = self.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                server.asked.lock().push(request.uri().to_string());
                let step = server.steps.lock().pop_front();
                let (code, body) = match step {
                    Some(Step::Page(items, token)) => {
                        (200, json!({
                            "apiVersion": "v1", "kind": "ConfigMapList", "items": items,
                            "metadata": {"resourceVersion": "10", "continue": token.unwrap_or_default()},
                        }).to_string())
                    }
                    Some(Step::Lines(lines)) => {
                        (200, lines.iter().map(|line| format!("{line}\n")).collect())
                    }
                    Some(Step::Error(code, reason)) => (code, json!({
                        "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason,
                    }).to_string()),
                    Some(Step::Hang) | None => {
                        std::mem::forget(send);
                        continue;
                    }
                };
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(body.into_bytes()))
                    .unwrap();
                send.send_response(response);
            }
        });
        Client::new(service, "n")
    }

    fn watch(&self, guard: bool) -> (Store<ConfigMap>, Health, Metrics) {
        let (health, metrics, store) = (Health::default(), for_tests(), Store::default());
        let around = Surroundings {
            clients: Clients::same(self.client()),
            metrics: metrics.clone(),
            check: Arc::new(health.check("watch configmaps")),
        };
        let spec = WatchSpec::new("configmaps").namespace("n").page_size(2);
        tokio::spawn(into_store(
            around,
            spec,
            store.clone(),
            Box::new(|_| true),
            guard,
        ));
        (store, health, metrics)
    }
}

fn map(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version,
                     "managedFields": [{"manager": "m"}]},
    })
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn names(store: &Store<ConfigMap>) -> Vec<String> {
    let mut names: Vec<_> = store.keys().into_iter().map(|key| key.name).collect();
    names.sort();
    names
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn pages_are_joined_and_events_applied() {
    let server = Server::default();
    server
        .then(Step::Page(vec![map("a", "1"), map("b", "2")], Some("more")))
        .then(Step::Page(vec![map("c", "3")], None))
        .then(Step::Lines(vec![
            event("ADDED", map("d", "11")),
            event("DELETED", map("a", "12")),
            event("BOOKMARK", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}})),
        ]));
    let (store, health, _) = server.watch(false);
    assert!(!store.is_ready());
    store.ready().await;
    seconds(1).await;
    assert_eq!(names(&store), ["b", "c", "d"]);
    assert!(
        store
            .list()
            .iter()
            .all(|map| map.metadata.managed_fields.is_none())
    );
    assert!(health.ready().is_ok());
    seconds(3).await;
    let asked = server.asked.lock();
    assert!(
        asked[0].contains("limit=2") && asked[1].contains("continue=more"),
        "{asked:?}"
    );
    assert!(
        asked[2].contains("watch=true") && asked[2].contains("timeoutSeconds=200"),
        "{asked:?}"
    );
    assert!(
        asked[3].contains("resourceVersion=20"),
        "goes on from the bookmark: {asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn expired_versions_list_again_and_what_went_meanwhile_goes() {
    for expired in [
        Step::Lines(vec![event(
            "ERROR",
            json!({"kind": "Status", "code": 410, "reason": "Expired", "message": ""}),
        )]),
        Step::Error(410, "Gone"),
    ] {
        let server = Server::default();
        server
            .then(Step::Page(vec![map("a", "1"), map("b", "2")], None))
            .then(expired)
            // A list that breaks off in the middle must not lose or keep anything.
            .then(Step::Page(vec![map("a", "1")], Some("more")))
            .then(Step::Error(500, "InternalError"))
            .then(Step::Page(vec![map("b", "2"), map("c", "5")], None));
        let (store, ..) = server.watch(false);
        seconds(20).await;
        assert_eq!(names(&store), ["b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_without_the_shape_of_its_kind_is_left_out_not_fatal() {
    let mut bad = map("bad", "3");
    bad["data"] = json!("not a map");
    let server = Server::default();
    server
        .then(Step::Page(vec![map("a", "1"), bad.clone()], None))
        .then(Step::Error(500, "InternalError"))
        .then(Step::Lines(vec![event("MODIFIED", {
            let mut worse = map("a", "4");
            worse["data"] = json!(7);
            worse
        })]));
    let (store, health, metrics) = server.watch(true);
    store.ready().await;
    assert_eq!(names(&store), ["a"]);
    assert!(health.ready().is_ok());
    seconds(3).await;
    assert!(
        store.is_empty(),
        "what cannot be read any more is not acted on"
    );
    assert_eq!(
        metrics
            .families
            .watch_invalid
            .with_label_values(&["configmaps"])
            .get(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_turns_readiness_red_and_recovers() {
    let server = Server::default();
    server
        .then(Step::Page(vec![map("a", "1")], None))
        .then(Step::Hang)
        .then(Step::Hang);
    let (store, health, _) = server.watch(false);
    store.ready().await;
    seconds(900).await;
    let failing = health.ready().unwrap_err();
    assert!(failing[0].1.contains("no word"), "{failing:?}");
    assert_eq!(names(&store), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_hangs_is_given_up_and_asked_again() {
    let server = Server::default();
    server
        .then(Step::Hang)
        .then(Step::Page(vec![map("a", "1")], None));
    let (store, ..) = server.watch(false);
    tokio::time::timeout(Duration::from_secs(65), store.ready())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_is_said_and_awaited() {
    let server = Server::default();
    server
        .then(Step::Error(404, "NotFound"))
        .then(Step::Error(404, "NotFound"))
        .then(Step::Page(vec![], None));
    let (store, health, _) = server.watch(false);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let failing = health.ready().unwrap_err();
    assert!(failing[0].1.contains("configmaps"), "{failing:?}");
    tokio::time::timeout(Duration::from_secs(10), store.ready())
        .await
        .unwrap();
    assert!(health.ready().is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_watch_that_fails_for_ever_does_not_hold_up_another() {
    let (bad, good) = (Server::default(), Server::default());
    for _ in 0..1000 {
        bad.then(Step::Error(500, "InternalError"));
    }
    good.then(Step::Page(vec![map("a", "1")], None));
    for version in 11..40 {
        good.then(Step::Lines(vec![event(
            "ADDED",
            map(&format!("m{version}"), &version.to_string()),
        )]));
    }
    let (failing, ..) = bad.watch(false);
    let (store, ..) = good.watch(false);
    seconds(600).await;
    assert!(!failing.is_ready());
    assert_eq!(store.len(), 30);
    let tries = bad.asked.lock().len();
    assert!(
        (30..=70).contains(&tries),
        "{tries} in ten minutes: backoff up to 15 s"
    );
}

#[tokio::test(start_paused = true)]
async fn raw_events_come_in_order_and_nothing_is_stored() {
    let server = Server::default();
    server
        .then(Step::Page(vec![map("a", "1")], None))
        .then(Step::Lines(vec![
            event("MODIFIED", map("a", "11")),
            event("DELETED", map("a", "12")),
        ]));
    let kit = Kit::assemble(
        "jackline-test",
        Clients::same(server.client()),
        CancellationToken::new(),
    )
    .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    kit.watch_raw::<ConfigMap>(WatchSpec::new("configmaps"), move |event| {
        log.lock().push(match event {
            WatchEvent::Init => "init".to_owned(),
            WatchEvent::InitApply(map) => format!("list {}", map.name_any()),
            WatchEvent::InitDone => "done".to_owned(),
            WatchEvent::Apply(map) => format!("apply {}", map.name_any()),
            WatchEvent::Delete(map) => format!("delete {}", map.name_any()),
        });
    });
    seconds(1).await;
    assert_eq!(
        *seen.lock(),
        ["init", "list a", "done", "apply a", "delete a"]
    );
}
