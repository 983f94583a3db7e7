//! Problems of a configuration, with their locations.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// A location in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    /// The file, as the user named it.
    file: Arc<str>,
    /// The line, from 1.
    line: u32,
}

impl Location {
    /// Creates a location. Lines count from 1.
    pub(super) fn new(file: impl Into<Arc<str>>, line: u32) -> Self {
        Self { file: file.into(), line }
    }

    /// Returns the line that `find` returns for this location, in the same file; without such a line, this
    /// location.
    pub(super) fn moved(&self, find: impl FnOnce(&str, u32) -> Option<u32>) -> Self {
        let line = find(&self.file, self.line).unwrap_or(self.line);
        Self { file: Arc::clone(&self.file), line }
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &str {
        &self.file
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.file, self.line)
    }
}

/// A problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Location of the problem, if known.
    location: Option<Location>,
    /// Description of the problem and of the solution.
    message: String,
}

impl Problem {
    /// Creates a problem without a location.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { location: None, message: message.into() }
    }

    /// Creates a problem at a location.
    pub(crate) fn at(location: &Location, message: impl Into<String>) -> Self {
        Self::maybe_at(Some(location), message)
    }

    /// Creates a problem at a location, if that is known.
    pub(crate) fn maybe_at(location: Option<&Location>, message: impl Into<String>) -> Self {
        Self { location: location.cloned(), message: message.into() }
    }

    /// Returns true if the location is known.
    pub(super) fn is_located(&self) -> bool {
        self.location.is_some()
    }

    /// Adds a location if there is none yet.
    pub(super) fn or_at(self, location: &Location) -> Self {
        Self { location: self.location.or_else(|| Some(location.clone())), ..self }
    }

    /// Adds a hint that `hint` derives from the file, the line and the message.
    pub(super) fn with_hint(mut self, hint: impl FnOnce(&str, u32, &str) -> Option<String>) -> Self {
        let found = self.location.as_ref().and_then(|at| hint(&at.file, at.line, &self.message));
        self.message.extend(found);
        self
    }

    /// Returns the description without the location.
    pub(super) fn into_message(self) -> String {
        self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(out, "{location}: {}", self.message),
            None => out.write_str(&self.message),
        }
    }
}

impl std::error::Error for Problem {}

/// Returns all problems in one line.
pub(crate) fn one_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns all problems as one error with a line for each.
pub(crate) fn failure(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    anyhow::Error::msg(lines.join("\n"))
}

/// Sorts problems by location. Problems of the same line stay in the order of discovery, problems without a
/// location come last, and equal problems are listed once.
pub(super) fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    let mut listed = BTreeSet::new();
    problems.retain(|problem| listed.insert(problem.clone()));
    problems.sort_by(|one, other| {
        let key = |problem: &Problem| (problem.location.is_none(), problem.location.clone());
        key(one).cmp(&key(other))
    });
    problems
}
