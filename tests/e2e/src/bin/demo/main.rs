//! `make demo`: the whole story of Jackline on a real Kubernetes, one line per step, with what each step measured.

mod act;
mod story;

use std::process::ExitCode;

use clap::Parser;

/// Backs up, prunes, destroys and restores on a cluster of its own.
#[derive(Debug, Parser)]
struct Args {
    /// Leave the cluster up and say how to use it.
    #[arg(long)]
    keep: bool,
    /// The cluster's directory.
    #[arg(long, default_value = "target/cluster")]
    dir: std::path::PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { keep, dir } = Args::parse();
    match story::tell(&dir, keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
