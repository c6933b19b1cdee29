//! From a BackupStorageLocation and a namespace to an open repository.
//!
//! A repository is opened once per process and content of its location, credentials and password: opening derives a key, which takes
//! CPU on purpose. When any of these changes, it is opened anew.

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::Engine;
use jackline_crds::{
    names,
    velero::{AccessMode, BackupStorageLocation, SecretKeySelector},
};
use jackline_repository::{LockHolder, LockJudge, OpenOptions, Password, Repository};
use jackline_runtime::{
    Class, Failure,
    secrets::{ReadError, read_secret_key},
};
use jackline_storage::{LocationConfig, ObjectStore, Scoped, open_location, restic_identifier};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// Time for locks that are still being given back when everything else has ended: the kubelet kills after 30 s in all.
const UNLOCK: Duration = Duration::from_secs(5);

/// To be awaited before the process ends: no lock is left for others to heal.
pub(crate) async fn leave() {
    let given_back = jackline_repository::locks_given_back();
    if tokio::time::timeout(UNLOCK, given_back).await.is_err() {
        tracing::warn!("a lock could not be given back in time: others remove it later");
    }
}

/// Why a repository cannot be used. Texts name the location, Secret or object, never a secret value.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such BackupStorageLocation.
    #[error("BackupStorageLocation {0} does not exist")]
    NoLocation(String),
    /// Writing was asked of a location that may only be read.
    #[error("BackupStorageLocation {0} is read-only")]
    ReadOnly(String),
    /// A Secret that the location or the repository needs.
    #[error(transparent)]
    Secret(#[from] ReadError),
    /// The Secret's value is not text.
    #[error("{0} is not UTF-8")]
    NotText(String),
    /// The location's certificate authorities are not base64.
    #[error("BackupStorageLocation {0}: spec.objectStorage.caCert is not base64")]
    BadAuthority(String),
    /// The API server did not answer.
    #[error("BackupStorageLocation {name} cannot be read")]
    Api {
        /// Name of the location.
        name: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// The object store cannot be used.
    #[error("BackupStorageLocation {name}")]
    Storage {
        /// Name of the location.
        name: String,
        /// Why.
        #[source]
        source: jackline_storage::Error,
    },
    /// The repository cannot be opened.
    #[error("repository of namespace {namespace} in BackupStorageLocation {location}")]
    Repository {
        /// Namespace of the volumes.
        namespace: String,
        /// Name of the location.
        location: String,
        /// Why.
        #[source]
        source: jackline_repository::Error,
    },
}

impl OpenError {
    /// Whether there is no repository in the location.
    pub fn is_not_found(&self) -> bool {
        use jackline_repository::Error::NotFound;
        matches!(self, Self::Repository { source, .. } if matches!(source, NotFound { .. }))
    }

    /// Class and reason for a pass.
    pub fn classify(&self) -> (Class, &'static str) {
        let transient = |retry| {
            if retry {
                Class::Transient
            } else {
                Class::Terminal
            }
        };
        match self {
            Self::NoLocation(_) => (Class::Transient, "LocationMissing"),
            Self::ReadOnly(_) => (Class::Terminal, "LocationReadOnly"),
            Self::Secret(ReadError::Api { source, .. }) | Self::Api { source, .. } => {
                jackline_runtime::failure::classify(source)
            }
            Self::Secret(_) => (Class::Transient, "SecretMissing"),
            Self::NotText(_) => (Class::Terminal, "SecretInvalid"),
            Self::BadAuthority(_) => (Class::Terminal, "LocationInvalid"),
            Self::Storage { source, .. } => (transient(source.is_retryable()), source.reason()),
            Self::Repository { source, .. } => (transient(source.is_retryable()), source.reason()),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let (class, reason) = error.classify();
        Self::new(class, reason, error)
    }
}

type Cell<T> = Arc<OnceCell<T>>;

/// What makes two locations the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Fingerprint(String);

/// The open repositories of this process.
pub(crate) struct Repositories {
    client: Client,
    namespace: String,
    holder: LockHolder,
    judge: Arc<dyn LockJudge>,
    lock_wait: Duration,
    stores: Mutex<HashMap<Fingerprint, Cell<Arc<dyn ObjectStore>>>>,
    open: Mutex<HashMap<(Fingerprint, String), Cell<Repository>>>,
}

impl std::fmt::Debug for Repositories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repositories")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Repositories {
    pub fn new(
        client: Client,
        namespace: &str,
        holder: LockHolder,
        judge: Arc<dyn LockJudge>,
        lock_wait: Duration,
    ) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            holder,
            judge,
            lock_wait,
            stores: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// The repository of `volume_namespace` in `location`. `write` refuses read-only locations.
    pub async fn get(
        &self,
        location: &str,
        volume_namespace: &str,
        write: bool,
    ) -> Result<Repository, OpenError> {
        let object = Api::<BackupStorageLocation>::namespaced(self.client.clone(), &self.namespace)
            .get_opt(location)
            .await
            .map_err(|source| OpenError::Api {
                name: location.to_owned(),
                source,
            })?
            .ok_or_else(|| OpenError::NoLocation(location.to_owned()))?;
        if write && object.spec.access_mode == Some(AccessMode::ReadOnly) {
            return Err(OpenError::ReadOnly(location.to_owned()));
        }
        let config = self.config(&object).await?;
        let password = self.password().await?;
        let fingerprint = fingerprint(&config, &password);

        let store = cell(&self.stores, fingerprint.clone());
        let store = store
            .get_or_try_init(|| async { open_location(config).await })
            .await
            .map_err(|source| OpenError::Storage {
                name: location.to_owned(),
                source,
            })?;
        let scoped: Arc<dyn ObjectStore> = Arc::new(Scoped::new(
            store.clone(),
            &jackline_storage::layout::restic_directory(volume_namespace),
        ));
        let repository = cell(&self.open, (fingerprint, volume_namespace.to_owned()));
        let repository = repository
            .get_or_try_init(|| async {
                let mut options =
                    OpenOptions::new(Password::new(password)).with_lock_wait(self.lock_wait);
                options.holder = self.holder.clone();
                options.judge = self.judge.clone();
                Repository::open(scoped, &options).await
            })
            .await
            .map_err(|source| OpenError::Repository {
                namespace: volume_namespace.to_owned(),
                location: location.to_owned(),
                source,
            })?;
        Ok(repository.clone())
    }

    /// Whether the location was changed since the repository was at `identifier`: the controller makes it where the location is now.
    pub async fn has_moved(
        &self,
        location: &str,
        volume_namespace: &str,
        identifier: &str,
    ) -> Result<bool, kube::Error> {
        let api = Api::<BackupStorageLocation>::namespaced(self.client.clone(), &self.namespace);
        let object = api.get_opt(location).await?;
        Ok(object.is_some_and(|object| is_elsewhere(&object, volume_namespace, identifier)))
    }

    async fn config(&self, object: &BackupStorageLocation) -> Result<LocationConfig, OpenError> {
        let spec = &object.spec;
        let credentials_file = match &spec.credential {
            Some(selector) => Some(self.text(selector).await?),
            None => None,
        };
        let storage = &spec.object_storage;
        let ca_cert = match (&storage.ca_cert, &storage.ca_cert_ref) {
            (Some(inline), _) if inline.0.is_empty() => None,
            (Some(inline), _) => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(&inline.0);
                Some(decoded.map_err(|_| OpenError::BadAuthority(object.name_any()))?)
            }
            (None, Some(selector)) => Some(self.text(selector).await?.into_bytes()),
            (None, None) => None,
        };
        Ok(LocationConfig {
            ca_cert,
            credentials_file,
            ..place(object)
        })
    }

    async fn password(&self) -> Result<String, OpenError> {
        let secret = SecretKeySelector {
            name: names::REPOSITORY_SECRET.to_owned(),
            key: names::REPOSITORY_PASSWORD_KEY.to_owned(),
            optional: None,
        };
        // restic takes a password file without the white space around it.
        Ok(self.text(&secret).await?.trim().to_owned())
    }

    async fn text(&self, selector: &SecretKeySelector) -> Result<String, OpenError> {
        let (name, key) = (&selector.name, &selector.key);
        let bytes = read_secret_key(&self.client, &self.namespace, name, key).await?;
        String::from_utf8(bytes).map_err(|_| {
            OpenError::NotText(format!("Secret {}/{name} key {key:?}", self.namespace))
        })
    }
}

