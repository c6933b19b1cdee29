//! A worker's buffer: the chunk being cut, and what was read beyond it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Engine;
use crate::chunker::{MAX, MIN};

/// Bytes read at once: what was read is still in the cache when it is cut and hashed.
pub(super) const READ: usize = 256 << 10;

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
            self.make_room();
            let end = self.bytes.len().min(self.filled + READ);
            let next = self.at + (self.filled - self.start) as u64;
            let got = engine.read(file, &mut self.bytes[self.filled..end], next)?;
            self.ended = got == 0;
            self.filled += got;
        }
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

    /// The next `length` bytes, as [`Buffer::chunk`] said; what follows them is kept.
    pub(super) fn take(&mut self, length: usize) -> &[u8] {
        let start = self.start;
        self.start += length;
        self.at += length as u64;
        &self.bytes[start..start + length]
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
