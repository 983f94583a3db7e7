//! pen's access lists, numbered from 0 to 9. The first entry that matches decides; the default is the inverse
//! of the last entry.

use super::command::{Words, parse_list_number};
use crate::config::countries;
use evener_core::acl::{Access, Acl, Prefix};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Number of lists.
pub(super) const LISTS: usize = 10;
/// Maximum number of entries of a list.
const ENTRIES_MAX: usize = 100_000;
/// Maximum number of prefixes for a mask with holes.
const MASK_PREFIXES_MAX: u32 = 4096;

/// All lists, with the networks of the countries in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccessLists {
    lists: [List; LISTS],
    /// Database of countries (MaxMind's format).
    geoip: Option<PathBuf>,
    countries: Countries,
}

impl Default for AccessLists {
    fn default() -> Self {
        Self { lists: Default::default(), geoip: default_geoip_file(), countries: Countries::default() }
    }
}

/// Returns the database of countries that a Debian package installs.
fn default_geoip_file() -> Option<PathBuf> {
    let paths = ["/var/lib/GeoIP/GeoLite2-Country.mmdb", "/usr/share/GeoIP/GeoLite2-Country.mmdb"];
    paths.iter().map(PathBuf::from).find(|path| path.exists())
}

impl AccessLists {
    /// Executes `acl N permit|deny ...`.
    pub(super) fn execute(&mut self, words: &Words<'_>) -> Result<(), String> {
        let [number, access, clients @ ..] = words.arguments() else {
            return Err("write acl N permit|deny ADDRESS [MASK], ADDRESS6[/LENGTH] or country NN".into());
        };
        let access = match *access {
            "permit" => Access::Permit,
            "deny" => Access::Deny,
            other => return Err(format!("acl: `{other}` is not permit or deny")),
        };
        let number = parse_list_number(number)?;
        let clients = EntryClients::parse(clients).map_err(|error| format!("acl: {error}"))?;
        if let EntryClients::Country(code) = &clients {
            let known = self.countries.look_up(code, self.geoip.as_deref());
            known.map_err(|error| format!("acl: {error}"))?;
        }
        self.lists[number].add(Entry { access, clients })
    }

    /// Removes all entries of a list.
    pub(super) fn clear(&mut self, number: usize) {
        self.lists[number] = List::default();
    }

    pub(super) fn set_geoip_file(&mut self, file: Option<PathBuf>) {
        self.geoip = file;
    }

    pub(super) fn geoip_file(&self) -> Option<&Path> {
        self.geoip.as_deref()
    }

    pub(super) fn geoip_file_mut(&mut self) -> &mut Option<PathBuf> {
        &mut self.geoip
    }

    /// Returns the database of countries, if a list uses it.
    pub(super) fn used_geoip_file(&self) -> Option<&Path> {
        self.geoip_file().filter(|_| self.lists.iter().any(List::has_countries))
    }

    /// Looks up all countries again. Countries that are not found stay as they are.
    pub(super) fn renew_countries(&mut self) -> Result<(), String> {
        self.countries.renew(self.geoip.as_deref())
    }

    /// Returns the lists for planes, by number.
    pub(super) fn compile(&self) -> Vec<Option<Arc<Acl>>> {
        self.lists.iter().map(|list| list.compile(&self.countries)).collect()
    }

    /// Returns the commands that restore the lists.
    pub(super) fn command_lines(&self) -> Vec<String> {
        let of_list = |(number, list): (usize, &List)| list.command_lines(number);
        self.lists.iter().enumerate().flat_map(of_list).collect()
    }

    /// Returns the source of a list with countries, instead of their many networks.
    pub(super) fn source_with_countries(&self, acl: &Arc<Acl>) -> Option<String> {
        let is_source =
            |list: &&List| list.compile(&self.countries).is_some_and(|compiled_acl| compiled_acl == *acl);
        let list = self.lists.iter().filter(|list| list.has_countries()).find(is_source)?;
        Some(list.source(&self.countries))
    }
}

/// Clients that an entry matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EntryClients {
    /// An IPv4 address with its mask, which may have holes.
    V4 { address: Ipv4Addr, mask: Ipv4Addr },
    /// An IPv6 prefix, as `address/length`.
    V6(String),
    /// Two letters (ISO 3166-1).
    Country(String),
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    access: Access,
    clients: EntryClients,
}

/// A list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    entries: Vec<Entry>,
    known: BTreeSet<(bool, EntryClients)>,
    /// Access of the entry that was added last, even if an equal entry was in the list already.
    last: Option<Access>,
}

