//! How much this node takes on at once, as Velero's ConfigMap says.

use anyhow::Context as _;
use jackline_crds::velero::NodeAgentConfig;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client, ResourceExt};

/// What the ConfigMap says of this node; `None` where it does not, or cannot be understood, which is logged.
///
/// # Errors
/// When the API server refuses.
pub(crate) async fn volumes_at_once(
    client: &Client,
    namespace: &str,
    name: &str,
    node: &str,
) -> anyhow::Result<Option<u16>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt(name).await;
    let Some(map) = map.with_context(|| format!("read the ConfigMap {namespace}/{name}"))? else {
        return Ok(None);
    };
    let config = match NodeAgentConfig::parse(&map) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(
                configmap = name,
                error,
                "the settings of node agents are not used"
            );
            return Ok(None);
        }
    };
    let labels = if config.asks_for_labels() {
        let nodes: Api<Node> = Api::all(client.clone());
        let found = nodes.get(node).await;
        found
            .with_context(|| {
                format!(
                    "read the node {node}, whose labels the ConfigMap {namespace}/{name} asks for"
                )
            })?
            .labels()
            .clone()
    } else {
        Default::default()
    };
    let (number, complaints) = config.volumes_at_once(&labels);
    for error in complaints {
        tracing::warn!(
            configmap = name,
            error,
            "one of the settings of node agents is not used as it stands"
        );
    }
    Ok(number)
}
