//! Flows of datagram services as records of messages, with the descriptors of their sockets.

use evener_core::flow::{FlowKey, Via};
use evener_core::{Endpoint, ServerId, Time};
use evener_proxy::PassedFlow;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A flow. Its descriptor is the socket to its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowRecord {
    /// Number of the listening socket.
    listener: u64,
    client: SocketAddr,
    /// Address that the client sends to, if the listener has several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    local: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    via: Option<ViaRecord>,
    /// The datagrams of the client are spread over several servers.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    spread: bool,
    server: String,
    address: String,
    /// Times in nanoseconds since the origin.
    begun_at: u64,
    used_at: u64,
    responded_at: u64,
}

/// The proxy in front of this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ViaRecord {
    proxy: SocketAddr,
    destination: SocketAddr,
    hops: u8,
}

impl FlowRecord {
    /// Takes a flow apart.
    pub(super) fn apart(flow: PassedFlow) -> (Self, OwnedFd) {
        let FlowKey { client, local, via, lane } = flow.key;
        let record = Self {
            listener: flow.listener,
            client,
            local,
            via: via.map(|Via { proxy, destination, hops }| ViaRecord { proxy, destination, hops }),
            spread: lane.is_some(),
            server: flow.server.to_string(),
            address: flow.target.to_string(),
            begun_at: flow.begun_at.as_nanos(),
            used_at: flow.used_at.as_nanos(),
            responded_at: flow.responded_at.as_nanos(),
        };
        (record, flow.socket)
    }

    /// Puts a flow together. Returns `None` if the address is malformed.
    pub(super) fn together(self, socket: OwnedFd) -> Option<PassedFlow> {
        let via = |record: ViaRecord| {
            let ViaRecord { proxy, destination, hops } = record;
            Via { proxy, destination, hops }
        };
        let key = FlowKey {
            client: self.client,
            local: self.local,
            via: self.via.map(via),
            lane: self.spread.then_some(ServerId(0)),
        };
        Some(PassedFlow {
            listener: self.listener,
            key,
            server: self.server.as_str().into(),
            target: self.address.parse::<Endpoint>().ok()?.target()?,
            begun_at: Time::from_nanos(self.begun_at),
            used_at: Time::from_nanos(self.used_at),
            responded_at: Time::from_nanos(self.responded_at),
            socket,
        })
    }
}
