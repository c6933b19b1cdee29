//! Policies of both kinds on a real cluster: who governs what, one carrier per claim, and the last data of a namespace that
//! is gone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::{BackupCoverage, BackupPolicy};
use jackline_crds::names::{self, annotation, label};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, PodVolumeBackup, Restore, RestoreSpec,
};
use jackline_e2e::{Env, Tree, until, wait_for, wait_gone};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
/// Seconds between runs: the least that a policy may ask for.
const EVERY: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn policies_govern_and_what_is_gone_stays_restorable() -> Result<()> {
    let env = Env::up("policies").await?;
    for namespace in ["team-a", "team-b", "shop"] {
        env.cluster
            .apply(&include_str!("policies.yaml").replace("NAMESPACE", namespace))?;
        let web = [
            "-n",
            namespace,
            "rollout",
            "status",
            "deployment/web",
            "--timeout=120s",
        ];
        env.cluster.kubectl(web)?;
    }
    write(&env, "team-b").await?;
    let data = write(&env, "shop").await?;
    policies(&env)?;
    for namespace in ["team-a", "team-b", "shop"] {
        one_carrier(&env, namespace).await?;
    }
    each_policy_backs_up_its_own(&env).await?;
    another_pod_carries_on(&env).await?;
    released_when_the_policy_goes(&env).await?;
    checked_as_often_as_asked(&env).await?;
    gone_and_still_restorable(&env, &data).await?;
    env.cluster.down()
}

/// The same name in two namespaces, and one for the cluster.
fn policies(env: &Env) -> Result<()> {
    let schedule = format!("@every {EVERY}s");
    let spec = |more: serde_json::Value| {
        let mut spec = json!({
            "schedule": {"cron": schedule},
            "storageLocation": "default",
            "retention": {"keepLast": 2, "minimumGood": 1},
        });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        spec
    };
    let policy = |kind: &str, namespace: Option<&str>, name: &str, spec| {
        json!({
            "apiVersion": "jackline.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        })
    };
    let along = json!({"deletionPolicy": "Delete"});
    let cluster = json!({
        "namespaces": {"include": ["shop"]},
        "repository": {"prune": schedule, "check": schedule, "checkReadData": "50%"},
    });
    for document in [
        policy("BackupPolicy", Some("team-a"), "nightly", spec(json!({}))),
        policy("BackupPolicy", Some("team-b"), "nightly", spec(along)),
        policy("ClusterBackupPolicy", None, "everything", spec(cluster)),
    ] {
        env.cluster.apply(&document.to_string())?;
    }
    Ok(())
}

/// The pods of a namespace whose annotation names volumes, and the volumes.
async fn carriers(env: &Env, namespace: &str) -> Result<Vec<(String, String)>> {
    let pods = env
        .api_in::<Pod>(namespace)
        .list(&ListParams::default())
        .await?;
    let named = pods
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let named = named.filter_map(|pod| {
        let volumes = pod
            .annotations()
            .get(names::annotation::BACKUP_VOLUMES)?
            .clone();
        Some((pod.name_any(), volumes))
    });
    Ok(named.collect())
}

async fn one_carrier(env: &Env, namespace: &str) -> Result<String> {
    let what = format!("one pod of {namespace} carries the claim, and not the cache");
    until(&what, MINUTE, async || {
        let carriers = carriers(env, namespace).await?;
        Ok(match carriers.as_slice() {
            [(pod, volumes)] if volumes == "data" => Some(pod.clone()),
            _ => None,
        })
    })
    .await
}

/// The completed backups whose name starts so, with their volumes.
async fn completed(env: &Env, prefix: &str) -> Result<Vec<(Backup, Vec<PodVolumeBackup>)>> {
    let backups = env.api::<Backup>().list(&ListParams::default()).await?;
    let mut found = Vec::new();
    for backup in backups.items {
        if backup.name_any().starts_with(prefix) && backup.phase() == BackupPhase::Completed {
            let volumes = env.volumes_of(&backup.name_any()).await?;
            found.push((backup, volumes));
        }
    }
    Ok(found)
}

async fn each_policy_backs_up_its_own(env: &Env) -> Result<()> {
    for (prefix, namespace) in [
        ("team-a-nightly-", "team-a"),
        ("team-b-nightly-", "team-b"),
        ("everything-", "shop"),
    ] {
        let what = format!("a backup {prefix}… with data");
        let (backup, volumes) = until(&what, 2 * MINUTE, async || {
            let with_data = |(_, volumes): &(_, Vec<_>)| !volumes.is_empty();
            Ok(completed(env, prefix).await?.into_iter().find(with_data))
        })
        .await?;
        let included = backup.spec.included_namespaces.clone();
        ensure!(included == [namespace], "{prefix}: {included:?}");
        ensure!(
            volumes.len() == 1,
            "a shared claim is backed up once: {volumes:?}"
        );
        let pod = &volumes[0].spec.pod;
        ensure!(pod.namespace.as_deref() == Some(namespace), "{pod:?}");

        let protected = |coverage: &BackupCoverage| {
            let status = coverage.status.as_ref();
            status.is_some_and(|status| status.summary.protected == 1)
        };
        let coverage = env.api_in::<BackupCoverage>(namespace);
        wait_for(&coverage, names::COVERAGE, MINUTE, protected).await?;
    }
    Ok(())
}

async fn another_pod_carries_on(env: &Env) -> Result<()> {
    let first = one_carrier(env, "team-a").await?;
    env.api_in::<Pod>("team-a")
        .delete(&first, &DeleteParams::default())
        .await?;
    until("another pod carries the claim", MINUTE, async || {
        let second = one_carrier(env, "team-a").await?;
        Ok((second != first).then_some(()))
    })
    .await
}

async fn released_when_the_policy_goes(env: &Env) -> Result<()> {
    let policies = env.api_in::<BackupPolicy>("team-b");
    until("team-b has two backups", MINUTE, async || {
        let backups = completed(env, "team-b-nightly-").await?;
        Ok((backups.len() >= 2).then_some(()))
    })
    .await?;
    policies.delete("nightly", &DeleteParams::default()).await?;
    until(
        "the pods of team-b carry no annotation",
        MINUTE,
        async || Ok(carriers(env, "team-b").await?.is_empty().then_some(())),
    )
    .await?;
    one_carrier(env, "team-a").await?;
    // Its backups go with it, down to the last of a volume that is still there.
    wait_gone(&policies, "nightly", MINUTE).await?;
    until("one backup of team-b is left", MINUTE, async || {
        let backups = completed(env, "team-b-nightly-").await?;
        let held: usize = backups.iter().map(|(_, volumes)| volumes.len()).sum();
        Ok((backups.len() == 1 && held == 1).then_some(()))
    })
    .await
}

/// A Job has read a share of the repository, and found nothing wrong.
async fn checked_as_often_as_asked(env: &Env) -> Result<()> {
    let repositories = env.api::<BackupRepository>();
    let checked = |repository: &BackupRepository| {
        let at = repository.annotations().get(annotation::CHECKED_AT);
        repository.spec.volume_namespace == "shop" && at.is_some()
    };
    let repository = until(
        "the repository of shop is checked",
        4 * MINUTE,
        async || {
            let all = repositories.list(&ListParams::default()).await?;
            Ok(all.items.into_iter().find(checked))
        },
    )
    .await?;
    let selector = format!("{}={}", label::REPOSITORY_NAME, repository.name_any());
    let jobs = env
        .api::<Job>()
        .list(&ListParams::default().labels(&selector))
        .await?;
    let arguments = |job: &Job| {
        let spec = job
            .spec
            .as_ref()
            .and_then(|spec| spec.template.spec.as_ref());
        let container = spec.and_then(|spec| spec.containers.first());
        container
            .and_then(|container| container.args.clone())
            .unwrap_or_default()
    };
    let read = |job: &Job| arguments(job).contains(&"--read-data=50".to_owned());
    ensure!(jobs.items.iter().any(read), "no Job read half of the data");
    Ok(())
}

/// Fills the shared volume and returns what it holds.
async fn write(env: &Env, namespace: &str) -> Result<Tree> {
    let pods = env.ready_pods(namespace, "app=web").await?;
    let pod = pods.first().context("a pod runs")?;
    let root = env.volume_dir(namespace, pod, "data").await?;
    fs::create_dir(root.join("dir"))?;
    fs::write(root.join("dir/file"), vec![7; 100_000])?;
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o640))?;
    chown(root.join("dir/file"), Some(1001), Some(1002))?;
    symlink("dir/file", root.join("link"))?;
    tree(&root)
}

