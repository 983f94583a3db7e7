//! Listeners that close because the program drains, or because a reload took them out. They serve clients until their flows
//! are over, and no longer: a successor waits for the address.

use super::flow::socket_of;
use super::{DatagramListener, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use evener_core::Time;
use std::time::Duration;

/// A flow of a leaving listener is over when it was quiet for so long.
pub(super) const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// The same for a flow whose last datagram got its response.
const DRAIN_RESPONDED_IDLE: Duration = Duration::from_millis(100);

/// A listener that a reload took out closes after this, whatever its flows do. When the program drains, its own deadline
/// applies instead.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// Flows without any response, as of logs and metrics, are over after this: in such a flow the datagrams never cease.
const NO_RESPONSE_MAX: Duration = Duration::from_secs(5);

impl DatagramListener {
    /// Has the listener close as soon as its flows are over.
    pub(super) fn leave(&mut self, now: Time) {
        self.leaving.get_or_insert(now);
        self.flows.set_idle(DRAIN_IDLE);
    }
}

impl Udp {
    /// Closes the leaving listeners whose flows are over.
    pub(super) fn close_left(&mut self, cx: &mut Context) {
        for at in self.listeners.keys(|listener| listener.leaving.is_some()) {
            let since = self.listeners[at].leaving.unwrap_or(cx.now);
            self.end_responded(cx.now, at);
            let is_late = !cx.draining && cx.now.since(since) >= LEAVE_MAX;
            if is_late || (cx.now.since(since) >= NO_RESPONSE_MAX && !self.has_responses(cx.now, at)) {
                self.end_all(at);
            } else if self.listeners[at].flows.is_empty() {
                // Takes the datagrams that came before the listener closes.
                self.on_listener_event(cx, at);
            }
            if self.listeners[at].flows.is_empty() {
                self.flush(cx);
                self.reap();
                if let Some(listener) = self.listeners.remove(at) {
                    cx.registry.deregister(&listener.socket);
                }
            }
        }
    }

    /// Returns whether a server sent a response in any of the flows lately.
    fn has_responses(&self, now: Time, at: DatagramListenerKey) -> bool {
        let is_recent = |responded_at: Time| now.since(responded_at) < DRAIN_IDLE;
        let mut flows = self.listeners[at].flows.iter();
        flows.any(|(_, flow)| {
            self.sockets.get(socket_of(flow)).is_some_and(|socket| is_recent(socket.responded_at))
        })
    }

    /// Ends the flows whose last datagram got its response, and which have been quiet since.
    fn end_responded(&mut self, now: Time, at: DatagramListenerKey) {
        self.end_where(at, |socket, used_at| {
            now.since(socket.responded_at) >= DRAIN_RESPONDED_IDLE && Some(socket.responded_at) > used_at
        });
    }
}
