//! The change set: the difference between two configurations and their resolved inputs, as changes with values.
//!
//! Nothing else decides what changed: applying consumes the change set, and the plan, the log and the API print
//! it.

mod fields;
mod text;

use crate::address::{Endpoint, Target};
use crate::spec::{PoolSpec, ServerSpec, ServiceSpec, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// A configuration with its inputs from outside the file.
#[derive(Clone, Copy)]
pub struct Configuration<'a> {
    /// The configuration, with the servers that were found.
    pub spec: &'a Spec,
    /// The inputs.
    pub inputs: &'a dyn Inputs,
}

/// Inputs of a configuration that are not in its file.
pub trait Inputs {
    /// Returns the address of a server; `None` if it is unknown.
    fn target(&self, pool: &PoolSpec, server: &ServerSpec) -> Option<Target>;

    /// Returns digests of the TLS settings of a service; `None` without TLS.
    fn tls_of_service(&self, service: &str) -> Option<TlsDigests>;

    /// Returns digests of the TLS settings of a pool; `None` without TLS.
    fn tls_of_pool(&self, pool: &str) -> Option<TlsDigests>;
}

/// Digests of TLS settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsDigests {
    /// Digest of all settings, with the files.
    pub settings: u64,
    /// Digest of the contents of the files.
    pub files: u64,
}

/// No inputs besides the addresses in the configuration itself.
#[derive(Clone, Copy, Debug)]
pub struct NoInputs;

impl Inputs for NoInputs {
    fn target(&self, _pool: &PoolSpec, server: &ServerSpec) -> Option<Target> {
        server.endpoint.target()
    }

    fn tls_of_service(&self, _service: &str) -> Option<TlsDigests> {
        None
    }

    fn tls_of_pool(&self, _pool: &str) -> Option<TlsDigests> {
        None
    }
}

/// All changes that lead from one configuration to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    changes: Vec<Change>,
    /// Services and pools whose TLS settings have to be replaced, although no key of theirs may have changed.
    renewed: BTreeSet<Subject>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The thing that changes.
    pub subject: Subject,
    /// The kind of change.
    pub action: Action,
}

/// The kind of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The subject is new.
    Add,
    /// The subject is removed.
    Remove,
    /// These settings of the subject have other values; at least one.
    Set(Vec<FieldChange>),
}

/// A setting with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Name of the key in the configuration, with a dot between tables: `dns.cache.entries`.
    pub field: String,
    /// The old value.
    pub before: String,
    /// The new value. Equal to the old one if the texts are shortened and differ elsewhere.
    pub after: String,
}

/// The thing that changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The XDP plane.
    Xdp,
    /// The IPVS plane.
    Ipvs,
    /// The admin API.
    Admin,
    /// A service.
    Service(Arc<str>),
    /// A listen address of a service.
    Listener(Arc<str>, Endpoint),
    /// A pool.
    Pool(Arc<str>),
    /// A server of a pool.
    Server(Arc<str>, Arc<str>),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp => out.write_str("xdp"),
            Self::Ipvs => out.write_str("ipvs"),
            Self::Admin => out.write_str("admin"),
            Self::Service(service) => write!(out, "service {service}"),
            Self::Listener(service, address) => write!(out, "service {service} listen {address}"),
            Self::Pool(pool) => write!(out, "pool {pool}"),
            Self::Server(pool, server) => write!(out, "server {pool}/{server}"),
        }
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, before, after } = self;
        if before == after {
            write!(out, "{field} changed")
        } else {
            write!(out, "{field} {before} -> {after}")
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Add => write!(out, "+ {}", self.subject),
            Action::Remove => write!(out, "- {}", self.subject),
            Action::Set(fields) => {
                let fields: Vec<String> = fields.iter().map(ToString::to_string).collect();
                write!(out, "~ {}: {}", self.subject, fields.join(", "))
            }
        }
    }
}

impl ChangeSet {
    /// Returns the changes in the order in which they are printed.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }

