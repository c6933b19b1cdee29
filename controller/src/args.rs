//! The command line of `jackline-controller`. Every flag has a twin in the environment.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser, ValueEnum, builder::BoolishValueParser};
use jackline_crds::{GoDuration, names::annotation};
use jackline_policy::restore::order::Order;
use jackline_runtime::kit::RuntimeArgs;

/// Who moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Engine {
    /// Jackline does: every controller runs.
    #[default]
    Builtin,
    /// A Velero in the same namespace does: only policies, annotations, schedules, retention and coverage run.
    Velero,
}

/// Jackline's controller: policies, backups, restores and what belongs to them
#[derive(Debug, Clone, Parser)]
#[command(name = "jackline-controller", version, about)]
pub struct Args {
    /// API server, logs, admin endpoint.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Namespace of Jackline and of all velero.io objects
    #[arg(long, env = "VELERO_NAMESPACE", default_value = "velero")]
    pub namespace: String,
    /// Who moves the data: Jackline, or a Velero in the same namespace
    #[arg(long, env = "JACKLINE_ENGINE", value_enum, default_value_t)]
    pub engine: Engine,
    /// How long a backup is kept that does not say so itself, as a Go duration
    #[arg(
        long,
        env = "JACKLINE_DEFAULT_BACKUP_TTL",
        default_value = "720h",
        value_name = "DURATION"
    )]
    pub default_backup_ttl: GoDuration,
    /// How long the volumes of one backup or restore may take, as a Go duration; without it as long as data moves
    #[arg(long, env = "JACKLINE_FS_BACKUP_TIMEOUT", value_name = "DURATION")]
    pub fs_backup_timeout: Option<GoDuration>,
    /// A volume none of whose data has moved for this long is given up, or whose pod could not begin to wait for it, as a Go duration
    #[arg(
        long,
        env = "JACKLINE_VOLUME_PROGRESS_TIMEOUT",
        default_value = "1h",
        value_parser = patience,
        value_name = "DURATION"
    )]
    pub volume_progress_timeout: GoDuration,
    /// How long one object or one volume repository may take to get ready, as a Go duration
    #[arg(
        long,
        env = "JACKLINE_RESOURCE_TIMEOUT",
        default_value = "10m",
        value_name = "DURATION"
    )]
    pub resource_timeout: GoDuration,
    /// The location of backups that name none, where no location is marked as the default
    #[arg(
        long,
        env = "JACKLINE_DEFAULT_BACKUP_STORAGE_LOCATION",
        default_value = "default",
        value_name = "NAME"
    )]
    pub default_backup_storage_location: String,
    /// Back up all volumes of pods unless a Backup says otherwise
    #[arg(
        long,
        env = "JACKLINE_DEFAULT_VOLUMES_TO_FS_BACKUP",
        default_value_t = false,
        hide_default_value = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub default_volumes_to_fs_backup: bool,
    /// Backups that run at once
    #[arg(
        long,
        env = "JACKLINE_CONCURRENT_BACKUPS",
        default_value_t = 4,
        value_name = "N"
    )]
    pub concurrent_backups: usize,
    /// A Schedule that does not say makes its first backup when it is next due, not at once
    #[arg(
        long,
        env = "JACKLINE_SCHEDULE_SKIP_IMMEDIATELY",
        default_value_t = false,
        hide_default_value = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub schedule_skip_immediately: bool,
    /// Kinds that are restored first, in this order, and behind a `-` those that come last, as plural.group separated by commas; else
    /// Velero's order
    #[arg(
        long,
        env = "JACKLINE_RESTORE_RESOURCE_PRIORITIES",
        default_value = "",
        hide_default_value = true,
        value_name = "KINDS"
    )]
    pub restore_resource_priorities: Order,
    /// Objects per page of a list
    #[arg(
        long,
        env = "JACKLINE_CLIENT_PAGE_SIZE",
        default_value_t = 500,
        value_name = "N"
    )]
    pub client_page_size: u32,
    /// Image of the node agent, for pods that wait for their data and for maintenance Jobs; else that of the DaemonSet node-agent
    #[arg(long, env = "JACKLINE_AGENT_IMAGE", value_name = "IMAGE")]
    pub agent_image: Option<String>,
    /// Directory for temporary files
    #[arg(long, env = "VELERO_SCRATCH_DIR", value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// Name of the Lease of the leader
    #[arg(
        long,
        env = "JACKLINE_LEASE_NAME",
        default_value = "jackline-controller",
        value_name = "NAME"
    )]
    pub lease_name: String,
    /// A leader that is silent for this long is replaced
    #[arg(long, env = "JACKLINE_LEASE_DURATION", default_value = "15s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub lease_duration: Duration,
}

