//! Per-kind changes to a stored object before it is created again (velero-compat §7.4). They run on the object as stored, before
//! its metadata is reset, for some need to know who set a field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    json::{annotation, list, name, remove, text},
    skip::TOKEN,
};

/// The mark of a pod whose post hooks have not run yet, a label and an annotation: a backup stores the pods that it has frozen.
const OWED_HOOKS: &str = "jackline.dev/post-hooks";

/// What the actions need to know about the restore.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Namespace of the backup → namespace in the cluster, where they differ.
    pub mapping: &'a BTreeMap<String, String>,
    /// The restore's `preserveNodePorts`.
    pub preserve_node_ports: bool,
}

/// Changes one object in place.
pub fn apply(resource: &str, object: &mut Value, context: Context<'_>) {
    match resource {
        "pods" => pod(object),
        "jobs.batch" => job(object),
        "services" => service(object, context.preserve_node_ports),
        "serviceaccounts" => service_account(object),
        "secrets" => secret(object),
        "namespaces" => namespace(object),
        "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => {
            subjects(object, context.mapping);
        }
        "customresourcedefinitions.apiextensions.k8s.io" => definition(object),
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => side_effects(object),
        _ => {}
    }
}

fn array_mut<'a>(object: &'a mut Value, pointer: &str) -> Option<&'a mut Vec<Value>> {
    object.pointer_mut(pointer).and_then(Value::as_array_mut)
}

