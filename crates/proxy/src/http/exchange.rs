//! Exchanges: each carries one request, or one relay, between a session and a server. An exchange chooses the
//! server, connects to it or uses a pooled connection, tries the next server after a failure, and finally
//! releases the connection. After each event an exchange returns its progress, and its session reacts.

mod connect;
mod descriptor;
mod ending;
mod finish;
mod queued;
mod request;
mod response;
mod reuse;
mod shared;
mod splice;

pub(super) use self::finish::Keep;
pub(super) use self::request::Body;
pub(super) use self::response::{ReadResponse, cut_response, invalid_header, no_response};

use self::shared::HeaderBuffers;
use super::client::{Client, Parties, Stay};
use super::log_entry::LogEntry;
use super::pooled::Pooled;
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerConnectionKey, SessionKey, StreamKey, Table, of};
use crate::context::pool_queue::Queued;
use crate::context::timers::Timers;
use crate::io::connect::TRIES_MAX;
use crate::io::request_log::{RequestLog, Tap};
use crate::io::tls::TlsConnector;
use crate::io::transport::{Buffers, Transport};
use crate::service::{Backend, Pending, Settings, note_no_server, note_retry, pool_queue};
use evener_core::attempt::Attempt;
use evener_core::counters::ServiceCounters;
use evener_core::pace::Pace;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::{Choice, Entry, NoServer, Request, ServerLive};
use evener_core::spec::{AbortOnClose, Balance};
use evener_core::{ServerId, Target, Time};
use std::net::IpAddr;
use std::sync::Arc;

/// Exchange of a session with a server.
#[derive(Debug)]
pub(super) struct Exchange {
    session: SessionKey,
    pub(super) settings: Arc<Settings>,
    backend: usize,
    /// Client address by which a server is chosen.
    client: IpAddr,
    /// Server token in the client's cookie.
    token: Option<u64>,
    /// Server of the client's earlier requests, if later requests have to go to the same server.
    stay: Option<ServerId>,
    /// Connection that only this client may use. The exchange uses it if it leads to the chosen server.
    private: Option<ServerConnectionKey>,
    choice: Option<Choice>,
    reach: Reach,
    /// Slot in the queue of the pool, while the exchange waits there.
    queued: Option<Queued>,
    attempt: Attempt,
    /// Server that was tried last and failed.
    failed: Option<Box<FailedServer>>,
    /// Reason for which the connection to the server was closed on purpose.
    ended: Option<Reason>,
    /// Time at which the connection attempt, or the wait for a response, began.
    since: Time,
    /// Bytes that were relayed in both directions, without requests and responses of HTTP.
    relayed: u64,
    /// Entry of the request log.
    entry: Option<Box<LogEntry>>,
    /// Request and response, if they are HTTP.
    pub(super) http: Option<Box<HttpPart>>,
}

/// Server that could not be reached or gave no response, with the cause.
#[derive(Debug)]
struct FailedServer {
    server: Arc<str>,
    cause: Cause,
}

