//! Every task of a process is watched: one that ends or panics while the process is not shutting down ends the process.
//!
//! A detached task that died silently has left other operators without a leader, ready and useless. Here the first death is
//! recorded, the shutdown token is cancelled and [`Supervisor::finished`] returns the reason.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A supervised task ended when it should not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The task returned an error.
    #[error("task {task} failed: {error}")]
    Failed {
        /// Name given at spawn.
        task: String,
        /// The error and its causes.
        error: String,
    },
    /// The task returned without being asked to.
    #[error("task {task} ended by itself")]
    Ended {
        /// Name given at spawn.
        task: String,
    },
    /// The task panicked.
    #[error("task {task} panicked: {message}")]
    Panicked {
        /// Name given at spawn.
        task: String,
        /// What the panic said.
        message: String,
    },
    /// Tasks were still running when the time to end was over.
    #[error("tasks did not end within {}s of the shutdown", .0.as_secs())]
    Stuck(Duration),
}

/// Owner of the process's tasks. Clones share the same tasks.
#[derive(Debug, Clone)]
pub struct Supervisor {
    shutdown: CancellationToken,
    late: CancellationToken,
    tasks: TaskTracker,
    late_tasks: TaskTracker,
    fatal: Arc<Mutex<Option<Fatal>>>,
}

impl Supervisor {
    /// A supervisor that shuts down with `shutdown`, and cancels it when a task dies.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            late: CancellationToken::new(),
            tasks: TaskTracker::new(),
            late_tasks: TaskTracker::new(),
            fatal: Arc::default(),
        }
    }

    /// Cancelled when the process should end.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Cancelled when all ordinary tasks have ended: the time to give back the lease and to flush.
    pub fn late(&self) -> &CancellationToken {
        &self.late
    }

    /// Runs a task that must live as long as the process. It has to end soon after [`Supervisor::shutdown`].
    pub fn spawn<F, E>(&self, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let guarded = self.guard(name.into(), self.shutdown.clone(), task);
        self.tasks.spawn(guarded);
    }

    /// Like [`Supervisor::spawn`], for tasks that the others need until they have ended; ends with [`Supervisor::late`].
    pub fn spawn_late<F, E>(&self, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let guarded = self.guard(name.into(), self.late.clone(), task);
        self.late_tasks.spawn(guarded);
    }

    fn guard<F, E>(
        &self,
        task: String,
        may_end: CancellationToken,
        future: F,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let this = self.clone();
        async move {
            let fatal = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) if may_end.is_cancelled() => return,
                Ok(Ok(())) => Fatal::Ended { task },
                Ok(Err(error)) => Fatal::Failed {
                    task,
                    error: crate::logging::chain(&error),
                },
                Err(panic) => Fatal::Panicked {
                    task,
                    message: panic_message(panic.as_ref()),
                },
            };
            this.die(fatal);
        }
    }

    /// Records why the process cannot go on and starts the shutdown.
    pub fn die(&self, fatal: Fatal) {
        tracing::error!(error = %fatal, "ending the process");
        self.fatal.lock().get_or_insert(fatal);
        self.shutdown.cancel();
    }

    /// Waits for the shutdown, then for the tasks (at most `drain` for all together).
    pub async fn finished(&self, drain: Duration) -> Result<(), Fatal> {
        self.shutdown.cancelled().await;
        self.tasks.close();
        self.late_tasks.close();
        let ends = async {
            self.tasks.wait().await;
            self.late.cancel();
            self.late_tasks.wait().await;
        };
        let stuck = tokio::time::timeout(drain, ends).await.is_err();
        self.late.cancel();
        match self.fatal.lock().clone() {
            Some(fatal) => Err(fatal),
            None if stuck => Err(Fatal::Stuck(drain)),
            None => Ok(()),
        }
    }
}

/// What a panic said, as far as it is text.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn supervisor() -> Supervisor {
        Supervisor::new(CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_ends_the_process() {
        let supervisor = supervisor();
        supervisor.spawn("short", async { Ok::<_, Infallible>(()) });
        let fatal = supervisor
            .finished(Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            fatal,
            Fatal::Ended {
                task: "short".to_owned()
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_the_process_and_names_the_task() {
        let supervisor = supervisor();
        supervisor.spawn("lease", async {
            if true {
                panic!("poisoned");
            }
            Ok::<_, Infallible>(())
        });
        let fatal = supervisor
            .finished(Duration::from_secs(1))
            .await
            .unwrap_err();
        assert_eq!(
            fatal,
            Fatal::Panicked {
                task: "lease".to_owned(),
                message: "poisoned".to_owned()
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn late_tasks_outlive_the_others() {
        let supervisor = supervisor();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (shutdown, late) = (supervisor.shutdown().clone(), supervisor.late().clone());
        let (first, second) = (order.clone(), order.clone());
        supervisor.spawn_late("lease", async move {
            late.cancelled().await;
            second.lock().push("lease");
            Ok::<_, Infallible>(())
        });
        supervisor.spawn("worker", async move {
            shutdown.cancelled().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            first.lock().push("worker");
            Ok::<_, Infallible>(())
        });
        supervisor.shutdown().cancel();
        supervisor.finished(Duration::from_secs(5)).await.unwrap();
        assert_eq!(*order.lock(), ["worker", "lease"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_does_not_hold_the_process() {
        let supervisor = supervisor();
        supervisor.spawn("stuck", std::future::pending::<Result<(), Infallible>>());
        supervisor.shutdown().cancel();
        let fatal = supervisor
            .finished(Duration::from_secs(5))
            .await
            .unwrap_err();
        assert_eq!(fatal, Fatal::Stuck(Duration::from_secs(5)));
    }
}
