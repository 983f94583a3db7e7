//! HTTP checks parse responses by the same rules as requests of clients: a response for which clients would get
//! 502 marks the server down, a response that is repaired for clients does not, and header sections have the
//! limits of the services.

use crate::harness::origin::{Origin, Wire};
use crate::harness::{Evener, wait_until};

/// A server that sends this response to each request, and closes.
fn fixed(response: String) -> Origin {
    Origin::start(move |wire, _| {
        wire.send(&response)?;
        crate::harness::origin::hang_up()
    })
}

fn config(listen: u16, origins: &[Origin], more: &str) -> String {
    let servers: String = origins.iter().map(|origin| format!("\"127.0.0.1:{}\", ", origin.port)).collect();
    format!(
        "local p = pool \"p\" {{ {servers} check = check.http {{ every = \"50ms\", timeout = \"3s\", rise = 1, fall = 1 }} }}\n\
         service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", pool = p, {more} }}\n"
    )
}

fn verdict(evener: &Evener, origin: &Origin) -> (String, String) {
    let server = evener.server(&format!("127.0.0.1:{}", origin.port));
    let text = |key: &str| server[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("reason"))
}

fn wait_for(evener: &Evener, origin: &Origin, expected: &str) -> String {
    wait_until(&format!("port {} to be {expected}", origin.port), || {
        let (verdict, reason) = verdict(evener, origin);
        (verdict == expected).then_some(reason)
    })
}

/// Waits until a whole check has been made: the first of two probes may have begun before the call.
fn wait_for_probes(origin: &Origin) {
    let before = origin.requests().len();
    wait_until("two more probes", || (origin.requests().len() >= before + 2).then_some(()));
}

const BAD: [&str; 6] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nX: a\u{1}b\r\nContent-Length: 5\r\n\r\nhello",
];

const GOOD: [&str; 5] = [
    "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 103 Early\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
];

#[test]
fn a_server_with_malformed_responses_is_down() {
    let origins: Vec<Origin> = BAD.iter().map(|response| fixed((*response).to_owned())).collect();
    let evener = Evener::run(&config(0, &origins, ""));
    let listen = evener.port("s");
    for (origin, response) in origins.iter().zip(BAD) {
        let reason = wait_for(&evener, origin, "down");
        assert!(
            reason.starts_with("http: clients would get 502 for this response: "),
            "{response:?}: {reason}"
        );
    }
    // All servers are down, so that requests are sent to none of them.
    assert_eq!(Wire::to(listen).ask("GET", "/", "").unwrap().status(), 503);
}

#[test]
fn a_server_with_repairable_responses_is_up() {
    let origins: Vec<Origin> = GOOD.iter().map(|response| fixed((*response).to_owned())).collect();
    let evener = Evener::run(&config(0, &origins, ""));
    let listen = evener.port("s");
    origins.iter().for_each(wait_for_probes);
    for (origin, response) in origins.iter().zip(GOOD) {
        assert_eq!(verdict(&evener, origin).0, "up", "{response:?}");
    }
    for _ in 0..2 * origins.len() {
        let mut client = Wire::to(listen);
        let mut response = client.ask("GET", "/", "").unwrap();
        if response.status() == 103 {
            response = client.response("GET").unwrap();
        }
        assert_eq!((response.status(), response.text().as_str()), (200, "hello"));
    }
}

#[test]
fn the_limits_of_header_sections_apply_to_checks() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(2000));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X: y\r\n".repeat(20));
    let origins = [fixed(long), fixed(many)];
    let evener = Evener::run(&config(0, &origins, "header_bytes_max = 1024, header_fields_max = 16"));
    let listen = evener.port("s");
    let reasons = origins.each_ref().map(|origin| wait_for(&evener, origin, "down"));
    assert!(reasons[0].ends_with("the header section is too long"), "{}", reasons[0]);
    assert!(reasons[1].ends_with("too many header fields"), "{}", reasons[1]);
    // A reload that raises the limits applies to the next probe.
    evener.reload(&config(0, &origins, ""));
    origins.iter().for_each(|origin| drop(wait_for(&evener, origin, "up")));
    assert_eq!(Wire::to(listen).ask("GET", "/", "").unwrap().status(), 200);
    // The servers stay up if another service has wider limits.
    let other = "service \"wide\" { listen = \"127.0.0.1:0\", protocol = \"http\", pool = p }\n";
    let narrow = config(0, &origins, "header_bytes_max = 1024, header_fields_max = 16");
    evener.reload(&format!("{narrow}{other}"));
    origins.iter().for_each(wait_for_probes);
    origins.iter().for_each(|origin| assert_eq!(verdict(&evener, origin).0, "up"));
}
