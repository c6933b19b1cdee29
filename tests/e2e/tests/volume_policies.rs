//! Volume policies: a ConfigMap decides which volumes are read, before anybody's annotations do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupPhase};
use jackline_e2e::{Env, Velero, until};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const WORKLOADS: &str = include_str!("volume_policies.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_read_as_the_policies_say() -> Result<()> {
    let env = Env::up("volume-policies").await?;
    let velero = Velero::new(&env).await?;
    env.cluster.apply(WORKLOADS)?;
    until("the pod runs", 2 * MINUTE, async || {
        let pods = env.ready_pods("shelf", "app=shelf").await?;
        Ok((pods.len() == 1).then_some(()))
    })
    .await?;
    policies_come_first(&env, &velero).await?;
    opting_out_changes_nothing(&env, &velero).await?;
    volumes_that_are_not_stored_are_known(&env, &velero).await?;
    what_cannot_be_is_refused(&env, &velero).await?;
    env.cluster.down()
}

async fn create(env: &Env, velero: &Velero, name: &str, more: &str) -> Result<Backup> {
    velero.run(&format!(
        "backup create {name} --include-namespaces shelf --resource-policies-configmap policies {more} --wait"
    ))?;
    Ok(env.api::<Backup>().get(name).await?)
}

/// The volumes that a backup has read, by name.
async fn read(env: &Env, backup: &str) -> Result<Vec<String>> {
    let volumes = env.volumes_of(backup).await?;
    let mut names: Vec<String> = volumes
        .into_iter()
        .map(|volume| volume.spec.volume)
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn skipped(volume: &str, policy: usize) -> String {
    format!(
        "Skip volume {volume}: matched action is 'skip' in chosen resource policies (volumePolicies[{policy}])"
    )
}

async fn policies_come_first(env: &Env, velero: &Velero) -> Result<()> {
    let backup = create(env, velero, "one", "").await?;
    let status = backup.status.context("a status")?;
    // The volume that is left to snapshots, which there are none of.
    ensure!(
        status.phase == Some(BackupPhase::Completed) && status.warnings == 1,
        "{status:?}"
    );
    let names = read(env, "one").await?;
    ensure!(names == ["books", "maps"], "{names:?}");
    velero.says(
        "backup describe one --details",
        &[
            "Resource policies: Type: configmap Name: policies",
            "message: /Skip volume disk: matched action is 'snapshot' in chosen resource policies (volumePolicies[2]), \
             but native volume snapshots are not taken",
        ],
    )?;
    let log = velero.run("backup logs one")?;
    for (volume, policy) in [("archive", 0), ("cache", 1)] {
        let wanted = format!("level=info msg={:?}", skipped(volume, policy));
        ensure!(log.contains(&wanted), "{wanted} is missing in\n{log}");
    }
    let infos = env.packed("backups/one/one-volumeinfo.json.gz").await?;
    let mut infos = infos.as_array().context("a list")?.iter();
    let archive = infos.find(|info| info["pvcName"] == "archive");
    let archive = archive.context("the skipped claim")?;
    ensure!(
        archive["skipped"] == true && archive["skippedReason"] == skipped("archive", 0).as_str(),
        "{archive}"
    );
    Ok(())
}

async fn opting_out_changes_nothing(env: &Env, velero: &Velero) -> Result<()> {
    let names = "backup.velero.io/backup-volumes-excludes=books,maps";
    env.cluster
        .kubectl(["-n", "shelf", "annotate", "pod", "shelf", names])?;
    create(env, velero, "all", "--default-volumes-to-fs-backup").await?;
    let names = read(env, "all").await?;
    ensure!(names == ["books"], "{names:?}");
    Ok(())
}

/// A class is that of the PersistentVolume, whether it is in the backup or not.
async fn volumes_that_are_not_stored_are_known(env: &Env, velero: &Velero) -> Result<()> {
    create(env, velero, "bare", "--include-cluster-resources=false").await?;
    let names = read(env, "bare").await?;
    ensure!(names == ["books", "maps"], "{names:?}");
    let list = velero.run("backup describe bare --details")?;
    ensure!(!list.contains("v1/PersistentVolume:"), "{list}");
    Ok(())
}

async fn what_cannot_be_is_refused(env: &Env, velero: &Velero) -> Result<()> {
    let read = "fail to read the ResourcePolicies from ConfigMap velero/policies with error: ";
    let policy = "version: v1\nvolumePolicies:\n- ";
    let table = [
        (
            json!({}),
            format!("{read}it has 0 keys in data; allowed: one"),
        ),
        (
            json!({"a": "version: v1", "b": "version: v1"}),
            format!("{read}it has 2 keys in data; allowed: one"),
        ),
        (json!({"a": "version: [v1"}), read.to_owned()),
        (
            json!({"a": "version: v2"}),
            format!("{read}version: found \"v2\"; allowed: v1"),
        ),
        (
            json!({"a": format!("{policy}conditions: {{storageClasses: [csi]}}\n  action: {{type: skip}}")}),
            format!(
                "{read}volumePolicies[0].conditions: found \"storageClasses\"; allowed: capacity, "
            ),
        ),
        (
            json!({"a": format!("{policy}action: {{type: forget}}")}),
            format!(
                "{read}volumePolicies[0].action.type: found \"forget\"; allowed: skip, fs-backup, snapshot"
            ),
        ),
    ];
    let configs = env.api::<ConfigMap>();
    for (at, (data, expected)) in table.into_iter().enumerate() {
        let mut config = configs.get("policies").await?;
        config.data = Some(serde_json::from_value(data)?);
        configs
            .replace("policies", &PostParams::default(), &config)
            .await?;
        refused(env, velero, &format!("wrong-{at}"), &expected).await?;
    }
    configs.delete("policies", &DeleteParams::default()).await?;
    let missing =
        "fail to get ResourcePolicies velero/policies ConfigMap with error: it does not exist";
    refused(env, velero, "missing", missing).await?;
    // Who does not ask for it is not concerned.
    let said = velero.run("backup create other --include-namespaces shelf --wait")?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    Ok(())
}

async fn refused(env: &Env, velero: &Velero, name: &str, expected: &str) -> Result<()> {
    let backup = create(env, velero, name, "").await?;
    let status = backup.status.context("a status")?;
    ensure!(
        status.phase == Some(BackupPhase::FailedValidation),
        "{name}: {status:?}"
    );
    ensure!(
        matches!(status.validation_errors.as_slice(), [why] if why.starts_with(expected)),
        "{name}: {status:?}"
    );
    Ok(())
}
