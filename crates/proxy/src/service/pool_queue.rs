//! Clients of TCP and requests of HTTP that wait in the queues of pools, because every server was at its limit. Each worker
//! keeps its own in the order in which they came; how many wait at all workers together is bounded by the pool. A permit that
//! is given back, here or by another worker, wakes them; who gets it is not decided here.

use crate::context::registry::Token;
use crate::http::exchange;
use crate::service::Service;
use crate::tcp;
use crate::tcp::connection::Stage;
use crate::worker::Worker;
use arc_swap::ArcSwap;
use evener_core::Time;
use evener_core::limits::Lease;
use evener_core::snapshot::{NoServer, Request, Snapshot};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Those that wait are looked at this often even if nobody wakes them: permits are given back by datagrams, too, and
/// servers come up.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// So many of one pool are looked at in vain, the oldest first, and as many again from where the last look stopped, before
/// the rest of it has to wait for the next time: servers may admit those behind and not those before.
const VAIN_MAX: u32 = 8;

/// A slot in the queue of a pool, given back when dropped.
#[derive(Debug)]
pub(crate) struct Queued {
    ticket: u64,
    _slot: Lease,
}

/// What waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Exchange(usize),
    Connection(usize),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ticket: u64,
    pool: usize,
    waiter: Waiter,
}

/// Those that wait at one worker.
#[derive(Debug, Default)]
pub(crate) struct PoolQueues {
    /// In the order of their tickets.
    entries: VecDeque<Entry>,
    next_ticket: u64,
    look_at: Time,
    /// A permit was given back that somebody waits for, here or at another worker.
    freed: bool,
    /// Another worker gave one back.
    woken: bool,
    /// Pools that were not looked through, with the ticket to go on with.
    stopped: Vec<(usize, u64)>,
}

/// How far one look through the queue of a pool is.
struct Look {
    pool: usize,
    vain: u32,
    /// Where the last one stopped.
    resume: u64,
}

impl Look {
    /// Whether an entry has its turn.
    fn has_turn(&self, ticket: u64) -> bool {
        self.vain < VAIN_MAX || (ticket >= self.resume && self.vain < 2 * VAIN_MAX)
    }
}

impl PoolQueues {
    fn add(&mut self, pool: usize, waiter: Waiter, slot: Lease) -> Queued {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.entries.push_back(Entry { ticket, pool, waiter });
        Queued { ticket, _slot: slot }
    }

    /// Takes out one that does not wait any more.
    pub(crate) fn remove(&mut self, queued: &Queued) {
        if let Ok(at) = self.entries.binary_search_by_key(&queued.ticket, |entry| entry.ticket) {
            self.entries.remove(at);
        }
    }

    fn first_from(&self, ticket: u64) -> Option<Entry> {
        let at = self.entries.partition_point(|entry| entry.ticket < ticket);
        self.entries.get(at).copied()
    }

    /// Another worker woke this one.
    pub(crate) fn wake(&mut self) {
        self.woken = true;
    }

    /// How long nothing has to be looked at; `None` for ever.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        if self.freed {
            return Some(Duration::ZERO);
        }
        (!self.entries.is_empty()).then(|| self.look_at.since(now))
    }
}

/// Whether a newcomer has to wait behind others, whether a permit is free or not.
pub(crate) fn is_behind(snapshot: &Snapshot, request: &Request) -> bool {
    snapshot.queue.is_some() && snapshot.queued() > 0 && !snapshot.may_pass_the_queue(request)
}

/// A slot in the queue of a pool; `None` when it has none, or that is full.
pub(crate) fn enter(
    worker: &mut Worker,
    service: &Service,
    pool: &Arc<ArcSwap<Snapshot>>,
    snapshot: &Snapshot,
    waiter: Waiter,
) -> Option<(Queued, Duration)> {
    let spec = snapshot.queue?;
    let counters = service.live.counters.of(worker.id);
    let Some(slot) = snapshot.enter_queue() else {
        counters.queue_full.one();
        return None;
    };
    counters.queued.one();
    if worker.queues.entries.is_empty() {
        worker.queues.look_at = worker.now + LOOK_EVERY;
    }
    // The permit that was not there may have been given back before this was in the queue.
    worker.queues.woken |= snapshot.queued() == 1;
    Some((worker.queues.add(Arc::as_ptr(pool) as usize, waiter, slot), spec.timeout))
}

/// A permit of a pool is given back: who waits for one is looked at soon.
pub(crate) fn note_freed(worker: &mut Worker, pool: &ArcSwap<Snapshot>) {
    worker.queues.freed |= pool.load().queued() > 0;
}

