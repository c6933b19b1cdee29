//! Which objects of a backup are never restored (velero-compat §7.1, §7.3), and why.

use serde_json::Value;

use super::json::{annotation, label, list, name, owner_kind, text};

/// Kinds that Velero never restores, as it writes them into `spec.excludedResources`.
pub const NOT_RESTORABLE: [&str; 9] = [
    "nodes",
    "events",
    "events.events.k8s.io",
    "backups.velero.io",
    "restores.velero.io",
    "resticrepositories.velero.io",
    "csinodes.storage.k8s.io",
    "volumeattachments.storage.k8s.io",
    "backuprepositories.velero.io",
];

/// Orders and records beside them: brought back, an order would be carried out once more, first of all to delete a backup.
const NOR_THESE: [&str; 6] = [
    "deletebackuprequests.velero.io",
    "downloadrequests.velero.io",
    "serverstatusrequests.velero.io",
    "podvolumebackups.velero.io",
    "podvolumerestores.velero.io",
    "backupcoverages.jackline.dev",
];

/// Kinds that a restore refuses to include and leaves out by itself.
pub fn never() -> impl Iterator<Item = &'static str> {
    NOT_RESTORABLE.into_iter().chain(NOR_THESE)
}

/// The type of Secrets that hold a service account's token.
pub(super) const TOKEN: &str = "kubernetes.io/service-account-token";

/// Why an object is left out. None of these is a warning: the cluster makes or made these itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum Skip {
    #[strum(to_string = "the kubelet makes mirror pods from files on the node")]
    MirrorPod,
    #[strum(to_string = "the pod had finished")]
    FinishedPod,
    #[strum(to_string = "the pod was being deleted")]
    DeletedPod,
    #[strum(to_string = "the job had finished")]
    FinishedJob,
    #[strum(to_string = "service account tokens are made by the cluster")]
    TokenSecret,
    #[strum(to_string = "the cluster publishes its own certificate authority")]
    RootCa,
    #[strum(to_string = "the API server manages it")]
    ManagedApiService,
    #[strum(to_string = "the claim of an ephemeral volume is made for its pod")]
    EphemeralClaim,
    #[strum(to_string = "the endpoint controller makes it from the service")]
    GeneratedEndpoints,
}

/// Whether an object of `resource` (`plural[.group]`) is left out.
pub fn skip(resource: &str, object: &Value) -> Option<Skip> {
    match resource {
        "pods" => pod(object),
        "jobs.batch" => text(object, "/status/completionTime")
            .filter(|t| !t.is_empty())
            .map(|_| Skip::FinishedJob),
        "secrets" => is_generated_token(object).then_some(Skip::TokenSecret),
        "configmaps" => (name(object) == "kube-root-ca.crt").then_some(Skip::RootCa),
        "apiservices.apiregistration.k8s.io" => {
            label(object, "kube-aggregator.kubernetes.io/automanaged")
                .map(|_| Skip::ManagedApiService)
        }
        "persistentvolumeclaims" => {
            (owner_kind(object) == Some("Pod")).then_some(Skip::EphemeralClaim)
        }
        "endpointslices.discovery.k8s.io" => {
            let manager = label(object, "endpointslice.kubernetes.io/managed-by")?;
            manager
                .ends_with("controller.k8s.io")
                .then_some(Skip::GeneratedEndpoints)
        }
        "endpoints" => {
            let generated = annotation(object, "endpoints.kubernetes.io/last-change-trigger-time")
                .is_some()
                || label(object, "endpoints.kubernetes.io/managed-by")
                    == Some("endpoint-controller");
            generated.then_some(Skip::GeneratedEndpoints)
        }
        _ => None,
    }
}

/// Whether the Secret is a service account's token that the cluster made by itself, as it did before Kubernetes 1.24, and named after the
/// account.
fn is_generated_token(secret: &Value) -> bool {
    let account = annotation(secret, "kubernetes.io/service-account.name");
    let named_after = |account: &str| {
        name(secret)
            .strip_prefix(account)
            .is_some_and(|rest| rest.starts_with("-token-"))
    };
    text(secret, "/type") == Some(TOKEN) && account.is_none_or(named_after)
}

fn pod(pod: &Value) -> Option<Skip> {
    if annotation(pod, "kubernetes.io/config.mirror").is_some() {
        return Some(Skip::MirrorPod);
    }
    if text(pod, "/metadata/deletionTimestamp").is_some() {
        return Some(Skip::DeletedPod);
    }
    matches!(text(pod, "/status/phase"), Some("Succeeded" | "Failed")).then_some(Skip::FinishedPod)
}

