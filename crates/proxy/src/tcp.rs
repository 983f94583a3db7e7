//! Clients of TCP whose bytes are relayed, and the listeners for all connections. The way of a client is in `five_hops.rs`;
//! clients that speak more than bytes are handed over.

mod connection;
mod deadline;
mod first;
mod five_hops;
mod list;
mod listener;
mod pausing;
mod pending;
mod queued;
mod ring_relay;
#[cfg(test)]
mod tests;
mod warm;

pub(crate) use self::listener::Paused;

use self::listener::StreamListener;
use self::ring_relay::{PendingSend, Starved};
use self::warm::Warm;
use crate::context::Context;
use crate::context::keys::{ConnectionKey, Table, of};
use crate::context::ring::Generations;
use crate::context::timers::Timers;
use crate::io::relay::Scratch;
use crate::service::accepted::Accepted;
use crate::service::pool_queue;
use crate::tcp::connection::{Connection, Stage};
use evener_core::Time;
use evener_core::limits::Lease;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The clients of one worker whose bytes are relayed, and the listeners for all connections.
pub(crate) struct Tcp {
    listeners: Table<of::Listener, StreamListener>,
    connections: Table<of::Connection, Box<Connection>>,
    timers: Timers<ConnectionKey>,
    scratch: Scratch,
    /// Sends of the ring.
    sends: Table<of::Send, PendingSend>,
    starved: Vec<Starved>,
    /// The slot among the connects under way of the client that is accepted just now.
    pending: Option<Lease>,
    /// Connections to servers that are made before clients want them.
    warm: Warm,
    generations: Generations,
    /// Clients for other components.
    handed_over: VecDeque<Accepted>,
    /// Connections that ended during the present events.
    over: Vec<ConnectionKey>,
    /// Room for deadlines that come at once.
    due: Vec<ConnectionKey>,
}

impl Tcp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Table::default(),
            connections: Table::default(),
            timers: Timers::new(),
            scratch: Scratch::new(),
            sends: Table::default(),
            starved: Vec::new(),
            pending: None,
            warm: Warm::default(),
            generations: Generations::default(),
            handed_over: VecDeque::new(),
            over: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Time until the next deadline; `None` when there is none.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        let paused = self.listeners.iter().filter_map(|(_, listener)| listener.paused).min();
        let until = [paused, self.warm.due()].into_iter().flatten().min().map(|at| at.since(now));
        [self.timers.wait(now), until].into_iter().flatten().min()
    }

    /// Handles the deadlines that came, accepts where a pause is over, and maintains warm connections.
    pub(crate) fn on_deadlines(&mut self, cx: &mut Context) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(cx.now, &mut due);
        due.drain(..).for_each(|key| self.on_deadline(cx, key));
        self.due = due;
        self.resume_accepting(cx, Paused::Due);
        if self.warm.due().is_some_and(|due| due <= cx.now) {
            let services = self.listeners.iter().map(|(_, listener)| &listener.service);
            self.warm.maintain(cx, services);
        }
    }

    /// Looks at warm connections soon: what they are made for may have changed.
    pub(crate) fn check_warm(&mut self, now: Time) {
        self.warm.check_again(now);
    }

    /// Finishes the present events: feeds receives, follows crowded services.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        self.feed_starved(cx);
        self.watch_crowded(cx);
    }

    /// The next client that was accepted for another component.
    pub(crate) fn take_accepted(&mut self) -> Option<Accepted> {
        self.handed_over.pop_front()
    }

    /// Closes unused connections and pipes; returns how many descriptors were freed.
    pub(crate) fn shed(&mut self, now: Time) -> u32 {
        self.warm.shed(now) + self.scratch.shed_pipes()
    }

    /// Closes all connections, and counts them as cut.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        for key in self.connections.keys(|connection| connection.stage != Stage::Over) {
            self.connections[key].service.live.counters.of(cx.id).cut.one();
            self.close(cx, key);
        }
    }

    /// Frees the connections that ended. Slots that became free may be waited for, here or by another worker.
    pub(crate) fn reap(&mut self, cx: &mut Context) {
        // Queued operations name descriptors: they must reach the kernel before these are closed and reused.
        if let Some(ring) = cx.ring.as_mut().filter(|_| !self.over.is_empty()) {
            ring.submit();
        }
        while let Some(key) = self.over.pop() {
            let Some(mut connection) = self.connections.remove(key) else { continue };
            connection.from_client.release(&mut self.scratch);
            connection.from_server.release(&mut self.scratch);
            let service = Arc::clone(&connection.service);
            if connection.upstream.is_some() {
                pool_queue::note_freed(cx, &connection.backend().pool);
            }
            drop(connection);
            service.wake_waiting(cx);
        }
    }

    /// Goes on with a connection from the ready queue.
    pub(crate) fn resume(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.queued = false;
        if matches!(connection.stage, Stage::Relaying | Stage::Lingering) {
            self.relay(cx, key);
        }
    }
}
