//! Velero's client, unmodified, does everything against Jackline that users do with it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::label;
use jackline_crds::velero::{
    Backup, BackupStorageLocation, DownloadPhase, DownloadRequest, Restore, Schedule,
    VolumeSnapshotLocation,
};
use jackline_e2e::{Env, Velero, guide, until, wait_for, wait_gone};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const WORKLOADS: &str = include_str!("../demo/workloads.yaml");
const INSTALL: &str = include_str!("../../../docs/how-to/install.md");
const SHOP: &str = "nginx-example";

#[tokio::test(flavor = "multi_thread")]
async fn velero_s_client_finds_what_it_knows() -> Result<()> {
    let env = Env::up("client").await?;
    let velero = Velero::new(&env).await?;
    everything(&env, &velero).await?;
    downloads(&env).await?;
    snapshot_locations(&env, &velero).await?;
    plugins(&velero)?;
    debug(&velero)?;
    uninstall(&env, &velero).await?;
    env.cluster.down()
}

/// As Velero's charts left them: fields, phases and columns of later releases are not there.
#[tokio::test(flavor = "multi_thread")]
async fn it_does_so_on_the_definitions_of_velero_1_14_to_1_16() -> Result<()> {
    let env = Env::up("client-definitions").await?;
    let velero = Velero::new(&env).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(env.cluster.client());
    for release in ["v1.14.1", "v1.15.2", "v1.16.2"] {
        let source = jackline_test_cluster::velero_source(release)?.join("config/crd");
        for version in ["v1/bases", "v2alpha1/bases"] {
            let files = source.join(version);
            env.cluster
                .kubectl(["replace".as_ref(), "-f".as_ref(), files.as_os_str()])?;
        }
        everything(&env, &velero).await.context(release)?;
        let crd = crds.get("podvolumebackups.velero.io").await?;
        let schema = serde_json::to_string(&crd.spec.versions)?;
        ensure!(!schema.contains("incrementalBytes"), "{schema}");
        velero.run("restore delete --all --confirm")?;
        let namespaces: Api<Namespace> = Api::all(env.cluster.client());
        for name in [SHOP, "shop-again"] {
            namespaces.delete(name, &DeleteParams::default()).await?;
            wait_gone(&namespaces, name, 2 * MINUTE).await?;
        }
    }
    removal(&env, &velero).await?;
    env.cluster.down()
}

async fn everything(env: &Env, velero: &Velero) -> Result<()> {
    velero.says(
        "version",
        &[
            "Client: Version: v1.18.0",
            "Server: Version: v1.16.2+jackline.",
        ],
    )?;
    velero.says("plugin get", &["velero.io/aws ObjectStore"])?;
    locations(env, velero).await?;
    workloads(env).await?;
    backups(env, velero).await?;
    restores(env, velero).await?;
    schedules(env, velero).await?;
    pausing(env, velero).await?;
    deletions(env, velero).await
}

async fn locations(env: &Env, velero: &Velero) -> Result<()> {
    until("the location is available", MINUTE, async || {
        let said = velero.run("backup-location get")?;
        Ok(said.contains("Available").then_some(()))
    })
    .await?;
    velero.says(
        "backup-location get",
        &[
            "NAME PROVIDER BUCKET/PREFIX PHASE LAST VALIDATED ACCESS MODE DEFAULT",
            "default aws velero Available",
            "ReadWrite true",
        ],
    )?;
    let s3 = env.cluster.s3();
    velero.run(&format!(
        "backup-location create second --provider aws --bucket velero --prefix second \
         --config region={},s3Url={},s3ForcePathStyle=true --access-mode ReadOnly \
         --credential cloud-credentials=cloud",
        s3.region, s3.endpoint
    ))?;
    until("the second location is available", MINUTE, async || {
        let said = velero.run("backup-location get second")?;
        Ok((said.contains("Available") && said.contains("ReadOnly")).then_some(()))
    })
    .await?;
    velero.run("backup-location set default --default=false")?;
    let locations = env.api::<BackupStorageLocation>();
    let is_default =
        |wanted| move |location: &BackupStorageLocation| location.spec.default == wanted;
    wait_for(&locations, "default", MINUTE, is_default(false)).await?;
    velero.run("backup-location set second --default")?;
    wait_for(&locations, "second", MINUTE, is_default(true)).await?;
    velero.run("backup-location set second --default=false")?;
    velero.run("backup-location set default --default")?;
    wait_for(&locations, "default", MINUTE, is_default(true)).await?;
    velero.run("backup-location delete second --confirm")?;
    wait_gone(&locations, "second", MINUTE).await
}

