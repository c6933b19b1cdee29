//! Which packs go, and what has to be copied out of them before.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use jackline_storage::ObjectMeta;

use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::id::Id;
use crate::index::{Index, Location};
use crate::mark::Marks;
use crate::options::Version;
use crate::pack::{BlobKind, PackedBlob, header_len};

const NONE: u32 = u32::MAX;

/// What a plan is made from.
pub(super) struct Facts<'a> {
    pub(super) version: Version,
    pub(super) index: &'a Index,
    /// Blobs that snapshots use.
    pub(super) marks: &'a Marks,
    /// Packs in the store.
    pub(super) listed: &'a [(Id, ObjectMeta)],
    /// Packs that were copied from: of several copies, theirs counts last.
    pub(super) emptied: &'a HashSet<Id>,
}

/// What can be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Packs that nothing used needs, by their number.
    pub(super) gone: HashSet<u32>,
    /// Packs that no index lists.
    pub(super) unreferenced: Vec<Id>,
    /// Packs worth copying from.
    pub(super) wasteful: HashSet<Id>,
    /// What has to be copied from these.
    pub(super) copies: Vec<Location>,
    /// Bytes of all packs in the store.
    pub(super) bytes: u64,
    /// Those in packs that stay, the wasteful among them.
    pub(super) bytes_kept: u64,
    /// Those of unused blobs in packs that stay, without the wasteful.
    pub(super) bytes_unused: u64,
}

#[derive(Debug, Clone, Default)]
struct PackUse {
    /// Bytes of used blobs of which this pack's copy is the one that counts.
    used: u64,
    /// All other bytes of blobs.
    unused: u64,
    /// Of these, what no snapshot uses at all.
    garbage: u64,
    trees: bool,
    data: bool,
    /// A tree that is not compressed, though the format could.
    plain_tree: bool,
    size: Option<u64>,
}

impl PackUse {
    /// Whether it is copied from even when nothing in it is unused.
    fn untidy(&self) -> bool {
        self.plain_tree || self.trees && self.data
    }
}

impl Plan {
    /// With `max_unused_percent` packs are chosen to be copied from, so that no more of the used bytes stays unused.
    pub(super) fn make(facts: &Facts<'_>, max_unused_percent: Option<f64>) -> Result<Self> {
        let mut plan = Self::default();
        let mut packs = uses(facts, &mut plan)?;
        count_copies(facts, &mut packs)?;
        let packs = (0_u32..).zip(&packs);
        plan.gone = packs
            .clone()
            .filter(|(_, pack)| pack.used == 0)
            .map(|(number, _)| number)
            .collect();
        let kept = packs.filter(|(_, pack)| pack.used > 0);
        plan.bytes_kept = kept.clone().filter_map(|(_, pack)| pack.size).sum();
        plan.bytes_unused = kept.clone().map(|(_, pack)| pack.unused).sum();
        if let Some(percent) = max_unused_percent {
            let kept: Vec<_> = kept.collect();
            let wasteful = choose(&kept, percent);
            for number in &wasteful {
                let unused = kept.iter().find(|(kept, _)| kept == number);
                plan.bytes_unused -= unused.map_or(0, |(_, pack)| pack.unused);
            }
            plan.copies = copies(facts, &wasteful, &plan.gone);
            let id = |number| facts.index.pack_id(number);
            plan.wasteful = wasteful.into_iter().map(id).collect();
        }
        Ok(plan)
    }
}

/// What is in each pack; `used` is still open.
fn uses(facts: &Facts<'_>, plan: &mut Plan) -> Result<Vec<PackUse>> {
    let index = facts.index;
    let mut sizes = HashMap::with_capacity(facts.listed.len());
    for (id, meta) in facts.listed {
        plan.bytes += meta.size;
        sizes.insert(*id, meta.size);
        if !index.has_pack(id) {
            plan.unreferenced.push(*id);
        }
    }
    let mut packs = vec![PackUse::default(); index.packs().len()];
    let mut expected = vec![header_len([].iter()); packs.len()];
    for (id, pack) in index.packs().iter().zip(&mut packs) {
        pack.size = sizes.get(id).copied();
    }
    for place in index.iter() {
        let blob = &place.blob;
        let pack = &mut packs[place.pack as usize];
        expected[place.pack as usize] += entry_len(blob);
        match blob.kind {
            BlobKind::Tree => pack.trees = true,
            BlobKind::Data => pack.data = true,
        }
        if !is_used(facts, blob) {
            pack.garbage += u64::from(blob.length);
        } else if blob.kind == BlobKind::Tree && facts.version == Version::V2 {
            pack.plain_tree |= blob.uncompressed == 0;
        }
    }
    for ((id, pack), expected) in index.packs().iter().zip(&packs).zip(expected) {
        if pack.size.is_some_and(|size| size != expected) {
            let name = FileKind::Pack.path(id);
            return Err(Error::corrupt(name, "its size is not what the index says"));
        }
    }
    Ok(packs)
}

