//! Codes of the formats of other programs: `%ci` of HAProxy's `log-format`, `$remote_addr` of nginx's `log_format`.

use super::Record;
use super::field::{Field, Value, seconds};

/// Value that a code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// A field as it is.
    Field(Field),
    /// A time in milliseconds, -1 without one.
    Milliseconds(Field),
    /// A time in seconds with three digits after the point.
    Thousandths(Field),
    /// Milliseconds from the connection to the server until its first byte, -1 without one.
    Response,
    /// The time of a request as HAProxy writes it: `28/Nov/2026:21:41:47.308`.
    LocalTime,
    /// The user of basic authentication, which is not logged.
    NoUser,
}

/// Codes of HAProxy, without `%`.
pub(super) const HAPROXY: &[(&str, Code)] = &[
    ("ci", Code::Field(Field::Client)),
    ("cp", Code::Field(Field::ClientPort)),
    ("f", Code::Field(Field::Service)),
    ("ft", Code::Field(Field::Service)),
    ("b", Code::Field(Field::Pool)),
    ("s", Code::Field(Field::Server)),
    ("ST", Code::Field(Field::Status)),
    ("B", Code::Field(Field::ResponseBytes)),
    ("U", Code::Field(Field::RequestBytes)),
    ("r", Code::Field(Field::Request)),
    ("HM", Code::Field(Field::Method)),
    ("HU", Code::Field(Field::Target)),
    ("HV", Code::Field(Field::Protocol)),
    ("rc", Code::Field(Field::Retries)),
    ("t", Code::LocalTime),
    ("tr", Code::LocalTime),
    ("T", Code::Field(Field::TimeCommon)),
    ("trg", Code::Field(Field::TimeCommon)),
    ("Ts", Code::Field(Field::Epoch)),
    ("Tc", Code::Milliseconds(Field::Connected)),
    ("Tr", Code::Response),
    ("Ta", Code::Milliseconds(Field::Duration)),
    ("Tt", Code::Milliseconds(Field::Duration)),
    ("sslv", Code::Field(Field::Tls)),
    ("[ssl_fc_sni]", Code::Field(Field::Sni)),
];

/// Variables of nginx, without `$`.
pub(super) const NGINX: &[(&str, Code)] = &[
    ("remote_addr", Code::Field(Field::Client)),
    ("remote_port", Code::Field(Field::ClientPort)),
    ("remote_user", Code::NoUser),
    ("time_local", Code::Field(Field::TimeCommon)),
    ("time_iso8601", Code::Field(Field::Time)),
    ("request", Code::Field(Field::Request)),
    ("request_method", Code::Field(Field::Method)),
    ("request_uri", Code::Field(Field::Target)),
    ("server_protocol", Code::Field(Field::Protocol)),
    ("host", Code::Field(Field::Host)),
    ("http_host", Code::Field(Field::Host)),
    ("status", Code::Field(Field::StatusCommon)),
    ("body_bytes_sent", Code::Field(Field::ResponseBytes)),
    ("bytes_sent", Code::Field(Field::ResponseBytes)),
    ("bytes_received", Code::Field(Field::RequestBytes)),
    ("http_referer", Code::Field(Field::Referer)),
    ("http_user_agent", Code::Field(Field::UserAgent)),
    ("request_time", Code::Thousandths(Field::Duration)),
    ("session_time", Code::Thousandths(Field::Duration)),
    ("upstream_addr", Code::Field(Field::ServerAddress)),
    ("upstream_connect_time", Code::Thousandths(Field::Connected)),
    ("upstream_header_time", Code::Thousandths(Field::FirstByte)),
    ("upstream_response_time", Code::Thousandths(Field::Duration)),
    ("ssl_protocol", Code::Field(Field::Tls)),
    ("ssl_server_name", Code::Field(Field::Sni)),
    ("proxy_host", Code::Field(Field::Pool)),
    ("server_name", Code::Field(Field::Service)),
];

/// Syntax of the placeholders of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `{client}`
    Braces,
    /// `%ci`
    Haproxy,
    /// `$remote_addr`
    Nginx,
}

impl Syntax {
    /// Returns the syntax of a format. One with fields in braces has no codes of other programs.
    pub(super) fn of(text: &str) -> Self {
        let has = |sign: char, is_next: fn(char) -> bool| {
            let mut rest = text.split(sign);
            let _ = rest.next();
            rest.any(|after| after.chars().next().is_some_and(is_next))
        };
        let mut before = ' ';
        let has_braces = text.chars().any(|character| {
            let is_field = character == '{' && !matches!(before, '%' | '$');
            before = character;
            is_field
        });
        if has_braces {
            Self::Braces
        } else if has('$', |next| next.is_ascii_alphabetic() || next == '{') {
            Self::Nginx
        } else if has('%', |next| next.is_ascii_alphabetic() || matches!(next, '{' | '[')) {
            Self::Haproxy
        } else {
            Self::Braces
        }
    }
}

impl Code {
    /// Returns the value of a request.
    pub(super) fn value<'a>(self, record: &Record<'a>) -> Value<'a> {
        match self {
            Self::Field(field) => field.value(record),
            Self::Milliseconds(field) => match field.value(record) {
                Value::Seconds(time) => Value::Milliseconds(Some(time)),
                _ => Value::Milliseconds(None),
            },
            Self::Thousandths(field) => match field.value(record) {
                Value::Seconds(time) => Value::Thousandths(time),
                other => other,
            },
            Self::Response => match (seconds(record.connected), seconds(record.first_byte)) {
                (Value::Seconds(from), Value::Seconds(until)) => {
                    Value::Milliseconds(Some(until.saturating_sub(from)))
                }
                _ => Value::Milliseconds(None),
            },
            Self::LocalTime => Value::LocalTime(record.received_at),
            Self::NoUser => Value::None,
        }
    }
}

/// Returns the names of codes, for a message.
pub(super) fn names(sign: char, codes: &[(&str, Code)]) -> String {
    codes.iter().map(|(name, _)| format!("{sign}{name}")).collect::<Vec<_>>().join(" ")
}
