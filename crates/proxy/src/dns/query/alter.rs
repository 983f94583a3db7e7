//! What servers are told beside the question: the client's network, its ends by the PROXY protocol, and how many instances
//! passed the question on, where it may go round.

use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::dns::query::{Query, spec};
use crate::dns::{Dns, Origin};
use crate::service::Settings;
use crate::service::hops::{is_crowded_by_queries, may_go_round};
use evener_core::snapshot::Entry;
use evener_core::spec::ClientSubnetSpec;
use evener_core::wire::dns::{self as wire, Added};
use evener_core::wire::proxy::{self, Extras, Transport};
use std::net::IpAddr;

/// One in so many questions that may go round is marked. One that does is soon; where servers and clients are one machine,
/// others do not pay for it.
const MARK_ONE_IN: usize = 16;

/// What a server gets instead of the message.
pub(in crate::dns) struct Altered {
    /// What is sent.
    bytes: Vec<u8>,
    /// Where the message begins in it, after a PROXY header.
    starts: usize,
    added: Option<Added>,
}

impl Query {
    /// What was added to its message for the server.
    pub(super) fn added(&self) -> Option<Added> {
        self.altered.as_ref().and_then(|altered| altered.added)
    }

    /// What its server gets over UDP.
    pub(in crate::dns) fn datagram(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes)
    }

    /// What its server gets over a stream.
    pub(in crate::dns) fn framed(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes[altered.starts..])
    }

    /// It goes to its server by this ID.
    pub(super) fn call(&mut self, id: u16) {
        wire::set_id(&mut self.message, id);
        if let Some(altered) = &mut self.altered {
            wire::set_id(&mut altered.bytes[altered.starts..], id);
        }
    }

    /// The ID that its server has.
    pub(super) fn called(&self) -> u16 {
        wire::id(&self.message)
    }
}

/// Whether a question says how many instances passed it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hops {
    Marked,
    Unmarked,
}

impl Dns {
    /// Adds what servers are told of the client.
    pub(super) fn alter(&mut self, settings: &Settings, key: QueryKey) {
        self.alter_with(settings, key, Hops::Unmarked);
    }

    /// One of many questions from where its server is may be one that the server passed on: then it says how often that happened. What goes
    /// with a PROXY header says it there.
    pub(super) fn mark(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey, server: &Entry) {
        let query = &self.queries[key];
        let most = spec(settings).map_or(u32::MAX, |spec| spec.outstanding_max.div_ceil(cx.workers as u32));
        if is_crowded_by_queries(self.services[query.requester.service].in_flight, most)
            && !query.view.is_transfer()
            && may_go_round(query.requester.client.ip(), &server.target)
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

/// The client's address, and how much of it is told.
fn subnet_of(client: IpAddr, subnet: ClientSubnetSpec) -> (IpAddr, u8) {
    let client = client.to_canonical();
    (client, if client.is_ipv4() { subnet.v4 } else { subnet.v6 })
}
