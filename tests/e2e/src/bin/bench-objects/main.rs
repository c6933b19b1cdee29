//! `make bench-objects`: how long the cluster side takes, beside what a real Velero 1.14 took for the same on the same kind of machine.
//!
//! Three small volumes restored from the bucket that Velero wrote and backed up again; 20,000 ConfigMaps of 1 KB backed up and restored;
//! a hundred small volumes beside the command line on the same directories; four volumes of many files at once.
//! Times are wall time from the creation of the object to the sight of its last phase; medians over the rounds.

mod volumes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use jackline_crds::velero::{Backup, Restore};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{Env, NAMESPACE, fixture, until, wait_gone};
use jackline_test_cluster::Options;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(600);
const CONFIG_MAPS: usize = 20_000;

/// Measures backups and restores on a real cluster.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A hundredth of the ConfigMaps: whether it runs, not how fast
    #[arg(long)]
    small: bool,
    /// Only one backup of 100,000 ConfigMaps in 5,000 namespaces: how much memory it takes
    #[arg(long, conflicts_with = "small")]
    scale: bool,
    /// Where the measurements are written [default: bench/objects.json in the target directory]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is measured, beside the seconds that another takes for it.
struct Case {
    title: &'static str,
    peer: &'static str,
    peer_seconds: Vec<f64>,
    seconds: Vec<f64>,
    target: Target,
}

/// What the median may be at most.
#[derive(Clone, Copy)]
enum Target {
    Seconds(f64),
    /// Of the peer's.
    Ratio(f64),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seconds(most) => write!(f, "<= {most} s"),
            Self::Ratio(most) => write!(f, "ratio <= {most}"),
        }
    }
}

