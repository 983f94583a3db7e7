//! Servers that are found while the program runs: addresses of host names, lists in files, and sockets in
//! directories. Each source has its own interval. Servers are added to and removed from their pools as a reload
//! adds and removes servers, and keep their identity. A source that cannot be read changes nothing.

mod loop_check;
#[cfg(test)]
mod tests;

use super::listeners::{Listeners, NewListeners};
use super::operator::Operator;
use super::pools::Pools;
use super::scripts::Scripts;
use super::{Input, Supervisor};
use crate::config::Config;
use crate::discover::{
    Expanded, FirstReadings, Found, Listed, Numbers, Reading, Scan, Source, Stamp, Watcher, expand,
};
use crate::state::SourceView;
use evener_core::event::Event;
use evener_core::spec::{PoolSpec, Spec};
use evener_core::{Target, Time};
use loop_check::LoopCheck;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// A source of a pool.
type Key = (Arc<str>, Source);

/// The state of each source.
type Sources = BTreeMap<Key, State>;

/// The sources of all pools, with the servers that they list.
pub(super) struct Discovery {
    sender: mpsc::Sender<Input>,
    sources: Sources,
    pools: BTreeMap<Arc<str>, PoolState>,
    watcher: Option<Watcher>,
    /// Directories that the watcher watches.
    watched: BTreeSet<PathBuf>,
    /// Time of the next read of any source.
    next: Time,
    /// Number of the last read.
    reads: u64,
}

/// State of a source.
#[derive(Clone, Debug, Default)]
struct State {
    /// The last servers that the source listed.
    servers: Vec<Listed>,
    problem: Option<String>,
    /// Time of the next read.
    next: Time,
    /// Number of the read in progress.
    reading: Option<u64>,
    /// True if another read has to follow: a file changed during the read in progress, which may have missed the
    /// change.
    again: bool,
    /// Start of the last read that was applied.
    began: Option<Instant>,
    /// Number of consecutive failures.
    failures: u32,
    stamp: Option<Stamp>,
}

/// State of a pool.
#[derive(Clone, Debug, Default)]
struct PoolState {
    numbers: Numbers,
    /// Sources of the servers that were found, by name.
    origins: BTreeMap<Arc<str>, String>,
    /// Addresses whose refusal was logged. It is not logged again.
    refused: BTreeSet<Arc<str>>,
}

impl State {
    /// Applies the result of a read, unless the result of a later read was applied. Returns whether the servers
    /// changed, and an event.
    fn apply(&mut self, (pool, source): &Key, reading: &Reading, now: Time) -> (bool, Option<Event>) {
        if self.began.is_some_and(|began| reading.began() < began) {
            return (false, None);
        }
        self.began = Some(reading.began());
        let scan = reading.scan();
        if *scan == Scan::Unchanged {
            self.next = now + source.pause(reading, self.failures);
            return (false, None);
        }
        self.stamp = reading.stamp();
        let servers = scan.servers_after(&self.servers).filter(|servers| *servers != self.servers);
        let is_changed = servers.is_some();
        self.servers = servers.unwrap_or_else(|| std::mem::take(&mut self.servers));
        let had_failed = self.failures > 0;
        self.failures = if scan.failure().is_some() { self.failures.saturating_add(1) } else { 0 };
        self.next = now + source.pause(reading, self.failures);
        let (pool, source_text) = (pool.clone(), source.to_string());
        let before = std::mem::replace(&mut self.problem, scan.problem().map(str::to_owned));
        let event = match (before, self.problem.clone()) {
            (Some(before), Some(problem)) if before == problem => None,
            // The reasons why a name does not resolve may alternate. A problem with some of its servers is not a
            // failure.
            (Some(_), Some(_)) if had_failed && self.failures > 0 && !source.is_watched() => None,
            (_, Some(problem)) => Some(Event::DiscoveryFailed { pool, source: source_text, problem }),
            (Some(_), None) => Some(Event::DiscoveryRecovered { pool, source: source_text }),
            (None, None) => None,
        };
        (is_changed, event)
    }

    /// Prepares for the first reading of a new configuration, which may be older than the present state. A read
    /// in progress is not applied, so another read follows.
    fn prepare(&mut self, now: Time) {
        self.again |= self.reading.take().is_some() || self.next <= now;
    }
}

impl Discovery {
    pub(super) fn new(sender: mpsc::Sender<Input>) -> Self {
        Self {
            sender,
            sources: BTreeMap::new(),
            pools: BTreeMap::new(),
            watcher: None,
            watched: BTreeSet::new(),
            next: Time::NEVER,
            reads: 0,
        }
    }

    /// Returns the servers that the pools of a configuration would have, and changes nothing.
    pub(super) fn foresee(
        &self,
        config: &Config,
        readings: FirstReadings,
        (pools, listeners): (&Pools, &Listeners),
        (operator, scripts, now): (&Operator, &Scripts, Time),
    ) -> Vec<Expanded> {
        let mut copy = Self {
            sources: self.sources.clone(),
            pools: self.pools.clone(),
            watched: self.watched.clone(),
            ..Self::new(self.sender.clone())
        };
        copy.configure(&config.spec, readings, now);
        let no_listeners = NewListeners::new();
        let loops = LoopCheck::new(config, pools, (listeners, &no_listeners));
        let mut operator = operator.foresee();
        let pools = config.spec.pools.iter();
        pools.map(|spec| copy.expand(spec, &loops, (&mut operator, scripts)).0).collect()
    }

