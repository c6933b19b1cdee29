//! Who this process is in the locks it writes, and whether the holder of another lock is dead.
//!
//! Input: what the API server says of the holder's pod, and how long ago the lock was refreshed. A holder starts no write when it
//! could not refresh its lock for 3 minutes, and no write takes longer than one. Invariant: a holder that may still write is
//! never called dead.

use std::{fmt::Debug, sync::LazyLock, time::Duration};

use async_trait::async_trait;
use jackline_repository::{FOREIGN_STALE, Instance, LockHolder, LockJudge, rest_rule};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};

/// A holder whose pod or container is gone from the API is only taken for dead when its lock is older than this: absence proves
/// nothing.
const GONE: Duration = Duration::from_secs(5 * 60);
const DEADLINE: Duration = Duration::from_secs(10);

static RANDOM: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string());

/// The lock holder that this process is. Outside a pod (the downward API sets `POD_UID`) it is known by host name and process id
/// alone, as restic is.
pub fn holder(cluster_uid: &str, node: &str, namespace: &str) -> LockHolder {
    let mut holder = LockHolder::this_process();
    let pod_uid = std::env::var("POD_UID").unwrap_or_default();
    if pod_uid.is_empty() || cluster_uid.is_empty() {
        return holder;
    }
    // Not the pod's host name alone: restic probes the process of a lock that carries its own host's name.
    holder.hostname = format!("{}.{namespace}@{node}", jackline_runtime::kit::instance());
    holder.instance = Some(Instance {
        cluster: cluster_uid.to_owned(),
        node: node.to_owned(),
        pod_uid,
        container: own_container(),
        random: RANDOM.clone(),
    });
    holder
}

/// The container's id as far as the process can see it (cgroup v1, or v2 without a namespace of its own); else empty.
fn own_container() -> String {
    let table = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    container_in(&table).unwrap_or_default()
}

fn container_in(table: &str) -> Option<String> {
    table.split(['/', '\n', '-', '.', ':']).find_map(|part| {
        let hex = part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| part.to_owned())
    })
}

/// What the API says about the pod of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PodState {
    /// Could not be found out.
    Unknown,
    /// No pod of this UID in our namespace.
    Gone,
    /// Succeeded or Failed, and the kubelet says of every container that it has ended: none will run again.
    Over,
    /// There, with these container ids running, the first of them for so long, and these known to have ended.
    There {
        running: Vec<String>,
        running_for: Duration,
        ended: Vec<String>,
    },
}

/// The rule. Errs on the side of `false`.
fn is_dead(mine: Option<&Instance>, holder: &LockHolder, age: Duration, pod: &PodState) -> bool {
    let (Some(mine), Some(theirs)) = (mine, &holder.instance) else {
        return rest_rule(holder, age);
    };
    // Whoever was silent for so long writes nothing more, wherever they are: a lock can outlive its use in a process that lives.
    if age > FOREIGN_STALE {
        return true;
    }
    if theirs.cluster != mine.cluster {
        // Foreign: host names and process ids of another cluster mean nothing here.
        return false;
    }
    if theirs.pod_uid == mine.pod_uid {
        // A pod has one process of ours at a time: another random id is our predecessor.
        return theirs.random != mine.random;
    }
    match pod {
        PodState::Unknown => false,
        PodState::Gone => age > GONE,
        PodState::Over => true,
        PodState::There { running, .. } if running.contains(&theirs.container) => false,
        PodState::There { ended, .. } if ended.contains(&theirs.container) => true,
        // In a cgroup namespace of its own a process cannot see its container's id, and of those that ended the kubelet names only
        // the last. Where all that run began after the lock was refreshed, none of them did that.
        PodState::There { running_for, .. } => age > GONE.max(*running_for),
    }
}

/// Asks the API server about holders of this cluster.
pub struct ApiJudge {
    /// How to ask.
    pub client: Client,
    /// Where all holders run.
    pub namespace: String,
    /// Who this process is. Nobody: restic's rule judges all.
    pub mine: Option<Instance>,
}

impl Debug for ApiJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiJudge")
            .field("mine", &self.mine)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl LockJudge for ApiJudge {
    async fn is_dead(&self, holder: &LockHolder, age: Duration) -> bool {
        let pod = match (&self.mine, &holder.instance) {
            (Some(mine), Some(theirs))
                if mine.cluster == theirs.cluster && mine.pod_uid != theirs.pod_uid =>
            {
                self.look(theirs).await
            }
            _ => PodState::Unknown,
        };
        is_dead(self.mine.as_ref(), holder, age, &pod)
    }
}

