//! Entries of the request log: the facts about one request, collected from its arrival to the end of its
//! response. A service without a log has no entries, nor has a service whose log has the format of pen: those
//! lines are written when a request is sent to a server.

use super::client::Client;
use super::local_response::LocalResponse;
use crate::context::Context;
use crate::io::request_log::{RequestLog, since_epoch};
use crate::io::tls::TlsFacts;
use evener_core::Time;
use evener_core::reason::Cause;
use evener_core::request_log::{Record, RecordServer, RequestText};
use evener_core::snapshot::Entry;
use evener_core::wire::http::Request;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Entry of a request that is under way.
#[derive(Debug)]
pub(super) struct LogEntry {
    log: Arc<RequestLog>,
    text: RequestText,
    client: IpAddr,
    client_port: Option<u16>,
    received_at: Time,
    status: Option<u16>,
    cause: Option<Cause>,
    /// Server that was tried last, with the name of its pool.
    server: Option<(Arc<str>, Arc<Entry>)>,
    tries: u32,
    /// Time at which the request was sent to the server.
    sent_at: Option<Time>,
    /// Time at which the header section of the response came.
    responded_at: Option<Time>,
    request_bytes: u64,
    response_bytes: u64,
}

impl LogEntry {
    /// Begins the entry of a request. `bytes` begin with its request line.
    pub(super) fn new(log: &Arc<RequestLog>, client: SocketAddr, bytes: &[u8], received_at: Time) -> Self {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let start = bytes.iter().position(|byte| !is_end(byte)).unwrap_or_default();
        let line = bytes[start..].split(is_end).next().unwrap_or_default();
        Self {
            log: Arc::clone(log),
            text: RequestText::new(line),
            client: client.ip(),
            client_port: Some(client.port()),
            received_at,
            status: None,
            cause: None,
            server: None,
            tries: 0,
            sent_at: None,
            responded_at: None,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    /// Records that the request came on a stream of HTTP/2, although its header section is in the form of
    /// HTTP/1.1.
    pub(super) fn set_http2(&mut self) {
        self.text = std::mem::take(&mut self.text).with_protocol(b"HTTP/2.0");
    }

    /// Adds the header fields of the parsed request.
    pub(super) fn add_fields(&mut self, request: &Request, header: &[u8]) {
        let value = |name: &[u8]| {
            let mut fields = request.fields().iter();
            let field = fields.find(|field| field.name.of(header).eq_ignore_ascii_case(name));
            field.map_or(&b""[..], |field| field.value.of(header))
        };
        let text = std::mem::take(&mut self.text);
        self.text = text.with_fields(request.authority(header), value(b"user-agent"), value(b"referer"));
    }

    /// Sets the client that a trusted proxy reports. The port of the client is then not known.
    pub(super) fn set_client(&mut self, client: IpAddr) {
        if client != self.client {
            (self.client, self.client_port) = (client, None);
        }
    }

    /// Sets the cause why the request is not served to its end.
    pub(super) fn set_cause(&mut self, cause: impl Into<Cause>) {
        self.cause = Some(cause.into());
    }

    /// Sets the cause, unless there is one.
    pub(super) fn set_default_cause(&mut self, cause: impl Into<Cause>) {
        self.cause.get_or_insert(cause.into());
    }

    /// Records a server that is tried.
    pub(super) fn on_try(&mut self, pool: &Arc<str>, server: &Arc<Entry>) {
        self.server = Some((Arc::clone(pool), Arc::clone(server)));
        self.tries += 1;
        // An earlier server may have got the request.
        self.sent_at = None;
    }

    /// Records that the request is sent to the server.
    pub(super) fn on_sent(&mut self, now: Time) {
        self.sent_at = Some(now);
    }

    /// Records the response of the server.
    pub(super) fn on_response(&mut self, status: u16, now: Time) {
        (self.status, self.responded_at) = (Some(status), Some(now));
    }

    /// Counts bytes of both bodies.
    pub(super) fn add_bytes(&mut self, request_bytes: u64, response_bytes: u64) {
        self.request_bytes += request_bytes;
        self.response_bytes += response_bytes;
    }

    /// Records a local response, which is sent as a whole.
    pub(super) fn on_local_response(&mut self, response: &LocalResponse) {
        (self.status, self.cause) = (Some(response.status()), Some(response.cause()));
        self.response_bytes = response.body_bytes();
    }

    /// Logs the request, which has ended.
    pub(super) fn finish(&self, cx: &Context, client: &Client) {
        let duration = cx.now.since(self.received_at);
        let facts = client.facts.as_deref();
        let record = Record {
            received_at: since_epoch().saturating_sub(duration),
            service: &client.service.live.name,
            client: self.client,
            client_port: self.client_port,
            request: &self.text,
            status: self.status,
            cause: self.cause,
            server: self.server.as_ref().map(|(pool, server)| RecordServer {
                pool,
                name: &server.name,
                address: &server.target,
            }),
            retries: self.tries.saturating_sub(1),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            connected: self.sent_at.map(|at| at.since(self.received_at)),
            first_byte: self.responded_at.map(|at| at.since(self.received_at)),
            duration,
            tls: facts.map(TlsFacts::version),
            sni: facts.and_then(TlsFacts::server_name),
        };
        self.log.request_ended(&record, client.service.live.counters.of(cx.id));
    }
}
