//! The server put together.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use jackline_crds::{
    foreign,
    velero::{PodVolumeBackup, PodVolumeRestore},
};
use jackline_holder::{ApiJudge, holder};
use jackline_runtime::{Health, Kit, Queue, RunOptions, WatchSpec, cluster::cluster_uid};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use tokio::sync::Semaphore;

use crate::{
    args::ServerArgs,
    backup::Backups,
    context::{ClientBox, Context},
    load,
    metrics::Metrics,
    repos::Repositories,
    restore::Restores,
};

/// Time that running operations have to stop in order at shutdown.
const GRACE: Duration = Duration::from_secs(20);

/// Serves this node until SIGTERM.
///
/// # Errors
/// When the process cannot start, or a task of it dies.
pub async fn serve(args: ServerArgs) -> anyhow::Result<()> {
    let ServerArgs {
        runtime,
        namespace,
        node_name,
        host_pods,
        node_agent_configmap,
        concurrency,
        lock_wait,
        give_up_after,
    } = args;
    let node =
        node_name.context("the node's name is not known: give --node-name or set NODE_NAME")?;
    let kit = Kit::start("jackline-node-agent", &runtime).await?;
    jackline_storage::metrics::register(kit.metrics.registry())?;
    check_host_pods(&kit.health, &host_pods);

    let client = kit.clients.call.clone();
    let Some(cluster) = wait_for_cluster(&client, &kit).await else {
        return Ok(kit.run().await?);
    };
    let concurrency = load::volumes_at_once(&client, &namespace, &node_agent_configmap, &node)
        .await?
        .unwrap_or(concurrency);
    tracing::info!(node, namespace, host_pods = %host_pods.display(), concurrency, "node agent starts");
    let holder = holder(&cluster, &node, &namespace);
    let judge = ApiJudge {
        client: client.clone(),
        namespace: namespace.clone(),
        mine: holder.instance.clone(),
    };
    let here = node.clone();
    let context = Arc::new(Context {
        pods: kit.watch::<Pod>(WatchSpec::new("pods").fields(format!("spec.nodeName={node}"))),
        // Without those of Jackline: every node's agent would see every other's.
        veleros: kit.watch_some(
            WatchSpec::new("veleros")
                .namespace(&namespace)
                .labels("app.kubernetes.io/part-of!=jackline"),
            |pod| foreign::role(pod).is_some(),
        ),
        backups: kit.watch_some::<PodVolumeBackup>(
            WatchSpec::new("podvolumebackups").namespace(&namespace),
            move |backup| backup.spec.node == here && !backup.phase().is_terminal(),
        ),
        restores: kit.watch_guarded::<PodVolumeRestore>(
            WatchSpec::new("podvolumerestores").namespace(&namespace),
        ),
        repositories: Repositories::new(
            client.clone(),
            &namespace,
            holder,
            Arc::new(judge),
            lock_wait,
        ),
        client: ClientBox(client),
        events: kit.events.clone(),
        metrics: Metrics::new(kit.metrics.registry(), &node)?,
        slots: Arc::new(Semaphore::new(usize::from(concurrency))),
        shutdown: kit.shutdown().clone(),
        node,
        namespace,
        host_pods,
        give_up_after,
    });
    // Work that takes as long as the data needs: no deadline, the operations have their own.
    let options = RunOptions::new()
        .concurrency(usize::from(concurrency))
        .pass_deadline(None)
        .resync(None)
        .grace(GRACE);
    backups(&kit, &context, &options);
    restores(&kit, &context, &options);
    drop(context);
    let result = kit.run().await;
    crate::repos::leave().await;
    Ok(result?)
}

fn backups(kit: &Kit, context: &Arc<Context>, options: &RunOptions) {
    let queue = Queue::new("podvolumebackup");
    let metrics = context.metrics.clone();
    context.backups.enqueue(&queue, move |change| {
        if change.after.is_some() {
            metrics.enqueue(&change.key);
        }
        vec![change.key.clone()]
    });
    let backups = Arc::new(Backups::new(context.clone()));
    kit.run_queue(&queue, options.clone(), move |key| {
        let backups = backups.clone();
        async move { backups.pass(&key).await }
    });
}

fn restores(kit: &Kit, context: &Arc<Context>, options: &RunOptions) {
    let queue = Queue::new("podvolumerestore");
    context
        .restores
        .enqueue(&queue, |change| vec![change.key.clone()]);
    // A pod that begins to wait, or goes, is news for its restores, and for those of claims that it may share.
    let restores = context.restores.clone();
    context.pods.enqueue(&queue, move |change| {
        let Some(pod) = change.either() else {
            return Vec::new();
        };
        let (uid, namespace) = (pod.uid(), pod.namespace());
        let concerned = restores.filter(|restore| {
            let target = &restore.spec.pod;
            target.uid == uid || (target.namespace == namespace && restore.phase().is_terminal())
        });
        concerned
            .iter()
            .map(|restore| jackline_runtime::Key::of(&**restore))
            .collect()
    });
    let restores = Arc::new(Restores::new(context.clone()));
    kit.run_queue(&queue, options.clone(), move |key| {
        let restores = restores.clone();
        async move { restores.pass(&key).await }
    });
}

/// The cluster's UID, asked for until it is known or the process is told to end.
async fn wait_for_cluster(client: &Client, kit: &Kit) -> Option<String> {
    let check = kit.health.check("cluster");
    loop {
        match cluster_uid(client).await {
            Ok(uid) => {
                check.ok();
                return Some(uid);
            }
            Err(error) => {
                tracing::warn!(%error, "the API server does not answer");
                check.fail(error.to_string());
            }
        }
        tokio::select! {
            () = kit.shutdown().cancelled() => return None,
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    }
}

/// Without the kubelet's directory every volume of this node would fail: say so before.
fn check_host_pods(health: &Health, host_pods: &std::path::Path) {
    let check = health.check("host-pods");
    match std::fs::read_dir(host_pods) {
        Ok(_) => check.ok(),
        Err(error) => {
            tracing::error!(%error, host_pods = %host_pods.display(), "the kubelet's pods directory cannot be read");
            check.fail(format!("{} cannot be read: {error}", host_pods.display()));
        }
    }
}
