//! Habits of users of other programs: each message says what to write, or that there is nothing of the kind.

use super::{check_cases, load_text, service_with};
use crate::config::Warning;

const IN_AN_HTTP_SERVICE: &str = r#"
routes = { ["/api"] = "p" }
    service `s`: unknown key `routes./api`; write routes = { { path = "/api", pool = "p" } }
routes = { ["a.example"] = "p" }
    service `s`: unknown key `routes.a.example`; write routes = { { host = "a.example", pool = "p" } }
routes = { { path = "/a", "10.0.0.1:81" } }
    service `s`: the route of path `/a` needs a pool, not a server: declare pool "www" { "10.0.0.1:80" }, and add pool = "www"
routes = { { path = "/a", server = "10.0.0.1:81" } }
    service `s`: unknown key `routes.server`; a route names a pool: declare pool "www" { "10.0.0.1:80" } and write pool = "www"
headers = { ["X-A"] = "b" }
    service `s`: unknown key `headers`; remove it: headers of requests and responses cannot be set, except X-Forwarded-For and similar fields, by forwarded
check = check.http { headers = { ["X-A"] = "b" } }
    check.http: unknown key `headers`; remove it: the request of a check has only the field Host, which `host` sets
check = check.http { expect = "200" }
    check.http: unknown key `expect`; write status = 200
check = check.http { threshold = 3 }
    check.http: unknown key `threshold`; use `fall` for the failures until a server is down, and `rise` for the successes until it is up
check = check.grpc {}
    `check.grpc` is not defined: gRPC health checks are not available: write check = "tcp", or check = check.http { ... }
error_page = "x"
    service `s`: unknown key `error_page`; remove it: the pages of errors cannot be changed
rewrite = "/x"
    service `s`: unknown key `rewrite`; remove it: paths are passed on unchanged and cannot be rewritten
root = "/var/www"
    service `s`: unknown key `root`; remove it: Evener serves no files; list a server that does
http3 = true
    service `s`: unknown key `http3`; remove it: HTTP/3 is not available; HTTP/2 is negotiated by default with TLS
tls = { certificate = "a.pem", protocols = { "TLSv1.2" } }
    service `s`: unknown key `tls.protocols`; write min_version = "1.2", or "1.3"
tls = { certificate = "a.pem", versions = "1.3" }
    service `s`: unknown key `tls.versions`; write min_version = "1.2", or "1.3"
tls = { certificate = "a.pem", ciphers = "HIGH" }
    service `s`: unknown key `tls.ciphers`; remove it: only secure cipher suites of TLS 1.2 and 1.3 are used and cannot be chosen; min_version = "1.3" excludes TLS 1.2
tls = { certificate = "a.pem", alpn = { "h2" } }
    service `s`: tls.alpn cannot be set with protocol = "http": remove it; HTTP/2 is negotiated by default, and http2 = false disables it
proxy_protocol = true
    service `s`: unknown key `proxy_protocol`; write proxy_from = "10.0.0.0/8", the addresses of the proxies that send it
gzip = true, compression = "br", auth = "x", cors = true, hsts = true, mirror = "p", buffering = "off", websocket = true
    service `s`: unknown key `auth`; remove it: users and passwords are not checked; allow, deny and tls.client_ca admit clients
    service `s`: unknown key `buffering`; remove it: bodies are passed on as they arrive and are not buffered
    service `s`: unknown key `compression`; remove it: compression is not available; responses are passed on as the servers send them
    service `s`: unknown key `cors`; remove it: let the servers send these headers; response headers cannot be set
    service `s`: unknown key `gzip`; remove it: compression is not available; responses are passed on as the servers send them
    service `s`: unknown key `hsts`; remove it: let the servers send these headers; response headers cannot be set
    service `s`: unknown key `mirror`; remove it: requests cannot be sent to a second pool as copies
    service `s`: unknown key `websocket`; remove it: WebSocket and other upgrades work without a key with protocol = "http"
max_body = "1m"
    service `s`: unknown key `max_body`; remove it: bodies have no maximum size; min_rate and stall_timeout bound their time
timeout_idle = "5s"
    service `s`: unknown key `timeout_idle`; use `idle_timeout`
sticky_session = true
    service `s`: unknown key `sticky_session`; write sticky = { by = "cookie", name = "SERVER" }
