//! What Velero's users do, from beginning to end, with the data compared.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, PodVolumePhase, RepositoryPhase, Schedule,
};
use jackline_e2e::{BUCKET, Env, Velero, until, wait_gone};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_users_follow_ends_as_they_expect() -> Result<()> {
    let env = Env::up("walkthroughs").await?;
    let velero = Velero::new(&env).await?;
    env.cluster.apply(include_str!("walkthroughs.yaml"))?;
    hundred_namespaces_begin(&env)?;
    a_log_survives_its_namespace(&env, &velero).await?;
    two_pods_share_a_claim(&env, &velero).await?;
    a_schedule_makes_backups_and_their_time_ends(&env, &velero).await?;
    hundred_namespaces(&env, &velero).await?;
    env.cluster.down()
}

async fn running(env: &Env, namespace: &str, label: &str) -> Result<String> {
    until("a pod runs", 2 * MINUTE, async || {
        Ok(env.ready_pods(namespace, label).await?.pop())
    })
    .await
}

fn completed(said: &str) -> Result<()> {
    ensure!(said.contains("completed with status: Completed"), "{said}");
    Ok(())
}

async fn delete_namespace(env: &Env, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(name, &DeleteParams::default()).await?;
    wait_gone(&namespaces, name, 2 * MINUTE).await
}

/// No policy, one annotation by hand.
async fn a_log_survives_its_namespace(env: &Env, velero: &Velero) -> Result<()> {
    const LOG: &str = "/var/log/nginx/access.log";
    let pod = running(env, "web", "app=nginx").await?;
    for page in 0..20 {
        let url = format!("http://127.0.0.1/page-{page}");
        env.cluster
            .exec("web", &pod, &["wget", "-qO", "/dev/null", &url])?;
    }
    let log = env.cluster.exec("web", &pod, &["cat", LOG])?;
    ensure!(log.lines().count() == 20, "{log}");
    let annotation = "backup.velero.io/backup-volumes=logs";
    env.cluster
        .kubectl(["-n", "web", "annotate", "pod", &pod, annotation])?;
    completed(&velero.run("backup create web --include-namespaces web --wait")?)?;
    delete_namespace(env, "web").await?;
    completed(&velero.run("restore create web --from-backup web --wait")?)?;
    let pod = running(env, "web", "app=nginx").await?;
    let restored = env.cluster.exec("web", &pod, &["cat", LOG])?;
    ensure!(restored == log, "{restored}");
    Ok(())
}

async fn two_pods_share_a_claim(env: &Env, velero: &Velero) -> Result<()> {
    let read =
        |namespace: &str, pod: &str, path: &str| env.cluster.exec(namespace, pod, &["cat", path]);
    running(env, "pair", "app=one").await?;
    running(env, "pair", "app=two").await?;
    let numbers = read("pair", "two", "/there/numbers")?;
    ensure!(numbers.lines().count() == 1000);
    completed(&velero.run("backup create pair --include-namespaces pair --wait")?)?;
    let volumes = env.volumes_of("pair").await?;
    ensure!(volumes.len() == 1, "{volumes:?}");
    let carrier = volumes[0].spec.pod.name.clone().context("a pod")?;
    let log = velero.run("backup logs pair")?;
    ensure!(
        log.contains("which has already been backed up from another pod, skipping"),
        "{log}"
    );

    // Both have it, and each alone: also the one that did not carry it.
    let both = "restore create pair --from-backup pair --namespace-mappings pair:pair-both --wait";
    completed(&velero.run(both)?)?;
    let other = if carrier == "one" { "two" } else { "one" };
    completed(&velero.run(&format!(
        "restore create pair-other --from-backup pair --namespace-mappings pair:pair-other --selector app={other} --wait"
    ))?)?;
    for (namespace, pod) in [
        ("pair-both", "one"),
        ("pair-both", "two"),
        ("pair-other", other),
    ] {
        running(env, namespace, &format!("app={pod}")).await?;
        let directory = if pod == "one" { "here" } else { "there" };
        let restored = read(namespace, pod, &format!("/{directory}/numbers"))?;
        ensure!(restored == numbers, "{namespace}/{pod}");
    }
    let claims: Api<PersistentVolumeClaim> = env.api_in("pair-other");
    claims.get("shared").await?;
    Ok(())
}

