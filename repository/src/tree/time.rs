//! Times as Go writes them in JSON: RFC 3339 in the local zone, the fraction without trailing zeros.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

const SECONDS_PER_DAY: i64 = 86_400;

/// Appends `time` as it reads in `zone`.
pub(crate) fn write(out: &mut Vec<u8>, time: Timestamp, zone: &TimeZone) {
    let offset = i64::from(zone.to_offset(time).seconds());
    // jiff truncates towards zero; the calendar needs the floor.
    let (mut seconds, mut nanos) = (time.as_second(), i64::from(time.subsec_nanosecond()));
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    let local = seconds + offset;
    let (days, of_day) = (
        local.div_euclid(SECONDS_PER_DAY),
        local.rem_euclid(SECONDS_PER_DAY),
    );
    let (year, month, day) = civil(days);

    digits(out, year.clamp(0, 9999), 4);
    out.push(b'-');
    digits(out, month, 2);
    out.push(b'-');
    digits(out, day, 2);
    out.push(b'T');
    digits(out, of_day / 3600, 2);
    out.push(b':');
    digits(out, of_day / 60 % 60, 2);
    out.push(b':');
    digits(out, of_day % 60, 2);
    if nanos != 0 {
        out.push(b'.');
        let mut width = 9;
        while nanos % 10 == 0 {
            nanos /= 10;
            width -= 1;
        }
        digits(out, nanos, width);
    }
    if offset == 0 {
        out.push(b'Z');
        return;
    }
    out.push(if offset < 0 { b'-' } else { b'+' });
    let minutes = offset.abs() / 60;
    digits(out, minutes / 60, 2);
    out.push(b':');
    digits(out, minutes % 60, 2);
}

/// Parses what Go accepts for a time in JSON: `2006-01-02T15:04:05[.fraction](Z|±hh:mm)`.
pub(crate) fn parse(text: &[u8]) -> Option<Timestamp> {
    if text.len() < 20 {
        return None;
    }
    let (head, mut rest) = text.split_at(19);
    for (at, want) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        if head[at] != want {
            return None;
        }
    }
    let year = number(&head[0..4])?;
    let month = number(&head[5..7])?;
    let day = number(&head[8..10])?;
    let (hour, minute, second) = (
        number(&head[11..13])?,
        number(&head[14..16])?,
        number(&head[17..19])?,
    );
    if !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }

    let mut nanos = 0;
    if let [b'.' | b',', fraction @ ..] = rest {
        let len = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if len == 0 {
            return None;
        }
        let digits = fraction[..len].iter().map(|digit| i64::from(digit - b'0'));
        nanos = digits
            .chain(std::iter::repeat(0))
            .take(9)
            .fold(0, |sum, digit| sum * 10 + digit);
        rest = &fraction[len..];
    }
    let offset = match rest {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            if hours > 24 || minutes > 60 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds =
        days_from(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset;
    Some(nearest(seconds, nanos))
}

/// A time as the kernel gives it. Where four digits do not suffice for the year, it becomes 0 or 9999 and the rest stays,
/// as restic has it.
pub(crate) fn from_unix(seconds: i64, nanos: i64) -> Timestamp {
    let range = Timestamp::MIN.as_second()..Timestamp::MAX.as_second();
    if range.contains(&seconds) {
        return nearest(seconds, nanos);
    }
    let (_, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
    let year = if seconds < 0 { 0 } else { 9999 };
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    nearest(
        days_from(year, month, day) * SECONDS_PER_DAY + of_day,
        nanos,
    )
}

/// The last 26 hours of the year 9999 are later than any [`Timestamp`]: they become the latest that there is.
fn nearest(seconds: i64, nanos: i64) -> Timestamp {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (least, most) = (
        Timestamp::MIN.as_nanosecond(),
        Timestamp::MAX.as_nanosecond(),
    );
    Timestamp::from_nanosecond(total.clamp(least, most)).unwrap_or(Timestamp::MAX)
}

/// For `#[serde(with = …)]`: written in the system's zone.
pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let mut out = Vec::with_capacity(35);
    write(&mut out, *time, &TimeZone::system());
    serializer.serialize_str(&String::from_utf8_lossy(&out))
}

/// For `#[serde(with = …)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Timestamp, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse(text.as_bytes()).ok_or_else(|| D::Error::custom("not an RFC 3339 time"))
}

