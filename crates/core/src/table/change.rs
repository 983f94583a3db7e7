//! The changes between two tables, with values, for planes that apply them and for readers.

use super::{PoolTable, PoolTables, PoolTraits, Row, ServiceTable, ServiceTraits};
use crate::ServerId;
use crate::address::Endpoint;
use crate::limits::Limits;
use crate::policy::WEIGHT_UNIT;
use crate::snapshot::{Role, Takes};
use crate::spec::{
    Forward, IpvsEngine, IpvsForward, IpvsPersistence, IpvsScheduler, IpvsServiceSpec, NextHop, Policy,
    QuicId, SourceRate, StickyBy, StickySpec, TunnelSource, XdpServiceSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A change of one thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit<T> {
    /// The thing is new.
    Add(T),
    /// The thing is removed.
    Remove(T),
    /// The thing has another value.
    Set {
        /// The value until now.
        before: T,
        /// The value from now on.
        after: T,
    },
}

/// A change of a service table.
#[derive(Clone, Debug, PartialEq)]
pub enum TableChange {
    /// The service.
    Service {
        /// Name of the service.
        service: Arc<str>,
        /// The change.
        edit: Edit<ServiceTraits>,
    },
    /// A listen address; it is added or removed.
    Listen {
        /// Name of the service.
        service: Arc<str>,
        /// The change.
        edit: Edit<Endpoint>,
    },
    /// A pool.
    Pool {
        /// Name of the pool.
        pool: Arc<str>,
        /// The change.
        edit: Edit<PoolTraits>,
    },
    /// A server.
    Server {
        /// Name of the pool.
        pool: Arc<str>,
        /// Identity of the server in the pool.
        server: ServerId,
        /// The change, with whole rows, because some kernel interfaces take whole entries only.
        edit: Edit<Row>,
    },
}

/// Returns the changes that lead from `old` to `new`; `None` is the table of a service that does not exist.
///
/// The order is safe for live traffic: a service has its servers before it listens, servers that begin to take
/// new clients come before servers that stop, and removals come last.
#[must_use]
pub fn diff(old: Option<&ServiceTable>, new: Option<&ServiceTable>) -> Vec<TableChange> {
    let mut changes = Changes::default();
    if let Some(name) = new.or(old).map(|table| table.name.clone()) {
        changes.service(&name, old, new);
    }
    changes.in_order()
}

/// Returns the changes of a pool, which are the same in the tables of all its services.
pub(super) fn diff_of_pool(name: &Arc<str>, old: &Arc<PoolTable>, new: &Arc<PoolTable>) -> Vec<TableChange> {
    let mut changes = Changes::default();
    changes.pool(name, Some(old), Some(new));
    changes.in_order()
}

/// The changes by the stage of a safe order.
#[derive(Debug, Default)]
struct Changes {
    /// New things, and servers that begin to take new clients.
    opening: Vec<TableChange>,
    /// Other changes of values.
    setting: Vec<TableChange>,
    /// New listen addresses.
    listening: Vec<TableChange>,
    /// Removals of listen addresses, then of what they led to.
    closing: Vec<TableChange>,
}

impl Changes {
    fn in_order(self) -> Vec<TableChange> {
        let Self { opening, setting, listening, closing } = self;
        [opening, setting, listening, closing].into_iter().flatten().collect()
    }

    /// Adds the change of a whole service or pool: a new one before its parts, a removed one after them.
    fn whole<T: Clone + PartialEq>(
        &mut self,
        old: Option<&T>,
        new: Option<&T>,
        change: impl FnOnce(Edit<T>) -> TableChange,
        add_parts: impl FnOnce(&mut Self),
    ) {
        let edit = edit(old, new);
        let is_removal = matches!(edit, Some(Edit::Remove(_)));
        let stage = if old.is_none() { &mut self.opening } else { &mut self.setting };
        let change = edit.map(change);
        stage.extend(change.clone().filter(|_| !is_removal));
        add_parts(self);
        self.closing.extend(change.filter(|_| is_removal));
    }

    fn service(&mut self, name: &Arc<str>, old: Option<&ServiceTable>, new: Option<&ServiceTable>) {
        fn parts(table: &ServiceTable) -> (&ServiceTraits, &BTreeSet<Endpoint>, &PoolTables) {
            let ServiceTable { name: _, traits, listen, pools } = table;
            (traits, listen, pools)
        }
        let (old, new) = (old.map(parts), new.map(parts));
        let change = |edit| TableChange::Service { service: name.clone(), edit };
        self.whole(old.map(|old| old.0), new.map(|new| new.0), change, |changes| {
            changes.listen(name, old.map(|old| old.1), new.map(|new| new.1));
            in_both(old.map(|old| old.2), new.map(|new| new.2), |pool, old, new| {
                changes.pool(pool, old, new);
            });
        });
    }

    fn listen(
        &mut self,
        service: &Arc<str>,
        old: Option<&BTreeSet<Endpoint>>,
        new: Option<&BTreeSet<Endpoint>>,
    ) {
        let change = |edit| TableChange::Listen { service: service.clone(), edit };
        let lacks = |all: Option<&BTreeSet<Endpoint>>, one| all.is_none_or(|all| !all.contains(one));
        let added = new.into_iter().flatten().filter(|address| lacks(old, address));
        self.listening.extend(added.map(|address| change(Edit::Add(address.clone()))));
        let removed = old.into_iter().flatten().filter(|address| lacks(new, address));
        self.closing.extend(removed.map(|address| change(Edit::Remove(address.clone()))));
    }

    fn pool(&mut self, name: &Arc<str>, old: Option<&Arc<PoolTable>>, new: Option<&Arc<PoolTable>>) {
        fn parts(table: &Arc<PoolTable>) -> (&PoolTraits, &BTreeMap<ServerId, Row>) {
            let PoolTable { traits, rows } = &**table;
            (traits, rows)
        }
        // Most pools are the same allocation as before; their rows are not compared.
        if old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new)) {
            return;
        }
        let (old, new) = (old.map(parts), new.map(parts));
        let change = |edit| TableChange::Pool { pool: name.clone(), edit };
        self.whole(old.map(|old| old.0), new.map(|new| new.0), change, |changes| {
            in_both(old.map(|old| old.1), new.map(|new| new.1), |&id, old, new| {
                changes.row(name, id, old, new);
            });
        });
    }

    fn row(&mut self, pool: &Arc<str>, server: ServerId, old: Option<&Row>, new: Option<&Row>) {
        let Some(edit) = edit(old, new) else { return };
        let stage = match &edit {
            Edit::Add(_) => &mut self.opening,
            Edit::Set { before, after } if after.takes_new() && !before.takes_new() => &mut self.opening,
            Edit::Set { .. } => &mut self.setting,
            Edit::Remove(_) => &mut self.closing,
        };
        stage.push(TableChange::Server { pool: pool.clone(), server, edit });
    }
}

