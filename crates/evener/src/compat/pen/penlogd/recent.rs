//! Requests that pen reported recently, with their clients. Parses datagrams; it has no socket.

use std::collections::VecDeque;
use std::net::IpAddr;

/// Number of bytes of a request that are compared. pen's own penlogd stores this number of bytes, but compares
/// one more, so it never finds the client of a longer request.
const REQUEST_BYTES_MAX: usize = 99;

/// Maximum length of the name of a client: an address has at most 45 bytes.
const CLIENT_BYTES_MAX: usize = 99;

/// A request that pen forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForwardedRequest {
    client: Box<[u8]>,
    server: IpAddr,
    request: Box<[u8]>,
}

impl ForwardedRequest {
    /// Parses a datagram of pen, `+ client server request`.
    pub(super) fn parse(datagram: &[u8]) -> Option<Self> {
        let (client, rest) = word(datagram.strip_prefix(b"+")?)?;
        let (server, rest) = word(rest)?;
        let server: IpAddr = str::from_utf8(server).ok()?.parse().ok()?;
        let request = rest.trim_ascii_start().split(|byte| *byte == b'\n').next()?;
        let sane = (1..=CLIENT_BYTES_MAX).contains(&client.len()) && client.iter().all(u8::is_ascii_graphic);
        (sane && !request.is_empty()).then(|| Self {
            client: client.into(),
            server: server.to_canonical(),
            request: beginning(request).into(),
        })
    }
}

/// Returns the first word of a text, and the rest.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| *byte == b' ')?;
    Some(text.split_at(end))
}

fn beginning(request: &[u8]) -> &[u8] {
    &request[..request.len().min(REQUEST_BYTES_MAX)]
}

/// Returns the request in a line of a web server's log: the text between its first two quotation marks.
pub(super) fn request(line: &[u8]) -> Option<&[u8]> {
    let mut parts = line.splitn(3, |byte| *byte == b'"');
    let (_, request, _) = (parts.next()?, parts.next()?, parts.next()?);
    Some(request)
}

/// The most recent requests that pen reported, up to a maximum number.
#[derive(Debug)]
pub(super) struct RecentRequests {
    requests: VecDeque<ForwardedRequest>,
    max: usize,
}

impl RecentRequests {
    pub(super) fn new(max: usize) -> Self {
        Self { requests: VecDeque::new(), max }
    }

    pub(super) fn remember(&mut self, request: ForwardedRequest) {
        while !self.requests.is_empty() && self.requests.len() >= self.max {
            self.requests.pop_front();
        }
        if self.max > 0 {
            self.requests.push_back(request);
        }
    }

    /// Returns the client of the most recent request to this server that begins with `request`, because a web
    /// server may log a shorter part of a request than pen.
    fn client(&self, server: IpAddr, request: &[u8]) -> Option<&[u8]> {
        let (server, request) = (server.to_canonical(), beginning(request));
        let mut newest_first = self.requests.iter().rev();
        let found =
            newest_first.find(|known| known.server == server && known.request.starts_with(request))?;
        Some(&found.client)
    }

