//! Read access to the state of the supervisor, for the admin API and front ends.

use super::access::Rule;
use super::{Phase, Supervisor};
use evener_core::pool::Pool;
use evener_core::spec::ServiceSpec;
use evener_core::{Endpoint, Time};
use evener_proxy::Service;
use std::collections::BTreeSet;

impl Supervisor {
    /// Returns the time since the start.
    pub(crate) fn now(&self) -> Time {
        Time::since_origin(self.origin.elapsed())
    }

    /// Returns the number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.plane.workers()
    }

    /// Returns true if new clients are no longer accepted.
    pub(crate) fn is_draining(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Returns true if the supervisor has ended, with or without a drain.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Returns the running services, sorted by name.
    pub(crate) fn running_services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// Returns the services in the order of the configuration.
    pub(crate) fn configured_services(&self) -> impl Iterator<Item = (&ServiceSpec, &Service)> {
        let services = self.config.spec.services.iter();
        services.filter_map(|spec| Some((spec, &**self.services.get(&spec.name)?)))
    }

    /// Returns a service, or the reason why it cannot be found.
    pub(crate) fn find_service(&self, name: &str) -> Result<&Service, String> {
        let service = self.services.get(name).map(|service| &**service);
        service.ok_or_else(|| no_service(name))
    }

    /// Returns an error if there is no such service. A removed service that still has connections counts.
    pub(super) fn find_open_service(&self, name: &str) -> Result<(), String> {
        let is_known =
            self.services.contains_key(name) || self.retiring.iter().any(|service| &*service.name == name);
        is_known.then_some(()).ok_or_else(|| no_service(name))
    }

    /// Returns the addresses that a service listens on, as bound.
    pub(crate) fn bound_addresses(&self, service: &str) -> BTreeSet<&Endpoint> {
        self.listeners.bound_addresses(service)
    }

    /// Returns the pools, sorted by name.
    pub(crate) fn running_pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// Returns the pools in the order of the configuration.
    pub(crate) fn configured_pools(&self) -> impl Iterator<Item = &Pool> {
        let pools = self.config.spec.pools.iter();
        pools.filter_map(|spec| self.pools.get(&spec.name))
    }

    /// Returns a pool, or the reason why it cannot be found.
    pub(crate) fn find_pool(&self, name: &str) -> Result<&Pool, String> {
        self.pools.get(name).ok_or_else(|| format!("there is no pool `{name}`; `evener status` lists them"))
    }

    /// Returns the access rules that the operator added, with the names of their services.
    pub(crate) fn access_rules(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.access.all()
    }

    /// Returns the number of connections and flows of all services.
    pub(super) fn active(&self) -> u64 {
        self.services.values().chain(&self.retiring).map(|service| service.active()).sum()
    }
}

/// Returns the message about a service that does not exist.
pub(super) fn no_service(name: &str) -> String {
    format!("there is no service `{name}`; `evener status` lists them")
}
