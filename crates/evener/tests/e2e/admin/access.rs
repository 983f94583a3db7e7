//! Access rules that the operator changes at run time: `evener deny`, `permit`, `forget` and `access`, and the API.

use crate::harness::certificates::mirror;
use crate::harness::{DEADLINE, Evener, Server, connect, line, local, reserved_port, wait_until, who};
use crate::tcp::proxy_protocol::{connect_from, fetch};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::{Duration, Instant};

fn tcp(name: &str, listen: u16, server: u16, more: &str) -> String {
    format!("service \"{name}\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", {more} }}\n")
}

/// The exit status, stdout and stderr of a command.
fn printed(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that must succeed, and returns its output.
pub(crate) fn output_of(evener: &Evener, arguments: &[&str]) -> String {
    let (status, out, err) = printed(&evener.run_command(arguments));
    assert_eq!(status, 0, "{arguments:?}: {err}");
    out
}

/// Runs a command that must fail, and returns its error.
pub(crate) fn error_of(evener: &Evener, arguments: &[&str]) -> String {
    let (status, out, err) = printed(&evener.run_command(arguments));
    assert_eq!((status, out.as_str()), (1, ""), "{arguments:?}");
    err
}

/// Returns true if a client with this address is served.
fn is_served(from: &str, listen: u16) -> bool {
    line(&mut connect_from(from, listen)).starts_with("a ")
}

/// Sends a request to the admin API, and returns the status and the body of the response.
pub(crate) fn api(evener: &Evener, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
    let mut stream = UnixStream::connect(evener.admin_socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = body.unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (header, body) = response.split_once("\r\n\r\n").unwrap();
    (header.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn a_denied_client_is_refused_until_its_rule_is_forgotten() {
    let (a, web) = (Server::named("a"), mirror("w"));
    let config = tcp("s", 0, a.port, "") + &tcp("h", 0, web.port, "protocol = \"http\", denied = \"reject\"");
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let http = evener.port("h");
    let mut open = connect_from("127.0.0.7", listen);
    assert_eq!(line(&mut open), "a 127.0.0.1");
    assert!(fetch(&mut connect_from("127.0.0.7", http)).starts_with("w\n"));
    assert_eq!(output_of(&evener, &["deny", "s", "127.0.0.7"]), "s: deny 127.0.0.7/32\n");
    assert_eq!(output_of(&evener, &["deny", "h", "127.0.0.0/29"]), "h: deny 127.0.0.0/29\n");
    assert!(!is_served("127.0.0.7", listen));
    assert!(is_served("127.0.0.8", listen), "other clients must be served");
    let mut refused = connect_from("127.0.0.7", http);
    refused.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert!(line(&mut refused).starts_with("HTTP/1.1 403"));
    assert!(fetch(&mut connect_from("127.0.0.8", http)).starts_with("w\n"));
    assert_eq!((evener.service_counter("s", "denied"), evener.service_counter("h", "denied")), (1, 1));
    open.write_all(b"still\n").unwrap();
    assert_eq!(line(&mut open), "still", "an open connection must stay open");
    evener.expect_log("access_changed service=s change=\"deny 127.0.0.7/32\"");
    assert_eq!(output_of(&evener, &["forget", "s", "127.0.0.7"]), "s: forget 127.0.0.7/32\n");
    assert_eq!(
        output_of(&evener, &["forget", "h", "127.0.0.1/29"]),
        "h: forget 127.0.0.0/29 (127.0.0.1/29 means the whole network 127.0.0.0/29, not only 127.0.0.1)\n"
    );
    assert!(is_served("127.0.0.7", listen));
    assert!(fetch(&mut connect_from("127.0.0.7", http)).starts_with("w\n"));
}

#[test]
fn an_active_flow_of_a_denied_client_ends() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = server.local_addr().unwrap().port();
    let evener = Evener::run(&tcp("u", 0, port, "protocol = \"udp\""));
    let listen = evener.port("u");
    let clients = ["127.0.0.7", "127.0.0.8"].map(|from| UdpSocket::bind((from, 0)).unwrap());
    let mut buffer = [0; 64];
    let mut flows = Vec::new();
    for client in &clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send_to(b"one", local(listen)).unwrap();
        let (_, flow) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"back", flow).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        flows.push(flow);
    }
    output_of(&evener, &["deny", "u", "127.0.0.7"]);
    wait_until("the flow to end", || (evener.status()["services"][0]["flows_active"] == 1).then_some(()));
    // No datagram passes between the server and the denied client.
    let _ = server.send_to(b"late", flows[0]);
    clients[0].send_to(b"two", local(listen)).unwrap();
    wait_until("the datagram to be dropped", || {
        (evener.service_counter("u", "drops.denied") == 1).then_some(())
    });
    clients[1].send_to(b"other", local(listen)).unwrap();
    let (length, flow) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], flow), (&b"other"[..], flows[1]), "the flow of another client must stay");
    clients[0].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(clients[0].recv(&mut buffer).is_err());
    output_of(&evener, &["forget", "u", "127.0.0.7"]);
    clients[0].send_to(b"again", local(listen)).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 5);
}

