//! Listeners of a configuration. Every new address is bound before anything changes, and listeners that stay
//! keep their sockets.

use super::reservation::Reservation;
use super::{RunningListener, Supervisor};
use crate::config::{Config, Problem};
use evener_core::Endpoint;
use evener_core::event::Event;
use evener_core::spec::{ServiceSpec, Source, Transport};
use evener_proxy::{BindError, Bound, Sharing, bind, may_be_transparent};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Time for which the address of a removed datagram listener counts as in use by the workers, which serve its
/// last flows and queries.
const LEAVING_MAX: Duration = Duration::from_secs(60);

/// Identity of a listener across reloads. A listener with a configured port passes to another service if that
/// service has the address in a new configuration. A listener whose port the system chose belongs to its
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
    pub(super) fn at_path(path: &Path) -> Self {
        Self { transport: Transport::Stream, address: Endpoint::Unix(path.to_owned()), owner: None }
    }

    /// Returns the path of a unix socket, which may be abstract.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.address {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Ip(_) | Endpoint::Host { .. } => None,
        }
    }
}

pub(super) type NewListeners = BTreeMap<ListenerKey, Bound>;

impl Supervisor {
    /// Adds sockets that are bound already, for the addresses of the next configuration. The program may have
    /// no right to bind these addresses any more.
    pub(crate) fn add_prebound(&mut self, bound: Vec<(ListenerKey, Bound)>) {
        self.prebound.extend(bound);
    }

    /// Binds every address without a listener.
    pub(super) fn bind_new(&mut self, config: &Config) -> Result<NewListeners, Vec<Problem>> {
        let (mut new_listeners, mut problems) = (NewListeners::new(), Vec::new());
        for service in &config.spec.services {
            problems.extend(source_problem(service));
            for address in &service.listen {
                problems.extend(self.bind_address(service, address, &mut new_listeners).iter().map(
                    |error| {
                        let message = format!("service `{}`: {error}", service.name);
                        config.problem_with_listen(&service.name, address, message)
                    },
                ));
            }
        }
        // An address that is in use for streams and for datagrams is reported once.
        problems.dedup();
        if problems.is_empty() { Ok(new_listeners) } else { Err(problems) }
    }

