//! When a policy's next backup is due. A tick is what the cron expression says; the backup starts a policy's own jitter later, after the
//! blackout window it falls into, and is named by its tick, so that every attempt at one tick is the same Backup.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::naming;
use crate::spec::{Blackout, PolicyId, ScheduleSpec};

/// Where the search for due ticks starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The next start that was announced (status.nextScheduleTime), still by this schedule.
    Planned(Timestamp),
    /// Ticks after this time: creation, or the moment at which the schedule was changed or resumed.
    After(Timestamp),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Start the backup of this tick now. `missed` earlier ticks are made good by it. `then` is the start after it.
    Run {
        tick: Timestamp,
        missed: u32,
        then: Option<Timestamp>,
    },
    /// Nothing to do before this start.
    Wait { until: Timestamp },
    /// The due tick is older than the starting deadline; go on with this start.
    Missed {
        tick: Timestamp,
        missed: u32,
        then: Option<Timestamp>,
    },
    /// Due, but the previous run has not ended.
    Overlap { tick: Timestamp },
    /// The schedule has no further run.
    Never,
}

/// A policy's own share of the jitter: the same after every restart.
pub fn jitter(spec: &ScheduleSpec, policy: &PolicyId) -> Duration {
    let seconds = spec.jitter.as_secs();
    Duration::from_secs(naming::hash(&policy.to_string()) % (seconds + 1))
}

/// What users see in `status.effectiveSchedule`; a change of it makes earlier plans void.
pub fn effective(spec: &ScheduleSpec, policy: &PolicyId) -> String {
    let mut text = spec.cron.source().to_owned();
    if spec.cron.zone().is_none() && spec.zone != TimeZone::UTC {
        text = format!("{text} {}", spec.zone.iana_name().unwrap_or_default());
    }
    match jitter(spec, policy) {
        Duration::ZERO => text,
        jitter => format!("{text} +{}", humantime::format_duration(jitter)),
    }
}

/// The decision. `running`: a backup of this policy has not ended yet.
pub fn due(
    spec: &ScheduleSpec,
    policy: &PolicyId,
    base: Base,
    running: bool,
    now: Timestamp,
) -> Verdict {
    let jitter = jitter(spec, policy);
    let start_of = |tick: Timestamp| {
        let start = add(tick, jitter);
        blackout_end(spec, start).unwrap_or(start)
    };
    let next_tick = |after| spec.cron.next(after, &spec.zone);
    // A planned start lies past its tick by the jitter, and perhaps by a blackout: the tick is the last one not after it.
    let first = match base {
        Base::After(after) => next_tick(after),
        Base::Planned(start) => {
            last_tick_until(spec, sub(start, jitter)).or_else(|| next_tick(start))
        }
    };
    let Some(first) = first else {
        return Verdict::Never;
    };
    if start_of(first) > now {
        return Verdict::Wait {
            until: start_of(first),
        };
    }
    // The latest tick whose time has come; those before it are missed.
    let mut tick = first;
    let mut missed = 0u32;
    while let Some(next) = next_tick(tick) {
        if start_of(next) > now {
            break;
        }
        missed = missed.saturating_add(1);
        tick = next;
        if missed.is_multiple_of(SKIP_AFTER)
            && let Some(late) = last_tick_until(spec, sub(now, jitter + spec.interval))
            && late > tick
        {
            tick = late;
        }
    }
    let start = start_of(tick);
    let then = next_tick(tick).map(start_of);
    if spec
        .starting_deadline
        .is_some_and(|deadline| add(start, deadline) < now)
    {
        return Verdict::Missed { tick, missed, then };
    }
    if let Some(end) = blackout_end(spec, now) {
        return Verdict::Wait { until: end };
    }
    if running {
        Verdict::Overlap { tick }
    } else {
        Verdict::Run { tick, missed, then }
    }
}

/// After so many missed ticks the search jumps; a pass over years of minutes would take too long.
const SKIP_AFTER: u32 = 1000;

/// The last tick not after `until`, searched for within the last interval.
fn last_tick_until(spec: &ScheduleSpec, until: Timestamp) -> Option<Timestamp> {
    // Ticks of @every hang on the one before them alone; a planned one is itself a tick.
    if spec.cron.is_every() {
        return Some(until);
    }
    let mut found = None;
    let mut at = sub(until, spec.interval + Duration::from_secs(2 * 3600));
    while let Some(next) = spec.cron.next(at, &spec.zone).filter(|next| *next <= until) {
        found = Some(next);
        at = next;
    }
    found
}

/// The end of the blackout that holds `at`, through windows that follow each other. `None` outside of one.
fn blackout_end(spec: &ScheduleSpec, at: Timestamp) -> Option<Timestamp> {
    let mut end = None;
    let mut inside = at;
    // A week holds no more windows in a row than this, unless nothing but blackouts; then the caller asks again.
    for _ in 0..8 + spec.blackouts.len() {
        let Some(until) = spec
            .blackouts
            .iter()
            .filter_map(|w| window_end(w, &spec.zone, inside))
            .max()
        else {
            break;
        };
        end = Some(until);
        inside = until;
    }
    end
}

fn window_end(window: &Blackout, zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
    let local = at.to_zoned(zone.clone());
    let today = local.date();
    // A window that goes on past midnight may have started yesterday.
    [today.yesterday().ok(), Some(today)]
        .into_iter()
        .flatten()
        .find_map(|day| {
            if !window.days.is_empty() && !window.days.contains(&day.weekday()) {
                return None;
            }
            let last_day = if window.end > window.start {
                day
            } else {
                day.tomorrow().ok()?
            };
            let start = day
                .to_datetime(window.start)
                .to_zoned(zone.clone())
                .ok()?
                .timestamp();
            let end = last_day
                .to_datetime(window.end)
                .to_zoned(zone.clone())
                .ok()?
                .timestamp();
            (start <= at && at < end).then_some(end)
        })
}

fn add(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn sub(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
