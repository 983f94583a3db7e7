//! Listeners of a configuration. Every new address is bound before anything changes, and listeners that stay
//! keep their sockets.

use super::paths::Paths;
use super::reservation::Reservation;
use crate::config::{Config, Problem};
use crate::inherited::{Inherited, ListenerKey, chosen_by_system};
use crate::planes::{ListenerId, Planes, RunningService};
use evener_core::event::Event;
use evener_core::spec::{Plane, ServiceSpec, Source, Transport};
use evener_core::{Endpoint, Time};
use evener_proxy::{BindError, Bound, Service, Sharing, bind, may_be_transparent};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Time for which the address of a removed datagram listener counts as in use by the workers, which serve its
/// last flows and queries.
const LEAVING_MAX: Duration = Duration::from_secs(60);

pub(super) type NewListeners = BTreeMap<ListenerKey, Bound>;

/// A listener with its service, its bound address and its identity in the plane.
pub(super) struct RunningListener {
    service: Arc<str>,
    /// The service of the workers. A change of the protocol replaces it.
    serving: Arc<Service>,
    bound: Endpoint,
    id: ListenerId,
}

impl RunningListener {
    /// Binds the path of a unix socket again and closes the present socket. Returns the problem if that fails.
    pub(super) fn bind_again(&mut self, address: &Endpoint, plane: &mut Planes) -> Result<Event, String> {
        let live = &self.serving.live;
        let options = &self.serving.settings.load().options;
        let bound =
            bind(address, Transport::Stream, options, plane.workers(), Sharing::None).map_err(|error| {
                let name = &live.name;
                format!("service `{name}`: its socket file was removed and cannot be created again: {error}")
            })?;
        let before = std::mem::replace(&mut self.id, plane.listen(&self.serving, bound));
        plane.unlisten(before);
        let (service, protocol) = (Arc::clone(&live.name), live.protocol.name());
        Ok(Event::Listening { service, protocol, address: address.to_string() })
    }
}

/// The addresses that services listen on, by the names of the services.
pub(super) type ListenAddresses<'a> = BTreeMap<&'a str, BTreeSet<&'a Endpoint>>;

/// The listeners of all services.
#[derive(Default)]
pub(super) struct Listeners {
    by_key: BTreeMap<ListenerKey, RunningListener>,
    /// Addresses for datagrams that a reload removed, with the time until which workers may still use them.
    leaving: BTreeMap<Endpoint, Time>,
    /// Addresses that were bound before the first configuration was applied.
    prebound: NewListeners,
    /// Sockets of the previous instance, or of the service manager.
    inherited: Inherited,
    /// Checks of the files of unix sockets.
    paths: Paths,
}

impl Listeners {
    /// Adds sockets that are bound already, for the addresses of the next configuration.
    pub(super) fn add_prebound(&mut self, bound: Vec<(ListenerKey, Bound)>) {
        self.prebound.extend(bound);
    }

    /// Adds sockets of another process, for the addresses of the next configuration.
    pub(super) fn add_inherited(&mut self, inherited: Inherited) {
        self.inherited = inherited;
    }

    /// Closes the inherited sockets that the configuration does not use. Their queues stay with the process that
    /// handed them over.
    pub(super) fn forget_inherited(&mut self) {
        self.inherited = Inherited::default();
    }

    /// Returns whether there is a listener with this key.
    pub(super) fn contains(&self, key: &ListenerKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Returns the listeners: their keys, bound addresses and ids in the plane.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ListenerKey, &Endpoint, ListenerId)> {
        self.by_key.iter().map(|(key, listener)| (key, &listener.bound, listener.id))
    }

