//! Reads the keys of a table one by one, each with its type and bounds. Problems are recorded with their
//! lines, and reading continues. Keys that were not read in the end are unknown.

use super::raw::{Run, Table, Value};
use super::{Location, Problem};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(test)]
thread_local! {
    /// Every key that this thread ever read: the reference must describe all of them.
    pub(super) static READ: RefCell<std::collections::BTreeSet<&'static str>> = const { RefCell::new(std::collections::BTreeSet::new()) };
}

/// Maximum duration in a configuration.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// State that readers share: the run that is read, and the problems found so far.
pub(super) struct Reading<'a> {
    pub(super) run: &'a Run,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(run: &'a Run) -> Self {
        Self { run, problems: RefCell::new(run.problems.clone()) }
    }

    /// Records a problem.
    pub(super) fn problem(&self, location: &Location, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem::at(location, message));
    }

    /// Resolves a path relative to the directory of the file that names it.
    pub(super) fn path(&self, location: &Location, text: &str) -> PathBuf {
        Path::new(&*location.file).parent().unwrap_or(Path::new("")).join(text)
    }

    /// Returns true if there are no problems so far.
    pub(super) fn is_well(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// Reader of one table.
pub(super) struct Fields<'a> {
    reading: &'a Reading<'a>,
    table: &'a Table,
    location: &'a Location,
    /// Path to the table inside the declaration at `location`: keys and texts.
    path: Vec<&'a str>,
    /// Description of the table in messages, such as ``pool `web` ``.
    what: String,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(
        reading: &'a Reading<'a>,
        table: &'a Table,
        location: &'a Location,
        what: String,
    ) -> Self {
        Self { reading, table, location, path: Vec::new(), what, known: Vec::new() }
    }

    /// Returns the state that readers share.
    pub(super) fn reading(&self) -> &'a Reading<'a> {
        self.reading
    }

    /// Returns a reader for a table under `key` of this one.
    pub(super) fn within(&self, key: &'static str, table: &'a Table) -> Self {
        let path = self.path.iter().copied().chain([key]).collect();
        Self { table, path, what: key.into(), known: Vec::new(), ..*self }
    }

    /// Sets the path of the table inside its declaration.
    pub(super) fn inside(mut self, path: &[&'a str]) -> Self {
        self.path = path.to_vec();
        self
    }

    /// Returns the list part.
    pub(super) fn list(&self) -> &'a [Value] {
        &self.table.list
    }

    /// Returns the value of `key`, of any type.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        #[cfg(test)]
        READ.with_borrow_mut(|read| read.insert(key));
        self.table.named.get(key)
    }

    /// Returns true if the table has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.named.contains_key(key)
    }

    /// Returns the location of a key or text of this table.
    pub(super) fn location_of(&self, key: &str) -> Location {
        let path: Vec<&str> = self.path.iter().copied().chain([key]).collect();
        self.reading.run.refine(self.location, &path)
    }

    /// Records a problem with a key or text of this table.
    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let location = self.location_of(key);
        self.reading.problem(&location, message);
    }

    /// Records a problem with a key, in front of which the message names the table.
    pub(super) fn problem_with(&mut self, key: &str, message: impl std::fmt::Display) {
        let message = format!("{}: {message}", self.what);
        self.problem(key, message);
    }

    /// Records a problem with the whole table.
    pub(super) fn problem_here(&mut self, message: impl Into<String>) {
        let location = match self.path.last() {
            Some(_) => self.reading.run.refine(self.location, &self.path),
            None => self.location.clone(),
        };
        self.reading.problem(&location, message);
    }

    fn wrong(&mut self, key: &'static str, value: &Value, wanted: &str) {
        if matches!(value, Value::Unknown) {
            return;
        }
        let message = format!("{}: `{key}` is {}, not {wanted}", self.what, value.kind());
        self.problem(key, message);
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        match self.take(key)? {
            Value::Text(text) => Some(text),
            other => {
                self.wrong(key, other, "a string in quotes");
                None
            }
        }
    }

    /// Reads a string of any bytes.
    pub(super) fn bytes(&mut self, key: &'static str) -> Option<Vec<u8>> {
        match self.take(key)? {
            Value::Text(text) => Some(text.as_bytes().to_vec()),
            Value::Bytes(bytes) => Some(bytes.clone()),
            other => {
                self.wrong(key, other, "a string in quotes");
                None
            }
        }
    }

    pub(super) fn bool(&mut self, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            Value::Bool(value) => Some(*value),
            other => {
                self.wrong(key, other, "true or false");
                None
            }
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.take(key)?;
        let number = match value {
            Value::Int(number) => u32::try_from(*number).ok(),
            _ => None,
        };
        let fits = number.filter(|number| range.contains(number));
        if fits.is_none() {
            let hint =
                if matches!(value, Value::Text(_)) { " (remove the quotes, or use tonumber)" } else { "" };
            self.wrong(
                key,
                value,
                &format!("a whole number from {} to {}{hint}", range.start(), range.end()),
            );
        }
        fits
    }

    pub(super) fn share(&mut self, key: &'static str) -> Option<f64> {
        let value = self.take(key)?;
        let number = match value {
            Value::Int(number) => Some(*number as f64),
            Value::Number(number) => Some(*number),
            _ => None,
        };
        let fits = number.filter(|number| (0.0..=1.0).contains(number));
        if fits.is_none() {
            self.wrong(key, value, "a number from 0 to 1");
        }
        fits
    }

    /// Reads a duration above zero.
    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.take(key)?;
        let duration = parse_duration(value).filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.wrong(key, value, "a duration above zero such as \"500ms\", \"2s\" or \"1h\"");
        }
        duration
    }

    /// Reads a duration, or `false` for none. Returns `Some(None)` for `false`.
    pub(super) fn optional_duration(&mut self, key: &'static str) -> Option<Option<Duration>> {
        let value = self.take(key)?;
        if matches!(value, Value::Bool(false)) {
            return Some(None);
        }
        let duration = parse_duration(value).filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.wrong(key, value, "a duration such as \"2s\" or \"1h\", or false for none");
        }
        duration.map(Some)
    }

    /// Reads a duration that may be zero.
    pub(super) fn duration_or_zero(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.take(key)?;
        let duration = parse_duration(value);
        if duration.is_none() {
            self.wrong(key, value, "a duration such as \"500ms\", \"2s\" or \"0s\"");
        }
        duration
    }

    /// Reads a number of bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let size = parse_size(value).filter(|size| range.contains(size));
        if size.is_none() {
            let (least, most) = (size_text(*range.start()), size_text(*range.end()));
            self.wrong(key, value, &format!("a size such as \"64MiB\", from {least} to {most}"));
        }
        size
    }

    /// Reads a string or a list of strings and parses each one. Each string that is not valid is a problem.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        make: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let items = match value {
            Value::Text(_) => std::slice::from_ref(value),
            Value::Table(table) if table.named.is_empty() => &table.list,
            other => {
                self.wrong(key, other, wanted);
                return None;
            }
        };
        let mut made = Vec::new();
        for item in items {
            let Value::Text(text) = item else {
                self.wrong(key, item, wanted);
                continue;
            };
            match make(text) {
                Ok(item) => made.push(item),
                Err(why) => self.problem(text, format!("{}: {why}", self.what)),
            }
        }
        Some(made)
    }

    /// Reads one value or a list of values.
    pub(super) fn items(&mut self, key: &'static str) -> Option<Vec<&'a Value>> {
        match self.take(key)? {
            Value::Table(table) if table.named.is_empty() => Some(table.list.iter().collect()),
            other => Some(vec![other]),
        }
    }

    /// Reads the path of a file, relative to the configuration.
    pub(super) fn path(&mut self, key: &'static str) -> Option<String> {
        let text = self.text(key)?;
        Some(self.path_of(key, text))
    }

    /// Resolves a path that was read already.
    pub(super) fn path_of(&self, key: &str, text: &str) -> String {
        self.reading.path(&self.location_of(key), text).display().to_string()
    }

    /// Continues with another table, which is inside the path or behind it.
    pub(super) fn turn_to(&mut self, table: &'a Table) {
        self.table = table;
        self.known.clear();
    }

    /// Searches for later locations behind `key`, for at most so many steps.
    pub(super) fn pass(&mut self, key: &'static str, steps_max: usize) {
        if self.path.len() < steps_max {
            self.path.push(key);
        }
    }

    /// Records every key that was not read, with the most similar known key.
    pub(super) fn finish(self) {
        self.note_unknown_keys();
    }

    /// Records unknown keys without ending, for when reading continues with another table.
    pub(super) fn note_unknown_keys(&self) {
        for key in self.table.named.keys().filter(|key| !self.known.contains(&key.as_str())) {
            let location = self.location_of(key);
            let elsewhere = protocol_of(key).filter(|_| self.known.contains(&"protocol"));
            let hint = match elsewhere {
                Some(protocol) => format!("; it needs protocol = \"{protocol}\""),
                None => nearest_key(key, &self.known),
            };
            self.reading.problem(&location, format!("{}: there is no key `{key}`{hint}", self.what));
        }
    }
}

