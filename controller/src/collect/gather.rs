//! The gathering itself: namespaces, lists of all kinds in parallel, then what the objects need besides.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use jackline_policy::{
    backup::{
        Filter, Resource,
        object::{self, ObjectRef},
    },
    labels::Selector,
};
use kube::Client;
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    discover::{Discovered, discover},
    facts::labels_of,
    list::{ListError, ListSpec, Take, list},
    spool::{Collection, Page, Spool},
};
use crate::{backup::log::BackupLog, uri::encoded};

/// Lists that run at once. Each holds a connection and a few chunks of memory.
const PARALLEL: usize = 12;
/// A kind that the server does not find, although it serves it, is asked for again this often.
const SEARCHES: u32 = 4;
/// After this time.
const PAUSE: Duration = Duration::from_secs(1);
const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const NAMESPACES: &str = "namespaces";
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
/// Kinds that are listed first, because volumes wait for them.
const VOLUME_KINDS: [&str; 3] = ["pods", CLAIMS, VOLUMES];

/// What to gather.
#[derive(Debug)]
pub struct Request<'a> {
    /// Kinds and namespaces.
    pub filter: &'a Filter,
    /// Label selectors, any of which is enough; empty for everything. Text for the API server, and the same compiled.
    pub selectors: &'a [(String, Selector)],
    /// Objects per page.
    pub page: u32,
    /// Where temporary files go.
    pub scratch: &'a Path,
    /// The claims whose volumes have to be known, also where the filters leave those out.
    pub claims: Known,
}

/// Claims whose volumes have to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No claim is read.
    None,
    /// Those that pods mount: what a claim is bound to may be what no agent reads.
    Mounted,
    /// All: volume policies decide about them.
    All,
}

/// Why nothing could be gathered.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Namespaces could not be listed.
    #[error("namespaces cannot be listed")]
    Namespaces(#[source] ListError),
    /// No temporary file.
    #[error("temporary files cannot be written")]
    Spool(#[from] io::Error),
}

/// What a list's thread carries along.
struct Sink {
    page: Page,
    flushed: usize,
    spool: Arc<Spool>,
    resource: usize,
    kind: String,
    api_version: String,
    name: String,
    namespaces: Option<Arc<HashSet<String>>>,
    /// What was kept before something was read again.
    known: HashSet<(Option<Arc<str>>, Box<str>)>,
}

impl Take for Sink {
    fn take(&mut self, object: Value) -> io::Result<()> {
        keep(self, object)
    }

    fn again(&mut self) {
        let items = self.page.items.iter();
        self.known = items
            .map(|item| (item.namespace.clone(), item.name.clone()))
            .collect();
    }
}

fn keep(sink: &mut Sink, mut object: Value) -> io::Result<()> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let namespace = text("/metadata/namespace");
    let Some(name) = text("/metadata/name") else {
        return Ok(());
    };
    let outside = match (&namespace, &sink.namespaces) {
        (Some(namespace), Some(included)) => !included.contains(namespace),
        _ => false,
    };
    if outside {
        return Ok(());
    }
    let namespace: Option<Arc<str>> = namespace.map(Arc::from);
    if !sink.known.is_empty()
        && sink
            .known
            .contains(&(namespace.clone(), name.as_str().into()))
    {
        return Ok(());
    }
    let left_out = object::skip(&object);
    // A pod's claim matters even where it is not stored itself, and so does what a claim is bound to.
    if left_out.is_none() || [CLAIMS, VOLUMES].contains(&sink.name.as_str()) {
        sink.page.facts.learn(&sink.name, &object, left_out);
    }
    if left_out.is_some() {
        return Ok(());
    }
    if sink.name == NAMESPACES {
        sink.page
            .namespace_labels
            .insert(name.clone(), labels_of(&object));
    }
    object::tidy(&sink.name, &mut object);
    if let Some(fields) = object.as_object_mut() {
        // The items of a list do not say what they are.
        fields.insert(
            "apiVersion".to_owned(),
            Value::String(sink.api_version.clone()),
        );
        fields.insert("kind".to_owned(), Value::String(sink.kind.clone()));
    }
    let json = serde_json::to_vec(&object)?;
    sink.page.push(
        &sink.spool,
        sink.resource,
        namespace,
        &name,
        &json,
        &mut sink.flushed,
    )
}

