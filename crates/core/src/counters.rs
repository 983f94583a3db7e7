//! What is counted, declared once: each list makes a struct of atomics, the names and the way to add them up.
//!
//! Every worker has a shard of its own, so that counting on the way of a packet shares no cache line with another core.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter of one shard. Only its worker adds, anybody reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. The shard has one writer, so a load and a store are enough.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds one where others than the shard's worker add, too.
    pub fn one_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A set of counters with the names that the log, the API and the metrics use.
pub trait CounterSet: Default + Send + Sync {
    /// The names, in the order of [`CounterSet::values`].
    const NAMES: &'static [&'static str];
    /// The values, in the order of [`CounterSet::NAMES`].
    fn values(&self) -> Vec<u64>;
}

macro_rules! counters {
    ($(#[$about:meta])* $set:ident { $($(#[$doc:meta])* $name:ident),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        pub struct $set { $($(#[$doc])* pub $name: Counter),* }

        impl CounterSet for $set {
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
            fn values(&self) -> Vec<u64> {
                vec![$(self.$name.read()),*]
            }
        }
    };
}

counters! {
    /// Counted for each service.
    ServiceCounters {
        /// TCP connections accepted.
        connections,
        /// Flows begun (UDP).
        flows,
        /// Bytes from clients that servers were given.
        bytes_in,
        /// Bytes from servers that clients were given.
        bytes_out,
        /// Datagrams from clients.
        datagrams_in,
        /// Datagrams to clients.
        datagrams_out,
        /// Clients that the access list refused.
        denied,
        /// Clients that reached their limit of connections, of new ones, or of requests.
        limited,
        /// Refused clients that were kept waiting.
        tarpitted,
        /// Connections whose PROXY header was missing or malformed, or that did not begin with the ClientHello that a route needs.
        greeting_refused,
        /// Connections, requests and datagrams refused because they go round between instances.
        loops,
        /// Connections that did not say in time what has to come first: PROXY header, handshake, request.
        greeting_timeouts,
        /// Handshakes of TLS that were completed.
        tls_handshakes,
        /// Those of them that resumed a session.
        tls_resumed,
        /// Handshakes that failed.
        tls_failed,
        /// Clients closed because too many handshakes were under way.
        tls_refused,
        /// Requests of HTTP, or questions of DNS.
        requests,
        /// Requests that were malformed, ambiguous or beyond the limits.
        requests_bad,
        /// Requests that were sent again, to another server.
        requests_retried,
        /// Requests that were answered by the service itself: redirects, its health, `respond`.
        requests_own,
        /// Requests that no server answered: 502, 503 or 504 went to the client.
        requests_failed,
        /// Requests whose header section has more bytes or fields than the limits allow: 431 went to the client.
        headers_too_large,
        /// Requests ended because their body came below the minimum rate.
        slow_requests,
        /// Responses ended because their client took them below the minimum rate.
        slow_responses,
        /// Requests given up because their client left before it had its response.
        requests_aborted,
        /// Connections of HTTP that became relays (Upgrade, CONNECT).
        upgrades,
        /// Lines of the request log that found no room.
        log_dropped,
        /// Clients that got a connection to their server that was there already.
        warm_used,
        /// Clients and requests that waited in a queue, because every server was at its limit.
        queued,
        /// Clients and requests whose time in the queue was over.
        queue_timeouts,
        /// Clients and requests for which the queue had no room.
        queue_full,
        /// Clients for whom no server could be had.
        no_server,
        /// Connections that ended by the idle timeout.
        idle_timeouts,
        /// Connections of HTTP, idle or with their last response, or idle ones of DNS over TCP, that were closed because other
        /// clients needed their descriptors.
        idle_shed,
        /// Connections that ended because one side had ended, and then nothing moved for `half_closed_timeout`.
        half_closed_timeouts,
        /// Connections cut because the drain deadline came.
        cut,
        /// Connections and flows that the operator closed.
        closed,
        /// Connections, requests and flows that ended because a check took their server down (`on_down`).
        closed_down,
        /// Accepts that failed for want of descriptors or memory.
        accept_errors,
        /// Times that accepting paused because the service was full.
        accept_pauses,
        /// Flows that ended by the idle timeout.
        flows_expired,
        /// Flows thrown out, the longest unused first, because the table was full.
        flows_evicted,
        /// Flows that went on at another server, because theirs failed or left.
        flows_moved,
        /// Datagrams dropped: no server could be had.
        drop_no_server,
        /// Datagrams dropped: the access list refused the client.
        drop_denied,
        /// Datagrams dropped: the socket's send buffer was full.
        drop_send_full,
        /// Datagrams dropped: the server refused them, and no other one could be had.
        drop_refused,
        /// Datagrams dropped: no socket could be had (descriptors, ports).
        drop_no_socket,
        /// Datagrams dropped: their PROXY header is missing or malformed.
        drop_greeting,
        /// Datagrams dropped: they are no question of DNS (too short, or an answer).
        drop_no_question,
        /// Datagrams dropped: too many questions are under way.
        drop_outstanding,
        /// Questions that no server left could take (size, address, a stuck connection).
        drop_untakable,
        /// Questions of DNS that were answered FORMERR, or NOTIMP: malformed, or not one of them.
        formerr,
        /// Answers of DNS that were cut to what the client takes over UDP; it asks again over TCP.
        truncated,
        /// Questions of DNS beyond the rate of their network that got a truncated answer or none.
        rate_limited,
        /// Questions of DNS that a kept answer served.
        cache_hits,
        /// Questions of DNS for which none was there.
        cache_misses,
        /// Questions of DNS that an expired answer served, because no server did.
        cache_stale,
        /// Datagrams dropped: larger than the way to the server, or a local rule forbids them.
        drop_unsendable,
    }
}

counters! {
    /// Counted for each server.
    ServerCounters {
        /// Connections made to it.
        connections,
        /// Flows begun at it.
        flows,
        /// Bytes given to it.
        bytes_in,
        /// Bytes taken from it.
        bytes_out,
        /// Datagrams given to it.
        datagrams_in,
        /// Datagrams taken from it.
        datagrams_out,
        /// Connects that it refused, or ICMP said so.
        connect_refused,
        /// Connects that were not answered in time.
        connect_timeouts,
        /// Connects that failed otherwise (no route, no such socket).
        connect_errors,
        /// Connects and checks that failed for a reason of our own (descriptors, ports, memory): no verdict on it.
        local_errors,
        /// Connections that it reset.
        resets,
        /// Requests of HTTP, or questions of DNS, sent to it.
        requests,
        /// Answers that it began.
        answers,
        /// Answers of the statuses 500 to 599.
        answers_5xx,
        /// Answers that did not begin in time.
        answer_timeouts,
        /// Answers that were malformed, broke off, or were to no question that was asked.
        answers_bad,
        /// Handshakes of TLS with it that failed.
        tls_failed,
        /// Standing connections with it (mname) that were agreed on.
        sessions,
        /// Those of them that ended by a fault.
        session_faults,
        /// Datagrams not given to it because its connection was stuck.
        drop_stuck,
    }
}

impl ServiceCounters {
    /// The counter of connections that ended because nothing moved.
    #[must_use]
    pub fn quiet(&self, is_half_closed: bool) -> &Counter {
        if is_half_closed { &self.half_closed_timeouts } else { &self.idle_timeouts }
    }
}

/// The shards of one counter set: one a worker.
#[derive(Debug)]
pub struct Sharded<C>(Box<[CachePadded<C>]>);

impl<C: CounterSet> Sharded<C> {
    /// Shards for `workers` workers, at least one.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| CachePadded::new(C::default())).collect())
    }

    /// The shard that worker number `worker` writes.
    #[must_use]
    pub fn of(&self, worker: usize) -> &C {
        &self.0[worker % self.0.len()]
    }

    /// Each name with the sum over the shards.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let mut sums = vec![0_u64; C::NAMES.len()];
        for shard in &self.0 {
            sums.iter_mut().zip(shard.values()).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
        }
        C::NAMES.iter().copied().zip(sums)
    }

    /// The sum of the counter called `name`; 0 when there is none of that name.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.totals().find_map(|(known, sum)| (known == name).then_some(sum)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up_under_their_names() {
        let sharded = Sharded::<ServerCounters>::new(2);
        sharded.of(0).bytes_in.add(5);
        sharded.of(1).bytes_in.add(7);
        sharded.of(1).resets.one();
        assert_eq!(
            (sharded.total("bytes_in"), sharded.total("resets"), sharded.total("bytes_out")),
            (12, 1, 0)
        );
        assert_eq!(sharded.totals().count(), ServerCounters::NAMES.len());
    }
}
