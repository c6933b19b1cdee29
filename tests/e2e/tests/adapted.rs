//! What a restore changes on its way: storage classes, patches, ports, statuses, how pods wait; and what it does not when told so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::names::annotation;
use jackline_crds::velero::{PodVolumeRestore, Restore, RestorePhase};
use jackline_e2e::{Env, Velero, deploy, until, wait_gone};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const WORKLOADS: &str = include_str!("adapted.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn restored_objects_are_adapted_as_asked() -> Result<()> {
    let env = Env::up("adapted").await?;
    let velero = Velero::new(&env).await?;
    env.cluster.apply(WORKLOADS)?;
    a_kind_without_a_status_of_its_own(&env).await?;
    running(&env, "mover").await?;
    let port = given_by_the_cluster(&env).await?;
    backed_up(&env, &velero).await?;
    moved(&env, &velero, port).await?;
    without_volumes(&env, &velero).await?;
    namespaces_that_become_one(&env, &velero).await?;
    what_cannot_be_is_said(&env, &velero).await?;
    a_restore_that_was_cut_off_puts_statuses_on(&env).await?;
    a_pod_that_does_not_start_is_given_up(&env, &velero).await?;
    env.cluster.down()
}

/// Its objects have a field of that name like any other.
async fn a_kind_without_a_status_of_its_own(env: &Env) -> Result<()> {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "plains.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "plains", "kind": "Plain"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    env.cluster.apply(&definition.to_string())?;
    let plain = json!({"apiVersion": "example.com/v1", "kind": "Plain", "metadata": {"name": "one", "namespace": "mover"},
        "status": {"phase": "Fine"}});
    until("the kind is served", MINUTE, async || {
        Ok(env.cluster.apply(&plain.to_string()).ok())
    })
    .await?;
    Ok(())
}

async fn running(env: &Env, namespace: &str) -> Result<()> {
    until("everything runs", 2 * MINUTE, async || {
        let web = env.ready_pods(namespace, "app=web").await?;
        let db = env.ready_pods(namespace, "app=db").await?;
        Ok((web.len() == 1 && db.len() == 1).then_some(()))
    })
    .await
}

async fn pod(env: &Env, namespace: &str, app: &str) -> Result<String> {
    let pods = env.ready_pods(namespace, &format!("app={app}")).await?;
    pods.into_iter().next().context("a pod")
}

/// An address and a port that nobody wrote down.
async fn given_by_the_cluster(env: &Env) -> Result<i32> {
    let services: Api<Service> = env.api_in("mover");
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    let params = PatchParams::default();
    let service = services
        .patch_status("web", &params, &Patch::Merge(status))
        .await?;
    node_port(&service)
}

fn node_port(service: &Service) -> Result<i32> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let port = ports.and_then(|ports| ports.first()).context("a port")?;
    port.node_port.context("a node port")
}

async fn backed_up(env: &Env, velero: &Velero) -> Result<()> {
    let web = pod(env, "mover", "web").await?;
    env.cluster
        .exec("mover", &web, &["sh", "-c", "echo page > /files/index"])?;
    env.cluster.exec(
        "mover",
        "db-0",
        &["sh", "-c", "seq 100000 > /data/table; sync"],
    )?;
    let said = velero.run(
        "backup create one --include-namespaces mover --default-volumes-to-fs-backup --wait",
    )?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("mover", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "mover", 2 * MINUTE).await
}

