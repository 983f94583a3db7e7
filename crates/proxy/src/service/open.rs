//! What is open: connections, sessions and flows, told of on demand, and ended one by one. Nothing is kept for it but a
//! number each.

use crate::dns;
use crate::http::exchange::{Exchange, Reach};
use crate::http::session::{self, Mode, Session};
use crate::io::transport::Link;
use crate::service::admission::reset_at_close;
use crate::tcp;
use crate::tcp::connection::{Connection, Stage};
use crate::udp;
use crate::worker::Worker;
use evener_core::Time;
use evener_core::clients::Had;
use evener_core::snapshot::Entry;
use rustix::fd::{AsRawFd, RawFd};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A connection of a client, or its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What it is called as long as it lives; no other one has had it, or will (before 4 billion others of its worker).
    pub number: u64,
    /// Its service.
    pub service: Arc<str>,
    /// Its client; clients of a unix socket count as loopback.
    pub client: IpAddr,
    /// The client's port, where it is known.
    pub client_port: Option<u16>,
    /// The server that it has, or is about to have.
    pub server: Option<Had>,
    /// How far it is, in words.
    pub stage: &'static str,
    /// For how long nothing has moved.
    pub idle: Duration,
    /// The socket to the client; flows share one.
    pub client_socket: Option<RawFd>,
    /// The socket to the server.
    pub server_socket: Option<RawFd>,
    /// Bytes that wait for the client to take them, the kernel's not counted.
    pub to_client: usize,
    /// Bytes that wait for the server to take them, the kernel's not counted.
    pub to_server: usize,
}

/// What all workers have open.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// How many there are, listed or not.
    pub total: usize,
    /// Those that are listed, by their numbers.
    pub open: Vec<Open>,
}

/// What became of the wish to close one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Both sides are closed.
    Done,
    /// Nobody has that number.
    Nobody,
}

/// Gets the answer.
type Done = Box<dyn FnOnce(Listing) + Send>;

/// A question to all workers; when the last one has answered, or ended, the answer goes out.
pub(crate) struct Question {
    service: Option<Arc<str>>,
    most: usize,
    listing: Mutex<Listing>,
    done: Mutex<Option<Done>>,
}

impl Question {
    pub(crate) fn new(
        service: Option<Arc<str>>,
        most: usize,
        done: impl FnOnce(Listing) + Send + 'static,
    ) -> Self {
        let done: Done = Box::new(done);
        Self { service, most, listing: Mutex::default(), done: Mutex::new(Some(done)) }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut listing = std::mem::take(self.listing.get_mut().unwrap_or_else(PoisonError::into_inner));
        listing.open.sort_by_key(|open| open.number);
        if let Some(done) = self.done.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            done(listing);
        }
    }
}

impl std::fmt::Debug for Question {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Question").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Whoever wants to hear what became of a wish.
pub(crate) struct Hearer(Box<dyn FnOnce(Closed) + Send>);

impl Hearer {
    pub(crate) fn new(done: impl FnOnce(Closed) + Send + 'static) -> Self {
        Self(Box::new(done))
    }

    pub(crate) fn tell(self, closed: Closed) {
        (self.0)(closed);
    }
}

impl std::fmt::Debug for Hearer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Hearer").finish_non_exhaustive()
    }
}

/// Answers for this worker.
pub(crate) fn answer(worker: &Worker, question: &Question) {
    let is_meant = |service: &str| question.service.as_ref().is_none_or(|wanted| **wanted == *service);
    let mut own = Listing::default();
    let mut take = |open: &dyn Fn() -> Open| {
        own.total += 1;
        if own.open.len() < question.most {
            own.open.push(open());
        }
    };
    let connections = worker.connections.iter().map(|(_, connection)| connection);
    for one in connections.filter(|one| one.stage != Stage::Over && is_meant(&one.service.name)) {
        take(&|| of_connection(worker, one));
    }
    let sessions = worker.sessions.iter().map(|(_, session)| session);
    for one in sessions.filter(|one| !matches!(one.mode, Mode::Over) && is_meant(&one.service.name)) {
        take(&|| of_session(worker, one));
    }
    for (_, listener) in worker.datagrams.iter().filter(|(_, listener)| is_meant(&listener.service.name)) {
        for (key, flow) in listener.flows.iter() {
            take(&|| udp::open(worker, listener, key, flow));
        }
    }
    for open in dns::open(worker, is_meant) {
        take(&open);
    }
    let mut listing = question.listing.lock().unwrap_or_else(PoisonError::into_inner);
    listing.total += own.total;
    listing.open.append(&mut own.open);
}