    /// Returns the number of listeners.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns the addresses that services listen on, as bound.
    pub(super) fn bound_addresses(&self) -> ListenAddresses<'_> {
        let mut addresses = ListenAddresses::new();
        for listener in self.by_key.values() {
            // One address may have a TCP and a UDP listener; it is listed once.
            addresses.entry(&*listener.service).or_default().insert(&listener.bound);
        }
        addresses
    }

    /// Returns the names of services with each address on which they listen when `new_listeners` are applied.
    pub(super) fn addresses_of<'a>(
        &'a self,
        services: &'a [ServiceSpec],
        new_listeners: &'a NewListeners,
    ) -> impl Iterator<Item = (&'a str, &'a Endpoint)> {
        let keys = services.iter().flat_map(|service| keys_of(service).map(|key| (&*service.name, key)));
        keys.filter_map(|(service, key)| {
            let new = new_listeners.get(&key).map(|bound| &bound.address);
            let address = new.or_else(|| self.by_key.get(&key).map(|listener| &listener.bound))?;
            Some((service, address))
        })
    }

    /// Returns the time of the next check of files.
    pub(super) fn deadline(&self) -> Time {
        let has_paths = self.by_key.keys().any(|key| key.path().is_some());
        if has_paths { self.paths.next() } else { Time::NEVER }
    }

    /// Makes the next check of files due now.
    pub(super) fn check_now(&mut self) {
        self.paths.check_now();
    }

    /// Forgets addresses that workers no longer use, and binds sockets again whose files were removed.
    pub(super) fn on_time(&mut self, now: Time, plane: &mut Planes) -> Vec<Event> {
        self.leaving.retain(|_, until| *until > now);
        if self.deadline() > now {
            return Vec::new();
        }
        self.paths.check(now, &mut self.by_key, plane)
    }

    /// Returns each listener as text, with whether its service is one of `services`.
    #[cfg(test)]
    pub(super) fn describe(&self, services: &BTreeMap<Arc<str>, RunningService>) -> BTreeMap<String, String> {
        let text = |listener: &RunningListener| {
            let RunningListener { service, serving, bound, id: _ } = listener;
            let current = services.get(service).and_then(RunningService::of_workers);
            let is_current = current.is_some_and(|current| Arc::ptr_eq(current, serving));
            format!("{service} {bound} {is_current}")
        };
        self.by_key.iter().map(|(key, listener)| (format!("{key:?}"), text(listener))).collect()
    }

    /// Binds every address without a listener.
    pub(super) fn bind_new(&mut self, config: &Config, workers: usize) -> Result<NewListeners, Vec<Problem>> {
        let (mut new_listeners, mut problems) = (NewListeners::new(), Vec::new());
        let proxied = config.spec.services.iter().filter(|service| service.plane == Plane::Proxy);
        for service in proxied {
            problems.extend(source_problem(service));
            for address in &service.listen {
                problems.extend(self.bind_address(service, address, workers, &mut new_listeners).iter().map(
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
        workers: usize,
        new_listeners: &mut NewListeners,
    ) -> Vec<BindError> {
        let transports = service.protocol.transports();
        let keys = transports.iter().map(|&transport| ListenerKey::new(transport, address, &service.name));
        let (existing, mut missing): (Vec<_>, Vec<_>) = keys.partition(|key| self.by_key.contains_key(key));
        let mut errors = self.take_opened(&mut missing, (service, address), workers, new_listeners);
        if missing.is_empty() {
            return errors;
        }
        let existing = existing.first().and_then(|key| self.by_key.get(key)).map(|listener| &listener.bound);
        let reserved = match chosen_by_system(address).filter(|_| existing.is_none()) {
            Some(ip) => match Reservation::new(ip, transports, service.options.freebind) {
                Ok(reserved) => Some(reserved),
                Err(error) => return vec![bind_error(address, error)],
            },
            None => None,
        };
        let chosen = reserved.as_ref().map(Reservation::endpoint);
        let wanted = chosen.as_ref().or(existing).unwrap_or(address).clone();
        for key in missing {
            let shared = reserved.is_some() || self.overlaps_local(key.transport(), &wanted, new_listeners);
            let sharing = if shared { Sharing::Overlapping } else { Sharing::None };
            match bind(&wanted, key.transport(), &service.options, workers, sharing) {
                Ok(bound) => drop(new_listeners.insert(key, bound)),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Takes the sockets that are open already, and removes their keys from `missing`.
    fn take_opened(
        &mut self,
        missing: &mut Vec<ListenerKey>,
        (service, address): (&ServiceSpec, &Endpoint),
        workers: usize,
        new_listeners: &mut NewListeners,
    ) -> Vec<BindError> {
        let mut errors = Vec::new();
        missing.retain(|key| {
            let inherited = || self.inherited.take(key, &service.options, workers);
            match self.prebound.remove(key).map(Ok).or_else(inherited) {
                Some(Ok(bound)) => drop(new_listeners.insert(key.clone(), bound)),
                Some(Err(error)) => errors.push(BindError::Other(address.clone(), io::Error::other(error))),
                None => return true,
            }
            false
        });
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
        let local = self.by_key.iter().map(|(key, listener)| (key.transport(), &listener.bound));
        let inherited = self.inherited.listeners().map(|(key, bound)| (key.transport(), bound));
        let mut local = local
            .chain(inherited)
            .chain(new_listeners.iter().map(|(key, bound)| (key.transport(), &bound.address)));
        local.any(|(other, address)| other == transport && overlaps(address))
    }

    /// Applies listeners. Listeners whose address stays continue, possibly for another service. Other listeners
    /// are opened or closed.
    pub(super) fn apply(
        &mut self,
        config: &Config,
        services: &BTreeMap<Arc<str>, RunningService>,
        mut new_listeners: NewListeners,
        plane: &mut Planes,
        now: Time,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        // A service with streams and datagrams has two listeners at one address, which are logged once.
        let (mut wanted, mut logged) = (BTreeSet::new(), BTreeSet::new());
        for spec in &config.spec.services {
            let running = services.get(&spec.name).and_then(RunningService::of_workers);
            let Some(service) = running else { continue };
            for key in keys_of(spec) {
                wanted.insert(key.clone());
                if let Some(bound) = new_listeners.remove(&key) {
                    let address = bound.address.clone();
                    let id = plane.listen(service, bound);
                    let (name, protocol) = (spec.name.clone(), spec.protocol.name());
                    if logged.insert((name.clone(), address.clone())) {
                        let address = address.to_string();
                        events.push(Event::Listening { service: name.clone(), protocol, address });
                    }
                    let serving = Arc::clone(service);
                    self.by_key.insert(key, RunningListener { service: name, serving, bound: address, id });
                } else if let Some(listener) = self.by_key.get_mut(&key)
                    && !Arc::ptr_eq(&listener.serving, service)
                {
                    listener.service = spec.name.clone();
                    listener.serving = Arc::clone(service);
                    plane.assign(listener.id, service);
                }
            }
        }
        let removed: Vec<_> = self.by_key.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        let mut closed = BTreeSet::new();
        let leaving_until = now + LEAVING_MAX;
        for (key, listener) in removed.iter().filter_map(|key| self.by_key.remove_entry(key)) {
            plane.unlisten(listener.id);
            if key.transport() == Transport::Datagram {
                self.leaving.insert(listener.bound.clone(), leaving_until);
            }
            if closed.insert((listener.service.clone(), listener.bound.clone())) {
                let address = listener.bound.to_string();
                events.push(Event::ListenerClosed { service: listener.service, address });
            }
        }
        events
    }
}

/// Returns the keys of the listeners of a service. A service in the kernel has no sockets.
fn keys_of(service: &ServiceSpec) -> impl Iterator<Item = ListenerKey> {
    let transports = service.protocol.transports();
    let of_address =
        move |address| transports.iter().map(move |&each| ListenerKey::new(each, address, &service.name));
    let addresses = service.listen.iter().filter(|_| service.plane == Plane::Proxy);
    addresses.flat_map(of_address)
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
