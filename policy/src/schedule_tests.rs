use super::*;
use crate::spec::ScheduleParts;

fn spec(parts: ScheduleParts<'_>, blackouts: &[(&[&str], &str, &str)]) -> ScheduleSpec {
    let blackouts = blackouts
        .iter()
        .map(|(days, start, end)| {
            let days: Vec<String> = days.iter().map(|day| (*day).to_owned()).collect();
            Blackout::new("b", &days, start, end).unwrap()
        })
        .collect();
    ScheduleSpec::new("spec.schedule", parts, blackouts).unwrap()
}

fn daily() -> ScheduleParts<'static> {
    ScheduleParts {
        cron: "0 2 * * *",
        ..ScheduleParts::default()
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn policy() -> PolicyId {
    PolicyId::cluster("everything")
}

fn decide(spec: &ScheduleSpec, base: &str, now: &str) -> Verdict {
    due(spec, &policy(), Base::After(at(base)), false, at(now))
}

#[test]
fn a_new_policy_waits_for_its_first_tick() {
    let spec = spec(daily(), &[]);
    let until = at("2026-11-24T02:00:00Z");
    assert_eq!(
        decide(&spec, "2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z"),
        Verdict::Wait { until }
    );
    let run = Verdict::Run {
        tick: until,
        missed: 0,
        then: Some(at("2026-11-25T02:00:00Z")),
    };
    assert_eq!(
        decide(&spec, "2026-11-23T10:00:00Z", "2026-11-24T02:00:00Z"),
        run
    );
}

#[test]
fn missed_ticks_are_made_good_once() {
    let spec = spec(daily(), &[]);
    let tick = at("2026-11-27T02:00:00Z");
    let then = Some(at("2026-11-28T02:00:00Z"));
    assert_eq!(
        decide(&spec, "2026-11-23T10:00:00Z", "2026-11-27T09:00:00Z"),
        Verdict::Run {
            tick,
            missed: 3,
            then
        }
    );
}

#[test]
fn a_run_later_than_the_deadline_is_left_out() {
    let spec = spec(
        ScheduleParts {
            starting_deadline: Some("1h"),
            ..daily()
        },
        &[],
    );
    let tick = at("2026-11-24T02:00:00Z");
    let then = Some(at("2026-11-25T02:00:00Z"));
    let base = "2026-11-23T10:00:00Z";
    assert_eq!(
        decide(&spec, base, "2026-11-24T03:00:00Z"),
        Verdict::Run {
            tick,
            missed: 0,
            then
        }
    );
    assert_eq!(
        decide(&spec, base, "2026-11-24T03:00:01Z"),
        Verdict::Missed {
            tick,
            missed: 0,
            then
        }
    );
}

#[test]
fn a_planned_start_names_its_tick() {
    let parts = ScheduleParts {
        jitter: Some("30m"),
        ..daily()
    };
    let spec = spec(parts, &[]);
    let jitter = jitter(&spec, &policy());
    assert!(jitter <= Duration::from_secs(1800) && !jitter.is_zero());
    let tick = at("2026-11-24T02:00:00Z");
    let start = tick + jitter;
    let then = Some(at("2026-11-25T02:00:00Z") + jitter);
    let decide = |now| due(&spec, &policy(), Base::Planned(start), false, now);
    assert_eq!(decide(tick), Verdict::Wait { until: start });
    assert_eq!(
        decide(start),
        Verdict::Run {
            tick,
            missed: 0,
            then
        }
    );
}

#[test]
fn every_hangs_on_the_run_before() {
    let spec = spec(
        ScheduleParts {
            cron: "@every 1m",
            ..daily()
        },
        &[],
    );
    let tick = at("2026-11-23T10:00:07Z");
    let decide = |now: &str| due(&spec, &policy(), Base::Planned(tick), false, at(now));
    let then = Some(at("2026-11-23T10:01:07Z"));
    assert_eq!(
        decide("2026-11-23T10:00:07.5Z"),
        Verdict::Run {
            tick,
            missed: 0,
            then
        }
    );
    let late = Verdict::Run {
        tick: at("2026-11-23T10:03:07Z"),
        missed: 3,
        then: Some(at("2026-11-23T10:04:07Z")),
    };
    assert_eq!(decide("2026-11-23T10:03:30Z"), late);
}

#[test]
fn years_of_minutes_are_passed_over_quickly() {
    let spec = spec(
        ScheduleParts {
            cron: "* * * * *",
            ..daily()
        },
        &[],
    );
    let found = decide(&spec, "2016-01-01T00:00:00Z", "2026-01-01T00:00:30Z");
    assert!(
        matches!(found, Verdict::Run { tick, .. } if tick == at("2026-01-01T00:00:00Z")),
        "{found:?}"
    );
}

#[test]
fn a_running_backup_is_not_overtaken() {
    let spec = spec(daily(), &[]);
    let base = Base::After(at("2026-11-23T10:00:00Z"));
    let tick = at("2026-11-24T02:00:00Z");
    assert_eq!(
        due(&spec, &policy(), base, true, tick),
        Verdict::Overlap { tick }
    );
    let early = at("2026-11-24T01:00:00Z");
    assert_eq!(
        due(&spec, &policy(), base, true, early),
        Verdict::Wait { until: tick }
    );
}

#[test]
fn blackouts_put_a_run_off() {
    let parts = ScheduleParts {
        cron: "0 * * * *",
        time_zone: Some("Europe/Berlin"),
        ..daily()
    };
    // Monday 23 November; Berlin is an hour ahead of UTC.
    let spec = spec(
        parts,
        &[(&["Mon"], "08:00", "18:00"), (&[], "18:00", "19:30")],
    );
    let base = "2026-11-23T06:30:00Z";
    let end = at("2026-11-23T18:30:00Z");
    assert_eq!(
        decide(&spec, base, "2026-11-23T07:00:00Z"),
        Verdict::Wait { until: end }
    );
    let run = decide(&spec, base, "2026-11-23T18:30:00Z");
    assert!(
        matches!(run, Verdict::Run { tick, .. } if tick == at("2026-11-23T18:00:00Z")),
        "{run:?}"
    );
}

#[test]
fn a_blackout_goes_on_past_midnight() {
    let spec = spec(daily(), &[(&["Sun"], "22:00", "04:00")]);
    let end = at("2026-11-23T04:00:00Z");
    assert_eq!(
        decide(&spec, "2026-11-22T23:00:00Z", "2026-11-23T02:00:00Z"),
        Verdict::Wait { until: end }
    );
    let tuesday = decide(&spec, "2026-11-23T23:00:00Z", "2026-11-24T02:00:00Z");
    assert!(matches!(tuesday, Verdict::Run { .. }), "{tuesday:?}");
}

#[test]
fn the_effective_schedule_shows_what_was_drawn() {
    let plain = spec(daily(), &[]);
    assert_eq!(effective(&plain, &policy()), "0 2 * * *");
    let zoned = spec(
        ScheduleParts {
            time_zone: Some("Europe/Berlin"),
            ..daily()
        },
        &[],
    );
    assert_eq!(effective(&zoned, &policy()), "0 2 * * * Europe/Berlin");
    let spread = spec(
        ScheduleParts {
            jitter: Some("30m"),
            ..daily()
        },
        &[],
    );
    let shown = effective(&spread, &policy());
    assert!(shown.starts_with("0 2 * * * +"), "{shown}");
    assert_eq!(shown, effective(&spread, &policy()));
}

#[test]
fn impossible_schedules_name_their_field() {
    let field = |parts| {
        ScheduleSpec::new("spec.schedule", parts, vec![])
            .unwrap_err()
            .field
    };
    assert_eq!(
        field(ScheduleParts {
            cron: "0 25 * * *",
            ..daily()
        }),
        "spec.schedule.cron"
    );
    assert_eq!(
        field(ScheduleParts {
            cron: "0 0 31 2 *",
            ..daily()
        }),
        "spec.schedule.cron"
    );
    assert_eq!(
        field(ScheduleParts {
            cron: "@every 1ms",
            ..daily()
        }),
        "spec.schedule.cron"
    );
    assert_eq!(
        field(ScheduleParts {
            time_zone: Some("Mars/Olympus"),
            ..daily()
        }),
        "spec.schedule.timeZone"
    );
    assert_eq!(
        field(ScheduleParts {
            time_zone: Some("Local"),
            ..daily()
        }),
        "spec.schedule.timeZone"
    );
    assert_eq!(
        field(ScheduleParts {
            cron: "TZ=UTC 0 2 * * *",
            time_zone: Some("UTC"),
            ..daily()
        }),
        "spec.schedule.cron"
    );
    assert_eq!(
        field(ScheduleParts {
            jitter: Some("2days"),
            ..daily()
        }),
        "spec.schedule.jitter"
    );
    assert!(Blackout::new("b", &[], "08:00", "08:00").is_err());
    assert!(Blackout::new("b", &["Monday".into()], "08:00", "09:00").is_err());
    assert!(Blackout::new("b", &[], "8:0", "09:00").is_err());
    assert!(Blackout::new("b", &[], "20:00", "24:00").is_ok());
}
