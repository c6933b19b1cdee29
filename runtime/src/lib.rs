//! How a Jackline process runs: Kubernetes clients with deadlines, supervised watches, a keyed queue, the leader lease, status
//! writes, events, the admin endpoint, metrics and shutdown.
//!
//! Input: command line groups ([`RuntimeArgs`]). Output: a [`Kit`] that the two processes build their controllers from.
//! Nothing here knows what a backup is.
//!
//! ```no_run
//! # use jackline_runtime::{Kit, RuntimeArgs, WatchSpec, Queue, RunOptions, Next, Failure};
//! # use k8s_openapi::api::core::v1::Pod;
//! # async fn example(args: RuntimeArgs) -> Result<(), jackline_runtime::RuntimeError> {
//! let kit = Kit::start("jackline-example", &args).await?;
//! let pods = kit.watch::<Pod>(WatchSpec::new("pods").fields("spec.nodeName=n1"));
//! let queue = Queue::new("pods");
//! pods.enqueue(&queue, |change| vec![change.key.clone()]);
//! let store = pods.clone();
//! kit.run_queue(&queue, RunOptions::new(), move |key| {
//!     let store = store.clone();
//!     async move {
//!         store.ready().await;
//!         let _pod = store.get(&key);
//!         Ok::<_, Failure>(Next::OnChange)
//!     }
//! });
//! kit.run().await
//! # }
//! ```

pub mod admin;
pub mod client;
pub mod cluster;
pub mod events;
pub mod failure;
pub mod health;
mod key;
pub mod kit;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod queue;
pub mod secrets;
pub mod shutdown;
pub mod status;
mod store;
pub mod supervise;
pub mod watch;
pub mod worker;

pub use client::{ClientArgs, Clients};
pub use events::{Event, EventKind, Events};
pub use failure::{Class, Failure, Next};
pub use health::{Check, Health};
pub use key::Key;
pub use kit::{Kit, RuntimeArgs, RuntimeError};
pub use lease::{Epoch, LeaderToken, Lease, LeaseSettings, NotLeader};
pub use metrics::Metrics;
pub use queue::Queue;
pub use store::{Change, Store};
pub use supervise::Supervisor;
pub use tokio_util::sync::CancellationToken;
pub use watch::{WatchEvent, WatchSpec};
pub use worker::RunOptions;
