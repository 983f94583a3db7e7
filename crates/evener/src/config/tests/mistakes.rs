//! Plausible mistakes: words of other programs, keys in the wrong table, and wrong values. Each message names the
//! file, the line and the right key.

use super::load_text;
use crate::config::{hints, reference};
use std::collections::BTreeSet;

/// The place of a mistake, which is on line 3 of the file.
#[derive(Clone, Copy)]
enum At {
    Pool,
    Service,
    /// An http service with its own servers.
    Http,
    Dns,
    Server,
    Check,
    Route,
    File,
}

use At::{Check, Dns, File, Http, Pool, Route, Server, Service};

impl At {
    fn file(self, mistake: &str) -> String {
        let (before, after) = match self {
            Pool => (
                "pool \"web\" {\n\"10.0.0.1:80\",",
                "}\nservice \"s\" { listen = \"127.0.0.1:1\", pool = \"web\" }",
            ),
            Service => ("service \"s\" { listen = \"127.0.0.1:1\",\n\"10.0.0.1:80\",", "}"),
            Http => ("service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\",\n\"10.0.0.1:80\",", "}"),
            Dns => ("service \"s\" { listen = \"127.0.0.1:1\", protocol = \"dns\",\n\"10.0.0.1:53\",", "}"),
            Server => ("service \"s\" { listen = \"127.0.0.1:1\", {\n\"10.0.0.1:80\",", "} }"),
            Check => {
                ("service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\",\ncheck = check.http {", "} }")
            }
            Route => (
                "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\", \"10.0.0.1:80\",\nroutes = { {",
                "} } }",
            ),
            File => ("pool \"web\" { \"10.0.0.1:80\" }\n", "\n"),
        };
        format!("{before}\n{mistake}\n{after}\n")
    }
}

