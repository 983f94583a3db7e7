//! Access lists: prefixes that permit or deny clients, by the longest match or in order, and a default.

mod advice;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Decision of an access list on a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The client is admitted.
    Permit,
    /// The client is refused.
    Deny,
}

impl Access {
    /// Returns the opposite decision.
    #[must_use]
    pub const fn inverse(self) -> Self {
        match self {
            Self::Permit => Self::Deny,
            Self::Deny => Self::Permit,
        }
    }
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

/// Reason why a text is not a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash is not an address.
    #[error("{}", advice::no_address(.0))]
    Address(String),
    /// The part after the slash is not a number.
    #[error("{}", advice::no_length(.0))]
    Length(String),
    /// The part after the slash is too large.
    #[error("`{prefix}` is too long: an {family} prefix has at most {bits_max} bits")]
    TooLong {
        /// The text.
        prefix: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Number of bits of an address.
        bits_max: u8,
    },
    /// The length counts the 96 bits before an IPv4 address in the form of IPv6.
    #[error("`{prefix}` is an IPv4 prefix in the form of IPv6: write {ipv4}")]
    Mapped {
        /// The text.
        prefix: String,
        /// The prefix in the form of IPv4.
        ipv4: Prefix,
    },
    /// The part after the slash is missing.
    #[error("`{prefix}` has no length: write {prefix}{example}")]
    NoLength {
        /// The text, with its slash.
        prefix: String,
        /// A usual length of the family.
        example: u8,
    },
}

impl Prefix {
    /// Creates the prefix of the first `length` bits of an address, or of all its bits if it has fewer. An IPv4-mapped
    /// address counts as the IPv4 address.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let (family, bits) = left_aligned(address);
        let length = length.min(if family == Family::V4 { 32 } else { 128 });
        Self { family, bits: bits & mask(length), length }
    }

    /// Returns true if the prefix covers an address. An IPv4-mapped address counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (family, bits) = left_aligned(address.to_canonical());
        family == self.family && bits & mask(self.length) == self.bits
    }

    /// Returns the first address and the number of leading bits that count.
    #[must_use]
    pub fn network(&self) -> (IpAddr, u8) {
        let address = match self.family {
            Family::V4 => Ipv4Addr::from_bits((self.bits >> 96) as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(self.bits).into(),
        };
        (address, self.length)
    }
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
            Some("") => {
                let example = if family == Family::V4 { 8 } else { 32 };
                return Err(PrefixError::NoLength { prefix: text.into(), example });
            }
            Some(length) => match length.parse::<u32>().map_err(|_| PrefixError::Length(text.into()))? {
                length if length <= u32::from(length_max) => length as u8,
                length if family == Family::V4 && address.is_ipv6() && (96..=128).contains(&length) => {
                    let length = (length - 96) as u8;
                    let ipv4 = Self { family, bits: bits & mask(length), length };
                    return Err(PrefixError::Mapped { prefix: text.into(), ipv4 });
                }
                _ => {
                    let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
                    return Err(PrefixError::TooLong { prefix: text.into(), family, bits_max: length_max });
                }
            },
        };
        Ok(Self { family, bits: bits & mask(length), length })
    }
}

/// Returns the family and the left-aligned bits of an address. An IPv4-mapped IPv6 address (RFC 4291, section
/// 2.5.5.2) counts as the IPv4 address that it carries.
fn left_aligned(address: IpAddr) -> (Family, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (Family::V4, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (Family::V6, address.to_bits()),
    }
}

fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length)) }
}

