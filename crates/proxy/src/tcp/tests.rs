//! Tests of the component without a worker: real sockets on loopback, and a fixture in place of the loop.

mod over_ring;

use super::*;
use crate::context::Reports;
use crate::context::registry::Readiness;
use crate::context::report::Report;
use crate::io::sys;
use crate::io::testing::readiness;
use crate::service::ending::{EndReason, Ending};
use crate::service::open::{Collector, ListFilter, ListRequest, Listing};
use crate::service::preamble;
use crate::service::testing::{TestPool, service_with};
use crate::service::{Refusal, Service, Settings};
use evener_core::Target;
use evener_core::acl::{Access, Acl};
use evener_core::spec::{PoolSpec, Protocol, QueueSpec};
use rustix::fd::{AsFd, OwnedFd};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Instant;

/// Maximum wait for the kernel.
const DEADLINE: Duration = Duration::from_secs(20);

/// A component with one listener and its servers.
struct Fixture {
    tcp: Tcp,
    cx: Context,
    reports: Reports,
    address: SocketAddr,
    servers: Vec<TcpListener>,
    pool: TestPool,
    service: Arc<Service>,
}

/// A socket at a free port of loopback.
fn bound() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn target(listener: &TcpListener) -> Target {
    Target::Ip(listener.local_addr().unwrap())
}

/// A target that refuses connections, and its socket, which is bound but does not listen.
fn refusing() -> (OwnedFd, Target) {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    (socket, Target::Ip(SocketAddr::try_from(address).unwrap()))
}

impl Fixture {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::with(|_| {}, change)
    }

    fn with(pool: impl FnOnce(&mut PoolSpec), change: impl FnOnce(&mut Settings)) -> Self {
        let servers = vec![bound()];
        let targets = vec![target(&servers[0])];
        Self::of(servers, &targets, pool, change)
    }

    fn of(
        servers: Vec<TcpListener>,
        targets: &[Target],
        pool: impl FnOnce(&mut PoolSpec),
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let pool = TestPool::with("pool", targets, pool);
        let service = service_with(Protocol::Tcp, &pool, change);
        let (mut cx, reports) = Context::for_tests();
        let (mut tcp, listener) = (Tcp::new(), bound());
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        tcp.listen(&mut cx, 1, Arc::clone(&service), listener.into(), None);
        Self { tcp, cx, reports, address, servers, pool, service }
    }

    /// Connects a client.
    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        client
    }

    /// Accepts the next connection to the first server.
    fn server_side(&mut self) -> TcpStream {
        self.servers[0].set_nonblocking(true).unwrap();
        let stream = self.until("the server to be connected", |fixture| fixture.servers[0].accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        stream
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        for key in self.tcp.listeners.keys(|_| true) {
            self.tcp.accept(&mut self.cx, key);
        }
        for key in self.tcp.connections.keys(|connection| connection.stage != Stage::Over) {
            let ready = |socket: &OwnedFd| readiness(socket);
            let connection = &self.tcp.connections[key];
            let in_ring = connection.ring.is_some() || connection.stage == Stage::Connecting;
            if in_ring && connection.uses_ring(&self.cx) {
                continue;
            }
            let of_client = ready(&connection.client);
            let of_server = connection.server_socket().map(ready);
            self.tcp.on_client_event(&mut self.cx, key, of_client);
            if let Some(of_server) = of_server {
                self.tcp.on_server_event(&mut self.cx, key, of_server);
            }
        }
        self.complete();
        self.tcp.on_deadlines(&mut self.cx);
        self.tcp.flush(&mut self.cx);
        let round = self.cx.queues.begin(self.cx.now);
        if let Some(mut round) = round {
            while let Some(waiter) = self.cx.queues.next(&mut round) {
                let crate::context::pool_queue::Waiter::Connection(key) = waiter else { unreachable!() };
                if !self.tcp.serve_queued(&mut self.cx, key) {
                    round.note_failed();
                }
            }
            self.cx.queues.end(round);
        }
        self.tcp.reap(&mut self.cx);
    }

    /// Runs turns until `condition` returns a value; `event` names the awaited event.
    #[track_caller]
    fn until<T>(&mut self, event: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            self.turn();
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(Instant::now() < until, "this did not happen in time: {event}");
        }
    }

    /// Advances the time.
    fn pass(&mut self, time: Duration) {
        // The timer wheel rounds up to its next tick.
        self.cx.now += time + Duration::from_millis(100);
        self.turn();
    }

    fn count(&self, name: &str) -> u64 {
        self.service.live.counters.total(name)
    }

    #[track_caller]
    fn expect(&mut self, stream: &mut TcpStream, bytes: &[u8]) {
        let mut got = Vec::new();
        self.until("bytes", |_| {
            let mut piece = [0; 4096];
            match stream.read(&mut piece) {
                Ok(length) => got.extend_from_slice(&piece[..length]),
                Err(error) => assert!(is_blocked(error.kind()), "{error}"),
            }
            (got.len() >= bytes.len()).then_some(())
        });
        assert_eq!(got, bytes);
    }

    /// Reads until the stream ends. Returns an error if the end was a reset.
    #[track_caller]
    fn end_of(&mut self, stream: &mut TcpStream) -> Result<(), ErrorKind> {
        self.until("the end", |_| match stream.read(&mut [0; 4096]) {
            Ok(0) => Some(Ok(())),
            Ok(_) => None,
            Err(error) if is_blocked(error.kind()) => None,
            Err(error) => Some(Err(error.kind())),
        })
    }

    fn listing(&self) -> Listing {
        let listing = Arc::new(Mutex::new(Listing::default()));
        let into = Arc::clone(&listing);
        let request =
            ListRequest::new(ListFilter::default(), 10, move |listing| *into.lock().unwrap() = listing);
        let mut collector = Collector::new(&request);
        self.tcp.list(&self.cx, &mut collector);
        collector.finish();
        drop(request);
        let listing = listing.lock().unwrap();
        listing.clone()
    }

    #[track_caller]
    fn check_empty(&mut self) {
        self.turn();
        assert_eq!(self.tcp.connections.len(), 0);
        assert_eq!(self.service.live.connections.active(), 0, "all slots are released");
    }
}

