//! What the sessions of a worker share: exchanges, connections to servers, deadlines, and memory that is used in turn.

use super::exchange::{Exchange, ServerLink};
use super::pooled::Pooled;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey, Table, of};
use crate::context::timers::Timers;
use crate::io::transport::Buffers;
use evener_core::Time;
use evener_core::wire::http::{Request, Response};
use std::time::Duration;

/// A side that still sends when all is sent to it is heard for so long, so that it receives everything.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// And for so many bytes at most.
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;
/// After so many rounds another session has its turn.
pub(super) const ROUNDS_MAX: usize = 16;

/// Memory for the header sections that a worker reads and writes.
#[derive(Debug, Default)]
pub(super) struct Heads {
    pub(super) request: Request,
    pub(super) response: Response,
    /// The header section of the request that is looked at.
    pub(super) head: Vec<u8>,
    /// Bytes about to be sent to a client; empty between steps, for the next ones are another client's.
    pub(super) out: Vec<u8>,
}

/// What the sessions of a worker share.
pub(super) struct Shared {
    pub(super) exchanges: Table<of::Exchange, Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(super) servers: Table<of::ServerLink, Box<ServerLink>>,
    /// Those of them that no exchange has.
    pub(super) pooled: Pooled,
    pub(super) session_timers: Timers<SessionKey>,
    pub(super) exchange_timers: Timers<ExchangeKey>,
    pub(super) server_timers: Timers<ServerLinkKey>,
    pub(super) buffers: Buffers,
    pub(super) heads: Heads,
    /// Connections to servers that ended during the present events.
    pub(super) servers_over: Vec<ServerLinkKey>,
}

impl Shared {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            exchanges: Table::default(),
            servers: Table::default(),
            pooled: Pooled::new(seed),
            session_timers: Timers::new(),
            exchange_timers: Timers::new(),
            server_timers: Timers::new(),
            buffers: Buffers::default(),
            heads: Heads::default(),
            servers_over: Vec::new(),
        }
    }

    /// Returns how long nothing can be due; `None` when there is no deadline.
    pub(super) fn wait(&self, now: Time) -> Option<Duration> {
        let waits =
            [self.session_timers.wait(now), self.exchange_timers.wait(now), self.server_timers.wait(now)];
        waits.into_iter().flatten().min()
    }

    /// Frees the connections to servers that ended.
    pub(super) fn reap(&mut self) {
        while let Some(slot) = self.servers_over.pop() {
            let Some(mut server) = self.servers.remove(slot) else { continue };
            server.link.release(&mut self.buffers);
        }
    }
}
