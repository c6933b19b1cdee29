//! The leader killed, or stopped, in the middle of backups and restores: they are adopted and finished, and nothing stays frozen.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{CONTROLLER, annotation, label};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupSpec, DeleteBackupRequest, DeletePhase, PodVolumeBackup,
    PodVolumePhase, PodVolumeRestore, Restore, RestorePhase, RestoreSpec,
    TypedLocalObjectReference,
};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{BUCKET, Env, NAMESPACE, until, wait_for, wait_gone};
use jackline_faults::{Hold, Proxy, When};
use jackline_test_cluster::Options;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
/// The location whose requests go through the proxy.
const HELD: &str = "held";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_leaves_behind_is_finished() -> Result<()> {
    let settings = Settings {
        controller_args: ["--lease-duration=9s", "--volume-progress-timeout=30s"]
            .map(str::to_owned)
            .to_vec(),
        ..Settings::default()
    };
    let env = Env::up_with(Options::named("failover"), &settings).await?;
    env.cluster.apply(include_str!("failover.yaml"))?;
    let test = Test::new(env).await?;
    test.killed_while_collecting().await?;
    test.killed_in_a_pre_hook().await?;
    test.killed_between_the_hooks().await?;
    test.killed_while_another_pod_is_read().await?;
    test.deleted_between_the_hooks().await?;
    test.deleted_while_it_runs(true).await?;
    test.deleted_while_it_runs(false).await?;
    test.killed_while_another_waits().await?;
    test.deleted_while_another_waits().await?;
    test.killed_after_hooks_failed().await?;
    test.without_its_rules_when_it_is_taken_up().await?;
    test.killed_before_the_backup_is_committed().await?;
    test.killed_before_its_end_is_known().await?;
    test.stopped_and_woken().await?;
    test.stopped_while_data_moves().await?;
    test.killed_in_a_restore().await?;
    test.the_last_steps_of_a_velero_are_taken().await?;
    test.a_pod_is_replaced_when_its_volume_is_read().await?;
    test.deleted_while_it_is_restored().await?;
    test.a_pod_has_gone_while_its_volume_is_read().await?;
    test.a_pod_is_replaced_before_its_volume_is_begun("replaced")
        .await?;
    test.a_pod_with_hooks_is_replaced().await?;
    test.a_pod_has_gone_before_its_volume_is_begun().await?;
    test.a_waiting_pod_is_evicted().await?;
    test.env.cluster.down()
}

struct Test {
    env: Env,
    proxy: Proxy,
}

impl Test {
    async fn new(env: Env) -> Result<Self> {
        let proxy = env.proxied_location(HELD).await?;
        for (namespace, app) in [
            ("shop", "app=db"),
            ("moving", "app=web"),
            ("lone", "app=lone"),
        ] {
            until("the pods run", 2 * MINUTE, async || {
                Ok((env.ready_pods(namespace, app).await?.len() == 1).then_some(()))
            })
            .await?;
        }
        Ok(Self { env, proxy })
    }

    async fn back_up(&self, name: &str, namespaces: &[&str]) -> Result<()> {
        let included = namespaces.iter().map(ToString::to_string).collect();
        self.back_up_as(name, included, None).await
    }

    async fn back_up_as(
        &self,
        name: &str,
        included_namespaces: Vec<String>,
        resource_policy: Option<TypedLocalObjectReference>,
    ) -> Result<()> {
        let spec = BackupSpec {
            included_namespaces,
            resource_policy,
            storage_location: Some(HELD.to_owned()),
            ..BackupSpec::default()
        };
        let params = PostParams::default();
        self.env
            .api::<Backup>()
            .create(&params, &Backup::new(name, spec))
            .await?;
        Ok(())
    }

    async fn holder(&self) -> Result<Option<String>> {
        let leases: Api<Lease> = self.env.api();
        let spec = leases.get(CONTROLLER).await?.spec;
        Ok(spec.and_then(|spec| spec.holder_identity))
    }

    async fn signal(&self, pod: &str, signal: Signal) -> Result<()> {
        let cluster = &self.env.cluster;
        let pid = cluster.container_pid(NAMESPACE, pod, "controller").await?;
        kill_process(Pid::from_raw(pid).context("a process")?, signal)?;
        Ok(())
    }

    fn in_db(&self, command: &str) -> Result<String> {
        let command = ["sh", "-c", command];
        Ok(self
            .env
            .cluster
            .exec("shop", "db", &command)?
            .trim()
            .to_owned())
    }

    /// What the database was told since the last time, now that it is not frozen any more.
    fn told(&self) -> Result<Vec<String>> {
        let said = self.in_db("test ! -e /state/frozen && cat /state/log && rm /state/log")?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }

    async fn thawed(&self) -> Result<()> {
        until("the database is not frozen", MINUTE, async || {
            let pod = self.env.api_in::<Pod>("shop").get("db").await?;
            Ok((!pod.labels().contains_key(label::POST_HOOKS)).then_some(()))
        })
        .await
    }

    async fn frozen(&self) -> Result<()> {
        until("the database is frozen", MINUTE, async || {
            let frozen = self.in_db("ls /state")?.contains("frozen");
            Ok(frozen.then_some(()))
        })
        .await
    }

    fn file(name: &str) -> String {
        format!("backups/{name}/velero-backup.json")
    }

    async fn stored(&self, name: &str) -> Result<Backup> {
        let key = format!("{HELD}/{}", Self::file(name));
        let file = self.env.cluster.s3().get(BUCKET, &key).await?;
        Ok(serde_json::from_slice(&file)?)
    }

