//! Read access to the state of the supervisor, for the admin API and front ends.

use super::access::Rule;
use super::{Phase, Supervisor};
use crate::events::Events;
use evener_core::pool::{Pool, Server};
use evener_core::spec::ServiceSpec;
use evener_core::{Endpoint, ServerId, Time};
use evener_proxy::Service;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Supervisor {
    /// Returns the time since the start.
    pub(crate) fn now(&self) -> Time {
        Time::since_origin(self.origin.elapsed())
    }

    /// Returns the events of the instance.
    pub(crate) fn events(&self) -> &Events {
        &self.setting.events
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
        let listeners = self.listeners.values().filter(|listener| &*listener.service == service);
        // One address may have a TCP and a UDP listener; it is listed once.
        listeners.map(|listener| &listener.bound).collect()
    }

    /// Returns the pools, sorted by name.
    pub(crate) fn running_pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values().map(|running| &running.pool)
    }

    /// Returns the pools in the order of the configuration.
    pub(crate) fn configured_pools(&self) -> impl Iterator<Item = &Pool> {
        let pools = self.config.spec.pools.iter();
        pools.filter_map(|spec| Some(&self.pools.get(&spec.name)?.pool))
    }

    /// Returns a pool, or the reason why it cannot be found.
    pub(crate) fn find_pool(&self, name: &str) -> Result<&Pool, String> {
        let running = self.pools.get(name).map(|running| &running.pool);
        running.ok_or_else(|| format!("there is no pool `{name}`; `evener status` lists them"))
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
        let found: Vec<_> = self.running_pools().flat_map(of_pool).collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => Err(format!("there is no server `{wanted}`; `evener status` lists them")),
            several => {
                let names: Vec<&str> = several.iter().map(|(.., full)| full.as_str()).collect();
                Err(format!("several pools have a server `{wanted}`: give {}", names.join(" or ")))
            }
        }
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
