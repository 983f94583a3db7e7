//! Tests of the component without a worker: real sockets on loopback, a clock that only the tests advance, and
//! a fixture in place of the loop.

mod persistents;
mod retries;
mod streams;

use super::*;
use crate::context::Reports;
use crate::context::descriptors::Unit;
use crate::context::registry::Readiness;
use crate::context::report::Report;
use crate::io::batch::Local;
use crate::service::ending::{EndReason, Ending};
use crate::service::testing::{TestPool, service_with};
use crate::service::{self, Permits};
use evener_core::Target;
use evener_core::dns::Cache;
use evener_core::health::Failure;
use evener_core::spec::{DnsCacheSpec, DnsSpec, OnFailure, Policy, PoolSpec, Protocol, RetryBudgetSpec};
use evener_core::wire::dns as wire;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Maximum wait for the kernel.
const DEADLINE: Duration = Duration::from_secs(20);
const READY: Readiness = Readiness { readable: true, writable: true, ended: false, error: false };

/// A component with one listener for datagrams, and its servers.
struct Fixture {
    dns: Dns,
    cx: Context,
    reports: Reports,
    service: Arc<Service>,
    pool: TestPool,
    servers: Vec<UdpSocket>,
    address: SocketAddr,
}

/// A query as a server got it.
struct Received {
    server: usize,
    from: SocketAddr,
    message: Vec<u8>,
}

/// Makes the retry budget of a pool permit no retry.
fn without_retries(spec: &mut PoolSpec) {
    spec.retry_budget = Some(RetryBudgetSpec { share_percent: 0, min_per_second: 0 });
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// A query for the address of a name.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message[..2].copy_from_slice(&id.to_be_bytes());
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// The response to a query with this many addresses, each with a TTL of a minute.
fn response(query: &[u8], addresses: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[7] = addresses;
    for last in 0..addresses {
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    }
    message
}

fn response_with_code(query: &[u8], code: u8) -> Vec<u8> {
    let mut message = response(query, 0);
    message[3] = code;
    message
}

fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    [&id.to_be_bytes()[..], &message[2..]].concat()
}

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

fn code(message: &[u8]) -> u8 {
    message[3] & 15
}

impl Fixture {
    /// Creates a fixture with this many servers, which are tried in their order.
    fn new(servers: usize, change: impl FnOnce(&mut DnsSpec)) -> Self {
        Self::with_pool(servers, |_| {}, change)
    }

    fn with_pool(
        servers: usize,
        pool: impl FnOnce(&mut PoolSpec),
        change: impl FnOnce(&mut DnsSpec),
    ) -> Self {
        let servers: Vec<UdpSocket> = (0..servers).map(|_| socket()).collect();
        let targets: Vec<Target> =
            servers.iter().map(|server| Target::Ip(server.local_addr().unwrap())).collect();
        Self { servers, ..Self::of(&targets, pool, change) }
    }

    fn of(targets: &[Target], pool: impl FnOnce(&mut PoolSpec), change: impl FnOnce(&mut DnsSpec)) -> Self {
        let pool = TestPool::with("pool", targets, |spec| {
            spec.policy = Policy::First;
            pool(spec);
        });
        let mut spec = DnsSpec::default();
        change(&mut spec);
        let cache = spec.cache.as_ref().map(|cache| Arc::new(Cache::new(cache, 1)));
        let service = service_with(Protocol::Dns, &pool, |settings| {
            settings.dns = Some(service::Dns { spec: Arc::new(spec), cache, rate_limit: None });
        });
        let (mut cx, reports) = Context::for_tests();
        cx.now = Time::ZERO + Duration::from_secs(1000);
        let (mut dns, listener) = (Dns::new(1), socket());
        let address = listener.local_addr().unwrap();
        dns.listen(&mut cx, 1, &service, listener.into(), Local::Fixed);
        Self { dns, cx, reports, service, pool, servers: Vec::new(), address }
    }

    fn client(&self) -> UdpSocket {
        let client = socket();
        client.connect(self.address).unwrap();
        client
    }

