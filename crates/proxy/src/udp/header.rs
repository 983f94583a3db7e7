//! What servers are told of clients with each datagram, by the PROXY protocol.

use super::Udp;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey};
use crate::io::batch::Batch;
use crate::service::preamble;
use evener_core::flow::FlowKey;
use evener_core::wire::proxy::{self, Ends, Extras, Transport};
use std::net::SocketAddr;

impl Udp {
    /// Puts the PROXY header before each datagram of a flow, if its server is told of clients.
    pub(super) fn introduce(&self, slot: FlowSocketKey, batch: &mut Batch, places: &[usize]) {
        let header = self.flows.get(slot).and_then(|flow| flow.header.as_deref());
        if let Some(header) = header {
            // One that is too large with it is refused by the socket.
            places.iter().for_each(|&at| batch.prepend(at, header));
        }
    }

    /// What the server is told of a client with each of its datagrams.
    pub(super) fn header_of(&self, index: DatagramListenerKey, key: &FlowKey) -> Box<[u8]> {
        let bound = preamble::local_address(&self.listeners[index].socket);
        let used = bound.map(|bound| SocketAddr::new(key.local.unwrap_or(bound.ip()), bound.port()));
        let destination = key.via.map(|via| via.destination).or(used);
        let ends = destination.map(|destination| Ends { source: key.client, destination });
        let mut header = Vec::new();
        let extras = Extras { hops: key.via.map_or(0, |via| via.hops + 1), ..Extras::default() };
        proxy::emit_v2(ends, Transport::Datagram, &extras, &mut header);
        header.into()
    }
}
