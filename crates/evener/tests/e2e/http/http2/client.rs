//! HTTP/2 for tests: a service with TLS, a conforming client (of the `h2` crate), and a client that writes raw frames and
//! so can violate the protocol.

use crate::harness::certificates::{ANY, Authority, TlsStream, shake};
use crate::harness::origin::Origin;
use crate::harness::{DEADLINE, Directory, Evener};
use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

pub(crate) const NAME: &str = "a.example";

/// An instance of one worker with an https service.
pub(crate) struct Front {
    pub(crate) evener: Evener,
    pub(crate) port: u16,
    authority: Authority,
    tls: String,
    _directory: Directory,
}

impl Front {
    pub(crate) fn run(origins: &[&Origin], more: &str) -> Self {
        Self::run_ports(&ports(origins), "", more)
    }

    /// Runs a service with these server ports, with text before it and with further settings of the service.
    pub(crate) fn run_ports(ports: &[u16], before: &str, more: &str) -> Self {
        let (directory, authority) = (Directory::new(), Authority::new("test ca"));
        let tls = authority.issue(&[NAME, "b.example"]).keys(&directory, "a");
        let text = format!("{before}\n{}", service(0, &tls, ports, more));
        let evener = Evener::run_with(&text, &["--workers", "1"]);
        let port = evener.port("s");
        Self { evener, port, authority, tls, _directory: directory }
    }

    pub(crate) fn reload(&self, origins: &[&Origin], more: &str) {
        self.evener.reload(&service(self.port, &self.tls, &ports(origins), more));
    }

    pub(crate) fn tls(&self, offered: &[&str]) -> Arc<ClientConfig> {
        let mut config = self.authority.client(ANY);
        config.alpn_protocols = offered.iter().map(|one| one.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_with(&mut Builder::new()).await
    }

    pub(crate) async fn client_with(&self, builder: &mut Builder) -> Client {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(self.tls(&["h2"]));
        let stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Client { send, driver: tokio::spawn(connection) }
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::to(self)
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.evener.service_counter("s", name)
    }

    /// The memory of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.evener.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

fn ports(origins: &[&Origin]) -> Vec<u16> {
    origins.iter().map(|origin| origin.port).collect()
}

fn service(listen: u16, tls: &str, ports: &[u16], more: &str) -> String {
    let servers: String = ports.iter().map(|port| format!("\"127.0.0.1:{port}\", ")).collect();
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", {servers} tls = {{ {tls} }}, {more} }}\n"
    )
}

/// Runs a future to completion. The test fails when it takes longer than twice the deadline.
pub(crate) fn within<T>(future: impl Future<Output = T>) -> T {
    within_of(DEADLINE * 2, future)
}

fn within_of<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(limit, future).await })
        .expect("the future must be complete in time")
}

/// Waits a little, before an assertion that nothing happened.
pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A client connection of HTTP/2.
pub(crate) struct Client {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Reply {
    status: u16,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first field with this name, or an empty value.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The number of fields with this name.
    pub(crate) fn field_count(&self, name: &str) -> usize {
        self.fields.get_all(name).iter().count()
    }

    /// The names of the fields, each once.
    pub(crate) fn field_names(&self) -> Vec<&str> {
        self.fields.keys().map(http::HeaderName::as_str).collect()
    }

    pub(crate) fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }
}

pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let uri = if path.starts_with("https:") { path.to_owned() } else { format!("https://{NAME}{path}") };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

impl Client {
    /// The server's limit of concurrent streams.
    pub(crate) fn streams_max(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Drops the connection without an orderly end.
    pub(crate) fn disconnect(&self) {
        self.driver.abort();
    }

    /// Waits until the server has closed the connection without an error.
    pub(crate) async fn closed(self) {
        self.driver.await.unwrap().unwrap();
    }

    /// Begins a request whose body the caller sends later.
    pub(crate) async fn begin(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut ready = self.send.clone().ready().await?;
        ready.send_request(request(method, path, fields), false)
    }

    /// Begins a request without a body.
    pub(crate) async fn open(&self, method: &str, path: &str) -> Result<ResponseFuture, h2::Error> {
        let mut ready = self.send.clone().ready().await?;
        Ok(ready.send_request(request(method, path, &[]), true)?.0)
    }

    /// Sends a request without a body, and reads the response.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Reply, h2::Error> {
        let mut ready = self.send.clone().ready().await?;
        let (response, _) = ready.send_request(request(method, path, fields), true)?;
        whole(response).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[]).await.unwrap()
    }

    /// Sends a request with a body, and reads the response at the same time.
    pub(crate) async fn put(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, h2::Error> {
        let (response, mut send) = self.begin(method, path, fields).await?;
        let (_, response) = tokio::join!(upload(&mut send, body, true), whole(response));
        response
    }
}

