//! Pods that a restore made, reduced to what tells whether they wait.

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Serialize};

use jackline_crds::names::{RESTORE_WAIT, annotation};
use jackline_policy::restore::wait;
use kube::ResourceExt;

/// A restored pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize, kube::Resource)]
#[resource(inherit = Pod)]
pub struct RestoredPod {
    /// Name and labels.
    pub metadata: ObjectMeta,
    /// Where it runs and what it mounts.
    #[serde(default)]
    pub spec: RestoredPodSpec,
    /// How far it is.
    #[serde(default)]
    pub status: RestoredPodStatus,
}

/// Where a restored pod runs and what it mounts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoredPodSpec {
    /// Its node, once it is scheduled.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Its containers.
    #[serde(default)]
    pub containers: Vec<Container>,
    /// Its init containers; the first may be the waiter.
    #[serde(default)]
    pub init_containers: Vec<InitContainer>,
    /// Its volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
}

/// A container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
}

/// An init container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitContainer {
    /// Its name.
    pub name: String,
    /// The waiter's only argument is the restore's UID.
    #[serde(default)]
    pub args: Vec<String>,
    /// The waiter's are the volumes that it waits for.
    #[serde(default)]
    pub volume_mounts: Vec<Mount>,
}

/// A volume in a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// The volume's name.
    pub name: String,
    /// Where it is.
    #[serde(default)]
    pub mount_path: String,
}

/// A volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The claim behind it.
    #[serde(default)]
    pub persistent_volume_claim: Option<Claim>,
}

/// The claim behind a volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Its name.
    pub claim_name: String,
}

/// How far a restored pod is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoredPodStatus {
    /// Its phase.
    #[serde(default)]
    pub phase: Option<String>,
    /// Whether it is scheduled, among others.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Its init containers.
    #[serde(default)]
    pub init_container_statuses: Vec<InitStatus>,
    /// Its containers.
    #[serde(default)]
    pub container_statuses: Vec<ContainerStatus>,
}

/// A condition of a pod.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// What the scheduler or the kubelet says of it.
    #[serde(default)]
    pub message: Option<String>,
}

/// How a container does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Its readiness probe is content.
    #[serde(default)]
    pub ready: bool,
    /// What it does.
    #[serde(default)]
    pub state: ContainerState,
}

/// What a container does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerState {
    /// It runs; since when is of no concern.
    #[serde(default)]
    pub running: Option<Running>,
}

/// It runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Running {}

/// How far an init container is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InitStatus {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub state: InitState,
}

/// What an init container does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InitState {
    /// It does not run yet, or not now.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// It runs.
    #[serde(default)]
    pub running: Option<Running>,
    /// It has ended.
    #[serde(default)]
    pub terminated: Option<Terminated>,
}

/// Why a container does not run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Waiting {
    /// A word, such as `ImagePullBackOff`.
    #[serde(default)]
    pub reason: Option<String>,
    /// The words of the kubelet.
    #[serde(default)]
    pub message: Option<String>,
}

/// How an init container has ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terminated {
    /// 0 is good.
    #[serde(default)]
    pub exit_code: i32,
}

/// How a pod stands to a claim that a restore is to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use<'a> {
    /// It is one of the restore's own, has ended, or does not mount the claim.
    No,
    /// It is being deleted, and writes until it is gone.
    Leaving,
    /// It waits for the data that another restore, of this UID, puts there.
    Waits(&'a str),
    /// It can write.
    Writes,
}

impl RestoredPod {
    /// UID of the restore whose data the pod waits or waited for.
    pub fn waits_for(&self) -> Option<&str> {
        self.waiter()?.args.first().map(String::as_str)
    }

    /// The volumes whose data the pod waits or waited for.
    pub fn awaited(&self) -> impl Iterator<Item = &str> {
        let mounts = self
            .waiter()
            .into_iter()
            .flat_map(|waiter| &waiter.volume_mounts);
        // The API server adds mounts of its own.
        let awaited = mounts.filter(|mount| mount.mount_path.starts_with(wait::ROOT));
        awaited.map(|mount| mount.name.as_str())
    }

