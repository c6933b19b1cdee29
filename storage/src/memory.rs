//! Objects in memory: for tests, and for reading a fixture that was loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use parking_lot::RwLock;

use crate::{Error, Listing, ObjectMeta, ObjectStore, Result, key};

const LOCATION: &str = "memory:";

/// A store in this process's memory.
#[derive(Default)]
pub struct MemoryStore {
    objects: RwLock<BTreeMap<String, (Bytes, Timestamp)>>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryStore({} objects)", self.objects.read().len())
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn body(&self, key: &str) -> Result<Bytes> {
        key::check(LOCATION, key)?;
        match self.objects.read().get(key) {
            Some((body, _)) => Ok(body.clone()),
            None => Err(Error::NotFound {
                location: LOCATION.into(),
                key: key.into(),
            }),
        }
    }

    fn matching(&self, prefix: &str) -> Vec<ObjectMeta> {
        let objects = self.objects.read();
        let from = objects.range::<str, _>((
            std::ops::Bound::Included(prefix),
            std::ops::Bound::Unbounded,
        ));
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| meta(key, value))
            .collect()
    }
}

fn meta(key: &str, (body, modified): &(Bytes, Timestamp)) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        size: body.len() as u64,
        modified: Some(*modified),
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn location(&self) -> String {
        LOCATION.to_owned()
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.body(key)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let body = self.body(key)?;
        let size = body.len() as u64;
        if range.end > size || range.start > range.end {
            return Err(Error::ShortRead {
                location: LOCATION.into(),
                key: key.into(),
                expected: range.end.saturating_sub(range.start),
                got: size.saturating_sub(range.start),
            });
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        let body = self.body(key)?;
        let written = tokio::fs::write(to, &body).await;
        written.map_err(|error| Error::local(LOCATION, key, to, &error))?;
        Ok(body.len() as u64)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        key::check(LOCATION, key)?;
        self.objects
            .write()
            .insert(key.to_owned(), (body, Timestamp::now()));
        Ok(())
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        key::check(LOCATION, key)?;
        let read = tokio::fs::read(from).await;
        let body = read.map_err(|error| Error::local(LOCATION, key, from, &error))?;
        let size = body.len() as u64;
        self.put(key, body.into()).await?;
        Ok(size)
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        key::check(LOCATION, key)?;
        let mut objects = self.objects.write();
        if objects.contains_key(key) {
            return Ok(false);
        }
        objects.insert(key.to_owned(), (body, Timestamp::now()));
        Ok(true)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        key::check(LOCATION, key)?;
        Ok(self.objects.read().get(key).map(|value| meta(key, value)))
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        if let Err(error) = key::check_prefix(LOCATION, prefix) {
            return stream::iter([Err(error)]).boxed();
        }
        stream::iter(self.matching(prefix).into_iter().map(Ok)).boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        key::check_prefix(LOCATION, prefix)?;
        let directory = key::directory(prefix);
        let mut listing = Listing::default();
        for object in self.matching(&directory) {
            match object.key[directory.len()..].split_once('/') {
                None => listing.objects.push(object),
                Some((name, _)) => {
                    let prefix = format!("{directory}{name}/");
                    if listing.prefixes.last() != Some(&prefix) {
                        listing.prefixes.push(prefix);
                    }
                }
            }
        }
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        key::check(LOCATION, key)?;
        self.objects.write().remove(key);
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let directory = key::directory(prefix);
        key::check(LOCATION, directory.trim_end_matches('/'))?;
        let mut objects = self.objects.write();
        let before = objects.len();
        objects.retain(|key, _| !key.starts_with(&directory));
        Ok((before - objects.len()) as u64)
    }

    async fn presign_get(&self, key: &str, _ttl: Duration) -> Result<String> {
        key::check(LOCATION, key)?;
        Err(Error::Other {
            location: LOCATION.into(),
            key: key.into(),
            message: "objects in memory have no URL".into(),
        })
    }
}
