//! Files whose content is to be written: each pack is read once for all of them, by several threads.

use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Engine, verify};
use crate::blobs::{self, Sealed};
use crate::crypto::Proof;
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::index::Location;
use crate::pack::BlobKind;
use crate::trail::{Trail, identity};
use crate::tree::Node;

/// Bytes of a pack read at once.
const SPAN: u64 = 8 << 20;
/// Unwanted bytes between two wanted blobs that are read along rather than asked around.
const GAP: u64 = 256 << 10;
/// Zeros of this length, aligned, become a hole.
const HOLE: usize = 4096;
/// A batch is written when it has so many files or blobs.
const MAX_FILES: usize = 5_000;
const MAX_BLOBS: usize = 50_000;

/// A file under way.
#[derive(Debug)]
pub(super) struct File {
    /// The directory's path below the target.
    pub(super) dir: Arc<Trail>,
    pub(super) name: CString,
    /// Without its content, which is in the pieces.
    pub(super) node: Node,
    /// Pieces in all.
    pub(super) pieces: usize,
    /// Pieces that are not written yet.
    waiting: AtomicUsize,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Missing,
    /// It is there. What was made here is known by its device and inode, if it has to be opened again.
    Made(Option<(u64, u64)>),
    /// There was one that is to be kept.
    Kept,
    /// It was said why.
    Failed,
}

/// A blob's place in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) place: Location,
    pub(super) file: u32,
    pub(super) at: u64,
}

/// Files and pieces that were not written yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    files: Vec<File>,
    pieces: Vec<Piece>,
    /// Pieces of files that are only to be read back.
    there: Vec<Piece>,
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= MAX_FILES || self.pieces.len() + self.there.len() >= MAX_BLOBS
    }

    /// Adds a file; fails where its content is not in the repository or not of its size. One that is there already is
    /// only read back.
    pub(super) fn add(
        &mut self,
        engine: &Engine,
        dir: &Arc<Trail>,
        name: CString,
        mut node: Node,
        there: bool,
    ) -> Result<(), String> {
        let content = node.content.take().unwrap_or_default();
        let file = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let pieces = match there {
            true => &mut self.there,
            false => &mut self.pieces,
        };
        let before = pieces.len();
        let mut at = 0;
        for id in &content {
            let Some(place) = engine.reader.index.find(BlobKind::Data, id).next() else {
                pieces.truncate(before);
                return Err(format!("data {id} is damaged: no index lists it"));
            };
            pieces.push(Piece { place, file, at });
            at += u64::from(place.blob.plain_len());
        }
        if at != node.size {
            pieces.truncate(before);
            return Err(format!("its content has {at} bytes and not {}", node.size));
        }
        let state = match there {
            true => State::Made(None),
            false => State::Missing,
        };
        self.files.push(File {
            dir: Arc::clone(dir),
            name,
            node,
            pieces: content.len(),
            waiting: AtomicUsize::new(content.len()),
            state: Mutex::new(state),
        });
        Ok(())
    }

    /// Writes everything and empties the batch.
    pub(super) fn write(&mut self, engine: &Engine) -> Result<()> {
        let mut pieces = std::mem::take(&mut self.pieces);
        let files = std::mem::take(&mut self.files);
        pieces.sort_unstable_by_key(|piece| (piece.place.pack, piece.place.blob.offset));
        let spans = spans(&pieces);
        // Each thread begins with spans of its own: neighbours are of one file, where writers wait for each other.
        let threads = engine.threads.clamp(1, spans.len().max(1));
        let shares: Vec<_> = spans
            .chunks(spans.len().div_ceil(threads).max(1))
            .map(|share| (share, AtomicUsize::new(0)))
            .collect();
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for first in 0..shares.len() {
                let (shares, failure, files, pieces) = (&shares, &failure, &files, &pieces);
                scope.spawn(move || {
                    let mut writer = Writer {
                        engine,
                        files,
                        dir: None,
                    };
                    let (before, own) = shares.split_at(first);
                    let spans = own.iter().chain(before).flat_map(|(share, next)| {
                        std::iter::from_fn(|| share.get(next.fetch_add(1, Ordering::Relaxed)))
                    });
                    let spans = spans
                        .take_while(|_| !engine.stop.is_cancelled())
                        .map(|span| &pieces[span.clone()]);
                    if let Err(error) = writer.spans(spans) {
                        engine.stop.cancel();
                        failure.lock().get_or_insert(error);
                    }
                });
            }
            let mut writer = Writer {
                engine,
                files: &files,
                dir: None,
            };
            for file in files.iter().filter(|file| file.pieces == 0) {
                writer.empty(file);
            }
        });
        match failure.into_inner() {
            Some(error) => return Err(error),
            None if engine.stop.is_cancelled() => return Err(Error::Cancelled),
            None => {}
        }
        pieces.append(&mut self.there);
        if engine.options.verify {
            verify::read_back(engine, &files, &mut pieces)?;
        }
        Ok(())
    }
}

