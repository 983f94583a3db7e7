//! Damaged requests at the admin socket and at the address of the metrics: each connection ends, and the next request is
//! served.

use crate::harness::{DEADLINE, Evener, reserved_port};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

/// Number of damaged requests at each of both.
const REQUESTS: u64 = 300;

const WHOLE: [&str; 5] = [
    "GET /v1/status HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n\r\n",
    "GET /metrics HTTP/1.1\r\nHost: evener\r\nAccept: application/openmetrics-text\r\n\r\n",
    "POST /v1/servers/state HTTP/1.1\r\nHost: evener\r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n\
     {\"server\":\"s/127.0.0.1:1\",\"state\":\"up\"}",
    "POST /v1/access HTTP/1.1\r\nHost: evener\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n\
     5\r\n{\"a\":\r\n2\r\n1}\r\n0\r\n\r\n",
    "DELETE /v1/connections/18446744073709551615 HTTP/1.1\r\nHost: evener\r\n\r\n",
];

/// A generator of numbers (xorshift), so that each run makes the same requests.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// Returns a request with one to four damaged places.
    fn request(&mut self) -> Vec<u8> {
        let mut bytes = WHOLE[self.below(WHOLE.len())].as_bytes().to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.next() % 5 {
                0 => bytes[at] = self.next() as u8,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, self.next() as u8),
                3 => drop(bytes.splice(at..at, *b"99999999999999999999")),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }
}

/// Sends a request and the end of the stream, and reads until the connection ends.
fn send<S: Read + Write>(mut stream: S, bytes: &[u8], end: impl FnOnce(&S)) {
    // A server that refuses a request early resets the connection.
    let _ = stream.write_all(bytes);
    end(&stream);
    let mut response = Vec::new();
    if let Err(error) = stream.read_to_end(&mut response) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn damaged_requests_end_their_connections_and_do_no_harm() {
    let metrics = reserved_port();
    let config = "service 's' { listen = '127.0.0.1:0', '127.0.0.1:1' }";
    let evener = Evener::run_with(config, &["--metrics", &format!("127.0.0.1:{metrics}")]);
    let (mut numbers, pid) = (Numbers(0x9e37_79b9_7f4a_7c15), evener.status()["pid"].clone());
    for _ in 0..REQUESTS {
        let local = UnixStream::connect(evener.admin_socket()).unwrap();
        local.set_read_timeout(Some(DEADLINE)).unwrap();
        send(local, &numbers.request(), |stream| drop(stream.shutdown(Shutdown::Write)));
        let remote = TcpStream::connect((Ipv4Addr::LOCALHOST, metrics)).unwrap();
        remote.set_read_timeout(Some(DEADLINE)).unwrap();
        send(remote, &numbers.request(), |stream| drop(stream.shutdown(Shutdown::Write)));
    }
    assert_eq!(evener.status()["pid"], pid);
    assert_eq!(evener.log_count("panicked"), 0);
}