impl Exchange {
    /// Creates an exchange of a client with a server of this backend.
    pub(super) fn new(client: &Client, backend: usize, cx: &Context) -> Self {
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
            attempt: Attempt::new(cx.id),
            failed: None,
            ended: None,
            since: cx.now,
            relayed: 0,
            entry: None,
            http: None,
        }
    }

    /// Sets the facts by which the server is chosen: the client's address, the server token in its cookie, and
    /// the server of its earlier requests.
    pub(super) fn choose_by(&mut self, client: IpAddr, token: Option<u64>, stay: Option<&Stay>) {
        (self.client, self.token) = (client, token);
        self.stay = stay.and_then(|stay| stay.at(self.backend()));
    }

    /// Offers the exchange a connection that only this client may use.
    pub(super) fn offer_private(&mut self, private: Option<ServerConnectionKey>) {
        self.private = private;
    }

    pub(super) fn session(&self) -> SessionKey {
        self.session
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    /// Returns the connection to the server, if it is open.
    pub(super) fn open_connection(&self) -> Option<ServerConnectionKey> {
        if let Reach::Open(server_key) = self.reach { Some(server_key) } else { None }
    }

    /// Returns the server that was chosen, with the name of its pool.
    pub(super) fn server(&self) -> Option<(Arc<str>, &Entry)> {
        let choice = self.choice.as_ref()?;
        Some((Arc::clone(&self.backend().pool.load().pool), &choice.server))
    }

    /// Returns the client, the pool and the server for reports: the chosen server, or the server that was tried
    /// last.
    pub(super) fn parties(&self) -> Parties {
        let chosen = self.choice.as_ref().map(|choice| &choice.server.name);
        let server = chosen.or(self.failed.as_ref().map(|failed| &failed.server));
        Parties::new(self.client, Arc::clone(&self.backend().pool.load().pool), server.cloned())
    }

    /// Records that the connection to the server is closed on purpose, so that the exchange fails for this reason.
    pub(super) fn end_for(&mut self, reason: Reason) {
        self.ended = Some(reason);
    }

    /// Records that the server of a relay reset its connection.
    pub(super) fn log_server_reset(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.set_default_cause(Cause::with(
                Reason::ResponseIncomplete,
                "the server reset the connection",
            ));
        }
    }

    /// Returns the cause of a failure: the reason for which the connection to the server was closed on purpose, or
    /// the failure of the last server if no server was reached.
    pub(super) fn explain(&self, cause: Cause) -> Cause {
        if let Some(ended) = self.ended {
            return ended.into();
        }
        match (self.failed.as_deref(), cause.reason()) {
            (Some(failed), Reason::ConnectFailed) => failed.cause,
            (Some(failed), Reason::RetriesExhausted) => Cause::new(cause.reason(), failed.cause.detail()),
            _ => cause,
        }
    }

    /// Returns the request log for a relay.
    pub(super) fn tap<'a>(&'a self, log: &'a RequestLog, counters: &'a ServiceCounters) -> Option<Tap<'a>> {
        let choice = self.choice.as_ref()?;
        Some(Tap::new(log, self.client, &choice.server.target, counters))
    }

    /// Counts bytes that were sent to the server, and bytes that were received from it.
    pub(super) fn count(&self, cx: &Context, bytes_in: u64, bytes_out: u64) {
        if let Some(choice) = &self.choice {
            let of_server = choice.server.live.counters.of(cx.id);
            of_server.bytes_in.add(bytes_in);
            of_server.bytes_out.add(bytes_out);
        }
    }

    /// Counts bytes that were relayed, without requests and responses of HTTP.
    pub(super) fn count_relayed(&mut self, cx: &Context, bytes_in: u64, bytes_out: u64) {
        self.relayed += bytes_in + bytes_out;
        if let Some(entry) = &mut self.entry {
            entry.add_bytes(bytes_in, bytes_out);
        }
        self.count(cx, bytes_in, bytes_out);
    }

    /// Counts bytes of the body of a response.
    pub(super) fn count_response(&mut self, cx: &Context, bytes: u64) {
        if let Some(http) = &mut self.http {
            http.downloaded += bytes;
        }
        self.count(cx, 0, bytes);
    }

    /// Sets the entry of the request log.
    pub(super) fn set_log_entry(&mut self, entry: Option<Box<LogEntry>>) {
        self.entry = entry;
    }

    /// Returns the entry of the request log.
    pub(super) fn log_entry(&mut self) -> Option<&mut LogEntry> {
        self.entry.as_deref_mut()
    }

    /// Takes the entry of the request log, with the bytes that were moved.
    pub(super) fn take_log_entry(&mut self) -> Option<Box<LogEntry>> {
        self.log_body_bytes();
        self.entry.take()
    }

    /// Ends HTTP: the exchange relays another protocol.
    pub(super) fn become_relay(&mut self) {
        self.log_body_bytes();
        self.http = None;
    }

    fn log_body_bytes(&mut self) {
        if let (Some(entry), Some(http)) = (&mut self.entry, &self.http) {
            entry.add_bytes(http.uploaded, http.downloaded);
        }
    }

    /// Returns the reason for which the exchange ends before the client has the whole response, or for which a
    /// relay is closed. `session` is the reason for which the program ends the session.
    fn early_end(&self, session: Option<Reason>) -> Option<Reason> {
        match &self.http {
            None => self.ended.or(session),
            Some(http) if http.has_responded && http.is_downloaded() => None,
            Some(_) => Some(session.unwrap_or(Reason::ClientClosed)),
        }
    }

    /// Records the size of the response or of the relay when the exchange ends. An exchange that reached no
    /// server has neither.
    fn note_end(&self, counters: &ServiceCounters) {
        match &self.http {
            Some(http) if http.has_responded && !http.is_relay => {
                counters.response_bytes.record_bytes(http.downloaded);
            }
            Some(http) if !http.is_relay => {}
            Some(_) | None => {
                if matches!(self.reach, Reach::Open(_)) {
                    counters.connection_bytes.record_bytes(self.relayed);
                }
            }
        }
    }

    /// Returns whether the client waits for a server: the request is complete and no response has begun, or the
    /// exchange is queued.
    pub(super) fn waits_for_response(&self) -> bool {
        let whole = |http: &HttpPart| http.upload == Body::Done && !http.has_responded;
        self.reach == Reach::Queued || self.http.as_deref().is_some_and(whole)
    }

    /// Returns whether the exchange is abandoned when its client closes: the request is complete or still
    /// queued, and `abort_on_close` applies to it.
    pub(super) fn aborts_on_close(&self) -> bool {
        // A queued request was not sent to any server yet.
        let queued = self.reach == Reach::Queued;
        let wanted = |http: &HttpPart| match self.settings.http.as_ref().map(|spec| spec.abort_on_close) {
            Some(AbortOnClose::Always) => true,
            Some(AbortOnClose::Idempotent) => http.is_idempotent || queued,
            Some(AbortOnClose::Never) | None => false,
        };
        self.http.as_deref().is_some_and(|http| (http.upload == Body::Done || queued) && wanted(http))
    }

    /// Returns whether the deadline of the exchange is for a check of the moving bodies of an HTTP/2 stream.
    /// Otherwise the deadline is the response timeout.
    pub(super) fn has_moving_stream(&self) -> bool {
        let moves =
            |http: &HttpPart| http.stream.is_some() && (http.has_responded || http.upload != Body::Done);
        self.http.as_deref().is_some_and(moves)
    }
}

