//! Adopting what a process stored that died before it could list it in an index.

use std::collections::HashMap;

use futures::StreamExt;

use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index::{self, Index};
use crate::lock::{self, LockGuard};
use crate::pack::{self, LENGTH, PackedBlob};

/// Pack headers read at once.
const CONCURRENCY: usize = 8;
/// Read from the end of a pack in the hope that its header is no longer.
const TAIL: u64 = 16 << 10;

/// The index for somebody who adds, with what the dead have stored.
pub(crate) async fn index(files: &Files, guard: &LockGuard) -> Result<Index> {
    let (mut index, names) = Index::load(files).await?;
    guard.rely_on(names);
    if guard.healed() {
        // Packs that no index lists can be pruned without a trace in it.
        guard.settled().await?;
        adopt(files, guard, &mut index).await?;
    }
    Ok(index)
}

/// Adds the packs that no index lists to `index`, and writes index files for them. Those of a living process may be among
/// them: it lists them again, which is legal. A pack whose header cannot be read is left to prune. Returns how many packs
/// were adopted.
async fn adopt(files: &Files, guard: &LockGuard, index: &mut Index) -> Result<u64> {
    let listed = files.list(FileKind::Pack).await?;
    let sizes: HashMap<Id, u64> = listed
        .into_iter()
        .filter(|(id, _)| !index.has_pack(id))
        .map(|(id, meta)| (id, meta.size))
        .collect();
    let mut headers = futures::stream::iter(sizes)
        .map(|(id, size)| async move { (id, header(files, &id, size).await) })
        .buffer_unordered(CONCURRENCY);
    let mut adopted = Vec::new();
    while let Some((id, blobs)) = headers.next().await {
        match blobs {
            Ok(blobs) => adopted.push((id, blobs)),
            Err(error @ Error::Corrupt { .. }) => {
                tracing::warn!(%error, "a pack that no index lists cannot be used");
            }
            Err(Error::Storage(error)) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let count = adopted.len() as u64;
    write_index(files, guard, &adopted).await?;
    for (id, blobs) in &adopted {
        index.add_pack(*id, blobs);
    }
    if count > 0 {
        tracing::info!(packs = count, "adopted what a dead process had stored");
    }
    Ok(count)
}

/// Writes index files that list these packs, and returns their names.
pub(crate) async fn write_index(
    files: &Files,
    guard: &LockGuard,
    packs: &[(Id, Vec<PackedBlob>)],
) -> Result<Vec<Id>> {
    let (mut rest, mut written) = (packs, Vec::new());
    while !rest.is_empty() {
        let mut blobs = 0;
        let take = rest
            .iter()
            .take_while(|(_, pack)| {
                let fits = blobs < index::FULL;
                blobs += pack.len();
                fits
            })
            .count();
        let (file, after) = rest.split_at(take);
        rest = after;
        let json = index::to_json(file)?;
        written.push(lock::write(files, guard, FileKind::Index, &json).await?.0);
    }
    Ok(written)
}

/// What a pack holds, by its own header.
pub(crate) async fn header(files: &Files, id: &Id, size: u64) -> Result<Vec<PackedBlob>> {
    let name = FileKind::Pack.path(id);
    let from = size.saturating_sub(TAIL);
    let mut tail = Vec::from(files.store.get_range(&name, from..size).await?);
    let length = pack::sealed_header_len(&name, &tail, size)?;
    let whole = length + LENGTH;
    if whole > tail.len() {
        let from = size.saturating_sub(whole as u64);
        tail = Vec::from(files.store.get_range(&name, from..size).await?);
    }
    let start = tail.len() - whole;
    let end = tail.len() - LENGTH;
    let blobs = pack::parse_header(&name, &mut tail[start..end], size, &files.key)?;
    let held: u64 = blobs.iter().map(|blob| u64::from(blob.length)).sum();
    if held + whole as u64 != size {
        return Err(Error::corrupt(name, "its header lists less than it holds"));
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use jackline_storage::memory::MemoryStore;
    use tokio_util::sync::CancellationToken;

    use crate::faulty::{Fate, Faulty};
    use crate::options::{OpenOptions, Password};
    use crate::progress::NoProgress;
    use crate::report::BackupRequest;
    use crate::repository::Repository;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_dead_stored_is_not_lost_to_the_forget_that_heals_their_lock() {
        let (source, never) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let memory = Arc::new(MemoryStore::new());
        let mut options = OpenOptions::new(Password::new("x"));
        let living = Repository::init(memory.clone(), &options).await.unwrap();
        let request = BackupRequest::contents(source.path(), "h");
        let empty = living.backup(request.clone(), &NoProgress, &never);
        let empty = empty.await.unwrap().snapshot.unwrap();

        let mut child = std::process::Command::new("true").spawn().unwrap();
        options.holder.pid = child.id();
        child.wait().unwrap();
        let store = Faulty::new(memory);
        let dead = Repository::open(store.clone(), &options).await.unwrap();
        fs::write(source.path().join("file"), vec![7; 300_000]).unwrap();
        store.on(|request| match request.starts_with("put index/") {
            true => Fate::Never,
            false => Fate::Pass,
        });
        let dies = async {
            while store.asked("put index/").is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            store.on(|_| Fate::Never);
        };
        tokio::select! {
            made = dead.backup(request.clone(), &NoProgress, &never) => panic!("{made:?}"),
            () = dies => {}
        }

        living.forget(&[empty]).await.unwrap();
        let made = living.backup(request, &NoProgress, &never).await.unwrap();
        assert_eq!((made.files_new, made.data_blobs), (1, 0));
    }
}