/// The place, the mistake, the key that is meant, and words of the message.
const MISTAKES: &[(At, &str, &str, &str)] = &[
    // HAProxy
    (Service, "maxconn = 100", "service.connections_max", "use `connections_max`"),
    (Pool, "maxconn = 100", "server.max", "{ \"10.0.0.1:80\", max = 100 }"),
    (Server, "maxconn = 100", "server.max", "use `max` or `hard`"),
    (Pool, "balance = \"roundrobin\"", "pool.policy", "policy = "),
    (Pool, "balance roundrobin", "pool.policy", "policy = "),
    (Pool, "policy = \"roundrobin\"", "pool.policy", "write policy = \"round_robin\""),
    (Pool, "policy = \"leastconn\"", "pool.policy", "\"least_conn\""),
    (Pool, "policy = \"source\"", "pool.policy", "write policy = \"hash\""),
    (Service, "mode = \"http\"", "service.protocol", "protocol = \"http\""),
    (Service, "mode http", "service.protocol", "protocol = \"http\""),
    (Service, "bind = \"*:80\"", "service.listen", "use `listen`"),
    (File, "backend \"web2\" { \"10.0.0.1:80\" }", "pool", "use `pool`"),
    (File, "frontend \"www\" { \"10.0.0.1:80\" }", "service", "use `service`"),
    (Service, "default_backend = \"web\"", "service.pool", "write pool = \"web\""),
    (Pool, "option_httpchk = \"/health\"", "pool.check", "check = check.http { path = \"/health\" }"),
    (Pool, "option httpchk GET /", "pool.check", "check = check.http { path = \"/health\" }"),
    (
        Service,
        "timeout = \"5s\"",
        "service.idle_timeout",
        "see idle_timeout and connect_timeout (http: response_timeout, too)",
    ),
    (Service, "timeout client 30s", "service.idle_timeout", "idle_timeout"),
    (Http, "timeout_server = \"30s\"", "service.response_timeout", "use `response_timeout`"),
    (Service, "timeout_connect = \"5s\"", "service.connect_timeout", "use `connect_timeout`"),
    (Check, "inter = \"2s\"", "check.http.every", "use `every`"),
    (Server, "inter = \"2s\", fall = 3", "check.http.every", "check = check.http { every = \"5s\" }"),
    (Pool, "rise = 2", "check.http.rise", "rise is a key of a check"),
    (
        Pool,
        "cookie = \"SERVERID insert\"",
        "pool.sticky.by",
        "sticky = { by = \"cookie\", name = \"SERVER\" }",
    ),
    (Pool, "stick_table = \"type ip size 1m\"", "pool.sticky", "sticky = { by = \"client_ip\""),
    (Pool, "send_proxy_v2 = true", "pool.send_proxy", "send_proxy = \"v2\""),
    (Service, "accept_proxy = true", "service.proxy_from", "write proxy_from = \"10.0.0.0/8\""),
    (Service, "ssl = true", "service.tls", "tls = { certificate = \"site.crt\", key = \"site.key\" }"),
    (Service, "crt = \"site.pem\"", "service.tls.certificate", "tls = { certificate = \"site.crt\""),
    (Service, "alpn = \"h2\"", "service.tls.alpn", "alpn"),
    (Http, "http_request = \"redirect scheme https\"", "service.redirect", "redirect = \"https\""),
    (Server, "backup = true", "server.tier", "tier = 2"),
    (Server, "disabled = true", "server.state", "state = \"maintenance\""),
    (Server, "check = true", "server.check", "write check = \"tcp\""),
    (Service, "nbthread = 4", "service", "evener run --workers N"),
    // nginx
    (File, "upstream web { server 10.0.0.1:80; }", "pool", "\"web\""),
    (File, "upstream \"web2\" { \"10.0.0.1:80\" }", "pool", "use `pool`"),
    (Http, "server_name = \"www.example.org\"", "service.routes", "routes = { { host = \"www.example.org\""),
    (Http, "location = \"/api\"", "service.routes", "routes = { {"),
    (Route, "server_name = \"a.example\", pool = \"s\"", "service.routes.host", "use `host`"),
    (Route, "host = \"a.example\", proxy_pass = \"s\"", "service.routes.pool", "use `pool`"),
    (Http, "proxy_pass = \"http://web\"", "service.pool", "pool = \"web\""),
    (Http, "proxy_set_header = \"X-Real-IP\"", "service.forwarded", "`X-Forwarded-For`"),
    (Http, "client_max_body_size = \"10m\"", "service.min_rate", "bodies have no maximum size"),
    (Service, "worker_connections = 1024", "service.connections_max", "use `connections_max`"),
    (Pool, "ip_hash = true", "pool.policy", "write policy = \"hash\""),
    (Pool, "least_conn = true", "pool.policy", "write policy = \"least_conn\""),
    (Pool, "keepalive = 32", "service.keepalive_timeout", "connections to servers are kept"),
    (Pool, "max_fails = 3", "pool.passive.failures", "passive = { failures = 3 }"),
    (Pool, "passive = { max_fails = 3 }", "pool.passive.failures", "use `failures`"),
    (Pool, "passive = { fail_timeout = \"10s\" }", "pool.passive.down_for", "use `down_for`"),
    (Server, "max_fails = 3", "pool.passive.failures", "passive = { failures = 3 } in the pool"),
    (Http, "proxy_read_timeout = \"60s\"", "service.response_timeout", "use `response_timeout`"),
    (
        Http,
        "limit_req = \"10r/s\"",
        "service.per_client.request_rate",
        "per_client = { request_rate = \"100/s\" }",
    ),
    (Service, "limit_conn = 10", "service.per_client.connections", "per_client = { connections = 10 }"),
    (
        Http,
        "tls = { certificate = \"a.pem\", min_version = \"TLSv1.2\" }",
        "service.tls.min_version",
        "write \"1.2\"",
    ),
    (Http, "error_page = 503", "service", "the pages of errors cannot be changed"),
    (Server, "down = true", "server.state", "state = \"maintenance\""),
    // Caddy
    (Http, "reverse_proxy = \"10.0.0.1:80\"", "service.pool", "pool = \"web\""),
    (Pool, "lb_policy = \"least_conn\"", "pool.policy", "policy = "),
    (Pool, "health_uri = \"/health\"", "check.http.path", "check = check.http { path = \"/health\" }"),
    (Pool, "health_interval = \"5s\"", "check.http.every", "check = check.http { every = \"5s\" }"),
    (Pool, "fail_duration = \"30s\"", "pool.passive.down_for", "passive = { down_for = \"10s\" }"),
    (Pool, "policy = \"random_choose\"", "pool.policy", "write policy = \"p2c\""),
    // Traefik
    (Service, "entryPoints = { \"web\" }", "service.listen", "use `listen`"),
    (Http, "loadBalancer = { servers = {} }", "service.pool", "pool = \"web\""),
    (Http, "passHostHeader = true", "service.forwarded", "Host is passed on"),
    (Pool, "sticky = { cookie = { name = \"x\" } }", "pool.sticky.by", "by = \"cookie\""),
    (Pool, "healthCheck = { path = \"/\" }", "pool.check", "check = check.http { path = \"/health\" }"),
    (Http, "middlewares = { \"auth\" }", "service.per_client", "per_client of a service"),
    (Http, "rateLimit = { average = 100 }", "service.per_client.request_rate", "per_client = { request_rate"),
    (
        Http,
        "certResolver = \"letsencrypt\"",
        "service.tls.directory",
        "tls = { directory = \"certificates\" }",
    ),
    // Envoy
    (Pool, "endpoints = { \"10.0.0.1:80\" }", "server", "write the servers without a key"),
    (Pool, "lb_policy = \"ROUND_ROBIN\"", "pool.policy", "policy = "),
    (Pool, "outlier_detection = {}", "pool.passive", "passive = {"),
    (Pool, "circuit_breakers = {}", "server.max", "max = 100"),
    (Service, "max_connections = 100", "service.connections_max", "use `connections_max`"),
    (Pool, "max_pending_requests = 100", "pool.queue.size", "queue = { size = 100 }"),
    // pen
    (Pool, "blacklist = 30", "pool.passive.down_for", "passive = { down_for = \"10s\" }"),
    (Pool, "emergency = \"10.0.0.9:80\"", "server.tier", "tier = 2"),
    (Service, "chroot = \"/var/empty\"", "service", "the service manager"),
    (Service, "tracking = 60", "pool.sticky.ttl", "sticky = { ttl = "),
    (Service, "tcp_nodelay = true", "service.nodelay", "use `nodelay`"),
    // Misplaced and misspelt keys
    (Pool, "listen = \"127.0.0.1:2\"", "service.listen", "move it to the service"),
    (Pool, "weight = 2", "server.weight", "{ \"10.0.0.1:80\", weight = 2 }"),
    (Pool, "path = \"/\"", "check.http.path", "check = check.http { path = \"/health\" }"),
    (Dns, "cache = true", "service.dns.cache", "write dns = { cache = "),
    (Dns, "rate_limit = \"20/s\"", "service.dns.rate_limit", "write dns = { rate_limit = "),
    (Service, "check = check.htp { path = \"/\" }", "check.http", "did you mean `http`"),
    (Pool, "discover.fil \"servers.txt\"", "discover.file", "did you mean `file`"),
    (Service, "lisen = \"127.0.0.1:2\"", "service.listen", "did you mean `listen`"),
    // Values
    (Service, "connections_max = \"100k\"", "service.connections_max", "write 100000"),
    (Service, "idle_timeout = 30", "service.idle_timeout", "write \"30s\""),
    (Service, "idle_timeout = \"never\"", "service.idle_timeout", "write idle_timeout = false"),
    (Service, "idle_timeout = \"30 S\"", "service.idle_timeout", "write \"30s\""),
    (Service, "nodelay = \"true\"", "service.nodelay", "write nodelay = true, without quotes"),
    (Service, "nodelay = \"yes\"", "service.nodelay", "write nodelay = true"),
    (Service, "nodelay = on", "service.nodelay", "write true"),
    (Service, "idle_timeout = null", "service.idle_timeout", "omit the key"),
    (Pool, "sticky = \"client_ip\"", "pool.sticky.by", "write sticky = { by = \"client_ip\" }"),
    (Pool, "sticky = { by = \"ip\" }", "pool.sticky.by", "write by = \"client_ip\""),
    (Pool, "check = true", "pool.check", "write check = \"tcp\""),
    (Pool, "check = \"/health\"", "pool.check", "write check = check.http { path = \"/health\" }"),
    (Pool, "check = { path = \"/\" }", "pool.check", "check = check.http { ... }"),
    (
        File,
        "service \"t\" { listen = \"127.0.0.1:2\", pool = backend }",
        "service.pool",
        "write pool = \"backend\"",
    ),
    (
        File,
        "service \"t\" { listen = \"127.0.0.1:2\", protocol = \"h2\" }",
        "service.protocol",
        "HTTP/2 is negotiated by default",
    ),
    (Dns, "dns = { cache = { bytes = \"64MB\" } }", "service.dns.cache.bytes", "write \"64MiB\""),
];

