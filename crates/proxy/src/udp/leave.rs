//! Listeners that are to close, because the program drains or a reload took them out: they go on until their flows are over,
//! so that what comes meanwhile is served, and no longer, so that a successor gets the address.

use super::flow::socket_of;
use super::{DRAIN_IDLE, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use std::time::Duration;

/// A listener that a reload took out closes after this, whatever its flows do. While the program drains, its own deadline
/// bounds that.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// Flows that no server answers, as those of logs and metrics, are over after this: one datagram follows the other there.
const ONE_WAY_MAX: Duration = Duration::from_secs(5);

impl Udp {
    /// A listener closes as soon as its flows are over.
    pub(super) fn leave(&mut self, cx: &mut Context, index: DatagramListenerKey) {
        let now = cx.now;
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.leaving.get_or_insert(now);
            listener.flows.set_idle(DRAIN_IDLE);
        }
    }

    /// Closes those of them whose flows are over.
    pub(super) fn close_left(&mut self, cx: &mut Context) {
        for index in self.listeners.keys(|listener| listener.leaving.is_some()) {
            let since = self.listeners[index].leaving.unwrap_or(cx.now);
            self.end_answered(cx, index);
            let is_late = !cx.draining && cx.now.since(since) >= LEAVE_MAX;
            if is_late || (cx.now.since(since) >= ONE_WAY_MAX && !self.is_answered(cx, index)) {
                self.end_all(index);
            } else if self.listeners[index].flows.is_empty() {
                // What waits in its queue came before it closes.
                self.on_listener_event(cx, index);
            }
            if self.listeners[index].flows.is_empty() {
                self.flush_answers(cx);
                self.reap();
                if let Some(listener) = self.listeners.remove(index) {
                    cx.registry.deregister(&listener.socket);
                }
            }
        }
    }

    /// Whether a server answered any of the flows of late.
    fn is_answered(&self, cx: &Context, index: DatagramListenerKey) -> bool {
        self.listeners[index].flows.iter().any(|(_, flow)| {
            let socket = self.flows.get(socket_of(flow));
            socket.is_some_and(|socket| cx.now.since(socket.answered_at) < DRAIN_IDLE)
        })
    }
}
