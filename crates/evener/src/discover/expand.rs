//! The servers of a pool: the configured servers, with one server for each address of a host name, and the servers
//! that the sources list.
//!
//! A server that a source lists has its address as its name. A configured server with a host name keeps its name
//! while the host has one address; with several addresses, the name of each is followed by its address.

use super::{Listed, Source};
use evener_core::spec::{Dialect, DiscoverSpec, FoundSettings, PoolSpec, ServerSpec};
use evener_core::{Endpoint, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of socket numbers of a pool for which the numbers of removed sockets are remembered, because
/// the sockets may return. Beyond it they are forgotten.
const NUMBERS_MAX: usize = 4096;
/// File names that are the number of their socket, as for mname-balancer.
const NUMBERS_IN_NAMES: std::ops::RangeInclusive<u32> = 5300..=5399;

/// Numbers of the sockets of a pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers(BTreeMap<PathBuf, u32>);

impl Numbers {
    /// Returns the number of a socket, if it has one.
    pub(crate) fn known(&self, path: &Path) -> Option<u32> {
        self.0.get(path).copied()
    }

    /// Returns the number of a socket: its present number, else the number in its name, else the next number
    /// after the greatest.
    fn of(&mut self, path: &Path) -> u32 {
        if let Some(known) = self.known(path) {
            return known;
        }
        let is_free = |number: &u32| self.0.values().all(|other| other != number);
        let next = || self.0.values().max().map_or(1, |most| most + 1);
        let number = number_in_name(path).filter(is_free).unwrap_or_else(next);
        self.0.insert(path.to_owned(), number);
        number
    }

    /// Forgets numbers of removed sockets if there are too many.
    fn make_room(&mut self, present: &BTreeSet<PathBuf>) {
        if self.0.len() > NUMBERS_MAX {
            self.0.retain(|path, _| present.contains(path));
        }
    }
}

fn number_in_name(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let number = name.parse().ok().filter(|number| NUMBERS_IN_NAMES.contains(number))?;
    (name == number.to_string()).then_some(number)
}

/// The servers of a pool with their addresses.
#[derive(Debug)]
pub(crate) struct Expanded {
    spec: PoolSpec,
    targets: Vec<Target>,
    /// Number of servers of the configuration, which come first.
    configured: usize,
    /// Sources of the servers that were found.
    origins: BTreeMap<Arc<str>, String>,
    /// Addresses that were not used.
    refused: BTreeSet<Arc<str>>,
}

impl Expanded {
    /// Returns the servers of a pool that has only servers with addresses, as most pools have.
    fn of_addresses(pool: &PoolSpec) -> Option<Self> {
        if !pool.discover.is_empty() {
            return None;
        }
        let targets =
            pool.servers.iter().map(|server| server.endpoint.target()).collect::<Option<Vec<_>>>()?;
        let (configured, spec) = (targets.len(), pool.clone());
        Some(Self { spec, targets, configured, origins: BTreeMap::new(), refused: BTreeSet::new() })
    }

    /// Returns the servers of a pool of addresses.
    #[cfg(test)]
    pub(crate) fn for_test(pool: &PoolSpec) -> Option<Self> {
        Self::of_addresses(pool)
    }

    /// Removes the servers that a predicate does not select.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&ServerSpec) -> bool) {
        let (servers, targets) = (std::mem::take(&mut self.spec.servers), std::mem::take(&mut self.targets));
        let configured = self.configured;
        for (at, (server, target)) in servers.into_iter().zip(targets).enumerate() {
            if is_wanted(&server) {
                self.spec.servers.push(server);
                self.targets.push(target);
            } else if at < configured {
                self.configured -= 1;
            }
        }
    }

    /// Adds servers with addresses and their origins, except those whose name or address the pool has.
    pub(crate) fn add_all<'a>(&mut self, added: impl Iterator<Item = (&'a ServerSpec, String)>) {
        let mut added = added.peekable();
        if added.peek().is_none() {
            return;
        }
        let mut names: BTreeSet<_> =
            self.spec.servers.iter().map(|server| Arc::clone(&server.name)).collect();
        let mut taken: BTreeSet<_> = self.targets.iter().cloned().collect();
        for (server, origin) in added {
            let Some(target) = server.endpoint.target() else { continue };
            if names.contains(&server.name) || !taken.insert(target.clone()) {
                continue;
            }
            names.insert(Arc::clone(&server.name));
            self.origins.insert(Arc::clone(&server.name), origin);
            self.spec.servers.push(server.clone());
            self.targets.push(target);
        }
    }

    /// Changes the weights of servers for whose names `weight_of` returns one.
    pub(crate) fn set_weights(&mut self, weight_of: impl Fn(&str) -> Option<u32>) {
        for server in &mut self.spec.servers {
            if let Some(weight) = weight_of(&server.name) {
                server.weight = weight;
            }
        }
    }

    /// Returns the specification of the pool, with all its servers.
    pub(crate) fn spec(&self) -> &PoolSpec {
        &self.spec
    }

    /// Returns the addresses of the servers, in the order of the specification.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Returns the names of the servers that sources list.
    pub(crate) fn found(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spec.servers[self.configured..].iter().map(|server| &server.name)
    }

    /// Takes the sources of the servers that were found, by the names of the servers.
    pub(crate) fn take_origins(&mut self) -> BTreeMap<Arc<str>, String> {
        std::mem::take(&mut self.origins)
    }

    /// Returns the names of the servers that were refused.
    pub(crate) fn refused(&self) -> &BTreeSet<Arc<str>> {
        &self.refused
    }
}

