//! Lines of JSON. All fields are always present; `null` means that the request has no such value.

use super::Record;
use super::escape;
use super::field::{Field, Value, write_common_time, write_seconds, write_time};
use std::io::Write;

/// Fields in JSON, in their order.
const FIELDS: [Field; 25] = [
    Field::Time,
    Field::Service,
    Field::Client,
    Field::ClientPort,
    Field::Method,
    Field::Target,
    Field::Protocol,
    Field::Malformed,
    Field::Host,
    Field::Status,
    Field::Reason,
    Field::Detail,
    Field::Pool,
    Field::Server,
    Field::ServerAddress,
    Field::Retries,
    Field::RequestBytes,
    Field::ResponseBytes,
    Field::Connected,
    Field::FirstByte,
    Field::Duration,
    Field::Tls,
    Field::Sni,
    Field::UserAgent,
    Field::Referer,
];

/// Appends the object of a request.
pub(super) fn write(record: &Record<'_>, line: &mut Vec<u8>) {
    for (index, field) in FIELDS.into_iter().enumerate() {
        line.push(if index == 0 { b'{' } else { b',' });
        let _ = write!(line, "\"{}\":", field.name());
        write_value(field.value(record), line);
    }
    line.push(b'}');
}

fn write_value(value: Value<'_>, line: &mut Vec<u8>) {
    let quoted = |line: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>)| {
        line.push(b'"');
        write(line);
        line.push(b'"');
    };
    match value {
        Value::None | Value::Milliseconds(None) => line.extend_from_slice(b"null"),
        Value::Text(text) => escape::json(text, line),
        Value::RequestLine(method, target, protocol) => {
            escape::json(&[method, target, protocol].join(&b' '), line);
        }
        Value::Number(number) => drop(write!(line, "{number}")),
        Value::Seconds(time) | Value::Thousandths(time) | Value::Milliseconds(Some(time)) => {
            write_seconds(time, line);
        }
        Value::Address(address) => drop(write!(line, "\"{}\"", address.to_canonical())),
        Value::Server(target) => escape::json(target.to_string().as_bytes(), line),
        Value::Detail(detail) => escape::json(detail.to_string().as_bytes(), line),
        Value::Time(time) => quoted(line, &|line| write_time(time, line)),
        Value::CommonTime(time) | Value::LocalTime(time) => {
            quoted(line, &|line| write_common_time(time, line));
        }
    }
}
