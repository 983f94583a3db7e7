//! The component without a worker: real sockets on loopback, and each test takes the place of the loop.

mod listeners;

use super::*;
use crate::context::Reports;
use crate::context::ready::Ready;
use crate::context::report::Report;
use crate::io::sys;
use crate::service::ending::{EndReason, Ending};
use crate::service::open::{Collector, ListFilter, ListRequest, Listing};
use crate::service::testing::{TestPool, service_with};
use crate::service::{Backend, Refusal};
use evener_core::Target;
use evener_core::acl::{Access, Acl};
use evener_core::clients::Clients;
use evener_core::health::Failure;
use evener_core::reason::Reason;
use evener_core::snapshot::NoServer;
use evener_core::spec::{AdminState, Policy, Protocol, RetryBudgetSpec};
use evener_core::wire::HOPS_MAX;
use evener_core::wire::proxy::{self, Ends, Extras, Transport, Version};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

/// The longest wait for the kernel.
const DEADLINE: Duration = Duration::from_secs(20);
const ID: u64 = 7;

/// A component with one listener, and its servers.
struct Fixture {
    udp: Udp,
    cx: Context,
    reports: Reports,
    address: SocketAddr,
    servers: Vec<UdpSocket>,
    dead: Option<UdpSocket>,
    pool: TestPool,
    service: Arc<Service>,
}

/// A socket at a free port of loopback.
fn bound() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn target(socket: &UdpSocket) -> Target {
    Target::Ip(socket.local_addr().unwrap())
}

fn permit(prefix: &str, otherwise: Access) -> Option<Arc<Acl>> {
    Some(Arc::new(Acl::new(&[(prefix.parse().unwrap(), otherwise.inverse())], otherwise)))
}

fn wait_readable(socket: impl AsFd) {
    let timeout = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "there is something to read");
}

/// Receives one datagram, and returns it with its sender.
fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, sender) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    buffer.truncate(length);
    (buffer, sender)
}

fn text(socket: &UdpSocket) -> String {
    String::from_utf8(receive(socket).0).unwrap()
}

/// Asserts that no datagram waits. Datagrams sent over loopback arrive immediately.
fn assert_quiet(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let received = socket.recv_from(&mut [0; 16]);
    socket.set_nonblocking(false).unwrap();
    assert_eq!(received.map_err(|error| error.kind()).unwrap_err(), std::io::ErrorKind::WouldBlock);
}

impl Fixture {
    fn new(servers: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let servers: Vec<UdpSocket> = (0..servers).map(|_| bound()).collect();
        let pool = TestPool::new("pool", &servers.iter().map(target).collect::<Vec<_>>());
        Self::of(servers, pool, change)
    }

    fn of(servers: Vec<UdpSocket>, pool: TestPool, change: impl FnOnce(&mut Settings)) -> Self {
        let service = service_with(Protocol::Udp, &pool, change);
        let (mut cx, reports) = Context::for_tests();
        let (mut udp, listener) = (Udp::new(), bound());
        cx.now = Time::ZERO + Duration::from_secs(1000);
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        udp.listen(&mut cx, ID, Arc::clone(&service), (listener.into(), Local::Fixed), Vec::new());
        Self { udp, cx, reports, address, servers, dead: None, pool, service }
    }

    fn client(&self) -> UdpSocket {
        let client = bound();
        client.connect(self.address).unwrap();
        client
    }

    fn listener(&self) -> DatagramListenerKey {
        self.udp.find(ID).expect("the listener exists")
    }

    fn count(&self, counter: &str) -> u64 {
        self.service.live.counters.total(counter)
    }

    fn flows(&self) -> u32 {
        self.service.live.flows.load(Ordering::Relaxed)
    }

    fn pass(&mut self, time: Duration) {
        self.cx.now += time;
    }

    /// Takes the place of the loop for a listener that became readable.
    fn on_datagrams(&mut self) {
        let at = self.listener();
        wait_readable(self.udp.listeners[at].socket.as_fd());
        self.udp.on_listener_event(&mut self.cx, at);
        self.udp.reap();
    }

