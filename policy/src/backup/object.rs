//! What the backup does with single objects: leave out, tidy, and see what else they need.

use serde_json::Value;

const EXCLUDE_LABEL: &str = "velero.io/exclude-from-backup";
/// Labels that earlier restores left on a claim and that would confuse the next one.
const STALE_LABELS: [&str; 3] = [
    "velero.io/backup-name",
    "velero.io/restore-name",
    "velero.io/volume-snapshot-name",
];

/// Why an object is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Its label says so.
    Excluded,
    /// It is being deleted.
    Terminating,
}

/// Whether an object is left out.
pub fn skip(object: &Value) -> Option<Skip> {
    let metadata = object.get("metadata")?;
    if metadata
        .pointer(&format!("/labels/{}", EXCLUDE_LABEL.replace('/', "~1")))
        .and_then(Value::as_str)
        == Some("true")
    {
        return Some(Skip::Excluded);
    }
    metadata
        .get("deletionTimestamp")
        .is_some_and(|at| !at.is_null())
        .then_some(Skip::Terminating)
}

/// An object by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// `plural.group`.
    pub resource: String,
    /// `None` for objects outside of namespaces.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    fn cluster(resource: &str, name: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            namespace: None,
            name: name.to_owned(),
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// The claims that a pod's volumes are made of: volume name and claim name. Those of `ephemeral` volumes have names of their own.
pub fn claims_of_pod(pod: &Value) -> Vec<(String, String)> {
    let Some(volumes) = pod.pointer("/spec/volumes").and_then(Value::as_array) else {
        return Vec::new();
    };
    let pod_name = text(pod, "/metadata/name").unwrap_or_default();
    let claim = |volume: &Value| {
        let name = text(volume, "/name")?;
        let claim = match text(volume, "/persistentVolumeClaim/claimName") {
            Some(claim) => claim.to_owned(),
            None => {
                volume
                    .get("ephemeral")
                    .filter(|source| source.is_object())?;
                format!("{pod_name}-{name}")
            }
        };
        Some((name.to_owned(), claim))
    };
    volumes.iter().filter_map(claim).collect()
}

/// Other objects that have to be in the backup with this one, and before it.
pub fn needs(resource: &str, object: &Value) -> Vec<ObjectRef> {
    match resource {
        "pods" => {
            let namespace = text(object, "/metadata/namespace").map(str::to_owned);
            let claims = claims_of_pod(object)
                .into_iter()
                .map(|(_, claim)| ObjectRef {
                    resource: "persistentvolumeclaims".to_owned(),
                    namespace: namespace.clone(),
                    name: claim,
                });
            let class = text(object, "/spec/priorityClassName")
                .map(|name| ObjectRef::cluster("priorityclasses.scheduling.k8s.io", name));
            claims.chain(class).collect()
        }
        "persistentvolumeclaims" => volume_of_claim(object)
            .map(|name| ObjectRef::cluster("persistentvolumes", name))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// The volume that a claim is bound to.
pub fn volume_of_claim(claim: &Value) -> Option<&str> {
    let bound = text(claim, "/status/phase") == Some("Bound");
    text(claim, "/spec/volumeName").filter(|_| bound)
}

/// A ClusterRoleBinding, as far as service accounts need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its name.
    pub name: String,
    /// The ClusterRole it grants.
    pub role: String,
    /// The service accounts it grants it to: namespace and name.
    pub accounts: Vec<(String, String)>,
}

impl Binding {
    /// Reads a ClusterRoleBinding.
    pub fn of(object: &Value) -> Option<Self> {
        let subjects = object.get("subjects").and_then(Value::as_array);
        let account = |subject: &Value| {
            (text(subject, "/kind")? == "ServiceAccount").then_some(())?;
            Some((
                text(subject, "/namespace")?.to_owned(),
                text(subject, "/name")?.to_owned(),
            ))
        };
        Some(Self {
            name: text(object, "/metadata/name")?.to_owned(),
            role: text(object, "/roleRef/name")?.to_owned(),
            accounts: subjects.into_iter().flatten().filter_map(account).collect(),
        })
    }
}

/// The bindings and roles that a service account needs.
pub fn needs_of_account(namespace: &str, name: &str, bindings: &[Binding]) -> Vec<ObjectRef> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let grants = |binding: &&Binding| {
        binding
            .accounts
            .iter()
            .any(|(ns, account)| ns == namespace && account == name)
    };
    let refs = |binding: &Binding| {
        [
            ObjectRef::cluster(&format!("clusterrolebindings.{GROUP}"), &binding.name),
            ObjectRef::cluster(&format!("clusterroles.{GROUP}"), &binding.role),
        ]
    };
    bindings.iter().filter(grants).flat_map(refs).collect()
}

