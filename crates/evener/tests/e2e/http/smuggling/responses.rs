//! Responses of malicious or broken servers: the client gets 502, or its connection is cut off, and the next request over
//! the same server connection gets its own response.

use super::Cut;
use crate::harness::origin::{Message, Origin, Wire, hang_up, run_http};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// The local error page with the status 502.
    BadGateway,
    /// A connection that ends in the middle of the response.
    Cut,
    /// A response with this status and body.
    Reply(u16, &'static str),
}

/// The state of the server's connection after its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Afterwards {
    Stays,
    HangsUp,
}

struct Case {
    name: &'static str,
    method: &'static str,
    bytes: String,
    gets: Gets,
    afterwards: Afterwards,
}

fn case(name: &'static str, bytes: &str, gets: Gets) -> Case {
    Case { name, method: "GET", bytes: bytes.to_owned(), gets, afterwards: Afterwards::Stays }
}

fn bad(name: &'static str, bytes: &str) -> Case {
    case(name, bytes, Gets::BadGateway)
}

/// A malformed response of `hello` with these fields.
fn fields(name: &'static str, fields: &str) -> Case {
    bad(name, &format!("HTTP/1.1 200 OK\r\n{fields}\r\nhello"))
}

fn cut(name: &'static str, chunks: &str) -> Case {
    case(name, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), Gets::Cut)
}

impl Case {
    fn hangs_up(self) -> Self {
        Self { afterwards: Afterwards::HangsUp, ..self }
    }

    fn with_head_request(self) -> Self {
        Self { method: "HEAD", ..self }
    }
}

