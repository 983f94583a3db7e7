//! Who may come in, as the operator says at run time: `evener deny`, `permit`, `forget` and `access`, and the API.

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

fn printed(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A command that has to succeed; what it says.
pub(crate) fn done(evener: &Evener, arguments: &[&str]) -> String {
    let (status, out, err) = printed(&evener.run_command(arguments));
    assert_eq!(status, 0, "{arguments:?}: {err}");
    out
}

/// A command that has to fail; what it says.
pub(crate) fn fails(evener: &Evener, arguments: &[&str]) -> String {
    let (status, out, err) = printed(&evener.run_command(arguments));
    assert_eq!((status, out.as_str()), (1, ""), "{arguments:?}");
    err
}

/// Whether a client from this address is served.
fn is_in(from: &str, listen: u16) -> bool {
    line(&mut connect_from(from, listen)).starts_with("a ")
}

/// A request to the admin API: the status and the body.
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
fn a_denied_client_is_refused_at_once_and_let_in_when_it_is_forgotten() {
    let (a, web) = (Server::named("a"), mirror("w"));
    let config = tcp("s", 0, a.port, "") + &tcp("h", 0, web.port, "protocol = \"http\", denied = \"reject\"");
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let http = evener.port("h");
    let mut held = connect_from("127.0.0.7", listen);
    assert_eq!(line(&mut held), "a 127.0.0.1");
    assert!(fetch(&mut connect_from("127.0.0.7", http)).starts_with("w\n"));
    assert_eq!(done(&evener, &["deny", "s", "127.0.0.7"]), "s: deny 127.0.0.7/32\n");
    assert_eq!(done(&evener, &["deny", "h", "127.0.0.0/29"]), "h: deny 127.0.0.0/29\n");
    assert!(!is_in("127.0.0.7", listen));
    assert!(is_in("127.0.0.8", listen), "others are");
    let mut refused = connect_from("127.0.0.7", http);
    refused.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert!(line(&mut refused).starts_with("HTTP/1.1 403"));
    assert!(fetch(&mut connect_from("127.0.0.8", http)).starts_with("w\n"));
    assert_eq!((evener.service_counter("s", "denied"), evener.service_counter("h", "denied")), (1, 1));
    held.write_all(b"still\n").unwrap();
    assert_eq!(line(&mut held), "still", "a connection that is there stays");
    evener.expect_log("access_changed service=s change=\"deny 127.0.0.7/32\"");
    assert_eq!(done(&evener, &["forget", "s", "127.0.0.7"]), "s: forget 127.0.0.7/32\n");
    done(&evener, &["forget", "h", "127.0.0.1/29"]);
    assert!(is_in("127.0.0.7", listen));
    assert!(fetch(&mut connect_from("127.0.0.7", http)).starts_with("w\n"));
}

#[test]
fn a_running_flow_of_a_denied_client_ends() {
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
    done(&evener, &["deny", "u", "127.0.0.7"]);
    wait_until("the flow to end", || (evener.status()["services"][0]["flows_active"] == 1).then_some(()));
    // Neither does the server reach it, nor it the server.
    let _ = server.send_to(b"late", flows[0]);
    clients[0].send_to(b"two", local(listen)).unwrap();
    wait_until("the datagram to be dropped", || {
        (evener.service_counter("u", "drop_denied") == 1).then_some(())
    });
    clients[1].send_to(b"other", local(listen)).unwrap();
    let (length, flow) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], flow), (&b"other"[..], flows[1]), "another one's flow stays");
    clients[0].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(clients[0].recv(&mut buffer).is_err());
    done(&evener, &["forget", "u", "127.0.0.7"]);
    clients[0].send_to(b"again", local(listen)).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 5);
}

#[test]
fn the_next_request_of_a_denied_client_is_refused_on_a_connection_that_is_kept() {
    let web = mirror("w");
    let evener = Evener::run(&tcp("h", 0, web.port, "protocol = \"http\", denied = \"reject\""));
    let listen = evener.port("h");
    let mut retained = connect_from("127.0.0.7", listen);
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    retained.write_all(request).unwrap();
    assert!(line(&mut retained).starts_with("HTTP/1.1 200"));
    while !line(&mut retained).starts_with("w") {}
    while line(&mut retained) != "\r" {}
    done(&evener, &["deny", "h", "127.0.0.7"]);
    retained.write_all(request).unwrap();
    let status = line(&mut retained);
    assert!(status.starts_with("HTTP/1.1 403") || status.is_empty(), "requests ask, too: {status}");
}

