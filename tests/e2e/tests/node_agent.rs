//! The node agent where it can hurt: killed in the middle of a volume, killed in the middle of a restore, blind to a volume's mount.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupSpec, PodVolumeBackup, PodVolumePhase, PodVolumeRestore, Restore,
    RestoreSpec,
};
use jackline_e2e::{Env, NAMESPACE, Tree, deploy, until, wait_gone};
use jackline_faults::When;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const NS: &str = "stock";
/// Enough that a kill comes in the middle.
const MEBIBYTES: u64 = 384;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_die_and_may_be_blind_but_never_lies() -> Result<()> {
    let env = Env::up("node-agent").await?;
    env.cluster.apply(&workload("box", "box-data"))?;
    runs(&env, "box").await?;
    fill(&env.volume_dir(NS, "box", "data").await?, 1)?;
    killed_while_it_reads(&env).await?;
    killed_while_it_writes(&env).await?;
    ended_by_another_while_it_reads(&env).await?;
    one_volume_at_a_time(&env).await?;
    a_part_of_a_volume_is_mounted(&env).await?;
    killed_over_one_volume_again_and_again(&env).await?;
    blind_to_a_mount(&env).await?;
    env.cluster.down()
}

/// A pod with a claim, an `emptyDir` on disk and one in memory, all to be backed up.
fn workload(pod: &str, claim: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {NS}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {claim}, namespace: {NS}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  namespace: {NS}
  labels: {{app: {pod}}}
  annotations: {{backup.velero.io/backup-volumes: "data,disk,memory"}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: docker.io/local/busybox:1
    command: [/bin/sh, -c, "echo d > /disk/file; echo m > /memory/file; while :; do sleep 1; done"]
    volumeMounts:
    - {{name: data, mountPath: /data}}
    - {{name: disk, mountPath: /disk}}
    - {{name: memory, mountPath: /memory}}
  volumes:
  - {{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}
  - {{name: disk, emptyDir: {{}}}}
  - {{name: memory, emptyDir: {{medium: Memory}}}}
"#
    )
}

async fn runs(env: &Env, pod: &str) -> Result<()> {
    let label = format!("app={pod}");
    until(&format!("{pod} runs"), 2 * MINUTE, async || {
        Ok((!env.ready_pods(NS, &label).await?.is_empty()).then_some(()))
    })
    .await
}

/// Bytes that neither compress nor repeat, in a few files.
fn fill(root: &Path, seed: u64) -> Result<()> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ seed;
    for file in 0..6 {
        let mut out = File::create(root.join(format!("file-{file}")))?;
        let mut block = vec![0_u8; 1 << 20];
        for _ in 0..MEBIBYTES / 6 {
            for word in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            out.write_all(&block)?;
        }
    }
    Ok(())
}

async fn agent(env: &Env) -> Result<String> {
    until("the agent is ready", 2 * MINUTE, async || {
        Ok(env.ready_pods(NAMESPACE, "name=node-agent").await?.pop())
    })
    .await
}

async fn kill(env: &Env, pod: &str) -> Result<()> {
    env.cluster
        .kill_container(NAMESPACE, pod, "node-agent")
        .await
}

async fn backup(env: &Env, name: &str) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": [NS]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new(name, spec))
        .await?;
    Ok(())
}

/// The PodVolumeBackup of a volume of a backup, once `good`.
async fn volume(
    env: &Env,
    backup: &str,
    volume: &str,
    good: impl Fn(&PodVolumeBackup) -> bool,
) -> Result<PodVolumeBackup> {
    until(
        &format!("volume {volume} of {backup}"),
        2 * MINUTE,
        async || {
            let volumes = env.volumes_of(backup).await?;
            Ok(volumes
                .into_iter()
                .find(|v| v.spec.volume == volume && good(v)))
        },
    )
    .await
}

/// Begins a backup: some data has reached the bucket, and the volume is not done.
async fn partly_read(env: &Env, name: &str) -> Result<()> {
    let size = async || {
        let packs = format!("restic/{NS}/data/");
        env.cluster.s3().size(jackline_e2e::BUCKET, &packs).await
    };
    let before = size().await?;
    backup(env, name).await?;
    volume(env, name, "data", |v| {
        v.phase() == PodVolumePhase::InProgress
    })
    .await?;
    until("data in the bucket", MINUTE, async || {
        Ok((size().await? > before + (32 << 20)).then_some(()))
    })
    .await
}

