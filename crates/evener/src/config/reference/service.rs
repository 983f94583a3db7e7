//! Keys of services that several protocols have.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service"],
        name: "listen",
        kind: "address or list",
        default: "the name, if it is an address",
        text: "IP addresses with their ports or, for TCP, paths of unix sockets.",
        example: "listen = { \"0.0.0.0:80\", \"[::]:80\" }",
        section: "#listen-addresses",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "protocol",
        kind: "`\"tcp\"`, `\"udp\"`, `\"http\"`, `\"dns\"`",
        default: "`\"tcp\"`",
        text: "What is balanced: connections (`\"tcp\"`), datagrams (`\"udp\"`), requests \
               (`\"http\"`) or queries (`\"dns\"`).",
        example: "protocol = \"http\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "plane",
        kind: "`\"proxy\"`, `\"xdp\"`, `\"ipvs\"`",
        default: "`\"proxy\"`",
        text: "The part that moves the bytes: the program's own workers, or the kernel at the \
               drivers of the interfaces (`\"xdp\"`), or the kernel's IP Virtual Server (`\"ipvs\"`). \
               docs/xdp.md and docs/ipvs.md describe the planes of the kernel.",
        example: "plane = \"proxy\"",
        section: "#the-xdp-plane",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "pool",
        kind: "a pool or its name",
        text: "The pool of servers. Instead of this key the service can list servers itself, with \
               the keys of a pool.",
        example: "pool = \"web\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "routes",
        plane: "proxy",
        protocols: &["http", "tcp"],
        kind: "list of tables",
        default: "none",
        text: "Other pools for some clients: by host name and path (http), or by the host name in \
               the TLS handshake, which is passed through (tcp).",
        example: "routes = { { host = \"api.example.org\", pool = \"web\" } }",
        section: "#routes",
    },
    Key {
        tables: &["service.routes"],
        name: "host",
        protocols: &["http"],
        kind: "host name or list",
        default: "any",
        text: "Host of the requests: `\"www.example.org\"`, or `\"*.example.org\"` for all names \
               below it.",
        example: "host = \"www.example.org\", pool = \"web\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.routes"],
        name: "path",
        protocols: &["http"],
        kind: "text",
        default: "any",
        text: "Path of the requests. It includes all paths below it: `\"/api\"` matches `/api` and \
               `/api/v1`, but not `/apis`.",
        example: "path = \"/api\", pool = \"web\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.routes"],
        name: "sni",
        protocols: &["tcp"],
        kind: "host name or list",
        text: "Host name in the client's TLS handshake, as for `host`.",
        example: "sni = \"www.example.org\", pool = \"web\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.routes"],
        name: "pool",
        kind: "a pool or its name",
        text: "The pool of the clients and requests that match.",
        example: "pool = \"web\", host = \"www.example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["service", "server"],
        name: "allow",
        kind: "prefix or list",
        default: "all",
        text: "Clients that are admitted: prefixes, `prefixes \"FILE\"`, `country \"SE\"`, or a list \
               of these. All other clients are refused.",
        example: "allow = { \"10.0.0.0/8\", \"2001:db8::/32\" }",
        section: "#access-control",
        ..Key::NONE
    },
    Key {
        tables: &["service", "server"],
        name: "deny",
        kind: "prefix or list",
        default: "none",
        text: "Clients that are refused, as for `allow`. The longest matching prefix of `allow` and \
               `deny` wins.",
        example: "deny = \"192.0.2.0/24\"",
        section: "#access-control",
        ..Key::NONE
    },
    Key {
        tables: &["service", "server"],
        name: "access",
        kind: "list of tables",
        default: "all",
        text: "Rules in order, instead of `allow` and `deny`: the first item that matches the client \
               decides.",
        example: "access = { { permit = \"10.1.0.0/16\" }, { deny = \"10.0.0.0/8\" } }",
        section: "#access-control",
        ..Key::NONE
    },
    Key {
        tables: &["service.access", "server.access"],
        name: "permit",
        kind: "prefix or list",
        text: "Clients that this item admits.",
        example: "{ permit = \"10.1.0.0/16\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.access", "server.access"],
        name: "deny",
        kind: "prefix or list",
        text: "Clients that this item refuses.",
        example: "{ deny = \"10.0.0.0/8\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.access", "server.access"],
        name: "otherwise",
        kind: "`\"permit\"`, `\"deny\"`",
        default: "the inverse of the last item",
        text: "Treatment of clients that match no item. It stands beside the items, not in one of \
               them.",
        example: "{ permit = \"10.1.0.0/16\" }, otherwise = \"deny\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "denied",
        plane: "proxy",
        kind: "`\"drop\"`, `\"reject\"`, `\"tarpit\"`, table, or a pool or its name",
        default: "`\"drop\"`",
        text: "Treatment of refused clients: they are closed, reset (http: 403), delayed and closed, \
               or served from another pool. udp: only `\"drop\"` or a pool.",
        example: "denied = \"reject\"",
        section: "#access-control",
        ..Key::NONE
    },
    Key {
        tables: &["service.denied", "service.per_client.exceeded"],
        name: "tarpit",
        protocols: &["tcp", "http"],
        kind: "duration",
        default: "`\"30s\"`",
        text: "Time after which the connection of a refused client is closed; at most 1 h.",
        example: "tarpit = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "per_client",
        plane: "proxy",
        protocols: &["tcp", "http", "dns"],
        kind: "table",
        default: "none",
        text: "Limits of each client (an IPv6 /64 is one client). dns: only over TCP.",
        example: "per_client = { connections = 20, connection_rate = \"20/s\" }",
        section: "#access-control",
    },
    Key {
        tables: &["service.per_client"],
        name: "connections",
        kind: "1 to 1000000",
        default: "none",
        text: "Concurrent connections of a client.",
        example: "connections = 20",
        ..Key::NONE
    },
    Key {
        tables: &["service.per_client"],
        name: "connection_rate",
        kind: "rate",
        default: "none",
        text: "New connections of a client, such as `\"20/s\"`, `\"100/m\"` or `\"1000/h\"`. A burst \
               may be as large as the number.",
        example: "connection_rate = \"20/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.per_client"],
        name: "request_rate",
        protocols: &["http"],
        kind: "rate",
        default: "none",
        text: "Requests of a client, such as `\"100/s\"`. A request beyond the rate gets 429.",
        example: "request_rate = \"100/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.per_client"],
        name: "exceeded",
        kind: "`\"drop\"`, `\"reject\"`, `\"tarpit\"`, table, or a pool or its name",
        default: "`\"reject\"`",
        text: "Treatment of clients beyond a limit, as for `denied` (http: 429 instead of 403).",
        example: "connections = 20, exceeded = \"drop\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.per_client"],
        name: "size",
        kind: "1 to 16000000",
        default: "65536",
        text: "Clients in the table of limits. A full table forgets the least recently seen client.",
        example: "connections = 20, size = 100000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "proxy_from",
        plane: "proxy",
        kind: "prefix or list",
        default: "none",
        text: "Proxies that send the PROXY protocol (v1 or v2; udp: v2 with each datagram). The \
               header is required from these addresses and not expected from others.",
        example: "proxy_from = \"10.0.0.0/8\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "tls",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "file or table",
        default: "none",
        text: "TLS with clients: one PEM file with certificate and key, or a table.",
        example: "tls = { certificate = \"site.crt\", key = \"site.key\" }",
        section: "#tls-with-clients",
    },
    Key {
        tables: &["service"],
        name: "idle_timeout",
        kind: "duration or `false`",
        default: "`\"1h\"`, udp `\"60s\"`, dns `\"10s\"`",
        text: "Time after which an idle connection is closed (`false`: never, only tcp and http) or \
               a flow ends. http: only for connections that became relays (WebSocket).",
        example: "idle_timeout = \"30s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "half_closed_timeout",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "duration or `false`",
        default: "`\"5min\"`",
        text: "Time after which an idle connection with one ended side is closed; `idle_timeout` \
               still counts. `false`: only `idle_timeout` counts. http: only for connections that \
               became relays.",
        example: "half_closed_timeout = \"1min\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "freebind",
        plane: "proxy",
        kind: "boolean",
        default: "`false`",
        text: "Allows addresses of `listen` that do not exist yet (`IP_FREEBIND`), such as those of \
               a standby with VRRP or DHCP. Set by a reload, it applies only to addresses that the \
               reload adds.",
        example: "freebind = true",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "source",
        plane: "proxy",
        kind: "IP address, `\"client\"`",
        default: "the system's choice",
        text: "Source address of connections to servers of that family; it must be an address of \
               this machine. `\"client\"`: the client's own address (`IP_TRANSPARENT`; needs \
               CAP_NET_ADMIN and a [return route](operating.md#transparent); not for dns). Checks do \
               not use it.",
        example: "source = \"192.0.2.1\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "unix_mode",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "text such as `\"0660\"`",
        default: "by the umask",
        text: "Mode of the file of a unix socket in `listen`.",
        example: "unix_mode = \"0660\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "connections_max",
        plane: "proxy",
        protocols: &["tcp", "http", "dns"],
        kind: "1 to 16000000",
        default: "100000",
        text: "Concurrent connections. At the limit accepting pauses, and clients wait in the accept \
               queue. dns: only over TCP.",
        example: "connections_max = 20000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "connect_timeout",
        plane: "proxy",
        protocols: &["tcp", "http", "dns"],
        kind: "duration",
        default: "`\"3s\"`",
        text: "Time after which a connection attempt to a server has failed and the next server is \
               tried. dns: only over TCP.",
        example: "connect_timeout = \"1s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "attempts_max",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "1 to 1000",
        default: "3",
        text: "Number of silent servers (or servers with failed TLS) that are tried for one client \
               or request.",
        example: "attempts_max = 2",
        section: "#when-servers-cannot-be-reached",
    },
    Key {
        tables: &["service"],
        name: "connect_time_max",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "duration",
        default: "`\"10s\"`",
        text: "Time after which no further server is tried and a pending connection attempt ends; at \
               least `connect_timeout`.",
        example: "connect_time_max = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "backlog",
        plane: "proxy",
        protocols: &["tcp", "http", "dns"],
        kind: "1 to 65535",
        default: "4096",
        text: "Length of the accept queue (bounded by net.core.somaxconn).",
        example: "backlog = 1024",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "nodelay",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "boolean",
        default: "`true`",
        text: "Sends small segments immediately (`TCP_NODELAY`).",
        example: "nodelay = false",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "keepalive",
        plane: "proxy",
        protocols: &["tcp", "http", "dns"],
        kind: "duration or `false`",
        default: "`\"75s\"`",
        text: "Idle time before TCP keepalive probes to clients. Idle HTTP connections end by \
               `keepalive_timeout`.",
        example: "keepalive = \"60s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "server_keepalive",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "duration or `false`",
        default: "`false`",
        text: "Idle time before TCP keepalive probes to servers. Costs two system calls for each \
               connection.",
        example: "server_keepalive = \"60s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "fast_close",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "`\"off\"`, `\"client\"`, `\"server\"`, `\"both\"`",
        default: "`\"off\"`",
        text: "The side whose close ends both sides immediately; bytes sent before the close still \
               arrive, within 5 s. `\"off\"`: a half-closed connection continues in the other \
               direction.",
        example: "fast_close = \"both\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "pending_max",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "1 to 16000000",
        default: "none",
        text: "Pending connection attempts to servers. At the limit accepting pauses (already \
               accepted clients and their requests may exceed it).",
        example: "pending_max = 1000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "warm",
        plane: "proxy",
        protocols: &["tcp", "http"],
        kind: "0 to 10000",
        default: "0",
        text: "Server connections that are opened in advance, spread over the service's own pool \
               (not those of routes); cannot be combined with `tls`, `send_proxy` and `source = \
               \"client\"`. They do not count as connections of a server: clients never find it full \
               because of them. A server with a `max` has at most as many as its free connections \
               below `max`, less one; a surplus is closed within a second.",
        example: "warm = 16",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "clients",
        plane: "proxy",
        kind: "1 to 16000000",
        default: "none",
        text: "Number of clients (IP addresses) that are recorded for `evener clients`, refused ones \
               included. A full table evicts the least recently seen.",
        example: "clients = 10000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "request_log",
        plane: "proxy",
        kind: "file, `\"-\"`, or table",
        default: "none",
        text: "A line for each request (http), query (dns) or flow (udp), to a file, (`\"-\"`) to the standard \
               output, to a collector or to syslog. tcp: a line for each connection with `format = \"text\"` or \
               `\"json\"`, else for each piece that a client sends. See [operating](operating.md#request-logs).",
        example: "request_log = \"requests.log\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.request_log"],
        name: "file",
        kind: "file or `\"-\"`",
        text: "The file, which is opened again at a reload, or `\"-\"` for the standard output.",
        example: "file = \"requests.log\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.request_log"],
        name: "udp",
        kind: "address",
        text: "Sends each line in a datagram to this address, instead of writing a file; by default as \
               `+ client server request`, to penlogd (tcp, http).",
        example: "udp = \"10.0.0.9:10000\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.request_log"],
        name: "syslog",
        kind: "path",
        text: "Sends each line to the system's log, whose socket has this path, instead of writing a file.",
        example: "syslog = \"/dev/log\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.request_log"],
        name: "sample",
        kind: "0.000001 to 1",
        default: "1",
        text: "Share of the requests, connections, queries or flows that are logged, evenly spread. Not for the \
               format `\"pen\"`.",
        example: "file = \"requests.log\", format = \"json\", sample = 0.01",
        ..Key::NONE
    },
    Key {
        tables: &["service.request_log"],
        name: "format",
        kind: "`\"text\"`, `\"json\"`, `\"common\"`, `\"combined\"`, `\"pen\"`, or a text",
        default: "`\"text\"`; tcp, and http with `udp`: `\"pen\"`",
        text: "Form of a line: one of these formats, or a text with placeholders, such as \
               `\"{client} {status} {duration}\"`, or with codes of HAProxy (`%ci`) or variables of nginx \
               (`$remote_addr`). `\"common\"` and `\"combined\"` are for http, `\"pen\"` is for \
               tcp and http.",
        example: "file = \"requests.log\", format = \"json\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "flows_max",
        plane: "proxy",
        protocols: &["udp"],
        kind: "1 to 16000000",
        default: "65536",
        text: "Concurrent flows. A full table evicts the longest unused flow. The number is split \
               between the workers.",
        example: "flows_max = 100000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "spread",
        plane: "proxy",
        protocols: &["udp"],
        kind: "1 to 1000000",
        default: "none",
        text: "Number of datagrams of one client (address and port) after which the policy picks \
               again, for syslog, statsd, NetFlow: with `spread = 1` each datagram goes to the next \
               server. Without it a client keeps its server as long as its flow lives. The client \
               has a flow to each of its servers and gets all their responses. Cannot be combined \
               with `sticky`, hash, maglev and first.",
        example: "spread = 1",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "dns",
        plane: "proxy",
        protocols: &["dns"],
        kind: "table",
        default: "the defaults",
        text: "Retries, cache and limits of DNS queries.",
        example: "dns = { query_timeout = \"2s\", cache = true }",
        section: "#protocol--dns",
    },
];
