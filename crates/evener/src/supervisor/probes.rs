//! Probes: the active checks of servers, each in its own task.

use super::{Input, Supervisor};
use crate::check::{self, CheckedServer};
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::{ServerId, Target, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// A server that was probed, with its address at that time. A reload may have changed the address since.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probed {
    pool: Arc<str>,
    server: ServerId,
    target: Target,
    /// Round of the health of the server: a number that changes after maintenance and with another check.
    round: u32,
}

/// The probes in progress.
#[derive(Default)]
pub(super) struct Probes(BTreeMap<Probed, AbortHandle>);

impl Probes {
    fn is_running(&self, probed: &Probed) -> bool {
        self.0.contains_key(probed)
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
    pub(super) fn on_probed(&mut self, probed: Probed, result: Probe, took: Duration) {
        let now = self.now();
        self.probes.0.remove(&probed);
        let Some(name) = self.name_at(&probed.pool, probed.server, &probed.target) else { return };
        let Some(running) = self.pools.get_mut(&probed.pool) else { return };
        if running.pool.server(probed.server).is_none_or(|server| server.health.round() != probed.round) {
            return;
        }
        if let Some(server) = running.pool.server(probed.server) {
            let counters = server.live.check_counters.of(0);
            match &result {
                Probe::Pass => {
                    counters.checks.passed.one();
                    counters.check_seconds.record_time(took);
                }
                Probe::Fail(_) => counters.checks.failed.one(),
                Probe::Unmade(_) => {}
            }
        }
        let failed = match &result {
            Probe::Pass => None,
            Probe::Fail(reason) => {
                Some(Event::ProbeFailed { pool: probed.pool, server: name, reason: reason.clone() })
            }
            Probe::Unmade(error) => return self.on_unmade(&probed, name, error),
        };
        let event = running.pool.on_probe(now, probed.server, result);
        failed.iter().chain(&event).for_each(|event| self.log(event));
    }

    /// Handles a check that could not be made. The verdict does not change, and the next check is made on
    /// schedule.
    fn on_unmade(&mut self, probed: &Probed, server: Arc<str>, error: &str) {
        let now = self.now();
        let Some(running) = self.pools.get(&probed.pool) else { return };
        if let Some(checked) = running.pool.server(probed.server) {
            checked.live.counters.of(0).local_errors.one_shared();
        }
        if self.shortage.is_due(now) {
            self.log(&Event::LocalError { pool: probed.pool.clone(), server, error: error.to_owned() });
        }
    }

    /// Starts the probes that are due.
    pub(super) fn begin_probes(&mut self, now: Time) {
        let permits = self.check_permits();
        for (name, running) in &mut self.pools {
            let due = running.pool.due_probes(now, &mut self.random);
            let Some(spec) = running.pool.spec().check.clone().filter(|_| !due.is_empty()) else { continue };
            let spec = Arc::new(spec);
            let limits = check::header_limits(self.services.values(), &running.slot);
            for server in due.iter().filter_map(|id| running.pool.server(*id)) {
                let (pool, round) = (Arc::clone(name), server.health.round());
                let probed = Probed { pool, server: server.id, target: server.target.clone(), round };
                // A server that is slower than the interval is not probed again before its response.
                if self.probes.is_running(&probed) {
                    continue;
                }
                let server = CheckedServer {
                    endpoint: server.spec.endpoint.clone(),
                    target: server.target.clone(),
                    send_proxy: running.pool.spec().send_proxy,
                    limits,
                };
                let (spec, sender) = (Arc::clone(&spec), self.sender.clone());
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
