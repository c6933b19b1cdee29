//! Command line of `jackline-node-agent`. Every flag has an environment variable.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};
use jackline_runtime::RuntimeArgs;

/// Backs up and restores the volumes of one node, and looks after repositories.
#[derive(Debug, Parser)]
#[command(name = "jackline-node-agent", version, about)]
pub struct Args {
    /// Settings of the server; those that make sense are used by the other commands too.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to do; `server` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve PodVolumeBackups and PodVolumeRestores of this node (the default)
    Server,
    /// Prune and check one repository, then exit
    Maintain(MaintainArgs),
}

/// Settings of the server.
#[derive(Debug, ClapArgs)]
pub struct ServerArgs {
    /// API server, logs, admin endpoint.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Namespace of Velero's objects
    #[arg(
        long,
        global = true,
        env = "VELERO_NAMESPACE",
        default_value = "velero"
    )]
    pub namespace: String,
    /// Name of the node that this agent serves
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The kubelet's directory of pods, as this process sees it
    #[arg(
        long,
        env = "JACKLINE_HOST_PODS",
        default_value = "/host_pods",
        value_name = "DIR"
    )]
    pub host_pods: PathBuf,
    /// ConfigMap with Velero's settings of node agents, read at the start: its `loadConcurrency` says how many volumes at once
    #[arg(
        long,
        global = true,
        env = "JACKLINE_NODE_AGENT_CONFIGMAP",
        default_value = "node-agent-config",
        value_name = "NAME"
    )]
    pub node_agent_configmap: String,
    /// Volumes at once, where the ConfigMap does not say
    #[arg(long, env = "JACKLINE_CONCURRENCY", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// How long an operation waits for another's lock on the repository (prune)
    #[arg(long, env = "JACKLINE_LOCK_WAIT", default_value = "10min", value_parser = humantime::parse_duration)]
    pub lock_wait: Duration,
    /// How long failures that may pass (storage, API server) are retried, since data has moved, before a volume fails
    #[arg(long, env = "JACKLINE_GIVE_UP_AFTER", default_value = "30min", value_parser = humantime::parse_duration)]
    pub give_up_after: Duration,
}

/// Settings of `maintain`.
#[derive(Debug, ClapArgs)]
pub struct MaintainArgs {
    /// Name of the BackupRepository
    #[arg(long)]
    pub repository: String,
    /// Do not prune
    #[arg(long)]
    pub no_prune: bool,
    /// Unused space that may stay, in percent of the used
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT")]
    pub prune_max_unused: f64,
    /// Check the repository's structure after pruning
    #[arg(long)]
    pub check: bool,
    /// Also read and verify this share of the data, in percent (implies --check)
    #[arg(long, value_name = "PERCENT")]
    pub read_data: Option<f64>,
    /// How long to wait for running backups to let us have the repository
    #[arg(long, env = "JACKLINE_MAINTAIN_LOCK_WAIT", default_value = "1h", value_parser = humantime::parse_duration)]
    pub lock_wait: Duration,
    /// Where the figures are left for the controller
    #[arg(long, default_value = "/dev/termination-log", value_name = "FILE")]
    pub termination_log: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use jackline_runtime::logging::LogFormat;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_are_taken_as_velero_s_installers_write_them() {
        let args = Args::try_parse_from([
            "jackline-node-agent",
            "server",
            "--node-agent-configmap=mine",
            "--log-level=warning",
            "--log-format=json",
            "--metrics-address=:9000",
            "--namespace=backup",
        ])
        .unwrap();
        assert!(matches!(args.command, Some(Command::Server)));
        let (server, runtime) = (&args.server, &args.server.runtime);
        assert_eq!(server.namespace, "backup");
        assert_eq!(server.node_agent_configmap, "mine");
        assert_eq!(runtime.log.log_level, "warn");
        assert_eq!(runtime.log.log_format, LogFormat::Json);
        assert_eq!(runtime.admin.metrics_address.port(), 9000);
    }

    #[test]
    fn maintain_takes_the_namespace_after_the_command() {
        let args = Args::try_parse_from([
            "jackline-node-agent",
            "maintain",
            "--repository",
            "ns-default-restic",
            "--namespace",
            "backup",
        ])
        .unwrap();
        assert_eq!(args.server.namespace, "backup");
        assert!(
            matches!(args.command, Some(Command::Maintain(m)) if m.repository == "ns-default-restic")
        );
    }
}
