//! Where a cluster's files lie and the names it uses outside of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The kernel's limit on a Unix socket's path is 107 bytes; the longest of ours below the directory takes 36,
/// and 40 below that of another node.
const LONGEST_DIR: usize = 66;

/// Lies in every cluster's directory.
const MARK: &str = ".test-cluster";

/// The directory of one cluster. Everything the cluster keeps lies below it, and its names elsewhere (control groups) come
/// from it, so that clusters in different directories never meet.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    /// Unique on this machine, and the same in every run on the same directory.
    pub(crate) id: String,
}

impl Place {
    /// The place of a directory, which is made.
    pub(crate) fn at(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir
            .canonicalize()
            .with_context(|| format!("resolve {}", dir.display()))?;
        let path = dir
            .to_str()
            .with_context(|| format!("{} is not UTF-8", dir.display()))?;
        ensure!(
            path.len() <= LONGEST_DIR && !path.contains(char::is_whitespace),
            "the cluster's directory must have no space in its path and at most {LONGEST_DIR} bytes, \
             for the sockets in it: {path}",
        );
        let id = format!(
            "jackline-{}",
            &hex::encode(Sha256::digest(path.as_bytes()))[..8]
        );
        Ok(Self { dir, id })
    }

    /// Marks the directory as a cluster's, which may be removed.
    ///
    /// # Errors
    /// When it holds something and bears no mark.
    pub(crate) fn mark(&self) -> Result<()> {
        self.ensure_ours()?;
        self.write(
            MARK,
            "A test cluster keeps its files here and removes them.\n",
        )
        .map(drop)
    }

    /// Fails when the directory holds something that no cluster put there.
    pub(crate) fn ensure_ours(&self) -> Result<()> {
        let mut entries =
            std::fs::read_dir(&self.dir).with_context(|| format!("read {}", self.dir.display()))?;
        ensure!(
            entries.next().is_none() || self.path(MARK).exists(),
            "{} is not empty and not a test cluster's",
            self.dir.display(),
        );
        Ok(())
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.dir.join(inside)
    }

    /// Like [`Self::path`], as text for command lines and configuration files.
    pub(crate) fn text(&self, inside: &str) -> String {
        self.path(inside).display().to_string()
    }

    /// The file that the network namespace is mounted on.
    pub(crate) fn netns(&self) -> PathBuf {
        self.path("netns")
    }

    /// The kubelet's root directory.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.path("kubelet")
    }

    /// Writes a file below the directory, and the directories on the way.
    pub(crate) fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(inside);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("create {}", parent.display()))?;
        }
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
