//! Fields of a request log: their names, and their values of one request.

use super::Record;
use crate::address::Target;
use crate::reason::{self, Cause};
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

/// Value of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// The request has no such value.
    None,
    /// Text, possibly from the client.
    Text(&'a [u8]),
    /// Method, target and version.
    RequestLine(&'a [u8], &'a [u8], &'a [u8]),
    Number(u64),
    Seconds(Duration),
    /// Milliseconds, -1 without a time.
    Milliseconds(Option<Duration>),
    /// Seconds with three digits after the point.
    Thousandths(Duration),
    Address(IpAddr),
    Server(&'a Target),
    Detail(reason::Detail),
    /// Time since 1970, as RFC 3339.
    Time(Duration),
    /// Time since 1970, as in NCSA formats.
    CommonTime(Duration),
    /// Time since 1970, as in the logs of HAProxy.
    LocalTime(Duration),
}

macro_rules! fields {
    ($($field:ident $name:literal $value:expr;)*) => {
        /// Field of a request log.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "docs/operating.md describes them for users")]
        pub enum Field { $($field),* }

        impl Field {
            /// All fields.
            pub const ALL: &[Self] = &[$(Self::$field),*];

            /// Returns the name in formats and in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$field => $name),* }
            }

            /// Returns the value of a request.
            pub(super) fn value<'a>(self, record: &Record<'a>) -> Value<'a> {
                match self { $(Self::$field => { let value: fn(&Record<'a>) -> Value<'a> = $value; value(record) })* }
            }
        }
    };
}

fields! {
    Time "time" |record| Value::Time(record.received_at);
    TimeCommon "time_common" |record| Value::CommonTime(record.received_at);
    Epoch "epoch" |record| Value::Number(record.received_at.as_secs());
    Service "service" |record| Value::Text(record.service.as_bytes());
    Client "client" |record| Value::Address(record.client);
    ClientPort "client_port" |record| number(record.client_port);
    Request "request" |record| request_line(record);
    Method "method" |record| text(record.request.method());
    Target "target" |record| text(record.request.target());
    Protocol "protocol" |record| text(record.request.protocol());
    Malformed "malformed" |record| text(record.request.malformed());
    Host "host" |record| text(record.request.host());
    Status "status" |record| number(record.status);
    StatusCommon "status_common" |record| Value::Number(record.status.unwrap_or(NO_RESPONSE).into());
    Reason "reason" |record| text(record.cause.map_or("", |cause| cause.reason().code()).as_bytes());
    Detail "detail" |record| detail(record.cause);
    Pool "pool" |record| text(record.server.map_or("", |server| server.pool).as_bytes());
    Server "server" |record| text(record.server.map_or("", |server| server.name).as_bytes());
    ServerAddress "server_address" |record| record.server.map_or(Value::None, |server| Value::Server(server.address));
    Retries "retries" |record| Value::Number(record.retries.into());
    RequestBytes "request_bytes" |record| Value::Number(record.request_bytes);
    ResponseBytes "response_bytes" |record| Value::Number(record.response_bytes);
    BytesIn "bytes_in" |record| Value::Number(record.request_bytes);
    BytesOut "bytes_out" |record| Value::Number(record.response_bytes);
    Connected "connected" |record| seconds(record.connected);
    FirstByte "first_byte" |record| seconds(record.first_byte);
    Duration "duration" |record| Value::Seconds(record.duration);
    Tls "tls" |record| text(record.tls.unwrap_or_default().as_bytes());
    Sni "sni" |record| text(record.sni.unwrap_or_default().as_bytes());
    UserAgent "user_agent" |record| text(record.request.user_agent());
    Referer "referer" |record| text(record.request.referer());
}

/// Status in NCSA formats of a request without a response, as nginx logs it. Programs that read these formats
/// require a number.
const NO_RESPONSE: u16 = 499;

fn text(value: &[u8]) -> Value<'_> {
    if value.is_empty() { Value::None } else { Value::Text(value) }
}

fn detail<'a>(cause: Option<Cause>) -> Value<'a> {
    match cause.map(Cause::detail) {
        None | Some(reason::Detail::None) => Value::None,
        Some(detail) => Value::Detail(detail),
    }
}

fn number<'a>(value: Option<u16>) -> Value<'a> {
    value.map_or(Value::None, |value| Value::Number(value.into()))
}

pub(super) fn seconds<'a>(value: Option<Duration>) -> Value<'a> {
    value.map_or(Value::None, Value::Seconds)
}

fn request_line<'a>(record: &Record<'a>) -> Value<'a> {
    let request = record.request;
    if request.method().is_empty() {
        return text(request.malformed());
    }
    Value::RequestLine(request.method(), request.target(), request.protocol())
}

impl Field {
    /// Returns the field with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }
}

/// Appends seconds with their microseconds.
pub(super) fn write_seconds(time: Duration, line: &mut Vec<u8>) {
    let _ = write!(line, "{}.{:06}", time.as_secs(), time.subsec_micros());
}

/// Appends a time as in RFC 3339, in UTC with milliseconds.
pub(super) fn write_time(time: Duration, line: &mut Vec<u8>) {
    let Moment { year, month, day, hour, minute, second } = Moment::of(time);
    let milliseconds = time.subsec_millis();
    let _ =
        write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z");
}

/// Appends a time as in NCSA formats, in UTC.
pub(super) fn write_common_time(time: Duration, line: &mut Vec<u8>) {
    write_date(time, line);
    line.extend_from_slice(b" +0000");
}

/// Appends a time as in the logs of HAProxy, in UTC.
pub(super) fn write_local_time(time: Duration, line: &mut Vec<u8>) {
    write_date(time, line);
    let _ = write!(line, ".{:03}", time.subsec_millis());
}

/// Appends a date with its time to the second.
fn write_date(time: Duration, line: &mut Vec<u8>) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Moment { year, month, day, hour, minute, second } = Moment::of(time);
    let month = MONTHS[(month as usize - 1) % 12];
    let _ = write!(line, "{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02}");
}

/// Date and time in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    /// Converts a time since 1970. Years are counted from March, so that a leap day is the last day of a year.
    fn of(time: Duration) -> Self {
        const DAYS_TO_1970: u64 = 719_468;
        const DAYS_OF_400_YEARS: u64 = 146_097;
        let seconds = time.as_secs();
        let days = seconds / 86_400 + DAYS_TO_1970;
        let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let check = |seconds: u64, expected: &str, common: &str| {
            let (mut line, mut common_line) = (Vec::new(), Vec::new());
            write_time(Duration::from_secs(seconds), &mut line);
            write_common_time(Duration::from_secs(seconds), &mut common_line);
            assert_eq!(String::from_utf8(line).unwrap(), expected);
            assert_eq!(String::from_utf8(common_line).unwrap(), common);
        };
        check(0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000");
        check(951_782_399, "2000-02-28T23:59:59.000Z", "28/Feb/2000:23:59:59 +0000");
        check(951_782_400, "2000-02-29T00:00:00.000Z", "29/Feb/2000:00:00:00 +0000");
        check(1_709_251_199, "2024-02-29T23:59:59.000Z", "29/Feb/2024:23:59:59 +0000");
        check(1_764_364_609, "2025-11-28T21:16:49.000Z", "28/Nov/2025:21:16:49 +0000");
        check(4_102_444_799, "2099-12-31T23:59:59.000Z", "31/Dec/2099:23:59:59 +0000");
        check(4_107_542_400, "2100-03-01T00:00:00.000Z", "01/Mar/2100:00:00:00 +0000");
    }
}
