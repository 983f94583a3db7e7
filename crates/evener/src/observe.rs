//! What the program says of itself: events as log lines, in text for people or in JSON for machines.

use clap::ValueEnum;
use evener_core::event::{Event, Level};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::SystemTime;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// From which level on events are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Everything.
    Debug,
    /// Changes of state.
    Info,
    /// What an operator should act on.
    Warn,
    /// What does not work.
    Error,
    /// Nothing.
    Off,
}

impl LogLevel {
    fn shows(self, level: Level) -> bool {
        match self {
            Self::Debug => true,
            Self::Info => level >= Level::Info,
            Self::Warn => level >= Level::Warn,
            Self::Error => level >= Level::Error,
            Self::Off => false,
        }
    }
}

/// Where events go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: LogLevel,
}

impl Log {
    /// Writes an event to standard error, if its level is shown.
    pub(crate) fn event(self, event: &Event) {
        if !self.level.shows(event.level()) {
            return;
        }
        let now = SystemTime::now();
        let line = match self.format {
            LogFormat::Text => text_line(event, now, std::io::stderr().is_terminal()),
            LogFormat::Json => json_line(event, now),
        };
        // A log that cannot be written is no reason to stop balancing.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

fn text_line(event: &Event, now: SystemTime, colours: bool) -> String {
    let level = event.level();
    let (on, off) = match level {
        _ if !colours => ("", ""),
        Level::Debug => ("\x1b[2m", "\x1b[0m"),
        Level::Info => ("\x1b[32m", "\x1b[0m"),
        Level::Warn => ("\x1b[33m", "\x1b[0m"),
        Level::Error => ("\x1b[31m", "\x1b[0m"),
    };
    let time = humantime::format_rfc3339_millis(now);
    let mut line = format!("{time} {on}{:<5}{off} {}", level.name(), event.name());
    event.fields(&mut |name, value| {
        let value = value.to_string();
        let quoted =
            value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control());
        let _ = if quoted { write!(line, " {name}={value:?}") } else { write!(line, " {name}={value}") };
    });
    line.push('\n');
    line
}

fn json_line(event: &Event, now: SystemTime) -> String {
    let mut object = Map::new();
    object.insert("time".into(), Value::String(humantime::format_rfc3339_millis(now).to_string()));
    object.insert("level".into(), event.level().name().into());
    object.insert("event".into(), event.name().into());
    event.fields(&mut |name, value| drop(object.insert(name.into(), Value::String(value.to_string()))));
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_level_name_and_fields() {
        let event =
            Event::ServerDown { pool: "web".into(), server: "a:1".into(), reason: "no \"answer\"\n".into() };
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(
            text_line(&event, now, false),
            "1970-01-01T00:00:00.000Z warn  server_down pool=web server=a:1 reason=\"no \\\"answer\\\"\\n\"\n"
        );
        let json: Value = serde_json::from_str(&json_line(&event, now)).expect("a line is JSON");
        assert_eq!((&json["event"], &json["reason"]), (&"server_down".into(), &"no \"answer\"\n".into()));
    }
}
