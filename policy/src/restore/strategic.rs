//! Strategic merge patches of built-in kinds, as `kubectl patch` and the API server apply them: lists of named things are merged by
//! their merge key instead of being replaced.

use serde_json::{Map, Value};

/// How a patch treats a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// Elements are merged by this key.
    Key(&'static str),
    /// Plain values are united.
    Union,
    /// The list is replaced.
    Replace,
}

const CONTAINERS: &[&str] = &["containers", "initContainers", "ephemeralContainers"];
/// Fields of a pod's spec, of a node's and of what carries a pod template: `patchMergeKey` in the API's types.
const OF_SPEC: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("imagePullSecrets", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("schedulingGates", "name"),
    ("resourceClaims", "name"),
];
const OF_CONTAINER: &[(&str, &str)] = &[
    ("env", "name"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
];
const OF_METADATA: &[(&str, &str)] = &[("ownerReferences", "uid")];
const OF_STATUS: &[(&str, &str)] = &[("conditions", "type"), ("addresses", "type")];
/// Lists at the top of a service account and of a webhook configuration.
const OF_ROOT: &[(&str, &str)] = &[
    ("secrets", "name"),
    ("imagePullSecrets", "name"),
    ("webhooks", "name"),
];

/// How the list `field` of the object in the field `parent` is merged.
fn strategy(kind: &str, parent: &str, field: &str) -> Strategy {
    if parent == "metadata" && field == "finalizers" {
        return Strategy::Union;
    }
    if kind == "Service" && parent == "spec" && field == "ports" {
        return Strategy::Key("port");
    }
    let table = match parent {
        "" => OF_ROOT,
        "metadata" => OF_METADATA,
        "spec" => OF_SPEC,
        "status" => OF_STATUS,
        container if CONTAINERS.contains(&container) => OF_CONTAINER,
        "webhooks" => &[("matchConditions", "name")],
        _ => &[],
    };
    let known = table.iter().find(|(name, _)| *name == field);
    known.map_or(Strategy::Replace, |(_, key)| Strategy::Key(key))
}

/// Whether the API group has types with merge keys; custom resources have none.
pub fn is_built_in(api_version: &str) -> bool {
    const GROUPS: &[&str] = &[
        "apps",
        "batch",
        "autoscaling",
        "policy",
        "extensions",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    ];
    api_version
        .split_once('/')
        .is_none_or(|(group, _)| GROUPS.contains(&group))
}

/// Applies `patch` to an object. What the patch says about an object that is not there is taken without its directives.
///
/// # Errors
/// What the patch asks for and cannot be; the object may then be changed in part.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), String> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let (Some(object), Some(patch)) = (object.as_object_mut(), patch.as_object()) else {
        return Err(format!("the patch is {patch}, not an object"));
    };
    merge_object(&kind, "", object, patch)
}

fn merge_object(
    kind: &str,
    parent: &str,
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match patch.get("$patch").map(|directive| directive.as_str()) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => object.clear(),
        Some(Some("delete")) => {
            object.clear();
            return Ok(());
        }
        Some(_) => {
            let found = &patch["$patch"];
            return Err(format!("$patch is {found}, not merge, replace or delete"));
        }
    }
    if let Some(kept) = patch.get("$retainKeys") {
        let kept = kept.as_array().ok_or("$retainKeys is not a list")?;
        object.retain(|key, _| kept.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value
                .as_array()
                .ok_or_else(|| format!("{key} is not a list"))?;
            if let Some(list) = object.get_mut(field).and_then(Value::as_array_mut) {
                list.retain(|entry| !gone.contains(entry));
            }
        } else if key == "$patch" || key == "$retainKeys" {
        } else if key.starts_with('$') {
            return Err(format!("{key} is not supported"));
        } else if value.is_null() {
            object.remove(key);
        } else {
            merge_field(
                kind,
                parent,
                object.entry(key.clone()).or_insert(Value::Null),
                (key, value),
            )?;
        }
    }
    Ok(())
}

fn merge_field(
    kind: &str,
    parent: &str,
    target: &mut Value,
    (field, value): (&str, &Value),
) -> Result<(), String> {
    match value {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let Some(map) = target.as_object_mut() else {
                return Ok(());
            };
            merge_object(kind, field, map, patch)
        }
        Value::Array(patch) => {
            let strategy = strategy(kind, parent, field);
            if !target.is_array() {
                *target = Value::Array(Vec::new());
            }
            let Some(list) = target.as_array_mut() else {
                return Ok(());
            };
            match strategy {
                Strategy::Replace => list.clone_from(patch),
                Strategy::Union => {
                    let new: Vec<_> = patch.iter().filter(|new| !list.contains(new)).collect();
                    let new: Vec<_> = new.into_iter().cloned().collect();
                    list.extend(new);
                }
                Strategy::Key(key) => merge_list(kind, field, key, list, patch)?,
            }
            Ok(())
        }
        plain => {
            *target = plain.clone();
            Ok(())
        }
    }
}

