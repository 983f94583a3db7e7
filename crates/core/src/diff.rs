//! The difference between two configurations, as changes that can be printed and applied.

use crate::spec::{PoolSpec, ServerSpec, ServiceSpec, Spec};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The kind of change.
    pub action: Action,
    /// The thing that changes.
    pub subject: Subject,
}

/// The kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The subject is new.
    Add,
    /// The subject is removed.
    Remove,
    /// These settings of the subject have other values.
    Set(Vec<String>),
}

/// The thing that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A service.
    Service(Arc<str>),
    /// An address of a service.
    Listener(Arc<str>, String),
    /// A pool.
    Pool(Arc<str>),
    /// A server of a pool.
    Server(Arc<str>, Arc<str>),
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match &self.action {
            Action::Add => "+",
            Action::Remove => "-",
            Action::Set(_) => "~",
        };
        match &self.subject {
            Subject::Service(service) => write!(out, "{sign} service {service}")?,
            Subject::Listener(service, address) => write!(out, "{sign} service {service} listen {address}")?,
            Subject::Pool(pool) => write!(out, "{sign} pool {pool}")?,
            Subject::Server(pool, server) => write!(out, "{sign} server {pool}/{server}")?,
        }
        match &self.action {
            Action::Set(fields) => write!(out, ": {}", fields.join(", ")),
            Action::Add | Action::Remove => Ok(()),
        }
    }
}

/// Returns the changes that lead from `old` to `new`; none if they are equal.
///
/// ```
/// use evener_core::diff::diff;
/// use evener_core::spec::{PoolSpec, ServerSpec, Spec};
///
/// let pool = |address: &str| PoolSpec::new("web", vec![ServerSpec::new(address.parse().unwrap())]);
/// let spec = |address| Spec { pools: vec![pool(address)], services: Vec::new() };
/// let changes = diff(&spec("10.0.0.1:80"), &spec("10.0.0.2:80"));
/// let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
/// assert_eq!(lines, ["- server web/10.0.0.1:80", "+ server web/10.0.0.2:80"]);
/// ```
#[must_use]
pub fn diff(old: &Spec, new: &Spec) -> Vec<Change> {
    let mut changes = Vec::new();
    pair(&old.pools, &new.pools, |pool| &pool.name, |pair| pools(pair, &mut changes));
    pair(&old.services, &new.services, |service| &service.name, |pair| services(pair, &mut changes));
    changes
}

/// Walks two lists by name: first the items that only the old list has, then the items of the new list with
/// their old form.
fn pair<T>(
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &Arc<str>,
    mut visit: impl FnMut((Option<&T>, Option<&T>)),
) {
    let by_name =
        |list: &'_ [T]| list.iter().enumerate().map(|(at, item)| (name(item).clone(), at)).collect();
    let (in_old, in_new): (BTreeMap<Arc<str>, usize>, BTreeMap<Arc<str>, usize>) =
        (by_name(old), by_name(new));
    old.iter()
        .filter(|item| !in_new.contains_key(name(item)))
        .for_each(|removed| visit((Some(removed), None)));
    new.iter().for_each(|item| visit((in_old.get(name(item)).map(|&at| &old[at]), Some(item))));
}

fn change(action: Action, subject: Subject) -> Change {
    Change { action, subject }
}

/// Lists the names of the fields that differ.
macro_rules! differing {
    ($old:expr, $new:expr, $($($field:ident).+ as $name:literal),* $(,)?) => {
        [$(($old.$($field).+ != $new.$($field).+).then_some($name)),*].into_iter().flatten().collect::<Vec<_>>()
    };
}

fn set(fields: Vec<&'static str>, subject: Subject, changes: &mut Vec<Change>) {
    if !fields.is_empty() {
        let fields = fields.into_iter().map(str::to_owned).collect();
        changes.push(change(Action::Set(fields), subject));
    }
}

fn pools((old, new): (Option<&PoolSpec>, Option<&PoolSpec>), changes: &mut Vec<Change>) {
    let subject = |pool: &PoolSpec| Subject::Pool(pool.name.clone());
    match (old, new) {
        (Some(old), None) => changes.push(change(Action::Remove, subject(old))),
        (None, Some(new)) => {
            changes.push(change(Action::Add, subject(new)));
            let server = |server: &ServerSpec| Subject::Server(new.name.clone(), server.name.clone());
            changes.extend(new.servers.iter().map(|each| change(Action::Add, server(each))));
        }
        (Some(old), Some(new)) => {
            let fields = differing!(old, new, policy as "policy", sticky as "sticky", check as "check",
                passive as "passive", failover as "failover", on_down as "on_down", slow_start as "slow_start",
                queue as "queue", tls as "tls", send_proxy as "send_proxy", discover as "discover");
            set(fields, subject(new), changes);
            pair(&old.servers, &new.servers, |server| &server.name, |pair| servers(&new.name, pair, changes));
        }
        (None, None) => {}
    }
}