async fn workloads(env: &Env) -> Result<()> {
    env.cluster.apply(WORKLOADS)?;
    until("everything runs", 2 * MINUTE, async || {
        let nginx = env.ready_pods(SHOP, "app=nginx").await?;
        let db = env.ready_pods(SHOP, "app=db").await?;
        Ok((nginx.len() == 2 && db.len() == 1).then_some(()))
    })
    .await
}

async fn backups(env: &Env, velero: &Velero) -> Result<()> {
    let said = velero.run(&format!(
        "backup create one --include-namespaces {SHOP} --default-volumes-to-fs-backup \
         --snapshot-volumes=false --ttl 24h --labels team=shop \
         --ordered-resources pods={SHOP}/db-0 --wait"
    ))?;
    ensure!(
        said.contains("Backup completed with status: Completed"),
        "{said}"
    );
    let backup = env.api::<Backup>().get("one").await?;
    ensure!(backup.metadata.labels.context("labels")?["team"] == "shop");
    velero.says(
        "backup get",
        &[
            "NAME STATUS ERRORS WARNINGS CREATED EXPIRES STORAGE LOCATION QUEUE POSITION SELECTOR",
            "one Completed 0 0",
            "23h default",
        ],
    )?;
    velero.says("get backups one", &["one Completed 0 0"])?;
    velero.says(
        "backup get -l team=shop -o json",
        &["\"name\": \"one\"", "\"phase\": \"Completed\""],
    )?;
    velero.says(
        "backup describe one --details",
        &[
            "Name: one",
            "Phase: Completed",
            "Namespaces: Included: nginx-example",
            "Storage Location: default",
            "TTL: 24h0m0s",
            "Backup Format Version: 1.1.0",
            "Resource List:",
            "apps/v1/StatefulSet: - nginx-example/db",
            "Pod Volume Backups - restic:",
            "Completed: nginx-example/db-0: cache (size: 4",
        ],
    )?;
    let log = velero.run("backup logs one")?;
    ensure!(log.contains("Retrieved 3 items"), "{log}");
    ensure!(log.contains("Backed up a total of"), "{log}");
    velero.run("backup download one --force")?;
    let tarball = velero.home().join("one-data.tar.gz");
    let listed = Command::new("tar").arg("-tzf").arg(&tarball).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(
        listed.contains("resources/pods/namespaces/nginx-example/db-0.json"),
        "{listed}"
    );
    velero.says("repo get", &["NAME STATUS LAST MAINTENANCE", "Ready"])?;
    Ok(())
}

/// What cannot be downloaded is said, and answers do not stay for ever.
async fn downloads(env: &Env) -> Result<()> {
    let requests = env.api::<DownloadRequest>();
    let target = json!({"target": {"kind": "BackupLog", "name": "nobody"}});
    let request = DownloadRequest::new("nothing", serde_json::from_value(target)?);
    requests.create(&PostParams::default(), &request).await?;
    let failed = |request: &DownloadRequest| request.phase() == DownloadPhase::Failed;
    let request = wait_for(&requests, "nothing", MINUTE, failed).await?;
    let status = request.status.context("a status")?;
    ensure!(status.message.as_deref() == Some("backup nobody not found"));
    ensure!(status.download_url.is_none() && status.expiration.is_some());
    // As if its time had come.
    let past = json!({"status": {"expiration": "2020-01-01T00:00:00Z"}});
    requests
        .patch("nothing", &PatchParams::default(), &Patch::Merge(past))
        .await?;
    wait_gone(&requests, "nothing", MINUTE).await
}

