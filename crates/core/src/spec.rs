//! The validated configuration. Every value here is consistent: the program's configuration reader creates
//! it, and no other code has to check it again.

mod admin;
mod check;
mod discover;
mod dns;
mod http;
mod ipvs;
mod policy;
mod pool;
mod program;
mod service;
mod tls;
mod xdp;

pub use admin::{AdminSpec, AdminTls, StateFile};
pub use check::{CheckKind, CheckSpec, CheckTls, OnScriptError, PassiveSpec, ScriptFunction};
pub use discover::{DiscoverSpec, FoundSettings, Resolve};
pub use dns::{ClientSubnetSpec, DnsCacheSpec, DnsRateSpec, DnsSpec, OnFailure, RetryOn};
pub use http::{
    AbortOnClose, Balance, ForwardedMode, ForwardedSpec, Http2, HttpSpec, RedirectSpec, RespondSpec,
};
pub use ipvs::{
    IpvsEngine, IpvsForward, IpvsPersistence, IpvsScheduler, IpvsSchedulerFlags, IpvsServiceSpec, IpvsSpec,
    IpvsSync, IpvsSyncRole, IpvsTimeouts, IpvsTransport,
};
pub use policy::{Policy, StickyBy, StickySpec};
pub use pool::{Failover, OnDown, QueueSpec, QuorumSpec, RetryBudgetSpec};
pub use program::{NotifySpec, ProgramSpec};
pub use service::{FastClose, LogDestination, Plane, RequestLog};
pub use tls::{
    CertificateFiles, ClientCertificates, Presence, ServerTlsSpec, TlsSpec, TlsVersion, Verification,
};
pub use xdp::{
    Forward, NextHop, QuicId, QuicIdError, SourceRate, TunnelSource, XdpEventLevel, XdpMode, XdpServiceSpec,
    XdpSpec,
};

use crate::acl::Acl;
use crate::address::{Endpoint, Target};
use crate::attempt::AttemptLimits;
use crate::limits::Limits;
use crate::route::Route;
use crate::throttle::ThrottleSpec;
use crate::wire::proxy;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The whole configuration of an instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolSpec>,
    /// The services, in the order of the configuration.
    pub services: Vec<ServiceSpec>,
    /// Settings of the XDP plane as a whole. They have no effect without services in it.
    pub xdp: XdpSpec,
    /// Settings of the IPVS plane as a whole. They have no effect without services in it.
    pub ipvs: IpvsSpec,
    /// Settings of the admin API.
    pub admin: AdminSpec,
}

/// An entry point for clients.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    /// The name, unique among the services.
    pub name: Arc<str>,
    /// Listen addresses; never host names.
    pub listen: Vec<Endpoint>,
    /// Protocol of the clients.
    pub protocol: Protocol,
    /// Plane that serves the clients.
    pub plane: Plane,
    /// Settings of the XDP plane, present if it serves the clients.
    pub xdp: Option<Arc<XdpServiceSpec>>,
    /// Settings of the IPVS plane, present if it serves the clients.
    pub ipvs: Option<Arc<IpvsServiceSpec>>,
    /// Name of the default pool, for clients without a route. It is absent only if routes, a redirect or a
    /// local response serve all clients.
    pub pool: Option<Arc<str>>,
    /// Other pools, by host name (TLS: the SNI) and path.
    pub routes: Vec<Route<Arc<str>>>,
    /// Access list of clients; `None` admits all.
    pub acl: Option<Arc<Acl>>,
    /// Treatment of clients that the access list refuses.
    pub denied: Denied,
    /// Limits per client of the service.
    pub throttle: Option<ThrottleSpec>,
    /// Treatment of clients that reach their limits.
    pub exceeded: Denied,
    /// Addresses of proxies that send the PROXY protocol.
    pub proxy_from: Option<Arc<Acl>>,
    /// TLS with clients.
    pub tls: Option<Arc<TlsSpec>>,
    /// HTTP settings, present if the protocol is HTTP.
    pub http: Option<Arc<HttpSpec>>,
    /// DNS settings, present if the protocol is DNS.
    pub dns: Option<Arc<DnsSpec>>,
    /// Number of clients that are recorded; `None` for none.
    pub clients: Option<u32>,
    /// Refused clients are recorded, too. No key sets this: pen counts only the clients that it serves.
    pub records_refused: bool,
    /// Destination of a line for each request.
    pub request_log: Option<RequestLog>,
    /// Options that a running service applies without a new listener.
    pub options: ServiceOptions,
}

