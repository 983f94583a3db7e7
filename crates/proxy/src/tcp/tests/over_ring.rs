//! Connections whose life takes place in a ring.

use super::*;
use crate::context::ring::Ring;
use std::net::Shutdown;

impl Fixture {
    /// Gives the component a ring. Returns `None` where the system forbids it.
    fn over_ring(mut self) -> Option<Self> {
        match Ring::new() {
            Ok(ring) => {
                self.cx.ring = Some(ring);
                Some(self)
            }
            Err(error) => {
                println!("skipped: needs io_uring: {error}");
                None
            }
        }
    }

    /// Submits the queued operations, and handles the completions.
    pub(super) fn complete(&mut self) {
        if let Some(ring) = &mut self.cx.ring {
            ring.wait(Some(Duration::ZERO));
        }
        while let Some(completion) = self.cx.ring.as_mut().and_then(Ring::next) {
            self.tcp.on_completion(&mut self.cx, completion);
        }
    }

    /// Accepts the clients that wait, without submitting the operations that this queues.
    fn accept_only(&mut self) {
        for key in self.tcp.listeners.keys(|_| true) {
            self.tcp.accept(&mut self.cx, key);
        }
    }
}

/// The rest of the stream.
fn rest(fixture: &mut Fixture, stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    fixture.until("the end", |_| {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => Some(()),
            Ok(length) => {
                got.extend_from_slice(&piece[..length]);
                None
            }
            Err(error) => {
                assert!(is_blocked(error.kind()), "{error}");
                None
            }
        }
    });
    got
}

#[test]
fn a_half_close_in_the_ring_is_passed_on_with_the_last_bytes() {
    let Some(mut fixture) = Fixture::new(|_| {}).over_ring() else { return };
    let mut client = fixture.client();
    client.write_all(b"all of it").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = fixture.server_side();
    assert_eq!(rest(&mut fixture, &mut server), b"all of it");
    server.write_all(b"still here").unwrap();
    fixture.expect(&mut client, b"still here");
    server.write_all(b", and gone").unwrap();
    drop(server);
    assert_eq!(rest(&mut fixture, &mut client), b", and gone");
    assert_eq!((fixture.count("bytes_in"), fixture.count("bytes_out")), (9, 20));
    fixture.check_empty();
}

#[test]
fn last_bytes_for_which_a_sink_has_no_room_are_delivered_before_the_end() {
    const LENGTH: usize = 60_000;
    let Some(mut fixture) = Fixture::new(|_| {}).over_ring() else { return };
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    fixture.until("the relay", |fixture| {
        let key = fixture.tcp.connections.keys(|connection| connection.ring.is_some()).pop()?;
        let connection = &fixture.tcp.connections[key];
        rustix::net::sockopt::set_socket_send_buffer_size(&connection.client, 4096).unwrap();
        Some(())
    });
    server.write_all(&vec![7; LENGTH]).unwrap();
    drop(server);
    let got = rest(&mut fixture, &mut client);
    assert_eq!((got.len(), got.iter().all(|&byte| byte == 7)), (LENGTH, true));
    drop(client);
    fixture.until("the end", |fixture| fixture.tcp.connections.is_empty().then_some(()));
}

#[test]
fn a_server_can_send_before_its_client() {
    let Some(mut fixture) = Fixture::new(|_| {}).over_ring() else { return };
    let mut client = fixture.client();
    let mut server = fixture.server_side();
    server.write_all(b"220 hello").unwrap();
    fixture.expect(&mut client, b"220 hello");
}

#[test]
fn a_refused_connection_in_the_ring_is_followed_by_the_next_server() {
    let (_held, refusing) = refusing();
    let servers = vec![bound()];
    let targets = [refusing, target(&servers[0])];
    let Some(mut fixture) = Fixture::of(servers, &targets, |_| {}, |_| {}).over_ring() else { return };
    for _ in 0..2 {
        let mut client = fixture.client();
        client.write_all(b"x").unwrap();
        let mut server = fixture.server_side();
        fixture.expect(&mut server, b"x");
    }
    assert!(fixture.reports.take().iter().any(|report| matches!(report, Report::Failure { .. })));
    assert_eq!(fixture.count("no_server"), 0);
}

#[test]
fn a_connect_that_is_abandoned_before_its_submission_does_not_reach_a_later_socket() {
    let Some(mut fixture) = Fixture::new(|_| {}).over_ring() else { return };
    for _ in 0..3 {
        // The client is gone when the connect reaches the kernel, and the next one must not get its descriptors.
        let mut gone = fixture.client();
        fixture.until("the client", |fixture| {
            fixture.accept_only();
            (!fixture.tcp.connections.is_empty()).then_some(())
        });
        fixture.tcp.cut_all(&mut fixture.cx);
        fixture.tcp.reap(&mut fixture.cx);
        let mut client = fixture.client();
        client.write_all(b"next").unwrap();
        let mut server = fixture.until("the server of the second client", |fixture| {
            let (server, _) = {
                fixture.servers[0].set_nonblocking(true).unwrap();
                fixture.servers[0].accept().ok()?
            };
            server.set_nonblocking(false).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            // The connection of the first client may have been established before it was closed.
            let mut first = [0];
            (server.peek(&mut first).ok()? == 1).then_some(server)
        });
        fixture.expect(&mut server, b"next");
        let _ = fixture.end_of(&mut gone);
        drop((client, server));
        fixture.until("the end", |fixture| fixture.tcp.connections.is_empty().then_some(()));
    }
}

#[test]
fn a_connection_attempt_in_the_ring_ends_at_its_deadline() {
    // A listener whose queue is full does not complete further handshakes.
    let silent = bound();
    rustix::net::listen(&silent, 0).unwrap();
    let _fill: Vec<TcpStream> = (0..2)
        .filter_map(|_| {
            let address = silent.local_addr().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
        })
        .collect();
    let servers = vec![bound()];
    let targets = [target(&silent), target(&servers[0])];
    let Some(mut fixture) = Fixture::of(servers, &targets, |_| {}, |_| {}).over_ring() else { return };
    for _ in 0..2 {
        let mut client = fixture.client();
        client.write_all(b"x").unwrap();
        fixture.until("the client", |fixture| (!fixture.tcp.connections.is_empty()).then_some(()));
        let timeout = fixture.service.settings.load().options.connect_timeout;
        fixture.pass(timeout);
        let mut server = fixture.server_side();
        fixture.expect(&mut server, b"x");
        drop((client, server));
        fixture.until("the end", |fixture| fixture.tcp.connections.is_empty().then_some(()));
    }
}