    /// One turn of the loop, in which every socket counts as ready.
    fn turn(&mut self) {
        let Self { dns, cx, service, .. } = self;
        dns.listeners.keys(|_| true).into_iter().for_each(|key| dns.on_listener_event(cx, key));
        dns.sockets.keys(|_| true).into_iter().for_each(|at| dns.on_socket_event(cx, at));
        dns.streams.keys(|_| true).into_iter().for_each(|at| dns.on_stream_event(cx, at, READY));
        dns.clients.keys(|_| true).into_iter().for_each(|key| dns.on_client_event(key, READY));
        dns.persistents.keys(|_| true).into_iter().for_each(|at| dns.on_persistent_event(at, READY));
        dns.on_deadlines(cx);
        dns.maintain(cx, std::iter::once(&*service));
        dns.flush(cx);
        // The next turn handles every entry again.
        while cx.ready.pop().is_some() {}
    }

    /// Runs turns until there is a result.
    #[track_caller]
    fn until<T>(&mut self, what: &str, mut find: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            self.turn();
            if let Some(found) = find(self) {
                return found;
            }
            assert!(Instant::now() < until, "not in time: {what}");
        }
    }

    /// Advances the time.
    fn pass(&mut self, time: Duration) {
        // The wheel rounds up to its next tick.
        self.cx.now += time + Duration::from_millis(100);
        self.turn();
    }

    /// The next query that any server gets.
    #[track_caller]
    fn received(&mut self) -> Received {
        self.until("a query", |fixture| {
            fixture.servers.iter().enumerate().find_map(|(server, socket)| {
                let mut bytes = [0; 2048];
                let (length, from) = socket.recv_from(&mut bytes).ok()?;
                Some(Received { server, from, message: bytes[..length].to_vec() })
            })
        })
    }

    fn respond(&self, to: &Received, message: &[u8]) {
        self.servers[to.server].send_to(message, to.from).unwrap();
    }

    /// The next message that a client gets.
    #[track_caller]
    fn received_by(&mut self, client: &UdpSocket) -> Vec<u8> {
        self.until("a response", |_| {
            let mut bytes = [0; 2048];
            let length = client.recv(&mut bytes).ok()?;
            Some(bytes[..length].to_vec())
        })
    }

    #[track_caller]
    fn query_and_respond(&mut self, client: &UdpSocket, message: &[u8]) {
        client.send(message).unwrap();
        let received = self.received();
        self.respond(&received, &response(&received.message, 1));
        assert_eq!(self.received_by(client), response(message, 1));
    }

    fn count(&self, name: &str) -> u64 {
        self.service.live.counters.total(name)
    }

    /// Checks that no query is outstanding, and that no resource is taken by one.
    #[track_caller]
    fn check_idle(&mut self) {
        self.turn();
        assert!(self.dns.queries.is_empty() && self.dns.coalesced.is_empty());
        assert_eq!(self.dns.held, 0);
        assert!(self.dns.services.iter().all(|(_, served)| served.in_flight == 0));
        assert_eq!(self.service.live.flows.load(Ordering::Relaxed), 0);
        assert!(self.dns.sockets.iter().all(|(_, socket)| socket.is_idle()));
        assert!(self.dns.streams.iter().all(|(_, stream)| stream.is_idle()));
    }
}

#[test]
fn a_client_gets_the_response_under_the_id_of_its_query() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    let message = query(7, "a.example");
    client.send(&message).unwrap();
    let received = fixture.received();
    assert_eq!(received.message[2..], message[2..], "only the ID differs");
    fixture.respond(&received, &response(&received.message, 1));
    assert_eq!(fixture.received_by(&client), response(&message, 1));
    fixture.check_idle();
}

#[test]
fn messages_that_do_not_match_the_query_are_ignored() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    let received = fixture.received();
    let id = id(&received.message);
    let forged = [
        response(&with_id(&received.message, id.wrapping_add(1)), 1),
        response(&query(id, "b.example"), 1),
        received.message.clone(),
        vec![0; 3],
    ];
    forged.iter().for_each(|message| fixture.respond(&received, message));
    fixture.respond(&received, &response(&received.message, 2));
    assert_eq!(fixture.received_by(&client), response(&query(7, "a.example"), 2));
    fixture.check_idle();
}

