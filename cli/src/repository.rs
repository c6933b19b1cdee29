//! `jackline repository …`.

mod access;
mod backup;
mod keys;
mod repair;
mod restore;
mod snapshots;

use std::process::ExitCode;
use std::time::Duration;

use jackline_repository::{
    CheckOptions, Error, OpenOptions, PruneOptions, ReadData, Repository, Version,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args::{Filter, RepositoryArgs, RepositoryCommand};
use crate::exit::Exit;
use crate::output::{self, Bar};
use crate::table;

/// How long a command that was stopped may take to end in order. More than the operations that do so need.
const GRACE: Duration = Duration::from_millis(700);

/// What every command works with.
struct Session {
    options: OpenOptions,
    store: std::sync::Arc<dyn jackline_storage::ObjectStore>,
    json: bool,
    cancel: CancellationToken,
}

impl Session {
    async fn open(&self) -> Result<Repository, Exit> {
        Ok(Repository::open(self.store.clone(), &self.options).await?)
    }

    /// Prints a summary: as JSON with its `message_type`, else the text.
    fn print(&self, kind: &str, summary: &impl Serialize, text: &str) -> Result<(), Exit> {
        if !self.json {
            return Ok(output::print(text)?);
        }
        let mut value = serde_json::to_value(summary).map_err(Exit::failed)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("message_type".to_owned(), kind.into());
        }
        Ok(output::print_json(&value)?)
    }
}

pub(crate) async fn run(args: RepositoryArgs) -> Result<ExitCode, Exit> {
    let session = Session {
        options: access::options(&args)?,
        store: access::store(&args).await?,
        json: args.json(),
        cancel: access::cancelled_by_signals()?,
    };
    let stopped = async {
        session.cancel.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        biased;
        result = command(&session, args.command) => result,
        // Dropped where it stands; a lock that it holds is given back beside.
        () = stopped => Err(Error::Cancelled.into()),
    }
}

async fn command(session: &Session, command: RepositoryCommand) -> Result<ExitCode, Exit> {
    match command {
        RepositoryCommand::Init { repository_version } => init(session, repository_version).await,
        RepositoryCommand::Snapshots { ids, filter } => {
            snapshots::list(session, &ids, &filter).await
        }
        RepositoryCommand::Backup(args) => backup::run(session, args).await,
        RepositoryCommand::Restore(args) => restore::run(session, args).await,
        RepositoryCommand::Forget {
            snapshots,
            prune: and_prune,
            unused,
        } => {
            forget(session, &snapshots).await?;
            if and_prune {
                prune(session, unused.max_unused).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        RepositoryCommand::Prune { unused } => {
            prune(session, unused.max_unused).await?;
            Ok(ExitCode::SUCCESS)
        }
        RepositoryCommand::Check {
            read_data,
            read_data_subset,
            no_lock,
        } => {
            let read_data = match (read_data, read_data_subset) {
                (true, _) => ReadData::Everything,
                (false, subset) => subset.unwrap_or_default(),
            };
            check(session, CheckOptions { read_data, no_lock }).await
        }
        RepositoryCommand::Unlock => unlock(session).await,
        RepositoryCommand::Key(command) => keys::run(session, command).await,
        RepositoryCommand::Repair(command) => repair::run(session, command).await,
    }
}

async fn init(session: &Session, version: u8) -> Result<ExitCode, Exit> {
    let version = if version == 1 {
        Version::V1
    } else {
        Version::V2
    };
    let repository =
        Repository::init_version(session.store.clone(), &session.options, version).await?;
    let (id, location) = (repository.id().to_owned(), repository.location());
    let text = format!(
        "made repository {} at {location}\nWithout its password the data cannot be read: keep it elsewhere too.\n",
        id.get(..10).unwrap_or(&id)
    );
    session.print(
        "initialized",
        &json!({"id": id, "repository": location}),
        &text,
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn forget(session: &Session, snapshots: &[String]) -> Result<(), Exit> {
    let repository = session.open().await?;
    let ids = snapshots::resolve_all(&repository, snapshots).await?;
    let summary = repository.forget(&ids).await?;
    let text = format!("removed {} snapshots\n", summary.removed.len());
    session.print("forget", &summary, &text)
}

async fn prune(session: &Session, max_unused_percent: f64) -> Result<(), Exit> {
    let repository = session.open().await?;
    let bar = Bar::new("prune", session.json);
    let options = PruneOptions { max_unused_percent };
    let summary = repository.prune(options, &bar, &session.cancel).await?;
    drop(bar);
    let text = format!(
        "{} -> {}: removed {} packs, rewrote {}; {} unused data stays\n",
        table::bytes(summary.bytes_before),
        table::bytes(summary.bytes_after),
        summary.packs_deleted,
        summary.packs_repacked,
        table::bytes(summary.bytes_unused)
    );
    session.print("prune", &summary, &text)
}

async fn check(session: &Session, options: CheckOptions) -> Result<ExitCode, Exit> {
    let repository = session.open().await?;
    let bar = Bar::new("check", session.json);
    let report = repository.check(options, &bar, &session.cancel).await?;
    drop(bar);
    if !session.json {
        for line in report.errors.iter().chain(&report.hints) {
            output::note(line);
        }
    }
    let text = format!(
        "checked {} snapshots, {} trees, {} packs, of which {} were read: {}\n",
        report.snapshots,
        report.trees,
        report.packs,
        report.packs_read,
        if report.is_ok() {
            "no errors were found"
        } else {
            "the repository is damaged"
        }
    );
    session.print("summary", &report, &text)?;
    if report.is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Exit::failed(format!(
        "the repository has {} errors",
        report.errors.len()
    )))
}

async fn unlock(session: &Session) -> Result<ExitCode, Exit> {
    let removed = session.open().await?.unlock().await?;
    session.print(
        "unlock",
        &json!({"removed": removed}),
        &format!("removed {removed} locks\n"),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.1} s", milliseconds as f64 / 1000.0)
}
