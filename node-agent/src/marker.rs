//! The done-file of a restore: `.velero/<restore UID>` in the volume (velero-compat §6.4).
//!
//! It is written when all data is on stable storage, and removed when the last pod that waits for it has gone on. The volume belongs
//! to a workload that may be hostile and write into it meanwhile: everything below its root is reached from the handle of the directory
//! it is in, and no symbolic link is followed.

use std::{
    ffi::{CStr, CString},
    fs::{File, FileTimes},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use jackline_crds::names::RESTORE_DONE_DIR;
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fchmod, fsync, mkdirat, openat, renameat, syncfs, unlinkat},
    io::Errno,
};

/// Names that are read from a directory at a time.
const BATCH: usize = 1024;
/// Most entries that are cleared away; a done-file is one.
const MOST: u64 = 1_000_000;

/// Whether this can be a file name that stays where it is put.
fn is_uid(uid: &str) -> bool {
    !uid.is_empty() && uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Flushes the volume, then says that its data is complete. What an older restore or the snapshot itself left there goes first.
pub(crate) fn write(volume: &Path, restore_uid: &str) -> io::Result<()> {
    if !is_uid(restore_uid) {
        return Err(io::Error::other(format!(
            "restore UID {restore_uid:?} cannot be a file name"
        )));
    }
    let root = File::open(volume)?;
    syncfs(&root)?;
    let times = times(&root)?;
    clear(&root)?;
    mkdirat(&root, RESTORE_DONE_DIR, Mode::from(0o755))?;
    let dir = open_directory(&root, RESTORE_DONE_DIR)?;
    let part = format!("{restore_uid}.part");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&dir, &part, flags, Mode::from(0o644))?;
    // Readable for restore-wait under any user, whatever our umask is.
    fchmod(&file, Mode::from(0o644))?;
    fchmod(&dir, Mode::from(0o755))?;
    fsync(&file)?;
    root.set_times(times)?;
    root.sync_all()?;
    // From here on restore-wait may remove the directory at any moment.
    renameat(&dir, &part, &dir, restore_uid)?;
    Ok(fsync(&dir)?)
}

/// Times of the volume's root: the marker comes and goes without a trace.
fn times(root: &File) -> io::Result<FileTimes> {
    let meta = root.metadata()?;
    Ok(FileTimes::new()
        .set_accessed(meta.accessed()?)
        .set_modified(meta.modified()?))
}

/// Whether the done-file of this restore is there.
pub(crate) fn exists(volume: &Path, restore_uid: &str) -> bool {
    is_uid(restore_uid)
        && volume
            .join(RESTORE_DONE_DIR)
            .join(restore_uid)
            .symlink_metadata()
            .is_ok_and(|meta| meta.is_file())
}

