//! The node agents, as far as the controllers care: which nodes have one that runs.

use std::time::Duration;

use jackline_crds::names::NODE_AGENT_LABEL;
use jackline_policy::backup::absence::{self, Agent};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::ListParams};
use serde::{Deserialize, Serialize};

use jackline_runtime::Store;

use crate::context::Context;

/// How long the API server may take to tell of a node.
const ASK: Duration = Duration::from_secs(10);

/// A pod of the node agent, reduced to where it runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, kube::Resource)]
#[resource(inherit = Pod)]
pub struct AgentPod {
    /// Name and the like.
    pub metadata: ObjectMeta,
    /// Where it was put.
    #[serde(default)]
    pub spec: AgentSpec,
    /// How it does.
    #[serde(default)]
    pub status: AgentStatus,
}

/// Where an agent was put.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Its node.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Its containers' images.
    #[serde(default)]
    pub containers: Vec<AgentContainer>,
}

/// A container of an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentContainer {
    /// Its image.
    #[serde(default)]
    pub image: Option<String>,
}

/// How an agent does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Phase of the pod.
    #[serde(default)]
    pub phase: Option<String>,
    /// Whether it is ready, among others.
    #[serde(default)]
    pub conditions: Vec<AgentCondition>,
}

/// A condition of an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentCondition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl AgentPod {
    /// Whether it runs and is not on its way out.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.metadata.deletion_timestamp.is_none()
            && self.status.phase.as_deref() == Some("Running")
    }

    /// Whether it is ready. Where the node is gone the node controller says that it is not.
    fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

/// Which pods are agents.
pub fn selector() -> String {
    let (label, agent) = NODE_AGENT_LABEL;
    format!("{label}={agent}")
}

/// The agents as the API server has them now, for what is decided for good: a watch may be behind a DaemonSet that was just rolled out.
///
/// # Errors
/// When the API server does not answer.
pub async fn now(context: &Context) -> Result<Store<AgentPod>, kube::Error> {
    let which = ListParams::default().labels(&selector());
    Ok(Store::fixed(context.fetch_all(&which).await?))
}

/// The same, of one node.
///
/// # Errors
/// When the API server does not answer.
pub async fn now_on(context: &Context, node: &str) -> Result<Store<AgentPod>, kube::Error> {
    let which = ListParams::default().labels(&selector());
    let here = which.fields(&format!("spec.nodeName={node}"));
    Ok(Store::fixed(context.fetch_all(&here).await?))
}

/// Whether an agent runs on the node.
pub fn runs_on(agents: &Store<AgentPod>, node: &str) -> bool {
    agents
        .find(|agent| agent.is_running() && agent.spec.node_name.as_deref() == Some(node))
        .is_some()
}

/// How the agent of a node does.
pub fn of_node(agents: &Store<AgentPod>, node: &str) -> Agent {
    let here =
        agents.filter(|agent| agent.is_running() && agent.spec.node_name.as_deref() == Some(node));
    if here.iter().any(|agent| agent.is_ready()) {
        Agent::Ready
    } else if here.is_empty() {
        Agent::Absent
    } else {
        Agent::NotReady
    }
}

/// What the cluster says of a node.
pub async fn node_state(client: &Client, name: &str) -> absence::Node {
    let nodes = Api::<Node>::all(client.clone());
    match tokio::time::timeout(ASK, nodes.get_opt(name)).await {
        Ok(Ok(None)) => absence::Node::Missing,
        Ok(Ok(Some(node))) => {
            let conditions = node.status.and_then(|status| status.conditions);
            let ready = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if ready {
                absence::Node::Ready
            } else {
                absence::Node::NotReady
            }
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, name, "node cannot be read");
            absence::Node::Unknown
        }
        Err(_) => absence::Node::Unknown,
    }
}

/// The nodes on which an agent runs.
pub fn nodes(agents: &Store<AgentPod>) -> std::collections::BTreeSet<String> {
    let running = agents.list();
    running
        .iter()
        .filter(|agent| agent.is_running())
        .filter_map(|agent| agent.spec.node_name.clone())
        .collect()
}

/// The image of the agents, when the settings name none.
pub fn image(agents: &Store<AgentPod>) -> Option<String> {
    let mut images: Vec<String> = agents
        .list()
        .iter()
        .filter_map(|agent| agent.spec.containers.first()?.image.clone())
        .collect();
    // While a new version is rolled out there are two; any answer works, but always the same one.
    images.sort();
    images.pop()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::context::unwatched;

    #[test]
    fn only_running_agents_count() {
        let agent = |node: &str, phase: &str| {
            let mut agent = AgentPod::default();
            agent.metadata.name = Some(format!("agent-{node}"));
            agent.metadata.namespace = Some("velero".to_owned());
            agent.spec.node_name = Some(node.to_owned());
            agent.status.phase = Some(phase.to_owned());
            agent
        };
        let agents = Store::fixed([agent("n1", "Running"), agent("n2", "Pending")]);
        assert!(runs_on(&agents, "n1"));
        assert!(!runs_on(&agents, "n2"));
        assert!(!runs_on(&agents, "n3"));
    }

    #[tokio::test]
    async fn agents_that_the_watch_does_not_know_yet_are_known_to_the_api_server() {
        let labels = json!({"name": "node-agent"});
        let pod = |name: &str, labels: &Value| {
            json!({"metadata": {"name": name, "namespace": "velero", "labels": labels},
            "spec": {"nodeName": name}, "status": {"phase": "Running"}})
        };
        let odd = json!({"metadata": {"name": "b", "labels": labels}, "spec": 1});
        let agents = [
            pod("n1", &labels),
            pod("n2", &labels),
            pod("n3", &json!({})),
            odd,
        ];
        let agents = unwatched::list(&agents);
        let context = unwatched::context(&[("/api/v1/namespaces/velero/pods", agents)]);
        assert!(!runs_on(&context.stores.agents, "n1"));
        let nodes = nodes(&now(&context).await.unwrap());
        assert!(nodes.iter().eq(["n1", "n2"]), "{nodes:?}");
        let nodes = self::nodes(&now_on(&context, "n2").await.unwrap());
        assert!(nodes.iter().eq(["n2"]), "{nodes:?}");
    }

    #[test]
    fn an_agent_whose_node_is_gone_still_runs_and_is_not_ready() {
        let agent = |node: &str, ready: &str| -> AgentPod {
            serde_json::from_value(json!({
                "metadata": {"name": node, "namespace": "velero"},
                "spec": {"nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let agents = Store::fixed([agent("n1", "True"), agent("n2", "False")]);
        assert_eq!(of_node(&agents, "n1"), Agent::Ready);
        assert_eq!(of_node(&agents, "n2"), Agent::NotReady);
        assert_eq!(of_node(&agents, "n3"), Agent::Absent);
    }
}
