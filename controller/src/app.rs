//! The process put together: watches, election, and the one list of controllers.

use std::{sync::Arc, time::Duration};

use jackline_runtime::{Kit, Lease, LeaseSettings, cluster::cluster_uid, kit::instance};

use crate::{
    args::{Args, Engine},
    context::{Context, Stores},
};

/// The API server may come up after us; a pod that waits this long in vain is better restarted.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Runs the controller until it is told to stop.
///
/// # Errors
/// When it cannot start, or when one of its tasks has died.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let kit = Kit::start("jackline-controller", &args.runtime).await?;
    let cluster = tokio::time::timeout(START_DEADLINE, find_cluster(&kit))
        .await
        .map_err(|_| anyhow::anyhow!("the API server did not answer within {START_DEADLINE:?}"))?;
    let Some(cluster) = cluster else {
        return Ok(());
    };
    let stores = Stores::start(&kit, &args.namespace);
    let mut settings = LeaseSettings::new(&args.namespace, &args.lease_name, &instance());
    settings.duration = args.lease_duration;
    let lease = kit.elect(settings);
    let context = Context::new(&kit, args, cluster, stores);
    register(&context, &kit, &lease)?;
    kit.run().await?;
    Ok(())
}

/// The UID of the cluster; `None` when the process is told to stop first.
async fn find_cluster(kit: &Kit) -> Option<String> {
    loop {
        match cluster_uid(&kit.clients.call).await {
            Ok(uid) => return Some(uid),
            Err(error) => tracing::warn!(%error, "the kube-system namespace cannot be read yet"),
        }
        tokio::select! {
            () = kit.shutdown().cancelled() => return None,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Every controller of the product, in one place. Each hooks into the stores, makes its queue and gives its loop to the kit.
fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> anyhow::Result<()> {
    jackline_storage::metrics::register(kit.metrics.registry())?;
    let metrics = crate::policies::start(context, kit, lease)?;
    if context.args.engine == Engine::Velero {
        tracing::info!("a Velero in namespace {} moves the data", context.namespace);
        return Ok(());
    }
    crate::schedule::register(context, &metrics, kit, lease);
    crate::location::register(context, kit, lease);
    crate::sync::register(context, kit, lease);
    crate::repository::register(context, kit, lease)?;
    crate::maintenance::register(context, kit, lease)?;
    crate::deletion::register(context, kit, lease)?;
    crate::expiry::register(context, kit, lease);
    crate::backup::register(context, kit, lease)?;
    crate::restore::register(context, kit, lease)?;
    crate::requests::register(context, kit, lease);
    Ok(())
}
