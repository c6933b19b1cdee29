//! One large file on every thread. Each takes the next chunk or two in turn: under the file's lock it reads until they are
//! cut, which is the cheap part, and outside it hashes, seals and packs what it has in its cache.
//!
//! Where the parent has the file, its chunks are tried first. A chunk that starts where one of the parent started and
//! has the same content ends where that one ended: the cut depends on nothing else, unless it was the end of the file.
//! So nothing has to be searched, and several threads can try at once. A wrong guess takes back all that follow it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use sha2::{Digest, Sha256};

use super::Engine;
use super::buffer::Buffer;
use super::file::{self, FileJob, Opened, Trouble};
use crate::chunker::{MAX, MIN};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Index;
use crate::pack::BlobKind;

/// From this size on a file is worth several threads.
pub(super) const LARGE: u64 = 16 << 20;

/// A file that several threads read.
#[derive(Debug)]
pub(super) struct LargeFile {
    job: FileJob,
    /// The parent's chunks but the last, in order.
    parents: Vec<Guess>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A chunk of the parent.
#[derive(Debug, Clone, Copy)]
struct Guess {
    at: u64,
    length: u64,
    id: Id,
}

#[derive(Debug, Default)]
struct State {
    opened: Option<Arc<Opened>>,
    /// Where the next chunk starts.
    at: u64,
    chunks: Vec<Chunk>,
    /// Chunks handed out so far: no two have the same number.
    handed_out: u64,
    /// Threads that have not said yet what became of their chunk, and how many of these chunks are guesses.
    busy: usize,
    guesses: usize,
    /// Before this position no guess is made any more.
    no_guess_before: u64,
    trouble: Option<Trouble>,
    /// Nothing more is handed out.
    ended: bool,
}

#[derive(Debug)]
struct Chunk {
    number: u64,
    id: Id,
}

/// What a thread is to do.
#[derive(Debug)]
struct Turn {
    opened: Arc<Opened>,
    number: u64,
    /// The place in [`State::chunks`], and in the file.
    place: usize,
    at: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Save a chunk or two of the buffer, of these lengths.
    Save([usize; 2]),
    /// See whether the parent's chunk is still there.
    Try(Guess),
}

impl LargeFile {
    /// `content` is the parent's.
    pub(super) fn new(job: FileJob, content: &[Id], index: &Index) -> Self {
        let mut at = 0;
        let mut parents = Vec::new();
        for id in content.iter().take(content.len().saturating_sub(1)) {
            let Some(place) = index.find(BlobKind::Data, id).next() else {
                break;
            };
            let length = u64::from(place.blob.plain_len());
            // Whoever cut otherwise had another rule.
            if !(MIN as u64..=MAX as u64).contains(&length) {
                break;
            }
            let id = *id;
            parents.push(Guess { at, length, id });
            at += length;
        }
        Self {
            job,
            parents,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Works on the file until nothing of it is left to take. Whoever comes last fills its place.
    pub(super) fn run(&self, engine: &Engine, buffer: &mut Buffer) -> Result<()> {
        buffer.forget();
        loop {
            if engine.stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let state = self.state.lock();
            if state.ended {
                return Ok(());
            }
            match self.turn(engine, state, buffer) {
                Ok(Some(turn)) => self.take(engine, &turn, buffer)?,
                Ok(None) => {}
                Err(trouble) => self.fail(trouble),
            }
            self.end(engine)?;
        }
    }

    /// Hands out the next chunk. `None`: look again.
    fn turn(
        &self,
        engine: &Engine,
        mut state: MutexGuard<'_, State>,
        buffer: &mut Buffer,
    ) -> Result<Option<Turn>, Trouble> {
        let opened = match &state.opened {
            Some(opened) => Arc::clone(opened),
            None => {
                let opened = Arc::new(file::open(engine, &self.job)?);
                Arc::clone(state.opened.insert(opened))
            }
        };
        let at = state.at;
        let (what, length) = match self.guess(&state, at, opened.size()) {
            Some(guess) => (What::Try(guess), guess.length),
            None if state.guesses > 0 => {
                // A wrong one would move the place where the search begins.
                self.changed.wait(&mut state);
                return Ok(None);
            }
            None => {
                let first = (buffer.chunk(engine, &opened.file, at)).map_err(Trouble::Source)?;
                if first == 0 {
                    state.ended = true;
                    return Ok(None);
                }
                let next = at + first as u64;
                let second = match self.guess(&state, next, opened.size()) {
                    Some(_) => 0,
                    None => {
                        (buffer.second(engine, &opened.file, first)).map_err(Trouble::Source)?
                    }
                };
                (What::Save([first, second]), (first + second) as u64)
            }
        };
        state.at += length;
        state.busy += 1;
        state.guesses += usize::from(matches!(what, What::Try(_)));
        state.handed_out += 1;
        let number = state.handed_out;
        let place = state.chunks.len();
        let count = match what {
            What::Save([_, second]) if second > 0 => 2,
            _ => 1,
        };
        let id = Id::default();
        (state.chunks).extend((0..count).map(|_| Chunk { number, id }));
        Ok(Some(Turn {
            opened,
            number,
            place,
            at,
            what,
        }))
    }

    /// The parent's chunk that may lie at this position.
    fn guess(&self, state: &State, at: u64, size: u64) -> Option<Guess> {
        let found = self.parents.binary_search_by_key(&at, |guess| guess.at);
        let guess = self.parents.get(found.ok()?)?;
        let allowed = at >= state.no_guess_before && guess.at + guess.length <= size;
        allowed.then_some(*guess)
    }

    /// Does what was handed out, and says what became of it.
    fn take(&self, engine: &Engine, turn: &Turn, buffer: &mut Buffer) -> Result<()> {
        let result = match &turn.what {
            What::Save(lengths) => file::save(engine, buffer, *lengths)
                .map(|ids| {
                    Some((
                        ids.collect::<Vec<_>>(),
                        lengths.iter().sum::<usize>() as u64,
                    ))
                })
                .map_err(Trouble::Repository),
            What::Try(guess) => self
                .holds(engine, turn, guess, buffer)
                .map(|holds| holds.then(|| (vec![guess.id], guess.length))),
        };
        let mut state = self.state.lock();
        state.busy -= 1;
        state.guesses -= usize::from(matches!(turn.what, What::Try(_)));
        self.changed.notify_all();
        let handed_out = state.chunks.iter_mut().skip(turn.place);
        let ours = handed_out.take_while(|chunk| chunk.number == turn.number);
        let mut kept = ours.peekable();
        match (result, kept.peek().is_some()) {
            (Ok(Some((ids, length))), true) => {
                for (chunk, id) in kept.zip(ids) {
                    chunk.id = id;
                }
                engine.counters.advance(length, 0);
            }
            (Ok(None), true) => {
                state.chunks.truncate(turn.place);
                state.at = turn.at;
                state.no_guess_before = state.no_guess_before.max(turn.at + 1);
            }
            // Taken back meanwhile.
            (Ok(_), false) => {}
            (Err(Trouble::Repository(error)), _) => return Err(error),
            (Err(trouble), _) => {
                drop(state);
                self.fail(trouble);
            }
        }
        Ok(())
    }

    /// Whether the file still holds the parent's chunk.
    fn holds(
        &self,
        engine: &Engine,
        turn: &Turn,
        guess: &Guess,
        buffer: &mut Buffer,
    ) -> Result<bool, Trouble> {
        let buffer = buffer.scratch();
        let mut hash = Sha256::new();
        let mut done = 0;
        while done < guess.length {
            let now = (guess.length - done).min(buffer.len() as u64) as usize;
            let got = engine
                .read(&turn.opened.file, &mut buffer[..now], guess.at + done)
                .map_err(Trouble::Source)?;
            if got == 0 {
                return Ok(false);
            }
            hash.update(&buffer[..got]);
            done += got as u64;
        }
        Ok(Id(hash.finalize().into()) == guess.id)
    }

    /// The file cannot be read to its end. The first trouble is the one that counts.
    fn fail(&self, trouble: Trouble) {
        let mut state = self.state.lock();
        state.ended = true;
        state.trouble.get_or_insert(trouble);
    }

    /// Fills the file's place when it is read and nobody works on it any more.
    fn end(&self, engine: &Engine) -> Result<()> {
        let mut state = self.state.lock();
        if !state.ended || state.busy > 0 {
            return Ok(());
        }
        // Taken once: whoever finds nothing has nothing to do.
        let (opened, trouble) = (state.opened.take(), state.trouble.take());
        let chunks = std::mem::take(&mut state.chunks);
        let size = state.at;
        drop(state);
        let node = match (trouble, opened) {
            (Some(trouble), _) => Err(trouble),
            (None, Some(opened)) => {
                let content = chunks.into_iter().map(|chunk| chunk.id).collect();
                file::close(engine, &self.job, &opened, size, content)
            }
            (None, None) => return Ok(()),
        };
        file::end(engine, &self.job, node)
    }
}
