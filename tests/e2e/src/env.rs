//! A cluster with Jackline running in it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::CONTROLLER;
use jackline_crds::velero::{
    Backup, BackupPhase, BackupStorageLocation, LocationPhase, PodVolumeBackup, Restore,
    RestorePhase,
};
use jackline_faults::Proxy;
use jackline_test_cluster::{Cluster, Options, Programs, S3};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::ListParams;
use kube::{Api, Resource};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::deploy::{self, Settings};
use crate::{Restic, until, wait_for};

/// The namespace of Jackline and of every velero.io object.
pub const NAMESPACE: &str = "velero";
/// The bucket of the location `default`.
pub const BUCKET: &str = "velero";

/// A cluster of this name's own, with Jackline deployed and ready. Dropping it takes everything down.
#[derive(Debug)]
pub struct Env {
    pub cluster: Cluster,
}

impl Env {
    /// Brings up a cluster with Jackline as `deploy/` installs it.
    ///
    /// # Errors
    /// When anything does not come up.
    pub async fn up(name: &str) -> Result<Self> {
        Self::up_with(Options::named(name), &Settings::default()).await
    }

    /// As [`Self::up`], with other options and settings.
    ///
    /// # Errors
    /// When anything does not come up.
    pub async fn up_with(options: Options, settings: &Settings) -> Result<Self> {
        let env = Self::without_jackline(options).await?;
        if !settings.bucket.is_empty() {
            env.cluster.s3().make_bucket(&settings.bucket).await?;
        }
        deploy::apply(&env.cluster, settings)?;
        deploy::ready(&env.cluster)?;
        Ok(env)
    }

    /// A cluster with Jackline's images and the bucket, in which nothing is installed yet.
    ///
    /// # Errors
    /// When anything does not come up.
    pub async fn without_jackline(options: Options) -> Result<Self> {
        let programs = Programs::build()?;
        let cluster = Cluster::up(options).await?;
        cluster.load_jackline(&programs)?;
        cluster.s3().make_bucket(BUCKET).await?;
        Ok(Self { cluster })
    }

