//! The pools of the running configuration: their states, the snapshots that workers read, and the persistent
//! connections of workers to their servers. Callers log the events.

use crate::config::nearest;
use crate::discover::Expanded;
use crate::planes::Planes;
use arc_swap::ArcSwap;
use evener_core::event::Event;
use evener_core::health::{Failure, Probe, Verdict};
use evener_core::pool::{Pool, PoolSetting, Server};
use evener_core::snapshot::{Admission, Entry, Quorum, Snapshot};
use evener_core::spec::{AdminState, Dialect, OnDown, PoolSpec};
use evener_core::{ServerId, Target, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The pools by name.
#[derive(Default)]
pub(super) struct Pools {
    by_name: BTreeMap<Arc<str>, RunningPool>,
    /// Workers that have a persistent connection to a server.
    persistent: BTreeMap<(Arc<str>, ServerId), BTreeSet<usize>>,
    /// Next identity of a server. Identities of removed pools are not used again.
    next_id: u32,
}

/// A pool with the cell in which its snapshots are published.
struct RunningPool {
    pool: Pool,
    slot: Arc<ArcSwap<Snapshot>>,
    usable: bool,
    quorum: Option<Quorum>,
}

impl RunningPool {
    /// Returns the event if a snapshot has lost or gained the quorum. A pool that needs no quorum has it.
    fn note_quorum(&mut self, snapshot: &Snapshot) -> Option<Event> {
        let had_quorum = self.quorum.is_none_or(|quorum| quorum.is_met);
        let last = std::mem::replace(&mut self.quorum, snapshot.quorum().copied());
        let quorum = self.quorum.or(last)?;
        let (pool, weight) = (Arc::clone(&snapshot.pool), quorum.weight);
        let quorum = quorum.spec.weight;
        match (had_quorum, snapshot.lacks_quorum()) {
            (true, true) => Some(Event::QuorumLost { pool, weight, quorum }),
            (false, false) => Some(Event::QuorumGained { pool, weight, quorum }),
            _ => None,
        }
    }
}

/// A server and its address at the time of a report. A reload may have moved or removed the server since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported<'a> {
    pool: &'a Arc<str>,
    server: ServerId,
    target: &'a Target,
}

impl<'a> Reported<'a> {
    pub(super) fn new(pool: &'a Arc<str>, server: ServerId, target: &'a Target) -> Self {
        Self { pool, server, target }
    }

    pub(super) fn pool(self) -> &'a Arc<str> {
        self.pool
    }
}

/// A server that is down since the last publication, with its pool. Its connections are to be closed.
pub(super) type NewlyDown = (Arc<str>, Arc<Entry>);