#[test]
fn what_is_said_at_run_time_is_asked_before_the_file_and_the_longest_prefix_first() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, "deny = { \"127.0.0.0/8\", \"127.0.0.9\" }"));
    let listen = evener.port("s");
    assert!(!is_in("127.0.0.7", listen));
    // A shorter one than that of the file counts, too.
    done(&evener, &["permit", "s", "127.0.0.0/16"]);
    assert!(is_in("127.0.0.7", listen) && is_in("127.0.0.9", listen));
    assert!(!is_in("127.1.0.7", listen), "the file speaks of the others");
    done(&evener, &["deny", "s", "127.0.0.0/24"]);
    done(&evener, &["permit", "s", "127.0.0.8/30"]);
    done(&evener, &["deny", "s", "127.0.0.9"]);
    let all = |addresses: &[&str]| addresses.iter().map(|from| is_in(from, listen)).collect::<Vec<_>>();
    let seen = all(&["127.0.0.7", "127.0.0.8", "127.0.0.9", "127.0.0.10", "127.0.1.1", "127.1.0.1"]);
    assert_eq!(seen, [false, true, false, true, true, false]);
    // What is said of the same prefix again replaces what was said.
    done(&evener, &["permit", "s", "127.0.0.9/32"]);
    assert!(is_in("127.0.0.9", listen));
    assert_eq!(api(&evener, "GET", "/v1/access", None).1.as_array().unwrap().len(), 4);
    let explained = done(&evener, &["explain", "s", "127.0.0.7"]);
    assert!(explained.contains("refuses this client"), "{explained}");
    assert!(!done(&evener, &["explain", "s", "127.0.0.9"]).contains("refuses this client"));
    for prefix in ["127.0.0.0/16", "127.0.0.0/24", "127.0.0.8/30", "127.0.0.9"] {
        done(&evener, &["forget", "s", prefix]);
    }
    assert!(!is_in("127.0.0.9", listen) && !is_in("127.0.0.8", listen), "the file alone counts again");
}

#[test]
fn what_is_said_for_a_time_is_over_by_itself() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    let began = Instant::now();
    assert_eq!(done(&evener, &["deny", "s", "127.0.0.7", "--for", "1s"]), "s: deny 127.0.0.7/32 for 1s\n");
    assert_eq!(done(&evener, &["deny", "s", "127.0.0.8", "--for", "1h"]), "s: deny 127.0.0.8/32 for 1h\n");
    assert!(!is_in("127.0.0.7", listen) || began.elapsed() > Duration::from_secs(1));
    wait_until("the rule to be over", || is_in("127.0.0.7", listen).then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    evener.expect_log("127.0.0.7/32 expired");
    let rules = api(&evener, "GET", "/v1/access", None).1;
    assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    let left = rules[0]["left_s"].as_u64().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");
    let text = done(&evener, &["access"]);
    assert!(text.contains("SERVICE") && text.contains("127.0.0.8/32") && text.contains("59m"), "{text}");
    // Said again without a time it stays; a time beyond all clocks is as good as none.
    done(&evener, &["deny", "s", "127.0.0.8"]);
    assert!(done(&evener, &["access"]).contains("until forgotten"));
    done(&evener, &["deny", "s", "127.0.0.9", "--for", "500000000000y"]);
    assert!(!evener.run_command(&["deny", "s", "127.0.0.10", "--for", "0s"]).status.success());
    assert!(is_in("127.0.0.10", listen));
    assert!(!is_in("127.0.0.9", listen));
}

#[test]
fn rules_survive_a_reload_and_go_with_their_service() {
    let a = Server::named("a");
    let both = |more: &str| tcp("s", 0, a.port, more) + &tcp("t", 0, a.port, "");
    let evener = Evener::run(&both(""));
    let listen = evener.port("s");
    let other = evener.port("t");
    done(&evener, &["deny", "s", "127.0.0.7"]);
    done(&evener, &["deny", "t", "127.0.0.8"]);
    evener.reload(&both("deny = \"127.0.0.9\", connect_timeout = \"1s\""));
    assert!(!is_in("127.0.0.7", listen) && is_in("127.0.0.7", other), "each service has its own");
    assert!(!is_in("127.0.0.9", listen) && !is_in("127.0.0.8", other));
    // The file permits it now: what was said counts nevertheless.
    evener.reload(&both("allow = { \"127.0.0.7\", \"127.0.0.1\" }"));
    assert!(!is_in("127.0.0.7", listen) && is_in("127.0.0.1", listen));
    // Another protocol is still the service.
    evener.reload(&both("protocol = \"http\"").replace("deny", "permit"));
    assert_eq!(fetch(&mut connect_from("127.0.0.7", listen)), "");
    // A wrong file changes nothing.
    evener.write_config("service \"s\" {");
    assert_eq!(evener.run_command(&["reload"]).status.code(), Some(1));
    assert_eq!(api(&evener, "GET", "/v1/access", None).1.as_array().unwrap().len(), 2);
    evener.reload(&tcp("t", 0, a.port, ""));
    let rules = api(&evener, "GET", "/v1/access", None).1;
    assert_eq!(rules, json!([{ "service": "t", "prefix": "127.0.0.8/32", "action": "deny" }]));
    evener.reload(&both(""));
    assert!(is_in("127.0.0.7", evener.port("s")), "a service of the same name that comes later begins anew");
}

