//! The bytes that a server gets before those of its client are relayed.

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::service::preamble;
use crate::tcp::Tcp;

impl Tcp {
    /// Queues the PROXY header for the server, and the bytes of the preamble that belong to the payload.
    pub(super) fn send_first(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        let version = connection.backend().send_proxy;
        let Some(preamble) = &mut connection.preamble else { return };
        let mut first = Vec::new();
        if let Some(version) = version {
            let ends = preamble.origin.ends(&connection.client);
            let name = preamble.name.as_deref();
            first = preamble::introduce(version, &preamble.origin, ends, name, None, cx.random.bits());
        }
        let header = first.len();
        preamble.header_left = header as u64;
        first.append(&mut preamble.bytes);
        if let Some(tap) = connection.tap(cx.id).filter(|_| first.len() > header) {
            tap.piece(&first[header..]);
        }
        connection.from_client.prepend(first);
        self.queue(cx, key);
    }
}
