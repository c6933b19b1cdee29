//! The repository's files: where each kind lies, and how those that are not packs are sealed.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use jackline_storage::{ObjectMeta, ObjectStore};

use crate::compress;
use crate::crypto::Key;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::options::Version;

pub(crate) const CONFIG: &str = "config";
/// No index, snapshot or lock unpacks to more than this.
const MAX_UNPACKED: usize = 1 << 30;

/// A directory of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Key,
    Lock,
    Snapshot,
    Index,
    Pack,
}

impl FileKind {
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Key => "keys/",
            Self::Lock => "locks/",
            Self::Snapshot => "snapshots/",
            Self::Index => "index/",
            Self::Pack => "data/",
        }
    }

    pub(crate) fn path(self, id: &Id) -> String {
        let name = id.to_hex();
        match self {
            Self::Pack => format!("data/{}/{name}", &name[..2]),
            _ => format!("{}{name}", self.prefix()),
        }
    }
}

/// The store, and the key that everything in it is sealed with.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) key: Arc<Key>,
    pub(crate) version: Version,
}

impl Files {
    /// Reads and opens a file, after comparing its bytes with its name.
    pub(crate) async fn load(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        let path = kind.path(id);
        let sealed = self.store.get(&path).await?;
        if Id::of(&sealed) != *id {
            return Err(Error::corrupt(path, "its content does not match its name"));
        }
        self.open(&path, sealed)
    }

    fn open(&self, path: &str, sealed: Bytes) -> Result<Vec<u8>> {
        let mut sealed = Vec::from(sealed);
        let plain = self
            .key
            .open(&mut sealed)
            .map_err(|_| Error::corrupt(path, "it cannot be authenticated"))?;
        match (self.version, plain.first()) {
            (Version::V1, _) | (_, None | Some(b'{' | b'[')) => Ok(plain.to_vec()),
            (Version::V2, Some(2)) => compress::unpack_unknown(&plain[1..], MAX_UNPACKED)
                .ok_or_else(|| Error::corrupt(path, "it cannot be decompressed")),
            (Version::V2, Some(_)) => Err(Error::corrupt(path, "its encoding is unknown")),
        }
    }

    /// Seals a file: its name and its bytes.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<(Id, Bytes)> {
        let sealed = match self.version {
            Version::V1 => self.key.seal_slice(plain)?,
            Version::V2 => {
                let mut packed = vec![2];
                compress::pack_into(&mut packed, plain)?;
                self.key.seal_slice(&packed)?
            }
        };
        Ok((Id::of(&sealed), Bytes::from(sealed)))
    }

    pub(crate) async fn delete(&self, kind: FileKind, id: &Id) -> Result<()> {
        Ok(self.store.delete(&kind.path(id)).await?)
    }

    /// All files of a kind. Objects with names that restic would not give are none of ours.
    pub(crate) async fn list(&self, kind: FileKind) -> Result<Vec<(Id, ObjectMeta)>> {
        list(&*self.store, kind).await
    }
}

/// All files of a kind.
pub(crate) async fn list(store: &dyn ObjectStore, kind: FileKind) -> Result<Vec<(Id, ObjectMeta)>> {
    let mut files = Vec::new();
    let mut stream = store.list(kind.prefix());
    while let Some(meta) = stream.try_next().await? {
        let name = meta.key.rsplit('/').next().unwrap_or_default();
        match Id::parse(name) {
            Some(id) if meta.key == kind.path(&id) => files.push((id, meta)),
            _ => tracing::debug!(key = meta.key, "no file of the repository"),
        }
    }
    Ok(files)
}
