//! Counters, declared once: each list makes a struct of atomics, the names, and the code that adds them up.
//!
//! Every worker has its own shard, so counting on the packet path shares no cache line with another core.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter of one shard. Only the worker of the shard adds, except by [`Counter::one_shared`]; any thread
/// reads.
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

    /// Adds one to a counter to which several threads add.
    pub fn one_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count.
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
    /// Counters of a service.
    ServiceCounters {
        /// TCP connections accepted.
        connections,
        /// UDP flows opened.
        flows,
        /// Bytes from clients that were passed to servers.
        bytes_in,
        /// Bytes from servers that were passed to clients.
        bytes_out,
        /// Datagrams from clients.
        datagrams_in,
        /// Datagrams to clients.
        datagrams_out,
        /// Clients that the access list refused.
        denied,
        /// Clients that reached their limit of connections, of new connections, or of requests.
        limited,
        /// Refused clients that were delayed.
        tarpitted,
        /// Connections whose PROXY header was missing or malformed, or that did not begin with the
        /// ClientHello that a route needs.
        preamble_refused,
        /// Connections, requests and datagrams refused because they loop between instances.
        loops,
        /// Connections whose PROXY header, TLS handshake or first request did not arrive in time.
        preamble_timeouts,
        /// TLS handshakes that were completed.
        tls_handshakes,
        /// TLS handshakes that resumed a session.
        tls_resumed,
        /// TLS handshakes that failed.
        tls_failed,
        /// Clients closed because too many TLS handshakes were in progress.
        tls_refused,
        /// HTTP requests or DNS queries.
        requests,
        /// Requests that were malformed, ambiguous or beyond the limits.
        requests_bad,
        /// Requests that were retried on another server.
        requests_retried,
        /// Further tries at a server, after the first try for a connection, request, query or flow failed.
        retries,
        /// Failed tries that were not repeated, because the retry budget of the pool was used up.
        retries_exhausted,
        /// Requests with a local response: redirects, the health path, `respond`.
        requests_local,
        /// Requests that no server served: the client received 502, 503 or 504.
        requests_failed,
        /// Requests whose header section has more bytes or fields than the limits allow: the client received
        /// 431.
        headers_too_large,
        /// Requests closed because their body arrived below the minimum rate.
        slow_requests,
        /// Responses closed because the client read them below the minimum rate.
        slow_responses,
        /// Requests aborted because the client closed the connection before the response.
        requests_aborted,
        /// HTTP connections that became relays (Upgrade, CONNECT).
        upgrades,
        /// Lines of the request log that were dropped because its buffer was full.
        log_dropped,
        /// Clients served by a pre-opened server connection.
        warm_used,
        /// Clients and requests that waited in a queue because every server was at its limit.
        queued,
        /// Clients and requests that waited in the queue until its timeout.
        queue_timeouts,
        /// Clients and requests refused because the queue was full.
        queue_full,
        /// Clients for which no server was available.
        no_server,
        /// Connections closed by the idle timeout.
        idle_timeouts,
        /// HTTP and DNS connections closed to free file descriptors for other clients. They were idle, or
        /// finishing their last response.
        idle_shed,
        /// Half-closed connections that were closed after `half_closed_timeout` without traffic.
        half_closed_timeouts,
        /// Connections closed at the drain deadline.
        cut,
        /// Connections and flows closed by an operator.
        closed,
        /// Connections, requests and flows closed because a check marked their server down (`on_down`).
        closed_down,
        /// Failed accept calls: no descriptors or memory left.
        accept_errors,
        /// Pauses of accepting because the service was full.
        accept_pauses,
        /// Flows closed by the idle timeout.
        flows_expired,
        /// Flows evicted, the longest unused first, because the table was full.
        flows_evicted,
        /// Flows moved to another server because their server failed or was removed.
        flows_moved,
        /// Datagrams dropped: no server was available.
        drop_no_server,
        /// Datagrams dropped: the access list refused the client.
        drop_denied,
        /// Datagrams dropped: the socket's send buffer was full.
        drop_send_full,
        /// Datagrams dropped: the server refused them and no other server was available.
        drop_refused,
        /// Datagrams dropped: no socket was available (descriptors, ports).
        drop_no_socket,
        /// Datagrams dropped: their PROXY header was missing or malformed.
        drop_preamble,
        /// Datagrams dropped: not a DNS query (too short, or a response).
        drop_no_query,
        /// Datagrams dropped: too many queries were outstanding.
        drop_outstanding,
        /// DNS queries that no remaining server could take (size, address family, a stuck connection).
        drop_no_capable_server,
        /// DNS queries that received FORMERR or NOTIMP: malformed, or with an unsupported opcode.
        formerr,
        /// DNS responses truncated to the client's UDP size. The client retries over TCP.
        truncated,
        /// DNS queries beyond the rate limit of their network: they received a truncated response or none.
        rate_limited,
        /// DNS queries served from the cache.
        cache_hits,
        /// DNS queries without a cached response.
        cache_misses,
        /// DNS queries served with an expired response because no server responded.
        cache_stale,
        /// Datagrams dropped: larger than the path to the server allows, or forbidden by a local rule.
        drop_unsendable,
    }
}

