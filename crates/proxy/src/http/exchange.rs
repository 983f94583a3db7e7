//! Exchanges: what a session has with a server. An exchange chooses the server, reaches it by a connection that is kept
//! or made, goes on to the next one when that fails, and gives the connection back. HTTP's part of it is in `http1`; here
//! is also the relay, for everything that is not HTTP any more.

mod descriptor;
mod ending;
mod finish;
mod idle;
mod queued;

pub(crate) use descriptor::shed_idle;
pub(crate) use ending::end_server;
use finish::hear;
pub(crate) use finish::{Keep, abandon, again, end};
pub(crate) use idle::{let_go, on_idle_deadline};
pub(crate) use queued::serve_queued;

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::keys::{ExchangeKey, ServerLinkKey, SessionKey};
use crate::context::pool_queue::Queued;
use crate::context::registry::Token;
use crate::context::report::Report;
use crate::http::Http;
use crate::http::http1::{Body, HttpPart};
use crate::http::http2;
use crate::http::session::{self, Mode};
use crate::io::connect;
use crate::io::listener;
use crate::io::tls::{self, Tls, TlsConnector};
use crate::io::transport::{Link, Received};
use crate::service::hops::limit_connection;
use crate::service::pool_queue;
use crate::service::preamble;
use crate::service::{Backend, Pending, Settings};
use evener_core::attempt::{Attempt, Cost};
use evener_core::health::{Failure, TlsFailure};
use evener_core::snapshot::{Choice, Entry, NoServer, Request, ServerLive, Snapshot};
use evener_core::spec::AbortOnClose;
use evener_core::{ServerId, Target, Time};
use idle::{find_idle, find_kept, on_idle_readable, take_from_idle, use_idle};
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// An exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) session: SessionKey,
    pub(crate) settings: Arc<Settings>,
    pub(crate) backend: usize,
    /// The client by which a server is chosen.
    pub(crate) client: IpAddr,
    /// The server that the client's cookie names.
    pub(crate) token: Option<u64>,
    /// The server that the client's connection has.
    pub(crate) stay: Option<ServerId>,
    /// A connection that is for this client only, to be used if it leads to the chosen server.
    pub(crate) kept: Option<ServerLinkKey>,
    pub(crate) choice: Option<Choice>,
    pub(crate) reach: Reach,
    /// Its slot in the queue of its pool, while it waits there.
    pub(crate) queued: Option<Queued>,
    pub(crate) attempt: Attempt,
    /// When the connect, or the waiting for an answer, began.
    pub(crate) since: Time,
    /// The part of HTTP, if it is that.
    pub(crate) http: Option<Box<HttpPart>>,
}

impl Exchange {
    /// Whether it is the server's turn: the request is whole, and no response began; or it waits for a server.
    pub(crate) fn waits_for_response(&self) -> bool {
        let whole = |http: &HttpPart| http.upload == Body::Done && !http.answered;
        self.reach == Reach::Queued || self.http.as_deref().is_some_and(whole)
    }

    /// Whether it is given up when its client closed: nothing of the request is to come, and the service wants that.
    pub(crate) fn aborts_on_close(&self) -> bool {
        // No server knows of one that still waits in a queue.
        let queued = self.reach == Reach::Queued;
        let wanted = |http: &HttpPart| match self.settings.http.as_ref().map(|spec| spec.abort_on_close) {
            Some(AbortOnClose::Always) => true,
            Some(AbortOnClose::Idempotent) => http.is_idempotent || queued,
            Some(AbortOnClose::Never) | None => false,
        };
        self.http.as_deref().is_some_and(|http| (http.upload == Body::Done || queued) && wanted(http))
    }

    /// Whether its deadline is about a stream of HTTP/2 whose bodies move, not about the server's time to answer.
    fn stands(&self) -> bool {
        let moves = |http: &HttpPart| http.stream.is_some() && (http.answered || http.upload != Body::Done);
        self.http.as_deref().is_some_and(moves)
    }
}

/// How near the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// None is chosen.
    Wanted,
    /// Every server is at its limit; it waits for a permit.
    Queued,
    /// A connect or handshake is under way there.
    Connecting(ServerLinkKey),
    /// It can be spoken to there.
    Open(ServerLinkKey),
    /// Nobody could be had, and why.
    Failed(NoServer),
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct ServerLink {
    pub(crate) link: Link,
    /// The name of its pool, and the server's identity there.
    pub(super) pool: Arc<str>,
    pub(super) id: ServerId,
    target: Target,
    live: Arc<ServerLive>,
    connector: Option<Arc<TlsConnector>>,
    pub(crate) exchange: Option<ExchangeKey>,
    /// Its connect is under way, and counted.
    pending: Option<Pending>,
    stage: Stage,
    /// Its descriptor, as it is counted.
    unit: Option<Unit>,
    idle_since: Time,
    /// It carried a request before the present one.
    pub(crate) reused: bool,
    /// The server was told of a client, or takes us for it: the connection is for nobody else.
    pub(crate) personal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Handshaking,
    Open,
    /// All is said; it is heard until it has received everything, for a time.
    Lingering,
    Over,
}

