//! The command line. The reference page is made from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jackline_repository::{Id, ReadData};

use crate::exit;

/// Keeps the data of Kubernetes workloads from being lost.
///
/// Also usable as `kubectl jackline`, when the program is called kubectl-jackline.
#[derive(Debug, Parser)]
#[command(name = "jackline", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Repository(Box<RepositoryArgs>),
    #[command(subcommand)]
    Restore(RestoreCommand),
    Coverage(CoverageArgs),
    Doctor(DoctorArgs),
    /// Print the reference of all commands as Markdown
    #[command(hide = true)]
    Docs,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Works with a restic repository, without a cluster.
///
/// Reads and writes repositories of restic 0.9 and newer, beside restic itself: both obey the same
/// locks. A repository is a directory or an S3 bucket, named as restic names it:
/// /srv/backup, s3:http://host:9000/bucket/prefix, s3:s3.amazonaws.com/bucket. Access to S3 comes from
/// the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_SHARED_CREDENTIALS_FILE and
/// AWS_PROFILE, AWS_DEFAULT_REGION. The password is read from --password-file, or taken from
/// RESTIC_PASSWORD.
#[derive(Debug, Args)]
#[command(after_help = exit::HELP)]
pub(crate) struct RepositoryArgs {
    /// The repository: a directory or an s3: URL
    #[arg(
        short,
        long,
        global = true,
        env = "RESTIC_REPOSITORY",
        hide_env_values = true
    )]
    pub(crate) repo: Option<String>,

    /// A file that holds the repository's password
    #[arg(
        short,
        long,
        global = true,
        env = "RESTIC_PASSWORD_FILE",
        hide_env_values = true
    )]
    pub(crate) password_file: Option<PathBuf>,

    /// Wait this long for others to release their lock (5m, 1h)
    #[arg(long, global = true, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) retry_lock: Duration,

    /// A file with PEM certificates that are trusted besides the system's
    #[arg(long, global = true, env = "RESTIC_CACERT", hide_env_values = true)]
    pub(crate) cacert: Option<PathBuf>,

    /// Trust every certificate of the server
    #[arg(long, global = true)]
    pub(crate) insecure_tls: bool,

    /// The same as --output json
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    pub(crate) output: Format,

    #[command(subcommand)]
    pub(crate) command: RepositoryCommand,
}