#[test]
fn rules_of_both_families_match_only_their_own() {
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
    done(&evener, &["deny", "s", "::/0"]);
    assert!(!six() && is_in("127.0.0.1", listen));
    done(&evener, &["permit", "s", "::1"]);
    done(&evener, &["deny", "s", "0.0.0.0/0"]);
    assert!(six() && !is_in("127.0.0.1", listen));
    let rules = done(&evener, &["access"]);
    assert!(rules.contains("::/0") && rules.contains("::1/128") && rules.contains("0.0.0.0/0"), "{rules}");
}

#[test]
fn what_cannot_be_says_what_to_do() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    for command in ["deny", "permit", "forget"] {
        assert_eq!(
            fails(&evener, &[command, "nobody", "127.0.0.7"]),
            "evener: there is no service `nobody`; `evener status` lists them\n"
        );
        assert_eq!(
            fails(&evener, &[command, "s", "127.0.0"]),
            "evener: `127.0.0` is not a prefix: write 10.0.0.0/8 or 2001:db8::/32\n"
        );
        let text = fails(&evener, &[command, "s", "127.0.0.1/33"]);
        assert!(text.contains("`127.0.0.1/33` has no valid length"), "{text}");
    }
    let text = fails(&evener, &["forget", "s", "127.0.0.7"]);
    assert_eq!(text, "evener: there is no rule for 127.0.0.7/32; `evener access` lists the rules\n");
    let wrong = evener.run_command(&["deny", "s", "127.0.0.7", "--for", "soon"]);
    assert_eq!(wrong.status.code(), Some(2), "wrong usage");
    assert_eq!(evener.run_command(&["deny", "s"]).status.code(), Some(2));
    let unused = std::process::Command::new(crate::harness::BINARY)
        .args(["deny", "s", "127.0.0.7", "--socket", "/no/such.sock"])
        .output()
        .unwrap();
    let (status, _, text) = printed(&unused);
    assert!(status == 1 && text.contains("no instance listens at /no/such.sock"), "{text}");
    assert_eq!(done(&evener, &["access"]).lines().count(), 1, "nothing was changed");
    assert_eq!(who(listen), "a");
}

#[test]
fn json_and_the_api_say_the_same() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let parsed = |arguments: &[&str]| serde_json::from_str::<Value>(&done(&evener, arguments)).unwrap();
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
    let wrong = [
        (r#"{"service": "t", "prefix": "192.0.2.0/24", "action": "deny"}"#, 404, "no service `t`"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "forget"}"#, 404, "there is no rule for"),
        (r#"{"service": "s", "prefix": "x", "action": "deny"}"#, 422, "not a prefix"),
        (r#"{"service": "s", "prefix": "10.0.0.0/40", "action": "deny"}"#, 422, "no valid length"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "ban"}"#, 422, "permit, deny or forget"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8", "action": "deny", "for": "x"}"#, 422, "`for`"),
        (r#"{"service": "s", "prefix": "10.0.0.0/8"}"#, 422, "action"),
        (r#"{"service": "s""#, 422, ""),
        ("[]", 422, ""),
    ];
    for (body, status, text) in wrong {
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
fn rules_come_and_go_under_load_without_a_stranger_being_refused() {
    let a = Server::named("a");
    let evener = Evener::run(&tcp("s", 0, a.port, ""));
    let listen = evener.port("s");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                seen.push(line(&mut connect(listen)));
            }
            seen
        });
        for turn in 0..50 {
            let body = |action: &str| {
                format!(r#"{{"service": "s", "prefix": "127.0.1.{turn}", "action": "{action}"}}"#)
            };
            assert_eq!(api(&evener, "POST", "/v1/access", Some(&body("deny"))).0, 200);
            assert!(!is_in(&format!("127.0.1.{turn}"), listen), "it counts when the answer is there");
            assert_eq!(api(&evener, "POST", "/v1/access", Some(&body("forget"))).0, 200);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let seen = asking.join().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|line| line == "a 127.0.0.1"), "{seen:?}");
    });
    assert_eq!(api(&evener, "GET", "/v1/access", None).1, json!([]));
}
