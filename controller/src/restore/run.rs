//! One restore, from its tarball to its last workload.
//!
//! Order: kinds by priority; when the pods are there, their volumes; workloads that mount a claim under restore last, each as soon as
//! the data of its claims is back. Commands run in a pod from the moment it is made, beside all of that. Every step looks at what is
//! there first, so a run that was cut off is simply done again: what this restore made carries its label and is not older than the Restore,
//! and kinds that are through are noted on the Restore, so that nothing is made again that has gone since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, try_join, try_join_all},
    stream::{self, FuturesUnordered},
};
use jackline_crds::{
    names::{annotation, label, label_value},
    velero::{HookStatus, Restore, RestorePhase, RestoreProgress, RestoreStatus},
};
use jackline_policy::restore::{
    claim,
    json::list,
    meta,
    order::{self, Through},
    volume::Plan,
};
use jackline_runtime::{Class, Failure, Key, LeaderToken, Store};
use jackline_storage::ObjectStore;
use jiff::Timestamp;
use kube::ResourceExt;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, mpsc};

use super::{
    catalog::{Catalog, CatalogError, Item},
    cluster::patiently,
    copies,
    plan::Rivals,
    pods::RestoredPod,
    report::{Done, Place, Report},
    served::{Served, ServedResource},
    validate::Valid,
};
use crate::{
    context::Context,
    exec::HookCount,
    fence, holds,
    location::{self, chain},
};

/// Objects of one kind that are made at once.
const WORKERS: usize = 16;
/// How long definitions may take to be established, and then their kinds to be served.
const DEFINED: Duration = Duration::from_secs(30);
/// How often a note is tried to be written.
const NOTES: usize = 5;
/// Longest note, in bytes: all annotations together have room for 256 KiB. Without it a run that takes over makes more again.
const NOTE: usize = 128 << 10;
/// How far a watch may be behind what was just made.
pub(super) const CATCH_UP: Duration = Duration::from_secs(60);
/// How soon a restore is taken up again that its watch was too far behind for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The status shows progress at most this often.
const SHOW: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// Everything was tried; the report says with what result.
    Done(Box<Finished>),
    /// Nothing could be restored.
    Failed(String),
    /// The restore was deleted meanwhile.
    Deleted,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Finished {
    /// What was done.
    pub report: Arc<Report>,
    /// Entries of the volume info file.
    pub volumes: Vec<Value>,
    /// Where the files go.
    pub store: Arc<dyn ObjectStore>,
    /// Commands that were run in pods.
    pub hooks: HookStatus,
}

/// A workload that waits for the data of its claims.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub kind: String,
    pub item: Item,
    /// Claims of the item's namespace (of the backup).
    pub claims: BTreeSet<String>,
}

/// A pod that this restore made: namespace and name in the backup, and its UID.
pub(super) type MadePod = ((String, String), String);

/// Which namespaces of the backup are being seen to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// All but those that come late, and what is in none.
    Prompt(&'a BTreeSet<String>),
    /// One that is still being deleted, or left by its pods.
    Late(&'a str),
}

impl Part<'_> {
    /// Whether an object that goes with this namespace belongs to it.
    pub fn has(self, namespace: Option<&str>) -> bool {
        match self {
            Self::Prompt(late) => namespace.is_none_or(|namespace| !late.contains(namespace)),
            Self::Late(only) => namespace == Some(only),
        }
    }
}

