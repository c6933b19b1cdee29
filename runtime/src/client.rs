//! Kubernetes clients in which every call has a deadline.
//!
//! kube's default client has no read timeout and retries for minutes inside one `await`; a black-holed connection would hang a pass
//! for ever. So there are three clients: `call` for requests (whole request and each read bounded), `watch` for long streams (only
//! the time to the response's head is bounded; the watch loop bounds silence), `lease` for leader election (short, never retried).

use std::{path::PathBuf, time::Duration};

use clap::Args;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::timeout::TimeoutLayer;

/// How to reach the API server.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// Kubeconfig file; without it $KUBECONFIG, ~/.kube/config, then the pod's service account
    #[arg(long, env = "JACKLINE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, env = "JACKLINE_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Deadline of one request to the API server
    #[arg(long, env = "JACKLINE_REQUEST_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,
}

impl Default for ClientArgs {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account leads to a cluster.
    #[error("no Kubernetes configuration found (kubeconfig or service account)")]
    Infer(#[source] kube::config::InferConfigError),
    /// The kubeconfig that was named cannot be used.
    #[error("kubeconfig {path:?} cannot be used")]
    Kubeconfig {
        /// The file, or `None` for the usual places.
        path: Option<PathBuf>,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// TLS or proxy settings do not make a client.
    #[error("the Kubernetes client cannot be built")]
    Build(#[source] kube::Error),
}

/// The clients of a process.
#[derive(Clone)]
pub struct Clients {
    /// Requests: each is over within the request timeout, retries included.
    pub call: Client,
    /// Watches, exec and log streams: no limit on the body.
    pub watch: Client,
    /// Leader election: 3 s, no retry inside the client.
    pub lease: Client,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// Makes aws-lc-rs the TLS provider of the process. Safe to call more than once.
pub fn install_crypto() {
    // An error means that a provider is installed already, which is what we want.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

impl Clients {
    /// Connects as the arguments say. Does not talk to the API server yet.
    pub async fn connect(args: &ClientArgs) -> Result<Self, ClientError> {
        install_crypto();
        let config = config(args).await?;
        Self::from_config(config, args.request_timeout)
    }

    /// The three clients over one configuration.
    pub fn from_config(config: Config, request_timeout: Duration) -> Result<Self, ClientError> {
        install_crypto();
        let mut call = config.clone();
        call.read_timeout = Some(request_timeout);
        call.reset_reader_on_write = true;
        call.connect_timeout = Some(Duration::from_secs(10).min(request_timeout));

        let mut watch = config.clone();
        watch.read_timeout = None;
        watch.default_retry = false;
        watch.connect_timeout = Some(Duration::from_secs(10).min(request_timeout));

        let short = LEASE_TIMEOUT;
        let mut lease = config;
        lease.read_timeout = Some(short);
        lease.write_timeout = Some(short);
        lease.connect_timeout = Some(short);
        lease.reset_reader_on_write = true;
        lease.default_retry = false;

        Ok(Self {
            call: build(call, request_timeout)?,
            watch: build(watch, request_timeout)?,
            lease: build(lease, short)?,
        })
    }

    /// One client for all purposes; for tests on a scripted API server.
    pub fn same(client: Client) -> Self {
        Self {
            call: client.clone(),
            watch: client.clone(),
            lease: client,
        }
    }
}

/// Deadline of one request of the leader election.
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(3);

fn build(config: Config, deadline: Duration) -> Result<Client, ClientError> {
    Ok(ClientBuilder::try_from(config)
        .map_err(ClientError::Build)?
        .with_layer(&TimeoutLayer::new(deadline))
        .build())
}

async fn config(args: &ClientArgs) -> Result<Config, ClientError> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..Default::default()
    };
    let explicit = |source| ClientError::Kubeconfig {
        path: args.kubeconfig.clone(),
        source,
    };
    if let Some(path) = &args.kubeconfig {
        let file = Kubeconfig::read_from(path).map_err(explicit)?;
        Config::from_custom_kubeconfig(file, &options)
            .await
            .map_err(explicit)
    } else if args.context.is_some() {
        Config::from_kubeconfig(&options).await.map_err(explicit)
    } else {
        Config::infer().await.map_err(ClientError::Infer)
    }
}