/// The number of the one that a worker counts as its `serial`th.
pub(crate) fn number(worker: &Worker, serial: u32) -> u64 {
    u64::from(serial) * worker.workers as u64 + worker.id as u64
}

/// The worker that a number belongs to, and its own number for it.
pub(crate) fn find(number: u64, workers: usize) -> Option<(usize, u32)> {
    let workers = workers as u64;
    Some(((number % workers) as usize, u32::try_from(number / workers).ok()?))
}

/// Ends the one with this number.
pub(crate) fn close(worker: &mut Worker, serial: u32) -> Closed {
    let found = worker.connections.iter().find(|(_, one)| one.number == serial && one.stage != Stage::Over);
    if let Some((index, connection)) = found {
        connection.service.live.counters.of(worker.id).closed.one();
        // The server must not take it for the client's orderly end.
        connection.upstream.iter().for_each(|upstream| reset_at_close(&upstream.socket));
        tcp::close(worker, index);
        return Closed::Done;
    }
    let mut sessions = worker.sessions.iter();
    let found = sessions.find(|(_, one)| one.number == serial && !matches!(one.mode, Mode::Over));
    if let Some((index, session)) = found {
        session.service.live.counters.of(worker.id).closed.one();
        session::close(worker, index);
        return Closed::Done;
    }
    let is_closed = udp::close(worker, serial) || dns::close_numbered(worker, serial);
    if is_closed { Closed::Done } else { Closed::Nobody }
}

/// The server as others are told of it.
pub(crate) fn had(pool: &Arc<str>, server: &Entry) -> Had {
    Had { pool: Arc::clone(pool), server: Arc::clone(&server.name) }
}

fn of_connection(worker: &Worker, connection: &Connection) -> Open {
    let upstream = connection.upstream.as_ref();
    let pool = || connection.backend().pool.load().pool.clone();
    let waiting = |side| connection.ring.as_ref().map_or(0, |ring| ring.waiting(side));
    Open {
        number: number(worker, connection.number),
        service: connection.service.name.clone(),
        client: connection.address,
        client_port: peer_of(connection).and_then(|peer| port(peer, connection.address)),
        server: upstream.map(|upstream| had(&pool(), &upstream.choice.server)),
        stage: match connection.stage {
            Stage::Greeting => "greeting",
            Stage::Tarpit => "tarpit",
            Stage::Queued => "queued",
            Stage::Connecting => "connecting",
            Stage::Relaying => "relaying",
            Stage::Lingering => "lingering",
            Stage::Over => "over",
        },
        idle: idle(worker, connection.active_at),
        client_socket: Some(connection.client.as_raw_fd()),
        server_socket: upstream.map(|upstream| upstream.socket.as_raw_fd()),
        to_client: connection.from_server.held() + waiting(1),
        to_server: connection.from_client.held() + waiting(0),
    }
}

/// The client with its port: a PROXY header told, or the socket knows.
fn peer_of(connection: &Connection) -> Option<SocketAddr> {
    let told = connection.greeting.as_ref().map(|greeting| greeting.origin.client);
    let known = || rustix::net::getpeername(&connection.client).ok()?;
    told.or_else(|| known().and_then(|peer| SocketAddr::try_from(peer).ok()))
}

/// The port of a client with this address; unix sockets have none, and of others only the proxy's may be known.
fn port(peer: SocketAddr, client: IpAddr) -> Option<u16> {
    (peer.ip() == client && peer.port() > 0).then_some(peer.port())
}

