//! Active checks: one probe of one server, with its time limit. What a verdict takes, core decides.

mod dns;
mod exchange;
mod http;
mod stream;

pub(crate) use exchange::head_limits;

use evener_core::address::abstract_name;
use evener_core::health::Probe;
use evener_core::spec::{CheckKind, CheckSpec};
use evener_core::wire::http::HeadLimits;
use evener_core::wire::proxy::{self, Extras, Transport, Version};
use evener_core::{Endpoint, Target};
use rustix::io::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// Whom to probe.
#[derive(Clone, Debug)]
pub(crate) struct Patient {
    /// As configured; gives the name for Host and TLS.
    pub(crate) endpoint: Endpoint,
    /// Where it is.
    pub(crate) target: Target,
    /// It expects a PROXY header: ours says that we speak for ourselves.
    pub(crate) send_proxy: Option<Version>,
    /// The limits of an HTTP response's head.
    pub(crate) limits: HeadLimits,
}

/// Probes a server once.
pub(crate) async fn probe(patient: &Patient, spec: &CheckSpec) -> Probe {
    let target = aim(&patient.target, spec.port);
    let asked = async {
        match &spec.kind {
            CheckKind::Tcp => connect(&target, patient.send_proxy).await.map(drop),
            CheckKind::Stream { .. } => stream::ask(&target, patient, &spec.kind).await,
            CheckKind::Http { .. } => http::ask(&target, patient, &spec.kind).await,
            CheckKind::Dns { .. } => dns::ask(&target, patient, &spec.kind).await,
            CheckKind::Udp { send, expect } => ask_udp(&target, send, expect.as_deref()).await,
        }
    };
    match tokio::time::timeout(spec.timeout, asked).await {
        Ok(Ok(())) => Probe::Pass,
        Ok(Err(Missed::Failed(why))) => Probe::Fail(why),
        Ok(Err(Missed::Unmade(why))) => Probe::Unmade(why),
        Err(_) => {
            let what = match spec.kind {
                CheckKind::Stream { .. } => "no response as it is expected",
                _ => "no answer",
            };
            Probe::Fail(format!("{} check: {what} within {:?}", spec.kind.name(), spec.timeout))
        }
    }
}

/// Why a check did not pass.
#[derive(Debug)]
enum Missed {
    /// The server did not answer as it should.
    Failed(String),
    /// The server was not asked, for a reason of our own.
    Unmade(String),
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Missed {
    /// Makes a result of an error of the system.
    fn by_system(doing: &str, error: &io::Error) -> Self {
        let why = format!("{doing}: {}", in_words(error));
        if is_want(error) { Self::Unmade(why) } else { Self::Failed(why) }
    }
}

/// Whether an error is for want of descriptors, ports or memory of our own. (EAGAIN at a unix socket is its full queue.)
fn is_want(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(evener_proxy::is_want)
}

fn aim(target: &Target, port: Option<u16>) -> Target {
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

async fn connect(target: &Target, send_proxy: Option<Version>) -> Result<Stream, Missed> {
    let connected = match target {
        Target::Ip(address) => TcpStream::connect(address).await.map(Stream::Tcp),
        Target::Unix(path) => {
            // A path that begins with a null byte is an abstract name (unix(7)).
            let name = abstract_name(path).map(|name| format!("\0{name}").into());
            UnixStream::connect(name.as_ref().unwrap_or(path)).await.map(Stream::Unix)
        }
    };
    let mut stream = connected.map_err(|error| Missed::by_system("connect", &error))?;
    let mut header = Vec::new();
    match send_proxy {
        None => return Ok(stream),
        Some(Version::V1) => proxy::emit_v1(None, &mut header),
        Some(Version::V2) => proxy::emit_v2(None, Transport::Stream, &Extras::default(), &mut header),
    }
    let said = match &mut stream {
        Stream::Tcp(stream) => stream.write_all(&header).await,
        Stream::Unix(stream) => stream.write_all(&header).await,
    };
    said.map_err(|error| Missed::by_system("connect", &error))?;
    Ok(stream)
}

/// The system's errors without their numbers.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".into(),
        io::ErrorKind::ConnectionReset => "reset".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".into(),
        io::ErrorKind::NotFound => "there is no such socket".into(),
        _ => error.to_string(),
    }
}

/// Any address and port of ours in the family of another address.
fn unspecified(other: SocketAddr) -> SocketAddr {
    if other.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

async fn ask_udp(target: &Target, send: &[u8], expect: Option<&[u8]>) -> Result<(), Missed> {
    let Target::Ip(address) = target else { return Err("a udp check needs an IP address".to_owned().into()) };
    let ask = async {
        let socket = UdpSocket::bind(unspecified(*address)).await?;
        socket.connect(address).await?;
        socket.send(send).await?;
        let mut answer = vec![0; 65_536];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        Ok::<_, io::Error>(answer)
    };
    let answer = ask.await.map_err(|error| Missed::by_system("udp", &error))?;
    match expect {
        Some(expect) if !answer.starts_with(expect) => Err(format!(
            "udp: the answer begins with {:?}",
            String::from_utf8_lossy(&answer[..answer.len().min(32)])
        )
        .into()),
        _ => Ok(()),
    }
}
