//! Who holds a repository's lock for this process, and whether other holders are dead.

use std::{sync::LazyLock, time::Duration};

use async_trait::async_trait;
use jackline_repository::{Instance, LockHolder, LockJudge, rest_rule};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};

use crate::context::Context;

/// A pod that has gone from the API keeps its lock this long: absence alone proves nothing.
const GONE: Duration = Duration::from_secs(300);

static RANDOM: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().simple().to_string());

/// This process. Without `POD_UID` and `NODE_NAME` in the environment (the downward API sets them) it has no pod, and only restic's
/// rule judges it.
pub fn holder(context: &Context) -> LockHolder {
    let mut holder = LockHolder::this_process();
    let variable = |name| {
        std::env::var(name)
            .ok()
            .filter(|value: &String| !value.is_empty())
    };
    if let (Some(pod_uid), Some(node)) = (variable("POD_UID"), variable("NODE_NAME")) {
        holder.hostname = format!("{}.{}@{node}", context.instance, context.namespace);
        holder.instance = Some(Instance {
            cluster: context.cluster_uid.clone(),
            node,
            pod_uid,
            container: String::new(),
            random: RANDOM.clone(),
        });
    }
    holder
}

/// Judges holders of this cluster by their pods, and all others by restic's rule.
#[derive(Clone)]
pub struct Judge {
    client: Client,
    cluster: String,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Judge {
    /// A judge for the cluster with this UID.
    pub fn new(client: Client, cluster: String) -> Self {
        Self { client, cluster }
    }
}

#[async_trait]
impl LockJudge for Judge {
    async fn is_dead(&self, holder: &LockHolder, age: Duration) -> bool {
        let Some(instance) = holder
            .instance
            .as_ref()
            .filter(|i| i.cluster == self.cluster)
        else {
            return rest_rule(holder, age);
        };
        // `<pod>.<namespace>@<node>`
        let Some((name, namespace)) = holder
            .hostname
            .split_once('@')
            .and_then(|(pod, _)| pod.rsplit_once('.'))
        else {
            return rest_rule(holder, age);
        };
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let Ok(pods) = pods.list(&params).await else {
            return false;
        };
        let pod = pods
            .items
            .iter()
            .find(|pod| pod.metadata.uid.as_deref() == Some(&instance.pod_uid));
        match pod {
            None => age > GONE,
            Some(pod) => ended(pod, &instance.container),
        }
    }
}

/// Whether the container instance is known to have ended.
fn ended(pod: &Pod, container: &str) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return true;
    }
    if container.is_empty() {
        return false;
    }
    let statuses = status.container_statuses.iter().flatten();
    statuses.into_iter().any(|status| {
        let last = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let now = status
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        [last, now].into_iter().flatten().any(|terminated| {
            terminated
                .container_id
                .as_deref()
                .is_some_and(|id| id.ends_with(container))
        })
    })
}
