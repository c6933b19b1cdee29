//! Writing below one directory and nowhere else: every call is relative to an open directory, no link is followed.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::report::{Overwrite, RestoreOptions};
use crate::trail::{self, Trail};
use crate::tree::{Node, NodeKind, permissions, time};

/// Only we can read what is half written.
const PRIVATE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;
/// How a directory below the target is opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);
/// So long a path the system takes at once.
const MAX_PATH: usize = 4095;
/// No path leads out of the directory it is looked up in, nor through a link.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// The directory that a snapshot is restored into.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    owners: Owners,
    overwrite: Overwrite,
    delete: bool,
}

/// What is to be done with an entry, in view of what is in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    /// The content is there; only the metadata is to be set.
    Dress,
    /// What is there stays.
    Keep,
}

/// Whether owners are set, and what it means that they cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owners {
    Must,
    Try,
    Leave,
}

/// What became of an entry that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    Yes,
    /// There is one, and it is to be left alone.
    Kept,
}

impl Target {
    /// Opens the target; makes it if it is missing.
    pub(super) fn open(path: &Path, options: &RestoreOptions) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let owners = match options.owners {
            Some(true) => Owners::Must,
            Some(false) => Owners::Leave,
            None if rustix::process::geteuid().is_root() => Owners::Must,
            None => Owners::Try,
        };
        Ok(Self {
            root,
            owners,
            overwrite: options.overwrite,
            delete: options.delete,
        })
    }

    /// Opens a directory below the target. Fails where a link is on the way.
    pub(super) fn dir(&self, trail: &Trail) -> Result<OwnedFd, Errno> {
        let path = trail.path();
        let mut rest = path.as_os_str().as_bytes();
        let mut dir = None;
        while !rest.is_empty() {
            let mut end = rest.len();
            if end > MAX_PATH {
                let slash = rest[..=MAX_PATH].iter().rposition(|byte| *byte == b'/');
                end = slash.unwrap_or(end);
            }
            let (part, after) = rest.split_at(end);
            let from = dir.as_ref().unwrap_or(&self.root).as_fd();
            dir = Some(beneath(from, Path::new(OsStr::from_bytes(part)))?);
            rest = after.strip_prefix(b"/").unwrap_or(after);
        }
        dir.map_or_else(|| rustix::io::fcntl_dupfd_cloexec(&self.root, 0), Ok)
    }

    /// What [`Overwrite`] says of an entry.
    pub(super) fn verdict(&self, dir: impl AsFd, name: &CStr, node: &Node) -> Verdict {
        if self.overwrite == Overwrite::Always {
            return Verdict::Write;
        }
        // What cannot be looked at cannot be made either: that says why.
        let Ok(found) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Verdict::Write;
        };
        match self.overwrite {
            Overwrite::Never => Verdict::Keep,
            Overwrite::IfNewer if node.mtime <= mtime(&found) => Verdict::Keep,
            Overwrite::IfChanged if is_unchanged(&found, node) => Verdict::Dress,
            _ => Verdict::Write,
        }
    }

    /// Sets the metadata of a file whose content is right. `false`: it is another one by now, or cannot be opened.
    pub(super) fn dress_unchanged(
        &self,
        dir: impl AsFd,
        name: &CStr,
        node: &Node,
    ) -> io::Result<bool> {
        let Ok(file) = self.reopen(dir, name, OFlags::RDONLY) else {
            return Ok(false);
        };
        if !is_unchanged(&rustix::fs::fstat(&file)?, node) {
            return Ok(false);
        }
        self.dress(&file, node)?;
        Ok(true)
    }

    /// Makes a directory, or takes the one that is there.
    pub(super) fn make_dir(&self, dir: impl AsFd, name: &CStr, node: &Node) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(PRIVATE_DIR);
        match rustix::fs::mkdirat(&dir, name, mode) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
        let found = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Ok(());
        }
        let keep = match self.overwrite {
            Overwrite::Never => true,
            Overwrite::IfNewer => node.mtime <= mtime(&found),
            Overwrite::Always | Overwrite::IfChanged => false,
        };
        if keep {
            return Err(Errno::NOTDIR);
        }
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
        rustix::fs::mkdirat(&dir, name, mode)
    }

    /// Makes an empty file and opens it for writing. `None`: there is one that is to be kept.
    pub(super) fn create(&self, dir: impl AsFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = dir.as_fd();
        let mut file = None;
        let made = self.make(dir, name, || {
            file = Some(rustix::fs::openat(
                dir,
                name,
                flags,
                Mode::from_raw_mode(PRIVATE),
            )?);
            Ok(())
        })?;
        Ok(file.filter(|_| made == Made::Yes))
    }

    /// Opens a regular file that is there. The caller makes sure that it is the one meant.
    pub(super) fn reopen(
        &self,
        dir: impl AsFd,
        name: &CStr,
        access: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => Ok(file),
            _ => Err(Errno::INVAL),
        }
    }

    /// The names in a directory that may be there already.
    pub(super) fn names(&self, trail: &Trail) -> Result<Vec<CString>, Errno> {
        match self.dir(trail) {
            Ok(dir) => names(&dir),
            // Whatever is in its place holds no names.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    /// Removes an entry and all that is below it; mounted file systems are not entered. Returns how many there were.
    pub(super) fn remove_all(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<u64, Errno> {
        // Of the directories above only what is needed to find back to them: they may be many.
        let mut open: Vec<Emptied> = Vec::new();
        let mut here = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
        let mut next = Some(name.to_owned());
        let mut removed = 0;
        while let Some(name) = next.take() {
            match rustix::fs::unlinkat(&here, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    let inner = unmounted(&here, &name)?;
                    open.push(Emptied {
                        name,
                        above: trail::identity(&here)?,
                        left: names(&inner)?.into_iter(),
                    });
                    here = inner;
                }
                Err(Errno::NOENT) => {}
                result => {
                    result?;
                    removed += 1;
                }
            }
            // What is empty by now goes too.
            while let Some(last) = open.last_mut() {
                next = last.left.next();
                if next.is_some() {
                    break;
                }
                here = trail::above(&here, last.above)?;
                rustix::fs::unlinkat(&here, &last.name, AtFlags::REMOVEDIR)?;
                removed += 1;
                open.pop();
            }
        }
        Ok(removed)
    }

    /// Removes a file that did not become whole.
    pub(super) fn remove(&self, dir: impl AsFd, name: &CStr) {
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }

    /// Makes a link, fifo or device, with its metadata.
    pub(super) fn make_other(&self, dir: impl AsFd, name: &CStr, node: &Node) -> io::Result<Made> {
        let dir = dir.as_fd();
        let private = Mode::from_raw_mode(PRIVATE);
        let made = self.make(dir, name, || match node.kind {
            NodeKind::Symlink => {
                let target = CString::new(&*node.link_target).map_err(|_| Errno::INVAL)?;
                rustix::fs::symlinkat(&*target, dir, name)
            }
            NodeKind::Fifo => rustix::fs::mknodat(dir, name, FileType::Fifo, private, 0),
            NodeKind::Dev => {
                rustix::fs::mknodat(dir, name, FileType::BlockDevice, private, node.device)
            }
            NodeKind::CharDev => {
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, private, node.device)
            }
            _ => Err(Errno::INVAL),
        })?;
        if made == Made::Yes {
            self.dress_at(dir, name, node)?;
        }
        Ok(made)
    }

    /// Makes a second name for a file of this restore.
    pub(super) fn link(
        &self,
        old: (BorrowedFd<'_>, &CStr),
        new: (BorrowedFd<'_>, &CStr),
    ) -> Result<Made, Errno> {
        self.make(new.0, new.1, || {
            rustix::fs::linkat(old.0, old.1, new.0, new.1, AtFlags::empty())
        })
    }

    /// Runs `make`, which must fail where there is something, and clears its place if that is wanted.
    fn make(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        mut make: impl FnMut() -> Result<(), Errno>,
    ) -> Result<Made, Errno> {
        match make() {
            Err(Errno::EXIST) if self.overwrite == Overwrite::Never => return Ok(Made::Kept),
            Err(Errno::EXIST) => {}
            result => return result.map(|()| Made::Yes),
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            // An empty directory gives way; a full one is somebody's data, unless that is to be deleted.
            Err(Errno::ISDIR) if self.delete => {
                self.remove_all(dir, name)?;
            }
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?,
            result => result?,
        }
        make().map(|()| Made::Yes)
    }

    /// Owner, mode, extended attributes, times: each may undo the one after it, in no other order. Where one fails, the
    /// others are set all the same; the first error is returned.
    pub(super) fn dress(&self, fd: impl AsFd, node: &Node) -> io::Result<()> {
        let fd = fd.as_fd();
        let owned = self.own(|uid, gid| rustix::fs::fchown(fd, uid, gid), node);
        let mode = rustix::fs::fchmod(fd, mode(node, owned));
        let xattrs = set_xattrs(node, |name, value| {
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        });
        let times = rustix::fs::futimens(fd, &times(node));
        self.tolerated(owned).and(mode)?;
        xattrs?;
        Ok(times?)
    }

    /// The same for what is not to be opened.
    fn dress_at(&self, dir: BorrowedFd<'_>, name: &CStr, node: &Node) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.own(
            |uid, gid| rustix::fs::chownat(dir, name, uid, gid, nofollow),
            node,
        );
        let mode = match node.kind {
            NodeKind::Symlink => Ok(()),
            _ => chmod_at(dir, name, mode(node, owned)),
        };
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        path.push(OsStr::from_bytes(name.to_bytes()));
        let xattrs = set_xattrs(node, |name, value| {
            rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty())
        });
        let times = rustix::fs::utimensat(dir, name, &times(node), nofollow);
        self.tolerated(owned).and(mode)?;
        xattrs?;
        Ok(times?)
    }

    fn own(
        &self,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
        node: &Node,
    ) -> Result<(), Errno> {
        if self.owners == Owners::Leave {
            return Ok(());
        }
        // The largest number means "leave it" to the kernel, and is nobody's.
        if node.uid == u32::MAX || node.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        chown(Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))
    }

    fn tolerated(&self, owned: Result<(), Errno>) -> Result<(), Errno> {
        match owned {
            Err(Errno::PERM) if self.owners == Owners::Try => Ok(()),
            owned => owned,
        }
    }

    /// Makes what was written durable: a restore that is reported done survives a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

