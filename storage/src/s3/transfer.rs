//! Bodies: reading with deadlines and resumption, writing large files in parts.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::connect::deadlines;
use super::store::S3Store;
use crate::{Error, ObjectStore, Result, key};

/// Files up to this size are one request.
const SINGLE: u64 = 16 << 20;
/// The smallest part of a larger file; 10,000 parts are allowed.
const PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;
/// Parts in flight, each in memory.
const PARALLEL: usize = 3;

/// A pause before attempt `attempt + 1`, random so that clients that failed together spread out.
pub(super) async fn pause(attempt: u32) {
    let longest = 200_u64 << attempt.min(5);
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
    tokio::time::sleep(Duration::from_millis(longest / 2 + random % (longest / 2))).await;
}

/// Reads an object, or `range` of it, into memory. A body that breaks off is asked for again.
pub(super) async fn get(store: &S3Store, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
    for attempt in 1.. {
        let mut body = Body::open(store, key, range.clone(), None).await?;
        match body.collect().await {
            Err(error) if error.is_retryable() && attempt < store.config.timeouts.attempts => {
                pause(attempt).await;
            }
            result => return result,
        }
    }
    Ok(Bytes::new())
}

/// Writes an object to a file. A body that breaks off is continued where it ended.
pub(super) async fn download(store: &S3Store, key: &str, to: &Path) -> Result<u64> {
    let fail = |error: std::io::Error| Error::local(&store.location(), key, to, &error);
    let mut body = Body::open(store, key, None, None).await?;
    let (size, etag) = (body.expected, body.etag.take());
    let file = tokio::fs::File::create(to).await.map_err(fail)?;
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
    let mut written = 0;
    let mut failures = 0;
    loop {
        match body.next().await {
            Ok(Some(chunk)) => {
                file.write_all(&chunk).await.map_err(fail)?;
                written += chunk.len() as u64;
                failures = 0;
            }
            Ok(None) => break,
            Err(error) => {
                failures += 1;
                if !error.is_retryable() || failures >= store.config.timeouts.attempts {
                    return Err(error);
                }
                pause(failures).await;
                body = Body::open(store, key, Some(written..size), etag.clone()).await?;
            }
        }
    }
    file.flush().await.map_err(fail)?;
    Ok(written)
}

/// A response's body with its deadlines.
struct Body<'a> {
    store: &'a S3Store,
    key: &'a str,
    output: GetObjectOutput,
    etag: Option<String>,
    expected: u64,
    got: u64,
    until: Instant,
}

impl<'a> Body<'a> {
    async fn open(
        store: &'a S3Store,
        key: &'a str,
        range: Option<Range<u64>>,
        etag: Option<String>,
    ) -> Result<Body<'a>> {
        let request = store
            .client
            .get_object()
            .bucket(store.bucket())
            .key(store.full(key)?);
        let bytes = range
            .as_ref()
            .map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        let sent = request.set_range(bytes).set_if_match(etag).send().await;
        let mut output = sent.map_err(|error| match (&range, super::classify::status(&error)) {
            // The object ends before the range begins.
            (Some(range), Some(416)) => Error::ShortRead {
                location: store.location(),
                key: key.to_owned(),
                expected: range.end - range.start,
                got: 0,
            },
            _ => store.error(key, 0, &error),
        })?;
        let length = output
            .content_length()
            .and_then(|length| u64::try_from(length).ok());
        let expected = match (&range, length) {
            (Some(range), _) => range.end - range.start,
            (None, Some(length)) => length,
            (None, None) => {
                return Err(Error::Other {
                    location: store.location(),
                    key: key.to_owned(),
                    message: "the server does not say how long the object is".to_owned(),
                });
            }
        };
        // A server that ignores the range sends the whole object.
        let ignored = range.is_some() && output.content_range().is_none();
        if ignored || length.is_some_and(|length| length != expected) {
            let got = length.unwrap_or_default();
            let (location, key) = (store.location(), key.to_owned());
            return Err(Error::ShortRead {
                location,
                key,
                expected,
                got,
            });
        }
        let etag = output.e_tag.take();
        let until = Instant::now() + store.config.timeouts.attempt(expected);
        Ok(Body {
            store,
            key,
            output,
            etag,
            expected,
            got: 0,
            until,
        })
    }

    /// The next piece; `None` at the end, when all bytes have come.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let idle = self.store.config.timeouts.idle;
        let left = self
            .until
            .saturating_duration_since(Instant::now())
            .min(idle);
        let (location, key) = (self.store.location(), self.key.to_owned());
        match timeout(left, self.output.body.next()).await {
            Err(_) => Err(Error::Timeout {
                location,
                key,
                after: left,
            }),
            Ok(Some(Ok(chunk))) => {
                self.got += chunk.len() as u64;
                Ok(Some(chunk))
            }
            Ok(Some(Err(error))) => {
                let message = super::classify::text(&error);
                Err(Error::Unreachable {
                    location,
                    key,
                    message,
                })
            }
            Ok(None) if self.got == self.expected => Ok(None),
            Ok(None) => {
                let (expected, got) = (self.expected, self.got);
                Err(Error::ShortRead {
                    location,
                    key,
                    expected,
                    got,
                })
            }
        }
    }

    async fn collect(&mut self) -> Result<Bytes> {
        // A header is no promise: memory grows with what really comes.
        let mut whole = BytesMut::with_capacity(self.expected.min(SINGLE) as usize);
        while let Some(chunk) = self.next().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}

