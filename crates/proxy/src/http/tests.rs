//! Tests of the HTTP component without a worker: the sockets are real, and a fixture replaces the loop of the
//! worker.

mod fixture;
mod protocols;
mod splice;

use self::fixture::{GET, OK, http, status};
use super::*;
use crate::context::Reports;
use crate::context::registry::Readiness;
use crate::context::report::Report;
use crate::io::testing::{bound, refusing, target};
use crate::service::testing::TestPool;
use crate::service::{Refusal, Service, Settings};
use evener_core::acl::{Access, Acl};
use evener_core::spec::{Balance, HttpSpec, Policy, PoolSpec, QueueSpec, RespondSpec, RetryBudgetSpec};
use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

/// The component, with its service and servers.
struct Fixture {
    http: Http,
    cx: Context,
    reports: Reports,
    listener: TcpListener,
    servers: Vec<TcpListener>,
    service: Arc<Service>,
    pool: TestPool,
}

/// Client or server, played by a test.
struct Side(TcpStream);

#[test]
fn requests_of_one_client_share_a_connection_to_the_server() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.serve(&mut client);
    for _ in 0..2 {
        client.send(GET);
        fixture.respond(&mut client, &mut server);
    }
    assert_eq!((fixture.count("requests"), fixture.http.shared.servers.len()), (3, 1));
    drop(client);
    fixture.check_empty();
    assert_eq!(fixture.http.shared.servers.len(), 1, "the connection to the server stays pooled");
}

#[test]
fn a_pooled_connection_serves_other_clients_until_its_idle_time_is_over() {
    let mut fixture = Fixture::new(|_| {});
    let mut first = fixture.client();
    let mut server = fixture.serve(&mut first);
    let mut second = fixture.client();
    second.send(GET);
    fixture.respond(&mut second, &mut server);
    fixture.pass(Duration::from_secs(30));
    assert_eq!(fixture.http.shared.servers.len(), 0);
    let _other = fixture.serve(&mut second);
}

#[test]
fn a_pooled_connection_that_receives_unexpected_bytes_is_closed() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let mut server = fixture.serve(&mut client);
    server.send(b"HTTP/1.1 200 OK\r\n\r\n");
    fixture.until("the pooled connection to be closed", |fixture| {
        fixture.http.shared.servers.is_empty().then_some(())
    });
    let _other = fixture.serve(&mut client);
}

#[test]
fn a_request_is_retried_when_the_server_closed_the_pooled_connection() {
    let mut fixture = Fixture::new(|spec| spec.retries = 0);
    let mut client = fixture.client();
    let mut server = fixture.serve(&mut client);
    client.send(GET);
    fixture.receive(&mut server, b"\r\n\r\n");
    server.reset();
    let mut other = fixture.server();
    fixture.respond(&mut client, &mut other);
    assert_eq!(fixture.count("requests_retried"), 1);
}

#[test]
fn retries_and_refused_retries_are_counted_only_if_there_is_another_server() {
    let check = |servers: usize, percent: u32, expected: [u64; 2]| {
        let servers: Vec<TcpListener> = (0..servers).map(|_| bound()).collect();
        let targets: Vec<_> = servers.iter().map(target).collect();
        let pool = |spec: &mut PoolSpec| {
            spec.policy = Policy::First;
            spec.retry_budget = Some(RetryBudgetSpec { share_percent: percent, min_per_second: 0 });
        };
        let mut fixture = Fixture::of(servers, &targets, pool, http(|spec| spec.retries = 1));
        let mut client = fixture.client();
        client.send(GET);
        let mut server = fixture.server();
        fixture.receive(&mut server, b"\r\n\r\n");
        drop(server);
        if expected[0] > 0 {
            fixture.servers.swap(0, 1);
            let mut other = fixture.server();
            fixture.respond(&mut client, &mut other);
        } else {
            fixture.receive(&mut client, b"</p>\n");
        }
        let counted = ["requests_retried", "retries_exhausted"].map(|name| fixture.count(name));
        assert_eq!(counted, expected, "{} servers, budget of {percent} %", targets.len());
    };
    check(2, 200, [1, 0]);
    check(1, 200, [0, 0]);
    check(2, 0, [0, 1]);
    check(1, 0, [0, 0]);
}

#[test]
fn clients_get_502_for_broken_responses() {
    let check = |response: &[u8], case: &str| {
        let mut fixture = Fixture::new(|spec| spec.retries = 0);
        let mut client = fixture.client();
        client.send(GET);
        let mut server = fixture.server();
        fixture.receive(&mut server, b"\r\n\r\n");
        server.send(response);
        drop(server);
        let responded = fixture.receive(&mut client, b"</p>\n");
        assert_eq!(status(&responded), "502", "{case}");
        assert_eq!(fixture.count("requests_failed"), 1, "{case}");
        assert_eq!(fixture.http.shared.exchanges.len(), 0, "{case}");
    };
    check(b"", "no bytes");
    check(b"HTTP/1.1 200", "half a header section");
    check(b"\r\nHTTP/1.1 200 OK\r\n\r\n", "an empty line before the status line");
    check(b"nonsense\r\n\r\n", "no status line");
    check(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "an upgrade without a request for it",
    );
}

