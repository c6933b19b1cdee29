//! The index: pods, claims, volumes and namespaces as facts, which pod carries which claim for which policies, and what has to be looked
//! at again. Pure: it is told things and asked things, it never waits and knows no client.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jackline_policy::facts::{
    ClaimFacts, ClaimView, NamespaceFacts, PersistentVolumeFacts, PodFacts, PodVolume,
};
use jackline_policy::spec::Mode;
use jackline_policy::{Policy, PolicyId, annotate, elect, govern, select};
use jackline_runtime::Key;
use jiff::Timestamp;

use super::agents::Agents;

/// Objects of one kind. A relist marks what it names with a new epoch and sweeps the rest: correct also when it breaks off and starts
/// again, and without a second copy.
#[derive(Debug)]
pub(super) struct Marked<K, V> {
    entries: BTreeMap<K, (V, u32)>,
    epoch: u32,
    pub(super) synced: bool,
}

impl<K, V> Default for Marked<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            epoch: 0,
            synced: false,
        }
    }
}

impl<K: Ord + Clone, V> Marked<K, V> {
    pub(super) fn begin(&mut self) {
        self.epoch += 1;
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.entries
            .insert(key, (value, self.epoch))
            .map(|(old, _)| old)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(old, _)| old)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    /// What the list that just ended did not name.
    fn unmarked(&mut self) -> Vec<K> {
        self.synced = true;
        let old = self
            .entries
            .iter()
            .filter(|(_, (_, epoch))| *epoch != self.epoch);
        old.map(|(key, _)| key.clone()).collect()
    }
}

impl<V> Marked<Key, V> {
    /// The objects of a namespace: keys are ordered by namespace first.
    pub(super) fn of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a V)> {
        let from = self.entries.range(Key::namespaced(namespace, "")..);
        from.take_while(move |(key, _)| key.ns() == namespace)
            .map(|(key, (value, _))| (key, value))
    }
}

/// A policy that governs a volume, and the location it writes to.
#[derive(Debug, Clone)]
pub struct Governor {
    pub location: Arc<str>,
    pub policy: Arc<Policy>,
}

impl PartialEq for Governor {
    fn eq(&self, other: &Self) -> bool {
        self.location == other.location && self.policy.id == other.policy.id
    }
}

/// What is decided for a claim.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClaimPlan {
    pub governors: Vec<Governor>,
    /// Pod and volume that carry it.
    pub carrier: Option<(Box<str>, Box<str>)>,
}

/// What changed since the last look.
#[derive(Debug, Default)]
pub struct Dirty {
    pub pods: Vec<Key>,
    pub namespaces: Vec<Arc<str>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    pub(super) namespaces: Marked<Arc<str>, NamespaceFacts>,
    pub(super) pods: Marked<Key, PodFacts>,
    pub(super) claims: Marked<Key, ClaimFacts>,
    pub(super) volumes: Marked<Box<str>, PersistentVolumeFacts>,
    pods_of_claim: HashMap<Key, BTreeSet<Box<str>>>,
    pub(super) plans: HashMap<Key, ClaimPlan>,
    pub(super) policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// Policies that select a namespace; emptied when policies change.
    by_namespace: HashMap<Arc<str>, Arc<[Arc<Policy>]>>,
    agents: Agents,
    default_location: Arc<str>,
    /// Policies, agents and locations are known.
    pub(super) surroundings_synced: bool,
    dirty_claims: HashSet<Key>,
    dirty_pods: HashSet<Key>,
    dirty_namespaces: HashSet<Arc<str>>,
}

fn key(namespace: &str, name: &str) -> Key {
    Key::namespaced(namespace, name)
}

impl State {
    /// Whether every kind has been listed. Before that nothing is decided: absence would mean nothing.
    pub fn synced(&self) -> bool {
        self.surroundings_synced
            && self.pods.synced
            && self.claims.synced
            && self.volumes.synced
            && self.namespaces.synced
    }

    // What happens.

    pub fn apply_pod(&mut self, name: &Key, facts: Option<PodFacts>) {
        let Some(facts) = facts else {
            return self.remove_pod(name);
        };
        if self.pods.get(name) == Some(&facts) {
            // Marks it as seen.
            self.pods.insert(name.clone(), facts);
            return;
        }
        let claims = claims_of(&facts);
        for claim in &claims {
            self.pods_of_claim
                .entry(claim.clone())
                .or_default()
                .insert(facts.name.clone());
        }
        self.dirty_namespaces.insert(facts.namespace.clone());
        let old = self.pods.insert(name.clone(), facts);
        for claim in old
            .iter()
            .flat_map(claims_of)
            .filter(|claim| !claims.contains(claim))
        {
            self.forget_use(&claim, &name.name);
        }
        self.dirty_claims.extend(claims);
        self.dirty_pods.insert(name.clone());
    }

