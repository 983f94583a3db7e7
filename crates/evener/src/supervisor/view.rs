//! Responses to queries: builds the records of `state` from the fields of the supervisor, and finds services,
//! pools and servers by name. Nothing outside the supervisor reads these fields, and no query changes them.

use super::query::{Query, Reply};
use super::{PendingView, Phase, Supervisor};
use crate::certificates::unix_time;
use crate::config::nearest;
use crate::planes::RunningService;
use crate::state::{
    ClientsQuery, ClientsView, ConfirmationView, ExplainQuery, Explanation, PoolView, RuleView, ServiceView,
    StickyView, View, ViewScope,
};
use evener_core::ServerId;
use evener_core::Time;
use evener_core::pool::{Pool, Server};
use evener_core::spec::ServiceSpec;
use evener_proxy::Driver;
use std::sync::Arc;

/// Maximum number of warnings in a response.
const WARNINGS_MAX: usize = 1000;

/// Maximum number of associations of a client in an explanation.
const EXPLAINED_ASSOCIATIONS_MAX: usize = 16;

impl Supervisor {
    /// Sends the response to a query, directly or by the workers.
    pub(super) fn on_query(&self, query: Query) {
        match query {
            Query::View { scope, reply } => drop(reply.send(self.view(&scope))),
            Query::Access { reply } => drop(reply.send(self.access_view())),
            Query::Warnings { reply } => drop(reply.send(self.warnings())),
            Query::Clients { query, reply } => drop(reply.send(self.clients_view(&query))),
            Query::Connections { query, reply } => self.list_connections(&query, reply),
            Query::Sticky { pool, most, reply } => {
                drop(reply.send(self.sticky_view(pool.as_deref(), most)));
            }
            Query::Explain { query, reply } => self.explain(&query, reply),
            Query::Spec { reply } => {
                drop(reply.send((self.spec_to_save(), self.config.program().is_some())));
            }
            Query::PlanSetting { reply } => drop(reply.send(self.plan_setting())),
            Query::Plan { config, inputs, reply } => drop(reply.send(self.plan(&config, *inputs))),
            Query::Flows { service, reply } => self.list_flows(service, reply),
            Query::Events { reply } => drop(reply.send(self.setting.events.clone())),
        }
    }

    fn view(&self, scope: &ViewScope) -> View {
        let uptime = self.now().since(Time::ZERO);
        let waiting = self.confirmation.view(self.now());
        let waiting = waiting.map(|PendingView { file, left }| ConfirmationView::new(file, left));
        let view = View::new(uptime, self.workers(), self.is_draining())
            .with_applied(self.confirmation.other_file(), waiting);
        let listen = self.listeners.bound_addresses();
        let service_view = |(spec, service): (&ServiceSpec, &RunningService)| {
            let growth = self.samples.growth(self.now(), service);
            let bound = listen.get(&*spec.name).into_iter().flatten().copied();
            // A service in the kernel has no listeners.
            let in_kernel = spec.listen.iter().filter(|_| service.of_workers().is_none());
            ServiceView::new(spec, service, growth.as_ref(), bound.chain(in_kernel))
        };
        let part_of_pool = |pool: &Pool, only: Option<ServerId>| {
            let (name, discovery) = (&*pool.spec().name, &self.discovery);
            let is_wanted = |server: &&Server| only.is_none_or(|only| server.id == only);
            PoolView::new(
                pool,
                pool.servers().iter().filter(is_wanted),
                discovery.sources_of(name),
                |server| discovery.source_of(name, server),
                self.now(),
            )
        };
        let pool_view = |pool: &Pool| part_of_pool(pool, None);
        match scope {
            ViewScope::Server(wanted) => {
                let found = self.pools.find_server(wanted).ok();
                let found = found.and_then(|(pool, id, _)| Some((self.find_pool(&pool).ok()?, id)));
                view.with_pools(found.into_iter().map(|(pool, id)| part_of_pool(pool, Some(id))))
            }
            ViewScope::Instance => view
                .with_counters(self.setting.events.counters())
                .with_certificates(self.certificates.tls().certificates(), unix_time())
                .with_scripts(self.scripts.view(self.now()))
                .with_services(self.configured_services().map(service_view))
                .with_pools(self.configured_pools().map(pool_view)),
            ViewScope::Service(name) => {
                view.with_services(self.configured_service(name).into_iter().map(service_view))
            }
            ViewScope::ServiceWithPool(name) => {
                let service = self.configured_service(name);
                let pool = service.and_then(|(spec, _)| self.find_pool(spec.pool.as_ref()?).ok());
                view.with_services(service.into_iter().map(service_view))
                    .with_pools(pool.into_iter().map(pool_view))
            }
        }
    }

    /// Returns the warnings about the configuration in use and its certificates.
    fn warnings(&self) -> Vec<String> {
        let of_certificates = self.certificates.tls().warnings(unix_time());
        let warnings = self.config.warnings().iter().chain(&of_certificates);
        warnings.take(WARNINGS_MAX).map(ToString::to_string).collect()
    }