    /// Prepares for a new configuration, with the first readings of its sources.
    pub(super) fn configure(&mut self, spec: &Spec, readings: FirstReadings, now: Time) -> Vec<Event> {
        let keys = spec
            .pools
            .iter()
            .flat_map(|pool| Source::all_of(pool).into_iter().map(|source| (pool.name.clone(), source)));
        let mut before = std::mem::take(&mut self.sources);
        let mut state_of = |key: &Key| match before.remove(key) {
            Some(mut state) => {
                state.prepare(now);
                state
            }
            // The watch begins with a read, which finds changes since the first reading.
            None => State { again: key.1.is_watched(), ..State::default() },
        };
        self.sources = keys
            .map(|key| {
                let state = state_of(&key);
                (key, state)
            })
            .collect();
        let mut old_pools = std::mem::take(&mut self.pools);
        let retained =
            |pool: &PoolSpec| (pool.name.clone(), old_pools.remove(&pool.name).unwrap_or_default());
        self.pools = spec.pools.iter().map(retained).collect();
        let apply = |found: Found| {
            let (key, reading) = found.into_parts();
            self.sources.get_mut(&key)?.apply(&key, &reading, now).1
        };
        let events = readings.into_found().filter_map(apply).collect();
        let watched: BTreeSet<PathBuf> =
            self.sources.keys().filter_map(|(_, source)| source.location()).collect();
        let is_watched_anew = self.watched != watched;
        if is_watched_anew {
            (self.watcher, self.watched) = (None, watched);
        }
        for ((_, source), state) in &mut self.sources {
            // An immediate read finds changes between the first reading and the start of the watch.
            if std::mem::take(&mut state.again) || (is_watched_anew && source.is_watched()) {
                state.next = now;
            }
        }
        self.schedule();
        events
    }

    fn schedule(&mut self) {
        let idle = self.sources.values().filter(|state| state.reading.is_none());
        self.next = idle.map(|state| state.next).min().unwrap_or(Time::NEVER);
    }

    /// Returns the time at which [`Self::on_time`] has to be called next.
    pub(super) fn deadline(&self) -> Time {
        self.next
    }

    /// Begins the reads that are due.
    pub(super) fn on_time(&mut self, now: Time) {
        if now < self.next {
            return;
        }
        self.start_watcher();
        let watcher = self.watcher.as_ref();
        for ((pool, source), state) in &mut self.sources {
            if state.reading.is_some() || now < state.next {
                continue;
            }
            self.reads += 1;
            (state.reading, state.again) = (Some(self.reads), false);
            let (number, sender) = (self.reads, self.sender.clone());
            let (pool, source) = (pool.clone(), source.clone());
            let read = source.clone().read(state.stamp, watcher);
            tokio::spawn(async move {
                let found = Found::new(pool, source, read.await);
                let _ = sender.send(Input::Found { found, number }).await;
            });
        }
        self.schedule();
    }

    fn start_watcher(&mut self) {
        if self.watcher.is_none() && !self.watched.is_empty() {
            let sender = self.sender.clone();
            let changed = move || {
                let sender = sender.clone();
                async move { sender.send(Input::FilesChanged).await.is_ok() }
            };
            self.watcher = Watcher::start(changed).ok();
        }
    }

    /// Reads all sources in the file system soon: one of them may have changed.
    pub(super) fn on_files_changed(&mut self, now: Time) {
        for ((_, source), state) in &mut self.sources {
            if source.is_watched() {
                (state.again, state.next) = (state.reading.is_some(), now);
                self.next = now;
            }
        }
    }

    /// Returns the number of a server that was found in a directory.
    pub(super) fn number_of(&self, pool: &str, target: &Target) -> Option<u32> {
        let Target::Unix(path) = target else { return None };
        self.pools.get(pool)?.numbers.known(path)
    }

    /// Returns the source that lists a server, unless the configuration names the server.
    pub(super) fn source_of(&self, pool: &str, server: &str) -> Option<&str> {
        self.pools.get(pool)?.origins.get(server).map(String::as_str)
    }

    /// Returns the sources of a pool.
    pub(super) fn sources_of(&self, pool: &str) -> Vec<SourceView> {
        let sources = self.sources.range((pool.into(), Source::first())..);
        let sources = sources.take_while(|((name, _), _)| **name == *pool);
        let status = |((_, source), state): (&Key, &State)| {
            SourceView::new(source.to_string(), state.servers.len(), state.problem.clone())
        };
        sources.map(status).collect()
    }