#[test]
fn the_next_request_of_a_denied_client_is_refused_on_an_open_connection() {
    let web = mirror("w");
    let evener = Evener::run(&tcp("h", 0, web.port, "protocol = \"http\", denied = \"reject\""));
    let listen = evener.port("h");
    let mut client = connect_from("127.0.0.7", listen);
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    client.write_all(request).unwrap();
    assert!(line(&mut client).starts_with("HTTP/1.1 200"));
    while !line(&mut client).starts_with("w") {}
    while line(&mut client) != "\r" {}
    output_of(&evener, &["deny", "h", "127.0.0.7"]);
    client.write_all(request).unwrap();
    let status = line(&mut client);
    assert!(
        status.starts_with("HTTP/1.1 403") || status.is_empty(),
        "each request must be checked: {status}"
    );
}

#[test]
fn rules_set_at_run_time_precede_the_file_and_the_longest_prefix_wins() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, "deny = { \"127.0.0.0/8\", \"127.0.0.9\" }"));
    let listen = evener.port("s");
    assert!(!is_served("127.0.0.7", listen));
    // A rule applies even if its prefix is shorter than the prefix in the file.
    output_of(&evener, &["permit", "s", "127.0.0.0/16"]);
    assert!(is_served("127.0.0.7", listen) && is_served("127.0.0.9", listen));
    assert!(!is_served("127.1.0.7", listen), "the file must apply to other clients");
    output_of(&evener, &["deny", "s", "127.0.0.0/24"]);
    output_of(&evener, &["permit", "s", "127.0.0.8/30"]);
    output_of(&evener, &["deny", "s", "127.0.0.9"]);
    let all = |addresses: &[&str]| addresses.iter().map(|from| is_served(from, listen)).collect::<Vec<_>>();
    let served = all(&["127.0.0.7", "127.0.0.8", "127.0.0.9", "127.0.0.10", "127.0.1.1", "127.1.0.1"]);
    assert_eq!(served, [false, true, false, true, true, false]);
    // A new rule for the same prefix replaces the old one.
    output_of(&evener, &["permit", "s", "127.0.0.9/32"]);
    assert!(is_served("127.0.0.9", listen));
    assert_eq!(api(&evener, "GET", "/v1/access", None).1.as_array().unwrap().len(), 4);
    let explained = output_of(&evener, &["explain", "s", "127.0.0.7"]);
    assert!(explained.contains("refuses this client"), "{explained}");
    assert!(!output_of(&evener, &["explain", "s", "127.0.0.9"]).contains("refuses this client"));
    for prefix in ["127.0.0.0/16", "127.0.0.0/24", "127.0.0.8/30", "127.0.0.9"] {
        output_of(&evener, &["forget", "s", prefix]);
    }
    assert!(
        !is_served("127.0.0.9", listen) && !is_served("127.0.0.8", listen),
        "only the rules of the file must apply again"
    );
}

#[test]
fn a_rule_with_a_duration_expires() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    let began = Instant::now();
    assert_eq!(
        output_of(&evener, &["deny", "s", "127.0.0.7", "--for", "1s"]),
        "s: deny 127.0.0.7/32 for 1s\n"
    );
    assert_eq!(
        output_of(&evener, &["deny", "s", "127.0.0.8", "--for", "1h"]),
        "s: deny 127.0.0.8/32 for 1h\n"
    );
    assert!(!is_served("127.0.0.7", listen) || began.elapsed() > Duration::from_secs(1));
    wait_until("the rule to expire", || is_served("127.0.0.7", listen).then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    evener.expect_log("127.0.0.7/32 expired");
    let rules = api(&evener, "GET", "/v1/access", None).1;
    assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    let left = rules[0]["left_s"].as_u64().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");
    let text = output_of(&evener, &["access"]);
    assert!(text.contains("SERVICE") && text.contains("127.0.0.8/32") && text.contains("59m"), "{text}");
    // A rule without a duration, or with a duration beyond the range of the clock, does not expire.
    output_of(&evener, &["deny", "s", "127.0.0.8"]);
    assert!(output_of(&evener, &["access"]).contains("until forgotten"));
    output_of(&evener, &["deny", "s", "127.0.0.9", "--for", "500000000000y"]);
    assert!(!evener.run_command(&["deny", "s", "127.0.0.10", "--for", "0s"]).status.success());
    assert!(is_served("127.0.0.10", listen));
    assert!(!is_served("127.0.0.9", listen));
}

