//! Applies a configuration: the change set of the running and the new configuration says what to do. Every step
//! that can fail, such as binding addresses, comes before the first change. Services and pools that stay keep
//! their listeners, connections, flows, verdicts and counters.

mod inputs;
#[cfg(test)]
mod tests;

use super::Supervisor;
use crate::certificates::{TlsSettings, unix_time};
use crate::config::{Config, Problem, Warning};
use crate::discover::Expanded;
use crate::inputs::Inputs;
use crate::planes::RunningService;
use evener_core::Time;
use evener_core::clients::Clients;
use evener_core::diff::{self, ChangeSet, Configuration, diff};
use evener_core::dns::{Cache, RateLimit};
use evener_core::event::Event;
use evener_core::route::{Route, Routes};
use evener_core::spec::{Denied, Plane, ServiceSpec, Spec};
use evener_core::throttle::Throttle;
use evener_proxy::{Backend, Dns, Refusal, Service, Settings};
use inputs::Known;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Maximum number of warnings about a configuration that are logged.
const WARNINGS_MAX: usize = 20;

impl Supervisor {
    /// Applies a configuration and returns the changes. If there is a problem, nothing changes.
    pub(crate) fn apply(&mut self, config: Config, resolved: Inputs) -> Result<ChangeSet, Vec<Problem>> {
        let api = self.api.open(resolved.api()).map_err(|problem| vec![config.problem_with_admin(problem)]);
        let in_use = resolved.clone();
        let (tls, servers) = resolved.into_parts();
        let (new_listeners, logs) =
            match (self.listeners.bind_new(&config, self.plane.workers()), self.request_logs.open(&config)) {
                (Ok(listeners), Ok(logs)) if api.is_ok() => (listeners, logs),
                (listeners, logs) => {
                    let problems = listeners.err().into_iter().chain(logs.err()).chain(api.err());
                    return Err(problems.flatten().collect());
                }
            };
        // The tables of the kernel belong to the previous instance until it hands over.
        if !self.upgrades.waits() {
            self.prepare_xdp(&config)?;
            self.prepare_ipvs(&config)?;
        }
        self.configurations += 1;
        self.inputs_in_use = Some(in_use);
        let problems = self.discovery.configure(&config.spec, servers, self.now());
        self.log_all(&problems);
        self.scripts.prepare(&config);
        self.configure_operator(&config.spec.admin);
        let pools = self.expand_all(&config, &new_listeners);
        let changes = self.changes(&config.spec, &pools, &tls);
        self.certificates.configure(tls);
        self.request_logs.update(logs, &config);
        let events = self.api.serve(api.unwrap_or_default());
        self.log_all(&events);
        let changed_pools = changes.pools();
        let changed_pools = || pools.iter().filter(|pool| changed_pools.contains(&pool.spec().name));
        let had_persistent = changed_pools().any(|pool| self.pools.has_persistent(&pool.spec().name));
        for pool in changed_pools() {
            // The thread of a plane of the kernel counts like a further worker.
            let counting = usize::from(Self::is_used_by_kernel(&config.spec, &pool.spec().name));
            let (now, setting) = (self.now(), (self.plane.workers() + counting, self.random.bits()));
            let events = self.pools.apply(pool, setting, now);
            self.log_all(&events);
        }
        self.apply_operator_states();
        self.operator.save();
        self.publish();
        let changed_services = changes.services(&config.spec);
        for spec in config.spec.services.iter().filter(|spec| changed_services.contains(&spec.name)) {
            self.apply_service(spec);
        }
        self.configure_xdp(&config.spec);
        self.configure_ipvs(&config.spec);
        self.divide_descriptors(&config.spec);
        if changes.concerns_listeners() {
            let (services, now) = (&self.services, self.now());
            let events = self.listeners.apply(&config, services, new_listeners, &mut self.plane, now);
            self.log_all(&events);
        }
        self.listeners.check_now();
        if had_persistent || changed_pools().any(|pool| self.pools.has_persistent(&pool.spec().name)) {
            self.plane.maintain();
        }
        self.pools.retain(&config.spec.pools);
        self.retire_services(&config);
        self.access.retain(&config.spec.services);
        self.start_scripts(&config);
        self.config = config;
        self.warn_of_certificates();
        self.warn_of_configuration();
        Ok(changes)
    }

    /// Returns the changes that lead from the running configuration to another one.
    pub(super) fn changes(&self, spec: &Spec, pools: &[Expanded], tls: &TlsSettings) -> ChangeSet {
        let specs = pools.iter().map(|pool| pool.spec().clone()).collect();
        let wanted = Spec {
            pools: specs,
            services: spec.services.clone(),
            xdp: spec.xdp.clone(),
            ipvs: spec.ipvs.clone(),
            admin: spec.admin.clone(),
        };
        let (running, inputs) = (self.running_spec(), Known::in_use(&self.pools, self.certificates.tls()));
        let running = Configuration { spec: &running, inputs: &inputs };
        diff(running, Configuration { spec: &wanted, inputs: &Known::resolved(pools, tls) })
    }