/// The same size and time. A file with several names may have one outside the target: it is replaced, not changed.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types of stat's fields differ between architectures"
)]
fn is_unchanged(found: &Stat, node: &Node) -> bool {
    node.kind == NodeKind::File
        && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && found.st_size as u64 == node.size
        && found.st_nlink == 1
        && mtime(found) == node.mtime
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the types of stat's fields differ between architectures"
)]
fn mtime(found: &Stat) -> Timestamp {
    time::from_unix(found.st_mtime as i64, found.st_mtime_nsec as i64)
}

fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A directory that is being removed.
struct Emptied {
    name: CString,
    /// What the one above is known by.
    above: (u64, u64),
    left: std::vec::IntoIter<CString>,
}

/// Opens a directory by a path of any number of names.
fn beneath(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat2(dir, path, DIRECTORY, Mode::empty(), BENEATH) {
        // An old kernel, or a seccomp profile that does not know the call: one step after the other.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
            for name in path.iter() {
                dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
            }
            Ok(dir)
        }
        result => result,
    }
}

/// Opens a directory unless another file system is mounted there.
fn unmounted(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let here = BENEATH | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, DIRECTORY, Mode::empty(), here) {
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()),
        result => result,
    }
}

/// Programs of somebody else must not run as whoever they belong to now.
fn mode(node: &Node, owned: Result<(), Errno>) -> Mode {
    let mode = Mode::from_raw_mode(permissions(node.mode));
    match owned {
        Ok(()) => mode,
        Err(_) => mode.difference(Mode::SUID | Mode::SGID),
    }
}

/// There is no chmod that does not follow links; through a handle there is nothing left to follow.
fn chmod_at(dir: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let found = FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
    if found == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), mode)
}

/// Sets all that can be set.
fn set_xattrs(node: &Node, set: impl Fn(&CStr, &[u8]) -> Result<(), Errno>) -> io::Result<()> {
    let each = node.xattrs.iter().map(|(name, value)| {
        let name = CString::new(&**name)?;
        set(&name, value).map_err(|errno| about_xattr(&name, errno))
    });
    each.fold(Ok(()), io::Result::and)
}

fn about_xattr(name: &CStr, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    let name = name.to_string_lossy();
    io::Error::new(error.kind(), format!("extended attribute {name}: {error}"))
}

fn times(node: &Node) -> Timestamps {
    Timestamps {
        last_access: timespec(node.atime),
        last_modification: timespec(node.mtime),
    }
}

fn timespec(time: Timestamp) -> Timespec {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    }
}
