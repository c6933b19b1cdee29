//! Volumes whose data has stopped moving, and agents that do not stay.

use std::time::Duration;

use jackline_crds::velero::{DataProgress, PodVolumePhase};
use jackline_policy::backup::absence::Agent;
use tokio::time::Instant;

/// How often a volume may be begun anew without getting further than before. The kubelet waits up to five minutes between two starts of
/// an agent that dies of it.
const ROUNDS: u32 = 10;
/// How long an agent has to be well until it counts as back.
const STEADY: Duration = Duration::from_secs(60);

/// How far a volume was when it was last looked at, and since when.
#[derive(Debug)]
pub struct Stall {
    progress: Option<DataProgress>,
    since: Instant,
    /// How far it ever was, and how often it has been begun anew since.
    most: i64,
    rounds: u32,
}

impl Default for Stall {
    fn default() -> Self {
        Self {
            progress: None,
            since: Instant::now(),
            most: 0,
            rounds: 0,
        }
    }
}

impl Stall {
    /// Why a volume is to be given up, if it is: an agent has had it in hand for `limit` without any progress, or begins it again and
    /// again. One that waits for its turn does not stand still.
    pub fn look(
        &mut self,
        phase: PodVolumePhase,
        progress: Option<&DataProgress>,
        limit: Duration,
    ) -> Option<String> {
        if phase != PodVolumePhase::InProgress || self.progress.as_ref() != progress {
            let bytes = |progress: Option<&DataProgress>| progress.map_or(0, |it| it.bytes_done);
            let (before, now) = (bytes(self.progress.as_ref()), bytes(progress));
            if now > self.most {
                self.most = now;
                self.rounds = 0;
            } else if now < before {
                self.rounds += 1;
            }
            self.progress = progress.cloned();
            self.since = Instant::now();
        }
        if self.since.elapsed() >= limit {
            return Some(format!(
                "no data has moved for {}: look at the volume and the object store, or set --volume-progress-timeout higher",
                humantime::format_duration(limit)
            ));
        }
        (self.rounds >= ROUNDS).then(|| {
            format!(
                "begun {ROUNDS} times without getting further than {} bytes: look at the node agent of its node, which may be killed over it",
                self.most
            )
        })
    }
}

/// For how long a node has been without an agent. One that is back for a moment between two crashes is not back.
#[derive(Debug, Default)]
pub struct Absence {
    since: Option<Instant>,
    back: Option<Instant>,
}

impl Absence {
    /// How long it has been away; `None` while it is well.
    pub fn look(&mut self, agent: Agent) -> Option<Duration> {
        let now = Instant::now();
        if agent != Agent::Ready {
            self.back = None;
            return Some(self.since.get_or_insert(now).elapsed());
        }
        if self.back.get_or_insert(now).elapsed() >= STEADY {
            self.since = None;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bytes(bytes_done: i64) -> DataProgress {
        DataProgress {
            total_bytes: 90,
            bytes_done,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_volume_in_hand_stands_still() {
        let mut stall = Stall::default();
        for (phase, done, stands) in [
            (PodVolumePhase::New, None, false),
            (PodVolumePhase::New, None, false),
            (PodVolumePhase::New, None, false),
            (PodVolumePhase::InProgress, None, false),
            (PodVolumePhase::InProgress, None, true),
            (PodVolumePhase::InProgress, Some(bytes(1)), false),
            (PodVolumePhase::InProgress, Some(bytes(1)), false),
            (PodVolumePhase::InProgress, Some(bytes(1)), true),
            (PodVolumePhase::InProgress, Some(bytes(2)), false),
        ] {
            tokio::time::advance(SECOND).await;
            let why = stall.look(phase, done.as_ref(), 2 * SECOND);
            assert_eq!(why.is_some(), stands, "{phase} {done:?}: {why:?}");
            assert!(why.is_none_or(|why| why.starts_with("no data has moved for 2s")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_is_begun_again_and_again_is_given_up_unless_it_gets_further() {
        let rounds = |further: i64| {
            let mut stall = Stall::default();
            let mut look = |done| {
                let phase = PodVolumePhase::InProgress;
                stall.look(phase, Some(&bytes(done)), 60 * SECOND)
            };
            (0..30).find_map(|round| {
                let why = look(0).or_else(|| look(40 + further * round));
                why.map(|why| (round, why))
            })
        };
        assert_eq!(rounds(1), None);
        let (round, why) = rounds(0).unwrap();
        assert_eq!(round, i64::from(ROUNDS));
        assert!(why.contains("than 40 bytes"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_back_for_a_moment_is_not_back() {
        let mut absence = Absence::default();
        for (after, agent, away) in [
            (0, Agent::Ready, None),
            (10, Agent::NotReady, Some(0)),
            (60, Agent::Absent, Some(60)),
            (10, Agent::Ready, None),
            (59, Agent::Ready, None),
            (10, Agent::NotReady, Some(139)),
            (10, Agent::Ready, None),
            (60, Agent::Ready, None),
            (10, Agent::NotReady, Some(0)),
        ] {
            tokio::time::advance(SECOND * after).await;
            let found = absence.look(agent);
            assert_eq!(found, away.map(Duration::from_secs), "{agent:?}");
        }
    }
}
