//! Discovery of servers: reads the sources of a configuration, which are directories of sockets, lists in files,
//! and names in DNS. The supervisor decides which servers a pool gets; this module opens no connections to
//! servers.

mod directory;
mod expand;
mod file;
mod name;
mod watch;

pub(crate) use expand::{Candidates, Expanded, Numbers, expand};
pub(crate) use file::Stamp;
pub(crate) use watch::Watcher;

use crate::config::{Config, Problem};
use evener_core::server_list;
use evener_core::spec::{DiscoverSpec, PoolSpec, Resolve, ServerSpec, Spec};
use evener_core::{Endpoint, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use watch::Interest;

/// Interval of reads of a directory, which come in addition to notifications of changes.
const DIRECTORY_EVERY: Duration = Duration::from_secs(5);
/// Interval of checks whether a file changed, which come in addition to notifications of changes.
const FILE_EVERY: Duration = Duration::from_secs(1);
/// Maximum pause after a failed resolution of a name. The pauses grow from one second.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Time that a new configuration waits for all its sources.
const ALL_WAIT: Duration = Duration::from_secs(30);
/// Time that a new configuration waits for servers that are not required.
const OPTIONAL_WAIT: Duration = Duration::from_secs(1);

/// A source of servers, as it is read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A directory of sockets.
    Directory(PathBuf),
    /// A list of servers, and the port of addresses without a port.
    File { path: PathBuf, port: Option<u16> },
    /// The addresses of the host name of a configured server.
    Host { name: String, port: u16, resolvers: Vec<SocketAddr> },
    /// The addresses of a host name for which servers are found.
    Dns { name: String, port: u16, resolvers: Vec<SocketAddr> },
    /// The targets of SRV records.
    Srv { name: String, resolvers: Vec<SocketAddr> },
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(out, "discover.mname {}", directory.display()),
            Self::File { path, .. } => write!(out, "discover.file {}", path.display()),
            Self::Host { name, port, .. } => write!(out, "{name}:{port}"),
            Self::Dns { name, port, .. } => write!(out, "discover.dns {name}:{port}"),
            Self::Srv { name, .. } => write!(out, "discover.srv {name}"),
        }
    }
}

impl Source {
    /// Returns the source that comes before all others.
    pub(crate) fn first() -> Self {
        Self::Directory(PathBuf::new())
    }

    /// Returns the source of the addresses of a server that is given by a host name.
    pub(crate) fn of_server(pool: &PoolSpec, server: &ServerSpec) -> Option<Self> {
        match &server.endpoint {
            Endpoint::Host { name, port } => {
                Some(Self::Host { name: name.clone(), port: *port, resolvers: pool.resolvers.clone() })
            }
            Endpoint::Ip(_) | Endpoint::Unix(_) => None,
        }
    }

    fn of_discover(pool: &PoolSpec, discover: &DiscoverSpec) -> Self {
        let resolvers = || pool.resolvers.clone();
        match discover {
            DiscoverSpec::Mname { directory } => Self::Directory(directory.clone()),
            DiscoverSpec::File { path, port, .. } => Self::File { path: path.clone(), port: *port },
            DiscoverSpec::Dns { name, port, .. } => {
                Self::Dns { name: name.clone(), port: *port, resolvers: resolvers() }
            }
            DiscoverSpec::Srv { name, .. } => Self::Srv { name: name.clone(), resolvers: resolvers() },
        }
    }

    /// Returns the sources of a pool.
    pub(crate) fn all_of(pool: &PoolSpec) -> BTreeSet<Self> {
        let servers = pool.servers.iter().filter_map(|server| Self::of_server(pool, server));
        servers.chain(pool.discover.iter().map(|discover| Self::of_discover(pool, discover))).collect()
    }

    /// Returns true if the source is in the file system, where changes are noticed.
    pub(crate) fn is_watched(&self) -> bool {
        self.location().is_some()
    }

