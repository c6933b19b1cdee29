//! What the interop tests share: a tree with everything a file system can hold, and restic itself.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod ours;
pub mod trees;
pub mod wild;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use jackline_repository::{KeyCost, OpenOptions, Password, Repository};
use jackline_storage::fs::LocalStore;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

pub const PASSWORD: &str = "a password for tests";

/// A directory on tmpfs where there is one: tests write much and need no durability.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::Builder::new()
        .prefix("jackline-repository-")
        .tempdir_in(base)
        .unwrap()
}

pub fn store(path: &Path) -> Arc<LocalStore> {
    fs::create_dir_all(path).unwrap();
    Arc::new(LocalStore::new(path))
}

pub fn options() -> OpenOptions {
    OpenOptions::new(Password::new(PASSWORD)).with_key_cost(KeyCost::Generated)
}

pub async fn open(path: &Path) -> Repository {
    Repository::open(store(path), &options()).await.unwrap()
}

pub async fn init(path: &Path) -> Repository {
    Repository::init(store(path), &options()).await.unwrap()
}

/// An empty repository whose key costs next to nothing to open.
pub async fn cheap_repository(store: &dyn jackline_storage::ObjectStore) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/restic-cheap-key");
    let mut files = vec![fixture.join("config")];
    for entry in fs::read_dir(fixture.join("keys")).unwrap() {
        files.push(entry.unwrap().path());
    }
    for file in files {
        let key = file.strip_prefix(&fixture).unwrap().to_str().unwrap();
        store
            .put(key, fs::read(&file).unwrap().into())
            .await
            .unwrap();
    }
}

/// Debian's restic on a repository. It must be installed.
pub struct Restic {
    repository: PathBuf,
    password: String,
    cache: tempfile::TempDir,
}

impl Restic {
    pub fn new(repository: &Path) -> Self {
        Self::with_password(repository, PASSWORD)
    }

    pub fn with_password(repository: &Path, password: &str) -> Self {
        Self {
            repository: repository.into(),
            password: password.into(),
            cache: scratch(),
        }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("restic");
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", &self.password)
            .env("RESTIC_CACHE_DIR", self.cache.path());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command()
            .args(args)
            .output()
            .expect("Debian's restic must be installed")
    }

