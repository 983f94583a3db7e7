//! A service, which all workers share: its present settings, permits and counters, and the rate of its reports.

pub(crate) mod accepted;
pub(crate) mod access_entry;
pub(crate) mod admission;
pub(crate) mod ending;
pub(crate) mod failures;
pub(crate) mod hops;
pub(crate) mod open;
pub(crate) mod pool_queue;
pub(crate) mod preamble;
pub(crate) mod succession;
#[cfg(test)]
pub(crate) mod testing;

use crate::context::Context;
use crate::context::descriptors::{self, Unit};
use crate::context::report::{Notice, Report, is_due};
use crate::io::request_log::RequestLog;
use crate::io::tls::{TlsAcceptor, TlsConnector};
use crate::service::failures::FailureReports;
use arc_swap::ArcSwap;
use evener_core::Time;
use evener_core::acl::{Access, Acl};
use evener_core::attempt::Attempt;
use evener_core::clients::{ClientSeen, Clients};
use evener_core::dns::{Cache, RateLimit};
use evener_core::limits::{Lease, Occupancy};
use evener_core::route::Routes;
use evener_core::service::ServiceLive;
use evener_core::snapshot::{Choice, NoServer, Snapshot};
use evener_core::spec::{DnsSpec, HttpSpec, ServiceOptions, Source};
use evener_core::throttle::Throttle;
use evener_core::wire::forwarded::Client;
use evener_core::wire::proxy;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

/// The present settings of a service.
#[derive(Debug)]
pub struct Settings {
    /// Limits and times.
    pub options: ServiceOptions,
    /// Access list of clients.
    pub acl: Option<Arc<Acl>>,
    /// Treatment of clients that the access list refuses.
    pub denied: Refusal,
    /// Limits per client of the service.
    pub throttle: Option<Arc<Throttle>>,
    /// The treatment of clients that exceed these limits.
    pub exceeded: Refusal,
    /// The proxies that report clients by the PROXY protocol.
    pub proxy_from: Option<Arc<Acl>>,
    /// The clients that are remembered, with their activity.
    pub clients: Option<Arc<Clients>>,
    /// Refused clients are remembered, too.
    pub records_refused: bool,
    /// The log of requests.
    pub request_log: Option<Arc<RequestLog>>,
    /// TLS with clients.
    pub tls: Option<Arc<TlsAcceptor>>,
    /// The options of HTTP, for a service of HTTP.
    pub http: Option<Arc<HttpSpec>>,
    /// The options of DNS, for a service of DNS.
    pub dns: Option<Dns>,
    /// The pools of the service.
    pub backends: Vec<Backend>,
    /// The pool for clients without a route.
    pub default_backend: Option<usize>,
    /// Pools by host name and path.
    pub routes: Routes<usize>,
}

/// The parts of a service that only DNS has.
#[derive(Clone, Debug)]
pub struct Dns {
    /// The options of DNS.
    pub spec: Arc<DnsSpec>,
    /// Cached responses.
    pub cache: Option<Arc<Cache>>,
    /// The query rates of clients' networks.
    pub rate_limit: Option<Arc<RateLimit>>,
}

/// A pool, and the protocol options of its servers.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The slot where its snapshots are published.
    pub pool: Arc<ArcSwap<Snapshot>>,
    /// TLS with its servers.
    pub tls: Option<Arc<TlsConnector>>,
    /// The version of the PROXY header that reports a client to a server; `None` sends no header.
    pub send_proxy: Option<proxy::Version>,
}

/// Treatment of a refused client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The connection is closed without a response.
    Drop,
    /// The connection is reset, or the client gets an HTTP error response.
    Reject,
    /// The client is kept waiting for this time, then its connection is closed.
    Tarpit(Duration),
    /// The client gets a server of this backend.
    Backend(usize),
}

/// Effect of new settings on the pools of a service. A pool also counts as changed if the version of its PROXY
/// header changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolChange {
    /// No pool changed.
    Same,
    /// The default pool changed.
    Another,
    /// Only the pool for clients that the access list refuses changed.
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
            records_refused: true,
            request_log: None,
            tls: None,
            http: None,
            dns: None,
            backends: vec![Backend { pool, tls: None, send_proxy: None }],
            default_backend: Some(0),
            routes: Routes::default(),
        }
    }

    /// The pool of the default backend.
    #[must_use]
    pub fn pool(&self) -> Option<&Arc<ArcSwap<Snapshot>>> {
        self.default_backend.map(|index| &self.backends[index].pool)
    }

    /// The backend for clients that the access list refuses, if there is one.
    pub(crate) fn refused(&self) -> Option<&Backend> {
        match self.denied {
            Refusal::Backend(backend) => self.backends.get(backend),
            Refusal::Drop | Refusal::Reject | Refusal::Tarpit(_) => None,
        }
    }

    pub(crate) fn permits(&self, client: IpAddr) -> bool {
        self.acl.as_ref().is_none_or(|acl| acl.access(client) == Access::Permit)
    }

    /// Returns whether the access list admits a client that a proxy reported. An access list refuses a client
    /// with a hidden address, because it cannot match the address.
    pub(crate) fn permits_reported(&self, client: Client) -> bool {
        let is_listed = self.acl.as_ref().is_some_and(|acl| !acl.is_empty());
        self.permits(client.address()) && !(is_listed && matches!(client, Client::Hidden(_)))
    }

    /// Returns whether this peer is a proxy that reports clients.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxy_from.as_ref().is_some_and(|acl| acl.access(peer) == Access::Permit)
    }

    /// Returns whether a connection to a server of this backend serves one client only, because the server gets
    /// the client's address in a PROXY header or as the source address.
    pub(crate) fn is_personal(&self, backend: usize) -> bool {
        self.options.source == Some(Source::Client) || self.backends[backend].send_proxy.is_some()
    }

    /// Returns whether connections need TLS or HTTP on either side, and not only a relay of bytes.
    pub(crate) fn is_layered(&self) -> bool {
        self.tls.is_some() || self.http.is_some() || self.backends.iter().any(|backend| backend.tls.is_some())
    }
}

