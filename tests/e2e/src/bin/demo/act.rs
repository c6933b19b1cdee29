//! The single acts of the story.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{annotation, label};
use jackline_crds::velero::{Backup, BackupPhase, PodVolumeBackup, PodVolumePhase};
use jackline_e2e::{BUCKET, Env, Tree, until};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

pub(crate) const NAMESPACE: &str = "nginx-example";
pub(crate) const POLICY: &str = "everything";
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends requests to the nginx Service, from the database's pod.
pub(crate) fn requests(env: &Env, count: u32) -> Result<()> {
    let jsonpath = "jsonpath={.spec.clusterIP}";
    let address = env
        .cluster
        .kubectl(["-n", NAMESPACE, "get", "service", "nginx", "-o", jsonpath])?;
    let each = format!(
        "for i in $(seq {count}); do wget -q -O /dev/null http://{address}/?page=$i || exit 1; done"
    );
    env.cluster
        .kubectl(["-n", NAMESPACE, "exec", "db-0", "--", "sh", "-c", &each])
        .with_context(|| format!("nginx did not answer all of {count} requests"))?;
    Ok(())
}

/// Gives the database volume everything that a backup has to bring back.
pub(crate) async fn fill_database(env: &Env) -> Result<()> {
    let script = "cd /data && mkdir -p etc/empty && echo 'max = 10' > etc/db.conf && chmod 0640 etc/db.conf \
        && chown 1000:2000 etc/db.conf && ln -s etc/db.conf link && ln etc/db.conf hard && mkfifo pipe \
        && touch -d '2020-03-20 02:20:00' etc/empty && chmod 1777 etc/empty";
    env.cluster.exec(NAMESPACE, "db-0", &["sh", "-c", script])?;
    let volume = env.volume_dir(NAMESPACE, "db-0", "data").await?;
    xattr::set(volume.join("etc/db.conf"), "user.origin", b"demo")?;
    new_blob(env)
}

/// Replaces 24 MiB of random data: what the old one needs in the repository becomes garbage once its backups are gone.
pub(crate) fn new_blob(env: &Env) -> Result<()> {
    let script = "dd if=/dev/urandom of=/data/blob.new bs=1M count=24 2>/dev/null && mv /data/blob.new /data/blob && sync";
    env.cluster
        .exec(NAMESPACE, "db-0", &["sh", "-c", script])
        .map(drop)
}

/// The pods' annotated volumes, once every workload has its own.
pub(crate) async fn annotated(env: &Env) -> Result<Vec<(String, String)>> {
    until(
        "one nginx pod and db-0 are annotated",
        PATIENCE,
        async || {
            let pods = env
                .api_in::<Pod>(NAMESPACE)
                .list(&ListParams::default())
                .await?;
            let found: Vec<_> = pods.items.into_iter().filter_map(volumes_of).collect();
            Ok((found.len() >= 2).then_some(found))
        },
    )
    .await
}

fn volumes_of(pod: Pod) -> Option<(String, String)> {
    let volumes = pod
        .metadata
        .annotations?
        .remove(annotation::BACKUP_VOLUMES)?;
    Some((pod.metadata.name?, volumes))
}

/// The policy's backups, oldest first.
pub(crate) async fn backups(env: &Env) -> Result<Vec<Backup>> {
    let labels = format!("{}={POLICY}", label::SCHEDULE_NAME);
    let mut found = env
        .api::<Backup>()
        .list(&ListParams::default().labels(&labels))
        .await?
        .items;
    found.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    Ok(found)
}

pub(crate) fn name(backup: &Backup) -> String {
    backup.metadata.name.clone().unwrap_or_default()
}

/// Waits for a Completed backup of the policy that started after `since` and holds both volumes.
pub(crate) async fn next_good(
    env: &Env,
    since: jiff::Timestamp,
) -> Result<(Backup, Vec<PodVolumeBackup>)> {
    until(
        "the next scheduled backup is Completed with both volumes",
        PATIENCE,
        async || {
            for backup in backups(env).await? {
                let Some(status) = &backup.status else {
                    continue;
                };
                let started = status
                    .start_timestamp
                    .as_ref()
                    .is_some_and(|at| at.0 > since);
                if !started || status.phase != Some(BackupPhase::Completed) {
                    continue;
                }
                let volumes = env.volumes_of(&name(&backup)).await?;
                if volumes.iter().filter(|volume| is_good(volume)).count() == 2 {
                    return Ok(Some((backup, volumes)));
                }
            }
            Ok(None)
        },
    )
    .await
}

