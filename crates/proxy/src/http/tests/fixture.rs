//! Fixture: the component with its servers and clients, and the loop of the worker.

use super::{Fixture, Side};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::pool_queue::Waiter;
use crate::context::ready::Ready;
use crate::http::Http;
use crate::io::testing::{DEADLINE, bound, is_blocked, readiness, target};
use crate::service::accepted::Accepted;
use crate::service::ending::{EndReason, Ending};
use crate::service::open::{Collector, ListFilter, ListRequest, Listing};
use crate::service::testing::{TestPool, service_with};
use crate::service::{Permits, Settings};
use evener_core::counters::Total;
use evener_core::spec::{HttpSpec, PoolSpec, Protocol};
use evener_core::{Target, Time};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(super) const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n";
pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

pub(super) fn http(change: impl FnOnce(&mut HttpSpec)) -> impl FnOnce(&mut Settings) {
    |settings| {
        let mut spec = HttpSpec::default();
        change(&mut spec);
        settings.http = Some(Arc::new(spec));
    }
}

impl Side {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        Self(stream)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(super) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO)).unwrap();
    }
}

impl Fixture {
    /// Creates a service of HTTP with one server.
    pub(super) fn new(change: impl FnOnce(&mut HttpSpec)) -> Self {
        Self::with(|_| {}, http(change))
    }

    pub(super) fn with(pool: impl FnOnce(&mut PoolSpec), change: impl FnOnce(&mut Settings)) -> Self {
        let servers = vec![bound()];
        let targets = vec![target(&servers[0])];
        Self::of(servers, &targets, pool, change)
    }

    pub(super) fn of(
        servers: Vec<TcpListener>,
        targets: &[Target],
        pool: impl FnOnce(&mut PoolSpec),
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let pool = TestPool::with("pool", targets, pool);
        let service = service_with(Protocol::Tcp, &pool, change);
        let (mut cx, reports) = Context::for_tests();
        cx.now = Time::ZERO + Duration::from_secs(10);
        Self { http: Http::new(1), cx, reports, listener: bound(), servers, service, pool }
    }

    /// Connects a client, and passes it to the component.
    pub(super) fn client(&mut self) -> Side {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = self.until("a client", |fixture| fixture.listener.accept().ok());
        accepted.set_nonblocking(true).unwrap();
        let lease = self.service.enter(u32::MAX).unwrap();
        let accepted = Accepted {
            client: accepted.into(),
            peer,
            service: Arc::clone(&self.service),
            settings: self.service.settings.load_full(),
            permits: Permits::new(lease, Unit::take_two_beyond()),
        };
        self.http.begin(&mut self.cx, accepted);
        Side::new(client)
    }

    /// Accepts the next connection to the first server.
    #[track_caller]
    pub(super) fn server(&mut self) -> Side {
        Side::new(self.until("a connection to the server", |fixture| fixture.servers[0].accept().ok()).0)
    }

    /// Runs the loop once.
    pub(super) fn run_loop(&mut self) {
        for key in self.http.shared.servers.keys(|_| true) {
            let Some(server) = self.http.shared.servers.get(key) else { continue };
            let ready = readiness(server.transport.socket());
            self.http.on_server_event(&mut self.cx, key, ready);
        }
        for key in self.http.sessions.keys(|_| true) {
            let ready = readiness(self.http.sessions[key].client().transport.socket());
            self.http.on_session_event(&mut self.cx, key, ready);
        }
        while let Some(ready) = self.cx.ready.pop() {
            let Ready::Session(key) = ready else { unreachable!("the ready queue contains only sessions") };
            self.http.resume(&mut self.cx, key);
        }
        self.http.on_deadlines(&mut self.cx);
        if let Some(mut round) = self.cx.queues.begin(self.cx.now) {
            while let Some(Waiter::Exchange(number)) = self.cx.queues.next(&mut round) {
                if !self.http.serve_queued(&mut self.cx, number) {
                    round.note_failed();
                }
            }
            self.cx.queues.end(round);
        }
        self.http.reap(&mut self.cx);
    }

