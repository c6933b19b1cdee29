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
        self.put(status, &json!({}), Guard::SameObject).await
    }

    /// Writes that the work begins, with labels or annotations, unless somebody wrote in between: what was ended or canceled meanwhile
    /// must not begin again.
    pub async fn begin(&self, status: &K::Status, metadata: &Value) -> Result<(), Failure> {
        self.put(status, metadata, Guard::SameVersion).await
    }

    async fn put(&self, status: &K::Status, metadata: &Value, guard: Guard) -> Result<(), Failure> {
        let observed = self.object.lock().clone();
        let written = write_status_and_metadata(
            &self.api,
            &observed,
            status,
            metadata,
            guard,
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use jackline_crds::velero::{PodVolumeBackup, PodVolumeBackupStatus, PodVolumePhase};
    use jackline_runtime::Class;
    use kube::{Client, client::Body};

    use super::*;

    fn volume(version: &str, phase: &str) -> PodVolumeBackup {
        serde_json::from_value(json!({
            "metadata": {"name": "b-1", "namespace": "velero", "uid": "u", "resourceVersion": version},
            "spec": {"node": "n", "pod": {}, "volume": "data", "backupStorageLocation": "l", "repoIdentifier": ""},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    /// An API server whose object has version 2 now.
    async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let body = request.into_body().collect_bytes().await.unwrap();
        let patch: Value = serde_json::from_slice(&body).unwrap();
        let version = &patch["metadata"]["resourceVersion"];
        let (status, answer) = if version.is_null() || version == "2" {
            (200, json!(volume("3", "InProgress")))
        } else {
            let conflict = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "the object has been modified", "reason": "Conflict", "code": 409});
            (409, conflict)
        };
        let body = Body::from(answer.to_string().into_bytes());
        Ok(Response::builder().status(status).body(body).unwrap())
    }

    #[tokio::test]
    async fn what_somebody_has_ended_meanwhile_does_not_begin_again() {
        let client = Client::new(tower::service_fn(answer), "velero");
        let status = PodVolumeBackupStatus {
            phase: Some(PodVolumePhase::InProgress),
            ..PodVolumeBackupStatus::default()
        };
        let record = |version| {
            let api = Api::<PodVolumeBackup>::namespaced(client.clone(), "velero");
            Record::new(api, volume(version, "New"))
        };
        let refused = record("1").begin(&status, &json!({})).await.unwrap_err();
        assert_eq!(refused.class, Class::Conflict, "it is looked at again");
        record("2").begin(&status, &json!({})).await.unwrap();
        // What is known of the work goes onto whatever is there.
        record("1").write(&status).await.unwrap();
    }
}
