//! Two nodes: each agent has the volumes of its own node, and a node that goes takes no other's volumes with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupSpec, PodVolumeBackup, PodVolumePhase, Restore, RestoreSpec,
};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{Env, NAMESPACE, until, wait_gone};
use jackline_test_cluster::{AGENT_IMAGE, Options};
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const NS: &str = "stock";

/// A pod on a node with a directory of its own to be backed up.
fn pod(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: on-{node}
  namespace: {NS}
  labels: {{app: box}}
  annotations: {{backup.velero.io/backup-volumes: data}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
  - name: box
    image: docker.io/local/busybox:1
    command: [/bin/sh, -c, "echo {node} > /data/file; while :; do sleep 1; done"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, emptyDir: {{}}}}]
---
"#
    )
}

async fn backup(env: &Env, name: &str, namespace: &str) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": [namespace]}))?;
    let backup = Backup::new(name, spec);
    env.api::<Backup>()
        .create(&PostParams::default(), &backup)
        .await?;
    Ok(())
}

/// The pod of a node's agent.
fn agent_of(env: &Env, node: &str) -> Result<String> {
    let pods = ["-n", NAMESPACE, "get", "pods", "-l", "name=node-agent"];
    let field = format!("--field-selector=spec.nodeName={node}");
    let name = ["-o", "jsonpath={.items[0].metadata.name}"];
    let args = pods.into_iter().chain([&*field]).chain(name);
    env.cluster.kubectl(args)
}

/// Gives a pod data that takes a while to be read.
fn grow(env: &Env, pod: &str) -> Result<()> {
    let write = "dd if=/dev/urandom of=/data/big bs=1M count=512";
    env.cluster.exec(NS, pod, &["sh", "-c", write]).map(drop)
}

/// The volume of a node that a backup is reading.
async fn being_read(env: &Env, backup: &str, node: &str) -> Result<Option<PodVolumeBackup>> {
    let volumes = env.volumes_of(backup).await?;
    Ok(volumes
        .into_iter()
        .find(|volume| volume.spec.node == node && volume.phase() == PodVolumePhase::InProgress))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_its_own_volumes_and_one_that_goes_takes_no_other_s_with_it() -> Result<()> {
    let options = Options::named("nodes").nodes(2);
    let settings = Settings {
        // A step below has no agent to take it from.
        controller_args: vec![format!("--agent-image={AGENT_IMAGE}")],
        ..Settings::default()
    };
    let env = Env::up_with(options, &settings).await?;
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NS}}}\n---\n");
    env.cluster
        .apply(&[namespace, pod("node-1"), pod("node-2")].concat())?;
    until("both pods run", 2 * MINUTE, async || {
        Ok((env.ready_pods(NS, "app=box").await?.len() == 2).then_some(()))
    })
    .await?;
    each_its_own(&env).await?;
    each_its_own_limit(&env)?;
    pods_on_both_wait_for_one_volume(&env).await?;
    an_agent_begins_again(&env).await?;
    scaled_up_while_it_is_restored(&env).await?;
    a_node_goes(&env).await?;
    env.cluster.down()
}

async fn each_its_own(env: &Env) -> Result<()> {
    backup(env, "both", NS).await?;
    env.backup_completed("both", 2 * MINUTE).await?;
    let volumes = env.volumes_of("both").await?;
    ensure!(volumes.len() == 2, "{volumes:?}");
    for volume in &volumes {
        let pod = volume.spec.pod.name.clone().unwrap_or_default();
        ensure!(pod == format!("on-{}", volume.spec.node), "{volume:?}");
    }
    let restic = env.restic(NS).await?;
    ensure!(restic.snapshots()?.len() == 2);
    restic.check()
}

