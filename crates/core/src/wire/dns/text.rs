//! Names, types and RCODEs in textual form.

use super::record::LABEL_BYTES_MAX;
use super::{NAME_BYTES_MAX, RCODE};
use std::borrow::Cow;

/// Reason why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("it is empty; the root is written `.`")]
    Empty,
    /// The text has two adjacent dots, or begins with one.
    #[error("it has an empty label: two dots meet, or it begins with a dot")]
    EmptyLabel,
    /// A label is too long.
    #[error("one of its labels is longer than {LABEL_BYTES_MAX} bytes")]
    LongLabel,
    /// The name is too long.
    #[error("it is longer than {NAME_BYTES_MAX} bytes")]
    Long,
    /// A backslash has no valid escape after it.
    #[error("`\\` must be followed by three digits up to 255 or by another character")]
    Escape,
    /// A character needs an escape.
    #[error("{}", explain(*.0))]
    Character(char),
}

fn explain(character: char) -> String {
    match character {
        ' ' => "it contains a space".into(),
        c if c.is_ascii() => format!("it contains {c:?}: write the byte as `\\` and three digits"),
        _ => "write it in its xn-- form".into(),
    }
}

/// Parses a name such as `www.example.org`, with or without a final dot, to wire form in the given case (RFC
/// 1035, sections 3.1 and 5.1).
pub fn parse_name(text: &str) -> Result<Vec<u8>, NameError> {
    match text {
        "" => return Err(NameError::Empty),
        "." => return Ok(vec![0]),
        _ => {}
    }
    let mut name = vec![0];
    // Offset of the length of the current label.
    let mut label = 0;
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'.' => {
                end_label(&mut name, label)?;
                label = name.len();
                name.push(0);
            }
            b'\\' => name.push(unescape(&mut rest)?),
            0x21..=0x7e => name.push(byte),
            _ => return Err(NameError::Character(character(text, text.len() - rest.len() - 1))),
        }
    }
    // A final dot has already added the label of the root.
    if label + 1 < name.len() {
        end_label(&mut name, label)?;
        name.push(0);
    }
    if name.len() > NAME_BYTES_MAX { Err(NameError::Long) } else { Ok(name) }
}

/// Writes the length of the label at the end of `name` to the offset `label`.
fn end_label(name: &mut [u8], label: usize) -> Result<(), NameError> {
    let length = u8::try_from(name.len() - label - 1).ok().filter(|length| *length <= LABEL_BYTES_MAX);
    match length {
        None => Err(NameError::LongLabel),
        Some(0) => Err(NameError::EmptyLabel),
        Some(length) => {
            name[label] = length;
            Ok(())
        }
    }
}

/// Returns the byte of the escape that `rest` begins with, after its backslash.
fn unescape(rest: &mut &[u8]) -> Result<u8, NameError> {
    let (&first, after) = rest.split_first().ok_or(NameError::Escape)?;
    if !first.is_ascii_digit() {
        *rest = after;
        return if first.is_ascii() { Ok(first) } else { Err(NameError::Escape) };
    }
    let digits = rest.first_chunk::<3>().filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let number =
        digits.ok_or(NameError::Escape)?.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    *rest = &rest[3..];
    u8::try_from(number).map_err(|_| NameError::Escape)
}

fn character(text: &str, at: usize) -> char {
    text.get(at..).and_then(|rest| rest.chars().next()).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Types of IANA's registry "Resource Record (RR) TYPEs" that are in use.
const TYPES: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (13, "HINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (24, "SIG"),
    (25, "KEY"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (39, "DNAME"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (55, "HIP"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (99, "SPF"),
    (108, "EUI48"),
    (109, "EUI64"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
];

/// RCODEs of IANA's registry "DNS RCODEs" that fit into the header.
const RCODES: &[(u8, &str)] = &[
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (6, "YXDOMAIN"),
    (7, "YXRRSET"),
    (8, "NXRRSET"),
    (9, "NOTAUTH"),
    (10, "NOTZONE"),
    (11, "DSOTYPENI"),
];

/// Returns a name on the wire, without compression, as text with a dot at its end: `www.example.`. Bytes that are not
/// printable, dots and backslashes within a label are escaped (RFC 1035, section 5.1).
#[must_use]
pub fn name_text(name: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), name);
    while let Some((&length, after)) = rest.split_first() {
        let Some((label, after)) = after.split_at_checked(usize::from(length)) else { break };
        if length == 0 {
            break;
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                b'!'..=b'~' => text.push(char::from(byte)),
                _ => text += &format!("\\{byte:03}"),
            }
        }
        text.push('.');
        rest = after;
    }
    if text.is_empty() { ".".into() } else { text }
}

/// Returns the number of a type by its name in any case or as `TYPE123` (RFC 3597, section 5).
#[must_use]
pub fn type_number(text: &str) -> Option<u16> {
    let known = TYPES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(number, _)| *number);
    known.or_else(|| numbered(text, "TYPE")?.parse().ok())
}

/// Returns the name of a type, or `TYPE123` if it has none.
#[must_use]
pub fn type_name(number: u16) -> Cow<'static, str> {
    match TYPES.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("TYPE{number}")),
    }
}

