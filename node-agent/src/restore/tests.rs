use std::convert::Infallible;

use http::{Method, Request, Response};
use jackline_holder::{ApiJudge, holder};
use jackline_runtime::{CancellationToken, Events, Store};
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::*;
use crate::{context::ClientBox, metrics::Metrics, repos::Repositories};

const POD_UID: &str = "7c0a6f7e-1111-2222-3333-444455556666";
const CLAIM: &str = "/api/v1/namespaces/n/persistentvolumeclaims/claim";

/// What the API server has, and what it was asked.
#[derive(Debug, Default)]
struct Server {
    pod: Value,
    restore: Value,
    /// So many writes fail before one is taken.
    away: u32,
    asked: Vec<String>,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        self.asked.push(format!("{method} {path}"));
        let what = match path {
            "/api/v1/namespaces/n/pods/web" => &mut self.pod,
            "/apis/velero.io/v1/namespaces/velero/podvolumerestores/r" => &mut self.restore,
            _ => &mut Value::Null,
        };
        if *method == Method::PATCH {
            if self.away > 0 {
                self.away -= 1;
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "away", "reason": ""});
                return (500, status);
            }
            for (name, value) in body["status"].as_object().into_iter().flatten() {
                what["status"][name] = value.clone();
            }
        }
        if what.is_null() {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "message": "", "reason": "NotFound"});
            return (404, status);
        }
        (200, what.clone())
    }

    /// Whether anybody went for the data.
    fn was_restored(&self) -> bool {
        let location = "/apis/velero.io/v1/namespaces/velero/backupstoragelocations/";
        self.asked.iter().any(|asked| asked.contains(location))
    }
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = server.clone();
    let serve = move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = server.lock().answer(&parts.method, parts.uri.path(), &body);
            let answer = Body::from(serde_json::to_vec(&answer).unwrap());
            Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
        }
    };
    Client::new(tower::service_fn(serve), "n")
}

fn pod(state: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "n", "uid": POD_UID},
        "spec": {
            "containers": [],
            "initContainers": [{"name": "restore-wait", "args": ["r1"]}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "claimed", "persistentVolumeClaim": {"claimName": "claim"}}],
        },
        "status": {"initContainerStatuses": [
            {"name": "restore-wait", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0},
        ]},
    })
}

fn waiting() -> Value {
    pod(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}))
}

fn restore(status: Value) -> Value {
    json!({
        "apiVersion": "velero.io/v1", "kind": "PodVolumeRestore",
        "metadata": {"name": "r", "namespace": "velero", "uid": "o1", "labels": {"velero.io/restore-uid": "r1"}},
        "spec": {
            "pod": {"kind": "Pod", "namespace": "n", "name": "web", "uid": POD_UID}, "volume": "data",
            "backupStorageLocation": "default", "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n",
        },
        "status": status,
    })
}

struct Node {
    restores: Restores,
    server: Arc<Mutex<Server>>,
    host_pods: tempfile::TempDir,
}

impl Node {
    /// An agent whose watches have seen the pod wait, and the restore as it is.
    fn new(restore: &Value) -> Self {
        let server = Server {
            pod: waiting(),
            restore: restore.clone(),
            ..Server::default()
        };
        let server = Arc::new(Mutex::new(server));
        let client = client(&server);
        let host_pods = tempfile::tempdir().unwrap();
        let volume = host_pods
            .path()
            .join(POD_UID)
            .join("volumes/kubernetes.io~empty-dir/data");
        std::fs::create_dir_all(volume).unwrap();
        let registry = prometheus::Registry::new();
        let metrics = jackline_runtime::Metrics::new(registry.clone(), "test").unwrap();
        let shutdown = CancellationToken::new();
        let (events, _) = Events::new(client.clone(), "test", "test", metrics, shutdown.clone());
        let judge = ApiJudge {
            client: client.clone(),
            namespace: "velero".to_owned(),
            mine: None,
        };
        let holder = holder("", "a", "velero");
        let wait = Duration::ZERO;
        let context = Context {
            node: "a".to_owned(),
            namespace: "velero".to_owned(),
            host_pods: host_pods.path().to_owned(),
            pods: Store::fixed([serde_json::from_value(waiting()).unwrap()]),
            veleros: Store::fixed([]),
            backups: Store::fixed([]),
            restores: Store::fixed([serde_json::from_value(restore.clone()).unwrap()]),
            repositories: Repositories::new(
                client.clone(),
                "velero",
                holder,
                Arc::new(judge),
                wait,
            ),
            client: ClientBox(client),
            events,
            metrics: Metrics::new(&registry, "a").unwrap(),
            slots: Arc::new(Semaphore::new(1)),
            give_up_after: Duration::from_secs(1800),
            shutdown,
        };
        Self {
            restores: Restores::new(Arc::new(context)),
            server,
            host_pods,
        }
    }

