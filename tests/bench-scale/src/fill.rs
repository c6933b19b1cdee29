//! Fills the cluster: namespaces, claims, running pods, a location and a policy.

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use jackline_test_cluster::Cluster;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

/// Requests at once.
const CONCURRENCY: usize = 64;

/// Names that say where an object belongs.
pub mod names {
    use anyhow::{Context, Result};
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;
    use kube::api::PartialObjectMeta;

    pub fn claim(claim: usize) -> String {
        format!("claim-{claim}")
    }

    pub fn pod(claim: usize, share: usize) -> String {
        format!("claim-{claim}-pod-{share}")
    }

    /// The claim that a pod of this benchmark mounts.
    pub fn claim_of(pod: &PartialObjectMeta<Pod>) -> Result<String> {
        let name = pod.name_any();
        let claim = name.split("-pod-").next().context("a pod's name")?;
        Ok(claim.to_owned())
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    pub claims: usize,
    pub share: usize,
    pub namespaces: usize,
}

impl Fill {
    pub fn pods(&self) -> usize {
        self.claims * self.share
    }

    fn namespace(&self, claim: usize) -> String {
        format!("team-{}", claim % self.namespaces.max(1))
    }

    pub async fn run(&self, cluster: &Cluster) -> Result<()> {
        cluster.apply(&self.surroundings(cluster).to_string())?;
        let client = cluster.client();
        stream::iter(0..self.claims)
            .map(|claim| {
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &self.namespace(claim));
                async move {
                    let object = serde_json::from_value(json!({
                        "metadata": {"name": names::claim(claim)},
                        "spec": {
                            "accessModes": ["ReadWriteMany"], "storageClassName": "shared", "volumeName": format!("pv-{claim}"),
                            "resources": {"requests": {"storage": "1Gi"}},
                        },
                    }))?;
                    api.create(&PostParams::default(), &object).await.context("create a claim")
                }
            })
            .buffer_unordered(CONCURRENCY)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        stream::iter(0..self.pods())
            .map(|number| {
                let (claim, share) = (number / self.share, number % self.share);
                let api: Api<Pod> = Api::namespaced(client.clone(), &self.namespace(claim));
                async move {
                    let object = serde_json::from_value(pod(claim, share))?;
                    api.create(&PostParams::default(), &object)
                        .await
                        .context("create a pod")?;
                    let running = json!({"status": {"phase": "Running"}});
                    api.patch_status(
                        &names::pod(claim, share),
                        &PatchParams::default(),
                        &Patch::Merge(running),
                    )
                    .await
                    .context("set a pod running")
                }
            })
            .buffer_unordered(CONCURRENCY)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    fn surroundings(&self, cluster: &Cluster) -> serde_json::Value {
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "velero"}})];
        for number in 0..self.namespaces.max(1) {
            let namespace = format!("team-{number}");
            items.push(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            );
            // No controller makes it here, and pods need it.
            items.push(json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
            }));
        }
        items.push(json!({
            "apiVersion": "velero.io/v1", "kind": "BackupStorageLocation",
            "metadata": {"name": "default", "namespace": "velero"},
            "spec": {
                "provider": "aws", "default": true, "objectStorage": {"bucket": "velero"},
                "config": {"region": cluster.s3().region, "s3ForcePathStyle": "true", "s3Url": cluster.s3().host_endpoint},
            },
        }));
        items.push(json!({
            "apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy", "metadata": {"name": "everything"},
            "spec": {"namespaces": {"include": ["team-*"]}, "schedule": {"cron": "@yearly"}},
        }));
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }
}

/// A pod as a chart makes it: two containers, settings, labels, a few volumes.
fn pod(claim: usize, share: usize) -> serde_json::Value {
    let name = names::pod(claim, share);
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example/app:1.2.3",
            "env": (0..12).map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("value-{at}")})).collect::<Vec<_>>(),
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        })
    };
    json!({
        "metadata": {"name": name, "labels": {
            "app.kubernetes.io/name": "app", "app.kubernetes.io/instance": names::claim(claim), "pod-template-hash": "5d8f9c7b6",
        }},
        "spec": {
            "nodeName": format!("node-{}", claim % 100), "automountServiceAccountToken": false,
            "containers": [container("app"), container("sidecar")],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": names::claim(claim)}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "settings", "configMap": {"name": "settings"}},
            ],
        },
    })
}