#[test]
fn a_partial_response_ends_with_a_reset() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(GET);
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    fixture.receive(&mut client, b"half");
    drop(server);
    assert_eq!(fixture.rest(&mut client), (String::new(), Err(ErrorKind::ConnectionReset)));
    fixture.check_empty();
}

#[test]
fn invalid_requests_are_refused() {
    for (request, expected) in [
        (&b"nonsense\r\n\r\n"[..], "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/3.0\r\nHost: t\r\n\r\n", "505"),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
    ] {
        let mut fixture = Fixture::new(|_| {});
        let mut client = fixture.client();
        client.send(request);
        assert_eq!(fixture.status_at_end(&mut client), expected, "{}", String::from_utf8_lossy(request));
        assert_eq!((fixture.count("requests_bad"), fixture.count("requests")), (1, 0));
        drop(client);
        fixture.check_empty();
    }
}

#[test]
fn a_header_section_beyond_the_limits_is_refused_with_431() {
    let mut fixture = Fixture::new(|spec| spec.limits.bytes_max = 64);
    let mut client = fixture.client();
    client.send(&[b"GET / HTTP/1.1\r\nHost: ", &[b't'; 64][..], b"\r\n\r\n"].concat());
    assert_eq!(fixture.status_at_end(&mut client), "431");
    assert_eq!(fixture.count("headers_too_large"), 1);
}

#[test]
fn a_configured_response_is_sent_without_a_server() {
    let respond = RespondSpec { status: 200, content_type: "text/plain".into(), body: "hello".into() };
    let mut fixture = Fixture::new(|spec| spec.respond = Some(respond));
    let mut client = fixture.client();
    client.send(GET);
    let text = fixture.receive(&mut client, b"hello");
    assert_eq!(status(&text), "200");
    client.send(GET);
    fixture.receive(&mut client, b"hello");
    assert_eq!((fixture.count("requests_local"), fixture.http.shared.exchanges.len()), (2, 0));
}

#[test]
fn a_server_that_refuses_is_reported_and_the_next_server_is_used() {
    let (_socket, refusing) = refusing();
    let servers = vec![bound()];
    let targets = [refusing, target(&servers[0])];
    let mut fixture = Fixture::of(servers, &targets, |_| {}, http(|_| {}));
    for _ in 0..2 {
        let mut client = fixture.client();
        let _server = fixture.serve(&mut client);
    }
    assert!(fixture.reports.take().iter().any(|report| matches!(report, Report::Failure { .. })));
    assert_eq!(fixture.count("requests_failed"), 0);
}

#[test]
fn without_a_server_a_request_gets_502_and_the_connection_stays_open() {
    let (_socket, refusing) = refusing();
    let mut fixture = Fixture::of(Vec::new(), &[refusing], |_| {}, http(|_| {}));
    let mut client = fixture.client();
    for _ in 0..2 {
        client.send(GET);
        let text = fixture.receive(&mut client, b"</p>\n");
        assert_eq!(status(&text), "502", "{text}");
    }
    assert_eq!(fixture.count("no_server"), 2);
    assert!(fixture.reports.take().iter().any(|report| matches!(report, Report::NoServer { .. })));
}

#[test]
fn a_request_waits_in_the_queue_while_the_server_is_at_its_limit() {
    let queue = QueueSpec { size: 1, timeout: Duration::from_secs(5) };
    let limited = |spec: &mut PoolSpec| {
        spec.queue = Some(queue);
        spec.servers[0].limits.hard = Some(1);
    };
    let mut fixture = Fixture::with(limited, http(|_| {}));
    let (mut first, mut second, mut third) = (fixture.client(), fixture.client(), fixture.client());
    first.send(GET);
    let mut server = fixture.server();
    second.send(GET);
    fixture.until("the request to be queued", |fixture| (fixture.count("queued") == 1).then_some(()));
    third.send(GET);
    let text = fixture.receive(&mut third, b"</p>\n");
    assert_eq!((status(&text).as_str(), fixture.count("queue_failures.full")), ("503", 1));
    fixture.respond(&mut first, &mut server);
    fixture.respond(&mut second, &mut server);
}

