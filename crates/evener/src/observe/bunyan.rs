//! Log lines for the tools of bunyan (npm bunyan, log format version 0): one JSON object per line, on standard
//! output.

use evener_core::event::{Event, Level};
use serde_json::{Map, Value};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Minimum interval between lines about clients without a server, as in mname-balancer.
const NO_SERVER_EVERY: Duration = Duration::from_secs(5);

/// Formatter of lines, with the fields that all lines have.
#[derive(Debug)]
pub(super) struct Bunyan {
    program: &'static str,
    hostname: String,
    no_server_at: Mutex<Option<SystemTime>>,
}

impl Bunyan {
    pub(super) fn new(program: &'static str) -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { program, hostname: hostname.trim().to_owned(), no_server_at: Mutex::new(None) }
    }

    /// Returns the line of an event. Returns `None` for an [`Event::NoServer`] less than [`NO_SERVER_EVERY`]
    /// after the last one that was logged.
    pub(super) fn line(&self, event: &Event, now: SystemTime) -> Option<String> {
        if matches!(event, Event::NoServer { .. }) && !self.may_log_no_server(now) {
            return None;
        }
        let mut object = Map::new();
        event.fields(&mut |name, value| drop(object.insert(name.into(), Value::String(value.to_string()))));
        let msg = match event {
            Event::NoServer { .. } => "No backends available".to_owned(),
            Event::Notice { text } => text.clone(),
            event => event.name().replace('_', " "),
        };
        let core: [(&str, Value); 8] = [
            ("name", self.program.into()),
            ("hostname", self.hostname.as_str().into()),
            ("pid", std::process::id().into()),
            ("level", number(event.level()).into()),
            ("event", event.name().into()),
            ("msg", msg.into()),
            ("time", humantime::format_rfc3339_millis(now).to_string().into()),
            ("v", 0.into()),
        ];
        // These fields are inserted last, so that no field of an event replaces them.
        core.into_iter().for_each(|(name, value)| drop(object.insert(name.into(), value)));
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        Some(line)
    }

    fn may_log_no_server(&self, now: SystemTime) -> bool {
        let mut logged = self.no_server_at.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back does not suppress lines.
        let recently =
            |logged: SystemTime| now.duration_since(logged).is_ok_and(|since| since < NO_SERVER_EVERY);
        let may = !logged.is_some_and(recently);
        if may {
            *logged = Some(now);
        }
        may
    }
}

/// Returns the number of a level in bunyan.
const fn number(level: Level) -> u8 {
    match level {
        Level::Debug => 20,
        Level::Info => 30,
        Level::Warn => 40,
        Level::Error => 50,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bunyan: &Bunyan, event: &Event, seconds: u64) -> Option<Value> {
        let line = bunyan.line(event, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))?;
        assert_eq!(line.matches('\n').count(), 1);
        Some(serde_json::from_str(&line).unwrap())
    }

    #[test]
    fn a_line_has_the_fields_of_bunyan() {
        let bunyan = Bunyan::new("mname-balancer");
        let down =
            Event::ServerDown { pool: "mname".into(), server: "5300".into(), reason: "no\nanswer".into() };
        let logged_line = line(&bunyan, &down, 0).unwrap();
        let expected = serde_json::json!({
            "name": "mname-balancer", "hostname": bunyan.hostname, "pid": std::process::id(), "level": 40,
            "msg": "server down", "event": "server_down", "time": "1970-01-01T00:00:00.000Z", "v": 0,
            "pool": "mname", "server": "5300", "reason": "no\nanswer",
        });
        assert_eq!(logged_line, expected);
        let started =
            Event::Started { version: "1", pid: 1, workers: 1, driver: "epoll", services: 1, pools: 1 };
        let logged_line = line(&bunyan, &started, 0).unwrap();
        assert_eq!((&logged_line["pid"], &logged_line["level"]), (&std::process::id().into(), &30.into()));
    }

    #[test]
    fn no_server_is_logged_once_in_five_seconds() {
        let bunyan = Bunyan::new("mname-balancer");
        let none = Event::NoServer { service: "dns".into(), reason: "down".into() };
        let logged = |seconds| line(&bunyan, &none, seconds).map(|line| line["msg"].clone());
        let results: Vec<bool> = [10, 11, 14, 15, 16, 5].map(|seconds| logged(seconds).is_some()).into();
        assert_eq!(results, [true, false, false, true, false, true]);
        assert_eq!(logged(20), Some("No backends available".into()));
        let other = Event::PoolDown { pool: "mname".into() };
        assert!(line(&bunyan, &other, 20).is_some() && line(&bunyan, &other, 20).is_some());
    }
}