/// Request of HTTP and its response, as parts of an exchange.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact about the request")]
pub(super) struct HttpPart {
    /// Bytes queued for the server, the header section first.
    outgoing: Vec<u8>,
    /// All bytes that were sent to the server, for a retry; `None` if there were too many to store.
    replay: Option<Vec<u8>>,
    upload: Body,
    /// Number of bytes of the request's body that were received.
    uploaded: u64,
    /// Number of bytes of the response's body that were received.
    downloaded: u64,
    pace: Pace,
    uploads_chunks: bool,
    download: Body,
    downloads_chunks: bool,
    is_head: bool,
    is_connect: bool,
    is_idempotent: bool,
    is_http10: bool,
    /// The client requests another protocol.
    upgrades: bool,
    /// The client's connection stays open after the response.
    client_stays: bool,
    /// The server's connection stays open after the response.
    server_stays: bool,
    /// The final response has begun.
    has_responded: bool,
    /// After the response the exchange relays another protocol (101 or CONNECT).
    is_relay: bool,
    /// Number of interim responses.
    interims: u32,
    /// Number of retries that are left if no response comes.
    retries: u32,
    /// The request is sent again.
    is_repeated: bool,
    /// Only this client may use the server's connection.
    is_private: bool,
    /// Stream of HTTP/2 to which the request belongs.
    stream: Option<StreamKey>,
}

