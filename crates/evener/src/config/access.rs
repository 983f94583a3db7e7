//! Who may come in: `allow` and `deny` with prefixes, files of prefixes and countries; what becomes of others; the limits
//! of each client; who may tell us of clients.

use super::fields::Fields;
use super::raw::{Made, Value};
use super::search_tree;
use evener_core::acl::{Access, Acl, Prefix};
use evener_core::spec::Denied;
use evener_core::throttle::{Rate, ThrottleSpec};
use maxminddb::{Reader, WithinOptions};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a refused client waits when nothing else is said.
const TARPIT: Duration = Duration::from_secs(30);
const TARPIT_MAX: Duration = Duration::from_secs(3600);
const LIST_FILE_BYTES_MAX: u64 = 128 << 20;
const GEOIP_FILE_BYTES_MAX: u64 = 512 << 20;

/// `allow` and `deny`. Of the prefixes the longest wins; countries are asked where no prefix matches. With `allow`
/// everybody else is refused, without it let in.
pub(super) fn read_acl(fields: &mut Fields<'_>) -> Option<Arc<Acl>> {
    let allow = read_list(fields, "allow");
    let deny = read_list(fields, "deny");
    if allow.is_none() && deny.is_none() {
        return None;
    }
    let otherwise = if allow.is_some() { Access::Deny } else { Access::Permit };
    let lists = [(deny.unwrap_or_default(), Access::Deny), (allow.unwrap_or_default(), Access::Permit)];
    let of = |part: fn(&List) -> &[Prefix]| {
        let rules = lists.iter().flat_map(move |(list, access)| part(list).iter().map(|one| (*one, *access)));
        rules.collect::<Vec<_>>()
    };
    let acl = Acl::new(&of(|list| &list.countries), otherwise);
    Some(Arc::new(acl.after(&of(|list| &list.prefixes))))
}

/// A list of prefixes alone, such as `proxy_from`: those who are in it are permitted.
pub(super) fn read_prefixes(fields: &mut Fields<'_>, key: &'static str) -> Option<Arc<Acl>> {
    let list = read_list(fields, key)?;
    let rules: Vec<_> =
        list.countries.iter().chain(&list.prefixes).map(|prefix| (*prefix, Access::Permit)).collect();
    Some(Arc::new(Acl::new(&rules, Access::Deny)))
}

#[derive(Default)]
struct List {
    prefixes: Vec<Prefix>,
    countries: Vec<Prefix>,
}

fn read_list(fields: &mut Fields<'_>, key: &'static str) -> Option<List> {
    let items = fields.items(key)?;
    let mut list = List::default();
    let mut codes = BTreeSet::new();
    for item in items {
        match item {
            Value::Text(text) => match text.parse() {
                Ok(prefix) => list.prefixes.push(prefix),
                Err(error) => fields.problem_with(text, error.to_string()),
            },
            Value::Made(made) if made.builder == "prefixes" => {
                read_file(fields, made, &mut list.prefixes);
            }
            Value::Made(made) if made.builder == "country" => {
                let code = made.name.clone().unwrap_or_default().to_ascii_uppercase();
                if code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    codes.insert(code);
                } else {
                    fields.problem(key, format!("`{code}` is no country: two letters, as ISO 3166-1 has them"));
                }
            }
            Value::Unknown => {}
            other => fields.problem(
                key,
                format!(
                    "`{key}` is {}, not a prefix such as \"10.0.0.0/8\", prefixes \"FILE\" or country \"SE\", or a \
                     list of them",
                    other.kind()
                ),
            ),
        }
    }
    if !codes.is_empty() {
        list.countries = read_countries(fields, key, &codes);
    }
    Some(list)
}

/// `prefixes "FILE"`: one a line; `#` begins a comment.
fn read_file(fields: &mut Fields<'_>, made: &Made, prefixes: &mut Vec<Prefix>) {
    let path = fields.reading().path(&made.place, made.name.as_deref().unwrap_or_default());
    let reading = fields.reading();
    let too_large = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LIST_FILE_BYTES_MAX);
    if too_large {
        let message = format!("{}: it is larger than {} MiB", path.display(), LIST_FILE_BYTES_MAX >> 20);
        return reading.problem(&made.place, message);
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            return reading.problem(&made.place, format!("{} cannot be read: {error}", path.display()));
        }
    };
    let mut wrong = 0;
    for (number, line) in text.lines().enumerate() {
        let word = line.split('#').next().unwrap_or_default().trim();
        match word.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(_) if word.is_empty() => {}
            Err(error) if wrong < 10 => {
                wrong += 1;
                reading.problem(&made.place, format!("{}:{}: {error}", path.display(), number + 1));
            }
            Err(_) => {}
        }
    }
}