pub(crate) fn is_good(volume: &PodVolumeBackup) -> bool {
    let status = volume.status.as_ref();
    status.is_some_and(|s| s.phase == Some(PodVolumePhase::Completed) && s.snapshot_id.is_some())
}

/// `volume: total (added)` of each volume, in MiB.
pub(crate) fn sizes(volumes: &[PodVolumeBackup]) -> String {
    let mut lines: Vec<_> = volumes
        .iter()
        .map(|volume| {
            let status = volume.status.as_ref();
            let total = status
                .and_then(|s| s.progress.as_ref())
                .map_or(0, |p| p.total_bytes);
            let added = status.map_or(0, |s| s.incremental_bytes);
            format!(
                "{} {} ({} added)",
                volume.spec.volume,
                mebibytes(total),
                mebibytes(added)
            )
        })
        .collect();
    lines.sort();
    lines.join(", ")
}

pub(crate) fn mebibytes(bytes: i64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let value = bytes as f64 / f64::from(1 << 20);
    format!("{value:.2} MiB")
}

/// Bytes of the namespace's repository in the bucket.
pub(crate) async fn repository_size(env: &Env) -> Result<i64> {
    let size = env
        .cluster
        .s3()
        .size(BUCKET, &format!("restic/{NAMESPACE}/"))
        .await?;
    Ok(i64::try_from(size)?)
}

/// The volumes' contents: the nginx logs and the database. The root directory's own times are left out: at a restore a marker file
/// comes and goes there.
pub(crate) async fn contents(env: &Env) -> Result<(Tree, Tree)> {
    let nginx = env.ready_pods(NAMESPACE, "app=nginx").await?;
    let nginx = nginx.first().context("no nginx pod is ready")?;
    let logs = env.volume_dir(NAMESPACE, nginx, "nginx-logs").await?;
    let data = env.volume_dir(NAMESPACE, "db-0", "data").await?;
    Ok((read(&logs)?, read(&data)?))
}

fn read(directory: &Path) -> Result<Tree> {
    let mut tree = Tree::read(directory)?;
    if let Some(root) = tree.0.get_mut(b"".as_slice()) {
        root.modified = None;
    }
    Ok(tree)
}

/// The coverage table, once it knows the policy.
pub(crate) async fn coverage(env: &Env) -> Result<String> {
    let args = ["coverage", "-n", NAMESPACE];
    until("coverage names the policy", PATIENCE, async || {
        let table = jackline(env, &args)?;
        Ok((table.matches(POLICY).count() == 2).then_some(table))
    })
    .await
}

/// Waits until three backups have come to their end after `since`. Retention may take each of them away again.
pub(crate) async fn three_ticks(env: &Env, since: jiff::Timestamp) -> Result<()> {
    let mut seen = BTreeSet::new();
    until("three more ticks", 2 * PATIENCE, async || {
        for backup in backups(env).await? {
            let status = backup.status.as_ref();
            let ended = status.and_then(|status| status.completion_timestamp.as_ref());
            if ended.is_some_and(|at| at.0 > since) {
                seen.insert(name(&backup));
            }
        }
        Ok((seen.len() >= 3).then_some(()))
    })
    .await
}

/// Runs `jackline` beside this program, with the cluster's kubeconfig.
fn jackline(env: &Env, args: &[&str]) -> Result<String> {
    let program = std::env::current_exe()?.with_file_name("jackline");
    ensure!(
        program.metadata().is_ok_and(|m| m.mode() & 0o111 != 0),
        "{} is not built",
        program.display()
    );
    let output = Command::new(program)
        .args(args)
        .env("KUBECONFIG", env.cluster.kubeconfig())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr))
}

/// Some lines of a pod's `/metrics`, by the beginning of their names.
pub(crate) fn metrics(env: &Env, pod: &str, names: &[&str]) -> Result<Vec<String>> {
    let path = format!("/api/v1/namespaces/velero/pods/{pod}:8085/proxy/metrics");
    let page = env.cluster.kubectl(["get", "--raw", &path])?;
    let wanted = |line: &&str| names.iter().any(|name| line.starts_with(name));
    Ok(page.lines().filter(wanted).map(str::to_owned).collect())
}
