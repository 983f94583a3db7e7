//! Reads configurations: [`lua`] converts Lua to raw declarations, and [`build`] converts raw declarations to a
//! [`Spec`]. An invalid configuration is refused with a list of all problems, each with its file and line.

mod access;
mod address;
mod admin;
mod build;
mod check;
mod discover;
mod dns;
mod edge;
mod exec;
mod fields;
pub(crate) mod functions;
mod hints;
mod ipvs;
mod json;
mod locate;
mod lua;
mod patience;
mod print;
mod problem;
mod raw;
mod reference;
mod scalar;
mod script;
mod search_tree;
mod sticky;
mod syntax;
mod xdp;

use evener_core::Endpoint;
use evener_core::spec::{DiscoverSpec, Spec};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(crate) use access::{address_inside, countries};
pub(crate) use address::server_problem;
pub(crate) use check::{KINDS as CHECK_KINDS, dns_check, http_check};
pub(crate) use edge::{tls_defaults, tls_from_file};
pub(crate) use hints::nearest;
pub(crate) use json::{check_with_server, server_of_json, spec_as_json};
pub(crate) use lua::{FILE_BYTES_MAX, caller, location_of, raise};
pub(crate) use print::print;
#[cfg(test)]
pub(crate) use print::random_spec;
pub(crate) use problem::{Location, Problem, Warning, failure, one_line, unreadable};
pub(crate) use reference::annotations::annotations;
pub(crate) use reference::help;
pub(crate) use reference::manual::manual;
pub(crate) use script::{Program, added_server, duration, error_text, message_of};

/// A valid configuration. It has the locations for problems that are found later, such as an address in use or
/// an unknown host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// The validated specification.
    pub(crate) spec: Spec,
    /// Locations of the addresses of servers.
    servers: BTreeMap<Endpoint, Location>,
    /// Locations of the sources of servers, by pool and source.
    sources: BTreeMap<(Arc<str>, String), Location>,
    /// Locations of the TLS settings of services and pools.
    tls: BTreeMap<(TlsOwner, Arc<str>), Location>,
    /// Locations of the listen addresses of services.
    listen: BTreeMap<(Arc<str>, Endpoint), Location>,
    /// Location of the settings of the admin API.
    admin: Option<Location>,
    /// Functions that run later.
    program: Option<Arc<Program>>,
    /// Warnings about the configuration, sorted by location.
    warnings: Vec<Warning>,
    loops: Loops,
}

/// The kind of declaration that has TLS settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsOwner {
    Service,
    Pool,
}

/// Treatment of a service that is its own server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Loops {
    #[default]
    Refused,
    /// For pen, which only warns about such services.
    Allowed,
}

impl Config {
    /// Creates a configuration without a file, and thus without locations.
    pub(crate) fn without_file(spec: Spec) -> Self {
        Self { spec, ..Self::default() }
    }

    /// Allows services that are their own servers.
    pub(crate) fn allow_loops(self) -> Self {
        Self { loops: Loops::Allowed, ..self }
    }

    /// Returns true if a service may be its own server.
    pub(crate) fn allows_loops(&self) -> bool {
        self.loops == Loops::Allowed
    }

    /// Creates a problem at the location of a server's address.
    pub(crate) fn problem_with_server(&self, endpoint: &Endpoint, message: impl Into<String>) -> Problem {
        Problem::maybe_at(self.servers.get(endpoint), message)
    }

    /// Creates a problem at the location of the settings of the admin API.
    pub(crate) fn problem_with_admin(&self, message: impl Into<String>) -> Problem {
        Problem::maybe_at(self.admin.as_ref(), message)
    }

    /// Creates a problem at the location of a source of servers.
    pub(crate) fn problem_with_source(
        &self,
        pool: &Arc<str>,
        source: &DiscoverSpec,
        message: impl Into<String>,
    ) -> Problem {
        Problem::maybe_at(self.sources.get(&(Arc::clone(pool), source.to_string())), message)
    }

    /// Creates a problem at the location of a listen address.
    pub(crate) fn problem_with_listen(
        &self,
        service: &Arc<str>,
        endpoint: &Endpoint,
        message: impl Into<String>,
    ) -> Problem {
        Problem::maybe_at(self.listen.get(&(Arc::clone(service), endpoint.clone())), message)
    }

    /// Creates a warning at the location of a listen address.
    pub(crate) fn warning_about_listen(
        &self,
        service: &Arc<str>,
        endpoint: &Endpoint,
        message: impl Into<String>,
    ) -> Warning {
        Warning::maybe_at(self.listen.get(&(Arc::clone(service), endpoint.clone())), message)
    }

    /// Returns the configuration with functions in a Lua state of their own, if the file can still be read.
    pub(crate) fn with_fresh_program(self) -> Self {
        let again = self.program.as_ref().and_then(|program| program.again().ok());
        let program = again.map(Arc::new).or(self.program);
        Self { program, ..self }
    }

    /// Returns the functions of the configuration that run later.
    pub(crate) fn program(&self) -> Option<&Arc<Program>> {
        self.program.as_ref()
    }

    /// Returns the warnings about the configuration, sorted by location.
    pub(crate) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns the location of the TLS settings of a service or pool.
    pub(crate) fn tls_location(&self, owner: TlsOwner, name: &Arc<str>) -> Option<&Location> {
        self.tls.get(&(owner, Arc::clone(name)))
    }

    /// Returns true if the configuration has TLS settings or host names. The files and the addresses of the
    /// hosts are checked only if the configuration is valid.
    fn has_inputs(&self) -> bool {
        let spec = &self.spec;
        let mut servers = spec.pools.iter().flat_map(|pool| &pool.servers);
        let is_read = |source: &DiscoverSpec| !matches!(source, DiscoverSpec::Mname { .. });
        let has_files = |tls: &evener_core::spec::TlsSpec| {
            !tls.certificates.is_empty() || !tls.directories.is_empty() || tls.client.is_some()
        };
        spec.services.iter().any(|service| service.tls.as_deref().is_some_and(has_files))
            || spec.pools.iter().any(|pool| pool.tls.is_some() || pool.discover.iter().any(is_read))
            || servers.any(|server| matches!(server.endpoint, Endpoint::Host { .. }))
    }
}

/// Reads a configuration file.
pub(crate) fn load(path: &Path) -> Result<Config, Vec<Problem>> {
    build_from(lua::run(path, None)?)
}

/// Reads a given text as the configuration file at `path`, which need not exist. Relative paths begin at its directory.
pub(crate) fn load_text(path: &Path, text: &[u8]) -> Result<Config, Vec<Problem>> {
    build_from(lua::run(path, Some(text.into()))?)
}

fn build_from(mut run: raw::Run) -> Result<Config, Vec<Problem>> {
    let program = run.take_program();
    let config = build::build(&run).map_err(problem::sorted)?;
    Ok(Config { program: program.map(Arc::new), ..config })
}

#[cfg(test)]
mod tests;