/// A compiled access list: layers that are searched in turn. A layer has a sorted array for each prefix
/// length, in which a prefix takes 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Shared between clones.
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
    /// Creates a list of `rules` in which the longest match wins. Of rules with the same prefix the first one
    /// counts. Addresses that no rule matches get `otherwise`.
    ///
    /// ```
    /// use evener_core::acl::{Access, Acl};
    ///
    /// let rules = [("10.0.0.0/8".parse()?, Access::Deny), ("10.1.0.0/16".parse()?, Access::Permit)];
    /// let acl = Acl::new(&rules, Access::Permit);
    /// assert_eq!(acl.access("10.2.0.1".parse().unwrap()), Access::Deny);
    /// assert_eq!(acl.access("10.1.0.1".parse().unwrap()), Access::Permit);
    /// assert_eq!(acl.access("192.0.2.1".parse().unwrap()), Access::Permit);
    /// # Ok::<(), evener_core::acl::PrefixError>(())
    /// ```
    #[must_use]
    pub fn new(rules: &[(Prefix, Access)], otherwise: Access) -> Self {
        Self { layers: Vec::new(), otherwise }.after(rules)
    }

    /// Creates a list in which the first group with a match decides, even if a later group has a longer
    /// match. Adjacent groups with the same access become one layer, so a long list with one access is
    /// searched as one layer.
    ///
    /// ```
    /// use evener_core::acl::{Access, Acl};
    ///
    /// let groups = [
    ///     (Access::Permit, vec!["10.1.2.3".parse()?]),
    ///     (Access::Deny, vec!["10.0.0.0/8".parse()?]),
    ///     (Access::Permit, vec!["10.1.0.0/16".parse()?]),
    /// ];
    /// let acl = Acl::in_order(&groups, Access::Permit);
    /// assert_eq!(acl.access("10.1.2.3".parse().unwrap()), Access::Permit);
    /// assert_eq!(acl.access("10.1.2.4".parse().unwrap()), Access::Deny);
    /// # Ok::<(), evener_core::acl::PrefixError>(())
    /// ```
    #[must_use]
    pub fn in_order(groups: &[(Access, Vec<Prefix>)], otherwise: Access) -> Self {
        let filled: Vec<_> = groups.iter().filter(|(_, prefixes)| !prefixes.is_empty()).collect();
        let layer = |alike: &[&(Access, Vec<Prefix>)]| {
            let of = |(access, prefixes): &&(Access, Vec<Prefix>)| {
                let access = *access;
                prefixes.iter().map(move |prefix| (*prefix, access)).collect::<Vec<_>>()
            };
            compile(&alike.iter().flat_map(of).collect::<Vec<_>>())
        };
        Self { layers: filled.chunk_by(|(a, _), (b, _)| a == b).map(layer).collect(), otherwise }
    }

    /// Returns the same list with `rules` in front. The new rules are consulted first, even if an older rule
    /// has a longer match.
    #[must_use]
    pub fn after(&self, rules: &[(Prefix, Access)]) -> Self {
        let layers = [compile(rules)].into_iter().chain(self.layers.iter().cloned());
        Self { layers: layers.filter(|layer| !layer.is_empty()).collect(), otherwise: self.otherwise }
    }

    /// Returns the number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.iter()).map(|level| level.entries.len()).sum()
    }

    /// Returns true if the list makes the same decision for every client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the decision for clients that no rule matches.
    #[must_use]
    pub fn otherwise(&self) -> Access {
        self.otherwise
    }

    /// Returns true if the order of the rules counts, and not only the longest match.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.layers.len() > 1
    }

    /// Returns the list as groups; the first group with a match decides. Adjacent groups differ in their
    /// access. [`Self::in_order`] creates an equivalent list from these groups, and an equal list if it also
    /// created this list.
    #[must_use]
    pub fn groups(&self) -> Vec<(Access, Vec<Prefix>)> {
        let mut groups: Vec<(Access, Vec<Prefix>)> = Vec::new();
        for level in self.layers.iter().flat_map(|layer| layer.iter()) {
            // Prefixes of one length do not overlap, so the prefixes that continue the last group can be first.
            let first = groups.last().map_or(Access::Permit, |(access, _)| *access);
            for wanted in [first, first.inverse()] {
                let alike = level.entries.iter().filter(|(_, access)| *access == wanted);
                let (family, length) = (level.family, level.length);
                let mut prefixes = alike.map(|(bits, _)| Prefix { family, bits: *bits, length }).peekable();
                match groups.last_mut() {
                    Some((access, last)) if *access == wanted => last.extend(prefixes),
                    _ if prefixes.peek().is_some() => groups.push((wanted, prefixes.collect())),
                    _ => {}
                }
            }
        }
        groups
    }

    /// Returns the list as prefixes with their decisions, of which the longest match wins, for tables that know no
    /// order. Clients that no prefix matches get [`Self::otherwise`].
    ///
    /// ```
    /// use evener_core::acl::{Access, Acl, Prefix};
    ///
    /// let (wide, narrow): (Prefix, Prefix) = ("10.0.0.0/8".parse()?, "10.1.0.0/16".parse()?);
    /// let groups = [(Access::Permit, vec![wide]), (Access::Deny, vec![narrow])];
    /// let flat = Acl::in_order(&groups, Access::Deny).by_longest_match();
    /// assert_eq!(flat, [(wide, Access::Permit), (narrow, Access::Permit)]);
    /// # Ok::<(), evener_core::acl::PrefixError>(())
    /// ```
    #[must_use]
    pub fn by_longest_match(&self) -> Vec<(Prefix, Access)> {
        let levels = self.layers.iter().flat_map(|layer| layer.iter());
        let mut prefixes: Vec<Prefix> = levels
            .flat_map(|Level { family, length, entries }| {
                entries.iter().map(|(bits, _)| Prefix { family: *family, bits: *bits, length: *length })
            })
            .collect();
        prefixes.sort_unstable_by_key(|prefix| (prefix.family, prefix.length, prefix.bits));
        prefixes.dedup();
        // The rules that match an address which no longer prefix matches are the rules that cover this prefix.
        let decision = |prefix: &Prefix| {
            let find = |layer: &Arc<[Level]>| {
                let levels = layer.iter().filter(|l| l.family == prefix.family && l.length <= prefix.length);
                levels.into_iter().find_map(|level| level.find(prefix.bits))
            };
            self.layers.iter().find_map(find).unwrap_or(self.otherwise)
        };
        prefixes.into_iter().map(|prefix| (prefix, decision(&prefix))).collect()
    }

    /// Returns the decision on `client`.
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
    // The longest prefix first. The sort is stable and keeps the order of equal prefixes.
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
    fn the_longest_match_wins_in_any_order() {
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
    fn rules_in_front_are_consulted_first() {
        let list = Acl::new(&rules("-10.1.2.3"), Access::Permit).after(&rules("+10.0.0.0/8"));
        assert_eq!(list.access("10.1.2.3".parse().unwrap()), Access::Permit);
        assert_eq!((list.len(), list.is_empty()), (2, false));
    }

    fn random_prefix(random: &mut Random) -> Prefix {
        let bits = random.bits();
        if random.below(4) == 0 {
            let address = Ipv6Addr::from_bits(u128::from(bits & 0x0f0f) << 112 | u128::from(bits >> 63));
            return format!("{address}/{}", random.below(129)).parse().unwrap();
        }
        format!("{}/{}", Ipv4Addr::from((bits as u32) & 0x0303_0303), random.below(33)).parse().unwrap()
    }

    fn random_client(random: &mut Random) -> IpAddr {
        let bits = random.bits();
        match random.below(4) {
            0 => Ipv6Addr::from_bits(u128::from(bits & 0x0f0f) << 112 | u128::from(bits >> 63)).into(),
            _ => Ipv4Addr::from((bits as u32) & 0x0303_0303).into(),
        }
    }

    fn random_access(random: &mut Random) -> Access {
        if random.below(2) == 0 { Access::Permit } else { Access::Deny }
    }

    #[test]
    fn in_order_the_first_group_with_a_match_decides() {
        let mut random = Random::seeded(12);
        for _ in 0..300 {
            let group = |random: &mut Random| {
                let prefixes = (0..random.below(6)).map(|_| random_prefix(random)).collect();
                (random_access(random), prefixes)
            };
            let groups: Vec<(Access, Vec<Prefix>)> =
                (0..random.below(12)).map(|_| group(&mut random)).collect();
            let otherwise = random_access(&mut random);
            let acl = Acl::in_order(&groups, otherwise);
            for _ in 0..100 {
                let client = random_client(&mut random);
                let (family, bits) = left_aligned(client);
                let matches =
                    |prefix: &Prefix| prefix.family == family && bits & mask(prefix.length) == prefix.bits;
                let first = groups.iter().find(|(_, prefixes)| prefixes.iter().any(matches));
                assert_eq!(acl.access(client), first.map_or(otherwise, |(access, _)| *access), "{groups:?}");
            }
            assert_eq!(Acl::in_order(&acl.groups(), acl.otherwise()), acl, "{groups:?}");
        }
    }

    #[test]
    fn the_groups_of_any_list_are_equivalent_to_it() {
        let mut random = Random::seeded(13);
        for _ in 0..100 {
            let rules = |random: &mut Random| -> Vec<_> {
                (0..random.below(30)).map(|_| (random_prefix(random), random_access(random))).collect()
            };
            let acl = Acl::new(&rules(&mut random), Access::Deny).after(&rules(&mut random));
            let groups = acl.groups();
            assert!(groups.iter().all(|(_, prefixes)| !prefixes.is_empty()));
            assert!(groups.windows(2).all(|pair| pair[0].0 != pair[1].0), "{groups:?}");
            let ordered = Acl::in_order(&groups, acl.otherwise());
            for _ in 0..100 {
                let client = random_client(&mut random);
                assert_eq!(ordered.access(client), acl.access(client), "{acl:?}");
            }
        }
    }

    #[test]
    fn the_longest_match_of_the_flat_list_decides_as_the_ordered_list() {
        let mut random = Random::seeded(14);
        for _ in 0..200 {
            let group = |random: &mut Random| {
                let prefixes = (0..random.below(6)).map(|_| random_prefix(random)).collect();
                (random_access(random), prefixes)
            };
            let groups: Vec<(Access, Vec<Prefix>)> =
                (0..random.below(10)).map(|_| group(&mut random)).collect();
            let acl = Acl::in_order(&groups, random_access(&mut random));
            let flat = acl.by_longest_match();
            for _ in 0..100 {
                let client = random_client(&mut random);
                let matching = flat.iter().filter(|(prefix, _)| prefix.contains(client));
                let longest = matching.max_by_key(|(prefix, _)| prefix.network().1);
                let expected = longest.map_or(acl.otherwise(), |(_, access)| *access);
                assert_eq!(acl.access(client), expected, "{groups:?} {client}");
            }
        }
    }

    #[test]
    fn adjacent_groups_with_the_same_access_become_one_layer() {
        let group = |access, text: &str| (access, vec![text.parse().unwrap()]);
        let acl = Acl::in_order(
            &[
                group(Access::Deny, "10.1.0.0/16"),
                (Access::Permit, Vec::new()),
                group(Access::Deny, "10.2.0.0/16"),
                group(Access::Permit, "10.0.0.0/8"),
            ],
            Access::Deny,
        );
        assert_eq!((acl.layers.len(), acl.len(), acl.is_ordered()), (2, 3, true));
        assert!(!Acl::in_order(&[group(Access::Deny, "::/0")], Access::Permit).is_ordered());
        assert_eq!(Acl::in_order(&[], Access::Permit), Acl::new(&[], Access::Permit));
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
    fn prefixes_are_printed_as_parsed_but_without_host_bits() {
        for text in ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3/8".parse::<Prefix>().unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn a_prefix_covers_the_addresses_of_its_family_with_the_same_bits() {
        let check = |prefix: &str, address: &str| {
            prefix.parse::<Prefix>().unwrap().contains(address.parse().unwrap())
        };
        assert!(check("192.0.2.0/24", "192.0.2.7") && check("192.0.2.7", "::ffff:192.0.2.7"));
        assert!(check("2001:db8::/32", "2001:db8::7") && check("::/0", "::1"));
        assert!(!check("192.0.2.0/24", "192.0.3.7") && !check("0.0.0.0/0", "::1"));
        assert!(!check("192.0.2.7", "192.0.2.8") && !check("::/0", "192.0.2.7"));
    }

    #[test]
    fn the_error_of_an_invalid_prefix_shows_the_valid_form() {
        let error = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert!(error("ten").contains("a prefix such as 192.0.2.0/24"));
        assert!(error("10.0.0.0/33").contains("at most 32 bits"));
        assert!(error("::/129").contains("at most 128 bits"));
        let mapped = "is an IPv4 prefix in the form of IPv6: write";
        assert_eq!(error("::ffff:10.0.0.1/104"), format!("`::ffff:10.0.0.1/104` {mapped} 10.0.0.0/8"));
        assert_eq!(error("::ffff:0:0/96"), format!("`::ffff:0:0/96` {mapped} 0.0.0.0/0"));
        assert!(error("::ffff:10.0.0.0/40").contains("at most 32 bits"));
        assert!(error("10.0.0.0/").contains("write 10.0.0.0/8"));
        assert!(error("10.0.0.0/x").contains("no valid length"));
    }

    #[test]
    fn access_equals_a_search_through_all_rules() {
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
