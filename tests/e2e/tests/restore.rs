//! A bucket that a real Velero wrote is restored byte for byte, and backed up on top of; what must not be restored is not.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use jackline_crds::names::label;
use jackline_crds::velero::{
    Backup, BackupSpec, PodVolumeBackup, PodVolumePhase, PodVolumeRestore, Restore, RestorePhase,
    RestoreSpec,
};
use jackline_e2e::{BUCKET, Env, Tree, Velero, fixture, until, wait_for, wait_gone};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
/// What the files of a backup are called, after its name.
const TARBALL: &str = ".tar.gz";
const LIST: &str = "-podvolumebackups.json.gz";
const SECOND_S_LIST: &str = "backups/second/second-podvolumebackups.json.gz";

#[tokio::test(flavor = "multi_thread")]
async fn what_velero_wrote_comes_back() -> Result<()> {
    let env = Env::up("restore").await?;
    take_over(&env).await?;
    restored_byte_for_byte(&env).await?;
    backed_up_on_top(&env).await?;
    restored_into_other_namespaces(&env).await?;
    restored_again_over_what_runs(&env).await?;
    hostile_tarballs_are_refused(&env).await?;
    hostile_lists_harm_their_own_backup_alone(&env).await?;
    a_list_that_is_lost_takes_no_known_volume_along(&env).await?;
    workloads_alone_come_back_on_new_volumes(&env).await?;
    damage_is_named(&env).await?;
    deleted_restores_take_their_files_along(&env).await?;
    a_backup_of_velero_is_deleted(&env).await?;
    env.cluster.down()
}

/// Jackline gets Velero's bucket and password: the backups appear.
async fn take_over(env: &Env) -> Result<()> {
    fixture::adopt(env).await?;
    for name in ["first", "second"] {
        let backup = env.api::<Backup>().get(name).await?;
        ensure!(backup.spec.storage_location.as_deref() == Some("default"));
        let volumes = until("its volumes appear", MINUTE, async || {
            let volumes = env.volumes_of(name).await?;
            Ok((volumes.len() == 3).then_some(volumes))
        })
        .await?;
        for volume in volumes {
            ensure!(volume.labels().get(label::BACKUP_UID) == backup.metadata.uid.as_ref());
            ensure!(volume.owner_references()[0].uid == backup.uid().context("uid")?);
            ensure!(volume.phase() == PodVolumePhase::Completed);
        }
    }
    Ok(())
}

async fn restore(env: &Env, name: &str, spec: Value) -> Result<Restore> {
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new(name, spec))
        .await?;
    env.restore_ended(name, 3 * MINUTE).await
}

/// What the restore says in its results file.
async fn results(env: &Env, restore: &str) -> Result<Value> {
    env.packed(&format!("restores/{restore}/restore-{restore}-results.gz"))
        .await
}

async fn finished(env: &Env, restore: &Restore, want: RestorePhase) -> Result<Value> {
    let name = restore.name_any();
    let said = results(env, &name).await;
    ensure!(
        restore.phase() == want,
        "{name}: {:?}; {said:?}",
        restore.status
    );
    said
}

async fn volumes_of(env: &Env, restore: &str) -> Result<Vec<PodVolumeRestore>> {
    let selector = format!("{}={restore}", label::RESTORE_NAME);
    let list = env
        .api::<PodVolumeRestore>()
        .list(&ListParams::default().labels(&selector))
        .await?;
    Ok(list.items)
}

fn listing(name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(
        fixture::directory().join(format!("{name}.json")),
    )?)?)
}

/// The volume holds what the listing of the fixture says, and nothing of ours.
async fn same_as_listing(
    env: &Env,
    (namespace, pod, volume): (&str, &str, &str),
    backup: &str,
    part: &str,
) -> Result<()> {
    let directory = env.volume_dir(namespace, pod, volume).await?;
    until(".velero is gone from the volume", MINUTE, async || {
        Ok((!directory.join(".velero").exists()).then_some(()))
    })
    .await?;
    // The listings do not speak of the root.
    let own = [""];
    let want = Tree::from_listing(&listing(backup)?, part)?.without(&own);
    want.same_as(&Tree::read(&directory)?.without(&own))
        .with_context(|| format!("{namespace}/{pod} {volume} after restoring {backup}"))
}

