//! A service as workers share it: its present settings, what is counted, and what is reported of it.

pub(crate) mod accepted;
pub(crate) mod admission;
pub(crate) mod ending;
pub(crate) mod hops;
pub(crate) mod open;
pub(crate) mod pool_queue;
pub(crate) mod preamble;
#[cfg(test)]
pub(crate) mod testing;

use crate::context::Context;
use crate::context::descriptors::{self, Unit};
use crate::context::report::{Notice, Report, is_due};

use crate::io::request_log::RequestLog;
use crate::io::tls::{TlsAcceptor, TlsConnector};
use arc_swap::ArcSwap;
use evener_core::Time;
use evener_core::acl::{Access, Acl};
use evener_core::clients::{ClientSeen, Clients};
use evener_core::counters::{ServiceCounters, Sharded};
use evener_core::dns::{Cache, RateLimit};
use evener_core::limits::{Lease, Occupancy};
use evener_core::route::Routes;
use evener_core::snapshot::{NoServer, Snapshot};
use evener_core::spec::{DnsSpec, HttpSpec, Protocol, ServiceOptions, Source};
use evener_core::throttle::Throttle;
use evener_core::wire::forwarded::Client;
use evener_core::wire::proxy;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// What a service does, as the present configuration says.
#[derive(Debug)]
pub struct Settings {
    /// Limits and times.
    pub options: ServiceOptions,
    /// Who may come in.
    pub acl: Option<Arc<Acl>>,
    /// What becomes of those who may not.
    pub denied: Refusal,
    /// The limits of each client.
    pub throttle: Option<Arc<Throttle>>,
    /// What becomes of clients that reach them.
    pub exceeded: Refusal,
    /// Whoever stands before us there tells us of clients, by the PROXY protocol.
    pub proxy_from: Option<Arc<Acl>>,
    /// Its clients with what they did, if they are remembered.
    pub clients: Option<Arc<Clients>>,
    /// Where lines about their requests go.
    pub request_log: Option<Arc<RequestLog>>,
    /// TLS with clients.
    pub tls: Option<Arc<TlsAcceptor>>,
    /// How HTTP is understood, if it is.
    pub http: Option<Arc<HttpSpec>>,
    /// How DNS is understood, if it is.
    pub dns: Option<Dns>,
    /// The pools that serve it.
    pub backends: Vec<Backend>,
    /// The one for clients that no route names.
    pub default_backend: Option<usize>,
    /// Others, by host name and path.
    pub routes: Routes<usize>,
}

/// What a service of DNS has beside others.
#[derive(Clone, Debug)]
pub struct Dns {
    /// How it is understood.
    pub spec: Arc<DnsSpec>,
    /// Kept answers.
    pub cache: Option<Arc<Cache>>,
    /// How much the networks of clients asked.
    pub rate_limit: Option<Arc<RateLimit>>,
}

/// A pool with how its servers are spoken to.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where its snapshots are published.
    pub pool: Arc<ArcSwap<Snapshot>>,
    /// TLS with its servers.
    pub tls: Option<Arc<TlsConnector>>,
    /// Its servers are told of clients by the PROXY protocol.
    pub send_proxy: Option<proxy::Version>,
}

/// What becomes of a client that may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is closed without a word.
    Drop,
    /// It is told: by a reset, or by an answer of HTTP.
    Reject,
    /// It is kept waiting for so long, then closed.
    Tarpit(Duration),
    /// It gets a server of this backend.
    Backend(usize),
}

/// Whether a service has the same pools as before its settings changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolIs {
    /// Both are the same.
    Same,
    /// Its own pool is another one.
    Another,
    /// Its own pool is the same; the pool for clients that the access list refuses is another one.
    AnotherOfRefused,
}

impl Settings {
    /// Settings with the defaults, served by one pool.
    #[must_use]
    pub fn new(options: ServiceOptions, pool: Arc<ArcSwap<Snapshot>>) -> Self {
        Self {
            options,
            acl: None,
            denied: Refusal::Drop,
            throttle: None,
            exceeded: Refusal::Drop,
            proxy_from: None,
            clients: None,
            request_log: None,
            tls: None,
            http: None,
            dns: None,
            backends: vec![Backend { pool, tls: None, send_proxy: None }],
            default_backend: Some(0),
            routes: Routes::default(),
        }
    }

    /// The default backend's pool.
    #[must_use]
    pub fn pool(&self) -> Option<&Arc<ArcSwap<Snapshot>>> {
        self.default_backend.map(|index| &self.backends[index].pool)
    }

    /// Where clients are sent whom the access list refuses, if anywhere.
    pub(crate) fn refused(&self) -> Option<&Backend> {
        match self.denied {
            Refusal::Backend(backend) => self.backends.get(backend),
            Refusal::Drop | Refusal::Reject | Refusal::Tarpit(_) => None,
        }
    }

