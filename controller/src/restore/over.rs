//! The end of a restore for the pods that still wait: those whose data will not come are told, and their waiters end with the reason.

use jackline_crds::{
    names::{annotation, label, label_value},
    velero::{PodVolumePhase, PodVolumeRestore, Restore},
};
use jackline_runtime::{Class, Failure, LeaderToken};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch},
};

use super::{params, pods::RestoredPod, volumes};
use crate::context::Context;

/// Longest text on a pod; a container's last message has 4096 bytes.
const LONGEST: usize = 2048;

/// Ends the volumes that nobody waits for any more, and tells the pods that do.
///
/// # Errors
/// When the API server does not answer.
pub async fn tell(
    context: &Context,
    token: &LeaderToken,
    restore: &Restore,
    why: &str,
) -> Result<(), Failure> {
    let uid = restore.uid().unwrap_or_default();
    let (name, client) = (restore.name_any(), &context.clients.call);
    // Not from the watch: what pods are told here ends them.
    let mut volumes = volumes::volumes_of(context, &uid).await?;
    let open = |volume: &&PodVolumeRestore| !volume.phase().is_terminal();
    let open: Vec<&PodVolumeRestore> = volumes.iter().filter(open).collect();
    for volume in &open {
        token.check()?;
        volumes::give_up(context, volume, why).await?;
    }
    if !open.is_empty() {
        volumes = volumes::volumes_of(context, &uid).await?;
    }
    let selector = format!("{}={}", label::RESTORE_NAME, label_value(&name));
    let pods = Api::<RestoredPod>::all(client.clone())
        .list(&ListParams::default().labels(&selector))
        .await?;
    for pod in pods.items {
        if pod.waits_for() != Some(&uid) || pod.has_left() {
            continue;
        }
        let lost: Vec<String> = pod
            .awaited()
            .filter_map(|volume| Some(format!("{volume} ({})", loss(&pod, volume, &volumes)?)))
            .collect();
        if lost.is_empty() {
            continue;
        }
        let mut text = format!(
            "restore {name} has ended without the data of {}",
            lost.join(", ")
        );
        text.truncate(text.floor_char_boundary(LONGEST));
        tracing::warn!(
            pod = pod.name_any(),
            namespace = pod.namespace(),
            text,
            "pod waits in vain"
        );
        token.check()?;
        let api: Api<RestoredPod> =
            Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let patch = serde_json::json!({"metadata": {
            "uid": pod.metadata.uid,
            "annotations": {(annotation::RESTORE_OVER): text},
        }});
        let told = api
            .patch_metadata(&pod.name_any(), &params(), &Patch::Merge(patch))
            .await;
        match told.map_err(Failure::from) {
            // Gone, or another of its name.
            Err(failure) if matches!(failure.reason, "NotFound" | "Conflict") => {}
            Err(failure) if failure.class == Class::Terminal => {
                tracing::warn!(pod = pod.name_any(), error = %failure, "pod is not told");
            }
            told => {
                told?;
            }
        }
    }
    Ok(())
}

/// Why a volume that the pod waits for has no data; `None` where it has.
pub fn loss<'v>(
    pod: &RestoredPod,
    volume: &str,
    volumes: impl IntoIterator<Item = &'v PodVolumeRestore>,
) -> Option<String> {
    let claim = pod.claim_of(volume);
    let is_of = |restored: &PodVolumeRestore| {
        let of = &restored.spec.pod;
        let filled = restored.annotations().get(volumes::CLAIM);
        let shared = claim.is_some() && filled.map(String::as_str) == claim;
        of.namespace == pod.metadata.namespace
            && (shared || (of.uid == pod.metadata.uid && restored.spec.volume == volume))
    };
    let found = volumes.into_iter().filter(|restored| is_of(restored));
    let mut found = found.peekable();
    if found.peek().is_none() {
        return Some("it was not begun".to_owned());
    }
    let mut why = None;
    for restored in found {
        if restored.phase() == PodVolumePhase::Completed {
            return None;
        }
        why = restored
            .status
            .as_ref()
            .and_then(|status| status.message.clone());
    }
    Some(why.unwrap_or_else(|| "it was not finished".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_told_of_the_volumes_that_it_lacks() {
        let pod: RestoredPod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "a"},
            "spec": {
                "initContainers": [{"name": "restore-wait", "args": ["r"],
                    "volumeMounts": [{"name": "v", "mountPath": "/restores/v"}, {"name": "e", "mountPath": "/restores/e"},
                        {"name": "jackline-restore-over", "mountPath": "/restore-over"}, {"name": "token", "mountPath": "/var/run/x"}]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "emptyDir": {}}]}
        }))
        .unwrap();
        let restored = |pod: &str, volume: &str, claim: Option<&str>, status: serde_json::Value| {
            let restored: PodVolumeRestore = serde_json::from_value(json!({
                "metadata": {"name": "x", "annotations": {"velero.io/pvc-name": claim.unwrap_or_default()}},
                "spec": {"pod": {"namespace": "n", "name": pod, "uid": pod}, "volume": volume, "backupStorageLocation": "d",
                    "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n"},
                "status": status
            }))
            .unwrap();
            restored
        };
        let awaited: Vec<&str> = pod.awaited().collect();
        assert_eq!(awaited, ["v", "e"]);
        let done = || json!({"phase": "Completed"});
        let failed = || json!({"phase": "Failed", "message": "disk on fire"});
        let lacks = |volume: &str, restored: &[PodVolumeRestore]| loss(&pod, volume, restored);
        // Another pod may have carried a claim, but never what is a pod's own.
        assert_eq!(lacks("v", &[restored("b", "w", Some("c"), done())]), None);
        assert_eq!(lacks("e", &[restored("a", "e", None, done())]), None);
        let other = restored("b", "e", None, done());
        assert_eq!(lacks("e", &[other]).as_deref(), Some("it was not begun"));
        let lost = restored("b", "w", Some("c"), failed());
        assert_eq!(lacks("v", &[lost]).as_deref(), Some("disk on fire"));
    }
}