/// Progress towards a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// No server is chosen.
    Wanted,
    /// Every server is at its limit; the exchange waits for a permit.
    Queued,
    /// A connection attempt or a TLS handshake is under way.
    Connecting(ServerConnectionKey),
    /// The connection to the server is open.
    Open(ServerConnectionKey),
    /// No server could be reached, for this reason.
    Failed(Reason),
}

/// Connection to a server.
#[derive(Debug)]
pub(super) struct ServerConnection {
    pub(super) transport: Transport,
    /// Name of the pool, and the identity of the server within it.
    pool: Arc<str>,
    id: ServerId,
    target: Target,
    live: Arc<ServerLive>,
    connector: Option<Arc<TlsConnector>>,
    /// Host name of the server when the connection was opened.
    host: Option<Arc<str>>,
    exchange: Option<ExchangeKey>,
    /// Permit for the pending connection attempt, if the service limits their number.
    pending: Option<Pending>,
    stage: Stage,
    /// Descriptor of the connection, as counted in the budget of the process.
    unit: Option<Unit>,
    idle_since: Time,
    /// The connection carried at least one earlier request.
    reused: bool,
    /// The server identifies the connection with one client, so no other client may use it.
    personal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Handshaking,
    Open,
    /// The last bytes were sent; the server is drained until it has received these bytes, for a limited time.
    Lingering,
    Closed,
}

/// Pooled connections that an exchange may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Any pooled connection.
    Any,
    /// A connection that was used lately.
    Fresh,
    /// No pooled connection.
    Never,
}

impl Exchange {
    pub(super) fn backend(&self) -> &Backend {
        &self.settings.backends[self.backend]
    }

    /// Returns whether a connection to the server may serve only this client.
    fn is_personal(&self) -> bool {
        self.settings.is_personal(self.backend)
    }

    /// Returns whether the exchange belongs to a stream of HTTP/2.
    fn is_of_stream(&self) -> bool {
        self.http.as_ref().is_some_and(|http| http.stream.is_some())
    }

    /// Returns the facts by which the pool picks a server.
    fn request(&self, now: Time) -> Request {
        Request { client: self.client, now, token: self.token, stay: self.stay }
    }

    /// Returns the server of this exchange if the next exchange of the client's connection has to use the same
    /// server.
    pub(super) fn stay(&self) -> Option<Stay> {
        let wanted = self.settings.http.as_ref().is_some_and(|spec| spec.balance == Balance::Connection);
        let server = self.choice.as_ref().filter(|_| wanted)?.server.id;
        Some(Stay::new(self.backend(), server))
    }

    fn reuse(&self) -> Reuse {
        match &self.http {
            Some(http) if !self.is_personal() => http.reuse(),
            _ => Reuse::Never,
        }
    }
}

/// Effect of an event on an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Progress {
    /// The exchange can continue.
    Moved,
    /// The exchange still waits for an event.
    Waits,
}