async fn restores(env: &Env, velero: &Velero) -> Result<()> {
    let said = velero.run(&format!(
        "restore create back --from-backup one --namespace-mappings {SHOP}:shop-again \
         --exclude-resources services --wait"
    ))?;
    ensure!(
        said.contains("Restore completed with status: Completed"),
        "{said}"
    );
    velero.says(
        "restore get",
        &[
            "NAME BACKUP STATUS STARTED COMPLETED ERRORS WARNINGS CREATED SELECTOR",
            "back one Completed",
        ],
    )?;
    velero.says(
        "restore describe back --details",
        &[
            "Name: back",
            "Phase: Completed",
            "Backup: one",
            "Namespace mappings: nginx-example=shop-again",
            "restic Restores:",
            "Completed: shop-again/db-0: cache (size: 4), data",
            "Resource List:",
            "v1/ConfigMap: - shop-again/greeting(created)",
        ],
    )?;
    let log = velero.run("restore logs back")?;
    ensure!(log.contains("shop-again"), "{log}");
    until("the copy runs", MINUTE, async || {
        Ok((env.ready_pods("shop-again", "app=db").await?.len() == 1).then_some(()))
    })
    .await?;
    let services = env.api_in::<Service>("shop-again");
    ensure!(services.get_opt("nginx").await?.is_none());
    velero.run("restore delete back --confirm")?;
    wait_gone(&env.api::<Restore>(), "back", MINUTE).await
}

async fn schedules(env: &Env, velero: &Velero) -> Result<()> {
    let schedules = env.api::<Schedule>();
    velero.run(&format!(
        "schedule create nightly --schedule=@daily --include-namespaces {SHOP} --ttl 72h"
    ))?;
    until("the schedule is enabled", MINUTE, async || {
        let said = velero.run("schedule get nightly")?;
        Ok(said.contains("Enabled").then_some(()))
    })
    .await?;
    velero.says(
        "schedule describe nightly",
        &[
            "Name: nightly",
            "Phase: Enabled",
            "Schedule: @daily",
            "TTL: 72h0m0s",
        ],
    )?;
    velero.run("schedule pause nightly")?;
    velero.says("schedule get nightly", &["@daily", "true"])?;
    velero.run("schedule unpause nightly")?;
    ensure!(!schedules.get("nightly").await?.spec.paused);
    for name in ["two", "three"] {
        // Which is newer, times tell in seconds.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let said = velero.run(&format!(
            "backup create {name} --from-schedule nightly --wait"
        ))?;
        ensure!(
            said.contains("Backup completed with status: Completed"),
            "{said}"
        );
    }
    // Younger than what the schedule has made, and none of its own.
    velero.run(&format!(
        "backup create four --include-namespaces {SHOP} --wait"
    ))?;
    let said = velero.run(
        "restore create newest --from-schedule nightly --existing-resource-policy=update --wait",
    )?;
    ensure!(
        said.contains("Restore completed with status: Completed"),
        "{said}"
    );
    velero.says("restore get newest", &["newest three Completed"])?;
    velero.run("schedule delete nightly --confirm")?;
    wait_gone(&schedules, "nightly", MINUTE).await
}

async fn pausing(env: &Env, velero: &Velero) -> Result<()> {
    let often = "@every 3s";
    let flags = ["--include-namespaces", SHOP, "--schedule", often];
    velero.call(&[&["schedule", "create", "often"], &flags[..]].concat())?;
    let backups = env.api::<Backup>();
    let of_it = ListParams::default().labels(&format!("{}=often", label::SCHEDULE_NAME));
    let more_than = async |count: usize| {
        until("there is another backup", MINUTE, async || {
            let made = backups.list(&of_it).await?.items.len();
            Ok((made > count).then_some(made))
        })
        .await
    };
    more_than(0).await?;
    velero.run("schedule pause often")?;
    // One that was about to be made when the word came.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let made = backups.list(&of_it).await?.items.len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let now = backups.list(&of_it).await?.items.len();
    ensure!(now == made, "{now} backups, {made} when it was paused");
    velero.run("schedule unpause often")?;
    more_than(made).await?;
    velero.run("schedule delete often --confirm")?;
    wait_gone(&env.api::<Schedule>(), "often", MINUTE).await
}

