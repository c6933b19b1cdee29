//! The document about Velero names every field, setting, annotation and label, and none that the code does not know.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use jackline_crds::names::VELERO_GROUP;
use jackline_crds::yaml::definitions;
use serde_json::Value;

const TABLE: &str = include_str!("../../docs/reference/velero-compatibility.md");
const NAMES: &str = include_str!("../src/names.rs");
const SETTINGS: &str = include_str!("../../storage/src/s3/config.rs");
/// What tells types of Kubernetes, whose fields are not listed: selectors and references.
const FOREIGN: [&str; 3] = ["matchLabels", "fieldPath", "apiGroup"];

/// What stands in backquotes in the first cells of a section's rows.
fn named(section: &str) -> BTreeSet<String> {
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let quoted = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

/// The part below a heading; empty where there is none.
fn section(heading: &str) -> &'static str {
    let text = TABLE.split(&format!("\n{heading}\n")).nth(1);
    let text = text.and_then(|text| text.split("\n#").next());
    text.unwrap_or_default()
}

#[test]
fn every_no_says_why() {
    let cells = |row: &'static str| row.split('|').map(str::trim).collect::<Vec<_>>();
    let rows: Vec<_> = TABLE
        .lines()
        .filter(|row| row.starts_with("| "))
        .map(cells)
        .collect();
    let refused: Vec<_> = rows.iter().filter(|row| row.contains(&"no")).collect();
    assert!(refused.len() > 20, "{}", refused.len());
    for row in refused {
        let after = row.iter().skip_while(|cell| **cell != "no").nth(1);
        assert!(after.is_some_and(|why| !why.is_empty()), "{row:?}");
    }
}

#[test]
fn every_field_is_spoken_of() {
    let mut kinds = 0;
    for crd in definitions() {
        if crd.spec.group != VELERO_GROUP {
            continue;
        }
        kinds += 1;
        let kind = &crd.spec.names.kind;
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let schema = &schema["openAPIV3Schema"]["properties"];
        let mut known = BTreeSet::new();
        leaves(&schema["spec"], "", &mut known);
        leaves(&schema["status"], "status.", &mut known);
        assert_eq!(named(section(&format!("### {kind}"))), known, "{kind}");
    }
    assert_eq!(kinds, 14);
}

/// The paths of the fields below one that hold values.
fn leaves(schema: &Value, path: &str, known: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mut inner = [field, &field["items"]].into_iter();
        let inner = inner.rfind(|inner| inner["properties"].is_object());
        let own = |inner: &&Value| {
            FOREIGN
                .iter()
                .all(|name| inner["properties"][name].is_null())
        };
        match inner.filter(own) {
            // A Schedule's template is a Backup's spec.
            Some(inner) if name != "template" => leaves(inner, &format!("{path}{name}."), known),
            _ => {
                known.insert(format!("{path}{name}"));
            }
        }
    }
}

#[test]
fn every_setting_of_a_location_is_spoken_of() {
    let keys = SETTINGS.split("const KNOWN").nth(1).unwrap();
    let keys = keys.split("];").next().unwrap();
    let known: BTreeSet<String> = keys
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert_eq!(named(section("## Settings of a location")), known);
}

#[test]
fn every_annotation_and_label_is_spoken_of() {
    let spoken: Vec<String> = named(section("## Annotations, labels and finalizers"))
        .into_iter()
        .map(|name| name.replace('…', ""))
        .collect();
    let keys = NAMES.split("/// Finalizers.").next().unwrap();
    let keys = keys.split('"').skip(1).step_by(2);
    let keys = keys.filter(|key| key.contains("velero.io/"));
    let mut seen = 0;
    for key in keys {
        seen += 1;
        assert!(spoken.iter().any(|name| name == key), "{key}");
    }
    assert!(seen > 15, "{seen}");
}

/// What is not refused is in the code: as a whole, or a prefix that takes keys beside a key.
#[test]
fn every_annotation_and_label_that_counts_is_known() -> io::Result<()> {
    let mut code = String::new();
    for room in ["controller", "crds", "node-agent", "policy"] {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(room);
        append(&room.join("src"), &mut code)?;
    }
    let rows = section("## Annotations, labels and finalizers").lines();
    let rows = rows.filter(|row| row.starts_with("| `") && !row.contains("| no |"));
    let mut seen = 0;
    for name in rows.flat_map(named) {
        seen += 1;
        let (prefix, key) = name.split_once('/').unwrap();
        let takes_keys = ["\"", "{"]
            .iter()
            .any(|end| code.contains(&format!("{prefix}/{end}")));
        let whole = ["\"", ","]
            .iter()
            .any(|end| code.contains(&format!("\"{name}{end}")));
        let known = whole || takes_keys && code.contains(&format!("\"{key}\""));
        assert!(known, "{name}");
    }
    assert!(seen > 40, "{seen}");
    Ok(())
}

/// All source below a directory.
fn append(directory: &Path, code: &mut String) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            append(&path, code)?;
        } else {
            code.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
