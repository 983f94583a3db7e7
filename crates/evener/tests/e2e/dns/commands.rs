//! Commands of a DNS service: `evener dns` and its checks, the status of the cache, and `expunge`.

use crate::harness::{BINARY, Evener, wait_until};
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const NOERROR: u8 = 0;
const SERVFAIL: u8 = 2;

/// A server that responds to each query with one address and a TTL of ten minutes.
struct Nameserver {
    port: u16,
    rcode: Arc<AtomicU8>,
    queries: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Nameserver {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (rcode, queries, stopped) = <(Arc<AtomicU8>, Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let (code, count, end) = (Arc::clone(&rcode), Arc::clone(&queries), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let response = response(&query[..length], code.load(Ordering::Relaxed));
                let _ = socket.send_to(&response, client);
            }
        });
        Self { port, rcode, queries, stopped, thread: Some(thread) }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Returns the end of the question section. Names in queries are not compressed.
fn question_section_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

fn response(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut response = query[..question_section_end(query)].to_vec();
    response[2..12].copy_from_slice(&[0x85, 0x80 | rcode, 0, 1, 0, u8::from(rcode == NOERROR), 0, 0, 0, 0]);
    if rcode == NOERROR {
        // The queried name, A, IN, 600 s, 192.0.2.1.
        response.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 88, 0, 4, 192, 0, 2, 1]);
    }
    response
}

/// A query for the address of a name, without EDNS.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

/// Queries a name and returns the response code.
fn ask(port: u16, name: &str) -> u8 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    let query = query(0x1234, name);
    socket.send(&query).unwrap();
    let mut response = [0; 4096];
    let length = socket.recv(&mut response).expect("a response");
    let end = question_section_end(&query);
    assert_eq!(&response[..2], &query[..2], "the ID");
    assert_eq!(&response[12..end], &query[12..], "the question section of {length} bytes");
    response[3] & 15
}