#[test]
fn messages_that_are_not_queries_get_the_shortest_response_or_none() {
    #[track_caller]
    fn check(message: &[u8], expected: Option<u8>) {
        let mut fixture = Fixture::new(1, |_| {});
        let client = fixture.client();
        client.send(message).unwrap();
        if let Some(expected) = expected {
            assert_eq!(code(&fixture.received_by(&client)), expected);
        }
        // The next query is served.
        fixture.query_and_respond(&client, &query(9, "next.example"));
        fixture.check_idle();
    }
    check(&[0; 11], None);
    check(&response(&query(3, "a.example"), 0), None);
    let mut truncated = query(3, "a.example");
    truncated.truncate(16);
    check(&truncated, Some(wire::FORMERR));
    let mut two_queries = query(3, "a.example");
    two_queries[5] = 2;
    check(&two_queries, Some(wire::FORMERR));
}

#[test]
fn a_silent_server_costs_one_timeout_and_its_late_response_still_counts() {
    for late in [false, true] {
        let mut fixture = Fixture::new(2, |_| {});
        let client = fixture.client();
        client.send(&query(7, "a.example")).unwrap();
        let first = fixture.received();
        fixture.pass(Duration::from_millis(1500));
        let second = fixture.received();
        assert_eq!((first.server, second.server), (0, 1));
        let from = if late { &first } else { &second };
        fixture.respond(from, &response(&from.message, 1));
        assert_eq!(fixture.received_by(&client), response(&query(7, "a.example"), 1));
        assert_eq!(fixture.count("requests_retried"), 1);
        fixture.check_idle();
    }
}

#[test]
fn a_query_that_no_server_responds_to_fails_as_configured() {
    for (on_failure, expected) in
        [(OnFailure::ServFail, Some(2)), (OnFailure::Refused, Some(5)), (OnFailure::Drop, None)]
    {
        let mut fixture = Fixture::new(1, |spec| (spec.on_failure, spec.retries) = (on_failure, 1));
        let client = fixture.client();
        client.send(&query(7, "a.example")).unwrap();
        fixture.received();
        (0..2).for_each(|_| fixture.pass(Duration::from_millis(1500)));
        assert_eq!(fixture.count("requests_failed"), 1);
        if let Some(expected) = expected {
            assert_eq!(code(&fixture.received_by(&client)), expected);
        }
        fixture.check_idle();
        assert!(client.recv(&mut [0; 512]).is_err(), "one response at most");
    }
}

#[test]
fn a_server_without_responses_to_three_queries_is_reported() {
    let mut fixture = Fixture::new(1, |spec| spec.retries = 0);
    let client = fixture.client();
    for (number, expected) in [(1, 0), (2, 0), (3, 1)] {
        client.send(&query(number, &format!("n{number}.example"))).unwrap();
        fixture.received();
        fixture.pass(Duration::from_millis(1500));
        let is_silent = |report: &Report| matches!(report, Report::Failure { failure: Failure::Silent, .. });
        assert_eq!(fixture.reports.take().iter().filter(|report| is_silent(report)).count(), expected);
    }
}

#[test]
fn a_refused_query_is_sent_to_the_next_server_immediately() {
    let mut fixture = Fixture::new(2, |_| {});
    let refusing = fixture.servers.remove(0);
    drop(refusing);
    let client = fixture.client();
    fixture.query_and_respond(&client, &query(7, "a.example"));
    assert_eq!(fixture.count("requests_retried"), 1);
    fixture.check_idle();
}

#[test]
fn a_declining_response_is_used_only_if_no_other_server_responds() {
    for codes in [[2, 0], [2, 2], [2, 3]] {
        let mut fixture = Fixture::new(2, |_| {});
        let client = fixture.client();
        client.send(&query(7, "a.example")).unwrap();
        for (server, code) in codes.into_iter().enumerate() {
            let received = fixture.received();
            assert_eq!(received.server, server);
            fixture.respond(&received, &response_with_code(&received.message, code));
        }
        let expected = response_with_code(&query(7, "a.example"), codes[1]);
        assert_eq!(fixture.received_by(&client), expected);
        fixture.check_idle();
    }
}

fn cached(spec: &mut DnsSpec) {
    spec.cache = Some(DnsCacheSpec::default());
}