impl Case {
    /// Beside what Velero 1.14 took.
    fn new(title: &'static str, velero: f64, most: f64) -> Self {
        Self {
            title,
            peer: "Velero 1.14",
            peer_seconds: vec![velero],
            seconds: Vec::new(),
            target: Target::Seconds(most),
        }
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-objects: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let env = Env::up_with(Options::named("bench-objects"), &Settings::default()).await?;
    if args.scale {
        return scale(&env).await;
    }
    fixture::adopt(&env).await?;
    let count = if args.small {
        CONFIG_MAPS / 100
    } else {
        CONFIG_MAPS
    };
    let mut volumes_back = Case::new("restore of 3 volumes, 5 MB", 13.8, 4.0);
    let mut volumes = Case::new("backup of 3 volumes, 5 MB", 12.4, 3.0);
    let mut objects = Case::new("backup of 20,000 ConfigMaps", 15.0, 4.0);
    // 500 a second.
    let mut objects_back = Case::new("restore of 20,000 ConfigMaps", 409.0, 40.0);
    for round in 0..args.rounds {
        let name = format!("volumes-{round}");
        volumes_back
            .seconds
            .push(restore(&env, &name, json!({"backupName": "second"})).await?);
        for (namespace, labels, count) in [("nginx-example", "app=nginx", 2), ("shop", "app=db", 1)]
        {
            until("the restored pods are ready", LIMIT, async || {
                let ready = env.ready_pods(namespace, labels).await?;
                Ok((ready.len() == count).then_some(()))
            })
            .await?;
        }
        volumes
            .seconds
            .push(backup(&env, &name, &["nginx-example", "shop"]).await?);
        for namespace in ["nginx-example", "shop"] {
            delete_namespace(&env, namespace).await?;
        }
    }
    make_config_maps(&env, count).await?;
    let labels = "app.kubernetes.io/name=jackline-controller";
    let whole = peak_memory(&env, labels, "controller").await?;
    forget_peak(&env, labels, "controller").await?;
    for round in 0..args.rounds {
        let name = format!("objects-{round}");
        objects.seconds.push(backup(&env, &name, &["many"]).await?);
        let mapped = json!({"backupName": name, "namespaceMapping": {"many": name}});
        objects_back
            .seconds
            .push(restore(&env, &name, mapped).await?);
    }
    let objects_alone = peak_memory(&env, labels, "controller").await?;
    let mut peaks = vec![
        ("controller, volumes".to_owned(), whole, None),
        ("controller, ConfigMaps".to_owned(), objects_alone, Some(96)),
    ];
    let [seconds, peer_seconds] = volumes::hundred(&env, args.rounds).await?;
    let hundred = Case {
        title: "backup of 100 volumes, 100 KB",
        peer: "command line",
        peer_seconds,
        seconds,
        target: Target::Ratio(1.5),
    };
    let (peak, what) = volumes::four_at_once(&env, args.small).await?;
    peaks.push((format!("node agent, {what}"), peak, Some(256)));
    report(
        &args,
        &[volumes_back, volumes, objects, objects_back, hundred],
        &peaks,
    )?;
    env.cluster.down()
}

/// One backup of the whole cluster. Fails when the controller takes more than it may.
async fn scale(env: &Env) -> Result<()> {
    const NAMESPACES: usize = 5_000;
    const OBJECTS: usize = 100_000;
    const MOST: u64 = 256 << 20;
    let namespaces = Api::<Namespace>::all(env.cluster.client());
    let namespace = |n: usize| format!("space-{n:04}");
    let made = stream::iter(0..NAMESPACES).map(|n| {
        let object = json!({"metadata": {"name": namespace(n)}});
        let namespaces = &namespaces;
        async move {
            let object: Namespace = serde_json::from_value(object)?;
            namespaces.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        }
    });
    made.buffer_unordered(32).try_collect::<()>().await?;
    let made = stream::iter(0..OBJECTS).map(|n| {
        let api = env.api_in::<ConfigMap>(&namespace(n % NAMESPACES));
        let object = json!({"metadata": {"name": format!("object-{n:06}")}, "data": {"value": "x".repeat(1000)}});
        async move {
            let object: ConfigMap = serde_json::from_value(object)?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        }
    });
    made.buffer_unordered(32).try_collect::<()>().await?;
    let seconds = backup(env, "scale", &["*"]).await?;
    let status = env.api::<Backup>().get("scale").await?.status;
    let items = status
        .and_then(|status| status.progress)
        .unwrap_or_default();
    ensure!(
        usize::try_from(items.items_backed_up)? > OBJECTS,
        "{items:?}"
    );
    let labels = "app.kubernetes.io/name=jackline-controller";
    let peak = peak_memory(env, labels, "controller").await?;
    println!(
        "backup of {} objects in {NAMESPACES} namespaces: {seconds:.1} s; peak memory of the controller: {} MiB",
        items.items_backed_up,
        peak >> 20
    );
    ensure!(peak <= MOST, "more than {} MiB", MOST >> 20);
    Ok(())
}

async fn backup(env: &Env, name: &str, namespaces: &[&str]) -> Result<f64> {
    let object = json!({"apiVersion": "velero.io/v1", "kind": "Backup", "metadata": {"name": name, "namespace": "velero"},
        "spec": {"includedNamespaces": namespaces, "storageLocation": "default"}});
    let started = Instant::now();
    env.api::<Backup>()
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    env.backup_completed(name, LIMIT).await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn restore(env: &Env, name: &str, spec: serde_json::Value) -> Result<f64> {
    let object = json!({"apiVersion": "velero.io/v1", "kind": "Restore", "metadata": {"name": name, "namespace": "velero"},
        "spec": spec});
    let started = Instant::now();
    env.api::<Restore>()
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    env.restore_completed(name, LIMIT).await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn delete_namespace(env: &Env, name: &str) -> Result<()> {
    let api = Api::<Namespace>::all(env.cluster.client());
    api.delete(name, &Default::default()).await?;
    wait_gone(&api, name, LIMIT).await
}

async fn make_config_maps(env: &Env, count: usize) -> Result<()> {
    env.cluster.kubectl(["create", "namespace", "many"])?;
    let api = env.api_in::<ConfigMap>("many");
    let value = "x".repeat(1000);
    stream::iter(0..count)
        .map(|n| {
            let object =
                json!({"metadata": {"name": format!("object-{n:05}")}, "data": {"value": value}});
            let api = &api;
            async move {
                let object: ConfigMap = serde_json::from_value(object)?;
                api.create(&PostParams::default(), &object).await?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
}

/// The directories in `/proc` of a container of Jackline's pods with these labels.
async fn processes(env: &Env, labels: &str, container: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pod in env.ready_pods(NAMESPACE, labels).await? {
        let pid = env
            .cluster
            .container_pid(NAMESPACE, &pod, container)
            .await?;
        found.push(Path::new("/proc").join(pid.to_string()));
    }
    ensure!(!found.is_empty(), "no {container} runs");
    Ok(found)
}

/// The most memory that one of the processes has had so far, in bytes.
async fn peak_memory(env: &Env, labels: &str, container: &str) -> Result<u64> {
    let mut most = 0;
    for process in processes(env, labels, container).await? {
        let status = std::fs::read_to_string(process.join("status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        most = most.max(kib << 10);
    }
    Ok(most)
}

/// Begins anew with the peak (`proc_pid_clear_refs(5)`, value 5).
async fn forget_peak(env: &Env, labels: &str, container: &str) -> Result<()> {
    for process in processes(env, labels, container).await? {
        std::fs::write(process.join("clear_refs"), "5")?;
    }
    Ok(())
}

/// `peaks`: of what, bytes, and the most it may be in MiB.
fn report(args: &Args, cases: &[Case], peaks: &[(String, u64, Option<u64>)]) -> Result<()> {
    println!(
        "\n{:<32} {:>10} {:>9} {:<14} {:>7}  target",
        "", "jackline", "beside", "", "ratio"
    );
    for case in cases {
        let (ours, theirs) = (median(&case.seconds), median(&case.peer_seconds));
        println!(
            "{:<32} {ours:>8.2} s {theirs:>7.1} s {:<14} {:>7.2}  {}",
            case.title,
            case.peer,
            ours / theirs,
            case.target
        );
    }
    for (what, peak, most) in peaks {
        let target = most.map_or_else(String::new, |most| format!(" (target: {most} MiB)"));
        println!("peak memory of the {what}: {} MiB{target}", peak >> 20);
    }
    println!(
        "Velero's figures were taken once on 2 cores (tests/fixtures/velero-1.14); all others are medians of {}.",
        args.rounds
    );
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("no target directory")?;
    let json = args
        .json
        .clone()
        .unwrap_or_else(|| target.join("bench/objects.json"));
    if let Some(parent) = json.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let document = json!({
        "small": args.small,
        "peakBytes": peaks.iter().map(|(what, peak, _)| json!({"what": what, "bytes": peak})).collect::<Vec<_>>(),
        "cases": cases.iter().map(|case| json!({
            "title": case.title, "seconds": case.seconds, "median": median(&case.seconds),
            "peer": case.peer, "peerSeconds": case.peer_seconds,
        })).collect::<Vec<_>>(),
    });
    std::fs::write(&json, serde_json::to_vec_pretty(&document)?)?;
    println!("measurements: {}", json.display());
    Ok(())
}
