//! Access lists: prefixes that permit or deny, the longest match wins, and an answer for everybody else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// What an access list says of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The client may come in.
    Permit,
    /// The client may not.
    Deny,
}

/// An address with the number of leading bits that count: `10.0.0.0/8`, `2001:db8::/32`, `192.0.2.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    family: Family,
    bits: u128,
    length: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// Why a text is not a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash is no address.
    #[error("`{0}` is not a prefix: write 10.0.0.0/8 or 2001:db8::/32")]
    Address(String),
    /// The part after the slash is too large, or no number.
    #[error("`{0}` has no valid length: an IPv4 prefix has 0 to 32 bits, an IPv6 prefix 0 to 128")]
    Length(String),
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::V4 => write!(out, "{}/{}", Ipv4Addr::from_bits((self.bits >> 96) as u32), self.length),
            Family::V6 => write!(out, "{}/{}", Ipv6Addr::from_bits(self.bits), self.length),
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address(text.into()))?;
        let (family, bits) = left_aligned(address);
        let length_max = if family == Family::V4 { 32 } else { 128 };
        let length = match length {
            None => length_max,
            Some(length) => length
                .parse()
                .ok()
                .filter(|&length| length <= length_max)
                .ok_or_else(|| PrefixError::Length(text.into()))?,
        };
        Ok(Self { family, bits: bits & mask(length), length })
    }
}

/// An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) counts as the IPv4 address that it carries.
fn left_aligned(address: IpAddr) -> (Family, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (Family::V4, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (Family::V6, address.to_bits()),
    }
}

fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length)) }
}

/// A compiled access list: layers that are asked in turn, each with a sorted array for each length, so that a million
/// prefixes take 32 bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Clones share them.
    layers: Vec<Arc<[Level]>>,
    otherwise: Access,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    family: Family,
    length: u8,
    entries: Vec<(u128, Access)>,
}

impl Acl {
    /// A list of `rules`, and what it says where none matches. Of rules with the same prefix the first one counts.
    #[must_use]
    pub fn new(rules: &[(Prefix, Access)], otherwise: Access) -> Self {
        Self { layers: Vec::new(), otherwise }.after(rules)
    }

    /// The same list after `rules`: they are asked first, whatever the lengths of the prefixes.
    #[must_use]
    pub fn after(&self, rules: &[(Prefix, Access)]) -> Self {
        let layers = [compile(rules)].into_iter().chain(self.layers.iter().cloned());
        Self { layers: layers.filter(|layer| !layer.is_empty()).collect(), otherwise: self.otherwise }
    }

    /// How many prefixes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.iter()).map(|level| level.entries.len()).sum()
    }

    /// Whether it says the same of everybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the list says of `client`.
    #[must_use]
    pub fn access(&self, client: IpAddr) -> Access {
        let (family, bits) = left_aligned(client);
        let find = |layer: &Arc<[Level]>| {
            layer.iter().filter(|level| level.family == family).find_map(|level| level.find(bits))
        };
        self.layers.iter().find_map(find).unwrap_or(self.otherwise)
    }
}

fn compile(rules: &[(Prefix, Access)]) -> Arc<[Level]> {
    let mut sorted: Vec<_> = rules.to_vec();
    // The longest first; a stable sort keeps the order of equal prefixes.
    sorted.sort_by_key(|(prefix, _)| (prefix.family, u8::MAX - prefix.length, prefix.bits));
    sorted.dedup_by_key(|(prefix, _)| *prefix);
    sorted
        .chunk_by(|(a, _), (b, _)| (a.family, a.length) == (b.family, b.length))
        .map(|level| Level {
            family: level[0].0.family,
            length: level[0].0.length,
            entries: level.iter().map(|(prefix, access)| (prefix.bits, *access)).collect(),
        })
        .collect()
}

