//! Problems of a configuration, with their locations.

use crate::output::printable;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
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
    pub(crate) fn new(file: impl Into<Arc<str>>, line: u32) -> Self {
        Self { file: file.into(), line }
    }

    /// Returns the line that `find` returns for this location, in the same file; without such a line, this
    /// location.
    pub(super) fn moved(&self, find: impl FnOnce(&str, u32) -> Option<u32>) -> Self {
        let line = find(&self.file, self.line).unwrap_or(self.line);
        Self { file: Arc::clone(&self.file), line }
    }

    /// Returns the line, from 1.
    pub(crate) fn line(&self) -> u32 {
        self.line
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

    /// Replaces the message by a better one that `explain` derives from the file, the line and the message.
    pub(super) fn explained(mut self, explain: impl FnOnce(&str, u32, &str) -> Option<String>) -> Self {
        let better = self.location.as_ref().and_then(|at| explain(&at.file, at.line, &self.message));
        self.message = better.unwrap_or(self.message);
        self
    }

    /// Returns true if the file is not a configuration of Evener at all.
    pub(super) fn is_about_another_language(&self) -> bool {
        self.message.starts_with(super::syntax::FOREIGN_FILE)
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

/// A warning about a valid configuration: a setting that probably does not do as its author intended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning(Problem);

impl Warning {
    /// Creates a warning at a location, if that is known.
    pub(crate) fn maybe_at(location: Option<&Location>, message: impl Into<String>) -> Self {
        Self(Problem::maybe_at(location, message))
    }

    /// Returns the location and the message, without the word `warning`.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }

    /// Sorts warnings as [`sorted`] sorts problems.
    pub(crate) fn sorted(warnings: Vec<Self>) -> Vec<Self> {
        sorted(warnings.into_iter().map(|warning| warning.0).collect()).into_iter().map(Self).collect()
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.location {
            Some(location) => write!(out, "{location}: warning: {}", self.0.message),
            None => write!(out, "warning: {}", self.0.message),
        }
    }
}

/// Returns the reason why a file cannot be used.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the file does not exist".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => format!("cannot be read: {error}"),
    }
}

/// Returns the message for a file or directory that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} does not exist"),
        io::ErrorKind::PermissionDenied => format!("{path} cannot be read: permission denied"),
        io::ErrorKind::IsADirectory => format!("{path} is a directory"),
        _ => format!("{path} cannot be read: {error}"),
    }
}

/// Returns all problems in one line.
pub(crate) fn one_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns all problems as one error with a line for each.
pub(crate) fn failure(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> =
        problems.iter().map(|problem| printable(&problem.to_string()).into_owned()).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_has_one_line_without_control_characters() {
        let problems = [Problem::at(&Location::new("a\x1b[31m.lua", 2), "x\ny"), Problem::new("\u{202e}z")];
        assert_eq!(failure(&problems).to_string(), "a\\u{1b}[31m.lua:2: x\\ny\n\\u{202e}z");
    }
}
