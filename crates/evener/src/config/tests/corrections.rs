//! Messages that say what to write instead, and the lines of messages.

use super::{check_cases, check_problems, load_text, service_with};

const OF_A_SERVICE: &str = r#"
protocol = "http", routes = { { path = "~ ^/api/.*", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: routes.path must be a prefix of the path, not a regular expression, got "~ ^/api/.*": write "/api/"
protocol = "http", routes = { { path = "api", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: routes.path must begin with /, got "api": write "/api"
protocol = "http", routes = { { host = "a.*.test", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: `a.*.test` has a * that is not its first part: write each host, or *.example.org for all names below one
protocol = "http", forwarded = { mode = "add" }
    service `s`: forwarded.mode must be "replace", "append" or "off", got "add": write "append"
protocol = "http", redirect = "http://x"
    service `s`: redirect must be "https" or { port = 8443 }, got "http://x": only https of the same host is available
tls = { crt = "a", key = "b" }
    service `s`: unknown key `tls.crt`; use `certificate`
connect_timeout = false
    service `s`: connect_timeout must be a duration such as "500ms", "2s" or "1h", got false: the default is "3s"
{ address = "10.0.0.2:80" }
    service `s`: a server must begin with its address: { "10.0.0.2:80", ... }
server("10.0.0.2:80", { wieght = 5 })
    server `10.0.0.2:80`: unknown key `wieght`; did you mean `weight`?
server("10.0.0.2:80", 5)
    server takes a table behind the string, got a number: write server "10.0.0.1:80" { weight = 2 }
{ "10.0.0.2:80", 5 }
    server `10.0.0.2:80`: a server must have one address, got also 5: its other settings need keys
nodelay = True
    `True` is not defined: write true
policy = least_conn
    `least_conn` is not defined: write policy = "least_conn"
policy = policy.leastconn
    `policy.leastconn` is not defined: write policy = "least_conn"
check = http
    service `s`: check must be "tcp", "tls", "http", "https", "udp", "dns", "smtp" or a check such as check.http { path = "/health" }, got the library http: write check = "http"
protocol = http
    service `s`: protocol must be "tcp", "udp", "http" or "dns", got the library http: write protocol = "http"
pool = poll
    `poll` is not defined
listen = os.getenv("X")
    `os` is not defined: the environment is read by env "NAME"
connections_max = "10k"
    service `s`: connections_max must be a number between 1 and 16000000, got "10k"
keepalive = true
    service `s`: keepalive must be a duration such as "500ms", "2s" or "1h", or false for none, got true
idle_timeout = 0
    service `s`: idle_timeout must be above zero, got 0: write false for none
connect_timeout = 0
    service `s`: connect_timeout must be above zero, got 0
timeout_client = "5s"
    service `s`: unknown key `timeout_client`; use `idle_timeout`
protocol = "http", trust = "10.0.0.0/8"
    service `s`: unknown key `trust`; write forwarded = { trust = "10.0.0.0/8" }
protocol = "http", cache = true, rate_limit = "5/s", sockets = 2
    service `s`: cache is not available with protocol = "http": only dns services have it
    service `s`: unknown key `rate_limit`; write per_client = { request_rate = "100/s" }
    service `s`: sockets is not available with protocol = "http": only dns services have it
allow = "10.0.0.0/"
    service `s`: `10.0.0.0/` has no length: write 10.0.0.0/8
allow = "::/129"
    service `s`: `::/129` is too long: an IPv6 prefix has at most 128 bits
access = { { allow = "10.0.0.0/8" } }
    service `s`: unknown key `access.allow`; use `permit`
access = { allow = "10.0.0.0/8" }
    service `s`: each item of access needs its own braces: access = { { permit = "10.0.0.0/8" }, ... }
per_client = { connection_rate = "100/sec" }
    service `s`: per_client.connection_rate must be a rate such as "20/s", "100/m" or "1000/h", got "100/sec": write "100/s"
check = check.http { status = "2xx" }
    check.http: status must be an HTTP status such as 200, or a list of them, got "2xx": remove it for 200 to 399
check = check.http { jitter = "x" }
    check.http: jitter must be a number between 0 and 1, got "x"
sticky = "client_ip"
    service `s`: sticky must be true or a table such as { by = "client_ip" }, got "client_ip"
sticky = { name = "X" }
    service `s`: sticky.name is not available with by = "client_ip"
protocol = "http", sticky = { by = "cookie", ttl = "1h" }
    service `s`: sticky.ttl is not available with by = "cookie"
protocol = "udp", denied = "reject"
    service `s`: a udp service can only drop refused clients or send them to a pool, got "reject": write denied = "drop"
tls = { certificates = { { key = "a.key" } } }
    service `s`: key, ocsp and issuers need a certificate: add certificate = "FILE"
check = check.dns { name = "exa mple..org" }
    check.dns: name must be a domain name, got "exa mple..org": it contains a space
check = check.dns { name = "bücher.example" }
    check.dns: name must be a domain name, got "bücher.example": write it in its xn-- form
"#;

#[test]
fn each_message_has_its_correction() {
    check_cases(OF_A_SERVICE, |case| service_with(&format!("{case}, \"10.0.0.1:1\"")));
}

#[test]
fn each_item_of_a_list_is_reported_at_its_line() {
    check_problems(
        r#"pool "web" {
  { "10.0.0.1:80", weight = "a" },
  { "10.0.0.2:80", weight = "b" },
  "10.0.0.1:80",
  5,
}
service "s" { listen = "127.0.0.1:1", protocol = "http", pool = "web",
  tls = { certificates = {
    { certificate = "a", kye = "b" },
    { certificate = "c", kye = "d" } } },
  routes = {
    { host = "a", pool = "web" },
    { host = "b", pool = "wbe" },
    { host = "c" },
    { hots = "d", pool = "web" },
    { host = "e", path = "x", pool = "web" },
    { host = "f", path = "y", pool = "web" } },
}
"#,
        &[
            "c.lua:2: server `10.0.0.1:80`: weight must be a number",
            "c.lua:3: server `10.0.0.2:80`: weight must be a number",
            "c.lua:4: server `10.0.0.1:80` is already in this pool, at c.lua:2: remove one of them, or give one another `name` to have it twice",
            "c.lua:5: pool `web`: a server must be an address such as \"10.0.0.1:80\", got 5",
            "c.lua:9: service `s`: unknown key `tls.certificates.kye`; did you mean `key`?",
            "c.lua:10: service `s`: unknown key `tls.certificates.kye`; did you mean `key`?",
            "c.lua:13: service `s`: there is no pool `wbe`; did you mean `web`?",
            "c.lua:14: service `s`: the route of host `c` needs a pool: add pool = \"www\"",
            "c.lua:15: service `s`: unknown key `routes.hots`; did you mean `host`?",
            "c.lua:16: service `s`: routes.path must begin with /, got \"x\"",
            "c.lua:17: service `s`: routes.path must begin with /, got \"y\"",
        ],
    );
}

#[test]
fn two_routes_of_one_host_are_reported_at_the_second() {
    check_problems(
        r#"pool "web" { "10.0.0.1:80" }
service "s" { listen = "127.0.0.1:1", protocol = "http", pool = "web", routes = {
    { host = "b", pool = "web" },
    { host = "b", pool = "web" } } }
"#,
        &["c.lua:4: service `s`: two routes have host `b`: remove one of them"],
    );
}

#[test]
fn a_table_may_be_the_second_argument_of_a_server() {
    let text = "service \"s\" { listen = \"127.0.0.1:1\", server(\"10.0.0.1:1\", { weight = 5 }) }";
    assert_eq!(load_text(text).unwrap().spec.pools[0].servers[0].weight, 5);
}

#[test]
fn a_note_reports_that_the_rest_was_not_checked() {
    let problems = |text: &str| load_text(text).unwrap_err();
    let note = "note: the rest of the configuration was not checked because of this error";
    assert_eq!(problems("\nerror('stop')"), format!("c.lua:2: stop\n{note}"));
    assert!(problems("x = = 1").ends_with(note));
    assert!(!problems("global\n  maxconn 5\ndefaults\n  mode http\n").contains("note: "));
}

#[test]
fn a_function_is_suggested_only_for_a_name_that_is_called() {
    let problems = |text: &str| load_text(text).unwrap_err();
    assert!(problems("poll 'x' {}").contains("`poll` is not defined; did you mean `pool`?"));
    assert_eq!(problems("x = poll"), "c.lua:1: `poll` is not defined");
}

#[test]
fn a_missing_brace_is_reported_before_the_next_declaration() {
    check_problems(
        "pool \"p\" {\n  \"10.0.0.1:80\"\n\nservice \"s\" { listen = \"127.0.0.1:1\", pool = \"p\" }",
        &["c.lua:4: a } is missing before this line: the { of line 1 is not closed"],
    );
}

#[test]
fn settings_that_a_udp_service_does_not_support_have_their_line() {
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\",\n protocol = \"udp\",\n denied = \"reject\",\n policy = \"hash\",\n spread = 3 }",
        &[
            "c.lua:3: service `s`: a udp service can only drop refused clients",
            "c.lua:5: service `s`: spread cannot be used with policy = \"hash\" of pool `s`",
        ],
    );
}