tls_cert = "a.pem"
    service `s`: unknown key `tls_cert`; write tls = { certificate = "site.crt", key = "site.key" }
redirect = { to = "https" }
    service `s`: unknown key `redirect.to`; only https of the same host is available: write redirect = "https"
redirect = true
    service `s`: redirect must be "https" or { port = 8443 }, got true: write redirect = "https"
respond = 404
    service `s`: respond must be a table, got 404: write respond = { status = 404 }
forwarded = { headers = "X-Forwarded-For" }
    service `s`: forwarded.headers must be "x-forwarded", "forwarded" or "both", got "X-Forwarded-For": write "x-forwarded", which includes all fields of this kind
retries = "3"
    service `s`: retries must be a number, got the text "3": write 3, or tonumber(...) for a variable
keepalive = 32
    service `s`: keepalive must be a duration such as "2min", the time before probes of TCP keepalive, got 32: connections to servers are kept without a key
idle_timeout = -1
    service `s`: idle_timeout must be a duration, or false for none, got -1: write idle_timeout = false
connect_timeout = -1
    service `s`: connect_timeout must not be negative, got -1
max = 10
    service `s`: max is a key of a server: write { "10.0.0.1:80", max = 10 }
weight = 10
    service `s`: weight is a key of a server: write { "10.0.0.1:80", weight = 10 }
allow = "10.0.0.0-10.0.0.255"
    service `s`: `10.0.0.0-10.0.0.255` is not a prefix: write 10.0.0.0/24
allow = { "all" }
    service `s`: `all` is not a prefix: every address is 0.0.0.0/0 and ::/0
{ host = "10.0.0.1", port = 80 }
    service `s`: a server must begin with its address: { "10.0.0.1:80", ... }
certificate_header = a.crt
    `a` is not defined: texts need quotes: write certificate_header = "a.crt"
tls = { certificate = site.crt }
    `site` is not defined: texts need quotes: write certificate = "site.crt"
ssl = true, ssl_certificate = "a.pem", ssl_certificate_key = "a.key"
    service `s`: unknown keys `ssl`, `ssl_certificate` and `ssl_certificate_key`; write tls = { certificate = "site.crt", key = "site.key" }
"#;

const IN_A_TCP_SERVICE: &str = r#"
timeout_server = "10s"
    service `s`: unknown key `timeout_server`; write response_timeout = "10s", which needs protocol = "http"; without it, use `idle_timeout`
proxy_read_timeout = "10s"
    service `s`: unknown key `proxy_read_timeout`; write response_timeout = "10s", which needs protocol = "http"; without it, use `idle_timeout`
location = "/"
    service `s`: unknown key `location`; write routes = { { host = "www.example.org", path = "/", pool = "web" } }, which needs protocol = "http"
server_name = "a.example"
    service `s`: unknown key `server_name`; write routes = { { host = "www.example.org", path = "/", pool = "web" } }, which needs protocol = "http"
per_client = { request_rate = "10/s" }
    service `s`: per_client.request_rate needs protocol = "http"
proto = "http", per_client = { request_rate = "10/s" }
    service `s`: unknown key `proto`; use `protocol`, such as protocol = "http"
protocl = "http", per_client = { request_rate = "10/s" }, routes = { { path = "/", pool = pool "p" { "10.0.0.1:80" } } }
    service `s`: unknown key `protocl`; did you mean `protocol`?
protocol = "dns", cache = true
    service `s`: unknown key `cache`; write dns = { cache = true }
"#;

const FILES: &str = r#"
service "w" { listen = "127.0.0.1:1", "10.0.0.1:80" } service "w" { listen = "127.0.0.1:1", "10.0.0.1:80" }
    service `w` is already declared at c.lua:1: give one of them another name
service "w" { listen "127.0.0.1:1", "10.0.0.1:80" }
    `listen` is not defined: a key needs a =: write listen = ...
service "w" { listen = "127.0.0.1:1", { "10.0.0.1:80", name = "" } }
    server `10.0.0.1:80`: name must not be empty: write a name, or remove it
service "" { listen = "127.0.0.1:1", "10.0.0.1:80" }
    the name of a service must not be empty: write service "NAME" { ... }
local web = pool "web" { "10.0.0.1:80" } service "w" { listen = "127.0.0.1:1", pool = wbe }
    `wbe` is not defined; did you mean `web`?
