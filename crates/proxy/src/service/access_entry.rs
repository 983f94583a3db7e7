//! Entries of the request log for connections, queries and flows: the facts about one of them, collected from its
//! beginning to its end. A service without a log has no entries, nor has a service whose log has the format of pen.

use crate::context::Context;
use crate::io::request_log::{RequestLog, since_epoch};
use crate::service::{Service, Settings};
use evener_core::Time;
use evener_core::reason::Cause;
use evener_core::request_log::{Record, RecordServer, RequestText};
use evener_core::snapshot::Entry;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Version of TLS, and the server name.
type TlsNames = (&'static str, Option<Box<str>>);

/// Entry of a connection, query or flow that is under way. Its line is written when it is dropped, so exactly once.
/// Values are set where the entry is only read, too: in the code that counts and reports. One worker uses it.
#[derive(Debug)]
pub(crate) struct AccessEntry {
    log: Arc<RequestLog>,
    service: Arc<Service>,
    /// Number of the worker, which counts a line that is dropped.
    worker: usize,
    client: SocketAddr,
    /// The client that a proxy reported.
    reported: Cell<Option<IpAddr>>,
    /// The name and type of a query.
    request: RequestText,
    /// RCODE of the response to a query.
    status: Cell<Option<u16>>,
    /// Time of the beginning since 1970.
    received_at: Duration,
    begun_at: Time,
    /// Time at which the server was connected or got the query.
    connected_at: Cell<Option<Time>>,
    /// Time of the first byte of the server.
    responded_at: Cell<Option<Time>>,
    /// Time of the end, or of the last byte.
    ended_at: Cell<Time>,
    /// Server that was tried last, with the name of its pool.
    server: RefCell<Option<(Arc<str>, Arc<Entry>)>>,
    tries: Cell<u32>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    cause: Cell<Option<Cause>>,
    /// Version of TLS, and the server name in the ClientHello.
    tls: RefCell<Option<TlsNames>>,
}

impl AccessEntry {
    /// Begins an entry, if the service has a log and this one is in the sample.
    pub(crate) fn begin(
        cx: &Context,
        service: &Arc<Service>,
        settings: &Settings,
        client: SocketAddr,
        request: impl FnOnce() -> RequestText,
    ) -> Option<Box<Self>> {
        let log = settings.request_log.as_ref().filter(|log| !log.is_pen() && log.samples())?;
        Some(Box::new(Self {
            log: Arc::clone(log),
            service: Arc::clone(service),
            worker: cx.id,
            client,
            reported: Cell::new(None),
            request: request(),
            status: Cell::new(None),
            received_at: since_epoch(),
            begun_at: cx.now,
            connected_at: Cell::new(None),
            responded_at: Cell::new(None),
            ended_at: Cell::new(cx.now),
            server: RefCell::new(None),
            tries: Cell::new(0),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            cause: Cell::new(None),
            tls: RefCell::new(None),
        }))
    }

    /// Records a server that is tried.
    pub(crate) fn tried(&self, pool: &Arc<str>, server: &Arc<Entry>) {
        self.server.replace(Some((Arc::clone(pool), Arc::clone(server))));
        self.tries.set(self.tries.get() + 1);
    }

    /// Records that the server is connected, or that the query was sent to it.
    pub(crate) fn connected(&self, now: Time) {
        self.connected_at.set(Some(now));
    }

    /// Counts delivered bytes.
    pub(crate) fn moved(&self, bytes_in: u64, bytes_out: u64, now: Time) {
        self.bytes_in.set(self.bytes_in.get() + bytes_in);
        self.bytes_out.set(self.bytes_out.get() + bytes_out);
        self.ended_at.set(now);
        if bytes_out > 0 && self.responded_at.get().is_none() {
            self.responded_at.set(Some(now));
        }
    }

    /// Records the response to a query.
    pub(crate) fn responded(&self, rcode: u8, bytes: usize, now: Time) {
        self.status.set(Some(rcode.into()));
        self.moved(0, bytes as u64, now);
    }

    /// Sets the reason of the end, unless there is one.
    pub(crate) fn set_cause(&self, cause: impl Into<Cause>) {
        if self.cause.get().is_none() {
            self.cause.set(Some(cause.into()));
        }
    }

    /// Records the end of a connection of `client`, who is another one than the peer if a proxy reported it.
    pub(crate) fn ended(&self, client: IpAddr, now: Time) {
        self.reported.set(Some(client).filter(|client| *client != self.client.ip()));
        self.ended_at.set(now);
    }
}

impl AccessEntry {
    /// Records the version of TLS with the client, and the server name that it requested.
    pub(crate) fn set_tls(&self, version: &'static str, server_name: Option<&str>) {
        self.tls.replace(Some((version, server_name.map(Box::from))));
    }
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        let (server, tls) = (self.server.borrow(), self.tls.borrow());
        let since_begin = |at: Time| at.since(self.begun_at);
        let reported = self.reported.get();
        let record = Record {
            received_at: self.received_at,
            service: &self.service.live.name,
            client: reported.unwrap_or(self.client.ip()),
            client_port: reported.is_none().then_some(self.client.port()),
            request: &self.request,
            status: self.status.get(),
            cause: self.cause.get(),
            server: server.as_ref().map(|(pool, server)| RecordServer {
                pool,
                name: &server.name,
                address: &server.target,
            }),
            retries: self.tries.get().saturating_sub(1),
            request_bytes: self.bytes_in.get(),
            response_bytes: self.bytes_out.get(),
            connected: self.connected_at.get().map(since_begin),
            first_byte: self.responded_at.get().map(since_begin),
            duration: since_begin(self.ended_at.get()),
            tls: tls.as_ref().map(|(version, _)| *version),
            sni: tls.as_ref().and_then(|(_, name)| name.as_deref()),
        };
        self.log.write(&record, self.service.live.counters.of(self.worker));
    }
}
