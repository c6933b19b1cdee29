//! Writing blobs: from plain bytes to finished packs, on as many threads as there are.
//!
//! A thread takes a blob from hash to pack while it is in its cache; only finished packs are queued. The number of pack
//! buffers is fixed: when all are open or on their way to the store, threads wait. That is the memory budget.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::chunker::MAX;
use crate::compress;
use crate::crypto::{Key, OVERHEAD};
use crate::error::{Error, Result};
use crate::hash::{self, Hash};
use crate::id::Id;
use crate::index::Index;
use crate::options::Version;
use crate::pack::{self, BlobKind, MAX_BLOBS, PackedBlob, TARGET};

/// A pack may grow beyond its target by this much before it is closed.
const SLACK: usize = 1 << 20;
/// What a buffer is made for: a pack, its slack and its header.
const ROOM: usize = TARGET + 2 * SLACK;
const POLL: Duration = Duration::from_millis(100);

thread_local! {
    /// A compressed blob, before it is known whether that is any shorter.
    static COMPRESSED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A pack that only has to be stored.
#[derive(Debug)]
pub(crate) struct FinishedPack {
    pub(crate) id: Id,
    pub(crate) blobs: Vec<PackedBlob>,
    pub(crate) bytes: Bytes,
}

/// What became of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) id: Id,
    /// Whether the repository did not have it.
    pub(crate) new: bool,
}

/// Figures of what was added.
#[derive(Debug, Default)]
pub(crate) struct Added {
    pub(crate) data_blobs: AtomicU64,
    pub(crate) tree_blobs: AtomicU64,
    /// Plain bytes of new blobs.
    pub(crate) bytes: AtomicU64,
    /// The same as stored.
    pub(crate) packed: AtomicU64,
}

#[derive(Debug, Default)]
struct OpenPack {
    buffer: Vec<u8>,
    blobs: Vec<PackedBlob>,
    /// Of the first `hashed` bytes. The rest is hashed beside the next blobs, which costs less than alone.
    hash: Hash,
    hashed: usize,
}

impl OpenPack {
    /// What to hash next, at most so many bytes.
    fn unhashed(&mut self, most: usize) -> (&mut Hash, &[u8]) {
        let start = self.hashed;
        self.hashed = self.buffer.len().min(start.saturating_add(most));
        (&mut self.hash, &self.buffer[start..self.hashed])
    }
}

#[derive(Debug, Default)]
struct Pool {
    data: Vec<OpenPack>,
    tree: Vec<OpenPack>,
    /// Packs that are complete but for the hash.
    full: Vec<OpenPack>,
    free: Vec<Vec<u8>>,
    /// Buffers that exist, wherever they are.
    allocated: usize,
}

impl Pool {
    fn open(&mut self, kind: BlobKind) -> &mut Vec<OpenPack> {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.tree,
        }
    }
}

/// What a packer may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Buffers of about 17 MiB: more than there are threads that add.
    pub(crate) buffers: usize,
    /// Of these, full packs that wait to be hashed beside blobs.
    pub(crate) waiting: usize,
}

/// Takes blobs from several threads.
#[derive(Debug)]
pub(crate) struct Packer {
    key: Arc<Key>,
    version: Version,
    index: Arc<Index>,
    /// Blobs that are new in this operation, in parts so that threads seldom meet.
    claimed: [Mutex<HashSet<(BlobKind, Id)>>; 16],
    pool: Arc<(Mutex<Pool>, Condvar)>,
    room: Room,
    out: mpsc::Sender<FinishedPack>,
    stop: CancellationToken,
    pub(crate) added: Added,
}

