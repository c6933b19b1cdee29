//! The PodVolumeBackup objects themselves.

use std::collections::BTreeMap;

use jackline_crds::{
    names::{FIELD_MANAGER, annotation, label, label_value},
    velero::{
        Backup, BackupRepository, PodVolumeBackup, PodVolumeBackupSpec, PodVolumePhase,
        UploaderType,
    },
};
use jackline_policy::backup::volumes::{ClaimFacts, Selected};
use jackline_runtime::Failure;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    super::{job::Job, newest, now},
    Identity,
};
use crate::{collect::PodFacts, named};

/// Makes the object, or finds the one that was made before.
pub(super) async fn create(
    job: &Job<'_>,
    backup_uid: &str,
    repository: &BackupRepository,
    pod: &PodFacts,
    selected: &Selected,
    claim: Option<&ClaimFacts>,
) -> Result<Identity, kube::Error> {
    let api = job.context.api::<PodVolumeBackup>();
    let mut object = object(job.backup, backup_uid, repository, pod, selected, claim);
    let spec = object.spec.clone();
    let is_same = |there: &PodVolumeBackup| {
        there.labels().get(label::BACKUP_UID).map(String::as_str) == Some(backup_uid)
            && there.spec.pod.uid == spec.pod.uid
            && there.spec.volume == spec.volume
    };
    let volume = (&*pod.volumes.uid, &*selected.volume);
    let owner = job.backup.name_any();
    let (name, uid) = named::create(&api, &mut object, &owner, volume, is_same).await?;
    Ok(Identity { name, uid })
}

