//! What a server gets before its client's bytes are relayed.

use crate::context::Context;
use crate::context::keys::ConnectionKey;
use crate::service::preamble;
use crate::tcp::Tcp;

impl Tcp {
    /// The server gets the PROXY header, and what the client said before it was chosen.
    pub(super) fn say_first(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        let version = connection.backend().send_proxy;
        let Some(greeting) = &mut connection.greeting else { return };
        let mut first = Vec::new();
        if let Some(version) = version {
            let ends = greeting.origin.ends(&connection.client);
            let name = greeting.name.as_deref();
            first = preamble::introduce(version, &greeting.origin, ends, name, None, cx.random.bits());
        }
        let said = first.len();
        greeting.header_left = said as u64;
        first.append(&mut greeting.bytes);
        if let Some(tap) = connection.tap(cx.id).filter(|_| first.len() > said) {
            tap.piece(&first[said..]);
        }
        connection.from_client.begin_with(first);
        self.queue(cx, key);
    }
}