/// What Velero's ConfigMap says of the nodes, after a restart.
fn each_its_own_limit(env: &Env) -> Result<()> {
    let config = json!({"loadConcurrency": {"globalConfig": 5, "perNodeConfig": [
        {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "node-2"}}, "number": 1}]}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "node-agent-config", "namespace": NAMESPACE},
        "data": {"node-agent-config.json": config.to_string()}});
    env.cluster.apply(&map.to_string())?;
    let agents = "daemonset/node-agent";
    env.cluster
        .kubectl(["-n", NAMESPACE, "rollout", "restart", agents])?;
    deploy::rolled_out(&env.cluster, agents)?;
    for (node, number) in [("node-1", 5), ("node-2", 1)] {
        let agent = agent_of(env, node)?;
        let said = env.cluster.kubectl(["-n", NAMESPACE, "logs", &agent])?;
        let start = said
            .lines()
            .find(|line| line.contains("node agent starts"))
            .with_context(|| said.clone())?;
        let shown = [
            format!("concurrency={number}"),
            format!("\"concurrency\":{number}"),
        ];
        ensure!(shown.iter().any(|shown| start.contains(shown)), "{start}");
    }
    Ok(())
}

/// A claim that pods on both nodes mount is read once and filled once, before any of them starts.
async fn pods_on_both_wait_for_one_volume(env: &Env) -> Result<()> {
    const NS: &str = "shared";
    env.cluster.apply(include_str!("nodes.yaml"))?;
    let all_run = async || {
        until("three pods run", 2 * MINUTE, async || {
            Ok((env.ready_pods(NS, "app=reader").await?.len() == 3).then_some(()))
        })
        .await
    };
    all_run().await?;
    env.cluster
        .exec(NS, "b", &["sh", "-c", "seq 100000 > /data/numbers"])?;
    backup(env, "shared", NS).await?;
    env.backup_completed("shared", 2 * MINUTE).await?;
    let volumes = env.volumes_of("shared").await?;
    ensure!(volumes.len() == 1, "{volumes:?}");

    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(NS, &DeleteParams::default()).await?;
    wait_gone(&namespaces, NS, 2 * MINUTE).await?;
    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "shared"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("shared", spec))
        .await?;
    env.restore_completed("shared", 2 * MINUTE).await?;
    all_run().await?;
    for pod in ["a", "b", "c"] {
        // What each saw when it started, and what is there now.
        let started = env.cluster.exec(NS, pod, &["cat", "/tmp/seen"])?;
        ensure!(started.trim() == "100000", "{pod}: {started:?}");
    }
    until("nothing of ours is left in it", MINUTE, async || {
        let left = env.cluster.exec(NS, "c", &["ls", "-A", "/data"])?;
        ensure!(left.trim() == "numbers", "{left}");
        Ok(Some(()))
    })
    .await
}

/// The agent of one node is killed while it reads: it goes on with its volume, and the other node's is read meanwhile.
async fn an_agent_begins_again(env: &Env) -> Result<()> {
    let agent = agent_of(env, "node-2")?;
    grow(env, "on-node-2")?;
    backup(env, "restarted", NS).await?;
    let reading = until("the volume is being read", MINUTE, async || {
        being_read(env, "restarted", "node-2").await
    })
    .await?;
    env.cluster
        .kill_container(NAMESPACE, &agent, "node-agent")
        .await?;
    let after = being_read(env, "restarted", "node-2").await?;
    ensure!(after.is_some(), "the agent was killed too late");
    env.backup_completed("restarted", 3 * MINUTE).await?;
    let volumes = env.volumes_of("restarted").await?;
    ensure!(volumes.len() == 2, "{volumes:?}");
    ensure!(
        volumes.iter().any(|volume| volume.uid() == reading.uid()),
        "the volume was taken up again, not made anew"
    );
    let restic = env.restic(NS).await?;
    ensure!(
        restic.snapshots()?.len() == 4,
        "two backups of two volumes: {:?}",
        restic.snapshots()?
    );
    restic.check()
}

