//! Messages about wrong values and keys. Each case is a line of Lua, followed by indented lines with the
//! expected messages.

use super::{check_cases, check_problems, load_text, service_with};

const OF_A_SERVICE: &str = r#"
connections_max = 0
    service `s`: connections_max must be between 1 and 16000000, got 0
connections_max = 1.5
    service `s`: connections_max must be a whole number, got 1.5
backlog = "many"
    service `s`: backlog must be a number between 1 and 65535, got "many"
nodelay = 1
    service `s`: nodelay must be true or false, got 1
protocol = "udb"
    service `s`: protocol must be "tcp", "udp", "http" or "dns", got "udb"; did you mean "udp"?
allow = "10.0.0.0/40"
    service `s`: `10.0.0.0/40` is too long: an IPv4 prefix has at most 32 bits
policy = policy.maglev { table = 100 }
    policy.maglev: table must be a prime number such as 65537, got 100
check = check.http
    service `s`: check must be a check such as check.http { path = "/health" }, got a function: call it with braces or parentheses
check = "htp"
    service `s`: check must be "tcp", "tls", "http", "https", "udp", "dns", "smtp" or a check such as check.http { path = "/health" }, got "htp"; did you mean "http"?
check = check.htp
    `check.htp` is not defined; did you mean `http`?
check = check.htp { path = 5 }
    `check.htp` is not defined; did you mean `http`?
policy = policy.maglef {}
    `policy.maglef` is not defined; did you mean `maglev`?
allow = env("EVENER_NOWHERE")
    the environment variable EVENER_NOWHERE is not set: set it, or give a default: env("EVENER_NOWHERE", "...")
connections_max = "100"
    service `s`: connections_max must be a number, got the text "100": write 100, or tonumber(...) for a variable
connect_timeout = "0s"
    service `s`: connect_timeout must be above zero, got "0s"
maxconn = 5
    service `s`: unknown key `maxconn`; use `connections_max`
pool = { "10.0.0.9:1" }
    service `s`: pool must be a pool or the name of a pool, got a table: list the servers in the service itself: { listen = "0.0.0.0:80", "10.0.0.1:80" }
check = check.https { ca = "/no/such.pem" }
    check.https: /no/such.pem does not exist
check = check.http { host = "a\r\nb" }
    check.http: host must be a host name, got "a\r\nb"
check = check.tcp { timeout = "2h" }
    check.tcp: timeout must be at most 60s, got "2h"
{ "10.0.0.2:1", name = "a\27[2J" }
    server `10.0.0.2:1`: name must be text without control characters, got "a\u{1b}[2J"
unix_mode = "rw"
    service `s`: unix_mode must be a file mode such as "0660", got "rw"
check = check.udp {}
    check.udp: a udp check needs a text to send: write check.udp { send = "..." }
sticky = { by = "cookies" }
    service `s`: sticky.by must be "client_ip" or "cookie", got "cookies"
sticky = { by = "cookie" }
    service `s`: pool `s` is sticky by cookie, which needs protocol = "http"
"10.0.0.1:1"
    server `10.0.0.1:1` is already in this pool, at c.lua:1: remove one of them, or give one another `name` to have it twice
{ "10.0.0.2:1", max = 5, hard = 2 }
    server `10.0.0.2:1`: hard (2) must be at least max (5)
{ "10.0.0.2:1", state = "asleep" }
    server `10.0.0.2:1`: state must be "ready", "drain" or "maintenance", got "asleep"
{ weight = 2 }
    service `s`: a server must begin with its address: { "10.0.0.1:80", weight = 2 }
5
    service `s`: a server must be an address such as "10.0.0.1:80", got 5
source = "eth0"
    service `s`: source must be an IP address of this machine or "client", got "eth0"
keepalive = "40000s"
    service `s`: keepalive must be between 1s and 32767s (tcp(7)), got "40000s"
protocol = "udp", idle_timeout = false
    service `s`: idle_timeout cannot be false with protocol = "udp": only it ends flows
protocol = "udp", "/run/x"
    server `/run/x` is a unix socket: a udp service needs IP servers
protocol = "udp", backlog = 5
    service `s`: backlog is not available with protocol = "udp"
