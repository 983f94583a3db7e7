//! Formats with placeholders: `{client} "{request}" {status}`, or codes of HAProxy and nginx.

use super::Record;
use super::codes::{Code, HAPROXY, NGINX, Syntax, names};
use super::escape::{self, Context};
use super::field::{Field, Value, write_common_time, write_local_time, write_seconds, write_time};
use std::io::Write;
use thiserror::Error;

/// Format with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Code(Code, Context),
}

/// Error in a format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// No field has the name of a placeholder.
    #[error("unknown placeholder `{{{0}}}`")]
    Unknown(String),
    /// No code of HAProxy or nginx that has a counterpart here.
    #[error("unknown code `{code}`: these codes of {program} are known: {known}")]
    UnknownCode {
        /// The code, with its sign.
        code: String,
        /// `HAProxy` or `nginx`.
        program: &'static str,
        /// All known codes.
        known: String,
    },
    /// A placeholder does not end.
    #[error("`{{` without `}}`: write {{{{ for a brace")]
    Unclosed,
    /// A closing brace does not belong to a placeholder.
    #[error("`}}` without `{{`: write }}}} for a brace")]
    Unopened,
    /// The format has no placeholder.
    #[error("it has no placeholder such as {{status}}")]
    NoPlaceholder,
    /// The format contains a line end or another control character.
    #[error("it contains a control character: each request has one line")]
    Control,
}

impl Template {
    /// Parses a format: with fields in braces, with codes of HAProxy (`%ci`) or with variables of nginx
    /// (`$remote_addr`). `{{` and `}}` are braces, `%%` is a percent sign.
    ///
    /// # Errors
    /// The first error in the format.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.chars().any(|character| character.is_control() && character != '\t') {
            return Err(TemplateError::Control);
        }
        let parts = match Syntax::of(text) {
            Syntax::Braces => parse_fields(text)?,
            syntax => parse_codes(text, syntax)?,
        };
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Returns the format as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Appends the text of a request.
    pub(super) fn write(&self, record: &Record<'_>, line: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => line.extend_from_slice(text),
                Part::Code(code, context) => write_value(code.value(record), *context, line),
            }
        }
    }
}

/// The parts of a format, while it is parsed.
struct Parts {
    parts: Vec<Part>,
    literal: Vec<u8>,
    context: Context,
}

impl Parts {
    fn new() -> Self {
        Self { parts: Vec::new(), literal: Vec::new(), context: Context::Bare }
    }

    fn add(&mut self, code: Code, context: Context) {
        if !self.literal.is_empty() {
            self.parts.push(Part::Literal(std::mem::take(&mut self.literal)));
        }
        self.parts.push(Part::Code(code, context));
    }

    fn add_literal(&mut self, character: char) {
        if character == '"' {
            self.context = if self.context == Context::Bare { Context::Quoted } else { Context::Bare };
        }
        self.literal.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn finish(mut self) -> Result<Vec<Part>, TemplateError> {
        if self.parts.is_empty() {
            return Err(TemplateError::NoPlaceholder);
        }
        if !self.literal.is_empty() {
            self.parts.push(Part::Literal(self.literal));
        }
        Ok(self.parts)
    }
}

/// Parses a format with fields in braces.
fn parse_fields(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Parts::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        rest = match character {
            '{' | '}' if after.starts_with(character) => {
                parts.add_literal(character);
                &after[1..]
            }
            '{' => {
                let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
                let field = Field::named(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
                parts.add(Code::Field(field), parts.context);
                after
            }
            '}' => return Err(TemplateError::Unopened),
            _ => {
                parts.add_literal(character);
                after
            }
        };
    }
    parts.finish()
}

/// Parses a format with codes of another program.
fn parse_codes(text: &str, syntax: Syntax) -> Result<Vec<Part>, TemplateError> {
    let (sign, program, codes) = match syntax {
        Syntax::Nginx => ('$', "nginx", NGINX),
        Syntax::Haproxy | Syntax::Braces => ('%', "HAProxy", HAPROXY),
    };
    let unknown = |code: &str| TemplateError::UnknownCode {
        code: format!("{sign}{code}"),
        program,
        known: names(sign, codes),
    };
    let mut parts = Parts::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        if character != sign || (sign == '%' && after.starts_with('%')) {
            parts.add_literal(character);
            rest = if character == sign { &after[1..] } else { after };
            continue;
        }
        // `%{+Q}r` is quoted, and `${status}` is `$status`.
        let (braced, after_braces) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}').ok_or(TemplateError::Unclosed)?,
            None => ("", after),
        };
        let (name, next) = match (sign, braced) {
            ('$', "") | ('%', _) => code_at(after_braces, sign),
            _ => (braced, after_braces),
        };
        let code = codes.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
        let code = code.ok_or_else(|| unknown(name))?;
        let is_quoted = sign == '%' && braced.contains("+Q");
        if is_quoted {
            parts.add_literal('"');
        }
        parts.add(code, parts.context);
        if is_quoted {
            parts.add_literal('"');
        }
        rest = next;
    }
    parts.finish()
}

/// Divides a text after its sign into the name of a code and the rest.
fn code_at(text: &str, sign: char) -> (&str, &str) {
    let end = if sign == '%' && text.starts_with('[') {
        text.find(']').map_or(text.len(), |end| end + 1)
    } else {
        let is_other = |character: char| {
            !character.is_ascii_alphabetic() && (sign == '%' || !matches!(character, '_' | '0'..='9'))
        };
        text.find(is_other).unwrap_or(text.len())
    };
    text.split_at(end)
}

fn write_value(value: Value<'_>, context: Context, line: &mut Vec<u8>) {
    match value {
        Value::None => line.push(b'-'),
        Value::Text(text) => escape::text(text, context, line),
        Value::RequestLine(method, target, protocol) => {
            escape::text(method, context, line);
            escape::text(b" ", context, line);
            escape::text(target, context, line);
            escape::text(b" ", context, line);
            escape::text(protocol, context, line);
        }
        Value::Number(number) => drop(write!(line, "{number}")),
        Value::Seconds(time) => write_seconds(time, line),
        Value::Milliseconds(time) => {
            let _ = match time {
                Some(time) => write!(line, "{}", time.as_millis()),
                None => write!(line, "-1"),
            };
        }
        Value::Thousandths(time) => drop(write!(line, "{}.{:03}", time.as_secs(), time.subsec_millis())),
        Value::Address(address) => drop(write!(line, "{}", address.to_canonical())),
        Value::Server(target) => escape::text(target.to_string().as_bytes(), context, line),
        Value::Detail(detail) => escape::text(detail.to_string().as_bytes(), context, line),
        Value::Time(time) => write_time(time, line),
        Value::CommonTime(time) => write_common_time(time, line),
        Value::LocalTime(time) => write_local_time(time, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_formats_are_found() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Template::parse(text).unwrap_err().to_string(), expected, "{text:?}");
        };
        check("{clinet}", "unknown placeholder `{clinet}`");
        check("{}", "unknown placeholder `{}`");
        check("{status", "`{` without `}`: write {{ for a brace");
        check("{status} }", "`}` without `{`: write }} for a brace");
        check("{{status}}", "it has no placeholder such as {status}");
        check("", "it has no placeholder such as {status}");
        check("{status}\n", "it contains a control character: each request has one line");
        assert_eq!(Template::parse("{status}\t{{}}").unwrap().text(), "{status}\t{{}}");
    }
}
