//! The validated configuration: what the operator wants. Whatever exists here is consistent; the program's
//! configuration reader makes it, and nothing else has to check it again.

mod check;
mod dns;
mod http;
mod pool;
mod tls;

pub use check::{CheckKind, CheckSpec, CheckTls, PassiveSpec};
pub use dns::{ClientSubnetSpec, DnsCacheSpec, DnsRateSpec, DnsSpec, OnFailure, RetryOn};
pub use http::{
    AbortOnClose, Balance, ForwardedMode, ForwardedSpec, Http2, HttpSpec, RedirectSpec, RespondSpec,
};
pub use pool::{Failover, OnDown, QueueSpec};
pub use tls::{
    CertificateFiles, ClientCertificates, Presence, ServerTlsSpec, TlsSpec, TlsVersion, Verification,
};

use crate::acl::Acl;
use crate::address::Endpoint;
use crate::attempt::AttemptLimits;
use crate::limits::Limits;
use crate::route::Route;
use crate::throttle::ThrottleSpec;
use crate::wire::proxy;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that one instance does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// The pools, by the order of the configuration.
    pub pools: Vec<PoolSpec>,
    /// The services, by the order of the configuration.
    pub services: Vec<ServiceSpec>,
}

/// What clients connect to.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    /// The name, unique among the services.
    pub name: Arc<str>,
    /// The addresses it listens on; never host names.
    pub listen: Vec<Endpoint>,
    /// How bytes are understood.
    pub protocol: Protocol,
    /// The name of the pool that serves it, where no route says otherwise. Absent only where routes or a redirect
    /// answer for everybody.
    pub pool: Option<Arc<str>>,
    /// Other pools, by host name (TLS: the SNI) and path.
    pub routes: Vec<Route<Arc<str>>>,
    /// Who may come in; `None` lets everybody in.
    pub acl: Option<Arc<Acl>>,
    /// What becomes of those who may not.
    pub denied: Denied,
    /// The limits of each client.
    pub throttle: Option<ThrottleSpec>,
    /// What becomes of clients that reach them.
    pub exceeded: Denied,
    /// Whoever stands before us there tells us of clients, by the PROXY protocol.
    pub proxy_from: Option<Arc<Acl>>,
    /// TLS with clients.
    pub tls: Option<Arc<TlsSpec>>,
    /// How HTTP is understood; there when the protocol is HTTP.
    pub http: Option<Arc<HttpSpec>>,
    /// How DNS is understood; there when the protocol is DNS.
    pub dns: Option<Arc<DnsSpec>>,
    /// How many clients are remembered with what they did; `None` none.
    pub clients: Option<u32>,
    /// Where a line for each request goes.
    pub request_log: Option<RequestLog>,
    /// The options that a running service takes on without a new listener.
    pub options: ServiceOptions,
}

impl ServiceSpec {
    /// The most clients that are remembered.
    pub const CLIENTS_MAX: u32 = 16_000_000;

    /// A service with the defaults, which listens nowhere and has no pool yet.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            listen: Vec::new(),
            protocol,
            pool: None,
            routes: Vec::new(),
            acl: None,
            denied: Denied::Drop,
            throttle: None,
            exceeded: Denied::Drop,
            proxy_from: None,
            tls: None,
            http: (protocol == Protocol::Http).then(Arc::default),
            dns: (protocol == Protocol::Dns).then(Arc::default),
            clients: None,
            request_log: None,
            options: ServiceOptions::of(protocol),
        }
    }
}

/// How a service understands what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A stream of bytes, a connection at a time.
    Tcp,
    /// Datagrams, associated to flows by the client's address and port.
    Udp,
    /// Requests, one after the other on a connection.
    Http,
    /// Questions, each on its own, over UDP and TCP on one address.
    Dns,
}

impl Protocol {
    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Dns => "dns",
        }
    }

    /// How clients come: by connections, by datagrams, or by both.
    #[must_use]
    pub const fn transports(self) -> &'static [Transport] {
        match self {
            Self::Tcp | Self::Http => &[Transport::Stream],
            Self::Udp => &[Transport::Datagram],
            Self::Dns => &[Transport::Stream, Transport::Datagram],
        }
    }
}