async fn deletions(env: &Env, velero: &Velero) -> Result<()> {
    velero.run("backup delete one two --confirm")?;
    for name in ["one", "two"] {
        wait_gone(&env.api::<Backup>(), name, MINUTE).await?;
    }
    ensure!(env.api::<Backup>().get_opt("three").await?.is_some());
    velero.run("backup delete --all --confirm")?;
    until("no backup is left", MINUTE, async || {
        let left = env.api::<Backup>().list(&ListParams::default()).await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await?;
    let left = env.cluster.s3().list("velero", "backups/").await?;
    ensure!(left.is_empty(), "{left:?}");
    velero.says("backup get", &[])?;
    Ok(())
}

/// They are kept, and nothing uses them.
async fn snapshot_locations(env: &Env, velero: &Velero) -> Result<()> {
    velero.run("snapshot-location create disks --provider aws --config region=eu-central-1")?;
    velero.says("snapshot-location get", &["NAME PROVIDER", "disks aws"])?;
    velero.run("snapshot-location set disks --credential cloud-credentials=cloud")?;
    let kept = env.api::<VolumeSnapshotLocation>().get("disks").await?;
    ensure!(
        kept.spec
            .credential
            .is_some_and(|secret| secret.key == "cloud")
    );
    let said = velero.run(&format!(
        "backup create last --include-namespaces {SHOP} --volume-snapshot-locations disks --wait"
    ))?;
    ensure!(
        said.contains("Backup completed with status: Completed"),
        "{said}"
    );
    Ok(())
}

fn plugins(velero: &Velero) -> Result<()> {
    for command in [
        "plugin add velero/velero-plugin-for-aws:v1.14.0 --confirm",
        "plugin remove velero/velero-plugin-for-aws:v1.14.0",
    ] {
        let said = velero.run(command).err().context(command)?.to_string();
        ensure!(said.contains("Velero deployment not found"), "{said}");
    }
    Ok(())
}

/// What people attach when they ask for help.
fn debug(velero: &Velero) -> Result<()> {
    velero.run("debug --backup last --output bundle.tar.gz")?;
    let bundle = velero.home().join("bundle.tar.gz");
    let listed = Command::new("tar").arg("-tzf").arg(&bundle).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    for part in [
        "jackline-controller-",
        "node-agent-",
        "backupstoragelocations",
        "backup_describe_last.txt",
        "backup_last.log",
        "version.txt",
    ] {
        ensure!(listed.contains(part), "{part} is missing in\n{listed}");
    }
    Ok(())
}

/// Everything of Velero's goes, and what lies in the bucket does not.
async fn uninstall(env: &Env, velero: &Velero) -> Result<()> {
    velero.run("uninstall --force")?;
    gone(env, "velero.io").await?;
    let crds: Api<CustomResourceDefinition> = Api::all(env.cluster.client());
    let policies = crds.get_opt("clusterbackuppolicies.jackline.dev").await?;
    ensure!(policies.is_some());
    let left = env.cluster.s3().list("velero", "backups/last/").await?;
    ensure!(!left.is_empty());
    Ok(())
}

/// As the guide says, everything goes but the backups.
async fn removal(env: &Env, velero: &Velero) -> Result<()> {
    let policy = json!({"apiVersion": "jackline.dev/v1alpha1", "kind": "ClusterBackupPolicy",
        "metadata": {"name": "everything"}, "spec": {"deletionPolicy": "Delete"}});
    env.cluster.apply(&policy.to_string())?;
    for command in [
        "backup create last --include-namespaces default --wait",
        "restore create of-last --from-backup last --wait",
    ] {
        let said = velero.run(command)?;
        ensure!(said.contains("completed with status: Completed"), "{said}");
    }
    let s3 = env.cluster.s3();
    ensure!(!s3.list("velero", "restores/of-last/").await?.is_empty());
    guide::follow(env, velero, INSTALL, "Remove")?;
    gone(env, "velero.io").await?;
    gone(env, "jackline.dev").await?;
    ensure!(s3.list("velero", "restores/of-last/").await?.is_empty());
    ensure!(!s3.list("velero", "backups/last/").await?.is_empty());
    Ok(())
}

/// Waits until the namespace and the definitions of a group are gone.
async fn gone(env: &Env, group: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    wait_gone(&namespaces, "velero", MINUTE).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(env.cluster.client());
    until("the definitions are gone", MINUTE, async || {
        let left = crds.list_metadata(&ListParams::default()).await?.items;
        let mut left = left.iter().map(ResourceExt::name_any);
        Ok((!left.any(|name| name.ends_with(group))).then_some(()))
    })
    .await
}
