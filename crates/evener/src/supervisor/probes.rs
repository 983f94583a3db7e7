//! Probes: the active checks of servers, each in its own task.

use super::pools::Reported;
use super::scripts::ScriptCheck;
use super::{Input, Supervisor};
use crate::check::{self, CheckedServer};
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::pool::Server;
use evener_core::spec::CheckKind;
use evener_core::{ServerId, Target, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// A server that was probed, with its address at that time. A reload may have changed the address since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Probed {
    pool: Arc<str>,
    server: ServerId,
    target: Target,
    /// Round of the health of the server: a number that changes after maintenance and with another check.
    round: u32,
}

impl Probed {
    /// Returns the pool and the identity of the server.
    pub(super) fn server(&self) -> (Arc<str>, ServerId) {
        (Arc::clone(&self.pool), self.server)
    }

    /// Returns a number that differs from the numbers of the checks of other servers of the pool.
    pub(super) fn tag(&self) -> u64 {
        std::hash::BuildHasher::hash_one(
            &std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default(),
            self,
        )
    }
}

/// The probes in progress.
#[derive(Default)]
pub(super) struct Probes(BTreeMap<Probed, AbortHandle>);

impl Probes {
    fn is_running(&self, probed: &Probed) -> bool {
        self.0.contains_key(probed)
    }

    /// Ends the probes that a predicate selects.
    pub(super) fn cancel(&mut self, is_obsolete: impl Fn(&Probed) -> bool) {
        for (_, task) in self.0.extract_if(.., |probed, _| is_obsolete(probed)) {
            task.abort();
        }
    }

    /// Adds a probe. Ends probes of earlier rounds of the same server, which have no effect any more.
    fn add(&mut self, probed: Probed, task: AbortHandle) {
        let first = Probed { round: 0, ..probed.clone() };
        for (_, stale) in self.0.extract_if(first..probed.clone(), |_, _| true) {
            stale.abort();
        }
        self.0.insert(probed, task);
    }
}

impl Supervisor {
    /// Handles the result of a probe, and the time that it took.
    pub(super) fn on_probed(&mut self, probed: &Probed, result: Probe, took: Duration) {
        let now = self.now();
        self.probes.0.remove(probed);
        let is_present = |server: &Server| server.health.round() == probed.round;
        let server = self.pools.get(&probed.pool).and_then(|pool| pool.server(probed.server));
        if !server.is_some_and(is_present) {
            return;
        }
        let at = Reported::new(&probed.pool, probed.server, &probed.target);
        if let Probe::Unmade(error) = &result {
            return self.on_unmade(at, error);
        }
        let events = self.pools.on_probe(now, at, result, took);
        self.log_all(&events);
    }

    /// Handles the end of a probe without a result.
    pub(super) fn forget_probe(&mut self, probed: &Probed) {
        self.probes.0.remove(probed);
    }

    /// Handles a check that could not be made. The verdict does not change, and the next check is made on
    /// schedule.
    fn on_unmade(&mut self, at: Reported<'_>, error: &str) {
        let now = self.now();
        let Some(server) = self.pools.server_at(at) else { return };
        server.live.counters.of(0).local_errors.one_shared();
        let (pool, server) = (at.pool().clone(), server.spec.name.clone());
        if self.shortage.is_due(now) {
            self.log(&Event::LocalError { pool, server, error: error.to_owned() });
        }
    }

    /// Starts the probes that are due.
    pub(super) fn begin_probes(&mut self, now: Time) {
        let permits = self.check_permits();
        for (checked, slot) in self.pools.iter_mut() {
            let due = checked.due_probes(now, &mut self.random);
            if due.is_empty() {
                continue;
            }
            let of_pool = checked.spec().check.clone().map(Arc::new);
            let limits = check::header_limits(self.services.values(), slot);
            for server in due.iter().filter_map(|id| checked.server(*id)) {
                let (pool, round) = (Arc::clone(&checked.spec().name), server.health.round());
                let probed = Probed { pool, server: server.id, target: server.target.clone(), round };
                let Some(spec) = server.spec.check.clone().or_else(|| of_pool.clone()) else { continue };
                // A server that is slower than the interval is not probed again before its response.
                if self.probes.is_running(&probed) {
                    continue;
                }
                let server = CheckedServer {
                    endpoint: server.spec.endpoint.clone(),
                    target: server.target.clone(),
                    send_proxy: checked.spec().send_proxy,
                    limits,
                };
                let sender = self.sender.clone();
                let checker = self.scripts.checker();
                if let CheckKind::Script { .. } = &spec.kind {
                    let Some(script) = checker.and_then(|checker| ScriptCheck::new(checker, &spec)) else {
                        continue;
                    };
                    let key = probed.clone();
                    let task = tokio::spawn(async move {
                        let begun = Instant::now();
                        let result = script.run(&probed).await;
                        let took = begun.elapsed();
                        let _ = sender.send(Input::ScriptChecked { probed, result, took }).await;
                    });
                    self.probes.add(key, task.abort_handle());
                    continue;
                }
                let permits = Arc::clone(&permits);
                let key = probed.clone();
                let task = tokio::spawn(async move {
                    // The semaphore is never closed. If a reload replaces it, this probe keeps the old
                    // semaphore.
                    let _permit = permits.acquire().await;
                    let begun = Instant::now();
                    let result = check::probe(&server, &spec).await;
                    let took = begun.elapsed();
                    let _ = sender.send(Input::Probed { probed, result, took }).await;
                });
                self.probes.add(key, task.abort_handle());
            }
        }
    }
}
