//! Resolution of names: addresses of hosts, and SRV records. Nothing is cached beyond the lifetime of the records.
//!
//! Without name servers of its own, a pool uses those of /etc/resolv.conf. /etc/hosts comes first, and names that
//! DNS does not have are looked up by getaddrinfo(3), which knows the other sources of nsswitch.conf(5).

mod system;

use super::{Family, List, Listed, Scan};
use evener_core::spec::DiscoverSpec;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use system::System;
use tokio::task::JoinSet;

/// Time limit of a lookup.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a name server to respond before the query is repeated.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_ATTEMPTS: usize = 2;
/// Limits of the lifetime of records.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Lifetime of an address that does not come from DNS.
const LOCAL_TTL: Duration = Duration::from_secs(5);
/// Maximum number of lookups at the same time.
const LOOKUPS_MAX: usize = 256;
static LOOKUPS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(LOOKUPS_MAX);

/// Addresses of a host, or targets of a name, with their lifetime.
#[derive(Debug)]
struct Timed<T> {
    value: T,
    ttl: Duration,
}

/// Addresses of a host.
#[derive(Debug, Default)]
struct Addresses {
    ips: BTreeSet<IpAddr>,
    /// The family that could not be resolved.
    unknown: Option<Family>,
}

/// Failure of a lookup.
#[derive(Debug)]
enum LookupError {
    /// The name has no such records.
    None(String),
    /// The records are unknown.
    Unknown(String),
}

impl LookupError {
    fn reason(self) -> String {
        match self {
            Self::None(reason) | Self::Unknown(reason) => reason,
        }
    }
}

/// Resolves all addresses of a host.
pub(super) async fn addresses(name: &str, port: u16, resolvers: &[SocketAddr]) -> Scan {
    match resolve(name, resolvers).await {
        Ok(Timed { value: Addresses { ips, unknown }, ttl }) => {
            let server = |ip| Listed::of_host(SocketAddr::new(ip, port), name);
            let (servers, problem) = limit(ips.into_iter().map(server).collect());
            Scan::Listed(List { servers, problem, unknown, valid_for: ttl.clamp(TTL_MIN, TTL_MAX) })
        }
        Err(error) => Scan::Failed(format!("`{name}` does not resolve: {}", error.reason())),
    }
}

/// Resolves SRV records and the addresses of their targets (RFC 2782). Records of the lowest priority are the
/// first tier.
pub(super) async fn targets(name: &str, resolvers: &[SocketAddr]) -> Scan {
    match find_targets(name, resolvers).await {
        Ok(Timed { value: (servers, missing), ttl }) if !servers.is_empty() => {
            let (servers, excess) = limit(servers);
            let problem = missing.or(excess);
            Scan::Listed(List { servers, problem, unknown: None, valid_for: ttl.clamp(TTL_MIN, TTL_MAX) })
        }
        Ok(Timed { value: (_, missing), .. }) => {
            Scan::Failed(missing.unwrap_or_else(|| format!("`{name}` has no targets")))
        }
        Err(reason) => Scan::Failed(format!("`{name}` does not resolve: {reason}")),
    }
}

/// Removes servers beyond the maximum.
fn limit(mut servers: Vec<Listed>) -> (Vec<Listed>, Option<String>) {
    let most = DiscoverSpec::ADDRESSES_MAX;
    let excess = servers.len().saturating_sub(most);
    servers.truncate(most);
    (servers, (excess > 0).then(|| format!("it has {excess} addresses more than {most}: they are ignored")))
}

async fn resolve(name: &str, resolvers: &[SocketAddr]) -> Result<Timed<Addresses>, LookupError> {
    if !resolvers.is_empty() {
        return usable(query_addresses(&named(resolvers)?, &absolute(name)?).await);
    }
    let system = System::read().await;
    let host = parse(name)?;
    if let Some(ips) = system.hosts(&host) {
        return usable(Ok(Timed { value: Addresses { ips, unknown: None }, ttl: LOCAL_TTL }));
    }
    let found = match system.resolver() {
        Some(resolver) => query_addresses(&resolver, &host).await,
        None => Err(LookupError::None("this system has no name servers".into())),
    };
    match found {
        Err(LookupError::None(_)) => usable(ask_system(name).await),
        found => usable(found),
    }
}

/// Resolves a name by getaddrinfo(3).
async fn ask_system(name: &str) -> Result<Timed<Addresses>, LookupError> {
    match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => {
            let ips = found.map(|address| address.ip()).collect();
            Ok(Timed { value: Addresses { ips, unknown: None }, ttl: LOCAL_TTL })
        }
        Ok(Err(error)) => Err(LookupError::None(reason(&error))),
        Err(_) => Err(no_response()),
    }
}

/// Returns the last part of an error message, without the name of the failed function.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_owned()
}

fn no_response() -> LookupError {
    LookupError::Unknown(format!("no response within {TIMEOUT:?}"))
}

