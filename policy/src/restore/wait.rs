//! The init container `restore-wait` (velero-compat §6.7): it keeps a pod from starting until the data of its volumes is back.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    json::{list, map_mut},
    waiter::Settings,
};

/// Its name; older backups may hold a pod with one under either name.
pub const NAME: &str = "restore-wait";
const OLD_NAMES: &[&str] = &[NAME, "restic-wait"];
/// The volume through which it learns that there is nothing to wait for, any more or again.
pub const OVER: &str = "jackline-restore-over";
/// Where the waiter finds the volumes that it waits for.
pub const ROOT: &str = "/restores/";

/// How the container is made.
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a> {
    pub image: &'a str,
    pub command: &'a str,
    /// UID of the restore: the name of the file waited for.
    pub restore: &'a str,
    /// Volume of this pod → number of pods that wait for the same data.
    pub volumes: &'a BTreeMap<String, usize>,
    /// The pod's annotation that says why the data will not come.
    pub over: &'a str,
    /// The one that names the restore once all data is back.
    pub restored: &'a str,
    pub settings: &'a Settings,
}

/// Takes a waiter of an earlier restore off the pod.
pub fn remove(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(containers) = spec.get_mut("initContainers").and_then(Value::as_array_mut) {
        containers.retain(|entry| {
            entry["name"]
                .as_str()
                .is_none_or(|name| !OLD_NAMES.contains(&name))
        });
        if containers.is_empty() {
            spec.remove("initContainers");
        }
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|entry| entry["name"] != OVER);
        if volumes.is_empty() {
            spec.remove("volumes");
        }
    }
}

/// Puts the waiter first among the pod's init containers.
///
/// It runs as the pod's first container does, for what that one can read the waiter can read too; the volume's root may be closed to
/// everyone else. Where that one has no context of its own, the settings may have. It asks for what that one asks for, too: then the
/// pod finds a node, and its namespace's quotas and limits let it in, as they did without the waiter.
pub fn add(pod: &mut Value, waiter: Waiter<'_>) {
    remove(pod);
    waiter
        .volumes
        .keys()
        .for_each(|volume| open_for_data(pod, volume));
    let security = security_context(pod).or_else(|| waiter.settings.security.clone());
    let resources = waiter.settings.resources.clone();
    let resources = resources.unwrap_or_else(|| resources_of_first(pod));
    let mut mounts: Vec<Value> = waiter
        .volumes
        .keys()
        .map(|volume| json!({"name": volume, "mountPath": format!("{ROOT}{volume}")}))
        .collect();
    mounts.push(json!({"name": OVER, "mountPath": "/restore-over", "readOnly": true}));
    let counts: Vec<String> = waiter
        .volumes
        .iter()
        .map(|(volume, pods)| format!("{volume}={pods}"))
        .collect();
    let field = |path: &str| json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    let mut container = json!({
        "name": NAME,
        "image": waiter.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [waiter.command],
        "args": [waiter.restore],
        "env": [
            {"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "JACKLINE_WAITERS", "value": counts.join(",")},
        ],
        "volumeMounts": mounts,
        "resources": resources,
    });
    if let (Some(security), Some(container)) = (security, container.as_object_mut()) {
        container.insert("securityContext".to_owned(), Value::Object(security));
    }
    if let Some(spec) = map_mut(pod, &["spec"]) {
        let others = spec.remove("initContainers");
        let mut all = vec![container];
        all.extend(
            others
                .as_ref()
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
        );
        spec.insert("initContainers".to_owned(), Value::Array(all));
        let item = |path: &str, annotation: &str| {
            let from = field(&format!("metadata.annotations['{annotation}']"));
            json!({"path": path, "fieldRef": from["fieldRef"]})
        };
        let items = [
            item("reason", waiter.over),
            item("restored", waiter.restored),
        ];
        let volume = json!({"name": OVER, "downwardAPI": {"items": items}});
        let mut volumes = list(pod, "/spec/volumes").to_vec();
        volumes.push(volume);
        pod["spec"]["volumes"] = Value::Array(volumes);
    }
}

/// A claim that the pod has read-only could not be filled: it becomes read-only for each container instead.
fn open_for_data(pod: &mut Value, volume: &str) {
    let source = array(pod, "/spec/volumes").find(|entry| entry["name"] == volume);
    let claim = source.and_then(|entry| entry.get_mut("persistentVolumeClaim")?.as_object_mut());
    if claim.and_then(|claim| claim.remove("readOnly")) != Some(Value::Bool(true)) {
        return;
    }
    for containers in ["/spec/containers", "/spec/initContainers"] {
        for container in array(pod, containers) {
            for mount in array(container, "/volumeMounts").filter(|mount| mount["name"] == volume) {
                mount["readOnly"] = Value::Bool(true);
            }
        }
    }
}

fn array<'a>(object: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    let found = object.pointer_mut(pointer).and_then(Value::as_array_mut);
    found.into_iter().flatten()
}

/// The first container's context without privileges. `None`: as the image and the pod say.
fn security_context(pod: &Value) -> Option<Map<String, Value>> {
    let first = list(pod, "/spec/containers").first()?;
    let mut context = first["securityContext"].as_object()?.clone();
    if context.remove("privileged") == Some(Value::Bool(true)) {
        context.remove("allowPrivilegeEscalation");
    }
    Some(context).filter(|context| !context.is_empty())
}

/// The first container's resources, but for devices.
fn resources_of_first(pod: &Value) -> Value {
    let first = list(pod, "/spec/containers").first();
    let kept = ["requests", "limits"].into_iter().filter_map(|kind| {
        let mut amounts = first?["resources"][kind].as_object()?.clone();
        amounts.retain(|name, _| !name.contains('/'));
        Some((kind.to_owned(), Value::Object(amounts)))
    });
    Value::Object(kept.collect())
}

