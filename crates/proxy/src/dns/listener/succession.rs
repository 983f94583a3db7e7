//! Listeners for queries over UDP that the next instance takes over.

use crate::context::Context;
use crate::context::registry::Token;
use crate::dns::Dns;
use crate::service::succession::{Lending, Suspension};

impl Dns {
    /// Copies the descriptors of the listeners.
    pub(crate) fn lend(&self, lending: &Lending) {
        self.listeners.iter().for_each(|(_, listener)| lending.add(listener.id, &listener.socket));
    }

    /// Receives no more queries at these listeners. Outstanding queries get their responses.
    pub(crate) fn suspend(&mut self, cx: &Context, suspension: &Suspension) {
        for (_, listener) in self.listeners.iter_mut() {
            if suspension.includes(listener.id) && !std::mem::replace(&mut listener.suspended, true) {
                cx.registry.deregister(&listener.socket);
            }
        }
    }

    /// Receives queries at the suspended listeners again.
    pub(crate) fn resume_listeners(&mut self, cx: &mut Context) {
        for key in self.listeners.keys(|listener| listener.suspended) {
            self.listeners[key].suspended = false;
            if cx.registry.register(&self.listeners[key].socket, Token::DnsListener(key)).is_ok() {
                self.on_listener_event(cx, key);
            }
        }
    }
}
