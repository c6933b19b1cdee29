//! When a policy's backups run, how long they are kept, and what happens to their repositories.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RawQuantity;
use super::volumes::text_schema;
use crate::lenient::null_default;
use crate::tolerant::tolerant_enum;

/// When backups run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.timeZone) || !self.cron.contains('TZ=')",
    "message": "timeZone and TZ= in cron exclude each other",
    "fieldPath": ".timeZone"
}]))]
pub struct PolicySchedule {
    /// Five fields, a descriptor such as @daily, or @every with a Go duration; as Velero's Schedule.
    #[schemars(with = "CronText")]
    pub cron: String,
    /// The time zone of cron and blackoutWindows, such as Europe/Berlin. Absent: UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<TimeZoneName>")]
    pub time_zone: Option<String>,
    /// Runs are moved by up to this much, always the same for one policy; less than the schedule's interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub jitter: Option<String>,
    /// A run that was missed is caught up once, if not later than this. Absent: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub starting_deadline: Option<String>,
    /// Times of day in which no run begins.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<BlackoutWindow>", length(max = 32))]
    pub blackout_windows: Vec<BlackoutWindow>,
}

/// Times of day on some days; a window whose end is before its start ends on the next day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.start != self.end",
    "message": "start and end must differ",
    "fieldPath": ".end"
}]))]
pub struct BlackoutWindow {
    /// Days on which the window starts. Absent: every day.
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(with = "Vec<Day>", length(max = 7))]
    pub days: Vec<String>,
    /// Start, HH:MM.
    #[schemars(with = "ClockTime")]
    pub start: String,
    /// End, HH:MM.
    #[schemars(with = "ClockTime")]
    pub end: String,
}

/// How long recovery points are kept, counted for each volume; what several rules keep is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.keepLast) && self.keepLast > 0) || (has(self.keepHourly) && self.keepHourly > 0) || (has(self.keepDaily) && self.keepDaily > 0) || (has(self.keepWeekly) && self.keepWeekly > 0) || (has(self.keepMonthly) && self.keepMonthly > 0) || (has(self.keepYearly) && self.keepYearly > 0) || has(self.keepWithin)",
    "message": "retention needs at least one keep rule above zero"
}]))]
pub struct PolicyRetention {
    /// Keep the newest points.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_last: Option<i64>,
    /// Keep one point an hour, for so many hours that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_hourly: Option<i64>,
    /// Keep one point a day, for so many days that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_daily: Option<i64>,
    /// Keep one point a week, for so many weeks that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_weekly: Option<i64>,
    /// Keep one point a month, for so many months that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_monthly: Option<i64>,
    /// Keep one point a year, for so many years that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub keep_yearly: Option<i64>,
    /// Keep every point that is not older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub keep_within: Option<String>,
    /// So many of the newest points are never deleted while the volume exists, whatever else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub minimum_good: Option<i64>,
    /// How long the last points of a volume that no longer exists are kept. Absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DurationText>")]
    pub vanished_volumes: Option<String>,
}

/// How the repositories that hold a policy's volumes are looked after. Of several policies the most frequent wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRepository {
    /// When space of deleted points is given back; cron as in schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<CronText>")]
    pub prune: Option<String>,
    /// When repositories are checked; cron as in schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<CronText>")]
    pub check: Option<String>,
    /// How much of the data a check reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Percentage>")]
    pub check_read_data: Option<String>,
}

/// Restores of samples, compared byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyVerification {
    /// When; cron as in the policy's schedule.
    #[schemars(with = "CronText")]
    pub schedule: String,
    /// How many volumes at a time.
    #[schemars(range(min = 1, max = 1_000))]
    pub volumes: i64,
    /// No volume above this size, a quantity such as 20Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<RawQuantity>,
}

tolerant_enum! {
    /// What becomes of a policy's backups when the policy goes.
    pub enum DeletionPolicy {
        /// They stay.
        Retain,
        /// They go too, but never a volume's last good points.
        Delete,
    }
}

// Words instead of patterns: the message of a pattern is the pattern.
text_schema! {
    CronText = {
        "type": "string",
        "minLength": 1,
        "maxLength": 128,
        "x-kubernetes-validations": [{
            "rule": "self.matches(r'^((CRON_)?TZ=[A-Za-z0-9_+/-]+ +)?(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every +[0-9.a-zµμ]+|[0-9A-Za-z*/,?-]+( +[0-9A-Za-z*/,?-]+){4})$')",
            "message": "must be five cron fields, a descriptor such as @daily, or @every with a duration such as 1h30m"
        }]
    };
    TimeZoneName = {
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self.matches(r'^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$')",
            "message": "must be an IANA time zone such as Europe/Berlin"
        }]
    };
    DurationText = {
        "type": "string",
        "maxLength": 64,
        "x-kubernetes-validations": [{
            "rule": "self.matches(r'^(0|([0-9]+(\\.[0-9]+)? *(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y) *)+)$')",
            "message": "must be a duration such as 30m, 26h or 90days"
        }]
    };
    Percentage = {
        "type": "string",
        "maxLength": 8,
        "x-kubernetes-validations": [{
            "rule": "self.matches(r'^(100(\\.0{1,2})?|[0-9]{1,2}(\\.[0-9]{1,2})?)%$')",
            "message": "must be a percentage from 0% to 100%"
        }]
    };
    ClockTime = {
        "type": "string",
        "maxLength": 5,
        "x-kubernetes-validations": [{
            "rule": "self.matches(r'^(([01]?[0-9]|2[0-3]):[0-5][0-9]|24:00)$')",
            "message": "must be a time of day, HH:MM"
        }]
    };
    Day = {"type": "string", "enum": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]};
}
