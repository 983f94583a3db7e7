//! `penlog server_ip server_port [my_ip]`: sends each line of its input to penlogd as one datagram.
//!
//! A line that does not fit into a datagram is cut. (pen's own program sends a line of more than 1023 bytes
//! in pieces, and penlogd drops the second piece as a line without a request.) A failure to send is logged
//! once, not for each line, and does not end the program, because the web server must be able to continue.

use super::lines::{self, LineRead};
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::{self, BufReader, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;

const USAGE: &str = "Usage: penlog server_ip server_port [my_ip]";

/// Maximum length of a line: with its newline it fits into a datagram of IPv4 or IPv6.
const LINE_BYTES_MAX: usize = 60_000;

/// Destination and source of the datagrams.
#[derive(Debug)]
struct PenlogRoute {
    server: SocketAddr,
    source: Option<IpAddr>,
}

/// Runs the program.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match words(arguments) {
        Ok(words) => super::exit_code(
            "penlog",
            PenlogRoute::find(&words).and_then(|route| send_all(&route, io::stdin().lock())),
        ),
        Err(error) => super::usage_error("penlog", USAGE, &error),
    }
}

fn words(arguments: Vec<OsString>) -> anyhow::Result<Vec<String>> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Value(word) => words.push(word.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().into()),
        }
    }
    if !(2..=3).contains(&words.len()) {
        bail!("expected two or three words, got {}", words.len());
    }
    super::port(&words[1])?;
    Ok(words)
}

impl PenlogRoute {
    fn find(words: &[String]) -> anyhow::Result<Self> {
        let port = super::port(&words[1])?;
        let source = words.get(2).map(|source| resolve(source, 0)).transpose()?;
        let servers = resolve(&words[0], port)?;
        let Some(source) = source else {
            return Ok(Self { server: servers[0], source: None });
        };
        let pairs = servers.iter().flat_map(|server| source.iter().map(move |source| (server, source)));
        let (server, source) = pairs
            .into_iter()
            .find(|(server, source)| server.is_ipv4() == source.is_ipv4())
            .with_context(|| format!("{} and {} are not of the same family", words[0], words[2]))?;
        Ok(Self { server: *server, source: Some(source.ip()) })
    }

    fn connect(&self) -> io::Result<UdpSocket> {
        let any = if self.server.is_ipv4() { "0.0.0.0" } else { "::" };
        let source = self.source.unwrap_or_else(|| any.parse().expect("it is an address"));
        let socket = UdpSocket::bind((source, 0))?;
        // Only a connected socket gets errors about a closed port.
        socket.connect(self.server)?;
        Ok(socket)
    }
}

/// Returns the addresses of a host, at least one, with IPv4 first because pen's penlogd listens only there.
fn resolve(host: &str, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs().with_context(|| format!("`{host}` does not resolve"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    if found.is_empty() {
        bail!("`{host}` has no address");
    }
    Ok(found)
}

fn send_all(route: &PenlogRoute, input: impl Read) -> anyhow::Result<()> {
    let socket = route.connect().with_context(|| format!("cannot send to {}", route.server))?;
    let mut input = BufReader::new(input);
    let (mut line, mut can_send, mut cut_before) = (Vec::new(), true, false);
    loop {
        match lines::read(&mut input, LINE_BYTES_MAX, &mut line).context("cannot read the input")? {
            LineRead::End => return Ok(()),
            LineRead::Whole => {}
            LineRead::Cut => {
                line.push(b'\n');
                if !std::mem::replace(&mut cut_before, true) {
                    eprintln!("penlog: lines of over {LINE_BYTES_MAX} bytes are cut");
                }
            }
        }
        let sent = send(&socket, &line);
        if let (Err(error), true) = (&sent, can_send) {
            eprintln!(
                "penlog: cannot send to {}: {error}; check that penlogd is running there",
                route.server
            );
        }
        can_send = sent.is_ok();
    }
}

/// Sends a line. An error about a closed port belongs to an earlier line, so the line is sent again before the
/// error is returned.
fn send(socket: &UdpSocket, line: &[u8]) -> io::Result<()> {
    match socket.send(line) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            socket.send(line)?;
            Err(error)
        }
        sent => sent.map(drop),
    }
}
