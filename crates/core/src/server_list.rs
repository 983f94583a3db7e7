//! The text of a file that lists servers. The file may change at any time and may be hostile; nothing here
//! panics, and the number of servers is bounded.
//!
//! Addresses are separated by white space. `weight=2` and `tier=2` belong to the address before them on the
//! line, and a comment begins with `#`. If the file has sections (`[Name]`), only the servers before the first
//! section and in the section `Real Servers` count, as in the files of sbulb; a line there that begins with `;`
//! is a comment, too.
//!
//! ```
//! use evener_core::server_list;
//!
//! let listed = server_list::parse("10.0.0.1:80 weight=3\n10.0.0.2 # new", Some(8080))?;
//! let addresses: Vec<String> = listed.iter().map(|server| server.address.to_string()).collect();
//! assert_eq!(addresses, ["10.0.0.1:80", "10.0.0.2:8080"]);
//! assert_eq!(listed[0].weight, Some(3));
//! # Ok::<(), server_list::ListError>(())
//! ```

use crate::address::Endpoint;
use crate::spec::WEIGHT_MAX;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Maximum size of a list.
pub const BYTES_MAX: usize = 1 << 20;
/// Maximum number of servers of a list.
pub const SERVERS_MAX: usize = 10_000;
/// Maximum number of characters of the list in a message.
const SHOWN_CHARS_MAX: usize = 60;
/// The section whose servers count.
const SECTION: &str = "real servers";

/// A server of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Address.
    pub address: SocketAddr,
    /// Share within the tier.
    pub weight: Option<u32>,
    /// Tier.
    pub tier: Option<u8>,
}

/// Reason why a text is not a list of servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The text is too long.
    #[error("it has more than {BYTES_MAX} bytes")]
    Bytes,
    /// The list has no servers.
    #[error("it lists no servers")]
    Empty,
    /// The list has too many servers.
    #[error("it lists more than {SERVERS_MAX} servers")]
    Servers,
    /// A line is wrong.
    #[error("line {line}: {fault}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// The fault.
        fault: LineFault,
    },
}

/// Fault of a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// A word is neither an address nor a setting.
    #[error("`{0}` is not an IP address")]
    Address(String),
    /// An address has no port, and there is no default.
    #[error("`{0}` has no port: write it as {0}:80, or give the source a port")]
    NoPort(String),
    /// A setting is before the first address of its line.
    #[error("`{0}` follows no address on its line")]
    NoServer(String),
    /// A setting has an unknown name or an invalid value.
    #[error("`{0}` is neither weight=0 to weight={WEIGHT_MAX} nor tier=1 to tier=255")]
    Setting(String),
    /// An address is listed twice.
    #[error("`{0}` is listed twice")]
    Twice(String),
}

/// Parses a list of servers. Addresses without a port get `port`.
///
/// # Errors
/// The list is too long or empty, or a line is wrong.
pub fn parse(text: &str, port: Option<u16>) -> Result<Vec<Listed>, ListError> {
    if text.len() > BYTES_MAX {
        return Err(ListError::Bytes);
    }
    let mut list = List { port, servers: Vec::new(), addresses: BTreeSet::new() };
    let mut counts = true;
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if let Some(section) = section(line) {
            counts = section.eq_ignore_ascii_case(SECTION);
        } else if counts && !line.starts_with(';') {
            list.read_line(line).map_err(|fault| ListError::Line { line: at + 1, fault })?;
        }
        if list.servers.len() > SERVERS_MAX {
            return Err(ListError::Servers);
        }
    }
    if list.servers.is_empty() { Err(ListError::Empty) } else { Ok(list.servers) }
}

/// Returns the name of the section that a line begins. An IP address in brackets, even an address that no server
/// can have, is not the name of a section.
fn section(line: &str) -> Option<&str> {
    let name = line.split('#').next()?.trim_end().strip_prefix('[')?.strip_suffix(']')?.trim();
    let (without_zone, _) = name.split_once('%').unwrap_or((name, ""));
    (without_zone.parse::<IpAddr>().is_err() && !name.contains(']')).then_some(name)
}

struct List {
    port: Option<u16>,
    servers: Vec<Listed>,
    addresses: BTreeSet<SocketAddr>,
}

