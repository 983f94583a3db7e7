//! Attributes as lists. Unknown attributes are skipped, and integers may be longer or shorter than expected.

use crate::error::ErrorKind;
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, Nla, NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Family;

/// A message of the family: a command with attributes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Message {
    pub(crate) fn new(command: u8, attributes: Vec<DefaultNla>) -> Self {
        Self { command, attributes }
    }

    /// Reads a message behind its generic netlink header.
    ///
    /// # Errors
    /// An attribute's length is wrong.
    pub fn parse(command: u8, bytes: &[u8]) -> Result<Self, ErrorKind> {
        Ok(Self { command, attributes: list(bytes)? })
    }

    pub(crate) fn attributes(&self) -> Attributes {
        Attributes(self.attributes.clone())
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        "IPVS"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Self::parse(header.cmd, bytes).map_err(|error| DecodeError::from(error.to_string()))
    }
}

pub(crate) fn nla(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

pub(crate) fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

pub(crate) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind, bytes)
}

/// An address in 16 bytes.
pub(crate) fn address(kind: u16, address: IpAddr) -> DefaultNla {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    nla(kind, &bytes)
}

fn list(bytes: &[u8]) -> Result<Vec<DefaultNla>, ErrorKind> {
    let unreadable = |error: DecodeError| ErrorKind::Unreadable(error.to_string());
    NlasIterator::new(bytes)
        .map(|buffer| buffer.and_then(|buffer| DefaultNla::parse(&buffer)).map_err(unreadable))
        .collect()
}

/// Attributes of a level.
#[derive(Debug)]
pub(crate) struct Attributes(Vec<DefaultNla>);

impl Attributes {
    /// Returns the value of the first attribute of a kind.
    pub(crate) fn value(&self, kind: u16) -> Option<Vec<u8>> {
        let nla = self.0.iter().find(|nla| nla.kind() == kind)?;
        let mut value = vec![0; nla.value_len()];
        nla.emit_value(&mut value);
        Some(value)
    }

    pub(crate) fn nested(&self, kind: u16) -> Result<Self, ErrorKind> {
        let value = self.value(kind).ok_or_else(|| missing("nested attribute"))?;
        Ok(Self(list(&value)?))
    }

    /// Returns an integer in the machine's order, whatever its length is.
    pub(crate) fn integer(&self, kind: u16) -> Option<u64> {
        let value = self.value(kind)?;
        match *value {
            [a, b, c, d, e, f, g, h, ..] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            [a, b, c, d, ..] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
            [a, b, ..] => Some(u16::from_ne_bytes([a, b]).into()),
            [a] => Some(a.into()),
            [] => None,
        }
    }

    /// Returns an integer that fits its type.
    pub(crate) fn number<T: TryFrom<u64>>(&self, kind: u16) -> Option<T> {
        self.integer(kind)?.try_into().ok()
    }

    pub(crate) fn required<T: TryFrom<u64>>(&self, kind: u16, name: &str) -> Result<T, ErrorKind> {
        self.number(kind).ok_or_else(|| missing(name))
    }

    /// Returns a port in network order.
    pub(crate) fn port(&self, kind: u16) -> Option<u16> {
        self.value(kind)?.first_chunk().copied().map(u16::from_be_bytes)
    }

    pub(crate) fn text(&self, kind: u16) -> Option<String> {
        let value = self.value(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]).into_owned())
    }

    pub(crate) fn address(&self, kind: u16, family: Family) -> Result<IpAddr, ErrorKind> {
        let value = self.value(kind).unwrap_or_default();
        let address = match family {
            Family::V4 => value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
            Family::V6 => value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        };
        address.ok_or_else(|| missing("address"))
    }
}

pub(crate) fn missing(name: &str) -> ErrorKind {
    ErrorKind::Unreadable(format!("{name} is missing or has a wrong value"))
}

/// Number of a family in the kernel.
pub(crate) fn family_number(family: Family) -> u16 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    u16::try_from(number).expect("families are small numbers")
}

pub(crate) fn family(number: u16) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| family_number(*family) == number)
}
