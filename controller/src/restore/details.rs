//! What a volume that was provisioned anew gets back of the one in the backup once it is bound to its claim: labels and the reclaim
//! policy (velero-compat §7.3).

use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use jackline_policy::restore::{claim, json::text};
use jackline_runtime::Failure;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::core::ApiResource;

use super::{cluster::Objects, report::Place, run::Run};
use crate::location::chain;

/// How often a claim that is not bound yet is looked at.
const TICK: Duration = Duration::from_secs(2);
/// Claims that are looked at at once.
const AT_ONCE: usize = 16;

/// How it went with one volume.
enum Put {
    Done,
    /// There is nothing to do, or nobody to do it for.
    Nothing,
    NotYet,
}

impl Run<'_> {
    /// Gives the volumes that were provisioned for this restore what those in the backup had.
    ///
    /// # Errors
    /// When this process may not act any more; what cannot be put back is a warning.
    pub async fn put_back_details(&self) -> Result<(), Failure> {
        let claims = self.state.lock().provisioned.clone();
        let claims: Vec<BoxFuture<'_, Result<(), Failure>>> = claims
            .iter()
            .map(|(namespace, name)| self.details_of(namespace, name).boxed())
            .collect();
        stream::iter(claims)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn details_of(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        let stored = self
            .catalog
            .find("persistentvolumeclaims", Some(namespace), name);
        let volume = stored.and_then(|claim| {
            let volume = text(&claim, "/spec/volumeName")?;
            let volume = self.catalog.find("persistentvolumes", None, volume)?;
            Some(claim::Details::of(&volume))
        });
        // Never bound, or a backup without volumes.
        let Some(volume) = volume else {
            return Ok(());
        };
        let target = self.target(namespace);
        let limit = self.context.args.resource_timeout;
        let deadline = Instant::now() + limit.to_std();
        let why = loop {
            self.token.check()?;
            if self.is_deleted() {
                return Ok(());
            }
            match self.put_details(target, name, &volume).await {
                Ok(Put::Done) => {
                    let what = "labels and reclaim policy of its volume are as in the backup";
                    self.report.info(&format!("claim {target}/{name}: {what}"));
                    return Ok(());
                }
                Ok(Put::Nothing) => return Ok(()),
                Ok(Put::NotYet) if Instant::now() < deadline => tokio::time::sleep(TICK).await,
                Ok(Put::NotYet) => break format!("it was not bound within {limit}"),
                Err(error) => break chain(&error),
            }
        };
        let why = format!(
            "claim {name}: labels and reclaim policy of its volume could not be put back: {why}"
        );
        self.report.warning(Place::Namespace(target), &why);
        Ok(())
    }

    async fn put_details(
        &self,
        target: &str,
        name: &str,
        stored: &claim::Details,
    ) -> Result<Put, kube::Error> {
        let client = &self.context.clients.call;
        let api = ApiResource::erase::<PersistentVolumeClaim>(&());
        let claims = Objects::new(client, &api, Some(target));
        let Some(found) = claims.get(name).await? else {
            return Ok(Put::Nothing);
        };
        let bound = text(&found, "/status/phase") == Some("Bound");
        let Some(volume) = text(&found, "/spec/volumeName").filter(|_| bound) else {
            let class = text(&found, "/spec/storageClassName").unwrap_or_default();
            return Ok(match self.waits_for_a_pod(class).await? {
                true => Put::Nothing,
                false => Put::NotYet,
            });
        };
        let volumes = Objects::new(client, &ApiResource::erase::<PersistentVolume>(&()), None);
        let Some(live) = volumes.get(volume).await? else {
            return Ok(Put::NotYet);
        };
        if claim::claim_of(&live) != Some((target, name)) {
            return Ok(Put::NotYet);
        }
        match stored.patch(&live) {
            Some(patch) => volumes.patch(volume, &patch).await.map(|()| Put::Done),
            None => Ok(Put::Nothing),
        }
    }

    /// Whether the class makes a volume only for a claim that a pod mounts: then an unbound claim may stay so for ever.
    async fn waits_for_a_pod(&self, class: &str) -> Result<bool, kube::Error> {
        if class.is_empty() {
            return Ok(false);
        }
        let api = ApiResource::erase::<StorageClass>(&());
        let classes = Objects::new(&self.context.clients.call, &api, None);
        let found = classes.get(class).await?;
        Ok(found.is_some_and(|class| {
            text(&class, "/volumeBindingMode") == Some("WaitForFirstConsumer")
        }))
    }
}
