//! Clients behind trusted proxies: access lists, rates, hashing and stickiness use only the addresses that those proxies
//! wrote, over HTTP/1 and HTTP/2, and servers receive the same addresses.

use crate::harness::origin::{Message, Origin, Wire, run_http};
use crate::http::http2::client::{Front, within};

const FORWARDED: &str = "forwarded = { trust = { \"127.0.0.0/8\", \"fd00::/8\" }, headers = \"forwarded\" }";
const CLASSIC: &str = "forwarded = { trust = { \"127.0.0.0/8\", \"fd00::/8\" } }";
const BOTH: &str = "forwarded = { trust = { \"127.0.0.0/8\", \"fd00::/8\" }, headers = \"both\" }";
const DENY: &str = "deny = { \"192.0.2.0/24\", \"2001:db8::/32\" }, denied = \"reject\"";

/// Fields of a request.
type Fields<'a> = &'a [(&'a str, &'a str)];
/// The status and the body of the responses to requests with these fields.
type Responses = Vec<(u16, String)>;

/// Sends each request over its own connection of HTTP/1.
fn over_http1(origins: &[&Origin], config: &str, requests: &[Fields<'_>]) -> Responses {
    let (_evener, port) = run_http(origins, config);
    let request = |fields: &Fields<'_>| {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let response = Wire::to(port).ask("GET", "/", &lines).unwrap();
        (response.status(), response.text())
    };
    requests.iter().map(request).collect()
}

