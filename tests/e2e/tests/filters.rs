//! What Velero's client asks for is what the tarball holds, and what a restore brings back: every filter by its flag.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupPhase, BackupStatus};
use jackline_e2e::{Env, Velero, until};
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Service, ServiceAccount,
};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const OBJECTS: &str = include_str!("filters.yaml");
/// Everything that the table looks at. What is not in a row of it must not be in the backup.
const KNOWN: &str = "Namespace north, Namespace south, Namespace hidden, ConfigMap north/web, ConfigMap north/db, ConfigMap north/hidden, \
    ConfigMap south/web, ConfigMap hidden/web, Service south/web, ServiceAccount north/robot, Role north/reader, ClusterRole bound, \
    ClusterRole loose, ClusterRoleBinding bound, Gadget north/one, CustomResourceDefinition gadgets.shop.x.k8s.io";

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_what_they_say() -> Result<()> {
    let env = Env::up("filters").await?;
    let velero = Velero::new(&env).await?;
    objects(&env).await?;
    every_flag(&env, &velero).await?;
    names_beside_globs_are_missed(&env, &velero).await?;
    volumes_of_what_is_left_out(&env, &velero).await?;
    restores(&env, &velero).await?;
    env.cluster.down()
}

async fn objects(env: &Env) -> Result<()> {
    env.cluster.apply(OBJECTS)?;
    let gadget = json!({"apiVersion": "shop.x.k8s.io/v1", "kind": "Gadget", "metadata": {"name": "one", "namespace": "north"}});
    until("gadgets are served", MINUTE, async || {
        Ok(env.cluster.apply(&gadget.to_string()).is_ok().then_some(()))
    })
    .await?;
    until("the pods run", 2 * MINUTE, async || {
        let pods = env.ready_pods("volumes", "app=reader").await?;
        Ok((pods.len() == 3).then_some(()))
    })
    .await
}

/// Kind and name of everything that a backup holds.
async fn held(env: &Env, backup: &str) -> Result<BTreeSet<String>> {
    let list = env
        .packed(&format!("backups/{backup}/{backup}-resource-list.json.gz"))
        .await?;
    let mut held = BTreeSet::new();
    for (kind, names) in list.as_object().context("kinds")? {
        let kind = kind.rsplit('/').next().unwrap_or_default();
        for name in names.as_array().context("names")? {
            held.insert(format!("{kind} {}", name.as_str().context("a name")?));
        }
    }
    Ok(held)
}

