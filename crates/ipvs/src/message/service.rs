//! Attributes of a service.

use super::attributes::{Attributes, address, family, family_number, missing, nla, text};
use super::statistics;
use crate::error::ErrorKind;
use crate::model::{Family, Flags, Persistence, Protocol, Service, ServiceKey, ServiceState};
use netlink_packet_core::DefaultNla;
use std::time::Duration;

const FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const FWMARK: u16 = 5;
const SCHEDULER: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATS: u16 = 10;
const ENGINE: u16 = 11;
const STATS64: u16 = 12;

const PERSISTENT: u32 = 1;
const ONE_PACKET: u32 = 4;
const SCHEDULER_1: u32 = 8;
const SCHEDULER_2: u32 = 16;
const SCHEDULER_3: u32 = 32;

fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol(number: u16) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol_number(*protocol) == number)
}

/// Returns the attributes that identify a service.
pub(crate) fn service_key(key: &ServiceKey) -> Vec<DefaultNla> {
    let mut attributes = vec![nla(FAMILY, &family_number(key.family()).to_ne_bytes())];
    match key {
        ServiceKey::Address { protocol, address: virtual_address, port } => {
            attributes.push(nla(PROTOCOL, &protocol_number(*protocol).to_ne_bytes()));
            attributes.push(address(ADDRESS, *virtual_address));
            attributes.push(nla(PORT, &port.to_be_bytes()));
        }
        ServiceKey::Fwmark { mark, .. } => attributes.push(nla(FWMARK, &mark.to_ne_bytes())),
    }
    attributes
}

/// Returns all attributes of a service. The kernel needs the whole service in a change, too.
pub(crate) fn service(service: &Service) -> Result<Vec<DefaultNla>, ErrorKind> {
    let family = service.key.family();
    let persistence = service.persistence.as_ref();
    let prefix = persistence.map_or(family.bits(), |persistence| persistence.prefix);
    if prefix > family.bits() {
        return Err(ErrorKind::Invalid("the netmask is longer than an address"));
    }
    let seconds = persistence.map_or(0, |persistence| persistence.timeout.as_secs());
    let seconds = u32::try_from(seconds).map_err(|_| ErrorKind::Invalid("the timeout is too long"))?;
    let mut attributes = service_key(&service.key);
    attributes.push(text(SCHEDULER, &service.scheduler));
    let flags = flag_bits(service.flags) | if persistence.is_some() { PERSISTENT } else { 0 };
    attributes.push(nla(FLAGS, &[flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat()));
    attributes.push(nla(TIMEOUT, &seconds.to_ne_bytes()));
    attributes.push(nla(NETMASK, &netmask(family, prefix)));
    if let Some(engine) = persistence.and_then(|persistence| persistence.engine.as_deref()) {
        attributes.push(text(ENGINE, engine));
    }
    Ok(attributes)
}

/// A mask in network order for IPv4, and the length of the prefix for IPv6.
fn netmask(family: Family, prefix: u8) -> [u8; 4] {
    match family {
        Family::V4 => u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or_default().to_be_bytes(),
        Family::V6 => u32::from(prefix).to_ne_bytes(),
    }
}

fn flag_bits(flags: Flags) -> u32 {
    [
        (flags.one_packet, ONE_PACKET),
        (flags.scheduler_1, SCHEDULER_1),
        (flags.scheduler_2, SCHEDULER_2),
        (flags.scheduler_3, SCHEDULER_3),
    ]
    .into_iter()
    .filter(|(is_set, _)| *is_set)
    .map(|(_, bit)| bit)
    .sum()
}

pub(super) fn parse(attributes: &Attributes) -> Result<ServiceState, ErrorKind> {
    let family = family(attributes.required(FAMILY, "family")?).ok_or_else(|| missing("family"))?;
    let key = match attributes.number::<u32>(FWMARK) {
        Some(mark) if mark != 0 => ServiceKey::Fwmark { mark, family },
        _ => ServiceKey::Address {
            protocol: protocol(attributes.required(PROTOCOL, "protocol")?)
                .ok_or_else(|| missing("protocol"))?,
            address: attributes.address(ADDRESS, family)?,
            port: attributes.port(PORT).ok_or_else(|| missing("port"))?,
        },
    };
    let scheduler = attributes.text(SCHEDULER).unwrap_or_default();
    let flags = attributes.value(FLAGS).unwrap_or_default();
    let flags = flags.first_chunk().copied().map_or(0, u32::from_ne_bytes);
    let has = |bit| flags & bit != 0;
    let persistence = has(PERSISTENT).then(|| Persistence {
        timeout: Duration::from_secs(attributes.integer(TIMEOUT).unwrap_or_default()),
        prefix: prefix(attributes, family),
        engine: attributes.text(ENGINE).filter(|engine| !engine.is_empty()),
    });
    let flags = Flags {
        one_packet: has(ONE_PACKET),
        scheduler_1: has(SCHEDULER_1),
        scheduler_2: has(SCHEDULER_2),
        scheduler_3: has(SCHEDULER_3),
    };
    let statistics = statistics::parse(attributes, STATS64, STATS);
    Ok(ServiceState { service: Service { key, scheduler, flags, persistence }, statistics })
}

fn prefix(attributes: &Attributes, family: Family) -> u8 {
    let value = attributes.value(NETMASK).unwrap_or_default();
    let Some(bytes) = value.first_chunk().copied() else { return family.bits() };
    let length = match family {
        Family::V4 => u32::from_be_bytes(bytes).leading_ones(),
        Family::V6 => u32::from_ne_bytes(bytes),
    };
    u8::try_from(length).unwrap_or(u8::MAX).min(family.bits())
}
