//! Parts of the configuration of a service: its plane, its pools, its request log, and the end of its connections.

use super::{Denied, Protocol, ServiceSpec};
use crate::request_log::RequestLogFormat;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

impl ServiceSpec {
    /// Returns the names of the pools that can serve clients, possibly several times: the default pool, the
    /// pools of routes, and the pools of refused clients.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<str>> {
        let routed = self.routes.iter().map(|route| &route.to);
        let refused = [&self.denied, &self.exceeded].into_iter().filter_map(|denied| match denied {
            Denied::Pool(pool) => Some(pool),
            Denied::Drop | Denied::Reject | Denied::Tarpit(_) => None,
        });
        self.pool.iter().chain(routed).chain(refused)
    }
}

/// Plane that serves the clients of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plane {
    /// The workers of the program, in userspace.
    #[default]
    Proxy,
    /// The kernel, at the drivers of the interfaces.
    Xdp,
    /// The kernel's IP Virtual Server.
    Ipvs,
}

impl Plane {
    /// Names in the configuration.
    pub const NAMES: [&'static str; 3] = ["proxy", "xdp", "ipvs"];

    /// Returns the plane called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Proxy, Self::Xdp, Self::Ipvs].into_iter().find(|plane| plane.name() == name)
    }

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => Self::NAMES[0],
            Self::Xdp => Self::NAMES[1],
            Self::Ipvs => Self::NAMES[2],
        }
    }
}

/// The side whose close ends both sides of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastClose {
    /// Neither side: a half-closed connection continues in the other direction.
    Off,
    /// The client.
    Client,
    /// The server.
    Server,
    /// Either side.
    Both,
}

impl FastClose {
    /// All values.
    pub const ALL: [Self; 4] = [Self::Off, Self::Client, Self::Server, Self::Both];

    /// Returns true if a close by the client ends both sides.
    #[must_use]
    pub const fn by_client(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }

    /// Returns true if a close by the server ends both sides.
    #[must_use]
    pub const fn by_server(self) -> bool {
        matches!(self, Self::Server | Self::Both)
    }

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "both",
        }
    }
}

/// Log of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLog {
    /// Destination of the lines.
    pub destination: LogDestination,
    /// Format of the lines.
    pub format: RequestLogFormat,
    /// Share of the requests, connections, queries or flows that are logged, in millionths.
    pub sample: u32,
}

/// Destination of a request log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    /// Lines are appended to a file.
    File(PathBuf),
    /// Each line is sent in a datagram, to penlogd or another collector.
    Udp(SocketAddr),
    /// Lines are sent to the socket of the system's log, which has this path.
    Syslog(PathBuf),
}

impl RequestLog {
    /// Sample of all.
    pub const ALL: u32 = 1_000_000;

    /// Returns the log with the default format. Lines of TCP services in files are pieces of what clients send, and
    /// datagrams are for penlogd, so their format is pen's. All other lines are complete records in text.
    #[must_use]
    pub fn new(destination: LogDestination, protocol: Protocol) -> Self {
        let is_of_pen = match &destination {
            LogDestination::File(_) => protocol == Protocol::Tcp,
            LogDestination::Udp(_) => matches!(protocol, Protocol::Tcp | Protocol::Http),
            LogDestination::Syslog(_) => false,
        };
        let text = RequestLogFormat::of_protocol("text", protocol).unwrap_or(RequestLogFormat::Json);
        let format = if is_of_pen { RequestLogFormat::Pen } else { text };
        Self { destination, format, sample: Self::ALL }
    }
}
