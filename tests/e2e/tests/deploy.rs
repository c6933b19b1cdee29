//! What `kubectl apply -k deploy` installs runs, with no more rights than it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::jackline::ClusterBackupPolicy;
use jackline_crds::velero::{Backup, Restore, RestorePhase};
use jackline_e2e::{Env, NAMESPACE, until, wait_gone};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

/// Capabilities of capability.h by bit, as far as the node agent has them.
const AGENT_CAPABILITIES: [(&str, u32); 6] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("DAC_READ_SEARCH", 2),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("SETFCAP", 31),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_installation_runs_with_what_it_declares_and_no_more() -> Result<()> {
    let env = Env::up("deploy").await?;
    let deployment = env.api::<Deployment>().get("jackline-controller").await?;
    assert_eq!(deployment.status.and_then(|s| s.ready_replicas), Some(2));
    let agents = env.api::<DaemonSet>().get("node-agent").await?;
    assert_eq!(agents.status.map(|s| s.number_ready), Some(1));

    processes(&env).await?;
    rights(&env).await?;
    either_half(&env).await?;
    let table = env.cluster.kubectl(["get", "cbp"])?;
    assert!(
        table.contains("No resources found") || table.is_empty(),
        "{table}"
    );
    let policies: Api<ClusterBackupPolicy> = Api::all(env.cluster.client());
    assert!(
        policies
            .list(&ListParams::default())
            .await?
            .items
            .is_empty()
    );
    env.cluster.down()
}

/// The processes as the kernel sees them.
async fn processes(env: &Env) -> Result<()> {
    let wanted: u64 = AGENT_CAPABILITIES.iter().map(|(_, bit)| 1 << bit).sum();
    for (labels, container, user, capabilities) in [
        (
            "app.kubernetes.io/name=jackline-controller",
            "controller",
            "65532",
            0,
        ),
        ("name=node-agent", "node-agent", "0", wanted),
    ] {
        let pods = env.ready_pods(NAMESPACE, labels).await?;
        ensure!(!pods.is_empty(), "no pod with {labels}");
        for pod in pods {
            let process = env
                .cluster
                .container_pid(NAMESPACE, &pod, container)
                .await?;
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let field = |name: &str| -> Result<String> {
                let line = status
                    .lines()
                    .find(|line| line.starts_with(name))
                    .with_context(|| name.to_owned())?;
                Ok(line
                    .split_whitespace()
                    .nth(1)
                    .unwrap_or_default()
                    .to_owned())
            };
            assert_eq!(field("Uid:")?, user, "{pod}");
            assert_eq!(field("NoNewPrivs:")?, "1", "{pod}");
            assert_eq!(field("Seccomp:")?, "2", "{pod}");
            let bounding = u64::from_str_radix(&field("CapBnd:")?, 16)?;
            assert_eq!(bounding, capabilities, "{pod}: {bounding:#x}");
            let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
            let root = mounts
                .lines()
                .find(|line| line.split(' ').nth(4) == Some("/"))
                .context("a root")?;
            assert!(
                root.split(' ')
                    .nth(5)
                    .is_some_and(|options| options.split(',').any(|o| o == "ro")),
                "{root}"
            );
            if container == "node-agent" {
                let volumes = mounts
                    .lines()
                    .find(|line| line.split(' ').nth(4) == Some("/host_pods"));
                // A slave of the kubelet's mount sees what is mounted later.
                assert!(
                    volumes.context("/host_pods")?.contains("master:"),
                    "{mounts}"
                );
            }
        }
    }
    Ok(())
}

