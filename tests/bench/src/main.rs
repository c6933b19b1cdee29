//! `make bench`: Jackline and Debian's restic in turn on the same data, on tmpfs, so that neither the disk
//! nor the cache of an earlier run decides. Prints medians and writes every measurement as JSON.

mod cases;
mod data;
mod measure;
mod report;
mod tools;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::cases::Sizes;
use crate::measure::Children;

/// Room for the sources, one repository and one restored copy.
const NEEDED: u64 = 8 << 30;

#[derive(Debug, Parser)]
#[command(version, about = "Measures Jackline side by side with restic")]
struct Args {
    /// What to measure
    #[arg(value_enum, default_value = "repository")]
    suite: Suite,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A hundredth of the data: whether it runs, not how fast
    #[arg(long)]
    small: bool,
    /// The program to measure [default: the one built beside this]
    #[arg(long)]
    jackline: Option<PathBuf>,
    /// Where the data lies while it runs
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// Where the measurements are written [default: bench/repository.json in the target directory]
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Suite {
    /// Backups and restores of large and of many files.
    Repository,
}

#[tokio::main]
async fn main() -> ExitCode {
    let children = Children::default();
    let args = Args::parse();
    let directory = args
        .tmpfs
        .join(format!("jackline-bench-{}", std::process::id()));
    let work = {
        let (directory, children) = (directory.clone(), children.clone());
        tokio::task::spawn_blocking(move || run(&args, &directory, &children))
    };
    let result = tokio::select! {
        result = work => result.unwrap_or_else(|error| Err(error.into())),
        () = stopped() => Err(anyhow::anyhow!("stopped")),
    };
    children.end();
    let removed = remove(&directory);
    let code = match result.and(removed) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("bench: {error:#}");
            1
        }
    };
    // The measuring thread may still wait for a child that was ended.
    std::process::exit(code)
}

/// tmpfs is memory: nothing may stay, whatever happened. The measuring thread may be writing still.
fn remove(directory: &Path) -> Result<()> {
    let mut result = Ok(());
    for _ in 0..100 {
        result = match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        std::thread::sleep(Duration::from_millis(20));
        if !directory.exists() {
            return Ok(());
        }
    }
    result.with_context(|| format!("remove {}", directory.display()))
}

async fn stopped() {
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn run(args: &Args, directory: &Path, children: &Children) -> Result<()> {
    let Suite::Repository = args.suite;
    let sizes = if args.small {
        Sizes::small()
    } else {
        Sizes::full()
    };
    check_room(&args.tmpfs, if args.small { NEEDED / 50 } else { NEEDED })?;
    let target = target_directory()?;
    let jackline = match &args.jackline {
        Some(program) => program.clone(),
        None => built(&target)?,
    };
    std::fs::create_dir_all(directory)?;
    let measured = cases::run(directory, &jackline, &sizes, args.rounds.max(1), children)?;
    print!("{}", report::table(&measured));
    let json = args
        .json
        .clone()
        .unwrap_or_else(|| target.join("bench/repository.json"));
    if let Some(parent) = json.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(
        &json,
        serde_json::to_vec_pretty(&report::document(&measured)?)?,
    )?;
    println!("measurements: {}", json.display());
    Ok(())
}

fn check_room(tmpfs: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(tmpfs).with_context(|| format!("{}", tmpfs.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let memory = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let available = available.context("/proc/meminfo has no MemAvailable")? << 10;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    if free.min(available) < needed {
        bail!(
            "{} has {:.1} GiB free, memory {:.1} GiB available; {:.1} GiB are needed",
            tmpfs.display(),
            gib(free),
            gib(available),
            gib(needed)
        );
    }
    Ok(())
}

/// `target`: the directory above the one that this program lies in.
fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program
        .parent()
        .and_then(Path::parent)
        .context("no target directory")?;
    Ok(target.to_owned())
}

/// The program that was built beside this one.
fn built(target: &Path) -> Result<PathBuf> {
    let program = target.join("release/jackline");
    if !program.exists() {
        bail!(
            "{} is not built: use `make bench`, or --jackline",
            program.display()
        );
    }
    Ok(program)
}
