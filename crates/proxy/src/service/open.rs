//! Listing of open connections, sessions and flows, and the request to close one by its number. Entries store
//! nothing but their number for this purpose.

use evener_core::acl::Prefix;
use evener_core::clients::LastServer;
use evener_core::lock::lock;
use evener_core::snapshot::Entry;
use rustix::fd::RawFd;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A connection or flow of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Number, unique among all workers. The numbers of a worker repeat after 4 billion entries.
    pub number: u64,
    /// The service.
    pub service: Arc<str>,
    /// The client; clients of a unix socket count as loopback.
    pub client: IpAddr,
    /// The client's port, if it is known.
    pub client_port: Option<u16>,
    /// The server that was chosen.
    pub server: Option<LastServer>,
    /// Name of the stage.
    pub stage: &'static str,
    /// Time without traffic.
    pub idle: Duration,
    /// The socket to the client; flows share one.
    pub client_socket: Option<RawFd>,
    /// The socket to the server.
    pub server_socket: Option<RawFd>,
    /// Bytes buffered for the client, not counting the kernel's buffers.
    pub to_client: usize,
    /// Bytes buffered for the server, not counting the kernel's buffers.
    pub to_server: usize,
}

/// The open connections and flows of all workers.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Their total number, including entries that are not listed.
    pub total: usize,
    /// The listed entries, sorted by their numbers.
    pub open: Vec<Open>,
}

/// Conditions on the connections and flows of a listing. Without conditions, all are listed.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    service: Option<Arc<str>>,
    clients: Option<Prefix>,
    server: Option<LastServer>,
}

impl ListFilter {
    /// Restricts the listing to one service, if any.
    #[must_use]
    pub fn of_service(self, service: Option<Arc<str>>) -> Self {
        Self { service, ..self }
    }

    /// Restricts the listing to the clients of a prefix, if any.
    #[must_use]
    pub fn of_clients(self, clients: Option<Prefix>) -> Self {
        Self { clients, ..self }
    }

    /// Restricts the listing to one server, if any.
    #[must_use]
    pub fn of_server(self, server: Option<LastServer>) -> Self {
        Self { server, ..self }
    }

    /// Returns true if the conditions need the entries and not only their service.
    fn reads_entries(&self) -> bool {
        self.clients.is_some() || self.server.is_some()
    }

    fn admits(&self, open: &Open) -> bool {
        self.clients.is_none_or(|clients| clients.contains(open.client))
            && self.server.as_ref().is_none_or(|server| open.server.as_ref() == Some(server))
    }
}

/// The outcome of a request to close a connection or flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Both sides are closed.
    Done,
    /// No connection or flow has the number.
    NotFound,
}

/// Receives the listing.
type Done = Box<dyn FnOnce(Listing) + Send>;

/// A listing to which all workers contribute. When the last worker drops it, the listing is sent.
pub(crate) struct ListRequest {
    filter: ListFilter,
    most: usize,
    listing: Mutex<Listing>,
    done: Mutex<Option<Done>>,
}

impl ListRequest {
    pub(crate) fn new(filter: ListFilter, most: usize, done: impl FnOnce(Listing) + Send + 'static) -> Self {
        let done: Done = Box::new(done);
        Self { filter, most, listing: Mutex::default(), done: Mutex::new(Some(done)) }
    }
}

impl Drop for ListRequest {
    fn drop(&mut self) {
        let mut listing = std::mem::take(&mut *lock(&self.listing));
        listing.open.sort_by_key(|open| open.number);
        if let Some(done) = lock(&self.done).take() {
            done(listing);
        }
    }
}

impl std::fmt::Debug for ListRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ListRequest").field("filter", &self.filter).finish_non_exhaustive()
    }
}

/// Receives the outcome of a request to close a connection or flow.
pub(crate) struct CloseReply(Box<dyn FnOnce(Closed) + Send>);

impl CloseReply {
    pub(crate) fn new(done: impl FnOnce(Closed) + Send + 'static) -> Self {
        Self(Box::new(done))
    }

    pub(crate) fn send(self, closed: Closed) {
        (self.0)(closed);
    }
}

impl std::fmt::Debug for CloseReply {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("CloseReply").finish_non_exhaustive()
    }
}

/// The contribution of one worker to a listing.
pub(crate) struct Collector<'a> {
    request: &'a ListRequest,
    listing: Listing,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(request: &'a ListRequest) -> Self {
        Self { request, listing: Listing::default() }
    }

    /// Returns whether the listing includes a service.
    pub(crate) fn is_meant(&self, service: &str) -> bool {
        self.request.filter.service.as_ref().is_none_or(|wanted| **wanted == *service)
    }

    /// Counts an entry that meets the conditions, and lists it if there is room.
    pub(crate) fn take(&mut self, open: impl FnOnce() -> Open) {
        let has_room = self.listing.open.len() < self.request.most;
        if !has_room && !self.request.filter.reads_entries() {
            self.listing.total += 1;
            return;
        }
        let open = open();
        if self.request.filter.admits(&open) {
            self.listing.total += 1;
            self.listing.open.extend(has_room.then_some(open));
        }
    }

    /// Adds the contribution to the listing.
    pub(crate) fn finish(mut self) {
        let mut listing = lock(&self.request.listing);
        listing.total += self.listing.total;
        listing.open.append(&mut self.listing.open);
    }
}

