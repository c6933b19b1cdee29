use proptest::prelude::*;

use super::*;
use crate::spec::RetentionParts;

fn keep(parts: RetentionParts<'_>) -> Retention {
    Retention::new("spec.retention", parts).unwrap()
}

fn last(count: i64) -> RetentionParts<'static> {
    RetentionParts {
        keep_last: Some(count),
        ..RetentionParts::default()
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Names sort like times.
fn backup(time: &str, points: &[&str]) -> BackupFacts {
    BackupFacts {
        name: format!("b-{time}"),
        time: at(time),
        outcome: Outcome::Usable,
        ours: true,
        in_use: false,
        complete: true,
        points: points.iter().map(|volume| (*volume).to_owned()).collect(),
    }
}

fn days(count: i8, points: &[&str]) -> Vec<BackupFacts> {
    (1..=count)
        .map(|day| backup(&format!("2026-11-{day:02}T02:00:00Z"), points))
        .collect()
}

fn run(retention: &Retention, backups: &[BackupFacts], existence: Existence) -> Plan {
    plan(
        retention,
        &TimeZone::UTC,
        backups,
        |_| existence,
        None,
        at("2026-12-01T00:00:00Z"),
    )
}

fn deleted_days(plan: &Plan) -> Vec<i8> {
    plan.delete
        .iter()
        .map(|name| name[10..12].parse().unwrap())
        .collect()
}

#[test]
fn the_rules_keep_what_restic_keeps() {
    let cases: &[(RetentionParts<'_>, &[i8])] = &[
        (last(2), &[9, 10]),
        (
            RetentionParts {
                keep_daily: Some(3),
                ..last(0)
            },
            &[8, 9, 10],
        ),
        // 2026-11-01 is a Sunday, the last day of its ISO week.
        (
            RetentionParts {
                keep_weekly: Some(3),
                ..last(0)
            },
            &[1, 8, 10],
        ),
        (
            RetentionParts {
                keep_monthly: Some(5),
                ..last(0)
            },
            &[10],
        ),
        (
            RetentionParts {
                keep_yearly: Some(5),
                ..last(1)
            },
            &[10],
        ),
        (
            RetentionParts {
                keep_within: Some("48h"),
                ..last(0)
            },
            &[8, 9, 10],
        ),
        (
            RetentionParts {
                minimum_good: Some(4),
                ..last(1)
            },
            &[7, 8, 9, 10],
        ),
    ];
    for (parts, kept) in cases {
        let plan = run(&keep(*parts), &days(10, &["v"]), Existence::Exists);
        let expected: Vec<i8> = (1..=10).filter(|day| !kept.contains(day)).collect();
        assert_eq!(deleted_days(&plan), expected, "{parts:?}");
    }
}

#[test]
fn an_hour_keeps_its_newest_point() {
    let backups = [
        "2026-11-01T02:00:00Z",
        "2026-11-01T02:30:00Z",
        "2026-11-01T03:10:00Z",
    ]
    .map(|time| backup(time, &["v"]));
    let plan = run(
        &keep(RetentionParts {
            keep_hourly: Some(2),
            ..last(0)
        }),
        &backups,
        Existence::Exists,
    );
    assert_eq!(plan.delete, ["b-2026-11-01T02:00:00Z"]);
}

#[test]
fn days_begin_where_the_policy_lives() {
    let backups = ["2026-11-01T22:00:00Z", "2026-11-01T23:30:00Z"].map(|time| backup(time, &["v"]));
    let retention = keep(RetentionParts {
        keep_daily: Some(2),
        ..last(0)
    });
    let berlin = crate::cron::zone("Europe/Berlin").unwrap();
    let in_zone = |zone| {
        plan(
            &retention,
            &zone,
            &backups,
            |_| Existence::Exists,
            None,
            at("2026-12-01T00:00:00Z"),
        )
        .delete
        .len()
    };
    assert_eq!((in_zone(TimeZone::UTC), in_zone(berlin)), (1, 0));
}

#[test]
fn ten_empty_backups_after_a_disaster_delete_nothing_that_is_needed() {
    let mut backups = days(5, &["logs", "data"]);
    backups.extend((10..=19).map(|day| backup(&format!("2026-11-{day}T02:00:00Z"), &[])));
    let plan = run(
        &keep(RetentionParts {
            minimum_good: Some(1),
            ..last(2)
        }),
        &backups,
        Existence::Gone(None),
    );
    assert_eq!(
        deleted_days(&plan),
        [1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17][..]
            .to_vec()
            .into_iter()
            .filter(|_| plan.held.is_none())
            .collect::<Vec<_>>()
    );
    assert_eq!(plan.newly_gone, ["data", "logs"]);
    let all = plan.held.unwrap().backups;
    assert!(!all.contains(&"b-2026-11-04T02:00:00Z".to_owned()));
    assert!(!all.contains(&"b-2026-11-05T02:00:00Z".to_owned()));
}

#[test]
fn a_backup_stays_for_any_one_of_its_volumes() {
    let mut backups = days(4, &["a"]);
    backups[0].points.insert("b".to_owned());
    let plan = run(&keep(last(1)), &backups, Existence::Exists);
    assert_eq!(deleted_days(&plan), [2, 3]);
}

#[test]
fn points_of_a_vanished_volume_go_after_their_time() {
    let retention = keep(RetentionParts {
        vanished_volumes: Some("10days"),
        ..last(2)
    });
    let backups = days(3, &["v"]);
    let early = run(
        &retention,
        &backups,
        Existence::Gone(Some(at("2026-11-25T00:00:00Z"))),
    );
    assert_eq!(
        (deleted_days(&early), early.next),
        (vec![1], Some(at("2026-12-05T00:00:00Z")))
    );
    let late = run(
        &retention,
        &backups,
        Existence::Gone(Some(at("2026-11-21T00:00:00Z"))),
    );
    assert_eq!(deleted_days(&late), [1, 2, 3]);
    let for_ever = run(
        &keep(last(2)),
        &backups,
        Existence::Gone(Some(at("2020-01-01T00:00:00Z"))),
    );
    assert_eq!(deleted_days(&for_ever), [1]);
}

#[test]
fn what_is_not_ours_not_finished_not_known_or_in_use_stays() {
    let mut backups = days(6, &[]);
    backups[0].ours = false;
    backups[1].outcome = Outcome::Unfinished;
    backups[2].complete = false;
    backups[3].in_use = true;
    assert_eq!(
        deleted_days(&run(&keep(last(1)), &backups, Existence::Exists)),
        [5]
    );
}

#[test]
fn failed_backups_displace_nothing() {
    let mut backups = days(6, &[]);
    backups[3..]
        .iter_mut()
        .for_each(|backup| backup.outcome = Outcome::Failed);
    assert_eq!(
        deleted_days(&run(&keep(last(2)), &backups, Existence::Exists)),
        [1, 4]
    );
}

#[test]
fn a_mass_deletion_waits_for_a_person() {
    let backups = days(13, &["v"]);
    let retention = keep(last(2));
    let with = |confirmed: Option<&str>| {
        plan(
            &retention,
            &TimeZone::UTC,
            &backups,
            |_| Existence::Exists,
            confirmed.map(at),
            at("2026-12-01T12:00:00Z"),
        )
    };
    let held = with(None).held.unwrap();
    assert_eq!((held.backups.len(), held.limit), (11, 10));
    assert!(
        with(Some("2026-11-30T11:00:00Z")).held.is_some(),
        "an old confirmation"
    );
    assert!(
        with(Some("2026-12-02T00:00:00Z")).held.is_some(),
        "one from the future"
    );
    assert_eq!(with(Some("2026-12-01T11:00:00Z")).delete.len(), 11);
    let twelve = run(&retention, &days(12, &["v"]), Existence::Exists);
    assert_eq!((twelve.delete.len(), twelve.held), (10, None));
}

#[test]
fn deletions_on_their_way_count() {
    let mut backups = days(11, &["v"]);
    backups[0].outcome = Outcome::Deleting;
    assert!(
        run(&keep(last(1)), &backups, Existence::Exists)
            .held
            .is_none()
    );
    let mut backups = days(12, &["v"]);
    backups[0].outcome = Outcome::Deleting;
    assert!(
        run(&keep(last(1)), &backups, Existence::Exists)
            .held
            .is_some()
    );
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => Just(Outcome::Usable),
        1 => Just(Outcome::Failed),
        1 => Just(Outcome::Unfinished),
        1 => Just(Outcome::Deleting),
    ]
}

fn any_backups() -> impl Strategy<Value = Vec<BackupFacts>> {
    let one = (
        0i64..90 * 24,
        any_outcome(),
        prop::bool::weighted(0.9),
        prop::collection::btree_set("[a-d]", 0..4),
    );
    prop::collection::vec(one, 0..60).prop_map(|raw| {
        raw.into_iter()
            .enumerate()
            .map(|(at, (hour, outcome, ours, points))| BackupFacts {
                name: format!("b{at:02}"),
                time: Timestamp::from_second(1_790_000_000 + hour * 3600).unwrap(),
                outcome,
                ours,
                in_use: false,
                complete: true,
                points,
            })
            .collect()
    })
}

fn any_retention() -> impl Strategy<Value = Retention> {
    (
        1i64..4,
        prop::array::uniform5(0i64..3),
        1i64..4,
        prop::option::of(0u32..30),
    )
        .prop_map(
            |(last, [hourly, daily, weekly, monthly, yearly], floor, vanished)| {
                let vanished = vanished.map(|days| format!("{days}days"));
                keep(RetentionParts {
                    keep_last: Some(last),
                    keep_hourly: Some(hourly),
                    keep_daily: Some(daily),
                    keep_weekly: Some(weekly),
                    keep_monthly: Some(monthly),
                    keep_yearly: Some(yearly),
                    keep_within: None,
                    minimum_good: Some(floor),
                    vanished_volumes: vanished.as_deref(),
                })
            },
        )
}

fn remaining_points(backups: &[BackupFacts], gone: &[String], volume: &str) -> usize {
    backups
        .iter()
        .filter(|b| b.ours && matches!(b.outcome, Outcome::Usable | Outcome::Failed))
        .filter(|b| b.points.contains(volume) && !gone.contains(&b.name))
        .count()
}

proptest! {
    // Whatever the rules, clocks and mass deletions: a volume that exists keeps its last minimumGood points.
    #[test]
    fn the_floor_holds(retention in any_retention(), backups in any_backups(), later in 0i64..4000) {
        let now = Timestamp::from_second(1_790_000_000 + later * 86_400).unwrap();
        let plan = plan(&retention, &TimeZone::UTC, &backups, |_| Existence::Exists, Some(now), now);
        for volume in ["a", "b", "c", "d"] {
            let before = remaining_points(&backups, &[], volume);
            let after = remaining_points(&backups, &plan.delete, volume);
            prop_assert!(after >= before.min(retention.minimum_good as usize));
        }
        prop_assert!(plan.held.is_none(), "confirmed");
    }

    #[test]
    fn never_what_is_foreign_or_unfinished(retention in any_retention(), backups in any_backups()) {
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let plan = plan(&retention, &TimeZone::UTC, &backups, |_| Existence::Gone(None), Some(now), now);
        for name in &plan.delete {
            let backup = backups.iter().find(|b| b.name == *name).unwrap();
            prop_assert!(backup.ours && matches!(backup.outcome, Outcome::Usable | Outcome::Failed));
        }
    }

    // Empty backups, however many, never cause the deletion of one that holds data.
    #[test]
    fn empty_backups_displace_no_data(retention in any_retention(), backups in any_backups(), empty in 1usize..30) {
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let with_data = |plan: Plan| -> BTreeSet<String> {
            let holds = |name: &String| backups.iter().any(|b| b.name == *name && !b.points.is_empty());
            plan.delete.into_iter().filter(holds).collect()
        };
        let decide = |backups: &[BackupFacts]| plan(&retention, &TimeZone::UTC, backups, |_| Existence::Exists, Some(now), now);
        let before = with_data(decide(&backups));
        let mut more = backups.clone();
        more.extend((0..empty).map(|at| BackupFacts {
            name: format!("empty{at:02}"),
            time: Timestamp::from_second(1_800_000_000 + at as i64 * 60).unwrap(),
            outcome: Outcome::Usable, ours: true, in_use: false, complete: true, points: BTreeSet::new(),
        }));
        prop_assert_eq!(before, with_data(decide(&more)));
    }

    // Carried out, a plan leaves nothing to do: the rules agree with themselves.
    #[test]
    fn a_plan_settles(retention in any_retention(), backups in any_backups()) {
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let decide = |backups: &[BackupFacts]| plan(&retention, &TimeZone::UTC, backups, |_| Existence::Exists, Some(now), now);
        let first = decide(&backups);
        let left: Vec<BackupFacts> = backups.iter().filter(|b| !first.delete.contains(&b.name)).cloned().collect();
        prop_assert_eq!(decide(&left).delete, Vec::<String>::new());
    }

    // More generous rules never delete more.
    #[test]
    fn keeping_more_deletes_less(retention in any_retention(), backups in any_backups()) {
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let decide = |retention: &Retention| -> BTreeSet<String> {
            plan(retention, &TimeZone::UTC, &backups, |_| Existence::Exists, Some(now), now).delete.into_iter().collect()
        };
        let more = Retention { last: retention.last + 1, daily: retention.daily + 1, ..retention.clone() };
        prop_assert!(decide(&more).is_subset(&decide(&retention)));
    }
}

#[test]
fn with_its_policy_everything_goes_but_the_last_points_of_what_exists() {
    let mut backups = days(6, &["a"]);
    backups[1].points = ["gone".to_owned()].into();
    backups[2].in_use = true;
    backups[3].ours = false;
    backups.push(BackupFacts {
        outcome: Outcome::Unfinished,
        ..backup("2026-11-07T02:00:00Z", &["a"])
    });
    backups.push(BackupFacts {
        outcome: Outcome::Deleting,
        ..backup("2026-11-08T02:00:00Z", &["a"])
    });
    let said = farewell(1, &backups, |volume| volume == "a");
    let names = |days: &[i8]| -> Vec<String> {
        days.iter()
            .map(|day| format!("b-2026-11-{day:02}T02:00:00Z"))
            .collect()
    };
    assert_eq!(said.delete, names(&[1, 2, 5]));
    assert_eq!(said.later, names(&[3, 7]));
    let said = farewell(0, &backups, |_| true);
    assert_eq!(said.delete, names(&[1, 2, 5, 6]));
}
