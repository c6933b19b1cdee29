//! The objects of a backup, on disk, ready to be read in any order.
//!
//! The tarball is streamed once into one unnamed file; names in it never become paths. What is kept in memory is where each object
//! lies, and how much of it its content would take: about 150 bytes an object.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jackline_storage::{
    ObjectStore,
    layout::{BackupFile, backup_object},
};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    scan,
    tarball::{self, Limits, TarballError},
};

/// Most memory that an object takes when it is parsed, and all of them together that are being made, in all restores.
const MEMORY: u32 = 64 << 20;
/// Memory for an object that is looked up beside others: claims, volumes, pods and namespaces are a hundred times smaller.
const BESIDE: u32 = 8 << 20;
/// What is left of it.
static ROOM: Semaphore = Semaphore::const_new(MEMORY as usize);

/// Why the objects of a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The bucket did not give the tarball.
    #[error(transparent)]
    Storage(#[from] jackline_storage::Error),
    /// It is damaged, or holds what it must not.
    #[error("{key} is refused")]
    Tarball {
        /// The object in the bucket.
        key: String,
        /// What is wrong with it.
        #[source]
        source: TarballError,
    },
    /// Packed it is larger than it may be unpacked.
    #[error("{key} has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// The object in the bucket.
        key: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Temporary files cannot be written.
    #[error("temporary files in {path} cannot be written")]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The thread that reads has died.
    #[error("reading the tarball was interrupted")]
    Interrupted,
}

impl CatalogError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_retryable(),
            Self::Tarball { .. } | Self::TooLarge { .. } => false,
            Self::Scratch { .. } | Self::Interrupted => true,
        }
    }
}

/// Memory that is taken for an object.
pub type Room = SemaphorePermit<'static>;

/// One object of the backup.
#[derive(Debug, Clone, Default)]
pub struct Item {
    /// `None` for objects outside of namespaces.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    offset: u64,
    length: u32,
    /// Bytes of memory that its content takes.
    weight: u32,
}

impl Item {
    /// Whether it may be parsed at all.
    fn fits(&self) -> Result<(), String> {
        let weight = self.weight;
        match weight > MEMORY {
            true => Err(format!(
                "parsed it takes up to {weight} bytes of memory; at most {MEMORY} are given to it"
            )),
            false => Ok(()),
        }
    }
}

/// All objects of a backup.
#[derive(Debug)]
pub struct Catalog {
    file: Arc<File>,
    /// `plural[.group]` → objects, in the tarball's order.
    resources: BTreeMap<String, Vec<Item>>,
}