/// Which connections will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Any that is kept.
    Any,
    /// One that was used lately.
    Fresh,
    /// None.
    Never,
}

impl Exchange {
    pub(crate) fn backend(&self) -> &Backend {
        &self.settings.backends[self.backend]
    }

    /// Whether a connection to the server is for this client only.
    fn is_personal(&self) -> bool {
        self.settings.is_personal(self.backend)
    }

    fn reuse(&self) -> Reuse {
        match &self.http {
            Some(http) if !self.is_personal() => http.reuse(),
            _ => Reuse::Never,
        }
    }
}

/// A session becomes a relay to a server of this backend.
pub(crate) fn begin_relay(all: &mut Http, cx: &mut Context, index: SessionKey, backend: usize) {
    let session = &mut all.sessions[index];
    let exchange = Exchange {
        session: index,
        settings: Arc::clone(&session.settings),
        backend,
        client: session.origin.client.ip(),
        token: None,
        stay: None,
        kept: None,
        choice: None,
        reach: Reach::Wanted,
        queued: None,
        attempt: Attempt::new(),
        since: cx.now,
        http: None,
    };
    let number = all.exchanges.insert(Box::new(exchange));
    session.mode = Mode::Relay(number);
    // What the client said already is in its input.
    session::drive(all, cx, index);
}

/// Makes sure that the server can be spoken to, as far as it goes without waiting.
pub(crate) fn reach(all: &mut Http, cx: &mut Context, number: ExchangeKey) -> Reach {
    for _ in 0..connect::TRIES_MAX {
        if all.exchanges[number].reach != Reach::Wanted {
            return all.exchanges[number].reach;
        }
        let exchange = &mut all.exchanges[number];
        let request =
            Request { client: exchange.client, now: cx.now, token: exchange.token, stay: exchange.stay };
        let snapshot = exchange.settings.backends[exchange.backend].pool.load_full();
        let limits = exchange.settings.options.attempt_limits();
        let behind = exchange.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request);
        let picked = if behind {
            Err(NoServer::Full)
        } else {
            exchange.attempt.next(&snapshot, &request, &limits, &mut cx.random)
        };
        match picked {
            Ok(choice) => take_server(all, cx, number, &snapshot.pool, choice),
            Err(NoServer::Full) if queued::enter_queue(all, cx, number, &snapshot) => {}
            Err(reason) => refuse(all, cx, number, reason),
        }
    }
    if all.exchanges[number].reach == Reach::Wanted {
        // So many failed at once that others have their turn now.
        all.exchange_timers.set(number, cx.now);
    }
    all.exchanges[number].reach
}

fn take_server(all: &mut Http, cx: &mut Context, number: ExchangeKey, pool: &Arc<str>, choice: Choice) {
    let exchange = &mut all.exchanges[number];
    let of = (&**pool, choice.server.id);
    let reuse = exchange.reuse();
    exchange.choice = Some(choice);
    match find_kept(all, cx, number, of).or_else(|| find_idle(all, cx, number, of, reuse)) {
        Some(slot) => use_idle(all, cx, number, slot),
        None => connect(all, cx, number, pool),
    }
}

fn refuse(all: &mut Http, cx: &mut Context, number: ExchangeKey, reason: NoServer) {
    let exchange = &mut all.exchanges[number];
    exchange.reach = Reach::Failed(reason);
    let service = Arc::clone(&all.sessions[exchange.session].service);
    crate::service::note_no_server(cx, &service, reason);
}