/// Names in the configurations of other programs, with the names here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("bind", "listen"),
    ("address", "listen"),
    ("port", "listen"),
    ("balance", "policy"),
    ("algorithm", "policy"),
    ("lb_policy", "policy"),
    ("maxconn", "connections_max"),
    ("max_conns", "connections_max"),
    ("timeout", "idle_timeout"),
    ("backup", "tier"),
    ("stick", "sticky"),
    ("health_check", "check"),
    ("servers", "a list without a key"),
    ("server", "a list without a key"),
    ("mode", "protocol"),
    ("ssl", "tls"),
    ("crt", "certificate"),
    ("cert", "certificate"),
    ("ssl_certificate", "certificate"),
    ("ssl_certificate_key", "key"),
    ("ca_file", "client_ca"),
    ("cafile", "ca"),
    ("verify", "client_certificate"),
    ("accept_proxy", "proxy_from"),
    ("proxy_protocol", "proxy_from"),
    ("send_proxy_v2", "send_proxy"),
    ("forwardfor", "forwarded"),
    ("x_forwarded_for", "forwarded"),
    ("server_name", "host"),
    ("location", "path"),
    ("timeout_connect", "connect_timeout"),
    ("cookie", "sticky"),
];

/// Keys that only http has.
const OF_HTTP: &[&str] = &[
    "balance_per",
    "forwarded",
    "redirect",
    "health",
    "retries",
    "header_timeout",
    "keepalive_timeout",
    "stall_timeout",
    "min_rate",
    "abort_on_close",
    "response_timeout",
    "header_bytes_max",
    "header_fields_max",
    "certificate_header",
    "http2",
];

