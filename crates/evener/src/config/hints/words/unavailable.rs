//! Words for features that Evener does not have, or has without a key.

use super::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        words: "headers request_headers header http_headers customrequestheaders",
        tables: "check.http check.https",
        key: "check.http",
        advice: "remove it: the request of a check has only the field Host, which `host` sets",
        ..Word::NONE
    },
    Word {
        words: "headers request_headers response_headers custom_headers add_header set_header \
                 customrequestheaders customresponseheaders http_headers",
        tables: "service service.routes pool",
        key: "service.forwarded",
        advice: "remove it: headers of requests and responses cannot be set, except X-Forwarded-For and \
                 similar fields, by forwarded",
        ..Word::NONE
    },
    Word {
        words: "add_header set_header response_headers request_headers response_headers_to_add \
                 request_headers_to_add",
        of: "nginx, HAProxy, Envoy",
        key: "service.forwarded",
        advice: "headers of requests and responses cannot be set, except X-Forwarded-For and similar \
                 fields, by forwarded",
        ..Word::NONE
    },
    Word {
        words: "errorfile error_page errorfiles handle_errors error_pages",
        of: "HAProxy, nginx, Caddy, Traefik",
        key: "service",
        advice: "remove it: the pages of errors cannot be changed",
        ..Word::NONE
    },
    Word {
        words: "rewrite uri_rewrite strip_prefix replace_path prefix_rewrite handle_path add_prefix",
        of: "nginx, Caddy, Traefik, Envoy",
        key: "service",
        advice: "remove it: paths are passed on unchanged and cannot be rewritten",
        ..Word::NONE
    },
    Word {
        words: "root file_server alias try_files index static autoindex",
        of: "nginx, Caddy",
        key: "service",
        advice: "remove it: Evener serves no files; list a server that does",
        ..Word::NONE
    },
    Word {
        words: "http3 h3 quic",
        of: "nginx, Caddy, Traefik",
        key: "service.http2",
        advice: "remove it: HTTP/3 is not available; HTTP/2 is negotiated by default with TLS",
        ..Word::NONE
    },
    Word {
        words: "gzip compression compress encode brotli gzip_types compressor",
        of: "nginx, HAProxy, Caddy, Traefik",
        key: "service",
        advice: "remove it: compression is not available; responses are passed on as the servers send them",
        ..Word::NONE
    },
    Word {
        words: "auth basic_auth auth_basic basicauth forward_auth auth_request jwt authentication htpasswd \
                 userlist",
        of: "nginx, HAProxy, Caddy, Traefik",
        key: "service.allow",
        advice: "remove it: users and passwords are not checked; allow, deny and tls.client_ca admit clients",
        ..Word::NONE
    },
    Word {
        words: "cors hsts security_headers csp strict_transport_security",
        of: "Traefik, Envoy",
        key: "service",
        advice: "remove it: let the servers send these headers; response headers cannot be set",
        ..Word::NONE
    },
    Word {
        words: "mirror mirroring shadow request_mirror_policies traffic_mirroring",
        of: "nginx, Traefik, Envoy",
        key: "service",
        advice: "remove it: requests cannot be sent to a second pool as copies",
        ..Word::NONE
    },
    Word {
        words: "buffering proxy_buffering proxy_request_buffering buffer_requests buffer proxy_buffers",
        of: "nginx, Traefik",
        key: "service",
        advice: "remove it: bodies are passed on as they arrive and are not buffered",
        ..Word::NONE
    },
    Word {
        words: "websocket websockets upgrade proxy_http_version upgrade_configs",
        of: "nginx, Envoy",
        key: "service.protocol",
        advice: "remove it: WebSocket and other upgrades work without a key with protocol = \"http\"",
        ..Word::NONE
    },
    Word {
        words: "cipher ciphers ssl_ciphers cipher_suites ciphersuites ssl_prefer_server_ciphers curves ecdhe",
        of: "nginx, HAProxy, Caddy, Traefik",
        key: "service.tls.min_version",
        advice: "remove it: only secure cipher suites of TLS 1.2 and 1.3 are used and cannot be chosen; \
                 min_version = \"1.3\" excludes TLS 1.2",
        ..Word::NONE
    },
    Word {
        words: "to url host location target",
        tables: "service.redirect",
        key: "service.redirect",
        advice: "only https of the same host is available: write redirect = \"https\"",
        ..Word::NONE
    },
    Word {
        words: "global globals defaults settings events",
        of: "HAProxy, nginx",
        key: "service",
        advice: "there is no such section: settings are keys of a service or a pool, and of `evener run`",
        ..Word::NONE
    },
];
