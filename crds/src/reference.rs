//! `docs/reference/api.md`: every field of every kind, from the same schemas as the CustomResourceDefinitions.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use crate::yaml::definitions;

/// Fields that are described once, where Kubernetes describes them.
const OPAQUE: [&str; 6] = [
    "labelSelector",
    "selector",
    "claimSelector",
    "orLabelSelectors",
    "conditions",
    "pod",
];

/// The page, as Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "<!-- Generated from the types in crds/src by `make generate`. Do not edit. -->\n\
         # API reference\n\n\
         Kinds of `jackline.dev` have a status subresource. Kinds of `velero.io` have none: status is a plain field, as Velero's own\n\
         programs expect.\n",
    );
    let (ours, velero): (Vec<_>, Vec<_>) = definitions()
        .into_iter()
        .partition(|crd| crd.spec.group == crate::names::JACKLINE_GROUP);
    for crd in ours.iter().chain(&velero) {
        kind(&mut page, crd);
    }
    page
}

fn kind(page: &mut String, crd: &CustomResourceDefinition) {
    let Some(version) = crd.spec.versions.first() else {
        return;
    };
    let schema = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref());
    let schema = serde_json::to_value(schema).unwrap_or_default();
    let names = &crd.spec.names;
    let short = names.short_names.as_deref().unwrap_or_default().join(", ");
    let _ = write!(
        page,
        "\n## {}\n\n`{}/{}`, {}{}\n\n{}\n\n| field | type | meaning |\n|---|---|---|\n",
        names.kind,
        crd.spec.group,
        version.name,
        crd.spec.scope.to_lowercase(),
        if short.is_empty() {
            String::new()
        } else {
            format!(", short name `{short}`")
        },
        text(&schema),
    );
    fields(page, "", &schema);
}

fn fields(page: &mut String, path: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in properties {
        let at = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        // The template of a schedule or a policy is a Backup's spec.
        let opaque = OPAQUE.contains(&name.as_str()) || (name == "template" && path == "spec");
        let must = if required.contains(&name.as_str()) && !path.is_empty() {
            " *"
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| `{at}`{must} | {} | {} |",
            kind_of(field),
            text(field)
        );
        if opaque {
            continue;
        }
        fields(page, &at, field);
        fields(page, &format!("{at}[]"), &field["items"]);
    }
}

/// The type of a field, for people.
fn kind_of(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    if let Some(values) = field["enum"].as_array() {
        let values = values
            .iter()
            .filter_map(Value::as_str)
            .filter(|v| !v.is_empty());
        return values.collect::<Vec<_>>().join(", ");
    }
    match field["type"].as_str() {
        Some("array") => format!("list of {}", kind_of(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => "map".to_owned(),
        Some("string") if field["format"] == "date-time" => "time".to_owned(),
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    }
}

/// A description on one line, with the rules that no type says.
fn text(field: &Value) -> String {
    let mut text = field["description"]
        .as_str()
        .unwrap_or_default()
        .replace('\n', " ")
        .replace('|', "\\|");
    for rule in field["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if let Some(message) = rule["message"].as_str() {
            let _ = write!(text, " ({message})");
        }
    }
    text
}
