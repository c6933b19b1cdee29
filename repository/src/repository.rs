//! The repository handle: what a caller can do.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use jackline_storage::ObjectStore;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::crypto::Key;
use crate::error::{Error, Result};
use crate::files::{self, CONFIG, FileKind, Files};
use crate::id::{Id, SnapshotId};
use crate::keys;
use crate::lock::{self, LockGuard, Mode};
use crate::options::{OpenOptions, Version};
use crate::progress::Progress;
use crate::repair::{self, IndexRepair, PacksRepair, RepairOptions, SnapshotsRepair};
use crate::report::{
    BackupRequest, BackupSummary, CheckOptions, CheckReport, ForgetSummary, PruneOptions,
    PruneSummary, RestoreOptions, RestoreSummary,
};
use crate::snapshot::{Snapshot, SnapshotInfo};
use crate::{adopt, backup, check, prune, restore};

/// Snapshot files read at once.
const CONCURRENCY: usize = 8;

/// An open repository. Cheap to clone; holds the master key in memory and no lock between
/// operations, so one process opens a repository once and keeps it (opening derives a key from the
/// password: 0.06 to 0.5 s of processor time, see [`crate::KeyCost`]).
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) files: Files,
    pub(crate) config: Config,
    pub(crate) options: OpenOptions,
    /// The key file that opened it.
    pub(crate) key_in_use: Arc<Mutex<Id>>,
}

impl Repository {
    /// Makes a new repository of version 2. `Error::AlreadyExists` where there is one, or a part of one.
    pub async fn init(store: Arc<dyn ObjectStore>, options: &OpenOptions) -> Result<Self> {
        Self::init_version(store, options, Version::V2).await
    }

    /// Makes a new repository of a given format version.
    pub async fn init_version(
        store: Arc<dyn ObjectStore>,
        options: &OpenOptions,
        version: Version,
    ) -> Result<Self> {
        let location = store.location();
        let exists = |found: String| Error::AlreadyExists {
            location: location.clone(),
            found,
        };
        if store.head(CONFIG).await?.is_some() {
            return Err(exists(CONFIG.into()));
        }
        // A key without a config: somebody is making a repository, or lost its config. Either way it is theirs.
        if let Some((id, _)) = files::list(&*store, FileKind::Key).await?.first() {
            return Err(exists(FileKind::Key.path(id)));
        }
        let master = Key::random()?;
        let config = Config::new(version)?;
        let key_file = keys::make(&master, &options.password, options).await?;
        let key_id = Id::of(&key_file);
        let key_path = FileKind::Key.path(&key_id);
        let sealed = master.seal_slice(&config.to_json()?)?;
        store.put(&key_path, Bytes::from(key_file)).await?;
        // The config decides who made the repository: whoever comes second takes the own key away.
        if !store.put_if_absent(CONFIG, Bytes::from(sealed)).await? {
            store.delete(&key_path).await?;
            return Err(exists(CONFIG.into()));
        }
        Ok(Self::assemble(store, (key_id, master), config, options))
    }

