//! One supervised task per watched kind: list, then watch, each with its own backoff, each with a deadline.
//!
//! Why not `kube::runtime::watcher`: its list calls have no deadline, and the bookmarks that prove a quiet watch alive are not
//! visible to its caller. The protocol is the same: paged list from the API server's newest state, watch from the list's version,
//! list again on 410.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, ObjectList, WatchParams},
    core::{DeserializeGuard, Request, WatchEvent as RawEvent},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

mod sink;

pub(crate) use sink::Keep;
pub use sink::WatchEvent;
use sink::{IntoHook, IntoStore, Sink};

use crate::{Check, Clients, Key, Metrics, Store};

/// What the server ends a watch after. Below the idle limits of common load balancers (240 s), so that no silent drop is missed.
const WATCH_SECONDS: u32 = 200;
/// Silence after which a watch counts as dead: the server should have ended it.
const IDLE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// Age of the last word from the server that turns readiness red.
const STALE: Duration = Duration::from_secs(2 * WATCH_SECONDS as u64);
const LIST_DEADLINE: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(800);
const MAX_DELAY: Duration = Duration::from_secs(15);
/// A watch that lived this long starts again with the first delay.
const HEALTHY: Duration = Duration::from_secs(30);

/// What to watch.
#[derive(Debug, Clone)]
pub struct WatchSpec {
    name: &'static str,
    namespace: Option<String>,
    labels: Option<String>,
    fields: Option<String>,
    page: u32,
    optional: bool,
    managed_fields: bool,
}

impl WatchSpec {
    /// All objects of the kind; `name` is for metrics, readiness and logs.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            namespace: None,
            labels: None,
            fields: None,
            page: 250,
            optional: false,
            managed_fields: false,
        }
    }

    /// Name given at creation.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Only those of one namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Only those that match a label selector.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = Some(selector.into());
        self
    }

    /// Only those that match a field selector (as far as the API server supports the field).
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = Some(selector.into());
        self
    }

    /// Objects per list page (250): less for fat kinds.
    #[must_use]
    pub fn page_size(mut self, page: u32) -> Self {
        self.page = page;
        self
    }

    /// Objects keep `metadata.managedFields`, for a hook that wants to know who owns a field; left out otherwise, for memory's sake.
    #[must_use]
    pub fn managed_fields(mut self) -> Self {
        self.managed_fields = true;
        self
    }

    /// A kind that the cluster may not serve: counts as ready and empty until it does.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// Something that could not be decoded, reduced to its name.
struct Undecodable {
    key: Key,
    error: String,
}

type Split<G, K> = fn(G) -> Result<K, Undecodable>;

fn whole<K>(object: K) -> Result<K, Undecodable> {
    Ok(object)
}

fn guarded<K: Resource>(object: DeserializeGuard<K>) -> Result<K, Undecodable> {
    object.0.map_err(|invalid| Undecodable {
        key: Key {
            namespace: invalid.metadata.namespace.clone(),
            name: invalid.metadata.name.clone().unwrap_or_default(),
        },
        error: invalid.error,
    })
}

/// Bounds that every watched type meets.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}
impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// Everything that a watch task needs from the process.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub clients: Clients,
    pub metrics: Metrics,
    pub check: Arc<Check>,
}

/// Fills `store` for ever. With `guard`, objects that do not have the kind's shape are left out instead of stopping the list (for
/// kinds with a schema that users can get past; it costs a copy of each object).
pub(crate) async fn into_store<K: Watched>(
    around: Surroundings,
    spec: WatchSpec,
    store: Store<K>,
    keep: Keep<K>,
    guard: bool,
) {
    let sink = IntoStore {
        store,
        epoch: 0,
        keep,
    };
    if guard {
        Task::<DeserializeGuard<K>, K, _>::new(around, spec, guarded::<K>, sink)
            .run()
            .await;
    } else {
        Task::<K, K, _>::new(around, spec, whole::<K>, sink)
            .run()
            .await;
    }
}

/// Tells `hook` every event, for ever, storing nothing.
pub(crate) async fn into_hook<K: Watched>(
    around: Surroundings,
    spec: WatchSpec,
    hook: impl FnMut(WatchEvent<K>) + Send + 'static,
) {
    Task::<K, K, _>::new(around, spec, whole::<K>, IntoHook(hook))
        .run()
        .await;
}