impl RepositoryArgs {
    pub(crate) fn json(&self) -> bool {
        self.json || self.output == Format::Json
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Make a new repository
    Init {
        /// Version of the format: 2 compresses, 1 is read by every restic
        #[arg(long, default_value = "2", value_parser = clap::value_parser!(u8).range(1..=2))]
        repository_version: u8,
    },
    /// List the snapshots
    Snapshots {
        /// Only these: ids or the beginnings of ids
        ids: Vec<String>,
        #[command(flatten)]
        filter: Filter,
    },
    Backup(BackupArgs),
    Restore(RestoreArgs),
    /// Remove snapshots; their space is given back by prune
    Forget {
        /// Ids, or the beginnings of ids
        #[arg(required = true)]
        snapshots: Vec<String>,
        /// Prune afterwards
        #[arg(long)]
        prune: bool,
        #[command(flatten)]
        unused: Unused,
    },
    /// Give back the space that no snapshot uses
    Prune {
        #[command(flatten)]
        unused: Unused,
    },
    /// Verify the repository
    Check {
        /// Read and verify all data, not only the structure
        #[arg(long)]
        read_data: bool,
        /// Read and verify a share of the data: 5% or 500M of it, drawn anew each time, or the first of five parts (1/5)
        #[arg(long, value_parser = subset, conflicts_with = "read_data")]
        read_data_subset: Option<ReadData>,
        /// Take no lock: for a repository that cannot be written
        #[arg(long)]
        no_lock: bool,
    },
    /// Remove the locks of processes that no longer exist
    Unlock,
    #[command(subcommand)]
    Key(KeyCommand),
    #[command(subcommand)]
    Repair(RepairCommand),
}

/// Makes a damaged repository whole again, and names what is lost.
///
/// First packs, if check found damaged data in them, then the index, then the snapshots. Copy the repository before where
/// that is possible.
#[derive(Debug, Subcommand)]
pub(crate) enum RepairCommand {
    /// Make the index anew from the packs that are there
    Index {
        /// Read the header of every pack, also where the index looks right
        #[arg(long)]
        read_all_packs: bool,
        /// Change nothing, only say what would be done
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Store anew what is sound in damaged packs, and delete these
    Packs {
        /// Only these; else all data is read
        ids: Vec<Id>,
        /// Change nothing, only say what would be done
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
    /// Make of each damaged snapshot one that holds what can still be read, tagged "repaired"
    Snapshots {
        /// Only these: ids or the beginnings of ids
        ids: Vec<String>,
        /// Remove the damaged snapshots, and those that nothing is left of
        #[arg(long)]
        forget: bool,
        /// Change nothing, only say what would be done
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
}

/// Manages the keys: each opens the repository with a password of its own.
///
/// Passwords are read from files, never from the command line. An exported key is a key file as restic
/// keeps it in the repository: the master key, sealed with a password. Kept elsewhere it opens the
/// repository when all its keys are lost; whoever has the file still needs the password.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the keys
    List,
    /// Add a key with another password
    Add {
        #[command(flatten)]
        new: NewPassword,
    },
    /// Remove a key; not the one in use
    Remove {
        /// The key's id, or its beginning
        id: String,
    },
    /// Replace the key in use by one with another password
    Passwd {
        #[command(flatten)]
        new: NewPassword,
    },
    /// Write the master key, sealed with a password, to a new file that only its owner can read
    Export {
        /// The file; it must not exist
        file: PathBuf,
        /// A file that holds the password to seal it with [default: the repository's]
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// Add an exported key to the repository it is from; --password-file holds the password it was exported with
    Import {
        /// What export wrote
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewPassword {
    /// A file that holds the new password
    #[arg(long, value_name = "FILE")]
    pub(crate) new_password_file: PathBuf,
}

/// Backs up files and directories.
///
/// A single path that ends in "." makes the directory's entries the root of the snapshot; every other
/// path is stored whole, from / on. What did not change since the newest snapshot of the same host and
/// paths is not read again.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// What to back up
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// A tag of the snapshot; may be given several times or as a list with commas
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    pub(crate) tag: Vec<String>,
    /// The host name of the snapshot [default: this machine's]
    #[arg(short = 'H', long, env = "RESTIC_HOST")]
    pub(crate) host: Option<String>,
    /// The snapshot to compare with [default: the newest of the same host and paths]
    #[arg(long, value_name = "SNAPSHOT")]
    pub(crate) parent: Option<String>,
    /// Compare with no snapshot: read everything
    #[arg(short, long, conflicts_with = "parent")]
    pub(crate) force: bool,
}

/// Restores a snapshot into a directory.
///
/// Owners are set when running as root. Nothing outside the directory is ever touched.
///
/// Patterns are those of restic: one that begins with / is matched from the root of what is restored,
/// any other at every depth; *, ? and [a-z] stay within a name, ** is any number of directories; what
/// lies below a match is matched too; ! before a pattern takes back what those before it matched.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// An id, the beginning of an id, or "latest"; with :/path what is in that directory of the snapshot
    pub(crate) snapshot: String,
    /// The directory to restore into; made if missing
    #[arg(short, long, value_name = "DIR")]
    pub(crate) target: PathBuf,
    /// What to do with a file that is there already
    #[arg(long, value_enum, default_value = "always")]
    pub(crate) overwrite: Overwrite,
    /// Remove what is in the restored directories and not in the snapshot
    #[arg(long)]
    pub(crate) delete: bool,
    /// Only what matches this pattern; may be given several times
    #[arg(short, long, value_name = "PATTERN", conflicts_with = "exclude")]
    pub(crate) include: Vec<String>,
    /// Not what matches this pattern; may be given several times
    #[arg(short, long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Read every restored file back and compare it with the snapshot
    #[arg(long)]
    pub(crate) verify: bool,
    /// Write runs of zeros instead of leaving holes
    #[arg(long)]
    pub(crate) no_sparse: bool,
    /// Restore block and character devices too
    #[arg(long)]
    pub(crate) devices: bool,
    #[command(flatten)]
    pub(crate) filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overwrite {
    /// Replace it.
    Always,
    /// Replace it unless it has the same size and modification time.
    IfChanged,
    /// Replace it if the snapshot's is newer.
    IfNewer,
    /// Keep it.
    Never,
}

/// Which snapshots.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only snapshots with all of these tags (a,b); given several times, any of the lists will do
    #[arg(long, value_name = "TAGS")]
    pub(crate) tag: Vec<String>,
    /// Only snapshots of this host
    #[arg(short = 'H', long)]
    pub(crate) host: Vec<String>,
    /// Only snapshots of this path
    #[arg(long)]
    pub(crate) path: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Unused {
    /// How much unused data may stay, in percent of what is used
    #[arg(long, default_value = "5%", value_parser = percent, value_name = "PERCENT")]
    pub(crate) max_unused: f64,
}

fn subset(text: &str) -> Result<ReadData, String> {
    let wrong = || "a share is 5%, 1/5 (of at most 256 parts) or 500M (K, M, G, T)".to_owned();
    if text.ends_with('%') {
        return percent(text).map(ReadData::Percent);
    }
    if let Some((part, of)) = text.split_once('/') {
        let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let (part, of) = (number(part)?, number(of)?);
        return match (1..=of).contains(&part) && of <= 256 {
            true => Ok(ReadData::Part { part, of }),
            false => Err(wrong()),
        };
    }
    let digits = text.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" | "b" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    let bytes: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = bytes.checked_mul(1 << shift).ok_or_else(wrong)?;
    Ok(ReadData::Bytes(bytes))
}

fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("a share is a number from 0% to 100%".to_owned()),
    }
}

/// Puts data back into what runs in the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum RestoreCommand {
    Volume(RestoreVolumeArgs),
}

/// Puts the data of a backed-up volume back into an existing claim.
///
/// Files of the backup replace those in the claim; other files stay. While it runs, a pod of its own mounts the claim. Refused while
/// other pods use the claim, unless told otherwise.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0    restored
  1    failed, or refused
  2    the command line cannot be understood
  130  cancelled by a signal")]
pub(crate) struct RestoreVolumeArgs {
    /// The claim
    pub(crate) claim: String,
    /// Its namespace [default: the one of the kubeconfig's context]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// The backup that has the data
    #[arg(long, value_name = "BACKUP")]
    pub(crate) from_backup: String,
    /// The claim in the backup, as NAMESPACE/CLAIM [default: of the same namespace and name]
    #[arg(long, value_name = "CLAIM")]
    pub(crate) source: Option<String>,
    /// Restore also while pods use the claim
    #[arg(long)]
    pub(crate) in_use: bool,
    /// Remove what is in the claim and not in the backup
    #[arg(long)]
    pub(crate) delete: bool,
    /// Give up when no data has moved after this time
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(crate) start_timeout: Duration,
    /// Jackline's namespace
    #[arg(long, default_value = "velero", value_name = "NAMESPACE")]
    pub(crate) jackline_namespace: String,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Format,
}

/// Shows which volumes are protected, and why the others are not.
///
/// Reads the BackupCoverage objects that the controller keeps, through KUBECONFIG or from inside a pod.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  shown
  1  failed: the cluster cannot be reached, or Jackline is not installed in it
  2  the command line cannot be understood
  3  with --strict: a volume is not protected")]
pub(crate) struct CoverageArgs {
    /// Only this namespace [default: the one of the kubeconfig's context]
    #[arg(short, long, conflicts_with = "all_namespaces")]
    pub(crate) namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// How the volumes are printed
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: CoverageFormat,
    /// End with code 3 when a volume is neither protected nor exempt
    #[arg(long)]
    pub(crate) strict: bool,
}

/// Looks at an installation: what is as it should be, and what to do about the rest.
///
/// Ends with code 1 where backups or restores do not work.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Jackline's namespace
    #[arg(short, long, default_value = "velero")]
    pub(crate) namespace: String,
    /// How the findings are printed
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CoverageFormat {
    /// Lines for people.
    Table,
    /// A list of objects.
    Json,
    /// The same as YAML.
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        for line in [
            "jackline repository -r /r --json snapshots --tag a",
            "jackline repository snapshots --tag a --repo /r --output json",
        ] {
            let Command::Repository(args) = Cli::parse_from(line.split(' ')).command else {
                panic!("{line}");
            };
            assert_eq!((args.repo.as_deref(), args.json()), (Some("/r"), true));
        }
    }

    #[test]
    fn a_subset_is_a_percentage_a_part_or_a_size() {
        assert_eq!(subset("10%"), Ok(ReadData::Percent(10.0)));
        assert_eq!(subset("1/5"), Ok(ReadData::Part { part: 1, of: 5 }));
        assert_eq!(subset("500M"), Ok(ReadData::Bytes(500 << 20)));
        assert_eq!(subset("7"), Ok(ReadData::Bytes(7)));
        for wrong in [
            "",
            "%",
            "6/5",
            "0/5",
            "1/257",
            "M",
            "5X",
            "-1M",
            "1/",
            "99999999T",
        ] {
            assert!(subset(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!(percent("5%"), Ok(5.0));
        assert_eq!(percent("0.5"), Ok(0.5));
        for wrong in ["", "-1", "101%", "nan", "5G"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
