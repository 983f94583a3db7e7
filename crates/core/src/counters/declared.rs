//! The lists of counters and histograms.

use super::{Counter, CounterSet, Declaration, Kind, Label, LabelValue, Numbers, Unit};
use crate::histogram::Histogram;
use crate::reason::{self, ReasonCounters};

/// Type of a counter: one number, or a struct with a number for each value of the label.
macro_rules! counter_type {
    () => {
        Counter
    };
    ($family:ident) => {
        $family
    };
}

/// Joins the lines of a doc comment.
macro_rules! help {
    ($($doc:literal)*) => { concat!($($doc),*).trim_ascii() };
}

macro_rules! label {
    () => { None };
    (reason from $family:ident) => {
        Some(Label { name: "reason", values: reason::LABEL_VALUES })
    };
    ($label:ident $($value:ident $help:expr),*) => {
        Some(Label {
            name: stringify!($label),
            values: &[$(LabelValue { name: stringify!($value), help: $help }),*],
        })
    };
}

/// Declares sets of metrics. `drops: Datagrams by reason as Drops { no_server, .. }` is a counter with the label
/// `reason`, `drops` alone one without a label. `failures: Clients with reason from ReasonCounters` has a value for
/// each [`reason::Reason`]. Histograms follow in a list of their own.
macro_rules! counters {
    ($(
        $(#[doc = $about:literal])*
        struct $set:ident {$(
            $(#[doc = $help:literal])*
            $name:ident: $unit:ident $(by $label:ident as $family:ident {$(
                $(#[doc = $value_help:literal])*
                $value:ident
            ),* $(,)?})? $(with reason from $reasons:ident)?
        ),* $(,)?}
        $(and histograms {$(
            $(#[doc = $histogram_help:literal])*
            $histogram:ident: $histogram_unit:ident
        ),* $(,)?})?
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Debug, Default)]
        pub struct $set {
            $($(#[doc = $help])* pub $name: counter_type!($($family)? $($reasons)?),)*
            $($($(#[doc = $histogram_help])* pub $histogram: Histogram,)*)?
        }

        impl CounterSet for $set {
            const DECLARED: &'static [Declaration] = &[
                $(Declaration {
                    name: stringify!($name),
                    help: help!($($help)*),
                    kind: Kind::Counter,
                    unit: Unit::$unit,
                    label: label!($($label $($value help!($($value_help)*)),*)? $(reason from $reasons)?),
                },)*
                $($(Declaration {
                    name: stringify!($histogram),
                    help: help!($($histogram_help)*),
                    kind: Kind::Histogram,
                    unit: Unit::$histogram_unit,
                    label: None,
                },)*)?
            ];

            fn values(&self) -> Vec<u64> {
                let mut values = Vec::with_capacity(Self::DECLARED.iter().map(Declaration::width).sum());
                $(self.$name.append_to(&mut values);)*
                $($(self.$histogram.append_to(&mut values);)*)?
                values
            }
        }

        $($(
            #[doc = concat!("One counter for each `", stringify!($label), "`.")]
            #[derive(Debug, Default)]
            pub struct $family { $($(#[doc = $value_help])* pub $value: Counter),* }

            impl Numbers for $family {
                fn append_to(&self, values: &mut Vec<u64>) {
                    $(values.push(self.$value.read());)*
                }
            }
        )?)*
    )*};
}

counters! {
    /// Metrics of a service.
    struct ServiceCounters {
        /// TCP connections accepted.
        connections: Connections,
        /// UDP flows opened.
        flows: Flows,
        /// Bytes from clients that were passed to servers. HTTP: header sections and bodies of all requests.
        bytes_in: Bytes,
        /// Bytes from servers that were passed to clients. HTTP: bodies of responses, without their header sections,
        /// and whole local responses.
        bytes_out: Bytes,
        /// Datagrams from clients.
        datagrams_in: Datagrams,
        /// Datagrams to clients.
        datagrams_out: Datagrams,
        /// IP packets from clients that the XDP plane forwarded.
        packets_in: Packets,
        /// IP packets to clients that the XDP plane forwarded.
        packets_out: Packets,
        /// Clients that the access list refused, including clients that the pool of `denied` serves.
        denied: Clients,
        /// Clients that reached a limit of `per_client`: connections, new connections, or requests.
        limited: Clients,
        /// Refused clients that were delayed.
        tarpitted: Clients,
        /// Connections whose PROXY header was missing or malformed, that did not begin with the ClientHello that
        /// a route needs, or whose name has no route.
        preamble_refused: Connections,
        /// Connections, requests, queries and datagrams refused because they loop between instances.
        loops: Clients,
        /// Connections whose PROXY header, TLS handshake or first request did not arrive in time.
        preamble_timeouts: Connections,
        /// TLS handshakes with clients that were completed.
        tls_handshakes: Handshakes,
        /// TLS handshakes with clients that resumed a session.
        tls_resumed: Handshakes,
        /// TLS handshakes with clients that failed.
        tls_failed: Handshakes,
        /// Clients closed because too many TLS handshakes were in progress.
        tls_refused: Connections,
        /// HTTP requests or DNS queries.
        requests: Requests,
        /// Requests that were malformed, ambiguous or beyond the limits, or whose body was incomplete.
        requests_bad: Requests,
        /// Requests that were sent again to another server.
        requests_retried: Requests,
        /// Further tries at a server, after the first try for a connection, request, query or flow failed. Unlike
        /// `requests_retried` they include further connection attempts.
        retries: Clients,
        /// Failed tries that were not repeated, because the retry budget of the pool was used up.
        retries_exhausted: Clients,
        /// Requests with a local response: redirects, the health path, `respond`.
        requests_local: Requests,
        /// Requests, connections, TLS handshakes, queries and datagrams with a local response, or that ended
        /// before they were served, by the reason.
        reasons: Clients with reason from ReasonCounters,
        /// Requests that no server served: the client received 502, 503 or 504, or an incomplete response.
        requests_failed: Requests,
        /// Responses of servers with a status of 500 to 599.
        responses_5xx: Responses,
        /// Requests whose header section has more bytes or fields than the limits allow: the client received
        /// 431. Over HTTP/2 a header list beyond twice `header_bytes_max` plus 64 bytes for each of
        /// `header_fields_max` gets 431, too, but is neither counted nor logged.
        headers_too_large: Requests,
        /// Requests closed because their body arrived below `min_rate`.
        slow_requests: Requests,
        /// Responses closed because the client read them below `min_rate`.
        slow_responses: Responses,
        /// Requests aborted because the client closed the connection before the response.
        requests_aborted: Requests,
        /// HTTP connections that became relays (Upgrade, CONNECT).
        upgrades: Connections,
        /// Lines of the request log that were dropped because its buffer was full.
        log_dropped: Lines,
        /// Clients served by a server connection that was opened in advance. The status has the number of unused
        /// connections in `warm`.
        warm_used: Clients,
        /// Clients and requests that waited in a queue because every server was at its limit.
        queued: Clients,
        /// Clients and requests that the queue of a pool did not serve.
        queue_failures: Clients by reason as QueueFailures {
            /// The timeout of the queue passed.
            timeout,
            /// The queue was full.
            full,
        },
        /// Clients for which no server was available.
        no_server: Clients,
        /// Connections, requests and flows that were closed before client and server had finished.
        closed: Connections by reason as Closed {
            /// No traffic during `idle_timeout`.
            idle_timeout,
            /// One side had closed, and there was no traffic during `half_closed_timeout`.
            half_closed_timeout,
            /// Other clients needed their file descriptors. These are connections of HTTP that were idle or had
            /// their last response, and idle connections of DNS.
            idle_shed,
            /// The drain timeout passed.
            drain_timeout,
            /// An operator closed them.
            operator,
            /// A check marked their server down (`on_down`).
            server_down,
        },
        /// Failed accept calls: no descriptors or memory left.
        accept_errors: Calls,
        /// Pauses of accepting because the service was full, had `pending_max` pending connection attempts, or
        /// no descriptors were left.
        accept_pauses: Pauses,
        /// Flows that ended because of a limit.
        flows_ended: Flows by reason as FlowsEnded {
            /// No traffic during `idle_timeout`.
            expired,
            /// The table was full; the flow was the longest unused.
            evicted,
        },
        /// Flows moved to another server because their server failed or was removed.
        flows_moved: Flows,
        /// Datagrams and DNS queries dropped.
        drops: Datagrams by reason as Drops {
            /// No server was available.
            no_server,
            /// The access list refused the client.
            denied,
            /// The send buffer of the socket was full.
            send_full,
            /// The server refused them and no other server was available.
            refused,
            /// No socket was available (descriptors, ports).
            no_socket,
            /// The PROXY header was missing or malformed.
            preamble,
            /// Not a DNS query: too short, or a response.
            no_query,
            /// Too many queries were outstanding.
            outstanding,
            /// No remaining server could take the query (size, address family, a stuck connection).
            no_capable_server,
            /// Larger than the path to the server allows, or forbidden by a local rule.
            unsendable,
        },
        /// Decisions of the XDP plane about packets, by the reason.
        xdp: Packets by reason as XdpReasons {
            /// A header is truncated or contradicts itself.
            malformed,
            /// The TTL or hop limit does not allow another hop.
            ttl_exceeded,
            /// No server takes the client.
            no_server,
            /// A server sent to a client that is associated with another server.
            refused_egress,
            /// The next hop of the server or client is not known.
            no_next_hop,
            /// The packet does not fit with the headers of the tunnel.
            too_big,
            /// The access list denies the client.
            denied,
            /// The source prefix sends more packets than its rate allows.
            limited,
            /// A client has to prove its address with a SYN cookie.
            syn_challenged,
            /// An acknowledgement has no valid SYN cookie.
            syn_invalid,
            /// An ICMP error is about a flow without an association.
            icmp_unknown,
            /// The maps contradict themselves; a packet during a change.
            internal,
            /// A fragment arrived whose first fragment is not known.
            fragment_unknown,
            /// The packet needs a feature that the plane does not have.
            unsupported,
            /// An association was made for a client.
            flow_new,
            /// The server of an association is not available; the client got another one.
            flow_moved,
            /// An association was unused for its idle time and was made anew.
            flow_expired,
            /// An association was made for a server that sent first.
            flow_by_server,
            /// An association could not be stored; the choice alone counted.
            flow_not_stored,
            /// A packet in mid-flow went to its server by the previous table.
            second_chance,
            /// An ICMP error was translated for its receiver.
            icmp_translated,
            /// A fragment was treated as its first fragment.
            fragment,
            /// A QUIC connection ID named the server.
            quic_routed,
            /// A QUIC connection ID named no server; the association or the choice counted.
            quic_unknown,
            /// An acknowledgement had a valid SYN cookie.
            syn_validated,
            /// An ICMP error `time exceeded` was sent.
            responded_ttl,
            /// An ICMP error `packet too big` was sent.
            responded_too_big,
            /// A query for the MAC address of a dark address got a response.
            tarpit_arp,
            /// A connection attempt to a dark address got a response.
            tarpit_syn,
            /// A segment of a connection to a dark address got a response.
            tarpit_segment,
            /// An event was left out, by the rate limit or because the ring was full.
            event_lost,
        },
        /// DNS queries that received FORMERR or NOTIMP: malformed, or with an unsupported opcode.
        formerr: Requests,
        /// DNS responses truncated to the client's UDP size. The client retries over TCP.
        truncated: Responses,
        /// DNS queries beyond the rate limit of their network: they received a truncated response or none.
        rate_limited: Requests,
        /// DNS queries of services with a cache.
        cache_lookups: Requests by result as CacheLookups {
            /// The query was served from the cache.
            hit,
            /// No usable response was cached.
            miss,
        },
        /// DNS queries that were served with an expired response, because no server responded in time or the last
        /// server sent SERVFAIL or REFUSED. They are misses, too.
        cache_stale: Requests,
    }
    and histograms {
        /// Bytes of a response: in HTTP of its body as the server sent it, in DNS of the message to the client.
        response_bytes: Bytes,
        /// Bytes that a connection relayed in both directions, recorded at its end. Requests of HTTP and queries
        /// of DNS are not relayed; WebSocket and CONNECT are.
        connection_bytes: Bytes,
    }

    /// Metrics of a server.
    struct ServerCounters {
        /// Connections established to the server.
        connections: Connections,
        /// UDP flows opened to the server.
        flows: Flows,
        /// Bytes sent to the server.
        bytes_in: Bytes,
        /// Bytes received from the server.
        bytes_out: Bytes,
        /// Datagrams sent to the server.
        datagrams_in: Datagrams,
        /// Datagrams received from the server.
        datagrams_out: Datagrams,
        /// IP packets that the XDP plane forwarded to the server.
        packets_in: Packets,
        /// IP packets that the XDP plane forwarded from the server.
        packets_out: Packets,
        /// Connection attempts that failed.
        connect_failures: Connections by reason as ConnectFailures {
            /// The server or an ICMP error refused the attempt.
            refused,
            /// The attempt timed out.
            timeout,
            /// Another error: no route, no such socket, a local reason.
            error,
        },
        /// Connection attempts and checks that failed for a local reason (descriptors, ports, memory, a local
        /// rule). They do not count against the server. Such attempts are in `connect_failures`, too.
        local_errors: Connections,
        /// Connections that the server reset.
        resets: Connections,
        /// HTTP requests or DNS queries sent to the server.
        requests: Requests,
        /// Responses whose beginning arrived from the server.
        responses: Responses,
        /// Responses with a status of 500 to 599.
        responses_5xx: Responses,
        /// Responses that did not begin in time. In DNS a late response is still used while its query is open.
        response_timeouts: Responses,
        /// Responses that were malformed or incomplete, or matched no query.
        responses_bad: Responses,
        /// TLS handshakes with the server that failed.
        tls_failed: Handshakes,
        /// Persistent connections (mname) that were established.
        persistent_connections: Connections,
        /// Persistent connections (mname) that failed.
        persistent_connection_faults: Connections,
        /// Datagrams dropped.
        drops: Datagrams by reason as ServerDrops {
            /// The persistent connection to the server was stuck.
            stuck,
        },
    }
    and histograms {
        /// Time until a connection to the server was established, including the TLS handshake if there is one.
        connect_seconds: Seconds,
        /// Time from the complete request (in DNS from the query, in UDP from the beginning of the flow) to the
        /// beginning of the first response.
        response_seconds: Seconds,
    }

    /// Metrics of the checks of a server.
    struct CheckCounters {
        /// Checks of the server.
        checks: Checks by result as Checks {
            /// The check passed.
            passed,
            /// The check failed. The verdict changes after `fall` such checks.
            failed,
        },
    }
    and histograms {
        /// Time of a check that passed.
        check_seconds: Seconds,
    }
}

impl ServiceCounters {
    /// Returns the counter of connections that were closed after a time without traffic.
    #[must_use]
    pub fn timeouts(&self, is_half_closed: bool) -> &Counter {
        if is_half_closed { &self.closed.half_closed_timeout } else { &self.closed.idle_timeout }
    }
}

impl XdpReasons {
    /// Adds the growth of each reason, which `grown` returns by its number in the program.
    pub fn add(&self, grown: impl Fn(u8) -> u64) {
        let in_order = [
            &self.malformed,
            &self.ttl_exceeded,
            &self.no_server,
            &self.refused_egress,
            &self.no_next_hop,
            &self.too_big,
            &self.denied,
            &self.limited,
            &self.syn_challenged,
            &self.syn_invalid,
            &self.icmp_unknown,
            &self.internal,
            &self.fragment_unknown,
            &self.unsupported,
            &self.flow_new,
            &self.flow_moved,
            &self.flow_expired,
            &self.flow_by_server,
            &self.flow_not_stored,
            &self.second_chance,
            &self.icmp_translated,
            &self.fragment,
            &self.quic_routed,
            &self.quic_unknown,
            &self.syn_validated,
            &self.responded_ttl,
            &self.responded_too_big,
            &self.tarpit_arp,
            &self.tarpit_syn,
            &self.tarpit_segment,
            &self.event_lost,
        ];
        (0..).zip(in_order).for_each(|(number, counter)| counter.add(grown(number)));
    }
}