/// Why a list or watch ended.
enum Broken {
    /// The watch's position is too old, or it was asked to start over: list again.
    Relist,
    /// The kind is not served.
    NotServed,
    Failed(&'static str, String),
}

impl From<kube::Error> for Broken {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 410 || status.reason == "Expired" => {
                Self::Relist
            }
            kube::Error::Api(status) if status.code == 404 => Self::NotServed,
            kube::Error::Api(status) => Self::Failed(
                match status.code {
                    401 | 403 => "forbidden",
                    429 => "throttled",
                    500..=599 => "server",
                    _ => "refused",
                },
                format!("{} ({})", status.message, status.code),
            ),
            kube::Error::SerdeError(_) => {
                Self::Failed("undecodable", crate::logging::chain(&error))
            }
            _ => Self::Failed("unreachable", crate::logging::chain(&error)),
        }
    }
}

struct Task<G, K, S> {
    around: Surroundings,
    spec: WatchSpec,
    split: Split<G, K>,
    sink: S,
    path: Request,
    invalid: std::collections::HashSet<Key>,
    last_word: Instant,
}

impl<G, K, S> Task<G, K, S>
where
    G: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
    K: Watched,
    S: Sink<K>,
{
    fn new(around: Surroundings, spec: WatchSpec, split: Split<G, K>, sink: S) -> Self {
        let path = Request::new(G::url_path(&(), spec.namespace.as_deref()));
        let last_word = Instant::now();
        Self {
            around,
            spec,
            split,
            sink,
            path,
            invalid: Default::default(),
            last_word,
        }
    }

    async fn run(mut self) {
        let mut delay = FIRST_DELAY;
        let mut position: Option<String> = None;
        loop {
            let since = Instant::now();
            let listing = position.is_none();
            let result = match position.take() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            match result {
                Ok(version) => {
                    position = Some(version);
                    // A server that ends each watch at once must not be asked without pause.
                    if listing || since.elapsed() >= Duration::from_secs(1) {
                        if !listing {
                            delay = FIRST_DELAY;
                        }
                        continue;
                    }
                }
                Err((version, broken)) => {
                    position = version;
                    self.broken(broken);
                }
            }
            if since.elapsed() >= HEALTHY {
                delay = FIRST_DELAY;
            }
            let stale_at = self.last_word + STALE;
            let wake = Instant::now() + jitter(delay);
            if wake > stale_at {
                self.mark_stale();
            }
            tokio::time::sleep_until(wake).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    fn broken(&mut self, broken: Broken) {
        let name = self.spec.name;
        let class = match broken {
            Broken::Relist => {
                tracing::debug!(watch = name, "watch position is too old: listing again");
                "expired"
            }
            Broken::NotServed => {
                if self.spec.optional {
                    // Ready and empty: an empty list.
                    self.sink.event(WatchEvent::Init);
                    self.sink.event(WatchEvent::InitDone);
                    self.around.check.ok();
                } else {
                    self.around.check.fail(format!(
                        "the API server does not serve {}; apply its CRD",
                        K::plural(&())
                    ));
                }
                tracing::debug!(watch = name, "kind is not served");
                "not_served"
            }
            Broken::Failed(class, error) => {
                tracing::warn!(watch = name, class, error, "watch failed; trying again");
                if class == "forbidden" {
                    self.around
                        .check
                        .fail(format!("watching is refused: {error}"));
                } else if self.last_word.elapsed() > STALE {
                    self.mark_stale();
                }
                class
            }
        };
        self.around
            .metrics
            .families
            .watch_errors
            .with_label_values(&[name, class])
            .inc();
    }

    fn mark_stale(&self) {
        let age = self.last_word.elapsed().as_secs();
        self.around
            .check
            .fail(format!("no word from the API server for {age} s"));
    }

    /// The server spoke.
    fn word(&mut self) {
        self.last_word = Instant::now();
        let families = &self.around.metrics.families;
        let now = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
        families
            .watch_last_event
            .with_label_values(&[self.spec.name])
            .set(now);
        families
            .watch_invalid
            .with_label_values(&[self.spec.name])
            .set(self.invalid.len() as i64);
        if let Some(objects) = self.sink.objects() {
            families
                .watch_objects
                .with_label_values(&[self.spec.name])
                .set(objects as i64);
        }
    }

    fn take(&mut self, object: G, wrap: fn(K) -> WatchEvent<K>) {
        let key = Key::of(&object);
        match (self.split)(object) {
            Ok(mut object) => {
                self.invalid.remove(&key);
                if !self.spec.managed_fields {
                    object.meta_mut().managed_fields = None;
                }
                self.sink.event(wrap(object));
            }
            Err(undecodable) => {
                if self.invalid.insert(undecodable.key.clone()) {
                    tracing::warn!(
                        watch = self.spec.name,
                        object = %undecodable.key,
                        error = undecodable.error,
                        "object does not have the shape of its kind and is left out"
                    );
                }
                self.sink.invalid(&undecodable.key);
            }
        }
    }

    async fn list(&mut self) -> Result<String, (Option<String>, Broken)> {
        self.sink.event(WatchEvent::Init);
        self.invalid.clear();
        let mut params = ListParams {
            label_selector: self.spec.labels.clone(),
            field_selector: self.spec.fields.clone(),
            limit: Some(self.spec.page),
            ..ListParams::default()
        };
        let relist = |broken| (None, broken);
        let version = loop {
            let request = self
                .path
                .list(&params)
                .map_err(|e| relist(Broken::Failed("request", e.to_string())))?;
            let page = self.around.clients.call.request::<ObjectList<G>>(request);
            let page = match tokio::time::timeout(LIST_DEADLINE, page).await {
                Ok(page) => page.map_err(|e| relist(e.into()))?,
                Err(_) => return Err(relist(Broken::Failed("timeout", "list timed out".into()))),
            };
            for object in page.items {
                self.take(object, WatchEvent::InitApply);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        if version.is_empty() {
            return Err(relist(Broken::Failed(
                "protocol",
                "list without a version".into(),
            )));
        }
        self.sink.event(WatchEvent::InitDone);
        self.around
            .metrics
            .families
            .watch_resyncs
            .with_label_values(&[self.spec.name])
            .inc();
        self.around.check.ok();
        self.word();
        Ok(version)
    }

    /// Watches until the stream ends. Gives the version to go on from.
    async fn watch(&mut self, mut version: String) -> Result<String, (Option<String>, Broken)> {
        let params = WatchParams {
            label_selector: self.spec.labels.clone(),
            field_selector: self.spec.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = self
            .path
            .watch(&params, &version)
            .map_err(|e| (None, Broken::Failed("request", e.to_string())))?;
        let stream = self.around.clients.watch.request_events::<G>(request);
        let stream = match tokio::time::timeout(LIST_DEADLINE, stream).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(resume(version, error.into())),
            Err(_) => {
                let broken = Broken::Failed("timeout", "watch did not start".into());
                return Err((Some(version), broken));
            }
        };
        let mut stream: BoxStream<'static, Result<RawEvent<G>, kube::Error>> = stream.boxed();
        self.around.check.ok();
        self.word();
        loop {
            let event = match tokio::time::timeout(IDLE, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return Err(resume(version, error.into())),
                Ok(None) => return Ok(version),
                Err(_) => {
                    self.mark_stale();
                    let broken =
                        Broken::Failed("silent", format!("silent for {} s", IDLE.as_secs()));
                    return Err((Some(version), broken));
                }
            };
            match event {
                RawEvent::Added(object) | RawEvent::Modified(object) => {
                    version = object.resource_version().unwrap_or(version);
                    self.take(object, WatchEvent::Apply);
                }
                RawEvent::Deleted(object) => {
                    version = object.resource_version().unwrap_or(version);
                    self.invalid.remove(&Key::of(&object));
                    self.take_deleted(object);
                }
                RawEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                RawEvent::Error(status) => {
                    return Err(resume(version, kube::Error::Api(status).into()));
                }
            }
            self.word();
        }
    }

    fn take_deleted(&mut self, object: G) {
        if let Ok(object) = (self.split)(object) {
            self.sink.event(WatchEvent::Delete(object));
        }
    }
}

/// Goes on from `version` unless the server says that it is too old. A watch that cannot be decoded would fail at the same event
/// again, so it lists.
fn resume(version: String, broken: Broken) -> (Option<String>, Broken) {
    match broken {
        Broken::Relist | Broken::NotServed | Broken::Failed("undecodable", _) => (None, broken),
        Broken::Failed(..) => (Some(version), broken),
    }
}

fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
