//! What the policies look at: pods, claims, volumes and namespaces of the whole cluster, as slim facts behind one lock, and the queues of
//! what has to be looked at again.

pub mod lean;
pub mod points;
pub mod state;
pub mod view;

mod agents;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jackline_crds::jackline::{BackupPolicy, ClusterBackupPolicy};
use jackline_crds::velero::{Backup, BackupPhase};
use jackline_policy::{Policy, PolicyId};
use jackline_runtime::{Key, Kit, Queue, Store, WatchEvent, WatchSpec};
use jiff::Timestamp;
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::context::{Context, Governed, GovernedVolume};
use crate::policies::PolicyObject;
use lean::{LeanClaim, LeanNamespace, LeanPod, LeanVolume};
use points::{Point, Points};
use state::{Dirty, Kind, State};
pub use view::Upkeep;

/// Coverage and policy status follow what happens by this much, so that a rollout is one write and not a hundred.
const SETTLE: Duration = Duration::from_secs(2);
/// Objects per page of a list of the whole cluster.
const PAGE: u32 = 64;
/// How often absent agents are looked at.
const TICK: Duration = Duration::from_secs(30);

/// See the module. Clones are not needed: it is shared by `Arc`.
#[derive(Debug)]
pub struct World {
    state: Mutex<State>,
    points: Mutex<Points>,
    backups: Store<Backup>,
    pub cluster_policies: Store<ClusterBackupPolicy>,
    pub policies: Store<BackupPolicy>,
    /// Pods whose annotations are to be looked at.
    pub pod_queue: Queue<Key>,
    /// Policies whose status, schedule and retention are.
    pub policy_queue: Queue<PolicyId>,
    /// Namespaces whose coverage is.
    pub coverage_queue: Queue<String>,
    synced: watch::Sender<bool>,
}

impl World {
    /// Starts the watches.
    pub fn start(context: &Arc<Context>, kit: &Kit) -> Arc<Self> {
        let world = Arc::new(Self {
            state: Mutex::default(),
            points: Mutex::default(),
            backups: context.stores.backups.clone(),
            cluster_policies: kit.watch_guarded(WatchSpec::new("clusterbackuppolicies")),
            policies: kit.watch_guarded(WatchSpec::new("backuppolicies")),
            pod_queue: Queue::new("annotations"),
            policy_queue: Queue::new("policies"),
            coverage_queue: Queue::new("coverage"),
            synced: watch::Sender::new(false),
        });
        world.watch_cluster(kit);
        world.watch_policies();
        world.watch_velero(context);
        world.watch_time(context, kit);
        world
    }

    fn watch_cluster(self: &Arc<Self>, kit: &Kit) {
        self.hook::<LeanNamespace>(
            kit,
            "namespaces",
            Kind::Namespaces,
            |state, name, object| match object {
                Some(object) => state.apply_namespace(object.facts()),
                None => state.remove_namespace(&name.name),
            },
        );
        self.hook::<LeanVolume>(
            kit,
            "persistentvolumes",
            Kind::Volumes,
            |state, name, object| match object {
                Some(object) => state.apply_volume(name.name.as_str().into(), object.facts()),
                None => state.remove_volume(&name.name),
            },
        );
        self.hook::<LeanClaim>(
            kit,
            "persistentvolumeclaims",
            Kind::Claims,
            |state, name, object| match object.and_then(|object| object.facts()) {
                Some(facts) => state.apply_claim(&name, facts),
                None => state.remove_claim(&name),
            },
        );
        self.hook::<LeanPod>(kit, "pods", Kind::Pods, |state, name, object| {
            state.apply_pod(&name, object.and_then(|object| object.facts()));
        });
    }

