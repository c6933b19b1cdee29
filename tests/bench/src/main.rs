//! `make bench`: Jackline and Debian's restic in turn on the same data, on tmpfs, so that neither the disk
//! nor the cache of an earlier run decides. `make bench-large`: what does not fit there. Prints medians and
//! writes every measurement as JSON.

mod cases;
mod data;
mod incremental;
mod limit;
mod measure;
mod memory;
mod report;
mod tools;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::cases::{Bench, Sizes};
use crate::limit::MemoryLimit;
use crate::measure::Children;
use crate::tools::Programs;

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
    /// Where the data lies while it runs [default: /dev/shm; large: /var/tmp]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Where the measurements are written [default: bench/<suite>.json in the target directory]
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Backups and restores of large and of many files, in memory
    Repository,
    /// Millions of files, and sources that change, on disk
    Large,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Repository => "repository",
            Suite::Large => "large",
        }
    }

    fn directory(self) -> &'static Path {
        Path::new(match self {
            Suite::Repository => "/dev/shm",
            Suite::Large => "/var/tmp",
        })
    }

    /// Room for the sources, the repositories and what is restored.
    fn needed(self) -> u64 {
        match self {
            Suite::Repository => 8 << 30,
            Suite::Large => 36 << 30,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let children = Children::default();
    let args = Args::parse();
    let directory = (args.directory.as_deref())
        .unwrap_or(args.suite.directory())
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

/// It is large, and perhaps memory: nothing may stay, whatever happened. The measuring thread may be writing still.
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
    let sizes = if args.small {
        Sizes::small()
    } else {
        Sizes::full()
    };
    let (suite, rounds) = (args.suite, args.rounds.max(1));
    std::fs::create_dir_all(directory)?;
    let needed = suite.needed() / if args.small { 50 } else { 1 };
    let available = check_room(directory, suite, needed)?;
    let target = target_directory()?;
    let jackline = match &args.jackline {
        Some(program) => program.clone(),
        None => built(&target)?,
    };
    let limit = match suite {
        Suite::Repository => None,
        Suite::Large => Some(MemoryLimit::new(incremental::MEMORY)?),
    };
    let programs = Programs { jackline, limit };
    let mut bench = Bench::new(directory, programs, &sizes, children)?;
    match suite {
        Suite::Repository => {
            if !args.small {
                eprintln!("taking memory");
                memory::keep(&directory.join("kept"), available)?;
            }
            cases::run(&mut bench, rounds)?;
        }
        Suite::Large => incremental::run(&mut bench, rounds)?,
    }
    let measured = bench.measured()?;
    print!("{}", report::table(&measured));
    let json = args
        .json
        .clone()
        .unwrap_or_else(|| target.join(format!("bench/{}.json", suite.name())));
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

/// Returns what the machine's memory can give.
fn check_room(directory: &Path, suite: Suite, needed: u64) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(directory).with_context(|| format!("{}", directory.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let memory = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let available = available.context("/proc/meminfo has no MemAvailable")? << 10;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let counts = match suite {
        Suite::Repository => available,
        Suite::Large => u64::MAX,
    };
    if free.min(counts) < needed {
        bail!(
            "{} has room for {:.1} GiB; {:.1} GiB are needed",
            directory.display(),
            gib(free.min(counts)),
            gib(needed)
        );
    }
    Ok(available)
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