async fn restored_byte_for_byte(env: &Env) -> Result<()> {
    // What the cluster's list has lost, the bucket's still has.
    let volumes = env.api::<PodVolumeBackup>();
    let lost = env.volumes_of("second").await?[0].name_any();
    volumes.delete(&lost, &DeleteParams::default()).await?;
    jackline_e2e::wait_gone(&volumes, &lost, MINUTE).await?;

    let begun = Instant::now();
    let back = restore(env, "back", json!({"backupName": "second"})).await?;
    let took = begun.elapsed();
    let said = finished(env, &back, RestorePhase::Completed).await?;
    ensure!(said == json!({"warnings": {}, "errors": {}}), "{said}");
    println!(
        "restore of 3 volumes: {:.1} s (Velero 1.14: 13.8 s)",
        took.as_secs_f64()
    );

    let nginx = until("both nginx pods are ready", MINUTE, async || {
        let pods = env.ready_pods("nginx-example", "app=nginx").await?;
        Ok((pods.len() == 2).then_some(pods))
    })
    .await?;
    db_is_back(env, "shop", "second").await?;
    same_as_listing(
        env,
        ("nginx-example", &nginx[0], "nginx-logs"),
        "second",
        "logs",
    )
    .await?;
    let cache = env.volume_dir("shop", "db-0", "cache").await?;
    ensure!(std::fs::read_to_string(cache.join("c"))? == "hot\n");

    objects_are_back(env).await?;
    every_pod_waited(env, "back").await
}

async fn objects_are_back(env: &Env) -> Result<()> {
    env.api_in::<Service>("nginx-example")
        .get("my-nginx")
        .await?;
    env.api_in::<Deployment>("nginx-example")
        .get("nginx-deployment")
        .await?;
    env.api_in::<StatefulSet>("shop").get("db").await?;
    let password = env.cluster.kubectl([
        "-n",
        "shop",
        "get",
        "secret",
        "creds",
        "-o",
        "jsonpath={.data.password}",
    ])?;
    ensure!(password == "bm90LWEtc2VjcmV0", "{password}");
    let namespace = Api::<Namespace>::all(env.cluster.client())
        .get("nginx-example")
        .await?;
    ensure!(
        namespace
            .labels()
            .get("app")
            .is_some_and(|value| value == "nginx")
    );
    let binding = Api::<ClusterRoleBinding>::all(env.cluster.client())
        .get("shop-reader")
        .await?;
    ensure!(
        binding
            .labels()
            .get(label::RESTORE_NAME)
            .is_some_and(|name| name == "back")
    );
    let claims = env.api_in::<PersistentVolumeClaim>("shop");
    let claim = claims.get("data-db-0").await?;
    let ancestor = claim.annotations().get(label::ANCESTOR_CLAIM_UID);
    ensure!(
        ancestor.is_some_and(|uid| uid == "7de7ec69-8b6e-406b-a6d4-179afe3ff610"),
        "{ancestor:?}"
    );
    let owners = |pod: &Pod| {
        pod.owner_references()
            .iter()
            .map(|o| o.kind.clone())
            .collect::<Vec<_>>()
    };
    until(
        "the restored pods are adopted, none is made anew",
        MINUTE,
        async || {
            let pods = env
                .api_in::<Pod>("nginx-example")
                .list(&ListParams::default())
                .await?
                .items;
            let db = env.api_in::<Pod>("shop").get("db-0").await?;
            let adopted = pods.iter().all(|pod| owners(pod) == ["ReplicaSet"])
                && owners(&db) == ["StatefulSet"];
            Ok((pods.len() == 2 && adopted).then_some(()))
        },
    )
    .await
}

/// No pod of the shared claim started, and no workload that would make one was there, before the data was.
async fn every_pod_waited(env: &Env, name: &str) -> Result<()> {
    let volumes = volumes_of(env, name).await?;
    ensure!(
        volumes.len() == 3,
        "one for each volume, one for a shared claim: {}",
        volumes.len()
    );
    let shared = volumes
        .iter()
        .find(|volume| volume.spec.volume == "nginx-logs")
        .context("nginx-logs")?;
    let status = shared.status.as_ref().context("status")?;
    let filled = status
        .completion_timestamp
        .as_ref()
        .context("completion time")?
        .0;
    let pods = env
        .api_in::<Pod>("nginx-example")
        .list(&ListParams::default())
        .await?
        .items;
    for pod in &pods {
        let spec = pod.spec.as_ref().context("spec")?;
        let waiter = spec
            .init_containers
            .as_ref()
            .and_then(|all| all.first())
            .context("no waiter")?;
        ensure!(waiter.name == "restore-wait", "{}", waiter.name);
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        let running = statuses.and_then(|all| all.first()?.state.as_ref()?.running.as_ref());
        let started = running
            .and_then(|r| r.started_at.as_ref())
            .context("not running")?
            .0;
        ensure!(
            started >= filled,
            "{} started {started}, the data came {filled}",
            pod.name_any()
        );
    }
    let sets = env
        .api_in::<ReplicaSet>("nginx-example")
        .list(&ListParams::default())
        .await?
        .items;
    for set in sets {
        let made = set
            .metadata
            .creation_timestamp
            .as_ref()
            .context("creation time")?
            .0;
        ensure!(
            made >= filled,
            "ReplicaSet {} was made {made}, the data came {filled}",
            set.name_any()
        );
    }
    until(
        "the agents are told that nobody waits",
        MINUTE,
        async || {
            let volumes = volumes_of(env, name).await?;
            let told = |volume: &PodVolumeRestore| {
                volume
                    .annotations()
                    .contains_key("jackline.dev/waiters-left")
            };
            Ok(volumes.iter().all(told).then_some(()))
        },
    )
    .await
}

