//! Input in pieces gives the same result as the same input in one piece: header sections of HTTP, chunked
//! bodies, ClientHellos and PROXY headers. Otherwise two programs could read different requests from the same
//! bytes of a client.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use evener_core::wire::chunked::{CHUNK_END, Decoder, Step, emit_size};
use evener_core::wire::http::{HeaderLimits, Request, Response, Scan};
use evener_core::wire::{hello, proxy};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Limits that are small enough for generated header sections to exceed them.
const LIMITS: HeaderLimits = HeaderLimits { bytes_max: 400, fields_max: 8 };

/// Returns the ends of the pieces; the last end is the whole length.
fn cut(length: usize, cuts: &[Index]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
    ends.push(length);
    ends.sort_unstable();
    ends
}

/// Returns the parsed content of a header section, or the error, as text.
fn understand(section: &[u8], is_request: bool) -> String {
    if is_request {
        let mut request = Request::default();
        match request.parse(section, &LIMITS) {
            Err(error) => format!("{error:?}"),
            Ok(()) => format!("{:?} {request:?}", request.target(section)),
        }
    } else {
        let mut response = Response::default();
        match response.parse(section, &LIMITS) {
            Err(error) => format!("{error:?}"),
            Ok(()) => format!("{response:?}"),
        }
    }
}

fn read_section(bytes: &[u8], ends: &[usize], is_request: bool) -> String {
    let mut scan = if is_request { Scan::default() } else { Scan::of_response() };
    for end in ends {
        match scan.find(&bytes[..*end], &LIMITS) {
            Err(error) => return format!("{error:?}"),
            Ok(None) => {}
            Ok(Some(found)) => {
                return format!("{found:?} {}", understand(&bytes[found.start..found.end], is_request));
            }
        }
    }
    "incomplete".to_owned()
}

/// Returns the body, the number of bytes after which it was complete (if it was), and true if it is malformed.
fn read_chunks(bytes: &[u8], ends: &[usize]) -> (Vec<u8>, Option<usize>, bool) {
    let (mut decoder, mut body, mut used) = (Decoder::default(), Vec::new(), 0);
    for end in ends {
        loop {
            match decoder.step(&bytes[used..*end]) {
                Err(_) => return (body, None, true),
                Ok((taken, step)) => {
                    used += taken;
                    match step {
                        Step::Data(data) => body.extend_from_slice(data),
                        Step::More => break,
                        Step::Done => return (body, Some(used), false),
                    }
                }
            }
        }
    }
    (body, None, false)
}

fn field() -> impl Strategy<Value = String> {
    let known = select(vec![
        "Host: a.example",
        "Host:\tb.example:80 ",
        "Content-Length: 5",
        "Content-Length: 5, 5",
        "content-length: +5",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Connection: close, X-Token",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "X-Token: 1",
        "X : y",
        " folded",
        "Cookie: a=1; b=2",
        "X-Forwarded-For: 192.0.2.1",
        ":",
        "",
    ]);
    prop_oneof![
        4 => known.prop_map(str::to_owned),
        1 => "[A-Za-z-]{1,12}:[ -~]{0,30}",
        1 => "[A-Za-z-]{1,12}:[a-z]{80,200}",
    ]
}