    /// It has ended well, in the cluster and in the bucket, with its volume.
    async fn complete(&self, name: &str) -> Result<()> {
        let backup = self.env.backup_completed(name, 2 * MINUTE).await?;
        let stored = self.stored(name).await?;
        ensure!(stored.uid() == backup.uid() && stored.phase() == BackupPhase::Completed);
        ensure!(stored.finalizers().is_empty() && backup.finalizers().is_empty());
        let volumes = self.env.volumes_of(name).await?;
        ensure!(volumes.len() == 1, "{volumes:?}");
        ensure!(volumes[0].phase() == PodVolumePhase::Completed);
        let tarball = format!("{HELD}/backups/{name}/{name}.tar.gz");
        ensure!(
            !self
                .env
                .cluster
                .s3()
                .get(BUCKET, &tarball)
                .await?
                .is_empty()
        );
        Ok(())
    }

    /// Of a kind that nobody watches, until the two objects are deleted: the API server has them wait for a place, and there is none.
    fn hold_lists(&self) -> Result<()> {
        let version = "flowcontrol.apiserver.k8s.io/v1";
        let level = json!({"apiVersion": version, "kind": "PriorityLevelConfiguration", "metadata": {"name": HELD},
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": {"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 50}}}}});
        let accounts = format!("system:serviceaccounts:{NAMESPACE}");
        let lists = json!({"verbs": ["list"], "apiGroups": [""], "resources": ["limitranges"], "namespaces": ["*"]});
        let schema = json!({"apiVersion": version, "kind": "FlowSchema", "metadata": {"name": HELD},
            "spec": {"priorityLevelConfiguration": {"name": HELD}, "matchingPrecedence": 2, "rules": [
                {"subjects": [{"kind": "Group", "group": {"name": accounts}}], "resourceRules": [lists]}]}});
        let cluster = &self.env.cluster;
        cluster.apply(&level.to_string())?;
        cluster.apply(&schema.to_string())?;
        let obeyed = ["wait", "--for=condition=Dangling=False", "--timeout=30s"];
        cluster.kubectl(obeyed.into_iter().chain(["flowschema", HELD]))?;
        Ok(())
    }

    async fn killed_while_collecting(&self) -> Result<()> {
        let cluster = &self.env.cluster;
        self.hold_lists()?;
        self.back_up("collecting", &["shop"]).await?;
        until("a list waits", MINUTE, async || {
            let metrics = cluster.kubectl(["get", "--raw", "/metrics"])?;
            let waiting = "apiserver_flowcontrol_current_inqueue_requests{";
            let mut levels = metrics.lines().filter(|line| line.starts_with(waiting));
            let waits = |line: &str| line.contains("\"held\"") && !line.ends_with(" 0");
            Ok(levels.any(waits).then_some(()))
        })
        .await?;
        until("its volume is read meanwhile", MINUTE, async || {
            let volumes = self.env.volumes_of("collecting").await?;
            let read = |volume: &PodVolumeBackup| volume.phase() == PodVolumePhase::Completed;
            Ok(volumes.iter().any(read).then_some(()))
        })
        .await?;
        self.thawed().await?;
        self.env.kill_leader().await?;
        cluster.kubectl(["delete", "flowschema,prioritylevelconfiguration", HELD])?;
        self.complete("collecting").await?;
        self.thawed().await?;
        let told = self.told()?;
        ensure!(
            told.len() % 2 == 0 && told.chunks(2).all(|pair| pair == ["pre", "post"]),
            "{told:?}"
        );
        Ok(())
    }

    /// Whether its work was done nobody knows: it is undone, and begun again.
    async fn killed_in_a_pre_hook(&self) -> Result<()> {
        self.in_db("touch /state/block")?;
        self.back_up("pre-hook", &["shop"]).await?;
        self.frozen().await?;
        ensure!(self.env.volumes_of("pre-hook").await?.is_empty());
        self.env.kill_leader().await?;
        until("the owed hook has run", MINUTE, async || {
            let said = self.in_db("cat /state/log")?;
            Ok(said.contains("post").then_some(()))
        })
        .await?;
        self.in_db("rm /state/block")?;
        self.complete("pre-hook").await?;
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post", "pre", "post"], "{told:?}");
        Ok(())
    }

    /// The volume is read on, so the database is thawed when it has been read, and is not frozen again.
    async fn killed_between_the_hooks(&self) -> Result<()> {
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        self.back_up("between", &["shop"]).await?;
        hold.arrived().await;
        self.frozen().await?;
        self.env.kill_leader().await?;
        ensure!(self.in_db("ls /state")?.contains("frozen"));
        drop(hold);
        self.complete("between").await?;
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        let volumes = self.env.volumes_of("between").await?;
        ensure!(volumes.len() == 1, "{volumes:?}");
        Ok(())
    }

    /// A pod is frozen because of a claim that is read through another: it stays so until that has been read, whoever leads.
    async fn killed_while_another_pod_is_read(&self) -> Result<()> {
        let cluster = &self.env.cluster;
        let annotations = json!({
            "pre.hook.backup.velero.io/command": r#"["sh", "-c", "echo pre >> /log; touch /frozen"]"#,
            "post.hook.backup.velero.io/command": r#"["sh", "-c", "echo post >> /log; rm -f /frozen"]"#});
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "beside", "namespace": "moving", "labels": {"app": "beside"}, "annotations": annotations},
            "spec": {"terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                "containers": [{"name": "main", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", "dd if=/dev/urandom of=/data/beside bs=1M count=1; exec sleep 100000"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
        cluster.apply(&pod.to_string())?;
        until("the pod runs", MINUTE, async || {
            let ready = self.env.ready_pods("moving", "app=beside").await?;
            Ok((ready.len() == 1).then_some(()))
        })
        .await?;
        let beside = |command: &str| cluster.exec("moving", "beside", &["sh", "-c", command]);
        until("its data is there", MINUTE, async || {
            let size = beside("stat -c %s /data/beside")?;
            Ok((size.trim() == "1048576").then_some(()))
        })
        .await?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/moving/data/"], When::Before);
        self.back_up("beside", &["moving"]).await?;
        hold.arrived().await;
        let volumes = self.env.volumes_of("beside").await?;
        let through = volumes.first().and_then(|one| one.spec.pod.name.clone());
        ensure!(through.is_some_and(|pod| pod.starts_with("web")));
        beside("test -e /frozen")?;
        let before = self.holder().await?;
        self.env.kill_leader().await?;
        until("another leads", MINUTE, async || {
            let now = self.holder().await?;
            Ok((now.is_some() && now != before).then_some(()))
        })
        .await?;
        // It looks for what is owed every two seconds.
        tokio::time::sleep(Duration::from_secs(6)).await;
        beside("test -e /frozen").context("while the claim is still read")?;
        drop(hold);
        self.complete("beside").await?;
        let told = beside("test ! -e /frozen && cat /log; rm /data/beside")?;
        ensure!(told.split_whitespace().eq(["pre", "post"]), "{told}");
        let hooks = self.env.api::<Backup>().get("beside").await?.status;
        let hooks = hooks
            .and_then(|status| status.hook_status)
            .unwrap_or_default();
        ensure!(
            (hooks.hooks_attempted, hooks.hooks_failed) == (2, 0),
            "{hooks:?}"
        );
        let pods = self.env.api_in::<Pod>("moving");
        pods.delete("beside", &DeleteParams::default()).await?;
        wait_gone(&pods, "beside", MINUTE).await
    }

    async fn deleted_between_the_hooks(&self) -> Result<()> {
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        self.back_up("deleted", &["shop"]).await?;
        hold.arrived().await;
        self.frozen().await?;
        self.env.kill_leader().await?;
        let backups = self.env.api::<Backup>();
        backups.delete("deleted", &DeleteParams::default()).await?;
        wait_gone(&backups, "deleted", MINUTE).await?;
        self.thawed().await?;
        drop(hold);
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        Ok(())
    }

    /// With one volume read and its files half there: no snapshot is left, and no object. `led`: somebody leads while it is deleted.
    async fn deleted_while_it_runs(&self, led: bool) -> Result<()> {
        let s3 = self.env.cluster.s3();
        let snapshots = format!("{HELD}/restic/shop/snapshots/");
        let before = s3.list(BUCKET, &snapshots).await?;
        let hold = self
            .proxy
            .hold_one(&["PUT", "/backups/dropped/dropped.tar.gz"], When::After);
        self.back_up("dropped", &["shop"]).await?;
        hold.arrived().await;
        ensure!(s3.list(BUCKET, &snapshots).await?.len() == before.len() + 1);
        let files = format!("{HELD}/backups/dropped/");
        ensure!(!s3.list(BUCKET, &files).await?.is_empty());
        let backups = self.env.api::<Backup>();
        if led {
            backups.delete("dropped", &DeleteParams::default()).await?;
        } else {
            deploy::scale(&self.env.cluster, 0)?;
            backups.delete("dropped", &DeleteParams::default()).await?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            deploy::scale(&self.env.cluster, 2)?;
        }
        wait_gone(&backups, "dropped", MINUTE).await?;
        until("nothing of it is left", MINUTE, async || {
            let left = s3.list(BUCKET, &files).await?;
            let now = s3.list(BUCKET, &snapshots).await?;
            Ok((left.is_empty() && now == before).then_some(()))
        })
        .await?;
        drop(hold);
        ensure!(self.env.volumes_of("dropped").await?.is_empty());
        // The name is free.
        self.back_up("dropped", &["shop"]).await?;
        self.complete("dropped").await?;
        self.thawed().await?;
        self.delete("dropped").await?;
        self.told().map(drop)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let spec = serde_json::from_value(json!({"backupName": name}))?;
        let requests = self.env.api::<DeleteBackupRequest>();
        let request = DeleteBackupRequest::new(name, spec);
        requests.create(&PostParams::default(), &request).await?;
        wait_gone(&self.env.api::<Backup>(), name, MINUTE).await
    }

    /// A backup reads the frozen database, as long as it is held, and another waits for the database.
    async fn one_reads_and_one_waits(&self, one: &str, other: &str) -> Result<Hold> {
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        self.back_up(one, &["shop"]).await?;
        hold.arrived().await;
        self.frozen().await?;
        self.back_up(other, &["shop"]).await?;
        let begun = |backup: &Backup| backup.phase() == BackupPhase::InProgress;
        wait_for(&self.env.api::<Backup>(), other, MINUTE, begun).await?;
        // It has collected what there is, and come to the hooks.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(hold)
    }

    /// Whoever leads next has both: the one whose volume is read, and the one that must not get the database before it is thawed.
    async fn killed_while_another_waits(&self) -> Result<()> {
        let hold = self.one_reads_and_one_waits("reads", "waits").await?;
        let before = self.holder().await?;
        self.env.kill_leader().await?;
        until("another leads", MINUTE, async || {
            Ok((self.holder().await? != before).then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        ensure!(self.in_db("ls /state")?.contains("frozen"));
        drop(hold);
        self.complete("reads").await?;
        self.complete("waits").await?;
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post", "pre", "post"], "{told:?}");
        Ok(())
    }

    async fn deleted_while_another_waits(&self) -> Result<()> {
        let hold = self.one_reads_and_one_waits("goes", "stays").await?;
        let backups = self.env.api::<Backup>();
        backups.delete("goes", &DeleteParams::default()).await?;
        wait_gone(&backups, "goes", MINUTE).await?;
        until("the owed hook has run", MINUTE, async || {
            let said = self.in_db("cat /state/log")?;
            Ok(said.contains("post").then_some(()))
        })
        .await?;
        drop(hold);
        self.complete("stays").await?;
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post", "pre", "post"], "{told:?}");
        Ok(())
    }

    /// What failed before the leader went, and what its successor paid, is in the end of the backup.
    async fn killed_after_hooks_failed(&self) -> Result<()> {
        let pods = self.env.api_in::<Pod>("shop");
        let before = pods.get("db").await?.metadata.annotations;
        let change = |annotations| json!({"metadata": {"annotations": annotations}});
        let failing = json!({
            "pre.hook.backup.velero.io/command": r#"["sh", "-c", "echo pre >> /state/log; touch /state/frozen; exit 1"]"#,
            "pre.hook.backup.velero.io/on-error": "Continue",
            "post.hook.backup.velero.io/command": r#"["sh", "-c", "echo post >> /state/log; rm -f /state/frozen; exit 1"]"#});
        let params = PatchParams::default();
        pods.patch("db", &params, &Patch::Merge(change(failing)))
            .await?;
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        self.back_up("failing", &["shop"]).await?;
        hold.arrived().await;
        self.env.kill_leader().await?;
        drop(hold);
        let ended = self.env.backup_ended("failing", 2 * MINUTE).await?;
        let status = ended.status.clone().unwrap_or_default();
        let hooks = status.hook_status.clone().unwrap_or_default();
        ensure!(
            status.phase == Some(BackupPhase::PartiallyFailed)
                && status.errors == 2
                && (hooks.hooks_attempted, hooks.hooks_failed) == (2, 2),
            "{status:?}"
        );
        let volumes = self.env.volumes_of("failing").await?;
        ensure!(volumes.len() == 1 && volumes[0].phase() == PodVolumePhase::Completed);
        for backup in [ended, self.stored("failing").await?] {
            let about = |key: &String| key.starts_with(annotation::HOOKS_PREFIX);
            let annotations = backup.annotations();
            ensure!(!annotations.keys().any(about), "{annotations:?}");
        }
        self.thawed().await?;
        let told = self.told()?;
        // A post hook that failed is owed until it has been tried a few times.
        ensure!(told == ["pre", "post", "post", "post"], "{told:?}");
        pods.patch("db", &params, &Patch::Merge(change(json!(before))))
            .await?;
        Ok(())
    }

    /// What the backup was accepted under is not known any more: it fails and says so, the database is thawed, and the snapshot that its
    /// volume has by now is on record.
    async fn without_its_rules_when_it_is_taken_up(&self) -> Result<()> {
        let rules = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rules", "namespace": NAMESPACE},
            "data": {"rules": "version: v1\nvolumePolicies:\n- {conditions: {nfs: {}}, action: {type: skip}}\n"}});
        self.env.cluster.apply(&rules.to_string())?;
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        let reference = TypedLocalObjectReference {
            kind: "configmap".to_owned(),
            name: "rules".to_owned(),
            ..TypedLocalObjectReference::default()
        };
        self.back_up_as("ruleless", vec!["shop".to_owned()], Some(reference))
            .await?;
        hold.arrived().await;
        self.frozen().await?;
        self.env.kill_leader().await?;
        let maps = self.env.api::<ConfigMap>();
        maps.delete("rules", &DeleteParams::default()).await?;
        drop(hold);
        let ended = self.env.backup_ended("ruleless", 2 * MINUTE).await?;
        let status = ended.status.context("a status")?;
        let why = status.failure_reason.clone().unwrap_or_default();
        ensure!(
            status.phase == Some(BackupPhase::Failed)
                && why.contains("ResourcePolicies velero/rules ConfigMap"),
            "{status:?}"
        );
        let log = format!("{HELD}/backups/ruleless/ruleless-logs.gz");
        ensure!(!self.env.cluster.s3().get(BUCKET, &log).await?.is_empty());
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        until("its volume has ended", MINUTE, async || {
            let volumes = self.env.volumes_of("ruleless").await?;
            let over = volumes.iter().all(|volume| match volume.phase() {
                PodVolumePhase::Completed => {
                    let status = volume.status.as_ref();
                    status.is_some_and(|status| status.snapshot_id.is_some())
                }
                phase => phase.is_terminal(),
            });
            Ok((volumes.len() == 1 && over).then_some(()))
        })
        .await
    }

    async fn killed_before_the_backup_is_committed(&self) -> Result<()> {
        let file = Self::file("tarball");
        let hold = self.proxy.hold_one(&["PUT", &file], When::Before);
        self.back_up("tarball", &["shop"]).await?;
        hold.arrived().await;
        ensure!(self.stored("tarball").await.is_err());
        self.env.kill_leader().await?;
        drop(hold);
        self.complete("tarball").await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        Ok(())
    }

    async fn killed_before_its_end_is_known(&self) -> Result<()> {
        let file = Self::file("committed");
        let hold = self.proxy.hold_one(&["PUT", &file], When::After);
        self.back_up("committed", &["shop"]).await?;
        hold.arrived().await;
        let committed = self.stored("committed").await?;
        let known = self.env.api::<Backup>().get("committed").await?;
        ensure!(known.phase() == BackupPhase::InProgress);
        self.env.kill_leader().await?;
        drop(hold);
        self.complete("committed").await?;
        ensure!(self.stored("committed").await? == committed);
        let status = self.env.api::<Backup>().get("committed").await?.status;
        ensure!(status == committed.status, "{status:?}");
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        Ok(())
    }

    /// A leader that was stopped on its way to the bucket, and wakes up when another has finished its work.
    async fn stopped_and_woken(&self) -> Result<()> {
        let file = Self::file("stopped");
        let hold = self.proxy.hold_one(&["PUT", &file], When::Before);
        self.back_up("stopped", &["shop"]).await?;
        hold.arrived().await;
        let leader = self.env.leader().await?;
        let lost = || {
            let log = ["-n", NAMESPACE, "logs", &leader];
            let said = self.env.cluster.kubectl(log)?;
            anyhow::Ok(said.matches("not leading any more").count())
        };
        let before = lost()?;
        self.signal(&leader, Signal::STOP).await?;
        self.complete("stopped").await?;
        let ended = self.env.api::<Backup>().get("stopped").await?;
        let s3 = self.env.cluster.s3();
        let prefix = format!("{HELD}/backups/stopped/");
        let stored = s3.list(BUCKET, &prefix).await?;
        drop(hold);
        self.signal(&leader, Signal::CONT).await?;
        until("it knows that it does not lead", MINUTE, async || {
            Ok((lost()? > before).then_some(()))
        })
        .await?;
        // Longer than its requests may take.
        tokio::time::sleep(Duration::from_secs(10)).await;
        ensure!(s3.list(BUCKET, &prefix).await? == stored);
        ensure!(self.env.api::<Backup>().get("stopped").await? == ended);
        self.told().map(drop)
    }

    /// One that was stopped while it waited for data, for so long that it takes the volume for one that stands still when it wakes up.
    async fn stopped_while_data_moves(&self) -> Result<()> {
        self.in_db("dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null")?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/shop/data/"], When::Before);
        self.back_up("slept", &["shop"]).await?;
        hold.arrived().await;
        let leader = self.env.leader().await?;
        // It looks every 10 s, and gives up what has stood still for 30 s since the first look.
        tokio::time::sleep(Duration::from_secs(12)).await;
        self.signal(&leader, Signal::STOP).await?;
        let stopped = Instant::now();
        until("another leads", MINUTE, async || {
            Ok((self.env.leader().await? != leader).then_some(()))
        })
        .await?;
        drop(hold);
        self.complete("slept").await?;
        let ended = self.env.api::<Backup>().get("slept").await?;
        let volumes = self.env.volumes_of("slept").await?;
        tokio::time::sleep(Duration::from_secs(31).saturating_sub(stopped.elapsed())).await;
        self.signal(&leader, Signal::CONT).await?;
        // Longer than its requests may take.
        tokio::time::sleep(Duration::from_secs(10)).await;
        ensure!(volumes.iter().all(|volume| !volume.spec.cancel));
        ensure!(self.env.volumes_of("slept").await? == volumes);
        ensure!(self.env.api::<Backup>().get("slept").await? == ended);
        self.thawed().await?;
        let told = self.told()?;
        ensure!(told == ["pre", "post"], "{told:?}");
        Ok(())
    }

    /// As a Velero leaves behind what it had nearly ended.
    async fn the_last_steps_of_a_velero_are_taken(&self) -> Result<()> {
        let last =
            json!({"status": {"phase": "FinalizingPartiallyFailed", "completionTimestamp": null}});
        let mut stored = serde_json::to_value(self.stored("committed").await?)?;
        stored["status"]["phase"] = json!("FinalizingPartiallyFailed");
        let key = format!("{HELD}/{}", Self::file("committed"));
        let s3 = self.env.cluster.s3();
        s3.put(BUCKET, &key, serde_json::to_vec(&stored)?).await?;
        // Which it sends after the tarball.
        let list = format!("{HELD}/backups/committed/committed-podvolumebackups.json.gz");
        let volumes = self.env.packed(&list).await?;
        s3.delete(BUCKET, &list).await?;
        let params = PatchParams::default();
        let backups = self.env.api::<Backup>();
        backups
            .patch("committed", &params, &Patch::Merge(&last))
            .await?;
        let restores = self.env.api::<Restore>();
        restores
            .patch("killed", &params, &Patch::Merge(&last))
            .await?;
        let backup = self.env.backup_ended("committed", MINUTE).await?;
        ensure!(backup.phase() == BackupPhase::PartiallyFailed, "{backup:?}");
        ensure!(self.stored("committed").await?.phase() == BackupPhase::PartiallyFailed);
        ensure!(
            self.env.packed(&list).await? == volumes,
            "the list of its volumes"
        );
        let restore = self.env.restore_ended("killed", MINUTE).await?;
        let status = restore.status.unwrap_or_default();
        ensure!(
            status.phase == Some(RestorePhase::PartiallyFailed),
            "{status:?}"
        );
        ensure!(status.completion_timestamp.is_some());
        // This time it went before it had sent the objects.
        let tarball = format!("{HELD}/backups/committed/committed.tar.gz");
        s3.delete(BUCKET, &tarball).await?;
        s3.put(BUCKET, &key, serde_json::to_vec(&stored)?).await?;
        backups
            .patch("committed", &params, &Patch::Merge(&last))
            .await?;
        let backup = self.env.backup_ended("committed", MINUTE).await?;
        let status = backup.status.unwrap_or_default();
        let why = status.failure_reason.unwrap_or_default();
        ensure!(status.phase == Some(BackupPhase::Failed), "{why}");
        ensure!(why.contains("tarball"), "{why}");
        ensure!(self.stored("committed").await?.phase() == BackupPhase::Failed);
        Ok(())
    }

    async fn killed_in_a_restore(&self) -> Result<()> {
        let blob = self.in_db("md5sum /data/blob")?;
        let namespaces: Api<Namespace> = Api::all(self.env.cluster.client());
        namespaces.delete("shop", &DeleteParams::default()).await?;
        wait_gone(&namespaces, "shop", 2 * MINUTE).await?;
        let hold = self
            .proxy
            .hold(&["GET", "/restic/shop/data/"], When::Before);
        let spec = RestoreSpec {
            backup_name: Some("slept".to_owned()),
            ..RestoreSpec::default()
        };
        let restores = self.env.api::<Restore>();
        restores
            .create(&PostParams::default(), &Restore::new("killed", spec))
            .await?;
        hold.arrived().await;
        self.env.kill_leader().await?;
        drop(hold);
        self.env.restore_completed("killed", 2 * MINUTE).await?;
        until("the database runs", MINUTE, async || {
            Ok((self.env.ready_pods("shop", "app=db").await?.len() == 1).then_some(()))
        })
        .await?;
        ensure!(self.in_db("md5sum /data/blob")? == blob);
        let pod = self.env.api_in::<Pod>("shop").get("db").await?;
        ensure!(!pod.labels().contains_key(label::POST_HOOKS), "{pod:?}");
        Ok(())
    }

    /// Begins to read the volume of the only pod in `moving`, and has nobody lead any more.
    async fn left_while_it_reads(&self, name: &str) -> Result<(String, Hold)> {
        let pods = self.env.ready_pods("moving", "app=web").await?;
        let pod = pods.first().context("a pod")?.clone();
        let fill = "dd if=/dev/urandom of=/data/blob bs=1M count=4 2> /dev/null";
        self.env.cluster.exec("moving", &pod, &["sh", "-c", fill])?;
        let hold = self
            .proxy
            .hold(&["PUT", "/restic/moving/data/"], When::Before);
        self.back_up(name, &["moving"]).await?;
        hold.arrived().await;
        self.env.kill_leader().await?;
        deploy::scale(&self.env.cluster, 0)?;
        Ok((pod, hold))
    }

    /// The volume of a backup has come to this.
    async fn volume_is(&self, backup: &str, phase: PodVolumePhase) -> Result<PodVolumeBackup> {
        until(&format!("its volume is {phase}"), MINUTE, async || {
            let mut volumes = self.env.volumes_of(backup).await?;
            ensure!(volumes.len() == 1, "{volumes:?}");
            Ok(volumes.pop().filter(|volume| volume.phase() == phase))
        })
        .await
    }

    /// The one that was read is in the backup, and its claim is not read once more through the pod that is there now.
    async fn a_pod_is_replaced_when_its_volume_is_read(&self) -> Result<()> {
        let (pod, hold) = self.left_while_it_reads("read-before").await?;
        drop(hold);
        let read = self
            .volume_is("read-before", PodVolumePhase::Completed)
            .await?;
        let pods = self.env.api_in::<Pod>("moving");
        pods.delete(&pod, &DeleteParams::default()).await?;
        wait_gone(&pods, &pod, MINUTE).await?;
        until("another runs", MINUTE, async || {
            Ok(self.env.ready_pods("moving", "app=web").await?.pop())
        })
        .await?;
        deploy::scale(&self.env.cluster, 2)?;
        self.complete("read-before").await?;
        let kept = self.env.volumes_of("read-before").await?;
        ensure!(kept.first() == Some(&read), "{kept:?}");
        let key = format!("{HELD}/backups/read-before/read-before-podvolumebackups.json.gz");
        let listed = self.env.packed(&key).await?;
        let snapshot = read.status.and_then(|status| status.snapshot_id);
        ensure!(listed[0]["status"]["snapshotID"] == json!(snapshot.context("a snapshot")?));
        Ok(())
    }

    /// It is waited for, and what the agent says of it stands in the backup.
    async fn a_pod_has_gone_while_its_volume_is_read(&self) -> Result<()> {
        let name = "broken-off";
        let (pod, hold) = self.left_while_it_reads(name).await?;
        let agent = self.agent().await?;
        kill_process(agent, Signal::STOP)?;
        let cluster = &self.env.cluster;
        let scale = ["-n", "moving", "scale", "deployment/web"];
        cluster.kubectl(scale.into_iter().chain(["--replicas=0"]))?;
        let pods = self.env.api_in::<Pod>("moving");
        wait_gone(&pods, &pod, MINUTE).await?;
        let epoch = |backup: &Backup| backup.annotations().get(annotation::LEADER_EPOCH).cloned();
        let backups = self.env.api::<Backup>();
        let before = epoch(&backups.get(name).await?);
        deploy::scale(cluster, 2)?;
        wait_for(&backups, name, MINUTE, |now| epoch(now) != before).await?;
        // It has collected what there is, and come to the volumes.
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(backups.get(name).await?.phase() == BackupPhase::InProgress);
        let begun = self.volume_is(name, PodVolumePhase::InProgress).await?;
        kill_process(agent, Signal::CONT)?;
        let ended = self.env.backup_ended(name, 2 * MINUTE).await?;
        drop(hold);
        let status = ended.status.clone().unwrap_or_default();
        ensure!(
            status.phase == Some(BackupPhase::PartiallyFailed) && status.errors == 1,
            "{status:?}"
        );
        let failed = self.volume_is(name, PodVolumePhase::Failed).await?;
        ensure!(failed.uid() == begun.uid());
        let why = failed.status.and_then(|status| status.message);
        let why = why.context("a message")?;
        ensure!(why.starts_with("the pod was deleted"), "{why}");
        let key = format!("{HELD}/backups/{name}/{name}-results.gz");
        let results = self.env.packed(&key).await?;
        let error = results["errors"]["namespaces"]["moving"].to_string();
        ensure!(error.contains(&pod) && error.contains(&why), "{results}");
        cluster.kubectl(scale.into_iter().chain(["--replicas=1"]))?;
        until("the pod runs again", MINUTE, async || {
            Ok(self.env.ready_pods("moving", "app=web").await?.pop())
        })
        .await
        .map(drop)
    }

    /// Whoever deletes the backup waits for the restore that has begun, and no other begins; also where a leader went when the deletion
    /// had begun.
    async fn deleted_while_it_is_restored(&self) -> Result<()> {
        let (backup, restore) = ("read-before", "in-the-way");
        let hold = self
            .proxy
            .hold(&["GET", "/restic/moving/data/"], When::Before);
        self.restore_into(restore, backup, "copied").await?;
        hold.arrived().await;
        let spec = serde_json::from_value(json!({"backupName": backup}))?;
        let requests = self.env.api::<DeleteBackupRequest>();
        let request = DeleteBackupRequest::new(backup, spec);
        requests.create(&PostParams::default(), &request).await?;
        let waits = |request: &DeleteBackupRequest| {
            let status = request.status.clone().unwrap_or_default();
            let why = format!("restore {restore} of this backup is in progress");
            status.phase == Some(DeletePhase::InProgress)
                && status.errors.iter().any(|error| error.contains(&why))
        };
        wait_for(&requests, backup, MINUTE, waits).await?;
        let backups = self.env.api::<Backup>();
        ensure!(backups.get(backup).await?.phase() == BackupPhase::Completed);

        // As it is when the restore has begun behind the back of the deletion.
        let deleting = Patch::Merge(json!({"status": {"phase": "Deleting"}}));
        backups
            .patch(backup, &PatchParams::default(), &deleting)
            .await?;
        let before = self.holder().await?;
        self.env.kill_leader().await?;
        until("another leads", MINUTE, async || {
            Ok((self.holder().await? != before).then_some(()))
        })
        .await?;
        self.restore_into("too-late", backup, "never").await?;
        let refused = self.env.restore_ended("too-late", MINUTE).await?;
        let status = refused.status.unwrap_or_default();
        ensure!(
            status.phase == Some(RestorePhase::FailedValidation)
                && status
                    .validation_errors
                    .iter()
                    .any(|error| error.contains("is Deleting")),
            "{status:?}"
        );
        // The new leader has come to the deletion too.
        tokio::time::sleep(Duration::from_secs(5)).await;
        ensure!(waits(&requests.get(backup).await?));
        ensure!(backups.get(backup).await?.phase() == BackupPhase::Deleting);
        self.stored(backup).await?;
        drop(hold);
        self.env.restore_completed(restore, 2 * MINUTE).await?;
        let sum = async |namespace: &str| {
            let ready = async || Ok(self.env.ready_pods(namespace, "app=web").await?.pop());
            let pod = until("the pod runs", MINUTE, ready).await?;
            let cluster = &self.env.cluster;
            cluster.exec(namespace, &pod, &["md5sum", "/data/blob"])
        };
        ensure!(sum("copied").await? == sum("moving").await?);

        wait_gone(&backups, backup, MINUTE).await?;
        wait_gone(&requests, backup, MINUTE).await?;
        wait_gone(&self.env.api::<Restore>(), restore, MINUTE).await?;
        let s3 = self.env.cluster.s3();
        for directory in [format!("backups/{backup}"), format!("restores/{restore}")] {
            let left = s3.list(BUCKET, &format!("{HELD}/{directory}/")).await?;
            ensure!(left.is_empty(), "{left:?}");
        }
        let namespaces: Api<Namespace> = Api::all(self.env.cluster.client());
        namespaces
            .delete("copied", &DeleteParams::default())
            .await
            .map(drop)
            .map_err(Into::into)
    }

    /// Restores `moving` under another name.
    async fn restore_into(&self, name: &str, backup: &str, namespace: &str) -> Result<()> {
        let spec = json!({"backupName": backup, "namespaceMapping": {"moving": namespace}});
        let restore = Restore::new(name, serde_json::from_value(spec)?);
        let restores = self.env.api::<Restore>();
        restores.create(&PostParams::default(), &restore).await?;
        Ok(())
    }

    /// The process of the node agent.
    async fn agent(&self) -> Result<Pid> {
        let agents = self.env.ready_pods(NAMESPACE, "name=node-agent").await?;
        let agent = agents.first().context("an agent")?;
        let cluster = &self.env.cluster;
        let pid = cluster
            .container_pid(NAMESPACE, agent, "node-agent")
            .await?;
        Pid::from_raw(pid).context("a process")
    }

    /// Another pod that waits for the same claim carries its data.
    async fn a_waiting_pod_is_evicted(&self) -> Result<()> {
        let cluster = &self.env.cluster;
        let scale = ["-n", "moving", "scale", "deployment/web", "--replicas=2"];
        cluster.kubectl(scale)?;
        let both = async || {
            until("both pods run", 2 * MINUTE, async || {
                let ready = self.env.ready_pods("moving", "app=web").await?;
                Ok(<[String; 2]>::try_from(ready).ok())
            })
            .await
        };
        let [one, _] = both().await?;
        let keep = ["sh", "-c", "seq 100000 > /data/kept"];
        cluster.exec("moving", &one, &keep)?;
        self.back_up("pair", &["moving"]).await?;
        self.complete("pair").await?;

        let namespaces: Api<Namespace> = Api::all(cluster.client());
        namespaces
            .delete("moving", &DeleteParams::default())
            .await?;
        wait_gone(&namespaces, "moving", 2 * MINUTE).await?;
        let agent = self.agent().await?;
        kill_process(agent, Signal::STOP)?;
        let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "pair"}))?;
        self.env
            .api::<Restore>()
            .create(&PostParams::default(), &Restore::new("evicted", spec))
            .await?;
        let volumes = self.env.api::<PodVolumeRestore>();
        let of_it = ListParams::default().labels("velero.io/restore-name=evicted");
        let carrier = async || {
            let mut all = volumes.list(&of_it).await?.items;
            ensure!(all.len() == 1, "{all:?}");
            let pod = all.pop().and_then(|volume| volume.spec.pod.name);
            Ok(Some(pod.context("a pod")?))
        };
        let first = until("a pod waits", MINUTE, carrier).await?;
        let pods: Api<Pod> = self.env.api_in("moving");
        pods.evict(&first, &EvictParams::default()).await?;
        let second = until("another carries the data", MINUTE, async || {
            Ok(carrier().await?.filter(|pod| *pod != first))
        })
        .await?;
        kill_process(agent, Signal::CONT)?;
        self.env.restore_completed("evicted", 2 * MINUTE).await?;
        ensure!(carrier().await? == Some(second));
        for pod in both().await? {
            let lines = cluster.exec("moving", &pod, &["wc", "-l", "/data/kept"])?;
            ensure!(lines.starts_with("100000 "), "{pod}: {lines}");
        }
        Ok(())
    }

    /// The pod that took its place carries the claim.
    async fn a_pod_is_replaced_before_its_volume_is_begun(&self, name: &str) -> Result<()> {
        let ready = async || self.env.ready_pods("moving", "app=web").await;
        let first = ready().await?.pop().context("a pod")?;
        let agent = self.agent().await?;
        kill_process(agent, Signal::STOP)?;
        self.back_up(name, &["moving"]).await?;
        until("the volume is to be read", MINUTE, async || {
            Ok(self.env.volumes_of(name).await?.pop())
        })
        .await?;
        let pods = self.env.api_in::<Pod>("moving");
        pods.delete(&first, &DeleteParams::default()).await?;
        wait_gone(&pods, &first, MINUTE).await?;
        kill_process(agent, Signal::CONT)?;
        self.complete(name).await?;
        let volume = self.env.volumes_of(name).await?.pop().context("one")?;
        let carrier = volume.spec.pod.name.clone().unwrap_or_default();
        ensure!(carrier != first && ready().await?.contains(&carrier));
        let backup = self.env.api::<Backup>().get(name).await?;
        let warnings = backup.status.map(|status| status.warnings);
        ensure!(warnings == Some(1), "{warnings:?}");
        Ok(())
    }

    /// It is frozen in its turn. The pod that has gone needs no thawing.
    async fn a_pod_with_hooks_is_replaced(&self) -> Result<()> {
        let hooks = json!({"spec": {"template": {"metadata": {"annotations": {
            "pre.hook.backup.velero.io/command": r#"["touch", "/data/frozen"]"#,
            "pre.hook.backup.velero.io/on-error": "Fail",
            "post.hook.backup.velero.io/command": r#"["rm", "-f", "/data/frozen"]"#}}}}});
        let deployments = self.env.api_in::<Deployment>("moving");
        let params = PatchParams::default();
        deployments
            .patch("web", &params, &Patch::Merge(hooks))
            .await?;
        let cluster = &self.env.cluster;
        cluster.kubectl(["-n", "moving", "rollout", "status", "deployment/web"])?;
        until("one pod runs", MINUTE, async || {
            let pods = self.env.api_in::<Pod>("moving");
            let pods = pods.list(&ListParams::default()).await?;
            Ok((pods.items.len() == 1).then_some(()))
        })
        .await?;
        self.a_pod_is_replaced_before_its_volume_is_begun("replaced-hooks")
            .await?;
        let status = self.env.api::<Backup>().get("replaced-hooks").await?.status;
        let hooks = status.and_then(|status| status.hook_status);
        let hooks = hooks.unwrap_or_default();
        ensure!(
            (hooks.hooks_attempted, hooks.hooks_failed) == (3, 0),
            "{hooks:?}"
        );
        let pods = self.env.ready_pods("moving", "app=web").await?;
        let data = cluster.exec("moving", pods.first().context("a pod")?, &["ls", "/data"])?;
        ensure!(!data.contains("frozen"), "{data}");
        Ok(())
    }

    /// Nobody else mounts its claim: a warning that says so.
    async fn a_pod_has_gone_before_its_volume_is_begun(&self) -> Result<()> {
        let agent = self.agent().await?;
        kill_process(agent, Signal::STOP)?;
        self.back_up("gone", &["lone"]).await?;
        until("the volume is to be read", MINUTE, async || {
            Ok(self.env.volumes_of("gone").await?.pop())
        })
        .await?;
        let pods = self.env.api_in::<Pod>("lone");
        pods.delete("lone", &DeleteParams::default()).await?;
        wait_gone(&pods, "lone", MINUTE).await?;
        kill_process(agent, Signal::CONT)?;
        let backup = self.env.backup_completed("gone", 2 * MINUTE).await?;
        let warnings = backup.status.map(|status| status.warnings);
        ensure!(warnings == Some(1), "{warnings:?}");
        let key = format!("{HELD}/backups/gone/gone-results.gz");
        let results = self.env.packed(&key).await?.to_string();
        ensure!(results.contains("no other mounts claim data"), "{results}");
        Ok(())
    }
}
