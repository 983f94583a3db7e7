//! DNS for tests: messages, clients, and a server whose responses the test chooses.

use crate::harness::{DEADLINE, Reservation, Server, connect, local, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const A: u16 = 1;
pub(crate) const SOA: u16 = 6;
pub(crate) const TXT: u16 = 16;
pub(crate) const AXFR: u16 = 252;

pub(crate) const FORMERR: u8 = 1;
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;
pub(crate) const REFUSED: u8 = 5;

/// Time without a datagram after which a test expects no further datagram.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A name in wire form.
pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

/// A query of class IN with RD, without EDNS.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let header = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    [header, wire_name(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// Appends an OPT record to a message.
pub(crate) fn with_edns(mut message: Vec<u8>, size: u16, dnssec_ok: bool, options: &[u8]) -> Vec<u8> {
    message[11] += 1;
    message.extend_from_slice(&[0, 0, 41]);
    message.extend_from_slice(&size.to_be_bytes());
    message.extend_from_slice(&[0, 0, u8::from(dnssec_ok) << 7, 0]);
    message.extend_from_slice(&(options.len() as u16).to_be_bytes());
    message.extend_from_slice(options);
    message
}

/// Returns the end of the question section of a message.
pub(crate) fn question_section_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

/// Returns the queried name with its spelling, dotted.
pub(crate) fn name_of(message: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).into_owned());
        at = end;
    }
    labels.join(".")
}

pub(crate) fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

pub(crate) fn rcode(message: &[u8]) -> u8 {
    message[3] & 15
}

pub(crate) fn is_truncated(message: &[u8]) -> bool {
    message[2] & 2 != 0
}

/// A record whose owner is the queried name.
pub(crate) fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let header = [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes()].concat();
    [&header[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// A response without EDNS, with the given code, answer section and authority section.
pub(crate) fn reply(query: &[u8], rcode: u8, responses: &[Vec<u8>], authority: &[Vec<u8>]) -> Vec<u8> {
    let mut reply = query[..question_section_end(query)].to_vec();
    reply[2] |= 0x84;
    reply[3] = 0x80 | rcode;
    reply[4..12].copy_from_slice(&[0, 1, 0, responses.len() as u8, 0, authority.len() as u8, 0, 0]);
    reply.extend(responses.iter().chain(authority).flatten());
    reply
}

/// A response with the address 192.0.2.`host`.
pub(crate) fn address(query: &[u8], ttl: u32, host: u8) -> Vec<u8> {
    reply(query, 0, &[record(A, ttl, &[192, 0, 2, host])], &[])
}

/// Returns the last byte of the address at the end of a response.
pub(crate) fn host(response: &[u8]) -> u8 {
    assert_eq!(
        (rcode(response), response[7]),
        (0, 1),
        "expected a response with an address: {response:02x?}"
    );
    *response.last().unwrap()
}

/// A response with a text record, of exactly `size` bytes.
pub(crate) fn sized(query: &[u8], size: usize) -> Vec<u8> {
    let room = size - question_section_end(query) - 12;
    let mut data = Vec::with_capacity(room);
    while data.len() < room {
        let length = (room - data.len() - 1).min(255);
        data.push(length as u8);
        data.extend(std::iter::repeat_n(b'x', length));
    }
    let reply = reply(query, 0, &[record(TXT, 60, &data)], &[]);
    assert_eq!(reply.len(), size);
    reply
}

/// The socket and the client to which a server sends its response.
#[derive(Clone)]
pub(crate) enum ReplyPath {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(Arc<TcpStream>),
}

impl ReplyPath {
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: &[u8]) {
        match self {
            Self::Udp(socket, to) => drop(socket.send_to(message, to)),
            Self::Tcp(_) => self.send_raw(&framed(message)),
        }
    }

    /// Sends bytes over TCP without a length before them. Does nothing for UDP.
    pub(crate) fn send_raw(&self, bytes: &[u8]) {
        if let Self::Tcp(stream) = self {
            let _ = (&**stream).write_all(bytes);
        }
    }

    /// Shuts down the TCP connection. Does nothing for UDP.
    pub(crate) fn close(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A query that a server received.
struct ReceivedQuery {
    /// A datagram, or a message of a stream
    message: Vec<u8>,
    from: SocketAddr,
    transport: Transport,
}

/// The transport of a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A server for UDP and TCP on one port.
pub(crate) struct Nameserver {
    pub(crate) port: u16,
    queries: Arc<Mutex<Vec<ReceivedQuery>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    streams: Server,
    open: Arc<Mutex<Vec<Arc<TcpStream>>>>,
    reserved: Option<Reservation>,
}

impl Nameserver {
    /// Starts a server that passes each query to `response`.
    pub(crate) fn start(response: impl Fn(&[u8], &ReplyPath) + Send + Sync + 'static) -> Self {
        let reserved = Reservation::new();
        let mut server = Self::start_at(reserved.port(), response);
        server.reserved = Some(reserved);
        server
    }

    pub(crate) fn start_at(port: u16, response: impl Fn(&[u8], &ReplyPath) + Send + Sync + 'static) -> Self {
        Self::start_on(local(port), response)
    }

    /// Starts a server on an address of loopback with a reserved port.
    pub(crate) fn start_on(
        address: SocketAddr,
        response: impl Fn(&[u8], &ReplyPath) + Send + Sync + 'static,
    ) -> Self {
        let port = address.port();
        // The socket of a stopped server stays open until its last response is sent.
        let socket = wait_until("the port", || UdpSocket::bind(address).ok());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (queries, stopped, open) =
            <(Arc<Mutex<Vec<ReceivedQuery>>>, Arc<AtomicBool>, Arc<Mutex<Vec<_>>>)>::default();
        let response = Arc::new(response);
        let (stop, received, respond, socket) =
            (Arc::clone(&stopped), Arc::clone(&queries), Arc::clone(&response), Arc::new(socket));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let message = buffer[..length].to_vec();
                received.lock().unwrap().push(ReceivedQuery {
                    message: message.clone(),
                    from,
                    transport: Transport::Udp,
                });
                respond(&message, &ReplyPath::Udp(Arc::clone(&socket), from));
            }
        });
        let (received, streams) = (Arc::clone(&queries), Arc::clone(&open));
        let streams = Server::start_on(address, move |stream| {
            let (from, stream) = (stream.peer_addr(), Arc::new(stream));
            streams.lock().unwrap().push(Arc::clone(&stream));
            let Ok(from) = from else { return };
            while let Some(message) = read_message(&stream) {
                received.lock().unwrap().push(ReceivedQuery {
                    message: message.clone(),
                    from,
                    transport: Transport::Tcp,
                });
                response(&message, &ReplyPath::Tcp(Arc::clone(&stream)));
            }
        });
        Self { port, queries, stopped, thread: Some(thread), streams, open, reserved: None }
    }

    /// Starts a server that responds to each query with the address 192.0.2.`host`.
    pub(crate) fn of(host: u8) -> Self {
        Self::start(move |query, back| back.send(&address(query, 60, host)))
    }

    pub(crate) fn of_at(port: u16, host: u8) -> Self {
        Self::start_at(port, move |query, back| back.send(&address(query, 60, host)))
    }

    /// Starts a server that does not respond.
    pub(crate) fn silent() -> Self {
        Self::start(|_, _| ())
    }

    /// Returns the name of the server in the configuration.
    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns all received messages.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        self.map_queries(|query| query.message.clone())
    }

    /// Returns the transport of each query.
    pub(crate) fn transports(&self) -> Vec<Transport> {
        self.map_queries(|query| query.transport)
    }

    /// Returns the source port of each query over the transport.
    pub(crate) fn source_ports(&self, transport: Transport) -> Vec<u16> {
        let port = |query: &ReceivedQuery| (query.transport == transport).then(|| query.from.port());
        self.map_queries(port).into_iter().flatten().collect()
    }

    fn map_queries<T>(&self, value: impl Fn(&ReceivedQuery) -> T) -> Vec<T> {
        self.queries.lock().unwrap().iter().map(value).collect()
    }

    /// Returns the number of queries received so far.
    pub(crate) fn count(&self) -> usize {
        self.queries.lock().unwrap().len()
    }

    /// Closes the listeners and all connections.
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
        self.streams.stop();
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Prepends the length to a message.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// Reads a message from a stream. Returns `None` at the end of the stream or after the read timeout.
pub(crate) fn read_message(mut stream: &TcpStream) -> Option<Vec<u8>> {
    read_framed(&mut stream)
}

