//! Keys of the table `dns` of dns services.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service.dns"],
        name: "query_timeout",
        kind: "duration",
        default: "`\"1500ms\"`",
        text: "Time for a server to respond before another one is tried; a minute at most. With \
               `retries` the query should end before clients give up, which many do after 5 s.",
        example: "query_timeout = \"2s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "retries",
        kind: "0 to 16",
        default: "2",
        text: "Number of further servers that a query is sent to.",
        example: "retries = 1",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "on_failure",
        kind: "`\"servfail\"`, `\"refused\"`, `\"drop\"`",
        default: "`\"servfail\"`",
        text: "Response to the client if no server responded.",
        example: "on_failure = \"refused\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "retry_on",
        kind: "list of `\"servfail\"`, `\"refused\"`",
        default: "`{ \"servfail\" }`",
        text: "RCODEs after which another server is tried; each counts as one of `retries`. If no \
               server sends another RCODE, the last such response is passed on. Servers that are \
               down are not tried. `{}`: every response is passed on.",
        example: "retry_on = { \"servfail\", \"refused\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "outstanding_max",
        kind: "1 to 4000000",
        default: "65536",
        text: "Outstanding queries, with 512 bytes each on average; split between the workers. \
               Further queries are dropped, or get SERVFAIL over TCP.",
        example: "outstanding_max = 20000",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "sockets",
        kind: "1 to 64",
        default: "4",
        text: "Sockets of a worker for each server, each with its own random port.",
        example: "sockets = 8",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "pipeline_max",
        kind: "1 to 4096",
        default: "128",
        text: "Outstanding queries of a TCP connection. Reading pauses at the limit.",
        example: "pipeline_max = 256",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "cache",
        kind: "`true` or table",
        default: "none",
        text: "Caches responses.",
        example: "cache = { entries = 100000, bytes = \"64MiB\" }",
        section: "#the-cache",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "entries",
        kind: "1 to 64000000",
        default: "100000",
        text: "Responses. A full cache evicts the least recently used.",
        example: "entries = 500000",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "bytes",
        kind: "size",
        default: "`\"64MiB\"`",
        text: "Bytes of all responses; at least `\"64KiB\"`.",
        example: "bytes = \"256MiB\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "ttl_max",
        kind: "duration",
        default: "`\"24h\"`",
        text: "Maximum lifetime of a response.",
        example: "ttl_max = \"1h\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "negative_ttl_max",
        kind: "duration",
        default: "`\"1h\"`",
        text: "Maximum lifetime of a negative response (RFC 2308).",
        example: "negative_ttl_max = \"5min\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "failure_ttl",
        kind: "duration",
        default: "`\"1s\"`",
        text: "Lifetime of SERVFAIL; `\"0s\"` for no caching, `\"5min\"` at most.",
        example: "failure_ttl = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.cache"],
        name: "stale",
        kind: "duration",
        default: "`\"0s\"`",
        text: "Time for which an expired response can still be used, with a TTL of 30 s (RFC 8767): \
               if no server responds, if two servers in a row did not respond in time, or if the \
               last server that is tried sends SERVFAIL or REFUSED.",
        example: "stale = \"1h\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "client_subnet",
        kind: "`true` or table",
        default: "none",
        text: "Sends servers the client's network (RFC 7871). A client's own subnet option stays.",
        example: "client_subnet = { v4 = 24, v6 = 56 }",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.client_subnet", "service.dns.rate_limit"],
        name: "v4",
        kind: "0 to 32",
        default: "24",
        text: "Length of the prefix of an IPv4 network.",
        example: "v4 = 24",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.client_subnet", "service.dns.rate_limit"],
        name: "v6",
        kind: "0 to 128",
        default: "56",
        text: "Length of the prefix of an IPv6 network.",
        example: "v6 = 56",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns"],
        name: "rate_limit",
        kind: "rate or table",
        default: "none",
        text: "Limits the queries over UDP of a client network.",
        example: "rate_limit = \"20/s\"",
        section: "#the-cache",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.rate_limit"],
        name: "rate",
        kind: "rate",
        text: "Queries of a network, such as `\"20/s\"`.",
        example: "rate = \"20/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.rate_limit"],
        name: "slip",
        kind: "0 to 1000",
        default: "2",
        text: "Beyond the rate, each `slip`-th query gets a truncated response, after which a \
               genuine client retries over TCP; 0 for no response at all.",
        example: "rate = \"20/s\", slip = 3",
        ..Key::NONE
    },
    Key {
        tables: &["service.dns.rate_limit"],
        name: "size",
        kind: "1 to 16000000",
        default: "65536",
        text: "Networks in the table. A full table forgets the least recently seen.",
        example: "rate = \"20/s\", size = 100000",
        ..Key::NONE
    },
];
