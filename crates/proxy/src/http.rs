//! HTTP and TLS: sessions with clients, exchanges with servers.

pub(crate) mod exchange;
pub(crate) mod http1;
pub(crate) mod http2;
mod list;
pub(crate) mod message;
pub(crate) mod session;
pub(crate) mod tunnel;

pub(crate) use list::close_numbered;

use self::exchange::{Exchange, IdleKey, ServerLink};
use self::http1::Heads;
use self::session::Session;
use crate::context::timers::Timers;
use crate::io::transport::Buffers;
use evener_core::hash::Keyed;
use slab::Slab;
use std::collections::HashMap;

/// The clients of one worker that speak HTTP or TLS.
pub(crate) struct Http {
    pub(crate) sessions: Slab<Box<Session>>,
    pub(crate) exchanges: Slab<Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(crate) servers: Slab<Box<ServerLink>>,
    /// Those of them that are unused; the last one was used last.
    pub(crate) idle: HashMap<IdleKey, Vec<usize>, Keyed>,
    pub(crate) session_timers: Timers,
    pub(crate) exchange_timers: Timers,
    pub(crate) server_timers: Timers,
    pub(crate) buffers: Buffers,
    pub(crate) heads: Heads,
    /// Numbers the connections of exchanges to servers.
    pub(crate) next_serial: u64,
    /// Sessions that ended during the present events.
    pub(crate) sessions_over: Vec<usize>,
    pub(crate) servers_over: Vec<usize>,
}

impl Http {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            sessions: Slab::new(),
            exchanges: Slab::new(),
            servers: Slab::new(),
            idle: HashMap::with_hasher(Keyed::new(seed)),
            session_timers: Timers::new(),
            exchange_timers: Timers::new(),
            server_timers: Timers::new(),
            buffers: Buffers::default(),
            heads: Heads::default(),
            next_serial: 0,
            sessions_over: Vec::new(),
            servers_over: Vec::new(),
        }
    }
}
