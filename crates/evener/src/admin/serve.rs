//! Connections of clients of the admin API, at the admin socket and over TCP, within limits of number, size and time.

use super::gate;
use super::guard::Peer;
use crate::api_access::{ApiAccess, Endpoint};
use crate::supervisor::{Endpoints, Handle};
use crate::upgrade::EndpointPhase;
use axum::{Extension, Router};
use evener_core::lock::lock;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Maximum number of connections at the same time, at the admin socket and over TCP each.
const CONNECTIONS_MAX: usize = 128;
/// Maximum number of connections over TCP from one address (of IPv6: from a network of 64 bits).
const ADDRESS_CONNECTIONS_MAX: u32 = 32;
/// Time until the header section of the next request must have arrived.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until the TLS handshake must be complete.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a header section.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Maximum number of header fields.
const HEADERS_MAX: usize = 64;
/// Time until the requests in progress must be complete after the access changed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a client that does not receive what was sent is closed.
const UNSENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to wait if no connection can be accepted, for example without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// Serves the API at the admin socket, until the next instance takes the socket over.
pub(super) async fn at_socket(listener: UnixListener, router: Router, phase: watch::Receiver<EndpointPhase>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Some(accepted) = gate::accept(&phase, || listener.accept()).await else { return };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let router = router.clone().layer(Extension(Peer::local(&stream)));
        let passed_on = EndpointPhase::wait(phase.clone(), |phase| phase == EndpointPhase::PassedOn);
        tokio::spawn(async move {
            connection(stream, router, async {
                let _ = passed_on.await;
            })
            .await;
            drop(permit);
        });
    }
}

/// Serves the API at the address of the configuration in use. There is none while the instance drains.
pub(crate) async fn serve_endpoints(
    supervisor: Handle,
    mut endpoints: Endpoints,
    phase: watch::Receiver<EndpointPhase>,
) {
    let router = super::router(supervisor);
    let permits = Permits::new();
    loop {
        let endpoint = endpoints.borrow_and_update().clone();
        let changed = match endpoint {
            None => endpoints.changed().await,
            Some(endpoint) => {
                let seen = endpoints.clone();
                tokio::select! {
                    changed = endpoints.changed() => changed,
                    () = at_endpoint(&endpoint, &router, &permits, (seen, &phase)) => return,
                }
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Permits for connections over TCP.
struct Permits {
    all: Arc<Semaphore>,
    /// Number of connections from each network.
    by_network: Arc<Mutex<BTreeMap<IpAddr, u32>>>,
}

impl Permits {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(CONNECTIONS_MAX)), by_network: Arc::default() }
    }

    /// Returns the share of a further connection from this address; `None` if there are too many.
    fn share_of(&self, address: IpAddr) -> Option<Share> {
        let network = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            address => address,
        };
        let mut counts = lock(&self.by_network);
        let count = counts.entry(network).or_default();
        let has_room = *count < ADDRESS_CONNECTIONS_MAX;
        *count += u32::from(has_room);
        has_room.then(|| Share { by_network: Arc::clone(&self.by_network), network })
    }
}

/// The share of one connection in those of its network.
struct Share {
    by_network: Arc<Mutex<BTreeMap<IpAddr, u32>>>,
    network: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = lock(&self.by_network);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

async fn at_endpoint(
    endpoint: &Endpoint,
    router: &Router,
    permits: &Permits,
    (endpoints, phase): (Endpoints, &watch::Receiver<EndpointPhase>),
) {
    let listener = loop {
        match endpoint.listener() {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    loop {
        let Ok(permit) = Arc::clone(&permits.all).acquire_owned().await else { return };
        let Some(accepted) = gate::accept(phase, || listener.accept()).await else { return };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        // One client cannot keep all others out.
        let Some(share) = permits.share_of(address.ip()) else { continue };
        let (access, router, endpoints) = (Arc::clone(endpoint.access()), router.clone(), endpoints.clone());
        tokio::spawn(async move {
            over_tcp((stream, address), access, router, endpoints).await;
            drop((permit, share));
        });
    }
}

async fn over_tcp(
    (stream, address): (TcpStream, SocketAddr),
    access: Arc<ApiAccess>,
    router: Router,
    mut endpoints: Endpoints,
) {
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_user_timeout(&stream, u32::try_from(UNSENT_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
    let router = router.layer(Extension(Peer::remote(address, Arc::clone(&access))));
    let tls = access.tls().cloned();
    let withdrawn = async move {
        let is_other = |endpoint: &Option<Arc<Endpoint>>| {
            !endpoint.as_ref().is_some_and(|one| Arc::ptr_eq(one.access(), &access))
        };
        let _ = endpoints.wait_for(is_other).await;
    };
    match tls {
        None => connection(stream, router, withdrawn).await,
        Some(config) => {
            let handshake = TlsAcceptor::from(config).accept(stream);
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                connection(stream, router, withdrawn).await;
            }
        }
    }
}

/// Serves the requests of a connection until it ends, or until the access of its client changes.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    withdrawn: impl Future<Output = ()>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = withdrawn => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn one_network_has_a_share_of_the_connections() {
        let permits = Permits::new();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let near = ["192.0.2.1", "::ffff:192.0.2.1"].into_iter().cycle();
        let shares: Vec<Share> = near.take(32).map(|near| permits.share_of(address(near)).unwrap()).collect();
        assert!(permits.share_of(address("192.0.2.1")).is_none());
        assert!(permits.share_of(address("192.0.2.2")).is_some());
        let many: Vec<Option<Share>> =
            (0..40).map(|host| permits.share_of(address(&format!("2001:db8::{host:x}")))).collect();
        assert_eq!(many.iter().flatten().count(), 32);
        assert!(permits.share_of(address("2001:db8:0:1::1")).is_some());
        drop((shares, many));
        assert!(permits.share_of(address("192.0.2.1")).is_some());
        assert_eq!(lock(&permits.by_network).len(), 0);
    }
}
