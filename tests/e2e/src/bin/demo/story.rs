//! The order of things, and what is said about each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, Restore};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{BUCKET, Env, until, wait_gone};
use jackline_test_cluster::{Cluster, Options};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::act::{self, NAMESPACE, POLICY};

const WORKLOADS: &str = include_str!("../../../demo/workloads.yaml");
const POLICY_YAML: &str = include_str!("../../../demo/policy.yaml");

/// Prints each step with the time it took.
struct Teller {
    started: Instant,
    last: Instant,
}

impl Teller {
    fn says(&mut self, line: &str) {
        println!(
            "{:6.1}s +{:<5.1} {line}",
            self.started.elapsed().as_secs_f64(),
            self.last.elapsed().as_secs_f64()
        );
        self.last = Instant::now();
    }

    fn shows(&self, text: &str) {
        text.lines()
            .for_each(|line| println!("                 {line}"));
    }
}

/// Tells the story; an error is where it went another way.
///
/// # Errors
/// When any step does not end as it should.
pub(crate) async fn tell(dir: &Path, keep: bool) -> Result<()> {
    let mut teller = Teller {
        started: Instant::now(),
        last: Instant::now(),
    };
    Cluster::down_at(dir)?;
    let options = Options {
        keep,
        ..Options::new(dir)
    };
    let env = Env::up_with(options, &Settings::default()).await?;
    teller.says("Kubernetes and S3 run; Jackline is deployed: two controllers, a node agent");

    env.cluster.apply(WORKLOADS)?;
    for workload in ["deployment/nginx", "statefulset/db"] {
        env.cluster.kubectl([
            "-n",
            NAMESPACE,
            "rollout",
            "status",
            workload,
            "--timeout=90s",
        ])?;
    }
    act::fill_database(&env).await?;
    act::requests(&env, 100)?;
    teller.says("nginx-example runs: two nginx pods on one shared claim, db on a CSI claim with a cache; 100 requests logged");

    let before_policy = Timestamp::now();
    env.cluster.apply(POLICY_YAML)?;
    let annotated = act::annotated(&env).await?;
    let nginx = annotated
        .iter()
        .filter(|(pod, volumes)| pod.starts_with("nginx-") && volumes == "nginx-logs")
        .count();
    let db = annotated
        .iter()
        .any(|(pod, volumes)| pod == "db-0" && volumes == "data");
    ensure!(
        nginx == 1 && db && annotated.len() == 2,
        "not the right pods are annotated: {annotated:?}"
    );
    teller.says("one policy applied; one of the two nginx pods carries the shared claim, db-0 its data, nobody the cache:");
    let lines: Vec<_> = annotated
        .iter()
        .map(|(pod, volumes)| format!("{pod}: {volumes}"))
        .collect();
    teller.shows(&lines.join("\n"));
    teller.shows(&act::coverage(&env).await?);

    let (first, volumes) = act::next_good(&env, before_policy).await?;
    teller.says(&format!(
        "backup {} Completed by itself: {}",
        act::name(&first),
        act::sizes(&volumes)
    ));
    teller.shows(&listing(&env, &act::name(&first)).await?);

    let mut since = Timestamp::now();
    for round in 1..=2 {
        act::requests(&env, 50)?;
        act::new_blob(&env)?;
        since = Timestamp::now();
        if round == 1 {
            let (second, volumes) = act::next_good(&env, since).await?;
            teller.says(&format!(
                "50 more requests, a new blob; backup {}: {}",
                act::name(&second),
                act::sizes(&volumes)
            ));
        }
    }
    let at_backup = act::contents(&env).await?;
    let (third, volumes) = act::next_good(&env, since).await?;
    teller.says(&format!(
        "50 more requests, a new blob; backup {}: {}",
        act::name(&third),
        act::sizes(&volumes)
    ));

    let full = act::repository_size(&env).await?;
    wait_gone(
        &env.api::<Backup>(),
        &act::name(&first),
        Duration::from_secs(60),
    )
    .await?;
    teller.says(&format!(
        "retention (keepLast 2) deleted {}; its snapshots are forgotten",
        act::name(&first)
    ));
    let blob = 20 << 20;
    let pruned = until(
        "prune gives the space back",
        Duration::from_secs(90),
        async || {
            let size = act::repository_size(&env).await?;
            Ok((size < full - blob).then_some(size))
        },
    )
    .await?;
    teller.says(&format!(
        "prune gave the space back: repository {} → {}",
        act::mebibytes(full),
        act::mebibytes(pruned)
    ));

    let last_good = newest_with_data(&env).await?;
    let disaster = Timestamp::now();
    env.cluster
        .kubectl(["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
    wait_gone(
        &Api::<Namespace>::all(env.cluster.client()),
        NAMESPACE,
        Duration::from_secs(60),
    )
    .await?;
    teller.says("disaster: namespace nginx-example is gone");

    act::three_ticks(&env, disaster).await?;
    let source = newest_with_data(&env).await?;
    ensure!(
        source >= last_good,
        "the newest backup with data is {source}, it was {last_good}"
    );
    teller.says(&format!("the policy ticked on over the empty cluster; {source}, which holds the data, is still there:"));
    teller.shows(
        &env.cluster
            .kubectl(["-n", "velero", "get", "backups", "--no-headers"])?,
    );

    let restore = json!({"apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"name": "after-disaster", "namespace": "velero"}, "spec": {"backupName": source}});
    env.api::<Restore>()
        .create(&PostParams::default(), &serde_json::from_value(restore)?)
        .await?;
    let restored = env
        .restore_completed("after-disaster", Duration::from_secs(120))
        .await?;
    until(
        "two nginx pods and db-0 run again",
        Duration::from_secs(60),
        async || {
            let nginx = env.ready_pods(NAMESPACE, "app=nginx").await?.len();
            let db = env.ready_pods(NAMESPACE, "app=db").await?.len();
            Ok((nginx == 2 && db == 1).then_some(()))
        },
    )
    .await?;
    let items = restored
        .status
        .and_then(|status| status.progress)
        .map_or(0, |p| p.items_restored);
    teller.says(&format!(
        "restored {items} objects and both volumes from {source}; the pods run again"
    ));

    let after = act::contents(&env).await?;
    at_backup
        .0
        .same_as(&after.0)
        .context("the nginx logs differ")?;
    at_backup
        .1
        .same_as(&after.1)
        .context("the database differs")?;
    let log = after
        .0
        .0
        .get(b"access.log".as_slice())
        .and_then(|entry| entry.content.clone());
    let log = log.context("access.log is missing")?;
    teller.says(&format!(
        "every file is identical ({} entries, {}): content, owners, modes, times, links, xattrs",
        after.0.0.len() + after.1.0.len(),
        act::mebibytes(i64::try_from(after.0.bytes() + after.1.bytes())?)
    ));
    teller.shows(&format!(
        "access.log {} bytes, sha256 {} before and after",
        log.size, log.sha256
    ));

    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    let policies = Api::<jackline_crds::jackline::ClusterBackupPolicy>::all(env.cluster.client());
    policies
        .patch(POLICY, &PatchParams::default(), &patch)
        .await?;
    env.restic(NAMESPACE).await?.check()?;
    teller.says("restic check --read-data: no errors were found");
    teller.shows(&metric_lines(&env).await?.join("\n"));

    println!(
        "demo: {:.0} s; {items} objects, {} files restored identical; repository {} after prune (was {})",
        teller.started.elapsed().as_secs_f64(),
        after.0.0.len() + after.1.0.len(),
        act::mebibytes(pruned),
        act::mebibytes(full)
    );
    if keep {
        println!(
            "the cluster is up: export KUBECONFIG={}; remove it with make cluster-down",
            env.cluster.kubeconfig().display()
        );
    }
    Ok(())
}

/// The name of the newest backup that holds both volumes.
async fn newest_with_data(env: &Env) -> Result<String> {
    for backup in act::backups(env).await?.iter().rev() {
        let name = act::name(backup);
        if env
            .volumes_of(&name)
            .await?
            .iter()
            .filter(|volume| act::is_good(volume))
            .count()
            == 2
        {
            return Ok(name);
        }
    }
    anyhow::bail!("no backup holds both volumes")
}

/// What lies in the bucket: the backup's objects and the repository's directories.
async fn listing(env: &Env, backup: &str) -> Result<String> {
    let s3 = env.cluster.s3();
    let objects = s3.list(BUCKET, &format!("backups/{backup}/")).await?;
    let mut lines: Vec<_> = objects
        .iter()
        .map(|object| format!("{} {} bytes", object.key, object.size))
        .collect();
    let prefix = format!("restic/{NAMESPACE}/");
    let repository = s3.list(BUCKET, &prefix).await?;
    let mut kinds: Vec<_> = repository
        .iter()
        .filter_map(|o| o.key.strip_prefix(&prefix)?.split('/').next())
        .collect();
    kinds.dedup();
    lines.push(format!(
        "{prefix}{{{}}}: {} objects",
        kinds.join(","),
        repository.len()
    ));
    Ok(lines.join("\n"))
}

/// A few lines of the leader's and the agent's metrics.
async fn metric_lines(env: &Env) -> Result<Vec<String>> {
    let leases: Api<Lease> = env.api();
    let holders = leases.list(&kube::api::ListParams::default()).await?.items;
    let holder = holders
        .into_iter()
        .find_map(|lease| lease.spec?.holder_identity)
        .context("nobody leads")?;
    // The holder is the pod's name and a random part.
    let leader = holder.split('_').next().unwrap_or(&holder);
    let names = [
        "velero_backup_success_total",
        "velero_backup_last_status",
        "velero_restore_success_total",
        "jackline_coverage_volumes",
    ];
    act::metrics(env, leader, &names)
}
