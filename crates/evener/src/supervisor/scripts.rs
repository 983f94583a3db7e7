//! Functions of the configuration that run later: starts them, gives them checks to run, and makes the changes of
//! pools that they request. The changes last until a reload.

use super::probes::Probed;
use super::{Input, Supervisor};
use crate::config::Config;
use crate::config::functions::{Actor, Change, ChangeRequest, Checker, Output, PoolSlots, Verdict};
use crate::discover::Expanded;
use crate::state::{ScriptChangeView, ScriptErrorView, ScriptsView};
use evener_core::event::Event;
use evener_core::health::{Probe, Verdict as HealthVerdict};
use evener_core::spec::{AdminState, CheckKind, CheckSpec, OnScriptError, ServerSpec};
use evener_core::{Target, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of servers that functions add to a pool.
const ADDED_MAX: usize = 10_000;
/// Maximum number of errors, and of changes, in the status.
const HISTORY_MAX: usize = 100;

/// The functions that run, and the changes that they made.
#[derive(Default)]
pub(super) struct Scripts {
    actor: Option<Actor>,
    /// Number of the last configuration with functions.
    generation: u64,
    changes: BTreeMap<Arc<str>, PoolChanges>,
    history: History,
}

/// Changes of a pool by functions.
#[derive(Clone, Debug, Default)]
struct PoolChanges {
    /// Servers that were added, with the location of the request.
    added: BTreeMap<Arc<str>, (ServerSpec, String)>,
    /// Servers of the configuration that were removed, with their addresses.
    removed: BTreeMap<Arc<str>, Target>,
    weights: BTreeMap<Arc<str>, u32>,
}

impl PoolChanges {
    /// Records that a server was removed.
    fn remove(&mut self, name: &Arc<str>, target: Target) {
        self.weights.remove(name);
        if self.added.remove(name).is_none() {
            self.removed.insert(Arc::clone(name), target);
        }
    }

    /// Records that a server was added. A server of the configuration that was removed comes back with its settings.
    fn add(&mut self, server: ServerSpec, target: &Target, script: &str) -> Result<(), String> {
        let name = Arc::clone(&server.name);
        match self.removed.get(&name) {
            Some(before) if before == target => {
                self.removed.remove(&name);
                return Ok(());
            }
            Some(before) => {
                return Err(format!(
                    "`{name}` is a server of the file that was removed, with the address {before}: choose another name"
                ));
            }
            None => {}
        }
        if self.added.len() >= ADDED_MAX {
            return Err(format!("scripts can add at most {ADDED_MAX} servers to a pool"));
        }
        self.added.insert(name, (server, script.to_owned()));
        Ok(())
    }
}

/// Errors and changes of functions since the last reload, the latest last.
#[derive(Default)]
struct History {
    errors: VecDeque<Failed>,
    changes: VecDeque<Changed>,
}

/// The last error of a function.
struct Failed {
    script: String,
    error: String,
    count: u64,
    at: Time,
}

struct Changed {
    pool: Arc<str>,
    server: Arc<str>,
    change: String,
    script: String,
    at: Time,
}

impl History {
    /// Records an event of a function.
    fn record(&mut self, event: &Event, at: Time) {
        match event {
            Event::ScriptFailed { script, error, .. } => self.failed(script, error, at),
            Event::ScriptsRestarted { script } => {
                self.failed(
                    script,
                    "it did not end or filled the memory, and all functions were started anew",
                    at,
                );
            }
            Event::ScriptChanged { pool, server, change, script } => {
                let (pool, server) = (Arc::clone(pool), Arc::clone(server));
                let (change, script) = (change.clone(), script.clone());
                self.changes.push_back(Changed { pool, server, change, script, at });
            }
            _ => {}
        }
        while self.errors.len() > HISTORY_MAX {
            self.errors.pop_front();
        }
        while self.changes.len() > HISTORY_MAX {
            self.changes.pop_front();
        }
    }

    fn failed(&mut self, script: &str, error: &str, at: Time) {
        let known = self.errors.iter().position(|failed| failed.script == script);
        let count = known.and_then(|index| self.errors.remove(index)).map_or(1, |failed| failed.count + 1);
        self.errors.push_back(Failed { script: script.to_owned(), error: error.to_owned(), count, at });
    }

    fn view(&self, now: Time) -> ScriptsView {
        let age = |at: Time| now.since(at).as_secs();
        let errors = self.errors.iter().rev();
        let changes = self.changes.iter().rev();
        ScriptsView::new(
            errors
                .map(|failed| {
                    ScriptErrorView::new(&failed.script, &failed.error, failed.count, age(failed.at))
                })
                .collect(),
            changes
                .map(|Changed { pool, server, change, script, at }| {
                    ScriptChangeView::new((pool, server), change, script, age(*at))
                })
                .collect(),
        )
    }
}

/// A function that checks a server, and the way to run it.
#[derive(Clone)]
pub(super) struct ScriptCheck {
    checker: Checker,
    number: usize,
    script: Arc<str>,
    on_error: OnScriptError,
    timeout: Duration,
}

/// Result of a function that checked a server.
pub(crate) struct ScriptVerdict {
    verdict: Verdict,
    script: Arc<str>,
    on_error: OnScriptError,
}

impl ScriptCheck {
    /// Creates the check of a specification, if a function makes it.
    pub(super) fn new(checker: Checker, spec: &CheckSpec) -> Option<Self> {
        let CheckKind::Script { function, on_error } = &spec.kind else { return None };
        let (number, script) = (function.number, Arc::clone(&function.location));
        Some(Self { checker, number, script, on_error: *on_error, timeout: spec.timeout })
    }

    /// Runs the function.
    pub(super) async fn run(self, probed: &Probed) -> ScriptVerdict {
        let Self { checker, number, script, on_error, timeout } = self;
        let verdict = checker.check(number, probed.server(), probed.tag(), timeout).await;
        ScriptVerdict { verdict, script, on_error }
    }
}

impl Scripts {
    /// Returns the part that checks servers.
    pub(super) fn checker(&self) -> Option<Checker> {
        self.actor.as_ref().map(Actor::checker)
    }

    /// Returns the errors and changes of functions.
    pub(super) fn view(&self, now: Time) -> ScriptsView {
        self.history.view(now)
    }

    /// Runs the functions that handle an event.
    pub(super) fn on_event(&self, event: &Event) {
        if let Some(actor) = &self.actor {
            actor.on_event(event);
        }
    }

    /// Forgets the changes that a new configuration replaces. Servers that functions added stay if the new
    /// configuration has functions, too, and does not have them itself.
    pub(super) fn prepare(&mut self, config: &Config) {
        self.history = History::default();
        if config.program().is_none() {
            self.changes.clear();
        }
        for changes in self.changes.values_mut() {
            changes.removed.clear();
            changes.weights.clear();
        }
        for pool in &config.spec.pools {
            if let Some(changes) = self.changes.get_mut(&pool.name) {
                pool.servers.iter().for_each(|server| drop(changes.added.remove(&server.name)));
            }
        }
    }

    /// Returns the changes of pools that would stay with a new configuration, without functions that run.
    pub(super) fn foresee(&self, config: &Config) -> Self {
        let mut copy = Self { changes: self.changes.clone(), ..Self::default() };
        copy.prepare(config);
        copy
    }

    /// Makes the changes of functions to the servers of a pool.
    pub(super) fn change(&self, expanded: &mut Expanded) {
        let Some(changes) = self.changes.get(&expanded.spec().name) else { return };
        if !changes.removed.is_empty() {
            expanded.retain(|server| !changes.removed.contains_key(&server.name));
        }
        let added = changes.added.values();
        expanded.add_all(added.map(|(server, location)| (server, format!("script {location}"))));
        if !changes.weights.is_empty() {
            expanded.set_weights(|name| changes.weights.get(name).copied());
        }
    }

    /// Forgets the changes of functions to a server, which an operator changed since.
    pub(super) fn forget_server(&mut self, pool: &str, server: &str) {
        if let Some(changes) = self.changes.get_mut(pool) {
            changes.added.remove(server);
            changes.removed.remove(server);
            changes.weights.remove(server);
        }
    }

    /// Forgets the weight that functions gave to a server.
    pub(super) fn forget_weight(&mut self, pool: &str, server: &str) {
        if let Some(changes) = self.changes.get_mut(pool) {
            changes.weights.remove(server);
        }
    }

    fn of_pool(&mut self, pool: &Arc<str>) -> &mut PoolChanges {
        self.changes.entry(Arc::clone(pool)).or_default()
    }
}

impl Supervisor {
    /// Starts the functions of a configuration in place of those of the configuration before.
    pub(super) fn start_scripts(&mut self, config: &Config) {
        self.scripts.actor = None;
        let Some(program) = config.program() else { return };
        self.scripts.generation += 1;
        let sender = self.sender.clone();
        let outputs = Arc::new(move |output| sender.try_send(Input::Script(output)).is_ok());
        let started = Actor::start(program, self.scripts.generation, self.pool_slots(), outputs);
        match started {
            Ok(actor) => self.scripts.actor = Some(actor),
            Err(error) => {
                self.log(&Event::Notice { text: format!("the scripts could not be started: {error}") });
            }
        }
    }

    fn pool_slots(&self) -> PoolSlots {
        let slot = |name: &Arc<str>| Some((Arc::clone(name), Arc::clone(self.pools.slot(name)?)));
        self.pools.iter().filter_map(|pool| slot(&pool.spec().name)).collect()
    }

    /// Logs an event of a function, and keeps it for the status.
    fn log_script(&mut self, event: &Event) {
        let now = self.now();
        self.scripts.history.record(event, now);
        self.log(event);
    }

    /// Handles a message of a function.
    pub(super) fn on_script(&mut self, output: Output) {
        match output {
            Output::Event(event) => self.log_script(&event),
            Output::Change(request) => self.change_by_script(request),
        }
    }

    /// Handles the result of a function that checked a server.
    pub(super) fn on_script_checked(&mut self, probed: &Probed, result: ScriptVerdict, took: Duration) {
        let ScriptVerdict { verdict, script, on_error } = result;
        let (pool, server) = probed.server();
        let found = self.pools.get(&pool).and_then(|pool| pool.server(server));
        let known = found.map(|server| (server.spec.name.clone(), server.health.verdict()));
        let Some((name, before)) = known else { return self.forget_probe(probed) };
        let probe = match verdict {
            Verdict::Pass => Some(Probe::Pass),
            Verdict::Fail(reason) => Some(Probe::Fail(reason)),
            // The first run of a check that gives no verdict ends the time in which the server is unchecked.
            Verdict::Nothing => (before == HealthVerdict::Unchecked).then_some(Probe::Pass),
            Verdict::Cancelled => None,
            Verdict::Error(error) => {
                let event = Event::ScriptFailed {
                    script: script.to_string(),
                    pool: Some(pool),
                    server: Some(name),
                    error: error.clone(),
                };
                self.log_script(&event);
                (on_error == OnScriptError::Down).then_some(Probe::Fail(error))
            }
        };
        match probe {
            Some(probe) => self.on_probed(probed, probe, took),
            None => self.forget_probe(probed),
        }
    }

    /// Makes a change that a function requests, unless the configuration of the function is not in use any more.
    fn change_by_script(&mut self, request: ChangeRequest) {
        let generation = self.scripts.actor.as_ref().map(Actor::generation);
        request.complete(generation, |pool, change, script, tag| {
            let Some((server, change)) = self.make_change(pool, change, &script)? else { return Ok(false) };
            self.log_script(&Event::ScriptChanged { pool: Arc::clone(pool), server, change, script });
            self.cancel_removed_probes(tag);
            self.publish();
            Ok(true)
        });
    }

    /// Returns the server and the change, or `None` if nothing had to change.
    fn make_change(
        &mut self,
        pool: &Arc<str>,
        change: Change,
        script: &str,
    ) -> Result<Option<(Arc<str>, String)>, String> {
        let Some(running) = self.pools.get(pool) else { return Err(format!("there is no pool `{pool}`")) };
        let find = |name: &str| {
            let is_wanted = |server: &&evener_core::pool::Server| {
                *server.spec.name == *name || server.target.to_string() == name
            };
            running.servers().iter().find(is_wanted)
        };
        let missing = |name: &str| format!("there is no server `{name}` in pool `{pool}`");
        let (server, text) = match change {
            Change::Add(server) => match self.add_server(pool, *server, script)? {
                Some(name) => (name, "added".to_owned()),
                None => return Ok(None),
            },
            Change::Remove(name) => {
                let Some(server) = find(&name) else { return Ok(None) };
                let (name, target) = (Arc::clone(&server.spec.name), server.target.clone());
                self.scripts.of_pool(pool).remove(&name, target);
                self.operator.forget_added(pool, &name);
                (name, "removed".to_owned())
            }
            Change::Weight(name, weight) => {
                let server = find(&name).ok_or_else(|| missing(&name))?;
                if server.spec.weight == weight {
                    return Ok(None);
                }
                let (name, before) = (Arc::clone(&server.spec.name), server.spec.weight);
                self.scripts.of_pool(pool).weights.insert(Arc::clone(&name), weight);
                self.operator.forget_weight(pool, &name);
                (name, format!("weight {before} -> {weight}"))
            }
            Change::State(name, state) => {
                let server = find(&name).ok_or_else(|| missing(&name))?;
                if server.state == state {
                    return Ok(None);
                }
                let (name, id) = (Arc::clone(&server.spec.name), server.id);
                self.operator.forget_state(pool, &name);
                let events = self.pools.set_state(self.now(), (pool, id), state, None);
                self.log_all(&events);
                let text = match state {
                    AdminState::Ready => "ready",
                    AdminState::Drain => "drain",
                    AdminState::Maintenance => "maintenance",
                };
                return Ok(Some((name, text.to_owned())));
            }
        };
        self.renew_pool(pool);
        Ok(Some((server, text)))
    }

    /// Adds a server, unless the pool has its name or address. Returns its name.
    fn add_server(
        &mut self,
        pool: &Arc<str>,
        server: ServerSpec,
        script: &str,
    ) -> Result<Option<Arc<str>>, String> {
        let name = Arc::clone(&server.name);
        let Some(target) = server.endpoint.target() else {
            return Err(format!("`{name}` has no address"));
        };
        let is_there = |other: &evener_core::pool::Server| other.spec.name == name || other.target == target;
        if self.pools.get(pool).is_none_or(|running| running.servers().iter().any(is_there)) {
            return Ok(None);
        }
        if self.leads_back(pool, &target) {
            return Err(format!(
                "{name} leads back to a service that uses pool `{pool}`, so clients would be forwarded without end"
            ));
        }
        self.scripts.of_pool(pool).add(server, &target, script)?;
        Ok(Some(name))
    }

    /// Ends checks of servers that are no longer in their pools, except the check that removed its own server.
    pub(super) fn cancel_removed_probes(&mut self, tag: Option<u64>) {
        let pools = &self.pools;
        self.probes.cancel(|probed| {
            let (pool, server) = probed.server();
            Some(probed.tag()) != tag && pools.get(&pool).is_none_or(|pool| pool.server(server).is_none())
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    fn add(changes: &mut PoolChanges, address: &str) -> Result<(), String> {
        let mut server = ServerSpec::new(address.parse().unwrap());
        server.name = "a".into();
        let target = server.endpoint.target().unwrap();
        changes.add(server, &target, "x.lua:1")
    }

    #[test]
    fn a_removed_server_comes_back_only_with_its_address() {
        let mut changes = PoolChanges::default();
        let target = ServerSpec::new("10.0.0.1:80".parse().unwrap()).endpoint.target().unwrap();
        changes.remove(&"a".into(), target);
        let why = add(&mut changes, "10.0.0.9:80").unwrap_err();
        assert!(why.contains("with the address 10.0.0.1:80: choose another name"), "{why}");
        add(&mut changes, "10.0.0.1:80").unwrap();
        assert!(changes.removed.is_empty() && changes.added.is_empty(), "{changes:?}");
        add(&mut changes, "10.0.0.9:80").unwrap();
        assert!(changes.added.contains_key("a"), "{changes:?}");
    }
}
