//! Messages for texts that are not prefixes: ranges, network masks and wildcards are converted to prefixes.

use super::{Family, Prefix, left_aligned, mask};
use std::net::{IpAddr, Ipv4Addr};

/// Maximum number of prefixes that a message proposes for a range.
const PROPOSED_MAX: usize = 4;

/// Returns the message for a text that does not begin with an address.
pub(super) fn no_address(text: &str) -> String {
    let word = text.trim().to_ascii_lowercase();
    if matches!(word.as_str(), "all" | "any" | "*" | "everyone" | "world") {
        return format!("`{text}` is not a prefix: every address is 0.0.0.0/0 and ::/0");
    }
    let range = word.split_once('-').and_then(|(first, last)| range(first.trim(), last.trim()));
    match range.or_else(|| wildcard(&word).map(|prefix| vec![prefix])) {
        Some(prefixes) if prefixes.len() <= PROPOSED_MAX => {
            let written: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
            let verb = if written.len() == 1 { "write" } else { "write the prefixes" };
            format!("`{text}` is not a prefix: {verb} {}", written.join(", "))
        }
        Some(_) => format!("`{text}` is a range: divide it into prefixes such as 192.0.2.0/24"),
        None => format!("`{text}` is neither an address nor a prefix such as 192.0.2.0/24"),
    }
}

/// Returns the message for a prefix whose length is not a number.
pub(super) fn no_length(text: &str) -> String {
    let of_mask = || {
        let (address, length) = text.split_once('/')?;
        let (address, netmask): (Ipv4Addr, Ipv4Addr) = (address.parse().ok()?, length.parse().ok()?);
        let ones = netmask.to_bits().leading_ones();
        (netmask.to_bits().count_ones() == ones).then(|| format!("{address}/{ones}"))
    };
    match of_mask() {
        Some(prefix) => format!("`{text}` has a network mask: write {prefix}"),
        None => {
            format!("`{text}` has no valid length: an IPv4 prefix has 0 to 32 bits, an IPv6 prefix 0 to 128")
        }
    }
}

/// Returns the prefixes that together cover exactly the addresses from `first` to `last`. The last address can
/// be written as its last number.
fn range(first: &str, last: &str) -> Option<Vec<Prefix>> {
    let of_v4 = || Some(format!("{}.{last}", first.rsplit_once('.')?.0));
    let last: IpAddr = last.parse().ok().or_else(|| of_v4()?.parse().ok())?;
    let ((family, mut from), (last_family, to)) = (left_aligned(first.parse().ok()?), left_aligned(last));
    let width: u8 = if family == Family::V4 { 32 } else { 128 };
    // The bits behind an IPv4 address belong to its last address.
    let to = to | !mask(width);
    if family != last_family || from > to {
        return None;
    }
    let mut prefixes = Vec::new();
    while prefixes.len() <= PROPOSED_MAX {
        let fits = |length: &u8| from & !mask(*length) == 0 && from | !mask(*length) <= to;
        let length = (0..=width).find(fits)?;
        prefixes.push(Prefix { family, bits: from, length });
        match (from | !mask(length)).checked_add(1) {
            Some(next) if next <= to => from = next,
            _ => break,
        }
    }
    Some(prefixes)
}

/// Returns the prefix of an address such as `10.0.*` or `10.0.0.*`.
fn wildcard(text: &str) -> Option<Prefix> {
    let parts: Vec<&str> = text.split('.').collect();
    let given: Vec<u8> = parts.iter().map_while(|part| part.parse().ok()).collect();
    if given.is_empty() || parts.len() > 4 || given.len() == parts.len() {
        return None;
    }
    if parts[given.len()..].iter().any(|part| *part != "*") {
        return None;
    }
    let mut octets = [0; 4];
    octets[..given.len()].copy_from_slice(&given);
    let (family, bits) = left_aligned(Ipv4Addr::from(octets).into());
    Some(Prefix { family, bits, length: given.len() as u8 * 8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_a_wildcard_and_a_mask_are_converted_to_prefixes() {
        let check = |text: &str, expected: &str| {
            let seen = text.parse::<Prefix>().unwrap_err().to_string();
            assert_eq!(seen, format!("`{text}` {expected}"));
        };
        check("10.0.0.0-10.0.0.255", "is not a prefix: write 10.0.0.0/24");
        check("10.0.0.0 - 255", "is not a prefix: write 10.0.0.0/24");
        check("0.0.0.0-255.255.255.255", "is not a prefix: write 0.0.0.0/0");
        check("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "is not a prefix: write ::/0");
        check("2001:db8::-2001:db8::ffff", "is not a prefix: write 2001:db8::/112");
        check("10.0.0.1-10.0.0.3", "is not a prefix: write the prefixes 10.0.0.1/32, 10.0.0.2/31");
        check("10.0.0.1-10.0.0.254", "is a range: divide it into prefixes such as 192.0.2.0/24");
        check("10.0.*", "is not a prefix: write 10.0.0.0/16");
        check("10.0.0.*", "is not a prefix: write 10.0.0.0/24");
        check("10.0.0.0/255.255.255.0", "has a network mask: write 10.0.0.0/24");
        for word in ["all", "any", "*"] {
            check(word, "is not a prefix: every address is 0.0.0.0/0 and ::/0");
        }
        let neither = "is neither an address nor a prefix such as 192.0.2.0/24";
        for text in ["office", "127.0.0", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.*.0.1", "1.2.3.4.5", "*.*"]
        {
            check(text, neither);
        }
        check(
            "10.0.0.0/255.0.255.0",
            "has no valid length: an IPv4 prefix has 0 to 32 bits, an IPv6 prefix 0 to 128",
        );
    }
}