impl Level {
    fn find(&self, bits: u128) -> Option<Access> {
        let wanted = bits & mask(self.length);
        let at = self.entries.binary_search_by_key(&wanted, |(bits, _)| *bits).ok()?;
        Some(self.entries[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    fn rules(text: &str) -> Vec<(Prefix, Access)> {
        let rule = |word: &str| {
            let access = if word.starts_with('+') { Access::Permit } else { Access::Deny };
            (word[1..].parse().unwrap(), access)
        };
        text.split(' ').map(rule).collect()
    }

    #[test]
    fn the_longest_match_wins_whatever_the_order() {
        let check = |text: &str, client: &str, expected| {
            let acl = Acl::new(&rules(text), Access::Permit);
            assert_eq!(acl.access(client.parse().unwrap()), expected, "{text}: {client}");
        };
        check("-10.0.0.0/8 +10.1.0.0/16", "10.1.2.3", Access::Permit);
        check("+10.1.0.0/16 -10.0.0.0/8", "10.1.2.3", Access::Permit);
        check("+10.1.0.0/16 -10.0.0.0/8", "10.2.2.3", Access::Deny);
        check("-10.1.0.0/16 +10.1.0.0/16", "10.1.2.3", Access::Deny);
        check("-0.0.0.0/0", "2001:db8::1", Access::Permit);
        check("-::/0 +2001:db8::/32", "2001:db8::1", Access::Permit);
        check("-::/0 +2001:db8::/32", "2001:db9::1", Access::Deny);
        check("-192.0.2.1", "::ffff:192.0.2.1", Access::Deny);
    }

    #[test]
    fn what_comes_later_is_asked_first() {
        let list = Acl::new(&rules("-10.1.2.3"), Access::Permit).after(&rules("+10.0.0.0/8"));
        assert_eq!(list.access("10.1.2.3".parse().unwrap()), Access::Permit);
        assert_eq!((list.len(), list.is_empty()), (2, false));
    }

    #[test]
    fn a_million_prefixes_take_32_bytes_each() {
        let rule = |number: u32| {
            let bits = u128::from(number) << 100;
            (Prefix { family: Family::V4, bits: bits & mask(28), length: 28 }, Access::Deny)
        };
        let rules: Vec<_> = (0..1_000_000).map(rule).collect();
        let list = Acl::new(&rules, Access::Permit);
        assert_eq!(list.len(), 1_000_000);
        assert_eq!(size_of::<(u128, Access)>(), 32);
        assert_eq!(list.access("0.0.0.16".parse().unwrap()), Access::Deny);
        assert_eq!(list.access("255.0.0.1".parse().unwrap()), Access::Permit);
    }

    #[test]
    fn prefixes_are_written_as_they_are_read() {
        for text in ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3/8".parse::<Prefix>().unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn prefixes_that_are_none_say_what_to_write() {
        let error = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert!(error("ten").contains("write 10.0.0.0/8"));
        assert!(error("10.0.0.0/33").contains("0 to 32 bits"));
        assert!(error("::/129").contains("0 to 128"));
        assert!(error("10.0.0.0/").contains("no valid length"));
    }

    #[test]
    fn it_answers_as_a_search_through_all_rules() {
        let mut random = Random::seeded(11);
        let rules: Vec<(Prefix, Access)> = (0..400)
            .map(|_| {
                let address = Ipv4Addr::from((random.bits() as u32) & 0x0f0f_0f0f);
                let prefix = format!("{address}/{}", random.below(33)).parse().unwrap();
                (prefix, if random.below(2) == 0 { Access::Permit } else { Access::Deny })
            })
            .collect();
        let acl = Acl::new(&rules, Access::Deny);
        for _ in 0..5_000 {
            let client = IpAddr::from(((random.bits() as u32) & 0x0f0f_0f0f).to_be_bytes());
            let bits = left_aligned(client).1;
            let mut matching: Vec<_> =
                rules.iter().filter(|(prefix, _)| bits & mask(prefix.length) == prefix.bits).collect();
            matching.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length));
            let expected = matching.first().map_or(Access::Deny, |(_, access)| *access);
            assert_eq!(acl.access(client), expected);
        }
    }
}
