//! A control group that bounds the memory of a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        // Version 1 of control groups has a hierarchy for each resource.
        let root = Path::new("/sys/fs/cgroup");
        let (root, file) = match root.join("memory").is_dir() {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => (root.to_owned(), "memory.max"),
        };
        let group = root.join(format!("jackline-bench-{}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
        let limit = Self { group };
        let file = limit.group.join(file);
        fs::write(&file, bytes.to_string()).with_context(|| format!("write {}", file.display()))?;
        Ok(limit)
    }

    /// The program, started within the limit.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(self.group.join("cgroup.procs"))
            .arg(program);
        command
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("bench: {} stays: {error}", self.group.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_more_is_killed() {
        let limit = MemoryLimit::new(32 << 20).unwrap();
        let run = |bytes: &str| {
            let mut command = limit.command(Path::new("dd"));
            let block = format!("bs={bytes}");
            let args = ["if=/dev/zero", "of=/dev/null", "count=1", "status=none"];
            command.args(args).arg(block).status().unwrap().success()
        };
        assert!(run("1M"));
        assert!(!run("128M"));
    }
}