    /// Returns the directory where changes of the source appear.
    pub(crate) fn location(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(directory) => Some(directory.clone()),
            Self::File { path, .. } => Some(match path.parent() {
                Some(parent) if parent != Path::new("") => parent.to_owned(),
                _ => PathBuf::from("."),
            }),
            Self::Host { .. } | Self::Dns { .. } | Self::Srv { .. } => None,
        }
    }

    /// Reads the source. A file with the stamp `known` is not read again.
    pub(crate) fn read(
        self,
        known: Option<Stamp>,
        watcher: Option<&Watcher>,
    ) -> impl Future<Output = Reading> + Send + use<> {
        let interest = match &self {
            Self::Directory(_) => Interest::Entries,
            _ => Interest::Contents,
        };
        let watch = watcher.zip(self.location()).map(|(watcher, location)| watcher.watch(location, interest));
        let began = Instant::now();
        async move {
            let (scan, stamp) = match &self {
                Self::Directory(_) | Self::File { .. } => {
                    let read = tokio::task::spawn_blocking(move || self.read_watched(known, watch));
                    read.await.unwrap_or_else(|error| (Scan::Failed(error.to_string()), None))
                }
                Self::Host { name, port, resolvers } | Self::Dns { name, port, resolvers } => {
                    (name::addresses(name, *port, resolvers).await, None)
                }
                Self::Srv { name, resolvers } => (name::targets(name, resolvers).await, None),
            };
            Reading { scan, stamp, began, ended: Instant::now() }
        }
    }

    /// Reads the source for a new configuration. Servers that are not required do not delay it.
    async fn first_reading(self, need: Resolve) -> Reading {
        let began = Instant::now();
        let read = self.read(None, None);
        match need {
            Resolve::Required => read.await,
            Resolve::Optional => match tokio::time::timeout(OPTIONAL_WAIT, read).await {
                Ok(reading) => reading,
                Err(_) => Reading::failed(format!("no response within {OPTIONAL_WAIT:?}"), began),
            },
        }
    }

    /// Reads a source in the file system. The watch starts before the read, so that no change between them is
    /// missed.
    fn read_watched(&self, known: Option<Stamp>, watch: Option<impl Fn() -> bool>) -> (Scan, Option<Stamp>) {
        let is_watched = watch.as_ref().is_none_or(|watch| watch());
        let reading = self.read_blocking(known);
        if is_watched || watch.is_none_or(|watch| !watch()) {
            return reading;
        }
        // The directory was created since the first attempt to watch it.
        self.read_blocking(known)
    }

    fn read_blocking(&self, known: Option<Stamp>) -> (Scan, Option<Stamp>) {
        match self {
            Self::Directory(directory) => (directory::read(directory), None),
            Self::File { path, port } => file::read(path, *port, known),
            Self::Host { .. } | Self::Dns { .. } | Self::Srv { .. } => {
                (Scan::Failed("names are not read here".into()), None)
            }
        }
    }

    /// Returns the time until the next read after this read. `failures` is the number of consecutive failures.
    pub(crate) fn pause(&self, reading: &Reading, failures: u32) -> Duration {
        match (self, &reading.scan) {
            (Self::Directory(_), _) => DIRECTORY_EVERY,
            (Self::File { .. }, _) => FILE_EVERY,
            // The result of a first read may have waited for other sources.
            (_, Scan::Listed(list)) => list.valid_for.saturating_sub(reading.ended.elapsed()),
            _ => RETRY_MAX.min(Duration::from_secs(1 << failures.saturating_sub(1).min(16))),
        }
    }
}

/// Result of one read of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    scan: Scan,
    /// Identity of the contents, if the source is a file.
    stamp: Option<Stamp>,
    began: Instant,
    ended: Instant,
}

impl Reading {
    /// Returns the result without the stamp.
    pub(crate) fn scan(&self) -> &Scan {
        &self.scan
    }

    /// Returns the identity of the contents, if the source is a file.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    /// Returns the time at which the read began. A read that began later has newer servers.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Creates the result of a read that began at `began` and has failed now.
    fn failed(problem: String, began: Instant) -> Self {
        Self { scan: Scan::Failed(problem), stamp: None, began, ended: Instant::now() }
    }

    /// Creates the result of a read that began and ended at `at`.
    #[cfg(test)]
    pub(crate) fn at(scan: Scan, at: Instant) -> Self {
        Self { scan, stamp: None, began: at, ended: at }
    }
}

/// Scan of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The source is as it was.
    Unchanged,
    /// The source lists these servers.
    Listed(List),
    /// The source could not be read, so its servers are unknown.
    Failed(String),
}

/// The servers of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    servers: Vec<Listed>,
    /// Problem for the operator.
    problem: Option<String>,
    /// The family whose addresses could not be resolved, so that its earlier addresses still count.
    unknown: Option<Family>,
    /// Time until the next read of a name.
    valid_for: Duration,
}

/// Family of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

impl Scan {
    /// Creates the result of a source that lists these servers.
    pub(crate) fn listed(servers: Vec<Listed>) -> Self {
        Self::Listed(List { servers, problem: None, unknown: None, valid_for: Duration::ZERO })
    }

    /// Sets the lifetime of the servers of a name.
    #[cfg(test)]
    pub(crate) fn lasting(self, valid_for: Duration) -> Self {
        match self {
            Self::Listed(list) => Self::Listed(List { valid_for, ..list }),
            other => other,
        }
    }