/// A pod is scheduled anew, with the priority its class has here, without the token volumes of its old service account.
fn pod(pod: &mut Value) {
    for field in ["nodeName", "priority", "ephemeralContainers"] {
        remove(pod, &["spec"], field);
    }
    // Of the pod that was backed up, not of this one.
    for field in ["labels", "annotations"] {
        remove(pod, &["metadata", field], OWED_HOOKS);
    }
    let account = text(pod, "/spec/serviceAccountName")
        .unwrap_or("default")
        .to_owned();
    let token = format!("{account}-token-");
    let is_token = |volume: &Value| {
        volume.get("secret").is_some()
            && volume["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(&token) || name.starts_with("default-token-"))
    };
    let dropped: BTreeSet<String> = list(pod, "/spec/volumes")
        .iter()
        .filter(|volume| is_token(volume))
        .filter_map(|volume| volume["name"].as_str().map(str::to_owned))
        .collect();
    if dropped.is_empty() {
        return;
    }
    let stays = |entry: &Value| {
        entry["name"]
            .as_str()
            .is_none_or(|name| !dropped.contains(name))
    };
    if let Some(volumes) = array_mut(pod, "/spec/volumes") {
        volumes.retain(stays);
    }
    for containers in ["/spec/containers", "/spec/initContainers"] {
        for container in array_mut(pod, containers).into_iter().flatten() {
            if let Some(mounts) = array_mut(container, "/volumeMounts") {
                mounts.retain(stays);
            }
        }
    }
}

/// The cluster fills the token of a service account that a person asked for; one of another cluster, or of an account that was made
/// anew, is not valid.
fn secret(secret: &mut Value) {
    if text(secret, "/type") != Some(TOKEN) {
        return;
    }
    let uid = "kubernetes.io/service-account.uid";
    remove(secret, &["metadata", "annotations"], uid);
    for key in ["token", "ca.crt", "namespace"] {
        remove(secret, &["data"], key);
    }
}

/// The API server gives a job its own selector.
fn job(job: &mut Value) {
    for key in ["controller-uid", "batch.kubernetes.io/controller-uid"] {
        remove(job, &["spec", "selector", "matchLabels"], key);
        remove(job, &["spec", "template", "metadata", "labels"], key);
        remove(job, &["metadata", "labels"], key);
    }
}

/// Addresses and ports are the cluster's to give, unless the user chose them.
fn service(service: &mut Value, preserve_node_ports: bool) {
    if text(service, "/spec/clusterIP") != Some("None") {
        remove(service, &["spec"], "clusterIP");
        remove(service, &["spec"], "clusterIPs");
    }
    if preserve_node_ports || text(service, "/spec/type") == Some("ExternalName") {
        return;
    }
    let declared = declared_ports(service);
    if !declared.health {
        remove(service, &["spec"], "healthCheckNodePort");
    }
    for port in array_mut(service, "/spec/ports").into_iter().flatten() {
        let named = port["name"]
            .as_str()
            .is_some_and(|name| declared.names.contains(name));
        let listed = port["nodePort"]
            .as_i64()
            .is_some_and(|number| declared.numbers.contains(&number));
        if let (false, false, Some(port)) = (named, listed, port.as_object_mut()) {
            port.remove("nodePort");
        }
    }
}

/// The node ports that a user wrote, as far as the object tells.
#[derive(Default)]
struct Declared {
    names: BTreeSet<String>,
    numbers: BTreeSet<i64>,
    health: bool,
}

fn declared_ports(service: &Value) -> Declared {
    const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let mut declared = Declared::default();
    let applied =
        annotation(service, APPLIED).and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(applied) = applied {
        for port in list(&applied, "/spec/ports") {
            if let Some(number) = port["nodePort"].as_i64().filter(|number| *number > 0) {
                declared.numbers.insert(number);
            }
        }
        declared.health = applied["spec"]["healthCheckNodePort"]
            .as_i64()
            .is_some_and(|port| port > 0);
        return declared;
    }
    for entry in list(service, "/metadata/managedFields") {
        let spec = &entry["fieldsV1"]["f:spec"];
        declared.health |= spec.get("f:healthCheckNodePort").is_some();
        for (key, fields) in spec["f:ports"].as_object().into_iter().flatten() {
            // Keys look like `k:{"port":80,"protocol":"TCP"}`.
            let Some(key) = key
                .strip_prefix("k:")
                .and_then(|key| serde_json::from_str::<Value>(key).ok())
            else {
                continue;
            };
            if fields.get("f:nodePort").is_none() {
                continue;
            }
            for port in list(service, "/spec/ports") {
                let same = |field: &str| key.get(field).is_none_or(|value| *value == port[field]);
                if let (true, Some(number)) =
                    (same("port") && same("protocol"), port["nodePort"].as_i64())
                {
                    declared.numbers.insert(number);
                }
            }
        }
    }
    declared
}

/// Legacy token secrets belong to the old cluster.
fn service_account(account: &mut Value) {
    let token = format!("{}-token-", name(account));
    if let Some(secrets) = array_mut(account, "/secrets") {
        secrets.retain(|secret| {
            secret["name"]
                .as_str()
                .is_none_or(|name| !name.starts_with(&token))
        });
        if secrets.is_empty() {
            remove(account, &[], "secrets");
        }
    }
}

fn namespace(namespace: &mut Value) {
    remove(namespace, &["spec"], "finalizers");
    remove(
        namespace,
        &["metadata", "labels"],
        "kubernetes.io/metadata.name",
    );
}

fn subjects(binding: &mut Value, mapping: &BTreeMap<String, String>) {
    for subject in array_mut(binding, "/subjects").into_iter().flatten() {
        if let Some(target) = subject["namespace"]
            .as_str()
            .and_then(|from| mapping.get(from))
        {
            subject["namespace"] = json!(target);
        } else if subject["kind"] == "Group" {
            group(subject, mapping);
        }
    }
}

/// `system:serviceaccounts:<namespace>` names a namespace too.
fn group(subject: &mut Value, mapping: &BTreeMap<String, String>) {
    const PREFIX: &str = "system:serviceaccounts:";
    let target = subject["name"]
        .as_str()
        .and_then(|name| name.strip_prefix(PREFIX));
    if let Some(target) = target.and_then(|from| mapping.get(from)) {
        subject["name"] = json!(format!("{PREFIX}{target}"));
    }
}

/// apiextensions v1 refuses `preserveUnknownFields: true`; its equal is a field of the schema.
fn definition(definition: &mut Value) {
    if definition["spec"]["preserveUnknownFields"] != true {
        return;
    }
    remove(definition, &["spec"], "preserveUnknownFields");
    for version in array_mut(definition, "/spec/versions")
        .into_iter()
        .flatten()
    {
        let schema = version
            .pointer_mut("/schema/openAPIV3Schema")
            .and_then(Value::as_object_mut);
        if let Some(schema) = schema {
            schema.insert(
                "x-kubernetes-preserve-unknown-fields".to_owned(),
                Value::Bool(true),
            );
        }
    }
}

/// admissionregistration v1 accepts `None` and `NoneOnDryRun` only.
fn side_effects(configuration: &mut Value) {
    for webhook in array_mut(configuration, "/webhooks").into_iter().flatten() {
        if matches!(webhook["sideEffects"].as_str(), Some("Unknown" | "Some")) {
            webhook["sideEffects"] = json!("None");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(resource: &str, mut object: Value) -> Value {
        let mapping = [("shop".to_owned(), "store".to_owned())].into();
        apply(
            resource,
            &mut object,
            Context {
                mapping: &mapping,
                preserve_node_ports: false,
            },
        );
        object
    }

    #[test]
    fn a_pod_is_scheduled_anew_without_old_tokens() {
        let pod = json!({"spec": {
            "serviceAccountName": "shop", "nodeName": "n", "priority": 3, "priorityClassName": "high", "ephemeralContainers": [{}],
            "volumes": [{"name": "shop-token-x", "secret": {}}, {"name": "default-token-y", "secret": {}},
                {"name": "shop-token-mine", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "shop-token-x"}, {"name": "data"}]}],
            "initContainers": [{"name": "i", "volumeMounts": [{"name": "default-token-y"}]}]}});
        assert_eq!(
            applied("pods", pod),
            json!({"spec": {
                "serviceAccountName": "shop", "priorityClassName": "high",
                "volumes": [{"name": "shop-token-mine", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
                "containers": [{"name": "c", "volumeMounts": [{"name": "data"}]}],
                "initContainers": [{"name": "i", "volumeMounts": []}]}})
        );
    }

    #[test]
    fn a_job_loses_what_binds_it_to_its_old_identity() {
        let labels =
            json!({"batch.kubernetes.io/controller-uid": "u", "controller-uid": "u", "app": "x"});
        let job = json!({"spec": {"selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
            "template": {"metadata": {"labels": labels}}}});
        assert_eq!(
            applied("jobs.batch", job),
            json!({"spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "x"}}}}})
        );
    }

    #[test]
    fn a_service_gets_new_addresses_but_keeps_chosen_ports() {
        let ports = json!([{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30080},
            {"name": "b", "port": 81, "protocol": "TCP", "nodePort": 30081}]);
        let plain = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1"], "healthCheckNodePort": 31000, "ports": ports}});
        let after = applied("services", plain.clone());
        assert_eq!(
            after["spec"],
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 81, "protocol": "TCP"}]})
        );

        let mut declared = plain.clone();
        declared["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration":
            "{\"spec\":{\"ports\":[{\"name\":\"a\",\"port\":80,\"nodePort\":30080},{\"name\":\"b\",\"port\":81}]}}"});
        let after = applied("services", declared);
        assert_eq!(after["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(after["spec"]["ports"][1].get("nodePort"), None);

        let mut managed = plain.clone();
        managed["metadata"]["managedFields"] = json!([{"fieldsV1": {"f:spec": {"f:ports": {
            "k:{\"port\":81,\"protocol\":\"TCP\"}": {"f:nodePort": {}, "f:port": {}}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {"f:port": {}}}}}}]);
        let after = applied("services", managed);
        assert_eq!(after["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(after["spec"]["ports"][1]["nodePort"], 30081);

        let mut kept = plain;
        let mapping = BTreeMap::new();
        apply(
            "services",
            &mut kept,
            Context {
                mapping: &mapping,
                preserve_node_ports: true,
            },
        );
        assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30080);

        let headless = json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": []}});
        assert_eq!(applied("services", headless.clone()), headless);
    }

    #[test]
    fn a_service_account_forgets_legacy_tokens() {
        let account = json!({"metadata": {"name": "shop"}, "secrets": [{"name": "shop-token-abc"}, {"name": "mine"}]});
        assert_eq!(
            applied("serviceaccounts", account)["secrets"],
            json!([{"name": "mine"}])
        );
        let only = json!({"metadata": {"name": "shop"}, "secrets": [{"name": "shop-token-abc"}]});
        assert_eq!(
            applied("serviceaccounts", only),
            json!({"metadata": {"name": "shop"}})
        );
    }

    #[test]
    fn a_token_that_was_asked_for_is_made_anew() {
        let secret = json!({"metadata": {"name": "ci", "annotations": {
            "kubernetes.io/service-account.name": "robot", "kubernetes.io/service-account.uid": "u"}},
            "type": "kubernetes.io/service-account-token",
            "data": {"token": "dA==", "ca.crt": "Yw==", "namespace": "c2hvcA==", "mine": "bQ=="}});
        assert_eq!(
            applied("secrets", secret),
            json!({"metadata": {"name": "ci", "annotations": {"kubernetes.io/service-account.name": "robot"}},
                "type": "kubernetes.io/service-account-token", "data": {"mine": "bQ=="}})
        );
        let other = json!({"type": "Opaque", "data": {"token": "dA=="}});
        assert_eq!(applied("secrets", other.clone()), other);
    }

    #[test]
    fn subjects_follow_their_namespace() {
        let binding = json!({"subjects": [
            {"kind": "ServiceAccount", "name": "a", "namespace": "shop"}, {"kind": "ServiceAccount", "name": "a", "namespace": "other"},
            {"kind": "Group", "name": "system:serviceaccounts:shop"}, {"kind": "User", "name": "u"}]});
        assert_eq!(
            applied("clusterrolebindings.rbac.authorization.k8s.io", binding)["subjects"],
            json!([
                {"kind": "ServiceAccount", "name": "a", "namespace": "store"}, {"kind": "ServiceAccount", "name": "a", "namespace": "other"},
                {"kind": "Group", "name": "system:serviceaccounts:store"}, {"kind": "User", "name": "u"}])
        );
    }

    #[test]
    fn old_definitions_and_webhooks_are_brought_to_v1() {
        let definition = json!({"spec": {"preserveUnknownFields": true, "versions": [{"schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        assert_eq!(
            applied("customresourcedefinitions.apiextensions.k8s.io", definition),
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
        );
        let hook =
            json!({"webhooks": [{"sideEffects": "Unknown"}, {"sideEffects": "NoneOnDryRun"}]});
        assert_eq!(
            applied(
                "validatingwebhookconfigurations.admissionregistration.k8s.io",
                hook
            ),
            json!({"webhooks": [{"sideEffects": "None"}, {"sideEffects": "NoneOnDryRun"}]})
        );
    }

    #[test]
    fn a_namespace_can_be_created_under_another_name() {
        let namespace = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a", "x": "y"}},
            "spec": {"finalizers": ["kubernetes"]}});
        assert_eq!(
            applied("namespaces", namespace),
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}})
        );
    }
}
