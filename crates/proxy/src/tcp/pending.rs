//! Connects under way, where they are counted (`pending_max`).

use crate::worker::Worker;
use std::sync::Arc;

/// Counts a connect that is under way, if such are counted; who goes on to another server counts once.
pub(crate) fn begin_pending(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    if connection.settings.options.pending_max.is_some() {
        let guest = connection.guest.get_or_insert_default();
        let place = guest.pending.take().or_else(|| worker.tcp.pending.take());
        guest.pending = place.or_else(|| connection.service.live.pending.enter(u32::MAX));
    }
}

/// The connect is done.
pub(crate) fn end_pending(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    if let Some(place) = connection.guest.as_mut().and_then(|guest| guest.pending.take()) {
        drop(place);
        let service = Arc::clone(&connection.service);
        service.wake_waiting(&worker.cx);
    }
}