#[test]
fn a_cached_response_needs_no_server_until_it_expires() {
    let mut fixture = Fixture::new(1, cached);
    let client = fixture.client();
    fixture.query_and_respond(&client, &query(7, "a.example"));
    // The response has the requester's ID and spelling, and the remaining TTL.
    fixture.pass(Duration::from_secs(10));
    client.send(&query(8, "A.eXample")).unwrap();
    let cached = fixture.received_by(&client);
    assert_eq!(cached[..27], response(&query(8, "A.eXample"), 1)[..27]);
    assert_eq!((fixture.count("cache_lookups.hit"), fixture.count("cache_lookups.miss")), (1, 1));
    fixture.pass(Duration::from_secs(51));
    fixture.query_and_respond(&client, &query(9, "a.example"));
    fixture.check_idle();
}

#[test]
fn an_expired_response_is_used_if_no_server_responds() {
    let stale = |spec: &mut DnsSpec| {
        spec.cache = Some(DnsCacheSpec { stale: Duration::from_secs(3600), ..DnsCacheSpec::default() });
        spec.retries = 0;
    };
    let mut fixture = Fixture::new(1, stale);
    let client = fixture.client();
    fixture.query_and_respond(&client, &query(7, "a.example"));
    fixture.pass(Duration::from_secs(61));
    client.send(&query(8, "a.example")).unwrap();
    fixture.received();
    fixture.pass(Duration::from_millis(1500));
    let stale = fixture.received_by(&client);
    assert_eq!((id(&stale), code(&stale), stale[7]), (8, 0, 1));
    assert_eq!(fixture.count("cache_stale"), 1);
    fixture.check_idle();
}

#[test]
fn equal_queries_are_coalesced_if_responses_are_cached() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut DnsSpec), expected: usize) {
        let mut fixture = Fixture::new(1, change);
        let clients: Vec<UdpSocket> = (0..5).map(|_| fixture.client()).collect();
        for (number, client) in clients.iter().enumerate() {
            client.send(&query(number as u16, "a.example")).unwrap();
        }
        let received: Vec<Received> = (0..expected).map(|_| fixture.received()).collect();
        assert_eq!(fixture.dns.queries.len(), 5);
        received.iter().for_each(|one| fixture.respond(one, &response(&one.message, 1)));
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(fixture.received_by(client), response(&query(number as u16, "a.example"), 1));
        }
        assert!(fixture.servers[0].recv(&mut [0; 512]).is_err(), "the server gets no further query");
        fixture.check_idle();
    }
    check(cached, 1);
    check(|_| {}, 5);
}

#[test]
fn a_response_that_is_too_long_for_the_client_is_truncated() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    let received = fixture.received();
    fixture.respond(&received, &response(&received.message, 60));
    let truncated = fixture.received_by(&client);
    assert!(truncated.len() <= 512 && truncated[2] & 2 != 0, "{truncated:?}");
    assert_eq!((id(&truncated), fixture.count("truncated")), (7, 1));
    fixture.check_idle();
}

#[test]
fn queries_beyond_the_limit_are_dropped() {
    let mut fixture = Fixture::new(1, |spec| spec.outstanding_max = 3);
    let client = fixture.client();
    for number in 0..5 {
        client.send(&query(number, &format!("n{number}.example"))).unwrap();
    }
    let received: Vec<Received> = (0..3).map(|_| fixture.received()).collect();
    assert_eq!((fixture.dns.queries.len(), fixture.count("drops.outstanding")), (3, 2));
    received.iter().for_each(|one| fixture.respond(one, &response(&one.message, 1)));
    (0..3).for_each(|_| drop(fixture.received_by(&client)));
    fixture.query_and_respond(&client, &query(7, "a.example"));
    fixture.check_idle();
}

#[test]
fn a_leaving_listener_closes_when_its_queries_are_finished() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    let received = fixture.received();
    fixture.dns.leave(&fixture.cx, 1);
    fixture.turn();
    assert_eq!(fixture.dns.listeners.len(), 1);
    fixture.respond(&received, &response(&received.message, 1));
    fixture.received_by(&client);
    fixture.turn();
    assert!(fixture.dns.listeners.is_empty());
    fixture.check_idle();
}

