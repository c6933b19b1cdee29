//! What Velero's users do, from beginning to end, with the data compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupRepository, PodVolumePhase, RepositoryPhase, Schedule};
use jackline_e2e::{BUCKET, Env, Jackline, Velero, until, wait_gone};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_users_follow_ends_as_they_expect() -> Result<()> {
    let env = Env::up("walkthroughs").await?;
    let velero = Velero::new(&env).await?;
    env.cluster.apply(include_str!("walkthroughs.yaml"))?;
    hundred_namespaces_begin(&env)?;
    a_clock_begins(&velero)?;
    let log = a_log_survives_its_namespace(&env, &velero).await?;
    restored_into_a_running_namespace(&env, &velero).await?;
    data_into_an_existing_claim(&env, &log).await?;
    cloned_beside_the_original(&env, &velero, &log).await?;
    two_pods_share_a_claim(&env, &velero).await?;
    the_clock_was_right(&env, &velero).await?;
    hundred_backups_begin(&env, &velero).await?;
    a_schedule_makes_backups_and_their_time_ends(&env, &velero).await?;
    hundred_namespaces_come_back(&env, &velero).await?;
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

async fn visit(env: &Env, pod: &str, pages: std::ops::Range<u32>) -> Result<()> {
    for page in pages {
        let url = format!("http://127.0.0.1/page-{page}");
        // The server may have yet to listen when its pod is ready.
        until("the page is served", MINUTE, async || {
            let get = ["wget", "-qO", "/dev/null", &url];
            env.cluster.exec("web", pod, &get).map(Some)
        })
        .await?;
    }
    Ok(())
}

fn access_log(env: &Env, namespace: &str, pod: &str) -> Result<String> {
    env.cluster
        .exec(namespace, pod, &["cat", "/var/log/nginx/access.log"])
}

/// No policy, one annotation by hand. Gives the log as it was backed up.
async fn a_log_survives_its_namespace(env: &Env, velero: &Velero) -> Result<String> {
    let pod = running(env, "web", "app=nginx").await?;
    visit(env, &pod, 0..20).await?;
    let log = access_log(env, "web", &pod)?;
    ensure!(log.lines().count() == 20, "{log}");
    let annotation = "backup.velero.io/backup-volumes=logs";
    env.cluster
        .kubectl(["-n", "web", "annotate", "pod", &pod, annotation])?;
    completed(&velero.run("backup create web --include-namespaces web --wait")?)?;
    delete_namespace(env, "web").await?;
    completed(&velero.run("restore create web --from-backup web --wait")?)?;
    let pod = running(env, "web", "app=nginx").await?;
    let restored = access_log(env, "web", &pod)?;
    ensure!(restored == log, "{restored}");
    Ok(log)
}

/// What changed since the backup stays as it is, and goes back only when that is asked for; the claim of a running pod stays in both.
async fn restored_into_a_running_namespace(env: &Env, velero: &Velero) -> Result<()> {
    let configs: Api<ConfigMap> = env.api_in("web");
    let claims: Api<PersistentVolumeClaim> = env.api_in("web");
    let backed_up = configs.get("settings").await?;
    let params = PatchParams::default();
    let drift =
        json!({"metadata": {"labels": {"tier": "back"}}, "data": {"mode": "new", "extra": "yes"}});
    let changed = configs
        .patch("settings", &params, &Patch::Merge(drift))
        .await?;
    configs.delete("lost", &DeleteParams::default()).await?;
    configs.delete("fixed", &DeleteParams::default()).await?;
    let by_hand = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "web"},
            "immutable": true, "data": {"mode": "new"}})
        .to_string()
    };
    env.cluster
        .apply(&[by_hand("fixed"), by_hand("own")].join("\n---\n"))?;
    let label = ["-n", "web", "label", "deployment", "nginx", "tier=back"];
    env.cluster.kubectl(label)?;
    let same = configs.get("same").await?.resource_version();
    let own = configs.get("own").await?.resource_version();
    let claim = claims.get("logs").await?.uid();

    // Another pod than the one in the backup holds the claim, and writes on.
    let pods: Api<Pod> = env.api_in("web");
    let first = running(env, "web", "app=nginx").await?;
    pods.delete(&first, &DeleteParams::default()).await?;
    wait_gone(&pods, &first, MINUTE).await?;
    let pod = running(env, "web", "app=nginx").await?;
    visit(env, &pod, 20..25).await?;
    let log = access_log(env, "web", &pod)?;
    ensure!(log.lines().count() == 25, "{log}");
    let in_use = format!("the data of claim logs was not restored: pod {pod} is using the claim");
    let untouched = async || {
        ensure!(configs.get("same").await?.resource_version() == same);
        ensure!(configs.get("own").await?.resource_version() == own);
        ensure!(claims.get("logs").await?.uid() == claim);
        until("only the pod that ran is left", MINUTE, async || {
            let left = pods
                .list(&ListParams::default().labels("app=nginx"))
                .await?;
            Ok((left.items.len() == 1 && left.items[0].name_any() == pod).then_some(()))
        })
        .await?;
        let now = access_log(env, "web", &pod)?;
        ensure!(now == log, "{now}");
        Ok(())
    };

    completed(&velero.run("restore create left --from-backup web --wait")?)?;
    velero.says(
        "restore describe left --details",
        &[
            "could not restore, ConfigMap:settings already exists. Warning: the in-cluster version is different",
            "could not restore, ConfigMap:fixed already exists",
            "could not restore, Deployment:nginx already exists",
            &in_use,
            "web/settings(failed)",
            "web/same(skipped)",
            "web/lost(created)",
            "web/logs(skipped)",
        ],
    )?;
    let left = configs.get("settings").await?;
    ensure!(left == changed, "{left:?}");
    let lost = configs.get("lost").await?;
    ensure!(lost.data.context("data")?["mode"] == "rare");
    untouched().await?;

    completed(&velero.run(
        "restore create updated --from-backup web --existing-resource-policy=update --wait",
    )?)?;
    velero.says(
        "restore describe updated --details",
        &[
            "Existing Resource Policy: update",
            "configmaps fixed could not be updated",
            &in_use,
            "web/settings(updated)",
            "web/nginx(updated)",
            "web/same(skipped)",
            "web/lost(skipped)",
        ],
    )?;
    let updated = configs.get("settings").await?;
    ensure!(updated.data == backed_up.data, "{updated:?}");
    ensure!(updated.labels()["tier"] == "front", "{updated:?}");
    ensure!(updated.labels()["velero.io/restore-name"] == "updated");
    let fixed = configs.get("fixed").await?;
    ensure!(fixed.labels()["velero.io/restore-name"] == "updated");
    ensure!(fixed.data.context("data")?["mode"] == "new");
    let nginx = env.api_in::<Deployment>("web").get("nginx").await?;
    ensure!(!nginx.labels().contains_key("tier"), "{nginx:?}");
    untouched().await
}