    /// Runs restic, which must succeed, and returns what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        self.run_in(Path::new("."), args)
    }

    pub fn run_in(&self, dir: &Path, args: &[&str]) -> String {
        let output = self.command().current_dir(dir).args(args).output();
        let output = output.expect("Debian's restic must be installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "restic {args:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// `restic init`, with a key that is cheap to open.
    pub fn init(&self) {
        self.run(&["init"]);
    }

    /// The referee.
    pub fn check(&self) {
        self.run(&["check", "--read-data"]);
    }

    pub fn check_without_lock(&self) {
        self.run(&["check", "--read-data", "--no-lock"]);
    }

    pub fn snapshots(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.run(&["snapshots", "--json"])).unwrap()
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = vec![0; len];
    for byte in &mut data {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
    }
    data
}

/// A tree with one of everything, hostile names among it.
pub fn sample_tree(root: &Path) {
    fs::create_dir_all(root).unwrap();
    let write = |name: &str, data: &[u8]| fs::write(root.join(name), data).unwrap();
    write("empty", b"");
    write("small", b"hello\n");
    write("private", b"secret");
    fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o000)).unwrap();
    write("setuid", b"#!/bin/sh\n");
    std::os::unix::fs::chown(root.join("setuid"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    let mut large = noise(1, 5_000_000);
    large.extend_from_slice(&noise(1, 3_000_000));
    write("large", &large);
    write("compressible", &b"all work and no play\n".repeat(200_000));
    write("zeros", &vec![0; 2_000_000]);
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(20_000_000).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"in the middle", 9_000_000).unwrap();

    fs::create_dir_all(root.join("dir/deep/er")).unwrap();
    write("dir/deep/er/file", &noise(2, 700_000));
    fs::create_dir(root.join("dir/sticky")).unwrap();
    fs::set_permissions(root.join("dir/sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(root.join("dir/sticky"), Some(5), Some(4_000_000_000)).unwrap();
    fs::create_dir(root.join("dir/nothing")).unwrap();

    fs::hard_link(root.join("large"), root.join("dir/second name")).unwrap();
    fs::hard_link(root.join("large"), root.join("a first name")).unwrap();
    symlink("small", root.join("link")).unwrap();
    symlink("/nowhere/at/all <&>\"\\ \u{2028}", root.join("dangling")).unwrap();
    symlink("dir", root.join("link to dir")).unwrap();
    make_node(&root.join("fifo"), FileType::Fifo, 0o640, 0);
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());

    for name in [
        &b"n\xc3\xa4me with space"[..],
        b"not utf-8 \xff\xfe",
        b"quote\"back\\slash",
        b"new\nline\ttab",
        b"<html>&amp;",
        b"\x01\x07\x08\x0b\x0c\x7f",
        "\u{2028}\u{a0}\u{e000}🚀".as_bytes(),
        b"-rf",
        b"...",
    ] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    xattr::set(root.join("small"), "user.note", b"hi").unwrap();
    xattr::set(root.join("small"), "user.binary", &[0, 255, 1]).unwrap();
    xattr::set(root.join("small"), "user.empty", b"").unwrap();
    xattr::set(root.join("dir/deep"), "user.dir", b"on a directory").unwrap();

    let long_ago = (1_234_567_890, 123_456_789);
    let before_the_epoch = (-5, 500_000_000);
    for (name, time) in [
        ("small", long_ago),
        ("link", long_ago),
        ("empty", before_the_epoch),
        ("dir/deep/er", long_ago),
        ("dir/deep", long_ago),
        ("dir", long_ago),
    ] {
        set_times(&root.join(name), time);
    }
}

/// Makes a fifo or a device.
pub fn make_node(path: &Path, kind: FileType, mode: u32, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).unwrap();
}

/// Sets the times of an entry, a link's own, to seconds and nanoseconds since 1970.
pub fn set_times(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Everything that a restore has to bring back, by path. Hard links are shown by the first of their names.
pub fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(
        root: &Path,
        dir: &Path,
        seen: &mut BTreeMap<(u64, u64), PathBuf>,
        out: &mut BTreeMap<PathBuf, String>,
    ) {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let below = path.strip_prefix(root).unwrap().to_owned();
            let kind = FileType::from_raw_mode(meta.mode());
            if kind == FileType::Socket {
                continue;
            }
            let mut line = format!(
                "{:o} {}:{} {}.{:09} rdev={}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.rdev()
            );
            let mut xattrs: Vec<_> = xattr::list(&path).unwrap().collect();
            xattrs.sort();
            for name in xattrs {
                let value = xattr::get(&path, &name).unwrap();
                line += &format!(" {name:?}={value:?}");
            }
            match kind {
                FileType::RegularFile => {
                    let first = seen
                        .entry((meta.dev(), meta.ino()))
                        .or_insert_with(|| below.clone());
                    let content = jackline_repository::Id::of(&fs::read(&path).unwrap());
                    line += &format!(" {} {content} links={} {first:?}", meta.len(), meta.nlink());
                }
                FileType::Symlink => line += &format!(" -> {:?}", fs::read_link(&path).unwrap()),
                FileType::Directory => visit(root, &path, seen, out),
                _ => {}
            }
            out.insert(below, line);
        }
    }
    let mut out = BTreeMap::new();
    visit(root, root, &mut BTreeMap::new(), &mut out);
    out
}

/// Compares two trees and shows only what differs.
#[track_caller]
pub fn assert_same_tree(left: &Path, right: &Path) {
    let (a, b) = (listing(left), listing(right));
    let mut differences = Vec::new();
    for path in a.keys().chain(b.keys()) {
        if a.get(path) != b.get(path) {
            differences.push(format!(
                "{path:?}\n  {:?}\n  {:?}",
                a.get(path),
                b.get(path)
            ));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// How many objects lie in a directory of a repository.
pub fn count(repository: &Path, kind: &str) -> usize {
    fn files(dir: &Path) -> usize {
        let Ok(entries) = fs::read_dir(dir) else {
            return 0;
        };
        entries
            .map(|entry| entry.unwrap().path())
            .map(|path| if path.is_dir() { files(&path) } else { 1 })
            .sum()
    }
    files(&repository.join(kind))
}