    /// Returns the line for the log: its first word is replaced by the client, if known, and it ends with a
    /// newline. Returns `None` for a line without a request.
    pub(super) fn line(&self, server: IpAddr, line: &[u8]) -> Option<Vec<u8>> {
        let client = self.client(server, request(line)?);
        let first = line.iter().position(|byte| *byte == b' ');
        let mut out = match (client, first) {
            (Some(client), Some(end)) => [client, &line[end..]].concat(),
            _ => line.to_vec(),
        };
        // Without a newline two lines would become one.
        if out.last() != Some(&b'\n') {
            out.push(b'\n');
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::{ForwardedRequest, RecentRequests};

    /// Handles datagrams, each with its sender, and checks the written lines.
    fn check(max: usize, datagrams: &[(&str, &[u8])], expected: &[&str]) {
        let (mut recent, mut written) = (RecentRequests::new(max), Vec::new());
        for (from, datagram) in datagrams {
            if datagram.starts_with(b"+") {
                ForwardedRequest::parse(datagram).into_iter().for_each(|request| recent.remember(request));
                continue;
            }
            let line =
                recent.line(from.parse().expect("an address"), datagram).unwrap_or_else(|| b"-".to_vec());
            written.push(String::from_utf8_lossy(&line).into_owned());
        }
        assert_eq!(written, expected);
        assert!(recent.requests.len() <= max);
    }

    const A: &str = "10.0.0.1";
    const MAPPED: &str = "::ffff:10.0.0.1";
    const SIX: &str = "2001:db8::1";

    #[test]
    fn the_newest_matching_request_gives_the_client() {
        check(
            9,
            &[
                (A, b"+ c1 10.0.0.1 GET /\n"),
                (A, b"+ c2 10.0.0.2 GET /\n"),
                (A, b"w - \"GET /\" 1\n"),
                (MAPPED, b"w - \"GET /\" 1"),
                (A, b"+ c3 10.0.0.1 GET /\n"),
                (A, b"w - \"GET /\" 1\n"),
                (A, b"w - \"GET /x\" 1\n"),
                (SIX, b"w - \"GET /\" 1\n"),
                (A, b"+ c6 2001:db8::1 GET /\n"),
                (SIX, b"w - \"GET /\" 1\n"),
            ],
            &[
                "c1 - \"GET /\" 1\n",
                "c1 - \"GET /\" 1\n",
                "c3 - \"GET /\" 1\n",
                "w - \"GET /x\" 1\n",
                "w - \"GET /\" 1\n",
                "c6 - \"GET /\" 1\n",
            ],
        );
    }

    #[test]
    fn a_full_ring_drops_the_oldest_request() {
        let reports: [(&str, &[u8]); 2] = [(A, b"+ c1 10.0.0.1 a"), (A, b"+ c2 10.0.0.1 b")];
        let lines: [(&str, &[u8]); 2] = [(A, b"w \"a\""), (A, b"w \"b\"")];
        let all = [reports, lines].concat();
        check(2, &all, &["c1 \"a\"\n", "c2 \"b\"\n"]);
        check(1, &all, &["w \"a\"\n", "c2 \"b\"\n"]);
        check(0, &all, &["w \"a\"\n", "w \"b\"\n"]);
    }

    #[test]
    fn long_requests_are_compared_by_their_beginning() {
        let long = "G".repeat(300);
        let report = format!("+ c 10.0.0.1 {long}\n");
        let line = format!("w \"{long}\"\n");
        check(9, &[(A, report.as_bytes()), (A, line.as_bytes())], &[&line.replace("w ", "c ")]);
    }

    #[test]
    fn invalid_lines_of_pen_are_ignored() {
        let long = format!("+ {} 10.0.0.1 a", "c".repeat(100));
        let wrong: [&[u8]; 9] = [
            b"+",
            b"+ a",
            b"+ a b c",
            b"+ a 10.0.0.1 ",
            b"+ a 10.0.0.1 \n",
            b"+ a\nb 10.0.0.1 c",
            b"+ a\x1b 10.0.0.1 c",
            b"+ \xff 10.0.0.1 c",
            long.as_bytes(),
        ];
        for datagram in wrong {
            assert_eq!(ForwardedRequest::parse(datagram), None, "{}", datagram.escape_ascii());
        }
        let whole = b"+ client 10.0.0.1 GET /\n";
        for length in 0..whole.len() {
            let _ = ForwardedRequest::parse(&whole[..length]);
        }
    }

    #[test]
    fn a_line_without_a_request_is_dropped() {
        check(9, &[(A, b""), (A, b"\n"), (A, b"w \"a"), (A, b"w\"a\"")], &["-", "-", "-", "w\"a\"\n"]);
    }
}