    fn waiter(&self) -> Option<&InitContainer> {
        let mut containers = self.spec.init_containers.iter();
        containers.find(|entry| entry.name == RESTORE_WAIT)
    }

    /// The claim behind a volume.
    pub fn claim_of(&self, volume: &str) -> Option<&str> {
        let volume = self
            .spec
            .volumes
            .iter()
            .find(|entry| entry.name == volume)?;
        volume
            .persistent_volume_claim
            .as_ref()
            .map(|claim| claim.claim_name.as_str())
    }

    /// Whether a container runs or, where asked, is ready.
    pub fn is_up(&self, container: &str, ready: bool) -> bool {
        let statuses = &self.status.container_statuses;
        let status = statuses.iter().find(|status| status.name == container);
        status.is_some_and(|status| match ready {
            true => status.ready,
            false => status.state.running.is_some(),
        })
    }

    /// Whether the pod mounts the claim.
    pub fn mounts(&self, claim: &str) -> bool {
        let names = self
            .spec
            .volumes
            .iter()
            .filter_map(|v| v.persistent_volume_claim.as_ref());
        names.into_iter().any(|found| found.claim_name == claim)
    }

    /// How the pod stands to a claim that `restore` is to fill.
    pub fn use_of(&self, claim: &str, restore: &str) -> Use<'_> {
        let ended = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || !self.mounts(claim) {
            return Use::No;
        }
        match self.waits_for() {
            Some(own) if own == restore => Use::No,
            _ if self.metadata.deletion_timestamp.is_some() => Use::Leaving,
            Some(other) if !self.has_left() => Use::Waits(other),
            _ => Use::Writes,
        }
    }

    /// Whether the pod runs and was made before `time`.
    pub fn ran_before(&self, time: Timestamp) -> bool {
        let made = self.metadata.creation_timestamp.as_ref();
        self.status.phase.as_deref() == Some("Running") && made.is_some_and(|made| made.0 < time)
    }

    fn waiter_state(&self) -> Option<&InitState> {
        let statuses = &self.status.init_container_statuses;
        let waiter = statuses.iter().find(|status| status.name == RESTORE_WAIT);
        waiter.map(|waiter| &waiter.state)
    }

    /// Whether the waiter runs now.
    pub fn is_waiting(&self) -> bool {
        self.waiter_state()
            .is_some_and(|state| state.running.is_some())
    }

    /// Why the kubelet does not start the waiter, where its status says so in words.
    pub fn waiter_is_held(&self) -> Option<String> {
        let waiting = self.waiter_state()?.waiting.as_ref()?;
        let message = waiting.message.as_deref().filter(|text| !text.is_empty())?;
        let reason = waiting.reason.as_deref().unwrap_or("Waiting");
        Some(format!("{reason}: {message}"))
    }

    /// Why the scheduler finds no node.
    pub fn unscheduled(&self) -> Option<&str> {
        let mut conditions = self.status.conditions.iter();
        let scheduled = conditions.find(|condition| condition.kind == "PodScheduled")?;
        scheduled
            .message
            .as_deref()
            .filter(|_| scheduled.status == "False")
    }

    /// Whether the pod is finished, its waiter has let it go, or it waits in vain and knows it.
    pub fn has_left(&self) -> bool {
        let told = self.annotations().contains_key(annotation::RESTORE_OVER);
        let over = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        told || over || self.has_data()
    }

    /// Whether data can still come to the pod.
    pub fn may_wait(&self) -> bool {
        self.metadata.deletion_timestamp.is_none() && !self.has_left()
    }

    /// Whether its waiter has seen all data of the pod and let it go, also where it runs again since, after a restart of the node.
    pub fn has_data(&self) -> bool {
        let ended = self
            .waiter_state()
            .and_then(|state| state.terminated.as_ref());
        let told = self.annotations().get(annotation::RESTORED);
        ended.is_some_and(|ended| ended.exit_code == 0)
            || told.is_some_and(|restore| self.waits_for() == Some(restore))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_says_why_a_pod_has_no_node() {
        let pod = |status: &str| -> RestoredPod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a"},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "message": "other"},
                    {"type": "PodScheduled", "status": status, "message": "0/3 nodes are available"}]}
            }))
            .unwrap()
        };
        assert_eq!(pod("False").unscheduled(), Some("0/3 nodes are available"));
        assert_eq!(pod("True").unscheduled(), None);
    }

    #[test]
    fn a_pod_that_waits_for_nothing_uses_a_claim_and_may_have_run_too_early() {
        let pod = |phase: &str, args: serde_json::Value| -> RestoredPod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:10Z"},
                "spec": {"initContainers": [{"name": "restore-wait", "args": args}],
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
                "status": {"phase": phase}
            }))
            .unwrap()
        };
        let runs = pod("Running", serde_json::json!([]));
        assert_eq!(runs.use_of("c", "uid"), Use::Writes);
        assert_eq!(runs.use_of("d", "uid"), Use::No);
        let own = pod("Running", serde_json::json!(["uid"]));
        assert_eq!(own.use_of("c", "uid"), Use::No);
        let mut other = pod("Pending", serde_json::json!(["other"]));
        assert_eq!(other.use_of("c", "uid"), Use::Waits("other"));
        other.status.init_container_statuses = serde_json::from_value(serde_json::json!([
            {"name": "restore-wait", "state": {"terminated": {"exitCode": 0}}}
        ]))
        .unwrap();
        assert_eq!(other.use_of("c", "uid"), Use::Writes);
        let ended = pod("Succeeded", serde_json::json!([]));
        assert_eq!(ended.use_of("c", "uid"), Use::No);
        let mut leaves = runs.clone();
        leaves.metadata.deletion_timestamp = leaves.metadata.creation_timestamp.clone();
        assert_eq!(leaves.use_of("c", "uid"), Use::Leaving);
        let at = |time: &str| time.parse().unwrap();
        assert!(runs.ran_before(at("2026-01-01T00:00:11Z")));
        assert!(!runs.ran_before(at("2026-01-01T00:00:10Z")));
        assert!(!pod("Pending", serde_json::json!([])).ran_before(at("2026-01-01T00:00:11Z")));
    }

    #[test]
    fn a_pod_has_left_when_its_waiter_ended_well() {
        let pod = |state: serde_json::Value| -> RestoredPod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a"},
                "spec": {"initContainers": [{"name": "restore-wait", "args": ["uid"]}],
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "emptyDir": {}}]},
                "status": {"phase": "Pending", "initContainerStatuses": [{"name": "restore-wait", "state": state}]}
            }))
            .unwrap()
        };
        let waiting = pod(serde_json::json!({"running": {}}));
        assert_eq!(waiting.waits_for(), Some("uid"));
        assert!(
            waiting.mounts("c")
                && waiting.claim_of("v") == Some("c")
                && waiting.claim_of("e").is_none()
        );
        assert!(!waiting.has_left() && waiting.is_waiting());
        assert!(!pod(serde_json::json!({"terminated": {"exitCode": 1}})).has_left());
        let gone_on = pod(serde_json::json!({"terminated": {"exitCode": 0}}));
        assert!(gone_on.has_left() && gone_on.has_data());
        assert_eq!(waiting.waiter_is_held(), None);
        let state = serde_json::json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"a\""}});
        let held = pod(state);
        assert!(!held.is_waiting() && !held.has_left());
        assert_eq!(
            held.waiter_is_held().as_deref(),
            Some("ImagePullBackOff: Back-off pulling image \"a\"")
        );
        // Says nothing: a volume may not be mounted, or all is well and takes its time.
        let state = serde_json::json!({"waiting": {"reason": "PodInitializing"}});
        assert_eq!(pod(state).waiter_is_held(), None);
        for (restore, expected) in [("uid", true), ("another", false)] {
            let mut again = waiting.clone();
            let told = ("jackline.dev/restored".to_owned(), restore.to_owned());
            again.metadata.annotations = Some([told].into());
            assert_eq!((again.has_data(), again.has_left()), (expected, expected));
        }
        let mut told = waiting;
        told.annotations_mut()
            .insert("jackline.dev/restore-over".to_owned(), "lost".to_owned());
        assert!(told.has_left() && !told.has_data());
    }
}
