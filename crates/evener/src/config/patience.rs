//! The keys for slow, closing and waiting clients: `min_rate`, `abort_on_close`, and `queue` and `retry_budget`
//! of a pool.

use super::fields::Fields;
use super::raw::Value;
use evener_core::pace::MinRate;
use evener_core::spec::{AbortOnClose, QueueSpec, RetryBudgetSpec};

/// Reads `min_rate = 240`, `{ rate = 240, window = "60s" }`, or `false`. Returns `None` if the key is absent or
/// invalid, and `Some(None)` for no minimum.
pub(super) fn read_min_rate(fields: &mut Fields<'_>) -> Option<Option<MinRate>> {
    const KEY: &str = "min_rate";
    let rate_of = |number: i64| {
        let rate = u32::try_from(number).ok().filter(|rate| *rate <= MinRate::BYTES_PER_SECOND_MAX)?;
        Some((rate > 0).then_some(MinRate { bytes_per_second: rate, ..MinRate::DEFAULT }))
    };
    match fields.take(KEY)? {
        Value::Bool(false) => Some(None),
        Value::Unknown => None,
        Value::Int(number) if rate_of(*number).is_some() => rate_of(*number),
        Value::Table(table) => {
            let mut nested = fields.within(KEY, table);
            let rate = nested.integer("rate", 0..=MinRate::BYTES_PER_SECOND_MAX);
            let window = nested.duration("window").unwrap_or(MinRate::DEFAULT.window);
            if !(MinRate::WINDOW_MIN..=MinRate::WINDOW_MAX).contains(&window) {
                nested.must("window", "be between 1s and 1h");
            }
            nested.finish();
            let rate = rate.unwrap_or(MinRate::DEFAULT.bytes_per_second);
            Some((rate > 0).then_some(MinRate { bytes_per_second: rate, window }))
        }
        Value::Int(_) => {
            fields.must(KEY, format!("be between 0 and {} bytes a second", MinRate::BYTES_PER_SECOND_MAX));
            None
        }
        _ => {
            fields.must(KEY, "be bytes a second, { rate = 240, window = \"60s\" }, or false for none");
            None
        }
    }
}

/// Reads `queue = { size = 1024, timeout = "5s" }`, `true` or `false`. Returns `None` if the key is absent or
/// invalid, and `Some(None)` for no queue.
pub(super) fn read_queue(fields: &mut Fields<'_>) -> Option<Option<QueueSpec>> {
    const KEY: &str = "queue";
    match fields.take(KEY)? {
        Value::Bool(false) => Some(None),
        Value::Bool(true) => Some(Some(QueueSpec::DEFAULT)),
        Value::Unknown => None,
        Value::Table(table) => {
            let mut nested = fields.within(KEY, table);
            let spec = QueueSpec {
                size: nested.integer("size", 1..=QueueSpec::SIZE_MAX).unwrap_or(QueueSpec::DEFAULT.size),
                timeout: nested.duration("timeout").unwrap_or(QueueSpec::DEFAULT.timeout),
            };
            nested.finish();
            Some(Some(spec))
        }
        _ => {
            fields.must(KEY, "be { size = 1024, timeout = \"5s\" }, or false for none");
            None
        }
    }
}

/// Reads `retry_budget = "20%"`, `{ share = "20%", min_per_second = 10 }`, `true` or `false`. Returns `None` if
/// the key is absent or invalid, and `Some(None)` for no limit.
pub(super) fn read_retry_budget(fields: &mut Fields<'_>) -> Option<Option<RetryBudgetSpec>> {
    const KEY: &str = "retry_budget";
    const DEFAULT: RetryBudgetSpec = RetryBudgetSpec::DEFAULT;
    match fields.take(KEY)? {
        Value::Bool(false) => Some(None),
        Value::Bool(true) => Some(Some(DEFAULT)),
        Value::Unknown => None,
        Value::Text(text) => match percent(text) {
            Some(share_percent) => Some(Some(RetryBudgetSpec { share_percent, ..DEFAULT })),
            None => {
                fields.must(KEY, SHARE);
                None
            }
        },
        Value::Table(table) => {
            let mut nested = fields.within(KEY, table);
            let share = match nested.take("share") {
                None | Some(Value::Unknown) => Some(DEFAULT.share_percent),
                Some(value) => value.text().and_then(percent),
            };
            if share.is_none() {
                nested.must("share", SHARE);
            }
            let min_per_second = nested.integer("min_per_second", 0..=RetryBudgetSpec::MIN_PER_SECOND_MAX);
            nested.finish();
            Some(Some(RetryBudgetSpec {
                share_percent: share?,
                min_per_second: min_per_second.unwrap_or(DEFAULT.min_per_second),
            }))
        }
        _ => {
            fields.must(KEY, "be a share of the requests such as \"20%\", a table, or false for no limit");
            None
        }
    }
}

/// The requirement of a share.
const SHARE: &str = "be a whole percentage from \"0%\" to \"100%\"";

/// Parses a percentage such as `20%`.
fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|percent| *percent <= RetryBudgetSpec::SHARE_PERCENT_MAX)
}

/// Reads `abort_on_close = "idempotent"`, `true` or `false`.
pub(super) fn read_abort_on_close(fields: &mut Fields<'_>) -> Option<AbortOnClose> {
    const KEY: &str = "abort_on_close";
    match fields.take(KEY)? {
        Value::Bool(false) => Some(AbortOnClose::Never),
        Value::Bool(true) => Some(AbortOnClose::Always),
        Value::Text(word) if word == "idempotent" => Some(AbortOnClose::Idempotent),
        Value::Unknown => None,
        _ => {
            fields.must(KEY, "be \"idempotent\", true or false");
            None
        }
    }
}
