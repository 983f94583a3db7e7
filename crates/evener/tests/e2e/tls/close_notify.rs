//! TLS servers that send close_notify and then wait for the peer to close: clients of every protocol see the
//! end immediately.

use crate::harness::certificates::Authority;
use crate::harness::origin::get;
use crate::harness::{Evener, Server, connect};
use crate::http::http2::client::{Front, within};
use rustls::{ServerConnection, StreamOwned, SupportedProtocolVersion};
use std::io::{Read, Write};
use std::time::Duration;

/// A server whose response ends with the connection. It sends close_notify after `pause`, and keeps the socket
/// open until the peer closes.
fn waiting_server(
    version: &'static SupportedProtocolVersion,
    pause: Duration,
    response: &'static str,
) -> Server {
    let config = Authority::new("servers").issue(&["b.example"]).server(&[version]);
    Server::start(move |stream| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        if tls.read(&mut [0; 4096]).is_ok() {
            let _ = tls.write_all(response.as_bytes()).and_then(|()| tls.flush());
            std::thread::sleep(pause);
            tls.conn.send_close_notify();
            let _ = tls.flush();
            while matches!(tls.sock.read(&mut [0; 4096]), Ok(1..)) {}
        }
    })
}

/// Runs a check with each version of TLS, and with an immediate and a delayed close_notify.
fn check_each(check: impl Fn(&Server, &str), response: &'static str) {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for pause in [0, 300] {
            let server = waiting_server(version, Duration::from_millis(pause), response);
            check(&server, &format!("{:?} after {pause} ms", version.version));
        }
    }
}

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nhello";

fn pool(server: &Server) -> String {
    format!("pool = pool \"p\" {{ \"127.0.0.1:{}\", tls = {{ verify = false }} }}", server.port)
}

/// A stall timeout beyond the deadline of the tests, so that only the close_notify can end a response in time.
const LONG_STALL: &str = "stall_timeout = \"10m\"";

#[test]
fn http2_clients_get_the_whole_response() {
    let check = |server: &Server, what: &str| {
        let front = Front::run_ports(&[], "", &format!("{}, {LONG_STALL}", pool(server)));
        within(async {
            let response = front.client().await.get("/").await;
            assert_eq!((response.status(), response.text().as_str()), (200, "hello"), "{what}");
        });
    };
    check_each(check, RESPONSE);
}

#[test]
fn http1_clients_get_the_whole_response() {
    let check = |server: &Server, what: &str| {
        let evener = Evener::run(&format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {}, {LONG_STALL} }}",
            pool(server)
        ));
        let listen = evener.port("s");
        assert_eq!(get(listen, "/").text(), "hello", "{what}");
    };
    check_each(check, RESPONSE);
}

#[test]
fn clients_of_tcp_see_the_end_of_the_stream() {
    let check = |server: &Server, what: &str| {
        let evener = Evener::run(&format!("service \"s\" {{ listen = \"127.0.0.1:0\", {} }}", pool(server)));
        let listen = evener.port("s");
        let mut client = connect(listen);
        client.write_all(b"hello?").unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "good bye", "{what}");
    };
    check_each(check, "good bye");
}

#[test]
fn clients_of_upgraded_connections_see_the_end_of_the_stream() {
    const UPGRADE: &str =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\ngood bye";
    let check = |server: &Server, what: &str| {
        let evener = Evener::run(&format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {}, {LONG_STALL} }}",
            pool(server)
        ));
        let listen = evener.port("s");
        let mut client = connect(listen);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert!(all.ends_with("\r\n\r\ngood bye"), "{what}: {all}");
    };
    check_each(check, UPGRADE);
}
