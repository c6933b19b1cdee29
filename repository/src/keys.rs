//! The keys of a repository. Each seals the same master key with a password of its own.

use std::sync::Arc;

use bytes::Bytes;
use jackline_storage::{ObjectMeta, ObjectStore};
use jiff::Timestamp;
use serde::Serialize;

use crate::config::Config;
use crate::crypto::Key;
use crate::error::{Error, Result};
use crate::files::{CONFIG, FileKind};
use crate::id::Id;
use crate::key::KeyFile;
use crate::lock::{self, LockGuard, Mode};
use crate::options::{OpenOptions, Password};
use crate::repository::{Repository, off_runtime};

/// What an exported key is called in errors.
const EXPORTED: &str = "the exported key";

/// A key of a repository, without its secret. In JSON the fields are called as restic calls them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// The key's id: the hash of its file.
    pub id: Id,
    /// Whether the repository was opened with it.
    pub current: bool,
    /// The user who made it.
    #[serde(rename = "userName")]
    pub username: String,
    /// The host it was made on.
    #[serde(rename = "hostName")]
    pub hostname: String,
    /// When it was made.
    pub created: Timestamp,
}

impl Repository {
    /// All keys, oldest first. Takes no lock. One that cannot be read is an error.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>> {
        let current = *self.key_in_use.lock();
        let mut keys = Vec::new();
        for (id, _) in self.files.list(FileKind::Key).await? {
            let Some(file) = load(&*self.files.store, &id).await? else {
                continue;
            };
            keys.push(KeyInfo {
                id,
                current: id == current,
                username: file.username,
                hostname: file.hostname,
                created: file.created,
            });
        }
        keys.sort_by_key(|key| (key.created, key.id));
        Ok(keys)
    }

    /// Adds a key with another password, under a shared lock; every other key stays valid.
    pub async fn add_key(&self, password: &Password) -> Result<Id> {
        lock::holding(&self.files, &self.options, Mode::Shared, async |guard| {
            self.write_key(password, guard).await
        })
        .await
    }

    /// Removes the key whose id is, or starts with, `id`, under an exclusive lock. `Error::Invalid` for the key in use,
    /// and for the last one: a repository is never left without a key that somebody can open it with.
    pub async fn remove_key(&self, id: &str) -> Result<Id> {
        lock::holding(&self.files, &self.options, Mode::Exclusive, async |guard| {
            self.remove_locked(id, guard).await
        })
        .await
    }

    /// Replaces the key in use by one with another password, under an exclusive lock. The old one goes only after the
    /// new one was read back and opened. Returns the new key's id.
    pub async fn change_password(&self, password: &Password) -> Result<Id> {
        lock::holding(&self.files, &self.options, Mode::Exclusive, async |guard| {
            self.change_locked(password, guard).await
        })
        .await
    }

    /// The master key in a file of its own, sealed with `password`: a key file as restic's, to be kept elsewhere.
    /// [`Repository::import_key`] opens the repository again with it when all its keys are lost.
    pub async fn export_key(&self, password: &Password) -> Result<Vec<u8>> {
        make(&self.files.key, password, &self.options).await
    }

    /// Adds an exported key to the repository it is from, and opens the repository. `options.password` is what the key
    /// was exported with. Works without any other key. `Error::WrongPassword` where that is another one,
    /// `Error::Invalid` where the key is another repository's.
    pub async fn import_key(
        store: Arc<dyn ObjectStore>,
        options: &OpenOptions,
        exported: &[u8],
    ) -> Result<Self> {
        let location = store.location();
        let sealed = match store.get(CONFIG).await {
            Err(error) if error.is_not_found() => return Err(Error::NotFound { location }),
            sealed => sealed?,
        };
        let file = KeyFile::parse(EXPORTED, exported)?;
        let password = options.password.clone();
        let master = off_runtime(move || file.open(EXPORTED, &password)).await?;
        let Some(master) = master else {
            return Err(Error::WrongPassword { location });
        };
        let mut sealed = Vec::from(sealed);
        let json = master.open(&mut sealed).map_err(|_| {
            Error::Invalid(format!(
                "the exported key is not one of the repository at {location}"
            ))
        })?;
        let config = Config::parse(json, &location)?;
        let id = Id::of(exported);
        let repository = Self::assemble(store, (id, master), config, options);
        lock::holding(&repository.files, options, Mode::Shared, async |guard| {
            repository.store_key(exported.to_vec(), guard).await
        })
        .await?;
        Ok(repository)
    }

    async fn write_key(&self, password: &Password, guard: &LockGuard) -> Result<Id> {
        let content = make(&self.files.key, password, &self.options).await?;
        self.store_key(content, guard).await
    }

    async fn store_key(&self, content: Vec<u8>, guard: &LockGuard) -> Result<Id> {
        let id = Id::of(&content);
        guard.confirm().await?;
        lock::store(&self.files, FileKind::Key, &id, Bytes::from(content)).await?;
        Ok(id)
    }

    async fn remove_locked(&self, prefix: &str, guard: &LockGuard) -> Result<Id> {
        let keys = self.files.list(FileKind::Key).await?;
        let mut found = keys
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| !prefix.is_empty() && id.to_hex().starts_with(prefix));
        let id = match (found.next(), found.next()) {
            (Some(id), None) => id,
            (None, _) => return Err(Error::Invalid(format!("there is no key {prefix:?}"))),
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!(
                    "more than one key's id starts with {prefix}"
                )));
            }
        };
        let current = *self.key_in_use.lock();
        if id == current {
            let reason = "this key is in use: open the repository with another to remove it";
            return Err(Error::Invalid(reason.into()));
        }
        // The own key may have gone since the repository was opened.
        if !keys.iter().any(|(id, _)| *id == current) {
            let reason = "this may be the last key that opens: the key in use is gone";
            return Err(Error::Invalid(reason.into()));
        }
        lock::delete_all(&self.files, guard, FileKind::Key, &[id]).await?;
        Ok(id)
    }

    async fn change_locked(&self, password: &Password, guard: &LockGuard) -> Result<Id> {
        let new = self.write_key(password, guard).await?;
        let name = FileKind::Key.path(&new);
        let written = load(&*self.files.store, &new)
            .await?
            .ok_or_else(|| Error::corrupt(&name, "it is gone"))?;
        let password = password.clone();
        let opened = off_runtime({
            let name = name.clone();
            move || written.open(&name, &password)
        });
        if opened.await?.is_none() {
            return Err(Error::corrupt(name, "it does not open"));
        }
        let old = std::mem::replace(&mut *self.key_in_use.lock(), new);
        lock::delete_all(&self.files, guard, FileKind::Key, &[old]).await?;
        Ok(new)
    }
}

