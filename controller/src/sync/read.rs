//! Reads the small compressed files that lie beside a tarball.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use serde::de::DeserializeOwned;

/// Longest decompressed file that is read (Velero's own limit).
const LIMIT: u64 = 1 << 30;

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
    #[error("{key} is larger than {LIMIT} bytes")]
    TooLarge {
        /// The object.
        key: String,
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

/// The JSON of a gzip file; `None` where the file does not exist (older versions leave files out).
///
/// # Errors
/// When the file exists but cannot be read.
pub async fn read_json<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    key: &str,
) -> Result<Option<T>, ReadFileError> {
    let body = match store.get(key).await {
        Ok(body) => body,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut json = Vec::new();
    let read = MultiGzDecoder::new(&*body)
        .take(LIMIT + 1)
        .read_to_end(&mut json);
    let size = read.map_err(|source| ReadFileError::Gzip {
        key: key.to_owned(),
        source,
    })?;
    if size as u64 > LIMIT {
        return Err(ReadFileError::TooLarge {
            key: key.to_owned(),
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
        for (key, want) in [
            ("text", "text is not what it should be"),
            ("cut", "cut cannot be decompressed"),
        ] {
            let error = read_json::<Vec<u8>>(&store, key).await.unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }
}
