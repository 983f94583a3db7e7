//! Keys of pools and of policies.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["pool"],
        name: "discover",
        protocols: &["dns"],
        kind: "table",
        default: "none",
        text: "Finds servers at run time: each socket in a directory of mname-balancer. Other \
               sources stand among the servers: `discover.dns`, `discover.srv` and `discover.file`.",
        example: "discover = { mname = \"/var/run/binder/sockets\" }",
        section: "#servers-of-mname-balancer",
        ..Key::NONE
    },
    Key {
        tables: &["pool.discover"],
        name: "mname",
        protocols: &["dns"],
        kind: "directory or list",
        text: "Directories of sockets; at most 16.",
        example: "mname = \"/var/run/binder/sockets\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "resolve",
        kind: "`\"required\"`, `\"optional\"`",
        default: "`\"required\"`",
        text: "`\"required\"`: a host name that does not resolve and a source that cannot be read \
               make the configuration invalid. `\"optional\"`: the pool starts with its other \
               servers, and the log and `evener status` say what is missing until it appears.",
        example: "resolve = \"optional\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "resolver",
        kind: "address or list of up to 3",
        default: "those of `/etc/resolv.conf`",
        text: "The name servers for the names in the pool: `\"10.0.0.53\"` or `\"127.0.0.1:5353\"`. \
               With this key `/etc/hosts`, search domains and other sources of names are not used.",
        example: "resolver = \"10.0.0.53\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "policy",
        kind: "word or `policy.*`",
        default: "`\"round_robin\"`",
        text: "How a server is picked: `\"round_robin\"`, `\"weighted\"`, `\"least_conn\"`, \
               `\"least_outstanding\"`, `\"p2c\"`, `\"ewma\"`, `\"hash\"`, `\"maglev\"` or \
               `\"first\"`.",
        example: "policy = \"least_conn\"",
        section: "#policies",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "sticky",
        kind: "`true` or table",
        default: "none",
        text: "A client (by its IP address, or http: by a cookie) keeps its server.",
        example: "sticky = { by = \"client_ip\", ttl = \"1h\" }",
        section: "#stickiness",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "by",
        kind: "`\"client_ip\"`, `\"cookie\"`",
        default: "`\"client_ip\"`",
        text: "How a client is recognized. `\"cookie\"` is for http services only, and needs no \
               table.",
        example: "by = \"cookie\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "name",
        protocols: &["http"],
        kind: "text",
        default: "`\"EVENER\"`",
        text: "Name of the cookie. If several such pools serve one service, the default has the name \
               of the pool, too.",
        example: "by = \"cookie\", name = \"SERVER\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "size",
        kind: "1 to 16000000",
        default: "65536",
        text: "Clients in the table; a full table evicts the least recently seen. Not with a cookie.",
        example: "size = 100000",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "ttl",
        kind: "duration or `false`",
        default: "`\"1h\"`",
        text: "Time after which an inactive client is forgotten; `false`: only when the table is \
               full. Not with a cookie.",
        example: "ttl = \"30min\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "failback",
        kind: "boolean",
        default: "`false`",
        text: "`true`: while its server is down, a client gets a substitute, and returns to its \
               server afterwards. `false`: the substitute becomes its server. Not with a cookie.",
        example: "failback = true",
        ..Key::NONE
    },
    Key {
        tables: &["pool.sticky"],
        name: "rebalance",
        kind: "duration or `false`",
        default: "none",
        text: "Interval of rebalancing: the numbers of clients of the fullest and the emptiest \
               server may differ by the number of usable servers; for clients of the fullest server \
               beyond this difference the policy picks again. Not with a cookie.",
        example: "rebalance = \"15s\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "tls",
        kind: "`true` or table",
        default: "none",
        text: "TLS to the servers. Not in a service's own list of servers: there `tls` is for \
               clients.",
        example: "tls = { ca = \"ca.pem\", sni = \"app.example.org\" }",
        section: "#tls-with-servers",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "send_proxy",
        kind: "`\"v1\"`, `\"v2\"`",
        default: "none",
        text: "Sends servers the client's address by the PROXY protocol: v2 with ALPN, \
               SNI, TLS version, cipher, the certificate's common name, a unique id and a checksum. \
               udp, dns: v2, with each datagram. Checks send LOCAL (v1: UNKNOWN). \
               `true` is a deprecated form of `\"v2\"`, with a warning.",
        example: "send_proxy = \"v2\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool", "server"],
        name: "check",
        kind: "`check.*` or word",
        default: "none",
        text: "Active checks: a word such as `\"tcp\"` or `\"http\"` for a check with the defaults, \
               `check.http { ... }` with keys, or a function. A server may have a check of its own.",
        example: "check = check.http { path = \"/health\" }",
        section: "#checks",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "passive",
        kind: "table or `false`",
        default: "`{ failures = 1, down_for = \"30s\" }`",
        text: "Takes a server out after failures of its traffic, also without a check.",
        example: "passive = { failures = 3, down_for = \"10s\" }",
        ..Key::NONE
    },
    Key {
        tables: &["pool.passive"],
        name: "failures",
        kind: "0 to 1000",
        default: "1",
        text: "Consecutive failed connection attempts after which a server is out; 0 is the same as \
               `passive = false`.",
        example: "failures = 3",
        ..Key::NONE
    },
    Key {
        tables: &["pool.passive"],
        name: "down_for",
        kind: "duration",
        default: "`\"30s\"`",
        text: "Time for which the server is out, unless a check passes earlier.",
        example: "down_for = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "failover",
        kind: "boolean",
        default: "`true`",
        text: "`false`: a client whose server is down, full or refuses it is closed; no other server \
               and no lower tier is tried.",
        example: "failover = false",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "retry_budget",
        kind: "text, table or `false`",
        default: "`\"20%\"`",
        text: "The maximum number of retries, as a share of the connections, requests and queries of \
               the last 10 s; `false`: no limit.",
        example: "retry_budget = { share = \"20%\", min_per_second = 10 }",
        section: "#the-retry-budget",
        ..Key::NONE
    },
    Key {
        tables: &["pool.retry_budget"],
        name: "share",
        kind: "`\"0%\"` to `\"100%\"`",
        default: "`\"20%\"`",
        text: "Retries as a share of the first tries.",
        example: "share = \"10%\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.retry_budget"],
        name: "min_per_second",
        kind: "0 to 1000000",
        default: "10",
        text: "Retries a second that are permitted also if the share is less.",
        example: "min_per_second = 5",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "queue",
        kind: "table or `false`",
        default: "`{ size = 1024, timeout = \"5s\" }`",
        text: "Where clients of TCP and requests of HTTP wait while every server is at its `max` or \
               `hard`; `false`: they are refused immediately. UDP and DNS have no queue.",
        example: "queue = { size = 1024, timeout = \"5s\" }",
        section: "#the-queue",
        ..Key::NONE
    },
    Key {
        tables: &["pool.queue"],
        name: "size",
        kind: "1 to 1000000",
        default: "1024",
        text: "Clients and requests that wait, at all workers together. Further ones are refused.",
        example: "size = 100",
        ..Key::NONE
    },
    Key {
        tables: &["pool.queue"],
        name: "timeout",
        kind: "duration",
        default: "`\"5s\"`",
        text: "Time after which a waiting client is closed and a waiting request gets 503.",
        example: "timeout = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "on_down",
        kind: "`\"keep\"`, `\"close\"`",
        default: "`\"keep\"`",
        text: "`\"close\"`: when a check finds a server down, all connections and flows to it end: \
               relayed connections and tunnels are reset on both sides, flows end, pooled \
               connections are closed, and requests and queries go to another server as if their \
               connection had broken off (requests and queries that cannot be repeated fail). A \
               server that only traffic took out keeps its connections. Needs a `check`.",
        example: "check = \"tcp\", on_down = \"close\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "slow_start",
        kind: "duration",
        default: "none",
        text: "A server that comes up, or returns from maintenance, reaches its full share only \
               after this time (hash and maglev do not move clients during a slow start; least_conn \
               sends the server no clients while other servers are idle).",
        example: "slow_start = \"30s\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "quorum",
        kind: "1 and up",
        default: "none",
        text: "The weight that the usable servers must have together. A pool with less is below its \
               quorum: its sorry server takes the new clients, `address_on` (ipvs) removes the \
               addresses, and the event `quorum_lost` follows.",
        example: "quorum = 2",
        section: "#quorum-and-sorry-server",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "hysteresis",
        kind: "0 and up, less than the quorum",
        default: "0",
        text: "A pool loses its quorum below `quorum` minus this weight, and gains it at `quorum` \
               plus this weight.",
        example: "quorum = 4, hysteresis = 1",
        section: "#quorum-and-sorry-server",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "sorry",
        kind: "address or `server`",
        default: "none",
        text: "A server without checks that takes the new clients while the pool is below its \
               quorum, or without `quorum` while no server is usable. It may be one of the servers, \
               too. Its usual name is `sorry`.",
        example: "sorry = \"10.0.0.9:80\"",
        section: "#quorum-and-sorry-server",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "inhibit_on_failure",
        kind: "boolean",
        default: "`false`",
        text: "`true`: a server that fails stays in the table of the kernel with the weight 0, so \
               that its connections and persistent clients stay. Not with `on_down = \"close\"`.",
        example: "inhibit_on_failure = true",
        ..Key::NONE
    },
    Key {
        tables: &["pool"],
        name: "notify",
        kind: "table",
        default: "none",
        text: "Programs that run when a server or the quorum changes. `exec { allow = ... }` must \
               allow them.",
        example: "notify = { down = { \"/usr/bin/true\", \"web\" } }",
        section: "#hooks",
        ..Key::NONE
    },
    Key {
        tables: &["pool.notify"],
        name: "up",
        kind: "list",
        default: "none",
        text: "Program and arguments for a server that is used again.",
        example: "up = { \"/usr/bin/true\", \"web\" }",
        ..Key::NONE
    },
    Key {
        tables: &["pool.notify"],
        name: "down",
        kind: "list",
        default: "none",
        text: "For a server that a check or its traffic marks down.",
        example: "down = { \"/usr/bin/true\", \"web\" }",
        ..Key::NONE
    },
    Key {
        tables: &["pool.notify"],
        name: "quorum_up",
        kind: "list",
        default: "none",
        text: "For a pool that gains its quorum.",
        example: "quorum_up = { \"/usr/bin/true\" }",
        ..Key::NONE
    },
    Key {
        tables: &["pool.notify"],
        name: "quorum_down",
        kind: "list",
        default: "none",
        text: "For a pool that loses its quorum.",
        example: "quorum_down = { \"/usr/bin/true\" }",
        ..Key::NONE
    },
    Key {
        tables: &["pool.notify"],
        name: "timeout",
        kind: "duration",
        default: "`\"30s\"`",
        text: "Time after which a program is killed, with its children.",
        example: "timeout = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["policy.ewma"],
        name: "decay",
        kind: "duration",
        default: "`\"10s\"`",
        text: "Time in which a measured latency loses most of its weight.",
        example: "decay = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &["policy.maglev"],
        name: "table",
        kind: "prime, at most 5000011",
        default: "65537",
        text: "Size of the table.",
        example: "table = 65537",
        ..Key::NONE
    },
];