fn of_session(worker: &Worker, session: &Session) -> Open {
    let number_of = match &session.mode {
        Mode::Relay(exchange) => Some(*exchange),
        Mode::Http1(http) => http.exchange(),
        Mode::Http2(http) => http.exchanges().first().copied(),
        Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Over => None,
    };
    let exchange = number_of.and_then(|number| worker.exchanges.get(number)).map(|exchange| &**exchange);
    let slot = exchange.and_then(|exchange| match exchange.reach {
        Reach::Open(slot) | Reach::Connecting(slot) => Some(slot),
        Reach::Wanted | Reach::Queued | Reach::Failed(_) => None,
    });
    let link = slot.and_then(|slot| worker.servers.get(slot)).map(|server| &server.link);
    let choice = exchange.and_then(|exchange| exchange.choice.as_ref().map(|choice| (exchange, choice)));
    Open {
        number: number(worker, session.number),
        service: session.service.name.clone(),
        client: session.origin.client.ip(),
        client_port: port(session.origin.client, session.origin.client.ip()),
        server: choice.map(|(exchange, choice)| had(&exchange.backend().pool.load().pool, &choice.server)),
        stage: session_stage(session, exchange),
        idle: idle(worker, session.active_at),
        client_socket: Some(session.link.socket.as_raw_fd()),
        server_socket: link.map(|link| link.socket.as_raw_fd()),
        to_client: session.link.pending(),
        to_server: link.map_or(0, Link::pending),
    }
}

fn session_stage(session: &Session, exchange: Option<&Exchange>) -> &'static str {
    match (&session.mode, exchange) {
        (Mode::Proxy, _) => "greeting",
        (Mode::Handshake(..), _) => "handshake",
        (Mode::Http1(_), None) => "http/1 idle",
        (Mode::Http1(_), Some(_)) => "http/1 request",
        (Mode::Http2(_), None) => "http/2 idle",
        (Mode::Http2(_), Some(_)) => "http/2 requests",
        (Mode::Relay(_), Some(Exchange { reach: Reach::Open(_), .. })) => "relaying",
        (Mode::Relay(_), _) => "connecting",
        (Mode::Tarpit, _) => "tarpit",
        (Mode::Lingering(_), _) => "lingering",
        (Mode::Over, _) => "over",
    }
}

fn idle(worker: &Worker, active_at: Time) -> Duration {
    worker.now.since(active_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn open(number: u64) -> Open {
        Open {
            number,
            service: "s".into(),
            client: [192, 0, 2, 1].into(),
            client_port: None,
            server: None,
            stage: "relaying",
            idle: Duration::ZERO,
            client_socket: None,
            server_socket: None,
            to_client: 0,
            to_server: 0,
        }
    }

    #[test]
    fn the_answer_comes_when_the_last_worker_answered_or_is_gone() {
        let (sender, answers) = channel();
        let question = Arc::new(Question::new(None, 10, move |listing| sender.send(listing).unwrap()));
        let of_worker = |numbers: &[u64]| {
            let question = Arc::clone(&question);
            let mut listing = question.listing.lock().unwrap();
            listing.total += numbers.len();
            listing.open.extend(numbers.iter().map(|&number| open(number)));
        };
        of_worker(&[1, 5]);
        of_worker(&[2, 4]);
        let gone = Arc::clone(&question);
        drop(question);
        assert!(answers.try_recv().is_err(), "one has not answered yet");
        drop(gone);
        let listing = answers.try_recv().unwrap();
        let numbers: Vec<u64> = listing.open.iter().map(|open| open.number).collect();
        assert_eq!((listing.total, numbers), (4, vec![1, 2, 4, 5]));
    }

    #[test]
    fn a_number_leads_back_to_its_worker() {
        assert_eq!(find(17, 4), Some((1, 4)));
        assert_eq!(find(u64::from(u32::MAX) * 4 + 3, 4), Some((3, u32::MAX)));
        assert_eq!(find(u64::MAX, 4), None, "nobody has ever had it");
    }
}
