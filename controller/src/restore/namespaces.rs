//! Namespaces, made on demand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jackline_crds::names::FIELD_MANAGER;
use jackline_policy::restore::{json, meta};
use jackline_runtime::Failure;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::ApiResource;
use serde_json::Value;

use super::{
    cluster::Objects,
    report::{Done, Place},
    run::Run,
};
use crate::location::chain;

impl Run<'_> {
    /// Sees to it that a namespace of the backup is there under its name in the cluster.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn namespace(&self, source: &str) -> Result<bool, Failure> {
        let target = self.target(source);
        // One lock each: who waits for a namespace to go holds up nobody else.
        let known: Arc<_> = {
            let mut all = self.namespaces.lock();
            all.entry(target.to_owned()).or_default().clone()
        };
        let there = known.get_or_try_init(|| self.ensure_namespace(source, target));
        there.await.copied()
    }

    /// Whether [`Run::namespace`] answers at once.
    pub fn knows_namespace(&self, source: &str) -> bool {
        let all = self.namespaces.lock();
        let known = all.get(self.target(source));
        known.is_some_and(|known| known.initialized())
    }

    /// Whether the namespace in the cluster is still being deleted.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn is_going(&self, source: &str) -> Result<bool, Failure> {
        let api = ApiResource::erase::<Namespace>(&());
        let objects = Objects::new(&self.context.clients.call, &api, None);
        let found = objects.get(self.target(source)).await?;
        Ok(found.is_some_and(|found| json::text(&found, "/metadata/deletionTimestamp").is_some()))
    }

    async fn ensure_namespace(&self, source: &str, target: &str) -> Result<bool, Failure> {
        let api = ApiResource::erase::<Namespace>(&());
        let objects = Objects::new(&self.context.clients.call, &api, None);
        let deadline = Instant::now() + self.context.args.resource_timeout.to_std();
        loop {
            match objects.get(target).await? {
                Some(found) if json::text(&found, "/metadata/deletionTimestamp").is_none() => {
                    let ours = self.is_ours("namespaces", &found);
                    let done = if ours { Done::Created } else { Done::Skipped };
                    self.done("v1", "Namespace", None, target, done);
                    return Ok(true);
                }
                Some(_) if Instant::now() > deadline => {
                    let why = format!("namespace {target} is still being deleted");
                    self.report.error(Place::Cluster, &why);
                    return Ok(false);
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(250)).await,
                None => break,
            }
        }
        let mut wanted = self
            .catalog
            .find("namespaces", None, source)
            .unwrap_or_else(
                || serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {}}),
            );
        self.strip("namespaces", &mut wanted, None);
        meta::put_labels(&mut wanted, self.labels());
        wanted["metadata"]["name"] = Value::String(target.to_owned());
        self.token.check()?;
        match objects.create(&wanted, FIELD_MANAGER).await {
            Ok(_) => {
                self.report.info(&format!("namespace {target} created"));
                self.done("v1", "Namespace", None, target, Done::Created);
                Ok(true)
            }
            Err(error) => {
                self.report.error(
                    Place::Cluster,
                    &format!("error restoring namespace {target}: {}", chain(&error)),
                );
                self.done("v1", "Namespace", None, target, Done::Failed);
                Ok(false)
            }
        }
    }
}
