//! What both controllers of the agent share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jackline_crds::{
    foreign,
    velero::{PodVolumeBackup, PodVolumeRestore},
};
use jackline_runtime::{CancellationToken, Event, EventKind, Events, Failure, Key, Store};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Api, Client, Resource};
use tokio::sync::Semaphore;

use crate::{
    metrics::Metrics,
    paths::{self, Found, PathError},
    pods::{self, VolumeError},
    repos::Repositories,
};

/// Time after which a directory that does not answer counts as dead (a network volume whose server is gone).
const RESOLVE_DEADLINE: Duration = Duration::from_secs(30);

/// How soon a Velero is seen to have gone.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Context {
    pub node: String,
    pub namespace: String,
    pub host_pods: PathBuf,
    pub client: ClientBox,
    /// Pods of this node.
    pub pods: Store<Pod>,
    /// Pods of a Velero in this namespace.
    pub veleros: Store<Pod>,
    /// PodVolumeBackups of this node that have not ended.
    pub backups: Store<PodVolumeBackup>,
    pub restores: Store<PodVolumeRestore>,
    pub repositories: Repositories,
    pub events: Events,
    pub metrics: Metrics,
    /// Volumes at once, backups and restores together.
    pub slots: Arc<Semaphore>,
    pub give_up_after: Duration,
    pub shutdown: CancellationToken,
}

/// The client, without its missing `Debug`.
#[derive(Clone)]
pub(crate) struct ClientBox(pub Client);

impl std::fmt::Debug for ClientBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Whether the pod that an object names is here.
#[derive(Debug, Clone)]
pub(crate) enum PodHere {
    Yes(Arc<Pod>),
    /// Another pod of the same name has taken its place.
    Replaced,
    No,
}

impl Context {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.0.clone(), &self.namespace)
    }

    /// Whether no Velero works on the objects of this namespace.
    ///
    /// # Errors
    /// While one does, which is said on the object that waits and its pod.
    pub async fn alone<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        target: &ObjectReference,
    ) -> Result<(), Failure> {
        self.veleros.ready().await;
        let pods = self.veleros.list();
        let Some(why) = foreign::at_work(pods.iter().map(AsRef::as_ref)) else {
            return Ok(());
        };
        self.warn(object, target, "ForeignVelero", why.clone());
        Err(Failure::waiting(LOOK_AGAIN, "ForeignVelero", why))
    }

    /// The pod of this reference, as far as it is on this node. Wait for `pods.ready()` first.
    pub fn pod(&self, reference: &ObjectReference) -> PodHere {
        find_pod(&self.pods, reference)
    }

    /// Over when the pod has left this node, was replaced, or has ended.
    pub async fn pod_gone(&self, reference: &ObjectReference) {
        self.pods
            .wait_for(|pods| match find_pod(pods, reference) {
                PodHere::Yes(pod) => pods::is_over(&pod).then_some(()),
                PodHere::No | PodHere::Replaced => Some(()),
            })
            .await;
    }

    /// The volume's directory, checked to be the volume.
    pub async fn resolve(&self, pod: &Pod, volume: &str) -> Result<Found, VolumeError> {
        let wanted = pods::wanted(&self.client.0, pod, volume).await?;
        let host_pods = self.host_pods.clone();
        let path = self.host_pods.join(&wanted.pod_uid);
        Ok(ask(&path, move || paths::resolve(&host_pods, &wanted)).await??)
    }

    /// Says what keeps a volume from being moved, on the object and the pod.
    pub fn warn<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        pod: &ObjectReference,
        reason: &'static str,
        note: String,
    ) {
        self.events.publish(Event {
            regarding: object.object_ref(&()),
            related: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                ..pod.clone()
            }),
            kind: EventKind::Warning,
            reason,
            action: "MoveVolumeData",
            note,
        });
    }
}

/// Looks at a volume, off the async threads and not for ever.
pub(crate) async fn ask<T: Send + 'static>(
    path: &Path,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PathError> {
    let looking = tokio::task::spawn_blocking(look);
    let source = match tokio::time::timeout(RESOLVE_DEADLINE, looking).await {
        Ok(Ok(seen)) => return Ok(seen),
        Ok(Err(panic)) => std::io::Error::other(panic),
        Err(_) => std::io::ErrorKind::TimedOut.into(),
    };
    Err(PathError::Io {
        path: path.display().to_string(),
        source,
    })
}

fn find_pod(pods: &Store<Pod>, reference: &ObjectReference) -> PodHere {
    let key = Key {
        namespace: reference.namespace.clone(),
        name: reference.name.clone().unwrap_or_default(),
    };
    let Some(pod) = pods.get(&key) else {
        return PodHere::No;
    };
    match &reference.uid {
        Some(uid) if !uid.is_empty() && pod.metadata.uid.as_ref() != Some(uid) => PodHere::Replaced,
        _ => PodHere::Yes(pod),
    }
}
