//! What both tools stored of one directory: the same trees and blobs, or what differs.

use std::collections::BTreeMap;
use std::path::Path;

use jackline_repository::Repository;
use serde_json::Value;

use super::{Restic, ours};

/// A tree as it is stored.
pub fn stored(restic: &Restic, id: &str) -> Value {
    serde_json::from_str(&restic.run(&["cat", "blob", id])).unwrap()
}

/// Backs a directory up with one tool and then with the other: the second has nothing to add.
pub async fn assert_both_store_the_same(
    repository: &Repository,
    restic: &Restic,
    source: &Path,
    ours_first: bool,
) {
    let theirs = || {
        let args = ["backup", ".", "--host=velero", "--force", "--json"];
        let said = restic.run_in(source, &args);
        let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let snapshots = restic.snapshots();
        let of = |snapshot: &&Value| snapshot["short_id"] == summary["snapshot_id"];
        let tree = snapshots.iter().find(of).unwrap()["tree"].clone();
        let blobs = (&summary["data_blobs"], &summary["tree_blobs"]);
        (
            tree.as_str().unwrap().to_owned(),
            (blobs.0.as_u64().unwrap(), blobs.1.as_u64().unwrap()),
        )
    };
    let ours = async || {
        let summary = ours::backup(repository, source).await;
        assert_eq!(summary.warnings, vec![]);
        let blobs = (summary.data_blobs, summary.tree_blobs);
        (summary.tree.unwrap().to_hex(), blobs)
    };
    let ((first, _), (second, added)) = if ours_first {
        (ours().await, theirs())
    } else {
        let theirs = theirs();
        (theirs, ours().await)
    };
    if first != second {
        let mut found = Vec::new();
        differences(restic, (&first, &second), Path::new(""), &mut found);
        panic!("ours first: {ours_first}\n{}", found.join("\n"));
    }
    assert_eq!(added, (0, 0), "data and tree blobs that the second added");
}

fn differences(restic: &Restic, ids: (&str, &str), path: &Path, found: &mut Vec<String>) {
    let nodes = |id: &str| -> BTreeMap<String, Value> {
        let tree = stored(restic, id);
        let nodes = tree["nodes"].as_array().unwrap().iter();
        nodes
            .map(|node| (node["name"].as_str().unwrap().to_owned(), node.clone()))
            .collect()
    };
    let (left, right) = (nodes(ids.0), nodes(ids.1));
    let before = found.len();
    for name in left
        .keys()
        .chain(right.keys().filter(|n| !left.contains_key(*n)))
    {
        let mut pair = [left.get(name).cloned(), right.get(name).cloned()];
        let subtrees = pair
            .each_mut()
            .map(|node| node.as_mut()?.as_object_mut()?.remove("subtree"));
        let here = path.join(name);
        if pair[0] != pair[1] {
            found.push(format!("{here:?}\n  {:?}\n  {:?}", pair[0], pair[1]));
        }
        if let [Some(Value::String(a)), Some(Value::String(b))] = &subtrees
            && a != b
        {
            differences(restic, (a, b), &here, found);
        }
    }
    if found.len() == before {
        let text = |id: &str| restic.run(&["cat", "blob", id]);
        found.push(format!("{path:?}\n  {}\n  {}", text(ids.0), text(ids.1)));
    }
}