/// How clients come. A TCP port and a UDP port of one number are two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// By connections.
    Stream,
    /// By datagrams.
    Datagram,
}

/// What becomes of a client that may not come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is closed without a word.
    Drop,
    /// It is told: by a reset, or by an answer of HTTP.
    Reject,
    /// It is kept waiting, then closed.
    Tarpit(Duration),
    /// It gets a server of another pool.
    Pool(Arc<str>),
}

impl Denied {
    /// How many clients of a service a worker keeps waiting at once; others are closed.
    pub const TARPIT_MAX: usize = 4096;
}

/// Where a line for each request goes: client, time, server, and how the request began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestLog {
    /// A file is appended to: `client epoch server request`.
    File(PathBuf),
    /// A datagram is sent, as penlogd wants it: `+ client server request`.
    Udp(SocketAddr),
}

/// From which address servers see us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This one, where it is of the server's family.
    Address(IpAddr),
    /// The client's (`IP_TRANSPARENT`), where it is of the server's family.
    Client,
}

/// Who ends a connection of both sides by closing its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastClose {
    /// Nobody: what is half closed goes on the other way.
    Off,
    /// The client.
    Client,
    /// The server.
    Server,
    /// Either of them.
    Both,
}

impl FastClose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Client, Self::Server, Self::Both];

    /// Whether a client that closes its side ends both.
    #[must_use]
    pub const fn by_client(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }

    /// Whether a server that closes its side ends both.
    #[must_use]
    pub const fn by_server(self) -> bool {
        matches!(self, Self::Server | Self::Both)
    }

    /// The word of the configuration.
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

/// Limits and times of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// TCP: connections at once; accepting pauses at the limit.
    pub connections_max: u32,
    /// UDP: flows at once; the flow that was unused the longest makes room. Split evenly between the workers.
    pub flows_max: u32,
    /// UDP: after so many datagrams of a client its next one goes to the server whose turn it is; `None`: it stays with one.
    pub spread: Option<u32>,
    /// TCP: how long a server may take to accept.
    pub connect_timeout: Duration,
    /// TCP: servers that may fail otherwise than at once for one client.
    pub attempts_max: u32,
    /// TCP: how long the connects for one client may take, all together.
    pub connect_time_max: Duration,
    /// TCP: a connection on which nothing moves for so long is closed; `None` never.
    /// UDP: a flow ends after so long; never `None`.
    pub idle_timeout: Option<Duration>,
    /// TCP: the same once one side has ended and the other one has not; `None` as long as `idle_timeout` lets it.
    pub half_closed_timeout: Option<Duration>,
    /// Addresses are listened on though no interface has them yet.
    pub freebind: bool,
    /// TCP: the length of the queue of connections that wait to be accepted.
    pub backlog: u32,
    /// TCP: small writes are sent at once (RFC 9293, section 3.7.4).
    pub nodelay: bool,
    /// TCP: after so long without traffic the kernel asks whether the client is still there (RFC 9293, section 3.8.4).
    pub keepalive: Option<Duration>,
    /// TCP: the same towards servers; costs system calls for each connection.
    pub server_keepalive: Option<Duration>,
    /// TCP: the mode of the file of a unix socket; what the umask leaves when absent.
    pub unix_mode: Option<u32>,
    /// The address from which servers see us.
    pub source: Option<Source>,
    /// TCP: whose closing ends both sides.
    pub fast_close: FastClose,
    /// TCP: connects to servers under way at once; accepting pauses at the limit.
    pub pending_max: Option<u32>,
    /// TCP: connections to servers that are made before clients want them. Split evenly between the workers.
    pub warm: u32,
}

