//! Who carries a claim when its pod went before the agent began.

use std::{collections::BTreeSet, time::Duration};

use jackline_crds::{names::label, velero::PodVolumeBackup};
use jackline_policy::{
    backup::{absence::Agent, volumes::Selected},
    elect::{Candidate, elect},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};

use tokio::sync::Semaphore;

use super::{
    super::{job::Job, newest},
    Identity,
};
use crate::{agents, collect::PodFacts, context::Context, remove::remove};

/// How long the pod that takes another's place may need until it is made. One that is there may need much longer until it runs, as its
/// volume has to come over from another node.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);

/// Who it is.
pub(super) enum Successor {
    /// Another pod that mounts the claim, and the claim's volume in it; and the others that mount it.
    Pod(Box<PodFacts>, Selected, Vec<PodFacts>),
    /// The pod is as it was, and its agent too: another would fare no better.
    Same,
    /// The pod has gone or ended, and no other mounts the claim.
    Nobody,
    /// This pod mounts the claim, and did not run in time.
    Late(String),
    /// Why nobody else carries the claim.
    Unable(String),
}

/// What can be seen at the moment.
enum Sight {
    Found(Successor),
    /// This pod mounts the claim, and does not run yet; and whether the first one is still there.
    Pending(String, bool),
    /// Nobody mounts it, yet.
    Nobody,
}

/// Waits for a successor. A volume without a claim went with its pod. `tried`: UIDs of pods through which it cannot be read.
pub(super) async fn of(
    context: &Context,
    gone: &PodFacts,
    claim: Option<&str>,
    tried: &BTreeSet<String>,
    requests: &Semaphore,
) -> Successor {
    let began = tokio::time::Instant::now();
    let patience = context.args.resource_timeout.to_std();
    loop {
        let seen = {
            let _permit = requests.acquire().await;
            look(context, gone, claim, tried).await
        };
        match seen {
            Ok(Sight::Found(successor)) => return successor,
            Ok(Sight::Pending(_, true)) if began.elapsed() > patience => return Successor::Same,
            Ok(Sight::Pending(pod, false)) if began.elapsed() > patience => {
                return Successor::Late(pod);
            }
            Ok(Sight::Nobody) if claim.is_none() || began.elapsed() > PATIENCE => {
                return Successor::Nobody;
            }
            Ok(_) => {}
            Err(error) if began.elapsed() > PATIENCE => {
                let why = format!("pods that mount its claim cannot be listed: {error}");
                return Successor::Unable(why);
            }
            Err(error) => {
                tracing::warn!(%error, claim, "pods that mount a claim cannot be listed");
            }
        }
        let soon = began.elapsed() < PATIENCE;
        tokio::time::sleep(if soon { TICK } else { LATER }).await;
    }
}

async fn look(
    context: &Context,
    gone: &PodFacts,
    claim: Option<&str>,
    tried: &BTreeSet<String>,
) -> Result<Sight, kube::Error> {
    let kind = ApiResource::erase::<Pod>(&());
    let namespace = &gone.volumes.namespace;
    let pods: Api<DynamicObject> =
        Api::namespaced_with(context.clients.call.clone(), namespace, &kind);
    let pods = pods.list(&ListParams::default()).await?.items;
    let agents = &context.stores.agents;
    let pods: Vec<Seen> = pods.iter().filter_map(Seen::of).collect();
    let same = pods
        .iter()
        .find(|seen| seen.pod.volumes.uid == gone.volumes.uid);
    let well = |node: &str| agents::of_node(agents, node) == Agent::Ready;
    let nodes = agents::nodes(agents);
    Ok(choose(&pods, same, claim, tried, &well, &|node| {
        nodes.contains(node)
    }))
}

/// A pod that has not ended and is not on its way out.
struct Seen {
    pod: PodFacts,
    created: jiff::Timestamp,
    job: bool,
}