/// A service of the workers.
#[derive(Debug)]
pub struct Service {
    /// Identity, occupancy and counters, which do not depend on the plane.
    pub live: Arc<ServiceLive>,
    /// The present settings; a reload replaces them.
    pub settings: ArcSwap<Settings>,
    /// TLS handshakes in progress.
    handshakes: Occupancy,
    /// Refused clients that are kept waiting.
    tarpitted: Occupancy,
    /// A listener waits for a permit.
    waiting: AtomicBool,
    noticed_at: [AtomicU64; 7],
    failures: FailureReports,
}

impl Service {
    /// Creates the service of the workers; `live` counts for it.
    #[must_use]
    pub fn new(live: Arc<ServiceLive>, settings: Settings) -> Self {
        Self {
            live,
            settings: ArcSwap::from_pointee(settings),
            handshakes: Occupancy::default(),
            tarpitted: Occupancy::default(),
            waiting: AtomicBool::new(false),
            noticed_at: Default::default(),
            failures: FailureReports::default(),
        }
    }

    /// Returns the clients, the most recently seen first; `None` if the service does not remember clients.
    pub fn clients(&self) -> Option<impl Iterator<Item = ClientSeen> + use<>> {
        let settings = self.settings.load();
        let clients = settings.clients.as_ref()?;
        Some(clients.newest(Time::ZERO).into_iter())
    }

    /// Takes a permit for one more connection. Returns `None` at the limit; then [`Service::wants_wake`]
    /// returns true once after the next release.
    pub(crate) fn enter(&self, connections_max: u32) -> Option<Lease> {
        self.enter_or_wait(&self.live.connections, connections_max)
    }

    /// Takes a permit for one more connection attempt to a server. Returns `None` at the limit; then
    /// [`Service::wants_wake`] returns true once after the next release.
    pub(crate) fn enter_pending(&self, pending_max: u32) -> Option<Lease> {
        self.enter_or_wait(&self.live.pending, pending_max)
    }

    /// Takes a permit for one more TLS handshake. Returns `None` at the limit.
    pub(crate) fn enter_handshake(&self, handshakes_max: u32) -> Option<Lease> {
        self.handshakes.enter(handshakes_max)
    }

    fn enter_or_wait(&self, permits: &Occupancy, bound: u32) -> Option<Lease> {
        permits.enter(bound).or_else(|| {
            self.waiting.store(true, Ordering::Relaxed);
            // Either this thread sees the release, or the releasing thread sees the flag.
            fence(Ordering::SeqCst);
            permits.enter(bound)
        })
    }

    /// Returns true if a listener waits for a permit and has to be woken, after the caller released a permit.
    /// Only one of several concurrent callers gets true.
    pub(crate) fn wants_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::Relaxed)
    }

    /// Wakes all workers if a listener waits for a permit or for descriptors, after the caller released a
    /// permit or a descriptor.
    pub(crate) fn wake_waiting(&self, cx: &Context) {
        if self.wants_wake() || descriptors::wants_wake() {
            cx.wake_all();
        }
    }

    /// Returns true if a lasting condition has to be reported now. Each condition of a service is reported at
    /// most once a second.
    pub(crate) fn may_notice(&self, kind: Notice, now: Time) -> bool {
        is_due(&self.noticed_at[kind as usize], now)
    }
}

/// Counts and reports that no server is available for a client.
pub(crate) fn note_no_server(cx: &Context, service: &Service, reason: NoServer) {
    service.live.counters.of(cx.id).no_server.one();
    if service.may_notice(Notice::NoServer, cx.now) {
        cx.report(Report::NoServer { service: service.live.name.clone(), reason });
    }
}

/// Counts the choice of a server after a failed try, or that the retry budget permitted none.
pub(crate) fn note_retry(
    cx: &Context,
    service: &Service,
    pool: &Arc<str>,
    picked: &Result<Choice, NoServer>,
) {
    match picked {
        Ok(choice) if choice.is_retry => service.live.counters.of(cx.id).retries.one(),
        Err(NoServer::RetryBudget) => note_retries_exhausted(cx, service, pool),
        Ok(_) | Err(_) => {}
    }
}

