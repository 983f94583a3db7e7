//! HTTP/1.1 for tests: a server that records its requests, and a client. Both are strict: a message that does not follow
//! RFC 9112 exactly is an error, even if a lenient program would accept it.

use crate::harness::{Evener, Server, connect};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A request or a response, with the decoded body.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The header section with its empty line, each byte as one character
    pub(crate) header: String,
    pub(crate) body: Vec<u8>,
    pub(crate) framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(usize),
    Chunked,
    Close,
}

impl Message {
    pub(crate) fn line(&self) -> &str {
        self.header.split("\r\n").next().unwrap()
    }

    pub(crate) fn method(&self) -> &str {
        self.line().split(' ').next().unwrap()
    }

    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap()
    }

    pub(crate) fn status(&self) -> u16 {
        self.target().parse().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns all values of a header field.
    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.header, name)
    }

    /// Returns the only value of a header field, or an empty string if the field is missing.
    pub(crate) fn field(&self, name: &str) -> &str {
        let all = self.fields(name);
        assert!(all.len() < 2, "expected one {name}, got {}: {}", all.len(), self.header);
        all.first().copied().unwrap_or_default()
    }

    pub(crate) fn closes(&self) -> bool {
        self.field("Connection") == "close"
    }
}

fn fields<'a>(header: &'a str, name: &str) -> Vec<&'a str> {
    let lines = header.split("\r\n").skip(1);
    lines
        .filter_map(|line| line.split_once(": "))
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

/// The error with which a handler closes the connection.
pub(crate) fn hang_up() -> io::Result<()> {
    Err(ErrorKind::ConnectionAborted.into())
}

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) stream: Arc<TcpStream>,
    input: Vec<u8>,
    at: usize,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream: Arc::new(stream), input: Vec::new(), at: 0 }
    }

    /// Connects a client to a port.
    pub(crate) fn to(port: u16) -> Self {
        Self::new(connect(port))
    }

    pub(crate) fn send(&self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.stream).write_all(bytes.as_ref())
    }

    /// Returns the received bytes that are not parsed yet.
    pub(crate) fn left(&self) -> &[u8] {
        &self.input[self.at..]
    }

    /// Reads once. Returns `false` at the end of the stream.
    fn more(&mut self) -> io::Result<bool> {
        if self.at == self.input.len() {
            (self.at, self.input) = (0, std::mem::take(&mut self.input));
            self.input.clear();
        }
        let mut buffer = [0; 65_536];
        let read = (&*self.stream).read(&mut buffer)?;
        self.input.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }

    fn need(&mut self) -> io::Result<()> {
        if self.more()? { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Reads up to and including `end`; `None` at the end of the stream.
    fn until(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let left = self.left();
            if let Some(at) = left[searched..].windows(end.len()).position(|window| window == end) {
                let found = left[..searched + at + end.len()].to_vec();
                self.at += found.len();
                return Ok(Some(found));
            }
            searched = left.len().saturating_sub(end.len() - 1);
            if !self.more()? {
                return if self.left().is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads a header section; `None` at the end of the connection.
    pub(crate) fn header(&mut self) -> io::Result<Option<String>> {
        let header = self.until(b"\r\n\r\n")?;
        Ok(header.map(|header| header.into_iter().map(char::from).collect()))
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        loop {
            let take = self.left().len().min(length - bytes.len());
            bytes.extend_from_slice(&self.left()[..take]);
            self.at += take;
            if bytes.len() == length {
                return Ok(bytes);
            }
            self.need()?;
        }
    }

    /// Reads the body of a chunked message, and fails if the message has chunk extensions or trailers.
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n")?.ok_or(ErrorKind::UnexpectedEof)?;
            let digits =
                std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| malformed("a chunk's size"))?;
            let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_hex {
                return Err(malformed("a chunk's size"));
            }
            let size = usize::from_str_radix(digits, 16).map_err(|_| malformed("a chunk's size"))?;
            body.append(&mut self.exactly(size)?);
            if self.exactly(2)? != b"\r\n" {
                return Err(malformed("no end of a chunk"));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    pub(crate) fn body(&mut self, framing: Framing) -> io::Result<Vec<u8>> {
        match framing {
            Framing::None => Ok(Vec::new()),
            Framing::Length(length) => self.exactly(length),
            Framing::Chunked => self.chunks(),
            Framing::Close => {
                while self.more()? {}
                let body = self.left().to_vec();
                self.at = self.input.len();
                Ok(body)
            }
        }
    }

    /// Reads a request; `None` at the end of the connection.
    pub(crate) fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(header) = self.header()? else { return Ok(None) };
        let framing = declared_framing(&header)?.unwrap_or(Framing::None);
        let body = self.body(framing)?;
        Ok(Some(Message { header, body, framing }))
    }

    /// Reads the next response, final or interim, to a request with the given method.
    pub(crate) fn response(&mut self, method: &str) -> io::Result<Message> {
        let header = self.header()?.ok_or(ErrorKind::UnexpectedEof)?;
        let declared = declared_framing(&header)?;
        let status = header.split(' ').nth(1).unwrap_or_default().to_owned();
        let framing = match (method, status.as_str()) {
            ("HEAD", _) | (_, "204" | "304") => Framing::None,
            (_, status) if status.starts_with('1') => Framing::None,
            _ => declared.unwrap_or(Framing::Close),
        };
        let body = self.body(framing)?;
        Ok(Message { header, body, framing })
    }

    /// Sends a request with a `Host` field and reads the response.
    pub(crate) fn ask(&mut self, method: &str, target: &str, more: &str) -> io::Result<Message> {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{more}\r\n"))?;
        self.response(method)
    }

    /// Sends a response with a body, and with header fields that each end in CRLF.
    pub(crate) fn reply(&self, status: &str, fields: &str, body: &[u8]) -> io::Result<()> {
        let header = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
        self.send([header.as_bytes(), body].concat())
    }

    /// Returns `true` if the stream ends without a reset and without further bytes.
    pub(crate) fn is_over(&mut self) -> bool {
        self.left().is_empty() && matches!(self.more(), Ok(false))
    }
}

/// Returns the body length that the header fields declare. Two declarations are an error.
fn declared_framing(header: &str) -> io::Result<Option<Framing>> {
    let (lengths, codings) = (fields(header, "Content-Length"), fields(header, "Transfer-Encoding"));
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(None),
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(Some(Framing::Length(length.parse().map_err(|_| malformed("a length"))?)))
        }
        ([], ["chunked"]) => Ok(Some(Framing::Chunked)),
        _ => Err(malformed("an ambiguous length")),
    }
}