struct Gatherer<'a> {
    client: &'a Client,
    request: &'a Request<'a>,
    resources: &'a [Resource],
    spool: Arc<Spool>,
    /// Kinds, and versions of groups, whose server does not answer.
    silent: Mutex<HashSet<String>>,
    log: &'a BackupLog,
}

impl Gatherer<'_> {
    fn sink(
        &self,
        index: usize,
        resource: &Resource,
        namespaces: Option<Arc<HashSet<String>>>,
    ) -> Sink {
        Sink {
            page: Page::default(),
            flushed: 0,
            spool: self.spool.clone(),
            resource: index,
            kind: resource.kind.clone(),
            api_version: resource.api_version(),
            name: resource.group_resource(),
            namespaces,
            known: HashSet::new(),
        }
    }

    /// All objects of a kind that one namespace (or none) and one selector (or none) bound; where that fails, those that were read.
    async fn list(
        &self,
        index: usize,
        namespace: Option<&str>,
        selector: Option<&str>,
        namespaces: Option<Arc<HashSet<String>>>,
    ) -> (Page, Result<(), ListError>) {
        let Some(resource) = self.resources.get(index) else {
            return (Page::default(), Ok(()));
        };
        let spec = ListSpec {
            path: path(resource, namespace, None),
            selector: selector.map(str::to_owned),
            page: self.request.page,
            patient: !self.is_silent(resource),
        };
        let mut sink = self.sink(index, resource, namespaces);
        let mut searches = 0;
        let result = loop {
            let (back, result) = list(self.client, &spec, sink).await;
            let Some(back) = back else {
                return (Page::default(), result);
            };
            sink = back;
            match result {
                Err(error) if error.is_absent() => {
                    if !self.serves(resource).await {
                        break Err(ListError::Gone);
                    }
                    if searches == SEARCHES {
                        break Err(error);
                    }
                    searches += 1;
                    sink.again();
                    tokio::time::sleep(PAUSE).await;
                }
                result => break result,
            }
        };
        if result.as_ref().is_err_and(ListError::is_passing) {
            self.silent.lock().insert(resource.group_resource());
        }
        // What cannot be written to the file cannot be read from it.
        if let Err(ListError::Spool(_)) = result {
            return (Page::default(), result);
        }
        match sink.page.flush(&sink.spool, &mut sink.flushed) {
            Ok(()) => (sink.page, result),
            Err(error) => (Page::default(), Err(error.into())),
        }
    }

    /// Whether the server of a kind does not answer: its other lists are tried once each.
    fn is_silent(&self, resource: &Resource) -> bool {
        let silent = self.silent.lock();
        silent.contains(&resource.group_resource())
            || silent.contains(&format!("{}/{}", resource.group, resource.version))
    }

    /// Whether the cluster serves the kind now, as far as it can be known: what the server of its group would say may be out of date.
    async fn serves(&self, resource: &Resource) -> bool {
        let Ok(found) = discover(self.client).await else {
            return true;
        };
        let group = format!("{}/", resource.group);
        found.stale.iter().any(|stale| stale.starts_with(&group))
            || found.catalogue.find(&resource.group_resource()).is_some()
    }

    /// One object; `None` when it is not there.
    async fn get(&self, wanted: &ObjectRef) -> Result<Option<Page>, ListError> {
        let found = self
            .resources
            .iter()
            .enumerate()
            .find(|(_, r)| r.group_resource() == wanted.resource);
        let Some((index, resource)) = found else {
            return Ok(None);
        };
        let uri = path(resource, wanted.namespace.as_deref(), Some(&wanted.name));
        let request = http::Request::get(uri).body(Vec::new())?;
        let object = match self.client.request::<Value>(request).await {
            Ok(object) => object,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut sink = self.sink(index, resource, None);
        keep(&mut sink, object)?;
        sink.page.flush(&sink.spool, &mut sink.flushed)?;
        Ok(Some(sink.page))
    }
}

/// The path of a kind's collection, or of one object.
fn path(resource: &Resource, namespace: Option<&str>, name: Option<&str>) -> String {
    let root = if resource.group.is_empty() {
        "/api"
    } else {
        "/apis"
    };
    let mut path = format!("{root}/{}", resource.api_version());
    if let Some(namespace) = namespace {
        path = format!("{path}/namespaces/{namespace}");
    }
    path = format!("{path}/{}", resource.plural);
    match name {
        Some(name) => format!("{path}/{}", encoded(name)),
        None => path,
    }
}

