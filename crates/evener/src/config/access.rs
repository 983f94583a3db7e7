//! Access rules: `allow` and `deny`, or `access` in order, with prefixes, files of prefixes and countries; the
//! treatment of refused clients; the limits of each client; the proxies that may report the addresses of
//! clients.

use super::fields::Fields;
use super::hints::one_of;
use super::problem::{reason, unreadable};
use super::raw::{Made, Table, Value, shown};
use super::search_tree;
use evener_core::acl::{Access, Acl, Prefix, PrefixError};
use evener_core::spec::Denied;
use evener_core::throttle::{Rate, ThrottleSpec};
use maxminddb::{Reader, WithinOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Default time after which the connection of a refused client is closed (`tarpit`).
pub(super) const TARPIT: Duration = Duration::from_secs(30);
/// Default maximum number of clients in the table of limits.
pub(super) const REMEMBERED: usize = 65_536;
const TARPIT_MAX: Duration = Duration::from_secs(3600);
const LIST_FILE_BYTES_MAX: u64 = 128 << 20;
const GEOIP_FILE_BYTES_MAX: u64 = 512 << 20;

/// Reads `allow` and `deny`, or `access`. Of the prefixes of `allow` and `deny` the longest match wins;
/// countries decide where no prefix matches. With `allow` all other clients are refused, without it they are
/// admitted.
pub(super) fn read_acl(fields: &mut Fields<'_>) -> Option<Arc<Acl>> {
    let ordered = read_ordered(fields);
    let allow = read_both(fields, "allow");
    let deny = read_both(fields, "deny");
    if fields.has("access") && (fields.has("allow") || fields.has("deny")) {
        fields.problem_with(
            "access",
            "cannot be combined with `allow` or `deny`: move their prefixes to `access`",
        );
    }
    if ordered.is_some() || (allow.is_none() && deny.is_none()) {
        return ordered;
    }
    let otherwise = if allow.is_some() { Access::Deny } else { Access::Permit };
    let (denied, denied_countries) = deny.unwrap_or_default();
    let (allowed, allowed_countries) = allow.unwrap_or_default();
    let rules = |denied: &[Prefix], allowed: &[Prefix]| -> Vec<(Prefix, Access)> {
        let denied = denied.iter().map(|prefix| (*prefix, Access::Deny));
        denied.chain(allowed.iter().map(|prefix| (*prefix, Access::Permit))).collect()
    };
    let acl = Acl::new(&rules(&denied_countries, &allowed_countries), otherwise);
    Some(Arc::new(acl.after(&rules(&denied, &allowed))))
}

/// Reads a key with a single list of prefixes and countries, such as `proxy_from`. The result permits the
/// clients in the list and denies all others.
pub(super) fn read_prefixes(fields: &mut Fields<'_>, key: &'static str) -> Option<Arc<Acl>> {
    let (prefixes, countries) = read_both(fields, key)?;
    let rules: Vec<_> = countries.iter().chain(&prefixes).map(|prefix| (*prefix, Access::Permit)).collect();
    Some(Arc::new(Acl::new(&rules, Access::Deny)))
}

/// Reads `access = { { permit = "10.0.0.0/8" }, { deny = country "SE" }, otherwise = "deny" }`. The first item
/// that matches decides; `otherwise` decides about all other clients; its default is the inverse of the last
/// item.
fn read_ordered(fields: &mut Fields<'_>) -> Option<Arc<Acl>> {
    const WANTED: &str = "a list of { permit = \"10.0.0.0/8\" } and { deny = \"192.0.2.0/24\" }";
    let table = match fields.take("access")? {
        Value::Table(table) => table,
        Value::Unknown => return None,
        _ => {
            fields.must("access", format!("be {WANTED}"));
            return None;
        }
    };
    let mut nested = fields.within("access", table);
    if ["permit", "allow", "deny"].iter().any(|key| nested.has(key)) {
        nested.problem_here(
            "each item of access needs its own braces: access = { { permit = \"10.0.0.0/8\" }, ... }",
        );
        return None;
    }
    let otherwise = read_otherwise(&mut nested);
    nested.finish();
    let mut items = Vec::new();
    for (index, item) in table.list().iter().enumerate() {
        match item {
            Value::Table(table) => {
                items.extend(read_item(fields.within_item("access", Some(index), table), table));
            }
            Value::Unknown => {}
            Value::Text(text) => {
                fields.problem_with_text(
                    "access",
                    Some(index),
                    text,
                    format!("an item of access needs permit or deny: write {{ permit = {} }}", shown(text)),
                );
            }
            other => fields.value_must("access", other, format!("be {WANTED}"), ""),
        }
    }
    let codes = items.iter().flat_map(|(_, list)| list.codes.iter().cloned()).collect();
    let countries = read_countries(fields, "access", &codes);
    let last = items.last().map_or(Access::Deny, |(access, _)| *access);
    let group = |(access, mut list): (Access, List)| {
        list.prefixes.extend(list.codes.iter().filter_map(|code| countries.get(code)).flatten());
        (access, list.prefixes)
    };
    let groups: Vec<_> = items.into_iter().map(group).collect();
    Some(Arc::new(Acl::in_order(&groups, otherwise.unwrap_or(last.inverse()))))
}

fn read_otherwise(nested: &mut Fields<'_>) -> Option<Access> {
    nested.word("otherwise", &["permit", "deny"], |word| match word {
        "permit" => Some(Access::Permit),
        "deny" => Some(Access::Deny),
        _ => None,
    })
}

/// Reads one item: `permit` or `deny`.
fn read_item(mut nested: Fields<'_>, table: &Table) -> Option<(Access, List)> {
    let permit = read_list(&mut nested, "permit");
    let deny = read_list(&mut nested, "deny");
    let item = match (permit, deny) {
        (Some(list), None) => Some((Access::Permit, list)),
        (None, Some(list)) => Some((Access::Deny, list)),
        _ => None,
    };
    let both = nested.has("permit") && nested.has("deny");
    if both || table.only_list().is_some() || !table.list().is_empty() {
        nested.problem_here("an item of access must be either { permit = ... } or { deny = ... }");
    }
    nested.finish();
    item
}

/// Prefixes and country codes.
#[derive(Default)]
struct List {
    prefixes: Vec<Prefix>,
    codes: BTreeSet<String>,
}

/// Reads a list. Returns its prefixes, and the networks of its countries.
fn read_both(fields: &mut Fields<'_>, key: &'static str) -> Option<(Vec<Prefix>, Vec<Prefix>)> {
    let list = read_list(fields, key)?;
    let countries = read_countries(fields, key, &list.codes);
    Some((list.prefixes, countries.into_values().flatten().collect()))
}

fn read_list(fields: &mut Fields<'_>, key: &'static str) -> Option<List> {
    let items = fields.items(key)?;
    let mut list = List::default();
    for (index, item) in items {
        match item {
            Value::Text(text) => match parse_prefix(text) {
                Ok(prefix) => {
                    if let Some(warning) = host_bits(text, prefix) {
                        fields.warn_of_text(key, index, text, warning);
                    }
                    list.prefixes.push(prefix);
                }
                Err(why) => fields.problem_with_text(key, index, text, why),
            },
            Value::Made(made) if made.builder() == "prefixes" => {
                read_file(fields, made, &mut list.prefixes);
            }
            Value::Made(made) if made.builder() == "country" => {
                let code = made.name().to_ascii_uppercase();
                if code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    list.codes.insert(code);
                } else {
                    fields.problem(
                        key,
                        format!(
                            "`{code}` is not a country code: give two letters (ISO 3166-1), such as \"SE\""
                        ),
                    );
                }
            }
            other => fields.value_must(
                key,
                other,
                "be a prefix such as \"10.0.0.0/8\", prefixes \"FILE\" or country \"SE\", or a list of them",
                "",
            ),
        }
    }
    Some(list)
}

