//! Packs with damaged bytes: what is sound in them moves to new packs, and they go. First the copies and their index, then an
//! index without the damaged packs, then the packs themselves.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{PacksRepair, RepairOptions};
use crate::blobs::{self, BlobReader, Sealed};
use crate::crypto::Proof;
use crate::drive::{self, Pump};
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::id::Id;
use crate::index::Index;
use crate::lock::{self, LockGuard};
use crate::pack::PackedBlob;
use crate::packer::Packer;
use crate::progress::Progress;
use crate::{adopt, check};

pub(super) async fn salvage(
    files: &Files,
    wanted: &[Id],
    options: RepairOptions,
    guard: &LockGuard,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<PacksRepair> {
    let (index, old) = Index::load(files).await?;
    let sizes: HashMap<Id, u64> = files
        .list(FileKind::Pack)
        .await?
        .into_iter()
        .map(|(id, meta)| (id, meta.size))
        .collect();
    for id in wanted {
        let pack = FileKind::Pack.path(id);
        match (sizes.contains_key(id), index.has_pack(id)) {
            (true, true) => {}
            (true, false) => {
                let advice = "repair the index first";
                return Err(Error::Invalid(format!("{pack} is in no index: {advice}")));
            }
            (false, _) => return Err(Error::Invalid(format!("there is no {pack}"))),
        }
    }
    let index = Arc::new(index);
    let packs: Vec<check::Sized> = check::by_pack(&index)
        .into_iter()
        .filter(|(id, _)| wanted.is_empty() || wanted.contains(id))
        .filter_map(|(id, blobs)| Some((id, *sizes.get(&id)?, blobs)))
        .collect();
    let mut report = PacksRepair {
        packs: packs.len() as u64,
        ..PacksRepair::default()
    };
    let listed: HashMap<Id, Vec<PackedBlob>> = packs
        .iter()
        .map(|(id, _, blobs)| (*id, blobs.clone()))
        .collect();
    let found = check::read_data(files, packs, progress, cancel).await?;
    let suspects: Vec<_> = found
        .into_iter()
        .filter_map(|(id, _)| Some((id, listed.get(&id)?.clone())))
        .collect();
    drop(listed);
    if suspects.is_empty() {
        return Ok(report);
    }

    let reader = BlobReader {
        files: files.clone(),
        index: Arc::clone(&index),
    };
    let runtime = Handle::current();
    let dry_run = options.dry_run;
    let work = move |packer: &Arc<Packer>, stop: &CancellationToken| {
        let mut salvage = Salvage {
            reader: &reader,
            runtime: &runtime,
            stop,
            packer: (!dry_run).then_some(&**packer),
            damaged: Vec::new(),
            saved: 0,
            lost: BTreeSet::new(),
        };
        for (id, blobs) in &suspects {
            salvage.pack(id, blobs)?;
        }
        Ok((salvage.damaged, salvage.saved, salvage.lost))
    };
    let mut pump = Pump::new(progress, Arc::default());
    // An empty index: what is copied counts as new.
    let packed = drive::packing(files, guard, Arc::default(), 0, cancel, &mut pump, work).await?;
    let ((damaged, saved, lost), ..) = packed;
    report.blobs_saved = saved;
    report.lost = lost.into_iter().collect();
    let gone: Vec<Id> = damaged.iter().map(|(id, _)| *id).collect();
    report.damaged = damaged.into_iter().map(|(_, why)| why).collect();
    if !dry_run && !gone.is_empty() {
        let leaving: HashSet<&Id> = gone.iter().collect();
        let mut rest = check::by_pack(&index);
        rest.retain(|(id, _)| !leaving.contains(id));
        let written = adopt::write_index(files, guard, &rest).await?;
        let old: Vec<Id> = old.into_iter().filter(|id| !written.contains(id)).collect();
        lock::delete_all(files, guard, FileKind::Index, &old).await?;
        lock::delete_all(files, guard, FileKind::Pack, &gone).await?;
    }
    Ok(report)
}

struct Salvage<'a> {
    reader: &'a BlobReader,
    runtime: &'a Handle,
    stop: &'a CancellationToken,
    /// `None`: nothing is stored.
    packer: Option<&'a Packer>,
    /// Packs, and what is wrong with them.
    damaged: Vec<(Id, String)>,
    saved: u64,
    lost: BTreeSet<String>,
}

impl Salvage<'_> {
    /// Takes what is sound out of a pack. A pack that is sound when it is read once more was damaged on the way, and stays.
    fn pack(&mut self, id: &Id, blobs: &[PackedBlob]) -> Result<()> {
        let name = FileKind::Pack.path(id);
        let files = &self.reader.files;
        let read = async { Ok(files.store.get(&name).await?) };
        let bytes = drive::wait(self.runtime, self.stop, read)?;
        let Err(why) = check::verify(&name, id, bytes.clone(), blobs, &files.key) else {
            return Ok(());
        };
        self.damaged.push((*id, why.to_string()));
        let sealed = Sealed::Fetched { start: 0, bytes };
        let each = blobs.iter().map(|blob| Ok((blob, *blob, sealed.clone())));
        blobs::open_each(
            &files.key,
            Proof::Tag,
            each,
            &mut Default::default(),
            |blob, plain| match plain {
                Ok(plain) => self.save(blob, plain),
                Err(_) => self.elsewhere(blob),
            },
        )
    }

    fn save(&mut self, blob: &PackedBlob, plain: &[u8]) -> Result<()> {
        self.saved += 1;
        self.packer.map_or(Ok(()), |packer| {
            packer.save_again(blob.kind, blob.id, plain)
        })
    }

    /// Another pack may hold a sound copy; but that one may be damaged elsewhere and go too.
    fn elsewhere(&mut self, blob: &PackedBlob) -> Result<()> {
        let load = self.reader.load(blob.kind, &blob.id);
        match drive::wait(self.runtime, self.stop, load) {
            Ok(plain) => self.save(blob, &plain),
            Err(Error::Corrupt { .. }) => {
                self.lost
                    .insert(format!("{} {}", blob.kind.name(), blob.id));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
