//! Clients over TCP, and streams to servers.

use super::*;
use crate::service::open::{Collector, ListFilter, ListRequest, Listing};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

/// A component whose one server is reached by streams.
struct Streams {
    fixture: Fixture,
    server: TcpListener,
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// The received bytes, which may be empty; `None` at the end.
fn take(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => None,
        Ok(length) => Some(bytes[..length].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Vec::new()),
        Err(_) => None,
    }
}

impl Streams {
    fn new(change: impl FnOnce(&mut DnsSpec)) -> Self {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        server.set_nonblocking(true).unwrap();
        let target = Target::Ip(server.local_addr().unwrap());
        Self { fixture: Fixture::of(&[target], |_| {}, change), server }
    }

    /// A client that was accepted.
    fn client(&mut self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let Fixture { dns, cx, service, .. } = &mut self.fixture;
        let settings = service.settings.load_full();
        let permits = Permits::new(service.enter(u32::MAX).unwrap(), Unit::take_two_beyond());
        let peer = SocketAddr::from(([192, 0, 2, 7], 4000));
        dns.begin(cx, near.into(), peer, service, &settings, permits);
        far
    }

    #[track_caller]
    fn accepted(&mut self) -> TcpStream {
        let Self { fixture, server } = self;
        let (stream, _) = fixture.until("a connection", |_| server.accept().ok());
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Receives exactly `count` messages.
    #[track_caller]
    fn messages(&mut self, stream: &mut impl Read, count: usize) -> Vec<Vec<u8>> {
        let (mut bytes, mut messages) = (Vec::new(), Vec::new());
        self.fixture.until("messages", |_| {
            bytes.extend_from_slice(&take(stream).expect("the stream is open"));
            while let Some((length, rest)) = bytes.split_first_chunk::<2>()
                && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length)))
            {
                messages.push(message.to_vec());
                bytes.drain(..2 + message.len());
            }
            (messages.len() >= count).then_some(())
        });
        assert_eq!((messages.len(), bytes.len()), (count, 0));
        messages
    }

    #[track_caller]
    fn wait_for_end(&mut self, stream: &mut impl Read) {
        self.fixture.until("the end", |_| take(stream).is_none().then_some(()));
    }

    #[track_caller]
    fn check_no_clients(&mut self) {
        self.fixture.check_idle();
        assert!(self.fixture.dns.clients.is_empty());
        assert_eq!(self.fixture.service.live.connections.active(), 0, "all permits are released");
    }
}

#[test]
fn queries_of_all_clients_share_a_stream_and_responses_are_sent_in_any_order() {
    let mut streams = Streams::new(|spec| spec.sockets = 1);
    let (mut one, mut other) = (streams.client(), streams.client());
    let sent = [query(7, "a.example"), query(7, "b.example"), query(8, "c.example")];
    one.write_all(&[framed(&sent[0]), framed(&sent[2])].concat()).unwrap();
    other.write_all(&framed(&sent[1])).unwrap();
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 3);
    for message in received.iter().rev() {
        server.write_all(&framed(&response(message, 1))).unwrap();
    }
    let mut ids: Vec<u16> = streams.messages(&mut one, 2).iter().map(|message| id(message)).collect();
    ids.sort_unstable();
    assert_eq!(ids, [7, 8]);
    assert_eq!(streams.messages(&mut other, 1), [response(&sent[1], 1)]);
    assert_eq!(streams.fixture.dns.streams.len(), 1);
    streams.fixture.check_idle();
}

#[test]
fn a_response_message_closes_the_connection_and_a_malformed_query_does_not() {
    for (message, ends) in
        [(vec![0; 5], true), (response(&query(1, "a.example"), 0), true), (vec![0; 12], false)]
    {
        let mut streams = Streams::new(|_| {});
        let mut client = streams.client();
        client.write_all(&framed(&message)).unwrap();
        if ends {
            streams.wait_for_end(&mut client);
            streams.check_no_clients();
        } else {
            assert_eq!(code(&streams.messages(&mut client, 1)[0]), wire::FORMERR);
            assert_eq!(streams.fixture.dns.clients.len(), 1);
        }
    }
}