async fn killed_while_it_reads(env: &Env) -> Result<()> {
    let agent = agent(env).await?;
    partly_read(env, "killed").await?;
    kill(env, &agent).await?;
    let killed = Instant::now();
    let before = volume(env, "killed", "data", |_| true).await?;
    ensure!(
        before.phase() == PodVolumePhase::InProgress,
        "the kill came too late: {:?}",
        before.status
    );
    env.restic(NS).await?.check()?;
    env.backup_completed("killed", 3 * MINUTE).await?;
    println!(
        "backup completed {:.1} s after the agent's death",
        killed.elapsed().as_secs_f64()
    );
    let volumes = env.volumes_of("killed").await?;
    ensure!(volumes.len() == 3, "{volumes:?}");
    for volume in &volumes {
        let status = volume.status.clone().unwrap_or_default();
        ensure!(
            status.snapshot_id.is_some_and(|id| id.len() == 8),
            "{volume:?}"
        );
        ensure!(status.path.is_some(), "{volume:?}");
    }
    let after = volume(env, "killed", "data", |_| true).await?;
    ensure!(
        after.uid() == before.uid(),
        "it was taken over, not made anew"
    );
    let restic = env.restic(NS).await?;
    ensure!(
        restic.snapshots()?.len() == 3,
        "one per volume: nothing was left behind"
    );
    ensure!(
        restic.locks()?.is_empty(),
        "the dead agent's lock is gone: {:?}",
        restic.locks()?
    );
    restic.check()
}

async fn killed_while_it_writes(env: &Env) -> Result<()> {
    // A snapshot made of `.` holds a directory's contents and not the directory itself: its own times cannot come back.
    let before = Tree::read(&env.volume_dir(NS, "box", "data").await?)?.without(&[""]);
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(NS, &DeleteParams::default()).await?;
    wait_gone(&namespaces, NS, 2 * MINUTE).await?;
    let agent = agent(env).await?;
    let spec = RestoreSpec {
        backup_name: Some("killed".to_owned()),
        ..RestoreSpec::default()
    };
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("back", spec))
        .await?;
    let data = async || -> Result<Option<PodVolumeRestore>> {
        let all = env
            .api::<PodVolumeRestore>()
            .list(&kube::api::ListParams::default())
            .await?;
        Ok(all
            .items
            .into_iter()
            .find(|restore| restore.spec.volume == "data"))
    };
    until(
        "the restore of the data is under way",
        2 * MINUTE,
        async || {
            Ok(data()
                .await?
                .filter(|restore| restore.phase() == PodVolumePhase::InProgress))
        },
    )
    .await?;
    kill(env, &agent).await?;
    let killed = Instant::now();
    let then = data().await?.context("the restore is there")?;
    ensure!(
        then.phase() == PodVolumePhase::InProgress,
        "the kill came too late: {:?}",
        then.status
    );
    ensure!(
        env.ready_pods(NS, "app=box").await?.is_empty(),
        "the pod waits for its data"
    );
    env.restore_completed("back", 3 * MINUTE).await?;
    println!(
        "restore completed {:.1} s after the agent's death",
        killed.elapsed().as_secs_f64()
    );
    runs(env, "box").await?;
    let dir = env.volume_dir(NS, "box", "data").await?;
    until("the done-file is gone", MINUTE, async || {
        Ok((!dir.join(".velero").exists()).then_some(()))
    })
    .await?;
    before.same_as(&Tree::read(&dir)?.without(&[""]))?;
    env.restic(NS).await?.check()
}

/// What the controller gave up on stays so, and the snapshot that nobody knows of is not made.
async fn ended_by_another_while_it_reads(env: &Env) -> Result<()> {
    fill(&env.volume_dir(NS, "box", "data").await?, 2)?;
    partly_read(env, "given-up").await?;
    let before = volume(env, "given-up", "data", |_| true).await?;
    ensure!(
        before.phase() == PodVolumePhase::InProgress,
        "too late: {:?}",
        before.status
    );
    let failed = json!({"status": {"phase": "Failed", "message": "given up"}});
    env.api::<PodVolumeBackup>()
        .patch(
            &before.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&failed),
        )
        .await?;
    env.backup_ended("given-up", 3 * MINUTE).await?;
    let restic = env.restic(NS).await?;
    until("the agent has let go", 2 * MINUTE, async || {
        Ok(restic.locks()?.is_empty().then_some(()))
    })
    .await?;
    let after = volume(env, "given-up", "data", |_| true).await?;
    let status = after.status.unwrap_or_default();
    ensure!(
        status.phase == Some(PodVolumePhase::Failed)
            && status.message.as_deref() == Some("given up")
            && status.snapshot_id.is_none(),
        "{status:?}"
    );
    // Those of the two other volumes, beside the three of the backup before.
    let snapshots = restic.snapshots()?.len();
    ensure!(snapshots == 5, "{snapshots} snapshots");
    restic.check()
}

