//! Kinds that cannot simply be put back as they were: jobs, tokens, bindings, endpoints, webhooks, priorities, objects with finalizers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupSpec, Restore, RestorePhase, RestoreSpec};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{Env, until, wait_gone};
use jackline_test_cluster::Options;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
const NS: &str = "kinds";
const COPY: &str = "kinds-copy";

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_back_as_it_was_comes_back_as_it_has_to_be() -> Result<()> {
    let mut options = Options::named("kinds");
    options.audit_log = true;
    let env = Env::up_with(options, &Settings::default()).await?;
    env.cluster.apply(include_str!("kinds.yaml"))?;
    let owners = owners_of_fields(&env).await?;
    let job = env.api_in::<Job>(NS);
    until("the job is done", 2 * MINUTE, async || {
        let status = job.get("done").await?.status.unwrap_or_default();
        Ok(status.completion_time)
    })
    .await?;
    running(&env, NS).await?;
    let spec = json!({"includedNamespaces": [NS], "includeClusterResources": true});
    let spec: BackupSpec = serde_json::from_value(spec)?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("all", spec))
        .await?;
    env.backup_completed("all", MINUTE).await?;

    let old = token(&env, NS).await?;
    take_away(&env).await?;
    restore(&env, "back", json!({"includedNamespaces": [NS]})).await?;
    owned_as_before(&env, &owners).await?;
    everything_of_the_namespace(&env, NS).await?;
    ensure!(
        token(&env, NS).await? != old,
        "the token of an account that has gone"
    );
    accounts_are_merged(&env).await?;

    let mapped = json!({"includeClusterResources": true, "namespaceMapping": {NS: COPY}});
    restore(&env, "copy", mapped).await?;
    everything_of_the_namespace(&env, COPY).await?;
    outside_of_namespaces(&env).await?;
    env.cluster.down()
}

async fn running(env: &Env, namespace: &str) -> Result<()> {
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods(namespace, "app=box").await?.len() == 1).then_some(()))
    })
    .await
}

async fn restore(env: &Env, name: &str, mut spec: Value) -> Result<()> {
    spec["backupName"] = json!("all");
    let spec: RestoreSpec = serde_json::from_value(spec)?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new(name, spec))
        .await?;
    let ended = env.restore_ended(name, 2 * MINUTE).await?;
    ensure!(ended.phase() == RestorePhase::Completed, "{ended:?}");
    Ok(())
}

/// The token of the account `robot`, as the cluster has made it.
async fn token(env: &Env, namespace: &str) -> Result<Vec<u8>> {
    let secrets = env.api_in::<Secret>(namespace);
    until("there is a token", MINUTE, async || {
        let secret = secrets.get("robot-token").await?;
        Ok(secret
            .data
            .and_then(|mut data| data.remove("token"))
            .map(|token| token.0))
    })
    .await
}

async fn take_away(env: &Env) -> Result<()> {
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    env.api_in::<ConfigMap>(NS)
        .patch("held", &PatchParams::default(), &free)
        .await?;
    for object in [
        "validatingwebhookconfiguration/kinds",
        "priorityclass/kinds-high",
        "clusterrolebinding/kinds reader?",
        "clusterrole/kinds reader?",
    ] {
        env.cluster.kubectl(["delete", object])?;
    }
    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete(NS, &DeleteParams::default()).await?;
    wait_gone(&namespaces, NS, 2 * MINUTE).await
}

async fn everything_of_the_namespace(env: &Env, namespace: &str) -> Result<()> {
    // It names a priority class, which nothing else brings along.
    running(env, namespace).await?;
    let pod = env.api_in::<Pod>(namespace).get("box").await?;
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    ensure!(priority == Some(1000), "{pod:?}");

    let jobs = env.api_in::<Job>(namespace);
    ensure!(
        jobs.get_opt("done").await?.is_none(),
        "a job that is done would run again"
    );
    let later = jobs.get("later").await?;
    let uid = later.uid().context("a UID")?;
    let spec = later.spec.context("a spec")?;
    let selects = spec.selector.and_then(|selector| selector.match_labels);
    ensure!(
        selects.is_some_and(|labels| labels.values().all(|value| *value == uid)),
        "it would look for the pods of another"
    );

    let held = env.api_in::<ConfigMap>(namespace).get("held").await?;
    ensure!(held.finalizers() == ["example.com/held"], "{held:?}");
    let outside = env.api_in::<Endpoints>(namespace).get("outside").await?;
    let subsets = serde_json::to_value(outside.subsets)?;
    ensure!(subsets[0]["addresses"][0]["ip"] == "192.0.2.1", "{subsets}");
    let service = env.api_in::<Service>(namespace).get("outside").await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip);
    ensure!(address.is_some_and(|address| address != "None"));

    let account = env.api_in::<ServiceAccount>(namespace).get("robot").await?;
    token(env, namespace).await?;
    let secret = env.api_in::<Secret>(namespace).get("robot-token").await?;
    let of = secret
        .annotations()
        .get("kubernetes.io/service-account.uid");
    ensure!(of == account.uid().as_ref(), "{of:?}");
    Ok(())
}