    /// Returns the number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Returns true if nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns the pools that are new, or that changed or have servers that changed.
    #[must_use]
    pub fn pools(&self) -> BTreeSet<&Arc<str>> {
        self.changes.iter().filter_map(Change::pool).collect()
    }

    /// Returns the services that are new or have new settings, including the services whose connections to
    /// servers change because of a pool.
    #[must_use]
    pub fn services<'a>(&self, new: &'a Spec) -> BTreeSet<&'a Arc<str>> {
        let (mut services, mut pools) = (BTreeSet::new(), BTreeSet::new());
        for change in &self.changes {
            match &change.subject {
                Subject::Service(service) => drop(services.insert(service)),
                Subject::Pool(pool) if change.concerns_connections() => drop(pools.insert(pool)),
                Subject::Xdp
                | Subject::Ipvs
                | Subject::Admin
                | Subject::Pool(_)
                | Subject::Server(..)
                | Subject::Listener(..) => {}
            }
        }
        for renewed in &self.renewed {
            match renewed {
                Subject::Service(service) => drop(services.insert(service)),
                Subject::Pool(pool) => drop(pools.insert(pool)),
                Subject::Xdp
                | Subject::Ipvs
                | Subject::Admin
                | Subject::Server(..)
                | Subject::Listener(..) => {}
            }
        }
        let has_changed = |service: &&ServiceSpec| {
            services.contains(&service.name) || service.pools().any(|pool| pools.contains(pool))
        };
        new.services.iter().filter(has_changed).map(|service| &service.name).collect()
    }

    /// Returns true if settings of the XDP plane as a whole changed.
    #[must_use]
    pub fn concerns_xdp(&self) -> bool {
        self.changes.iter().any(|change| change.subject == Subject::Xdp)
    }

    /// Returns true if certificates may have to be read for this change.
    #[must_use]
    pub fn concerns_tls(&self) -> bool {
        let concerns = |change: &Change| match (&change.subject, &change.action) {
            (Subject::Service(_) | Subject::Pool(_), Action::Add | Action::Remove) => true,
            (Subject::Service(_) | Subject::Pool(_), Action::Set(fields)) => {
                fields.iter().any(|field| field.is_in(&["tls", "protocol", "http2", CERTIFICATES]))
            }
            (
                Subject::Xdp | Subject::Ipvs | Subject::Admin | Subject::Server(..) | Subject::Listener(..),
                _,
            ) => false,
        };
        self.changes.iter().any(concerns)
    }

    /// Returns true if listeners are opened, closed or assigned to another service.
    #[must_use]
    pub fn concerns_listeners(&self) -> bool {
        let concerns = |change: &Change| match (&change.subject, &change.action) {
            (Subject::Listener(..), _) | (Subject::Service(_), Action::Add | Action::Remove) => true,
            (Subject::Service(_), Action::Set(fields)) => {
                fields.iter().any(|field| field.is_in(&["protocol", "plane"]))
            }
            (Subject::Xdp | Subject::Ipvs | Subject::Admin | Subject::Pool(_) | Subject::Server(..), _) => {
                false
            }
        };
        self.changes.iter().any(concerns)
    }
}

impl Change {
    /// Returns the pool that is new, or that changed or has a server that changed.
    fn pool(&self) -> Option<&Arc<str>> {
        match (&self.subject, &self.action) {
            (Subject::Pool(_), Action::Remove)
            | (
                Subject::Xdp | Subject::Ipvs | Subject::Admin | Subject::Service(_) | Subject::Listener(..),
                _,
            ) => None,
            (Subject::Pool(pool) | Subject::Server(pool, _), _) => Some(pool),
        }
    }

    /// Returns true if a change of a pool concerns the connections to its servers, beside TLS.
    fn concerns_connections(&self) -> bool {
        match &self.action {
            Action::Add => true,
            Action::Remove => false,
            Action::Set(fields) => fields.iter().any(|field| field.is_in(&["send_proxy"])),
        }
    }
}

