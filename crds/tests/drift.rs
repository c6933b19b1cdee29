//! The generated files are what the types say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn yaml_is_what_the_types_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let mut known = BTreeSet::new();
    for (name, content) in jackline_crds::yaml::files().unwrap() {
        let found = std::fs::read_to_string(directory.join(&name)).unwrap_or_default();
        assert!(
            found == content,
            "crds/yaml/{name} differs: run `make generate`"
        );
        known.insert(name);
    }
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            known.contains(&name),
            "crds/yaml/{name} belongs to no kind: run `make generate`"
        );
    }
}

#[test]
fn the_reference_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/api.md");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == jackline_crds::reference::page(),
        "docs/reference/api.md differs: run `make generate`"
    );
}