impl ServiceOptions {
    /// The default of `half_closed_timeout`: long enough for a server that works for a client which said all it has to say.
    pub const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);
    /// The most datagrams of a turn.
    pub const SPREAD_MAX: u32 = 1_000_000;

    /// Returns the limits of what failed servers may cost a client; one connect always has its time.
    #[must_use]
    pub fn attempt_limits(&self) -> AttemptLimits {
        AttemptLimits {
            slow_max: self.attempts_max,
            time_max: self.connect_time_max.max(self.connect_timeout),
            can_wait: true,
        }
    }

    /// Returns the time for which nothing may move on a relayed connection.
    #[must_use]
    pub fn quiet_max(&self, is_half_closed: bool) -> Option<Duration> {
        let half_closed = self.half_closed_timeout.filter(|_| is_half_closed);
        half_closed.into_iter().chain(self.idle_timeout).min()
    }

    /// The defaults of a protocol.
    #[must_use]
    pub fn of(protocol: Protocol) -> Self {
        Self {
            connections_max: 100_000,
            flows_max: 65_536,
            spread: None,
            connect_timeout: Duration::from_secs(3),
            attempts_max: 3,
            connect_time_max: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(match protocol {
                Protocol::Udp => 60,
                // RFC 7766, section 6.2.3: of the order of seconds.
                Protocol::Dns => 10,
                Protocol::Tcp | Protocol::Http => 3600,
            })),
            freebind: false,
            half_closed_timeout: match protocol {
                Protocol::Tcp | Protocol::Http => Some(Self::HALF_CLOSED_TIMEOUT),
                Protocol::Udp | Protocol::Dns => None,
            },
            backlog: 4096,
            nodelay: true,
            keepalive: Some(Duration::from_secs(75)),
            server_keepalive: None,
            unix_mode: None,
            source: None,
            fast_close: FastClose::Off,
            pending_max: None,
            warm: 0,
        }
    }
}

/// A named set of servers.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    /// The name, unique among the pools.
    pub name: Arc<str>,
    /// The servers; their names are unique.
    pub servers: Vec<ServerSpec>,
    /// Where further servers are found while it runs.
    pub discover: Vec<DiscoverSpec>,
    /// How a server is chosen.
    pub policy: Policy,
    /// Whether a client stays with its server.
    pub sticky: Option<StickySpec>,
    /// How servers are asked whether they live; without it only real traffic tells.
    pub check: Option<CheckSpec>,
    /// What a failed connect means.
    pub passive: PassiveSpec,
    /// What becomes of a client whose server does not take it.
    pub failover: Failover,
    /// The fate of the connections of a server that a check takes down.
    pub on_down: OnDown,
    /// How long a server that came up takes to get its full share.
    pub slow_start: Option<Duration>,
    /// Where clients wait while every server is at its limit; without it they are refused at once.
    pub queue: Option<QueueSpec>,
    /// TLS with its servers.
    pub tls: Option<Arc<ServerTlsSpec>>,
    /// Its servers are told of clients by the PROXY protocol.
    pub send_proxy: Option<proxy::Version>,
}

impl PoolSpec {
    /// A pool of `servers` with the defaults.
    #[must_use]
    pub fn new(name: &str, servers: Vec<ServerSpec>) -> Self {
        Self {
            name: name.into(),
            servers,
            discover: Vec::new(),
            policy: Policy::RoundRobin,
            sticky: None,
            check: None,
            passive: PassiveSpec::default(),
            failover: Failover::Next,
            on_down: OnDown::Keep,
            slow_start: None,
            queue: Some(QueueSpec::DEFAULT),
            tls: None,
            send_proxy: None,
        }
    }
}

/// One backend.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSpec {
    /// What it is called: its address, unless the configuration gives a name. Its identity across reloads.
    pub name: Arc<str>,
    /// Where it is.
    pub endpoint: Endpoint,
    /// How it is spoken to.
    pub dialect: Dialect,
    /// Its share among its tier; 0 gets no new clients.
    pub weight: u32,
    /// Servers of a tier are used only when no server of a lower number is usable.
    pub tier: u8,
    /// How many connections or flows at once.
    pub limits: Limits,
    /// Which clients it may have; `None` all.
    pub acl: Option<Arc<Acl>>,
    /// What the operator wants of it, unless told otherwise at run time.
    pub state: AdminState,
}

impl ServerSpec {
    /// A server with the defaults.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            name: endpoint.to_string().into(),
            endpoint,
            dialect: Dialect::Plain,
            weight: 1,
            tier: 1,
            limits: Limits::default(),
            acl: None,
            state: AdminState::Ready,
        }
    }
}

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// By the protocol of the service.
    Plain,
    /// By the frames of mname-balancer, over a unix socket, on a connection that stands as long as the server is there
    /// (DNS only).
    Mname,
}

