//! `jackline restore volume`: the data of one backed-up volume, back into a claim that exists.
//!
//! A pod of this program's own mounts the claim and waits, as restored pods do; the node agent fills the volume for a PodVolumeRestore.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jackline_crds::names::{
    DEFAULT_NAMESPACE, NODE_AGENT, RESTORE_WAIT_PROGRAM, annotation, label, label_value, short_hash,
};
use jackline_crds::velero::{
    PodVolumeBackup, PodVolumePhase, PodVolumeRestore, PodVolumeRestoreSpec, UploaderType,
};
use jackline_policy::restore::{wait, waiter::Settings};
use jackline_repository::Progress;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{Format, RestoreVolumeArgs};
use crate::exit::{Exit, chain};
use crate::output::{self, Bar};
use crate::{cluster, table};

/// How often the cluster is asked how far it is.
const TICK: Duration = Duration::from_secs(1);
/// The user of a pod that may not be root.
const NOBODY: u32 = 65534;
/// How long the pod has to take the done-file away, and to go.
const LEAVES: Duration = Duration::from_secs(60);

pub(crate) async fn volume(args: RestoreVolumeArgs) -> Result<ExitCode, Exit> {
    let client = cluster::client().await?;
    let target = args
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let source = match args.source.as_deref().map(|source| source.split_once('/')) {
        None => (target.as_str(), args.claim.as_str()),
        Some(Some((namespace, claim))) if !namespace.is_empty() && !claim.is_empty() => {
            (namespace, claim)
        }
        Some(_) => return Err(Exit::failed("--source is NAMESPACE/CLAIM")),
    };
    crate::doctor::alone(&client, &args.jackline_namespace).await?;
    let copy = copy(&client, &args, source).await?;
    let node = place(&client, &args, &target).await?;
    let image = image(&client, &args.jackline_namespace).await?;
    let restore = Restore {
        pods: Api::namespaced(client.clone(), &target),
        volumes: Api::namespaced(client, &args.jackline_namespace),
        name: name(&target, &args.claim),
        uid: random_uid(),
        target,
        args: &args,
    };
    restore.begin(&copy, &image, node).await?;
    let interrupted = async {
        // Where signals cannot be had, the default of the system ends the program.
        match tokio::signal::ctrl_c().await {
            Ok(()) => {}
            Err(_) => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = restore.ended() => outcome,
        () = interrupted => Err(Exit::cancelled("interrupted: the claim may hold a part of the data")),
    };
    restore.clean_up(outcome.is_ok()).await;
    let bytes = outcome?;
    let snapshot = copy.status.and_then(|status| status.snapshot_id);
    match args.output {
        Format::Json => output::print_json(&json!({
            "message_type": "summary", "namespace": restore.target, "claim": args.claim,
            "backup": args.from_backup, "snapshot": snapshot, "bytes": bytes,
        }))?,
        Format::Text => output::print(&format!(
            "restored {} into claim {}/{}\n",
            table::bytes(bytes),
            restore.target,
            args.claim
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The same claim has the same name: two restores into it do not run at once.
fn name(namespace: &str, claim: &str) -> String {
    format!(
        "jackline-restore-{}",
        short_hash(&format!("{namespace}/{claim}"), 10)
    )
}

/// Tells this restore's done-file from those of others; nobody has to be unable to guess it.
fn random_uid() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = format!("{:?} {}", now.unwrap_or_default(), std::process::id());
    let hex = short_hash(&seed, 32);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ]
    .join("-")
}

/// What the backup has of a claim.
async fn copy(
    client: &Client,
    args: &RestoreVolumeArgs,
    (namespace, claim): (&str, &str),
) -> Result<PodVolumeBackup, Exit> {
    let api: Api<PodVolumeBackup> = Api::namespaced(client.clone(), &args.jackline_namespace);
    let backup = &args.from_backup;
    let selector = format!("{}={}", label::BACKUP_NAME, label_value(backup));
    let all = api.list(&ListParams::default().labels(&selector)).await;
    let all = all.map_err(|error| Exit::failed(chain(&error)))?.items;
    let claim_of =
        |volume: &PodVolumeBackup| volume.annotations().get(annotation::PVC_NAME).cloned();
    let namespace_of =
        |volume: &PodVolumeBackup| volume.spec.pod.namespace.clone().unwrap_or_default();
    let found = all.iter().find(|volume| {
        namespace_of(volume) == namespace && claim_of(volume).as_deref() == Some(claim)
    });
    let Some(found) = found else {
        let known: Vec<String> = all
            .iter()
            .filter_map(|volume| Some(format!("{}/{}", namespace_of(volume), claim_of(volume)?)))
            .collect();
        return Err(Exit::failed(match known.is_empty() {
            true => format!(
                "backup {backup} has no data of claims in namespace {}: see `velero backup describe {backup} --details`",
                args.jackline_namespace
            ),
            false => format!(
                "backup {backup} has no data of claim {namespace}/{claim}; it has {}",
                known.join(", ")
            ),
        }));
    };
    let status = found.status.clone().unwrap_or_default();
    if found.phase() != PodVolumePhase::Completed || status.snapshot_id.is_none() {
        return Err(Exit::failed(format!(
            "claim {namespace}/{claim} was not backed up whole by backup {backup}: {} {}",
            found.phase(),
            status.message.unwrap_or_default()
        )));
    }
    if found.spec.uploader_type == UploaderType::Kopia {
        return Err(Exit::failed(format!(
            "claim {namespace}/{claim} was saved by kopia, which is not supported; supported: restic"
        )));
    }
    Ok(found.clone())
}

/// The node of the pods that use the claim, if any do.
async fn place(
    client: &Client,
    args: &RestoreVolumeArgs,
    namespace: &str,
) -> Result<Option<String>, Exit> {
    let RestoreVolumeArgs { claim, in_use, .. } = args;
    let failed = |error: kube::Error| Exit::failed(chain(&error));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = claims.get_opt(claim).await.map_err(failed)?;
    let Some(found) = found else {
        return Err(Exit::failed(format!(
            "there is no claim {namespace}/{claim}; `velero restore create` makes claims anew"
        )));
    };
    let spec = found.spec.unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Exit::failed(format!(
            "claim {namespace}/{claim} is a block volume; only file systems can be restored"
        )));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&ListParams::default()).await.map_err(failed)?;
    let own = name(namespace, claim);
    let users: Vec<&Pod> = pods
        .iter()
        .filter(|pod| pod.name_any() != own && uses(pod, claim))
        .collect();
    if !users.is_empty() && !in_use {
        let names: Vec<String> = users.iter().map(|pod| pod.name_any()).collect();
        return Err(Exit::failed(format!(
            "claim {namespace}/{claim} is in use by {}: scale the workload down, or restore under it with --in-use",
            names.join(", ")
        )));
    }
    Ok(users
        .iter()
        .find_map(|pod| pod.spec.as_ref()?.node_name.clone()))
}

/// Whether a pod that has not ended mounts the claim.
fn uses(pod: &Pod, claim: &str) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let Some(spec) = &pod.spec else { return false };
    let mut volumes = spec.volumes.iter().flatten();
    !matches!(phase, Some("Succeeded" | "Failed"))
        && volumes.any(|volume| {
            let source = volume.persistent_volume_claim.as_ref();
            let generic = format!("{}-{}", pod.name_any(), volume.name);
            source.is_some_and(|source| source.claim_name == claim)
                || (volume.ephemeral.is_some() && generic == claim)
        })
}

