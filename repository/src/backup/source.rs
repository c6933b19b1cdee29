//! Reading the source: entries of a directory, their metadata, their extended attributes.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::names::Names;
use crate::tree::time::from_unix;
use crate::tree::{Node, NodeKind, mode_from_unix};

/// Reading must not change access times where that can be helped.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens an entry for reading, without following a symbolic link and without waiting for a fifo's writer.
fn open(dir: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = READ | flags;
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and root may ask for that.
        Err(Errno::PERM) => rustix::fs::openat(&dir, name, flags, Mode::empty()),
        result => result,
    }
}

pub(super) fn open_file(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    open(dir, name, OFlags::NONBLOCK)
}

pub(super) fn open_dir(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    open(dir, name, OFlags::DIRECTORY)
}

/// Opens a directory by a path that the caller of the backup gave: links in it are followed.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The names in a directory, sorted by their bytes.
pub(super) fn names(dir: impl AsFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn stat(dir: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The node of an entry as far as `stat` tells. `None` for a type that cannot be stored.
#[allow(
    clippy::unnecessary_cast,
    reason = "the types of stat's fields differ between architectures"
)]
pub(super) fn node(name: &[u8], stat: &Stat, names: &Names) -> Option<Node> {
    let (kind, mode) = mode_from_unix(stat.st_mode as u32)?;
    let mtime = from_unix(stat.st_mtime as i64, stat.st_mtime_nsec as i64);
    let is_file = kind == NodeKind::File;
    let has_links = matches!(
        kind,
        NodeKind::File | NodeKind::Symlink | NodeKind::Dev | NodeKind::CharDev
    );
    let is_device = matches!(kind, NodeKind::Dev | NodeKind::CharDev);
    Some(Node {
        name: name.to_vec(),
        mode,
        mtime,
        atime: mtime,
        ctime: from_unix(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        uid: stat.st_uid,
        gid: stat.st_gid,
        user: names.user_ref(stat.st_uid).to_owned(),
        group: names.group_ref(stat.st_gid).to_owned(),
        inode: stat.st_ino as u64,
        device_id: stat.st_dev as u64,
        size: if is_file { stat.st_size as u64 } else { 0 },
        links: if has_links { stat.st_nlink as u64 } else { 0 },
        link_target: Vec::new(),
        xattrs: Vec::new(),
        device: if is_device { stat.st_rdev as u64 } else { 0 },
        content: None,
        subtree: None,
        kind,
    })
}

pub(super) fn link_target(dir: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Extended attributes of an open file or directory, in the kernel's order.
pub(super) fn xattrs_of(fd: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = fd.as_fd();
    collect(
        |buffer| rustix::fs::flistxattr(fd, buffer),
        |name, buffer| rustix::fs::fgetxattr(fd, name, buffer),
    )
}

/// Extended attributes of an entry that is not to be opened: a link, a fifo, a device.
pub(super) fn xattrs_at(dir: impl AsFd, name: &CStr) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()));
    path.push(OsStr::from_bytes(name.to_bytes()));
    let path = &path;
    collect(
        |buffer| rustix::fs::llistxattr(path, buffer),
        |name, buffer| rustix::fs::lgetxattr(path, name, buffer),
    )
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let listed = match sized(list) {
        // As restic: no support, which a CIFS mount says in its own way.
        Err(Errno::NOTSUP | Errno::NODATA) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut xattrs = Vec::new();
    for name in listed.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        match sized(|buffer| get(name, buffer)) {
            Ok(value) => xattrs.push((name.to_bytes().to_vec(), value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => {
                let name = name.to_string_lossy();
                let error = io::Error::from(error);
                return Err(io::Error::new(
                    error.kind(),
                    format!("extended attribute {name}: {error}"),
                ));
            }
        }
    }
    Ok(xattrs)
}

/// Most lists and values fit a small buffer; asking for the size first would cost a call for each.
fn sized(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 256];
    match read(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    // 64 KiB is the kernel's limit for both.
    let mut large = vec![0; 64 << 10];
    let length = read(&mut large)?;
    large.truncate(length);
    Ok(large)
}
