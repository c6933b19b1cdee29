//! A store inside a store: every key lies under one prefix, nothing outside can be named.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use crate::{Listing, LocalObject, ObjectMeta, ObjectStore, Result, key};

/// The part of a store that lies in one directory. Errors name the full key of the outer store.
#[derive(Debug, Clone)]
pub struct Scoped {
    inner: Arc<dyn ObjectStore>,
    /// Empty or with a trailing slash.
    root: String,
}

impl Scoped {
    /// The directory `prefix` of `inner` as a store of its own. Slashes at both ends are ignored.
    pub fn new(inner: Arc<dyn ObjectStore>, prefix: &str) -> Scoped {
        Scoped {
            inner,
            root: key::directory(prefix.trim_start_matches('/')),
        }
    }

    fn full(&self, key: &str) -> Result<String> {
        key::check(&self.location(), key)?;
        Ok(format!("{}{key}", self.root))
    }

    fn strip(&self, mut meta: ObjectMeta) -> ObjectMeta {
        meta.key.drain(..self.root.len().min(meta.key.len()));
        meta
    }
}

#[async_trait]
impl ObjectStore for Scoped {
    fn location(&self) -> String {
        let inner = self.inner.location();
        match self.root.trim_end_matches('/') {
            "" => inner,
            root => format!("{}/{root}", inner.trim_end_matches('/')),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.inner.get(&self.full(key)?).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(&self.full(key)?, range).await
    }

    fn local(&self, key: &str) -> Option<Result<LocalObject>> {
        match self.full(key) {
            Ok(key) => self.inner.local(&key),
            Err(error) => Some(Err(error)),
        }
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        self.inner.download(&self.full(key)?, to).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.inner.put(&self.full(key)?, body).await
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        self.inner.upload(&self.full(key)?, from).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        self.inner.put_if_absent(&self.full(key)?, body).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        Ok(self
            .inner
            .head(&self.full(key)?)
            .await?
            .map(|meta| self.strip(meta)))
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        if let Err(error) = key::check_prefix(&self.location(), prefix) {
            return stream::iter([Err(error)]).boxed();
        }
        let objects = self.inner.list(&format!("{}{prefix}", self.root));
        objects
            .map(|item| item.map(|meta| self.strip(meta)))
            .boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        key::check_prefix(&self.location(), prefix)?;
        let listing = self
            .inner
            .list_level(&format!("{}{prefix}", self.root))
            .await?;
        let cut = |prefix: String| prefix[self.root.len().min(prefix.len())..].to_owned();
        Ok(Listing {
            prefixes: listing.prefixes.into_iter().map(cut).collect(),
            objects: listing
                .objects
                .into_iter()
                .map(|meta| self.strip(meta))
                .collect(),
        })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(&self.full(key)?).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.inner
            .delete_prefix(&self.full(prefix.trim_end_matches('/'))?)
            .await
    }

    async fn presign_get(&self, key: &str, ttl: Duration) -> Result<String> {
        self.inner.presign_get(&self.full(key)?, ttl).await
    }
}
