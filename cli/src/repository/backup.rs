//! `backup`: the source, its parent, the summary.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jackline_repository::{BackupRequest, BackupSummary, Parent};
use serde_json::{Value, json};

use super::{Session, seconds};
use crate::args::BackupArgs;
use crate::exit::Exit;
use crate::output::{self, Bar};
use crate::table;

pub(super) async fn run(session: &Session, args: BackupArgs) -> Result<ExitCode, Exit> {
    let BackupArgs {
        paths,
        tag,
        host,
        parent,
        force,
    } = args;
    let host = match host {
        Some(host) => host,
        None => jackline_repository::LockHolder::this_process().hostname,
    };
    let (request, shown) = request(&paths, &host)?;
    let repository = session.open().await?;
    let parent = match (parent, force) {
        (_, true) => Parent::None,
        (Some(parent), _) => Parent::Snapshot(repository.resolve(&parent).await?),
        (None, _) => Parent::Newest,
    };
    let tags = tag.into_iter().filter(|tag| !tag.is_empty()).collect();
    let request = BackupRequest {
        tags,
        parent,
        snapshot_paths: shown,
        ..request
    };
    let bar = Bar::new("backup", session.json);
    let summary = repository.backup(request, &bar, &session.cancel).await?;
    drop(bar);
    output::problems(&summary.errors, "archival", session.json);
    output::problems(&summary.warnings, "archival", session.json);
    session.print("summary", &report(&summary)?, &text(&summary))?;
    if summary.is_complete() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Exit::incomplete(format!(
        "the snapshot lacks {} files that could not be read",
        summary.error_count
    )))
}

/// The request, and the paths that the snapshot shows.
fn request(paths: &[PathBuf], host: &str) -> Result<(BackupRequest, Vec<String>), Exit> {
    let absolute = |path: &Path| {
        let whole = std::path::absolute(path).map(|path| clean(&path));
        whole.map_err(|error| Exit::failed(format!("{}: {error}", path.display())))
    };
    let whole = paths
        .iter()
        .map(|path| absolute(path))
        .collect::<Result<Vec<_>, _>>()?;
    for path in &whole {
        if let Err(error) = path.symlink_metadata() {
            return Err(Exit::failed(format!("{}: {error}", path.display())));
        }
    }
    let shown = whole
        .iter()
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    match (paths, &whole[..]) {
        ([given], [directory]) if is_contents(given) => {
            Ok((BackupRequest::contents(directory, host), shown))
        }
        _ => Ok((BackupRequest::paths(whole, host), shown)),
    }
}

/// `.`, `dir/.` and `./` stand for what is in the directory.
fn is_contents(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text == b"." || text == b"./" || text.ends_with(b"/.") || text.ends_with(b"/./")
}

/// Without `.` and `..`, as the shell would show it; links are not followed.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// restic's field names, and ours beside them.
fn report(summary: &BackupSummary) -> Result<Value, Exit> {
    let mut value = serde_json::to_value(summary).map_err(Exit::failed)?;
    let files = summary.files_new + summary.files_changed + summary.files_unmodified;
    if let Value::Object(fields) = &mut value {
        for (name, value) in [
            ("snapshot_id", json!(summary.snapshot)),
            ("data_added", json!(summary.bytes_added)),
            ("data_added_packed", json!(summary.bytes_stored)),
            ("total_files_processed", json!(files)),
            ("total_bytes_processed", json!(summary.bytes_processed)),
            ("total_duration", json!(summary.duration_ms as f64 / 1000.0)),
        ] {
            fields.insert(name.to_owned(), value);
        }
    }
    Ok(value)
}

fn text(summary: &BackupSummary) -> String {
    let BackupSummary {
        files_new,
        files_changed,
        files_unmodified,
        ..
    } = summary;
    let id = summary.snapshot.map(|id| id.short()).unwrap_or_default();
    let parent = match summary.parent {
        Some(parent) => format!("compared with snapshot {}", parent.short()),
        None => "compared with no snapshot".to_owned(),
    };
    format!(
        "files: {files_new} new, {files_changed} changed, {files_unmodified} unchanged; {parent}\n\
         {} in {}, {} read, {} added ({} stored)\nsnapshot {id} saved\n",
        table::bytes(summary.bytes_processed),
        seconds(summary.duration_ms),
        table::bytes(summary.bytes_read),
        table::bytes(summary.bytes_added),
        table::bytes(summary.bytes_stored),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_means_what_is_in_the_directory() {
        for path in [".", "./", "a/.", "/a/b/.", "a/./"] {
            assert!(is_contents(Path::new(path)), "{path}");
        }
        for path in ["a", "./a", "/a/", "..", "a.", ".a"] {
            assert!(!is_contents(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn paths_are_shown_without_dots() {
        assert_eq!(clean(Path::new("/a/./b/../c/.")), Path::new("/a/c"));
        assert_eq!(clean(Path::new("/../..")), Path::new("/"));
    }
}