/// A backup of what was restored finds its parents and moves almost nothing.
async fn backed_up_on_top(env: &Env) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({
        "includedNamespaces": ["nginx-example", "shop"], "storageLocation": "default"
    }))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("third", spec))
        .await?;
    let begun = Instant::now();
    env.backup_completed("third", 2 * MINUTE).await?;
    println!(
        "backup of 3 volumes: {:.1} s (Velero 1.14: 12.4 s)",
        begun.elapsed().as_secs_f64()
    );
    let mut sizes = BTreeMap::new();
    for volume in env.volumes_of("third").await? {
        let status = volume.status.clone().unwrap_or_default();
        let total = status.progress.map_or(0, |progress| progress.total_bytes);
        sizes.insert(
            volume.spec.volume.clone(),
            (total, status.incremental_bytes),
        );
    }
    println!("bytes (all, added) by volume: {sizes:?}");
    for (volume, least) in [("nginx-logs", 1_000_000), ("data", 3_000_000)] {
        let (total, added) = *sizes.get(volume).context("volume is missing")?;
        ensure!(total > least, "{volume}: {total}");
        ensure!(added < 100_000, "{volume}: {added} bytes were stored again");
    }
    for namespace in ["nginx-example", "shop"] {
        env.restic(namespace).await?.check()?;
    }
    Ok(())
}

/// Into other namespaces, with every controller killed in the middle: the next leader carries on.
async fn restored_into_other_namespaces(env: &Env) -> Result<()> {
    let spec: RestoreSpec = serde_json::from_value(json!({
        "backupName": "first",
        "includedNamespaces": ["nginx-example", "shop"],
        "namespaceMapping": {"nginx-example": "nginx-then", "shop": "shop-then"}
    }))?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new("then", spec))
        .await?;
    let begun = |restore: &Restore| restore.phase() == RestorePhase::InProgress;
    wait_for(&restores, "then", MINUTE, begun).await?;
    for pod in env
        .ready_pods("velero", "app.kubernetes.io/name=jackline-controller")
        .await?
    {
        env.cluster
            .kill_container("velero", &pod, "controller")
            .await?;
    }
    let then = env.restore_ended("then", 3 * MINUTE).await?;
    finished(env, &then, RestorePhase::Completed).await?;
    ensure!(volumes_of(env, "then").await?.len() == 3);
    db_is_back(env, "shop-then", "first").await?;
    let pod = until("an nginx pod is ready", MINUTE, async || {
        Ok(env.ready_pods("nginx-then", "app=nginx").await?.pop())
    })
    .await?;
    same_as_listing(env, ("nginx-then", &pod, "nginx-logs"), "first", "logs").await?;
    env.restic("shop").await?.check()
}

/// What runs is left alone, and that is said; no hook runs in it.
async fn restored_again_over_what_runs(env: &Env) -> Result<()> {
    let pods = env.api_in::<Pod>("shop");
    let before = pods.get("db-0").await?.uid();
    let data = env.volume_dir("shop", "db-0", "data").await?;
    let held = Tree::read(&data)?;
    let again = restore(
        env,
        "again",
        json!({
            "backupName": "first", "includedNamespaces": ["shop"],
            "hooks": {"resources": [{"name": "thaw", "postHooks": [{"exec": {"command": ["true"]}}]}]},
        }),
    )
    .await?;
    let said = finished(env, &again, RestorePhase::Completed).await?;
    let hooks = again.status.and_then(|status| status.hook_status);
    ensure!(hooks.is_some_and(|hooks| hooks.hooks_attempted == 0));
    ensure!(
        said["warnings"]["namespaces"]["shop"]
            .to_string()
            .contains("data-db-0"),
        "{said}"
    );
    ensure!(pods.get("db-0").await?.uid() == before);
    ensure!(volumes_of(env, "again").await?.is_empty());
    held.same_as(&Tree::read(&data)?)
}

