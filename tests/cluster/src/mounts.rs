//! The machine's mounts, as `/proc/self/mountinfo` lists them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// The file system's type.
    pub(crate) kind: String,
}

/// All mounts, in the order they were made.
pub(crate) fn all() -> Result<Vec<Mount>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    Ok(table.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?.replace("\\040", " ");
    Some(Mount {
        point: point.into(),
        kind: after.split(' ').next()?.to_owned(),
    })
}

/// Mount points at or below a directory.
pub(crate) fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = all()?.into_iter().map(|mount| mount.point);
    Ok(mounts.filter(|point| point.starts_with(dir)).collect())
}

/// Unmounts everything at or below a directory, the last mount first.
pub(crate) fn unmount_below(dir: &Path) -> Result<()> {
    // A mount may be there twice, and unmounting one of a shared pair takes the other with it.
    for _ in 0..8 {
        let points = below(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    let left = below(dir)?;
    anyhow::ensure!(left.is_empty(), "mounts that cannot be undone: {left:?}");
    Ok(())
}

/// Makes a directory a mount whose later mounts show up wherever it is mounted too.
pub(crate) fn share(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    mount_bind(dir, dir).with_context(|| format!("bind {} on itself", dir.display()))?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change(dir, shared).with_context(|| format!("share the mount {}", dir.display()))
}
