//! Sources of servers: the key `discover` of a pool, `discover.file`, `discover.dns` and `discover.srv` among its
//! servers, and the keys `resolve` and `resolver`, which also apply to servers with host names.

use super::Location;
use super::address::{Part, problem};
use super::build::Ports;
use super::fields::{Fields, Reading};
use super::raw::{Made, Value, shown};
use crate::scope;
use evener_core::Endpoint;
use evener_core::limits::Limits;
use evener_core::spec::{DiscoverSpec, FoundSettings, Resolve, WEIGHT_MAX};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Maximum number of directories of a pool.
const DIRECTORIES_MAX: usize = 16;
/// Maximum length of the path of a directory. The path of a socket in it, with its name, has at most 107 bytes
/// (unix(7)).
const DIRECTORY_BYTES_MAX: usize = 100;
/// Maximum number of name servers, as in resolv.conf(5).
const RESOLVERS_MAX: usize = 3;
const NAME_SERVER_PORT: u16 = 53;

/// Returns true if an item of a pool is a source of servers.
pub(super) fn is_source(item: &Value) -> bool {
    matches!(item, Value::Made(made) if made.member_of("discover").is_some())
}

/// Reads the key `discover`, and the sources among the servers, each with its location.
pub(super) fn read_discover<'a>(
    reading: &'a Reading<'a>,
    fields: &mut Fields<'a>,
    ports: Ports,
) -> Vec<(DiscoverSpec, Location)> {
    let mut sources = read_directories(fields);
    for item in fields.list() {
        let Value::Made(made) = item else { continue };
        let Some(source) =
            made.member_of("discover").and_then(|kind| read_source(reading, kind, made, ports))
        else {
            continue;
        };
        let location = made.location();
        if sources.iter().any(|(other, _)| *other == source) {
            reading.problem(location, format!("{}: it is listed twice", subject_of(made)));
        } else if sources.len() == DiscoverSpec::SOURCES_MAX {
            let most = DiscoverSpec::SOURCES_MAX;
            reading.problem(location, format!("a pool must have at most {most} sources of servers"));
            break;
        } else {
            sources.push((source, location.clone()));
        }
    }
    sources
}

/// Returns the name of a source in messages.
fn subject_of(made: &Made) -> String {
    format!("{} {}", made.builder(), shown(made.name()))
}

fn read_source<'a>(
    reading: &'a Reading<'a>,
    kind: &str,
    made: &'a Made,
    ports: Ports,
) -> Option<DiscoverSpec> {
    let mut fields = Fields::new(reading, made, subject_of(made));
    let source = match kind {
        "file" => read_file(reading, made, &mut fields, ports),
        "dns" => read_name(made, &mut fields, ports),
        _ => read_srv(made, &mut fields),
    };
    if let Some(item) = made.table().list().first() {
        fields.problem_with_item(0, None, format!("a source has only keys, got {}", item.shown()));
    }
    fields.finish();
    source
}

fn read_file<'a>(
    reading: &'a Reading<'a>,
    made: &'a Made,
    fields: &mut Fields<'a>,
    ports: Ports,
) -> Option<DiscoverSpec> {
    let port = fields.integer("port", 1..=u32::from(u16::MAX)).map(|port| port as u16);
    // The port 0 is the port of the client.
    let port = port.or_else(|| (ports == Ports::Optional).then_some(0));
    let settings = read_settings(fields);
    if made.name().is_empty() {
        fields.problem_here("the path is empty: write discover.file \"servers.txt\"");
        return None;
    }
    Some(DiscoverSpec::File { path: reading.path(made.location(), made.name()), port, settings })
}

fn read_name(made: &Made, fields: &mut Fields<'_>, ports: Ports) -> Option<DiscoverSpec> {
    let settings = read_settings(fields);
    let without = || Endpoint::parse_without_port(made.name()).filter(|_| ports == Ports::Optional);
    match scope::parse(made.name()).or_else(|error| without().ok_or(error)) {
        Ok(Endpoint::Host { name, port }) => Some(DiscoverSpec::Dns { name, port, settings }),
        Ok(_) => {
            let address = shown(made.name());
            fields
                .problem_here(format!("{address} is an address and not a name: list {address} as a server"));
            None
        }
        Err(error) => {
            fields.problem_here(problem(made.name(), &error, Part::Server, 80));
            None
        }
    }
}

