//! The choice of a server: the pool's choice, except for servers known to refuse the transport of the query.

use crate::context::Context;
use crate::context::keys::QueryKey;
use crate::dns::Dns;
use crate::dns::query::Query;
use evener_core::attempt::AttemptLimits;
use evener_core::snapshot::{Choice, NoServer, Request, Snapshot, Why};

/// Maximum number of servers that are skipped because they refuse a transport.
const PASSED_OVER_MAX: usize = 16;

impl Dns {
    /// Picks a server that was not tried. Servers that refuse the transport of the query come last.
    pub(super) fn choose_server(
        &mut self,
        cx: &mut Context,
        snapshot: &Snapshot,
        key: QueryKey,
    ) -> Result<Choice, NoServer> {
        let Query { requester, attempt, declined, .. } = &mut self.queries[key];
        let by = requester.origin.transport();
        let request = Request::of(requester.client.ip(), cx.now);
        let refuses = |choice: &Choice| choice.server.live.transports.refuses_only(by, request.now);
        let first = attempt.next(snapshot, &request, &AttemptLimits::NONE, &mut cx.random)?;
        if declined.is_some() && first.why == Why::LastResort {
            // The response at hand is better than waiting for a server that is down.
            return Err(NoServer::Failed);
        }
        if !refuses(&first) {
            return Ok(first);
        }
        let mut others = attempt.clone();
        others.pass_over(first.server.id);
        for _ in 0..PASSED_OVER_MAX {
            match others.next(snapshot, &request, &AttemptLimits::NONE, &mut cx.random) {
                Ok(choice) if refuses(&choice) => others.pass_over(choice.server.id),
                Ok(choice) => return Ok(choice),
                Err(_) => break,
            }
        }
        Ok(first)
    }
}
