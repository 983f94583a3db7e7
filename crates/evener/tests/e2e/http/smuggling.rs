//! Request smuggling: a message that two programs could parse differently is refused, or forwarded in one strict form,
//! regardless of how its bytes are split. Each message of the corpus is sent whole, in two pieces split at every position,
//! and byte by byte. All attempts share the server connections, so a smuggled request would corrupt another attempt.

mod requests;
mod responses;

use crate::harness::Evener;
use crate::harness::origin::{Message, Origin, Wire, run_http};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Number of threads that run attempts. They mostly wait.
const LANES: usize = 32;
/// Pause between two pieces. Usually, the first piece is read before the second piece arrives.
const PAUSE: Duration = Duration::from_millis(3);
/// Low limits, so that messages split at every position can exceed them.
const LIMITS: &str = "forwarded = \"off\", header_bytes_max = 1024, header_fields_max = 8";
/// A request that follows a refused request and must not be served.
const TAIL: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// The expected result of the bytes of one connection.
#[derive(Clone, Debug)]
struct Expected {
    /// The requests that the server receives and responds to, in this order.
    received: Vec<Vec<u8>>,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The connection is ready for another request.
    Stays,
    /// The connection is closed.
    Closes,
    /// A local response with this status follows, then the connection is closed.
    Refused(u16),
    /// Like `Refused`, after the client shut down its write side.
    HalfRefused(u16),
}

/// One or more messages of one connection.
#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    expected: Expected,
}

/// The position at which a message is split.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Nowhere,
    At(usize),
    Everywhere,
}

impl Cut {
    fn all(length: usize) -> Vec<Self> {
        let bytewise = (length < 300).then_some(Self::Everywhere);
        bytewise.into_iter().chain([Self::Nowhere]).chain((1..length).map(Self::At)).collect()
    }

    fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::Nowhere => vec![bytes],
            Self::At(at) => vec![&bytes[..at], &bytes[at..]],
            Self::Everywhere => bytes.chunks(1).collect(),
        }
    }
}

/// Writes the pieces, with a pause between them. The peer may close before the last one.
fn write_pieces(mut stream: &TcpStream, pieces: &[&[u8]]) {
    let pause = if pieces.len() > 2 { PAUSE / 6 } else { PAUSE };
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(pause);
        }
        if stream.write_all(piece).is_err() {
            return;
        }
    }
}

/// Sends the pieces over a new connection. The error describes a response that is not as expected.
fn attempt(port: u16, pieces: &[&[u8]], expected: &Expected) -> Result<(), String> {
    let mut wire = Wire::to(port);
    wire.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write_pieces(&wire.stream, pieces);
    for (number, received) in expected.received.iter().enumerate() {
        let response = wire.response("GET").map_err(|error| format!("response {number}: {error}"))?;
        if response.status() != 200 || response.body != *received {
            return Err(format!("response {number} is {:?} {:?}", response.line(), response.text()));
        }
        let last = number + 1 == expected.received.len();
        if response.closes() != (last && expected.then == Then::Closes) {
            return Err(format!(
                "response {number} has the connection field {:?}",
                response.field("Connection")
            ));
        }
    }
    if matches!(expected.then, Then::Stays | Then::HalfRefused(_)) {
        let _ = wire.stream.shutdown(Shutdown::Write);
    }
    match expected.then {
        Then::Stays | Then::Closes => {}
        Then::Refused(status) | Then::HalfRefused(status) => {
            let response = wire.response("GET").map_err(|error| format!("the local response: {error}"))?;
            if response.status() != status || !response.closes() {
                return Err(format!("refused with {:?}", response.header));
            }
        }
    }
    if wire.is_over() {
        Ok(())
    } else {
        Err(format!("unexpected bytes: {:?}", String::from_utf8_lossy(wire.left())))
    }
}

/// A server that responds to each request with the bytes that it received.
fn mirror() -> Origin {
    Origin::start(|wire, request| {
        let header = request.header.chars().map(|character| character as u8);
        let received: Vec<u8> = header.chain(request.body.iter().copied()).collect();
        wire.reply("200 OK", "", &received)
    })
}

