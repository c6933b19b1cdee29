use serde_json::json;

use super::*;

/// A pod whose container mounts all of its volumes: `name=claim` or `name` for an emptyDir.
fn pod(name: &str, phase: &str, annotation: Option<&str>, volumes: &[&str]) -> PodVolumes {
    let sources: Vec<Value> = volumes
        .iter()
        .map(|volume| match volume.split_once('=') {
            Some((name, claim)) => {
                json!({"name": name, "persistentVolumeClaim": {"claimName": claim}})
            }
            None => json!({"name": volume, "emptyDir": {}}),
        })
        .collect();
    let mounts: Vec<Value> = sources
        .iter()
        .map(|source| json!({"name": source["name"], "mountPath": "/x"}))
        .collect();
    let annotations = annotation.map(|value| json!({"backup.velero.io/backup-volumes": value}));
    PodVolumes::of(&json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": [{"volumeMounts": mounts}], "volumes": sources},
        "status": {"phase": phase},
    }))
}

fn claim(_: &str, name: &str) -> Option<ClaimFacts> {
    (name != "missing").then(|| ClaimFacts {
        uid: format!("uid-{name}"),
        volume: Some(format!("pv-{name}")),
        host_path: name == "hostly",
        ancestor: None,
    })
}

type Chosen = (Vec<(String, String)>, Vec<(Level, String)>);

fn run(pods: &[PodVolumes], mode: &Mode) -> Chosen {
    let selection = select(pods, mode, true, &claim, &|node| node == "n1");
    let volumes = selection
        .volumes
        .iter()
        .map(|v| (pods[v.pod].name.clone(), v.volume.clone()));
    (
        volumes.collect(),
        selection
            .notes
            .into_iter()
            .map(|n| (n.level, n.message))
            .collect(),
    )
}

fn taken(names: &[(&str, &str)]) -> Vec<(String, String)> {
    names
        .iter()
        .map(|(pod, volume)| ((*pod).to_owned(), (*volume).to_owned()))
        .collect()
}

#[test]
fn annotations_are_trimmed_and_unknown_names_told() {
    let pods = [pod(
        "a",
        "Running",
        Some(" data , cache,,oops"),
        &["data=d", "cache", "other"],
    )];
    let (volumes, notes) = run(&pods, &Mode::OptIn);
    assert_eq!(volumes, taken(&[("a", "cache"), ("a", "data")]));
    assert_eq!(
        notes,
        [(
            Level::Warning,
            "No volume named oops found in pod shop/a, skipping".to_owned()
        )]
    );
}

#[test]
fn a_shared_claim_is_taken_once_by_the_same_pod_whatever_the_order() {
    let mut pods = vec![
        pod("b", "Running", Some("logs"), &["logs=shared"]),
        pod("a", "Running", Some("logs"), &["logs=shared"]),
        pod("0", "Running", None, &["logs=shared"]),
    ];
    let (volumes, notes) = run(&pods, &Mode::OptIn);
    assert_eq!(volumes, taken(&[("a", "logs")]));
    assert_eq!(notes, [(Level::Info, ELSEWHERE.to_owned())]);
    pods.reverse();
    assert_eq!(run(&pods, &Mode::OptIn).0, volumes);
}

#[test]
fn a_running_pod_takes_over_from_one_that_does_not_run() {
    let pods = [
        pod("a", "Pending", Some("logs"), &["logs=shared"]),
        pod("b", "Succeeded", Some("logs"), &["logs=shared"]),
        pod("c", "Running", None, &["mine=shared"]),
    ];
    assert_eq!(run(&pods, &Mode::OptIn).0, taken(&[("c", "mine")]));
}

#[test]
fn pods_that_do_not_run_are_skipped_with_the_weight_they_deserve() {
    let (volumes, notes) = run(&[pod("a", "Pending", Some("d"), &["d=d"])], &Mode::OptIn);
    assert_eq!((volumes.len(), notes[0].0), (0, Level::Warning));
    let (_, notes) = run(
        &[pod("a", "Failed", Some("d,e"), &["d=d", "e"])],
        &Mode::OptIn,
    );
    assert!(
        notes.iter().all(|(level, _)| *level == Level::Info) && notes.len() == 2,
        "{notes:?}"
    );
}