async fn moved(env: &Env, velero: &Velero, port: i32) -> Result<()> {
    let said = velero.run(
        "restore create moved --from-backup one --resource-modifier-configmap rules \
         --preserve-nodeports --status-include-resources services,plains.example.com --wait",
    )?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    velero.says(
        "restore describe moved",
        &[
            "ItemOperationTimeout: 4h0m0s",
            "Preserve Service NodePorts: true",
            "Resource modifier: Type: configmap Name: rules",
            "plains.example.com one: its status could not be restored: its kind has no status of its own here",
        ],
    )?;
    running(env, "mover").await?;

    let claims: Api<PersistentVolumeClaim> = env.api_in("mover");
    for (claim, class) in [("files", "csi"), ("data-db-0", "local")] {
        let found = claims.get(claim).await?.spec.context("a spec")?;
        ensure!(
            found.storage_class_name.as_deref() == Some(class),
            "{found:?}"
        );
    }
    let sets: Api<StatefulSet> = env.api_in("mover");
    let set = serde_json::to_value(sets.get("db").await?)?;
    ensure!(set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "local");
    same_data(env, "mover").await?;

    let service = env.api_in::<Service>("mover").get("web").await?;
    ensure!(node_port(&service)? == port, "{service:?}");
    let status = serde_json::to_value(&service.status)?;
    ensure!(
        status["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.7",
        "{status}"
    );

    let settings = env.api_in::<ConfigMap>("mover").get("settings").await?;
    let data = serde_json::to_value(settings.data)?;
    let wanted = json!({"endpoint": "new.example", "mode": "live", "retries": "3"});
    ensure!(data == wanted, "{data}");
    let web = env.api_in::<Deployment>("mover").get("web").await?;
    ensure!(
        web.labels()
            .get("moved")
            .is_some_and(|value| value == "yes")
    );
    ensure!(!web.labels().contains_key("tier"));
    let web = serde_json::to_value(web.spec)?;
    let env_of = &web["template"]["spec"]["containers"][0]["env"];
    let named = |name: &str| -> Option<&Value> {
        let entries = env_of.as_array()?;
        let entry = entries.iter().find(|entry| entry["name"] == name)?;
        entry.get("value")
    };
    ensure!(named("COLOUR") == Some(&json!("green")), "{env_of}");
    ensure!(named("SIZE") == Some(&json!("small")), "{env_of}");
    let db = env.api_in::<Pod>("mover").get("db-0").await?;
    ensure!(db.annotations().contains_key("example.com/moved"));
    let db = serde_json::to_value(db.spec)?;
    let waiter = &db["initContainers"][0];
    let wanted = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "100m", "memory": "256Mi"}});
    ensure!(waiter["resources"] == wanted, "{waiter}");
    let wanted = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true});
    ensure!(waiter["securityContext"] == wanted, "{waiter}");
    // Of another program.
    ensure!(
        waiter["command"] == json!(["jackline-restore-wait"]),
        "{waiter}"
    );
    ensure!(
        !waiter["image"]
            .as_str()
            .unwrap_or_default()
            .contains("elsewhere")
    );
    Ok(())
}

async fn same_data(env: &Env, namespace: &str) -> Result<()> {
    let web = pod(env, namespace, "web").await?;
    let page = env
        .cluster
        .exec(namespace, &web, &["cat", "/files/index"])?;
    ensure!(page == "page\n", "{page:?}");
    let table = env
        .cluster
        .exec(namespace, "db-0", &["cat", "/data/table"])?;
    let wanted: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    ensure!(table == wanted, "{} bytes of the table", table.len());
    Ok(())
}

/// Objects without their data.
async fn without_volumes(env: &Env, velero: &Velero) -> Result<()> {
    let said = velero.run(
        "restore create empty --from-backup one --namespace-mappings mover:hollow \
         --restore-volumes=false --exclude-resources services --wait",
    )?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    velero.says("restore describe empty", &["Restore PVs: false"])?;
    running(env, "hollow").await?;
    let left = env
        .cluster
        .exec("hollow", "db-0", &["sh", "-c", "ls -A /data"])?;
    ensure!(left.is_empty(), "{left}");
    let of = ListParams::default().labels("velero.io/restore-name=empty");
    let volumes = env.api::<PodVolumeRestore>().list(&of).await?;
    ensure!(volumes.items.is_empty());
    Ok(())
}

