//! The configuration: Lua to raw declarations ([`lua`]), raw declarations to a [`Spec`] ([`build`]). A configuration that
//! is not wholly valid is refused with every problem at once, each with its file and line.

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

/// Where something stands in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The file, as it was named.
    pub(crate) file: Arc<str>,
    /// The line, from 1.
    pub(crate) line: u32,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Where, if it has a place.
    pub(crate) place: Option<Place>,
    /// What, and what to do.
    pub(crate) message: String,
}

impl Problem {
    /// A problem without a place in a file.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { place: None, message: message.into() }
    }

    /// A problem at a place.
    pub(crate) fn at(place: &Place, message: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place { file, line }) => write!(out, "{file}:{line}: {}", self.message),
            None => out.write_str(&self.message),
        }
    }
}

/// Problems in one line.
pub(crate) fn one_line(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// All problems as one error, a line each.
pub(crate) fn failure(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    anyhow::Error::msg(lines.join("\n"))
}

/// A valid configuration, with the places that later problems (an address in use, an unknown host) refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// What the operator wants.
    pub(crate) spec: Spec,
    /// Where the addresses of servers were written.
    pub(crate) places: BTreeMap<Endpoint, Place>,
    /// Where services and pools speak of TLS.
    pub(crate) tls_places: BTreeMap<(&'static str, Arc<str>), Place>,
    /// Where the addresses of services were written.
    pub(crate) listen_places: BTreeMap<(Arc<str>, Endpoint), Place>,
    /// A service may be its own server: pen warns of it, as it is taken there.
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
