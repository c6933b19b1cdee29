//! Reads the small files that lie beside a tarball. Anybody may have written them: none takes more memory than its kind ever needs.

use std::io::Read;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use serde::de::DeserializeOwned;

/// Longest `velero-backup.json`: the API server stores no object that is larger.
pub const METADATA: u64 = 4 << 20;
/// Longest compressed list.
const PACKED: u64 = 64 << 20;
/// Longest list.
const UNPACKED: u64 = 128 << 20;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// The bucket did not give it.
    #[error(transparent)]
    Storage(#[from] jackline_storage::Error),
    /// It is not gzip, or it is cut off.
    #[error("{key} cannot be decompressed")]
    Gzip {
        /// The object.
        key: String,
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// It grows beyond the limit.
    #[error("{key} is larger than {limit} bytes")]
    TooLarge {
        /// The object.
        key: String,
        /// The limit.
        limit: u64,
    },
    /// It is not the JSON that it should be.
    #[error("{key} is not what it should be")]
    Json {
        /// The object.
        key: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
}

impl ReadFileError {
    /// Whether the file is there and useless, which no other attempt changes.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Storage(_))
    }
}

impl From<ReadFileError> for Failure {
    fn from(error: ReadFileError) -> Self {
        match error {
            ReadFileError::Storage(error) if error.is_retryable() => {
                Self::transient(error.reason(), error)
            }
            ReadFileError::Storage(error) => Self::terminal(error.reason(), error),
            damaged => Self::terminal("FileDamaged", damaged),
        }
    }
}

/// An object of at most `limit` bytes; `None` where it does not exist.
///
/// # Errors
/// When it is larger, or cannot be read.
pub async fn read_object(
    store: &dyn ObjectStore,
    key: &str,
    limit: u64,
) -> Result<Option<Bytes>, ReadFileError> {
    let Some(meta) = store.head(key).await? else {
        return Ok(None);
    };
    if meta.size > limit {
        return Err(ReadFileError::TooLarge {
            key: key.to_owned(),
            limit,
        });
    }
    match store.get(key).await {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The JSON of a gzip file; `None` where the file does not exist (older versions leave files out).
///
/// # Errors
/// When the file exists but cannot be read.
pub async fn read_json<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    key: &str,
) -> Result<Option<T>, ReadFileError> {
    let Some(body) = read_object(store, key, PACKED).await? else {
        return Ok(None);
    };
    let mut json = Vec::new();
    let read = MultiGzDecoder::new(&*body)
        .take(UNPACKED + 1)
        .read_to_end(&mut json);
    let size = read.map_err(|source| ReadFileError::Gzip {
        key: key.to_owned(),
        source,
    })?;
    if size as u64 > UNPACKED {
        return Err(ReadFileError::TooLarge {
            key: key.to_owned(),
            limit: UNPACKED,
        });
    }
    let parsed = serde_json::from_slice(&json);
    parsed.map(Some).map_err(|source| ReadFileError::Json {
        key: key.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use jackline_storage::memory::MemoryStore;

    use super::*;

    fn gzip(text: &str) -> bytes::Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap().into()
    }

    #[tokio::test]
    async fn files_are_read_and_damage_is_named() {
        let store = MemoryStore::new();
        store.put("good", gzip("[1, 2]")).await.unwrap();
        store.put("null", gzip("null")).await.unwrap();
        store.put("text", gzip("nonsense")).await.unwrap();
        let whole = gzip("[1, 2, 3, 4, 5, 6]");
        store
            .put("cut", whole.slice(..whole.len() - 9))
            .await
            .unwrap();

        assert_eq!(
            read_json::<Vec<u8>>(&store, "good").await.unwrap(),
            Some(vec![1, 2])
        );
        assert_eq!(
            read_json::<Option<Vec<u8>>>(&store, "null").await.unwrap(),
            Some(None)
        );
        assert_eq!(read_json::<Vec<u8>>(&store, "absent").await.unwrap(), None);
        // A thousandth of what it unpacks to.
        store
            .put("bomb", gzip(&" ".repeat(UNPACKED as usize + 1)))
            .await
            .unwrap();
        for (key, want) in [
            ("bomb", "bomb is larger than 134217728 bytes"),
            ("text", "text is not what it should be"),
            ("cut", "cut cannot be decompressed"),
        ] {
            let error = read_json::<Vec<u8>>(&store, key).await.unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_fetched() {
        let store = MemoryStore::new();
        store.put("x", "12345".into()).await.unwrap();
        let whole = read_object(&store, "x", 5).await.unwrap();
        assert_eq!(whole.as_deref(), Some(&b"12345"[..]));
        assert_eq!(read_object(&store, "y", 5).await.unwrap(), None);
        let error = read_object(&store, "x", 4).await.unwrap_err();
        assert_eq!(error.to_string(), "x is larger than 4 bytes");
        assert!(error.is_damage());
    }
}