/// Visits the keys of two maps, each with its two values: first the keys of the new map, then the keys that only
/// the old map has.
fn in_both<K: Ord, V>(
    old: Option<&BTreeMap<K, V>>,
    new: Option<&BTreeMap<K, V>>,
    mut visit: impl FnMut(&K, Option<&V>, Option<&V>),
) {
    for (key, value) in new.into_iter().flatten() {
        visit(key, old.and_then(|old| old.get(key)), Some(value));
    }
    let is_removed = |key| new.is_none_or(|new| !new.contains_key(key));
    let removed = old.into_iter().flatten().filter(|(key, _)| is_removed(*key));
    removed.for_each(|(key, value)| visit(key, Some(value), None));
}

fn edit<T: Clone + PartialEq>(old: Option<&T>, new: Option<&T>) -> Option<Edit<T>> {
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some(Edit::Add(new.clone())),
        (Some(old), None) => Some(Edit::Remove(old.clone())),
        (Some(old), Some(new)) => (old != new).then(|| Edit::Set { before: old.clone(), after: new.clone() }),
    }
}

impl fmt::Display for TableChange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, edit } => show(out, edit, &format!("service {service}"), service_fields),
            Self::Listen { service, edit } => {
                let (Edit::Add(address) | Edit::Remove(address) | Edit::Set { after: address, .. }) = edit;
                show(out, edit, &format!("service {service} listen {address}"), |_, _| Vec::new())
            }
            Self::Pool { pool, edit } => show(out, edit, &format!("pool {pool}"), pool_fields),
            Self::Server { pool, edit, .. } => {
                let (Edit::Add(row) | Edit::Remove(row) | Edit::Set { after: row, .. }) = edit;
                show(out, edit, &format!("server {pool}/{}", row.name), row_fields)
            }
        }
    }
}

