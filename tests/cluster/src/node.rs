//! A node: containerd, kubelet and kube-proxy, and the storage classes' volumes.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cgroup::Cgroups;
use crate::command::{command, run};
use crate::daemon::{Daemon, Daemons};
use crate::images::PAUSE_IMAGE;
use crate::network::{BRIDGE, POD_RANGE, inside};
use crate::place::Place;
use crate::plane::component;
use crate::site::Site;

/// What runs on every node.
pub(crate) const DAEMONS: [&str; 4] = ["kubelet", "kube-proxy", "volumes", "containerd"];

/// How fast a node that is gone is seen to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat {
    /// How long the lease lasts that a kubelet renews four times in this time.
    pub(crate) lease_seconds: u32,
    /// How long the controller manager waits before a node counts as gone.
    pub(crate) grace_seconds: u32,
}

impl Heartbeat {
    /// Kubernetes' own values where no node can be missed, short ones where tests wait for it.
    pub(crate) fn of(nodes: usize) -> Self {
        let (lease_seconds, grace_seconds) = if nodes > 1 { (12, 20) } else { (40, 50) };
        Self {
            lease_seconds,
            grace_seconds,
        }
    }
}

/// Starts containerd, with everything it writes below the cluster's directory.
pub(crate) fn start_containerd(site: &Site, daemons: &Daemons) -> Result<()> {
    let (first, last) = site.pods();
    let network = json!({
        "cniVersion": "1.0.0",
        "name": site.place.id,
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            // A pod reaches itself through its Service.
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{
                    "subnet": POD_RANGE, "rangeStart": first, "rangeEnd": last,
                    "gateway": site.address(),
                }]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": site.path("cni/addresses"),
            },
        }],
    });
    site.write("cni/net.d/10-bridge.conflist", network.to_string())?;

    let dir = site.text("");
    let dir = dir.trim_end_matches('/');
    let config = format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{dir}/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{dir}/run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{dir}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{dir}/run/runc"
"#
    );
    let config = site.write("containerd.toml", config)?;
    std::fs::create_dir_all(site.path("run"))?;
    let containerd = Daemon::new("containerd", Path::new("containerd")).on(site);
    daemons.start(containerd.args(["--config".into(), config]))
}

/// Imports an image archive.
pub(crate) fn import_image(site: &Site, archive: &Path) -> Result<()> {
    let socket = site.text("run/containerd.sock");
    let args = [
        "ctr",
        "--address",
        &socket,
        "--namespace",
        "k8s.io",
        "images",
        "import",
    ];
    let mut import = inside(&site.place.netns(), args);
    run(import.arg(archive))
        .map(drop)
        .with_context(|| format!("import {}", archive.display()))
}

/// Starts the kubelet.
pub(crate) fn start_kubelet(
    site: &Site,
    daemons: &Daemons,
    cgroups: &Cgroups,
    heartbeat: Heartbeat,
) -> Result<()> {
    let place = &site.place;
    let resolv = site.write("resolv.conf", "")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": site.address(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": place.path("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.pods(&site.group()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "containerRuntimeEndpoint": format!("unix://{}", site.text("run/containerd.sock")),
        "podLogsDir": site.path("pod-logs"),
        // There is no cluster DNS, and the machine's would answer with addresses that cannot be reached.
        "resolvConf": resolv,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "nodeLeaseDurationSeconds": heartbeat.lease_seconds,
        "registerWithTaints": [],
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "serializeImagePulls": false,
        "volumeStatsAggPeriod": "-1s",
        "shutdownGracePeriod": "0s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
    });
    let config = site.write("kubelet.json", serde_json::to_string_pretty(&config)?)?;
    daemons.start(component(place, "kubelet").on(site).args([
        format!("--config={}", config.display()),
        format!(
            "--kubeconfig={}",
            place.text(&format!("pki/{}.kubeconfig", site.user()))
        ),
        // Where the first node has its own, too: the others see another directory there.
        format!("--root-dir={}", place.kubelet().display()),
        format!("--cert-dir={}", site.text("pki/kubelet")),
        format!("--hostname-override={}", site.name),
        format!("--node-ip={}", site.address()),
    ]))
}

/// Starts kube-proxy.
pub(crate) fn start_proxy(site: &Site, daemons: &Daemons) -> Result<()> {
    let place = &site.place;
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": place.path("pki/admin.kubeconfig")},
        "hostnameOverride": site.name,
        "clusterCIDR": POD_RANGE,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // The answers of a pod on the same bridge would otherwise not pass the translation back.
        "nftables": {"masqueradeAll": true, "minSyncPeriod": "100ms"},
        // These are the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0},
    });
    let proxy = site.write("proxy.json", proxy.to_string())?;
    let daemon = component(place, "kube-proxy").on(site);
    daemons.start(daemon.args([format!("--config={}", proxy.display())]))
}

/// Starts the storage classes' provisioner and CSI driver.
pub(crate) fn start_volumes(site: &Site, daemons: &Daemons, tool: &Path) -> Result<()> {
    let place = &site.place;
    let mut volumes = Daemon::new("volumes", tool).on(site);
    // The first node's provisions for all.
    if !site.is_first() {
        volumes = volumes.args(["--driver-only"]);
    }
    daemons.start(volumes.args([
        format!("--kubeconfig={}", place.text("pki/admin.kubeconfig")),
        format!("--node={}", site.name),
        format!("--kubelet={}", place.kubelet().display()),
        format!("--dir={}", place.text("volumes")),
    ]))
}

/// Removes what containers leave outside the cluster's directory: the shims' sockets and the network plugin's results.
/// To be called when no process of the cluster is left.
pub(crate) fn remove_leftovers(place: &Place) -> Result<()> {
    // Of all nodes, whether or not anybody remembers which there were.
    let below = std::fs::read_dir(&place.dir)
        .into_iter()
        .flatten()
        .flatten();
    let roots = below.map(|entry| entry.path()).chain([place.dir.clone()]);
    let bundles = roots.flat_map(|root| {
        let bundles = root.join("run/containerd/io.containerd.runtime.v2.task/k8s.io");
        std::fs::read_dir(bundles).into_iter().flatten().flatten()
    });
    for bundle in bundles {
        let address = std::fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            let _ = std::fs::remove_file(socket);
        }
    }
    let network = format!("{}-", place.id);
    for result in std::fs::read_dir("/var/lib/cni/results")
        .into_iter()
        .flatten()
        .flatten()
    {
        if result.file_name().to_string_lossy().starts_with(&network) {
            std::fs::remove_file(result.path()).context("remove a network plugin's result")?;
        }
    }
    Ok(())
}

/// Waits until containerd answers.
pub(crate) fn wait_containerd(site: &Site, daemons: &Daemons) -> Result<()> {
    let socket = site.text("run/containerd.sock");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = run(&mut command(
        "ctr",
        ["--address", socket.as_str(), "version"],
    )) {
        anyhow::ensure!(
            std::time::Instant::now() < deadline,
            "containerd does not answer: {error}\n{}",
            daemons.last_words(&site.daemon("containerd")),
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}