    /// Sends datagrams to the listener, which forwards them together.
    fn send(&mut self, client: &UdpSocket, datagrams: &[&str]) {
        for datagram in datagrams {
            client.send(datagram.as_bytes()).unwrap();
        }
        self.on_datagrams();
    }

    /// Sends a datagram to the first server, and returns its source.
    fn begin(&mut self, client: &UdpSocket) -> SocketAddr {
        self.send(client, &["begin"]);
        let (bytes, flow) = receive(&self.servers[0]);
        assert_eq!(bytes, b"begin");
        flow
    }

    fn sockets(&self) -> Vec<FlowSocketKey> {
        self.udp.sockets.keys(|_| true)
    }

    /// Forwards the responses of all servers, and handles their refusals.
    fn on_responses(&mut self) {
        for socket in self.sockets() {
            self.udp.on_flow_event(&mut self.cx, socket);
        }
        self.udp.flush(&self.cx);
        self.udp.reap();
    }

    fn respond(&mut self, server: usize, flow: SocketAddr, bytes: &str) {
        self.servers[server].send_to(bytes.as_bytes(), flow).unwrap();
        self.on_responses();
    }

    /// Checks that every flow of the table has one socket, and that each is counted once.
    fn check_invariants(&self) {
        let mut flows = 0;
        for (at, listener) in self.udp.listeners.iter() {
            listener.flows.check_invariants();
            for (key, flow) in listener.flows.iter() {
                let socket = &self.udp.sockets[socket_of(flow)];
                assert_eq!((socket.listener, socket.key), (at, *key));
                flows += 1;
            }
        }
        assert_eq!((flows, flows as usize), (self.flows(), self.udp.sockets.len()));
    }
}

#[test]
fn a_response_returns_to_the_client_from_the_address_that_the_client_sent_to() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    let flow = fixture.begin(&client);
    assert_ne!(
        flow,
        client.local_addr().unwrap(),
        "the server receives datagrams from the socket of the flow"
    );
    fixture.respond(0, flow, "response");
    assert_eq!(receive(&client), (b"response".to_vec(), fixture.address));
    let counted = ["flows", "datagrams_in", "datagrams_out", "bytes_in", "bytes_out"]
        .map(|counter| fixture.count(counter));
    assert_eq!(counted, [1, 1, 1, 5, 8]);
    fixture.check_invariants();
}

#[test]
fn datagrams_of_a_client_share_a_flow_and_keep_their_order() {
    let mut fixture = Fixture::new(2, |_| {});
    let (first, second) = (fixture.client(), fixture.client());
    for number in 0..3 {
        first.send(format!("first {number}").as_bytes()).unwrap();
        second.send(format!("second {number}").as_bytes()).unwrap();
    }
    fixture.on_datagrams();
    // Round robin gives each client a server.
    for (server, name) in fixture.servers.iter().zip(["first", "second"]) {
        let got: Vec<String> = (0..3).map(|_| text(server)).collect();
        assert_eq!(got, [0, 1, 2].map(|number| format!("{name} {number}")));
    }
    assert_eq!((fixture.count("flows"), fixture.flows()), (2, 2));
    fixture.check_invariants();
}

#[test]
fn a_full_table_evicts_the_least_recently_used_flow() {
    let mut fixture = Fixture::new(1, |settings| settings.options.flows_max = 2);
    let clients = [fixture.client(), fixture.client(), fixture.client()];
    for client in &clients {
        fixture.pass(Duration::from_millis(1));
        fixture.begin(client);
        fixture.check_invariants();
    }
    assert_eq!((fixture.count("flows_ended.evicted"), fixture.flows()), (1, 2));
    let left: Vec<u16> =
        fixture.udp.listeners[fixture.listener()].flows.iter().map(|(key, _)| key.client.port()).collect();
    assert!(!left.contains(&clients[0].local_addr().unwrap().port()), "the oldest flow ended");
}

