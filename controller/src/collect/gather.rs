//! The gathering itself: namespaces, lists of all kinds in parallel, then what the objects need besides.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::Path,
    sync::Arc,
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
use serde_json::Value;

use super::{
    discover::Discovered,
    facts::labels_of,
    list::{ListError, ListSpec, list},
    spool::{Collection, Page, Spool},
};
use crate::backup::log::BackupLog;

/// Lists that run at once. Each holds a connection and a few chunks of memory.
const PARALLEL: usize = 12;
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
    /// Whether the facts have to be there of volumes that are left out.
    pub know_volumes: bool,
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
    let namespace = namespace.map(Arc::from);
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
        }
    }

    /// All objects of a kind that one namespace (or none) and one selector (or none) bound.
    async fn list(
        &self,
        index: usize,
        namespace: Option<&str>,
        selector: Option<&str>,
        namespaces: Option<Arc<HashSet<String>>>,
    ) -> Result<Page, ListError> {
        let Some(resource) = self.resources.get(index) else {
            return Ok(Page::default());
        };
        let spec = ListSpec {
            path: path(resource, namespace, None),
            selector: selector.map(str::to_owned),
            page: self.request.page,
        };
        let sink = self.sink(index, resource, namespaces);
        let mut sink = list(self.client, &spec, sink, keep).await?;
        sink.page.flush(&sink.spool, &mut sink.flushed)?;
        Ok(sink.page)
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
    name.map_or_else(|| path.clone(), |name| format!("{path}/{name}"))
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
        log,
    };
    let index_of = |name: &str| {
        gatherer
            .resources
            .iter()
            .position(|r| r.group_resource() == name)
    };
    let namespaces_index = index_of(NAMESPACES).unwrap_or_default();
    let namespace_page = gatherer
        .list(namespaces_index, None, None, None)
        .await
        .map_err(CollectError::Namespaces)?;
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
    if request.know_volumes {
        gatherer.volumes(&mut collection).await;
    }
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
                    (
                        index,
                        place,
                        self.list(index, place, selector, included).await,
                    )
                }
                .boxed()
            })
            .collect();
        // In order, so that the same cluster always gives the same archive.
        let mut results = stream::iter(lists).buffered(PARALLEL);
        while let Some((index, place, result)) = results.next().await {
            let resource = self
                .resources
                .get(index)
                .map(Resource::group_resource)
                .unwrap_or_default();
            let fields = [
                ("resource", resource.as_str()),
                ("namespace", place.unwrap_or_default()),
            ];
            match result {
                Ok(page) => {
                    if !page.items.is_empty() {
                        self.log
                            .info(&format!("Retrieved {} items", page.items.len()), &fields);
                    }
                    collection.add(page);
                }
                // Gone since discovery.
                Err(error) if error.is_absent() => self.log.info("Resource is not served", &fields),
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
        let mut bound = facts
            .claims
            .values()
            .filter_map(|claim| claim.volume.as_ref());
        if bound.all(|volume| facts.volumes.contains_key(volume)) {
            return;
        }
        let mut resources = self.resources.iter();
        let Some(index) = resources.position(|r| r.group_resource() == VOLUMES) else {
            return;
        };
        match self.list(index, None, None, None).await {
            Ok(page) => facts.volumes.extend(page.facts.volumes),
            Err(error) => self.log.error(
                "Error listing persistent volumes, which volume policies look at",
                &[("error", &chain(&error))],
            ),
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
            match self.list(index, None, None, None).await {
                // Only what they say is of interest; those that are needed are fetched by name.
                Ok(page) => collection.facts.bindings.extend(page.facts.bindings),
                Err(error) => self.log.error(
                    "Error listing cluster role bindings",
                    &[("error", &chain(&error))],
                ),
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
    use jackline_policy::backup::object::Skip;
    use serde_json::json;

    use super::*;

    /// Keeps one claim that is bound to `disk`, as a list of `shop` brings it.
    fn kept(metadata: Value) -> Page {
        let directory = tempfile::tempdir().unwrap();
        let mut sink = Sink {
            page: Page::default(),
            flushed: 0,
            spool: Arc::new(Spool::new(directory.path()).unwrap()),
            resource: 0,
            kind: "PersistentVolumeClaim".to_owned(),
            api_version: "v1".to_owned(),
            name: CLAIMS.to_owned(),
            namespaces: Some(Arc::new(["shop".to_owned()].into())),
        };
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
