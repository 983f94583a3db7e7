//! Responses that arrive after a retry began: they are passed on as long as the client waits.

use crate::harness::dns::{
    A, Nameserver, ReplyPath, address, ask, ask_on, ask_tcp, client, framed, host, id, query, rcode,
    read_message, receive, service,
};
use crate::harness::dns_mname::{Frame, MnameServer, mname_service, outbound, respond};
use crate::harness::{Evener, connect, wait_until};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};

/// A query that has no response yet.
type Pending = Arc<Mutex<Option<(Vec<u8>, ReplyPath)>>>;

/// A server that stores each query and does not respond until [`release`] is called.
fn late_server(pending: &Pending) -> Nameserver {
    let pending = Arc::clone(pending);
    Nameserver::start(move |query, back| {
        *pending.lock().unwrap() = Some((query.to_vec(), back.clone()));
    })
}

/// Responds to the pending query: first with two messages that are not valid responses to it, then with the
/// valid response.
fn release(pending: &Pending) {
    let Some((query, back)) = pending.lock().unwrap().take() else { return };
    let mut wrong_id = address(&query, 60, 66);
    wrong_id[1] ^= 1;
    let other_name = address(&crate::harness::dns::query(id(&query), "b.example", A), 60, 66);
    [wrong_id, other_name, address(&query, 60, 1)].iter().for_each(|message| back.send(message));
}

#[test]
fn a_late_response_of_an_earlier_attempt_is_validated_and_passed_on() {
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let pending = Pending::default();
        let late = Arc::clone(&pending);
        let (one, two) = (late_server(&pending), Nameserver::start(move |_, _| release(&late)));
        let more = "policy = \"first\", dns = { query_timeout = \"500ms\" }, passive = { failures = 1 }";
        let evener = Evener::run_with(&service(0, &[&one, &two], more), &["--workers", "1"]);
        let listen = evener.port("d");
        for number in 1..5 {
            assert_eq!(host(&ask(listen, &query(number, "a.example", A))), 1);
        }
        let counters = |server: &Nameserver| evener.server(&server.name())["counters"].clone();
        assert_eq!((&counters(&one)["responses"], &counters(&two)["responses"]), (&4.into(), &0.into()));
        assert_eq!(counters(&one)["responses_bad"], 8, "expected two bad responses for each query");
        assert_eq!(evener.server(&one.name())["verdict"], "up", "expected a late server to stay up");
        assert_eq!(evener.service_counter("d", "requests_failed"), 0);
    }
}

#[test]
fn coalesced_queries_all_get_the_late_response() {
    let pending = Pending::default();
    let late = Arc::clone(&pending);
    let (one, two) = (late_server(&pending), Nameserver::start(move |_, _| release(&late)));
    let more = "policy = \"first\", dns = { query_timeout = \"1s\", cache = true }";
    let evener = Evener::run_with(&service(0, &[&one, &two], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let clients: Vec<_> = (0..5).map(|_| client(listen)).collect();
    for (number, socket) in (0..).zip(&clients) {
        socket.send(&query(100 + number, "a.example", A)).unwrap();
    }
    for (number, socket) in (0..).zip(&clients) {
        let received = receive(socket);
        assert_eq!((id(&received), host(&received)), (100 + number, 1));
    }
    assert_eq!((one.count(), two.count()), (1, 1), "expected one query and one retry");
    assert_eq!(host(&ask(listen, &query(7, "a.example", A))), 1, "expected the cached response");
}

/// A gate that lets one thread pass each time it is opened.
#[derive(Default)]
struct Gate(Mutex<usize>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_one();
    }

    fn pass(&self) {
        let mut count = self.1.wait_while(self.0.lock().unwrap(), |count| *count == 0).unwrap();
        *count -= 1;
    }
}

fn timeouts(evener: &Evener, server: &Nameserver) -> u64 {
    evener.server(&server.name())["counters"]["response_timeouts"].as_u64().unwrap()
}

#[test]
fn a_server_that_is_always_late_stays_up_and_gets_no_retries() {
    let gate = Arc::new(Gate::default());
    let wait = Arc::clone(&gate);
    let server = Nameserver::start(move |query, back| {
        let (query, back, wait) = (query.to_vec(), back.clone(), Arc::clone(&wait));
        std::thread::spawn(move || {
            wait.pass();
            back.send(&address(&query, 60, 3));
        });
    });
    let more = "dns = { query_timeout = \"2s\", retries = 2 }, passive = { failures = 1 }";
    let evener = Evener::run_with(&service(0, &[&server], more), &["--workers", "1"]);
    let listen = evener.port("d");
    let (socket, mut stream) = (client(listen), connect(listen));
    let mut late = |number: u16| {
        let (before, sent) = (timeouts(&evener, &server), query(number, &format!("n{number}.example"), A));
        if number.is_multiple_of(2) {
            socket.send(&sent).unwrap();
        } else {
            stream.write_all(&framed(&sent)).unwrap();
        }
        wait_until("the timeout", || (timeouts(&evener, &server) > before).then_some(()));
        gate.open();
        let received =
            if number.is_multiple_of(2) { receive(&socket) } else { read_message(&stream).unwrap() };
        assert_eq!((id(&received), host(&received)), (number, 3));
    };
    // The server has not responded before, so the first query may have been lost and is retried.
    late(0);
    wait_until("the retry", || (server.count() == 2).then_some(()));
    gate.open();
    for number in [2, 4, 6] {
        late(number);
    }
    assert_eq!(server.count(), 5, "expected no retries");
    // A new stream may be dead, so the query is retried on another stream. Once a stream has carried a
    // response, no query on it is retried.
    late(1);
    gate.open();
    assert_eq!(server.count(), 7);
    for number in [3, 5, 7] {
        late(number);
    }
    assert_eq!(server.count(), 10, "expected no retries");
    assert_eq!(evener.server(&server.name())["verdict"], "up");
    assert_eq!(evener.service_counter("d", "requests_failed"), 0);
}

#[test]
fn a_late_mname_frame_is_passed_on() {
    let pending = Arc::new(Mutex::new(None::<(Vec<u8>, UnixStream)>));
    let (pending_writer, late) = (Arc::clone(&pending), Arc::clone(&pending));
    let one = MnameServer::start(move |frame, back| match frame {
        Frame::Udp { from, message } => {
            let frame = outbound(*from, &address(message, 60, 1));
            *pending_writer.lock().unwrap() = Some((frame, back.try_clone().unwrap()));
        }
        _ => respond(frame, back, 1),
    });
    let two = Nameserver::start(move |_, _| {
        if let Some((frame, mut back)) = late.lock().unwrap().take() {
            back.write_all(&frame).unwrap();
        }
    });
    let more = "policy = \"first\", dns = { query_timeout = \"500ms\" }";
    let evener = Evener::run_with(&mname_service(0, &[&one], &[&two], more), &["--workers", "1"]);
    let listen = evener.port("d");
    wait_until("the persistent connection", || (evener.server(&one.name())["verdict"] == "up").then_some(()));
    let socket = client(listen);
    for number in 1..4 {
        assert_eq!(host(&ask_on(&socket, &query(number, "a.example", A))), 1);
    }
    assert_eq!(two.count(), 3);
}

/// A message of the given opcode with a question section.
fn of_opcode(number: u16, opcode: u8) -> Vec<u8> {
    let mut message = query(number, "example", crate::harness::dns::SOA);
    message[2] = opcode << 3;
    message
}

/// A response to the message.
fn response_to(message: &[u8], rcode: u8) -> Vec<u8> {
    let mut response = message.to_vec();
    response[2] |= 0x80;
    response[3] |= rcode;
    response
}

const UPDATE: u8 = 5;
const POLICY: &str = "policy = \"first\", passive = { failures = 0 }, \
    dns = { query_timeout = \"300ms\", retry_on = { \"servfail\", \"refused\" } }";

#[test]
fn messages_that_may_change_data_are_sent_to_one_server_only() {
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let (one, two) = (Nameserver::silent(), Nameserver::of(2));
        let evener = Evener::run(&service(0, &[&one, &two], POLICY));
        let listen = evener.port("d");
        // UPDATE, NOTIFY, and an unassigned opcode.
        for opcode in [UPDATE, 4, 7] {
            assert_eq!(rcode(&ask(listen, &of_opcode(9, opcode))), 2, "{opcode}");
        }
        assert_eq!((one.count(), two.count()), (3, 0));
        assert_eq!(host(&ask(listen, &query(1, "a.example", A))), 2, "expected a retry of a query");
    }
}

