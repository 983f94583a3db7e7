//! Words for keys of services, and of programs.

use super::Word;

pub(super) const WORDS: &[Word] = &[
    Word { words: "bind", of: "HAProxy", key: "service.listen", ..Word::NONE },
    Word { words: "address", tables: "service", key: "service.listen", advice: "use `listen`", ..Word::NONE },
    Word {
        words: "listen_address addresses listener listeners entrypoint entrypoints entry_points",
        of: "Traefik, Envoy",
        key: "service.listen",
        ..Word::NONE
    },
    Word {
        words: "mode type network proto",
        of: "HAProxy",
        tables: "service",
        key: "service.protocol",
        ..Word::NONE
    },
    Word {
        words: "maxconn max_conns max_connections max_clients maxclients conn_max",
        of: "HAProxy, nginx, Envoy, pen",
        tables: "service",
        key: "service.connections_max",
        ..Word::NONE
    },
    Word { words: "worker_connections", of: "nginx", key: "service.connections_max", ..Word::NONE },
    Word {
        words: "default_backend backend use_backend cluster proxy_pass reverse_proxy to service \
                 default_pool upstreams load_balancer loadbalancer",
        of: "HAProxy, nginx, Caddy, Traefik, Envoy",
        tables: "service",
        key: "service.pool",
        advice: "write pool = \"web\", the name of a pool, or list the servers in the service",
    },
    Word {
        words: "default_backend backend use_backend cluster proxy_pass service",
        of: "HAProxy, nginx",
        tables: "service.routes",
        key: "service.routes.pool",
        advice: "use `pool`",
    },
    Word {
        words: "proxy_pass reverse_proxy default_backend",
        of: "nginx, Caddy",
        key: "service.pool",
        advice: "write pool = \"web\" in a service, or list the servers in it",
        ..Word::NONE
    },
    Word {
        words: "port",
        tables: "service",
        key: "service.listen",
        advice: "the port is part of `listen`",
        ..Word::NONE
    },
    Word {
        words: "content_type mime",
        tables: "service.respond",
        key: "service.respond.type",
        advice: "use `type`",
        ..Word::NONE
    },
    Word { words: "proxy_next_upstream_tries", of: "nginx", key: "service.attempts_max", ..Word::NONE },
    Word {
        words: "retry retry_policy num_retries max_attempts",
        of: "Envoy, Traefik",
        key: "service.retries",
        advice: "write retries = 2 (http; dns: dns = { retries = 2 })",
        ..Word::NONE
    },
    Word { words: "lb_try_duration", of: "Caddy", key: "service.connect_time_max", ..Word::NONE },
    Word {
        words: "accept_proxy proxy_protocol",
        of: "HAProxy, nginx",
        key: "service.proxy_from",
        advice: "write proxy_from = \"10.0.0.0/8\", the addresses of the proxies that send it",
        ..Word::NONE
    },
    Word {
        words: "forwardfor option_forwardfor x_forwarded_for proxy_set_header header_up \
                 forwarded_headers pass_host_header",
        of: "HAProxy, nginx, Caddy, Traefik",
        key: "service.forwarded",
        advice: "`X-Forwarded-For` and similar fields are written by default, and Host is passed on; \
                 see `evener help forwarded`",
        ..Word::NONE
    },
    Word {
        words: "trust trusted_ips trusted_proxies set_real_ip_from real_ip_header xff_num_trusted_hops",
        of: "nginx, Caddy, Traefik, Envoy",
        tables: "service",
        key: "service.forwarded.trust",
        ..Word::NONE
    },
    Word {
        words: "trusted_ips trusted_proxies",
        of: "Caddy, Traefik",
        tables: "service.forwarded",
        key: "service.forwarded.trust",
        advice: "use `trust`",
    },
    Word {
        words: "timeout",
        of: "HAProxy",
        tables: "service pool server",
        key: "service.idle_timeout",
        advice: "see idle_timeout and connect_timeout (http: response_timeout, too)",
    },
    Word {
        words: "timeout_connect proxy_connect_timeout dial_timeout",
        of: "HAProxy, nginx, Caddy",
        key: "service.connect_timeout",
        ..Word::NONE
    },
    Word {
        words: "timeout_client timeout_tunnel timeout_idle idle proxy_timeout client_timeout",
        of: "HAProxy, nginx",
        key: "service.idle_timeout",
        ..Word::NONE
    },
    Word {
        words: "timeout_server proxy_read_timeout server_timeout timeout_response read_timeout response_header_timeout",
        of: "HAProxy, nginx, Caddy",
        key: "service.response_timeout",
        ..Word::NONE
    },
    Word {
        words: "timeout_http_request client_header_timeout read_header_timeout",
        of: "HAProxy, nginx, Caddy",
        key: "service.header_timeout",
        ..Word::NONE
    },
    Word {
        words: "timeout_http_keep_alive keep_alive_timeout",
        of: "HAProxy",
        key: "service.keepalive_timeout",
        ..Word::NONE
    },
    Word {
        words: "client_body_timeout send_timeout proxy_send_timeout stream_idle_timeout",
        of: "nginx, Envoy",
        key: "service.stall_timeout",
        ..Word::NONE
    },
    Word { words: "timeout_client_fin", of: "HAProxy", key: "service.half_closed_timeout", ..Word::NONE },
    Word {
        words: "keepalive keepalive_requests",
        of: "nginx",
        tables: "pool",
        key: "service.keepalive_timeout",
        advice: "connections to servers are kept and shared without a key; keepalive and \
                 server_keepalive of a service are TCP keepalive",
    },
    Word {
        words: "client_max_body_size max_request_body_size max_body max_body_size body_max max_request_bytes \
                 request_body",
        of: "nginx",
        key: "service.min_rate",
        advice: "remove it: bodies have no maximum size; min_rate and stall_timeout bound their time",
        ..Word::NONE
    },
    Word {
        words: "large_client_header_buffers max_header_bytes max_request_headers_kb",
        of: "nginx, Caddy, Envoy",
        key: "service.header_bytes_max",
        ..Word::NONE
    },
    Word {
        words: "server_name host location path path_prefix rule",
        of: "nginx, Traefik",
        tables: "service",
        key: "service.routes.host",
        advice: "write routes = { { host = \"www.example.org\", path = \"/\", pool = \"web\" } }",
    },
    Word {
        words: "server_name server_names domains domain hostname hosts",
        of: "nginx, Envoy",
        tables: "service.routes",
        key: "service.routes.host",
        advice: "use `host`",
    },
    Word {
        words: "server servers backends upstreams endpoints address",
        tables: "service.routes",
        key: "service.routes.pool",
        advice: "a route names a pool: declare pool \"www\" { \"10.0.0.1:80\" } and write pool = \"www\"",
        ..Word::NONE
    },
    Word {
        words: "location prefix path_prefix uri url rule match",
        of: "nginx, Traefik, Envoy",
        tables: "service.routes",
        key: "service.routes.path",
        advice: "use `path`",
    },
    Word {
        words: "acl http_request_deny",
        of: "HAProxy",
        key: "service.access",
        advice: "write access = { { deny = \"10.0.0.0/8\" } }, or routes by host and path",
        ..Word::NONE
    },
    Word {
        words: "routers router route route_config virtual_hosts filter_chains handle locations",
        of: "Traefik, Envoy, Caddy",
        key: "service.routes",
        ..Word::NONE
    },
    Word {
        words: "http_request return redir redirect_scheme",
        of: "HAProxy, nginx, Caddy, Traefik",
        key: "service.redirect",
        advice: "write redirect = \"https\", or respond = { status = 503 }",
        ..Word::NONE
    },
    Word {
        words: "tcp_request http_response allowlist ip_allow_list ip_white_list whitelist",
        of: "HAProxy, Traefik",
        key: "service.allow",
        advice: "write allow = \"10.0.0.0/8\" or deny = \"192.0.2.0/24\"",
        ..Word::NONE
    },
    Word { words: "denylist ip_deny_list client_acl", of: "pen", key: "service.deny", ..Word::NONE },
    Word {
        words: "allow",
        tables: "service.access server.access",
        key: "service.access.permit",
        advice: "use `permit`",
        ..Word::NONE
    },
    Word {
        words: "limit_req rate_limit ratelimit rate_limiting limit_req_zone",
        of: "nginx, Traefik",
        tables: "pool server",
        key: "service.per_client.request_rate",
        ..Word::NONE
    },
    Word {
        words: "limit_req ratelimit rate_limiting limit_req_zone",
        of: "nginx, Traefik",
        key: "service.per_client.request_rate",
        ..Word::NONE
    },
    Word {
        words: "limit_conn limit_conn_zone in_flight_req",
        of: "nginx, Traefik",
        key: "service.per_client.connections",
        ..Word::NONE
    },
    Word {
        words: "middlewares filters http_filters plugins",
        of: "Traefik, Envoy",
        key: "service.per_client",
        advice: "there are keys instead: redirect, respond, allow, deny and per_client of a service",
        ..Word::NONE
    },
    Word {
        words: "ssl https",
        of: "HAProxy, nginx",
        tables: "service",
        key: "service.tls",
        advice: "write tls = { certificate = \"site.crt\", key = \"site.key\" }",
    },
    Word {
        words: "crt cert ssl_certificate cert_file certificate_file tls_cert pem",
        of: "HAProxy, nginx, Traefik",
        tables: "service.tls service.tls.certificates pool.tls",
        key: "service.tls.certificate",
        advice: "use `certificate`",
    },
    Word {
        words: "ssl_certificate crt cert ssl_certificate_key cert_file key_file keyfile tls_cert tls_key \
                 tls_certificate",
        of: "HAProxy, nginx, Traefik",
        key: "service.tls.certificate",
        ..Word::NONE
    },
    Word {
        words: "ssl_certificate_key key_file keyfile private_key",
        of: "nginx, Traefik",
        tables: "service.tls service.tls.certificates pool.tls",
        key: "service.tls.key",
        advice: "use `key`",
    },
    Word {
        words: "ca_file cafile ssl_client_certificate ca ca_cert",
        of: "HAProxy, nginx",
        tables: "service.tls",
        key: "service.tls.client_ca",
        advice: "use `client_ca`",
    },
    Word {
        words: "verify client_auth ssl_verify_client",
        of: "HAProxy, nginx",
        tables: "service.tls",
        key: "service.tls.client_certificate",
        advice: "use `client_certificate`",
    },
    Word {
        words: "ssl_protocols ssl_min_ver min_ver protocols min_tls_version versions tls_versions",
        of: "nginx, HAProxy, Caddy",
        key: "service.tls.min_version",
        advice: "write tls = { min_version = \"1.2\" }, or \"1.3\"",
        ..Word::NONE
    },
    Word {
        words: "certresolver cert_resolver acme lets_encrypt letsencrypt",
        of: "Traefik, Caddy",
        key: "service.tls.directory",
        advice: "there is no ACME client: let certbot or lego write the files, write tls = { directory \
                 = \"certificates\" }, and they are read again when they change",
        ..Word::NONE
    },
    Word {
        words: "ssl_protocols min_ver protocols protocol version versions min_tls_version",
        of: "nginx, Caddy",
        tables: "service.tls",
        key: "service.tls.min_version",
        advice: "write min_version = \"1.2\", or \"1.3\"",
    },
    Word {
        words: "h2 enable_http2 alpn_protocols",
        of: "Caddy",
        key: "service.http2",
        advice: "HTTP/2 is negotiated by default with TLS; write http2 = false to disable it",
        ..Word::NONE
    },
    Word {
        words: "alpn",
        of: "HAProxy",
        tables: "service",
        key: "service.tls.alpn",
        advice: "http services negotiate h2 and http/1.1 by themselves; tcp: write tls = { alpn = \
                 \"http/1.1\" }",
    },
    Word {
        words: "access_log log option_httplog log_format",
        of: "nginx, HAProxy, Caddy",
        key: "service.request_log",
        ..Word::NONE
    },
    Word {
        words: "source_address proxy_bind usesrc",
        of: "nginx, HAProxy",
        key: "service.source",
        ..Word::NONE
    },
    Word {
        words: "transparent",
        of: "nginx, HAProxy",
        key: "service.source",
        advice: "write source = \"client\"",
        ..Word::NONE
    },
    Word { words: "tcp_nodelay", of: "nginx", key: "service.nodelay", ..Word::NONE },
    Word { words: "tcp_fastclose", of: "pen", key: "service.fast_close", ..Word::NONE },
    Word {
        words: "http_reuse",
        of: "HAProxy",
        key: "service.balance_per",
        advice: "connections to servers are shared by default; write balance_per = \"connection\" to \
                 change it",
        ..Word::NONE
    },
    Word {
        words: "proxy_cache cache_control",
        of: "nginx",
        key: "service.dns.cache",
        advice: "only dns services cache",
        ..Word::NONE
    },
    Word {
        words: "proxy_cache_use_stale serve_stale",
        of: "nginx",
        key: "service.dns.cache.stale",
        ..Word::NONE
    },
    Word {
        words: "user group chroot daemon pidfile pid",
        of: "HAProxy, nginx, pen",
        key: "service",
        advice: "the service manager does this: see the unit file of systemd in docs/operating.md",
        ..Word::NONE
    },
    Word {
        words: "nbthread nbproc worker_processes threads concurrency workers",
        of: "HAProxy, nginx, Envoy",
        key: "service",
        advice: "write evener run --workers N; by default there is a worker for each core",
        ..Word::NONE
    },
    Word {
        words: "api",
        of: "Traefik",
        tables: "service pool",
        key: "service",
        advice: "use evener status, and the HTTP API of its socket: see docs/api.md",
    },
    Word {
        words: "stats stats_socket admin dashboard web_stats",
        of: "HAProxy, Traefik, Envoy, pen",
        key: "service",
        advice: "use evener status, and the HTTP API of its socket: see docs/api.md",
        ..Word::NONE
    },
];