    pub fn remove_pod(&mut self, name: &Key) {
        let Some(old) = self.pods.remove(name) else {
            return;
        };
        for claim in claims_of(&old) {
            self.forget_use(&claim, &name.name);
        }
        self.dirty_namespaces.insert(old.namespace.clone());
        self.dirty_pods.insert(name.clone());
    }

    fn forget_use(&mut self, claim: &Key, pod: &str) {
        if let Some(pods) = self.pods_of_claim.get_mut(claim) {
            pods.remove(pod);
            if pods.is_empty() {
                self.pods_of_claim.remove(claim);
            }
        }
        self.dirty_claims.insert(claim.clone());
    }

    pub fn apply_claim(&mut self, name: &Key, facts: ClaimFacts) {
        let same = self.claims.get(name) == Some(&facts);
        let namespace = facts.namespace.clone();
        self.claims.insert(name.clone(), facts);
        if !same {
            self.touch_claim(name, namespace);
        }
    }

    pub fn remove_claim(&mut self, name: &Key) {
        if let Some(old) = self.claims.remove(name) {
            self.touch_claim(name, old.namespace);
        }
    }

    fn touch_claim(&mut self, name: &Key, namespace: Arc<str>) {
        self.dirty_claims.insert(name.clone());
        // Whether a volume is eligible hangs on its claim.
        self.dirty_users(name);
        self.dirty_namespaces.insert(namespace);
    }

    fn dirty_users(&mut self, claim: &Key) {
        for pod in self.pods_of_claim.get(claim).into_iter().flatten() {
            self.dirty_pods.insert(key(claim.ns(), pod));
        }
    }

    pub fn apply_volume(&mut self, name: Box<str>, facts: PersistentVolumeFacts) {
        let same = self.volumes.get(&name) == Some(&facts);
        self.volumes.insert(name.clone(), facts);
        // During the first list the claims are looked at anyhow.
        if !same && self.synced() {
            self.touch_claims_on(&name);
        }
    }

    pub fn remove_volume(&mut self, name: &str) {
        if self.volumes.remove(&name.into()).is_some() {
            self.touch_claims_on(name);
        }
    }

    fn touch_claims_on(&mut self, volume: &str) {
        let on: Vec<(Key, Arc<str>)> = self
            .claims
            .iter()
            .filter(|(_, claim)| &*claim.volume == volume)
            .map(|(name, claim)| (name.clone(), claim.namespace.clone()))
            .collect();
        for (name, namespace) in on {
            self.touch_claim(&name, namespace);
        }
    }

    pub fn apply_namespace(&mut self, facts: NamespaceFacts) {
        let name = facts.name.clone();
        if self.namespaces.get(&name) == Some(&facts) {
            self.namespaces.insert(name, facts);
            return;
        }
        self.namespaces.insert(name.clone(), facts);
        self.by_namespace.remove(&name);
        self.touch_namespace(&name);
    }

    pub fn remove_namespace(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        self.namespaces.remove(&name);
        self.by_namespace.remove(&name);
        self.touch_namespace(&name);
    }

    fn touch_namespace(&mut self, name: &Arc<str>) {
        self.dirty_claims
            .extend(self.claims.of_namespace(name).map(|(key, _)| key.clone()));
        self.dirty_pods
            .extend(self.pods.of_namespace(name).map(|(key, _)| key.clone()));
        self.dirty_namespaces.insert(name.clone());
    }

