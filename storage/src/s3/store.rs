//! The object store on S3.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::Object;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::classify::{self, classify};
use super::config::S3Config;
use super::connect::{Clients, clients, deadlines};
use super::transfer;
use crate::{Error, Listing, ObjectMeta, ObjectStore, Result, key};

/// How many objects are deleted at a time. One by one: the batch request is not understood everywhere.
const DELETES: usize = 8;

/// A bucket, or a directory of one.
pub struct S3Store {
    pub(super) client: Client,
    presigner: Client,
    pub(super) config: S3Config,
    location: String,
    /// Empty or with a trailing slash.
    root: String,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3Store({})", self.location)
    }
}

impl S3Store {
    /// Makes a store. No request is made, but for the bucket's region where none is configured.
    pub async fn connect(config: S3Config) -> Result<S3Store> {
        let Clients { client, presigner } = clients(&config).await?;
        let (location, root) = (config.location(), key::directory(&config.prefix));
        Ok(S3Store {
            client,
            presigner,
            config,
            location,
            root,
        })
    }

    /// The key in the bucket.
    pub(super) fn full(&self, key: &str) -> Result<String> {
        key::check(&self.location, key)?;
        Ok(format!("{}{key}", self.root))
    }

    pub(super) fn bucket(&self) -> &str {
        &self.config.bucket
    }

    /// Velero's own objects, to which the location's encryption settings apply.
    pub(super) fn is_velero_object(&self, key: &str) -> bool {
        key.starts_with("backups/") || key.starts_with("restores/")
    }

    /// An error of a request that moves `bytes`.
    pub(super) fn error<E>(&self, key: &str, bytes: u64, error: &SdkError<E, HttpResponse>) -> Error
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        classify(
            &self.location,
            key,
            self.config.timeouts.operation(bytes),
            error,
        )
    }

    fn put_request(&self, key: &str, body: Bytes) -> Result<PutObjectFluentBuilder> {
        let size = body.len() as i64;
        let mut request = self
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key)?);
        request = request.content_length(size).body(body.into());
        if self.is_velero_object(key) {
            let with = &self.config.encryption;
            request = request
                .set_server_side_encryption(with.algorithm.clone())
                .set_ssekms_key_id(with.kms_key.clone())
                .set_tagging(with.tagging.clone())
                .set_checksum_algorithm(with.checksum.clone());
        }
        Ok(request)
    }

    /// One page of a listing of keys in the bucket.
    async fn page(
        &self,
        full_prefix: &str,
        delimiter: Option<&str>,
        token: Option<String>,
    ) -> Result<ListObjectsV2Output> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(full_prefix);
        let request = request.set_delimiter(delimiter.map(str::to_owned));
        let answer = request.set_continuation_token(token).send().await;
        answer.map_err(|error| {
            self.error(
                full_prefix.strip_prefix(&self.root).unwrap_or(full_prefix),
                0,
                &error,
            )
        })
    }

    /// Every object below a prefix of the bucket, also those whose names are no keys of ours.
    fn objects(&self, full_prefix: String) -> BoxStream<'_, Result<Object>> {
        let start = Page {
            token: None,
            last: false,
            objects: VecDeque::new(),
        };
        stream::try_unfold((start, full_prefix), move |(mut page, prefix)| async move {
            loop {
                if let Some(object) = page.objects.pop_front() {
                    return Ok(Some((object, (page, prefix))));
                }
                if page.last {
                    return Ok(None);
                }
                let answer = self.page(&prefix, None, page.token.take()).await?;
                page = self.next_page(&prefix, answer)?;
            }
        })
        .boxed()
    }

    fn next_page(&self, prefix: &str, answer: ListObjectsV2Output) -> Result<Page> {
        let token = self.next_token(prefix, &answer)?;
        Ok(Page {
            last: token.is_none(),
            token,
            objects: answer.contents.unwrap_or_default().into(),
        })
    }

    /// The token of the next page; `None` at the end. A cut listing without one would hide objects.
    fn next_token(&self, prefix: &str, answer: &ListObjectsV2Output) -> Result<Option<String>> {
        match (answer.is_truncated(), answer.next_continuation_token()) {
            (Some(true), Some(token)) => Ok(Some(token.to_owned())),
            (Some(true), None) => Err(Error::Other {
                location: self.location.clone(),
                key: prefix.to_owned(),
                message: "the server cut the listing and gave no token for the rest".to_owned(),
            }),
            _ => Ok(None),
        }
    }

    /// The object as callers see it; `None` for directory markers and other names that are no keys.
    fn meta(&self, object: &Object) -> Option<ObjectMeta> {
        let key = object.key()?.strip_prefix(&self.root)?;
        key::check(&self.location, key).ok()?;
        Some(ObjectMeta {
            key: key.to_owned(),
            size: u64::try_from(object.size().unwrap_or_default()).unwrap_or_default(),
            modified: object.last_modified().and_then(timestamp),
        })
    }

    async fn delete_full(&self, full: &str) -> Result<()> {
        match self
            .client
            .delete_object()
            .bucket(self.bucket())
            .key(full)
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => {
                match self.error(full.strip_prefix(&self.root).unwrap_or(full), 0, &error) {
                    error if error.is_not_found() => Ok(()),
                    error => Err(error),
                }
            }
        }
    }
}

