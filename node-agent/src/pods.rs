//! What the agent reads from a pod.

use k8s_openapi::api::core::v1::{
    ContainerState, PersistentVolume, PersistentVolumeClaim, Pod, Volume,
};
use kube::{Api, Client, ResourceExt};

use jackline_crds::names;

use crate::paths::{PathError, Wanted};

/// Name of the init container that older Velero versions used.
const RESTIC_WAIT: &str = "restic-wait";

/// Why a pod's volume cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod has no such volume.
    #[error("pod {pod} has no volume {volume}")]
    NoVolume {
        /// Namespace and name.
        pod: String,
        /// Name in the pod.
        volume: String,
    },
    /// The claim is not bound, so there is no data.
    #[error("claim {claim} is not bound to a volume")]
    Unbound {
        /// Namespace and name.
        claim: String,
    },
    /// The claim is not there.
    #[error("claim {claim} does not exist")]
    NoClaim {
        /// Namespace and name.
        claim: String,
    },
    /// The volume's directory cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The API server did not answer.
    #[error("the claim or volume cannot be read")]
    Api(#[from] kube::Error),
}

/// The volume of this name.
pub(crate) fn volume<'a>(pod: &'a Pod, name: &str) -> Option<&'a Volume> {
    pod.spec
        .as_ref()?
        .volumes
        .as_ref()?
        .iter()
        .find(|volume| volume.name == name)
}

/// Name of the claim behind a volume, if it is one.
pub(crate) fn claim(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(claim.claim_name.clone());
    }
    // The name that the ephemeral volume controller gives.
    volume
        .ephemeral
        .as_ref()
        .map(|_| format!("{}-{}", pod.name_any(), volume.name))
}

/// Whether the pod has ended for good: its volumes are being taken down.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What identifies the volume's directory on the node.
pub(crate) async fn wanted(client: &Client, pod: &Pod, name: &str) -> Result<Wanted, VolumeError> {
    let namespace = pod.namespace().unwrap_or_default();
    let volume = volume(pod, name).ok_or_else(|| VolumeError::NoVolume {
        pod: format!("{namespace}/{}", pod.name_any()),
        volume: name.to_owned(),
    })?;
    let pod_uid = pod.uid().unwrap_or_default();
    let Some(claim) = claim(pod, volume) else {
        let medium = volume.empty_dir.as_ref().and_then(|dir| dir.medium.clone());
        return Ok(Wanted {
            pod_uid,
            directory: name.to_owned(),
            medium,
        });
    };
    let qualified = format!("{namespace}/{claim}");
    let object = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &namespace)
        .get_opt(&claim)
        .await?
        .ok_or_else(|| VolumeError::NoClaim {
            claim: qualified.clone(),
        })?;
    let bound = object
        .spec
        .and_then(|spec| spec.volume_name)
        .filter(|name| !name.is_empty());
    let directory = bound.ok_or(VolumeError::Unbound { claim: qualified })?;
    let pv = Api::<PersistentVolume>::all(client.clone())
        .get_opt(&directory)
        .await?;
    let mode = pv.and_then(|pv| pv.spec).and_then(|spec| spec.volume_mode);
    if mode.as_deref() == Some("Block") {
        return Err(PathError::Block {
            volume: name.to_owned(),
        }
        .into());
    }
    Ok(Wanted {
        pod_uid,
        directory,
        medium: None,
    })
}

/// When the pod's restore-wait container began to run, if it runs now and waits for this restore's data.
pub(crate) fn waits_since(pod: &Pod, restore_uid: &str) -> Option<jiff::Timestamp> {
    runs_since(pod, restore_uid).filter(|_| !is_restored(pod, restore_uid))
}

/// The same, also where the pod is marked as restored: a waiter of an earlier version does not see that.
pub(crate) fn runs_since(pod: &Pod, restore_uid: &str) -> Option<jiff::Timestamp> {
    let running = waiter(pod, restore_uid)?.running.as_ref()?;
    Some(
        running
            .started_at
            .as_ref()
            .map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
    )
}

/// Whether the pod's restore-wait container has gone on: it saw the done-file of every volume that it waited for.
pub(crate) fn has_waited(pod: &Pod, restore_uid: &str) -> bool {
    let state = waiter(pod, restore_uid);
    let end = state.and_then(|state| state.terminated.as_ref());
    is_restored(pod, restore_uid) || end.is_some_and(|end| end.exit_code == 0)
}

/// Whether the controller saw it go on; that stays known when the container runs again.
fn is_restored(pod: &Pod, restore_uid: &str) -> bool {
    let restored = pod.annotations().get(names::annotation::RESTORED);
    !restore_uid.is_empty() && restored.is_some_and(|uid| uid == restore_uid)
}

/// State of the restore-wait container for this restore.
fn waiter<'a>(pod: &'a Pod, restore_uid: &str) -> Option<&'a ContainerState> {
    let is_wait = |name: &str| name == names::RESTORE_WAIT || name == RESTIC_WAIT;
    let container = pod
        .spec
        .as_ref()?
        .init_containers
        .as_ref()?
        .iter()
        .find(|container| is_wait(&container.name))?;
    let args = container.args.as_deref().unwrap_or_default();
    if !restore_uid.is_empty() && !args.iter().any(|arg| arg == restore_uid) {
        return None;
    }
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let status = statuses
        .iter()
        .find(|status| status.name == container.name)?;
    status.state.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u"},
            "spec": {
                "containers": [],
                "initContainers": [{"name": "restore-wait", "args": ["r1"]}],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "scratch", "ephemeral": {}},
                    {"name": "cache", "emptyDir": {"medium": "Memory"}},
                ],
            },
            "status": {"initContainerStatuses": [
                {"name": "restore-wait", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_waits_while_its_first_container_runs() {
        let running = pod(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        assert!(waits_since(&running, "r1").is_some());
        assert!(
            waits_since(&running, "other").is_none(),
            "it waits for another restore"
        );
        assert!(waits_since(&pod(json!({"waiting": {}})), "r1").is_none());
        let over = pod(json!({"terminated": {"exitCode": 0}}));
        assert!(waits_since(&over, "r1").is_none());
        assert!(has_waited(&over, "r1") && !has_waited(&over, "other"));
        assert!(!has_waited(&running, "r1"));
        assert!(!has_waited(
            &pod(json!({"terminated": {"exitCode": 143}})),
            "r1"
        ));
    }

    #[test]
    fn a_pod_that_was_restored_waits_no_more_when_its_node_restarts() {
        let mut again = pod(json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}));
        let restored = |uid: &str| {
            let name = names::annotation::RESTORED.to_owned();
            Some([(name, uid.to_owned())].into())
        };
        again.metadata.annotations = restored("r0");
        assert!(waits_since(&again, "r1").is_some() && !has_waited(&again, "r1"));
        again.metadata.annotations = restored("r1");
        assert!(waits_since(&again, "r1").is_none() && has_waited(&again, "r1"));
        assert!(runs_since(&again, "r1").is_some());
    }

    #[test]
    fn claims_are_named_as_the_kubelet_names_them() {
        let pod = pod(json!({}));
        let name = |name| volume(&pod, name).and_then(|v| claim(&pod, v));
        assert_eq!(name("data").as_deref(), Some("claim"));
        assert_eq!(name("scratch").as_deref(), Some("web-scratch"));
        assert_eq!(name("cache"), None);
    }
}