/// Removes the addresses of a family to which this machine has no route, if there are others (RFC 6724, section 5,
/// rule 1).
fn usable(found: Result<Timed<Addresses>, LookupError>) -> Result<Timed<Addresses>, LookupError> {
    let mut found = found?;
    let ips = &mut found.value.ips;
    let unusable = |family: Family| {
        let first = ips.iter().find(|ip| family.has(**ip));
        first.is_some_and(|ip| !has_route(*ip))
    };
    match (unusable(Family::V4), unusable(Family::V6)) {
        (true, false) if ips.iter().any(|ip| Family::V6.has(*ip)) => ips.retain(|ip| Family::V6.has(*ip)),
        (false, true) if ips.iter().any(|ip| Family::V4.has(*ip)) => ips.retain(|ip| Family::V4.has(*ip)),
        _ => {}
    }
    if ips.is_empty() { Err(LookupError::None("it has no address".into())) } else { Ok(found) }
}

/// Returns true if there is a route to an address. A connected UDP socket sends nothing.
fn has_route(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect((ip, 9)).is_ok())
}

async fn query_addresses(resolver: &TokioResolver, name: &Name) -> Result<Timed<Addresses>, LookupError> {
    let (v4, v6) =
        tokio::join!(query(resolver, name, RecordType::A), query(resolver, name, RecordType::AAAA));
    let unknown = match (&v4, &v6) {
        (Err(LookupError::Unknown(_)), Ok(_)) => Some(Family::V4),
        (Ok(_), Err(LookupError::Unknown(_))) => Some(Family::V6),
        _ => None,
    };
    let (v4, v6) = match (v4, v6) {
        (Err(LookupError::Unknown(reason)), Err(_)) | (Err(_), Err(LookupError::Unknown(reason))) => {
            return Err(LookupError::Unknown(reason));
        }
        (Err(none), Err(_)) => return Err(none),
        (v4, v6) => (v4.ok(), v6.ok()),
    };
    let ttl = v4.iter().chain(&v6).map(ttl).min().unwrap_or_default();
    let ip = |data: &RData| data.ip_addr();
    let ips = v4.iter().chain(&v6).flat_map(Lookup::answers).filter_map(|record| ip(&record.data)).collect();
    Ok(Timed { value: Addresses { ips, unknown }, ttl })
}

/// Servers of SRV records, and the problem with targets that have no address.
type Targets = (Vec<Listed>, Option<String>);

async fn find_targets(name: &str, resolvers: &[SocketAddr]) -> Result<Timed<Targets>, String> {
    let found = if resolvers.is_empty() {
        let system = System::read().await;
        let resolver = system.resolver().ok_or("this system has no name servers (/etc/resolv.conf)")?;
        query(&resolver, &parse(name).map_err(LookupError::reason)?, RecordType::SRV).await
    } else {
        let resolver = named(resolvers).map_err(LookupError::reason)?;
        query(&resolver, &absolute(name).map_err(LookupError::reason)?, RecordType::SRV).await
    };
    let found = found.map_err(LookupError::reason)?;
    let record = |data: &RData| match data {
        // The target `.` means that there is no such service.
        RData::SRV(record) if !record.target.is_root() => Some(record.clone()),
        _ => None,
    };
    let mut records: Vec<SRV> = found.answers().iter().filter_map(|one| record(&one.data)).collect();
    records.sort_by_key(|record| (record.priority, record.target.to_string(), record.port));
    records.truncate(DiscoverSpec::ADDRESSES_MAX);
    let hosts = resolve_all(&records, resolvers).await?;
    let known = hosts.values().flatten().map(|host| host.ttl);
    let ttl = known.chain([ttl(&found)]).min().unwrap_or_default();
    let missing = hosts.iter().find(|(_, found)| found.is_none());
    let problem = missing.map(|(target, _)| format!("its target `{target}` has no address"));
    Ok(Timed { value: (listed(&records, &hosts), problem), ttl })
}

/// Addresses of the targets of SRV records; `None` for a target without an address.
type Hosts = BTreeMap<String, Option<Timed<BTreeSet<IpAddr>>>>;

/// Resolves the targets. Fails if the addresses of a target are unknown, so that its earlier addresses stay.
async fn resolve_all(records: &[SRV], resolvers: &[SocketAddr]) -> Result<Hosts, String> {
    let names: BTreeSet<String> = records.iter().map(|record| host_of(&record.target)).collect();
    let mut lookups = JoinSet::new();
    for name in names {
        let resolvers = resolvers.to_vec();
        lookups.spawn(async move { (resolve(&name, &resolvers).await, name) });
    }
    let mut hosts = Hosts::new();
    while let Some(done) = lookups.join_next().await {
        let Ok((found, name)) = done else { continue };
        let found = match found {
            Ok(Timed { value: Addresses { ips, unknown: None }, ttl }) => Some(Timed { value: ips, ttl }),
            Ok(_) => return Err(format!("some addresses of its target `{name}` do not resolve")),
            Err(LookupError::None(_)) => None,
            Err(LookupError::Unknown(reason)) => return Err(format!("its target `{name}`: {reason}")),
        };
        hosts.insert(name, found);
    }
    Ok(hosts)
}