    /// Returns the configuration that is in use, with the servers that were found.
    pub(super) fn running_spec(&self) -> Spec {
        let Spec { pools, services, xdp, ipvs, admin } = &self.config.spec;
        let pools = pools.iter().filter_map(|pool| Some(self.pools.get(&pool.name)?.spec().clone()));
        Spec {
            pools: pools.collect(),
            services: services.clone(),
            xdp: xdp.clone(),
            ipvs: ipvs.clone(),
            admin: admin.clone(),
        }
    }

    /// Starts a service, or applies its changed settings.
    pub(super) fn apply_service(&mut self, spec: &ServiceSpec) {
        let began = self.now();
        let running = self.services.get(&spec.name).filter(|service| service.continues_as(spec)).cloned();
        if spec.plane != Plane::Proxy {
            if running.is_none() {
                self.start_service(spec, RunningService::in_kernel(spec));
            }
            return;
        }
        let Some(settings) = self.settings(spec) else { return };
        match running.as_ref().and_then(RunningService::of_workers) {
            Some(running) => {
                let (before, after) = (running.settings.load().clients.clone(), settings.clients.clone());
                self.plane.reconfigure(running, settings);
                // Clients that were added to the old table until now are copied, too.
                if let (Some(before), Some(after)) = (before, after)
                    && !Arc::ptr_eq(&before, &after)
                {
                    after.adopt(&before, began);
                }
            }
            None => {
                let service = RunningService::proxied(spec, settings, self.plane.workers());
                self.start_service(spec, service);
            }
        }
    }

    /// Adds a service, in place of a service with the same name and another protocol or plane.
    fn start_service(&mut self, spec: &ServiceSpec, service: RunningService) {
        self.samples.begin(self.now(), &spec.name);
        let before = self.services.insert(spec.name.clone(), service);
        self.retiring.extend(before.map(|service| Arc::clone(service.live())));
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
            Some(Backend {
                pool: Arc::clone(self.pools.slot(name)?),
                tls: self.certificates.tls().connector(name),
                send_proxy: self.pools.get(name)?.spec().send_proxy,
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
            records_refused: spec.records_refused,
            request_log: spec.request_log.as_ref().and_then(|wanted| self.request_logs.of(wanted)),
            tls: self.certificates.tls().acceptor(&spec.name),
            http: spec.http.clone(),
            dns: self.dns_of(spec),
            backends,
            default_backend,
            routes: Routes::new(&routes),
        })
    }

    /// Returns the service of the workers that has run until now.
    fn proxied(&self, spec: &ServiceSpec) -> Option<&Arc<Service>> {
        self.services.get(&spec.name)?.of_workers()
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

    /// Applies certificates that changed on disk, and nothing else. The files may have been touched without a
    /// change of their contents.
    pub(super) fn apply_tls(&mut self, tls: TlsSettings) {
        let running = self.running_spec();
        let (before, after) =
            (Known::in_use(&self.pools, self.certificates.tls()), Known::in_use(&self.pools, &tls));
        let [before, after]: [&dyn diff::Inputs; 2] = [&before, &after];
        let [before, after] = [before, after].map(|inputs| Configuration { spec: &running, inputs });
        let changes = diff(before, after);
        self.certificates.replace(tls);
        let changed = changes.services(&running);
        let services = running.services.iter().filter(|spec| changed.contains(&spec.name));
        services.for_each(|spec| self.apply_service(spec));
        if !changes.is_empty() {
            self.log(&Event::CertificatesReloaded {});
            self.warn_of_certificates();
            self.log_warnings(self.certificates.tls().lasting_warnings().iter());
        }
    }

    /// Logs the certificates that have expired or expire soon.
    fn warn_of_certificates(&mut self) {
        let events = self.certificates.expiry_events(self.now(), unix_time());
        self.log_all(&events);
    }

    /// Logs the warnings about the configuration in use.
    fn warn_of_configuration(&self) {
        self.log_warnings(self.config.warnings().iter().chain(self.certificates.tls().lasting_warnings()));
    }

    /// Logs the first of these warnings, and the number of further ones.
    fn log_warnings<'a>(&self, warnings: impl Iterator<Item = &'a Warning>) {
        let mut warnings = warnings.map(|warning| Event::ConfigWarning { warning: warning.text() });
        let events: Vec<Event> = warnings.by_ref().take(WARNINGS_MAX).collect();
        self.log_all(&events);
        match warnings.count() {
            0 => {}
            more => {
                let text =
                    format!("{more} more warnings about the configuration: `evener check FILE` lists them");
                self.log(&Event::Notice { text });
            }
        }
    }

    fn retire_services(&mut self, config: &Config) {
        let names: BTreeSet<_> = config.spec.services.iter().map(|service| service.name.clone()).collect();
        let removed: Vec<_> = self.services.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let removed = removed.iter().filter_map(|name| self.services.remove(name));
        self.retiring.extend(removed.map(|service| Arc::clone(service.live())));
    }
}