    pub(crate) fn permits(&self, client: IpAddr) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
    }

    /// The same of a client that a proxy tells of. With an access list, one whose address is hidden may not come in: the
    /// list can say nothing of it.
    pub(crate) fn permits_told(&self, client: Client) -> bool {
        let is_listed = self.acl.as_ref().is_some_and(|acl| !acl.is_empty());
        self.permits(client.address()) && !(is_listed && matches!(client, Client::Hidden(_)))
    }

    /// Whether `peer` tells of clients, rather than being one.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxy_from.as_ref().is_some_and(|acl| acl.access(peer) == Access::Permit)
    }

    /// Whether a connection to a server of this backend is for one client only: the server is told of it, or sees its
    /// address.
    pub(crate) fn is_personal(&self, backend: usize) -> bool {
        self.options.source == Some(Source::Client) || self.backends[backend].send_proxy.is_some()
    }

    /// Whether connections need more than their bytes moved: TLS on either side, or HTTP.
    pub(crate) fn is_layered(&self) -> bool {
        self.tls.is_some() || self.http.is_some() || self.backends.iter().any(|backend| backend.tls.is_some())
    }
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What it does now; a reload puts another one here.
    pub settings: ArcSwap<Settings>,
    /// What lives on across reloads.
    pub live: ServiceLive,
}

/// What of a service lives on across reloads.
#[derive(Debug)]
pub struct ServiceLive {
    /// TCP connections now.
    pub connections: Occupancy,
    /// Connects to servers under way; counted where `pending_max` is set.
    pub pending: Occupancy,
    /// Warm connections to servers, made and unused.
    pub warm: Occupancy,
    /// Handshakes of TLS under way.
    pub handshakes: Occupancy,
    /// Refused clients that are kept waiting.
    pub tarpitted: Occupancy,
    /// UDP flows now.
    pub flows: AtomicU32,
    /// What was counted.
    pub counters: Sharded<ServiceCounters>,
    /// A listener waits for a place.
    waiting: AtomicBool,
    noticed_at: [AtomicU64; 6],
}

impl Service {
    /// A service that nobody uses yet.
    #[must_use]
    pub fn new(name: Arc<str>, protocol: Protocol, settings: Settings, workers: usize) -> Self {
        let live = ServiceLive {
            connections: Occupancy::default(),
            pending: Occupancy::default(),
            warm: Occupancy::default(),
            handshakes: Occupancy::default(),
            tarpitted: Occupancy::default(),
            flows: AtomicU32::new(0),
            counters: Sharded::new(workers),
            waiting: AtomicBool::new(false),
            noticed_at: Default::default(),
        };
        Self { name, protocol, settings: ArcSwap::from_pointee(settings), live }
    }

    /// Connections, flows and questions now.
    #[must_use]
    pub fn active(&self) -> u64 {
        u64::from(self.live.connections.active()) + u64::from(self.live.flows.load(Ordering::Relaxed))
    }

    /// Its clients, the most recently seen first; `None` when they are not remembered.
    pub fn clients(&self) -> Option<impl Iterator<Item = ClientSeen> + use<>> {
        let settings = self.settings.load();
        let clients = settings.clients.as_ref()?;
        Some(clients.newest(Time::ZERO, usize::MAX).0.into_iter())
    }

    /// A place for one more connection. When there is none, [`Service::wants_wake`] tells whoever leaves that somebody
    /// waits.
    pub(crate) fn enter(&self, connections_max: u32) -> Option<Lease> {
        self.enter_or_wait(&self.live.connections, connections_max)
    }

    /// The same for one more connect to a server.
    pub(crate) fn enter_pending(&self, pending_max: u32) -> Option<Lease> {
        self.enter_or_wait(&self.live.pending, pending_max)
    }

    fn enter_or_wait(&self, places: &Occupancy, bound: u32) -> Option<Lease> {
        places.enter(bound).or_else(|| {
            self.live.waiting.store(true, Ordering::Relaxed);
            // Either this sees the place that is given back now, or who gives it back sees the flag.
            fence(Ordering::SeqCst);
            places.enter(bound)
        })
    }

    /// Whether a listener waits for a place, now that one was given back. True for one caller.
    pub(crate) fn wants_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.live.waiting.load(Ordering::Relaxed) && self.live.waiting.swap(false, Ordering::Relaxed)
    }

    /// A slot was given back: listeners that wait for one, here or at another worker, try again.
    pub(crate) fn wake_waiting(&self, cx: &Context) {
        if self.wants_wake() || descriptors::wants_wake() {
            cx.wake_all();
        }
    }

    /// Whether a lasting condition should be reported again.
    pub(crate) fn may_notice(&self, kind: Notice, now: Time) -> bool {
        is_due(&self.live.noticed_at[kind as usize], now)
    }
}

/// Nobody could be had for a client.
pub(crate) fn note_no_server(cx: &Context, service: &Service, reason: NoServer) {
    service.live.counters.of(cx.id).no_server.one();
    if service.may_notice(Notice::NoServer, cx.now) {
        (cx.report)(Report::NoServer { service: service.name.clone(), reason });
    }
}

/// What a client that was accepted has: its place in the service, and descriptors for itself and for its server.
#[derive(Debug)]
pub(crate) struct Place {
    /// Among the connections of its service, or those that are kept waiting.
    pub(crate) lease: Lease,
    pub(crate) client: Unit,
    pub(crate) server: Unit,
}

impl Place {
    pub(crate) fn new(lease: Lease, [client, server]: [Unit; 2]) -> Self {
        Self { lease, client, server }
    }
}

/// A connect of a session that is under way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) service: Arc<Service>,
    _place: Option<Lease>,
}

impl Pending {
    /// Counts it. Whoever was accepted already may exceed the limit: only accepting waits for it.
    pub(crate) fn begin(service: &Arc<Service>) -> Self {
        Self { service: Arc::clone(service), _place: service.live.pending.enter(u32::MAX) }
    }
}