/// Writes a file as an object: one request for small ones, parts for large ones.
pub(super) async fn upload(store: &S3Store, key: &str, from: &Path) -> Result<u64> {
    key::check(&store.location(), key)?;
    let fail = |error: std::io::Error| Error::local(&store.location(), key, from, &error);
    let file = tokio::fs::File::open(from)
        .await
        .map_err(fail)?
        .into_std()
        .await;
    let size = file.metadata().map_err(fail)?.len();
    let file = Arc::new(file);
    if size <= SINGLE {
        let body = read(file, 0..size).await.map_err(fail)?;
        store.put(key, body).await?;
    } else {
        multipart(store, key, from, file, size).await?;
    }
    Ok(size)
}

async fn read(file: Arc<std::fs::File>, range: Range<u64>) -> std::io::Result<Bytes> {
    let work = move || {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer.into())
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?
}

async fn multipart(
    store: &S3Store,
    key: &str,
    from: &Path,
    file: Arc<std::fs::File>,
    size: u64,
) -> Result<()> {
    let full = store.full(key)?;
    let with = store
        .is_velero_object(key)
        .then_some(&store.config.encryption);
    let checksum = with.and_then(|with| with.checksum.clone());
    let created = store
        .client
        .create_multipart_upload()
        .bucket(store.bucket())
        .key(&full)
        .set_server_side_encryption(with.and_then(|with| with.algorithm.clone()))
        .set_ssekms_key_id(with.and_then(|with| with.kms_key.clone()))
        .set_tagging(with.and_then(|with| with.tagging.clone()))
        .set_checksum_algorithm(checksum.clone())
        .send()
        .await
        .map_err(|error| store.error(key, 0, &error))?;
    let Some(id) = created.upload_id else {
        return Err(Error::Other {
            location: store.location(),
            key: key.to_owned(),
            message: "the server began an upload in parts without giving it an id".to_owned(),
        });
    };
    let mut abort = Abort::new(store, &full, &id);
    let part = PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
    let parts = stream::iter(0..size.div_ceil(part)).map(|index| {
        let (file, checksum, id, full) = (file.clone(), checksum.clone(), &id, &full);
        async move {
            let range = index * part..size.min((index + 1) * part);
            let length = range.end - range.start;
            let body = read(file, range).await;
            let body = body.map_err(|error| Error::local(&store.location(), key, from, &error))?;
            let number = i32::try_from(index + 1).unwrap_or(i32::MAX);
            let request = store.client.upload_part().bucket(store.bucket()).key(full);
            let request = request.upload_id(id).part_number(number).body(body.into());
            let limits = Builder::new().timeout_config(deadlines(&store.config.timeouts, length));
            let request = request.set_checksum_algorithm(checksum).customize();
            let sent = request.config_override(limits).send().await;
            let sent = sent.map_err(|error| store.error(key, length, &error))?;
            Ok::<_, Error>(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(sent.e_tag)
                    .set_checksum_crc32(sent.checksum_crc32)
                    .set_checksum_crc32_c(sent.checksum_crc32_c)
                    .set_checksum_sha1(sent.checksum_sha1)
                    .set_checksum_sha256(sent.checksum_sha256)
                    .build(),
            )
        }
    });
    let parts: Vec<CompletedPart> = parts.buffered(PARALLEL).try_collect().await?;
    let whole = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    // Putting the parts together takes some servers as long as writing them.
    let limits = Builder::new().timeout_config(deadlines(&store.config.timeouts, size));
    let request = store
        .client
        .complete_multipart_upload()
        .bucket(store.bucket())
        .key(&full);
    let request = request.upload_id(&id).multipart_upload(whole).customize();
    let sent = request.config_override(limits).send().await;
    sent.map_err(|error| store.error(key, size, &error))?;
    abort.done = true;
    Ok(())
}

/// Gives up the parts of an upload that failed or was cancelled: they cost space and are invisible.
struct Abort {
    client: Client,
    bucket: String,
    full: String,
    id: String,
    done: bool,
}

impl Abort {
    fn new(store: &S3Store, full: &str, id: &str) -> Abort {
        let (full, id, bucket) = (full.to_owned(), id.to_owned(), store.bucket().to_owned());
        Abort {
            client: store.client.clone(),
            bucket,
            full,
            id,
            done: false,
        }
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let request = self.client.abort_multipart_upload().bucket(&self.bucket);
        let request = request.key(&self.full).upload_id(&self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = request.send().await {
                    let error = super::classify::text(&error);
                    tracing::warn!(error, "parts of a failed upload may remain in the bucket");
                }
            });
        }
    }
}
