//! Applies a configuration. Every step that can fail, such as binding addresses, comes before the first
//! change. Services and pools that stay keep their listeners, connections, flows, verdicts and counters.

use super::{RunningPool, Supervisor};
use crate::certificates::TlsSettings;
use crate::config::{Config, Problem};
use crate::inputs::Inputs;
use crate::planes::RunningService;
use crate::resolve::Targets;
use arc_swap::ArcSwap;
use evener_core::clients::Clients;
use evener_core::diff::diff;
use evener_core::dns::{Cache, RateLimit};
use evener_core::event::Event;
use evener_core::pool::{Pool, Server};
use evener_core::route::{Route, Routes};
use evener_core::spec::{Denied, PoolSpec, ServerSpec, ServiceSpec};
use evener_core::throttle::Throttle;
use evener_core::{Target, Time};
use evener_proxy::{Backend, Dns, Refusal, Service, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Supervisor {
    /// Applies a configuration and returns a description of the changes. If there is a problem, nothing
    /// changes.
    pub(crate) fn apply(&mut self, config: Config, resolved: Inputs) -> Result<Vec<String>, Vec<Problem>> {
        let Inputs { targets, tls, found } = resolved;
        let (new_listeners, logs) = match (self.bind_new(&config), self.request_logs.open(&config)) {
            (Ok(listeners), Ok(logs)) => (listeners, logs),
            (listeners, logs) => {
                return Err(listeners.err().into_iter().chain(logs.err()).flatten().collect());
            }
        };
        let renewed = self.changed_certificates(&config, &tls);
        let moved = self.changed_addresses(&config, &targets);
        self.tls = tls;
        self.request_logs.update(logs, &config);
        self.configurations += 1;
        self.configure_discovery(&config.spec, found);
        let changes = diff(&self.config.spec, &config.spec);
        let changes = changes.iter().map(ToString::to_string);
        let changes = changes.chain(moved).chain(renewed).collect();
        for spec in &config.spec.pools {
            self.apply_pool(spec, &targets);
        }
        self.publish();
        for spec in &config.spec.services {
            self.apply_service(spec);
        }
        self.divide_descriptors(&config.spec);
        self.apply_listeners(&config, new_listeners);
        self.paths.check_now();
        self.plane.maintain();
        let pools: BTreeSet<_> = config.spec.pools.iter().map(|pool| pool.name.clone()).collect();
        for (_, removed) in self.pools.extract_if(.., |name, _| !pools.contains(name)) {
            self.next_id = self.next_id.max(removed.pool.next_id());
        }
        self.persistent.retain(|(pool, _), _| self.pools.contains_key(pool));
        self.retire_services(&config);
        self.access.retain(&config.spec.services);
        self.config = config;
        self.warn_of_certificates();
        Ok(changes)
    }

    fn apply_pool(&mut self, spec: &PoolSpec, targets: &Targets) {
        let now = self.now();
        let configured = spec.servers.len();
        let spec = &self.with_found(spec);
        let targets: Vec<Target> = spec.servers.iter().map(|server| targets.of(&server.endpoint)).collect();
        if let Some(running) = self.pools.get(&spec.name) {
            let unchanged = running.pool.spec() == spec
                && running.pool.servers().iter().map(|server| &server.target).eq(targets.iter());
            if !unchanged {
                self.replace_servers(spec, &targets);
            }
            return;
        }
        let setting = self.pool_setting();
        let mut pool = Pool::new(spec, &targets, setting, now);
        if let Some(snapshot) = pool.snapshot() {
            let usable = snapshot.is_usable();
            let slot = Arc::new(ArcSwap::from_pointee(snapshot));
            self.pools.insert(spec.name.clone(), RunningPool { pool, slot, usable });
            for found in &spec.servers[configured..] {
                let (pool, server) = (spec.name.clone(), found.name.clone());
                self.log(&Event::ServerAdded { pool, server });
            }
        }
    }

    pub(super) fn apply_service(&mut self, spec: &ServiceSpec) {
        let began = self.now();
        let Some(settings) = self.settings(spec) else { return };
        match self.services.get(&spec.name).filter(|service| service.continues_as(spec)) {
            Some(service) => {
                let RunningService::Proxy(running) = service;
                let old = running.settings.load();
                let unchanged = self.config.spec.services.contains(spec) && same_inputs(&old, &settings);
                if !unchanged {
                    let (before, after) = (old.clients.clone(), settings.clients.clone());
                    self.plane.reconfigure(service, settings);
                    // Clients that were added to the old table until now are copied, too.
                    if let (Some(before), Some(after)) = (before, after)
                        && !Arc::ptr_eq(&before, &after)
                    {
                        after.adopt(&before, began);
                    }
                }
            }
            None => {
                let service = RunningService::new(spec, settings, self.plane.workers());
                let before = self.services.insert(spec.name.clone(), service);
                self.retiring.extend(before.map(|service| Arc::clone(service.live())));
            }
        }
    }

    /// Returns the settings of a service for the workers.
    fn settings(&mut self, spec: &ServiceSpec) -> Option<Settings> {
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut number = |name: &Arc<str>| {
            let known = names.iter().position(|known| known == name);
            known.unwrap_or_else(|| {
                names.push(name.clone());
                names.len() - 1
            })
        };
        let default_backend = spec.pool.as_ref().map(&mut number);
        let route = |route: &Route<Arc<str>>| (route.hosts.clone(), route.path.clone(), route.to.clone());
        let routes: Vec<Route<usize>> = (spec.routes.iter().map(route))
            .map(|(hosts, path, to)| Route { hosts, path, to: number(&to) })
            .collect();
        let mut refusal = |denied: &Denied| match denied {
            Denied::Drop => Refusal::Drop,
            Denied::Reject => Refusal::Reject,
            Denied::Tarpit(time) => Refusal::Tarpit(*time),
            Denied::Pool(pool) => Refusal::Backend(number(pool)),
        };
        let (denied, exceeded) = (refusal(&spec.denied), refusal(&spec.exceeded));
        let backend = |name: &Arc<str>| {
            let running = self.pools.get(name)?;
            Some(Backend {
                pool: Arc::clone(&running.slot),
                tls: self.tls.connector(name),
                send_proxy: running.pool.spec().send_proxy,
            })
        };
        let backends = names.iter().map(backend).collect::<Option<Vec<_>>>()?;
        Some(Settings {
            options: spec.options.clone(),
            acl: self.access.acl_of(spec),
            denied,
            throttle: self.throttle_of(spec),
            exceeded,
            proxy_from: spec.proxy_from.clone(),
            clients: self.clients_of(spec),
            request_log: spec.request_log.as_ref().and_then(|wanted| self.request_logs.of(wanted)),
            tls: self.tls.acceptor(&spec.name),
            http: spec.http.clone(),
            dns: self.dns_of(spec),
            backends,
            default_backend,
            routes: Routes::new(&routes),
        })
    }

    /// Returns the service of the workers that has run until now.
    fn proxied(&self, spec: &ServiceSpec) -> Option<&Arc<Service>> {
        self.services.get(&spec.name).map(|RunningService::Proxy(service)| service)
    }

    /// Returns the limits for each client. Their counts stay as long as the limits stay the same.
    fn throttle_of(&mut self, spec: &ServiceSpec) -> Option<Arc<Throttle>> {
        let wanted = spec.throttle.as_ref()?;
        let old = self.proxied(spec).and_then(|service| service.settings.load().throttle.clone());
        let same = old.filter(|old| old.spec() == wanted);
        Some(same.unwrap_or_else(|| Arc::new(Throttle::new(wanted, self.random.bits()))))
    }

    /// Returns the state of a DNS service. The cache and the table of rates stay as long as their settings stay
    /// the same.
    fn dns_of(&mut self, spec: &ServiceSpec) -> Option<Dns> {
        let wanted = spec.dns.as_ref()?;
        let old = self.proxied(spec).and_then(|service| service.settings.load().dns.clone());
        let cache = wanted.cache.as_ref().map(|wanted| {
            let same = old.as_ref().and_then(|old| old.cache.clone()).filter(|old| old.spec() == wanted);
            same.unwrap_or_else(|| Arc::new(Cache::new(wanted, self.random.bits())))
        });
        let rate_limit = wanted.rate_limit.as_ref().map(|wanted| {
            let same = old.as_ref().and_then(|old| old.rate_limit.clone()).filter(|old| old.spec() == wanted);
            same.unwrap_or_else(|| Arc::new(RateLimit::new(wanted, self.random.bits())))
        });
        Some(Dns { spec: Arc::clone(wanted), cache, rate_limit })
    }

    /// Returns the table of clients. If the size changed, a new table gets the most recent clients of the old
    /// table.
    fn clients_of(&mut self, spec: &ServiceSpec) -> Option<Arc<Clients>> {
        let size = spec.clients?;
        let old = self.proxied(spec).filter(|service| service.live.protocol == spec.protocol);
        let old = old.and_then(|service| service.settings.load().clients.clone());
        if let Some(same) = old.as_ref().filter(|old| old.size() == size) {
            return Some(Arc::clone(same));
        }
        let clients = Clients::new(size, self.random.bits());
        old.iter().for_each(|old| clients.adopt(old, Time::ZERO));
        Some(Arc::new(clients))
    }

    /// Describes servers with the same configuration whose names now resolve to another address.
    fn changed_addresses(&self, config: &Config, targets: &Targets) -> Vec<String> {
        let of_pool = |spec: &PoolSpec| {
            let servers = self.pools.get(&spec.name).map_or(&[][..], |running| running.pool.servers());
            let before: BTreeMap<&Arc<str>, &Server> =
                servers.iter().map(|server| (&server.spec.name, server)).collect();
            let moved = |server: &ServerSpec| {
                let old = before.get(&server.name).filter(|old| old.spec.endpoint == server.endpoint)?;
                let target = targets.of(&server.endpoint);
                let description =
                    || format!("~ server {}/{}: address {} -> {target}", spec.name, server.name, old.target);
                (old.target != target).then(description)
            };
            spec.servers.iter().filter_map(moved).collect::<Vec<_>>()
        };
        config.spec.pools.iter().flat_map(of_pool).collect()
    }

    /// Describes services and pools with the same configuration whose certificates changed.
    fn changed_certificates(&self, config: &Config, tls: &TlsSettings) -> Vec<String> {
        let (old, new) = (&self.config.spec, &config.spec);
        let services = new.services.iter().filter(|service| old.services.contains(service));
        let services = services.filter(|service| !self.tls.same_for_clients(tls, &service.name));
        let pools = new.pools.iter().filter(|pool| old.pools.contains(pool));
        let pools = pools.filter(|pool| !self.tls.same_for_servers(tls, &pool.name));
        let services = services.map(|service| format!("~ service {}: certificates", service.name));
        services.chain(pools.map(|pool| format!("~ pool {}: certificates", pool.name))).collect()
    }

    /// Applies certificates that changed on disk, and nothing else.
    pub(super) fn apply_tls(&mut self, tls: TlsSettings) {
        self.tls = tls;
        let services = self.config.spec.services.clone();
        services.iter().for_each(|spec| self.apply_service(spec));
    }

    fn retire_services(&mut self, config: &Config) {
        let names: BTreeSet<_> = config.spec.services.iter().map(|service| service.name.clone()).collect();
        let removed: Vec<_> = self.services.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let removed = removed.iter().filter_map(|name| self.services.remove(name));
        self.retiring.extend(removed.map(|service| Arc::clone(service.live())));
    }
}

/// Returns true if the pools, the access list and the TLS settings of a service are the same.
fn same_inputs(old: &Settings, new: &Settings) -> bool {
    fn same<T: ?Sized>(old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
        match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        }
    }
    let backends = old.backends.len() == new.backends.len()
        && old.backends.iter().zip(&new.backends).all(|(old, new)| {
            Arc::ptr_eq(&old.pool, &new.pool)
                && same(old.tls.as_ref(), new.tls.as_ref())
                && old.send_proxy == new.send_proxy
        });
    backends && old.acl == new.acl && same(old.tls.as_ref(), new.tls.as_ref())
}
