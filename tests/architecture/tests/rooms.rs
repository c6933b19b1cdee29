//! The table in ARCHITECTURE.md is the rule; Cargo's own metadata is the fact.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

type Edges = BTreeMap<String, BTreeSet<String>>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Direct, non-dev dependencies of each package of the workspace.
fn dependencies() -> Edges {
    let out = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo metadata starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let names = package["dependencies"].as_array().unwrap().iter();
            let names = names.filter(|d| d["kind"].as_str() != Some("dev"));
            (
                package["name"].as_str().unwrap().to_owned(),
                names
                    .map(|d| d["name"].as_str().unwrap().to_owned())
                    .collect(),
            )
        })
        .collect()
}

/// The rows `| room | may use | never |` of ARCHITECTURE.md.
fn rules() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let list = |cell: &str| -> BTreeSet<String> {
        let words = cell
            .split(',')
            .map(|w| w.trim().trim_matches('`').to_owned());
        words.filter(|w| !w.is_empty() && w != "–").collect()
    };
    text.lines()
        .skip_while(|line| !line.starts_with("| room | may use |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            assert_eq!(cells.len(), 3, "a row of three cells: {line}");
            (
                cells[0].trim().trim_matches('`').to_owned(),
                (list(cells[1]), list(cells[2])),
            )
        })
        .collect()
}

#[test]
fn every_room_uses_only_the_rooms_that_the_architecture_allows() {
    let (rules, facts) = (rules(), dependencies());
    assert!(
        rules.len() >= 8,
        "the table of ARCHITECTURE.md was not found"
    );
    for (room, (allowed, never)) in &rules {
        let package = format!("jackline-{room}");
        let uses = facts
            .get(&package)
            .unwrap_or_else(|| panic!("no package {package}"));
        for used in uses {
            if let Some(other) = used.strip_prefix("jackline-") {
                assert!(
                    allowed.contains(other),
                    "{room} uses {other}, ARCHITECTURE.md forbids it"
                );
            }
            assert!(
                !never.contains(used),
                "{room} uses {used}, ARCHITECTURE.md forbids it"
            );
        }
    }
}

#[test]
fn every_product_package_has_a_row_in_the_architecture() {
    let rules = rules();
    for package in dependencies().keys() {
        let room = package.strip_prefix("jackline-").unwrap_or(package);
        let testing = [
            "architecture",
            "test-cluster",
            "e2e",
            "bench",
            "bench-scale",
            "faults",
        ];
        assert!(
            rules.contains_key(room) || testing.contains(&room),
            "{room} has no row"
        );
    }
}
