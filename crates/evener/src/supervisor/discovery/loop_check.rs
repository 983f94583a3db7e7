//! Loops through servers that sources list.

use super::{Sources, listed};
use crate::config::Config;
use crate::discover::Candidates;
use crate::loops::Guard;
use crate::supervisor::listeners::{Listeners, NewListeners};
use crate::supervisor::pools::Pools;
use evener_core::Target;
use evener_core::pool::Pool;
use std::cell::{LazyCell, OnceCell};
use std::collections::BTreeSet;

/// Decides which addresses are refused because a pool would lead back to a service that uses it.
///
/// An address that is in use is refused if it forms a loop with other addresses in use. Any other address is refused
/// if it forms a loop with any address that a configuration or a source lists, also one that is refused itself: no
/// two pools start to use addresses that form a loop together, and the result does not depend on the order of the
/// pools.
pub(super) struct LoopCheck<'a> {
    config: &'a Config,
    /// The pools in use.
    pools: &'a Pools,
    /// Listeners in use, and listeners that are opened with the configuration.
    listeners: (&'a Listeners, &'a NewListeners),
    guard: OnceCell<Guard<'a>>,
}

impl<'a> LoopCheck<'a> {
    pub(super) fn new(
        config: &'a Config,
        pools: &'a Pools,
        listeners: (&'a Listeners, &'a NewListeners),
    ) -> Self {
        Self { config, pools, listeners, guard: OnceCell::new() }
    }

    fn guard(&self) -> &Guard<'a> {
        let (listeners, new_listeners) = self.listeners;
        let addresses = || listeners.addresses_of(&self.config.spec.services, new_listeners);
        self.guard.get_or_init(|| Guard::new(self.config, addresses()))
    }

    /// Returns true if a server of a pool at `target` is refused. `sources` have the servers that they list.
    pub(super) fn refuses(&self, pool: &str, target: &Target, sources: &Sources) -> bool {
        let is_in_use = LazyCell::new(|| self.in_use(pool).contains(target));
        let targets = |other: &str| {
            let Some(spec) = self.config.spec.pools.iter().find(|spec| *spec.name == *other) else {
                return Vec::new();
            };
            let candidates = Candidates::of(spec, |source| listed(sources, spec, source));
            let in_use = if *is_in_use { Some(self.in_use(other)) } else { None };
            candidates.retain(|target| in_use.as_ref().is_none_or(|in_use| in_use.contains(target)))
        };
        self.guard().is_loop(pool, target, targets)
    }

    fn in_use(&self, pool: &str) -> BTreeSet<&'a Target> {
        let servers = self.pools.get(pool).map_or(&[][..], Pool::servers);
        servers.iter().map(|server| &server.target).collect()
    }
}
