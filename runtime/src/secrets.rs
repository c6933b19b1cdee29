//! Reading single values from Secrets and ConfigMaps.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

/// Why a value could not be read. Names the object and the key, never the value.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is not there.
    #[error("{kind} {namespace}/{name} does not exist")]
    Missing {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Namespace that was looked in.
        namespace: String,
        /// Name that was looked for.
        name: String,
    },
    /// The object has no such key, or it is empty.
    #[error("{kind} {namespace}/{name} has no key {key:?}")]
    NoKey {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
        /// Key that was looked for.
        key: String,
    },
    /// The API server did not answer, or said no.
    #[error("{kind} {namespace}/{name} cannot be read")]
    Api {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

impl ReadError {
    /// The object or its key is absent; asking again without a change is useless.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NoKey { .. })
    }
}

/// The bytes under `key` of a Secret.
pub async fn read_secret_key(
    client: &Client,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<Vec<u8>, ReadError> {
    let (kind, owned) = ("Secret", || (namespace.to_owned(), name.to_owned()));
    let secret = Api::<Secret>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await
        .map_err(|source| api_error(kind, namespace, name, source))?;
    let Some(secret) = secret else {
        let (namespace, name) = owned();
        return Err(ReadError::Missing {
            kind,
            namespace,
            name,
        });
    };
    match secret.data.and_then(|mut data| data.remove(key)) {
        Some(value) if !value.0.is_empty() => Ok(value.0),
        _ => {
            let (namespace, name) = owned();
            Err(ReadError::NoKey {
                kind,
                namespace,
                name,
                key: key.to_owned(),
            })
        }
    }
}

/// The text under `key` of a ConfigMap.
pub async fn read_config_key(
    client: &Client,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<String, ReadError> {
    let (kind, owned) = ("ConfigMap", || (namespace.to_owned(), name.to_owned()));
    let map = Api::<ConfigMap>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await
        .map_err(|source| api_error(kind, namespace, name, source))?;
    let Some(map) = map else {
        let (namespace, name) = owned();
        return Err(ReadError::Missing {
            kind,
            namespace,
            name,
        });
    };
    map.data
        .and_then(|mut data| data.remove(key))
        .ok_or_else(|| {
            let (namespace, name) = owned();
            ReadError::NoKey {
                kind,
                namespace,
                name,
                key: key.to_owned(),
            }
        })
}

fn api_error(kind: &'static str, namespace: &str, name: &str, source: kube::Error) -> ReadError {
    ReadError::Api {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        source,
    }
}
