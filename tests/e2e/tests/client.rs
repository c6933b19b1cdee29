//! Velero's client, unmodified, does everything against Jackline that users do with it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::{annotation, label};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, BackupStorageLocation, DownloadPhase, DownloadRequest,
    PodVolumePhase, PodVolumeRestore, Restore, Schedule, VolumeSnapshotLocation,
};
use jackline_e2e::{Env, NAMESPACE, Restic, Velero, guide, until, wait_for, wait_gone};
use jackline_faults::When;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

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
        maintenance(&env).await.context(release)?;
        velero.run("restore delete --all --confirm")?;
        let namespaces: Api<Namespace> = Api::all(env.cluster.client());
        for name in [SHOP, "shop-again"] {
            namespaces.delete(name, &DeleteParams::default()).await?;
            wait_gone(&namespaces, name, 2 * MINUTE).await?;
        }
    }
    a_limit_stops_what_cannot_be_canceled(&env).await?;
    removal(&env, &velero).await?;
    env.cluster.down()
}

/// What is read for too long ends, and the agent with it, though its definition knows no `cancel`.
async fn a_limit_stops_what_cannot_be_canceled(env: &Env) -> Result<()> {
    const SLOW: &str = "slow";
    let crds: Api<CustomResourceDefinition> = Api::all(env.cluster.client());
    let crd = crds.get("podvolumebackups.velero.io").await?;
    let schema = serde_json::to_string(&crd.spec.versions)?;
    ensure!(!schema.contains("\"cancel\""), "{schema}");
    env.cluster.apply(include_str!("progress.yaml"))?;
    let proxy = env.proxied_bucket(SLOW).await?;
    for namespace in ["still", "quick"] {
        until("the pod runs", 2 * MINUTE, async || {
            Ok(env.ready_pods(namespace, "app=box").await?.pop())
        })
        .await?;
        let fill = ["sh", "-c", "seq 100000 > /data/numbers"];
        env.cluster.exec(namespace, "box", &fill)?;
    }
    let hold = proxy.hold(&["PUT", "/restic/still/data/"], When::Before);
    let spec = json!({"includedNamespaces": ["still", "quick"], "storageLocation": SLOW});
    let mut backup = Backup::new("limited", serde_json::from_value(spec)?);
    let limit = (annotation::POD_VOLUME_TIMEOUT.to_owned(), "40s".to_owned());
    backup.annotations_mut().extend([limit]);
    let backups = env.api::<Backup>();
    backups.create(&PostParams::default(), &backup).await?;
    let ended = env.backup_ended("limited", 2 * MINUTE).await?;
    ensure!(ended.phase() == BackupPhase::PartiallyFailed, "{ended:?}");
    let late = "timed out waiting for all PodVolumeBackups to complete";
    let password = env.repository_password().await?;
    let restic = Restic::new(env.cluster.s3(), SLOW, "still", &password);
    until("the agent has let go", MINUTE, async || {
        Ok(restic.locks()?.is_empty().then_some(()))
    })
    .await?;
    drop(hold);
    // Nobody goes on with it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(restic.snapshots()?.is_empty());
    let volumes = env.volumes_of("limited").await?;
    let of = |namespace: &str| {
        let mut volumes = volumes.iter();
        let found = volumes.find(|volume| volume.spec.pod.namespace.as_deref() == Some(namespace));
        let status = found.and_then(|volume| volume.status.clone());
        status.with_context(|| format!("no volume of {namespace}: {volumes:?}"))
    };
    let (still, quick) = (of("still")?, of("quick")?);
    ensure!(quick.phase == Some(PodVolumePhase::Completed), "{quick:?}");
    ensure!(
        still.phase == Some(PodVolumePhase::Failed)
            && still.message.as_deref() == Some(late)
            && still.snapshot_id.is_none(),
        "{still:?}"
    );
    Ok(())
}

