//! Exchanges: what a session has with a server. An exchange chooses the server, reaches it by a connection that is pooled
//! or made, goes on to the next one when that fails, and gives the connection back. What comes of it for the session is
//! returned: its owner reacts.

mod connect;
mod descriptor;
mod ending;
mod finish;
mod queued;
mod request;
mod response;
mod reuse;
mod shared;

pub(super) use self::finish::Keep;
pub(super) use self::request::{Body, HttpPart, REPLAY_BYTES_MAX, flush_upload, put, take};
pub(super) use self::response::ReadResponse;
pub(super) use self::shared::Shared;

use super::client::{Client, Stay};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerConnectionKey, SessionKey};
use crate::context::pool_queue::Queued;
use crate::io::connect::TRIES_MAX;
use crate::io::tls::TlsConnector;
use crate::io::transport::Transport;
use crate::service::{Backend, Pending, Settings, note_no_server, pool_queue};
use evener_core::attempt::Attempt;
use evener_core::snapshot::{Choice, NoServer, Request, ServerLive};
use evener_core::spec::{AbortOnClose, Balance};
use evener_core::{ServerId, Target, Time};
use std::net::IpAddr;
use std::sync::Arc;

/// An exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) session: SessionKey,
    pub(super) settings: Arc<Settings>,
    backend: usize,
    /// The client by which a server is chosen.
    pub(super) client: IpAddr,
    /// The server that the client's cookie names.
    pub(super) token: Option<u64>,
    /// The server that the client's connection has.
    pub(super) stay: Option<ServerId>,
    /// A connection that is for this client only, to be used if it leads to the chosen server.
    pub(super) private: Option<ServerConnectionKey>,
    pub(super) choice: Option<Choice>,
    pub(super) reach: Reach,
    /// Slot in the queue of the pool, while the exchange waits there.
    queued: Option<Queued>,
    attempt: Attempt,
    /// Time at which the connect, or the wait for a response, began.
    since: Time,
    /// The request, if it is HTTP.
    pub(super) http: Option<Box<HttpPart>>,
}

impl Exchange {
    /// An exchange of a client with a server of this backend.
    pub(super) fn new(client: &Client, backend: usize, now: Time) -> Self {
        Self {
            session: client.key,
            settings: Arc::clone(&client.settings),
            backend,
            client: client.origin.client().ip(),
            token: None,
            stay: None,
            private: None,
            choice: None,
            reach: Reach::Wanted,
            queued: None,
            attempt: Attempt::new(),
            since: now,
            http: None,
        }
    }

    /// Returns whether it is the server's turn: the request is whole, and no response began; or it waits for a server.
    pub(super) fn waits_for_response(&self) -> bool {
        let whole = |http: &HttpPart| http.upload == Body::Done && !http.responded;
        self.reach == Reach::Queued || self.http.as_deref().is_some_and(whole)
    }

    /// Returns whether it is given up when its client closed: the request is whole, and the service is configured so.
    pub(super) fn aborts_on_close(&self) -> bool {
        // No server knows of one that still waits in a queue.
        let queued = self.reach == Reach::Queued;
        let wanted = |http: &HttpPart| match self.settings.http.as_ref().map(|spec| spec.abort_on_close) {
            Some(AbortOnClose::Always) => true,
            Some(AbortOnClose::Idempotent) => http.is_idempotent || queued,
            Some(AbortOnClose::Never) | None => false,
        };
        self.http.as_deref().is_some_and(|http| (http.upload == Body::Done || queued) && wanted(http))
    }

    /// Returns whether its deadline is about a stream of HTTP/2 whose bodies move, not about the server's time to respond.
    pub(super) fn stands(&self) -> bool {
        let moves = |http: &HttpPart| http.stream.is_some() && (http.responded || http.upload != Body::Done);
        self.http.as_deref().is_some_and(moves)
    }
}

/// Progress towards a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// None is chosen.
    Wanted,
    /// Every server is at its limit; it waits for a permit.
    Queued,
    /// A connect or handshake is under way there.
    Connecting(ServerConnectionKey),
    /// The connection to the server is open.
    Open(ServerConnectionKey),
    /// No server could be reached, for this reason.
    Failed(NoServer),
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct ServerConnection {
    pub(super) transport: Transport,
    /// The name of its pool, and the server's identity there.
    pool: Arc<str>,
    id: ServerId,
    target: Target,
    live: Arc<ServerLive>,
    connector: Option<Arc<TlsConnector>>,
    exchange: Option<ExchangeKey>,
    /// Permit for the connect under way, where these are counted.
    pending: Option<Pending>,
    stage: Stage,
    /// Counted descriptor of the connection.
    unit: Option<Unit>,
    idle_since: Time,
    /// The connection carried a request before the present one.
    reused: bool,
    /// The server knows the connection as that of one client: it is for no other.
    personal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Handshaking,
    Open,
    /// Everything is sent; the server is received from until it has everything, for a time.
    Lingering,
    Over,
}

/// Pooled connections that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Any.
    Any,
    /// One that was used lately.
    Fresh,
    /// None.
    Never,
}

impl Exchange {
    pub(super) fn backend(&self) -> &Backend {
        &self.settings.backends[self.backend]
    }