/// As many volumes as Velero's ConfigMap says: what is small waits for what is large.
async fn one_volume_at_a_time(env: &Env) -> Result<()> {
    let agents = json!({"loadConcurrency": {"globalConfig": 1}}).to_string();
    env.cluster.apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "node-agent-config", "namespace": NAMESPACE},
            "data": {"node-agent-config.json": agents}})
        .to_string(),
    )?;
    let restart = [
        "-n",
        NAMESPACE,
        "rollout",
        "restart",
        "daemonset/node-agent",
    ];
    env.cluster.kubectl(restart)?;
    deploy::rolled_out(&env.cluster, "daemonset/node-agent")?;
    fill(&env.volume_dir(NS, "box", "data").await?, 3)?;
    backup(env, "in-turn").await?;
    env.backup_completed("in-turn", 3 * MINUTE).await?;
    let mut turns = Vec::new();
    for volume in env.volumes_of("in-turn").await? {
        let status = volume.status.unwrap_or_default();
        let (start, end) = (status.start_timestamp, status.completion_timestamp);
        turns.push((start.context("a start")?.0, end.context("an end")?.0));
    }
    turns.sort_unstable();
    ensure!(turns.len() == 3, "{turns:?}");
    let apart = |pair: &[(_, _)]| pair[0].1 <= pair[1].0;
    ensure!(turns.windows(2).all(apart), "{turns:?}");
    Ok(())
}

/// Of a volume that a container sees a part of all is kept, and it is seen again when it is restored.
async fn a_part_of_a_volume_is_mounted(env: &Env) -> Result<()> {
    let namespace = "parts";
    env.cluster.apply(include_str!("node_agent.yaml"))?;
    let runs = async || {
        until("the pod runs", 2 * MINUTE, async || {
            Ok((env.ready_pods(namespace, "app=part").await?.len() == 1).then_some(()))
        })
        .await
    };
    runs().await?;
    let dir = env.volume_dir(namespace, "part", "data").await?;
    std::fs::create_dir(dir.join("unseen"))?;
    std::fs::write(dir.join("unseen/file"), "x")?;
    until("its command has written", MINUTE, async || {
        Ok(dir.join("two/file").exists().then_some(()))
    })
    .await?;
    let before = Tree::read(&dir)?.without(&[""]);
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": [namespace]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("part", spec))
        .await?;
    env.backup_completed("part", 2 * MINUTE).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces
        .delete(namespace, &DeleteParams::default())
        .await?;
    wait_gone(&namespaces, namespace, 2 * MINUTE).await?;
    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "part"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("part", spec))
        .await?;
    env.restore_completed("part", 2 * MINUTE).await?;
    runs().await?;
    let seen = env
        .cluster
        .exec(namespace, "part", &["sh", "-c", "ls /one; cat /one/file"])?;
    ensure!(seen.split_whitespace().eq(["file", "kept"]), "{seen}");
    let dir = env.volume_dir(namespace, "part", "data").await?;
    until("the done-file is gone", MINUTE, async || {
        Ok((!dir.join(".velero").exists()).then_some(()))
    })
    .await?;
    before.same_as(&Tree::read(&dir)?.without(&[""]))
}