impl ServiceSpec {
    /// Maximum number of recorded clients.
    pub const CLIENTS_MAX: u32 = 16_000_000;

    /// Creates a service with the defaults, without listen addresses and pool.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            listen: Vec::new(),
            protocol,
            plane: Plane::Proxy,
            xdp: None,
            ipvs: None,
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
            records_refused: true,
            request_log: None,
            options: ServiceOptions::of(protocol),
        }
    }
}

/// Protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A stream of bytes for each connection.
    Tcp,
    /// Datagrams, grouped into flows by the client's address and port.
    Udp,
    /// HTTP requests, one or more on each connection.
    Http,
    /// Independent DNS queries, over UDP and TCP on one address.
    Dns,
}

impl Protocol {
    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Dns => "dns",
        }
    }

    /// Returns the transports of clients: connections, datagrams, or both.
    #[must_use]
    pub const fn transports(self) -> &'static [Transport] {
        match self {
            Self::Tcp | Self::Http => &[Transport::Stream],
            Self::Udp => &[Transport::Datagram],
            Self::Dns => &[Transport::Stream, Transport::Datagram],
        }
    }
}

/// Transport of clients. A TCP port and a UDP port of the same number are two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Connections.
    Stream,
    /// Datagrams.
    Datagram,
}

/// Treatment of a client that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The connection is closed.
    Drop,
    /// The connection is reset, or the client gets an HTTP error response.
    Reject,
    /// The connection is delayed, then closed.
    Tarpit(Duration),
    /// The client gets a server of another pool.
    Pool(Arc<str>),
}

impl Denied {
    /// Maximum number of clients that a worker delays for a service; further clients are closed.
    pub const TARPIT_MAX: usize = 4096;
}

/// Source address of connections to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This address, if it is of the server's family.
    Address(IpAddr),
    /// The client's address (`IP_TRANSPARENT`), if it is of the server's family.
    Client,
}

/// Limits and times of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// TCP: concurrent connections; accepting pauses at the limit.
    pub connections_max: u32,
    /// UDP: concurrent flows; the flow that was unused the longest is evicted. Split evenly between the
    /// workers.
    pub flows_max: u32,
    /// UDP: number of consecutive datagrams of a client that go to one server before the next server is used;
    /// `None` keeps one server.
    pub spread: Option<u32>,
    /// TCP: time for a server to accept.
    pub connect_timeout: Duration,
    /// TCP: number of servers that may fail slowly for one client.
    pub attempts_max: u32,
    /// TCP: total time of the connection attempts for one client.
    pub connect_time_max: Duration,
    /// TCP: time without traffic after which a connection is closed; `None` for never. UDP: time after which
    /// a flow ends; never `None`.
    pub idle_timeout: Option<Duration>,
    /// TCP: time without traffic after which a half-closed connection is closed; `None` applies `idle_timeout`
    /// alone.
    pub half_closed_timeout: Option<Duration>,
    /// Listens on addresses that no interface has yet.
    pub freebind: bool,
    /// TCP: length of the accept queue.
    pub backlog: u32,
    /// TCP: small writes are sent immediately (RFC 9293, section 3.7.4).
    pub nodelay: bool,
    /// TCP: time without traffic after which the kernel probes the client (RFC 9293, section 3.8.4).
    pub keepalive: Option<Duration>,
    /// TCP: time without traffic after which the kernel probes the server; costs system calls for each
    /// connection.
    pub server_keepalive: Option<Duration>,
    /// TCP: mode of the file of a unix socket; if absent, the umask decides.
    pub unix_mode: Option<u32>,
    /// Source address of connections to servers.
    pub source: Option<Source>,
    /// TCP: the side whose close ends both sides.
    pub fast_close: FastClose,
    /// TCP: pending connection attempts to servers; accepting pauses at the limit.
    pub pending_max: Option<u32>,
    /// TCP: server connections that are opened in advance. Split evenly between the workers.
    pub warm: u32,
}

