//! Names that are different in the cluster of the restore: storage classes, nodes, images. Each mapping is a ConfigMap beside the
//! server, found by its labels (velero-compat §7.4).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::json::{map_mut, text};

/// What the ConfigMaps say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Storage class in the backup → storage class here.
    pub classes: BTreeMap<String, String>,
    /// Node that a claim's volume was made for → node here.
    pub nodes: BTreeMap<String, String>,
    /// The nodes of this cluster.
    pub here: BTreeSet<String>,
    /// Part of an image's name → what stands there instead; the first that is found counts.
    pub images: Vec<(String, String)>,
}

/// The node that the scheduler chose for a claim's volume.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

impl Mappings {
    /// The pairs of an image mapping, `old,new` in each value; what is not a pair is left out, as Velero does.
    pub fn image_pairs<'a>(values: impl IntoIterator<Item = &'a String>) -> Vec<(String, String)> {
        let pair = |value: &String| {
            let (old, new) = value.split_once(',')?;
            let (old, new) = (old.trim(), new.trim());
            (!old.is_empty() && !new.is_empty()).then(|| (old.to_owned(), new.to_owned()))
        };
        values.into_iter().filter_map(pair).collect()
    }

    /// The node that a claim's volume is to be made for: the one that its own is mapped to, or its own, if that is here. Without one
    /// the scheduler chooses.
    pub fn node(&self, claim: &Value) -> Option<&str> {
        let node = selected_node(claim)?;
        let node = self.nodes.get(node).map_or(node, String::as_str);
        self.here.get(node).map(String::as_str)
    }

    /// The mappings to nodes that are not here.
    pub fn astray(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.nodes.iter().map(|(old, new)| (&**old, &**new));
        pairs.filter(|(_, new)| !self.here.contains(*new))
    }

    /// Changes the names in one object, and returns the storage classes that it asks for now.
    pub fn apply(&self, resource: &str, object: &mut Value) -> Vec<String> {
        let mut asked = Vec::new();
        let mut class = |spec: Option<&mut Value>| {
            let class = spec.and_then(|spec| spec.get_mut("storageClassName"));
            let new = |class: &Value| self.classes.get(class.as_str()?).cloned();
            if let Some((class, new)) = class.and_then(|class| new(class).map(|new| (class, new))) {
                *class = Value::String(new.clone());
                asked.push(new);
            }
        };
        match resource {
            "persistentvolumes" | "persistentvolumeclaims" => class(object.get_mut("spec")),
            "statefulsets.apps" => {
                let templates = object.pointer_mut("/spec/volumeClaimTemplates");
                let templates = templates.and_then(Value::as_array_mut);
                for template in templates.into_iter().flatten() {
                    class(template.get_mut("spec"));
                }
            }
            _ => {}
        }
        let pod = match resource {
            "pods" => "/spec",
            "cronjobs.batch" => "/spec/jobTemplate/spec/template/spec",
            "deployments.apps"
            | "statefulsets.apps"
            | "daemonsets.apps"
            | "replicasets.apps"
            | "replicationcontrollers"
            | "jobs.batch" => "/spec/template/spec",
            _ => return asked,
        };
        if let (false, Some(pod)) = (self.images.is_empty(), object.pointer_mut(pod)) {
            self.images(pod);
        }
        asked
    }

    fn images(&self, pod: &mut Value) {
        for field in ["containers", "initContainers"] {
            let containers = pod.get_mut(field).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let Some(image) = text(container, "/image") else {
                    continue;
                };
                let found = self.images.iter().find(|(old, _)| image.contains(old));
                if let Some((old, new)) = found {
                    container["image"] = Value::String(image.replace(old, new));
                }
            }
        }
    }
}

/// The node that the scheduler chose for a claim's volume.
pub fn selected_node(claim: &Value) -> Option<&str> {
    claim
        .pointer("/metadata/annotations")?
        .get(SELECTED_NODE)?
        .as_str()
}

