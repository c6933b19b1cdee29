//! Reads the small files that lie beside a tarball. Anybody may have written them: none takes more memory than its kind ever needs.

use std::{collections::BTreeMap, io::BufReader};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use jackline_crds::velero::{Backup, PodVolumeBackup, PodVolumeBackupSpec, PodVolumeBackupStatus};
use jackline_runtime::Failure;
use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use kube::api::ObjectMeta;
use serde::{
    Deserialize,
    de::{DeserializeOwned, Error},
};

use super::split::{Bounds, SplitError, split};
use crate::scan;

/// Longest `velero-backup.json`: the API server stores no object that is larger.
const METADATA: u64 = 4 << 20;
/// Most memory that `velero-backup.json` takes while it is parsed.
const METADATA_MEMORY: u64 = 32 << 20;
/// Longest compressed list.
const PACKED: u64 = 16 << 20;
/// Longest list, and longest entry: etcd stores no object that is larger.
const UNPACKED: Bounds = Bounds {
    total: 128 << 20,
    entry: 3 << 19,
};
/// As of any list. Velero's entries have about 4 KiB; in the message of a volume that failed three paths may stand, each byte of them as
/// an escape of six.
const VOLUMES: Bounds = Bounds {
    entry: 128 << 10,
    ..UNPACKED
};
/// Most memory that the entries of a list take. Those that Velero writes take about 4 KiB each.
const LIST_MEMORY: usize = 96 << 20;
/// What an entry of a map takes, beside its text.
const PAIR: usize = 128;

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
    /// It would fill the memory.
    #[error("{key} would take more than {limit} bytes of memory")]
    TooHeavy {
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
async fn read_object(
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
    // By its size: another may lie there by now.
    match store.get_range(key, 0..meta.size).await {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The Backup that the bucket holds under a name.
///
/// # Errors
/// When it is no Backup, is larger than one can be, or cannot be read.
pub async fn read_backup(
    store: &dyn ObjectStore,
    name: &str,
) -> Result<Option<Backup>, ReadFileError> {
    let key = backup_object(name, BackupFile::Metadata);
    let Some(body) = read_object(store, &key, METADATA).await? else {
        return Ok(None);
    };
    if scan::weight(&body) > METADATA_MEMORY {
        let limit = METADATA_MEMORY;
        return Err(ReadFileError::TooHeavy { key, limit });
    }
    let parsed = serde_json::from_slice(&body);
    let backup = parsed.map_err(|source| ReadFileError::Json { key, source })?;
    Ok(Some(backup))
}

/// A list of PodVolumeBackups as the bucket has it.
#[derive(Debug, Default, PartialEq)]
pub struct List {
    /// Its entries, with no more metadata than name, labels and annotations.
    pub volumes: Vec<PodVolumeBackup>,
    /// Which entries were too large to be read.
    pub refused: Vec<String>,
}

impl List {
    /// Why the list is not whole.
    pub fn doubt(&self) -> Option<String> {
        (!self.refused.is_empty()).then(|| self.refused.join("; "))
    }
}

/// The PodVolumeBackups in a gzip file; `None` where the file does not exist (older versions leave files out).
///
/// # Errors
/// When the file exists but cannot be read.
pub async fn read_volumes(
    store: &dyn ObjectStore,
    key: &str,
) -> Result<Option<List>, ReadFileError> {
    let Some(body) = read_object(store, key, PACKED).await? else {
        return Ok(None);
    };
    volumes(&body, VOLUMES, LIST_MEMORY)
        .map(Some)
        .map_err(|error| error.of(key, VOLUMES))
}

/// As [`read_volumes`], a list of which as little is kept as `T` has fields of text, and that is of no use in parts.
///
/// # Errors
/// As [`read_volumes`], and when an entry is too large.
pub async fn read_list<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    key: &str,
) -> Result<Option<Vec<T>>, ReadFileError> {
    let Some(body) = read_object(store, key, PACKED).await? else {
        return Ok(None);
    };
    let mut list = Vec::new();
    let refused = entries(&body, UNPACKED, LIST_MEMORY, |entry: T, text| {
        list.push(entry);
        size_of::<T>() + text.len()
    });
    let refused = refused.map_err(|error| error.of(key, UNPACKED))?;
    if !refused.is_empty() {
        return Err(ReadFileError::TooLarge {
            key: key.to_owned(),
            limit: UNPACKED.entry as u64,
        });
    }
    Ok(Some(list))
}

/// Why a list cannot be read, wherever it lies.
enum ListError {
    Split(SplitError),
    Entry(usize, serde_json::Error),
    TooHeavy(usize),
}

impl From<SplitError> for ListError {
    fn from(error: SplitError) -> Self {
        Self::Split(error)
    }
}

impl ListError {
    fn of(self, key: &str, bounds: Bounds) -> ReadFileError {
        let key = key.to_owned();
        let json = |why: String| serde_json::Error::custom(why);
        match self {
            Self::Split(SplitError::Read(source)) => ReadFileError::Gzip { key, source },
            Self::Split(SplitError::TooLarge) => ReadFileError::TooLarge {
                key,
                limit: bounds.total,
            },
            Self::Split(SplitError::Json(why)) => ReadFileError::Json {
                key,
                source: json(why.to_owned()),
            },
            Self::Entry(place, error) => ReadFileError::Json {
                key,
                source: json(format!("entry {place}: {error}")),
            },
            Self::TooHeavy(limit) => ReadFileError::TooHeavy {
                key,
                limit: limit as u64,
            },
        }
    }
}

fn volumes(packed: &[u8], bounds: Bounds, memory: usize) -> Result<List, ListError> {
    let mut volumes = Vec::new();
    let refused = entries(packed, bounds, memory, |entry: Entry, _| {
        let volume = entry.kept();
        let weight = weight(&volume);
        volumes.push(volume);
        weight
    })?;
    Ok(List { volumes, refused })
}

/// Gives every entry to `keep`, which says how much memory that takes. Those that are too large are returned.
fn entries<T: DeserializeOwned>(
    packed: &[u8],
    bounds: Bounds,
    memory: usize,
    mut keep: impl FnMut(T, &[u8]) -> usize,
) -> Result<Vec<String>, ListError> {
    let unpacked = BufReader::with_capacity(64 << 10, MultiGzDecoder::new(packed));
    let (mut refused, mut taken) = (Vec::new(), 0_usize);
    split(unpacked, bounds, |place, text| {
        let Some(text) = text else {
            let limit = bounds.entry;
            let why = format!("entry {place} of the list is larger than {limit} bytes");
            refused.push(why);
            return Ok(());
        };
        let entry = serde_json::from_slice(text).map_err(|error| ListError::Entry(place, error))?;
        taken = taken.saturating_add(keep(entry, text));
        if taken > memory {
            return Err(ListError::TooHeavy(memory));
        }
        Ok(())
    })?;
    Ok(refused)
}

/// An entry, without the metadata that nobody needs: owners and managers of fields may be there by the thousand.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: PodVolumeBackupSpec,
    #[serde(default)]
    status: Option<PodVolumeBackupStatus>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Entry {
    fn kept(self) -> PodVolumeBackup {
        PodVolumeBackup {
            metadata: ObjectMeta {
                name: self.metadata.name,
                labels: self.metadata.labels,
                annotations: self.metadata.annotations,
                ..ObjectMeta::default()
            },
            spec: self.spec,
            status: self.status,
        }
    }
}

/// How much memory an entry takes, about.
pub(super) fn weight(volume: &PodVolumeBackup) -> usize {
    let (metadata, spec) = (&volume.metadata, &volume.spec);
    let maps = [
        metadata.labels.as_ref(),
        metadata.annotations.as_ref(),
        Some(&spec.tags),
        Some(&spec.uploader_settings),
    ];
    let pairs: usize = maps.into_iter().flatten().map(BTreeMap::len).sum();
    let text = serde_json::to_vec(volume).map_or(0, |text| text.len());
    size_of::<PodVolumeBackup>() + text + pairs * PAIR
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

    /// An entry with more members of its metadata.
    fn entry(name: &str, metadata: &str) -> String {
        format!(
            r#"{{"metadata":{{"name":"{name}"{metadata}}},"spec":{{"node":"n","pod":{{}},"volume":"v","backupStorageLocation":"d",
                "repoIdentifier":"r"}}}}"#
        )
    }

    fn names(list: &List) -> Vec<&str> {
        let names = list.volumes.iter().map(|volume| &volume.metadata.name);
        names.flatten().map(String::as_str).collect()
    }

    #[tokio::test]
    async fn files_are_read_and_damage_is_named() {
        let store = MemoryStore::new();
        let whole = gzip(&format!("[{}, {}]", entry("a", ""), entry("b", "")));
        store.put("good", whole.clone()).await.unwrap();
        store.put("null", gzip("null")).await.unwrap();
        store.put("text", gzip("nonsense")).await.unwrap();
        store
            .put("cut", whole.slice(..whole.len() - 9))
            .await
            .unwrap();

        let read = async |key| read_volumes(&store, key).await.unwrap();
        assert_eq!(names(&read("good").await.unwrap()), ["a", "b"]);
        assert_eq!(read("null").await, Some(List::default()));
        assert_eq!(read("absent").await, None);
        // A thousandth of what it unpacks to.
        store
            .put("bomb", gzip(&" ".repeat(UNPACKED.total as usize + 1)))
            .await
            .unwrap();
        for (key, want) in [
            ("bomb", "bomb is larger than 134217728 bytes"),
            ("text", "text is not what it should be"),
            ("cut", "cut cannot be decompressed"),
        ] {
            let error = read_volumes(&store, key).await.unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[tokio::test]
    async fn an_entry_that_is_too_large_keeps_no_other() {
        let store = MemoryStore::new();
        let swarm = format!(r#","managedFields":[{}{{}}]"#, "{},".repeat(10_000_000));
        let list = [entry("a", ""), entry("b", &swarm), entry("c", "")].join(",");
        store.put("x", gzip(&format!("[{list}]"))).await.unwrap();
        let read = read_volumes(&store, "x").await.unwrap().unwrap();
        assert_eq!(names(&read), ["a", "c"]);
        let why = "entry 2 of the list is larger than 131072 bytes";
        assert_eq!(read.doubt().as_deref(), Some(why));
    }

    #[tokio::test]
    async fn the_longest_entry_that_an_agent_writes_is_read() {
        let store = MemoryStore::new();
        let path = "\u{1}".repeat(4096);
        let message = format!("3 files could not be read; {path}: a; {path}: b; {path}: c");
        let mut volume: serde_json::Value = serde_json::from_str(&entry("a", "")).unwrap();
        volume["status"] = serde_json::json!({"phase": "Failed", "message": message});
        let list = gzip(&serde_json::json!([volume]).to_string());
        store.put("x", list).await.unwrap();
        let read = read_volumes(&store, "x").await.unwrap().unwrap();
        assert_eq!((read.volumes.len(), read.doubt()), (1, None));
    }

    #[test]
    fn of_an_entry_s_metadata_only_what_is_needed_is_kept() {
        let managers = r#","managedFields":[{},{}],"ownerReferences":7,"labels":{"l":"1"},"annotations":{"a":"2"}"#;
        let list = gzip(&format!("[{}]", entry("a", managers)));
        let list = volumes(&list, UNPACKED, LIST_MEMORY).ok().unwrap();
        let want = ObjectMeta {
            name: Some("a".to_owned()),
            labels: Some([("l".to_owned(), "1".to_owned())].into()),
            annotations: Some([("a".to_owned(), "2".to_owned())].into()),
            ..ObjectMeta::default()
        };
        assert_eq!(list.volumes[0].metadata, want);
    }

    #[test]
    fn entries_that_would_fill_the_memory_are_refused() {
        let labels: Vec<String> = (0..100_000).map(|n| format!(r#""{n}":"""#)).collect();
        let labels = format!(r#","labels":{{{}}}"#, labels.join(","));
        let of = |count| gzip(&format!("[{}]", vec![entry("a", &labels); count].join(",")));
        assert!(volumes(&of(2), UNPACKED, 32 << 20).is_ok());
        let error = volumes(&of(3), UNPACKED, 32 << 20).err().unwrap();
        let error = error.of("x", UNPACKED);
        assert!(error.is_damage());
        let want = "x would take more than 33554432 bytes of memory";
        assert_eq!(error.to_string(), want);
    }

    #[test]
    fn the_list_of_twenty_thousand_volumes_is_read() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/velero-1.14/bucket/backups/first/first-podvolumebackups.json.gz"
        );
        let list = std::fs::read(path).unwrap();
        let list = volumes(&list, VOLUMES, LIST_MEMORY).ok().unwrap();
        assert_eq!((list.volumes.len(), list.doubt()), (3, None));
        for volume in &list.volumes {
            assert!(weight(volume) < LIST_MEMORY / 20_000, "{}", weight(volume));
        }
    }

    #[tokio::test]
    async fn other_lists_are_read_as_carefully() {
        let store = MemoryStore::new();
        let read = async |text: &str| {
            store.put("x", gzip(text)).await.unwrap();
            read_list::<u64>(&store, "x").await
        };
        assert_eq!(read("[1, 2]").await.unwrap(), Some(vec![1, 2]));
        assert_eq!(read_list::<u64>(&store, "y").await.unwrap(), None);
        let long = format!("[1,\"{}\"]", "a".repeat(UNPACKED.entry));
        let error = read(&long).await.unwrap_err();
        assert_eq!(error.to_string(), "x is larger than 1572864 bytes");
        let swarm = format!("[{}1]", "1,".repeat(LIST_MEMORY / 9));
        let error = read(&swarm).await.unwrap_err();
        let want = "x would take more than 100663296 bytes of memory";
        assert_eq!(error.to_string(), want);
    }

    #[tokio::test]
    async fn entries_that_are_no_volumes_are_damage() {
        let store = MemoryStore::new();
        let deep = format!(r#"[{{"spec":{}"#, "[".repeat(50_000));
        let closed = format!("{deep}{}}}]", "]".repeat(50_000));
        let cases = [
            "{}",
            "[7]",
            r#"[{"metadata":{"name":"x"},"spec":{"node":1}}]"#,
            &deep,
            &closed,
        ];
        for text in cases {
            store.put("x", gzip(text)).await.unwrap();
            let error = read_volumes(&store, "x").await.unwrap_err();
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

    #[tokio::test]
    async fn a_backup_that_would_fill_the_memory_is_not_parsed() {
        let store = MemoryStore::new();
        let read = async |text: String| {
            let key = "backups/b/velero-backup.json";
            store.put(key, text.into()).await.unwrap();
            read_backup(&store, "b").await
        };
        assert!(read_backup(&store, "b").await.unwrap().is_none());
        let plain = r#"{"metadata":{"name":"b"}}"#.to_owned();
        assert!(read(plain).await.unwrap().is_some());
        let hooks = vec!["{}"; 1_000_000].join(",");
        let swarm = format!(r#"{{"spec":{{"hooks":{{"resources":[{hooks}]}}}}}}"#);
        let error = read(swarm).await.unwrap_err();
        assert!(error.is_damage());
        let want = "backups/b/velero-backup.json would take more than 33554432 bytes of memory";
        assert_eq!(error.to_string(), want);
    }
}
