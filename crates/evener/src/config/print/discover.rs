//! Sources of servers: the key `discover` of a pool, and the sources among its servers.

use super::source::{Node, Say, Table, one_or_list, quoted};
use evener_core::Endpoint;
use evener_core::limits::Limits;
use evener_core::spec::{DiscoverSpec, FoundSettings};

/// Writes `discover = { mname = ... }`.
pub(super) fn write_discover(table: &mut Table, discover: &[DiscoverSpec]) {
    let directory = |source: &DiscoverSpec| match source {
        DiscoverSpec::Mname { directory } => Some(directory.clone()),
        DiscoverSpec::File { .. } | DiscoverSpec::Dns { .. } | DiscoverSpec::Srv { .. } => None,
    };
    let directories: Vec<_> = discover.iter().filter_map(directory).collect();
    if !directories.is_empty() {
        let mut nested = Table::new();
        nested.key("mname", one_or_list(directories));
        table.key("discover", nested);
    }
}

/// Writes the sources that are items of a pool or a service.
pub(super) fn write_sources(table: &mut Table, discover: &[DiscoverSpec]) {
    for source in discover {
        let (kind, name, keys) = match source {
            DiscoverSpec::Mname { .. } => continue,
            DiscoverSpec::File { path, port, settings } => {
                let mut keys = Table::new();
                keys.some("port", port.filter(|port| *port > 0).as_ref());
                write_settings(&mut keys, *settings);
                ("file", path.say(), keys)
            }
            DiscoverSpec::Dns { name, port, settings } => {
                let mut keys = Table::new();
                write_settings(&mut keys, *settings);
                (
                    "dns",
                    Node::from(quoted(
                        Endpoint::Host { name: name.clone(), port: *port }.server_text().as_bytes(),
                    )),
                    keys,
                )
            }
            DiscoverSpec::Srv { name, limits } => {
                let mut keys = Table::new();
                write_limits(&mut keys, *limits);
                ("srv", name.say(), keys)
            }
        };
        table.item(name.called(&format!("discover.{kind}"), keys));
    }
}

fn write_settings(keys: &mut Table, settings: FoundSettings) {
    let FoundSettings { weight, tier, limits } = settings;
    keys.unless("weight", &weight, &FoundSettings::DEFAULT.weight);
    keys.unless("tier", &tier, &FoundSettings::DEFAULT.tier);
    write_limits(keys, limits);
}

/// Writes `max` and `hard`.
pub(super) fn write_limits(keys: &mut Table, limits: Limits) {
    let Limits { soft, hard } = limits;
    keys.some("max", soft.as_ref());
    keys.some("hard", hard.as_ref());
}
