//! One node of a running cluster, to be taken away and brought back.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::site::Site;
use crate::{node, tools, up};

/// A kubelet that does not find what it needs has ended by then.
const STAYS: Duration = Duration::from_secs(2);

/// A node and everything that runs on it. The control plane and the object storage are no node's.
#[derive(Debug)]
pub struct Machine<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) site: Site,
}

impl Machine<'_> {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// Where the volumes of its pods are, on this machine.
    pub fn pods_dir(&self) -> PathBuf {
        self.site.kubelet().join("pods")
    }

    /// Ends everything on the node at once, as a loss of power does. Its volumes' data stays. The cluster takes note when the
    /// kubelet has been silent for a while: some 20 seconds in a cluster of several nodes.
    ///
    /// Without the first node no volumes are provisioned.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn stop(&self) -> Result<()> {
        for daemon in node::DAEMONS {
            let name = self.site.daemon(daemon);
            self.cluster.daemons().stop(&name, Signal::KILL)?;
        }
        self.cluster.cgroups().kill(&self.site.group())
    }

    /// Starts the node again and waits until it takes pods.
    ///
    /// # Errors
    /// When a daemon does not start.
    pub async fn start(&self) -> Result<()> {
        let daemons = self.cluster.daemons();
        node::start_containerd(&self.site, daemons)?;
        node::wait_containerd(&self.site, daemons)?;
        node::start_volumes(&self.site, daemons, &tools::ready(tools::VOLUMES)?)?;
        node::start_proxy(&self.site, daemons)?;
        self.start_kubelet().await?;
        up::wait_node(&self.cluster.client(), daemons, &self.site).await
    }

    /// containerd answers before it has looked through the containers that it finds, and a kubelet that comes too early ends: it is
    /// started until one stays.
    async fn start_kubelet(&self) -> Result<()> {
        let daemons = self.cluster.daemons();
        let heartbeat = node::Heartbeat::of(self.cluster.nodes().len());
        let kubelet = self.site.daemon("kubelet");
        for _ in 0..10 {
            node::start_kubelet(&self.site, daemons, self.cluster.cgroups(), heartbeat)?;
            tokio::time::sleep(STAYS).await;
            if daemons.pid(&kubelet).is_some() {
                return Ok(());
            }
        }
        daemons.ensure_running(&[&kubelet])
    }
}