fn bad_header_sections() -> Vec<Case> {
    vec![
        fields(
            "two lengths and chunks",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        ),
        fields("two lengths", "Content-Length: 5\r\nContent-Length: 50\r\n"),
        fields("two lengths in LF lines", "Content-Length: 5\nContent-Length: 50\n"),
        fields("a list of lengths", "Content-Length: 5, 50\r\n"),
        fields("a length with a plus", "Content-Length: +5\r\n"),
        fields("a length with a minus", "Content-Length: -5\r\n"),
        fields("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        fields("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        fields("CR in a value", "X: a\rSet-Cookie: evil=1\r\nContent-Length: 5\r\n"),
        fields("CR before CRLF", "X: a\r\r\nContent-Length: 5\r\n"),
        fields("NUL in a value", "X: a\0b\r\nContent-Length: 5\r\n"),
        fields("a folded field", "X: a\r\n b\r\nContent-Length: 5\r\n"),
        fields("a space before the colon", "Content-Length : 5\r\n"),
        fields("no colon", "hello\r\nContent-Length: 5\r\n"),
        fields("a long header section", &format!("X: {}\r\nContent-Length: 5\r\n", "x".repeat(1024))),
        bad("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        bad("another protocol", "ICY 200 OK\r\nContent-Length: 0\r\n\r\n"),
        bad("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
        bad("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
        bad("a status below 100", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
        bad("CR in the reason", "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n"),
        bad("a body without a header section", "<html>hello</html>\r\n\r\n"),
        bad(
            "101 without a request to upgrade",
            "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nevil",
        ),
        bad("101 to h2c", "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
        bad(
            "a malformed interim response",
            "HTTP/1.1 103 Early\r\nX : y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        bad("half a header section", "HTTP/1.1 200 OK\r\nContent-Le").hangs_up(),
    ]
}

/// Responses that RFC 9112 lets a recipient repair. Each is followed by a response that belongs to no request.
fn repaired() -> Vec<Case> {
    let hello = Gets::Reply(200, "hello");
    let with = |name, header: &str, body: &str| case(name, &format!("{header}{body}{EVIL}"), hello);
    const LENGTHS: &str = "Content-Length: 5\r\nContent-Length: 5\r\n";
    const BOTH: &str = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        with("LF lines", "HTTP/1.1 200 OK\nX: y\nContent-Length: 5\n\n", "hello"),
        with("LF lines and chunks", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", CHUNKS),
        with("LF in one line", "HTTP/1.1 200 OK\r\nX: a\nY: b\r\nContent-Length: 5\r\n\r\n", "hello"),
        with("LF as the end", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n", "hello"),
        with("the same length twice", &format!("HTTP/1.1 200 OK\r\n{LENGTHS}\r\n"), "hello"),
        with("a list of one length", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", "hello"),
        with("a length and chunks", &format!("HTTP/1.1 200 OK\r\n{BOTH}\r\n"), CHUNKS),
        with(
            "a shorter length and chunks",
            "HTTP/1.1 200 OK\nContent-Length: 1\nTransfer-Encoding: chunked\n\n",
            CHUNKS,
        ),
        with("chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKS),
        with(
            "chunks in HTTP/1.0 with keep-alive",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
            CHUNKS,
        ),
        case("a length and no chunks", &format!("HTTP/1.1 200 OK\r\n{BOTH}\r\nhello{EVIL}"), Gets::Cut),
        case(
            "a length and chunks for HEAD",
            &format!("HTTP/1.1 200 OK\r\n{BOTH}\r\n{EVIL}"),
            Gets::Reply(200, ""),
        )
        .with_head_request(),
        case(
            "a length and chunks of 304",
            &format!("HTTP/1.1 304 A\r\n{BOTH}\r\n{EVIL}"),
            Gets::Reply(304, ""),
        ),
    ]
}

fn bad_bodies() -> Vec<Case> {
    vec![
        cut("a size that is not a number", "zz\r\nhello\r\n0\r\n\r\n"),
        cut("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        cut("a size that overflows", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        cut("LF after a size", "5\nhello\r\n0\r\n\r\n"),
        cut("LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        cut("no CRLF behind the data", "5\r\nhello0\r\n\r\n"),
        cut("LF as the end", "5\r\nhello\r\n0\r\n\n"),
        cut("a trailer that ends in LF", "5\r\nhello\r\n0\r\nX: y\n\r\n"),
        cut("half a chunk", "50\r\nhello").hangs_up(),
        cut("no last chunk", "5\r\nhello\r\n").hangs_up(),
        cut("half an end", "5\r\nhello\r\n0\r\n").hangs_up(),
        case("half a body", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", Gets::Cut).hangs_up(),
    ]
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

fn with_extra_bytes() -> Vec<Case> {
    let hello = Gets::Reply(200, "hello");
    let with_evil = |name, bytes: &str, gets| case(name, &format!("{bytes}{EVIL}"), gets);
    vec![
        with_evil(
            "a response behind the response",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            hello,
        ),
        with_evil(
            "a response behind an empty response",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Gets::Reply(200, ""),
        ),
        with_evil(
            "a response behind the chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            hello,
        ),
        with_evil("a body behind 204", "HTTP/1.1 204 None\r\n\r\n", Gets::Reply(204, "")),
        with_evil(
            "a body behind 304",
            "HTTP/1.1 304 None\r\nContent-Length: 45\r\n\r\n",
            Gets::Reply(304, ""),
        ),
        with_evil(
            "a body behind 204 with a length",
            "HTTP/1.1 204 None\r\nContent-Length: 45\r\n\r\n",
            Gets::Reply(204, ""),
        ),
        with_evil("a body for HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n", Gets::Reply(200, ""))
            .with_head_request(),
        with_evil(
            "chunks for HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Gets::Reply(200, ""),
        )
        .with_head_request(),
        case(
            "an empty line behind the response",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\r\n",
            hello,
        ),
        case(
            "extensions and trailers",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
            hello,
        ),
    ]
}

/// A server that responds to `/N/AT` with the bytes of case N, split at AT, and to other requests correctly.
fn malicious(cases: Arc<Vec<Case>>, done: Arc<AtomicUsize>) -> Origin {
    Origin::start(move |wire, request| {
        let words: Vec<&str> = request.target().split('/').collect();
        let ["", number, at] = words[..] else {
            return wire.reply("200 OK", "", request.target().as_bytes());
        };
        let case: &Case = &cases[number.parse::<usize>().unwrap()];
        let cut = at.parse().map_or(Cut::Nowhere, Cut::At);
        super::write_pieces(&wire.stream, &cut.pieces(case.bytes.as_bytes()));
        done.fetch_add(1, Ordering::Release);
        if case.afterwards == Afterwards::HangsUp { hang_up() } else { Ok(()) }
    })
}

fn check_response(case: &Case, got: io::Result<Message>) -> Result<(), String> {
    match (case.gets, got) {
        (Gets::BadGateway, Ok(response)) if response.status() == 502 => Ok(()),
        (Gets::Reply(status, body), Ok(response))
            if response.status() == status && response.text() == body =>
        {
            Ok(())
        }
        // A close or a reset shows the client that the response is truncated. Invalid data would mean that a
        // malformed chunk was forwarded.
        (Gets::Cut, Err(error)) if error.kind() != io::ErrorKind::InvalidData && !is_timeout(&error) => {
            Ok(())
        }
        (_, Ok(response)) => Err(format!("got {:?} {:?}", response.header, response.text())),
        (_, Err(error)) => Err(format!("got {error}")),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn attempt(port: u16, number: usize, case: &Case, cut: Cut, done: &AtomicUsize) -> Result<(), String> {
    let at = if let Cut::At(at) = cut { at.to_string() } else { "whole".into() };
    let before = done.load(Ordering::Acquire);
    let mut victim = Wire::to(port);
    victim.stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    check_response(case, victim.ask(case.method, &format!("/{number}/{at}"), ""))?;
    // The next request is sent only after the server has sent all bytes of the case.
    crate::harness::wait_until("the server to send all bytes", || {
        (done.load(Ordering::Acquire) > before).then_some(())
    });
    let after = if case.gets == Gets::Cut { Wire::to(port) } else { victim };
    for (turn, mut wire) in [after, Wire::to(port)].into_iter().enumerate() {
        let target = format!("/good/{number}/{at}/{turn}");
        let response =
            wire.ask("GET", &target, "").map_err(|error| format!("the next response, {turn}: {error}"))?;
        if response.text() != target {
            return Err(format!("the next response, {turn}, is {:?}", response.text()));
        }
    }
    Ok(())
}

/// Each lane has a separate server and runs one attempt at a time, so no other request can follow the malicious
/// response.
fn try_all(cases: Vec<Case>) {
    let cases = Arc::new(cases);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let lane = |lane: usize| {
            let done = Arc::new(AtomicUsize::new(0));
            let origin = malicious(Arc::clone(&cases), Arc::clone(&done));
            let (_evener, port) = run_http(&[&origin], super::LIMITS);
            let mut wrong = Vec::new();
            for (number, case) in cases.iter().enumerate().filter(|(number, _)| number % 4 == lane) {
                let cuts =
                    Cut::all(case.bytes.len()).into_iter().filter(|cut| !matches!(cut, Cut::Everywhere));
                let failures = cuts.filter_map(|cut| {
                    let tried = attempt(port, number, case, cut, &done);
                    tried.err().map(|error| format!("{}, cut {cut:?}: {error}", case.name))
                });
                wrong.extend(failures.take(3));
            }
            wrong
        };
        let lanes: Vec<_> = (0..4).map(|number| scope.spawn(move || lane(number))).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "of {} cases:\n{}", cases.len(), wrong.join("\n"));
}

#[test]
fn a_malformed_header_section_of_a_response_gives_502_with_any_split() {
    try_all(bad_header_sections());
}

#[test]
fn a_repaired_response_is_one_response_with_any_split() {
    try_all(repaired());
}

#[test]
fn a_malformed_body_of_a_response_is_cut_off() {
    try_all(bad_bodies());
}

#[test]
fn extra_bytes_behind_a_response_reach_no_client() {
    try_all(with_extra_bytes());
}