#[test]
fn opting_out() {
    let mut quiet = pod(
        "a",
        "Running",
        Some("ignored"),
        &["data=d", "cache", "default-token-x"],
    );
    quiet.opt_out = vec!["cache".to_owned()];
    assert_eq!(
        run(&[quiet.clone()], &Mode::OptOut).0,
        taken(&[("a", "data")])
    );
    // The pod that opted out does not carry what another one wants.
    quiet.opt_out = vec!["data".to_owned(), "cache".to_owned()];
    let other = pod("z", "Running", None, &["data=d"]);
    assert_eq!(
        run(&[quiet, other], &Mode::OptOut).0,
        taken(&[("z", "data")])
    );
}

#[test]
fn volumes_that_cannot_be_moved_are_told() {
    let mut raw = pod("a", "Running", Some("d"), &["d=d"]);
    raw.volumes[0].mounted = false;
    let (volumes, notes) = run(&[raw.clone()], &Mode::OptIn);
    assert!(volumes.is_empty() && notes[0].1.contains("not mounted by any container"));
    raw.volumes[0].device = true;
    assert!(
        run(&[raw], &Mode::OptIn).1[0]
            .1
            .contains("raw block device")
    );
    let (_, notes) = run(
        &[pod("a", "Running", Some("d"), &["d=hostly"])],
        &Mode::OptIn,
    );
    assert!(notes[0].0 == Level::Warning && notes[0].1.contains("hostPath"));
    let (_, notes) = run(
        &[pod("a", "Running", Some("d"), &["d=missing"])],
        &Mode::OptIn,
    );
    assert_eq!(
        notes,
        [(
            Level::Error,
            "persistent volume claim shop/missing does not exist".to_owned()
        )]
    );
    let mut secret = pod("a", "Running", Some("s"), &["s"]);
    secret.volumes[0].kind = VolumeType::of("secret");
    assert!(
        run(&[secret], &Mode::OptIn).1[0]
            .1
            .contains("never backed up")
    );
}

#[test]
fn a_node_without_an_agent_is_an_error_that_names_it_unless_another_can() {
    let mut far = pod("a", "Running", Some("d,e"), &["d=d", "e"]);
    far.node = Some("n2".to_owned());
    let (volumes, notes) = run(&[far.clone()], &Mode::OptIn);
    assert!(volumes.is_empty());
    let expected = "daemonset pod not found in running state in node n2";
    assert!(
        notes
            .iter()
            .all(|note| *note == (Level::Error, expected.to_owned())),
        "{notes:?}"
    );
    let near = pod("b", "Running", None, &["d=d"]);
    assert_eq!(run(&[far, near], &Mode::OptIn).0, taken(&[("b", "d")]));
}

#[test]
fn a_policy_moves_only_what_it_governs() {
    let wanted = |pod: &str, volume: &str, claim: Option<&str>| Wanted {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        volume: volume.to_owned(),
        claim: claim.map(str::to_owned),
    };
    let pods = [
        pod("a", "Running", Some("d,e"), &["d=d", "e"]),
        pod("new", "Running", None, &["l=shared"]),
    ];
    let mode = Mode::Governed(vec![
        wanted("a", "d", Some("d")),
        // Replaced between election and backup.
        wanted("old", "l", Some("shared")),
        wanted("old", "scratch", None),
        wanted("old", "x", Some("lonely")),
    ]);
    let (volumes, notes) = run(&pods, &mode);
    assert_eq!(volumes, taken(&[("a", "d"), ("new", "l")]));
    let notes: Vec<&str> = notes.iter().map(|(_, message)| message.as_str()).collect();
    assert_eq!(
        notes,
        [
            "pod shop/old is gone, and volume scratch with it",
            "no running pod mounts persistent volume claim shop/lonely, skipping"
        ]
    );
}

#[test]
fn claims_outside_of_the_backup_stay_outside() {
    let pods = [pod("a", "Running", Some("d,e"), &["d=d", "e"])];
    let selection = select(&pods, &Mode::OptIn, false, &claim, &|_| true);
    assert_eq!(selection.volumes.len(), 1);
    assert_eq!(selection.volumes[0].volume, "e");
}