/// What a volume holds. Of its root directory itself restic's format keeps nothing.
fn tree(root: &Path) -> Result<Tree> {
    Ok(Tree::read(root)?.without(&[""]))
}

async fn gone_and_still_restorable(env: &Env, data: &Tree) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("shop", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "shop", 2 * MINUTE).await?;
    let before: BTreeSet<String> = names_of(env).await?;
    let seen = tokio::sync::Mutex::new(BTreeSet::new());
    until(
        "ten more runs",
        Duration::from_secs(30 * EVERY),
        async || {
            let mut seen = seen.lock().await;
            seen.extend(names_of(env).await?.difference(&before).cloned());
            Ok((seen.len() >= 10).then_some(()))
        },
    )
    .await?;

    let with_data = completed(env, "everything-").await?;
    let with_data = with_data.iter().filter(|(_, volumes)| {
        volumes
            .iter()
            .any(|v| v.status.as_ref().is_some_and(|s| s.snapshot_id.is_some()))
    });
    let newest = with_data.map(|(backup, _)| backup.name_any()).max();
    let newest = newest.context("no backup with the namespace's data is left")?;
    let spec = RestoreSpec {
        backup_name: Some(newest),
        ..RestoreSpec::default()
    };
    let restore = Restore::new("back", spec);
    env.api::<Restore>()
        .create(&PostParams::default(), &restore)
        .await?;
    env.restore_completed("back", 3 * MINUTE).await?;
    let pod = until("a pod runs again", 2 * MINUTE, async || {
        Ok(env.ready_pods("shop", "app=web").await?.into_iter().next())
    })
    .await?;
    let volume = env.volume_dir("shop", &pod, "data").await?;
    // It stays until the last pod that shares the volume has gone on.
    let done = volume.join(names::RESTORE_DONE_DIR);
    until("the done-file goes", MINUTE, async || {
        Ok((!done.exists()).then_some(()))
    })
    .await?;
    tree(&volume)?.same_as(data)?;
    content(env, "shop").await
}

/// What a policy writes while restic reads may look like damage: once it finds none.
async fn content(env: &Env, namespace: &str) -> Result<()> {
    let restic = env.restic(namespace).await?;
    until("restic finds no damage", MINUTE, async || {
        restic.check().map(Some)
    })
    .await
}

/// The backups of the cluster's policy.
async fn names_of(env: &Env) -> Result<BTreeSet<String>> {
    let backups = env.api::<Backup>().list(&ListParams::default()).await?;
    let names = backups.items.iter().map(ResourceExt::name_any);
    Ok(names
        .filter(|name| name.starts_with("everything-"))
        .collect())
}