/// Returns the protocol whose services have the key, if only one has it.
fn protocol_of(key: &str) -> Option<&'static str> {
    match key {
        "dns" => Some("dns"),
        key if OF_HTTP.contains(&key) => Some("http"),
        _ => None,
    }
}

/// Returns `; did you mean X?` if a known word is similar enough.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = |known: &'a str| (strsim::damerau_levenshtein(word, known), known);
    let close = known.map(near).filter(|(distance, known)| *distance <= 1 + known.len() / 4).min();
    close.map(|(_, known)| format!("; did you mean `{known}`?")).unwrap_or_default()
}

/// Returns the same for a key, and also knows the names of other programs.
fn nearest_key(word: &str, known: &[&'static str]) -> String {
    let hint = nearest(word, known.iter().copied());
    let means =
        |(other, ours): &&(&str, &str)| *other == word && (ours.contains(' ') || known.contains(ours));
    match ELSEWHERE.iter().find(means) {
        Some((_, ours)) if hint.is_empty() => format!("; its name here is {ours}"),
        _ => hint,
    }
}

fn parse_duration(value: &Value) -> Option<Duration> {
    let Value::Text(text) = value else { return None };
    humantime::parse_duration(text).ok().filter(|duration| *duration <= DURATION_MAX)
}

/// Units of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_size(value: &Value) -> Option<u64> {
    let Value::Text(text) = value else { return None };
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, scale) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// Writes a size as a whole number of the largest possible unit.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |(_, scale): &(&str, u64)| bytes >= *scale && bytes.is_multiple_of(*scale);
    let (name, scale) = SIZE_UNITS.into_iter().find(fits).unwrap_or(("B", 1));
    format!("{}{name}", bytes / scale)
}
