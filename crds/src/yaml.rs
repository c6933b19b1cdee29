//! The CustomResourceDefinitions as files.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{jackline, velero};

/// First lines of every file.
const HEADER: &str = "# Generated from the types in crds/src by `make generate`. Do not edit.\n";

/// Every kind, in the order of their names.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        jackline::BackupCoverage::crd(),
        jackline::BackupPolicy::crd(),
        jackline::ClusterBackupPolicy::crd(),
        velero::Backup::crd(),
        velero::BackupRepository::crd(),
        velero::BackupStorageLocation::crd(),
        velero::DataDownload::crd(),
        velero::DataUpload::crd(),
        velero::DeleteBackupRequest::crd(),
        velero::DownloadRequest::crd(),
        velero::PodVolumeBackup::crd(),
        velero::PodVolumeRestore::crd(),
        velero::ResticRepository::crd(),
        velero::Restore::crd(),
        velero::Schedule::crd(),
        velero::ServerStatusRequest::crd(),
        velero::VolumeSnapshotLocation::crd(),
    ];
    all.sort_by(|a, b| a.spec.names.plural.cmp(&b.spec.names.plural));
    all
}

/// Every file of `crds/yaml` with its content, in the order of their names.
///
/// # Errors
/// When a definition cannot be written as YAML, which no definition of this crate does.
pub fn files() -> Result<Vec<(String, String)>, Box<dyn std::error::Error + Send + Sync>> {
    let mut files = Vec::new();
    for crd in definitions() {
        // By way of a JSON value, whose maps are sorted.
        let yaml = serde_saphyr::to_string(&serde_json::to_value(&crd)?)?;
        files.push((
            format!("{}.yaml", crd.spec.names.plural),
            format!("{HEADER}{yaml}"),
        ));
    }
    let mut kustomization = format!(
        "{HEADER}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n"
    );
    for (name, _) in &files {
        kustomization.push_str(&format!("- {name}\n"));
    }
    files.push(("kustomization.yaml".to_owned(), kustomization));
    Ok(files)
}
