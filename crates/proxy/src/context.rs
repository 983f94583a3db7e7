//! The state that all components of a worker share: time, randomness, registered descriptors, the queue of
//! entries with more work, and the ring.

pub mod descriptors;
pub(crate) mod keys;
pub(crate) mod pool_queue;
pub(crate) mod ready;
pub(crate) mod record_budget;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod ring;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod timers;
pub(crate) mod unserved;

use self::pool_queue::PoolQueues;
use self::ready::ReadyQueue;
use self::record_budget::RecordBudget;
use self::registry::Registry;
use self::report::{Details, Report, Reporter};
use self::ring::Ring;
use evener_core::hash;
use evener_core::{Random, Time};
use mio::Waker;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// The state that the components of a worker share.
pub(crate) struct Context {
    /// Index of the worker.
    pub(crate) id: usize,
    /// Number of workers.
    workers: usize,
    /// Time of the present events.
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) registry: Registry,
    reporter: Reporter,
    details: Details,
    records: RecordBudget,
    /// io_uring, if it is configured and available.
    pub(crate) ring: Option<Ring>,
    pub(crate) ready: ReadyQueue,
    /// Clients and requests that wait for a permit of a server.
    pub(crate) queues: PoolQueues,
    /// New clients are refused, and idle clients are closed.
    pub(crate) draining: bool,
    /// The next instance takes the listeners over. It serves a client that leaves at once, so idle clients need
    /// not leave at once.
    has_successor: bool,
    /// Services with so many connections that their traffic may loop.
    crowded: Vec<Arc<str>>,
    next_number: u32,
    peers: Arc<OnceLock<Vec<Waker>>>,
}

/// The reports of a context for tests.
#[cfg(test)]
pub(crate) struct Reports(std::sync::mpsc::Receiver<Report>);

#[cfg(test)]
impl Reports {
    /// Takes the reports since the last call, in their order.
    pub(crate) fn take(&self) -> Vec<Report> {
        self.0.try_iter().collect()
    }
}

impl Context {
    pub(crate) fn new(
        (id, workers): (usize, usize),
        seed: u64,
        registry: Registry,
        (reporter, details): (Reporter, Details),
        peers: Arc<OnceLock<Vec<Waker>>>,
    ) -> Self {
        Self {
            id,
            workers,
            now: Time::ZERO,
            random: Random::seeded(seed),
            registry,
            reporter,
            details,
            records: RecordBudget::default(),
            ring: None,
            ready: ReadyQueue::default(),
            queues: PoolQueues::default(),
            draining: false,
            has_successor: false,
            crowded: Vec::new(),
            next_number: 0,
            peers,
        }
    }

    /// Returns the serial number of the next connection, session or flow.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        number
    }

    /// Returns the number of a connection, session or flow that is unique among all workers; `serial` is unique
    /// within this worker.
    pub(crate) fn global_number(&self, serial: u32) -> u64 {
        u64::from(serial) * self.workers as u64 + self.id as u64
    }

    /// Returns whether the next instance takes the listeners over.
    pub(crate) fn has_successor(&self) -> bool {
        self.has_successor
    }

    /// Records whether the next instance takes the listeners over.
    pub(crate) fn set_successor(&mut self, has_successor: bool) {
        self.has_successor = has_successor;
    }

    /// Returns this worker's part of `total`, which is split evenly between the workers and rounded up.
    pub(crate) fn share(&self, total: u32) -> u32 {
        total.div_ceil(self.workers.max(1) as u32)
    }

    /// Returns the index of the worker and the number of workers.
    pub(crate) fn position(&self) -> (usize, usize) {
        (self.id, self.workers)
    }

    /// Sends a report to the supervisor.
    pub(crate) fn report(&self, report: Report) {
        (self.reporter)(report);
    }

    /// Takes the right to report a further failure. Returns false if no reader wants all failures, or there were
    /// too many in this second.
    pub(crate) fn takes_detail(&self) -> bool {
        self.details.take(self.now)
    }

    /// Returns the bound on the records of clients whose addresses may be forged.
    pub(crate) fn record_budget(&self) -> &RecordBudget {
        &self.records
    }

    /// Notes that the listeners of a crowded service have to keep the first packets of connections, because the
    /// TTLs of these packets are needed.
    pub(crate) fn note_crowded(&mut self, service: &Arc<str>) {
        if !self.crowded.contains(service) {
            self.crowded.push(Arc::clone(service));
        }
    }

    /// Takes the crowded services that were noted since the last call.
    pub(crate) fn take_crowded(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.crowded)
    }

    /// Creates the context of a single worker, and the receiver of its reports. Sockets are registered, but
    /// never polled.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, Reports) {
        Self::for_worker((0, 1))
    }

    /// Creates the context of one of several workers, like [`Context::for_tests`].
    #[cfg(test)]
    pub(crate) fn for_worker(position: (usize, usize)) -> (Self, Reports) {
        let poll = mio::Poll::new().expect("a descriptor for epoll");
        let registry = poll.registry().try_clone().expect("a descriptor for its copy");
        let (sender, receiver) = std::sync::mpsc::channel();
        let reporter: Reporter = Arc::new(move |report| drop(sender.send(report)));
        let reporter = (reporter, Details::new(Arc::default()));
        let cx = Self::new(position, 1, Registry::new(registry), reporter, Arc::default());
        (cx, Reports(receiver))
    }

    /// Returns whether this worker handles the datagrams of this client to a broadcast or multicast address.
    /// The kernel delivers a copy of them to each worker.
    pub(crate) fn handles_broadcasts_of(&self, client: SocketAddr) -> bool {
        let number = hash::of_client(client.ip()) ^ u64::from(client.port());
        number % self.workers.max(1) as u64 == self.id as u64
    }

    /// Wakes all workers, so that they resume accepting and serve their queues.
    pub(crate) fn wake_all(&self) {
        self.peers.get().into_iter().flatten().for_each(|peer| drop(peer.wake()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_broadcast_is_handled_by_exactly_one_worker() {
        let workers = [0, 1, 2].map(|id| Context::for_worker((id, 3)).0);
        let mut handled = [0; 3];
        for port in 1..=300 {
            let client = SocketAddr::from(([192, 0, 2, 7], port));
            let handlers: Vec<usize> =
                (0..3).filter(|&id| workers[id].handles_broadcasts_of(client)).collect();
            assert_eq!(handlers.len(), 1, "{client}");
            handled[handlers[0]] += 1;
        }
        assert!(handled.iter().all(|&count| count > 50), "each worker handles a part: {handled:?}");
    }

    #[test]
    fn numbers_differ_until_they_wrap() {
        let (mut cx, _) = Context::for_tests();
        assert_eq!([cx.number(), cx.number()], [0, 1]);
        cx.next_number = u32::MAX;
        assert_eq!([cx.number(), cx.number()], [u32::MAX, 0]);
    }
}