impl Catalog {
    /// Of a backup without objects.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            file: Arc::new(tempfile::tempfile().unwrap()),
            resources: BTreeMap::new(),
        }
    }

    /// Fetches the tarball of a backup.
    ///
    /// # Errors
    /// When it is missing, damaged or hostile.
    pub async fn fetch(
        store: &dyn ObjectStore,
        backup: &str,
        scratch: &Path,
    ) -> Result<Self, CatalogError> {
        let key = backup_object(backup, BackupFile::Contents);
        let limit = Limits::default().total;
        if let Some(meta) = store.head(&key).await?
            && meta.size > limit
        {
            let size = meta.size;
            return Err(CatalogError::TooLarge { key, size, limit });
        }
        let failed = |source| CatalogError::Scratch {
            path: scratch.to_owned(),
            source,
        };
        let tarball = tempfile::Builder::new()
            .prefix("restore-")
            .tempfile_in(scratch)
            .map_err(failed)?;
        store.download(&key, tarball.path()).await?;
        let (reader, spool) = (
            File::open(tarball.path()).map_err(failed)?,
            tempfile::tempfile_in(scratch).map_err(failed)?,
        );
        // The file lives on without its name until it is read.
        drop(tarball);
        let read = tokio::task::spawn_blocking(move || Self::read_from(reader, spool));
        read.await
            .map_err(|_| CatalogError::Interrupted)?
            .map_err(|source| CatalogError::Tarball { key, source })
    }

    fn read_from(tarball: impl io::Read, spool: File) -> Result<Self, TarballError> {
        let mut resources: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        let mut offset = 0;
        let mut writer = io::BufWriter::with_capacity(1 << 20, spool);
        tarball::read(tarball, Limits::default(), |entry, content| {
            // The same objects lie below their versions once more.
            if entry.version.is_some() {
                return Ok(());
            }
            writer.write_all(&content)?;
            let item = Item {
                namespace: entry.namespace,
                name: entry.name,
                offset,
                length: u32::try_from(content.len())?,
                weight: u32::try_from(scan::weight(&content)).unwrap_or(u32::MAX),
            };
            offset += content.len() as u64;
            resources.entry(entry.resource).or_default().push(item);
            Ok(())
        })?;
        for (resource, items) in &resources {
            let mut seen = BTreeSet::new();
            let mut places = items.iter().map(|item| (&item.namespace, &item.name));
            if let Some((_, name)) = places.find(|place| !seen.insert(*place)) {
                return Err(TarballError::Twice(format!("{resource} {name}")));
            }
        }
        let spool = writer
            .into_inner()
            .map_err(|error| TarballError::Read(error.into_error()))?;
        Ok(Self {
            file: Arc::new(spool),
            resources,
        })
    }

    /// The kinds in the backup.
    pub fn kinds(&self) -> impl Iterator<Item = &String> {
        self.resources.keys()
    }

    /// The objects of a kind.
    pub fn items(&self, resource: &str) -> &[Item] {
        self.resources.get(resource).map_or(&[], Vec::as_slice)
    }

    /// One object by name. It is looked up beside others that are in memory: one that is larger than any of its sort is not given.
    pub fn find(&self, resource: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        let item = self
            .items(resource)
            .iter()
            .find(|item| item.namespace.as_deref() == namespace && item.name == name)?;
        (item.weight <= BESIDE).then(|| self.read(item).ok())?
    }

    /// Waits until there is memory for an object, and reads it; the memory is taken for as long as the room is held. Whoever holds one
    /// must not wait for another, nor for what may take long: nobody gets past one that waits for much.
    ///
    /// # Errors
    /// As [`Catalog::read`].
    pub async fn open(&self, item: &Item) -> Result<(Room, Value), String> {
        item.fits()?;
        let room = ROOM.acquire_many(item.weight).await;
        let room = room.map_err(|error| error.to_string())?;
        Ok((room, self.read(item)?))
    }

    /// An object's content. It has to be what its path in the tarball says.
    ///
    /// # Errors
    /// What is wrong with the object.
    pub fn read(&self, item: &Item) -> Result<Value, String> {
        item.fits()?;
        let mut bytes = vec![0; item.length as usize];
        self.file
            .read_exact_at(&mut bytes, item.offset)
            .map_err(|error| format!("temporary file cannot be read: {error}"))?;
        let object: Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("it is not JSON: {error}"))?;
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"]
            .as_str()
            .filter(|namespace| !namespace.is_empty());
        if metadata["name"].as_str() != Some(&item.name) || namespace != item.namespace.as_deref() {
            return Err(
                "its name or namespace is another than its path in the tarball says".to_owned(),
            );
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use jackline_storage::{fs::LocalStore, memory::MemoryStore};

    use super::*;

    fn tarball(entries: &[(&str, &str)]) -> bytes::Bytes {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            // `set_path` refuses what a hostile archive would hold.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        let mut encoder = builder.into_inner().unwrap();
        encoder.flush().unwrap();
        encoder.finish().unwrap().into()
    }

    async fn fetch(entries: &[(&str, &str)]) -> Result<Catalog, CatalogError> {
        let store = MemoryStore::new();
        store
            .put("backups/b/b.tar.gz", tarball(entries))
            .await
            .unwrap();
        let scratch = tempfile::tempdir().unwrap();
        Catalog::fetch(&store, "b", scratch.path()).await
    }

    #[tokio::test]
    async fn objects_are_found_by_kind_and_name() {
        let pod = r#"{"metadata":{"name":"a","namespace":"n"}}"#;
        let catalog = fetch(&[
            ("metadata/version", "1.1.0\n"),
            ("resources/pods/namespaces/n/a.json", pod),
            (
                "resources/pods/v1-preferredversion/namespaces/n/a.json",
                pod,
            ),
            (
                "resources/namespaces/cluster/n.json",
                r#"{"metadata":{"name":"n"}}"#,
            ),
            ("resources/pods/namespaces/other/a.json", pod),
        ])
        .await
        .unwrap();
        assert_eq!(catalog.kinds().collect::<Vec<_>>(), ["namespaces", "pods"]);
        assert_eq!(catalog.items("pods").len(), 2);
        assert!(catalog.find("pods", Some("n"), "a").is_some());
        assert!(catalog.find("namespaces", None, "n").is_some());
        assert!(catalog.find("pods", Some("n"), "b").is_none());
        // A path that speaks of another object than the content would get past the namespace filters.
        assert!(catalog.read(&catalog.items("pods")[1]).is_err());
    }

    #[tokio::test]
    async fn an_object_cannot_be_there_twice() {
        let pod = ("resources/pods/namespaces/n/a.json", "{}");
        let other = ("resources/pods/namespaces/m/a.json", "{}");
        assert!(fetch(&[pod, other]).await.is_ok());
        let error = fetch(&[pod, other, pod]).await.unwrap_err();
        let why = crate::location::chain(&error);
        assert!(why.contains("holds pods a twice"), "{why}");
    }

    #[tokio::test]
    async fn a_tarball_without_end_is_not_fetched() {
        let bucket = tempfile::tempdir().unwrap();
        let directory = bucket.path().join("backups/b");
        std::fs::create_dir_all(&directory).unwrap();
        // It takes no room on the disk.
        let file = File::create(directory.join("b.tar.gz")).unwrap();
        file.set_len((16 << 30) + 1).unwrap();
        let store = LocalStore::new(bucket.path());
        let error = Catalog::fetch(&store, "b", bucket.path())
            .await
            .unwrap_err();
        let why = "backups/b/b.tar.gz has 17179869185 bytes; at most 17179869184 are read";
        assert_eq!(error.to_string(), why);
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn what_is_wrong_with_one_object_keeps_no_other() {
        let good =
            r#"{"metadata":{"name":"good","namespace":"n","annotations":{"größe":"世界 🧵"}}}"#;
        let deep = format!(
            r#"{{"metadata":{{"name":"deep","namespace":"n"}},"data":{}"#,
            "[".repeat(100_000)
        );
        let path = |name: &str| format!("resources/configmaps/namespaces/n/{name}.json");
        let objects = [
            ("deep", deep.as_str(), "it is not JSON: recursion limit"),
            ("list", "[1]", "its name or namespace"),
            ("null", "null", "its name or namespace"),
            ("cut", r#"{"metadata":"#, "it is not JSON"),
            (
                "number",
                r#"{"metadata":{"name":7}}"#,
                "its name or namespace",
            ),
            (
                "cluster",
                r#"{"metadata":{"name":"cluster"}}"#,
                "its name or namespace",
            ),
        ];
        let mut entries = vec![(path("good"), good)];
        entries.extend(objects.map(|(name, content, _)| (path(name), content)));
        let entries: Vec<_> = entries
            .iter()
            .map(|(path, content)| (path.as_str(), *content))
            .collect();
        let catalog = fetch(&entries).await.unwrap();
        let items = catalog.items("configmaps");
        let read = catalog.read(&items[0]).unwrap();
        assert_eq!(read["metadata"]["annotations"]["größe"], "世界 🧵");
        for (item, (name, _, why)) in items[1..].iter().zip(objects) {
            let error = catalog.read(item).unwrap_err();
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn objects_that_would_fill_the_memory_wait_and_what_never_fits_is_not_parsed() {
        let object = |name: &str, data: &str| {
            format!(r#"{{"metadata":{{"name":"{name}","namespace":"n"}},"data":{data}}}"#)
        };
        let swarm = |count| format!("[{}]", vec![r#"{"":0}"#; count].join(","));
        let path = |name: &str| format!("resources/configmaps/namespaces/n/{name}.json");
        let large = format!("\"{}\"", "a".repeat(4 << 20));
        let (heavy, heaviest) = (
            object("heavy", &swarm(50_000)),
            object("x", &swarm(100_000)),
        );
        let catalog = fetch(&[
            (&path("small"), &object("small", "{}")),
            (&path("large"), &object("large", &large)),
            (&path("heavy"), &heavy),
            (&path("x"), &heaviest),
        ])
        .await
        .unwrap();
        let items = catalog.items("configmaps");
        let [small, large, heavy, heaviest] = items else {
            panic!("four objects");
        };
        for item in [small, large, heavy] {
            assert!(catalog.read(item).is_ok(), "{}", item.name);
        }
        let why = catalog.read(heaviest).unwrap_err();
        assert!(why.contains("at most 67108864 are given to it"), "{why}");
        assert!(small.weight < 4096);
        let first = catalog.open(heavy).await;
        // Beside it the small ones go on, and another like it does not.
        let mut beside = Vec::new();
        for _ in 0..16 {
            beside.push(catalog.open(small).await);
        }
        assert!(first.is_ok() && beside.iter().all(Result::is_ok));
        let mut second = std::pin::pin!(catalog.open(heavy));
        assert!(futures::poll!(&mut second).is_pending());
        // What is refused waits for nobody.
        let refused = std::pin::pin!(catalog.open(heaviest));
        assert!(matches!(
            futures::poll!(refused),
            std::task::Poll::Ready(Err(_))
        ));
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test]
    async fn hostile_tarballs_are_refused_as_a_whole() {
        let hostile = [
            "../../etc/passwd",
            "/etc/passwd",
            "resources/pods/../../x.json",
        ];
        for path in hostile {
            let error = fetch(&[("metadata/version", "1.1.0\n"), (path, "{}")])
                .await
                .unwrap_err();
            assert!(!error.is_retryable());
            assert_eq!(error.to_string(), "backups/b/b.tar.gz is refused");
        }
    }
}
