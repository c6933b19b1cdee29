//! Our operations where nothing may go wrong.

use std::path::Path;

use jackline_repository::{
    BackupRequest, BackupSummary, CheckOptions, NoProgress, PruneOptions, PruneSummary, ReadData,
    Repository, RestoreOptions,
};
use tokio_util::sync::CancellationToken;

pub async fn backup(repository: &Repository, root: &Path) -> BackupSummary {
    let request = BackupRequest::contents(root, "velero");
    backup_request(repository, request).await
}

pub async fn backup_request(repository: &Repository, request: BackupRequest) -> BackupSummary {
    let summary = repository
        .backup(request, &NoProgress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(summary.errors, vec![]);
    summary
}

pub async fn restore(repository: &Repository, id: &str, target: &Path) {
    restore_with(repository, id, target, RestoreOptions::default()).await;
}

pub async fn restore_with(repository: &Repository, id: &str, target: &Path, how: RestoreOptions) {
    let id = repository.resolve(id).await.unwrap();
    let summary = repository
        .restore(&id, target, how, &NoProgress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(summary.errors, vec![]);
}

/// Everything, to the last byte.
pub async fn check(repository: &Repository) {
    let options = CheckOptions {
        read_data: ReadData::Everything,
        no_lock: false,
    };
    let report = repository
        .check(options, &NoProgress, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!(report.packs, report.packs_read);
}

pub async fn prune(repository: &Repository, max_unused_percent: f64) -> PruneSummary {
    let options = PruneOptions { max_unused_percent };
    repository
        .prune(options, &NoProgress, &CancellationToken::new())
        .await
        .unwrap()
}
