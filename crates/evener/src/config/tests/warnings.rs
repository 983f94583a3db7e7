//! Warnings about valid configurations, and settings that are refused because they are always a mistake.

use super::*;

fn check(text: &str, expected: &[&str]) {
    let warnings = config_warnings(text);
    assert_eq!(warnings.len(), expected.len(), "{text}: {warnings:?}");
    for (warning, expected) in warnings.iter().zip(expected) {
        assert!(warning.starts_with(expected), "{warning}\ninstead of\n{expected}");
    }
}

/// Returns the warnings with the location `c.lua:LINE`. Messages may contain slashes.
fn config_warnings(text: &str) -> Vec<String> {
    let config = load_text(text).unwrap_or_else(|problems| panic!("{text}: {problems}"));
    let short = |warning: &Warning| {
        let text = warning.to_string();
        text.find("c.lua:").map_or_else(|| text.clone(), |at| text[at..].to_owned())
    };
    config.warnings().iter().map(short).collect()
}

/// Checks the warnings about an http service with the keys of each case.
fn check_http(keys: &str, expected: &[&str]) {
    let pool = "local p = pool \"p\" { \"10.0.0.1:80\" }";
    check(&format!("{pool}\n{}", service_with(&format!("protocol = \"http\", {keys}"))), expected);
}

#[test]
fn settings_without_effect_in_an_http_service_have_a_warning() {
    check_http("pool = p", &[]);
    check_http(
        "pool = p, http2 = true",
        &[
            "c.lua:2: warning: service `s`: http2 has no effect without tls: without TLS all clients use HTTP/1.1",
        ],
    );
    check_http("pool = p, http2 = false", &[]);
    check_http(
        "pool = p,\nredirect = \"https\"",
        &[
            "c.lua:3: warning: service `s`: redirect responds to every request that no route matches, so its pool is never used: remove pool",
        ],
    );
    check_http("pool = p, redirect = \"https\", health = \"/health\"", &[]);
    check_http("redirect = \"https\", routes = { { path = \"/a\", pool = p } }", &[]);
    check_http(
        "\"10.0.0.2:80\", respond = {}, routes = { { path = \"/a\", pool = p } }",
        &[
            "c.lua:2: warning: service `s`: respond responds to every request that no route matches, so its servers are never used: remove the servers",
        ],
    );
    check_http(
        "pool = p, certificate_header = \"X-Client\"",
        &[
            "c.lua:2: warning: service `s`: certificate_header has no subject to send: clients have certificates only",
        ],
    );
    let of_redirect =
        "c.lua:2: warning: service `s`: redirect sends clients to https on port 1, where this service itself";
    let redirect = "routes = { { path = \"/a\", pool = p } }, redirect = { port = 1 }";
    check_http(&format!("tls = \"a.pem\", {redirect}"), &[of_redirect]);
    check_http(redirect, &[]);
    check_http(&format!("tls = \"a.pem\", {}", redirect.replace('1', "2")), &[]);
    check_http("pool = p, unix_mode = \"0660\"", &["c.lua:2: warning: service `s`: unix_mode has no effect"]);
}

