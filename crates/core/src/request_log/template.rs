//! Formats with placeholders: `{client} "{request}" {status}`.

use super::Record;
use super::escape::{self, Context};
use super::field::{Field, Value, write_common_time, write_seconds, write_time};
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
    Field(Field, Context),
}

/// Error in a format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// No field has the name of a placeholder.
    #[error("unknown placeholder `{{{0}}}`")]
    Unknown(String),
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
    /// Parses a format. `{{` and `}}` are braces.
    ///
    /// # Errors
    /// The first error in the format.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.chars().any(|character| character.is_control() && character != '\t') {
            return Err(TemplateError::Control);
        }
        let (mut parts, mut literal, mut context) = (Vec::new(), Vec::new(), Context::Bare);
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let after = &rest[character.len_utf8()..];
            rest = match character {
                '{' | '}' if after.starts_with(character) => {
                    literal.push(character as u8);
                    &after[1..]
                }
                '{' => {
                    let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
                    let field = Field::named(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Field(field, context));
                    after
                }
                '}' => return Err(TemplateError::Unopened),
                _ => {
                    if character == '"' {
                        context = if context == Context::Bare { Context::Quoted } else { Context::Bare };
                    }
                    literal.extend_from_slice(&rest.as_bytes()[..character.len_utf8()]);
                    after
                }
            };
        }
        if parts.is_empty() {
            return Err(TemplateError::NoPlaceholder);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
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
                Part::Field(field, context) => write_value(field.value(record), *context, line),
            }
        }
    }
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
        Value::Address(address) => drop(write!(line, "{}", address.to_canonical())),
        Value::Server(target) => escape::text(target.to_string().as_bytes(), context, line),
        Value::Detail(detail) => escape::text(detail.to_string().as_bytes(), context, line),
        Value::Time(time) => write_time(time, line),
        Value::CommonTime(time) => write_common_time(time, line),
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
