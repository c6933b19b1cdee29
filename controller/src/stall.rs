//! Volumes whose data has stopped moving.

use std::time::Duration;

use jackline_crds::velero::{DataProgress, PodVolumePhase};
use tokio::time::Instant;

/// How far a volume was when it was last looked at, and since when.
#[derive(Debug)]
pub struct Stall {
    progress: Option<DataProgress>,
    since: Instant,
}

impl Default for Stall {
    fn default() -> Self {
        Self {
            progress: None,
            since: Instant::now(),
        }
    }
}

impl Stall {
    /// For how long an agent has had a volume in hand without any progress. One that waits for its turn does not stand still.
    pub fn look(&mut self, phase: PodVolumePhase, progress: Option<&DataProgress>) -> Duration {
        if phase != PodVolumePhase::InProgress || self.progress.as_ref() != progress {
            self.progress = progress.cloned();
            self.since = Instant::now();
        }
        self.since.elapsed()
    }
}

/// Why a volume is given up.
#[must_use]
pub fn message(patience: Duration) -> String {
    format!(
        "no data has moved for {}: look at the volume and the object store, or set --volume-progress-timeout higher",
        humantime::format_duration(patience)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_volume_in_hand_stands_still() {
        let second = Duration::from_secs(1);
        let bytes = |bytes_done| DataProgress {
            total_bytes: 9,
            bytes_done,
        };
        let mut stall = Stall::default();
        for (phase, done, expected) in [
            (PodVolumePhase::New, None, 0),
            (PodVolumePhase::New, None, 0),
            (PodVolumePhase::InProgress, None, 1),
            (PodVolumePhase::InProgress, Some(bytes(1)), 0),
            (PodVolumePhase::InProgress, Some(bytes(1)), 1),
            (PodVolumePhase::InProgress, Some(bytes(1)), 2),
            (PodVolumePhase::InProgress, Some(bytes(2)), 0),
        ] {
            tokio::time::advance(second).await;
            let stood = stall.look(phase, done.as_ref());
            assert_eq!(stood, second * expected, "{phase} {done:?}");
        }
    }
}
