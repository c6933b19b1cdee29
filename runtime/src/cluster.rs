//! Who this cluster is.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};

/// The UID of the namespace `kube-system`: the one identity that a cluster has and that no other has.
pub async fn cluster_uid(client: &Client) -> Result<String, kube::Error> {
    let namespace = Api::<Namespace>::all(client.clone())
        .get_metadata("kube-system")
        .await?;
    Ok(namespace.uid().unwrap_or_default())
}