#[test]
fn rules_survive_a_reload_and_are_removed_with_their_service() {
    let a = Server::named("a");
    let both = |more: &str| tcp("s", 0, a.port, more) + &tcp("t", 0, a.port, "");
    let evener = Evener::run(&both(""));
    let listen = evener.port("s");
    let other = evener.port("t");
    output_of(&evener, &["deny", "s", "127.0.0.7"]);
    output_of(&evener, &["deny", "t", "127.0.0.8"]);
    evener.reload(&both("deny = \"127.0.0.9\", connect_timeout = \"1s\""));
    assert!(
        !is_served("127.0.0.7", listen) && is_served("127.0.0.7", other),
        "each service must have separate rules"
    );
    assert!(!is_served("127.0.0.9", listen) && !is_served("127.0.0.8", other));
    // The file permits the client now, but the rule set at run time takes precedence.
    evener.reload(&both("allow = { \"127.0.0.7\", \"127.0.0.1\" }"));
    assert!(!is_served("127.0.0.7", listen) && is_served("127.0.0.1", listen));
    // A service whose protocol changes keeps its rules.
    evener.reload(&both("protocol = \"http\"").replace("deny", "permit"));
    assert_eq!(fetch(&mut connect_from("127.0.0.7", listen)), "");
    // An invalid file changes nothing.
    evener.write_config("service \"s\" {");
    assert_eq!(evener.run_command(&["reload"]).status.code(), Some(1));
    assert_eq!(api(&evener, "GET", "/v1/access", None).1.as_array().unwrap().len(), 2);
    evener.reload(&tcp("t", 0, a.port, ""));
    let rules = api(&evener, "GET", "/v1/access", None).1;
    assert_eq!(rules, json!([{ "service": "t", "prefix": "127.0.0.8/32", "action": "deny" }]));
    evener.reload(&both(""));
    assert!(is_served("127.0.0.7", evener.port("s")), "a new service with the same name must have no rules");
}

#[test]
fn rules_match_only_clients_of_their_address_family() {
    let (a, listen) = (Server::named("a"), reserved_port());
    let config = format!(
        "service \"s\" {{ listen = {{ \"127.0.0.1:{listen}\", \"[::1]:{listen}\" }}, \"127.0.0.1:{}\" }}",
        a.port
    );
    let evener = Evener::run(&config);
    let six = || {
        let mut stream = std::net::TcpStream::connect(("::1", listen)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        line(&mut stream).starts_with("a ")
    };
    output_of(&evener, &["deny", "s", "::/0"]);
    assert!(!six() && is_served("127.0.0.1", listen));
    output_of(&evener, &["permit", "s", "::1"]);
    output_of(&evener, &["deny", "s", "0.0.0.0/0"]);
    assert!(six() && !is_served("127.0.0.1", listen));
    let rules = output_of(&evener, &["access"]);
    assert!(rules.contains("::/0") && rules.contains("::1/128") && rules.contains("0.0.0.0/0"), "{rules}");
}

#[test]
fn invalid_commands_are_reported_with_a_hint() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    for command in ["deny", "permit", "forget"] {
        assert_eq!(
            error_of(&evener, &[command, "missing", "127.0.0.7"]),
            "evener: there is no service `missing`; `evener status` lists the services\n"
        );
        assert_eq!(
            error_of(&evener, &[command, "s", "127.0.0"]),
            "evener: `127.0.0` is neither an address nor a prefix such as 192.0.2.0/24\n"
        );
        let text = error_of(&evener, &[command, "s", "127.0.0.1/33"]);
        assert!(text.contains("`127.0.0.1/33` is too long"), "{text}");
    }
    let text = error_of(&evener, &["forget", "s", "127.0.0.7"]);
    assert_eq!(text, "evener: there is no rule for 127.0.0.7/32; `evener access` lists the rules\n");
    let invalid = evener.run_command(&["deny", "s", "127.0.0.7", "--for", "soon"]);
    assert_eq!(invalid.status.code(), Some(2), "an invalid duration must be a usage error");
    assert_eq!(evener.run_command(&["deny", "s"]).status.code(), Some(2));
    let unused = std::process::Command::new(crate::harness::BINARY)
        .args(["deny", "s", "127.0.0.7", "--socket", "/no/such.sock"])
        .output()
        .unwrap();
    let (status, _, text) = printed(&unused);
    assert!(status == 1 && text.contains("no instance listens at /no/such.sock"), "{text}");
    assert_eq!(output_of(&evener, &["access"]).lines().count(), 1, "failed commands must change nothing");
    assert_eq!(who(listen), "a");
}

