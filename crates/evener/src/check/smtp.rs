//! SMTP checks (RFC 5321): the banner, EHLO or HELO, and QUIT. No mail is sent.

use super::{CheckedServer, ProbeError, Stream, connect, in_words};
use evener_core::Target;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Maximum length of a reply with all its lines. Servers list their extensions in a few hundred bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of characters of a reply in a message.
const SHOWN_CHARS_MAX: usize = 64;

/// Connects to a server and runs the commands. `Err` describes the failure.
pub(super) async fn probe(target: &Target, server: &CheckedServer, helo: &str) -> Result<(), ProbeError> {
    let seen = match connect(target, server.send_proxy).await? {
        Stream::Tcp(stream) => Session::new(stream).run(helo).await,
        Stream::Unix(stream) => Session::new(stream).run(helo).await,
    };
    Ok(seen.map_err(|why| format!("smtp: {why}"))?)
}

/// A connection with the bytes that arrived and are not part of an earlier reply.
struct Session<S> {
    stream: S,
    buffer: Vec<u8>,
}

/// A reply: its code and its last line.
struct Reply {
    code: u16,
    line: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    async fn run(mut self, helo: &str) -> Result<(), String> {
        self.reply("the connection").await?.require(220, "the connection")?;
        let reply = self.command(&format!("EHLO {helo}"), "EHLO").await?;
        // A server without extensions responds with 500, 502 or another permanent error (RFC 5321,
        // section 3.2).
        if (500..600).contains(&reply.code) {
            self.command(&format!("HELO {helo}"), "HELO").await?.require(250, "HELO")?;
        } else {
            reply.require(250, "EHLO")?;
        }
        self.command("QUIT", "QUIT").await?.require(221, "QUIT")
    }

    async fn command(&mut self, command: &str, name: &str) -> Result<Reply, String> {
        let line = format!("{command}\r\n");
        self.stream.write_all(line.as_bytes()).await.map_err(|error| in_words(&error))?;
        self.reply(name).await
    }

    /// Reads a reply: lines that begin with a code and `-`, and a last line without `-` (RFC 5321,
    /// section 4.2.1).
    async fn reply(&mut self, command: &str) -> Result<Reply, String> {
        let mut total = 0;
        loop {
            let line = self.line(command, REPLY_BYTES_MAX - total).await?;
            total += line.len();
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let code = text.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()));
            match (code.and_then(|code| code.parse().ok()), text.as_bytes().get(3)) {
                (Some(_), Some(b'-')) => {}
                (Some(code), None | Some(b' ')) => return Ok(Reply { code, line: text }),
                _ => return Err(unlike(command, &text)),
            }
        }
    }

    /// Reads a line of at most `length_max` bytes, with its line feed.
    async fn line(&mut self, command: &str, length_max: usize) -> Result<Vec<u8>, String> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + at + 1;
                return match end <= length_max {
                    true => Ok(self.buffer.drain(..end).collect()),
                    false => Err(too_long(command)),
                };
            }
            searched = self.buffer.len();
            if searched >= length_max {
                return Err(too_long(command));
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece).await.map_err(|error| in_words(&error))? {
                0 => return Err(format!("closed without a response to {command}")),
                read => self.buffer.extend_from_slice(&piece[..read]),
            }
        }
    }
}

impl Reply {
    fn require(&self, code: u16, command: &str) -> Result<(), String> {
        if self.code == code { Ok(()) } else { Err(unlike(command, &self.line)) }
    }
}

fn unlike(command: &str, line: &str) -> String {
    let shown: String = line.chars().take(SHOWN_CHARS_MAX).collect();
    format!("the response to {command} is {shown:?}")
}