impl List {
    /// Adds an entry. If an equal entry exists, it stays in its position, but the new entry determines the
    /// default.
    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let (access, key) = (entry.access, (entry.access == Access::Permit, entry.clients.clone()));
        if !self.known.contains(&key) {
            if self.entries.len() >= ENTRIES_MAX {
                return Err(format!("an access list must have at most {ENTRIES_MAX} entries"));
            }
            self.known.insert(key);
            self.entries.push(entry);
        }
        self.last = Some(access);
        Ok(())
    }

    /// Returns the entries for `write`: the deciding entries, and another entry if the default needs it.
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let last = self.entries.last().map(|entry| entry.access);
        let again = self.last.filter(|access| Some(*access) != last);
        let again = again.and_then(|access| self.entries.iter().find(|entry| entry.access == access));
        self.entries.iter().chain(again)
    }

    /// Returns the default, for clients that no entry matches.
    fn otherwise(&self) -> Access {
        match self.last {
            Some(Access::Permit) => Access::Deny,
            Some(Access::Deny) | None => Access::Permit,
        }
    }

    /// Returns the commands that restore the list.
    fn command_lines(&self, number: usize) -> Vec<String> {
        let mut lines = vec![format!("no acl {number}")];
        lines.extend(self.entries().map(|entry| format!("acl {number} {entry}")));
        if lines.len() > 1 {
            let otherwise = access_word(self.otherwise());
            lines.push(format!("# acl {number} {otherwise} all others, the inverse of its last entry"));
        }
        lines
    }

    fn has_countries(&self) -> bool {
        self.entries().any(|entry| matches!(entry.clients, EntryClients::Country(_)))
    }

    /// Returns the list as a Lua table, with the names of its countries.
    fn source(&self, countries: &Countries) -> String {
        let item = |entry: &Entry| {
            let clients = match &entry.clients {
                EntryClients::Country(code) => format!("country {code:?}"),
                clients => {
                    let prefixes = clients.prefixes(countries);
                    let prefixes: Vec<String> =
                        prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
                    format!("{{ {} }}", prefixes.join(", "))
                }
            };
            format!("{{ {} = {clients} }}", access_word(entry.access))
        };
        let items: Vec<String> = self.entries().map(item).collect();
        format!("{{ {}, otherwise = \"{}\" }}", items.join(", "), access_word(self.otherwise()))
    }

    /// Returns the list for planes; `None` if it is empty and every client is permitted.
    fn compile(&self, countries: &Countries) -> Option<Arc<Acl>> {
        self.last?;
        let group = |entry: &Entry| (entry.access, entry.clients.prefixes(countries));
        let groups: Vec<_> = self.entries.iter().map(group).collect();
        Some(Arc::new(Acl::in_order(&groups, self.otherwise())))
    }
}

/// The networks of countries. Each is looked up once, because the database may be unavailable later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Countries(BTreeMap<String, Arc<[Prefix]>>);

impl Countries {
    /// Looks up the networks of a country, unless they are known.
    fn look_up(&mut self, code: &str, geoip: Option<&Path>) -> Result<(), String> {
        if !self.0.contains_key(code) {
            let file = geoip.ok_or("no database of countries: give it with `geoip FILE` before the lists")?;
            let found = countries(file, code).map_err(|error| format!("{}: {error}", file.display()))?;
            self.0.insert(code.to_owned(), found.into());
        }
        Ok(())
    }

    /// Looks up all countries again. Countries that are not found stay as they are, and the first failure is
    /// returned.
    fn renew(&mut self, geoip: Option<&Path>) -> Result<(), String> {
        let mut outcome = Ok(());
        for (code, networks) in &mut self.0 {
            let found = geoip.ok_or_else(|| "no database of countries".to_owned()).and_then(|file| {
                countries(file, code).map_err(|error| format!("{}: {error}", file.display()))
            });
            match found {
                Ok(found) => *networks = found.into(),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }
}

impl EntryClients {
    /// Parses `sourceip4 [mask]`, `sourceip6[/length]` or `country NN`.
    fn parse(words: &[&str]) -> Result<Self, String> {
        match words {
            ["country", code] if code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                Ok(Self::Country(code.to_ascii_uppercase()))
            }
            ["country", ..] => Err("country needs two letters, such as SE".into()),
            [address] if address.contains(':') => {
                let prefix: Prefix =
                    address.parse().map_err(|_| format!("`{address}` is not an IPv6 prefix"))?;
                Ok(Self::V6(prefix.to_string()))
            }
            [address] => Self::parse_v4(address, "255.255.255.255"),
            [address, mask] => Self::parse_v4(address, mask),
            _ => Err("write acl N permit|deny ADDRESS [MASK], ADDRESS6[/LENGTH] or country NN".into()),
        }
    }

    fn parse_v4(address: &str, mask: &str) -> Result<Self, String> {
        let parse =
            |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("`{text}` is not an IPv4 address"));
        // 10.0.0.0/8 is the usual notation, though pen does not accept it.
        if let Some((address, length)) = address.split_once('/') {
            let length: u32 = length
                .parse()
                .ok()
                .filter(|length| *length <= 32)
                .ok_or("the length of a prefix must be between 0 and 32")?;
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            return Ok(Self::V4 { address: parse(address)?, mask: mask.into() });
        }
        let (address, mask) = (parse(address)?, parse(mask)?);
        if prefix_count(mask) > MASK_PREFIXES_MAX {
            return Err(format!(
                "the mask {mask} has too many holes: more than {MASK_PREFIXES_MAX} networks"
            ));
        }
        Ok(Self::V4 { address, mask })
    }