#[test]
fn a_flow_that_is_evicted_within_its_batch_still_sends_its_datagram() {
    let mut fixture = Fixture::new(1, |settings| settings.options.flows_max = 1);
    let (first, second) = (fixture.client(), fixture.client());
    first.send(b"first").unwrap();
    fixture.send(&second, &["second"]);
    let mut got = [text(&fixture.servers[0]), text(&fixture.servers[0])];
    got.sort();
    assert_eq!(got, ["first", "second"]);
    assert_eq!((fixture.count("flows_ended.evicted"), fixture.flows()), (1, 1));
    fixture.check_invariants();
}

#[test]
fn events_of_closed_sockets_and_listeners_are_ignored() {
    let mut fixture = Fixture::new(1, |settings| settings.options.flows_max = 1);
    let (first, second) = (fixture.client(), fixture.client());
    fixture.begin(&first);
    let stale = fixture.sockets()[0];
    fixture.begin(&second);
    let current = fixture.sockets()[0];
    assert_ne!(stale, current);
    fixture.udp.on_flow_event(&mut fixture.cx, stale);
    assert_eq!((fixture.sockets(), fixture.flows()), (vec![current], 1));
    let at = fixture.listener();
    fixture.udp.release(&mut fixture.cx, ID).expect("the listener exists");
    fixture.udp.on_listener_event(&mut fixture.cx, at);
    assert!(fixture.cx.ready.is_empty() && fixture.udp.release(&mut fixture.cx, ID).is_none());
}

#[test]
fn other_sockets_are_served_after_the_maximum_number_of_batches() {
    let mut fixture = Fixture::new(1, |_| {});
    let at = fixture.listener();
    crate::io::listener::grow_buffers(&fixture.udp.listeners[at].socket);
    let client = fixture.client();
    let most = crate::io::batch::BATCH * BATCHES_MAX;
    for _ in 0..=most {
        client.send(b"").unwrap();
    }
    fixture.on_datagrams();
    assert_eq!(fixture.count("datagrams_in"), most as u64);
    assert!(matches!(fixture.cx.ready.pop(), Some(Ready::Datagrams(next)) if next == at));
    fixture.on_datagrams();
    assert_eq!((fixture.count("datagrams_in"), fixture.cx.ready.is_empty()), (most as u64 + 1, true));
}

#[test]
fn flows_end_when_they_are_unused_by_both_sides() {
    let mut fixture =
        Fixture::new(1, |settings| settings.options.idle_timeout = Some(Duration::from_secs(10)));
    assert_eq!(fixture.udp.next_sweep(), None);
    let began = fixture.cx.now;
    let (client, other) = (fixture.client(), fixture.client());
    let flow = fixture.begin(&client);
    fixture.begin(&other);
    assert_eq!(fixture.udp.next_sweep(), Some(began + Duration::from_secs(10)));
    fixture.pass(Duration::from_secs(6));
    fixture.respond(0, flow, "late");
    fixture.pass(Duration::from_secs(4));
    fixture.udp.sweep(&mut fixture.cx);
    // The server still sends in one of the flows, which counts as used at the time of the sweep.
    assert_eq!((fixture.flows(), fixture.count("flows_ended.expired")), (1, 1));
    assert_eq!(fixture.udp.next_sweep(), Some(began + Duration::from_secs(20)));
    fixture.pass(Duration::from_secs(10));
    fixture.udp.sweep(&mut fixture.cx);
    fixture.udp.reap();
    assert_eq!((fixture.flows(), fixture.count("flows_ended.expired")), (0, 2));
    fixture.check_invariants();
}

#[test]
fn a_client_that_the_access_list_refuses_is_dropped() {
    let mut fixture = Fixture::new(1, |settings| settings.acl = permit("192.0.2.0/24", Access::Deny));
    let client = fixture.client();
    fixture.send(&client, &["a", "b"]);
    assert_quiet(&fixture.servers[0]);
    let counted = ["denied", "drops.denied", "datagrams_in", "flows"].map(|counter| fixture.count(counter));
    assert_eq!(counted, [2, 2, 2, 0]);
}

