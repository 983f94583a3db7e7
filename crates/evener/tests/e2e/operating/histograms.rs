//! Histograms of times and sizes in the status.

use crate::harness::dns::{A, Nameserver, ask, ask_tcp, query};
use crate::harness::origin::{Origin, get};
use crate::harness::{Evener, Server, connect, line, wait_until};
use crate::udp::flows::{Echo, client};
use serde_json::Value;
use std::io::{Read, Write};
use std::time::Duration;

/// Waits until a histogram of a service or server has `count` values, and returns it.
#[track_caller]
fn expect_count(view: impl Fn() -> Value, name: &str, count: u64) -> Value {
    let histogram = wait_until(&format!("{count} values in {name}"), || {
        let histogram = view()["counters"][name].clone();
        (histogram["count"] == count).then_some(histogram)
    });
    let buckets = histogram["buckets"].as_array().unwrap().iter();
    assert_eq!(buckets.map(|bucket| bucket[1].as_u64().unwrap()).sum::<u64>(), count, "{name}: {histogram}");
    histogram
}

#[test]
fn connections_responses_and_checks_are_measured() {
    let server = Server::named("a");
    let delay = Duration::from_millis(70);
    let origin = Origin::start(move |wire, _| {
        std::thread::sleep(delay);
        wire.reply("200 OK", "", &[b'x'; 3000])
    });
    let nameserver = Nameserver::of(7);
    let echo = Echo::start("e");
    let evener = Evener::run(&format!(
        "service 't' {{ listen = '127.0.0.1:0', '127.0.0.1:{}', check = check.tcp {{ every = '50ms' }} }}
         service 'h' {{ listen = '127.0.0.1:0', protocol = 'http', '127.0.0.1:{}' }}
         service 'd' {{ listen = '127.0.0.1:0', protocol = 'dns', '{}' }}
         service 'u' {{ listen = '127.0.0.1:0', protocol = 'udp', '127.0.0.1:{}' }}",
        server.port,
        origin.port,
        nameserver.name(),
        echo.port,
    ));
    let service = |name: &str| {
        let status = evener.status();
        status["services"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
    };

    let mut stream = connect(evener.port("t"));
    let sent_first = line(&mut stream).len() + 1;
    stream.write_all(&[b'x'; 500]).unwrap();
    stream.read_exact(&mut [0; 500]).unwrap();
    expect_count(|| service("t"), "connection_bytes", 0);
    drop(stream);
    let bytes = expect_count(|| service("t"), "connection_bytes", 1);
    assert_eq!(bytes["sum"].as_f64(), Some(1000.0 + sent_first as f64));
    assert_eq!(bytes["buckets"], serde_json::json!([[1024.0, 1]]));
    let of_server = || evener.server(&format!("127.0.0.1:{}", server.port));
    expect_count(of_server, "connect_seconds", 1);
    wait_until("a check", || {
        (of_server()["counters"]["check_seconds"]["count"].as_u64() >= Some(1)).then_some(())
    });

    for _ in 0..3 {
        assert_eq!(get(evener.port("h"), "/").status(), 200);
    }
    let bytes = expect_count(|| service("h"), "response_bytes", 3);
    assert_eq!((bytes["sum"].as_f64(), &bytes["buckets"]), (Some(9000.0), &serde_json::json!([[3072.0, 3]])));
    let of_server = || evener.server(&format!("127.0.0.1:{}", origin.port));
    let times = expect_count(of_server, "response_seconds", 3);
    // The origin waits; no upper bound holds on a busy machine.
    assert!(times["sum"].as_f64() >= Some(3.0 * delay.as_secs_f64()), "{times}");
    assert!(times["buckets"][0][0].as_f64().is_none_or(|bound| bound > delay.as_secs_f64()), "{times}");

    let message = query(1, "www.example", A);
    let length = ask(evener.port("d"), &message).len() + ask_tcp(evener.port("d"), &message).len();
    let bytes = expect_count(|| service("d"), "response_bytes", 2);
    assert_eq!(bytes["sum"].as_f64(), Some(length as f64));
    let of_server = || evener.server(&nameserver.name());
    expect_count(of_server, "response_seconds", 2);
    expect_count(of_server, "connect_seconds", 1);

    let client = client(evener.port("u"));
    for _ in 0..2 {
        client.send(b"hello").unwrap();
        client.recv(&mut [0; 100]).unwrap();
    }
    expect_count(|| evener.server(&format!("127.0.0.1:{}", echo.port)), "response_seconds", 1);
    let declarations = &evener.status()["declarations"]["server"]["response_seconds"];
    assert_eq!((&declarations["kind"], &declarations["unit"]), (&"histogram".into(), &"seconds".into()));
}
