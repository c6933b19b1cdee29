//! From a BackupStorageLocation to its object store: reads the Secrets that it names.

use std::sync::Arc;

use base64::Engine;
use jackline_crds::velero::{AccessMode, Backup, BackupStorageLocation, LocationPhase};
use jackline_runtime::secrets::{ReadError, read_secret_key};
use jackline_storage::{LocationConfig, ObjectStore, open_location};
use kube::{Client, ResourceExt};

use crate::context::Context;

/// Why a location's store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// A Secret that the location names cannot be read.
    #[error(transparent)]
    Secret(#[from] ReadError),
    /// The object store refuses the settings, or does not answer.
    #[error(transparent)]
    Storage(#[from] jackline_storage::Error),
    /// Velero's words.
    #[error("cannot specify both caCert and caCertRef in objectStorage")]
    TwoAuthorities,
    /// Not base64.
    #[error("spec.objectStorage.caCert is not base64")]
    BadAuthority,
    /// Not text.
    #[error("key {key:?} of Secret {name} is not text")]
    NotText {
        /// The Secret.
        name: String,
        /// Its key.
        key: String,
    },
}

impl LocationError {
    /// Whether trying again may help without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Secret(error) => !error.is_absent(),
            Self::Storage(error) => error.is_retryable(),
            Self::TwoAuthorities | Self::BadAuthority | Self::NotText { .. } => false,
        }
    }
}

/// The settings of a location, its Secrets read.
///
/// # Errors
/// When a Secret is missing or cannot be read, or the certificate authorities are given twice or wrongly.
pub async fn settings(
    client: &Client,
    namespace: &str,
    location: &BackupStorageLocation,
) -> Result<LocationConfig, LocationError> {
    let spec = &location.spec;
    let storage = &spec.object_storage;
    let ca_cert = match (&storage.ca_cert, &storage.ca_cert_ref) {
        (Some(_), Some(_)) => return Err(LocationError::TwoAuthorities),
        (Some(inline), None) if inline.0.is_empty() => None,
        (Some(inline), None) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(&inline.0);
            Some(decoded.map_err(|_| LocationError::BadAuthority)?)
        }
        (None, Some(secret)) => {
            Some(read_secret_key(client, namespace, &secret.name, &secret.key).await?)
        }
        (None, None) => None,
    };
    let credentials_file = match &spec.credential {
        Some(secret) => {
            let bytes = read_secret_key(client, namespace, &secret.name, &secret.key).await?;
            let text = String::from_utf8(bytes).map_err(|_| LocationError::NotText {
                name: secret.name.clone(),
                key: secret.key.clone(),
            })?;
            Some(text)
        }
        None => None,
    };
    Ok(LocationConfig {
        provider: spec.provider.clone(),
        bucket: storage.bucket.clone(),
        prefix: storage.prefix.clone().unwrap_or_default(),
        config: spec.config.clone(),
        ca_cert,
        credentials_file,
    })
}

/// The object store of a location, rooted at its bucket and prefix. Nothing is read from the bucket yet.
///
/// # Errors
/// As [`settings`], and when the object store refuses the settings.
pub async fn open(
    client: &Client,
    namespace: &str,
    location: &BackupStorageLocation,
) -> Result<Arc<dyn ObjectStore>, LocationError> {
    Ok(open_location(settings(client, namespace, location).await?).await?)
}

/// The location that a backup lies in.
///
/// # Errors
/// When the API server does not answer; within, which of both is not there, in Velero's words.
pub async fn of_backup(
    context: &Context,
    backup: &str,
) -> Result<Result<BackupStorageLocation, String>, kube::Error> {
    let Some(found) = context.fetch::<Backup>(backup).await? else {
        return Ok(Err(format!("backup {backup} not found")));
    };
    let name = found.spec.storage_location.unwrap_or_default();
    let location = context.fetch(&name).await?;
    Ok(location.ok_or_else(|| format!("backup storage location {name} not found")))
}

/// Whether the location may be used now; the error says why not, in Velero's words. `write`: also for writing and deleting.
///
/// # Errors
/// The reason, for validation errors and messages.
pub fn usable(location: &BackupStorageLocation, write: bool) -> Result<(), String> {
    let name = location.name_any();
    if write && read_only(location) {
        return Err(format!(
            "backup storage location {name} is currently in read-only mode"
        ));
    }
    let status = location.status.as_ref();
    match status.and_then(|status| status.phase) {
        Some(LocationPhase::Available) => Ok(()),
        Some(_) => {
            let why = status
                .and_then(|status| status.message.as_deref())
                .unwrap_or_default();
            Err(format!(
                "BackupStorageLocation {name} is in Unavailable status: {why}"
            ))
        }
        None => Err(format!(
            "BackupStorageLocation {name} has not been validated yet"
        )),
    }
}

/// Whether nobody has looked at the location yet; whoever needs it waits.
pub fn is_new(location: &BackupStorageLocation) -> bool {
    location
        .status
        .as_ref()
        .and_then(|status| status.phase)
        .is_none()
}

/// Whether the location is only read.
pub fn read_only(location: &BackupStorageLocation) -> bool {
    location.spec.access_mode == Some(AccessMode::ReadOnly)
}

/// The names of the Secrets that a location needs.
pub fn secrets(location: &BackupStorageLocation) -> impl Iterator<Item = &str> {
    let spec = &location.spec;
    [
        spec.credential.as_ref(),
        spec.object_storage.ca_cert_ref.as_ref(),
    ]
    .into_iter()
    .flatten()
    .map(|secret| secret.name.as_str())
}
