//! The password of the repositories (design: "Data on disk and in the bucket").
//!
//! An existing Secret is used as it is. A missing one is made, with 256 random bits, only while no location holds a repository: a new
//! password beside old repositories would make every one of them unreadable to whoever trusts the Secret.

use std::collections::BTreeMap;

use jackline_crds::names::{REPOSITORY_PASSWORD_KEY, REPOSITORY_SECRET};
use jackline_repository::Password;
use jackline_runtime::secrets::{ReadError, read_secret_key};
use jackline_storage::ObjectStore;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::open::LocationError;

/// Reads the password.
///
/// # Errors
/// When the Secret or its key is missing, or cannot be read, or is not text.
pub async fn read(client: &Client, namespace: &str) -> Result<Password, LocationError> {
    let (name, key) = (REPOSITORY_SECRET, REPOSITORY_PASSWORD_KEY);
    let bytes = read_secret_key(client, namespace, name, key).await?;
    let text = String::from_utf8(bytes).map_err(|_| LocationError::NotText {
        name: name.into(),
        key: key.into(),
    })?;
    // As restic reads a password file: what `echo` wrote has a line end.
    Ok(Password::new(text.trim()))
}

/// What is known about the password of a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordState {
    /// There is one.
    Present,
    /// There is none, and nothing yet that one was used for.
    MayBeMade,
    /// There is none, but these repositories were made with one.
    Lost(String),
}

/// Looks whether the password exists, and if not, whether `store` holds repositories.
///
/// # Errors
/// When the API server or the store does not answer.
pub async fn state(
    client: &Client,
    namespace: &str,
    store: &dyn ObjectStore,
) -> Result<PasswordState, LocationError> {
    let why = match read(client, namespace).await {
        Ok(_) => return Ok(PasswordState::Present),
        Err(LocationError::Secret(error)) if error.is_absent() => error,
        Err(error) => return Err(error),
    };
    let found = repositories(store).await?;
    // A Secret that exists is never changed: only its owner knows what it is for.
    if matches!(why, ReadError::Missing { .. }) && found.is_empty() {
        return Ok(PasswordState::MayBeMade);
    }
    let shown = found.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let held = match found.len() {
        0 => String::new(),
        1..=3 => format!(", and the location holds repositories ({shown})"),
        more => format!(", and the location holds {more} repositories ({shown}, …)"),
    };
    Ok(PasswordState::Lost(format!(
        "{why}{held}: put the password that the repositories were made with into key \
         {REPOSITORY_PASSWORD_KEY} of Secret {namespace}/{REPOSITORY_SECRET}; a new one is not made"
    )))
}

/// The namespaces whose repositories a location holds.
///
/// # Errors
/// When the store does not answer.
pub async fn repositories(store: &dyn ObjectStore) -> Result<Vec<String>, LocationError> {
    let listing = store.list_level("restic").await?;
    let names = listing.prefixes.iter().filter_map(|prefix| {
        let name = prefix.strip_prefix("restic/")?.trim_end_matches('/');
        (!name.is_empty()).then(|| name.to_owned())
    });
    Ok(names.collect())
}

/// Makes the Secret with a new password. Whoever made one in the meantime wins.
///
/// # Errors
/// When the API server does not take it.
pub async fn make(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let bits: [u8; 32] = rand::random();
    let password = hex::encode(bits);
    let data = BTreeMap::from([(
        REPOSITORY_PASSWORD_KEY.to_owned(),
        ByteString(password.into_bytes()),
    )]);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(REPOSITORY_SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(
                "component".to_owned(),
                "velero".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::warn!(
                secret = %format!("{namespace}/{REPOSITORY_SECRET}"),
                "made a password for the repositories: keep a copy outside this cluster, without it the backups cannot be read"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}