/// The restore that a pod of the cluster waits or waited for: its waiter's argument.
pub fn restore_of(pod: &Value) -> Option<&str> {
    list(pod, "/spec/initContainers")
        .iter()
        .find(|entry| entry["name"] == NAME)?["args"]
        .get(0)?
        .as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter<'a>(volumes: &'a BTreeMap<String, usize>, settings: &'a Settings) -> Waiter<'a> {
        Waiter {
            image: "img",
            command: "/wait",
            restore: "uid-1",
            volumes,
            over: "example.org/over",
            restored: "example.org/restored",
            settings,
        }
    }

    #[test]
    fn a_read_only_claim_stays_so_for_the_containers_alone() {
        let volumes = [("data".to_owned(), 1)].into();
        let mut pod = json!({"spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "data"}, {"name": "other"}]}, {"name": "d"}],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "x", "readOnly": true}},
                {"name": "other", "persistentVolumeClaim": {"claimName": "y", "readOnly": true}},
                {"name": "empty", "emptyDir": {}}]}});
        add(&mut pod, waiter(&volumes, &Settings::default()));
        assert_eq!(
            pod["spec"]["volumes"],
            json!([
                {"name": "data", "persistentVolumeClaim": {"claimName": "x"}},
                {"name": "other", "persistentVolumeClaim": {"claimName": "y", "readOnly": true}},
                {"name": "empty", "emptyDir": {}},
                {"name": "jackline-restore-over", "downwardAPI": {"items": [
                    {"path": "reason", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['example.org/over']"}},
                    {"path": "restored", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['example.org/restored']"}}]}}])
        );
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"],
            json!([{"name": "data", "readOnly": true}, {"name": "other"}])
        );
        assert_eq!(
            pod["spec"]["initContainers"][0]["volumeMounts"],
            json!([{"name": "data", "mountPath": "/restores/data"},
                {"name": "jackline-restore-over", "mountPath": "/restore-over", "readOnly": true}])
        );
    }

    #[test]
    fn the_waiter_comes_first_and_replaces_an_old_one() {
        let volumes = [("cache".to_owned(), 1), ("data".to_owned(), 2)].into();
        let mut pod = json!({"spec": {
            "containers": [{"name": "c", "securityContext": {"runAsUser": 999, "privileged": true}}],
            "initContainers": [{"name": "restic-wait", "args": ["old"]}, {"name": "mine"}]}});
        add(&mut pod, waiter(&volumes, &Settings::default()));
        add(&mut pod, waiter(&volumes, &Settings::default()));
        let containers = list(&pod, "/spec/initContainers");
        assert_eq!(containers.len(), 2);
        assert_eq!(containers[1]["name"], "mine");
        let waiter = &containers[0];
        assert_eq!(waiter["name"], "restore-wait");
        assert_eq!(waiter["args"], json!(["uid-1"]));
        assert_eq!(waiter["securityContext"], json!({"runAsUser": 999}));
        assert_eq!(
            waiter["volumeMounts"],
            json!([{"name": "cache", "mountPath": "/restores/cache"}, {"name": "data", "mountPath": "/restores/data"},
                {"name": "jackline-restore-over", "mountPath": "/restore-over", "readOnly": true}])
        );
        assert_eq!(waiter["env"][2]["value"], "cache=1,data=2");
        assert_eq!(restore_of(&pod), Some("uid-1"));
        assert_eq!(list(&pod, "/spec/volumes").len(), 1);

        remove(&mut pod);
        assert_eq!(restore_of(&pod), None);
        assert_eq!(list(&pod, "/spec/initContainers").len(), 1);
        assert_eq!(pod["spec"].get("volumes"), None);
    }

    #[test]
    fn without_a_context_the_settings_decide_and_then_the_pod() {
        let volumes = [("data".to_owned(), 1)].into();
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
        add(&mut pod, waiter(&volumes, &Settings::default()));
        assert_eq!(
            pod["spec"]["initContainers"][0].get("securityContext"),
            None
        );
        remove(&mut pod);
        assert_eq!(pod, json!({"spec": {"containers": [{"name": "c"}]}}));
        let security = json!({"runAsUser": 1002});
        let settings = Settings {
            security: security.as_object().cloned(),
            ..Settings::default()
        };
        add(&mut pod, waiter(&volumes, &settings));
        let container = &pod["spec"]["initContainers"][0];
        assert_eq!(container["securityContext"], security);
        assert_eq!(container["resources"], json!({}));
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 999});
        add(&mut pod, waiter(&volumes, &settings));
        let container = &pod["spec"]["initContainers"][0];
        assert_eq!(container["securityContext"], json!({"runAsUser": 999}));
    }

    #[test]
    fn the_waiter_asks_for_what_the_first_container_asks_for() {
        let volumes = [("data".to_owned(), 1)].into();
        let own = json!({"requests": {"cpu": "5m", "memory": "8Mi", "ephemeral-storage": "1Mi", "example.com/gpu": "1"},
            "limits": {"example.com/gpu": "1"}});
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": own}, {"name": "d"}]}});
        let resources = |settings: &Settings| {
            let mut pod = pod.clone();
            add(&mut pod, waiter(&volumes, settings));
            pod["spec"]["initContainers"][0]["resources"].take()
        };
        let kept = json!({"requests": {"cpu": "5m", "memory": "8Mi", "ephemeral-storage": "1Mi"}, "limits": {}});
        assert_eq!(resources(&Settings::default()), kept);
        let said = json!({"requests": {"cpu": "50m"}});
        let settings = Settings {
            resources: Some(said.clone()),
            ..Settings::default()
        };
        assert_eq!(resources(&settings), said);
    }
}