#[test]
fn reading_pauses_at_the_limit_of_outstanding_queries() {
    let mut streams = Streams::new(|spec| (spec.pipeline_max, spec.sockets) = (2, 1));
    let mut client = streams.client();
    let sent: Vec<u8> = (0..5).flat_map(|number| framed(&query(number, "a.example"))).collect();
    client.write_all(&sent).unwrap();
    let mut server = streams.accepted();
    let first = streams.messages(&mut server, 2);
    assert_eq!(streams.fixture.dns.queries.len(), 2);
    first.iter().for_each(|message| server.write_all(&framed(&response(message, 1))).unwrap());
    let second = streams.messages(&mut server, 2);
    second.iter().for_each(|message| server.write_all(&framed(&response(message, 1))).unwrap());
    let last = streams.messages(&mut server, 1);
    server.write_all(&framed(&response(&last[0], 1))).unwrap();
    assert_eq!(streams.messages(&mut client, 5).len(), 5);
    streams.fixture.check_idle();
}

#[test]
fn a_half_closed_client_is_closed_after_its_last_response() {
    let mut streams = Streams::new(|_| {});
    let mut client = streams.client();
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 1);
    assert_eq!(streams.fixture.dns.clients.len(), 1);
    server.write_all(&framed(&response(&received[0], 1))).unwrap();
    assert_eq!(streams.messages(&mut client, 1).len(), 1);
    streams.wait_for_end(&mut client);
    streams.check_no_clients();
}

#[test]
fn the_response_to_a_closed_client_is_dropped_if_another_client_has_its_index() {
    let mut streams = Streams::new(|spec| spec.sockets = 1);
    let mut client = streams.client();
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 1);
    let number = listed(&streams.fixture)[0];
    assert!(!streams.fixture.dns.close_numbered(&mut streams.fixture.cx, number + 1));
    assert!(streams.fixture.dns.close_numbered(&mut streams.fixture.cx, number));
    assert!(
        !streams.fixture.dns.close_numbered(&mut streams.fixture.cx, number),
        "the client is closed already"
    );
    streams.wait_for_end(&mut client);
    let mut next = streams.client();
    server.write_all(&framed(&response(&received[0], 1))).unwrap();
    next.write_all(&framed(&query(9, "b.example"))).unwrap();
    let received = streams.messages(&mut server, 1);
    server.write_all(&framed(&response(&received[0], 2))).unwrap();
    assert_eq!(streams.messages(&mut next, 1), [response(&query(9, "b.example"), 2)]);
    streams.fixture.check_idle();
}

/// The numbers of the clients that are listed, for the only worker.
fn listed(fixture: &Fixture) -> Vec<u32> {
    let (sender, listings) = std::sync::mpsc::channel();
    let request =
        ListRequest::new(ListFilter::default(), 10, move |listing: Listing| sender.send(listing).unwrap());
    let mut collector = Collector::new(&request);
    fixture.dns.list(&fixture.cx, &mut collector);
    collector.finish();
    drop(request);
    listings.recv().unwrap().open.iter().map(|open| open.number as u32).collect()
}

#[test]
fn idle_clients_are_closed_and_sooner_while_the_program_drains() {
    for (drains, time) in [(false, 10), (true, 1)] {
        let mut streams = Streams::new(|_| {});
        let mut client = streams.client();
        streams.fixture.turn();
        if drains {
            streams.fixture.cx.draining = true;
            streams.fixture.dns.drain(&streams.fixture.cx);
        }
        streams.fixture.pass(Duration::from_secs(time) - Duration::from_millis(500));
        assert_eq!(streams.fixture.dns.clients.len(), 1);
        streams.fixture.pass(Duration::from_millis(500));
        streams.wait_for_end(&mut client);
        streams.check_no_clients();
    }
}

