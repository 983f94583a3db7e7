//! Messages of the netlink family `IPVS`, version 1: attributes to and from the model.

mod attributes;
mod daemon;
mod destination;
mod service;
mod statistics;

pub use attributes::Message;
pub(crate) use attributes::{nested, nla};
pub(crate) use daemon::{daemon, parse_daemon};
pub(crate) use destination::{destination, destination_key};
pub(crate) use service::{service, service_key};

use crate::error::ErrorKind;
use crate::model::{DestinationState, Family, Info, ServiceState, Timeouts};
use std::time::Duration;

/// Commands of the family.
pub(crate) mod command {
    pub(crate) const NEW_SERVICE: u8 = 1;
    pub(crate) const SET_SERVICE: u8 = 2;
    pub(crate) const DELETE_SERVICE: u8 = 3;
    pub(crate) const GET_SERVICE: u8 = 4;
    pub(crate) const NEW_DESTINATION: u8 = 5;
    pub(crate) const SET_DESTINATION: u8 = 6;
    pub(crate) const DELETE_DESTINATION: u8 = 7;
    pub(crate) const GET_DESTINATION: u8 = 8;
    pub(crate) const NEW_DAEMON: u8 = 9;
    pub(crate) const DELETE_DAEMON: u8 = 10;
    pub(crate) const GET_DAEMON: u8 = 11;
    pub(crate) const SET_CONFIG: u8 = 12;
    pub(crate) const GET_CONFIG: u8 = 13;
    pub(crate) const GET_INFO: u8 = 15;
    pub(crate) const ZERO: u8 = 16;
    pub(crate) const FLUSH: u8 = 17;
}

/// Attributes of the top level.
pub(crate) const SERVICE: u16 = 1;
pub(crate) const DESTINATION: u16 = 2;
pub(crate) const DAEMON: u16 = 3;
pub(crate) const TIMEOUT_TCP: u16 = 4;
pub(crate) const TIMEOUT_TCP_FIN: u16 = 5;
pub(crate) const TIMEOUT_UDP: u16 = 6;

const INFO_VERSION: u16 = 1;
const INFO_TABLE_SIZE: u16 = 2;

impl Message {
    /// Reads the service of a response.
    ///
    /// # Errors
    /// The message has no readable service.
    pub fn service(&self) -> Result<ServiceState, ErrorKind> {
        service::parse(&self.attributes().nested(SERVICE)?)
    }

    /// Reads the destination of a response; an old kernel does not report its family, which is then the
    /// service's.
    ///
    /// # Errors
    /// The message has no readable destination.
    pub fn destination(&self, family: Family) -> Result<DestinationState, ErrorKind> {
        destination::parse(&self.attributes().nested(DESTINATION)?, family)
    }

    /// Reads timeouts.
    ///
    /// # Errors
    /// A timeout is missing.
    pub fn timeouts(&self) -> Result<Timeouts, ErrorKind> {
        let attributes = self.attributes();
        let seconds = |kind| attributes.required(kind, "timeout").map(Duration::from_secs);
        Ok(Timeouts {
            tcp: seconds(TIMEOUT_TCP)?,
            tcp_fin: seconds(TIMEOUT_TCP_FIN)?,
            udp: seconds(TIMEOUT_UDP)?,
        })
    }

    /// Reads the properties of the kernel's IPVS.
    ///
    /// # Errors
    /// A property is missing.
    pub fn info(&self) -> Result<Info, ErrorKind> {
        let attributes = self.attributes();
        let version: u32 = attributes.required(INFO_VERSION, "version")?;
        let [_, major, minor, patch] = version.to_be_bytes();
        let connection_table_size = attributes.required(INFO_TABLE_SIZE, "size of the table")?;
        Ok(Info { version: (major, minor, patch), connection_table_size })
    }
}

#[cfg(test)]
mod tests;