#[test]
fn a_late_response_to_an_update_is_passed_on() {
    let gate = Arc::new(Gate::default());
    let wait = Arc::clone(&gate);
    let (one, two) = (
        Nameserver::start(move |message, back| {
            let (message, back, wait) = (message.to_vec(), back.clone(), Arc::clone(&wait));
            std::thread::spawn(move || {
                wait.pass();
                back.send(&response_to(&message, 0));
            });
        }),
        Nameserver::of(2),
    );
    let policy = POLICY.replace("300ms", "2s");
    let evener = Evener::run_with(&service(0, &[&one, &two], &policy), &["--workers", "1"]);
    let listen = evener.port("d");
    let (socket, mut stream) = (client(listen), connect(listen));
    for is_tcp in [false, true] {
        let (sent, before) = (of_opcode(77, UPDATE), timeouts(&evener, &one));
        if is_tcp {
            stream.write_all(&framed(&sent)).unwrap();
        } else {
            socket.send(&sent).unwrap();
        }
        wait_until("the timeout", || (timeouts(&evener, &one) > before).then_some(()));
        gate.open();
        let received = if is_tcp { read_message(&stream).unwrap() } else { receive(&socket) };
        assert_eq!(received, response_to(&sent, 0));
    }
    assert_eq!((one.count(), two.count()), (2, 0));
}

#[test]
fn an_update_is_retried_only_if_no_server_can_have_received_it() {
    // The server received the update and closed the connection.
    let (one, two) = (Nameserver::start(|_, back| back.close()), Nameserver::of(2));
    let evener = Evener::run(&service(0, &[&one, &two], POLICY));
    let listen = evener.port("d");
    assert_eq!(rcode(&ask_tcp(listen, &of_opcode(1, UPDATE))), 2);
    assert_eq!((one.count(), two.count()), (1, 0));
    drop(evener);
    // A REFUSED response to the update is passed on.
    let one = Nameserver::start(|message, back| back.send(&response_to(message, 5)));
    let evener = Evener::run(&service(0, &[&one, &two], POLICY));
    let listen = evener.port("d");
    assert_eq!(rcode(&ask(listen, &of_opcode(1, UPDATE))), 5);
    assert_eq!(two.count(), 0);
    // The first server does not listen, so it cannot have received the update.
    for ask in [ask as fn(u16, &[u8]) -> Vec<u8>, ask_tcp] {
        let mut stopped = Nameserver::of(1);
        let two = Nameserver::start(|message, back| back.send(&response_to(message, 0)));
        stopped.stop();
        let more = POLICY.replace("300ms", "20s");
        let evener = Evener::run(&service(0, &[&stopped, &two], &more));
        let listen = evener.port("d");
        assert_eq!(rcode(&ask(listen, &of_opcode(1, UPDATE))), 0);
        assert_eq!(two.count(), 1);
    }
}