/// Puts a backup into the bucket: these files, and what describes `first`, under another name.
async fn plant(
    env: &Env,
    name: &str,
    files: impl IntoIterator<Item = (&str, Vec<u8>)>,
) -> Result<()> {
    let s3 = env.cluster.s3();
    let original = s3.get(BUCKET, "backups/first/velero-backup.json").await?;
    let mut backup: Value = serde_json::from_slice(&original)?;
    backup["metadata"]["name"] = json!(name);
    for (file, body) in files {
        s3.put(BUCKET, &format!("backups/{name}/{name}{file}"), body)
            .await?;
    }
    let description = format!("backups/{name}/velero-backup.json");
    s3.put(BUCKET, &description, serde_json::to_vec(&backup)?)
        .await
}

/// And their restores leave a log that says so.
async fn hostile_tarballs_are_refused(env: &Env) -> Result<()> {
    let velero = Velero::new(env).await?;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("evil.json"), "{}")?;
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link"))?;
    let cases = [
        (
            "parent",
            "evil.json",
            "s,evil.json,resources/pods/../../../evil.json,",
        ),
        ("absolute", "evil.json", "s,evil.json,/tmp/evil.json,"),
        (
            "link",
            "link",
            "s,^link$,resources/pods/namespaces/a/link.json,",
        ),
    ];
    // A list that cannot be read, first in the alphabet, holds up none of them.
    let s3 = env.cluster.s3();
    let tarball = s3.get(BUCKET, "backups/first/first.tar.gz").await?;
    plant(env, "a", [(LIST, b"nonsense".to_vec()), (TARBALL, tarball)]).await?;
    for (name, file, transform) in cases {
        let tarball = directory.path().join(format!("{name}.tar.gz"));
        let made = Command::new("tar")
            .args([
                "--create",
                "--gzip",
                "--absolute-names",
                "--transform",
                transform,
                "--file",
            ])
            .arg(&tarball)
            .arg("--directory")
            .arg(directory.path())
            .arg(file)
            .status()?;
        ensure!(made.success());
        plant(env, name, [(TARBALL, std::fs::read(&tarball)?)]).await?;
        wait_for(&env.api::<Backup>(), name, MINUTE, |_| true).await?;
        let why = refused(env, name, json!({})).await?;
        ensure!(
            why.contains("is refused") && why.contains("the tarball holds"),
            "{name}: {why}"
        );
        let log = velero.run(&format!("restore logs of-{name}"))?;
        ensure!(log.contains("level=error"), "{log}");
        ensure!(log.contains("the tarball holds"), "{log}");
    }
    // Which claims it would fill, nobody knows: they are not made empty.
    let why = refused(env, "a", json!({})).await?;
    ensure!(why.contains("cannot be decompressed"), "a: {why}");
    Ok(())
}

/// Why a restore of a backup failed as a whole.
async fn refused(env: &Env, backup: &str, mut spec: Value) -> Result<String> {
    spec["backupName"] = json!(backup);
    let ended = restore(env, &format!("of-{backup}"), spec).await?;
    let status = ended.status.clone().unwrap_or_default();
    ensure!(
        ended.phase() == RestorePhase::Failed,
        "{backup}: {status:?}"
    );
    Ok(status.failure_reason.unwrap_or_default())
}

fn gzip(value: &Value) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut encoder, value)?;
    Ok(encoder.finish()?)
}