/// Parses a prefix. A netmask is refused; the message gives the equivalent length.
fn parse_prefix(text: &str) -> Result<Prefix, String> {
    text.parse().map_err(|error: PrefixError| match length_of_netmask(text) {
        Some((address, length)) => {
            format!("`{text}` has a netmask: write the length of the prefix, `{address}/{length}`")
        }
        None => error.to_string(),
    })
}

/// Returns a warning about a prefix that is written with an address inside its network, such as `10.1.2.3/8`. The
/// whole network is used, but the author may have meant the address.
fn host_bits(text: &str, prefix: Prefix) -> Option<String> {
    let address = address_inside(text, prefix)?;
    Some(format!(
        "`{text}` means the whole network {prefix}: write `{prefix}`, or `{address}` for one address"
    ))
}

/// Returns the address of a prefix that is written with an address inside its network instead of the first address.
pub(crate) fn address_inside(text: &str, prefix: Prefix) -> Option<IpAddr> {
    let address = text.split_once('/')?.0.parse::<IpAddr>().ok()?.to_canonical();
    let network = prefix.to_string();
    let is_network = network.split_once('/').is_some_and(|(first, _)| first.parse() == Ok(address));
    (!is_network).then_some(address)
}

/// Returns the address, and the prefix length that is equivalent to a netmask such as `255.255.255.0`.
fn length_of_netmask(text: &str) -> Option<(&str, u32)> {
    let (address, mask) = text.split_once('/')?;
    let bits = mask.parse::<Ipv4Addr>().ok()?.to_bits();
    let length = bits.leading_ones();
    (length == bits.count_ones()).then_some((address, length))
}

