//! The log of the program: events as lines, as text for people or as JSON for other programs.

mod bunyan;
mod syslog;

pub(crate) use syslog::Syslog;

use crate::output::is_unprintable;
use bunyan::Bunyan;
use clap::ValueEnum;
use evener_core::event::{Event, Level};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Lines in the system's log, through /dev/log.
    Syslog,
    /// One JSON object per line on standard output, in the format of npm bunyan.
    Bunyan,
}

/// Lowest level of events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// All events.
    Debug,
    /// Changes of state, and all below.
    Info,
    /// Events that an operator should act on, and failures.
    Warn,
    /// Failures.
    Error,
    /// No events.
    Off,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Off];

    fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|level| *level as u8 == number).unwrap_or(Self::Info)
    }

    fn includes(self, level: Level) -> bool {
        match self {
            Self::Debug => true,
            Self::Info => level >= Level::Info,
            Self::Warn => level >= Level::Warn,
            Self::Error => level >= Level::Error,
            Self::Off => false,
        }
    }
}

/// Maximum number of queued lines. Further lines are dropped, and their number is logged.
const LINES_MAX: usize = 8192;
/// Time limit for the last lines at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The log: standard error, standard output (bunyan) or the system's log. A separate thread writes it, because
/// its reader may stall.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    format: LogFormat,
    level: Arc<AtomicU8>,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    lines: SyncSender<Line>,
    bunyan: Bunyan,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum Line {
    Text(Level, String),
    /// Reports that all earlier lines are written.
    Flush(SyncSender<()>),
}

impl Log {
    pub(crate) fn new(format: LogFormat, level: LogLevel) -> Self {
        Self::named("evener", format, level)
    }

    /// Creates a log for a program with this name in the system's log.
    pub(crate) fn named(program: &'static str, format: LogFormat, level: LogLevel) -> Self {
        let (lines, waiting) = sync_channel::<Line>(LINES_MAX);
        let mut syslog = (format == LogFormat::Syslog).then(|| Syslog::open(program));
        // If the thread cannot start, nothing is logged, and balancing continues.
        let _ = std::thread::Builder::new().name("log".into()).spawn(move || {
            for line in waiting {
                match line {
                    Line::Text(level, text) => match &mut syslog {
                        Some(syslog) => syslog.log_at(level, &text),
                        None if format == LogFormat::Bunyan => {
                            let mut stdout = std::io::stdout().lock();
                            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
                        }
                        None => drop(std::io::stderr().lock().write_all(text.as_bytes())),
                    },
                    Line::Flush(done) => drop(done.send(())),
                }
            }
        });
        Self {
            format,
            level: Arc::new(AtomicU8::new(level as u8)),
            writer: Arc::new(Writer { lines, bunyan: Bunyan::new(program), dropped: AtomicU64::new(0) }),
        }
    }

    /// Sets the lowest level of events that are logged.
    pub(crate) fn set_level(&self, level: LogLevel) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    /// Returns whether events of a level are logged.
    pub(crate) fn includes(&self, level: Level) -> bool {
        LogLevel::from_number(self.level.load(Ordering::Relaxed)).includes(level)
    }

    /// Logs an event if its level is enabled. Never waits.
    pub(crate) fn event(&self, event: &Event) {
        if !self.includes(event.level()) {
            return;
        }
        let dropped = self.writer.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!("{dropped} lines were not logged: the reader of the log is too slow");
            self.write(&Event::Notice { text }, dropped);
        }
        self.write(event, 1);
    }

    /// Queues the line of an event. If the queue is full, `lost_lines` more lines count as dropped.
    fn write(&self, event: &Event, lost_lines: u64) {
        let now = SystemTime::now();
        let line = match self.format {
            LogFormat::Text => text_line(event, now, std::io::stderr().is_terminal()),
            LogFormat::Json => json_line(event, now),
            LogFormat::Syslog => syslog_line(event),
            LogFormat::Bunyan => match self.writer.bunyan.line(event, now) {
                Some(line) => line,
                None => return,
            },
        };
        if self.writer.lines.try_send(Line::Text(event.level(), line)).is_err() {
            self.writer.dropped.fetch_add(lost_lines, Ordering::Relaxed);
        }
    }

    /// Waits until queued lines are written, up to the time limit.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.writer.lines.try_send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
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
    add_fields(&mut line, event);
    line.push('\n');
    line
}

fn add_fields(line: &mut String, event: &Event) {
    event.fields(&mut |name, value| add_field(line, name, &value.to_string()));
}

/// Adds a field to a line of text. Its value is quoted if it is not one word.
pub(crate) fn add_field(line: &mut String, name: &str, value: &str) {
    let quoted =
        value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"' || is_unprintable(c));
    let _ = if quoted { write!(line, " {name}={value:?}") } else { write!(line, " {name}={value}") };
}

/// Returns a line without its time, which the system's log adds.
fn syslog_line(event: &Event) -> String {
    let mut line = format!("{} {}", event.level().name(), event.name());
    add_fields(&mut line, event);
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
        let event = Event::ServerDown {
            pool: "web".into(),
            server: "a:1".into(),
            reason: "no \"response\"\n".into(),
        };
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(
            text_line(&event, now, false),
            "1970-01-01T00:00:00.000Z warn  server_down pool=web server=a:1 reason=\"no \\\"response\\\"\\n\"\n"
        );
        let json: Value = serde_json::from_str(&json_line(&event, now)).expect("the line is JSON");
        assert_eq!((&json["event"], &json["reason"]), (&"server_down".into(), &"no \"response\"\n".into()));
    }
}
