//! What every store reports: operations by outcome, their time, bytes in both directions.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::ready;
use futures::stream::{self, BoxStream, StreamExt};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, exponential_buckets};

use crate::{Listing, LocalObject, ObjectMeta, ObjectStore, Result};

struct Families {
    operations: IntCounterVec,
    seconds: HistogramVec,
    bytes: IntCounterVec,
}

impl Families {
    fn new() -> prometheus::Result<Families> {
        let operations = Opts::new(
            "jackline_storage_operations_total",
            "Object storage operations by outcome: ok, or the reason of the error.",
        );
        let seconds = HistogramOpts::new(
            "jackline_storage_operation_duration_seconds",
            "Time of an object storage operation with its retries.",
        );
        let bytes = Opts::new(
            "jackline_storage_bytes_total",
            "Bytes of object bodies that were read or written.",
        );
        Ok(Families {
            operations: IntCounterVec::new(operations, &["operation", "result"])?,
            seconds: HistogramVec::new(
                seconds.buckets(exponential_buckets(0.002, 4.0, 9)?),
                &["operation"],
            )?,
            bytes: IntCounterVec::new(bytes, &["direction"])?,
        })
    }
}

static FAMILIES: LazyLock<prometheus::Result<Families>> = LazyLock::new(Families::new);

/// Makes the metrics of all [`Metered`] stores of this process part of `registry`.
pub fn register(registry: &Registry) -> prometheus::Result<()> {
    let families = match &*FAMILIES {
        Ok(families) => families,
        Err(error) => return Err(prometheus::Error::Msg(error.to_string())),
    };
    registry.register(Box::new(families.operations.clone()))?;
    registry.register(Box::new(families.seconds.clone()))?;
    registry.register(Box::new(families.bytes.clone()))
}

fn count<T>(operation: &str, started: Instant, result: &Result<T>) {
    if let Ok(families) = &*FAMILIES {
        let outcome = result
            .as_ref()
            .map_or_else(|error| error.reason(), |_| "ok");
        families
            .operations
            .with_label_values(&[operation, outcome])
            .inc();
        let seconds = started.elapsed().as_secs_f64();
        families
            .seconds
            .with_label_values(&[operation])
            .observe(seconds);
    }
}

pub(crate) fn count_bytes(direction: &str, bytes: u64) {
    if let Ok(families) = &*FAMILIES {
        families.bytes.with_label_values(&[direction]).inc_by(bytes);
    }
}

/// A store whose operations are counted in the process's metrics.
#[derive(Debug, Clone)]
pub struct Metered {
    inner: Arc<dyn ObjectStore>,
}

impl Metered {
    /// Counts the operations of `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Metered {
        Metered { inner }
    }
}

#[async_trait]
impl ObjectStore for Metered {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let started = Instant::now();
        let result = self.inner.get(key).await;
        count("get", started, &result);
        count_bytes("read", result.as_ref().map_or(0, |body| body.len() as u64));
        result
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let started = Instant::now();
        let result = self.inner.get_range(key, range).await;
        count("get_range", started, &result);
        count_bytes("read", result.as_ref().map_or(0, |body| body.len() as u64));
        result
    }

    fn local(&self, key: &str) -> Option<Result<LocalObject>> {
        let started = Instant::now();
        let result = self.inner.local(key)?;
        count("open", started, &result);
        Some(result.map(LocalObject::metered))
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        let started = Instant::now();
        let result = self.inner.download(key, to).await;
        count("download", started, &result);
        count_bytes("read", *result.as_ref().unwrap_or(&0));
        result
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let (started, size) = (Instant::now(), body.len() as u64);
        let result = self.inner.put(key, body).await;
        count("put", started, &result);
        count_bytes("written", result.as_ref().map_or(0, |()| size));
        result
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        let started = Instant::now();
        let result = self.inner.upload(key, from).await;
        count("upload", started, &result);
        count_bytes("written", *result.as_ref().unwrap_or(&0));
        result
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        let (started, size) = (Instant::now(), body.len() as u64);
        let result = self.inner.put_if_absent(key, body).await;
        count("put_if_absent", started, &result);
        count_bytes("written", if matches!(result, Ok(true)) { size } else { 0 });
        result
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        let started = Instant::now();
        let result = self.inner.head(key).await;
        count("head", started, &result);
        result
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        let (started, mut counted) = (Instant::now(), false);
        let items = self
            .inner
            .list(prefix)
            .map(Some)
            .chain(stream::once(ready(None)));
        // Counted once: by its error, or when the end was seen.
        let count_end = move |item: Option<Result<ObjectMeta>>| {
            let outcome = match &item {
                Some(Ok(_)) => None,
                Some(Err(error)) => Some(Err(error.clone())),
                None => Some(Ok(())),
            };
            if let Some(outcome) = outcome.filter(|_| !counted) {
                counted = true;
                count("list", started, &outcome);
            }
            ready(item)
        };
        items.filter_map(count_end).boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        let started = Instant::now();
        let result = self.inner.list_level(prefix).await;
        count("list_level", started, &result);
        result
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let started = Instant::now();
        let result = self.inner.delete(key).await;
        count("delete", started, &result);
        result
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let started = Instant::now();
        let result = self.inner.delete_prefix(prefix).await;
        count("delete_prefix", started, &result);
        result
    }

    async fn presign_get(&self, key: &str, ttl: Duration) -> Result<String> {
        self.inner.presign_get(key, ttl).await
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;
    use crate::memory::MemoryStore;

    #[tokio::test]
    async fn operations_are_counted_by_outcome() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let store = Metered::new(Arc::new(MemoryStore::new()));
        store.put("a", Bytes::from_static(b"four")).await.unwrap();
        store.get("a").await.unwrap();
        store.get("b").await.unwrap_err();
        assert_eq!(store.list("").count().await, 1);
        assert_eq!(store.list("/").count().await, 1);
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            r#"jackline_storage_operations_total{operation="put",result="ok"} 1"#,
            r#"jackline_storage_operations_total{operation="get",result="ok"} 1"#,
            r#"jackline_storage_operations_total{operation="get",result="NotFound"} 1"#,
            r#"jackline_storage_operations_total{operation="list",result="ok"} 1"#,
            r#"jackline_storage_operations_total{operation="list",result="InvalidKey"} 1"#,
            r#"jackline_storage_bytes_total{direction="written"} 4"#,
            r#"jackline_storage_bytes_total{direction="read"} 4"#,
            r#"jackline_storage_operation_duration_seconds_count{operation="get"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