/// Removes what would keep a restored object from working.
pub fn tidy(resource: &str, object: &mut Value) {
    if resource != "persistentvolumeclaims" {
        return;
    }
    if let Some(labels) = object
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.retain(|key, _| !STALE_LABELS.contains(&key.as_str()));
    }
    // An empty class means static binding, the one case in which the selector matters again.
    let keeps_selector = object
        .pointer("/spec/storageClassName")
        .and_then(Value::as_str)
        == Some("");
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("dataSource");
        spec.remove("dataSourceRef");
        if !keeps_selector {
            spec.remove("selector");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn excluded_and_dying_objects_are_left_out() {
        let table = [
            (
                json!({"metadata": {"labels": {"velero.io/exclude-from-backup": "true"}}}),
                Some(Skip::Excluded),
            ),
            (
                json!({"metadata": {"labels": {"velero.io/exclude-from-backup": "false"}}}),
                None,
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                Some(Skip::Terminating),
            ),
            (json!({"metadata": {"deletionTimestamp": null}}), None),
            (json!({}), None),
        ];
        for (object, expected) in table {
            assert_eq!(skip(&object), expected, "{object}");
        }
    }

    #[test]
    fn a_pod_needs_its_claims_and_its_class() {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "db-0"},
            "spec": {"priorityClassName": "high", "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "cache", "emptyDir": {}},
            ]},
        });
        let needs: Vec<String> = needs("pods", &pod).into_iter().map(|n| n.name).collect();
        assert_eq!(needs, ["data-db-0", "db-0-scratch", "high"]);
    }

    #[test]
    fn a_claim_needs_its_volume_once_bound() {
        let claim = |phase| json!({"spec": {"volumeName": "pv"}, "status": {"phase": phase}});
        assert_eq!(volume_of_claim(&claim("Bound")), Some("pv"));
        assert_eq!(volume_of_claim(&claim("Pending")), None);
    }

    #[test]
    fn a_service_account_needs_what_is_bound_to_it() {
        let binding = Binding::of(&json!({
            "metadata": {"name": "b"}, "roleRef": {"name": "r"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "shop", "name": "shop"}, {"kind": "User", "name": "u"}],
        }));
        let bindings = [binding.unwrap()];
        let needs = needs_of_account("shop", "shop", &bindings);
        assert_eq!(
            needs[0].resource,
            "clusterrolebindings.rbac.authorization.k8s.io"
        );
        assert_eq!((needs[1].name.as_str(), needs.len()), ("r", 2));
        assert!(needs_of_account("shop", "default", &bindings).is_empty());
    }

    #[test]
    fn claims_are_tidied() {
        let mut claim = json!({
            "metadata": {"labels": {"app": "db", "velero.io/restore-name": "r"}},
            "spec": {"dataSource": {}, "dataSourceRef": {}, "selector": {"a": "b"}, "storageClassName": "fast"},
        });
        tidy("persistentvolumeclaims", &mut claim);
        assert_eq!(
            claim,
            json!({"metadata": {"labels": {"app": "db"}}, "spec": {"storageClassName": "fast"}})
        );
        let mut fixed = json!({"spec": {"selector": {"a": "b"}, "storageClassName": ""}});
        tidy("persistentvolumeclaims", &mut fixed);
        assert!(fixed.pointer("/spec/selector").is_some());
    }
}