/// Returns the index of the worker that assigned a number of [`crate::context::Context::global_number`], and
/// the serial number there; `None` if no worker assigns the number.
pub(crate) fn find(number: u64, workers: usize) -> Option<(usize, u32)> {
    let workers = workers as u64;
    Some(((number % workers) as usize, u32::try_from(number / workers).ok()?))
}

/// Returns the names of a server and its pool.
pub(crate) fn last_server(pool: &Arc<str>, server: &Entry) -> LastServer {
    LastServer { pool: Arc::clone(pool), server: Arc::clone(&server.name) }
}

/// Returns the port of a client with this address. Clients of unix sockets have none, and behind a proxy only
/// the proxy's port may be known.
pub(crate) fn port(peer: SocketAddr, client: IpAddr) -> Option<u16> {
    (peer.ip() == client && peer.port() > 0).then_some(peer.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use std::sync::mpsc::channel;

    fn open(number: u64) -> Open {
        Open {
            number,
            service: "s".into(),
            client: [192, 0, 2, 1].into(),
            client_port: None,
            server: None,
            stage: "relaying",
            idle: Duration::ZERO,
            client_socket: None,
            server_socket: None,
            to_client: 0,
            to_server: 0,
        }
    }

    #[test]
    fn the_listing_is_sent_when_the_last_worker_contributed_or_stopped() {
        let (sender, listings) = channel();
        let request = Arc::new(ListRequest::new(ListFilter::default(), 10, move |listing| {
            sender.send(listing).unwrap();
        }));
        let of_worker = |numbers: &[u64]| {
            let mut collector = Collector::new(&request);
            numbers.iter().for_each(|&number| collector.take(|| open(number)));
            collector.finish();
        };
        of_worker(&[1, 5]);
        of_worker(&[2, 4]);
        let stopped = Arc::clone(&request);
        drop(request);
        assert!(listings.try_recv().is_err(), "one worker has not contributed yet");
        drop(stopped);
        let listing = listings.try_recv().unwrap();
        let numbers: Vec<u64> = listing.open.iter().map(|open| open.number).collect();
        assert_eq!((listing.total, numbers), (4, vec![1, 2, 4, 5]));
    }

    #[test]
    fn a_number_is_decoded_to_its_worker_and_serial() {
        assert_eq!(find(17, 4), Some((1, 4)));
        assert_eq!(find(u64::from(u32::MAX) * 4 + 3, 4), Some((3, u32::MAX)));
        assert_eq!(find(u64::MAX, 4), None, "no worker assigns this number");
    }

    #[test]
    fn a_listing_is_bounded_and_counts_all() {
        let (sender, listings) = channel();
        let request =
            ListRequest::new(ListFilter::default().of_service(Some("s".into())), 2, move |listing| {
                sender.send(listing).unwrap();
            });
        let mut collector = Collector::new(&request);
        assert!(collector.is_meant("s") && !collector.is_meant("other"));
        collector.take(|| open(1));
        collector.take(|| open(2));
        collector.take(|| unreachable!("the listing is full, so the entry is only counted"));
        collector.finish();
        drop(request);
        let listing = listings.try_recv().unwrap();
        assert_eq!((listing.total, listing.open), (3, vec![open(1), open(2)]));
    }

    #[test]
    fn a_listing_may_be_restricted_to_clients_and_a_server() {
        let server = |name: &str| Some(LastServer { pool: "p".into(), server: name.into() });
        let listed = |filter: ListFilter, most| {
            let (sender, listings) = channel();
            let request = ListRequest::new(filter, most, move |listing| sender.send(listing).unwrap());
            let mut collector = Collector::new(&request);
            for (number, client, name) in [(1, 1, "a"), (2, 2, "a"), (3, 1, "b"), (4, 1, "a")] {
                collector.take(|| Open {
                    client: [192, 0, 2, client].into(),
                    server: server(name),
                    ..open(number)
                });
            }
            collector.finish();
            drop(request);
            let listing = listings.try_recv().unwrap();
            (listing.total, listing.open.iter().map(|open| open.number).collect::<Vec<_>>())
        };
        let client = || ListFilter::default().of_clients(Some("192.0.2.1".parse().unwrap()));
        assert_eq!(listed(client(), 10), (3, vec![1, 3, 4]));
        assert_eq!(listed(client(), 1), (3, vec![1]), "entries beyond the limit are counted");
        assert_eq!(listed(ListFilter::default().of_server(server("a")), 10), (3, vec![1, 2, 4]));
        assert_eq!(listed(client().of_server(server("a")), 10), (2, vec![1, 4]));
    }

    #[test]
    fn numbers_of_all_workers_differ() {
        let mut numbers: Vec<u64> = Vec::new();
        for id in 0..3 {
            let (cx, _) = Context::for_worker((id, 3));
            for serial in [0, 1, u32::MAX] {
                assert_eq!(find(cx.global_number(serial), 3), Some((id, serial)));
                numbers.push(cx.global_number(serial));
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 9);
    }

    #[test]
    fn only_direct_clients_have_a_port() {
        let check = |peer: &str, client: &str, expected: Option<u16>| {
            assert_eq!(port(peer.parse().unwrap(), client.parse().unwrap()), expected, "{peer} {client}");
        };
        check("192.0.2.1:5000", "192.0.2.1", Some(5000));
        check("192.0.2.1:5000", "198.51.100.1", None);
        check("127.0.0.1:0", "127.0.0.1", None);
    }
}