/// Sends all requests over one connection of HTTP/2.
fn over_http2(origins: &[&Origin], config: &str, requests: &[Fields<'_>]) -> Responses {
    let front = Front::run(origins, config);
    within(async {
        let client = front.client().await;
        let mut responses = Vec::new();
        for fields in requests {
            let response = client.request("GET", "/", fields).await.unwrap();
            responses.push((response.status(), response.text()));
        }
        responses
    })
}

/// Sends requests to a service of these servers with this configuration.
type Mode = fn(&[&Origin], &str, &[Fields<'_>]) -> Responses;

const MODES: [Mode; 2] = [over_http1, over_http2];

/// The statuses of the responses to these requests, over HTTP/1 and over HTTP/2.
fn statuses(config: &str, requests: &[Fields<'_>]) -> [Vec<u16>; 2] {
    let origin = Origin::named("a");
    MODES.map(|mode| mode(&[&origin], config, requests).into_iter().map(|(status, _)| status).collect())
}

/// Checks that a request with any of these values of a field gets the expected status.
fn check_values(config: &str, name: &str, values: &[&str], expected: u16) {
    let fields: Vec<[(&str, &str); 1]> = values.iter().map(|value| [(name, *value)]).collect();
    let requests: Vec<Fields<'_>> = fields.iter().map(|fields| &fields[..]).collect();
    for got in statuses(config, &requests) {
        let wrong: Vec<_> = values.iter().zip(got).filter(|(_, status)| *status != expected).collect();
        assert!(wrong.is_empty(), "{name} with {config} should be {expected}: {wrong:?}");
    }
}

#[test]
fn only_the_configured_field_decides_which_client_is_denied() {
    let requests: [Fields<'_>; 4] = [
        &[("forwarded", "for=192.0.2.7"), ("x-forwarded-for", "198.51.100.1")],
        &[("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "192.0.2.7")],
        &[("forwarded", "for=192.0.2.7")],
        &[("x-forwarded-for", "192.0.2.7")],
    ];
    for (config, expected) in [
        (FORWARDED, [403, 200, 403, 200]),
        (CLASSIC, [200, 403, 200, 403]),
        // When the two fields contradict each other, the client may have written one of them, so the access
        // list refuses the client.
        (BOTH, [403, 403, 403, 403]),
    ] {
        for got in statuses(&format!("{config}, {DENY}"), &requests) {
            assert_eq!(got, expected, "{config}");
        }
    }
    let agreed: [Fields<'_>; 1] = [&[("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "198.51.100.1")]];
    assert_eq!(statuses(&format!("{BOTH}, {DENY}"), &agreed), [[200], [200]]);
}

#[test]
fn no_form_of_x_forwarded_for_evades_deny() {
    let denied = [
        "192.0.2.7",
        "192.0.2.7:4711",
        "192.0.2.7,",
        "192.0.2.7 , ,",
        "::ffff:192.0.2.7",
        "[2001:db8::7]",
        "[2001:db8::7]:443",
        "2001:db8::7",
        "192.0.2.7, [fd00::1]",
        "192.0.2.7, 127.0.0.9:80, [fd00::1]:80,",
        "198.51.100.1, 192.0.2.7",
        "garbage, \", 192.0.2.7",
    ];
    let hidden = ["unknown", "_hidden", "garbage", "198.51.100.1, unknown", "198.51.100.1, [fd00::1, ::1]"];
    let permitted = ["", ",", "198.51.100.1", "[2001:db9::1]", "192.0.2.7, 198.51.100.1", "127.0.0.9"];
    let config = format!("{CLASSIC}, {DENY}");
    check_values(&config, "x-forwarded-for", &denied, 403);
    check_values(&config, "x-forwarded-for", &hidden, 403);
    check_values(&config, "x-forwarded-for", &permitted, 200);
    // Without an access list, the proxy counts as the client whose address it hides.
    check_values(CLASSIC, "x-forwarded-for", &hidden, 200);
}

#[test]
fn no_form_of_forwarded_evades_deny() {
    let denied = [
        "for=192.0.2.7",
        "For=\"192.0.2.7:4711\";proto=https;host=\"a,b\"",
        "by=_a;for=\"[2001:db8::7]\"",
        "for=\"[2001:db8::7]:_port\"",
        "for=192.0.2.7, for=\"[fd00::1]:1\",",
        "for=\"[::ffff:192.0.2.7]\"",
        "for=\", for=192.0.2.7",
        "for=198.51.100.1;x=\", for=192.0.2.7;host=\"a\"",
    ];
    let hidden =
        ["for=unknown", "for=_hidden", "for=\"198.51.100.1", "proto=https", "for=1.1.1.1;for=1.1.1.2"];
    let permitted = ["", "for=198.51.100.1", "for=\"[2001:db9::7]\"", "for=192.0.2.7, for=198.51.100.1:80"];
    let config = format!("{FORWARDED}, {DENY}");
    check_values(&config, "forwarded", &denied, 403);
    check_values(&config, "forwarded", &hidden, 403);
    check_values(&config, "forwarded", &permitted, 200);
    check_values(FORWARDED, "forwarded", &hidden, 200);
}

#[test]
fn repeated_fields_are_joined_into_one_list() {
    let requests: [Fields<'_>; 3] = [
        &[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "192.0.2.7")],
        &[("x-forwarded-for", "192.0.2.7"), ("x-forwarded-for", ","), ("x-forwarded-for", "[fd00::1]")],
        &[("x-forwarded-for", "192.0.2.7"), ("x-forwarded-for", "198.51.100.1,")],
    ];
    for got in statuses(&format!("{CLASSIC}, {DENY}"), &requests) {
        assert_eq!(got, [403, 403, 200]);
    }
}

#[test]
fn an_allow_list_refuses_clients_whose_address_is_hidden() {
    let config =
        format!("{CLASSIC}, allow = {{ \"127.0.0.0/8\", \"198.51.100.0/24\" }}, denied = \"reject\"");
    check_values(&config, "x-forwarded-for", &["198.51.100.1", "198.51.100.1, 127.0.0.2", ""], 200);
    check_values(&config, "x-forwarded-for", &["192.0.2.7", "unknown", "192.0.2.7, x, 127.0.0.2"], 403);
}

#[test]
fn request_rates_count_the_client_that_the_configured_field_names() {
    const RATE: &str = "per_client = { request_rate = \"2/h\", exceeded = \"reject\" }";
    let hidden: Fields<'_> = &[("forwarded", "for=unknown"), ("x-forwarded-for", "8.8.8.4")];
    let requests: [Fields<'_>; 8] = [
        &[("forwarded", "for=192.0.2.7"), ("x-forwarded-for", "8.8.8.1")],
        &[("forwarded", "for=\"192.0.2.7:1\", for=127.0.0.2"), ("x-forwarded-for", "8.8.8.2")],
        &[("forwarded", "for=8.8.8.8, for=\"[::ffff:192.0.2.7]\","), ("x-forwarded-for", "8.8.8.3")],
        &[("forwarded", "for=192.0.2.8"), ("x-forwarded-for", "8.8.8.1")],
        hidden,
        hidden,
        hidden,
        &[("forwarded", "for=192.0.2.8")],
    ];
    for got in statuses(&format!("{FORWARDED}, {RATE}"), &requests) {
        assert_eq!(got, [200, 200, 429, 200, 200, 200, 429, 200]);
    }
}

/// Checks that each of many clients always gets the same server, regardless of spoofed fields and of the proxies in between.
fn check_one_server_a_client(config: &str) {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let texts: Vec<[String; 2]> = (0..48)
        .map(|turn| {
            let client = format!("192.0.2.{}", turn / 3);
            let forms = [
                format!("for={client}"),
                format!("for=\"{client}:9\", for=127.0.0.3"),
                format!("for=\", for={client},"),
            ];
            [forms[turn % 3].clone(), format!("8.8.8.{turn}")]
        })
        .collect();
    let fields: Vec<[(&str, &str); 2]> = texts
        .iter()
        .map(|[forwarded, spoofed]| {
            [("forwarded", forwarded.as_str()), ("x-forwarded-for", spoofed.as_str())]
        })
        .collect();
    let requests: Vec<Fields<'_>> = fields.iter().map(|fields| &fields[..]).collect();
    for mode in MODES {
        let servers: Vec<String> =
            mode(&[&a, &b], config, &requests).into_iter().map(|(_, body)| body).collect();
        assert!(servers.chunks(3).all(|three| three[0] == three[1] && three[1] == three[2]), "{servers:?}");
        assert!(servers.iter().any(|server| server == "a") && servers.iter().any(|server| server == "b"));
    }
}

#[test]
fn hashing_uses_the_client_that_the_configured_field_names() {
    check_one_server_a_client(&format!("{FORWARDED}, policy = \"hash\""));
}

#[test]
fn stickiness_uses_the_client_that_the_configured_field_names() {
    check_one_server_a_client(&format!("{FORWARDED}, sticky = true"));
}

/// The `X-Forwarded-For` and `Forwarded` that a server receives, without host and scheme.
fn forwarded_to_server(config: &str, fields: Fields<'_>) -> [String; 2] {
    let both = MODES.map(|mode| {
        let origin = Origin::named("a");
        mode(&[&origin], config, &[fields]);
        let received: Message = origin.requests().remove(0);
        ["X-Forwarded-For", "Forwarded"].map(|name| {
            let value = received.field(name);
            value.split_once(";host=").map_or(value, |(lists, _)| lists).to_owned()
        })
    });
    assert_eq!(both[0], both[1], "HTTP/1 and HTTP/2");
    both[0].clone()
}

#[test]
fn servers_receive_the_client_address_that_evener_uses() {
    let check = |config, fields, forwarded_for: &str, forwarded: &str| {
        assert_eq!(forwarded_to_server(config, fields), [forwarded_for, forwarded], "{config} {fields:?}");
    };
    let contrary: Fields<'_> = &[("forwarded", "for=192.0.2.7"), ("x-forwarded-for", "198.51.100.1")];
    check(FORWARDED, contrary, "", "for=192.0.2.7, for=127.0.0.1");
    check(CLASSIC, contrary, "198.51.100.1, 127.0.0.1", "");
    check(BOTH, contrary, "127.0.0.1", "for=127.0.0.1");
    // If a request has only one of the fields, the other field is derived from it.
    check(
        BOTH,
        &[("forwarded", "for=\"[2001:db8::7]:1\"")],
        "2001:db8::7, 127.0.0.1",
        "for=\"[2001:db8::7]:1\", for=127.0.0.1",
    );
    check(
        BOTH,
        &[("x-forwarded-for", "2001:db8::7,")],
        "2001:db8::7, 127.0.0.1",
        "for=\"[2001:db8::7]\", for=127.0.0.1",
    );
    check(BOTH, &[("x-forwarded-for", "unknown")], "unknown, 127.0.0.1", "for=127.0.0.1");
    // An ambiguous value is not forwarded.
    check(
        FORWARDED,
        &[("forwarded", "for=8.8.8.8, for=\", for=192.0.2.7")],
        "",
        "for=192.0.2.7, for=127.0.0.1",
    );
    let untrusted = "forwarded = { mode = \"append\", headers = \"forwarded\" }";
    check(untrusted, &[("forwarded", "for=8.8.8.8;x=\"")], "", "for=127.0.0.1");
    check(untrusted, &[("forwarded", "for=8.8.8.8")], "", "for=8.8.8.8, for=127.0.0.1");
    check(
        CLASSIC,
        &[("x-forwarded-for", ", 192.0.2.7,"), ("x-forwarded-for", " ")],
        "192.0.2.7, 127.0.0.1",
        "",
    );
}