/// Addresses of the servers that a pool would have if none were refused.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    /// Addresses in the configuration.
    fixed: Vec<Target>,
    /// Addresses that sources list.
    listed: Vec<Target>,
}

impl Candidates {
    /// Returns the addresses of a pool. `listed` returns the servers that a source lists.
    pub(crate) fn of<'a>(pool: &PoolSpec, listed: impl Fn(&Source) -> &'a [Listed]) -> Self {
        let fixed = pool.servers.iter().filter_map(|server| server.endpoint.target()).collect();
        let sources = Source::all_of(pool);
        let servers = sources.iter().flat_map(listed);
        Self { fixed, listed: servers.map(|server| server.target.clone()).collect() }
    }

    /// Returns the addresses without those listed addresses that `is_possible` rejects.
    pub(crate) fn retain(mut self, is_possible: impl Fn(&Target) -> bool) -> Vec<Target> {
        self.listed.retain(is_possible);
        self.fixed.append(&mut self.listed);
        self.fixed
    }
}

/// Returns the servers of a pool. `listed` returns the servers that a source lists, and `refuses` returns true for an
/// address that leads back to a service of the pool.
pub(crate) fn expand<'a>(
    pool: &PoolSpec,
    listed: impl Fn(&Source) -> &'a [Listed],
    refuses: impl Fn(&Target) -> bool,
    numbers: &mut Numbers,
) -> Expanded {
    if let Some(unchanged) = Expanded::of_addresses(pool) {
        return unchanged;
    }
    let mut expansion = Expansion::new(pool);
    for server in &pool.servers {
        match Source::of_server(pool, server) {
            None => expansion.extend(server.endpoint.target().map(|target| (server.clone(), target))),
            Some(source) => expansion.add_host(server, listed(&source), &refuses),
        }
    }
    let configured = expansion.servers.len();
    let sockets = pool.discover.iter().filter(|source| matches!(source, DiscoverSpec::Mname { .. }));
    let sockets = sockets.flat_map(|discover| {
        let source = Source::of_discover(pool, discover);
        listed(&source).iter().map(move |server| (server.target.clone(), source.to_string()))
    });
    expansion.add_sockets(sockets.collect(), numbers);
    for discover in &pool.discover {
        let settings = match discover {
            DiscoverSpec::Mname { .. } => continue,
            DiscoverSpec::File { settings, .. } | DiscoverSpec::Dns { settings, .. } => *settings,
            DiscoverSpec::Srv { limits, .. } => FoundSettings { limits: *limits, ..FoundSettings::DEFAULT },
        };
        let source = Source::of_discover(pool, discover);
        for server in listed(&source) {
            expansion.add_found(server, settings, &discover.to_string(), &refuses);
        }
    }
    let Expansion { servers, targets, origins, refused, .. } = expansion;
    Expanded { spec: PoolSpec { servers, ..pool.clone() }, targets, configured, origins, refused }
}

