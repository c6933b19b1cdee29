//! `jackline-node-agent`: see the library.

use clap::Parser;
use jackline_node_agent::args::{Args, Command};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    jackline_runtime::client::install_crypto();
    let Args { server, command } = Args::parse();
    let result = match command {
        None | Some(Command::Server) => jackline_node_agent::app::serve(server).await,
        Some(Command::Maintain(args)) => {
            jackline_node_agent::maintain::run(server.runtime, server.namespace, args).await
        }
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jackline-node-agent: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
