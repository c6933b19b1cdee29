//! The keep rules over one series of points, as restic applies them: of each of the newest periods that have points, the newest one.

use jiff::civil::ISOWeekDate;
use jiff::tz::TimeZone;

use super::Point;
use crate::spec::Retention;

/// The backups of the kept points. `points` are newest first.
pub(super) fn kept<'a>(
    retention: &Retention,
    zone: &TimeZone,
    points: &[Point<'a>],
    floor: u32,
) -> Vec<&'a str> {
    let local = |point: &Point<'_>| point.0.to_zoned(zone.clone()).datetime();
    let day = |point: &Point<'_>| local(point).date();
    let last = retention.last.max(floor);
    let newest = |count: u32| {
        usize::try_from(count)
            .unwrap_or(usize::MAX)
            .min(points.len())
    };

    let mut kept: Vec<&str> = points
        .iter()
        .take(newest(last))
        .map(|point| point.1)
        .collect();
    kept.extend(buckets(points, retention.hourly, |p| {
        (day(p), local(p).hour())
    }));
    kept.extend(buckets(points, retention.daily, day));
    kept.extend(buckets(points, retention.weekly, |p| {
        let week = ISOWeekDate::from(day(p));
        (week.year(), week.week())
    }));
    kept.extend(buckets(points, retention.monthly, |p| {
        (day(p).year(), day(p).month())
    }));
    kept.extend(buckets(points, retention.yearly, |p| day(p).year()));
    // Measured from the newest point and not from now: a clock that jumps, or backups that stop, let nothing expire.
    if let (Some(within), Some(newest)) = (retention.within, points.first())
        && let Ok(since) = newest.0.checked_sub(within)
    {
        kept.extend(
            points
                .iter()
                .take_while(|point| point.0 >= since)
                .map(|point| point.1),
        );
    }
    kept
}

/// The newest point of each of the newest `count` buckets.
fn buckets<'a, B: PartialEq>(
    points: &[Point<'a>],
    count: u32,
    bucket: impl Fn(&Point<'a>) -> B,
) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut current = None;
    for point in points {
        if u32::try_from(found.len()).is_ok_and(|len| len >= count) {
            break;
        }
        let this = Some(bucket(point));
        if this != current {
            found.push(point.1);
            current = this;
        }
    }
    found
}
