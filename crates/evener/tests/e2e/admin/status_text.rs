//! The text of `evener status`: the incidents that an operator must see at a glance, and the width of its lines.

use crate::admin::access::{error_of, output_of};
use crate::harness::origin::{Origin, get};
use crate::harness::{Evener, Server, connect, line, reserved_port, wait_until};
use serde_json::Value;
use std::net::UdpSocket;
use std::time::Duration;

/// Words of the column STATE, each with an age behind it.
const STATES: [&str; 5] = ["up", "down", "drain", "maint", "unchecked"];

/// Returns the text of the status as one line, because long lines are wrapped.
pub(crate) fn unwrapped_status(evener: &Evener) -> String {
    output_of(evener, &["status"]).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the cells of a row of the status by their headings, for a server that is in one table only.
fn row(evener: &Evener, server: &str) -> Vec<(String, String)> {
    let text = output_of(evener, &["status"]);
    let table = text.split("\n\n").find(|table| table.contains(&format!("\n  {server} "))).expect(&text);
    let heading = table.lines().find(|line| line.trim_start().starts_with("SERVER ")).expect(&text);
    let row = table.lines().find(|line| line.starts_with(&format!("  {server} "))).expect(&text);
    // A state has its age behind it, and a number of 5xx its share: `up 3s`, `10 (50%)`.
    let mut words: Vec<String> = Vec::new();
    for word in row.split_whitespace() {
        let continues =
            word.starts_with('(') || words.last().is_some_and(|last| STATES.contains(&last.as_str()));
        match words.last_mut().filter(|_| continues) {
            Some(last) => *last += &format!(" {word}"),
            None => words.push(word.to_owned()),
        }
    }
    heading.split_whitespace().map(str::to_owned).zip(words).collect()
}

fn cell(evener: &Evener, server: &str, heading: &str) -> String {
    let row = row(evener, server);
    let found = row.iter().find(|(name, _)| name == heading);
    found.unwrap_or_else(|| panic!("expected a column {heading} in {row:?}")).1.clone()
}

/// Returns a time of the status in seconds.
fn seconds(text: &str) -> f64 {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (unit, scale) = units.iter().find(|(unit, _)| text.ends_with(unit)).expect(text);
    text.strip_suffix(unit).unwrap().parse::<f64>().expect(text) * scale
}

/// A pool of named HTTP servers behind the service `s`.
fn web(servers: &[(&str, u16)], more: &str) -> Evener {
    let servers: String = servers
        .iter()
        .map(|(name, port)| format!("{{ \"127.0.0.1:{port}\", name = \"{name}\" }}, "))
        .collect();
    Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {servers} {more} }}"
    ))
}

#[test]
fn a_slow_server_stands_out() {
    // Above a bound of the histogram, so that the estimate is above the delay.
    const DELAY: Duration = Duration::from_micros(262_200);
    let slow = Origin::start(|wire, _| {
        std::thread::sleep(DELAY);
        wire.reply("200 OK", "", b"slow")
    });
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let evener = web(&[("a", a.port), ("slow", slow.port), ("b", b.port)], "");
    let listen = evener.port("s");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..9).for_each(|_| assert_eq!(get(listen, "/").status(), 200)));
        }
    });
    let times =
        |server| [cell(&evener, server, "P50"), cell(&evener, server, "P95")].map(|cell| seconds(&cell));
    let delay = DELAY.as_secs_f64();
    let [p50, p95] = times("slow");
    // The cell is rounded to 1 ms.
    assert!(p50 + 0.001 > delay && p95 >= p50, "expected more than {delay}, got {p50} and {p95}");
    for fast in ["a", "b"] {
        let [fast_p50, _] = times(fast);
        assert!(fast_p50 < p50, "{fast}: expected less than {p50}, got {fast_p50}");
    }
    let recent = &evener.server("slow")["recent"]["response_seconds"];
    let of = |name: &str| recent[name].as_f64().unwrap();
    assert!(of("mean") > delay && of("p50") + 0.0002 > delay && of("p99") >= of("p50"), "{recent}");
    let details = output_of(&evener, &["status", "s/slow"]);
    assert!(details.contains("responses: mean ") && details.contains("requests "), "{details}");
}