impl ServiceOptions {
    /// Default of `half_closed_timeout`: long enough for a server that is still processing the request of a
    /// client that has sent everything.
    pub const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);
    /// Maximum number of datagrams in a turn.
    pub const SPREAD_MAX: u32 = 1_000_000;

    /// Returns the limits of the cost of failed servers for a client. They always leave one connection
    /// attempt its full `connect_timeout`.
    #[must_use]
    pub fn attempt_limits(&self) -> AttemptLimits {
        AttemptLimits {
            slow_max: self.attempts_max,
            time_max: self.connect_time_max.max(self.connect_timeout),
            can_wait: true,
            last_resorts: true,
        }
    }

    /// Returns the time without traffic after which a relayed connection is closed.
    #[must_use]
    pub fn traffic_timeout(&self, is_half_closed: bool) -> Option<Duration> {
        let half_closed = self.half_closed_timeout.filter(|_| is_half_closed);
        half_closed.into_iter().chain(self.idle_timeout).min()
    }

    /// Returns the defaults of a protocol.
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
    /// Sources of further servers at run time.
    pub discover: Vec<DiscoverSpec>,
    /// Need for the addresses of names and for the servers of sources at the start and at a reload.
    pub resolve: Resolve,
    /// Name servers for the names in the pool; empty for the name servers of the system.
    pub resolvers: Vec<SocketAddr>,
    /// Policy that picks a server.
    pub policy: Policy,
    /// Stickiness of clients.
    pub sticky: Option<StickySpec>,
    /// Active check; without it only real traffic marks servers down.
    pub check: Option<CheckSpec>,
    /// Passive check: the effect of failed connection attempts.
    pub passive: PassiveSpec,
    /// Treatment of clients whose server cannot take them.
    pub failover: Failover,
    /// Bound on the retries; `None` for no bound.
    pub retry_budget: Option<RetryBudgetSpec>,
    /// Treatment of the connections of a server that a check marks down.
    pub on_down: OnDown,
    /// Time in which the share of a server that came up grows to its full value.
    pub slow_start: Option<Duration>,
    /// Weight that the usable servers must have together; `None` for no such demand.
    pub quorum: Option<QuorumSpec>,
    /// Servers without new clients stay in tables of the kernel, with the weight 0.
    pub inhibit_on_failure: bool,
    /// Programs that run when servers or the quorum change.
    pub notify: Option<Arc<NotifySpec>>,
    /// Queue for clients while every server is at its limit; without a queue they are refused immediately.
    pub queue: Option<QueueSpec>,
    /// TLS to the servers.
    pub tls: Option<Arc<ServerTlsSpec>>,
    /// Version of the PROXY protocol that is sent to the servers.
    pub send_proxy: Option<proxy::Version>,
}

impl PoolSpec {
    /// Creates a pool of `servers` with the defaults.
    #[must_use]
    pub fn new(name: &str, servers: Vec<ServerSpec>) -> Self {
        Self {
            name: name.into(),
            servers,
            discover: Vec::new(),
            resolve: Resolve::Required,
            resolvers: Vec::new(),
            policy: Policy::RoundRobin,
            sticky: None,
            check: None,
            passive: PassiveSpec::default(),
            failover: Failover::Next,
            retry_budget: Some(RetryBudgetSpec::DEFAULT),
            on_down: OnDown::Keep,
            slow_start: None,
            quorum: None,
            inhibit_on_failure: false,
            notify: None,
            queue: Some(QueueSpec::DEFAULT),
            tls: None,
            send_proxy: None,
        }
    }