impl Seen {
    fn of(pod: &DynamicObject) -> Option<Self> {
        let facts = PodFacts::of(&serde_json::to_value(pod).ok()?);
        let over = matches!(facts.volumes.phase.as_str(), "Succeeded" | "Failed");
        let created = pod.metadata.creation_timestamp.as_ref();
        let mut owners = pod.owner_references().iter();
        (pod.metadata.deletion_timestamp.is_none() && !over).then(|| Self {
            pod: facts,
            created: created.map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
            job: owners.any(|owner| owner.kind == "Job"),
        })
    }

    fn volume(&self, claim: &str) -> Option<&str> {
        let volumes = &self.pod.volumes.volumes;
        let mut mounts = volumes
            .iter()
            .filter(|volume| volume.claim.as_deref() == Some(claim) && volume.mounted);
        mounts.next().map(|volume| &*volume.name)
    }

    fn runs(&self) -> bool {
        self.pod.volumes.phase == "Running"
    }
}

/// Chooses among `pods`. `same` is the pod itself, where it is still there; `well` tells whether the agent of a node is ready, `agent`
/// whether there is one.
fn choose(
    pods: &[Seen],
    same: Option<&Seen>,
    claim: Option<&str>,
    tried: &BTreeSet<String>,
    well: &dyn Fn(&str) -> bool,
    agent: &dyn Fn(&str) -> bool,
) -> Sight {
    let on =
        |seen: &Seen, is: &dyn Fn(&str) -> bool| seen.pod.volumes.node.as_deref().is_some_and(is);
    if same.is_some_and(|same| same.runs() && on(same, well)) {
        return Sight::Found(Successor::Same);
    }
    let others: Vec<(&Seen, &str)> = pods
        .iter()
        .filter(|seen| !tried.contains(&seen.pod.volumes.uid))
        .filter_map(|seen| Some((seen, seen.volume(claim?)?)))
        .collect();
    let candidates: Vec<Candidate<'_>> = others
        .iter()
        .map(|(seen, volume)| Candidate {
            uid: &seen.pod.volumes.uid,
            created: seen.created,
            able: seen.runs(),
            incumbent: false,
            refused: seen.pod.volumes.opt_out.contains(*volume),
            agent: on(seen, agent),
            job: seen.job,
        })
        .collect();
    let elected =
        elect(&candidates).filter(|&at| candidates.get(at).is_some_and(|one| !one.refused));
    if let Some((seen, volume)) = elected.and_then(|at| others.get(at)) {
        let selected = Selected {
            pod: 0,
            volume: (*volume).to_owned(),
            claim: claim.map(str::to_owned),
        };
        let mounts = |other: &&Seen| {
            let mut volumes = other.pod.volumes.volumes.iter();
            let is_left_out = other.pod.labels.get(label::EXCLUDE_FROM_BACKUP);
            volumes.any(|volume| volume.claim.as_deref() == claim)
                && other.pod.volumes.uid != seen.pod.volumes.uid
                && is_left_out.is_none_or(|value| value != "true")
        };
        let company = pods.iter().filter(mounts).map(|other| other.pod.clone());
        let pod = Box::new(seen.pod.clone());
        return Sight::Found(Successor::Pod(pod, selected, company.collect()));
    }
    let pending = candidates.iter().position(|one| !one.able && !one.refused);
    match pending.and_then(|at| others.get(at)) {
        Some((seen, _)) => Sight::Pending(seen.pod.volumes.name.clone(), same.is_some()),
        None if !others.is_empty() => {
            let why = "the other pods that mount its claim exclude it".to_owned();
            Sight::Found(Successor::Unable(why))
        }
        // It is there, and nobody can read it.
        None if same.is_some() => Sight::Found(Successor::Same),
        None => Sight::Nobody,
    }
}

