//! Listening sockets that this process did not open: the table from an address and a transport to descriptors. The
//! previous instance hands them over at an upgrade.

use evener_core::Endpoint;
use evener_core::spec::{ServiceOptions, Transport};
use evener_proxy::{AdoptError, Bound};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Identity of a listener across reloads and upgrades. A listener with a configured port passes to another service
/// if that service has the address in a new configuration. A listener whose port the system chose belongs to its
/// service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListenerKey {
    transport: Transport,
    /// Address as configured.
    address: Endpoint,
    owner: Option<Arc<str>>,
}

impl ListenerKey {
    pub(crate) fn new(transport: Transport, address: &Endpoint, service: &Arc<str>) -> Self {
        let owner = chosen_by_system(address).map(|_| Arc::clone(service));
        Self { transport, address: address.clone(), owner }
    }

    /// Returns the key of the listener at the path of a unix socket.
    pub(crate) fn at_path(path: &Path) -> Self {
        Self { transport: Transport::Stream, address: Endpoint::Unix(path.to_owned()), owner: None }
    }

    /// Returns the transport.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the address as configured.
    pub(crate) fn address(&self) -> &Endpoint {
        &self.address
    }

    /// Returns the service, if the system chose the port.
    pub(crate) fn owner(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()
    }

    /// Returns the path of a unix socket, which may be abstract.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.address {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Ip(_) | Endpoint::Host { .. } => None,
        }
    }
}

/// Returns the address if the system chooses its port (port 0).
pub(crate) fn chosen_by_system(address: &Endpoint) -> Option<SocketAddr> {
    match address {
        Endpoint::Ip(address) if address.port() == 0 => Some(*address),
        _ => None,
    }
}

/// The sockets at one address.
#[derive(Debug)]
struct Sockets {
    /// The address with the port that the system chose.
    bound: Endpoint,
    descriptors: Vec<OwnedFd>,
}

/// Inherited listening sockets.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    by_key: BTreeMap<ListenerKey, Sockets>,
}

impl Inherited {
    /// Adds a descriptor of a listener. `bound` is its address with the port that the system chose.
    pub(crate) fn add(&mut self, key: ListenerKey, bound: Endpoint, descriptor: OwnedFd) {
        let sockets = self.by_key.entry(key).or_insert_with(|| Sockets { bound, descriptors: Vec::new() });
        sockets.descriptors.push(descriptor);
    }

    /// Returns the listeners, with their bound addresses.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (&ListenerKey, &Endpoint)> {
        self.by_key.iter().map(|(key, sockets)| (key, &sockets.bound))
    }

    /// Takes the sockets of a listener, for `workers` workers. Returns `None` if there are none.
    ///
    /// # Errors
    /// The sockets cannot be used.
    pub(crate) fn take(
        &mut self,
        key: &ListenerKey,
        options: &ServiceOptions,
        workers: usize,
    ) -> Option<Result<Bound, AdoptError>> {
        let Sockets { bound, descriptors } = self.by_key.remove(key)?;
        Some(Bound::adopt(&bound, key.transport, descriptors, options, workers))
    }
}
