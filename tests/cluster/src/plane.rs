//! The control plane: etcd, API server, and on request the controller manager and the scheduler.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::daemon::{Daemon, Daemons};
use crate::network::{NODE_ADDRESS, SERVICE_RANGE};
use crate::node::Heartbeat;
use crate::pki;
use crate::place::Place;
use crate::site::Site;

pub(crate) const API_PORT: u16 = 6443;
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(90);

/// Everything is in one binary, which looks at its own name; `bin/` holds a link for each component.
pub(crate) fn link_components(place: &Place, kube: &Path) -> Result<()> {
    std::fs::create_dir_all(place.path("bin"))?;
    for component in [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-proxy",
        "kubelet",
        "kubectl",
    ] {
        std::os::unix::fs::symlink(kube, component_path(place, component))
            .with_context(|| format!("link {component}"))?;
    }
    Ok(())
}

pub(crate) fn component_path(place: &Place, component: &str) -> PathBuf {
    place.path("bin").join(component)
}

pub(crate) fn component(place: &Place, name: &str) -> Daemon {
    Daemon::new(name, &component_path(place, name))
}

/// Starts etcd and the API server.
pub(crate) fn start_api(
    place: &Place,
    daemons: &Daemons,
    nodes: &[Site],
    audit: bool,
) -> Result<()> {
    pki::create(place, nodes)?;
    let inside = format!("https://{NODE_ADDRESS}:{API_PORT}");
    pki::kubeconfig(place, "pki/admin.kubeconfig", "admin", &inside)?;
    for user in nodes.iter().map(Site::user) {
        pki::kubeconfig(place, &format!("pki/{user}.kubeconfig"), &user, &inside)?;
    }

    daemons.start(component(place, "etcd").args([
        format!("--data-dir={}", place.text("etcd")),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
        // A crash of the machine takes the cluster with it anyway.
        "--unsafe-no-fsync".to_owned(),
        "--quota-backend-bytes=4294967296".to_owned(),
        "--log-level=warn".to_owned(),
    ]))?;

    let pki = |name: &str| place.text(&format!("pki/{name}"));
    let mut args = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={NODE_ADDRESS}"),
        format!("--advertise-address={NODE_ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki("tokens.pub")),
        format!("--service-account-signing-key-file={}", pki("tokens.key")),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if audit {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        });
        let policy = place.write("audit-policy.json", policy.to_string())?;
        args.push(format!("--audit-policy-file={}", policy.display()));
        args.push(format!(
            "--audit-log-path={}",
            place.text("logs/audit.jsonl")
        ));
    }
    daemons.start(component(place, "kube-apiserver").args(args))
}

pub(crate) fn start_controller_manager(
    place: &Place,
    daemons: &Daemons,
    heartbeat: Heartbeat,
) -> Result<()> {
    let admin = place.text("pki/admin.kubeconfig");
    daemons.start(component(place, "kube-controller-manager").args([
        format!("--kubeconfig={admin}"),
        format!(
            "--service-account-private-key-file={}",
            place.text("pki/tokens.key")
        ),
        format!("--root-ca-file={}", place.text("pki/ca.crt")),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        format!("--node-monitor-grace-period={}s", heartbeat.grace_seconds),
        "--pvclaimbinder-sync-period=1s".to_owned(),
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
        "--profiling=false".to_owned(),
    ]))
}

pub(crate) fn start_scheduler(place: &Place, daemons: &Daemons) -> Result<()> {
    let admin = place.text("pki/admin.kubeconfig");
    let config = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": admin, "qps": 200, "burst": 400},
        "leaderElection": {"leaderElect": false},
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 2,
    });
    let config = place.write("scheduler.json", config.to_string())?;
    daemons.start(component(place, "kube-scheduler").args([
        format!("--config={}", config.display()),
        "--bind-address=127.0.0.1".to_owned(),
    ]))
}

/// Waits until the API server answers that it is ready.
pub(crate) async fn wait_ready(client: &kube::Client, daemons: &Daemons) -> Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let request = http_get("/readyz")?;
        match client.request_text(request).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                let said = daemons.last_words("kube-apiserver");
                bail!("the API server did not become ready: {error}; its log ends with\n{said}");
            }
            Err(_) => {
                daemons.ensure_running(&["etcd", "kube-apiserver", "forward-api"])?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .context("build a request")
}
