//! A store between an operation and another store: it delays and fails as a test says, and writes down what was asked.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use jackline_storage::{Error, Listing, ObjectMeta, ObjectStore, Result};
use parking_lot::Mutex;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pass,
    /// It takes so long, then it passes.
    Delay(Duration),
    /// The server is overloaded.
    Fail,
    /// It takes effect, but nobody hears of it.
    Silence,
    /// It takes no effect, and nobody hears of it.
    Never,
    /// A deletion is at the server: it takes so long, then it takes effect, whether or not anybody still waits for it.
    Late(Duration),
}

type Decide = Box<dyn Fn(&str) -> Fate + Send + Sync>;

pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    decide: Mutex<Arc<Decide>>,
    asked: Mutex<Vec<String>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            decide: Mutex::new(Arc::new(Box::new(|_| Fate::Pass))),
            asked: Mutex::default(),
        })
    }

    /// From now on `decide` is asked about each request: `get`, `put`, `head`, `list` or `delete`, a blank, the key.
    pub fn on(&self, decide: impl Fn(&str) -> Fate + Send + Sync + 'static) {
        *self.decide.lock() = Arc::new(Box::new(decide));
    }

    /// The requests since the last call that begin with `start`.
    pub fn asked(&self, start: &str) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock());
        asked.retain(|request| request.starts_with(start));
        asked
    }

    fn fate(&self, what: &str, key: &str) -> Fate {
        let request = format!("{what} {key}");
        self.asked.lock().push(request.clone());
        let decide = Arc::clone(&self.decide.lock());
        decide(&request)
    }

    async fn ask<T>(
        &self,
        what: &str,
        key: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        meet(self.fate(what, key), key, work).await
    }
}

async fn meet<T>(fate: Fate, key: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match fate {
        Fate::Pass => work.await,
        Fate::Delay(time) | Fate::Late(time) => {
            tokio::time::sleep(time).await;
            work.await
        }
        Fate::Fail => Err(Error::Busy {
            location: "faulty".into(),
            key: key.into(),
            message: "as the test says".into(),
        }),
        Fate::Never => std::future::pending().await,
        Fate::Silence => {
            let _ = work.await;
            std::future::pending().await
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.ask("get", key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.ask("get", key, self.inner.get_range(key, range)).await
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        self.ask("get", key, self.inner.download(key, to)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.ask("put", key, self.inner.put(key, body)).await
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        self.ask("put", key, self.inner.upload(key, from)).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        self.ask("put", key, self.inner.put_if_absent(key, body))
            .await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        self.ask("head", key, self.inner.head(key)).await
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        let prefix = prefix.to_owned();
        let listed = async move {
            let all = self.inner.list(&prefix).collect::<Vec<_>>();
            let asked = self.ask("list", &prefix, async { Ok(all.await) }).await;
            futures::stream::iter(asked.unwrap_or_else(|error| vec![Err(error)]))
        };
        futures::stream::once(listed).flatten().boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        self.ask("list", prefix, self.inner.list_level(prefix))
            .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let fate = self.fate("delete", key);
        let (inner, name) = (Arc::clone(&self.inner), key.to_owned());
        match fate {
            Fate::Late(_) => {
                let late = async move { meet(fate, &name, inner.delete(&name)).await };
                tokio::spawn(late).await.unwrap()
            }
            _ => meet(fate, key, inner.delete(key)).await,
        }
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.ask("delete", prefix, self.inner.delete_prefix(prefix))
            .await
    }

    async fn presign_get(&self, key: &str, ttl: Duration) -> Result<String> {
        self.inner.presign_get(key, ttl).await
    }
}