/// Writes a change; `fields` returns the fields of a new value, or those that differ from another value.
fn show<T>(
    out: &mut fmt::Formatter<'_>,
    edit: &Edit<T>,
    subject: &str,
    fields: impl Fn(&T, Option<&T>) -> Vec<String>,
) -> fmt::Result {
    let (sign, fields) = match edit {
        Edit::Add(new) => ('+', fields(new, None)),
        Edit::Set { before, after } => ('~', fields(after, Some(before))),
        Edit::Remove(_) => ('-', Vec::new()),
    };
    let colon = if fields.is_empty() { "" } else { ": " };
    write!(out, "{sign} {subject}{colon}{}", fields.join(", "))
}

/// Describes a field: `weight 3`, `weight 1 -> 3`, or nothing if the values are equal.
fn field<T: PartialEq>(
    name: &str,
    value: &T,
    before: Option<&T>,
    text: impl Fn(&T) -> String,
) -> Option<String> {
    match before {
        Some(before) if before == value => None,
        Some(before) => Some(format!("{name} {} -> {}", text(before), text(value))),
        None => Some(format!("{name} {}", text(value))),
    }
}

fn service_fields(traits: &ServiceTraits, before: Option<&ServiceTraits>) -> Vec<String> {
    let ServiceTraits { protocol, default_pool, acl, xdp, ipvs } = traits;
    let pool = |pool: &Option<Arc<str>>| pool.as_deref().unwrap_or("none").to_owned();
    let fields = [
        field("protocol", protocol, before.map(|old| &old.protocol), |protocol| protocol.name().to_owned()),
        field("pool", default_pool, before.map(|old| &old.default_pool), pool),
        before.map_or(acl.is_some(), |old| old.acl != *acl).then(|| "access list".to_owned()),
    ];
    let settings = match (before.and_then(|old| old.xdp.as_deref()), xdp.as_deref()) {
        (None, Some(xdp)) => xdp_fields(xdp, None),
        (Some(before), Some(xdp)) => xdp_fields(xdp, Some(before)),
        (Some(_), None) if ipvs.is_none() => vec!["plane proxy".to_owned()],
        (_, None) => Vec::new(),
    };
    let ipvs = match (before.and_then(|old| old.ipvs.as_deref()), ipvs.as_deref()) {
        (before, Some(ipvs)) => ipvs_fields(ipvs, before),
        (Some(_), None) if xdp.is_none() => vec!["plane proxy".to_owned()],
        (_, None) => Vec::new(),
    };
    fields.into_iter().flatten().chain(settings).chain(ipvs).collect()
}