    /// Returns whether a connection to the server is for this client only.
    fn is_personal(&self) -> bool {
        self.settings.is_personal(self.backend)
    }

    /// Returns whether the exchange belongs to a stream of HTTP/2.
    fn is_of_stream(&self) -> bool {
        self.http.as_ref().is_some_and(|http| http.stream.is_some())
    }

    /// Returns the request to the pool for a server.
    fn request(&self, now: Time) -> Request {
        Request { client: self.client, now, token: self.token, stay: self.stay }
    }

    /// Returns the server for the next exchange of the client's connection, if that is to be the same.
    pub(super) fn stay(&self) -> Option<Stay> {
        let wanted = self.settings.http.as_ref().is_some_and(|spec| spec.balance == Balance::Connection);
        let server = self.choice.as_ref().filter(|_| wanted)?.server.id;
        Some(Stay { pool: Arc::clone(&self.backend().pool.load().pool), server })
    }

    fn reuse(&self) -> Reuse {
        match &self.http {
            Some(http) if !self.is_personal() => http.reuse(),
            _ => Reuse::Never,
        }
    }
}

/// Meaning of an event for the session of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Progress {
    /// The exchange can go on.
    Moved,
    /// There is nothing for it yet.
    Waits,
}

impl Shared {
    /// Begins an exchange.
    pub(super) fn begin(&mut self, exchange: Exchange) -> ExchangeKey {
        self.exchanges.insert(Box::new(exchange))
    }

    /// Makes sure that the server can be spoken to, as far as it goes without waiting.
    pub(super) fn reach(&mut self, cx: &mut Context, client: &mut Client, number: ExchangeKey) -> Reach {
        for _ in 0..TRIES_MAX {
            let exchange = &mut self.exchanges[number];
            if exchange.reach != Reach::Wanted {
                return exchange.reach;
            }
            let request = exchange.request(cx.now);
            let snapshot = exchange.backend().pool.load_full();
            let limits = exchange.settings.options.attempt_limits();
            let behind = exchange.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request);
            let picked = if behind {
                Err(NoServer::Full)
            } else {
                exchange.attempt.next(&snapshot, &request, &limits, &mut cx.random)
            };
            match picked {
                Ok(choice) => self.take_server(cx, client, number, &snapshot.pool, choice),
                Err(NoServer::Full) if self.enter_queue(cx, client, number, &snapshot) => {}
                Err(reason) => self.refuse(cx, client, number, reason),
            }
        }
        if self.exchanges[number].reach == Reach::Wanted {
            // So many failed at once that others have their turn now.
            self.exchange_timers.set(number, cx.now);
        }
        self.exchanges[number].reach
    }

    fn take_server(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        pool: &Arc<str>,
        choice: Choice,
    ) {
        let exchange = &mut self.exchanges[number];
        let (id, reuse) = (choice.server.id, exchange.reuse());
        exchange.choice = Some(choice);
        let local = self.find_private(cx, client, number, (pool, id));
        match local.or_else(|| self.find_pooled(cx, number, (pool, id), reuse)) {
            Some(slot) => self.reuse(cx, client, number, slot),
            None => self.connect(cx, client, number, pool),
        }
    }

    fn refuse(&mut self, cx: &Context, client: &Client, number: ExchangeKey, reason: NoServer) {
        self.exchanges[number].reach = Reach::Failed(reason);
        note_no_server(cx, &client.service, reason);
    }

    /// The permit of its server is given back, now or soon.
    fn note_freed(&self, cx: &mut Context, number: ExchangeKey) {
        pool_queue::note_freed(cx, &self.exchanges[number].backend().pool);
    }

    /// The exchange that a connection to a server is for.
    pub(super) fn exchange_on(&self, slot: ServerConnectionKey) -> Option<ExchangeKey> {
        self.servers.get(slot)?.exchange
    }

    /// The deadline of an exchange came whose server is not reached yet.
    pub(super) fn on_reach_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
    ) -> Progress {
        match self.exchanges[number].reach {
            Reach::Queued => self.leave_queue_in_vain(cx, client, number),
            Reach::Connecting(slot) => self.on_connect_timeout(cx, client, number, slot),
            Reach::Wanted => {}
            Reach::Open(_) | Reach::Failed(_) => return Progress::Waits,
        }
        Progress::Moved
    }

    /// Closes a connection to a server.
    pub(super) fn close_server(&mut self, cx: &Context, slot: ServerConnectionKey) {
        let Some(server) = self.servers.get_mut(slot).filter(|server| server.stage != Stage::Over) else {
            return;
        };
        self.pooled.remove(&server.pool, server.id, slot);
        server.stage = Stage::Over;
        server.exchange = None;
        server.pending.take().into_iter().for_each(|pending| pending.end(cx));
        self.server_timers.clear(slot);
        self.servers_over.push(slot);
    }

    /// Closes the connection of an exchange; its client has the descriptor for the next one.
    fn give_up_server(&mut self, cx: &mut Context, client: &mut Client, slot: ServerConnectionKey) {
        self.give_back(client, slot);
        self.close_server(cx, slot);
    }
}