/// One goes after the other, though 1.14 and 1.15 have no field in which their outcomes are kept.
async fn maintenance(env: &Env) -> Result<()> {
    let repositories = env.api::<BackupRepository>();
    let jobs = env.api_in::<Job>(NAMESPACE);
    let labels = ListParams::default().labels(label::REPOSITORY_NAME);
    let params = PatchParams::default();
    let succeeded = async || -> Result<BTreeSet<String>> {
        let jobs = jobs.list(&labels).await?.items;
        let over = |job: &&Job| {
            job.status
                .as_ref()
                .is_some_and(|it| it.succeeded == Some(1))
        };
        Ok(jobs
            .iter()
            .filter(over)
            .map(ResourceExt::name_any)
            .collect())
    };
    let change = async |often: &str, forgotten: Value| {
        let patch = json!({"metadata": {"annotations": {(annotation::FORGOTTEN_AT): forgotten}},
            "spec": {"maintenanceFrequency": often}});
        let name = "nginx-example-default-restic";
        repositories
            .patch(name, &params, &Patch::Merge(patch))
            .await
    };
    for _ in 0..2 {
        let before = succeeded().await?;
        change("1s", json!(jiff::Timestamp::now().to_string())).await?;
        until("the repository is maintained", 2 * MINUTE, async || {
            Ok((!succeeded().await?.is_subset(&before)).then_some(()))
        })
        .await?;
    }
    change("168h", Value::Null).await?;
    Ok(())
}

async fn everything(env: &Env, velero: &Velero) -> Result<()> {
    // The client waits for 5 s, and definitions that have just been replaced may make the server watch anew.
    until("the server says what it is", MINUTE, async || {
        let version = [
            "Client: Version: v1.18.0",
            "Server: Version: v1.16.2+jackline.",
        ];
        velero.says("version", &version)?;
        velero.says("plugin get", &["velero.io/aws ObjectStore"])?;
        Ok(Some(()))
    })
    .await?;
    locations(env, velero).await?;
    workloads(env).await?;
    backups(env, velero).await?;
    restores(env, velero).await?;
    schedules(env, velero).await?;
    templates(env, velero).await?;
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
         --credential cloud-credentials=cloud --labels tier=cold \
         --backup-sync-period 2m --validation-frequency 5s",
        s3.region, s3.endpoint
    ))?;
    let locations = env.api::<BackupStorageLocation>();
    let second = locations.get("second").await?;
    ensure!(second.labels().get("tier").map(String::as_str) == Some("cold"));
    holds(
        &serde_json::to_value(&second.spec)?,
        &json!({"backupSyncPeriod": "2m0s", "validationFrequency": "5s", "accessMode": "ReadOnly"}),
    )?;
    until("the second location is available", MINUTE, async || {
        let said = velero.run("backup-location get second")?;
        Ok((said.contains("Available") && said.contains("ReadOnly")).then_some(()))
    })
    .await?;
    velero.run("backup-location set default --default=false")?;
    let is_default =
        |wanted| move |location: &BackupStorageLocation| location.spec.default == wanted;
    wait_for(&locations, "default", MINUTE, is_default(false)).await?;
    velero.run("backup-location set second --default")?;
    wait_for(&locations, "second", MINUTE, is_default(true)).await?;
    velero.says("backup-location get --default", &["second aws"])?;
    velero.run("backup-location set second --default=false")?;
    third(&locations, velero).await?;
    velero.run("backup-location set default --default")?;
    wait_for(&locations, "default", MINUTE, is_default(true)).await?;
    velero.run("backup-location delete second --confirm")?;
    wait_gone(&locations, "second", MINUTE).await
}

/// One that is the default from the beginning. Nobody answers at its address.
async fn third(locations: &Api<BackupStorageLocation>, velero: &Velero) -> Result<()> {
    std::fs::write(velero.home().join("ca.pem"), "no certificate")?;
    velero.run(
        "backup-location create third --provider aws --bucket none --default --cacert ca.pem \
         --config region=x,s3Url=https://127.0.0.1:1 --backup-sync-period 0s",
    )?;
    let third = locations.get("third").await?;
    holds(
        &serde_json::to_value(&third.spec)?,
        &json!({"default": true, "backupSyncPeriod": "0s"}),
    )?;
    let authority = third.spec.object_storage.ca_cert;
    ensure!(authority.is_some_and(|authority| authority.0 == "bm8gY2VydGlmaWNhdGU="));
    velero.run("backup-location delete third --confirm")?;
    wait_gone(locations, "third", MINUTE).await
}

