//! `jackline-controller`.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    jackline_controller::app::run(jackline_controller::args::Args::parse()).await
}