/// Which namespaces belong to the backup.
struct Namespaces {
    included: Arc<HashSet<String>>,
    /// To list one by one; `None`: list everything at once and pick.
    single: Option<Vec<String>>,
}

fn namespaces(page: &Page, filter: &Filter, log: &BackupLog) -> Namespaces {
    let all: BTreeSet<&str> = page.items.iter().map(|item| &*item.name).collect();
    let names = filter.namespaces();
    for missing in names.listed().filter(|name| !all.contains(name)) {
        if names.includes(missing) {
            log.error(
                "Namespace is not found, is being deleted, or is excluded by its label",
                &[("name", missing)],
            );
        }
    }
    let included: Vec<String> = all
        .iter()
        .filter(|name| names.includes(name))
        .map(|&name| name.to_owned())
        .collect();
    // One list of everything beats many small ones, unless it would mostly bring what is not wanted.
    let few = !names.is_everything() && (included.len() <= 5 || included.len() * 10 <= all.len());
    Namespaces {
        single: few.then(|| included.clone()),
        included: Arc::new(included.into_iter().collect()),
    }
}

/// Gathers everything that the request includes and what that needs. `early` is called once with pods, claims and volumes, while other
/// kinds are still being read.
///
/// # Errors
/// When nothing can be gathered at all. A kind that cannot be listed is an error in the log instead, and the rest goes on.
pub async fn collect(
    client: &Client,
    discovered: Discovered,
    request: &Request<'_>,
    log: &BackupLog,
    mut early: impl FnMut(&Collection),
) -> Result<Collection, CollectError> {
    let spool = Arc::new(Spool::new(request.scratch)?);
    let catalogue = discovered.catalogue;
    let gatherer = Gatherer {
        client,
        request,
        resources: catalogue.resources(),
        spool: spool.clone(),
        silent: Mutex::new(discovered.stale.into_iter().collect()),
        log,
    };
    let index_of = |name: &str| {
        gatherer
            .resources
            .iter()
            .position(|r| r.group_resource() == name)
    };
    let namespaces_index = index_of(NAMESPACES).unwrap_or_default();
    let (namespace_page, result) = gatherer.list(namespaces_index, None, None, None).await;
    result.map_err(CollectError::Namespaces)?;
    let scope = namespaces(&namespace_page, request.filter, log);

    let wanted: Vec<usize> = (0..gatherer.resources.len())
        .filter(|&index| {
            index != namespaces_index
                && gatherer
                    .resources
                    .get(index)
                    .is_some_and(|r| request.filter.collects(r))
        })
        .collect();
    let (first, rest): (Vec<usize>, Vec<usize>) = wanted.into_iter().partition(|&index| {
        gatherer
            .resources
            .get(index)
            .is_some_and(|r| VOLUME_KINDS.contains(&r.group_resource().as_str()))
    });
    let mut collection = Collection::new(catalogue.clone(), spool.reader()?);
    gatherer.lists(&first, &scope, &mut collection).await;
    gatherer.complete(&mut collection, false).await;
    gatherer.volumes(&mut collection).await;
    early(&collection);
    gatherer.lists(&rest, &scope, &mut collection).await;
    gatherer.complete(&mut collection, true).await;
    gatherer.keep_namespaces(namespace_page, &scope, &mut collection);
    Ok(collection)
}

