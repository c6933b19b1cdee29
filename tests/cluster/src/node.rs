//! The node: containerd, kubelet and kube-proxy, and the storage classes' volumes.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cgroup::Cgroups;
use crate::command::{command, run};
use crate::daemon::{Daemon, Daemons};
use crate::images::PAUSE_IMAGE;
use crate::mounts;
use crate::network::{BRIDGE, NODE_ADDRESS, POD_RANGE, inside};
use crate::place::Place;
use crate::plane::component;

/// Starts containerd, with everything it writes below the cluster's directory.
pub(crate) fn start_containerd(place: &Place, daemons: &Daemons) -> Result<()> {
    let network = json!({
        "cniVersion": "1.0.0",
        "name": place.id,
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            // A pod reaches itself through its Service.
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{
                    "subnet": POD_RANGE, "rangeStart": "198.18.0.10", "gateway": NODE_ADDRESS,
                }]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": place.path("cni/addresses"),
            },
        }],
    });
    place.write("cni/net.d/10-bridge.conflist", network.to_string())?;

    let dir = place.dir.display();
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
    let config = place.write("containerd.toml", config)?;
    std::fs::create_dir_all(place.path("run"))?;
    daemons
        .start(Daemon::new("containerd", Path::new("containerd")).args(["--config".into(), config]))
}

/// Imports an image archive.
pub(crate) fn import_image(place: &Place, archive: &Path) -> Result<()> {
    let socket = place.text("run/containerd.sock");
    let args = [
        "ctr",
        "--address",
        &socket,
        "--namespace",
        "k8s.io",
        "images",
        "import",
    ];
    let mut import = inside(&place.netns(), args);
    run(import.arg(archive))
        .map(drop)
        .with_context(|| format!("import {}", archive.display()))
}

/// Starts the kubelet and kube-proxy.
pub(crate) fn start_kubelet(
    place: &Place,
    daemons: &Daemons,
    cgroups: &Cgroups,
    node: &str,
) -> Result<()> {
    let kubelet = place.kubelet();
    // A pod that mounts the kubelet's directory with HostToContainer receives mounts made later.
    mounts::share(&kubelet)?;
    let resolv = place.write("resolv.conf", "")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": place.path("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.pods(),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "containerRuntimeEndpoint": format!("unix://{}", place.text("run/containerd.sock")),
        "podLogsDir": place.path("pod-logs"),
        // There is no cluster DNS, and the machine's would answer with addresses that cannot be reached.
        "resolvConf": resolv,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "registerWithTaints": [],
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "serializeImagePulls": false,
        "volumeStatsAggPeriod": "-1s",
        "shutdownGracePeriod": "0s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
    });
    let config = place.write("kubelet.json", serde_json::to_string_pretty(&config)?)?;
    daemons.start(component(place, "kubelet").args([
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", place.text("pki/node.kubeconfig")),
        format!("--root-dir={}", kubelet.display()),
        format!("--cert-dir={}", place.text("pki/kubelet")),
        format!("--hostname-override={node}"),
        format!("--node-ip={NODE_ADDRESS}"),
    ]))?;

    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": place.path("pki/admin.kubeconfig")},
        "hostnameOverride": node,
        "clusterCIDR": POD_RANGE,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // The answers of a pod on the same bridge would otherwise not pass the translation back.
        "nftables": {"masqueradeAll": true, "minSyncPeriod": "100ms"},
        // These are the machine's, not the namespace's.
        "conntrack": {"maxPerCore": 0, "min": 0},
    });
    let proxy = place.write("proxy.json", proxy.to_string())?;
    daemons.start(component(place, "kube-proxy").args([format!("--config={}", proxy.display())]))
}

/// Starts the storage classes' provisioner and CSI driver.
pub(crate) fn start_volumes(
    place: &Place,
    daemons: &Daemons,
    tool: &Path,
    node: &str,
) -> Result<()> {
    daemons.start(Daemon::new("volumes", tool).args([
        format!("--kubeconfig={}", place.text("pki/admin.kubeconfig")),
        format!("--node={node}"),
        format!("--kubelet={}", place.kubelet().display()),
        format!("--dir={}", place.text("volumes")),
    ]))
}

/// Removes what containers leave outside the cluster's directory: the shims' sockets and the network plugin's results.
/// To be called when no process of the cluster is left.
pub(crate) fn remove_leftovers(place: &Place) -> Result<()> {
    let bundles = place.path("run/containerd/io.containerd.runtime.v2.task/k8s.io");
    for bundle in std::fs::read_dir(bundles).into_iter().flatten().flatten() {
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
pub(crate) fn wait_containerd(place: &Place, daemons: &Daemons) -> Result<()> {
    let socket = place.text("run/containerd.sock");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = run(&mut command(
        "ctr",
        ["--address", socket.as_str(), "version"],
    )) {
        anyhow::ensure!(
            std::time::Instant::now() < deadline,
            "containerd does not answer: {error}\n{}",
            daemons.last_words("containerd"),
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}
