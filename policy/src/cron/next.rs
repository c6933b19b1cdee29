//! The search for the next run, step by step as robfig's `SpecSchedule.Next` does it, with Go's rules for local times that do not
//! exist or exist twice.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

use super::Fields;

/// A time in a zone, in whole seconds since 1970.
#[derive(Clone, Copy)]
struct Local<'a> {
    unix: i64,
    zone: &'a TimeZone,
}

impl<'a> Local<'a> {
    /// Go's `time.Date`: a time that a clock change skips or repeats gets the offset that [`offset`] finds for it.
    fn from_civil(at: DateTime, zone: &'a TimeZone) -> Option<Self> {
        let as_utc = Offset::UTC.to_timestamp(at).ok()?.as_second();
        let unix = match offset(as_utc, zone)? {
            0 => as_utc,
            first => as_utc - offset(as_utc - first, zone)?,
        };
        Some(Self { unix, zone })
    }

    fn civil(self) -> Option<DateTime> {
        let shifted = self.unix.checked_add(offset(self.unix, self.zone)?)?;
        Some(Offset::UTC.to_datetime(Timestamp::from_second(shifted).ok()?))
    }

    fn plus(self, seconds: i64) -> Self {
        Self {
            unix: self.unix.saturating_add(seconds),
            ..self
        }
    }
}

fn offset(unix: i64, zone: &TimeZone) -> Option<i64> {
    Some(i64::from(
        zone.to_offset(Timestamp::from_second(unix).ok()?).seconds(),
    ))
}

/// Go's `AddDate(0, 1, 0)`: the same day and time of the next month; days that it does not have run over into the one after.
fn next_month(at: DateTime) -> Option<DateTime> {
    let (year, month) = if at.month() == 12 {
        (at.year() + 1, 1)
    } else {
        (at.year(), at.month() + 1)
    };
    let first = Date::new(year, month, 1).ok()?;
    let date = first
        .checked_add(jiff::Span::new().days(at.day() - 1))
        .ok()?;
    Some(date.to_datetime(at.time()))
}

pub(super) fn next(fields: &Fields, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    // The upcoming second.
    let unix = after.as_nanosecond().div_euclid(1_000_000_000) + 1;
    let mut at = Local {
        unix: i64::try_from(unix).ok()?,
        zone,
    };
    let last_year = at.civil()?.year() + 5;
    // Fields below the first one that moves start from their smallest value.
    let mut moved = false;

    'wrap: loop {
        let mut civil = at.civil()?;
        if civil.year() > last_year {
            return None;
        }
        while !fields.allows_month(civil.month()) {
            if !moved {
                moved = true;
                at = Local::from_civil(civil.date().first_of_month().at(0, 0, 0, 0), zone)?;
                civil = at.civil()?;
            }
            at = Local::from_civil(next_month(civil)?, zone)?;
            civil = at.civil()?;
            if civil.month() == 1 {
                continue 'wrap;
            }
        }
        while !fields.allows_day(civil.day(), civil.weekday().to_sunday_zero_offset()) {
            if !moved {
                moved = true;
                at = Local::from_civil(civil.date().at(0, 0, 0, 0), zone)?;
                civil = at.civil()?;
            }
            let tomorrow = civil.date().tomorrow().ok()?.to_datetime(civil.time());
            // Where a zone leaves out a whole day, Go steps on the spot for ever; we go on by hours.
            at = match Local::from_civil(tomorrow, zone)? {
                next if next.unix > at.unix => next,
                _ => at.plus(24 * 3600),
            };
            civil = at.civil()?;
            // A clock change may have moved midnight.
            let hour = i64::from(civil.hour());
            if hour != 0 {
                at = at.plus(if hour > 12 {
                    (24 - hour) * 3600
                } else {
                    -hour * 3600
                });
                civil = at.civil()?;
            }
            if civil.day() == 1 {
                continue 'wrap;
            }
        }
        while fields.hour & (1 << civil.hour()) == 0 {
            if !moved {
                moved = true;
                at = Local::from_civil(civil.date().at(civil.hour(), 0, 0, 0), zone)?;
            }
            at = at.plus(3600);
            civil = at.civil()?;
            if civil.hour() == 0 {
                continue 'wrap;
            }
        }
        while fields.minute & (1 << civil.minute()) == 0 {
            if !moved {
                moved = true;
                at.unix -= at.unix.rem_euclid(60);
            }
            at = at.plus(60);
            civil = at.civil()?;
            if civil.minute() == 0 {
                continue 'wrap;
            }
        }
        while civil.second() != 0 {
            moved = true;
            at = at.plus(1);
            civil = at.civil()?;
            if civil.second() == 0 {
                continue 'wrap;
            }
        }
        return Timestamp::from_second(at.unix).ok();
    }
}

/// Gaps within a day from the hours and minutes; between days from a walk over nine years, which hold at least two leap days.
pub(super) fn longest_interval(fields: &Fields) -> Option<Duration> {
    let times: Vec<u64> = (0..24u64)
        .filter(|hour| fields.hour & (1 << hour) != 0)
        .flat_map(|hour| {
            (0..60)
                .filter(|minute| fields.minute & (1 << minute) != 0)
                .map(move |m| hour * 60 + m)
        })
        .collect();
    let (first, last) = (times.first()?, times.last()?);
    let within = times
        .windows(2)
        .filter_map(|pair| Some(pair.get(1)? - pair.first()?))
        .max()
        .unwrap_or(0);

    let mut longest = None;
    let mut previous: Option<u64> = None;
    let days = Date::constant(2023, 1, 1)
        .series(jiff::Span::new().days(1))
        .zip(0u64..);
    for (day, number) in days.take(9 * 366) {
        if fields.allows_month(day.month())
            && fields.allows_day(day.day(), day.weekday().to_sunday_zero_offset())
        {
            if let Some(previous) = previous {
                let between = (number - previous) * 1440 + first - last;
                longest = longest.max(Some(between.max(within)));
            }
            previous = Some(number);
        }
    }
    longest.map(|minutes| Duration::from_secs(minutes * 60))
}