impl Packer {
    pub(crate) fn new(
        key: Arc<Key>,
        version: Version,
        index: Arc<Index>,
        room: Room,
        out: mpsc::Sender<FinishedPack>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            key,
            version,
            index,
            claimed: Default::default(),
            pool: Arc::default(),
            room,
            out,
            stop,
            added: Added::default(),
        }
    }

    /// Saves a blob unless the repository has it.
    pub(crate) fn save(&self, kind: BlobKind, plain: &[u8]) -> Result<Saved> {
        self.save_all(kind, [plain]).map(|[saved]| saved)
    }

    /// Saves blobs unless the repository has them: a few, which are hashed beside each other.
    pub(crate) fn save_all<const N: usize>(
        &self,
        kind: BlobKind,
        plain: [&[u8]; N],
    ) -> Result<[Saved; N]> {
        let mut saved = self
            .identify(kind, plain)?
            .map(|id| Saved { id, new: false });
        for (saved, plain) in saved.iter_mut().zip(plain) {
            let id = saved.id;
            saved.new = !self.index.contains(kind, &id) && self.claim(kind, &id);
            if saved.new {
                self.add(kind, id, plain)?;
            }
        }
        Ok(saved)
    }

    /// Saves a blob whether the index has it or not.
    pub(crate) fn save_again(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<()> {
        if self.claim(kind, &id) {
            self.add(kind, id, plain)
        } else {
            Ok(())
        }
    }

    fn claim(&self, kind: BlobKind, id: &Id) -> bool {
        self.claimed[id.bucket() as usize % 16]
            .lock()
            .insert((kind, *id))
    }

    /// The blobs' ids. What packs still have to hash is hashed beside them.
    fn identify<const N: usize>(&self, kind: BlobKind, plain: [&[u8]; N]) -> Result<[Id; N]> {
        let (mut full, mut open) = {
            let mut pool = self.pool.0.lock();
            (pool.full.pop(), pool.open(kind).pop())
        };
        let mut hashes = [const { None }; N].map(|_: Option<Hash>| Hash::default());
        let most = plain.iter().map(|plain| plain.len()).max().unwrap_or(0);
        let packs = full.iter_mut().chain(&mut open);
        hash::update_all(
            (hashes.iter_mut().zip(plain)).chain(packs.map(|pack| pack.unhashed(most))),
        );
        if let Some(pack) = open {
            self.put_back(kind, pack);
        }
        match full {
            Some(pack) if pack.hashed < pack.buffer.len() => self.pool.0.lock().full.push(pack),
            Some(pack) => self.send(pack)?,
            None => {}
        }
        Ok(hashes.map(Hash::finish))
    }

    /// Compresses where that helps. Trees are always compressed: restic's prune repacks packs with trees that are not.
    fn add(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<()> {
        let plain_len = u32::try_from(plain.len())
            .map_err(|_| Error::Invalid("a directory is too large for the format".into()))?;
        let v2 = self.version == Version::V2;
        if !v2 || kind == BlobKind::Data && !compress::is_promising(plain)? {
            return self.append(kind, id, plain, plain_len, 0);
        }
        COMPRESSED.with_borrow_mut(|compressed| {
            compressed.clear();
            if compressed.capacity() == 0 {
                compressed.reserve_exact(MAX + MAX / 128);
            }
            compress::pack_into(compressed, plain)?;
            if kind == BlobKind::Tree || compressed.len() < plain.len() {
                self.append(kind, id, compressed, plain_len, plain_len)
            } else {
                self.append(kind, id, plain, plain_len, 0)
            }
        })
    }

    /// Seals a blob in the pack that it comes into.
    fn append(
        &self,
        kind: BlobKind,
        id: Id,
        stored: &[u8],
        plain_len: u32,
        uncompressed: u32,
    ) -> Result<()> {
        let size = stored.len() + OVERHEAD;
        let length = u32::try_from(size)
            .map_err(|_| Error::Invalid("a directory is too large for the format".into()))?;
        let mut pack = self.take(kind)?;
        if !pack.buffer.is_empty() && pack.buffer.len() + size > TARGET + SLACK {
            self.finish(pack)?;
            pack = self.take(kind)?;
        }
        let start = pack.buffer.len();
        let offset =
            u32::try_from(start).map_err(|_| Error::Internal("a pack is too large".into()))?;
        self.key.seal(stored, &mut pack.buffer)?;
        pack.blobs.push(PackedBlob {
            kind,
            id,
            offset,
            length,
            uncompressed,
        });
        if pack.buffer.len() >= TARGET || pack.blobs.len() >= MAX_BLOBS {
            self.finish(pack)?;
        } else {
            self.put_back(kind, pack);
        }
        let (added, count) = (
            &self.added,
            match kind {
                BlobKind::Data => &self.added.data_blobs,
                BlobKind::Tree => &self.added.tree_blobs,
            },
        );
        count.fetch_add(1, Ordering::Relaxed);
        added.bytes.fetch_add(plain_len.into(), Ordering::Relaxed);
        added.packed.fetch_add(length.into(), Ordering::Relaxed);
        Ok(())
    }

    fn put_back(&self, kind: BlobKind, pack: OpenPack) {
        let (pool, changed) = &*self.pool;
        pool.lock().open(kind).push(pack);
        changed.notify_all();
    }

    /// An open pack, the one used last first, so that as few as possible are open; else an empty one.
    fn take(&self, kind: BlobKind) -> Result<OpenPack> {
        let (pool, changed) = &*self.pool;
        let mut pool = pool.lock();
        loop {
            if let Some(pack) = pool.open(kind).pop() {
                return Ok(pack);
            }
            if let Some(buffer) = pool.free.pop() {
                return Ok(OpenPack {
                    buffer,
                    ..OpenPack::default()
                });
            }
            if pool.allocated < self.room.buffers {
                pool.allocated += 1;
                // At once and for good: growing step by step would leave holes in the heap.
                return Ok(OpenPack {
                    buffer: Vec::with_capacity(ROOM),
                    ..OpenPack::default()
                });
            }
            if self.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some(full) = pool.full.pop() {
                MutexGuard::unlocked(&mut pool, || self.send(full))?;
                continue;
            }
            changed.wait_for(&mut pool, POLL);
        }
    }

    /// Completes a pack. It may wait to be hashed beside blobs.
    fn finish(&self, mut pack: OpenPack) -> Result<()> {
        pack::finish(&mut pack.buffer, &pack.blobs, &self.key)?;
        let (pool, changed) = &*self.pool;
        let mut pool = pool.lock();
        if pool.full.len() < self.room.waiting {
            pool.full.push(pack);
            changed.notify_all();
            return Ok(());
        }
        drop(pool);
        self.send(pack)
    }

    fn send(&self, mut pack: OpenPack) -> Result<()> {
        let (hash, rest) = pack.unhashed(usize::MAX);
        hash.update(rest);
        let owner = PooledBuffer {
            buffer: pack.buffer,
            pool: Arc::clone(&self.pool),
        };
        let finished = FinishedPack {
            id: pack.hash.finish(),
            blobs: pack.blobs,
            bytes: Bytes::from_owner(owner),
        };
        // Full only while the store is slower than we are; closed when the operation is over.
        self.out
            .blocking_send(finished)
            .map_err(|_| Error::Cancelled)
    }

    /// Closes what is open; small packs that several threads left become one.
    pub(crate) fn flush(&self) -> Result<()> {
        let (data, tree) = {
            let mut pool = self.pool.0.lock();
            (
                std::mem::take(&mut pool.data),
                std::mem::take(&mut pool.tree),
            )
        };
        for mut packs in [data, tree] {
            packs.sort_by_key(|pack| std::cmp::Reverse(pack.buffer.len()));
            let mut merged: Option<OpenPack> = None;
            for pack in packs {
                match &mut merged {
                    Some(into)
                        if into.buffer.len() + pack.buffer.len() <= TARGET + SLACK
                            && into.blobs.len() + pack.blobs.len() <= MAX_BLOBS =>
                    {
                        self.merge(into, pack);
                    }
                    _ => {
                        if let Some(full) = merged.replace(pack) {
                            self.finish(full)?;
                        }
                    }
                }
            }
            if let Some(last) = merged {
                self.finish(last)?;
            }
        }
        let mut full = std::mem::take(&mut self.pool.0.lock().full);
        hash::update_all(full.iter_mut().map(|pack| pack.unhashed(usize::MAX)));
        full.into_iter().try_for_each(|pack| self.send(pack))
    }

    fn merge(&self, into: &mut OpenPack, from: OpenPack) {
        // Both are below 2^25 bytes.
        let shift = into.buffer.len() as u32;
        into.buffer.extend_from_slice(&from.buffer);
        into.blobs
            .extend(from.blobs.into_iter().map(|blob| PackedBlob {
                offset: blob.offset + shift,
                ..blob
            }));
        give_back(&self.pool, from.buffer);
    }
}

/// A pack's bytes on their way to the store; the buffer is used again when they are there.
struct PooledBuffer {
    buffer: Vec<u8>,
    pool: Arc<(Mutex<Pool>, Condvar)>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        give_back(&self.pool, std::mem::take(&mut self.buffer));
    }
}

fn give_back(pool: &(Mutex<Pool>, Condvar), mut buffer: Vec<u8>) {
    buffer.clear();
    // One huge tree is no reason to keep so much for ever.
    buffer.shrink_to(ROOM);
    let (pool, changed) = pool;
    pool.lock().free.push(buffer);
    changed.notify_all();
}
