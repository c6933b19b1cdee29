//! Single objects of the cluster, of any kind, with patience for an API server that is busy.

use std::time::Duration;

use jackline_crds::names::FIELD_MANAGER;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::Value;

/// How often a request is repeated that failed for no fault of its own.
const ATTEMPTS: u32 = 5;

/// Objects of one kind in one namespace (or outside of namespaces).
#[derive(Debug, Clone)]
pub struct Objects {
    api: Api<DynamicObject>,
}

impl Objects {
    /// `namespace` for kinds that have one.
    pub fn new(client: &Client, resource: &ApiResource, namespace: Option<&str>) -> Self {
        let client = client.clone();
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        Self { api }
    }

    /// The object as it is; `None` if it is not there.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn get(&self, name: &str) -> Result<Option<Value>, kube::Error> {
        let found = patiently(|| self.api.get_opt(name)).await?;
        found
            .map(|object| serde_json::to_value(object).map_err(kube::Error::SerdeError))
            .transpose()
    }

    /// Makes the object; `None` if one of its name is there already.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(&self, object: &Value) -> Result<Option<Value>, kube::Error> {
        let dynamic: DynamicObject =
            serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match patiently(|| self.api.create(&params, &dynamic)).await {
            Ok(made) => serde_json::to_value(made)
                .map(Some)
                .map_err(kube::Error::SerdeError),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Merge-patches the object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<(), kube::Error> {
        let (params, patch) = (params(), Patch::Merge(patch));
        patiently(|| self.api.patch(name, &params, &patch))
            .await
            .map(|_| ())
    }

    /// Merge-patches the object's status.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch_status(&self, name: &str, patch: &Value) -> Result<(), kube::Error> {
        let (params, patch) = (params(), Patch::Merge(patch));
        patiently(|| self.api.patch_status(name, &params, &patch))
            .await
            .map(|_| ())
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Repeats a request while the API server is overloaded or cannot be reached.
pub async fn patiently<T, F>(request: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let mut attempt = 1;
    loop {
        match request().await {
            Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                tokio::time::sleep(Duration::from_millis(200) * 2_u32.pow(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Whether the error says nothing about the request.
pub fn is_passing(error: &kube::Error) -> bool {
    match error {
        // A namespace that was just made may not be known everywhere, nor its quota be counted.
        kube::Error::Api(status) => {
            status.code == 429
                || status.code >= 500
                || (status.code == 403
                    && status.message.contains("quota")
                    && status.message.contains("wait"))
        }
        kube::Error::SerdeError(_) => false,
        _ => true,
    }
}
