//! Durations and sizes as configurations write them. An error is a message without its beginning: the caller
//! adds the key.

use super::hints::values;
use super::raw::{Value, shown};
use std::time::Duration;

/// Maximum number of days of a duration in a configuration.
const DURATION_DAYS_MAX: u64 = 366;

/// Units of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Parses a duration.
pub(super) fn parse_duration(value: &Value) -> Result<Duration, String> {
    if let Some(number) = value.number() {
        if number.starts_with('-') {
            return Err(format!("must not be negative, got {}", value.shown()));
        }
        return Err(format!("needs a unit: write \"{number}s\", got {}", value.shown()));
    }
    let Value::Text(text) = value else {
        return Err(format!("must be a duration such as \"500ms\", \"2s\" or \"1h\", got {}", value.shown()));
    };
    if text.trim().is_empty() {
        return Err("must not be empty: write a duration such as \"2s\"".into());
    }
    if has_months(text) {
        let minutes = text.replace('M', "m");
        return Err(format!("cannot be in months (M): write \"{minutes}\" for minutes, got {}", shown(text)));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        let hint = values::duration(text).map_or(String::new(), |right| format!(": write \"{right}\""));
        format!("must be a duration such as \"500ms\", \"2s\" or \"1h\", got {}{hint}", shown(text))
    })?;
    if duration > Duration::from_secs(DURATION_DAYS_MAX * 24 * 3600) {
        return Err(format!("must be at most {DURATION_DAYS_MAX} days, got {}", shown(text)));
    }
    Ok(duration)
}

/// Returns true for zero without a unit.
pub(super) fn is_zero(value: &Value) -> bool {
    value.number().is_some_and(|number| number.parse() == Ok(0.0))
}

/// Returns true if a number is followed by `M`, which would mean months.
fn has_months(text: &str) -> bool {
    text.split(|c: char| c.is_ascii_digit() || c.is_whitespace()).any(|unit| unit == "M")
}

/// Parses a number of bytes.
pub(super) fn parse_size(value: &Value) -> Result<u64, String> {
    if let Some(number) = value.number() {
        return Err(format!("needs a unit, such as \"64MiB\" or \"{number}B\", got {}", value.shown()));
    }
    let parse = |text: &str| {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let (_, scale) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit.trim_start())?;
        number.parse::<u64>().ok()?.checked_mul(scale)
    };
    let size = value.text().and_then(parse);
    size.ok_or_else(|| {
        let right = value.text().and_then(values::size).filter(|right| parse(right).is_some());
        let hint = right.map_or(String::new(), |right| format!(": write \"{right}\""));
        format!("must be a size such as \"64KiB\", \"64MiB\" or \"1GiB\", got {}{hint}", value.shown())
    })
}

/// Writes a size as a whole number of the largest possible unit.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |(_, scale): &(&str, u64)| bytes >= *scale && bytes.is_multiple_of(*scale);
    let (name, scale) = SIZE_UNITS.into_iter().find(fits).unwrap_or(("B", 1));
    format!("{}{name}", bytes / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let parsed = parse_duration(&Value::Text(text.into()));
        let seen = parsed.map_or_else(|error| error, |duration| format!("{duration:?}"));
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn durations_have_a_unit_and_a_maximum() {
        check("500ms", "500ms");
        check("1h 30m", "5400s");
        check("366d", "31622400s");
        check("400d", "must be at most 366 days, got \"400d\"");
        check("", "must not be empty: write a duration such as \"2s\"");
        check("5", "needs a unit: write \"5s\", got \"5\"");
        check("1M", "cannot be in months (M): write \"1m\" for minutes, got \"1M\"");
        check("2 parsecs", "must be a duration such as \"500ms\", \"2s\" or \"1h\", got \"2 parsecs\"");
        assert_eq!(parse_duration(&Value::Int(5)), Err("needs a unit: write \"5s\", got 5".into()));
    }

    #[test]
    fn sizes_have_a_unit() {
        let size = |text: &str| parse_size(&Value::Text(text.into()));
        assert_eq!((size("64MiB"), size("3 B")), (Ok(64 << 20), Ok(3)));
        for wrong in ["", "64", "MiB", "64MB", "99999999999999TiB", "-1B"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((size_text(64 << 20), size_text(1500)), ("64MiB".into(), "1500B".into()));
    }
}
