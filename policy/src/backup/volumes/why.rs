//! Why a volume is not read.

use super::{
    super::{object::Skip, volume_policy::Action},
    Level, PodVolume, PodVolumes,
};

/// Why a claim is not read that is not stored: there would be nothing to restore its data into.
pub(super) fn not_stored(namespace: &str, claim: &str, why: Skip) -> (Level, String) {
    let (level, why) = match why {
        Skip::Excluded => (Level::Info, "excluded by its label"),
        Skip::Terminating => (Level::Warning, "it is being deleted"),
    };
    let message = format!("Skip persistent volume claim {namespace}/{claim}: {why}");
    (level, message)
}

/// Why a volume is not read that the policies decided about, unless they want it.
pub(super) fn left_out(volume: &str, (at, action): (usize, Action)) -> Option<(Level, String)> {
    let message = format!(
        "Skip volume {volume}: matched action is '{action}' in chosen resource policies (volumePolicies[{at}])"
    );
    match action {
        Action::FsBackup => None,
        Action::Skip => Some((Level::Info, message)),
        Action::Snapshot => {
            let message = format!("{message}, but native volume snapshots are not taken");
            Some((Level::Warning, message))
        }
    }
}

/// Why the volumes of a pod cannot be read, if it does not run. A pod that has ended is nothing to worry about.
pub(super) fn not_running(pod: &PodVolumes, volume: &str) -> Option<(Level, String)> {
    if pod.is_running() {
        return None;
    }
    let level = if pod.is_over() {
        Level::Info
    } else {
        Level::Warning
    };
    let phase = if pod.phase.is_empty() {
        "Unknown"
    } else {
        &pod.phase
    };
    Some((
        level,
        format!(
            "Skip pod volume {volume}: pod is not in the expected status, name={}, namespace={}, phase={phase}",
            pod.name, pod.namespace
        ),
    ))
}

/// Why a volume cannot be read although its pod runs.
pub(super) fn unusable(volume: &PodVolume) -> Option<(Level, String)> {
    if volume.device {
        let message = format!(
            "Volume {} is used as a raw block device, which is not supported, skipping",
            volume.name
        );
        return Some((Level::Warning, message));
    }
    (!volume.mounted).then(|| {
        (
            Level::Warning,
            format!(
                "Volume {} is declared in the pod, but not mounted by any container, skipping",
                volume.name
            ),
        )
    })
}
