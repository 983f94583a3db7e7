//! Bodies that are spliced: their bytes and their bounds, and connections that end in the middle of them.

use super::fixture::{GET, OK};
use super::{Fixture, Side};
use std::io::{Read, Write};
use std::thread::JoinHandle;

/// Length of a body that is spliced in several pieces.
const BODY_BYTES: usize = 3 << 20;
/// Most bytes that wait for a blocked client: a pipe, and a buffer of the size of a pipe that the kernel made smaller.
const WAITING_BYTES_MAX: usize = 512 * 1024;

fn body(length: usize) -> Vec<u8> {
    (0..length as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn response(fields: &str, body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 200 OK\r\n", fields.as_bytes(), b"\r\n\r\n", body].concat()
}

fn with_length(length: usize) -> String {
    format!("Content-Length: {length}")
}

/// Sends bytes from a thread, because they do not fit into the buffers of the kernel.
fn send(side: &Side, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut stream = side.0.try_clone().unwrap();
    std::thread::spawn(move || stream.write_all(&bytes).unwrap())
}

impl Fixture {
    /// Begins a request, and returns its client and its server.
    fn ask(&mut self) -> (Side, Side) {
        let mut client = self.client();
        client.send(GET);
        let mut server = self.server();
        self.receive(&mut server, b"\r\n\r\n");
        (client, server)
    }

    /// Receives this number of bytes after the header section.
    fn body(&mut self, side: &mut Side, length: usize) -> Vec<u8> {
        let mut received = Vec::new();
        let mut piece = vec![0; 256 * 1024];
        let start = self.until("the whole body", |_| {
            if let Ok(read) = side.0.read(&mut piece) {
                received.extend_from_slice(&piece[..read]);
            }
            let end = received.windows(4).take(4096).position(|end| end == b"\r\n\r\n")? + 4;
            (received.len() >= end + length).then_some(end)
        });
        received.split_off(start)
    }

    /// Returns the number of descriptors of empty pipes, and closes them.
    fn pipes(&mut self) -> u32 {
        self.http.shared.buffers.shed_pipes()
    }

    /// Returns the number of bytes that wait for the only client.
    fn waiting(&self) -> usize {
        let keys = self.http.sessions.keys(|_| true);
        keys.iter().map(|&key| self.http.sessions[key].client().transport.pending()).sum()
    }
}

#[test]
fn a_body_of_known_length_is_spliced_and_both_connections_stay_open() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, mut server) = fixture.ask();
    let sent = body(BODY_BYTES);
    let sender = send(&server, response(&with_length(BODY_BYTES), &sent));
    assert!(fixture.body(&mut client, BODY_BYTES) == sent);
    sender.join().unwrap();
    assert_eq!(fixture.pipes(), 2, "the body was spliced, and the pipe is empty");
    assert_eq!(fixture.count("bytes_out"), BODY_BYTES as u64);
    client.send(GET);
    fixture.respond(&mut client, &mut server);
}

#[test]
fn bytes_after_a_spliced_body_are_not_sent_to_the_client() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, server) = fixture.ask();
    let sent = body(BODY_BYTES);
    let sender = send(&server, [&response(&with_length(BODY_BYTES), &sent)[..], OK].concat());
    assert!(fixture.body(&mut client, BODY_BYTES) == sent);
    sender.join().unwrap();
    assert_eq!(fixture.pipes(), 2);
    fixture.until("the pooled connection to be closed", |fixture| {
        fixture.http.shared.servers.is_empty().then_some(())
    });
    let _other = fixture.serve(&mut client);
}

#[test]
fn a_blocked_client_delays_the_server_and_gets_every_byte() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, server) = fixture.ask();
    let length = 32 << 20;
    let sent = body(length);
    let sender = send(&server, response(&with_length(length), &sent));
    fixture.until("the client to block", |fixture| (fixture.waiting() > 0).then_some(()));
    for _ in 0..1000 {
        fixture.run_loop();
        assert!(fixture.waiting() <= WAITING_BYTES_MAX, "{}", fixture.waiting());
    }
    assert!(!sender.is_finished());
    assert!(fixture.body(&mut client, length) == sent);
    sender.join().unwrap();
    assert_eq!((fixture.waiting(), fixture.pipes()), (0, 2));
}

