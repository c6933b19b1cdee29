//! A location that cannot be used says why, harms nothing else, and recovers by itself; an existing repository is never given another
//! key.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, BackupSpec, BackupStorageLocation, DeleteBackupRequest,
    LocationPhase, PodVolumePhase, RepositoryPhase, Restore, RestoreSpec,
};
use jackline_e2e::{Env, Restic, Tls, Velero, fixture, until, wait_for, wait_gone};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "velero-repo-credentials";

#[tokio::test(flavor = "multi_thread")]
async fn locations_say_what_is_wrong_and_recover() -> Result<()> {
    let env = Env::up("locations").await?;
    available(&env, "default").await?;
    reasons_are_given(&env).await?;
    backups_and_deletions_are_refused(&env).await?;
    they_recover(&env).await?;
    the_newest_default_wins(&env).await?;
    existing_repositories_keep_their_key(&env).await?;
    object_lock_keeps_one_version(&env).await?;
    certificates_are_looked_at(&env).await?;
    env.cluster.down()
}

/// A server whose certificate nobody knows is trusted by its authority, wherever that is said, or where nobody wants to know.
async fn certificates_are_looked_at(env: &Env) -> Result<()> {
    let tls = Tls::before_s3(env)?;
    let velero = Velero::new(env).await?;
    let authority = tls.authority().display().to_string();
    let create = |name: &str, more: &[&str]| {
        let urls = format!("s3Url={},publicUrl={}", tls.url, tls.host_url);
        let config = format!("region=us-east-1,s3ForcePathStyle=true,{urls}");
        let mut arguments = vec![
            "backup-location",
            "create",
            name,
            "--provider",
            "aws",
            "--bucket",
            "velero",
        ];
        arguments.extend(["--prefix", name, "--credential", "cloud-credentials=cloud"]);
        let (config, rest) = match more {
            ["careless"] => (format!("{config},insecureSkipTLSVerify=true"), &[][..]),
            more => (config, more),
        };
        arguments.extend(["--config", &config]);
        arguments.extend(rest);
        velero.call(&arguments).map(drop)
    };
    create("unknown", &[])?;
    create("known", &["--cacert", &authority])?;
    create("careless", &["careless"])?;
    create("referred", &[])?;
    let text = std::fs::read_to_string(tls.authority())?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "authority", "namespace": "velero"},
        "stringData": {"ca": text}});
    env.cluster.apply(&secret.to_string())?;
    let named =
        json!({"spec": {"objectStorage": {"caCertRef": {"name": "authority", "key": "ca"}}}});
    let locations = env.api::<BackupStorageLocation>();
    locations
        .patch("referred", &PatchParams::default(), &Patch::Merge(named))
        .await?;
    unavailable(env, "unknown", &["certificate"]).await?;
    for name in ["known", "careless", "referred"] {
        available(env, name).await?;
        let backup = format!(
            "backup create {name} --storage-location {name} --include-namespaces default --selector app=safe --wait"
        );
        let said = velero.run(&backup)?;
        ensure!(said.contains("completed with status: Completed"), "{said}");
        let volumes = env.volumes_of(name).await?;
        ensure!(volumes.len() == 1 && volumes[0].phase() == PodVolumePhase::Completed);
    }
    // The client has to be told as well, where the location does not tell it.
    let refused = velero
        .run("backup logs careless")
        .err()
        .context("a refusal")?;
    ensure!(refused.to_string().contains("certificate"), "{refused}");
    for flag in [
        &*format!("--cacert {authority}"),
        "--insecure-skip-tls-verify",
    ] {
        let log = velero.run(&format!("backup logs careless {flag}"))?;
        ensure!(log.contains("Backed up a total of"), "{log}");
        velero.says(
            &format!("backup describe careless --details {flag}"),
            &["v1/Pod"],
        )?;
        velero.run(&format!("backup download careless --force {flag}"))?;
    }
    Ok(())
}

