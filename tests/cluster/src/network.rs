//! A cluster's network: a namespace of its own with one bridge, whose address is the node's and the pods' gateway. Nothing
//! in it reaches the machine's network; [`forward`] carries single ports over.

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
pub(crate) const POD_RANGE: &str = "198.18.0.0/24";
pub(crate) const SERVICE_RANGE: &str = "198.19.0.0/24";
pub(crate) const BRIDGE: &str = "cni0";

const SETUP: &str = "
ip link set lo up
ip link add $1 type bridge
ip address add $2/24 dev $1
ip link set $1 up
echo 1 > /proc/sys/net/ipv4/ip_forward
";

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
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .args(args);
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