/// One that it dies of each time is given up, and the others are kept: here it is killed whenever it has read all and stored nothing.
/// The controller looks every 15 seconds how far it is.
async fn killed_over_one_volume_again_and_again(env: &Env) -> Result<()> {
    const LOOK: Duration = Duration::from_secs(18);
    let (location, name) = ("deadly", "deadly");
    let proxy = env.proxied_bucket(location).await?;
    let dir = env.volume_dir("parts", "part", "data").await?;
    let write = |seed: u8| std::fs::write(dir.join("blob"), vec![seed; 1 << 20]);
    let back_up = async |name: &str, namespaces: &[&str]| {
        let spec = json!({"includedNamespaces": namespaces, "storageLocation": location});
        let backup = Backup::new(name, serde_json::from_value(spec)?);
        let backups = env.api::<Backup>();
        backups.create(&PostParams::default(), &backup).await?;
        anyhow::Ok(())
    };
    write(1)?;
    back_up("well", &["parts"]).await?;
    env.backup_completed("well", 2 * MINUTE).await?;
    write(2)?;

    let packs = "/restic/parts/data/";
    let _nothing_is_stored = proxy.hold(&["PUT", packs], When::Before);
    // Until then it waits for what it compares the volume with.
    let mut unread = proxy.hold(&["GET", packs], When::Before);
    back_up(name, &[NS, "parts"]).await?;
    let deadly = async |good: fn(i64) -> bool| {
        until("it is so far, or over", 3 * MINUTE, async || {
            let volumes = env.volumes_of(name).await?;
            Ok(volumes.into_iter().find(|volume| {
                let progress = volume.status.as_ref().and_then(|it| it.progress.as_ref());
                let so_far = progress.is_some_and(|progress| good(progress.bytes_done));
                volume.spec.pod.namespace.as_deref() == Some("parts")
                    && (so_far || volume.phase().is_terminal())
            }))
        })
        .await
    };
    let mut deaths = 0;
    let given_up = loop {
        let begun = deadly(|bytes| bytes == 0).await?;
        if begun.phase().is_terminal() {
            break begun;
        }
        ensure!(deaths < 15, "{begun:?}");
        tokio::time::sleep(LOOK).await;
        drop(unread);
        let read = deadly(|bytes| bytes > 0).await?;
        unread = proxy.hold(&["GET", packs], When::Before);
        if read.phase().is_terminal() {
            break read;
        }
        tokio::time::sleep(LOOK / 2).await;
        let agent = agent(env).await?;
        kill(env, &agent).await?;
        deaths += 1;
        // In the same pod the kubelet would have it wait longer each time.
        let now = DeleteParams::default().grace_period(0);
        env.api::<Pod>().delete(&agent, &now).await?;
    };
    drop(unread);
    let why = given_up.status.and_then(|status| status.message);
    let why = why.unwrap_or_default();
    ensure!(
        why.starts_with("begun 10 times without getting further than 1048"),
        "{why}"
    );
    ensure!(deaths >= 10, "{deaths} deaths");
    let ended = env.backup_ended(name, 3 * MINUTE).await?;
    let errors = ended.status.as_ref().map(|status| status.errors);
    ensure!(
        ended.phase() == BackupPhase::PartiallyFailed && errors == Some(1),
        "{ended:?}"
    );
    let mut volumes = env.volumes_of(name).await?;
    volumes.retain(|volume| volume.spec.pod.namespace.as_deref() == Some(NS));
    ensure!(volumes.len() == 3, "{volumes:?}");
    for volume in volumes {
        ensure!(volume.phase() == PodVolumePhase::Completed, "{volume:?}");
    }
    Ok(())
}

/// Without mount propagation the agent sees the directories of volumes that were mounted after it started, but not the volumes.
async fn blind_to_a_mount(env: &Env) -> Result<()> {
    let old = agent(env).await?;
    let patch = r#"[{"op": "remove", "path": "/spec/template/spec/containers/0/volumeMounts/0/mountPropagation"}]"#;
    env.cluster.kubectl([
        "-n",
        NAMESPACE,
        "patch",
        "daemonset",
        "node-agent",
        "--type=json",
        "-p",
        patch,
    ])?;
    until("a blind agent runs", 2 * MINUTE, async || {
        let agents = env.ready_pods(NAMESPACE, "name=node-agent").await?;
        Ok((agents.len() == 1 && agents[0] != old).then_some(()))
    })
    .await?;
    // Another pod of the claim would fare no better, and is not tried.
    for pod in ["unseen", "unseen-too"] {
        env.cluster.apply(&workload(pod, "unseen-data"))?;
        runs(env, pod).await?;
    }
    let data = env.volume_dir(NS, "unseen", "data").await?;
    std::fs::write(data.join("precious"), "x")?;
    backup(env, "blind").await?;
    let ended = env.backup_ended("blind", 3 * MINUTE).await?;
    ensure!(ended.phase() == BackupPhase::PartiallyFailed, "{ended:?}");
    let mut volumes = env.volumes_of("blind").await?;
    let of_them = ["unseen", "unseen-too"].map(Some);
    volumes.retain(|volume| of_them.contains(&volume.spec.pod.name.as_deref()));
    ensure!(volumes.len() == 5, "{volumes:?}");
    for volume in volumes {
        let status = volume.status.clone().unwrap_or_default();
        let message = status.message.unwrap_or_default();
        if volume.spec.volume == "disk" {
            // A plain directory of the node's own disk: nothing has to be mounted for it.
            ensure!(
                status.phase == Some(PodVolumePhase::Completed),
                "disk: {message}"
            );
            continue;
        }
        ensure!(
            status.phase == Some(PodVolumePhase::Failed),
            "{}: {:?}",
            volume.spec.volume,
            status.phase
        );
        ensure!(status.snapshot_id.is_none());
        ensure!(
            message.contains("mountPropagation") && message.contains(&volume.spec.volume),
            "{message}"
        );
    }
    Ok(())
}
