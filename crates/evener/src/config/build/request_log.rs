//! Reads `request_log`: a file, or a table with a destination, a format and a sample.

use crate::config::fields::Fields;
use crate::config::hints::{nearest, nearest_text, one_of};
use crate::config::raw::Value;
use evener_core::request_log::{Field, RequestLogFormat, Template, TemplateError};
use evener_core::spec::{LogDestination, Protocol, RequestLog};
use std::sync::Arc;

/// Forms of `request_log`, for messages.
const FORMS: &str = "{ file = \"requests.log\", format = \"json\" }";

/// Reads `request_log = "requests.log"`, or `{ file = "requests.log", format = "json" }`, or
/// `{ udp = "10.0.0.9:10000" }`.
pub(super) fn read(fields: &mut Fields<'_>, protocol: Protocol) -> Option<RequestLog> {
    let log = match fields.take("request_log")? {
        Value::Text(file) => RequestLog::new(read_file(fields, "request_log", file), protocol),
        Value::Table(table) => {
            let mut nested = fields.within("request_log", table);
            let destination = read_destination(&mut nested);
            let format = read_format(&mut nested, protocol);
            let sample = read_sample(&mut nested);
            nested.finish();
            let log = RequestLog::new(destination?, protocol);
            let log = format.map_or(log.clone(), |format| RequestLog { format, ..log });
            if sample.is_some() && log.format == RequestLogFormat::Pen {
                fields.problem_here(
                    "request_log.sample is not available with the format \"pen\": write format = \"text\" or \"json\"",
                );
            }
            RequestLog { sample: sample.unwrap_or(RequestLog::ALL), ..log }
        }
        _ => {
            fields.must("request_log", format!("be a file or a table such as {FORMS}"));
            return None;
        }
    };
    Some(log)
}

/// Returns the destination for the name of a file. `-` is the standard output.
fn read_file(fields: &Fields<'_>, key: &str, file: &str) -> LogDestination {
    LogDestination::File(if file == "-" { "/dev/stdout".into() } else { fields.path_of(key, file).into() })
}

fn read_destination(nested: &mut Fields<'_>) -> Option<LogDestination> {
    let (file, address, syslog) = (nested.text("file"), nested.text("udp"), nested.path("syslog"));
    match (file, address, syslog) {
        (Some(_), Some(_), _) => {
            nested.problem_here("request_log has a file and an address: remove `file` or `udp`");
            None
        }
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
            nested.problem_here(
                "request_log has several destinations: remove all but one of `file`, `udp`, `syslog`",
            );
            None
        }
        (None, None, Some(path)) => Some(LogDestination::Syslog(path.into())),
        (Some(file), None, None) => Some(read_file(nested, "file", file)),
        (None, Some(address), None) => {
            let parsed = address.parse().map(LogDestination::Udp);
            if parsed.is_err() {
                nested.must("udp", "be an address such as \"10.0.0.9:10000\"");
            }
            parsed.ok()
        }
        (None, None, None) => {
            let is_wrong = nested.has("file") || nested.has("udp") || nested.has("syslog");
            nested.take("format");
            nested.take("sample");
            if !is_wrong && !nested.has_unknown_keys() {
                nested.problem_here(format!(
                    "request_log has no destination: write {FORMS} or {{ udp = \"10.0.0.9:10000\" }}"
                ));
            }
            None
        }
    }
}

/// Reads the share that is logged, as millionths.
fn read_sample(nested: &mut Fields<'_>) -> Option<u32> {
    let share = nested.share("sample")?;
    let millionths = (share * f64::from(RequestLog::ALL)).round() as u32;
    if millionths == 0 {
        nested.must("sample", "be between 0.000001 and 1");
        return None;
    }
    Some(millionths)
}

fn read_format(nested: &mut Fields<'_>, protocol: Protocol) -> Option<RequestLogFormat> {
    let text = nested.text("format")?;
    let of_protocol = RequestLogFormat::of_protocol(text, protocol);
    let format = match of_protocol {
        Some(format) => format,
        None if RequestLogFormat::NAMES.contains(&text) => {
            let message = match text {
                "pen" => "\"pen\" needs protocol = \"tcp\" or \"http\"".to_owned(),
                _ => format!(
                    "\"{text}\" needs protocol = \"http\": write \"text\", \"json\" or a text with placeholders"
                ),
            };
            nested.problem_with("format", message);
            return None;
        }
        None => match Template::parse(text) {
            Ok(template) => RequestLogFormat::Template(Arc::new(template)),
            Err(error) => {
                nested.problem_with("format", explained(text, &error));
                return None;
            }
        },
    };
    Some(format)
}

/// Returns the message about a format that is neither a name nor valid placeholders.
fn explained(text: &str, error: &TemplateError) -> String {
    match error {
        TemplateError::Unknown(name) => {
            let names = Field::ALL.iter().map(|field| field.name());
            let known: Vec<String> = names.clone().map(|name| format!("{{{name}}}")).collect();
            let near = nearest(name, names);
            let list = if near.is_empty() { "; the placeholders are" } else { " The placeholders are" };
            format!("has an {error}{near}{list} {}", known.join(", "))
        }
        TemplateError::NoPlaceholder => {
            let names = RequestLogFormat::NAMES;
            let list = one_of(&names, "a text with placeholders such as \"{client} {status}\"");
            format!("must be {list}, got {text:?}{}", nearest_text(text, names.into_iter()))
        }
        _ => format!("is not valid: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_describes_every_field_and_format() {
        let text = include_str!("../../../../../docs/operating.md");
        let start = text.find("## Request logs").expect("a section about request logs");
        let section = text[start..].split("\n## ").next().unwrap_or_default();
        for field in Field::ALL {
            let is_described = |line: &str| {
                let names = line.strip_prefix("| ").and_then(|row| row.split(" |").next());
                names.is_some_and(|names| names.split(", ").any(|name| name == format!("`{}`", field.name())))
            };
            assert!(section.lines().any(is_described), "{} is missing", field.name());
        }
        for name in RequestLogFormat::NAMES {
            assert!(section.contains(&format!("`\"{name}\"`")), "{name} is missing");
        }
    }
}