/// Nothing that a backup writes is written over, so a bucket that keeps every version keeps one of each.
async fn object_lock_keeps_one_version(env: &Env) -> Result<()> {
    const BUCKET: &str = "locked";
    let s3 = env.cluster.s3();
    s3.make_locked_bucket(BUCKET).await?;
    // As `velero install` leaves it: the keys are in the Secret that is mounted, and the location names none.
    apply(env, BUCKET, BUCKET, &s3.endpoint, "")?;
    available(env, BUCKET).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "safe", "namespace": "default", "labels": {"app": "safe"}, "annotations": {"backup.velero.io/backup-volumes": "data"}},
        "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{"name": "safe", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                "command": ["sh", "-c", "head -c 1000000 /dev/urandom > /data/file; exec sleep 100000"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    env.cluster.apply(&pod.to_string())?;
    until("the pod runs", MINUTE, async || {
        Ok((env.ready_pods("default", "app=safe").await?.len() == 1).then_some(()))
    })
    .await?;
    for name in ["locked-1", "locked-2"] {
        let spec: BackupSpec = serde_json::from_value(json!({
            "includedNamespaces": ["default"], "storageLocation": BUCKET,
            "labelSelector": {"matchLabels": {"app": "safe"}}}))?;
        env.api::<Backup>()
            .create(&PostParams::default(), &Backup::new(name, spec))
            .await?;
        env.backup_completed(name, MINUTE).await?;
        ensure!(env.volumes_of(name).await?.len() == 1);
    }
    for prefix in [
        "backups/",
        "restic/default/data/",
        "restic/default/snapshots/",
    ] {
        let versions = s3.versions(BUCKET, prefix).await?;
        let mut once = versions.clone();
        once.dedup();
        ensure!(!versions.is_empty() && versions == once, "{versions:?}");
    }
    // What is deleted is gone for everybody but those who look at old versions.
    let request = DeleteBackupRequest::new(
        "locked-1",
        serde_json::from_value(json!({"backupName": "locked-1"}))?,
    );
    env.api::<DeleteBackupRequest>()
        .create(&PostParams::default(), &request)
        .await?;
    wait_gone(&env.api::<Backup>(), "locked-1", MINUTE).await?;
    ensure!(s3.list(BUCKET, "backups/locked-1/").await?.is_empty());
    ensure!(!s3.versions(BUCKET, "backups/locked-1/").await?.is_empty());
    let password = env.repository_password().await?;
    let restic = Restic::new(s3, BUCKET, "default", &password);
    ensure!(restic.snapshots()?.len() == 1);
    restic.check()
}

fn phase(location: &BackupStorageLocation) -> Option<LocationPhase> {
    location.status.as_ref().and_then(|status| status.phase)
}

async fn available(env: &Env, name: &str) -> Result<BackupStorageLocation> {
    let good = |location: &BackupStorageLocation| phase(location) == Some(LocationPhase::Available);
    wait_for(&env.api::<BackupStorageLocation>(), name, MINUTE, good).await
}

/// Waits until the location is unavailable with a message that holds all of `words`.
async fn unavailable(env: &Env, name: &str, words: &[&str]) -> Result<String> {
    let message = |location: &BackupStorageLocation| {
        location
            .status
            .as_ref()
            .and_then(|status| status.message.clone())
            .unwrap_or_default()
    };
    let bad = |location: &BackupStorageLocation| {
        phase(location) == Some(LocationPhase::Unavailable)
            && words.iter().all(|word| message(location).contains(word))
    };
    let location = wait_for(&env.api::<BackupStorageLocation>(), name, 2 * MINUTE, bad).await?;
    Ok(message(&location))
}

fn apply(env: &Env, name: &str, bucket: &str, url: &str, secret: &str) -> Result<()> {
    let mut location = json!({
        "apiVersion": "velero.io/v1", "kind": "BackupStorageLocation",
        "metadata": {"name": name, "namespace": "velero"},
        "spec": {
            "provider": "aws",
            "objectStorage": {"bucket": bucket},
            "config": {"region": "us-east-1", "s3ForcePathStyle": "true", "s3Url": url}
        }
    });
    if !secret.is_empty() {
        location["spec"]["credential"] = json!({"name": secret, "key": "cloud"});
    }
    env.cluster.apply(&location.to_string())?;
    Ok(())
}

fn credentials(env: &Env, name: &str, key: &str, secret: &str) -> Result<()> {
    let text = format!("[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n");
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "velero"},
        "stringData": {"cloud": text}
    });
    env.cluster.apply(&object.to_string())?;
    Ok(())
}