#[test]
fn a_queued_request_gets_503_after_the_timeout_of_the_queue() {
    let queue = QueueSpec { size: 9, timeout: Duration::from_secs(5) };
    let limited = |spec: &mut PoolSpec| {
        spec.queue = Some(queue);
        spec.servers[0].limits.hard = Some(1);
    };
    let mut fixture = Fixture::with(limited, http(|_| {}));
    let (mut first, mut second) = (fixture.client(), fixture.client());
    first.send(GET);
    let _server = fixture.server();
    second.send(GET);
    fixture.until("the request to be queued", |fixture| (fixture.count("queued") == 1).then_some(()));
    fixture.pass(Duration::from_secs(5));
    let text = fixture.receive(&mut second, b"</p>\n");
    assert_eq!((status(&text).as_str(), fixture.count("queue_failures.timeout")), ("503", 1));
    assert_eq!(fixture.http.shared.exchanges.len(), 1);
}

#[test]
fn clients_that_send_no_request_in_time_are_closed() {
    let check = |sent: &[u8], time: Duration, expected: &str, counts: [u64; 2]| {
        let mut fixture = Fixture::new(|_| {});
        let mut client = fixture.client();
        client.send(sent);
        // The bytes have to be received before time passes.
        fixture.until("the bytes to be received", |fixture| {
            let session = fixture.http.sessions.iter().next()?.1;
            (session.client().transport.unread().len() == sent.len()).then_some(())
        });
        fixture.pass(time);
        assert_eq!(fixture.status_at_end(&mut client), expected);
        let counters = fixture.service.live.counters.of(0);
        assert_eq!([counters.closed.idle_timeout.read(), counters.preamble_timeouts.read()], counts);
    };
    let spec = HttpSpec::default();
    check(b"", spec.keepalive_timeout, "", [1, 0]);
    check(b"GET / HT", spec.header_timeout, "408", [0, 1]);
}

#[test]
fn a_request_without_a_response_in_time_gets_504() {
    let mut fixture = Fixture::new(|spec| spec.response_timeout = Duration::from_secs(3));
    let mut client = fixture.client();
    client.send(GET);
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    fixture.pass(Duration::from_secs(3));
    let text = fixture.receive(&mut client, b"</p>\n");
    assert_eq!(status(&text), "504");
    assert_eq!(
        fixture.rest(&mut server).1,
        Err(ErrorKind::ConnectionReset),
        "the connection to the server is reset"
    );
}

