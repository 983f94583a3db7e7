//! The `sticky` key: whether a client stays with its server, and how it is known again.

use super::fields::Fields;
use super::raw::Value;
use evener_core::spec::{StickyBy, StickySpec};
use std::time::Duration;

/// The cookie's name when nothing else is said.
pub(super) const COOKIE: &str = "EVENER";
/// Moving clients more often would only make them lose what their servers know.
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

/// `sticky = true`, or a table.
pub(super) fn read_sticky(fields: &mut Fields<'_>) -> Option<StickySpec> {
    let defaults = sticky_defaults();
    match fields.take("sticky")? {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(defaults),
        Value::Table(table) => {
            let mut own = fields.within("sticky", table);
            match own.text("by") {
                None | Some("client_ip") => {}
                Some("cookie") => return Some(StickySpec { by: read_cookie(own), ..defaults }),
                Some(by) => {
                    own.problem("by", format!("`{by}` is nothing to be sticky by: client_ip or cookie"));
                }
            }
            let spec = read_table(&mut own, defaults);
            own.finish();
            Some(spec)
        }
        Value::Unknown => None,
        other => {
            fields.problem(
                "sticky",
                format!("`sticky` is {}, not true or {{ size = 2048, ttl = \"1h\" }}", other.kind()),
            );
            None
        }
    }
}

/// What the table of clients has.
fn read_table(own: &mut Fields<'_>, defaults: StickySpec) -> StickySpec {
    let size = own.integer("size", 1..=StickySpec::SIZE_MAX as u32);
    let rebalance = own.optional_duration("rebalance").unwrap_or(defaults.rebalance);
    if rebalance.is_some_and(|every| every < REBALANCE_MIN) {
        own.problem("rebalance", "clients are moved every 100ms at most");
    }
    StickySpec {
        size: size.map_or(defaults.size, |size| size as usize),
        ttl: own.optional_duration("ttl").unwrap_or(defaults.ttl),
        failback: own.bool("failback").unwrap_or(defaults.failback),
        rebalance,
        ..defaults
    }
}

/// `sticky = { by = "cookie", name = "EVENER" }`
fn read_cookie(mut own: Fields<'_>) -> StickyBy {
    let name = own.text("name").unwrap_or(COOKIE).to_owned();
    // A token (RFC 6265, section 4.1.1).
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        own.problem("name", format!("`{name}` is no name for a cookie"));
    }
    own.finish();
    StickyBy::Cookie(name)
}
