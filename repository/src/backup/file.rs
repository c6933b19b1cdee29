//! One file: read, cut, saved.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::buffer::Buffer;
use super::dirs::{OpenDir, complete};
use super::{Engine, source};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::BlobKind;
use crate::tree::{Node, NodeKind};

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

/// What can go wrong with one file.
#[derive(Debug)]
pub(super) enum Trouble {
    Source(Errno),
    Other(String),
    /// Not the file's: this ends the backup.
    Repository(Error),
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: OwnedFd,
    before: Stat,
    node: Node,
}

impl Opened {
    /// Its size when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.node.size
    }
}

/// Reads a file and fills its place. Trouble with the file is counted, trouble with the repository ends the backup.
pub(super) fn run(engine: &Engine, job: &FileJob, buffer: &mut Buffer) -> Result<()> {
    let node = open(engine, job).and_then(|opened| {
        let (size, content) = cut(engine, &opened.file, buffer)?;
        close(engine, job, &opened, size, content)
    });
    end(engine, job, node)
}

/// Opens a file and reads what the system knows of it.
pub(super) fn open(engine: &Engine, job: &FileJob) -> Result<Opened, Trouble> {
    let file = source::open_file(&*job.fd, &job.name).map_err(Trouble::Source)?;
    let before = rustix::fs::fstat(&file).map_err(Trouble::Source)?;
    let mut node = source::node(job.name.to_bytes(), &before, &engine.names)
        .filter(|node| node.kind == NodeKind::File)
        .ok_or_else(|| Trouble::Other("it is no regular file any more".into()))?;
    match source::xattrs_of(&file) {
        Ok(xattrs) => node.xattrs = xattrs,
        Err(error) => engine.error(&job.dir.path, job.name.to_bytes(), &error.to_string()),
    }
    Ok(Opened { file, before, node })
}

/// The node of a file that was read to its end.
pub(super) fn close(
    engine: &Engine,
    job: &FileJob,
    opened: &Opened,
    size: u64,
    content: Vec<Id>,
) -> Result<Node, Trouble> {
    let after = rustix::fs::fstat(&opened.file).map_err(Trouble::Source)?;
    if size != opened.node.size || !same(&opened.before, &after) {
        engine.warning(
            &job.dir.path,
            job.name.to_bytes(),
            "changed while it was read",
        );
    }
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
    Ok(Node {
        size,
        content: Some(content),
        ..opened.node.clone()
    })
}

/// Fills the file's place, or counts why it stays empty.
pub(super) fn end(engine: &Engine, job: &FileJob, node: Result<Node, Trouble>) -> Result<()> {
    let node = match node {
        Ok(node) => Some(node),
        Err(Trouble::Repository(error)) => return Err(error),
        Err(Trouble::Source(errno)) => {
            engine.problem(&job.dir, &job.fd, &job.name, errno);
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

fn same(before: &Stat, after: &Stat) -> bool {
    before.st_size == after.st_size
        && before.st_mtime == after.st_mtime
        && before.st_mtime_nsec == after.st_mtime_nsec
}

/// Cuts the file and saves its chunks. Returns how many bytes it had and the chunks' ids.
fn cut(engine: &Engine, file: &OwnedFd, buffer: &mut Buffer) -> Result<(u64, Vec<Id>), Trouble> {
    buffer.forget();
    let mut content = Vec::new();
    let mut size = 0;
    loop {
        let first = buffer.chunk(engine, file, size).map_err(Trouble::Source)?;
        if first == 0 {
            return Ok((size, content));
        }
        if engine.stop.is_cancelled() {
            return Err(Trouble::Repository(Error::Cancelled));
        }
        let second = (buffer.second(engine, file, first)).map_err(Trouble::Source)?;
        content.extend(save(engine, buffer, [first, second]).map_err(Trouble::Repository)?);
        let length = (first + second) as u64;
        engine.counters.advance(length, 0);
        size += length;
    }
}

/// Saves the next chunk or two of the buffer.
pub(super) fn save(
    engine: &Engine,
    buffer: &mut Buffer,
    lengths: [usize; 2],
) -> Result<impl Iterator<Item = Id> + use<>> {
    let (packer, count) = (&engine.packer, if lengths[1] == 0 { 1 } else { 2 });
    let [first, second] = buffer.take(lengths);
    let ids = match count {
        1 => [packer.save(BlobKind::Data, first)?.id, Id::default()],
        _ => (packer.save_all(BlobKind::Data, [first, second])?).map(|saved| saved.id),
    };
    Ok(ids.into_iter().take(count))
}
