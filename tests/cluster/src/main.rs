//! `test-cluster`: the cluster of the tests, by hand.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use jackline_test_cluster::{Cluster, Options, Programs, build_tools};

/// A real Kubernetes with storage classes and an S3 server, to test on.
#[derive(Parser)]
struct Args {
    /// The cluster's directory.
    #[arg(long, global = true, default_value = "target/cluster")]
    dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring the cluster up, unless it is up.
    Up {
        /// etcd and the API server alone.
        #[arg(long)]
        control_plane: bool,
        /// Write all requests to logs/audit.jsonl.
        #[arg(long)]
        audit_log: bool,
        /// How many nodes.
        #[arg(long, default_value_t = 1)]
        nodes: usize,
    },
    /// Take the cluster down and remove its directory.
    Down,
    /// Tell whether it runs and how to reach it.
    Status,
    /// Run kubectl as an administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command in the cluster's network.
    Enter {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build Jackline's programs and load their images.
    Images,
    /// Build the programs that clusters run.
    Tools,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Args { dir, action }: Args) -> Result<()> {
    match action {
        Action::Up {
            control_plane,
            audit_log,
            nodes,
        } => {
            if let Ok(cluster) = Cluster::attach(&dir).await {
                return show(&cluster);
            }
            let mut options = Options::new(&dir).nodes(nodes);
            if control_plane {
                options = options.control_plane();
            }
            options.audit_log = audit_log;
            options.keep = true;
            let cluster = Cluster::up(options).await?;
            for stage in cluster.stages() {
                eprintln!("{:>6} ms  {}", stage.took.as_millis(), stage.name);
            }
            show(&cluster)
        }
        Action::Down => Cluster::down_at(&dir),
        Action::Status => show(&Cluster::attach(&dir).await?),
        Action::Kubectl { args } => {
            let cluster = Cluster::attach(&dir).await?;
            Err(cluster.kubectl_command(args).exec()).context("start kubectl")
        }
        Action::Enter { args } => {
            let cluster = Cluster::attach(&dir).await?;
            Err(cluster.enter(args).exec()).context("start nsenter")
        }
        Action::Images => {
            let cluster = Cluster::attach(&dir).await?;
            cluster.load_jackline(&Programs::build()?)
        }
        Action::Tools => {
            for tool in build_tools()? {
                println!("{}", tool.display());
            }
            Ok(())
        }
    }
}

fn show(cluster: &Cluster) -> Result<()> {
    println!("nodes       {}", cluster.nodes().join(" "));
    println!("kubeconfig  {}", cluster.kubeconfig().display());
    println!(
        "kubectl     {}",
        cluster.dir().join("bin/kubectl").display()
    );
    println!("pods        {}", cluster.kubelet_pods_dir().display());
    if let Some(s3) = cluster.object_storage() {
        println!(
            "s3          {} ({} in the cluster)",
            s3.host_endpoint, s3.endpoint
        );
        println!("s3 keys     {} {}", s3.access_key, s3.secret_key);
    }
    Ok(())
}
