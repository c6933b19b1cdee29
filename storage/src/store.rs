//! The one interface to object storage.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;

use crate::Result;
use crate::fs::LocalObject;

/// What a store knows of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key, relative to the store's root.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last write, by the store's clock.
    pub modified: Option<Timestamp>,
}

/// One level of keys, as with the delimiter `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Directories: full prefixes from the root with a trailing slash, sorted.
    pub prefixes: Vec<String>,
    /// Objects on this level, sorted by key.
    pub objects: Vec<ObjectMeta>,
}

/// A flat space of named byte strings. Keys are relative paths; see [`crate::key::check`].
#[async_trait]
pub trait ObjectStore: Send + Sync + Debug + 'static {
    /// Where this is, for messages. Never holds a secret.
    fn location(&self) -> String;

    /// The whole object. `NotFound` if it does not exist.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// Bytes `range` of the object; `ShortRead` where the object has fewer.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// Opens the object where it is a file of this machine; `None` where it has to be asked for. Blocks for as long as
    /// opening a file takes.
    fn local(&self, key: &str) -> Option<Result<LocalObject>> {
        let _ = key;
        None
    }

    /// Writes the object to the file `to` (created or replaced) with bounded memory and returns its
    /// size. After an error the file's content is undefined.
    async fn download(&self, key: &str, to: &Path) -> Result<u64>;

    /// Writes an object, replacing one of the same key. Atomic: readers see all of it or nothing,
    /// and after success it is durable.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// [`put`](Self::put) from a file, with bounded memory. Returns the size in bytes.
    async fn upload(&self, key: &str, from: &Path) -> Result<u64>;

    /// Writes an object only where there is none. `false`: there was one, and it is untouched.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool>;

    /// Size and time of the object, `None` if there is none.
    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>>;

    /// All objects whose key starts with `prefix` (a plain string prefix), at any depth, in byte
    /// order, page by page.
    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>>;

    /// What lies directly in directory `prefix` (with or without its trailing slash; empty: root).
    /// A directory without objects is an empty listing, not an error.
    async fn list_level(&self, prefix: &str) -> Result<Listing>;

    /// Removes an object. An absent one is success.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Removes everything in directory `prefix` and returns how many objects were there. The empty
    /// prefix is refused: nobody may empty a whole store by a missing name.
    async fn delete_prefix(&self, prefix: &str) -> Result<u64>;

    /// A URL by which anybody can read the object for the time `ttl`, without credentials. It is not
    /// checked whether the object exists. Stores without a server give a `file:` or an error.
    async fn presign_get(&self, key: &str, ttl: Duration) -> Result<String>;
}