#[test]
fn the_request_of_a_client_that_leaves_is_given_up() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    client.send(GET);
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    fixture.until("the end to be detected", |fixture| {
        fixture
            .http
            .sessions
            .iter()
            .next()
            .and_then(|(_, session)| session.client().left_early().then_some(()))
    });
    // The first check records how many bytes the client has received.
    fixture.pass(client::LEAVE_DELAY);
    fixture.pass(client::LEAVE_DELAY);
    assert_eq!(fixture.count("requests_aborted"), 1);
    fixture.check_empty();
    assert_eq!(fixture.rest(&mut server).1, Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_private_connection_is_closed_with_its_client() {
    let mut fixture = Fixture::new(|spec| spec.balance = Balance::Connection);
    let mut first = fixture.client();
    let mut server = fixture.serve(&mut first);
    first.send(GET);
    fixture.respond(&mut first, &mut server);
    let mut second = fixture.client();
    let _other = fixture.serve(&mut second);
    assert_eq!(fixture.http.shared.servers.len(), 2, "each client has its own connection");
    drop(first);
    assert_eq!(fixture.rest(&mut server).1, Ok(()));
    assert_eq!(fixture.http.shared.servers.len(), 1);
}

#[test]
fn ending_the_connections_to_a_server_fails_its_requests_with_502() {
    let mut fixture = Fixture::new(|spec| spec.retries = 0);
    let (mut idle, mut busy) = (fixture.client(), fixture.client());
    let mut pooled = fixture.serve(&mut idle);
    assert_eq!(fixture.end_server(), 0, "no exchange is under way");
    assert_eq!(fixture.rest(&mut pooled).1, Ok(()));
    busy.send(GET);
    let mut server = fixture.server();
    fixture.receive(&mut server, b"\r\n\r\n");
    assert_eq!(fixture.end_server(), 1);
    let text = fixture.receive(&mut busy, b"</p>\n");
    assert_eq!(status(&text), "502");
    assert_eq!(fixture.rest(&mut server).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(fixture.count("closed.operator"), 1);
}

#[test]
fn refused_clients_get_403_or_are_dropped_or_enter_the_tarpit() {
    let deny = || Some(Arc::new(Acl::new(&[], Access::Deny)));
    let refusing = |denied: Refusal| {
        move |settings: &mut Settings| {
            http(|_| {})(settings);
            (settings.acl, settings.denied) = (deny(), denied);
        }
    };
    let mut fixture = Fixture::with(|_| {}, refusing(Refusal::Reject));
    let mut client = fixture.client();
    client.send(GET);
    assert_eq!(fixture.status_at_end(&mut client), "403");
    let mut fixture = Fixture::with(|_| {}, refusing(Refusal::Drop));
    let mut client = fixture.client();
    assert_eq!(fixture.rest(&mut client), (String::new(), Ok(())));
    fixture.check_empty();
    let mut fixture = Fixture::with(|_| {}, refusing(Refusal::Tarpit(Duration::from_secs(9))));
    let mut client = fixture.client();
    fixture.run_loop();
    assert_eq!(fixture.listing().open[0].stage, "tarpit");
    assert_eq!(fixture.service.live.connections.active(), 0, "the slot of a refused client is free");
    fixture.pass(Duration::from_secs(9));
    assert_eq!(fixture.rest(&mut client).1, Ok(()));
}

#[test]
fn idle_clients_are_shed_the_longest_idle_first_and_busy_clients_stay() {
    let mut fixture = Fixture::new(|_| {});
    let mut clients = [fixture.client(), fixture.client(), fixture.client()];
    let mut server = fixture.serve(&mut clients[0]);
    fixture.cx.now += Duration::from_secs(1);
    clients[1].send(GET);
    fixture.respond(&mut clients[1], &mut server);
    clients[2].send(GET);
    fixture.receive(&mut server, b"\r\n\r\n");
    assert_eq!(fixture.http.shed(&mut fixture.cx, 9), 2, "only the first client was idle for long enough");
    assert_eq!(fixture.rest(&mut clients[0]).1, Ok(()));
    fixture.cx.now += Duration::from_secs(1);
    assert_eq!(fixture.http.shed(&mut fixture.cx, 9), 2);
    assert_eq!(fixture.http.shed(&mut fixture.cx, 9), 0, "the last client waits for its response");
    assert_eq!(fixture.count("closed.idle_shed"), 2);
    server.send(OK);
    fixture.receive(&mut clients[2], b"ok");
    assert_eq!(fixture.http.shed_pooled(&mut fixture.cx, 9), 1);
}

#[test]
fn while_draining_idle_clients_are_closed_now_and_busy_clients_after_their_response() {
    let mut fixture = Fixture::new(|_| {});
    let (mut idle, mut busy) = (fixture.client(), fixture.client());
    let mut server = fixture.serve(&mut idle);
    busy.send(GET);
    fixture.receive(&mut server, b"\r\n\r\n");
    fixture.cx.draining = true;
    fixture.http.drain(&mut fixture.cx);
    assert_eq!(fixture.rest(&mut idle).1, Ok(()));
    server.send(OK);
    let (text, end) = fixture.rest(&mut busy);
    assert!(text.contains("connection: close\r\n") || text.contains("Connection: close\r\n"), "{text}");
    assert_eq!(end, Ok(()));
    drop((idle, busy));
    fixture.check_empty();
}

#[test]
fn sessions_are_listed_and_closed_by_their_numbers() {
    let mut fixture = Fixture::new(|_| {});
    let (mut idle, mut busy) = (fixture.client(), fixture.client());
    busy.send(GET);
    let _server = fixture.server();
    fixture.run_loop();
    let listing = fixture.listing();
    let stages: Vec<&str> = listing.open.iter().map(|open| open.stage).collect();
    assert_eq!(stages, ["http/1 idle", "http/1 request"]);
    let number = listing.open[0].number as u32;
    assert!(fixture.http.close_numbered(&mut fixture.cx, number));
    assert!(!fixture.http.close_numbered(&mut fixture.cx, number), "the session has ended");
    assert_eq!(fixture.rest(&mut idle).1, Ok(()));
    fixture.http.cut_all(&mut fixture.cx);
    assert_eq!((fixture.count("closed.operator"), fixture.count("closed.drain_timeout")), (1, 1));
    drop(busy);
    fixture.check_empty();
}

#[test]
fn events_and_deadlines_of_ended_sessions_are_ignored() {
    let mut fixture = Fixture::new(|_| {});
    let mut client = fixture.client();
    let server = fixture.serve(&mut client);
    let session_key = fixture.http.sessions.keys(|_| true)[0];
    let server_key = fixture.http.shared.servers.keys(|_| true)[0];
    drop((client, server));
    fixture.check_empty();
    fixture.until("the pool to be empty", |fixture| fixture.http.shared.servers.is_empty().then_some(()));
    let mut next = fixture.client();
    next.send(GET);
    let _server = fixture.server();
    let ready = Readiness { readable: true, writable: true, ended: true, error: true };
    fixture.http.on_session_event(&mut fixture.cx, session_key, ready);
    fixture.http.on_server_event(&mut fixture.cx, server_key, ready);
    fixture.http.resume(&mut fixture.cx, session_key);
    fixture.http.on_session_deadline(&mut fixture.cx, session_key);
    assert_eq!(
        fixture.listing().open[0].stage,
        "http/1 request",
        "the client that reuses the slot is still served"
    );
}