#[test]
fn each_plausible_mistake_gets_the_right_hint() {
    let mut wrong = Vec::new();
    for (at, mistake, key, words) in MISTAKES {
        assert!(reference::has(key), "{key} is not in the reference");
        let seen = load_text(&at.file(mistake)).expect_err(mistake);
        if !seen.lines().any(|line| line.starts_with("c.lua:3: ") && line.contains(words)) {
            wrong.push(format!("{mistake}\n  must have: {words}\n  has: {seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(MISTAKES.len() >= 100);
}

/// Writes each key of the reference into tables that do not have it: the message names the right table, or
/// another key that is meant there.
#[test]
fn a_misplaced_key_says_where_it_belongs() {
    let mut wrong = Vec::new();
    let mut walked = 0;
    let names: BTreeSet<&str> =
        reference::all().filter(|key| !key.tables().contains(&"")).map(reference::Key::name).collect();
    for (at, table) in [
        (Pool, "pool"),
        (Service, "service"),
        (Server, "server"),
        (Check, "check.http"),
        (Route, "service.routes"),
    ] {
        for name in &names {
            let is_known = reference::find(table, name).is_some()
                || (table == "service" && reference::find("pool", name).is_some());
            if is_known || *name == "name" {
                continue;
            }
            let tables: Vec<&str> = reference::tables_with(name).map(|(table, _)| table).collect();
            let mistake = if table == "service.routes" {
                format!("host = \"a.example\", pool = \"s\", {name} = 1")
            } else {
                format!("{name} = 1")
            };
            let seen = load_text(&at.file(&mistake)).expect_err(name);
            let message = seen.lines().find(|line| line.starts_with("c.lua:3: ") && line.contains(name));
            let names_owner = |message: &str| {
                let mut segments = tables.iter().flat_map(|table| table.split('.'));
                segments.any(|segment| message.contains(segment)) || hints::foreign(name).next().is_some()
            };
            walked += 1;
            if !message.is_some_and(names_owner) {
                wrong.push(format!("{name} in {table}: {seen}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {walked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(walked > 400, "only {walked} keys");
}

/// Each word of another program leads to a key of the reference.
#[test]
fn words_of_other_programs_name_keys_of_the_reference() {
    for key in hints::foreign_keys() {
        assert!(reference::has(key), "{key} is not in the reference");
    }
}