/// What changes while a restore runs.
#[derive(Debug, Default)]
pub(super) struct State {
    pub held: Vec<Held>,
    /// Where each pod is told of whose commands are to run; none when no more come.
    pub made: Option<mpsc::UnboundedSender<MadePod>>,
    /// What has been made, by earlier runs too.
    pub through: Through,
    /// Kinds of which something failed in this run, and the namespace of the backup; none: it is not known in which.
    pub failed: BTreeSet<(String, Option<String>)>,
    /// Kinds whose definitions are in the backup and here.
    pub defined: BTreeSet<String>,
    /// Claims that got a new volume: namespace and name in the backup.
    pub provisioned: BTreeSet<(String, String)>,
    /// Claims that could not be made: namespace and name in the backup.
    pub unmade: BTreeSet<(String, String)>,
    /// Claims that are not made, for pods that are not ours wait for them.
    pub blocked: BTreeSet<(String, String)>,
    /// Claims that this restore fills, or is about to: namespace and name in the backup.
    pub filling: BTreeMap<(String, String), holds::Held>,
    /// Claims that it has left to others, and why: namespace and name in the backup.
    pub left: BTreeMap<(String, String), String>,
    /// Other restores that the watch does not know yet, by UID.
    pub met: BTreeMap<String, Arc<Restore>>,
    /// Pods that this restore made: namespace and name in the backup → UID.
    pub pods: BTreeMap<(String, String), String>,
    /// Names of the PodVolumeRestores that this run made or found.
    pub begun: BTreeSet<String>,
    pub shown: Option<Instant>,
}

/// One restore being carried out.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub context: &'a Context,
    pub token: &'a LeaderToken,
    pub restored_pods: &'a Store<RestoredPod>,
    pub restore: &'a Restore,
    pub uid: String,
    pub started: Timestamp,
    pub valid: &'a Valid,
    pub catalog: Catalog,
    pub served: RwLock<Arc<Served>>,
    pub report: Arc<Report>,
    /// Claims leave it when it turns out, part by part, that they are in use.
    pub plan: RwLock<Arc<Plan>>,
    pub sizes: BTreeMap<String, i64>,
    /// Claims whose data comes from a copy: namespace and name in the backup.
    pub copied: BTreeMap<(String, String), Option<String>>,
    /// Claims that restored pods mount.
    pub pulled: BTreeSet<(String, String)>,
    /// Priority classes that restored pods name.
    pub priorities: BTreeSet<String>,
    /// Objects that are to be looked at, as far as it is known.
    pub total: AtomicI32,
    /// Name in the cluster → whether it is there.
    pub namespaces: Mutex<BTreeMap<String, Arc<OnceCell<bool>>>>,
    pub state: Mutex<State>,
    pub hooks: HookCount,
    /// What earlier runs had made.
    pub made_before: Through,
    /// Objects that another of their kind and name goes before, and its namespace in the backup.
    pub rivals: Rivals,
    /// The image of the agents, once it was asked for.
    pub agents_image: OnceCell<Option<String>>,
    /// Since when no more data comes.
    pub data_over: OnceLock<Instant>,
    backup_label: String,
    restore_label: String,
}