    /// Returns the access rules that the operator added.
    fn access_view(&self) -> Vec<RuleView> {
        let now = self.now();
        let rules = self.access.all();
        rules
            .map(|(service, rule)| RuleView::new(service, rule.prefix(), rule.action(), rule.left(now)))
            .collect()
    }

    fn clients_view(&self, query: &ClientsQuery) -> Result<ClientsView, String> {
        let wanted = query.service();
        if let Some(name) = wanted {
            let service = self.find_service(name)?.of_workers();
            if service.is_none_or(|service| service.settings.load().clients.is_none()) {
                return Err(format!(
                    "service `{name}` does not record clients: give it `clients`, such as clients = 1000, then `evener reload`"
                ));
            }
        }
        let services = self.services.values().filter(|service| is_wanted(&service.live().name, wanted));
        let tables = services.filter_map(RunningService::of_workers).filter_map(|service| {
            let clients = service.settings.load().clients.clone()?;
            Some((Arc::clone(&service.live.name), clients))
        });
        Ok(ClientsView::new(tables, self.now(), query))
    }

    fn sticky_view(&self, wanted: Option<&str>, most: usize) -> Result<StickyView, String> {
        if let Some(name) = wanted
            && self.find_pool(name)?.sticky().is_none()
        {
            return Err(format!(
                "pool `{name}` has no sticky table: give it sticky = {{ by = \"client_ip\" }}"
            ));
        }
        let mut view = StickyView::default();
        for pool in self.pools.iter().filter(|pool| is_wanted(&pool.spec().name, wanted)) {
            view.add(pool, self.now(), most, |target| self.discovery.number_of(&pool.spec().name, target));
        }
        Ok(view)
    }

    /// Explains which server a client would get now.
    fn explain(&self, query: &ExplainQuery, reply: Reply<Result<Explanation, String>>) {
        let service = match self.find_service(query.service()) {
            Ok(service) => service.of_workers(),
            Err(why) => return drop(reply.send(Err(why))),
        };
        let mut explanation = Explanation::new(query);
        if let Some(service) = service {
            if self.is_draining() {
                explanation.note_draining();
            }
            explanation.explain(service, query, self.now());
            return drop(reply.send(Ok(explanation)));
        }
        if let Some((spec, _)) = self.configured_service(query.service())
            && let Some(pool) = spec.pool.as_ref().and_then(|pool| self.pools.get(pool))
            && let Some(snapshot) = self.pools.slot(&pool.spec().name)
        {
            let spec = ServiceSpec { acl: self.access.acl_of(spec), ..spec.clone() };
            explanation.explain_in_kernel(&spec, pool.spec(), &snapshot.load_full(), self.now());
        }
        self.plane.associations(query.association_filter(), EXPLAINED_ASSOCIATIONS_MAX, move |listed| {
            explanation.add_associations(&listed);
            let _ = reply.send(Ok(explanation));
        });
    }

    /// Returns the time since the start.
    pub(super) fn now(&self) -> Time {
        Time::since_origin(self.origin.elapsed())
    }

    /// Returns the number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.plane.workers()
    }

    /// Returns the name of the driver of the workers.
    pub(crate) fn driver(&self) -> &'static str {
        match self.plane.driver() {
            Driver::IoUring => "io_uring",
            Driver::Auto | Driver::Epoll => "epoll",
        }
    }

    /// Returns true if new clients are no longer accepted.
    pub(super) fn is_draining(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Returns the services in the order of the configuration.
    fn configured_services(&self) -> impl Iterator<Item = (&ServiceSpec, &RunningService)> {
        let services = self.config.spec.services.iter();
        services.filter_map(|spec| Some((spec, self.services.get(&spec.name)?)))
    }

    /// Returns a service with its configuration.
    fn configured_service(&self, name: &str) -> Option<(&ServiceSpec, &RunningService)> {
        let spec = self.config.spec.services.iter().find(|spec| *spec.name == *name)?;
        Some((spec, self.services.get(name)?))
    }

    /// Returns a service, or the reason why it cannot be found.
    pub(super) fn find_service(&self, name: &str) -> Result<&RunningService, String> {
        self.services.get(name).ok_or_else(|| self.no_service(name))
    }

    /// Returns an error if there is no such service. A removed service that still has connections counts.
    pub(super) fn find_open_service(&self, name: &str) -> Result<(), String> {
        let is_known =
            self.services.contains_key(name) || self.retiring.iter().any(|service| &*service.name == name);
        is_known.then_some(()).ok_or_else(|| self.no_service(name))
    }

    /// Returns the message about a service that does not exist.
    pub(super) fn no_service(&self, name: &str) -> String {
        let near = nearest(name, self.services.keys().map(|known| &**known));
        let near = if near.is_empty() { "; `evener status` lists the services" } else { &near };
        format!("there is no service `{name}`{near}")
    }

    /// Returns the pools in the order of the configuration.
    fn configured_pools(&self) -> impl Iterator<Item = &Pool> {
        let pools = self.config.spec.pools.iter();
        pools.filter_map(|spec| self.pools.get(&spec.name))
    }

    /// Returns a pool, or the reason why it cannot be found.
    fn find_pool(&self, name: &str) -> Result<&Pool, String> {
        self.pools.get(name).ok_or_else(|| format!("there is no pool `{name}`; `evener status` lists them"))
    }

    /// Returns the number of connections and flows of all services.
    pub(super) fn active(&self) -> u64 {
        let running = self.services.values().map(RunningService::live);
        running.chain(&self.retiring).map(|service| service.active()).sum()
    }
}

