//! Words for keys of pools, servers and checks.

use super::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        words: "balance algorithm lb_policy lb_algorithm load_balancing lb_algo method",
        of: "HAProxy, Caddy, Envoy",
        tables: "service pool",
        key: "pool.policy",
        ..Word::NONE
    },
    Word {
        words: "maxconn max_conns max_connections max_clients connections_max max_requests \
                 unhealthy_request_count",
        of: "HAProxy, nginx, Envoy",
        tables: "pool",
        key: "server.max",
        advice: "limits are keys of a server: write { \"10.0.0.1:80\", max = 100 }",
    },
    Word {
        words: "maxconn max_conns max_connections connections_max max_requests fullconn",
        of: "HAProxy, nginx, Envoy",
        tables: "server",
        key: "server.max",
        advice: "use `max` or `hard`",
    },
    Word {
        words: "circuit_breakers circuit_breaker thresholds",
        of: "Envoy, Traefik",
        key: "server.max",
        advice: "limits are keys of a server: write { \"10.0.0.1:80\", max = 100 }; failures are counted \
                 by passive",
        ..Word::NONE
    },
    Word {
        words: "max_pending_requests maxqueue",
        of: "Envoy, HAProxy",
        key: "pool.queue.size",
        ..Word::NONE
    },
    Word { words: "timeout_queue", of: "HAProxy", key: "pool.queue.timeout", ..Word::NONE },
    Word { words: "max_retries retry_budget_percent", of: "Envoy", key: "pool.retry_budget", ..Word::NONE },
    Word {
        words: "servers server backends upstream endpoints lb_endpoints load_assignment hosts members \
                 nodes targets",
        of: "nginx, Traefik, Envoy",
        tables: "service pool",
        key: "server",
        advice: "write the servers without a key and its braces, such as pool \"web\" { \"10.0.0.1:80\", \"10.0.0.2:80\" }",
    },
    Word {
        words: "port host address url ip",
        tables: "server",
        key: "server",
        advice: "the address with its port comes first: { \"10.0.0.1:80\", ... }",
        ..Word::NONE
    },
    Word {
        words: "option_httpchk httpchk option http_check option_tcp_check healthcheck health_check \
                 health_checks healthchecks active_health_check",
        of: "HAProxy, Traefik, Envoy",
        key: "pool.check",
        advice: "write check = check.http { path = \"/health\" }",
        ..Word::NONE
    },
    Word { words: "health_uri health_path", of: "Caddy", key: "check.http.path", ..Word::NONE },
    Word {
        words: "uri url",
        tables: "check.http check.https",
        key: "check.http.path",
        advice: "use `path`",
        ..Word::NONE
    },
    Word { words: "health_interval", of: "Caddy", key: "check.http.every", ..Word::NONE },
    Word {
        words: "interval inter period",
        of: "HAProxy, Traefik, Envoy",
        tables: "check.tcp check.tls check.http check.https check.udp check.dns check.smtp",
        key: "check.http.every",
        advice: "use `every`",
    },
    Word {
        words: "inter interval fastinter",
        of: "HAProxy, Traefik",
        tables: "pool server service",
        key: "check.http.every",
        ..Word::NONE
    },
    Word { words: "health_timeout", of: "Caddy", key: "check.http.timeout", ..Word::NONE },
    Word { words: "health_status expect_status", of: "Caddy", key: "check.http.status", ..Word::NONE },
    Word {
        words: "code status_code expected_statuses",
        of: "Envoy",
        tables: "check.http check.https service.respond service.redirect",
        key: "check.http.status",
        advice: "use `status`",
    },
    Word {
        words: "file",
        tables: "pool.discover",
        key: "discover.file",
        advice: "write discover.file \"servers.txt\" among the servers",
        ..Word::NONE
    },
    Word {
        words: "dns",
        tables: "pool.discover",
        key: "discover.dns",
        advice: "write discover.dns \"app.example:80\" among the servers",
        ..Word::NONE
    },
    Word {
        words: "srv",
        tables: "pool.discover",
        key: "discover.srv",
        advice: "write discover.srv \"_http._tcp.example.org\" among the servers",
        ..Word::NONE
    },
    Word { words: "health_port", of: "Caddy", key: "check.http.port", ..Word::NONE },
    Word {
        words: "threshold",
        tables: "check.tcp check.tls check.http check.https check.udp check.dns check.smtp",
        key: "check.http.fall",
        advice: "use `fall` for the failures until a server is down, and `rise` for the successes until it is up",
        ..Word::NONE
    },
    Word {
        words: "expect match",
        of: "nginx",
        tables: "check.http check.https",
        key: "check.http.body",
        advice: "use `body`",
    },
    Word {
        words: "healthy_threshold health_passes passes",
        of: "Envoy, Caddy",
        key: "check.http.rise",
        ..Word::NONE
    },
    Word {
        words: "unhealthy_threshold health_fails fails",
        of: "Envoy, Caddy",
        key: "check.http.fall",
        ..Word::NONE
    },
    Word {
        words: "max_fails consecutive_5xx consecutive_gateway_failure error_limit",
        of: "nginx, Caddy, Envoy, HAProxy",
        key: "pool.passive.failures",
        ..Word::NONE
    },
    Word {
        words: "fail_timeout fail_duration base_ejection_time blacklist blacklist_time",
        of: "nginx, Caddy, Envoy, pen",
        key: "pool.passive.down_for",
        ..Word::NONE
    },
    Word {
        words: "outlier_detection observe passive_health_check",
        of: "Envoy, HAProxy",
        key: "pool.passive",
        ..Word::NONE
    },
    Word {
        words: "on_marked_down",
        of: "HAProxy",
        key: "pool.on_down",
        advice: "write on_down = \"close\"",
        ..Word::NONE
    },
    Word { words: "slowstart", of: "HAProxy", key: "pool.slow_start", ..Word::NONE },
    Word {
        words: "redispatch option_redispatch proxy_next_upstream stubborn",
        of: "HAProxy, nginx, pen",
        key: "pool.failover",
        advice: "failover is the default; write failover = false to disable it",
        ..Word::NONE
    },
    Word {
        words: "backup emergency spare emerg",
        of: "HAProxy, nginx, pen",
        tables: "service pool server",
        key: "server.tier",
        advice: "write tier = 2 at the server: { \"10.0.0.1:80\", tier = 2 }",
    },
    Word {
        words: "priority",
        of: "Envoy, pen",
        key: "server.tier",
        advice: "write tier = 2 at the server: { \"10.0.0.1:80\", tier = 2 }",
        ..Word::NONE
    },
    Word {
        words: "weight tier port priority",
        tables: "discover.srv",
        key: "server.weight",
        advice: "SRV records have the weights, priorities and ports",
        ..Word::NONE
    },
    Word {
        words: "down disabled disable enabled",
        of: "HAProxy, nginx",
        tables: "server",
        key: "server.state",
        advice: "write state = \"maintenance\"",
    },
    Word {
        words: "ip_hash source_hash hash consistent_hash consistent",
        of: "nginx, HAProxy",
        key: "pool.policy",
        advice: "write policy = \"hash\"",
        ..Word::NONE
    },
    Word {
        words: "least_conn leastconn least_connections least_request",
        of: "nginx, HAProxy, Envoy",
        key: "pool.policy",
        advice: "write policy = \"least_conn\"",
        ..Word::NONE
    },
    Word {
        words: "round_robin roundrobin rr",
        of: "HAProxy, pen",
        key: "pool.policy",
        advice: "write policy = \"round_robin\"",
        ..Word::NONE
    },
    Word { words: "random", of: "nginx", key: "pool.policy", advice: "write policy = \"p2c\"", ..Word::NONE },
    Word {
        words: "cookie",
        of: "HAProxy",
        tables: "pool.sticky",
        key: "pool.sticky.by",
        advice: "write sticky = { by = \"cookie\", name = \"SERVER\" }",
    },
    Word {
        words: "cookie sticky_cookie session_affinity sticky_session sticky_sessions",
        of: "HAProxy, Traefik",
        key: "pool.sticky.by",
        advice: "write sticky = { by = \"cookie\", name = \"SERVER\" }",
        ..Word::NONE
    },
    Word {
        words: "stick stick_table stick_on persistence affinity",
        of: "HAProxy",
        key: "pool.sticky",
        ..Word::NONE
    },
    Word {
        words: "http_only httponly secure same_site samesite domain path max_age",
        of: "Traefik",
        tables: "pool.sticky",
        key: "pool.sticky.name",
        advice: "the cookie has only a name: it is always HttpOnly and SameSite=Lax, and Secure with TLS",
    },
    Word { words: "tracking", of: "pen", key: "pool.sticky.ttl", ..Word::NONE },
    Word {
        words: "send_proxy_v2 proxy_protocol_v2 transport_proxy_protocol",
        of: "HAProxy",
        key: "pool.send_proxy",
        ..Word::NONE
    },
    Word {
        words: "proxy_protocol",
        of: "nginx, Traefik",
        tables: "pool",
        key: "pool.send_proxy",
        advice: "use `send_proxy`",
    },
    Word {
        words: "server_name",
        of: "nginx, Caddy",
        tables: "pool.tls check.https check.tls",
        key: "pool.tls.sni",
        advice: "use `sni`",
    },
    Word {
        words: "ssl tls_context server_transport",
        of: "HAProxy, Traefik",
        tables: "pool",
        key: "pool.tls",
        ..Word::NONE
    },
    Word {
        words: "ssl tls check_ssl",
        of: "HAProxy",
        tables: "server",
        key: "pool.tls",
        advice: "TLS is a key of the pool: write tls = true in the pool, with servers that all use TLS",
    },
    Word {
        words: "ca_file cafile ca_cert root_ca root_cas trusted_ca proxy_ssl_trusted_certificate",
        of: "HAProxy, nginx, Traefik",
        tables: "pool.tls check.https check.tls",
        key: "pool.tls.ca",
        advice: "use `ca`",
    },
    Word {
        words: "insecure skip_verify insecure_skip_verify tls_insecure_skip_verify proxy_ssl_verify",
        of: "Caddy, Traefik",
        key: "pool.tls.verify",
        advice: "write verify = false in `tls` of the pool or in the check",
        ..Word::NONE
    },
];
