//! What every controller is given: clients, shared watches, publishers, settings.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use jackline_crds::foreign;
use jackline_crds::velero::{
    Backup, BackupRepository, BackupStorageLocation, DeleteBackupRequest, DownloadRequest,
    PodVolumeBackup, PodVolumeRestore, Restore, Schedule, ServerStatusRequest,
};
use jackline_runtime::{
    CancellationToken, Clients, Events, Failure, Key, Kit, Metrics, Store, WatchSpec, kit::instance,
};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use serde::de::DeserializeOwned;

use crate::{
    agents::{self, AgentPod},
    args::Args,
    uri,
};

/// How soon somebody is seen to have gone for whom everything waits.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The watches that more than one controller reads. One per kind; each holds only Jackline's namespace.
#[derive(Debug, Clone)]
pub struct Stores {
    /// Backups.
    pub backups: Store<Backup>,
    /// Restores.
    pub restores: Store<Restore>,
    /// Schedules.
    pub schedules: Store<Schedule>,
    /// Locations.
    pub locations: Store<BackupStorageLocation>,
    /// Volumes being backed up, and those that were.
    pub pod_volume_backups: Store<PodVolumeBackup>,
    /// Volumes being restored.
    pub pod_volume_restores: Store<PodVolumeRestore>,
    /// Repositories.
    pub repositories: Store<BackupRepository>,
    /// Requests to delete backups.
    pub deletions: Store<DeleteBackupRequest>,
    /// Requests for files.
    pub downloads: Store<DownloadRequest>,
    /// Requests for the version.
    pub server_statuses: Store<ServerStatusRequest>,
    /// Pods of the node agent.
    pub agents: Store<AgentPod>,
    /// Pods of a Velero in Jackline's namespace.
    pub veleros: Store<Pod>,
}

impl Stores {
    /// Starts the watches.
    pub fn start(kit: &Kit, namespace: &str) -> Self {
        let spec = |name| WatchSpec::new(name).namespace(namespace);
        Self {
            backups: kit.watch_guarded(spec("backups")),
            restores: kit.watch_guarded(spec("restores")),
            schedules: kit.watch_guarded(spec("schedules")),
            locations: kit.watch_guarded(spec("locations")),
            pod_volume_backups: kit.watch_guarded(spec("podvolumebackups")),
            pod_volume_restores: kit.watch_guarded(spec("podvolumerestores")),
            repositories: kit.watch_guarded(spec("repositories")),
            deletions: kit.watch_guarded(spec("deletebackuprequests")),
            downloads: kit.watch_guarded(spec("downloadrequests")),
            server_statuses: kit.watch_guarded(spec("serverstatusrequests")),
            agents: kit.watch(spec("agents").labels(agents::selector())),
            veleros: kit.watch_some(spec("veleros"), |pod| foreign::role(pod).is_some()),
        }
    }

    /// Waits for the first list of every kind.
    pub async fn ready(&self) {
        self.backups.ready().await;
        self.restores.ready().await;
        self.schedules.ready().await;
        self.locations.ready().await;
        self.pod_volume_backups.ready().await;
        self.pod_volume_restores.ready().await;
        self.repositories.ready().await;
        self.deletions.ready().await;
        self.downloads.ready().await;
        self.server_statuses.ready().await;
        self.agents.ready().await;
        self.veleros.ready().await;
    }
}

/// A volume that a policy's backup moves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GovernedVolume {
    /// Namespace of pod and claim.
    pub namespace: String,
    /// The pod elected to carry the volume.
    pub pod: String,
    /// The volume's name in that pod.
    pub volume: String,
    /// The claim behind it, if there is one.
    pub claim: Option<String>,
}

/// Answers which volumes a policy governs. The policy half of the process gives the answer, the backup asks.
pub trait Governed: Send + Sync + std::fmt::Debug {
    /// The volumes that a backup of the policy (`name`, or `namespace/name` of a BackupPolicy) moves now. Waits until the facts are
    /// complete. `None`: there is no such policy any more.
    fn volumes(&self, policy: &str) -> BoxFuture<'_, Option<Vec<GovernedVolume>>>;
}

