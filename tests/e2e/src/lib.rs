//! What the end-to-end tests, the demo and the benchmark share: a cluster with Jackline deployed, waiting, file trees, restic.

pub mod deploy;
mod env;
pub mod fixture;
pub mod guide;
mod jackline;
mod restic;
mod tls;
mod tree;
mod velero;
pub mod velero_server;
mod wait;

pub use env::{BUCKET, Env, NAMESPACE};
pub use jackline::Jackline;
pub use restic::Restic;
pub use tls::Tls;
pub use tree::{Entry, Tree};
pub use velero::Velero;
pub use wait::{until, wait_for, wait_gone};
