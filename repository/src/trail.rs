//! Directories on the way down: where they are, how deep they may lie, and the way back up. Whoever fills a volume or a
//! repository decides how deep its directories lie: no walk may recurse, nor keep the path or a descriptor of each.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// So many directories may lie in each other. What lies deeper is named as a problem: with each a walk keeps a little more.
pub(crate) const MAX_DEPTH: usize = 4096;
/// So many bytes of a path are shown: as many as a system takes.
const SHOWN: usize = 4096;

/// A directory by its name in the one above: many deep ones together need no more room than their names.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    above: Option<Arc<Trail>>,
    name: Vec<u8>,
    depth: usize,
}

impl Trail {
    /// Where trails begin. `path` comes before everything below.
    pub(crate) fn root(path: &str) -> Arc<Self> {
        Arc::new(Self {
            above: None,
            name: path.into(),
            depth: 0,
        })
    }

    pub(crate) fn below(self: &Arc<Self>, name: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            above: Some(Arc::clone(self)),
            name: name.to_vec(),
            depth: self.depth + 1,
        })
    }

    /// How many directories this one lies in.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn path(&self) -> PathBuf {
        let mut names = Vec::with_capacity(self.depth + 1);
        let mut next = Some(self);
        while let Some(trail) = next {
            names.push(OsStr::from_bytes(&trail.name));
            next = trail.above.as_deref();
        }
        names.into_iter().rev().collect()
    }

    /// The path of an entry, for people.
    pub(crate) fn show(&self, name: &[u8]) -> String {
        shown(&self.path().join(OsStr::from_bytes(name)))
    }
}

/// One after the other: left to itself each would drop the one above from within its own drop.
impl Drop for Trail {
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(trail) = above {
            above = Arc::into_inner(trail).and_then(|mut trail| trail.above.take());
        }
    }
}

/// A path for people: of a very long one the end.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let cut = text.len().saturating_sub(SHOWN);
    match (cut..=text.len()).find(|at| text.is_char_boundary(*at)) {
        Some(at) if at > 0 => format!("…{}", &text[at..]),
        _ => text.into_owned(),
    }
}

/// What an open file or directory is known by.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types of stat's fields differ between architectures"
)]
pub(crate) fn identity(fd: impl AsFd) -> Result<(u64, u64), Errno> {
    let found = rustix::fs::fstat(fd)?;
    Ok((found.st_dev as u64, found.st_ino as u64))
}

/// Opens the directory above an open one, if it is still the one that is known.
pub(crate) fn above(below: impl AsFd, known: (u64, u64)) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(below, c"..", flags, Mode::empty())?;
    match identity(&above)? == known {
        true => Ok(above),
        false => Err(Errno::STALE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_a_path() {
        let root = Trail::root("");
        assert_eq!(root.path(), Path::new(""));
        assert_eq!(root.show(b"a"), "a");
        let b = root.below(b"a").below(b"b\xff");
        assert_eq!(b.path(), Path::new(OsStr::from_bytes(b"a/b\xff")));
        assert_eq!(b.show(b"c"), "a/b\u{fffd}/c");
        assert_eq!(b.depth(), 2);
        assert_eq!(Trail::root("/").below(b"a").path(), Path::new("/a"));
    }

    #[test]
    fn of_a_very_long_path_the_end_is_shown() {
        let long = "ä".repeat(3000);
        let shown = shown(Path::new(&long));
        assert_eq!(shown, format!("…{}", "ä".repeat(2048)));
    }

    #[test]
    fn a_long_trail_goes_without_recursion() {
        let mut trail = Trail::root("");
        for _ in 0..1_000_000 {
            trail = trail.below(b"d");
        }
        drop(trail);
    }
}
