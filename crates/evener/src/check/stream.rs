//! Checks of tcp and tls: the bytes that are sent over a connection, and the expected response.

use super::http::{authority, wrap};
use super::{CheckedServer, ProbeError, Stream, connect, in_words};
use evener_core::Target;
use evener_core::spec::CheckKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Number of bytes at the beginning of a response that are searched for the expected text.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of bytes that a message shows of a response or an expected text.
const SHOWN_BYTES_MAX: usize = 32;

/// Requirements that the response must meet.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    begins: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
}

/// Connects to a server, and judges its response. `Err` describes the failure.
pub(super) async fn probe(
    target: &Target,
    server: &CheckedServer,
    kind: &CheckKind,
) -> Result<(), ProbeError> {
    let CheckKind::Stream { send, begins, expect, tls } = kind else { return Ok(()) };
    let wanted = Wanted { begins: begins.as_deref(), expect: expect.as_deref() };
    let name = authority(&server.endpoint);
    let seen = match (connect(target, server.send_proxy).await?, tls) {
        (Stream::Tcp(stream), Some(tls)) => converse(wrap(stream, tls, &name).await?, send, wanted).await,
        (Stream::Unix(stream), Some(tls)) => converse(wrap(stream, tls, &name).await?, send, wanted).await,
        (Stream::Tcp(stream), None) => converse(stream, send, wanted).await,
        (Stream::Unix(stream), None) => converse(stream, send, wanted).await,
    };
    Ok(seen.map_err(|why| format!("{}: {why}", kind.name()))?)
}

async fn converse<S>(mut stream: S, send: &[u8], wanted: Wanted<'_>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: std::io::Error| in_words(&error);
    if send.is_empty() && wanted.begins.is_none() && wanted.expect.is_none() {
        return Ok(());
    }
    stream.write_all(send).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut response = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).await.map_err(failed)?;
        let from = response.len();
        response.extend_from_slice(&piece[..read.min(RESPONSE_BYTES_MAX - from)]);
        let is_whole = read == 0 || response.len() == RESPONSE_BYTES_MAX;
        if let Some(verdict) = wanted.judge(&response, from, is_whole) {
            return verdict;
        }
    }
}

impl Wanted<'_> {
    /// Judges a response. Bytes before `from` have been searched before. Returns `None` if the verdict depends
    /// on bytes that have not arrived.
    fn judge(&self, response: &[u8], from: usize, is_whole: bool) -> Option<Result<(), String>> {
        if let Some(begins) = self.begins {
            let length = response.len().min(begins.len());
            if response[..length] != begins[..length] || is_whole && length < begins.len() {
                return Some(Err(unlike(response)));
            }
            if length < begins.len() {
                return None;
            }
        }
        let Some(expect) = self.expect else {
            return match response {
                [] => is_whole.then(|| Err(unlike(response))),
                _ => Some(Ok(())),
            };
        };
        // A match may begin in an earlier piece and end in this piece.
        let from = (from + 1).saturating_sub(expect.len()).min(response.len());
        if response[from..].windows(expect.len().max(1)).any(|window| window == expect) {
            return Some(Ok(()));
        }
        let shown = String::from_utf8_lossy(&expect[..expect.len().min(SHOWN_BYTES_MAX)]);
        is_whole.then(|| Err(format!("the response does not contain {shown:?}")))
    }
}

