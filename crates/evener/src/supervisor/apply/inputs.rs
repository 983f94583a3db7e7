//! The inputs of a configuration, for the change set.

use crate::certificates::TlsSettings;
use crate::discover::Expanded;
use crate::supervisor::pools::Pools;
use evener_core::Target;
use evener_core::diff::{Inputs, TlsDigests};
use evener_core::spec::{PoolSpec, ServerSpec};
use std::collections::BTreeMap;

/// Addresses of servers and TLS settings.
pub(super) struct Known<'a> {
    /// Addresses by pool and server.
    targets: BTreeMap<(&'a str, &'a str), &'a Target>,
    tls: &'a TlsSettings,
}

impl<'a> Known<'a> {
    /// Returns the addresses in use.
    pub(super) fn in_use(pools: &'a Pools, tls: &'a TlsSettings) -> Self {
        let servers = pools.iter().flat_map(|pool| {
            let name = &*pool.spec().name;
            pool.servers().iter().map(move |server| ((name, &*server.spec.name), &server.target))
        });
        Self { targets: servers.collect(), tls }
    }

    /// Returns the addresses that were resolved for a new configuration.
    pub(super) fn resolved(pools: &'a [Expanded], tls: &'a TlsSettings) -> Self {
        let servers = pools.iter().flat_map(|pool| {
            let (name, servers) = (&*pool.spec().name, &pool.spec().servers);
            servers.iter().map(move |server| (name, &*server.name)).zip(pool.targets())
        });
        Self { targets: servers.collect(), tls }
    }
}

impl Inputs for Known<'_> {
    fn target(&self, pool: &PoolSpec, server: &ServerSpec) -> Option<Target> {
        self.targets.get(&(&*pool.name, &*server.name)).map(|target| (*target).clone())
    }

    fn tls_of_service(&self, service: &str) -> Option<TlsDigests> {
        self.tls.digests_of_service(service)
    }

    fn tls_of_pool(&self, pool: &str) -> Option<TlsDigests> {
        self.tls.digests_of_pool(pool)
    }
}
