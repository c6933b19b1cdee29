//! A cluster is lost, etcd included, and a new one takes its place; before that both are alive on one bucket.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::ClusterBackupPolicy;
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, BackupSpec, BackupStorageLocation, DeleteBackupRequest,
    LocationPhase, Restore, RestorePhase, RestoreSpec,
};
use jackline_e2e::deploy::{self, Settings};
use jackline_e2e::{BUCKET, Env, Jackline, NAMESPACE, Restic, until, wait_for, wait_gone};
use jackline_faults::{Proxy, When};
use jackline_test_cluster::{Cluster, Options, Programs};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
/// The password of the key that is kept outside of the clusters.
const SEALED_WITH: &str = "kept in the safe";
/// Objects that are to be there again, each as its namespace, its kind and its name.
const OBJECTS: &[(&str, &str, &str)] = &[
    ("", "priorityclass", "shop-first"),
    ("", "clusterrole", "shop-keeper"),
    ("", "clusterrolebinding", "shop-keeper"),
    ("", "crd", "orders.shop.example"),
    ("shop", "orders.shop.example", "first"),
    ("shop", "secret", "till"),
    ("shop", "configmap", "prices"),
    ("shop", "serviceaccount", "keeper"),
    ("shop", "service", "db"),
    ("shop", "statefulset", "db"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cluster_comes_back_in_a_new_one() -> Result<()> {
    // The bucket is the new cluster's: it outlives the old one.
    let new = Env {
        cluster: Cluster::up(Options::named("disaster-new")).await?,
    };
    new.cluster.s3().make_bucket(BUCKET).await?;
    let old = Env::up("disaster-old").await?;
    let proxy = share(&old, &new).await?;
    old.cluster.apply(include_str!("disaster.yaml"))?;
    let order = json!({"apiVersion": "shop.example/v1", "kind": "Order",
        "metadata": {"name": "first", "namespace": "shop"}, "spec": {"amount": 3}});
    until("the new kind is served", MINUTE, async || {
        Ok(old.cluster.apply(&order.to_string()).ok())
    })
    .await?;
    let data = data(&old).await?;
    let objects = objects(&old)?;
    back_up(&old, "everything", json!({})).await?;

    let home = TempDir::new()?;
    let keys = Keys::new(&new, home)?;
    keys.export(&old.repository_password().await?)?;
    without_the_key(&new).await?;
    keys.import(&new)?;
    both_alive(&old, &new).await?;
    neither_touches_what_is_the_other_s(&old, &new, &proxy).await?;

    old.cluster.down()?;
    drop(proxy);
    restored(&new, &objects, &data).await?;
    new.cluster.down()
}

/// Has the old cluster use the new one's bucket.
async fn share(old: &Env, new: &Env) -> Result<Proxy> {
    let (proxy, url) = old.proxy(new.cluster.s3())?;
    let credentials = format!(
        "--from-literal=cloud={}",
        new.cluster.s3().credentials_file()
    );
    let secret = ["-n", NAMESPACE, "create", "secret", "generic", "shared"];
    old.cluster
        .kubectl([&secret[..], &[&credentials]].concat())?;
    let spec = json!({"config": {"s3Url": url}, "credential": {"name": "shared"}});
    patch_location(old, &spec)?;
    available(old, LocationPhase::Available, "").await?;
    Ok(proxy)
}

fn patch_location(env: &Env, spec: &Value) -> Result<()> {
    let patch = json!({"spec": spec}).to_string();
    let location = [
        "patch",
        "backupstoragelocation",
        "default",
        "--type=merge",
        "-p",
    ];
    let location = [&["-n", NAMESPACE], &location[..], &[&patch]].concat();
    env.cluster.kubectl(location).map(drop)
}

/// The location is in this phase, for this reason.
async fn available(env: &Env, phase: LocationPhase, why: &str) -> Result<()> {
    let locations = env.api::<BackupStorageLocation>();
    wait_for(&locations, "default", MINUTE, |location| {
        location.status.as_ref().is_some_and(|status| {
            status.phase == Some(phase)
                && status.message.as_deref().unwrap_or_default().contains(why)
        })
    })
    .await?;
    Ok(())
}

async fn back_up(env: &Env, name: &str, spec: Value) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(spec)?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new(name, spec))
        .await?;
    env.backup_completed(name, 2 * MINUTE).await.map(drop)
}

