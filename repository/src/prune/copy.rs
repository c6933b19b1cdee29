//! Copying what is used out of packs that go.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blobs::{self, BlobReader, Rooms, Sealed};
use crate::crypto::Proof;
use crate::drive::{self, Counters};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::index::Location;
use crate::packer::Packer;

/// Bytes read at once.
const SPAN: u64 = 4 << 20;

/// Copies used blobs, sorted by pack and offset, into new packs, each verified on the way.
pub(super) fn copy(
    reader: &BlobReader,
    runtime: &Handle,
    packer: &Packer,
    stop: &CancellationToken,
    counters: &Counters,
    copies: &[Location],
) -> Result<()> {
    let spans: Vec<_> = spans(copies).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rooms = Default::default();
        while let Some(span) = spans.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let copied = copy_span(reader, runtime, packer, stop, counters, span, &mut rooms);
            copied.inspect_err(|_| next.store(spans.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..drive::threads().min(spans.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let ended = threads.into_iter().map(|thread| {
            let panicked = |_| Err(Error::Internal("a thread that copies panicked".into()));
            thread.join().unwrap_or_else(panicked)
        });
        // All are waited for; the first error counts.
        ended.fold(Ok(()), Result::and)
    })
}

fn end(place: &Location) -> u64 {
    u64::from(place.blob.offset) + u64::from(place.blob.length)
}

/// What is read at once: blobs of one pack, near to each other.
fn spans(mut rest: &[Location]) -> impl Iterator<Item = &[Location]> {
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let limit = u64::from(first.blob.offset) + SPAN;
        let count = rest
            .iter()
            .take_while(|place| {
                place.pack == first.pack && (end(place) <= limit || *place == first)
            })
            .count();
        let (span, after) = rest.split_at(count);
        rest = after;
        Some(span)
    })
}

fn copy_span(
    reader: &BlobReader,
    runtime: &Handle,
    packer: &Packer,
    stop: &CancellationToken,
    counters: &Counters,
    span: &[Location],
    rooms: &mut Rooms,
) -> Result<()> {
    let (Some(first), Some(last)) = (span.first(), span.last()) else {
        return Ok(());
    };
    let start = u64::from(first.blob.offset);
    let pack = FileKind::Pack.path(&reader.index.pack_id(first.pack));
    let sealed = Sealed::part(&reader.files, runtime, stop, &pack, start..end(last))?;
    let blobs = span
        .iter()
        .map(|place| Ok((&place.blob, place.blob, sealed.clone())));
    let key = &reader.files.key;
    blobs::open_each(key, Proof::Hash, blobs, rooms, |blob, plain| {
        match plain {
            Ok(plain) => packer.save_again(blob.kind, blob.id, plain)?,
            Err(reason) => {
                // Another copy may be sound; if none is, nothing was removed yet.
                tracing::warn!(pack, blob = %blob.id, reason, "damaged blob");
                let plain = drive::wait(runtime, stop, reader.load(blob.kind, &blob.id))?;
                packer.save_again(blob.kind, blob.id, &plain)?;
            }
        }
        counters.advance(u64::from(blob.length), 0);
        Ok(())
    })
}
