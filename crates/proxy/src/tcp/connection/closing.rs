//! The end of a connection, or of its connection to a server: descriptors are closed.

use super::{Connection, Stage, Upstream};
use crate::context::ring::Ring;
use crate::service::admission::reset_at_close;
use evener_core::snapshot::Choice;

impl Connection {
    /// Closes both sockets. Queued operations of the ring refer to descriptors by number, so the ring closes these
    /// after them: a number that is reused earlier would get the operations of its predecessor.
    pub(in crate::tcp) fn close(self, ring: Option<&mut Ring>) {
        let Some(ring) = ring else { return };
        ring.close(self.client);
        self.upstream.into_iter().for_each(|upstream| ring.close(upstream.socket));
    }

    /// Closes the socket to the server in the same way. Returns the choice with its permit.
    pub(in crate::tcp) fn close_server(&mut self, ring: Option<&mut Ring>) -> Option<Choice> {
        let Upstream { socket, choice, .. } = self.upstream.take()?;
        match ring {
            Some(ring) => ring.close(socket),
            None => drop(socket),
        }
        Some(choice)
    }

    /// Makes the connection to the server end with a reset, so that the server does not see an orderly end.
    pub(in crate::tcp) fn reset_server_at_close(&self) {
        self.server_socket().into_iter().for_each(reset_at_close);
    }

    /// Records the end of the connection, if it had reached a server.
    pub(in crate::tcp) fn note_end(&self, worker: usize) {
        if matches!(self.stage, Stage::Relaying | Stage::Lingering) {
            self.service.live.counters.of(worker).connection_bytes.record_bytes(self.relayed);
        }
    }
}