fn is_blocked(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn deny_all() -> Option<Arc<Acl>> {
    Some(Arc::new(Acl::new(&[], Access::Deny)))
}

#[test]
fn bytes_are_relayed_in_both_directions_and_counted() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    client.write_all(b"request").unwrap();
    fixture.expect(&mut server, b"request");
    server.write_all(b"response!").unwrap();
    fixture.expect(&mut client, b"response!");
    assert_eq!(
        (fixture.count("bytes_in"), fixture.count("bytes_out"), fixture.count("connections")),
        (7, 9, 1)
    );
}

#[test]
fn a_half_close_is_passed_on_and_the_other_direction_continues() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(fixture.end_of(&mut server), Ok(()));
    server.write_all(b"still here").unwrap();
    fixture.expect(&mut client, b"still here");
    drop(server);
    assert_eq!(fixture.end_of(&mut client), Ok(()));
    fixture.check_empty();
}

#[test]
fn a_reset_by_one_side_resets_the_other_side() {
    let mut fixture = Fixture::new(|_| {});
    let client = fixture.client();
    let mut server = fixture.server_side();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(fixture.end_of(&mut server), Err(ErrorKind::ConnectionReset));
    fixture.check_empty();
    let mut client = fixture.client();
    let server = fixture.server_side();
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(fixture.end_of(&mut client), Err(ErrorKind::ConnectionReset));
    fixture.check_empty();
}

#[test]
fn the_next_server_is_tried_after_a_refusal() {
    let (_held, refusing) = refusing();
    let servers = vec![bound()];
    let targets = [refusing, target(&servers[0])];
    let mut fixture = Fixture::of(servers, &targets, |_| {}, |_| {});
    for _ in 0..2 {
        let mut client = fixture.client();
        let mut server = fixture.server_side();
        client.write_all(b"x").unwrap();
        fixture.expect(&mut server, b"x");
    }
    assert!(fixture.reports.take().iter().any(|report| matches!(report, Report::Failure { .. })));
    assert_eq!(fixture.count("no_server"), 0);
}

#[test]
fn without_a_server_the_client_is_closed_and_a_report_is_sent() {
    let (_held, refusing) = refusing();
    let mut fixture = Fixture::of(Vec::new(), &[refusing], |_| {}, |_| {});
    fixture.cx.now = Time::ZERO + Duration::from_secs(10);
    let mut client = fixture.client();
    let _ = fixture.end_of(&mut client);
    assert_eq!(fixture.count("no_server"), 1);
    assert!(fixture.reports.take().iter().any(|report| matches!(report, Report::NoServer { .. })));
    fixture.check_empty();
}