/// What is in the volumes of both pods.
async fn data(env: &Env) -> Result<Vec<String>> {
    until("the pods are ready", 2 * MINUTE, async || {
        Ok((env.ready_pods("shop", "app=db").await?.len() == 2).then_some(()))
    })
    .await?;
    // A pod is ready before its command has written.
    until("the pods have their data", MINUTE, async || {
        let look = "md5sum /data/rows /data/name && ls -la /data/rows";
        let sum = |pod: &str| env.cluster.exec("shop", pod, &["sh", "-c", look]);
        Ok(Some(vec![sum("db-0")?, sum("db-1")?]))
    })
    .await
}

/// The objects without what a cluster adds by itself.
fn objects(env: &Env) -> Result<Vec<Value>> {
    OBJECTS
        .iter()
        .map(|(namespace, kind, name)| {
            let found = env
                .cluster
                .kubectl(["get", kind, name, "-n", namespace, "-o", "json"])?;
            let mut object: Value = serde_json::from_str(&found)?;
            for pointer in ["", "/spec"] {
                let Some(Value::Object(fields)) = object.pointer_mut(pointer) else {
                    continue;
                };
                // Addresses are each cluster's own.
                for field in ["status", "clusterIP", "clusterIPs"] {
                    fields.remove(field);
                }
            }
            let labels = object["metadata"]["labels"].as_object_mut();
            let mut labels = labels.cloned().unwrap_or_default();
            labels.retain(|label, _| !label.starts_with("velero.io/"));
            object["metadata"] = json!({"name": name, "labels": labels});
            Ok(object)
        })
        .collect()
}

