//! What restic stores of a directory is what we store of it, to the byte: every cut and every tree, whoever comes first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use jackline_repository::{BackupRequest, Repository, RestoreOptions, Version};
use rustix::fs::{FileType, makedev};
use serde_json::Value;
use support::ours::{backup, backup_request, check, restore, restore_with};
use support::trees::{assert_both_store_the_same, stored};
use support::{
    Restic, assert_same_tree, init, make_node, noise, options, sample_tree, scratch, set_times,
    store,
};

const MIB: usize = 1 << 20;

/// Files whose lengths lie about those where the chunker decides something. In zeros every place is a candidate for a cut, in
/// ones none.
fn chunk_limits(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let around = |n: usize| [n - 1, n, n + 1];
    let lengths = [0, 1]
        .into_iter()
        .chain([64, 512 << 10, 8 * MIB].into_iter().flat_map(around));
    for length in lengths {
        fs::write(
            dir.join(format!("noise {length}")),
            noise(length as u64, length),
        )
        .unwrap();
    }
    for length in around(8 * MIB).into_iter().chain(around(512 << 10)) {
        fs::write(dir.join(format!("zeros {length}")), vec![0; length]).unwrap();
        fs::write(dir.join(format!("ones {length}")), vec![1; length]).unwrap();
    }
    fs::write(dir.join("zeros"), vec![0; 32 * MIB]).unwrap();
    fs::write(dir.join("ones"), vec![1; 32 * MIB + 7]).unwrap();
    fs::write(dir.join("noise"), noise(1, 16 * MIB)).unwrap();
    let mut mixed = noise(2, 3 * MIB);
    mixed.extend(vec![0; 9 * MIB]);
    mixed.extend(noise(2, 3 * MIB));
    fs::write(dir.join("mixed"), mixed).unwrap();
    let hole = fs::File::create(dir.join("hole")).unwrap();
    hole.set_len(20_000_001).unwrap();
}

