//! What the supervisor says when the program itself is short of something: descriptors, ports, memory. None of it is a
//! verdict on a server.

use super::{Probed, Supervisor};
use evener_core::event::Event;
use evener_core::spec::{Protocol, ServiceSpec, Spec};
use evener_core::{ServerId, Time};
use evener_proxy::descriptors;
use rustix::process::{Resource, getrlimit};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// An estimate of what the program has open, and each worker beside listeners.
const OF_PROGRAM: usize = 20;
const OF_WORKER: usize = 6;

/// When to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Now,
    /// When it is time.
    InTime,
}

/// A shortage that lasts is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Open descriptors are counted this often, when there is something to do anyway.
const COUNTED_EVERY: Duration = Duration::from_secs(1);
/// Where the kernel does not tell their number (before Linux 6.2), they are counted one by one, up to this limit of them.
const LISTED_MAX: u64 = 65_536;

/// What is known of shortages.
#[derive(Debug)]
pub(super) struct Shortage {
    told_at: Option<Time>,
    counted_at: Time,
    /// The limit of which was said that it is too low, and for how many.
    warned: Option<(u64, u64)>,
    /// Checks under way at once take so many descriptors.
    checks: Arc<Semaphore>,
    checks_max: u64,
}

impl Default for Shortage {
    fn default() -> Self {
        Self {
            told_at: None,
            counted_at: Time::ZERO,
            warned: None,
            checks: Arc::new(Semaphore::new(1)),
            checks_max: 1,
        }
    }
}

impl Shortage {
    /// Whether it is to be told again.
    fn is_due(&mut self, now: Time) -> bool {
        let due = self.told_at.is_none_or(|at| now.since(at) >= TOLD_EVERY);
        if due {
            self.told_at = Some(now);
        }
        due
    }
}

/// How many descriptors the process may have open; `None` is no limit.
fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many are open, if that can be told: it takes /proc, which may not be there behind another root.
fn open() -> Option<u64> {
    let directory = Path::new("/proc/self/fd");
    let told = std::fs::metadata(directory).ok()?.len();
    if told > 0 || limit().is_none_or(|limit| limit > LISTED_MAX) {
        return (told > 0).then_some(told);
    }
    Some(std::fs::read_dir(directory).ok()?.count() as u64)
}

/// How many descriptors clients and flows may take as configured.
fn wanted(spec: &Spec) -> u64 {
    let of_service = |service: &ServiceSpec| {
        let options = &service.options;
        let connections = u64::from(options.connections_max);
        match service.protocol {
            Protocol::Udp => u64::from(options.flows_max),
            Protocol::Dns => connections,
            Protocol::Tcp | Protocol::Http => 2 * connections + u64::from(options.warm),
        }
    };
    spec.services.iter().map(of_service).sum()
}

impl Supervisor {
    /// Divides the descriptors of the process: some are kept back, the rest is for clients.
    pub(super) fn divide_descriptors(&mut self, spec: &Spec) {
        let checked = spec.pools.iter().filter(|pool| pool.check.is_some());
        let checked = checked.map(|pool| pool.servers.len() as u64).sum();
        let checks_max = descriptors::set_limit(limit(), checked);
        if checks_max != self.shortage.checks_max {
            let places = usize::try_from(checks_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
            (self.shortage.checks, self.shortage.checks_max) = (Arc::new(Semaphore::new(places)), checks_max);
        }
        self.count_descriptors(Counted::Now);
    }

    /// Counts what is open, for what clients do not have is not theirs.
    pub(super) fn count_descriptors(&mut self, when: Counted) {
        let now = self.now();
        if when == Counted::InTime && now.since(self.shortage.counted_at) < COUNTED_EVERY {
            return;
        }
        self.shortage.counted_at = now;
        match open() {
            Some(open) => descriptors::measured(open),
            None => descriptors::estimated(self.own_descriptors()),
        }
    }

    /// About how many are open beside those of clients, where nobody tells: of each worker, of listeners, and of the rest.
    fn own_descriptors(&self) -> u64 {
        (OF_PROGRAM + self.workers() * (OF_WORKER + self.listeners.len())) as u64
    }

    /// Says when descriptors allow less than the configuration does.
    pub(crate) fn warn_of_descriptors(&mut self) {
        let usage = descriptors::usage();
        let configured = wanted(&self.config.spec);
        let most = usage.connections_max;
        let short = usage.limit.filter(|_| most.saturating_mul(2) < configured);
        let short = short.map(|limit| (limit, configured));
        if let Some((limit, _)) = short.filter(|_| short != self.shortage.warned) {
            let kept_back = usage.kept_back;
            let text = format!(
                "{limit} descriptors may be open, enough for {most} connections (two each, {kept_back} are kept back), \
                 and the configuration allows more: accepting pauses there; raise LimitNOFILE or `ulimit -Hn`, or lower \
                 connections_max and flows_max"
            );
            self.tell(&Event::Notice { text });
        }
        self.shortage.warned = short;
    }

    /// Where checks get their turn.
    pub(super) fn check_places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.shortage.checks)
    }

    /// A connect failed for a reason of our own. Workers report one now and then.
    pub(super) fn local_error(
        &self,
        pool: Arc<str>,
        server: ServerId,
        error: &std::io::Error,
    ) -> Option<Event> {
        let server = self.pools.get(&pool)?.pool.server(server)?.spec.name.clone();
        Some(Event::LocalError { pool, server, error: error.to_string() })
    }

    /// A check could not be made: the verdict stays, and it is made again when the next one is due.
    pub(super) fn on_unmade(&mut self, who: &Probed, server: Arc<str>, error: &str) {
        let now = self.now();
        let Some(running) = self.pools.get(&who.pool) else { return };
        if let Some(of) = running.pool.server(who.server) {
            of.live.counters.of(0).local_errors.one_shared();
        }
        if self.shortage.is_due(now) {
            self.tell(&Event::LocalError { pool: who.pool.clone(), server, error: error.to_owned() });
        }
    }
}
