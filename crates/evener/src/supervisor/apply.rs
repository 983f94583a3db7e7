//! Taking on a configuration: whatever can fail is done first (addresses are bound), and nothing has changed by then. What
//! stays keeps its listeners, connections, flows, verdicts and counters.

use super::{RunningListener, RunningPool, Supervisor, Transport};
use crate::config::{Config, Problem};
use crate::resolve::Targets;
use arc_swap::ArcSwap;
use evener_core::diff::diff;
use evener_core::event::Event;
use evener_core::pool::Pool;
use evener_core::spec::{PoolSpec, ServiceSpec};
use evener_core::{Endpoint, Target};
use evener_proxy::{Bound, Service, Settings, Sharing, bind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Fresh = BTreeMap<(Transport, Endpoint), Bound>;

impl Supervisor {
    /// Takes on a configuration; what changed, in words. With a problem nothing changes.
    pub(crate) fn apply(&mut self, config: Config, targets: &Targets) -> Result<Vec<String>, Vec<Problem>> {
        let fresh = self.bind_fresh(&config)?;
        let changes = diff(&self.config.spec, &config.spec).iter().map(ToString::to_string).collect();
        for spec in &config.spec.pools {
            self.apply_pool(spec, targets);
        }
        self.publish();
        for spec in &config.spec.services {
            self.apply_service(spec);
        }
        self.apply_listeners(&config, fresh);
        let pools: BTreeSet<_> = config.spec.pools.iter().map(|pool| pool.name.clone()).collect();
        for (_, gone) in self.pools.extract_if(.., |name, _| !pools.contains(name)) {
            self.next_id = self.next_id.max(gone.pool.next_id());
        }
        self.retire_services(&config);
        self.config = config;
        Ok(changes)
    }

    /// Binds every address that is not listened on yet.
    fn bind_fresh(&self, config: &Config) -> Result<Fresh, Vec<Problem>> {
        let (mut fresh, mut problems) = (Fresh::new(), Vec::new());
        for service in &config.spec.services {
            // A source that is not ours would fail every connect.
            if let Some(source) =
                service.options.source.filter(|ip| std::net::UdpSocket::bind((*ip, 0)).is_err())
            {
                let message =
                    format!("service `{}`: source {source} is not an address of this machine", service.name);
                problems.push(Problem::new(message));
            }
            for address in &service.listen {
                let key = (Transport::from(service.protocol), address.clone());
                if self.listeners.contains_key(&key) {
                    continue;
                }
                let sharing =
                    if self.overlaps_ours(&key, &fresh) { Sharing::WithOurs } else { Sharing::None };
                match bind(address, service.protocol, &service.options, self.plane.workers(), sharing) {
                    Ok(bound) => drop(fresh.insert(key, bound)),
                    Err(error) => {
                        let message = format!("service `{}`: {error}", service.name);
                        let place = config.listen_places.get(&(service.name.clone(), address.clone()));
                        problems.push(Problem { place: place.cloned(), message });
                    }
                }
            }
        }
        if problems.is_empty() { Ok(fresh) } else { Err(problems) }
    }

    /// Whether a listener of ours has the port already, on all addresses or on one of those that this one means.
    fn overlaps_ours(&self, (transport, address): &(Transport, Endpoint), fresh: &Fresh) -> bool {
        let Endpoint::Ip(wanted) = address else { return false };
        self.listeners.keys().chain(fresh.keys()).any(|(other, address)| {
            let Endpoint::Ip(ours) = address else { return false };
            let all = ours.ip().is_unspecified() || wanted.ip().is_unspecified();
            other == transport && ours.port() == wanted.port() && ours.is_ipv4() == wanted.is_ipv4() && all
        })
    }

    fn apply_pool(&mut self, spec: &PoolSpec, targets: &Targets) {
        let now = self.now();
        let targets: Vec<Target> = spec.servers.iter().map(|server| targets.of(&server.endpoint)).collect();
        if let Some(running) = self.pools.get_mut(&spec.name) {
            let unchanged = running.pool.spec() == spec
                && running.pool.servers().iter().map(|server| &server.target).eq(targets.iter());
            if !unchanged {
                let events = running.pool.apply(spec, &targets, now);
                events.iter().for_each(|event| self.tell(event));
            }
            return;
        }
        let setting = self.pool_setting();
        let mut pool = Pool::new(spec, &targets, setting, now);
        if let Some(snapshot) = pool.snapshot() {
            let slot = Arc::new(ArcSwap::from_pointee(snapshot));
            self.pools.insert(spec.name.clone(), RunningPool { pool, slot, usable: true });
        }
    }

    fn apply_service(&mut self, spec: &ServiceSpec) {
        let Some(running) = self.pools.get(&spec.pool) else { return };
        let settings = Settings {
            options: spec.options.clone(),
            acl: spec.acl.clone(),
            pool: Arc::clone(&running.slot),
        };
        match self.services.get(&spec.name).filter(|service| service.protocol == spec.protocol) {
            Some(service) => {
                let old = service.settings.load();
                let unchanged = old.options == settings.options
                    && old.acl == settings.acl
                    && Arc::ptr_eq(&old.pool, &settings.pool);
                if !unchanged {
                    self.plane.reconfigure(service, settings);
                }
            }
            None => {
                let service = Service::new(spec.name.clone(), spec.protocol, settings, self.plane.workers());
                let before = self.services.insert(spec.name.clone(), Arc::new(service));
                self.retiring.extend(before);
            }
        }
    }

    /// Listeners whose address stays go on, with another service if it is so; others open and close.
    fn apply_listeners(&mut self, config: &Config, mut fresh: Fresh) {
        let mut wanted = BTreeSet::new();
        for spec in &config.spec.services {
            let Some(service) = self.services.get(&spec.name).map(Arc::clone) else { continue };
            for address in &spec.listen {
                let key = (Transport::from(spec.protocol), address.clone());
                wanted.insert(key.clone());
                if let Some(bound) = fresh.remove(&key) {
                    let address = bound.address.clone();
                    let id = self.plane.listen(&service, bound);
                    let (name, protocol) = (spec.name.clone(), spec.protocol.name());
                    let event =
                        Event::Listening { service: name.clone(), protocol, address: address.to_string() };
                    self.tell(&event);
                    self.listeners.insert(key, RunningListener { service: name, bound: address, id });
                } else if let Some(listener) = self.listeners.get_mut(&key)
                    && listener.service != spec.name
                {
                    listener.service = spec.name.clone();
                    self.plane.assign(listener.id, &service);
                }
            }
        }
        let gone: Vec<_> = self.listeners.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for listener in gone.iter().filter_map(|key| self.listeners.remove(key)) {
            self.plane.unlisten(listener.id);
            let address = listener.bound.to_string();
            self.setting.log.event(&Event::ListenerClosed { service: listener.service, address });
        }
    }

    fn retire_services(&mut self, config: &Config) {
        let names: BTreeSet<_> = config.spec.services.iter().map(|service| service.name.clone()).collect();
        let gone: Vec<_> = self.services.keys().filter(|name| !names.contains(*name)).cloned().collect();
        self.retiring.extend(gone.iter().filter_map(|name| self.services.remove(name)));
    }
}
