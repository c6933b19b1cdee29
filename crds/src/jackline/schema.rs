//! Where the schemas of the two policy kinds differ.

use serde_json::{Value, json};

use super::policy::PolicySpec;
use super::status::PolicyStatus;
use crate::kind;

/// The schema of a `ClusterBackupPolicy`.
pub(super) fn cluster() -> Value {
    let mut schema =
        policy("What is protected in the whole cluster, when, and for how long it is kept.");
    let spec = &mut schema["properties"]["spec"];
    // The policy's own fields say these.
    remove(
        &mut spec["properties"]["template"],
        &[
            "storageLocation",
            "includedNamespaces",
            "excludedNamespaces",
        ],
    );
    spec["x-kubernetes-validations"] = json!([{
        "rule": "!has(self.retention) || !has(self.template) || !has(self.template.ttl) || self.template.ttl in ['0', '0s', '0h0m0s']",
        "message": "ttl and retention exclude each other",
        "fieldPath": ".template.ttl"
    }]);
    schema
}

/// The schema of a `BackupPolicy`: no namespaces, and labels alone in the template, so that tenants can be given it by plain RBAC.
pub(super) fn namespaced() -> Value {
    let mut schema =
        policy("What is protected in one namespace, when, and for how long it is kept.");
    let spec = &mut schema["properties"]["spec"];
    remove(spec, &["namespaces"]);
    let template = &mut spec["properties"]["template"];
    let mut metadata = template["properties"]["metadata"].take();
    remove(&mut metadata, &["annotations"]);
    template["properties"] = json!({"metadata": metadata});
    schema
}

fn policy(description: &str) -> Value {
    let mut schema = kind::schema::<PolicySpec, PolicyStatus>(description);
    schema["required"] = json!(["spec"]);
    kind::without_nulls(&mut schema);
    schema
}

fn remove(schema: &mut Value, properties: &[&str]) {
    if let Some(all) = schema["properties"].as_object_mut() {
        all.retain(|name, _| !properties.contains(&name.as_str()));
    }
}