fn patience(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    if duration.to_std() < Duration::from_secs(10) {
        return Err("agents say every few seconds how far they are; at least 10s".to_owned());
    }
    Ok(duration)
}

impl Args {
    /// Where temporary files go.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.scratch_dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// How long the volumes of a Backup or Restore with these annotations may take, if that is limited.
    ///
    /// # Errors
    /// When its annotation is no duration.
    pub fn volume_timeout(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Duration>, String> {
        let limit = match annotations.get(annotation::POD_VOLUME_TIMEOUT) {
            None => self.fs_backup_timeout,
            Some(text) => Some(text.parse::<GoDuration>().map_err(|error| {
                format!("annotation {}: {error}", annotation::POD_VOLUME_TIMEOUT)
            })?),
        };
        Ok(limit.map(GoDuration::to_std))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_required() {
        let args = Args::try_parse_from(["jackline-controller"]).unwrap();
        assert_eq!(
            (args.engine, args.namespace.as_str()),
            (Engine::Builtin, "velero")
        );
        assert_eq!(args.default_backup_ttl.to_string(), "720h0m0s");
    }

    /// Those of `velero install` and of the chart that the table of compatibility has as "yes".
    #[test]
    fn flags_are_taken_as_velero_s_installers_write_them() {
        let args = Args::try_parse_from([
            "jackline-controller",
            "--fs-backup-timeout=4h0m0s",
            "--client-page-size=100",
            "--default-backup-storage-location=main",
            "--default-backup-ttl=24h",
            "--default-volumes-to-fs-backup=true",
            "--schedule-skip-immediately=true",
            "--resource-timeout=5m0s",
            "--log-format=json",
            "--log-level=warning",
            "--metrics-address=:9000",
            "--restore-resource-priorities=namespaces,pods",
            "--namespace=backup",
        ])
        .unwrap();
        assert!(args.default_volumes_to_fs_backup && args.schedule_skip_immediately);
        assert_eq!(args.runtime.admin.metrics_address.port(), 9000);
        assert_eq!(args.runtime.log.log_level, "warn");
        let switch = |flags: &[&str]| {
            let args = Args::try_parse_from([&["jackline-controller"], flags].concat());
            args.map(|args| args.default_volumes_to_fs_backup).ok()
        };
        for (flags, want) in [
            (&[][..], Some(false)),
            (&["--default-volumes-to-fs-backup"], Some(true)),
            (&["--default-volumes-to-fs-backup=1"], Some(true)),
            (&["--default-volumes-to-fs-backup=false"], Some(false)),
            (&["--default-volumes-to-fs-backup=maybe"], None),
            (&["--default-volumes-to-fs-backup", "true"], None),
        ] {
            assert_eq!(switch(flags), want, "{flags:?}");
        }
    }

    #[test]
    fn volumes_have_the_time_of_their_annotation_or_else_of_the_flag() {
        let args = |more: &[&str]| {
            Args::try_parse_from([&["jackline-controller"], more].concat()).unwrap()
        };
        let (free, limited) = (args(&[]), args(&["--fs-backup-timeout=4h"]));
        let annotated = |text: &str| {
            BTreeMap::from([(annotation::POD_VOLUME_TIMEOUT.to_owned(), text.to_owned())])
        };
        let seconds = |seconds| Ok(Some(Duration::from_secs(seconds)));
        assert_eq!(free.volume_timeout(&BTreeMap::new()), Ok(None));
        assert_eq!(limited.volume_timeout(&BTreeMap::new()), seconds(14400));
        assert_eq!(free.volume_timeout(&annotated("90s")), seconds(90));
        assert_eq!(limited.volume_timeout(&annotated("1m")), seconds(60));
        for wrong in ["", "soon", "90", "1 h"] {
            let why = limited.volume_timeout(&annotated(wrong)).unwrap_err();
            assert!(
                why.starts_with("annotation velero.io/pod-volume-timeout: "),
                "{why}"
            );
        }
    }

    #[test]
    fn every_flag_has_an_environment_twin() {
        use clap::CommandFactory;
        for arg in Args::command().get_arguments() {
            let id = arg.get_id().as_str();
            assert!(
                arg.get_env().is_some() || ["help", "version"].contains(&id),
                "--{id}"
            );
        }
    }
}