impl ApiJudge {
    async fn look(&self, theirs: &Instance) -> PodState {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let mut params = ListParams::default();
        if !theirs.node.is_empty() {
            params = params.fields(&format!("spec.nodeName={}", theirs.node));
        }
        match tokio::time::timeout(DEADLINE, api.list(&params)).await {
            Ok(Ok(pods)) => {
                let mut pods = pods.items.iter();
                let pod = pods.find(|pod| pod.uid().as_deref() == Some(&theirs.pod_uid));
                state(pod, Timestamp::now())
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask for the holder of a lock");
                PodState::Unknown
            }
            Err(_) => PodState::Unknown,
        }
    }
}

fn state(pod: Option<&Pod>, now: Timestamp) -> PodState {
    let Some(pod) = pod else {
        return PodState::Gone;
    };
    let status = pod.status.as_ref();
    let statuses = status
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default();
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        let has_ended = |status: &ContainerStatus| {
            let state = status.state.as_ref();
            state.is_some_and(|state| state.terminated.is_some())
        };
        // Others set a pod Failed as well, where its node is lost: what runs there, nobody knows.
        return match !statuses.is_empty() && statuses.iter().all(has_ended) {
            true => PodState::Over,
            false => PodState::Gone,
        };
    }
    let bare = |id: &String| {
        let id = id.rsplit('/').next().unwrap_or(id);
        Some(id.to_owned()).filter(|id| !id.is_empty())
    };
    let (mut running, mut ended) = (Vec::new(), Vec::new());
    let mut running_for = Duration::ZERO;
    for status in statuses {
        let states = [status.state.as_ref(), status.last_state.as_ref()];
        let terminated = states.iter().flatten();
        let terminated = terminated.filter_map(|state| state.terminated.as_ref());
        ended.extend(terminated.filter_map(|ended| bare(ended.container_id.as_ref()?)));
        if let Some(runs) = states[0].and_then(|state| state.running.as_ref()) {
            running.extend(status.container_id.as_ref().and_then(bare));
            // The kubelet always says when. If not, it may have been for ever.
            let began = runs.started_at.as_ref().map(|began| began.0);
            let so_long = began.map_or(Duration::MAX, |began| {
                Duration::try_from(now.duration_since(began)).unwrap_or_default()
            });
            running_for = running_for.max(so_long);
        }
    }
    PodState::There {
        running,
        running_for,
        ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(cluster: &str, pod: &str, random: &str) -> Instance {
        Instance {
            cluster: cluster.to_owned(),
            node: "n1".to_owned(),
            pod_uid: pod.to_owned(),
            container: "c1".to_owned(),
            random: random.to_owned(),
        }
    }

    fn held_by(instance: Instance) -> LockHolder {
        LockHolder {
            hostname: "elsewhere".to_owned(),
            instance: Some(instance),
            ..LockHolder::this_process()
        }
    }

    #[test]
    fn the_rule() {
        let mine = instance("k", "p1", "r1");
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let there = |running: &[&str], for_minutes: u64, ended: &[&str]| PodState::There {
            running: running.iter().map(ToString::to_string).collect(),
            running_for: minutes(for_minutes),
            ended: ended.iter().map(ToString::to_string).collect(),
        };
        let unseen = Instance {
            container: String::new(),
            ..instance("k", "p2", "r2")
        };
        for (what, theirs, age, pod, expected) in [
            (
                "myself",
                instance("k", "p1", "r1"),
                29,
                PodState::Unknown,
                false,
            ),
            (
                "a lock that I lost",
                instance("k", "p1", "r1"),
                31,
                PodState::Unknown,
                true,
            ),
            (
                "my predecessor",
                instance("k", "p1", "r0"),
                0,
                PodState::Unknown,
                true,
            ),
            (
                "API silent",
                instance("k", "p2", "r2"),
                29,
                PodState::Unknown,
                false,
            ),
            (
                "API silent, old",
                instance("k", "p2", "r2"),
                31,
                PodState::Unknown,
                true,
            ),
            (
                "just gone",
                instance("k", "p2", "r2"),
                4,
                PodState::Gone,
                false,
            ),
            (
                "long gone",
                instance("k", "p2", "r2"),
                6,
                PodState::Gone,
                true,
            ),
            (
                "job over",
                instance("k", "p2", "r2"),
                0,
                PodState::Over,
                true,
            ),
            (
                "running",
                instance("k", "p2", "r2"),
                29,
                there(&["c1"], 40, &[]),
                false,
            ),
            (
                "running, its lock left",
                instance("k", "p2", "r2"),
                31,
                there(&["c1"], 40, &[]),
                true,
            ),
            (
                "restarted",
                instance("k", "p2", "r2"),
                0,
                there(&["c2"], 0, &["c1"]),
                true,
            ),
            (
                "restarted twice, young",
                instance("k", "p2", "r2"),
                4,
                there(&["c9"], 1, &["c8"]),
                false,
            ),
            (
                "restarted twice",
                instance("k", "p2", "r2"),
                6,
                there(&["c9"], 1, &["c8"]),
                true,
            ),
            (
                "unknown container",
                instance("k", "p2", "r2"),
                29,
                there(&["c9"], 40, &["c8"]),
                false,
            ),
            (
                "restarted unseen, young",
                unseen.clone(),
                4,
                there(&["c2"], 3, &["c1"]),
                false,
            ),
            (
                "restarted unseen",
                unseen.clone(),
                6,
                there(&["c2"], 5, &["c1"]),
                true,
            ),
            (
                "running unseen",
                unseen.clone(),
                29,
                there(&["c1"], 40, &["c0"]),
                false,
            ),
            (
                "running unseen, its lock left",
                unseen.clone(),
                31,
                there(&["c1"], 40, &[]),
                true,
            ),
            (
                "between two starts",
                unseen,
                6,
                there(&[], 0, &["c1"]),
                true,
            ),
            (
                "foreign, young",
                instance("other", "p2", "r2"),
                29,
                PodState::Gone,
                false,
            ),
            (
                "foreign, old",
                instance("other", "p2", "r2"),
                31,
                PodState::Gone,
                true,
            ),
        ] {
            assert_eq!(
                is_dead(Some(&mine), &held_by(theirs), minutes(age), &pod),
                expected,
                "{what}"
            );
        }
        let restic = LockHolder {
            hostname: "elsewhere".to_owned(),
            instance: None,
            ..LockHolder::this_process()
        };
        assert!(!is_dead(Some(&mine), &restic, minutes(29), &PodState::Gone));
        assert!(is_dead(Some(&mine), &restic, minutes(31), &PodState::Gone));
    }

    #[test]
    fn a_pod_is_over_only_when_the_kubelet_says_so_of_its_containers() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"status": status})).unwrap()
        };
        let container = |state: &str| {
            serde_json::json!({
                "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {state: {"exitCode": 0}},
            })
        };
        let ended = serde_json::json!([container("terminated"), container("terminated")]);
        let one_runs = serde_json::json!([container("terminated"), container("running")]);
        for (containers, expected) in [
            (ended, PodState::Over),
            (one_runs, PodState::Gone),
            (serde_json::json!([]), PodState::Gone),
        ] {
            let failed =
                pod(serde_json::json!({"phase": "Failed", "containerStatuses": containers}));
            assert_eq!(
                state(Some(&failed), Timestamp::UNIX_EPOCH),
                expected,
                "{containers}"
            );
        }
    }

    #[test]
    fn a_pod_is_there_with_what_runs_and_what_has_ended() {
        let container = |id: &str, state: serde_json::Value, last: serde_json::Value| {
            serde_json::json!({
                "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                "containerID": format!("containerd://{id}"), "state": state, "lastState": last,
            })
        };
        let ended =
            |id: &str| serde_json::json!({"terminated": {"exitCode": 1, "containerID": id}});
        let since = |time: &str| serde_json::json!({"running": {"startedAt": time}});
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {
            "phase": "Running",
            "containerStatuses": [
                container("c2", since("2026-11-28T12:00:00Z"), ended("containerd://c1")),
                container("c3", since("2026-11-28T12:05:00Z"), ended("")),
                container("c4", ended("containerd://c4"), serde_json::json!({})),
            ],
        }}))
        .unwrap();
        let now = "2026-11-28T12:06:00.5Z".parse().unwrap();
        let expected = PodState::There {
            running: vec!["c2".into(), "c3".into()],
            running_for: Duration::from_millis(360_500),
            ended: vec!["c1".into(), "c4".into()],
        };
        assert_eq!(state(Some(&pod), now), expected);
    }

    #[test]
    fn container_ids_are_found_in_cgroup_tables() {
        let id = "0123456789abcdef".repeat(4);
        let v1 = format!("12:pids:/kubepods/besteffort/pod7c0a/{id}\n");
        let systemd = format!("0::/kubepods.slice/cri-containerd-{id}.scope\n");
        assert_eq!(container_in(&v1).as_deref(), Some(id.as_str()));
        assert_eq!(container_in(&systemd).as_deref(), Some(id.as_str()));
        assert_eq!(container_in("0::/\n"), None);
    }
}
