//! Reading blobs.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jackline_storage::LocalObject;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::compress;
use crate::crypto::{Key, NONCE, OVERHEAD, Opening, Proof, SLICE, TAG};
use crate::drive;
use crate::error::{Error, Result};
use crate::files::{FileKind, Files};
use crate::hash::{self, BESIDE, Hash};
use crate::id::Id;
use crate::index::Index;
use crate::pack::{BlobKind, PackedBlob};

/// A blob's plain length beyond which nothing is believed: chunks end at 8 MiB, trees of millions of entries below 2 GiB.
const MAX_PLAIN: u32 = 1 << 31;
/// Bytes of a file read at once: they are opened and hashed before they leave the processor's second cache.
const READ: usize = 64 << 10;

/// Where the bytes of a pack are while its blobs are opened.
#[derive(Debug, Clone)]
pub(crate) enum Sealed {
    /// In a file of this machine: read when their turn comes.
    File(Arc<LocalObject>),
    /// In memory, from `start` of the pack on.
    Fetched { start: u64, bytes: Bytes },
    /// Nowhere: the pack is missing or too short.
    Missing,
}

impl Sealed {
    /// A part of a pack. For threads that may wait.
    pub(crate) fn part(
        files: &Files,
        runtime: &Handle,
        stop: &CancellationToken,
        pack: &str,
        range: Range<u64>,
    ) -> Result<Self> {
        use jackline_storage::Error::{NotFound, ShortRead};
        let start = range.start;
        let found = match files.store.local(pack) {
            Some(object) => object.map(|object| Self::File(Arc::new(object))),
            None => drive::wait(runtime, stop, async {
                Ok(files.store.get_range(pack, range).await)
            })?
            .map(|bytes| Self::Fetched { start, bytes }),
        };
        match found {
            Err(NotFound { .. } | ShortRead { .. }) => Ok(Self::Missing),
            found => Ok(found?),
        }
    }

    /// Fills `to` with what is at this place in the pack.
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Failure> {
        let found = match self {
            Self::File(object) => match object.read_at(at, to) {
                Err(jackline_storage::Error::ShortRead { .. }) => None,
                read => Some(read.map_err(|error| Failure::Store(error.into()))?),
            },
            Self::Fetched { start, bytes } => at
                .checked_sub(*start)
                .and_then(|from| bytes.get(usize::try_from(from).ok()?..)?.get(..to.len()))
                .map(|bytes| to.copy_from_slice(bytes)),
            Self::Missing => None,
        };
        found.ok_or(Failure::Damage("the pack is missing or too short"))
    }
}

/// Why a blob is not opened.
enum Failure {
    Damage(&'static str),
    /// Nobody can say whether it is damaged.
    Store(Error),
}

const UNAUTHENTIC: Failure = Failure::Damage("it cannot be authenticated");

/// Memory for one blob on its way, to be used for the next.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// As read, then deciphered in place.
    sealed: Vec<u8>,
    /// Decompressed.
    plain: Vec<u8>,
}

/// Rooms for the blobs that are under way at once.
pub(crate) type Rooms = [Room; BESIDE];

