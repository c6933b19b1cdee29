//! Check: is everything there that the snapshots lead to, and is it what it says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use rand::seq::SliceRandom;
use tokio_util::sync::CancellationToken;

use crate::blobs::{self, BlobReader, Sealed};
use crate::crypto::Proof;
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index::Index;
use crate::lock::{self, Mode};
use crate::mark::{self, Marks};
use crate::pack::{self, LENGTH, PackedBlob, header_len};
use crate::progress::Progress;
use crate::report::{CheckOptions, CheckReport, ReadData};
use crate::repository::Repository;

/// See [`Repository::check`].
pub(crate) async fn run(
    repository: &Repository,
    options: CheckOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<CheckReport> {
    validate(options.read_data)?;
    let guard = match options.no_lock {
        true => None,
        false => {
            Some(lock::acquire(&repository.files, &repository.options, Mode::Shared, cancel).await?)
        }
    };
    let begun = Instant::now();
    let work = check(repository, options, progress, cancel);
    let result = drive::unless_cancelled(cancel, work).await;
    if let Some(guard) = guard {
        guard.release(cancel).await;
    }
    let mut report = result?;
    report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

async fn check(
    repository: &Repository,
    options: CheckOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<CheckReport> {
    let files = &repository.files;
    let mut report = CheckReport::default();
    let mut errors = Vec::new();

    // Snapshots before the index: what a snapshot names was in the index before it.
    let mut roots = Vec::new();
    for (id, _) in files.list(FileKind::Snapshot).await? {
        match repository.snapshot(&id).await {
            Ok(snapshot) => roots.push(snapshot.tree),
            Err(Error::SnapshotNotFound { .. }) => {}
            Err(error @ Error::Corrupt { .. }) => errors.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    report.snapshots = roots.len() as u64;

    let (index, damaged) = load_index(files).await?;
    errors.extend(damaged);
    let index = Arc::new(index);
    let packs = by_pack(&index);
    let sizes: HashMap<Id, u64> = files
        .list(FileKind::Pack)
        .await?
        .into_iter()
        .map(|(id, meta)| (id, meta.size))
        .collect();
    report.packs = packs.len() as u64;
    let mut sound = Vec::new();
    for (id, blobs) in packs {
        let expected =
            blobs.iter().map(|blob| u64::from(blob.length)).sum::<u64>() + header_len(blobs.iter());
        let name = FileKind::Pack.path(&id);
        match sizes.get(&id) {
            None => errors.push(format!("{name} is missing")),
            Some(size) if *size != expected => {
                errors.push(format!(
                    "{name} has {size} bytes, the index says {expected}"
                ));
            }
            Some(size) => sound.push((id, *size, blobs)),
        }
    }
    for id in sizes.keys().filter(|id| !index.has_pack(id)) {
        report
            .hints
            .push(format!("{} is in no index", FileKind::Pack.path(id)));
    }

    let reader = BlobReader {
        files: files.clone(),
        index: Arc::clone(&index),
    };
    let mut marks = Marks::new(index.len());
    let mut on_damage = |error: Error| {
        errors.push(error.to_string());
        Ok(())
    };
    report.trees = mark::mark(&reader, roots, &mut marks, cancel, &mut on_damage).await?;

    let drawn = draw(sound, options.read_data);
    if !drawn.is_empty() {
        report.packs_read = drawn.len() as u64;
        let damaged = read_data(files, drawn, progress, cancel).await?;
        errors.extend(damaged.into_iter().map(|(_, why)| why));
    }
    let mut seen = HashSet::new();
    report.errors = errors
        .into_iter()
        .filter(|error| seen.insert(error.clone()))
        .collect();
    report.hints.sort();
    Ok(report)
}

fn validate(share: ReadData) -> Result<()> {
    let message = match share {
        ReadData::Percent(percent) if !(0.0..=100.0).contains(&percent) => {
            "a share of the data is from 0 to 100 percent"
        }
        ReadData::Part { part, of } if part == 0 || part > of || of > 256 => {
            "a part of the data is one of at most 256, counted from 1"
        }
        _ => return Ok(()),
    };
    Err(Error::Invalid(message.into()))
}

/// A pack, its size and its blobs.
pub(crate) type Sized = (Id, u64, Vec<PackedBlob>);

/// The packs to read.
fn draw(mut packs: Vec<Sized>, share: ReadData) -> Vec<Sized> {
    match share {
        ReadData::Nothing => packs.clear(),
        ReadData::Everything => {}
        ReadData::Percent(percent) => {
            packs.shuffle(&mut rand::rng());
            packs.truncate((packs.len() as f64 * percent / 100.0).ceil() as usize);
        }
        // restic's buckets: by the first byte of the name.
        ReadData::Part { part, of } => {
            packs.retain(|(id, ..)| u32::from(id.0[0]) % of.max(1) == part.saturating_sub(1));
        }
        ReadData::Bytes(wanted) => {
            packs.shuffle(&mut rand::rng());
            let mut sum = 0_u64;
            packs.retain(|(_, size, _)| {
                let more = sum < wanted;
                sum = sum.saturating_add(*size);
                more
            });
        }
    }
    packs
}

/// All index files that can be read, and what is wrong with the others.
pub(crate) async fn load_index(files: &Files) -> Result<(Index, Vec<String>)> {
    match Index::load(files).await {
        Ok((index, _)) => Ok((index, Vec::new())),
        Err(Error::Corrupt { .. }) => {
            let mut index = Index::default();
            let mut damaged = Vec::new();
            for (id, _) in files.list(FileKind::Index).await? {
                let name = FileKind::Index.path(&id);
                let loaded = files.load(FileKind::Index, &id).await;
                match loaded.and_then(|json| crate::index::parse(&name, &json)) {
                    Ok(file) => {
                        for (pack, blobs) in file.packs {
                            index.add_pack(pack, &blobs);
                        }
                    }
                    Err(error @ Error::Corrupt { .. }) => damaged.push(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            Ok((index, damaged))
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn by_pack(index: &Index) -> Vec<(Id, Vec<PackedBlob>)> {
    let mut packs: Vec<_> = index.packs().iter().map(|id| (*id, Vec::new())).collect();
    for place in index.iter() {
        packs[place.pack as usize].1.push(place.blob);
    }
    for (_, blobs) in &mut packs {
        blobs.sort_unstable_by_key(|blob| (blob.offset, blob.length));
    }
    packs
}

/// Reads packs from end to end and compares everything in them with what the index and their names say. Returns those that
/// are damaged, and how.
pub(crate) async fn read_data(
    files: &Files,
    packs: Vec<Sized>,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Vec<(Id, String)>> {
    let counters = Arc::new(Counters::default());
    counters.expect(
        packs.iter().map(|(_, size, _)| size).sum(),
        packs.len() as u64,
    );
    let mut pump = Pump::new(progress, Arc::clone(&counters));
    let mut reading = futures::stream::iter(packs)
        .map(|(id, size, blobs)| async move {
            let name = FileKind::Pack.path(&id);
            let bytes = match files.store.get(&name).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_not_found() => {
                    return Ok((id, size, Some(format!("{name} is missing"))));
                }
                Err(error) => return Err(Error::from(error)),
            };
            let key = files.key.clone();
            let verified =
                tokio::task::spawn_blocking(move || verify(&name, &id, bytes, &blobs, &key));
            match verified.await {
                Ok(Ok(())) => Ok((id, size, None)),
                Ok(Err(error)) => Ok((id, size, Some(error.to_string()))),
                Err(error) => Err(Error::Internal(error.to_string())),
            }
        })
        .buffer_unordered(drive::threads());
    let mut damaged = Vec::new();
    loop {
        tokio::select! {
            next = reading.try_next() => match next? {
                Some((id, size, error)) => {
                    counters.advance(size, 1);
                    pump.tell();
                    damaged.extend(error.map(|why| (id, why)));
                }
                None => return Ok(damaged),
            },
            () = cancel.cancelled() => return Err(Error::Cancelled),
        }
    }
}

/// Whether a pack is what its name, its header and the index say.
pub(crate) fn verify(
    name: &str,
    id: &Id,
    bytes: Bytes,
    expected: &[PackedBlob],
    key: &crate::crypto::Key,
) -> Result<()> {
    let corrupt = |reason: &str| Error::corrupt(name, reason);
    if Id::of(&bytes) != *id {
        return Err(corrupt("its content does not match its name"));
    }
    let size = bytes.len() as u64;
    let length = pack::sealed_header_len(name, &bytes, size)?;
    let start = bytes.len() - LENGTH - length;
    let end = bytes.len() - LENGTH;
    let mut listed = pack::parse_header(name, &mut bytes[start..end].to_vec(), size, key)?;
    listed.sort_unstable_by_key(|blob| (blob.offset, blob.length));
    if listed != expected {
        return Err(corrupt("its header and the index list different blobs"));
    }
    let sealed = Sealed::Fetched { start: 0, bytes };
    let blobs = expected
        .iter()
        .map(|blob| Ok((blob, *blob, sealed.clone())));
    blobs::open_each(
        key,
        Proof::Tag,
        blobs,
        &mut Default::default(),
        |blob, plain| {
            plain
                .map(drop)
                .map_err(|reason| corrupt(&format!("{} {}: {reason}", blob.kind.name(), blob.id)))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs() -> Vec<Sized> {
        (0..200_u8)
            .map(|n| (Id([n.wrapping_mul(37); 32]), 10, Vec::new()))
            .collect()
    }

    #[test]
    fn a_share_is_as_large_as_asked_for() {
        let count = |share| draw(packs(), share).len();
        assert_eq!(count(ReadData::Nothing), 0);
        assert_eq!(count(ReadData::Everything), 200);
        assert_eq!(count(ReadData::Percent(0.0)), 0);
        assert_eq!(count(ReadData::Percent(0.1)), 1);
        assert_eq!(count(ReadData::Percent(10.0)), 20);
        assert_eq!(count(ReadData::Bytes(0)), 0);
        assert_eq!(count(ReadData::Bytes(1)), 1);
        assert_eq!(count(ReadData::Bytes(95)), 10);
        assert_eq!(count(ReadData::Bytes(u64::MAX)), 200);
    }

    #[test]
    fn all_parts_together_are_everything_once() {
        let mut seen = HashSet::new();
        for part in 1..=7 {
            for (id, ..) in draw(packs(), ReadData::Part { part, of: 7 }) {
                assert!(seen.insert(id));
            }
        }
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        for share in [
            ReadData::Percent(101.0),
            ReadData::Percent(f64::NAN),
            ReadData::Part { part: 0, of: 5 },
            ReadData::Part { part: 6, of: 5 },
            ReadData::Part { part: 1, of: 257 },
        ] {
            assert!(validate(share).is_err(), "{share:?}");
        }
        assert!(validate(ReadData::Part { part: 256, of: 256 }).is_ok());
    }
}