/// Tries a case with every cut, and returns the failures.
fn try_case(port: u16, origin: &Origin, case: &Case) -> Vec<String> {
    let (cuts, next, wrong) = (Cut::all(case.bytes.len()), AtomicUsize::new(0), Mutex::new(Vec::new()));
    origin.forget();
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(cut) = cuts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = attempt(port, &cut.pieces(&case.bytes), &case.expected) {
                        wrong.lock().unwrap().push(format!("{}, cut {cut:?}: {error}", case.name));
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    let (count, expected) = (origin.requests().len(), cuts.len() * case.expected.received.len());
    if count != expected {
        let lines: std::collections::BTreeSet<String> = origin.lines().into_iter().collect();
        wrong.push(format!("{}: the server received {count} requests, not {expected}: {lines:?}", case.name));
    }
    wrong.extend(
        origin.faults().into_iter().map(|fault| format!("{}: the server reports {fault}", case.name)),
    );
    // Three failures of a case are enough to report.
    let more = wrong.len().saturating_sub(3);
    wrong.truncate(3);
    wrong.extend((more > 0).then(|| format!("{}: and {more} more", case.name)));
    wrong
}

/// Replaces the first occurrence of a word.
fn replace(bytes: &[u8], word: &[u8], by: &[u8]) -> Vec<u8> {
    match bytes.windows(word.len()).position(|window| window == word) {
        Some(at) => [&bytes[..at], by, &bytes[at + word.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

fn try_all(cases: &[Case]) {
    let origin = mirror();
    let (evener, listen): (Evener, u16) = run_http(&[&origin], LIMITS);
    let mut wrong = Vec::new();
    for case in cases {
        let mut case = case.clone();
        let port = listen.to_string();
        for received in &mut case.expected.received {
            *received = replace(received, b"LISTEN", port.as_bytes());
        }
        wrong.extend(try_case(listen, &origin, &case));
    }
    drop(evener);
    assert!(wrong.is_empty(), "of {} cases:\n{}", cases.len(), wrong.join("\n"));
}

/// The bytes of a random case with a few bytes replaced, removed, inserted or copied.
fn mutate(cases: &[Case], seed: u64) -> Vec<u8> {
    const INSERTIONS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\0",
        b":",
        b",",
        b"0",
        b";",
        b"chunked",
        b"\r\n\r\n",
        b"\xff",
    ];
    let mut random = seed;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit.max(1)
    };
    let mut bytes = cases[below(cases.len())].bytes.clone();
    for _ in 0..=below(3) {
        let at = below(bytes.len());
        let end = (at + below(6)).min(bytes.len());
        match below(4) {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, INSERTIONS[below(INSERTIONS.len())].iter().copied())),
            2 => drop(bytes.splice(at..end, INSERTIONS[below(INSERTIONS.len())].iter().copied())),
            _ => {
                let piece = bytes[at..end].to_vec();
                let to = below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
        }
    }
    bytes
}

/// Returns the header section if the request is not in strict form.
fn not_strict(request: &Message) -> Option<String> {
    let lines: Vec<&str> = request.header.trim_end_matches("\r\n").split("\r\n").collect();
    let control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    let is_not_strict = lines.iter().any(|line| line.bytes().any(control))
        || lines[0].split(' ').count() != 3
        || !lines[0].ends_with(" HTTP/1.1")
        || lines[1..]
            .iter()
            .any(|line| line.split_once(": ").is_none_or(|(name, _)| name.contains([' ', '\t'])))
        || request.fields("Host").len() != 1;
    is_not_strict.then(|| request.header.clone())
}

#[test]
fn mutated_requests_reach_the_server_in_strict_form_or_not_at_all() {
    const SEEDS: u64 = 6000;
    let all = [requests::refused_header_sections(), requests::refused_lengths(), requests::refused_chunks()]
        .concat();
    let cases = [all, requests::valid(), requests::sequences()].concat();
    let origin = mirror();
    let (evener, port) = run_http(&[&origin], "forwarded = \"off\"");
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..LANES as u64 {
            let (cases, wrong) = (&cases, &wrong);
            scope.spawn(move || {
                for seed in (lane..SEEDS).step_by(LANES) {
                    let bytes = mutate(cases, seed);
                    let mut wire = Wire::to(port);
                    let _ = wire.send(&bytes);
                    let _ = wire.stream.shutdown(Shutdown::Write);
                    // There may be any number of responses, and each is well formed.
                    if let Err(error) = read_responses(&mut wire) {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        wrong.lock().unwrap().push(format!("seed {seed}: {error}: {text:?}"));
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.extend(origin.faults());
    wrong.extend(origin.requests().iter().filter_map(not_strict));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(origin.requests().len() > 500 && evener.service_counter("s", "requests_bad") > 500);
}

fn read_responses(wire: &mut Wire) -> Result<(), String> {
    while !wire.is_over() {
        let response = wire.response("GET").map_err(|error| error.to_string())?;
        if ![200, 400, 404, 431, 501, 505].contains(&response.status()) {
            return Err(response.line().to_owned());
        }
    }
    Ok(())
}

#[test]
fn an_ambiguous_header_section_is_refused_with_any_split() {
    try_all(&requests::refused_header_sections());
}

#[test]
fn connect_with_a_body_is_refused_with_any_split() {
    try_all(&requests::connects());
}

#[test]
fn an_ambiguous_length_is_refused_with_any_split() {
    try_all(&requests::refused_lengths());
}

#[test]
fn an_ambiguous_chunk_is_refused_with_any_split() {
    try_all(&requests::refused_chunks());
}

#[test]
fn a_valid_request_reaches_the_server_in_one_form_with_any_split() {
    try_all(&requests::valid());
}

#[test]
fn consecutive_requests_are_separated_with_any_split() {
    try_all(&requests::sequences());
}