fn servers(
    pool: &Arc<str>,
    (old, new): (Option<&ServerSpec>, Option<&ServerSpec>),
    changes: &mut Vec<Change>,
) {
    let subject = |server: &ServerSpec| Subject::Server(pool.clone(), server.name.clone());
    match (old, new) {
        (Some(old), None) => changes.push(change(Action::Remove, subject(old))),
        (None, Some(new)) => changes.push(change(Action::Add, subject(new))),
        (Some(old), Some(new)) => {
            let fields = differing!(old, new, endpoint as "address", dialect as "mname", weight as "weight", tier as "tier",
                limits.soft as "max", limits.hard as "hard", acl as "acl", state as "state");
            let moved = || format!("address {} -> {}", old.endpoint, new.endpoint);
            let described = |field: &str| if field == "address" { moved() } else { field.to_owned() };
            let fields: Vec<String> = fields.into_iter().map(described).collect();
            if !fields.is_empty() {
                changes.push(change(Action::Set(fields), subject(new)));
            }
        }
        (None, None) => {}
    }
}

fn services((old, new): (Option<&ServiceSpec>, Option<&ServiceSpec>), changes: &mut Vec<Change>) {
    let subject = |service: &ServiceSpec| Subject::Service(service.name.clone());
    match (old, new) {
        (Some(old), None) => changes.push(change(Action::Remove, subject(old))),
        (None, Some(new)) => changes.push(change(Action::Add, subject(new))),
        (Some(old), Some(new)) => {
            let fields = differing!(old, new, protocol as "protocol", plane as "plane", pool as "pool", routes as "routes",
                acl as "acl", denied as "denied", throttle as "per_client", exceeded as "exceeded",
                proxy_from as "proxy_from", tls as "tls", http as "http", dns as "dns",
                options.connections_max as "connections_max", options.flows_max as "flows_max",
                options.spread as "spread",
                options.connect_timeout as "connect_timeout", options.attempts_max as "attempts_max",
                options.connect_time_max as "connect_time_max", options.idle_timeout as "idle_timeout",
                options.half_closed_timeout as "half_closed_timeout", options.freebind as "freebind",
                options.backlog as "backlog", options.nodelay as "nodelay", options.keepalive as "keepalive",
                options.server_keepalive as "server_keepalive", options.unix_mode as "unix_mode", options.source as "source",
                options.fast_close as "fast_close", options.pending_max as "pending_max", options.warm as "warm",
                clients as "clients", request_log as "request_log");
            set(fields, subject(new), changes);
            let listener =
                |address: &crate::Endpoint| Subject::Listener(new.name.clone(), address.to_string());
            let only_in = |a: &ServiceSpec, b: &ServiceSpec, action: Action| {
                let only: Vec<_> =
                    a.listen.iter().filter(|address| !b.listen.contains(address)).cloned().collect();
                only.into_iter().map(|address| change(action.clone(), listener(&address))).collect::<Vec<_>>()
            };
            changes.extend(only_in(old, new, Action::Remove));
            changes.extend(only_in(new, old, Action::Add));
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Policy, Protocol};

    fn spec(pools: &[(&str, &[&str])], listen: &[&str]) -> Spec {
        let server = |address: &&str| ServerSpec::new(address.parse().unwrap());
        let pool =
            |(name, servers): &(&str, &[&str])| PoolSpec::new(name, servers.iter().map(server).collect());
        let service = ServiceSpec {
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            pool: Some(pools[0].0.into()),
            ..ServiceSpec::new("www", Protocol::Tcp)
        };
        Spec { pools: pools.iter().map(pool).collect(), services: vec![service] }
    }

    fn check(old: &Spec, new: &Spec, expected: &[&str]) {
        let seen: Vec<String> = diff(old, new).iter().map(ToString::to_string).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn each_change_is_printed_as_one_line() {
        let old = spec(&[("web", &["10.0.0.1:80", "10.0.0.2:80"])], &["0.0.0.0:80"]);
        let mut new =
            spec(&[("web", &["10.0.0.2:80", "10.0.0.3:80"]), ("api", &["10.0.0.9:80"])], &["[::]:80"]);
        new.pools[0].policy = Policy::Hash;
        new.pools[0].servers[0].weight = 3;
        new.services[0].options.backlog = 9;
        check(&old, &old, &[]);
        check(
            &old,
            &new,
            &[
                "~ pool web: policy",
                "- server web/10.0.0.1:80",
                "~ server web/10.0.0.2:80: weight",
                "+ server web/10.0.0.3:80",
                "+ pool api",
                "+ server api/10.0.0.9:80",
                "~ service www: backlog",
                "- service www listen 0.0.0.0:80",
                "+ service www listen [::]:80",
            ],
        );
        let named = |address: &str| {
            let mut spec = spec(&[("web", &[address])], &["0.0.0.0:80"]);
            spec.pools[0].servers[0].name = "a".into();
            spec
        };
        check(
            &named("10.0.0.1:80"),
            &named("/run/a.sock"),
            &["~ server web/a: address 10.0.0.1:80 -> /run/a.sock"],
        );
        check(&new, &Spec::default(), &["- pool web", "- pool api", "- service www"]);
    }
}
