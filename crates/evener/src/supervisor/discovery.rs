//! Servers that are found while the program runs: sockets in a directory. They are added to and removed from
//! their pools as a reload adds and removes servers, and keep their identity. A directory that cannot be read
//! changes nothing.

use super::{Input, Supervisor};
use crate::discover::{Found, Scan, Watcher, directories, scan};
use evener_core::event::Event;
use evener_core::spec::{Dialect, DiscoverSpec, PoolSpec, ServerSpec, Spec};
use evener_core::{Endpoint, Target, Time};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Interval of scans, which come in addition to notifications of changes.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of socket numbers of a pool for which the numbers of removed sockets are remembered, because
/// the sockets may return. Beyond it they are forgotten.
const NUMBERS_MAX: usize = 4096;
/// File names that are the number of their socket, as for mname-balancer.
const NUMBERS_IN_NAMES: std::ops::RangeInclusive<u32> = 5300..=5399;

/// State of the discovery.
#[derive(Default)]
pub(super) struct Discovery {
    next: Time,
    busy: bool,
    /// True if a directory changed during a scan, which may have missed the change.
    again: bool,
    directories: BTreeSet<PathBuf>,
    found: Found,
    /// Problems of directories that were logged. They are not logged again.
    logged: BTreeMap<PathBuf, String>,
    numbers: BTreeMap<Arc<str>, Numbers>,
    watcher: Option<Watcher>,
}

/// Result of a scan.
pub(crate) struct Scanned {
    /// Number of the configuration for which the scan was made.
    configuration: u64,
    found: Found,
}

/// Numbers of the sockets of a pool.
#[derive(Debug, Default)]
struct Numbers(BTreeMap<PathBuf, u32>);

