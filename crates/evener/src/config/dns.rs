//! The keys for DNS: `dns` of a service, and `mname` of a server.

use super::access::read_rate;
use super::fields::Fields;
use super::hints::nearest_text;
use super::raw::{Value, shown};
use evener_core::Endpoint;
use evener_core::spec::{
    ClientSubnetSpec, Dialect, DiscoverSpec, DnsCacheSpec, DnsRateSpec, DnsSpec, OnFailure, PoolSpec,
    RetryOn, ServerSpec,
};
use std::sync::Arc;
use std::time::Duration;

/// Maximum of `query_timeout`. Clients retry much earlier.
const QUERY_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Maximum of `failure_ttl` (RFC 2308, section 7.1).
const FAILURE_TTL_MAX: Duration = Duration::from_secs(300);
const CACHE_BYTES_MAX: u64 = 1 << 40;
const NETWORKS_MAX: u32 = 16_000_000;
const SLIP_MAX: u32 = 1000;

/// Reads `dns = { query_timeout = "2s", cache = true, ... }`.
pub(super) fn read_dns(fields: &mut Fields<'_>) -> Arc<DnsSpec> {
    let defaults = DnsSpec::default();
    let table = match fields.take("dns") {
        None | Some(Value::Unknown) => return Arc::new(defaults),
        Some(Value::Table(table)) => table,
        Some(_) => {
            fields.must("dns", "be a table such as { query_timeout = \"2s\", cache = true }");
            return Arc::new(defaults);
        }
    };
    let mut nested = fields.within("dns", table);
    let spec = DnsSpec {
        query_timeout: read_query_timeout(&mut nested).unwrap_or(defaults.query_timeout),
        retries: nested.integer("retries", 0..=DnsSpec::RETRIES_MAX).unwrap_or(defaults.retries),
        on_failure: read_on_failure(&mut nested).unwrap_or(defaults.on_failure),
        retry_on: read_retry_on(&mut nested).unwrap_or(defaults.retry_on),
        outstanding_max: nested
            .integer("outstanding_max", 1..=DnsSpec::OUTSTANDING_MAX)
            .unwrap_or(defaults.outstanding_max),
        sockets: nested.integer("sockets", 1..=DnsSpec::SOCKETS_MAX).unwrap_or(defaults.sockets),
        pipeline_max: nested
            .integer("pipeline_max", 1..=DnsSpec::PIPELINE_MAX)
            .unwrap_or(defaults.pipeline_max),
        cache: read_cache(&mut nested),
        client_subnet: read_client_subnet(&mut nested),
        rate_limit: read_rate_limit(&mut nested),
    };
    nested.finish();
    Arc::new(spec)
}

fn read_query_timeout(nested: &mut Fields<'_>) -> Option<Duration> {
    let time = nested.duration("query_timeout")?;
    if time > QUERY_TIMEOUT_MAX {
        nested.must_hint("query_timeout", "be at most 1m", "clients do not wait longer");
    }
    Some(time)
}

fn read_on_failure(nested: &mut Fields<'_>) -> Option<OnFailure> {
    let names = OnFailure::ALL.map(OnFailure::name);
    nested.word("on_failure", &names, |word| OnFailure::ALL.into_iter().find(|each| each.name() == word))
}

/// Reads `retry_on = { "servfail", "refused" }`. With an empty list, no response code causes a retry.
fn read_retry_on(nested: &mut Fields<'_>) -> Option<RetryOn> {
    const WORDS: [&str; 2] = ["servfail", "refused"];
    let wanted = "a list of response codes: { \"servfail\", \"refused\" }, or {} for none";
    let words = nested.texts("retry_on", wanted, |word| match WORDS.contains(&word) {
        true => Ok(word.to_owned()),
        false => {
            let hint = nearest_text(word, WORDS.into_iter());
            Err(format!("dns.retry_on must be \"servfail\" or \"refused\", got {}{hint}", shown(word)))
        }
    })?;
    let has = |wanted: &str| words.iter().any(|word| word == wanted);
    Some(RetryOn { servfail: has("servfail"), refused: has("refused") })
}

