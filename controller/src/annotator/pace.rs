//! A token bucket: so many writes per second, and a second's worth at once after a pause.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(super) struct Pace {
    step: Duration,
    /// When the bucket is full again.
    full: Mutex<Instant>,
}

const BURST: Duration = Duration::from_secs(1);

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / per_second.max(1),
            full: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a turn.
    pub(super) async fn wait(&self) {
        let turn = {
            let mut full = self.full.lock();
            *full = (*full).max(Instant::now()) + self.step;
            *full
        };
        if let Some(at) = turn.checked_sub(BURST) {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let pace = Pace::new(100);
        let start = Instant::now();
        for _ in 0..100 {
            pace.wait().await;
        }
        assert!(start.elapsed() < Duration::from_millis(50));
        for _ in 0..200 {
            pace.wait().await;
        }
        let elapsed = start.elapsed();
        assert!(
            elapsed > Duration::from_millis(1900) && elapsed < Duration::from_millis(2200),
            "{elapsed:?}"
        );
    }
}