/// Reads `prefixes "FILE"`: one prefix per line; `#` begins a comment.
fn read_file(fields: &mut Fields<'_>, made: &Made, prefixes: &mut Vec<Prefix>) {
    let path = fields.reading().path(made.location(), made.name());
    let reading = fields.reading();
    let too_large = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LIST_FILE_BYTES_MAX);
    if too_large {
        let message = format!("{} is larger than {} MiB", path.display(), LIST_FILE_BYTES_MAX >> 20);
        return reading.problem(made.location(), message);
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            return reading.problem(made.location(), unreadable(&path, &error));
        }
    };
    let (mut wrong, mut warned) = (0, 0);
    for (number, line) in text.lines().enumerate() {
        let word = line.split('#').next().unwrap_or_default().trim();
        match parse_prefix(word) {
            Ok(prefix) => {
                if let Some(warning) = host_bits(word, prefix).filter(|_| warned < 10) {
                    warned += 1;
                    reading.warning(made.location(), format!("{}:{}: {warning}", path.display(), number + 1));
                }
                prefixes.push(prefix);
            }
            Err(_) if word.is_empty() => {}
            Err(error) if wrong < 10 => {
                wrong += 1;
                reading.problem(made.location(), format!("{}:{}: {error}", path.display(), number + 1));
            }
            Err(_) => {}
        }
    }
}

/// Reads the networks of countries from the database that `geoip` names.
fn read_countries(fields: &mut Fields<'_>, key: &'static str, codes: &BTreeSet<String>) -> Networks {
    if codes.is_empty() {
        return Networks::new();
    }
    let Some((path, location)) = fields.reading().run().geoip() else {
        fields.problem(key, "country needs a database: write geoip \"GeoLite2-Country.mmdb\" above it");
        return Networks::new();
    };
    let path = fields.reading().path(location, path);
    match networks_of(&path, codes) {
        Ok(networks) => {
            for code in codes.iter().filter(|code| !networks.contains_key(*code)) {
                fields.problem(key, format!("{} has no networks of country {code}", path.display()));
            }
            networks
        }
        Err(error) => {
            fields.reading().problem(location, format!("{}: {error}", path.display()));
            Networks::new()
        }
    }
}

/// Reads the networks of one country.
pub(crate) fn countries(path: &Path, code: &str) -> Result<Vec<Prefix>, String> {
    let found = networks_of(path, &BTreeSet::from([code.to_owned()]))?.remove(code);
    found.ok_or_else(|| format!("it has no networks of country {code}"))
}

/// The networks of each country.
type Networks = BTreeMap<String, Vec<Prefix>>;