/// State that the sessions of a worker share.
pub(super) struct Shared {
    pub(super) exchanges: Table<of::Exchange, Box<Exchange>>,
    /// Connections of exchanges to servers.
    pub(super) servers: Table<of::ServerConnection, Box<ServerConnection>>,
    /// Index of the connections to servers that no exchange uses.
    pooled: Pooled,
    pub(super) session_timers: Timers<SessionKey>,
    pub(super) exchange_timers: Timers<ExchangeKey>,
    server_timers: Timers<ServerConnectionKey>,
    pub(super) buffers: Buffers,
    pub(super) headers: HeaderBuffers,
    /// Connections to servers that ended while the present events were handled.
    ended_servers: Vec<ServerConnectionKey>,
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
            headers: HeaderBuffers::default(),
            ended_servers: Vec::new(),
        }
    }

    /// Begins an exchange.
    pub(super) fn begin(&mut self, exchange: Exchange) -> ExchangeKey {
        self.exchanges.insert(Box::new(exchange))
    }

    /// Chooses a server and begins to connect to it, unless that has happened before. Never waits; returns the
    /// present state.
    pub(super) fn reach(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) -> Reach {
        for _ in 0..TRIES_MAX {
            let exchange = &mut self.exchanges[exchange_key];
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
            note_retry(cx, &client.service, &snapshot.pool, &picked);
            match picked {
                Ok(choice) => self.take_server(cx, client, exchange_key, &snapshot.pool, choice),
                Err(NoServer::Full) if self.enter_queue(cx, client, exchange_key, &snapshot) => {}
                Err(reason) => self.refuse(cx, client, exchange_key, reason),
            }
        }
        if self.exchanges[exchange_key].reach == Reach::Wanted {
            // So many servers failed that the worker handles other sessions now, and continues this exchange
            // afterwards.
            self.exchange_timers.set(exchange_key, cx.now);
        }
        self.exchanges[exchange_key].reach
    }

    fn take_server(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        pool: &Arc<str>,
        choice: Choice,
    ) {
        let exchange = &mut self.exchanges[exchange_key];
        let (id, reuse) = (choice.server.id, exchange.reuse());
        if let Some(entry) = &mut exchange.entry {
            entry.on_try(pool, &choice.server);
        }
        client.log_try(pool, &choice.server);
        exchange.choice = Some(choice);
        let local = self.find_private(cx, client, exchange_key, (pool, id));
        match local.or_else(|| self.find_pooled(cx, exchange_key, (pool, id), reuse)) {
            Some(server_key) => self.reuse(cx, client, exchange_key, server_key),
            None => self.connect(cx, client, exchange_key, pool),
        }
    }

    fn refuse(&mut self, cx: &Context, client: &Client, exchange_key: ExchangeKey, reason: NoServer) {
        let exchange = &mut self.exchanges[exchange_key];
        // A pool with a queue refuses a request only if the queue is full, too.
        let has_queue = reason == NoServer::Full && exchange.backend().pool.load().queue.is_some();
        exchange.reach = Reach::Failed(if has_queue { Reason::QueueFull } else { reason.into() });
        note_no_server(cx, &client.service, reason);
    }

    /// Records that a permit of the exchange's pool becomes free, now or soon.
    fn note_freed(&self, cx: &mut Context, exchange_key: ExchangeKey) {
        pool_queue::note_freed(cx, &self.exchanges[exchange_key].backend().pool);
    }

    /// Returns the exchange that uses a connection to a server.
    pub(super) fn exchange_on(&self, server_key: ServerConnectionKey) -> Option<ExchangeKey> {
        self.servers.get(server_key)?.exchange
    }

    /// Handles the deadline of an exchange that has not reached its server yet.
    pub(super) fn on_reach_deadline(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) -> Progress {
        match self.exchanges[exchange_key].reach {
            Reach::Queued => self.time_out_in_queue(cx, client, exchange_key),
            Reach::Connecting(server_key) => self.on_connect_timeout(cx, client, exchange_key, server_key),
            Reach::Wanted => {}
            Reach::Open(_) | Reach::Failed(_) => return Progress::Waits,
        }
        Progress::Moved
    }

    /// Closes a connection to a server.
    pub(super) fn close_server(&mut self, cx: &Context, server_key: ServerConnectionKey) {
        let Some(server) = self.servers.get_mut(server_key).filter(|server| server.stage != Stage::Closed)
        else {
            return;
        };
        self.pooled.remove(&server.pool, server.id, server_key);
        server.stage = Stage::Closed;
        server.exchange = None;
        server.pending.take().into_iter().for_each(|pending| pending.end(cx));
        self.server_timers.clear(server_key);
        self.ended_servers.push(server_key);
    }

    /// Closes the connection of an exchange. The client gets the descriptor back for its next connection.
    fn give_up_server(&mut self, cx: &mut Context, client: &mut Client, server_key: ServerConnectionKey) {
        self.give_back(client, server_key);
        self.close_server(cx, server_key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service has an exchange for each request that is under way.
    #[test]
    fn an_exchange_stays_small() {
        assert!(size_of::<Exchange>() <= 200, "{}", size_of::<Exchange>());
    }
}