fn unlike(response: &[u8]) -> String {
    match response {
        [] => "closed without a response".into(),
        _ => {
            let shown = &response[..response.len().min(SHOWN_BYTES_MAX)];
            format!("the response begins with {:?}", String::from_utf8_lossy(shown))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::check::probe;
    use evener_core::health::Probe;
    use evener_core::spec::CheckSpec;
    use evener_core::wire::http::HeaderLimits;
    use evener_core::wire::proxy::{self, Extras, Transport, Version};
    use std::time::Duration;
    use tokio::net::TcpListener;

    /// A server for one probe: it reads `reads` bytes, sends the pieces, and closes the connection unless
    /// `holds` is true.
    struct Story<'a> {
        reads: usize,
        pieces: &'a [&'a [u8]],
        holds: bool,
        send_proxy: Option<Version>,
    }

    impl Story<'_> {
        async fn seen(&self, send: &[u8], begins: Option<&[u8]>, expect: Option<&[u8]>) -> (Probe, Vec<u8>) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let endpoint = address.to_string().parse().unwrap();
            let server = CheckedServer {
                endpoint,
                target: Target::Ip(address),
                send_proxy: self.send_proxy,
                limits: HeaderLimits::default(),
            };
            let kind = CheckKind::Stream {
                send: send.to_vec(),
                begins: begins.map(<[u8]>::to_vec),
                expect: expect.map(<[u8]>::to_vec),
                tls: None,
            };
            let timeout = if self.holds { Duration::from_millis(500) } else { Duration::from_secs(20) };
            let spec = CheckSpec { timeout, ..CheckSpec::new(kind) };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut read = vec![0; self.reads];
                stream.read_exact(&mut read).await.unwrap();
                for piece in self.pieces {
                    let _ = stream.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                (read, self.holds.then_some(stream))
            };
            let (probe, (read, _stream)) = tokio::join!(probe(&server, &spec), serve);
            (probe, read)
        }
    }

    async fn check(
        pieces: &[&[u8]],
        begins: Option<&[u8]>,
        expect: Option<&[u8]>,
        holds: bool,
        expected: Result<(), &str>,
    ) {
        let story = Story { reads: 2, pieces, holds, send_proxy: None };
        let (seen, read) = story.seen(b"hi", begins, expect).await;
        let expected = expected.map_or_else(|why| Probe::Fail(why.into()), |()| Probe::Pass);
        assert_eq!((seen, &read[..]), (expected, &b"hi"[..]), "{pieces:?} {begins:?} {expect:?}");
    }

    #[tokio::test]
    async fn a_check_passes_if_the_response_begins_with_and_contains_the_expected_texts() {
        let master: &[u8] = b"$9\r\nrole:master\r\n";
        check(&[b"220 mail"], Some(b"220 "), None, true, Ok(())).await;
        check(&[b"2", b"2", b"0", b" ok"], Some(b"220 "), None, false, Ok(())).await;
        check(
            &[b"421 mx220 "],
            Some(b"220 "),
            None,
            true,
            Err("tcp: the response begins with \"421 mx220 \""),
        )
        .await;
        check(&[b"22"], Some(b"220 "), None, false, Err("tcp: the response begins with \"22\"")).await;
        check(&[master], None, Some(b"role:master"), true, Ok(())).await;
        check(&[b"x role:ma", b"ster"], None, Some(b"role:master"), false, Ok(())).await;
        check(
            &[b"role:slave"],
            None,
            Some(b"role:master"),
            false,
            Err("tcp: the response does not contain \"role:master\""),
        )
        .await;
        check(&[master], Some(b"$9"), Some(b"role:master"), false, Ok(())).await;
        check(
            &[master],
            Some(b"-"),
            Some(b"role"),
            true,
            Err("tcp: the response begins with \"$9\\r\\nrole:master\\r\\n\""),
        )
        .await;
        check(&[b"x"], None, None, true, Ok(())).await;
        check(&[], None, None, false, Err("tcp: closed without a response")).await;
        check(&[], None, None, true, Err("tcp check: no matching response within 500ms")).await;
        check(&[b"x"], None, Some(b"y"), true, Err("tcp check: no matching response within 500ms")).await;
    }

    #[tokio::test]
    async fn text_after_the_maximum_length_of_a_response_is_not_found() {
        let much = vec![b'.'; RESPONSE_BYTES_MAX];
        let late: &[&[u8]] = &[&much, b"role:master"];
        check(
            late,
            None,
            Some(b"role:master"),
            true,
            Err("tcp: the response does not contain \"role:master\""),
        )
        .await;
    }

    #[test]
    fn splitting_a_response_into_pieces_does_not_change_the_verdict() {
        let wanted = Wanted { begins: Some(b"+OK"), expect: Some(b"abab") };
        for (response, is_well) in
            [(&b"+OK ababab"[..], true), (b"+OK aabab", true), (b"+OK aba", false), (b"-OK abab", false)]
        {
            for at in 0..=response.len() {
                let first = wanted.judge(&response[..at], 0, false);
                let second = || wanted.judge(response, at, true).unwrap();
                assert_eq!(first.unwrap_or_else(second).is_ok(), is_well, "{response:?} {at}");
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_expects_a_proxy_header_receives_the_header_before_the_text() {
        let mut header = Vec::new();
        proxy::emit_v2(None, Transport::Stream, &Extras::default(), &mut header);
        let story = Story {
            reads: header.len() + 2,
            pieces: &[b"+PONG"],
            holds: false,
            send_proxy: Some(Version::V2),
        };
        let (seen, read) = story.seen(b"hi", Some(b"+PONG"), None).await;
        assert_eq!((seen, read), (Probe::Pass, [&header[..], b"hi"].concat()));
    }
}