/// Takes away the object of a volume that was never begun: nothing is in the bucket for it.
pub(super) async fn forget(job: &Job<'_>, volume: &Identity) {
    let api = job.context.api::<PodVolumeBackup>();
    let forget = async {
        newest(job.context, job.backup, job.token).await?;
        let now = api.get_opt(&volume.name).await?;
        match now.filter(|now| volume.is(now)) {
            Some(now) => remove(&api, &now, job.token).await,
            None => Ok(()),
        }
    };
    if let Err(error) = forget.await {
        tracing::warn!(%error, name = volume.name, "PodVolumeBackup is left behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(uid: &str, node: &str, phase: &str, excludes: &str) -> Seen {
        let pod: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": uid, "uid": uid, "creationTimestamp": "2026-11-07T00:00:00Z",
                "annotations": {"backup.velero.io/backup-volumes-excludes": excludes}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]},
            "status": {"phase": phase},
        }))
        .unwrap();
        Seen::of(&pod).unwrap()
    }

    /// What is said of a claim whose volume was not begun through `a`.
    fn said(pods: &[Seen], tried: &[&str]) -> String {
        let same = pods.iter().find(|seen| seen.pod.volumes.uid == "a");
        let tried = tried.iter().map(ToString::to_string).collect();
        let (well, agent) = (|node: &str| node == "well", |node: &str| node != "bare");
        match choose(pods, same, Some("data"), &tried, &well, &agent) {
            Sight::Found(Successor::Pod(pod, volume, _)) => {
                format!("{} of {}", volume.volume, pod.volumes.name)
            }
            Sight::Found(Successor::Same) => "same".to_owned(),
            Sight::Found(Successor::Unable(why)) => why,
            Sight::Found(_) => "?".to_owned(),
            Sight::Pending(pod, false) => format!("{pod} is pending"),
            Sight::Pending(pod, true) => format!("{pod} is pending beside it"),
            Sight::Nobody => "nobody".to_owned(),
        }
    }

    #[test]
    fn all_others_that_mount_the_claim_are_its_company() {
        let mut left_out = seen("d", "well", "Running", "");
        left_out.pod.labels = [(label::EXCLUDE_FROM_BACKUP, "true")].into_iter().collect();
        let pods = [
            seen("a", "bare", "Running", ""),
            seen("b", "well", "Running", ""),
            seen("c", "", "Pending", ""),
            left_out,
        ];
        let tried = ["a".to_owned()].into();
        let found = choose(
            &pods,
            pods.first(),
            Some("data"),
            &tried,
            &|node| node == "well",
            &|node| node == "well",
        );
        let Sight::Found(Successor::Pod(pod, _, company)) = found else {
            panic!("nobody is found");
        };
        let company: Vec<&str> = company.iter().map(|pod| &*pod.volumes.name).collect();
        assert_eq!((&*pod.volumes.name, company), ("b", vec!["a", "c"]));
    }

    #[test]
    fn a_claim_goes_to_another_pod_when_it_is_the_pod_that_cannot_carry_it() {
        let a = |node: &str| seen("a", node, "Running", "");
        let b = || seen("b", "well", "Running", "");
        for (pods, tried, expected) in [
            (vec![b()], vec!["a"], "data of b"),
            (vec![], vec!["a"], "nobody"),
            // A directory that is not found, or a server that does not answer, is the same for all.
            (vec![a("well"), b()], vec!["a"], "same"),
            // Its node's agent has gone, or is not well.
            (vec![a("bare"), b()], vec!["a"], "data of b"),
            (vec![a("unwell"), b()], vec!["a"], "data of b"),
            (vec![a("bare")], vec!["a"], "same"),
            // Nobody is asked twice.
            (vec![a("bare"), b()], vec!["a", "b"], "same"),
            (vec![b()], vec!["a", "b"], "nobody"),
            (
                vec![seen("b", "", "Pending", "")],
                vec!["a"],
                "b is pending",
            ),
            (
                vec![a("bare"), seen("b", "", "Pending", "")],
                vec!["a"],
                "b is pending beside it",
            ),
            (
                vec![
                    seen("b", "", "Pending", ""),
                    seen("c", "well", "Running", ""),
                ],
                vec!["a"],
                "data of c",
            ),
            (
                vec![seen("b", "well", "Running", "data")],
                vec!["a"],
                "the other pods that mount its claim exclude it",
            ),
        ] {
            assert_eq!(said(&pods, &tried), expected);
        }
    }
}