#[derive(Debug)]
struct Expansion {
    servers: Vec<ServerSpec>,
    targets: Vec<Target>,
    /// Names that are in use.
    names: BTreeSet<Arc<str>>,
    /// Addresses that are in use.
    taken: BTreeSet<Target>,
    origins: BTreeMap<Arc<str>, String>,
    refused: BTreeSet<Arc<str>>,
}

impl Extend<(ServerSpec, Target)> for Expansion {
    fn extend<I: IntoIterator<Item = (ServerSpec, Target)>>(&mut self, servers: I) {
        for (server, target) in servers {
            // A sorry server may be a real server as well.
            if !server.is_sorry {
                self.taken.insert(target.clone());
            }
            self.servers.push(server);
            self.targets.push(target);
        }
    }
}

impl Expansion {
    fn new(pool: &PoolSpec) -> Self {
        Self {
            servers: Vec::with_capacity(pool.servers.len()),
            targets: Vec::with_capacity(pool.servers.len()),
            names: pool.servers.iter().map(|server| server.name.clone()).collect(),
            taken: BTreeSet::new(),
            origins: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Adds a configured server for each address of its host name.
    fn add_host(&mut self, server: &ServerSpec, listed: &[Listed], refuses: impl Fn(&Target) -> bool) {
        let is_refused = |one: &&Listed| refuses(&one.target);
        let name_of = |one: &Listed| server.name_at(&one.target);
        self.refused.extend(listed.iter().filter(is_refused).map(name_of));
        let used: Vec<&Listed> = listed.iter().filter(|one| !is_refused(one)).collect();
        for one in &used {
            let name = if used.len() > 1 { name_of(one) } else { server.name.clone() };
            if used.len() == 1 || self.names.insert(name.clone()) {
                let configured_name = Some(server.name.clone());
                let server = ServerSpec { name, configured_name, ..server.clone() };
                self.extend([(server, one.target.clone())]);
            }
        }
    }

    /// Adds the sockets of directories, sorted by number.
    fn add_sockets(&mut self, sockets: Vec<(Target, String)>, numbers: &mut Numbers) {
        let new = sockets.into_iter().filter(|(target, _)| !self.taken.contains(target));
        let origins: BTreeMap<PathBuf, String> = new
            .filter_map(|(target, source)| match target {
                Target::Unix(path) => Some((path, source)),
                Target::Ip(_) => None,
            })
            .collect();
        let paths: BTreeSet<PathBuf> = origins.keys().cloned().collect();
        numbers.make_room(&paths);
        // Sockets with a number in their name come first, so that no other socket takes that number.
        let (mut of_name, others): (Vec<_>, Vec<_>) =
            origins.into_iter().partition(|(path, _)| number_in_name(path).is_some());
        of_name.extend(others);
        let mut numbered: Vec<(u32, (PathBuf, String))> =
            of_name.into_iter().map(|(path, source)| (numbers.of(&path), (path, source))).collect();
        numbered.sort_unstable();
        for (_, (path, source)) in numbered {
            let short = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // If two sockets have the same file name, the name of the second socket is its path.
            let Some(name) = self.free_name([short, path.display().to_string()]) else { continue };
            self.origins.insert(name.clone(), source);
            let server = ServerSpec::new(Endpoint::Unix(path.clone()));
            self.extend([(ServerSpec { name, dialect: Dialect::Mname, ..server }, Target::Unix(path))]);
        }
    }

    fn add_found(
        &mut self,
        listed: &Listed,
        settings: FoundSettings,
        source: &str,
        refuses: impl Fn(&Target) -> bool,
    ) {
        let Listed { target, host, weight, tier } = listed;
        if self.taken.contains(target) {
            return;
        }
        if refuses(target) {
            self.refused.insert(target.to_string().into());
            return;
        }
        // A configured server may have the address as its name.
        let names = [target.to_string(), format!("{target} ({source})")];
        let (Some(name), Some(endpoint)) = (self.free_name(names), host.clone().or_else(|| endpoint(target)))
        else {
            return;
        };
        self.origins.insert(name.clone(), source.to_owned());
        let FoundSettings { weight: usual_weight, tier: usual_tier, limits } = settings;
        let server = ServerSpec {
            name,
            weight: weight.unwrap_or(usual_weight),
            tier: tier.unwrap_or(usual_tier),
            limits,
            ..ServerSpec::new(endpoint)
        };
        self.extend([(server, target.clone())]);
    }

    /// Returns the first of these names that is not in use.
    fn free_name<const N: usize>(&mut self, names: [String; N]) -> Option<Arc<str>> {
        names.into_iter().map(Arc::from).find(|name| self.names.insert(Arc::clone(name)))
    }
}

fn endpoint(target: &Target) -> Option<Endpoint> {
    match target {
        Target::Ip(address) => Some(Endpoint::Ip(*address)),
        Target::Unix(path) => Some(Endpoint::Unix(path.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::Time;
    use evener_core::pool::{Pool, PoolSetting};

    /// The servers that each source of a pool lists, by the text of the source.
    type Lists = BTreeMap<&'static str, Vec<Listed>>;

    fn at(addresses: &[&str]) -> Vec<Listed> {
        addresses
            .iter()
            .map(|address| Listed::at(address.parse::<Endpoint>().unwrap().target().unwrap()))
            .collect()
    }

    /// Expands a pool and returns `name=address weight/tier` of each server.
    fn expanded(pool: &PoolSpec, lists: &Lists, numbers: &mut Numbers) -> Vec<String> {
        let listed = |source: &Source| lists.get(&*source.to_string()).map_or(&[][..], |list| list);
        let refuses = |target: &Target| target.to_string() == "10.0.0.66:80";
        let expanded = expand(pool, listed, refuses, numbers);
        let servers = expanded.spec.servers.iter().zip(&expanded.targets);
        let described = |(server, target): (&ServerSpec, &Target)| {
            format!("{}={target} {}/{}", server.name, server.weight, server.tier)
        };
        let refused = expanded.refused.iter().map(|name| format!("refused {name}"));
        servers.map(described).chain(refused).collect()
    }

    fn pool(servers: &[&str]) -> PoolSpec {
        PoolSpec::new("p", servers.iter().map(|name| ServerSpec::new(name.parse().unwrap())).collect())
    }

    #[test]
    fn a_host_name_is_a_server_for_each_address() {
        let pool = pool(&["app.example:80", "10.0.0.9:80"]);
        let check = |addresses: &[&str], expected: &[&str]| {
            let lists = Lists::from([("app.example:80", at(addresses))]);
            assert_eq!(expanded(&pool, &lists, &mut Numbers::default()), expected);
        };
        check(&[], &["10.0.0.9:80=10.0.0.9:80 1/1"]);
        check(&["10.0.0.1:80"], &["app.example:80=10.0.0.1:80 1/1", "10.0.0.9:80=10.0.0.9:80 1/1"]);
        check(
            &["10.0.0.1:80", "[::1]:80"],
            &[
                "app.example:80 (10.0.0.1)=10.0.0.1:80 1/1",
                "app.example:80 (::1)=[::1]:80 1/1",
                "10.0.0.9:80=10.0.0.9:80 1/1",
            ],
        );
        check(
            &["10.0.0.1:80", "10.0.0.66:80"],
            &[
                "app.example:80=10.0.0.1:80 1/1",
                "10.0.0.9:80=10.0.0.9:80 1/1",
                "refused app.example:80 (10.0.0.66)",
            ],
        );
    }

    #[test]
    fn servers_with_one_host_name_keep_their_identities_when_the_number_of_addresses_changes() {
        let mut spec = pool(&["app.example:80", "app.example:80"]);
        (spec.servers[0].name, spec.servers[1].name) = ("a".into(), "b".into());
        spec.servers[1].tier = 2;
        let servers = |listed: &[Listed]| expand(&spec, |_| listed, |_| false, &mut Numbers::default());
        let (one, two) = (servers(&at(&["10.0.0.1:80"])), servers(&at(&["10.0.0.1:80", "10.0.0.2:80"])));
        let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
        let mut state = Pool::new(one.spec(), one.targets(), setting, Time::ZERO);
        for (expanded, expected) in [
            (&one, "a=0 b=1"),
            (&two, "a (10.0.0.1)=0 a (10.0.0.2)=2 b (10.0.0.1)=1 b (10.0.0.2)=3"),
            (&one, "a=0 b=1"),
        ] {
            state.apply(expanded.spec(), expanded.targets(), Time::ZERO);
            let ids = state.servers().iter().map(|server| format!("{}={}", server.spec.name, server.id.0));
            assert_eq!(ids.collect::<Vec<_>>().join(" "), expected);
        }
    }

    #[test]
    fn found_servers_have_their_addresses_as_names_and_the_settings_of_their_source() {
        let settings = FoundSettings { weight: 3, tier: 2, ..FoundSettings::DEFAULT };
        let mut pool = pool(&["10.0.0.1:80", "10.0.0.2:80"]);
        pool.servers[1].name = "10.0.0.4:80".into();
        pool.discover = vec![
            DiscoverSpec::File { path: "/f".into(), port: None, settings },
            DiscoverSpec::Dns { name: "app".into(), port: 80, settings: FoundSettings::DEFAULT },
        ];
        let mut in_file = at(&["10.0.0.1:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.66:80"]);
        in_file[1].weight = Some(7);
        let lists = Lists::from([
            ("discover.file /f", in_file),
            ("discover.dns app:80", at(&["10.0.0.5:80", "10.0.0.3:80"])),
        ]);
        assert_eq!(
            expanded(&pool, &lists, &mut Numbers::default()),
            [
                "10.0.0.1:80=10.0.0.1:80 1/1",
                "10.0.0.4:80=10.0.0.2:80 1/1",
                "10.0.0.3:80=10.0.0.3:80 7/2",
                "10.0.0.4:80 (discover.file /f)=10.0.0.4:80 3/2",
                "10.0.0.5:80=10.0.0.5:80 1/1",
                "refused 10.0.0.66:80",
            ]
        );
    }

    #[test]
    fn sockets_get_the_names_and_numbers_of_their_files() {
        let check = |found: &[&str], configured: &[&str], expected: &str| {
            let mut pool = pool(configured);
            let mut lists = Lists::new();
            for (directory, source) in [("/s", "discover.mname /s"), ("/t", "discover.mname /t")] {
                let paths: Vec<&str> =
                    found.iter().copied().filter(|path| path.starts_with(directory)).collect();
                pool.discover.push(DiscoverSpec::Mname { directory: directory.into() });
                lists.insert(source, at(&paths));
            }
            let mut numbers = Numbers::default();
            let listed = |source: &Source| lists.get(&*source.to_string()).map_or(&[][..], |list| list);
            let expanded = expand(&pool, listed, |_| false, &mut numbers);
            let number = |target: &Target| match target {
                Target::Unix(path) => numbers.known(path).unwrap(),
                Target::Ip(_) => 0,
            };
            let found = expanded.found().zip(&expanded.targets[configured.len()..]);
            let named: Vec<String> =
                found.map(|(name, target)| format!("{name}={}", number(target))).collect();
            assert_eq!(named.join(" "), expected);
        };
        check(&["/s/5301", "/s/5300"], &[], "5300=5300 5301=5301");
        check(&["/s/a", "/s/b"], &[], "a=1 b=2");
        check(&["/s/a", "/s/5399", "/s/5299", "/s/05300"], &[], "5399=5399 05300=5400 5299=5401 a=5402");
        check(&["/s/5300", "/t/5300"], &[], "5300=5300 /t/5300=5301");
        check(&["/s/a", "/s/b"], &["/s/a"], "b=1");
        check(&[], &["127.0.0.1:53"], "");
    }

    #[test]
    fn a_socket_that_returns_keeps_its_number() {
        let mut numbers = Numbers::default();
        let mut of = |path: &str| numbers.of(Path::new(path));
        assert_eq!([of("/s/a"), of("/s/5300"), of("/s/b"), of("/s/a")], [1, 5300, 5301, 1]);
        assert_eq!(of("/s/5301"), 5302, "the number in the name is in use");
    }

    #[test]
    fn numbers_of_removed_sockets_are_forgotten_beyond_the_maximum() {
        let mut numbers = Numbers::default();
        for n in 0..=NUMBERS_MAX {
            numbers.of(Path::new(&format!("/s/x{n}")));
        }
        numbers.make_room(&BTreeSet::from([PathBuf::from("/s/x7")]));
        assert_eq!(numbers.0.len(), 1);
    }
}