    /// Applies the result of read `number`. Returns the pool if its servers changed, and an event.
    fn on_found(&mut self, found: Found, number: u64, now: Time) -> (Option<Arc<str>>, Option<Event>) {
        let (key, reading) = found.into_parts();
        // A read for an earlier configuration is ignored.
        let Some(state) = self.sources.get_mut(&key).filter(|state| state.reading == Some(number)) else {
            return (None, None);
        };
        state.reading = None;
        let (is_changed, event) = state.apply(&key, &reading, now);
        if std::mem::take(&mut state.again) {
            state.next = now;
        }
        self.next = self.next.min(state.next);
        (is_changed.then_some(key.0), event)
    }

    /// Returns the pools whose servers may change after the servers of the sources of a pool changed: the pool, and
    /// pools with a refused address, which may no longer lead back.
    fn affected_by(&self, changed: &str) -> BTreeSet<Arc<str>> {
        let is_affected =
            |(name, pool): &(&Arc<str>, &PoolState)| ***name == *changed || !pool.refused.is_empty();
        self.pools.iter().filter(is_affected).map(|(name, _)| name.clone()).collect()
    }

    /// Returns the servers of a pool, and an event for each address that is newly refused.
    fn expand(
        &mut self,
        spec: &PoolSpec,
        loops: &LoopCheck<'_>,
        (operator, scripts): (&mut Operator, &Scripts),
    ) -> (Expanded, Vec<Event>) {
        let pool = self.pools.entry(spec.name.clone()).or_default();
        let sources = &self.sources;
        let refuses = |target: &Target| loops.refuses(&spec.name, target, sources);
        let mut expanded = expand(spec, |source| listed(sources, spec, source), refuses, &mut pool.numbers);
        operator.change(&mut expanded, !Source::all_of(spec).is_empty());
        scripts.change(&mut expanded);
        pool.origins = expanded.take_origins();
        let refused = expanded.refused().difference(&pool.refused).map(|server| Event::ServerRefused {
            pool: spec.name.clone(),
            server: server.clone(),
            reason:
                "it leads back to a service that uses the pool, so clients would be forwarded without end"
                    .into(),
        });
        let events = refused.collect();
        pool.refused.clone_from(expanded.refused());
        (expanded, events)
    }
}

/// Returns the servers that a source of a pool lists.
fn listed<'a>(sources: &'a Sources, pool: &PoolSpec, source: &Source) -> &'a [Listed] {
    sources.get(&(pool.name.clone(), source.clone())).map_or(&[], |state| &state.servers)
}

impl Supervisor {
    /// Returns the servers of each pool of a configuration that is being applied with new listeners.
    pub(super) fn expand_all(&mut self, config: &Config, new_listeners: &NewListeners) -> Vec<Expanded> {
        let loops = LoopCheck::new(config, &self.pools, (&self.listeners, new_listeners));
        let expanded = config
            .spec
            .pools
            .iter()
            .map(|spec| self.discovery.expand(spec, &loops, (&mut self.operator, &self.scripts)));
        let (all, events): (Vec<Expanded>, Vec<Vec<Event>>) = expanded.unzip();
        events.iter().for_each(|events| self.log_all(events));
        all
    }

    /// Adds and removes servers of pools after a source listed others.
    pub(super) fn on_found(&mut self, found: Found, number: u64) {
        let now = self.now();
        let (changed, event) = self.discovery.on_found(found, number, now);
        event.iter().for_each(|event| self.log(event));
        let Some(name) = changed else { return };
        let affected = self.discovery.affected_by(&name);
        self.renew_pools(&affected);
    }

    /// Renews the servers of a pool after scripts changed them.
    pub(super) fn renew_pool(&mut self, pool: &Arc<str>) {
        self.renew_pools(&BTreeSet::from([Arc::clone(pool)]));
    }

    /// Returns true if an address leads back to a service that uses a pool.
    pub(super) fn leads_back(&self, pool: &Arc<str>, target: &Target) -> bool {
        let no_listeners = NewListeners::new();
        let loops = LoopCheck::new(&self.config, &self.pools, (&self.listeners, &no_listeners));
        loops.refuses(pool, target, &self.discovery.sources)
    }

    /// Renews the servers of pools.
    fn renew_pools(&mut self, affected: &BTreeSet<Arc<str>>) {
        let now = self.now();
        let no_listeners = NewListeners::new();
        let loops = LoopCheck::new(&self.config, &self.pools, (&self.listeners, &no_listeners));
        let specs = self.config.spec.pools.iter().filter(|spec| affected.contains(&spec.name));
        let expanded: Vec<_> = specs
            .map(|spec| self.discovery.expand(spec, &loops, (&mut self.operator, &self.scripts)))
            .collect();
        let (mut is_changed, mut has_persistent) = (false, false);
        for (pool, refused) in &expanded {
            self.log_all(refused);
            let name = &pool.spec().name;
            let had_persistent = self.pools.has_persistent(name);
            if let Some(events) = self.pools.update(pool, now) {
                self.log_all(&events);
                is_changed = true;
                has_persistent |= had_persistent || self.pools.has_persistent(name);
            }
        }
        if is_changed {
            self.apply_operator_states();
            self.publish();
            if has_persistent {
                self.plane.maintain();
            }
            // More servers may be checked now.
            let spec = std::mem::take(&mut self.config.spec);
            self.divide_descriptors(&spec);
            self.config.spec = spec;
        }
    }
}