fn set(list: &str) -> BTreeSet<String> {
    let names = list.split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn back_up(env: &Env, velero: &Velero, name: &str, flags: &[&str]) -> Result<BackupStatus> {
    let create = ["backup", "create", name, "--wait"];
    velero.call(&[&create, flags].concat())?;
    let backup = env.api::<Backup>().get(name).await?;
    backup.status.context("a status")
}

async fn every_flag(env: &Env, velero: &Velero) -> Result<()> {
    const ROBOT: &str = "ServiceAccount north/robot, ClusterRole bound, ClusterRoleBinding bound";
    const GADGET: &str = "Gadget north/one, CustomResourceDefinition gadgets.shop.x.k8s.io";
    const MAPS: &str = "ConfigMap north/web, ConfigMap north/db";
    let north = format!("Namespace north, {MAPS}, Role north/reader, {ROBOT}, {GADGET}");
    let south = "Namespace south, ConfigMap south/web, Service south/web";
    let both = ["--include-namespaces", "north,south"];
    let one = ["--include-namespaces", "north"];
    let table: [(&[&str], &[&str], String); 18] = [
        (&[], &[], format!("{north}, {south}, ClusterRole loose")),
        (&both, &[], format!("{north}, {south}")),
        (&["--include-namespaces", "n*rth"], &[], north.clone()),
        (
            &["--exclude-namespaces", "sou*,default,kube-*,velero,volumes"],
            &[],
            north.clone(),
        ),
        (
            &both,
            &["--include-resources", "configmaps,svc"],
            format!("Namespace north, {MAPS}, {south}"),
        ),
        (
            &one,
            &["--exclude-resources", "cm,gadgets.shop.x.k8s.io"],
            format!("Namespace north, Role north/reader, {ROBOT}"),
        ),
        (
            &one,
            &["--include-cluster-resources=true"],
            format!("{north}, ClusterRole loose"),
        ),
        (
            &one,
            &["--include-cluster-resources=false"],
            format!(
                "Namespace north, {MAPS}, Role north/reader, ServiceAccount north/robot, Gadget north/one"
            ),
        ),
        (
            &one,
            &["--include-cluster-scoped-resources", "clusterroles"],
            format!("{north}, ClusterRole loose"),
        ),
        (
            &one,
            &["--include-cluster-scoped-resources", "*"],
            format!("{north}, ClusterRole loose"),
        ),
        (
            &one,
            &["--exclude-cluster-scoped-resources", "clusterroles,crd"],
            format!(
                "Namespace north, {MAPS}, Role north/reader, ServiceAccount north/robot, ClusterRoleBinding bound, Gadget north/one"
            ),
        ),
        (
            &both,
            &["--include-namespace-scoped-resources", "gadgets,services"],
            format!("Namespace north, Namespace south, Service south/web, {GADGET}"),
        ),
        (
            &both,
            &["--exclude-namespace-scoped-resources", "configmaps,sa"],
            format!(
                "Namespace north, Namespace south, Service south/web, Role north/reader, {GADGET}"
            ),
        ),
        (
            &[],
            &[
                "--include-cluster-scoped-resources",
                "clusterrolebindings",
                "--exclude-namespace-scoped-resources",
                "*",
            ],
            "Namespace north, Namespace south, ClusterRoleBinding bound".to_owned(),
        ),
        (
            &both,
            &["--selector", "app=web"],
            format!("Namespace north, ConfigMap north/web, {south}"),
        ),
        (
            &both,
            &["--selector", "app in (robot)"],
            format!("Namespace north, {ROBOT}"),
        ),
        (
            &both,
            &["--or-selector", "app=db or app=robot"],
            format!("Namespace north, ConfigMap north/db, {ROBOT}"),
        ),
        (&both, &["--selector", "app=nobody"], String::new()),
    ];
    let known = set(KNOWN);
    for (number, (namespaces, flags, expected)) in table.into_iter().enumerate() {
        let name = format!("case-{number}");
        let flags = [namespaces, flags].concat();
        let status = back_up(env, velero, &name, &flags).await?;
        ensure!(
            status.phase == Some(BackupPhase::Completed) && status.warnings == 0,
            "{flags:?}: {status:?}"
        );
        let held: BTreeSet<String> = held(env, &name).await?;
        let found: BTreeSet<&String> = held.intersection(&known).collect();
        let expected = set(&expected);
        ensure!(
            expected.is_subset(&known) && found == expected.iter().collect(),
            "{flags:?}: {found:#?} instead of {expected:#?}"
        );
    }
    Ok(())
}

/// A namespace that somebody wrote down and that is not there is an error, whatever stands beside it.
async fn names_beside_globs_are_missed(env: &Env, velero: &Velero) -> Result<()> {
    let flags = ["--include-namespaces", "n*rth,gone,hidden"];
    let status = back_up(env, velero, "missed", &flags).await?;
    ensure!(
        status.phase == Some(BackupPhase::PartiallyFailed) && status.errors == 2,
        "{status:?}"
    );
    let log = velero.run("backup logs missed")?;
    for name in ["gone", "hidden"] {
        let line = log
            .lines()
            .find(|line| line.contains("Namespace is not found") && line.contains(name));
        ensure!(line.is_some(), "{name}: {log}");
    }
    ensure!(held(env, "missed").await?.contains("ConfigMap north/db"));
    Ok(())
}

/// The volume of a claim that its label excludes is nobody's loss; that of one which is being deleted may be.
async fn volumes_of_what_is_left_out(env: &Env, velero: &Velero) -> Result<()> {
    let flags = [
        "--include-namespaces",
        "volumes",
        "--default-volumes-to-fs-backup",
        "--ordered-resources",
        "pods=volumes/c,volumes/a;configmaps=volumes/nobody",
    ];
    let status = back_up(env, velero, "volumes", &flags).await?;
    // The one is the ConfigMap that was to go first.
    ensure!(
        status.phase == Some(BackupPhase::Completed) && status.warnings == 1,
        "{status:?}; {:?}",
        velero.run("backup logs volumes")
    );
    let volumes = env.volumes_of("volumes").await?;
    let names: Vec<&str> = volumes.iter().map(|v| v.spec.volume.as_str()).collect();
    ensure!(names == ["data"], "{names:?}");
    let log = velero.run("backup logs volumes")?;
    let why = "Skip persistent volume claim volumes/scratch: excluded by its label";
    ensure!(log.contains(&format!("level=info msg={why:?}")), "{log}");
    let held = held(env, "volumes").await?;
    let of = |kind: &str| held.iter().filter(|name| name.starts_with(kind)).count();
    ensure!(
        of("PersistentVolumeClaim ") == 1 && of("PersistentVolume ") == 1,
        "{held:?}"
    );
    ensure!(order(velero, "volumes", "pods")? == ["c", "a", "b"]);

    let claims = env.api_in::<PersistentVolumeClaim>("volumes");
    // It stays while a pod uses it.
    claims.delete("data", &DeleteParams::default()).await?;
    let status = back_up(env, velero, "dying", &flags[..3]).await?;
    ensure!(
        status.phase == Some(BackupPhase::Completed) && status.warnings == 1,
        "{status:?}"
    );
    ensure!(env.volumes_of("dying").await?.is_empty());
    let log = velero.run("backup logs dying")?;
    let why = "Skip persistent volume claim volumes/data: it is being deleted";
    ensure!(log.contains(&format!("level=warning msg={why:?}")), "{log}");
    Ok(())
}

/// The names of one kind's objects as they follow each other in the tarball.
fn order(velero: &Velero, backup: &str, kind: &str) -> Result<Vec<String>> {
    velero.run(&format!("backup download {backup}"))?;
    let tarball = velero.home().join(format!("{backup}-data.tar.gz"));
    let listed = Command::new("tar").arg("-tzf").arg(&tarball).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let prefix = format!("resources/{kind}/namespaces/");
    let files = listed.lines().filter_map(|line| line.strip_prefix(&prefix));
    let names = files.filter_map(|file| file.rsplit('/').next()?.strip_suffix(".json"));
    Ok(names.map(str::to_owned).collect())
}

/// Of the backup of both namespaces, into others.
async fn restores(env: &Env, velero: &Velero) -> Result<()> {
    // Flags; then what is there of north's map and service account, and of south's map and service.
    let table = [
        ("--include-resources configmaps", [true, false, true, false]),
        ("--exclude-namespaces south", [true, true, false, false]),
        ("--exclude-resources services", [true, true, true, false]),
        ("--include-namespaces south", [false, false, true, true]),
        ("--selector app=robot", [false, true, false, false]),
    ];
    for (number, (flags, expected)) in table.into_iter().enumerate() {
        let (north, south) = (format!("north-{number}"), format!("south-{number}"));
        let said = velero.run(&format!(
            "restore create back-{number} --from-backup case-1 --namespace-mappings north:{north},south:{south} {flags} --wait"
        ))?;
        ensure!(
            said.contains("Restore completed with status: Completed"),
            "{said}"
        );
        let maps = |namespace: &str| env.api_in::<ConfigMap>(namespace);
        let found = [
            maps(&north).get_opt("db").await?.is_some(),
            env.api_in::<ServiceAccount>(&north)
                .get_opt("robot")
                .await?
                .is_some(),
            maps(&south).get_opt("web").await?.is_some(),
            env.api_in::<Service>(&south)
                .get_opt("web")
                .await?
                .is_some(),
        ];
        ensure!(found == expected, "{flags}: {found:?}");
        let namespaces: Api<Namespace> = Api::all(env.cluster.client());
        let made = [
            namespaces.get_opt(&north).await?.is_some(),
            namespaces.get_opt(&south).await?.is_some(),
        ];
        let wanted = [expected[0] || expected[1], expected[2] || expected[3]];
        ensure!(made == wanted, "{flags}: {made:?}");
    }
    Ok(())
}
