//! The document about Velero names every field, annotation and label, and no other field.

use std::collections::BTreeSet;

use jackline_crds::yaml::definitions;

const TABLE: &str = include_str!("../../docs/reference/velero-compatibility.md");
const NAMES: &str = include_str!("../src/names.rs");

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
    let kinds = [
        "Backup",
        "Restore",
        "Schedule",
        "BackupStorageLocation",
        "BackupRepository",
    ];
    for kind in kinds {
        let definitions = definitions();
        let crd = definitions
            .iter()
            .find(|crd| crd.spec.names.kind == kind)
            .unwrap();
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let spec = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let known: BTreeSet<String> = spec.as_object().unwrap().keys().cloned().collect();
        assert_eq!(named(section(&format!("### {kind}"))), known, "{kind}");
    }
}

#[test]
fn every_annotation_and_label_is_spoken_of() {
    let spoken: Vec<String> = named(section("## Annotations and labels"))
        .into_iter()
        .map(|name| name.replace('…', ""))
        .collect();
    let keys = NAMES.split("/// Finalizers.").next().unwrap();
    let keys = keys.split('"').skip(1).step_by(2);
    let keys = keys.filter(|key| key.contains("velero.io/"));
    let mut seen = 0;
    for key in keys {
        seen += 1;
        let known = spoken
            .iter()
            .any(|name| key == name || (name.ends_with('/') && key.starts_with(name)));
        assert!(known, "{key}");
    }
    assert!(seen > 15, "{seen}");
}
