//! Keys of http services.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service"],
        name: "balance_per",
        protocols: &["http"],
        kind: "`\"request\"`, `\"connection\"`",
        default: "`\"request\"`",
        text: "Picks a server for each request or each connection. With `\"connection\"` a client's \
               connection keeps its server and has its own connection to it.",
        example: "balance_per = \"connection\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "forwarded",
        protocols: &["http"],
        kind: "word or table",
        default: "`\"replace\"`",
        text: "Information about the client for servers: `\"replace\"`, `\"append\"` or `\"off\"`, \
               or a table.",
        example: "forwarded = \"append\"",
        section: "#forwarding-information",
        ..Key::NONE
    },
    Key {
        tables: &["service.forwarded"],
        name: "mode",
        kind: "`\"replace\"`, `\"append\"`, `\"off\"`",
        default: "`\"replace\"`",
        text: "Treatment of the information that a request already has.",
        example: "mode = \"append\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.forwarded"],
        name: "trust",
        kind: "prefix or list",
        default: "none",
        text: "Trusted proxies before this service, whose information about the client is used.",
        example: "trust = \"10.0.0.0/8\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.forwarded"],
        name: "headers",
        kind: "`\"x-forwarded\"`, `\"forwarded\"`, `\"both\"`",
        default: "`\"x-forwarded\"`",
        text: "The fields that are read and written: `X-Forwarded-For` and similar fields, or \
               `Forwarded` (RFC 7239).",
        example: "headers = \"forwarded\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "redirect",
        protocols: &["http"],
        kind: "`\"https\"` or table",
        default: "none",
        text: "Redirects every request without a route to https; needs no pool.",
        example: "redirect = \"https\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.redirect"],
        name: "status",
        kind: "301, 302, 307, 308",
        default: "308",
        text: "Status of the response.",
        example: "status = 301",
        ..Key::NONE
    },
    Key {
        tables: &["service.redirect"],
        name: "port",
        kind: "1 to 65535",
        default: "443",
        text: "Port in the new URL.",
        example: "port = 8443",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "respond",
        protocols: &["http"],
        kind: "table",
        default: "none",
        text: "Local response to every request without a route; needs no pool; excludes `redirect`.",
        example: "respond = { status = 200, type = \"text/html\", body = \"It works\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.respond"],
        name: "status",
        kind: "200 to 599",
        default: "200",
        text: "Status of the response.",
        example: "status = 503",
        ..Key::NONE
    },
    Key {
        tables: &["service.respond"],
        name: "type",
        kind: "text",
        default: "`\"text/plain; charset=utf-8\"`",
        text: "Value of the field `Content-Type`.",
        example: "type = \"text/html\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.respond"],
        name: "body",
        kind: "text",
        default: "empty",
        text: "Body of the response.",
        example: "body = \"It works\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "health",
        protocols: &["http"],
        kind: "path",
        default: "none",
        text: "Path with a local response: 200 while a pool of `pool` or `routes` has a usable \
               server (or there is only `redirect` and no pool), else 503. Checks of servers have \
               their own path: `check = check.http { path = \"/health\" }`.",
        example: "health = \"/evener-health\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "retries",
        protocols: &["http"],
        kind: "0 to 100",
        default: "2",
        text: "Number of times that an idempotent request (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) \
               without any response is sent again, to another server; the bytes sent must fit 64 \
               KiB. After a refused connection attempt the request always goes to the next server.",
        example: "retries = 1",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "header_timeout",
        protocols: &["http"],
        kind: "duration",
        default: "`\"10s\"`",
        text: "Time for the header section of a request, from its first byte. The response after it \
               is 408.",
        example: "header_timeout = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "keepalive_timeout",
        protocols: &["http"],
        kind: "duration",
        default: "`\"60s\"`",
        text: "Time for which a connection without a request stays open, also before the first \
               request.",
        example: "keepalive_timeout = \"65s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "stall_timeout",
        protocols: &["http"],
        kind: "duration",
        default: "`\"30s\"`",
        text: "Time after which a body without progress ends, in either direction.",
        example: "stall_timeout = \"60s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "min_rate",
        protocols: &["http"],
        kind: "bytes a second, table or `false`",
        default: "240",
        text: "Minimum rate of bodies; `false` or 0 for none.",
        example: "min_rate = { rate = 240, window = \"60s\" }",
        section: "#slow-and-leaving-clients",
        ..Key::NONE
    },
    Key {
        tables: &["service.min_rate"],
        name: "rate",
        kind: "0 to 1000000000",
        default: "240",
        text: "Bytes a second; 0 for no minimum.",
        example: "rate = 500",
        ..Key::NONE
    },
    Key {
        tables: &["service.min_rate"],
        name: "window",
        kind: "duration",
        default: "`\"60s\"`",
        text: "Time over which the rate is measured, from 1 s to 1 h.",
        example: "window = \"30s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "abort_on_close",
        protocols: &["http"],
        kind: "`\"idempotent\"`, `true`, `false`",
        default: "`\"idempotent\"`",
        text: "Requests that are given up when their client closes: idempotent requests, all, or \
               none.",
        example: "abort_on_close = true",
        section: "#slow-and-leaving-clients",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "response_timeout",
        protocols: &["http"],
        kind: "duration",
        default: "`\"60s\"`",
        text: "Time for a server to begin its response. The response after it is 504.",
        example: "response_timeout = \"10s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "header_bytes_max",
        protocols: &["http"],
        kind: "1024 to 65536",
        default: "32768",
        text: "Size of the header section. A larger request gets 431, a larger response becomes 502.",
        example: "header_bytes_max = 16384",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "header_fields_max",
        protocols: &["http"],
        kind: "8 to 10000",
        default: "128",
        text: "Number of fields of the header section. Each part of an HTTP/2 client's cookie counts \
               before they are joined.",
        example: "header_fields_max = 100",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "certificate_header",
        protocols: &["http"],
        kind: "name",
        default: "none",
        text: "The header field in which servers get the subject of the client's certificate (RFC \
               4514). The client's own field is always removed.",
        example: "certificate_header = \"X-Client-Subject\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "http2",
        protocols: &["http"],
        kind: "boolean",
        default: "`true`",
        text: "HTTP/2 with clients that negotiate it in the TLS handshake (ALPN).",
        example: "http2 = false",
        ..Key::NONE
    },
];
