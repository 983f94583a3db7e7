//! The origin of a request, as recorded by the proxies in front: `Forwarded` (RFC 7239) and
//! `X-Forwarded-For`.
//!
//! Each proxy appends the address of its peer at the right. The lists are therefore read from the right, and
//! nothing that a client wrote at the left changes the meaning of later elements. This module finds the
//! client and makes no decision about the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum size of a node that can be an address: a bracketed IPv6 address with a port.
const NODE_BYTES_MAX: usize = 64;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The first untrusted address, beginning with the peer and going left; the leftmost address if all are
    /// trusted.
    Known(IpAddr),
    /// A trusted proxy hides the address of its client (`unknown`, `_name`, or an invalid value), or both
    /// fields disagree. Holds the proxy's address.
    Hidden(IpAddr),
}

impl Client {
    /// Returns the address that counts as the client's.
    #[must_use]
    pub fn address(self) -> IpAddr {
        match self {
            Self::Known(address) | Self::Hidden(address) => address,
        }
    }
}

/// The lines of both fields, in the order of receipt. A field that is ignored or absent has no lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lists<'a> {
    /// The values of `Forwarded`.
    pub forwarded: &'a [&'a [u8]],
    /// The values of `X-Forwarded-For`.
    pub forwarded_for: &'a [&'a [u8]],
}

impl Lists<'_> {
    /// Returns the client behind `peer`. If both fields are present and disagree, the client is hidden: a
    /// proxy that writes only one of the fields passes on the other field as the client wrote it.
    pub fn client(&self, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> Client {
        match self.walks(peer, trusts) {
            (Some(one), Some(other)) if one != other => Client::Hidden(peer),
            (Some(client), _) | (None, Some(client)) => client,
            (None, None) => Client::Known(peer),
        }
    }

    /// Returns true if both fields are present and disagree.
    pub fn contradict(&self, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> bool {
        matches!(self.walks(peer, trusts), (Some(one), Some(other)) if one != other)
    }

    fn walks(&self, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> (Option<Client>, Option<Client>) {
        let walk = |syntax, lines| walk(syntax, lines, peer, &trusts);
        (walk(Syntax::Forwarded, self.forwarded), walk(Syntax::ForwardedFor, self.forwarded_for))
    }
}

/// Syntax of the elements of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `for="[2001:db8::7]:4711";proto=https` (RFC 7239, section 4).
    Forwarded,
    /// An address, perhaps with a port.
    ForwardedFor,
}

/// Walks from the peer to the left as long as a trusted proxy wrote the element. Returns `None` for a list
/// without elements.
fn walk(syntax: Syntax, lines: &[&[u8]], peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> Option<Client> {
    let mut hops = lines.iter().rev().flat_map(|line| Elements::of(syntax, line)).peekable();
    hops.peek()?;
    let mut client = peer;
    for element in hops {
        if !trusts(client) {
            break;
        }
        match syntax.address(element) {
            Some(address) => client = address,
            None => return Some(Client::Hidden(client)),
        }
    }
    Some(Client::Known(client))
}

/// Appends the received elements, each line with a comma after it, so that a local element can follow. A
/// malformed element of `Forwarded` and everything before it are dropped, because another program could parse
/// them differently.
pub fn emit_before(syntax: Syntax, lines: &[&[u8]], out: &mut Vec<u8>) {
    let (first, offset) = well_formed_from(syntax, lines);
    for (number, line) in lines.iter().enumerate().skip(first) {
        let from = if number == first { offset } else { 0 };
        let is_padding = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
        let text = &line[from..];
        let Some(start) = text.iter().position(|byte| !is_padding(byte)) else { continue };
        let end = text.iter().rposition(|byte| !is_padding(byte)).map_or(start, |at| at + 1);
        out.extend_from_slice(&text[start..end]);
        out.extend_from_slice(b", ");
    }
}

/// Returns the index of a line and an offset in that line, from which on all elements are well-formed.
fn well_formed_from(syntax: Syntax, lines: &[&[u8]]) -> (usize, usize) {
    if syntax == Syntax::ForwardedFor {
        return (0, 0);
    }
    for (number, line) in lines.iter().enumerate().rev() {
        let mut elements = Elements::of(syntax, line);
        let mut from = line.len();
        while let Some(element) = elements.next() {
            if parse_element(element).is_err() {
                return (number, from);
            }
            from = elements.consumed_from();
        }
    }
    (0, 0)
}

impl Syntax {
    /// Returns the address in an element, or `None` if it has none.
    fn address(self, element: &[u8]) -> Option<IpAddr> {
        match self {
            Self::ForwardedFor => parse_node(element),
            Self::Forwarded => parse_element(element).ok()??.address(),
        }
    }
}

/// Iterator over the elements of one line from right to left. Empty elements are skipped (RFC 9110, section
/// 5.6.1).
#[derive(Clone, Debug)]
struct Elements<'a> {
    syntax: Syntax,
    rest: Option<&'a [u8]>,
}

impl<'a> Elements<'a> {
    fn of(syntax: Syntax, line: &'a [u8]) -> Self {
        Self { syntax, rest: Some(line) }
    }

    /// Returns the offset of the element that `next` returned last, including the space before the element.
    fn consumed_from(&self) -> usize {
        self.rest.map_or(0, |rest| rest.len() + 1)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest.take()?;
            let comma = match self.syntax {
                Syntax::Forwarded => last_comma(rest),
                Syntax::ForwardedFor => rest.iter().rposition(|&byte| byte == b','),
            };
            self.rest = comma.map(|at| &rest[..at]);
            let element = rest[comma.map_or(0, |at| at + 1)..].trim_ascii();
            if !element.is_empty() {
                return Some(element);
            }
        }
    }
}

