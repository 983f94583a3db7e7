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
pub(crate) use idle::{IdleKey, Kept, let_go, on_idle_deadline};
pub(crate) use queued::serve_queued;

use crate::context::descriptors::Unit;
use crate::context::pool_queue::Queued;
use crate::context::registry::Token;
use crate::context::report::Report;
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
use crate::worker::Worker;
use evener_core::attempt::{Attempt, Cost};
use evener_core::health::{Failure, TlsFailure};
use evener_core::snapshot::{Choice, Entry, NoServer, Request, ServerLive, Snapshot};
use evener_core::spec::AbortOnClose;
use evener_core::{ServerId, Target, Time};
use idle::{find_idle, find_kept, key_of, on_idle_readable, take_from_idle, use_idle};
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// An exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) session: usize,
    pub(crate) settings: Arc<Settings>,
    pub(crate) backend: usize,
    /// The client by which a server is chosen.
    pub(crate) client: IpAddr,
    /// The server that the client's cookie names.
    pub(crate) token: Option<u64>,
    /// The server that the client's connection has.
    pub(crate) stay: Option<ServerId>,
    /// A connection that is for this client only, to be used if it leads to the chosen server.
    pub(crate) kept: Option<Kept>,
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
    Connecting(usize),
    /// It can be spoken to there.
    Open(usize),
    /// Nobody could be had, and why.
    Failed(NoServer),
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct ServerLink {
    pub(crate) link: Link,
    pub(crate) key: IdleKey,
    target: Target,
    live: Arc<ServerLive>,
    connector: Option<Arc<TlsConnector>>,
    pub(crate) exchange: Option<usize>,
    /// Its connect is under way, and counted.
    pending: Option<Pending>,
    /// Tells it from those that had or will have its slot.
    serial: u64,
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
pub(crate) fn begin_relay(worker: &mut Worker, index: usize, backend: usize) {
    let session = &mut worker.http.sessions[index];
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
        since: worker.cx.now,
        http: None,
    };
    let number = worker.http.exchanges.insert(Box::new(exchange));
    session.mode = Mode::Relay(number);
    // What the client said already is in its input.
    session::drive(worker, index);
}

/// Makes sure that the server can be spoken to, as far as it goes without waiting.
pub(crate) fn reach(worker: &mut Worker, number: usize) -> Reach {
    for _ in 0..connect::TRIES_MAX {
        if worker.http.exchanges[number].reach != Reach::Wanted {
            return worker.http.exchanges[number].reach;
        }
        let exchange = &mut worker.http.exchanges[number];
        let request = Request {
            client: exchange.client,
            now: worker.cx.now,
            token: exchange.token,
            stay: exchange.stay,
        };
        let snapshot = exchange.settings.backends[exchange.backend].pool.load_full();
        let limits = exchange.settings.options.attempt_limits();
        let behind = exchange.attempt.tried() == 0 && pool_queue::is_behind(&snapshot, &request);
        let picked = if behind {
            Err(NoServer::Full)
        } else {
            exchange.attempt.next(&snapshot, &request, &limits, &mut worker.cx.random)
        };
        match picked {
            Ok(choice) => take_server(worker, number, choice),
            Err(NoServer::Full) if queued::enter_queue(worker, number, &snapshot) => {}
            Err(reason) => refuse(worker, number, reason),
        }
    }
    if worker.http.exchanges[number].reach == Reach::Wanted {
        // So many failed at once that others have their turn now.
        worker.http.exchange_timers.set(number, worker.cx.now);
    }
    worker.http.exchanges[number].reach
}

fn take_server(worker: &mut Worker, number: usize, choice: Choice) {
    let exchange = &mut worker.http.exchanges[number];
    let key = key_of(exchange.backend(), choice.server.id);
    let reuse = exchange.reuse();
    exchange.choice = Some(choice);
    match find_kept(worker, number, key).or_else(|| find_idle(worker, number, key, reuse)) {
        Some(slot) => use_idle(worker, number, slot),
        None => connect(worker, number, key),
    }
}

fn refuse(worker: &mut Worker, number: usize, reason: NoServer) {
    let exchange = &mut worker.http.exchanges[number];
    exchange.reach = Reach::Failed(reason);
    let service = Arc::clone(&worker.http.sessions[exchange.session].service);
    crate::service::note_no_server(&worker.cx, &service, reason);
}

