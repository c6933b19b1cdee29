//! Cron expressions with the exact meaning they have for Velero: the standard parser of `github.com/robfig/cron/v3` (five fields,
//! descriptors, `@every`, `TZ=` and `CRON_TZ=`), its day-of-month/day-of-week star rule and its behaviour when clocks change.
//! `tests/cron-vectors` holds what the Go module answers; the tests compare with it.

mod duration;
mod next;
mod parse;

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

pub use duration::parse as go_duration;
pub use parse::CronError;

/// A parsed expression.
#[derive(Debug, Clone)]
pub struct Cron {
    source: String,
    zone: Option<TimeZone>,
    plan: Plan,
}

#[derive(Debug, Clone)]
enum Plan {
    /// `@every`: whole seconds.
    Every(Duration),
    Fields(Fields),
}

/// One bit per allowed value; [`STAR`] marks a field that was a star.
#[derive(Debug, Clone, Copy)]
struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
}

const STAR: u64 = 1 << 63;

impl Fields {
    fn allows_day(&self, day: i8, weekday: i8) -> bool {
        let by_day = self.day & (1 << day) != 0;
        let by_weekday = self.weekday & (1 << weekday) != 0;
        if (self.day | self.weekday) & STAR != 0 {
            by_day && by_weekday
        } else {
            by_day || by_weekday
        }
    }

    fn allows_month(&self, month: i8) -> bool {
        self.month & (1 << month) != 0
    }
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Cron {
    /// # Errors
    /// Everything that robfig's `ParseStandard` refuses or panics at.
    pub fn parse(source: &str) -> Result<Self, CronError> {
        parse::parse(source)
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The zone that the expression itself names.
    pub fn zone(&self) -> Option<&TimeZone> {
        self.zone.as_ref()
    }

    /// Whether this is `@every`: runs hang on the one before them, not on the clock.
    pub fn is_every(&self) -> bool {
        matches!(self.plan, Plan::Every(_))
    }

    /// The first run after `after`; `zone` counts when the expression names none. `None` when nothing matches within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.plan {
            Plan::Every(delay) => {
                let seconds = after.as_nanosecond().div_euclid(1_000_000_000);
                Timestamp::from_second(i64::try_from(seconds).ok()?)
                    .ok()?
                    .checked_add(*delay)
                    .ok()
            }
            Plan::Fields(fields) => next::next(fields, after, self.zone.as_ref().unwrap_or(zone)),
        }
    }

    /// The longest time between two runs that follow each other, clock changes left aside. `None` for a schedule that never runs
    /// or runs once in nine years.
    pub fn longest_interval(&self) -> Option<Duration> {
        match &self.plan {
            Plan::Every(delay) => Some(*delay),
            Plan::Fields(fields) => next::longest_interval(fields),
        }
    }
}

/// An IANA zone by its exact name; `""` and `UTC` are UTC, `Local` is no zone.
pub fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        // jiff ignores case; Go does not, and a name that only one of two programs accepts is no name.
        _ => TimeZoneDatabase::bundled()
            .get(name)
            .ok()
            .filter(|zone| zone.iana_name() == Some(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(source: &str) -> Option<u64> {
        Cron::parse(source)
            .unwrap()
            .longest_interval()
            .map(|d| d.as_secs())
    }

    #[test]
    fn the_longest_interval_is_that_between_runs_that_follow() {
        const HOUR: u64 = 3600;
        for (source, expected) in [
            ("@every 90s", Some(90)),
            ("* * * * *", Some(60)),
            ("@hourly", Some(HOUR)),
            ("0 2 * * *", Some(24 * HOUR)),
            ("0 9-17 * * *", Some(16 * HOUR)),
            ("0 9-17 * * 1-5", Some(64 * HOUR)),
            ("@weekly", Some(7 * 24 * HOUR)),
            ("@monthly", Some(31 * 24 * HOUR)),
            ("0 0 29 2 *", Some((4 * 365 + 1) * 24 * HOUR)),
            ("0 0 31 2 *", None),
            (", * * * *", None),
        ] {
            assert_eq!(longest(source), expected, "{source}");
        }
    }

    #[test]
    fn zones_have_exact_names() {
        assert!(zone("Europe/Berlin").is_some());
        for bad in [
            "europe/berlin",
            "Local",
            "Mars/Olympus",
            "../etc/passwd",
            "+02:00",
        ] {
            assert!(zone(bad).is_none(), "{bad}");
        }
    }
}
