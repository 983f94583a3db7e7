//! Probes: the active checks of servers, each in its own task.

use super::pools::Reported;
use super::{Input, Supervisor};
use crate::check::{self, CheckedServer};
use evener_core::event::Event;
use evener_core::health::Probe;
use evener_core::pool::Server;
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
            let Some(spec) = checked.spec().check.clone().filter(|_| !due.is_empty()) else { continue };
            let spec = Arc::new(spec);
            let limits = check::header_limits(self.services.values(), slot);
            for server in due.iter().filter_map(|id| checked.server(*id)) {
                let (pool, round) = (Arc::clone(&checked.spec().name), server.health.round());
                let probed = Probed { pool, server: server.id, target: server.target.clone(), round };
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
