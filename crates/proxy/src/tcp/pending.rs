//! Pending connection attempts of services that limit the number of these attempts (`pending_max`).

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::tcp::Tcp;
use std::sync::Arc;

impl Tcp {
    /// Counts a pending connection attempt, if the number of attempts is limited.
    pub(super) fn begin_pending(&mut self, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if connection.settings.options.pending_max.is_some() {
            connection.begin_pending(&mut self.pending);
        }
    }

    /// Releases the slot of a connection attempt that has ended.
    pub(super) fn end_pending(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if let Some(slot) = connection.take_pending() {
            drop(slot);
            let service = Arc::clone(&connection.service);
            service.wake_waiting(cx);
        }
    }
}
