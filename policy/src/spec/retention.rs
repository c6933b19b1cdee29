//! How long points are kept and how a policy's repositories are looked after.

use std::time::Duration;

use crate::Invalid;
use crate::cron::Cron;
use crate::quantity;

/// `spec.retention`: rules per volume. A point stays when any rule keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    pub within: Option<Duration>,
    /// The newest so many points of a volume stay whatever the rules say; at least 1.
    pub minimum_good: u32,
    /// How long the last points of a volume that no longer exists are kept; `None` = for ever.
    pub vanished_volumes: Option<Duration>,
}

/// Input of [`Retention::new`]; `None` is "not given".
#[derive(Debug, Clone, Copy, Default)]
pub struct RetentionParts<'a> {
    pub keep_last: Option<i64>,
    pub keep_hourly: Option<i64>,
    pub keep_daily: Option<i64>,
    pub keep_weekly: Option<i64>,
    pub keep_monthly: Option<i64>,
    pub keep_yearly: Option<i64>,
    pub keep_within: Option<&'a str>,
    pub minimum_good: Option<i64>,
    pub vanished_volumes: Option<&'a str>,
}

impl Retention {
    /// `minimumGood` when it is not given.
    pub const MINIMUM_GOOD: u32 = 1;

    /// # Errors
    /// A negative number, no keep rule at all, `minimumGood` below 1, a duration that is none.
    pub fn new(field: &str, parts: RetentionParts<'_>) -> Result<Self, Invalid> {
        let count = |name: &str, value: Option<i64>| {
            let value = value.unwrap_or(0);
            u32::try_from(value).map_err(|_| {
                Invalid::raw(
                    format!("{field}.{name}"),
                    value,
                    "a number from 0 to 4294967295",
                )
            })
        };
        let minimum_good = match parts.minimum_good {
            None => Self::MINIMUM_GOOD,
            Some(value) => u32::try_from(value)
                .ok()
                .filter(|n| *n >= 1)
                .ok_or_else(|| {
                    Invalid::raw(
                        format!("{field}.minimumGood"),
                        value,
                        "a number from 1 to 4294967295",
                    )
                })?,
        };
        let retention = Self {
            last: count("keepLast", parts.keep_last)?,
            hourly: count("keepHourly", parts.keep_hourly)?,
            daily: count("keepDaily", parts.keep_daily)?,
            weekly: count("keepWeekly", parts.keep_weekly)?,
            monthly: count("keepMonthly", parts.keep_monthly)?,
            yearly: count("keepYearly", parts.keep_yearly)?,
            within: parts
                .keep_within
                .map(|text| quantity::positive_duration(&format!("{field}.keepWithin"), text))
                .transpose()?,
            minimum_good,
            vanished_volumes: parts
                .vanished_volumes
                .map(|text| quantity::duration(&format!("{field}.vanishedVolumes"), text))
                .transpose()?,
        };
        let keeps_nothing = [
            retention.last,
            retention.hourly,
            retention.daily,
            retention.weekly,
            retention.monthly,
            retention.yearly,
        ] == [0; 6]
            && retention.within.is_none();
        if keeps_nothing {
            return Err(Invalid::raw(
                field,
                "no keep rule",
                "at least one keep… above zero",
            ));
        }
        Ok(retention)
    }
}

/// `spec.repository`: how often the repositories are pruned and checked. Schedules here only say how often; the time of day is spread.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repository {
    pub prune: Option<Cron>,
    pub check: Option<Cron>,
    /// How much of the packs a check reads, in hundredths of a percent (500 = 5 %).
    pub check_read_data: Option<u32>,
}

impl Repository {
    pub fn new(
        field: &str,
        prune: Option<&str>,
        check: Option<&str>,
        check_read_data: Option<&str>,
    ) -> Result<Self, Invalid> {
        Ok(Self {
            prune: frequency(&format!("{field}.prune"), prune)?,
            check: frequency(&format!("{field}.check"), check)?,
            check_read_data: check_read_data
                .map(|text| {
                    percent(text).ok_or_else(|| {
                        Invalid::new(
                            format!("{field}.checkReadData"),
                            text,
                            "a percentage from 0% to 100%",
                        )
                    })
                })
                .transpose()?,
        })
    }
}

fn frequency(field: &str, text: Option<&str>) -> Result<Option<Cron>, Invalid> {
    text.map(|text| Cron::parse(text).map_err(|error| Invalid::new(field, text, error.allowed())))
        .transpose()
}

/// `5%`, `2.5%` in hundredths of a percent.
fn percent(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| {
        !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return None;
    }
    let hundredths =
        whole.parse::<u32>().ok()? * 100 + format!("{fraction:0<2}").parse::<u32>().ok()?;
    (hundredths <= 10_000).then_some(hundredths)
}

/// `spec.verification`: a sample restore, compared byte for byte.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    pub schedule: Cron,
    pub volumes: u32,
    pub max_bytes: Option<u64>,
}

impl Verification {
    pub fn new(
        field: &str,
        schedule: &str,
        volumes: i64,
        max_bytes: Option<&str>,
    ) -> Result<Self, Invalid> {
        let at = format!("{field}.schedule");
        Ok(Self {
            schedule: Cron::parse(schedule)
                .map_err(|error| Invalid::new(&at, schedule, error.allowed()))?,
            volumes: u32::try_from(volumes)
                .ok()
                .filter(|n| *n >= 1)
                .ok_or_else(|| {
                    Invalid::raw(
                        format!("{field}.volumes"),
                        volumes,
                        "a number of at least 1",
                    )
                })?,
            max_bytes: max_bytes
                .map(|text| quantity::bytes(&format!("{field}.maxBytes"), text))
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        for (text, expected) in [
            ("5%", Some(500)),
            ("2.5%", Some(250)),
            ("100%", Some(10_000)),
            ("0%", Some(0)),
            ("100.01%", None),
            ("5", None),
            ("%", None),
            ("-1%", None),
        ] {
            assert_eq!(percent(text), expected, "{text}");
        }
    }

    #[test]
    fn a_retention_that_cannot_be_names_its_field() {
        let keep = |parts| Retention::new("spec.retention", parts).unwrap_err().field;
        assert_eq!(keep(RetentionParts::default()), "spec.retention");
        let last = RetentionParts {
            keep_last: Some(-1),
            ..RetentionParts::default()
        };
        assert_eq!(keep(last), "spec.retention.keepLast");
        let floor = RetentionParts {
            keep_last: Some(1),
            minimum_good: Some(0),
            ..RetentionParts::default()
        };
        assert_eq!(keep(floor), "spec.retention.minimumGood");
        let within = RetentionParts {
            keep_within: Some("0s"),
            ..RetentionParts::default()
        };
        assert_eq!(keep(within), "spec.retention.keepWithin");
    }
}