fn too_long(command: &str) -> String {
    format!("the response to {command} has more than {REPLY_BYTES_MAX} bytes")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::check::probe;
    use evener_core::health::Probe;
    use evener_core::spec::{CheckKind, CheckSpec};
    use evener_core::wire::http::HeaderLimits;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::net::TcpListener;

    async fn probed(address: SocketAddr, timeout: Duration) -> Probe {
        let server = CheckedServer {
            endpoint: address.to_string().parse().unwrap(),
            target: Target::Ip(address),
            send_proxy: None,
            limits: HeaderLimits::default(),
        };
        let kind = CheckKind::Smtp { helo: "lb.example".into() };
        probe(&server, &CheckSpec { timeout, ..CheckSpec::new(kind) }).await
    }

    /// Probes a server that sends each reply after a command, the first one without. It then closes the
    /// connection, or stays silent if `holds` is true. Returns the verdict and the received commands.
    async fn seen(replies: &[&str], holds: bool) -> (Probe, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let timeout = if holds { Duration::from_millis(300) } else { Duration::from_secs(20) };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut commands, mut piece) = (String::new(), [0; 512]);
            for (number, reply) in replies.iter().enumerate() {
                if number > 0 {
                    let read = stream.read(&mut piece).await.unwrap();
                    commands += &String::from_utf8_lossy(&piece[..read]);
                }
                let _ = stream.write_all(reply.as_bytes()).await;
            }
            if !holds {
                let _ = stream.shutdown().await;
            }
            (commands, stream)
        };
        let (probe, (commands, _stream)) = tokio::join!(probed(address, timeout), serve);
        (probe, commands)
    }

    async fn check(replies: &[&str], holds: bool, expected: Result<(), &str>) {
        let expected = expected.map_or_else(|why| Probe::Fail(why.into()), |()| Probe::Pass);
        assert_eq!(seen(replies, holds).await.0, expected, "{replies:?}");
    }

    const BANNER: &str = "220 mail ESMTP\r\n";
    const BYE: &str = "221 bye\r\n";

    #[tokio::test]
    async fn the_codes_of_the_replies_decide() {
        check(&[BANNER, "250 mail\r\n", BYE], false, Ok(())).await;
        check(&["220-a\r\n220 b\r\n", "250-mail\r\n250-SIZE 1\r\n250 HELP\r\n", BYE], false, Ok(())).await;
        check(&["220\n", "250\n", "221\n"], false, Ok(())).await;
        check(
            &["554 no service\r\n"],
            false,
            Err("smtp: the response to the connection is \"554 no service\""),
        )
        .await;
        check(&[BANNER, "421 busy\r\n"], false, Err("smtp: the response to EHLO is \"421 busy\"")).await;
        check(
            &[BANNER, "502 what\r\n", "550 no\r\n"],
            false,
            Err("smtp: the response to HELO is \"550 no\""),
        )
        .await;
        check(&[BANNER, "250 x\r\n", "500 x\r\n"], false, Err("smtp: the response to QUIT is \"500 x\""))
            .await;
        check(
            &["HTTP/1.1 400 Bad\r\n"],
            false,
            Err("smtp: the response to the connection is \"HTTP/1.1 400 Bad\""),
        )
        .await;
    }

    #[tokio::test]
    async fn a_server_without_extensions_gets_helo() {
        let (probe, commands) = seen(&[BANNER, "502 unknown\r\n", "250 mail\r\n", BYE], false).await;
        assert_eq!(
            (probe, commands.as_str()),
            (Probe::Pass, "EHLO lb.example\r\nHELO lb.example\r\nQUIT\r\n")
        );
    }

    #[tokio::test]
    async fn silent_closing_and_endless_servers_fail() {
        check(&[], true, Err("smtp check: no response within 300ms")).await;
        check(&["220-mail\r\n"], true, Err("smtp check: no response within 300ms")).await;
        check(&[], false, Err("smtp: closed without a response to the connection")).await;
        check(&["220 ma"], false, Err("smtp: closed without a response to the connection")).await;
        check(&[BANNER, ""], false, Err("smtp: closed without a response to EHLO")).await;
        let lines = "220-more\r\n".repeat(REPLY_BYTES_MAX / 10 + 1);
        let many = "smtp: the response to the connection has more than 65536 bytes";
        check(&[&lines], true, Err(many)).await;
        check(&[&"2".repeat(REPLY_BYTES_MAX)], true, Err(many)).await;
    }

    #[tokio::test]
    async fn a_refusing_server_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(probed(address, Duration::from_secs(20)).await, Probe::Fail("connect: refused".into()));
    }
}