/// Compares what was asked for with what an object has of it.
fn holds(object: &Value, wanted: &Value) -> Result<()> {
    for (field, wanted) in wanted.as_object().context("fields")? {
        let found = &object[field];
        ensure!(found == wanted, "{field}: {found}, wanted: {wanted}");
    }
    Ok(())
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
         --snapshot-volumes=false --ttl 24h --labels team=shop --annotations note=first \
         --storage-location default \
         --ordered-resources pods={SHOP}/db-0 --wait"
    ))?;
    ensure!(
        said.contains("Backup completed with status: Completed"),
        "{said}"
    );
    let backup = env.api::<Backup>().get("one").await?;
    ensure!(backup.labels().get("team").map(String::as_str) == Some("shop"));
    ensure!(backup.annotations().get("note").map(String::as_str) == Some("first"));
    ensure!(backup.spec.storage_location.as_deref() == Some("default"));
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
    velero.says(
        "repo get",
        &[
            "NAME STATUS LAST MAINTENANCE",
            "nginx-example-default-restic Ready",
        ],
    )?;
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
         --exclude-resources services --write-sparse-files --annotations note=copy --wait"
    ))?;
    ensure!(
        said.contains("Restore completed with status: Completed"),
        "{said}"
    );
    let back = env.api::<Restore>().get("back").await?;
    ensure!(back.annotations().get("note").map(String::as_str) == Some("copy"));
    let of_it = ListParams::default().labels(&format!("{}=back", label::RESTORE_NAME));
    let volumes = env.api::<PodVolumeRestore>().list(&of_it).await?.items;
    let sparse = |volume: &PodVolumeRestore| {
        let settings = &volume.spec.uploader_settings;
        settings.get("WriteSparseFiles").map(String::as_str) == Some("true")
    };
    ensure!(
        !volumes.is_empty() && volumes.iter().all(sparse),
        "{volumes:?}"
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
    let two = env.api::<Backup>().get("two").await?;
    ensure!(two.labels().get(label::SCHEDULE_NAME).map(String::as_str) == Some("nightly"));
    let spec = serde_json::to_value(&two.spec)?;
    holds(
        &spec,
        &json!({"includedNamespaces": [SHOP], "ttl": "72h0m0s"}),
    )?;
    let status = two.status.context("a status")?;
    let (began, ends) = (status.start_timestamp, status.expiration);
    let kept = ends
        .context("an end")?
        .0
        .duration_since(began.context("a beginning")?.0);
    ensure!(kept.as_hours() == 72, "{kept}");
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
    careful(env, velero).await?;
    velero.run("schedule delete nightly --confirm")?;
    wait_gone(&schedules, "nightly", MINUTE).await
}

/// Of the newest backup, even a partial one. Everything is there already, so nothing is changed.
async fn careful(env: &Env, velero: &Velero) -> Result<()> {
    let from = "--from-schedule nightly --allow-partially-failed --include-cluster-resources=false \
                --status-include-resources deployments.apps --status-exclude-resources pods --wait";
    let selector = ["--or-selector", "app=nginx or app=db"];
    let arguments = ["restore", "create", "careful"].into_iter();
    let arguments = arguments.chain(from.split_whitespace()).chain(selector);
    let said = velero.call(&arguments.collect::<Vec<_>>())?;
    ensure!(
        said.contains("Restore completed with status: Completed"),
        "{said}"
    );
    let restore = env.api::<Restore>().get("careful").await?;
    holds(
        &serde_json::to_value(&restore.spec)?,
        &json!({"backupName": "three", "includeClusterResources": false,
            "orLabelSelectors": [{"matchLabels": {"app": "nginx"}}, {"matchLabels": {"app": "db"}}],
            "restoreStatus": {"includedResources": ["deployments.apps"], "excludedResources": ["pods"]}}),
    )
}

