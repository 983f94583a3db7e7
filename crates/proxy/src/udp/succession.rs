//! Listeners for datagrams that the next instance takes over.

use super::Udp;
use crate::context::Context;
use crate::context::registry::Token;
use crate::service::succession::{Lending, Suspension};

impl Udp {
    /// Copies the descriptors of the listeners.
    pub(crate) fn lend(&self, lending: &Lending) {
        self.listeners.iter().for_each(|(_, listener)| lending.add(listener.id, &listener.socket));
    }

    /// Receives no more datagrams at these listeners, and lends their flows to the next instance. Responses of servers
    /// still go to the clients of other flows.
    pub(crate) fn suspend(&mut self, cx: &Context, suspension: &Suspension) {
        for at in self.listeners.keys(|one| !one.suspended && suspension.includes(one.id)) {
            self.listeners[at].suspended = true;
            cx.registry.deregister(&self.listeners[at].socket);
            self.lend_flows(cx, at, suspension);
        }
    }

    /// Receives datagrams at the suspended listeners again.
    pub(crate) fn resume_listeners(&mut self, cx: &mut Context) {
        for at in self.listeners.keys(|listener| listener.suspended) {
            self.listeners[at].suspended = false;
            if cx.registry.register(&self.listeners[at].socket, Token::Datagrams(at)).is_ok() {
                self.on_listener_event(cx, at);
            }
        }
        self.take_flows_back(cx);
    }
}
