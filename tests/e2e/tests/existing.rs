//! What a restore finds: a namespace that is still going, claims with data in them, objects whose like is refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupSpec, Restore, RestorePhase, RestoreSpec};
use jackline_e2e::{Env, until, wait_gone};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const NS: &str = "shop";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_respected() -> Result<()> {
    let env = Env::up("existing").await?;
    env.cluster.apply(include_str!("existing.yaml"))?;
    running(&env).await?;
    in_box(&env, "echo backed up > /data/file")?;
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": [NS]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("all", spec))
        .await?;
    env.backup_completed("all", MINUTE).await?;
    the_same_node_port_is_no_error(&env).await?;
    a_claim_that_is_left_out_keeps_its_data(&env).await?;
    a_namespace_that_is_going_is_waited_for(&env).await?;
    env.cluster.down()
}

async fn running(env: &Env) -> Result<()> {
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods(NS, "app=box").await?.len() == 1).then_some(()))
    })
    .await
}

fn in_box(env: &Env, command: &str) -> Result<String> {
    env.cluster.exec(NS, "box", &["sh", "-c", command])
}

async fn restore(env: &Env, name: &str, mut spec: Value) -> Result<Restore> {
    spec["backupName"] = json!("all");
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new(name, spec))
        .await?;
    env.restore_ended(name, 3 * MINUTE).await
}

/// The API server refuses a port that is taken before it looks whether the Service is the one that has it.
async fn the_same_node_port_is_no_error(env: &Env) -> Result<()> {
    let services: Api<Service> = env.api_in(NS);
    let before = services.get("web").await?;
    let back = restore(env, "ports", json!({"preserveNodePorts": true})).await?;
    ensure!(back.phase() == RestorePhase::Completed, "{back:?}");
    let after = services.get("web").await?;
    ensure!(after.uid() == before.uid() && after.spec == before.spec);
    ensure!(in_box(env, "cat /data/file")? == "backed up\n");
    Ok(())
}

/// Its pod comes back and finds what others have put there since.
async fn a_claim_that_is_left_out_keeps_its_data(env: &Env) -> Result<()> {
    in_box(env, "echo newer > /data/file")?;
    let pods: Api<Pod> = env.api_in(NS);
    pods.delete("box", &DeleteParams::default()).await?;
    wait_gone(&pods, "box", MINUTE).await?;
    let excluded = json!({"excludedResources": ["persistentvolumeclaims"]});
    let back = restore(env, "pods", excluded).await?;
    ensure!(back.phase() == RestorePhase::Completed, "{back:?}");
    let results = env.packed("restores/pods/restore-pods-results.gz").await?;
    let why = "the data of claim data was not restored: the restore's filters leave out persistentvolumeclaims";
    ensure!(results["warnings"].to_string().contains(why), "{results}");
    running(env).await?;
    ensure!(in_box(env, "cat /data/file")? == "newer\n");
    Ok(())
}

/// Its pod, which does not heed the first signal, writes on until it is killed.
async fn a_namespace_that_is_going_is_waited_for(env: &Env) -> Result<()> {
    let pods: Api<Pod> = env.api_in(NS);
    let old = pods.get("box").await?.uid();
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(NS, &DeleteParams::default()).await?;
    until("its pod is going", MINUTE, async || {
        let pod = pods.get("box").await?;
        Ok(pod.metadata.deletion_timestamp.map(drop))
    })
    .await?;
    let back = restore(env, "again", json!({})).await?;
    ensure!(back.phase() == RestorePhase::Completed, "{back:?}");
    running(env).await?;
    ensure!(pods.get("box").await?.uid() != old);
    ensure!(in_box(env, "cat /data/file")? == "backed up\n");
    let status = back.status.context("a status")?;
    ensure!(status.errors == 0, "{status:?}");
    // A user chose it, as the owners of fields tell.
    let web = env.api_in::<Service>(NS).get("web").await?;
    let ports = web.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let ports: Vec<_> = ports.iter().map(|port| port.node_port).collect();
    ensure!(ports == [Some(30080)], "{ports:?}");
    Ok(())
}