    /// Opens a repository. `Error::NotFound` where there is neither config nor key,
    /// `Error::WrongPassword` where no key opens. Takes no lock.
    pub async fn open(store: Arc<dyn ObjectStore>, options: &OpenOptions) -> Result<Self> {
        let location = store.location();
        let keys = files::list(&*store, FileKind::Key);
        let (keys, sealed) = tokio::join!(keys, store.get(CONFIG));
        let keys = keys?;
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(error) if error.is_not_found() && keys.is_empty() => {
                return Err(Error::NotFound { location });
            }
            Err(error) if error.is_not_found() => {
                return Err(Error::corrupt(
                    CONFIG,
                    "it is missing, though there are keys",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        if keys.is_empty() {
            return Err(Error::corrupt("keys/", "there is a config, but no key"));
        }
        let found = keys::find(&*store, &keys, &options.password).await?;
        let Some((id, key)) = found else {
            return Err(Error::WrongPassword { location });
        };
        let mut sealed = Vec::from(sealed);
        let json = key
            .open(&mut sealed)
            .map_err(|_| Error::corrupt(CONFIG, "it cannot be authenticated"))?;
        let config = Config::parse(json, &location)?;
        Ok(Self::assemble(store, (id, key), config, options))
    }

    pub(crate) fn assemble(
        store: Arc<dyn ObjectStore>,
        (id, key): (Id, Key),
        config: Config,
        options: &OpenOptions,
    ) -> Self {
        let files = Files {
            store,
            key: Arc::new(key),
            version: config.version,
        };
        Self {
            files,
            config,
            options: options.clone(),
            key_in_use: Arc::new(Mutex::new(id)),
        }
    }

    /// The repository's own id: 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// The format version.
    pub fn version(&self) -> Version {
        self.config.version
    }

    /// Where the repository is. Holds no secret.
    pub fn location(&self) -> String {
        self.files.store.location()
    }

    /// All snapshots, oldest first. Takes no lock.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let listed = self.files.list(FileKind::Snapshot).await?;
        let mut loading = futures::stream::iter(listed)
            .map(|(id, _)| async move { (id, self.snapshot(&id).await) })
            .buffer_unordered(CONCURRENCY);
        let mut snapshots = Vec::new();
        while let Some((id, loaded)) = loading.next().await {
            match loaded {
                Ok(snapshot) => snapshots.push(SnapshotInfo { id, snapshot }),
                // Forgotten since it was listed.
                Err(Error::SnapshotNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        snapshots.sort_by_key(|info| (info.snapshot.time, info.id));
        Ok(snapshots)
    }

    /// One snapshot. `Error::SnapshotNotFound` if it does not exist.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let json = match self.files.load(FileKind::Snapshot, id).await {
            Err(Error::Storage(error)) if error.is_not_found() => {
                return Err(Error::SnapshotNotFound { id: id.to_hex() });
            }
            json => json?,
        };
        serde_json::from_slice(&json)
            .map_err(|error| Error::corrupt(FileKind::Snapshot.path(id), error))
    }

    /// The snapshot whose id is, or starts with, `id`; `latest` is the newest.
    pub async fn resolve(&self, id: &str) -> Result<SnapshotId> {
        let unknown = || Error::SnapshotNotFound { id: id.into() };
        if id == "latest" {
            return Ok(self.snapshots().await?.last().ok_or_else(unknown)?.id);
        }
        if id.is_empty() {
            return Err(unknown());
        }
        let listed = self.files.list(FileKind::Snapshot).await?;
        let mut found = listed
            .iter()
            .map(|(full, _)| *full)
            .filter(|full| full.to_hex().starts_with(id));
        match (found.next(), found.next()) {
            (Some(full), None) => Ok(full),
            (Some(_), Some(_)) => Err(Error::AmbiguousId { id: id.into() }),
            (None, _) => Err(unknown()),
        }
    }

    /// Makes a snapshot under a shared lock. Unreadable files are counted in the summary, see
    /// [`BackupSummary::is_complete`]; an error means that there is no snapshot. What was uploaded
    /// until then is used by the next run. A root that does not exist or is empty makes an empty
    /// snapshot.
    pub async fn backup(
        &self,
        request: BackupRequest,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<BackupSummary> {
        backup::run(self, request, progress, cancel).await
    }

    /// Writes a snapshot into the directory `target` (made if missing) under a shared lock, and
    /// nothing outside it.
    pub async fn restore(
        &self,
        id: &SnapshotId,
        target: &Path,
        options: RestoreOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<RestoreSummary> {
        restore::run(self, id, target, options, progress, cancel).await
    }

    /// Removes snapshots under a shared lock; their data stays until the next prune. An absent one
    /// is success.
    pub async fn forget(&self, ids: &[SnapshotId]) -> Result<ForgetSummary> {
        if ids.is_empty() {
            return Ok(ForgetSummary::default());
        }
        lock::holding(&self.files, &self.options, Mode::Shared, async |guard| {
            self.forget_locked(ids, guard).await
        })
        .await
    }

    async fn forget_locked(&self, ids: &[SnapshotId], guard: &LockGuard) -> Result<ForgetSummary> {
        if guard.healed() {
            // Nobody else learns that somebody died here: what they stored would be stored again.
            adopt::index(&self.files, guard).await?;
        }
        let listed = self.files.list(FileKind::Snapshot).await?;
        let listed: HashSet<SnapshotId> = listed.into_iter().map(|(id, _)| id).collect();
        let (removed, absent): (Vec<_>, Vec<_>) = ids.iter().partition(|id| listed.contains(id));
        lock::delete_all(&self.files, guard, FileKind::Snapshot, &removed).await?;
        Ok(ForgetSummary { removed, absent })
    }

    /// Gives back the space of what no snapshot uses: copies what is worth it beside running backups,
    /// then deletes under an exclusive lock. Interrupted anywhere, or kept from that lock, it leaves
    /// a sound repository, and the next prune goes on where it was.
    pub async fn prune(
        &self,
        options: PruneOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<PruneSummary> {
        prune::run(self, options, progress, cancel).await
    }

    /// Verifies the repository. Damage is in the report; an error means that check itself could not
    /// go on.
    pub async fn check(
        &self,
        options: CheckOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<CheckReport> {
        check::run(self, options, progress, cancel).await
    }

    /// Makes the index say what the packs hold, under an exclusive lock: packs that are gone or whose header cannot be
    /// read leave it, packs that it does not know enter it. Deletes no pack. Interrupted anywhere it can be run again.
    pub async fn repair_index(
        &self,
        options: RepairOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<IndexRepair> {
        repair::index(self, options, progress, cancel).await
    }

    /// Reads these packs, or all, under an exclusive lock; of the damaged ones it stores anew what is sound in them, and
    /// deletes them. An index that cannot be read has to be repaired before. Interrupted anywhere it can be run again.
    pub async fn repair_packs(
        &self,
        ids: &[Id],
        options: RepairOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<PacksRepair> {
        repair::packs(self, ids, options, progress, cancel).await
    }

    /// Makes of every damaged snapshot, of these or of all, one that holds what can still be read, under an exclusive lock: files lose the
    /// parts that are gone, directories that cannot be read become empty. Sound snapshots are left alone. Repair packs and
    /// index first, so that nothing is given up that is still there. Progress counts snapshots as files.
    pub async fn repair_snapshots(
        &self,
        ids: &[SnapshotId],
        options: RepairOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<SnapshotsRepair> {
        repair::snapshots(self, ids, options, progress, cancel).await
    }

    /// Removes the locks of dead holders, as every operation does before it waits. Returns how many.
    pub async fn unlock(&self) -> Result<u64> {
        lock::remove_dead(&self.files, &self.options).await
    }
}

/// Runs what takes long without waiting for anything.
pub(crate) async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;

    fn is_send<T: Send>(_: T) {}

    /// Callers run operations in tasks of their own.
    #[allow(dead_code, reason = "compiling it is the test")]
    fn operations_can_be_spawned(repository: Repository, request: BackupRequest, id: SnapshotId) {
        let cancel = CancellationToken::new();
        is_send(repository.snapshots());
        is_send(repository.resolve("x"));
        is_send(repository.backup(request, &NoProgress, &cancel));
        let target = Path::new("x");
        is_send(repository.restore(&id, target, RestoreOptions::default(), &NoProgress, &cancel));
        is_send(repository.forget(&[]));
        is_send(repository.prune(PruneOptions::default(), &NoProgress, &cancel));
        is_send(repository.check(CheckOptions::default(), &NoProgress, &cancel));
        is_send(repository.unlock());
        is_send(Repository::open(
            repository.files.store.clone(),
            &repository.options,
        ));
        is_send(Repository::init(
            repository.files.store.clone(),
            &repository.options,
        ));
    }
}