#[test]
fn the_share_of_5xx_is_shown_although_the_check_passes() {
    let bad = Origin::start(|wire, request| match request.target() {
        "/health" => wire.reply("200 OK", "", b"ok"),
        _ => wire.reply("500 Internal Server Error", "", b"bad"),
    });
    let good = Origin::named("good");
    let check = "check = check.http { path = \"/health\", every = \"50ms\" }";
    let evener = web(&[("bad", bad.port), ("good", good.port)], check);
    wait_until("both servers to be up", || {
        ["bad", "good"].iter().all(|server| evener.server(server)["verdict"] == "up").then_some(())
    });
    let listen = evener.port("s");
    let statuses: Vec<u16> = (0..20).map(|_| get(listen, "/").status()).collect();
    let failed = statuses.iter().filter(|status| **status == 500).count();
    assert_eq!(failed, 10, "{statuses:?}");
    assert_eq!(cell(&evener, "bad", "5XX"), "10 (100%)");
    assert_eq!(cell(&evener, "good", "5XX"), "0");
    assert!(cell(&evener, "bad", "STATE").starts_with("up "));
    assert_eq!(evener.service_counter("s", "responses_5xx"), 10);
}

#[test]
fn a_server_that_refuses_connections_shows_errors_and_the_reason() {
    let a = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, \
         {{ \"127.0.0.1:{}\", name = \"closed\" }} }}",
        a.port,
        reserved_port()
    ));
    let listen = evener.port("s");
    for _ in 0..4 {
        assert!(line(&mut connect(listen)).starts_with("a "));
    }
    wait_until("the server to be down", || (evener.server("closed")["verdict"] == "down").then_some(()));
    assert_ne!(cell(&evener, "closed", "ERRORS"), "0");
    assert_eq!(cell(&evener, "a", "ERRORS"), "0");
    let text = unwrapped_status(&evener);
    assert!(text.contains("down: refused in the last ") && text.contains(" refused "), "{text}");
    assert!(text.contains("pool s: 1 of 2 servers usable (round_robin)"), "{text}");
    let recent = &evener.server("closed")["recent"]["counters"]["connect_failures"]["refused"];
    assert!(recent.as_u64().unwrap() > 0, "{recent}");
}

#[test]
fn no_line_of_the_status_is_wider_than_80_columns() {
    let long = format!("a-server-with-a-name-{}", "x".repeat(100));
    let (first, second) = (reserved_port(), reserved_port());
    let service = |protocol: &str| {
        format!(
            "service \"{protocol}\" {{ listen = {{ \"127.0.0.1:0\", \"[::1]:0\" }}, protocol = \"{protocol}\",\n\
             check = {},\n\
             {{ \"127.0.0.1:{first}\", name = \"{long}\", max = 1000, hard = 2000, weight = 3, tier = 2 }},\n\
             \"127.0.0.1:{second}\", {{ \"127.0.0.1:{second}\", name = \"db-replica-1\" }} }}\n",
            if protocol == "udp" {
                "check.udp { every = \"50ms\", send = \"x\" }"
            } else {
                "check.tcp { every = \"50ms\" }"
            }
        )
    };
    let config: String = ["http", "dns", "tcp", "udp"].map(service).concat();
    let evener = Evener::run(&config);
    let port_of = |service: &str| -> u16 {
        let status = evener.status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service).unwrap();
        let address: std::net::SocketAddr = found["listen"][0].as_str().unwrap().parse().unwrap();
        address.port()
    };
    // Traffic without a usable server.
    drop(line(&mut connect(port_of("tcp"))));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", ("127.0.0.1", port_of("udp"))).unwrap();
    assert_eq!(get(port_of("http"), "/").status(), 503);
    wait_until("a dropped datagram", || {
        output_of(&evener, &["status"]).contains("no server is usable").then_some(())
    });
    for name in [&[][..], &["http"], &["dns"], &["tcp"], &["udp"], &["db-replica-1"]] {
        let text = output_of(&evener, &[&["status"], name].concat());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{}: {line}\n{text}", line.chars().count());
        }
        assert!(!text.contains('\x1b'), "expected no colours without a terminal");
    }
}