/// Not under a running pod, unless told; then beside it, or into the claim of a workload that was scaled down.
async fn data_into_an_existing_claim(env: &Env, backed_up: &str) -> Result<()> {
    let jackline = Jackline::new(env)?;
    let pod = running(env, "web", "app=nginx").await?;
    let restore = "restore volume logs --namespace web --from-backup web";
    let log = access_log(env, "web", &pod)?;
    ensure!(log != backed_up);
    let refused = jackline.refused(restore)?;
    ensure!(
        refused.contains(&format!("claim web/logs is in use by {pod}: scale")),
        "{refused}"
    );
    ensure!(access_log(env, "web", &pod)? == log);
    for (wrong, why) in [
        (
            "restore volume logs -n web --from-backup none",
            "backup none has no data of claims",
        ),
        (
            "restore volume other -n web --from-backup web",
            "has no data of claim web/other; it has web/logs",
        ),
        (
            "restore volume other -n web --source web/logs --from-backup web",
            "there is no claim web/other",
        ),
    ] {
        let refused = jackline.refused(wrong)?;
        ensure!(refused.contains(why), "{refused}");
    }

    let directory = "/var/log/nginx";
    let in_pod = |command: &str| {
        let pod =
            env.cluster
                .kubectl(["-n", "web", "get", "pod", "-l", "app=nginx", "-o", "name"])?;
        let pod = pod.trim().trim_start_matches("pod/").to_owned();
        env.cluster.exec("web", &pod, &["sh", "-c", command])
    };
    in_pod(&format!("echo mine > {directory}/extra"))?;
    let said = jackline.run(&format!("{restore} --in-use -o json"))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(
        said["claim"] == "logs" && said["bytes"].as_u64() > Some(0),
        "{said}"
    );
    ensure!(in_pod(&format!("cat {directory}/access.log"))? == backed_up);
    let files = in_pod(&format!("ls -a {directory}"))?;
    ensure!(
        files.contains("extra") && !files.contains(".velero"),
        "{files}"
    );

    let scale = |replicas: &str| {
        env.cluster
            .kubectl(["-n", "web", "scale", "deployment", "nginx", replicas])
    };
    visit(env, &pod, 30..33).await?;
    scale("--replicas=0")?;
    wait_gone(&env.api_in::<Pod>("web"), &pod, MINUTE).await?;
    // Where neither root nor a pod without requests and limits is let in.
    let kubectl = |arguments: &str| env.cluster.kubectl(arguments.split(' '));
    kubectl("label namespace web pod-security.kubernetes.io/enforce=restricted")?;
    kubectl(
        "-n web create quota tight --hard=requests.cpu=1,requests.memory=1Gi,limits.cpu=1,limits.memory=1Gi",
    )?;
    // Until it is counted what there is, no pod is let in.
    kubectl(r"-n web wait --for=jsonpath={.status.hard.limits\.cpu}=1 quota/tight")?;
    let said = jackline.run(&format!("{restore} --delete"))?;
    kubectl("label namespace web pod-security.kubernetes.io/enforce-")?;
    kubectl("-n web delete quota tight")?;
    ensure!(
        said.starts_with("restored ") && said.contains("into claim web/logs"),
        "{said}"
    );
    scale("--replicas=1")?;
    running(env, "web", "app=nginx").await?;
    ensure!(in_pod(&format!("cat {directory}/access.log"))? == backed_up);
    let files = in_pod(&format!("ls -a {directory}"))?;
    ensure!(
        !files.contains("extra") && !files.contains(".velero"),
        "{files}"
    );
    let left = env
        .api_in::<Pod>("web")
        .list(&ListParams::default())
        .await?;
    ensure!(left.items.len() == 1, "{left:?}");
    visit(env, &running(env, "web", "app=nginx").await?, 40..42).await
}

