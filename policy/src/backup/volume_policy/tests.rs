use serde_json::json;

use super::*;

/// JSON is YAML enough for a test.
fn yaml(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn parse(policies: Value) -> Result<VolumePolicies, String> {
    let source = json!({"version": "v1", "volumePolicies": policies});
    VolumePolicies::parse(&source.to_string(), &yaml)
}

fn claimed(spec: Value) -> Volume {
    Volume::of(&json!({"spec": spec}))
}

fn inline(volume: Value) -> Volume {
    Volume {
        source: Source::of(&volume),
        ..Volume::default()
    }
}

#[test]
fn all_conditions_of_a_policy_have_to_hold() {
    let disk = claimed(json!({
        "capacity": {"storage": "10Gi"}, "storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "ebs", "volumeHandle": "x", "volumeAttributes": {"tier": "gold", "zone": "a"}},
    }));
    let share = claimed(json!({
        "capacity": {"storage": "1Ti"}, "nfs": {"server": "filer", "path": "/export"},
    }));
    let scratch = inline(json!({"name": "scratch", "emptyDir": {}}));
    let secret = inline(json!({"name": "key", "csi": {"driver": "vault"}}));
    let unbound = Volume::default();
    let all = [&disk, &share, &scratch, &secret, &unbound];
    // Conditions, and whether they hold for each of them.
    let table = [
        (json!(null), [true, true, true, true, true]),
        (json!({}), [true, true, true, true, true]),
        (
            json!({"capacity": "10Gi,10Gi"}),
            [true, false, false, false, false],
        ),
        (
            json!({"capacity": " 10Gi , 2Ti "}),
            [true, true, false, false, false],
        ),
        (
            json!({"capacity": "11Gi,"}),
            [false, true, false, false, false],
        ),
        // What has no capacity is small.
        (
            json!({"capacity": ",10Gi"}),
            [true, false, true, true, true],
        ),
        (
            json!({"capacity": "0,10Gi"}),
            [true, false, true, true, true],
        ),
        (json!({"capacity": ","}), [true, true, true, true, true]),
        (
            json!({"storageClass": ["slow", "fast"]}),
            [true, false, false, false, false],
        ),
        (json!({"storageClass": [""]}), [false; 5]),
        (json!({"storageClass": []}), [true; 5]),
        (json!({"nfs": null}), [true; 5]),
        (json!({"nfs": {}}), [false, true, false, false, false]),
        (
            json!({"nfs": {"server": "filer"}}),
            [false, true, false, false, false],
        ),
        (
            json!({"nfs": {"path": "/export"}}),
            [false, true, false, false, false],
        ),
        (
            json!({"nfs": {"server": "filer", "path": "/other"}}),
            [false; 5],
        ),
        (json!({"nfs": {"server": "other"}}), [false; 5]),
        (json!({"csi": {}}), [true, false, false, true, false]),
        (
            json!({"csi": {"driver": "ebs"}}),
            [true, false, false, false, false],
        ),
        (
            json!({"csi": {"driver": "ebs", "volumeAttributes": {"tier": "gold"}}}),
            [true, false, false, false, false],
        ),
        (
            json!({"csi": {"driver": "ebs", "volumeAttributes": {"tier": "gold", "zone": "b"}}}),
            [false; 5],
        ),
        (
            json!({"csi": {"driver": "vault", "volumeAttributes": {"tier": "gold"}}}),
            [false; 5],
        ),
        (
            json!({"volumeTypes": ["emptyDir", "nfs"]}),
            [false, true, true, false, false],
        ),
        (
            json!({"volumeTypes": ["csi"], "storageClass": ["fast"], "capacity": "1Gi,"}),
            [true, false, false, false, false],
        ),
        (
            json!({"volumeTypes": ["csi"], "storageClass": ["slow"]}),
            [false; 5],
        ),
        (json!({"pvcLabels": {"tier": "cold"}}), [false; 5]),
        (json!({"pvcLabels": {}}), [true; 5]),
    ];
    for (conditions, expected) in table {
        let policies = [json!({"conditions": conditions, "action": {"type": "skip"}})];
        let policies = parse(json!(policies)).unwrap();
        assert!(policies.doubts.is_empty());
        let found = all.map(|volume| policies.action(volume, &Labels::default()).is_some());
        assert_eq!(found, expected, "{conditions}");
    }
}

#[test]
fn labels_of_the_claim_are_a_condition_as_well() {
    let policies = parse(json!([
        {"conditions": {"pvcLabels": {"tier": 1, "cold": true}}, "action": {"type": "skip"}},
    ]));
    let policies = policies.unwrap();
    let action = |labels: &[(&str, &str)]| {
        let labels = labels.iter().copied().collect();
        policies.action(&Volume::default(), &labels)
    };
    assert_eq!(
        action(&[("tier", "1"), ("cold", "true"), ("app", "db")]),
        Some((0, Action::Skip))
    );
    assert_eq!(action(&[("tier", "1")]), None);
}

#[test]
fn the_first_match_decides() {
    let policies = parse(json!([
        {"conditions": {"volumeTypes": ["emptyDir"]}, "action": {"type": "skip", "parameters": {"a": 1}}},
        {"conditions": {"storageClass": ["fast"]}, "action": {"type": "snapshot"}},
        {"action": {"type": "fs-backup"}},
        {"action": {"type": "skip"}},
    ]));
    let policies = policies.unwrap();
    let action = |volume: &Volume| policies.action(volume, &Labels::default());
    assert_eq!(
        action(&inline(json!({"emptyDir": {}}))),
        Some((0, Action::Skip))
    );
    assert_eq!(
        action(&claimed(
            json!({"storageClassName": "fast", "local": {"path": "/x"}})
        )),
        Some((1, Action::Snapshot))
    );
    assert_eq!(action(&Volume::default()), Some((2, Action::FsBackup)));
    let none = parse(Value::Null).unwrap();
    assert!(
        none.is_empty()
            && none
                .action(&Volume::default(), &Labels::default())
                .is_none()
    );
}

#[test]
fn what_is_wrong_is_told_with_its_field() {
    let policy =
        |conditions: Value| json!([{"conditions": conditions, "action": {"type": "skip"}}]);
    let table = [
        (json!({}), "volumePolicies: found {}; allowed: a list"),
        (
            json!([{"action": {"type": "skip"}}, {"actions": {}}]),
            r#"volumePolicies[1]: found "actions"; allowed: conditions, action"#,
        ),
        (
            json!([{"conditions": {}}]),
            r#"volumePolicies[0].action.type: found ""; allowed: skip, fs-backup, snapshot"#,
        ),
        (
            json!([{"action": {"type": "Skip"}}]),
            r#"volumePolicies[0].action.type: found "Skip"; allowed: skip, fs-backup, snapshot"#,
        ),
        (
            json!([{"action": "skip"}]),
            r#"volumePolicies[0].action: found "skip"; allowed: an object"#,
        ),
        (
            policy(json!({"storageclass": []})),
            r#"volumePolicies[0].conditions: found "storageclass"; allowed: capacity, storageClass, nfs, csi, volumeTypes, pvcLabels"#,
        ),
        (
            policy(json!({"storageClass": "fast"})),
            r#"volumePolicies[0].conditions.storageClass: found "fast"; allowed: a list"#,
        ),
        (
            policy(json!({"volumeTypes": [{}]})),
            "volumePolicies[0].conditions.volumeTypes[0]: found {}; allowed: text",
        ),
        (
            policy(json!({"nfs": {"host": "x"}})),
            r#"volumePolicies[0].conditions.nfs: found "host"; allowed: server, path"#,
        ),
        (
            policy(json!({"csi": {"volumeAttributes": {"a": "b"}}})),
            r#"volumePolicies[0].conditions.csi.driver: found ""; allowed: the name of a driver, because there are volumeAttributes"#,
        ),
        (
            policy(json!({"pvcLabels": ["a"]})),
            r#"volumePolicies[0].conditions.pvcLabels: found ["a"]; allowed: an object with text"#,
        ),
        (
            policy(json!({"pvcLabels": {"a": ["b"]}})),
            r#"volumePolicies[0].conditions.pvcLabels.a: found ["b"]; allowed: text"#,
        ),
        (
            policy(json!({"capacity": "20Gi,10Gi"})),
            r#"volumePolicies[0].conditions.capacity: found "20Gi,10Gi"; allowed: a first quantity that is not more than the second"#,
        ),
    ];
    for (policies, expected) in table {
        assert_eq!(parse(policies).unwrap_err(), expected);
    }
    for bad in ["10Gi", "1,2,3", "ten,", "-1,"] {
        let why = parse(policy(json!({"capacity": bad}))).unwrap_err();
        assert!(why.contains(".capacity: found ") && why.contains("two quantities"));
    }
    let whole = [
        ("[]", "the whole: found []; allowed: an object"),
        ("null", r#"version: found ""; allowed: v1"#),
        (
            r#"{"version": "v2"}"#,
            r#"version: found "v2"; allowed: v1"#,
        ),
        (
            r#"{"version": "v1", "volumePolicy": []}"#,
            r#"the whole: found "volumePolicy"; allowed: version, volumePolicies"#,
        ),
    ];
    for (text, expected) in whole {
        assert_eq!(
            VolumePolicies::parse(text, &yaml).unwrap_err(),
            expected,
            "{text}"
        );
    }
    assert!(VolumePolicies::parse("{", &yaml).is_err());
}

#[test]
fn a_type_that_no_volume_has_is_doubted() {
    let policies = parse(json!([
        {"conditions": {"volumeTypes": ["emptydir", "nfs"]}, "action": {"type": "skip"}},
    ]));
    let doubts = policies.unwrap().doubts;
    assert!(
        doubts.len() == 1
            && doubts[0]
                .starts_with(r#"volumePolicies[0].conditions.volumeTypes: found "emptydir""#),
        "{doubts:?}"
    );
}
