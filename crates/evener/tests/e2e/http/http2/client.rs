//! HTTP/2 as the tests speak it: a service with TLS, a client that keeps the rules (the `h2` crate's), and one that
//! writes its frames by hand and so can break them.

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
    pub(crate) authority: Authority,
    tls: String,
    _directory: Directory,
}

impl Front {
    pub(crate) fn run(origins: &[&Origin], more: &str) -> Self {
        Self::run_ports(&ports(origins), "", more)
    }

    /// With something before the service, and something more about its TLS.
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

/// Runs a test's client; whatever it waits for comes within the deadline, or the test fails.
pub(crate) fn within<T>(future: impl Future<Output = T>) -> T {
    within_of(DEADLINE * 2, future)
}

fn within_of<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, future).await }).expect("it takes too long")
}

/// Waits a little; what is asserted afterwards is that nothing happened.
pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A connection of HTTP/2.
pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) driver: JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().unwrap())
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
    /// Begins a request with a body behind it.
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

    pub(crate) async fn ask(
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
        self.ask("GET", path, &[]).await.unwrap()
    }

    /// Sends a body; the answer is read meanwhile.
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

/// Sends what it may.
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

/// Reads an answer to its end.
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
    pub(crate) tls: TlsStream,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
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
    /// The reason of a reset or of the end.
    pub(crate) fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
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

/// Fields as HPACK has them when nothing is compressed (RFC 7541, section 6.2.2).
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

/// The fields that each request has, before others.
pub(crate) fn request_block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let own = [(":method", method), (":scheme", "https"), (":authority", NAME), (":path", path)];
    block(&[&own[..], more].concat())
}

impl Raw {
    fn to(front: &Front) -> Self {
        let mut raw = Self::silent(front);
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.send(&frame(SETTINGS, 0, 0, &[]));
        raw.send(&frame(SETTINGS, 1, 0, &[]));
        raw
    }

    /// It agreed on HTTP/2 and says nothing.
    pub(crate) fn silent(front: &Front) -> Self {
        Self { tls: shake(front.port, NAME, &front.tls(&["h2"])).unwrap() }
    }

    /// An end that came already is seen by whoever reads.
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

    /// The next frame of this stream but those about windows; or the end of the connection.
    pub(crate) fn of(&mut self, stream: u32) -> io::Result<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == GOAWAY || (frame.stream == stream && stream > 0 && frame.kind != WINDOW_UPDATE) {
                return Ok(frame);
            }
        }
    }

    /// The next frame of any of these streams but those about windows.
    pub(crate) fn next_of(&mut self, streams: &[u32]) -> Frame {
        loop {
            let frame = self.next().unwrap();
            if streams.contains(&frame.stream) && frame.kind != WINDOW_UPDATE {
                return frame;
            }
        }
    }

    /// Reads until the connection ends; the last GOAWAY.
    pub(crate) fn end(&mut self) -> Option<Frame> {
        let mut last = None;
        loop {
            match self.next() {
                Ok(frame) if frame.kind == GOAWAY => last = Some(frame),
                Ok(_) => {}
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::WouldBlock, "the connection goes on");
                    return last;
                }
            }
        }
    }
}
