//! Reading back what was restored: from the disk as far as the kernel lets go of its copy, against the ids of the chunks.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;

use super::Engine;
use super::batch::{File, Piece, State};
use crate::error::{Error, Result};
use crate::id::Id;

/// Compares the files of a batch that are there with the snapshot. What differs is counted and named.
pub(super) fn read_back(engine: &Engine, files: &[File], pieces: &mut [Piece]) -> Result<()> {
    // Only what was written can be dropped from memory and so be read from the disk.
    engine
        .target
        .sync()
        .map_err(|error| Error::target(&engine.path, error))?;
    pieces.sort_unstable_by_key(|piece| (piece.file, piece.at));
    let mut jobs: Vec<(&File, &[Piece])> = files
        .iter()
        .filter(|file| file.pieces == 0)
        .map(|file| (file, &[][..]))
        .collect();
    for pieces in pieces.chunk_by(|one, other| one.file == other.file) {
        if let Some(file) = pieces
            .first()
            .and_then(|piece| files.get(piece.file as usize))
        {
            jobs.push((file, pieces));
        }
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..engine.threads.min(jobs.len()) {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some((file, pieces)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if engine.stop.is_cancelled() {
                        return;
                    }
                    // Kept is not ours, failed was reported.
                    if matches!(*file.state.lock(), State::Made(_)) {
                        one(engine, file, pieces, &mut buffer);
                    }
                }
            });
        }
    });
    match engine.stop.is_cancelled() {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

fn one(engine: &Engine, file: &File, pieces: &[Piece], buffer: &mut Vec<u8>) {
    let message = match compare(engine, file, pieces, buffer) {
        Ok(None) => {
            engine.verified.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Ok(Some(at)) => format!("read back, it differs from the snapshot at byte {at}"),
        Err(errno) => format!("it cannot be read back: {}", std::io::Error::from(errno)),
    };
    engine.mismatches.fetch_add(1, Ordering::Relaxed);
    engine.problem(&file.dir, file.name.to_bytes(), &message);
}

/// Where the file's first wrong chunk begins.
fn compare(
    engine: &Engine,
    file: &File,
    pieces: &[Piece],
    buffer: &mut Vec<u8>,
) -> Result<Option<u64>, Errno> {
    let dir = engine.target.dir(&file.dir)?;
    let fd = engine.target.reopen(&dir, &file.name, OFlags::RDONLY)?;
    // It only costs what the check is worth.
    let _ = rustix::fs::fadvise(&fd, 0, None, Advice::DontNeed);
    for piece in pieces {
        buffer.resize(piece.place.blob.plain_len() as usize, 0);
        if !fill(&fd, buffer, piece.at)? || Id::of(buffer) != piece.place.blob.id {
            return Ok(Some(piece.at));
        }
    }
    let longer = rustix::io::pread(&fd, &mut [0][..], file.node.size)? > 0;
    Ok(longer.then_some(file.node.size))
}

/// Whether the file has as many bytes there as the buffer.
fn fill(fd: &OwnedFd, mut buffer: &mut [u8], mut at: u64) -> Result<bool, Errno> {
    while !buffer.is_empty() {
        match rustix::io::pread(fd, &mut *buffer, at) {
            Ok(0) => return Ok(false),
            Ok(got) => {
                buffer = &mut buffer[got..];
                at += got as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(true)
}
