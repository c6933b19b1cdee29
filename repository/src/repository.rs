//! The repository handle: what a caller can do.

use std::path::Path;
use std::sync::Arc;

use jackline_storage::ObjectStore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::options::{OpenOptions, Version};
use crate::progress::Progress;
use crate::report::{
    BackupRequest, BackupSummary, CheckOptions, CheckReport, ForgetSummary, PruneOptions, PruneSummary,
    RestoreOptions, RestoreSummary,
};
use crate::snapshot::{Snapshot, SnapshotInfo};

/// An open repository. Cheap to clone; holds the master key in memory and no lock between operations, so one process
/// opens a repository once and keeps it (opening derives a key from the password: about 0.1 s of CPU).
#[derive(Debug, Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
}

impl Repository {
    /// Makes a new repository of version 2. `Error::AlreadyExists` where there is one, or a part of one.
    pub async fn init(store: Arc<dyn ObjectStore>, options: &OpenOptions) -> Result<Self> {
        Self::init_version(store, options, Version::V2).await
    }

    /// Makes a new repository of a given format version.
    pub async fn init_version(
        store: Arc<dyn ObjectStore>,
        _options: &OpenOptions,
        _version: Version,
    ) -> Result<Self> {
        Ok(Self { store })
    }

    /// Opens a repository. `Error::NotFound` where there is neither config nor key, `Error::WrongPassword` where no key
    /// opens. Takes no lock.
    pub async fn open(store: Arc<dyn ObjectStore>, _options: &OpenOptions) -> Result<Self> {
        Ok(Self { store })
    }

    /// The repository's own id: 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        ""
    }

    /// The format version.
    pub fn version(&self) -> Version {
        Version::V2
    }

    /// Where the repository is. Holds no secret.
    pub fn location(&self) -> String {
        self.store.location()
    }

    /// All snapshots, oldest first. Takes no lock.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(vec![])
    }

    /// One snapshot. `Error::SnapshotNotFound` if it does not exist.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        Err(Error::SnapshotNotFound { id: id.to_hex() })
    }

    /// The snapshot whose id is, or starts with, `id`; `latest` is the newest.
    pub async fn resolve(&self, id: &str) -> Result<SnapshotId> {
        Err(Error::SnapshotNotFound { id: id.into() })
    }

    /// Makes a snapshot under a shared lock. Unreadable files are counted in the summary, see
    /// [`BackupSummary::is_complete`]; an error means that there is no snapshot. What was uploaded until then is used by
    /// the next run. A root that does not exist or is empty makes an empty snapshot.
    pub async fn backup(
        &self,
        _request: BackupRequest,
        _progress: &dyn Progress,
        _cancel: &CancellationToken,
    ) -> Result<BackupSummary> {
        Err(Error::Cancelled)
    }

    /// Writes a snapshot into the directory `target` (made if missing) under a shared lock, and nothing outside it.
    pub async fn restore(
        &self,
        _id: &SnapshotId,
        _target: &Path,
        _options: RestoreOptions,
        _progress: &dyn Progress,
        _cancel: &CancellationToken,
    ) -> Result<RestoreSummary> {
        Err(Error::Cancelled)
    }

    /// Removes snapshots under a shared lock; their data stays until the next prune. An absent one is success.
    pub async fn forget(&self, _ids: &[SnapshotId]) -> Result<ForgetSummary> {
        Err(Error::Cancelled)
    }

    /// Gives back the space of what no snapshot uses.
    pub async fn prune(
        &self,
        _options: PruneOptions,
        _progress: &dyn Progress,
        _cancel: &CancellationToken,
    ) -> Result<PruneSummary> {
        Err(Error::Cancelled)
    }

    /// Verifies the repository. Damage is in the report; an error means that check itself could not go on.
    pub async fn check(
        &self,
        _options: CheckOptions,
        _progress: &dyn Progress,
        _cancel: &CancellationToken,
    ) -> Result<CheckReport> {
        Err(Error::Cancelled)
    }

    /// Removes the locks of dead holders, as every operation does before it waits. Returns how many.
    pub async fn unlock(&self) -> Result<u64> {
        Err(Error::Cancelled)
    }
}
