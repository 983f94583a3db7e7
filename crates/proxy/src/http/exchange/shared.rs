//! Deadlines and reusable memory that the sessions of a worker share.

use super::Shared;
use evener_core::Time;
use evener_core::wire::http::{Request, Response};
use std::time::Duration;

/// Memory for the header sections that a worker reads and writes.
#[derive(Debug, Default)]
pub(in crate::http) struct HeaderBuffers {
    pub(in crate::http) request: Request,
    pub(in crate::http) response: Response,
    /// Header section of the request that is being judged.
    pub(in crate::http) header: Vec<u8>,
    /// Bytes for a client; empty between two steps, because the next step may serve another client.
    pub(in crate::http) out: Vec<u8>,
}

impl Shared {
    /// Returns the time until the next deadline may be due; `None` when there is no deadline.
    pub(in crate::http) fn wait(&self, now: Time) -> Option<Duration> {
        let waits =
            [self.session_timers.wait(now), self.exchange_timers.wait(now), self.server_timers.wait(now)];
        waits.into_iter().flatten().min()
    }

    /// Frees the connections to servers that ended.
    pub(in crate::http) fn reap(&mut self) {
        while let Some(server_key) = self.ended_servers.pop() {
            let Some(mut server) = self.servers.remove(server_key) else { continue };
            server.transport.release(&mut self.buffers);
        }
    }
}
