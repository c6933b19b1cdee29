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

fn bound(name: &str) -> Volume {
    let source = match name {
        "hostly" => "hostPath",
        _ => "local",
    };
    Volume::of(&json!({"spec": {"storageClassName": format!("class-{name}"), source: {}}}))
}

fn claim(_: &str, name: &str) -> Option<ClaimFacts> {
    (name != "missing").then(|| ClaimFacts {
        uid: format!("uid-{name}"),
        labels: [("tier", name)].into_iter().collect(),
        volume: Some(format!("pv-{name}")),
        bound: (name != "unread").then(|| bound(name)),
        ancestor: None,
        left_out: match name {
            "excluded" => Some(Skip::Excluded),
            "dying" => Some(Skip::Terminating),
            _ => None,
        },
    })
}

type Chosen = (Vec<(String, String)>, Vec<(Level, String)>);

fn run(pods: &[PodVolumes], mode: &Mode) -> Chosen {
    run_under(pods, mode, &VolumePolicies::default())
}

fn run_under(pods: &[PodVolumes], mode: &Mode, policies: &VolumePolicies) -> Chosen {
    let pods: Vec<&PodVolumes> = pods.iter().collect();
    let selection = select(&pods, mode, policies, true, &claim, &|node| node == "n1");
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
    quiet.opt_out = ["cache".to_owned()].into();
    assert_eq!(
        run(&[quiet.clone()], &Mode::OptOut).0,
        taken(&[("a", "data")])
    );
    // The pod that opted out does not carry what another one wants.
    quiet.opt_out = ["data".to_owned(), "cache".to_owned()].into();
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
fn claims_that_are_not_stored_themselves_are_not_read() {
    let table = [
        (
            "excluded",
            Level::Info,
            "Skip persistent volume claim shop/excluded: excluded by its label",
        ),
        (
            "dying",
            Level::Warning,
            "Skip persistent volume claim shop/dying: it is being deleted",
        ),
    ];
    let kept = policies(json!([policy("fs-backup", json!({}))]));
    for (claim, level, message) in table {
        let volume = format!("d={claim}");
        let pods = [pod("a", "Running", Some("d,e"), &[&volume, "e"])];
        for mode in [Mode::OptIn, Mode::OptOut] {
            for policies in [&VolumePolicies::default(), &kept] {
                let (volumes, notes) = run_under(&pods, &mode, policies);
                assert_eq!(volumes, taken(&[("a", "e")]), "{claim}");
                assert_eq!(notes, [(level, message.to_owned())]);
            }
        }
    }
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
    let pod = pod("a", "Running", Some("d,e"), &["d=d", "e"]);
    let none = VolumePolicies::default();
    let selection = select(&[&pod], &Mode::OptIn, &none, false, &claim, &|_| true);
    assert_eq!(selection.volumes.len(), 1);
    assert_eq!(selection.volumes[0].volume, "e");
}

fn policies(list: Value) -> VolumePolicies {
    let source = json!({"version": "v1", "volumePolicies": list}).to_string();
    let yaml = |text: &str| serde_json::from_str(text).map_err(|error| error.to_string());
    VolumePolicies::parse(&source, &yaml).unwrap()
}

fn policy(action: &str, conditions: Value) -> Value {
    json!({"conditions": conditions, "action": {"type": action}})
}

#[test]
fn volume_policies_come_before_annotations() {
    let policies = policies(json!([
        policy("skip", json!({"storageClass": ["class-cold"]})),
        policy("snapshot", json!({"pvcLabels": {"tier": "disk"}})),
        policy("skip", json!({"volumeTypes": ["emptyDir"]})),
        policy("fs-backup", json!({"storageClass": ["class-warm"]})),
    ]));
    let volumes = ["c=cold", "d=disk", "scratch", "w=warm", "x=other"];
    let mut all = pod("a", "Running", Some("c,d,scratch,x"), &volumes);
    all.opt_out = ["w".to_owned()].into();
    let skipped = |volume: &str, at: usize| {
        let message = format!(
            "Skip volume {volume}: matched action is 'skip' in chosen resource policies (volumePolicies[{at}])"
        );
        (Level::Info, message)
    };
    let wanted = Wanted {
        namespace: "shop".to_owned(),
        pod: "a".to_owned(),
        volume: "x".to_owned(),
        claim: Some("other".to_owned()),
    };
    for mode in [Mode::OptIn, Mode::OptOut, Mode::Governed(vec![wanted])] {
        let (volumes, notes) = run_under(std::slice::from_ref(&all), &mode, &policies);
        assert_eq!(volumes, taken(&[("a", "w"), ("a", "x")]), "{mode:?}");
        let snapshot = "Skip volume d: matched action is 'snapshot' in chosen resource policies (volumePolicies[1]), \
            but native volume snapshots are not taken";
        assert_eq!(
            notes,
            [
                skipped("scratch", 2),
                skipped("c", 0),
                (Level::Warning, snapshot.to_owned())
            ],
            "{mode:?}"
        );
    }
    // Nothing matches: as if there were no policies.
    all.volumes.retain(|volume| volume.name == "x");
    all.opt_in = None;
    let nothing = (Vec::new(), Vec::new());
    assert_eq!(run_under(&[all], &Mode::OptIn, &policies), nothing);
}

#[test]
fn a_volume_that_a_policy_wants_has_to_be_readable_all_the_same() {
    let policies = policies(json!([policy("fs-backup", json!({}))]));
    let mut secret = pod("a", "Running", None, &["key"]);
    secret.volumes[0].kind = VolumeType::of("secret");
    let nothing = (Vec::new(), Vec::new());
    assert_eq!(run_under(&[secret], &Mode::OptIn, &policies), nothing);
    let table = [
        (pod("a", "Running", None, &["d=hostly"]), "hostPath"),
        (pod("a", "Pending", None, &["d=d"]), "expected status"),
    ];
    for (pod, expected) in table {
        let (volumes, notes) = run_under(&[pod], &Mode::OptIn, &policies);
        assert!(volumes.is_empty() && notes.len() == 1, "{notes:?}");
        assert!(
            notes[0].0 == Level::Warning && notes[0].1.contains(expected),
            "{notes:?}"
        );
    }
}

#[test]
fn a_claim_that_a_policy_decides_about_is_decided_once() {
    let pods = [
        pod("a", "Running", None, &["l=shared"]),
        pod("b", "Running", Some("l"), &["l=shared"]),
    ];
    let mut skip = policies(json!([policy("skip", json!({"capacity": ",1Gi"}))]));
    let (volumes, notes) = run_under(&pods, &Mode::OptIn, &skip);
    assert_eq!((volumes.len(), notes.len()), (0, 1));
    // What governs it may have gone: that is nothing to worry about when it is skipped.
    let gone = Wanted {
        namespace: "shop".to_owned(),
        pod: "gone".to_owned(),
        volume: "l".to_owned(),
        claim: Some("lonely".to_owned()),
    };
    let (_, notes) = run_under(&[], &Mode::Governed(vec![gone]), &skip);
    assert!(
        notes.len() == 1
            && notes[0].0 == Level::Info
            && notes[0].1.starts_with("Skip volume lonely: "),
        "{notes:?}"
    );
    skip = policies(json!([policy("fs-backup", json!({"capacity": ",1Gi"}))]));
    assert_eq!(
        run_under(&pods, &Mode::OptIn, &skip),
        (
            taken(&[("a", "l")]),
            vec![(Level::Info, ELSEWHERE.to_owned())]
        )
    );
}

/// As Velero does: what a policy would say of it is not known.
#[test]
fn a_volume_that_cannot_be_looked_at_is_an_error_where_there_are_policies() {
    let pods = [
        pod("a", "Running", None, &["u=unread"]),
        pod("b", "Running", Some("u"), &["u=unread"]),
    ];
    let (volumes, notes) = run(&pods, &Mode::OptIn);
    assert_eq!((volumes.len(), notes.len()), (1, 0));
    let by_class = policies(json!([policy("skip", json!({"storageClass": ["cold"]}))]));
    for pods in [&pods[..1], &pods[..]] {
        let (volumes, notes) = run_under(pods, &Mode::OptIn, &by_class);
        assert!(volumes.is_empty() && notes.len() == 1, "{notes:?}");
        assert!(
            notes[0].0 == Level::Error && notes[0].1.contains("its volume pv-unread was not found"),
            "{notes:?}"
        );
    }
}

#[test]
fn an_ephemeral_volume_is_of_that_type_only() {
    let pod = PodVolumes::of(&json!({
        "metadata": {"namespace": "shop", "name": "a", "uid": "u"},
        "spec": {
            "nodeName": "n1",
            "containers": [{"volumeMounts": [{"name": "scratch", "mountPath": "/x"}]}],
            "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}}],
        },
        "status": {"phase": "Running"},
    }));
    let by_class = policy("skip", json!({"storageClass": ["class-a-scratch"]}));
    let by_type = policy("fs-backup", json!({"volumeTypes": ["ephemeral"]}));
    let policies = policies(json!([by_class, by_type]));
    assert_eq!(
        run_under(&[pod], &Mode::OptIn, &policies),
        (taken(&[("a", "scratch")]), Vec::new())
    );
}

/// As many names as an annotation can have room for, and as many volumes as a pod can.
#[test]
fn what_one_pod_has_too_much_of_is_summed_up() {
    let (last, names) = (Level::Warning, (0..131_000).map(|n| format!("n{n}")));
    let names = names.collect::<Vec<_>>().join(",");
    let named = pod(
        "a",
        "Running",
        Some(&format!("{names},d,{names}")),
        &["d=d"],
    );
    assert_eq!(named.opt_in.as_ref().unwrap().first.len(), FEW);
    let (volumes, notes) = run(&[named], &Mode::OptIn);
    assert_eq!((volumes, notes.len()), (taken(&[("a", "d")]), FEW + 1));
    let first = "No volume named n0 found in pod shop/a, skipping";
    assert_eq!(notes[0], (Level::Warning, first.to_owned()));
    let more = "Skip 130990 more volumes of pod shop/a: no volumes of these names are found in it";
    assert_eq!(notes[FEW], (last, more.to_owned()));

    let names: Vec<String> = (0..50_000).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut many = pod("a", "Running", None, &names);
    for volume in &mut many.volumes {
        volume.mounted = volume.name == "n7";
    }
    let (volumes, notes) = run(&[many], &Mode::OptOut);
    assert_eq!((volumes, notes.len()), (taken(&[("a", "n7")]), FEW + 1));
    let more = "Skip 49989 more volumes of pod shop/a: they are declared in the pod, but not mounted by any container";
    assert_eq!(notes[FEW], (last, more.to_owned()));

    let claims: Vec<String> = (0..20_000).map(|n| format!("n{n}=missing")).collect();
    let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
    let (volumes, notes) = run(&[pod("a", "Running", None, &claims)], &Mode::OptOut);
    assert_eq!((volumes.len(), notes.len()), (0, 1));
}

#[test]
fn a_name_is_counted_once_and_shown_no_longer_than_a_name_can_be() {
    let long = "\u{e9}".repeat(100);
    let pod = pod("a", "Running", Some(&format!("d,x,{long},d,x")), &["d"]);
    let named = pod.opt_in.unwrap();
    assert_eq!((named.volumes, named.unknown), (vec!["d".to_owned()], 2));
    assert_eq!(named.first, ["x".to_owned(), "\u{e9}".repeat(31)]);
}

proptest::proptest! {
    /// Whatever is asked for is taken or told, or counted among what is not told.
    #[test]
    fn nothing_that_is_asked_for_is_passed_over(
        states in proptest::collection::vec(0_u8..5, 0..60),
        unknown in 0_usize..60,
    ) {
        let name = |n: usize| format!("v{n}");
        let volumes: Vec<String> = (0..states.len()).map(name).collect();
        let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
        let asked: Vec<String> = (0..states.len() + unknown).map(name).collect();
        let mut pod = pod("a", "Running", Some(&asked.join(",")), &volumes);
        for (volume, state) in pod.volumes.iter_mut().zip(&states) {
            volume.mounted = *state != 1;
            volume.device = *state == 2;
            if *state == 3 {
                volume.kind = VolumeType::of("secret");
            }
        }
        let (volumes, notes) = run(&[pod], &Mode::OptIn);
        let more = |note: &str| match note.strip_prefix("Skip ") {
            Some(rest) => rest.split(' ').next().unwrap().parse().unwrap(),
            None => 1,
        };
        let told: usize = notes.iter().map(|(_, note)| more(note)).sum();
        proptest::prop_assert_eq!(volumes.len() + told, asked.len());
        proptest::prop_assert!(notes.len() <= 4 * (FEW + 1));
    }
}
