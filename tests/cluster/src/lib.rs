//! A real Kubernetes of one node or several to test on: etcd, API server, controller manager, scheduler, kube-proxy, kubelet,
//! containerd, two storage classes and an S3 server, all in a network namespace of their own.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use jackline_test_cluster::{Cluster, Options};
//!
//! let cluster = Cluster::up(Options::named("example")).await?;
//! cluster.kubectl(["get", "nodes"])?;
//! cluster.down()?;
//! # Ok(())
//! # }
//! ```
//!
//! Programs on the machine reach the API server and S3 through loopback ports; programs in the cluster, and those started
//! with [`Cluster::enter`], through the node's address. There is no cluster DNS: pods find the API server in their
//! environment and S3 by address.

mod cgroup;
mod cluster;
mod command;
mod daemon;
mod images;
mod machine;
mod minio;
mod mounts;
mod network;
mod node;
mod oci;
mod packages;
mod pki;
mod place;
mod plane;
mod s3;
mod site;
mod state;
mod tools;
mod up;

pub use cluster::Cluster;
pub use images::{AGENT_IMAGE, BUSYBOX_IMAGE, CONTROLLER_IMAGE, NGINX_IMAGE, Programs};
pub use machine::Machine;
pub use minio::Minio;
pub use network::NODE_ADDRESS;
pub use oci::ImageSpec;
pub use s3::{Object, S3};
pub use tools::{
    VeleroRelease, build_all as build_tools, minio, velero, velero_1_14, velero_source,
};
pub use up::{Options, Stage};
