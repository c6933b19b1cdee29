//! `restore`: which snapshot, how, and what came of it.

use std::path::PathBuf;
use std::process::ExitCode;

use jackline_repository::{Only, RestoreOptions, RestoreSummary};

use super::{Session, seconds, snapshots};
use crate::args::{Overwrite, RestoreArgs};
use crate::exit::Exit;
use crate::output::{self, Bar};
use crate::table;

pub(super) async fn run(session: &Session, args: RestoreArgs) -> Result<ExitCode, Exit> {
    let RestoreArgs {
        snapshot,
        target,
        overwrite,
        delete,
        include,
        exclude,
        verify,
        no_sparse,
        devices,
        filter,
    } = args;
    let (snapshot, subfolder) = match snapshot.split_once(':') {
        Some((snapshot, folder)) => (snapshot, Some(PathBuf::from(folder))),
        None => (&*snapshot, None),
    };
    let repository = session.open().await?;
    let id = if snapshot == "latest" {
        snapshots::latest(&repository, &filter).await?
    } else {
        repository.resolve(snapshot).await?
    };
    let options = RestoreOptions {
        sparse: !no_sparse,
        devices,
        overwrite: match overwrite {
            Overwrite::Always => jackline_repository::Overwrite::Always,
            Overwrite::IfChanged => jackline_repository::Overwrite::IfChanged,
            Overwrite::IfNewer => jackline_repository::Overwrite::IfNewer,
            Overwrite::Never => jackline_repository::Overwrite::Never,
        },
        delete,
        only: match exclude.is_empty() {
            true => Only::Included(include),
            false => Only::Excluded(exclude),
        },
        subfolder,
        verify,
        ..RestoreOptions::default()
    };
    let bar = Bar::new("restore", session.json);
    let summary = repository
        .restore(&id, &target, options, &bar, &session.cancel)
        .await?;
    drop(bar);
    output::problems(&summary.errors, "restore", session.json);
    let text = format!(
        "restored {} files, {} directories, {} in {} to {}\n{}",
        summary.files,
        summary.dirs,
        table::bytes(summary.bytes),
        seconds(summary.duration_ms),
        target.display(),
        also(&summary)
    );
    session.print("summary", &summary, &text)?;
    if summary.is_complete() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Exit::incomplete(format!(
        "{} entries could not be restored whole",
        summary.error_count
    )))
}

/// A line of what else happened, if anything did.
fn also(summary: &RestoreSummary) -> String {
    let parts: Vec<String> = [
        (summary.unchanged, "were there already"),
        (summary.skipped, "skipped"),
        (summary.deleted, "deleted"),
        (summary.verified, "read back and found right"),
        (summary.mismatches, "read back and found wrong"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!("{}\n", parts.join(", ")),
    }
}