/// Returns whether a failed try may be repeated within the retry budget. Counts and reports that it may not,
/// although another server could take the request.
pub(crate) fn may_retry(
    cx: &Context,
    service: &Service,
    attempt: &Attempt,
    snapshot: &Snapshot,
    has_other: impl FnOnce() -> bool,
) -> bool {
    let may_retry = attempt.may_retry(snapshot, cx.now);
    if !may_retry && has_other() {
        note_retries_exhausted(cx, service, &snapshot.pool);
    }
    may_retry
}

fn note_retries_exhausted(cx: &Context, service: &Service, pool: &Arc<str>) {
    service.live.counters.of(cx.id).retries_exhausted.one();
    if service.may_notice(Notice::RetriesExhausted, cx.now) {
        cx.report(Report::RetriesExhausted { service: service.live.name.clone(), pool: Arc::clone(pool) });
    }
}

/// The resources of an accepted client: a permit of the service, and descriptors for its socket and the
/// server's.
#[derive(Debug)]
pub(crate) struct Permits {
    /// Permit of the service for a connection, or for a refused client that is kept waiting.
    pub(crate) lease: Lease,
    pub(crate) client: Unit,
    pub(crate) server: Unit,
}

impl Permits {
    pub(crate) fn new(lease: Lease, [client, server]: [Unit; 2]) -> Self {
        Self { lease, client, server }
    }
}

/// A pending connection attempt of a session.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) service: Arc<Service>,
    _permit: Option<Lease>,
}

impl Pending {
    /// Counts the connection attempt, even beyond the limit: the client is already accepted, and only accepting
    /// waits for a permit.
    pub(crate) fn begin(service: &Arc<Service>) -> Self {
        Self { service: Arc::clone(service), _permit: service.live.pending.enter(u32::MAX) }
    }

    /// Ends the connection attempt, and wakes listeners that wait for its permit.
    pub(crate) fn end(self, cx: &Context) {
        let service = Arc::clone(&self.service);
        drop(self);
        service.wake_waiting(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{TestPool, service_with};
    use super::*;
    use evener_core::spec::Protocol;

    fn service(change: impl FnOnce(&mut Settings)) -> Arc<Service> {
        service_with(Protocol::Http, &TestPool::new("pool", &[]), change)
    }

    #[test]
    fn a_listener_that_waits_for_a_permit_is_woken_once() {
        let service = service(|_| {});
        let first = service.enter(1).expect("the service is empty");
        assert!(!service.wants_wake(), "no listener waits");
        assert!(service.enter(1).is_none());
        drop(first);
        assert_eq!([service.wants_wake(), service.wants_wake()], [true, false]);
        assert!(service.enter(1).is_some());
    }

    #[test]
    fn connection_attempts_of_accepted_clients_may_exceed_the_limit() {
        let service = service(|_| {});
        let permit = service.enter_pending(1);
        let accepted = Pending::begin(&service);
        assert_eq!((service.live.pending.active(), service.enter_pending(2).is_none()), (2, true));
        drop((permit, accepted));
        assert_eq!(service.live.pending.active(), 0);
    }

    #[test]
    fn an_access_list_refuses_clients_with_hidden_addresses() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let list =
            |rules: &[(evener_core::acl::Prefix, Access)]| Some(Arc::new(Acl::new(rules, Access::Permit)));
        let other = [("198.51.100.0/24".parse().unwrap(), Access::Deny)];
        for (acl, known, hidden) in [(None, true, true), (list(&[]), true, true), (list(&other), true, false)]
        {
            let settings = service(|settings| settings.acl = acl).settings.load_full();
            assert_eq!(settings.permits_reported(Client::Known(address)), known);
            assert_eq!(settings.permits_reported(Client::Hidden(address)), hidden);
        }
    }

    #[test]
    fn connections_are_personal_if_the_server_gets_the_clients_address() {
        let check = |expected: bool, change: fn(&mut Settings)| {
            assert_eq!(service(change).settings.load().is_personal(0), expected);
        };
        check(false, |_| {});
        check(true, |settings| settings.options.source = Some(Source::Client));
        check(false, |settings| settings.options.source = Some(Source::Address([192, 0, 2, 1].into())));
        check(true, |settings| settings.backends[0].send_proxy = Some(proxy::Version::V1));
    }

    #[test]
    fn a_service_without_a_server_is_reported_once_a_second() {
        let (mut cx, reports) = Context::for_tests();
        let service = service(|_| {});
        for (millis, reported) in [(10, 1), (900, 0), (1010, 1)] {
            cx.now = Time::ZERO + Duration::from_millis(millis);
            note_no_server(&cx, &service, NoServer::Down);
            assert_eq!(reports.take().len(), reported, "after {millis} ms");
        }
        assert_eq!(service.live.counters.total("no_server"), 3);
        // Each condition has its own interval.
        assert!(service.may_notice(Notice::Full, cx.now) && !service.may_notice(Notice::NoServer, cx.now));
    }
}
