//! Runs passes over a queue's keys: one at a time per key, bounded in number and time, fenced against panics.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    Class, Failure, LeaderToken, Lease, Metrics, Next, Queue,
    queue::{MAX_DELAY, QueueKey},
    supervise::panic_message,
};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// How passes are run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Passes at once.
    pub concurrency: usize,
    /// Longest time of a pass; then it is dropped and counted as failed. `None` for work that supervises itself (volume data).
    pub pass_deadline: Option<Duration>,
    /// A key that waits only for changes is looked at again after this, ± 20 %; `None` never.
    pub resync: Option<Duration>,
    /// How long a pass may go on after the shutdown began before it is dropped.
    pub grace: Duration,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl RunOptions {
    /// Four at once, a minute each, looked at again every ten minutes.
    pub fn new() -> Self {
        Self {
            concurrency: 4,
            pass_deadline: Some(Duration::from_secs(60)),
            resync: Some(Duration::from_secs(600)),
            grace: Duration::from_secs(5),
        }
    }

    /// Passes at once.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// Longest time of a pass.
    #[must_use]
    pub fn pass_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.pass_deadline = deadline.into();
        self
    }

    /// Time between safety looks.
    #[must_use]
    pub fn resync(mut self, resync: impl Into<Option<Duration>>) -> Self {
        self.resync = resync.into();
        self
    }

    /// Time that a pass has to end at shutdown.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

/// Runs `pass` for each key of the queue until `shutdown`; then waits `options.grace` for running passes.
pub async fn run<K, F, Fut>(
    queue: Queue<K>,
    options: RunOptions,
    metrics: Metrics,
    shutdown: CancellationToken,
    pass: F,
) where
    K: QueueKey,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
{
    let runner = Runner {
        queue,
        options,
        metrics,
    };
    runner.run(&shutdown, pass).await;
}

/// Like [`run`], but only while `lease` is held. Losing it drops running passes at once; their keys run again when it is won.
pub async fn run_leading<K, F, Fut>(
    queue: Queue<K>,
    options: RunOptions,
    metrics: Metrics,
    shutdown: CancellationToken,
    lease: Lease,
    pass: F,
) where
    K: QueueKey,
    F: Fn(K, LeaderToken) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
{
    let runner = Runner {
        queue,
        options,
        metrics,
    };
    loop {
        let token = tokio::select! {
            () = shutdown.cancelled() => return,
            token = lease.acquired() => token,
        };
        let term = token.clone();
        tokio::select! {
            biased;
            () = token.lost() => {
                tracing::warn!(queue = runner.queue.name(), "leadership lost: running passes are dropped");
            }
            () = runner.run(&shutdown, |key| pass(key, term.clone())) => return,
        }
    }
}

struct Runner<K> {
    queue: Queue<K>,
    options: RunOptions,
    metrics: Metrics,
}

/// Returns the key to the queue even when the pass is dropped.
struct Active<'a, K: QueueKey> {
    queue: &'a Queue<K>,
    key: K,
    ended: bool,
    metrics: Metrics,
}

impl<K: QueueKey> Drop for Active<'_, K> {
    fn drop(&mut self) {
        if !self.ended {
            // Dropped in the middle: it has to run again.
            self.queue.add(self.key.clone());
            self.count("aborted");
        }
        self.queue.done(&self.key);
        self.metrics
            .families
            .passes_running
            .with_label_values(&[self.queue.name()])
            .dec();
    }
}

impl<K: QueueKey> Active<'_, K> {
    fn count(&self, class: &str) {
        let families = &self.metrics.families;
        let fine = matches!(class, "ok" | "waiting" | "conflict");
        let outcome = if fine { "ok" } else { "error" };
        families
            .passes
            .with_label_values(&[self.queue.name(), outcome])
            .inc();
        if !fine {
            families
                .pass_failures
                .with_label_values(&[self.queue.name(), class])
                .inc();
        }
    }
}