flows_max = 5
    service `s`: flows_max needs protocol = "udp"
backlog = 70000
    service `s`: backlog must be between 1 and 65535, got 70000
backlog = {}
    service `s`: backlog must be a number between 1 and 65535, got a table
backlog = "heavy"
    service `s`: backlog must be a number between 1 and 65535, got "heavy"
idle_timeout = "400d"
    service `s`: idle_timeout must be at most 366 days, got "400d"
idle_timeout = ""
    service `s`: idle_timeout must not be empty: write a duration such as "2s"
idle_timeout = "1M"
    service `s`: idle_timeout cannot be in months (M): write "1m" for minutes, got "1M"
connect_timeout = 5
    service `s`: connect_timeout needs a unit: write "5s", got 5
connect_timeout = "5"
    service `s`: connect_timeout needs a unit: write "5s", got "5"
keepalive = "0s"
    service `s`: keepalive must be above zero, got "0s": write false for none
query_timeout = "5s"
    service `s`: query_timeout is a key of `dns`: write protocol = "dns" and dns = { query_timeout = "2s" }
port = 80
    service `s`: unknown key `port`; the port is part of `listen`
connection_rate = "5/s"
    service `s`: connection_rate is a key of `per_client`: write per_client = { connection_rate = "20/s" }
timeout = "5s"
    service `s`: unknown key `timeout`; see idle_timeout and connect_timeout (http: response_timeout, too)
certificate = "x"
    service `s`: certificate is a key of `tls`: write tls = { certificate = "site.crt", key = "site.key" }
protocol = "https"
    service `s`: protocol must be "tcp", "udp", "http" or "dns", got "https": use "http" with `tls`
protocol = "HTTP"
    service `s`: protocol must be "tcp", "udp", "http" or "dns", got "HTTP"; did you mean "http"?
protocol = 5
    service `s`: protocol must be "tcp", "udp", "http" or "dns", got 5
unix_mode = 660
    service `s`: unix_mode must be a file mode in quotes, got 660: write "0660"
allow = "10.0.0.0/255.0.0.0"
    service `s`: `10.0.0.0/255.0.0.0` has a netmask: write the length of the prefix, `10.0.0.0/8`
allow = prefixes
    service `s`: allow must be a prefix such as "10.0.0.0/8", prefixes "FILE" or country "SE", or a list of them, got a function: call it with braces or parentheses
weight = 2
    service `s`: weight is a key of a server: write { "10.0.0.1:80", weight = 2 }
servers = {}
    service `s`: unknown key `servers`; write the servers without a key and its braces, such as pool "web" { "10.0.0.1:80", "10.0.0.2:80" }
foo = 1
    service `s`: unknown key `foo`
policy = "leastconn"
    service `s`: unknown policy `leastconn`; write policy = "least_conn"
policy = "random"
    service `s`: unknown policy `random`; write policy = "p2c"
policy = 5
    service `s`: policy must be "round_robin", "weighted", "least_conn", "p2c", "ewma", "hash", "maglev", "first" or "least_outstanding", got 5
listen = {}
    service `s`: listen must not be empty: write listen = "0.0.0.0:80"
"80"
    service `s`: `80` has no host: write the server's host, such as 10.0.0.1:80
":80"
    service `s`: `:80` has no host: write the server's host, such as 10.0.0.1:80
"::1:80"
    service `s`: `::1:80` needs brackets: write an IPv6 address as [::1]:80
"10.0.0.1:80/path"
    service `s`: `10.0.0.1:80/path` has a path: an address is only a host and a port: write 10.0.0.1:80
"10.0.0.2:80", "10.0.0.2:80"
    server `10.0.0.2:80` is already in this pool, at c.lua:1: remove one of them, or give one another `name` to have it twice
{ "10.0.0.2:80", maxconn = 5 }
    server `10.0.0.2:80`: unknown key `maxconn`; use `max` or `hard`
{ "10.0.0.2:80", backup = true }
    server `10.0.0.2:80`: unknown key `backup`; write tier = 2 at the server: { "10.0.0.1:80", tier = 2 }
{ "10.0.0.2:80", "10.0.0.3:80" }
    server `10.0.0.2:80`: a server has one address, got a second one, "10.0.0.3:80": list servers separately, or write table.unpack(LIST)
