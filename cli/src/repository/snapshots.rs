//! Which snapshots there are.

use std::process::ExitCode;

use jackline_repository::{Repository, SnapshotId, SnapshotInfo};
use serde_json::{Value, json};

use super::{Filter, Session};
use crate::exit::Exit;
use crate::{output, table};

pub(super) async fn list(
    session: &Session,
    ids: &[String],
    filter: &Filter,
) -> Result<ExitCode, Exit> {
    let repository = session.open().await?;
    let mut snapshots = repository.snapshots().await?;
    snapshots.retain(|info| matches(info, filter));
    if !ids.is_empty() {
        let wanted = resolve_all(&repository, ids).await?;
        snapshots.retain(|info| wanted.contains(&info.id));
    }
    if session.json {
        let list = snapshots
            .iter()
            .map(with_short_id)
            .collect::<Result<Vec<_>, _>>()?;
        output::print_json(&Value::Array(list))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = snapshots.iter().map(row).collect();
    let head = ["ID", "TIME", "HOST", "SIZE", "PATHS", "TAGS"];
    output::print(&table::render(&head, &rows, table::terminal_width()))?;
    output::print(&format!("{} snapshots\n", rows.len()))?;
    Ok(ExitCode::SUCCESS)
}

/// The snapshots that these ids, or beginnings of ids, stand for.
pub(super) async fn resolve_all(
    repository: &Repository,
    ids: &[String],
) -> Result<Vec<SnapshotId>, Exit> {
    let mut resolved = Vec::with_capacity(ids.len());
    for id in ids {
        resolved.push(repository.resolve(id).await?);
    }
    Ok(resolved)
}

/// The newest snapshot that the filter lets through.
pub(super) async fn latest(repository: &Repository, filter: &Filter) -> Result<SnapshotId, Exit> {
    let all = repository.snapshots().await?.into_iter();
    let newest = all
        .filter(|info| matches(info, filter))
        .max_by_key(|info| info.snapshot.time);
    newest
        .map(|info| info.id)
        .ok_or_else(|| Exit::failed("there is no such snapshot"))
}

fn matches(info: &SnapshotInfo, filter: &Filter) -> bool {
    let Filter { tag, host, path } = filter;
    let snapshot = &info.snapshot;
    let has_all = |list: &String| {
        let mut tags = list.split(',').filter(|tag| !tag.is_empty());
        tags.all(|tag| snapshot.tags.iter().any(|have| have == tag))
    };
    let has_path = |path: &std::path::PathBuf| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        snapshot
            .paths
            .iter()
            .any(|have| std::path::Path::new(have) == path)
    };
    (tag.is_empty() || tag.iter().any(has_all))
        && (host.is_empty() || host.contains(&snapshot.hostname))
        && path.iter().all(has_path)
}

fn with_short_id(info: &SnapshotInfo) -> Result<Value, Exit> {
    let mut value = serde_json::to_value(info).map_err(Exit::failed)?;
    if let Value::Object(fields) = &mut value {
        fields.insert("short_id".to_owned(), json!(info.id.short()));
    }
    Ok(value)
}

fn row(info: &SnapshotInfo) -> Vec<String> {
    let snapshot = &info.snapshot;
    let size = snapshot
        .summary
        .as_ref()
        .map(|s| table::bytes(s.total_bytes_processed));
    vec![
        info.id.short(),
        snapshot.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        snapshot.hostname.clone(),
        size.unwrap_or_else(|| "-".to_owned()),
        snapshot.paths.join(", "),
        snapshot.tags.join(","),
    ]
}
