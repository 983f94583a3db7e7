//! DNS for tests: messages by hand, clients, and a server that does whatever a test wants of it.

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

/// How long nothing comes before a test believes that nothing does.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A name in wire form.
pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

/// A question of class IN with RD, without EDNS.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let header = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    [header, wire_name(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// The same message with an OPT record at its end.
pub(crate) fn with_edns(mut message: Vec<u8>, size: u16, dnssec_ok: bool, options: &[u8]) -> Vec<u8> {
    message[11] += 1;
    message.extend_from_slice(&[0, 0, 41]);
    message.extend_from_slice(&size.to_be_bytes());
    message.extend_from_slice(&[0, 0, u8::from(dnssec_ok) << 7, 0]);
    message.extend_from_slice(&(options.len() as u16).to_be_bytes());
    message.extend_from_slice(options);
    message
}

/// Where the question of a message ends.
pub(crate) fn question_section_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

/// The name of a question as it was asked, dotted.
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

/// A record of the name that the question has.
pub(crate) fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let header = [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes()].concat();
    [&header[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

/// An answer with this code, these answers, and these records of authority. Whether the question had EDNS is no matter.
pub(crate) fn reply(query: &[u8], rcode: u8, responses: &[Vec<u8>], authority: &[Vec<u8>]) -> Vec<u8> {
    let mut reply = query[..question_section_end(query)].to_vec();
    reply[2] |= 0x84;
    reply[3] = 0x80 | rcode;
    reply[4..12].copy_from_slice(&[0, 1, 0, responses.len() as u8, 0, authority.len() as u8, 0, 0]);
    reply.extend(responses.iter().chain(authority).flatten());
    reply
}

/// An answer with one address.
pub(crate) fn address(query: &[u8], ttl: u32, host: u8) -> Vec<u8> {
    reply(query, 0, &[record(A, ttl, &[192, 0, 2, host])], &[])
}

/// The last byte of the address in an answer that has nothing after it.
pub(crate) fn host(response: &[u8]) -> u8 {
    assert_eq!((rcode(response), response[7]), (0, 1), "an answer with an address: {response:02x?}");
    *response.last().unwrap()
}

/// An answer of text, of exactly so many bytes.
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

/// How a question came to a server, and so how its answer goes.
#[derive(Clone)]
pub(crate) enum Back {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(Arc<TcpStream>),
}

impl Back {
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

    /// Sends bytes of a stream as they are.
    pub(crate) fn send_raw(&self, bytes: &[u8]) {
        if let Self::Tcp(stream) = self {
            let _ = (&**stream).write_all(bytes);
        }
    }

    /// Ends a stream.
    pub(crate) fn close(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What a server was asked.
#[derive(Clone)]
pub(crate) struct SeenQuery {
    /// Over UDP whatever came; over TCP a message.
    pub(crate) message: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) is_tcp: bool,
}

/// A server for UDP and TCP on one port.
pub(crate) struct Nameserver {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<SeenQuery>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    streams: Server,
    open: Arc<Mutex<Vec<Arc<TcpStream>>>>,
    reserved: Option<Reservation>,
}

impl Nameserver {
    /// What becomes of each question is up to the test.
    pub(crate) fn start(response: impl Fn(&[u8], &Back) + Send + Sync + 'static) -> Self {
        let reserved = Reservation::new();
        let mut server = Self::start_at(reserved.port(), response);
        server.reserved = Some(reserved);
        server
    }

    pub(crate) fn start_at(port: u16, response: impl Fn(&[u8], &Back) + Send + Sync + 'static) -> Self {
        // A response that a stopped server still has to send keeps its socket open.
        let socket = wait_until("the port", || UdpSocket::bind(local(port)).ok());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (seen, over, open) =
            <(Arc<Mutex<Vec<SeenQuery>>>, Arc<AtomicBool>, Arc<Mutex<Vec<_>>>)>::default();
        let response = Arc::new(response);
        let (stop, keep, say, socket) =
            (Arc::clone(&over), Arc::clone(&seen), Arc::clone(&response), Arc::new(socket));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let message = buffer[..length].to_vec();
                keep.lock().unwrap().push(SeenQuery { message: message.clone(), from, is_tcp: false });
                say(&message, &Back::Udp(Arc::clone(&socket), from));
            }
        });
        let (keep, streams) = (Arc::clone(&seen), Arc::clone(&open));
        let streams = Server::start_at(port, move |stream| {
            let (from, stream) = (stream.peer_addr(), Arc::new(stream));
            streams.lock().unwrap().push(Arc::clone(&stream));
            let Ok(from) = from else { return };
            while let Some(message) = read_message(&stream) {
                keep.lock().unwrap().push(SeenQuery { message: message.clone(), from, is_tcp: true });
                response(&message, &Back::Tcp(Arc::clone(&stream)));
            }
        });
        Self { port, seen, over, thread: Some(thread), streams, open, reserved: None }
    }

    /// Answers each question with the address 192.0.2.`host`.
    pub(crate) fn of(host: u8) -> Self {
        Self::start(move |query, back| back.send(&address(query, 60, host)))
    }

    pub(crate) fn of_at(port: u16, host: u8) -> Self {
        Self::start_at(port, move |query, back| back.send(&address(query, 60, host)))
    }

    /// Answers nothing.
    pub(crate) fn silent() -> Self {
        Self::start(|_, _| ())
    }

    /// Its name in the configuration.
    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn seen(&self) -> Vec<SeenQuery> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Nobody is there any more.
    pub(crate) fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
        self.streams.stop();
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// A message with its length before it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// Reads a message of a stream; `None` at its end, or when none comes in time.
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

/// Whether the other side ends the stream, in order or not, without another byte.
pub(crate) fn is_closed(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// A client on UDP that sends from this address.
pub(crate) fn client_from(from: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((from.into(), 0)).unwrap();
    socket.connect(local(port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

pub(crate) fn client(port: u16) -> UdpSocket {
    client_from([127, 0, 0, 1], port)
}

/// What comes next.
pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).expect("an answer");
    buffer.truncate(length);
    buffer
}

/// Whether nothing more comes.
pub(crate) fn is_quiet(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let quiet = socket.recv(&mut [0; 512]).is_err();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    quiet
}

/// Asks over UDP, from a port of its own.
pub(crate) fn ask(port: u16, message: &[u8]) -> Vec<u8> {
    ask_on(&client(port), message)
}

pub(crate) fn ask_on(socket: &UdpSocket, message: &[u8]) -> Vec<u8> {
    socket.send(message).unwrap();
    let response = receive(socket);
    assert_eq!(id(&response), id(message), "the client's own ID");
    response
}

/// Asks over a TCP connection of its own.
pub(crate) fn ask_tcp(port: u16, message: &[u8]) -> Vec<u8> {
    ask_stream(&connect(port), message)
}

pub(crate) fn ask_stream(mut stream: &TcpStream, message: &[u8]) -> Vec<u8> {
    stream.write_all(&framed(message)).unwrap();
    let response = read_message(stream).expect("an answer");
    assert_eq!(id(&response), id(message), "the client's own ID");
    response
}

/// A service `d` with these servers.
pub(crate) fn service(listen: u16, servers: &[&Nameserver], more: &str) -> String {
    let servers: String = servers.iter().map(|server| format!("\"{}\", ", server.name())).collect();
    format!("service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:{listen}\", {servers} {more} }}\n")
}
