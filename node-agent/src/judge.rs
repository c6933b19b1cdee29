//! Who this process is in the locks it writes, and whether the holder of another lock is dead (design §5).

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;
use jackline_repository::{Instance, LockHolder, LockJudge, rest_rule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};

/// A holder whose pod is gone from the API is only taken for dead when its lock is older than this: absence proves nothing.
const GONE: Duration = Duration::from_secs(5 * 60);
const DEADLINE: Duration = Duration::from_secs(10);

/// The lock holder that this process is. Outside a pod it is known by host name and process id alone, as restic is.
pub(crate) fn holder(cluster_uid: &str, node: &str, namespace: &str) -> LockHolder {
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
        random: uuid::Uuid::new_v4().simple().to_string(),
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
pub(crate) enum PodState {
    /// Could not be found out.
    Unknown,
    /// No pod of this UID in our namespace.
    Gone,
    /// Succeeded or Failed, and the kubelet says of every container that it has ended: none will run again.
    Over,
    /// There, with these container ids running and these known to have ended.
    There {
        running: Vec<String>,
        ended: Vec<String>,
    },
}

/// The rule. Errs on the side of `false`.
pub(crate) fn is_dead(
    mine: Option<&Instance>,
    holder: &LockHolder,
    age: Duration,
    pod: &PodState,
) -> bool {
    let (Some(mine), Some(theirs)) = (mine, &holder.instance) else {
        return rest_rule(holder, age);
    };
    if theirs.cluster != mine.cluster {
        // Foreign: host names and process ids of another cluster mean nothing here.
        return age > jackline_repository::FOREIGN_STALE;
    }
    if theirs.pod_uid == mine.pod_uid {
        // A pod has one process of ours at a time: another random id is our predecessor.
        return theirs.random != mine.random;
    }
    match pod {
        PodState::Unknown => false,
        PodState::Gone => age > GONE,
        PodState::Over => true,
        // In a cgroup namespace of its own a process cannot see its container's id: then only time tells.
        PodState::There { .. } if theirs.container.is_empty() => {
            age > jackline_repository::FOREIGN_STALE
        }
        PodState::There { running, ended } => {
            !running.contains(&theirs.container) && ended.contains(&theirs.container)
        }
    }
}

/// Asks the API server about holders of this cluster.
pub(crate) struct ApiJudge {
    pub client: Client,
    pub namespace: String,
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
                self.look(&theirs.pod_uid).await
            }
            _ => PodState::Unknown,
        };
        is_dead(self.mine.as_ref(), holder, age, &pod)
    }
}

impl ApiJudge {
    async fn look(&self, uid: &str) -> PodState {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default();
        match tokio::time::timeout(DEADLINE, api.list(&params)).await {
            Ok(Ok(pods)) => state(
                pods.items
                    .iter()
                    .find(|pod| pod.uid().as_deref() == Some(uid)),
            ),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask for the holder of a lock");
                PodState::Unknown
            }
            Err(_) => PodState::Unknown,
        }
    }
}

fn state(pod: Option<&Pod>) -> PodState {
    let Some(pod) = pod else {
        return PodState::Gone;
    };
    let (mut running, mut ended) = (Vec::new(), Vec::new());
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default();
    if crate::pods::is_over(pod) {
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
    for status in statuses {
        sort(status, &mut running, &mut ended);
    }
    PodState::There { running, ended }
}

fn sort(status: &ContainerStatus, running: &mut Vec<String>, ended: &mut Vec<String>) {
    let bare = |id: &str| id.rsplit('/').next().unwrap_or(id).to_owned();
    let (now, before) = (status.state.as_ref(), status.last_state.as_ref());
    for state in [now, before].into_iter().flatten() {
        if let Some(id) = state
            .terminated
            .as_ref()
            .and_then(|ended| ended.container_id.as_deref())
        {
            ended.push(bare(id));
        }
    }
    if now.is_some_and(|state| state.running.is_some())
        && let Some(id) = &status.container_id
    {
        running.push(bare(id));
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
        let there = |running: &[&str], ended: &[&str]| PodState::There {
            running: running.iter().map(ToString::to_string).collect(),
            ended: ended.iter().map(ToString::to_string).collect(),
        };
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let unseen = Instance {
            container: String::new(),
            ..instance("k", "p2", "r2")
        };
        for (what, theirs, age, pod, expected) in [
            (
                "myself",
                instance("k", "p1", "r1"),
                minutes(60),
                PodState::Unknown,
                false,
            ),
            (
                "my predecessor",
                instance("k", "p1", "r0"),
                minutes(0),
                PodState::Unknown,
                true,
            ),
            (
                "API silent",
                instance("k", "p2", "r2"),
                minutes(60),
                PodState::Unknown,
                false,
            ),
            (
                "just gone",
                instance("k", "p2", "r2"),
                minutes(4),
                PodState::Gone,
                false,
            ),
            (
                "long gone",
                instance("k", "p2", "r2"),
                minutes(6),
                PodState::Gone,
                true,
            ),
            (
                "job over",
                instance("k", "p2", "r2"),
                minutes(0),
                PodState::Over,
                true,
            ),
            (
                "running",
                instance("k", "p2", "r2"),
                minutes(60),
                there(&["c1"], &[]),
                false,
            ),
            (
                "restarted",
                instance("k", "p2", "r2"),
                minutes(0),
                there(&["c2"], &["c1"]),
                true,
            ),
            (
                "unknown container",
                instance("k", "p2", "r2"),
                minutes(60),
                there(&["c9"], &["c8"]),
                false,
            ),
            (
                "restarted, container unseen, young",
                unseen.clone(),
                minutes(29),
                there(&["c2"], &["c1"]),
                false,
            ),
            (
                "restarted, container unseen, old",
                unseen,
                minutes(31),
                there(&["c2"], &["c1"]),
                true,
            ),
            (
                "foreign, young",
                instance("other", "p2", "r2"),
                minutes(29),
                PodState::Gone,
                false,
            ),
            (
                "foreign, old",
                instance("other", "p2", "r2"),
                minutes(31),
                PodState::Gone,
                true,
            ),
        ] {
            assert_eq!(
                is_dead(Some(&mine), &held_by(theirs), age, &pod),
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
            assert_eq!(state(Some(&failed)), expected, "{containers}");
        }
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
