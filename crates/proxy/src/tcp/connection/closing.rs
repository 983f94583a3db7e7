//! The end of a connection: its descriptors are closed.

use super::Connection;
use crate::context::ring::Ring;

impl Connection {
    /// Closes both sockets. Queued operations of the ring refer to descriptors by number, so the ring closes these
    /// after them: a number that is reused earlier would get the operations of its predecessor.
    pub(in crate::tcp) fn close(self, ring: Option<&mut Ring>) {
        let Some(ring) = ring else { return };
        ring.close(self.client);
        self.upstream.into_iter().for_each(|upstream| ring.close(upstream.socket));
    }
}