pool "web" { "10.0.0.1:80", tls = true, check = "http" } service "w" { listen = "127.0.0.1:1", pool = "web" }
    pool `web`: the servers of this pool use TLS: write check = "https", or check.https { ... } for its settings
global { maxconn = 5 }
    `global` is not defined; there is no such section: settings are keys of a service or a pool, and of `evener run`
require "pools"
    `require` is not defined: write include "FILE.lua"
include "conf.d/*.lua"
    include takes one file, not a pattern, got "conf.d/*.lua"
local function f() return 1 + f() end f()
    stack overflow: a function calls itself without end
local p = "10.0.0.0" / 8
    attempt to div a 'string' with a 'number': a prefix, or an address with its port, is one text such as "10.0.0.0/8"; texts are joined with ..
local p = "a" + 1
    attempt to add a 'string' with a 'number': a prefix, or an address with its port, is one text such as "10.0.0.0/8"; texts are joined with ..
service "w" { listen 80; "10.0.0.1:80" }
    a key needs a =: write listen = "0.0.0.0:80"
service "w" { "listen"="127.0.0.1:1", "10.0.0.1:80" }
    keys have no quotes: write listen = ...
service "w" { tls-cert="x", "10.0.0.1:80" }
    keys have _, not -: write tls_cert = ...
service "w" { listen = "127.0.0.1:1", "10.0.0.1":80 }
    the port belongs inside the quotes: write "10.0.0.1:80"
service 'w' { listen = '127.0.0.1:1', servers=['10.0.0.1:80'] }
    lists are written with braces: { "a", "b" }, not [ ]
service 'w' { listen = '127.0.0.1:1' '10.0.0.1:80' }
    a comma is missing on this line, before `'10.0.0.1:80'`
nonsense
    `nonsense` is not a declaration: write service "www" { ... } or pool "web" { ... }
service "w" { listen = "127.0.0.1:1", "10.0.0.1:80" };;; foo
    `foo` is not a declaration: write service "www" { ... } or pool "web" { ... }
service "w": { listen = "127.0.0.1:1" }
    write service "w" { ... }, without `:` before the braces
service "w" [ listen = "127.0.0.1:1" ]
    write service "w" { ... }, without `[` before the braces
let x = 1
    a variable is declared with local: write local x = ...
for i=1,3 { x(i) }
    a block of Lua has no braces: write for ... do ... end
service "w" { listen = "127.0.0.1:1", check = check.http { path = /health } }
    texts need quotes: write path = "/health"
"#;

#[test]
fn keys_of_other_programs_in_an_http_service_have_their_advice() {
    check_cases(IN_AN_HTTP_SERVICE, |case| {
        service_with(&format!("protocol = \"http\", \"10.0.0.9:80\", {case}"))
    });
}

#[test]
fn keys_that_need_another_protocol_say_so() {
    check_cases(IN_A_TCP_SERVICE, |case| service_with(&format!("\"10.0.0.9:80\", {case}")));
}

#[test]
fn forms_of_other_languages_have_their_correction() {
    check_cases(FILES, str::to_owned);
}

#[test]
fn a_global_that_is_never_used_has_a_warning() {
    let warnings = |text: &str| {
        let service = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\", connections_max = 9 }";
        let config = load_text(&format!("{text}\n{service}")).unwrap();
        let texts: Vec<String> = config.warnings.iter().map(Warning::text).collect();
        texts.iter().map(|text| text.rsplit('/').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("workers = 4"),
        [
            "c.lua:1: `workers` is set and never used: write evener run --workers N; by default there is a worker for each core"
        ]
    );
    assert_eq!(
        warnings("\nconections_max = 5"),
        [
            "c.lua:2: `conections_max` is set and never used: `connections_max` is a key of a service: write it inside its braces"
        ]
    );
    assert_eq!(
        warnings("quux = 5"),
        ["c.lua:1: `quux` is set and never used: write local quux if it is meant, or remove it"]
    );
    for used in [
        "port = 5 local x = port",
        "local workers = 4",
        "function workers() end",
        "workers = 4 local x = _G.workers",
        "pools = {} pools.a = 1",
        "web = pool \"web\" { \"10.0.0.1:80\" } service \"t\" { listen = \"127.0.0.1:2\", pool = web }",
    ] {
        assert_eq!(warnings(used), [""; 0], "{used}");
    }
}