async fn what_cannot_be_is_said(env: &Env, velero: &Velero) -> Result<()> {
    let restores = env.api::<Restore>();
    // No such ConfigMap, none that can be read.
    velero.run(
        "restore create unknown --from-backup one --resource-modifier-configmap nobody --wait",
    )?;
    let status = restores.get("unknown").await?.status.context("a status")?;
    ensure!(status.phase == Some(RestorePhase::FailedValidation));
    let why = status.validation_errors.join(" ");
    ensure!(
        why == "failed to get resource modifiers configmap velero/nobody: it does not exist",
        "{why}"
    );
    let configs: Api<ConfigMap> = env.api_in("velero");
    let params = PatchParams::default();
    let rules = |text: &str| Patch::Merge(json!({"data": {"rules.yaml": text}}));
    let broken =
        "version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods}\n  patch: []\n";
    configs.patch("rules", &params, &rules(broken)).await?;
    velero.run(
        "restore create broken --from-backup one --resource-modifier-configmap rules --wait",
    )?;
    let status = restores.get("broken").await?.status.context("a status")?;
    ensure!(status.phase == Some(RestorePhase::FailedValidation));
    let why = status.validation_errors.join(" ");
    ensure!(
        why.contains("configmap velero/rules: resourceModifierRules[0]: unknown field `patch`"),
        "{why}"
    );

    // A rule that cannot be applied, and a class that does not exist, are errors of their objects alone.
    let wrong = "version: v1\nresourceModifierRules:\n- conditions: {groupResource: configmaps, resourceNameRegex: ^settings$}\n  \
        patches: [{operation: remove, path: /data/nothing}]\n";
    configs.patch("rules", &params, &rules(wrong)).await?;
    let classes = Patch::Merge(json!({"data": {"csi": "gone", "local": null}}));
    configs.patch("classes", &params, &classes).await?;
    let waiter = Patch::Merge(json!({"data": {"cpuRequest": "much", "secCtx": "runAsuser: 1"}}));
    configs.patch("waiter", &params, &waiter).await?;
    velero.run(
        "restore create partly --from-backup one --resource-modifier-configmap rules \
         --namespace-mappings mover:partly --exclude-resources services --wait",
    )?;
    let restore = restores.get("partly").await?;
    let status = restore.status.context("a status")?;
    ensure!(
        status.phase == Some(RestorePhase::PartiallyFailed),
        "{status:?}"
    );
    velero.says(
        "restore describe partly",
        &[
            "error restoring configmaps settings: resourceModifierRules[0] was not applied",
            "error restoring persistentvolumeclaims data-db-0: storage class gone",
            "pod db-0 was not restored: claim data-db-0 was not",
            "ConfigMap with label velero.io/pod-volume-restore: cpuRequest: found \"much\"",
            "ConfigMap with label velero.io/pod-volume-restore: secCtx: unknown field `runAsuser`",
        ],
    )?;
    until("the other pod runs", MINUTE, async || {
        Ok((env.ready_pods("partly", "app=web").await?.len() == 1).then_some(()))
    })
    .await?;
    let settings = env.api_in::<ConfigMap>("partly").get("settings").await?;
    ensure!(settings.data.context("data")?["endpoint"] == "old.example");
    Ok(())
}

/// What both have under one name comes from the first; data of the other's claim goes nowhere, and its pod sees none of the first's.
async fn namespaces_that_become_one(env: &Env, velero: &Velero) -> Result<()> {
    let sides = ["east", "west"];
    for side in sides {
        let meta = |name: &str| json!({"name": name, "namespace": side});
        let config = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(name), "data": {"side": side}});
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta("data"),
            "spec": {"storageClassName": "csi", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}});
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(side),
            "spec": {"terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                "containers": [{"name": "main", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", format!("test -e /data/side || echo {side} > /data/side; exec sleep 100000")],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
        pod["metadata"]["labels"] = json!({"app": "side"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": side}});
        for object in [namespace, config("both"), config(side), claim, pod] {
            env.cluster.apply(&object.to_string())?;
        }
        until("its pod has written", 2 * MINUTE, async || {
            let said = env.cluster.exec(side, side, &["cat", "/data/side"]);
            Ok(said.is_ok_and(|said| said.trim() == side).then_some(()))
        })
        .await?;
    }
    let said = velero.run(
        "backup create sides --include-namespaces east,west --default-volumes-to-fs-backup --wait",
    )?;
    ensure!(said.contains("completed with status: Completed"), "{said}");
    let said = velero.run(
        "restore create one-side --from-backup sides --namespace-mappings east:sides,west:sides --wait",
    )?;
    ensure!(said.contains("PartiallyFailed"), "{said}");
    until("the first one's pod runs", MINUTE, async || {
        let ready = env.ready_pods("sides", "app=side").await?;
        Ok((ready == ["east"]).then_some(()))
    })
    .await?;
    let data = env.cluster.exec("sides", "east", &["cat", "/data/side"])?;
    ensure!(data.trim() == "east", "{data}");
    let pods = env
        .api_in::<Pod>("sides")
        .list(&ListParams::default())
        .await?;
    ensure!(pods.items.len() == 1, "{pods:?}");
    let configs: Api<ConfigMap> = env.api_in("sides");
    for (name, side) in [("both", "east"), ("east", "east"), ("west", "west")] {
        let data = configs.get(name).await?.data.context("data")?;
        ensure!(data["side"] == side, "{name}: {data:?}");
    }
    let results = env
        .packed("restores/one-side/restore-one-side-results.gz")
        .await?;
    let (warnings, errors) = (&results["warnings"], &results["errors"]);
    let said = |list: &Value, words: &str| {
        let lines = list["namespaces"]["sides"].as_array();
        let mut lines = lines.into_iter().flatten().filter_map(Value::as_str);
        lines.any(|line| line.contains(words))
    };
    ensure!(said(warnings, "both"), "{warnings}");
    ensure!(said(errors, "claim data of namespace west"), "{errors}");
    ensure!(said(errors, "pod west was not restored"), "{errors}");
    Ok(())
}

