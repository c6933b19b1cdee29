//! Repositories of format version 1, which know no compression: written, read, pruned and checked by both tools.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::path::Path;

use jackline_repository::{Repository, Version};
use support::ours::{backup, check, prune, restore};
use support::{Restic, assert_same_tree, noise, open, options, sample_tree, scratch, store};

/// Files of which every round changes a third; half of each file compresses well.
fn change(source: &Path, round: u64) {
    fs::create_dir_all(source.join("many")).unwrap();
    for file in 0..30 {
        if round == 0 || file % 3 == round % 3 {
            let mut data = noise(round * 100 + file, 150_000);
            data.extend(b"the same words again ".repeat(7_000));
            fs::write(source.join(format!("many/{file}")), data).unwrap();
        }
    }
}

/// What every index file says, as restic prints it.
fn index_files(restic: &Restic) -> Vec<String> {
    let names = restic.run(&["list", "index"]);
    names
        .lines()
        .map(|name| restic.run(&["cat", "index", name]))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_write_into_restics_repository_is_uncompressed_and_restic_reads_it() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    sample_tree(&source);
    let restic = Restic::new(&repo);
    restic.run(&["init", "--repository-version", "1"]);
    let repository = open(&repo).await;
    assert_eq!(repository.version(), Version::V1);

    let summary = backup(&repository, &source).await;
    assert!(
        summary.bytes_packed > summary.bytes_added,
        "sealed, and nothing is smaller: {summary:?}"
    );
    for index in index_files(&restic) {
        assert!(!index.contains("uncompressed_length"), "{index}");
    }
    restic.check();
    check(&repository).await;
    let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
    restic.run(&["restore", "latest", "--target", theirs.to_str().unwrap()]);
    assert_same_tree(&source, &theirs);
    restore(&repository, "latest", &ours).await;
    assert_same_tree(&source, &ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_prune_what_the_other_wrote_into_one_repository() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    let repository = Repository::init_version(store(&repo), &options(), Version::V1)
        .await
        .unwrap();
    let restic = Restic::new(&repo);
    let config = restic.run(&["cat", "config"]);
    assert!(config.contains("\"version\": 1"), "{config}");

    let mut ours = Vec::new();
    for round in 0..3 {
        change(&source, round);
        ours.push(backup(&repository, &source).await.snapshot.unwrap());
        restic.run_in(&source, &["backup", ".", "--host=velero"]);
    }
    let theirs = restic.snapshots();
    let old: Vec<&str> = theirs
        .iter()
        .rev()
        .skip(1)
        .map(|snapshot| snapshot["id"].as_str().unwrap())
        .collect();
    assert_eq!((theirs.len(), old.len()), (6, 5));
    let mut forget = vec!["forget"];
    forget.extend(old);
    restic.run(&forget);

    let pruned = prune(&repository, 0.0).await;
    assert!(pruned.packs_repacked > 0, "{pruned:?}");
    assert_eq!(pruned.bytes_unused, 0);
    restic.check();
    let said = restic.run(&["prune", "--max-unused", "0"]);
    assert!(said.contains("to delete:             0 blobs"), "{said}");
    for index in index_files(&restic) {
        assert!(!index.contains("uncompressed_length"), "{index}");
    }
    let target = dir.path().join("target");
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);

    change(&source, 4);
    backup(&repository, &source).await;
    let keep = ["--keep-last", "1", "--group-by", "", "--max-unused", "0"];
    restic.run(&[&["forget", "--prune"], &keep[..]].concat());
    check(&repository).await;
    let target = dir.path().join("again");
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_repository_holds_both_kinds_of_blobs() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    let repository = Repository::init_version(store(&repo), &options(), Version::V1)
        .await
        .unwrap();
    change(&source, 0);
    let before = backup(&repository, &source).await;
    let restic = Restic::new(&repo);
    restic.run(&["migrate", "upgrade_repo_v2"]);

    let repository = open(&repo).await;
    assert_eq!(repository.version(), Version::V2);
    change(&source, 1);
    let after = backup(&repository, &source).await;
    assert!(after.bytes_packed < after.bytes_added * 3 / 4, "{after:?}");
    check(&repository).await;
    restic.check();

    // Old trees are compressed now, as restic's prune would; data stays as it is while all of it is in use.
    let pruned = prune(&repository, 0.0).await;
    assert!(pruned.packs_repacked > 0, "{pruned:?}");
    let said = restic.run(&["prune", "--max-unused", "0"]);
    assert!(said.contains("to repack:             0 blobs"), "{said}");
    restic.check();
    for (summary, name) in [(after, "after"), (before, "before")] {
        let target = dir.path().join(name);
        restore(&repository, &summary.snapshot.unwrap().to_hex(), &target).await;
        if name == "after" {
            assert_same_tree(&source, &target);
        } else {
            assert_eq!(fs::read_dir(target.join("many")).unwrap().count(), 30);
        }
    }
}