/// Shared by all controllers of the process.
#[derive(Debug)]
pub struct Context {
    /// Clients of the API server.
    pub clients: Clients,
    /// Jackline's namespace.
    pub namespace: String,
    /// UID of the kube-system namespace: which cluster this is.
    pub cluster_uid: String,
    /// Settings.
    pub args: Args,
    /// Shared watches.
    pub stores: Stores,
    /// Event publisher.
    pub events: Events,
    /// Registry.
    pub metrics: Metrics,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
    /// This process's pod or host name.
    pub instance: String,
    /// Which volumes policies govern; set by the policy half.
    pub governed: OnceLock<Arc<dyn Governed>>,
}

impl Context {
    /// The context over a kit's parts.
    pub fn new(kit: &Kit, args: Args, cluster_uid: String, stores: Stores) -> Arc<Self> {
        Arc::new(Self {
            clients: kit.clients.clone(),
            namespace: args.namespace.clone(),
            cluster_uid,
            args,
            stores,
            events: kit.events.clone(),
            metrics: kit.metrics.clone(),
            shutdown: kit.shutdown().clone(),
            instance: instance(),
            governed: OnceLock::new(),
        })
    }

    /// Why nothing is dispatched: a Velero is at work in the namespace.
    pub fn foreign(&self) -> Option<String> {
        let pods = self.stores.veleros.list();
        foreign::at_work(pods.iter().map(AsRef::as_ref))
    }

    /// Whether nobody else works on the objects of this namespace.
    ///
    /// # Errors
    /// While a Velero does.
    pub async fn alone(&self) -> Result<(), Failure> {
        self.stores.veleros.ready().await;
        match self.foreign() {
            None => Ok(()),
            Some(why) => Err(Failure::waiting(LOOK_AGAIN, "ForeignVelero", why)),
        }
    }

    /// The key of an object in Jackline's namespace.
    pub fn key(&self, name: impl Into<String>) -> Key {
        Key::namespaced(self.namespace.clone(), name)
    }

