//! Hooks of restored pods: init containers and commands, from annotations and from the restore, well and ill, and when they run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{
    Backup, BackupSpec, PodVolumePhase, PodVolumeRestore, Restore, RestorePhase, RestoreSpec,
};
use jackline_e2e::{Env, NAMESPACE, Velero, until, wait_gone};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const BOX: &str = "docker.io/local/busybox:1";

#[tokio::test(flavor = "multi_thread")]
async fn restored_pods_get_their_hooks() -> Result<()> {
    let env = Env::up("restore-hooks").await?;
    let velero = Velero::new(&env).await?;
    workloads(&env).await?;
    back_up(&env).await?;
    restored(&env, &velero).await?;
    what_the_api_server_refuses_is_one_pod_s_error(&env, &velero).await?;
    none_runs_twice(&env, &velero).await?;
    wrong_hooks_are_refused(&env).await?;
    nobody_waits_for_what_others_wait_for(&env).await?;
    env.cluster.down()
}

fn pod(name: &str, annotations: Value, container: Value) -> String {
    let mut all = json!({"backup.velero.io/backup-volumes": "data"});
    if let (Some(all), Some(more)) = (all.as_object_mut(), annotations.as_object()) {
        all.extend(more.clone());
    }
    let mut spec = json!({"name": "box", "image": BOX, "imagePullPolicy": "Never", "command": ["sleep", "100000"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), container.as_object()) {
        spec.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "hooks", "labels": {"app": name}, "annotations": all},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [spec], "volumes": [{"name": "data", "emptyDir": {}}]}})
    .to_string()
}

async fn workloads(env: &Env) -> Result<()> {
    let annotated = json!({
        "init.hook.restore.velero.io/container-image": BOX,
        "init.hook.restore.velero.io/container-name": "fix",
        "init.hook.restore.velero.io/command": "[\"echo\", \"fixed\"]",
        "post.hook.restore.velero.io/command": "[\"cp\", \"/data/file\", \"/data/seen\"]",
    });
    let ready = json!({
        "post.hook.restore.velero.io/command": "[\"cp\", \"/tmp/ready\", \"/data/seen\"]",
        "post.hook.restore.velero.io/wait-for-ready": "true",
        "post.hook.restore.velero.io/wait-timeout": "1m",
    });
    let slow = json!({
        "command": ["sh", "-c", "sleep 3; echo ready > /tmp/ready; exec sleep 100000"],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1},
    });
    let never = json!({
        "post.hook.restore.velero.io/command": "/bin/true",
        "post.hook.restore.velero.io/wait-timeout": "3s",
    });
    let held = json!({"readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/go"]}, "periodSeconds": 1}});
    let manifests = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "hooks"}}).to_string(),
        pod("annotated", annotated, json!({})),
        pod("plain", json!({}), json!({})),
        pod("strict", json!({}), json!({})),
        pod("lax", json!({}), json!({})),
        pod("slow", ready, slow),
        pod("held", json!({}), held),
        pod(
            "never",
            never,
            json!({"image": "docker.io/local/nothing:1"}),
        ),
    ];
    env.cluster.apply(&manifests.join("\n---\n"))?;
    for app in ["annotated", "plain", "strict", "lax", "slow"] {
        until("a pod is ready", 2 * MINUTE, async || {
            let ready = env.ready_pods("hooks", &format!("app={app}")).await?;
            Ok((ready.len() == 1).then_some(()))
        })
        .await?;
    }
    let write = ["sh", "-c", "echo kept > /data/file"];
    env.cluster.exec("hooks", "annotated", &write)?;
    Ok(())
}

async fn back_up(env: &Env) -> Result<()> {
    let spec: BackupSpec = serde_json::from_value(json!({"includedNamespaces": ["hooks"]}))?;
    let backups = env.api::<Backup>();
    backups
        .create(&PostParams::default(), &Backup::new("hooks", spec))
        .await?;
    env.backup_completed("hooks", MINUTE).await?;
    Ok(())
}

