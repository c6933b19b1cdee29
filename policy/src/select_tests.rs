use super::*;
use crate::PolicyId;
use crate::facts::{ClaimFacts, PersistentVolumeFacts, PodPhase};
use crate::labels::{Labels, Selector};
use crate::spec::{MatchParts, PodRule, PolicyParts, VolumeRule, Volumes};

fn policy(id: PolicyId, parts: PolicyParts) -> Policy {
    let spec = parts.check(id.kind).unwrap();
    Policy {
        id,
        uid: "p".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        spec,
    }
}

fn cluster(parts: PolicyParts) -> Policy {
    policy(PolicyId::cluster("everything"), parts)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn labels(pairs: &[(&'static str, &'static str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn namespace(name: &str, pairs: &[(&'static str, &'static str)]) -> NamespaceFacts {
    NamespaceFacts {
        name: name.into(),
        labels: labels(pairs),
        exempt: None,
        terminating: false,
    }
}

fn volume(name: &str, kind: &str, claim: Option<&str>) -> PodVolume {
    PodVolume {
        name: name.into(),
        kind: VolumeType::of(kind),
        claim: claim.map(Into::into),
        csi_driver: None,
        mounted: true,
        device: false,
    }
}

fn pod(job: Option<&str>) -> PodFacts {
    PodFacts {
        namespace: "team-a".into(),
        name: "p".into(),
        uid: "u".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        phase: PodPhase::Running,
        terminating: false,
        node: "n".into(),
        labels: labels(&[("app", "db")]),
        job: job.map(Into::into),
        exempt: None,
        volumes: Box::new([]),
        backup_volumes: Default::default(),
        backup_volumes_excludes: Default::default(),
    }
}

fn claim() -> ClaimFacts {
    ClaimFacts {
        namespace: "team-a".into(),
        name: "cache-0".into(),
        uid: "c".into(),
        lineage: "c".into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        labels: labels(&[("tier", "gold")]),
        exempt: None,
        storage_class: "fast".into(),
        access_modes: ["ReadWriteMany".into()].into(),
        capacity: Some(100 << 30),
        block: false,
        terminating: false,
        volume: "pv".into(),
    }
}

#[test]
fn namespaces_by_glob_regex_and_label() {
    let gold = Selector::new("s", [("tier", "gold")], []).unwrap();
    type Case<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        Option<&'a str>,
        Selector,
        &'a str,
        bool,
    );
    let cases: &[Case<'_>] = &[
        (&[], &[], None, Selector::default(), "anything", true),
        (&["team-*"], &[], None, Selector::default(), "team-a", true),
        (&["team-*"], &[], None, Selector::default(), "app-a", false),
        (
            &[],
            &["kube-*"],
            None,
            Selector::default(),
            "kube-system",
            false,
        ),
        (
            &["team-*"],
            &["team-x*"],
            None,
            Selector::default(),
            "team-x1",
            false,
        ),
        (
            &["team-*"],
            &[],
            Some("-[ab]$"),
            Selector::default(),
            "team-c",
            false,
        ),
        (
            &[],
            &[],
            Some("^(team|app)-"),
            Selector::default(),
            "app-1",
            true,
        ),
        (&[], &[], None, gold.clone(), "team-a", true),
        (
            &[],
            &[],
            None,
            Selector::new("s", [("tier", "lead")], []).unwrap(),
            "team-a",
            false,
        ),
    ];
    for (include, exclude, regex, selector, name, expected) in cases {
        let rule = NamespaceRule::new(
            "n",
            &strings(include),
            &strings(exclude),
            *regex,
            selector.clone(),
        )
        .unwrap();
        let found = cluster(PolicyParts {
            namespaces: rule,
            ..PolicyParts::default()
        });
        let namespace = namespace(name, &[("tier", "gold")]);
        assert_eq!(
            selects_namespace(&found, &namespace),
            *expected,
            "{include:?} {exclude:?} {regex:?} {name}"
        );
    }
    let both = NamespaceRule::new(
        "spec.namespaces",
        &strings(&["a"]),
        &strings(&["a"]),
        None,
        Selector::default(),
    );
    assert_eq!(both.unwrap_err().field, "spec.namespaces.exclude");
}

#[test]
fn a_backup_policy_governs_its_own_namespace() {
    let own = policy(PolicyId::namespaced("team-a", "db"), PolicyParts::default());
    assert!(selects_namespace(&own, &namespace("team-a", &[])));
    assert!(!selects_namespace(&own, &namespace("team-b", &[])));
}

#[test]
fn pods_by_label_and_job() {
    let with = |selector: Selector, jobs: &[&str]| {
        let pods = PodRule::new("spec.pods", selector, &strings(jobs)).unwrap();
        cluster(PolicyParts {
            pods,
            ..PolicyParts::default()
        })
    };
    assert!(selects_pod(
        &with(Selector::default(), &[]),
        &pod(Some("migrate-1"))
    ));
    assert!(!selects_pod(
        &with(Selector::default(), &["*"]),
        &pod(Some("migrate-1"))
    ));
    assert!(selects_pod(&with(Selector::default(), &["*"]), &pod(None)));
    assert!(selects_pod(
        &with(Selector::default(), &["load-*"]),
        &pod(Some("migrate-1"))
    ));
    let other = Selector::new("s", [("app", "web")], []).unwrap();
    assert!(!selects_pod(&with(other, &[]), &pod(None)));
}

fn rule(name: &str, parts: MatchParts<'_>, action: Action) -> VolumeRule {
    VolumeRule::new(
        "r",
        name,
        Match::new("r.match", parts, Selector::default()).unwrap(),
        action,
    )
    .unwrap()
}

fn with_rules(rules: Vec<VolumeRule>, default: VolumeDefault) -> Policy {
    let volumes = Volumes::new("spec.volumes", rules, default).unwrap();
    cluster(PolicyParts {
        volumes,
        ..PolicyParts::default()
    })
}

#[test]
fn the_default_decides_without_rules() {
    let claim = claim();
    let view = ClaimView {
        claim: &claim,
        volume: None,
    };
    let (data, cache) = (
        volume("data", "persistentVolumeClaim", Some("cache-0")),
        volume("tmp", "emptyDir", None),
    );
    for (default, of_claim, of_cache) in [
        (VolumeDefault::Claims, true, false),
        (VolumeDefault::All, true, true),
        (VolumeDefault::None, false, false),
    ] {
        let policy = with_rules(vec![], default);
        assert_eq!(
            choose(&policy, &data, Some(view)).is_backup(),
            of_claim,
            "{default}"
        );
        assert_eq!(
            choose(&policy, &cache, None).is_backup(),
            of_cache,
            "{default}"
        );
    }
}

#[test]
fn the_first_matching_rule_decides() {
    let claims = strings(&["persistentVolumeClaim"]);
    let first = MatchParts {
        claim_regex: Some("^cache-"),
        ..MatchParts::default()
    };
    let second = MatchParts {
        types: &claims,
        ..MatchParts::default()
    };
    let policy = with_rules(
        vec![
            rule("no-cache", first, Action::Skip),
            rule("claims", second, Action::Backup),
        ],
        VolumeDefault::None,
    );
    let choice = |claim| {
        choose(
            &policy,
            &volume("v", "persistentVolumeClaim", Some(claim)),
            None,
        )
    };
    assert_eq!(choice("cache-1"), Choice::Skip(Some("no-cache")));
    assert_eq!(choice("data"), Choice::Backup(Some("claims")));
    assert_eq!(
        choose(&policy, &volume("v", "emptyDir", None), None),
        Choice::Skip(None)
    );
}

#[test]
fn conditions_are_anded_and_need_what_they_ask_about() {
    let claim = claim();
    let pv = PersistentVolumeFacts {
        host_path: false,
        csi_driver: Some("csi.example".into()),
    };
    let view = ClaimView {
        claim: &claim,
        volume: Some(&pv),
    };
    let (fast, slow) = (strings(&["fast"]), strings(&["slow"]));
    let (many, once) = (
        strings(&["ReadWriteMany", "ReadOnlyMany"]),
        strings(&["ReadWriteOnce"]),
    );
    let (driver, other) = (strings(&["csi.example"]), strings(&["other"]));
    let none = MatchParts::default();
    for (parts, expected) in [
        (none, true),
        (
            MatchParts {
                storage_classes: &fast,
                ..none
            },
            true,
        ),
        (
            MatchParts {
                storage_classes: &slow,
                ..none
            },
            false,
        ),
        (
            MatchParts {
                access_modes: &many,
                ..none
            },
            true,
        ),
        (
            MatchParts {
                access_modes: &once,
                ..none
            },
            false,
        ),
        (
            MatchParts {
                storage_classes: &fast,
                access_modes: &once,
                ..none
            },
            false,
        ),
        (
            MatchParts {
                min_capacity: Some("100Gi"),
                ..none
            },
            true,
        ),
        (
            MatchParts {
                min_capacity: Some("101Gi"),
                ..none
            },
            false,
        ),
        (
            MatchParts {
                max_capacity: Some("100Gi"),
                ..none
            },
            true,
        ),
        (
            MatchParts {
                max_capacity: Some("99Gi"),
                ..none
            },
            false,
        ),
        (
            MatchParts {
                csi_drivers: &driver,
                ..none
            },
            true,
        ),
        (
            MatchParts {
                csi_drivers: &other,
                ..none
            },
            false,
        ),
        (
            MatchParts {
                claim_regex: Some("cache"),
                ..none
            },
            true,
        ),
    ] {
        let policy = with_rules(vec![rule("r", parts, Action::Backup)], VolumeDefault::None);
        let found = choose(
            &policy,
            &volume("v", "persistentVolumeClaim", Some("cache-0")),
            Some(view),
        );
        assert_eq!(found.is_backup(), expected, "{parts:?}");
        // A volume without a claim meets no condition on claims.
        let without = choose(&policy, &volume("v", "emptyDir", None), None);
        assert_eq!(
            without.is_backup(),
            parts.storage_classes.is_empty()
                && parts.access_modes.is_empty()
                && parts.min_capacity.is_none()
                && parts.max_capacity.is_none()
                && parts.csi_drivers.is_empty()
                && parts.claim_regex.is_none(),
            "{parts:?}"
        );
    }
}

#[test]
fn bad_rules_name_their_field() {
    let bad = |parts| {
        Match::new("spec.volumes.rules[0].match", parts, Selector::default())
            .unwrap_err()
            .field
    };
    let (types, modes) = (strings(&["secret"]), strings(&["RWX"]));
    let none = MatchParts::default();
    assert_eq!(
        bad(MatchParts {
            types: &types,
            ..none
        }),
        "spec.volumes.rules[0].match.types[0]"
    );
    assert_eq!(
        bad(MatchParts {
            access_modes: &modes,
            ..none
        }),
        "spec.volumes.rules[0].match.accessModes[0]"
    );
    let inverted = MatchParts {
        min_capacity: Some("2Gi"),
        max_capacity: Some("1Gi"),
        ..none
    };
    assert_eq!(bad(inverted), "spec.volumes.rules[0].match.capacity.min");
    assert!(VolumeRule::new("r", " ", Match::default(), Action::Skip).is_err());
    let twice = vec![
        rule("a", none, Action::Skip),
        rule("a", none, Action::Backup),
    ];
    assert_eq!(
        Volumes::new("spec.volumes", twice, VolumeDefault::All)
            .unwrap_err()
            .field,
        "spec.volumes.rules[1].name"
    );
}

#[test]
fn what_can_never_be_backed_up() {
    let bound = claim();
    let view = |claim| {
        Some(ClaimView {
            claim,
            volume: None,
        })
    };
    for kind in [
        "hostPath",
        "secret",
        "configMap",
        "projected",
        "downwardAPI",
        "image",
    ] {
        assert_eq!(
            eligible(&volume("v", kind, None), None),
            Err(Ineligible::VolumeType),
            "{kind}"
        );
    }
    assert_eq!(
        eligible(&volume("default-token-x", "emptyDir", None), None),
        Err(Ineligible::VolumeType)
    );
    assert_eq!(eligible(&volume("v", "emptyDir", None), None), Ok(()));
    let data = volume("v", "persistentVolumeClaim", Some("cache-0"));
    assert_eq!(eligible(&data, view(&bound)), Ok(()));
    assert_eq!(eligible(&data, None), Err(Ineligible::ClaimMissing));
    let block = ClaimFacts {
        block: true,
        ..claim()
    };
    assert_eq!(eligible(&data, view(&block)), Err(Ineligible::BlockDevice));
    assert_eq!(
        eligible(
            &PodVolume {
                device: true,
                ..data.clone()
            },
            view(&bound)
        ),
        Err(Ineligible::BlockDevice)
    );
    assert_eq!(
        eligible(
            &PodVolume {
                mounted: false,
                ..data.clone()
            },
            view(&bound)
        ),
        Err(Ineligible::NotMounted)
    );
    let pv = PersistentVolumeFacts {
        host_path: true,
        csi_driver: None,
    };
    let on_host = Some(ClaimView {
        claim: &bound,
        volume: Some(&pv),
    });
    assert_eq!(eligible(&data, on_host), Err(Ineligible::HostPathVolume));
}

#[test]
fn exemptions_by_claim_pod_namespace_and_annotation() {
    let asked = Some(Exempt::Asked {
        reason: Some("scratch".into()),
    });
    let data = volume("data", "persistentVolumeClaim", Some("cache-0"));
    let (plain, exempt) = (
        claim(),
        ClaimFacts {
            exempt: asked.clone(),
            ..claim()
        },
    );
    let of = |pod: &PodFacts, namespace: &NamespaceFacts, claim| {
        exemption(
            namespace,
            pod,
            &data,
            Some(ClaimView {
                claim,
                volume: None,
            }),
        )
    };
    let team = namespace("team-a", &[]);
    assert_eq!(of(&pod(None), &team, &plain), None);
    assert!(matches!(
        of(&pod(None), &team, &exempt),
        Some(Exemption::Claim(_))
    ));
    let exempt_pod = PodFacts {
        exempt: asked.clone(),
        ..pod(None)
    };
    assert!(matches!(
        of(&exempt_pod, &team, &plain),
        Some(Exemption::Pod(_))
    ));
    let exempt_team = NamespaceFacts {
        exempt: Some(Exempt::ExcludeFromBackup),
        ..namespace("team-a", &[])
    };
    assert!(matches!(
        of(&pod(None), &exempt_team, &plain),
        Some(Exemption::Namespace(_))
    ));
    let mut users = pod(None);
    users.backup_volumes_excludes.value = Some("data,x".into());
    users.backup_volumes_excludes.others = true;
    assert_eq!(of(&users, &team, &plain), Some(Exemption::PodExcludes));
    users.backup_volumes_excludes.others = false;
    users.backup_volumes_excludes.ours = true;
    assert_eq!(
        of(&users, &team, &plain),
        None,
        "our own list exempts nothing"
    );
}

#[test]
fn exemptions_are_read_from_metadata() {
    let find = |label: &[(&str, &'static str)], annotation: &[(&str, &'static str)]| {
        let get = |pairs: &[(&str, &'static str)], key: &str| {
            pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
        };
        Exempt::find(|key| get(label, key), |key| get(annotation, key))
    };
    let reason = [
        ("jackline.dev/exempt", "true"),
        ("jackline.dev/exempt-reason", "scratch"),
    ];
    assert_eq!(
        find(&[], &reason),
        Some(Exempt::Asked {
            reason: Some("scratch".into())
        })
    );
    assert_eq!(
        find(&reason[..1], &[]),
        Some(Exempt::Asked { reason: None })
    );
    assert_eq!(
        find(&[("velero.io/exclude-from-backup", "true")], &[]),
        Some(Exempt::ExcludeFromBackup)
    );
    assert_eq!(
        find(&[], &[("velero.io/exclude-from-backup", "true")]),
        None
    );
    assert_eq!(find(&[("jackline.dev/exempt", "false")], &[]), None);
}