async fn reasons_are_given(env: &Env) -> Result<()> {
    let url = env.cluster.s3().endpoint.clone();
    credentials(env, "wrong", "nobody", "nothing-at-all")?;
    apply(env, "no-bucket", "missing", &url, "cloud-credentials")?;
    apply(env, "no-right", "velero", &url, "wrong")?;
    apply(env, "no-secret", "velero", &url, "absent")?;
    apply(
        env,
        "no-server",
        "velero",
        "http://198.18.0.1:9",
        "cloud-credentials",
    )?;
    env.cluster.s3().make_bucket("shared").await?;
    env.cluster
        .s3()
        .put("shared", "holiday-pictures/1.jpg", vec![1])
        .await?;
    apply(env, "not-ours", "shared", &url, "cloud-credentials")?;
    for (name, words) in [
        ("no-bucket", &["no such bucket"][..]),
        ("no-right", &["access denied"]),
        ("no-secret", &["Secret velero/absent does not exist"]),
        ("no-server", &["unreachable"]),
        (
            "not-ours",
            &["invalid top-level directories", "holiday-pictures"],
        ),
    ] {
        let message = unavailable(env, name, words).await?;
        ensure!(
            !message.contains("nothing-at-all"),
            "a secret is in the message"
        );
        println!("{name}: {message}");
    }
    // The one that works goes on working.
    available(env, "default").await?;
    Ok(())
}

async fn backups_and_deletions_are_refused(env: &Env) -> Result<()> {
    for location in ["no-bucket", "no-server", "never-made"] {
        let name = format!("into-{location}");
        let spec: BackupSpec = serde_json::from_value(json!({
            "includedNamespaces": ["default"], "storageLocation": location
        }))?;
        let backups = env.api::<Backup>();
        backups
            .create(&PostParams::default(), &Backup::new(&name, spec))
            .await?;
        let ended = env.backup_ended(&name, MINUTE).await?;
        ensure!(
            ended.phase() == BackupPhase::FailedValidation,
            "{:?}",
            ended.status
        );
        let errors = ended
            .status
            .map(|status| status.validation_errors)
            .unwrap_or_default();
        ensure!(
            errors.iter().any(|error| error.contains(location)),
            "{errors:?}"
        );
    }
    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "never-made"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("of-nothing", spec))
        .await?;
    let ended = env.restore_ended("of-nothing", MINUTE).await?;
    let errors = ended
        .status
        .map(|status| status.validation_errors)
        .unwrap_or_default();
    ensure!(
        errors.iter().any(|error| error.contains("never-made")),
        "{errors:?}"
    );
    let request: DeleteBackupRequest = serde_json::from_value(json!({
        "metadata": {"name": "of-nothing"}, "spec": {"backupName": "never-made"}
    }))?;
    let requests = env.api::<DeleteBackupRequest>();
    requests.create(&PostParams::default(), &request).await?;
    let said = |request: &DeleteBackupRequest| {
        request
            .status
            .as_ref()
            .is_some_and(|status| status.errors.iter().any(|e| e.contains("not found")))
    };
    wait_for(&requests, "of-nothing", MINUTE, said).await?;
    Ok(())
}

async fn they_recover(env: &Env) -> Result<()> {
    env.cluster.s3().make_bucket("missing").await?;
    env.cluster
        .s3()
        .delete("shared", "holiday-pictures/1.jpg")
        .await?;
    available(env, "no-bucket").await?;
    available(env, "not-ours").await?;
    // A Secret is looked at as soon as it changes.
    let begun = Instant::now();
    credentials(
        env,
        "wrong",
        &env.cluster.s3().access_key,
        &env.cluster.s3().secret_key,
    )?;
    available(env, "no-right").await?;
    println!(
        "recovered {:.1} s after the Secret changed",
        begun.elapsed().as_secs_f64()
    );
    credentials(
        env,
        "absent",
        &env.cluster.s3().access_key,
        &env.cluster.s3().secret_key,
    )?;
    available(env, "no-secret").await?;
    let locations = env.api::<BackupStorageLocation>();
    locations
        .delete("no-server", &DeleteParams::default())
        .await?;
    wait_gone(&locations, "no-server", MINUTE).await
}

