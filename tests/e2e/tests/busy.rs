//! An API server that has too much to do says 429: a restore waits and loses nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupSpec, Restore, RestorePhase, RestoreSpec};
use jackline_e2e::{Env, NAMESPACE, until, wait_gone};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const CROWD: &str = "crowd";
const OBJECTS: usize = 60;
/// For how long there is no place for us.
const BUSY: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_api_server_slows_a_restore_and_loses_nothing() -> Result<()> {
    let env = Env::up("busy").await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CROWD}});
    let maps = (0..OBJECTS).map(|number| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("map-{number}"), "namespace": CROWD}, "data": {"number": number.to_string()}})
    });
    let all = std::iter::once(namespace).chain(maps);
    let all: Vec<String> = all.map(|object| object.to_string()).collect();
    env.cluster.apply(&all.join("\n---\n"))?;
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": [CROWD]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new(CROWD, spec))
        .await?;
    env.backup_completed(CROWD, MINUTE).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(CROWD, &DeleteParams::default()).await?;
    wait_gone(&namespaces, CROWD, 2 * MINUTE).await?;

    no_place(&env)?;
    let started = Instant::now();
    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": CROWD}))?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new(CROWD, spec))
        .await?;
    until("requests are refused", MINUTE, async || {
        Ok((refused(&env)? > 0).then_some(()))
    })
    .await?;
    tokio::time::sleep(BUSY).await;
    let times = refused(&env)?;
    ensure!(restores.get(CROWD).await?.phase() == RestorePhase::InProgress);
    let place = ["delete", "flowschema,prioritylevelconfiguration", CROWD];
    env.cluster.kubectl(place)?;
    let restore = env.restore_completed(CROWD, 2 * MINUTE).await?;
    println!(
        "restored in {:.1} s, after {times} refusals",
        started.elapsed().as_secs_f64()
    );
    let status = restore.status.context("a status")?;
    ensure!((status.warnings, status.errors) == (0, 0), "{status:?}");
    // Each of a few requests at once is repeated about once a second at most.
    ensure!(times < 20 * BUSY.as_secs(), "{times} refusals");
    let maps = env.api_in::<ConfigMap>(CROWD);
    let of_restore = ListParams::default().labels(&format!("velero.io/restore-name={CROWD}"));
    let maps = maps.list(&of_restore).await?.items;
    ensure!(maps.len() == OBJECTS, "{}", maps.len());
    for map in maps {
        let number = map.data.as_ref().map(|data| data["number"].clone());
        ensure!(number.is_some_and(|number| map.name_any() == format!("map-{number}")));
    }
    env.cluster.down()
}

/// Whatever we write there, the API server has no place for it.
fn no_place(env: &Env) -> Result<()> {
    let version = "flowcontrol.apiserver.k8s.io/v1";
    let level = json!({"apiVersion": version, "kind": "PriorityLevelConfiguration", "metadata": {"name": CROWD},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "lendablePercent": 0,
            "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}});
    let accounts = format!("system:serviceaccounts:{NAMESPACE}");
    let writes = json!({"verbs": ["create", "patch", "update"], "apiGroups": [""], "resources": ["configmaps"], "namespaces": [CROWD]});
    let schema = json!({"apiVersion": version, "kind": "FlowSchema", "metadata": {"name": CROWD},
        "spec": {"priorityLevelConfiguration": {"name": CROWD}, "matchingPrecedence": 2, "rules": [
            {"subjects": [{"kind": "Group", "group": {"name": accounts}}], "resourceRules": [writes]}]}});
    env.cluster.apply(&level.to_string())?;
    env.cluster.apply(&schema.to_string())?;
    let obeyed = ["wait", "--for=condition=Dangling=False", "--timeout=30s"];
    let schema = ["flowschema", CROWD];
    env.cluster.kubectl(obeyed.into_iter().chain(schema))?;
    Ok(())
}

/// How many requests of ours were refused.
fn refused(env: &Env) -> Result<u64> {
    let metrics = env.cluster.kubectl(["get", "--raw", "/metrics"])?;
    let mut sum = 0;
    for line in metrics.lines() {
        let of_ours = line.contains(&format!("priority_level=\"{CROWD}\""));
        if of_ours && line.starts_with("apiserver_flowcontrol_rejected_requests_total{") {
            let count = line.split_whitespace().last().context("a number")?;
            sum += count.parse::<f64>()? as u64;
        }
    }
    Ok(sum)
}