/// The networks of countries, from the database that `geoip` names.
fn read_countries(fields: &mut Fields<'_>, key: &'static str, codes: &BTreeSet<String>) -> Vec<Prefix> {
    let Some((path, place)) = fields.reading().run.geoip.as_ref() else {
        fields.problem(key, "a country needs a database: write geoip \"GeoLite2-Country.mmdb\" before");
        return Vec::new();
    };
    let path = fields.reading().path(place, path);
    match networks_of(&path, codes) {
        Ok((networks, missing)) => {
            for code in missing {
                fields.problem(key, format!("{} has no network of country {code}", path.display()));
            }
            networks
        }
        Err(error) => {
            fields.reading().problem(place, format!("{}: {error}", path.display()));
            Vec::new()
        }
    }
}

/// The networks of one country.
pub(crate) fn countries(path: &Path, code: &str) -> Result<Vec<Prefix>, String> {
    let (networks, missing) = networks_of(path, &BTreeSet::from([code.to_owned()]))?;
    if missing.is_empty() { Ok(networks) } else { Err(format!("it has no network of country {code}")) }
}

fn networks_of(path: &Path, codes: &BTreeSet<String>) -> Result<(Vec<Prefix>, BTreeSet<String>), String> {
    let too_large = std::fs::metadata(path).is_ok_and(|meta| meta.len() > GEOIP_FILE_BYTES_MAX);
    if too_large {
        return Err(format!("it is larger than {} MiB", GEOIP_FILE_BYTES_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let reader = Reader::from_source(&bytes[..]).map_err(|error| error.to_string())?;
    search_tree::verify(&bytes, &reader.metadata)?;
    let (mut networks, mut missing) = (Vec::new(), codes.clone());
    let all = reader.networks(WithinOptions::default()).map_err(|error| error.to_string())?;
    for found in all {
        let found = found.map_err(|error| error.to_string())?;
        let record = found.decode::<maxminddb::geoip2::Country<'_>>().map_err(|error| error.to_string())?;
        let Some(code) = record.and_then(|record| record.country.iso_code) else { continue };
        if codes.contains(code) {
            missing.remove(code);
            let network = found.network().map_err(|error| error.to_string())?;
            networks.push(network.to_string().parse().map_err(|_| format!("a strange network: {network}"))?);
        }
    }
    Ok((networks, missing))
}

/// What a refusal means: `"drop"`, `"reject"`, `"tarpit"`, `{ tarpit = "10s" }`, or a pool.
pub(super) fn read_denied(fields: &mut Fields<'_>, key: &'static str) -> Option<Denied> {
    const WANTED: &str = "\"drop\", \"reject\", \"tarpit\", { tarpit = \"10s\" } or a pool";
    match fields.take(key)? {
        Value::Text(word) if word == "drop" => Some(Denied::Drop),
        Value::Text(word) if word == "reject" => Some(Denied::Reject),
        Value::Text(word) if word == "tarpit" => Some(Denied::Tarpit(TARPIT)),
        Value::Table(table) => {
            let mut own = fields.within(key, table);
            let time = own.duration("tarpit").unwrap_or(TARPIT);
            if time > TARPIT_MAX {
                own.problem("tarpit", "nobody is kept waiting for more than an hour");
            }
            own.finish();
            Some(Denied::Tarpit(time))
        }
        Value::Made(pool) if pool.builder == "pool" => Some(Denied::Pool(pool.name.clone()?.into())),
        // Whether there is such a pool shows in the end.
        Value::Text(pool) => Some(Denied::Pool(pool.as_str().into())),
        Value::Unknown => None,
        other => {
            fields.problem(key, format!("`{key}` is {}, not {WANTED}", other.kind()));
            None
        }
    }
}

/// `per_client = { connections = 10, connection_rate = "20/s", request_rate = "100/s" }`.
pub(super) fn read_throttle(fields: &mut Fields<'_>) -> Option<(ThrottleSpec, Denied)> {
    let table = match fields.take("per_client")? {
        Value::Table(table) => table,
        Value::Unknown => return None,
        other => {
            let message = format!(
                "`per_client` is {}, not {{ connections = 10, connection_rate = \"20/s\" }}",
                other.kind()
            );
            fields.problem("per_client", message);
            return None;
        }
    };
    let mut own = fields.within("per_client", table);
    let spec = ThrottleSpec {
        connections: own.integer("connections", 1..=1_000_000),
        connection_rate: read_rate(&mut own, "connection_rate"),
        request_rate: read_rate(&mut own, "request_rate"),
        size: own.integer("size", 1..=ThrottleSpec::SIZE_MAX as u32).map_or(65_536, |size| size as usize),
    };
    let exceeded = read_denied(&mut own, "exceeded").unwrap_or(Denied::Reject);
    if !["connections", "connection_rate", "request_rate"].iter().any(|key| own.has(key)) {
        own.problem_here("`per_client` limits nothing: give connections, connection_rate or request_rate");
    }
    own.finish();
    Some((spec, exceeded))
}

fn read_rate(fields: &mut Fields<'_>, key: &'static str) -> Option<Rate> {
    let text = fields.text(key)?;
    text.parse()
        .map_err(|error: evener_core::throttle::RateError| fields.problem(key, error.to_string()))
        .ok()
}