/// A controller made an object and went before it had put the status on: the next one does. What had been made of kinds that were through
/// and has gone since is not made again.
async fn a_restore_that_was_cut_off_puts_statuses_on(env: &Env) -> Result<()> {
    deploy::scale(&env.cluster, 0)?;
    let restore: Restore = serde_json::from_value(json!({
        "apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"name": "cut", "namespace": "velero",
            "annotations": {(annotation::RESTORED_KINDS): "{\"kinds\":{\"configmaps\":[]}}"}},
        "spec": {"backupName": "one", "includedResources": ["services", "configmaps"], "namespaceMapping": {"mover": "cut"},
            "restoreStatus": {"includedResources": ["services"]}},
        "status": {"phase": "InProgress", "startTimestamp": "2026-01-01T00:00:00Z"}}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &restore)
        .await?;
    env.cluster.kubectl(["create", "namespace", "cut"])?;
    let service = ["-n", "cut", "create", "service", "loadbalancer", "web"];
    env.cluster.kubectl(
        service
            .iter()
            .chain(&["--tcp=80", "--field-manager=jackline"]),
    )?;
    let label = ["-n", "cut", "label", "service", "web"];
    env.cluster
        .kubectl(label.iter().chain(&["velero.io/restore-name=cut"]))?;
    deploy::scale(&env.cluster, 2)?;
    let restore = env.restore_completed("cut", MINUTE).await?;
    ensure!(
        !restore
            .annotations()
            .contains_key(annotation::RESTORED_KINDS)
    );
    let settings = env.api_in::<ConfigMap>("cut").get_opt("settings").await?;
    ensure!(settings.is_none(), "{settings:?}");
    let service = env.api_in::<Service>("cut").get("web").await?;
    let status = serde_json::to_value(&service.status)?;
    ensure!(
        status["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.7",
        "{status}"
    );
    Ok(())
}

/// The kubelet refuses one pod's waiter: after a while without progress its volume is given up with the reason, and it alone.
async fn a_pod_that_does_not_start_is_given_up(env: &Env, velero: &Velero) -> Result<()> {
    let limit = "JACKLINE_VOLUME_PROGRESS_TIMEOUT=40s";
    let set = [
        "-n",
        "velero",
        "set",
        "env",
        "deployment/jackline-controller",
        limit,
    ];
    env.cluster.kubectl(set)?;
    deploy::rolled_out(&env.cluster, "deployment/jackline-controller")?;
    let configs: Api<ConfigMap> = env.api_in("velero");
    let rules = "version: v1\nresourceModifierRules:\n- conditions: {groupResource: pods, resourceNameRegex: ^db-0$}\n  \
        patches: [{operation: add, path: /spec/containers/0/securityContext, value: '{\"runAsNonRoot\": true}'}]\n";
    let params = PatchParams::default();
    let rules = Patch::Merge(json!({"data": {"rules.yaml": rules}}));
    configs.patch("rules", &params, &rules).await?;
    let classes = Patch::Merge(json!({"data": {"csi": "local"}}));
    configs.patch("classes", &params, &classes).await?;
    velero.run(
        "restore create stuck --from-backup one --resource-modifier-configmap rules \
         --namespace-mappings mover:stuck --exclude-resources services --wait",
    )?;
    let status = env.api::<Restore>().get("stuck").await?.status;
    let status = status.context("a status")?;
    ensure!(
        status.phase == Some(RestorePhase::PartiallyFailed) && status.errors == 2,
        "{status:?}"
    );
    velero.says(
        "restore describe stuck",
        &[
            "pod volume restore failed: volume data of pod stuck/db-0: init container restore-wait of its pod has not started on node",
            "for 40s: CreateContainerConfigError: container has runAsNonRoot and image will run as root",
            "StatefulSet db was not restored: the data of its claims",
        ],
    )?;
    until("the other pod runs", MINUTE, async || {
        Ok((env.ready_pods("stuck", "app=web").await?.len() == 1).then_some(()))
    })
    .await?;
    let web = pod(env, "stuck", "web").await?;
    let page = env.cluster.exec("stuck", &web, &["cat", "/files/index"])?;
    ensure!(page == "page\n", "{page:?}");
    Ok(())
}