#[test]
fn a_full_service_leaves_clients_in_the_queue_of_the_kernel() {
    let mut fixture = Fixture::new(|settings| settings.options.connections_max = 1);
    let first = fixture.client();
    let server = fixture.server_side();
    let mut second = fixture.client();
    fixture.until("accepting to pause", |fixture| (fixture.count("accept_pauses") == 1).then_some(()));
    assert_eq!(fixture.tcp.connections.len(), 1);
    drop((first, server));
    second.write_all(b"second").unwrap();
    fixture.until("the slot to be free", |fixture| (fixture.tcp.connections.is_empty()).then_some(()));
    fixture.tcp.resume_accepting(&mut fixture.cx, Paused::All);
    let mut server = fixture.server_side();
    fixture.expect(&mut server, b"second");
}

#[test]
fn a_paused_listener_resumes_after_a_deadline() {
    let mut fixture = Fixture::new(|settings| settings.options.connections_max = 1);
    let _first = fixture.client();
    let _server = fixture.server_side();
    let _second = fixture.client();
    fixture.until("accepting to pause", |fixture| (fixture.count("accept_pauses") == 1).then_some(()));
    let wait = fixture.tcp.wait(fixture.cx.now).expect("a listener is paused");
    assert!(wait <= Duration::from_millis(100) && !wait.is_zero(), "{wait:?}");
}

#[test]
fn refused_clients_are_closed_reset_or_delayed() {
    for (denied, expected) in [(Refusal::Drop, Ok(())), (Refusal::Reject, Err(ErrorKind::ConnectionReset))] {
        let mut fixture = Fixture::new(|settings| (settings.acl, settings.denied) = (deny_all(), denied));
        let mut client = fixture.client();
        assert_eq!(fixture.end_of(&mut client), expected, "{denied:?}");
        assert_eq!(fixture.count("denied"), 1);
        fixture.check_empty();
    }
    let tarpit = Refusal::Tarpit(Duration::from_secs(10));
    let mut fixture = Fixture::new(|settings| (settings.acl, settings.denied) = (deny_all(), tarpit));
    let mut client = fixture.client();
    fixture
        .until("the client to enter the tarpit", |fixture| (fixture.count("tarpitted") == 1).then_some(()));
    assert_eq!(fixture.service.live.connections.active(), 0, "the slot of a refused client is free");
    assert_eq!(fixture.listing().open[0].stage, "tarpit");
    fixture.pass(Duration::from_secs(10));
    assert_eq!(fixture.end_of(&mut client), Ok(()));
    fixture.check_empty();
}

#[test]
fn idle_connections_are_closed_and_busy_connections_are_not() {
    let idle = Duration::from_secs(10);
    let mut fixture = Fixture::new(|settings| settings.options.idle_timeout = Some(idle));
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    fixture.pass(idle / 2);
    client.write_all(b"x").unwrap();
    fixture.expect(&mut server, b"x");
    fixture.pass(idle / 2);
    assert_eq!(fixture.count("closed.idle_timeout"), 0);
    fixture.pass(idle);
    assert_eq!(fixture.count("closed.idle_timeout"), 1);
    assert_eq!(fixture.end_of(&mut client), Ok(()));
    fixture.check_empty();
}

#[test]
fn clients_wait_in_the_queue_of_a_pool_until_a_permit_is_free() {
    let queue = Some(QueueSpec { size: 1, timeout: Duration::from_secs(5) });
    let one_each = |spec: &mut PoolSpec| {
        spec.queue = queue;
        spec.servers[0].limits.hard = Some(1);
    };
    let mut fixture = Fixture::with(one_each, |_| {});
    let first = fixture.client();
    let server = fixture.server_side();
    let mut second = fixture.client();
    fixture.until("the second client to wait", |fixture| (fixture.count("queued") == 1).then_some(()));
    let mut third = fixture.client();
    assert!(fixture.end_of(&mut third).is_ok(), "the queue is full");
    assert_eq!(fixture.count("queue_failures.full"), 1);
    drop((first, server));
    second.write_all(b"second").unwrap();
    let mut server = fixture.server_side();
    fixture.expect(&mut server, b"second");
    let mut fourth = fixture.client();
    fixture.until("the fourth client to wait", |fixture| (fixture.count("queued") == 2).then_some(()));
    fixture.pass(Duration::from_secs(5));
    assert_eq!(fixture.end_of(&mut fourth), Ok(()));
    assert_eq!(fixture.count("queue_failures.timeout"), 1);
}