async fn the_newest_default_wins(env: &Env) -> Result<()> {
    let locations = env.api::<BackupStorageLocation>();
    let mut copy = locations.get("default").await?;
    copy.metadata = kube::api::ObjectMeta {
        name: Some("newer".to_owned()),
        ..Default::default()
    };
    copy.status = None;
    locations.create(&PostParams::default(), &copy).await?;
    wait_for(
        &locations,
        "default",
        MINUTE,
        |location: &BackupStorageLocation| !location.spec.default,
    )
    .await?;
    ensure!(locations.get("newer").await?.spec.default);
    locations.delete("newer", &DeleteParams::default()).await?;
    Ok(())
}

async fn objects(env: &Env, bucket: &str) -> Result<Vec<(String, u64)>> {
    let list = env.cluster.s3().list(bucket, "restic/").await?;
    let mut objects: Vec<_> = list
        .into_iter()
        .filter(|object| !object.key.contains("/locks/"))
        .map(|object| (object.key, object.size))
        .collect();
    objects.sort();
    Ok(objects)
}

async fn existing_repositories_keep_their_key(env: &Env) -> Result<()> {
    env.cluster.s3().make_bucket("old").await?;
    fixture::upload(env, "old").await?;
    let before = objects(env, "old").await?;
    ensure!(!before.is_empty());
    apply(
        env,
        "old",
        "old",
        &env.cluster.s3().endpoint,
        "cloud-credentials",
    )?;
    // The password that was made for another location opens nothing here.
    let message = unavailable(env, "old", &["opens none of them", "(nginx-example, shop)"]).await?;
    println!("{message}");
    let other = json!({"metadata": {"annotations": {"jackline.dev/password-made": null}}});
    env.api::<Secret>()
        .patch(PASSWORD, &PatchParams::default(), &Patch::Merge(other))
        .await?;
    available(env, "old").await?;

    // Another password: the repository is not ready, and stays as it is.
    let repository: BackupRepository = serde_json::from_value(json!({
        "metadata": {"name": "shop-old-restic"},
        "spec": {"volumeNamespace": "shop", "backupStorageLocation": "old", "repositoryType": "restic",
            "resticIdentifier": "", "maintenanceFrequency": "168h0m0s"}
    }))?;
    let repositories = env.api::<BackupRepository>();
    repositories
        .create(&PostParams::default(), &repository)
        .await?;
    let refused = |repository: &BackupRepository| {
        let message = repository
            .status
            .as_ref()
            .and_then(|status| status.message.clone());
        repository.phase() == RepositoryPhase::NotReady
            && message.is_some_and(|message| message.contains("wrong password"))
    };
    wait_for(&repositories, "shop-old-restic", MINUTE, refused).await?;
    ensure!(objects(env, "old").await? == before);

    // No password: the location names the Secret, and nobody makes a new one.
    let secrets = env.api::<Secret>();
    secrets.delete(PASSWORD, &DeleteParams::default()).await?;
    let message = unavailable(env, "old", &[PASSWORD, "shop"]).await?;
    println!("{message}");
    // A look at every location has to pass without one.
    tokio::time::sleep(Duration::from_secs(20)).await;
    ensure!(
        secrets.get_opt(PASSWORD).await?.is_none(),
        "a new password was made"
    );
    ensure!(objects(env, "old").await? == before);

    // The right password: everything is there by itself.
    let right: Value = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": PASSWORD, "namespace": "velero"},
        "stringData": {"repository-password": "static-passw0rd"}
    });
    let begun = Instant::now();
    env.cluster.apply(&right.to_string())?;
    available(env, "old").await?;
    let ready = |repository: &BackupRepository| repository.phase() == RepositoryPhase::Ready;
    let now = wait_for(&repositories, "shop-old-restic", MINUTE, ready).await?;
    println!(
        "recovered {:.1} s after the password came",
        begun.elapsed().as_secs_f64()
    );
    let identifier = now.spec.restic_identifier.unwrap_or_default();
    ensure!(identifier.ends_with("/old/restic/shop"), "{identifier}");
    ensure!(objects(env, "old").await? == before);
    until(
        "the backups of the bucket are in the cluster",
        2 * MINUTE,
        async || Ok(env.api::<Backup>().get_opt("second").await?.map(|_| ())),
    )
    .await
    .context("sync")
}