fn read_srv(made: &Made, fields: &mut Fields<'_>) -> Option<DiscoverSpec> {
    let limits = read_limits(fields);
    // The records have the port.
    match format!("{}:1", made.name()).parse() {
        Ok(Endpoint::Host { name, .. }) => Some(DiscoverSpec::Srv { name, limits }),
        _ => {
            let name = shown(made.name());
            fields.problem_here(format!(
                "{name} is not a name of SRV records, such as \"_http._tcp.example.org\""
            ));
            None
        }
    }
}

fn read_settings(fields: &mut Fields<'_>) -> FoundSettings {
    let FoundSettings { weight, tier, .. } = FoundSettings::DEFAULT;
    FoundSettings {
        weight: fields.integer("weight", 0..=WEIGHT_MAX).unwrap_or(weight),
        tier: fields.integer("tier", 1..=255).map_or(tier, |tier| tier as u8),
        limits: read_limits(fields),
    }
}

/// Reads `max` and `hard` of a server or of the servers of a source.
pub(super) fn read_limits(fields: &mut Fields<'_>) -> Limits {
    let limits =
        Limits { soft: fields.integer("max", 1..=u32::MAX), hard: fields.integer("hard", 1..=u32::MAX) };
    if let (Some(soft), Some(hard)) = (limits.soft, limits.hard)
        && hard < soft
    {
        fields.problem("hard", format!("hard ({hard}) must be at least max ({soft})"));
    }
    limits
}

/// Reads `resolve = "optional"`.
pub(super) fn read_resolve(fields: &mut Fields<'_>) -> Resolve {
    let named = |word: &str| Resolve::ALL.into_iter().find(|one| one.name() == word);
    fields.word("resolve", &Resolve::ALL.map(Resolve::name), named).unwrap_or_default()
}

/// Reads `resolver = "10.0.0.53"`, or a list of name servers.
pub(super) fn read_resolvers(fields: &mut Fields<'_>) -> Vec<SocketAddr> {
    const WANTED: &str = "the address of a name server, such as \"10.0.0.53\" or \"127.0.0.1:5353\"";
    let parse = |text: &str| match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, NAME_SERVER_PORT)),
        Err(_) => text
            .parse()
            .ok()
            .filter(|address: &SocketAddr| address.port() > 0)
            .ok_or_else(|| format!("resolver must be {WANTED}, got {}", shown(text))),
    };
    let resolvers = fields.texts("resolver", WANTED, parse).unwrap_or_default();
    if resolvers.len() > RESOLVERS_MAX {
        fields.problem("resolver", format!("a pool must have at most {RESOLVERS_MAX} resolvers"));
    }
    resolvers
}

/// Reads `discover = { mname = "/var/run/binder/sockets" }`, or a list of directories.
fn read_directories(fields: &mut Fields<'_>) -> Vec<(DiscoverSpec, Location)> {
    const WANTED: &str = "{ mname = \"/var/run/binder/sockets\" }";
    let table = match fields.take("discover") {
        None | Some(Value::Bool(false) | Value::Unknown) => return Vec::new(),
        Some(Value::Table(table)) => table,
        Some(_) => {
            fields.must("discover", format!("be {WANTED}"));
            return Vec::new();
        }
    };
    let mut nested = fields.within("discover", table);
    let wanted = "a directory of sockets, or a list of directories";
    let texts = nested.texts("mname", wanted, |text| match text.is_empty() {
        true => Err("discover.mname must not be empty: write the path of a directory".into()),
        false => Ok(text.to_owned()),
    });
    let names_none = matches!(table.get("mname"), Some(Value::Table(list)) if list.list().is_empty());
    if names_none || table.only_list().is_some() {
        nested.problem_here(format!("discover has no source: write discover = {WANTED}"));
    }
    let texts = texts.unwrap_or_default();
    if texts.len() > DIRECTORIES_MAX {
        nested.problem("mname", format!("a pool must have at most {DIRECTORIES_MAX} directories"));
    }
    let mut directories: Vec<PathBuf> = Vec::new();
    for text in &texts {
        let directory = PathBuf::from(nested.path_of("mname", text));
        if directory.as_os_str().len() > DIRECTORY_BYTES_MAX {
            let message = format!(
                "`{text}` is too long: the paths of its sockets must have at most 107 bytes (unix(7))"
            );
            nested.problem(text, message);
        } else if directories.contains(&directory) {
            nested.problem(text, format!("the directory `{text}` is listed twice"));
        } else {
            directories.push(directory);
        }
    }
    nested.finish();
    let location = fields.location_of("discover");
    directories.into_iter().map(|directory| (DiscoverSpec::Mname { directory }, location.clone())).collect()
}