fn run(evener: &Evener, arguments: &[&str]) -> (i32, String) {
    let output = evener.run_command(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_one_liner_listens_on_one_address_and_its_cache_can_be_emptied() {
    let server = Nameserver::start();
    let evener = Evener::one_liner(&["dns", "127.0.0.1:0", &server.address(), "--cache"]);
    let listen = evener.port("dns");
    let at = format!("127.0.0.1:{listen}");
    let status = evener.status();
    let service = &status["services"][0];
    assert_eq!((&service["name"], &service["protocol"]), (&"dns".into(), &"dns".into()));
    assert_eq!(service["listen"], serde_json::json!([at]), "expected one address for UDP and TCP");
    assert_eq!(service["cache"], serde_json::json!({ "entries": 0, "bytes": 0, "hits": 0, "misses": 0 }));
    assert_eq!(run(&evener, &["expunge", "dns", "--all"]), (0, "dns: 0 responses expunged\n".into()));
    let (code, text) = run(&evener, &["status"]);
    assert!(
        code == 0 && text.contains("\n    cache: 0 responses, 0 B; 0.0 % of 0 queries were hits\n"),
        "{text}"
    );
    let cases = [
        (&["expunge", "dns", "a..b"][..], 1, "a..b"),
        (&["expunge", "dsn", "a.example"], 1, "there is no service `dsn`"),
        (&["expunge", "dns"], 2, "--all"),
        (&["expunge", "dns", "a.example", "--all"], 2, "--all"),
        (&["expunge", "dns", "--all", "--below"], 2, "--below"),
    ];
    for (arguments, expected, why) in cases {
        let (code, text) = run(&evener, arguments);
        assert!(code == expected && text.contains(why), "{arguments:?}: {code} {text}");
    }
}

#[test]
fn expunge_fails_without_a_cache() {
    let server = Nameserver::start();
    let evener = Evener::one_liner(&["dns", "127.0.0.1:0", &server.address()]);
    assert_eq!(evener.status()["services"][0].get("cache"), None);
    let (code, text) = run(&evener, &["expunge", "dns", "a.example"]);
    assert!(code == 1 && text.contains("service `dns` has no cache"), "{text}");
}

#[test]
fn wrong_arguments_of_the_one_liner_are_reported() {
    let listen = "127.0.0.1:0";
    let cases = [
        (&["dns", listen, "127.0.0.1:1", "--check", "a..b"][..], 1, "a..b"),
        (&["dns", listen, "/run/x"], 1, "server `/run/x` is a unix socket: dns needs IP servers"),
        (&["dns", "/run/x", "127.0.0.1:1"], 1, "`/run/x` is a unix socket: dns must listen on IP addresses"),
        (&["dns", listen], 2, "the servers are missing: evener dns 127.0.0.1:5353 10.0.0.1:53"),
    ];
    for (arguments, expected, why) in cases {
        let output = Command::new("timeout").arg("20").arg(BINARY).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(expected) && text.contains(why), "{arguments:?}: {text}");
    }
}

#[test]
fn the_check_of_a_one_liner_queries_its_name() {
    let (healthy, failing) = (Nameserver::start(), Nameserver::start());
    failing.rcode.store(SERVFAIL, Ordering::Relaxed);
    let evener = Evener::one_liner(&[
        "dns",
        "127.0.0.1:0",
        &healthy.address(),
        &failing.address(),
        "--check",
        "www.example.org",
    ]);
    wait_until("the check", || (evener.server(&failing.address())["verdict"] == "down").then_some(()));
    assert_eq!(evener.server(&failing.address())["reason"], "dns: SERVFAIL");
    assert_eq!(evener.server(&healthy.address())["verdict"], "up");
    failing.rcode.store(NOERROR, Ordering::Relaxed);
    wait_until("the server to be up", || {
        (evener.server(&failing.address())["verdict"] == "up").then_some(())
    });
}

#[test]
fn cached_responses_are_counted_survive_reloads_and_are_expunged_by_name() {
    let server = Nameserver::start();
    let config = |more: &str| {
        format!(
            "service \"d\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", \"{}\", dns = {{ cache = true }}{more} }}",
            server.address()
        )
    };
    let evener = Evener::run(&config(""));
    let listen = evener.port("d");
    for name in ["a.example", "b.a.example", "aa.example", "other"] {
        assert_eq!(ask(listen, name), NOERROR, "{name}");
        assert_eq!(ask(listen, &name.to_ascii_uppercase()), NOERROR, "{name}");
    }
    assert_eq!(server.queries.load(Ordering::Relaxed), 4, "expected one query for each name");
    let cache = |name: &str| evener.status()["services"][0]["cache"][name].as_u64().unwrap();
    assert_eq!((cache("entries"), cache("hits"), cache("misses")), (4, 4, 4));
    assert!(cache("bytes") > 100, "{}", cache("bytes"));
    let (_, text) = run(&evener, &["status"]);
    assert!(
        text.contains("\n    cache: 4 responses, ") && text.contains("50.0 % of 8 queries were hits"),
        "{text}"
    );
    evener.reload(&config(", clients = 100"));
    assert_eq!(cache("entries"), 4, "expected the cache to survive the reload");
    assert_eq!(run(&evener, &["expunge", "d", "EXAMPLE"]), (0, "d: 0 responses expunged\n".into()));
    assert_eq!(run(&evener, &["expunge", "d", "other."]), (0, "d: 1 response expunged\n".into()));
    assert_eq!(
        run(&evener, &["expunge", "d", "A.example", "--below"]),
        (0, "d: 2 responses expunged\n".into())
    );
    assert_eq!(ask(listen, "aa.example"), NOERROR);
    assert_eq!(
        server.queries.load(Ordering::Relaxed),
        4,
        "expected a name that is not below a.example to stay in the cache"
    );
    assert_eq!(ask(listen, "b.a.example"), NOERROR);
    assert_eq!(server.queries.load(Ordering::Relaxed), 5, "expected the name to be expunged");
    let (_, text) = run(&evener, &["expunge", "d", "--all", "--json"]);
    let expunged: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(expunged, serde_json::json!({ "service": "d", "expunged": 2 }));
    assert_eq!(cache("entries"), 0);
}