server "10.0.0.2:80" { "10.0.0.3:80" }
    server `10.0.0.2:80`: a server has one address, got a second one, "10.0.0.3:80": list servers separately, or write table.unpack(LIST)
{ "10.0.0.2:80", check = true }
    server `10.0.0.2:80`: check must be a check such as check.http { path = "/health" }, got true: write check = "tcp", or check = "http" for a request
connect_timeout = "5s", connect_time_max = "2s"
    service `s`: connect_time_max must be at least connect_timeout (5s), got "2s"
warm = 5, source = "client"
    service `s`: warm cannot be combined with source = "client": remove warm
warm = 5, send_proxy = "v2"
    service `s`: warm cannot be combined with send_proxy: remove warm
warm = 5, tls = "x.pem"
    service `s`: warm cannot be combined with tls: remove warm
protocol = "udp", warm = 5, connections_max = 5
    service `s`: connections_max is not available with protocol = "udp"
    service `s`: warm is not available with protocol = "udp"
protocol = "udp", spread = 3, policy = "hash"
    service `s`: spread cannot be used with policy = "hash" of pool `s`: write policy = "round_robin"
protocol = "udp", spread = 3, sticky = true
    service `s`: spread cannot be used with sticky of pool `s`: remove one of them
check = check.http("/health")
    check.http takes a table, got a string: write check.http { path = "/health" }
check = check { path = "/" }
    check is not a function: write check = check.http { path = "/health" }
policy = policy.least_conn {}
    `policy.least_conn` is not defined: write policy = "least_conn"
policy = policy "hash"
    policy is not a function: write policy = "least_conn"
check = check.http { interval = "2s", uri = "/x", expect = "ok", verify = false }
    check.http: unknown key `expect`; use `body`
    check.http: unknown key `interval`; use `every`
    check.http: unknown key `uri`; use `path`
    check.http: verify needs check.https or check.tls
check = check.http { status = 700 }
    check.http: status must be an HTTP status such as 200, or a list of them, got 700
check = check.http { "/health" }
    check.http: each setting needs a key, such as path = "/health", got "/health"
check = check.http { path = "/", jitter = 2 }
    check.http: jitter must be between 0 and 1, got 2
source = env()
    env takes the name of a variable, such as env "PORT"
passive = "off"
    service `s`: passive must be false or { failures = 1, down_for = "30s" }, got "off"
slow_start = 5
    service `s`: slow_start needs a unit: write "5s", got 5
failover = "no"
    service `s`: failover must be true or false, got "no"
queue = { size = 0 }
    service `s`: queue.size must be between 1 and 1000000, got 0
"#;

const AT_THE_EDGE: &str = r#"
protocol = "http", redirect = "http"
    service `s`: redirect must be "https" or { port = 8443 }, got "http"
protocol = "http", forwarded = "prepend"
    service `s`: forwarded must be "replace", "append", "off" or a table, got "prepend"
