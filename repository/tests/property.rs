//! Whatever a tree holds and however it is named: it comes back as it was, with our reader and with restic's, and restic makes
//! the same trees of it. `JACKLINE_SEED=<number>` draws other trees.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jackline_repository::{BackupRequest, NoProgress, RestoreOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use support::{Restic, assert_same_tree, init, noise, scratch};
use tokio_util::sync::CancellationToken;

const TREES: u64 = 10;
const ENTRIES: usize = 60;

/// A name: plain, text that has to be escaped, bytes that are no text, as long as names get.
fn name(random: &mut StdRng) -> Vec<u8> {
    const TEXTS: [&str; 8] = [
        "\"",
        "\\",
        "<&>",
        "\u{2028}\u{2029}",
        "\n\t\r",
        "ä ö",
        "🚀\u{fffd}",
        "\u{1}\u{7f}\u{a0}",
    ];
    let mut name = Vec::new();
    match random.random_range(0..4) {
        0 => name.extend(format!("plain-{}", random.random_range(0..1000)).bytes()),
        1 => {
            for _ in 0..random.random_range(1..6) {
                name.extend(TEXTS[random.random_range(0..TEXTS.len())].bytes());
            }
            name.extend(random.random_range(0..1000).to_string().bytes());
        }
        2 => name.extend((0..random.random_range(1..40)).map(|_| byte(random))),
        _ => name.extend((0..255).map(|_| random.random_range(0x80..=0xbf_u8))),
    }
    name.retain(|byte| *byte != b'/');
    match &name[..] {
        b"" | b"." | b".." => b"x".to_vec(),
        _ => name,
    }
}

/// A byte that begins no character of several bytes: which of these are printable depends on the Unicode version, and
/// restic 0.14 knows an older one than those that came after it.
fn byte(random: &mut StdRng) -> u8 {
    match random.random_range(1..=255_u8) {
        byte @ 0xc2..=0xf4 => byte & 0x3f | 0x80,
        byte => byte,
    }
}

fn content(random: &mut StdRng) -> Vec<u8> {
    let length = match random.random_range(0..10) {
        0 => 0,
        1 => random.random_range(1..3_000_000),
        2 => 64,
        _ => random.random_range(1..5000),
    };
    match random.random_range(0..3) {
        0 => vec![0; length],
        1 => b"text ".iter().copied().cycle().take(length).collect(),
        _ => noise(random.random(), length),
    }
}

/// Fills a directory and returns all that it made, in order.
fn grow(random: &mut StdRng, root: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![root.to_owned()];
    let mut files = Vec::new();
    let mut made = Vec::new();
    fs::create_dir(root).unwrap();
    while made.len() < ENTRIES {
        let dir = &dirs[random.random_range(0..dirs.len())];
        let path = dir.join(OsStr::from_bytes(&name(random)));
        if path.as_os_str().len() > 3000 || path.symlink_metadata().is_ok() {
            continue;
        }
        let node = |kind, number| {
            let name = CString::new(path.as_os_str().as_bytes()).unwrap();
            rustix::fs::mknodat(CWD, &*name, kind, Mode::RUSR, number).unwrap();
        };
        match random.random_range(0..12) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path.clone());
            }
            // Targets that are text: what restic 0.14 keeps of others, newer versions keep otherwise.
            2 => symlink(format!("<{}>/ä", random.random::<u16>()), &path).unwrap(),
            3 => node(FileType::Fifo, 0),
            4 => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            5 => node(FileType::BlockDevice, rustix::fs::makedev(7, 300)),
            6 if !files.is_empty() => {
                let first: &PathBuf = &files[random.random_range(0..files.len())];
                fs::hard_link(first, &path).unwrap();
            }
            _ => {
                fs::write(&path, content(random)).unwrap();
                files.push(path.clone());
            }
        }
        made.push(path);
    }
    made
}

/// Owner, mode, attributes and times; what lies deepest first, so that the times stay.
fn dress(random: &mut StdRng, made: &[PathBuf]) {
    for path in made.iter().rev() {
        let kind = path.symlink_metadata().unwrap().file_type();
        let id = |random: &mut StdRng| Some(random.random_range(0..u32::MAX));
        std::os::unix::fs::lchown(path, id(random), id(random)).unwrap();
        if !kind.is_symlink() {
            let mode = fs::Permissions::from_mode(random.random_range(0..0o10000));
            fs::set_permissions(path, mode).unwrap();
        }
        if kind.is_file() || kind.is_dir() {
            for number in 0..random.random_range(0..4) {
                let value = noise(random.random(), random.random_range(0..80));
                xattr::set(path, format!("user.{number}<\u{e9}>"), &value).unwrap();
            }
        }
        let mut time = || Timespec {
            tv_sec: random.random_range(-2_000_000_000..8_000_000_000),
            tv_nsec: random.random_range(0..1_000_000_000),
        };
        let times = Timestamps {
            last_access: time(),
            last_modification: time(),
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// The first nodes of two trees that differ, at any depth.
fn differing(restic: &Restic, ours: &str, theirs: &str) -> String {
    let nodes = |tree: &str| -> Vec<serde_json::Value> {
        let text = restic.run(&["cat", "blob", tree]);
        let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
        tree["nodes"].as_array().unwrap().clone()
    };
    let (ours, theirs) = (nodes(ours), nodes(theirs));
    for (one, other) in ours.iter().zip(&theirs) {
        match (one["subtree"].as_str(), other["subtree"].as_str()) {
            (Some(one), Some(other)) if one != other => return differing(restic, one, other),
            _ if one != other => return format!("{one}\n{other}"),
            _ => {}
        }
    }
    format!("{} and {} nodes", ours.len(), theirs.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_tree_comes_back_as_it_was_and_restic_makes_the_same_of_it() {
    let seed = std::env::var("JACKLINE_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().unwrap());
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let restic = Restic::new(&repo);
    let never = CancellationToken::new();
    for tree in seed..seed + TREES {
        println!("JACKLINE_SEED={tree}");
        let mut random = StdRng::seed_from_u64(tree);
        let place = dir.path().join(tree.to_string());
        fs::create_dir(&place).unwrap();
        let (source, ours, theirs) = (
            place.join("source"),
            place.join("ours"),
            place.join("theirs"),
        );
        let made = grow(&mut random, &source);
        dress(&mut random, &made);

        let request = BackupRequest::contents(&source, "h");
        let summary = repository
            .backup(request, &NoProgress, &never)
            .await
            .unwrap();
        assert_eq!(summary.errors, vec![]);
        let id = summary.snapshot.unwrap();
        let options = RestoreOptions {
            devices: true,
            ..RestoreOptions::default()
        };
        let restored = repository
            .restore(&id, &ours, options, &NoProgress, &never)
            .await;
        assert_eq!(restored.unwrap().errors, vec![]);
        assert_same_tree(&source, &ours);
        restic.run(&[
            "restore",
            &id.to_hex(),
            "--target",
            theirs.to_str().unwrap(),
        ]);
        assert_same_tree(&source, &theirs);

        let packs = support::count(&repo, "data");
        restic.run_in(&source, &["backup", ".", "--host=h", "--force"]);
        let made = restic.snapshots().pop().unwrap();
        let (ours, theirs) = (summary.tree.unwrap().to_hex(), &made["tree"]);
        if *theirs != ours {
            let first = differing(&restic, &ours, theirs.as_str().unwrap());
            panic!("restic makes another tree of it: {first}");
        }
        assert_eq!(
            support::count(&repo, "data"),
            packs,
            "restic had something to add"
        );
        fs::remove_dir_all(&place).unwrap();
    }
    restic.check();
}