#[test]
fn settings_without_effect_in_a_pool_have_a_warning() {
    let service = "service \"s\" { listen = \"127.0.0.1:1\", pool = \"p\" }";
    let check_pool = |keys: &str, expected: &[&str]| {
        check(&format!("pool \"p\" {{\n \"10.0.0.1:80\", {keys} }}\n{service}"), expected);
    };
    check_pool("", &[]);
    check_pool(
        "{ \"10.0.0.2:80\",\n weight = 2 }",
        &[
            "c.lua:3: warning: pool `p`: the servers have different weights, but policy = \"round_robin\" does not use weights: write policy = \"weighted\"",
        ],
    );
    check_pool("{ \"10.0.0.2:80\", weight = 0 }", &[]);
    for policy in ["weighted", "least_conn", "least_outstanding", "p2c", "ewma", "hash", "maglev"] {
        check_pool(&format!("{{ \"10.0.0.2:80\", weight = 2 }}, policy = \"{policy}\""), &[]);
    }
    check_pool(
        "policy = \"hash\", slow_start = \"10s\"",
        &["c.lua:2: warning: pool `p`: slow_start has no effect with policy = \"hash\""],
    );
    check_pool(
        "tls = { ca = \"ca.pem\", verify = false }",
        &["c.lua:2: warning: pool `p`: ca has no effect with verify = false"],
    );
    check_pool("tls = { verify = false }", &[]);
    check_pool("queue = {}", &[]);
    check_pool(
        "resolver = \"10.0.0.53\"",
        &["c.lua:2: warning: pool `p`: resolver has no effect: the pool has neither"],
    );
    check_pool(
        "resolve = \"optional\"",
        &["c.lua:2: warning: pool `p`: resolve has no effect: the pool has neither"],
    );
    check_pool("\"a.example:80\", resolver = \"10.0.0.53\", resolve = \"optional\"", &[]);
    check_pool("discover.file \"list\", resolve = \"optional\"", &[]);
    check_pool(
        "\n\"0.0.0.0:81\", \"[::]:82\"",
        &[
            "c.lua:3: warning: pool `p`: server `0.0.0.0:81` has the address for listening on all interfaces: write 127.0.0.1:81",
            "c.lua:3: warning: pool `p`: server `[::]:82` has the address for listening on all interfaces: write [::1]:82",
        ],
    );
    check(
        "service \"s\" { protocol = \"udp\", listen = \"127.0.0.1:1\", queue = {}, \"10.0.0.1:1\" }",
        &["c.lua:1: warning: service `s`: queue has no effect: only clients of tcp and http"],
    );
    check(
        "service \"s\" { protocol = \"udp\", listen = \"127.0.0.1:1\", queue = false, \"10.0.0.1:1\" }",
        &[],
    );
    check(
        &format!("{service} pool \"p\" {{ \"10.0.0.1:80\" }}\npool \"q\" {{ \"10.0.0.1:80\" }}"),
        &[
            "c.lua:2: warning: pool `q`: no service uses this pool: write pool = \"q\" in a service, or remove the pool",
        ],
    );
    for key in ["denied = \"q\"", "per_client = { connections = 1, exceeded = \"q\" }"] {
        let refused = format!("service \"r\" {{ listen = \"127.0.0.1:2\", pool = \"p\", {key} }}");
        check(
            &format!("{service} {refused} pool \"p\" {{ \"10.0.0.1:80\" }} pool \"q\" {{ \"10.0.0.1:80\" }}"),
            &[],
        );
    }
}

#[test]
fn a_cache_before_servers_that_are_informed_of_clients_has_a_warning() {
    let config = |dns: &str, version: &str| {
        format!(
            "pool \"p\" {{ \"10.0.0.1:53\"{version} }}\nservice \"s\" {{ listen = \"127.0.0.1:1\", protocol = \"dns\", pool = \"p\",\n dns = {{ {dns} }} }}"
        )
    };
    let warning =
        "c.lua:3: warning: service `s`: pool `p` reports each client to its servers (send_proxy), but cached";
    check(&config("cache = true", ", send_proxy = \"v2\""), &[warning]);
    check(&config("", ", send_proxy = \"v2\""), &[]);
    check(&config("cache = true", ""), &[]);
}

#[test]
fn a_prefix_with_an_address_inside_its_network_has_a_warning() {
    let warning = |text: &str, network: &str, address: &str| {
        format!(
            "c.lua:2: warning: service `s`: `{text}` means the whole network {network}: write `{network}`, or `{address}` for"
        )
    };
    let of = |prefix: &str| {
        format!("protocol = \"http\", deny = {{ \"192.0.2.0/24\",\n\"{prefix}\" }}, \"10.0.0.1:80\"")
    };
    check(&service_with(&of("10.1.2.3/8")), &[&warning("10.1.2.3/8", "10.0.0.0/8", "10.1.2.3")]);
    check(
        &service_with(&of("2001:db8::1/32")),
        &[&warning("2001:db8::1/32", "2001:db8::/32", "2001:db8::1")],
    );
    for right in [
        "10.0.0.0/8",
        "10.1.2.3",
        "10.1.2.3/32",
        "2001:db8::/32",
        "2001:DB8:0::/32",
        "::1/128",
        "0.0.0.0/0",
        "::/0",
    ] {
        check(&service_with(&of(right)), &[]);
    }
    let wrong = "\"10.1.2.3/8\"";
    let keys = [
        format!("allow = {wrong}"),
        format!("access = {{ {{ permit = {wrong} }} }}"),
        format!("proxy_from = {wrong}"),
        format!("forwarded = {{ trust = {wrong} }}"),
    ];
    for key in keys {
        let text = service_with(&format!("protocol = \"http\", {key}, \"10.0.0.1:80\""));
        check(&text, &["c.lua:1: warning: service `s`: `10.1.2.3/8` means the whole network 10.0.0.0/8"]);
    }
    let of_server = service_with("{ \"10.0.0.1:80\", deny = \"10.1.2.3/8\" }");
    check(&of_server, &["c.lua:1: warning: server `10.0.0.1:80`: `10.1.2.3/8` means"]);
}

