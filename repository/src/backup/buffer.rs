//! A worker's buffer: the chunk being cut, and what was read beyond it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Engine;
use crate::chunker::{MAX, MIN, PIECE};

/// Bytes read at once: what was read is still in the cache when it is cut and hashed.
pub(super) const READ: usize = PIECE;

/// Grows to what the files need: small ones little, and a chunk and some reads are enough for any.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// `bytes[start..filled]` is what follows in the file from `at`.
    start: usize,
    filled: usize,
    at: u64,
    /// The last read found the end of the file.
    ended: bool,
}

impl Buffer {
    /// What is in the buffer is of no use any more: another file is read.
    pub(super) fn forget(&mut self) {
        self.go_to(0);
    }

    fn go_to(&mut self, at: u64) {
        (self.start, self.filled, self.at, self.ended) = (0, 0, at, false);
    }

    /// Reads until the chunk that starts at `at` is complete. Returns its length: 0 at the end of the file.
    pub(super) fn chunk(
        &mut self,
        engine: &Engine,
        file: &OwnedFd,
        at: u64,
    ) -> Result<usize, Errno> {
        if self.at != at {
            self.go_to(at);
        }
        let mut searched = 0;
        loop {
            let data = &self.bytes[self.start..self.filled];
            match engine.chunker.next_cut(data, searched) {
                Ok(cut) => return Ok(cut),
                Err(_) if self.ended => return Ok(data.len()),
                Err(up_to) => searched = up_to,
            }
            self.fill(engine, file)?;
        }
    }

    /// The length of the chunk behind the first, of the length `first`, where it is complete or can be without more room;
    /// else 0.
    pub(super) fn second(
        &mut self,
        engine: &Engine,
        file: &OwnedFd,
        first: usize,
    ) -> Result<usize, Errno> {
        let mut searched = 0;
        loop {
            let data = &self.bytes[self.start + first..self.filled];
            match engine.chunker.next_cut(data, searched) {
                Ok(cut) => return Ok(cut),
                Err(_) if self.ended => return Ok(data.len()),
                Err(up_to) => searched = up_to,
            }
            if self.filled - self.start + READ > self.bytes.len() {
                return Ok(0);
            }
            self.fill(engine, file)?;
        }
    }

    fn fill(&mut self, engine: &Engine, file: &OwnedFd) -> Result<(), Errno> {
        self.make_room();
        let end = self.bytes.len().min(self.filled + READ);
        let next = self.at + (self.filled - self.start) as u64;
        let got = engine.read(file, &mut self.bytes[self.filled..end], next)?;
        self.ended = got == 0;
        self.filled += got;
        Ok(())
    }

    fn make_room(&mut self) {
        if self.filled + READ <= self.bytes.len() {
            return;
        }
        self.bytes.copy_within(self.start..self.filled, 0);
        self.filled -= self.start;
        self.start = 0;
        let wanted = if self.filled < MIN {
            MIN + READ
        } else {
            MAX + 4 * READ
        };
        if self.bytes.len() < wanted && self.filled + READ > self.bytes.len() {
            // A fresh one costs no memory before it is filled, one that is resized does.
            let mut larger = vec![0; wanted];
            larger[..self.filled].copy_from_slice(&self.bytes[..self.filled]);
            self.bytes = larger;
        }
    }

    /// The next bytes, as [`Buffer::chunk`] and [`Buffer::second`] said; what follows them is kept.
    pub(super) fn take(&mut self, [first, second]: [usize; 2]) -> [&[u8]; 2] {
        let start = self.start;
        self.start += first + second;
        self.at += (first + second) as u64;
        let (first, rest) = self.bytes[start..].split_at(first);
        [first, &rest[..second]]
    }

    /// Room for one read, for those who look at the file without cutting it.
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        self.forget();
        if self.bytes.len() < READ {
            self.bytes = vec![0; READ + MIN];
        }
        &mut self.bytes[..READ]
    }
}