async fn restored(env: &Env, velero: &Velero) -> Result<()> {
    let exec = |script: &str, on_error: &str| json!({"exec": {"command": ["sh", "-c", script], "onError": on_error}});
    let of = |app: &str, hooks: Value| json!({"name": format!("of-{app}"), "includedNamespaces": ["hooked"], "labelSelector": {"matchLabels": {"app": app}}, "postHooks": hooks});
    let init = json!({"init": {"initContainers": [{"name": "order", "image": BOX, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "echo init >> /data/order"], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    let spec = json!({"backupName": "hooks", "namespaceMapping": {"hooks": "hooked"}, "hooks": {"resources": [
        of("plain", json!([init, exec("echo exec >> /data/order", "Continue")])),
        of("strict", json!([exec("echo broken >&2; exit 3", "Fail"), exec("touch /data/after", "Continue")])),
        of("lax", json!([exec("exit 3", "Continue"), exec("touch /data/after", "Continue")])),
        // Not for pods that say themselves what they want.
        of("annotated", json!([exec("touch /data/not-meant", "Continue")])),
    ]}});
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    let restores = env.api::<Restore>();
    restores
        .create(&PostParams::default(), &Restore::new("hooks", spec))
        .await?;
    let restore = env.restore_ended("hooks", 2 * MINUTE).await?;
    let status = restore.status.context("a status")?;
    ensure!(
        status.phase == Some(RestorePhase::PartiallyFailed),
        "{status:?}"
    );
    let hooks = status.hook_status.clone().unwrap_or_default();
    // annotated, plain, slow and never one each, strict and lax two.
    ensure!(
        (hooks.hooks_attempted, hooks.hooks_failed) == (8, 4),
        "{status:?}"
    );
    ensure!(status.errors == 4, "{status:?}");
    velero.says(
        "restore describe hooks",
        &[
            "hook of-strict in container box of pod strict failed to execute",
            "broken",
            "hook of-strict in container box in pod hooked/strict not executed: a hook before it failed",
            "hook of-lax in container box of pod lax failed to execute",
            "hook <from-annotation> in container box in pod hooked/never not executed: its container was not up in time",
            "HooksAttempted: 8 HooksFailed: 4",
        ],
    )?;
    let says = |pod: &str, command: &[&str], wanted: &str| -> Result<()> {
        let said = env.cluster.exec("hooked", pod, command)?;
        ensure!(said == wanted, "{pod} {command:?}: {said:?}");
        Ok(())
    };
    says("annotated", &["cat", "/data/seen"], "kept\n")?;
    says("annotated", &["ls", "/data"], "file\nseen\n")?;
    says("plain", &["cat", "/data/order"], "init\nexec\n")?;
    says("strict", &["ls", "/data"], "")?;
    says("lax", &["ls", "/data"], "after\n")?;
    says("slow", &["cat", "/data/seen"], "ready\n")?;
    let fix = ["-n", "hooked", "logs", "annotated", "-c", "fix"];
    ensure!(env.cluster.kubectl(fix)? == "fixed\n");
    let pod = env.api_in::<Pod>("hooked").get("annotated").await?;
    let init = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.clone());
    let init: Vec<_> = init
        .unwrap_or_default()
        .into_iter()
        .map(|container| container.name)
        .collect();
    ensure!(init == ["restore-wait", "fix"], "{init:?}");
    let ended = format!("{} 1/0", restore.metadata.uid.context("a UID")?);
    ensure!(pod.annotations().get("jackline.dev/restore-hooks") == Some(&ended));
    Ok(())
}

/// An init container that cannot be.
async fn what_the_api_server_refuses_is_one_pod_s_error(env: &Env, velero: &Velero) -> Result<()> {
    let init = json!({"init": {"initContainers": [{"name": "Not A Name", "image": BOX}]}});
    let spec = json!({"backupName": "hooks", "namespaceMapping": {"hooks": "refused"},
        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["plain", "lax"]}]},
        "hooks": {"resources": [{"name": "bad", "labelSelector": {"matchLabels": {"app": "lax"}}, "postHooks": [init]}]}});
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("refused", spec))
        .await?;
    let status = env.restore_ended("refused", 2 * MINUTE).await?.status;
    let status = status.context("a status")?;
    ensure!(
        status.phase == Some(RestorePhase::PartiallyFailed) && status.errors == 1,
        "{status:?}"
    );
    let refused = "error restoring pods lax";
    velero.says(
        "restore describe refused",
        &[refused, "spec.initContainers[1].name", "Not A Name"],
    )?;
    until("the other pod runs", MINUTE, async || {
        let ready = env.ready_pods("refused", "app=plain").await?;
        Ok((ready.len() == 1).then_some(()))
    })
    .await?;
    ensure!(env.api_in::<Pod>("refused").get_opt("lax").await?.is_none());
    Ok(())
}