    /// A policy came, changed (`Some`), went or became invalid (`None`).
    pub fn set_policy(&mut self, id: &PolicyId, policy: Option<Arc<Policy>>) {
        let same = match (&policy, self.policies.get(id)) {
            (Some(new), Some(old)) => **new == **old,
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        match policy {
            Some(policy) => self.policies.insert(id.clone(), policy),
            None => self.policies.remove(id),
        };
        self.touch_everything();
    }

    /// The name of the default location.
    pub fn set_default_location(&mut self, name: &str) {
        if &*self.default_location != name {
            self.default_location = name.into();
            self.touch_everything();
        }
    }

    /// The nodes that have a running agent now.
    pub fn set_agents(&mut self, nodes: BTreeSet<String>, now: Timestamp) {
        let changed = self.agents.set(nodes, now);
        self.touch_nodes(&changed);
    }

    /// Time passes: agents that stayed away long enough are gone.
    pub fn tick(&mut self, now: Timestamp) {
        let changed = self.agents.expire(now);
        self.touch_nodes(&changed);
    }

    fn touch_nodes(&mut self, nodes: &[String]) {
        if nodes.is_empty() {
            return;
        }
        let on = self
            .pods
            .iter()
            .filter(|(_, pod)| nodes.iter().any(|node| **node == *pod.node));
        self.dirty_claims
            .extend(on.flat_map(|(_, pod)| claims_of(pod)));
    }

    pub fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::Pods => self.pods.begin(),
            Kind::Claims => self.claims.begin(),
            Kind::Volumes => self.volumes.begin(),
            Kind::Namespaces => self.namespaces.begin(),
        }
    }

    /// The list of a kind is complete.
    pub fn sweep(&mut self, kind: Kind) {
        let was_synced = self.synced();
        match kind {
            Kind::Pods => self
                .pods
                .unmarked()
                .iter()
                .for_each(|gone| self.remove_pod(gone)),
            Kind::Claims => self
                .claims
                .unmarked()
                .iter()
                .for_each(|gone| self.remove_claim(gone)),
            Kind::Volumes => self
                .volumes
                .unmarked()
                .iter()
                .for_each(|gone| self.remove_volume(gone)),
            Kind::Namespaces => {
                self.namespaces
                    .unmarked()
                    .iter()
                    .for_each(|gone| self.remove_namespace(gone));
            }
        }
        if !was_synced && self.synced() {
            self.touch_everything();
        }
    }

    /// Policies, agents and locations are known.
    pub fn surroundings_known(&mut self) {
        self.surroundings_synced = true;
        self.touch_everything();
    }

    /// Coverage of a namespace may have changed for a reason that lies outside of the index (a volume was backed up).
    pub fn touch_coverage(&mut self, namespace: &str) {
        self.dirty_namespaces.insert(namespace.into());
    }

    pub fn touch_all_coverage(&mut self) {
        self.dirty_namespaces
            .extend(self.namespaces.entries.keys().cloned());
    }

    fn touch_everything(&mut self) {
        self.by_namespace.clear();
        self.dirty_claims
            .extend(self.claims.entries.keys().cloned());
        self.dirty_pods.extend(self.pods.entries.keys().cloned());
        self.touch_all_coverage();
    }

    /// We wrote these annotations: known at once, so that nothing is written twice while the watch lags.
    pub fn wrote(&mut self, name: &Key, uid: &str, held: &annotate::Desired) {
        let Some((pod, _)) = self.pods.entries.get_mut(name) else {
            return;
        };
        if *pod.uid != *uid {
            return;
        }
        for (annotation, value) in [
            (&mut pod.backup_volumes, &held.backup_volumes),
            (
                &mut pod.backup_volumes_excludes,
                &held.backup_volumes_excludes,
            ),
        ] {
            match value {
                Some(value) => {
                    annotation.value = Some(value.as_str().into());
                    annotation.ours = true;
                }
                None if annotation.ours => {
                    annotation.ours = false;
                    if !annotation.others {
                        annotation.value = None;
                    }
                }
                None => {}
            }
        }
    }

    // What follows from it.

    /// Decides for every claim that something happened to, and gives what has to be looked at. Nothing before everything is known.
    pub fn settle(&mut self) -> Dirty {
        if !self.synced() {
            return Dirty::default();
        }
        for claim in std::mem::take(&mut self.dirty_claims) {
            let plan = self.plan(&claim);
            let nothing = plan == ClaimPlan::default();
            let same = self.plans.get(&claim).map_or(nothing, |old| *old == plan);
            // Also when it is the same: it holds the policies as they are now.
            if nothing {
                self.plans.remove(&claim);
            } else {
                self.plans.insert(claim.clone(), plan);
            }
            if same {
                continue;
            }
            self.dirty_namespaces.insert(claim.ns().into());
            self.dirty_users(&claim);
        }
        Dirty {
            pods: std::mem::take(&mut self.dirty_pods).into_iter().collect(),
            namespaces: std::mem::take(&mut self.dirty_namespaces)
                .into_iter()
                .collect(),
        }
    }

    pub(super) fn location_of(&self, policy: &Policy) -> Arc<str> {
        policy
            .spec
            .storage_location
            .as_deref()
            .map_or_else(|| self.default_location.clone(), Into::into)
    }

    /// All valid policies that select a namespace, in Preview too.
    pub(super) fn policies_of(&self, namespace: &str) -> Arc<[Arc<Policy>]> {
        if let Some(known) = self.by_namespace.get(namespace) {
            return known.clone();
        }
        let Some(facts) = self.namespaces.get(&namespace.into()) else {
            return Arc::default();
        };
        self.policies
            .values()
            .filter(|policy| select::selects_namespace(policy, facts))
            .cloned()
            .collect()
    }

    fn cached_policies_of(&mut self, namespace: &str) -> Arc<[Arc<Policy>]> {
        let found = self.policies_of(namespace);
        self.by_namespace.insert(namespace.into(), found.clone());
        found
    }

    pub(super) fn claim_view(&self, claim: &Key) -> Option<ClaimView<'_>> {
        let claim = self.claims.get(claim)?;
        Some(ClaimView {
            claim,
            volume: self.volumes.get(&claim.volume),
        })
    }

    pub(super) fn view_of(&self, pod: &PodFacts, volume: &PodVolume) -> Option<ClaimView<'_>> {
        self.claim_view(&key(&pod.namespace, volume.claim.as_deref()?))
    }

    pub(super) fn pods_using(&self, claim: &Key) -> impl Iterator<Item = &PodFacts> {
        let pods = self.pods_of_claim.get(claim).into_iter().flatten();
        pods.filter_map(|pod| self.pods.get(&key(claim.ns(), pod)))
    }

    /// Enforcing policies that want this volume of this pod.
    pub(super) fn wanting<'p>(
        &self,
        policies: &'p [Arc<Policy>],
        pod: &PodFacts,
        volume: &PodVolume,
    ) -> Vec<&'p Arc<Policy>> {
        let view = self.view_of(pod, volume);
        let exempt = self
            .namespaces
            .get(&pod.namespace)
            .is_none_or(|namespace| select::exemption(namespace, pod, volume, view).is_some());
        if exempt || select::eligible(volume, view).is_err() {
            return Vec::new();
        }
        let wants = |policy: &&Arc<Policy>| {
            policy.spec.mode == Mode::Enforce
                && select::selects_pod(policy, pod)
                && select::choose(policy, volume, view).is_backup()
        };
        policies.iter().filter(wants).collect()
    }

    pub(super) fn governors(&self, wanting: &[&Arc<Policy>]) -> Vec<Governor> {
        let location = |policy: &Policy| self.location_of(policy).to_string();
        let governing = govern::governing(wanting.iter().map(|policy| &***policy), location);
        governing
            .into_iter()
            .filter_map(|(location, best)| {
                let policy = wanting.iter().find(|policy| policy.id == best.id)?;
                Some(Governor {
                    location: location.into(),
                    policy: (*policy).clone(),
                })
            })
            .collect()
    }

    fn plan(&mut self, claim: &Key) -> ClaimPlan {
        if self.claims.get(claim).is_none() {
            return ClaimPlan::default();
        }
        let policies = self.cached_policies_of(claim.ns());
        if policies.is_empty() {
            return ClaimPlan::default();
        }
        let carrier = self.plans.get(claim).and_then(|plan| plan.carrier.clone());
        let mut offers = Vec::new();
        for pod in self.pods_using(claim) {
            for volume in pod
                .volumes
                .iter()
                .filter(|volume| volume.claim.as_deref() == Some(&claim.name))
            {
                let wanting = self.wanting(&policies, pod, volume);
                if !wanting.is_empty() {
                    offers.push((pod, volume, wanting));
                    // A pod that mounts a claim twice carries it once.
                    break;
                }
            }
        }
        let all: Vec<&Arc<Policy>> = offers
            .iter()
            .flat_map(|(_, _, wanting)| wanting.iter().copied())
            .collect();
        let governors = self.governors(&all);
        let governs = |policy: &Policy| {
            governors
                .iter()
                .any(|governor| governor.policy.id == policy.id)
        };
        let opt_in = governors
            .iter()
            .any(|governor| !governor.policy.spec.template.opt_out());
        offers.retain(|(_, _, wanting)| wanting.iter().any(|policy| governs(policy)));
        let candidates: Vec<elect::Candidate<'_>> = offers
            .iter()
            .map(|(pod, volume, _)| elect::Candidate {
                uid: &pod.uid,
                created: pod.created,
                able: pod.is_running(),
                // What is written on a pod outlives the process that elected it.
                incumbent: carrier.as_ref().map_or_else(
                    || pod.backup_volumes.lists(&volume.name),
                    |(carrier, _)| *carrier == pod.name,
                ),
                refused: opt_in && annotate::refuses(&pod.backup_volumes, &volume.name),
                agent: self.agents.has(&pod.node),
                job: pod.job.is_some(),
            })
            .collect();
        let carrier = elect::elect(&candidates)
            .and_then(|at| offers.get(at))
            .map(|(pod, volume, _)| (pod.name.clone(), volume.name.clone()));
        ClaimPlan { governors, carrier }
    }
}

/// What lists come for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pods,
    Claims,
    Volumes,
    Namespaces,
}

fn claims_of(pod: &PodFacts) -> Vec<Key> {
    let claims = pod
        .volumes
        .iter()
        .filter_map(|volume| volume.claim.as_deref());
    claims.map(|claim| key(&pod.namespace, claim)).collect()
}
