//! Active checks: one probe of one server, with its time limit. The core derives the verdict of a server from
//! its probes.

mod body;
mod dns;
mod exchange;
mod exec;
mod http;
mod smtp;
mod stream;

pub(crate) use body::compile;
pub(crate) use exchange::header_limits;

use evener_core::address::abstract_name;
use evener_core::health::Probe;
use evener_core::spec::{CheckKind, CheckSpec, CheckTls};
use evener_core::wire::http::HeaderLimits;
use evener_core::wire::proxy::{self, Extras, Transport, Version};
use evener_core::{Endpoint, Target};
use rustix::io::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// A server to probe.
#[derive(Clone, Debug)]
pub(crate) struct CheckedServer {
    /// Endpoint as configured. Its host name or address is used for the Host header and TLS.
    pub(crate) endpoint: Endpoint,
    /// Resolved address.
    pub(crate) target: Target,
    /// Version of the PROXY header that the server expects. Checks send a header without a client address
    /// (UNKNOWN in version 1, LOCAL in version 2).
    pub(crate) send_proxy: Option<Version>,
    /// Limits of the header section of an HTTP response.
    pub(crate) limits: HeaderLimits,
}

/// Probes a server once.
pub(crate) async fn probe(server: &CheckedServer, spec: &CheckSpec) -> Probe {
    let target = with_port(&server.target, spec.port);
    let query = async {
        match &spec.kind {
            CheckKind::Tcp => connect(&target, server.send_proxy).await.map(drop),
            CheckKind::Stream { .. } => stream::probe(&target, server, &spec.kind).await,
            CheckKind::Http { .. } => http::probe(&target, server, &spec.kind).await,
            CheckKind::Dns { .. } => dns::probe(&target, server, &spec.kind).await,
            CheckKind::Exec { program } => exec::probe(&target, server, program).await,
            // The supervisor runs functions.
            CheckKind::Script { .. } => Ok(()),
            CheckKind::Smtp { helo } => smtp::probe(&target, server, helo).await,
            CheckKind::Udp { send, expect } => probe_udp(&target, send, expect.as_deref()).await,
        }
    };
    match tokio::time::timeout(spec.timeout, query).await {
        Ok(Ok(())) => Probe::Pass,
        Ok(Err(ProbeError::Failed(why))) => Probe::Fail(why),
        Ok(Err(ProbeError::Unmade(why))) => Probe::Unmade(why),
        Err(_) => {
            let what = match spec.kind {
                CheckKind::Stream { .. } => "no matching response",
                _ => "no response",
            };
            Probe::Fail(format!("{} check: {what} within {:?}", spec.kind.name(), spec.timeout))
        }
    }
}

/// Reason why a probe did not pass.
#[derive(Debug)]
enum ProbeError {
    /// The server did not respond as expected.
    Failed(String),
    /// No probe was made, for a local reason.
    Unmade(String),
}

impl From<String> for ProbeError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl ProbeError {
    /// Creates the error for a failed system call: `Unmade` if this process lacks resources, else `Failed`.
    fn by_system(doing: &str, error: &io::Error) -> Self {
        let why = format!("{doing}: {}", in_words(error));
        if is_resource_exhaustion(error) { Self::Unmade(why) } else { Self::Failed(why) }
    }
}

/// Returns true if an error means that this process lacks descriptors, ports or memory. EAGAIN is not such an
/// error: at a unix socket it means that the queue of the server is full.
fn is_resource_exhaustion(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(evener_proxy::is_resource_exhaustion)
}

fn with_port(target: &Target, port: Option<u16>) -> Target {
    match (target, port) {
        (Target::Ip(address), Some(port)) => Target::Ip(SocketAddr::new(address.ip(), port)),
        _ => target.clone(),
    }
}

/// A stream to a server.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn connect(target: &Target, send_proxy: Option<Version>) -> Result<Stream, ProbeError> {
    let connected = match target {
        Target::Ip(address) => TcpStream::connect(address).await.map(Stream::Tcp),
        Target::Unix(path) => {
            // A path that begins with a null byte is an abstract name (unix(7)).
            let name = abstract_name(path).map(|name| format!("\0{name}").into());
            UnixStream::connect(name.as_ref().unwrap_or(path)).await.map(Stream::Unix)
        }
    };
    let mut stream = connected.map_err(|error| ProbeError::by_system("connect", &error))?;
    let mut header = Vec::new();
    match send_proxy {
        None => return Ok(stream),
        Some(Version::V1) => proxy::emit_v1(None, &mut header),
        Some(Version::V2) => proxy::emit_v2(None, Transport::Stream, &Extras::default(), &mut header),
    }
    let written = match &mut stream {
        Stream::Tcp(stream) => stream.write_all(&header).await,
        Stream::Unix(stream) => stream.write_all(&header).await,
    };
    written.map_err(|error| ProbeError::by_system("connect", &error))?;
    Ok(stream)
}

/// Describes an error of the system in words, without the number of the error.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".into(),
        io::ErrorKind::ConnectionReset => "reset".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".into(),
        io::ErrorKind::NotFound => "the socket does not exist".into(),
        _ => error.to_string(),
    }
}

/// Starts TLS on a connection to a server with this name or address. `Err` describes the failure.
pub(crate) async fn start_tls(
    stream: TcpStream,
    tls: &CheckTls,
    authority: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    http::wrap(stream, tls, authority).await.map_err(|error| match error {
        ProbeError::Failed(why) | ProbeError::Unmade(why) => why,
    })
}

/// Returns the unspecified address with port 0, in the family of another address.
fn unspecified(other: SocketAddr) -> SocketAddr {
    if other.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

async fn probe_udp(target: &Target, send: &[u8], expect: Option<&[u8]>) -> Result<(), ProbeError> {
    let Target::Ip(address) = target else { return Err("a udp check needs an IP address".to_owned().into()) };
    let exchange = async {
        let socket = UdpSocket::bind(unspecified(*address)).await?;
        socket.connect(address).await?;
        socket.send(send).await?;
        let mut response = vec![0; 65_536];
        let length = socket.recv(&mut response).await?;
        response.truncate(length);
        Ok::<_, io::Error>(response)
    };
    let response = exchange.await.map_err(|error| ProbeError::by_system("udp", &error))?;
    match expect {
        Some(expect) if !response.starts_with(expect) => Err(format!(
            "udp: the response begins with {:?}",
            String::from_utf8_lossy(&response[..response.len().min(32)])
        )
        .into()),
        _ => Ok(()),
    }
}