impl Gatherer<'_> {
    /// Lists the kinds into the collection, in their order.
    async fn lists(&self, kinds: &[usize], scope: &Namespaces, collection: &mut Collection) {
        let selectors: Vec<Option<&str>> = match self.request.selectors {
            [] => vec![None],
            some => some.iter().map(|(text, _)| Some(text.as_str())).collect(),
        };
        let mut tasks = Vec::new();
        for &index in kinds {
            let namespaced = self
                .resources
                .get(index)
                .is_some_and(|resource| resource.namespaced);
            let places: Vec<Option<&str>> = match (&scope.single, namespaced) {
                (Some(single), true) => single.iter().map(|name| Some(name.as_str())).collect(),
                _ => vec![None],
            };
            for place in places {
                for &selector in &selectors {
                    tasks.push((index, place, selector));
                }
            }
        }
        let lists: Vec<BoxFuture<'_, _>> = tasks
            .into_iter()
            .map(|(index, place, selector)| {
                let included = Some(scope.included.clone());
                async move {
                    let (page, result) = self.list(index, place, selector, included).await;
                    (index, place, page, result)
                }
                .boxed()
            })
            .collect();
        // In order, so that the same cluster always gives the same archive.
        let mut results = stream::iter(lists).buffered(PARALLEL);
        while let Some((index, place, page, result)) = results.next().await {
            let resource = self
                .resources
                .get(index)
                .map(Resource::group_resource)
                .unwrap_or_default();
            let fields = [
                ("resource", resource.as_str()),
                ("namespace", place.unwrap_or_default()),
            ];
            if !page.items.is_empty() {
                self.log
                    .info(&format!("Retrieved {} items", page.items.len()), &fields);
            }
            collection.add(page);
            match result {
                Ok(()) => {}
                Err(ListError::Gone) => self.log.warning(
                    "The cluster serves this resource no more: it went while its items were being listed",
                    &fields,
                ),
                Err(error) => {
                    let error = chain(&error);
                    let fields = [fields[0], fields[1], ("error", error.as_str())];
                    self.log.error("Error listing items", &fields);
                }
            }
        }
    }

    /// Fetches what collected objects need and the filters admit, until nothing is missing. `last`: also what only a complete collection
    /// tells (bindings of service accounts, definitions of custom resources).
    async fn complete(&self, collection: &mut Collection, last: bool) {
        if last {
            self.bindings(collection).await;
            self.definitions(collection);
        }
        let mut tried: HashSet<ObjectRef> = HashSet::new();
        loop {
            let admitted = |wanted: &ObjectRef| {
                collection
                    .catalogue
                    .find(&wanted.resource)
                    .is_some_and(|resource| {
                        self.request
                            .filter
                            .admits(resource, wanted.namespace.as_deref())
                    })
            };
            let needed = collection.facts.needs.iter().flat_map(|(_, needs)| needs);
            let missing: BTreeSet<ObjectRef> = needed
                .filter(|wanted| {
                    collection.find(wanted).is_none() && !tried.contains(wanted) && admitted(wanted)
                })
                .cloned()
                .collect();
            if missing.is_empty() {
                return;
            }
            let gets: Vec<BoxFuture<'_, _>> = missing
                .into_iter()
                .map(|wanted| {
                    async move {
                        let result = self.get(&wanted).await;
                        (wanted, result)
                    }
                    .boxed()
                })
                .collect();
            let mut results = stream::iter(gets).buffered(PARALLEL);
            while let Some((wanted, result)) = results.next().await {
                let fields = [
                    ("resource", wanted.resource.as_str()),
                    ("namespace", wanted.namespace.as_deref().unwrap_or_default()),
                    ("name", wanted.name.as_str()),
                ];
                match result {
                    Ok(Some(page)) => collection.add(page),
                    // Kinds of Kubernetes itself and of aggregated servers have none.
                    Ok(None) if wanted.resource == DEFINITIONS => {}
                    Ok(None) => self.log.warning(
                        "Additional item was not found in Kubernetes API, can't back it up",
                        &fields,
                    ),
                    Err(error) => {
                        let error = chain(&error);
                        let fields = [fields[0], fields[1], fields[2], ("error", error.as_str())];
                        self.log.error("Error getting additional item", &fields);
                    }
                }
                tried.insert(wanted);
            }
        }
    }

    /// Volumes that the filters leave out are looked at all the same.
    async fn volumes(&self, collection: &mut Collection) {
        let facts = &mut collection.facts;
        let known = self.request.claims;
        let pods = facts.pods.values().map(|pod| &pod.volumes);
        let mounted: HashSet<(&str, &str)> = pods
            .filter(|_| known == Known::Mounted)
            .flat_map(|pod| pod.volumes.iter().map(move |volume| (pod, volume)))
            .filter_map(|(pod, volume)| Some((pod.namespace.as_str(), volume.claim.as_deref()?)))
            .collect();
        let unknown = facts.claims.iter().any(|((namespace, name), claim)| {
            (known == Known::All || mounted.contains(&(namespace.as_str(), name.as_str())))
                && claim
                    .volume
                    .as_ref()
                    .is_some_and(|volume| !facts.volumes.contains_key(volume))
        });
        if !unknown {
            return;
        }
        let mut resources = self.resources.iter();
        let Some(index) = resources.position(|r| r.group_resource() == VOLUMES) else {
            return;
        };
        let (page, result) = self.list(index, None, None, None).await;
        facts.volumes.extend(page.facts.volumes);
        if let Err(error) = result {
            let error = chain(&error);
            let fields = [("error", error.as_str())];
            match known {
                Known::All => self.log.error(
                    "Error listing persistent volumes, which volume policies look at",
                    &fields,
                ),
                // Whoever reads the claim says what comes of it.
                _ => self.log.warning(
                    "Error listing persistent volumes: it is not known which claims are bound to hostPath volumes",
                    &fields,
                ),
            }
        }
    }

    /// Service accounts need the ClusterRoles that are bound to them.
    async fn bindings(&self, collection: &mut Collection) {
        if collection.facts.accounts.is_empty() {
            return;
        }
        if collection.facts.bindings.is_empty()
            && let Some(index) = self
                .resources
                .iter()
                .position(|r| r.group_resource() == BINDINGS)
        {
            let (page, result) = self.list(index, None, None, None).await;
            // Only what they say is of interest; those that are needed are fetched by name.
            collection.facts.bindings.extend(page.facts.bindings);
            if let Err(error) = result {
                self.log.error(
                    "Error listing cluster role bindings",
                    &[("error", &chain(&error))],
                );
            }
        }
        let facts = &mut collection.facts;
        for (namespace, name) in &facts.accounts {
            let needs = object::needs_of_account(namespace, name, &facts.bindings);
            if !needs.is_empty() {
                let account = ObjectRef {
                    resource: "serviceaccounts".to_owned(),
                    namespace: Some(namespace.clone()),
                    name: name.clone(),
                };
                facts.needs.push((account, needs));
            }
        }
    }

    /// Stored custom resources need their definitions. Nothing waits for those, so no object names them. Which kinds have one, only the
    /// API server knows: anybody may serve groups below `k8s.io`.
    fn definitions(&self, collection: &mut Collection) {
        if !self.request.filter.adds_definitions() {
            return;
        }
        let used: BTreeSet<usize> = collection
            .items()
            .iter()
            .map(|item| item.resource)
            .collect();
        let custom = used
            .into_iter()
            .filter_map(|index| self.resources.get(index))
            // The group of a definition has a dot.
            .filter(|resource| resource.group.contains('.'));
        let needs: Vec<ObjectRef> = custom
            .map(|resource| ObjectRef {
                resource: DEFINITIONS.to_owned(),
                namespace: None,
                name: resource.group_resource(),
            })
            .collect();
        if !needs.is_empty() {
            let nobody = ObjectRef {
                resource: String::new(),
                namespace: None,
                name: String::new(),
            };
            collection.facts.needs.push((nobody, needs));
        }
    }

    /// A namespace is stored when it is included itself, or when anything in it is stored.
    fn keep_namespaces(&self, mut page: Page, scope: &Namespaces, collection: &mut Collection) {
        let used: HashSet<&str> = collection
            .items()
            .iter()
            .filter_map(|item| item.namespace.as_deref())
            .collect();
        let itself = self
            .resources
            .get(page.items.first().map_or(0, |item| item.resource))
            .is_some_and(|resource| self.request.filter.collects(resource));
        let selected = |name: &str| {
            self.request.selectors.is_empty()
                || page.namespace_labels.get(name).is_some_and(|labels| {
                    self.request
                        .selectors
                        .iter()
                        .any(|(_, selector)| selector.matches(labels))
                })
        };
        let stays: HashSet<Box<str>> = page
            .items
            .iter()
            .filter(|item| {
                let name = &*item.name;
                used.contains(name) || (itself && scope.included.contains(name) && selected(name))
            })
            .map(|item| item.name.clone())
            .collect();
        page.items.retain(|item| stays.contains(&item.name));
        collection.add(page);
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use jackline_policy::backup::{
        Catalogue, filter::RawFilter, object::Skip, volume_policy::Source,
    };
    use serde_json::json;

    use super::*;
    use crate::collect::scripted::{Server, page, refusal};

    const ROLES: &str = "roles.rbac.authorization.k8s.io";

    fn catalogue() -> Catalogue {
        let resource = |group: &str, plural: &str| Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            kind: "Any".to_owned(),
            ..Resource::default()
        };
        Catalogue::new(vec![
            resource("shop.io", "gadgets"),
            resource("rbac.authorization.k8s.io", "roles"),
        ])
    }

    /// The two answers of discovery: `shop.io` serves gadgets or not, or does not say.
    fn discovery(gadgets: bool, freshness: &str) -> [(u16, String); 2] {
        let verbs = ["list", "create", "get", "delete"];
        let gadgets = json!([{"resource": "gadgets", "scope": "Cluster", "verbs": verbs}])
            .as_array()
            .filter(|_| gadgets)
            .cloned();
        let groups = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [{
            "metadata": {"name": "shop.io"},
            "versions": [{"version": "v1", "freshness": freshness, "resources": gadgets.unwrap_or_default()}],
        }]});
        let mut core = groups.clone();
        core["items"] = json!([]);
        [(200, core.to_string()), (200, groups.to_string())]
    }

    fn request<'a>(filter: &'a Filter, scratch: &'a Path, claims: Known) -> Request<'a> {
        Request {
            filter,
            selectors: &[],
            page: 2,
            scratch,
            claims,
        }
    }

    /// Collects gadgets from a server with these answers: the names, and the numbers of warnings and errors.
    async fn gadgets(answers: Vec<(u16, String)>) -> (String, (usize, usize), Vec<String>) {
        let (directory, server) = (tempfile::tempdir().unwrap(), Server::new(answers));
        let (client, catalogue) = (server.client(), catalogue());
        let (filter, _) = Filter::new(&RawFilter::default(), &catalogue).unwrap();
        let request = request(&filter, directory.path(), Known::None);
        let log = BackupLog::new("velero/b".to_owned(), directory.path()).unwrap();
        let spool = Arc::new(Spool::new(directory.path()).unwrap());
        let mut collection = Collection::new(catalogue.clone(), spool.reader().unwrap());
        let gatherer = Gatherer {
            client: &client,
            request: &request,
            resources: catalogue.resources(),
            spool,
            silent: Mutex::default(),
            log: &log,
        };
        let scope = Namespaces {
            included: Arc::default(),
            single: None,
        };
        gatherer.lists(&[0], &scope, &mut collection).await;
        let mut names = Vec::new();
        for item in collection.items() {
            let stored = collection.read(item).unwrap();
            let stored: Value = serde_json::from_slice(&stored).unwrap();
            assert_eq!(stored["metadata"]["name"], *item.name);
            names.push(item.name.to_string());
        }
        (names.join(""), log.counts(), server.asked())
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_not_found_is_an_error_unless_it_has_gone() {
        let begun = || vec![page(&["a", "b"], "t"), refusal(404, json!({}))];
        // It has gone.
        let answers = [begun(), discovery(false, "Current").to_vec()].concat();
        let (names, counts, _) = gadgets(answers).await;
        assert_eq!((names.as_str(), counts), ("ab", (1, 0)));
        // It is there: nothing is stored twice.
        let found = vec![page(&["a", "b"], "u"), page(&["c"], "")];
        let answers = [begun(), discovery(true, "Current").to_vec(), found].concat();
        let (names, counts, asked) = gadgets(answers).await;
        assert_eq!((names.as_str(), counts), ("abc", (0, 0)));
        assert!(!asked[4].contains("continue"), "{asked:?}");
        // It is said to be there, or nobody knows, and never found.
        for known in [discovery(true, "Current"), discovery(false, "Stale")] {
            let round = [known.to_vec(), vec![refusal(404, json!({}))]].concat();
            let answers = [begun(), vec![round; 5].concat()].concat();
            let (names, counts, _) = gadgets(answers).await;
            assert_eq!((names.as_str(), counts), ("ab", (0, 1)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_cannot_be_listed_is_an_error() {
        let (names, counts, asked) = gadgets(vec![refusal(405, json!({}))]).await;
        assert_eq!((names.as_str(), counts, asked.len()), ("", (0, 1), 1));
    }

    /// What is known of the volume of a claim that the filters leave out, and how many requests that took.
    async fn bound(claims: Known, mounted: bool) -> (Option<Source>, usize) {
        let disk = json!({"metadata": {"name": "disk"}, "spec": {"hostPath": {"path": "/disk"}}});
        let disks = json!({"metadata": {}, "items": [disk]});
        let directory = tempfile::tempdir().unwrap();
        let server = Server::new([(200, disks.to_string())]);
        let catalogue = Catalogue::new(vec![Resource {
            version: "v1".to_owned(),
            plural: VOLUMES.to_owned(),
            kind: "PersistentVolume".to_owned(),
            ..Resource::default()
        }]);
        let (filter, _) = Filter::new(&RawFilter::default(), &catalogue).unwrap();
        let request = request(&filter, directory.path(), claims);
        let spool = Arc::new(Spool::new(directory.path()).unwrap());
        let mut collection = Collection::new(catalogue.clone(), spool.reader().unwrap());
        collection.facts = kept(json!({"namespace": "shop", "name": "c"})).facts;
        if mounted {
            let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]);
            let pod = json!({"metadata": {"namespace": "shop", "name": "db", "uid": "u"}, "spec": {"volumes": volumes}});
            collection.facts.learn("pods", &pod, None);
        }
        let log = BackupLog::new("velero/b".to_owned(), directory.path()).unwrap();
        let gatherer = Gatherer {
            client: &server.client(),
            request: &request,
            resources: catalogue.resources(),
            spool,
            silent: Mutex::default(),
            log: &log,
        };
        gatherer.volumes(&mut collection).await;
        gatherer.volumes(&mut collection).await;
        let claim = collection.facts.claim("shop", "c").unwrap();
        let source = claim.bound.map(|volume| volume.source);
        (source, server.asked().len())
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_claim_is_bound_to_is_looked_at_where_it_may_be_read() {
        let host_path = || Some(Source::Other("hostPath"));
        for (claims, mounted, expected) in [
            (Known::Mounted, true, (host_path(), 1)),
            (Known::All, false, (host_path(), 1)),
            (Known::Mounted, false, (None, 0)),
            (Known::None, true, (None, 0)),
        ] {
            let found = bound(claims, mounted).await;
            assert_eq!(found, expected, "{claims:?}");
        }
    }

    #[test]
    fn a_name_is_one_part_of_the_path() {
        let catalogue = catalogue();
        let roles = catalogue.find(ROLES).unwrap();
        assert_eq!(
            path(roles, Some("shop"), Some("a b?c#d%e/f")),
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles/a%20b%3Fc%23d%25e%2Ff"
        );
    }

    /// What takes a list of a kind of the core group. Its file is there as long as it is open.
    fn sink(kind: &str, name: &str, namespace: Option<&str>) -> Sink {
        let directory = tempfile::tempdir().unwrap();
        Sink {
            page: Page::default(),
            flushed: 0,
            spool: Arc::new(Spool::new(directory.path()).unwrap()),
            resource: 0,
            kind: kind.to_owned(),
            api_version: "v1".to_owned(),
            name: name.to_owned(),
            namespaces: namespace.map(|name| Arc::new([name.to_owned()].into())),
            known: HashSet::new(),
        }
    }

    #[test]
    fn what_is_read_again_is_kept_once() {
        let mut sink = sink("ServiceAccount", "serviceaccounts", None);
        let account =
            |namespace| json!({"metadata": {"namespace": namespace, "name": "robot", "uid": "u"}});
        sink.take(account("shop")).unwrap();
        sink.again();
        sink.take(account("shop")).unwrap();
        sink.take(account("zoo")).unwrap();
        assert_eq!(sink.page.items.len(), 2);
        assert_eq!(sink.page.facts.accounts.len(), 2);
    }

    /// Keeps one claim that is bound to `disk`, as a list of `shop` brings it.
    fn kept(metadata: Value) -> Page {
        let mut sink = sink("PersistentVolumeClaim", CLAIMS, Some("shop"));
        let spec = json!({"volumeName": "disk"});
        let claim = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Bound"}});
        keep(&mut sink, claim).unwrap();
        sink.page
    }

    #[test]
    fn a_claim_that_is_left_out_is_known_and_needs_nothing() {
        let label = json!({"velero.io/exclude-from-backup": "true"});
        let table = [
            (json!({"namespace": "shop", "name": "c"}), Some(None)),
            (
                json!({"namespace": "shop", "name": "c", "labels": label}),
                Some(Some(Skip::Excluded)),
            ),
            (
                json!({"namespace": "shop", "name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
                Some(Some(Skip::Terminating)),
            ),
            (json!({"namespace": "elsewhere", "name": "c"}), None),
        ];
        for (metadata, expected) in table {
            let page = kept(metadata.clone());
            let known = page.facts.claims.values().next();
            assert_eq!(known.map(|claim| claim.left_out), expected, "{metadata}");
            let stored = expected == Some(None);
            assert_eq!(!page.items.is_empty(), stored, "{metadata}");
            assert_eq!(!page.facts.needs.is_empty(), stored, "{metadata}");
        }
    }
}
