//! From the repository's progress calls to `status.progress`, at most every few seconds and only when it changed.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use jackline_crds::velero::DataProgress;
use jackline_repository::Progress;

/// Time between two progress writes of one volume.
pub(crate) const EVERY: Duration = Duration::from_secs(3);

/// Collects what the repository reports.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    total: AtomicI64,
    done: AtomicI64,
    stored: AtomicI64,
}

impl Meter {
    /// Whether a repository has more than before.
    pub fn has_stored(&self) -> bool {
        self.stored.load(Ordering::Relaxed) > 0
    }

    pub fn now(&self) -> DataProgress {
        DataProgress {
            total_bytes: self.total.load(Ordering::Relaxed),
            bytes_done: self.done.load(Ordering::Relaxed),
        }
    }
}

impl Progress for Meter {
    fn total(&self, bytes: u64, _: u64) {
        self.total.store(clamp(bytes), Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64, _: u64) {
        self.done.fetch_add(clamp(bytes), Ordering::Relaxed);
    }

    fn stored(&self, bytes: u64) {
        self.stored.fetch_add(clamp(bytes), Ordering::Relaxed);
    }
}

pub(crate) fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Everything is done.
pub(crate) fn complete(bytes: u64) -> DataProgress {
    DataProgress {
        total_bytes: clamp(bytes),
        bytes_done: clamp(bytes),
    }
}

/// Runs `work`; beside it `write` is called with the progress whenever that changed, at most every [`EVERY`].
pub(crate) async fn reporting<T, W>(
    meter: &Meter,
    work: impl Future<Output = T>,
    write: impl FnMut(DataProgress) -> W,
) -> T
where
    W: Future<Output = ()>,
{
    let report = report(meter, write);
    match futures::future::select(std::pin::pin!(work), std::pin::pin!(report)).await {
        futures::future::Either::Left((result, _)) => result,
        futures::future::Either::Right((never, _)) => match never {},
    }
}

async fn report<W>(meter: &Meter, mut write: impl FnMut(DataProgress) -> W) -> Infallible
where
    W: Future<Output = ()>,
{
    let mut last = DataProgress::default();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = meter.now();
        if now != last {
            write(now.clone()).await;
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test(start_paused = true)]
    async fn only_changes_are_written_and_not_too_often() {
        let meter = Meter::default();
        let written = Mutex::new(Vec::new());
        let work = async {
            meter.total(100, 1);
            for _ in 0..10 {
                meter.advance(1, 0);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        reporting(&meter, work, |progress| {
            written.lock().unwrap().push(progress.bytes_done);
            async {}
        })
        .await;
        let written = written.into_inner().unwrap();
        assert!(written.len() <= 3, "{written:?}");
        assert_eq!(written.last(), Some(&10));
    }
}