/// Every controller is killed while one pod's command runs, another's is over, and a third's waits for its pod: only the third is run
/// by the next leader, and how the second ended is known.
async fn none_runs_twice(env: &Env, velero: &Velero) -> Result<()> {
    let hook = |app: &str, exec: Value| json!({"name": format!("of-{app}"), "labelSelector": {"matchLabels": {"app": app}}, "postHooks": [{"exec": exec}]});
    let begun = json!({"command": ["sh", "-c", "echo begun >> /data/begun; sleep 60"], "execTimeout": "2m"});
    let later = json!({"command": ["sh", "-c", "echo ran >> /data/ran"], "waitForReady": true});
    let spec = json!({"backupName": "hooks", "namespaceMapping": {"hooks": "again"},
        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["plain", "held", "annotated"]}]},
        "hooks": {"resources": [hook("plain", begun), hook("held", later)]}});
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("again", spec))
        .await?;
    let lines = |pod: &str, file: &str| env.cluster.exec("again", pod, &["cat", file]);
    until("the command runs", 2 * MINUTE, async || {
        Ok(lines("plain", "/data/begun").ok())
    })
    .await?;
    until("the other command is over", MINUTE, async || {
        let pod = env.api_in::<Pod>("again").get("annotated").await?;
        let noted = pod.annotations().get("jackline.dev/restore-hooks");
        Ok(noted.filter(|noted| noted.ends_with(" 1/0")).map(|_| ()))
    })
    .await?;
    ensure!(lines("annotated", "/data/seen")? == "kept\n");
    env.cluster
        .exec("again", "annotated", &["rm", "/data/seen"])?;
    for pod in env
        .ready_pods(NAMESPACE, "app.kubernetes.io/name=jackline-controller")
        .await?
    {
        env.cluster
            .kill_container(NAMESPACE, &pod, "controller")
            .await?;
    }
    env.cluster.exec("again", "held", &["touch", "/tmp/go"])?;
    let status = env.restore_ended("again", 3 * MINUTE).await?.status;
    let status = status.context("a status")?;
    let hooks = status.hook_status.clone().unwrap_or_default();
    ensure!(
        status.phase == Some(RestorePhase::PartiallyFailed)
            && status.errors == 1
            && (hooks.hooks_attempted, hooks.hooks_failed) == (3, 1),
        "{status:?}"
    );
    velero.says(
        "restore describe again",
        &["pod plain: its post-restore exec hooks were begun by an earlier run of this restore"],
    )?;
    ensure!(lines("plain", "/data/begun")? == "begun\n");
    ensure!(lines("held", "/data/ran")? == "ran\n");
    ensure!(lines("annotated", "/data/seen").is_err());
    Ok(())
}

