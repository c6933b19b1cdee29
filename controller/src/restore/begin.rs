//! Makes the PodVolumeRestores.

use std::collections::{BTreeMap, BTreeSet};

use jackline_crds::{
    names::label,
    velero::{
        BackupRepository, PodVolumePhase, PodVolumeRestore, PodVolumeRestoreSpec, UploaderType,
    },
};
use jackline_policy::restore::volume::Restoration;
use jackline_runtime::{Class, Failure, LeaderToken, Store};
use k8s_openapi::{
    api::core::v1::{ObjectReference, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, Preconditions},
};

use super::{
    pods::RestoredPod,
    report::Place,
    run::{Part, Run},
    volumes::CLAIM,
};
use crate::{location::chain, named, repository};

/// The pod that the data goes through, and the volume's name in it.
struct Carrier {
    pod: String,
    volume: String,
    uid: String,
}

impl Run<'_> {
    /// Asks for the repositories early: they are opened while objects are made.
    pub async fn ask_for_repositories(&self) -> Result<(), Failure> {
        self.token.check()?;
        let asked = self.sources().into_iter().map(|source| async move {
            // Why one cannot be had is told when it is needed.
            let _ = repository::ask(self.context, &self.valid.location, &source).await;
        });
        futures::future::join_all(asked).await;
        Ok(())
    }

    /// The namespaces (of the backup) whose repositories hold the data.
    fn sources(&self) -> BTreeSet<String> {
        self.plan()
            .restorations
            .iter()
            .map(|restoration| restoration.copy.namespace.clone())
            .collect()
    }

    /// Makes the PodVolumeRestores of a part. All its pods are there: nobody comes later who would have to wait.
    pub async fn start_volumes(&self, part: Part<'_>) -> Result<(), Failure> {
        let sources = self
            .sources()
            .into_iter()
            .filter(|source| part.has(Some(source)))
            .map(|source| async move { self.start_source(&source).await });
        futures::future::try_join_all(sources).await.map(|_| ())
    }

    async fn start_source(&self, source: &str) -> Result<(), Failure> {
        let plan = self.plan();
        let carried: Vec<_> = plan
            .restorations
            .iter()
            .filter(|restoration| restoration.copy.namespace == source)
            .filter_map(|restoration| Some((restoration, self.carrier(restoration)?)))
            .collect();
        if carried.is_empty() {
            return Ok(());
        }
        let repository = match repository::ensure(self.context, &self.valid.location, source).await
        {
            Ok(repository) => repository,
            Err(error) => {
                let why = format!(
                    "volumes of namespace {source} are not restored: {}",
                    chain(&error)
                );
                self.report.error(Place::Velero, &why);
                return Ok(());
            }
        };
        // That may have taken minutes. Of the restores that are here now one gets a claim; then it counts who uses it.
        let taken = |(restoration, _): &(&Restoration, Carrier)| self.take(restoration);
        let carried: Vec<_> = carried.into_iter().filter(taken).collect();
        let pods = self.pods_of(self.target(source)).await?;
        self.meet(&pods).await?;
        for (restoration, carrier) in carried {
            self.token.check()?;
            match self.start(restoration, carrier, &repository, &pods).await {
                Err(failure) if failure.class == Class::Terminal => {
                    self.let_go(restoration);
                    let what = self.volume_of(restoration);
                    let why = format!("{what} cannot be begun: {}", chain(&*failure.source));
                    let target = self.target(&restoration.namespace);
                    self.report.warning(Place::Namespace(target), &why);
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// The pod that the data goes through. `None` where an existing pod keeps its volume, or another restore is filling it.
    fn carrier(&self, restoration: &Restoration) -> Option<Carrier> {
        let made = |waiter| self.made_pod(restoration, waiter);
        let first = made(&restoration.carrier);
        let found = first.or_else(|| restoration.waiters.iter().find_map(made));
        if self.is_begun(restoration) {
            return found;
        }
        if self.is_in_other_hands(restoration) {
            self.leave_to_others(restoration);
            return None;
        }
        if found.is_none() {
            let (pod, volume) = &restoration.carrier;
            self.report.warning(
                Place::Namespace(self.target(&restoration.namespace)),
                &format!("the data of volume {volume} of pod {pod} was not restored: the pod was not made by this restore"),
            );
        }
        found
    }

    async fn start(
        &self,
        restoration: &Restoration,
        carrier: Carrier,
        repository: &BackupRepository,
        pods: &[RestoredPod],
    ) -> Result<(), Failure> {
        if !self.is_begun(restoration) && !self.may_fill(restoration, pods).await? {
            self.let_go(restoration);
            return Ok(());
        }
        for known in self
            .begun()
            .iter()
            .filter(|known| self.is_of(known, restoration))
        {
            let over = known.phase().is_terminal()
                || pods.iter().any(|pod| self.has_data(pod, restoration));
            if known.spec.pod.uid.as_ref() == Some(&carrier.uid) || over {
                return Ok(());
            }
            // Its pod was replaced while this process was away.
            if !remove(&self.context.api(), known, self.token).await? {
                return Ok(());
            }
        }
        self.make_volume_restore(restoration, carrier, repository)
            .await
    }

    /// Lets another pod that waits for the claim carry its data in place of one that is gone, unless it is there. `false` where none is
    /// left.
    pub async fn hand_over(
        &self,
        restoration: &Restoration,
        volume: &PodVolumeRestore,
        may_list: bool,
    ) -> Result<bool, Failure> {
        let Some(heir) = self.heir(restoration, volume, may_list).await? else {
            return Ok(false);
        };
        let source = &restoration.copy.namespace;
        let repository = repository::ensure(self.context, &self.valid.location, source).await;
        let Ok(repository) = repository else {
            return Ok(false);
        };
        self.token.check()?;
        // The watch may be behind: the agent may have ended it well.
        let api = self.context.api::<PodVolumeRestore>();
        let now = api.get_opt(&volume.name_any()).await?;
        if now.is_some_and(|now| now.phase() == PodVolumePhase::Completed) {
            return Ok(true);
        }
        // The new one first: one of them is there at any time.
        self.make_volume_restore(restoration, heir, &repository)
            .await?;
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: volume.uid(),
            resource_version: None,
        });
        match api.delete(&volume.name_any(), &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// A pod of the plan, if this restore made it.
    fn made_pod(
        &self,
        restoration: &Restoration,
        (pod, volume): &(String, String),
    ) -> Option<Carrier> {
        let state = self.state.lock();
        let place = (restoration.namespace.clone(), pod.clone());
        Some(Carrier {
            pod: pod.clone(),
            volume: volume.clone(),
            uid: state.pods.get(&place)?.clone(),
        })
    }

    /// A pod of this restore that still waits for the claim, but for the one that was to carry its data.
    async fn heir(
        &self,
        restoration: &Restoration,
        volume: &PodVolumeRestore,
        may_list: bool,
    ) -> Result<Option<Carrier>, Failure> {
        let waiters = restoration.waiters.iter();
        let made = waiters.filter_map(|waiter| self.made_pod(restoration, waiter));
        let mut others: Vec<Carrier> = made
            .filter(|carrier| Some(&carrier.uid) != volume.spec.pod.uid.as_ref())
            .collect();
        if others.is_empty() {
            return Ok(None);
        }
        let waiting = |pods: &Store<RestoredPod>| {
            others.iter().position(|carrier| {
                let is = |pod: &RestoredPod| {
                    pod.metadata.uid.as_deref() == Some(&carrier.uid) && pod.may_wait()
                };
                pods.find(is).is_some()
            })
        };
        let mut heir = waiting(self.restored_pods);
        if heir.is_none() && may_list {
            // The watch may be behind what was just made.
            let pods = self.pods_of(self.target(&restoration.namespace)).await?;
            heir = waiting(&Store::fixed(pods));
        }
        Ok(heir.map(|heir| others.swap_remove(heir)))
    }

    async fn make_volume_restore(
        &self,
        restoration: &Restoration,
        Carrier { pod, volume, uid }: Carrier,
        repository: &BackupRepository,
    ) -> Result<(), Failure> {
        let api = self.context.api::<PodVolumeRestore>();
        let target = self.target(&restoration.namespace).to_owned();
        let mut labels = BTreeMap::from([
            (
                label::RESTORE_NAME.to_owned(),
                self.labels().restore.1.to_owned(),
            ),
            (label::RESTORE_UID.to_owned(), self.uid.clone()),
            (label::POD_UID.to_owned(), uid.clone()),
        ]);
        let mut annotations = BTreeMap::new();
        if let Some(claim) = &restoration.claim {
            annotations.insert(CLAIM.to_owned(), claim.clone());
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(self.context.clients.call.clone(), &target);
            if let Some(found) = claims.get_metadata_opt(claim).await? {
                labels.insert(label::PVC_UID.to_owned(), found.uid().unwrap_or_default());
            }
        }
        let uploader = self.restore.spec.uploader_config.as_ref();
        let sparse = uploader
            .and_then(|config| config.write_sparse_files)
            .unwrap_or_default();
        let settings = sparse.then(|| ("WriteSparseFiles".to_owned(), "true".to_owned()));
        let snapshot = restoration.copy.snapshot.clone();
        let mut object = PodVolumeRestore {
            metadata: ObjectMeta {
                namespace: Some(self.context.namespace.clone()),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![OwnerReference {
                    api_version: "velero.io/v1".to_owned(),
                    kind: "Restore".to_owned(),
                    name: self.restore.name_any(),
                    uid: self.uid.clone(),
                    controller: Some(true),
                    block_owner_deletion: None,
                }]),
                ..ObjectMeta::default()
            },
            spec: PodVolumeRestoreSpec {
                pod: ObjectReference {
                    kind: Some("Pod".to_owned()),
                    namespace: Some(target),
                    name: Some(pod),
                    uid: Some(uid),
                    ..ObjectReference::default()
                },
                volume,
                backup_storage_location: self.valid.location.name_any(),
                repo_identifier: repository
                    .spec
                    .restic_identifier
                    .clone()
                    .unwrap_or_default(),
                uploader_type: UploaderType::Restic,
                snapshot_size: self.sizes.get(&snapshot).copied().unwrap_or_default(),
                snapshot_id: snapshot,
                source_namespace: restoration.copy.namespace.clone(),
                uploader_settings: settings.into_iter().collect(),
                ..PodVolumeRestoreSpec::default()
            },
            status: None,
        };
        let spec = object.spec.clone();
        let is_same = |there: &PodVolumeRestore| {
            there.labels().get(label::RESTORE_UID) == Some(&self.uid)
                && there.spec.pod.uid == spec.pod.uid
                && there.spec.volume == spec.volume
        };
        let place = (spec.pod.uid.as_deref().unwrap_or_default(), &*spec.volume);
        let owner = self.restore.name_any();
        let (name, _) = named::create(&api, &mut object, &owner, place, is_same).await?;
        self.state.lock().begun.insert(name);
        Ok(())
    }
}

/// Removes a volume restore whose pod is gone. `false`: it has ended, which the watch may not have seen; what it filled is in use.
async fn remove(
    api: &Api<PodVolumeRestore>,
    volume: &PodVolumeRestore,
    token: &LeaderToken,
) -> Result<bool, Failure> {
    let name = volume.name_any();
    loop {
        let now = api.get_opt(&name).await?;
        let Some(now) = now.filter(|now| now.uid() == volume.uid()) else {
            return Ok(true);
        };
        if now.phase().is_terminal() {
            return Ok(false);
        }
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: now.uid(),
            resource_version: now.resource_version(),
        });
        token.check()?;
        match api.delete(&name, &params).await {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(true),
            // The agent writes too.
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use jackline_policy::restore::volume::Copy;
    use serde_json::json;

    use super::*;
    use crate::{context::unwatched, restore::run::idle::Idle};

    fn volume(uid: &str, phase: &str) -> serde_json::Value {
        json!({"metadata": {"name": "v", "namespace": "velero", "uid": uid, "resourceVersion": "7"},
            "spec": {"pod": {"namespace": "n", "name": "a", "uid": "a"}, "volume": "data", "backupStorageLocation": "d",
                "repoIdentifier": "", "snapshotID": "s", "sourceNamespace": "n"},
            "status": {"phase": phase}})
    }

    #[tokio::test]
    async fn a_volume_that_has_ended_meanwhile_is_not_begun_again() {
        let known = serde_json::from_value(volume("1", "InProgress")).unwrap();
        let at = unwatched::path("podvolumerestores", "v");
        let (token, _held) = LeaderToken::for_tests();
        for (now, expected) in [
            (Some(volume("1", "InProgress")), true),
            (Some(volume("1", "Completed")), false),
            (Some(volume("1", "Failed")), false),
            (Some(volume("2", "Completed")), true),
            (None, true),
        ] {
            let objects: Vec<_> = now.iter().map(|now| (&*at, now.clone())).collect();
            let context = unwatched::context(&objects);
            let removed = remove(&context.api(), &known, &token).await.unwrap();
            assert_eq!(removed, expected, "{now:?}");
            let left: Option<PodVolumeRestore> = context.fetch("v").await.unwrap();
            let left = left.and_then(|left| left.uid());
            let stays = now.filter(|now| *now != volume("1", "InProgress"));
            assert_eq!(
                left,
                stays.map(|now| now["metadata"]["uid"].as_str().unwrap().to_owned())
            );
        }
    }

    #[tokio::test]
    async fn the_heir_of_a_volume_may_be_a_pod_that_the_watch_lacks() {
        let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "n", "uid": name}});
        let pods = unwatched::list(&["b", "c"].map(pod));
        let idle = Idle::new(&[("/api/v1/namespaces/n/pods", pods)]);
        let run = idle.run();
        let place = |pod: &str| (pod.to_owned(), "data".to_owned());
        let restoration = Restoration {
            namespace: "n".to_owned(),
            claim: Some("data".to_owned()),
            carrier: place("a"),
            waiters: ["a", "b", "c"].map(place).to_vec(),
            copy: Copy {
                namespace: "n".to_owned(),
                pod: "a".to_owned(),
                claim: None,
                claim_uid: None,
                volume: "data".to_owned(),
                snapshot: "s".to_owned(),
                finished: String::new(),
            },
        };
        let volume = serde_json::from_value(volume("1", "InProgress")).unwrap();
        let heir = async || {
            let heir = run.heir(&restoration, &volume, true).await.unwrap();
            heir.map(|heir| heir.pod)
        };
        let made = |pod: &str| {
            let place = ("n".to_owned(), pod.to_owned());
            run.state.lock().pods.insert(place, pod.to_owned());
        };
        made("a");
        assert_eq!(heir().await, None);
        made("c");
        assert_eq!(heir().await.as_deref(), Some("c"));
    }
}