#[test]
fn a_server_that_closes_in_the_middle_of_a_spliced_body_resets_the_client() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, server) = fixture.ask();
    let sent = body(BODY_BYTES);
    send(&server, response(&with_length(BODY_BYTES + 1), &sent));
    assert!(fixture.body(&mut client, BODY_BYTES) == sent);
    assert_eq!(fixture.pipes(), 2);
    drop(server);
    assert!(fixture.rest(&mut client).1.is_err());
    assert_eq!(fixture.count("requests_failed"), 1);
    fixture.check_empty();
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_spliced_body_leaves_no_bytes() {
    let mut fixture = Fixture::new(|_| {});
    let (client, server) = fixture.ask();
    let length = 32 << 20;
    let mut stream = server.0.try_clone().unwrap();
    let sender =
        std::thread::spawn(move || stream.write_all(&response(&with_length(length), &body(length))).is_err());
    fixture.until("the client to block", |fixture| (fixture.waiting() > 0).then_some(()));
    client.reset();
    fixture.check_empty();
    assert!(sender.join().unwrap(), "the connection to the server was closed");
    assert_eq!(fixture.pipes(), 0, "the pipe with bytes was closed");
}

#[test]
fn the_data_of_large_chunks_is_spliced() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, mut server) = fixture.ask();
    let sent = body(BODY_BYTES);
    let mut chunks = format!("3\r\nabc\r\n{BODY_BYTES:x}\r\n").into_bytes();
    chunks.extend_from_slice(&sent);
    chunks.extend_from_slice(b"\r\n4\r\ndefg\r\n0\r\n\r\n");
    let sender = send(&server, response("Transfer-Encoding: chunked", &chunks));
    let expected = [b"abc", &sent[..], b"defg"].concat();
    assert!(unchunked(&mut fixture, &mut client) == expected);
    sender.join().unwrap();
    assert_eq!(fixture.pipes(), 2);
    client.send(GET);
    fixture.respond(&mut client, &mut server);
}

#[test]
fn a_body_that_lasts_until_the_close_is_spliced() {
    let mut fixture = Fixture::new(|_| {});
    let (mut client, server) = fixture.ask();
    let sent = body(BODY_BYTES);
    let sender = send(&server, response("Connection: close", &sent));
    drop(server);
    assert!(unchunked(&mut fixture, &mut client) == sent);
    sender.join().unwrap();
    assert_eq!(fixture.pipes(), 2);
    let _other = fixture.serve(&mut client);
}

/// Receives a chunked body, and returns its data.
fn unchunked(fixture: &mut Fixture, side: &mut Side) -> Vec<u8> {
    let (mut received, mut piece) = (Vec::new(), vec![0; 256 * 1024]);
    fixture.until("the last chunk", |_| {
        if let Ok(read) = side.0.read(&mut piece) {
            received.extend_from_slice(&piece[..read]);
        }
        received.ends_with(b"\r\n0\r\n\r\n").then_some(())
    });
    let start = received.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let (mut decoder, mut data) = (evener_core::wire::chunked::Decoder::default(), Vec::new());
    let mut rest = &received[start..];
    while !decoder.is_done() {
        let (used, step) = decoder.step(rest).unwrap();
        if let evener_core::wire::chunked::Step::Data(bytes) = step {
            data.extend_from_slice(bytes);
        }
        rest = &rest[used..];
    }
    assert_eq!(rest, b"");
    data
}

#[test]
fn the_body_of_a_request_is_spliced_and_the_next_request_stays_in_the_socket() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let sent = body(BODY_BYTES);
    let header = format!("PUT /a HTTP/1.1\r\nHost: t\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    let sender = send(&client, [header.as_bytes(), &sent[..], GET].concat());
    let mut server = fixture.server();
    assert!(fixture.body(&mut server, BODY_BYTES) == sent);
    sender.join().unwrap();
    assert_eq!(fixture.pipes(), 2);
    assert_eq!(fixture.count("bytes_in"), (header.len() + BODY_BYTES) as u64);
    server.send(OK);
    fixture.receive(&mut client, b"ok");
    fixture.respond(&mut client, &mut server);
}

#[test]
fn a_request_with_a_spliced_body_is_not_sent_again() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let sent = body(BODY_BYTES);
    // Without the long field, the bytes of a full read are few enough to be stored for a retry.
    let dropped = "x".repeat(2000);
    let header = format!(
        "PUT /a HTTP/1.1\r\nHost: t\r\nConnection: drop\r\nDrop: {dropped}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    let request = [header.as_bytes(), &sent].concat();
    // The first request makes the kernel's window so large that the second one begins with a full read.
    let sender = send(&client, request.clone());
    let mut server = fixture.server();
    fixture.body(&mut server, BODY_BYTES);
    sender.join().unwrap();
    server.send(OK);
    fixture.receive(&mut client, b"ok");
    let (first, rest) = request.split_at(100_000);
    client.send(first);
    let sender = send(&client, rest.to_vec());
    fixture.body(&mut server, BODY_BYTES);
    sender.join().unwrap();
    drop(server);
    let response = fixture.receive(&mut client, b"</p>\n");
    assert_eq!(super::status(&response), "502");
    assert_eq!((fixture.pipes(), fixture.count("requests_retried")), (2, 0));
}
