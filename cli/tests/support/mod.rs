//! What tests of the command line share: a repository with a source beside it, and both programs on it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A repository and a source beside it.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(place.path("source/sub")).unwrap();
        fs::write(place.path("source/hello"), "hello\n").unwrap();
        fs::write(place.path("source/sub/zeros"), vec![0; 3 << 20]).unwrap();
        std::os::unix::fs::symlink("hello", place.path("source/link")).unwrap();
        fs::set_permissions(
            place.path("source/hello"),
            fs::Permissions::from_mode(0o640),
        )
        .unwrap();
        place
    }

    pub fn initialised() -> Place {
        let place = Place::new();
        place.ok(&["init"]);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("RESTIC_REPOSITORY", self.path("repository"))
            .env("RESTIC_PASSWORD", "secret")
            .env("RESTIC_CACHE_DIR", self.path("cache"))
            .env_remove("RESTIC_PASSWORD_FILE")
            .current_dir(self.path("source"))
            .stdin(Stdio::null());
        command
    }

    pub fn jackline(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_jackline"));
        command.arg("repository").args(args);
        command
    }

    /// Runs to success and gives what was printed.
    pub fn ok(&self, args: &[&str]) -> String {
        success(self.jackline(args).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(args);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    pub fn code(&self, args: &[&str]) -> i32 {
        self.jackline(args).output().unwrap().status.code().unwrap()
    }

    pub fn restic(&self, args: &[&str]) -> String {
        success(self.command("restic").args(args).output().unwrap())
    }
}

pub fn success(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub fn same_trees(expected: &Path, found: &Path) {
    let list = |root: &Path| {
        let mut command = Command::new("sh");
        let script = "find . -mindepth 1 -printf '%P %y %m %U %G %s %T@ %l\\n' | sort; \
                      find . -type f | sort | xargs sha256sum";
        success(
            command
                .args(["-c", script])
                .current_dir(root)
                .output()
                .unwrap(),
        )
    };
    assert_eq!(list(expected), list(found));
}
