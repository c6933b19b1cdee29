//! The runtime put together: what a main makes first and ends with.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use clap::Args;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    ClientArgs, Clients, Events, Failure, Health, LeaderToken, Lease, LeaseSettings, Metrics, Next,
    Queue, RunOptions, Store, Supervisor, WatchEvent, WatchSpec,
    client::ClientError,
    logging::{BadFilter, LogArgs},
    queue::QueueKey,
    supervise::Fatal,
    watch::{Keep, Surroundings, Watched, into_hook, into_store},
    worker,
};

/// Command line groups that every process has.
#[derive(Debug, Clone, Default, Args)]
pub struct RuntimeArgs {
    /// API server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Logs.
    #[command(flatten)]
    pub log: LogArgs,
    /// Admin endpoint.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Where the admin endpoint listens.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Address of /metrics, /livez and /readyz
    #[arg(
        long,
        global = true,
        env = "JACKLINE_METRICS_ADDRESS",
        default_value = "0.0.0.0:8085",
        value_parser = listen_address,
        value_name = "ADDRESS"
    )]
    pub metrics_address: SocketAddr,
}

/// An address to listen on; as Go has it, one without a host is every address of this machine.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let whole = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    let wrong = |_| "allowed: an IP address and a port, or :port alone".to_owned();
    whole.parse().map_err(wrong)
}

impl Default for AdminArgs {
    fn default() -> Self {
        Self {
            metrics_address: SocketAddr::from(([0, 0, 0, 0], 8085)),
        }
    }
}

