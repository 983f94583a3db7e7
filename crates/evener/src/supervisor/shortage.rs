//! Shortages of local resources: descriptors, ports and memory. They are logged and do not affect the verdict
//! on a server.

use super::Supervisor;
use evener_core::event::Event;
use evener_core::spec::{Plane, PoolSpec, Protocol, ServerSpec, ServiceOptions, ServiceSpec, Spec};
use evener_core::{ServerId, Time};
use evener_proxy::descriptors;
use rustix::process::{Resource, getrlimit};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Estimated number of descriptors of the program without its workers.
const PROGRAM_DESCRIPTORS: usize = 20;
/// Estimated number of descriptors of a worker, without listeners.
const WORKER_DESCRIPTORS: usize = 6;

/// Condition for counting descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CountWhen {
    Always,
    /// Only if the last count is older than [`COUNTED_EVERY`].
    Due,
}

/// Interval at which a lasting shortage is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// Minimum age of a count before the descriptors are counted again.
const COUNTED_EVERY: Duration = Duration::from_secs(1);
/// Maximum descriptor limit for which open descriptors are counted one by one if the kernel does not report
/// their number (before Linux 6.2).
const LISTED_MAX: u64 = 65_536;

/// State of shortages.
#[derive(Debug)]
pub(super) struct Shortage {
    logged_at: Option<Time>,
    counted_at: Time,
    /// The limit that was reported as too low, and the number of descriptors that the configuration can use.
    warned: Option<(u64, u64)>,
    /// Permits for concurrent checks, which bound the descriptors that checks use.
    checks: Arc<Semaphore>,
    checks_max: u64,
}

impl Default for Shortage {
    fn default() -> Self {
        Self {
            logged_at: None,
            counted_at: Time::ZERO,
            warned: None,
            checks: Arc::new(Semaphore::new(1)),
            checks_max: 1,
        }
    }
}

impl Shortage {
    /// Returns true if a shortage should be logged again.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        let due = self.logged_at.is_none_or(|at| now.since(at) >= LOGGED_EVERY);
        if due {
            self.logged_at = Some(now);
        }
        due
    }
}

/// Returns the maximum number of open descriptors of the process; `None` is no limit.
fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Returns the number of open descriptors. Returns `None` if there is no /proc (as in another root directory),
/// or if the kernel does not report the number and the limit is too high for counting.
fn open() -> Option<u64> {
    let directory = Path::new("/proc/self/fd");
    let reported = std::fs::metadata(directory).ok()?.len();
    if reported > 0 || limit().is_none_or(|limit| limit > LISTED_MAX) {
        return (reported > 0).then_some(reported);
    }
    Some(std::fs::read_dir(directory).ok()?.count() as u64)
}

/// Returns true if the configuration sets the maximum number of connections or flows of a service.
fn sets_maximum(service: &ServiceSpec) -> bool {
    let (options, defaults) = (&service.options, ServiceOptions::of(service.protocol));
    match service.protocol {
        Protocol::Udp => options.flows_max != defaults.flows_max,
        Protocol::Tcp | Protocol::Http | Protocol::Dns => options.connections_max != defaults.connections_max,
    }
}

/// Returns the number of descriptors that the configuration allows the clients and flows of services to use.
fn wanted<'a>(services: impl Iterator<Item = &'a ServiceSpec>) -> u64 {
    let service_maximum = |service: &ServiceSpec| {
        let options = &service.options;
        let connections = u64::from(options.connections_max);
        match service.protocol {
            Protocol::Udp => u64::from(options.flows_max),
            Protocol::Dns => connections,
            Protocol::Tcp | Protocol::Http => 2 * connections + u64::from(options.warm),
        }
    };
    services.filter(|service| service.plane == Plane::Proxy).map(service_maximum).sum()
}

/// Returns the number of servers that are checked.
fn checked<'a>(pool: &'a PoolSpec, servers: impl Iterator<Item = &'a ServerSpec>) -> u64 {
    servers.filter(|server| pool.check_of(server).is_some()).count() as u64
}

