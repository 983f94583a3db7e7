//! Attributes of a synchronisation daemon.

use super::attributes::{Attributes, missing, nla, text};
use super::{DAEMON, Message};
use crate::error::ErrorKind;
use crate::model::{Daemon, DaemonRole, Family};
use netlink_packet_core::DefaultNla;
use std::net::IpAddr;

const STATE: u16 = 1;
const INTERFACE: u16 = 2;
const SYNC_ID: u16 = 3;
const LENGTH_MAX: u16 = 4;
const GROUP: u16 = 5;
const GROUP6: u16 = 6;
const PORT: u16 = 7;
const TTL: u16 = 8;

/// Returns the attributes of a daemon.
pub(crate) fn daemon(daemon: &Daemon) -> Vec<DefaultNla> {
    let state: u32 = match daemon.role {
        DaemonRole::Master => 1,
        DaemonRole::Backup => 2,
    };
    let mut attributes = vec![
        nla(STATE, &state.to_ne_bytes()),
        text(INTERFACE, &daemon.interface),
        nla(SYNC_ID, &daemon.sync_id.to_ne_bytes()),
    ];
    attributes.extend(daemon.length_max.map(|length| nla(LENGTH_MAX, &length.to_ne_bytes())));
    attributes.extend(daemon.group.map(|group| match group {
        IpAddr::V4(group) => nla(GROUP, &group.octets()),
        IpAddr::V6(group) => nla(GROUP6, &group.octets()),
    }));
    attributes.extend(daemon.port.map(|port| nla(PORT, &port.to_ne_bytes())));
    attributes.extend(daemon.ttl.map(|ttl| nla(TTL, &[ttl])));
    attributes
}

/// Reads the daemon of a response.
pub(crate) fn parse_daemon(message: &Message) -> Result<Daemon, ErrorKind> {
    let attributes: Attributes = message.attributes().nested(DAEMON)?;
    let role = match attributes.required::<u32>(STATE, "state")? {
        1 => DaemonRole::Master,
        2 => DaemonRole::Backup,
        _ => return Err(missing("state")),
    };
    let group =
        attributes.address(GROUP6, Family::V6).or_else(|_| attributes.address(GROUP, Family::V4)).ok();
    Ok(Daemon {
        role,
        interface: attributes.text(INTERFACE).unwrap_or_default(),
        sync_id: attributes.number(SYNC_ID).unwrap_or_default(),
        length_max: attributes.number(LENGTH_MAX),
        group,
        port: attributes.number(PORT),
        ttl: attributes.number(TTL),
    })
}
