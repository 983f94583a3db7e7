//! Publication of snapshots. Workers read pools only through the snapshots that are stored here.

use super::Supervisor;
use evener_core::event::Event;
use evener_core::snapshot::{Admission, Entry, Snapshot};
use evener_core::spec::OnDown;
use evener_proxy::EndReason;
use std::sync::Arc;

impl Supervisor {
    /// Publishes one snapshot of every pool that changed.
    pub(super) fn publish(&mut self) {
        let (mut events, mut down) = (Vec::new(), Vec::new());
        for (name, running) in &mut self.pools {
            let Some(snapshot) = running.pool.snapshot() else { continue };
            let (usable, after) = (snapshot.is_usable(), Arc::new(snapshot));
            let before = self.plane.publish(&running.slot, &after);
            if running.pool.spec().on_down == OnDown::Close {
                down.extend(newly_down(&before, &after).map(|server| (Arc::clone(name), server)));
            }
            match (std::mem::replace(&mut running.usable, usable), usable) {
                (true, false) => events.push(Event::PoolDown { pool: Arc::clone(name) }),
                (false, true) => events.push(Event::PoolUp { pool: Arc::clone(name) }),
                _ => {}
            }
        }
        events.iter().for_each(|event| self.log(event));
        // Workers already choose by the new snapshots, so no new client is sent to these servers.
        down.iter().for_each(|(pool, server)| self.end_server(pool, server, EndReason::Down, |_| {}));
    }
}

/// Returns the servers that are down after a change and were not down before it.
fn newly_down(before: &Snapshot, after: &Snapshot) -> impl Iterator<Item = Arc<Entry>> {
    let is_down = |server: &Entry| matches!(server.admission, Admission::Down(_));
    let is_new = move |server: &&Arc<Entry>| {
        is_down(server) && before.server(server.id).is_some_and(|old| !is_down(old))
    };
    after.servers().iter().filter(is_new).cloned()
}
