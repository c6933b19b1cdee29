//! When a policy's backups run.

use std::time::Duration;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;

use crate::Invalid;
use crate::cron::Cron;
use crate::quantity;

/// `spec.schedule`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleSpec {
    pub cron: Cron,
    /// Zone of the cron expression and of the blackout windows.
    pub zone: TimeZone,
    /// Each run starts up to this much later than the cron says, always by the same amount for one policy.
    pub jitter: Duration,
    /// A missed run is caught up once if it is not older than this; `None` = however old it is.
    pub starting_deadline: Option<Duration>,
    pub blackouts: Vec<Blackout>,
    /// The longest time between two runs that follow each other (of a year's worth, or of the next few for a rare schedule).
    pub interval: Duration,
}

/// Shorter intervals are slips of the pen (`@every 1` for `@every 1h`), which Go's parser turns into one second.
const SHORTEST: Duration = Duration::from_secs(10);

/// Input of [`ScheduleSpec::new`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ScheduleParts<'a> {
    pub cron: &'a str,
    /// IANA name; UTC when absent.
    pub time_zone: Option<&'a str>,
    pub jitter: Option<&'a str>,
    pub starting_deadline: Option<&'a str>,
}

impl ScheduleSpec {
    /// # Errors
    /// A cron expression that the parser refuses or that never fires, an unknown zone, a zone given twice (in the expression and in
    /// `timeZone`), a duration that is none, a jitter as long as the interval.
    pub fn new(
        field: &str,
        parts: ScheduleParts<'_>,
        blackouts: Vec<Blackout>,
    ) -> Result<Self, Invalid> {
        let at = format!("{field}.cron");
        let cron = Cron::parse(parts.cron)
            .map_err(|error| Invalid::new(&at, parts.cron, error.allowed()))?;
        if cron.zone().is_some() && parts.time_zone.is_some() {
            return Err(Invalid::new(&at, parts.cron, "no TZ= beside timeZone"));
        }
        let zone = match (cron.zone(), parts.time_zone) {
            (Some(zone), _) => zone.clone(),
            (None, Some(name)) => zone(&format!("{field}.timeZone"), name)?,
            (None, None) => TimeZone::UTC,
        };
        let interval = cron
            .longest_interval()
            .ok_or_else(|| Invalid::new(&at, parts.cron, "a schedule that fires"))?;
        if interval < SHORTEST {
            return Err(Invalid::new(&at, parts.cron, "an interval of at least 10s"));
        }
        let jitter_at = format!("{field}.jitter");
        let jitter = parts.jitter.map_or(Ok(Duration::ZERO), |text| {
            quantity::duration(&jitter_at, text)
        })?;
        if jitter >= interval {
            return Err(Invalid::new(
                &jitter_at,
                parts.jitter.unwrap_or_default(),
                format!(
                    "less than the interval of the schedule ({})",
                    humantime::format_duration(interval)
                ),
            ));
        }
        let starting_deadline = parts
            .starting_deadline
            .map(|text| quantity::positive_duration(&format!("{field}.startingDeadline"), text))
            .transpose()?;
        Ok(Self {
            cron,
            zone,
            jitter,
            starting_deadline,
            blackouts,
            interval,
        })
    }
}

/// An IANA zone by name. `Local` is refused: it would mean another zone on each machine.
fn zone(field: &str, name: &str) -> Result<TimeZone, Invalid> {
    crate::cron::zone(name)
        .ok_or_else(|| Invalid::new(field, name, "an IANA time zone such as Europe/Berlin"))
}

/// A weekly window in which no backup starts. A window whose end is not after its start goes on past midnight; `days` are those on
/// which it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    pub(crate) days: Vec<Weekday>,
    pub(crate) start: Time,
    pub(crate) end: Time,
}

impl Blackout {
    /// `days` are `Mon` … `Sun`, empty = every day; `start` and `end` are `HH:MM`, `end` may be `24:00`.
    pub fn new(field: &str, days: &[String], start: &str, end: &str) -> Result<Self, Invalid> {
        let days = days
            .iter()
            .enumerate()
            .map(|(at, day)| {
                weekday(day).ok_or_else(|| {
                    Invalid::new(
                        format!("{field}.days[{at}]"),
                        day,
                        "Mon, Tue, Wed, Thu, Fri, Sat, Sun",
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        let time = |name: &str, text: &str| {
            clock(text).ok_or_else(|| {
                Invalid::new(format!("{field}.{name}"), text, "a time of day, HH:MM")
            })
        };
        let (from, to) = (
            time("start", start)?,
            time("end", if end == "24:00" { "00:00" } else { end })?,
        );
        if from == to {
            return Err(Invalid::new(
                format!("{field}.end"),
                end,
                "a time other than start",
            ));
        }
        Ok(Self {
            days,
            start: from,
            end: to,
        })
    }
}

fn weekday(name: &str) -> Option<Weekday> {
    Some(match name {
        "Mon" => Weekday::Monday,
        "Tue" => Weekday::Tuesday,
        "Wed" => Weekday::Wednesday,
        "Thu" => Weekday::Thursday,
        "Fri" => Weekday::Friday,
        "Sat" => Weekday::Saturday,
        "Sun" => Weekday::Sunday,
        _ => return None,
    })
}

fn clock(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let two = |part: &str, len: &[usize]| {
        (len.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()))
            .then(|| part.parse::<i8>().ok())
            .flatten()
    };
    Time::new(two(hour, &[1, 2])?, two(minute, &[2])?, 0, 0).ok()
}
