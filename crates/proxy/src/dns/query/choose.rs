//! The choice of a server: the pool's choice, except for servers known to refuse the transport of the query.

use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::dns::Dns;
use crate::dns::query::Query;
use crate::service::note_retry;
use evener_core::attempt::AttemptLimits;
use evener_core::snapshot::{Choice, Entry, NoServer, Request, Snapshot};

impl Query {
    /// Returns the limits of the cost of failed servers.
    pub(super) fn limits(&self) -> AttemptLimits {
        // The response at hand is better than waiting for a server that is down.
        AttemptLimits { last_resorts: self.declined.is_none(), ..AttemptLimits::NONE }
    }
}

impl Dns {
    /// Picks a server that was not tried. Servers that refuse the transport of the query come last.
    pub(super) fn choose_server(
        &mut self,
        cx: &mut Context,
        snapshot: &Snapshot,
        key: QueryKey,
    ) -> Result<Choice, NoServer> {
        let limits = self.queries[key].limits();
        let Query { requester, attempt, .. } = &mut self.queries[key];
        let by = requester.origin.transport();
        let request = Request::of(requester.client.ip(), cx.now);
        let suits = |server: &Entry| !server.live.transports.refuses_only(by, request.now);
        let picked = attempt.next_suitable(snapshot, &request, &limits, &mut cx.random, suits);
        note_retry(cx, &self.services[requester.service].service, &snapshot.pool, &picked);
        picked
    }
}
