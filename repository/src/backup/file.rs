//! One file: read, cut, saved.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::dirs::{OpenDir, complete};
use super::{Engine, source};
use crate::chunker::{MAX, MIN};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::BlobKind;
use crate::tree::{Node, NodeKind};

/// Bytes read at once: what was read is still in the cache when it is cut and hashed.
const READ: usize = 256 << 10;

/// A file that has to be read.
#[derive(Debug)]
pub(super) struct FileJob {
    pub(super) dir: Arc<OpenDir>,
    pub(super) place: usize,
    /// The directory that `name` is opened in.
    pub(super) fd: Arc<OwnedFd>,
    pub(super) name: CString,
    /// Whether the parent has a file of this name.
    pub(super) changed: bool,
}

/// A worker's buffer: the chunk being cut, and what follows it. Grows to what the files need.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

/// Reads a file and fills its place. Trouble with the file is counted, trouble with the repository ends the backup.
pub(super) fn run(engine: &Engine, job: &FileJob, buffer: &mut Buffer) -> Result<()> {
    let node = match read(engine, job, buffer) {
        Ok(node) => Some(node),
        Err(Trouble::Repository(error)) => return Err(error),
        Err(Trouble::Source(errno)) => {
            engine.problem(&job.dir.path, job.name.to_bytes(), errno);
            None
        }
        Err(Trouble::Other(message)) => {
            engine.error(&job.dir.path, job.name.to_bytes(), &message);
            None
        }
    };
    engine.counters.advance(0, 1);
    complete(engine, &job.dir, job.place, node.as_ref())
}

enum Trouble {
    Source(Errno),
    Other(String),
    Repository(Error),
}

fn read(engine: &Engine, job: &FileJob, buffer: &mut Buffer) -> Result<Node, Trouble> {
    let file = source::open_file(&*job.fd, &job.name).map_err(Trouble::Source)?;
    let before = rustix::fs::fstat(&file).map_err(Trouble::Source)?;
    let mut node = source::node(job.name.to_bytes(), &before, &engine.names)
        .filter(|node| node.kind == NodeKind::File)
        .ok_or_else(|| Trouble::Other("it is no regular file any more".into()))?;
    match source::xattrs_of(&file) {
        Ok(xattrs) => node.xattrs = xattrs,
        Err(error) => engine.error(&job.dir.path, job.name.to_bytes(), &error.to_string()),
    }
    let (size, content) = cut(engine, &file, buffer)?;
    let after = rustix::fs::fstat(&file).map_err(Trouble::Source)?;
    if size != node.size || !same(&before, &after) {
        engine.warning(
            &job.dir.path,
            job.name.to_bytes(),
            "changed while it was read",
        );
    }
    node.size = size;
    node.content = Some(content);
    let counter = if job.changed {
        &engine.figures.files_changed
    } else {
        &engine.figures.files_new
    };
    counter.fetch_add(1, Ordering::Relaxed);
    engine
        .figures
        .bytes_processed
        .fetch_add(size, Ordering::Relaxed);
    Ok(node)
}

fn same(before: &Stat, after: &Stat) -> bool {
    before.st_size == after.st_size
        && before.st_mtime == after.st_mtime
        && before.st_mtime_nsec == after.st_mtime_nsec
}

/// Cuts the file and saves its chunks. Returns how many bytes it had and the chunks' ids.
fn cut(engine: &Engine, file: &OwnedFd, buffer: &mut Buffer) -> Result<(u64, Vec<Id>), Trouble> {
    let buffer = &mut buffer.0;
    let mut content = Vec::new();
    let mut size = 0;
    // The chunk being cut is buffer[start..filled], searched up to `searched`.
    let (mut start, mut filled, mut searched) = (0, 0, 0);
    let mut ended = false;
    loop {
        let cut = engine.chunker.next_cut(&buffer[start..filled], searched);
        let chunk = match cut {
            Ok(cut) => cut,
            Err(_) if ended => filled - start,
            Err(up_to) => {
                searched = up_to;
                if filled + READ > buffer.len() {
                    buffer.copy_within(start..filled, 0);
                    filled -= start;
                    start = 0;
                    // Small files need little, and a chunk and one read are enough for any.
                    let wanted = if filled < MIN {
                        MIN + READ
                    } else {
                        MAX + 4 * READ
                    };
                    if buffer.len() < wanted && filled + READ > buffer.len() {
                        // A fresh one costs no memory before it is filled, one that is resized does.
                        let mut larger = vec![0; wanted];
                        larger[..filled].copy_from_slice(&buffer[..filled]);
                        *buffer = larger;
                    }
                }
                let end = buffer.len().min(filled + READ);
                let got = engine
                    .read(file, &mut buffer[filled..end])
                    .map_err(Trouble::Source)?;
                ended = got == 0;
                filled += got;
                size += got as u64;
                continue;
            }
        };
        if chunk == 0 {
            return Ok((size, content));
        }
        if engine.stop.is_cancelled() {
            return Err(Trouble::Repository(Error::Cancelled));
        }
        let saved = engine
            .packer
            .save(BlobKind::Data, &buffer[start..start + chunk])
            .map_err(Trouble::Repository)?;
        content.push(saved.id);
        engine.counters.advance(chunk as u64, 0);
        start += chunk;
        searched = 0;
    }
}
