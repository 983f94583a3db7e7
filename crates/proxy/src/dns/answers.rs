//! The answers to datagrams, which go out together; each from the listener that its question came to. Those of one length to
//! one client become one message for the kernel: half of what a question costs us is to send its answer.

use super::Dns;
use crate::context::Context;
use crate::context::keys::{DnsListenerKey, Handle};
use crate::io::batch::Batch;
use crate::io::gso::Burst;
use evener_core::hash;
use rustix::fd::AsFd;
use std::net::{IpAddr, SocketAddr};

/// Where a datagram came from, and so where its answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) listener: DnsListenerKey,
    pub(super) address: SocketAddr,
    pub(super) local: Option<IpAddr>,
}

/// So many go out together: the more there are, the more go to one client, and those cost little more than one.
const ROOM: usize = 256;

/// The batch.
pub(super) struct Answers {
    pub(super) batch: Batch,
    /// Where each place goes.
    ways: Vec<Option<Way>>,
    pub(super) count: usize,
    /// The places in the order in which they are sent.
    order: Vec<Place>,
    places: Vec<usize>,
    burst: Burst,
}

/// Sorts the places of one listener, client and length next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The key of the listener as a number, which can be sorted.
    listener: u64,
    client: u64,
    length: usize,
    at: usize,
}

impl Answers {
    fn new() -> Self {
        Self {
            batch: Batch::new(ROOM),
            ways: vec![None; ROOM],
            count: 0,
            order: Vec::with_capacity(ROOM),
            places: Vec::with_capacity(ROOM),
            burst: Burst::new(ROOM),
        }
    }

    /// How many more there is room for.
    pub(super) fn room(&self) -> usize {
        ROOM - self.count
    }

    /// The next place, which was filled already, goes this way; or nowhere.
    pub(super) fn send_next(&mut self, way: Option<Way>) {
        let at = self.count;
        self.count += 1;
        self.ways[at] = way;
    }

    /// Puts the places that go anywhere in order, and addresses them.
    fn arrange(&mut self) {
        self.order.clear();
        for (at, way) in self.ways[..std::mem::take(&mut self.count)].iter().enumerate() {
            let Some(way) = way else { continue };
            self.batch.address(at, way.address, way.local);
            // Two clients may share the number: it only sorts.
            let client = hash::of_client(way.address.ip()) ^ u64::from(way.address.port());
            self.order.push(Place {
                listener: way.listener.into_raw(),
                client,
                length: self.batch.len(at),
                at,
            });
        }
        self.order.sort_unstable();
        self.places.clear();
        self.places.extend(self.order.iter().map(|place| place.at));
    }
}

impl Dns {
    /// The batch with room for at least one more.
    pub(super) fn take_responses(&mut self, cx: &Context) -> Box<Answers> {
        let mut answers = self.answers.take().unwrap_or_else(|| Box::new(Answers::new()));
        if answers.room() == 0 {
            self.send_responses(cx, &mut answers);
        }
        answers
    }

    /// Puts a message into the batch.
    pub(super) fn push_response(&mut self, cx: &Context, way: Way, message: &[u8]) {
        let mut answers = self.take_responses(cx);
        let at = answers.count;
        answers.batch.put(at, message);
        let way = self.is_listening(&way).then_some(way);
        answers.send_next(way);
        self.answers = Some(answers);
    }

    /// Whether the listener that a question came to is still the same.
    pub(super) fn is_listening(&self, way: &Way) -> bool {
        self.listeners.contains(way.listener)
    }

    /// Sends what waits.
    pub(super) fn flush_responses(&mut self, cx: &Context) {
        if let Some(mut answers) = self.answers.take() {
            self.send_responses(cx, &mut answers);
            self.answers = Some(answers);
        }
    }

    /// Sends all, those of one listener together.
    pub(super) fn send_responses(&mut self, cx: &Context, answers: &mut Answers) {
        answers.arrange();
        let Answers { batch, ways, order, places, burst, .. } = answers;
        let mut from = 0;
        for group in order.chunk_by(|one, other| one.listener == other.listener) {
            let places = &places[from..from + group.len()];
            from += group.len();
            let Some(listener) = self.listeners.get(Handle::from_raw(group[0].listener)) else { continue };
            let bytes: usize = group.iter().map(|place| place.length).sum();
            let is_same = |one: usize, other: usize| is_to_same(&ways[one], &ways[other]);
            let sent = burst.send_addressed(listener.socket.as_fd(), batch, places, is_same);
            let counters = self.services[listener.service].service.live.counters.of(cx.id);
            counters.datagrams_out.add(sent.taken as u64);
            counters.bytes_out.add(bytes as u64);
            counters.drop_send_full.add((group.len() - sent.taken) as u64);
        }
    }
}

/// Whether two go to one client, and from one address of ours.
fn is_to_same(one: &Option<Way>, other: &Option<Way>) -> bool {
    one.zip(*other).is_some_and(|(one, other)| one.address == other.address && one.local == other.local)
}