fn digits(out: &mut Vec<u8>, value: i64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    let mut value = value;
    for at in (start..start + width).rev() {
        out[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

fn number(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |sum, b| {
        b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0'))
    })
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar, counted in years that begin in March.
fn days_from(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_from`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(time: Timestamp, zone: &TimeZone) -> String {
        let mut out = Vec::new();
        write(&mut out, time, zone);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn as_go_writes_them() {
        let utc = TimeZone::UTC;
        assert_eq!(written(Timestamp::UNIX_EPOCH, &utc), "1970-01-01T00:00:00Z");
        assert_eq!(
            written(from_unix(0, 120_000_000), &utc),
            "1970-01-01T00:00:00.12Z"
        );
        assert_eq!(
            written(from_unix(-1, 999_999_999), &utc),
            "1969-12-31T23:59:59.999999999Z"
        );
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(
            written(from_unix(1_720_000_000, 5), &berlin),
            "2024-07-03T11:46:40.000000005+02:00"
        );
        let st_johns = TimeZone::get("America/St_Johns").unwrap();
        assert_eq!(
            written(from_unix(1_705_000_000, 0), &st_johns),
            "2024-01-11T15:36:40-03:30"
        );
    }

    #[test]
    fn years_of_more_digits_become_the_nearest_of_four() {
        let utc = |seconds| written(from_unix(seconds, 123_000_000), &TimeZone::UTC);
        for (seconds, text) in [
            (253_402_300_800, "9999-01-01T00:00:00.123Z"),
            (280_000_000_000, "9999-11-05T17:46:40.123Z"),
            (-70_000_000_000, "0000-10-15T19:33:20.123Z"),
            (-377_705_116_801, "0000-12-31T23:59:59.123Z"),
            (253_402_250_000, "9999-12-30T22:00:00.999999999Z"),
        ] {
            assert_eq!(utc(seconds), text, "{seconds}");
        }
        for seconds in [i64::MIN, i64::MAX] {
            assert!(parse(utc(seconds).as_bytes()).is_some(), "{seconds}");
        }
    }

    #[test]
    fn reads_the_latest_and_the_earliest_time_that_can_be_written() {
        assert_eq!(parse(b"9999-12-31T23:59:59-23:59"), Some(Timestamp::MAX));
        assert!(parse(b"0000-01-01T00:00:00+23:59").is_some());
    }

    #[test]
    fn refuses_what_is_no_time() {
        for text in [
            "",
            "2024-07-03",
            "2024-13-03T11:46:40Z",
            "2023-02-29T11:46:40Z",
            "2024-07-03T24:00:00Z",
            "2024-07-03T11:46:40",
            "2024-07-03T11:46:40.Z",
            "2024-07-03 11:46:40Z",
            "2024-07-03T11:46:40+0200",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert!(parse(b"0001-01-01T00:00:00Z").is_some());
    }

    proptest! {
        #[test]
        fn round_trip(seconds in -62_135_596_800_i64..253_402_207_200, nanos in 0_i64..1_000_000_000) {
            let time = from_unix(seconds, nanos);
            for zone in [TimeZone::UTC, TimeZone::get("Asia/Kathmandu").unwrap()] {
                let text = written(time, &zone);
                if zone == TimeZone::UTC {
                    prop_assert_eq!(&text, &jiff_format(time));
                }
                // Before 1920 Kathmandu's offset had seconds, which the format cannot say: Go leaves them out as well.
                if zone == TimeZone::UTC || seconds > -1_577_000_000 {
                    prop_assert_eq!(parse(text.as_bytes()), Some(time));
                }
            }
        }

        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            parse(&text);
        }
    }

    fn jiff_format(time: Timestamp) -> String {
        time.to_string()
    }
}