/// Begins a connect to the chosen server.
fn connect(all: &mut Http, cx: &mut Context, number: ExchangeKey, pool: &Arc<str>) {
    let Some(unit) = descriptor::take(all, cx, number) else { return };
    let exchange = &all.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    let (target, live) = (choice.server.target.clone(), Arc::clone(&choice.server.live));
    let session = &all.sessions[exchange.session];
    let client = session.origin.client.ip();
    let begun = connect::open_socket(&target, &exchange.settings.options, client).and_then(|socket| {
        let ours = (&session.link.socket, client);
        limit_connection(cx, &session.service, ours, (&socket, &target))?;
        match listener::connect(&socket, &target) {
            Ok(()) => Ok((socket, Stage::Open)),
            Err(Errno::INPROGRESS) => Ok((socket, Stage::Connecting)),
            Err(error) => Err(error),
        }
    });
    let (socket, stage) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            descriptor::keep(all, number, unit);
            return fail(all, cx, number, error);
        }
    };
    let counts = stage == Stage::Connecting && exchange.settings.options.pending_max.is_some();
    let pending = counts.then(|| Pending::begin(&session.service));
    let connector = exchange.backend().tls.clone();
    let options = &exchange.settings.options;
    let limits = options.attempt_limits();
    let deadline = exchange.attempt.deadline(cx.now, options.connect_timeout, &limits);
    let mut link = Link::new(socket);
    link.writable = stage == Stage::Open;
    let server = ServerLink {
        link,
        pool: Arc::clone(pool),
        id: choice.server.id,
        target,
        live,
        connector,
        exchange: Some(number),
        pending,
        stage: Stage::Connecting,
        unit: Some(unit),
        idle_since: cx.now,
        reused: false,
        personal: exchange.is_personal(),
    };
    let slot = all.servers.insert(Box::new(server));
    let exchange = &mut all.exchanges[number];
    (exchange.reach, exchange.since) = (Reach::Connecting(slot), cx.now);
    if let Err(error) = cx.registry.register(&all.servers[slot].link.socket, Token::Upstream(slot)) {
        drop_server(all, cx, slot);
        return fail(all, cx, number, error);
    }
    all.exchange_timers.set(number, deadline);
    if stage == Stage::Open {
        connected(all, cx, slot);
    }
}

/// The chosen server cannot be reached: it is passed over, and another one wanted.
fn fail(all: &mut Http, cx: &mut Context, number: ExchangeKey, error: Errno) {
    let Some(choice) = give_up_choice(all, cx, number, connect::cost(error)) else { return };
    let pool = all.exchanges[number].backend().pool.load().pool.clone();
    connect::note_failure(cx, pool, &choice.server, error);
}

fn fail_tls(all: &mut Http, cx: &mut Context, number: ExchangeKey, how: TlsFailure) {
    let Some(choice) = give_up_choice(all, cx, number, Cost::Slow) else { return };
    let pool = all.exchanges[number].backend().pool.load().pool.clone();
    let server = &choice.server;
    server.live.counters.of(cx.id).tls_failed.one();
    let target = server.target.clone();
    (cx.report)(Report::Failure { pool, server: server.id, target, failure: Failure::Tls(how) });
}

fn give_up_choice(all: &mut Http, cx: &mut Context, number: ExchangeKey, cost: Cost) -> Option<Choice> {
    all.exchange_timers.clear(number);
    let exchange = &mut all.exchanges[number];
    exchange.reach = Reach::Wanted;
    let choice = exchange.choice.take()?;
    exchange.attempt.failed(choice.server.id, choice.why, cost);
    note_freed(all, cx, number);
    Some(choice)
}

/// The permit of its server is given back, now or soon.
fn note_freed(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let pool = Arc::clone(&all.exchanges[number].backend().pool);
    pool_queue::note_freed(cx, &pool);
}

/// The server accepted: the PROXY header comes first, then TLS.
fn connected(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    end_pending(all, cx, slot);
    let server = &mut all.servers[slot];
    let Some(number) = server.exchange else { return };
    let exchange = &all.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    server.link.writable = true;
    if let Some(version) = exchange.backend().send_proxy {
        let session = &all.sessions[exchange.session];
        let ends = session.origin.ends(&session.link.socket);
        let (name, facts) = (session.name(), session.facts.as_deref());
        let header = preamble::introduce(version, &session.origin, ends, name, facts, cx.random.bits());
        server.link.send_raw(&header);
    }
    let Some(connector) = &server.connector else { return opened(all, cx, slot) };
    let name = connector.names.get(&choice.server.name).cloned();
    match name.and_then(|name| Tls::client(&connector.config, name).ok()) {
        Some(tls) => {
            server.stage = Stage::Handshaking;
            server.link.begin_tls(tls, &mut all.buffers);
        }
        None => {
            drop_server(all, cx, slot);
            fail_tls(all, cx, number, TlsFailure::Other);
        }
    }
}

/// The server can be spoken to.
fn opened(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let server = &mut all.servers[slot];
    let Some(number) = server.exchange else { return };
    server.stage = Stage::Open;
    all.exchange_timers.clear(number);
    let exchange = &mut all.exchanges[number];
    exchange.reach = Reach::Open(slot);
    let since = std::mem::replace(&mut exchange.since, cx.now);
    let exchange = &all.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    let entry = Arc::clone(&choice.server);
    let snapshot = exchange.backend().pool.load_full();
    let took = cx.now.since(since);
    entry.live.counters.of(cx.id).connections.one();
    connect::note_success(cx, &snapshot.pool, choice);
    if exchange.http.is_none() {
        chosen(all, cx, number, &snapshot, &entry, took);
    }
}