    fn hook<K: jackline_runtime::watch::Watched>(
        self: &Arc<Self>,
        kit: &Kit,
        name: &'static str,
        kind: Kind,
        take: impl Fn(&mut State, Key, Option<K>) + Send + 'static,
    ) {
        let world = self.clone();
        // Who wrote an annotation decides whether it may be changed. Managed fields are large: small pages keep the first list small.
        let spec = WatchSpec::new(name).managed_fields().page_size(PAGE);
        kit.watch_raw::<K>(spec, move |event| {
            let mut listing = false;
            let dirty = {
                let mut state = world.state.lock();
                match event {
                    WatchEvent::Init => state.begin(kind),
                    WatchEvent::InitApply(object) => {
                        listing = true;
                        take(&mut state, Key::of(&object), Some(object));
                    }
                    WatchEvent::InitDone => state.sweep(kind),
                    WatchEvent::Apply(object) => take(&mut state, Key::of(&object), Some(object)),
                    WatchEvent::Delete(object) => take(&mut state, Key::of(&object), None),
                }
                if listing {
                    Dirty::default()
                } else {
                    state.settle()
                }
            };
            world.tell(dirty);
        });
    }

    fn watch_policies(self: &Arc<Self>) {
        let world = self.clone();
        self.cluster_policies.on_change(move |change| {
            let id = PolicyId::cluster(&change.key.name);
            world.set_policy(id, in_force(change.after.as_deref()));
        });
        let world = self.clone();
        self.policies.on_change(move |change| {
            let id = PolicyId::namespaced(change.key.ns(), &change.key.name);
            world.set_policy(id, in_force(change.after.as_deref()));
        });
    }

    fn set_policy(&self, id: PolicyId, policy: Option<Policy>) {
        self.change(|state| state.set_policy(&id, policy.map(Arc::new)));
        self.policy_queue.add(id);
    }

    fn watch_velero(self: &Arc<Self>, context: &Arc<Context>) {
        let stores = &context.stores;
        let (world, agents) = (self.clone(), stores.agents.clone());
        stores.agents.on_change(move |_| {
            let running = agents.filter(crate::agents::AgentPod::is_running);
            let nodes: BTreeSet<String> = running
                .iter()
                .filter_map(|agent| agent.spec.node_name.clone())
                .collect();
            world.change(|state| state.set_agents(nodes, Timestamp::now()));
        });
        let (world, of) = (self.clone(), Arc::downgrade(context));
        stores.locations.on_change(move |_| {
            let Some(context) = of.upgrade() else { return };
            world.change(|state| state.set_default_location(&default_location(&context)));
            world.every_policy();
        });
        let world = self.clone();
        stores.pod_volume_backups.on_change(move |change| {
            world.points.lock().change(change);
            let pod = change
                .either()
                .and_then(|object| object.spec.pod.namespace.clone());
            if let Some(namespace) = pod {
                world.change(|state| state.touch_coverage(&namespace));
            }
        });
        let world = self.clone();
        stores.repositories.on_change(move |change| {
            // How often it is pruned is the policies' say.
            if change.before.is_none() {
                world.every_policy();
            }
        });
        let world = self.clone();
        stores.backups.on_change(move |change| {
            let phase = |backup: Option<&Arc<Backup>>| backup.map(|backup| backup.phase());
            if phase(change.before.as_ref()) == phase(change.after.as_ref()) {
                return;
            }
            let Some(backup) = change.either() else {
                return;
            };
            if let Some(id) = crate::policies::policy_of(backup) {
                world.policy_queue.add(id);
            }
            let namespaces = &backup.spec.included_namespaces;
            world.change(|state| {
                match namespaces.iter().any(|name| name.contains('*')) || namespaces.is_empty() {
                    true => state.touch_all_coverage(),
                    false => namespaces
                        .iter()
                        .for_each(|name| state.touch_coverage(name)),
                }
            });
        });
    }

