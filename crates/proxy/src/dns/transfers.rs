//! Transfers of zones by one client: so many at once, each on a stream of its own. Further ones wait for their turn in the
//! order in which they came; `pipeline_max` bounds them.

use super::query::{Origin, Query, Waits, retire};
use super::{client, twins};
use crate::service::Settings;
use crate::worker::Worker;
use std::collections::VecDeque;

/// So many transfers of one client are under way at once.
const UNDER_WAY_MAX: usize = 8;

/// The transfers of a client.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    under_way: usize,
    /// Queries whose turn has not come.
    waiting: VecDeque<usize>,
}

/// Gives a query to a server; a transfer when its turn comes.
pub(super) fn set_out(worker: &mut Worker, settings: &Settings, slot: usize) {
    let query = &worker.dns.queries[slot];
    if let Origin::Stream { client, number } = query.asker.origin
        && query.view.is_transfer()
        && let Some(client) = client::find(worker, client, number)
    {
        if client.transfers.under_way >= UNDER_WAY_MAX {
            client.transfers.waiting.push_back(slot);
            worker.dns.queries[slot].waits = Waits::ForTurn;
            return;
        }
        client.transfers.under_way += 1;
        worker.dns.queries[slot].has_turn = true;
    }
    twins::set_out(worker, settings, slot);
}

/// A query is over. Whose turn comes is looked at when its client is.
pub(super) fn on_over(worker: &mut Worker, query: &Query) {
    if query.has_turn
        && let Origin::Stream { client, number } = query.asker.origin
        && let Some(client) = client::find(worker, client, number)
    {
        client.transfers.under_way -= 1;
    }
}

/// Lets those of a client begin whose turn came.
pub(super) fn begin_next(worker: &mut Worker, settings: &Settings, index: usize) {
    // One that fails at once makes room for the next.
    while let Some(client) = worker.dns.clients.get_mut(index)
        && client.transfers.under_way < UNDER_WAY_MAX
        && let Some(slot) = client.transfers.waiting.pop_front()
    {
        client.transfers.under_way += 1;
        let query = &mut worker.dns.queries[slot];
        (query.waits, query.has_turn) = (Waits::Nowhere, true);
        twins::set_out(worker, settings, slot);
    }
}

/// The client is gone: what waits for its turn is over.
pub(super) fn abandon(worker: &mut Worker, index: usize) {
    for slot in std::mem::take(&mut worker.dns.clients[index].transfers.waiting) {
        let query = retire(worker, slot);
        worker.dns.give_back(query.message);
    }
}
