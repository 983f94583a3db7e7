//! Persistent connections with servers of mname.

use super::*;
use evener_core::spec::{Dialect, ServiceOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::atomic::AtomicU32;

/// Types of frames. A frame consists of words of 32 bits, little-endian.
const CLIENT_HELLO: u32 = 1;
const INBOUND_UDP: u32 = 2;
const CLIENT_HEARTBEAT: u32 = 4;
const SERVER_HELLO: u32 = 1001;
const OUTBOUND_UDP: u32 = 1002;
const INBOUND_TCP_OK: u32 = 1003;
const SERVER_HEARTBEAT: u32 = 1004;

/// A component with one server of mname.
struct Mname {
    fixture: Fixture,
    listener: UnixListener,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A response in its frame.
fn outbound(to: SocketAddrV4, message: &[u8]) -> Vec<u8> {
    let fixed = [OUTBOUND_UDP, u32::from(*to.ip()), u32::from(to.port()), message.len() as u32];
    [words(&fixed), message.to_vec()].concat()
}

impl Mname {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("evener-dns-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let target = Target::Unix(format!("@{name}").into());
        let mname = |spec: &mut PoolSpec| spec.servers[0].dialect = Dialect::Mname;
        Self { fixture: Fixture::of(&[target], mname, |spec| spec.retries = 0), listener }
    }

    /// Creates a component with a server of mname and a plain server, whose pool permits no retries.
    fn with_plain_server() -> Self {
        let Self { fixture, listener } = Self::new();
        let mname = fixture.service.settings.load().backends[0].pool.load().servers()[0].target.clone();
        let plain = socket();
        let targets = [mname, Target::Ip(plain.local_addr().unwrap())];
        let pool = |spec: &mut PoolSpec| {
            spec.servers[0].dialect = Dialect::Mname;
            without_retries(spec);
        };
        let fixture = Fixture { servers: vec![plain], ..Fixture::of(&targets, pool, |_| {}) };
        Self { fixture, listener }
    }

    #[track_caller]
    fn accepted(&mut self) -> UnixStream {
        let Self { fixture, listener } = self;
        let (stream, _) = fixture.until("a connection", |_| listener.accept().ok());
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Reads this many bytes of a stream.
    #[track_caller]
    fn bytes(&mut self, stream: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        self.fixture.until("bytes", |_| {
            match stream.read(&mut bytes[filled..]) {
                Ok(length) => filled += length,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            (filled == count).then_some(())
        });
        bytes
    }

    /// Accepts a connection, and establishes it with the hello of the server.
    #[track_caller]
    fn up(&mut self) -> UnixStream {
        let mut stream = self.accepted();
        assert_eq!(self.bytes(&mut stream, 4), words(&[CLIENT_HELLO]));
        stream.write_all(&words(&[SERVER_HELLO])).unwrap();
        assert_eq!(self.reported(), None);
        // The supervisor marks the server up.
        let Fixture { pool, cx, .. } = &mut self.fixture;
        pool.begin_session(0, cx.now);
        stream
    }

    /// The fault in the next report on the connection; `None` if the connection is established.
    #[track_caller]
    fn reported(&mut self) -> Option<String> {
        self.fixture.until("a report", |fixture| {
            fixture.reports.take().into_iter().find_map(|report| match report {
                Report::Session { fault, .. } => Some(fault),
                _ => None,
            })
        })
    }

    #[track_caller]
    fn wait_for_end(&mut self, stream: &mut UnixStream) {
        let is_over = |read: std::io::Result<usize>| match read {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        self.fixture.until("the end", |_| is_over(stream.read(&mut [0; 64])).then_some(()));
    }
}

#[test]
fn a_query_and_its_response_are_sent_in_frames() {
    let mut mname = Mname::new();
    let mut server = mname.up();
    let client = mname.fixture.client();
    let message = query(7, "a.example");
    client.send(&message).unwrap();
    let frame = mname.bytes(&mut server, 16 + message.len());
    let SocketAddr::V4(address) = client.local_addr().unwrap() else { unreachable!("IPv4") };
    let fixed = [INBOUND_UDP, u32::from(*address.ip()), u32::from(address.port()), message.len() as u32];
    // The frame has the client's address and ID.
    assert_eq!(frame, [words(&fixed), message.clone()].concat());
    // The first response is for another client, the second for another query.
    let other = SocketAddrV4::new(*address.ip(), address.port() ^ 1);
    server.write_all(&outbound(other, &response(&message, 1))).unwrap();
    server.write_all(&outbound(address, &response(&query(7, "b.example"), 1))).unwrap();
    server.write_all(&outbound(address, &response(&message, 2))).unwrap();
    assert_eq!(mname.fixture.received_by(&client), response(&message, 2));
    mname.fixture.check_idle();
}

#[test]
fn a_server_that_violates_the_protocol_is_reconnected() {
    #[track_caller]
    fn check(sent: &[u32], reason: &str) {
        let mut mname = Mname::new();
        let mut stream = mname.accepted();
        stream.write_all(&words(sent)).unwrap();
        let fault = mname.fixture.until("a fault", |fixture| {
            fixture.reports.take().into_iter().find_map(|report| match report {
                Report::Session { fault, .. } => fault,
                _ => None,
            })
        });
        assert_eq!(fault, reason);
        mname.wait_for_end(&mut stream);
        mname.fixture.pass(Duration::ZERO);
        mname.up();
    }
    check(&[SERVER_HEARTBEAT], "it sent something before its hello");
    check(&[SERVER_HELLO, SERVER_HELLO], "it sent two hellos");
    check(&[SERVER_HELLO, SERVER_HEARTBEAT], "it sent a heartbeat without a request");
    check(&[SERVER_HELLO, INBOUND_TCP_OK], "it accepted a TCP session that is none");
    check(&[77], "a frame of the unknown type 77");
}

#[test]
fn a_server_without_heartbeats_is_reconnected() {
    let mut mname = Mname::new();
    let mut server = mname.up();
    mname.fixture.pass(Duration::from_secs(5));
    assert_eq!(mname.bytes(&mut server, 4), words(&[CLIENT_HEARTBEAT]));
    server.write_all(&words(&[SERVER_HEARTBEAT])).unwrap();
    assert_eq!(mname.reported(), None, "an established connection is reported again with each heartbeat");
    mname.fixture.pass(Duration::from_secs(5));
    assert_eq!(mname.bytes(&mut server, 4), words(&[CLIENT_HEARTBEAT]));
    mname.fixture.pass(Duration::from_secs(15));
    assert!(mname.reported().is_some_and(|fault| fault.contains("sign of life")));
    mname.wait_for_end(&mut server);
    mname.fixture.pass(Duration::ZERO);
    mname.up();
}

#[test]
fn queries_fail_while_no_connection_is_established() {
    let mut mname = Mname::new();
    let client = mname.fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    assert_eq!(code(&mname.fixture.received_by(&client)), wire::SERVFAIL);
    let mut server = mname.up();
    client.send(&query(8, "a.example")).unwrap();
    mname.bytes(&mut server, 16 + query(8, "a.example").len());
    // The server may have received the query. A standard query may be repeated at another server, but there is
    // none.
    drop(server);
    assert!(mname.reported().is_some());
    assert_eq!(code(&mname.fixture.received_by(&client)), wire::SERVFAIL);
    mname.fixture.check_idle();
}

#[test]
fn queries_of_a_removed_server_need_no_retry() {
    let mut mname = Mname::with_plain_server();
    let mut server = mname.up();
    let message = query(7, "a.example");
    mname.fixture.client().send(&message).unwrap();
    mname.bytes(&mut server, 16 + message.len());
    // The second server keeps its ID.
    let targets = [socket(), mname.fixture.servers[0].try_clone().unwrap()]
        .map(|server| Target::Ip(server.local_addr().unwrap()));
    let pool = TestPool::with("pool", &targets, without_retries);
    let mut settings = Settings::new(ServiceOptions::of(Protocol::Dns), pool.published());
    settings.dns.clone_from(&mname.fixture.service.settings.load().dns);
    mname.fixture.service.settings.store(Arc::new(settings));
    mname.fixture.dns.note_change();
    assert_eq!(mname.fixture.received().message[2..], message[2..]);
    assert_eq!(mname.fixture.count("retries"), 0);
    assert_eq!(mname.fixture.count("retries_exhausted"), 0);
}

#[test]
fn queries_of_an_ended_connection_are_always_sent_again_if_it_has_carried_responses() {
    let mut mname = Mname::with_plain_server();
    let mut server = mname.up();
    let client = mname.fixture.client();
    let SocketAddr::V4(address) = client.local_addr().unwrap() else { unreachable!("IPv4") };
    for (id, name) in [(7, "a.example"), (8, "b.example")] {
        let message = query(id, name);
        client.send(&message).unwrap();
        mname.bytes(&mut server, 16 + message.len());
        if id == 7 {
            server.write_all(&outbound(address, &response(&message, 1))).unwrap();
            mname.fixture.received_by(&client);
        }
    }
    drop(server);
    assert_eq!(mname.fixture.received().message[2..], query(8, "b.example")[2..]);
    assert_eq!(mname.fixture.count("retries"), 1);
}

#[test]
fn queries_of_a_connection_that_ended_without_a_response_need_a_retry() {
    let mut mname = Mname::with_plain_server();
    let mut server = mname.up();
    let (client, message) = (mname.fixture.client(), query(7, "a.example"));
    client.send(&message).unwrap();
    mname.bytes(&mut server, 16 + message.len());
    drop(server);
    assert_eq!(code(&mname.fixture.received_by(&client)), wire::SERVFAIL);
    assert_eq!(mname.fixture.count("retries_exhausted"), 1);
}

#[test]
fn a_connection_closes_with_the_last_service_that_uses_it() {
    let mut mname = Mname::new();
    let mut server = mname.up();
    let service = Arc::clone(&mname.fixture.service);
    let Fixture { dns, cx, .. } = &mut mname.fixture;
    assert_eq!((dns.persistents.len(), dns.persistent_of.len()), (1, 1));
    // The listener for datagrams is closed, the listener for streams is still open.
    assert!(dns.release(cx, 1).is_some());
    dns.maintain(cx, std::iter::once(&service));
    assert_eq!(dns.persistents.len(), 1);
    dns.note_change();
    assert_eq!(dns.wait(cx.now), Some(Duration::ZERO));
    dns.maintain(cx, std::iter::empty());
    assert!(dns.persistents.is_empty() && dns.persistent_of.is_empty());
    mname.wait_for_end(&mut server);
}