/// Cuts sorted pieces into what is read at once.
fn spans(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut start = 0;
    for at in 1..=pieces.len() {
        let together = pieces.get(at).is_some_and(|next| {
            let (first, last) = (&pieces[start].place, &pieces[at - 1].place);
            let end = u64::from(last.blob.offset) + u64::from(last.blob.length);
            let offset = u64::from(next.place.blob.offset);
            let length = u64::from(next.place.blob.length);
            let same_blob = next.place == *last;
            next.place.pack == first.pack
                && (same_blob
                    || offset >= end
                        && offset <= end + GAP
                        && offset + length <= u64::from(first.blob.offset) + SPAN)
        });
        if !together {
            spans.push(start..at);
            start = at;
        }
    }
    if pieces.is_empty() { Vec::new() } else { spans }
}

/// Pieces that are one blob, and the pack that it lies in.
struct Users<'a> {
    pack: Rc<str>,
    pieces: &'a [Piece],
}

/// One thread's state.
struct Writer<'a> {
    engine: &'a Engine,
    files: &'a [File],
    /// The directory opened last: files of one directory come together.
    dir: Option<(Arc<Trail>, OwnedFd)>,
}

impl Writer<'_> {
    /// Reads spans and writes their pieces. Damage is counted for the files it hits; trouble with the store is an error.
    fn spans<'p>(&mut self, spans: impl Iterator<Item = &'p [Piece]>) -> Result<()> {
        let engine = self.engine;
        let blobs = spans.flat_map(|pieces| {
            let (part, failure) = match part(engine, pieces) {
                Ok(part) => (Some(part), None),
                Err(error) => (None, Some(Err(error))),
            };
            let users = pieces.chunk_by(|one, next| one.place == next.place);
            let blobs = users.filter_map(move |pieces| {
                let (pack, sealed) = part.as_ref()?;
                let pack = Rc::clone(pack);
                let blob = pieces.first()?.place.blob;
                Some(Ok((Users { pack, pieces }, blob, sealed.clone())))
            });
            failure.into_iter().chain(blobs)
        });
        let key = &engine.reader.files.key;
        blobs::open_each(
            key,
            Proof::Hash,
            blobs,
            &mut Default::default(),
            |users, plain| match plain {
                Ok(plain) => {
                    for piece in users.pieces {
                        self.piece(piece, plain);
                    }
                    Ok(())
                }
                Err(reason) => self.elsewhere(users.pieces, &users.pack, reason),
            },
        )
    }

    /// A damaged blob may have a sound copy in another pack.
    fn elsewhere(&mut self, users: &[Piece], pack: &str, reason: &str) -> Result<()> {
        let Some(first) = users.first() else {
            return Ok(());
        };
        let id = first.place.blob.id;
        match self
            .engine
            .runtime
            .block_on(self.engine.reader.load(BlobKind::Data, &id))
        {
            Ok(plain) => {
                for piece in users {
                    self.piece(piece, &plain);
                }
            }
            Err(Error::Corrupt { .. }) => {
                let message = format!("{pack} is damaged: data {id}: {reason}");
                for piece in users {
                    self.fail(&self.files[piece.file as usize], &message);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn piece(&mut self, piece: &Piece, plain: &[u8]) {
        let file = &self.files[piece.file as usize];
        match self.write(file, piece.at, plain) {
            Ok(()) => {
                let bytes = plain.len() as u64;
                self.engine.counters.advance(bytes, 0);
                self.engine.written.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => self.fail(file, &error.to_string()),
        }
    }

    fn write(&mut self, file: &File, at: u64, plain: &[u8]) -> std::io::Result<()> {
        let engine = self.engine;
        let dir = self.enter(file)?;
        let fd = {
            let mut state = file.state.lock();
            match *state {
                State::Kept | State::Failed => return Ok(()),
                State::Made(known) => {
                    let fd = engine.target.reopen(dir, &file.name, OFlags::WRONLY)?;
                    if Some(identity(&fd)?) != known {
                        return Err(std::io::Error::other(
                            "it was replaced while it was written",
                        ));
                    }
                    fd
                }
                State::Missing => match engine.target.create(dir, &file.name)? {
                    Some(fd) => {
                        *state = State::Made(None);
                        if file.pieces > 1 {
                            *state = State::Made(Some(identity(&fd)?));
                        }
                        if file.pieces > 1 || engine.options.sparse {
                            rustix::fs::ftruncate(&fd, file.node.size)?;
                        }
                        fd
                    }
                    None => {
                        *state = State::Kept;
                        engine.skipped.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                },
            }
        };
        if engine.options.sparse {
            write_sparse(&fd, plain, at)?;
        } else {
            write_all(&fd, plain, at)?;
        }
        if file.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            engine.target.dress(&fd, &file.node)?;
            engine.counters.advance(0, 1);
            engine.files_done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn empty(&mut self, file: &File) {
        let engine = self.engine;
        if *file.state.lock() != State::Missing {
            return;
        }
        let result = self
            .enter(file)
            .map_err(std::io::Error::from)
            .and_then(|dir| {
                match engine.target.create(dir, &file.name)? {
                    Some(fd) => {
                        *file.state.lock() = State::Made(None);
                        engine.target.dress(&fd, &file.node)?;
                        engine.files_done.fetch_add(1, Ordering::Relaxed);
                    }
                    None => {
                        engine.skipped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            });
        engine.counters.advance(0, 1);
        if let Err(error) = result {
            engine.problem(&file.dir, file.name.to_bytes(), &error.to_string());
        }
    }

    /// Counts a file as failed, once. One without all its content is removed; one without all its metadata stays.
    fn fail(&mut self, file: &File, message: &str) {
        let was = std::mem::replace(&mut *file.state.lock(), State::Failed);
        if was == State::Failed {
            return;
        }
        self.engine
            .problem(&file.dir, file.name.to_bytes(), message);
        if matches!(was, State::Made(_)) && file.waiting.load(Ordering::Acquire) > 0 {
            let target = &self.engine.target;
            if let Ok(dir) = self.enter(file) {
                target.remove(dir, &file.name);
            }
        }
    }

    fn enter(&mut self, file: &File) -> Result<std::os::fd::BorrowedFd<'_>, Errno> {
        let same = self
            .dir
            .as_ref()
            .is_some_and(|(path, _)| Arc::ptr_eq(path, &file.dir));
        if !same {
            self.dir = None;
        }
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => (Arc::clone(&file.dir), self.engine.target.dir(&file.dir)?),
        };
        Ok(self.dir.insert(dir).1.as_fd())
    }
}

/// The pack that pieces of a span lie in, and the part of it that they need.
fn part(engine: &Engine, pieces: &[Piece]) -> Result<(Rc<str>, Sealed)> {
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return Ok((Rc::from(""), Sealed::Missing));
    };
    let reader = &engine.reader;
    let pack = FileKind::Pack.path(&reader.index.pack_id(first.place.pack));
    let start = u64::from(first.place.blob.offset);
    let end = u64::from(last.place.blob.offset) + u64::from(last.place.blob.length);
    let (runtime, stop) = (&engine.runtime, &engine.stop);
    let sealed = Sealed::part(&reader.files, runtime, stop, &pack, start..end)?;
    Ok((Rc::from(pack), sealed))
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Writes what is not zero. The file has its full size already.
fn write_sparse(fd: &OwnedFd, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        // The first piece reaches to the next aligned position.
        let here = at + from as u64;
        let mut to = from;
        let mut zero = false;
        while to < bytes.len() {
            let position = at + to as u64;
            let end = (to + HOLE - (position % HOLE as u64) as usize).min(bytes.len());
            let hole = is_zero(&bytes[to..end]);
            if to > from && hole != zero {
                break;
            }
            zero = hole;
            to = end;
        }
        if !zero {
            write_all(fd, &bytes[from..to], here)?;
        }
        from = to;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    let (head, words, tail) = (bytes.first(), bytes.chunks_exact(16), bytes.len() % 16);
    let rest = &bytes[bytes.len() - tail..];
    head.is_none_or(|byte| *byte == 0)
        && words.into_iter().all(|word| word == [0; 16])
        && rest.iter().all(|byte| *byte == 0)
}
