//! A request to all workers to take relays out for the next instance.

use crate::tcp::passing::PassedRelay;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// A request to all workers to take relays out for the next instance.
pub(crate) struct Passage {
    services: Arc<BTreeSet<Arc<str>>>,
    receive: Box<dyn Fn(PassedRelay) + Send + Sync>,
}

impl Passage {
    pub(crate) fn new(
        services: &Arc<BTreeSet<Arc<str>>>,
        receive: impl Fn(PassedRelay) + Send + Sync + 'static,
    ) -> Self {
        Self { services: Arc::clone(services), receive: Box::new(receive) }
    }

    /// Returns whether the next instance continues the relays of a service.
    pub(crate) fn includes(&self, service: &str) -> bool {
        self.services.contains(service)
    }

    /// Gives a relay away.
    pub(crate) fn give(&self, relay: PassedRelay) {
        (self.receive)(relay);
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage").finish_non_exhaustive()
    }
}
