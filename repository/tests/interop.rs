//! Ours and Debian's restic on the same repositories, both ways.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;

use jackline_repository::{
    BackupRequest, Error, NoProgress, Parent, PruneOptions, Repository, Version,
};
use support::ours::{backup, backup_request, check, restore};
use support::{Restic, assert_same_tree, init, noise, open, options, sample_tree, scratch, store};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn we_write_and_restic_reads() {
    let dir = scratch();
    let (source, repo, target) = (
        dir.path().join("source"),
        dir.path().join("repo"),
        dir.path().join("target"),
    );
    sample_tree(&source);
    let repository = init(&repo).await;
    let summary = backup(&repository, &source).await;
    assert_eq!(summary.sockets_skipped, 1);

    let restic = Restic::new(&repo);
    restic.check();
    restic.run(&["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_same_tree(&source, &target);
    check(&repository).await;
    assert_eq!(support::count(&repo, "locks"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_writes_and_we_read() {
    for version in ["1", "2"] {
        let dir = scratch();
        let (source, repo, target) = (
            dir.path().join("source"),
            dir.path().join("repo"),
            dir.path().join("target"),
        );
        sample_tree(&source);
        let restic = Restic::new(&repo);
        restic.run(&["init", "--repository-version", version]);
        restic.run_in(&source, &["backup", ".", "--host=velero"]);

        let repository = open(&repo).await;
        assert_eq!(repository.version().number().to_string(), version);
        restore(&repository, "latest", &target).await;
        assert_same_tree(&source, &target);
        check(&repository).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_and_cuts_are_equal() {
    for version in [Version::V1, Version::V2] {
        let dir = scratch();
        let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
        sample_tree(&source);
        let repository = Repository::init_version(store(&repo), &options(), version)
            .await
            .unwrap();
        let ours = backup(&repository, &source).await;
        let packs = support::count(&repo, "data");
        let restic = Restic::new(&repo);
        restic.run_in(&source, &["backup", ".", "--host=velero", "--force"]);
        let trees: Vec<_> = restic
            .snapshots()
            .iter()
            .map(|s| s["tree"].clone())
            .collect();
        assert_eq!(trees, vec![ours.tree.unwrap().to_hex(); 2]);
        assert_eq!(
            support::count(&repo, "data"),
            packs,
            "restic found nothing to add"
        );

        // And by absolute path, where the directories above belong to the snapshot. Those change while other tests run.
        let mut trees = Vec::new();
        for _ in 0..10 {
            restic.run(&["backup", source.to_str().unwrap(), "--host=velero"]);
            let theirs = restic.snapshots().last().unwrap()["tree"].clone();
            let packs = support::count(&repo, "data");
            let request = BackupRequest::paths(vec![source.clone()], "velero");
            let ours = backup_request(&repository, request).await;
            assert_eq!(ours.data_blobs, 0);
            trees.push((theirs, ours.tree.unwrap().to_hex()));
            if ours.tree_blobs == 0 {
                assert_eq!(
                    support::count(&repo, "data"),
                    packs,
                    "we found nothing to add"
                );
                break;
            }
        }
        let (theirs, ours) = trees.pop().unwrap();
        assert_eq!(theirs, ours, "{trees:?}");
        restic.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_files_are_not_read() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    sample_tree(&source);
    let repository = init(&repo).await;
    let first = backup(&repository, &source).await;
    assert!(first.bytes_read > 30_000_000);

    let mut request = BackupRequest::contents(&source, "velero");
    request.parent = first.snapshot.into();
    let second = backup_request(&repository, request.clone()).await;
    assert_eq!(
        (second.bytes_read, second.files_new, second.files_changed),
        (0, 0, 0)
    );
    assert_eq!((second.tree, second.bytes_added), (first.tree, 0));

    // The same volume elsewhere: other path, same inodes.
    let moved = dir.path().join("moved");
    fs::rename(&source, &moved).unwrap();
    request.source = jackline_repository::Source::Contents(moved.clone());
    let third = backup_request(&repository, request.clone()).await;
    assert_eq!((third.bytes_read, third.tree), (0, first.tree));

    let mut large = fs::OpenOptions::new()
        .append(true)
        .open(moved.join("large"))
        .unwrap();
    std::io::Write::write_all(&mut large, &noise(9, 100_000)).unwrap();
    // First was made of other paths.
    request.parent = Parent::Newest;
    let fourth = backup_request(&repository, request.clone()).await;
    assert_eq!(fourth.parent, third.snapshot);
    // Three names of one file.
    assert_eq!((fourth.files_changed, fourth.files_new), (3, 0));
    // At most what follows the last cut; where that lies depends on the repository's random polynomial.
    assert!(fourth.bytes_added < 8_000_000, "{}", fourth.bytes_added);

    // restic takes ours as a parent too.
    let restic = Restic::new(&repo);
    let parent = fourth.snapshot.unwrap().to_hex();
    let stored = repository.snapshot(&fourth.snapshot.unwrap()).await;
    let stored = stored.unwrap();
    let version = concat!("jackline ", env!("CARGO_PKG_VERSION"));
    assert_eq!(stored.program_version, version);
    assert_eq!(stored.parent, third.snapshot);
    let summary = stored.summary.unwrap();
    assert_eq!(summary.files_changed, 3);
    assert_eq!(summary.data_added, fourth.bytes_added);
    assert_eq!(summary.total_bytes_processed, fourth.bytes_processed);
    let json = restic.run_in(
        &moved,
        &[
            "backup",
            ".",
            "--json",
            "--host=velero",
            "--parent",
            &parent,
        ],
    );
    let summary: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["files_new"], &summary["files_changed"]),
        (&0.into(), &0.into())
    );
    request.host = "another".into();
    assert_eq!(backup_request(&repository, request).await.parent, None);
    restic.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_gives_space_back_and_restic_agrees() {
    let dir = scratch();
    let (source, repo, target) = (
        dir.path().join("source"),
        dir.path().join("repo"),
        dir.path().join("target"),
    );
    fs::create_dir(&source).unwrap();
    let repository = init(&repo).await;
    let mut ids = Vec::new();
    for round in 0..4 {
        for file in 0..40 {
            if round == 0 || file % 4 == round {
                fs::write(
                    source.join(format!("{file}")),
                    noise(round * 100 + file, 300_000),
                )
                .unwrap();
            }
        }
        ids.push(backup(&repository, &source).await.snapshot.unwrap());
    }
    let cancel = CancellationToken::new();
    let options = PruneOptions {
        max_unused_percent: 0.0,
    };
    let nothing = repository
        .prune(options, &NoProgress, &cancel)
        .await
        .unwrap();
    assert_eq!((nothing.packs_deleted, nothing.packs_repacked), (0, 0));

    let forgotten = repository.forget(&ids[..3]).await.unwrap();
    assert_eq!(forgotten.removed, ids[..3]);
    assert_eq!(repository.forget(&ids[..1]).await.unwrap().absent, ids[..1]);
    let pruned = repository
        .prune(options, &NoProgress, &cancel)
        .await
        .unwrap();
    assert!(pruned.bytes_before > 20_000_000, "{pruned:?}");
    assert!(
        pruned.bytes_after < 12_500_000 && pruned.bytes_unused == 0,
        "{pruned:?}"
    );

    let restic = Restic::new(&repo);
    restic.check();
    let said = restic.run(&["prune", "--max-unused", "0"]);
    assert!(
        said.contains("to delete:             0 blobs") || said.contains("0 B"),
        "{said}"
    );
    check(&repository).await;
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);

    // And what restic pruned, we read.
    restic.run_in(&source, &["backup", "."]);
    restic.run(&[
        "forget",
        "--keep-last",
        "1",
        "--prune",
        "--max-unused",
        "0",
        "--group-by",
        "",
    ]);
    check(&repository).await;
    let target = dir.path().join("again");
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_volume_is_a_snapshot() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let source = dir.path().join("empty");
    fs::create_dir(&source).unwrap();
    let summary = backup(&repository, &source).await;
    assert!(summary.empty && summary.snapshot.is_some());
    fs::remove_dir(&source).unwrap();
    let missing = backup(&repository, &source).await;
    assert!(missing.empty);
    assert_eq!(missing.tree, summary.tree);
    Restic::new(&repo).check();
    let target = dir.path().join("target");
    restore(&repository, "latest", &target).await;
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

/// Whatever became of a large file since the parent: what we make of it with the parent's help is what restic makes of it
/// without any.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_changed_is_cut_as_restic_cuts_it() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    let repository = init(&repo).await;
    let restic = Restic::new(&repo);
    let mut data = noise(1, 40 << 20);
    let mib = |n: usize| n << 20;
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));
    let changes: [Change<'_>; 9] = [
        ("new", &|_| {}),
        ("appended to", &|data| data.extend(noise(2, 3 << 20))),
        ("one byte", &|data| data[20_000_000] ^= 1),
        ("inserted into", &|data| {
            data.splice(mib(5)..mib(5), noise(3, 12_345));
        }),
        ("at the front", &|data| {
            data.splice(0..0, noise(4, 700_000));
        }),
        ("zeros, holes", &|data| data[mib(10)..mib(17)].fill(0)),
        ("in many places", &|data| {
            for at in (1..8).map(|n| mib(n * 5)) {
                data[at..at + 10].fill(7);
            }
        }),
        ("shorter", &|data| data.truncate(mib(30) + 5)),
        ("other data", &|data| *data = noise(5, 33 << 20)),
    ];
    let mut parent = None;
    for (name, change) in changes {
        change(&mut data);
        fs::write(source.join("large"), &data).unwrap();
        let mut request = BackupRequest::contents(&source, "velero");
        request.parent = parent.into();
        let ours = backup_request(&repository, request).await;
        assert_eq!(ours.files_changed, u64::from(parent.is_some()), "{name}");
        assert_eq!(ours.warnings, vec![], "{name}");
        parent = ours.snapshot;
        let packs = support::count(&repo, "data");
        restic.run_in(&source, &["backup", ".", "--host=velero", "--force"]);
        let theirs = restic.snapshots().last().unwrap()["tree"].clone();
        assert_eq!(theirs, ours.tree.unwrap().to_hex(), "{name}");
        assert_eq!(
            support::count(&repo, "data"),
            packs,
            "{name}: nothing to add"
        );
    }
    check(&repository).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_short_for_several_snapshots_is_refused() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let repository = init(&dir.path().join("repo")).await;
    // Two of them begin with the same digit.
    for _ in 0..17 {
        backup(&repository, &source).await;
    }
    let mut short = Vec::new();
    for info in repository.snapshots().await.unwrap() {
        let digit = &info.id.to_hex()[..1];
        short.push(repository.resolve(digit).await);
        assert_eq!(
            repository.resolve(&info.id.to_hex()).await.unwrap(),
            info.id
        );
    }
    let ambiguous =
        |resolved: &Result<_, Error>| matches!(resolved, Err(Error::AmbiguousId { .. }));
    assert!(short.iter().any(ambiguous), "{short:?}");
}
