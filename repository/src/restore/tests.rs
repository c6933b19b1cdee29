//! Snapshots that want to write elsewhere, and targets that lead elsewhere: nothing outside the target is touched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use jackline_storage::memory::MemoryStore;

use super::*;
use crate::lock::{self, Mode};
use crate::options::{KeyCost, OpenOptions, Password};
use crate::pack::BlobKind;
use crate::packer::Packer;
use crate::progress::NoProgress;
use crate::report::Overwrite;

/// A repository that holds whatever a test puts into it, a target, and something precious beside that.
struct Place {
    dir: tempfile::TempDir,
    repository: Repository,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/precious"), b"precious").unwrap();
        let options = OpenOptions::new(Password::new("x")).with_key_cost(KeyCost::Generated);
        let store = Arc::new(MemoryStore::new());
        let repository = Repository::init(store, &options).await.unwrap();
        Self { dir, repository }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Stores trees, the root last; `{0}`, `{1}` in a tree stand for the ids of those before it, `{data}` for a blob.
    async fn snapshot(&self, trees: &[&str]) -> SnapshotId {
        let files = &self.repository.files;
        let never = CancellationToken::new();
        let guard = lock::acquire(files, &self.repository.options, Mode::Shared, &never);
        let guard = guard.await.unwrap();
        let mut ids: Vec<Id> = Vec::new();
        let data = Id::of(b"hostile");
        let mut blobs = vec![(BlobKind::Data, b"hostile".to_vec())];
        for tree in trees {
            let mut json = tree.replace("{data}", &data.to_hex());
            for (at, id) in ids.iter().enumerate() {
                json = json.replace(&format!("{{{at}}}"), &id.to_hex());
            }
            ids.push(Id::of(json.as_bytes()));
            blobs.push((BlobKind::Tree, json.into_bytes()));
        }
        let mut pump = Pump::new(&NoProgress, Arc::default());
        let work = move |packer: &Arc<Packer>, _: &CancellationToken| {
            blobs
                .iter()
                .try_for_each(|(kind, plain)| packer.save(*kind, plain).map(drop))
        };
        drive::packing(files, &guard, Arc::default(), 0, &never, &mut pump, work)
            .await
            .unwrap();
        let json = format!(
            r#"{{"time":"2024-01-01T00:00:00Z","tree":"{}","paths":["/"]}}"#,
            ids.last().unwrap()
        );
        let snapshot = lock::write(
            files,
            &guard,
            crate::files::FileKind::Snapshot,
            json.as_bytes(),
        );
        let id = snapshot.await.unwrap().0;
        guard.release(&never).await;
        id
    }

    async fn restore(&self, id: &SnapshotId, options: RestoreOptions) -> Result<RestoreSummary> {
        let never = CancellationToken::new();
        let target = self.target();
        let result = self
            .repository
            .restore(id, &target, options, &NoProgress, &never)
            .await;
        let outside = self.outside();
        assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let kept = fs::metadata(outside.join("precious")).unwrap();
        assert_eq!((kept.mode() & 0o7777, kept.uid()), (0o644, 0));
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 2);
        result
    }
}

/// A node; `more` are further fields.
fn node(name: &str, kind: &str, more: &str) -> String {
    let time = "2001-02-03T04:05:06Z";
    format!(
        r#"{{"name":"{name}","type":"{kind}","mode":511,"mtime":"{time}","atime":"{time}","ctime":"{time}","uid":7,"gid":7{more}}}"#
    )
}

