//! Zone transfers of one client: a limited number at the same time, each on its own stream. Further transfers
//! wait in the order of their arrival; `pipeline_max` bounds their number.

use crate::context::Context;
use crate::context::keys::{DnsClientKey, QueryKey};
use crate::dns::query::{Query, Waits};
use crate::dns::{Dns, Origin};
use crate::service::Settings;
use std::collections::VecDeque;

/// Maximum number of simultaneous transfers of a client.
const RUNNING_MAX: usize = 8;

/// The transfers of a client.
#[derive(Debug, Default)]
pub(in crate::dns) struct Transfers {
    running: usize,
    /// Transfers that wait for the end of others.
    waiting: VecDeque<QueryKey>,
}

impl Dns {
    /// Starts a query. A transfer may have to wait for other transfers of its client.
    pub(super) fn start(&mut self, cx: &mut Context, settings: &Settings, key: QueryKey) {
        let query = &self.queries[key];
        if let Origin::Stream(client) = query.requester.origin
            && query.view.is_transfer()
            && let Some(client) = self.open_client(client)
        {
            if client.transfers().running >= RUNNING_MAX {
                client.transfers().waiting.push_back(key);
                self.queries[key].waits = Waits::ForTurn;
                return;
            }
            client.transfers().running += 1;
            self.queries[key].has_turn = true;
        }
        self.coalesce_or_dispatch(cx, settings, key);
    }

    /// Ends the transfer of a query. The next transfer begins when the client is handled.
    pub(super) fn end_transfer(&mut self, query: &Query) {
        if query.has_turn
            && let Origin::Stream(client) = query.requester.origin
            && let Some(client) = self.open_client(client)
        {
            client.transfers().running -= 1;
        }
    }

    /// Begins waiting transfers of a client, up to the limit.
    pub(in crate::dns) fn begin_next_transfers(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        client: DnsClientKey,
    ) {
        // A transfer that fails immediately is replaced by the next one.
        while let Some(transfers) = self.clients.get_mut(client).map(|client| client.transfers())
            && transfers.running < RUNNING_MAX
            && let Some(key) = transfers.waiting.pop_front()
        {
            transfers.running += 1;
            let query = &mut self.queries[key];
            (query.waits, query.has_turn) = (Waits::Nowhere, true);
            self.coalesce_or_dispatch(cx, settings, key);
        }
    }

    /// Removes the waiting transfers of a closed client.
    pub(in crate::dns) fn abandon_transfers(&mut self, cx: &mut Context, client: DnsClientKey) {
        for key in std::mem::take(&mut self.clients[client].transfers().waiting) {
            let query = self.retire(cx, key);
            self.give_back(query.message);
        }
    }
}