impl Numbers {
    /// Returns the number of a socket: its present number, else the number in its name, else the next number
    /// after the greatest.
    fn of(&mut self, path: &Path) -> u32 {
        if let Some(&known) = self.0.get(path) {
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

impl Discovery {
    /// Applies the result of a scan. Directories that could not be read keep their sockets.
    fn update(&mut self, found: Found) {
        for (directory, scan) in found {
            match self.found.entry(directory) {
                Entry::Occupied(mut known) => known.get_mut().update(scan),
                Entry::Vacant(new) => drop(new.insert(scan)),
            }
        }
    }

    /// Returns the servers that were found for a pool, sorted by number.
    fn servers_of(&mut self, pool: &PoolSpec) -> Vec<ServerSpec> {
        let found = &self.found;
        let sockets = |DiscoverSpec::Mname { directory }: &DiscoverSpec| {
            found.get(directory).into_iter().flat_map(Scan::sockets)
        };
        // Sockets that the configuration names are servers already.
        let is_new = |path: &&PathBuf| {
            !pool
                .servers
                .iter()
                .any(|server| matches!(&server.endpoint, Endpoint::Unix(existing) if existing == *path))
        };
        let paths = pool.discover.iter().flat_map(sockets).filter(is_new);
        let paths: BTreeSet<PathBuf> = paths.cloned().collect();
        let numbers = self.numbers.entry(pool.name.clone()).or_default();
        numbers.make_room(&paths);
        // Sockets with a number in their name come first, so that no other socket takes that number.
        let (mut of_name, others): (Vec<_>, Vec<_>) =
            paths.iter().partition(|path| number_in_name(path).is_some());
        of_name.extend(others);
        let mut numbered: Vec<(u32, &PathBuf)> =
            of_name.into_iter().map(|path| (numbers.of(path), path)).collect();
        numbered.sort_unstable();
        let mut names: BTreeSet<Arc<str>> = pool.servers.iter().map(|server| server.name.clone()).collect();
        let mut server = |path: &PathBuf| {
            let short = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let candidates = [short, path.display().to_string()];
            // If two sockets have the same file name, the name of the second socket is its path.
            let name = candidates.into_iter().map(Arc::from).find(|name| names.insert(Arc::clone(name)))?;
            let server = ServerSpec::new(Endpoint::Unix(path.clone()));
            Some(ServerSpec { name, dialect: Dialect::Mname, ..server })
        };
        numbered.into_iter().filter_map(|(_, path)| server(path)).collect()
    }
}

impl Supervisor {
    /// Prepares for a new configuration, with the scan that was made for it.
    pub(super) fn configure_discovery(&mut self, spec: &Spec, found: Found) {
        let directories = directories(spec);
        self.discovery.update(found);
        self.discovery.numbers.retain(|name, _| spec.pools.iter().any(|pool| pool.name == *name));
        self.discovery.found.retain(|directory, _| directories.contains(directory));
        self.discovery.logged.retain(|directory, _| directories.contains(directory));
        if self.discovery.directories != directories {
            self.discovery.watcher = None;
            self.discovery.directories = directories;
            // An immediate scan finds changes between the first scan and the start of the watch.
            self.discovery.next = self.now();
        }
        // A scan in progress is for another configuration.
        self.discovery.busy = false;
        self.log_problems();
    }

    /// Returns the pool with the servers that were found for it.
    pub(super) fn with_found(&mut self, spec: &PoolSpec) -> PoolSpec {
        let mut spec = spec.clone();
        if !spec.discover.is_empty() {
            let found = self.discovery.servers_of(&spec);
            spec.servers.extend(found);
        }
        spec
    }

    /// Returns the number of a server that was found in a directory.
    pub(super) fn number_of(&self, pool: &str, target: &Target) -> Option<u32> {
        let Target::Unix(path) = target else { return None };
        self.discovery.numbers.get(pool)?.0.get(path).copied()
    }

    /// Scans directories on another thread if a scan is due.
    pub(super) fn scan_directories(&mut self, now: Time) {
        if now < self.discovery_deadline() || self.is_draining() {
            return;
        }
        (self.discovery.busy, self.discovery.next) = (true, now + CHECK_EVERY);
        let (sender, configuration) = (self.sender.clone(), self.configurations);
        let wanted = self.discovery.directories.clone();
        let watch = self.watcher().map(|watcher| watcher.watch(&wanted));
        tokio::spawn(async move {
            let work = move || {
                // The watch starts before the scan, so that no change between them is missed.
                let all_exist = watch.as_ref().is_none_or(|watch| watch());
                let found = scan(&wanted);
                if all_exist || watch.is_none_or(|watch| !watch()) {
                    return found;
                }
                // A directory was created since the watch started.
                scan(&wanted)
            };
            let found = tokio::task::spawn_blocking(work).await.unwrap_or_default();
            let _ = sender.send(Input::Scanned(Scanned { configuration, found })).await;
        });
    }

    fn watcher(&mut self) -> Option<&Watcher> {
        if self.discovery.watcher.is_none() {
            let sender = self.sender.clone();
            let changed = move || {
                let sender = sender.clone();
                async move { sender.send(Input::DirectoryChanged).await.is_ok() }
            };
            self.discovery.watcher = Watcher::start(changed).ok();
        }
        self.discovery.watcher.as_ref()
    }

    pub(super) fn on_directory_changed(&mut self) {
        self.discovery.again = self.discovery.busy;
        self.discovery.next = self.now();
    }

    pub(super) fn on_scanned(&mut self, Scanned { configuration, found }: Scanned) {
        if configuration != self.configurations {
            // A configuration that was applied since had its own, newer scan.
            return;
        }
        self.discovery.busy = false;
        if std::mem::take(&mut self.discovery.again) {
            self.discovery.next = self.now();
        }
        self.discovery.update(found);
        self.log_problems();
        self.update_found_servers();
    }

    /// Adds and removes servers after a scan.
    fn update_found_servers(&mut self) {
        let pools = self.config.spec.pools.iter().filter(|pool| !pool.discover.is_empty());
        let mut changed = false;
        for spec in pools.cloned().collect::<Vec<_>>() {
            let spec = self.with_found(&spec);
            changed |= self.update_found_servers_of(&spec);
        }
        if changed {
            self.publish();
            self.plane.maintain();
        }
    }

    /// Updates the discovered servers of a pool. Returns true if they changed. Servers of the configuration
    /// stay as they are.
    fn update_found_servers_of(&mut self, spec: &PoolSpec) -> bool {
        let Some(pool) = self.pools.get(&spec.name).filter(|pool| pool.spec() != spec) else {
            return false;
        };
        let known: BTreeMap<&Endpoint, &Target> =
            pool.servers().iter().map(|server| (&server.spec.endpoint, &server.target)).collect();
        let target = |server: &ServerSpec| {
            known.get(&server.endpoint).map(|target| (*target).clone()).or_else(|| server.endpoint.target())
        };
        // Each endpoint is a path or belongs to a known server, so no name has to be resolved.
        let Some(targets) = spec.servers.iter().map(target).collect::<Option<Vec<_>>>() else { return false };
        let events = self.pools.replace_servers(spec, &targets, self.now());
        self.log_all(&events);
        true
    }

    fn log_problems(&mut self) {
        let mut logged = BTreeMap::new();
        for (directory, scan) in &self.discovery.found {
            let Some(problem) = scan.problem() else { continue };
            if self.discovery.logged.get(directory).is_none_or(|logged| logged != problem) {
                let directory = directory.display().to_string();
                self.log(&Event::DiscoveryFailed { directory, problem: problem.to_owned() });
            }
            logged.insert(directory.clone(), problem.to_owned());
        }
        self.discovery.logged = logged;
    }

    pub(super) fn discovery_deadline(&self) -> Time {
        let Discovery { directories, busy, next, .. } = &self.discovery;
        if directories.is_empty() || *busy || self.is_draining() { Time::NEVER } else { *next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[&str], configured: &[&str], expected: &str) {
        let mut discovery = Discovery::default();
        let mut sockets: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
        for path in found.iter().map(PathBuf::from) {
            sockets.entry(path.parent().unwrap().to_owned()).or_default().insert(path);
        }
        let scanned = |(directory, sockets)| (directory, Scan::found(sockets, None));
        discovery.update(sockets.into_iter().map(scanned).collect());
        let servers = configured.iter().map(|name| ServerSpec::new(name.parse().unwrap())).collect();
        let directory = |directory: &PathBuf| DiscoverSpec::Mname { directory: directory.clone() };
        let discover = discovery.found.keys().map(directory).collect();
        let pool = PoolSpec { discover, ..PoolSpec::new("p", servers) };
        let servers = discovery.servers_of(&pool);
        let named = servers.iter().map(|server| {
            let Endpoint::Unix(path) = &server.endpoint else { panic!("a found server has a path") };
            format!("{}={}", server.name, discovery.numbers["p"].0[path])
        });
        assert_eq!(named.collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn servers_get_the_names_and_numbers_of_their_sockets() {
        check(&["/s/5301", "/s/5300"], &[], "5300=5300 5301=5301");
        check(&["/s/a", "/s/b"], &[], "a=1 b=2");
        check(&["/s/a", "/s/5399", "/s/5299", "/s/05300"], &[], "5399=5399 05300=5400 5299=5401 a=5402");
        check(&["/s/5300", "/t/5300"], &[], "5300=5300 /t/5300=5301");
        check(&["/s/a", "/s/b"], &["/s/a"], "b=1");
        check(&[], &["127.0.0.1:53"], "");
    }

    #[test]
    fn a_socket_that_returns_keeps_its_number_and_an_unreadable_directory_keeps_its_sockets() {
        let mut numbers = Numbers::default();
        let mut of = |path: &str| numbers.of(Path::new(path));
        assert_eq!([of("/s/a"), of("/s/5300"), of("/s/b"), of("/s/a")], [1, 5300, 5301, 1]);
        assert_eq!(of("/s/5301"), 5302, "the number in the name is in use");
        let mut discovery = Discovery::default();
        let sockets = BTreeSet::from([PathBuf::from("/s/a")]);
        discovery.update(Found::from([("/s".into(), Scan::found(sockets, None))]));
        discovery.update(Found::from([("/s".into(), Scan::unreadable("no".into()))]));
        let scan = &discovery.found[Path::new("/s")];
        assert_eq!((scan.sockets().count(), scan.problem()), (1, Some("no")));
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
