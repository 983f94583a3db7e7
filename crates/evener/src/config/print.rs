//! Prints a specification as equivalent Lua: all settings that differ from the defaults, in the layout that a
//! person would choose. Structs are destructured field by field, so that no new field is forgotten.

mod access;
mod admin;
mod discover;
mod dns;
mod http;
mod ipvs;
mod pool;
mod service;
mod source;
mod tls;
mod xdp;

use super::exec::programs;
use evener_core::acl::Acl;
use evener_core::spec::{AdminSpec, Denied, IpvsSpec, PoolSpec, ServiceSpec, Spec, XdpSpec};
use source::{Table, quoted};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns the Lua source of an access list, with its files and countries, if the caller knows the source. The
/// source is the value of `access`, or of a key with a single list of prefixes (`proxy_from`, `trust`).
pub(crate) type Lists<'a> = &'a dyn Fn(&Arc<Acl>) -> Option<String>;

/// Returns the configuration for this specification.
pub(crate) fn print(spec: &Spec, lists: Lists<'_>) -> String {
    let Spec { pools, services, xdp, ipvs, admin } = spec;
    let declared = pools.len() - in_place(spec);
    let (pools, in_place) = pools.split_at(declared);
    let mut page = Page::default();
    let programs = programs(&spec.pools);
    if !programs.is_empty() {
        let (mut table, mut allowed) = (Table::of("exec"), Table::new());
        programs.iter().for_each(|path| allowed.item(quoted(path.as_bytes())));
        table.key("allow", allowed);
        page.add("exec", &table);
    }
    if *admin != AdminSpec::default() {
        page.add("admin", &admin::settings(admin));
    }
    if *xdp != XdpSpec::default() {
        page.add("xdp", &xdp::settings(xdp, lists));
    }
    if *ipvs != IpvsSpec::default() {
        page.add("ipvs", &ipvs::settings(ipvs));
    }
    for pool in pools {
        let wanted = services.iter().any(|service| sends_refused(service, pool));
        let handle = access::handle_of(&pool.name).filter(|_| wanted);
        page.add("pool", &pool::pool(pool, handle, lists));
    }
    let in_place: BTreeMap<&str, &PoolSpec> = in_place.iter().map(|pool| (&*pool.name, pool)).collect();
    for service in services {
        let nested = in_place.get(&*service.name).copied();
        page.add("service", &service::service(service, nested, lists));
    }
    page.text
}

/// Returns true if the service sends refused clients to the pool.
fn sends_refused(service: &ServiceSpec, pool: &PoolSpec) -> bool {
    [&service.denied, &service.exceeded].into_iter().any(|denied| *denied == Denied::Pool(pool.name.clone()))
}

/// Returns the number of pools at the end of the list that can be written inline, each in the service with its
/// name. Inline pools are read back after all other pools, in the order of their services. A pool with TLS or
/// with several uses cannot be inline.
fn in_place(spec: &Spec) -> usize {
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for service in &spec.services {
        let refused = [&service.denied, &service.exceeded].into_iter().filter_map(|denied| match denied {
            Denied::Pool(pool) => Some(pool),
            Denied::Drop | Denied::Reject | Denied::Tarpit(_) => None,
        });
        let routes = service.routes.iter().map(|route| &route.to);
        for pool in service.pool.iter().chain(routes).chain(refused) {
            *uses.entry(pool).or_default() += 1;
        }
    }
    let nested = |service: &ServiceSpec| service.pool.as_ref().filter(|pool| **pool == service.name).cloned();
    let positions: BTreeMap<Arc<str>, usize> =
        spec.services.iter().enumerate().filter_map(|(at, service)| Some((nested(service)?, at))).collect();
    let mut before = usize::MAX;
    let fits = |pool: &&PoolSpec| {
        let alone = uses.get(&*pool.name) == Some(&1) && pool.tls.is_none();
        let position = positions.get(&pool.name).filter(|position| alone && **position < before);
        before = position.copied().unwrap_or(before);
        position.is_some()
    };
    spec.pools.iter().rev().take_while(fits).count()
}

/// The text of the declarations.
#[derive(Default)]
struct Page {
    text: String,
    /// Builder of the last declaration, if it took one line.
    line_of: Option<&'static str>,
}

impl Page {
    fn add(&mut self, what: &'static str, table: &Table) {
        let statement = table.statement();
        let line_of = (statement.lines().count() == 1).then_some(what);
        // There is no blank line between declarations of the same kind that take one line each.
        if !self.text.is_empty() && (line_of.is_none() || line_of != self.line_of) {
            self.text.push('\n');
        }
        self.text.push_str(&statement);
        self.line_of = line_of;
    }
}

#[cfg(test)]
pub(crate) use tests::random_spec;

#[cfg(test)]
mod tests;