    fn key() -> Key {
        Key::namespaced("velero", "r")
    }

    fn volume(&self) -> std::path::PathBuf {
        let pod = self.host_pods.path().join(POD_UID);
        pod.join("volumes/kubernetes.io~empty-dir/data")
    }

    /// The phase after a pass, in which nothing may be restored.
    async fn untouched(&self) -> Value {
        self.restores.pass(&Self::key()).await.unwrap();
        let server = self.server.lock();
        assert!(!server.was_restored(), "{:?}", server.asked);
        server.restore["status"]["phase"].clone()
    }
}

fn begun() -> Value {
    json!({"phase": "InProgress", "node": "a", "progress": {"totalBytes": 7, "bytesDone": 7}})
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_is_given_its_data() {
    let node = Node::new(&restore(json!({"phase": "New"})));
    let failed = node.restores.pass(&Node::key()).await.unwrap_err();
    assert_eq!(failed.reason, "LocationMissing");
    assert!(node.server.lock().was_restored());
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_not_restored_again_while_its_status_cannot_be_written() {
    let node = Node::new(&restore(begun()));
    node.server.lock().away = 1000;
    let object: PodVolumeRestore = serde_json::from_value(restore(begun())).unwrap();
    let record = Record::new(node.restores.context.api(), object.clone());
    let complete = Complete::now(7);
    // The watch still shows a pod that waits, and so does the API: the outage began before the pod went on.
    let told = node
        .restores
        .end(&Node::key(), &object, &record, Ok(complete))
        .await;
    told.unwrap_err();
    node.server.lock().away = 3;
    assert_eq!(node.untouched().await, "Completed");
    let status = node.server.lock().restore["status"].clone();
    assert_eq!(status["completionTimestamp"], json!(Time(complete.at)));
    assert_eq!(status["progress"]["totalBytes"], 7);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_has_not_seen_go_on_keeps_its_data() {
    let node = Node::new(&restore(begun()));
    node.server.lock().pod = pod(json!({"terminated": {"exitCode": 0}}));
    assert_eq!(node.untouched().await, "Completed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_is_another() {
    let node = Node::new(&restore(begun()));
    node.server.lock().pod["metadata"]["uid"] = json!("other");
    assert_eq!(node.untouched().await, "InProgress");
}

#[tokio::test(start_paused = true)]
async fn a_done_file_of_this_restore_says_that_the_data_is_there() {
    let node = Node::new(&restore(begun()));
    marker::write(&node.volume(), "r1").unwrap();
    assert_eq!(node.untouched().await, "Completed");

    let node = Node::new(&restore(begun()));
    marker::write(&node.volume(), "r0").unwrap();
    node.restores.pass(&Node::key()).await.unwrap_err();
    assert!(
        node.server.lock().was_restored(),
        "that of an older one says nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_again_is_not_given_up_when_the_api_fails() {
    let mut object =
        restore(json!({"phase": "Completed", "completionTimestamp": "2025-12-31T00:00:00Z"}));
    object["spec"]["volume"] = json!("claimed");
    let node = Node::new(&object);
    let failed = node.restores.pass(&Node::key()).await.unwrap_err();
    assert_eq!(failed.class, jackline_runtime::Class::Transient);
    assert_eq!(node.server.lock().asked, [format!("GET {CLAIM}")]);
}

#[test]
fn the_node_is_known_where_the_definitions_drop_it() {
    let object = |metadata: serde_json::Value, status: serde_json::Value| -> PodVolumeRestore {
        let spec = json!({"pod": {}, "volume": "v", "backupStorageLocation": "default", "repoIdentifier": "",
            "snapshotID": "s", "sourceNamespace": "n"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status}))
            .unwrap()
    };
    let noted = json!({"name": "r", "annotations": {"jackline.dev/node": "a"}});
    let plain = json!({"name": "r"});
    let begun = json!({"phase": "InProgress"});
    let full = json!({"phase": "InProgress", "node": "b"});
    for (metadata, status, want) in [
        (&noted, &begun, Some("a")),
        (&plain, &full, Some("b")),
        (&noted, &full, Some("b")),
        (&plain, &begun, None),
    ] {
        assert_eq!(node(&object(metadata.clone(), status.clone())), want);
    }
}
