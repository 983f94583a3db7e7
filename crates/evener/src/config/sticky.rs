//! The `sticky` key: if and how a client stays with its server.

use super::fields::Fields;
use super::hints::values;
use super::raw::Value;
use evener_core::spec::{PoolSpec, ServiceSpec, Spec, StickyBy, StickySpec};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// Minimum interval of rebalancing. Clients that move more often would lose their state on the servers.
pub(super) const REBALANCE_MIN: Duration = Duration::from_millis(100);

pub(super) fn sticky_defaults() -> StickySpec {
    StickySpec {
        by: StickyBy::ClientIp,
        size: 65_536,
        ttl: Some(Duration::from_secs(3600)),
        failback: false,
        rebalance: None,
    }
}

/// Reads `sticky = true`, or a table.
pub(super) fn read_sticky(fields: &mut Fields<'_>) -> Option<StickySpec> {
    let defaults = sticky_defaults();
    match fields.take("sticky")? {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(defaults),
        Value::Table(table) => {
            let mut nested = fields.within("sticky", table);
            let by_cookie = match nested.text("by") {
                None => None,
                Some("client_ip") => Some(false),
                Some("cookie") => Some(true),
                Some(word) => {
                    nested.must_hint("by", "be \"client_ip\" or \"cookie\"", &values::sticky_by(word));
                    None
                }
            };
            if by_cookie == Some(true) {
                for key in ["size", "ttl", "failback", "rebalance"] {
                    if nested.take(key).is_some() {
                        nested.problem_with(key, "is not available with by = \"cookie\"");
                    }
                }
                return Some(StickySpec { by: read_cookie(nested), ..defaults });
            }
            if nested.has("name") && nested.take("name").is_some() {
                nested.problem_with("name", "is not available with by = \"client_ip\"");
            }
            let spec = read_table(&mut nested, defaults);
            nested.finish();
            Some(spec)
        }
        Value::Unknown => None,
        given => {
            let hint = given.text().map(values::sticky).unwrap_or_default();
            fields.must_hint("sticky", "be true or a table such as { by = \"client_ip\" }", &hint);
            None
        }
    }
}

/// Reads the keys of the sticky table.
fn read_table(nested: &mut Fields<'_>, defaults: StickySpec) -> StickySpec {
    let size = nested.integer("size", 1..=StickySpec::SIZE_MAX as u32);
    let rebalance = nested.optional_duration("rebalance").unwrap_or(defaults.rebalance);
    if rebalance.is_some_and(|every| every < REBALANCE_MIN) {
        nested.must("rebalance", "be at least 100ms");
    }
    StickySpec {
        size: size.map_or(defaults.size, |size| size as usize),
        ttl: nested.optional_duration("ttl").unwrap_or(defaults.ttl),
        failback: nested.bool("failback").unwrap_or(defaults.failback),
        rebalance,
        ..defaults
    }
}

/// Returns true for bytes that the name of a cookie can have (RFC 6265, section 4.1.1).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads `sticky = { by = "cookie", name = "EVENER" }`. A missing name stays empty until [`name_cookies`] sets
/// it.
fn read_cookie(mut nested: Fields<'_>) -> StickyBy {
    let Some(name) = nested.text("name").map(str::to_owned) else {
        nested.finish();
        return StickyBy::Cookie(String::new());
    };
    if name.is_empty() || !name.bytes().all(is_token) {
        nested.must("name", "be the name of a cookie, of letters, digits, - and _");
    }
    nested.finish();
    StickyBy::Cookie(name)
}

/// Names the cookies without a configured name: `EVENER`, or `EVENER_` and the name of the pool if several
/// pools of one service would have the name `EVENER`.
pub(super) fn name_cookies(spec: &mut Spec) {
    let with_default: BTreeSet<Arc<str>> =
        spec.pools.iter().filter(|pool| has_default(pool)).map(|pool| Arc::clone(&pool.name)).collect();
    let shared: BTreeSet<Arc<str>> =
        spec.services.iter().flat_map(|service| sharing(service, &with_default)).collect();
    for pool in &mut spec.pools {
        if let Some(StickySpec { by: StickyBy::Cookie(name), .. }) = &mut pool.sticky
            && name.is_empty()
        {
            *name = match shared.contains(&pool.name) {
                true => cookie_of_pool(&pool.name),
                false => StickyBy::COOKIE.into(),
            };
        }
    }
}

/// Returns true if the cookie of a pool would have the default name.
fn has_default(pool: &PoolSpec) -> bool {
    match &pool.sticky {
        Some(StickySpec { by: StickyBy::Cookie(name), .. }) => name.is_empty() || name == StickyBy::COOKIE,
        _ => false,
    }
}

/// Returns the pools of a service that are in `with_default`, if there are several such pools.
fn sharing(service: &ServiceSpec, with_default: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    let shared: BTreeSet<Arc<str>> =
        service.pools().filter(|name| with_default.contains(*name)).cloned().collect();
    if shared.len() > 1 { shared } else { BTreeSet::new() }
}

/// Returns the name of the cookie of a pool. Bytes that the name of a cookie cannot have are percent-encoded,
/// so that two pools never have the same cookie.
fn cookie_of_pool(pool: &str) -> String {
    let mut name = String::from(StickyBy::COOKIE_OF_POOL);
    for byte in pool.bytes() {
        if is_token(byte) && byte != b'%' {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name
}
