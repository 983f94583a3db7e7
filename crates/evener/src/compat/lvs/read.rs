//! The meaning of the statements: virtual servers with their real servers and checks.

mod check;
mod program;
mod virtual_server;

use super::Imported;
use super::syntax::Statement;
use crate::config::{Problem, nearest};
use std::collections::BTreeMap;

/// A statement that is known and not taken over.
type Skipped = (&'static str, &'static str);

const VRRP: &str = "VRRP stays with keepalived";
/// Statements outside virtual servers that have no equivalent, by their first words.
const SKIPPED: &[Skipped] = &[
    ("global_defs", "set what is needed with the options of `evener run`"),
    ("vrrp_instance", VRRP),
    ("vrrp_sync_group", VRRP),
    ("vrrp_script", VRRP),
    ("vrrp_track_process", VRRP),
    ("vrrp_track_file", VRRP),
    ("track_file", VRRP),
    ("static_ipaddress", VRRP),
    ("static_routes", VRRP),
    ("static_rules", VRRP),
    ("static_track_group", VRRP),
    ("garp_group", VRRP),
    ("bfd_instance", VRRP),
    ("linkbeat_use_polling", VRRP),
    ("linkbeat_interfaces", VRRP),
    ("net_namespace", "start evener in the namespace: ip netns exec NAME evener run"),
    ("namespace_with_ipsets", VRRP),
    ("use_pid_dir", "evener writes no pid file"),
    ("SSL", "write ca, or the certificate, in the check"),
];

/// Reads the statements of a file.
pub(super) fn read(statements: &[Statement]) -> Result<Imported, Vec<Problem>> {
    let mut reader = Reader::default();
    for group in statements.iter().filter(|one| one.keyword() == "virtual_server_group") {
        reader.group(group);
    }
    let mut imported = Imported::default();
    for statement in statements {
        match statement.keyword() {
            "virtual_server" => imported.servers.extend(reader.virtual_server(statement)),
            "virtual_server_group" => {}
            keyword => match SKIPPED.iter().find(|(word, _)| *word == keyword) {
                Some((_, instead)) => reader.notes.push(note(statement, instead)),
                None => {
                    let known = SKIPPED.iter().map(|(word, _)| *word);
                    reader.unknown(statement, known.chain(["virtual_server", "virtual_server_group"]), "");
                }
            },
        }
    }
    if imported.servers.is_empty() && reader.problems.is_empty() {
        reader.problems.push(Problem::new("the file has no virtual_server: there is nothing to import"));
    }
    imported.notes = reader.notes;
    if reader.problems.is_empty() { Ok(imported) } else { Err(reader.problems) }
}

/// Returns every statement that is known.
#[cfg(test)]
pub(super) fn keywords() -> std::collections::BTreeSet<&'static str> {
    let outer = SKIPPED.iter().map(|(word, _)| *word);
    outer
        .chain(["virtual_server", "virtual_server_group"])
        .chain(virtual_server::keywords())
        .chain(check::keywords())
        .collect()
}

/// Returns every statement that is not taken over, outside of checks.
#[cfg(test)]
pub(super) fn skipped() -> impl Iterator<Item = &'static str> {
    SKIPPED.iter().map(|(word, _)| *word).chain(virtual_server::skipped())
}

/// Returns the line about a statement without an equivalent.
fn note(statement: &Statement, instead: &str) -> String {
    format!("{}: `{}` is not taken over: {instead}", statement.location(), statement.shown())
}

/// Addresses or marks of a group.
#[derive(Clone, Debug, Default)]
struct Group {
    addresses: Vec<String>,
    marks: Vec<u32>,
}

#[derive(Default)]
struct Reader {
    groups: BTreeMap<String, Group>,
    notes: Vec<String>,
    problems: Vec<Problem>,
}

