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

/// Another pod that mounts the claim, and the claim's volume in it.
pub(super) async fn of(
    context: &Context,
    gone: &PodFacts,
    claim: &str,
) -> Option<(PodFacts, Selected)> {
    let began = tokio::time::Instant::now();
    loop {
        match look(context, gone, claim).await {
            Ok(Some(found)) => return Some(found),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, claim, "pods that mount a claim cannot be listed"),
        }
        if began.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn look(
    context: &Context,
    gone: &PodFacts,
    claim: &str,
) -> Result<Option<(PodFacts, Selected)>, kube::Error> {
    let kind = ApiResource::erase::<Pod>(&());
    let namespace = &gone.volumes.namespace;
    let pods: Api<DynamicObject> =
        Api::namespaced_with(context.clients.call.clone(), namespace, &kind);
    let pods = pods.list(&ListParams::default()).await?.items;
    let agents = agents::nodes(&context.stores.agents);
    let mut found = Vec::new();
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let created = pod.metadata.creation_timestamp.clone();
        let job = pod
            .owner_references()
            .iter()
            .any(|owner| owner.kind == "Job");
        let facts = PodFacts::of(&serde_json::to_value(&pod).unwrap_or_default());
        let volume = facts
            .volumes
            .volumes
            .iter()
            .find(|volume| volume.claim.as_deref() == Some(claim) && volume.mounted);
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
    let Some(at) =
        elect(&candidates).filter(|&at| candidates.get(at).is_some_and(|one| !one.refused))
    else {
        return Ok(None);
    };
    Ok(found.into_iter().nth(at).map(|(pod, volume, _, _)| {
        let selected = Selected {
            pod: 0,
            volume,
            claim: Some(claim.to_owned()),
        };
        (pod, selected)
    }))
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
