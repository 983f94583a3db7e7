//! Tests of bodies, of other protocols, and of streams of HTTP/2.

use super::*;
use crate::http::http2::Http2;
use crate::io::testing::is_blocked;
use evener_core::Target;
use std::io::Read;

#[test]
fn bodies_are_framed_as_the_receiver_requires() {
    let check = |request: &[u8], sent: &str, response: &[u8], got: &str| {
        let mut fixture = Fixture::new(|_| {});
        let mut client = fixture.client();
        client.send(request);
        let mut server = fixture.server();
        let text = fixture.receive(&mut server, sent.as_bytes());
        assert!(text.ends_with(sent), "{text}");
        server.send(response);
        drop(server);
        let text = fixture.receive(&mut client, got.as_bytes());
        assert!(text.ends_with(got), "{text}");
    };
    let chunked = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    check(
        chunked,
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nto the end",
        "\r\na\r\nto the end\r\n0\r\n\r\n",
    );
    check(
        b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
        "\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "\r\n\r\nok",
    );
    check(
        b"HEAD / HTTP/1.1\r\nHost: t\r\n\r\n",
        "\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        "\r\n\r\n",
    );
}

#[test]
fn a_malformed_body_gets_400_and_the_connection_to_the_server_is_reset() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut server = fixture.server();
    fixture.receive(&mut server, b"abc\r\n");
    client.send(b"x\r\n");
    assert_eq!(fixture.status_at_end(&mut client), "400");
    assert_eq!(fixture.rest(&mut server).1, Err(ErrorKind::ConnectionReset));
}

#[test]
fn pipelined_requests_get_responses_in_their_order() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(&GET.repeat(2));
    let mut server = fixture.server();
    for body in ["first!", "second"] {
        let request = fixture.receive(&mut server, b"\r\n\r\n");
        assert_eq!(request.matches("GET /a").count(), 1, "{request}");
        server.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{body}").as_bytes());
        fixture.receive(&mut client, body.as_bytes());
    }
}

#[test]
fn interim_responses_are_passed_on_and_their_number_is_limited() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(GET);
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    server.send(b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n");
    let text = fixture.receive(&mut client, b"\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 103 "), "{text}");
    server.send(&b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(16));
    let text = fixture.receive(&mut client, b"</p>\n");
    assert_eq!((text.matches("HTTP/1.1 103 ").count(), text.matches("HTTP/1.1 502 ").count()), (15, 1));
}

#[test]
fn an_upgraded_connection_is_relayed_until_both_sides_end() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello");
    let text = fixture.receive(&mut client, b"hello");
    assert_eq!(status(&text), "101");
    client.send(b"to the server");
    fixture.receive(&mut server, b"to the server");
    assert_eq!((fixture.listing().open[0].stage, fixture.count("upgrades")), ("relaying", 1));
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fixture.rest(&mut server).1, Ok(()));
    server.send(b"still here");
    fixture.receive(&mut client, b"still here");
    drop(server);
    assert_eq!(fixture.rest(&mut client).1, Ok(()));
    fixture.check_empty();
    let recorded = ["connection_bytes", "response_bytes"].map(|name| fixture.recorded(name));
    assert_eq!(recorded, [1, 0], "the exchange counts as a relay, not as a response");
}

#[test]
fn only_relays_with_a_server_record_their_bytes() {
    let mut fixture = Fixture::with(|_| {}, |_| {});
    let (client, server) = (fixture.client(), fixture.server());
    drop((client, server));
    fixture.check_empty();
    assert_eq!(fixture.recorded("connection_bytes"), 1);

    // The queue of the server is full, so that the connection attempt does not end.
    let (server, address) = refusing();
    rustix::net::listen(&server, 0).unwrap();
    let Target::Ip(socket_address) = address else { unreachable!("the server has an IP address") };
    let _queued = TcpStream::connect(socket_address).unwrap();
    let mut fixture = Fixture::of(Vec::new(), &[address], |_| {}, |_| {});
    let _client = fixture.client();
    fixture.run_loop();
    assert_eq!(fixture.http.shared.servers.len(), 1);
    fixture.http.cut_all(&mut fixture.cx);
    fixture.check_empty();
    assert_eq!(fixture.recorded("connection_bytes"), 0);
}

#[test]
fn a_proxy_header_is_required_where_it_is_configured() {
    let new = || {
        Fixture::with(
            |_| {},
            |settings| {
                http(|_| {})(settings);
                settings.proxy_from = Some(Arc::new(Acl::new(&[], Access::Permit)));
            },
        )
    };
    let mut fixture = new();
    let mut client = fixture.client();
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 80\r\n");
    let address = fixture.until("the header to be read", |fixture| {
        let listing = fixture.listing();
        (listing.open[0].stage == "http/1 idle").then_some(listing.open[0].client)
    });
    assert_eq!(address.to_string(), "192.0.2.7");
    let _server = fixture.serve(&mut client);
    let mut fixture = new();
    let mut client = fixture.client();
    client.send(GET);
    assert_eq!(fixture.rest(&mut client).0, "");
    assert_eq!(fixture.service.live.counters.of(0).preamble_refused.read(), 1);
    let mut client = fixture.client();
    fixture.pass(crate::service::preamble::PREAMBLE);
    assert_eq!(fixture.rest(&mut client), (String::new(), Ok(())));
    assert_eq!(fixture.service.live.counters.of(0).preamble_timeouts.read(), 1);
}

