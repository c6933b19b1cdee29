//! An object of this node as it was last written, and its status.

use std::fmt::Debug;

use jackline_crds::names::AGENT_FIELD_MANAGER;
use jackline_runtime::{
    Failure,
    status::{Guard, write_status_and_metadata},
};
use kube::{Api, Resource, ResourceExt, core::object::HasStatus};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub(crate) struct Record<K> {
    api: Api<K>,
    object: Mutex<K>,
}

impl<K> Record<K>
where
    K: Resource + HasStatus + Serialize + DeserializeOwned + Clone + Debug,
    K::Status: Serialize + Clone + Default,
{
    pub fn new(api: Api<K>, object: K) -> Self {
        Self {
            api,
            object: Mutex::new(object),
        }
    }

    pub fn status(&self) -> K::Status {
        self.object.lock().status().cloned().unwrap_or_default()
    }

    /// Writes what differs, onto this very object.
    pub async fn write(&self, status: &K::Status) -> Result<(), Failure> {
        self.write_with(status, &json!({})).await
    }

    /// As [`Self::write`], with labels or annotations.
    pub async fn write_with(&self, status: &K::Status, metadata: &Value) -> Result<(), Failure> {
        let observed = self.object.lock().clone();
        let written = write_status_and_metadata(
            &self.api,
            &observed,
            status,
            metadata,
            Guard::SameObject,
            AGENT_FIELD_MANAGER,
        )
        .await?;
        if let Some(object) = written {
            *self.object.lock() = object;
        }
        Ok(())
    }

    /// Whether somebody else ended it meanwhile or deleted it; the watch of an agent that stood still does not know yet.
    pub async fn is_over(&self, ended: impl FnOnce(&K) -> bool) -> bool {
        let (name, uid) = {
            let object = self.object.lock();
            (object.name_any(), object.uid())
        };
        match self.api.get_opt(&name).await {
            Ok(Some(now)) => now.uid() != uid || ended(&now),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Writes progress: the work goes on whether or not it arrives.
    pub async fn show(&self, progress: impl FnOnce(&mut K::Status)) {
        let mut status = self.status();
        progress(&mut status);
        if let Err(error) = self.write(&status).await {
            tracing::debug!(%error, "progress not written");
        }
    }
}