/// A list that is cut off or none, and one that names what others have: only the restores of their own backups fail, which say why, and
/// what is deleted is their own.
async fn hostile_lists_harm_their_own_backup_alone(env: &Env) -> Result<()> {
    let velero = Velero::new(env).await?;
    let before = Others::now(env).await?;
    let tarball = env
        .cluster
        .s3()
        .get(BUCKET, "backups/second/second.tar.gz")
        .await?;
    let list = env.cluster.s3().get(BUCKET, SECOND_S_LIST).await?;
    for (name, list, why) in [
        (
            "cut",
            list[..list.len() / 2].to_vec(),
            "cannot be decompressed",
        ),
        ("odd", gzip(&json!([7]))?, "is not what it should be"),
    ] {
        plant(env, name, [(TARBALL, tarball.clone()), (LIST, list)]).await?;
        wait_for(&env.api::<Backup>(), name, MINUTE, |_| true).await?;
        let key = format!("backups/{name}/{name}{LIST} {why}");
        not_synced(env, name, &key).await?;
        ensure!(env.volumes_of(name).await?.is_empty());
        let target = format!("shop-{name}");
        let spec = json!({"includedNamespaces": ["shop"], "namespaceMapping": {"shop": &target}});
        let said = refused(env, name, spec).await?;
        ensure!(said.contains(&key), "{name}: {said}");
        let namespaces: Api<Namespace> = Api::all(env.cluster.client());
        ensure!(namespaces.get_opt(&target).await?.is_none());
    }

    let list = env.packed(SECOND_S_LIST).await?;
    let hostile = gzip(&json!(stolen(&list)?))?;
    plant(env, "thief", [(TARBALL, tarball), (LIST, hostile)]).await?;
    taken_over_as_its_own(env).await?;
    before.are_unharmed(env).await?;
    it_gets_nothing_of_theirs(env).await?;
    for name in ["cut", "odd", "thief"] {
        velero.run(&format!("backup delete {name} --confirm"))?;
        wait_gone(&env.api::<Backup>(), name, MINUTE).await?;
        let directory = format!("backups/{name}/");
        let left = env.cluster.s3().list(BUCKET, &directory).await?;
        ensure!(left.is_empty(), "{left:?}");
    }
    before.are_unharmed(env).await?;
    let spec = second_into("shop-unharmed");
    let unharmed = restore(env, "unharmed", spec).await?;
    finished(env, &unharmed, RestorePhase::Completed).await?;
    db_is_back(env, "shop-unharmed", "second").await
}

/// What no list of another backup may change.
struct Others {
    volumes: Value,
    snapshots: Vec<BTreeMap<String, usize>>,
    files: BTreeMap<String, Vec<String>>,
}

impl Others {
    async fn now(env: &Env) -> Result<Self> {
        let (mut volumes, mut files) = (BTreeMap::new(), BTreeMap::new());
        for backup in ["first", "second", "third"] {
            for volume in env.volumes_of(backup).await? {
                volumes.insert(volume.name_any(), volume);
            }
            let directory = format!("backups/{backup}/");
            let found = env.cluster.s3().list(BUCKET, &directory).await?;
            let keys = found.into_iter().map(|file| file.key);
            files.insert(backup.to_owned(), keys.collect());
        }
        let mut of = Vec::new();
        for namespace in ["nginx-example", "shop"] {
            of.push(snapshots(env, namespace).await?);
        }
        Ok(Self {
            volumes: serde_json::to_value(volumes)?,
            snapshots: of,
            files,
        })
    }

    async fn are_unharmed(&self, env: &Env) -> Result<()> {
        let now = Self::now(env).await?;
        ensure!(now.volumes == self.volumes, "{}", now.volumes);
        ensure!(now.snapshots == self.snapshots, "{:?}", now.snapshots);
        ensure!(now.files == self.files, "{:?}", now.files);
        for namespace in ["nginx-example", "shop"] {
            env.restic(namespace).await?.check()?;
        }
        Ok(())
    }
}

/// A list whose entries have labels, owner and tags of `second`, from whose list they are made.
fn stolen(list: &Value) -> Result<Vec<Value>> {
    let of = |volume: &str| {
        let mut entries = list.as_array().into_iter().flatten();
        let found = entries.find(|entry| entry["spec"]["volume"] == volume);
        found.cloned().with_context(|| format!("no {volume}"))
    };
    let named = |volume: &str, name: &str| {
        let mut entry = of(volume)?;
        entry["metadata"]["name"] = json!(name);
        anyhow::Ok(entry)
    };
    // The very object of the other.
    let own = of("cache")?;
    // A snapshot of another namespace, and the repository that it is in.
    let mut elsewhere = named("data", "thief-data")?;
    for (part, field) in [("spec", "repoIdentifier"), ("status", "snapshotID")] {
        elsewhere[part][field] = of("nginx-logs")?[part][field].clone();
    }
    // The name again, and the other's snapshot, of no claim that is restored.
    let mut again = named("data", "thief-data")?;
    again["spec"]["pod"]["name"] = json!("db-1");
    again["metadata"]["annotations"] = json!({});
    // Not done yet: whoever does it forgets what its tags name.
    let mut open = named("data", "thief-open")?;
    open["spec"]["pod"]["name"] = json!("db-2");
    open["status"] = json!({"phase": "New"});
    // Ways out of where things lie.
    let mut snapshot = named("nginx-logs", "thief-logs")?;
    snapshot["status"]["snapshotID"] = json!("../../shop/config");
    let mut place = named("data", "thief-place")?;
    place["spec"]["pod"] = json!({"kind": "Secret", "namespace": "../shop", "name": "../../creds"});
    place["spec"]["volume"] = json!("..");
    let name = named("data", "../../backups/second")?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "thief-secret"},
        "data": {"password": "cHduZWQ="}});
    Ok(vec![
        own, elsewhere, again, open, snapshot, place, name, secret,
    ])
}