/// Client of HTTP/2, and the bytes that it received so far.
struct Client2 {
    side: Side,
    received: Vec<u8>,
}

const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let header = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [header, payload.to_vec()].concat()
}

/// Request `GET https://t/a` (RFC 7541, appendix A) that ends its side of the stream.
fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, 5, stream, b"\x82\x87\x04\x02/a\x41\x01t")
}

impl Client2 {
    fn new(fixture: &mut Fixture) -> Self {
        let mut side = fixture.client();
        let limits = HttpSpec::default().limits;
        let key = fixture.http.sessions.keys(|_| true).into_iter().next_back().unwrap();
        fixture.http.sessions[key].become_http2(Http2::new(&limits));
        side.send(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat());
        Self { side, received: Vec::new() }
    }

    /// Returns the stream and the payload of the next frame of this kind; frames of other kinds are skipped.
    #[track_caller]
    fn expect(&mut self, fixture: &mut Fixture, kind: u8) -> (u32, Vec<u8>) {
        fixture.until("a frame", |_| {
            let mut piece = [0; 4096];
            match self.side.0.read(&mut piece) {
                Ok(0) => panic!("the connection ended"),
                Ok(length) => self.received.extend_from_slice(&piece[..length]),
                Err(error) => assert!(is_blocked(error.kind()), "{error}"),
            }
            while self.received.len() >= 9 {
                let word = |at: usize| u32::from_be_bytes(self.received[at..at + 4].try_into().unwrap());
                let (length, stream, got) = ((word(0) >> 8) as usize, word(5), self.received[3]);
                if self.received.len() < 9 + length {
                    break;
                }
                let payload = self.received.drain(..9 + length).skip(9).collect();
                if got == kind {
                    return Some((stream, payload));
                }
            }
            None
        })
    }
}

#[test]
fn each_stream_is_an_exchange() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = Client2::new(&mut fixture);
    client.side.send(&[get(1), get(3)].concat());
    let mut servers = [fixture.server(), fixture.server()];
    assert_eq!(fixture.listing().open[0].stage, "http/2 requests");
    for server in &mut servers {
        let request = fixture.receive(server, b"\r\n\r\n");
        assert!(request.starts_with("GET /a HTTP/1.1\r\n"), "{request}");
    }
    servers[1].send(OK);
    let (later, header) = client.expect(&mut fixture, HEADERS);
    assert_eq!(header[0], 0x88, "status 200");
    assert_eq!(client.expect(&mut fixture, DATA), (later, b"ok".to_vec()));
    servers[0].send(OK);
    let (earlier, _) = client.expect(&mut fixture, HEADERS);
    assert_eq!(earlier + later, 4, "each stream has its own response");
    fixture.until("both exchanges to end", |fixture| fixture.http.shared.exchanges.is_empty().then_some(()));
    assert_eq!(fixture.http.shared.servers.len(), 2, "both connections are pooled");
}

#[test]
fn a_failed_stream_does_not_affect_other_streams() {
    let mut fixture = Fixture::new(|spec| spec.retries = 0);
    let mut client = Client2::new(&mut fixture);
    client.side.send(&get(1));
    let mut first = fixture.server();
    fixture.receive(&mut first, b"\r\n\r\n");
    client.side.send(&get(3));
    let mut second = fixture.server();
    fixture.receive(&mut second, b"\r\n\r\n");
    first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    assert_eq!(client.expect(&mut fixture, DATA), (1, b"half".to_vec()));
    first.reset();
    assert_eq!(client.expect(&mut fixture, RST_STREAM).0, 1);
    second.send(OK);
    assert_eq!(client.expect(&mut fixture, DATA), (3, b"ok".to_vec()));
    assert_eq!(fixture.count("requests_failed"), 1);
}

#[test]
fn a_stream_without_a_response_in_time_gets_504() {
    let mut fixture = Fixture::new(|spec| spec.response_timeout = Duration::from_secs(3));
    let mut client = Client2::new(&mut fixture);
    client.side.send(&get(1));
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    fixture.pass(Duration::from_secs(3));
    let (stream, body) = client.expect(&mut fixture, DATA);
    assert_eq!(stream, 1);
    assert!(String::from_utf8_lossy(&body).contains("504"));
    assert_eq!(fixture.rest(&mut server).1, Err(ErrorKind::ConnectionReset));
}

#[test]
fn the_request_of_a_stream_that_its_client_resets_is_given_up() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = Client2::new(&mut fixture);
    client.side.send(&get(1));
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    client.side.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    assert_eq!(fixture.rest(&mut server).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(fixture.count("requests_aborted"), 1);
    assert_eq!(fixture.listing().open[0].stage, "http/2 idle");
}

#[test]
fn while_draining_a_client_of_http2_gets_goaway() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = Client2::new(&mut fixture);
    client.side.send(&get(1));
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    fixture.cx.draining = true;
    fixture.http.drain(&mut fixture.cx);
    client.expect(&mut fixture, GOAWAY);
    server.send(OK);
    assert_eq!(client.expect(&mut fixture, DATA), (1, b"ok".to_vec()));
    fixture.pass(Duration::from_secs(1));
    assert_eq!(fixture.rest(&mut client.side).1, Ok(()));
}