#[test]
fn connections_are_listed_and_closed_by_their_numbers() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    let listing = fixture.listing();
    assert_eq!((listing.total, listing.open.len()), (1, 1));
    let open = &listing.open[0];
    assert_eq!((open.stage, &*open.service), ("relaying", "service"));
    assert_eq!(open.client_port, Some(client.local_addr().unwrap().port()));
    assert!(open.server.is_some());
    assert!(!fixture.tcp.close_numbered(&mut fixture.cx, 7), "no connection has this number");
    assert!(fixture.tcp.close_numbered(&mut fixture.cx, open.number as u32));
    assert_eq!(fixture.end_of(&mut server), Err(ErrorKind::ConnectionReset));
    assert_eq!(fixture.end_of(&mut client), Ok(()));
    assert_eq!(fixture.count("closed.operator"), 1);
    assert_eq!(fixture.listing().total, 0);
}

#[test]
fn connections_are_reset_when_their_server_ends() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    let entry = Arc::clone(&fixture.pool.published().load().servers()[0]);
    let ending = Ending::new(&entry, EndReason::Down, |_| {});
    assert_eq!(fixture.tcp.end_server(&mut fixture.cx, &ending), 1);
    assert_eq!(fixture.end_of(&mut client), Err(ErrorKind::ConnectionReset));
    assert_eq!(fixture.end_of(&mut server), Err(ErrorKind::ConnectionReset));
    assert_eq!(fixture.count("closed.server_down"), 1);
    assert_eq!(fixture.tcp.end_server(&mut fixture.cx, &ending), 0);
    fixture.check_empty();
}

#[test]
fn all_connections_are_closed_at_the_drain_deadline() {
    let mut fixture = Fixture::new(|_| {});
    let mut clients: Vec<TcpStream> = (0..3).map(|_| fixture.client()).collect();
    fixture.until("all clients to be accepted", |fixture| (fixture.tcp.connections.len() == 3).then_some(()));
    fixture.tcp.cut_all(&mut fixture.cx);
    for client in &mut clients {
        let _ = fixture.end_of(client);
    }
    assert_eq!(fixture.count("closed.drain_timeout"), 3);
    fixture.check_empty();
}

#[test]
fn clients_of_other_components_are_handed_over() {
    let mut fixture = Fixture::new(|settings| settings.http = Some(Arc::default()));
    let client = fixture.client();
    let accepted = fixture.until("the client to be accepted", |fixture| fixture.tcp.take_accepted());
    assert_eq!(accepted.peer, client.local_addr().unwrap());
    assert_eq!(fixture.service.live.connections.active(), 1, "the accepted client has a slot");
    drop(accepted);
    fixture.check_empty();
}

#[test]
fn a_listener_that_closes_accepts_the_clients_that_are_connected() {
    let mut fixture = Fixture::new(|settings| settings.options.connections_max = 1);
    let clients: Vec<TcpStream> = (0..3).map(|_| fixture.client()).collect();
    fixture.tcp.unlisten(&mut fixture.cx, 2);
    assert_eq!(fixture.tcp.listeners.len(), 1, "a listener with another number stays open");
    fixture.tcp.unlisten(&mut fixture.cx, 1);
    assert_eq!(fixture.tcp.connections.len(), clients.len(), "all clients are accepted, beyond the limit");
    assert!(fixture.tcp.listeners.is_empty());
    assert!(TcpStream::connect(fixture.address).is_err());
}

#[test]
fn a_listener_can_be_assigned_to_another_service() {
    let mut fixture = Fixture::new(|_| {});
    let other = service_with(Protocol::Tcp, &fixture.pool, |_| {});
    fixture.tcp.assign(1, &other);
    let _client = fixture.client();
    let _server = fixture.server_side();
    assert_eq!((fixture.count("connections"), other.live.counters.total("connections")), (0, 1));
}

#[test]
fn a_client_without_a_preamble_is_closed_after_a_timeout() {
    let from_all =
        |settings: &mut Settings| settings.proxy_from = Some(Arc::new(Acl::new(&[], Access::Permit)));
    let mut fixture = Fixture::new(from_all);
    let mut client = fixture.client();
    fixture.until("the client to be accepted", |fixture| (fixture.tcp.connections.len() == 1).then_some(()));
    fixture.pass(preamble::PREAMBLE);
    assert_eq!(fixture.end_of(&mut client), Ok(()));
    let mut client = fixture.client();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = fixture.end_of(&mut client);
    fixture.check_empty();
}

