//! `evener status NAME`: the part of the state that has a name, with everything that is known about it.

use super::certificates::CertificateView;
use super::{PoolView, ServerView, ServiceView, View};
use crate::config::nearest;
use crate::table::Style;

impl View {
    /// Returns an address that a service listens on.
    ///
    /// # Errors
    /// There is no such service. The error names the nearest name.
    pub(crate) fn listen_address(&self, name: &str) -> Result<std::net::SocketAddr, String> {
        let Some(service) = self.services.iter().find(|service| service.is_named(name)) else {
            let near = nearest(name, self.services.iter().map(ServiceView::name));
            return Err(format!("there is no service `{name}`{near}"));
        };
        let address = service.ip_addresses().next();
        address.ok_or_else(|| format!("the service `{name}` listens on no IP address"))
    }

    /// Keeps the services, pools and servers with this name: of a service, also its pools; of a pool, also the
    /// services that use it; of a server, its
    /// pool without the other servers, and the services of the pool. The name of a server may begin with its pool: `web/10.0.0.1:80`.
    ///
    /// # Errors
    /// Nothing has this name. The error names the nearest name.
    pub(crate) fn named(mut self, name: &str) -> Result<NamedView, String> {
        let is_service = self.services.iter().any(|service| service.is_named(name));
        let is_pool = self.pools.iter().any(|pool| pool.is_named(name));
        let unknown = || {
            if let Some(server) = self.server_with_address(name) {
                return format!(
                    "there is no service, pool or server `{name}`; the server with this address is {server}"
                );
            }
            // A similar address is another machine.
            let is_address = crate::scope::parse(name).is_ok();
            let names = if is_address { Vec::new() } else { self.names() };
            let near = nearest(name, names.iter().map(String::as_str));
            let near = if near.is_empty() { "; `evener status` lists them" } else { &near };
            format!("there is no service, pool or server `{name}`{near}")
        };
        if is_pool && !is_service {
            self.pools.retain(|pool| pool.is_named(name));
            self.keep_users_of_pools();
            return Ok(NamedView { view: self, part: Part::Pool });
        }
        if is_service {
            self.services.retain(|service| service.is_named(name));
            let services = &self.services;
            self.pools
                .retain(|pool| pool.is_named(name) || services.iter().any(|service| service.uses(pool)));
            return Ok(NamedView { view: self, part: Part::ServiceAndPools });
        }
        let is_wanted = |pool: &PoolView, server: &ServerView| {
            server.name() == name
                || name.strip_prefix(pool.name()).and_then(|rest| rest.strip_prefix('/'))
                    == Some(server.name())
        };
        let has_server = |pool: &PoolView| pool.servers().any(|server| is_wanted(pool, server));
        if !self.pools.iter().any(has_server) {
            return Err(unknown());
        }
        self.pools.retain(has_server);
        self.keep_users_of_pools();
        for pool in &mut self.pools {
            let server =
                pool.servers().find(|server| is_wanted(pool, server)).map(|server| server.name().to_owned());
            server.iter().for_each(|server| pool.keep_server(server));
        }
        Ok(NamedView { view: self, part: Part::Server })
    }

    /// Keeps the services that use one of the pools.
    pub(super) fn keep_users_of_pools(&mut self) {
        let pools = &self.pools;
        self.services.retain(|service| pools.iter().any(|pool| service.uses(pool)));
    }

    /// Returns the full name of the server that has an address.
    fn server_with_address(&self, address: &str) -> Option<String> {
        let full = |pool: &PoolView| {
            let server = pool.servers().find(|server| server.has_address(address))?;
            Some(format!("{}/{}", pool.name(), server.name()))
        };
        self.pools.iter().find_map(full)
    }

    /// Returns the names of all services, pools and servers.
    fn names(&self) -> Vec<String> {
        let services = self.services.iter().map(|service| service.name().to_owned());
        let pools = self.pools.iter().map(|pool| pool.name().to_owned());
        let servers = self.pools.iter().flat_map(|pool| {
            pool.servers()
                .flat_map(|server| [server.name().to_owned(), format!("{}/{}", pool.name(), server.name())])
        });
        services.chain(pools).chain(servers).collect()
    }
}

/// A part of the state, selected by a name.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct NamedView {
    #[serde(flatten)]
    view: View,
    #[serde(skip)]
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    ServiceAndPools,
    Pool,
    Server,
}

impl NamedView {
    /// Keeps the servers that fulfil the conditions, and their pools.
    ///
    /// # Errors
    /// There is no such pool in the part.
    pub(crate) fn filtered(self, filter: &super::ServerFilter) -> Result<Self, String> {
        Ok(Self { view: self.view.filtered(filter)?, ..self })
    }

    /// Formats the part for people.
    pub(crate) fn text(&self, style: Style) -> String {
        let View { services, pools, declarations, certificates, .. } = &self.view;
        let mut text = String::new();
        if self.part == Part::Server {
            let server = |pool: &PoolView| pool.server_text(self.view.traffic_of(pool), declarations, style);
            return pools.iter().map(server).collect::<Vec<_>>().join("\n");
        }
        for service in services.iter().filter(|_| self.part == Part::ServiceAndPools) {
            text += &ServiceView::table(std::iter::once(service), service.traffic(), style);
            text += &service.details(declarations);
            let of_service =
                certificates.iter().filter(|certificate| certificate.is_of_service(service.name()));
            let details: String = of_service.map(CertificateView::details).collect();
            text.extend(details.lines().map(|line| format!("  {line}\n")));
        }
        for pool in pools {
            text += &pool.text(self.view.traffic_of(pool), style);
            text += &pool.details();
        }
        text.trim_start().to_owned()
    }
}