/// The keys of the repositories, kept outside of the clusters.
struct Keys {
    home: TempDir,
    bucket: String,
    environment: [(&'static str, String); 3],
    program: std::path::PathBuf,
}

impl Keys {
    fn new(env: &Env, home: TempDir) -> Result<Self> {
        let s3 = env.cluster.s3();
        std::fs::write(home.path().join("safe"), SEALED_WITH)?;
        Ok(Self {
            home,
            bucket: format!("s3:{}/{BUCKET}/restic/shop", s3.host_endpoint),
            environment: s3.environment(),
            program: Programs::build()?.controller.with_file_name("jackline"),
        })
    }

    fn run(&self, password_file: &str, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.program)
            .args([
                "repository",
                "--repo",
                &self.bucket,
                "--password-file",
                password_file,
            ])
            .args(arguments)
            .envs(self.environment.clone())
            .current_dir(self.home.path())
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(())
    }

    fn export(&self, password: &str) -> Result<()> {
        std::fs::write(self.home.path().join("password"), password)?;
        let arguments = ["key", "export", "shop.key", "--new-password-file", "safe"];
        self.run("password", &arguments)?;
        std::fs::remove_file(self.home.path().join("password"))?;
        Ok(())
    }

    /// The password that was lost with the cluster opens nothing any more; the one from the safe does.
    fn import(&self, new: &Env) -> Result<()> {
        self.run("safe", &["key", "import", "shop.key"])?;
        // With a line end, as `--from-file` has it.
        let password = format!("--from-literal=repository-password={SEALED_WITH}\n");
        let secret = "velero-repo-credentials";
        new.cluster.kubectl([
            "-n", NAMESPACE, "create", "secret", "generic", secret, &password,
        ])?;
        Ok(())
    }
}

/// Nothing is made anew beside repositories that cannot be opened.
async fn without_the_key(new: &Env) -> Result<()> {
    let s3 = new.cluster.s3();
    let before = s3.list(BUCKET, "restic/").await?;
    ensure!(!before.is_empty());
    new.cluster.load_jackline(&Programs::build()?)?;
    deploy::apply(&new.cluster, &Settings::default())?;
    deploy::ready(&new.cluster)?;
    let why = "the location holds repositories (shop): put the password that the repositories were made with into key repository-password of Secret velero/velero-repo-credentials";
    available(new, LocationPhase::Unavailable, why).await?;
    let said = Jackline::new(new)?.refused("doctor")?;
    let doctor = Jackline::new(new)?.output(&["doctor"])?;
    let findings = String::from_utf8_lossy(&doctor.stdout);
    ensure!(
        findings.contains("velero-repo-credentials"),
        "{said}{findings}"
    );
    ensure!(s3.list(BUCKET, "restic/").await? == before);
    Ok(())
}

/// Both say so, and neither touches what is the other's.
async fn both_alive(old: &Env, new: &Env) -> Result<()> {
    let backups = new.api::<Backup>();
    wait_for(&backups, "everything", MINUTE, |backup| {
        backup.phase() == BackupPhase::Completed
    })
    .await?;
    let policy = json!({"apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy",
        "metadata": {"name": "all"}, "spec": {"mode": "Enforce", "namespaces": {"include": ["nowhere"]}}});
    for env in [old, new] {
        env.cluster.apply(&policy.to_string())?;
        available(env, LocationPhase::Available, "uses this location too").await?;
        let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
        wait_for(&policies, "all", MINUTE, |policy| {
            let conditions = policy.status.iter().flat_map(|status| &status.conditions);
            let mut shared = conditions.filter(|one| one.type_ == "LocationShared");
            shared.any(|one| one.status == "True" && one.reason == "OtherCluster")
        })
        .await?;
        let doctor = Jackline::new(env)?.output(&["doctor"])?;
        let said = String::from_utf8_lossy(&doctor.stdout);
        ensure!(said.contains("uses this location too"), "{said}");
    }

    patch_location(new, &json!({"backupSyncPeriod": "2s"}))?;
    // Its time is over, and its cluster alone deletes it. The other sees it come and go.
    back_up(
        old,
        "short",
        json!({"includedNamespaces": ["shop"], "ttl": "45s"}),
    )
    .await?;
    wait_for(&new.api::<Backup>(), "short", MINUTE, |_| true).await?;
    let deletions = async |env: &Env| {
        let kind = env.api::<DeleteBackupRequest>();
        anyhow::Ok(kind.list(&Default::default()).await?.items.len())
    };
    until("its own cluster deletes it", 3 * MINUTE, async || {
        ensure!(deletions(new).await? == 0, "the other cluster deletes it");
        let left = old.api::<Backup>().get_opt("short").await?;
        Ok(left.is_none().then_some(()))
    })
    .await?;
    until("it is gone in the other too", 2 * MINUTE, async || {
        let left = new.api::<Backup>().get_opt("short").await?;
        Ok(left.is_none().then_some(()))
    })
    .await?;
    ensure!(new.api::<Backup>().get_opt("everything").await?.is_some());
    let repositories = new
        .api::<BackupRepository>()
        .list(&Default::default())
        .await?;
    for repository in repositories {
        let status = repository.status.clone().unwrap_or_default();
        ensure!(status.last_maintenance_time.is_none(), "{repository:?}");
    }
    Ok(())
}

/// The new cluster works in the repository of the old one, which reads a volume meanwhile: its lock stays, a prune waits for it, its data
/// is kept, and what is over in the one is left to it by the other.
async fn neither_touches_what_is_the_other_s(old: &Env, new: &Env, proxy: &Proxy) -> Result<()> {
    let s3 = new.cluster.s3();
    let restic = Restic::new(s3, BUCKET, "shop", &old.repository_password().await?);
    let before = restic.snapshots()?;
    new.cluster.apply(include_str!("disaster-other.yaml"))?;
    until("the pod runs", 2 * MINUTE, async || {
        Ok((new.ready_pods("shop", "app=other").await?.len() == 1).then_some(()))
    })
    .await?;
    patch_location(old, &json!({"backupSyncPeriod": "2s"}))?;
    let spec = json!({"includedNamespaces": ["shop"], "ttl": "75s"});
    back_up(new, "of-new", spec).await?;
    ensure!(new.volumes_of("of-new").await?.len() == 1);
    ensure!(restic.snapshots()?.len() == before.len() + 1);
    wait_for(&old.api::<Backup>(), "of-new", MINUTE, |_| true).await?;

    // Nobody deletes what is over while its own cluster does not.
    deploy::scale(&new.cluster, 0)?;
    let expires = new.api::<Backup>().get("of-new").await?.status;
    let expires = expires.and_then(|status| status.expiration);
    let left = expires
        .context("an end")?
        .0
        .duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default() + MINUTE / 6).await;
    ensure!(old.api::<Backup>().get_opt("of-new").await?.is_some());
    let requests = old.api::<DeleteBackupRequest>();
    ensure!(requests.list(&Default::default()).await?.items.is_empty());
    ensure!(restic.snapshots()?.len() == before.len() + 1);

