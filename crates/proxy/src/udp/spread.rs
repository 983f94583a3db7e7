//! The datagrams of a client for several servers in turn: it has a flow to each that it was given to, so that what they answer
//! finds its way back, and the next turn needs no new socket.

use super::Udp;
use super::flow::{Unplaced, Wish, socket_of};
use super::party::{Party, Pools};
use crate::context::Context;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey};
use evener_core::ServerId;
use evener_core::attempt::{Attempt, Cost};
use evener_core::flow::FlowKey;
use evener_core::snapshot::Request;

impl Udp {
    /// The slot of the flow that the next datagram of a client takes, so many of which make a turn. `None` when it is dropped.
    pub(super) fn spread_flow_of(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        (key, ttl): (FlowKey, Option<u8>),
        datagrams: u32,
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let listener = &mut self.listeners[index];
        let last = listener.turns.last(&key);
        if let Some(server) = listener.turns.datagram(&key, cx.now)
            && let Some(slot) = self.lane(cx, index, key, server, pools)
        {
            return Some(slot);
        }
        let client = key.client.ip();
        let party = self.party_of(cx, index, client, pools, last.is_none())?;
        let request = Request::of(client, cx.now);
        let choice = match pools.of(party).pick(&request, &[], &mut cx.random) {
            Ok(choice) => choice,
            Err(reason) => {
                // All may be full of flows, of which the client has one.
                let slot = last.and_then(|server| self.lane(cx, index, key, server, pools));
                return slot.or_else(|| {
                    self.note_no_server(cx, index, reason);
                    self.slot_of(cx, index, Err(Unplaced::NoServer))
                });
            }
        };
        let (server, why) = (choice.server.id, choice.why);
        self.listeners[index].turns.begin(key, server, datagrams, cx.now);
        if let Some(slot) = self.lane(cx, index, key, server, pools) {
            return Some(slot);
        }
        let key = FlowKey { lane: Some(server), ..key };
        let snapshot = pools.of(party);
        let wish = Wish { key, ttl, party, identity: None, settings: pools.settings, snapshot };
        let begun = self.begin_at(cx, index, &wish, choice).unwrap_or_else(|| {
            let mut attempt = Attempt::new();
            attempt.failed(server, why, Cost::Quick);
            self.begin(cx, index, &wish, &mut attempt)
        });
        self.slot_of(cx, index, begun)
    }

    /// The slot of a client's flow to a server, if there is one and it may go on.
    fn lane(
        &mut self,
        cx: &mut Context,
        index: DatagramListenerKey,
        key: FlowKey,
        server: ServerId,
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let key = FlowKey { lane: Some(server), ..key };
        let flow = self.listeners[index].flows.datagram(&key, cx.now)?;
        let socket = self.flows.get(socket_of(flow))?;
        let is_refused = pools.refused.is_some() && socket.party == Party::Refused;
        let snapshot = pools.of(if is_refused { Party::Refused } else { Party::Admitted });
        let goes_on = flow.generation == snapshot.generation
            || snapshot.keeps_flow(flow.server, &socket.choice.server.target, key.client.ip());
        if !goes_on {
            self.end(index, &key);
            return None;
        }
        flow.generation = snapshot.generation;
        Some(socket_of(flow))
    }
}
