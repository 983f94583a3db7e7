//! Keys of checks.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "every",
        kind: "duration",
        default: "`\"2s\"`",
        text: "Interval; at least 10 ms.",
        example: "every = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.smtp",
            "check.exec",
        ],
        name: "timeout",
        kind: "duration",
        default: "`\"1s\"`",
        text: "Time for the response; at most 60 s.",
        example: "timeout = \"500ms\"",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "rise",
        kind: "1 to 100",
        default: "2",
        text: "Consecutive passed checks after which a server is up. The first check of a server \
               decides alone.",
        example: "rise = 2",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "fall",
        kind: "1 to 100",
        default: "3",
        text: "Consecutive failed checks after which a server is down.",
        example: "fall = 3",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "jitter",
        kind: "0 to 1",
        default: "0.1",
        text: "Fraction of `every` by which each probe is shifted at random.",
        example: "jitter = 0.2",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "warm_up",
        kind: "duration",
        default: "none",
        text: "The first check of a server comes after a random part of this time.",
        example: "warm_up = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &[
            "check.tcp",
            "check.tls",
            "check.http",
            "check.https",
            "check.udp",
            "check.dns",
            "check.script",
            "check.smtp",
            "check.exec",
        ],
        name: "port",
        kind: "1 to 65535",
        default: "the server's",
        text: "Another port.",
        example: "port = 8081",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "method",
        kind: "text",
        default: "`\"GET\"`",
        text: "Method of the request.",
        example: "method = \"HEAD\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "path",
        kind: "text",
        default: "`\"/\"`",
        text: "Path of the request.",
        example: "path = \"/health\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "host",
        kind: "host name",
        default: "the server's address",
        text: "The Host header of the request.",
        example: "host = \"www.example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "status",
        kind: "status or list",
        default: "200 to 399",
        text: "Statuses that pass.",
        example: "status = { 200, 204 }",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "body",
        kind: "text",
        default: "anything",
        text: "Text that the first 64 KiB of the body must contain.",
        example: "body = \"ok\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "regex",
        kind: "text",
        default: "anything",
        text: "Regular expression that the first 64 KiB of the body must match. Its time is bounded, \
               so it has no backreferences and no look-around.",
        example: "regex = \"peers: [1-9]\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.http", "check.https"],
        name: "digest",
        kind: "text",
        default: "anything",
        text: "Digest of the whole body, at most 64 MiB, in hexadecimal: 32 digits for MD5 (as \
               `genhash` prints), 64 for SHA-256.",
        example: "digest = \"9a0364b9e99bb480dd25e1f0284c8555\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.https", "check.tls"],
        name: "sni",
        kind: "host name",
        default: "`host`, the server's name or address",
        text: "The name that is sent and verified.",
        example: "sni = \"app.example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.https", "check.tls"],
        name: "verify",
        kind: "boolean",
        default: "`true`",
        text: "`false` accepts any certificate.",
        example: "verify = false",
        ..Key::NONE
    },
    Key {
        tables: &["check.https", "check.tls"],
        name: "ca",
        kind: "file",
        default: "the system's",
        text: "A PEM file with the trusted authorities.",
        example: "ca = \"ca.pem\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.udp", "check.tcp", "check.tls"],
        name: "send",
        kind: "text",
        default: "nothing; udp: required",
        text: "Bytes to send: udp the datagram, at most 1400 bytes; tcp, tls once the connection \
               (and the handshake) is established, at most 4096. `\"\\1\\2\"` are bytes.",
        example: "send = \"PING\\r\\n\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.tcp", "check.tls"],
        name: "begins",
        kind: "text",
        default: "anything",
        text: "First bytes of the response, at most 4096.",
        example: "begins = \"220 \"",
        ..Key::NONE
    },
    Key {
        tables: &["check.tcp", "check.tls", "check.udp"],
        name: "expect",
        kind: "text",
        default: "anything",
        text: "tcp, tls: text in the first 64 KiB of the response, at most 4096 bytes; udp: first \
               bytes of the response.",
        example: "send = \"PING\\r\\n\", expect = \"PONG\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.dns"],
        name: "name",
        kind: "domain name",
        default: "`\"a.root-servers.net.\"`",
        text: "The name to query over UDP; a truncated response passes.",
        example: "name = \"example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.dns"],
        name: "type",
        kind: "text",
        default: "`\"A\"`",
        text: "The type to query: `\"A\"`, `\"SOA\"`, ..., or a number as `\"TYPE65280\"`.",
        example: "type = \"SOA\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.dns"],
        name: "rcode",
        kind: "text",
        default: "any",
        text: "The required RCODE: `\"NOERROR\"`, `\"NXDOMAIN\"`, `\"REFUSED\"`, ...",
        example: "rcode = \"NOERROR\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.script"],
        name: "timeout",
        kind: "duration",
        default: "`\"5s\"`",
        text: "Time for the function; at most 60 s.",
        example: "timeout = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.script"],
        name: "run",
        kind: "function",
        text: "The function. It gets the server and its pool, and returns true, or false and a reason, or \
               nothing for no verdict.",
        example: "run = function(server, pool) return tcp.connect(server.address) ~= nil end",
        ..Key::NONE
    },
    Key {
        tables: &["check.script"],
        name: "on_error",
        kind: "`\"keep\"`, `\"down\"`",
        default: "`\"keep\"`",
        text: "If the function fails or is stopped, the server keeps its verdict, or the check failed.",
        example: "on_error = \"down\"",
        ..Key::NONE
    },
    Key {
        tables: &["check.smtp"],
        name: "helo",
        kind: "host name",
        default: "`\"localhost\"`",
        text: "Name of the client in EHLO and HELO.",
        example: "helo = \"lb.example.org\"",
        ..Key::NONE
    },
];