/// Begins a connect to the chosen server.
fn connect(worker: &mut Worker, number: usize, key: IdleKey) {
    let Some(unit) = descriptor::take(worker, number) else { return };
    let exchange = &worker.http.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    let (target, live) = (choice.server.target.clone(), Arc::clone(&choice.server.live));
    let session = &worker.http.sessions[exchange.session];
    let client = session.origin.client.ip();
    let begun = connect::open_socket(&target, &exchange.settings.options, client).and_then(|socket| {
        let ours = (&session.link.socket, client);
        limit_connection(&mut worker.cx, &session.service, ours, (&socket, &target))?;
        match listener::connect(&socket, &target) {
            Ok(()) => Ok((socket, Stage::Open)),
            Err(Errno::INPROGRESS) => Ok((socket, Stage::Connecting)),
            Err(error) => Err(error),
        }
    });
    let (socket, stage) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            descriptor::keep(worker, number, unit);
            return fail(worker, number, error);
        }
    };
    let counts = stage == Stage::Connecting && exchange.settings.options.pending_max.is_some();
    let pending = counts.then(|| Pending::begin(&session.service));
    let connector = exchange.backend().tls.clone();
    let options = &exchange.settings.options;
    let limits = options.attempt_limits();
    let deadline = exchange.attempt.deadline(worker.cx.now, options.connect_timeout, &limits);
    let mut link = Link::new(socket);
    link.writable = stage == Stage::Open;
    let server = ServerLink {
        link,
        key,
        target,
        live,
        connector,
        exchange: Some(number),
        pending,
        serial: worker.http.next_serial,
        stage: Stage::Connecting,
        unit: Some(unit),
        idle_since: worker.cx.now,
        reused: false,
        personal: exchange.is_personal(),
    };
    worker.http.next_serial += 1;
    let slot = worker.http.servers.insert(Box::new(server));
    let exchange = &mut worker.http.exchanges[number];
    (exchange.reach, exchange.since) = (Reach::Connecting(slot), worker.cx.now);
    if let Err(error) =
        worker.cx.registry.register(&worker.http.servers[slot].link.socket, Token::Upstream(slot))
    {
        drop_server(worker, slot);
        return fail(worker, number, error);
    }
    worker.http.exchange_timers.set(number, deadline);
    if stage == Stage::Open {
        connected(worker, slot);
    }
}

/// The chosen server cannot be reached: it is passed over, and another one wanted.
fn fail(worker: &mut Worker, number: usize, error: Errno) {
    let Some(choice) = give_up_choice(worker, number, connect::cost(error)) else { return };
    let pool = worker.http.exchanges[number].backend().pool.load().pool.clone();
    connect::note_failure(&worker.cx, pool, &choice.server, error);
}

fn fail_tls(worker: &mut Worker, number: usize, how: TlsFailure) {
    let Some(choice) = give_up_choice(worker, number, Cost::Slow) else { return };
    let pool = worker.http.exchanges[number].backend().pool.load().pool.clone();
    let server = &choice.server;
    server.live.counters.of(worker.cx.id).tls_failed.one();
    let target = server.target.clone();
    (worker.cx.report)(Report::Failure { pool, server: server.id, target, failure: Failure::Tls(how) });
}

fn give_up_choice(worker: &mut Worker, number: usize, cost: Cost) -> Option<Choice> {
    worker.http.exchange_timers.clear(number);
    let exchange = &mut worker.http.exchanges[number];
    exchange.reach = Reach::Wanted;
    let choice = exchange.choice.take()?;
    exchange.attempt.failed(choice.server.id, choice.why, cost);
    note_freed(worker, number);
    Some(choice)
}

/// The permit of its server is given back, now or soon.
fn note_freed(worker: &mut Worker, number: usize) {
    let pool = Arc::clone(&worker.http.exchanges[number].backend().pool);
    pool_queue::note_freed(&mut worker.cx, &pool);
}

/// The server accepted: the PROXY header comes first, then TLS.
fn connected(worker: &mut Worker, slot: usize) {
    end_pending(worker, slot);
    let server = &mut worker.http.servers[slot];
    let Some(number) = server.exchange else { return };
    let exchange = &worker.http.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    server.link.writable = true;
    if let Some(version) = exchange.backend().send_proxy {
        let session = &worker.http.sessions[exchange.session];
        let ends = session.origin.ends(&session.link.socket);
        let (name, facts) = (session.name(), session.facts.as_deref());
        let header =
            preamble::introduce(version, &session.origin, ends, name, facts, worker.cx.random.bits());
        server.link.send_raw(&header);
    }
    let Some(connector) = &server.connector else { return opened(worker, slot) };
    let name = connector.names.get(&choice.server.name).cloned();
    match name.and_then(|name| Tls::client(&connector.config, name).ok()) {
        Some(tls) => {
            server.stage = Stage::Handshaking;
            server.link.begin_tls(tls, &mut worker.http.buffers);
        }
        None => {
            drop_server(worker, slot);
            fail_tls(worker, number, TlsFailure::Other);
        }
    }
}

/// The server can be spoken to.
fn opened(worker: &mut Worker, slot: usize) {
    let server = &mut worker.http.servers[slot];
    let Some(number) = server.exchange else { return };
    server.stage = Stage::Open;
    worker.http.exchange_timers.clear(number);
    let exchange = &mut worker.http.exchanges[number];
    exchange.reach = Reach::Open(slot);
    let since = std::mem::replace(&mut exchange.since, worker.cx.now);
    let exchange = &worker.http.exchanges[number];
    let Some(choice) = &exchange.choice else { return };
    let entry = Arc::clone(&choice.server);
    let snapshot = exchange.backend().pool.load_full();
    let took = worker.cx.now.since(since);
    entry.live.counters.of(worker.cx.id).connections.one();
    connect::note_success(&worker.cx, &snapshot.pool, choice);
    if exchange.http.is_none() {
        chosen(worker, number, &snapshot, &entry, took);
    }
}