/// Carries a valid restore out, from wherever an earlier run left it.
///
/// # Errors
/// What may be better next time; then everything is looked at again.
pub(super) async fn execute(
    context: &Context,
    restored_pods: &Store<RestoredPod>,
    token: &LeaderToken,
    restore: &Restore,
    valid: &Valid,
    served: Served,
    report: Arc<Report>,
) -> Result<Ending, Failure> {
    know(context, restore).await?;
    let store = location::open(&context.clients.call, &context.namespace, &valid.location)
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
    let backup = valid.backup.name_any();
    let catalog = match Catalog::fetch(&*store, &backup, &context.args.scratch()).await {
        Ok(catalog) => catalog,
        Err(error) if error.is_retryable() => return Err(Failure::transient("NoTarball", error)),
        Err(error @ (CatalogError::Storage(_) | CatalogError::Tarball { .. })) => {
            return Ok(Ending::Failed(format!(
                "error downloading backup: {}",
                chain(&error)
            )));
        }
        Err(error) => return Err(Failure::transient("NoTarball", error)),
    };
    restored_pods.ready().await;
    let copies = copies::of_backup(context, &valid.backup, &*store).await?;
    let started = restore
        .status
        .as_ref()
        .and_then(|status| status.start_timestamp.clone());
    let kinds: Vec<String> = catalog
        .kinds()
        .filter(|k| valid.scope.admits_resource(k))
        .cloned()
        .collect();
    let total = |kind: &String| {
        let items = catalog.items(kind).iter();
        items.filter(|item| admits_place(valid, kind, item)).count()
    };
    let total: usize = kinds.iter().map(total).sum();
    let noted = restore.annotations().get(annotation::RESTORED_KINDS);
    let made_before = noted.and_then(|text| serde_json::from_str::<Through>(text).ok());
    let made_before = made_before.unwrap_or_default();
    let mut run = Run {
        context,
        token,
        restored_pods,
        restore,
        uid: restore.uid().unwrap_or_default(),
        started: started.map_or_else(Timestamp::now, |time| time.0),
        valid,
        catalog,
        served: RwLock::new(Arc::new(served)),
        report,
        plan: RwLock::default(),
        sizes: copies.sizes.clone(),
        copied: BTreeMap::new(),
        pulled: BTreeSet::new(),
        priorities: BTreeSet::new(),
        total: AtomicI32::new(i32::try_from(total).unwrap_or(i32::MAX)),
        namespaces: Mutex::default(),
        state: Mutex::new(State {
            through: made_before.clone(),
            ..State::default()
        }),
        hooks: HookCount::default(),
        made_before,
        rivals: Rivals::default(),
        agents_image: OnceCell::new(),
        data_over: OnceLock::new(),
        backup_label: label_value(&backup),
        restore_label: label_value(&restore.name_any()),
    };
    run.report.info(&format!(
        "Starting restore of backup {}/{backup}",
        context.namespace
    ));
    if run.catalog.kinds().next().is_none() {
        run.report
            .warning(Place::Velero, "the tarball of the backup holds no objects");
    }
    for why in &valid.adaptation.warnings {
        run.report.warning(Place::Velero, why);
    }
    run.prepare(copies).await?;
    let (made, pods) = mpsc::unbounded_channel();
    run.state.lock().made = Some(made);
    let objects = async {
        let whole = run.objects(kinds).await?;
        run.state.lock().made = None;
        let _ = run.data_over.set(Instant::now());
        if whole {
            run.put_back_details().await?;
        }
        Ok::<_, Failure>(whole)
    };
    let (whole, ()) = try_join(objects, run.run_hooks(pods)).await?;
    if !whole {
        return Ok(Ending::Deleted);
    }
    let volumes = run.volume_info();
    run.report.info("restore completed");
    let finished = Finished {
        report: run.report,
        volumes,
        store,
        hooks: run.hooks.status(),
    };
    Ok(Ending::Done(Box::new(finished)))
}

/// Waits until the watch has this restore: one that it lacks counts as deleted, and so would one whose namesake was a moment ago.
async fn know(context: &Context, restore: &Restore) -> Result<(), Failure> {
    let key = Key::of(restore);
    let known = context.stores.restores.wait_for(|restores| {
        let known = restores.get(&key);
        known.filter(|known| known.metadata.uid == restore.metadata.uid)
    });
    let known = tokio::time::timeout(CATCH_UP, known).await;
    let behind = |_| {
        Failure::waiting(
            LOOK_AGAIN,
            "RestoresBehind",
            "the watch of restores lacks it",
        )
    };
    known.map(drop).map_err(behind)
}

