//! Servers of the XDP network that report who they are, and a UDP client for them.

use crate::harness::namespaces::Namespace;
use crate::harness::{DEADLINE, wait_until};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time limit of one wait for a packet. Threads look after it whether they should end.
const WAIT: Duration = Duration::from_millis(100);

/// Servers that send each datagram back, after the server's address and the client's address and port. TCP servers send
/// these words and a newline to each client, and then all bytes of the client.
pub(crate) struct Echo {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sockets: BTreeMap<SocketAddr, UdpSocket>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of a server must not hide the failure of the test.
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "expected the servers to keep running");
        }
    }
}

impl Echo {
    /// Starts UDP servers on each address and port.
    pub(crate) fn udp(namespace: &Namespace, addresses: &[IpAddr], ports: &[u16]) -> Self {
        let mut echo = Self::without_servers();
        for address in all(addresses, ports) {
            let socket = namespace.enter(|| UdpSocket::bind(address).unwrap());
            echo.sockets.insert(address, socket.try_clone().unwrap());
            let stopped = Arc::clone(&echo.stopped);
            echo.threads.push(std::thread::spawn(move || serve_datagrams(&socket, address.ip(), &stopped)));
        }
        echo
    }

    /// Starts TCP servers on each address and port.
    pub(crate) fn tcp(namespace: &Namespace, addresses: &[IpAddr], ports: &[u16]) -> Self {
        let mut echo = Self::without_servers();
        for address in all(addresses, ports) {
            let listener = namespace.enter(|| TcpListener::bind(address).unwrap());
            let stopped = Arc::clone(&echo.stopped);
            echo.threads.push(std::thread::spawn(move || accept(&listener, address.ip(), &stopped)));
        }
        echo
    }

    fn without_servers() -> Self {
        Self { stopped: Arc::default(), threads: Vec::new(), sockets: BTreeMap::new() }
    }

    /// Sends a datagram from the socket of a UDP server.
    pub(crate) fn send_from(&self, server: SocketAddr, client: SocketAddr, payload: &[u8]) {
        self.sockets[&server].send_to(payload, client).unwrap();
    }
}

fn all(addresses: &[IpAddr], ports: &[u16]) -> impl Iterator<Item = SocketAddr> {
    addresses.iter().flat_map(move |address| ports.iter().map(move |port| SocketAddr::new(*address, *port)))
}

fn serve_datagrams(socket: &UdpSocket, name: IpAddr, stopped: &AtomicBool) {
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut buffer = [0; 65_536];
    while !stopped.load(Ordering::Relaxed) {
        // An error is a timeout, or an ICMP error about an earlier response.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let mut response = format!("{name} {client} ").into_bytes();
        response.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&response, client);
    }
}

fn accept(listener: &TcpListener, name: IpAddr, stopped: &Arc<AtomicBool>) {
    listener.set_nonblocking(true).unwrap();
    let mut connections = Vec::new();
    while !stopped.load(Ordering::Relaxed) {
        let Ok((stream, client)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let stopped = Arc::clone(stopped);
        connections.push(std::thread::spawn(move || serve_stream(stream, name, client, &stopped)));
    }
    connections.into_iter().for_each(|connection| connection.join().unwrap());
}

fn serve_stream(mut stream: TcpStream, name: IpAddr, client: SocketAddr, stopped: &AtomicBool) {
    if stream.write_all(format!("{name} {client}\n").as_bytes()).is_err() {
        return;
    }
    let mut buffer = [0; 65_536];
    while !stopped.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => return,
        }
    }
}

/// A datagram that an [`Echo`] sent back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    from: SocketAddr,
    server: IpAddr,
    client: SocketAddr,
    payload: Vec<u8>,
}

impl Reply {
    /// Returns the source of the datagram, as the client received it.
    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    /// Returns the server, by its own address.
    pub(crate) fn server(&self) -> IpAddr {
        self.server
    }

    /// Returns the client, as the server saw it.
    pub(crate) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Returns the bytes that the client had sent.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(super) fn parse(from: SocketAddr, datagram: &[u8]) -> Option<Self> {
        let mut parts = datagram.splitn(3, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (server, client) = (text()?.parse().ok()?, text()?.parse().ok()?);
        Some(Self { from, server, client, payload: parts.next()?.to_vec() })
    }
}

/// A UDP socket of a client.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    /// Opens a socket at an address; port 0 is a free port.
    pub(crate) fn bind(namespace: &Namespace, address: IpAddr, port: u16) -> Self {
        let socket = namespace.enter(|| UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(WAIT)).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn send(&self, to: SocketAddr, payload: &[u8]) {
        // The socket reports ICMP errors about earlier datagrams, once each.
        wait_until("a datagram to be sent", || self.0.send_to(payload, to).ok());
    }

    /// Returns the next datagram and its source. Panics if none arrives.
    pub(crate) fn receive(&self) -> (SocketAddr, Vec<u8>) {
        wait_until("a datagram", || self.receive_within(WAIT))
    }

    /// Returns the next datagram and its source, if one arrives within the time.
    pub(crate) fn receive_within(&self, time: Duration) -> Option<(SocketAddr, Vec<u8>)> {
        self.0.set_read_timeout(Some(time.min(DEADLINE))).unwrap();
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.0.recv_from(&mut buffer).ok()?;
        buffer.truncate(length);
        Some((from, buffer))
    }

    /// Sends a datagram, and returns the reply with the same payload. Earlier replies are skipped.
    pub(crate) fn ask(&self, to: SocketAddr, payload: &[u8]) -> Reply {
        self.send(to, payload);
        wait_until("the reply of a server", || {
            let (from, datagram) = self.receive_within(WAIT)?;
            Reply::parse(from, &datagram).filter(|reply| reply.payload == payload)
        })
    }

    /// Sends datagrams until a server replies, for a path that is being set up.
    pub(crate) fn ask_until_reply(&self, to: SocketAddr) -> Reply {
        wait_until("any reply of a server", || {
            self.send(to, b"until reply");
            let (from, datagram) = self.receive_within(WAIT)?;
            Reply::parse(from, &datagram)
        })
    }

    /// Returns the server that replies.
    pub(crate) fn server(&self, to: SocketAddr) -> IpAddr {
        self.ask(to, b"who").server
    }
}