/// ConfigMaps whose fields belong to one manager, to one that applies, to two, and in part to one; with what the API server says of that.
async fn owners_of_fields(env: &Env) -> Result<Vec<(&'static str, Vec<Value>)>> {
    let maps = env.api_in::<ConfigMap>(NS);
    let by = |manager: &str| PatchParams {
        field_manager: Some(manager.to_owned()),
        ..PatchParams::default()
    };
    for name in ["alone", "labelled", "both", "partly"] {
        let labels = (name == "labelled").then(|| json!({"app": "x"}));
        let map =
            json!({"metadata": {"name": name, "labels": labels}, "data": {"one": "1", "two": "2"}});
        let params = PostParams {
            field_manager: Some("maker".to_owned()),
            ..PostParams::default()
        };
        maps.create(&params, &serde_json::from_value(map)?).await?;
    }
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"one": "1"}});
    maps.patch("applied", &by("gitops"), &Patch::Apply(applied))
        .await?;
    let change = Patch::Merge(json!({"data": {"two": "3"}}));
    maps.patch("both", &by("changer"), &change).await?;
    let mut partly = managers(&maps.get("partly").await?)?;
    let entry = partly.first_mut().context("an owner")?;
    entry["fieldsV1"] = json!({"f:data": {"f:one": {}}});
    let partly = Patch::Merge(json!({"metadata": {"managedFields": partly}}));
    maps.patch("partly", &by("maker"), &partly).await?;
    let mut owners = Vec::new();
    for (name, expected) in [
        ("alone", 1),
        ("labelled", 1),
        ("both", 2),
        ("partly", 1),
        ("applied", 1),
    ] {
        let managers = managers(&maps.get(name).await?)?;
        ensure!(managers.len() == expected, "{name}: {managers:?}");
        owners.push((name, managers));
    }
    Ok(owners)
}

fn managers(map: &ConfigMap) -> Result<Vec<Value>> {
    let entries = map.managed_fields().iter();
    Ok(entries
        .map(serde_json::to_value)
        .collect::<serde_json::Result<_>>()?)
}

/// The owners come back with the objects; where one alone owned everything, without a second write.
async fn owned_as_before(env: &Env, owners: &[(&str, Vec<Value>)]) -> Result<()> {
    let maps = env.api_in::<ConfigMap>(NS);
    let events = env.cluster.audit_events()?;
    for (name, before) in owners {
        let mut after = managers(&maps.get(name).await?)?;
        let mut before = before.clone();
        let at_once = ["alone", "labelled"].contains(name);
        if at_once {
            let entry = after.first_mut().context("an owner")?;
            let labels = &mut entry["fieldsV1"]["f:metadata"]["f:labels"];
            let labels = labels.as_object_mut().context("labels of the restore")?;
            for label in ["f:velero.io/backup-name", "f:velero.io/restore-name"] {
                ensure!(labels.remove(label).is_some(), "{name}: {label}");
            }
            if *name == "alone" {
                entry["fieldsV1"]
                    .as_object_mut()
                    .and_then(|fields| fields.remove("f:metadata"));
            }
            for entry in after.iter_mut().chain(&mut before) {
                entry["time"] = Value::Null;
            }
        }
        ensure!(after == before, "{name}: {after:?}, {before:?}");
        let written = events.iter().filter(|event| {
            let (user, of) = (&event["user"]["username"], &event["objectRef"]);
            *user == "system:serviceaccount:velero:jackline-controller"
                && of["namespace"] == NS
                && of["name"] == **name
                && event["verb"] == "patch"
        });
        ensure!((written.count() > 0) != at_once, "{name}");
    }
    Ok(())
}

/// What somebody took off an account comes back, what was added stays.
async fn accounts_are_merged(env: &Env) -> Result<()> {
    let accounts = env.api_in::<ServiceAccount>(NS);
    let other = Patch::Merge(json!({"imagePullSecrets": [{"name": "mine"}]}));
    let params = PatchParams::default();
    accounts.patch("robot", &params, &other).await?;
    let accounts_only =
        json!({"includedNamespaces": [NS], "includedResources": ["serviceaccounts"]});
    restore(env, "accounts", accounts_only).await?;
    let robot = accounts.get("robot").await?;
    let mut secrets: Vec<String> = robot
        .image_pull_secrets
        .into_iter()
        .flatten()
        .map(|secret| secret.name)
        .collect();
    secrets.sort();
    ensure!(secrets == ["mine", "registry"], "{secrets:?}");
    Ok(())
}

async fn outside_of_namespaces(env: &Env) -> Result<()> {
    let client = || env.cluster.client();
    let priority = Api::<PriorityClass>::all(client())
        .get("kinds-high")
        .await?;
    ensure!(priority.value == 1000);
    let role = |name: &str| format!("{name} reader?");
    let roles = env.cluster.kubectl(["get", "clusterroles", "-o", "name"])?;
    ensure!(roles.contains(&role(NS)), "{roles}");
    let bindings = Api::<ClusterRoleBinding>::all(client());
    let binding = bindings
        .list(&Default::default())
        .await?
        .into_iter()
        .find(|binding| binding.name_any() == role(NS));
    let subjects = binding.and_then(|binding| binding.subjects);
    let subject = subjects.and_then(|subjects| subjects.into_iter().next());
    let subject = subject.context("a subject")?;
    ensure!(subject.namespace.as_deref() == Some(COPY), "{subject:?}");
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client());
    let hooks = all.get("kinds").await?.webhooks.context("webhooks")?;
    let service = &hooks[0].client_config.service;
    ensure!(
        service
            .as_ref()
            .is_some_and(|service| service.name == "outside")
    );
    Ok(())
}
