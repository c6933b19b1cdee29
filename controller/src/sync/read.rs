//! Reads the small files that lie beside a tarball. Anybody may have written them: none takes more memory than its kind ever needs.

use std::{fmt, io::Read, marker::PhantomData};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use jackline_runtime::Failure;
use jackline_storage::ObjectStore;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, SeqAccess, Visitor},
};

/// Longest `velero-backup.json`: the API server stores no object that is larger.
pub const METADATA: u64 = 4 << 20;
/// Longest compressed list.
const PACKED: u64 = 64 << 20;
/// Longest list.
const UNPACKED: u64 = 128 << 20;
/// Most entries of a list: the shortest would fill the memory many times over before the list is too long.
const ENTRIES: usize = 50_000;

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

/// The list in a gzip file of JSON; `None` where the file does not exist (older versions leave files out).
///
/// # Errors
/// When the file exists but cannot be read.
pub async fn read_list<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    key: &str,
) -> Result<Option<Vec<T>>, ReadFileError> {
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
    let Entries(list) = parsed.map_err(|source| ReadFileError::Json {
        key: key.to_owned(),
        source,
    })?;
    Ok(Some(list))
}

/// A list that is not too long; `null`, as Go writes an empty one, is empty.
struct Entries<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Counting<T> {
            type Value = Entries<T>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(to, "a list of at most {ENTRIES} entries")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Entries(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == ENTRIES {
                        return Err(A::Error::custom(format!(
                            "it has more than {ENTRIES} entries"
                        )));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_any(Counting(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use jackline_crds::velero::PodVolumeBackup;
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
            read_list::<u8>(&store, "good").await.unwrap(),
            Some(vec![1, 2])
        );
        assert_eq!(
            read_list::<u8>(&store, "null").await.unwrap(),
            Some(Vec::new())
        );
        assert_eq!(read_list::<u8>(&store, "absent").await.unwrap(), None);
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
            let error = read_list::<u8>(&store, key).await.unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[tokio::test]
    async fn a_swarm_of_entries_is_refused() {
        let store = MemoryStore::new();
        for (key, count) in [("full", ENTRIES), ("swarm", ENTRIES + 1)] {
            let list = format!("[{}]", vec!["1"; count].join(","));
            store.put(key, gzip(&list)).await.unwrap();
        }
        let full = read_list::<u8>(&store, "full").await.unwrap().unwrap();
        assert_eq!(full.len(), ENTRIES);
        let error = read_list::<u8>(&store, "swarm").await.unwrap_err();
        assert!(error.is_damage());
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("more than 50000 entries"), "{why}");
    }

    #[tokio::test]
    async fn entries_that_are_no_volumes_are_damage() {
        let store = MemoryStore::new();
        let deep = format!(r#"[{{"spec":{}"#, "[".repeat(100_000));
        let cases = [
            "{}",
            "[7]",
            r#"[{"metadata":{"name":"x"},"spec":{"node":1}}]"#,
            &deep,
        ];
        for text in cases {
            store.put("x", gzip(text)).await.unwrap();
            let error = read_list::<PodVolumeBackup>(&store, "x").await.unwrap_err();
            assert!(error.is_damage(), "{text:.60}");
            assert_eq!(
                error.to_string(),
                "x is not what it should be",
                "{text:.60}"
            );
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
