//! What later steps need to know of the collected objects, so that nothing has to be read twice.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jackline_crds::{GoDuration, names::annotation, velero::PodVolumeBackup};
use jackline_policy::{
    backup::{
        hook::{self, Hook, When},
        object::{self, Binding, ObjectRef, Skip},
        volume_policy::Volume,
        volumes::{ClaimFacts, PodVolumes},
    },
    labels::Labels,
};
use serde_json::Value;

/// A pod of the backup.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// Its volumes.
    pub volumes: PodVolumes,
    /// Its labels, for the hooks of the Backup.
    pub labels: Labels,
    /// Its first container.
    pub container: String,
    /// Its own hooks.
    pub pre: Option<Hook>,
    /// Its own hooks.
    pub post: Option<Hook>,
    /// What is wrong with its own hooks.
    pub hook_warnings: Vec<String>,
}

impl PodFacts {
    /// Reads a pod.
    pub fn of(pod: &Value) -> Self {
        let (pre, first) = hook::of_annotations(pod, When::Pre, &timeout);
        let (post, second) = hook::of_annotations(pod, When::Post, &timeout);
        Self {
            volumes: PodVolumes::of(pod),
            labels: labels_of(pod),
            container: hook::first_container(pod),
            pre,
            post,
            hook_warnings: first.into_iter().chain(second).collect(),
        }
    }

    /// What is left to know of the pod of a volume that has gone.
    pub fn gone(volume: &PodVolumeBackup) -> Self {
        let pod = &volume.spec.pod;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self {
            volumes: PodVolumes {
                namespace: text(&pod.namespace),
                name: text(&pod.name),
                uid: text(&pod.uid),
                node: Some(volume.spec.node.clone()),
                ..PodVolumes::default()
            },
            ..Self::default()
        }
    }
}

fn timeout(text: &str) -> Option<Duration> {
    text.parse::<GoDuration>().ok().map(GoDuration::to_std)
}

/// The labels of an object.
pub(super) fn labels_of(object: &Value) -> Labels {
    let labels = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect()
}

/// A persistent volume.
#[derive(Debug, Clone, Default)]
pub struct VolumeFacts {
    /// `persistentVolumeReclaimPolicy`.
    pub reclaim_policy: String,
    /// Its labels; null when it has none.
    pub labels: Value,
    /// What volume policies look at.
    pub volume: Volume,
}

/// What was learnt from objects in passing.
#[derive(Debug, Default)]
pub struct Facts {
    /// Pods by UID: a pod that several selectors match is collected more than once.
    pub pods: HashMap<String, Arc<PodFacts>>,
    /// Claims by namespace and name.
    pub claims: HashMap<(String, String), ClaimFacts>,
    /// Volumes by name.
    pub volumes: HashMap<String, VolumeFacts>,
    /// What objects need besides themselves.
    pub(super) needs: Vec<(ObjectRef, Vec<ObjectRef>)>,
    /// Service accounts: namespace and name.
    pub(super) accounts: Vec<(String, String)>,
    /// ClusterRoleBindings.
    pub(super) bindings: Vec<Binding>,
}

impl Facts {
    /// Takes note of an object. One that is left out needs nothing.
    pub(super) fn learn(&mut self, resource: &str, object: &Value, left_out: Option<Skip>) {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        match resource {
            "pods" => {
                let facts = Arc::new(PodFacts::of(object));
                self.pods.insert(text("/metadata/uid"), facts);
            }
            "persistentvolumeclaims" => {
                let pointer = format!(
                    "/metadata/annotations/{}",
                    annotation::ANCESTOR_CLAIM_UID.replace('/', "~1")
                );
                let facts = ClaimFacts {
                    uid: text("/metadata/uid"),
                    volume: object::volume_of_claim(object).map(str::to_owned),
                    labels: labels_of(object),
                    bound: None,
                    ancestor: Some(text(&pointer)).filter(|uid| !uid.is_empty()),
                    left_out,
                };
                self.claims.insert((namespace.clone(), name.clone()), facts);
            }
            "persistentvolumes" => {
                let facts = VolumeFacts {
                    reclaim_policy: text("/spec/persistentVolumeReclaimPolicy"),
                    labels: object
                        .pointer("/metadata/labels")
                        .cloned()
                        .unwrap_or_default(),
                    volume: Volume::of(object),
                };
                self.volumes.insert(name.clone(), facts);
            }
            "serviceaccounts" => self.accounts.push((namespace.clone(), name.clone())),
            "clusterrolebindings.rbac.authorization.k8s.io" => {
                self.bindings.extend(Binding::of(object));
            }
            _ => {}
        }
        if left_out.is_some() {
            return;
        }
        let needs = object::needs(resource, object);
        if !needs.is_empty() {
            let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
            self.needs.push((
                ObjectRef {
                    resource: resource.to_owned(),
                    namespace,
                    name,
                },
                needs,
            ));
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.pods.extend(other.pods);
        self.claims.extend(other.claims);
        self.volumes.extend(other.volumes);
        self.needs.extend(other.needs);
        self.accounts.extend(other.accounts);
        self.bindings.extend(other.bindings);
    }

    /// What is known of a claim.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<ClaimFacts> {
        let mut facts = self
            .claims
            .get(&(namespace.to_owned(), name.to_owned()))?
            .clone();
        let volume = facts
            .volume
            .as_ref()
            .and_then(|volume| self.volumes.get(volume));
        facts.bound = volume.map(|volume| volume.volume.clone());
        Some(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_is_collected_twice_is_one() {
        let pod = json!({"metadata": {"namespace": "shop", "name": "db", "uid": "u"}, "spec": {"containers": [{"name": "db"}]}});
        let (mut facts, mut other) = (Facts::default(), Facts::default());
        facts.learn("pods", &pod, None);
        other.learn("pods", &pod, None);
        facts.merge(other);
        assert_eq!(facts.pods.len(), 1);
    }
}
