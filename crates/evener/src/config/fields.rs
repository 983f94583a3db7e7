//! Reads the keys of a table one by one, each with its type and bounds. Problems are recorded with their lines,
//! and reading continues. Keys that have not been read at the end are reported as unknown.

use super::hints::{self, Context, KeyHints, UnknownKey, values};
use super::locate::Step;
use super::raw::{Made, Run, Table, Value, shown};
use super::scalar::{is_zero, parse_duration, parse_size, size_text};
use super::{Location, Problem, Warning, reference};
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A key that was read: the declaration, the keys that lead to the table, and the name.
#[cfg(test)]
pub(super) type ReadKey = (&'static str, String, &'static str);
/// Maximum number of warnings about a configuration.
const WARNINGS_MAX: usize = 1000;

#[cfg(test)]
thread_local! {
    /// Every key that this thread has read. A test verifies that the reference has exactly these keys.
    pub(super) static READ: RefCell<std::collections::BTreeSet<ReadKey>> = const { RefCell::new(std::collections::BTreeSet::new()) };
}

/// State that readers share: the run that is read, and the problems found so far.
pub(super) struct Reading<'a> {
    run: &'a Run,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
    hints: RefCell<KeyHints>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(run: &'a Run) -> Self {
        Self {
            run,
            problems: RefCell::new(run.problems().to_vec()),
            warnings: RefCell::default(),
            hints: RefCell::default(),
        }
    }

    /// Returns the run that is read.
    pub(super) fn run(&self) -> &'a Run {
        self.run
    }

    /// Records a problem.
    pub(super) fn problem(&self, location: &Location, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem::at(location, message));
    }

    /// Records a problem at a key or text inside the declaration that begins at `location`.
    pub(super) fn problem_inside(&self, location: &Location, path: &[&str], message: impl Into<String>) {
        let steps: Vec<Step<'_>> = path.iter().map(|name| Step::Named(name)).collect();
        self.problem_at(location, &steps, message);
    }

    /// Records a problem at the end of a path inside the declaration that begins at `location`.
    pub(super) fn problem_at(&self, location: &Location, path: &[Step<'_>], message: impl Into<String>) {
        self.problem(&self.run.refine(location, path), message);
    }

    /// Records a warning.
    pub(super) fn warning(&self, location: &Location, message: impl Into<String>) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() < WARNINGS_MAX {
            warnings.push(Warning::maybe_at(Some(location), message));
        }
    }

    /// Records a warning at a key or text inside the declaration that begins at `location`.
    pub(super) fn warning_inside(&self, location: &Location, path: &[&str], message: impl Into<String>) {
        let steps: Vec<Step<'_>> = path.iter().map(|name| Step::Named(name)).collect();
        self.warning(&self.run.refine(location, &steps), message);
    }

    /// Returns the warnings, sorted by location.
    pub(super) fn take_warnings(&self) -> Vec<Warning> {
        Warning::sorted(self.warnings.take())
    }

    /// Resolves a path relative to the directory of the file that contains the path.
    pub(super) fn path(&self, location: &Location, text: &str) -> PathBuf {
        Path::new(location.file()).parent().unwrap_or(Path::new("")).join(text)
    }

    /// Returns true if there are no problems so far.
    pub(super) fn is_valid(&self) -> bool {
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
    /// Path to the table inside the declaration at `location`.
    path: Vec<Step<'a>>,
    /// The declaration in messages, such as ``pool `web` ``.
    subject: String,
    /// Keys that lead from the declaration to the table, such as `dns.cache.`.
    prefix: String,
    context: Context,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Creates a reader of the table of a builder's value.
    pub(super) fn new(reading: &'a Reading<'a>, made: &'a Made, subject: String) -> Self {
        Self {
            reading,
            table: made.table(),
            location: made.location(),
            path: Vec::new(),
            subject,
            prefix: String::new(),
            context: Context::of(made.builder()),
            known: Vec::new(),
        }
    }

    /// Creates a reader of the table of a server, which is inside the declaration of a pool or made by the
    /// builder `server`.
    pub(super) fn of_server(
        reading: &'a Reading<'a>,
        table: &'a Table,
        location: &'a Location,
        address: &str,
        path: &[Step<'a>],
    ) -> Self {
        Self {
            reading,
            table,
            location,
            path: path.to_vec(),
            subject: format!("server `{address}`"),
            prefix: String::new(),
            context: Context::of("server"),
            known: Vec::new(),
        }
    }

    /// Returns the state that readers share.
    pub(super) fn reading(&self) -> &'a Reading<'a> {
        self.reading
    }

    /// Returns a reader of the table that is the value of `key`.
    pub(super) fn within(&self, key: &'static str, table: &'a Table) -> Self {
        Self {
            table,
            path: self.path.iter().copied().chain([Step::Named(key)]).collect(),
            subject: self.subject.clone(),
            prefix: format!("{}{key}.", self.prefix),
            known: Vec::new(),
            ..*self
        }
    }

    /// Returns a reader for a table that [`Self::items`] returned for `key`.
    pub(super) fn within_item(&self, key: &'static str, index: Option<usize>, table: &'a Table) -> Self {
        let mut nested = self.within(key, table);
        nested.path.extend(index.map(|index| Step::Item(index, None)));
        nested
    }

    /// Sets the protocol of the service, which explains why a key is unknown.
    pub(super) fn set_protocol(&mut self, protocol: &'static str) {
        self.context.set_protocol(protocol);
    }

    /// Sets the plane of the service, which explains why a key is unknown.
    pub(super) fn set_plane(&mut self, plane: &'static str) {
        self.context.set_plane(plane);
    }

    /// Returns the list part of the table.
    pub(super) fn list(&self) -> &'a [Value] {
        self.table.list()
    }

    /// Returns the value of `key`, of any type. The key counts as known from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        #[cfg(test)]
        READ.with_borrow_mut(|read| read.insert((self.context.declaration(), self.prefix.clone(), key)));
        self.table.get(key)
    }

    /// Returns the text of a key, or the first text of its list.
    pub(super) fn first_text(&self, key: &str) -> Option<&'a str> {
        match self.table.get(key)? {
            Value::Table(list) => list.list().first()?.text(),
            value => value.text(),
        }
    }

    /// Returns the text of a key that is probably meant as `key`: it is similar, or one of `others`.
    pub(super) fn misspelt(&self, key: &'static str, others: &[&str]) -> Option<&'a str> {
        let is_meant =
            |found: &&str| others.contains(found) || !hints::nearest(found, std::iter::once(key)).is_empty();
        self.table.get(self.table.keys().find(is_meant)?)?.text()
    }

    /// Returns true if the table has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Returns true if the table has a key that was not read so far.
    pub(super) fn has_unknown_keys(&self) -> bool {
        self.unknown_keys().next().is_some()
    }

    fn unknown_keys(&self) -> impl Iterator<Item = &'a str> {
        self.table.keys().filter(|key| !self.known.contains(key))
    }

    /// Returns the location of a key or text of this table.
    pub(super) fn location_of(&self, key: &str) -> Location {
        self.location_at(&[Step::Named(key)])
    }

    /// Returns the location of the end of a path inside this table.
    fn location_at(&self, steps: &[Step<'_>]) -> Location {
        let path: Vec<Step<'_>> = self.path.iter().chain(steps).copied().collect();
        self.reading.run.refine(self.location, &path)
    }

    /// Records a problem with an item of the list part, or a text inside it.
    pub(super) fn problem_with_item(&mut self, index: usize, text: Option<&str>, message: impl Display) {
        let location = self.location_at(&[Step::Item(index, text)]);
        self.reading.problem(&location, format!("{}: {message}", self.subject));
    }

    /// Records a problem with a text that is the value of a key, or an item of its list.
    pub(super) fn problem_with_text(
        &mut self,
        key: &str,
        index: Option<usize>,
        text: &str,
        message: impl Display,
    ) {
        let item = index.map(|index| Step::Item(index, Some(text)));
        let path: Vec<Step<'_>> = [Step::Named(key)].into_iter().chain(item).collect();
        let location = self.location_at(&path);
        self.reading.problem(&location, format!("{}: {message}", self.subject));
    }

    /// Records a warning about a text that is the value of a key, or an item of its list.
    pub(super) fn warn_of_text(&self, key: &str, index: Option<usize>, text: &str, message: impl Display) {
        let item = index.map(|index| Step::Item(index, Some(text)));
        let path: Vec<Step<'_>> = [Step::Named(key)].into_iter().chain(item).collect();
        self.reading.warning(&self.location_at(&path), format!("{}: {message}", self.subject));
    }

    /// Records a warning about a key of this table. The message follows the name of the declaration.
    pub(super) fn warn_of(&self, key: &str, message: impl Display) {
        self.reading.warning(&self.location_of(key), format!("{}: {message}", self.subject));
    }

    /// Records a problem with a key or text of this table. The message follows the name of the declaration.
    pub(super) fn problem(&mut self, key: &str, message: impl Display) {
        let location = self.location_of(key);
        self.reading.problem(&location, format!("{}: {message}", self.subject));
    }

    /// Records a problem with a key. The names of the declaration and of the key are put before the message.
    pub(super) fn problem_with(&mut self, key: &str, message: impl Display) {
        self.problem(key, format!("{}{key} {message}", self.prefix));
    }

    /// Records a problem with the whole table. The name of the declaration is put before the message.
    pub(super) fn problem_here(&mut self, message: impl Display) {
        let location = match self.path.last() {
            Some(_) => self.reading.run.refine(self.location, &self.path),
            None => self.location.clone(),
        };
        self.reading.problem(&location, format!("{}: {message}", self.subject));
    }

    /// Records that the value of a key is not as required: `weight must be a number, got "two"`.
    pub(super) fn must(&mut self, key: &str, requirement: impl Display) {
        self.must_hint(key, requirement, "");
    }

    /// Records that the value of a key is not as required, and appends a hint.
    pub(super) fn must_hint(&mut self, key: &str, requirement: impl Display, hint: &str) {
        if let Some(value) = self.table.get(key) {
            self.value_must(key, value, requirement, hint);
        }
    }

    /// Records that a value of a key, or an item of its list, is not as required.
    pub(super) fn value_must(&mut self, key: &str, value: &Value, requirement: impl Display, hint: &str) {
        if matches!(value, Value::Unknown) {
            return;
        }
        let colon = if hint.is_empty() { "" } else { ": " };
        self.problem_with(key, format!("must {requirement}, got {}{colon}{hint}", value.shown()));
    }

    /// Reads a string.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        self.text_such_as(key, "a string", "")
    }

    /// Reads a string. The message about a number proposes the number in quotes, followed by `suffix`.
    pub(super) fn text_such_as(
        &mut self,
        key: &'static str,
        requirement: &str,
        suffix: &str,
    ) -> Option<&'a str> {
        match self.take(key)? {
            Value::Text(text) => Some(text),
            other => {
                let number = other.number().map(|number| format!("write \"{number}{suffix}\""));
                self.must_hint(key, format!("be {requirement}"), &number.unwrap_or_default());
                None
            }
        }
    }

    /// Reads one of several words.
    pub(super) fn word<T>(
        &mut self,
        key: &'static str,
        words: &[&'static str],
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let found = match self.take(key)? {
            Value::Text(text) => parse(text),
            _ => None,
        };
        if found.is_none() {
            self.must_be_one_of(key, words, "");
        }
        found
    }

    /// Records that the value of a key is not one of several words. The message proposes the most similar word.
    pub(super) fn must_be_one_of(&mut self, key: &'static str, words: &[&'static str], others: &str) {
        let Some(value) = self.table.get(key).filter(|value| !matches!(value, Value::Unknown)) else {
            return;
        };
        // Of only two words, none is proposed: the message lists both.
        let text = value.text().filter(|_| words.len() > 2);
        let near = text.map(|text| hints::nearest_text(text, words.iter().copied())).unwrap_or_default();
        let near = match value {
            Value::Library(name) if words.contains(name) => format!(": write {key} = \"{name}\""),
            _ => near,
        };
        let list = hints::one_of(words, others);
        self.problem_with(key, format!("must be {list}, got {}{near}", value.shown()));
    }

    /// Reads a string of any bytes.
    pub(super) fn bytes(&mut self, key: &'static str) -> Option<Vec<u8>> {
        match self.take(key)? {
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => self.text(key).map(|text| text.as_bytes().to_vec()),
        }
    }

    /// Reads true or false.
    pub(super) fn bool(&mut self, key: &'static str) -> Option<bool> {
        match self.take(key)? {
            Value::Bool(value) => Some(*value),
            other => {
                self.must_hint(key, "be true or false", &values::boolean(key, other));
                None
            }
        }
    }

    /// Reads a whole number in a range.
    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.take(key)?;
        let bounds = format!("be between {} and {}", range.start(), range.end());
        let number = match value {
            Value::Int(number) => *number as f64,
            Value::Number(number) => *number,
            other => {
                match other.text().filter(|_| other.number().is_some()) {
                    Some(text) => self.problem_with(
                        key,
                        format!(
                            "must be a number, got the text {}: write {}, or tonumber(...) for a variable",
                            shown(text),
                            text.trim()
                        ),
                    ),
                    None => {
                        let wanted = format!("be a number between {} and {}", range.start(), range.end());
                        let hint = match other.text() {
                            Some(text) if values::is_endless(text) => {
                                format!("remove {key}, or write a large number")
                            }
                            Some(text) => {
                                values::number(text).map_or(String::new(), |n| format!("write {n}"))
                            }
                            None => String::new(),
                        };
                        self.must_hint(key, wanted, &hint);
                    }
                }
                return None;
            }
        };
        if number.is_finite() && number.fract() != 0.0 {
            self.must(key, "be a whole number");
            return None;
        }
        let fits = (f64::from(*range.start())..=f64::from(*range.end())).contains(&number);
        if !fits {
            self.must(key, bounds);
        }
        fits.then_some(number as u32)
    }

    /// Reads a number from 0 to 1.
    pub(super) fn share(&mut self, key: &'static str) -> Option<f64> {
        let number = match self.take(key)? {
            Value::Int(number) => *number as f64,
            Value::Number(number) => *number,
            _ => {
                self.must(key, "be a number between 0 and 1");
                return None;
            }
        };
        let fits = (0.0..=1.0).contains(&number);
        if !fits {
            self.must(key, "be between 0 and 1");
        }
        fits.then_some(number)
    }

    /// Returns the default of a key, for the end of a message.
    fn default_of(&self, key: &str) -> String {
        let table = reference::table_of(self.context.declaration(), &self.prefix);
        let default = reference::find(&table, key).and_then(reference::Key::word_default);
        default.map(|default| format!("the default is {default}")).unwrap_or_default()
    }

    /// Reads a duration above zero.
    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.take(key)?;
        if matches!(value, Value::Bool(_)) {
            let default = self.default_of(key);
            self.must_hint(key, "be a duration such as \"500ms\", \"2s\" or \"1h\"", &default);
            return None;
        }
        if is_zero(value) || self.duration_or_zero(key)?.is_zero() {
            self.must(key, "be above zero");
            return None;
        }
        self.duration_or_zero(key)
    }

    /// Reads a duration, or `false` for none. Returns `Some(None)` for `false`.
    pub(super) fn optional_duration(&mut self, key: &'static str) -> Option<Option<Duration>> {
        let value = self.take(key)?;
        match value {
            Value::Bool(false) => return Some(None),
            Value::Text(_) | Value::Int(_) | Value::Number(_) | Value::Unknown => {}
            _ => {
                let default = self.default_of(key);
                let wanted = "be a duration such as \"500ms\", \"2s\" or \"1h\", or false for none";
                self.must_hint(key, wanted, &default);
                return None;
            }
        }
        let is_negative = value.number().is_some_and(|number| number.starts_with('-'));
        if (value.text().is_some_and(values::is_endless) || is_negative) && !is_zero(value) {
            self.must_hint(key, "be a duration, or false for none", &format!("write {key} = false"));
            return None;
        }
        if is_zero(value) || self.duration_or_zero(key)?.is_zero() {
            self.must_hint(key, "be above zero", "write false for none");
            return None;
        }
        self.duration_or_zero(key).map(Some)
    }

    /// Reads a duration that may be zero.
    pub(super) fn duration_or_zero(&mut self, key: &'static str) -> Option<Duration> {
        let value = self.take(key)?;
        if matches!(value, Value::Unknown) {
            return None;
        }
        parse_duration(value).map_err(|why| self.problem_with(key, why)).ok()
    }

    /// Reads a size in a range of bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        if matches!(value, Value::Unknown) {
            return None;
        }
        let size = parse_size(value).map_err(|why| self.problem_with(key, why)).ok()?;
        let fits = range.contains(&size);
        if !fits {
            let (least, most) = (size_text(*range.start()), size_text(*range.end()));
            self.must(key, format!("be between {least} and {most}"));
        }
        fits.then_some(size)
    }

    /// Reads a string or a list of strings, and parses each string. Records a problem for each invalid string.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        make: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let requirement = format!("be {wanted}");
        let items = match value {
            Value::Table(table) => table.only_list(),
            _ => Some(std::slice::from_ref(value)),
        };
        let Some(items) = items else {
            self.must(key, requirement);
            return None;
        };
        let mut made = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Value::Text(text) = item else {
                self.value_must(key, item, &requirement, "");
                continue;
            };
            match make(text) {
                Ok(item) => made.push(item),
                Err(why) => {
                    let index = matches!(value, Value::Table(_)).then_some(index);
                    self.problem_with_text(key, index, text, why);
                }
            }
        }
        Some(made)
    }

    /// Reads one value or a list of values, with the index of each item of a list.
    pub(super) fn items(&mut self, key: &'static str) -> Option<Vec<(Option<usize>, &'a Value)>> {
        let value = self.take(key)?;
        let list = match value {
            Value::Table(table) => table.only_list(),
            _ => None,
        };
        let indexed = |list: &'a [Value]| (0..).map(Some).zip(list).collect();
        Some(list.map_or_else(|| vec![(None, value)], indexed))
    }

    /// Reads the path of a file, which is relative to the file of the configuration.
    pub(super) fn path(&mut self, key: &'static str) -> Option<String> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.problem_with(key, "must not be empty: write the path of a file");
            return None;
        }
        Some(self.path_of(key, text))
    }

    /// Resolves a path that was read from `key`, relative to the file of the configuration.
    pub(super) fn path_of(&self, key: &str, text: &str) -> String {
        self.reading.path(&self.location_of(key), text).display().to_string()
    }

    /// Records every key that was not read, with a hint.
    pub(super) fn finish(mut self) {
        let pool = self.table.get("pool").map(|value| match value {
            Value::Made(made) => made.name(),
            other => other.text().unwrap_or_default(),
        });
        let messages = self.unknown_keys().map(|key| {
            let unknown =
                UnknownKey::new(key, &self.prefix, &self.known).with_value(self.table.get(key)).of_pool(pool);
            (key, self.reading.hints.borrow_mut().unknown_key(self.context, &unknown))
        });
        for (key, message) in hints::joined_by_advice(&self.prefix, messages) {
            self.problem(key, message);
        }
    }
}