fn xdp_fields(xdp: &XdpServiceSpec, before: Option<&XdpServiceSpec>) -> Vec<String> {
    let XdpServiceSpec { interfaces, forward, next_hop, idle_timeout, rate, syn_cookies, quic_id_length } =
        xdp;
    fn number<T: ToString>(number: &Option<T>) -> String {
        number.as_ref().map_or("none".to_owned(), ToString::to_string)
    }
    let time = |time: &Option<Duration>| time.map_or("none".to_owned(), |time| format!("{time:?}"));
    let limit = |rate: &Option<SourceRate>| {
        rate.map_or("none".to_owned(), |rate| {
            let SourceRate { packets_per_second, burst, prefix_v4, prefix_v6 } = rate;
            format!("({packets_per_second}/s, burst {burst}, /{prefix_v4} and /{prefix_v6})")
        })
    };
    // Only differences are shown of fields with a usual value.
    let unusual = |text: Option<String>, is_usual: bool| text.filter(|_| before.is_some() || !is_usual);
    let fields = [
        field("interfaces", interfaces, before.map(|old| &old.interfaces), |names| names.join(" ")),
        field("forward", forward, before.map(|old| &old.forward), forward_text),
        unusual(
            field("next_hop", next_hop, before.map(|old| &old.next_hop), |hop| hop.name().to_owned()),
            *next_hop == NextHop::Route,
        ),
        unusual(
            field("idle_timeout", idle_timeout, before.map(|old| &old.idle_timeout), time),
            idle_timeout.is_none(),
        ),
        unusual(field("source_rate", rate, before.map(|old| &old.rate), limit), rate.is_none()),
        unusual(
            field("syn_cookies", syn_cookies, before.map(|old| &old.syn_cookies), number),
            syn_cookies.is_none(),
        ),
        unusual(
            field("quic_id_length", quic_id_length, before.map(|old| &old.quic_id_length), number),
            quic_id_length.is_none(),
        ),
    ];
    fields.into_iter().flatten().collect()
}

/// Describes the settings of a service in the IPVS plane; of fields with a usual value only differences.
fn ipvs_fields(ipvs: &IpvsServiceSpec, before: Option<&IpvsServiceSpec>) -> Vec<String> {
    let usual = IpvsServiceSpec::default();
    let text = |spec: &IpvsServiceSpec| {
        let IpvsServiceSpec {
            transport,
            fwmark,
            forward,
            scheduler,
            scheduler_flags,
            one_packet,
            persistence,
            address_on,
            drain_timeout,
        } = spec;
        let flags: Vec<&str> = scheduler_flags.names().collect();
        let persistence = persistence.as_ref().map_or("none".to_owned(), |persistence| {
            let IpvsPersistence { timeout, prefix_v4, prefix_v6, engine } = persistence;
            let engine = engine.map_or("none", IpvsEngine::name);
            format!("({timeout:?}, /{prefix_v4} and /{prefix_v6}, engine {engine})")
        });
        let port = match forward {
            IpvsForward::Gue(port) => format!(" to port {port}"),
            _ => String::new(),
        };
        [
            ("transport", transport.name().to_owned()),
            ("fwmark", fwmark.map_or("none".to_owned(), |mark| mark.to_string())),
            ("forward", format!("{}{port}", forward.name())),
            ("scheduler", scheduler.map_or("by policy", IpvsScheduler::name).to_owned()),
            ("scheduler_flags", if flags.is_empty() { "none".to_owned() } else { flags.join(" ") }),
            ("one_packet", one_packet.to_string()),
            ("persistence", persistence),
            ("address_on", address_on.as_deref().unwrap_or("none").to_owned()),
            ("drain_timeout", format!("{drain_timeout:?}")),
        ]
    };
    let (values, usual, before) = (text(ipvs), text(&usual), before.map(text));
    let each = values.into_iter().enumerate();
    let each = each.map(|(at, (name, value))| match &before {
        Some(before) => field(name, &value, Some(&before[at].1), String::clone),
        None => {
            field(name, &value, None, String::clone).filter(|_| value != usual[at].1 || name == "forward")
        }
    });
    each.flatten().collect()
}

fn forward_text(forward: &Forward) -> String {
    let Some((TunnelSource { v4, v6 }, port)) = forward.tunnel() else { return forward.name().to_owned() };
    let port = port.map(|port| format!(" to port {port}")).unwrap_or_default();
    let sources = [v4.map(|v4| format!(" from {v4}")), v6.map(|v6| format!(" from {v6}"))];
    let sources: String = sources.into_iter().flatten().collect();
    format!("{}{port}{sources}", forward.name())
}

