//! Kubernetes quantities and humantime durations.

use std::time::Duration;

use crate::Invalid;

/// Parses a Kubernetes quantity of bytes (`500Gi`, `1e9`, `0`, `1.5G`); a fraction of a byte is rounded up, as the API server does.
pub fn bytes(field: &str, text: &str) -> Result<u64, Invalid> {
    parse(text).ok_or_else(|| {
        Invalid::new(
            field,
            text,
            "a quantity of bytes, such as 500Gi, 10G or 1048576",
        )
    })
}

/// [`bytes`] for quantities that the API server has checked already.
pub fn parse(text: &str) -> Option<u64> {
    scaled(text, 0)
}

/// A quantity of anything, of processors too, in thousandths.
pub fn thousandths(text: &str) -> Option<u64> {
    scaled(text, 3)
}

/// A quantity times 10^`shift`.
fn scaled(text: &str, shift: i32) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    // value = digits × 2^binary × 10^decimal
    let (binary, decimal): (u32, i32) = match suffix {
        "" => (0, 0),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        exponent => (0, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let decimal = decimal.checked_add(shift)?;
    let decimal = decimal.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(1 << binary)?;
    let power = 10u128.checked_pow(decimal.unsigned_abs());
    let value = match (decimal < 0, power) {
        (false, Some(power)) => scaled.checked_mul(power)?,
        (false, None) => (scaled == 0).then_some(0)?,
        (true, Some(power)) => scaled.div_ceil(power),
        (true, None) => u128::from(scaled > 0),
    };
    u64::try_from(value).ok()
}

/// Parses a humantime duration (`26h`, `30days`, `1h 30m`).
pub fn duration(field: &str, text: &str) -> Result<Duration, Invalid> {
    let allowed = "a duration such as 30m, 26h or 90days";
    // Longer than any calendar holds would overflow later, when it is added to a time.
    const LONGEST: Duration = Duration::from_secs(1000 * 366 * 86_400);
    match humantime::parse_duration(text) {
        Ok(found) if found <= LONGEST => Ok(found),
        _ => Err(Invalid::new(field, text, allowed)),
    }
}

/// [`duration`] that must be longer than nothing.
pub fn positive_duration(field: &str, text: &str) -> Result<Duration, Invalid> {
    match duration(field, text)? {
        Duration::ZERO => Err(Invalid::new(field, text, "a duration longer than zero")),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("500Gi", Some(500 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("10G", Some(10_000_000_000)),
            ("1e3", Some(1000)),
            ("12E2", Some(1200)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("100m", Some(1)),
            (".5Ki", Some(512)),
            ("5.", Some(5)),
            ("+3", Some(3)),
            ("0.1", Some(1)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("1.2.3", None),
            ("1GiB", None),
            ("99999999999Ei", None),
            ("1e99999999999", None),
            ("0e50", Some(0)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn parts_of_a_processor_are_told_apart() {
        for (text, expected) in [
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("2", Some(2000)),
            ("1n", Some(1)),
            ("128Mi", Some(128_000 << 20)),
            ("x", None),
        ] {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_those_of_humantime() {
        assert_eq!(
            duration("f", "90days").unwrap(),
            Duration::from_secs(90 * 86_400)
        );
        assert_eq!(duration("f", "1h 30m").unwrap(), Duration::from_secs(5400));
        for bad in ["", "5", "-1h", "1 fortnight", "999999years"] {
            assert!(duration("f", bad).is_err(), "{bad}");
        }
        assert!(positive_duration("spec.rpo", "0s").is_err());
    }
}
