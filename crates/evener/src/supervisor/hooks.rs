//! Hooks of pools, which run when an event happens.

use super::Supervisor;
use crate::exec::notify::pool_of;
use evener_core::event::Event;
use evener_core::spec::Spec;
use std::sync::Arc;

impl Supervisor {
    /// Runs the hook of a pool for an event, if there is one.
    pub(super) fn run_hook(&self, event: &Event) {
        let Some(pool) = pool_of(event).and_then(|name| self.pools.get(name)) else { return };
        let Some(notify) = pool.spec().notify.clone() else { return };
        let mut more = vec![("EVENER_SERVICES", services_of(&self.config.spec, &pool.spec().name))];
        if let Event::ServerUp { server, .. } | Event::ServerDown { server, .. } = event
            && let Some(server) = pool.servers().iter().find(|one| one.spec.name == *server)
        {
            more.push(("EVENER_ADDRESS", server.target.to_string()));
            more.push(("EVENER_STATE", server.state.name().to_owned()));
        }
        self.notifier.notify(&notify, event, more);
    }
}

/// Returns the names of the services that use a pool, one in a line.
fn services_of(spec: &Spec, pool: &Arc<str>) -> String {
    let users = spec.services.iter().filter(|service| service.pools().any(|used| used == pool));
    users.map(|service| &*service.name).collect::<Vec<_>>().join("\n")
}