fn file(name: &str, more: &str) -> String {
    let content = format!(r#","size":7,"content":["{{data}}"]{more}"#);
    node(name, "file", &content)
}

fn dir(name: &str, tree: usize) -> String {
    node(name, "dir", &format!(r#","subtree":"{{{tree}}}""#))
}

fn link(name: &str, to: &Path) -> String {
    node(
        name,
        "symlink",
        &format!(r#","linktarget":"{}""#, to.display()),
    )
}

fn tree(nodes: &[String]) -> String {
    format!("{{\"nodes\":[{}]}}\n", nodes.join(","))
}

const EVERY_WAY: [Overwrite; 4] = [
    Overwrite::Always,
    Overwrite::IfChanged,
    Overwrite::IfNewer,
    Overwrite::Never,
];

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_refused_and_the_rest_comes_back() {
    for name in [
        "..",
        ".",
        "",
        "../outside/precious",
        "/etc",
        r"..\\x2foutside",
        r"a\\x00b",
    ] {
        let place = Place::new().await;
        let bad = tree(&[file(name, "")]);
        let root = tree(&[dir("bad", 0), file("good", "")]);
        let id = place.snapshot(&[&bad, &root]).await;
        let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
        assert_eq!(summary.error_count, 1, "{name}: {summary:?}");
        assert_eq!(fs::read(place.target().join("good")).unwrap(), b"hostile");
        assert_eq!(fs::read_dir(place.target().join("bad")).unwrap().count(), 0);

        let id = place.snapshot(&[&bad]).await;
        let refused = place.restore(&id, RestoreOptions::default()).await;
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_and_a_directory_of_one_name_lead_nowhere() {
    for overwrite in EVERY_WAY {
        for link_first in [true, false] {
            let place = Place::new().await;
            let inner = tree(&[file("precious", ""), link("x", Path::new("/"))]);
            let mut nodes = [link("a", &place.outside()), dir("a", 0)];
            if !link_first {
                nodes.reverse();
            }
            let id = place.snapshot(&[&inner, &tree(&nodes)]).await;
            let options = RestoreOptions {
                overwrite,
                delete: true,
                ..RestoreOptions::default()
            };
            // Twice: the second finds what the first made.
            for _ in 0..2 {
                let summary = place.restore(&id, options.clone()).await.unwrap();
                let twice = |problem: &FileProblem| problem.message.contains("two of this name");
                assert!(summary.errors.iter().any(twice), "{summary:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_unsorted_but_not_twice() {
    let place = Place::new().await;
    let nodes = ["b", "a", "b", "c", "a"].map(|name| file(name, ""));
    let id = place.snapshot(&[&tree(&nodes)]).await;
    let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
    assert_eq!((summary.files, summary.error_count), (3, 2), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_target_are_replaced_and_not_followed() {
    for overwrite in EVERY_WAY {
        let place = Place::new().await;
        let inner = tree(&[file("precious", "")]);
        let root = tree(&[
            dir("dir", 0),
            node("fifo", "fifo", ""),
            file("file", ""),
            node("gone", "file", r#","content":[]"#),
            link("link", Path::new("x")),
        ]);
        let id = place.snapshot(&[&inner, &root]).await;
        let (target, outside) = (place.target(), place.outside());
        symlink(&outside, target.join("dir")).unwrap();
        for name in ["fifo", "file", "gone", "link"] {
            symlink(outside.join("precious"), target.join(name)).unwrap();
        }
        let options = RestoreOptions {
            overwrite,
            delete: true,
            verify: true,
            ..RestoreOptions::default()
        };
        let summary = place.restore(&id, options).await.unwrap();
        let replaced = matches!(overwrite, Overwrite::Always | Overwrite::IfChanged);
        assert_eq!(summary.is_complete(), replaced, "{overwrite:?} {summary:?}");
        let dir = fs::symlink_metadata(target.join("dir")).unwrap();
        assert_eq!(dir.is_dir(), replaced);
        assert_eq!(summary.verified, if replaced { 3 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_target_with_a_name_outside_is_replaced_not_changed() {
    for overwrite in [Overwrite::Always, Overwrite::IfChanged, Overwrite::IfNewer] {
        let place = Place::new().await;
        let (target, outside) = (place.target(), place.outside());
        fs::hard_link(outside.join("precious"), target.join("file")).unwrap();
        let now = fs::metadata(outside.join("precious")).unwrap().modified();
        let now = jiff::Timestamp::try_from(now.unwrap()).unwrap();
        // Of the same size and time, and once newer: with another owner and mode all the same.
        let later =
            now + jiff::SignedDuration::from_secs(i64::from(overwrite == Overwrite::IfNewer));
        let same = file("file", "")
            .replace(
                r#""mtime":"2001-02-03T04:05:06Z""#,
                &format!(r#""mtime":"{later}""#),
            )
            .replace(
                r#""size":7,"content":["{data}"]"#,
                r#""size":8,"content":[]"#,
            );
        let sound = file("file", "").replace("2001-02-03T04:05:06Z", "2101-02-03T04:05:06Z");
        for nodes in [same, sound] {
            let id = place.snapshot(&[&tree(&[nodes])]).await;
            let options = RestoreOptions {
                overwrite,
                ..RestoreOptions::default()
            };
            place.restore(&id, options).await.unwrap();
        }
        assert_eq!(fs::read(target.join("file")).unwrap(), b"hostile");
        assert_eq!(fs::metadata(target.join("file")).unwrap().uid(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_claim_to_be_one_file_are_linked_only_within_the_target() {
    let place = Place::new().await;
    let linked = r#","inode":5,"device_id":1,"links":2"#;
    let root = tree(&[
        node(
            "a",
            "symlink",
            &format!(
                r#","linktarget":"{}"{linked}"#,
                place.outside().join("precious").display()
            ),
        ),
        file("b", linked),
        file("c", linked),
        node("d", "fifo", linked),
    ]);
    let id = place.snapshot(&[&root]).await;
    let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    let target = place.target();
    let inode = |name: &str| fs::symlink_metadata(target.join(name)).unwrap().ino();
    assert_eq!(inode("b"), inode("c"));
    assert!(inode("a") != inode("b") && inode("d") != inode("b"));
    assert_eq!(fs::read(target.join("c")).unwrap(), b"hostile");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_made_only_when_asked_for() {
    let place = Place::new().await;
    // 1:3 is /dev/null.
    let root = tree(&[
        node("null", "chardev", r#","device":259"#),
        node("s", "socket", ""),
    ]);
    let id = place.snapshot(&[&root]).await;
    let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
    assert_eq!((summary.others, summary.skipped), (0, 2));
    assert_eq!(fs::read_dir(place.target()).unwrap().count(), 0);
    let options = RestoreOptions {
        devices: true,
        ..RestoreOptions::default()
    };
    let summary = place.restore(&id, options).await.unwrap();
    assert_eq!((summary.others, summary.skipped), (1, 1));
    assert_eq!(
        fs::metadata(place.target().join("null")).unwrap().rdev(),
        259
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_missing_or_of_another_size_is_named() {
    let place = Place::new().await;
    let missing = Id::of(b"never stored");
    let root = tree(&[
        file("good", ""),
        file("long", "").replace(r#""size":7"#, r#""size":9000000000000000000"#),
        file("lost", "").replace("{data}", &missing.to_hex()),
        node("no tree", "dir", ""),
        node("unknown", "wormhole", ""),
    ]);
    let id = place.snapshot(&[&root]).await;
    let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
    assert_eq!(
        (summary.files, summary.error_count, summary.skipped),
        (1, 3, 1),
        "{summary:?}"
    );
    let names: Vec<_> = summary.errors.iter().map(|error| &*error.path).collect();
    assert_eq!(names, ["long", "lost", "no tree/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_removes_links_and_not_what_they_lead_to() {
    let place = Place::new().await;
    let (target, outside) = (place.target(), place.outside());
    let id = place.snapshot(&[&tree(&[file("dir", "")])]).await;
    // In the place of the file, and beside it.
    for name in ["dir", "extra"] {
        fs::create_dir_all(target.join(name).join("deep/er")).unwrap();
        symlink(&outside, target.join(name).join("link")).unwrap();
        symlink(&outside, target.join(name).join("deep/er/link")).unwrap();
        fs::set_permissions(target.join(name), fs::Permissions::from_mode(0o500)).unwrap();
    }
    symlink(&outside, target.join("link")).unwrap();
    let keeping = place.restore(&id, RestoreOptions::default()).await.unwrap();
    assert_eq!(
        (keeping.error_count, keeping.deleted),
        (1, 0),
        "a full directory stays"
    );
    let options = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let summary = place.restore(&id, options).await.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    assert_eq!(summary.deleted, 6, "those beside it");
    assert_eq!(fs::read(target.join("dir")).unwrap(), b"hostile");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_tree_is_unreadable_loses_nothing_by_deletion() {
    let place = Place::new().await;
    let bad = tree(&[file("..", "")]);
    let id = place.snapshot(&[&bad, &tree(&[dir("bad", 0)])]).await;
    fs::create_dir(place.target().join("bad")).unwrap();
    fs::write(place.target().join("bad/mine"), b"mine").unwrap();
    let options = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let summary = place.restore(&id, options).await.unwrap();
    assert_eq!((summary.error_count, summary.deleted), (1, 0));
    assert_eq!(fs::read(place.target().join("bad/mine")).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_back_wrong_is_counted_and_named() {
    let place = Place::new().await;
    let id = place
        .snapshot(&[&tree(&[file("a", ""), file("b", ""), file("c", "")])])
        .await;
    place.restore(&id, RestoreOptions::default()).await.unwrap();
    // Of the right size and time, so that they are taken for unchanged.
    for (name, content) in [("a", b"another"), ("b", b"hostile")] {
        let path = place.target().join(name);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, content).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    let options = RestoreOptions {
        overwrite: Overwrite::IfChanged,
        verify: true,
        ..RestoreOptions::default()
    };
    let summary = place.restore(&id, options.clone()).await.unwrap();
    assert_eq!((summary.unchanged, summary.files), (3, 0));
    assert_eq!(
        (summary.verified, summary.mismatches, summary.error_count),
        (2, 1, 1)
    );
    assert_eq!(summary.errors[0].path, "a");
    assert!(summary.errors[0].message.contains("differs"), "{summary:?}");
    let options = RestoreOptions {
        overwrite: Overwrite::Always,
        ..options
    };
    let summary = place.restore(&id, options).await.unwrap();
    assert_eq!(
        (summary.verified, summary.files, summary.error_count),
        (3, 3, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_some_metadata_is_refused_the_rest_is_set() {
    let place = Place::new().await;
    let refused = r#","extended_attributes":[{"name":"nonsense.x","value":""},{"name":"user.y","value":"eQ=="}]"#;
    // Set user and group id, as Go writes them.
    let setuid = |node: String| node.replace(r#""mode":511"#, r#""mode":12583405"#);
    let nobody = |node: String| node.replace(r#""uid":7"#, r#""uid":4294967295"#);
    let inner = tree(&[]);
    let root = tree(&[
        node("dir", "dir", &format!(r#","subtree":"{{0}}"{refused}"#)),
        node("fifo", "fifo", refused),
        setuid(file("file", refused)),
        nobody(setuid(node("nobody", "fifo", ""))),
        nobody(setuid(file("nobody's", ""))),
    ]);
    let id = place.snapshot(&[&inner, &root]).await;
    let summary = place.restore(&id, RestoreOptions::default()).await.unwrap();
    let mut problems: Vec<_> = summary.errors.iter().map(|one| &*one.path).collect();
    problems.sort_unstable();
    assert_eq!(problems, ["dir/", "fifo", "file", "nobody", "nobody's"]);
    for (name, mode) in [
        ("dir", 0o777),
        ("fifo", 0o777),
        ("file", 0o6755),
        // It would run as somebody else.
        ("nobody", 0o755),
        ("nobody's", 0o755),
    ] {
        let found = fs::symlink_metadata(place.target().join(name)).unwrap();
        assert_eq!(found.mode() & 0o7777, mode, "{name}");
        assert_eq!(found.mtime(), 981_173_106, "{name}");
    }
    for name in ["dir", "file"] {
        let path = place.target().join(name);
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(path, c"user.y", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"y", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_lie_too_deep_are_named() {
    let place = Place::new().await;
    let mut trees = vec![tree(&[file("lost", "")])];
    for above in 0..crate::trail::MAX_DEPTH + 1 {
        trees.push(tree(&[dir("d", above)]));
    }
    trees.push(tree(&[dir("deep", trees.len() - 1), file("good", "")]));
    let trees: Vec<_> = trees.iter().map(|tree| &**tree).collect();
    let id = place.snapshot(&trees).await;
    let options = RestoreOptions {
        only: crate::report::Only::Included(vec!["good".into(), "lost".into()]),
        ..RestoreOptions::default()
    };
    let summary = place.restore(&id, options).await.unwrap();
    assert_eq!((summary.files, summary.error_count), (1, 1), "{summary:?}");
    let problem = &summary.errors[0];
    assert!(problem.message.contains("4096"), "{problem:?}");
    assert!(problem.path.len() < 5000 && problem.path.ends_with("/d/d/"));
}
