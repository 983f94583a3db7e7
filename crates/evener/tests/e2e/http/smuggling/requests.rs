//! The corpus of requests (RFC 9110, RFC 9112), each with its expected result.

use super::{Case, Expected, TAIL, Then};

/// A request that is refused with this status. The bytes after the request are ignored.
fn refused(name: &'static str, status: u16, text: &str) -> Case {
    let bytes = latin(&format!("{text}{TAIL}"));
    Case { name, bytes, expected: Expected { received: Vec::new(), then: Then::Refused(status) } }
}

/// Bytes from a client, and the requests that the server receives.
fn served(name: &'static str, text: &str, received: &[&str], then: Then) -> Case {
    let received = received.iter().map(|request| latin(request)).collect();
    Case { name, bytes: latin(text), expected: Expected { received, then } }
}

/// One byte for each character, so that a text can contain any byte.
fn latin(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

/// A refused request with this start line.
fn line(name: &'static str, status: u16, line: &str) -> Case {
    refused(name, status, &format!("{line}\r\nHost: a\r\n\r\n"))
}

/// A refused request with these field lines behind `Host`. Each has its line ending.
fn lines(name: &'static str, status: u16, lines: &str) -> Case {
    refused(name, status, &format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"))
}

/// A refused request with this `Host`.
fn host(name: &'static str, host: &str) -> Case {
    refused(name, 400, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

pub(super) fn refused_header_sections() -> Vec<Case> {
    [ends_of_lines(), start_lines(), fields(), hosts(), limits()].concat()
}

fn ends_of_lines() -> Vec<Case> {
    vec![
        refused("LF after the start line", 400, "GET / HTTP/1.1\nHost: a\r\n\r\n"),
        refused("LF after a field", 400, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        refused("LF as the empty line", 400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        refused("only LF", 400, "GET / HTTP/1.1\nHost: a\n\n"),
        refused("LF before the start line", 400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        line("CR in the start line", 400, "GET /\r HTTP/1.1"),
        line("CR after the start line", 400, "GET / HTTP/1.1\r"),
        lines("CR in a value", 400, "X: a\rTransfer-Encoding: chunked\r\n"),
        lines("CR in a name", 400, "X\r: a\r\n"),
        lines("CR before CRLF", 400, "X: a\r\r\n"),
        lines("CR as the empty line", 400, "X: a\r\n\r"),
        refused("two empty lines first", 400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        lines("folded by a space", 400, "X: a\r\n b\r\n"),
        lines("folded by a tab", 400, "X: a\r\n\tTransfer-Encoding: chunked\r\n"),
        refused("a space before the first field", 400, "GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n"),
        lines("a line of one space", 400, "X: a\r\n \r\n"),
    ]
}

fn start_lines() -> Vec<Case> {
    vec![
        line("a space before the method", 400, " GET / HTTP/1.1"),
        line("two spaces", 400, "GET  / HTTP/1.1"),
        line("two spaces before the version", 400, "GET /  HTTP/1.1"),
        line("tabs for spaces", 400, "GET\t/\tHTTP/1.1"),
        line("a space after the version", 400, "GET / HTTP/1.1 "),
        line("a space in the target", 400, "GET /a b HTTP/1.1"),
        line("an invalid method", 400, "G(T / HTTP/1.1"),
        line("no method", 400, "/ HTTP/1.1"),
        line("HTTP/0.9", 400, "GET /"),
        refused("HTTP/0.9 without fields", 400, "GET /\r\n\r\n"),
        line("HTTP/0.9 with its version", 505, "GET / HTTP/0.9"),
        line("HTTP/2.0", 505, "GET / HTTP/2.0"),
        refused("the preface of HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        line("a version in lower case", 400, "GET / http/1.1"),
        line("a version with more digits", 400, "GET / HTTP/1.10"),
        line("a version with a leading zero", 400, "GET / HTTP/01.1"),
        line("a version without a point", 400, "GET / HTTP/1"),
        line("another protocol", 400, "GET / HTTPS/1.1"),
        line("NUL in the target", 400, "GET /\0 HTTP/1.1"),
        line("DEL in the target", 400, "GET /\x7f HTTP/1.1"),
        line("a character above ASCII in the target", 400, "GET /\u{e9} HTTP/1.1"),
        line("a fragment", 400, "GET /a#b HTTP/1.1"),
        line("a target that is not a path", 400, "GET a HTTP/1.1"),
        line("an asterisk without OPTIONS", 400, "GET * HTTP/1.1"),
        line("an authority without CONNECT", 400, "GET b:443 HTTP/1.1"),
        line("CONNECT with a path", 400, "CONNECT /a HTTP/1.1"),
        line("CONNECT without a port", 400, "CONNECT b HTTP/1.1"),
    ]
}

/// CONNECT has no body (RFC 9110, section 9.3.6). With a length, two programs would find different ends of the request.
pub(super) fn connects() -> Vec<Case> {
    vec![
        refused(
            "CONNECT with a length",
            400,
            "CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\nContent-Length: 36\r\n\r\n",
        ),
        refused(
            "CONNECT with chunks",
            400,
            "CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        lines("a space before the colon", 400, "X : a\r\n"),
        lines("a tab before the colon", 400, "X\t: a\r\n"),
        lines("a space in a name", 400, "X Y: a\r\n"),
        lines("no colon", 400, "X\r\n"),
        lines("no name", 400, ": a\r\n"),
        lines("a name with brackets", 400, "X[0]: a\r\n"),
        lines("a name above ASCII", 400, "X\u{e9}: a\r\n"),
        lines("NUL in a name", 400, "X\0: a\r\n"),
        lines("NUL in a value", 400, "X: a\0b\r\n"),
        lines("a control character in a value", 400, "X: a\x01b\r\n"),
        lines("DEL in a value", 400, "X: \x7f\r\n"),
        lines("a vertical tab in a value", 400, "X: \x0ba\r\n"),
        lines("a form feed in a value", 400, "X: a\x0c\r\n"),
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        refused("no Host", 400, "GET / HTTP/1.1\r\nX: y\r\n\r\n"),
        lines("two Hosts", 400, "Host: b\r\n"),
        lines("the same Host twice", 400, "Host: a\r\n"),
        lines("Host in two spellings", 400, "HOST: b\r\n"),
        host("a space in Host", "a b"),
        host("a list in Host", "a, b"),
        host("a path in Host", "a/b"),
        host("a user in Host", "u@a"),
        host("a port that is not a number", "a:b"),
        host("two ports", "a:1:2"),
        host("half an IPv6 address", "[::1"),
        host("a letter behind an IPv6 address", "[::1]a"),
        host("a quote in Host", "a\"b"),
        refused("a target's user", 400, "GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("a target without a host", 400, "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("a target of another scheme", 400, "GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("a target's malformed host", 400, "GET http://b\\c/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused("an absolute target and no Host", 400, "GET http://b/ HTTP/1.1\r\n\r\n"),
        refused(
            "an absolute target and a malformed Host",
            400,
            "GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        ),
    ]
}

fn limits() -> Vec<Case> {
    let long = |count: usize| "x".repeat(count);
    vec![
        line("a long target", 431, &format!("GET /{} HTTP/1.1", long(1000))),
        lines("a long field", 431, &format!("X: {}\r\n", long(1000))),
        refused("a start line without an end", 431, &long(1024)),
        lines("many fields", 431, &"X: y\r\n".repeat(8)),
    ]
}

/// A refused request with this body and these fields for its length.
fn body(name: &'static str, status: u16, fields: &str, body: &str) -> Case {
    refused(name, status, &format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}"))
}

pub(super) fn refused_lengths() -> Vec<Case> {
    [lengths(), codings()].concat()
}

fn lengths() -> Vec<Case> {
    let length = |name, value: &str| body(name, 400, &format!("Content-Length: {value}\r\n"), "hello");
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let other = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
    let coded = "0\r\n\r\n";
    vec![
        body("a length, then chunks", 400, both, coded),
        body("chunks, then a length", 400, other, coded),
        body("chunks and a length of 0", 400, "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", coded),
        body("the same length twice", 400, "Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        body("two lengths", 400, "Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        body("two lengths, spelt differently", 400, "Content-Length: 5\r\ncontent-length: 0\r\n", "hello"),
        length("a list of lengths", "5, 5"),
        length("a length with a plus", "+5"),
        length("a length with a minus", "-5"),
        length("a hexadecimal length", "0x5"),
        length("a length with a fraction", "5.0"),
        length("a length with a space", "5 0"),
        length("a length with a parameter", "5;"),
        length("a length in quotes", "\"5\""),
        length("an empty length", ""),
        length("a length of 20 digits", "18446744073709551621"),
        body("a length behind a vertical tab", 400, "Content-Length: \x0b5\r\n", "hello"),
        body("a space before the colon of a length", 400, "Content-Length : 5\r\n", "hello"),
    ]
}

fn codings() -> Vec<Case> {
    let coding = |name, status, value: &str| {
        body(name, status, &format!("Transfer-Encoding:{value}\r\n"), "5\r\nhello\r\n0\r\n\r\n")
    };
    let coded = "0\r\n\r\n";
    vec![
        coding("an unknown coding", 501, " xchunked"),
        coding("another unknown coding", 501, " cow"),
        coding("chunked twice", 501, " chunked, chunked"),
        coding("identity", 501, " identity"),
        coding("chunked before identity", 501, " chunked, identity"),
        coding("gzip before chunked", 501, " gzip, chunked"),
        coding("a coding with a parameter", 501, " chunked;q=1"),
        coding("a coding in quotes", 501, " \"chunked\""),
        coding("a list with an empty member", 501, " chunked,"),
        coding("an empty coding", 501, ""),
        coding("a vertical tab before the coding", 400, "\x0bchunked"),
        coding("a vertical tab behind the coding", 400, " chunked\x0b"),
        coding("NUL behind the coding", 400, " chunked\0"),
        // The value on the first line is empty, which is refused before the folded line is read.
        coding("a coding on a line of its own", 501, "\r\n chunked"),
        body(
            "the coding in two fields",
            400,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            coded,
        ),
        body(
            "chunked and identity in two fields",
            501,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            coded,
        ),
        body("a space before the colon of a coding", 400, "Transfer-Encoding : chunked\r\n", coded),
        body(
            "a length and a coding with a space",
            400,
            "Content-Length: 5\r\nTransfer-Encoding : chunked\r\n",
            coded,
        ),
        refused(
            "a coding in HTTP/1.0",
            400,
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        refused(
            "a coding in HTTP/1.0 with keep-alive",
            400,
            "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ]
}

pub(super) fn refused_chunks() -> Vec<Case> {
    let chunks = |name, text: &str| body(name, 400, "Transfer-Encoding: chunked\r\n", text);
    let sized = |name, size: &str| chunks(name, &format!("{size}hello\r\n0\r\n\r\n"));
    vec![
        sized("a size with a minus", "-5\r\n"),
        sized("a size with a plus", "+5\r\n"),
        sized("a size with 0x", "0x5\r\n"),
        sized("a size behind a space", " 5\r\n"),
        sized("a size that is not a number", "zz\r\n"),
        sized("an empty size", "\r\n"),
        sized("a size that overflows", "10000000000000005\r\n"),
        sized("a size that overflows by its last digit", "ffffffffffffffff0\r\n"),
        sized("a size with an underscore", "5_\r\n"),
        sized("a size in quotes", "\"5\"\r\n"),
        sized("LF after a size", "5\n"),
        sized("CR after a size", "5\r"),
        sized("CR CR LF after a size", "5\r\r\n"),
        sized("LF in an extension", "5;a\nb\r\n"),
        sized("CR in an extension", "5;a\rb\r\n"),
        sized("NUL in an extension", "5;\0\r\n"),
        sized("an extension that ends in LF", "5;a=b\n"),
        chunks("no CRLF behind the data", "5\r\nhello0\r\n\r\n"),
        chunks("LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        chunks("CR behind the data", "5\r\nhello\r0\r\n\r\n"),
        chunks("more data than the size", "5\r\nhello!\r\n0\r\n\r\n"),
        chunks("less data than the size", "6\r\nhello\r\n0\r\n\r\n"),
        chunks("LF after the last size", "0\n\r\n"),
        chunks("LF as the end", "0\r\n\n"),
        chunks("a trailer that ends in LF", "0\r\nX: y\n\r\n"),
        chunks("NUL in a trailer", "0\r\nX: \0\r\n\r\n"),
        chunks("CR in a trailer", "0\r\nX: a\rb\r\n\r\n"),
    ]
}

/// Bytes from a client, and the request that the server receives. The connection stays open.
fn stays(name: &'static str, text: &str, received: &str) -> Case {
    served(name, text, &[received], Then::Stays)
}

/// Like `stays`, with these field lines behind the start line and `Host`.
fn passes(name: &'static str, lines: &str, received: &str) -> Case {
    stays(
        name,
        &format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"),
        &format!("GET / HTTP/1.1\r\nHost: a\r\n{received}\r\n"),
    )
}

pub(super) fn valid() -> Vec<Case> {
    [valid_header_sections(), valid_hop_by_hop_fields(), valid_bodies()].concat()
}

fn valid_header_sections() -> Vec<Case> {
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let b = "GET /x?y HTTP/1.1\r\nHost: b:81\r\n\r\n";
    vec![
        stays("a plain request", plain, plain),
        stays("an empty line first", &format!("\r\n{plain}"), plain),
        stays("a later minor version", "GET / HTTP/1.7\r\nHost: a\r\n\r\n", plain),
        stays(
            "Host in another letter case, after a field",
            "GET / HTTP/1.1\r\nx: y\r\nhOST:a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n",
        ),
        stays(
            "an empty Host",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:LISTEN\r\n\r\n",
        ),
        stays("an absolute target", "GET http://b:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b),
        stays("an absolute target of https", "GET HTTPS://b:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b),
        stays("an absolute target without a path", "GET http://a HTTP/1.1\r\nHost: b\r\n\r\n", plain),
        stays(
            "two slashes",
            "GET //b/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET //b/x HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        stays(
            "OPTIONS of all",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        stays(
            "an unknown method",
            "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
            "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        stays(
            "an IPv6 Host",
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        ),
        passes("space around a value", "X: \t y z\t \r\n", "X: y z\r\n"),
        passes("no space, and no value", "X:y\r\nEmpty:\r\n", "X: y\r\nEmpty: \r\n"),
        passes("a tab inside a value", "X: y\tz\r\n", "X: y\tz\r\n"),
        passes("characters above ASCII in a value", "X: \u{e9}\u{ff}\r\n", "X: \u{e9}\u{ff}\r\n"),
        passes(
            "fields whose names resemble others",
            "Transfer_Encoding: chunked\r\nX_Forwarded_For: 1.2.3.4\r\nX_Y: 1\r\nContent-Length-: 5\r\n",
            "X_Y: 1\r\nContent-Length-: 5\r\n",
        ),
    ]
}

fn valid_hop_by_hop_fields() -> Vec<Case> {
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    vec![
        passes(
            "Connection names a field",
            "Connection: X-Secret, keep-alive\r\nX-Secret: 1\r\nY: 2\r\n",
            "Y: 2\r\n",
        ),
        passes("Connection names Host", "Connection: host\r\n", ""),
        passes("Connection names Cookie", "Connection: Cookie\r\nCookie: a=b\r\n", "Cookie: a=b\r\n"),
        stays(
            "Connection names Content-Length",
            &format!("{post}Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello"),
            &format!("{post}Content-Length: 5\r\n\r\nhello"),
        ),
        stays(
            "Connection names Transfer-Encoding",
            &format!(
                "{post}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            ),
            &format!("{post}Transfer-Encoding: chunked\r\n\r\nhello"),
        ),
        passes(
            "hop-by-hop fields",
            "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nY: 2\r\n",
            "Y: 2\r\n",
        ),
        passes(
            "an upgrade to h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "",
        ),
        passes("an upgrade to h2c among others", "Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n", ""),
        passes("an upgrade without Connection", "Upgrade: websocket\r\n", ""),
        passes("two upgrades", "Connection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n", ""),
        passes(
            "an upgrade",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nY: 2\r\n",
            "Y: 2\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        ),
        passes("forwarded fields", "X-Forwarded-For: b\r\nforwarded: for=b\r\nX-FORWARDED-HOST: b\r\n", ""),
        served(
            "HTTP/1.0",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            &["GET / HTTP/1.1\r\nHost: a\r\n\r\n"],
            Then::Closes,
        ),
        served(
            "HTTP/1.0 without Host",
            "GET / HTTP/1.0\r\n\r\n",
            &["GET / HTTP/1.1\r\nHost: 127.0.0.1:LISTEN\r\n\r\n"],
            Then::Closes,
        ),
    ]
}

fn valid_bodies() -> Vec<Case> {
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let length = |name, value: &str| {
        stays(
            name,
            &format!("{post}Content-Length:{value}\r\n\r\nhello"),
            &format!("{post}Content-Length: 5\r\n\r\nhello"),
        )
    };
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let chunks = |name, text: &str| stays(name, &format!("{chunked}{text}"), &format!("{chunked}hello"));
    vec![
        length("a body", " 5"),
        length("a length with leading zeros", " 0005"),
        length("a length between tabs", "\t5\t"),
        stays(
            "an empty body",
            &format!("{post}Content-Length: 0\r\n\r\n"),
            &format!("{post}Content-Length: 0\r\n\r\n"),
        ),
        passes("GET with a body", "Content-Length: 5\r\n\r\nhello", "Content-Length: 5\r\n\r\nhello")
            .without_last_line(),
        chunks("a chunk", "5\r\nhello\r\n0\r\n\r\n"),
        chunks("two chunks", "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n"),
        chunks("leading zeros of sizes", "0005\r\nhello\r\n000\r\n\r\n"),
        chunks("extensions", "2;a\r\nhe\r\n3 ; b=\"c;d\"\r\nllo\r\n0;e\r\n\r\n"),
        chunks("trailers", "5\r\nhello\r\n0\r\nX: y\r\nContent-Length: 7\r\nHost: b\r\n\r\n"),
        chunks("a last chunk with many zeros", "5\r\nhello\r\n00000000000000000000\r\n\r\n"),
        stays(
            "a body that looks like chunks",
            &format!("{post}Content-Length: 5\r\n\r\n0\r\n\r\n"),
            &format!("{post}Content-Length: 5\r\n\r\n0\r\n\r\n"),
        ),
        stays(
            "a tab before the coding, in another letter case",
            &format!("{post}Transfer-Encoding:\tChUnKeD \r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            &format!("{chunked}hello"),
        ),
        stays("an empty body in chunks", &format!("{chunked}0\r\n\r\n"), &chunked),
        stays(
            "Expect",
            &format!("{post}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
            &format!("{post}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
        ),
    ]
}

impl Case {
    /// Removes the empty line behind a body.
    fn without_last_line(mut self) -> Self {
        for bytes in std::iter::once(&mut self.bytes).chain(&mut self.expected.received) {
            bytes.truncate(bytes.len() - 2);
        }
        self
    }
}

pub(super) fn sequences() -> Vec<Case> {
    let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let bad = "GET / HTTP/1.1\r\nHost : a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let body = format!("{post}Content-Length: 5\r\n\r\nhello");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let inner = format!("{post}Content-Length: {}\r\n\r\n{}", get("inner").len(), get("inner"));
    vec![
        served(
            "three requests",
            &[get("1"), get("2"), get("3")].concat(),
            &[&get("1"), &get("2"), &get("3")],
            Then::Stays,
        ),
        served(
            "an empty line between two requests",
            &format!("{}\r\n{}", get("1"), get("2")),
            &[&get("1"), &get("2")],
            Then::Stays,
        ),
        served(
            "bodies between requests",
            &format!("{body}{}{body}", get("1")),
            &[&body, &get("1"), &body],
            Then::Stays,
        ),
        served(
            "chunks between requests",
            &format!("{chunked}5\r\nhello\r\n0\r\nX: y\r\n\r\n{}", get("1")),
            &[&format!("{chunked}hello"), &get("1")],
            Then::Stays,
        ),
        served("a request inside a body", &format!("{inner}{}", get("2")), &[&inner, &get("2")], Then::Stays),
        served(
            "a refused request behind a valid one",
            &format!("{}{bad}{TAIL}", get("1")),
            &[&get("1")],
            Then::Refused(400),
        ),
        served(
            "bytes behind a body",
            &format!("{body}xxx{TAIL}"),
            &[&body, "xxxGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"],
            Then::Stays,
        ),
        served("a request behind the last", &format!("{close}{TAIL}"), &[&get("")], Then::Closes),
        served(
            "a request behind the last of HTTP/1.0",
            &format!("GET / HTTP/1.0\r\nHost: a\r\n\r\n{TAIL}"),
            &[&get("")],
            Then::Closes,
        ),
        served("half a body", &format!("{post}Content-Length: 50\r\n\r\nhello"), &[], Then::Stays)
            .refused_at_its_end(),
        served("half a chunk", &format!("{chunked}50\r\nhello"), &[], Then::Stays).refused_at_its_end(),
        served("half a header section", "GET / HTTP/1.1\r\nHost: a\r\n", &[], Then::Stays),
    ]
}

impl Case {
    /// The request is refused because the client ends the stream before the request is complete.
    fn refused_at_its_end(self) -> Self {
        Self { expected: Expected { then: Then::HalfRefused(400), ..self.expected }, ..self }
    }
}