#[test]
fn refused_clients_are_routed_to_the_denied_pool_while_they_are_refused() {
    let abuse = bound();
    let abuse_pool = TestPool::new("abuse", &[target(&abuse)]);
    let mut fixture = Fixture::new(1, |settings| {
        settings.acl = permit("192.0.2.0/24", Access::Deny);
        settings.denied = Refusal::Backend(1);
        settings.backends.push(Backend { pool: abuse_pool.published(), tls: None, send_proxy: None });
    });
    let client = fixture.client();
    fixture.send(&client, &["refused"]);
    assert_eq!((text(&abuse).as_str(), fixture.count("denied")), ("refused", 1));
    assert_quiet(&fixture.servers[0]);

    // The same settings again: the flow stays.
    fixture.udp.refresh(&mut fixture.cx, "service", PoolChange::Same);
    assert_eq!(fixture.flows(), 1);
    // Another pool for refused clients: the flow ends.
    fixture.udp.refresh(&mut fixture.cx, "service", PoolChange::AnotherOfRefused);
    assert_eq!(fixture.flows(), 0);

    fixture.send(&client, &["again"]);
    assert_eq!(text(&abuse), "again");
    let mut settings =
        Settings::new(fixture.service.settings.load().options.clone(), fixture.pool.published());
    settings.acl = permit("127.0.0.0/8", Access::Deny);
    fixture.service.settings.store(Arc::new(settings));
    fixture.udp.refresh(&mut fixture.cx, "service", PoolChange::Same);
    assert_eq!(fixture.flows(), 0, "the client is permitted now");
    fixture.send(&client, &["permitted"]);
    assert_eq!(text(&fixture.servers[0]), "permitted");
    fixture.check_invariants();
}

#[test]
fn without_a_server_datagrams_are_counted_and_reported_once_a_second() {
    let mut fixture = Fixture::new(0, |_| {});
    let client = fixture.client();
    let is_empty = |report: &Report| matches!(report, Report::NoServer { reason: NoServer::Empty, .. });
    for (datagrams, reported) in [(&["a", "b"][..], 1), (&["c"], 0)] {
        fixture.send(&client, datagrams);
        let reports = fixture.reports.take();
        let unserved = |report: &&Report| matches!(report, Report::Unserved { unserved, .. } if unserved.cause.reason() == Reason::PoolEmpty);
        assert_eq!(reports.iter().filter(|report| is_empty(report)).count(), reported);
        assert_eq!(reports.iter().filter(unserved).count(), reported, "the reason of the dropped datagrams");
        assert_eq!(reports.len(), 2 * reported);
    }
    fixture.pass(Duration::from_secs(1));
    fixture.send(&client, &["d"]);
    assert_eq!(fixture.reports.take().len(), 2);
    assert_eq!((fixture.count("no_server"), fixture.count("drops.no_server"), fixture.flows()), (4, 4, 0));
}

#[test]
fn each_flow_adds_one_try_to_the_retry_budget() {
    for is_alive in [false, true] {
        let (server, unbound) = (bound(), Target::Unix("@evener-unbound".into()));
        let targets = [unbound.clone(), if is_alive { target(&server) } else { unbound }];
        let pool = TestPool::with("pool", &targets, |spec| {
            spec.policy = Policy::First;
            spec.retry_budget = Some(RetryBudgetSpec { share_percent: 101, min_per_second: 0 });
        });
        let mut fixture = Fixture::of(vec![server], pool, |_| {});
        let budget = fixture.pool.published().load().retry_budget.clone();
        for tries in 1..=3 {
            // The budget does not permit a retry of the first flow.
            fixture.send(&fixture.client(), &["a"]);
            let usage = budget.usage(fixture.cx.now).unwrap();
            assert_eq!(usage.retries_max, tries, "one retry for each first try");
        }
        assert_eq!(fixture.flows(), if is_alive { 2 } else { 0 });
    }
}

