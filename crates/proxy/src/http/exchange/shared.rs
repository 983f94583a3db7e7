//! State that the sessions of a worker share: exchanges, connections to servers, deadlines, and reusable memory.

use super::{Exchange, ServerConnection};
use crate::context::keys::{ExchangeKey, ServerConnectionKey, SessionKey, Table, of};
use crate::context::timers::Timers;
use crate::http::pooled::Pooled;
use crate::io::transport::Buffers;
use evener_core::Time;
use evener_core::wire::http::{Request, Response};
use std::time::Duration;

/// Memory for the header sections that a worker reads and writes.
#[derive(Debug, Default)]
pub(in crate::http) struct HeaderBuffers {
    pub(in crate::http) request: Request,
    pub(in crate::http) response: Response,
    /// Header section of the request that is judged.
    pub(in crate::http) header: Vec<u8>,
    /// Bytes for a client; empty between two steps, because the next step may serve another client.
    pub(in crate::http) out: Vec<u8>,
}

/// State that the sessions of a worker share.
pub(in crate::http) struct Shared {
    pub(in crate::http) exchanges: Table<of::Exchange, Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(in crate::http) servers: Table<of::ServerConnection, Box<ServerConnection>>,
    /// Index of the connections to servers that no exchange uses.
    pub(in crate::http) pooled: Pooled,
    pub(in crate::http) session_timers: Timers<SessionKey>,
    pub(in crate::http) exchange_timers: Timers<ExchangeKey>,
    pub(in crate::http) server_timers: Timers<ServerConnectionKey>,
    pub(in crate::http) buffers: Buffers,
    pub(in crate::http) headers: HeaderBuffers,
    /// Connections to servers that ended while the present events were handled.
    pub(in crate::http) ended_servers: Vec<ServerConnectionKey>,
}

impl Shared {
    pub(in crate::http) fn new(seed: u64) -> Self {
        Self {
            exchanges: Table::default(),
            servers: Table::default(),
            pooled: Pooled::new(seed),
            session_timers: Timers::new(),
            exchange_timers: Timers::new(),
            server_timers: Timers::new(),
            buffers: Buffers::default(),
            headers: HeaderBuffers::default(),
            ended_servers: Vec::new(),
        }
    }

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