/// A key file for `master` and `password`.
pub(crate) async fn make(
    master: &Key,
    password: &Password,
    options: &OpenOptions,
) -> Result<Vec<u8>> {
    let (master, password) = (master.clone(), password.clone());
    let (cost, holder) = (options.key_cost, options.holder.clone());
    off_runtime(move || KeyFile::make(&master, &password, cost, &holder)).await
}

/// Reads a key file; `None` where it was removed.
async fn load(store: &dyn ObjectStore, id: &Id) -> Result<Option<KeyFile>> {
    let path = FileKind::Key.path(id);
    let content = match store.get(&path).await {
        Err(error) if error.is_not_found() => return Ok(None),
        content => content?,
    };
    if Id::of(&content) != *id {
        return Err(Error::corrupt(path, "its content does not match its name"));
    }
    KeyFile::parse(&path, &content).map(Some)
}

/// The first key that the password opens, and the master key in it.
pub(crate) async fn find(
    store: &dyn ObjectStore,
    keys: &[(Id, ObjectMeta)],
    password: &Password,
) -> Result<Option<(Id, Key)>> {
    let mut damaged = None;
    for (id, _) in keys {
        let file = match load(store, id).await {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            // Another key may still open.
            Err(error @ Error::Corrupt { .. }) => {
                damaged = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let (path, password) = (FileKind::Key.path(id), password.clone());
        match off_runtime(move || file.open(&path, &password)).await {
            Ok(Some(key)) => return Ok(Some((*id, key))),
            Ok(None) => {}
            Err(error @ Error::Corrupt { .. }) => damaged = Some(error),
            Err(error) => return Err(error),
        }
    }
    damaged.map_or(Ok(None), Err)
}