/// Reads `cache = true`, or a table.
fn read_cache(fields: &mut Fields<'_>) -> Option<DnsCacheSpec> {
    let defaults = DnsCacheSpec::default();
    let table = match fields.take("cache")? {
        Value::Bool(true) => return Some(defaults),
        Value::Table(table) => table,
        Value::Bool(false) | Value::Unknown => return None,
        _ => {
            fields.must("cache", "be true or { entries = 100000 }");
            return None;
        }
    };
    let mut nested = fields.within("cache", table);
    let spec = DnsCacheSpec {
        entries: nested.integer("entries", 1..=DnsCacheSpec::ENTRIES_MAX).unwrap_or(defaults.entries),
        bytes: nested.size("bytes", DnsCacheSpec::BYTES_MIN..=CACHE_BYTES_MAX).unwrap_or(defaults.bytes),
        ttl_max: nested.duration("ttl_max").unwrap_or(defaults.ttl_max),
        negative_ttl_max: nested.duration("negative_ttl_max").unwrap_or(defaults.negative_ttl_max),
        failure_ttl: nested.duration_or_zero("failure_ttl").unwrap_or(defaults.failure_ttl),
        stale: nested.duration_or_zero("stale").unwrap_or(defaults.stale),
    };
    if spec.failure_ttl > FAILURE_TTL_MAX {
        nested.must_hint("failure_ttl", "be at most 5m", "see RFC 2308, section 7.1");
    }
    nested.finish();
    Some(spec)
}

/// Reads `client_subnet = true`, or `{ v4 = 24, v6 = 56 }`.
fn read_client_subnet(fields: &mut Fields<'_>) -> Option<ClientSubnetSpec> {
    let defaults = ClientSubnetSpec::default();
    match fields.take("client_subnet")? {
        Value::Bool(true) => Some(defaults),
        Value::Table(table) => {
            let mut nested = fields.within("client_subnet", table);
            let (v4, v6) = read_bits(&mut nested, (defaults.v4, defaults.v6));
            nested.finish();
            Some(ClientSubnetSpec { v4, v6 })
        }
        Value::Bool(false) | Value::Unknown => None,
        _ => {
            fields.must("client_subnet", "be true or { v4 = 24, v6 = 56 }");
            None
        }
    }
}

/// Reads `v4` and `v6`: the prefix lengths of the network of a client. The arguments are the defaults.
fn read_bits(nested: &mut Fields<'_>, (v4, v6): (u8, u8)) -> (u8, u8) {
    let v4 = nested.integer("v4", 0..=32).map_or(v4, |bits| bits as u8);
    let v6 = nested.integer("v6", 0..=128).map_or(v6, |bits| bits as u8);
    (v4, v6)
}

/// Reads `rate_limit = "20/s"`, or `{ rate = "20/s", v4 = 24, slip = 2 }`.
fn read_rate_limit(fields: &mut Fields<'_>) -> Option<DnsRateSpec> {
    let table = match fields.take("rate_limit")? {
        Value::Text(_) => return read_rate(fields, "rate_limit").map(DnsRateSpec::new),
        Value::Table(table) => table,
        Value::Bool(false) | Value::Unknown => return None,
        other => {
            let hint = other.number().map(|number| format!("write \"{number}/s\"")).unwrap_or_default();
            fields.must_hint("rate_limit", "be a rate such as \"20/s\", or { rate = \"20/s\" }", &hint);
            return None;
        }
    };
    let mut nested = fields.within("rate_limit", table);
    if !nested.has("rate") {
        nested.problem_here("dns.rate_limit has no rate: write rate_limit = { rate = \"20/s\" }");
    }
    let rate = read_rate(&mut nested, "rate");
    let (v4, v6) = read_bits(&mut nested, (24, 56));
    let (slip, size) = (nested.integer("slip", 0..=SLIP_MAX), nested.integer("size", 1..=NETWORKS_MAX));
    nested.finish();
    let defaults = DnsRateSpec::new(rate?);
    Some(DnsRateSpec {
        v4,
        v6,
        slip: slip.unwrap_or(defaults.slip),
        size: size.unwrap_or(defaults.size),
        ..defaults
    })
}

/// Reads `mname = true` of a server.
pub(super) fn read_dialect(fields: &mut Fields<'_>, endpoint: &Endpoint) -> Dialect {
    if fields.bool("mname") != Some(true) {
        return Dialect::Plain;
    }
    if !matches!(endpoint, Endpoint::Unix(_)) {
        fields.problem_with("mname", "needs a unix socket, such as { \"/run/mname.sock\", mname = true }");
    }
    Dialect::Mname
}

/// Returns true if the pool has servers of mname, or discovers servers of mname.
pub(super) fn has_mname(pool: &PoolSpec) -> bool {
    pool.discover.iter().any(|source| matches!(source, DiscoverSpec::Mname { .. }))
        || pool.servers.iter().any(|server| server.dialect == Dialect::Mname)
}

/// Returns the first server that is a unix socket without mname. A DNS service cannot use such a server.
pub(super) fn plain_sockets(pool: &PoolSpec) -> impl Iterator<Item = &ServerSpec> {
    let is_plain = |server: &&ServerSpec| {
        server.dialect == Dialect::Plain && matches!(server.endpoint, Endpoint::Unix(_))
    };
    pool.servers.iter().filter(is_plain)
}
