//! Holds a restored pod back until its volumes have their data.
//!
//! Runs as the pod's first init container: `jackline-restore-wait <restore UID>`, with each volume under restore mounted at
//! `/restores/<volume>`. The node agent writes `.velero/<restore UID>` into a volume when its data is complete; when every volume
//! has it, this program ends and the pod's own containers start. It has no time limit: a pod without its data must not run. So it
//! says every 30 s what it still waits for. When the restore has ended without the data, the controller says why in an annotation that
//! the kubelet shows as a file; then this program ends with that reason, which becomes the container's message.
//!
//! A pod whose node restarts runs its init containers again, perhaps weeks later, when nothing is left of the restore that could write
//! the marker. So the controller notes the restore's UID in an annotation once all data is back, and then nothing is waited for.
//!
//! `JACKLINE_WAITERS` (`<volume>=<pods>,…`) says how many pods wait for a volume; unnamed volumes have one. Where this pod is the
//! only one, it removes the marker itself, as Velero's helper does; otherwise the others still need it, and the node agent removes
//! it when all have gone on.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

const ROOT: &str = "/restores";
const OVER: &str = "/restore-over/reason";
/// The annotation `jackline.dev/restored`.
const RESTORED: &str = "/restore-over/restored";
const TERMINATION_LOG: &str = "/dev/termination-log";
const MARKER_DIR: &str = ".velero";
const POLL: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(30);

/// As process 1 of a container, SIGTERM would be ignored without a handler, and deleting the pod would take its whole grace period.
#[allow(unsafe_code)]
mod on_term {
    const SIGTERM: i32 = 15;

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn _exit(code: i32) -> !;
    }

    extern "C" fn end(number: i32) {
        // SAFETY: `_exit` is async-signal-safe and takes no memory of ours.
        unsafe { _exit(128 + number) }
    }

    pub fn exit() {
        // SAFETY: `signal` with a handler of the right signature; called before any other thread exists.
        unsafe { signal(SIGTERM, end) };
    }
}

fn main() -> ExitCode {
    on_term::exit();
    let mut arguments = std::env::args().skip(1);
    let uid = match (arguments.next(), arguments.next()) {
        (Some(uid), None) if is_uid(&uid) => uid,
        _ => {
            say("usage: jackline-restore-wait <restore UID>");
            return ExitCode::from(2);
        }
    };
    let root =
        std::env::var_os("JACKLINE_RESTORES").map_or_else(|| PathBuf::from(ROOT), PathBuf::from);
    let over_file = std::env::var_os("JACKLINE_RESTORE_OVER")
        .map_or_else(|| PathBuf::from(OVER), PathBuf::from);
    let restored_file = std::env::var_os("JACKLINE_RESTORED")
        .map_or_else(|| PathBuf::from(RESTORED), PathBuf::from);
    let waiters = waiters(&std::env::var("JACKLINE_WAITERS").unwrap_or_default());
    let mut last_said: Option<(Instant, String)> = None;
    while !is_restored(&restored_file, &uid) {
        let missing = match missing(&root, &uid) {
            Ok(missing) if missing.is_empty() => break,
            Ok(missing) => format!("waiting for the data of {}", missing.join(", ")),
            Err(error) => format!("cannot look into {}: {error}", root.display()),
        };
        let news = last_said
            .as_ref()
            .is_none_or(|(at, text)| at.elapsed() >= SAY_EVERY || *text != missing);
        if news {
            say(&missing);
            last_said = Some((Instant::now(), missing));
        }
        // After the look at the markers: who has all of its data goes on, whatever became of the others'.
        if let Some(why) = over(&over_file) {
            say(&why);
            // Not every runtime has the file; the log has the words too.
            let _ = std::fs::write(TERMINATION_LOG, &why);
            return ExitCode::FAILURE;
        }
        std::thread::sleep(POLL);
    }
    for volume in volumes(&root).unwrap_or_default() {
        let name = volume.to_string_lossy().into_owned();
        if waiters.get(&name).is_none_or(|pods| *pods <= 1) {
            // Not allowed to, as an unprivileged user: then the node agent removes it.
            let _ = remove_marker(&root.join(&volume));
        }
    }
    say("all volumes have their data");
    ExitCode::SUCCESS
}

/// Why there is nothing more to wait for. A pod of an older restore has no such file.
fn over(file: &Path) -> Option<String> {
    let why = std::fs::read_to_string(file).ok()?;
    (!why.trim().is_empty()).then_some(why)
}

/// Whether all data has been here before. A pod of an older restore has no such file, or one that names that.
fn is_restored(file: &Path, uid: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|restored| restored.trim() == uid)
}

