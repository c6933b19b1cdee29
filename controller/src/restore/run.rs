//! One restore, from its tarball to its last workload.
//!
//! Order: kinds by priority; when the pods are there, their volumes; workloads that mount a claim under restore last, each as soon as
//! the data of its claims is back. Every step looks at what is there first, so a run that was cut off is simply done again: what this
//! restore made carries its label and is younger than its start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use jackline_crds::{
    names::{FIELD_MANAGER, label, label_value},
    velero::{PodVolumeRestore, Restore, RestoreProgress},
};
use jackline_policy::{
    labels::Labels,
    restore::{
        json::list,
        meta, order,
        skip::{pinned_node, skip},
        volume::{self, Plan, Pod, VolumeKind},
    },
};
use jackline_runtime::{Failure, Key, LeaderToken, Store};
use jackline_storage::ObjectStore;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use super::{
    catalog::{Catalog, CatalogError, Item},
    copies,
    pods::RestoredPod,
    report::{Done, Place, Report},
    served::{Served, ServedResource},
    validate::Valid,
};
use crate::{
    context::Context,
    location::{self, chain},
};

/// Objects of one kind that are made at once.
const WORKERS: usize = 16;
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
    pub report: Report,
    /// Entries of the volume info file.
    pub volumes: Vec<Value>,
    /// Where the files go.
    pub store: Arc<dyn ObjectStore>,
    /// Objects in all.
    pub total: i32,
}

/// A workload that waits for the data of its claims.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub kind: String,
    pub item: Item,
    /// Claims of the item's namespace (of the backup).
    pub claims: BTreeSet<String>,
}