/// The client is with this server now.
pub(crate) fn chosen(
    all: &Http,
    cx: &Context,
    number: ExchangeKey,
    snapshot: &Snapshot,
    entry: &Entry,
    took: Duration,
) {
    let exchange = &all.exchanges[number];
    snapshot.remember(exchange.client, entry.id, cx.now);
    snapshot.observe(entry, took, cx.now);
    all.sessions[exchange.session].had(exchange.backend(), entry);
}

/// Something happened at a server's socket.
pub(crate) fn on_event(all: &mut Http, cx: &mut Context, slot: ServerLinkKey, event: &Event) {
    let Some(server) = all.servers.get_mut(slot) else { return };
    let ended = event.is_read_closed() || event.is_error();
    server.link.readable |= event.is_readable() || ended;
    server.link.hung_up |= ended;
    match (server.stage, server.exchange) {
        (Stage::Over, _) => {}
        (Stage::Lingering, _) => hear(all, cx, slot),
        (Stage::Connecting, Some(number)) => {
            let outcome = if ended {
                sockopt::socket_error(&server.link.socket).and_then(|error| error)
            } else {
                Ok(())
            };
            match outcome {
                Ok(()) if ended || event.is_writable() => connected(all, cx, slot),
                Ok(()) => return,
                Err(error) => {
                    drop_server(all, cx, slot);
                    fail(all, cx, number, error);
                }
            }
            tell_session(all, cx, number);
        }
        (Stage::Handshaking, Some(number)) => {
            server.link.writable |= event.is_writable() || event.is_error();
            shake_hands(all, cx, slot);
            tell_session(all, cx, number);
        }
        (_, Some(number)) => {
            server.link.writable |= event.is_writable() || event.is_error();
            tell_session(all, cx, number);
        }
        // Nobody asked it anything: it closes, or speaks out of turn. (Writable again it may become.)
        (_, None) if event.is_readable() || ended => {
            server.link.readable = true;
            on_idle_readable(all, cx, slot);
        }
        (_, None) => server.link.writable |= event.is_writable(),
    }
}

fn shake_hands(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    loop {
        let server = &mut all.servers[slot];
        let Some(number) = server.exchange else { return };
        server.link.flush(&mut all.buffers);
        if server.link.is_established() {
            return opened(all, cx, slot);
        }
        let received = server.link.receive(&mut all.buffers);
        if server.link.failure.is_some() || server.link.end.is_some() {
            let how = tls::failure_with_server(server.link.failure.as_ref());
            drop_server(all, cx, slot);
            return fail_tls(all, cx, number, how);
        }
        if received == Received::Nothing {
            return;
        }
    }
}

/// Something happened at the server: the session knows what to do.
fn tell_session(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    let Some(exchange) = all.exchanges.get(number) else { return };
    let session = exchange.session;
    if matches!(all.sessions[session].mode, Mode::Http2(_)) {
        http2::on_server(all, cx, session, number);
    } else {
        session::drive(all, cx, session);
    }
}

/// The deadline of an exchange came.
pub(crate) fn on_deadline(all: &mut Http, cx: &mut Context, number: ExchangeKey) {
    // What was handled just now may have given it another deadline.
    if all.exchange_timers.is_set(number) {
        return;
    }
    let Some(exchange) = all.exchanges.get(number) else { return };
    match exchange.reach {
        Reach::Queued => queued::on_deadline(all, cx, number),
        Reach::Connecting(slot) => {
            drop_server(all, cx, slot);
            fail(all, cx, number, Errno::TIMEDOUT);
            tell_session(all, cx, number);
        }
        Reach::Wanted => tell_session(all, cx, number),
        Reach::Open(_) if exchange.stands() => http2::on_stalled(all, cx, number),
        Reach::Open(_) if exchange.http.is_some() => crate::http::http1::on_answer_deadline(all, cx, number),
        _ => {}
    }
}

/// Closes a connection to a server.
pub(crate) fn close_server(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    take_from_idle(all, slot);
    drop_server(all, cx, slot);
}

fn end_pending(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let pending = all.servers[slot].pending.take();
    pending.into_iter().for_each(|pending| pending.end(cx));
}

fn drop_server(all: &mut Http, cx: &mut Context, slot: ServerLinkKey) {
    let number = all.servers.get(slot).and_then(|server| server.exchange);
    if let Some(session) = number.and_then(|number| Some(all.exchanges.get(number)?.session)) {
        descriptor::give_back(all, session, slot);
    }
    let Some(server) = all.servers.get_mut(slot) else { return };
    if server.stage != Stage::Over {
        server.stage = Stage::Over;
        server.exchange = None;
        all.server_timers.clear(slot);
        all.servers_over.push(slot);
        end_pending(all, cx, slot);
    }
}
