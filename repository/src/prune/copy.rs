//! Copying what is used out of packs that go.

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::blobs::{self, BlobReader};
use crate::drive::{self, Counters};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::index::Location;
use crate::packer::Packer;

/// Copies used blobs into new packs, each verified on the way.
pub(super) fn copy(
    reader: &BlobReader,
    runtime: &Handle,
    packer: &Packer,
    stop: &CancellationToken,
    counters: &Counters,
    copies: &[Location],
) -> Result<()> {
    /// Bytes read at once.
    const SPAN: u64 = 8 << 20;
    let mut scratch = Default::default();
    let mut rest = copies;
    while let Some(first) = rest.first() {
        if stop.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let start = u64::from(first.blob.offset);
        let end = |place: &Location| u64::from(place.blob.offset) + u64::from(place.blob.length);
        let count = rest
            .iter()
            .take_while(|place| {
                place.pack == first.pack && (end(place) <= start + SPAN || *place == first)
            })
            .count();
        let (span, after) = rest.split_at(count);
        rest = after;
        let stop_at = span.last().map_or(start, end);
        let pack = FileKind::Pack.path(&reader.index.pack_id(first.pack));
        let bytes = drive::wait(runtime, stop, async {
            Ok(reader.files.store.get_range(&pack, start..stop_at).await?)
        })?;
        let mut bytes = Vec::from(bytes);
        let blobs = span.iter().map(|place| (&place.blob, &place.blob));
        blobs::open_each(
            &reader.files.key,
            &mut bytes,
            start,
            blobs,
            &mut scratch,
            |blob, plain| {
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
                Ok::<_, Error>(())
            },
        )?;
    }
    Ok(())
}
