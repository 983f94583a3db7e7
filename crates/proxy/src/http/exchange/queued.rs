//! Exchanges in the queue of their pool.

use super::Reach;
use crate::context::Context;
use crate::context::keys::ExchangeKey;
use crate::context::pool_queue::Waiter;
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::service::{note_no_server, note_retry, pool_queue};
use evener_core::reason::Reason;
use evener_core::snapshot::{NoServer, Snapshot};

impl Shared {
    /// Puts an exchange into the queue of its pool. Returns false if the pool has no queue or the queue is
    /// full.
    pub(super) fn enter_queue(
        &mut self,
        cx: &mut Context,
        client: &Client,
        exchange_key: ExchangeKey,
        snapshot: &Snapshot,
    ) -> bool {
        let entered = pool_queue::enter(cx, &client.service, snapshot, Waiter::Exchange(exchange_key));
        let Some((queued, timeout)) = entered else { return false };
        let exchange = &mut self.exchanges[exchange_key];
        (exchange.reach, exchange.queued) = (Reach::Queued, Some(queued));
        self.exchange_timers.set(exchange_key, cx.now + timeout);
        true
    }

    /// Assigns a server to a queued exchange, or refuses the exchange if no server is usable. Returns false if
    /// all usable servers are full, so that the exchange stays in the queue.
    pub(in crate::http) fn serve_queued(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) -> bool {
        let exchange = &mut self.exchanges[exchange_key];
        let request = exchange.request(cx.now);
        let snapshot = exchange.backend().pool.load_full();
        let limits = exchange.settings.options.attempt_limits();
        exchange.attempt.begin_anew();
        let picked = exchange.attempt.next(&snapshot, &request, &limits, &mut cx.random);
        note_retry(cx, &client.service, &snapshot.pool, &picked);
        if matches!(picked, Err(NoServer::Full)) {
            return false;
        }
        self.leave_queue(cx, client, exchange_key);
        match picked {
            Ok(choice) => self.take_server(cx, client, exchange_key, &snapshot.pool, choice),
            Err(reason) => self.refuse(cx, client, exchange_key, reason),
        }
        true
    }

    fn leave_queue(&mut self, cx: &mut Context, client: &mut Client, exchange_key: ExchangeKey) {
        self.exchange_timers.clear(exchange_key);
        let exchange = &mut self.exchanges[exchange_key];
        if let Some(queued) = exchange.queued.take() {
            cx.queues.remove(&queued);
            exchange.reach = Reach::Wanted;
            // The client's body was not read while the exchange was queued, so the client does not count as
            // idle.
            client.active_at = cx.now;
        }
    }

    /// Fails an exchange that was queued for too long.
    pub(super) fn time_out_in_queue(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
    ) {
        client.service.live.counters.of(cx.id).queue_failures.timeout.one();
        self.leave_queue(cx, client, exchange_key);
        self.exchanges[exchange_key].reach = Reach::Failed(Reason::QueueTimeout);
        note_no_server(cx, &client.service, NoServer::Full);
    }
}