/// An event at the location says of a backup why it is not taken over whole.
async fn not_synced(env: &Env, backup: &str, why: &str) -> Result<()> {
    until("an event says why", MINUTE, async || {
        let fields = "involvedObject.kind=BackupStorageLocation,reason=BackupNotSynced";
        let events = env.api::<Event>();
        let events = events.list(&ListParams::default().fields(fields)).await?;
        let start = format!("backup {backup} of the bucket is not taken over whole: {why}");
        let said = events.items.iter().any(|event| {
            let note = event.message.as_deref().unwrap_or_default();
            note.starts_with(&start)
        });
        Ok(said.then_some(()))
    })
    .await
}

/// What has a name of its own, as a PodVolumeBackup of the backup in whose directory the list lies, and none that an agent would begin.
async fn taken_over_as_its_own(env: &Env) -> Result<()> {
    let backup = wait_for(&env.api::<Backup>(), "thief", MINUTE, |_| true).await?;
    let mut found = BTreeMap::new();
    until("its volumes appear", MINUTE, async || {
        let volumes = env.volumes_of("thief").await?.into_iter();
        found = volumes
            .map(|volume| (volume.name_any(), volume))
            .collect::<BTreeMap<_, _>>();
        Ok((found.len() == 5).then_some(()))
    })
    .await?;
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = ["data", "logs", "open", "place", "secret"].map(|name| format!("thief-{name}"));
    ensure!(names == expected, "{names:?}");
    for volume in found.values() {
        ensure!(volume.labels().get(label::BACKUP_UID) == backup.metadata.uid.as_ref());
        let owners = volume.owner_references();
        ensure!(
            owners.len() == 1 && Some(&owners[0].uid) == backup.metadata.uid.as_ref(),
            "{owners:?}"
        );
        ensure!(volume.phase().is_terminal(), "{:?}", volume.status);
    }
    let open = found["thief-open"].status.clone().unwrap_or_default();
    let why = open.message.unwrap_or_default();
    ensure!(why.contains("nobody goes on with it"), "{why}");
    let secrets = env.api::<Secret>();
    ensure!(secrets.get_opt("thief-secret").await?.is_none());
    Ok(())
}

/// Its restore looks for what it names where its own data would be, and says what is not there.
async fn it_gets_nothing_of_theirs(env: &Env) -> Result<()> {
    let spec = json!({
        "backupName": "thief",
        "includedNamespaces": ["nginx-example", "shop"],
        "namespaceMapping": {"nginx-example": "nginx-thief", "shop": "shop-thief"}
    });
    let ended = restore(env, "of-thief", spec).await?;
    let said = finished(env, &ended, RestorePhase::PartiallyFailed).await?;
    let list = env.packed(SECOND_S_LIST).await?;
    let mut entries = list.as_array().into_iter().flatten();
    let logs = entries.find(|entry| entry["spec"]["volume"] == "nginx-logs");
    let elsewhere = logs.and_then(|logs| logs["status"]["snapshotID"].as_str());
    for (namespace, what) in [
        ("shop-thief", elsewhere.context("a snapshot")?),
        ("shop-thief", "StatefulSet db was not restored"),
        ("nginx-thief", "../../shop/config"),
        ("nginx-thief", "nginx-deployment was not restored"),
    ] {
        let errors = said["errors"]["namespaces"][namespace].to_string();
        ensure!(errors.contains(what), "{what}: {said}");
    }
    for volume in volumes_of(env, "of-thief").await? {
        let (spec, target) = (&volume.spec, volume.spec.pod.namespace.as_deref());
        let source = match target {
            Some("shop-thief") => "shop",
            Some("nginx-thief") => "nginx-example",
            _ => anyhow::bail!("{spec:?}"),
        };
        let repository = format!("/restic/{source}");
        ensure!(
            spec.source_namespace == source && spec.repo_identifier.ends_with(&repository),
            "{spec:?}"
        );
    }
    Ok(())
}