fn object(
    backup: &Backup,
    backup_uid: &str,
    repository: &BackupRepository,
    pod: &PodFacts,
    selected: &Selected,
    claim: Option<&ClaimFacts>,
) -> PodVolumeBackup {
    let backup_name = backup.name_any();
    let pod = &pod.volumes;
    let mut labels = BTreeMap::from([
        (label::BACKUP_NAME.to_owned(), label_value(&backup_name)),
        (label::BACKUP_UID.to_owned(), backup_uid.to_owned()),
    ]);
    let mut annotations = BTreeMap::new();
    let mut tags = BTreeMap::from([
        ("backup".to_owned(), backup_name.clone()),
        ("backup-uid".to_owned(), backup_uid.to_owned()),
        ("ns".to_owned(), pod.namespace.clone()),
        ("pod".to_owned(), pod.name.clone()),
        ("pod-uid".to_owned(), pod.uid.clone()),
        ("volume".to_owned(), selected.volume.clone()),
    ]);
    if let (Some(name), Some(claim)) = (&selected.claim, claim) {
        labels.insert(label::PVC_UID.to_owned(), claim.uid.clone());
        annotations.insert(annotation::PVC_NAME.to_owned(), name.clone());
        tags.insert("pvc-uid".to_owned(), claim.uid.clone());
        if let Some(ancestor) = &claim.ancestor {
            labels.insert(label::ANCESTOR_CLAIM_UID.to_owned(), label_value(ancestor));
            annotations.insert(annotation::ANCESTOR_CLAIM_UID.to_owned(), ancestor.clone());
        }
    }
    PodVolumeBackup {
        metadata: ObjectMeta {
            generate_name: Some(format!("{backup_name}-")),
            namespace: backup.namespace(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: Backup::api_version(&()).into_owned(),
                kind: Backup::kind(&()).into_owned(),
                name: backup_name,
                uid: backup_uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PodVolumeBackupSpec {
            node: pod.node.clone().unwrap_or_default(),
            pod: ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            },
            volume: selected.volume.clone(),
            backup_storage_location: backup.spec.storage_location.clone().unwrap_or_default(),
            repo_identifier: repository
                .spec
                .restic_identifier
                .clone()
                .unwrap_or_default(),
            uploader_type: UploaderType::Restic,
            tags,
            ..PodVolumeBackupSpec::default()
        },
        status: None,
    }
}

/// Asks the agent to stop, and says why. What it has done so far stays.
pub(super) async fn cancel(job: &Job<'_>, volume: &Identity, why: &str) {
    let patch = json!({"spec": {"cancel": true}, "status": {"message": why}});
    change(job, volume, patch).await;
}

/// Ends a volume whose agent is gone, so that an agent that comes back leaves it alone.
pub(super) async fn give_up(job: &Job<'_>, volume: &Identity, why: &str) {
    let status = json!({
        "phase": PodVolumePhase::Failed,
        "message": why,
        "completionTimestamp": Time(now()),
    });
    change(job, volume, json!({"status": status})).await;
}

async fn change(job: &Job<'_>, volume: &Identity, patch: Value) {
    if let Err(error) = patch_open(job, volume, patch).await {
        tracing::warn!(%error, name = volume.name, "PodVolumeBackup cannot be changed");
    }
}

/// Patches a volume that has not ended, as the leader of its backup. The agent writes too, so it may take several looks.
async fn patch_open(job: &Job<'_>, volume: &Identity, mut patch: Value) -> Result<(), Failure> {
    let api = job.context.api::<PodVolumeBackup>();
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    loop {
        let now = api.get_opt(&volume.name).await?;
        let open = |now: &PodVolumeBackup| volume.is(now) && !now.phase().is_terminal();
        let Some(now) = now.filter(open) else {
            return Ok(());
        };
        newest(job.context, job.backup, job.token).await?;
        patch["metadata"] = json!({"uid": now.uid(), "resourceVersion": now.resource_version()});
        match api
            .patch(&volume.name, &params, &Patch::Merge(&patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            result => return Ok(result.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jackline_policy::{backup::volumes::PodVolumes, labels::Labels};

    /// Field for field what a real Velero made of the same facts.
    #[test]
    fn the_object_has_velero_s_shape() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/velero-1.14/bucket/backups/first/first-podvolumebackups.json.gz"
        );
        let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
        let velero: Vec<PodVolumeBackup> = serde_json::from_reader(file).unwrap();
        for velero in velero {
            let mut backup = Backup::new("first", Default::default());
            backup.metadata.namespace = Some("velero".to_owned());
            backup.spec.storage_location = Some("default".to_owned());
            let mut repository = BackupRepository::default();
            repository.spec.restic_identifier = Some(velero.spec.repo_identifier.clone());
            let text = |value: &Option<String>| value.clone().unwrap();
            let pod = PodFacts {
                volumes: PodVolumes {
                    namespace: text(&velero.spec.pod.namespace),
                    name: text(&velero.spec.pod.name),
                    uid: text(&velero.spec.pod.uid),
                    node: Some("localhost".to_owned()),
                    ..PodVolumes::default()
                },
                labels: Labels::default(),
                container: String::new(),
                pre: None,
                post: None,
                hook_warnings: Vec::new(),
            };
            let name = velero.annotations().get(annotation::PVC_NAME).cloned();
            let selected = Selected {
                pod: 0,
                volume: velero.spec.volume.clone(),
                claim: name,
            };
            let claim = velero.labels().get(label::PVC_UID).map(|uid| ClaimFacts {
                uid: uid.clone(),
                ..Default::default()
            });
            let ours = object(
                &backup,
                &velero.labels()[label::BACKUP_UID],
                &repository,
                &pod,
                &selected,
                claim.as_ref(),
            );
            let bare = |object: &PodVolumeBackup| {
                let mut object = object.clone();
                let meta = &mut object.metadata;
                (meta.name, meta.uid, meta.resource_version, meta.generation) =
                    (None, None, None, None);
                (meta.creation_timestamp, meta.managed_fields, object.status) = (None, None, None);
                serde_json::to_value(object).unwrap()
            };
            assert_eq!(bare(&ours), bare(&velero));
        }
    }
}
