//! What Velero's client asks for is what the tarball holds, and what a restore brings back: every filter by its flag.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::{Backup, BackupPhase, BackupStatus, Schedule};
use jackline_e2e::deploy::Settings;
use jackline_e2e::{BUCKET, Env, Velero, until, wait_gone};
use jackline_test_cluster::Options;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Service, ServiceAccount,
};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const OBJECTS: &str = include_str!("filters.yaml");
/// Everything that the table looks at. What is not in a row of it must not be in the backup.
const KNOWN: &str = "Namespace north, Namespace south, Namespace hidden, ConfigMap north/web, ConfigMap north/db, ConfigMap north/hidden, \
    ConfigMap south/web, ConfigMap hidden/web, Service south/web, ServiceAccount north/robot, Role north/reader, ClusterRole bound, \
    ClusterRole loose, ClusterRoleBinding bound, Gadget north/one, CustomResourceDefinition gadgets.shop.x.k8s.io";

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_what_they_say() -> Result<()> {
    let settings = Settings {
        controller_args: [
            "--restore-resource-priorities=services,-,configmaps",
            "--schedule-skip-immediately",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Settings::default()
    };
    let env = Env::up_with(Options::named("filters"), &settings).await?;
    let velero = Velero::new(&env).await?;
    schedules_wait_for_their_time(&env, &velero).await?;
    objects(&env).await?;
    every_flag(&env, &velero).await?;
    names_beside_globs_are_missed(&env, &velero).await?;
    volumes_of_what_is_left_out(&env, &velero).await?;
    restores(&env, &velero).await?;
    the_order_is_that_of_the_flag(&velero)?;
    names_at_their_longest(&env, &velero).await?;
    a_tarball_that_lies(&env, &velero).await?;
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
    let table: [(&[&str], &[&str], String); 20] = [
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
        // Where Velero stores less: what a list does not name comes along, and what no list excludes is there.
        (
            &one,
            &["--include-resources", "sa,gadgets.shop.x.k8s.io"],
            format!("Namespace north, {ROBOT}, {GADGET}"),
        ),
        (
            &[],
            &["--exclude-cluster-scoped-resources", "clusterrolebindings"],
            format!(
                "Namespace north, {MAPS}, Role north/reader, ServiceAccount north/robot, ClusterRole bound, {GADGET}, {south}, ClusterRole loose"
            ),
        ),
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
        (
            "--exclude-resources c*maps,*.x.k8s.io",
            [false, true, false, true],
        ),
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

/// Services first and ConfigMaps last, as the controller was told.
fn the_order_is_that_of_the_flag(velero: &Velero) -> Result<()> {
    for (restore, first, last) in [
        (
            "back-1",
            "serviceaccounts robot created",
            "configmaps db created",
        ),
        ("back-3", "services web created", "configmaps web created"),
    ] {
        let log = velero.run(&format!("restore logs {restore}"))?;
        let at = |what: &str| log.find(what).with_context(|| format!("{what}: {log}"));
        ensure!(at(first)? < at(last)?, "{log}");
    }
    Ok(())
}

/// A Schedule that says nothing of it has skipped what was due before it came.
async fn schedules_wait_for_their_time(env: &Env, velero: &Velero) -> Result<()> {
    velero.run("schedule create yearly --schedule @yearly")?;
    until("it is skipped", MINUTE, async || {
        let schedule = env.api::<Schedule>().get("yearly").await?;
        let skipped = schedule.status.and_then(|status| status.last_skipped);
        let told = schedule.spec.skip_immediately == Some(false);
        Ok((told && skipped.is_some()).then_some(()))
    })
    .await
}

/// Names at the limit of what Kubernetes and the bucket take, and text in many scripts, come back as they were.
async fn names_at_their_longest(env: &Env, velero: &Velero) -> Result<()> {
    const TEXT: &str = "größer als 世界 🧵 \u{202e}\t\"";
    let name = |letter: &str, length: usize| letter.repeat(length);
    let (namespace, volume) = (name("n", 63), name("v", 63));
    // The kubelet makes one directory name of namespace, pod and UID.
    let (map, pod) = (name("m", 253), name("p", 150));
    // MinIO takes 255 bytes between two slashes, the longest suffix among them.
    let (backup, restore) = (name("b", 200), name("r", 200));
    let metadata = |name: &str| {
        json!({"name": name, "namespace": namespace, "annotations": {"example.com/text": TEXT},
               "labels": {"app": name.get(..63).unwrap_or(name)}})
    };
    let command =
        "mkdir -p '/data/größe 世界' && echo kept > '/data/größe 世界/🧵' && exec sleep 100000";
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "annotations": {"example.com/text": TEXT}}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(&map), "data": {"text": TEXT}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(&pod), "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": name("c", 63), "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                            "command": ["sh", "-c", command], "volumeMounts": [{"name": volume, "mountPath": "/data"}]}],
            "volumes": [{"name": volume, "emptyDir": {}}]}}),
    ];
    env.cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    let label = format!("app={}", name("p", 63));
    let running = async |what: &str| {
        until(what, 2 * MINUTE, async || {
            let pods = env.ready_pods(&namespace, &label).await?;
            Ok((!pods.is_empty()).then_some(()))
        })
        .await
    };
    running("the pod runs").await?;
    let flags = [
        "--include-namespaces",
        &namespace,
        "--default-volumes-to-fs-backup",
    ];
    let status = back_up(env, velero, &backup, &flags).await?;
    ensure!(status.phase == Some(BackupPhase::Completed), "{status:?}");

    let namespaces: Api<Namespace> = Api::all(env.cluster.client());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await?;
    wait_gone(&namespaces, &namespace, 2 * MINUTE).await?;
    let said = velero.run(&format!(
        "restore create {restore} --from-backup {backup} --wait"
    ))?;
    ensure!(
        said.contains("Restore completed with status: Completed"),
        "{said}"
    );
    running("the pod is back").await?;
    let map = env.api_in::<ConfigMap>(&namespace).get(&map).await?;
    ensure!(map.annotations()["example.com/text"] == TEXT, "{map:?}");
    ensure!(map.data.is_some_and(|data| data["text"] == TEXT));
    let made = namespaces.get(&namespace).await?;
    ensure!(made.annotations()["example.com/text"] == TEXT, "{made:?}");
    let files = env.volume_dir(&namespace, &pod, &volume).await?;
    let file = std::fs::read_to_string(files.join("größe 世界/🧵"))?;
    ensure!(file == "kept\n", "{file}");
    velero.run(&format!("backup delete {backup} --confirm"))?;
    wait_gone(&env.api::<Backup>(), &backup, MINUTE).await
}

