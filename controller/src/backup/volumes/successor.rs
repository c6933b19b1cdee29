//! Who carries a claim when its pod went before the agent began.

use std::time::Duration;

use jackline_crds::velero::PodVolumeBackup;
use jackline_policy::{
    backup::volumes::Selected,
    elect::{Candidate, elect},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};

use super::super::{job::Job, newest};
use crate::{agents, collect::PodFacts, context::Context, remove::remove};

/// How long a pod that takes another's place may need until it runs.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_secs(2);

/// Who it is.
pub(super) enum Successor {
    /// Another pod that mounts the claim, and the claim's volume in it.
    Pod(Box<PodFacts>, Selected),
    /// The pod has gone, and no other mounts the claim.
    Nobody,
    /// The pod is still there, or another mounts the claim and cannot carry it.
    Unknown,
}

/// Waits for a successor. A volume without a claim went with its pod.
pub(super) async fn of(context: &Context, gone: &PodFacts, claim: Option<&str>) -> Successor {
    let began = tokio::time::Instant::now();
    loop {
        let found = look(context, gone, claim).await.unwrap_or_else(|error| {
            tracing::warn!(%error, claim, "pods that mount a claim cannot be listed");
            Successor::Unknown
        });
        if matches!(found, Successor::Pod(..)) || claim.is_none() || began.elapsed() > PATIENCE {
            return found;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn look(
    context: &Context,
    gone: &PodFacts,
    claim: Option<&str>,
) -> Result<Successor, kube::Error> {
    let kind = ApiResource::erase::<Pod>(&());
    let namespace = &gone.volumes.namespace;
    let pods: Api<DynamicObject> =
        Api::namespaced_with(context.clients.call.clone(), namespace, &kind);
    let pods = pods.list(&ListParams::default()).await?.items;
    let agents = agents::nodes(&context.stores.agents);
    let mut found = Vec::new();
    let mut there = false;
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        there |= pod.metadata.uid.as_ref() == Some(&gone.volumes.uid);
        let created = pod.metadata.creation_timestamp.clone();
        let job = pod
            .owner_references()
            .iter()
            .any(|owner| owner.kind == "Job");
        let facts = PodFacts::of(&serde_json::to_value(&pod).unwrap_or_default());
        let volume =
            facts.volumes.volumes.iter().find(|volume| {
                claim.is_some() && volume.claim.as_deref() == claim && volume.mounted
            });
        if let Some(name) = volume.map(|volume| volume.name.clone()) {
            found.push((facts, name, created, job));
        }
    }
    let candidates: Vec<Candidate<'_>> = found
        .iter()
        .map(|(pod, volume, created, job)| Candidate {
            uid: &pod.volumes.uid,
            created: created
                .as_ref()
                .map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
            able: pod.volumes.phase == "Running" && pod.volumes.uid != gone.volumes.uid,
            incumbent: false,
            refused: pod.volumes.opt_out.contains(volume),
            agent: pod
                .volumes
                .node
                .as_ref()
                .is_some_and(|node| agents.contains(node)),
            job: *job,
        })
        .collect();
    let elected =
        elect(&candidates).filter(|&at| candidates.get(at).is_some_and(|one| !one.refused));
    let nobody = !there && found.is_empty();
    Ok(match elected.and_then(|at| found.into_iter().nth(at)) {
        Some((pod, volume, _, _)) => {
            let selected = Selected {
                pod: 0,
                volume,
                claim: claim.map(str::to_owned),
            };
            Successor::Pod(Box::new(pod), selected)
        }
        None if nobody => Successor::Nobody,
        None => Successor::Unknown,
    })
}

/// Takes away the object of a volume that was never begun: nothing is in the bucket for it.
pub(super) async fn forget(job: &Job<'_>, name: &str) {
    let api = job.context.api::<PodVolumeBackup>();
    let forget = async {
        newest(job.context, job.backup, job.token).await?;
        match api.get_opt(name).await? {
            Some(volume) => remove(&api, &volume, job.token).await,
            None => Ok(()),
        }
    };
    if let Err(error) = forget.await {
        tracing::warn!(%error, name, "PodVolumeBackup is left behind");
    }
}
