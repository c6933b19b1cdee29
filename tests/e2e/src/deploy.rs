//! Installs Jackline from `deploy/`, as a user would, with what differs from cluster to cluster in one overlay.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use jackline_crds::names::CONTROLLER;
use jackline_test_cluster::Cluster;

/// What an installation for tests may set.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Arguments of the controller beside those of `deploy/`.
    pub controller_args: Vec<String>,
    /// Arguments of the node agent beside those of `deploy/`.
    pub agent_args: Vec<String>,
    /// The bucket of the location `default`; `velero` when empty.
    pub bucket: String,
    /// The controller alone, from `deploy-beside-velero/`: a Velero that is there already moves the data.
    pub beside_velero: bool,
    /// The location `default` and its credentials are there already.
    pub keep_storage: bool,
}

/// Applies `tests/e2e/deploy` with the overlay for this cluster, and returns before the pods run.
///
/// # Errors
/// When kubectl refuses.
pub fn apply(cluster: &Cluster, settings: &Settings) -> Result<()> {
    let directory = prepare(cluster, settings)?;
    // The location is of a kind that has to be served before it can be applied.
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/yaml");
    cluster.kubectl(["apply", "--server-side", "-k", crds])?;
    cluster.kubectl([
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
        "--all",
    ])?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    cluster.kubectl(["apply", "--server-side", "-k", directory])?;
    Ok(())
}

/// Waits until every pod of the installation is ready.
///
/// # Errors
/// When one is not within two minutes.
pub fn ready(cluster: &Cluster) -> Result<()> {
    rolled_out(cluster, "deployment/jackline-controller")?;
    rolled_out(cluster, "daemonset/node-agent")
}

/// Waits until the pods of a Deployment or DaemonSet of Jackline's namespace are ready.
///
/// # Errors
/// When one is not within two minutes.
pub fn rolled_out(cluster: &Cluster, object: &str) -> Result<()> {
    let status = ["-n", "velero", "rollout", "status", object];
    cluster.kubectl(status.into_iter().chain(["--timeout=120s"]))?;
    Ok(())
}

/// Has so many controllers run, and waits until they do and the others are gone.
///
/// # Errors
/// When that is not so within two minutes.
pub fn scale(cluster: &Cluster, replicas: u32) -> Result<()> {
    let deployment = format!("deployment/{CONTROLLER}");
    let wanted = format!("--replicas={replicas}");
    cluster.kubectl(["-n", "velero", "scale", &deployment, &wanted])?;
    rolled_out(cluster, &deployment)?;
    if replicas == 0 {
        let pods = format!("--selector=app.kubernetes.io/name={CONTROLLER}");
        let gone = ["wait", "--for=delete", "--timeout=120s", "pod"];
        cluster.kubectl([&["-n", "velero"], &gone[..], &[&pods]].concat())?;
    }
    Ok(())
}

/// Writes the overlay, for `kubectl apply -k` in the cluster's directory: `deploy` or `deploy-beside-velero`.
///
/// # Errors
/// When it cannot be written.
pub fn prepare(cluster: &Cluster, settings: &Settings) -> Result<PathBuf> {
    let installation = if settings.beside_velero {
        "deploy-beside-velero"
    } else {
        "deploy"
    };
    let directory = cluster.dir().join(installation);
    fs::create_dir_all(&directory)?;
    let directory = directory.canonicalize()?;
    let base = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(installation)
        .canonicalize()?;
    let pods = cluster.kubelet_pods_dir();
    let bucket = if settings.bucket.is_empty() {
        "velero"
    } else {
        &settings.bucket
    };
    let mut patches = Vec::new();
    if !settings.beside_velero {
        patches.push(patch(
            "DaemonSet",
            "node-agent",
            "replace",
            "/spec/template/spec/volumes/0/hostPath/path",
            &pods.to_string_lossy(),
        ));
    }
    if settings.keep_storage {
        for (version, kind, name) in [
            ("v1", "Secret", "cloud-credentials"),
            ("velero.io/v1", "BackupStorageLocation", "default"),
        ] {
            let delete = serde_json::json!({"$patch": "delete", "apiVersion": version, "kind": kind,
                "metadata": {"name": name, "namespace": "velero"}});
            patches.push(serde_json::json!({"patch": delete.to_string()}));
        }
    } else if !settings.beside_velero {
        patches.push(patch(
            "BackupStorageLocation",
            "default",
            "replace",
            "/spec/objectStorage/bucket",
            bucket,
        ));
    }
    for (kind, name, args) in [
        (
            "Deployment",
            "jackline-controller",
            &settings.controller_args,
        ),
        ("DaemonSet", "node-agent", &settings.agent_args),
    ] {
        if !args.is_empty() {
            patches.push(patch(
                kind,
                name,
                "add",
                "/spec/template/spec/containers/0/args",
                args,
            ));
        }
    }
    // kustomize takes no absolute path.
    let kustomization = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative(&directory, &base)],
        "patches": patches,
    });
    fs::write(
        directory.join("kustomization.yaml"),
        serde_json::to_vec_pretty(&kustomization)?,
    )?;
    Ok(directory)
}

/// One JSON patch of one object.
fn patch<V: serde::Serialize + ?Sized>(
    kind: &str,
    name: &str,
    op: &str,
    path: &str,
    value: &V,
) -> serde_json::Value {
    let operations = serde_json::json!([{"op": op, "path": path, "value": value}]);
    serde_json::json!({"target": {"kind": kind, "name": name}, "patch": operations.to_string()})
}

/// The way from one directory to another; both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), to.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}
