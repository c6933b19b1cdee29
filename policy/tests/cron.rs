//! Our cron against what the Go module answered (`tests/cron-vectors`).

use jackline_policy::cron::Cron;
use jiff::{Timestamp, tz::TimeZone};

#[derive(serde::Deserialize)]
struct Vector {
    spec: String,
    ok: bool,
    #[serde(default)]
    from: String,
    /// Empty text: never again.
    #[serde(default)]
    next: Vec<String>,
}

#[test]
fn every_vector_of_robfigs_parser_holds() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("cron-vectors/vectors.json")).unwrap();
    assert!(vectors.len() > 3000);
    let mut wrong = Vec::new();
    for vector in &vectors {
        let parsed = Cron::parse(&vector.spec);
        if parsed.is_ok() != vector.ok {
            wrong.push(format!(
                "{:?}: accepted {}, Go {}",
                vector.spec,
                parsed.is_ok(),
                vector.ok
            ));
            continue;
        }
        let Ok(cron) = parsed else { continue };
        let mut at: Timestamp = vector.from.parse().unwrap();
        for expected in &vector.next {
            let next = cron.next(at, &TimeZone::UTC);
            let expected: Option<Timestamp> = expected.parse().ok();
            if next != expected {
                wrong.push(format!(
                    "{:?} after {at}: {next:?}, Go {expected:?}",
                    vector.spec
                ));
                break;
            }
            let Some(next) = next else { break };
            at = next;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_zone_that_leaves_out_a_day_is_passed() {
    // Samoa had no 30 December 2011.
    let cron = Cron::parse("CRON_TZ=Pacific/Apia 0 0 1 * *").unwrap();
    let next = cron.next("2011-12-28T00:00:00Z".parse().unwrap(), &TimeZone::UTC);
    assert_eq!(next, Some("2011-12-31T10:00:00Z".parse().unwrap()));
}

proptest::proptest! {
    // Whatever is accepted, the search ends, and ends later than it began.
    #[test]
    fn the_search_always_ends(spec in "(TZ=Pacific/Apia )?([0-9*]{1,2}(/[0-9])?,?){1,2}( [0-9*]{1,2}(/[0-9])?){4}", second in 0i64..4_000_000_000) {
        if let Ok(cron) = Cron::parse(&spec) {
            let from = Timestamp::from_second(second).unwrap();
            if let Some(next) = cron.next(from, &TimeZone::UTC) {
                proptest::prop_assert!(next > from);
            }
        }
    }
}