/// Removes the marker and leaves the volume's own times as they were restored.
fn remove_marker(volume: &Path) -> std::io::Result<()> {
    let meta = std::fs::symlink_metadata(volume)?;
    let times = std::fs::FileTimes::new()
        .set_accessed(meta.accessed()?)
        .set_modified(meta.modified()?);
    std::fs::remove_dir_all(volume.join(MARKER_DIR))?;
    std::fs::File::open(volume)?.set_times(times)
}

/// A UID becomes a file name: nothing that could lead elsewhere.
fn is_uid(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn volumes(root: &Path) -> std::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

/// Names of the volumes without the marker. No volume at all is an error: then nothing was mounted.
fn missing(root: &Path, uid: &str) -> std::io::Result<Vec<String>> {
    let volumes = volumes(root)?;
    if volumes.is_empty() {
        return Err(std::io::Error::other("no volume is mounted there"));
    }
    let mut missing = Vec::new();
    for volume in volumes {
        let marker = root.join(&volume).join(MARKER_DIR).join(uid);
        match std::fs::symlink_metadata(&marker) {
            Ok(found) if found.is_file() => {}
            Ok(_) => missing.push(volume.to_string_lossy().into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                missing.push(volume.to_string_lossy().into_owned());
            }
            Err(error) => missing.push(format!("{} ({error})", volume.to_string_lossy())),
        }
    }
    Ok(missing)
}

fn waiters(text: &str) -> BTreeMap<String, u32> {
    text.split(',')
        .filter_map(|part| part.split_once('='))
        .filter_map(|(volume, pods)| Some((volume.trim().to_owned(), pods.trim().parse().ok()?)))
        .collect()
}

fn say(text: &str) {
    // A closed log is no reason to let the pod start.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(root: &Path, name: &str) -> PathBuf {
        let path = root.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    struct Tmp(PathBuf);
    impl Drop for Tmp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    fn tmp(name: &str) -> Tmp {
        let path = std::env::temp_dir().join(format!("restore-wait-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Tmp(path)
    }

    #[test]
    fn every_volume_must_have_this_restores_marker() {
        let tmp = tmp("markers");
        let (a, b) = (volume(&tmp.0, "a"), volume(&tmp.0, "b"));
        assert_eq!(missing(&tmp.0, "u1").unwrap(), ["a", "b"]);
        std::fs::create_dir(a.join(".velero")).unwrap();
        std::fs::write(a.join(".velero/u1"), "").unwrap();
        std::fs::create_dir(b.join(".velero")).unwrap();
        std::fs::write(b.join(".velero/u0"), "").unwrap();
        assert_eq!(missing(&tmp.0, "u1").unwrap(), ["b"]);
        std::fs::write(b.join(".velero/u1"), "").unwrap();
        assert!(missing(&tmp.0, "u1").unwrap().is_empty());
    }

    #[test]
    fn it_is_over_when_a_reason_is_given() {
        let tmp = tmp("over");
        let file = tmp.0.join("reason");
        assert_eq!(over(&file), None);
        std::fs::write(&file, "").unwrap();
        assert_eq!(over(&file), None);
        std::fs::write(&file, "lost").unwrap();
        assert_eq!(over(&file).as_deref(), Some("lost"));
    }

    #[test]
    fn a_pod_that_this_restore_has_restored_waits_no_more() {
        let tmp = tmp("restored");
        let file = tmp.0.join("restored");
        assert!(!is_restored(&file, "u1"));
        for (text, expected) in [("", false), ("u0", false), ("u11", false), ("u1", true)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(is_restored(&file, "u1"), expected, "{text}");
        }
    }

    #[test]
    fn nothing_mounted_is_not_done() {
        let tmp = tmp("nothing");
        assert!(missing(&tmp.0, "u1").is_err());
        assert!(missing(&tmp.0.join("absent"), "u1").is_err());
    }

    #[test]
    fn the_uid_cannot_lead_elsewhere() {
        assert!(is_uid("6f1c3b6e-0b5e-4f3e-9c55-0f1d2c3b4a5e"));
        for bad in ["", "../x", "a/b", "."] {
            assert!(!is_uid(bad), "{bad}");
        }
    }

    #[test]
    fn waiters_are_read_leniently() {
        let waiters = waiters("data=2, logs=1,broken,x=y");
        assert_eq!(waiters.get("data"), Some(&2));
        assert_eq!(waiters.get("logs"), Some(&1));
        assert_eq!(waiters.len(), 2);
    }
}
