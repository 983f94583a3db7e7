//! Connects in progress, where they are limited (`pending_max`).

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::tcp::Tcp;
use std::sync::Arc;

impl Tcp {
    /// Counts a connect, if connects are limited. A client that goes on to another server counts once.
    pub(super) fn begin_pending(&mut self, _cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if connection.settings.options.pending_max.is_some() {
            let admitted = connection.admitted.get_or_insert_default();
            let slot = admitted.pending.take().or_else(|| self.pending.take());
            admitted.pending = slot.or_else(|| connection.service.live.pending.enter(u32::MAX));
        }
    }

    /// Gives back the slot of a connect that is done.
    pub(super) fn end_pending(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        if let Some(slot) = connection.admitted.as_mut().and_then(|admitted| admitted.pending.take()) {
            drop(slot);
            let service = Arc::clone(&connection.service);
            service.wake_waiting(cx);
        }
    }
}