/// Has a claim's volume made for a node.
pub fn select_node(claim: &mut Value, node: &str) {
    if let Some(annotations) = map_mut(claim, &["metadata", "annotations"]) {
        annotations.insert(SELECTED_NODE.to_owned(), Value::String(node.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mappings() -> Mappings {
        let images = [
            "case: no pair",
            "5000,3000",
            " docker.io/ , mirror:1/ ",
            ",x",
        ];
        Mappings {
            classes: [("old".to_owned(), "new".to_owned())].into(),
            nodes: [("n1", "n2"), ("n4", "n9")]
                .map(|(old, new)| (old.to_owned(), new.to_owned()))
                .into(),
            here: ["n1", "n2", "n4", "n5"].map(str::to_owned).into(),
            images: Mappings::image_pairs(&images.map(str::to_owned)),
        }
    }

    #[test]
    fn classes_of_claims_volumes_and_templates_follow() {
        for (resource, before, after) in [
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "old"}}),
                json!({"spec": {"storageClassName": "new"}}),
            ),
            (
                "persistentvolumes",
                json!({"spec": {"storageClassName": "old"}}),
                json!({"spec": {"storageClassName": "new"}}),
            ),
            (
                "statefulsets.apps",
                json!({"spec": {"volumeClaimTemplates": [{"spec": {"storageClassName": "old"}}, {"spec": {}}]}}),
                json!({"spec": {"volumeClaimTemplates": [{"spec": {"storageClassName": "new"}}, {"spec": {}}]}}),
            ),
        ] {
            let mut object = before;
            assert_eq!(mappings().apply(resource, &mut object), ["new"]);
            assert_eq!(object, after);
        }
        for (resource, same) in [
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": ""}}),
            ),
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "other"}}),
            ),
            ("persistentvolumeclaims", json!({"spec": 3})),
            (
                "widgets.example.com",
                json!({"spec": {"storageClassName": "old"}}),
            ),
        ] {
            let mut object = same.clone();
            assert!(mappings().apply(resource, &mut object).is_empty());
            assert_eq!(object, same);
        }
    }

    #[test]
    fn images_are_renamed_wherever_pods_are_made() {
        let pod = |image: &str| json!({"containers": [{"name": "c", "image": image}, {"name": "d"}], "initContainers": [{"name": "i", "image": "1.1.1.1:5000/a:5000"}]});
        let renamed = json!({"containers": [{"name": "c", "image": "mirror:1/library/nginx:1"}, {"name": "d"}], "initContainers": [{"name": "i", "image": "1.1.1.1:3000/a:3000"}]});
        for (resource, before, after) in [
            (
                "pods",
                json!({"spec": pod("docker.io/library/nginx:1")}),
                json!({"spec": renamed}),
            ),
            (
                "jobs.batch",
                json!({"spec": {"template": {"spec": pod("docker.io/library/nginx:1")}}}),
                json!({"spec": {"template": {"spec": renamed}}}),
            ),
            (
                "cronjobs.batch",
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": pod("docker.io/library/nginx:1")}}}}}),
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": renamed}}}}}),
            ),
        ] {
            let mut object = before;
            assert!(mappings().apply(resource, &mut object).is_empty());
            assert_eq!(object, after, "{resource}");
        }
    }

    #[test]
    fn a_claim_goes_to_the_node_that_its_own_is_mapped_to_or_keeps_one_that_is_here() {
        let mappings = mappings();
        for (node, want) in [
            (Some("n1"), Some("n2")),
            (Some("n4"), None),
            (Some("n5"), Some("n5")),
            (Some("n6"), None),
            (None, None),
        ] {
            let mut claim = json!({"metadata": {"name": "c"}});
            if let Some(node) = node {
                select_node(&mut claim, node);
            }
            assert_eq!(mappings.node(&claim), want, "{node:?}");
        }
        let astray: Vec<_> = mappings.astray().collect();
        assert_eq!(astray, [("n4", "n9")]);
    }
}