/// Names that are hard to quote, all of characters that restic 0.14 knows.
fn hostile_names() -> Vec<OsString> {
    let mut names: Vec<Vec<u8>> = [
        &b"quote\"s 'and' `ticks`"[..],
        b"back\\slash \\n \\x41 \\u0041 \\\\",
        b"<a href=&amp;>",
        b"new\nline",
        b"\ttab\rreturn",
        b" leading and trailing ",
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f",
        b"\x1a\x1b[31m\x1f\x7f",
        b"-rf",
        b"...",
        b"..x",
        b"*?[a-z]!",
        b"$HOME ~ %s %00",
        b"nul:",
        b"invalid \xff\xfe\x80",
        b"overlong \xc0\xaf",
        b"surrogate \xed\xa0\x80",
        b"cut off \xf0\x9f\x9a",
        b"beyond \xf4\x90\x80\x80",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.extend(
        [
            "line\u{2028}and paragraph\u{2029}",
            "no\u{a0}break, soft\u{ad}hyphen, zero\u{200b}width, \u{feff}",
            "right \u{202e}to left",
            "private \u{e000} replaced \u{fffd} not a char \u{fffe}\u{ffff}",
            "e\u{301} and é",
            "emoji 🚀👩\u{200d}💻\u{1f1e9}\u{1f1ea}",
            "世界 мир עולם",
            "tag \u{e0041} last \u{10ffff}",
        ]
        .map(|name| name.as_bytes().to_vec()),
    );
    names.push(vec![b'x'; 255]);
    names.push(vec![0xff; 255]);
    names.push("ü".repeat(127).into_bytes());
    let own = |name: Vec<u8>| OsStr::from_bytes(&name).to_owned();
    names.into_iter().map(own).collect()
}

fn hostile(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for (at, name) in hostile_names().into_iter().enumerate() {
        fs::write(dir.join(&name), name.as_bytes()).unwrap();
        let below = dir.join(format!("dir {at}"));
        fs::create_dir(&below).unwrap();
        fs::create_dir(below.join(&name)).unwrap();
        // Link targets are not quoted, only escaped; what 0.14 writes otherwise has a test of its own.
        let plain = std::str::from_utf8(name.as_bytes());
        if plain.is_ok_and(|name| !name.contains(['\x08', '\x0c'])) {
            symlink(&name, below.join("link")).unwrap();
        }
    }
}

/// Every type and every mode bit, owners without names, times far away.
fn metadata(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let file = |name: &str| {
        fs::write(dir.join(name), name).unwrap();
        dir.join(name)
    };
    for mode in [0, 0o777, 0o4711, 0o2644, 0o1600, 0o7000, 0o7777] {
        let path = file(&format!("mode {mode:o}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let path = dir.join(format!("dir {mode:o}"));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for (uid, gid) in [
        (1, 1),
        (65534, 65534),
        (54_321, 0),
        (u32::MAX - 1, u32::MAX - 2),
    ] {
        let path = file(&format!("owner {uid} {gid}"));
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    make_node(&dir.join("fifo"), FileType::Fifo, 0o620, 0);
    make_node(
        &dir.join("chardev"),
        FileType::CharacterDevice,
        0o666,
        makedev(1, 3),
    );
    make_node(
        &dir.join("blockdev"),
        FileType::BlockDevice,
        0o660,
        makedev(259, 1_000_000),
    );
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    drop(socket);
    symlink("fifo", dir.join("link")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    symlink("x".repeat(4000), dir.join("long link")).unwrap();
    std::os::unix::fs::lchown(dir.join("dangling"), Some(77), Some(78)).unwrap();
    let linked = file("linked");
    fs::hard_link(&linked, dir.join("mode 0 again")).unwrap();
    fs::hard_link(&linked, dir.join("another")).unwrap();
    fs::hard_link(dir.join("link"), dir.join("link again")).unwrap();

    let xattrs = file("xattrs");
    let large = noise(3, 3000);
    for (name, value) in [
        ("user.b", &b"text"[..]),
        ("user.a", b""),
        ("user.binary", &[0, 1, 255, 0]),
        ("user.<name>&\"\\ \u{2028}ü", b"hostile"),
        ("user.large", &large),
        ("trusted.ours", b"\n"),
    ] {
        xattr::set(&xattrs, name, value).unwrap();
    }
    for name in ["fifo", "chardev", "dir 7777"] {
        xattr::set(dir.join(name), "trusted.note", name.as_bytes()).unwrap();
    }
    let acl = |args: &[&str], name: &str| {
        let status = Command::new("setfacl")
            .args(args)
            .arg(dir.join(name))
            .status();
        assert!(status.expect("acl must be installed").success());
    };
    file("acl");
    acl(&["-m", "u:12:rw,g:2000000000:r,m::rwx"], "acl");
    fs::create_dir(dir.join("acl dir")).unwrap();
    acl(&["-m", "u:12:rwx,d:u:13:rx,d:g::-"], "acl dir");
    fs::create_dir(dir.join("acl dir/inherits")).unwrap();
    fs::write(dir.join("acl dir/inherited"), b"").unwrap();

    for (name, time) in [
        ("another", (-1, 999_999_999)),
        ("mode 777", (0, 0)),
        ("mode 4711", (-2_000_000_000, 1)),
        // 1712 and 2262: restic restores no others.
        ("mode 2644", (-8_123_456_789, 120_000_000)),
        ("mode 1600", (9_214_646_399, 999_000_000)),
        ("dangling", (4_102_444_800, 5)),
        ("fifo", (1, 0)),
        ("dir 1600", (2_147_483_648, 0)),
    ] {
        set_times(&dir.join(name), time);
    }
}

fn golden_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    chunk_limits(&root.join("chunks"));
    hostile(&root.join("names"));
    metadata(&root.join("metadata"));
    fs::create_dir(root.join("empty")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_second_has_nothing_to_add() {
    let dir = scratch();
    let source = dir.path().join("source");
    golden_tree(&source);
    for (version, ours_first) in [(Version::V2, true), (Version::V1, false)] {
        let repo = dir.path().join(format!("repo {ours_first}"));
        let repository = Repository::init_version(store(&repo), &options(), version)
            .await
            .unwrap();
        let restic = Restic::new(&repo);
        assert_both_store_the_same(&repository, &restic, &source, ours_first).await;
        if ours_first {
            let again = backup(&repository, &source).await;
            assert_eq!((again.sockets_skipped, again.warning_count), (1, 0));
            restic.check();
            check(&repository).await;
            let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
            let devices = RestoreOptions {
                devices: true,
                ..RestoreOptions::default()
            };
            restore_with(&repository, "latest", &ours, devices).await;
            assert_same_tree(&source, &ours);
            fs::remove_dir_all(&ours).unwrap();
            restic.run(&["restore", "latest", "--target", theirs.to_str().unwrap()]);
            assert_same_tree(&source, &theirs);
            fs::remove_dir_all(&theirs).unwrap();
        }
        fs::remove_dir_all(&repo).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_stored_alike() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    golden_tree(&source);
    let repository = init(&repo).await;
    assert_both_store_the_same(&repository, &Restic::new(&repo), &source, true).await;
}

/// The zone is the process's, so each zone needs a process of its own.
#[test]
fn a_tree_is_stored_alike_in_every_zone() {
    for zone in ["Asia/Kathmandu", "America/St_Johns"] {
        let data = Path::new("/usr/share/zoneinfo").join(zone);
        assert!(data.exists(), "tzdata must be installed: {data:?}");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_tree_is_stored_alike"])
            .env("TZ", zone)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{zone}: {said}");
        assert!(said.contains("1 passed"), "{zone}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_restic_cannot_restore_are_stored_alike_and_come_back_with_us() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    for seconds in [
        -62_135_596_801,
        -62_135_596_800,
        -30_000_000_000,
        -9_223_372_037,
        9_223_372_037,
        32_503_680_000,
        253_000_000_000,
    ] {
        let path = source.join(seconds.to_string());
        fs::write(&path, b"").unwrap();
        set_times(&path, (seconds, 123_000_000));
    }
    let repository = init(&repo).await;
    let restic = Restic::new(&repo);
    assert_both_store_the_same(&repository, &restic, &source, true).await;
    let target = dir.path().join("target");
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);

    // No format can say these: the year becomes 0 or 9999.
    for seconds in [
        -377_705_116_801,
        -70_000_000_000,
        253_402_300_800,
        280_000_000_000,
    ] {
        set_times(&source.join("32503680000"), (seconds, 1));
        assert_both_store_the_same(&repository, &restic, &source, true).await;
    }
    // The last day of them is later than what we can hold, but no reason to refuse its directory.
    set_times(&source.join("32503680000"), (253_402_300_799, 0));
    restic.run_in(&source, &["backup", ".", "--host=velero"]);
    let target = dir.path().join("last day");
    restore(&repository, "latest", &target).await;
    assert_eq!(fs::read_dir(&target).unwrap().count(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_absolute_paths_are_stored_alike() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    sample_tree(&source);
    let repository = Repository::init_version(store(&repo), &options(), Version::V1)
        .await
        .unwrap();
    let restic = Restic::new(&repo);
    let paths: Vec<PathBuf> = ["dir/deep", "dir/nothing", "small", "link to dir", "fifo"]
        .map(|name| source.join(name))
        .into();
    let mut args = vec!["backup", "--host=velero", "--force"];
    args.extend(paths.iter().map(|path| path.to_str().unwrap()));
    // The directories above the source change while other tests run.
    let mut trees = Vec::new();
    for _ in 0..10 {
        restic.run(&args);
        let request = BackupRequest::paths(paths.clone(), "velero");
        let ours = backup_request(&repository, request).await;
        assert_eq!(ours.data_blobs, 0);
        let snapshots = restic.snapshots();
        let [.., theirs, own] = &snapshots[..] else {
            panic!("{snapshots:?}");
        };
        assert_eq!(theirs["paths"], own["paths"]);
        trees = vec![theirs["tree"].clone(), own["tree"].clone()];
        if ours.tree_blobs == 0 {
            break;
        }
    }
    assert_eq!(trees[0], trees[1]);

    // restic finds ours as the parent by host and paths, and all of it unchanged.
    let mut args = vec!["backup", "--host=velero", "--json"];
    args.extend(paths.iter().map(|path| path.to_str().unwrap()));
    let said = restic.run(&args);
    let summary: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(summary["files_unmodified"], 2, "{summary}");
    assert_eq!(
        (&summary["files_new"], &summary["files_changed"]),
        (&0.into(), &0.into())
    );
    let newest = restic.snapshots().pop().unwrap();
    let parent = restic.snapshots().iter().rev().nth(1).unwrap()["id"].clone();
    assert_eq!(newest["parent"], parent);
}

/// Where restic 0.16 and newer store more than 0.14, or write it otherwise, we store what the newer do.
#[tokio::test(flavor = "multi_thread")]
async fn what_newer_restics_store_besides_is_stored_and_comes_back() {
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    fs::create_dir(&source).unwrap();
    symlink(OsStr::from_bytes(b"/a\xff\x08\x0c"), source.join("a")).unwrap();
    symlink("b\x08\x0c", source.join("b")).unwrap();
    symlink("c", source.join("c")).unwrap();
    xattr::set(source.join("c"), "trusted.own", b"of the link").unwrap();
    // New in Unicode 14 and 15.
    for name in ["d \u{61d}", "e \u{1fae8}"] {
        fs::write(source.join(name), b"").unwrap();
    }
    let repository = init(&repo).await;
    let summary = backup(&repository, &source).await;
    let restic = Restic::new(&repo);
    let id = summary.tree.unwrap().to_hex();
    let text = restic.run(&["cat", "blob", &id]);
    for part in [
        r#""linktarget":"/a\ufffd\b\f","linktarget_raw":"L2H/CAw=","content""#,
        r#""linktarget":"b\b\f","content""#,
        r#""linktarget":"c","extended_attributes":[{"name":"trusted.own","value":"b2YgdGhlIGxpbms="}],"content""#,
        "\"name\":\"d \u{61d}\"",
        "\"name\":\"e \u{1fae8}\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(stored(&restic, &id)["nodes"].as_array().unwrap().len(), 5);
    restic.check();
    let target = dir.path().join("target");
    restore(&repository, "latest", &target).await;
    assert_same_tree(&source, &target);
}