#[test]
fn settings_that_are_always_a_mistake_are_refused() {
    for (address, kind) in [
        ("239.1.1.1:53", "a multicast address, and evener does not join multicast groups"),
        ("[ff02::1]:53", "a multicast address, and evener does not join multicast groups"),
        ("255.255.255.255:53", "the broadcast address"),
    ] {
        for protocol in ["udp", "dns", "tcp"] {
            let text = format!(
                "service \"s\" {{ listen = \"{address}\", protocol = \"{protocol}\", \"10.0.0.1:53\" }}"
            );
            check_problems(
                &text,
                &[&format!("c.lua:1: service `s`: `{address}` is {kind}: write an address of this machine")],
            );
        }
    }
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\",\nconnections_max = 5, \"10.0.0.1:80\",\nconnections_max = 6 }",
        &[
            "c.lua:3: service `s`: connections_max is already set on line 2, and Lua keeps only one of the values",
        ],
    );
    check(
        &service_with("\"10.0.0.1:80\", send_proxy = true"),
        &[
            "c.lua:1: warning: service `s`: send_proxy = true is a deprecated form of \"v2\": write \"v2\", or",
        ],
    );
}

#[test]
fn hosts_that_differ_only_in_their_form_are_one_host() {
    let routes = |one: &str, other: &str| {
        service_with(&format!(
            "protocol = \"http\", \"10.0.0.1:80\", routes = {{ {{ host = \"{one}\", pool = \"p\" }},\n{{ host = \"{other}\", pool = \"p\" }} }}"
        )) + "pool \"p\" { \"10.0.0.2:80\" }"
    };
    let twice =
        |host: &str| format!("c.lua:2: service `s`: two routes have host `{host}`: remove one of them");
    check_problems(&routes("a.test", "A.TEST"), &[&twice("a.test")]);
    check_problems(&routes("*.a.test", "*.A.test"), &[&twice("*.a.test")]);
    check_problems(
        &routes("a.test", "a.test."),
        &["c.lua:2: service `s`: `a.test.` ends with a dot: write host = \"a.test\", which also matches"],
    );
    check_problems(
        &routes("a.test", "bücher.test"),
        &[
            "c.lua:2: service `s`: `bücher.test` has characters outside ASCII: write the ASCII form of the name",
        ],
    );
    check(&routes("a.test", "*.a.test"), &[]);
}

#[test]
fn a_misspelt_certificate_is_the_only_problem() {
    for keys in [
        "crt = \"a.crt\", key = \"a.key\"",
        "cert = \"a.crt\"",
        "certificates = { { crt = \"a.crt\", key = \"a.key\" } }",
    ] {
        let problems = load_text(&service_with(&format!("tls = {{ {keys} }}, \"10.0.0.1:80\""))).unwrap_err();
        let lines: Vec<&str> = problems.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains("unknown key `tls.c"), "{keys}: {problems}");
    }
}

#[test]
fn programs_that_cannot_run_have_warnings() {
    let text = |keys: &str| {
        format!(
            "exec {{ allow = {{ \"/bin/true\", \"/no/such\" }} }}\n{}",
            service_with(&format!("\"10.0.0.1:80\", {keys}"))
        )
    };
    check(&text("check = check.exec { \"/bin/true\" }, notify = { down = \"/bin/true\" }"), &[]);
    let missing = "there is no program /no/such on this machine: install it";
    check(
        &text("check = check.exec { \"/no/such\" }"),
        &[&format!("c.lua:2: warning: service `s`: {missing}")],
    );
    check(&text("notify = { down = \"/no/such\" }"), &[&format!("c.lua:2: warning: service `s`: {missing}")]);
    check(
        &text("notify = { quorum_down = \"/bin/true\" }"),
        &[
            "c.lua:2: warning: service `s`: quorum_down never runs, because the pool has no quorum: write quorum = 1",
        ],
    );
}