#[derive(Default)]
struct Record {
    requests: Mutex<Vec<Message>>,
    faults: Mutex<Vec<String>>,
    connections: AtomicUsize,
    wires: Mutex<Vec<Weak<TcpStream>>>,
}

fn serve(
    record: &Arc<Record>,
    respond: impl Fn(&mut Wire, &Message) -> io::Result<()> + Send + Sync + 'static,
) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let record = Arc::clone(record);
    move |stream| {
        record.connections.fetch_add(1, Ordering::Relaxed);
        let mut wire = Wire::new(stream);
        record.wires.lock().unwrap().push(Arc::downgrade(&wire.stream));
        loop {
            match wire.request() {
                Ok(Some(request)) => {
                    record.requests.lock().unwrap().push(request.clone());
                    if respond(&mut wire, &request).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                // A reset within a request is allowed, but an orderly close is a fault.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => {
                    let left = String::from_utf8_lossy(wire.left()).into_owned();
                    return record.faults.lock().unwrap().push(format!("{error}, before {left:?}"));
                }
            }
        }
    }
}

/// An HTTP server and a record of its requests.
pub(crate) struct Origin {
    pub(crate) port: u16,
    server: Server,
    record: Arc<Record>,
}

impl Origin {
    /// Starts a server that passes each request to `response`. If `response` returns an error, the connection
    /// is closed.
    pub(crate) fn start(
        response: impl Fn(&mut Wire, &Message) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let record = Arc::new(Record::default());
        let server = Server::start(serve(&record, response));
        Self { port: server.port, server, record }
    }

    pub(crate) fn start_at(
        port: u16,
        response: impl Fn(&mut Wire, &Message) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let record = Arc::new(Record::default());
        Self { port, server: Server::start_at(port, serve(&record, response)), record }
    }

    /// Starts a server that responds to each request with its name, on an address of loopback with a reserved port.
    pub(crate) fn named_on(name: &'static str, address: SocketAddr) -> Self {
        let record = Arc::new(Record::default());
        let respond = move |wire: &mut Wire, _: &Message| wire.reply("200 OK", "", name.as_bytes());
        Self { port: address.port(), server: Server::start_on(address, serve(&record, respond)), record }
    }

    /// Starts a server that responds to each request with its name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::start(move |wire, _| wire.reply("200 OK", "", name.as_bytes()))
    }

    pub(crate) fn requests(&self) -> Vec<Message> {
        self.record.requests.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.record.requests.lock().unwrap().clear();
    }

    /// Returns the method and the target of each request, such as `GET /`.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method(), request.target())).collect()
    }

    /// Returns the errors in received requests.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.record.faults.lock().unwrap().clone()
    }

    /// Returns the number of accepted connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.record.connections.load(Ordering::Relaxed)
    }

    /// Closes all connections and keeps listening.
    pub(crate) fn hang_up_all(&self) {
        for wire in self.record.wires.lock().unwrap().drain(..).filter_map(|wire| wire.upgrade()) {
            let _ = wire.shutdown(Shutdown::Both);
        }
    }

    /// Closes the listener and all connections.
    pub(crate) fn kill(&mut self) {
        self.server.stop();
        self.hang_up_all();
    }
}

/// Sends a request over a new connection and returns the response.
pub(crate) fn get(port: u16, target: &str) -> Message {
    Wire::to(port).ask("GET", target, "").unwrap()
}

/// The configuration of an http service.
pub(crate) fn http_service(listen: u16, origins: &[&Origin], more: &str) -> String {
    let servers: String = origins.iter().map(|origin| format!("\"127.0.0.1:{}\", ", origin.port)).collect();
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", {servers} {more} }}\n")
}

/// Starts an instance with one worker and one HTTP service, and returns it with the port. Each worker has a separate pool of
/// connections, so one worker makes their reuse predictable.
pub(crate) fn run_http(origins: &[&Origin], more: &str) -> (Evener, u16) {
    let evener = Evener::run_with(&http_service(0, origins, more), &["--workers", "1"]);
    let listen = evener.port("s");
    (evener, listen)
}

/// Returns pseudorandom bytes for a body.
pub(crate) fn pattern(salt: u64, length: usize) -> Vec<u8> {
    let mut state = salt.wrapping_mul(2).wrapping_add(1);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state ^ state >> 29).to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

/// Encodes a body in chunks of the given size.
pub(crate) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + body.len() / size * 12 + 32);
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}
