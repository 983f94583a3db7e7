//! Resolved inputs of the running configuration and of a new configuration, for the change set.

use crate::certificates::TlsSettings;
use crate::resolve::Targets;
use crate::supervisor::pools::Pools;
use evener_core::Target;
use evener_core::diff::Inputs;
use evener_core::pool::Pool;
use evener_core::spec::{PoolSpec, ServerSpec};
use std::collections::BTreeMap;

/// Inputs that are in use.
pub(super) struct InUse<'a> {
    targets: BTreeMap<(&'a str, &'a str), &'a Target>,
    tls: &'a TlsSettings,
}

impl<'a> InUse<'a> {
    pub(super) fn new(pools: &'a Pools, tls: &'a TlsSettings) -> Self {
        let of_pool = |pool: &'a Pool| {
            let name = &*pool.spec().name;
            pool.servers().iter().map(move |server| ((name, &*server.spec.name), &server.target))
        };
        Self { targets: pools.iter().flat_map(of_pool).collect(), tls }
    }
}

impl Inputs for InUse<'_> {
    fn target(&self, pool: &PoolSpec, server: &ServerSpec) -> Option<Target> {
        self.targets.get(&(&*pool.name, &*server.name)).map(|target| (*target).clone())
    }

    fn certificates_of_service(&self, service: &str) -> Option<u64> {
        self.tls.digest_of_service(service)
    }

    fn certificates_of_pool(&self, pool: &str) -> Option<u64> {
        self.tls.digest_of_pool(pool)
    }
}

/// Inputs that were resolved for a new configuration.
pub(super) struct Resolved<'a> {
    targets: &'a Targets,
    tls: &'a TlsSettings,
}

impl<'a> Resolved<'a> {
    pub(super) fn new(targets: &'a Targets, tls: &'a TlsSettings) -> Self {
        Self { targets, tls }
    }
}

impl Inputs for Resolved<'_> {
    fn target(&self, _pool: &PoolSpec, server: &ServerSpec) -> Option<Target> {
        Some(self.targets.of(&server.endpoint))
    }

    fn certificates_of_service(&self, service: &str) -> Option<u64> {
        self.tls.digest_of_service(service)
    }

    fn certificates_of_pool(&self, pool: &str) -> Option<u64> {
        self.tls.digest_of_pool(pool)
    }
}