impl List {
    fn read_line(&mut self, line: &str) -> Result<(), LineFault> {
        let before = self.servers.len();
        for word in line.split_whitespace() {
            if word.starts_with('#') {
                break;
            }
            let (word, is_last) = match word.split_once('#') {
                Some((word, _)) => (word, true),
                None => (word, false),
            };
            match word.split_once('=') {
                Some(setting) => {
                    let server = self.servers.get_mut(before..).and_then(<[_]>::last_mut);
                    let server = server.ok_or_else(|| LineFault::NoServer(shown(word)))?;
                    server.set(setting).ok_or_else(|| LineFault::Setting(shown(word)))?;
                }
                None => self.add(word)?,
            }
            if is_last || self.servers.len() > SERVERS_MAX {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, word: &str) -> Result<(), LineFault> {
        let address = address(word, self.port).ok_or_else(|| match address(word, Some(1)) {
            Some(_) => LineFault::NoPort(shown(word)),
            None => LineFault::Address(shown(word)),
        })?;
        if !self.addresses.insert(address) {
            return Err(LineFault::Twice(shown(word)));
        }
        self.servers.push(Listed { address, weight: None, tier: None });
        Ok(())
    }
}

impl Listed {
    fn set(&mut self, (name, value): (&str, &str)) -> Option<()> {
        match name {
            "weight" => self.weight = Some(value.parse().ok().filter(|weight| *weight <= WEIGHT_MAX)?),
            "tier" => self.tier = Some(value.parse().ok().filter(|tier| *tier > 0)?),
            _ => return None,
        }
        Some(())
    }
}

/// Parses an IP address with or without a port.
fn address(word: &str, port: Option<u16>) -> Option<SocketAddr> {
    if let Ok(Endpoint::Ip(address)) = word.parse() {
        return Some(address);
    }
    let bare = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => word.parse().ok()?,
    };
    // A link-local address needs an interface, which the form with a port has.
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Some(SocketAddr::new(ip, port?)).filter(|_| !is_link_local)
}

/// Returns the beginning of a word for a message.
fn shown(word: &str) -> String {
    word.chars().flat_map(char::escape_default).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Formats a list as `address weight tier` of each server, or as the error.
    fn parsed(text: &str, port: Option<u16>) -> String {
        match parse(text, port) {
            Ok(list) => {
                let one = |server: &Listed| {
                    let weight = server.weight.map(|weight| format!(" weight={weight}")).unwrap_or_default();
                    let tier = server.tier.map(|tier| format!(" tier={tier}")).unwrap_or_default();
                    format!("{}{weight}{tier}", server.address)
                };
                list.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_list_has_addresses_with_settings_and_comments() {
        for (text, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:80 10.0.0.2:81\n\n\t[::1]:82\r\n", "10.0.0.1:80, 10.0.0.2:81, [::1]:82"),
            ("# all\n10.0.0.1 # first\n::1#second\n[2001:db8::1]", "10.0.0.1:8, [::1]:8, [2001:db8::1]:8"),
            ("10.0.0.1 weight=3 10.0.0.2 tier=2 weight=0", "10.0.0.1:8 weight=3, 10.0.0.2:8 weight=0 tier=2"),
            ("[Real Servers]\n10.0.0.4\n; old\n10.0.0.2", "10.0.0.4:8, 10.0.0.2:8"),
            ("10.0.0.1\n[other]\nx = y\n[ REAL SERVERS ] # here\n10.0.0.2", "10.0.0.1:8, 10.0.0.2:8"),
            ("\u{feff}10.0.0.1", "10.0.0.1:8"),
        ] {
            assert_eq!(parsed(text, Some(8)), expected, "{text:?}");
        }
    }

    #[test]
    fn the_message_about_a_wrong_list_names_the_line() {
        for (text, expected) in [
            ("", "it lists no servers"),
            ("# nothing\n[Real Servers]\n", "it lists no servers"),
            ("[Virtual Servers]\n10.0.0.1:80", "it lists no servers"),
            (
                "10.0.0.1:80\n10.0.0.2",
                "line 2: `10.0.0.2` has no port: write it as 10.0.0.2:80, or give the source a port",
            ),
            ("10.0.0.1:80\n\nwww.example:80", "line 3: `www.example:80` is not an IP address"),
            ("10.0.0.1:0", "line 1: `10.0.0.1:0` is not an IP address"),
            ("/run/app.sock", "line 1: `/run/app.sock` is not an IP address"),
            ("10.0.0.1:80\nweight=2", "line 2: `weight=2` follows no address on its line"),
            (
                "10.0.0.1:80 weight=65536",
                "line 1: `weight=65536` is neither weight=0 to weight=65535 nor tier=1 to tier=255",
            ),
            (
                "10.0.0.1:80 tier=0",
                "line 1: `tier=0` is neither weight=0 to weight=65535 nor tier=1 to tier=255",
            ),
            ("10.0.0.1:80 10.0.0.1:80", "line 1: `10.0.0.1:80` is listed twice"),
            ("fe80::1", "line 1: `fe80::1` is not an IP address"),
            ("[fe80::1]\n10.0.0.1:80", "line 1: `[fe80::1]` is not an IP address"),
            ("10.0.0.1:80\n[10.0.0.2] # new\n10.0.0.3:80", "line 2: `[10.0.0.2]` is not an IP address"),
            ("[fe80::1%eth0]\n10.0.0.1:80", "line 1: `[fe80::1%eth0]` is not an IP address"),
        ] {
            assert_eq!(parsed(text, None), expected, "{text:?}");
        }
    }

    #[test]
    fn the_size_of_a_list_is_bounded() {
        let list = |count: usize| -> String {
            (0..count).map(|n| format!("10.{}.{}.{}:80 ", n >> 16, n >> 8 & 255, n & 255)).collect()
        };
        assert_eq!(parse(&list(SERVERS_MAX), None).map(|list| list.len()), Ok(SERVERS_MAX));
        assert_eq!(parse(&list(SERVERS_MAX + 1), None), Err(ListError::Servers));
        assert_eq!(parse(&"#".repeat(BYTES_MAX + 1), None), Err(ListError::Bytes));
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(text in ".{0,200}", port in proptest::option::of(1u16..)) {
            let _ = parse(&text, port);
        }

        #[test]
        fn the_words_of_lists_in_any_order_are_a_list_or_an_error(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("10.0.0.1:80"), Just("[::1]:80"), Just("::1"), Just("[Real Servers]"), Just("\n"),
                    Just("#"), Just(";"), Just("weight=2"), Just("tier=9"), Just("[x"), Just("]"), Just("="),
                ],
                0..20,
            ),
        ) {
            let text = words.join(" ");
            if let Ok(list) = parse(&text, Some(1)) {
                prop_assert!(!list.is_empty() && list.len() <= SERVERS_MAX);
            }
        }
    }
}