counters! {
    /// Counters of a server.
    ServerCounters {
        /// Connections established to the server.
        connections,
        /// UDP flows opened to the server.
        flows,
        /// Bytes sent to the server.
        bytes_in,
        /// Bytes received from the server.
        bytes_out,
        /// Datagrams sent to the server.
        datagrams_in,
        /// Datagrams received from the server.
        datagrams_out,
        /// Connection attempts refused by the server or by an ICMP error.
        connect_refused,
        /// Connection attempts that timed out.
        connect_timeouts,
        /// Connection attempts that failed for another reason (no route, no such socket).
        connect_errors,
        /// Connection attempts and checks that failed for a local reason (descriptors, ports, memory). They do
        /// not count against the server.
        local_errors,
        /// Connections that the server reset.
        resets,
        /// HTTP requests or DNS queries sent to the server.
        requests,
        /// Responses whose beginning arrived from the server.
        responses,
        /// Responses with a status of 500 to 599.
        responses_5xx,
        /// Responses that did not begin in time.
        response_timeouts,
        /// Responses that were malformed or incomplete, or matched no query.
        responses_bad,
        /// TLS handshakes with the server that failed.
        tls_failed,
        /// Persistent connections (mname) that were established.
        persistent_connections,
        /// Persistent connections that failed.
        persistent_connection_faults,
        /// Datagrams dropped because the connection to the server was stuck.
        drop_stuck,
    }
}

impl ServiceCounters {
    /// Returns the counter of connections that were closed after a time without traffic.
    #[must_use]
    pub fn timeouts(&self, is_half_closed: bool) -> &Counter {
        if is_half_closed { &self.half_closed_timeouts } else { &self.idle_timeouts }
    }
}

/// The shards of one counter set, one for each worker.
///
/// ```
/// use evener_core::counters::{ServerCounters, Sharded};
///
/// let counters = Sharded::<ServerCounters>::new(2);
/// counters.of(0).connections.one();
/// counters.of(1).connections.add(2);
/// assert_eq!(counters.total("connections"), 3);
/// ```
#[derive(Debug)]
pub struct Sharded<C>(Box<[CachePadded<C>]>);

impl<C: CounterSet> Sharded<C> {
    /// Creates the shards for `workers` workers, at least one.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| CachePadded::new(C::default())).collect())
    }

    /// Returns the shard of worker number `worker`, or the first shard if there is no such worker.
    #[must_use]
    pub fn of(&self, worker: usize) -> &C {
        // `get` is faster than a remainder, and this is on the path of each packet.
        self.0.get(worker).unwrap_or(&self.0[0])
    }

    /// Returns each name with the sum over the shards.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let mut sums = vec![0_u64; C::NAMES.len()];
        for shard in &self.0 {
            sums.iter_mut().zip(shard.values()).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
        }
        C::NAMES.iter().copied().zip(sums)
    }

    /// Returns the sum of the counter called `name`, or 0 if no counter has that name.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.totals().find_map(|(known, sum)| (known == name).then_some(sum)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_counter_is_the_sum_over_its_shards() {
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
