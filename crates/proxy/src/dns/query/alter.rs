//! Changes of a query for its server: the client subnet, the PROXY header, and the number of instances that
//! passed the query on, if the query may be in a loop.

use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::dns::query::{Query, spec};
use crate::dns::{Dns, Origin};
use crate::service::Settings;
use crate::service::hops::{is_crowded_by_queries, may_loop};
use evener_core::snapshot::Entry;
use evener_core::spec::ClientSubnetSpec;
use evener_core::wire::dns::{self as wire, Added};
use evener_core::wire::proxy::{self, Extras, Transport};
use std::net::IpAddr;

/// One in this many queries that may be in a loop is marked. A looping query passes often, so it is marked
/// soon; most other queries from the same machine stay unchanged and cheap.
const MARK_ONE_IN: usize = 16;

/// The message for the server, if it differs from the client's.
pub(in crate::dns) struct Altered {
    /// The bytes to send.
    bytes: Vec<u8>,
    /// Offset of the message, after a PROXY header.
    starts: usize,
    added: Option<Added>,
}

impl Query {
    /// Returns the options that were added for the server.
    pub(super) fn added(&self) -> Option<Added> {
        self.altered.as_ref().and_then(|altered| altered.added)
    }

    /// Returns the bytes for its server over UDP.
    pub(in crate::dns) fn datagram(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes)
    }

    /// Returns the message for its server over a stream.
    pub(in crate::dns) fn framed(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes[altered.starts..])
    }

    /// Sets the ID for the server.
    pub(super) fn call(&mut self, id: u16) {
        wire::set_id(&mut self.message, id);
        if let Some(altered) = &mut self.altered {
            wire::set_id(&mut altered.bytes[altered.starts..], id);
        }
    }

    /// Returns the ID for the server.
    pub(super) fn called(&self) -> u16 {
        wire::id(&self.message)
    }
}

/// Choice whether the option that counts instances is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hops {
    Marked,
    Unmarked,
}

impl Dns {
    /// Adds the information about the client for the server.
    pub(super) fn alter(&mut self, settings: &Settings, key: QueryKey) {
        self.alter_with(settings, key, Hops::Unmarked);
    }

    /// Adds the number of instances to one in [`MARK_ONE_IN`] queries whose client has the address of the
    /// server, because such queries may come from the server. A PROXY header already contains the number.
    pub(super) fn mark(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey, server: &Entry) {
        let query = &self.queries[key];
        let most = spec(settings).map_or(u32::MAX, |spec| cx.share(spec.outstanding_max));
        if is_crowded_by_queries(self.services[query.requester.service].in_flight, most)
            && !query.view.is_transfer()
            && may_loop(query.requester.client.ip(), &server.target)
            && query.view.hops(&query.message) == 0
            && !query.requester.is_introduced(settings)
            && cx.random.below(MARK_ONE_IN) == 0
        {
            self.alter_with(settings, key, Hops::Marked);
        }
    }

    fn alter_with(&mut self, settings: &Settings, key: QueryKey, hops: Hops) {
        let query = &mut self.queries[key];
        let subnet = spec(settings).and_then(|spec| spec.client_subnet);
        let subnet = subnet.filter(|_| !query.view.is_transfer());
        let is_introduced = query.requester.is_introduced(settings);
        if subnet.is_none() && !is_introduced && hops == Hops::Unmarked {
            return;
        }
        let subnet = subnet.map(|subnet| subnet_of(query.requester.client.ip(), subnet));
        let mut bytes = Vec::new();
        let added = query.view.with_options(&query.message, subnet, hops == Hops::Marked, &mut bytes);
        if added.is_none() {
            bytes.extend_from_slice(&query.message);
        }
        let mut starts = 0;
        if is_introduced && matches!(query.requester.origin, Origin::Datagram(_)) {
            let mut header = Vec::new();
            let extras = Extras { hops: query.requester.hops, ..Extras::default() };
            proxy::emit_v2(query.requester.ends(), Transport::Datagram, &extras, &mut header);
            starts = header.len();
            header.extend_from_slice(&bytes);
            bytes = header;
        }
        query.altered = Some(Altered { bytes, starts, added });
    }
}

/// Returns the client's address, and the length of the prefix that the server gets.
fn subnet_of(client: IpAddr, subnet: ClientSubnetSpec) -> (IpAddr, u8) {
    let client = client.to_canonical();
    (client, if client.is_ipv4() { subnet.v4 } else { subnet.v6 })
}