    /// Returns the check of a server: its own, or else the check of the pool. A server with a persistent connection
    /// and a sorry server have none.
    #[must_use]
    pub fn check_of<'a>(&'a self, server: &'a ServerSpec) -> Option<&'a CheckSpec> {
        let has_check = server.dialect == Dialect::Plain && !server.is_sorry;
        server.check.as_deref().or(self.check.as_ref()).filter(|_| has_check)
    }

    /// Returns the checks that the configuration of the pool has: the check of the pool, and the own checks of
    /// servers.
    pub fn checks(&self) -> impl Iterator<Item = &CheckSpec> {
        self.check.iter().chain(self.servers.iter().filter_map(|server| server.check.as_deref()))
    }
}

/// One backend.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSpec {
    /// Name and identity across reloads: the address, unless the configuration gives a name.
    pub name: Arc<str>,
    /// Name in the configuration, if the server is one address of a configured host name. [`Self::name`] then depends
    /// on the number of addresses.
    pub configured_name: Option<Arc<str>>,
    /// Address.
    pub endpoint: Endpoint,
    /// Protocol of the connections.
    pub dialect: Dialect,
    /// Share within the tier; a server with the weight 0 gets no new clients.
    pub weight: u32,
    /// Tier. A tier is used only if no server of a tier with a lower number is usable.
    pub tier: u8,
    /// Limits of concurrent connections or flows.
    pub limits: Limits,
    /// Access list of clients; `None` admits all.
    pub acl: Option<Arc<Acl>>,
    /// Administrative state, until it is changed at run time.
    pub state: AdminState,
    /// The server takes clients only while the pool is below its quorum. It has no check.
    pub is_sorry: bool,
    /// Identity of the server in connection IDs of QUIC, for services of the XDP plane.
    pub quic_id: Option<QuicId>,
    /// Active check of this server; `None` for the check of the pool.
    pub check: Option<Arc<CheckSpec>>,
}

impl ServerSpec {
    /// Creates a server with the defaults.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            name: endpoint.server_text().into(),
            configured_name: None,
            endpoint,
            dialect: Dialect::Plain,
            weight: 1,
            tier: 1,
            limits: Limits::default(),
            acl: None,
            state: AdminState::Ready,
            is_sorry: false,
            quic_id: None,
            check: None,
        }
    }

    /// Returns the name of the server at one of several addresses of its host name.
    #[must_use]
    pub fn name_at(&self, target: &Target) -> Arc<str> {
        let name = self.configured_name.as_ref().unwrap_or(&self.name);
        match target {
            Target::Ip(address) => format!("{name} ({})", address.ip()).into(),
            Target::Unix(path) => format!("{name} ({})", path.display()).into(),
        }
    }

    /// Returns the name by which policies place the server. For a host name it always has the address, so that it
    /// does not depend on the number of addresses.
    pub(crate) fn placement_name(&self, target: &Target) -> Arc<str> {
        if self.configured_name.is_some() { self.name_at(target) } else { Arc::clone(&self.name) }
    }
}

/// Protocol of the connections to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The protocol of the service.
    Plain,
    /// The frames of mname-balancer over a persistent connection to a unix socket (DNS only).
    Mname,
}

/// Maximum weight of a server.
pub const WEIGHT_MAX: u32 = 65_535;

/// Administrative state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminState {
    /// The server is used.
    Ready,
    /// The server keeps its connections and the clients that the sticky table names, and gets no new ones.
    Drain,
    /// The server is not used.
    Maintenance,
}

impl AdminState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maintenance];

    /// Returns the name in the configuration and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }
}