impl Run<'_> {
    /// The labels of everything that this restore makes.
    pub fn labels(&self) -> meta::Labels<'_> {
        meta::Labels {
            backup: (label::BACKUP_NAME, &self.backup_label),
            restore: (label::RESTORE_NAME, &self.restore_label),
        }
    }

    /// The name in the cluster of a namespace of the backup.
    pub fn target<'b>(&'b self, namespace: &'b str) -> &'b str {
        self.valid.scope.target(namespace)
    }

    /// Which data goes where, as far as it is known now.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.read().clone()
    }

    /// Whether somebody wants this restore gone.
    pub fn is_deleted(&self) -> bool {
        let key = Key::of(self.restore);
        let now = self.context.stores.restores.get(&key);
        now.is_none_or(|now| {
            now.metadata.deletion_timestamp.is_some()
                || now.metadata.uid != self.restore.metadata.uid
        })
    }

    /// Makes the objects and fills the volumes. A namespace that is still being deleted, or where pods that use the claims are, holds up
    /// what goes into it alone: that comes when all other objects are there, beside the volumes of the others. `false`: the restore was
    /// deleted.
    async fn objects(&self, mut kinds: Vec<String>) -> Result<bool, Failure> {
        let order = &self.context.args.restore_resource_priorities;
        order.sort(&mut kinds);
        let late = self.late(&kinds).await?;
        for namespace in &late {
            let target = self.target(namespace);
            let why = format!(
                "namespace {target} or pods that use its claims are being deleted: its objects come last"
            );
            self.report.info(&why);
        }
        let prompt = Part::Prompt(&late);
        self.leave_used_claims(prompt).await?;
        self.ask_for_repositories().await?;
        if !self.walk(&kinds, prompt).await? {
            return Ok(false);
        }
        let late = late.iter().map(|namespace| {
            let part = Part::Late(namespace);
            let kinds = &kinds;
            let come = async move {
                self.leave_used_claims(part).await?;
                Ok(self.walk(kinds, part).await? && self.volumes(part).await?)
            };
            come.boxed()
        });
        let late: Vec<BoxFuture<'_, Result<bool, Failure>>> = late.collect();
        let (first, late) = try_join(self.volumes(prompt), try_join_all(late)).await?;
        Ok(first && late.into_iter().all(|whole| whole))
    }

    /// The namespaces of the backup that are to come back and whose namesakes here are still being deleted, or pods in them that use
    /// claims under restore.
    async fn late(&self, kinds: &[String]) -> Result<BTreeSet<String>, Failure> {
        let items = kinds.iter().flat_map(|kind| self.catalog.items(kind));
        let used: BTreeSet<&str> = items
            .filter_map(|item| item.namespace.as_deref())
            .filter(|namespace| self.valid.scope.admits_namespace(namespace))
            .collect();
        let looks: Vec<BoxFuture<'_, Result<_, Failure>>> = used
            .into_iter()
            .map(|namespace| {
                let look = async move {
                    let going =
                        self.is_going(namespace).await? || self.is_being_left(namespace).await?;
                    Ok(going.then(|| namespace.to_owned()))
                };
                look.boxed()
            })
            .collect();
        let found = stream::iter(looks).buffer_unordered(WORKERS);
        let found: Vec<Option<String>> = found.try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Makes the objects of a part, kind after kind. `false`: the restore was deleted.
    async fn walk(&self, kinds: &[String], part: Part<'_>) -> Result<bool, Failure> {
        for kind in kinds {
            if self.is_deleted() {
                return Ok(false);
            }
            let errors = || self.report.counts().1;
            let before = errors();
            let served = self.kind(kind, part).await?;
            if errors() != before {
                self.state.lock().fail(kind, part);
            } else if served {
                self.state.lock().end(kind, part);
            }
            if matches!(part, Part::Prompt(_)) && kind == order::DEFINITIONS {
                self.definitions_ready().await?;
            }
            if kind == "pods" {
                // Which may wait for a repository.
                self.note_progress().await?;
                self.start_volumes(part).await?;
            }
        }
        self.note_progress().await?;
        Ok(true)
    }

    /// The namespace of the backup that an object goes with: a volume with its claim.
    pub fn home(&self, kind: &str, item: &Item) -> Option<String> {
        match kind {
            "namespaces" => Some(item.name.clone()),
            "persistentvolumes" => {
                let volume = self.catalog.read(item).ok()?;
                claim::claim_of(&volume).map(|(namespace, _)| namespace.to_owned())
            }
            _ => item.namespace.clone(),
        }
    }

    /// Makes the objects of a kind. `false`: it is not served.
    async fn kind(&self, kind: &str, part: Part<'_>) -> Result<bool, Failure> {
        let served = self.served.read().clone();
        let items = self.catalog.items(kind).iter();
        let items: Vec<&Item> = items
            .filter(|item| admits_place(self.valid, kind, item))
            .filter(|item| part.has(self.home(kind, item).as_deref()))
            .collect();
        if items.is_empty() {
            return Ok(true);
        }
        let Some(resource) = served.get(kind) else {
            let why = format!(
                "{kind} is not served by this cluster: {} objects were not restored",
                items.len()
            );
            // Not for want of its definition: that is here.
            match self.state.lock().defined.contains(kind) {
                true => self.report.error(Place::Cluster, &why),
                false => self.report.warning(Place::Cluster, &why),
            }
            let left = i32::try_from(items.len()).unwrap_or(i32::MAX);
            self.total.fetch_sub(left, Ordering::Relaxed);
            return Ok(false);
        };
        let mut running = FuturesUnordered::new();
        for item in items {
            if running.len() >= WORKERS {
                running.next().await.transpose()?;
            }
            running.push(self.counted(kind, resource, item));
        }
        while let Some(result) = running.next().await {
            result?;
        }
        Ok(true)
    }

    async fn counted(
        &self,
        kind: &str,
        resource: &ServedResource,
        item: &Item,
    ) -> Result<(), Failure> {
        let result = self.item(kind, resource, item).await;
        self.report.item();
        self.show_progress().await;
        result
    }

    /// Custom resources can be made only when their definitions are established, and discovery, which lags behind that, knows them.
    async fn definitions_ready(&self) -> Result<(), Failure> {
        let crds = order::DEFINITIONS;
        let served = self.served.read().clone();
        let Some(resource) = served.get(crds) else {
            return Ok(());
        };
        let objects = super::cluster::Objects::new(&self.context.clients.call, &resource.api, None);
        let deadline = Instant::now() + DEFINED;
        let mut defined = BTreeSet::new();
        for item in self.catalog.items(crds) {
            loop {
                let Some(found) = objects.get(&item.name).await? else {
                    break;
                };
                match definition(&found) {
                    Definition::Unserved => break,
                    Definition::Established => {
                        defined.insert(item.name.clone());
                        break;
                    }
                    Definition::New => {}
                }
                if Instant::now() > deadline {
                    let why = format!(
                        "CustomResourceDefinition {} was not established in time",
                        item.name
                    );
                    self.report.warning(Place::Cluster, &why);
                    defined.insert(item.name.clone());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let deadline = Instant::now() + DEFINED;
        loop {
            let served = Served::discover(&self.context.clients.call).await?;
            let known = defined.iter().all(|kind| served.get(kind).is_some());
            *self.served.write() = Arc::new(served);
            if known || Instant::now() > deadline {
                break;
            }
            self.token.check()?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.state.lock().defined = defined;
        Ok(())
    }

    /// Writes down how far this run is, before what may take long: progress shows only now and then. Where it cannot be written, more is
    /// made again by whoever takes the restore over.
    pub async fn note_progress(&self) -> Result<(), Failure> {
        let api = self.context.api::<Restore>();
        for _ in 0..NOTES {
            self.token.check()?;
            let name = self.restore.name_any();
            let now = patiently(|| api.get_opt(&name)).await?;
            let Some(now) = now.filter(|now| now.uid().as_ref() == Some(&self.uid)) else {
                break;
            };
            match self.write_progress(&now).await {
                // Progress is shown meanwhile.
                Err(failure) if failure.class == Class::Conflict => {}
                Err(failure) => {
                    tracing::debug!(%failure, "not noted how far a restore is");
                    break;
                }
                Ok(()) => break,
            }
        }
        Ok(())
    }

    async fn show_progress(&self) {
        let due = {
            let mut state = self.state.lock();
            let due = state.shown.is_none_or(|shown| shown.elapsed() >= SHOW);
            if due {
                state.shown = Some(Instant::now());
            }
            due
        };
        let now = self.context.stores.restores.get(&Key::of(self.restore));
        let now = now.filter(|now| {
            now.phase() == RestorePhase::InProgress && now.uid() == self.restore.uid()
        });
        let Some(now) = now.filter(|_| due) else {
            return;
        };
        // Progress is a courtesy: the next one or the end tells it too.
        if let Err(error) = self.write_progress(&now).await {
            tracing::debug!(%error, "progress not shown");
        }
    }

    /// Writes how many objects there are, and which kinds are through: whoever takes the restore over makes none of them again.
    async fn write_progress(&self, now: &Restore) -> Result<(), Failure> {
        let status = RestoreStatus {
            progress: Some(RestoreProgress {
                total_items: self.total.load(Ordering::Relaxed),
                items_restored: self.report.items(),
            }),
            ..now.status.clone().unwrap_or_default()
        };
        let through = serde_json::to_string(&self.state.lock().through).ok();
        let note = through.filter(|text| text.len() <= NOTE).map_or(
            json!({}),
            |text| json!({"annotations": {(annotation::RESTORED_KINDS): text}}),
        );
        let api = self.context.api::<Restore>();
        fence::write(&api, now, &status, note, self.token).await?;
        Ok(())
    }

    /// Notes an object's outcome.
    pub fn done(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        done: Done,
    ) {
        self.report
            .object(&format!("{api_version}/{kind}"), namespace, name, done);
    }
}

impl State {
    /// The objects of a kind have been made, and nothing failed: no other run has to look at them again, but for what waits for data.
    fn end(&mut self, kind: &str, part: Part<'_>) {
        match part {
            Part::Prompt(late) => {
                let held = self.held.iter().filter(|workload| workload.kind == kind);
                let held = held.filter_map(|workload| workload.item.namespace.clone());
                let but = held.chain(late.iter().cloned()).collect();
                self.through.add(kind, but);
            }
            Part::Late(namespace) => self.end_in(kind, namespace),
        }
    }

    /// Something of a kind could not be made: another run tries that, and tells of it, again.
    fn fail(&mut self, kind: &str, part: Part<'_>) {
        let namespace = match part {
            Part::Prompt(_) => None,
            Part::Late(namespace) => Some(namespace.to_owned()),
        };
        self.failed.insert((kind.to_owned(), namespace));
    }

    /// The same as [`State::end`], of one namespace.
    pub fn end_in(&mut self, kind: &str, namespace: &str) {
        let waits = |workload: &Held| {
            workload.kind == kind && workload.item.namespace.as_deref() == Some(namespace)
        };
        let failed = |namespace: Option<&str>| {
            let place = (kind.to_owned(), namespace.map(str::to_owned));
            self.failed.contains(&place)
        };
        if !self.held.iter().any(waits) && !failed(None) && !failed(Some(namespace)) {
            self.through.add_namespace(kind, namespace);
        }
    }
}

fn admits_place(valid: &Valid, kind: &str, item: &Item) -> bool {
    let namespace = item.namespace.as_deref();
    valid.scope.admits_place(kind, namespace, &item.name)
}

/// How far the definition of a custom resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Definition {
    /// None of its versions is meant to be served.
    Unserved,
    /// It is not established yet.
    New,
    Established,
}

fn definition(found: &Value) -> Definition {
    let served = |version: &Value| version["served"] == true;
    if !list(found, "/spec/versions").iter().any(served) {
        return Definition::Unserved;
    }
    let established = list(found, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    match established {
        true => Definition::Established,
        false => Definition::New,
    }
}

/// A run for tests.
#[cfg(test)]
pub(super) mod idle {
    use jackline_policy::restore::{
        conflict::ExistingPolicy,
        scope::{Filters, Scope},
    };

    use super::*;
    use crate::{context::unwatched, restore::adapt::Adaptation};

    /// What it borrows.
    pub struct Idle {
        pub context: Arc<Context>,
        pub token: LeaderToken,
        pub pods: Store<RestoredPod>,
        pub restore: Restore,
        pub valid: Valid,
    }

    impl Idle {
        /// Of a restore `r` with the UID `r`, which the watch has; of everything else the API server alone knows.
        pub fn new(objects: &[(&str, Value)]) -> Self {
            let restore = json!({"metadata": {"name": "r", "namespace": "velero", "uid": "r"},
                "spec": {"backupName": "b"}, "status": {"phase": "InProgress"}});
            let restore: Restore = serde_json::from_value(restore).unwrap();
            let mut context = unwatched::context(objects);
            let known = Arc::get_mut(&mut context).unwrap();
            known.stores.restores = Store::fixed([restore.clone()]);
            let valid = Valid {
                backup: serde_json::from_value(unwatched::completed("b", 1)).unwrap(),
                location: serde_json::from_value(unwatched::location("here")).unwrap(),
                scope: Scope::new(Filters::default()).unwrap(),
                existing: ExistingPolicy::default(),
                hooks: Vec::new(),
                adaptation: Adaptation::default(),
                volume_timeout: None,
            };
            let (token, held) = LeaderToken::for_tests();
            std::mem::forget(held);
            Self {
                context,
                token,
                pods: Store::fixed([]),
                restore,
                valid,
            }
        }

        pub fn run(&self) -> Run<'_> {
            Run {
                context: &self.context,
                token: &self.token,
                restored_pods: &self.pods,
                restore: &self.restore,
                uid: self.restore.uid().unwrap_or_default(),
                started: Timestamp::now(),
                valid: &self.valid,
                catalog: Catalog::empty(),
                served: RwLock::default(),
                report: Arc::new(Report::new("velero/r".to_owned())),
                plan: RwLock::default(),
                sizes: BTreeMap::new(),
                copied: BTreeMap::new(),
                pulled: BTreeSet::new(),
                priorities: BTreeSet::new(),
                total: AtomicI32::default(),
                namespaces: Mutex::default(),
                state: Mutex::default(),
                hooks: HookCount::default(),
                made_before: Through::default(),
                rivals: Rivals::default(),
                agents_image: OnceCell::new(),
                data_over: OnceLock::new(),
                backup_label: "b".to_owned(),
                restore_label: "r".to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_through_but_where_its_workloads_wait() {
        let held = |namespace: &str| {
            let mut item = Item::default();
            item.namespace = Some(namespace.to_owned());
            Held {
                kind: "jobs.batch".to_owned(),
                item,
                claims: ["data".to_owned()].into(),
            }
        };
        let mut state = State {
            held: vec![held("a"), held("late")],
            ..State::default()
        };
        let late = ["late".to_owned()].into();
        for kind in ["jobs.batch", "services"] {
            state.end(kind, Part::Prompt(&late));
        }
        let has = |state: &State, kind: &str| {
            ["a", "b", "late"].map(|namespace| state.through.has(kind, Some(namespace)))
        };
        assert_eq!(has(&state, "jobs.batch"), [false, true, false]);
        assert_eq!(has(&state, "services"), [true, true, false]);
        for kind in ["jobs.batch", "services"] {
            state.end(kind, Part::Late("late"));
        }
        assert_eq!(has(&state, "jobs.batch"), [false, true, false]);
        assert_eq!(has(&state, "services"), [true, true, true]);
        state.held.clear();
        state.fail("jobs.batch", Part::Late("a"));
        state.end_in("jobs.batch", "a");
        assert_eq!(has(&state, "jobs.batch"), [false, true, false]);
        state.failed.clear();
        state.end_in("jobs.batch", "a");
        assert_eq!(has(&state, "jobs.batch"), [true, true, false]);
    }

    #[test]
    fn a_definition_that_serves_nothing_is_not_waited_for() {
        let of = |served: bool, established: &str| {
            let conditions = json!([
                {"type": "NamesAccepted", "status": "True"},
                {"type": "Established", "status": established}
            ]);
            let versions =
                json!([{"name": "v1", "served": false}, {"name": "v2", "served": served}]);
            definition(
                &json!({"spec": {"versions": versions}, "status": {"conditions": conditions}}),
            )
        };
        for (served, established, expected) in [
            (true, "True", Definition::Established),
            (true, "False", Definition::New),
            (false, "True", Definition::Unserved),
        ] {
            assert_eq!(of(served, established), expected, "{served} {established}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_restore_does_not_begin_before_the_watch_has_it() {
        let idle = idle::Idle::new(&[]);
        assert!(know(&idle.context, &idle.restore).await.is_ok());
        let mut again = idle.restore.clone();
        again.metadata.uid = Some("made again".to_owned());
        let behind = know(&idle.context, &again).await.unwrap_err();
        assert_eq!(behind.reason, "RestoresBehind");
    }
}