#[test]
fn a_part_of_the_status_is_selected_by_its_name() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&format!(
        "pool \"web\" {{ {{ \"127.0.0.1:{}\", name = \"a\", max = 7 }}, check = check.tcp {{ every = \"50ms\" }} }}\n\
         pool \"other\" {{ {{ \"127.0.0.1:{}\", name = \"b\" }} }}\n\
         service \"www\" {{ listen = \"127.0.0.1:0\", pool = \"web\" }}\n\
         service \"api\" {{ listen = \"127.0.0.1:0\", pool = \"other\" }}",
        a.port, b.port
    ));
    assert!(line(&mut connect(evener.port("www"))).starts_with("a "));
    wait_until("a check", || evener.server("a")["last_check"]["passed"].as_bool());
    let text = |name: &str| output_of(&evener, &["status", name]);
    let www = text("www");
    for expected in [
        "SERVICE",
        "connections 1 (+1): TCP connections accepted.",
        "pool web: 1 of 1",
        "check: tcp, every 0.05 s",
    ] {
        assert!(www.contains(expected), "{expected}: {www}");
    }
    assert!(!www.contains("other") && !www.contains("api"), "{www}");
    let web = text("web");
    assert!(
        web.contains("queue 0 of 1024") && web.contains("retries: 0 of at most ") && !web.contains("SERVICE"),
        "{web}"
    );
    assert_eq!(web.matches("CONNS").count(), 1, "{web}");
    output_of(&evener, &["drain", "a"]);
    let drained = text("web");
    assert!(
        drained.contains("0 of 1 servers usable") && drained.contains("draining: no new clients"),
        "{drained}"
    );
    let server = text("web/a");
    for expected in [
        "pool web\n",
        "last check passed ",
        "max 7, hard none",
        "connections 1 (+1): Connections established",
    ] {
        assert!(server.contains(expected), "{expected}: {server}");
    }
    assert_eq!(text("a").lines().next(), Some("pool web"));
    let json: Value = serde_json::from_str(&output_of(&evener, &["status", "b", "--json"])).unwrap();
    let names = |key: &str| -> Vec<&str> {
        json[key].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
    };
    assert_eq!((names("pools"), names("services")), (vec!["other"], vec!["api"]));
    assert_eq!(
        error_of(&evener, &["status", "wbe"]),
        "evener: there is no service, pool or server `wbe`; did you mean `web`?\n"
    );
    assert_eq!(
        error_of(&evener, &["status", "nothing-like-it"]),
        "evener: there is no service, pool or server `nothing-like-it`; `evener status` lists them\n"
    );
}

#[test]
fn the_queue_is_in_the_status_and_in_the_explanation() {
    let server = Server::named("a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\", max = 1 }}, \
         queue = {{ size = 2, timeout = \"1m\" }} }}",
        server.port
    ));
    let listen = evener.port("s");
    let mut first = connect(listen);
    assert!(line(&mut first).starts_with("a "));
    let explain = || -> Value {
        serde_json::from_str(&output_of(&evener, &["explain", "s", "192.0.2.1", "--json"])).unwrap()
    };
    let explained = explain();
    assert_eq!((&explained["result"], &explained["note_codes"][0]), (&"queued".into(), &"queued".into()));
    assert_eq!(explained["servers"][0]["code"], "full");
    let _second = connect(listen);
    wait_until("a client in the queue", || unwrapped_status(&evener).contains("queue 1 of 2").then_some(()));
    assert_eq!(evener.status()["pools"][0]["queue"]["waiting"], 1);
    let text = output_of(&evener, &["explain", "s", "192.0.2.1"]).replace("\n  ", " ");
    assert!(
        text.contains("the client waits in the queue of the pool (1 of 2 clients wait, each for at most 1m)"),
        "{text}"
    );
    let _third = connect(listen);
    wait_until("a full queue", || (explain()["result"] == "full").then_some(()));
    assert_eq!(explain()["note_codes"], serde_json::json!(["queue_full"]));
}