struct Page {
    token: Option<String>,
    last: bool,
    objects: VecDeque<Object>,
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), time.subsec_nanos().try_into().ok()?).ok()
}

#[async_trait]
impl ObjectStore for S3Store {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        transfer::get(self, key, None).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        key::check(&self.location, key)?;
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        transfer::get(self, key, Some(range)).await
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        transfer::download(self, key, to).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let size = body.len() as u64;
        let request = self.put_request(key, body)?.customize();
        let limits = deadlines(&self.config.timeouts, size);
        let limits = aws_sdk_s3::config::Builder::new().timeout_config(limits);
        let sent = request.config_override(limits).send().await;
        sent.map(drop)
            .map_err(|error| self.error(key, size, &error))
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        transfer::upload(self, key, from).await
    }

    /// Conditional (`If-None-Match`) where the server knows it, else a look before the write. The
    /// look comes first in any case, because some servers ignore the condition.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        if self.head(key).await?.is_some() {
            return Ok(false);
        }
        let size = body.len() as u64;
        let limits = deadlines(&self.config.timeouts, size);
        // Not retried by the SDK: after a lost answer the condition meets our own object.
        let once = aws_sdk_s3::config::Builder::new()
            .timeout_config(limits)
            .retry_config(RetryConfig::disabled());
        let mut unsure = false;
        for attempt in 1.. {
            let request = self
                .put_request(key, body.clone())?
                .if_none_match("*")
                .customize();
            let error = match request.config_override(once.clone()).send().await {
                Ok(_) => return Ok(true),
                Err(error) => error,
            };
            if classify::status(&error) == Some(501) || error.code() == Some("NotImplemented") {
                self.put(key, body).await?;
                return Ok(true);
            }
            match self.error(key, size, &error) {
                Error::AlreadyExists { .. } if unsure => {
                    return Ok(self.get(key).await? == body);
                }
                Error::AlreadyExists { .. } => return Ok(false),
                error if error.is_retryable() && attempt < self.config.timeouts.attempts => {
                    unsure = true;
                    transfer::pause(attempt).await;
                }
                error => return Err(error),
            }
        }
        Ok(false)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        let request = self
            .client
            .head_object()
            .bucket(self.bucket())
            .key(self.full(key)?);
        match request.send().await {
            Ok(answer) => Ok(Some(ObjectMeta {
                key: key.to_owned(),
                size: u64::try_from(answer.content_length().unwrap_or_default())
                    .unwrap_or_default(),
                modified: answer.last_modified().and_then(timestamp),
            })),
            Err(error) => match self.error(key, 0, &error) {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        if let Err(error) = key::check_prefix(&self.location, prefix) {
            return stream::iter([Err(error)]).boxed();
        }
        let objects = self.objects(format!("{}{prefix}", self.root));
        objects
            .try_filter_map(|object| futures::future::ready(Ok(self.meta(&object))))
            .boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        key::check_prefix(&self.location, prefix)?;
        let full = format!("{}{}", self.root, key::directory(prefix));
        let mut listing = Listing::default();
        let mut token = None;
        loop {
            let answer = self.page(&full, Some("/"), token).await?;
            listing.objects.extend(
                answer
                    .contents()
                    .iter()
                    .filter_map(|object| self.meta(object)),
            );
            let prefixes = answer
                .common_prefixes()
                .iter()
                .filter_map(|prefix| prefix.prefix());
            let prefixes = prefixes.filter_map(|prefix| prefix.strip_prefix(&self.root));
            listing.prefixes.extend(prefixes.map(str::to_owned));
            token = self.next_token(&full, &answer)?;
            if token.is_none() {
                return Ok(listing);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.delete_full(&self.full(key)?).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let full = format!("{}/", self.full(prefix.trim_end_matches('/'))?);
        let deleted = self.objects(full).map_ok(|object| async move {
            let Some(key) = object.key() else {
                return Ok(0);
            };
            self.delete_full(key).await?;
            Ok(u64::from(!key.ends_with('/')))
        });
        deleted
            .try_buffer_unordered(DELETES)
            .try_fold(0, |sum, one| futures::future::ready(Ok(sum + one)))
            .await
    }

    async fn presign_get(&self, key: &str, ttl: Duration) -> Result<String> {
        let ttl = PresigningConfig::expires_in(ttl)
            .map_err(|error| Error::config("ttl", error.to_string()))?;
        let request = self
            .presigner
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key)?);
        let signed = request
            .presigned(ttl)
            .await
            .map_err(|error| self.error(key, 0, &error))?;
        Ok(signed.uri().to_owned())
    }
}