/// Why a process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Bad `--log-level`.
    #[error(transparent)]
    Log(#[from] BadFilter),
    /// No way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Signal handlers could not be installed.
    #[error("signal handlers cannot be installed")]
    Signals(#[source] std::io::Error),
    /// The admin address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Two families of one name.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// A task died.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// Time that tasks have to end after SIGTERM; below the default grace period of a pod (30 s).
const DRAIN: Duration = Duration::from_secs(25);

/// A running process: clients, tasks, health, metrics, events.
#[derive(Debug)]
pub struct Kit {
    /// Clients of the API server.
    pub clients: Clients,
    /// Owner of all tasks.
    pub supervisor: Supervisor,
    /// Registry and the runtime's families.
    pub metrics: Metrics,
    /// Readiness.
    pub health: Health,
    /// Event publisher.
    pub events: Events,
    listener: Option<TcpListener>,
    extra: Router,
}

impl Kit {
    /// Logging, signals, clients, the admin address and events. `component` is the process's name (`jackline-controller`).
    ///
    /// # Errors
    /// When the arguments cannot be used; the API server need not be up yet.
    pub async fn start(component: &str, args: &RuntimeArgs) -> Result<Self, RuntimeError> {
        crate::logging::init(&args.log)?;
        let clients = Clients::connect(&args.client).await?;
        let shutdown = crate::shutdown::on_signals().map_err(RuntimeError::Signals)?;
        let address = args.admin.metrics_address;
        let listener = crate::admin::bind(address)
            .await
            .map_err(|source| RuntimeError::Listen { address, source })?;
        let mut kit = Self::assemble(component, clients, shutdown)?;
        kit.listener = Some(listener);
        Ok(kit)
    }

    /// A kit without logging, signals and admin endpoint; for tests and short-lived commands.
    ///
    /// # Errors
    /// When metrics cannot be registered.
    pub fn assemble(
        component: &str,
        clients: Clients,
        shutdown: CancellationToken,
    ) -> Result<Self, RuntimeError> {
        let metrics = Metrics::new(Registry::new(), component)?;
        let supervisor = Supervisor::new(shutdown);
        let (events, writer) = Events::new(
            clients.call.clone(),
            &format!("jackline.dev/{}", component.trim_start_matches("jackline-")),
            &instance(),
            metrics.clone(),
            supervisor.late().clone(),
        );
        supervisor.spawn_late("events", never_fails(writer));
        let health = Health::default();
        Ok(Self {
            clients,
            supervisor,
            metrics,
            health,
            events,
            listener: None,
            extra: Router::new(),
        })
    }

    /// Cancelled when the process should end.
    pub fn shutdown(&self) -> &CancellationToken {
        self.supervisor.shutdown()
    }

    /// Adds routes to the admin endpoint.
    pub fn routes(&mut self, routes: Router) {
        let extra = std::mem::take(&mut self.extra);
        self.extra = extra.merge(routes);
    }

    /// Watches a kind into a store, for ever.
    pub fn watch<K: Watched>(&self, spec: WatchSpec) -> Store<K> {
        self.watch_store(spec, Box::new(|_| true), false)
    }

    /// Like [`Kit::watch`], but objects that do not have the kind's shape are left out (and counted) instead of stopping the list:
    /// for custom resources.
    pub fn watch_guarded<K: Watched>(&self, spec: WatchSpec) -> Store<K> {
        self.watch_store(spec, Box::new(|_| true), true)
    }

    /// Like [`Kit::watch_guarded`], but holds only the objects for which `keep` says so (by fields that the API server cannot
    /// select). An object that stops being one of them leaves the store like a deleted one.
    pub fn watch_some<K: Watched>(
        &self,
        spec: WatchSpec,
        keep: impl Fn(&K) -> bool + Send + 'static,
    ) -> Store<K> {
        self.watch_store(spec, Box::new(keep), true)
    }

    fn watch_store<K: Watched>(&self, spec: WatchSpec, keep: Keep<K>, guard: bool) -> Store<K> {
        let store = Store::default();
        let task = into_store(
            self.surroundings(&spec),
            spec.clone(),
            store.clone(),
            keep,
            guard,
        );
        self.spawn_watch(&spec, task);
        store
    }

    /// Watches a kind without keeping objects: each event goes to `hook`, which runs in the watch's task and must not wait.
    pub fn watch_raw<K: Watched>(
        &self,
        spec: WatchSpec,
        hook: impl FnMut(WatchEvent<K>) + Send + 'static,
    ) {
        let task = into_hook(self.surroundings(&spec), spec.clone(), hook);
        self.spawn_watch(&spec, task);
    }

    fn surroundings(&self, spec: &WatchSpec) -> Surroundings {
        Surroundings {
            clients: self.clients.clone(),
            metrics: self.metrics.clone(),
            check: Arc::new(self.health.check(format!("watch {}", spec.name()))),
        }
    }

    fn spawn_watch(&self, spec: &WatchSpec, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown().clone();
        self.supervisor
            .spawn(format!("watch {}", spec.name()), async move {
                tokio::select! {
                    () = shutdown.cancelled() => Ok::<_, Infallible>(()),
                    () = task => Ok(()),
                }
            });
    }

    /// Runs passes over a queue until the shutdown.
    pub fn run_queue<K, F, Fut>(&self, queue: &Queue<K>, options: RunOptions, pass: F)
    where
        K: QueueKey,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
    {
        let run = worker::run(
            queue.clone(),
            options,
            self.metrics.clone(),
            self.shutdown().clone(),
            pass,
        );
        self.supervisor
            .spawn(format!("queue {}", queue.name()), never_fails(run));
    }

    /// Runs passes over a queue until the shutdown, only while this process leads.
    pub fn run_leading<K, F, Fut>(
        &self,
        queue: &Queue<K>,
        options: RunOptions,
        lease: &Lease,
        pass: F,
    ) where
        K: QueueKey,
        F: Fn(K, LeaderToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
    {
        let run = worker::run_leading(
            queue.clone(),
            options,
            self.metrics.clone(),
            self.shutdown().clone(),
            lease.clone(),
            pass,
        );
        self.supervisor
            .spawn(format!("queue {}", queue.name()), never_fails(run));
    }

    /// Takes part in an election. The lease is given back after all ordinary tasks have ended.
    pub fn elect(&self, settings: LeaseSettings) -> Lease {
        let (lease, task) = crate::lease::elect(
            self.clients.lease.clone(),
            settings,
            self.metrics.clone(),
            self.supervisor.late().clone(),
        );
        self.supervisor.spawn_late("lease", never_fails(task));
        lease
    }

    /// Serves the admin endpoint and waits for the end of the process.
    ///
    /// # Errors
    /// The first task that died.
    pub async fn run(self) -> Result<(), RuntimeError> {
        if let Some(listener) = self.listener {
            let serve = crate::admin::serve(
                listener,
                self.health.clone(),
                self.metrics.clone(),
                self.extra,
                self.supervisor.late().clone(),
            );
            self.supervisor.spawn_late("admin", serve);
        }
        let supervisor = self.supervisor;
        // The publisher's senders in here would otherwise keep its task waiting.
        drop(self.events);
        supervisor.finished(DRAIN).await?;
        Ok(())
    }
}

/// The pod's or host's name.
pub fn instance() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| {
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .ok()
                .map(|n| n.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

async fn never_fails(task: impl Future<Output = ()>) -> Result<(), Infallible> {
    task.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_the_host() {
        for (text, want) in [
            (":8085", Some("0.0.0.0:8085")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("[::]:8085", Some("[::]:8085")),
            ("8085", None),
            (":http", None),
            ("", None),
        ] {
            let want = want.map(|want| want.parse().unwrap());
            assert_eq!(listen_address(text).ok(), want, "{text:?}");
        }
    }
}