/// Sends a body as the peer's window allows.
pub(crate) async fn upload(
    send: &mut SendStream<Bytes>,
    mut body: Bytes,
    ends: bool,
) -> Result<(), h2::Error> {
    if body.is_empty() {
        return send.send_data(body, ends);
    }
    while !body.is_empty() {
        send.reserve_capacity(body.len().min(65_536));
        let Some(room) = poll_fn(|context| send.poll_capacity(context)).await else { return Ok(()) };
        let part = body.split_to(room?.min(body.len()));
        send.send_data(part, ends && body.is_empty())?;
    }
    Ok(())
}

/// Reads a response to its end.
pub(crate) async fn whole(response: ResponseFuture) -> Result<Reply, h2::Error> {
    let (header, mut body) = response.await?.into_parts();
    let bytes = read(&mut body).await?;
    let trailers = body.trailers().await?;
    Ok(Reply { status: header.status.as_u16(), fields: header.headers, body: bytes, trailers })
}

pub(crate) async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// A connection whose frames the test writes itself (RFC 9113, section 4.1).
pub(crate) struct Raw {
    tls: TlsStream,
}

/// Reads bytes without regard to frames.
impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tls.read(buffer)
    }
}

#[derive(Debug)]
pub(crate) struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frame {
    pub(crate) fn is(&self, kind: u8) -> bool {
        self.kind == kind
    }

    /// Returns true if the frame, DATA or HEADERS, is the last frame of its stream.
    pub(crate) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM > 0
    }

    /// The stream that the frame resets.
    pub(crate) fn reset_stream(&self) -> Option<u32> {
        self.is(RST_STREAM).then_some(self.stream)
    }

    /// Returns the status at the beginning of a field block if it is 200 or 400 and sent as an index into
    /// HPACK's static table (RFC 7541, appendix A).
    pub(crate) fn indexed_status(&self) -> Option<u16> {
        match self.payload[0] {
            0x88 => Some(200),
            0x8c => Some(400),
            _ => None,
        }
    }

    /// The payload as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn reason(&self) -> u32 {
        let at = if self.is(GOAWAY) { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A field block of HPACK in which nothing is compressed (RFC 7541, section 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                out.push(length as u8);
            } else {
                out.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    out.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                out.push(rest as u8);
            }
            out.extend(text.as_bytes());
        }
    }
    out
}

/// The field block of a request: the pseudo-header fields, then the fields of `more`.
pub(crate) fn request_block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "https"), (":authority", NAME), (":path", path)];
    block(&[&pseudo[..], more].concat())
}

impl Raw {
    fn to(front: &Front) -> Self {
        let mut raw = Self::silent(front);
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.send(&frame(SETTINGS, 0, 0, &[]));
        raw.send(&frame(SETTINGS, 1, 0, &[]));
        raw
    }

    /// A client that negotiated HTTP/2, and has sent nothing yet.
    pub(crate) fn silent(front: &Front) -> Self {
        Self { tls: shake(front.port, NAME, &front.tls(&["h2"])).unwrap() }
    }

    /// Sends bytes. An error is ignored: the next read reports the end of the connection.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.tls.write_all(bytes).and_then(|()| self.tls.flush());
    }

    pub(crate) fn headers(&mut self, stream: u32, flags: u8, block: &[u8]) {
        self.send(&frame(HEADERS, flags | END_HEADERS, stream, block));
    }

    pub(crate) fn next(&mut self) -> io::Result<Frame> {
        let mut header = [0; 9];
        self.tls.read_exact(&mut header)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut payload = vec![0; length];
        self.tls.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes(header[5..9].try_into().unwrap());
        Ok(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    /// The next frame of this stream other than WINDOW_UPDATE, or the connection's GOAWAY.
    pub(crate) fn of(&mut self, stream: u32) -> io::Result<Frame> {
        loop {
            let frame = self.next()?;
            if frame.is(GOAWAY) || (frame.stream == stream && stream > 0 && !frame.is(WINDOW_UPDATE)) {
                return Ok(frame);
            }
        }
    }

    /// Returns the next frame of this stream, or the connection's GOAWAY. Panics if the frame is not of this
    /// kind.
    pub(crate) fn expect(&mut self, stream: u32, kind: u8) -> Frame {
        let frame = self.of(stream).unwrap();
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// The stream of the next frame of any of these streams other than WINDOW_UPDATE.
    pub(crate) fn next_stream(&mut self, streams: &[u32]) -> u32 {
        loop {
            let frame = self.next().unwrap();
            if streams.contains(&frame.stream) && !frame.is(WINDOW_UPDATE) {
                return frame.stream;
            }
        }
    }

    /// Reads until the connection ends, and returns the last GOAWAY.
    pub(crate) fn end(&mut self) -> Option<Frame> {
        let mut last = None;
        loop {
            match self.next() {
                Ok(frame) if frame.is(GOAWAY) => last = Some(frame),
                Ok(_) => {}
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::WouldBlock, "the connection is still open");
                    return last;
                }
            }
        }
    }
}