pub(crate) fn read_framed(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// Returns `true` if the stream ends or is reset before another byte.
pub(crate) fn is_closed(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// A UDP client that sends from the given address.
pub(crate) fn client_from(from: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((from.into(), 0)).unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

pub(crate) fn client(port: u16) -> UdpSocket {
    client_from([127, 0, 0, 1], port)
}

/// Receives the next datagram.
pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).expect("a response");
    buffer.truncate(length);
    buffer
}

/// Returns `true` if no datagram comes within [`QUIET`].
pub(crate) fn is_quiet(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let quiet = socket.recv(&mut [0; 512]).is_err();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    quiet
}

/// Sends a query over UDP from a new socket and returns the response.
pub(crate) fn ask(port: u16, message: &[u8]) -> Vec<u8> {
    ask_on(&client(port), message)
}

pub(crate) fn ask_on(socket: &UdpSocket, message: &[u8]) -> Vec<u8> {
    socket.send(message).unwrap();
    let response = receive(socket);
    assert_eq!(id(&response), id(message), "expected the ID of the client");
    response
}

/// Sends a query over a new TCP connection and returns the response.
pub(crate) fn ask_tcp(port: u16, message: &[u8]) -> Vec<u8> {
    ask_stream(&connect(port), message)
}

pub(crate) fn ask_stream(mut stream: &TcpStream, message: &[u8]) -> Vec<u8> {
    stream.write_all(&framed(message)).unwrap();
    let response = read_message(stream).expect("a response");
    assert_eq!(id(&response), id(message), "expected the ID of the client");
    response
}

/// The configuration of a service `d` with these servers.
pub(crate) fn service(listen: u16, servers: &[&Nameserver], more: &str) -> String {
    let servers: String = servers.iter().map(|server| format!("\"{}\", ", server.name())).collect();
    format!("service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:{listen}\", {servers} {more} }}\n")
}