fn section() -> impl Strategy<Value = Vec<u8>> {
    let start = select(vec![
        "GET / HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "\r\n\r\nGET / HTTP/1.1",
        "POST http://a.example/b?c HTTP/1.0",
        "OPTIONS * HTTP/1.1",
        "CONNECT a.example:443 HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/3.0",
        "HTTP/1.1 200 OK",
        "HTTP/1.0 404",
        "HTTP/1.1 20x OK",
    ]);
    (start, vec(field(), 0..12), vec(any::<u8>(), 0..20)).prop_map(|(start, fields, rest)| {
        let lines: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        [format!("{start}\r\n{lines}\r\n").into_bytes(), rest].concat()
    })
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (vec(any::<u8>(), 1..40), select(vec!["", ";a=b", " ;x", "\t", ";\u{1}"])).prop_map(
        |(data, extension)| [format!("{:x}{extension}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat(),
    );
    let end = select(vec!["0\r\n\r\n", "000\r\nX: y\r\n\r\n", "0;x\r\n\r\n", "0\r\n\n", ""]);
    (vec(chunk, 0..5), end, vec(any::<u8>(), 0..10))
        .prop_map(|(chunks, end, rest)| [chunks.concat(), end.as_bytes().to_vec(), rest].concat())
}

/// Changes, inserts or removes bytes.
fn mutate(bytes: &mut Vec<u8>, changes: &[(Index, u8, u8)]) {
    for (at, how, byte) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = at.index(bytes.len());
        match how % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, b"\r\n: ,\0"[usize::from(*byte) % 6]),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    prop_oneof![2 => Just(Vec::new()), 3 => vec(any::<(Index, u8, u8)>(), 1..4)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_header_section_is_parsed_the_same_in_any_pieces(
        (mut bytes, changes, cuts, is_request) in (section(), changes(), vec(any::<Index>(), 0..8), any::<bool>())
    ) {
        mutate(&mut bytes, &changes);
        let whole = read_section(&bytes, &[bytes.len()], is_request);
        prop_assert_eq!(&read_section(&bytes, &cut(bytes.len(), &cuts), is_request), &whole);
        let each: Vec<usize> = (0..=bytes.len()).collect();
        prop_assert_eq!(&read_section(&bytes, &each, is_request), &whole);
    }

    #[test]
    fn a_chunked_body_is_decoded_the_same_in_any_pieces(
        (mut bytes, changes, cuts) in (chunks(), changes(), vec(any::<Index>(), 0..8))
    ) {
        mutate(&mut bytes, &changes);
        let whole = read_chunks(&bytes, &[bytes.len()]);
        prop_assert_eq!(&read_chunks(&bytes, &cut(bytes.len(), &cuts)), &whole);
        let each: Vec<usize> = (0..=bytes.len()).collect();
        prop_assert_eq!(&read_chunks(&bytes, &each), &whole);
    }

    #[test]
    fn an_encoded_body_is_decoded_again(
        (parts, cuts) in (vec(vec(any::<u8>(), 1..300), 0..6), vec(any::<Index>(), 0..8))
    ) {
        let mut bytes = Vec::new();
        for part in &parts {
            emit_size(part.len(), &mut bytes);
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(CHUNK_END);
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let length = bytes.len();
        bytes.extend_from_slice(b"GET /");
        prop_assert_eq!(read_chunks(&bytes, &cut(bytes.len(), &cuts)), (parts.concat(), Some(length), false));
    }
}

/// Returns the result of `parse` for the smallest number of bytes for which it is not `None`.
fn first_result<T>(length: usize, parse: impl Fn(usize) -> Option<T>) -> Option<T> {
    (0..=length).find_map(parse)
}

/// Returns a ClientHello of `size` bytes in records of `record` bytes.
fn hello_of(size: usize, record: usize) -> Vec<u8> {
    let name = b"a.example";
    let list = [&[0, 0, name.len() as u8][..], name].concat();
    let list = [&(list.len() as u16).to_be_bytes()[..], &list].concat();
    let mut extensions = [&[0, 0, 0, list.len() as u8][..], &list].concat();
    let fixed = 2 + 32 + 1 + 4 + 2 + 2 + extensions.len() + 4;
    let padding = size.checked_sub(fixed).unwrap();
    extensions.extend([0, 21]);
    extensions.extend((padding as u16).to_be_bytes());
    extensions.extend(vec![0; padding]);
    let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    assert_eq!(body.len(), size);
    let message = [&[1][..], &(size as u32).to_be_bytes()[1..], &body].concat();
    let records = message.chunks(record);
    records.flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat()).collect()
}

#[test]
fn a_large_client_hello_is_parsed_the_same_in_any_pieces() {
    let sizes = [200, 2000, hello::HELLO_BYTES_MAX - 20, hello::HELLO_BYTES_MAX, hello::HELLO_BYTES_MAX + 1];
    for size in sizes {
        for record in [16_000, 1000, 100] {
            let bytes = hello_of(size, record);
            let result = |end: usize| match hello::parse(&bytes[..end]) {
                Ok(None) => None,
                other => Some(other),
            };
            let whole = result(bytes.len());
            assert_eq!(first_result(bytes.len(), result), whole, "{size} bytes in records of {record}");
        }
    }
}

#[test]
fn a_proxy_header_with_a_common_name_of_any_length_is_parsed_again() {
    // Certificates of clients may have long common names, and a proxy may report these names.
    let long = "n".repeat(1100);
    for length in [0, 60, 900, 980, 1000, 1024, 1100] {
        let extras = proxy::Extras {
            authority: Some(&long.as_bytes()[..length.min(255)]),
            ssl: Some(proxy::Ssl {
                version: Some(b"TLSv1.3"),
                cipher: Some(b"TLS_CHACHA20_POLY1305_SHA256"),
                common_name: Some(&long.as_bytes()[..length]),
                verified: true,
            }),
            ..proxy::Extras::default()
        };
        let mut written = Vec::new();
        proxy::emit_v2(None, proxy::Transport::Stream, &extras, &mut written);
        let read = proxy::parse(&written).map(|header| header.map(|header| header.extras));
        let read = read.unwrap_or_else(|error| panic!("a common name of {length} bytes: {error}")).unwrap();
        assert_eq!(read.ssl.unwrap().cipher, extras.ssl.unwrap().cipher, "a common name of {length} bytes");
    }
}
