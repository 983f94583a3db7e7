//! Attributes of a destination.

use super::attributes::{Attributes, address, family, family_number, missing, nla};
use super::statistics;
use crate::error::ErrorKind;
use crate::model::{Destination, DestinationKey, DestinationState, Family, Forwarding, Tunnel, TunnelFlags};
use netlink_packet_core::DefaultNla;

const ADDRESS: u16 = 1;
const PORT: u16 = 2;
const FORWARDING: u16 = 3;
const WEIGHT: u16 = 4;
const UPPER: u16 = 5;
const LOWER: u16 = 6;
const ACTIVE: u16 = 7;
const INACTIVE: u16 = 8;
const PERSISTENT: u16 = 9;
const STATS: u16 = 10;
const FAMILY: u16 = 11;
const STATS64: u16 = 12;
const TUNNEL_TYPE: u16 = 13;
const TUNNEL_PORT: u16 = 14;
const TUNNEL_FLAGS: u16 = 15;

const FORWARDING_MASK: u32 = 7;
const NAT: u32 = 0;
const LOCAL: u32 = 1;
const TUNNEL: u32 = 2;
const DIRECT: u32 = 3;
const BYPASS: u32 = 4;

/// Returns the attributes that identify a destination.
pub(crate) fn destination_key(key: &DestinationKey) -> Vec<DefaultNla> {
    vec![
        address(ADDRESS, key.address),
        nla(PORT, &key.port.to_be_bytes()),
        nla(FAMILY, &family_number(key.family()).to_ne_bytes()),
    ]
}

/// Returns all attributes of a destination. The kernel needs the whole destination in a change, too.
pub(crate) fn destination(destination: &Destination) -> Vec<DefaultNla> {
    let forwarding = match destination.forwarding {
        Forwarding::Nat => NAT,
        Forwarding::Local => LOCAL,
        Forwarding::Tunnel(_) => TUNNEL,
        Forwarding::Direct => DIRECT,
        Forwarding::Bypass => BYPASS,
    };
    let mut attributes = destination_key(&destination.key);
    let mut number = |kind, value: u32| attributes.push(nla(kind, &value.to_ne_bytes()));
    number(FORWARDING, forwarding);
    number(WEIGHT, destination.weight);
    number(UPPER, destination.upper_threshold);
    number(LOWER, destination.lower_threshold);
    if let Forwarding::Tunnel(tunnel) = destination.forwarding {
        let (kind, port, flags) = match tunnel {
            Tunnel::Ipip => (0u8, 0, TunnelFlags::NoChecksum),
            Tunnel::Gue { port, flags } => (1, port, flags),
            Tunnel::Gre { flags } => (2, 0, flags),
        };
        attributes.push(nla(TUNNEL_TYPE, &[kind]));
        attributes.push(nla(TUNNEL_PORT, &port.to_be_bytes()));
        attributes.push(nla(TUNNEL_FLAGS, &flag_bits(flags).to_ne_bytes()));
    }
    attributes
}

fn flag_bits(flags: TunnelFlags) -> u16 {
    match flags {
        TunnelFlags::NoChecksum => 0,
        TunnelFlags::Checksum => 1,
        TunnelFlags::RemoteChecksum => 2,
    }
}

pub(super) fn parse(attributes: &Attributes, default: Family) -> Result<DestinationState, ErrorKind> {
    let family = match attributes.number(FAMILY) {
        None | Some(0) => default,
        Some(number) => family(number).ok_or_else(|| missing("family"))?,
    };
    let key = DestinationKey {
        address: attributes.address(ADDRESS, family)?,
        port: attributes.port(PORT).ok_or_else(|| missing("port"))?,
    };
    let number = |kind| attributes.number::<u32>(kind).unwrap_or_default();
    let destination = Destination {
        key,
        forwarding: forwarding(attributes)?,
        weight: attributes.required(WEIGHT, "weight")?,
        upper_threshold: number(UPPER),
        lower_threshold: number(LOWER),
    };
    Ok(DestinationState {
        destination,
        active: number(ACTIVE),
        inactive: number(INACTIVE),
        persistent: number(PERSISTENT),
        statistics: statistics::parse(attributes, STATS64, STATS),
    })
}

fn forwarding(attributes: &Attributes) -> Result<Forwarding, ErrorKind> {
    let number: u32 = attributes.required(FORWARDING, "forwarding method")?;
    Ok(match number & FORWARDING_MASK {
        NAT => Forwarding::Nat,
        LOCAL => Forwarding::Local,
        DIRECT => Forwarding::Direct,
        BYPASS => Forwarding::Bypass,
        TUNNEL => Forwarding::Tunnel(tunnel(attributes)?),
        _ => return Err(missing("forwarding method")),
    })
}

fn tunnel(attributes: &Attributes) -> Result<Tunnel, ErrorKind> {
    let flags = match attributes.number::<u16>(TUNNEL_FLAGS).unwrap_or_default() {
        flags if flags & 2 != 0 => TunnelFlags::RemoteChecksum,
        flags if flags & 1 != 0 => TunnelFlags::Checksum,
        _ => TunnelFlags::NoChecksum,
    };
    match attributes.number::<u8>(TUNNEL_TYPE).unwrap_or_default() {
        0 => Ok(Tunnel::Ipip),
        1 => Ok(Tunnel::Gue { port: attributes.port(TUNNEL_PORT).unwrap_or_default(), flags }),
        2 => Ok(Tunnel::Gre { flags }),
        _ => Err(missing("tunnel type")),
    }
}
