//! `jackline`: what is protected, and repositories without a cluster.

mod args;
mod cluster;
mod coverage;
mod docs;
mod doctor;
mod exit;
mod huge_pages;
mod output;
mod repository;
mod restore;
mod table;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::args::{Cli, Command, Format, RestoreCommand};
use crate::exit::Exit;

#[global_allocator]
static ALLOCATOR: huge_pages::HugePages = huge_pages::HugePages;

/// How long the end waits for a slow store to take a lock back.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("JACKLINE_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let json = match &command {
        Command::Repository(repository) => repository.json(),
        Command::Restore(RestoreCommand::Volume(args)) => args.output == Format::Json,
        _ => false,
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Exit::failed)
        .and_then(|runtime| {
            let result = runtime.block_on(async {
                let result = run(command).await;
                let given_back = jackline_repository::locks_given_back();
                let _ = tokio::time::timeout(PATIENCE, given_back).await;
                result
            });
            // A read of standard input or a slow name look-up must not hold the exit back.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => code,
        Err(exit) => {
            // The last words; nobody may be listening.
            let _ = writeln!(std::io::stderr(), "{}", exit.last_words(json));
            exit.code()
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::Repository(args) => repository::run(*args).await,
        Command::Restore(RestoreCommand::Volume(args)) => restore::volume(args).await,
        Command::Coverage(args) => coverage::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Docs => docs::print(),
    }
}