/// Returns the servers of SRV records.
fn listed(records: &[SRV], hosts: &Hosts) -> Vec<Listed> {
    let priorities: BTreeSet<u16> = records.iter().map(|record| record.priority).collect();
    let tier = |priority: u16| {
        let before = priorities.iter().take_while(|other| **other < priority).count();
        u8::try_from(before + 1).unwrap_or(u8::MAX)
    };
    let mut taken = BTreeSet::new();
    let mut servers = Vec::new();
    for record in records {
        let host = host_of(&record.target);
        let ips = hosts.get(&host).and_then(Option::as_ref).map(|found| &found.value);
        for ip in ips.into_iter().flatten() {
            let address = SocketAddr::new(*ip, record.port);
            if record.port > 0 && taken.insert(address) {
                servers.push(Listed {
                    // A record of weight 0 is picked rarely, but it is picked.
                    weight: Some(u32::from(record.weight).max(1)),
                    tier: Some(tier(record.priority)),
                    ..Listed::of_host(address, &host)
                });
            }
        }
    }
    servers
}

fn host_of(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// Sends a query.
async fn query(resolver: &TokioResolver, name: &Name, kind: RecordType) -> Result<Lookup, LookupError> {
    // The semaphore is never closed.
    let _permit = LOOKUPS.acquire().await;
    match tokio::time::timeout(TIMEOUT, resolver.lookup(name.clone(), kind)).await {
        Ok(Ok(found)) if found.answers().iter().any(|record| record.record_type() == kind) => Ok(found),
        Ok(Ok(_)) => Err(LookupError::None("no such records".into())),
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(no_response()),
    }
}

fn failure(error: &NetError) -> LookupError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupError::None("no such name".into()),
            ResponseCode::NoError => LookupError::None("it has no such records".into()),
            code => LookupError::Unknown(code.to_string()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => LookupError::Unknown(code.to_string()),
        NetError::Timeout => LookupError::Unknown("no response".into()),
        other => LookupError::Unknown(other.to_string()),
    }
}

/// Returns the lifetime of all records of a response, including aliases.
fn ttl(found: &Lookup) -> Duration {
    let least = found.answers().iter().map(|record| record.ttl).min();
    Duration::from_secs(least.unwrap_or_default().into())
}

fn parse(name: &str) -> Result<Name, LookupError> {
    Name::from_ascii(name).map_err(|error| LookupError::None(error.to_string()))
}

/// Parses a name to which no search domain is appended.
fn absolute(name: &str) -> Result<Name, LookupError> {
    let mut name = parse(name)?;
    name.set_fqdn(true);
    Ok(name)
}

/// Creates a resolver that queries these name servers.
fn named(resolvers: &[SocketAddr]) -> Result<TokioResolver, LookupError> {
    let server = |address: &SocketAddr| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = address.port();
            connection
        });
        NameServerConfig::new(address.ip(), true, connections.into())
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), resolvers.iter().map(server).collect());
    build(config, ResolverOpts::default()).ok_or_else(|| LookupError::Unknown("no resolver".into()))
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Option<TokioResolver> {
    // The servers of the pools are the only cache.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // The resolver would bind any port, also ports on which a service is about to listen.
    options.os_port_selection = true;
    options.timeout = options.timeout.min(QUERY_TIMEOUT);
    options.attempts = options.attempts.min(QUERY_ATTEMPTS);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::Target;

    fn record(priority: u16, weight: u16, port: u16, target: &str) -> SRV {
        SRV::new(priority, weight, port, Name::from_ascii(target).unwrap())
    }

    #[test]
    fn priorities_of_srv_records_are_tiers_and_weights_are_at_least_1() {
        let records =
            [record(5, 0, 80, "a."), record(5, 7, 80, "b."), record(9, 3, 81, "a."), record(9, 1, 0, "b.")];
        let host =
            |ip: &str| Some(Timed { value: BTreeSet::from([ip.parse().unwrap()]), ttl: Duration::ZERO });
        let hosts =
            Hosts::from([("a".into(), host("10.0.0.1")), ("b".into(), host("10.0.0.2")), ("c".into(), None)]);
        let described: Vec<String> = listed(&records, &hosts)
            .iter()
            .map(|server| {
                let host = server.host.as_ref().unwrap();
                format!("{} {host} {} {}", server.target, server.weight.unwrap(), server.tier.unwrap())
            })
            .collect();
        assert_eq!(described, ["10.0.0.1:80 a:80 1 1", "10.0.0.2:80 b:80 7 1", "10.0.0.1:81 a:81 3 2"]);
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let servers = |count: u32| -> Vec<Listed> {
            (0..count).map(|n| Listed::at(Target::Ip((Ipv4Addr::from(n), 80).into()))).collect()
        };
        assert_eq!(limit(servers(1024)).1, None);
        let (limited, problem) = limit(servers(1026));
        assert_eq!(limited.len(), 1024);
        assert_eq!(problem.as_deref(), Some("it has 2 addresses more than 1024: they are ignored"));
    }

    #[test]
    fn there_is_a_route_to_this_machine() {
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}