#[test]
fn flows_stay_at_a_draining_server_and_leave_a_server_in_maintenance() {
    let mut fixture = Fixture::new(2, |_| {});
    let client = fixture.client();
    fixture.begin(&client);
    let now = fixture.cx.now;
    fixture.pool.set_state(0, AdminState::Drain, now);
    fixture.begin(&client);
    assert_eq!(fixture.count("flows_moved"), 0);
    fixture.pool.set_state(0, AdminState::Maintenance, now);
    let number = fixture.udp.sockets[fixture.sockets()[0]].identity.number;
    fixture.send(&client, &["moved"]);
    assert_eq!(text(&fixture.servers[1]), "moved");
    assert_eq!((fixture.count("flows_moved"), fixture.flows()), (1, 1));
    assert_eq!(
        fixture.udp.sockets[fixture.sockets()[0]].identity.number,
        number,
        "the moved flow keeps its number"
    );
    fixture.check_invariants();
}

/// A fixture whose first server refuses after a client began a flow there.
fn with_a_dead_server(servers: usize) -> (Fixture, UdpSocket) {
    let mut fixture = Fixture::new(servers, |_| {});
    let client = fixture.client();
    fixture.begin(&client);
    // A socket that is connected elsewhere refuses datagrams of other senders. It stays open, so that no other
    // test gets its port.
    let dead = fixture.servers.remove(0);
    dead.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    fixture.dead = Some(dead);
    // The kernel notes the refusal (ICMP) at the socket of the flow.
    fixture.send(&client, &["refused"]);
    (fixture, client)
}

fn is_refused(report: &Report) -> bool {
    matches!(report, Report::Failure { failure: Failure::Refused, .. })
}

#[test]
fn a_refusal_moves_the_flow_before_the_client_sends_again() {
    let (mut fixture, client) = with_a_dead_server(2);
    fixture.on_responses();
    assert_eq!((fixture.count("flows_moved"), fixture.flows()), (1, 1));
    let reports = fixture.reports.take();
    assert!(reports.iter().all(is_refused) && reports.len() == 1, "{reports:?}");
    fixture.send(&client, &["next"]);
    let (bytes, flow) = receive(&fixture.servers[0]);
    assert_eq!(bytes, b"next");
    fixture.respond(0, flow, "response");
    assert_eq!(text(&client), "response");
    fixture.check_invariants();
}

#[test]
fn a_refusal_reported_by_a_send_loses_no_further_datagram() {
    let (mut fixture, client) = with_a_dead_server(2);
    fixture.send(&client, &["one", "two", "three"]);
    assert_eq!([0; 3].map(|_| text(&fixture.servers[0])), ["one", "two", "three"]);
    assert_eq!((fixture.count("flows_moved"), fixture.count("drops.refused")), (1, 0));
    fixture.check_invariants();
}

#[test]
fn a_refusal_by_the_last_server_ends_the_flow() {
    let (mut fixture, client) = with_a_dead_server(1);
    fixture.send(&client, &["one", "two"]);
    assert_eq!((fixture.count("drops.refused"), fixture.count("flows_moved"), fixture.flows()), (2, 0, 0));
    let reports = fixture.reports.take();
    assert!(reports.iter().any(is_refused));
    let failed = |report: &Report| matches!(report, Report::NoServer { reason: NoServer::Failed, .. });
    assert!(reports.iter().any(failed), "{reports:?}");
    fixture.check_invariants();
}

#[test]
fn a_response_of_a_suspect_server_is_reported_as_success() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    let flow = fixture.begin(&client);
    let socket = fixture.sockets()[0];
    fixture.udp.sockets[socket].choice.server.live.suspect.store(true, Ordering::Relaxed);
    fixture.respond(0, flow, "well");
    assert!(matches!(fixture.reports.take()[..], [Report::Success { .. }]));
}