    fn prefixes(&self, countries: &Countries) -> Vec<Prefix> {
        match self {
            Self::V4 { address, mask } => prefixes_of_mask(*address, *mask),
            Self::V6(prefix) => prefix.parse().into_iter().collect(),
            Self::Country(code) => countries.0.get(code).map(|known| known.to_vec()).unwrap_or_default(),
        }
    }
}

/// Returns the bits of a mask that are 0 above its lowest 1.
fn holes(mask: Ipv4Addr) -> Vec<u32> {
    let mask = mask.to_bits();
    let low = mask.trailing_zeros();
    (low..32).map(|bit| 1 << bit).filter(|bit| mask & bit == 0).collect()
}

fn prefix_count(mask: Ipv4Addr) -> u32 {
    1_u32.checked_shl(holes(mask).len() as u32).unwrap_or(u32::MAX)
}

fn prefixes_of_mask(address: Ipv4Addr, mask: Ipv4Addr) -> Vec<Prefix> {
    let holes = holes(mask);
    let length = 32 - mask.to_bits().trailing_zeros();
    let base = address.to_bits() & mask.to_bits();
    let fill = |number: u32| {
        let set = holes.iter().enumerate().filter(|(at, _)| number >> at & 1 == 1);
        base | set.map(|(_, bit)| bit).sum::<u32>()
    };
    let all = (0..prefix_count(mask)).map(fill).map(Ipv4Addr::from_bits);
    all.filter_map(|address| format!("{address}/{length}").parse().ok()).collect()
}

fn access_word(access: Access) -> &'static str {
    if access == Access::Permit { "permit" } else { "deny" }
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(access_word(self.access))?;
        match &self.clients {
            EntryClients::V4 { address, mask } => write!(out, " {address} {mask}"),
            EntryClients::V6(prefix) => write!(out, " {prefix}"),
            EntryClients::Country(code) => write!(out, " country {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> List {
        let mut list = List::default();
        for line in text.split("; ") {
            let words: Vec<&str> = line.split(' ').collect();
            let access = if words[0] == "permit" { Access::Permit } else { Access::Deny };
            let clients = EntryClients::parse(&words[1..]).expect("an entry");
            list.add(Entry { access, clients }).expect("there is room");
        }
        list
    }

    fn check(text: &str, client: &str, expected: bool) {
        let acl = list(text).compile(&Countries::default()).expect("it is not empty");
        let permits = acl.access(client.parse().expect("an address")) == Access::Permit;
        assert_eq!(permits, expected, "{text}: {client}");
    }

    #[test]
    fn the_first_entry_that_matches_decides() {
        check("deny 10.0.0.0 255.0.0.0; permit 10.1.2.3", "10.1.2.3", false);
        check("permit 10.1.2.3; deny 10.0.0.0 255.0.0.0", "10.1.2.3", true);
        check("permit 10.1.2.3; deny 10.0.0.0 255.0.0.0; permit 10.0.0.0/8", "10.1.2.4", false);
    }

    #[test]
    fn clients_without_a_matching_entry_get_the_inverse_of_the_last_one() {
        check("permit 10.1.2.3", "10.1.2.4", false);
        check("deny 10.1.2.3", "10.1.2.4", true);
        check("permit 10.1.2.3; deny ::1", "10.1.2.4", true);
        check("permit 10.1.2.3; deny 10.1.2.4; permit 10.1.2.3", "10.1.2.5", false);
        assert_eq!(List::default().compile(&Countries::default()), None);
    }

    #[test]
    fn masks_may_have_holes() {
        check("permit 10.0.7.0 255.0.255.0", "10.99.7.1", true);
        check("permit 10.0.7.0 255.0.255.0", "10.99.8.1", false);
        check("permit 0.0.0.0 0.0.0.0", "192.0.2.1", true);
        assert!(EntryClients::parse(&["10.0.0.1", "0.0.0.255"]).unwrap_err().contains("too many holes"));
    }

    #[test]
    fn invalid_entries_are_reported() {
        for (words, part) in [
            (&["ten"][..], "not an IPv4 address"),
            (&["10.0.0.1", "x"], "not an IPv4 address"),
            (&["::g"], "not an IPv6 prefix"),
            (&["country", "SWE"], "two letters"),
            (&[], "write acl N"),
        ] {
            assert!(EntryClients::parse(words).unwrap_err().contains(part), "{words:?}");
        }
    }

    #[test]
    fn a_written_list_is_read_back_as_an_equal_one() {
        let text = "permit 10.1.2.3; deny 10.1.2.4; permit 10.1.2.3";
        let first = list(text);
        let written: Vec<String> = first.entries().map(ToString::to_string).collect();
        assert_eq!(
            written,
            [
                "permit 10.1.2.3 255.255.255.255",
                "deny 10.1.2.4 255.255.255.255",
                "permit 10.1.2.3 255.255.255.255"
            ]
        );
        assert_eq!(list(&written.join("; ")), first);
    }
}