    /// Sets the problem of a source that lists servers.
    pub(crate) fn with_problem(self, problem: Option<String>) -> Self {
        match self {
            Self::Listed(list) => Self::Listed(List { problem, ..list }),
            other => other,
        }
    }

    /// Returns the servers, if they are known.
    pub(crate) fn servers(&self) -> Option<&[Listed]> {
        match self {
            Self::Listed(list) => Some(&list.servers),
            Self::Unchanged | Self::Failed(_) => None,
        }
    }

    /// Returns the problem for the operator, if any.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self {
            Self::Listed(list) => list.problem.as_deref(),
            Self::Failed(problem) => Some(problem),
            Self::Unchanged => None,
        }
    }

    /// Returns the problem of a source that could not be read.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.problem().filter(|_| self.servers().is_none())
    }

    /// Returns the servers that the source has now, if they are known. `before` are the servers that it had.
    pub(crate) fn servers_after(&self, before: &[Listed]) -> Option<Vec<Listed>> {
        let Self::Listed(list) = self else { return None };
        let mut servers = list.servers.clone();
        let Some(unknown) = list.unknown else { return Some(servers) };
        let is_unknown = |server: &Listed| match &server.target {
            Target::Ip(address) => unknown.has(address.ip()),
            Target::Unix(_) => false,
        };
        let known: BTreeSet<&Target> = list.servers.iter().map(|server| &server.target).collect();
        let earlier = before.iter().filter(|server| is_unknown(server) && !known.contains(&server.target));
        servers.extend(earlier.cloned());
        // The order does not depend on which family could be resolved.
        servers.sort_unstable();
        Some(servers)
    }
}

/// A server that a source lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listed {
    target: Target,
    /// Host name and port to which the address belongs, if the source is a name.
    host: Option<Endpoint>,
    weight: Option<u32>,
    tier: Option<u8>,
}

impl Listed {
    /// Creates a server without settings.
    pub(crate) fn at(target: Target) -> Self {
        Self { target, host: None, weight: None, tier: None }
    }

    fn of_list(server: &server_list::Listed) -> Self {
        let server_list::Listed { address, weight, tier } = *server;
        Self { target: Target::Ip(address), host: None, weight, tier }
    }

    fn of_host(address: SocketAddr, host: &str) -> Self {
        let host = Endpoint::Host { name: host.to_owned(), port: address.port() };
        Self { host: Some(host), ..Self::at(Target::Ip(address)) }
    }
}

/// Servers that a source lists for a pool.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pool: Arc<str>,
    source: Source,
    reading: Reading,
}

impl Found {
    /// Creates the result of a read of a source of a pool.
    pub(crate) fn new(pool: Arc<str>, source: Source, reading: Reading) -> Self {
        Self { pool, source, reading }
    }

    /// Returns the pool with the source, and the result of the read.
    pub(crate) fn into_parts(self) -> ((Arc<str>, Source), Reading) {
        ((self.pool, self.source), self.reading)
    }
}

/// Results of the first read of each source of a configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstReadings(BTreeMap<(Arc<str>, Source), Reading>);

impl FirstReadings {
    /// Reads all sources of a configuration at the same time.
    pub(crate) async fn of(spec: &Spec) -> Self {
        let mut needs: BTreeMap<Source, Resolve> = BTreeMap::new();
        for pool in &spec.pools {
            for source in Source::all_of(pool) {
                let need = needs.entry(source).or_insert(pool.resolve);
                if pool.resolve == Resolve::Required {
                    *need = Resolve::Required;
                }
            }
        }
        let began = Instant::now();
        let mut reads = tokio::task::JoinSet::new();
        for (source, need) in needs {
            reads.spawn(async move { (source.clone().first_reading(need).await, source) });
        }
        let mut readings = BTreeMap::new();
        let until = tokio::time::Instant::from_std(began + ALL_WAIT);
        while let Ok(Some(done)) = tokio::time::timeout_at(until, reads.join_next()).await {
            readings.extend(done.map(|(reading, source)| (source, reading)));
        }
        let of_pool = |pool: &PoolSpec| {
            let name = pool.name.clone();
            let reading = |source: Source| {
                let late = || Reading::failed(format!("it was not read within {ALL_WAIT:?}"), began);
                let reading = readings.get(&source).cloned().unwrap_or_else(late);
                ((name.clone(), source), reading)
            };
            Source::all_of(pool).into_iter().map(reading).collect::<Vec<_>>()
        };
        Self(spec.pools.iter().flat_map(of_pool).collect())
    }