/// Returns true if a query for `wanted`, or for everything, includes `name`.
fn is_wanted(name: &str, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| wanted == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::certificates::TlsSettings;
    use crate::config::Config;
    use crate::events::Events;
    use crate::inputs::gather;
    use crate::observe::{Log, LogFormat, LogLevel};
    use crate::supervisor::{ConfigSource, Setting};
    use evener_core::Endpoint;
    use evener_core::spec::{PoolSpec, Protocol, ServerSpec, Spec};
    use serde_json::Value;
    use std::time::Duration;

    /// Services `a` and `b`, each with a pool of its own name.
    fn supervisor() -> Supervisor {
        let server = || ServerSpec::new("127.0.0.1:9".parse().unwrap());
        let pools = ["a", "b"].map(|name| PoolSpec::new(name, vec![server()]));
        let services = ["a", "b"].map(|name| ServiceSpec {
            listen: vec![Endpoint::parse_listen("127.0.0.1:0").unwrap()],
            pool: Some(name.into()),
            ..ServiceSpec::new(name, Protocol::Tcp)
        });
        let config =
            Config::without_file(Spec { pools: pools.into(), services: services.into(), ..Spec::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let inputs = runtime.block_on(gather(&config, TlsSettings::default())).ok().unwrap();
        let events = Events::new(Log::new(LogFormat::Text, LogLevel::Off));
        let (mut supervisor, _) = Supervisor::start(Setting::new(1, ConfigSource::None, events)).unwrap();
        assert!(supervisor.apply(config, inputs).is_ok());
        supervisor
    }

    #[test]
    fn a_view_has_only_the_services_and_pools_of_its_scope() {
        let supervisor = supervisor();
        let check = |scope: ViewScope, services: &[&str], pools: &[&str]| {
            let view = serde_json::to_value(supervisor.view(&scope)).unwrap();
            let names = |entries: &Value| -> Vec<String> {
                let entries = entries.as_array().unwrap();
                entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
            };
            assert_eq!(names(&view["services"]), services, "{scope:?}");
            assert_eq!(names(&view["pools"]), pools, "{scope:?}");
        };
        check(ViewScope::Instance, &["a", "b"], &["a", "b"]);
        check(ViewScope::Service("b".into()), &["b"], &[]);
        check(ViewScope::ServiceWithPool("b".into()), &["b"], &["b"]);
        check(ViewScope::Server("b/127.0.0.1:9".into()), &[], &["b"]);
        // Both pools have this server.
        check(ViewScope::Server("127.0.0.1:9".into()), &[], &[]);
        check(ViewScope::Server("a/missing".into()), &[], &[]);
        check(ViewScope::Service("missing".into()), &[], &[]);
        check(ViewScope::ServiceWithPool("missing".into()), &[], &[]);
        supervisor.plane.stop();
    }

    #[test]
    fn recent_figures_cover_the_last_10_to_20_seconds() {
        let mut supervisor = supervisor();
        let count = |supervisor: &Supervisor, requests| {
            let pool = supervisor.find_pool("a").unwrap();
            pool.servers()[0].live.counters.of(0).requests.add(requests);
            supervisor.find_service("a").unwrap().live().counters.of(0).requests.add(requests);
        };
        let recent = |supervisor: &Supervisor, now: Time| {
            let server = supervisor.find_pool("a").unwrap().servers()[0].growth(now);
            let service = supervisor.samples.growth(now, supervisor.find_service("a").unwrap()).unwrap();
            (server.count("requests"), service.count("requests"), server.span())
        };
        count(&supervisor, 100);
        let began = supervisor.now();
        let at = |seconds| began + Duration::from_secs(seconds);
        for second in 0..60 {
            let Supervisor { samples, pools, services, .. } = &mut supervisor;
            samples.on_time(at(second), pools, services);
            let (server, service, span) = recent(&supervisor, at(second));
            assert!(span <= Duration::from_secs(21), "second {second}: {span:?}");
            if second >= 21 {
                assert!(span >= Duration::from_secs(10), "second {second}: {span:?}");
                let expected = 10..=21;
                assert!(expected.contains(&server) && expected.contains(&service), "{server} {service}");
            }
            count(&supervisor, 1);
        }
        supervisor.plane.stop();
    }
}