    fn watch_time(self: &Arc<Self>, context: &Arc<Context>, kit: &Kit) {
        let (world, context) = (self.clone(), context.clone());
        let shutdown = kit.shutdown().clone();
        kit.supervisor.spawn("world", async move {
            let run = async {
                world.cluster_policies.ready().await;
                world.policies.ready().await;
                context.stores.ready().await;
                world.change(|state| {
                    state.set_default_location(&default_location(&context));
                    state.surroundings_known();
                });
                loop {
                    tokio::time::sleep(TICK).await;
                    world.change(|state| state.tick(Timestamp::now()));
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = run => {}
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let dirty = {
            let mut state = self.state.lock();
            change(&mut state);
            state.settle()
        };
        self.tell(dirty);
    }

    fn tell(&self, dirty: Dirty) {
        if !*self.synced.borrow() && self.state.lock().synced() {
            self.synced.send_replace(true);
        }
        for pod in dirty.pods {
            self.pod_queue.add(pod);
        }
        let mut policies = BTreeSet::new();
        for namespace in dirty.namespaces {
            policies.extend(
                self.state
                    .lock()
                    .policies_of(&namespace)
                    .iter()
                    .map(|policy| policy.id.clone()),
            );
            self.coverage_queue.add_after(namespace.to_string(), SETTLE);
        }
        for policy in policies {
            self.policy_queue.add_after(policy, SETTLE);
        }
    }

    /// Every policy is looked at again.
    pub fn every_policy(&self) {
        let ids = self
            .state
            .lock()
            .policies
            .keys()
            .cloned()
            .collect::<Vec<_>>();
        ids.into_iter().for_each(|id| self.policy_queue.add(id));
    }

    /// Waits until every kind has been listed once.
    pub async fn ready(&self) {
        let mut synced = self.synced.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Reads the index.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock())
    }

    /// Says what was written on a pod.
    pub fn wrote(&self, pod: &Key, uid: &str, held: &jackline_policy::annotate::Desired) {
        self.state.lock().wrote(pod, uid, held);
    }

    /// The newest point of a volume among `usable` backups.
    pub fn newest_point(
        &self,
        lineage: &str,
        location: Option<&str>,
        usable: &HashSet<String>,
    ) -> Option<Point> {
        self.points
            .lock()
            .newest(lineage, location, |backup| usable.contains(backup))
    }

    /// Backups that can be restored from, as label values.
    pub fn usable_backups(&self) -> HashSet<String> {
        let usable = |backup: &Backup| {
            matches!(
                backup.phase(),
                BackupPhase::Completed | BackupPhase::PartiallyFailed
            )
        };
        self.backups
            .filter(usable)
            .iter()
            .map(|backup| jackline_crds::names::label_value(&backup.name_any()))
            .collect()
    }

    /// The points of a backup.
    pub fn points_of(&self, backup: &str) -> Vec<Point> {
        self.points
            .lock()
            .of_backup(&jackline_crds::names::label_value(backup))
            .cloned()
            .collect()
    }
}

impl Governed for Arc<World> {
    fn volumes(&self, policy: &str) -> BoxFuture<'_, Option<Vec<GovernedVolume>>> {
        let id = match policy.split_once('/') {
            Some((namespace, name)) => PolicyId::namespaced(namespace, name),
            None => PolicyId::cluster(policy),
        };
        async move {
            self.ready().await;
            self.read(|state| state.governed(&id))
        }
        .boxed()
    }
}

/// A policy that is valid and stays.
fn in_force<K: PolicyObject>(object: Option<&K>) -> Option<Policy> {
    let object = object.filter(|object| object.meta().deletion_timestamp.is_none())?;
    object.policy().ok()
}

/// The location of policies and backups that name none: the one marked as default (the newest of several), else the flag's.
pub fn default_location(context: &Context) -> String {
    let marked = context
        .stores
        .locations
        .filter(|location| location.spec.default);
    let newest = marked.iter().max_by_key(|location| {
        let created = location
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        (created, location.name_any())
    });
    newest.map_or_else(
        || context.args.default_backup_storage_location.clone(),
        |location| location.name_any(),
    )
}