#[test]
fn the_address_in_a_proxy_header_is_the_clients_address() {
    let denied = Acl::new(&[("198.51.100.0/24".parse().unwrap(), Access::Deny)], Access::Permit);
    let mut fixture = Fixture::new(|settings| {
        settings.proxy_from = Some(Arc::new(Acl::new(&[], Access::Permit)));
        settings.acl = Some(Arc::new(denied));
    });
    for (client, is_denied) in [("192.0.2.7", false), ("198.51.100.7", true)] {
        let mut stream = fixture.client();
        let header = format!("PROXY TCP4 {client} 203.0.113.1 5000 80\r\n");
        // The header arrives one byte at a time.
        header.bytes().for_each(|byte| {
            stream.write_all(&[byte]).unwrap();
            fixture.turn();
        });
        stream.write_all(b"payload").unwrap();
        if is_denied {
            let _ = fixture.end_of(&mut stream);
        } else {
            let mut server = fixture.server_side();
            fixture.expect(&mut server, b"payload");
            assert_eq!(fixture.listing().open[0].client.to_string(), client);
        }
    }
    assert_eq!(fixture.count("denied"), 1);
}

#[test]
fn the_server_gets_a_proxy_header_first() {
    let mut fixture = Fixture::new(|settings| {
        settings.backends[0].send_proxy = Some(evener_core::wire::proxy::Version::V1);
    });
    let mut client = fixture.client();
    client.write_all(b"payload").unwrap();
    let mut server = fixture.server_side();
    let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\npayload", from.port(), to.port());
    fixture.expect(&mut server, expected.as_bytes());
    assert_eq!(fixture.count("bytes_in"), 7, "the header does not count as bytes of the client");
}

#[test]
fn warm_connections_serve_clients_and_are_replaced() {
    let mut fixture = Fixture::new(|settings| settings.options.warm = 2);
    fixture.tcp.check_warm(fixture.cx.now);
    let mut waiting: Vec<TcpStream> = (0..2).map(|_| fixture.server_side()).collect();
    fixture.until("both warm connections to be established", |fixture| {
        fixture.cx.now += Duration::from_millis(60);
        (fixture.service.live.warm.active() == 2).then_some(())
    });
    let mut client = fixture.client();
    client.write_all(b"x").unwrap();
    fixture.expect(&mut waiting[0], b"x");
    assert_eq!(fixture.count("warm_used"), 1);
    let _replaced = fixture.server_side();
    // Shed connections are opened again later.
    assert!(fixture.tcp.shed(fixture.cx.now) >= 2);
    assert_eq!(fixture.end_of(&mut waiting[1]), Ok(()));
}

#[test]
fn events_and_deadlines_of_a_removed_connection_are_ignored() {
    let mut fixture = Fixture::new(|_| {});
    let client = fixture.client();
    let server = fixture.server_side();
    let key = fixture.tcp.connections.keys(|_| true)[0];
    drop((client, server));
    fixture.until("the connection to end", |fixture| fixture.tcp.connections.is_empty().then_some(()));
    let _client = fixture.client();
    let _server = fixture.server_side();
    let ready = Readiness { readable: true, writable: true, ended: true, error: true };
    fixture.tcp.on_client_event(&mut fixture.cx, key, ready);
    fixture.tcp.on_server_event(&mut fixture.cx, key, ready);
    fixture.tcp.resume(&mut fixture.cx, key);
    fixture.tcp.on_deadline(&mut fixture.cx, key);
    fixture.turn();
    assert_eq!(fixture.tcp.connections.len(), 1, "the connection that reuses the slot continues");
}

#[test]
fn listeners_of_a_crowded_service_keep_first_packets() {
    let mut fixture = Fixture::new(|_| {});
    let saved = |fixture: &mut Fixture| {
        let client = fixture.client();
        fixture.turn();
        let key = *fixture.tcp.connections.keys(|_| true).last().unwrap();
        let mut room = [0; 128];
        let saved = sys::saved_syn(fixture.tcp.connections[key].client.as_fd(), &mut room)
            .is_ok_and(|syn| !syn.is_empty());
        drop(client);
        saved
    };
    assert!(!saved(&mut fixture));
    let name = fixture.service.live.name.clone();
    fixture.cx.note_crowded(&name);
    fixture.turn();
    assert!(saved(&mut fixture));
}