#[test]
fn served_idle_clients_are_shed_the_longest_idle_first() {
    let mut streams = Streams::new(|spec| spec.sockets = 1);
    let mut clients: Vec<UnixStream> = (0..3).map(|_| streams.client()).collect();
    // The last client sends no query.
    for client in &mut clients[..2] {
        client.write_all(&framed(&query(7, "a.example"))).unwrap();
        let mut server = streams.fixture.dns.streams.is_empty().then(|| streams.accepted());
        if let Some(server) = &mut server {
            let received = streams.messages(server, 1);
            server.write_all(&framed(&response(&received[0], 1))).unwrap();
            streams.messages(client, 1);
            // The stream ends, so the next query opens another one.
        }
        drop(server);
        streams
            .fixture
            .until("the end of the stream", |fixture| fixture.dns.streams.is_empty().then_some(()));
        streams.fixture.pass(Duration::from_secs(1));
    }
    assert_eq!(streams.fixture.dns.shed(&mut streams.fixture.cx, 1), 1);
    streams.wait_for_end(&mut clients[0]);
    assert_eq!(streams.fixture.dns.shed(&mut streams.fixture.cx, 9), 1);
    streams.wait_for_end(&mut clients[1]);
    assert_eq!(streams.fixture.dns.clients.len(), 1);
}

#[test]
fn a_query_survives_the_close_of_its_stream_by_the_server() {
    let mut streams = Streams::new(|spec| spec.sockets = 1);
    let mut client = streams.client();
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 1);
    server.write_all(&framed(&response(&received[0], 1))).unwrap();
    streams.messages(&mut client, 1);
    client.write_all(&framed(&query(8, "b.example"))).unwrap();
    streams.messages(&mut server, 1);
    drop(server);
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 1);
    server.write_all(&framed(&response(&received[0], 2))).unwrap();
    assert_eq!(streams.messages(&mut client, 1), [response(&query(8, "b.example"), 2)]);
    streams.fixture.check_idle();
}

#[test]
fn ending_a_server_closes_its_streams_and_counts_them() {
    let mut streams = Streams::new(|_| {});
    let mut client = streams.client();
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    let mut server = streams.accepted();
    streams.messages(&mut server, 1);
    let entry = Arc::clone(&streams.fixture.service.settings.load().backends[0].pool.load().servers()[0]);
    let ending = Ending::new(&entry, EndReason::Down, |_| {});
    assert_eq!(streams.fixture.dns.end_server(&mut streams.fixture.cx, &ending), 1);
    streams.wait_for_end(&mut server);
    assert_eq!(streams.fixture.count("closed.server_down"), 1);
    // The query is sent again over another stream.
    let mut server = streams.accepted();
    streams.messages(&mut server, 1);
}

#[test]
fn an_unused_stream_is_closed() {
    let mut streams = Streams::new(|_| {});
    let mut client = streams.client();
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    let mut server = streams.accepted();
    let received = streams.messages(&mut server, 1);
    server.write_all(&framed(&response(&received[0], 1))).unwrap();
    streams.messages(&mut client, 1);
    streams.fixture.pass(Duration::from_secs(9));
    assert_eq!(streams.fixture.dns.streams.len(), 1);
    streams.fixture.pass(Duration::from_secs(11));
    streams.wait_for_end(&mut server);
    assert!(streams.fixture.dns.streams.is_empty());
}

#[test]
fn a_server_that_refuses_connections_is_reported() {
    let mut streams = Streams::new(|_| {});
    let mut client = streams.client();
    let Streams { fixture, server } = streams;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    drop(server);
    let mut streams = Streams { fixture, server: free };
    client.write_all(&framed(&query(7, "a.example"))).unwrap();
    assert_eq!(code(&streams.messages(&mut client, 1)[0]), wire::SERVFAIL);
    let reports = streams.fixture.reports.take();
    assert!(reports.iter().any(|report| matches!(report, Report::NoServer { .. })), "{reports:?}");
    streams.fixture.check_idle();
}
