//! Tells the node agents when nobody waits for a volume any more, so that they take the done-file out of it.
//!
//! A pod that leaves first must not take the file away from the others; which pods wait, only the controller sees, for they may be on
//! several nodes.

use std::sync::Arc;

use jackline_crds::{
    names::{FIELD_MANAGER, annotation, label},
    velero::{PodVolumePhase, PodVolumeRestore},
};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};

use super::pods::RestoredPod;
use crate::context::Context;

/// Starts the controller.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease, pods: &Store<RestoredPod>) {
    let queue = Queue::new("restore-waiters");
    let open = |volume: &PodVolumeRestore| {
        volume.phase() == PodVolumePhase::Completed
            && !volume.annotations().contains_key(annotation::WAITERS_LEFT)
    };
    context
        .stores
        .pod_volume_restores
        .enqueue(&queue, move |change| {
            let news = change.after.as_ref().is_some_and(|volume| open(volume));
            if news {
                vec![change.key.clone()]
            } else {
                Vec::new()
            }
        });
    {
        let (volumes, queue) = (context.stores.pod_volume_restores.clone(), queue.clone());
        pods.on_change(move |change| {
            let Some(uid) = change.either().and_then(|pod| pod.waits_for()) else {
                return;
            };
            let waiting = volumes.filter(|volume| {
                open(volume)
                    && volume
                        .labels()
                        .get(label::RESTORE_UID)
                        .is_some_and(|of| of == uid)
            });
            waiting
                .iter()
                .for_each(|volume| queue.add(Key::of(&**volume)));
        });
    }
    let (context, pods) = (context.clone(), pods.clone());
    kit.run_leading(&queue, RunOptions::new(), lease, move |key, token| {
        let (context, pods) = (context.clone(), pods.clone());
        async move {
            context.alone().await?;
            pass(&context, &pods, &key, &token).await
        }
    });
}

async fn pass(
    context: &Context,
    pods: &Store<RestoredPod>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    pods.ready().await;
    let Some(volume) = context.stores.pod_volume_restores.get(key) else {
        return Ok(Next::Done);
    };
    let told = volume.annotations().contains_key(annotation::WAITERS_LEFT);
    if volume.phase() != PodVolumePhase::Completed || told || !all_left(&volume, pods) {
        return Ok(Next::Done);
    }
    token.check()?;
    let patch = serde_json::json!({"metadata": {
        "uid": volume.metadata.uid,
        "annotations": {(annotation::WAITERS_LEFT): "true"},
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = context.api::<PodVolumeRestore>();
    match api.patch(&key.name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
        Err(error) => Err(error.into()),
    }
}

/// Whether every pod that waited for this volume's data has gone on, or is gone.
fn all_left(volume: &PodVolumeRestore, pods: &Store<RestoredPod>) -> bool {
    let Some(restore) = volume.labels().get(label::RESTORE_UID) else {
        return true;
    };
    let target = &volume.spec.pod;
    let namespace = target.namespace.as_deref();
    let carrier = pods.find(|pod| pod.metadata.uid == target.uid);
    let claim = carrier
        .as_ref()
        .and_then(|pod| pod.claim_of(&volume.spec.volume).map(str::to_owned));
    let claim = claim.as_deref();
    let waiting = pods.find(|pod| {
        let same = pod.metadata.uid == target.uid || claim.is_some_and(|claim| pod.mounts(claim));
        pod.namespace().as_deref() == namespace
            && pod.waits_for() == Some(restore)
            && same
            && !pod.has_left()
    });
    waiting.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, claim: &str, left: bool) -> RestoredPod {
        let state = if left {
            json!({"terminated": {"exitCode": 0}})
        } else {
            json!({"running": {}})
        };
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"initContainers": [{"name": "restore-wait", "args": ["r"]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]},
            "status": {"initContainerStatuses": [{"name": "restore-wait", "state": state}]}
        }))
        .unwrap()
    }

    #[test]
    fn the_last_waiter_counts() {
        let volume: PodVolumeRestore = serde_json::from_value(json!({
            "metadata": {"name": "x", "labels": {"velero.io/restore-uid": "r"}},
            "spec": {"pod": {"namespace": "n", "name": "a", "uid": "a"}, "volume": "v", "backupStorageLocation": "d",
                "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n"}
        }))
        .unwrap();
        let check = |pods: Vec<RestoredPod>| all_left(&volume, &Store::fixed(pods));
        assert!(check(vec![
            pod("a", "c", true),
            pod("b", "c", true),
            pod("z", "other", false)
        ]));
        assert!(!check(vec![pod("a", "c", true), pod("b", "c", false)]));
        assert!(!check(vec![pod("a", "c", false)]));
        assert!(check(vec![]));
    }
}