/// Where servers are found while the program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoverSpec {
    /// Each socket in a directory is a server that speaks [`Dialect::Mname`].
    Mname {
        /// The directory.
        directory: PathBuf,
    },
}

/// The largest weight of a server.
pub const WEIGHT_MAX: u32 = 65_535;

/// What the operator wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminState {
    /// It serves.
    Ready,
    /// It keeps what it has, and the clients that the sticky table names; it gets no new ones.
    Drain,
    /// It gets nothing.
    Maintenance,
}

impl AdminState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maintenance];

    /// The word of the configuration and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }
}

/// How a server is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// One after the other.
    RoundRobin,
    /// The first one that has room, in the order of the configuration.
    First,
    /// By weight, smoothly: the order that nginx made known.
    Weighted,
    /// The one with the fewest connections for its weight.
    LeastConn,
    /// The one with the fewest connections or questions under way for its weight; of equals the one that answers sooner.
    LeastOutstanding,
    /// The less busy one of two chosen at random.
    P2c,
    /// The one of two chosen at random that answers sooner (peak EWMA), its connections considered.
    Ewma {
        /// In this time an old peak loses 63 % of its say.
        decay: Duration,
    },
    /// By the client's address (rendezvous hashing): even, and a client moves only when its server leaves.
    Hash,
    /// By the client's address through a table (Eisenbud et al., NSDI 2016): constant time for any number of servers.
    Maglev {
        /// The table's size; a prime.
        table: u32,
    },
}

impl Policy {
    /// The words of the configuration.
    pub const NAMES: [&'static str; 9] = [
        "round_robin",
        "weighted",
        "least_conn",
        "p2c",
        "ewma",
        "hash",
        "maglev",
        "first",
        "least_outstanding",
    ];
    /// The default size of the Maglev table.
    pub const MAGLEV_TABLE: u32 = 65_537;
    /// The largest size of the Maglev table: 5 million entries are 20 MiB.
    pub const MAGLEV_TABLE_MAX: u32 = 5_000_011;
    /// The default decay of EWMA.
    pub const EWMA_DECAY: Duration = Duration::from_secs(10);

    /// The policy called `name`, with its defaults.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "round_robin" => Self::RoundRobin,
            "weighted" => Self::Weighted,
            "least_conn" => Self::LeastConn,
            "p2c" => Self::P2c,
            "ewma" => Self::Ewma { decay: Self::EWMA_DECAY },
            "hash" => Self::Hash,
            "maglev" => Self::Maglev { table: Self::MAGLEV_TABLE },
            "first" => Self::First,
            "least_outstanding" => Self::LeastOutstanding,
            _ => return None,
        })
    }

    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => Self::NAMES[0],
            Self::Weighted => Self::NAMES[1],
            Self::LeastConn => Self::NAMES[2],
            Self::P2c => Self::NAMES[3],
            Self::Ewma { .. } => Self::NAMES[4],
            Self::Hash => Self::NAMES[5],
            Self::Maglev { .. } => Self::NAMES[6],
            Self::First => Self::NAMES[7],
            Self::LeastOutstanding => Self::NAMES[8],
        }
    }
}

/// A client stays with its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySpec {
    /// How a client is known again.
    pub by: StickyBy,
    /// How many clients are remembered; the least recently seen makes room.
    pub size: usize,
    /// For how long; `None` as long as there is room.
    pub ttl: Option<Duration>,
    /// A client whose server is out gets another one meanwhile, and goes back when its own returns.
    pub failback: bool,
    /// So often some clients of a server that has many more than another one are sent to be chosen for anew.
    pub rebalance: Option<Duration>,
}

/// How a client is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickyBy {
    /// By its address, in a table.
    ClientIp,
    /// By a cookie of this name that its server's answer sets (HTTP).
    Cookie(String),
}

impl StickyBy {
    /// The cookie's name by default.
    pub const COOKIE: &str = "EVENER";
    /// What the default name begins with, followed by the pool's name, where several such pools serve one service: under
    /// one name each would overwrite the other's cookie.
    pub const COOKIE_OF_POOL: &str = "EVENER_";
}

impl StickySpec {
    /// The most clients a table may have.
    pub const SIZE_MAX: usize = 16_000_000;
}