/// Made by themselves, expired by themselves; with the last one the bytes go too.
async fn a_schedule_makes_backups_and_their_time_ends(env: &Env, velero: &Velero) -> Result<()> {
    let data = || async { env.cluster.s3().size(BUCKET, "restic/pair/data/").await };
    let filled = data().await?;
    ensure!(filled > 0);
    velero.run("backup delete pair --confirm")?;
    wait_gone(&env.api::<Backup>(), "pair", MINUTE).await?;
    // The repository is pruned as soon as something was forgotten.
    let often = Patch::Merge(json!({"spec": {"maintenanceFrequency": "5s"}}));
    env.api::<BackupRepository>()
        .patch("pair-default-restic", &PatchParams::default(), &often)
        .await?;
    let create = [
        "schedule",
        "create",
        "pair",
        "--include-namespaces",
        "pair",
        "--ttl",
        "20s",
    ];
    velero.call(&[&create[..], &["--schedule", "*/2 * * * *"]].concat())?;
    let of_schedule = ListParams::default().labels("velero.io/schedule-name=pair");
    let backups = env.api::<Backup>();
    let made = until("a backup is made and completed", 3 * MINUTE, async || {
        let made = backups.list(&of_schedule).await?.items;
        let done = made
            .into_iter()
            .find(|made| made.phase() == BackupPhase::Completed);
        Ok(done.map(|made| made.name_any()))
    })
    .await?;
    let schedules = env.api::<Schedule>();
    let status = schedules.get("pair").await?.status.context("a status")?;
    ensure!(status.last_backup.is_some());
    schedules.delete("pair", &DeleteParams::default()).await?;
    wait_gone(&backups, &made, 2 * MINUTE).await?;
    let files = env
        .cluster
        .s3()
        .list(BUCKET, &format!("backups/{made}/"))
        .await?;
    ensure!(files.is_empty(), "{files:?}");
    let restic = env.restic("pair").await?;
    ensure!(restic.snapshots()?.is_empty());
    until("its bytes are gone", 2 * MINUTE, async || {
        Ok((data().await? == 0).then_some(()))
    })
    .await?;
    restic.check()
}

const HUNDRED: usize = 100;

/// They start while the others are looked at.
fn hundred_namespaces_begin(env: &Env) -> Result<()> {
    let manifests: Vec<String> = (0..HUNDRED)
        .flat_map(|number| {
            let name = format!("many-{number}");
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"many": "yes"}}});
            let pod = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "box", "namespace": name, "labels": {"app": "box"}, "annotations": {"backup.velero.io/backup-volumes": "data"}},
                "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
                    "containers": [{"name": "box", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                        "command": ["sh", "-c", "test -e /data/id || cat /proc/sys/kernel/random/uuid > /data/id; exec sleep 100000"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
            [namespace.to_string(), pod.to_string()]
        })
        .collect();
    env.cluster.apply(&manifests.join("\n---\n"))?;
    Ok(())
}

/// A repository for each, in one backup.
async fn hundred_namespaces(env: &Env, velero: &Velero) -> Result<()> {
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(env.cluster.client());
    let boxes = ListParams::default().labels("app=box");
    until("all pods run", 4 * MINUTE, async || {
        let pods = pods.list(&boxes).await?.items;
        let running = pods.iter().filter(|pod| {
            let status = pod.status.as_ref();
            status.and_then(|status| status.phase.as_deref()) == Some("Running")
        });
        Ok((running.count() == HUNDRED).then_some(()))
    })
    .await?;
    let names: Vec<String> = (0..HUNDRED)
        .map(|number| format!("many-{number}"))
        .collect();
    completed(&velero.run(&format!(
        "backup create many --include-namespaces {} --wait",
        names.join(",")
    ))?)?;
    let volumes = env.volumes_of("many").await?;
    ensure!(volumes.len() == HUNDRED, "{}", volumes.len());
    ensure!(
        volumes
            .iter()
            .all(|volume| volume.phase() == PodVolumePhase::Completed)
    );
    let repositories = env
        .api::<BackupRepository>()
        .list(&ListParams::default())
        .await?;
    for name in &names {
        let of = |repository: &&BackupRepository| repository.spec.volume_namespace == *name;
        let repository = repositories.iter().find(of).context("a repository")?;
        let status = repository.status.as_ref().context("a status")?;
        ensure!(
            status.phase == Some(RepositoryPhase::Ready),
            "{name}: {status:?}"
        );
    }
    completed(&velero.run(
        "restore create many --from-backup many --include-namespaces many-0,many-42,many-99 \
         --namespace-mappings many-0:again-0,many-42:again-42,many-99:again-99 --wait",
    )?)?;
    for number in [0, 42, 99] {
        let namespace = format!("again-{number}");
        running(env, &namespace, "app=box").await?;
        let id = |namespace: &str| env.cluster.exec(namespace, "box", &["cat", "/data/id"]);
        ensure!(
            id(&namespace)? == id(&format!("many-{number}"))?,
            "{namespace}"
        );
    }
    Ok(())
}