/// No wildcard verbs, nobody is cluster-admin; everything is read by one role and written by one, which alone gives rights on.
async fn rights(env: &Env) -> Result<()> {
    let roles: Api<ClusterRole> = Api::all(env.cluster.client());
    let mut rules: Vec<(String, PolicyRule)> = Vec::new();
    for role in roles.list(&ListParams::default()).await?.items {
        let name = role.metadata.name.unwrap_or_default();
        if name.starts_with("jackline") {
            rules.extend(
                role.rules
                    .unwrap_or_default()
                    .into_iter()
                    .map(|rule| (name.clone(), rule)),
            );
        }
    }
    for role in env.api::<Role>().list(&ListParams::default()).await?.items {
        let name = role.metadata.name.unwrap_or_default();
        rules.extend(
            role.rules
                .unwrap_or_default()
                .into_iter()
                .map(|rule| (name.clone(), rule)),
        );
    }
    ensure!(rules.len() > 10, "the roles are not there: {rules:?}");
    for (name, rule) in &rules {
        for verb in ["*", "impersonate", "deletecollection"] {
            assert!(
                !rule.verbs.iter().any(|v| v == verb),
                "{name} has {verb}: {rule:?}"
            );
        }
        let lists = [&rule.resources, &rule.api_groups];
        let everything = lists
            .into_iter()
            .flatten()
            .any(|list| list.iter().any(|entry| entry == "*"));
        let allowed: &[&str] = match (name.as_str(), everything) {
            ("jackline-backup-reader", true) => &["get", "list", "watch"],
            ("jackline-restore-writer", true) => &["get", "create", "update", "patch"],
            (_, true) => &[],
            ("jackline-restore-writer", false)
                if rule.resources == Some(vec!["nodes".to_owned()]) =>
            {
                &["list"]
            }
            ("jackline-restore-writer", false) => {
                let roles = ["clusterroles", "roles"].map(str::to_owned).to_vec();
                assert_eq!(rule.resources.as_ref(), Some(&roles));
                &["escalate", "bind"]
            }
            (_, false) => continue,
        };
        let too_many: Vec<_> = rule
            .verbs
            .iter()
            .filter(|verb| !allowed.contains(&verb.as_str()))
            .collect();
        assert!(too_many.is_empty(), "{name}: {too_many:?} in {rule:?}");
    }
    for (name, rule) in &rules {
        let gives = rule
            .verbs
            .iter()
            .any(|verb| ["escalate", "bind"].contains(&verb.as_str()));
        assert!(
            !gives || name == "jackline-restore-writer",
            "{name}: {rule:?}"
        );
    }
    let bindings: Api<ClusterRoleBinding> = Api::all(env.cluster.client());
    for binding in bindings.list(&ListParams::default()).await?.items {
        let ours = binding
            .subjects
            .iter()
            .flatten()
            .any(|s| s.namespace.as_deref() == Some(NAMESPACE));
        assert!(
            !(ours && binding.role_ref.name == "cluster-admin"),
            "{:?}",
            binding.metadata.name
        );
    }
    let agent = format!("system:serviceaccount:{NAMESPACE}:node-agent");
    let may = |verb: &str, resource: &str, namespace: &str| {
        let asked = [
            "auth", "can-i", verb, resource, "-n", namespace, "--as", &agent,
        ];
        env.cluster
            .kubectl(asked)
            .is_ok_and(|answer| answer.trim() == "yes")
    };
    let allowed: BTreeSet<_> = [
        ("get", "secrets", "default"),
        ("list", "secrets", NAMESPACE),
        ("create", "pods", "default"),
        ("patch", "pods", "default"),
        ("delete", "podvolumebackups.velero.io", NAMESPACE),
        ("get", "secrets", NAMESPACE),
        ("patch", "podvolumebackups.velero.io", NAMESPACE),
    ]
    .into_iter()
    .filter(|(verb, resource, namespace)| may(verb, resource, namespace))
    .collect();
    let expected = BTreeSet::from([
        ("get", "secrets", NAMESPACE),
        ("patch", "podvolumebackups.velero.io", NAMESPACE),
    ]);
    assert_eq!(allowed, expected);
    Ok(())
}

/// Each of the two wide roles can be left out without the other half missing anything.
async fn either_half(env: &Env) -> Result<()> {
    env.cluster.apply(include_str!("deploy.yaml"))?;
    until("the pod runs", 2 * MINUTE, async || {
        Ok((env.ready_pods("half", "app=worker").await?.len() == 1).then_some(()))
    })
    .await?;
    let keg = json!({"apiVersion": "half.example/v1", "kind": "Keg",
        "metadata": {"name": "oak", "namespace": "half"}})
    .to_string();
    until("the kind is served", MINUTE, async || {
        Ok(env.cluster.apply(&keg).is_ok().then_some(()))
    })
    .await?;
    let keep = ["sh", "-c", "seq 1000 > /data/kept"];
    env.cluster.exec("half", "worker", &keep)?;

    let bindings: Api<ClusterRoleBinding> = Api::all(env.cluster.client());
    let without = async |name: &str| -> Result<ClusterRoleBinding> {
        let mut binding = bindings.get(name).await?;
        bindings.delete(name, &DeleteParams::default()).await?;
        binding.metadata.resource_version = None;
        Ok(binding)
    };
    let writer = without("jackline-restore-writer").await?;
    let spec = serde_json::from_value(json!({"includedNamespaces": ["half"]}))?;
    env.api::<Backup>()
        .create(&PostParams::default(), &Backup::new("half", spec))
        .await?;
    env.backup_completed("half", MINUTE).await?;

    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces.delete("half", &DeleteParams::default()).await?;
    wait_gone(&namespaces, "half", 2 * MINUTE).await?;
    let kinds = ["delete", "crd", "kegs.half.example"];
    env.cluster.kubectl(kinds)?;
    bindings.create(&PostParams::default(), &writer).await?;
    let reader = without("jackline-backup-reader").await?;
    let spec =
        serde_json::from_value(json!({"backupName": "half", "existingResourcePolicy": "update"}))?;
    env.api::<Restore>()
        .create(&PostParams::default(), &Restore::new("half", spec))
        .await?;
    let restore = env.restore_ended("half", 2 * MINUTE).await?;
    let results = env.packed("restores/half/restore-half-results.gz").await?;
    ensure!(restore.phase() == RestorePhase::Completed, "{results}");
    ensure!(!results.to_string().contains("forbidden"), "{results}");
    until("the pod runs again", 2 * MINUTE, async || {
        Ok((env.ready_pods("half", "app=worker").await?.len() == 1).then_some(()))
    })
    .await?;
    let lines = env
        .cluster
        .exec("half", "worker", &["wc", "-l", "/data/kept"])?;
    ensure!(lines.starts_with("1000 "), "{lines}");
    env.cluster.kubectl(["-n", "half", "get", "keg", "oak"])?;
    bindings.create(&PostParams::default(), &reader).await?;
    Ok(())
}
