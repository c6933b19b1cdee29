//! The grammar of robfig's standard parser.

use std::time::Duration;

use super::{Cron, Fields, Plan, STAR, duration, zone};

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("the expression is empty")]
    Empty,
    #[error("unknown time zone {0:?}")]
    Zone(String),
    #[error("nothing follows the time zone")]
    OnlyZone,
    #[error("expected 5 fields (minute hour day month weekday), found {0}")]
    FieldCount(usize),
    #[error("unknown descriptor {0:?}")]
    Descriptor(String),
    #[error("{0:?} is not a duration")]
    Every(String),
    #[error("field {field}: {part:?}: {why}")]
    Field {
        field: &'static str,
        part: String,
        why: &'static str,
    },
}

impl CronError {
    /// What would have been accepted, with why this was not; for [`crate::Invalid`].
    pub fn allowed(&self) -> String {
        format!(
            "a cron expression of five fields, a descriptor such as @daily, or @every <duration> ({self})"
        )
    }
}

struct Bounds {
    name: &'static str,
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds {
    name: "minute",
    min: 0,
    max: 59,
    names: &[],
};
const HOUR: Bounds = Bounds {
    name: "hour",
    min: 0,
    max: 23,
    names: &[],
};
const DAY: Bounds = Bounds {
    name: "day of month",
    min: 1,
    max: 31,
    names: &[],
};
const MONTH: Bounds = Bounds {
    name: "month",
    min: 1,
    max: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
};
const WEEKDAY: Bounds = Bounds {
    name: "day of week",
    min: 0,
    max: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

pub(super) fn parse(source: &str) -> Result<Cron, CronError> {
    if source.is_empty() {
        return Err(CronError::Empty);
    }
    let prefixed = source
        .strip_prefix("CRON_TZ=")
        .or_else(|| source.strip_prefix("TZ="));
    let (zone, body) = match prefixed {
        None => (None, source),
        Some(rest) => {
            let (name, body) = rest.split_once(' ').ok_or(CronError::OnlyZone)?;
            let zone = match name {
                "Local" => None,
                name => Some(zone(name).ok_or_else(|| CronError::Zone(name.to_owned()))?),
            };
            (zone, body.trim())
        }
    };
    let plan = if body.starts_with('@') {
        descriptor(body)?
    } else {
        Plan::Fields(fields(body)?)
    };
    Ok(Cron {
        source: source.to_owned(),
        zone,
        plan,
    })
}

fn descriptor(body: &str) -> Result<Plan, CronError> {
    let expression = match body {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => {
            let text = other
                .strip_prefix("@every ")
                .ok_or_else(|| CronError::Descriptor(other.to_owned()))?;
            let nanos = duration::parse(text).ok_or_else(|| CronError::Every(text.to_owned()))?;
            // Go rounds down to whole seconds and never below one.
            let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(0).max(1);
            return Ok(Plan::Every(Duration::from_secs(seconds)));
        }
    };
    fields(expression).map(Plan::Fields)
}

fn fields(body: &str) -> Result<Fields, CronError> {
    let parts: Vec<&str> = body.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = parts[..] else {
        return Err(CronError::FieldCount(parts.len()));
    };
    Ok(Fields {
        minute: field(minute, &MINUTE)?,
        hour: field(hour, &HOUR)?,
        day: field(day, &DAY)?,
        month: field(month, &MONTH)?,
        weekday: field(weekday, &WEEKDAY)?,
    })
}

/// A comma list; empty parts are ignored, as Go's `FieldsFunc` does.
fn field(text: &str, bounds: &Bounds) -> Result<u64, CronError> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .try_fold(0, |bits, part| Ok(bits | range(part, bounds)?))
}

/// `number | number "-" number [ "/" number ]`, with `*` or `?` for the whole range.
fn range(part: &str, bounds: &Bounds) -> Result<u64, CronError> {
    let bad = |why| CronError::Field {
        field: bounds.name,
        part: part.to_owned(),
        why,
    };
    let steps: Vec<&str> = part.split('/').collect();
    let ends: Vec<&str> = steps
        .first()
        .copied()
        .unwrap_or_default()
        .split('-')
        .collect();
    let value =
        |text: &str| number_or_name(text, bounds).ok_or_else(|| bad("not a number or name"));

    let (start, mut end, mut star) = match ends[..] {
        ["*" | "?", ..] => (bounds.min, bounds.max, STAR),
        [only] => {
            let only = value(only)?;
            (only, only, 0)
        }
        [start, end] => (value(start)?, value(end)?, 0),
        _ => return Err(bad("too many hyphens")),
    };
    let step = match steps[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step).ok_or_else(|| bad("the step is not a number"))?;
            // "N/step" means "N-max/step".
            if ends.len() == 1 {
                end = bounds.max;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return Err(bad("too many slashes")),
    };
    if start < bounds.min {
        return Err(bad("below the minimum"));
    }
    if end > bounds.max {
        return Err(bad("above the maximum"));
    }
    if start > end {
        return Err(bad("the start is beyond the end"));
    }
    let step = usize::try_from(step)
        .ok()
        .filter(|step| *step > 0)
        .ok_or_else(|| bad("the step is zero"))?;
    Ok((start..=end)
        .step_by(step)
        .fold(star, |bits, at| bits | 1 << at))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Option<u64> {
    let lower = text.to_lowercase();
    match (0..).zip(bounds.names).find(|(_, name)| **name == lower) {
        Some((at, _)) => Some(bounds.min + at),
        None => number(text),
    }
}

/// Go's `Atoi` without negative numbers.
fn number(text: &str) -> Option<u64> {
    let parsed: i64 = text.parse().ok()?;
    u64::try_from(parsed).ok()
}