#[test]
fn responses_for_a_removed_listener_are_dropped() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    let received = fixture.received();
    let (socket, local) = fixture.dns.release(&mut fixture.cx, 1).unwrap();
    assert!(fixture.dns.release(&mut fixture.cx, 1).is_none(), "a listener is released only once");
    // Another listener takes its index, but not its key.
    let service = Arc::clone(&fixture.service);
    fixture.dns.listen(&mut fixture.cx, 2, &service, socket, local);
    fixture.respond(&received, &response(&received.message, 1));
    fixture.until("the end of the query", |fixture| fixture.dns.queries.is_empty().then_some(()));
    fixture.check_idle();
    assert!(client.recv(&mut [0; 512]).is_err());
    fixture.query_and_respond(&client, &query(8, "a.example"));
}

#[test]
fn an_assigned_listener_serves_the_other_service() {
    let mut fixture = Fixture::new(1, |_| {});
    let other = Fixture::new(0, |_| {});
    assert!(!fixture.dns.assign(5, &other.service), "no listener has this number");
    assert!(fixture.dns.assign(1, &other.service));
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    assert_eq!(
        code(&fixture.received_by(&client)),
        wire::SERVFAIL,
        "the pool of the other service has no servers"
    );
    assert_eq!((fixture.count("requests"), other.count("requests")), (0, 1));
}

#[test]
fn sockets_and_upstreams_that_are_not_used_are_closed() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    fixture.query_and_respond(&client, &query(7, "a.example"));
    assert_eq!((fixture.dns.upstreams.len(), fixture.dns.sockets.len()), (1, 1));
    fixture.pass(Duration::from_secs(30));
    fixture.dns.sweep(&mut fixture.cx);
    assert_eq!(fixture.dns.upstreams.len(), 1);
    fixture.pass(Duration::from_secs(30));
    fixture.dns.sweep(&mut fixture.cx);
    assert!(fixture.dns.upstreams.is_empty() && fixture.dns.sockets.is_empty());
    assert!(fixture.dns.upstream_of.is_empty());
    fixture.query_and_respond(&client, &query(8, "a.example"));
}

#[test]
fn an_upstream_belongs_to_one_server_at_one_address() {
    let mut fixture = Fixture::new(1, |_| {});
    let service = fixture.dns.service_key(&Arc::clone(&fixture.service));
    let server = Arc::clone(&fixture.service.settings.load().backends[0].pool.load().servers()[0]);
    let client = fixture.address;
    let requester = |party| Requester {
        service,
        client,
        destination: None,
        party,
        hops: 0,
        origin: Origin::Datagram(ReturnPath {
            listener: fixture.dns.listeners.keys(|_| true)[0],
            address: client,
            local: None,
        }),
        keepalive: false,
    };
    let [admitted, refused] = [Party::Admitted, Party::Refused].map(requester);
    let Fixture { dns, cx, .. } = &mut fixture;
    let first = dns.find_upstream(cx, admitted.server(server.id), &server);
    assert_eq!(dns.find_upstream(cx, admitted.server(server.id), &server), first);
    assert_ne!(dns.find_upstream(cx, refused.server(server.id), &server), first);
    // After a reload the party may have another pool, in which another server has the ID: at the same address
    // or elsewhere.
    for target in [server.target.clone(), Target::Ip("192.0.2.1:53".parse().unwrap())] {
        let pool = TestPool::new("other", &[target]);
        let other = Arc::clone(&pool.published().load().servers()[0]);
        assert_eq!(other.id, server.id);
        let upstream = dns.find_upstream(cx, admitted.server(other.id), &other);
        assert!(upstream != first && !dns.upstreams.contains(first));
        assert_eq!((dns.upstreams.len(), dns.upstream_of.len()), (2, 2));
    }
}

#[test]
fn a_service_is_removed_with_its_last_listener() {
    let mut fixture = Fixture::new(1, |_| {});
    let (_, other) = (Fixture::new(1, |_| {}), Fixture::new(1, |_| {}).service);
    assert!(fixture.dns.assign(1, &other));
    fixture.dns.sweep(&mut fixture.cx);
    assert_eq!(fixture.dns.services.len(), 2, "the first service is still referenced by the fixture");
    drop(other);
    fixture.service = Fixture::new(1, |_| {}).service;
    fixture.dns.sweep(&mut fixture.cx);
    assert_eq!(fixture.dns.services.len(), 1, "the service of the listener is left");
}