/// What a blob adds to a pack: its bytes, and its entry in the header.
fn entry_len(blob: &PackedBlob) -> u64 {
    u64::from(blob.length) + header_len([*blob].iter()) - header_len([].iter())
}

fn is_used(facts: &Facts<'_>, blob: &PackedBlob) -> bool {
    let number = facts.index.number(blob.kind, &blob.id);
    number.is_some_and(|number| facts.marks.contains(number))
}

/// Of several copies of a used blob one counts: that in the tidiest pack. So what an interrupted run copied is used by the
/// next, and two runs never choose differently. Fails where there is no copy at all.
fn count_copies(facts: &Facts<'_>, packs: &mut [PackUse]) -> Result<()> {
    let index = facts.index;
    let rank = |number: u32, packs: &[PackUse]| {
        let (id, pack) = (index.pack_id(number), &packs[number as usize]);
        let garbage = pack.garbage.saturating_mul(1000) / pack.size.unwrap_or(0).max(1);
        (
            facts.emptied.contains(&id),
            pack.untidy(),
            garbage,
            Reverse(pack.size),
            id,
        )
    };
    let mut best = vec![NONE; index.len()];
    let mut missing = None;
    for place in index.iter().filter(|place| is_used(facts, &place.blob)) {
        let Some(number) = index.number(place.blob.kind, &place.blob.id) else {
            continue;
        };
        let best = &mut best[number];
        if packs[place.pack as usize].size.is_none() {
            missing = Some(place);
        } else if *best == NONE || rank(place.pack, packs) < rank(*best, packs) {
            *best = place.pack;
        }
    }
    let mut counted = Marks::new(index.len());
    for place in index.iter() {
        let number = index.number(place.blob.kind, &place.blob.id);
        let number = number.filter(|number| facts.marks.contains(*number));
        let pack = &mut packs[place.pack as usize];
        let length = u64::from(place.blob.length);
        match number {
            Some(number) if best[number] == place.pack && counted.insert(number) => {
                pack.used += length;
            }
            _ => pack.unused += length,
        }
    }
    // Only now is it known whether what is missing has another copy.
    let lost = |place: &Location| {
        let number = index.number(place.blob.kind, &place.blob.id);
        number.is_some_and(|number| best[number] == NONE)
    };
    let all = || index.iter().filter(|place| is_used(facts, &place.blob));
    match missing.and_then(|_| all().find(lost)) {
        None => Ok(()),
        Some(place) => Err(Error::corrupt(
            FileKind::Pack.path(&index.pack_id(place.pack)),
            format!(
                "it is missing and holds {} {}",
                place.blob.kind.name(),
                place.blob.id
            ),
        )),
    }
}

/// The packs worth copying from. Directories first: they are read most often. Then where copying least frees most.
fn choose(kept: &[(u32, &PackUse)], max_unused_percent: f64) -> HashSet<u32> {
    let mut wasteful: Vec<_> = kept
        .iter()
        .filter(|(_, pack)| pack.unused > 0 || pack.untidy())
        .collect();
    wasteful.sort_by_key(|(_, pack)| {
        let copied_per_freed = pack.used.saturating_mul(1 << 20) / pack.unused.max(1);
        (!pack.trees, copied_per_freed)
    });
    let used: u64 = kept.iter().map(|(_, pack)| pack.used).sum();
    let mut unused: u64 = kept.iter().map(|(_, pack)| pack.unused).sum();
    let allowed = used as f64 * max_unused_percent / 100.0;
    let mut chosen = HashSet::new();
    for (number, pack) in wasteful {
        if unused as f64 <= allowed && !pack.trees {
            break;
        }
        unused -= pack.unused;
        chosen.insert(*number);
    }
    chosen
}

/// What has to be copied from the wasteful packs: used blobs that no pack holds that stays.
fn copies(facts: &Facts<'_>, wasteful: &HashSet<u32>, gone: &HashSet<u32>) -> Vec<Location> {
    let index = facts.index;
    let present: HashSet<Id> = facts.listed.iter().map(|(id, _)| *id).collect();
    let mut taken = Marks::new(index.len());
    let mut copies = Vec::new();
    for staying in [true, false] {
        for place in index.iter() {
            let number = index.number(place.blob.kind, &place.blob.id);
            let Some(number) = number.filter(|number| facts.marks.contains(*number)) else {
                continue;
            };
            let moves = wasteful.contains(&place.pack);
            let stays = !moves
                && !gone.contains(&place.pack)
                && present.contains(&index.pack_id(place.pack));
            if (if staying { stays } else { moves }) && taken.insert(number) && !staying {
                copies.push(place);
            }
        }
    }
    copies.sort_unstable_by_key(|place| (place.pack, place.blob.offset));
    copies
}
