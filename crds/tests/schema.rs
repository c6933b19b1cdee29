//! What the API server needs to find in every definition.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

fn schema(crd: &CustomResourceDefinition) -> Value {
    let version = &crd.spec.versions[0];
    let schema = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("a schema")).unwrap()
}

fn crd(plural: &str) -> CustomResourceDefinition {
    let mut all = jackline_crds::yaml::definitions();
    all.retain(|crd| crd.spec.names.plural == plural);
    all.pop().expect(plural)
}

/// Every schema with its path.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    for (name, inner) in [
        ("[]", &schema["items"]),
        ("{}", &schema["additionalProperties"]),
    ] {
        if inner.is_object() {
            walk(&format!("{path}{name}"), inner, visit);
        }
    }
}

#[test]
fn schemas_are_structural() {
    for crd in jackline_crds::yaml::definitions() {
        let kind = crd.spec.names.kind.clone();
        walk(&kind, &schema(&crd), &mut |path, field| {
            let typed = field["type"].is_string()
                || field["x-kubernetes-int-or-string"] == true
                || field["x-kubernetes-preserve-unknown-fields"] == true;
            assert!(typed, "{path} has no type: {field}");
            for word in [
                "$ref",
                "definitions",
                "anyOf",
                "oneOf",
                "allOf",
                "uniqueItems",
                "const",
            ] {
                assert!(field.get(word).is_none(), "{path} uses {word}");
            }
            // Formats that the API server does not know make it warn at every apply.
            if let Some(format) = field["format"].as_str() {
                assert!(
                    ["date-time", "int32", "int64", "byte"].contains(&format),
                    "{path} has format {format}"
                );
            }
            assert!(field.get("default").is_none(), "{path} has a default");
        });
    }
}

#[test]
fn status_is_a_plain_field_of_velero_kinds_and_a_subresource_of_ours() {
    for crd in jackline_crds::yaml::definitions() {
        let ours = crd.spec.group == "jackline.dev";
        assert_eq!(
            crd.spec.versions[0].subresources.is_some(),
            ours,
            "{}",
            crd.spec.names.kind
        );
        assert!(ours || crd.metadata.labels.as_ref().unwrap()["component"] == "velero");
        assert!(
            crd.spec.names.short_names.is_some() || crd.spec.names.plural == "resticrepositories"
        );
    }
}

#[test]
fn optional_lists_of_velero_kinds_may_be_null() {
    let backup = schema(&crd("backups"));
    for name in [
        "includedNamespaces",
        "excludedResources",
        "orLabelSelectors",
    ] {
        assert_eq!(
            backup["properties"]["spec"]["properties"][name]["nullable"], true,
            "{name}"
        );
    }
    assert_eq!(
        backup["properties"]["status"]["properties"]["startTimestamp"]["nullable"],
        true
    );
    assert!(backup["properties"]["status"].get("nullable").is_none());
}

#[test]
fn a_tenant_policy_names_no_namespaces_and_sets_labels_only() {
    let spec = |plural| schema(&crd(plural))["properties"]["spec"].clone();
    let (cluster, tenant) = (spec("clusterbackuppolicies"), spec("backuppolicies"));
    let names = |v: &Value| {
        v["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(cluster["properties"].get("namespaces").is_some());
    assert!(tenant["properties"].get("namespaces").is_none());
    assert_eq!(names(&tenant["properties"]["template"]), ["metadata"]);
    assert_eq!(
        names(&tenant["properties"]["template"]["properties"]["metadata"]),
        ["labels"]
    );
    assert!(
        cluster["properties"]["template"]["properties"]
            .get("hooks")
            .is_some()
    );
    assert!(
        cluster["properties"]["template"]["properties"]
            .get("includedNamespaces")
            .is_none()
    );
    let mut others = names(&cluster);
    others.retain(|name| name != "namespaces");
    assert_eq!(others, names(&tenant));
}
