//! One request of a check and its response. The response is parsed with the same rules and limits as the
//! responses to requests of clients: a server does not pass if clients would get status 502 instead of its
//! response.

use super::body::{ExpectedBody, Received};
use super::in_words;
use crate::planes::RunningService;
use arc_swap::ArcSwap;
use evener_core::snapshot::Snapshot;
use evener_core::wire::chunked::{Decoder, Step};
use evener_core::wire::http::{Framing, HeaderLimits, Response, Scan};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Maximum number of interim responses.
const INTERIMS_MAX: u32 = 16;
/// Maximum size of one read.
const READ_BYTES: usize = 8 * 1024;
/// Limits for pools that no http service uses: the largest configurable limits.
const LIMITS_MAX: HeaderLimits = HeaderLimits { bytes_max: 64 * 1024, fields_max: 10_000 };

/// Requirements that the response must meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) status: &'a BTreeSet<u16>,
    pub(super) body: ExpectedBody<'a>,
    pub(super) limits: HeaderLimits,
}

/// Returns the limits of header sections for the servers of a pool: the largest limits of all http services
/// that use the pool, so that no service loses a server that it could use.
pub(crate) fn header_limits<'a>(
    services: impl Iterator<Item = &'a RunningService>,
    pool: &Arc<ArcSwap<Snapshot>>,
) -> HeaderLimits {
    let limits = services.filter_map(RunningService::of_workers).filter_map(|service| {
        let settings = service.settings.load();
        let uses = settings.backends.iter().any(|backend| Arc::ptr_eq(&backend.pool, pool));
        settings.http.as_ref().filter(|_| uses).map(|http| http.limits)
    });
    let wider = |a: HeaderLimits, b: HeaderLimits| HeaderLimits {
        bytes_max: a.bytes_max.max(b.bytes_max),
        fields_max: a.fields_max.max(b.fields_max),
    };
    limits.reduce(wider).unwrap_or(LIMITS_MAX)
}

/// Sends a request and judges the response. `Err` describes the failure.
pub(super) async fn exchange<S>(mut stream: S, request: &[u8], expected: &Expected<'_>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await.map_err(|error| failed(&error))?;
    stream.flush().await.map_err(|error| failed(&error))?;
    let mut reader = Reader { stream, input: Vec::new() };
    let method = request.split(|&byte| byte == b' ').next().unwrap_or_default();
    let (status, framing) = reader.final_header(method, &expected.limits).await?;
    if !expected.status.contains(&status) {
        return Err(format!("http: status {status}"));
    }
    match expected.body {
        ExpectedBody { text: None, regex: None, digest: None } => Ok(()),
        body => reader.judge(body, framing).await,
    }
}

fn failed(error: &io::Error) -> String {
    format!("http: {}", in_words(error))
}

fn unusable(why: impl std::fmt::Display) -> String {
    format!("http: clients would get 502 for this response: {why}")
}

/// A stream, and the received bytes that have not been parsed yet.
struct Reader<S> {
    stream: S,
    input: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// Reads once. Returns false at the end of the stream.
    async fn more(&mut self) -> Result<bool, String> {
        let mut buffer = [0; READ_BYTES];
        let length = self.stream.read(&mut buffer).await.map_err(|error| failed(&error))?;
        self.input.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// Reads the header section of the final response, and returns the status and the framing.
    async fn final_header(
        &mut self,
        method: &[u8],
        limits: &HeaderLimits,
    ) -> Result<(u16, Option<Framing>), String> {
        let mut response = Response::default();
        for _ in 0..=INTERIMS_MAX {
            let length = self.find_header(limits).await?;
            response.parse(&self.input[..length], limits).map_err(unusable)?;
            self.input.drain(..length);
            match response.status() {
                101 => return Err(unusable("status 101, but the check did not request an upgrade")),
                100..200 => {}
                status => return Ok((status, response.framing(method))),
            }
        }
        Err(unusable(format!("more than {INTERIMS_MAX} interim responses")))
    }

    /// Reads until the header section is complete, and returns its length.
    async fn find_header(&mut self, limits: &HeaderLimits) -> Result<usize, String> {
        let mut scan = Scan::of_response();
        loop {
            match scan.find(&self.input, limits).map_err(unusable)? {
                Some(found) if found.start > 0 => {
                    return Err(unusable("an empty line before the status line"));
                }
                Some(found) => return Ok(found.end),
                None if self.more().await? => {}
                None if self.input.is_empty() => return Err("http: closed without a response".into()),
                None => return Err(unusable("the connection was closed within the header section")),
            }
        }
    }

    /// Reads the body until its verdict is certain.
    async fn judge(&mut self, expected: ExpectedBody<'_>, framing: Option<Framing>) -> Result<(), String> {
        let (mut received, mut piece) = (Received::new(expected), Vec::new());
        let mut body = Body::framed(framing);
        loop {
            let is_over = body.take(&mut self.input, &mut piece)?;
            if let Some(verdict) = received.add(&piece) {
                return verdict;
            }
            piece.clear();
            if is_over {
                return received.end();
            }
            if !self.more().await? {
                return match body {
                    Body::Close => received.end(),
                    _ => Err("http: the body is incomplete".into()),
                };
            }
        }
    }
}

/// State of reading a body.
enum Body {
    Length(u64),
    Chunked(Decoder),
    Close,
}

impl Body {
    fn framed(framing: Option<Framing>) -> Self {
        match framing {
            None => Self::Length(0),
            Some(Framing::Length(length)) => Self::Length(length),
            Some(Framing::Chunked) => Self::Chunked(Decoder::default()),
            Some(Framing::Close) => Self::Close,
        }
    }

