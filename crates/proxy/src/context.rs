//! What all components of a worker share: time, chance, where descriptors are registered, what has more to do, the ring.

pub mod descriptors;
pub(crate) mod keys;
pub(crate) mod pool_queue;
pub(crate) mod ready;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod ring;
pub(crate) mod timers;

use self::pool_queue::PoolQueues;
use self::ready::ReadyQueue;
use self::registry::Registry;
use self::report::Reporter;
use self::ring::Ring;
use evener_core::{Random, Time};
use mio::Waker;
use std::sync::{Arc, OnceLock};

/// What the components of a worker share.
pub(crate) struct Context {
    /// The number of the worker.
    pub(crate) id: usize,
    /// How many workers there are.
    pub(crate) workers: usize,
    /// The time of the present events.
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) registry: Registry,
    pub(crate) report: Reporter,
    /// io_uring, when it is wanted and to be had.
    pub(crate) ring: Option<Ring>,
    pub(crate) ready: ReadyQueue,
    /// Clients and requests that wait for a permit of a server.
    pub(crate) queues: PoolQueues,
    /// No new clients; those that are idle leave.
    pub(crate) draining: bool,
    /// Services so crowded that what their clients send may go round.
    crowded: Vec<Arc<str>>,
    next_number: u32,
    peers: Arc<OnceLock<Vec<Waker>>>,
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

    /// The number of one more connection, session or flow.
    pub(crate) fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        number
    }

    /// Has the listeners of a service keep the first packets of connections, which show how far these came.
    pub(crate) fn note_crowded(&mut self, service: &Arc<str>) {
        if !self.crowded.contains(service) {
            self.crowded.push(Arc::clone(service));
        }
    }

    /// Takes the services that were noted since the last call.
    pub(crate) fn take_crowded(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.crowded)
    }

    /// Has all workers look at what waits.
    pub(crate) fn wake_all(&self) {
        self.peers.get().into_iter().flatten().for_each(|peer| drop(peer.wake()));
    }
}