async fn db_is_back(env: &Env, namespace: &str, backup: &str) -> Result<()> {
    until("db-0 is ready", MINUTE, async || {
        Ok((env.ready_pods(namespace, "app=db").await? == ["db-0"]).then_some(()))
    })
    .await?;
    same_as_listing(env, (namespace, "db-0", "data"), backup, "db").await
}

/// The volumes' namespace of backup `second`, beside the original.
fn second_into(namespace: &str) -> Value {
    json!({
        "backupName": "second",
        "includedNamespaces": ["shop"],
        "namespaceMapping": {"shop": namespace}
    })
}

/// What the cluster's list has comes back, and that there may have been more is an error.
async fn a_list_that_is_lost_takes_no_known_volume_along(env: &Env) -> Result<()> {
    let s3 = env.cluster.s3();
    let list = s3.get(BUCKET, SECOND_S_LIST).await?;
    let cut = list[..list.len() - 9].to_vec();
    s3.put(BUCKET, SECOND_S_LIST, cut).await?;
    let spec = second_into("shop-known");
    let known = restore(env, "known", spec).await?;
    let said = finished(env, &known, RestorePhase::PartiallyFailed).await?;
    let why = format!(
        "volumes that only the bucket's list of them names are not restored: {SECOND_S_LIST} cannot be decompressed"
    );
    ensure!(
        said["errors"]["velero"].to_string().contains(&why)
            && said["errors"]["namespaces"].is_null(),
        "{said}"
    );
    db_is_back(env, "shop-known", "second").await?;
    s3.put(BUCKET, SECOND_S_LIST, list).await
}

/// No PersistentVolume is asked for, and none of the backup is used: each claim gets a new one, with its data.
async fn workloads_alone_come_back_on_new_volumes(env: &Env) -> Result<()> {
    const TARGET: &str = "nginx-anew";
    let volumes: Api<PersistentVolume> = Api::all(env.cluster.client());
    let before = volumes.list(&ListParams::default()).await?;
    let spec = json!({
        "backupName": "second",
        "includedNamespaces": ["nginx-example"],
        "includedResources": ["pods", "persistentvolumeclaims", "deployments.apps"],
        "namespaceMapping": {"nginx-example": TARGET}
    });
    let anew = restore(env, "anew", spec).await?;
    let said = finished(env, &anew, RestorePhase::Completed).await?;
    ensure!(said == json!({"warnings": {}, "errors": {}}), "{said}");
    let deployment = |deployment: &Deployment| {
        let status = deployment.status.as_ref();
        status.and_then(|status| status.available_replicas) == Some(2)
    };
    let deployments = env.api_in::<Deployment>(TARGET);
    wait_for(&deployments, "nginx-deployment", MINUTE, deployment).await?;
    let pods = env.ready_pods(TARGET, "app=nginx").await?;
    ensure!(pods.len() == 2, "{pods:?}");
    for pod in &pods {
        let volume = (TARGET, pod.as_str(), "nginx-logs");
        same_as_listing(env, volume, "second", "logs").await?;
    }
    let claims = env.api_in::<PersistentVolumeClaim>(TARGET);
    let claim = claims.get("nginx-logs").await?;
    let bound = claim.spec.and_then(|spec| spec.volume_name);
    let volume = volumes.get(&bound.context("not bound")?).await?;
    let made_by = "pv.kubernetes.io/provisioned-by";
    ensure!(volume.annotations().contains_key(made_by), "{volume:?}");
    let known = before.items.iter().any(|known| known.uid() == volume.uid());
    ensure!(!known, "{volume:?}");
    let services = env.api_in::<Service>(TARGET);
    ensure!(services.get_opt("my-nginx").await?.is_none());
    Ok(())
}

