//! Relayed connections as records of messages, with their descriptors.

use evener_core::{Endpoint, Time};
use evener_proxy::{PassedDirection, PassedPipe, PassedRelay};
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Maximum number of descriptors of a relay: two sockets, and a pipe for each direction.
pub(super) const DESCRIPTORS_OF_RELAY: usize = 6;

/// A relayed connection: its descriptors are the sockets to the client and to the server, and the two ends of a pipe
/// for each direction with bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayRecord {
    service: String,
    pool: String,
    server: String,
    address: String,
    client: IpAddr,
    /// Time of the last byte that moved, in nanoseconds since the origin.
    active_at: u64,
    /// Bytes in both directions.
    relayed: u64,
    from_client: DirectionRecord,
    from_server: DirectionRecord,
}

/// One direction of a relayed connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DirectionRecord {
    /// The source has ended: 0 in order, or with this error number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    end: Option<i32>,
    /// The end was passed to the sink.
    done: bool,
    /// The sink is closed.
    discarding: bool,
    /// Number of bytes in the pipe.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    piped: Option<usize>,
}

/// Takes a relay apart: its record, and its descriptors in the order of the record.
pub(super) fn apart(relay: PassedRelay) -> (RelayRecord, Vec<OwnedFd>) {
    let mut descriptors: Vec<OwnedFd> = relay.sockets.into();
    let mut direction = |passed: PassedDirection| {
        let PassedDirection { end, is_done, is_discarding, pipe } = passed;
        let piped = pipe.map(|PassedPipe { ends, bytes }| {
            descriptors.extend(ends);
            bytes
        });
        DirectionRecord { end, done: is_done, discarding: is_discarding, piped }
    };
    let (from_client, from_server) = (direction(relay.from_client), direction(relay.from_server));
    let record = RelayRecord {
        service: relay.service.to_string(),
        pool: relay.pool.to_string(),
        server: relay.server.to_string(),
        address: relay.target.to_string(),
        client: relay.client,
        active_at: relay.active_at.as_nanos(),
        relayed: relay.relayed,
        from_client,
        from_server,
    };
    (record, descriptors)
}

/// Puts a relay together. Returns `None` if descriptors are missing, or the address is malformed.
pub(super) fn together(
    record: RelayRecord,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Option<PassedRelay> {
    let mut pair = || Some([descriptors.next()?, descriptors.next()?]);
    let sockets = pair()?;
    let mut direction = |record: DirectionRecord| {
        let DirectionRecord { end, done, discarding, piped } = record;
        let pipe = match piped {
            Some(bytes) => Some(PassedPipe { ends: pair()?, bytes }),
            None => None,
        };
        Some(PassedDirection { end, is_done: done, is_discarding: discarding, pipe })
    };
    let (from_client, from_server) = (direction(record.from_client)?, direction(record.from_server)?);
    let target = record.address.parse::<Endpoint>().ok()?.target()?;
    Some(PassedRelay {
        service: record.service.as_str().into(),
        pool: record.pool.as_str().into(),
        server: record.server.as_str().into(),
        target,
        client: record.client,
        active_at: Time::from_nanos(record.active_at),
        relayed: record.relayed,
        sockets,
        from_client,
        from_server,
    })
}