impl FieldChange {
    /// Returns true if this is one of these keys, or a key of one of these tables.
    fn is_in(&self, keys: &[&str]) -> bool {
        self.field.split('.').next().is_some_and(|key| keys.contains(&key))
    }
}

/// Returns the changes between two configurations without regard to their inputs.
///
/// ```
/// use evener_core::diff::diff_specs;
/// use evener_core::spec::{PoolSpec, ServerSpec, Spec};
///
/// let mut server = ServerSpec::new("10.0.0.1:80".parse().unwrap());
/// let spec = |server: &ServerSpec| Spec {
///     pools: vec![PoolSpec::new("web", vec![server.clone()])],
///     ..Spec::default()
/// };
/// let old = spec(&server);
/// server.weight = 3;
/// let lines: Vec<String> = diff_specs(&old, &spec(&server)).iter().map(ToString::to_string).collect();
/// assert_eq!(lines, ["~ server web/10.0.0.1:80: weight 1 -> 3"]);
/// ```
#[must_use]
pub fn diff_specs(old: &Spec, new: &Spec) -> ChangeSet {
    let [old, new] = [old, new].map(|spec| Configuration { spec, inputs: &NoInputs });
    diff(old, new)
}

/// Returns the changes that lead from `old` to `new`; none if they are equal.
#[must_use]
pub fn diff(old: Configuration<'_>, new: Configuration<'_>) -> ChangeSet {
    let mut diff = Diff { old: old.inputs, new: new.inputs, found: ChangeSet::default() };
    let (old, new) = (old.spec, new.spec);
    diff.set(fields::of_xdp(&old.xdp, &new.xdp), Subject::Xdp);
    diff.set(fields::of_ipvs(&old.ipvs, &new.ipvs), Subject::Ipvs);
    diff.set(fields::of_admin(&old.admin, &new.admin), Subject::Admin);
    pair(&old.pools, &new.pools, |pool| &pool.name, |pair| diff.pools(pair));
    pair(&old.services, &new.services, |service| &service.name, |pair| diff.services(pair));
    diff.found
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

/// Name of the field for certificates and keys whose files changed.
const CERTIFICATES: &str = "certificates";

/// A comparison in progress.
struct Diff<'a> {
    old: &'a dyn Inputs,
    new: &'a dyn Inputs,
    found: ChangeSet,
}