impl Pools {
    /// Returns the pools, sorted by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.by_name.values().map(|running| &running.pool)
    }

    /// Returns a pool.
    pub(super) fn get(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|running| &running.pool)
    }

    /// Returns the cell in which the snapshots of a pool are published.
    pub(super) fn slot(&self, name: &str) -> Option<&Arc<ArcSwap<Snapshot>>> {
        self.by_name.get(name).map(|running| &running.slot)
    }

    /// Returns the pools with the cells of their snapshots, for changes that need no publication.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&mut Pool, &Arc<ArcSwap<Snapshot>>)> {
        self.by_name.values_mut().map(|running| (&mut running.pool, &running.slot))
    }

    /// Returns true if workers have persistent connections to servers of a pool.
    pub(super) fn has_persistent(&self, pool: &str) -> bool {
        let servers = self.get(pool).into_iter().flat_map(|pool| &pool.spec().servers);
        servers.into_iter().any(|server| server.dialect == Dialect::Mname)
    }

    /// Returns the time at which [`Self::on_time`] or the start of probes is due.
    pub(super) fn deadline(&self) -> Time {
        self.iter().map(Pool::deadline).min().unwrap_or(Time::NEVER)
    }

    /// Handles deadlines that have passed: ends of passive failures, temporary states and slow starts.
    pub(super) fn on_time(&mut self, now: Time) -> Vec<Event> {
        self.by_name.values_mut().flat_map(|running| running.pool.on_time(now)).collect()
    }

    /// Publishes one snapshot of every pool that changed. Returns the events, and servers whose connections are
    /// to be closed: workers already choose by the new snapshots, so no new client is sent to these servers.
    pub(super) fn publish(&mut self, planes: &mut Planes) -> (Vec<Event>, Vec<NewlyDown>) {
        let (mut events, mut down) = (Vec::new(), Vec::new());
        for (name, running) in &mut self.by_name {
            let Some(snapshot) = running.pool.snapshot() else { continue };
            events.extend(running.note_quorum(&snapshot));
            let (usable, after) = (snapshot.is_usable(), Arc::new(snapshot));
            let before = planes.publish(running.pool.spec(), &running.slot, &after);
            if running.pool.spec().on_down == OnDown::Close {
                down.extend(newly_down(&before, &after).map(|server| (Arc::clone(name), server)));
            }
            match (std::mem::replace(&mut running.usable, usable), usable) {
                (true, false) => events.push(Event::PoolDown { pool: Arc::clone(name) }),
                (false, true) => events.push(Event::PoolUp { pool: Arc::clone(name) }),
                _ => {}
            }
        }
        (events, down)
    }

    /// Creates a pool, or replaces its specification and its servers.
    pub(super) fn apply(
        &mut self,
        expanded: &Expanded,
        (workers, key): (usize, u64),
        now: Time,
    ) -> Vec<Event> {
        let spec = expanded.spec();
        if self.by_name.contains_key(&spec.name) {
            return self.replace_servers(spec, expanded.targets(), now);
        }
        let setting = PoolSetting { workers, key, first_id: self.next_id };
        let mut pool = Pool::new(spec, expanded.targets(), setting, now);
        let Some(snapshot) = pool.snapshot() else { return Vec::new() };
        let (usable, quorum) = (snapshot.is_usable(), snapshot.quorum().copied());
        let slot = Arc::new(ArcSwap::from_pointee(snapshot));
        self.by_name.insert(spec.name.clone(), RunningPool { pool, slot, usable, quorum });
        let added = |found: &Arc<str>| Event::ServerAdded { pool: spec.name.clone(), server: found.clone() };
        expanded.found().map(added).collect()
    }

    /// Replaces the servers of a pool after a source listed others. Returns `None` if nothing changed.
    pub(super) fn update(&mut self, expanded: &Expanded, now: Time) -> Option<Vec<Event>> {
        let (pool, spec) = (self.get(&expanded.spec().name)?, expanded.spec());
        let targets = pool.servers().iter().map(|server| &server.target);
        if pool.spec() == spec && targets.eq(expanded.targets()) {
            return None;
        }
        Some(self.replace_servers(spec, expanded.targets(), now))
    }

    /// Replaces the servers of a pool. Persistent connections to servers that were removed, or that have
    /// another address now, no longer count.
    fn replace_servers(&mut self, spec: &PoolSpec, targets: &[Target], now: Time) -> Vec<Event> {
        let Some(running) = self.by_name.get_mut(&spec.name) else { return Vec::new() };
        let targets_of = |pool: &Pool| -> BTreeSet<(ServerId, Target)> {
            pool.servers().iter().map(|server| (server.id, server.target.clone())).collect()
        };
        let before = targets_of(&running.pool);
        let events = running.pool.apply(spec, targets, now);
        for (moved, _) in before.difference(&targets_of(&running.pool)) {
            self.persistent.remove(&(spec.name.clone(), *moved));
        }
        events
    }

    /// Removes all pools except those of a configuration.
    pub(super) fn retain(&mut self, configured: &[PoolSpec]) {
        let names: BTreeSet<&Arc<str>> = configured.iter().map(|pool| &pool.name).collect();
        for (_, removed) in self.by_name.extract_if(.., |name, _| !names.contains(name)) {
            self.next_id = self.next_id.max(removed.pool.next_id());
        }
        self.persistent.retain(|(pool, _), _| self.by_name.contains_key(pool));
    }

    /// Handles a failure of traffic to a server.
    pub(super) fn on_failure(&mut self, now: Time, at: Reported<'_>, failure: &Failure) -> Vec<Event> {
        let Some(server) = self.name_at(at) else { return Vec::new() };
        let failed = Event::ConnectFailed { pool: at.pool.clone(), server, reason: failure.reason().into() };
        let running = self.by_name.get_mut(at.pool);
        let event = running.and_then(|running| running.pool.on_failure(now, at.server, failure));
        [failed].into_iter().chain(event).collect()
    }

    /// Handles traffic that reached a server which had failed before.
    pub(super) fn on_success(&mut self, now: Time, at: Reported<'_>) -> Option<Event> {
        self.name_at(at)?;
        self.by_name.get_mut(at.pool)?.pool.on_success(now, at.server)
    }

    /// Handles a persistent connection of a worker that opened or, with a fault, closed. A server that needs a
    /// persistent connection is up while at least one worker has such a connection.
    pub(super) fn on_session(
        &mut self,
        now: Time,
        at: Reported<'_>,
        worker: usize,
        fault: Option<String>,
    ) -> Vec<Event> {
        let Some(server) = self.name_at(at) else { return Vec::new() };
        let key = (at.pool.clone(), at.server);
        let persistent = self.persistent.entry(key.clone()).or_default();
        let (failed, result) = match fault {
            None => {
                persistent.insert(worker);
                (None, Some(Probe::Pass))
            }
            Some(reason) => {
                persistent.remove(&worker);
                let is_last = persistent.is_empty();
                if is_last {
                    self.persistent.remove(&key);
                }
                let (pool, reason) = (at.pool.clone(), reason);
                let failed = Event::PersistentConnectionFailed { pool, server, reason: reason.clone() };
                (Some(failed), is_last.then_some(Probe::Fail(reason)))
            }
        };
        let running = self.by_name.get_mut(at.pool);
        let event =
            running.zip(result).and_then(|(running, result)| running.pool.on_session(now, at.server, result));
        failed.into_iter().chain(event).collect()
    }

    /// Handles the result of a probe, and the time that it took.
    pub(super) fn on_probe(
        &mut self,
        now: Time,
        at: Reported<'_>,
        result: Probe,
        took: Duration,
    ) -> Vec<Event> {
        let Some(server) = self.server_at(at) else { return Vec::new() };
        let counters = server.live.check_counters.of(0);
        match &result {
            Probe::Pass => {
                counters.checks.passed.one();
                counters.check_seconds.record_time(took);
            }
            Probe::Fail(_) => counters.checks.failed.one(),
            Probe::Unmade(_) => {}
        }
        let server = server.spec.name.clone();
        let Some(running) = self.by_name.get_mut(at.pool) else { return Vec::new() };
        let failed = match &result {
            Probe::Fail(reason) => {
                Some(Event::ProbeFailed { pool: at.pool.clone(), server, reason: reason.clone() })
            }
            Probe::Pass | Probe::Unmade(_) => None,
        };
        running.pool.record_check(now, at.server, took, &result);
        let event = running.pool.on_probe(now, at.server, result);
        failed.into_iter().chain(event).collect()
    }

    /// Adopts the verdict of the previous instance on a server that has not been checked here.
    pub(super) fn adopt_verdict(&mut self, now: Time, (pool, server): (&str, ServerId), seen: Probe) {
        let Some(running) = self.by_name.get_mut(pool) else { return };
        let found = running.pool.server(server);
        if found.is_some_and(|server| server.health.verdict() == Verdict::Unchecked) {
            let _ = running.pool.on_probe(now, server, seen);
        }
    }

    /// Changes the administrative state of a server.
    pub(super) fn set_state(
        &mut self,
        now: Time,
        (pool, server): (&str, ServerId),
        state: AdminState,
        until: Option<Time>,
    ) -> Vec<Event> {
        let running = self.by_name.get_mut(pool);
        running.map(|running| running.pool.set_state(now, server, state, until)).unwrap_or_default()
    }

    /// Returns a server if it is still at the reported address.
    pub(super) fn server_at(&self, at: Reported<'_>) -> Option<&Server> {
        self.get(at.pool)?.server(at.server).filter(|server| server.target == *at.target)
    }

    /// Returns the name of a server if it is still at the reported address.
    fn name_at(&self, at: Reported<'_>) -> Option<Arc<str>> {
        self.server_at(at).map(|server| server.spec.name.clone())
    }

    /// Returns the message about a server that does not exist.
    fn no_server(&self, wanted: &str) -> String {
        let full = |pool: &Pool| -> Vec<String> {
            pool.servers().iter().map(|server| format!("{}/{}", pool.spec().name, server.spec.name)).collect()
        };
        if let Some(pool) = self.get(wanted) {
            return format!("`{wanted}` is a pool: give one of its servers: {}", listed(full(pool)));
        }
        let of_pool =
            |pool: &&Pool| wanted.strip_prefix(&*pool.spec().name).is_some_and(|rest| rest.starts_with('/'));
        if let Some(pool) = self.iter().find(of_pool) {
            let name = &pool.spec().name;
            let server = &wanted[name.len() + 1..];
            return match listed(full(pool)) {
                servers if servers.is_empty() => format!("pool `{name}` has no servers"),
                servers => format!("there is no server `{server}` in pool `{name}`; its servers: {servers}"),
            };
        }
        let servers: Vec<&Server> = self.iter().flat_map(Pool::servers).collect();
        let with_address = |pool: &Pool| {
            let server = pool.servers().iter().find(|server| server.target.to_string() == wanted)?;
            Some(format!("{}/{}", pool.spec().name, server.spec.name))
        };
        if let Some(server) = self.iter().find_map(with_address) {
            return format!("there is no server `{wanted}`; the server with this address is {server}");
        }
        // A similar address is another machine.
        let is_address = crate::scope::parse(wanted).is_ok();
        let names = servers.iter().map(|server| &*server.spec.name).filter(|name| name.len() > 3);
        match nearest(wanted, names.filter(|_| !is_address)) {
            near if near.is_empty() => {
                format!("there is no server `{wanted}`; `evener status` lists the servers")
            }
            near => format!("there is no server `{wanted}`{near}"),
        }
    }

    /// Finds the server that an operator names: `pool/server`, or just the server if only one pool has it.
    /// Returns its pool, its identity and its full name.
    pub(super) fn find_server(&self, wanted: &str) -> Result<(Arc<str>, ServerId, String), String> {
        let candidate = |pool: &Pool, server: &Server| {
            let (pool, name) = (Arc::clone(&pool.spec().name), &server.spec.name);
            let full = format!("{pool}/{name}");
            (full == wanted || **name == *wanted).then_some((pool, server.id, full))
        };
        let of_pool = |pool| Pool::servers(pool).iter().filter_map(move |server| candidate(pool, server));
        let found: Vec<_> = self.iter().flat_map(of_pool).collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => Err(self.no_server(wanted)),
            several => {
                let names: Vec<&str> = several.iter().map(|(.., full)| full.as_str()).collect();
                Err(format!("several pools have a server `{wanted}`: give {}", names.join(" or ")))
            }
        }
    }
}

/// Maximum number of servers that a message lists.
const LISTED_MAX: usize = 10;

/// Returns the names of servers for a message.
fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    names.truncate(LISTED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

/// Returns the servers that are down after a change and were not down before it.
fn newly_down(before: &Snapshot, after: &Snapshot) -> impl Iterator<Item = Arc<Entry>> {
    let is_down = |server: &Entry| matches!(server.admission, Admission::Down(_));
    let is_new = move |server: &&Arc<Entry>| {
        is_down(server) && before.server(server.id).is_some_and(|old| !is_down(old))
    };
    after.servers().iter().filter(is_new).cloned()
}