    /// A proxy before an S3 server, and where the pods of this cluster find it.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn proxy(&self, server: &S3) -> Result<(Proxy, String)> {
        let server = server.host_endpoint.trim_start_matches("http://").parse()?;
        let listener = self.cluster.listen()?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok((Proxy::on(listener, server)?, url))
    }

    /// Makes a location in the bucket, below a prefix of its own name, whose requests go through a proxy. Once a backup lies there, the
    /// location `default` finds a directory that is not its own and is unavailable.
    ///
    /// # Errors
    /// When it does not become Available within a minute.
    pub async fn proxied_location(&self, name: &str) -> Result<Proxy> {
        let storage = json!({"bucket": BUCKET, "prefix": name});
        self.proxied(name, &storage).await
    }

    /// Makes a location in a bucket of its own name, whose requests go through a proxy.
    ///
    /// # Errors
    /// When it does not become Available within a minute.
    pub async fn proxied_bucket(&self, name: &str) -> Result<Proxy> {
        self.cluster.s3().make_bucket(name).await?;
        self.proxied(name, &json!({"bucket": name})).await
    }

    async fn proxied(&self, name: &str, storage: &Value) -> Result<Proxy> {
        let (proxy, url) = self.proxy(self.cluster.s3())?;
        self.cluster.apply(
            &json!({"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"provider": "aws", "objectStorage": storage,
                    "config": {"region": "us-east-1", "s3ForcePathStyle": "true", "s3Url": url},
                    "credential": {"name": "cloud-credentials", "key": "cloud"}}})
            .to_string(),
        )?;
        let locations = self.api::<BackupStorageLocation>();
        wait_for(&locations, name, Duration::from_secs(60), |location| {
            let phase = location.status.as_ref().and_then(|status| status.phase);
            phase == Some(LocationPhase::Available)
        })
        .await?;
        Ok(proxy)
    }

    /// The pod of the controller that leads.
    ///
    /// # Errors
    /// When none does within a minute.
    pub async fn leader(&self) -> Result<String> {
        until("somebody leads", Duration::from_secs(60), async || {
            let spec = self.api::<Lease>().get(CONTROLLER).await?.spec;
            let holder = spec.and_then(|spec| spec.holder_identity);
            let pods = self.api::<Pod>().list(&ListParams::default()).await?;
            let mut names = pods.into_iter().filter_map(|pod| pod.metadata.name);
            Ok(holder.and_then(|holder| names.find(|name| holder.contains(name.as_str()))))
        })
        .await
    }

    /// Kills the controller that leads.
    ///
    /// # Errors
    /// When none leads within a minute, or it cannot be killed.
    pub async fn kill_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        self.cluster
            .kill_container(NAMESPACE, &leader, "controller")
            .await
    }

    /// The objects of a kind in Jackline's own namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        self.api_in(NAMESPACE)
    }

    /// The objects of a kind in a namespace.
    pub fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), namespace)
    }

    /// Waits until a backup has ended, whatever its end.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn backup_ended(&self, name: &str, limit: Duration) -> Result<Backup> {
        let ended = |backup: &Backup| phase(backup).is_some_and(BackupPhase::is_terminal);
        wait_for(&self.api::<Backup>(), name, limit, ended).await
    }

    /// Waits until a backup has ended as Completed.
    ///
    /// # Errors
    /// When it ends otherwise, with its status and the volumes' messages, or after `limit`.
    pub async fn backup_completed(&self, name: &str, limit: Duration) -> Result<Backup> {
        let backup = self.backup_ended(name, limit).await?;
        if phase(&backup) != Some(BackupPhase::Completed) {
            let volumes = self.volumes_of(name).await?;
            let messages: Vec<_> = volumes
                .iter()
                .map(|v| (&v.spec.volume, &v.status))
                .collect();
            anyhow::bail!("backup {name}: {:?}; volumes: {messages:?}", backup.status);
        }
        Ok(backup)
    }

    /// The PodVolumeBackups of a backup.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn volumes_of(&self, backup: &str) -> Result<Vec<PodVolumeBackup>> {
        let label = format!("{}={backup}", jackline_crds::names::label::BACKUP_NAME);
        Ok(self
            .api::<PodVolumeBackup>()
            .list(&ListParams::default().labels(&label))
            .await?
            .items)
    }

    /// Waits until a restore has ended as Completed.
    ///
    /// # Errors
    /// When it ends otherwise or after `limit`.
    pub async fn restore_completed(&self, name: &str, limit: Duration) -> Result<Restore> {
        let restore = self.restore_ended(name, limit).await?;
        let phase = restore.status.as_ref().and_then(|status| status.phase);
        ensure!(
            phase == Some(RestorePhase::Completed),
            "restore {name}: {:?}",
            restore.status
        );
        Ok(restore)
    }

    /// Waits until a restore has ended, whatever its end.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn restore_ended(&self, name: &str, limit: Duration) -> Result<Restore> {
        let ended = |restore: &Restore| {
            let phase = restore.status.as_ref().and_then(|status| status.phase);
            phase.is_some_and(RestorePhase::is_terminal)
        };
        wait_for(&self.api::<Restore>(), name, limit, ended).await
    }

    /// The password of the repositories.
    ///
    /// # Errors
    /// When the Secret is missing.
    pub async fn repository_password(&self) -> Result<String> {
        let secret = self.api::<Secret>().get("velero-repo-credentials").await?;
        let data = secret.data.unwrap_or_default();
        let password = data
            .get("repository-password")
            .context("key repository-password")?;
        Ok(String::from_utf8(password.0.clone())?)
    }

    /// What a compressed file in the bucket says.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub async fn packed(&self, key: &str) -> Result<Value> {
        let compressed = NamedTempFile::with_suffix(".gz")?;
        std::fs::write(compressed.path(), self.cluster.s3().get(BUCKET, key).await?)?;
        let text = Command::new("gzip")
            .arg("-dc")
            .arg(compressed.path())
            .output()?;
        ensure!(text.status.success(), "{key}: {text:?}");
        Ok(serde_json::from_slice(&text.stdout)?)
    }

    /// restic on a namespace's repository in the location `default`.
    ///
    /// # Errors
    /// When the password's Secret is missing.
    pub async fn restic(&self, namespace: &str) -> Result<Restic> {
        Ok(Restic::new(
            self.cluster.s3(),
            BUCKET,
            namespace,
            &self.repository_password().await?,
        ))
    }

    /// The directory of a pod's volume on this machine, by the volume's name in the pod.
    ///
    /// # Errors
    /// When the pod has no such volume mounted.
    pub async fn volume_dir(&self, namespace: &str, pod: &str, volume: &str) -> Result<PathBuf> {
        let found = self.api_in::<Pod>(namespace).get(pod).await?;
        let uid = found.metadata.uid.context("a pod has a UID")?;
        let volumes = found.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let source = volumes
            .iter()
            .find(|v| v.name == volume)
            .with_context(|| format!("{pod} has no volume {volume}"))?;
        let directory = match &source.persistent_volume_claim {
            Some(claim) => {
                let api =
                    self.api_in::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(namespace);
                let claim = api.get(&claim.claim_name).await?;
                claim
                    .spec
                    .and_then(|spec| spec.volume_name)
                    .context("the claim is not bound")?
            }
            None => volume.to_owned(),
        };
        let volumes = self.cluster.kubelet_pods_dir().join(uid).join("volumes");
        for plugin in std::fs::read_dir(&volumes)? {
            let path = plugin?.path().join(&directory);
            let mount = path.join("mount");
            if path.exists() {
                return Ok(if mount.exists() { mount } else { path });
            }
        }
        anyhow::bail!(
            "{namespace}/{pod}: nothing for {volume} below {}",
            volumes.display()
        )
    }

    /// The names of a namespace's pods that are Running and Ready, by label selector.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn ready_pods(&self, namespace: &str, labels: &str) -> Result<Vec<String>> {
        let pods = self
            .api_in::<Pod>(namespace)
            .list(&ListParams::default().labels(labels))
            .await?;
        let ready = |pod: &Pod| {
            let status = pod.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            pod.metadata.deletion_timestamp.is_none()
                && conditions
                    .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        let names = pods
            .items
            .into_iter()
            .filter(ready)
            .filter_map(|pod| pod.metadata.name);
        Ok(names.collect())
    }
}

fn phase(backup: &Backup) -> Option<BackupPhase> {
    backup.status.as_ref().and_then(|status| status.phase)
}