impl Diff<'_> {
    fn push(&mut self, action: Action, subject: Subject) {
        self.found.changes.push(Change { subject, action });
    }

    fn set(&mut self, fields: Vec<FieldChange>, subject: Subject) {
        if !fields.is_empty() {
            self.push(Action::Set(fields), subject);
        }
    }

    fn pools(&mut self, (old, new): (Option<&PoolSpec>, Option<&PoolSpec>)) {
        let subject = |pool: &PoolSpec| Subject::Pool(pool.name.clone());
        match (old, new) {
            (Some(old), None) => self.push(Action::Remove, subject(old)),
            (None, Some(new)) => {
                self.push(Action::Add, subject(new));
                let server = |server: &ServerSpec| Subject::Server(new.name.clone(), server.name.clone());
                new.servers.iter().for_each(|each| self.push(Action::Add, server(each)));
            }
            (Some(old), Some(new)) => {
                let mut fields = fields::of_pools(old, new);
                fields.extend(order(old, new));
                let digests = |inputs: &dyn Inputs| inputs.tls_of_pool(&new.name);
                let (before, after) = (digests(self.old), digests(self.new));
                fields.extend(self.tls(old.tls == new.tls, (before, after), subject(new)));
                self.set(fields, subject(new));
                pair(
                    &old.servers,
                    &new.servers,
                    |server| &server.name,
                    |pair| {
                        self.servers((old, new), pair);
                    },
                );
            }
            (None, None) => {}
        }
    }

    fn servers(
        &mut self,
        (old_pool, pool): (&PoolSpec, &PoolSpec),
        (old, new): (Option<&ServerSpec>, Option<&ServerSpec>),
    ) {
        let subject = |server: &ServerSpec| Subject::Server(pool.name.clone(), server.name.clone());
        match (old, new) {
            (Some(old), None) => self.push(Action::Remove, subject(old)),
            (None, Some(new)) => self.push(Action::Add, subject(new)),
            (Some(old), Some(new)) => {
                let mut fields = fields::of_servers(old, new);
                if old.endpoint == new.endpoint {
                    fields.extend(moved(self.old.target(old_pool, old), self.new.target(pool, new)));
                }
                self.set(fields, subject(new));
            }
            (None, None) => {}
        }
    }

    /// Compares the TLS settings of a service or pool. Returns a change if its files changed, unless its keys of
    /// TLS changed, too.
    fn tls(
        &mut self,
        has_same_keys: bool,
        (before, after): (Option<TlsDigests>, Option<TlsDigests>),
        subject: Subject,
    ) -> Option<FieldChange> {
        if before != after {
            self.found.renewed.insert(subject);
        }
        let files = |digests: Option<TlsDigests>| digests.map(|digests| digests.files);
        let field =
            || FieldChange { field: CERTIFICATES.into(), before: String::new(), after: String::new() };
        (has_same_keys && files(before) != files(after)).then(field)
    }

    fn services(&mut self, (old, new): (Option<&ServiceSpec>, Option<&ServiceSpec>)) {
        let subject = |service: &ServiceSpec| Subject::Service(service.name.clone());
        match (old, new) {
            (Some(old), None) => self.push(Action::Remove, subject(old)),
            (None, Some(new)) => {
                self.push(Action::Add, subject(new));
                self.listeners(&Action::Add, new, &[]);
            }
            (Some(old), Some(new)) => {
                let mut fields = fields::of_services(old, new);
                let digests = |inputs: &dyn Inputs| inputs.tls_of_service(&new.name);
                let (before, after) = (digests(self.old), digests(self.new));
                fields.extend(self.tls(old.tls == new.tls, (before, after), subject(new)));
                self.set(fields, subject(new));
                self.listeners(&Action::Remove, old, &new.listen);
                self.listeners(&Action::Add, new, &old.listen);
            }
            (None, None) => {}
        }
    }

    /// Adds a change for each address of a service that is not one of `others`.
    fn listeners(&mut self, action: &Action, service: &ServiceSpec, others: &[Endpoint]) {
        for address in service.listen.iter().filter(|address| !others.contains(address)) {
            self.push(action.clone(), Subject::Listener(service.name.clone(), address.clone()));
        }
    }
}

/// Compares the order of the servers that both pools have, which the policy `first` follows.
fn order(old: &PoolSpec, new: &PoolSpec) -> Option<FieldChange> {
    fn names(pool: &PoolSpec) -> BTreeSet<&Arc<str>> {
        pool.servers.iter().map(|server| &server.name).collect()
    }
    let both: BTreeSet<&Arc<str>> = names(old).intersection(&names(new)).copied().collect();
    let in_order = |pool: &PoolSpec| -> Vec<Arc<str>> {
        pool.servers.iter().map(|server| &server.name).filter(|name| both.contains(name)).cloned().collect()
    };
    let (before, after) = (in_order(old), in_order(new));
    (before != after).then(|| FieldChange {
        field: "order".into(),
        before: text::list(before.iter().map(ToString::to_string)),
        after: text::list(after.iter().map(ToString::to_string)),
    })
}

