//! Entries that were listed and then not found. One that is listed no more went before it was read. One that is still listed is there,
//! whatever the system says of it (a damaged directory, a file server that lost a file), and it is not in the snapshot. Of NFS that is not
//! known: its client lists from its memory, for up to a minute, what others have removed.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dirs::OpenDir;
use super::{Engine, source};
use crate::trail::Trail;

/// So many directories are kept open for a second look at their end; in the others it is taken at once.
const KEPT_OPEN: usize = 64;
/// A name that comes and goes all the time is listed now and not found then: one that is there is so every time.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// What a directory no longer had when it was asked for.
#[derive(Debug)]
pub(super) struct Vanished {
    fd: Arc<OwnedFd>,
    names: Vec<CString>,
}

/// Notes an entry that was not found, for a look at the directory's end.
pub(super) fn note(engine: &Engine, dir: &OpenDir, fd: &Arc<OwnedFd>, name: &CStr) {
    let names = vec![name.to_owned()];
    {
        let mut vanished = dir.vanished.lock();
        if let Some(vanished) = &mut *vanished {
            vanished.names.extend(names);
            return;
        }
        if engine.looking.fetch_add(1, Ordering::Relaxed) < KEPT_OPEN {
            let fd = Arc::clone(fd);
            *vanished = Some(Vanished { fd, names });
            return;
        }
    }
    engine.looking.fetch_sub(1, Ordering::Relaxed);
    judge(engine, &dir.path, fd, names);
}

/// Says what became of the entries that were noted.
pub(super) fn end(engine: &Engine, dir: &OpenDir) {
    let Some(Vanished { fd, names }) = dir.vanished.lock().take() else {
        return;
    };
    judge(engine, &dir.path, &fd, names);
    engine.looking.fetch_sub(1, Ordering::Relaxed);
}

fn judge(engine: &Engine, dir: &Trail, fd: &OwnedFd, names: Vec<CString>) {
    let list = || match source::names(fd) {
        // Gone itself.
        Err(Errno::NOENT) => Ok(Vec::new()),
        listed => listed,
    };
    let mut gone = |name: &CStr| {
        engine.figures.vanished.fetch_add(1, Ordering::Relaxed);
        engine.warning(dir, name.to_bytes(), "vanished before it was read");
    };
    if is_nfs(fd) {
        names.iter().for_each(|name| gone(name));
        return;
    }
    match still_denied(names, list, |name| is_denied(fd, name), &mut gone) {
        Ok(denied) => {
            for name in denied {
                let message = "the system lists it, and says that it does not exist";
                engine.error(dir, name.to_bytes(), message);
            }
        }
        Err(errno) => {
            let error = std::io::Error::from(errno);
            let message = format!("entries were not found, and it cannot be listed again: {error}");
            engine.error(dir, b"", &message);
        }
    }
}

fn is_nfs(fd: &OwnedFd) -> bool {
    let system = rustix::fs::fstatfs(fd);
    system.is_ok_and(|system| system.f_type == rustix::fs::NFS_SUPER_MAGIC)
}

/// The names that are listed and denied at each of several looks. The others are `gone`.
fn still_denied(
    mut names: Vec<CString>,
    list: impl Fn() -> Result<Vec<CString>, Errno>,
    is_denied: impl Fn(&CStr) -> bool,
    gone: &mut impl FnMut(&CStr),
) -> Result<Vec<CString>, Errno> {
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let listed = list()?;
        names.retain(|name| {
            let denied = listed.binary_search(name).is_ok() && is_denied(name);
            if !denied {
                gone(name);
            }
            denied
        });
        if names.is_empty() {
            break;
        }
    }
    Ok(names)
}

/// Whether the system says that there is no such entry.
fn is_denied(fd: &OwnedFd, name: &CStr) -> bool {
    let kind = match source::stat(fd, name) {
        Err(errno) => return errno == Errno::NOENT,
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
    };
    let opened = match kind {
        FileType::RegularFile => source::open_file(fd, name).map(drop),
        FileType::Directory => source::open_dir(fd, name).map(drop),
        FileType::Symlink => source::link_target(fd, name).map(drop),
        _ => Ok(()),
    };
    opened == Err(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn names(of: &[&CStr]) -> Vec<CString> {
        of.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_is_listed_and_denied_is_there_and_the_rest_went() {
        let gone = RefCell::new(Vec::new());
        let denied = still_denied(
            names(&[c"denied", c"went", c"new"]),
            || Ok(names(&[c"denied", c"new", c"other"])),
            |name| name != c"new",
            &mut |name| gone.borrow_mut().push(name.to_owned()),
        );
        assert_eq!(denied.unwrap(), names(&[c"denied"]));
        assert_eq!(gone.into_inner(), names(&[c"went", c"new"]));
    }

    #[test]
    fn a_name_that_comes_and_goes_is_no_error() {
        let looks = Cell::new(0);
        let gone = Cell::new(0);
        let denied = still_denied(
            names(&[c"lock"]),
            || {
                looks.set(looks.get() + 1);
                let listed = looks.get() < 3;
                Ok(if listed {
                    names(&[c"lock"])
                } else {
                    Vec::new()
                })
            },
            |_| true,
            &mut |_| gone.set(gone.get() + 1),
        );
        assert_eq!((denied.unwrap().len(), gone.get()), (0, 1));
    }

    #[test]
    fn entries_that_are_there_are_not_denied() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let fd = source::open_root(dir.path()).unwrap();
        for name in [c"file", c"dir", c"link"] {
            assert!(!is_denied(&fd, name), "{name:?}");
        }
        assert!(is_denied(&fd, c"none"));
    }
}
