//! Directories as deep as a file system lets anybody make them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use jackline_repository::{
    BackupRequest, BackupSummary, NoProgress, RepairOptions, Repository, RestoreOptions,
    RestoreSummary,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Restic, init, scratch};
use tokio_util::sync::CancellationToken;

/// Far fewer descriptors than directories.
const DESCRIPTORS: u64 = 256;
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

struct Place {
    dir: tempfile::TempDir,
    repository: Repository,
    never: CancellationToken,
}

impl Place {
    async fn new() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let few = Rlimit {
            current: Some(DESCRIPTORS),
            ..limit
        };
        setrlimit(Resource::Nofile, few).unwrap();
        let dir = scratch();
        fs::create_dir(dir.path().join("source")).unwrap();
        let repository = init(&dir.path().join("repo")).await;
        Self {
            dir,
            repository,
            never: CancellationToken::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn backup(&self) -> BackupSummary {
        let request = BackupRequest::contents(self.path("source"), "h");
        let made = self.repository.backup(request, &NoProgress, &self.never);
        made.await.unwrap()
    }

    async fn restore(&self, made: &BackupSummary, options: RestoreOptions) -> RestoreSummary {
        let (id, target) = (made.snapshot.unwrap(), self.path("target"));
        let restored = self
            .repository
            .restore(&id, &target, options, &NoProgress, &self.never);
        restored.await.unwrap()
    }

    /// Neither is any directory damaged for being deep.
    async fn assert_sound(&self) {
        support::ours::check(&self.repository).await;
        let options = RepairOptions {
            dry_run: true,
            ..RepairOptions::default()
        };
        let repaired = self
            .repository
            .repair_snapshots(&[], options, &NoProgress, &self.never);
        let repaired = repaired.await.unwrap();
        assert!(repaired.problems.is_empty(), "{repaired:?}");
        assert!(repaired.repaired.is_empty(), "{repaired:?}");
    }
}

impl Drop for Place {
    /// `rm` can do it.
    fn drop(&mut self) {
        for name in ["source", "target"] {
            let _ = Command::new("rm").arg("-rf").arg(self.path(name)).status();
        }
    }
}

fn open(dir: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, dir, FLAGS, Mode::empty()).unwrap()
}

/// Makes directories of this name in each other, with so many files in each, all of one time.
fn nest(root: &Path, name: &CStr, depth: usize, files: usize) {
    let time = Timespec {
        tv_sec: 1_234_567_890,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let mut above = open(root);
    for level in 0..depth {
        rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o750)).unwrap();
        let dir = rustix::fs::openat(&above, name, FLAGS, Mode::empty()).unwrap();
        for file in 0..files {
            let path = format!("/proc/self/fd/{}/{file}", dir.as_raw_fd());
            fs::write(path, format!("{level} {file}")).unwrap();
        }
        rustix::fs::futimens(&above, &times).unwrap();
        above = dir;
    }
    rustix::fs::futimens(&above, &times).unwrap();
}

/// What directories of this name hold that lie in each other, from the outermost on.
fn nested(root: &Path, name: &CStr, files: usize) -> Vec<(u32, i64, Vec<Vec<u8>>)> {
    let mut dir = open(root);
    let mut found = Vec::new();
    loop {
        dir = match rustix::fs::openat(&dir, name, FLAGS, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return found,
            Err(errno) => panic!("{errno}"),
        };
        let stat = rustix::fs::statat(&dir, c"", AtFlags::EMPTY_PATH).unwrap();
        let files = (0..files)
            .map(|file| fs::read(format!("/proc/self/fd/{}/{file}", dir.as_raw_fd())).unwrap());
        found.push((stat.st_mode, stat.st_mtime, files.collect()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_directories_in_each_other_come_back() {
    // With files beside them the queue is full, and who walks goes down on its own.
    for files in [0, 3] {
        let place = Place::new().await;
        nest(&place.path("source"), c"z", 2000, files);
        let made = place.backup().await;
        assert_eq!((made.errors.clone(), made.dirs), (vec![], 2000));
        let again = place.backup().await;
        assert_eq!((again.errors.clone(), again.tree), (vec![], made.tree));
        Restic::new(&place.path("repo")).check();
        place.assert_sound().await;

        let restored = place.restore(&made, RestoreOptions::default()).await;
        assert_eq!((restored.errors, restored.dirs), (vec![], 2000));
        let expected = nested(&place.path("source"), c"z", files);
        assert_eq!(expected.len(), 2000);
        assert!(nested(&place.path("target"), c"z", files) == expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_longer_than_the_system_takes_comes_back_and_goes() {
    let place = Place::new().await;
    let name = format!("{}\0", "n".repeat(255));
    let name = CStr::from_bytes_with_nul(name.as_bytes()).unwrap();
    nest(&place.path("source"), name, 100, 1);
    let made = place.backup().await;
    assert_eq!((made.errors.clone(), made.dirs), (vec![], 100));
    let verify = RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    };
    let restored = place.restore(&made, verify).await;
    assert_eq!((restored.errors, restored.verified), (vec![], 100));
    let expected = nested(&place.path("source"), name, 1);
    assert_eq!(expected.len(), 100);
    assert!(nested(&place.path("target"), name, 1) == expected);

    // What is not in the snapshot goes, however deep it is.
    nest(&place.path("target"), c"extra", 2000, 1);
    let delete = RestoreOptions {
        delete: true,
        ..RestoreOptions::default()
    };
    let restored = place.restore(&made, delete).await;
    assert_eq!((restored.errors, restored.deleted), (vec![], 4000));
    assert!(nested(&place.path("target"), c"extra", 1).is_empty());
    assert!(nested(&place.path("target"), name, 1) == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_too_deep_is_counted_and_named_and_the_rest_comes_back() {
    let place = Place::new().await;
    nest(&place.path("source"), c"dir", 4100, 0);
    let made = place.backup().await;
    assert_eq!((made.error_count, made.dirs), (1, 4096));
    let problem = &made.errors[0];
    assert!(problem.message.contains("4096"), "{problem:?}");
    assert!(problem.path.len() < 5000 && problem.path.ends_with("/dir/dir"));
    place.assert_sound().await;
    let restored = place.restore(&made, RestoreOptions::default()).await;
    assert_eq!((restored.errors, restored.dirs), (vec![], 4096));
    assert_eq!(nested(&place.path("target"), c"dir", 0).len(), 4096);
}