    // The old cluster reads, and its lock lies there. The new one forgets beside it, and has its prune wait.
    let fill = "head -c 3000000 /dev/urandom > /data/more";
    old.cluster.exec("shop", "db-0", &["sh", "-c", fill])?;
    let hold = proxy.hold(&["PUT", "/restic/shop/data/"], When::Before);
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": ["shop"]}))?;
    old.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("of-old", spec))
        .await?;
    hold.arrived().await;
    let holders = holders_of(&restic)?;
    ensure!(!holders.is_empty());
    let often = json!({"spec": {"maintenanceFrequency": "1s"}}).to_string();
    let repository = ["backuprepository", "shop-default-restic", "--type=merge"];
    new.cluster.kubectl(
        [
            &["-n", NAMESPACE, "patch"][..],
            &repository,
            &["-p", &often],
        ]
        .concat(),
    )?;
    deploy::scale(&new.cluster, 2)?;
    wait_gone(&new.api::<Backup>(), "of-new", MINUTE).await?;
    until("a prune has begun", MINUTE, async || {
        let running = new.ready_pods(NAMESPACE, "velero.io/repo-name").await?;
        Ok((!running.is_empty()).then_some(()))
    })
    .await?;
    tokio::time::sleep(MINUTE / 6).await;
    let now = holders_of(&restic)?;
    ensure!(holders.is_subset(&now), "{holders:?} {now:?}");
    ensure!(maintained(new).await?.is_none());
    drop(hold);
    old.backup_completed("of-old", 2 * MINUTE).await?;
    until("the prune is done", 2 * MINUTE, async || {
        Ok(maintained(new).await?.map(|_| ()))
    })
    .await?;
    until("the old cluster sees it go", MINUTE, async || {
        let left = old.api::<Backup>().get_opt("of-new").await?;
        Ok(left.is_none().then_some(()))
    })
    .await?;
    ensure!(old.api::<Backup>().get_opt("everything").await?.is_some());
    let after = restic.snapshots()?;
    ensure!(before.iter().all(|one| after.contains(one)), "{after:?}");
    ensure!(after.len() == before.len() + old.volumes_of("of-old").await?.len());
    restic.check()?;

    let namespaces: Api<Namespace> = Api::all(new.cluster.client());
    namespaces.delete("shop", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "shop", 2 * MINUTE).await
}

/// Who holds locks that others share. A lock that is refreshed is another file of the same holder.
fn holders_of(restic: &Restic) -> Result<BTreeSet<String>> {
    let mut holders = BTreeSet::new();
    for lock in restic.locks()? {
        // One that is refreshed, or given up by who waits, may be gone by now.
        let Ok(lock) = restic.run(&["cat", "lock", &lock, "--no-lock"]) else {
            continue;
        };
        let lock: Value = serde_json::from_str(&lock)?;
        if lock["exclusive"] != true {
            holders.insert(format!("{} {}", lock["hostname"], lock["username"]));
        }
    }
    Ok(holders)
}

/// When the new cluster has pruned the repository that both use.
async fn maintained(env: &Env) -> Result<Option<Time>> {
    let repositories = env.api::<BackupRepository>();
    let status = repositories.get("shop-default-restic").await?.status;
    Ok(status.and_then(|status| status.last_maintenance_time))
}

async fn restored(new: &Env, objects_before: &[Value], data_before: &[String]) -> Result<()> {
    let spec = RestoreSpec {
        backup_name: Some("everything".to_owned()),
        ..RestoreSpec::default()
    };
    let restores = new.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new("back", spec))
        .await?;
    let restore = new.restore_ended("back", 3 * MINUTE).await?;
    let status = restore.status.clone().context("a status")?;
    let said = new.packed("restores/back/restore-back-results.gz").await?;
    ensure!(
        status.phase == Some(RestorePhase::Completed),
        "{status:?} {said:#}"
    );
    let objects = objects(new)?;
    for (before, now) in objects_before.iter().zip(&objects) {
        ensure!(before == now, "before: {before:#}\nnow: {now:#}");
    }
    ensure!(data(new).await? == data_before);
    // The new cluster goes on where the old one was.
    back_up(new, "after", json!({"includedNamespaces": ["shop"]})).await?;
    let made = new.volumes_of("after").await?;
    ensure!(made.len() == 2, "{made:?}");
    Ok(())
}
