//! `make bench-scale`: an API server alone, filled with running pods that share claims; one policy; the real controller. Prints
//! annotations per second, whether every claim is carried by exactly one pod, the controller's peak memory, and what it writes while
//! nothing happens.

mod audit;
mod fill;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use jackline_test_cluster::{Cluster, Options};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PartialObjectMeta};

use crate::audit::Audit;
use crate::fill::{Fill, names};

const ANNOTATION: &str = jackline_crds::names::annotation::BACKUP_VOLUMES;
/// What this benchmark holds the controller to.
const LEAST_RATE: f64 = 200.0;
const MOST_MEMORY: f64 = 96.0;

#[derive(Debug, Parser)]
#[command(version, about = "Measures the controller on a large cluster")]
struct Args {
    /// Claims
    #[arg(long, default_value_t = 2500)]
    claims: usize,
    /// Pods on each claim
    #[arg(long, default_value_t = 4)]
    share: usize,
    /// Namespaces
    #[arg(long, default_value_t = 50)]
    namespaces: usize,
    /// How long the cluster stays quiet
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// The controller [default: built beside this program]
    #[arg(long)]
    controller: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let controller = match &args.controller {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("jackline-controller"),
    };
    ensure!(
        controller.exists(),
        "{} is not built: use `make bench-scale`, or --controller",
        controller.display()
    );
    let mut options = Options::named("bench-scale").control_plane();
    options.audit_log = true;
    options.s3 = true;
    let cluster = Cluster::up(options).await?;
    cluster.s3().make_bucket("velero").await?;
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/yaml");
    cluster.kubectl(["apply", "--server-side", "-k", crds])?;
    cluster.kubectl([
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;

    let fill = Fill {
        claims: args.claims,
        share: args.share,
        namespaces: args.namespaces,
    };
    let began = Instant::now();
    fill.run(&cluster).await?;
    println!(
        "{} pods on {} claims, made in {:.0} s",
        fill.pods(),
        args.claims,
        began.elapsed().as_secs_f64()
    );

    let started = jiff::Timestamp::now();
    let mut process = Process::start(&controller, &cluster)?;
    let outcome = measure(&args, &cluster, &mut process, started).await;
    drop(process);
    cluster.down()?;
    outcome
}

async fn measure(
    args: &Args,
    cluster: &Cluster,
    process: &mut Process,
    started: jiff::Timestamp,
) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(600);
    let mut audit = Audit::default();
    loop {
        process.is_alive()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        audit.update(cluster)?;
        if audit.annotations().count() >= args.claims {
            break;
        }
        ensure!(
            Instant::now() < limit,
            "not every claim is annotated after ten minutes: {}",
            process.log()
        );
    }
    let times: Vec<jiff::Timestamp> = audit.annotations().map(|write| write.at).collect();
    let (first, last) = (
        times.iter().min().context("no write")?,
        times.iter().max().context("no write")?,
    );
    let span = last.duration_since(*first).as_secs_f64().max(0.001);
    let rate = times.len() as f64 / span;
    println!(
        "{} annotations in {span:.1} s: {rate:.0} per second; all done {:.1} s after the start of the controller",
        times.len(),
        last.duration_since(started).as_secs_f64()
    );

    let carriers = carriers(cluster).await?;
    let wrong = args.claims - carriers.values().filter(|pods| **pods == 1).count();
    println!(
        "claims carried by exactly one pod: {} of {}",
        args.claims - wrong,
        args.claims
    );

    // Statuses and coverage follow within seconds.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let quiet_from = jiff::Timestamp::now();
    tokio::time::sleep(args.quiet).await;
    process.is_alive()?;
    audit.update(cluster)?;
    let quiet: Vec<&audit::Write> = audit
        .writes
        .iter()
        .filter(|write| {
            write.at > quiet_from && !write.is_servers_own() && write.resource != "leases"
        })
        .collect();
    println!(
        "writes but leases in {} of quiet: {}",
        humantime::format_duration(args.quiet),
        quiet.len()
    );
    for write in quiet.iter().take(10) {
        println!("  {write}");
    }
    let memory = process.peak_memory()?;
    println!("peak memory of the controller: {memory:.1} MiB");

    ensure!(
        wrong == 0,
        "{wrong} claims are not carried by exactly one pod"
    );
    let written = audit.annotations().count();
    ensure!(
        written == args.claims,
        "{written} annotations were written for {} claims",
        args.claims
    );
    ensure!(
        quiet.is_empty(),
        "a quiet cluster saw {} writes",
        quiet.len()
    );
    ensure!(
        rate >= LEAST_RATE,
        "{rate:.0} annotations per second are fewer than {LEAST_RATE:.0}"
    );
    ensure!(
        memory <= MOST_MEMORY,
        "{memory:.1} MiB are more than {MOST_MEMORY:.0}"
    );
    Ok(())
}

/// How many pods of each claim are annotated. Pods are named by claim.
async fn carriers(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let api: Api<Pod> = Api::all(cluster.client());
    let mut found = BTreeMap::new();
    let mut page = ListParams::default().limit(500);
    loop {
        let list = api.list_metadata(&page).await?;
        for pod in list.items.iter().filter(|pod| is_annotated(pod)) {
            *found.entry(names::claim_of(pod)?).or_default() += 1;
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn is_annotated(pod: &PartialObjectMeta<Pod>) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(ANNOTATION))
}

/// The controller; ended when dropped.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(program: &std::path::Path, cluster: &Cluster) -> Result<Self> {
        let log = cluster.dir().join("controller.log");
        let credentials = cluster.dir().join("credentials");
        std::fs::write(&credentials, cluster.s3().credentials_file())?;
        let output = std::fs::File::create(&log)?;
        let child = Command::new(program)
            .args(["--metrics-address", "127.0.0.1:0"])
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("AWS_SHARED_CREDENTIALS_FILE", &credentials)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, log })
    }

    fn is_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the controller ended with {status}: {}", self.log());
        }
        Ok(())
    }

    /// The end of its log.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// MiB.
    fn peak_memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