/// Returns the number of an RCODE that fits into the header, by its name in any case or as `RCODE12`.
#[must_use]
pub fn rcode_number(text: &str) -> Option<u8> {
    let known = RCODES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(number, _)| *number);
    known.or_else(|| numbered(text, "RCODE")?.parse().ok().filter(|number| *number <= RCODE))
}

/// Returns the name of an RCODE, or `RCODE12` if it has none.
#[must_use]
pub fn rcode_name(number: u8) -> Cow<'static, str> {
    match RCODES.iter().find(|(known, _)| *known == number) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("RCODE{number}")),
    }
}

/// Returns the digits after a prefix in any case.
fn numbered<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, digits) = text.split_at_checked(prefix.len())?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (start.eq_ignore_ascii_case(prefix) && is_number).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_to_wire_form_or_refused() {
        let check = |text: &str, expected: Result<&[u8], NameError>| {
            assert_eq!(parse_name(text).as_deref(), expected.as_ref().map(|name| &**name), "{text}");
        };
        check(".", Ok(&[0]));
        check("a", Ok(b"\x01a\0"));
        check("Www.example.org", Ok(b"\x03Www\x07example\x03org\0"));
        check("Www.example.org.", Ok(b"\x03Www\x07example\x03org\0"));
        check(r"a\.b.\\\032\255", Ok(b"\x03a.b\x03\\ \xff\0"));
        check("_dns.*.x-y", Ok(b"\x04_dns\x01*\x03x-y\0"));
        check("", Err(NameError::Empty));
        for text in ["..", ".a", "a..b", "a.."] {
            check(text, Err(NameError::EmptyLabel));
        }
        for text in [r"a\", r"a\1", r"a\12", r"a\256", r"a\12x", r"a\é"] {
            check(text, Err(NameError::Escape));
        }
        check("bücher.example", Err(NameError::Character('ü')));
        check("a b", Err(NameError::Character(' ')));
        let label = "x".repeat(63);
        assert_eq!(parse_name(&label).unwrap().len(), 65);
        check(&format!("{label}x"), Err(NameError::LongLabel));
        check(&"x".repeat(1000), Err(NameError::LongLabel));
        let long = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        assert_eq!(parse_name(&long).unwrap().len(), NAME_BYTES_MAX);
        check(&format!("{long}x"), Err(NameError::Long));
    }

    #[test]
    fn names_of_types_and_rcodes_are_parsed_to_their_numbers() {
        for number in 0..=u16::MAX {
            assert_eq!(type_number(&type_name(number).to_lowercase()), Some(number));
        }
        for number in 0..=RCODE {
            assert_eq!(rcode_number(&rcode_name(number).to_lowercase()), Some(number));
        }
        assert_eq!((&*type_name(65), &*type_name(1234)), ("HTTPS", "TYPE1234"));
        assert_eq!((&*rcode_name(3), &*rcode_name(12)), ("NXDOMAIN", "RCODE12"));
        for text in ["", "TYPE", "TYPE65536", "TYPE+1", "TYPE-1", "é", "TYPé", "B"] {
            assert_eq!(type_number(text), None, "{text}");
        }
        for text in ["", "RCODE", "RCODE16", "RCODE+1", "BADVERS"] {
            assert_eq!(rcode_number(text), None, "{text}");
        }
    }
}
