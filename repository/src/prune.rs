//! Prune: give back the space of blobs that no snapshot uses.
//!
//! Under an exclusive lock: mark what is used; copy the used blobs out of packs that waste too much; write an index
//! without the packs that go; delete the old index files; delete the packs. Interrupted anywhere, every index file that is
//! left lists only packs that are there, and the next prune goes on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blobs::{self, BlobReader};
use crate::drive::{self, Counters, Pump};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index::{self, Index, Location};
use crate::lock::{self, LockGuard, Mode};
use crate::mark::{self, Marks};
use crate::pack::{BlobKind, PackedBlob, header_len};
use crate::packer::Packer;
use crate::progress::Progress;
use crate::report::{PruneOptions, PruneSummary};
use crate::repository::Repository;
use crate::uploader;

/// See [`Repository::prune`].
pub(crate) async fn run(
    repository: &Repository,
    options: PruneOptions,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<PruneSummary> {
    if !(0.0..=1e6).contains(&options.max_unused_percent) {
        return Err(Error::Invalid(
            "max_unused_percent must be 0 or more".into(),
        ));
    }
    let guard = lock::acquire(&repository.files, &repository.options, Mode::Exclusive).await?;
    let begun = Instant::now();
    let result = locked(repository, options, &guard, progress, cancel).await;
    guard.release().await;
    let mut summary = result?;
    summary.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(summary)
}

async fn locked(
    repository: &Repository,
    options: PruneOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<PruneSummary> {
    let files = &repository.files;
    let (index, old_names) = Index::load(files).await?;
    let index = Arc::new(index);
    let reader = BlobReader {
        files: files.clone(),
        index: Arc::clone(&index),
    };
    let snapshots = repository.snapshots().await?;

    let mut marks = Marks::new(index.len());
    let roots = snapshots.iter().map(|info| info.snapshot.tree);
    mark::mark(&reader, roots, &mut marks, cancel, &mut Err).await?;

    let listed = files.list(FileKind::Pack).await?;
    let plan = Plan::make(&index, &marks, &listed, options)?;
    let mut summary = plan.summary.clone();
    summary.snapshots = snapshots.len() as u64;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }

    let mut copied_bytes = 0;
    let mut written = Vec::new();
    if !plan.copies.is_empty() {
        let counters = Arc::new(Counters::default());
        counters.expect(
            plan.copies
                .iter()
                .map(|copy| u64::from(copy.blob.length))
                .sum(),
            0,
        );
        let mut pump = Pump::new(progress, Arc::clone(&counters));
        let (runtime, copies) = (Handle::current(), plan.copies.clone());
        let work = move |packer: &Arc<Packer>, stop: &CancellationToken| {
            copy(&reader, &runtime, packer, stop, &counters, &copies)
        };
        // An empty index: what is copied counts as new.
        let packing = drive::packing(files, guard, Arc::default(), cancel, &mut pump, work).await?;
        (written, copied_bytes) = (packing.1, packing.2);
    }
    if !plan.gone.is_empty() {
        let keep: HashSet<Id> = write_index(files, guard, &index, &plan.gone, cancel)
            .await?
            .into_iter()
            .chain(written)
            .collect();
        let old: Vec<Id> = old_names
            .into_iter()
            .filter(|name| !keep.contains(name))
            .collect();
        // From here on there is no way back but forward, and every step leaves a sound repository.
        lock::delete_all(files, guard, FileKind::Index, &old).await?;
    }
    let gone: Vec<Id> = plan
        .gone
        .iter()
        .map(|pack| index.pack_id(*pack))
        .chain(plan.unreferenced)
        .collect();
    lock::delete_all(files, guard, FileKind::Pack, &gone).await?;
    summary.bytes_after = summary.bytes_after.saturating_add(copied_bytes);
    Ok(summary)
}

/// What is to be done.
struct Plan {
    /// Packs that go, by their number: unused ones, and those whose used blobs are copied.
    gone: HashSet<u32>,
    copies: Vec<Location>,
    /// Packs that no index lists.
    unreferenced: Vec<Id>,
    summary: PruneSummary,
}

#[derive(Debug, Clone, Default)]
struct PackUse {
    used: u64,
    unused: u64,
    trees: bool,
    data: bool,
    /// A tree that restic's prune would compress anyway.
    plain_tree: bool,
    blobs: Vec<PackedBlob>,
    size: Option<u64>,
}

impl Plan {
    fn make(
        index: &Index,
        marks: &Marks,
        listed: &[(Id, jackline_storage::ObjectMeta)],
        options: PruneOptions,
    ) -> Result<Self> {
        let mut packs = vec![PackUse::default(); index.packs().len()];
        let mut summary = PruneSummary::default();
        let mut unreferenced = Vec::new();
        let sizes: std::collections::HashMap<Id, u64> =
            listed.iter().map(|(id, meta)| (*id, meta.size)).collect();
        for (id, size) in &sizes {
            summary.bytes_before += size;
            if !index.has_pack(id) {
                unreferenced.push(*id);
            }
        }
        for (id, pack) in index.packs().iter().zip(&mut packs) {
            pack.size = sizes.get(id).copied();
        }
        for place in index.iter() {
            packs[place.pack as usize].blobs.push(place.blob);
        }
        for (id, pack) in index.packs().iter().zip(&packs) {
            let expected = pack
                .blobs
                .iter()
                .map(|blob| u64::from(blob.length))
                .sum::<u64>()
                + header_len(pack.blobs.iter());
            if pack.size.is_some_and(|size| size != expected) {
                let name = FileKind::Pack.path(id);
                return Err(Error::corrupt(name, "its size is not what the index says"));
            }
        }

        // Of several copies of a used blob one counts: in a pack that is there, the first.
        let mut counted = Marks::new(index.len());
        for place in index.iter() {
            let number = index.number(place.blob.kind, &place.blob.id);
            let used = number.is_some_and(|number| marks.contains(number));
            let pack = &mut packs[place.pack as usize];
            let present = pack.size.is_some();
            let length = u64::from(place.blob.length);
            match place.blob.kind {
                BlobKind::Tree => pack.trees = true,
                BlobKind::Data => pack.data = true,
            }
            if used && present && number.is_some_and(|number| counted.insert(number)) {
                pack.used += length;
                pack.plain_tree |=
                    place.blob.kind == BlobKind::Tree && place.blob.uncompressed == 0;
            } else {
                pack.unused += length;
            }
        }
        for place in index.iter() {
            let number = index.number(place.blob.kind, &place.blob.id);
            if number.is_some_and(|number| marks.contains(number) && !counted.contains(number)) {
                let name = FileKind::Pack.path(&index.pack_id(place.pack));
                let reason = format!(
                    "it is missing and holds {} {}",
                    place.blob.kind.name(),
                    place.blob.id
                );
                return Err(Error::corrupt(name, reason));
            }
        }

        let mut gone = HashSet::new();
        let mut wasteful = Vec::new();
        let (mut used, mut unused) = (0, 0);
        for (number, pack) in (0_u32..).zip(&packs) {
            used += pack.used;
            if pack.used == 0 {
                gone.insert(number);
                summary.packs_deleted += u64::from(pack.size.is_some());
            } else if pack.unused > 0 || pack.trees && pack.data {
                unused += pack.unused;
                wasteful.push(number);
            }
        }
        // Directories first: they are read most often. Then where copying least frees most.
        wasteful.sort_by_key(|number| {
            let pack = &packs[*number as usize];
            let copied_per_freed = pack.used.saturating_mul(1 << 20) / pack.unused.max(1);
            (!pack.trees, copied_per_freed)
        });
        let allowed = used as f64 * options.max_unused_percent / 100.0;
        let mut repacked = HashSet::new();
        for number in wasteful {
            let pack = &packs[number as usize];
            if unused as f64 <= allowed && !pack.trees {
                break;
            }
            unused -= pack.unused;
            repacked.insert(number);
        }
        summary.packs_repacked = repacked.len() as u64;
        summary.packs_unreferenced = unreferenced.len() as u64;
        summary.bytes_unused = unused;

        let mut taken = Marks::new(index.len());
        let mut copies = Vec::new();
        // Blobs that a kept pack holds need not be copied.
        for kept in [true, false] {
            for place in index.iter() {
                let number = index.number(place.blob.kind, &place.blob.id);
                let Some(number) = number.filter(|number| marks.contains(*number)) else {
                    continue;
                };
                let pack = &packs[place.pack as usize];
                let moves = repacked.contains(&place.pack);
                let stays = pack.size.is_some() && !moves && !gone.contains(&place.pack);
                if (if kept { stays } else { moves }) && taken.insert(number) && !kept {
                    copies.push(place);
                }
            }
        }
        copies.sort_unstable_by_key(|place| (place.pack, place.blob.offset));
        gone.extend(repacked);
        summary.bytes_after = (0_u32..)
            .zip(&packs)
            .filter(|(number, _)| !gone.contains(number))
            .filter_map(|(_, pack)| pack.size)
            .sum();
        Ok(Self {
            gone,
            copies,
            unreferenced,
            summary,
        })
    }
}

/// Copies used blobs into new packs, each verified on the way.
fn copy(
    reader: &BlobReader,
    runtime: &Handle,
    packer: &Packer,
    stop: &CancellationToken,
    counters: &Counters,
    copies: &[Location],
) -> Result<()> {
    /// Bytes read at once.
    const SPAN: u64 = 8 << 20;
    let mut scratch = Vec::new();
    let mut rest = copies;
    while let Some(first) = rest.first() {
        if stop.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let start = u64::from(first.blob.offset);
        let end = |place: &Location| u64::from(place.blob.offset) + u64::from(place.blob.length);
        let count = rest
            .iter()
            .take_while(|place| {
                place.pack == first.pack && (end(place) <= start + SPAN || *place == first)
            })
            .count();
        let (span, after) = rest.split_at(count);
        rest = after;
        let stop_at = span.last().map_or(start, end);
        let pack = FileKind::Pack.path(&reader.index.pack_id(first.pack));
        let bytes = runtime.block_on(reader.files.store.get_range(&pack, start..stop_at))?;
        let mut bytes = Vec::from(bytes);
        for place in span {
            let blob = &place.blob;
            let from = (u64::from(blob.offset) - start) as usize;
            let sealed = bytes
                .get_mut(from..from + blob.length as usize)
                .ok_or_else(|| Error::corrupt(&*pack, "it is shorter than the index says"))?;
            match blobs::open(&reader.files.key, blob, sealed, &mut scratch) {
                Ok(plain) => packer.save_again(blob.kind, blob.id, plain)?,
                Err(reason) => {
                    // Another copy may be sound; if none is, nothing was removed yet.
                    tracing::warn!(pack, blob = %blob.id, reason, "damaged blob");
                    let plain = runtime.block_on(reader.load(blob.kind, &blob.id))?;
                    packer.save_again(blob.kind, blob.id, &plain)?;
                }
            }
            counters.advance(u64::from(blob.length), 0);
        }
    }
    Ok(())
}

/// Writes an index of all packs but those that go.
async fn write_index(
    files: &Files,
    guard: &LockGuard,
    index: &Index,
    gone: &HashSet<u32>,
    cancel: &CancellationToken,
) -> Result<Vec<Id>> {
    let mut packs: Vec<Vec<PackedBlob>> = vec![Vec::new(); index.packs().len()];
    for place in index.iter().filter(|place| !gone.contains(&place.pack)) {
        packs[place.pack as usize].push(place.blob);
    }
    let mut written = Vec::new();
    let mut file = Vec::new();
    let mut count = 0;
    for (number, blobs) in (0_u32..).zip(packs) {
        if blobs.is_empty() {
            continue;
        }
        count += blobs.len();
        file.push((index.pack_id(number), blobs));
        if count >= index::FULL {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            written.push(
                uploader::write(files, guard, FileKind::Index, &index::to_json(&file)?)
                    .await?
                    .0,
            );
            file.clear();
            count = 0;
        }
    }
    if !file.is_empty() {
        written.push(
            uploader::write(files, guard, FileKind::Index, &index::to_json(&file)?)
                .await?
                .0,
        );
    }
    Ok(written)
}