/// A tarball whose objects are not what their paths say: what is true comes back, and all else is named.
async fn a_tarball_that_lies(env: &Env, velero: &Velero) -> Result<()> {
    let object = |kind: &str, name: &str| {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "liars"}});
        if ["Namespace", "ClusterRole"].contains(&kind) {
            object["metadata"] = json!({"name": name});
        }
        object.to_string()
    };
    let deep = format!("{{\"data\": {}", "[".repeat(100_000));
    let entries = [
        ("namespaces/cluster/liars", object("Namespace", "liars")),
        (
            "configmaps/namespaces/liars/true",
            object("ConfigMap", "true"),
        ),
        (
            "secrets/namespaces/liars/other-kind",
            object("ConfigMap", "other-kind"),
        ),
        (
            "configmaps/namespaces/liars/other-name",
            object("ConfigMap", "another"),
        ),
        ("configmaps/namespaces/liars/deep", deep),
        (
            "configmaps/cluster/no-namespace",
            object("Namespace", "no-namespace"),
        ),
        (
            "clusterroles.rbac.authorization.k8s.io/namespaces/liars/in-one",
            object("ConfigMap", "in-one"),
        ),
        (
            "gizmos.example.com/namespaces/liars/unknown",
            object("Gizmo", "unknown"),
        ),
    ];
    let directory = tempfile::tempdir()?;
    for (path, content) in &entries {
        let file = directory.path().join(format!("resources/{path}.json"));
        std::fs::create_dir_all(file.parent().context("a directory")?)?;
        std::fs::write(file, content)?;
    }
    let tarball = directory.path().join("liar.tar.gz");
    let made = Command::new("tar")
        .arg("--create")
        .arg("--gzip")
        .arg("--file")
        .arg(&tarball)
        .arg("--directory")
        .arg(directory.path())
        .arg("resources")
        .status()?;
    ensure!(made.success());
    let s3 = env.cluster.s3();
    let original = s3.get(BUCKET, "backups/case-1/velero-backup.json").await?;
    let mut backup: serde_json::Value = serde_json::from_slice(&original)?;
    backup["metadata"]["name"] = json!("liar");
    s3.put(BUCKET, "backups/liar/liar.tar.gz", std::fs::read(&tarball)?)
        .await?;
    let backup = serde_json::to_vec(&backup)?;
    s3.put(BUCKET, "backups/liar/velero-backup.json", backup)
        .await?;
    until("the backup is in the cluster", 2 * MINUTE, async || {
        Ok(env.api::<Backup>().get_opt("liar").await?.map(|_| ()))
    })
    .await?;

    let said = velero.run("restore create of-liar --from-backup liar --wait")?;
    ensure!(
        said.contains("Restore completed with status: PartiallyFailed"),
        "{said}"
    );
    let said = velero.run("restore describe of-liar")?;
    for wrong in [
        "other-kind was not restored: it is not of the kind that its path in the tarball says",
        "other-name was not restored: its name or namespace is another than its path in the tarball says",
        "deep was not restored: it is not JSON",
        "no-namespace was not restored: it is not of the kind",
        "in-one was not restored: it is not of the kind",
        "gizmos.example.com",
    ] {
        ensure!(said.contains(wrong), "{wrong:?} is missing in\n{said}");
    }
    let maps = env.api_in::<ConfigMap>("liars");
    let maps = maps.list_metadata(&ListParams::default()).await?.items;
    let mut maps: Vec<String> = maps.iter().map(ResourceExt::name_any).collect();
    maps.retain(|name| name != "kube-root-ca.crt");
    ensure!(maps == ["true"], "{maps:?}");
    Ok(())
}
