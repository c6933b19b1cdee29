//! `jackline repository restore` with its options, as users call it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;

use support::Place;

#[test]
fn a_part_of_a_snapshot_comes_back_alone() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    let target = place.path("target");
    let to = target.to_str().unwrap();
    for (args, expected) in [
        (&["latest", "--include", "/sub"][..], "sub"),
        (&["latest", "--exclude", "sub", "-e", "l*"], "hello"),
        (&["latest:/sub"], "zeros"),
    ] {
        let _ = fs::remove_dir_all(&target);
        place.ok(&[&["restore", "--target", to], args].concat());
        let found: Vec<_> = fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(found, [expected], "{args:?}");
    }
    let both = ["restore", "latest", "-t", to, "-i", "a", "-e", "b"];
    assert_eq!(place.code(&both), 2);
    assert_eq!(place.code(&["restore", "latest:/none", "-t", to]), 1);
}

#[test]
fn what_a_restore_leaves_replaces_and_deletes_is_counted() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    let target = place.path("target");
    let restore = |more: &[&str]| {
        let args = [
            "restore",
            "latest",
            "--json",
            "-t",
            target.to_str().unwrap(),
        ];
        place.json(&[&args, more].concat())
    };
    let first = restore(&["--verify"]);
    assert_eq!(
        (&first["files"], &first["verified"]),
        (&2.into(), &2.into())
    );
    fs::write(target.join("hello"), "changed").unwrap();
    fs::write(target.join("sub/extra"), "extra").unwrap();
    let never = restore(&["--overwrite", "never"]);
    assert_eq!((&never["files"], &never["skipped"]), (&0.into(), &3.into()));
    let newer = restore(&["--overwrite", "if-newer"]);
    assert_eq!(newer["files"], 0, "{newer}");
    let changed = restore(&["--overwrite", "if-changed", "--delete"]);
    assert_eq!(
        (
            &changed["files"],
            &changed["unchanged"],
            &changed["deleted"]
        ),
        (&1.into(), &1.into(), &1.into())
    );
    support::same_trees(&place.path("source"), &target);
}

#[test]
fn an_entry_that_cannot_be_restored_makes_it_incomplete() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    let target = place.path("target");
    fs::create_dir_all(target.join("hello/mine")).unwrap();
    let args = [
        "restore",
        "latest",
        "--json",
        "-t",
        target.to_str().unwrap(),
    ];
    let output = place.jackline(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["error_count"], 1);
    assert_eq!(summary["errors"][0]["path"], "hello");
    let said = String::from_utf8_lossy(&output.stderr);
    let first: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["during"], &first["item"]),
        (&"restore".into(), &"hello".into())
    );
}