/// A workload's own tools put it back and scale it up before the data is there: the pods that waited have it all, and the one that
/// did not is named.
async fn scaled_up_while_it_is_restored(env: &Env) -> Result<()> {
    const NS: &str = "grown";
    let workload = include_str!("grown.yaml");
    let deployment = "deployment/web";
    env.cluster.apply(workload)?;
    let running = async |number: usize| {
        until("the pods run", 2 * MINUTE, async || {
            let pods = env.ready_pods(NS, "app=web").await?;
            Ok((pods.len() == number).then_some(pods))
        })
        .await
    };
    let pods = running(1).await?;
    let first = pods.first().context("a pod")?.clone();
    env.cluster
        .exec(NS, &first, &["sh", "-c", "seq 100000 > /data/numbers"])?;
    backup(env, "grown", NS).await?;
    env.backup_completed("grown", 2 * MINUTE).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(NS, &DeleteParams::default()).await?;
    wait_gone(&namespaces, NS, 2 * MINUTE).await?;

    // Nobody fills a volume until the agents are back.
    let agents_on = |nodes: Value| {
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"agents": nodes}}}}});
        let patch = patch.to_string();
        let args = ["-n", NAMESPACE, "patch", "daemonset/node-agent", "-p"];
        env.cluster.kubectl(args.into_iter().chain([&*patch]))
    };
    agents_on(json!("none"))?;
    until("no agent is left", MINUTE, async || {
        let of_agent = ListParams::default().labels("name=node-agent");
        let left = env.api::<Pod>().list(&of_agent).await?.items;
        Ok(left.is_empty().then_some(()))
    })
    .await?;
    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "grown"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("grown", spec))
        .await?;
    until("the restored pod waits", MINUTE, async || {
        let pod = env.api_in::<Pod>(NS).get_opt(&first).await?;
        let statuses = pod.and_then(|pod| pod.status?.init_container_statuses);
        let waits = |status: &ContainerStatus| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
        };
        Ok(statuses
            .is_some_and(|all| all.iter().any(waits))
            .then_some(()))
    })
    .await?;
    env.cluster.apply(workload)?;
    env.cluster
        .kubectl(["-n", NS, "scale", deployment, "--replicas=2"])?;
    let early = running(1).await?;
    let early = early.first().context("a pod")?;
    ensure!(*early != first, "the restored pod did not wait");
    agents_on(Value::Null)?;
    let restore = env.restore_completed("grown", 3 * MINUTE).await?;
    ensure!(
        restore.status.map(|status| status.warnings) >= Some(1),
        "no warning"
    );
    let said = env
        .packed("restores/grown/restore-grown-results.gz")
        .await?;
    let named = format!("pod {early}, which this restore did not make, ran before the data");
    ensure!(
        said["warnings"]["namespaces"][NS]
            .to_string()
            .contains(&named),
        "{said}"
    );
    running(2).await?;
    let seen = |pod: &str| env.cluster.exec(NS, pod, &["cat", "/tmp/seen"]);
    ensure!(seen(&first)?.trim() == "100000" && seen(early)?.trim() == "0");
    until("nothing of ours is left in it", MINUTE, async || {
        let left = env.cluster.exec(NS, &first, &["ls", "-A", "/data"])?;
        Ok((left.trim() == "numbers").then_some(()))
    })
    .await
}

/// One volume of the node is being read, one has yet to be; the agent's pod looks as if it ran on: nobody is left on the node to say
/// otherwise.
async fn a_node_goes(env: &Env) -> Result<()> {
    grow(env, "on-node-2")?;
    backup(env, "begun", NS).await?;
    let begun = async || being_read(env, "begun", "node-2").await;
    until("the volume is being read", MINUTE, begun).await?;
    env.cluster.machine("node-2")?.stop()?;
    let gone = Instant::now();
    ensure!(begun().await?.is_some(), "the node went too late");
    backup(env, "half", NS).await?;
    for name in ["begun", "half"] {
        let ended = env.backup_ended(name, 5 * MINUTE).await?;
        println!("{name} ended {} s after the node", gone.elapsed().as_secs());
        let phase = ended.status.and_then(|status| status.phase);
        ensure!(
            phase == Some(BackupPhase::PartiallyFailed),
            "{name}: {phase:?}"
        );
        only_the_lost_node_s_volume_failed(env, name).await?;
    }
    Ok(())
}

async fn only_the_lost_node_s_volume_failed(env: &Env, backup: &str) -> Result<()> {
    let volumes = env.volumes_of(backup).await?;
    let of = |node: &str| {
        let found = volumes.iter().find(|volume| volume.spec.node == node);
        found.with_context(|| format!("no volume of {node}: {volumes:?}"))
    };
    ensure!(of("node-1")?.phase() == PodVolumePhase::Completed);
    let lost = of("node-2")?;
    let message = lost.status.clone().and_then(|status| status.message);
    ensure!(
        lost.phase() == PodVolumePhase::Failed
            && message
                .as_ref()
                .is_some_and(|message| message.starts_with("node gone: node node-2")),
        "{backup}: {:?}: {message:?}",
        lost.phase()
    );
    Ok(())
}