fn networks_of(path: &Path, codes: &BTreeSet<String>) -> Result<Networks, String> {
    let too_large = std::fs::metadata(path).is_ok_and(|meta| meta.len() > GEOIP_FILE_BYTES_MAX);
    if too_large {
        return Err(format!("larger than {} MiB", GEOIP_FILE_BYTES_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(|error| reason(&error))?;
    let reader = Reader::from_source(&bytes[..]).map_err(|error| error.to_string())?;
    search_tree::verify(&bytes, &reader.metadata)?;
    let mut networks = Networks::new();
    let all = reader.networks(WithinOptions::default()).map_err(|error| error.to_string())?;
    for found in all {
        let found = found.map_err(|error| error.to_string())?;
        let record = found.decode::<maxminddb::geoip2::Country<'_>>().map_err(|error| error.to_string())?;
        let Some(code) = record.and_then(|record| record.country.iso_code) else { continue };
        if codes.contains(code) {
            let network = found.network().map_err(|error| error.to_string())?;
            let prefix = network.to_string().parse().map_err(|_| format!("invalid network {network}"))?;
            networks.entry(code.to_owned()).or_default().push(prefix);
        }
    }
    Ok(networks)
}

/// Treatments of refused clients that are written as a word.
pub(super) const DENIED: [&str; 3] = ["drop", "reject", "tarpit"];
/// Description of the other treatments, for messages.
pub(super) const DENIED_OTHERWISE: &str = "a pool";

/// Reads the treatment of refused clients: `"drop"`, `"reject"`, `"tarpit"`, `{ tarpit = "10s" }`, or a pool.
pub(super) fn read_denied(fields: &mut Fields<'_>, key: &'static str) -> Option<Denied> {
    match fields.take(key)? {
        Value::Text(word) if word == "drop" => Some(Denied::Drop),
        Value::Text(word) if word == "reject" => Some(Denied::Reject),
        Value::Text(word) if word == "tarpit" => Some(Denied::Tarpit(TARPIT)),
        Value::Table(table) => {
            let mut nested = fields.within(key, table);
            let time = nested.duration("tarpit").unwrap_or(TARPIT);
            if time > TARPIT_MAX {
                nested.must("tarpit", "be at most 1h");
            }
            nested.finish();
            Some(Denied::Tarpit(time))
        }
        Value::Made(pool) if pool.builder() == "pool" => Some(Denied::Pool(pool.name().into())),
        // After all pools are read, `check_edge` verifies that the pool exists.
        Value::Text(pool) => Some(Denied::Pool(pool.as_str().into())),
        _ => {
            fields.must(key, format!("be {}", one_of(&DENIED, DENIED_OTHERWISE)));
            None
        }
    }
}

/// Reads `per_client = { connections = 10, connection_rate = "20/s", request_rate = "100/s" }`.
pub(super) fn read_throttle(fields: &mut Fields<'_>) -> Option<(ThrottleSpec, Denied)> {
    let table = match fields.take("per_client")? {
        Value::Table(table) => table,
        Value::Unknown => return None,
        _ => {
            fields.must("per_client", "be a table such as { connections = 10, connection_rate = \"20/s\" }");
            return None;
        }
    };
    let mut nested = fields.within("per_client", table);
    let spec = ThrottleSpec {
        connections: nested.integer("connections", 1..=1_000_000),
        connection_rate: read_rate(&mut nested, "connection_rate"),
        request_rate: read_rate(&mut nested, "request_rate"),
        size: nested
            .integer("size", 1..=ThrottleSpec::SIZE_MAX as u32)
            .map_or(REMEMBERED, |size| size as usize),
    };
    let exceeded = read_denied(&mut nested, "exceeded").unwrap_or(Denied::Reject);
    let has_limit = ["connections", "connection_rate", "request_rate"].iter().any(|key| nested.has(key));
    if !has_limit && !nested.has_unknown_keys() {
        nested.problem_here("per_client has no limit: give connections, connection_rate or request_rate");
    }
    nested.finish();
    Some((spec, exceeded))
}

pub(super) fn read_rate(fields: &mut Fields<'_>, key: &'static str) -> Option<Rate> {
    let text = fields.text_such_as(key, "a rate such as \"20/s\"", "/s")?;
    let rate = text.parse().ok();
    if rate.is_none() {
        let hint = text.split_once('/').and_then(|(number, unit)| {
            let unit = ["s", "m", "h"].into_iter().find(|short| unit.trim().starts_with(short))?;
            // nginx writes 10r/s.
            let right = format!("{}/{unit}", number.trim_end_matches(['r', ' ']).trim());
            right.parse::<Rate>().is_ok().then(|| format!("write \"{right}\""))
        });
        let wanted = "be a rate such as \"20/s\", \"100/m\" or \"1000/h\"";
        fields.must_hint(key, wanted, &hint.unwrap_or_default());
    }
    rate
}
