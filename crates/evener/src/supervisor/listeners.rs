//! Listeners of a configuration: every new address is bound before anything changes; those that stay keep their sockets.

use super::{RunningListener, Supervisor};
use crate::config::{Config, Problem};
use evener_core::Endpoint;
use evener_core::event::Event;
use evener_core::spec::{ServiceSpec, Source, Transport};
use evener_proxy::{Bound, Sharing, bind, may_be_transparent};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Workers keep a listener for datagrams that a reload took out until its flows and questions are over, which takes so long at
/// most where nobody configured another time.
const LEAVING_MAX: Duration = Duration::from_secs(60);

pub(super) type Fresh = BTreeMap<(Transport, Endpoint), Bound>;

impl Supervisor {
    /// Addresses that are bound already, for the next configuration: the right to bind them may be gone by then.
    pub(crate) fn bring(&mut self, bound: Vec<(Transport, Endpoint, Bound)>) {
        let keyed = bound.into_iter().map(|(transport, address, bound)| ((transport, address), bound));
        self.brought.extend(keyed);
    }

    /// Binds every address that is not listened on yet.
    pub(super) fn bind_fresh(&mut self, config: &Config) -> Result<Fresh, Vec<Problem>> {
        let (mut fresh, mut problems) = (Fresh::new(), Vec::new());
        for service in &config.spec.services {
            problems.extend(source_problem(service));
            for (transport, address) in places_of(service) {
                let key = (transport, address.clone());
                if self.listeners.contains_key(&key) {
                    continue;
                }
                if let Some(bound) = self.brought.remove(&key) {
                    fresh.insert(key, bound);
                    continue;
                }
                let sharing =
                    if self.overlaps_ours(&key, &fresh) { Sharing::WithOurs } else { Sharing::None };
                // Where the system chooses the port, both transports have the same one.
                let wanted = same_port(&fresh, &key).unwrap_or_else(|| address.clone());
                match bind(&wanted, transport, &service.options, self.plane.workers(), sharing) {
                    Ok(bound) => drop(fresh.insert(key, bound)),
                    Err(error) => {
                        let message = format!("service `{}`: {error}", service.name);
                        let place = config.listen_places.get(&(service.name.clone(), address.clone()));
                        problems.push(Problem { place: place.cloned(), message });
                    }
                }
            }
        }
        // Where somebody has the address for streams and for datagrams, once is enough.
        problems.dedup();
        if problems.is_empty() { Ok(fresh) } else { Err(problems) }
    }

    /// Whether a listener of ours has the port already, on all addresses or on one of those that this one means.
    fn overlaps_ours(&self, (transport, address): &(Transport, Endpoint), fresh: &Fresh) -> bool {
        let Endpoint::Ip(wanted) = address else { return false };
        let is_leaving = |left: &Endpoint| {
            let Endpoint::Ip(left) = left else { return false };
            let all = left.ip().is_unspecified() || wanted.ip().is_unspecified();
            left == wanted || (left.port() == wanted.port() && left.is_ipv4() == wanted.is_ipv4() && all)
        };
        if *transport == Transport::Datagram && self.leaving.keys().any(is_leaving) {
            return true;
        }
        self.listeners.keys().chain(fresh.keys()).any(|(other, address)| {
            let Endpoint::Ip(ours) = address else { return false };
            let all = ours.ip().is_unspecified() || wanted.ip().is_unspecified();
            other == transport && ours.port() == wanted.port() && ours.is_ipv4() == wanted.is_ipv4() && all
        })
    }

    /// Listeners whose address stays go on, with another service if it is so; others open and close.
    pub(super) fn apply_listeners(&mut self, config: &Config, mut fresh: Fresh) {
        // What comes by connections and by datagrams listens twice; that is said once.
        let (mut wanted, mut told) = (BTreeSet::new(), BTreeSet::new());
        for spec in &config.spec.services {
            let Some(service) = self.services.get(&spec.name).map(Arc::clone) else { continue };
            for (transport, address) in places_of(spec) {
                let key = (transport, address.clone());
                wanted.insert(key.clone());
                if let Some(bound) = fresh.remove(&key) {
                    let address = bound.address.clone();
                    let id = self.plane.listen(&service, bound);
                    let (name, protocol) = (spec.name.clone(), spec.protocol.name());
                    if told.insert((name.clone(), address.clone())) {
                        let address = address.to_string();
                        self.tell(&Event::Listening { service: name.clone(), protocol, address });
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
        let gone: Vec<_> = self.listeners.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        let mut closed = BTreeSet::new();
        let leaving_until = self.now() + LEAVING_MAX;
        for (key, listener) in gone.iter().filter_map(|key| self.listeners.remove_entry(key)) {
            self.plane.unlisten(listener.id);
            if key.0 == Transport::Datagram {
                self.leaving.insert(listener.bound.clone(), leaving_until);
            }
            if closed.insert((listener.service.clone(), listener.bound.clone())) {
                let address = listener.bound.to_string();
                self.setting.log.event(&Event::ListenerClosed { service: listener.service, address });
            }
        }
    }
}

/// Where a service listens, and how clients come there.
fn places_of(service: &ServiceSpec) -> impl Iterator<Item = (Transport, &Endpoint)> {
    let transports = service.protocol.transports();
    service.listen.iter().flat_map(move |address| transports.iter().map(move |each| (*each, address)))
}

/// The address that the other transport of a place got, where the system chose its port.
fn same_port(fresh: &Fresh, (transport, address): &(Transport, Endpoint)) -> Option<Endpoint> {
    if *transport != Transport::Datagram || !matches!(address, Endpoint::Ip(ip) if ip.port() == 0) {
        return None;
    }
    fresh.get(&(Transport::Stream, address.clone())).map(|bound| bound.address.clone())
}

/// A source that may not be used would fail every connect.
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