/// As with the API server, what is new comes before what was there.
fn merge_list(
    kind: &str,
    field: &str,
    key: &str,
    list: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), String> {
    if patch.iter().any(|entry| entry["$patch"] == "replace") {
        list.clear();
    }
    let mut new = Vec::new();
    for entry in patch {
        let Some(change) = entry.as_object() else {
            return Err(format!("{field} holds {entry}, not an object"));
        };
        let Some(id) = change.get(key) else {
            if entry["$patch"] == "replace" {
                continue;
            }
            return Err(format!("an entry of {field} has no {key}: {entry}"));
        };
        if entry["$patch"] == "delete" {
            list.retain(|found| found.get(key) != Some(id));
            continue;
        }
        let known = list.iter_mut().find(|found| found.get(key) == Some(id));
        if let Some(known) = known.and_then(Value::as_object_mut) {
            merge_object(kind, field, known, change)?;
        } else {
            let mut made = Map::new();
            merge_object(kind, field, &mut made, change)?;
            new.push(Value::Object(made));
        }
    }
    list.splice(0..0, new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(mut object: Value, patch: Value) -> Result<Value, String> {
        merge(&mut object, &patch).map(|()| object)
    }

    #[test]
    fn named_things_are_merged_and_others_replaced() {
        let deployment = json!({"kind": "Deployment", "spec": {"replicas": 3, "template": {"spec": {
            "containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}], "args": ["one", "two"]}, {"name": "b", "image": "b:1"}],
            "tolerations": [{"key": "x"}]}}}});
        let patch = json!({"spec": {"replicas": null, "template": {"spec": {
            "containers": [
                {"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "3"}], "args": ["three"]},
                {"name": "b", "$patch": "delete"},
                {"name": "new", "image": "new:1", "command": null}],
            "tolerations": [{"key": "y"}]}}}});
        assert_eq!(
            merged(deployment, patch).unwrap(),
            json!({"kind": "Deployment", "spec": {"template": {"spec": {
                "containers": [
                    {"name": "new", "image": "new:1"},
                    {"name": "a", "image": "a:1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "3"}], "args": ["three"]}],
                "tolerations": [{"key": "y"}]}}}})
        );
    }

    #[test]
    fn ports_are_of_a_container_or_of_a_service() {
        let service =
            json!({"kind": "Service", "spec": {"ports": [{"port": 80, "targetPort": 1}]}});
        let patch = json!({"spec": {"ports": [{"port": 80, "targetPort": 2}]}});
        assert_eq!(
            merged(service, patch).unwrap()["spec"]["ports"],
            json!([{"port": 80, "targetPort": 2}])
        );
        let pod = json!({"kind": "Pod", "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}});
        let patch =
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 81}]}]}});
        assert_eq!(
            merged(pod, patch).unwrap()["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 81}, {"containerPort": 80}])
        );
    }

    #[test]
    fn directives_are_followed() {
        let pod = json!({"kind": "Pod", "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"disk": "old"}}});
        let patch = json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"], "labels": {"$patch": "replace", "z": "3"}},
            "spec": {"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "m"}}],
                "nodeSelector": {"$patch": "delete"}}});
        assert_eq!(
            merged(pod, patch).unwrap(),
            json!({"kind": "Pod", "metadata": {"finalizers": ["b", "c"], "labels": {"z": "3"}},
                "spec": {"volumes": [{"name": "v", "configMap": {"name": "m"}}], "nodeSelector": {}}})
        );
        let service_account =
            json!({"kind": "ServiceAccount", "secrets": [{"name": "a"}, {"name": "b"}]});
        let patch = json!({"secrets": [{"$patch": "replace"}, {"name": "c"}]});
        assert_eq!(
            merged(service_account, patch).unwrap()["secrets"],
            json!([{"name": "c"}])
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (patch, why) in [
            (json!([1]), "not an object"),
            (json!({"$patch": "swap"}), "not merge, replace or delete"),
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "has no name",
            ),
            (json!({"spec": {"containers": ["x"]}}), "not an object"),
            (
                json!({"spec": {"$setElementOrder/containers": []}}),
                "not supported",
            ),
            (json!({"spec": {"$retainKeys": 1}}), "not a list"),
        ] {
            let error = merged(json!({"kind": "Pod"}), patch).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_built_in_kinds_have_merge_keys() {
        for known in ["v1", "apps/v1", "networking.k8s.io/v1"] {
            assert!(is_built_in(known), "{known}");
        }
        for custom in ["snapshot.storage.k8s.io/v1", "example.com/v1"] {
            assert!(!is_built_in(custom), "{custom}");
        }
    }
}
