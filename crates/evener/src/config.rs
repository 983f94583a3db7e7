//! The configuration: Lua to raw declarations ([`lua`]), and raw declarations to a [`Spec`] ([`build`]). An
//! invalid configuration is refused with all its problems at once, each with its file and line.

mod access;
mod build;
mod check;
mod dns;
mod edge;
mod fields;
mod locate;
mod lua;
mod patience;
mod print;
mod raw;
mod search_tree;
mod sticky;

use evener_core::Endpoint;
use evener_core::spec::Spec;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A location in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    /// The file, as the user named it.
    pub(crate) file: Arc<str>,
    /// The line, from 1.
    pub(crate) line: u32,
}

/// A problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Location of the problem, if known.
    pub(crate) location: Option<Location>,
    /// Description of the problem and of the solution.
    pub(crate) message: String,
}

impl Problem {
    /// Creates a problem without a location.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { location: None, message: message.into() }
    }

    /// Creates a problem at a location.
    pub(crate) fn at(location: &Location, message: impl Into<String>) -> Self {
        Self { location: Some(location.clone()), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(Location { file, line }) => write!(out, "{file}:{line}: {}", self.message),
            None => out.write_str(&self.message),
        }
    }
}

/// Returns all problems in one line.
pub(crate) fn one_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns all problems as one error with a line for each.
pub(crate) fn failure(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    anyhow::Error::msg(lines.join("\n"))
}

/// A valid configuration, with the locations that later problems (an address in use, an unknown host) refer
/// to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// The validated specification.
    pub(crate) spec: Spec,
    /// Locations of the addresses of servers.
    pub(crate) locations: BTreeMap<Endpoint, Location>,
    /// Locations of the TLS settings of services and pools.
    pub(crate) tls_locations: BTreeMap<(&'static str, Arc<str>), Location>,
    /// Locations of the listen addresses of services.
    pub(crate) listen_locations: BTreeMap<(Arc<str>, Endpoint), Location>,
    /// True if a service may be its own server. pen only warns about it.
    pub(crate) takes_loops: bool,
}

pub(crate) use access::countries;
pub(crate) use check::{dns_check, http_check};
pub(crate) use edge::{tls_defaults, tls_from_file};
pub(crate) use fields::nearest;
pub(crate) use print::print;

/// Reads a configuration file.
pub(crate) fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    let run = lua::run(path)?;
    build::build(&run).map_err(sorted)
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    problems
}

#[cfg(test)]
mod tests;
