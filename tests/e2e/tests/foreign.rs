//! A Velero in the same namespace: nothing is dispatched while it runs, which is said, and everything goes on when it is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::ClusterBackupPolicy;
use jackline_crds::velero::{
    Backup, BackupPhase, BackupSpec, PodVolumeBackup, PodVolumePhase, Restore, RestorePhase,
    RestoreSpec,
};
use jackline_e2e::{Env, Jackline, NAMESPACE, until, wait_for, wait_gone};
use jackline_test_cluster::ImageSpec;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_work_on_the_same_objects() -> Result<()> {
    let env = Env::up("foreign").await?;
    let image = ImageSpec::new("docker.io/local/velero:1")
        .file("/bin/busybox", "/bin/busybox", 0o755)
        .link("/bin/sh", "busybox")
        .bytes("/velero", "#!/bin/sh\nexec busybox sleep 1000000\n", 0o755);
    env.cluster.load_image(&image)?;
    env.cluster.apply(include_str!("foreign.yaml"))?;
    until("the pod runs", MINUTE, async || {
        Ok((env.ready_pods("team", "app=worker").await?.len() == 1).then_some(()))
    })
    .await?;
    let doctor = Doctor(Jackline::new(&env)?);
    until("all is well", MINUTE, async || {
        Ok(doctor.asked(&[])?.0.then_some(()))
    })
    .await?;
    alone(&env).await?;
    beside_a_server(&env, &doctor).await?;
    beside_an_agent(&env, &doctor).await?;
    env.cluster.down()
}

/// `jackline doctor`, as a person asks it.
struct Doctor(Jackline);

impl Doctor {
    /// Whether it is content, and what it says.
    fn asked(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.0.output(&[&["doctor"], arguments].concat())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(!said.is_empty(), "{complaint}");
        Ok((output.status.success(), said))
    }

    /// The findings of one check: verdict and detail.
    fn findings(&self, check: &str) -> Result<Vec<(String, String)>> {
        let said: Value = serde_json::from_str(&self.asked(&["-o", "json"])?.1)?;
        let all = said["findings"].as_array().context("findings")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = all.iter().filter(|finding| finding["check"] == check);
        Ok(of
            .map(|finding| (text(&finding["verdict"]), text(&finding["detail"])))
            .collect())
    }
}

async fn alone(env: &Env) -> Result<()> {
    back_up(env, "before").await?;
    env.backup_completed("before", MINUTE).await?;
    ready(env, true, "Accepted").await
}

async fn back_up(env: &Env, name: &str) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": ["team"]}))?;
    let backup = Backup::new(name, spec);
    env.api::<Backup>()
        .create(&PostParams::default(), &backup)
        .await?;
    Ok(())
}

async fn ready(env: &Env, ready: bool, reason: &str) -> Result<()> {
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    let wanted = if ready { "True" } else { "False" };
    wait_for(&policies, "team", MINUTE, |policy| {
        let status = policy.status.iter();
        let mut conditions = status.flat_map(|status| &status.conditions);
        conditions.any(|condition| {
            condition.type_ == "Ready" && condition.status == wanted && condition.reason == reason
        })
    })
    .await?;
    Ok(())
}

async fn warned(env: &Env, name: &str, of: &str) -> Result<()> {
    until("an event says why", MINUTE, async || {
        let events: Api<Event> = env.api_in(NAMESPACE);
        let fields = format!("involvedObject.name={name},reason=ForeignVelero");
        let events = events.list(&ListParams::default().fields(&fields)).await?;
        let note = |event: &Event| event.message.clone().unwrap_or_default();
        let said = events.items.iter().any(|event| {
            let note = note(event);
            note.contains(of) && note.contains("scale the Deployment velero to zero")
        });
        Ok(said.then_some(()))
    })
    .await
}

async fn beside_a_server(env: &Env, doctor: &Doctor) -> Result<()> {
    let scale = |replicas: u8| {
        let replicas = format!("--replicas={replicas}");
        let scale = ["-n", NAMESPACE, "scale", "deployment/velero", &replicas];
        env.cluster.kubectl(scale)
    };
    scale(1)?;
    until("the server runs", MINUTE, async || {
        Ok((env.ready_pods(NAMESPACE, "deploy=velero").await?.len() == 1).then_some(()))
    })
    .await?;
    ready(env, false, "ForeignVelero").await?;
    back_up(env, "beside").await?;
    let spec: RestoreSpec = serde_json::from_value(
        json!({"backupName": "before", "namespaceMapping": {"team": "copy"}}),
    )?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new("beside", spec))
        .await?;
    warned(env, "beside", "server of Velero").await?;
    let findings = doctor.findings("no other server")?;
    ensure!(
        findings.len() == 1 && findings[0].0 == "problem",
        "{findings:?}"
    );
    ensure!(findings[0].1.contains("--engine velero"), "{findings:?}");
    let (content, said) = doctor.asked(&[])?;
    ensure!(!content && said.contains("PROBLEM"), "{said}");
    ensure!(env.api::<Backup>().get("beside").await?.phase() == BackupPhase::New);
    ensure!(restores.get("beside").await?.phase() == RestorePhase::New);

    scale(0)?;
    env.backup_completed("beside", MINUTE).await?;
    env.restore_completed("beside", MINUTE).await?;
    ready(env, true, "Accepted").await?;
    let (content, said) = doctor.asked(&[])?;
    ensure!(content, "{said}");
    Ok(())
}

/// A node agent of ours leaves volumes alone for which another works on its node.
async fn beside_an_agent(env: &Env, doctor: &Doctor) -> Result<()> {
    let pods: Api<Pod> = env.api_in(NAMESPACE);
    let agent = serde_json::from_value(json!({
        "metadata": {"name": "old-agent"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "node-agent", "image": "docker.io/local/velero:1",
            "imagePullPolicy": "Never", "command": ["/velero"], "args": ["node-agent", "server"]}]}
    }))?;
    pods.create(&PostParams::default(), &agent).await?;
    let running = |pod: &Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Running")
    };
    wait_for(&pods, "old-agent", MINUTE, running).await?;
    let findings = doctor.findings("no other server")?;
    ensure!(
        findings.len() == 1 && findings[0].1.contains("node agent of Velero"),
        "{findings:?}"
    );

    let done = env.volumes_of("before").await?;
    let done = done.first().context("a volume")?;
    let mut volume = PodVolumeBackup::new("by-hand", done.spec.clone());
    volume.metadata.labels = Some(done.labels().clone());
    let volumes = env.api::<PodVolumeBackup>();
    volumes.create(&PostParams::default(), &volume).await?;
    warned(env, "by-hand", "node agent of Velero").await?;
    ensure!(volumes.get("by-hand").await?.phase() == PodVolumePhase::New);

    pods.delete("old-agent", &DeleteParams::default()).await?;
    wait_gone(&pods, "old-agent", MINUTE).await?;
    let completed = |volume: &PodVolumeBackup| volume.phase() == PodVolumePhase::Completed;
    wait_for(&volumes, "by-hand", MINUTE, completed).await?;
    Ok(())
}