/// The image that waits: the node agent's.
async fn image(client: &Client, namespace: &str) -> Result<String, Exit> {
    let agents: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let agent = agents.get_opt(NODE_AGENT).await;
    let agent = agent.map_err(|error| Exit::failed(chain(&error)))?;
    let image = agent.and_then(|agent| {
        let containers = agent.spec?.template.spec?.containers;
        containers.into_iter().next()?.image
    });
    image.ok_or_else(|| {
        Exit::failed(format!(
            "there is no DaemonSet {NODE_AGENT} in namespace {namespace}: is Jackline installed there? Name its namespace with --jackline-namespace [default: {DEFAULT_NAMESPACE}]"
        ))
    })
}

/// What the pod may do. As root its waiter sees the done-file in every volume and takes it away. A namespace whose Pod Security is
/// `restricted` takes no such pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Root,
    Restricted,
}

struct Restore<'a> {
    pods: Api<Pod>,
    volumes: Api<PodVolumeRestore>,
    name: String,
    uid: String,
    target: String,
    args: &'a RestoreVolumeArgs,
}

impl Restore<'_> {
    /// Makes the pod and the PodVolumeRestore.
    async fn begin(
        &self,
        copy: &PodVolumeBackup,
        image: &str,
        node: Option<String>,
    ) -> Result<(), Exit> {
        self.remove_leftovers().await?;
        let params = PostParams::default();
        let pod = |rights| self.pod(image, node.clone(), rights);
        let mut made = self.pods.create(&params, &pod(Rights::Root)?).await;
        if matches!(&made, Err(kube::Error::Api(status)) if status.code == 403) {
            made = self.pods.create(&params, &pod(Rights::Restricted)?).await;
        }
        let made = made.map_err(|error| {
            Exit::failed(format!("the pod that mounts the claim: {}", chain(&error)))
        })?;
        let volume = self.volume(copy, &made);
        let begun = self.volumes.create(&PostParams::default(), &volume).await;
        if let Err(error) = begun {
            self.clean_up(false).await;
            return Err(Exit::failed(chain(&error)));
        }
        Ok(())
    }

    /// What an earlier restore into the claim left behind when it was killed.
    async fn remove_leftovers(&self) -> Result<(), Exit> {
        let failed = |error: kube::Error| Exit::failed(chain(&error));
        let earlier = self.volumes.get_opt(&self.name).await.map_err(failed)?;
        let runs = earlier
            .as_ref()
            .is_some_and(|earlier| !earlier.phase().is_terminal());
        let pod = self.pods.get_opt(&self.name).await.map_err(failed)?;
        if runs && pod.is_some() {
            return Err(Exit::failed(format!(
                "claim {}/{} is being restored already; if nobody waits for that any more: kubectl -n {} delete pod {}",
                self.target, self.args.claim, self.target, self.name
            )));
        }
        self.clean_up(false).await;
        Ok(())
    }

    fn pod(&self, image: &str, node: Option<String>, rights: Rights) -> Result<Pod, Exit> {
        let amounts = json!({"cpu": "10m", "memory": "32Mi"});
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name,
                "labels": {(label::RESTORE_NAME): self.name, (label::EXCLUDE_FROM_BACKUP): "true"},
            },
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                // Its own volume is empty, so it stays until it is taken away: as long as the pod runs, the agent reaches the volume.
                "containers": [{
                    "name": "done", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": [RESTORE_WAIT_PROGRAM], "args": [self.uid],
                    // A namespace with a quota asks for these.
                    "resources": {"requests": amounts, "limits": amounts},
                    "volumeMounts": [{"name": "empty", "mountPath": "/restores"}],
                }],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": self.args.claim}},
                    {"name": "empty", "emptyDir": {}},
                ],
            },
        });
        if rights == Rights::Restricted {
            pod["spec"]["containers"][0]["securityContext"] = json!({
                "runAsNonRoot": true, "runAsUser": NOBODY, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            });
        }
        if let Some(node) = node {
            // Where those run that use the claim: it may be bound to that node.
            pod["spec"]["nodeName"] = Value::String(node);
        }
        let waiter = wait::Waiter {
            image,
            command: RESTORE_WAIT_PROGRAM,
            restore: &self.uid,
            over: annotation::RESTORE_OVER,
            restored: annotation::RESTORED,
            volumes: &BTreeMap::from([("data".to_owned(), 1)]),
            settings: &Settings::default(),
        };
        wait::add(&mut pod, waiter);
        serde_json::from_value(pod).map_err(Exit::failed)
    }

    fn volume(&self, copy: &PodVolumeBackup, pod: &Pod) -> PodVolumeRestore {
        let status = copy.status.clone().unwrap_or_default();
        let setting = |on: bool, key: &str| on.then(|| (key.to_owned(), "true".to_owned()));
        PodVolumeRestore {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([
                    (label::RESTORE_NAME.to_owned(), self.name.clone()),
                    (label::RESTORE_UID.to_owned(), self.uid.clone()),
                    (label::POD_UID.to_owned(), pod.uid().unwrap_or_default()),
                ])),
                annotations: Some(BTreeMap::from([(
                    annotation::PVC_NAME.to_owned(),
                    self.args.claim.clone(),
                )])),
                ..ObjectMeta::default()
            },
            spec: PodVolumeRestoreSpec {
                pod: ObjectReference {
                    kind: Some("Pod".to_owned()),
                    namespace: Some(self.target.clone()),
                    name: Some(self.name.clone()),
                    uid: pod.uid(),
                    ..ObjectReference::default()
                },
                volume: "data".to_owned(),
                backup_storage_location: copy.spec.backup_storage_location.clone(),
                repo_identifier: copy.spec.repo_identifier.clone(),
                uploader_type: UploaderType::Restic,
                snapshot_id: status.snapshot_id.unwrap_or_default(),
                source_namespace: copy.spec.pod.namespace.clone().unwrap_or_default(),
                snapshot_size: status.progress.map_or(0, |progress| progress.total_bytes),
                uploader_settings: setting(self.args.delete, "DeleteExtraFiles")
                    .into_iter()
                    .collect(),
                ..PodVolumeRestoreSpec::default()
            },
            status: None,
        }
    }

    /// Waits for the end; gives the bytes that were restored.
    async fn ended(&self) -> Result<u64, Exit> {
        let bar = Bar::new("restore", self.args.output == Format::Json);
        let bytes = |number: i64| u64::try_from(number).unwrap_or_default();
        let (began, mut shown, mut length) = (Instant::now(), 0, 0);
        loop {
            let volume = self.volumes.get_opt(&self.name).await;
            let volume = volume.map_err(|error| Exit::failed(chain(&error)))?;
            let Some(volume) = volume else {
                return Err(Exit::failed("its PodVolumeRestore was deleted"));
            };
            let status = volume.status.clone().unwrap_or_default();
            let progress = status.progress.unwrap_or_default();
            if length != bytes(progress.total_bytes) {
                length = bytes(progress.total_bytes);
                bar.total(length, 0);
            }
            bar.advance(bytes(progress.bytes_done).saturating_sub(shown), 0);
            shown = shown.max(bytes(progress.bytes_done));
            match volume.phase() {
                PodVolumePhase::Completed => return Ok(bytes(progress.total_bytes)),
                phase if phase.is_terminal() => {
                    let why = status.message.unwrap_or_default();
                    return Err(Exit::failed(format!("{phase}: {why}")));
                }
                PodVolumePhase::InProgress => {}
                _ if began.elapsed() > self.args.start_timeout => {
                    return Err(Exit::failed(format!(
                        "no data has moved within {}: {}",
                        humantime::format_duration(self.args.start_timeout),
                        self.obstacle().await
                    )));
                }
                _ => {}
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// What the pod says of itself.
    async fn obstacle(&self) -> String {
        let Ok(Some(pod)) = self.pods.get_opt(&self.name).await else {
            return format!("pod {}/{} is gone", self.target, self.name);
        };
        let status = pod.status.unwrap_or_default();
        let of_containers = status
            .init_container_statuses
            .iter()
            .flatten()
            .find_map(|one| {
                let waiting = one.state.as_ref()?.waiting.as_ref()?;
                Some(format!(
                    "{} {}",
                    waiting.reason.as_deref()?,
                    waiting.message.as_deref().unwrap_or_default()
                ))
            });
        let of_pod = status.conditions.iter().flatten().find_map(|condition| {
            (condition.status == "False" && condition.type_ == "PodScheduled")
                .then(|| condition.message.clone())
                .flatten()
        });
        let why = of_pod.or(of_containers);
        format!(
            "pod {}/{} {}",
            self.target,
            self.name,
            why.unwrap_or_else(|| "runs: does a node agent run on its node?".to_owned())
        )
    }

    /// Waits until the done-file has gone. The waiter takes it away; one that may not, or does not see it, is told, and so is the agent.
    async fn leave(&self) {
        let params = PatchParams::default();
        let noted = |name: &str, value: &str| {
            Patch::Merge(json!({"metadata": {"annotations": {name: value}}}))
        };
        let restored = noted(annotation::RESTORED, &self.uid);
        let left = noted(annotation::WAITERS_LEFT, "true");
        let told = [
            self.pods.patch(&self.name, &params, &restored).await.err(),
            self.volumes.patch(&self.name, &params, &left).await.err(),
        ];
        for error in told.into_iter().flatten() {
            output::note(&format!(
                "{} cannot be told that it is over: {}",
                self.name,
                chain(&error)
            ));
        }
        let gone_on = |pod: Option<Pod>| has_gone_on(pod.as_ref());
        until(async || self.pods.get_opt(&self.name).await.is_ok_and(gone_on)).await;
        // For the agent.
        tokio::time::sleep(2 * TICK).await;
    }

    /// Takes away what was made. After success first the done-file.
    async fn clean_up(&self, well: bool) {
        if well {
            self.leave().await;
        } else {
            let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
            // There may be none.
            let params = PatchParams::default();
            let _ = self.volumes.patch(&self.name, &params, &cancel).await;
        }
        for failed in [
            self.pods
                .delete(&self.name, &DeleteParams::default())
                .await
                .err(),
            self.volumes
                .delete(&self.name, &DeleteParams::default())
                .await
                .err(),
        ] {
            match failed {
                None => {}
                Some(kube::Error::Api(status)) if status.code == 404 => {}
                Some(error) => {
                    output::note(&format!("{} is left behind: {}", self.name, chain(&error)))
                }
            }
        }
        until(async || matches!(self.pods.get_opt(&self.name).await, Ok(None))).await;
    }
}

/// Whether the pod's waiter has gone on, or the pod.
fn has_gone_on(pod: Option<&Pod>) -> bool {
    let Some(status) = pod.and_then(|pod| pod.status.as_ref()) else {
        return pod.is_none();
    };
    let ended = status.init_container_statuses.iter().flatten().any(|one| {
        let state = one.state.as_ref();
        state.is_some_and(|state| state.terminated.is_some())
    });
    ended || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Looks until it is so, or for as long as that may take.
async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    let began = Instant::now();
    while began.elapsed() < LEAVES && !is_so().await {
        tokio::time::sleep(TICK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uses_a_claim_until_it_has_ended() {
        let pod = |phase: &str| -> Pod {
            let pod = json!({"metadata": {"name": "db-0"}, "status": {"phase": phase}, "spec": {"containers": [], "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "pvc"}},
                {"name": "own", "ephemeral": {}},
            ]}});
            serde_json::from_value(pod).unwrap()
        };
        for (phase, claim, expected) in [
            ("Running", "pvc", true),
            ("Pending", "pvc", true),
            ("Running", "db-0-own", true),
            ("Running", "other", false),
            ("Succeeded", "pvc", false),
            ("Failed", "pvc", false),
        ] {
            assert_eq!(uses(&pod(phase), claim), expected, "{phase} {claim}");
        }
    }

    fn pod(rights: Rights) -> Value {
        let args = RestoreVolumeArgs {
            claim: "c".to_owned(),
            namespace: None,
            from_backup: "b".to_owned(),
            source: None,
            in_use: false,
            delete: false,
            start_timeout: TICK,
            jackline_namespace: "velero".to_owned(),
            output: Format::Text,
        };
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let restore = Restore {
            pods: Api::namespaced(client.clone(), "n"),
            volumes: Api::namespaced(client, "velero"),
            name: "x".to_owned(),
            uid: random_uid(),
            target: "n".to_owned(),
            args: &args,
        };
        serde_json::to_value(restore.pod("image", None, rights).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_namespace_with_a_quota_takes_the_pod_and_a_restricted_one_has_a_pod_to_take() {
        for (rights, user) in [
            (Rights::Root, Value::Null),
            (Rights::Restricted, json!(NOBODY)),
        ] {
            let pod = pod(rights);
            for container in ["/spec/containers/0", "/spec/initContainers/0"] {
                let container = pod.pointer(container).unwrap();
                let resources = &container["resources"];
                for amount in ["cpu", "memory"] {
                    assert!(resources["requests"][amount].is_string(), "{container}");
                }
                assert_eq!(resources["requests"], resources["limits"]);
                let security = &container["securityContext"];
                assert_eq!(security["runAsUser"], user);
                if rights == Rights::Restricted {
                    assert_eq!(security["runAsNonRoot"], true);
                    assert_eq!(security["allowPrivilegeEscalation"], false);
                    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
                }
            }
            // Kinds that `restricted` allows.
            for volume in pod["spec"]["volumes"].as_array().unwrap() {
                let kinds = ["persistentVolumeClaim", "emptyDir", "downwardAPI"];
                assert!(
                    kinds.iter().any(|kind| volume.get(kind).is_some()),
                    "{volume}"
                );
            }
        }
    }

    #[test]
    fn a_pod_has_gone_on_when_its_waiter_has() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": []}, "status": status})).unwrap()
        };
        let waiter = |state: Value| {
            json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "restore-wait", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0}]})
        };
        assert!(has_gone_on(None));
        assert!(!has_gone_on(Some(&pod(json!({"phase": "Pending"})))));
        assert!(!has_gone_on(Some(&pod(waiter(json!({"running": {}}))))));
        assert!(has_gone_on(Some(&pod(waiter(
            json!({"terminated": {"exitCode": 0}})
        )))));
        assert!(has_gone_on(Some(&pod(json!({"phase": "Failed"})))));
    }

    #[test]
    fn the_uid_has_a_uid_s_shape() {
        let uid = random_uid();
        let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uid}");
    }
}
