//! Access lists, the treatment of refused clients, and the limits of each client.

use super::Lists;
use super::source::{Node, Say, Table, one_or_list};
use crate::config::access::{REMEMBERED, TARPIT};
use evener_core::acl::{Access, Acl, Prefix};
use evener_core::spec::Denied;
use evener_core::throttle::ThrottleSpec;
use std::sync::Arc;

/// Writes `allow` and `deny` if they can express the list, else `access`.
pub(super) fn write_acl(table: &mut Table, acl: Option<&Arc<Acl>>, lists: Lists<'_>) {
    let Some(acl) = acl else { return };
    if let Some(text) = lists(acl) {
        return table.key("access", text);
    }
    let groups = acl.groups();
    let of = |wanted: Access| -> Vec<&Prefix> {
        let matching = groups.iter().filter(|(access, _)| *access == wanted);
        matching.flat_map(|(_, prefixes)| prefixes).collect()
    };
    let (permits, denies) = (of(Access::Permit), of(Access::Deny));
    match acl.otherwise() {
        Access::Permit if !acl.is_ordered() && permits.is_empty() => table.key("deny", one_or_list(denies)),
        Access::Deny if !acl.is_ordered() && (!permits.is_empty() || denies.is_empty()) => {
            table.key("allow", one_or_list(permits));
            if !denies.is_empty() {
                table.key("deny", one_or_list(denies));
            }
        }
        otherwise => table.key("access", ordered(&groups, otherwise)),
    }
}

fn ordered(groups: &[(Access, Vec<Prefix>)], otherwise: Access) -> Table {
    let mut table = Table::new();
    for (access, prefixes) in groups {
        let mut item = Table::new();
        item.key(word(*access), one_or_list(prefixes));
        table.item(item);
    }
    let last = groups.last().map_or(Access::Deny, |(access, _)| *access);
    if otherwise != last.inverse() {
        table.set("otherwise", word(otherwise));
    }
    table
}

fn word(access: Access) -> &'static str {
    match access {
        Access::Permit => "permit",
        Access::Deny => "deny",
    }
}

/// Writes a key with a single list of prefixes, such as `proxy_from`.
pub(super) fn write_prefixes(
    table: &mut Table,
    key: &'static str,
    list: Option<&Arc<Acl>>,
    lists: Lists<'_>,
) {
    let Some(list) = list else { return };
    let compiled = || one_or_list(list.groups().iter().flat_map(|(_, prefixes)| prefixes).copied());
    table.key(key, lists(list).map_or_else(compiled, Node::Source));
}

impl Say for Prefix {
    /// The prefix of a single address is written without a length.
    fn say(&self) -> Node {
        let text = self.to_string();
        let whole = if text.contains(':') { "/128" } else { "/32" };
        text.strip_suffix(whole).unwrap_or(&text).say()
    }
}

/// Returns the variable for a pool whose name would not mean the pool in `denied`, such as `drop`.
pub(super) fn handle_of(pool: &str) -> Option<&'static str> {
    match pool {
        "drop" => Some("drop_pool"),
        "reject" => Some("reject_pool"),
        "tarpit" => Some("tarpit_pool"),
        _ => None,
    }
}

/// Writes `denied` or `exceeded`.
pub(super) fn write_denied(table: &mut Table, key: &'static str, denied: &Denied, default: &Denied) {
    if denied == default {
        return;
    }
    match denied {
        Denied::Drop => table.set(key, "drop"),
        Denied::Reject => table.set(key, "reject"),
        Denied::Tarpit(time) if *time == TARPIT => table.set(key, "tarpit"),
        Denied::Tarpit(time) => {
            let mut tarpit = Table::new();
            tarpit.set("tarpit", time);
            table.key(key, tarpit);
        }
        Denied::Pool(pool) => {
            table.key(key, handle_of(pool).map_or_else(|| pool.say(), |handle| handle.to_owned().into()));
        }
    }
}

/// Writes `per_client`.
pub(super) fn write_throttle(table: &mut Table, throttle: Option<&ThrottleSpec>, exceeded: &Denied) {
    let Some(ThrottleSpec { connections, connection_rate, request_rate, size }) = throttle else { return };
    let mut nested = Table::new();
    nested.some("connections", connections.as_ref());
    nested.some("connection_rate", connection_rate.as_ref());
    nested.some("request_rate", request_rate.as_ref());
    write_denied(&mut nested, "exceeded", exceeded, &Denied::Reject);
    nested.unless("size", size, &REMEMBERED);
    table.key("per_client", nested);
}