/// A damaged pack: the volume fails by name, its pods and workloads do not start, everything else is back.
async fn damage_is_named(env: &Env) -> Result<()> {
    let s3 = env.cluster.s3();
    let packs = s3.list(BUCKET, "restic/shop/data/").await?;
    let mut whole = Vec::new();
    for pack in &packs {
        let body = s3.get(BUCKET, &pack.key).await?;
        let mut damaged = body.clone();
        // The first blob of each pack; headers are at the end.
        for byte in damaged.iter_mut().take(64) {
            *byte ^= 0xff;
        }
        s3.put(BUCKET, &pack.key, damaged).await?;
        whole.push((pack.key.clone(), body));
    }
    let spec = second_into("shop-damaged");
    let ended = restore(env, "damaged", spec).await?;
    let said = finished(env, &ended, RestorePhase::PartiallyFailed).await?;
    let failed: Vec<_> = volumes_of(env, "damaged")
        .await?
        .into_iter()
        .filter(|v| v.phase() == PodVolumePhase::Failed)
        .collect();
    ensure!(!failed.is_empty());
    for volume in &failed {
        let message = volume
            .status
            .as_ref()
            .and_then(|status| status.message.clone())
            .unwrap_or_default();
        let named = packs.iter().any(|pack| {
            let name = pack.key.rsplit('/').next().unwrap_or_default();
            message.contains(name)
        });
        ensure!(named || message.contains("data/"), "{message}");
    }
    let errors = said["errors"]["namespaces"]["shop-damaged"].to_string();
    ensure!(errors.contains("pod volume restore failed"), "{said}");
    ensure!(errors.contains("StatefulSet db was not restored"), "{said}");
    ensure!(
        env.api_in::<StatefulSet>("shop-damaged")
            .get_opt("db")
            .await?
            .is_none()
    );
    ensure!(env.ready_pods("shop-damaged", "app=db").await?.is_empty());
    until(
        "the pod's waiter ends with the reason",
        MINUTE,
        async || {
            let pod = env.api_in::<Pod>("shop-damaged").get("db-0").await?;
            let status = pod.status.and_then(|status| status.init_container_statuses);
            let waiter = status.and_then(|all| all.into_iter().next());
            let ends = waiter.map(|waiter| [waiter.state, waiter.last_state]);
            let mut ends = ends.into_iter().flatten().flatten();
            let ended = ends.find_map(|state| state.terminated);
            Ok(ended.filter(|ended| {
                let why = ended.message.as_deref().unwrap_or_default();
                ended.exit_code == 1
                    && why.contains("restore damaged has ended without the data of")
            }))
        },
    )
    .await?;
    for (key, body) in whole {
        s3.put(BUCKET, &key, body).await?;
    }
    Ok(())
}

async fn deleted_restores_take_their_files_along(env: &Env) -> Result<()> {
    let restores = env.api::<Restore>();
    ensure!(
        !env.cluster
            .s3()
            .list(BUCKET, "restores/then/")
            .await?
            .is_empty()
    );
    restores.delete("then", &DeleteParams::default()).await?;
    wait_gone(&restores, "then", MINUTE).await?;
    ensure!(
        env.cluster
            .s3()
            .list(BUCKET, "restores/then/")
            .await?
            .is_empty()
    );
    ensure!(
        !env.cluster
            .s3()
            .list(BUCKET, "restores/back/")
            .await?
            .is_empty()
    );
    Ok(())
}

/// By Velero's client, as everything that Velero users do: it goes with its snapshots, and nothing else does.
async fn a_backup_of_velero_is_deleted(env: &Env) -> Result<()> {
    let velero = Velero::new(env).await?;
    velero.says(
        "backup describe first --details",
        &[
            "Name: first",
            "Phase: Completed",
            "Namespaces: Included: nginx-example, shop",
            "apps/v1/StatefulSet: - shop/db",
            "Pod Volume Backups - restic:",
            "shop/db-0: cache",
        ],
    )?;
    let log = velero.run("backup logs first")?;
    ensure!(log.contains("Backed up a total of 49 items"), "{log}");
    let mut before = BTreeMap::new();
    for namespace in ["nginx-example", "shop"] {
        before.insert(namespace, snapshots(env, namespace).await?);
    }
    velero.run("backup delete first --confirm")?;
    wait_gone(&env.api::<Backup>(), "first", MINUTE).await?;
    let left = env.cluster.s3().list(BUCKET, "backups/first/").await?;
    ensure!(left.is_empty(), "{left:?}");
    for (namespace, mut expected) in before {
        let of_it = expected.remove("first").unwrap_or_default();
        ensure!(of_it > 0, "{namespace}: {expected:?}");
        ensure!(expected.contains_key("second") && expected.contains_key("third"));
        ensure!(snapshots(env, namespace).await? == expected, "{namespace}");
        env.restic(namespace).await?.check()?;
    }
    Ok(())
}

/// How many snapshots a repository has of each backup.
async fn snapshots(env: &Env, namespace: &str) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for snapshot in env.restic(namespace).await?.snapshots()? {
        let tags = snapshot["tags"].as_array().context("tags")?;
        let mut tags = tags.iter().filter_map(Value::as_str);
        let backup = tags.find_map(|tag| tag.strip_prefix("backup="));
        *counts
            .entry(backup.context("a backup")?.to_owned())
            .or_default() += 1;
    }
    Ok(counts)
}