/// The copy is as the backup, on a volume of its own, and the original goes on.
async fn cloned_beside_the_original(env: &Env, velero: &Velero, backed_up: &str) -> Result<()> {
    let original = running(env, "web", "app=nginx").await?;
    let uid = env.api_in::<Pod>("web").get(&original).await?.uid();
    let log = access_log(env, "web", &original)?;
    completed(&velero.run(
        "restore create clone --from-backup web --namespace-mappings web:web-clone --wait",
    )?)?;
    let copy = running(env, "web-clone", "app=nginx").await?;
    let cloned = access_log(env, "web-clone", &copy)?;
    ensure!(cloned == backed_up, "{cloned}");
    ensure!(env.api_in::<Pod>("web").get(&original).await?.uid() == uid);
    let now = access_log(env, "web", &original)?;
    ensure!(now == log && now != cloned, "{now}");
    let volume = async |namespace: &str| {
        let claims: Api<PersistentVolumeClaim> = env.api_in(namespace);
        let spec = claims.get("logs").await?.spec.context("a spec")?;
        spec.volume_name.context("a volume")
    };
    ensure!(volume("web").await? != volume("web-clone").await?);
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

/// It goes by the clock from now on, beside all else.
fn a_clock_begins(velero: &Velero) -> Result<()> {
    let create = ["schedule", "create", "clock", "--schedule", "*/2 * * * *"];
    velero.call(&[&create[..], &["--include-namespaces", "default"]].concat())?;
    Ok(())
}

/// One backup for every second minute that has passed.
async fn the_clock_was_right(env: &Env, velero: &Velero) -> Result<()> {
    let begun = env.api::<Schedule>().get("clock").await?;
    let begun = begun.creation_timestamp().context("a creation")?.0;
    velero.run("schedule delete clock --confirm")?;
    let of_schedule = ListParams::default().labels("velero.io/schedule-name=clock");
    let made = env.api::<Backup>().list(&of_schedule).await?.items;
    let passed = jiff::Timestamp::now().as_second() / 120 - begun.as_second() / 120;
    let count = i64::try_from(made.len())?;
    // The last may be due this very moment.
    ensure!(
        count >= 1 && (passed - 1..=passed).contains(&count),
        "{count} backups in {passed} times two minutes"
    );
    for backup in made {
        let created = backup.creation_timestamp().context("a creation")?.0;
        let late = created.as_second() % 120;
        ensure!(late < 30, "{} came {late} s late", backup.name_any());
    }
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
    velero.call(&[&create[..], &["--schedule", "@every 15s"]].concat())?;
    let of_schedule = ListParams::default().labels("velero.io/schedule-name=pair");
    let backups = env.api::<Backup>();
    let mut made = BTreeSet::new();
    until("two backups are made", 5 * MINUTE, async || {
        let now = backups.list(&of_schedule).await?.items;
        made.extend(now.iter().map(ResourceExt::name_any));
        Ok((made.len() >= 2).then_some(()))
    })
    .await?;
    let schedules = env.api::<Schedule>();
    let status = schedules.get("pair").await?.status.context("a status")?;
    ensure!(status.last_backup.is_some());
    schedules.delete("pair", &DeleteParams::default()).await?;
    // The second's end is seen; the first may be over by now.
    let last = made.last().context("a backup")?;
    env.backup_completed(last, 5 * MINUTE).await?;
    until("their time is over", 2 * MINUTE, async || {
        let left = backups.list(&of_schedule).await?.items;
        made.extend(left.iter().map(ResourceExt::name_any));
        Ok(left.is_empty().then_some(()))
    })
    .await?;
    for made in &made {
        let files = format!("backups/{made}/");
        let files = env.cluster.s3().list(BUCKET, &files).await?;
        ensure!(files.is_empty(), "{files:?}");
    }
    let restic = env.restic("pair").await?;
    ensure!(restic.snapshots()?.is_empty());
    until("its bytes are gone", 2 * MINUTE, async || {
        Ok((data().await? == 0).then_some(()))
    })
    .await?;
    restic.check()
}

const HUNDRED: usize = 100;

fn hundred_names() -> Vec<String> {
    (0..HUNDRED)
        .map(|number| format!("many-{number}"))
        .collect()
}

/// They start while the others are looked at.
fn hundred_namespaces_begin(env: &Env) -> Result<()> {
    let names = hundred_names();
    let namespaces = names
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let pods = names.iter().map(|name| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "box", "namespace": name, "labels": {"app": "box"}, "annotations": {"backup.velero.io/backup-volumes": "data"}},
            "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
                "containers": [{"name": "box", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", "test -e /data/id || cat /proc/sys/kernel/random/uuid > /data/id; cat /data/id; exec sleep 100000"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}})
    });
    // The pods last: each needs its namespace's service account.
    let manifests: Vec<String> = namespaces
        .chain(pods)
        .map(|object| object.to_string())
        .collect();
    env.cluster.apply(&manifests.join("\n---\n"))?;
    Ok(())
}

/// What the boxes of all namespaces read in their volumes, as soon as all run.
async fn hundred_ids(env: &Env) -> Result<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    for name in hundred_names() {
        running(env, &name, "app=box").await?;
        let pods = env.api_in::<Pod>(&name);
        let id = until("it has read its volume", MINUTE, async || {
            let said = pods.logs("box", &LogParams::default()).await?;
            Ok(Some(said).filter(|said| !said.is_empty()))
        });
        ids.insert(name, id.await?);
    }
    Ok(ids)
}

/// One backup of all of them, which goes on while the others are looked at.
async fn hundred_backups_begin(env: &Env, velero: &Velero) -> Result<()> {
    hundred_ids(env).await?;
    let names = hundred_names().join(",");
    velero.run(&format!("backup create many --include-namespaces {names}"))?;
    Ok(())
}

/// From a repository for each.
async fn hundred_namespaces_come_back(env: &Env, velero: &Velero) -> Result<()> {
    env.backup_completed("many", 8 * MINUTE).await?;
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
    for name in &hundred_names() {
        let of = |repository: &&BackupRepository| repository.spec.volume_namespace == *name;
        let repository = repositories.iter().find(of).context("a repository")?;
        let status = repository.status.as_ref().context("a status")?;
        ensure!(
            status.phase == Some(RepositoryPhase::Ready),
            "{name}: {status:?}"
        );
    }
    let ids = hundred_ids(env).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    for name in ids.keys() {
        namespaces.delete(name, &DeleteParams::default()).await?;
    }
    for name in ids.keys() {
        wait_gone(&namespaces, name, 4 * MINUTE).await?;
    }
    completed(&velero.run("restore create many --from-backup many --wait")?)?;
    ensure!(hundred_ids(env).await? == ids);
    Ok(())
}
