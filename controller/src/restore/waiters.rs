//! What is to be told when pods have gone on with their data.
//!
//! The node agents: when nobody waits for a volume any more, so that they take the done-file out of it. A pod that leaves first must not
//! take the file away from the others; which pods wait, only the controller sees, for they may be on several nodes.
//!
//! And the pod itself: its waiter runs again after a restart of its node, when the restore and all that it made may long be gone.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use jackline_crds::{
    names::{annotation, label},
    velero::{PodVolumePhase, PodVolumeRestore},
};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch},
};

use super::{params, pods::RestoredPod, volumes};
use crate::context::Context;

/// How soon the watch is looked at again when it did not have a pod that waits.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

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
            let news = change.after.as_ref().filter(|volume| open(volume));
            news.map(|_| change.key.clone()).into_iter().collect()
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
    let run = |queue: &Queue<Key>, pass: Pass| {
        let (context, pods) = (context.clone(), pods.clone());
        kit.run_leading(queue, RunOptions::new(), lease, move |key, token| {
            let (context, pods) = (context.clone(), pods.clone());
            async move {
                context.alone().await?;
                pods.ready().await;
                pass(&context, &pods, &key, &token).await
            }
        });
    };
    run(&queue, |context, pods, key, token| {
        tell_agents(context, pods, key, token).boxed()
    });
    let queue = Queue::new("restored-pods");
    pods.enqueue(&queue, |change| {
        let news = change.after.as_ref().filter(|pod| is_to_be_told(pod));
        news.map(|_| change.key.clone()).into_iter().collect()
    });
    run(&queue, |context, pods, key, token| {
        tell_pod(context, pods, key, token).boxed()
    });
}

type Pass = for<'a> fn(
    &'a Context,
    &'a Store<RestoredPod>,
    &'a Key,
    &'a LeaderToken,
) -> BoxFuture<'a, Result<Next, Failure>>;

/// Whether a pod has seen its data and does not say so itself yet.
fn is_to_be_told(pod: &RestoredPod) -> bool {
    let told = pod.annotations().get(annotation::RESTORED);
    pod.has_data() && told.map(String::as_str) != pod.waits_for()
}

async fn tell_pod(
    context: &Context,
    pods: &Store<RestoredPod>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(pod) = pods.get(key).filter(|pod| is_to_be_told(pod)) else {
        return Ok(Next::Done);
    };
    token.check()?;
    let patch = serde_json::json!({"metadata": {
        "uid": pod.metadata.uid,
        "annotations": {(annotation::RESTORED): pod.waits_for()},
    }});
    let api: Api<RestoredPod> = Api::namespaced(context.clients.call.clone(), key.ns());
    match api
        .patch_metadata(&key.name, &params(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(Next::Done),
        // Gone, or another of its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Next::Done),
        Err(error) => Err(error.into()),
    }
}

async fn tell_agents(
    context: &Context,
    pods: &Store<RestoredPod>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(volume) = context.stores.pod_volume_restores.get(key) else {
        return Ok(Next::Done);
    };
    let told = volume.annotations().contains_key(annotation::WAITERS_LEFT);
    if volume.phase() != PodVolumePhase::Completed || told || !all_left(&volume, pods) {
        return Ok(Next::Done);
    }
    // The watch may be behind what was just made, and what is told here is never taken back.
    let namespace = volume.spec.pod.namespace.as_deref().unwrap_or_default();
    let api: Api<RestoredPod> = Api::namespaced(context.clients.call.clone(), namespace);
    let restore = volume.labels().get(label::RESTORE_NAME);
    let restored = match restore {
        Some(restore) => format!("{}={restore}", label::RESTORE_NAME),
        None => label::RESTORE_NAME.to_owned(),
    };
    let restored = ListParams::default().labels(&restored);
    if !all_left(&volume, &Store::fixed(api.list(&restored).await?)) {
        return Ok(Next::After(LOOK_AGAIN));
    }
    token.check()?;
    let patch = serde_json::json!({"metadata": {
        "uid": volume.metadata.uid,
        "annotations": {(annotation::WAITERS_LEFT): "true"},
    }});
    let api = context.api::<PodVolumeRestore>();
    match api.patch(&key.name, &params(), &Patch::Merge(patch)).await {
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
    // The pod that carried the data may be the first that is gone.
    let claim = volume.annotations().get(volumes::CLAIM).map(String::as_str);
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
    use crate::context::unwatched;
    use serde_json::{Value, json};

    fn pod(name: &str, claim: &str, left: bool) -> RestoredPod {
        let state = if left {
            json!({"terminated": {"exitCode": 0}})
        } else {
            json!({"running": {}})
        };
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"velero.io/restore-name": "again"}},
            "spec": {"initContainers": [{"name": "restore-wait", "args": ["r"]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]},
            "status": {"initContainerStatuses": [{"name": "restore-wait", "state": state}]}
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_told_once_that_it_has_its_data() {
        let mut pod = pod("a", "c", true);
        assert!(is_to_be_told(&pod));
        for (told, expected) in [("r", false), ("another restore's", true)] {
            let told = (annotation::RESTORED.to_owned(), told.to_owned());
            pod.metadata.annotations = Some([told].into());
            assert_eq!(is_to_be_told(&pod), expected);
        }
        assert!(!is_to_be_told(&self::pod("a", "c", false)));
    }

    fn volume() -> Value {
        json!({
            "metadata": {"name": "x", "namespace": "velero", "labels": {"velero.io/restore-uid": "r", "velero.io/restore-name": "again"},
                "annotations": {"velero.io/pvc-name": "c"}},
            "spec": {"pod": {"namespace": "n", "name": "a", "uid": "a"}, "volume": "v", "backupStorageLocation": "d",
                "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n"},
            "status": {"phase": "Completed"}
        })
    }

    #[tokio::test]
    async fn agents_are_told_nothing_while_a_pod_waits_that_the_watch_lacks() {
        let (token, _held) = LeaderToken::for_tests();
        for (left, expected) in [(false, Next::After(LOOK_AGAIN)), (true, Next::Done)] {
            let pods = [pod("a", "c", true), pod("b", "c", left)];
            let pods = pods.map(|pod| serde_json::to_value(pod).unwrap());
            let at = unwatched::path("podvolumerestores", "x");
            let objects = [
                ("/api/v1/namespaces/n/pods", unwatched::list(&pods)),
                (&at, volume()),
            ];
            let mut context = unwatched::context(&objects);
            let known: PodVolumeRestore = serde_json::from_value(volume()).unwrap();
            let stores = &mut Arc::get_mut(&mut context).unwrap().stores;
            stores.pod_volume_restores = Store::fixed([known]);
            let pods = Store::fixed([pod("a", "c", true)]);
            let key = context.key("x");
            let next = tell_agents(&context, &pods, &key, &token).await.unwrap();
            assert_eq!(next, expected, "{left}");
        }
    }

    #[test]
    fn the_last_waiter_counts() {
        let volume = serde_json::from_value(volume()).unwrap();
        let check = |pods: Vec<RestoredPod>| all_left(&volume, &Store::fixed(pods));
        assert!(check(vec![
            pod("a", "c", true),
            pod("b", "c", true),
            pod("z", "other", false)
        ]));
        assert!(!check(vec![pod("a", "c", true), pod("b", "c", false)]));
        assert!(!check(vec![pod("a", "c", false)]));
        assert!(!check(vec![pod("b", "c", false)]), "its carrier has gone");
        assert!(check(vec![]));
    }
}
