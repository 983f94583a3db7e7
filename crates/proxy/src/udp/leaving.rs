//! Listeners that close because the program drains or a reload removed them. They serve clients only until
//! their flows end, because a successor may wait for the address.

use super::flow::socket_of;
use super::{DatagramListener, Udp};
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use evener_core::Time;
use std::time::Duration;

/// Idle timeout of the flows of a leaving listener.
pub(super) const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Idle timeout of a flow of a leaving listener after a response to the client's last datagram.
const DRAIN_RESPONDED_IDLE: Duration = Duration::from_millis(100);

/// Maximum time until a listener that a reload removed closes, even with busy flows. When the program drains,
/// the drain deadline applies instead.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// Time after which flows without any response end, such as flows of logs and metrics, whose datagrams never
/// cease.
const NO_RESPONSE_MAX: Duration = Duration::from_secs(5);

impl DatagramListener {
    /// Makes the listener close as soon as its flows have ended.
    pub(super) fn leave(&mut self, now: Time) {
        self.leaving.get_or_insert(now);
        self.flows.set_idle(DRAIN_IDLE);
    }
}

impl Udp {
    /// Closes the leaving listeners without flows.
    pub(super) fn close_left(&mut self, cx: &mut Context) {
        for at in self.listeners.keys(|listener| listener.leaving.is_some()) {
            let since = self.listeners[at].leaving.unwrap_or(cx.now);
            self.end_responded(cx.now, at);
            let is_late = !cx.draining && cx.now.since(since) >= LEAVE_MAX;
            if is_late || (cx.now.since(since) >= NO_RESPONSE_MAX && !self.has_responses(cx.now, at)) {
                self.end_all(at);
            } else if self.listeners[at].flows.is_empty() {
                // Forwards the datagrams that arrived before the listener closes.
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

    /// Returns whether a server sent a response in any of the flows recently.
    fn has_responses(&self, now: Time, at: DatagramListenerKey) -> bool {
        let is_recent = |responded_at: Time| now.since(responded_at) < DRAIN_IDLE;
        let mut flows = self.listeners[at].flows.iter();
        flows.any(|(_, flow)| {
            self.sockets.get(socket_of(flow)).is_some_and(|socket| is_recent(socket.responded_at))
        })
    }

    /// Ends the flows that have been idle since the response to their last datagram.
    fn end_responded(&mut self, now: Time, at: DatagramListenerKey) {
        self.end_where(at, |socket, used_at| {
            now.since(socket.responded_at) >= DRAIN_RESPONDED_IDLE && Some(socket.responded_at) > used_at
        });
    }
}
