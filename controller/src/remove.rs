//! Removing objects.

use std::fmt::Debug;

use jackline_runtime::{Failure, LeaderToken};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Deletes this very object, not another of its name. One that is gone already is no error.
///
/// # Errors
/// When leadership is lost or the API server does not take it.
pub async fn remove<K>(api: &Api<K>, object: &K, token: &LeaderToken) -> Result<(), Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    token.check()?;
    let preconditions = Preconditions {
        uid: object.meta().uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::background()
    };
    match api.delete(&object.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