    /// An `Api` of a velero.io kind in Jackline's namespace.
    pub fn api<K>(&self) -> kube::Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.clients.call.clone(), &self.namespace)
    }

    /// An object in Jackline's namespace as the API server has it now; `None` also for one that cannot be read. What ends an object for
    /// good rests on this: a watch may be behind what its user has already seen.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn fetch<K>(&self, name: &str) -> Result<Option<K>, kube::Error>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        // Names in a spec are not checked by the API server.
        let Some(name) = uri::name(name) else {
            return Ok(None);
        };
        let found = self.api::<DeserializeGuard<K>>().get_opt(&name).await?;
        Ok(found.and_then(|found| found.0.ok()))
    }

    /// The objects in Jackline's namespace that `which` selects, as the API server has them now, but for those that cannot be read.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn fetch_all<K>(&self, which: &ListParams) -> Result<Vec<K>, kube::Error>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api = self.api::<DeserializeGuard<K>>();
        let mut which = which.clone().limit(self.args.client_page_size);
        let mut all = Vec::new();
        loop {
            let page = api.list(&which).await?;
            let found = page.items.into_iter().filter_map(|found| found.0.ok());
            all.extend(found.map(|mut found| {
                found.meta_mut().managed_fields = None;
                found
            }));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => which = which.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

/// A context for tests.
#[cfg(test)]
pub mod unwatched {
    use std::{collections::BTreeMap, convert::Infallible, future::pending};

    use clap::Parser;
    use http::{Method, Request, Response, request::Parts};
    use kube::{Client, client::Body};
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// Its watches know nothing yet; whoever asks its API server for a path is given the object, or what is selected of the list.
    pub fn context(objects: &[(&str, Value)]) -> Arc<Context> {
        with_kit(objects).0
    }

    /// The same, with its kit.
    pub fn with_kit(objects: &[(&str, Value)]) -> (Arc<Context>, Kit) {
        let objects = objects.iter().cloned();
        let objects: BTreeMap<String, Value> =
            objects.map(|(path, it)| (path.to_owned(), it)).collect();
        let objects = Arc::new(Mutex::new(objects));
        let answer = move |request: Request<Body>| {
            let objects = objects.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (code, answer) = answer(&mut objects.lock(), &head, &body);
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        };
        let call = Client::new(tower::service_fn(answer), "velero");
        let silent = |_: Request<Body>| pending::<Result<Response<Body>, Infallible>>();
        let silent = Client::new(tower::service_fn(silent), "velero");
        // Watches list by it too.
        let clients = Clients {
            call: silent.clone(),
            watch: silent.clone(),
            lease: silent,
        };
        let kit = Kit::assemble("jackline-controller", clients, CancellationToken::new()).unwrap();
        let args = Args::try_parse_from(["jackline-controller", "--namespace=velero"]).unwrap();
        let stores = Stores::start(&kit, "velero");
        let mut context = Context::new(&kit, args, "this-cluster".to_owned(), stores);
        Arc::get_mut(&mut context).unwrap().clients.call = call;
        (context, kit)
    }

    fn answer(objects: &mut BTreeMap<String, Value>, head: &Parts, body: &[u8]) -> (u16, Value) {
        let path = head.uri.path();
        let refuse = |code: u16, reason: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "message": reason, "reason": reason, "metadata": {}});
            (code, status)
        };
        if path.ends_with("/..") || path.ends_with("/.") || path.contains("%25") {
            return refuse(400, "BadRequest");
        }
        let Some(mut found) = objects.get(path).cloned() else {
            return refuse(404, "NotFound");
        };
        if head.method == Method::DELETE {
            let options: Value = serde_json::from_slice(body).unwrap();
            let wanted = &options["preconditions"];
            let is = |key: &str| wanted[key].is_null() || wanted[key] == found["metadata"][key];
            if !is("uid") || !is("resourceVersion") {
                return refuse(409, "Conflict");
            }
            objects.remove(path);
        }
        if let Some(items) = found["items"].as_array_mut() {
            let query = head.uri.query().unwrap_or_default();
            items.retain(|item| is_selected(item, query));
        }
        (200, found)
    }

    /// Whether the selectors of a query mean an object.
    fn is_selected(item: &Value, query: &str) -> bool {
        let labels = &item["metadata"]["labels"];
        url::form_urlencoded::parse(query.as_bytes()).all(|(key, selector)| {
            let mut terms = selector.split(',').filter(|term| !term.is_empty());
            match &*key {
                "labelSelector" => terms.all(|term| match term.split_once('=') {
                    Some((label, value)) => labels[label] == value,
                    None => match term.strip_prefix('!') {
                        Some(label) => labels[label].is_null(),
                        None => !labels[term].is_null(),
                    },
                }),
                "fieldSelector" => terms.all(|term| {
                    let (field, value) = term.split_once('=').unwrap();
                    let pointer = format!("/{}", field.replace('.', "/"));
                    item.pointer(&pointer).is_some_and(|found| found == value)
                }),
                _ => true,
            }
        })
    }

    /// The path of all objects of a kind of Velero's.
    pub fn all(plural: &str) -> String {
        format!("/apis/velero.io/v1/namespaces/velero/{plural}")
    }

    /// The path of one.
    pub fn path(plural: &str, name: &str) -> String {
        format!("{}/{name}", all(plural))
    }

    /// A list as the API server gives it.
    pub fn list(items: &[Value]) -> Value {
        json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    /// A location that can be used.
    pub fn location(name: &str) -> Value {
        json!({"metadata": {"name": name},
            "spec": {"provider": "aws", "objectStorage": {"bucket": "b"}, "accessMode": "ReadWrite"},
            "status": {"phase": "Available"}})
    }

    /// A backup of a schedule that has ended at a second of the day.
    pub fn completed(name: &str, second: u8) -> Value {
        json!({"metadata": {"name": name, "labels": {"velero.io/schedule-name": "nightly"}},
            "spec": {"storageLocation": "here"},
            "status": {"phase": "Completed", "startTimestamp": format!("2026-11-29T00:00:{second:02}Z")}})
    }
}
