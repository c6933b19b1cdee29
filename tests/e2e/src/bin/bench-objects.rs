//! `make bench-objects`: how long the cluster side takes, beside what a real Velero 1.14 took for the same on the same kind of machine.
//!
//! Three small volumes restored from the bucket that Velero wrote and backed up again; 20,000 ConfigMaps of 1 KB backed up and restored.
//! Times are wall time from the creation of the object to the sight of its last phase; medians over the rounds.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use jackline_crds::velero::{Backup, Restore};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{Env, fixture, until, wait_gone};
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
    /// Where the measurements are written [default: bench/objects.json in the target directory]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is measured, with the seconds that Velero 1.14 took.
struct Case {
    title: &'static str,
    velero: f64,
    seconds: Vec<f64>,
}

impl Case {
    fn new(title: &'static str, velero: f64) -> Self {
        Self {
            title,
            velero,
            seconds: Vec::new(),
        }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
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
    fixture::adopt(&env).await?;
    let count = if args.small {
        CONFIG_MAPS / 100
    } else {
        CONFIG_MAPS
    };
    let mut volumes_back = Case::new("restore of 3 volumes, 5 MB", 13.8);
    let mut volumes = Case::new("backup of 3 volumes, 5 MB", 12.4);
    let mut objects = Case::new("backup of 20,000 ConfigMaps", 15.0);
    let mut objects_back = Case::new("restore of 20,000 ConfigMaps", 409.0);
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
    for round in 0..args.rounds {
        let name = format!("objects-{round}");
        objects.seconds.push(backup(&env, &name, &["many"]).await?);
        let mapped = json!({"backupName": name, "namespaceMapping": {"many": name}});
        objects_back
            .seconds
            .push(restore(&env, &name, mapped).await?);
    }
    let peak = peak_memory(&env).await?;
    report(&args, &[volumes_back, volumes, objects, objects_back], peak)?;
    env.cluster.down()
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

/// The most memory that a controller has had so far, in bytes.
async fn peak_memory(env: &Env) -> Result<u64> {
    let labels = "app.kubernetes.io/name=jackline-controller";
    let mut most = 0;
    for pod in env.ready_pods("velero", labels).await? {
        let pid = env
            .cluster
            .container_pid("velero", &pod, "controller")
            .await?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        most = most.max(kib << 10);
    }
    ensure!(most > 0, "no controller runs");
    Ok(most)
}

fn report(args: &Args, cases: &[Case], peak: u64) -> Result<()> {
    println!(
        "\n{:<32} {:>10} {:>14} {:>7}",
        "", "jackline", "Velero 1.14", "ratio"
    );
    for case in cases {
        println!(
            "{:<32} {:>8.2} s {:>12.1} s {:>7.2}",
            case.title,
            case.median(),
            case.velero,
            case.median() / case.velero
        );
    }
    println!("controller's peak memory: {} MiB", peak >> 20);
    println!(
        "Velero's figures were taken once on 2 cores (tests/fixtures/velero-1.14); ours are medians of {}.",
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
        "controllerPeakBytes": peak,
        "small": args.small,
        "cases": cases.iter().map(|case| json!({
            "title": case.title, "seconds": case.seconds, "median": case.median(), "veleroSeconds": case.velero,
        })).collect::<Vec<_>>(),
    });
    std::fs::write(&json, serde_json::to_vec_pretty(&document)?)?;
    println!("measurements: {}", json.display());
    Ok(())
}
