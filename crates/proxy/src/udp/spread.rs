//! The datagrams of a client for several servers in turn: it has a flow to each that it was given to, so that what they answer
//! finds its way back, and the next turn needs no new socket.

use super::party::{Party, Pools, party_of};
use super::{Unplaced, Wish, begin, begin_at, end, note_no_server, slot_of};
use crate::worker::Worker;
use evener_core::ServerId;
use evener_core::attempt::{Attempt, Cost};
use evener_core::flow::FlowKey;
use evener_core::snapshot::Request;

/// The slot of the flow that the next datagram of a client takes, so many of which make a turn. `None` when it is dropped.
pub(super) fn flow_of(
    worker: &mut Worker,
    index: usize,
    (key, ttl): (FlowKey, Option<u8>),
    datagrams: u32,
    pools: &Pools<'_>,
) -> Option<u32> {
    let listener = &mut worker.udp.listeners[index];
    let last = listener.turns.last(&key);
    if let Some(server) = listener.turns.datagram(&key, worker.cx.now)
        && let Some(slot) = lane(worker, index, key, server, pools)
    {
        return Some(slot);
    }
    let client = key.client.ip();
    let party = party_of(worker, index, client, pools, last.is_none())?;
    let request = Request::of(client, worker.cx.now);
    let choice = match pools.of(party).pick(&request, &[], &mut worker.cx.random) {
        Ok(choice) => choice,
        Err(reason) => {
            // All may be full of flows, of which the client has one.
            let slot = last.and_then(|server| lane(worker, index, key, server, pools));
            return slot.or_else(|| {
                note_no_server(worker, index, reason);
                slot_of(worker, index, Err(Unplaced::NoServer))
            });
        }
    };
    let (server, why) = (choice.server.id, choice.why);
    worker.udp.listeners[index].turns.begin(key, server, datagrams, worker.cx.now);
    if let Some(slot) = lane(worker, index, key, server, pools) {
        return Some(slot);
    }
    let key = FlowKey { lane: Some(server), ..key };
    let snapshot = pools.of(party);
    let wish = Wish { key, ttl, party, identity: None, settings: pools.settings, snapshot };
    let begun = begin_at(worker, index, &wish, choice).unwrap_or_else(|| {
        let mut attempt = Attempt::new();
        attempt.failed(server, why, Cost::Quick);
        begin(worker, index, &wish, &mut attempt)
    });
    slot_of(worker, index, begun)
}

/// The slot of a client's flow to a server, if there is one and it may go on.
fn lane(worker: &mut Worker, index: usize, key: FlowKey, server: ServerId, pools: &Pools<'_>) -> Option<u32> {
    let key = FlowKey { lane: Some(server), ..key };
    let flow = worker.udp.listeners[index].flows.datagram(&key, worker.cx.now)?;
    let socket = worker.udp.flows.get(flow.slot as usize)?;
    let is_refused = pools.refused.is_some() && socket.party == Party::Refused;
    let snapshot = pools.of(if is_refused { Party::Refused } else { Party::Admitted });
    let goes_on = flow.generation == snapshot.generation
        || snapshot.keeps_flow(flow.server, &socket.choice.server.target, key.client.ip());
    if !goes_on {
        end(worker, index, &key);
        return None;
    }
    flow.generation = snapshot.generation;
    Some(flow.slot)
}