/// The client is with this server now.
pub(crate) fn chosen(worker: &Worker, number: usize, snapshot: &Snapshot, entry: &Entry, took: Duration) {
    let exchange = &worker.http.exchanges[number];
    snapshot.remember(exchange.client, entry.id, worker.cx.now);
    snapshot.observe(entry, took, worker.cx.now);
    worker.http.sessions[exchange.session].had(exchange.backend(), entry);
}

/// Something happened at a server's socket.
pub(crate) fn on_event(worker: &mut Worker, slot: usize, event: &Event) {
    let Some(server) = worker.http.servers.get_mut(slot) else { return };
    let ended = event.is_read_closed() || event.is_error();
    server.link.readable |= event.is_readable() || ended;
    server.link.hung_up |= ended;
    match (server.stage, server.exchange) {
        (Stage::Over, _) => {}
        (Stage::Lingering, _) => hear(worker, slot),
        (Stage::Connecting, Some(number)) => {
            let outcome = if ended {
                sockopt::socket_error(&server.link.socket).and_then(|error| error)
            } else {
                Ok(())
            };
            match outcome {
                Ok(()) if ended || event.is_writable() => connected(worker, slot),
                Ok(()) => return,
                Err(error) => {
                    drop_server(worker, slot);
                    fail(worker, number, error);
                }
            }
            tell_session(worker, number);
        }
        (Stage::Handshaking, Some(number)) => {
            server.link.writable |= event.is_writable() || event.is_error();
            shake_hands(worker, slot);
            tell_session(worker, number);
        }
        (_, Some(number)) => {
            server.link.writable |= event.is_writable() || event.is_error();
            tell_session(worker, number);
        }
        // Nobody asked it anything: it closes, or speaks out of turn. (Writable again it may become.)
        (_, None) if event.is_readable() || ended => {
            server.link.readable = true;
            on_idle_readable(worker, slot);
        }
        (_, None) => server.link.writable |= event.is_writable(),
    }
}

fn shake_hands(worker: &mut Worker, slot: usize) {
    loop {
        let server = &mut worker.http.servers[slot];
        let Some(number) = server.exchange else { return };
        server.link.flush(&mut worker.http.buffers);
        if server.link.is_established() {
            return opened(worker, slot);
        }
        let received = server.link.receive(&mut worker.http.buffers);
        if server.link.failure.is_some() || server.link.end.is_some() {
            let how = tls::failure_with_server(server.link.failure.as_ref());
            drop_server(worker, slot);
            return fail_tls(worker, number, how);
        }
        if received == Received::Nothing {
            return;
        }
    }
}

/// Something happened at the server: the session knows what to do.
fn tell_session(worker: &mut Worker, number: usize) {
    let Some(exchange) = worker.http.exchanges.get(number) else { return };
    let session = exchange.session;
    if matches!(worker.http.sessions[session].mode, Mode::Http2(_)) {
        http2::on_server(worker, session, number);
    } else {
        session::drive(worker, session);
    }
}

/// The deadline of an exchange came.
pub(crate) fn on_deadline(worker: &mut Worker, number: usize) {
    // One that ended meanwhile may have given its number to another.
    if worker.http.exchange_timers.is_set(number) {
        return;
    }
    let Some(exchange) = worker.http.exchanges.get(number) else { return };
    match exchange.reach {
        Reach::Queued => queued::on_deadline(worker, number),
        Reach::Connecting(slot) => {
            drop_server(worker, slot);
            fail(worker, number, Errno::TIMEDOUT);
            tell_session(worker, number);
        }
        Reach::Wanted => tell_session(worker, number),
        Reach::Open(_) if exchange.stands() => http2::on_stalled(worker, number),
        Reach::Open(_) if exchange.http.is_some() => crate::http::http1::on_answer_deadline(worker, number),
        _ => {}
    }
}

/// Closes a connection to a server.
pub(crate) fn close_server(worker: &mut Worker, slot: usize) {
    take_from_idle(worker, slot);
    drop_server(worker, slot);
}

fn end_pending(worker: &mut Worker, slot: usize) {
    let pending = worker.http.servers[slot].pending.take();
    worker.end_pending(pending);
}

fn drop_server(worker: &mut Worker, slot: usize) {
    let number = worker.http.servers.get(slot).and_then(|server| server.exchange);
    if let Some(session) = number.and_then(|number| Some(worker.http.exchanges.get(number)?.session)) {
        descriptor::give_back(worker, session, slot);
    }
    let Some(server) = worker.http.servers.get_mut(slot) else { return };
    if server.stage != Stage::Over {
        server.stage = Stage::Over;
        server.exchange = None;
        worker.http.server_timers.clear(slot);
        worker.http.servers_over.push(slot);
        end_pending(worker, slot);
    }
}