    /// Moves received bytes into `text`. Returns true if the body is complete.
    fn take(&mut self, input: &mut Vec<u8>, text: &mut Vec<u8>) -> Result<bool, String> {
        match self {
            Self::Close => {
                text.append(input);
                Ok(false)
            }
            Self::Length(left) => {
                let length = (*left).min(input.len() as u64);
                text.extend(input.drain(..length as usize));
                *left -= length;
                Ok(*left == 0)
            }
            Self::Chunked(decoder) => loop {
                let (used, step) = decoder.step(input).map_err(|error| format!("http: {error}"))?;
                let is_over = match step {
                    Step::Data(data) => {
                        text.extend_from_slice(data);
                        None
                    }
                    Step::More => Some(false),
                    Step::Done => Some(true),
                };
                input.drain(..used);
                if let Some(is_over) = is_over {
                    return Ok(is_over);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::SEARCHED_BYTES_MAX;
    use super::*;

    const LIMITS: HeaderLimits = HeaderLimits { bytes_max: 200, fields_max: 8 };

    /// Judges a response that arrives in pieces of `size` bytes.
    fn judge(method: &str, response: &str, size: usize, body: Option<&str>) -> Result<(), String> {
        let status = (200..300).collect();
        let body = ExpectedBody { text: body, regex: None, digest: None };
        let expected = Expected { status: &status, body, limits: LIMITS };
        let request = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (local, mut remote) = tokio::io::duplex(1 << 20);
            let server = async {
                let mut query = vec![0; request.len()];
                remote.read_exact(&mut query).await.unwrap();
                for piece in response.as_bytes().chunks(size) {
                    let _ = remote.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                drop(remote);
            };
            tokio::join!(exchange(local, request.as_bytes(), &expected), server).0
        })
    }

    fn check(response: &str, expected: Result<(), &str>) {
        for size in [1, 7, 10_000] {
            let got = judge("GET", response, size, Some("hello"));
            match expected {
                Ok(()) => assert_eq!(got, Ok(()), "{response:?}"),
                Err(part) => {
                    let why = got.expect_err(response);
                    assert!(why.contains(part), "{why}: {response:?}");
                }
            }
        }
    }

    #[test]
    fn responses_that_clients_would_get_pass_the_check() {
        for well in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.0 200\r\n\r\nsay hello",
            "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 103 A\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            check(well, Ok(()));
        }
    }

    #[test]
    fn malformed_and_unexpected_responses_fail_the_check() {
        const BAD: &str = "http: clients would get 502 for this response: ";
        for heading in [
            "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nX: a\u{1}b\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            check(heading, Err(BAD));
        }
        check(&"HTTP/1.1 103 A\r\n\r\n".repeat(20), Err("16 interim responses"));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 5\r\n\r\nhello", "x".repeat(200));
        check(&long, Err("too long"));
        let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 5\r\n\r\nhello", "X: y\r\n".repeat(8));
        check(&many, Err("too many header fields"));
        check("", Err("http: closed without a response"));
        check("HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhello", Err("http: status 404"));
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello",
            Err("http: the body does not contain \"hello\""),
        );
        check(
            "HTTP/1.1 204 OK\r\nContent-Length: 5\r\n\r\nhello",
            Err("http: the body does not contain \"hello\""),
        );
        check("HTTP/1.1 200 OK\r\n\r\nhell", Err("http: the body does not contain \"hello\""));
        check("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell", Err("http: the body is incomplete"));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\nhello";
        check(chunks, Err("http: malformed chunked body"));
    }

    #[test]
    fn a_response_to_a_head_request_has_no_body() {
        let response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(judge("HEAD", response, 7, None), Ok(()));
        assert_eq!(
            judge("HEAD", response, 7, Some("x")),
            Err("http: the body does not contain \"x\"".into())
        );
    }

    #[test]
    fn only_the_beginning_of_a_body_is_searched() {
        let far = format!("HTTP/1.1 200 OK\r\n\r\n{}hello", " ".repeat(SEARCHED_BYTES_MAX));
        assert!(judge("GET", &far, 10_000, Some("hello")).is_err());
        let near = format!("HTTP/1.1 200 OK\r\n\r\n{}hello", " ".repeat(SEARCHED_BYTES_MAX - 5));
        assert_eq!(judge("GET", &near, 10_000, Some("hello")), Ok(()));
    }
}
