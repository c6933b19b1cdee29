//! Writing below one directory and nowhere else: every call is relative to an open directory, no link is followed.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::report::Overwrite;
use crate::tree::{Node, NodeKind, permissions};

/// Only we can read what is half written.
const PRIVATE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

/// The directory that a snapshot is restored into.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    owners: Owners,
    overwrite: Overwrite,
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
    pub(super) fn open(
        path: &Path,
        owners: Option<bool>,
        overwrite: Overwrite,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let owners = match owners {
            Some(true) => Owners::Must,
            Some(false) => Owners::Leave,
            None if rustix::process::geteuid().is_root() => Owners::Must,
            None => Owners::Try,
        };
        Ok(Self {
            root,
            owners,
            overwrite,
        })
    }

    /// Opens a directory by its path below the target. Fails where a link is on the way.
    pub(super) fn dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if path.as_os_str().is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 0);
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            // An old kernel, or a seccomp profile that does not know the call: one step after the other.
            Err(Errno::NOSYS | Errno::PERM) => {
                let mut dir = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
                for name in path.iter() {
                    dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
                }
                Ok(dir)
            }
            result => result,
        }
    }

    /// Makes a directory, or takes the one that is there.
    pub(super) fn make_dir(&self, dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(PRIVATE_DIR);
        match rustix::fs::mkdirat(&dir, name, mode) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
        let found = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Ok(());
        }
        if self.overwrite == Overwrite::Never {
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

    /// Opens again what [`Target::create`] made.
    pub(super) fn reopen(&self, dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(dir, name, flags, Mode::empty())
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
            // An empty directory gives way, a full one is somebody's data.
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?,
            result => result?,
        }
        make().map(|()| Made::Yes)
    }

    /// Owner, mode, extended attributes, times: each may undo the one after it, in no other order.
    pub(super) fn dress(&self, fd: impl AsFd, node: &Node) -> io::Result<()> {
        let fd = fd.as_fd();
        self.own(|uid, gid| rustix::fs::fchown(fd, uid, gid), node)?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(permissions(node.mode)))?;
        for (name, value) in &node.xattrs {
            let name = CString::new(&**name)?;
            rustix::fs::fsetxattr(fd, &*name, value, XattrFlags::empty())
                .map_err(|errno| about_xattr(&name, errno))?;
        }
        Ok(rustix::fs::futimens(fd, &times(node))?)
    }

    /// The same for what is not to be opened.
    fn dress_at(&self, dir: BorrowedFd<'_>, name: &CStr, node: &Node) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        self.own(
            |uid, gid| rustix::fs::chownat(dir, name, uid, gid, nofollow),
            node,
        )?;
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        path.push(OsStr::from_bytes(name.to_bytes()));
        if node.kind != NodeKind::Symlink {
            // There is no chmod that does not follow links; through a handle there is nothing left to follow.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            let found = FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
            if found == FileType::Symlink {
                return Err(Errno::LOOP.into());
            }
            let handle_path = format!("/proc/self/fd/{}", handle.as_raw_fd());
            rustix::fs::chmod(handle_path, Mode::from_raw_mode(permissions(node.mode)))?;
        }
        for (attribute, value) in &node.xattrs {
            let attribute = CString::new(&**attribute)?;
            rustix::fs::lsetxattr(&path, &*attribute, value, XattrFlags::empty())
                .map_err(|errno| about_xattr(&attribute, errno))?;
        }
        Ok(rustix::fs::utimensat(dir, name, &times(node), nofollow)?)
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
        match chown(Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid))) {
            Err(Errno::PERM) if self.owners == Owners::Try => Ok(()),
            result => result,
        }
    }

    /// Makes what was written durable: a restore that is reported done survives a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }
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