/// What every flag asks for is in the template.
async fn templates(env: &Env, velero: &Velero) -> Result<()> {
    let schedules = env.api::<Schedule>();
    velero.run(
        "schedule create narrow --schedule @yearly --paused --include-namespaces a,b --exclude-namespaces c \
         --include-resources pods,secrets --exclude-resources events --include-cluster-resources=false \
         --selector app=db --default-volumes-to-fs-backup --ordered-resources pods=a/one,a/two \
         --resource-policies-configmap rules --storage-location default --ttl 12h --labels team=shop",
    )?;
    let narrow = schedules.get("narrow").await?;
    ensure!(narrow.spec.paused && narrow.spec.use_owner_references_in_backup == Some(false));
    ensure!(narrow.labels().get("team").map(String::as_str) == Some("shop"));
    holds(
        &serde_json::to_value(&narrow.spec.template)?,
        &json!({"includedNamespaces": ["a", "b"], "excludedNamespaces": ["c"],
            "includedResources": ["pods", "secrets"], "excludedResources": ["events"], "includeClusterResources": false,
            "labelSelector": {"matchLabels": {"app": "db"}}, "defaultVolumesToFsBackup": true,
            "orderedResources": {"pods": "a/one,a/two"}, "resourcePolicy": {"kind": "configmap", "name": "rules"},
            "storageLocation": "default", "ttl": "12h0m0s"}),
    )?;
    let wide = "--schedule @yearly --use-owner-references-in-backup --skip-immediately=true \
                --include-cluster-scoped-resources storageclasses --exclude-cluster-scoped-resources nodes \
                --include-namespace-scoped-resources pods --exclude-namespace-scoped-resources events";
    let selector = ["--or-selector", "app=nginx or app=db"];
    let arguments = ["schedule", "create", "wide"].into_iter();
    let arguments = arguments.chain(wide.split_whitespace()).chain(selector);
    velero.call(&arguments.collect::<Vec<_>>())?;
    let skipped = async || {
        let fulfilled = |schedule: &Schedule| {
            let status = schedule.status.as_ref();
            let skipped = status.and_then(|status| status.last_skipped.as_ref());
            skipped.is_some() && schedule.spec.skip_immediately == Some(false)
        };
        let wide = wait_for(&schedules, "wide", MINUTE, fulfilled).await?;
        let status = wide.status.clone().context("a status")?;
        anyhow::Ok((wide, status.last_skipped))
    };
    let (wide, at_first) = skipped().await?;
    ensure!(wide.spec.use_owner_references_in_backup == Some(true));
    holds(
        &serde_json::to_value(&wide.spec.template)?,
        &json!({"includedClusterScopedResources": ["storageclasses"], "excludedClusterScopedResources": ["nodes"],
            "includedNamespaceScopedResources": ["pods"], "excludedNamespaceScopedResources": ["events"],
            "orLabelSelectors": [{"matchLabels": {"app": "nginx"}}, {"matchLabels": {"app": "db"}}]}),
    )?;
    velero.run("schedule pause wide --skip-immediately=false")?;
    ensure!(skipped().await?.1 == at_first);
    // Times are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    velero.run("schedule unpause wide --skip-immediately=true")?;
    until("it is skipped again", MINUTE, async || {
        let (wide, at) = skipped().await?;
        Ok((at != at_first && !wide.spec.paused).then_some(()))
    })
    .await?;
    velero.run("schedule delete narrow wide --confirm")?;
    for name in ["narrow", "wide"] {
        wait_gone(&schedules, name, MINUTE).await?;
    }
    Ok(())
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
    until("the schedule tells of it", MINUTE, async || {
        let said = velero.run("schedule describe often")?;
        let last = said.lines().find(|line| line.starts_with("Last Backup:"));
        Ok(last.is_some_and(|last| !last.contains('<')).then_some(()))
    })
    .await?;
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
    wait_gone(&env.api::<Schedule>(), "often", MINUTE).await?;
    // One in progress cannot be deleted.
    until("all backups have ended", 2 * MINUTE, async || {
        let all = backups.list(&ListParams::default()).await?.items;
        Ok(all
            .iter()
            .all(|one| one.phase().is_terminal())
            .then_some(()))
    })
    .await
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
    let said = velero.run("backup get")?;
    ensure!(said.lines().count() < 2, "{said}");
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
    velero.run("restore create of-last --from-backup last --wait")?;
    velero.run("debug --backup last --restore of-last --output bundle.tar.gz")?;
    let bundle = velero.home().join("bundle.tar.gz");
    let listed = Command::new("tar").arg("-tzf").arg(&bundle).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    for part in [
        "jackline-controller-",
        "node-agent-",
        "backupstoragelocations",
        "backup_describe_last.txt",
        "backup_last.log",
        "restore_describe_of-last.txt",
        "restore_of-last.log",
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
