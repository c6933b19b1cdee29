//! Velero 1.14.1 itself, server and node agent, in the cluster of a test: the programs are built from its modules, put into images of the
//! names that they have in Docker's registry, and installed by `velero install`, as users do it.

use anyhow::Result;
use jackline_test_cluster::{ImageSpec, VeleroRelease};
use serde_json::json;

use crate::{BUCKET, Env, Velero, deploy};

const IMAGE: &str = "docker.io/velero/velero:v1.14.1";
/// What the server gives pods that wait for their data, unless a ConfigMap names another.
const RESTORE_HELPER_IMAGE: &str = "docker.io/velero/velero-restore-helper:v1.14.1";
const PLUGIN_IMAGE: &str = "docker.io/velero/velero-plugin-for-aws:v1.14.3";
/// Unprivileged, as in Velero's image. The node agent's DaemonSet says root.
const USER: u64 = 65532;

/// Installs Velero with a location `default` on the bucket of that name, waits until its pods are ready, and returns its client.
/// `uploader` is `restic` or `kopia`.
///
/// # Errors
/// When a program cannot be built, or does not start.
pub async fn install(env: &Env, uploader: &str) -> Result<Velero> {
    let release = tokio::task::spawn_blocking(jackline_test_cluster::velero_1_14).await??;
    for image in images(&release)? {
        env.cluster.load_image(&image)?;
    }
    let velero = Velero::of(env, release.velero)?;
    let s3 = env.cluster.s3();
    std::fs::write(velero.home().join("credentials"), s3.credentials_file())?;
    velero.run(&format!(
        "install --provider aws --plugins {plugin} --bucket {BUCKET} --secret-file ./credentials \
         --backup-location-config region={region},s3Url={inside},s3ForcePathStyle=true,publicUrl={outside} \
         --use-volume-snapshots=false --use-node-agent --uploader-type {uploader} \
         --velero-pod-cpu-request 0 --velero-pod-cpu-limit 0 \
         --node-agent-pod-cpu-request 0 --node-agent-pod-cpu-limit 0",
        plugin = short(PLUGIN_IMAGE),
        region = s3.region,
        inside = s3.endpoint,
        outside = s3.host_endpoint,
    ))?;
    find_kubelet(env)?;
    ready(env)?;
    Ok(velero)
}

/// The kubelet of the test's node is not where the installer expects it.
fn find_kubelet(env: &Env) -> Result<()> {
    let pods = env.cluster.kubelet_pods_dir();
    let plugins = pods.with_file_name("plugins");
    let patch = json!({"spec": {"template": {"spec": {"volumes": [
        {"name": "host-pods", "hostPath": {"path": pods}},
        {"name": "host-plugins", "hostPath": {"path": plugins}},
    ]}}}});
    let patch = patch.to_string();
    env.cluster
        .kubectl(["-n", "velero", "patch", "ds/node-agent", "-p", &patch])?;
    Ok(())
}

/// Waits until the server and the node agent are ready.
///
/// # Errors
/// When they are not within two minutes each.
pub fn ready(env: &Env) -> Result<()> {
    deploy::rolled_out(&env.cluster, "deployment/velero")?;
    deploy::rolled_out(&env.cluster, "daemonset/node-agent")
}

/// As the installer is told it.
fn short(image: &str) -> &str {
    image.trim_start_matches("docker.io/")
}

fn images(release: &VeleroRelease) -> Result<[ImageSpec; 3]> {
    let mut server = ImageSpec::new(IMAGE)
        .program("/velero", &release.velero)?
        .program("/usr/bin/restic", "/usr/bin/restic".as_ref())?
        .file(
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/ssl/certs/ca-certificates.crt",
            0o644,
        )
        .dir("/home/velero", 0o755, USER);
    server.entrypoint = vec!["/velero".into()];
    server.user = USER.to_string();
    server.environment.push("HOME=/home/velero".into());
    let mut helper = ImageSpec::new(RESTORE_HELPER_IMAGE)
        .program("/velero-restore-helper", &release.restore_helper)?;
    helper.entrypoint = vec!["/velero-restore-helper".into()];
    let mut plugin = ImageSpec::new(PLUGIN_IMAGE)
        .file("/bin/busybox", "/bin/busybox", 0o755)
        .program("/plugins/velero-plugin-for-aws", &release.plugin_for_aws)?;
    // The server runs what lies in the directory that this container copies it to.
    plugin.entrypoint = [
        "/bin/busybox",
        "cp",
        "/plugins/velero-plugin-for-aws",
        "/target/",
    ]
    .map(String::from)
    .to_vec();
    Ok([server, helper, plugin])
}