/// The hostname a daemon set's pod is pinned to (its node affinity names one node by `metadata.name`). Restoring it into a cluster
/// without that node would leave a pod that can never run.
pub fn pinned_node(pod: &Value) -> Option<&str> {
    if owner_kind(pod) != Some("DaemonSet") {
        return None;
    }
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    list(pod, &format!("{required}/nodeSelectorTerms"))
        .iter()
        .flat_map(|term| list(term, "/matchFields"))
        .find(|field| field["key"] == "metadata.name")
        .and_then(|field| field["values"].get(0)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_cluster_makes_itself_is_left_out() {
        let cases = [
            ("pods", json!({"status": {"phase": "Running"}}), None),
            ("pods", json!({"status": {"phase": "Pending"}}), None),
            (
                "pods",
                json!({"status": {"phase": "Succeeded"}}),
                Some(Skip::FinishedPod),
            ),
            (
                "pods",
                json!({"status": {"phase": "Failed"}}),
                Some(Skip::FinishedPod),
            ),
            (
                "pods",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                Some(Skip::DeletedPod),
            ),
            (
                "pods",
                json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                Some(Skip::MirrorPod),
            ),
            (
                "jobs.batch",
                json!({"status": {"completionTime": "2026-01-01T00:00:00Z"}}),
                Some(Skip::FinishedJob),
            ),
            ("jobs.batch", json!({"status": {"active": 1}}), None),
            (
                "secrets",
                json!({"type": "kubernetes.io/service-account-token"}),
                Some(Skip::TokenSecret),
            ),
            (
                "secrets",
                json!({"metadata": {"name": "robot-token-x2k4j",
                    "annotations": {"kubernetes.io/service-account.name": "robot"}},
                    "type": "kubernetes.io/service-account-token"}),
                Some(Skip::TokenSecret),
            ),
            (
                "secrets",
                json!({"metadata": {"name": "ci",
                    "annotations": {"kubernetes.io/service-account.name": "robot"}},
                    "type": "kubernetes.io/service-account-token"}),
                None,
            ),
            ("secrets", json!({"type": "Opaque"}), None),
            (
                "configmaps",
                json!({"metadata": {"name": "kube-root-ca.crt"}}),
                Some(Skip::RootCa),
            ),
            ("configmaps", json!({"metadata": {"name": "conf"}}), None),
            (
                "persistentvolumeclaims",
                json!({"metadata": {"ownerReferences": [{"kind": "Pod", "controller": true}]}}),
                Some(Skip::EphemeralClaim),
            ),
            (
                "persistentvolumeclaims",
                json!({"metadata": {"ownerReferences": [{"kind": "StatefulSet", "controller": true}]}}),
                None,
            ),
            (
                "endpointslices.discovery.k8s.io",
                json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}}}),
                Some(Skip::GeneratedEndpoints),
            ),
            (
                "endpointslices.discovery.k8s.io",
                json!({"metadata": {"labels": {}}}),
                None,
            ),
            (
                "endpoints",
                json!({"metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "x"}}}),
                Some(Skip::GeneratedEndpoints),
            ),
            ("endpoints", json!({"metadata": {"name": "by-hand"}}), None),
            (
                "apiservices.apiregistration.k8s.io",
                json!({"metadata": {"labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}}}),
                Some(Skip::ManagedApiService),
            ),
            ("deployments.apps", json!({}), None),
        ];
        for (resource, object, want) in cases {
            assert_eq!(skip(resource, &object), want, "{resource} {object}");
        }
    }

    #[test]
    fn orders_to_the_server_are_not_brought_back() {
        for order in [
            "deletebackuprequests.velero.io",
            "downloadrequests.velero.io",
        ] {
            assert!(never().any(|never| never == order), "{order}");
        }
        let schedules = "schedules.velero.io";
        assert!(never().all(|never| never != schedules));
    }

    #[test]
    fn a_daemon_sets_pod_names_its_node() {
        let pod = json!({
            "metadata": {"ownerReferences": [{"kind": "DaemonSet", "controller": true}]},
            "spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-7"]}]}]}}}}
        });
        assert_eq!(pinned_node(&pod), Some("node-7"));
        assert_eq!(pinned_node(&json!({"spec": {}})), None);
    }
}