fn pool_fields(traits: &PoolTraits, before: Option<&PoolTraits>) -> Vec<String> {
    let PoolTraits { policy, failover, on_down, sticky, has_quorum, inhibit_on_failure } = traits;
    let is_set = |is_set: &bool| if *is_set { "yes" } else { "no" }.to_owned();
    let fields = [
        field("policy", policy, before.map(|old| &old.policy), policy_text),
        field("failover", failover, before.map(|old| &old.failover), |failover| {
            format!("{failover:?}").to_lowercase()
        }),
        field("on_down", on_down, before.map(|old| &old.on_down), |on_down| on_down.name().to_owned()),
        field("sticky", sticky, before.map(|old| &old.sticky), sticky_text),
        before.and_then(|old| field("quorum", has_quorum, Some(&old.has_quorum), is_set)),
        before.and_then(|old| {
            field("inhibit_on_failure", inhibit_on_failure, Some(&old.inhibit_on_failure), is_set)
        }),
    ];
    fields.into_iter().flatten().collect()
}

fn policy_text(policy: &Policy) -> String {
    match policy {
        Policy::Maglev { table } => format!("{} (table {table})", policy.name()),
        Policy::Ewma { decay } => format!("{} (decay {decay:?})", policy.name()),
        policy => policy.name().to_owned(),
    }
}

fn sticky_text(sticky: &Option<StickySpec>) -> String {
    let Some(StickySpec { by, size, ttl, failback, rebalance }) = sticky else { return "off".to_owned() };
    let by = match by {
        StickyBy::ClientIp => "client_ip",
        StickyBy::Cookie(name) => name,
    };
    let time = |time: &Option<Duration>| time.map_or("none".to_owned(), |time| format!("{time:?}"));
    let (ttl, rebalance) = (time(ttl), time(rebalance));
    format!("({by}, size {size}, ttl {ttl}, failback {failback}, rebalance {rebalance})")
}

fn row_fields(row: &Row, before: Option<&Row>) -> Vec<String> {
    let Row { name, placement_name, target, tier, weight, share, limits, acl, quic_id, role, .. } = row;
    let Limits { soft, hard } = limits;
    let Role { takes, is_candidate } = role;
    let limit = |limit: &Option<u32>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    let id = |id: &Option<QuicId>| id.map_or("none".to_owned(), |id| id.to_string());
    // Only differences are shown of fields with a usual value.
    let unusual = |text: Option<String>, is_usual: bool| text.filter(|_| before.is_some() || !is_usual);
    let part = slow_start_percent(*share, *weight);
    let part_before = before.map(|old| slow_start_percent(old.share, old.weight));
    let lists = before.map_or(acl.is_some(), |old| old.acl != *acl);
    let fields = [
        unusual(field("name", name, before.map(|old| &old.name), ToString::to_string), true),
        unusual(
            field("placement", placement_name, before.map(|old| &old.placement_name), ToString::to_string),
            placement_name == name,
        ),
        field("address", target, before.map(|old| &old.target), ToString::to_string),
        unusual(field("tier", tier, before.map(|old| &old.tier), ToString::to_string), *tier == 1),
        field("weight", weight, before.map(|old| &old.weight), ToString::to_string),
        unusual(field("share", &part, part_before.as_ref(), |part| format!("{part} %")), part == 100),
        unusual(field("max", soft, before.map(|old| &old.limits.soft), limit), soft.is_none()),
        unusual(field("hard", hard, before.map(|old| &old.limits.hard), limit), hard.is_none()),
        lists.then(|| "access list".to_owned()),
        unusual(field("quic_id", quic_id, before.map(|old| &old.quic_id), id), quic_id.is_none()),
        field("clients", takes, before.map(|old| &old.role.takes), |takes| takes.name().to_owned()),
        unusual(
            field("candidate", is_candidate, before.map(|old| &old.role.is_candidate), ToString::to_string),
            *is_candidate == (*takes == Takes::New),
        ),
    ];
    fields.into_iter().flatten().collect()
}

/// Returns the part of the weight that a slow start has reached, in percent.
fn slow_start_percent(share: u32, weight: u32) -> u64 {
    let full = u64::from(weight) * u64::from(WEIGHT_UNIT);
    (u64::from(share) * 100).checked_div(full).unwrap_or(100)
}
