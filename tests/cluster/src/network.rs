//! A cluster's network: a namespace of its own with one bridge, whose address is the node's and the pods' gateway. Every further
//! node has a namespace and a bridge of its own, joined to the first: all of them are one link, so there is nothing to route.
//! Nothing in it reaches the machine's network; [`forward`] carries single ports over.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{command, run};
use crate::daemon::{Daemon, Daemons};
use crate::place::Place;

/// The node's address, and where pods reach it: benchmark addresses (RFC 2544), which no real network routes.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The first address of the Services: the API server as pods see it.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// Nodes and pods: the nth node is 198.18.n.1 and its pods are in 198.18.n.0/24, counted from 0.
pub(crate) const POD_RANGE: &str = "198.18.0.0/16";
pub(crate) const SERVICE_RANGE: &str = "198.19.0.0/24";
pub(crate) const BRIDGE: &str = "cni0";

const SETUP: &str = "
ip link set lo up
ip link add $1 type bridge
ip address add $2/16 dev $1
ip link set $1 up
echo 1 > /proc/sys/net/ipv4/ip_forward
";

/// The other end of the pair is in this namespace and takes its place on this bridge. The bridge has a hardware address of its
/// own: else it would take its ports', and its neighbours would ask for one that has gone.
const JOIN: &str = "
ip link add $1 address $3 type bridge
ip link set lo up
ip address add $2/16 dev $1
ip link set uplink master $1
ip link set uplink up
ip link set $1 up
echo 1 > /proc/sys/net/ipv4/ip_forward
";

/// The address of the nth node.
pub(crate) fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, index, 1)
}

/// The first and the last address of the pods of the nth node.
pub(crate) fn pod_addresses(index: u8) -> (Ipv4Addr, Ipv4Addr) {
    (
        Ipv4Addr::new(198, 18, index, 10),
        Ipv4Addr::new(198, 18, index, 254),
    )
}

/// Sets up the namespace of another node.
pub(crate) fn join(place: &Place, netns: &Path, index: u8) -> Result<()> {
    let (port, address) = (format!("node{index}"), node_address(index).to_string());
    let hardware = format!("02:00:c6:12:{index:02x}:01");
    let here = place.netns();
    run(&mut inside(
        &here,
        [
            "ip", "link", "add", &port, "type", "veth", "peer", "name", "uplink",
        ],
    ))?;
    let mut hand_over = inside(&here, ["ip", "link", "set", "uplink", "netns"]);
    run(hand_over.arg(netns))?;
    let attach = "ip link set $1 master $2; ip link set $1 up";
    run(&mut inside(
        &here,
        ["sh", "-ec", attach, "attach", &port, BRIDGE],
    ))?;
    let setup = ["sh", "-ec", JOIN, "join", BRIDGE, &address, &hardware];
    run(&mut inside(netns, setup)).map(drop)
}

/// Makes the namespace, held by a mount on a file of the cluster's directory.
pub(crate) fn create(place: &Place) -> Result<()> {
    let netns = place.write("netns", "")?;
    let held = format!("--net={}", netns.display());
    run(&mut command("unshare", [held.as_str(), "true"])).context("make a network namespace")?;
    let node = NODE_ADDRESS.to_string();
    let setup = ["sh", "-ec", SETUP, "setup", BRIDGE, node.as_str()];
    run(&mut inside(&netns, setup)).context("set up the cluster's network")?;
    Ok(())
}

/// A listening socket on the node's address and a free port. It is served from here: a socket stays in the namespace it was made in.
pub(crate) fn listen(netns: &Path) -> Result<TcpListener> {
    let netns = File::open(netns)?;
    // The namespace belongs to the thread, which ends with it.
    let made = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(netns.as_fd(), kind)?;
        TcpListener::bind((NODE_ADDRESS, 0))
    });
    let made = made
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
    made.context("listen in the cluster's network")
}

/// A command that runs in the namespace, in the machine's file system and control groups.
pub(crate) fn inside<I, S>(netns: &Path, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    inside_both(netns, None, args)
}

/// As [`inside`], and in a mount namespace where there is one.
pub(crate) fn inside_both<I, S>(netns: &Path, mounts: Option<&Path>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display()));
    if let Some(mounts) = mounts {
        command.arg(format!("--mount={}", mounts.display()));
    }
    command.arg("--").args(args);
    command
}

/// Makes a port of the cluster's node reachable on the machine's loopback and returns the port there. The listening socket
/// is made here and served by a process inside: a socket stays in the namespace it was made in.
pub(crate) fn forward(daemons: &Daemons, tool: &Path, name: &str, port: u16) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let outside = listener.local_addr()?.port();
    let to = SocketAddr::from((NODE_ADDRESS, port)).to_string();
    daemons.start(
        Daemon::new(format!("forward-{name}"), tool)
            .args([to])
            .stdin(OwnedFd::from(listener)),
    )?;
    Ok(outside)
}
