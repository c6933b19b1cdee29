//! Many volumes, and volumes with many files, through the node agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jackline_e2e::{Env, NAMESPACE, Restic, until};
use serde_json::{Value, json};

use super::{LIMIT, backup, peak_memory};

const AT_ONCE: usize = 4;
const MANY_FILES: usize = 200_000;
const FILES_IN_DIRECTORY: usize = 1_000;
/// The kubelet runs no more than 110 pods, and some are taken.
const PODS: usize = 10;
const VOLUMES_IN_POD: usize = 10;
const FILES_IN_VOLUME: usize = 5;
const FILE: usize = 20_000;

/// Backs up four volumes of many files of 16 distinct bytes at once. Returns the node agent's peak memory in bytes and what
/// was backed up.
pub(crate) async fn four_at_once(env: &Env, small: bool) -> Result<(u64, String)> {
    let files = if small { MANY_FILES / 100 } else { MANY_FILES };
    let concurrency = format!("JACKLINE_CONCURRENCY={AT_ONCE}");
    let kubectl = |args: &[&str]| env.cluster.kubectl(args);
    kubectl(&[
        "-n",
        NAMESPACE,
        "set",
        "env",
        "daemonset/node-agent",
        &concurrency,
    ])?;
    kubectl(&[
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        "daemonset/node-agent",
        "--timeout=120s",
    ])?;
    let volumes = pods(env, "four", 1, AT_ONCE).await?;
    let written = volumes.into_iter().enumerate().map(|(volume, root)| {
        tokio::task::spawn_blocking(move || tiny_files(&root, volume, files))
    });
    for written in written {
        written.await??;
    }
    backup(env, "four", &["four"]).await?;
    let peak = peak_memory(env, "name=node-agent", "node-agent").await?;
    let running = env.volumes_of("four").await?;
    ensure!(
        running.len() == AT_ONCE,
        "{} volumes were backed up",
        running.len()
    );
    env.cluster
        .kubectl(["delete", "namespace", "four", "--wait=false"])?;
    Ok((peak, format!("{AT_ONCE} volumes of {files} files at once")))
}

/// Backs up a hundred volumes, and the same directories one after the other with the command line. Seconds of both.
pub(crate) async fn hundred(env: &Env, rounds: usize) -> Result<[Vec<f64>; 2]> {
    let volumes = pods(env, "hundred", PODS, VOLUMES_IN_POD).await?;
    for (number, root) in volumes.iter().enumerate() {
        for file in 0..FILES_IN_VOLUME {
            let text = format!("{number} {file} ").repeat(FILE / 4);
            fs::write(root.join(format!("file-{file}")), &text.as_bytes()[..FILE])?;
        }
    }
    let (mut ours, mut alone) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each round begins with an empty repository, as the command line does.
        let name = format!("hundred-{round}");
        ours.push(backup(env, &name, &["hundred"]).await?);
        ensure!(env.volumes_of(&name).await?.len() == volumes.len());
        alone.push(command_line(env, &name, &volumes).await?);
        for root in &volumes {
            fs::write(
                root.join("file-0"),
                format!("round {round} {}", root.display()),
            )?;
        }
    }
    env.cluster
        .kubectl(["delete", "namespace", "hundred", "--wait=false"])?;
    Ok([ours, alone])
}

async fn command_line(env: &Env, repository: &str, volumes: &[PathBuf]) -> Result<f64> {
    let password = env.repository_password().await?;
    let repository = Restic::new(
        env.cluster.s3(),
        jackline_e2e::BUCKET,
        repository,
        &password,
    );
    let program = std::env::current_exe()?.with_file_name("jackline");
    let volumes = volumes.to_vec();
    tokio::task::spawn_blocking(move || {
        let run = |args: &[&str], current: &Path| -> Result<()> {
            let mut command = Command::new(&program);
            command
                .arg("repository")
                .args(args)
                .envs(repository.environment());
            let output = command.current_dir(current).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success(),
                "jackline repository {args:?}: {said}"
            );
            Ok(())
        };
        run(&["init"], Path::new("/"))?;
        let started = Instant::now();
        for root in &volumes {
            run(&["backup", "."], root)?;
        }
        Ok(started.elapsed().as_secs_f64())
    })
    .await?
}

/// Makes a namespace with pods that have `volumes` each, all to be backed up. Returns the volumes' directories.
async fn pods(env: &Env, namespace: &str, pods: usize, volumes: usize) -> Result<Vec<PathBuf>> {
    env.cluster.kubectl(["create", "namespace", namespace])?;
    let names: Vec<String> = (0..volumes).map(|volume| format!("v{volume}")).collect();
    let list = |of: &dyn Fn(&String) -> Value| names.iter().map(of).collect::<Vec<_>>();
    let manifests: Vec<String> = (0..pods)
        .map(|pod| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("pod-{pod}"), "namespace": namespace, "labels": {"app": namespace},
                    "annotations": {"backup.velero.io/backup-volumes": names.join(",")}},
                "spec": {"terminationGracePeriodSeconds": 1, "volumes": list(&|name| json!({"name": name, "emptyDir": {}})),
                    "containers": [{"name": "box", "image": "docker.io/local/busybox:1",
                        "command": ["/bin/sh", "-c", "while :; do sleep 1; done"],
                        "volumeMounts": list(&|name| json!({"name": name, "mountPath": format!("/{name}")}))}]}})
            .to_string()
        })
        .collect();
    env.cluster.apply(&manifests.join("\n---\n"))?;
    let label = format!("app={namespace}");
    until("the pods with volumes are ready", LIMIT, async || {
        Ok((env.ready_pods(namespace, &label).await?.len() == pods).then_some(()))
    })
    .await?;
    let mut directories = Vec::new();
    for pod in 0..pods {
        for name in &names {
            directories.push(
                env.volume_dir(namespace, &format!("pod-{pod}"), name)
                    .await?,
            );
        }
    }
    Ok(directories)
}

fn tiny_files(root: &Path, volume: usize, files: usize) -> Result<()> {
    for number in 0..files {
        let directory = root.join(format!("{:04}", number / FILES_IN_DIRECTORY));
        if number % FILES_IN_DIRECTORY == 0 {
            fs::create_dir(&directory)?;
        }
        let content = format!("{volume:04}{number:012}");
        fs::write(directory.join(number.to_string()), content).context("write a small file")?;
    }
    Ok(())
}
