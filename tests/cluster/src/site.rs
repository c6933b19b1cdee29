//! Where a node is: its files, network, mounts and control group.
//!
//! The first node has the cluster's own directory and network namespace. Every other has a directory named after it, a network
//! namespace joined to the cluster's bridge, and a mount namespace in which its kubelet's directory lies where the first
//! node's does: a host path means the same on every node, as it does where nodes are machines.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::command::{command, run};
use crate::daemon::Namespaces;
use crate::mounts;
use crate::network;
use crate::place::Place;

#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) place: Place,
    /// The node's name.
    pub(crate) name: String,
    index: u8,
}

/// The mounts of another node: its kubelet's directory in the place of the first node's. The mount that the cluster's directory is
/// on becomes private to the node before, or the other nodes would see the exchange.
const MOUNTS: &str = r#"
mount --make-private "$(stat -c %m "$3")"
umount "$2"
mount --bind "$1" "$2"
"#;

impl Site {
    /// The sites of nodes with these names, the first one first.
    pub(crate) fn all(place: &Place, names: &[String]) -> Vec<Self> {
        (0..)
            .zip(names)
            .map(|(index, name)| Self {
                place: place.clone(),
                name: name.clone(),
                index,
            })
            .collect()
    }

    pub(crate) fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Where something of this node alone lies, relative to the cluster's directory.
    pub(crate) fn inside(&self, inside: &str) -> String {
        if self.is_first() {
            inside.to_owned()
        } else {
            format!("{}/{inside}", self.name)
        }
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.place.path(&self.inside(inside))
    }

    pub(crate) fn text(&self, inside: &str) -> String {
        self.path(inside).display().to_string()
    }

    pub(crate) fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        self.place.write(&self.inside(inside), content)
    }

    /// The name of a daemon of this node: `kubelet`, `kubelet-node-2`.
    pub(crate) fn daemon(&self, name: &str) -> String {
        if self.is_first() {
            name.to_owned()
        } else {
            format!("{name}-{}", self.name)
        }
    }

    /// The user of the node's kubelet, by the name of its files in `pki/`.
    pub(crate) fn user(&self) -> String {
        self.daemon("node")
    }

    /// The node's address.
    pub(crate) fn address(&self) -> Ipv4Addr {
        network::node_address(self.index)
    }

    /// The first and the last address of its pods.
    pub(crate) fn pods(&self) -> (Ipv4Addr, Ipv4Addr) {
        network::pod_addresses(self.index)
    }

    /// The kubelet's root directory as the machine sees it.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.path("kubelet")
    }

    /// The name of its pods' control group.
    pub(crate) fn group(&self) -> String {
        self.daemon("pods")
    }

    fn mount_namespace(&self) -> PathBuf {
        self.path("ns/mnt")
    }

    /// What its daemons run in.
    pub(crate) fn namespaces(&self) -> Namespaces {
        Namespaces {
            network: self.path("netns"),
            mounts: (!self.is_first()).then(|| self.mount_namespace()),
        }
    }

    /// Makes what the node's programs need before they start. The first node is to be prepared first.
    pub(crate) fn prepare(&self) -> Result<()> {
        // A pod that mounts the kubelet's directory with HostToContainer receives mounts made later.
        mounts::share(&self.kubelet())?;
        if self.is_first() {
            return Ok(());
        }
        self.join_network()
            .with_context(|| format!("the network of {}", self.name))?;
        self.hide_first()
            .with_context(|| format!("the mounts of {}", self.name))
    }

    /// A bridge of the node's own in a namespace of its own, joined to the cluster's by a pair of interfaces.
    fn join_network(&self) -> Result<()> {
        let netns = self.write("netns", "")?;
        let held = format!("--net={}", netns.display());
        run(&mut command("unshare", [held.as_str(), "true"]))?;
        network::join(&self.place, &netns, self.index)
    }

    fn hide_first(&self) -> Result<()> {
        let file = self.write("ns/mnt", "")?;
        // A mount namespace cannot be held by a file on a mount that propagates.
        let held = self.path("ns");
        mount_bind(&held, &held)?;
        mount_change(&held, MountPropagationFlags::PRIVATE)?;
        let namespace = format!("--mount={}", file.display());
        let mut unshare = command(
            "unshare",
            [namespace.as_str(), "--propagation", "unchanged"],
        );
        unshare.args(["sh", "-ec", MOUNTS, "mounts"]);
        unshare.arg(self.kubelet()).arg(self.place.kubelet());
        run(unshare.arg(&self.place.dir)).map(drop)
    }

    /// Where containerd keeps what it knows of running containers.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.path("run/containerd/io.containerd.runtime.v2.task/k8s.io")
    }
}
