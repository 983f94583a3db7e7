//! The services of the XDP plane: they have no sockets, and the kernel has their tables.

use super::Supervisor;
use crate::config::{Config, Problem};
use evener_core::spec::{Plane, ServiceSpec, Spec};
use std::sync::Arc;

impl Supervisor {
    /// Makes sure that the XDP plane can take a configuration. Nothing changed if it cannot.
    pub(super) fn prepare_xdp(&mut self, config: &Config) -> Result<(), Vec<Problem>> {
        let prepared = self.plane.xdp().prepare(&config.spec);
        prepared.map_err(|problems| problems.into_iter().map(Problem::new).collect())
    }

    /// Gives the XDP plane the services of a configuration.
    pub(super) fn configure_xdp(&mut self, spec: &Spec) {
        let of_plane = spec.services.iter().filter(|service| service.plane == Plane::Xdp);
        // Rules that the operator added at run time are part of the access list.
        let specs: Vec<ServiceSpec> = of_plane
            .map(|service| ServiceSpec { acl: self.access.acl_of(service), ..service.clone() })
            .collect();
        let (services, pools) = (&self.services, &self.pools);
        let live = |name: &str| services.get(name).map(|service| Arc::clone(service.live()));
        let pool = |name: &str| Some((pools.get(name)?.spec(), pools.slot(name)?.load_full()));
        let events = self.plane.xdp().configure(&specs, live, pool);
        self.log_all(&events);
    }

    /// Returns true if a service of a plane of the kernel uses a pool.
    pub(super) fn is_used_by_kernel(spec: &Spec, pool: &str) -> bool {
        let mut services = spec.services.iter().filter(|service| service.plane != Plane::Proxy);
        services.any(|service| service.pools().any(|name| **name == *pool))
    }
}
