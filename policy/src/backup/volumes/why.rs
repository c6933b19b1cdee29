//! Why a volume is not read.

use super::{
    super::{object::Skip, volume_policy::Action},
    Level, PodVolume, PodVolumes,
};

/// Why a volume is not read.
pub(super) struct Why {
    pub(super) level: Level,
    /// The same, of many volumes.
    pub(super) sort: &'static str,
    pub(super) message: String,
}

impl Why {
    pub(super) fn info(sort: &'static str, message: String) -> Self {
        Self {
            level: Level::Info,
            sort,
            message,
        }
    }

    pub(super) fn warning(sort: &'static str, message: String) -> Self {
        Self {
            level: Level::Warning,
            ..Self::info(sort, message)
        }
    }

    pub(super) fn error(sort: &'static str, message: String) -> Self {
        Self {
            level: Level::Error,
            ..Self::info(sort, message)
        }
    }
}

/// Why a claim is not read that is not stored: there would be nothing to restore its data into.
pub(super) fn not_stored(namespace: &str, claim: &str, why: Skip) -> Why {
    let message = |why: &str| format!("Skip persistent volume claim {namespace}/{claim}: {why}");
    match why {
        Skip::Excluded => Why::info(
            "their persistent volume claims are excluded by their labels",
            message("excluded by its label"),
        ),
        Skip::Terminating => Why::warning(
            "their persistent volume claims are being deleted",
            message("it is being deleted"),
        ),
    }
}

/// Why a volume is not read that the policies decided about, unless they want it.
pub(super) fn left_out(volume: &str, (at, action): (usize, Action)) -> Option<Why> {
    let message = format!(
        "Skip volume {volume}: matched action is '{action}' in chosen resource policies (volumePolicies[{at}])"
    );
    match action {
        Action::FsBackup => None,
        Action::Skip => {
            let sort = "matched action is 'skip' in chosen resource policies";
            Some(Why::info(sort, message))
        }
        Action::Snapshot => {
            let sort = "matched action is 'snapshot' in chosen resource policies, but native volume snapshots are not taken";
            let message = format!("{message}, but native volume snapshots are not taken");
            Some(Why::warning(sort, message))
        }
    }
}

/// Why the volumes of a pod cannot be read, if it does not run. A pod that has ended is nothing to worry about.
pub(super) fn not_running(pod: &PodVolumes, volume: &str) -> Option<Why> {
    if pod.is_running() {
        return None;
    }
    let phase = if pod.phase.is_empty() {
        "Unknown"
    } else {
        &pod.phase
    };
    let sort = "pod is not in the expected status";
    let message = format!(
        "Skip pod volume {volume}: {sort}, name={}, namespace={}, phase={phase}",
        pod.name, pod.namespace
    );
    Some(if pod.is_over() {
        Why::info(sort, message)
    } else {
        Why::warning(sort, message)
    })
}

/// Why a volume cannot be read although its pod runs.
pub(super) fn unusable(volume: &PodVolume) -> Option<Why> {
    if volume.device {
        let message = format!(
            "Volume {} is used as a raw block device, which is not supported, skipping",
            volume.name
        );
        let sort = "they are used as raw block devices, which is not supported";
        return Some(Why::warning(sort, message));
    }
    (!volume.mounted).then(|| {
        let message = format!(
            "Volume {} is declared in the pod, but not mounted by any container, skipping",
            volume.name
        );
        let sort = "they are declared in the pod, but not mounted by any container";
        Why::warning(sort, message)
    })
}