impl Reader {
    /// Records a word that keepalived does not have at this location.
    fn unknown<'a>(&mut self, statement: &Statement, known: impl IntoIterator<Item = &'a str>, inside: &str) {
        let word = statement.keyword();
        let of = if inside.is_empty() { String::new() } else { format!(" in {inside}") };
        let belongs_elsewhere =
            ["virtual_server", "real_server", "virtual_server_group", "vrrp_instance", "global_defs"];
        let advice = if !inside.is_empty() && belongs_elsewhere.contains(&word) {
            ": a } is missing above this line".to_owned()
        } else {
            nearest(word, known.into_iter())
        };
        self.problems.push(statement.problem(format!("keepalived has no `{word}`{of}{advice}")));
    }

    /// Records a statement whose arguments cannot be read.
    fn wrong(&mut self, statement: &Statement, wanted: &str) {
        let message =
            format!("`{}` cannot be read: {} takes {wanted}", statement.shown(), statement.keyword());
        self.problems.push(statement.problem(message));
    }

    /// Returns the number that is the only argument.
    fn number<T: std::str::FromStr>(&mut self, statement: &Statement) -> Option<T> {
        let number = match statement.arguments() {
            [number] => number.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.wrong(statement, "one number");
        }
        number
    }

    /// Returns the time that is the only argument, in milliseconds. keepalived counts in seconds.
    fn milliseconds(&mut self, statement: &Statement) -> Option<u64> {
        let seconds = self.number::<f64>(statement)?;
        if !(0.0..=1e7).contains(&seconds) {
            self.wrong(statement, "a number of seconds");
            return None;
        }
        Some((seconds * 1000.0).round() as u64)
    }

    /// Reads `virtual_server_group NAME { ADDRESS[-LAST] PORT | fwmark NUMBER }`.
    fn group(&mut self, statement: &Statement) {
        let [name] = statement.arguments() else {
            return self.wrong(statement, "one name");
        };
        let mut group = Group::default();
        for line in statement.block() {
            match (line.keyword(), line.arguments()) {
                ("fwmark", [_]) => group.marks.extend(self.number::<u32>(line)),
                (address, ports) if ports.len() <= 1 => match expand(address, ports.first()) {
                    Some(addresses) => group.addresses.extend(addresses),
                    None => self.wrong(line, "an address or 192.0.2.1-9, and a port; or fwmark and a number"),
                },
                _ => self.wrong(line, "an address and a port"),
            }
        }
        if self.groups.insert(name.clone(), group).is_some() {
            self.problems.push(statement.problem(format!("the group {name} is defined twice")));
        }
    }
}

/// Returns the addresses of `192.0.2.1-9` or of one address, with the port.
fn expand(address: &str, port: Option<&String>) -> Option<Vec<String>> {
    let Some((first, last)) = address.split_once('-') else {
        return Some(vec![endpoint(address, port.map(String::as_str))?]);
    };
    let separator = if first.contains(':') { ':' } else { '.' };
    let (prefix, begin) = first.rsplit_once(separator)?;
    let radix = if separator == ':' { 16 } else { 10 };
    let (begin, end) = (u32::from_str_radix(begin, radix).ok()?, u32::from_str_radix(last, radix).ok()?);
    if begin > end || end - begin > 0xffff {
        return None;
    }
    let text = |last: u32| match separator {
        ':' => format!("{prefix}:{last:x}"),
        _ => format!("{prefix}.{last}"),
    };
    (begin..=end).map(|last| endpoint(&text(last), port.map(String::as_str))).collect()
}

/// Returns an address with a port as Evener writes it; without a port if it is 0 or absent.
fn endpoint(address: &str, port: Option<&str>) -> Option<String> {
    let address: std::net::IpAddr = address.parse().ok()?;
    match port.map_or(Some(0), |port| port.parse::<u16>().ok())? {
        0 => Some(address.to_string()),
        port => Some(std::net::SocketAddr::new(address, port).to_string()),
    }
}
