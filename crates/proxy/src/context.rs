//! The state that all components of a worker share: time, randomness, registered descriptors, the queue of components
//! with more to do, and the ring.

pub mod descriptors;
pub(crate) mod keys;
pub(crate) mod pool_queue;
pub(crate) mod ready;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod ring;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod timers;

use self::pool_queue::PoolQueues;
use self::ready::ReadyQueue;
use self::registry::Registry;
use self::report::Reporter;
use self::ring::Ring;
use evener_core::hash;
use evener_core::{Random, Time};
use mio::Waker;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// The state that the components of a worker share.
pub(crate) struct Context {
    /// The number of the worker.
    pub(crate) id: usize,
    /// Number of workers.
    pub(crate) workers: usize,
    /// The time of the present events.
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) registry: Registry,
    pub(crate) report: Reporter,
    /// io_uring, if it is wanted and available.
    pub(crate) ring: Option<Ring>,
    pub(crate) ready: ReadyQueue,
    /// Clients and requests that wait for a permit of a server.
    pub(crate) queues: PoolQueues,
    /// New clients are refused, and idle ones leave.
    pub(crate) draining: bool,
    /// Services so crowded that the traffic of their clients may go round.
    crowded: Vec<Arc<str>>,
    next_number: u32,
    peers: Arc<OnceLock<Vec<Waker>>>,
}

/// The reports that a context for tests made.
#[cfg(test)]
pub(crate) struct Reports(std::sync::mpsc::Receiver<report::Report>);

#[cfg(test)]
impl Reports {
    /// Takes the reports since the last call, in their order.
    pub(crate) fn take(&self) -> Vec<report::Report> {
        self.0.try_iter().collect()
    }
}

impl Context {
    pub(crate) fn new(
        (id, workers): (usize, usize),
        seed: u64,
        registry: Registry,
        report: Reporter,
        peers: Arc<OnceLock<Vec<Waker>>>,
    ) -> Self {
        Self {
            id,
            workers,
            now: Time::ZERO,
            random: Random::seeded(seed),
            registry,
            report,
            ring: None,
            ready: ReadyQueue::default(),
            queues: PoolQueues::default(),
            draining: false,
            crowded: Vec::new(),
            next_number: 0,
            peers,
        }
    }

    /// Returns the number of the next connection, session or flow.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        number
    }

    /// Has the listeners of a service keep the first packets of connections, which show their TTLs.
    pub(crate) fn note_crowded(&mut self, service: &Arc<str>) {
        if !self.crowded.contains(service) {
            self.crowded.push(Arc::clone(service));
        }
    }

    /// Takes the services that were noted since the last call.
    pub(crate) fn take_crowded(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.crowded)
    }

    /// A context of the only worker, whose sockets are registered but never polled, and the reports that it makes.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, Reports) {
        let poll = mio::Poll::new().expect("a descriptor for epoll");
        let registry = poll.registry().try_clone().expect("another one");
        let (sender, receiver) = std::sync::mpsc::channel();
        let report: Reporter = Arc::new(move |report| drop(sender.send(report)));
        let cx = Self::new((0, 1), 1, Registry::new(registry), report, Arc::default());
        (cx, Reports(receiver))
    }

    /// Returns whether this worker is the one that takes the datagrams of this client to a broadcast or multicast address.
    /// The kernel gives each worker a copy of them.
    pub(crate) fn takes_broadcasts_of(&self, client: SocketAddr) -> bool {
        let number = hash::of_client(client.ip()) ^ u64::from(client.port());
        number % self.workers.max(1) as u64 == self.id as u64
    }

    /// Wakes all workers, so that they serve their queues.
    pub(crate) fn wake_all(&self) {
        self.peers.get().into_iter().flatten().for_each(|peer| drop(peer.wake()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_workers_takes_each_broadcast() {
        let (mut cx, _) = Context::for_tests();
        cx.workers = 3;
        let mut taken = [0; 3];
        for port in 1..=300 {
            let client = SocketAddr::from(([192, 0, 2, 7], port));
            let takers: Vec<usize> = (0..3)
                .filter(|&id| {
                    cx.id = id;
                    cx.takes_broadcasts_of(client)
                })
                .collect();
            assert_eq!(takers.len(), 1, "{client}");
            taken[takers[0]] += 1;
        }
        assert!(taken.iter().all(|&count| count > 50), "every worker has a part: {taken:?}");
    }

    #[test]
    fn numbers_differ_until_they_wrap() {
        let (mut cx, _) = Context::for_tests();
        assert_eq!([cx.number(), cx.number()], [0, 1]);
        cx.next_number = u32::MAX;
        assert_eq!([cx.number(), cx.number()], [u32::MAX, 0]);
    }
}
