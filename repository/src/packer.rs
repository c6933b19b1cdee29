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
use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::chunker::MAX;
use crate::compress;
use crate::crypto::{Key, NONCE};
use crate::error::{Error, Result};
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
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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
    hash: Sha256,
}

#[derive(Debug, Default)]
struct Pool {
    data: Vec<OpenPack>,
    tree: Vec<OpenPack>,
    free: Vec<Vec<u8>>,
    /// Buffers that exist, wherever they are.
    allocated: usize,
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
    limit: usize,
    out: mpsc::Sender<FinishedPack>,
    stop: CancellationToken,
    pub(crate) added: Added,
}

impl Packer {
    /// `limit` buffers of about 17 MiB: more than there are threads that add.
    pub(crate) fn new(
        key: Arc<Key>,
        version: Version,
        index: Arc<Index>,
        limit: usize,
        out: mpsc::Sender<FinishedPack>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            key,
            version,
            index,
            claimed: Default::default(),
            pool: Arc::default(),
            limit,
            out,
            stop,
            added: Added::default(),
        }
    }

    /// Saves a blob unless the repository has it.
    pub(crate) fn save(&self, kind: BlobKind, plain: &[u8]) -> Result<Saved> {
        let id = Id::of(plain);
        let new = !self.index.contains(kind, &id) && self.claim(kind, &id);
        if new {
            self.add(kind, id, plain)?;
        }
        Ok(Saved { id, new })
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

    fn add(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<()> {
        let plain_len = u32::try_from(plain.len())
            .map_err(|_| Error::Invalid("a directory is too large for the format".into()))?;
        SEALED.with_borrow_mut(|sealed| {
            if sealed.capacity() == 0 {
                sealed.reserve_exact(MAX + MAX / 128);
            }
            let uncompressed = self.encode(kind, plain, plain_len, sealed)?;
            let length = u32::try_from(sealed.len())
                .map_err(|_| Error::Invalid("a directory is too large for the format".into()))?;
            let blob = PackedBlob {
                kind,
                id,
                offset: 0,
                length,
                uncompressed,
            };
            self.append(blob, sealed)?;
            let count = match kind {
                BlobKind::Data => &self.added.data_blobs,
                BlobKind::Tree => &self.added.tree_blobs,
            };
            count.fetch_add(1, Ordering::Relaxed);
            self.added
                .bytes
                .fetch_add(plain.len() as u64, Ordering::Relaxed);
            self.added
                .packed
                .fetch_add(sealed.len() as u64, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Compresses where that helps, and seals. Returns the entry's uncompressed length. Trees are always compressed:
    /// restic's prune repacks packs with trees that are not.
    fn encode(
        &self,
        kind: BlobKind,
        plain: &[u8],
        plain_len: u32,
        sealed: &mut Vec<u8>,
    ) -> Result<u32> {
        sealed.clear();
        sealed.resize(NONCE, 0);
        let mut uncompressed = 0;
        if self.version == Version::V2 {
            compress::pack_into(sealed, plain)?;
            if kind == BlobKind::Tree || sealed.len() - NONCE < plain.len() {
                uncompressed = plain_len;
            } else {
                sealed.truncate(NONCE);
            }
        }
        if uncompressed == 0 {
            sealed.extend_from_slice(plain);
        }
        self.key.seal(sealed, 0)?;
        Ok(uncompressed)
    }

    fn append(&self, mut blob: PackedBlob, sealed: &[u8]) -> Result<()> {
        let mut pack = self.take(blob.kind)?;
        if !pack.buffer.is_empty() && pack.buffer.len() + sealed.len() > TARGET + SLACK {
            self.finish(pack)?;
            pack = self.take(blob.kind)?;
        }
        blob.offset = u32::try_from(pack.buffer.len())
            .map_err(|_| Error::Internal("a pack is too large".into()))?;
        pack.buffer.extend_from_slice(sealed);
        pack.hash.update(sealed);
        pack.blobs.push(blob);
        if pack.buffer.len() >= TARGET || pack.blobs.len() >= MAX_BLOBS {
            return self.finish(pack);
        }
        let (pool, changed) = &*self.pool;
        match blob.kind {
            BlobKind::Data => pool.lock().data.push(pack),
            BlobKind::Tree => pool.lock().tree.push(pack),
        }
        changed.notify_all();
        Ok(())
    }

    /// An open pack, the one used last first, so that as few as possible are open; else an empty one.
    fn take(&self, kind: BlobKind) -> Result<OpenPack> {
        let (pool, changed) = &*self.pool;
        let mut pool = pool.lock();
        loop {
            let open = match kind {
                BlobKind::Data => pool.data.pop(),
                BlobKind::Tree => pool.tree.pop(),
            };
            if let Some(pack) = open {
                return Ok(pack);
            }
            if let Some(buffer) = pool.free.pop() {
                return Ok(OpenPack {
                    buffer,
                    ..OpenPack::default()
                });
            }
            if pool.allocated < self.limit {
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
            changed.wait_for(&mut pool, POLL);
        }
    }

    fn finish(&self, pack: OpenPack) -> Result<()> {
        let OpenPack {
            mut buffer,
            blobs,
            mut hash,
        } = pack;
        let header = buffer.len();
        pack::finish(&mut buffer, &blobs, &self.key)?;
        hash.update(&buffer[header..]);
        let owner = PooledBuffer {
            buffer,
            pool: Arc::clone(&self.pool),
        };
        let finished = FinishedPack {
            id: Id(hash.finalize().into()),
            blobs,
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
        Ok(())
    }

    fn merge(&self, into: &mut OpenPack, from: OpenPack) {
        // Both are below 2^25 bytes.
        let shift = into.buffer.len() as u32;
        into.buffer.extend_from_slice(&from.buffer);
        into.hash.update(&from.buffer);
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
