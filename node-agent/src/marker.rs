//! The done-file of a restore: `.velero/<restore UID>` in the volume (velero-compat §6.4).
//!
//! It is written when all data is on stable storage, and removed when the last pod that waits for it has gone on. The volume belongs
//! to a workload that may be hostile, so no symbolic link is followed.

use std::{
    fs::{FileTimes, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use jackline_crds::names::RESTORE_DONE_DIR;

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
    let root = std::fs::File::open(volume)?;
    rustix::fs::syncfs(&root)?;
    let times = times(volume)?;
    remove(volume)?;
    let dir = volume.join(RESTORE_DONE_DIR);
    std::fs::DirBuilder::new().mode(0o755).create(&dir)?;
    let part = dir.join(format!("{restore_uid}.part"));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(&part)?;
    // Readable for restore-wait under any user, whatever our umask is.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    file.sync_all()?;
    let handle = std::fs::File::open(&dir)?;
    root.set_times(times)?;
    root.sync_all()?;
    // From here on restore-wait may remove the directory at any moment: nothing below looks at it by its path.
    std::fs::rename(&part, dir.join(restore_uid))?;
    handle.sync_all()
}

/// Times of the volume's root: the marker comes and goes without a trace.
fn times(volume: &Path) -> io::Result<FileTimes> {
    let meta = volume.symlink_metadata()?;
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

/// Removes the directory of done-files, if it is there.
pub(crate) fn remove(volume: &Path) -> io::Result<()> {
    let dir = volume.join(RESTORE_DONE_DIR);
    let times = times(volume)?;
    let result = match dir.symlink_metadata() {
        // Does not follow links, also not below.
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&dir),
        Ok(_) => std::fs::remove_file(&dir),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => std::fs::File::open(volume)?.set_times(times),
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
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
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
                    remove(dir.path()).unwrap();
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
    fn a_uid_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for uid in ["", "..", "../x", "a/b"] {
            assert!(write(dir.path(), uid).is_err(), "{uid:?}");
        }
    }
}