/// A restore of which one namespace is still being deleted, and one pod finds no node: a command runs in a pod that is there, and the
/// objects beside it come, while both wait. A pod through which a shared claim was filled goes before the last that waits for the claim.
async fn nobody_waits_for_what_others_wait_for(env: &Env) -> Result<()> {
    let label_nodes = |label: &str| env.cluster.kubectl(["label", "node", "--all", label]);
    label_nodes("place=here")?;
    front_and_tail(env).await?;
    let spec: BackupSpec =
        serde_json::from_value(json!({"includedNamespaces": ["front", "tail"]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("rest", spec))
        .await?;
    env.backup_completed("rest", MINUTE).await?;
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("front", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "front", 2 * MINUTE).await?;
    label_nodes("place-")?;
    let held = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "held", "namespace": "tail", "finalizers": ["example.com/held"]}});
    env.cluster.apply(&held.to_string())?;
    namespaces.delete("tail", &DeleteParams::default()).await?;
    let tail: Api<Service> = env.api_in("tail");
    wait_gone(&tail, "last", MINUTE).await?;

    let spec: RestoreSpec = serde_json::from_value(json!({"backupName": "rest"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("rest", spec))
        .await?;
    until("the command of a pod has run", MINUTE, async || {
        Ok(env.cluster.exec("front", "quick", &["ls", "/tmp/ran"]).ok())
    })
    .await?;
    let front: Api<Service> = env.api_in("front");
    until("what comes after pods is there", MINUTE, async || {
        Ok(front.get_opt("first").await?)
    })
    .await?;
    until("a shared claim is filled", MINUTE, async || {
        let read = ["cat", "/shared/file"];
        Ok(env.cluster.exec("front", "carrier", &read).ok())
    })
    .await?;
    let going = namespaces.get("tail").await?;
    ensure!(going.metadata.deletion_timestamp.is_some());
    let restore = env.api::<Restore>().get("rest").await?;
    ensure!(restore.phase() == RestorePhase::InProgress, "{restore:?}");
    let of = ListParams::default().labels("velero.io/restore-name=rest");
    let volumes = env.api::<PodVolumeRestore>().list(&of).await?.items;
    let phase = |pod: &str| {
        let of_pod = |volume: &&PodVolumeRestore| volume.spec.pod.name.as_deref() == Some(pod);
        volumes.iter().find(of_pod).map(PodVolumeRestore::phase)
    };
    ensure!(phase("carrier") == Some(PodVolumePhase::Completed));
    ensure!(phase("unplaced") == Some(PodVolumePhase::New));

    let pods = env.api_in::<Pod>("front");
    pods.delete("carrier", &DeleteParams::default()).await?;
    wait_gone(&pods, "carrier", MINUTE).await?;
    label_nodes("place=here")?;
    until("the last waiter goes on", 2 * MINUTE, async || {
        let ready = env.ready_pods("front", "app=unplaced").await?;
        Ok((ready.len() == 1).then_some(()))
    })
    .await?;
    until("nothing is left in the claim", MINUTE, async || {
        let all = env
            .cluster
            .exec("front", "unplaced", &["ls", "-A", "/shared"])?;
        Ok((all == "file\n").then_some(()))
    })
    .await?;
    let restore = env.api::<Restore>().get("rest").await?;
    ensure!(restore.phase() == RestorePhase::InProgress, "{restore:?}");

    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    env.api_in::<ConfigMap>("tail")
        .patch("held", &PatchParams::default(), &free)
        .await?;
    let restore = env.restore_completed("rest", MINUTE).await?;
    let hooks = restore.status.and_then(|status| status.hook_status);
    let hooks = hooks.unwrap_or_default();
    ensure!((hooks.hooks_attempted, hooks.hooks_failed) == (1, 0));
    ensure!(tail.get_opt("last").await?.is_some());
    Ok(())
}

async fn front_and_tail(env: &Env) -> Result<()> {
    let service = |name: &str, namespace: &str| {
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace}, "spec": {"ports": [{"port": 80}]}})
    };
    let namespace =
        |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let pod = |name: &str,
               annotation: (&str, &str),
               place: Value,
               mounts: Value,
               volumes: Value| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "front", "labels": {"app": name}, "annotations": {(annotation.0): annotation.1}},
            "spec": {"terminationGracePeriodSeconds": 0, "nodeSelector": place, "volumes": volumes,
                "containers": [{"name": "box", "image": BOX, "imagePullPolicy": "Never", "command": ["sleep", "100000"],
                    "volumeMounts": mounts}]}})
    };
    let shared = json!({"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}});
    let at = |volume: &str| json!({"name": volume, "mountPath": format!("/{volume}")});
    let command = (
        "post.hook.restore.velero.io/command",
        "[\"touch\", \"/tmp/ran\"]",
    );
    let backed_up = |volume| ("backup.velero.io/backup-volumes", volume);
    let all = [
        namespace("front"),
        namespace("tail"),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared", "namespace": "front"},
            "spec": {"storageClassName": "local", "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Mi"}}}}),
        pod("quick", command, json!({}), json!([]), json!([])),
        pod(
            "carrier",
            backed_up("shared"),
            json!({}),
            json!([at("shared")]),
            json!([shared]),
        ),
        pod(
            "unplaced",
            backed_up("data"),
            json!({"place": "here"}),
            json!([at("data"), at("shared")]),
            json!([{"name": "data", "emptyDir": {}}, shared]),
        ),
        service("first", "front"),
        service("last", "tail"),
    ];
    let all: Vec<String> = all.iter().map(Value::to_string).collect();
    env.cluster.apply(&all.join("\n---\n"))?;
    for app in ["quick", "carrier", "unplaced"] {
        until("a pod is ready", 2 * MINUTE, async || {
            let ready = env.ready_pods("front", &format!("app={app}")).await?;
            Ok((ready.len() == 1).then_some(()))
        })
        .await?;
    }
    let write = ["sh", "-c", "echo kept > /shared/file"];
    env.cluster.exec("front", "carrier", &write)?;
    let write = ["sh", "-c", "echo kept > /data/file"];
    env.cluster.exec("front", "unplaced", &write)?;
    Ok(())
}

async fn wrong_hooks_are_refused(env: &Env) -> Result<()> {
    let selector =
        json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]});
    let spec = json!({"backupName": "hooks", "hooks": {"resources": [{"name": "wrong", "labelSelector": selector}]}});
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("wrong", spec))
        .await?;
    let restore = env.restore_ended("wrong", MINUTE).await?;
    let status = restore.status.context("a status")?;
    ensure!(
        status.phase == Some(RestorePhase::FailedValidation),
        "{status:?}"
    );
    let why = status.validation_errors.join(" ");
    ensure!(
        why.contains("spec.hooks.resources[0].labelSelector"),
        "{why}"
    );
    Ok(())
}