impl Supervisor {
    /// Divides the descriptors of the process into reserved descriptors and descriptors for clients.
    pub(super) fn divide_descriptors(&mut self, spec: &Spec) {
        let checked = spec.pools.iter().map(|pool| match self.pools.get(&pool.name) {
            Some(running) => checked(pool, running.servers().iter().map(|server| &server.spec)),
            None => checked(pool, pool.servers.iter()),
        });
        let checked = checked.sum();
        let checks_max = descriptors::set_limit(limit(), checked);
        if checks_max != self.shortage.checks_max {
            let permits = usize::try_from(checks_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
            (self.shortage.checks, self.shortage.checks_max) =
                (Arc::new(Semaphore::new(permits)), checks_max);
        }
        self.count_descriptors(CountWhen::Always);
    }

    /// Counts open descriptors, so that descriptors that are open for other purposes are not given to clients.
    pub(super) fn count_descriptors(&mut self, when: CountWhen) {
        let now = self.now();
        if when == CountWhen::Due && now.since(self.shortage.counted_at) < COUNTED_EVERY {
            return;
        }
        self.shortage.counted_at = now;
        match open() {
            Some(open) => descriptors::measured(open),
            None => descriptors::estimated(self.descriptors_in_use()),
        }
    }

    /// Estimates the number of descriptors that are open for other purposes than clients.
    fn descriptors_in_use(&self) -> u64 {
        (PROGRAM_DESCRIPTORS + self.workers() * (WORKER_DESCRIPTORS + self.listeners.len())) as u64
    }

    /// Logs if the descriptors allow fewer connections than the configuration does: as a warning if the
    /// configuration sets these maximums, and as information if they are the defaults.
    pub(crate) fn warn_of_descriptors(&mut self) {
        let usage = descriptors::usage();
        let services = &self.config.spec.services;
        let configured = wanted(services.iter());
        let set = wanted(services.iter().filter(|service| sets_maximum(service)));
        let most = usage.connections_max;
        let short = usage.limit.filter(|_| most.saturating_mul(2) < configured);
        let short = short.map(|limit| (limit, configured));
        if let Some((limit, _)) = short.filter(|_| short != self.shortage.warned) {
            let (reserved, others) = (usage.reserved, usage.others);
            self.log(&if most.saturating_mul(2) < set {
                let advice = "fewer than the configuration allows: raise LimitNOFILE or `ulimit -Hn`, or lower \
                              connections_max and flows_max";
                let text = format!(
                    "{limit} descriptors may be open: {reserved} are reserved, {others} are used by evener itself, and \
                     the others are enough for {most} connections (two each), {advice}"
                );
                Event::Notice { text }
            } else {
                Event::Capacity {
                    descriptors_max: limit,
                    descriptors_reserved: reserved,
                    descriptors_others: others,
                    connections_max: most,
                }
            });
        }
        self.shortage.warned = short;
    }

    /// Returns the permits for checks.
    pub(super) fn check_permits(&self) -> Arc<Semaphore> {
        Arc::clone(&self.shortage.checks)
    }

    /// Returns the event of a connection attempt that failed for a local reason. Workers limit the rate of
    /// these reports.
    pub(super) fn local_error(
        &self,
        pool: Arc<str>,
        server: ServerId,
        error: &std::io::Error,
    ) -> Option<Event> {
        let server = self.pools.get(&pool)?.server(server)?.spec.name.clone();
        Some(Event::LocalError { pool, server, error: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::spec::{CheckKind, CheckSpec};

    #[test]
    fn single_servers_with_a_check_count_as_checked() {
        let tcp = || CheckSpec::new(CheckKind::Tcp);
        let server = |has_check: bool| ServerSpec {
            check: has_check.then(|| Arc::new(tcp())),
            ..ServerSpec::new("10.0.0.1:80".parse().expect("a valid address"))
        };
        let sorry = ServerSpec { is_sorry: true, ..server(false) };
        let mut pool = PoolSpec::new("web", vec![server(true), server(true), server(false), sorry]);
        assert_eq!(checked(&pool, pool.servers.iter()), 2, "two servers have their own check");
        pool.check = Some(tcp());
        assert_eq!(checked(&pool, pool.servers.iter()), 3, "the sorry server has no check");
    }
}