/// What changes while a restore runs.
#[derive(Debug, Default)]
pub(super) struct State {
    pub held: Vec<Held>,
    /// Pods that this restore made: namespace and name in the backup → UID.
    pub pods: BTreeMap<(String, String), String>,
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
    pub report: Report,
    pub plan: Plan,
    pub sizes: BTreeMap<String, i64>,
    /// Claims whose data comes from a copy: namespace and name in the backup.
    pub copied: BTreeMap<(String, String), Option<String>>,
    /// Claims that restored pods mount.
    pub pulled: BTreeSet<(String, String)>,
    /// Claims that are not made, for pods that are not ours wait for them.
    pub blocked: BTreeSet<(String, String)>,
    pub total: i32,
    pub namespaces: tokio::sync::Mutex<BTreeMap<String, bool>>,
    pub state: Mutex<State>,
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
) -> Result<Ending, Failure> {
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
    let total: usize = kinds.iter().map(|kind| catalog.items(kind).len()).sum();
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
        report: Report::new(format!("{}/{}", context.namespace, restore.name_any())),
        plan: Plan::default(),
        sizes: copies.sizes.clone(),
        copied: BTreeMap::new(),
        pulled: BTreeSet::new(),
        blocked: BTreeSet::new(),
        total: i32::try_from(total).unwrap_or(i32::MAX),
        namespaces: tokio::sync::Mutex::default(),
        state: Mutex::default(),
        backup_label: label_value(&backup),
        restore_label: label_value(&restore.name_any()),
    };
    run.report.info(&format!(
        "Starting restore of backup {}/{backup}",
        context.namespace
    ));
    run.prepare(copies).await?;
    let result = run.walk(kinds).await?;
    if !result {
        return Ok(Ending::Deleted);
    }
    let Some(volumes) = run.volumes().await? else {
        return Ok(Ending::Deleted);
    };
    run.report.info("restore completed");
    let finished = Finished {
        report: run.report,
        volumes,
        store,
        total: run.total,
    };
    Ok(Ending::Done(Box::new(finished)))
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

    /// Whether somebody wants this restore gone.
    pub fn is_deleted(&self) -> bool {
        let key = Key::of(self.restore);
        let now = self.context.stores.restores.get(&key);
        now.is_none_or(|now| {
            now.metadata.deletion_timestamp.is_some()
                || now.metadata.uid != self.restore.metadata.uid
        })
    }

    /// Plans the volumes before anything is made.
    async fn prepare(&mut self, copies: copies::Copies) -> Result<(), Failure> {
        let scope = &self.valid.scope;
        for (namespace, why) in &copies.refused {
            if scope.admits_namespace(namespace) {
                self.report
                    .warning(Place::Namespace(self.target(namespace)), why);
            }
        }
        let pods = self.admitted_pods().await?;
        for pod in &pods {
            for volume in &pod.volumes {
                if let VolumeKind::Claim(claim) = &volume.kind {
                    self.pulled.insert((pod.namespace.clone(), claim.clone()));
                }
            }
        }
        let mut plan = volume::plan(&copies.good, &pods);
        for restoration in &plan.restorations {
            if let Some(claim) = &restoration.claim {
                let uid = restoration.copy.claim_uid.clone();
                self.copied
                    .insert((restoration.namespace.clone(), claim.clone()), uid);
            }
        }
        for copy in &plan.homeless {
            let Some(claim) = &copy.claim else { continue };
            self.copied.insert(
                (copy.namespace.clone(), claim.clone()),
                copy.claim_uid.clone(),
            );
            let object = self
                .catalog
                .find("persistentvolumeclaims", Some(&copy.namespace), claim);
            let wanted = object.is_some_and(|object| {
                self.admits("persistentvolumeclaims", Some(&copy.namespace), &object)
            });
            if wanted {
                self.report.warning(
                    Place::Namespace(self.target(&copy.namespace)),
                    &format!(
                        "the data of claim {claim} (volume {} of pod {}) was not restored: no restored pod mounts it",
                        copy.volume, copy.pod
                    ),
                );
            }
        }
        self.leave_used_claims(&mut plan).await?;
        self.plan = plan;
        Ok(())
    }

    /// The pods that will be restored.
    async fn admitted_pods(&self) -> Result<Vec<Pod>, Failure> {
        if !self.valid.scope.admits_resource("pods") {
            return Ok(Vec::new());
        }
        let mut nodes: Option<BTreeSet<String>> = None;
        let mut pods = Vec::new();
        for item in self.catalog.items("pods") {
            let namespace = item.namespace.as_deref();
            // What is wrong with an object is said where it would be made.
            let Ok(object) = self.catalog.read(item) else {
                continue;
            };
            if !self.admits("pods", namespace, &object) || skip("pods", &object).is_some() {
                continue;
            }
            if let Some(node) = pinned_node(&object) {
                if nodes.is_none() {
                    let listed = Api::<Node>::all(self.context.clients.call.clone())
                        .list_metadata(&ListParams::default())
                        .await?;
                    nodes = Some(listed.items.iter().map(ResourceExt::name_any).collect());
                }
                if nodes.as_ref().is_some_and(|nodes| !nodes.contains(node)) {
                    continue;
                }
            }
            pods.push(Pod::read(&object));
        }
        Ok(pods)
    }

    /// A claim that pods of others mount is not restored into: they would write while it is filled.
    async fn leave_used_claims(&mut self, plan: &mut Plan) -> Result<(), Failure> {
        let wanted: BTreeSet<String> = plan
            .restorations
            .iter()
            .filter(|restoration| restoration.claim.is_some())
            .map(|restoration| restoration.namespace.clone())
            .collect();
        let begun = self.begun();
        for namespace in wanted {
            let target = self.target(&namespace).to_owned();
            let pods: Api<RestoredPod> =
                Api::namespaced(self.context.clients.call.clone(), &target);
            let pods = pods.list(&ListParams::default()).await?.items;
            for claim in plan
                .claims(&namespace)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
            {
                let user = pods.iter().find(|pod| {
                    pod.mounts(&claim)
                        && pod.waits_for() != Some(&self.uid)
                        && !matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"))
                });
                let Some(user) = user else { continue };
                if begun
                    .iter()
                    .any(|volume| self.is_for(volume, &target, &claim))
                {
                    continue;
                }
                plan.restorations.retain(|restoration| {
                    restoration.namespace != namespace || restoration.claim.as_ref() != Some(&claim)
                });
                self.refuse_claim(&namespace, &target, &claim, &user.name_any())
                    .await?;
            }
        }
        Ok(())
    }

    async fn refuse_claim(
        &mut self,
        namespace: &str,
        target: &str,
        claim: &str,
        user: &str,
    ) -> Result<(), Failure> {
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.clients.call.clone(), target);
        let place = target.to_owned();
        match claims.get_metadata_opt(claim).await? {
            Some(_) => self.report.warning(
                Place::Namespace(&place),
                &format!(
                    "the data of claim {claim} was not restored: pod {user} is using the claim"
                ),
            ),
            None => {
                self.blocked
                    .insert((namespace.to_owned(), claim.to_owned()));
                self.report.error(
                    Place::Namespace(&place),
                    &format!(
                        "claim {claim} was not restored: pod {user}, which this restore did not make, waits for it and would \
                         write into it before the data is back; scale its workload down and restore again"
                    ),
                );
            }
        }
        Ok(())
    }

    /// The volumes that this restore has begun.
    pub fn begun(&self) -> Vec<Arc<PodVolumeRestore>> {
        self.context.stores.pod_volume_restores.filter(|volume| {
            volume
                .labels()
                .get(label::RESTORE_UID)
                .is_some_and(|uid| *uid == self.uid)
        })
    }

    /// Whether a volume restore fills this claim.
    pub fn is_for(&self, volume: &PodVolumeRestore, namespace: &str, claim: &str) -> bool {
        use super::volumes::CLAIM;
        volume.spec.pod.namespace.as_deref() == Some(namespace)
            && volume
                .annotations()
                .get(CLAIM)
                .is_some_and(|found| found == claim)
    }

    /// Whether the filters admit an object; claims of restored pods and volumes of restored claims come with them.
    pub fn admits(&self, kind: &str, namespace: Option<&str>, object: &Value) -> bool {
        let scope = &self.valid.scope;
        let labels: Labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match (kind, namespace) {
            ("namespaces", _) => {
                scope.admits_namespace(name)
                    && scope.admits_resource(kind)
                    && scope.admits_labels(&labels)
            }
            ("persistentvolumeclaims", Some(namespace)) => {
                let pulled = self
                    .pulled
                    .contains(&(namespace.to_owned(), name.to_owned()));
                scope.admits_resource(kind)
                    && scope.admits_namespace(namespace)
                    && (pulled || scope.admits_labels(&labels))
            }
            ("persistentvolumes", _) => {
                let claim = jackline_policy::restore::claim::claim_of(object);
                let pulled = claim.is_some_and(|(namespace, name)| {
                    let found = self
                        .catalog
                        .find("persistentvolumeclaims", Some(namespace), name);
                    found.is_some_and(|claim| {
                        self.admits("persistentvolumeclaims", Some(namespace), &claim)
                    })
                });
                scope.admits_resource(kind) && (pulled || scope.admits(kind, None, &labels))
            }
            _ => scope.admits(kind, namespace, &labels),
        }
    }

    /// Makes the objects, kind after kind. `false`: the restore was deleted.
    async fn walk(&mut self, mut kinds: Vec<String>) -> Result<bool, Failure> {
        order::sort(&mut kinds);
        for kind in &kinds {
            if self.is_deleted() {
                return Ok(false);
            }
            self.kind(kind).await?;
            if kind == "customresourcedefinitions.apiextensions.k8s.io" {
                self.definitions_ready().await?;
            }
            if kind == "pods" {
                self.start_volumes().await?;
            }
        }
        Ok(true)
    }

    async fn kind(&self, kind: &str) -> Result<(), Failure> {
        let served = self.served.read().clone();
        let items = self.catalog.items(kind);
        let Some(resource) = served.get(kind) else {
            self.report.warning(
                Place::Cluster,
                &format!(
                    "{kind} is not served by this cluster: {} objects were not restored",
                    items.len()
                ),
            );
            return Ok(());
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
        Ok(())
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

    /// Custom resources can be made only when their definitions are established.
    async fn definitions_ready(&self) -> Result<(), Failure> {
        let crds = "customresourcedefinitions.apiextensions.k8s.io";
        let served = self.served.read().clone();
        let Some(resource) = served.get(crds) else {
            return Ok(());
        };
        let objects = super::cluster::Objects::new(&self.context.clients.call, &resource.api, None);
        let deadline = Instant::now() + Duration::from_secs(30);
        for item in self.catalog.items(crds) {
            loop {
                let Some(found) = objects.get(&item.name).await? else {
                    break;
                };
                let established = list(&found, "/status/conditions").iter().any(|condition| {
                    condition["type"] == "Established" && condition["status"] == "True"
                });
                if established {
                    break;
                }
                if Instant::now() > deadline {
                    let why = format!(
                        "CustomResourceDefinition {} was not established in time",
                        item.name
                    );
                    self.report.warning(Place::Cluster, &why);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let served = Served::discover(&self.context.clients.call).await?;
        *self.served.write() = Arc::new(served);
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
        if !due || self.token.check().is_err() {
            return;
        }
        let progress = RestoreProgress {
            total_items: self.total,
            items_restored: self.report.items(),
        };
        let patch = serde_json::json!({
            "metadata": {"uid": self.uid},
            "status": {"progress": progress}
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.context.api::<Restore>();
        // Progress is a courtesy: the next one or the end tells it too.
        if let Err(error) = api
            .patch(&self.restore.name_any(), &params, &Patch::Merge(patch))
            .await
        {
            tracing::debug!(%error, "progress not shown");
        }
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