fn moved(old: Option<Target>, new: Option<Target>) -> Option<FieldChange> {
    let text = |target: Option<Target>| target.map_or_else(|| "none".into(), |target| target.to_string());
    (old != new).then(|| FieldChange { field: "address".into(), before: text(old), after: text(new) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Forward, Policy, Protocol, TunnelSource, XdpServiceSpec};

    fn spec(pools: &[(&str, &[&str])], listen: &[&str]) -> Spec {
        let server = |address: &&str| ServerSpec::new(address.parse().unwrap());
        let pool =
            |(name, servers): &(&str, &[&str])| PoolSpec::new(name, servers.iter().map(server).collect());
        let service = ServiceSpec {
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            pool: Some(pools[0].0.into()),
            ..ServiceSpec::new("www", Protocol::Tcp)
        };
        Spec { pools: pools.iter().map(pool).collect(), services: vec![service], ..Spec::default() }
    }

    fn check(old: &Spec, new: &Spec, expected: &[&str]) {
        let seen: Vec<String> = diff_specs(old, new).iter().map(ToString::to_string).collect();
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
                "~ pool web: policy round_robin -> hash",
                "- server web/10.0.0.1:80",
                "~ server web/10.0.0.2:80: weight 1 -> 3",
                "+ server web/10.0.0.3:80",
                "+ pool api",
                "+ server api/10.0.0.9:80",
                "~ service www: backlog 4096 -> 9",
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

    /// Inputs with these digests of the pool and of the service.
    struct Digests(TlsDigests, TlsDigests);

    impl Inputs for Digests {
        fn target(&self, _pool: &PoolSpec, server: &ServerSpec) -> Option<Target> {
            server.endpoint.target()
        }

        fn tls_of_service(&self, _service: &str) -> Option<TlsDigests> {
            Some(self.1)
        }

        fn tls_of_pool(&self, _pool: &str) -> Option<TlsDigests> {
            Some(self.0)
        }
    }

    #[test]
    fn renewed_tls_settings_reach_the_services_and_only_changed_files_are_printed() {
        let spec = spec(&[("web", &["10.0.0.1:80"])], &["0.0.0.0:80"]);
        let check = |(pool, service): ((u64, u64), (u64, u64)), expected: &[&str], is_renewed: bool| {
            let digests = |(settings, files)| TlsDigests { settings, files };
            let (before, after) =
                (Digests(digests((1, 1)), digests((1, 1))), Digests(digests(pool), digests(service)));
            let [before, after]: [&dyn Inputs; 2] = [&before, &after];
            let [before, after] = [before, after].map(|inputs| Configuration { spec: &spec, inputs });
            let changes = diff(before, after);
            assert_eq!(changes.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
            assert_eq!(changes.services(&spec).len(), usize::from(is_renewed), "{changes:?}");
        };
        check(((1, 1), (1, 1)), &[], false);
        check(((2, 2), (1, 1)), &["~ pool web: certificates changed"], true);
        check(((1, 1), (2, 2)), &["~ service www: certificates changed"], true);
        // Other settings than files have changes of their own.
        check(((2, 1), (1, 1)), &[], true);
        check(((1, 1), (2, 1)), &[], true);
    }

    #[test]
    fn settings_of_the_xdp_plane_are_compared_by_the_names_of_their_keys() {
        let mut old = spec(&[("web", &["10.0.0.1:80"])], &["192.0.2.1:80"]);
        old.services[0].plane = crate::spec::Plane::Xdp;
        let settings = XdpServiceSpec { interfaces: vec!["eth0".into()], ..XdpServiceSpec::default() };
        old.services[0].xdp = Some(Arc::new(settings.clone()));
        let mut new = old.clone();
        new.xdp.flows = 5;
        new.pools[0].servers[0] =
            ServerSpec { quic_id: "a01f".parse().ok(), ..new.pools[0].servers[0].clone() };
        new.services[0].xdp = Some(Arc::new(XdpServiceSpec {
            forward: Forward::Gue(TunnelSource { v4: Some([192, 0, 2, 9].into()), v6: None }, 6080),
            idle_timeout: Some(std::time::Duration::from_secs(60)),
            ..settings
        }));
        let changes = diff_specs(&old, &new);
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "~ xdp: flows 1048576 -> 5",
                "~ server web/10.0.0.1:80: quic_id none -> a01f",
                "~ service www: forward nat -> gue to port 6080 from 192.0.2.9, idle_timeout none -> 1m",
            ]
        );
        assert!(changes.concerns_xdp() && !changes.concerns_listeners() && !changes.concerns_tls());
    }
}
