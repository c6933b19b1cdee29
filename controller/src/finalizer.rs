//! Finalizers of objects that take something along when they go.

use std::fmt::Debug;

use jackline_crds::names::FIELD_MANAGER;
use jackline_runtime::{Failure, LeaderToken};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// The finalizers of an object with this one, or without it.
pub fn list<'a, K: Resource>(object: &'a K, name: &'a str, wanted: bool) -> Vec<&'a str> {
    let others = object.finalizers().iter().map(String::as_str);
    let mut finalizers: Vec<&str> = others.filter(|entry| *entry != name).collect();
    finalizers.extend(wanted.then_some(name));
    finalizers
}

/// Adds the finalizer or takes it away, unless that is so already. An object that is gone is no error; one that changed meanwhile is.
///
/// # Errors
/// When leadership is lost or the API server does not take the patch.
pub async fn set<K>(
    api: &Api<K>,
    object: &K,
    name: &str,
    wanted: bool,
    token: &LeaderToken,
) -> Result<(), Failure>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let there = object.finalizers().iter().any(|entry| entry == name);
    if there == wanted {
        return Ok(());
    }
    token.check()?;
    let patch = serde_json::json!({"metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "finalizers": list(object, name, wanted),
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api
        .patch_metadata(&object.name_any(), &params, &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