    /// Returns the addresses of a server of the configuration.
    pub(crate) fn targets(&self, pool: &PoolSpec, server: &ServerSpec) -> Vec<Target> {
        let Some(source) = Source::of_server(pool, server) else {
            return server.endpoint.target().into_iter().collect();
        };
        let reading = self.0.get(&(pool.name.clone(), source));
        let servers = reading.and_then(|reading| reading.scan.servers()).unwrap_or_default();
        servers.iter().map(|server| server.target.clone()).collect()
    }

    /// Returns a problem for each source that could not be read and is required.
    pub(crate) fn problems(&self, config: &Config) -> Vec<Problem> {
        let pools = config.spec.pools.iter().filter(|pool| pool.resolve == Resolve::Required);
        let mut problems: Vec<Problem> = pools.flat_map(|pool| self.problems_of(config, pool)).collect();
        problems.sort();
        problems.dedup();
        problems
    }

    fn problems_of(&self, config: &Config, pool: &PoolSpec) -> Vec<Problem> {
        let failure = |source: Source| self.0.get(&(pool.name.clone(), source))?.scan.failure();
        let of_server = |server: &ServerSpec| {
            let failure = failure(Source::of_server(pool, server)?)?;
            Some(config.problem_with_server(&server.endpoint, failure))
        };
        let of_source = |discover: &DiscoverSpec| {
            let failure = failure(Source::of_discover(pool, discover))?;
            let message = format!("pool `{}`: {discover}: {failure}", pool.name);
            Some(config.problem_with_source(&pool.name, discover, message))
        };
        // A directory of sockets is never required: its processes may start later.
        let required = pool.discover.iter().filter(|source| !matches!(source, DiscoverSpec::Mname { .. }));
        pool.servers.iter().filter_map(of_server).chain(required.filter_map(of_source)).collect()
    }

    /// Returns a note for each source that is not required and has a problem.
    pub(crate) fn notes(&self) -> impl Iterator<Item = String> {
        let note = |((pool, source), reading): (&(Arc<str>, Source), &Reading)| {
            let problem = reading.scan.problem()?;
            Some(format!("pool `{pool}`: {source}: {problem}"))
        };
        self.0.iter().filter_map(note)
    }

    /// Creates the results of reads.
    #[cfg(test)]
    pub(crate) fn new(found: Vec<Found>) -> Self {
        Self(found.into_iter().map(Found::into_parts).collect())
    }

    /// Returns the results one by one.
    pub(crate) fn into_found(self) -> impl Iterator<Item = Found> {
        self.0.into_iter().map(|((pool, source), reading)| Found { pool, source, reading })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::spec::FoundSettings;

    #[test]
    fn a_source_has_the_text_of_its_declaration() {
        let settings = FoundSettings::DEFAULT;
        let pool = PoolSpec {
            discover: vec![
                DiscoverSpec::Mname { directory: "/run/sockets".into() },
                DiscoverSpec::File { path: "/etc/servers".into(), port: Some(80), settings },
                DiscoverSpec::Dns { name: "app.example".into(), port: 80, settings },
                DiscoverSpec::Srv { name: "_http._tcp.example".into(), limits: settings.limits },
            ],
            ..PoolSpec::new("p", vec![ServerSpec::new("app.example:80".parse().unwrap())])
        };
        let texts: Vec<String> = Source::all_of(&pool).iter().map(ToString::to_string).collect();
        let mut expected: Vec<String> = pool.discover.iter().map(ToString::to_string).collect();
        expected.insert(2, "app.example:80".into());
        assert_eq!(texts, expected);
        assert!(Source::all_of(&pool).iter().all(|source| *source >= Source::first()));
    }

    #[test]
    fn the_order_of_addresses_stays_when_a_family_cannot_be_resolved() {
        let scan = |addresses: &[&str], unknown: Option<Family>| {
            let server = |address: &&str| Listed::of_host(address.parse().unwrap(), "app.example");
            let servers = addresses.iter().map(server).collect();
            Scan::Listed(List { servers, problem: None, unknown, valid_for: Duration::ZERO })
        };
        let both = ["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80", "[2001:db8::2]:80"];
        let before = scan(&both, None).servers_after(&[]).unwrap();
        for (resolved, unknown) in [(&both[2..], Family::V4), (&both[..2], Family::V6)] {
            let after = scan(resolved, Some(unknown)).servers_after(&before).unwrap();
            assert_eq!(after, before, "{unknown:?}");
        }
        let after = scan(&both[3..], Some(Family::V4)).servers_after(&before).unwrap();
        assert_eq!(after, [&before[..2], &before[3..]].concat());
    }
}