/// Returns the offset of the last comma outside quotes. The line is read from the right, so a quote that a
/// client left open at the left encloses nothing that was appended later.
fn last_comma(line: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    for at in (0..line.len()).rev() {
        match line[at] {
            b'"' if !is_quoted || !is_escaped(line, at) => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Returns true if an odd number of backslashes precedes this offset.
fn is_escaped(line: &[u8], at: usize) -> bool {
    line[..at].iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// Error of an element that violates the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed;

/// The value of a parameter, without its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value<'a> {
    text: &'a [u8],
    is_quoted: bool,
}

impl Value<'_> {
    fn address(self) -> Option<IpAddr> {
        if !self.is_quoted || !self.text.contains(&b'\\') {
            return parse_node(self.text);
        }
        let mut plain = [0; NODE_BYTES_MAX];
        let (mut length, mut bytes) = (0, self.text.iter());
        while let Some(byte) = bytes.next() {
            *plain.get_mut(length)? = if *byte == b'\\' { *bytes.next()? } else { *byte };
            length += 1;
        }
        parse_node(&plain[..length])
    }
}

/// Returns the parameter `for` of an element (RFC 7239, section 4). Addresses with `:`, `[` or `]` need no
/// quotes here, and `;` may have space around it: the grammar forbids both, but they are common and
/// unambiguous.
fn parse_element(element: &[u8]) -> Result<Option<Value<'_>>, Malformed> {
    let (mut rest, mut node) = (element, None);
    loop {
        let length = rest.iter().take_while(|&&byte| super::http::is_token(byte)).count();
        let (name, after) = rest.split_at(length);
        if !name.is_empty() {
            let (value, behind) = parse_value(after.strip_prefix(b"=").ok_or(Malformed)?)?;
            // A parameter must not occur twice (RFC 7239, section 4).
            if name.eq_ignore_ascii_case(b"for") && node.replace(value).is_some() {
                return Err(Malformed);
            }
            rest = behind.trim_ascii_start();
        }
        match rest {
            [] => return Ok(node),
            [b';', behind @ ..] => rest = behind.trim_ascii_start(),
            _ => return Err(Malformed),
        }
    }
}

/// Returns a value and the bytes after it.
fn parse_value(text: &[u8]) -> Result<(Value<'_>, &[u8]), Malformed> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let fits = |byte: &&u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\');
        let (value, behind) = text.split_at(text.iter().take_while(fits).count());
        let is_empty = value.is_empty();
        return if is_empty { Err(Malformed) } else { Ok((Value { text: value, is_quoted: false }, behind)) };
    };
    let mut at = 0;
    loop {
        match quoted.get(at).ok_or(Malformed)? {
            b'"' => return Ok((Value { text: &quoted[..at], is_quoted: true }, &quoted[at + 1..])),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Parses an address, perhaps with a port, IPv6 with or without brackets. Returns `None` for `unknown`,
/// `_name` and anything else (RFC 7239, section 6). An IPv4-mapped IPv6 address becomes the IPv4 address that
/// it carries.
fn parse_node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= NODE_BYTES_MAX)?;
    let (address, port) = if let Some(inside) = text.strip_prefix('[') {
        let (address, port) = inside.split_once(']')?;
        (IpAddr::V6(address.parse().ok()?), port)
    } else if let Ok(address) = text.parse::<Ipv6Addr>() {
        (IpAddr::V6(address), "")
    } else {
        let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
    };
    let fits = port.is_empty() || is_port(port.strip_prefix(':')?.as_bytes());
    fits.then(|| address.to_canonical())
}

/// Returns true for digits or an obfuscated port (RFC 7239, section 6).
fn is_port(text: &[u8]) -> bool {
    match text.strip_prefix(b"_") {
        Some(name) => {
            let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
            !name.is_empty() && name.iter().all(fits)
        }
        None => (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Client::{Hidden, Known};

    const PEER: &str = "10.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Trusts 10.0.0.0/8 and fd00::/8.
    fn trusts(address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.octets()[0] == 0xfd,
        }
    }

    fn lines(text: &str) -> Vec<&[u8]> {
        text.split('|').map(str::as_bytes).collect()
    }

    fn client(forwarded: &str, forwarded_for: &str) -> Client {
        let (forwarded, forwarded_for) = (lines(forwarded), lines(forwarded_for));
        let lists = Lists { forwarded: &forwarded, forwarded_for: &forwarded_for };
        lists.client(ip(PEER), trusts)
    }

    fn check(found: Client, expected: Client, text: &str) {
        assert_eq!(found, expected, "{text}");
    }

    /// Lines are separated by `|`.
    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        let check = |list: &str, expected| check(client("", list), expected, list);
        for nothing in ["", " ", ",", " ,\t,", "|,|"] {
            check(nothing, Known(ip(PEER)));
        }
        for one in [
            "192.0.2.7",
            " 192.0.2.7 ",
            "192.0.2.7,",
            "192.0.2.7, ,,",
            "192.0.2.7|",
            "192.0.2.7|,| ",
            "192.0.2.7:4711",
            "192.0.2.7:_port",
            "::ffff:192.0.2.7",
            "[::ffff:192.0.2.7]:80",
            "192.0.2.7, [fd00::1]",
            "192.0.2.7,[fd00::1]:80 ,fd00::2",
            "192.0.2.7|10.1.1.1, 10.2.2.2:5",
            "8.8.8.8, 192.0.2.7, ::ffff:10.3.3.3",
            "garbage, \", 192.0.2.7",
            "10.9.9.9, unknown, 192.0.2.7",
            "8.8.8.8 192.0.2.8, 192.0.2.7",
        ] {
            check(one, Known(ip("192.0.2.7")));
        }
        for one in ["[2001:db8::7]", "2001:db8::7", "[2001:db8::7]:443", "[2001:db8::7], 10.0.0.2,"] {
            check(one, Known(ip("2001:db8::7")));
        }
        check("10.0.0.3, fd00::9", Known(ip("10.0.0.3")));
    }

    #[test]
    fn an_element_without_an_address_ends_the_walk_at_the_last_trusted_proxy() {
        let check = |list: &str, hop| check(client("", list), Hidden(ip(hop)), list);
        for element in [
            "unknown",
            "_hidden",
            "192.0.2.7:",
            "192.0.2.7:x",
            "192.0.2.7:123456",
            "192.0.2.007",
            "192.0.2",
            "[192.0.2.7]",
            "[2001:db8::7",
            "[2001:db8::7]443",
            "2001:db8::7]",
            "[2001:db8::7%eth0]",
            "\"192.0.2.7\"",
            "for=192.0.2.7",
            "192.0.2.7 192.0.2.8",
            "a.example",
            "\u{fc}",
            "192.0.2.7;",
        ] {
            check(element, PEER);
            check(&format!("198.51.100.1, {element}"), PEER);
            check(&format!("198.51.100.1|{element}, [fd00::5]:1"), "fd00::5");
        }
        check(&"1".repeat(4000), PEER);
    }

    #[test]
    fn forwarded_is_read_in_all_its_forms() {
        let check = |list: &str, expected| check(client(list, ""), expected, list);
        for one in [
            "for=192.0.2.7",
            "FOR=\"192.0.2.7\"",
            "for=\"192.0.2.7:4711\"",
            "for=192.0.2.7:4711",
            "for=\"192.0.2.7:_gazonk\"",
            "for=\"[::ffff:192.0.2.7]\"",
            "for=\"1\\92.0.2.7\"",
            "for=192.0.2.7;proto=https;by=10.0.0.1",
            "by=_a;host=\"a,b;for=8.8.8.8\" ; For=192.0.2.7 ;proto=http;",
            "host=\"a\\\", for=8.8.8.8, \\\\\";for=192.0.2.7",
            "for=192.0.2.7, for=\"[fd00::1]\"",
            "for=192.0.2.7|for=10.0.0.9;x=\",\", ,",
            "for=8.8.8.8, for=192.0.2.7,, for=10.0.0.9;secret=\"\\\"\"",
            // The client left a quote open; proxies appended the rest.
            "for=\", for=192.0.2.7",
            "for=8.8.8.8;x=\", for=192.0.2.7;host=\"a\"",
            "x=\"\\, for=192.0.2.7, for=\"[fd00::1]:1\"",
            "\"|for=192.0.2.7",
        ] {
            check(one, Known(ip("192.0.2.7")));
        }
        for one in ["for=\"[2001:db8::7]\"", "for=\"[2001:db8::7]:443\"", "for=[2001:db8::7]:1"] {
            check(one, Known(ip("2001:db8::7")));
        }
        for hidden in [
            "for=unknown",
            "for=_hidden",
            "for=\"_SEVKISEK\"",
            "for=\"unknown:80\"",
            "proto=https",
            ";",
            "for=",
            "for",
            "for =192.0.2.7",
            "for= 192.0.2.7",
            "for=192.0.2.7;for=192.0.2.8",
            "for=\"192.0.2.7\"x",
            "for=\"192.0.2.7",
            "for=192.0.2.7\"",
            "for=\"192.0.2.7\\\"",
            "192.0.2.7",
            "for=192.0.2.7 proto=http",
            "for=\"192.0.2.7\\",
            "=192.0.2.7",
        ] {
            check(hidden, Hidden(ip(PEER)));
            check(&format!("for=8.8.8.8, {hidden}, for=10.0.0.2"), Hidden(ip("10.0.0.2")));
        }
    }

    #[test]
    fn the_client_is_hidden_if_both_lists_disagree() {
        let check = |forwarded, forwarded_for, expected| {
            check(client(forwarded, forwarded_for), expected, &format!("{forwarded} {forwarded_for}"));
        };
        check("for=192.0.2.7", "192.0.2.7", Known(ip("192.0.2.7")));
        check("for=192.0.2.7, for=10.0.0.2", "8.8.8.8, 192.0.2.7", Known(ip("192.0.2.7")));
        check("for=192.0.2.7", "", Known(ip("192.0.2.7")));
        check(",", "192.0.2.7", Known(ip("192.0.2.7")));
        check("for=8.8.8.8", "192.0.2.7, 10.0.0.2", Hidden(ip(PEER)));
        check("for=unknown", "192.0.2.7", Hidden(ip(PEER)));
        check("for=_a", "unknown", Hidden(ip(PEER)));
    }

    #[test]
    fn an_untrusted_peer_is_always_the_client() {
        let list = lines("192.0.2.7");
        let lists = Lists { forwarded: &[b"for=unknown"], forwarded_for: &list };
        assert_eq!(lists.client(ip("203.0.113.1"), trusts), Known(ip("203.0.113.1")));
    }

    #[test]
    fn passed_on_elements_are_well_formed() {
        let check = |syntax, list, expected: &str| {
            let mut out = Vec::new();
            emit_before(syntax, &lines(list), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{list}");
        };
        check(Syntax::ForwardedFor, "", "");
        check(Syntax::ForwardedFor, " ,", "");
        check(Syntax::ForwardedFor, "192.0.2.7,", "192.0.2.7, ");
        check(Syntax::ForwardedFor, ", a , b,,|c", "a , b, c, ");
        check(Syntax::Forwarded, "for=a|, for=b;x=\",\" , for=c,", "for=a, for=b;x=\",\" , for=c, ");
        check(Syntax::Forwarded, "for=a|for=b, for=\", for=d|for=e", "for=d, for=e, ");
        check(Syntax::Forwarded, "for=a|for=\"|for=e", "for=e, ");
        check(Syntax::Forwarded, "for=a|for=\"", "");
    }

    /// Random lists of significant pieces.
    #[test]
    fn bytes_from_a_client_do_not_change_the_address_that_a_trusted_proxy_adds() {
        const PIECES: [&str; 12] =
            ["for=", "\"", ",", "\\", ";", "8.8.8.8", "[", "]", " ", "10.0.0.2", "|", "=\"a\""];
        let mut random = crate::Random::seeded(7);
        for _ in 0..20_000 {
            let length = random.bits() % 8;
            let list: String = (0..length).map(|_| PIECES[(random.bits() % 12) as usize]).collect();
            let added =
                ["for=192.0.2.7", "for=\"192.0.2.7:80\";host=\"a\\\",b\"", "proto=http;for=192.0.2.7"];
            for added in added {
                check(client(&format!("{list},{added}"), ""), Known(ip("192.0.2.7")), &list);
                check(client(&format!("{list}|{added}"), ""), Known(ip("192.0.2.7")), &list);
            }
            check(client("", &format!("{list}, 192.0.2.7")), Known(ip("192.0.2.7")), &list);
            let mut out = Vec::new();
            emit_before(Syntax::Forwarded, &lines(&list), &mut out);
            let mut again = Vec::new();
            emit_before(Syntax::Forwarded, &[&out], &mut again);
            assert_eq!(again, out, "an emitted list is emitted again unchanged: {list}");
        }
    }
}
