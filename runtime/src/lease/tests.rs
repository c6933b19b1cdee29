//! Two contenders on a scripted API server that keeps one Lease and compares resourceVersions, as the real one does.

use std::sync::Arc;

use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::metrics::for_tests;

/// Moves a [`Lease`] by hand.
pub(crate) struct Control(watch::Sender<Held>);

pub(crate) fn controlled() -> (Lease, Control) {
    let (sender, state) = watch::channel(Held {
        term: 0,
        until: None,
        epoch: Epoch::default(),
    });
    (Lease { state }, Control(sender))
}

impl Control {
    pub(crate) fn win(&self, time: Duration) {
        self.0.send_modify(|held| {
            held.term += 1;
            held.until = Some(Instant::now() + time);
        });
    }

    pub(crate) fn lose(&self) {
        self.0.send_modify(|held| held.until = None);
    }
}

#[derive(Default)]
struct Server {
    object: Option<Value>,
    version: u64,
    /// Writers whose requests are not answered any more.
    silent: Vec<&'static str>,
    /// Every accepted write: who, and when.
    writes: Vec<(String, Instant)>,
}

type Shared = Arc<Mutex<Server>>;

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

impl Server {
    fn answer(&mut self, method: &str, body: &Value) -> (u16, Value) {
        let holder = body["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        match (method, &self.object) {
            ("GET", None) => (404, status(404, "NotFound")),
            ("GET", Some(object)) => (200, object.clone()),
            ("POST", Some(_)) => (409, status(409, "AlreadyExists")),
            ("PUT", None) => (404, status(404, "NotFound")),
            ("PUT", Some(object))
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] =>
            {
                (409, status(409, "Conflict"))
            }
            _ => {
                self.version += 1;
                let mut object = body.clone();
                object["metadata"]["resourceVersion"] = json!(self.version.to_string());
                self.object = Some(object.clone());
                self.writes.push((holder, Instant::now()));
                (200, object)
            }
        }
    }
}

/// A client of the shared server; `name` is who is cut off by `silent`.
fn client(server: &Shared, name: &'static str) -> Client {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let server = server.clone();
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            if server.lock().silent.contains(&name) {
                // Held for ever, like a dead connection.
                std::mem::forget(send);
                continue;
            }
            let (code, answer) = server.lock().answer(parts.method.as_str(), &body);
            let response = Response::builder()
                .status(code)
                .body(Body::from(serde_json::to_vec(&answer).unwrap()))
                .unwrap();
            send.send_response(response);
        }
    });
    Client::new(service, "velero")
}

struct Contender {
    lease: Lease,
    release: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn contender(server: &Shared, name: &'static str) -> Contender {
    let mut settings = LeaseSettings::new("velero", "jackline", name);
    settings.identity = name.to_owned();
    let release = CancellationToken::new();
    let (lease, task) = elect(client(server, name), settings, for_tests(), release.clone());
    Contender {
        lease,
        release,
        task: tokio::spawn(task),
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_follows_a_killed_leader_within_17_seconds() {
    let server = Shared::default();
    let first = contender(&server, "first");
    first.lease.acquired().await;
    let second = contender(&server, "second");
    seconds(60).await;
    assert!(first.lease.token().is_some());
    assert!(second.lease.token().is_none(), "the lease is renewed");
    first.task.abort();
    let killed = Instant::now();
    second.lease.acquired().await;
    let took = killed.elapsed();
    assert!(took <= Duration::from_secs(17), "{took:?}");
    assert!(
        took >= Duration::from_secs(11),
        "{took:?}: not before the lease was over"
    );
}

#[tokio::test(start_paused = true)]
async fn a_clean_end_hands_over_at_once() {
    let server = Shared::default();
    let first = contender(&server, "first");
    let token = first.lease.acquired().await;
    let second = contender(&server, "second");
    seconds(10).await;
    first.release.cancel();
    first.task.await.unwrap();
    assert_eq!(token.check(), Err(NotLeader));
    let given = Instant::now();
    second.lease.acquired().await;
    assert!(
        given.elapsed() <= Duration::from_secs(2),
        "{:?}",
        given.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_the_other_may_start() {
    let server = Shared::default();
    let first = contender(&server, "first");
    let token = first.lease.acquired().await;
    let second = contender(&server, "second");
    seconds(20).await;
    server.lock().silent.push("first");
    let last_write = server
        .lock()
        .writes
        .iter()
        .rev()
        .find(|(who, _)| who == "first")
        .unwrap()
        .1;
    token.lost().await;
    let stopped = Instant::now();
    assert!(
        stopped - last_write <= Duration::from_secs(12),
        "{:?}",
        stopped - last_write
    );
    let other = second.lease.acquired().await;
    assert!(Instant::now() > stopped, "never two at once");
    other.check().unwrap();
    assert_eq!(token.check(), Err(NotLeader));
    assert!(token.epoch().is_before(other.epoch()) && !other.epoch().is_before(token.epoch()));
    // Back again: it follows, and its old token stays dead.
    server.lock().silent.clear();
    seconds(60).await;
    assert_eq!(token.check(), Err(NotLeader));
    assert!(second.lease.token().is_some() && first.lease.token().is_none());
}

#[tokio::test(start_paused = true)]
async fn of_many_that_start_at_once_exactly_one_leads() {
    let server = Shared::default();
    let contenders: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|n| contender(&server, n))
        .collect();
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leading = contenders
            .iter()
            .filter(|c| c.lease.token().is_some())
            .count();
        assert!(leading <= 1, "{leading} lead");
    }
    assert_eq!(
        contenders
            .iter()
            .filter(|c| c.lease.token().is_some())
            .count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_stopped_process_finds_its_right_gone_when_it_wakes() {
    let (lease, control) = controlled();
    control.win(Duration::from_secs(12));
    let token = lease.acquired().await;
    token.check().unwrap();
    // Nobody told us, but the time is over.
    tokio::time::advance(Duration::from_secs(13)).await;
    assert_eq!(token.check(), Err(NotLeader));
    assert!(lease.token().is_none());
}

#[test]
fn epochs_are_counted_by_their_lease_and_survive_as_text() {
    let epoch = |text: &str| text.parse::<Epoch>();
    let (second, tenth) = (epoch("2/a").unwrap(), epoch("10/a").unwrap());
    assert!(second.is_before(&tenth) && !tenth.is_before(&second) && !second.is_before(&second));
    assert!(!second.is_before(&epoch("10/b").unwrap()));
    assert_eq!(epoch(&tenth.to_string()), Ok(tenth));
    for wrong in ["", "7", "a/7", "/", "99999999999/a"] {
        assert_eq!(epoch(wrong), Err(NoEpoch), "{wrong}");
    }
}