/// Where a location is, without its Secrets.
fn place(location: &BackupStorageLocation) -> LocationConfig {
    let spec = &location.spec;
    let storage = &spec.object_storage;
    LocationConfig {
        provider: spec.provider.clone(),
        bucket: storage.bucket.clone(),
        prefix: storage.prefix.clone().unwrap_or_default(),
        config: spec.config.clone(),
        ..LocationConfig::default()
    }
}

fn is_elsewhere(location: &BackupStorageLocation, namespace: &str, identifier: &str) -> bool {
    restic_identifier(&place(location), namespace).is_ok_and(|now| now != identifier)
}

/// The cell for a key; entries of changed secrets are few and harmless.
fn cell<K: Clone + Eq + std::hash::Hash, T>(map: &Mutex<HashMap<K, Cell<T>>>, key: K) -> Cell<T> {
    map.lock().entry(key).or_default().clone()
}

/// A digest, so that no secret is a map key that could be printed.
fn fingerprint(config: &LocationConfig, password: &str) -> Fingerprint {
    let text = format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{password:?}",
        config.provider,
        config.bucket,
        config.prefix,
        config.config,
        config.ca_cert,
        config.credentials_file,
    );
    Fingerprint(names::short_hash(&text, 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_moved_when_its_location_is_another_place() {
        let location = |bucket: &str| -> BackupStorageLocation {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "here"},
                "spec": {"provider": "aws", "objectStorage": {"bucket": bucket}, "config": {"region": "r"}}}))
            .unwrap()
        };
        let was = restic_identifier(&place(&location("old")), "shop").unwrap();
        assert!(!is_elsewhere(&location("old"), "shop", &was));
        assert!(is_elsewhere(&location("new"), "shop", &was));
    }

    #[test]
    fn a_changed_secret_is_another_repository_and_does_not_show() {
        let config = LocationConfig {
            credentials_file: Some("aws_secret_access_key=topsecret".to_owned()),
            ..LocationConfig::default()
        };
        let one = fingerprint(&config, "password");
        assert_ne!(one, fingerprint(&config, "another"));
        let rotated = LocationConfig {
            credentials_file: None,
            ..config
        };
        assert_ne!(one, fingerprint(&rotated, "password"));
        let shown = format!("{one:?}");
        assert!(
            !shown.contains("topsecret") && !shown.contains("password"),
            "{shown}"
        );
    }
}