protocol = "http", routes = { { pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: a route needs a host or a path
routes = { { sni = "a b", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: `a b` is not a host name: write www.example.org or *.example.org
protocol = "udp", tls = "x.pem"
    service `s`: tls is not available with protocol = "udp"
protocol = "udp", denied = pool "p" { "/run/a.sock" }
    server `/run/a.sock` is a unix socket: a udp service needs IP servers
protocol = "udp", per_client = { connections = 1 }
    service `s`: per_client is not available with protocol = "udp"
protocol = "udp", send_proxy = "v1"
    service `s`: version 1 of the PROXY protocol does not support UDP: write send_proxy = "v2"
tls = { key = "a.key" }
    service `s`: key, ocsp and issuers need a certificate: add certificate = "FILE"
tls = { certificate = "a.crt", client_certificate = "required" }
    service `s`: tls.client_certificate needs client_ca = "FILE" to verify certificates
tls = { certificate = "a.crt", min_version = "1.1" }
    service `s`: tls.min_version must be "1.2" or "1.3", got "1.1"
per_client = { connection_rate = "20" }
    service `s`: per_client.connection_rate must be a rate such as "20/s", "100/m" or "1000/h", got "20"
per_client = {}
    service `s`: per_client has no limit: give connections, connection_rate or request_rate
deny = country "SE"
    service `s`: country needs a database: write geoip "GeoLite2-Country.mmdb" above it
deny = prefixes "/nonexistent"
    /nonexistent does not exist
denied = "tarpti"
    service `s`: denied must be "drop", "reject", "tarpit" or a pool, got "tarpti"; did you mean "tarpit"?
send_proxy = "v3"
    service `s`: send_proxy must be "v1" or "v2", got "v3"
per_client = { connection = 10 }
    service `s`: unknown key `per_client.connection`; did you mean `connections`?
per_client = { connections = 1, exceeded = "block" }
    service `s`: per_client.exceeded must be "drop", "reject", "tarpit" or a pool, got "block"
per_client = { request_rate = 100 }
    service `s`: per_client.request_rate must be a rate such as "20/s", got 100: write "100/s"
protocol = "http", balance_per = "conn"
    service `s`: balance_per must be "request" or "connection", got "conn"
protocol = "http", respond = "hello"
    service `s`: respond must be a table, got "hello": write respond = { body = "hello" }
protocol = "http", respond = { status = 700 }
    service `s`: respond.status must be between 200 and 599, got 700
protocol = "http", respond = { code = 200 }
    service `s`: unknown key `respond.code`; use `status`
protocol = "http", redirect = { status = 200 }
    service `s`: redirect.status must be 301, 302, 307 or 308, got 200
protocol = "http", redirect = "https", respond = {}
    service `s`: redirect and respond exclude each other: remove one of them
protocol = "http", health = "health"
    service `s`: health must be a path such as "/health", without a query, got "health"
protocol = "http", forwarded = { mode = "of", headers = "none" }
    service `s`: forwarded.mode must be "replace", "append" or "off", got "of"; did you mean "off"?
    service `s`: forwarded.headers must be "x-forwarded", "forwarded" or "both", got "none"
tls = { certificate = "x", min_version = 1.2 }
    service `s`: tls.min_version must be "1.2" or "1.3", got 1.2: write "1.2"
tls = {}
    service `s`: tls has no certificate: write tls = { certificate = "site.crt", key = "site.key" }, or a directory
tls = { certificates = { {} } }
    service `s`: write each certificate as { certificate = "a.crt", key = "a.key" }
tls = 5
    service `s`: tls must be a PEM file or { certificate = "site.crt", key = "site.key" }, got 5
protocol = "http", certificate_header = "Host"
    service `s`: certificate_header must be a header field that is not in use, such as "X-Client-Subject", got "Host"
protocol = "http", min_rate = { rte = 5 }
    service `s`: unknown key `min_rate.rte`; did you mean `rate`?
"#;

const OF_A_DNS_SERVICE: &str = r#"
dns = true
    service `s`: dns must be a table such as { query_timeout = "2s", cache = true }, got true
dns = { cash = true }
    service `s`: unknown key `dns.cash`; did you mean `cache`?
dns = { query_timeout = "2min" }
    service `s`: dns.query_timeout must be at most 1m, got "2min": clients do not wait longer
dns = { query_timeout = "0s" }
    service `s`: dns.query_timeout must be above zero, got "0s"
dns = { retries = 17 }
    service `s`: dns.retries must be between 0 and 16, got 17
dns = { on_failure = "servfial" }
    service `s`: dns.on_failure must be "servfail", "refused" or "drop", got "servfial"; did you mean "servfail"?
dns = { retry_on = { "servfail", "refuse" } }
    service `s`: dns.retry_on must be "servfail" or "refused", got "refuse"; did you mean "refused"?
dns = { retry_on = true }
    service `s`: dns.retry_on must be a list of response codes: { "servfail", "refused" }, or {} for none, got true
dns = { outstanding_max = 0 }
    service `s`: dns.outstanding_max must be between 1 and 4000000, got 0
dns = { sockets = 65 }
    service `s`: dns.sockets must be between 1 and 64, got 65
dns = { pipeline_max = 5000 }
    service `s`: dns.pipeline_max must be between 1 and 4096, got 5000
dns = { cache = 5 }
    service `s`: dns.cache must be true or { entries = 100000 }, got 5
dns = { cache = { bytes = "1KiB" } }
    service `s`: dns.cache.bytes must be between 64KiB and 1TiB, got "1KiB"
dns = { cache = { bytes = "64MB" } }
    service `s`: dns.cache.bytes must be a size such as "64KiB", "64MiB" or "1GiB", got "64MB"
dns = { cache = { bytes = "99999999TiB" } }
    service `s`: dns.cache.bytes must be a size such as "64KiB", "64MiB" or "1GiB", got "99999999TiB"
dns = { cache = { bytes = 67108864 } }
    service `s`: dns.cache.bytes needs a unit, such as "64MiB" or "67108864B", got 67108864
dns = { cache = { ttl_max = "0s" } }
    service `s`: dns.cache.ttl_max must be above zero, got "0s"
dns = { cache = { failure_ttl = "6min" } }
    service `s`: dns.cache.failure_ttl must be at most 5m, got "6min": see RFC 2308, section 7.1
dns = { cache = { stale = 5 } }
    service `s`: dns.cache.stale needs a unit: write "5s", got 5
dns = { client_subnet = 24 }
    service `s`: dns.client_subnet must be true or { v4 = 24, v6 = 56 }, got 24
dns = { client_subnet = { v4 = 33 } }
    service `s`: dns.client_subnet.v4 must be between 0 and 32, got 33
dns = { rate_limit = "20" }
    service `s`: dns.rate_limit must be a rate such as "20/s", "100/m" or "1000/h", got "20"
dns = { rate_limit = 20 }
    service `s`: dns.rate_limit must be a rate such as "20/s", or { rate = "20/s" }, got 20: write "20/s"
dns = { rate_limit = { v4 = 24 } }
    service `s`: dns.rate_limit has no rate: write rate_limit = { rate = "20/s" }
idle_timeout = false
    service `s`: idle_timeout cannot be false with protocol = "dns": idle clients would use up the connections
source = "client"
    service `s`: source = "client" is not available with protocol = "dns": write an address of this machine
tls = "a.pem"
    service `s`: tls is not available with protocol = "dns"
flows_max = 5
    service `s`: flows_max needs protocol = "udp"
redirect = "https"
    service `s`: redirect needs protocol = "http"
discover = "/run/a"
    service `s`: discover must be { mname = "/var/run/binder/sockets" }, got "/run/a"
discover = {}
    service `s`: discover has no source: write discover = { mname = "/var/run/binder/sockets" }
discover = { mname = {} }
    service `s`: discover has no source: write discover = { mname = "/var/run/binder/sockets" }
discover = { mname = "" }
    service `s`: discover.mname must not be empty: write the path of a directory
discover = { mnaem = "/a" }
    service `s`: unknown key `discover.mnaem`; did you mean `mname`?
discover = { dns = "a:1" }
    service `s`: unknown key `discover.dns`; write discover.dns "app.example:80" among the servers
discover = { mname = { "/run/a", "/run/a" } }
    service `s`: the directory `/run/a` is listed twice
{ "10.0.0.2:53", mname = true }
    server `10.0.0.2:53`: mname needs a unix socket, such as { "/run/mname.sock", mname = true }
sticky = { failback = 5 }
    service `s`: sticky.failback must be true or false, got 5
sticky = { rebalance = "1ms" }
    service `s`: sticky.rebalance must be at least 100ms, got "1ms"
check = check.smtp { helo = "a b" }
    check.smtp: helo must be a host name or an address such as "[192.0.2.1]", got "a b"
check = check.dns { name = "a..b" }
    check.dns: name must be a domain name, got "a..b": it has an empty label: two dots meet, or it begins with a dot
check = check.dns { type = "AAAAA" }
    check.dns: type must be a DNS type such as "A" or "TYPE65280", got "AAAAA"
check = check.dns { rcode = "OK" }
    check.dns: rcode must be a DNS response code such as "NOERROR" or "NXDOMAIN", got "OK"
warm = 5
    service `s`: warm is not available with protocol = "dns"
routes = {}
    service `s`: routes is not available with protocol = "dns"
nodelay = true
    service `s`: nodelay is not available with protocol = "dns"
fast_close = "both"
    service `s`: fast_close is not available with protocol = "dns"
cache = true
    service `s`: unknown key `cache`; write dns = { cache = true }
query_timeout = "1s"
    service `s`: query_timeout is a key of `dns`: write dns = { query_timeout = "2s" }
retries = 2
    service `s`: retries is a key of `dns`: write dns = { retries = 2 }
"#;

const OF_A_SERVICE_WITH_A_POOL: &str = r#"
denied = "wbe"
    service `s`: there is no pool `wbe`; did you mean `web`?
policy = "hash", check = check.http {}, sticky = true
    service `s`: check is a key of the pool: move it to pool `web`
    service `s`: policy is a key of the pool: move it to pool `web`
    service `s`: sticky is a key of the pool: move it to pool `web`
protocol = "http", routes = { { sni = "a", pool = web } }
    service `s`: a route of an http service is chosen by host or path, not sni
routes = { { host = "a", pool = web } }
    service `s`: a route by host or path needs protocol = "http"; a tcp service chooses by sni
routes = { { sni = "a" } }
    service `s`: the route of sni `a` needs a pool: add pool = "www"
routes = { { sni = "a", pool = "wbe" } }
    service `s`: there is no pool `wbe`; did you mean `web`?
routes = { web }
    service `s`: routes must be a list of tables such as { host = "www.example.org", pool = www }, got a pool
policy = web
    service `s`: policy is a key of the pool: move it to pool `web`
protocol = "http", routes = { { host = "http://e.example.org:80/x", pool = web } }
    service `s`: `http://e.example.org:80/x` is a URL: write host = "e.example.org"
protocol = "http", routes = { { host = "a:80", pool = web }, { host = "*", pool = web } }
    service `s`: `a:80` has a port: write host = "a"
    service `s`: remove host = "*": a route without host is for any host
protocol = "http", routes = { { path = "/api/*", pool = web }, { path = "/a?b", pool = web }, { path = "a", pool = web } }
    service `s`: routes.path must have no *, got "/api/*": write "/api", which includes all paths below it
    service `s`: routes.path must have no query, got "/a?b": write "/a"
    service `s`: routes.path must begin with /, got "a"
protocol = "http", routes = { { host = "b", pool = web }, { host = { "a", "b" }, pool = web } }
    service `s`: two routes have host `b`: remove one of them
protocol = "http", routes = { { path = "/b", pool = web }, { path = "/b/", pool = web } }
    service `s`: two routes have path `/b`: remove one of them
"10.0.0.3:80"
    service `s`: there are both a pool and servers: remove one of them
"#;

const OF_A_SERVICE_WITHOUT_SERVERS: &str = r#"
pool = prefixes "x"
    service `s`: pool must be a pool or the name of a pool, got a prefix list
pool = { "10.0.0.1:80" }
    service `s`: pool must be a pool or the name of a pool, got a table: list the servers in the service itself: { listen = "0.0.0.0:80", "10.0.0.1:80" }
pool = { "10.0.0.1:80" }, policy = "hsh"
    service `s`: pool must be a pool or the name of a pool, got a table: list the servers in the service itself: { listen = "0.0.0.0:80", "10.0.0.1:80" }
    service `s`: unknown policy `hsh`; did you mean `hash`?
pool = "10.0.0.1:80"
    service `s`: pool is the address of a server: list the servers in the service itself: { listen = "0.0.0.0:80", "10.0.0.1:80" }
pool = pool.web
    attempt to index a function value (global 'pool'): write pool = "web"
pool = "web"
    service `s`: there is no pool `web`
protocol = "http", respond = "hello"
    service `s`: respond must be a table, got "hello": write respond = { body = "hello" }
protocol = "http", redirect = "http://x"
    service `s`: redirect must be "https" or { port = 8443 }, got "http://x"
servers = { "10.0.0.1:80" }
    service `s`: unknown key `servers`; write the servers without a key and its braces, such as pool "web" { "10.0.0.1:80", "10.0.0.2:80" }
"10.0.0.1:99999"
    service `s`: invalid port `99999` in `10.0.0.1:99999`: a port is a number from 1 to 65535
--[[ nothing ]]
    service `s`: there is neither a pool nor a server: add pool = "web" or addresses
"#;

const OF_A_POOL: &str = r#"
weight = 2, tier = 2
    pool `web`: tier is a key of a server: write { "10.0.0.1:80", tier = 2 }
    pool `web`: weight is a key of a server: write { "10.0.0.1:80", weight = 2 }
listen = "0.0.0.0:80"
    pool `web`: listen is a key of a service: move it to the service
path = "/"
    pool `web`: path is a key of a check: write check = check.http { path = "/health" }
maxconn = 5
    pool `web`: unknown key `maxconn`; limits are keys of a server: write { "10.0.0.1:80", max = 5 }
servers = { "10.0.0.1:80" }
    pool `web`: unknown key `servers`; write the servers without a key and its braces, such as pool "web" { "10.0.0.1:80", "10.0.0.2:80" }
tls = 5
    pool `web`: tls must be true or { ca = "ca.crt", sni = "name" }, got 5
tls = { cafile = "x", sni = "a b" }
    pool `web`: tls.sni must be a host name, got "a b"
    pool `web`: unknown key `tls.cafile`; use `ca`
tls = true, check = "http"
    pool `web`: the servers of this pool use TLS: write check = "https"
sticky = { by = "cookie", name = "a b" }
    pool `web`: sticky.name must be the name of a cookie, of letters, digits, - and _, got "a b"
on_down = "close"
    pool `web`: on_down = "close" needs a check, because failures of traffic expire
on_down = "reset"
    pool `web`: on_down must be "keep" or "close", got "reset"
"#;

const OF_A_FILE: &str = r#"
pool { "10.0.0.1:80" } service { listen = "x" } service(80) { listen = "x" }
    pool takes a name first, got a table: write pool "web" { "10.0.0.1:80" }
    service takes a name first, got a table: write service "www" { listen = "0.0.0.0:80", pool = "web" }
    service takes a name first, got a number: write service "www" { listen = "0.0.0.0:80", pool = "web" }
pool "p" service "s" { listen = "127.0.0.1:1", pool = "p" }
    pool "p" has no body: write pool "p" { ... }
service "s" { listen = 80, "10.0.0.1:80" }
    service `s`: listen must be an address, got 80: write "0.0.0.0:80"
service "s" { listen = "127.0.0.1:1", pool = "p" } pool "p" "x"
    pool "p" takes a table, got a string: write pool "web" { "10.0.0.1:80" }
server { "x" }
    server takes a string, got a table: write server "10.0.0.1:80" { weight = 2 }
prefixes()
    prefixes takes a string, got nothing: write prefixes "FILE"
include(5)
    include takes a file, such as include "pools.lua"
geoip()
    geoip takes a file, such as geoip "GeoLite2-Country.mmdb"
env()
    env takes the name of a variable, such as env "PORT"
env "EVENER_NOWHERE"
    the environment variable EVENER_NOWHERE is not set: set it, or give a default: env("EVENER_NOWHERE", "...")
error({})
    error was called with a table: write error("text")
error("stop")
    stop
upstream "web" { "x" }
    `upstream` is not defined; use `pool`
local web = pool "web" { "10.0.0.1:80" } web.policy = "hash"
    attempt to index a declared value (local 'web'): write its keys inside its braces
service "s" { listen = "::1:80", "10.0.0.1:80" }
    service `s`: `::1:80` needs brackets: write an IPv6 address as [::1]:80
service "s" { listen = "80", "10.0.0.1:80" }
    service `s`: `80` has no host: write 0.0.0.0:80 for all IPv4 addresses, [::]:80 for all IPv6 addresses, or both
service "s" { bind = "0.0.0.0:80", "10.0.0.1:80" }
    service `s`: unknown key `bind`; use `listen`
pool "a" { "1.2.3.4:80", sticky = { by = "cookie", name = "X" } } pool "b" { "1.2.3.4:80", sticky = { by = "cookie", name = "X" } } service "s" { listen = "0.0.0.0:80", protocol = "http", pool = "a", routes = { { host = "b", pool = "b" } } }
    service `s`: pools `a` and `b` have the same cookie `X`: give one of them another name
pool "a" { "1.2.3.4:80" } pool "a" { "1.2.3.4:80" }
    pool `a` is already declared at c.lua:1: give one of them another name
x = = 1
    unexpected symbol near '='
service "s" { listen = 0.0.0.0:80 }
    malformed number near '0.0.0.0': is a quote missing?
service "s" { listen: "0.0.0.0:80" }
    keys are written with =: write listen = "0.0.0.0:80", not listen: "0.0.0.0:80"
pool "web" { "10.0.0.1:80" } service "s" { listen = "127.0.0.1:1", pool = web }
    `web` is not defined: write "web" in quotes, or local web = pool "web" { ... }
pool "p" { "a:80",
    the file ends inside the '{' of line 1: is a } missing?
pool "p" { "a:80" } endd
    `endd` is not a declaration; did you mean `end`?
pool "p" { "a:80" "b:80" }
    a comma is missing on this line, before `"b:80"`
"#;

#[test]
fn each_mistake_in_a_service_has_its_message() {
    let start = "service \"s\" { listen = \"127.0.0.1:1\",";
    check_cases(OF_A_SERVICE, |case| service_with(&format!("{case}, \"10.0.0.1:1\"")));
    check_cases(OF_A_SERVICE_WITHOUT_SERVERS, service_with);
    let pool = "local web = pool \"web\" { \"10.0.0.1:80\" }";
    check_cases(OF_A_SERVICE_WITH_A_POOL, |case| format!("{pool} {start} pool = web, {case} }}"));
}

#[test]
fn each_mistake_in_tls_http_and_access_keys_has_its_message() {
    check_cases(AT_THE_EDGE, |case| {
        format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", {case} }}")
    });
    for denied in ["\"reject\"", "\"tarpit\"", "{ tarpit = \"1s\" }"] {
        check_problems(
            &format!(
                "service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", protocol = \"udp\", denied = {denied} }}"
            ),
            &["c.lua:1: service `s`: a udp service can only drop refused clients or send them to a pool"],
        );
    }
}

#[test]
fn each_mistake_in_a_dns_service_has_its_message() {
    let start = "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"dns\", \"10.0.0.1:53\",";
    check_cases(OF_A_DNS_SERVICE, |case| format!("{start} {case} }}"));
    let long = format!("/{}", "a".repeat(100));
    check_problems(
        &format!("{start} discover = {{ mname = \"{long}\" }} }}"),
        &[&format!(
            "c.lua:1: service `s`: `{long}` is too long: the paths of its sockets must have at most 107"
        )],
    );
}

#[test]
fn each_mistake_in_a_pool_has_its_message() {
    let service = "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\", pool = \"web\" }";
    check_cases(OF_A_POOL, |case| format!("pool \"web\" {{ \"10.0.0.1:80\", {case} }} {service}"));
}

#[test]
fn each_mistake_in_a_file_has_its_message() {
    check_cases(OF_A_FILE, str::to_owned);
}

#[test]
fn a_float_without_a_fraction_is_read_as_an_integer() {
    let text = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\", backlog = 1e3 }";
    assert_eq!(load_text(text).unwrap().spec.services[0].options.backlog, 1000);
}

#[test]
fn a_declaration_may_have_parentheses_around_its_name_and_table() {
    let config = load_text("service(\"s\", { listen = \"127.0.0.1:1\", \"10.0.0.1:1\" })").unwrap();
    assert_eq!(&*config.spec.services[0].name, "s");
}

#[test]
fn a_byte_order_mark_is_skipped() {
    load_text("\u{feff}service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\" }").unwrap();
}

#[test]
fn a_note_reports_that_certificates_and_names_were_not_checked() {
    let problems = |server: &str| {
        load_text(&format!("service \"s\" {{ listen = \"127.0.0.1:1\", {server}, nonsense = 1 }}"))
            .unwrap_err()
    };
    let note = "note: certificates and host names were not checked because of the problems above";
    assert!(
        problems("\"www.example:80\"").ends_with(&format!("`nonsense`; see `evener help service`\n{note}"))
    );
    assert!(problems("\"10.0.0.1:80\", tls = \"x.pem\"").ends_with(note));
    assert!(problems("\"10.0.0.1:80\"").ends_with("unknown key `nonsense`; see `evener help service`"));
}
