//! The keys for DNS: `dns` of a service.

use super::source::{Size, Table, one_or_list};
use evener_core::spec::{ClientSubnetSpec, DnsCacheSpec, DnsRateSpec, DnsSpec};

/// Writes `dns = { ... }`, unless all settings are the defaults.
pub(super) fn write_dns(table: &mut Table, dns: Option<&DnsSpec>) {
    let Some(dns) = dns else { return };
    let DnsSpec {
        query_timeout,
        retries,
        on_failure,
        retry_on,
        outstanding_max,
        sockets,
        pipeline_max,
        cache,
        client_subnet,
        rate_limit,
    } = dns;
    let defaults = DnsSpec::default();
    let mut nested = Table::new();
    nested.unless("query_timeout", query_timeout, &defaults.query_timeout);
    nested.unless("retries", retries, &defaults.retries);
    nested.unless("on_failure", &on_failure.name(), &defaults.on_failure.name());
    if *retry_on != defaults.retry_on {
        nested.key("retry_on", one_or_list(retry_on.names()));
    }
    nested.unless("outstanding_max", outstanding_max, &defaults.outstanding_max);
    nested.unless("sockets", sockets, &defaults.sockets);
    nested.unless("pipeline_max", pipeline_max, &defaults.pipeline_max);
    write_cache(&mut nested, cache.as_ref());
    write_client_subnet(&mut nested, client_subnet.as_ref());
    write_rate_limit(&mut nested, rate_limit.as_ref());
    if !nested.is_empty() {
        table.key("dns", nested);
    }
}

fn write_cache(table: &mut Table, cache: Option<&DnsCacheSpec>) {
    let Some(DnsCacheSpec { entries, bytes, ttl_max, negative_ttl_max, failure_ttl, stale }) = cache else {
        return;
    };
    let defaults = DnsCacheSpec::default();
    let mut nested = Table::new();
    nested.unless("entries", entries, &defaults.entries);
    nested.unless("bytes", &Size(*bytes), &Size(defaults.bytes));
    nested.unless("ttl_max", ttl_max, &defaults.ttl_max);
    nested.unless("negative_ttl_max", negative_ttl_max, &defaults.negative_ttl_max);
    nested.unless("failure_ttl", failure_ttl, &defaults.failure_ttl);
    nested.unless("stale", stale, &defaults.stale);
    if nested.is_empty() { table.set("cache", &true) } else { table.key("cache", nested) }
}

fn write_client_subnet(table: &mut Table, client_subnet: Option<&ClientSubnetSpec>) {
    let Some(ClientSubnetSpec { v4, v6 }) = client_subnet else { return };
    let defaults = ClientSubnetSpec::default();
    let mut nested = Table::new();
    nested.unless("v4", v4, &defaults.v4);
    nested.unless("v6", v6, &defaults.v6);
    if nested.is_empty() { table.set("client_subnet", &true) } else { table.key("client_subnet", nested) }
}

fn write_rate_limit(table: &mut Table, rate_limit: Option<&DnsRateSpec>) {
    let Some(DnsRateSpec { rate, v4, v6, slip, size }) = rate_limit else { return };
    let defaults = DnsRateSpec::new(*rate);
    let mut nested = Table::new();
    nested.unless("v4", v4, &defaults.v4);
    nested.unless("v6", v6, &defaults.v6);
    nested.unless("slip", slip, &defaults.slip);
    nested.unless("size", size, &defaults.size);
    if nested.is_empty() {
        return table.set("rate_limit", rate);
    }
    let mut whole = Table::new();
    whole.set("rate", rate);
    whole.extend(nested);
    table.key("rate_limit", whole);
}
