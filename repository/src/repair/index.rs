//! The index, made anew from the packs. New index files first, then the old ones go: in between both say the truth about
//! every pack that is there.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{IndexRepair, RepairOptions};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::lock::{self, LockGuard};
use crate::pack::header_len;
use crate::progress::Progress;
use crate::{adopt, check};

/// Pack headers read at once.
const CONCURRENCY: usize = 8;

pub(super) async fn rebuild(
    files: &Files,
    options: RepairOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<IndexRepair> {
    let old: Vec<Id> = files
        .list(FileKind::Index)
        .await?
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    let (known, damaged) = check::load_index(files).await?;
    let mut unread: HashMap<Id, u64> = files
        .list(FileKind::Pack)
        .await?
        .into_iter()
        .map(|(id, meta)| (id, meta.size))
        .collect();
    let mut report = IndexRepair {
        damaged,
        ..IndexRepair::default()
    };
    let (mut packs, mut listed) = (Vec::new(), HashSet::new());
    for (id, blobs) in check::by_pack(&known) {
        let held = blobs.iter().map(|blob| u64::from(blob.length)).sum::<u64>();
        let expected = held + header_len(blobs.iter());
        match unread.get(&id) {
            None => report.missing.push(FileKind::Pack.path(&id)),
            Some(size) if *size == expected && !options.read_all_packs => {
                unread.remove(&id);
                packs.push((id, blobs));
            }
            Some(_) => {
                listed.insert(id);
            }
        }
    }
    drop(known);
    progress.total(unread.values().sum(), unread.len() as u64);
    let mut headers = futures::stream::iter(unread)
        .map(|(id, size)| async move { (id, size, adopt::header(files, &id, size).await) })
        .buffer_unordered(CONCURRENCY);
    let mut lost = false;
    while let Some((id, size, header)) = headers.next().await {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match header {
            Ok(blobs) => {
                report.packs_read += 1;
                packs.push((id, blobs));
            }
            Err(error @ Error::Corrupt { .. }) => {
                lost |= listed.contains(&id);
                report.unreadable.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
        progress.advance(size, 1);
    }
    report.packs = packs.len() as u64;
    report.changed =
        lost || report.packs_read > 0 || !report.missing.is_empty() || !report.damaged.is_empty();
    report.missing.sort();
    report.unreadable.sort();
    if report.changed && !options.dry_run {
        adopt::write_index(files, guard, &packs).await?;
        lock::delete_all(files, guard, FileKind::Index, &old).await?;
    }
    Ok(report)
}