/// Removes the done-file of this restore, and its directory with it unless another restore has its own there.
pub(crate) fn remove(volume: &Path, restore_uid: &str) -> io::Result<()> {
    let root = File::open(volume)?;
    let times = times(&root)?;
    let dir = match open_directory(&root, RESTORE_DONE_DIR) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match unlinkat(&dir, restore_uid, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(&root, RESTORE_DONE_DIR, AtFlags::REMOVEDIR) {
        Ok(()) => root.set_times(times),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Removes whatever has the name of the directory of done-files.
///
/// A tenant may have nested directories in it as deep as they like: each is lifted to the top before it is emptied, so neither the stack
/// nor the number of open files grows with the depth.
fn clear(root: &File) -> io::Result<()> {
    let top = match open_directory(root, RESTORE_DONE_DIR) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        // A file or a link, which goes by itself.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Ok(unlinkat(root, RESTORE_DONE_DIR, AtFlags::empty())?);
        }
        Err(error) => return Err(error.into()),
    };
    let (mut entries, mut lifted) = (0, 0);
    let mut count = || {
        entries += 1;
        let why = || format!("there are more than {MOST} entries in {RESTORE_DONE_DIR}: remove it");
        (entries <= MOST)
            .then_some(())
            .ok_or_else(|| io::Error::other(why()))
    };
    loop {
        let names = first_names(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            count()?;
            if is_unlinked(&top, &name)? {
                continue;
            }
            let inner = open_directory(&top, &name)?;
            loop {
                let names = first_names(&inner)?;
                if names.is_empty() {
                    break;
                }
                for name in names {
                    count()?;
                    if !is_unlinked(&inner, &name)? {
                        lift(&inner, &name, &top, &mut lifted)?;
                    }
                }
            }
            unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(unlinkat(root, RESTORE_DONE_DIR, AtFlags::REMOVEDIR)?)
}

fn first_names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if ![c".", c".."].contains(&name) {
            names.push(name.to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

/// Whether what has this name is gone now; a directory is not.
fn is_unlinked(parent: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // What unlinking a directory gives depends on the file system.
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Moves a directory to the top, under a name that is free.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, lifted: &mut u64) -> io::Result<()> {
    loop {
        *lifted += 1;
        match renameat(from, name, top, format!("{lifted}")) {
            Ok(()) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) if *lifted < MOST => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn written_once_complete_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), "x").unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let root = std::fs::File::open(dir.path()).unwrap();
        root.set_times(FileTimes::new().set_accessed(then).set_modified(then))
            .unwrap();
        assert!(!exists(dir.path(), "r1"));
        write(dir.path(), "r1").unwrap();
        assert!(exists(dir.path(), "r1") && !exists(dir.path(), "r2"));
        // Of another restore: the old one is gone.
        write(dir.path(), "r2").unwrap();
        assert!(exists(dir.path(), "r2") && !exists(dir.path(), "r1"));
        // That of a later restore stays.
        remove(dir.path(), "r1").unwrap();
        assert!(exists(dir.path(), "r2"));
        remove(dir.path(), "r2").unwrap();
        remove(dir.path(), "r2").unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["data"]);
        assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), then);
    }

    #[test]
    fn a_waiter_that_removes_it_at_once_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let old = FileTimes::new().set_accessed(then).set_modified(then);
        std::fs::File::open(dir.path())
            .unwrap()
            .set_times(old)
            .unwrap();
        let removed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                for round in 1..=500 {
                    write(dir.path(), "r1")?;
                    while removed.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                }
                Ok::<_, io::Error>(())
            });
            while !agent.is_finished() {
                if exists(dir.path(), "r1") {
                    remove(dir.path(), "r1").unwrap();
                    removed.fetch_add(1, Ordering::Release);
                }
            }
            agent.join().unwrap().unwrap();
        });
        assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), then);
    }

    #[test]
    fn a_planted_link_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join(".velero")).unwrap();
        write(dir.path(), "r1").unwrap();
        assert!(outside.path().join("keep").exists());
        assert!(!outside.path().join("r1").exists());
        assert!(exists(dir.path(), "r1"));
    }

    #[test]
    fn directories_of_a_tenant_are_cleared_away_however_deep() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "x").unwrap();
        let (deep, outer) = (dir.path().join("deep"), dir.path().join("outer"));
        std::fs::create_dir(&deep).unwrap();
        std::os::unix::fs::symlink(outside.path(), deep.join("link")).unwrap();
        // From the inside out: no path could name the innermost.
        for level in 0..2_000 {
            std::fs::create_dir(&outer).unwrap();
            std::fs::rename(&deep, outer.join("1")).unwrap();
            if level % 100 == 0 {
                std::fs::write(outer.join("2"), "x").unwrap();
                std::fs::create_dir(outer.join("3")).unwrap();
            }
            std::fs::rename(&outer, &deep).unwrap();
        }
        std::fs::rename(&deep, dir.path().join(".velero")).unwrap();
        write(dir.path(), "r1").unwrap();
        assert!(exists(dir.path(), "r1"));
        remove(dir.path(), "r1").unwrap();
        assert!(!dir.path().join(".velero").exists());
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn a_uid_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for uid in ["", "..", "../x", "a/b"] {
            assert!(write(dir.path(), uid).is_err(), "{uid:?}");
        }
    }
}