/// Opens blobs and hands over each with its verified plain bytes or the reason why there are none. Any error ends it. Each
/// is held against its id; by its tag too where that is asked for, or where it has to be decompressed before it can be hashed.
///
/// Several are under way at once, slice by slice: what is deciphered is hashed while it is in the processor's first cache,
/// and hashes beside each other cost little more than one.
pub(crate) fn open_each<T>(
    key: &Key,
    proof: Proof,
    mut blobs: impl Iterator<Item = Result<(T, PackedBlob, Sealed)>>,
    rooms: &mut Rooms,
    mut done: impl FnMut(T, Result<&[u8], &'static str>) -> Result<()>,
) -> Result<()> {
    let mut lanes: [Option<(T, Lane)>; BESIDE] = Default::default();
    loop {
        for (slot, room) in lanes.iter_mut().zip(rooms.iter_mut()) {
            loop {
                let (user, mut lane) = match slot.take() {
                    Some(under_way) => under_way,
                    None => match blobs.next() {
                        Some(next) => {
                            let (user, blob, sealed) = next?;
                            (user, Lane::new(blob, sealed))
                        }
                        None => break,
                    },
                };
                match lane.step(key, proof, room) {
                    Ok(()) => {
                        *slot = Some((user, lane));
                        break;
                    }
                    Err(failure) => failure.tell(user, &mut done)?,
                }
            }
        }
        if lanes.iter().all(Option::is_none) {
            return Ok(());
        }
        let ready = lanes.iter_mut().zip(rooms.iter());
        hash::update_all(ready.filter_map(|(lane, room)| Some(lane.as_mut()?.1.ready(room))));
        for (slot, room) in lanes.iter_mut().zip(rooms.iter()) {
            if let Some((user, lane)) = slot.take_if(|(_, lane)| lane.is_done()) {
                match lane.finish(room) {
                    Ok(plain) => done(user, Ok(plain))?,
                    Err(failure) => failure.tell(user, &mut done)?,
                }
            }
        }
    }
}

impl Failure {
    fn tell<T>(
        self,
        user: T,
        done: &mut impl FnMut(T, Result<&[u8], &'static str>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Damage(reason) => done(user, Err(reason)),
            Self::Store(error) => Err(error),
        }
    }
}

/// A blob that is being opened, in a room of its own.
struct Lane {
    blob: PackedBlob,
    sealed: Sealed,
    /// Sealed bytes in the room.
    read: usize,
    /// `None` where the blob was compressed: the room has all of its plain bytes.
    opening: Option<Opening>,
    hash: Hash,
    /// Plain bytes to hash next; before them all are hashed.
    ready: Range<usize>,
}

impl Lane {
    fn new(blob: PackedBlob, sealed: Sealed) -> Self {
        Self {
            blob,
            sealed,
            read: 0,
            opening: None,
            hash: Hash::default(),
            ready: 0..0,
        }
    }

    fn begin(&mut self, key: &Key, proof: Proof, room: &mut Room) -> Result<(), Failure> {
        let length = self.blob.length as usize;
        if length < OVERHEAD {
            return Err(UNAUTHENTIC);
        }
        if self.blob.uncompressed == 0 {
            self.read(room, NONCE)?;
            let nonce = room.sealed.first_chunk().ok_or(UNAUTHENTIC)?;
            self.opening = Some(key.opening(nonce, proof).map_err(|_| UNAUTHENTIC)?);
        } else {
            if self.blob.uncompressed >= MAX_PLAIN {
                return Err(Failure::Damage("its size is impossible"));
            }
            self.read(room, length)?;
            let packed = (key.open(&mut room.sealed[..length])).map_err(|_| UNAUTHENTIC)?;
            compress::unpack(packed, self.blob.uncompressed as usize, &mut room.plain)
                .ok_or(Failure::Damage("it cannot be decompressed"))?;
        }
        Ok(())
    }

    /// Reads on until the room has so many bytes.
    fn read(&mut self, room: &mut Room, wanted: usize) -> Result<(), Failure> {
        let length = self.blob.length as usize;
        while self.read < wanted {
            let end = length.min(self.read + READ);
            if room.sealed.len() < end {
                // Filled as it is read: a length that the pack does not have takes no memory, and may be more than there is.
                let _ = room.sealed.try_reserve(length - room.sealed.len());
                room.sealed.resize(end, 0);
            }
            let at = u64::from(self.blob.offset) + self.read as u64;
            self.sealed.read(at, &mut room.sealed[self.read..end])?;
            self.read = end;
        }
        Ok(())
    }

    fn plain_len(&self) -> usize {
        self.blob.plain_len() as usize
    }

    /// Makes the next slice of plain bytes ready.
    fn step(&mut self, key: &Key, proof: Proof, room: &mut Room) -> Result<(), Failure> {
        if self.read == 0 {
            self.begin(key, proof, room)?;
        }
        let (start, length) = (self.ready.end, self.plain_len());
        let end = length.min(start + SLICE);
        self.ready = start..end;
        if self.opening.is_some() {
            // With the last of it comes the tag.
            let behind = if end == length { TAG } else { 0 };
            self.read(room, NONCE + end + behind)?;
        }
        if let Some(opening) = &mut self.opening {
            opening.slice(&mut room.sealed[NONCE + start..NONCE + end]);
        }
        Ok(())
    }

    fn ready<'a>(&'a mut self, room: &'a Room) -> (&'a mut Hash, &'a [u8]) {
        let plain = &Self::plain(self.opening.is_some(), room)[self.ready.clone()];
        (&mut self.hash, plain)
    }

    /// Where the plain bytes are.
    fn plain(stored: bool, room: &Room) -> &[u8] {
        match stored {
            true => room.sealed.get(NONCE..).unwrap_or_default(),
            false => &room.plain,
        }
    }

    fn is_done(&self) -> bool {
        self.ready.end == self.plain_len()
    }

    /// The plain bytes, once all of them are hashed.
    fn finish(self, room: &Room) -> Result<&[u8], Failure> {
        let length = self.plain_len();
        let plain = &Self::plain(self.opening.is_some(), room)[..length];
        if let Some(opening) = self.opening {
            let tag = room.sealed[NONCE + length..].first_chunk::<TAG>();
            let tag = tag.ok_or(UNAUTHENTIC)?;
            opening.finish(tag).map_err(|_| UNAUTHENTIC)?;
        }
        match self.hash.finish() == self.blob.id {
            true => Ok(plain),
            false => Err(Failure::Damage("its content does not match its name")),
        }
    }
}

/// Reads single blobs by their ids.
#[derive(Debug, Clone)]
pub(crate) struct BlobReader {
    pub(crate) files: Files,
    pub(crate) index: Arc<Index>,
}

impl BlobReader {
    /// The blob's plain bytes. Where it is in several packs, one sound copy is enough.
    pub(crate) async fn load(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        let name = || format!("{} {id}", kind.name());
        let mut failure = Error::corrupt(name(), "no index lists it");
        for place in self.index.find(kind, id) {
            let pack = FileKind::Pack.path(&self.index.pack_id(place.pack));
            let (start, length) = (u64::from(place.blob.offset), u64::from(place.blob.length));
            failure = match self
                .files
                .store
                .get_range(&pack, start..start + length)
                .await
            {
                Ok(bytes) => {
                    let sealed = Sealed::Fetched { start, bytes };
                    let mut opened = Err("");
                    let blobs = std::iter::once(Ok(((), place.blob, sealed)));
                    let (key, mut rooms) = (&self.files.key, Default::default());
                    open_each(key, Proof::Tag, blobs, &mut rooms, |(), plain| {
                        opened = plain.map(<[u8]>::to_vec);
                        Ok(())
                    })?;
                    match opened {
                        Ok(plain) => return Ok(plain),
                        Err(reason) => Error::corrupt(pack, format!("{}: {reason}", name())),
                    }
                }
                Err(
                    error @ (jackline_storage::Error::NotFound { .. }
                    | jackline_storage::Error::ShortRead { .. }),
                ) => Error::corrupt(pack, format!("{}: {error}", name())),
                Err(error) => Error::Storage(error),
            };
        }
        Err(failure)
    }

    /// The nodes of a tree.
    pub(crate) async fn tree(&self, id: &Id) -> Result<Vec<crate::tree::Node>> {
        crate::tree::parse(id, &self.load(BlobKind::Tree, id).await?)
    }
}
