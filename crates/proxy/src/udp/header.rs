//! The PROXY header that reports the client to the server in each datagram.

use super::{DatagramListener, Udp};
use crate::context::keys::FlowSocketKey;
use crate::io::batch::Batch;
use crate::service::preamble;
use evener_core::flow::FlowKey;
use evener_core::wire::proxy::{self, Ends, Extras, Transport};
use std::net::SocketAddr;

impl DatagramListener {
    /// Returns the header that reports a client.
    pub(super) fn header_of(&self, key: &FlowKey) -> Box<[u8]> {
        let bound = preamble::local_address(&self.socket);
        let used = bound.map(|bound| SocketAddr::new(key.local.unwrap_or(bound.ip()), bound.port()));
        let destination = key.via.map(|via| via.destination).or(used);
        let ends = destination.map(|destination| Ends { source: key.client, destination });
        let extras = Extras { hops: key.via.map_or(0, |via| via.hops + 1), ..Extras::default() };
        let mut header = Vec::new();
        proxy::emit_v2(ends, Transport::Datagram, &extras, &mut header);
        header.into()
    }
}

impl Udp {
    /// Puts the PROXY header before each of these datagrams of a flow, if the flow has one.
    pub(super) fn introduce(&self, socket: FlowSocketKey, batch: &mut Batch, indices: &[usize]) {
        let header = self.sockets.get(socket).and_then(|flow| flow.header.as_deref());
        if let Some(header) = header {
            // The socket refuses a datagram that becomes too large.
            indices.iter().for_each(|&index| batch.prepend(index, header));
        }
    }
}