    /// Binds an address for the transports of a service that have no listener there.
    fn bind_address(
        &mut self,
        service: &ServiceSpec,
        address: &Endpoint,
        new_listeners: &mut NewListeners,
    ) -> Vec<BindError> {
        let transports = service.protocol.transports();
        let keys = transports.iter().map(|&transport| ListenerKey::new(transport, address, &service.name));
        let (existing, mut missing): (Vec<_>, Vec<_>) =
            keys.partition(|key| self.listeners.contains_key(key));
        missing.retain(|key| match self.prebound.remove(key) {
            Some(bound) => {
                new_listeners.insert(key.clone(), bound);
                false
            }
            None => true,
        });
        if missing.is_empty() {
            return Vec::new();
        }
        let existing =
            existing.first().and_then(|key| self.listeners.get(key)).map(|listener| &listener.bound);
        let reserved = match chosen_by_system(address).filter(|_| existing.is_none()) {
            Some(ip) => match Reservation::new(ip, transports, service.options.freebind) {
                Ok(reserved) => Some(reserved),
                Err(error) => return vec![bind_error(address, error)],
            },
            None => None,
        };
        let chosen = reserved.as_ref().map(Reservation::endpoint);
        let wanted = chosen.as_ref().or(existing).unwrap_or(address).clone();
        let mut errors = Vec::new();
        for key in missing {
            let shared = reserved.is_some() || self.overlaps_local(key.transport, &wanted, new_listeners);
            let sharing = if shared { Sharing::Overlapping } else { Sharing::None };
            match bind(&wanted, key.transport, &service.options, self.plane.workers(), sharing) {
                Ok(bound) => drop(new_listeners.insert(key, bound)),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Returns true if a listener of this instance, or a removed datagram listener that workers may still
    /// serve, has the same port on the same address, or if one of the two addresses includes the other.
    fn overlaps_local(&self, transport: Transport, address: &Endpoint, new_listeners: &NewListeners) -> bool {
        let Endpoint::Ip(wanted) = address else { return false };
        let overlaps = |local: &Endpoint| {
            let Endpoint::Ip(local) = local else { return false };
            let all = local.ip().is_unspecified() || wanted.ip().is_unspecified();
            local == wanted || (local.port() == wanted.port() && local.is_ipv4() == wanted.is_ipv4() && all)
        };
        if transport == Transport::Datagram && self.leaving.keys().any(overlaps) {
            return true;
        }
        let local = self.listeners.iter().map(|(key, listener)| (key.transport, &listener.bound));
        let mut local = local.chain(new_listeners.iter().map(|(key, bound)| (key.transport, &bound.address)));
        local.any(|(other, address)| other == transport && overlaps(address))
    }

    /// Applies listeners. Listeners whose address stays continue, possibly for another service. Other listeners
    /// are opened or closed.
    pub(super) fn apply_listeners(&mut self, config: &Config, mut new_listeners: NewListeners) {
        // A service with streams and datagrams has two listeners at one address, which are logged once.
        let (mut wanted, mut logged) = (BTreeSet::new(), BTreeSet::new());
        for spec in &config.spec.services {
            let Some(service) = self.services.get(&spec.name).map(Arc::clone) else { continue };
            for key in keys_of(spec) {
                wanted.insert(key.clone());
                if let Some(bound) = new_listeners.remove(&key) {
                    let address = bound.address.clone();
                    let id = self.plane.listen(&service, bound);
                    let (name, protocol) = (spec.name.clone(), spec.protocol.name());
                    if logged.insert((name.clone(), address.clone())) {
                        let address = address.to_string();
                        self.log(&Event::Listening { service: name.clone(), protocol, address });
                    }
                    let serving = Arc::clone(&service);
                    self.listeners
                        .insert(key, RunningListener { service: name, serving, bound: address, id });
                } else if let Some(listener) = self.listeners.get_mut(&key)
                    && !Arc::ptr_eq(&listener.serving, &service)
                {
                    listener.service = spec.name.clone();
                    listener.serving = Arc::clone(&service);
                    self.plane.assign(listener.id, &service);
                }
            }
        }
        let removed: Vec<_> = self.listeners.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        let mut closed = BTreeSet::new();
        let leaving_until = self.now() + LEAVING_MAX;
        for (key, listener) in removed.iter().filter_map(|key| self.listeners.remove_entry(key)) {
            self.plane.unlisten(listener.id);
            if key.transport == Transport::Datagram {
                self.leaving.insert(listener.bound.clone(), leaving_until);
            }
            if closed.insert((listener.service.clone(), listener.bound.clone())) {
                let address = listener.bound.to_string();
                self.setting.events.emit(&Event::ListenerClosed { service: listener.service, address });
            }
        }
    }
}

/// Returns the keys of the listeners of a service.
fn keys_of(service: &ServiceSpec) -> impl Iterator<Item = ListenerKey> {
    let transports = service.protocol.transports();
    let of_address =
        move |address| transports.iter().map(move |&each| ListenerKey::new(each, address, &service.name));
    service.listen.iter().flat_map(of_address)
}

/// Returns the address if the system chooses its port (port 0).
fn chosen_by_system(address: &Endpoint) -> Option<SocketAddr> {
    match address {
        Endpoint::Ip(address) if address.port() == 0 => Some(*address),
        _ => None,
    }
}

fn bind_error(address: &Endpoint, error: io::Error) -> BindError {
    let address = address.clone();
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => BindError::NotLocal(address),
        _ => BindError::Other(address, error),
    }
}

/// Returns a problem if the source address cannot be used, because every connection attempt would fail.
fn source_problem(service: &ServiceSpec) -> Option<Problem> {
    let message = match service.options.source? {
        Source::Address(source) if std::net::UdpSocket::bind((source, 0)).is_err() => {
            format!("service `{}`: source {source} is not an address of this machine", service.name)
        }
        Source::Client => {
            let error = may_be_transparent().err()?;
            format!(
                "service `{}`: source = \"client\" is not allowed here ({error}): give the program CAP_NET_ADMIN \
                 (AmbientCapabilities= in its systemd unit, or run it as root)",
                service.name
            )
        }
        Source::Address(_) => return None,
    };
    Some(Problem::new(message))
}
