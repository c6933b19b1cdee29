//! What a restore admits, and which data goes where, before anything is made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jackline_crds::{names::label, velero::PodVolumeRestore};
use jackline_policy::{
    labels::Labels,
    restore::{
        claim::claim_of,
        json::text,
        skip::{pinned_node, skip},
        volume::{self, Pod, Restoration, VolumeKind},
    },
};
use jackline_runtime::Failure;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt, api::ListParams};
use parking_lot::RwLock;
use serde_json::Value;

use super::{catalog::Item, copies, report::Place, run::Run, volumes::CLAIM};

/// Objects that another of their kind and name goes before, by kind, namespace in the backup and name; and the namespace of that.
#[derive(Debug, Default)]
pub(super) struct Rivals(HashMap<(String, String, String), String>);

/// Volumes of pods that are kept in mind at once, about 100 MiB.
const VOLUMES: usize = 300_000;

impl Run<'_> {
    /// Plans the volumes before anything is made.
    pub async fn prepare(&mut self, copies: copies::Copies) -> Result<(), Failure> {
        let scope = &self.valid.scope;
        if let Some(why) = &copies.unreadable {
            let why = format!(
                "volumes that only the bucket's list of them names are not restored: {why}"
            );
            self.report.error(Place::Velero, &why);
        }
        if copies.absent {
            let why = "the bucket has no list of the backup's volumes: data of which only that told is not restored";
            self.report.warning(Place::Velero, why);
        }
        for (namespace, why) in &copies.refused {
            if scope.admits_namespace(namespace) {
                self.report
                    .warning(Place::Namespace(self.target(namespace)), why);
            }
        }
        let mut copied: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for copy in &copies.good {
            let pod = (copy.namespace.as_str(), copy.pod.as_str());
            copied.entry(pod).or_default().insert(&copy.volume);
        }
        let (pods, priorities) = self.admitted_pods(&copied).await?;
        self.priorities = priorities;
        for pod in &pods {
            for volume in &pod.volumes {
                if let VolumeKind::Claim(claim) = &volume.kind {
                    self.pulled.insert((pod.namespace.clone(), claim.clone()));
                }
            }
        }
        self.rivals = self.find_rivals().await;
        let empty = self.restore.spec.restore_p_vs == Some(false);
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
            if wanted && !empty {
                self.report.warning(
                    Place::Namespace(self.target(&copy.namespace)),
                    &format!(
                        "the data of claim {claim} (volume {} of pod {}) was not restored: no restored pod mounts it",
                        copy.volume, copy.pod
                    ),
                );
            }
        }
        if !empty {
            self.tell_of_snapshots(&copies);
        }
        if empty {
            self.report
                .info("claims stay empty: the restore asks for no volumes (restorePVs)");
            plan.restorations.clear();
        }
        // As in Velero: what comes back without its claim may find another's data there. A claim without its volume gets a new one.
        let kind = "persistentvolumeclaims";
        if !scope.admits_resource(kind) {
            for left in plan.leave_claims() {
                self.report.warning(
                    Place::Namespace(self.target(&left.namespace)),
                    &format!(
                        "the data of claim {} was not restored: the restore's filters leave out {kind}",
                        left.claim.as_deref().unwrap_or_default()
                    ),
                );
            }
        }
        self.leave_to_rivals(&mut plan);
        self.plan = RwLock::new(Arc::new(plan));
        Ok(())
    }

    /// The objects that another goes before, where several namespaces are restored into one: of each name the one of the first namespace
    /// in the alphabet is restored.
    async fn find_rivals(&self) -> Rivals {
        let mut rivals = Rivals::default();
        let scope = &self.valid.scope;
        let all = self
            .catalog
            .kinds()
            .flat_map(|kind| self.catalog.items(kind));
        let contested = scope.contested(all.filter_map(|item| item.namespace.as_deref()));
        let sources: BTreeSet<&String> = contested.values().flatten().collect();
        for kind in self.catalog.kinds().filter(|_| !sources.is_empty()) {
            // By place in the cluster.
            let mut places: BTreeMap<(&str, &str), BTreeMap<&str, &Item>> = BTreeMap::new();
            for item in self.catalog.items(kind) {
                if let Some(namespace) = item.namespace.as_ref().filter(|it| sources.contains(it)) {
                    let place = places.entry((self.target(namespace), &item.name));
                    place.or_default().insert(namespace, item);
                }
            }
            for ((_, name), items) in places.into_iter().filter(|(_, items)| items.len() > 1) {
                let mut first: Option<&str> = None;
                for (namespace, item) in items {
                    if let Some(first) = first {
                        let place = (kind.clone(), namespace.to_owned(), name.to_owned());
                        rivals.0.insert(place, first.to_owned());
                    } else if let Ok(object) = self.catalog.read(item)
                        && self.admits(kind, Some(namespace), &object)
                        && skip(kind, &object).is_none()
                    {
                        first = Some(namespace);
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        rivals
    }

    /// The namespace of the backup whose object is restored in place of this one.
    pub fn rival(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<&str> {
        let rivals = &self.rivals.0;
        let namespace = namespace.filter(|_| !rivals.is_empty())?;
        let place = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        rivals.get(&place).map(String::as_str)
    }

    /// Of several namespaces that become one, a claim gets the data of one, no pod of another sees it, and no data goes through a pod that
    /// is not restored.
    fn leave_to_rivals(&self, plan: &mut volume::Plan) {
        let kind = "persistentvolumeclaims";
        for ((_, namespace, claim), rival) in self.rivals.0.iter().filter(|(of, _)| of.0 == kind) {
            if !plan.restores_claim(namespace, claim) && !plan.restores_claim(rival, claim) {
                continue;
            }
            plan.leave_claim(namespace, claim);
            let target = self.target(namespace);
            let why = format!(
                "claim {claim} of namespace {namespace} and its data were not restored: namespace {rival} of the backup is restored \
                 into {target} too, and has a claim of that name"
            );
            self.report.error(Place::Namespace(target), &why);
            let key = (namespace.clone(), claim.clone());
            self.state.lock().blocked.insert(key);
        }
        if self.rivals.0.is_empty() {
            return;
        }
        plan.restorations.retain_mut(|restoration| {
            let namespace = restoration.namespace.clone();
            let comes = |pod: &str| self.rival("pods", Some(&namespace), pod).is_none();
            restoration.waiters.retain(|(pod, _)| comes(pod));
            let (pod, volume) = restoration.carrier.clone();
            if comes(&pod) {
                return true;
            }
            if let Some(first) = restoration.waiters.first() {
                restoration.carrier = first.clone();
                return true;
            }
            let target = self.target(&namespace);
            let why = format!(
                "the data of volume {volume} of pod {pod} of namespace {namespace} was not restored: another namespace of the backup is \
                 restored into {target} too, and has a pod of that name"
            );
            self.report.error(Place::Namespace(target), &why);
            if let Some(claim) = &restoration.claim {
                // Workloads would find it empty.
                let key = (namespace.clone(), claim.clone());
                self.state.lock().blocked.insert(key);
            }
            false
        });
    }

    /// Names the claims whose data a Velero saved in another way: none of it comes back.
    fn tell_of_snapshots(&self, copies: &copies::Copies) {
        if let Some(why) = &copies.unknown {
            let why = format!("it is not known which claims were saved by snapshots: {why}");
            self.report.warning(Place::Velero, &why);
        }
        for copy in &copies.elsewhere {
            let volume = self.catalog.find("persistentvolumes", None, &copy.volume);
            let owner = volume.as_ref().and_then(claim_of);
            let claim = match &copy.claim {
                Some(claim) => Some((copy.namespace.as_str(), claim.as_str())),
                None => owner,
            };
            let Some((namespace, name)) = claim else {
                continue;
            };
            let kind = "persistentvolumeclaims";
            let object = self.catalog.find(kind, Some(namespace), name);
            let wanted = object.is_some_and(|object| self.admits(kind, Some(namespace), &object));
            let key = (namespace.to_owned(), name.to_owned());
            if wanted && !self.copied.contains_key(&key) {
                let why = format!(
                    "the data of claim {name} was not restored: it was saved as a {}, which only Velero restores",
                    copy.method
                );
                let place = Place::Namespace(self.target(namespace));
                self.report.warning(place, &why);
            }
        }
    }

    /// The pods that will be restored, with their volumes of which something has to be known, and the priority classes that they name.
    /// `copied`: the volumes of each pod of which there are copies.
    async fn admitted_pods(
        &self,
        copied: &BTreeMap<(&str, &str), BTreeSet<&str>>,
    ) -> Result<(Vec<Pod>, BTreeSet<String>), Failure> {
        let (mut pods, mut priorities) = (Vec::new(), BTreeSet::new());
        let mut room = VOLUMES;
        if !self.valid.scope.admits_resource("pods") {
            return Ok((pods, priorities));
        }
        let mut nodes: Option<BTreeSet<String>> = None;
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
            priorities.extend(text(&object, "/spec/priorityClassName").map(str::to_owned));
            let mut pod = Pod::read(&object);
            let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
            let copied = copied.get(&(namespace.as_str(), name.as_str()));
            pod.keep(|volume| copied.is_some_and(|copied| copied.contains(volume)));
            room = room.checked_sub(pod.volumes.len()).ok_or_else(|| {
                let why = format!("the pods of the backup have more than {VOLUMES} volumes: restore single namespaces");
                Failure::terminal("TooManyVolumes", why)
            })?;
            pods.push(pod);
        }
        Ok((pods, priorities))
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

    /// Whether this restore has begun with a volume.
    pub fn is_begun(&self, restoration: &Restoration) -> bool {
        let begun = self.begun();
        begun.iter().any(|volume| self.is_of(volume, restoration))
    }

    /// Whether a volume restore fills this claim.
    pub fn is_for(&self, volume: &PodVolumeRestore, namespace: &str, claim: &str) -> bool {
        volume.spec.pod.namespace.as_deref() == Some(namespace)
            && volume
                .annotations()
                .get(CLAIM)
                .is_some_and(|found| found == claim)
    }

    /// Whether the filters admit an object; claims and priority classes of restored pods and volumes of restored claims come with them.
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
                let claim = claim_of(object).filter(|_| scope.admits_needed());
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
            ("priorityclasses.scheduling.k8s.io", _) => {
                let pulled = scope.admits_needed() && self.priorities.contains(name);
                scope.admits_resource(kind) && (pulled || scope.admits(kind, None, &labels))
            }
            _ => scope.admits(kind, namespace, &labels),
        }
    }
}
