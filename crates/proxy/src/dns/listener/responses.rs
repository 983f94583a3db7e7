//! The batch of responses over UDP. Each response is sent from the listener of its query. Responses of the same
//! length to the same client become one message for the kernel, since sending responses is half of the cost of
//! a query.

use crate::context::Context;
use crate::context::keys::Handle;
use crate::dns::listener::Datagram;
use crate::dns::{Dns, ReturnPath};
use crate::io::batch::{Batch, Local, Senders};
use crate::io::gso::Burst;
use evener_core::hash;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;

/// Number of slots. In larger batches more responses go to the same client, and such responses together cost
/// little more than one response.
const ROOM: usize = 256;

/// A batch of responses.
pub(in crate::dns) struct Responses {
    batch: Batch,
    /// The destination of each slot.
    paths: Vec<Option<ReturnPath>>,
    count: usize,
    /// The slots in the order of sending.
    order: Vec<Slot>,
    slots: Vec<usize>,
    burst: Burst,
}

/// Sort key of a slot: listener, client and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    /// Key of the listener, as a number that can be sorted.
    listener: u64,
    client: u64,
    length: usize,
    at: usize,
}

impl Responses {
    fn new() -> Self {
        Self {
            batch: Batch::new(ROOM),
            paths: vec![None; ROOM],
            count: 0,
            order: Vec::with_capacity(ROOM),
            slots: Vec::with_capacity(ROOM),
            burst: Burst::new(ROOM),
        }
    }

    /// Receives datagrams into the next slots.
    pub(in crate::dns) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        self.batch.receive(socket, self.count, Senders::Ignored, Local::Fixed)
    }

    /// Returns the next datagram.
    pub(in crate::dns) fn next(&mut self) -> Datagram<'_> {
        Datagram { at: self.count, batch: &mut self.batch }
    }

    /// Returns the number of free slots.
    pub(in crate::dns) fn room(&self) -> usize {
        ROOM - self.count
    }

    /// Sets the destination of the next slot, which is filled already. Without a destination the slot is not
    /// sent.
    pub(in crate::dns) fn send_next(&mut self, path: Option<ReturnPath>) {
        let at = self.count;
        self.count += 1;
        self.paths[at] = path;
    }

    /// Sorts and addresses the slots that have a destination.
    fn arrange(&mut self) {
        self.order.clear();
        for (at, path) in self.paths[..std::mem::take(&mut self.count)].iter().enumerate() {
            let Some(path) = path else { continue };
            self.batch.set_destination(at, path.address, path.local);
            // Used for sorting only, so collisions are harmless.
            let client = hash::of_client(path.address.ip()) ^ u64::from(path.address.port());
            self.order.push(Slot {
                listener: path.listener.into_raw(),
                client,
                length: self.batch.len(at),
                at,
            });
        }
        self.order.sort_unstable();
        self.slots.clear();
        self.slots.extend(self.order.iter().map(|slot| slot.at));
    }
}

impl Dns {
    /// Takes the batch, with at least one free slot.
    pub(in crate::dns) fn take_responses(&mut self, cx: &Context) -> Box<Responses> {
        let mut responses = self.responses.take().unwrap_or_else(|| Box::new(Responses::new()));
        if responses.room() == 0 {
            self.send_responses(cx, &mut responses);
        }
        responses
    }

    /// Puts a message into the batch.
    pub(in crate::dns) fn push_response(&mut self, cx: &Context, path: ReturnPath, message: &[u8]) {
        let mut responses = self.take_responses(cx);
        let at = responses.count;
        responses.batch.set_bytes(at, message);
        let path = self.is_listening(&path).then_some(path);
        responses.send_next(path);
        self.responses = Some(responses);
    }

    /// Returns whether the listener of a query still exists.
    pub(in crate::dns) fn is_listening(&self, path: &ReturnPath) -> bool {
        self.listeners.contains(path.listener)
    }

    /// Sends all queued responses.
    pub(in crate::dns) fn flush_responses(&mut self, cx: &Context) {
        if let Some(mut responses) = self.responses.take() {
            self.send_responses(cx, &mut responses);
            self.responses = Some(responses);
        }
    }

    /// Sends the batch, listener by listener.
    fn send_responses(&mut self, cx: &Context, responses: &mut Responses) {
        responses.arrange();
        let Responses { batch, paths, order, slots, burst, .. } = responses;
        let mut from = 0;
        for group in order.chunk_by(|one, other| one.listener == other.listener) {
            let slots = &slots[from..from + group.len()];
            from += group.len();
            let Some(listener) = self.listeners.get(Handle::from_raw(group[0].listener)) else { continue };
            let is_same = |one: usize, other: usize| is_to_same(&paths[one], &paths[other]);
            let sent = burst.send_addressed(listener.socket.as_fd(), batch, slots, is_same);
            let counters = self.services[listener.service].service.live.counters.of(cx.id);
            counters.datagrams_out.add(sent.count() as u64);
            for slot in group {
                counters.bytes_out.add(slot.length as u64);
                counters.response_bytes.record_bytes(slot.length as u64);
            }
            counters.drops.send_full.add((group.len() - sent.count()) as u64);
        }
    }
}

/// Returns whether two responses have the same client and local address.
fn is_to_same(one: &Option<ReturnPath>, other: &Option<ReturnPath>) -> bool {
    one.zip(*other).is_some_and(|(one, other)| one.address == other.address && one.local == other.local)
}