impl<K: QueueKey> Runner<K> {
    async fn run<F, Fut>(&self, shutdown: &CancellationToken, pass: F)
    where
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
    {
        let mut running = JoinSet::new();
        for outcome in ["ok", "error"] {
            self.metrics
                .families
                .passes
                .with_label_values(&[self.queue.name(), outcome]);
        }
        let mut report = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(_) = running.join_next() => {}
                _ = report.tick() => self.report(),
                key = self.queue.take(), if running.len() < self.options.concurrency => {
                    running.spawn(self.one(key.clone(), pass(key)));
                }
            }
        }
        let _ = tokio::time::timeout(self.options.grace, async {
            while running.join_next().await.is_some() {}
        })
        .await;
        running.shutdown().await;
    }

    fn report(&self) {
        let (depth, oldest) = self.queue.backlog();
        let name = [self.queue.name()];
        self.metrics
            .families
            .queue_depth
            .with_label_values(&name)
            .set(depth as i64);
        self.metrics
            .families
            .queue_oldest
            .with_label_values(&name)
            .set(oldest.as_secs_f64());
    }

    fn one<Fut>(&self, key: K, pass: Fut) -> impl Future<Output = ()> + Send + 'static + use<K, Fut>
    where
        Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
    {
        let (queue, options, metrics) = (
            self.queue.clone(),
            self.options.clone(),
            self.metrics.clone(),
        );
        let span = tracing::info_span!("pass", queue = queue.name(), key = ?key);
        metrics
            .families
            .passes_running
            .with_label_values(&[queue.name()])
            .inc();
        async move {
            let mut active = Active {
                queue: &queue,
                key,
                ended: false,
                metrics,
            };
            let started = Instant::now();
            let fenced = AssertUnwindSafe(pass).catch_unwind();
            let result = match options.pass_deadline {
                Some(deadline) => tokio::time::timeout(deadline, fenced).await,
                None => Ok(fenced.await),
            };
            active.ended = true;
            let seconds = started.elapsed().as_secs_f64();
            active
                .metrics
                .families
                .pass_seconds
                .with_label_values(&[queue.name()])
                .observe(seconds);
            let failure = match result {
                Ok(Ok(Ok(next))) => {
                    active.count("ok");
                    queue.succeeded(&active.key);
                    schedule(&queue, &active.key, next, options.resync);
                    return;
                }
                Ok(Ok(Err(failure))) => {
                    active.count(failure.class.label());
                    failure
                }
                Ok(Err(panic)) => {
                    active.count("panicked");
                    Failure::transient("Panicked", panic_message(panic.as_ref()))
                }
                Err(_) => {
                    active.count("timeout");
                    Failure::transient(
                        "DeadlineExceeded",
                        format!("pass took longer than {seconds:.0} s"),
                    )
                }
            };
            retry(&queue, &active.key, &failure, options.resync);
        }
        .instrument(span)
    }
}

fn schedule<K: QueueKey>(queue: &Queue<K>, key: &K, next: Next, resync: Option<Duration>) {
    match next {
        Next::At(at) => queue.add_at(key.clone(), at),
        Next::After(delay) => queue.add_after(key.clone(), delay.min(MAX_DELAY)),
        Next::OnChange => {
            if let Some(resync) = resync {
                queue.add_after(key.clone(), spread(resync));
            }
        }
        Next::Done => {}
    }
}

fn retry<K: QueueKey>(queue: &Queue<K>, key: &K, failure: &Failure, resync: Option<Duration>) {
    let error = crate::logging::chain(failure);
    let delay = match failure.class {
        Class::Waiting(after) => {
            tracing::debug!(error, "waiting");
            queue.succeeded(key);
            Some(after)
        }
        Class::Conflict => {
            tracing::debug!(error, "somebody else wrote first");
            // A conflict that does not go away is slowed down like any error.
            match queue.failed(key) {
                0..=5 => Some(spread(Duration::from_millis(300))),
                attempt => Some(backoff(attempt - 5)),
            }
        }
        Class::Throttled(after) => {
            let attempt = queue.failed(key);
            tracing::warn!(error, attempt, "throttled");
            Some(after.unwrap_or_default().max(backoff(attempt)))
        }
        Class::Transient => {
            let attempt = queue.failed(key);
            tracing::warn!(
                error,
                attempt,
                reason = failure.reason,
                "pass failed; trying again"
            );
            Some(backoff(attempt))
        }
        Class::Terminal => {
            tracing::warn!(
                error,
                reason = failure.reason,
                "pass failed; waiting for a change"
            );
            resync.map(spread)
        }
    };
    if let Some(delay) = delay {
        queue.add_after(key.clone(), delay.min(MAX_DELAY));
    }
}

/// 1 s·2ⁿ up to 5 min, ± 20 %.
fn backoff(attempt: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(
        1_u32
            .checked_shl(attempt.saturating_sub(1))
            .unwrap_or(u32::MAX),
    );
    spread(doubled.min(LAST_RETRY))
}

fn spread(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