    /// Runs the loop until `condition` returns a value; `event` names the awaited event.
    #[track_caller]
    pub(super) fn until<T>(&mut self, event: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            self.run_loop();
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(Instant::now() < until, "this did not happen in time: {event}");
        }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        // The timer wheel rounds up to its next tick.
        self.cx.now += time + Duration::from_millis(100);
        self.run_loop();
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.service.live.counters.total(name)
    }

    /// Returns the number of values in a histogram of the service.
    pub(super) fn recorded(&self, name: &str) -> u64 {
        let mut totals = self.service.live.counters.totals();
        match totals.find(|(declaration, _)| declaration.name == name) {
            Some((_, Total::Histogram(distribution))) => distribution.count(),
            other => unreachable!("no histogram: {other:?}"),
        }
    }

    /// Receives until the received bytes end with `end`, and returns all of them.
    #[track_caller]
    pub(super) fn receive(&mut self, side: &mut Side, end: &[u8]) -> String {
        let mut got = Vec::new();
        self.until("bytes", |_| {
            let mut piece = [0; 4096];
            match side.0.read(&mut piece) {
                Ok(0) => panic!("the connection ended after {:?}", String::from_utf8_lossy(&got)),
                Ok(length) => got.extend_from_slice(&piece[..length]),
                Err(error) => assert!(is_blocked(error.kind()), "{error}"),
            }
            got.ends_with(end).then_some(())
        });
        String::from_utf8_lossy(&got).into_owned()
    }

    /// Receives until the connection ends. Returns the received bytes, and an error if the end was a reset.
    #[track_caller]
    pub(super) fn rest(&mut self, side: &mut Side) -> (String, Result<(), ErrorKind>) {
        let mut got = Vec::new();
        let end = self.until("the end", |_| {
            let mut piece = [0; 4096];
            match side.0.read(&mut piece) {
                Ok(0) => Some(Ok(())),
                Ok(length) => {
                    got.extend_from_slice(&piece[..length]);
                    None
                }
                Err(error) if is_blocked(error.kind()) => None,
                Err(error) => Some(Err(error.kind())),
            }
        });
        (String::from_utf8_lossy(&got).into_owned(), end)
    }

    /// Receives a response, checks that the connection is closed in order after it, and returns the status.
    #[track_caller]
    pub(super) fn status_at_end(&mut self, client: &mut Side) -> String {
        let (text, end) = self.rest(client);
        assert_eq!(end, Ok(()), "{text}");
        status(&text)
    }

    /// Serves a request over a new connection to the server, and returns this connection.
    pub(super) fn serve(&mut self, client: &mut Side) -> Side {
        client.send(GET);
        let mut server = self.server();
        self.respond(client, &mut server);
        server
    }

    #[track_caller]
    pub(super) fn respond(&mut self, client: &mut Side, server: &mut Side) {
        let request = self.receive(server, b"\r\n\r\n");
        assert!(request.starts_with("GET /a HTTP/1.1\r\n"), "{request}");
        server.send(OK);
        let response = self.receive(client, b"ok");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }

    pub(super) fn listing(&self) -> Listing {
        let listing = Arc::new(Mutex::new(Listing::default()));
        let into = Arc::clone(&listing);
        let request =
            ListRequest::new(ListFilter::default(), 10, move |listing| *into.lock().unwrap() = listing);
        let mut collector = Collector::new(&request);
        self.http.list(&self.cx, &mut collector);
        collector.finish();
        drop(request);
        let listing = listing.lock().unwrap();
        listing.clone()
    }

    /// Ends all connections to the server; returns the number of ended exchanges.
    pub(super) fn end_server(&mut self) -> usize {
        let pool = self.pool.published().load_full();
        let ending = Ending::new(&pool.servers()[0], EndReason::Operator, |_| {});
        self.http.end_server(&mut self.cx, &ending)
    }

    #[track_caller]
    pub(super) fn check_empty(&mut self) {
        self.until("sessions to end", |fixture| fixture.http.sessions.is_empty().then_some(()));
        assert_eq!(self.http.shared.exchanges.len(), 0);
        assert_eq!(self.service.live.connections.active(), 0, "all slots are released");
    }
}

pub(super) fn status(response: &str) -> String {
    response.split(' ').nth(1).unwrap_or_default().into()
}