#[test]
fn each_datagram_reports_the_client_to_the_server() {
    let mut fixture = Fixture::new(1, |settings| settings.backends[0].send_proxy = Some(Version::V2));
    let client = fixture.client();
    // With a header before it, this datagram would exceed the maximum size.
    let large = vec![b'x'; 65_507];
    client.send(&large).unwrap();
    fixture.send(&client, &["one", "two"]);
    for expected in ["one", "two"] {
        let (bytes, _) = receive(&fixture.servers[0]);
        let header = proxy::parse(&bytes).unwrap().expect("a whole header");
        let ends = header.ends.expect("both ends");
        assert_eq!((ends.source, ends.destination), (client.local_addr().unwrap(), fixture.address));
        assert_eq!(&bytes[header.length..], expected.as_bytes());
    }
    assert_quiet(&fixture.servers[0]);
    assert_eq!(fixture.count("drops.unsendable"), 1);
    assert!(fixture.reports.take().is_empty(), "the server is not at fault");
}

#[test]
fn a_proxy_reports_clients_and_gets_their_responses() {
    let mut fixture = Fixture::new(1, |settings| settings.proxy_from = permit("127.0.0.1/32", Access::Deny));
    let upstream = fixture.client();
    let datagram = |client: &str, hops: u8| {
        let ends = Ends { source: client.parse().unwrap(), destination: "198.51.100.9:53".parse().unwrap() };
        let mut bytes = Vec::new();
        proxy::emit_v2(Some(ends), Transport::Datagram, &Extras { hops, ..Extras::default() }, &mut bytes);
        bytes.extend_from_slice(client.as_bytes());
        bytes
    };
    upstream.send(&datagram("192.0.2.1:1", 0)).unwrap();
    upstream.send(&datagram("192.0.2.2:1", HOPS_MAX - 1)).unwrap();
    upstream.send(&datagram("192.0.2.3:1", HOPS_MAX)).unwrap();
    fixture.send(&upstream, &["no header"]);
    let (first, flow) = receive(&fixture.servers[0]);
    assert_eq!(first, b"192.0.2.1:1");
    assert_eq!(text(&fixture.servers[0]), "192.0.2.2:1");
    assert_quiet(&fixture.servers[0]);
    let dropped = fixture.service.live.counters.of(0).drops.preamble.read();
    assert_eq!((fixture.flows(), dropped, fixture.count("loops")), (2, 1, 1));
    assert!(matches!(fixture.reports.take()[..], [Report::Loop { .. }, Report::Unserved { .. }]));
    fixture.respond(0, flow, "response");
    assert_eq!(text(&upstream), "response");
}

/// Checks the order in which datagrams of one client reach two servers.
fn check_spread(datagrams: u32, expected: &[usize]) {
    let mut fixture = Fixture::new(2, |settings| settings.options.spread = Some(datagrams));
    let client = fixture.client();
    for (number, &server) in expected.iter().enumerate() {
        fixture.send(&client, &[&format!("{number}")]);
        assert_eq!(text(&fixture.servers[server]), format!("{number}"), "{datagrams} a turn");
    }
    assert_eq!((fixture.flows(), fixture.count("flows")), (2, 2), "each server has one flow");
    fixture.check_invariants();
}

#[test]
fn servers_take_turns_when_datagrams_are_spread() {
    check_spread(1, &[0, 1, 0, 1, 0]);
    check_spread(2, &[0, 0, 1, 1, 0]);
    check_spread(3, &[0, 0, 0, 1, 1, 1, 0]);
}

#[test]
fn responses_of_all_servers_return_when_datagrams_are_spread() {
    let mut fixture = Fixture::new(2, |settings| settings.options.spread = Some(1));
    let client = fixture.client();
    fixture.send(&client, &["a", "b"]);
    for server in 0..2 {
        let (_, flow) = receive(&fixture.servers[server]);
        fixture.respond(server, flow, &format!("of {server}"));
        assert_eq!(text(&client), format!("of {server}"));
    }
    let now = fixture.cx.now;
    fixture.pool.set_state(1, AdminState::Maintenance, now);
    fixture.send(&client, &["c", "d"]);
    assert_eq!([text(&fixture.servers[0]), text(&fixture.servers[0])], ["c", "d"]);
    assert_quiet(&fixture.servers[1]);
}
