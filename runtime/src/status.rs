//! Status writes: only what differs, only onto the object that was looked at.

use std::fmt::Debug;

use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Where a kind keeps its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusAt {
    /// `…/status` (jackline.dev kinds).
    Subresource,
    /// The object itself (velero.io kinds have no status subresource).
    Main,
}

/// How sure the writer wants to be that nobody wrote in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The object is still the same one (UID): progress, conditions.
    SameObject,
    /// The object is exactly what was looked at (resourceVersion): phase transitions that only one may make.
    SameVersion,
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The status cannot be put into JSON.
    #[error("status of {name} cannot be encoded")]
    Encode {
        /// The object.
        name: String,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// The object has gone or was replaced by another of the same name.
    #[error("{0} is gone")]
    Gone(String),
    /// The API server did not take it.
    #[error("status of {name} cannot be written")]
    Api {
        /// The object.
        name: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
}

impl From<StatusError> for crate::Failure {
    fn from(error: StatusError) -> Self {
        let (class, reason) = match &error {
            StatusError::Encode { .. } => (crate::Class::Terminal, "Unencodable"),
            // Whoever removed the object wakes the key; nothing else to do.
            StatusError::Gone(_) => (crate::Class::Conflict, "Gone"),
            StatusError::Api { source, .. } => crate::failure::classify(source),
        };
        Self::new(class, reason, error)
    }
}

/// Makes `status` the status of `observed`, if it is not already. Gives the new object, or `None` when nothing had to be written.
///
/// The whole status is meant: fields that `desired` leaves out are removed.
pub async fn write_status<K, S>(
    api: &Api<K>,
    observed: &K,
    desired: &S,
    at: StatusAt,
    guard: Guard,
    manager: &str,
) -> Result<Option<K>, StatusError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    S: Serialize,
{
    let none = Value::Object(Map::new());
    write(api, observed, desired, &none, at, guard, manager).await
}

/// Makes `status` the status and adds `metadata` (labels, annotations) in the same write; for kinds with their status in the main
/// resource.
pub async fn write_status_and_metadata<K, S>(
    api: &Api<K>,
    observed: &K,
    desired: &S,
    metadata: &Value,
    guard: Guard,
    manager: &str,
) -> Result<Option<K>, StatusError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    S: Serialize,
{
    write(
        api,
        observed,
        desired,
        metadata,
        StatusAt::Main,
        guard,
        manager,
    )
    .await
}

async fn write<K, S>(
    api: &Api<K>,
    observed: &K,
    desired: &S,
    metadata: &Value,
    at: StatusAt,
    guard: Guard,
    manager: &str,
) -> Result<Option<K>, StatusError>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    S: Serialize,
{
    let name = observed.name_any();
    let encode = |source| StatusError::Encode {
        name: name.clone(),
        source,
    };
    let before = serde_json::to_value(observed).map_err(encode)?;
    let after = serde_json::to_value(desired).map_err(encode)?;
    let status = difference(before.get("status").unwrap_or(&Value::Null), &after);
    let changed = !contains(before.get("metadata").unwrap_or(&Value::Null), metadata);
    if status.is_none() && !changed {
        return Ok(None);
    }
    let mut metadata = metadata.as_object().cloned().unwrap_or_default();
    if let Some(uid) = observed.uid() {
        metadata.insert("uid".to_owned(), Value::String(uid));
    }
    if let (Guard::SameVersion, Some(version)) = (guard, observed.resource_version()) {
        metadata.insert("resourceVersion".to_owned(), Value::String(version));
    }
    let mut body = Map::new();
    body.insert("metadata".to_owned(), Value::Object(metadata));
    if let Some(status) = status {
        body.insert("status".to_owned(), status);
    }
    let body = Patch::Merge(Value::Object(body));
    let params = PatchParams {
        field_manager: Some(manager.to_owned()),
        ..PatchParams::default()
    };
    let result = match at {
        StatusAt::Subresource => api.patch_status(&name, &params, &body).await,
        StatusAt::Main => api.patch(&name, &params, &body).await,
    };
    match result {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if is_gone(&status) => Err(StatusError::Gone(name)),
        Err(source) => Err(StatusError::Api { name, source }),
    }
}

/// 404, or a UID precondition that failed: the API server says so in the message of a 409.
fn is_gone(status: &kube::core::Status) -> bool {
    status.code == 404 || (status.code == 409 && status.message.contains("UID"))
}

/// The merge patch that makes `after` of `before`; `None` when they are the same. Absent and null are the same.
pub fn difference(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                let known = old.get(key).unwrap_or(&Value::Null);
                if let Some(change) = difference(known, value) {
                    patch.insert(key.clone(), change);
                }
            }
            for (key, value) in old {
                if !new.contains_key(key) && !value.is_null() {
                    patch.insert(key.clone(), Value::Null);
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if before == after => None,
        (Value::Null, Value::Object(new)) => {
            // Nulls inside would only remove what is not there.
            let mut new = new.clone();
            new.retain(|_, value| !value.is_null());
            Some(Value::Object(new))
        }
        _ => Some(after.clone()),
    }
}

/// Whether `value` already holds everything that the merge patch `part` sets.
fn contains(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (_, Value::Null) => value.is_null(),
        (Value::Object(value), Value::Object(part)) => part
            .iter()
            .all(|(key, wanted)| contains(value.get(key).unwrap_or(&Value::Null), wanted)),
        _ => value == part,
    }
}

#[cfg(test)]
mod tests;