/// Gives permits to those that wait, if some may be there.
pub(crate) fn serve(worker: &mut Worker) {
    let freed = std::mem::take(&mut worker.queues.freed);
    if freed {
        worker.wake_all();
    }
    let woken = std::mem::take(&mut worker.queues.woken);
    let due = worker.queues.look_at <= worker.now;
    if worker.queues.entries.is_empty() || !(freed || woken || due) {
        return;
    }
    worker.queues.look_at = worker.now + LOOK_EVERY;
    let before = std::mem::take(&mut worker.queues.stopped);
    let (mut looks, mut stopped): (Vec<Look>, Vec<(usize, u64)>) = (Vec::new(), Vec::new());
    let (mut from, until) = (0, worker.queues.next_ticket);
    while let Some(entry) = worker.queues.first_from(from).filter(|entry| entry.ticket < until) {
        from = entry.ticket + 1;
        let at = looks.iter().position(|look| look.pool == entry.pool).unwrap_or_else(|| {
            let resume = before.iter().find(|(pool, _)| *pool == entry.pool).map_or(0, |(_, ticket)| *ticket);
            looks.push(Look { pool: entry.pool, vain: 0, resume });
            looks.len() - 1
        });
        if !looks[at].has_turn(entry.ticket) {
            if looks[at].vain == 2 * VAIN_MAX && stopped.iter().all(|(pool, _)| *pool != entry.pool) {
                stopped.push((entry.pool, entry.ticket));
            }
            continue;
        }
        let served = match entry.waiter {
            Waiter::Exchange(number) => exchange::serve_queued(worker, number),
            Waiter::Connection(index) => serve_connection(worker, index),
        };
        looks[at].vain += u32::from(!served);
    }
    worker.queues.stopped = stopped;
}

/// A client of TCP waits in the queue of its pool, if that has room.
pub(crate) fn enter_connection(worker: &mut Worker, index: usize) -> bool {
    let connection = &worker.connections[index];
    let (service, pool) = (Arc::clone(&connection.service), Arc::clone(&connection.backend().pool));
    let snapshot = pool.load_full();
    let Some((queued, timeout)) = enter(worker, &service, &pool, &snapshot, Waiter::Connection(index)) else {
        return false;
    };
    let rides = rides(worker, index);
    let connection = &mut worker.connections[index];
    connection.guest.get_or_insert_default().queued = Some(queued);
    connection.stage = Stage::Queued;
    worker.timers.set(index, worker.now + timeout);
    if rides {
        // Until the ring has it, epoll tells when it leaves; if that cannot be, its time is up some day.
        let _ = worker.registry.register(&worker.connections[index].client, Token::Client(index));
    }
    true
}

/// Whether a client is the ring's as soon as its server accepted, and not epoll's.
fn rides(worker: &Worker, index: usize) -> bool {
    worker.ring.is_some() && worker.connections[index].greeting.is_none()
}

/// A client of TCP does not wait any more.
pub(crate) fn leave_connection(worker: &mut Worker, index: usize) {
    let connection = &mut worker.connections[index];
    let Some(queued) = connection.guest.as_mut().and_then(|guest| guest.queued.take()) else { return };
    worker.queues.remove(&queued);
    worker.timers.clear(index);
    if rides(worker, index) {
        worker.registry.deregister(&worker.connections[index].client);
    }
}

fn serve_connection(worker: &mut Worker, index: usize) -> bool {
    let connection = &mut worker.connections[index];
    let request = Request::of(connection.address, worker.now);
    let snapshot = connection.backend().pool.load_full();
    let limits = connection.settings.options.attempt_limits();
    connection.attempt.begin_anew();
    match connection.attempt.next(&snapshot, &request, &limits, &mut worker.random) {
        Err(NoServer::Full) => false,
        picked => {
            leave_connection(worker, index);
            tcp::take_server(worker, index, picked);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::limits::Occupancy;

    #[test]
    fn those_that_wait_are_found_in_their_order_whoever_leaves() {
        let (mut queues, slots) = (PoolQueues::default(), Occupancy::default());
        let mut waiting: Vec<Queued> =
            (0..5).map(|number| queues.add(1, Waiter::Exchange(number), slots.enter(5).unwrap())).collect();
        assert!(slots.enter(5).is_none(), "the pool's bound holds");
        let order = |queues: &PoolQueues| {
            let (mut from, mut found) = (0, Vec::new());
            while let Some(entry) = queues.first_from(from) {
                found.push(entry.ticket);
                from = entry.ticket + 1;
            }
            found
        };
        assert_eq!(order(&queues), [0, 1, 2, 3, 4]);
        for at in [3, 0] {
            let left = waiting.remove(at);
            queues.remove(&left);
            queues.remove(&left);
        }
        assert_eq!(order(&queues), [1, 2, 4]);
        waiting.push(queues.add(1, Waiter::Connection(7), slots.enter(5).unwrap()));
        assert_eq!(order(&queues), [1, 2, 4, 5]);
        assert_eq!(slots.active(), 4, "slots are given back");
    }

    #[test]
    fn nobody_is_looked_at_while_nobody_waits() {
        let (mut queues, slots) = (PoolQueues::default(), Occupancy::default());
        assert_eq!(queues.wait(Time::ZERO), None);
        queues.look_at = Time::ZERO + LOOK_EVERY;
        let queued = queues.add(1, Waiter::Exchange(0), slots.enter(1).unwrap());
        assert_eq!(queues.wait(Time::ZERO), Some(LOOK_EVERY));
        queues.freed = true;
        assert_eq!(queues.wait(Time::ZERO), Some(Duration::ZERO));
        queues.freed = false;
        queues.remove(&queued);
        assert_eq!(queues.wait(Time::ZERO), None);
    }
}