#[test]
fn json_output_and_the_api_report_the_same_rules() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let parsed = |arguments: &[&str]| serde_json::from_str::<Value>(&output_of(&evener, arguments)).unwrap();
    assert_eq!(parsed(&["access", "--json"]), json!([]));
    assert_eq!(
        parsed(&["deny", "s", "192.0.2.7/24", "--for", "10m", "--json"]),
        json!({ "service": "s", "done": "deny 192.0.2.0/24 for 10m" })
    );
    let body = r#"{"service": "s", "prefix": "2001:db8::/32", "action": "permit"}"#;
    assert_eq!(
        api(&evener, "POST", "/v1/access", Some(body)),
        (200, json!({ "service": "s", "done": "permit 2001:db8::/32" }))
    );
    let rules = parsed(&["access", "--json"]);
    let left = rules[0]["left_s"].as_u64().unwrap();
    assert!((590..=600).contains(&left), "{left}");
    let expected = json!([
        { "service": "s", "prefix": "192.0.2.0/24", "action": "deny", "left_s": left },
        { "service": "s", "prefix": "2001:db8::/32", "action": "permit" },
    ]);
    assert_eq!(rules, expected);
    assert_eq!(api(&evener, "GET", "/v1/access", None).0, 200);
    let invalid = [
        (r#"{"service": "t", "prefix": "192.0.2.0/24", "action": "deny"}"#, 404, "no service `t`"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "forget"}"#, 404, "there is no rule for"),
        (r#"{"service": "s", "prefix": "x", "action": "deny"}"#, 422, "neither an address nor a prefix"),
        (r#"{"service": "s", "prefix": "10.0.0.0/40", "action": "deny"}"#, 422, "at most 32 bits"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "ban"}"#, 422, "permit, deny or forget"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "deny", "for": "x"}"#, 422, "`for`"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8"}"#, 422, "action"),
        (r#"{"service": "s""#, 400, ""),
        ("[]", 422, ""),
    ];
    for (body, status, text) in invalid {
        let (got, response) = api(&evener, "POST", "/v1/access", Some(body));
        assert_eq!(got, status, "{body}: {response}");
        let errors = response["errors"].as_array().unwrap_or_else(|| panic!("{body}: {response}"));
        assert!(errors.len() == 1 && errors[0].as_str().unwrap().contains(text), "{body}: {response}");
    }
    assert_eq!(api(&evener, "DELETE", "/v1/access", None).0, 405);
    assert_eq!(parsed(&["forget", "s", "192.0.2.0/24", "--json"])["done"], "forget 192.0.2.0/24");
    assert_eq!(api(&evener, "GET", "/v1/access", None).1.as_array().unwrap().len(), 1);
}

#[test]
fn rules_change_under_load_without_refusing_other_clients() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut lines = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                lines.push(line(&mut connect(listen)));
            }
            lines
        });
        for turn in 0..50 {
            let body = |action: &str| {
                format!(r#"{{"service": "s", "prefix": "127.0.1.{turn}", "action": "{action}"}}"#)
            };
            assert_eq!(api(&evener, "POST", "/v1/access", Some(&body("deny"))).0, 200);
            assert!(
                !is_served(&format!("127.0.1.{turn}"), listen),
                "the rule must apply as soon as the API has responded"
            );
            assert_eq!(api(&evener, "POST", "/v1/access", Some(&body("forget"))).0, 200);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let lines = client.join().unwrap();
        assert!(!lines.is_empty() && lines.iter().all(|line| line == "a 127.0.0.1"), "{lines:?}");
    });
    assert_eq!(api(&evener, "GET", "/v1/access", None).1, json!([]));
}
