//! Listeners that are to close, because the program drains or a reload took them out: they go on until their flows are over,
//! so that what comes meanwhile is served, and no longer, so that a successor gets the address.

use super::table::end_answered;
use super::{DRAIN_IDLE, end_all, flush_answers, on_listener_event};
use crate::worker::Worker;
use std::time::Duration;

/// A listener that a reload took out closes after this, whatever its flows do. While the program drains, its own deadline
/// bounds that.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// Flows that no server answers, as those of logs and metrics, are over after this: one datagram follows the other there.
const ONE_WAY_MAX: Duration = Duration::from_secs(5);

/// A listener closes as soon as its flows are over.
pub(crate) fn leave(worker: &mut Worker, index: usize) {
    let now = worker.cx.now;
    if let Some(listener) = worker.udp.listeners.get_mut(index) {
        listener.leaving.get_or_insert(now);
        listener.flows.set_idle(DRAIN_IDLE);
    }
}

/// Closes those of them whose flows are over.
pub(crate) fn close_left(worker: &mut Worker) {
    let leaving = worker.udp.listeners.iter().filter(|(_, listener)| listener.leaving.is_some());
    let leaving: Vec<usize> = leaving.map(|(index, _)| index).collect();
    for index in leaving {
        let since = worker.udp.listeners[index].leaving.unwrap_or(worker.cx.now);
        end_answered(worker, index);
        let is_late = !worker.cx.draining && worker.cx.now.since(since) >= LEAVE_MAX;
        if is_late || (worker.cx.now.since(since) >= ONE_WAY_MAX && !is_answered(worker, index)) {
            end_all(worker, index);
        } else if worker.udp.listeners[index].flows.is_empty() {
            // What waits in its queue came before it closes.
            on_listener_event(worker, index);
        }
        if worker.udp.listeners[index].flows.is_empty() {
            flush_answers(worker);
            worker.udp.bury();
            let listener = worker.udp.listeners.remove(index);
            worker.cx.registry.deregister(&listener.socket);
        }
    }
}

/// Whether a server answered any of the flows of late.
fn is_answered(worker: &Worker, index: usize) -> bool {
    worker.udp.listeners[index].flows.iter().any(|(_, flow)| {
        let socket = worker.udp.flows.get(flow.slot as usize);
        socket.is_some_and(|socket| worker.cx.now.since(socket.answered_at) < DRAIN_IDLE)
    })
}
